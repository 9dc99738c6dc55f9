package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What each system's poller, sockets and the rest have to pass, whatever they are made of. Package
// net is at the other end. What only one system lets a test see is in seam_<os>_test.go.

// platform is the system under test.
type platform struct {
	testing.TB
	poller
	net sockets

	// watched is what each open socket is watched for. They are closed at the end; a number closed
	// twice could be another test's.
	watched map[socket]readiness
}

// contract is all that is tested of a system's poller and sockets. wine says where that emulator is
// at fault.
var contract = []struct {
	name string
	test func(platform)
	wine string
}{
	{"wait: timeout", waitTimeout, ""},
	{"wait: a wake-up before it", wakeBefore, ""},
	{"wait: a wake-up during it", wakeDuring, ""},
	{"wait: a wake-up beside events", wakeBeside, ""},
	{"wait: no more events than there is room for", waitRoom, ""},
	{"wait: many that stay readable hide nobody", waitFair, ""},
	{"readable: bytes, level-triggered", readableBytes, ""},
	{"readable: EOF", readableEOF, ""},
	{"readable: bytes that came before it was watched", readableBefore, ""},
	{"writable: room, level-triggered", writableRoom, ""},
	{"both directions", bothDirections, ""},
	{"change: from one to another", changeWant, ""},
	{"change: to nothing", changeToNothing, ""},
	{"hang-up: only the readiness asked for", hangUp, ""},
	{"hang-up: half-closed by both", hangUpBoth, ""},
	{"a new socket is not the old one", reusedSocket, ""},

	{"connect", connectNames, ""},
	{"connect: IPv6", connectIPv6, ""},
	{"connect: refused", connectRefused, ""},
	{"connect: reset before it is looked at", connectReset, ""},
	{"connect: pending", connectPending, ""},
	{"connect: from a local address", connectFrom, ""},
	{"connect: from an address that is not ours", connectFromElsewhere, ""},
	{"read: would block", readWouldBlock, ""},
	{"read: bytes, then EOF for ever", readEOF, ""},
	{"read: reset", readReset, "a reset reads as EOF"},
	{"write: until it would block, and on", writeAll, ""},
	{"write: reset", writeReset, ""},
	{"pendingError", pendingErrors, ""},
	{"path: what is not acknowledged, our FIN included", pathCounts, ""},
	{"closeWrite", closeWriteHalf, ""},
	{"close", closeSocket, ""},
	{"listen and accept", acceptAll, ""},
	{"listen: again, with connections in TIME_WAIT", listenAgain, ""},
	{"options of sockets", socketOptions, ""},
	{"listen: an address in use", listenInUse, ""},
	{"listen: an address that is not ours", listenElsewhere, ""},
	{"listen: both families on one port", listenBoth, ""},
}

func TestSeam(t *testing.T) {
	t.Parallel()
	for _, part := range contract {
		t.Run(part.name, func(t *testing.T) {
			t.Parallel()
			if part.wine != "" {
				faulty(t, "wine", part.wine)
			}
			part.test(newPlatform(t))
		})
	}
}

func newPlatform(t testing.TB) platform {
	k, err := newPoller()
	if err != nil {
		t.Fatal(err)
	}
	p := platform{t, k, system{}, make(map[socket]readiness)}
	t.Cleanup(func() {
		for s := range p.watched {
			p.shut(s)
		}
		p.must("close of the poller", k.close())
	})
	return p
}

func (p platform) must(what string, err error) {
	p.Helper()
	if err != nil {
		p.Fatalf("%s: %v", what, err)
	}
}

func (p platform) want(what string, got, want error) {
	p.Helper()
	if got != want {
		p.Fatalf("%s: %v, want %v", what, got, want)
	}
}

// watch has s watched for want from now on.
func (p platform) watch(s socket, want readiness) {
	p.Helper()
	was := p.watched[s]
	if was == want {
		return
	}
	p.must("change", p.change(s, was, want))
	p.watched[s] = want
}

// failedCall is a call that failed, by the name that its error has to say.
type failedCall struct {
	call string
	err  error
}

// callsOf are the calls that every system makes on a socket; this one is not open. The names of some
// are the system's.
func callsOf(none socket, nonblock, read, write, closing string) []failedCall {
	var k system
	_, _, resultErr := k.connectResult(none)
	_, readErr := k.read(none, make([]byte, 1))
	_, writeErr := k.write(none, make([]byte, 1))
	_, _, acceptErr := k.accept(none)
	return []failedCall{
		{nonblock, k.setNonblock(none)},
		{"connect", k.connect(none, netip.MustParseAddrPort("127.0.0.1:9"))},
		{"getsockopt", resultErr},
		{read, readErr},
		{write, writeErr},
		{"getsockopt", k.pendingError(none)},
		{"shutdown", k.closeWrite(none)},
		{"accept", acceptErr},
		{closing, k.close(none)},
	}
}

