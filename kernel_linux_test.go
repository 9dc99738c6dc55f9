package main

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What a Linux kernel lets a test bring about: a full backlog, urgent data, network namespaces, more
// loopback addresses than one, devices that fail. Nothing here is about poller_linux.go's own code.

// fullBacklog is an address on ip where a connect stays pending: the one place in the queue is taken,
// and nobody accepts. With port 0 the kernel chooses one.
func fullBacklog(t testing.TB, ip string, port uint16) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	addr := netip.MustParseAddr(ip)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: addr.As4(), Port: int(port)}); err != nil {
		t.Fatal(err)
	} else if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(addr, uint16(sa.(*unix.SockaddrInet4).Port))
	c, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if extra, err := net.DialTimeout("tcp", at.String(), 50*time.Millisecond); err == nil {
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
	echomux(t, nil, "-connect-timeout", "300ms", "127.0.0.1", portOf(at), "hello").
		want(t, 4, at.String(), `echomux: connect A: timed out sent=0 returned=0`)
	if took := time.Since(start); took < 300*time.Millisecond {
		t.Errorf("the connect timeout took %v", took)
	}
	echomux(t, nil, "-n", "3", "-connect-timeout", "300ms", "127.0.0.1", portOf(at), "hello").
		want(t, 4, at.String(), `echomux: connect A: timed out \(3 connections\)\nechomux: A ok=0 failed=3 sent=0 returned=0`)
}

// TestPendingConnect: connectResult can be asked at any time.
func TestPendingConnect(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	s := p.connecting(fullBacklog(t, "127.0.0.1", 0))
	p.silent("a pending connect")
	for range 3 {
		local, peer, err := p.net.connectResult(s)
		p.want("connectResult", err, errWouldBlock)
		if local.IsValid() || peer.IsValid() {
			t.Errorf("not connected, but from %v to %v", local, peer)
		}
	}
}

// TestSocketOptions: both kinds of sockets send small pieces at once, keep urgent data in the stream
// and are not inherited by other programs.
func TestSocketOptions(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	listener, bound := p.listening("127.0.0.1:0")
	p.must("add", p.add(listener, readable))
	connected := p.connecting(bound)
	p.await(listener, readable)
	accepted, _, err := p.net.accept(listener)
	p.must("accept", err)
	p.open[accepted] = true
	for name, s := range map[string]socket{"connected": connected, "accepted": accepted} {
		for option, at := range map[string][2]int{"TCP_NODELAY": {unix.IPPROTO_TCP, unix.TCP_NODELAY}, "SO_OOBINLINE": {unix.SOL_SOCKET, unix.SO_OOBINLINE}} {
			if on, err := unix.GetsockoptInt(int(s), at[0], at[1]); on != 1 || err != nil {
				t.Errorf("%s of the %s socket: %d, %v", option, name, on, err)
			}
		}
		if flags, err := unix.FcntlInt(uintptr(s), unix.F_GETFD, 0); flags&unix.FD_CLOEXEC == 0 || err != nil {
			t.Errorf("the %s socket is inherited", name)
		}
	}
}

// TestSignalWhileConnecting: a pending connect is interrupted at once.
func TestSignalWhileConnecting(t *testing.T) {
	t.Parallel()
	needSignals(t)
	at := fullBacklog(t, "127.0.0.1", 0)
	p := command(t, "1", nil, "-v", "-connect-timeout", "1h", "127.0.0.1", portOf(at), "hello").start(t)
	p.stderr.await(t, "watching for write only", 1)
	p.signal(t, os.Interrupt)
	r := p.end(t)
	r.stderr = r.lastLine() + "\n"
	r.want(t, 130, at.String(), `echomux: A interrupted sent=0 returned=0`)
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	echomux(t, nil, "127.255.255.255", "7", "hello").
		want(t, 3, "127.255.255.255:7", `echomux: connect A: network is unreachable sent=0 returned=0`)
}

