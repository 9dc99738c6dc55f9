package main

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// What every backend of the contract has to keep, tried on the real kernel, with sockets of package
// net at the other end. What one system alone lets a test do is in kernel_<os>_test.go.

// kernelRules is all of it. flaw names an emulator that breaks the rule, and how; the variable
// ECHOMUX_RIG says which one this is.
var kernelRules = []struct {
	name string
	rule func(*kernelTest)
	flaw string
}{
	{"wait: its limit", waitLimit, ""},
	{"wait: a wake before it, during it, beside a socket", waitWoken, ""},
	{"wait: more sockets than a batch holds", waitBatch, ""},
	{"watch: from each readiness to each other", watchChanges, ""},
	{"watch: readable until all is read", watchReadable, ""},
	{"watch: writable until nothing fits", watchWritable, ""},
	{"watch: a reset, closed by both", watchEnds, ""},
	{"close: seen by the peer, out of the poller, its number clean", closeWatched, ""},
	{"connect: both names", connectNames, ""},
	{"connect: a zone by name and by number", connectZone, ""},
	{"connect: pending", connectPending, ""},
	{"connect: refused", connectRefused, "qemu-mips: SO_ERROR has the host's numbers"},
	{"connect: reset afterwards", connectReset, "qemu-mips: SO_ERROR has the host's numbers"},
	{"read: would block, bytes, EOF for ever", readAll, ""},
	{"read: a reset, and a write after it", readReset, "wine: a reset reads as EOF"},
	{"read: urgent bytes stay in the stream", readUrgent, ""},
	{"write: short, would block, and nothing is lost", writeAll, ""},
	{"write: a reset", writeReset, ""},
	{"closeWrite: half of it", closeHalf, ""},
	{"open: a family that there is not", openFamily, ""},
	{"listen: port 0, and accept", listenAndAccept, ""},
	{"listen: [::] takes both families", listenBoth, ""},
	{"listen: an address in use, or not ours", listenFails, ""},
	{"listen: again at once", listenAgain, ""},
	{"accept: what was reset in the backlog", acceptReset, ""},
	{"options", socketOptions, ""},
	{"now: monotonic and fine", nowIsFine, ""},
}

func TestKernel(t *testing.T) {
	t.Parallel()
	for _, row := range kernelRules {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			rig, flaw, _ := strings.Cut(row.flaw, ": ")
			if rig != "" && rig == kernelRig() {
				t.Skipf("on %s %s", rig, flaw)
			}
			row.rule(newKernelTest(t))
		})
	}
}

// kernelRig is what stands between this test and a kernel, if anything does.
func kernelRig() string { return os.Getenv("ECHOMUX_RIG") }

// kernelTest is a kernel under test.
type kernelTest struct {
	testing.TB
	kernel
	watched map[socket]readiness // what each open socket is watched for
}

func newKernelTest(t testing.TB) *kernelTest {
	k, err := newKernel()
	if err != nil {
		t.Fatal(err)
	}
	f := &kernelTest{t, k, make(map[socket]readiness)}
	t.Cleanup(func() {
		for s := range f.watched {
			f.close(s)
		}
	})
	return f
}

const (
	patience = 20 * time.Second      // more than any kernel takes, however slow the machine is
	moment   = 60 * time.Millisecond // what does not happen within it will not happen
)

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

func (f *kernelTest) must(what string, err error) {
	f.Helper()
	if err != nil {
		f.Fatalf("%s: %v", what, err)
	}
}

// gives checks the outcome of a call that returns a number of bytes.
func (f *kernelTest) gives(what string, n int, err error, wantN int, wantErr error) {
	f.Helper()
	if n != wantN || err != wantErr {
		f.Fatalf("%s: %d, %v; want %d, %v", what, n, err, wantN, wantErr)
	}
}

// want has s watched for r from now on.
func (f *kernelTest) want(s socket, r readiness) {
	f.Helper()
	was := f.watched[s]
	if was != r {
		f.must("watch", f.watch(s, was, r))
		f.watched[s] = r
	}
}

func (f *kernelTest) shut(s socket) {
	f.close(s)
	delete(f.watched, s)
}