// shut closes s, while no child of another test has its descriptor too, as it has from its fork to
// its exec: that would keep the socket in the poller.
func (p platform) shut(s socket) {
	p.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	p.forget(s)
	delete(p.watched, s)
	p.must("close", p.net.close(s))
}

// opened is a socket for the address to, in non-blocking mode.
func (p platform) opened(to netip.AddrPort, from netip.Addr) socket {
	p.Helper()
	s, err := p.net.openSocket(to, from)
	p.must("openSocket", err)
	p.watched[s] = 0
	p.must("setNonblock", p.net.setNonblock(s))
	return s
}

// connecting is a socket on its way to the address to.
func (p platform) connecting(to netip.AddrPort) socket {
	p.Helper()
	s := p.opened(to, netip.Addr{})
	p.must("connect", p.net.connect(s, to))
	p.watch(s, writable)
	return s
}

// result waits until s has been connected, or has not.
func (p platform) result(s socket) (local, peer netip.AddrPort, err error) {
	p.Helper()
	for {
		p.await(s, writable)
		local, peer, err = p.net.connectResult(s)
		if err != errWouldBlock {
			return local, peer, err
		}
	}
}

// listener is one of package net.
func (p platform) listener() (server *net.TCPListener, at netip.AddrPort) {
	p.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	p.must("net.Listen", err)
	p.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener), netip.MustParseAddrPort(l.Addr().String())
}

// pair is a connected socket, out of the poller, and its peer of package net.
func (p platform) pair() (socket, *net.TCPConn) {
	p.Helper()
	server, at := p.listener()
	defer server.Close()
	s := p.connecting(at)
	c, err := server.AcceptTCP()
	p.must("net.Accept", err)
	p.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(hang))
	_, _, err = p.result(s)
	p.must("connectResult", err)
	p.watch(s, 0)
	return s, c
}

// poll waits once for up to d and returns what is ready; one socket can be in two events.
func (p platform) poll(d time.Duration) map[socket]readiness {
	p.Helper()
	ready := make(map[socket]readiness)
	events := make([]event, 16)
	n, err := p.wait(events, int(d/time.Millisecond))
	p.must("wait", err)
	for _, ev := range events[:n] {
		ready[ev.socket] |= ev.ready
	}
	return ready
}

// await waits until all of want is ready in s, and returns what was reported with it.
func (p platform) await(s socket, want readiness) readiness {
	p.Helper()
	end := time.Now().Add(hang)
	for time.Now().Before(end) {
		ready := p.poll(time.Second)[s]
		if ready&want == want {
			return ready
		}
	}
	p.Fatalf("%v was never ready", want)
	return 0
}

// only waits until want is ready in s, and checks that it is reported for nothing else.
func (p platform) only(s socket, want readiness) {
	p.Helper()
	ready := p.await(s, want)
	if ready != want {
		p.Errorf("watched for %v, ready for %v", want, ready)
	}
}

// stirs waits a moment for anything to be ready.
func (p platform) stirs() (ready map[socket]readiness) {
	p.Helper()
	end := time.Now().Add(60 * time.Millisecond)
	for len(ready) == 0 && time.Now().Before(end) {
		ready = p.poll(20 * time.Millisecond)
	}
	return ready
}

// silent checks that nothing is ready, and goes on so. A readiness for writing may be spurious, so
// this is for reading alone.
func (p platform) silent(what string) {
	p.Helper()
	for s, ready := range p.stirs() {
		p.Fatalf("%s: socket %v is ready for %v", what, s, ready)
	}
}

// arrived gives what the peer has sent the time to come.
func (p platform) arrived() { time.Sleep(50 * time.Millisecond) }

func (p platform) send(c net.Conn, text string) {
	p.Helper()
	_, err := io.WriteString(c, text)
	p.must("the peer's write", err)
}

// receive reads one piece from s, which is ready.
func (p platform) receive(s socket) string {
	p.Helper()
	buf := make([]byte, 100)
	n, err := p.net.read(s, buf)
	p.must("read", err)
	return string(buf[:n])
}

func waitTimeout(p platform) {
	start := time.Now()
	waits := 0
	for time.Since(start) < 200*time.Millisecond {
		waits++
		ready := p.poll(100 * time.Millisecond)
		if len(ready) > 0 {
			p.Fatalf("nothing is watched, but %v is ready", ready)
		}
	}
	if waits > 20 { // spurious returns are allowed, spinning is not
		p.Errorf("%d waits of 100 ms in 200 ms", waits)
	}
	start = time.Now()
	p.poll(0)
	if took := time.Since(start); took > time.Second {
		p.Errorf("a wait of 0 ms took %v", took)
	}
}

