package main

import (
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What Linux alone lets a test see of its sockets.

// underQEMU skips a test of what qemu-user does not hand on to the kernel.
func underQEMU(t testing.TB, fault string) {
	t.Helper()
	faulty(t, "qemu", fault)
	faulty(t, "qemu-mips", fault)
}

// TestDeferredPort: a socket with a local address has no port before it knows where it connects to,
// so that the ports suffice for each destination anew.
func TestDeferredPort(t *testing.T) {
	t.Parallel()
	underQEMU(t, "IP_BIND_ADDRESS_NO_PORT is unknown")
	p := newPlatform(t)
	to := netip.MustParseAddrPort("127.0.0.1:9")
	s := p.opened(to, netip.MustParseAddr("127.0.0.5"))
	sa, err := syscall.Getsockname(int(s))
	p.must("getsockname", err)
	want := netip.MustParseAddrPort("127.0.0.5:0")
	if addrPort(sa) != want {
		t.Errorf("bound to %v, want %v", addrPort(sa), want)
	}
}

// TestBacklog: a listener asks for as many places as the kernel gives. TCP_INFO of a listener has
// that number where connections have the segments that were acknowledged selectively.
func TestBacklog(t *testing.T) {
	t.Parallel()
	underQEMU(t, "TCP_INFO is empty")
	text, err := os.ReadFile("/proc/sys/net/core/somaxconn")
	if err != nil {
		t.Skip(err)
	}
	most, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	p := newPlatform(t)
	s, _ := p.listening("127.0.0.1:0")
	info, err := unix.GetsockoptTCPInfo(int(s), unix.IPPROTO_TCP, unix.TCP_INFO)
	p.must("TCP_INFO", err)
	want := min(most, 1<<16-1)
	if int(info.Sacked) != want {
		t.Errorf("the backlog has %d places, want %d", info.Sacked, want)
	}
}

// TestRetransmits: a SYN without an answer is sent again after a second.
func TestRetransmits(t *testing.T) {
	t.Parallel()
	underQEMU(t, "TCP_INFO is empty")
	p := newPlatform(t)
	s := p.connecting(p.fullBacklog())
	_, retransmits := p.net.path(s)
	if retransmits != 0 {
		t.Errorf("%d segments again at once", retransmits)
	}
	end := time.Now().Add(hang)
	for retransmits == 0 && time.Now().Before(end) {
		time.Sleep(100 * time.Millisecond)
		_, retransmits = p.net.path(s)
	}
	if retransmits < 1 {
		t.Errorf("%d segments again after a long time", retransmits)
	}
}

// TestProcInput: a regular file without a size may wait.
func TestProcInput(t *testing.T) {
	t.Parallel()
	file, err := os.Open("/proc/self/status")
	if err != nil {
		t.Skip(err)
	}
	defer file.Close()
	kind := kindOfInput(file)
	if kind != otherInput {
		t.Errorf("a file of /proc is of kind %d", kind)
	}
}

// TestInterruptedWait: a signal to the thread that waits is no error, and no event. The Go runtime
// sends itself SIGURG, and nobody else minds it.
func TestInterruptedWait(t *testing.T) {
	p, err := newPoller()
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	thread := unix.Gettid()
	go func() {
		for range 20 {
			time.Sleep(5 * time.Millisecond)
			unix.Tgkill(unix.Getpid(), thread, unix.SIGURG)
		}
	}()
	interrupted := 0
	for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end); {
		start := time.Now()
		n, err := p.wait(make([]event, 1), 60)
		if n != 0 || err != nil {
			t.Fatalf("%d events, %v", n, err)
		}
		if time.Since(start) < 50*time.Millisecond {
			interrupted++
		}
	}
	if interrupted == 0 {
		t.Skip("no signal has interrupted a wait")
	}
}
