//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What only a kernel in trouble shows: calls that hardly ever fail. strace has them fail.

// failingCall is a run in which a system call fails, and what has to come of it.
type failingCall struct {
	call   string
	fault  string // in strace's words
	which  string // of echomux's own calls of that name: the second; 2+: and all after it
	args   string // of echomux; PORT is a port of an echo server
	status int
	cause  string // "": it is no failure
}

const (
	echoOnce  = "127.0.0.1 PORT hello"
	echoIPv6  = "::1 PORT hello"
	echoFrom  = "-source 127.0.0.1 127.0.0.1 PORT hello"
	eofOnce   = "-until eof 127.0.0.1 PORT hello"
	bothEnds  = "-q"
	twoOfThem = "-n 2 127.0.0.1 PORT hello" // for which the Go runtime makes a poller of its own
	listens   = "-serve 127.0.0.1:0"
)

// soError puts the first byte of an error number where the kernel has put SO_ERROR.
const soError = "poke_exit=@arg4="

// failingCalls: what a call is for decides what its failure means.
var failingCalls = []failingCall{
	{"epoll_create1", "error=EPERM", "1", echoOnce, 6, "epoll_create1: operation not permitted"},
	{"epoll_create1", "error=EMFILE", "1", echoOnce, 6, "too many open files (the limit is *)"},
	{"epoll_create1", "error=ENFILE", "1", echoOnce, 6, "too many open files in the system"},
	{"epoll_create1", "error=EPERM", "2", twoOfThem, 6, "epoll_create1: operation not permitted"},
	{"eventfd2", "error=EPERM", "1", echoOnce, 6, "eventfd: operation not permitted"},
	{"eventfd2", "error=EPERM", "2", twoOfThem, 6, "eventfd: operation not permitted"},
	{"epoll_ctl", "error=ENOSPC", "1", echoOnce, 6, "epoll_ctl: no space left on device"},
	{"epoll_ctl", "error=ENOSPC", "2", echoOnce, 6, "epoll_ctl: no space left on device"},
	{"epoll_ctl", "error=ENOMEM", "3", echoOnce, 6, "no buffer space available"},
	{"epoll_pwait", "error=EBADF", "1", echoOnce, 6, "epoll_wait: bad file descriptor"},
	{"epoll_pwait", "error=EINTR", "1", echoOnce, 0, ""},
	{"socket", "error=EACCES", "1", echoOnce, 3, "HOST: socket: permission denied"},
	{"socket", "error=EAFNOSUPPORT", "1", echoOnce, 3, "HOST: cannot assign requested address"},
	{"socket", "error=ENOBUFS", "1", echoOnce, 6, "no buffer space available"},
	{"socket", "error=EMFILE", "1", echoOnce, 6, "too many open files (the limit is *)"},
	{"socket", "error=ENFILE", "1", echoOnce, 6, "too many open files in the system"},
	{"setsockopt", "error=EPERM", "1+", echoFrom, 0, ""},
	{"bind", "error=EACCES", "1", echoFrom, 3, "HOST: bind: permission denied"},
	{"fcntl", "error=EINVAL", "1", echoOnce, 3, "HOST: fcntl: invalid argument"},
	{"connect", "error=ENETUNREACH", "1", echoOnce, 3, "HOST: network is unreachable"},
	{"connect", "error=EAGAIN", "1", echoOnce, 6, "no local port is free"},
	{"connect", "error=EADDRNOTAVAIL", "1", echoOnce, 6, "no local port is free"},
	{"connect", "error=EADDRNOTAVAIL", "1", echoIPv6, 3, "HOST: cannot assign requested address"},
	{"connect", "error=ECONNABORTED", "1", echoOnce, 3, "HOST: software caused connection abort"},
	{"connect", "error=ECONNREFUSED", "1", echoOnce, 3, "HOST: connection refused"},
	{"connect", "error=ETIMEDOUT", "1", echoOnce, 4, "HOST: timed out"},
	{"connect", "error=EINVAL", "1", echoOnce, 3, "HOST: invalid argument"},
	{"connect", "error=EINTR", "1", echoOnce, 4, "HOST: timed out"}, // it goes on, and never ends
	{"connect", "error=EALREADY", "1", echoOnce, 4, "HOST: timed out"},
	{"getsockopt", "error=EBADF", "1", echoOnce, 3, "HOST: getsockopt: bad file descriptor"},
	{"getsockopt", "error=EBADF", "2+", echoOnce, 0, ""},
	{"getsockopt", soError + "67", "1", echoOnce, 3, "HOST: software caused connection abort"},
	{"getsockopt", soError + "65", "1", echoOnce, 3, "HOST: network is unreachable"},
	{"getsockopt", soError + "6f", "1", echoOnce, 3, "HOST: connection refused"},
	{"getsockopt", soError + "68", "1", echoOnce, 1, "connect: connection reset by peer"},
	{"getpeername", "error=EBADF", "1", echoOnce, 3, "HOST: getpeername: bad file descriptor"},
	{"getpeername", "error=EINVAL", "1", echoOnce, 0, ""},
	{"getpeername", "error=ENOTCONN", "1", echoOnce, 0, ""},
	{"getsockname", "error=EBADF", "1", echoOnce, 3, "HOST: getsockname: bad file descriptor"},
	{"read", "error=EIO", "1", echoOnce, 1, "read: input/output error"},
	{"read", "error=EPROTOTYPE", "1", echoOnce, 1, "read: connection reset by peer"},
	{"read", "error=ETIMEDOUT", "1", echoOnce, 5, "read: timed out"},
	{"read", "error=EINTR", "1", echoOnce, 0, ""},
	{"write", "error=EIO", "1", echoOnce, 1, "write: input/output error"},
	{"write", "error=EINTR", "1", echoOnce, 0, ""},
	{"shutdown", "error=EBADF", "1", echoOnce, 0, ""},
	{"shutdown", "error=EBADF", "1", eofOnce, 1, "shutdown: bad file descriptor"},
	{"shutdown", "error=ENOTCONN", "1", eofOnce, 5, "timed out after 3s of silence (*)"},
	{"ioctl", "error=EINVAL", "1+", eofOnce, 0, ""},
	{"close", "error=EIO", "1+", echoOnce, 0, ""},
	{"socket", "error=EACCES", "1", listens, 6, "listen *: socket: permission denied"},
	{"setsockopt", "error=EPERM", "1+", bothEnds, 0, ""},
	{"bind", "error=EACCES", "1", listens, 6, "listen *: bind: permission denied"},
	{"bind", "error=EADDRNOTAVAIL", "1", listens, 6, "listen *: cannot assign requested address"},
	{"listen", "error=EACCES", "1", listens, 6, "listen *: listen: permission denied"},
	{"fcntl", "error=EINVAL", "1", listens, 6, "listen *: fcntl: invalid argument"},
	{"getsockname", "error=EBADF", "1", listens, 6, "listen *: getsockname: bad file descriptor"},
	{"accept4", "error=EPERM", "1", bothEnds, 6, "accept: operation not permitted"},
	{"accept4", "error=ECONNABORTED", "1", bothEnds, 0, ""},
}