// quiet checks that waits time out again: no wake-up is left.
func (p platform) quiet() {
	p.Helper()
	for range 5 { // a spurious return is allowed
		start := time.Now()
		p.poll(100 * time.Millisecond)
		if time.Since(start) > 50*time.Millisecond {
			return
		}
	}
	p.Error("a wake-up is reported for ever")
}

func wakeBefore(p platform) {
	p.wake()
	ready := p.poll(hang)
	if len(ready) > 0 {
		p.Errorf("the wake-up is an event: %v", ready)
	}
	p.quiet()
	p.wake()
	n, err := p.wait(make([]event, 1), -1)
	if n != 0 || err != nil {
		p.Errorf("%d events, %v, of a wait without a limit", n, err)
	}
	for range 3 {
		p.wake()
	}
	for range 3 {
		p.poll(100 * time.Millisecond)
	}
	p.quiet()
}

func wakeDuring(p platform) {
	for range 20 {
		go func() {
			time.Sleep(5 * time.Millisecond)
			p.wake()
		}()
		start := time.Now()
		events := make([]event, 1)
		n, err := p.wait(events, int(hang/time.Millisecond))
		if n != 0 || err != nil || time.Since(start) > hang/2 {
			p.Fatalf("%d events, %v, after %v", n, err, time.Since(start))
		}
	}
	time.Sleep(20 * time.Millisecond) // a spurious return may have come before the last one
	p.poll(0)
	p.quiet()
}

func wakeBeside(p platform) {
	s, c := p.pair()
	p.watch(s, readable)
	p.send(c, "x")
	p.arrived()
	p.wake()
	events := make([]event, 1) // no room for more than the socket
	end := time.Now().Add(hang)
	n := 0
	for n == 0 && time.Now().Before(end) {
		found, err := p.wait(events, 1000)
		p.must("wait", err)
		n = found
	}
	if n == 0 {
		p.Fatal("the wake-up hides the socket")
	}
	if events[0] != (event{s, readable}) {
		p.Errorf("%v", events[0])
	}
	p.receive(s)
	p.poll(100 * time.Millisecond) // the wake-up, if it is still there
	p.quiet()
}

// waitRoom has ten sockets ready and room for three: nothing is lost.
func waitRoom(p platform) {
	waiting := make(map[socket]bool)
	for range 10 {
		s, c := p.pair()
		p.send(c, "x")
		p.watch(s, readable)
		waiting[s] = true
	}
	events := make([]event, 3)
	end := time.Now().Add(hang)
	for len(waiting) > 0 && time.Now().Before(end) {
		n, err := p.wait(events, 1000)
		p.must("wait", err)
		for _, ev := range events[:n] {
			if !waiting[ev.socket] || ev.ready != readable {
				p.Fatalf("unexpected %v", ev)
			}
			delete(waiting, ev.socket)
			p.receive(ev.socket)
		}
	}
	if len(waiting) > 0 {
		p.Errorf("%d sockets were never reported", len(waiting))
	}
}

// waitFair has ten sockets that stay readable, and room for three: one that is writable and one
// that could not connect are reported all the same, and soon.
func waitFair(p platform) {
	faulty(p, "qemu-mips", "SO_ERROR carries the host's error number")
	for range 10 {
		s, c := p.pair()
		p.send(c, "x")
		p.watch(s, readable)
	}
	p.arrived()
	for range 5 {
		roomy, _ := p.pair()
		p.watch(roomy, readable|writable)
		p.soon(roomy)
		p.watch(roomy, 0)
		at, _ := closedPort(p)
		refused := p.connecting(netip.MustParseAddrPort(at))
		p.arrived()
		p.soon(refused)
		p.watch(refused, 0)
	}
}

// soon checks that s is reported as writable within a few waits. They end at once.
func (p platform) soon(s socket) {
	p.Helper()
	events := make([]event, 3)
	for range 12 {
		n, err := p.wait(events, 1000)
		p.must("wait", err)
		for _, ev := range events[:n] {
			if ev.socket == s && ev.ready&writable != 0 {
				return
			}
		}
	}
	p.Errorf("socket %v is hidden by those that stay readable", s)
}

func readableBytes(p platform) {
	s, c := p.pair()
	p.watch(s, readable)
	p.silent("before any byte")
	p.send(c, "x")
	for range 3 { // level-triggered: as long as it is not read
		p.only(s, readable)
	}
	got := p.receive(s)
	if got != "x" {
		p.Errorf("read %q", got)
	}
	p.silent("after the read")
	p.send(c, "y")
	p.await(s, readable)
}

func readableEOF(p platform) {
	s, c := p.pair()
	p.watch(s, readable)
	c.CloseWrite()
	for range 3 {
		p.only(s, readable)
	}
	_, err := p.net.read(s, make([]byte, 1))
	p.want("read", err, io.EOF)
}

