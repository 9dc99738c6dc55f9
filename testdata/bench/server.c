// The echo server that clients are measured against, and that -serve is measured by: one thread,
// epoll, level-triggered, no more system calls than the job needs.
//
// usage: server
//
// It listens on a free port of 127.0.0.1, prints that port and serves until it is killed.
//
// A connection that owes nothing has no buffer. What is read goes straight back; only if the
// kernel takes less than that does the connection keep the buffer, with the rest in it, until the
// kernel has taken it all. So no byte is copied, and idle connections cost next to nothing.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CHUNK = 256 * 1024, BATCH = 256, BACKLOG = 65535 };

// A buffer is free, and then in a list, or holds what one connection owes: bytes start to end.
struct buffer {
	struct buffer *next;
	size_t start, end;
	char bytes[CHUNK];
};

struct connection {
	int fd;
	struct buffer *owed; // NULL: nothing is owed, and we wait for bytes to read
};

static int epoll;
static struct buffer *unused;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static struct buffer *take(void)
{
	struct buffer *b = unused;
	if (b != NULL) {
		unused = b->next;
		return b;
	}
	b = malloc(sizeof *b);
	if (b == NULL)
		die("malloc");
	return b;
}

static void give_back(struct buffer *b)
{
	b->next = unused;
	unused = b;
}

static void watch(int op, int fd, uint32_t events, void *about)
{
	struct epoll_event ev = {.events = events, .data.ptr = about};
	if (epoll_ctl(epoll, op, fd, &ev) != 0)
		die("epoll_ctl");
}

static void end(struct connection *c)
{
	if (c->owed != NULL)
		give_back(c->owed);
	close(c->fd); // and with that it leaves the epoll instance
	free(c);
}

// put writes what is in b and says whether the connection lives. Afterwards start == end if the
// kernel took it all.
static int put(struct connection *c, struct buffer *b)
{
	ssize_t n = send(c->fd, b->bytes + b->start, b->end - b->start, MSG_NOSIGNAL);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR;
	b->start += n;
	return 1;
}

static void readable(struct connection *c)
{
	struct buffer *b = take();
	ssize_t n = recv(c->fd, b->bytes, CHUNK, 0);
	if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
		give_back(b);
		return;
	}
	b->start = 0;
	b->end = n > 0 ? n : 0;
	if (n <= 0 || !put(c, b)) {
		give_back(b);
		end(c);
		return;
	}
	if (b->start == b->end) {
		give_back(b);
		return;
	}
	c->owed = b;
	watch(EPOLL_CTL_MOD, c->fd, EPOLLOUT, c);
}

static void writable(struct connection *c)
{
	if (!put(c, c->owed)) {
		end(c);
		return;
	}
	if (c->owed->start < c->owed->end)
		return;
	give_back(c->owed);
	c->owed = NULL;
	watch(EPOLL_CTL_MOD, c->fd, EPOLLIN, c);
}

static void accept_all(int listener)
{
	for (int i = 0; i < BATCH; i++) {
		int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd < 0)
			return; // nobody waits, or somebody did and has left
		int on = 1;
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
		struct connection *c = calloc(1, sizeof *c);
		if (c == NULL)
			die("calloc");
		c->fd = fd;
		watch(EPOLL_CTL_ADD, fd, EPOLLIN, c);
	}
}

// open_listener listens on a port that the kernel chooses, and prints it.
static int open_listener(void)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		die("socket");
	struct sockaddr_in at = {
		.sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	socklen_t size = sizeof at;
	if (bind(fd, (struct sockaddr *)&at, size) != 0 || listen(fd, BACKLOG) != 0)
		die("listen");
	if (getsockname(fd, (struct sockaddr *)&at, &size) != 0)
		die("getsockname");
	printf("127.0.0.1:%d\n", ntohs(at.sin_port));
	fflush(stdout);
	return fd;
}

// raise_limit allows as many descriptors as this process may have.
static void raise_limit(void)
{
	struct rlimit limit;
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

int main(void)
{
	raise_limit();
	epoll = epoll_create1(EPOLL_CLOEXEC);
	if (epoll < 0)
		die("epoll_create1");
	int listener = open_listener();
	watch(EPOLL_CTL_ADD, listener, EPOLLIN, NULL);
	for (;;) {
		struct epoll_event events[BATCH];
		int n = epoll_wait(epoll, events, BATCH, -1);
		for (int i = 0; i < n; i++) {
			struct connection *c = events[i].data.ptr;
			if (c == NULL)
				accept_all(listener);
			else if (c->owed != NULL)
				writable(c);
			else
				readable(c);
		}
	}
}