// TestEveryCallFails: a failure is told by the name of the call and in the system's words, and
// every descriptor is closed in the end.
func TestEveryCallFails(t *testing.T) {
	t.Parallel()
	if os.Getenv("ECHOMUX_EXEC") != "" {
		t.Skip("the calls of an emulator are not echomux's")
	}
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip(err)
	}
	for _, f := range failingCalls {
		t.Run(strings.Join([]string{f.call, f.fault, f.which, f.args}, " "), func(t *testing.T) {
			t.Parallel()
			f.run(t, strace)
		})
	}
}

// Strace counts the calls of each thread for itself, so the loop stays on the first one.
func init() {
	const role = "locked"
	roles[role] = func() {}
	if os.Getenv("ECHOMUX_RUN") == role {
		runtime.LockOSThread()
	}
}

// overKqueue is f as the emulation of kqueue knows it, which itself rests on epoll.
func (f failingCall) overKqueue(t *testing.T) failingCall {
	words := strings.NewReplacer("epoll_create1:", "kqueue:", "eventfd:", "kqueue:",
		"epoll_wait:", "kevent:", "epoll_ctl:", "kevent:")
	f.cause = words.Replace(f.cause)
	switch {
	case f.call == "epoll_ctl" && f.which == "1":
		f.cause = strings.Replace(f.cause, "kevent:", "kqueue:", 1)
	case f.call == "fcntl" && f.args == echoOnce: // the first is the kqueue's, for FD_CLOEXEC
		f.which = "2"
	case f.call == "fcntl" && f.args == listens: // and so is the second
		f.which = "3"
	case f.call == "getsockname" && f.args == echoOnce: // the first is the emulated connect's
		f.which = "2"
	case f.call == "read", f.call == "connect" && f.fault == "error=EINVAL":
		t.Skip("the emulation makes this call too")
	}
	return f
}

