package main

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/windows"
)

// ---- What kernel_test.go wants of this system ----

func shortenBacklog(fd uintptr) { windows.Listen(windows.Handle(fd), 0) }

// patientConnect is a connect that stays pending where a queue is full, for 2 s. Windows refuses
// there, and the kernel under test has a refusal come at once.
func patientConnect(_ kernel, s socket, to netip.AddrPort) error {
	sa := &windows.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	err := windows.Connect(windows.Handle(s), sa)
	if err == windows.WSAEWOULDBLOCK {
		return nil
	}
	return err
}

func sendUrgent(fd uintptr, b byte) error {
	const msgOOB = 1 // winsock2.h
	buf := windows.WSABuf{Len: 1, Buf: &b}
	var n uint32
	return windows.WSASend(windows.Handle(fd), &buf, 1, &n, msgOOB, nil, nil)
}

func shownOptions(s socket) (noDelay, oobInline, keepAlive bool) {
	shown := func(level, name int) bool {
		value, err := windows.GetsockoptInt(windows.Handle(s), level, name)
		return err == nil && value != 0
	}
	const soOOBInline = 0x100 // winsock2.h
	return shown(windows.IPPROTO_TCP, windows.TCP_NODELAY),
		shown(windows.SOL_SOCKET, soOOBInline),
		shown(windows.SOL_SOCKET, windows.SO_KEEPALIVE)
}

func limitDescriptors(f *kernelTest, _ int) {
	f.Skip("Winsock has no limit that a process could lower")
}

// ---- What this system alone lets a test see ----

// TestKernelDoubts: a full socket that is watched for writing alone is reported once a second, for
// a reset may have come unseen, and no more often.
func TestKernelDoubts(t *testing.T) {
	t.Parallel()
	f := newKernelTest(t)
	s, _ := f.pair()
	f.fill(s)
	f.want(s, writable)
	reports := f.reports(s, 100, 3500*time.Millisecond)
	if reports < 2 || reports > 20 { // more room may be found meanwhile
		t.Errorf("reported %d times in 3.5 s", reports)
	}
	f.want(s, 0)
	if f.reports(s, 1, 1500*time.Millisecond) > 0 {
		t.Error("reported, though it is watched for nothing")
	}
}

// TestKernelWaitTimes: select has its time in two numbers, seconds and microseconds.
func TestKernelWaitTimes(t *testing.T) {
	t.Parallel()
	f := newKernelTest(t)
	for _, ms := range []int{30, 1250} {
		start := f.now()
		_, err := f.wait(ms)
		f.must("wait", err)
		least := time.Duration(ms-20) * time.Millisecond
		if took := f.now() - start; took < least || took > patience/2 {
			t.Errorf("a wait of %d ms took %v", ms, took)
		}
	}
}

// TestKernelExclusive: nobody shares the port of a listener, SO_REUSEADDR or not.
func TestKernelExclusive(t *testing.T) {
	t.Parallel()
	f := newKernelTest(t)
	_, bound := f.listening(loopback)
	h := windows.Handle(f.opened(bound))
	f.must("SO_REUSEADDR", windows.SetsockoptInt(h, windows.SOL_SOCKET, windows.SO_REUSEADDR, 1))
	sa := &windows.SockaddrInet4{Port: int(bound.Port()), Addr: bound.Addr().As4()}
	if windows.Bind(h, sa) == nil {
		t.Error("another socket is bound to the listener's address")
	}
}
