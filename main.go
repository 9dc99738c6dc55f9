// Echomux proves a TCP path end to end: it connects within a time limit, sends data, reads it back
// from an echo server, compares every byte, and says in one line and one exit status what happened.
//
//	echomux                                  the demo: both ends in one loop, every step shown
//	echomux [flags] HOST PORT [MESSAGE ...]  prove the path, with standard input if no MESSAGE
//	echomux -serve [HOST] PORT               be the echo server
//
// On the wire: a socket in non-blocking mode connects once, then writes until the kernel refuses
// bytes and reads whatever is back, both directions at once; when all is back it half-closes, waits
// for the peer's FIN and closes. One goroutine does it, in one loop around one poller. Three others
// help and decide nothing: one blocks in name resolution, one in reading standard input, one waits
// for signals; each puts its result into the loop's mailbox and wakes the poller.
//
// Reading order: run, loop, conn (the client), ring and input, listener and echo (the server), the
// command line, the report, and the contract of the seam at the end; then one poller_<os>.go, which
// spells it in one kernel's words. Left out on purpose: TLS, UDP, proxies, edge triggering.
package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Exit statuses.
const (
	exitOK             = iota // every connection did its whole job
	exitExchange              // reset, closed early, a byte differs, more came back than was sent
	exitUsage                 // the command line
	exitConnect               // no such name, refused, unreachable, connected to itself
	exitConnectTimeout        // name resolution included
	exitIOTimeout             // silence while the peer owed something
	exitLocal                 // standard input or output, too many open files
)

const (
	ringSize    = 1 << 20                // bytes of standard input kept until they are back, at most
	loanSize    = 256 << 10              // bytes of one read of it; a smaller gap is not worth two wake-ups
	chunkSize   = 128 << 10              // bytes of one read of a socket, at most
	batchSize   = 256                    // events of one wait, at most
	minTry      = time.Second            // for one address of several, while that much is left
	drainTime   = 500 * time.Millisecond // for the peer's FIN after ours
	maxAddrs    = 128                    // of a name: each is tried, and named if all fail
	acceptPause = 100 * time.Millisecond // when accept fails, say for want of descriptors
	never       = time.Duration(math.MaxInt64)
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

// run is echomux as a function; it returns the exit status.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	o, err := parse(args)
	if err != nil {
		fmt.Fprintf(stderr, "echomux: %v (echomux -h shows the usage)\n", err)
		return exitUsage
	} else if o.help {
		io.WriteString(stdout, usage)
		return exitOK
	}
	p, err := newPoller()
	if err == nil && !o.brief() {
		// The Go runtime makes a poller of its own when it first sets a timer, say for its
		// collector, or when package net opens a socket, and dies if it cannot: let it, now, if
		// there is room for one. A brief run comes to none of this.
		var room poller
		if room, err = newPoller(); err == nil {
			room.close()
			time.Sleep(time.Nanosecond)
		}
	}
	if err != nil {
		fmt.Fprintf(stderr, "echomux: %v\n", err)
		return exitLocal
	}
	start := time.Now()
	l := newLoop(o, p, system{}, func() time.Duration { return time.Since(start) })
	l.stdout, l.stderr = stdout, stderr
	l.lookup = func(host, family string, left time.Duration) ([]netip.Addr, error) {
		ctx, cancel := context.WithTimeout(context.Background(), left)
		defer cancel()
		return lookup(ctx, newResolver(), host, family)
	}
	l.startInput = func(in *input) { go in.readAll(stdin) }
	l.catchSignals()
	l.run()
	l.close()
	return l.report()
}

// catchSignals makes the first SIGINT or SIGTERM end the loop and the second one the program, at
// once, also where the loop is stuck: a standard output that nobody reads stops it. A SIGINT that was
// ignored at start (a shell's background job) stays ignored. Of SIGTERM that cannot be known: the Go
// runtime has put its own handler in place, and forgets what was there (os/signal, SIGHUP and SIGINT).
func (l *loop) catchSignals() {
	signal.Ignore(sigPipe) // a closed standard output is an error to report, not a silent death
	status, caught := map[os.Signal]int{os.Interrupt: 130, sigTerm: 143}, make(chan os.Signal, 2)
	for s := range status {
		if !signal.Ignored(s) {
			signal.Notify(caught, s)
		}
	}
	go func() {
		s := <-caught
		l.post(func() { l.jobs, l.interrupted = 0, status[s] })
		os.Exit(status[<-caught])
	}()
}

// ---- The loop ----

// readiness is a set of directions.
type readiness uint8

const (
	readable readiness = 1 << iota // read yields bytes, EOF or the error; accept, a connection
	writable                       // write takes bytes, or connect has finished
)

// machine is whatever the loop watches: a small state machine around one socket.
type machine interface {
	base() *watch
	interest() readiness     // what this state waits for; pure
	deadline() time.Duration // on the loop's clock, or never; pure
	ready(readiness)         // a part of the interest has come
	expired()                // the deadline has passed
}

// watch is what the loop keeps about a machine.
type watch struct {
	*loop
	name  string    // begins its log lines
	sock  socket    // ours to close while open
	armed readiness // the interest that the poller knows
	open  bool
	born  uint64 // the turn that opened sock
	index int    // in loop.machines
}

func (w *watch) base() *watch            { return w }
func (w *watch) deadline() time.Duration { return never }
func (w *watch) expired()                {}

// loop is one run: the platform, the machines, and what they share.
type loop struct {
	options
	poller         poller
	net            sockets
	clock          func() time.Duration // monotonic
	lookup         func(host, family string, left time.Duration) ([]netip.Addr, error)
	startInput     func(*input)
	stdout, stderr io.Writer

	now, earliest time.Duration // the clock's last reading; no deadline is before earliest
	turn          uint64        // waits so far
	events        []event
	buf           []byte // all sockets are read into this one
	spare         []byte // a stand-in for it, see echo
	machines      []machine
	watched       map[socket]machine
	jobs, loans   int          // unfinished connections, or -serve; goroutines that will post
	interrupted   int          // exit status of the signal
	addrs         []netip.Addr // of HOST
	connectBy     time.Duration
	tally, served tally // the client's connections; the server's

	mail   chan func() // the mailbox, with room for the three goroutines: none has two on their way
	mu     sync.Mutex  // guards closed
	closed bool        // nobody wakes the poller any more
}