func (f failingCall) run(t *testing.T, strace string) {
	if emulated() {
		f = f.overKqueue(t)
	}
	if f.call == "fcntl" && runtime.GOARCH == "386" {
		f.call = "fcntl64" // x/sys calls that there
	}
	before := 0
	if !opens[f.call] {
		// The Go runtime and the tests call it too, before echomux does.
		args := f.args
		if args == listens {
			args = bothEnds // which begins alike, and ends
		}
		_, log := traced(t, strace, f.call, "", args)
		before = callsBefore(log, f.call)
	}
	var which int
	fmt.Sscan(f.which, &which)
	when := fmt.Sprint(before + which)
	if strings.HasSuffix(f.which, "+") {
		when += "+"
	}
	r, log := traced(t, strace, f.call, f.fault+":when="+when, f.args)
	if !strings.Contains(log, "(INJECTED") {
		t.Fatalf("%s %s was never called", f.call, when)
	}
	cause := ""
	if len(r.lines) > 0 {
		cause = r.lines[0].cause
	}
	host := "127.0.0.1"
	if f.args == echoIPv6 {
		host = "::1"
	}
	want := strings.Replace(f.cause, "HOST", host, 1)
	if r.status != f.status || !like(cause, want) {
		t.Errorf("status %d, not %d, and not %q: %s", r.status, f.status, want, r.stderr)
	}
	if f.args != twoOfThem && f.args != listens { // the Go runtime's stay
		for _, call := range leftOpen(log) {
			t.Errorf("it leaves open what %s has returned", call)
		}
	}
}

// traced is a run under strace, and what that says of call, and of the calls that open and close.
func traced(t *testing.T, strace, call, fault, args string) (r result, log string) {
	t.Helper()
	address := "127.0.0.1:0"
	if args == echoIPv6 {
		address = "[::1]:0"
	}
	_, port := serve(t, address, echoes)
	file := filepath.Join(t.TempDir(), "strace")
	launcher := []string{strace, "-f", "-qq", "-o", file,
		"-e", "trace=socket,accept4,epoll_create1,eventfd2,close," + call}
	if fault != "" {
		launcher = append(launcher, "-e", "inject="+call+":"+fault)
	}
	words := strings.Fields(strings.Replace(args, "PORT", port, 1))
	if args != listens {
		words = append([]string{"-connect-timeout", "3s", "-io-timeout", "3s"}, words...)
	}
	p := command(t, "locked", launcher, words...)
	if p.SysProcAttr == nil {
		p.SysProcAttr = new(syscall.SysProcAttr)
	}
	p.SysProcAttr.Setpgid = true // what strace runs outlives it, where a call has not failed as wanted
	t.Cleanup(func() { syscall.Kill(-p.Process.Pid, syscall.SIGKILL) })
	p.start(t)
	select {
	case <-p.over:
	case <-time.After(hang):
	}
	if strings.Contains(p.stderr.String(), "ptrace") {
		t.Skip(p.stderr)
	}
	r = p.end(t)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return r, string(text)
}

// opens are the calls that return a descriptor.
var opens = map[string]bool{
	"socket": true, "accept4": true, "epoll_create1": true, "eventfd2": true,
}

// callsBefore counts the calls of that name before the first on a descriptor that was opened here.
func callsBefore(log, name string) (n int) {
	var own []string
	for _, call := range wholeCalls(ofFirstThread(log)) {
		found := straceCall.FindStringSubmatch(call)
		switch {
		case found == nil:
		case opens[found[1]]:
			own = append(own, found[4])
		case found[1] == name && slices.Contains(own, found[2]):
			return n
		case found[1] == name:
			n++
		}
	}
	return n
}

// The lines of a strace log, and what a call in it says: name, descriptor, the rest, result, errno.
var (
	straceLine = regexp.MustCompile(`^(\d+) +(?:<\.\.\. \w+ resumed>)?(.*)$`)
	straceCall = regexp.MustCompile(`^(\w+)\((\d+|)(.*)\)\s+= (-?\w+)(.*)$`)
)

// wholeCalls are the calls of strace's log, those in one piece that it shows in two.
func wholeCalls(log string) (calls []string) {
	started := map[string]int{} // thread: index of its unfinished call
	for line := range strings.Lines(log) {
		m := straceLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		i, isStarted := started[m[1]]
		if isStarted && strings.Contains(line, " resumed>") {
			calls[i] += m[2]
			delete(started, m[1])
			continue
		}
		call, unfinished := strings.CutSuffix(m[2], " <unfinished ...>")
		if unfinished {
			started[m[1]] = len(calls)
		}
		calls = append(calls, call)
	}
	return calls
}

// ofFirstThread is strace's log of the thread that began.
func ofFirstThread(log string) string {
	first, _, _ := strings.Cut(log, " ")
	var b strings.Builder
	for line := range strings.Lines(log) {
		if strings.HasPrefix(line, first+" ") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// leftOpen are the calls in strace's log whose descriptors were never closed.
func leftOpen(log string) (calls []string) {
	open := make(map[string]string)
	for _, call := range wholeCalls(log) {
		found := straceCall.FindStringSubmatch(call)
		switch {
		case found == nil:
		case opens[found[1]] && !strings.HasPrefix(found[4], "-"):
			open[found[4]] = call
		case found[1] == "close":
			delete(open, found[2])
		}
	}
	for _, call := range open {
		calls = append(calls, call)
	}
	return calls
}