// reports counts the waits that report s, until there are enough, or the limit has passed.
func (f *kernelTest) reports(s socket, enough int, limit time.Duration) (n int) {
	f.Helper()
	for end := time.Now().Add(limit); n < enough && time.Now().Before(end); {
		ready, err := f.wait(10)
		f.must("wait", err)
		if slices.Contains(ready, s) {
			n++
		}
	}
	return n
}

// await waits until s is reported.
func (f *kernelTest) await(s socket) {
	f.Helper()
	if f.reports(s, 1, patience) == 0 {
		f.Fatal("the socket was never ready")
	}
}

// loud checks that s is reported again and again.
func (f *kernelTest) loud(s socket, what string) {
	f.Helper()
	if f.reports(s, 3, patience) < 3 {
		f.Fatalf("%s: not reported", what)
	}
}

// silent checks that s is not. A report can be spurious, so one or two do not count, and a kernel
// may find out that it can grow a full buffer, which is then filled again.
func (f *kernelTest) silent(s socket, what string) {
	f.Helper()
	for tries := 0; f.reports(s, 3, moment) == 3; tries++ {
		if f.watched[s]&writable == 0 || tries == 10 {
			f.Fatalf("%s: reported", what)
		}
		f.fill(s)
	}
}

// opened is a non-blocking socket.
func (f *kernelTest) opened(to netip.AddrPort) socket {
	f.Helper()
	s, err := f.open(to.Addr())
	f.must("open", err)
	f.watched[s] = 0
	f.must("setNonblock", f.setNonblock(s))
	return s
}

// connecting is a socket on its way to the address to.
func (f *kernelTest) connecting(to netip.AddrPort) socket {
	f.Helper()
	s := f.opened(to)
	f.must("connect", f.connect(s, to))
	return s
}

// result waits until s has been connected, or has not.
func (f *kernelTest) result(s socket) (local, peer netip.AddrPort, err error) {
	f.Helper()
	f.want(s, writable)
	err = errWouldBlock
	for err == errWouldBlock {
		f.await(s)
		local, peer, err = f.connectResult(s)
	}
	f.want(s, 0)
	return local, peer, err
}

// netListener is a listener of package net. One of IPv6 needs a machine that has it.
func (f *kernelTest) netListener(at string) (*net.TCPListener, netip.AddrPort) {
	f.Helper()
	l, err := net.Listen("tcp", at)
	if err != nil && strings.HasPrefix(at, "[") {
		f.Skipf("no IPv6 here: %v", err)
	}
	f.must("net.Listen", err)
	f.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener), netip.MustParseAddrPort(l.Addr().String())
}

func (f *kernelTest) netAccept(l *net.TCPListener) *net.TCPConn {
	f.Helper()
	l.SetDeadline(time.Now().Add(patience))
	c, err := l.AcceptTCP()
	f.must("net.Accept", err)
	c.SetDeadline(time.Now().Add(patience))
	f.Cleanup(func() { c.Close() })
	return c
}