// newLoop makes a run of a platform; what it lacks, run fills in.
func newLoop(o options, p poller, net sockets, clock func() time.Duration) *loop {
	return &loop{options: o, poller: p, net: net, clock: clock, now: clock(), earliest: never, jobs: o.n,
		events: make([]event, batchSize), buf: make([]byte, chunkSize), watched: make(map[socket]machine),
		mail: make(chan func(), 3)}
}

// run starts the first machines and turns until every job is done. A turn waits once, serves each
// socket that the poller named, lets pass the deadlines that have, and delivers the mail.
func (l *loop) run() {
	l.connectBy = l.after(l.connectTimeout)
	if l.serve || l.demo {
		l.resolve(l.listenAll)
	}
	if !l.serve && l.jobs > 0 {
		l.resolve(l.connectAll)
	}
	for l.deliver(); l.jobs > 0; l.deliver() {
		if len(l.watched) == 0 && l.loans == 0 && l.earliest == never {
			panic("echomux: nothing is watched, lent or due, and the run is not over")
		}
		l.turn++
		n, err := l.poller.wait(l.events, l.waitMs())
		l.abort(exitLocal, err)
		l.now = l.clock()
		for _, ev := range l.events[:n] {
			// An earlier event of the batch may have closed the socket, and the kernel may have
			// given its number to a new one, to which nothing can have happened yet.
			m := l.watched[ev.socket]
			if m == nil || m.base().born == l.turn || ev.ready&m.base().armed == 0 {
				continue
			}
			m.ready(ev.ready & m.base().armed)
			l.settle(m)
		}
		if l.now >= l.earliest {
			l.expire()
		}
	}
}

// abort ends the run if err is one: what is unfinished has failed.
func (l *loop) abort(status int, err error) {
	if err != nil && l.jobs > 0 {
		l.tally.count(status, err, l.jobs)
		l.jobs = 0
	}
}

// after is the deadline d from now; it saturates.
func (l *loop) after(d time.Duration) time.Duration { return l.now + min(d, never-l.now) }

// waitMs is the time to the earliest deadline in milliseconds, -1 without one. It is rounded up: a
// wait that ended just before the deadline would be followed by many of 0 ms.
func (l *loop) waitMs() int {
	if l.earliest == never {
		return -1
	}
	return int((min(max(0, l.earliest-l.now), time.Hour) + time.Millisecond - 1) / time.Millisecond)
}

// settle makes the poller and the earliest deadline agree with m's state, and is alone in that. What
// has no interest is out of the poller, or its hang-up would be reported for ever.
func (l *loop) settle(m machine) {
	w := m.base()
	if !w.open {
		return
	}
	l.earliest = min(l.earliest, m.deadline())
	was, want := w.armed, m.interest()
	switch w.armed = want; {
	case want == was:
		return
	case was == 0:
		l.abort(exitLocal, l.poller.add(w.sock, want))
	case want == 0:
		l.abort(exitLocal, l.poller.remove(w.sock))
	default:
		l.abort(exitLocal, l.poller.modify(w.sock, want))
	}
	if w.verbose { // the argument would be an allocation
		w.logf("watching for %s", [...]string{"nothing", "read only", "write only", "read and write"}[want])
	}
}

// expire serves the deadlines that have passed and finds the earliest of the others: O(N), but
// rare, since moving bytes move the deadlines away.
func (l *loop) expire() {
	l.earliest = never
	for i := len(l.machines) - 1; i >= 0; i-- { // backwards: close moves the last one into a gap
		m := l.machines[i]
		if m.deadline() <= l.now {
			m.expired()
		}
		l.settle(m)
	}
}

// watch begins with m's socket s; close ends it.
func (l *loop) watch(m machine, s socket) {
	w := m.base()
	w.sock, w.open, w.born, w.index = s, true, l.turn, len(l.machines)
	l.machines, l.watched[s] = append(l.machines, m), m
}

// close takes the socket out of the poller and closes it, in this order: closed, its number can be
// another's. Neither failure matters, the descriptor is gone either way (close(2)).
func (w *watch) close() {
	if !w.open {
		return
	}
	if w.armed != 0 {
		w.poller.remove(w.sock)
	}
	w.net.close(w.sock)
	w.open, w.armed = false, 0
	delete(w.watched, w.sock)
	last := len(w.machines) - 1
	w.machines[last].base().index = w.index
	w.machines[w.index], w.machines[last] = w.machines[last], nil
	w.machines = w.machines[:last]
	w.logf("closed")
}

// post has the loop call f, soon. Any goroutine may post, even after the loop's end.
func (l *loop) post(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.mail <- f
		l.poller.wake()
	}
}

// deliver calls what has been posted.
func (l *loop) deliver() {
	for range len(l.mail) {
		(<-l.mail)()
	}
}

