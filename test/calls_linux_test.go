package test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// The program's system calls, as strace(1) sees them: what they are in one exchange, and what comes
// of it when one of them fails.

// call is a system call.
type call struct {
	name     string
	fd       string // the first argument
	text     string // all of it
	inThread int    // the number of this call among those of that name in its thread, from 1
	result   string
	isFaulty bool // strace has had it fail
	isOwn    bool // it is with a descriptor of the program, and not of the Go runtime
}

var straceLine = regexp.MustCompile(`^[0-9.]+ ((\w+)\(([^,)]*).*\) += (-?\d+).*)$`)

const traced = "epoll_create1,eventfd2,epoll_ctl,epoll_pwait,socket,setsockopt,fcntl,connect," +
	"getsockopt,getpeername,getsockname,read,write,accept4,bind,listen,shutdown,close"

// trace runs the program under strace, and returns the calls in their order.
func trace(t testing.TB, fault string, args ...string) (result, []call) {
	t.Helper()
	folder, err := os.MkdirTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	// A file for each thread, so that no call is in two pieces; with times, to put them in order.
	launcher := []string{"timeout", "--foreground", "-s", "KILL", "8",
		"strace", "-ff", "-ttt", "-qq", "--seccomp-bpf", "-e", "signal=none",
		"-o", folder + "/thread", "-e", "trace=" + traced}
	if fault != "" {
		launcher = append(launcher, "-e", "inject="+fault)
	}
	p := command(t, launcher, args...)
	p.hasLines = false // it can be killed in the middle of one
	// No signals of the Go runtime to its own threads, which end some calls.
	p.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1")
	r := p.start(t).end(t)
	files, _ := filepath.Glob(folder + "/thread.*")
	var lines []string
	calls := map[string]call{} // by their lines
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		counts := map[string]int{}
		for line := range strings.Lines(string(text)) {
			m := straceLine.FindStringSubmatch(strings.TrimSpace(line))
			if m == nil {
				continue
			}
			counts[m[2]]++
			lines = append(lines, line)
			isFaulty := strings.Contains(line, "(INJECTED")
			calls[line] = call{m[2], m[3], m[1], counts[m[2]], m[4], isFaulty, false}
		}
	}
	slices.Sort(lines)
	return r, ordered(lines, calls)
}

// ordered puts the calls in the order of their lines, and marks the program's own.
func ordered(lines []string, calls map[string]call) (all []call) {
	isOwn := map[string]bool{} // descriptors
	made := map[string]int{}
	for _, line := range lines {
		c := calls[line]
		made[c.name]++
		opens := c.name == "socket" || c.name == "accept4"
		if c.name == "epoll_create1" || c.name == "eventfd2" {
			opens = made[c.name] == 2 // the first one is the Go runtime's
		}
		c.isOwn = opens || isOwn[c.fd]
		all = append(all, c)
		if opens {
			isOwn[c.result] = true
		}
		if c.name == "close" {
			delete(isOwn, c.fd)
		}
	}
	return all
}

// needStrace skips where strace does not see the program's own calls.
func needStrace(t testing.TB) {
	t.Helper()
	needProcess(t)
	p := tool(t, needTool(t, "strace"), "-f", "-qq", "-o", os.DevNull, "true").start(t)
	r := p.end(t)
	if r.status != 0 {
		t.Skipf("strace may not trace here: %s", r.stderr)
	}
}

// faultyCall is a call that fails, and what has to come of that.
type faultyCall struct {
	name   string
	number int    // of the program's calls of that name, this one or one after it; 0: all
	errno  string // or what else strace injects
	args   string // of the program; PORT is that of an echo server
	status int
	cause  string // the error in some line; with status 0, that of a pause
}

const (
	argsOnce   = "-io-timeout 1s 127.0.0.1 PORT hello"
	argsOften  = "-io-timeout 1s -count 12 127.0.0.1 PORT hello"
	argsMany   = "-n 20 127.0.0.1 PORT hello"
	argsServer = "-serve 127.0.0.1 0"
	argsBoth   = "-q"
)

