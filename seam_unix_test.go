//go:build unix

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// What the sockets of Linux and macOS let a test see.

// errorNumbers are the rows of fault. A number that the program does not act on stays what it is.
var errorNumbers = []errorNumber{
	{unix.EAGAIN, errWouldBlock},
	{unix.EINTR, errWouldBlock},
	{unix.ECONNRESET, errReset},
	{unix.EPIPE, errReset},
	{unix.EPROTOTYPE, errReset},
	{unix.ECONNABORTED, errReset},
	{unix.ECONNREFUSED, errRefused},
	{unix.ETIMEDOUT, errTimedOut},
	{unix.EADDRNOTAVAIL, errNoAddress},
	{unix.EAFNOSUPPORT, errNoAddress},
	{unix.ENOBUFS, errNoMemory},
	{unix.ENOMEM, errNoMemory},
	{unix.EMFILE, errTooManyFiles},
	{unix.ENFILE, errTooManyFiles},
	{unix.EHOSTUNREACH, unix.EHOSTUNREACH},
	{unix.ENETUNREACH, unix.ENETUNREACH},
	{unix.EADDRINUSE, unix.EADDRINUSE},
	{unix.EACCES, unix.EACCES},
	{unix.EINVAL, unix.EINVAL},
	{unix.ENOTCONN, unix.ENOTCONN},
	{unix.EBADF, unix.EBADF},
}

// shortenBacklog: 0 is one place for Linux, and no number at all for XNU.
func shortenBacklog(fd uintptr) {
	unix.Listen(int(fd), 0)
}

// patientConnect stays pending.
func patientConnect(s socket, to netip.AddrPort) error { return system{}.connect(s, to) }

func visibleOptions(s socket) []socketOption {
	fd := int(s)
	option := func(level, name int) bool {
		value, err := unix.GetsockoptInt(fd, level, name)
		return err == nil && value != 0 // XNU shows the flag's own bit
	}
	status, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	descriptor, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	inherited := cloexec == 0
	return []socketOption{
		{"TCP_NODELAY", option(unix.IPPROTO_TCP, unix.TCP_NODELAY), true, true},
		{"SO_OOBINLINE", option(unix.SOL_SOCKET, unix.SO_OOBINLINE), true, true},
		{"SO_KEEPALIVE", option(unix.SOL_SOCKET, unix.SO_KEEPALIVE), false, true},
		{"O_NONBLOCK", status&unix.O_NONBLOCK != 0, true, true},
		{"FD_CLOEXEC", inherited || descriptor&unix.FD_CLOEXEC != 0, true, true},
	}
}

// TestConnectToItself: XNU refuses that, other kernels do it, and both names say so.
func TestConnectToItself(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	own := netip.MustParseAddrPort("127.0.0.1:0")
	s := p.opened(own, netip.Addr{})
	sa, err := sockaddr(own)
	p.must("sockaddr", err)
	p.must("bind", syscall.Bind(int(s), sa))
	sa, err = syscall.Getsockname(int(s))
	p.must("getsockname", err)
	own = addrPort(sa)
	err = p.net.connect(s, own)
	if runtime.GOOS == "darwin" || emulated() {
		const text = "connection refused (connected to itself)"
		if !errors.Is(err, errRefused) || err.Error() != text {
			t.Errorf("%v, want %s", err, text)
		}
		return
	}
	p.must("connect", err)
	p.watch(s, writable)
	local, peer, err := p.result(s)
	p.must("connectResult", err)
	if local != own || peer != own {
		t.Errorf("from %v to %v, both want to be %v", local, peer, own)
	}
}

// TestNoDescriptors: whatever fails for want of a descriptor says so with the limit, and keeps none
// of those that it got. It is alone, since it takes all that the process may have. What a test
// before it has left to the collector may still be given back meanwhile, but hardly three times.
func TestNoDescriptors(t *testing.T) {
	var found findings
	for range 3 {
		found = findings{TB: t}
		runtime.GC()
		withoutDescriptors(&found)
		if len(found.texts) == 0 {
			return
		}
	}
	t.Errorf("%q", found.texts)
}

// findings keeps what would be errors of a test.
type findings struct {
	testing.TB
	texts []string
}

func (f *findings) Errorf(format string, args ...any) {
	f.texts = append(f.texts, fmt.Sprintf(format, args...))
}

func withoutDescriptors(t testing.TB) {
	var limit unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	if err != nil {
		t.Fatal(err)
	}
	few := limit
	few.Cur = 100
	err = unix.Setrlimit(unix.RLIMIT_NOFILE, &few)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	taken := takeDescriptors(1000)
	defer func() { giveBack(taken) }()
	for room := range 4 {
		giveBack(taken[len(taken)-room:])
		taken = taken[:len(taken)-room]
		failures(t, room)
		again := takeDescriptors(1000)
		if len(again) != room {
			t.Errorf("of %d descriptors %d are left", room, len(again))
		}
		taken = append(taken, again...)
	}
}

// failures makes calls fail that have room descriptors, or none, and closes what succeeds.
func failures(t testing.TB, room int) {
	p, err := newPoller()
	if err == nil {
		p.close()
	}
	wantNoDescriptor(t, "newPoller", room, err)
	at := netip.MustParseAddrPort("127.0.0.1:0")
	s, err := system{}.openSocket(at, netip.Addr{})
	if err == nil {
		system{}.close(s)
	}
	wantNoDescriptor(t, "openSocket", room, err)
	s, _, err = system{}.listen(at)
	if err == nil {
		system{}.close(s)
	}
	wantNoDescriptor(t, "listen", room, err)
	elsewhere := netip.MustParseAddrPort("192.0.2.1:0") // RFC 5737: nobody's
	_, err = system{}.openSocket(at, elsewhere.Addr())
	if err == nil {
		t.Errorf("a socket is bound to an address that is not ours")
	}
	_, _, err = system{}.listen(elsewhere)
	if err == nil {
		t.Errorf("somebody listens to an address that is not ours")
	}
}

