package main

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What a Linux kernel lets a test bring about: a full backlog, urgent data, a full pipe, more
// loopback addresses than one, devices that fail, descriptors that run out. What needs a network
// of its own is in faults_linux_test.go.

func init() {
	dieWithParent = func(c *exec.Cmd) {
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	}
}

// fullBacklog is an address on ip where a connect stays pending: the one place in the queue is
// taken, and nobody accepts. With port 0 the kernel chooses one.
func fullBacklog(t testing.TB, ip string, port uint16) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	addr := netip.MustParseAddr(ip)
	err = syscall.Bind(fd, &syscall.SockaddrInet4{Addr: addr.As4(), Port: int(port)})
	if err == nil {
		err = unix.Listen(fd, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(addr, uint16(sa.(*syscall.SockaddrInet4).Port))
	c, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	extra, err := net.DialTimeout("tcp", at.String(), 50*time.Millisecond)
	if err == nil {
		extra.Close()
		t.Skip("this kernel's queue takes more than one connection")
	}
	return at
}

func portOf(at netip.AddrPort) string { return strconv.Itoa(int(at.Port())) }

func TestFullBacklog(t *testing.T) {
	t.Parallel()
	at := fullBacklog(t, "127.0.0.1", 0)
	start := time.Now()
	r := echomux(t, nil, "-connect-timeout", "300ms", "127.0.0.1", portOf(at), "hello")
	r.wantLine(t, 4, "failed", "sent=0 returned=0", "127.0.0.1: timed out")
	took := time.Since(start)
	if took < 300*time.Millisecond {
		t.Errorf("the connect timeout took %v", took)
	}
	r = echomux(t, nil, "-n", "3", "-connect-timeout", "300ms", "127.0.0.1", portOf(at), "hello")
	r.wantLine(t, 4, "failed", "connections=3 ok=0 failures=3 unfinished=0 sent=0 returned=0", "")
	r.wantLines(t, 2)
	r.lines[0].want(t, "cause", "failures=3", "127.0.0.1: timed out")
}

// TestProgressWhileConnecting: a line of progress names no peer before there is one.
func TestProgressWhileConnecting(t *testing.T) {
	t.Parallel()
	at := fullBacklog(t, "127.0.0.1", 0)
	r := echomux(t, nil, "-progress", "200ms", "-connect-timeout", "700ms", at.String(), "hello")
	r.wantLine(t, 4, "failed", "sent=0 returned=0", "127.0.0.1: timed out")
	r.lines[0].want(t, "progress", "sent=0 returned=0 mbit_s=0.00", "")
}

// TestPendingConnect: connectResult can be asked at any time.
func TestPendingConnect(t *testing.T) {
	t.Parallel()
	at := fullBacklog(t, "127.0.0.1", 0)
	s, err := system{}.openSocket(at, netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	defer system{}.close(s)
	err = system{}.setNonblock(s)
	if err == nil {
		err = system{}.connect(s, at)
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		local, peer, err := system{}.connectResult(s)
		if err != errWouldBlock || local.IsValid() || peer.IsValid() {
			t.Errorf("not connected, but from %v to %v, %v", local, peer, err)
		}
	}
}

var shownOptions = []struct {
	name   string
	level  int
	which  int
	client int // its value for a client's socket; 1 for an accepted one
}{
	{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
	{"SO_OOBINLINE", unix.SOL_SOCKET, unix.SO_OOBINLINE, 1},
	{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0},
}

// TestSocketOptions: all sockets send small pieces at once, keep urgent data in the stream, and are
// not inherited by other programs. Accepted ones alone find out that a peer has vanished: a
// client's idle flow has to be idle.
func TestSocketOptions(t *testing.T) {
	t.Parallel()
	k := system{}
	listener, bound, err := k.listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer k.close(listener)
	connected, err := k.openSocket(bound, netip.Addr{})
	if err == nil {
		defer k.close(connected)
		err = k.connect(connected, bound) // still blocking, so it is done
	}
	if err != nil {
		t.Fatal(err)
	}
	accepted, _, err := k.accept(listener)
	if err != nil {
		t.Fatal(err)
	}
	defer k.close(accepted)
	for _, option := range shownOptions {
		on, err := unix.GetsockoptInt(int(accepted), option.level, option.which)
		if on != 1 || err != nil {
			t.Errorf("%s of the accepted socket: %d, %v", option.name, on, err)
		}
		on, err = unix.GetsockoptInt(int(connected), option.level, option.which)
		if on != option.client || err != nil {
			t.Errorf("%s of the client's socket: %d, %v", option.name, on, err)
		}
	}
	all := map[string]socket{"client's": connected, "accepted": accepted, "listening": listener}
	for name, s := range all {
		flags, err := unix.FcntlInt(uintptr(s), unix.F_GETFD, 0)
		if flags&unix.FD_CLOEXEC == 0 || err != nil {
			t.Errorf("the %s socket is inherited", name)
		}
	}
}

// connectedPair is a socket of this kernel, still blocking, and its peer.
func connectedPair(t testing.TB) (s socket, peer net.Conn) {
	t.Helper()
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	at := netip.MustParseAddrPort(server.Addr().String())
	s, err = system{}.openSocket(at, netip.Addr{})
	if err == nil {
		t.Cleanup(func() { system{}.close(s) })
		err = system{}.connect(s, at)
	}
	if err == nil {
		peer, err = server.Accept()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { peer.Close() })
	return s, peer
}

// TestPathCountsFIN: what a peer has not acknowledged is known, and our FIN is part of it. A peer
// whose queue is full acknowledges nothing, whereas one that has accepted takes it all.
func TestPathCountsFIN(t *testing.T) {
	t.Parallel()
	k := system{}
	s, peer := connectedPair(t)
	unacknowledged := func() int {
		n, _ := k.path(s)
		return n
	}
	eventually(t, func() bool { return unacknowledged() == 0 }, func() string {
		return fmt.Sprintf("%d bytes unacknowledged, and none was sent", unacknowledged())
	})
	err := k.setNonblock(s)
	if err != nil {
		t.Fatal(err)
	}
	sent := 0
	for err == nil {
		var n int
		n, err = k.write(s, make([]byte, 1<<20))
		sent += n
	}
	time.Sleep(100 * time.Millisecond)
	full := unacknowledged()
	if full <= 0 || full >= sent {
		t.Errorf("%d of %d bytes unacknowledged by a peer that reads none", full, sent)
	}
	err = k.closeWrite(s)
	if err != nil {
		t.Fatal(err)
	}
	if n := unacknowledged(); n != full+1 {
		t.Errorf("%d bytes unacknowledged, and with our FIN %d", full, n)
	}
	go io.Copy(io.Discard, peer)
	eventually(t, func() bool { return unacknowledged() == 0 }, func() string {
		return fmt.Sprintf("%d bytes unacknowledged, and the peer has read all", unacknowledged())
	})
}

// TestSignalWhileConnecting: a pending connect is interrupted at once.
func TestSignalWhileConnecting(t *testing.T) {
	t.Parallel()
	needSignals(t)
	at := fullBacklog(t, "127.0.0.1", 0)
	for _, s := range signals {
		p := command(t, "1", nil, "-v", "-connect-timeout", "1h", "127.0.0.1", portOf(at), "hello")
		p.start(t)
		p.stderr.await(t, "watching for write only", 1)
		p.signal(t, s.signal)
		p.end(t).wantLine(t, s.status, "interrupted", "sent=0 returned=0", "")
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	r := echomux(t, nil, "127.255.255.255", "7", "hello")
	r.wantLine(t, 3, "failed", "sent=0 returned=0", "127.255.255.255: network is unreachable")
}

// TestAddresses is a name with several addresses: they are tried in order, each for its share of
// the time, and when all fail the one furthest along decides.
func TestAddresses(t *testing.T) {
	t.Parallel()
	faulty(t, "qemu-mips", "SO_ERROR carries the host's error number")
	const unreachable, refused = "127.255.255.255", "127.0.0.12"
	const full, echo = "127.0.0.13", "127.0.0.14"
	const ok = "sent=6 returned=6 connect_ms exchange_ms peer=127.0.0.14:*"
	const none = "sent=0 returned=0"
	_, port := serve(t, echo+":0", echoes)
	n, _ := strconv.Atoi(port)
	fullBacklog(t, full, uint16(n))
	for _, test := range []struct {
		addrs  []string
		status int
		word   string
		keys   string
		cause  string
	}{
		{[]string{unreachable, refused, echo}, 0, "ok", ok, ""},
		{[]string{full, echo}, 0, "ok", ok, ""},
		{[]string{"::ffff:" + refused, "::ffff:" + echo}, 0, "ok", ok, ""},
		{[]string{full, refused}, 3, "failed", none,
			"127.0.0.13: timed out; 127.0.0.12: connection refused"},
		{[]string{refused, full}, 3, "failed", none,
			"127.0.0.12: connection refused; 127.0.0.13: timed out"},
		{[]string{full, unreachable}, 4, "failed", none,
			"127.0.0.13: timed out; 127.255.255.255: network is unreachable"},
		{[]string{refused, unreachable}, 3, "failed", none,
			"127.0.0.12: connection refused; 127.255.255.255: network is unreachable"},
	} {
		t.Run(strings.Join(test.addrs, " "), func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			r := runNamed(t, test.addrs, "-connect-timeout", "3s", "several.test", port, "hello")
			r.wantLine(t, test.status, test.word, test.keys, test.cause)
			took := time.Since(start)
			if test.status == 0 && took > 2900*time.Millisecond {
				t.Errorf("it took %v: one address has had the time of all", took)
			}
		})
	}
}

// runNamed is a run in which HOST has those addresses, over the real kernel.
func runNamed(t testing.TB, addrs []string, args ...string) result {
	t.Helper()
	var found []netip.Addr
	for _, a := range addrs {
		found = append(found, netip.MustParseAddr(a))
	}
	_, run := inside(t, func(w *world) {
		w.resolve = func(host, family string, _ time.Duration) ([]netip.Addr, error) {
			if host != "several.test" || family != "ip" {
				t.Errorf("looked up %s in %s", host, family)
			}
			return found, nil
		}
	}, args...)
	return run.end(t)
}

// TestUrgentData: a byte sent as urgent stays in the stream, in its place, in both directions.
func TestUrgentData(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		reads(c, 6)
		io.WriteString(c, "he")
		sendUrgent(t, c, "l")
		io.WriteString(c, "lo\n")
		ignores(c)
	})
	r := echomux(t, nil, "127.0.0.1", port, "hello")
	r.wantLine(t, 0, "ok", wholeHere, "")
	r.wantStdout(t, "hello\n")

	_, port = startServer(t)
	c := dialServer(t, "127.0.0.1", port)
	io.WriteString(c, "he")
	sendUrgent(t, c, "l")
	io.WriteString(c, "lo\n")
	c.CloseWrite()
	got, err := io.ReadAll(c)
	if string(got) != "hello\n" {
		t.Errorf("the server returned %q, %v", got, err)
	}
}

func sendUrgent(t testing.TB, c *net.TCPConn, text string) {
	raw, err := c.SyscallConn()
	if err != nil {
		t.Error(err)
		return
	}
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		failed = unix.Send(int(fd), []byte(text), unix.MSG_OOB)
		return failed != unix.EAGAIN
	})
	if err != nil || failed != nil {
		t.Errorf("urgent data: %v, %v", err, failed)
	}
}