var faultyCalls = []faultyCall{
	{"epoll_create1", 1, "EPERM", argsOnce, 6, "*epoll_create1: operation not permitted"},
	{"epoll_create1", 1, "EMFILE", argsOnce, 6, "*epoll_create1: too many open files"},
	{"eventfd2", 1, "ENFILE", argsOnce, 6, "*eventfd*: too many open files in system"},
	{"epoll_ctl", 8, "ENOSPC", argsMany, 6, "*epoll_ctl: no space left on device"},
	{"epoll_ctl", 4, "ENOMEM", argsBoth, 6, "*epoll_ctl: cannot allocate memory"},
	{"epoll_pwait", 8, "EBADF", argsOften, 6, "*epoll_wait: bad file descriptor"},
	{"epoll_pwait", 4, "EBADF", argsBoth, 6, "*epoll_wait: bad file descriptor"},
	{"epoll_pwait", 8, "EINTR", argsOften, 0, ""},

	{"socket", 1, "EACCES", argsOnce, 3, "127.0.0.1: socket: permission denied"},
	{"socket", 1, "EAFNOSUPPORT", argsOnce, 3, "127.0.0.1: address family not supported*"},
	{"socket", 1, "EMFILE", argsOnce, 6, "127.0.0.1: socket: too many open files"},
	{"socket", 1, "ENFILE", argsOnce, 6, "127.0.0.1: socket: too many open files in system"},
	{"socket", 1, "ENOBUFS", argsOnce, 6, "127.0.0.1: socket: no buffer space available"},
	{"socket", 1, "ENOMEM", argsMany, 6, "127.0.0.1: socket: cannot allocate memory"},
	{"socket", 1, "EACCES", argsServer, 6, "*socket: permission denied"},
	{"socket", 2, "EACCES", argsBoth, 3, "127.0.0.1: socket: permission denied"},
	{"setsockopt", 0, "EPERM", argsOnce, 0, ""},
	{"setsockopt", 0, "EPERM", argsBoth, 0, ""},
	{"fcntl", 9, "EINVAL", argsMany, 3, "127.0.0.1: fcntl: invalid argument"},

	{"connect", 1, "ENETUNREACH", argsOnce, 3, "127.0.0.1: *unreachable*"},
	{"connect", 1, "ECONNREFUSED", argsOnce, 3, "127.0.0.1: connection refused"},
	{"connect", 1, "ETIMEDOUT", argsOnce, 4, "127.0.0.1: timed out"},
	{"connect", 1, "EADDRNOTAVAIL", argsOnce, 3, "127.0.0.1: " + noLocal},
	{"connect", 1, "EAGAIN", argsOnce, 3, "127.0.0.1: " + noLocal},
	{"connect", 1, "EACCES", argsOnce, 3, "127.0.0.1: connect: permission denied"},
	{"connect", 1, "ENOBUFS", argsOnce, 6, "127.0.0.1: connect: no buffer space available"},
	{"getsockopt", 1, "EBADF", argsOnce, 3, "127.0.0.1: getsockopt: bad file descriptor"},
	{"getsockopt", 1, soError + "65", argsOnce, 3, "127.0.0.1: *unreachable*"},
	{"getsockopt", 1, soError + "67", argsOnce, 3, "127.0.0.1: *software caused connection abort"},
	{"getsockopt", 1, soError + "6e", argsOnce, 4, "127.0.0.1: timed out"},
	{"getsockopt", 1, soError + "6f", argsOnce, 3, "127.0.0.1: connection refused"},
	{"getsockopt", 1, soError + "68", argsOnce, 7, "connection reset by peer (0 of 6 bytes)"},
	{"getpeername", 1, "EBADF", argsOnce, 3, "127.0.0.1: getpeername: bad file descriptor"},
	{"getpeername", 1, "ENOTCONN", argsOnce, 0, ""}, // not yet
	{"getsockname", 1, "EBADF", argsOnce, 3, "127.0.0.1: getsockname: bad file descriptor"},

	{"read", 6, "EIO", argsOften, 7, "*read: input/output error*"},
	{"read", 6, "ENOBUFS", argsOften, 6, "*read: no buffer space available*"},
	{"read", 6, "ENOMEM", argsOften, 6, "*read: cannot allocate memory*"},
	{"read", 6, "ETIMEDOUT", argsOften, 5, "timed out (0 of 6 bytes)"},
	{"read", 6, "EHOSTUNREACH", argsOften, 5, "*unreachable (0 of 6 bytes)"},
	{"read", 6, "ECONNRESET", argsOften, 7, "connection reset by peer (0 of 6 bytes)"},
	{"read", 6, "EINTR", argsOften, 0, ""},
	{"read", 6, "EAGAIN", argsOften, 0, ""},
	{"write", 6, "EIO", argsOften, 7, "*write: input/output error*"},
	{"write", 6, "ENOBUFS", argsOften, 6, "*write: no buffer space available*"},
	{"write", 6, "ENOMEM", argsOften, 6, "*write: cannot allocate memory*"},
	{"write", 6, "ENETUNREACH", argsOften, 5, "*unreachable (0 of 6 bytes)"},
	{"write", 6, "EPIPE", argsOften, 7, "connection reset by peer (0 of 6 bytes)"},
	{"write", 6, "EINTR", argsOften, 0, ""},
	{"write", 6, "EAGAIN", argsOften, 0, ""},
	{"shutdown", 1, "ENOTCONN", argsOnce, 0, ""},
	{"close", 0, "EIO", argsOnce, 0, ""},

	{"bind", 1, "EACCES", argsServer, 6, "*bind: permission denied"},
	{"bind", 1, "EADDRINUSE", argsServer, 6, "*bind: address already in use"},
	{"listen", 1, "EADDRINUSE", argsServer, 6, "*listen: address already in use"},
	{"getsockname", 1, "ENOBUFS", argsServer, 6, "*getsockname: no buffer space available"},
	{"accept4", 1, "EMFILE", argsBoth, 0, "accept*: too many open files"},
	{"accept4", 1, "EPERM", argsBoth, 0, "accept*: operation not permitted"},
	{"accept4", 1, "ECONNABORTED", argsBoth, 0, ""},
	{"accept4", 1, "EHOSTUNREACH", argsBoth, 0, ""},
	{"accept4", 1, "EPROTO", argsBoth, 0, ""},
	{"accept4", 1, "EINTR", argsBoth, 0, ""},
	{"accept4", 1, "EAGAIN", argsBoth, 0, ""},
}