func (f *kernelTest) netDial(to netip.AddrPort) *net.TCPConn {
	f.Helper()
	c, err := net.DialTimeout("tcp", to.String(), patience)
	f.must("net.Dial", err)
	c.SetDeadline(time.Now().Add(patience))
	f.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// pair is a connected socket and its peer.
func (f *kernelTest) pair() (socket, *net.TCPConn) {
	f.Helper()
	server, at := f.netListener("127.0.0.1:0")
	defer server.Close()
	s := f.connecting(at)
	c := f.netAccept(server)
	_, _, err := f.result(s)
	f.must("connectResult", err)
	return s, c
}

func (f *kernelTest) listening(at netip.AddrPort) (socket, netip.AddrPort) {
	f.Helper()
	s, bound, err := f.listen(at)
	f.must("listen", err)
	f.watched[s] = 0
	return s, bound
}

// accepted is the next connection of a listener.
func (f *kernelTest) accepted(listener socket) (socket, netip.AddrPort) {
	f.Helper()
	f.want(listener, readable)
	f.await(listener)
	f.want(listener, 0)
	s, peer, err := f.accept(listener)
	f.must("accept", err)
	f.watched[s] = 0
	return s, peer
}

// acceptedPair is a pair the other way round: the kernel's socket was accepted.
func (f *kernelTest) acceptedPair() (socket, *net.TCPConn) {
	f.Helper()
	listener, bound := f.listening(loopback)
	c := f.netDial(bound)
	s, _ := f.accepted(listener)
	f.shut(listener)
	return s, c
}

func (f *kernelTest) send(c *net.TCPConn, text string) {
	f.Helper()
	_, err := io.WriteString(c, text)
	f.must("the peer's write", err)
}

// receive waits for the next n bytes of s.
func (f *kernelTest) receive(s socket, n int) string {
	f.Helper()
	var got []byte
	f.want(s, readable)
	for len(got) < n {
		f.await(s)
		p := make([]byte, n-len(got))
		m, err := f.read(s, p)
		if err != errWouldBlock {
			f.must("read", err)
		}
		got = append(got, p[:m]...)
	}
	f.want(s, 0)
	return string(got)
}

// fill writes until s takes no more, and returns how many bytes that were.
func (f *kernelTest) fill(s socket) (total int) {
	f.Helper()
	was := f.watched[s]
	f.want(s, writable)
	chunk := make([]byte, 64<<10)
	for f.reports(s, 1, moment) > 0 {
		var err error
		for err == nil {
			var n int
			n, err = f.write(s, chunk)
			total += n
			if n < 0 || n > len(chunk) || (n > 0) == (err != nil) || total > 1<<30 {
				f.Fatalf("write: %d of %d bytes, %v, after %d", n, len(chunk), err, total)
			}
		}
		f.gives("write", 0, err, 0, errWouldBlock)
	}
	f.want(s, was)
	return total
}

// resets closes c with a reset.
func resets(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

// ---- wait and watch ----

func waitLimit(f *kernelTest) {
	start := time.Now()
	waits := 0
	for time.Since(start) < 200*time.Millisecond {
		waits++
		ready, err := f.wait(100)
		f.must("wait", err)
		if len(ready) > 0 {
			f.Fatalf("nothing is watched, but %v is ready", ready)
		}
	}
	if waits > 20 { // a signal may end some early
		f.Errorf("%d waits of 100 ms in 200 ms", waits)
	}
	start = time.Now()
	_, err := f.wait(0)
	f.must("wait", err)
	if took := time.Since(start); took > patience/2 {
		f.Errorf("a wait of 0 ms took %v", took)
	}
}

// quiet checks that waits have their time again: no wake is left.
func (f *kernelTest) quiet() {
	f.Helper()
	for range 3 {
		start := time.Now()
		ready, err := f.wait(100)
		if err != nil || len(ready) > 0 {
			f.Fatalf("%v, %v", ready, err)
		}
		if time.Since(start) > 50*time.Millisecond {
			return
		}
	}
	f.Fatal("wakes have added up")
}

// waitWoken: a wake before a wait ends it, or one during it; it hides no socket; and it is over. A
// wait may begin late, after the wake that was to come during it, and so that says only that it ends.
func waitWoken(f *kernelTest) {
	wakes := func(n int) {
		for range n {
			f.wake()
		}
		ready, err := f.wait(-1)
		if len(ready) > 0 || err != nil {
			f.Fatalf("%v, %v of a wait that was woken", ready, err)
		}
	}
	wakes(1)
	f.quiet()
	wakes(100)
	f.quiet()
	for range 20 {
		time.AfterFunc(5*time.Millisecond, f.wake)
		wakes(0)
	}
	s, c := f.pair()
	f.want(s, readable)
	f.send(c, "x")
	for range 5 {
		f.wake()
		f.await(s)
	}
	f.want(s, 0)
	_, err := f.wait(10) // the last wake, if it is still there
	f.must("wait", err)
	f.quiet()
}

// waitBatch has more sockets readable, all the time, than one wait reports. None hides another.
func waitBatch(f *kernelTest) {
	const many = 300
	waiting := make(map[socket]bool)
	for range many {
		s, c := f.pair()
		f.send(c, "x")
		f.want(s, readable)
		waiting[s] = true
	}
	for end := time.Now().Add(patience); len(waiting) > 0; {
		ready, err := f.wait(1000)
		f.must("wait", err)
		for _, s := range ready {
			delete(waiting, s)
		}
		if time.Now().After(end) {
			f.Fatalf("%d of %d sockets are hidden by the others", len(waiting), many)
		}
	}
}

// watchChanges takes each of the twelve ways from one readiness to another, once with a socket that
// is only writable, and once with one that is only readable.
func watchChanges(f *kernelTest) {
	const both = readable | writable
	way := []readiness{readable, 0, writable, 0, both, readable, writable, readable, both,
		writable, both, 0}
	for _, ready := range []readiness{writable, readable} {
		s, c := f.pair()
		if ready == readable {
			f.fill(s)
			f.send(c, "x")
			f.want(s, readable)
			f.await(s)
			f.want(s, 0)
		}
		for _, want := range way {
			what := "ready for " + ready.String() + ", watched for " + want.String()
			f.want(s, want)
			if want&ready != 0 {
				f.loud(s, what)
			} else {
				f.silent(s, what)
			}
		}
	}
}

// watchReadable begins with bytes that have come before the socket is watched.
func watchReadable(f *kernelTest) {
	s, c := f.pair()
	f.send(c, "one")
	f.want(s, readable)
	f.loud(s, "unread bytes")
	n, err := f.read(s, make([]byte, 2))
	f.gives("read", n, err, 2, nil)
	f.loud(s, "one unread byte")
	n, err = f.read(s, make([]byte, 2))
	f.gives("read", n, err, 1, nil)
	f.silent(s, "all is read")
	f.send(c, "two")
	f.loud(s, "more bytes")
	f.receive(s, 3)
	c.CloseWrite()
	f.want(s, readable)
	f.loud(s, "EOF")
}

func watchWritable(f *kernelTest) {
	s, c := f.pair()
	f.want(s, writable)
	f.loud(s, "an empty buffer")
	f.fill(s)
	f.silent(s, "a full buffer")
	go io.Copy(io.Discard, c)
	f.loud(s, "the peer has read all")
}

// watchEnds: whoever is watched for anything hears of the end, and nobody else. (Closed by both is
// what kernels call a hang-up, and report unasked.) The buffer is full before a reset, or the socket
// would be writable anyway.
func watchEnds(f *kernelTest) {
	for _, want := range []readiness{readable, writable, readable | writable} {
		s, c := f.pair()
		f.fill(s)
		f.want(s, want)
		resets(c)
		f.await(s)
		f.want(s, 0)
		f.silent(s, "a reset, watched for nothing")

		s, c = f.pair()
		f.closeWrite(s)
		c.CloseWrite()
		io.Copy(io.Discard, c)
		f.want(s, want)
		f.loud(s, "closed by both, watched for "+want.String())
		f.want(s, 0)
		f.silent(s, "closed by both, watched for nothing")
	}
}

// ---- close ----

// closeWatched closes a socket that is ready for all. The next one gets its number, and is ready
// for nothing that it is watched for.
func closeWatched(f *kernelTest) {
	for range 5 {
		s, c := f.pair()
		f.want(s, readable|writable)
		f.send(c, "x")
		f.receive(s, 1) // or close would be a reset
		f.want(s, readable|writable)
		f.await(s)
		f.shut(s)
		n, err := c.Read(make([]byte, 1))
		f.gives("the peer's read", n, err, 0, io.EOF)
		if f.reports(s, 1, moment) > 0 {
			f.Fatal("a closed socket is reported")
		}
		next, _ := f.pair()
		f.want(next, readable)
		f.silent(next, "a new socket")
		if next != s {
			f.silent(s, "a closed socket")
		}
		f.shut(next)
	}
}

// ---- connect ----

func connectNames(f *kernelTest) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		server, to := f.netListener(at)
		local, peer, err := f.result(f.connecting(to))
		f.must("connectResult", err)
		c := f.netAccept(server)
		if peer != to || local.String() != c.RemoteAddr().String() {
			f.Errorf("from %v to %v, but for the peer %v to %v", local, peer,
				c.RemoteAddr(), c.LocalAddr())
		}
	}
}

