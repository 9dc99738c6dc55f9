package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// The contract of the seam: what each platform's poller and sockets have to pass, whatever they are
// made of. Package net is at the other end.

// platform is the seam under test.
type platform struct {
	testing.TB
	poller
	net  sockets
	open map[socket]bool // to be closed at the end; a number closed twice could be another test's
}

func TestSeam(t *testing.T) {
	t.Parallel()
	for _, contract := range []struct {
		name  string
		test  func(platform)
		fault string // of Wine
	}{
		{"wait: timeout", waitTimeout, ""},
		{"wait: a wake-up before it", wakeBefore, ""},
		{"wait: a wake-up during it", wakeDuring, ""},
		{"wait: a wake-up beside events", wakeBeside, ""},
		{"wait: no more events than there is room for", waitRoom, ""},
		{"readable: bytes, level-triggered", readableBytes, ""},
		{"readable: EOF", readableEOF, ""},
		{"readable: bytes that came before add", readableBefore, ""},
		{"writable: room, level-triggered", writableRoom, ""},
		{"both directions", bothDirections, ""},
		{"modify", modifyWant, ""},
		{"remove", removeSocket, ""},
		{"hang-up: only the readiness asked for", hangUp, ""},
		{"hang-up: half-closed by both", hangUpBoth, ""},
		{"a new socket is not the old one", reusedSocket, ""},

		{"connect", connectNames, ""},
		{"connect: IPv6", connectIPv6, ""},
		{"connect: refused", connectRefused, ""},
		{"read: would block", readWouldBlock, ""},
		{"read: bytes, then EOF for ever", readEOF, ""},
		{"read: reset", readReset, "a reset reads as EOF"},
		{"write: until it would block, and on", writeAll, ""},
		{"write: reset", writeReset, ""},
		{"closeWrite", closeWriteHalf, ""},
		{"close", closeSocket, ""},
		{"listen and accept", acceptAll, ""},
		{"listen: an address in use", listenInUse, ""},
		{"listen: an address that is not ours", listenElsewhere, ""},
		{"listen: both families on one port", listenBoth, ""},
	} {
		t.Run(contract.name, func(t *testing.T) {
			t.Parallel()
			if contract.fault != "" {
				faulty(t, "wine", contract.fault)
			}
			contract.test(newPlatform(t))
		})
	}
}