// close ends what is left of an interrupted run, then the poller.
func (l *loop) close() {
	for len(l.machines) > 0 {
		l.machines[len(l.machines)-1].base().close()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.poller.close()
}

// logf writes a line of -v.
func (w *watch) logf(format string, args ...any) {
	if w.verbose {
		fmt.Fprintf(w.stderr, "[echomux (%d)] %s%s\n", os.Getpid(), w.name, fmt.Sprintf(format, args...))
	}
}

// logData is logf for the hot path: without -v it allocates nothing.
func (w *watch) logData(what string, p []byte) {
	if w.verbose && len(p) > 0 {
		w.logf("%s: %s", what, quoted(p))
	}
}

// resolve calls then with the addresses of HOST, at once for a literal, else when a goroutine has
// them.
func (l *loop) resolve(then func([]netip.Addr)) {
	answer := func(addrs []netip.Addr, err error) {
		var usable []netip.Addr
		for _, a := range addrs {
			a = a.Unmap() // ::ffff:192.0.2.1 is IPv4
			if inFamily(a, l.family) && !slices.Contains(usable, a) && len(usable) < maxAddrs {
				usable = append(usable, a)
			}
		}
		if err == nil && len(usable) == 0 {
			err = errNoFamily
		}
		if err != nil {
			l.abort(statusOf(err, exitConnectTimeout, exitConnect), fmt.Errorf("lookup %s: %w", printable(l.host), err))
			return
		}
		(&watch{loop: l}).logf("resolved %s to %v", printable(l.host), usable)
		then(usable)
	}
	if l.serve && l.host == "*" {
		answer([]netip.Addr{netip.IPv6Unspecified(), netip.IPv4Unspecified()}, nil)
	} else if a, err := netip.ParseAddr(l.host); err == nil {
		_, err = zoneNumber(a.Zone())
		answer([]netip.Addr{a}, err)
	} else {
		l.loans++
		left := l.connectBy - l.now
		go func() {
			addrs, err := l.lookup(l.host, l.family, left)
			l.post(func() { l.loans--; answer(addrs, err) })
		}()
	}
}

// ---- The client ----

// state of a connection; each has one way on and one way out, which README.md draws.
type state uint8

const (
	connecting state = iota
	exchanging
	closing // all is back; draining to the peer's FIN
	over
)

// conn is one connection of the client. goal, sent and returned are offsets into its stream.
type conn struct {
	watch
	state     state
	tried     int // addresses, so far
	peer      netip.AddrPort
	causes    error         // of the addresses that failed
	since, by time.Duration // connect was called, then it was answered; deadline of connecting and closing

	data                 ring
	in                   *input // nil: data is the MESSAGEs
	goal, sent, returned int64  // there to be sent; taken by the kernel; back (-until echo: and identical)
	last                 bool   // nothing will follow goal
	blocked, finSent     bool   // the kernel refused bytes; our FIN is out
	broken               error  // ended sending before its time
	owing                bool
	moved                time.Duration // the idle clock's start: bytes moved, or the debt began

	round      int64         // rounds begun
	began, due time.Duration // the last one's first byte was tried; the next one may begin
}

// interest: writing is tried before it is waited for, so writable means that the kernel refused.
func (c *conn) interest() readiness {
	switch {
	case c.state == connecting:
		return writable
	case c.blocked:
		return readable | writable
	}
	return readable
}

// owed: does the peer owe us something? Only then is its silence a failure.
func (c *conn) owed() bool {
	return c.blocked || c.finSent || c.broken != nil || c.until == "echo" && c.returned < c.sent
}

// settled is the offset before which nothing is needed any more.
func (c *conn) settled() int64 {
	if c.until == "echo" {
		return c.returned
	}
	return c.sent
}

// idle: has all that there was to send done its work, and may more be sent?
func (c *conn) idle() bool {
	return c.settled() == c.goal && !c.finSent && c.broken == nil
}

// deadline: silence counts while something is owed, and a round begins when it is due.
func (c *conn) deadline() time.Duration {
	switch {
	case c.state != exchanging:
		return c.by
	case c.owed():
		return c.moved + min(c.ioTimeout, never-c.moved)
	}
	return c.due
}

// ready takes one step in each direction that is ready.
func (c *conn) ready(r readiness) {
	if c.state == connecting {
		c.connectNext(c.connected())
		return
	}
	if r&readable != 0 { // first: data can precede the reset that a write would run into
		c.receive()
	}
	if r&writable != 0 {
		c.blocked = false
	}
	c.advance()
}

// expired: the round is due, or the time of the state is up.
func (c *conn) expired() {
	if c.state == exchanging && !c.owed() {
		c.advance()
		return
	}
	c.ready(c.interest()) // once more: this process may have been stopped, not the peer
	switch {
	case c.state == over || c.deadline() > c.now:
	case c.state == connecting:
		c.connectNext(errTimedOut)
	case c.state == exchanging:
		c.fail(fmt.Errorf("%w after %v of silence (%d of %d bytes)", errTimedOut, c.ioTimeout, c.settled(), c.goal))
	default:
		c.logf("drained for %v: no FIN", drainTime)
		c.finish(exitOK, nil) // the job was done before
	}
}

// connectAll starts every connection.
func (l *loop) connectAll(addrs []netip.Addr) {
	l.addrs = addrs
	for i := 0; i < l.n && l.jobs > 0; i++ {
		c := &conn{watch: watch{loop: l}}
		if l.n > 1 {
			c.name = "#" + strconv.Itoa(i+1) + " "
		}
		c.connectNext(c.connect())
		l.settle(c)
	}
}

// connect makes a socket for the next address and connects it, once, without blocking. What
// SO_SNDTIMEO does for a blocking connect on Linux alone (socket(7)) is here a wait for
// writability with a deadline. Each address gets its share of the time that is left.
func (c *conn) connect() error {
	c.now = c.clock()
	left := max(0, c.connectBy-c.now)
	c.since, c.by = c.now, c.now+min(left, max(minTry, left/time.Duration(len(c.addrs)-c.tried)))
	c.peer = netip.AddrPortFrom(c.addrs[c.tried], c.port)
	c.tried++
	s, err := c.net.openSocket(c.peer)
	if err != nil {
		return err
	}
	c.loop.watch(c, s)
	c.logf("socket for %v", c.peer)
	if err = c.net.setNonblock(s); err != nil {
		return err
	}
	c.logf("switch to non-blocking mode")
	if err = c.net.connect(s, c.peer); err == nil {
		return c.connected()
	} else if err == errWouldBlock {
		c.logf("connect pending")
	}
	return err
}

// connected asks how connect ended; nil means that the exchange has begun.
func (c *conn) connected() error {
	local, peer, err := c.net.connectResult(c.sock)
	if err == nil && local == peer {
		// Without a listener, a connect whose ephemeral port is the port it asks for meets itself
		// (RFC 9293 section 3.5, simultaneous open): a perfect, false echo.
		return fmt.Errorf("%w (connected to itself)", errRefused)
	} else if err != nil && err != errReset {
		return err
	}
	c.now = c.clock()
	c.tally.connect.add(c.now - c.since)
	c.tally.place = c.peer.String()
	c.state, c.since, c.moved = exchanging, c.now, c.now
	c.logf("connected %v to %v", local, c.peer)
	switch {
	case err == errReset:
		// Only what was connected can be reset: try no other address, read what came before.
		c.broken = described("connect", c.peer, err)
	case c.until == "connect":
		c.finish(exitOK, nil)
	case c.block == nil:
		c.due = never
		c.data, c.in = make(ring, ringSize), &input{conn: c, lend: make(chan []byte, 1)}
		c.startInput(c.in)
	default:
		c.data = c.block
	}
	c.advance()
	return nil
}

// connectNext goes on to the next address while err says that the one before has failed.
func (c *conn) connectNext(err error) {
	for ; err != nil && err != errWouldBlock; err = c.connect() {
		c.watch.close()
		err = described("connect", c.peer, err)
		c.causes = errors.Join(c.causes, err)
		c.logf("%v", err)
		switch {
		case errors.Is(err, errTooManyFiles): // the connections asked for cannot all be held
			c.abort(exitLocal, err)
			return
		case c.tried == len(c.addrs):
			c.finish(statusOf(c.causes, exitConnectTimeout, exitConnect), c.causes)
			return
		}
	}
}

// send writes until nothing is left or the kernel refuses bytes. A short count is a refusal: the
// next write would only be told EAGAIN.
func (c *conn) send() {
	for c.sent < c.goal && !c.blocked && c.broken == nil {
		p := c.data.piece(c.sent, c.goal)
		n, err := c.net.write(c.sock, p)
		if err != nil && err != errWouldBlock {
			c.broken = described("write", c.peer, err) // replies may still be readable
			c.logf("%v", c.broken)
			return
		}
		if c.blocked = n < len(p); n > 0 {
			c.sent, c.tally.sent, c.now = c.sent+int64(n), c.tally.sent+int64(n), c.clock()
			c.moved = c.now
			c.logData("sent", p[:n])
		}
	}
}

// receive reads once; level triggering reports what is left. Only a read of 0 bytes is EOF.
func (c *conn) receive() {
	n, err := c.net.read(c.sock, c.buf)
	if err == io.EOF && c.in != nil {
		c.goal = c.in.total.Load() // what was read by now had to be sent, delivered or not
	}
	switch {
	case err == errWouldBlock:
	case err == nil:
		c.accept(c.buf[:n])
	case c.state == closing: // EOF, or a failure too late to matter
		c.logf("drained: %v", err)
		c.finish(exitOK, nil)
	case err == io.EOF && c.until == "eof" && c.sent == c.goal && c.broken == nil:
		c.tally.exchange.add(c.now - c.since)
		c.finish(exitOK, nil)
	case err == io.EOF:
		c.fail(fmt.Errorf("closed early (%d of %d bytes)", c.settled(), c.goal))
	default:
		c.fail(err)
	}
}

// accept verifies the bytes p and hands the right ones on.
func (c *conn) accept(p []byte) {
	good, wrong := c.verify(p)
	c.returned, c.tally.returned = c.returned+int64(good), c.tally.returned+int64(good)
	c.logData("recv", p)
	if c.n == 1 && good > 0 {
		if _, err := c.stdout.Write(p[:good]); err != nil {
			c.finish(exitLocal, fmt.Errorf("standard output: %w", err))
			return
		}
	}
	c.now = c.clock() // a slow reader of our output is no silence of the peer
	c.moved = c.now
	if wrong != nil {
		c.finish(exitExchange, described("read", c.peer, wrong))
	} else if c.rounds() && c.returned == c.goal {
		c.roundDone()
	}
}

// verify counts the bytes of p that are the next ones due and says what is wrong with the first
// that is not.
func (c *conn) verify(p []byte) (good int, wrong error) {
	if c.until != "echo" {
		return len(p), nil
	}
	for good < len(p) {
		at := c.returned + int64(good)
		if at == c.sent {
			return good, fmt.Errorf("more came back than was sent: byte %d is %#02x: is this an echo server?", at, p[good])
		}
		want := c.data.piece(at, min(c.sent, c.returned+int64(len(p))))
		got := p[good : good+len(want)]
		if !bytes.Equal(got, want) { // in bulk; byte by byte only where it is known to end
			n := 0
			for got[n] == want[n] {
				n++
			}
			return good + n, fmt.Errorf("byte %d differs: sent %#02x, came back %#02x: is this an echo server?",
				at+int64(n), want[n], got[n])
		}
		good += len(want)
	}
	return good, nil
}

// advance takes the steps that have become possible.
func (c *conn) advance() {
	if c.state != exchanging {
		return
	}
	if !c.last && c.due <= c.now && c.idle() { // there is one more copy of the MESSAGEs to send
		c.round++
		c.last = c.round == c.count
		c.goal += int64(len(c.data))
		c.began, c.due = c.now, c.after(c.every)
	}
	c.send()
	if c.last && c.idle() {
		c.halfClose()
	}
	if owing := c.owed(); owing != c.owing {
		c.owing, c.moved = owing, c.now
	}
	c.lendInput()
}

// roundDone counts the round trip: from the first byte tried to the last byte back.
func (c *conn) roundDone() {
	c.tally.rtt.add(c.now - c.began)
	if c.every > 0 && !c.quiet {
		rtt := spread{n: 1, sum: c.now - c.began}
		fmt.Fprintf(c.stderr, "echomux: %v %sround=%d%s\n", c.peer, c.name, c.round, rtt.ms("rtt", true))
	}
}

// halfClose sends our FIN behind all that was sent. After an echo the peer's is awaited for a moment:
// closing with bytes unread would reset the peer, and a byte that comes now is one too many.
func (c *conn) halfClose() {
	c.finSent = true
	c.logf("shutdown: all %d bytes are sent", c.sent)
	if err := c.net.closeWrite(c.sock); err != nil {
		c.broken = described("shutdown", c.peer, err)
	}
	if c.until == "echo" {
		c.tally.exchange.add(c.now - c.since)
		c.state, c.by = closing, c.after(drainTime)
	}
}

// statusOf tells a timeout and the want of descriptors from other failures. Of several addresses
// the one furthest along decides: refused, then timed out.
func statusOf(err error, timeout, other int) int {
	switch {
	case errors.Is(err, errTooManyFiles):
		return exitLocal
	case errors.Is(err, errTimedOut) && !errors.Is(err, errRefused):
		return timeout
	}
	return other
}

// fail ends the connection with its first failure: a broken write before what followed from it.
func (c *conn) fail(err error) {
	err = cmp.Or(c.broken, described("read", c.peer, err))
	c.finish(statusOf(err, exitIOTimeout, exitExchange), err)
}

// finish counts the connection and ends it.
func (c *conn) finish(status int, err error) {
	c.state = over
	c.close()
	if c.jobs > 0 { // else the run was aborted or interrupted, with this one unfinished
		c.jobs--
		c.tally.count(status, err, 1)
	}
}

// ---- Data ----

// ring holds a stream of bytes by offset modulo its length. Standard input passes through one; the
// MESSAGEs are one that is always full, read anew by each round of each connection.
type ring []byte

// piece is the longest contiguous part of the stream from offset from, up to to.
func (r ring) piece(from, to int64) []byte {
	i := from % int64(len(r))
	return r[i:min(int64(len(r)), i+to-from)]
}

// input is standard input on its way into a connection's ring. A goroutine reads it, because files
// and consoles cannot be polled everywhere, and O_NONBLOCK would stay behind in the user's shell.
type input struct {
	conn  *conn
	lend  chan []byte
	lent  bool
	total atomic.Int64 // bytes read
	err   error        // the goroutine's while a slice is lent, else the loop's
}

// readAll fills each slice it is lent with one read.
func (in *input) readAll(r io.Reader) {
	deliver := in.deliver // made once: it is an allocation
	for p := range in.lend {
		n, err := r.Read(p)
		in.total.Add(int64(n))
		in.err = err
		in.conn.post(deliver)
	}
}

// lendInput lends the ring's next gap; a full ring stops the reader, so memory stays constant.
func (c *conn) lendInput() {
	if c.in == nil || c.in.lent || c.last || c.broken != nil {
		return
	}
	p := c.data.piece(c.goal, c.settled()+ringSize)
	if len(p) >= loanSize || len(p) > 0 && (c.goal+int64(len(p)))%ringSize == 0 {
		c.in.lent = true
		c.loans++
		c.in.lend <- p[:min(len(p), loanSize)]
	}
}

// deliver takes a slice back.
func (in *input) deliver() {
	c := in.conn
	in.lent = false
	c.loans--
	c.goal = in.total.Load()
	if c.last = in.err == io.EOF; in.err != nil && !c.last {
		c.finish(exitLocal, fmt.Errorf("standard input: %w", in.err))
		return
	}
	c.advance()
	c.settle(c)
}

// ---- The echo server ----

// listener accepts connections. While accept fails it stays out of the poller for a moment: what
// waits in its backlog would be reported again at once.
type listener struct {
	watch
	addr   netip.AddrPort
	paused time.Duration // until then; never: it is not
	silent time.Duration // no complaint until then
}

func (s *listener) deadline() time.Duration { return s.paused }
func (s *listener) expired()                { s.paused = never }
func (s *listener) interest() readiness {
	if s.paused != never {
		return 0
	}
	return readable
}

// ready accepts what waits in the backlog, a batch at most: the others' turn comes too.
func (s *listener) ready(readiness) {
	for range batchSize {
		sock, peer, err := s.net.accept(s.sock)
		switch err {
		case nil:
			e := &echo{watch: watch{loop: s.loop, name: s.name}, peer: peer}
			s.loop.watch(e, sock)
			e.logf("accepted %v", peer)
			s.settle(e)
		case errWouldBlock:
			return
		case errReset: // it left while it waited in the backlog
		default:
			if s.now >= s.silent { // once, not ten times a second
				fmt.Fprintf(s.stderr, "echomux: %v\n", described("accept", s.addr, err))
			}
			s.paused, s.silent = s.after(acceptPause), s.after(time.Minute)
			return
		}
	}
}

// listenAll starts a listener on each address. One that this kernel lacks, say IPv6, is passed over
// while another can be served.
func (l *loop) listenAll(addrs []netip.Addr) {
	for i, a := range addrs {
		s := &listener{watch: watch{loop: l, name: "server: "}, addr: netip.AddrPortFrom(a, l.port), paused: never}
		sock, bound, err := l.net.listen(s.addr)
		if err == errNoAddress && (l.served.place != "" || i+1 < len(addrs)) {
			continue
		} else if err != nil {
			l.abort(exitLocal, described("listen", s.addr, err))
			return
		}
		s.addr, l.port = bound, bound.Port() // the demo's is the kernel's choice
		l.watch(s, sock)
		s.logf("listening on %v", bound)
		l.settle(s)
		l.served.place = strings.TrimSpace(l.served.place + " " + bound.String())
	}
}

// echo is one accepted connection. It reads only when all that it has read is written, so a client
// that stops reading stops only itself. Bytes that the kernel refused stay in the buffer they were
// read into, and the loop reads into another one until they are gone: nothing is copied, and an
// idle connection holds no buffer.
type echo struct {
	watch
	peer          netip.AddrPort
	pending, kept []byte // read, not yet written; the buffer that holds it
}

// interest: reading and writing take turns.
func (e *echo) interest() readiness {
	if len(e.pending) > 0 {
		return writable
	}
	return readable
}

// ready reads once and writes at once; only what is refused waits for writability.
func (e *echo) ready(readiness) {
	op, n, err := "read", 0, error(nil)
	if len(e.pending) == 0 {
		n, err = e.net.read(e.sock, e.buf)
		e.pending = e.buf[:n]
		e.served.sent += int64(n)
		e.logData("recv", e.pending)
	}
	if len(e.pending) > 0 {
		op = "write"
		n, err = e.net.write(e.sock, e.pending)
		e.logData("sent", e.pending[:n])
		e.pending = e.pending[n:]
		e.served.returned += int64(n)
	}
	switch {
	case err == io.EOF: // the good end
		e.served.ok++
		e.close()
	case err != nil && err != errWouldBlock:
		e.served.failed++
		e.logf("%v", described(op, e.peer, err))
		e.close()
	case len(e.pending) == 0:
		e.pending = nil // even empty it would hold a buffer
		if e.kept != nil {
			e.spare, e.kept = e.kept, nil
		}
	case e.kept == nil:
		e.kept, e.buf, e.spare = e.buf, e.spare, nil
		if e.buf == nil {
			e.buf = make([]byte, chunkSize)
		}
	}
}

// ---- Names ----

// Package net finds the addresses, in the way of each system: newResolver is the backend's. What is
// left to do here is to keep what it says fit for a terminal and for an exit status.

var (
	errNoName   = errors.New("no such name")
	errNoFamily = errors.New("no address of that family")
)

// checkHost refuses what looks like an address and is none. Taken for a name it would be asked for
// at a name server, which may even know an answer.
func checkHost(host string) error {
	if _, err := netip.ParseAddr(host); err == nil {
		return nil
	}
	if strings.ContainsAny(host, "[]:") {
		return fmt.Errorf("HOST \"%s\": is no address, and no name has [, ] or :", legible(host))
	}
	name := strings.TrimSuffix(host, ".")
	label := name[strings.LastIndexByte(name, '.')+1:]
	if label != "" && strings.Trim(label, "0123456789") == "" {
		return fmt.Errorf("HOST \"%s\": is no address, and no name ends in a number", legible(host))
	}
	return nil
}

// lookup finds the addresses of host in a family, ip, ip4 or ip6, before ctx ends. Its errors do
// not repeat the name; errors.Is tells errNoName, errTimedOut and errTooManyFiles.
func lookup(
	ctx context.Context, resolver *net.Resolver, host, family string,
) ([]netip.Addr, error) {
	found := []netip.Addr{netip.IPv6Loopback(), netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	if !isLocalhost(host) {
		var err error
		found, err = ask(ctx, resolver, host, family)
		if err != nil {
			return nil, lookupError(err)
		}
	}
	var addrs []netip.Addr
	failure := errNoFamily
	for _, a := range found {
		// Package net keeps IPv4 as ::ffff:192.0.2.1.
		a = a.Unmap()
		_, err := zoneNumber(a.Zone())
		switch {
		case err != nil:
			failure = err
		case inFamily(a, family):
			addrs = append(addrs, a)
		}
	}
	if len(addrs) == 0 {
		return nil, failure
	}
	return addrs, nil
}

// isLocalhost: these names are loopback's, whatever a file lacks or a server says, and nobody is
// asked for them (RFC 6761 section 6.3).
func isLocalhost(host string) bool {
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	return name == "localhost" || strings.HasSuffix(name, ".localhost")
}

// inFamily: is a, which is unmapped, one of the addresses that are wanted?
func inFamily(a netip.Addr, family string) bool {
	return family == "ip" || a.Is4() == (family == "ip4")
}

// ask is LookupNetIP, which asks for the family that is wanted and no other, but loses zones. A
// link-local address is of no use without its zone, so these are looked up once more.
func ask(ctx context.Context, resolver *net.Resolver, host, family string) ([]netip.Addr, error) {
	addrs, err := resolver.LookupNetIP(ctx, family, host)
	if !slices.ContainsFunc(addrs, netip.Addr.IsLinkLocalUnicast) {
		return addrs, err
	}
	found, err := resolver.LookupIPAddr(ctx, host)
	addrs = nil
	for _, f := range found {
		a, ok := netip.AddrFromSlice(f.IP)
		if ok {
			addrs = append(addrs, a.WithZone(f.Zone))
		}
	}
	return addrs, err
}

// lookupError says what an error of the resolver's comes to.
func lookupError(err error) error {
	var unsuitable *net.AddrError
	if errors.As(err, &unsuitable) {
		return errNoFamily
	}
	var dns *net.DNSError
	if !errors.As(err, &dns) {
		return causeOf(err.Error())
	}
	if dns.IsNotFound {
		return errNoName
	}
	cause := causeOf(dns.Err)
	if dns.IsTimeout {
		cause = errTimedOut
	}
	if dns.Server == "" {
		return cause
	}
	return fmt.Errorf("name server %s: %w", legible(dns.Server), cause)
}

// causeOf is the last words of an error of package net, which has many and no error number behind
// them: "read udp 127.0.0.1:39482->127.0.0.2:53: read: connection refused".
func causeOf(text string) error {
	if strings.Contains(text, errTooManyFiles.Error()) {
		return errTooManyFiles
	}
	words := strings.Split(text, ": ")
	return errors.New(legible(words[len(words)-1]))
}

// zoneNumber is the number of an address's zone, 0 if it has none. A zone can be the name of an
// interface (RFC 4007 section 11).
func zoneNumber(zone string) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	number, err := strconv.ParseUint(zone, 10, 32)
	if err == nil {
		return uint32(number), nil
	}
	named, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, fmt.Errorf("zone \"%s\": %w", legible(zone), causeOf(err.Error()))
	}
	return uint32(named.Index), nil
}

