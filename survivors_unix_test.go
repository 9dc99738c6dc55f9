//go:build unix

package main

import (
	"errors"
	"net/netip"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// A call that fails says which one it was.

// TestFailingCalls: what each call says of a descriptor that is not open.
func TestFailingCalls(t *testing.T) {
	t.Parallel()
	const none = socket(1 << 20)
	at := netip.MustParseAddrPort("127.0.0.1:9")
	var k system
	_, _, resultErr := k.connectResult(none)
	_, readErr := k.read(none, make([]byte, 1))
	_, writeErr := k.write(none, make([]byte, 1))
	_, _, acceptErr := k.accept(none)
	_, _, namesErr := endNames(int(none))
	for _, row := range []struct {
		call string
		err  error
	}{
		{"fcntl", k.setNonblock(none)},
		{"connect", k.connect(none, at)},
		{"getsockopt", resultErr},
		{"getpeername", namesErr},
		{"read", readErr},
		{"write", writeErr},
		{"getsockopt", k.pendingError(none)},
		{"shutdown", k.closeWrite(none)},
		{"accept", acceptErr},
		{"close", k.close(none)},
		{"bind", bindSource(int(none), at.Addr())},
	} {
		wantCall(t, row.call, row.err, unix.EBADF)
	}
	unacknowledged, retransmits := k.path(none)
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