// connectZone uses the interface that ::1 belongs to.
func connectZone(f *kernelTest) {
	server, to := f.netListener("[::1]:0")
	cards, err := net.Interfaces()
	if err != nil {
		f.Skipf("no interfaces are known here: %v", err)
	}
	i := slices.IndexFunc(cards, func(c net.Interface) bool { return c.Flags&net.FlagLoopback != 0 })
	if i < 0 {
		f.Skip("no interface is known to be a loopback")
	}
	for _, zone := range []string{cards[i].Name, strconv.Itoa(cards[i].Index)} {
		zoned := netip.AddrPortFrom(to.Addr().WithZone(zone), to.Port())
		_, _, err = f.result(f.connecting(zoned))
		f.must("connectResult in zone "+zone, err)
		f.netAccept(server)
	}
	nowhere := netip.AddrPortFrom(to.Addr().WithZone("no-such-zone"), to.Port())
	err = f.connect(f.opened(nowhere), nowhere)
	if err == nil || err == errWouldBlock {
		f.Errorf("connect to a zone that there is not: %v", err)
	}
}

// fullBacklog is where a connect stays pending: the queue is full, and nobody accepts.
func (f *kernelTest) fullBacklog() netip.AddrPort {
	f.Helper()
	server, at := f.netListener("127.0.0.1:0")
	raw, err := server.SyscallConn()
	f.must("SyscallConn", err)
	f.must("Control", raw.Control(shortenBacklog))
	for range 300 { // XNU makes at least 128 of it
		c, err := net.DialTimeout("tcp", at.String(), 200*time.Millisecond)
		if err != nil {
			return at
		}
		f.Cleanup(func() { c.Close() })
	}
	f.Skip("this kernel's queue has no end")
	return at
}

