// The client that echomux is measured by: what a careful program in C pays for the same job. One
// thread, epoll, level-triggered, every byte that comes back is compared, no more system calls
// than the job needs.
//
// usage: client PORT bulk BYTES         bytes from memory
//        client PORT file < FILE        standard input; what comes back goes to standard output
//        client PORT ping ROUNDS        64 bytes there and back, again and again
//        client PORT bare CONNECTIONS   64 bytes there and back on each of them, all at once
//        client PORT correct CONNECTIONS
//
// The server is on 127.0.0.1. The seconds that the job took, from before the first socket to after
// the last close, go to standard error, so that they can be told from the start of the process.
//
// A bare connection is nine system calls: socket, setsockopt, connect, epoll_ctl, getsockopt, send,
// epoll_ctl, recv, close. A correct one does what a client owes besides: O_NONBLOCK by a call of
// its own, urgent data kept in the stream, a look at the peer's name and at the local one (a
// connection to itself echoes perfectly), shutdown, and a read to the peer's EOF before close.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
	CHUNK = 256 * 1024, // bytes of one call, at most
	RING = 1024 * 1024, // bytes of standard input that are kept until they are back
	BATCH = 256,        // events of one wait, and connections begun between two waits
	MESSAGE = 64,       // bytes of a round, and of one of many connections
	PERIOD = 251,       // of the pattern: a prime, so that a byte in a wrong place shows
};

// The stream of `bulk` repeats the bytes 0 to PERIOD-1. Wherever one is in the stream, the next
// CHUNK bytes of it are in one piece in pattern.
static char pattern[CHUNK + PERIOD];
static char received[CHUNK];
static struct epoll_event events[BATCH];
static struct sockaddr_in server;
static int epoll;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void wrong(const char *what)
{
	fprintf(stderr, "client: %s\n", what);
	exit(1);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static long least(long a, long b)
{
	return a < b ? a : b;
}

static int would_block(void)
{
	return errno == EAGAIN || errno == EINTR;
}

// ---- Sockets ----

static void set(int fd, int level, int option)
{
	int on = 1;
	if (setsockopt(fd, level, option, &on, sizeof on) != 0)
		die("setsockopt");
}

// watch sets what to wait for. The event brings back the descriptor and the connection's number.
static void watch(int op, int fd, uint32_t number, uint32_t interest)
{
	struct epoll_event ev = {.events = interest, .data.u64 = (uint64_t)number << 32 | (uint32_t)fd};
	if (epoll_ctl(epoll, op, fd, &ev) != 0)
		die("epoll_ctl");
}

static int wait_for_events(int ms)
{
	int n = epoll_wait(epoll, events, BATCH, ms);
	if (n < 0 && errno != EINTR)
		die("epoll_wait");
	return n;
}

static int open_bare(void)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		die("socket");
	set(fd, IPPROTO_TCP, TCP_NODELAY);
	return fd;
}

static int open_correct(void)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		die("socket");
	set(fd, IPPROTO_TCP, TCP_NODELAY);
	set(fd, SOL_SOCKET, SO_OOBINLINE);
	if (fcntl(fd, F_SETFL, O_NONBLOCK) != 0)
		die("fcntl");
	return fd;
}

// dial begins to connect. Its answer makes the socket writable.
static void dial(int fd, uint32_t number)
{
	if (connect(fd, (struct sockaddr *)&server, sizeof server) != 0 && errno != EINPROGRESS)
		die("connect");
	watch(EPOLL_CTL_ADD, fd, number, EPOLLOUT);
}

static void check_connected(int fd)
{
	int err = 0;
	socklen_t size = sizeof err;
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &size) != 0)
		die("getsockopt");
	if (err != 0) {
		errno = err;
		die("connect");
	}
}

static void check_names(int fd)
{
	struct sockaddr_in peer, local;
	socklen_t size = sizeof peer;
	if (getpeername(fd, (struct sockaddr *)&peer, &size) != 0)
		die("getpeername");
	size = sizeof local;
	if (getsockname(fd, (struct sockaddr *)&local, &size) != 0)
		die("getsockname");
	if (peer.sin_port == local.sin_port && peer.sin_addr.s_addr == local.sin_addr.s_addr)
		wrong("connected to itself");
}