// ---- The command line ----

// options are the command line, checked.
type options struct {
	connectTimeout, ioTimeout, every time.Duration
	until, family, host              string // family: ip, ip4 or ip6, the words of package net
	n                                int
	count                            int64
	verbose, quiet, serve, demo      bool
	help                             bool
	port                             uint16
	block                            []byte // the MESSAGEs; nil: standard input
}

const usage = `usage: echomux [flags] HOST PORT [MESSAGE ...]   all that is sent has to come back
       echomux -serve [HOST] PORT               be the echo server
       echomux                                  the demo: both ends in one loop

Each MESSAGE is sent with a newline; without one, standard input is sent.

  -connect-timeout 3.5s  from name to connection, all addresses together
  -io-timeout 5.5s       longest silence while the peer owes something
  -until echo            when the job is done: connect, as soon as there is a connection;
                         echo, every byte came back; eof, half-close and read to the end
  -n 1                   connections at once, each with the same MESSAGEs
  -count 1               rounds of the MESSAGEs on each connection; 0: until Ctrl-C
  -every 0s              a round starts no sooner than this after the one before
  -4, -6                 one address family
  -v, -q                 log every step; print only failures

exit status: 0 every connection did its whole job; 1 the exchange went wrong; 2 usage;
3 not connected; 4 connect timeout; 5 I/O timeout; 6 local failure; 130, 143 interrupted
`