// raiseLoopback makes loopback work in a network namespace of one's own.
func raiseLoopback() {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = raiseInterface(fd, "lo")
		unix.Close(fd)
	}
	if err != nil {
		fmt.Println("loopback:", err)
		os.Exit(99)
	}
}

func raiseInterface(fd int, name string) error {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

// limited is the launcher of a process that may hold n descriptors.
func limited(n int) []string {
	return []string{"sh", "-c", fmt.Sprintf(`ulimit -n %d; exec "$@"`, n), "sh"}
}

// TestDescriptorLimit: more connections than descriptors is a local failure that names the limit.
func TestDescriptorLimit(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", lingers)
	r := command(t, "1", limited(30), "-n", "100", "127.0.0.1", port, "hello").start(t).end(t)
	r.wantLine(t, 6, "failed", "connections=100 ok=0 failures unfinished sent returned ...", "")
	r.wantLines(t, 2)
	r.lines[0].want(t, "cause", "failures", "too many open files (the limit is 30)")
}

// TestServerDescriptorLimit: a server out of descriptors neither dies nor spins, and serves again
// when it has some.
func TestServerDescriptorLimit(t *testing.T) {
	t.Parallel()
	p, port := startServerBy(t, limited(30), "-v")
	var held []net.Conn
	for range 40 {
		held = append(held, dialServer(t, "127.0.0.1", port))
	}
	const complaint, pause = "too many open files (the limit is 30)", "watching for nothing"
	p.stderr.await(t, pause, 3)
	before := strings.Count(p.stderr.String(), pause)
	time.Sleep(500 * time.Millisecond)
	more := strings.Count(p.stderr.String(), pause) - before
	if more > 20 {
		t.Errorf("%d pauses in half a second", more)
	}
	for _, c := range held {
		c.Close()
	}
	r := echomux(t, nil, "127.0.0.1", port, "hello")
	r.wantLine(t, 0, "ok", wholeHere, "")
	p.signal(t, syscall.SIGTERM)
	r = p.end(t)
	r.wantLine(t, 0, "ended", "clients=41 failures=0 received=6 returned=6", "")
	r.wantLines(t, 3) // one complaint, that is
	r.lines[1].want(t, "cause", "failures=1", "accept: "+complaint)
}

// TestServerDescriptors: every descriptor of a connection that has ended is closed.
func TestServerDescriptors(t *testing.T) {
	t.Parallel()
	p, port := startServer(t)
	before := heldBy(t, p).fds
	r := echomux(t, nil, "-n", "50", "127.0.0.1", port, "hello")
	r.wantLine(t, 0, "ok", "connections=50 ok=50 ...", "")
	for range 50 {
		resets(dialServer(t, "127.0.0.1", port))
	}
	eventually(t, func() bool { return heldBy(t, p).fds == before }, func() string {
		return fmt.Sprintf("%d descriptors at first, %d now", before, heldBy(t, p).fds)
	})
}

// TestDevices: standard streams that fail in ways of their own.
func TestDevices(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", echoes)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	p := command(t, "1", nil, "127.0.0.1", port, "hello")
	p.Stdout = full
	r := p.start(t).end(t)
	r.wantLine(t, 6, "failed", "sent=6 returned=6 ...", "standard output: *no space left on device")

	directory, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer directory.Close()
	p = command(t, "1", nil, "127.0.0.1", port)
	p.Stdin = directory
	r = p.start(t).end(t)
	r.wantLine(t, 6, "failed", "sent=0 returned=0 ...", "standard input: *is a directory")

	// The Go runtime opens /dev/null where a standard stream is closed, so nothing can be read.
	closed := []string{"sh", "-c", `exec "$@" <&- >&-`, "sh"}
	r = command(t, "1", closed, "127.0.0.1", port).start(t).end(t)
	r.wantLine(t, 6, "failed", "sent=0 returned=0 ...", "nothing to send: *")
	r = command(t, "1", closed, "127.0.0.1", port, "hello").start(t).end(t)
	if r.status != 0 {
		r.wantLine(t, 6, "failed", "sent=6 returned=6 ...", "standard output: *")
	}
}

// TestZone: an interface by name or number, as part of a literal address.
func TestZone(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "[::1]:0", echoes)
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Skip(err)
	}
	for _, zone := range []string{"lo", strconv.Itoa(lo.Index)} {
		r := echomux(t, nil, "::1%"+zone, port, "hello")
		if r.status != 0 {
			t.Errorf("zone %s of %s: status %d, %q", zone, at, r.status, r.stderr)
		}
	}
}
