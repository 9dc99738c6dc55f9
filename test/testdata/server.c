// An echo server in C for the benchmarks: what echomux -serve does, with as few system calls as
// that allows. One thread, epoll, level-triggered.
//
// usage: server
//
// It listens on a free port of 127.0.0.1, prints that as echomux -serve does, and serves until a
// signal ends it. A client that does not read is not read from, and holds a copy of what the kernel
// has refused; all others hold nothing.
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

enum {
	CHUNK = 256 << 10, // bytes of one read, at most
	BATCH = 256,       // events of one epoll_wait, at most
};

struct client {
	int fd;
	uint32_t watched;      // epoll events
	unsigned char *refused; // what the kernel has not taken yet; NULL if it has taken all
	size_t length;
};

static int epoll;
static unsigned char buffer[CHUNK];

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void watch(struct client *c, uint32_t events)
{
	int op = c->watched == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
	struct epoll_event ev = {.events = events, .data.ptr = c};
	if (events == c->watched)
		return;
	if (epoll_ctl(epoll, op, c->fd, &ev) != 0)
		die("epoll_ctl");
	c->watched = events;
}

static void end(struct client *c)
{
	close(c->fd);
	free(c->refused);
	free(c);
}

// keep keeps the bytes that the kernel has refused.
static void keep(struct client *c, const unsigned char *bytes, size_t length)
{
	unsigned char *copy = NULL;
	if (length > 0) {
		copy = malloc(length);
		if (copy == NULL)
			die("malloc");
		memcpy(copy, bytes, length);
	}
	free(c->refused);
	c->refused = copy;
	c->length = length;
}

// echo writes back what was refused before, or else what it reads now.
static void echo(struct client *c)
{
	unsigned char *bytes = c->refused;
	size_t length = c->length;
	if (bytes == NULL) {
		ssize_t n = recv(c->fd, buffer, CHUNK, 0);
		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0) {
			end(c);
			return;
		}
		bytes = buffer;
		length = n;
	}
	ssize_t n = send(c->fd, bytes, length, MSG_NOSIGNAL);
	if (n < 0 && errno != EAGAIN) {
		end(c);
		return;
	}
	size_t taken = n < 0 ? 0 : n;
	if (taken < length || c->refused != NULL)
		keep(c, bytes + taken, length - taken);
	watch(c, c->refused == NULL ? EPOLLIN : EPOLLOUT);
}

static void take(int listener)
{
	struct sockaddr_in peer;
	socklen_t length = sizeof peer;
	int flags = SOCK_NONBLOCK | SOCK_CLOEXEC;
	int fd = accept4(listener, (struct sockaddr *)&peer, &length, flags);
	if (fd < 0)
		return; // somebody was there, and has left
	struct client *c = calloc(1, sizeof *c);
	if (c == NULL)
		die("calloc");
	c->fd = fd;
	watch(c, EPOLLIN);
}

// start_listening returns a listener. What it accepts inherits its options.
static int start_listening(void)
{
	int on = 1;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		die("socket");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &on, sizeof on);
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof at;
	if (bind(fd, (struct sockaddr *)&at, sizeof at) != 0)
		die("bind");
	if (listen(fd, 65535) != 0)
		die("listen");
	getsockname(fd, (struct sockaddr *)&at, &length);
	printf("msg=listening at=127.0.0.1:%d\n", ntohs(at.sin_port));
	fflush(stdout);
	return fd;
}

int main(void)
{
	struct rlimit limit;
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	epoll = epoll_create1(EPOLL_CLOEXEC);
	if (epoll < 0)
		die("epoll_create1");
	struct client listener = {.fd = start_listening()};
	watch(&listener, EPOLLIN);
	for (;;) {
		struct epoll_event events[BATCH];
		int n = epoll_wait(epoll, events, BATCH, -1);
		for (int i = 0; i < n; i++) {
			struct client *c = events[i].data.ptr;
			if (c == &listener)
				take(c->fd);
			else
				echo(c);
		}
	}
}