// parse checks the command line. Its errors name the word that is wrong.
func parse(args []string) (o options, err error) {
	words, err := parseFlags(args, &o)
	if err != nil || o.help {
		return o, err
	}
	switch {
	case len(words) == 0 && !o.serve:
		o.demo, o.verbose = true, !o.quiet
		words = []string{"127.0.0.1", "0", "data1", "data2"}
		if o.family == "ip6" {
			words[0] = "::1"
		}
	case len(words) == 1 && o.serve:
		words = []string{"*", words[0]} // every address
	case len(words) < 2:
		return o, fmt.Errorf("PORT is missing after %q", words)
	}
	if err = checkHost(words[0]); err != nil {
		return o, err
	}
	for _, m := range words[2:] {
		o.block = append(append(o.block, m...), '\n')
	}
	port, err := strconv.ParseUint(words[1], 10, 16)
	o.host, o.port = words[0], uint16(port)
	for _, rule := range []struct {
		broken bool
		format string
		word   any
	}{
		{o.connectTimeout <= 0, "-connect-timeout %v: must be above zero", o.connectTimeout},
		{o.ioTimeout <= 0, "-io-timeout %v: must be above zero", o.ioTimeout},
		{o.every < 0, "-every %v: must not be below zero", o.every},
		{o.n < 1, "-n %v: must be above zero", o.n},
		{o.count < 0, "-count %v: must not be below zero", o.count},
		{!slices.Contains([]string{"connect", "echo", "eof"}, o.until), "-until %q: must be connect, echo or eof", o.until},
		{o.rounds() && o.until != "echo", "-until %v: -count and -every need echo", o.until},
		{o.block == nil && o.n > 1 && o.until != "connect" && !o.serve, "-n %v needs a MESSAGE", o.n},
		{o.block == nil && o.count != 1 && !o.serve, "-count %v needs a MESSAGE", o.count},
		{o.block == nil && o.every > 0 && !o.serve, "-every %v needs a MESSAGE", o.every},
		{o.serve && (o.n > 1 || o.rounds() || o.until != "echo"), "-serve does not go with %v", "-n, -count, -every or -until"},
		{o.serve && len(words) > 2, "-serve takes [HOST] PORT, not %q", words},
		{o.host == "", "HOST %q: must not be empty", o.host},
		{!o.demo && (err != nil || port == 0), "PORT %q: must be a number from 1 to 65535", words[1]},
	} {
		if rule.broken {
			return o, fmt.Errorf(rule.format, rule.word)
		}
	}
	return o, nil
}

