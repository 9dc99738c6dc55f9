package main

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/windows"
)

// What Winsock lets a test see, and what its poller owes to select.

// errorNumbers are the rows of fault. A number that the program does not act on stays what it is.
var errorNumbers = []errorNumber{
	{windows.WSAEWOULDBLOCK, errWouldBlock},
	{windows.WSAEINTR, errWouldBlock},
	{windows.WSAECONNRESET, errReset},
	{windows.WSAECONNABORTED, errReset},
	{windows.WSAENETRESET, errReset},
	{windows.WSAECONNREFUSED, errRefused},
	{windows.WSAETIMEDOUT, errTimedOut},
	{windows.WSAEADDRNOTAVAIL, errNoAddress},
	{windows.WSAEAFNOSUPPORT, errNoAddress},
	{windows.WSAENOBUFS, errNoMemory},
	{windows.WSAEMFILE, errTooManyFiles},
	{windows.WSAEHOSTUNREACH, windows.WSAEHOSTUNREACH},
	{windows.WSAENETUNREACH, windows.WSAENETUNREACH},
	{windows.WSAEADDRINUSE, windows.WSAEADDRINUSE},
	{windows.WSAEACCES, windows.WSAEACCES},
	{windows.WSAEINVAL, windows.WSAEINVAL},
	{windows.WSAENOTCONN, windows.WSAENOTCONN},
	{windows.WSAENOTSOCK, windows.WSAENOTSOCK},
}

// TestLimitText: Winsock does not say what its limit is.
func TestLimitText(t *testing.T) {
	err := fault("socket", windows.WSAEMFILE)
	if err.Error() != "too many open files (Winsock names no limit)" {
		t.Error(err)
	}
}

func shortenBacklog(fd uintptr) {
	windows.Listen(windows.Handle(fd), 0)
}

// patientConnect stays pending. Windows refuses where a queue is full; without refuseAtOnce that
// takes 2 s.
func patientConnect(s socket, to netip.AddrPort) error {
	sa, err := sockaddr(to)
	if err != nil {
		return err
	}
	err = windows.Connect(windows.Handle(s), sa)
	if err == windows.WSAEWOULDBLOCK {
		return nil
	}
	return err
}

func visibleOptions(s socket) []socketOption {
	option := func(level, name int) bool {
		value, err := windows.GetsockoptInt(windows.Handle(s), level, name)
		return err == nil && value != 0
	}
	return []socketOption{
		{"TCP_NODELAY", option(windows.IPPROTO_TCP, windows.TCP_NODELAY), true, true},
		{"SO_OOBINLINE", option(windows.SOL_SOCKET, soOOBInline), true, true},
		{"SO_KEEPALIVE", option(windows.SOL_SOCKET, windows.SO_KEEPALIVE), false, true},
	}
}

// TestDoubts: sockets that are watched for writability alone are reported once a second, all of
// them, though they are full, and no more often. A reset may have come unseen.
func TestDoubts(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	const many = 10
	full := make([]socket, many)
	for i := range full {
		s, _ := p.pair()
		p.fillOnce(s)
		full[i] = s
	}
	for _, s := range full {
		p.watch(s, writable)
	}
	reports := make(map[socket]int)
	waits := 0
	events := make([]event, 3) // fewer than there are
	start := time.Now()
	for time.Since(start) < 3500*time.Millisecond {
		n, err := p.wait(events, 10_000)
		p.must("wait", err)
		waits++
		for _, ev := range events[:n] {
			reports[ev.socket]++
		}
	}
	for _, s := range full {
		if reports[s] < 2 || reports[s] > 4 {
			t.Errorf("socket %v is reported %d times in 3.5 s", s, reports[s])
		}
	}
	if waits > 10*many {
		t.Errorf("%d waits in 3.5 s", waits)
	}
}

// TestDoubtsOfChanged: who is watched for something else by now, or for nothing, is not in doubt.
func TestDoubtsOfChanged(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	kept, _ := p.pair()
	p.fillOnce(kept)
	dropped, _ := p.pair()
	p.fillOnce(dropped)
	p.watch(kept, writable)
	p.watch(dropped, writable)
	p.poll(100 * time.Millisecond)
	time.Sleep(1200 * time.Millisecond)
	events := make([]event, 1)
	n, err := p.wait(events, 5000)
	p.must("wait", err)
	if n != 1 {
		t.Fatalf("%d events after a second", n)
	}
	p.watch(kept, 0)
	p.watch(dropped, readable)
	p.silent("neither is watched for writing")
}

// TestExclusive: nobody shares the port of a listener, SO_REUSEADDR or not.
func TestExclusive(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	_, bound := p.listening("127.0.0.1:0")
	s, err := newSocket(windows.AF_INET, windows.SOCK_STREAM, windows.IPPROTO_TCP)
	p.must("newSocket", err)
	p.watched[s] = 0
	h := windows.Handle(s)
	windows.SetsockoptInt(h, windows.SOL_SOCKET, windows.SO_REUSEADDR, 1)
	sa, err := sockaddr(bound)
	p.must("sockaddr", err)
	err = windows.Bind(h, sa)
	if err == nil {
		t.Error("another socket is bound to the listener's address")
	}
}