// TestAddresses is a name with several addresses: they are tried in order, each for its share of the
// time, and when all fail the one furthest along decides.
func TestAddresses(t *testing.T) {
	t.Parallel()
	faulty(t, "qemu-mips", "SO_ERROR carries the host's error number")
	const unreachable, refused, full, echo = "127.255.255.255", "127.0.0.12", "127.0.0.13", "127.0.0.14"
	_, port := serve(t, echo+":0", echoes)
	n, _ := strconv.Atoi(port)
	fullBacklog(t, full, uint16(n))
	for _, test := range []struct {
		addrs  []string
		status int
		stderr string
	}{
		{[]string{unreachable, refused, echo}, 0, `echomux: 127\.0\.0\.14:\d+ ok sent=6 .*`},
		{[]string{full, echo}, 0, `echomux: 127\.0\.0\.14:\d+ ok sent=6 .*`},
		{[]string{"::ffff:" + refused, "::ffff:" + echo}, 0, `echomux: 127\.0\.0\.14:\d+ ok sent=6 .*`},
		{[]string{full, refused}, 3, `echomux: connect 127\.0\.0\.13:\d+: timed out; connect 127\.0\.0\.12:\d+: connection refused sent=0 returned=0`},
		{[]string{refused, full}, 3, `echomux: connect 127\.0\.0\.12:\d+: connection refused; connect 127\.0\.0\.13:\d+: timed out sent=0 returned=0`},
		{[]string{full, unreachable}, 4, `echomux: connect 127\.0\.0\.13:\d+: timed out; connect 127\.255\.255\.255:\d+: network is unreachable sent=0 returned=0`},
		{[]string{refused, unreachable}, 3, `echomux: connect 127\.0\.0\.12:\d+: connection refused; connect 127\.255\.255\.255:\d+: network is unreachable sent=0 returned=0`},
	} {
		t.Run(strings.Join(test.addrs, " "), func(t *testing.T) {
			t.Parallel()
			o, err := parse([]string{"-connect-timeout", "3s", "several.test", port, "hello"})
			if err != nil {
				t.Fatal(err)
			}
			p, err := newPoller()
			if err != nil {
				t.Fatal(err)
			}
			start, stderr := time.Now(), new(output)
			l := newLoop(o, p, system{}, func() time.Duration { return time.Since(start) })
			l.stdout, l.stderr = io.Discard, stderr
			l.lookup = func(host, family string, _ time.Duration) (addrs []netip.Addr, err error) {
				if host != "several.test" || family != "ip" {
					t.Errorf("looked up %s in %s", host, family)
				}
				for _, a := range test.addrs {
					addrs = append(addrs, netip.MustParseAddr(a))
				}
				return addrs, nil
			}
			l.run()
			l.close()
			result{l.report(), "", stderr.String()}.want(t, test.status, "", test.stderr)
			if took := time.Since(start); test.status == 0 && took > 2900*time.Millisecond {
				t.Errorf("it took %v: one address has had the time of all", took)
			}
		})
	}
}

// TestUrgentData: a byte sent as urgent stays in the stream, in its place, in both directions.
func TestUrgentData(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		reads(c, 6)
		io.WriteString(c, "he")
		sendUrgent(t, c, "l")
		io.WriteString(c, "lo\n")
		ignores(c)
	})
	r := echomux(t, nil, "127.0.0.1", port, "hello")
	r.want(t, 0, at, `echomux: A ok sent=6 returned=6 .*`)
	r.wantStdout(t, "hello\n")

	_, port = startServer(t)
	c := dialServer(t, "127.0.0.1", port)
	io.WriteString(c, "he")
	sendUrgent(t, c, "l")
	io.WriteString(c, "lo\n")
	c.CloseWrite()
	if got, err := io.ReadAll(c); string(got) != "hello\n" {
		t.Errorf("the server returned %q, %v", got, err)
	}
}

func sendUrgent(t testing.TB, c *net.TCPConn, text string) {
	raw, err := c.SyscallConn()
	if err == nil {
		var failed error
		err = raw.Write(func(fd uintptr) bool {
			failed = unix.Send(int(fd), []byte(text), unix.MSG_OOB)
			return failed != unix.EAGAIN
		})
		if err == nil {
			err = failed
		}
	}
	if err != nil {
		t.Errorf("urgent data: %v", err)
	}
}

func init() {
	// narrow: in a network namespace of one's own, ephemeral ports are 40000 and 40001.
	roles["narrow"] = func() {
		raiseLoopback()
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 40001"), 0); err != nil {
			fmt.Println(err)
			os.Exit(99)
		}
	}
}

func raiseLoopback() {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		var lo *unix.Ifreq
		if lo, err = unix.NewIfreq("lo"); err == nil {
			lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
			err = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
		}
		unix.Close(fd)
	}
	if err != nil {
		fmt.Println("loopback:", err)
		os.Exit(99)
	}
}