func readableBefore(p platform) {
	s, c := p.pair()
	p.send(c, "x")
	p.arrived()
	p.watch(s, readable)
	p.await(s, readable)
}

func writableRoom(p platform) {
	s, c := p.pair()
	p.watch(s, writable)
	for range 3 {
		p.only(s, writable)
	}
	p.fill(s, func() bool { return len(p.stirs()) == 0 })
	go io.Copy(io.Discard, c)
	p.await(s, writable)
}

// fill writes until s takes no more, also while full looks whether it behaves so, and returns how
// much that was. Full buffers are no lasting state: a kernel that probes the closed window may
// find out that it can grow them.
func (p platform) fill(s socket, full func() bool) (total int) {
	p.Helper()
	for range 20 {
		total += p.fillOnce(s)
		if full() {
			return total
		}
	}
	p.Fatalf("socket %v, with %d bytes in its buffers, is not as if they were full", s, total)
	return 0
}

func (p platform) fillOnce(s socket) (total int) {
	p.Helper()
	chunk := make([]byte, 64<<10)
	refused := 0
	for refused < 10 {
		n, err := p.net.write(s, chunk)
		total += n
		switch {
		case total > 1<<30:
			p.Fatal("a write never blocks")
		case n < 0 || n > len(chunk):
			p.Fatalf("wrote %d", n)
		case err == errWouldBlock:
			refused++
			time.Sleep(5 * time.Millisecond) // bytes may be on their way to the peer's buffer
		case err != nil:
			p.Fatalf("write: %v", err)
		}
	}
	return total
}

func bothDirections(p platform) {
	s, c := p.pair()
	p.watch(s, readable|writable)
	p.only(s, writable)
	p.send(c, "x")
	p.arrived()
	p.await(s, readable|writable)
	p.fill(s, func() bool { return p.await(s, readable) == readable })
}

func changeWant(p platform) {
	s, c := p.pair()
	p.send(c, "x")
	p.arrived()
	p.watch(s, readable)
	p.await(s, readable)
	const both = readable | writable
	for _, want := range []readiness{writable, readable, both, writable, both, readable} {
		p.watch(s, want)
		for range 2 {
			p.only(s, want)
		}
	}
	p.receive(s)
	p.silent("changed to readable, and read")
}

func changeToNothing(p platform) {
	s, c := p.pair()
	other, d := p.pair()
	p.watch(s, readable|writable)
	p.watch(other, readable)
	p.await(s, writable)
	p.watch(s, 0)
	p.send(c, "x")
	p.silent("watched for nothing, with bytes")
	c.Close()
	p.silent("watched for nothing, and hung up") // or it would be reported for ever
	p.send(d, "y")
	p.await(other, readable)
	p.watch(s, readable)
	p.await(s, readable)
}

// hangUp: a reset is reported as what was asked for and as nothing else; the next call names it.
// What a connection is watched for has changed by then, as it does in an exchange.
func hangUp(p platform) {
	for _, want := range []readiness{readable, writable, readable | writable} {
		s, c := p.pair()
		p.watch(s, readable)
		p.fill(s, func() bool { // or a socket would be writable anyway
			p.watch(s, want)
			return len(p.stirs()) == 0
		})
		resets(c)
		for range 3 {
			p.only(s, want)
		}
		p.watch(s, 0)
	}
}

// hangUpBoth: both have half-closed and all was read. The kernel calls it a hang-up.
func hangUpBoth(p platform) {
	for _, want := range []readiness{readable, writable, readable | writable} {
		s, c := p.pair()
		p.must("closeWrite", p.net.closeWrite(s))
		c.CloseWrite()
		io.Copy(io.Discard, c)
		p.watch(s, want)
		p.only(s, want)
		p.watch(s, 0)
	}
}

// reusedSocket: kernels give the number of a closed socket to the next one, which starts clean.
func reusedSocket(p platform) {
	for range 5 {
		s, c := p.pair()
		p.watch(s, readable|writable)
		p.await(s, writable)
		p.send(c, "x")
		p.shut(s)
		next, _ := p.pair()
		p.watch(next, readable)
		p.silent("a new socket")
		p.watch(next, 0)
	}
}

func connectNames(p platform) {
	server, at := p.listener()
	s := p.connecting(at)
	local, peer, err := p.result(s)
	p.must("connectResult", err)
	c, err := server.Accept()
	p.must("net.Accept", err)
	defer c.Close()
	if peer != at || local.String() != c.RemoteAddr().String() {
		p.Errorf("from %v to %v; for the peer, %v to %v",
			local, peer, c.RemoteAddr(), c.LocalAddr())
	}
	p.send(c, "x")
	p.watch(s, readable)
	p.await(s, readable)
	got := p.receive(s)
	if got != "x" {
		p.Errorf("read %q", got)
	}
}