// connected is a connection of the correct kind, once it stands.
static int connected(void)
{
	int fd = open_correct();
	dial(fd, 0);
	while (wait_for_events(-1) < 1)
		;
	check_connected(fd);
	check_names(fd);
	return fd;
}

// finish half-closes, reads to the peer's EOF, for which the socket is watched, and closes.
static void finish(int fd)
{
	if (shutdown(fd, SHUT_WR) != 0)
		die("shutdown");
	for (;;) {
		wait_for_events(-1);
		ssize_t n = recv(fd, received, CHUNK, 0);
		if (n > 0)
			wrong("more came back than was sent");
		if (n == 0)
			break;
		if (!would_block())
			die("recv");
	}
	close(fd);
}

// get reads once and returns the number of bytes, 0 if there is none yet.
static long get(int fd)
{
	ssize_t n = recv(fd, received, CHUNK, 0);
	if (n == 0)
		wrong("closed early");
	if (n < 0 && !would_block())
		die("recv");
	return n < 0 ? 0 : n;
}

// put writes once and returns the number of bytes, 0 if the kernel takes none at present.
static long put(int fd, const char *bytes, long size)
{
	ssize_t n = send(fd, bytes, size, MSG_NOSIGNAL);
	if (n < 0 && !would_block())
		die("send");
	return n < 0 ? 0 : n;
}

// ---- Bytes from memory ----

static void bulk(long total)
{
	int fd = connected();
	long sent = 0, returned = 0;
	watch(EPOLL_CTL_MOD, fd, 0, EPOLLIN | EPOLLOUT);
	while (returned < total) {
		if (wait_for_events(-1) < 1)
			continue;
		if (events[0].events & EPOLLOUT && sent < total) {
			sent += put(fd, pattern + sent % PERIOD, least(total - sent, CHUNK));
			if (sent == total)
				watch(EPOLL_CTL_MOD, fd, 0, EPOLLIN);
		}
		if (events[0].events & EPOLLIN) {
			long n = get(fd);
			if (n > sent - returned)
				wrong("more came back than was sent");
			if (memcmp(received, pattern + returned % PERIOD, n) != 0)
				wrong("a byte differs");
			returned += n;
		}
	}
	finish(fd);
}

// ---- Standard input ----

// The ring holds the stream's bytes from `returned` to `read`: those before `sent` are on the way,
// the others wait. A position's place in it is the position modulo RING.
static char ring[RING];
static long taken, sent, returned;

// piece is how many of size bytes from a position on are in one piece in the ring.
static long piece(long position, long size)
{
	return least(size, RING - position % RING);
}

// fill reads standard input once, and says whether it goes on.
static int fill(void)
{
	long room = piece(taken, RING - (taken - returned));
	ssize_t n = read(STDIN_FILENO, ring + taken % RING, room);
	if (n < 0)
		die("standard input");
	taken += n;
	return n > 0;
}

// send_ring writes until the kernel takes no more, or there is no more.
static void send_ring(int fd)
{
	while (sent < taken) {
		long n = put(fd, ring + sent % RING, piece(sent, taken - sent));
		if (n == 0)
			return;
		sent += n;
	}
}

static void compare(long size)
{
	if (size > sent - returned)
		wrong("more came back than was sent");
	for (long done = 0; done < size;) {
		long n = piece(returned, size - done);
		if (memcmp(ring + returned % RING, received + done, n) != 0)
			wrong("a byte differs");
		done += n;
		returned += n;
	}
}

static void hand_on(long size)
{
	for (long done = 0; done < size;) {
		ssize_t n = write(STDOUT_FILENO, received + done, size - done);
		if (n < 0)
			die("standard output");
		done += n;
	}
}