// TestSelfConnect: where the only free local port is the one asked for, a connect without any
// listener meets itself, and would echo perfectly.
func TestSelfConnect(t *testing.T) {
	t.Parallel()
	if os.Getenv("ECHOMUX_EXEC") != "" {
		t.Skip("the emulator cannot make a network namespace")
	}
	p := command(t, "narrow", nil, "127.0.0.1", "40000", "hello")
	p.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := p.Start(); err != nil {
		p.stop()
		t.Skipf("no network namespace (it takes root): %v", err)
	}
	go func() { p.Wait(); close(p.over) }()
	t.Cleanup(func() { p.stop(); <-p.over })
	r := p.end(t)
	if r.status == 99 {
		t.Skipf("the namespace cannot be set up: %s", r.stdout)
	}
	r.want(t, 3, "127.0.0.1:40000", `echomux: connect A: connection refused \(connected to itself\) sent=0 returned=0`)
	r.wantStdout(t, "")
}

// limited is the launcher of a process that may hold n descriptors.
func limited(n int) []string {
	return []string{"sh", "-c", fmt.Sprintf(`ulimit -n %d; exec "$@"`, n), "sh"}
}

// TestDescriptorLimit: more connections than descriptors is a local failure that names the limit.
func TestDescriptorLimit(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", echoes)
	r := command(t, "1", limited(30), "-n", "100", "127.0.0.1", port, "hello").start(t).end(t)
	if r.status != 6 || !strings.Contains(r.stderr, "too many open files (the limit is 30)") ||
		!strings.Contains(r.lastLine(), " failed=") || len(strings.Split(r.stderr, "\n")) > 5 {
		t.Errorf("status %d: %q", r.status, r.stderr)
	}
}

// TestServerDescriptorLimit: a server out of descriptors neither dies nor spins, and serves again
// when it has some.
func TestServerDescriptorLimit(t *testing.T) {
	t.Parallel()
	port := port0(t)
	p := command(t, "1", limited(30), "-v", "-serve", "127.0.0.1", port).start(t)
	p.stderr.await(t, "listening", 1)
	var held []net.Conn
	for range 40 {
		held = append(held, dialServer(t, "127.0.0.1", port))
	}
	const complaint, pause = "too many open files (the limit is 30)", "watching for nothing"
	p.stderr.await(t, pause, 3)
	before := strings.Count(p.stderr.String(), pause)
	time.Sleep(500 * time.Millisecond)
	if more := strings.Count(p.stderr.String(), pause) - before; more > 20 {
		t.Errorf("%d pauses in half a second", more)
	}
	if n := strings.Count(p.stderr.String(), complaint); n != 1 {
		t.Errorf("%d complaints", n)
	}
	for _, c := range held {
		c.Close()
	}
	echomux(t, nil, "127.0.0.1", port, "hello").want(t, 0, "127.0.0.1:"+port, `echomux: A ok .*`)
}

// TestServerDescriptors: every descriptor of a connection that has ended is closed.
func TestServerDescriptors(t *testing.T) {
	t.Parallel()
	p, port := startServer(t, "-v")
	count := func() int {
		fds, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(p.Process.Pid), "fd"))
		if err != nil {
			t.Skip(err)
		}
		return len(fds)
	}
	p.stderr.await(t, "closed", 1) // startServer's connection
	before := count()
	echomux(t, nil, "-n", "50", "127.0.0.1", port, "hello").want(t, 0, "127.0.0.1:"+port, `echomux: A ok=50 .*`)
	for range 50 {
		resets(dialServer(t, "127.0.0.1", port))
	}
	eventually(t, func() bool { return count() == before }, func() string {
		return fmt.Sprintf("%d descriptors at first, %d now", before, count())
	})
}

// TestDevices: standard streams that fail in ways of their own.
func TestDevices(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "127.0.0.1:0", echoes)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	p := command(t, "1", nil, "127.0.0.1", port, "hello")
	p.Stdout = full
	p.start(t).end(t).want(t, 6, at, `echomux: standard output: .*no space left on device sent=6 returned=\d`)

	directory, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer directory.Close()
	p = command(t, "1", nil, "127.0.0.1", port)
	p.Stdin = directory
	p.start(t).end(t).want(t, 6, at, `echomux: standard input: .*is a directory sent=0 returned=0`)

	p = command(t, "1", []string{"sh", "-c", `exec "$@" <&- >&-`, "sh"}, "127.0.0.1", port)
	p.start(t).end(t).want(t, 0, at, `echomux: A ok sent=0 returned=0 .*`)
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