func newPlatform(t testing.TB) platform {
	k, err := newPoller()
	if err != nil {
		t.Fatal(err)
	}
	p := platform{t, k, system{}, map[socket]bool{}}
	t.Cleanup(func() {
		for s := range p.open {
			p.remove(s) // it may be out already
			p.must("close", p.net.close(s))
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

// shut closes s before the end of the test.
func (p platform) shut(s socket) {
	p.Helper()
	delete(p.open, s)
	p.must("close", p.net.close(s))
}

// connecting is a socket on its way to the address to.
func (p platform) connecting(to netip.AddrPort) socket {
	p.Helper()
	s, err := p.net.openSocket(to)
	p.must("openSocket", err)
	p.open[s] = true
	p.must("setNonblock", p.net.setNonblock(s))
	if err := p.net.connect(s, to); err != nil && err != errWouldBlock {
		p.Fatalf("connect: %v", err)
	}
	p.must("add", p.add(s, writable))
	return s
}

// result waits until s has been connected, or has not.
func (p platform) result(s socket) (local, peer netip.AddrPort, err error) {
	p.Helper()
	for err = errWouldBlock; err == errWouldBlock; {
		p.await(s, writable)
		local, peer, err = p.net.connectResult(s)
	}
	return local, peer, err
}

// pair is a connected socket, out of the poller, and its peer of package net.
func (p platform) pair() (socket, *net.TCPConn) {
	p.Helper()
	server, err := net.Listen("tcp", "127.0.0.1:0")
	p.must("net.Listen", err)
	defer server.Close()
	s := p.connecting(netip.MustParseAddrPort(server.Addr().String()))
	c, err := server.Accept()
	p.must("net.Accept", err)
	p.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(hang))
	_, _, err = p.result(s)
	p.must("connectResult", err)
	p.must("remove", p.remove(s))
	return s, c.(*net.TCPConn)
}

// poll waits once for up to d and returns what is ready; one socket can be in two events.
func (p platform) poll(d time.Duration) map[socket]readiness {
	p.Helper()
	ready, events := map[socket]readiness{}, make([]event, 16)
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
	for end := time.Now().Add(hang); time.Now().Before(end); {
		if ready := p.poll(time.Second)[s]; ready&want == want {
			return ready
		}
	}
	p.Fatalf("%v was never ready", want)
	return 0
}

// stirs waits a moment for anything to be ready.
func (p platform) stirs() (ready map[socket]readiness) {
	p.Helper()
	for end := time.Now().Add(60 * time.Millisecond); len(ready) == 0 && time.Now().Before(end); {
		ready = p.poll(20 * time.Millisecond)
	}
	return ready
}

// silent checks that nothing is ready, and goes on so.
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
	start, waits := time.Now(), 0
	for ; time.Since(start) < 200*time.Millisecond; waits++ {
		if ready := p.poll(100 * time.Millisecond); len(ready) > 0 {
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
	if ready := p.poll(hang); len(ready) > 0 {
		p.Errorf("the wake-up is an event: %v", ready)
	}
	p.quiet()
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
	p.must("add", p.add(s, readable))
	p.send(c, "x")
	p.arrived()
	p.wake()
	events := make([]event, 1) // no room for more than the socket
	for end := time.Now().Add(hang); ; {
		n, err := p.wait(events, 1000)
		p.must("wait", err)
		if n == 1 {
			break
		} else if time.Now().After(end) {
			p.Fatal("the wake-up hides the socket")
		}
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
	waiting := map[socket]bool{}
	for range 10 {
		s, c := p.pair()
		p.send(c, "x")
		p.must("add", p.add(s, readable))
		waiting[s] = true
	}
	events := make([]event, 3)
	for end := time.Now().Add(hang); len(waiting) > 0 && time.Now().Before(end); {
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

func readableBytes(p platform) {
	s, c := p.pair()
	p.must("add", p.add(s, readable))
	p.silent("before any byte")
	p.send(c, "x")
	for range 3 { // level-triggered: as long as it is not read
		if ready := p.await(s, readable); ready != readable {
			p.Errorf("ready for %v", ready)
		}
	}
	if got := p.receive(s); got != "x" {
		p.Errorf("read %q", got)
	}
	p.silent("after the read")
	p.send(c, "y")
	p.await(s, readable)
}

func readableEOF(p platform) {
	s, c := p.pair()
	p.must("add", p.add(s, readable))
	c.CloseWrite()
	for range 3 {
		if ready := p.await(s, readable); ready != readable {
			p.Errorf("ready for %v", ready)
		}
	}
	_, err := p.net.read(s, make([]byte, 1))
	p.want("read", err, io.EOF)
}

func readableBefore(p platform) {
	s, c := p.pair()
	p.send(c, "x")
	p.arrived()
	p.must("add", p.add(s, readable))
	p.await(s, readable)
}

func writableRoom(p platform) {
	s, c := p.pair()
	p.must("add", p.add(s, writable))
	for range 3 {
		if ready := p.await(s, writable); ready != writable {
			p.Errorf("ready for %v", ready)
		}
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
	const tries = 20
	for range tries {
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
	for refused := 0; refused < 10; {
		n, err := p.net.write(s, chunk)
		if total += n; total > 1<<30 {
			p.Fatal("a write never blocks")
		}
		switch {
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
	p.must("add", p.add(s, readable|writable))
	if ready := p.await(s, writable); ready != writable {
		p.Errorf("ready for %v with nothing to read", ready)
	}
	p.send(c, "x")
	p.arrived()
	p.await(s, readable|writable)
	p.fill(s, func() bool { return p.await(s, readable) == readable })
}

func modifyWant(p platform) {
	s, c := p.pair()
	p.send(c, "x")
	p.arrived()
	p.must("add", p.add(s, readable))
	p.await(s, readable)
	for _, want := range []readiness{writable, readable, readable | writable, writable, readable | writable, readable} {
		p.must("modify", p.modify(s, want))
		for range 2 {
			if ready := p.await(s, want); ready != want {
				p.Fatalf("ready for %v, want %v", ready, want)
			}
		}
	}
	p.receive(s)
	p.silent("modified to readable, and read")
}

func removeSocket(p platform) {
	s, c := p.pair()
	other, d := p.pair()
	p.must("add", p.add(s, readable|writable))
	p.must("add", p.add(other, readable))
	p.await(s, writable)
	p.must("remove", p.remove(s))
	p.send(c, "x")
	p.silent("removed, with bytes")
	c.Close()
	p.silent("removed, and hung up") // or its hang-up would be reported for ever
	p.send(d, "y")
	p.await(other, readable)
	p.must("add again", p.add(s, readable))
	p.await(s, readable)
}

// hangUp: a reset is reported as what was asked for and as nothing else; the next call names it.
func hangUp(p platform) {
	for _, want := range []readiness{readable, writable, readable | writable} {
		s, c := p.pair()
		p.must("add", p.add(s, want))
		p.fill(s, func() bool { return len(p.stirs()) == 0 }) // or a socket would be writable anyway
		resets(c)
		for range 3 {
			if ready := p.await(s, want); ready != want {
				p.Errorf("asked for %v, ready for %v", want, ready)
			}
		}
		p.must("remove", p.remove(s))
	}
}

// hangUpBoth: both have half-closed and all was read. The kernel calls it a hang-up.
func hangUpBoth(p platform) {
	for _, want := range []readiness{readable, writable, readable | writable} {
		s, c := p.pair()
		p.must("closeWrite", p.net.closeWrite(s))
		c.CloseWrite()
		io.Copy(io.Discard, c)
		p.must("add", p.add(s, want))
		if ready := p.await(s, want); ready != want {
			p.Errorf("asked for %v, ready for %v", want, ready)
		}
		p.must("remove", p.remove(s))
	}
}

// reusedSocket: kernels give the number of a closed socket to the next one, which starts clean.
func reusedSocket(p platform) {
	for range 5 {
		s, c := p.pair()
		p.must("add", p.add(s, readable|writable))
		p.await(s, writable)
		p.send(c, "x")
		p.must("remove", p.remove(s))
		p.shut(s)
		next, _ := p.pair()
		p.must("add", p.add(next, readable))
		p.silent("a new socket")
		p.must("remove", p.remove(next))
	}
}

func connectNames(p platform) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	p.must("net.Listen", err)
	defer server.Close()
	at := netip.MustParseAddrPort(server.Addr().String())
	s := p.connecting(at)
	local, peer, err := p.result(s)
	p.must("connectResult", err)
	c, err := server.Accept()
	p.must("net.Accept", err)
	defer c.Close()
	if peer != at || local.String() != c.RemoteAddr().String() {
		p.Errorf("local %v and peer %v; for the peer they are %v and %v", local, peer, c.RemoteAddr(), c.LocalAddr())
	}
	p.send(c, "x")
	p.must("modify", p.modify(s, readable))
	p.await(s, readable)
	if got := p.receive(s); got != "x" {
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
	p.must("add", p.add(s, readable))
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
	p.must("add", p.add(s, readable))
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
	p.must("add", p.add(s, readable|writable))
	resets(c)
	p.await(s, readable)
	for range 100 { // the first ones may still be taken
		if n, err := p.net.write(s, []byte("x")); err != nil {
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
	p.must("add", p.add(s, writable))
	data := noise(4 << 20)
	for rest := data; len(rest) > 0; {
		p.await(s, writable)
		n, err := p.net.write(s, rest)
		if err != nil && err != errWouldBlock {
			p.Fatalf("write: %v", err)
		}
		rest = rest[n:]
	}
	p.must("closeWrite", p.net.closeWrite(s))
	if all := <-got; len(all) != total+len(data) || !bytes.Equal(all[total:], data) {
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
	p.must("add", p.add(s, readable))
	p.await(s, readable)
	if got := p.receive(s); got != "still readable" {
		p.Errorf("read %q", got)
	}
}

func closeSocket(p platform) {
	s, c := p.pair()
	p.shut(s)
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		p.Errorf("the peer read %d bytes, %v", n, err)
	}
	if err := p.net.close(^socket(0) >> 1); err == nil {
		p.Error("closing what is no socket succeeds")
	}
}

func (p platform) listening(at string) (socket, netip.AddrPort) {
	p.Helper()
	s, bound, err := p.net.listen(netip.MustParseAddrPort(at))
	p.must("listen", err)
	p.open[s] = true
	return s, bound
}

func acceptAll(p platform) {
	s, bound := p.listening("127.0.0.1:0")
	if bound.Addr().String() != "127.0.0.1" || bound.Port() == 0 {
		p.Errorf("bound to %v", bound)
	}
	_, _, err := p.net.accept(s)
	p.want("accept", err, errWouldBlock)
	p.must("add", p.add(s, readable))
	p.silent("before any connection")
	accepted := map[string]socket{}
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
		p.open[a] = true
		if before, ours := accepted[peer.String()]; !ours || before != 0 {
			p.Fatalf("accepted %v", peer)
		}
		accepted[peer.String()] = a
	}
	_, _, err = p.net.accept(s)
	p.want("accept", err, errWouldBlock)
	p.silent("after the last connection")
	p.must("remove", p.remove(s))
	for peer, a := range accepted {
		p.must("add", p.add(a, readable))
		p.await(a, readable)
		if got := p.receive(a); got != peer {
			p.Errorf("%s sent %q", peer, got)
		}
		_, err := p.net.read(a, make([]byte, 1)) // accepted sockets do not block either
		p.want("read", err, errWouldBlock)
	}
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

// listenBoth: a listener for all of IPv6 leaves IPv4 to its own.
func listenBoth(p platform) {
	const tries = 20 // the kernel's choice for one family may be taken in the other, by anybody
	for try := 1; ; try++ {
		s, bound, err := p.net.listen(netip.MustParseAddrPort("[::]:0"))
		if err == errNoAddress {
			p.Skip("no IPv6 here")
		}
		p.must("listen", err)
		p.open[s] = true
		if c, err := net.Dial("tcp", netip.AddrPortFrom(netip.IPv6Loopback(), bound.Port()).String()); err != nil {
			p.Skipf("no IPv6 here: %v", err)
		} else {
			defer c.Close()
		}
		c, err := net.Dial("tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), bound.Port()).String())
		if err == nil {
			c.Close()
			err = errors.New("IPv4 was accepted before anybody listened to it")
		} else {
			var four socket
			if four, _, err = p.net.listen(netip.AddrPortFrom(netip.IPv4Unspecified(), bound.Port())); err == nil {
				p.open[four] = true
				return
			}
		}
		if try == tries {
			p.Fatalf("listening on both families of %d ports failed, at last on %d: %v", tries, bound.Port(), err)
		}
	}
}