// connectPending: connectResult can be asked at any time, also before any readiness.
func connectPending(f *kernelTest) {
	to := f.fullBacklog()
	s := f.opened(to)
	f.must("connect", patientConnect(f, s, to))
	for range 3 {
		local, peer, err := f.connectResult(s)
		if err != errWouldBlock || local.IsValid() || peer.IsValid() {
			f.Fatalf("pending, but from %v to %v, %v", local, peer, err)
		}
	}
	f.want(s, writable)
	f.silent(s, "a pending connect")
	_, _, err := f.connectResult(s)
	f.gives("connectResult", 0, err, 0, errWouldBlock)
}

// nobody is an address where nobody listens. Its port is taken by a socket that does not.
func (f *kernelTest) nobody() netip.AddrPort {
	f.Helper()
	server, at := f.netListener("127.0.0.1:0")
	server.Close()
	return at
}

func connectRefused(f *kernelTest) {
	_, _, err := f.result(f.connecting(f.nobody()))
	f.gives("connectResult", 0, err, 0, errRefused)
}

// connectReset: it was connected, and reset before anybody asked. Where the kernel keeps the error
// for the next read, connecting has succeeded.
func connectReset(f *kernelTest) {
	server, at := f.netListener("127.0.0.1:0")
	s := f.connecting(at)
	f.want(s, writable)
	f.await(s)
	resets(f.netAccept(server))
	f.want(s, readable|writable) // from now on connected, so it may be watched for both
	f.await(s)
	_, _, err := f.result(s)
	if err != nil && err != errReset {
		f.Errorf("connectResult: %v, want success or %v", err, errReset)
	}
}

// ---- read and write ----

func readAll(f *kernelTest) {
	s, c := f.pair()
	n, err := f.read(s, make([]byte, 10))
	f.gives("read", n, err, 0, errWouldBlock)
	f.send(c, "hello")
	c.CloseWrite()
	if got := f.receive(s, 5); got != "hello" {
		f.Errorf("read %q", got)
	}
	f.want(s, readable)
	f.await(s)
	for range 3 {
		n, err = f.read(s, make([]byte, 10))
		f.gives("read", n, err, 0, io.EOF)
	}
}

