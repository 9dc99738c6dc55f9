package main

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ---- What kernel_test.go wants of this system ----

// shortenBacklog: 0 is one place for Linux.
func shortenBacklog(fd uintptr) { unix.Listen(int(fd), 0) }

// patientConnect is a connect that stays pending where a queue is full.
func patientConnect(k kernel, s socket, to netip.AddrPort) error { return k.connect(s, to) }

func sendUrgent(fd uintptr, b byte) error { return unix.Send(int(fd), []byte{b}, unix.MSG_OOB) }

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

// TestKernelInherited: no program that is started gets a socket.
func TestKernelInherited(t *testing.T) {
	t.Parallel()
	f := newKernelTest(t)
	listener, bound := f.listening(loopback)
	client := f.connecting(bound)
	accepted, _ := f.accepted(listener)
	for _, s := range []socket{listener, client, accepted} {
		flags, err := unix.FcntlInt(uintptr(s), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("socket %d: flags %#x, %v", s, flags, err)
		}
	}
}

// TestKernelInterrupted: a signal to the thread that waits is no error, and no event. The Go
// runtime sends itself SIGURG, and nobody else minds it.
func TestKernelInterrupted(t *testing.T) {
	t.Parallel()
	f := newKernelTest(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	thread := unix.Gettid()
	for range 5 {
		time.AfterFunc(20*time.Millisecond, func() {
			unix.Tgkill(unix.Getpid(), thread, unix.SIGURG)
		})
		ready, err := f.wait(int(patience / time.Millisecond / 10))
		if len(ready) > 0 || err != nil {
			t.Fatalf("%v, %v", ready, err)
		}
	}
}

// TestKernelTimedOut has the kernel give a connect up, much sooner than it would by itself.
func TestKernelTimedOut(t *testing.T) {
	t.Parallel()
	if kernelRig() == "qemu-mips" {
		t.Skip("on qemu-mips SO_ERROR has the host's numbers")
	}
	f := newKernelTest(t)
	to := f.fullBacklog()
	s := f.opened(to)
	f.must("TCP_USER_TIMEOUT", unix.SetsockoptInt(int(s), unix.IPPROTO_TCP,
		unix.TCP_USER_TIMEOUT, 500))
	f.must("connect", f.connect(s, to))
	_, _, err := f.result(s)
	f.gives("connectResult", 0, err, 0, errTimedOut)
}

// TestKernelOwnNetwork has a network of its own: no interface is up at first, and then there are
// two local ports. The thread that is in it ends with the test.
func TestKernelOwnNetwork(t *testing.T) {
	t.Parallel()
	if kernelRig() == "qemu-mips" {
		t.Skip("on qemu-mips SO_ERROR has the host's numbers")
	}
	runtime.LockOSThread()
	err := unix.Unshare(unix.CLONE_NEWNET)
	if err != nil {
		t.Skipf("no network of one's own: %v", err)
	}
	f := newKernelTest(t)
	bound := netip.MustParseAddrPort("127.0.0.1:9")
	err = f.connect(f.opened(bound), bound)
	f.gives("connect without a network", 0, err, 0, errUnreachable)
	raiseLoopback(f)
	zones(f)
	err = os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 40001"), 0)
	if err != nil {
		t.Skipf("local ports cannot be limited: %v", err)
	}

	own := netip.MustParseAddrPort("127.0.0.1:40000") // nobody listens; it is the first port chosen
	local, peer, err := f.result(f.connecting(own))
	f.must("connectResult", err)
	if local != own || peer != own {
		t.Errorf("from %v to %v, both want to be %v", local, peer, own)
	}
	for _, at := range []string{"127.0.0.1:9", "[::1]:9"} {
		to := netip.MustParseAddrPort(at)
		_, _, err := f.listen(to)
		if err == errNoFamily {
			continue
		}
		f.must("listen", err)
		for ports := 0; err == nil; ports++ {
			if ports > 2 {
				t.Fatalf("two ports are enough for %d connections to %v", ports, to)
			}
			err = f.connect(f.opened(to), to)
		}
		f.gives("connect without a port", 0, err, 0, errNoLocal)
	}
}

// zones connects to a link-local address, which lo has none of by itself. In another zone there is
// no such address.
func zones(f *kernelTest) {
	out, err := exec.Command("ip", "address", "add", "fe80::1/64", "dev", "lo", "nodad").CombinedOutput()
	if err != nil {
		f.Logf("zones are not tested, for lo gets no link-local address: %v, %s", err, out)
		return
	}
	card, err := net.InterfaceByName("lo")
	if err != nil { // QEMU 7 hands big-endian programs a list that they cannot read
		f.Logf("zones are not tested, for no interface is known: %v", err)
		return
	}
	_, bound := f.listening(netip.MustParseAddrPort("[fe80::1%lo]:0"))
	reaches := func(zone string) bool {
		to := netip.AddrPortFrom(bound.Addr().WithZone(zone), bound.Port())
		s := f.opened(to)
		err := f.connect(s, to)
		if err == nil {
			_, _, err = f.result(s)
		}
		f.shut(s)
		return err == nil
	}
	for end := time.Now().Add(patience); !reaches("lo") && time.Now().Before(end); {
		time.Sleep(time.Millisecond) // the address is there before the way to it
	}
	for zone, want := range map[string]bool{"lo": true, strconv.Itoa(card.Index): true, "99": false} {
		if reaches(zone) != want {
			f.Errorf("a connect in zone %s succeeds: %v", zone, !want)
		}
	}
}

// raiseLoopback raises lo, as in netdevice(7).
func raiseLoopback(f *kernelTest) {
	request, err := unix.NewIfreq("lo")
	f.must("NewIfreq", err)
	request.SetUint16(unix.IFF_UP)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	f.must("socket", err)
	defer unix.Close(fd)
	f.must("SIOCSIFFLAGS", unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request))
}