// parseFlags sets the options that args begin with, and returns the words that follow them.
func parseFlags(args []string, o *options) (words []string, err error) {
	flags := flag.NewFlagSet("echomux", flag.ContinueOnError)
	// It would print its errors by itself, and with each a usage of its own making.
	flags.SetOutput(io.Discard)
	flags.DurationVar(&o.connectTimeout, "connect-timeout", 3500*time.Millisecond, "")
	flags.DurationVar(&o.ioTimeout, "io-timeout", 5500*time.Millisecond, "")
	flags.DurationVar(&o.every, "every", 0, "")
	flags.StringVar(&o.until, "until", "echo", "")
	flags.IntVar(&o.n, "n", 1, "")
	flags.Int64Var(&o.count, "count", 1, "")
	flags.BoolVar(&o.verbose, "v", false, "")
	flags.BoolVar(&o.quiet, "q", false, "")
	flags.BoolVar(&o.serve, "serve", false, "")
	four := flags.Bool("4", false, "")
	six := flags.Bool("6", false, "")
	err = flags.Parse(args)
	if err == flag.ErrHelp {
		o.help = true
		return nil, nil
	}
	if err != nil {
		// It quotes the words that it found as they are.
		return nil, errors.New(legible(err.Error()))
	}
	if *four && *six {
		return nil, errors.New("-4 and -6 exclude each other")
	}
	o.family = "ip"
	if *four {
		o.family = "ip4"
	}
	if *six {
		o.family = "ip6"
	}
	return flags.Args(), nil
}