// readReset: where a signal comes with the error of write, it must not end the program.
func readReset(f *kernelTest) {
	s, c := f.pair()
	f.want(s, readable)
	resets(c)
	f.await(s)
	n, err := f.read(s, make([]byte, 10))
	f.gives("read", n, err, 0, errReset)
	n, err = f.write(s, []byte("x"))
	f.gives("write", n, err, 0, errReset)
}

// readUrgent sends a byte as urgent, to both kinds of sockets.
func readUrgent(f *kernelTest) {
	for _, pair := range []func() (socket, *net.TCPConn){f.pair, f.acceptedPair} {
		s, c := pair()
		f.send(c, "he")
		raw, err := c.SyscallConn()
		f.must("SyscallConn", err)
		f.must("Control", raw.Control(func(fd uintptr) { err = sendUrgent(fd, 'l') }))
		f.must("the peer's urgent write", err)
		f.send(c, "lo")
		if got := f.receive(s, 5); got != "hello" {
			f.Errorf("read %q", got)
		}
	}
}

func writeAll(f *kernelTest) {
	s, c := f.pair()
	total := f.fill(s)
	data := make([]byte, 4<<20)
	rand.NewChaCha8([32]byte{}).Read(data)
	got := make(chan []byte)
	go func() {
		all, _ := io.ReadAll(c)
		got <- all
	}()
	f.want(s, writable)
	for rest := data; len(rest) > 0; {
		f.await(s)
		n, err := f.write(s, rest)
		if err != errWouldBlock {
			f.must("write", err)
		}
		rest = rest[n:]
	}
	f.closeWrite(s)
	all := <-got
	if len(all) != total+len(data) || !bytes.Equal(all[total:], data) {
		f.Errorf("%d bytes have arrived, want %d, and the same", len(all), total+len(data))
	}
}

// writeReset: the first ones may still be taken.
func writeReset(f *kernelTest) {
	s, c := f.pair()
	f.want(s, readable)
	resets(c)
	f.await(s)
	var n int
	var err error
	for end := time.Now().Add(patience); err == nil && time.Now().Before(end); {
		n, err = f.write(s, []byte("x"))
	}
	f.gives("write", n, err, 0, errReset)
}

func closeHalf(f *kernelTest) {
	s, c := f.pair()
	n, err := f.write(s, []byte("x"))
	f.gives("write", n, err, 1, nil)
	f.closeWrite(s)
	all, err := io.ReadAll(c)
	if string(all) != "x" || err != nil {
		f.Errorf("the peer read %q, %v", all, err)
	}
	f.send(c, "still readable")
	if got := f.receive(s, 14); got != "still readable" {
		f.Errorf("read %q", got)
	}
}

// ---- open, listen, accept ----

// openFamily: a kernel without IPv6 says so, and all others have it.
func openFamily(f *kernelTest) {
	s, err := f.open(netip.IPv6Loopback())
	if err == nil {
		f.close(s)
	}
	_, netErr := net.Listen("tcp", "[::1]:0")
	wantsNone := kernelRig() == "no-ipv6" // a kernel that was started so
	if wantsNone && err != errNoFamily || netErr == nil && err != nil {
		f.Errorf("%v; package net: %v", err, netErr)
	}
}

func listenAndAccept(f *kernelTest) {
	listener, bound := f.listening(loopback)
	if bound.Addr() != loopback.Addr() || bound.Port() == 0 {
		f.Errorf("bound to %v", bound)
	}
	_, _, err := f.accept(listener)
	f.gives("accept", 0, err, 0, errWouldBlock)
	f.want(listener, readable)
	f.silent(listener, "before any connection")
	waiting := make(map[string]*net.TCPConn)
	for range 20 {
		c := f.netDial(bound)
		waiting[c.LocalAddr().String()] = c
	}
	for range 20 {
		f.want(listener, readable)
		f.loud(listener, "a connection")
		s, peer := f.accepted(listener)
		n, err := f.read(s, make([]byte, 1)) // it does not block
		f.gives("read", n, err, 0, errWouldBlock)
		f.send(waiting[peer.String()], "hello")
		delete(waiting, peer.String())
		if got := f.receive(s, 5); got != "hello" {
			f.Errorf("read %q", got)
		}
	}
	_, _, err = f.accept(listener)
	f.gives("accept", 0, err, 0, errWouldBlock)
	f.want(listener, readable)
	f.silent(listener, "after the last connection")
}

