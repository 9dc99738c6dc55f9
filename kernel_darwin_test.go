package main

import (
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// ---- What kernel_test.go wants of this system ----

// shortenBacklog: 0 is no number for XNU, which makes 128 of it.
func shortenBacklog(fd uintptr) { unix.Listen(int(fd), 0) }

// patientConnect is a connect that stays pending where a queue is full.
func patientConnect(k kernel, s socket, to netip.AddrPort) error { return k.connect(s, to) }

func sendUrgent(fd uintptr, b byte) error {
	return unix.Sendto(int(fd), []byte{b}, unix.MSG_OOB, nil)
}

// shownOptions: XNU shows the flag's own bit.
func shownOptions(s socket) (noDelay, oobInline, keepAlive bool) {
	shown := func(level, name int) bool {
		value, err := unix.GetsockoptInt(int(s), level, name)
		return err == nil && value != 0
	}
	return shown(unix.IPPROTO_TCP, unix.TCP_NODELAY), shown(unix.SOL_SOCKET, unix.SO_OOBINLINE),
		shown(unix.SOL_SOCKET, unix.SO_KEEPALIVE)
}

// limitDescriptors leaves numbers for n more, or a few more than that, until the test ends.
func limitDescriptors(f *kernelTest, n int) {
	next, err := unix.Dup(0)
	f.must("dup", err)
	unix.Close(next)
	var limit unix.Rlimit
	f.must("getrlimit", unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	few := limit
	few.Cur = uint64(next + n)
	f.must("setrlimit", unix.Setrlimit(unix.RLIMIT_NOFILE, &few))
	f.Cleanup(func() { unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) })
}

// ---- What this system alone lets a test see ----

// TestKernelSelf: an IPv4 socket may not connect to itself here.
func TestKernelSelf(t *testing.T) {
	t.Parallel()
	f := newKernelTest(t)
	own := f.nobody()
	s := f.opened(own)
	f.must("bind", syscall.Bind(int(s), &syscall.SockaddrInet4{
		Port: int(own.Port()), Addr: own.Addr().As4()}))
	f.gives("connect", 0, f.connect(s, own), 0, errSelf)
}
