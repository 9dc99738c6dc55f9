// A client in C for the benchmarks: what echomux does, with as few system calls as that allows.
//
// usage: client PORT careful|bare CONNECTIONS ROUNDS SIZE
//
// All connections are to 127.0.0.1, and at once. On each, ROUNDS times, SIZE bytes go to an echo
// server, and every byte that comes back is compared. careful keeps the rules that echomux keeps.
// bare leaves out what an exchange can do without as long as nothing goes wrong: O_NONBLOCK by a
// call of its own, urgent data in line, the names of both ends, the half-close and the wait for the
// peer's. Neither looks at the time. What goes wrong ends the process.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
	PERIOD = (1 << 20) - 3, // the stream repeats after so many bytes, a prime
	CHUNK = 256 << 10,      // bytes of one read or write, at most
	BATCH = 256,            // events of one epoll_wait, at most
	SOME = 16,              // connections that begin in one turn
};

enum state { CONNECTING, EXCHANGING, DRAINING };

struct connection {
	int fd;
	enum state state;
	uint32_t watched; // epoll events
	long round;       // from 1; 0 before the first one
	long goal;        // the offset in the stream at which the round ends
	long sent, returned;
};

static struct sockaddr_in server;
static int epoll;
static int careful;
static long rounds, size;
static long open_connections;

// A chunk from any offset of the first period is contiguous.
static unsigned char stream[PERIOD + CHUNK];
static unsigned char buffer[CHUNK];

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void wrong(const char *what)
{
	fprintf(stderr, "%s\n", what);
	exit(1);
}

static long least(long a, long b)
{
	return a < b ? a : b;
}

static void watch(struct connection *c, uint32_t events)
{
	int op = c->watched == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
	struct epoll_event ev = {.events = events, .data.ptr = c};
	if (events == c->watched)
		return;
	if (epoll_ctl(epoll, op, c->fd, &ev) != 0)
		die("epoll_ctl");
	c->watched = events;
}

static void begin(struct connection *c)
{
	int on = 1;
	int flags = careful ? 0 : SOCK_NONBLOCK;
	c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
	if (c->fd < 0)
		die("socket");
	setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	if (careful) {
		setsockopt(c->fd, SOL_SOCKET, SO_OOBINLINE, &on, sizeof on);
		if (fcntl(c->fd, F_SETFL, O_NONBLOCK) != 0)
			die("fcntl");
	}
	if (connect(c->fd, (struct sockaddr *)&server, sizeof server) != 0 && errno != EINPROGRESS)
		die("connect");
	c->state = CONNECTING;
	watch(c, EPOLLOUT);
}

static void finish(struct connection *c)
{
	close(c->fd);
	open_connections--;
}

// put writes once, if anything is left to send.
static void put(struct connection *c)
{
	long left = least(c->goal - c->sent, CHUNK);
	if (left == 0)
		return;
	ssize_t n = send(c->fd, stream + c->sent % PERIOD, left, MSG_NOSIGNAL);
	if (n < 0 && errno != EAGAIN)
		die("send");
	if (n > 0)
		c->sent += n;
}

static void begin_round(struct connection *c)
{
	c->round++;
	c->goal += size;
	put(c);
}

static void connected(struct connection *c)
{
	int error;
	socklen_t length = sizeof error;
	if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &length) != 0)
		die("getsockopt");
	if (error != 0) {
		errno = error;
		die("connect");
	}
	if (careful) {
		struct sockaddr_in local, peer;
		socklen_t length = sizeof peer;
		if (getpeername(c->fd, (struct sockaddr *)&peer, &length) != 0)
			die("getpeername");
		if (getsockname(c->fd, (struct sockaddr *)&local, &length) != 0)
			die("getsockname");
		if (memcmp(&local, &peer, sizeof local) == 0)
			wrong("connected to itself");
	}
	c->state = EXCHANGING;
	begin_round(c);
}

// get reads once, and compares.
static void get(struct connection *c)
{
	ssize_t n = recv(c->fd, buffer, CHUNK, 0);
	if (n < 0 && errno == EAGAIN)
		return;
	if (n < 0)
		die("recv");
	if (n == 0)
		wrong("closed early");
	if (n > c->sent - c->returned)
		wrong("more came back than was sent");
	if (memcmp(buffer, stream + c->returned % PERIOD, n) != 0)
		wrong("a byte differs");
	c->returned += n;
}

static void drain(struct connection *c)
{
	ssize_t n = recv(c->fd, buffer, CHUNK, 0);
	if (n < 0 && errno == EAGAIN)
		return;
	if (n > 0)
		wrong("more came back than was sent");
	finish(c);
}

static void exchange(struct connection *c, uint32_t events)
{
	if (events & ~EPOLLOUT) // readable, or an error, which recv tells
		get(c);
	if (c->returned < c->goal) {
		put(c);
	} else if (c->round < rounds) {
		begin_round(c);
	} else if (careful) {
		shutdown(c->fd, SHUT_WR);
		c->state = DRAINING;
	} else {
		finish(c);
	}
}

static void step(struct connection *c, uint32_t events)
{
	switch (c->state) {
	case CONNECTING:
		connected(c);
		break;
	case EXCHANGING:
		exchange(c, events);
		break;
	case DRAINING:
		drain(c);
		return;
	}
	if (c->state == EXCHANGING)
		watch(c, c->sent < c->goal ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

// fill makes the bytes that flow, as many as are wanted.
static void fill(void)
{
	uint32_t random = 2463534242;
	long wanted = least(size * rounds, PERIOD);
	for (long i = 0; i < wanted; i++) {
		random ^= random << 13;
		random ^= random >> 17;
		random ^= random << 5;
		stream[i] = random;
	}
	if (wanted == PERIOD)
		memcpy(stream + PERIOD, stream, CHUNK);
}

// raise_limit allows as many descriptors as this process may have.
static void raise_limit(void)
{
	struct rlimit limit;
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

int main(int argc, char **argv)
{
	struct epoll_event events[BATCH];
	if (argc != 6)
		wrong("usage: client PORT careful|bare CONNECTIONS ROUNDS SIZE");
	server.sin_family = AF_INET;
	server.sin_port = htons(atoi(argv[1]));
	server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	careful = strcmp(argv[2], "careful") == 0;
	open_connections = atol(argv[3]);
	rounds = atol(argv[4]);
	size = atol(argv[5]);
	alarm(100); // if something hangs
	raise_limit();
	fill();
	epoll = epoll_create1(EPOLL_CLOEXEC);
	if (epoll < 0)
		die("epoll_create1");
	struct connection *next = calloc(open_connections, sizeof *next);
	struct connection *end = next + open_connections;
	while (open_connections > 0) {
		for (int i = 0; i < SOME && next < end; i++)
			begin(next++);
		int n = epoll_wait(epoll, events, BATCH, next < end ? 0 : -1);
		for (int i = 0; i < n; i++)
			step(events[i].data.ptr, events[i].events);
	}
	printf("ok\n");
	return 0;
}