func listenBoth(f *kernelTest) {
	f.netListener("[::1]:0") // or there is no IPv6
	listener, bound := f.listening(netip.MustParseAddrPort("[::]:0"))
	for _, host := range []string{"127.0.0.1", "::1"} {
		c := f.netDial(netip.AddrPortFrom(netip.MustParseAddr(host), bound.Port()))
		_, peer := f.accepted(listener)
		if peer.String() != c.LocalAddr().String() {
			f.Errorf("accepted %v, want %v", peer, c.LocalAddr())
		}
	}
}

// listenFails: the call that has failed is named. 192.0.2.1 is nobody's (RFC 5737).
func listenFails(f *kernelTest) {
	_, inUse := f.listening(loopback)
	for _, at := range []netip.AddrPort{inUse, netip.MustParseAddrPort("192.0.2.1:0")} {
		_, _, err := f.listen(at)
		var call *os.SyscallError
		if !errors.As(err, &call) || call.Syscall != "bind" {
			f.Errorf("listen at %v: %v, want an error of bind", at, err)
		}
	}
	_, _, err := f.listen(netip.MustParseAddrPort("[fe80::1%no-such-zone]:0"))
	if err == nil {
		f.Error("listens in a zone that there is not")
	}
}

// listenAgain: a server that has closed its connections first can be started again at once, though
// TIME_WAIT holds them for half a minute.
func listenAgain(f *kernelTest) {
	if runtime.GOOS == "windows" {
		f.Skip("nobody shares a port here, and so it may have to wait")
	}
	listener, bound := f.listening(loopback)
	c := f.netDial(bound)
	s, _ := f.accepted(listener)
	f.shut(s)
	io.Copy(io.Discard, c)
	c.Close()
	f.shut(listener)
	f.listening(bound)
}

// acceptReset: some kernels drop such a connection, and some let it be accepted. None may say that
// anything has failed, for the next client is served.
func acceptReset(f *kernelTest) {
	listener, bound := f.listening(loopback)
	resets(f.netDial(bound))
	second := f.netDial(bound)
	f.want(listener, readable)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		f.await(listener)
		s, peer, err := f.accept(listener)
		if err == errWouldBlock {
			continue
		}
		f.must("accept", err)
		f.watched[s] = 0
		if peer.String() == second.LocalAddr().String() {
			return
		}
	}
	f.Error("the connection after it was never accepted")
}

// socketOptions: an accepted socket finds out that its client has vanished. A client's idle flow is
// idle.
func socketOptions(f *kernelTest) {
	client, _ := f.pair()
	accepted, _ := f.acceptedPair()
	for _, test := range []struct {
		s         socket
		keepAlive bool
	}{{client, false}, {accepted, true}} {
		noDelay, oobInline, keepAlive := shownOptions(test.s)
		if !noDelay || !oobInline || keepAlive != test.keepAlive {
			f.Errorf("accepted: %v; TCP_NODELAY %v, SO_OOBINLINE %v, SO_KEEPALIVE %v",
				test.keepAlive, noDelay, oobInline, keepAlive)
		}
	}
}

func nowIsFine(f *kernelTest) {
	other := time.Now()
	start := f.now()
	last := start
	finest := time.Hour
	for range 100_000 {
		now := f.now()
		if now < last {
			f.Fatalf("%v after %v", now, last)
		}
		if now > last {
			finest = min(finest, now-last)
		}
		last = now
	}
	if finest >= 100*time.Microsecond {
		f.Errorf("its smallest step is %v", finest)
	}
	time.Sleep(200 * time.Millisecond)
	passed, wanted := f.now()-start, time.Since(other)
	if (passed - wanted).Abs() > 100*time.Millisecond {
		f.Errorf("%v have passed, it says %v", wanted, passed)
	}
}

// ---- Descriptors ----