func connectIPv6(p platform) {
	server, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		p.Skipf("no IPv6 here: %v", err)
	}
	defer server.Close()
	at := netip.MustParseAddrPort(server.Addr().String())
	local, peer, err := p.result(p.connecting(at))
	if err != nil || peer != at || local.Addr() != at.Addr() || local.Port() == 0 {
		p.Errorf("local %v, peer %v, %v", local, peer, err)
	}
}

func connectRefused(p platform) {
	faulty(p, "qemu-mips", "SO_ERROR carries the host's error number")
	at, _ := closedPort(p)
	_, _, err := p.result(p.connecting(netip.MustParseAddrPort(at)))
	p.want("connectResult", err, errRefused)
}

// connectReset: it was connected, and reset before anybody asked. Where the kernel keeps the error
// for the next read instead, connecting has succeeded.
func connectReset(p platform) {
	faulty(p, "qemu-mips", "SO_ERROR carries the host's error number")
	server, at := p.listener()
	s := p.connecting(at)
	c, err := server.AcceptTCP()
	p.must("net.Accept", err)
	resets(c)
	p.arrived()
	_, _, err = p.result(s)
	if err != nil {
		p.want("connectResult", err, errReset)
	}
}

// fullBacklog is where a connect stays pending: the queue is full, and nobody accepts.
func (p platform) fullBacklog() netip.AddrPort {
	p.Helper()
	server, at := p.listener()
	raw, err := server.SyscallConn()
	p.must("SyscallConn", err)
	p.must("Control", raw.Control(shortenBacklog))
	for range 300 { // XNU makes at least 128 of it
		c, err := net.DialTimeout("tcp", at.String(), 200*time.Millisecond)
		if err != nil {
			return at
		}
		p.Cleanup(func() { c.Close() })
	}
	p.Skip("this kernel's queue has no end")
	return at
}

// connectPending: connectResult can be asked at any time, before any readiness too, and says so
// when there is no answer.
func connectPending(p platform) {
	to := p.fullBacklog()
	s := p.opened(to, netip.Addr{})
	p.must("connect", patientConnect(s, to))
	for range 3 {
		local, peer, err := p.net.connectResult(s)
		p.want("connectResult", err, errWouldBlock)
		if local.IsValid() || peer.IsValid() {
			p.Errorf("not connected, but from %v to %v", local, peer)
		}
	}
	p.watch(s, writable)
	reports := 0
	end := time.Now().Add(500 * time.Millisecond)
	for time.Now().Before(end) {
		reports += len(p.poll(100 * time.Millisecond))
	}
	if reports > 1 { // one may be spurious
		p.Errorf("a pending connect is reported %d times in half a second", reports)
	}
	_, _, err := p.net.connectResult(s)
	p.want("connectResult", err, errWouldBlock)
}

// connectFrom: a local address is kept, and its port chosen.
func connectFrom(p platform) {
	server, to := p.listener()
	from := netip.MustParseAddr("127.0.0.1")
	if runtime.GOOS != "darwin" || emulated() { // macOS has one address on loopback
		from = netip.MustParseAddr("127.0.0.5")
	}
	for range 2 {
		s := p.opened(to, from)
		p.must("connect", p.net.connect(s, to))
		p.watch(s, writable)
		local, _, err := p.result(s)
		p.must("connectResult", err)
		c, err := server.Accept()
		p.must("net.Accept", err)
		defer c.Close()
		if local.Addr() != from || local.Port() == 0 || local.String() != c.RemoteAddr().String() {
			p.Errorf("asked for %v, from %v, for the peer %v", from, local, c.RemoteAddr())
		}
	}
}

// emulated: XNU's backend runs on another kernel.
func emulated() bool { return os.Getenv("ECHOMUX_RIG") == "kqueue-emulation" }

func connectFromElsewhere(p platform) {
	_, to := p.listener()
	s, err := p.net.openSocket(to, netip.MustParseAddr("192.0.2.1")) // RFC 5737: nobody's
	if err == nil {
		p.net.close(s)
	}
	p.want("openSocket", err, errNoAddress)
}

func readWouldBlock(p platform) {
	s, _ := p.pair()
	n, err := p.net.read(s, make([]byte, 10))
	p.want("read", err, errWouldBlock)
	if n != 0 {
		p.Errorf("read %d bytes", n)
	}
}

func readEOF(p platform) {
	s, c := p.pair()
	p.watch(s, readable)
	p.send(c, "hello")
	c.CloseWrite()
	var got strings.Builder
	for got.Len() < 5 {
		p.await(s, readable)
		buf := make([]byte, 2) // and no more: the rest must wait
		n, err := p.net.read(s, buf)
		if n == 0 || err != nil {
			p.Fatalf("read %d bytes, %v, after %q", n, err, got.String())
		}
		got.Write(buf[:n])
	}
	if got.String() != "hello" {
		p.Errorf("read %q", got.String())
	}
	p.await(s, readable)
	for range 3 {
		n, err := p.net.read(s, make([]byte, 10))
		if n != 0 || err != io.EOF {
			p.Errorf("read %d bytes, %v, want EOF", n, err)
		}
	}
}