// brief: is the run a single round of MESSAGEs to an address? It needs no name, and is over before
// descriptors or the runtime's timers matter.
func (o *options) brief() bool {
	_, err := netip.ParseAddr(o.host)
	return err == nil && o.block != nil && o.n == 1 && !o.rounds() && !o.serve
}

// rounds: is the run made of rounds?
func (o *options) rounds() bool { return o.count != 1 || o.every > 0 }

// ---- The report ----

// tally is what connections came to.
type tally struct {
	place                  string // of the peer, or where the server listens
	ok, failed, status     int    // status: of the first failure in time
	sent, returned         int64
	connect, exchange, rtt spread
	causes                 []string
	times                  map[string]int // of each cause
}

// count adds n connections that ended with err, nil for a whole job.
func (t *tally) count(status int, err error, n int) {
	if err == nil {
		t.ok += n
		return
	}
	if t.failed == 0 {
		t.status, t.times = status, make(map[string]int)
	}
	cause := strings.ReplaceAll(err.Error(), "\n", "; ") // from errors.Join
	if t.times[cause] == 0 {
		t.causes = append(t.causes, cause)
	}
	t.failed, t.times[cause] = t.failed+n, t.times[cause]+n
}

// spread keeps the least, the mean and the most of durations in constant memory.
type spread struct{ n, min, sum, max time.Duration }

func (s *spread) add(d time.Duration) {
	if s.n++; s.n == 1 {
		s.min = d
	}
	s.min, s.sum, s.max = min(s.min, d), s.sum+d, max(s.max, d)
}