func wantNoDescriptor(t testing.TB, what string, room int, err error) {
	t.Helper()
	if room == 0 && err == nil {
		t.Errorf("%s needs no descriptor", what)
	}
	if err == nil {
		return
	}
	if !errors.Is(err, errTooManyFiles) || err.Error() != "too many open files (the limit is 100)" {
		t.Errorf("%s: %v", what, err)
	}
}

// takeDescriptors takes n descriptors, or all that there are.
func takeDescriptors(n int) (taken []int) {
	for range n {
		fd, err := unix.Dup(int(os.Stderr.Fd()))
		if err != nil {
			break
		}
		taken = append(taken, fd)
	}
	return taken
}

func giveBack(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// TestInputMode: to ask what standard input is changes nothing in it. What is behind it belongs to
// the user's shell too.
func TestInputMode(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe() // the runtime's poller has it in non-blocking mode
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	kindOfInput(r)
	raw, err := r.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
		if err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("flags are %#x, %v", flags, err)
		}
	})
}

// TestTerminal: a terminal of its own.
func TestTerminal(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("the other end of a pseudo-terminal is reached otherwise here")
	}
	file, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer file.Close()
	kind := kindOfInput(file)
	if kind != terminalInput {
		t.Errorf("a terminal is of kind %d", kind)
	}
}

// A call that fails says which one it was.

// TestFailingCalls: what each call says of a descriptor that is not open.
func TestFailingCalls(t *testing.T) {
	t.Parallel()
	const none = socket(1 << 20)
	calls := callsOf(none, "fcntl", "read", "write", "close")
	_, _, namesErr := endNames(int(none))
	bindErr := bindSource(int(none), netip.MustParseAddr("127.0.0.1"))
	calls = append(calls, failedCall{"getpeername", namesErr}, failedCall{"bind", bindErr})
	for _, c := range calls {
		wantCall(t, c.call, c.err, unix.EBADF)
	}
	unacknowledged, retransmits := system{}.path(none)
	if unacknowledged != -1 || retransmits != -1 {
		t.Errorf("path of nothing is %d, %d", unacknowledged, retransmits)
	}
}

// TestFailingListen: what each step of listening says that fails.
func TestFailingListen(t *testing.T) {
	t.Parallel()
	at := netip.MustParseAddrPort("127.0.0.1:0")
	udp, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(udp)
	_, err = bindAndListen(udp, at)
	wantCall(t, "listen", err, unix.EOPNOTSUPP)
	_, err = bindAndListen(udp, at) // it has its address already
	wantCall(t, "bind", err, unix.EINVAL)
	_, bound, err := system{}.listen(netip.MustParseAddrPort("[fe80::1%nosuchzone]:9"))
	if err == nil || bound.IsValid() {
		t.Errorf("%v is bound, %v", bound, err)
	}
}

// TestPollerFails: a socket that is not open cannot be watched, and a poller that is closed cannot
// wait.
func TestPollerFails(t *testing.T) {
	p, err := newPoller()
	if err != nil {
		t.Fatal(err)
	}
	const none = socket(1 << 20)
	for _, want := range []readiness{readable, writable, readable | writable} {
		err = p.change(none, 0, want)
		if !errors.Is(err, unix.EBADF) {
			t.Errorf("watched for %v: %v", want, err)
		}
	}
	err = p.close()
	if err != nil {
		t.Errorf("close: %v", err)
	}
	n, err := p.wait(make([]event, 1), 0)
	if n != 0 {
		t.Errorf("%d events after close", n)
	}
	call := "epoll_wait"
	changeCall := "epoll_ctl"
	if runtime.GOOS == "darwin" || emulated() {
		call = "kevent"
		changeCall = "kevent"
	}
	wantCall(t, call, err, unix.EBADF)
	wantCall(t, changeCall, p.change(none, 0, readable), unix.EBADF)
	wantCall(t, "close", p.close(), unix.EBADF)
}

// TestConnectErrors: what connect's own errors mean.
func TestConnectErrors(t *testing.T) {
	t.Parallel()
	four := netip.MustParseAddr("192.0.2.1")
	six := netip.MustParseAddr("2001:db8::1")
	if noPort(four) != errNoPort || noPort(six) != errNoAddress {
		t.Errorf("no port: %v, %v", noPort(four), noPort(six))
	}
	if domain(four) != unix.AF_INET || domain(six) != unix.AF_INET6 {
		t.Errorf("the families are %d and %d", domain(four), domain(six))
	}
	zoned := netip.MustParseAddrPort("[fe80::1%nosuchzone]:9")
	s, err := system{}.openSocket(zoned, netip.Addr{})
	if err != nil {
		t.Skip(err) // no IPv6
	}
	defer system{}.close(s)
	err = system{}.connect(s, zoned)
	if err == nil || err == errNoAddress {
		t.Errorf("connect to a zone that there is not: %v", err)
	}
	_, err = system{}.openSocket(zoned, zoned.Addr())
	if err == nil {
		t.Error("a socket is bound to an address of a zone that there is not")
	}
}