func readReset(p platform) {
	s, c := p.pair()
	p.watch(s, readable)
	resets(c)
	p.await(s, readable)
	n, err := p.net.read(s, make([]byte, 10))
	p.want("read", err, errReset)
	if n != 0 {
		p.Errorf("read %d bytes", n)
	}
}

func writeReset(p platform) {
	s, c := p.pair()
	p.watch(s, readable|writable)
	resets(c)
	p.await(s, readable)
	for range 100 { // the first ones may still be taken
		n, err := p.net.write(s, []byte("x"))
		if err != nil {
			p.want("write", err, errReset)
			if n != 0 {
				p.Errorf("wrote %d bytes", n)
			}
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	p.Error("a hundred writes to a reset connection succeed")
}

// pendingErrors: a reset that no call has reported yet is reported once. Winsock keeps it for the
// next read.
func pendingErrors(p platform) {
	faulty(p, "qemu-mips", "SO_ERROR carries the host's error number")
	s, c := p.pair()
	p.must("pendingError", p.net.pendingError(s))
	p.watch(s, readable)
	resets(c)
	p.await(s, readable)
	err := p.net.pendingError(s)
	if err != nil || runtime.GOOS != "windows" {
		p.want("pendingError", err, errReset)
	}
	p.must("pendingError, asked again", p.net.pendingError(s))
}

// pathCounts has more on its way than the peer takes, so our FIN cannot be acknowledged either.
func pathCounts(p platform) {
	s, c := p.pair()
	queued, retransmits := p.net.path(s)
	if runtime.GOOS == "windows" {
		if queued != -1 || retransmits != -1 {
			p.Errorf("%d and %d of a kernel that says neither", queued, retransmits)
		}
		return
	}
	if queued != 0 || retransmits != 0 {
		p.Errorf("%d bytes of a new connection, %d segments again", queued, retransmits)
	}
	p.fill(s, func() bool {
		before, _ := p.net.path(s)
		p.arrived()
		queued, _ = p.net.path(s)
		return queued == before
	})
	if queued < 1000 {
		p.Errorf("only %d bytes wait", queued)
	}
	end := time.Now().Add(hang)
	for same := 0; same < 10 && time.Now().Before(end); same++ { // the peer's kernel may find more room
		time.Sleep(20 * time.Millisecond)
		before := queued
		queued, _ = p.net.path(s)
		if queued != before {
			same = 0
		}
	}
	p.must("closeWrite", p.net.closeWrite(s))
	after, _ := p.net.path(s)
	if after != queued+1 {
		p.Errorf("%d bytes and our FIN are %d", queued, after)
	}
	io.Copy(io.Discard, c)
	end = time.Now().Add(hang)
	for after != 0 && time.Now().Before(end) {
		time.Sleep(10 * time.Millisecond)
		after, retransmits = p.net.path(s)
	}
	if after != 0 || retransmits < 0 {
		p.Errorf("all has arrived, and still %d wait; %d segments again", after, retransmits)
	}
}

// writeAll sends more than the buffers hold. Short counts are normal, and nothing is lost.
func writeAll(p platform) {
	s, c := p.pair()
	var more int
	total := p.fill(s, func() bool {
		n, err := p.net.write(s, []byte("x"))
		more += n
		return n == 0 && err == errWouldBlock
	})
	total += more
	got := make(chan []byte)
	go func() {
		all, _ := io.ReadAll(c)
		got <- all
	}()
	p.watch(s, writable)
	data := noise(4 << 20)
	rest := data
	for len(rest) > 0 {
		p.await(s, writable)
		n, err := p.net.write(s, rest)
		if err != nil && err != errWouldBlock {
			p.Fatalf("write: %v", err)
		}
		rest = rest[n:]
	}
	p.must("closeWrite", p.net.closeWrite(s))
	all := <-got
	if len(all) != total+len(data) || !bytes.Equal(all[total:], data) {
		p.Errorf("%d bytes arrived, want %d and the same", len(all), total+len(data))
	}
}

func closeWriteHalf(p platform) {
	s, c := p.pair()
	n, err := p.net.write(s, []byte("x"))
	if n != 1 || err != nil {
		p.Fatalf("wrote %d bytes, %v", n, err)
	}
	p.must("closeWrite", p.net.closeWrite(s))
	all, err := io.ReadAll(c)
	if string(all) != "x" || err != nil {
		p.Errorf("the peer read %q, %v", all, err)
	}
	p.send(c, "still readable")
	p.watch(s, readable)
	p.await(s, readable)
	got := p.receive(s)
	if got != "still readable" {
		p.Errorf("read %q", got)
	}
}

func closeSocket(p platform) {
	s, c := p.pair()
	p.shut(s)
	n, err := c.Read(make([]byte, 1))
	if n != 0 || err != io.EOF {
		p.Errorf("the peer read %d bytes, %v", n, err)
	}
	err = p.net.close(^socket(0) >> 1)
	if err == nil {
		p.Error("closing what is no socket succeeds")
	}
}

func (p platform) listening(at string) (socket, netip.AddrPort) {
	p.Helper()
	s, bound, err := p.net.listen(netip.MustParseAddrPort(at))
	p.must("listen", err)
	p.watched[s] = 0
	return s, bound
}

func acceptAll(p platform) {
	s, bound := p.listening("127.0.0.1:0")
	if bound.Addr().String() != "127.0.0.1" || bound.Port() == 0 {
		p.Errorf("bound to %v", bound)
	}
	_, _, err := p.net.accept(s)
	p.want("accept", err, errWouldBlock)
	p.watch(s, readable)
	p.silent("before any connection")
	accepted := make(map[string]socket)
	for range 3 {
		c, err := net.Dial("tcp", bound.String())
		p.must("net.Dial", err)
		defer c.Close()
		accepted[c.LocalAddr().String()] = 0
		p.send(c, c.LocalAddr().String())
	}
	for range accepted {
		p.await(s, readable)
		a, peer, err := p.net.accept(s)
		p.must("accept", err)
		p.watched[a] = 0
		before, ours := accepted[peer.String()]
		if !ours || before != 0 {
			p.Fatalf("accepted %v", peer)
		}
		accepted[peer.String()] = a
	}
	_, _, err = p.net.accept(s)
	p.want("accept", err, errWouldBlock)
	p.silent("after the last connection")
	p.watch(s, 0)
	for peer, a := range accepted {
		p.sends(a, peer)
	}
}

// sends checks that the peer of an accepted socket has sent text and no more, and that to read on
// does not block.
func (p platform) sends(a socket, text string) {
	p.Helper()
	p.watch(a, readable)
	p.await(a, readable)
	got := p.receive(a)
	if got != text {
		p.Errorf("%s sent %q", text, got)
	}
	_, err := p.net.read(a, make([]byte, 1))
	p.want("read", err, errWouldBlock)
}

func listenInUse(p platform) {
	_, bound := p.listening("127.0.0.1:0")
	s, _, err := p.net.listen(bound)
	if err == nil {
		p.net.close(s)
		p.Fatal("two listen at one address")
	}
	var call *os.SyscallError
	if !errors.As(err, &call) {
		p.Errorf("%v names no system call", err)
	}
}

func listenElsewhere(p platform) {
	s, _, err := p.net.listen(netip.MustParseAddrPort("192.0.2.1:0")) // RFC 5737: nobody's
	if err == nil {
		p.net.close(s)
	}
	p.want("listen", err, errNoAddress)
}

// listenBoth: a listener for all of IPv6 leaves IPv4 to its own. The kernel's choice of a port for
// one family may be taken in the other, by anybody.
func listenBoth(p platform) {
	var err error
	for range 20 {
		err = p.listenTwice()
		if err == nil {
			return
		}
	}
	p.Fatalf("listening on both families failed 20 times, at last with %v", err)
}

func (p platform) listenTwice() error {
	s, bound, err := p.net.listen(netip.MustParseAddrPort("[::]:0"))
	if err == errNoAddress {
		p.Skip("no IPv6 here")
	}
	p.must("listen", err)
	p.watched[s] = 0
	six, err := net.Dial("tcp", netip.AddrPortFrom(netip.IPv6Loopback(), bound.Port()).String())
	if err != nil {
		p.Skipf("no IPv6 here: %v", err)
	}
	defer six.Close()
	loopback := netip.MustParseAddr("127.0.0.1")
	four, err := net.Dial("tcp", netip.AddrPortFrom(loopback, bound.Port()).String())
	if err == nil {
		four.Close()
		return errors.New("IPv4 was accepted before anybody listened to it")
	}
	s, _, err = p.net.listen(netip.AddrPortFrom(netip.IPv4Unspecified(), bound.Port()))
	if err == nil {
		p.watched[s] = 0
	}
	return err
}

// listenAgain: a server that has closed its connections first can be started again at once.
func listenAgain(p platform) {
	if runtime.GOOS == "windows" {
		p.Skip("it may have to wait: see bindAndListen")
	}
	s, bound := p.listening("127.0.0.1:0")
	a, c := p.accepted(s, bound)
	p.shut(a)
	io.Copy(io.Discard, c)
	c.Close()
	p.arrived()
	p.shut(s)
	end := time.Now().Add(5 * time.Second) // TIME_WAIT takes 30 s and more
	for {
		s, _, err := p.net.listen(bound)
		if err == nil {
			p.watched[s] = 0
			return
		}
		if time.Now().After(end) {
			p.Fatalf("listen, again: %v", err)
		}
		time.Sleep(50 * time.Millisecond) // a child of another test may hold s until it is executed
	}
}

// accepted is a connection accepted from the listener s, and its peer.
func (p platform) accepted(s socket, bound netip.AddrPort) (socket, net.Conn) {
	p.Helper()
	c, err := net.Dial("tcp", bound.String())
	p.must("net.Dial", err)
	p.Cleanup(func() { c.Close() })
	p.watch(s, readable)
	p.await(s, readable)
	p.watch(s, 0)
	a, _, err := p.net.accept(s)
	p.must("accept", err)
	p.watched[a] = 0
	return a, c
}

// socketOptions: both kinds of sockets send small pieces at once, and keep urgent data in the
// stream. An accepted one finds out that its client has vanished; in the client's an idle flow is
// idle. No call on either blocks.
func socketOptions(p platform) {
	connected, _ := p.pair()
	listener, bound := p.listening("127.0.0.1:0")
	accepted, _ := p.accepted(listener, bound)
	for _, s := range []socket{connected, accepted} {
		for _, o := range visibleOptions(s) {
			want := o.client
			if s == accepted {
				want = o.accepted
			}
			if o.on != want {
				p.Errorf("%s: %v, want %v (accepted: %v)", o.name, o.on, want, s == accepted)
			}
		}
	}
}

// socketOption is an option that a system shows, and whether it should be on.
type socketOption struct {
	name     string
	on       bool
	client   bool // is it to be on in a client's socket
	accepted bool // and in an accepted one
}

// TestClock: it never goes back, is finer than 0.1 ms, and as fast as the other one.
func TestClock(t *testing.T) {
	t.Parallel()
	clock := newClock()
	other := time.Now()
	start := clock()
	last := start
	finest := time.Hour
	for range 200_000 {
		now := clock()
		if now < last {
			t.Fatalf("%v after %v", now, last)
		}
		if now > last {
			finest = min(finest, now-last)
		}
		last = now
	}
	if finest >= 100*time.Microsecond {
		t.Errorf("its smallest step is %v", finest)
	}
	time.Sleep(200 * time.Millisecond)
	passed := clock() - start
	wanted := time.Since(other)
	if (passed - wanted).Abs() > 50*time.Millisecond {
		t.Errorf("%v have passed, it says %v", wanted, passed)
	}
}

// TestKindOfInput: only what waits for nobody is a regular file.
func TestKindOfInput(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "echomux")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir) // Wine cannot; t.TempDir would mind
	full := filepath.Join(dir, "full")
	empty := filepath.Join(dir, "empty")
	os.WriteFile(full, []byte("x"), 0o600)
	os.WriteFile(empty, nil, 0o600)
	for _, test := range []struct {
		path string
		want inputKind
	}{
		{full, regularFile},
		{empty, otherInput},
		{os.DevNull, otherInput},
		{dir, otherInput},
	} {
		file, err := os.Open(test.path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		kind := kindOfInput(file)
		if kind != test.want {
			t.Errorf("%s is of kind %d, want %d", test.path, kind, test.want)
		}
	}
}

func TestKindOfPipe(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	kind := kindOfInput(r)
	if kind != otherInput {
		t.Errorf("a pipe is of kind %d", kind)
	}
	r.Close()
	kind = kindOfInput(r)
	if kind != otherInput {
		t.Errorf("a closed file is of kind %d", kind)
	}
}

// TestSeamReaderGone: a write to a pipe that nobody reads.
func TestSeamReaderGone(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r.Close()
	eventually(t, func() bool { // a process that another test starts may still have r
		_, err = w.Write([]byte("x"))
		return err != nil
	}, func() string { return "nobody reads, and no write fails" })
	if !readerGone(err) {
		t.Errorf("not recognised: %v", err)
	}
	if readerGone(nil) || readerGone(os.ErrClosed) {
		t.Error("recognised where there is none")
	}
}

// errorNumber is a row of fault.
type errorNumber struct {
	number error
	want   error
}

// TestErrorNumbers: what every number means that the program acts on, row by row.
func TestErrorNumbers(t *testing.T) {
	t.Parallel()
	for _, row := range errorNumbers {
		got := fault("call", row.number)
		if !errors.Is(got, row.want) {
			t.Errorf("%v: %v, want %v", row.number, got, row.want)
		}
		var call *os.SyscallError
		named := errors.As(got, &call)
		if named != (row.want == row.number) || named && call.Syscall != "call" {
			t.Errorf("%v: does %q name the call?", row.number, got)
		}
	}
	if fault("call", nil) != nil {
		t.Error("success is a failure")
	}
}