// TestKernelExhausted takes all descriptors that the process may have, so it runs alone.
func TestKernelExhausted(t *testing.T) {
	f := newKernelTest(t)
	listener, bound := f.listening(loopback)
	c := f.netDial(bound)
	defer c.Close()
	f.want(listener, readable)
	f.await(listener)
	limitDescriptors(f, 20)
	last, err := f.open(loopback.Addr())
	for err == nil {
		f.watched[last] = 0
		var s socket
		s, err = f.open(loopback.Addr())
		if err == nil {
			last = s
		}
	}
	_, kernelErr := newKernel()
	_, _, listenErr := f.listen(loopback)
	_, _, acceptErr := f.accept(listener)
	for i, err := range []error{err, kernelErr, listenErr, acceptErr} {
		var kind exhausted
		if !errors.As(err, &kind) || !strings.Contains(err.Error(), "too many open files") {
			t.Errorf("%v of %s", err, []string{"open", "newKernel", "listen", "accept"}[i])
		}
	}
	f.shut(last)
	f.listen(bound) // which fails, and has to give back the one that there is
	_, err = f.open(loopback.Addr())
	f.must("open, after listen has failed", err)
}

// ---- Two texts that are one ----

// twinDifferences are the only ones between the functions of poller_linux.go and poller_darwin.go
// from their sockets on. Where linux is "", the function is one system's own.
var twinDifferences = []struct{ function, linux, darwin, why string }{
	{"open", "unix.SOCK_STREAM|unix.SOCK_CLOEXEC", "unix.SOCK_STREAM", "XNU has no such flag"},
	{"connect", "\t\treturn errNoLocal\n", "\t\treturn errNoLocal\n\tcase unix.EINVAL:\n" +
		"\t\tif to.Addr().Is4() {\n\t\t\treturn errSelf\n\t\t}\n",
		"XNU refuses to connect a socket to itself"},
	{"connectResult", "unix.ENOTCONN {", "unix.ENOTCONN || err == unix.EINVAL {",
		"XNU knows no peer once the connection has ended"},
	{"accept", "", "", "XNU hands O_NONBLOCK on, and passes on no errors of the network"},
	{"resolver", "", "", "macOS knows more sources of names than files tell"},
	{"askNameServer", "", "", "it belongs to Linux's resolver"},
}

func TestKernelTwins(t *testing.T) {
	linux := socketFunctions(t, "poller_linux.go")
	darwin := socketFunctions(t, "poller_darwin.go")
	for _, d := range twinDifferences {
		switch {
		case d.linux == "" && linux[d.function] == darwin[d.function]:
			t.Errorf("%s does not differ", d.function)
		case d.linux == "":
			delete(linux, d.function)
			delete(darwin, d.function)
		case !strings.Contains(linux[d.function], d.linux):
			t.Errorf("%s of Linux has no %q", d.function, d.linux)
		default:
			linux[d.function] = strings.Replace(linux[d.function], d.linux, d.darwin, 1)
		}
	}
	if len(linux) < 10 || len(linux) != len(darwin) {
		t.Errorf("%d functions on Linux, %d on Darwin", len(linux), len(darwin))
	}
	for name, text := range linux {
		if text != darwin[name] {
			t.Errorf("%s differs:\n%s\n%s", name, text, darwin[name])
		}
	}
}

// kernelFunction is a Go function in formatted text, with its name.
var kernelFunction = regexp.MustCompile(`(?ms)^func (?:\([^)]*\) )?(\w+)\((?:[^\n]*}$|.*?^}$)`)

// socketFunctions are the functions of a file after the banner of the sockets, without comments.
func socketFunctions(t *testing.T, path string) map[string]string {
	source, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		t.Skip("the sources are not here")
	}
	_, half, _ := strings.Cut(string(source), "\n// ---- The sockets ----\n")
	half = regexp.MustCompile(`[\t ]*// .*`).ReplaceAllString(half, "")
	functions := make(map[string]string)
	for _, match := range kernelFunction.FindAllStringSubmatch(half, -1) {
		functions[match[1]] = match[0]
	}
	return functions
}