// soError puts a number where the kernel has put SO_ERROR.
const soError = "poke_exit=@arg4="

// TestCallsFail: a call that fails is named in the words, decides the status, and leaves no socket.
func TestCallsFail(t *testing.T) {
	t.Parallel()
	needStrace(t)
	port := listen(t, "127.0.0.1:0", echoes)
	for _, f := range faultyCalls {
		t.Run(f.name+" "+f.errno+" "+f.args, func(t *testing.T) {
			t.Parallel()
			args := strings.Fields(strings.Replace(f.args, "PORT", port, 1))
			r, calls := f.trace(t, args)
			f.check(t, r)
			checkClosed(t, calls)
		})
	}
}

// trace has that call fail. strace counts the calls of each thread, those of the Go runtime among
// them, and which thread makes a call is chance. So each run tells which one it would have been,
// and it is tried again until it was.
func (f faultyCall) trace(t *testing.T, args []string) (result, []call) {
	t.Helper()
	fault := f.errno
	if !strings.HasPrefix(fault, soError) {
		fault = "error=" + fault
	}
	when := "1+"
	inThread := f.number
	for range 30 {
		if f.number > 0 {
			when = fmt.Sprint(inThread)
		}
		r, calls := trace(t, f.name+":"+fault+":when="+when, args...)
		var number, hits, inTime int
		inThread++ // if the run has ended before
		for _, c := range calls {
			if c.isFaulty {
				hits++
			}
			if c.name != f.name || !c.isOwn {
				continue
			}
			number++
			if number == f.number {
				inThread = c.inThread
			}
			if c.isFaulty && number >= f.number {
				inTime++
			}
		}
		isMeant := hits == 1 && inTime == 1 || hits > 0 && f.number == 0
		if isMeant && !strings.Contains(r.stderr, "fatal error: ") { // of the Go runtime
			r.lines = parseLines(t, r.stdout, false)
			return r, calls
		}
	}
	t.Fatal("strace does not hit the call")
	return result{}, nil
}

// check: some line says why, or standard error if the program could not begin.
func (f faultyCall) check(t *testing.T, r result) {
	t.Helper()
	causes := []string{strings.TrimSpace(r.stderr)}
	lines := append(r.of("cause"), r.of("failed")...)
	if f.status == 0 {
		lines = r.of("paused")
	}
	for _, l := range lines {
		causes = append(causes, l.values["error"])
	}
	isSaid := slices.ContainsFunc(causes, func(said string) bool { return like(said, f.cause) })
	if f.cause == "" {
		isSaid = len(lines) == 0
	}
	if r.status != f.status || !isSaid {
		t.Errorf("exit status %d, want %d and %q: %s%s",
			r.status, f.status, f.cause, r.stdout, r.stderr)
	}
}