static void file(void)
{
	int fd = connected();
	int more = 1, armed = EPOLLOUT;
	while (more || returned < taken) {
		if (more && taken - returned < RING)
			more = fill(); // once: more may have come back meanwhile
		send_ring(fd);
		int interest = sent < taken ? EPOLLIN | EPOLLOUT : EPOLLIN;
		if (interest != armed)
			watch(EPOLL_CTL_MOD, fd, 0, interest);
		armed = interest;
		if (returned == taken)
			continue;
		wait_for_events(-1);
		long n = get(fd);
		compare(n);
		hand_on(n);
	}
	if (armed != EPOLLIN)
		watch(EPOLL_CTL_MOD, fd, 0, EPOLLIN);
	finish(fd);
}

// ---- Rounds ----

static void ping(long rounds)
{
	int fd = connected();
	watch(EPOLL_CTL_MOD, fd, 0, EPOLLIN);
	for (long i = 0; i < rounds; i++) {
		const char *message = pattern + i % PERIOD;
		if (put(fd, message, MESSAGE) != MESSAGE)
			wrong("the kernel refuses a message");
		for (long back = 0; back < MESSAGE;) {
			wait_for_events(-1);
			long n = get(fd);
			if (n > MESSAGE - back || memcmp(received, message + back, n) != 0)
				wrong("a byte differs");
			back += n;
		}
	}
	finish(fd);
}

// ---- Connections ----

enum state { CONNECTING, WAITING, ENDING };

static int correct;
static enum state *states;
static long unfinished;

static void over(int fd)
{
	close(fd);
	unfinished--;
}

static void serve(int fd, uint32_t number)
{
	switch (states[number]) {
	case CONNECTING:
		check_connected(fd);
		if (correct)
			check_names(fd);
		if (put(fd, pattern, MESSAGE) != MESSAGE)
			wrong("the kernel refuses a message");
		watch(EPOLL_CTL_MOD, fd, number, EPOLLIN);
		states[number] = WAITING;
		break;
	case WAITING:
		if (get(fd) != MESSAGE || memcmp(received, pattern, MESSAGE) != 0)
			wrong("a message came back otherwise");
		if (!correct) {
			over(fd);
			break;
		}
		if (shutdown(fd, SHUT_WR) != 0)
			die("shutdown");
		states[number] = ENDING;
		break;
	case ENDING:
		if (recv(fd, received, CHUNK, 0) != 0)
			wrong("no EOF in the end");
		over(fd);
		break;
	}
}

static void turn(int ms)
{
	int n = wait_for_events(ms);
	for (int i = 0; i < n; i++)
		serve((int)(uint32_t)events[i].data.u64, events[i].data.u64 >> 32);
}

static void connections(long total)
{
	states = calloc(total, sizeof *states);
	if (states == NULL)
		die("calloc");
	unfinished = total;
	for (long i = 0; i < total; i++) {
		dial(correct ? open_correct() : open_bare(), i);
		if (i % BATCH == BATCH - 1)
			turn(0);
	}
	while (unfinished > 0)
		turn(-1);
}

// ---- The command line ----

static void raise_limit(void)
{
	struct rlimit limit;
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

int main(int argc, char **argv)
{
	if (argc < 3)
		wrong("usage: client PORT bulk|file|ping|bare|correct [N]");
	const char *job = argv[2];
	long n = argc > 3 ? atol(argv[3]) : 0;
	server.sin_family = AF_INET;
	server.sin_port = htons(atoi(argv[1]));
	server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	for (int i = 0; i < CHUNK + PERIOD; i++)
		pattern[i] = i % PERIOD;
	raise_limit();
	epoll = epoll_create1(EPOLL_CLOEXEC);
	if (epoll < 0)
		die("epoll_create1");
	double start = now();
	correct = strcmp(job, "correct") == 0;
	if (correct || strcmp(job, "bare") == 0)
		connections(n);
	else if (strcmp(job, "bulk") == 0)
		bulk(n);
	else if (strcmp(job, "file") == 0)
		file();
	else if (strcmp(job, "ping") == 0)
		ping(n);
	else
		wrong("no such job");
	fprintf(stderr, "%.6f\n", now() - start);
	return 0;
}