// ms is what the spread adds to a line, in milliseconds: nothing, the one duration, or all three.
func (s *spread) ms(name string, one bool) string {
	const ms = float64(time.Millisecond)
	switch {
	case s.n == 0:
		return ""
	case one:
		return fmt.Sprintf(" %s_ms=%.2f", name, float64(s.sum)/ms)
	}
	return fmt.Sprintf(" %s_ms=%.2f/%.2f/%.2f", name, float64(s.min)/ms, float64(s.sum/s.n)/ms, float64(s.max)/ms)
}

// report prints the one line that ends a run, and returns the exit status.
func (l *loop) report() int {
	t, status, interrupted := &l.tally, cmp.Or(l.interrupted, l.tally.status), ""
	if l.interrupted != 0 {
		interrupted = " interrupted"
	} else if l.quiet && status == exitOK {
		return status
	}
	host := printable(l.host)
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	place := cmp.Or(t.place, l.served.place, fmt.Sprintf("%s:%d", host, l.port))
	line, whole, taken := place+cmp.Or(interrupted, " ok"), l.n > 1 || t.failed == 0, "sent"
	switch {
	case l.serve && whole:
		t, taken = &l.served, "received"
		line = fmt.Sprintf("%s ok=%d failed=%d", line, t.ok, t.failed)
	case l.n > 1:
		for _, cause := range t.causes {
			fmt.Fprintf(l.stderr, "echomux: %s (%d connections)\n", cause, t.times[cause])
		}
		line = fmt.Sprintf("%s%s ok=%d failed=%d", place, interrupted, t.ok, t.failed)
	case !whole && l.interrupted == 0:
		line = t.causes[0]
	}
	line += fmt.Sprintf(" %s=%d returned=%d", taken, t.sent, t.returned)
	if whole {
		line += t.connect.ms("connect", l.n == 1)
	}
	if l.rounds() {
		line += fmt.Sprintf(" rounds=%d", t.rtt.n) + t.rtt.ms("rtt", false)
	} else if whole {
		line += t.exchange.ms("exchange", l.n == 1)
	}
	fmt.Fprintf(l.stderr, "echomux: %s\n", line)
	return status
}

// described puts the operation and the peer before err. A system call of another name stays in it:
// "connect [::1]:7: socket: permission denied".
func described(op string, peer netip.AddrPort, err error) error {
	if call, ok := err.(*os.SyscallError); ok && call.Syscall == op {
		err = call.Err
	}
	return fmt.Errorf("%s %v: %w", op, peer, err)
}

// quoted renders bytes for a terminal: a quoted string for each line of text, the end left out if
// it is long. printable does without the quotes, for words of the user's.
func quoted(p []byte) (s string) {
	const most = 60
	for line := range strings.Lines(string(p[:min(len(p), most)])) {
		s += " " + strconv.QuoteToASCII(line)
	}
	if len(p) > most {
		s += fmt.Sprintf("... (%d bytes)", len(p))
	}
	return strings.TrimPrefix(s, " ")
}

// legible renders text for a terminal that is words with other people's bytes among them: printable
// ASCII as it is, all else escaped, the end left out if it is long.
func legible(text string) string {
	const most = 200
	var b strings.Builder
	for _, r := range text {
		if b.Len() >= most {
			fmt.Fprintf(&b, "... (%d bytes)", len(text))
			break
		}
		if r >= ' ' && r <= '~' {
			b.WriteRune(r)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		}
	}
	return b.String()
}

func printable(word string) string { return strings.ReplaceAll(quoted([]byte(word)), `"`, "") }

// ---- The seam ----

// What a poller_<os>.go defines; its comments say only what its kernel adds to this. The assertions
// at the end list what a new platform lacks. All is level-triggered: that all kernels can do.

// socket is a descriptor or, on Windows, a SOCKET.
type socket uintptr

// event says that a socket is ready. One batch may hold two events for the same socket.
type event struct {
	socket socket
	ready  readiness
}

// poller waits for the readiness of many sockets. Errors and hang-ups are folded into the readiness
// that was asked for: the next read, write or connectResult names the cause.
type poller interface {
	add(s socket, want readiness) error // want is never 0
	modify(s socket, want readiness) error
	remove(s socket) error // before the socket is closed
	// wait blocks for at most ms milliseconds, -1: no limit. 0 events and no error mean only "look
	// at the clock": timeout, signal, wake-up and spurious return look alike. It consumes a wake-up.
	wait(events []event, ms int) (int, error)
	wake() // from any goroutine, until close
	close() error
}

// sockets are TCP sockets that never block. A failure is one of the errors below or the system's
// own, as an os.SyscallError.
type sockets interface {
	// openSocket makes a socket of to's family, still blocking, with TCP_NODELAY and SO_OOBINLINE
	// (urgent data would leave the stream).
	openSocket(to netip.AddrPort) (socket, error)
	setNonblock(s socket) error
	connect(s socket, to netip.AddrPort) error                      // once; errWouldBlock: pending
	connectResult(s socket) (local, peer netip.AddrPort, err error) // errWouldBlock: still pending
	read(s socket, p []byte) (n int, err error)                     // n > 0, io.EOF or an error
	write(s socket, p []byte) (n int, err error)                    // n < len(p) is normal
	closeWrite(s socket) error                                      // sends the FIN
	close(s socket) error
	listen(at netip.AddrPort) (s socket, bound netip.AddrPort, err error)
	accept(s socket) (socket, netip.AddrPort, error) // non-blocking, with openSocket's options
}

// The errors that change the loop's course come bare, so their texts are the same everywhere;
// errTooManyFiles comes wrapped, with the limit.
var (
	errWouldBlock   = errors.New("would block") // not now; never shown
	errReset        = errors.New("connection reset by peer")
	errRefused      = errors.New("connection refused")
	errTimedOut     = errors.New("timed out")
	errNoAddress    = errors.New("cannot assign requested address")
	errTooManyFiles = errors.New("too many open files")
)

var (
	_ sockets                = system{}
	_ func() (poller, error) = newPoller
	_ func() *net.Resolver   = newResolver // of this system
	_ [2]os.Signal           = [2]os.Signal{sigTerm, sigPipe}
)