// checkClosed: each socket is closed in the end.
func checkClosed(t *testing.T, calls []call) {
	t.Helper()
	open := map[string]bool{}
	for _, c := range calls {
		switch {
		case c.name == "close":
			delete(open, c.fd)
		case c.result != "-1" && (c.name == "socket" || c.name == "accept4"):
			open[c.result] = true
		}
	}
	if len(open) > 0 {
		t.Errorf("sockets were left open: %v", open)
	}
}

// exchangeCalls are the calls on the socket of one exchange, where * is any text, and S the socket.
var exchangeCalls = []string{
	"socket(AF_INET, SOCK_STREAM|SOCK_CLOEXEC, IPPROTO_TCP) = S",
	"setsockopt(S, SOL_TCP, TCP_NODELAY, [1], 4) = 0",
	"setsockopt(S, SOL_SOCKET, SO_OOBINLINE, [1], 4) = 0",
	"fcntl(S, F_SETFL, O_RDONLY|O_NONBLOCK) = 0",
	"connect(S, *) = -1 EINPROGRESS *",
	"epoll_ctl(*, EPOLL_CTL_ADD, S, {events=EPOLLOUT, *}) = 0", // after connect, or it hangs up
	"epoll_pwait(*, [{events=EPOLLOUT, *}], *) = 1",
	"getsockopt(S, SOL_SOCKET, SO_ERROR, [0], [4]) = 0",
	"getpeername(S, *) = 0",
	"getsockname(S, *) = 0",
	"epoll_ctl(*, EPOLL_CTL_MOD, S, {events=EPOLLIN, *}) = 0",
	"read(S, *) = -1 EAGAIN *", // a step tries once whatever it is interested in
	`write(S, "hello\n", 6) = 6`,
	"epoll_pwait(*, [{events=EPOLLIN, *}], *) = 1",
	`read(S, "hello\n", *) = 6`,
	"shutdown(S, SHUT_WR) = 0",
	"epoll_pwait(*, [{events=EPOLLIN*}], *) = 1",
	`read(S, "", *) = 0`,
	"close(S) = 0",
}

var theSocket = regexp.MustCompile(`\bS\b`)

// TestCallsOfExchange: the calls of one exchange, and their order.
func TestCallsOfExchange(t *testing.T) {
	t.Parallel()
	needStrace(t)
	port := listen(t, "127.0.0.1:0", echoes)
	r, calls := trace(t, "", "127.0.0.1", port, "hello")
	if r.status != 0 {
		t.Fatalf("exit status %d: %s", r.status, r.stdout)
	}
	var sock string
	var texts []string
	for _, c := range calls {
		if c.name == "socket" {
			sock = c.result
		}
		isEvent := strings.HasPrefix(c.name, "epoll_") && strings.Contains(c.text, "u32="+sock+",")
		if c.name == "socket" || c.fd == sock || isEvent {
			texts = append(texts, strings.Join(strings.Fields(c.text), " "))
		}
	}
	isLike := func(text, pattern string) bool {
		return like(text, theSocket.ReplaceAllString(pattern, sock))
	}
	if !slices.EqualFunc(texts, exchangeCalls, isLike) {
		t.Errorf("want these calls:\n%s\nand not these:\n%s",
			strings.Join(exchangeCalls, "\n"), strings.Join(texts, "\n"))
	}
}

// TestCallsWithoutIPv6: where the kernel has no IPv6, a server without an address listens for IPv4.
func TestCallsWithoutIPv6(t *testing.T) {
	t.Parallel()
	needStrace(t)
	needSignals(t)
	// With -D the child is the program, and strace is beside it. It has the first call of each
	// thread fail; now and then the program's second one is the first of another thread.
	launcher := []string{"strace", "-D", "-f", "-qq", "-o", os.DevNull, "-e", "trace=socket",
		"-e", "inject=socket:error=EAFNOSUPPORT:when=1"}
	var p *process
	for range 10 {
		p = command(t, launcher, "-serve", "0").start(t)
		p.await(t, p.stdout, "\n", 1)
		if strings.Contains(p.stdout.String(), "msg=listening") {
			break
		}
	}
	port := p.listening(t)
	run(t, "127.0.0.1", port, "hello").want(t, 0, "ok", "")
	p.signal(t, syscall.SIGTERM)
	p.end(t).want(t, 0, "ended", "").wantValues(t, "at=0.0.0.0:"+port+" clients=1")
}
