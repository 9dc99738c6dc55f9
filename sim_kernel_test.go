package main

// A simulated platform: a kernel with sockets, a poller, the peers beyond it, and a virtual clock.
// It does whatever the contract in main.go allows, and all that is left to chance is drawn from one
// number, so a seed replays to the same calls. It knows nothing of what echomux is for. A use of it
// that the contract forbids ends the run as a failure. What happens is reported to the judge of
// sim_judge_test.go, as far as one can see it from outside the program.

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/netip"
	"os"
	"syscall"
	"time"
)

// ---- Chance ----

// simChance decides: by the bytes of a fuzzer first, then by a number (splitmix64).
type simChance struct {
	state uint64
	given []byte
}

func (c *simChance) next() uint64 {
	c.state += 0x9e3779b97f4a7c15
	z := c.state
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// fork is a source of its own for one part of the world. However often the others are asked, what
// it decides stays the same.
func (c *simChance) fork() simChance { return simChance{state: c.next()} }

// pick is one of 0..n-1.
func (c *simChance) pick(n int) int { return int(c.pick64(int64(n))) }

func (c *simChance) pick64(n int64) int64 {
	if n <= 1 {
		return 0
	}
	if len(c.given) > 0 && n <= 256 {
		b := c.given[0]
		c.given = c.given[1:]
		return int64(b) % n
	}
	return int64(c.next() % uint64(n))
}

func (c *simChance) oneIn(n int) bool { return n > 0 && c.pick(n) == n-1 }

// upTo is one of 0..n, small ones as likely as large ones.
func (c *simChance) upTo(n int) int { return int(c.upTo64(int64(n))) }

func (c *simChance) upTo64(n int64) int64 {
	bits := 0
	for n>>bits > 0 {
		bits++
	}
	return min(n, c.pick64(1<<c.pick(bits+1)))
}

func (c *simChance) span(most time.Duration) time.Duration {
	return time.Duration(c.upTo64(int64(most)))
}

// simOne is one of the values given.
func simOne[T any](c *simChance, values ...T) T { return values[c.pick(len(values))] }

// ---- The text that is sent ----

// simText is a stream of bytes that repeats itself. Where it is long, it does so after a prime
// number of bytes, so that no buffer's size hides a shift.
type simText struct {
	block []byte
}

var simNoise = func() []byte {
	var c simChance
	text := make([]byte, 8191)
	for i := range text {
		text[i] = byte(c.next())
	}
	return text
}()

func (t simText) at(off int64) byte { return t.block[off%int64(len(t.block))] }

// fill copies the stream from off to p.
func (t simText) fill(p []byte, off int64) {
	for len(p) > 0 {
		n := copy(p, t.block[off%int64(len(t.block)):])
		p = p[n:]
		off += int64(n)
	}
}

// same counts the first bytes of p that are those from off on.
func (t simText) same(p []byte, off int64) int {
	done := 0
	for done < len(p) {
		want := t.block[off%int64(len(t.block)):]
		n := min(len(want), len(p)-done)
		if !bytes.Equal(want[:n], p[done:done+n]) {
			for want[0] == p[done] {
				want = want[1:]
				done++
			}
			return done
		}
		done += n
		off += int64(n)
	}
	return done
}

// ---- The kernel and its clock ----

// simOdds say how unkind a kernel is, each as one in so many; 0: never.
type simOdds struct {
	short    int           // a call moves less than it could
	spurious int           // a readiness that is none, a call that would block all the same
	split    int           // two events for one socket, and events in any order
	partial  int           // what is ready is reported the next time
	late     int           // the process is stopped for a while
	stale    int           // an event for a number that was closed
	slow     time.Duration // what a call takes, at most
}

type simKernel struct {
	sim   *simulation
	odds  simOdds
	noise simChance // for odds

	// Of two things that happen in the same moment this decides which comes first. Without it, the
	// order is that in which they were begun.
	order   simChance
	orderly bool

	now     time.Duration
	queue   []simTimer
	queued  int
	turn    int           // calls of wait so far
	turnAt  time.Duration // when the last one returned
	limit   time.Duration // when it had to return at the latest
	credit  int           // what has happened: it bounds the number of turns
	ticked  time.Duration // when the passing of time counted as such the last time
	hours   int           // waited in vain, one at a time
	left    int           // spurious things still to come
	calls   int           // within this turn
	socks   []*simSock    // by number; the lowest free one is the next
	inUse   int
	fdLimit int
	closed  []socket // numbers that were closed in the turn before
	woken   bool
	dead    bool // the poller is closed
	broken  bool // a change of the poller's has failed
	current *simHelper
	helpers []*simHelper

	mute  bool // path knows nothing
	eager bool // accept takes a descriptor before it looks whether anybody waits, as Linux does
	twice bool // a reset is reported by every call, and not only by the first
	trace io.Writer
}

// simTimer is something that will happen. First of those of one moment are the ones of least rank.
type simTimer struct {
	at   time.Duration
	rank int64
	f    func()
}

// simFailure is a broken promise.
type simFailure struct{ text string }

func (k *simKernel) fail(format string, args ...any) {
	panic(simFailure{fmt.Sprintf(format, args...)})
}

// logf writes a line of the event log. The hot paths ask for trace before they call it.
func (k *simKernel) logf(format string, args ...any) {
	if k.trace != nil {
		fmt.Fprintf(k.trace, "%14.9f  %s\n", float64(k.now)/1e9, fmt.Sprintf(format, args...))
	}
}

// at has f happen at t. Things of one moment happen in the order in which they were scheduled,
// unless another rank says otherwise.
func (k *simKernel) at(t time.Duration, rank int, f func()) {
	k.queued++
	q := append(k.queue, simTimer{max(t, k.now), int64(rank)<<32 + int64(k.queued), f})
	for i := len(q) - 1; i > 0; {
		up := (i - 1) / 2
		if !q[i].before(q[up]) {
			break
		}
		q[i], q[up] = q[up], q[i]
		i = up
	}
	k.queue = q
}

func (k *simKernel) in(d time.Duration, f func()) { k.at(k.now+min(d, never-k.now), 1, f) }

func (t simTimer) before(u simTimer) bool { return t.at < u.at || t.at == u.at && t.rank < u.rank }

func (k *simKernel) popTimer() func() {
	q := k.queue
	f := q[0].f
	last := len(q) - 1
	q[0] = q[last]
	q[last].f = nil
	q = q[:last]
	for i := 0; ; {
		c := 2*i + 1
		if c >= last {
			break
		}
		if c+1 < last && q[c+1].before(q[c]) {
			c++
		}
		if !q[c].before(q[i]) {
			break
		}
		q[i], q[c] = q[c], q[i]
		i = c
	}
	k.queue = q
	return f
}

// nextAt is when something happens by itself.
func (k *simKernel) nextAt() time.Duration {
	if len(k.queue) == 0 {
		return never
	}
	return k.queue[0].at
}

// happen lets the next thing happen.
func (k *simKernel) happen() {
	k.now = max(k.now, k.queue[0].at)
	k.credit++
	if k.credit > 1<<22 {
		k.fail("the simulation itself spins")
	}
	k.popTimer()()
}

// advance lets the time pass until t, and what is due by then happen.
func (k *simKernel) advance(t time.Duration) {
	for k.nextAt() <= t {
		k.happen()
	}
	k.now = max(k.now, t)
}

// spend is the time that a call takes, all of it before it has its effect.
func (k *simKernel) spend() {
	k.calls++
	if k.calls > 1<<16 {
		k.fail("a turn that never ends")
	}
	if k.odds.slow > 0 {
		k.advance(k.now + k.noise.span(k.odds.slow))
	}
}

// ---- Helpers: what blocks runs beside the loop ----

// simHelper is a goroutine of the program's. It runs only while the loop does not, from one call
// that blocks to the next.
type simHelper struct {
	k      *simKernel
	resume func() (struct{}, bool)
	stop   func()
	pause  func(struct{}) bool
	over   bool // the run is, and nobody waits for it any more
}

// spawn runs f beside the loop.
func (k *simKernel) spawn(f func()) {
	if k.dead {
		k.fail("spawn after the poller's end")
	}
	h := &simHelper{k: k}
	h.resume, h.stop = iter.Pull(func(pause func(struct{}) bool) {
		h.pause = pause
		f()
	})
	k.helpers = append(k.helpers, h)
	h.goOn()
}

// goOn lets the helper run until it blocks, or ends.
func (h *simHelper) goOn() {
	before := h.k.current
	h.k.current = h
	h.resume()
	h.k.current = before
}

// block is what a call that takes d does in a helper. It says whether the run is over.
func (h *simHelper) block(d time.Duration) bool {
	if d != never {
		rank := 1
		if h.k.orderly {
			rank = 2 * h.k.order.pick(2) // before or after what the network does in this moment
		}
		h.k.at(h.k.now+min(d, never-h.k.now), rank, h.goOn)
	}
	h.over = !h.pause(struct{}{})
	return h.over
}

// endHelpers lets those that still block return. Whoever posts then must not reach the poller.
func (k *simKernel) endHelpers() {
	for _, h := range k.helpers {
		k.current = h
		h.stop()
		k.current = nil
	}
}

// ---- Sockets ----

type simPhase uint8

const (
	simFresh     simPhase = iota // made, and still blocking
	simIdle                      // made, and non-blocking
	simPending                   // connect was called
	simConnected                 // and its result was asked for; or accepted
	simListening
)

// simSock is a socket of the program's.
type simSock struct {
	k     *simKernel
	num   socket
	phase simPhase
	armed readiness // what the poller watches it for
	told  readiness // by the events of this turn
	to    netip.AddrPort
	local netip.AddrPort
	conn  *simConn // of the client whose connection it is; nil: the server's
	peer  *simPeer

	fate      error // of connect
	settled   bool  // connect has ended
	settledAt time.Duration

	rx      []simPiece // has arrived, and was not read
	rxLen   int
	rxCap   int
	rxEOF   bool          // behind it, the peer's FIN
	rxSince time.Duration // when it became readable; never: it is not
	rxHeld  time.Duration // the kernel pretends until then that it is not
	rxOver  bool          // its end was read

	txCap    int
	txSince  time.Duration
	txHeld   time.Duration
	transit  int // bytes that the kernel took, and that have not reached the peer's
	unacked  int // of which no acknowledgement has come
	finAcked bool
	fin      bool // closeWrite was called
	finAt    time.Duration
	late     int           // bytes of transit that were written
	lateAt   time.Duration // in this moment
	failed   bool          // a write has
	wrote    int64

	err  error // SO_ERROR
	soft error // what the network said in passing: only SO_ERROR tells
	gone bool  // the connection was reset: nothing arrives, nothing can be sent
}

// simPiece is a part of what a peer sends: n bytes of the stream from off, or n times a literal
// byte, or an act, which takes its turn when all before it is delivered.
type simPiece struct {
	off     int64
	n       int
	literal int // -1: none
	act     *simAct
}

func (k *simKernel) newSock(c *simChance) *simSock {
	s := &simSock{k: k, rxSince: never, txSince: never}
	s.local = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, 1}), uint16(1024+c.pick(60000)))
	s.txCap = 1 + c.upTo(1<<18)
	s.rxCap = 1 + c.upTo(1<<18)
	k.inUse++
	for i := 1; i < len(k.socks); i++ {
		if k.socks[i] == nil {
			s.num = socket(i)
			k.socks[i] = s
			return s
		}
	}
	s.num = socket(len(k.socks))
	k.socks = append(k.socks, s)
	return s
}

// enter is the begin of a call on a socket.
func (k *simKernel) enter(call string, num socket) *simSock {
	if k.current != nil {
		k.fail("%s(%d) by another goroutine than the loop's", call, num)
	}
	if k.dead {
		k.fail("%s(%d) after the poller's end", call, num)
	}
	if int(num) >= len(k.socks) || k.socks[num] == nil {
		k.fail("%s(%d): no such socket", call, num)
	}
	k.spend()
	return k.socks[num]
}

// rxThere: a read would not block.
func (s *simSock) rxThere() bool { return s.rxLen > 0 || s.err != nil || s.gone || s.rxEOF }

// txThere: a write would not block.
func (s *simSock) txThere() bool { return s.gone || s.err != nil || s.unacked < s.txCap }

// onTheWay are the bytes that the peer can have by now. What is sent in this very moment is not
// among them, or its answer would depend on what the program happens to do first.
func (s *simSock) onTheWay() int {
	if s.k.orderly && s.lateAt == s.k.now {
		return s.transit - s.late
	}
	return s.transit
}

// finOnTheWay: and the FIN.
func (s *simSock) finOnTheWay() bool {
	return s.fin && s.transit == 0 && !(s.k.orderly && s.finAt == s.k.now)
}

// sentNow: something was sent in this very moment.
func (s *simSock) sentNow() bool {
	return s.transit > s.onTheWay() || s.fin && s.finAt == s.k.now && s.k.orderly
}

// changed notes since when the socket is ready, after anything that may have changed that.
func (s *simSock) changed() {
	if !s.rxThere() {
		s.rxSince = never
	} else if s.rxSince == never {
		s.rxSince = s.k.now
	}
	if !s.txThere() {
		s.txSince = never
	} else if s.txSince == never {
		s.txSince = s.k.now
	}
}

// ready is what the poller finds.
func (s *simSock) ready() (r readiness) {
	now := s.k.now
	switch s.phase {
	case simPending:
		if s.settled && now >= s.txHeld {
			r = writable
		}
	case simConnected:
		if s.rxThere() && now >= s.rxHeld {
			r |= readable
		}
		if s.txThere() && now >= s.txHeld {
			r |= writable
		}
		if (s.gone || s.err != nil) && now >= s.rxHeld {
			r = readable | writable // a hang-up is folded into all that was asked for
		}
	case simListening:
		if s.peer.queueLen() > 0 && now >= s.rxHeld {
			r = readable
		}
	}
	return r & s.armed
}

func simNothing() {}

// blocks: may a call fail with errWouldBlock although the socket is ready? The readiness is gone
// for a moment then.
func (s *simSock) blocks(held *time.Duration) bool {
	k := s.k
	if k.left == 0 || !k.noise.oneIn(k.odds.spurious) {
		return false
	}
	k.left--
	k.credit++
	*held = k.now + k.noise.span(2*time.Millisecond)
	k.at(*held, 1, simNothing)
	return true
}

// shorten: any call may move less than it could, down to one byte.
func (s *simSock) shorten(n int) int {
	if s.k.noise.oneIn(s.k.odds.short) {
		return min(n, 1+s.k.noise.upTo(n))
	}
	return n
}

// simNamed is err as the contract has it: one of the bare ones, or the system's with the call.
func simNamed(call string, err error) error {
	if _, ok := err.(syscall.Errno); ok {
		return os.NewSyscallError(call, err)
	}
	return err
}

func (k *simKernel) openSocket(to netip.AddrPort, from netip.Addr) (socket, error) {
	if k.current != nil || k.dead {
		k.fail("openSocket(%v) at the wrong time", to)
	}
	conn := k.sim.sawAttempt(to, from)
	k.spend()
	k.credit++
	err := conn.fate.open
	if k.inUse >= k.fdLimit {
		err = fmt.Errorf("%w (the limit is %d)", errTooManyFiles, k.fdLimit)
	}
	if err != nil {
		k.logf("openSocket(%v): %v", to, err)
		conn.sawFailedAttempt(err)
		return 0, err
	}
	s := k.newSock(&conn.chance)
	s.to = to
	s.conn = conn
	conn.sock = s
	if k.trace != nil {
		k.logf("openSocket(%v) = %d for #%d", to, s.num, conn.number)
	}
	return s.num, nil
}

func (k *simKernel) setNonblock(num socket) error {
	s := k.enter("setNonblock", num)
	if s.phase != simFresh {
		k.fail("setNonblock(%d) in phase %d", num, s.phase)
	}
	err := s.conn.fate.nonblock
	if err != nil {
		k.logf("setNonblock(%d): %v", num, err)
		s.conn.sawFailedAttempt(err)
		return err
	}
	s.phase = simIdle
	return nil
}

func (k *simKernel) connect(num socket, to netip.AddrPort) error {
	if int(num) < len(k.socks) && k.socks[num] != nil && k.socks[num].conn != nil {
		k.socks[num].conn.sawConnectCall()
	}
	s := k.enter("connect", num)
	if s.phase != simIdle || to != s.to {
		k.fail("connect(%d, %v) in phase %d, a socket for %v", num, to, s.phase, s.to)
	}
	fate := &s.conn.fate
	s.phase = simPending
	s.fate = fate.err
	if fate.self {
		s.local = to
	}
	if fate.atOnce != nil {
		if k.trace != nil {
			k.logf("connect(%d, %v): %v", num, to, fate.atOnce)
		}
		s.conn.sawFailedAttempt(fate.atOnce)
		return fate.atOnce
	}
	if fate.delay == 0 {
		s.answer()
	} else if fate.delay != never {
		k.in(fate.delay, func() {
			if k.socks[s.num] == s && s.phase == simPending {
				s.answer()
			}
		})
	}
	if k.trace != nil {
		k.logf("connect(%d, %v) is on its way", num, to)
	}
	return nil
}

// answer: the handshake is over, or has failed. From here on the peer can act.
func (s *simSock) answer() {
	k := s.k
	s.settled = true
	s.settledAt = k.now
	if k.trace != nil {
		k.logf("  net: connect of %d is answered: %v", s.num, s.fate)
	}
	if s.fate != nil && s.fate != errReset || s.conn.fate.self {
		return
	}
	listener := k.sim.listenerAt(s.to)
	if listener != nil && s.fate == nil {
		k.join(s, listener)
		return
	}
	s.peer = k.sim.newPeer(s)
	if s.fate == errReset {
		s.fate = nil
		s.peer.reset(errReset, false, "as soon as it was connected")
		return
	}
	s.peer.start()
}

// join makes a connection between two ends of the program's: what one peer takes, the other sends.
func (k *simKernel) join(s, listener *simSock) {
	a := &simPeer{k: k, sock: s}
	b := &simPeer{k: k, addr: s.local}
	a.other = b
	b.other = a
	k.sim.temper(a, s, &s.conn.chance)
	b.window = a.window
	b.chunk = a.chunk
	b.delay = a.delay
	b.gap = a.gap
	s.peer = a
	k.sim.clients = append(k.sim.clients, b)
	listener.peer.backlog = append(listener.peer.backlog, b)
	listener.changed()
}

func (k *simKernel) connectResult(num socket) (local, peer netip.AddrPort, err error) {
	begun := k.now
	s := k.enter("connectResult", num)
	if s.phase != simPending {
		k.fail("connectResult(%d) in phase %d", num, s.phase)
	}
	if !s.settled || k.now < s.txHeld || s.blocks(&s.txHeld) {
		if k.trace != nil {
			k.logf("connectResult(%d): still pending", num)
		}
		return local, peer, errWouldBlock
	}
	k.credit++
	if s.fate == nil {
		s.phase = simConnected
		s.fate = s.err // what has come since is found here
		s.err = nil
		s.changed()
	}
	if k.trace != nil {
		k.logf("connectResult(%d): %v", num, s.fate)
	}
	if s.fate != nil && s.fate != errReset {
		err = simNamed("connect", s.fate)
		s.conn.sawFailedAttempt(err)
		return local, peer, err
	}
	if s.local == s.to {
		s.conn.sawFailedAttempt(errRefused)
		return s.local, s.to, nil
	}
	s.conn.sawConnected(s.fate, begun)
	return s.local, s.to, s.fate
}

func (k *simKernel) read(num socket, p []byte) (int, error) {
	begun := k.now
	s := k.enter("read", num)
	if s.phase != simConnected || len(p) == 0 || s.rxOver {
		k.fail("read(%d, %d bytes) in phase %d, its end was read: %v", num, len(p), s.phase, s.rxOver)
	}
	if s.told&readable == 0 && k.turnAt <= k.limit-time.Millisecond {
		k.fail("read(%d): nothing said that it is readable", num)
	}
	if !s.rxThere() || k.now < s.rxHeld || s.blocks(&s.rxHeld) {
		if k.trace != nil {
			k.logf("read(%d): would block", num)
		}
		return 0, errWouldBlock
	}
	k.credit++
	if s.rxLen == 0 {
		err := s.readEnd()
		if k.trace != nil {
			k.logf("read(%d): %v", num, err)
		}
		k.sim.sawRead(s, nil, err, begun)
		return 0, err
	}
	n := s.shorten(min(s.rxLen, len(p)))
	s.take(p[:n])
	if k.trace != nil {
		k.logf("read(%d) = %d", num, n)
	}
	s.peer.kick()
	if s.peer.other != nil {
		s.peer.other.kick() // there is room again
	}
	k.sim.sawRead(s, p[:n], nil, begun)
	return n, nil
}

// take moves what has arrived to p.
func (s *simSock) take(p []byte) {
	s.rxLen -= len(p)
	for len(p) > 0 {
		piece := &s.rx[0]
		n := min(piece.n, len(p))
		if piece.literal >= 0 {
			for i := range n {
				p[i] = byte(piece.literal)
			}
		} else {
			s.peer.text().fill(p[:n], piece.off)
			piece.off += int64(n)
		}
		p = p[n:]
		piece.n -= n
		if piece.n == 0 {
			s.rx = s.rx[1:]
		}
	}
	s.changed()
}

// readEnd is what a read says behind the last byte. An error that another call has told already
// leaves a read of 0 bytes.
func (s *simSock) readEnd() error {
	s.rxOver = true
	err := s.pendingError("read")
	if err == nil {
		err = io.EOF
	}
	s.changed()
	return err
}

// pendingError is SO_ERROR, which is cleared by being read.
func (s *simSock) pendingError(call string) error {
	err := s.err
	if !s.k.twice {
		s.err = nil
	}
	return simNamed(call, err)
}

func (k *simKernel) write(num socket, p []byte) (int, error) {
	begun := k.now
	s := k.enter("write", num)
	if s.phase != simConnected || len(p) == 0 || s.fin || s.failed {
		k.fail("write(%d, %d bytes) in phase %d, after its end %v", num, len(p), s.phase, s.fin || s.failed)
	}
	if s.gone || s.err != nil {
		k.credit++
		err := s.pendingError("write")
		if err == nil {
			err = errReset // EPIPE
		}
		s.failed = true
		s.changed()
		if k.trace != nil {
			k.logf("write(%d): %v", num, err)
		}
		k.sim.sawWrite(s, p, 0, err, begun)
		return 0, err
	}
	if s.unacked >= s.txCap || k.now < s.txHeld || s.blocks(&s.txHeld) {
		if k.trace != nil {
			k.logf("write(%d, %d bytes): would block", num, len(p))
		}
		k.sim.sawWrite(s, p, 0, errWouldBlock, begun)
		return 0, errWouldBlock
	}
	k.credit++
	n := s.shorten(min(s.txCap-s.unacked, len(p)))
	k.sim.sawWrite(s, p, n, nil, begun)
	s.unacked += n
	s.transit += n
	if s.lateAt != k.now {
		s.lateAt = k.now
		s.late = 0
	}
	s.late += n
	s.wrote += int64(n)
	s.changed()
	if k.trace != nil {
		k.logf("write(%d, %d bytes) = %d", num, len(p), n)
	}
	s.peer.kick()
	return n, nil
}

func (k *simKernel) pendingError(num socket) error {
	s := k.enter("pendingError", num)
	if s.phase != simConnected {
		k.fail("pendingError(%d) in phase %d", num, s.phase)
	}
	err := s.pendingError("read")
	if err == nil {
		err = s.soft
		s.soft = nil
	}
	s.changed()
	k.logf("pendingError(%d): %v", num, err)
	if err != nil {
		k.credit++
		s.conn.sawPendingError(err)
	}
	return err
}

func (k *simKernel) path(num socket) (unacknowledged, retransmits int) {
	s := k.enter("path", num)
	if s.phase != simConnected {
		k.fail("path(%d) in phase %d", num, s.phase)
	}
	s.conn.sawPath()
	if k.mute {
		return -1, -1
	}
	n := s.outstanding()
	if k.trace != nil {
		k.logf("path(%d): %d bytes are not acknowledged", num, n)
	}
	return n, s.conn.resent
}

// outstanding is how many bytes are not acknowledged, the FIN counted.
func (s *simSock) outstanding() int {
	n := s.unacked
	if s.fin && !s.finAcked {
		n++
	}
	return n
}

func (k *simKernel) closeWrite(num socket) error {
	s := k.enter("closeWrite", num)
	if s.phase != simConnected || s.fin || s.conn == nil {
		k.fail("closeWrite(%d) in phase %d, fin %v", num, s.phase, s.fin)
	}
	err := s.conn.fate.shutdown
	k.logf("closeWrite(%d): %v", num, err)
	s.fin = true
	s.finAt = k.now
	k.credit++
	k.sim.sawCloseWrite(s, err)
	if err == nil {
		s.peer.kick()
	}
	return err
}

func (k *simKernel) close(num socket) error {
	s := k.enter("close", num)
	if s.armed != 0 && !k.broken {
		k.fail("close(%d): it is still in the poller", num)
	}
	if k.trace != nil {
		k.logf("close(%d)", num)
	}
	k.sim.sawClose(s)
	k.socks[num] = nil
	k.inUse--
	k.credit++
	k.closed = append(k.closed, num)
	if s.peer != nil && s.phase != simListening {
		s.peer.abandoned()
	}
	if k.noise.oneIn(2 * k.odds.spurious) {
		return os.NewSyscallError("close", syscall.EIO)
	}
	return nil
}

func (k *simKernel) listen(at netip.AddrPort) (socket, netip.AddrPort, error) {
	k.spend()
	err := k.sim.sawListen(at)
	if err != nil {
		k.logf("listen(%v): %v", at, err)
		return 0, at, err
	}
	s := k.newSock(&k.sim.world)
	s.phase = simListening
	s.to = at
	s.peer = &simPeer{k: k, sock: s}
	k.credit++
	if at.Port() == 0 {
		s.to = netip.AddrPortFrom(at.Addr(), 40000)
	}
	k.logf("listen(%v) = %d", s.to, s.num)
	k.sim.sawListener(s)
	return s.num, s.to, nil
}

func (k *simKernel) accept(num socket) (socket, netip.AddrPort, error) {
	s := k.enter("accept", num)
	if s.phase != simListening {
		k.fail("accept(%d) in phase %d", num, s.phase)
	}
	none := netip.AddrPort{}
	queue := s.peer
	var err error
	switch {
	case len(queue.acceptErrs) > 0:
		err = queue.acceptErrs[0]
		queue.acceptErrs = queue.acceptErrs[1:]
		k.credit++
	case k.eager && k.inUse >= k.fdLimit:
		err = fmt.Errorf("%w (the limit is %d)", errTooManyFiles, k.fdLimit)
		k.credit++
	case len(queue.backlog) == 0 || k.now < s.rxHeld || s.blocks(&s.rxHeld):
		err = errWouldBlock
	case k.inUse >= k.fdLimit:
		err = fmt.Errorf("%w (the limit is %d)", errTooManyFiles, k.fdLimit)
		k.credit++
	}
	if err != nil {
		if k.trace != nil {
			k.logf("accept(%d): %v", num, err)
		}
		k.sim.sawAcceptFail(s, err)
		return 0, none, err
	}
	p := queue.backlog[0]
	queue.backlog = queue.backlog[1:]
	s.changed()
	a := k.newSock(&k.sim.world)
	k.credit++
	a.phase = simConnected
	a.peer = p
	p.sock = a
	a.changed()
	if k.trace != nil {
		k.logf("accept(%d) = %d from %v", num, a.num, p.addr)
	}
	k.sim.sawAccepted(s)
	p.accepted()
	return a.num, p.addr, nil
}

// ---- The poller ----

// simPoller is the kernel as a poller, whose close is not a socket's.
type simPoller struct{ k *simKernel }

func (p simPoller) wait(events []event, ms int) (int, error) { return p.k.wait(events, ms) }
func (p simPoller) wake()                                    { p.k.wake() }

var simDirections = [...]string{"nothing", "reading", "writing", "both"}

// change holds the program to the contract: it knows what was asked for, and asks only for what
// can be waited for.
func (p simPoller) change(num socket, was, want readiness) error {
	k := p.k
	s := k.enter("change", num)
	if was != s.armed && !k.broken {
		k.fail("change(%d, %d, %d), and it was %d", num, was, want, s.armed)
	}
	if want == was {
		k.fail("change(%d, %d, %d) changes nothing", num, was, want)
	}
	if want != 0 && (s.phase < simPending || s.phase == simPending && want != writable) {
		k.fail("change(%d, %d, %d) in phase %d", num, was, want, s.phase)
	}
	if want != 0 && k.sim.pollerFails() {
		err := os.NewSyscallError("epoll_ctl", syscall.ENOSPC)
		k.logf("change(%d): %v", num, err)
		k.broken = true
		k.sim.sawPollerFail(err)
		return err
	}
	s.armed = want
	if k.trace != nil {
		k.logf("change(%d): watch for %s", num, simDirections[want])
	}
	return nil
}

// forget is change to nothing, which says nothing of what was asked for before.
func (p simPoller) forget(num socket) {
	s := p.k.enter("forget", num)
	s.armed = 0
	if p.k.trace != nil {
		p.k.logf("forget(%d)", num)
	}
}

func (p simPoller) close() error {
	k := p.k
	for _, s := range k.socks {
		if s != nil {
			k.fail("the poller is closed before socket %d", s.num)
		}
	}
	k.dead = true
	return nil
}

func (k *simKernel) wake() {
	if k.dead {
		k.fail("wake after the poller's end")
	}
	k.woken = true
}

// wait lets the time pass until a socket is ready, somebody wakes it, or ms milliseconds are over.
func (k *simKernel) wait(events []event, ms int) (int, error) {
	if k.dead || k.current != nil {
		k.fail("wait at the wrong time")
	}
	k.sim.turnEnds(ms)
	for _, s := range k.socks {
		if s != nil {
			s.told = 0
		}
	}
	k.turn++
	k.calls = 0
	if k.turn > k.credit+64 {
		k.fail("it spins: wait number %d after only %d happenings", k.turn, k.credit)
	}
	if k.trace != nil {
		k.logf("wait(%d ms)", ms)
	}
	k.limit = never
	if ms >= 0 {
		k.limit = k.now + min(time.Duration(ms)*time.Millisecond, never-k.now)
	}
	k.sleep(ms)
	k.turnAt = k.now
	if k.now-k.ticked >= time.Millisecond/2 {
		k.ticked = k.now
		k.credit++
	}
	n := k.batch(events)
	if !(k.woken && n > 0 && k.noise.oneIn(k.odds.partial)) {
		k.woken = false
	}
	err := k.sim.turnBegins()
	if err != nil {
		k.logf("wait: %v", err)
		return 0, err
	}
	return n, nil
}

// sleep passes the time of a wait.
func (k *simKernel) sleep(ms int) {
	if k.left > 0 && k.noise.oneIn(k.odds.spurious) {
		k.left--
		k.credit++
		k.logf("wait: nothing, for no reason")
		return
	}
	for k.nextAt() <= k.now || !k.woken && !k.anyReady() {
		next := k.nextAt()
		if next > k.limit {
			k.advance(k.limit)
			if ms == int(time.Hour/time.Millisecond) {
				k.anHourInVain()
			}
			break
		}
		if next == never {
			k.sim.nothingLeft()
			continue
		}
		k.happen()
		if k.stopsHere() {
			break
		}
	}
	if k.noise.oneIn(k.odds.late) {
		k.credit++
		k.advance(k.now + k.noise.span(20*time.Second))
		k.logf("wait: the process was stopped")
	}
}

// stopsHere: where things happen in one moment, wait may return between them, and then the program
// takes in the one before the other. Not when its own time is up, which is in the millisecond
// before wait has to return: what comes then is no matter of order but of being too late.
func (k *simKernel) stopsHere() bool {
	return k.orderly && k.nextAt() == k.now && k.now <= k.limit-time.Millisecond &&
		(k.woken || k.anyReady()) && !k.sim.indivisible && k.order.oneIn(2)
}

// anHourInVain: the program looks at the clock once an hour. The user has seen enough in the end.
func (k *simKernel) anHourInVain() {
	k.credit++
	k.hours++
	if k.hours == 50 {
		k.sim.nothingLeft()
	}
}

func (k *simKernel) anyReady() bool {
	for _, s := range k.socks {
		if s != nil && s.armed != 0 && s.ready() != 0 {
			return true
		}
	}
	return false
}

// batch names ready sockets: not always all, not always both directions, one twice, one that is
// not ready at all, or a number that was closed and perhaps made again since.
func (k *simKernel) batch(events []event) int {
	n := 0
	put := func(num socket, r readiness) {
		if n < len(events) && r != 0 {
			events[n] = event{num, r}
			n++
		}
	}
	if len(k.closed) > 0 {
		if k.noise.oneIn(k.odds.stale) && k.left > 0 {
			k.left--
			k.credit++
			put(k.closed[k.noise.pick(len(k.closed))], readable|writable)
		}
		k.closed = k.closed[:0]
	}
	from := 0
	if k.odds.split > 0 {
		from = k.noise.pick(len(k.socks) + 1)
	}
	for i := range k.socks {
		s := k.socks[(i+from)%len(k.socks)]
		if s != nil && s.armed != 0 {
			k.put(s, n > 0, put)
		}
	}
	k.shuffle(events[:n])
	for _, e := range events[:n] {
		if k.trace != nil {
			k.logf("wait: %d is ready for %s", e.socket, simDirections[e.ready])
		}
		if int(e.socket) < len(k.socks) && k.socks[e.socket] != nil {
			k.socks[e.socket].told |= e.ready
		}
	}
	return n
}

// put reports one socket. There are others if it can be left for the next time.
func (k *simKernel) put(s *simSock, others bool, put func(socket, readiness)) {
	r := s.ready()
	switch {
	case r == 0:
		if k.left > 0 && k.noise.oneIn(k.odds.spurious) {
			k.left--
			k.credit++
			put(s.num, s.armed)
		}
	case others && k.noise.oneIn(k.odds.partial):
	case k.orderly && k.turnAt == k.limit && k.order.oneIn(4): // its deadline comes first
	case k.orderly && others && k.order.oneIn(4):
		k.credit++
	case r == readable|writable && (k.noise.oneIn(k.odds.split) || k.orderly && k.order.oneIn(2)):
		put(s.num, readable)
		put(s.num, writable)
	case k.noise.oneIn(k.odds.split):
		k.credit++
		put(s.num, r)
		put(s.num, r)
	default:
		put(s.num, r)
	}
}

// shuffle: a batch has no order.
func (k *simKernel) shuffle(events []event) {
	c := &k.noise
	if k.orderly {
		c = &k.order
	} else if k.odds.split == 0 {
		return
	}
	for i := len(events) - 1; i > 0; i-- {
		j := c.pick(i + 1)
		events[i], events[j] = events[j], events[i]
	}
}

// ---- Peers ----

// simDeed is what a peer does besides echoing.
type simDeed uint8

const (
	simAlter simDeed = iota
	simDrop
	simRepeat
	simInsert
	simClose     // closes, with whatever is unread
	simHalfClose // says that it has no more, and reads on
	simReset     // resets after what it has sent
	simResetNow  // and throws away what is not read
	simResetLate // the reset comes without what was sent before
	simUnreach   // the network answers, and our kernel gives up
	simSoft      // the network answers, and our kernel goes on
	simGiveUp    // our kernel gives up on it
	simHush      // is never heard of again
	simPause
	simDeaf      // stops reading
	simDeafFor   // for a while
	simDeeds     = int(simDeafFor) + 1
	simNoLiteral = -1
)

var simDeedNames = [...]string{"alter", "drop", "repeat", "insert", "close", "half-close", "reset",
	"reset now", "reset late", "unreachable",
	"unreachable for a moment", "give up", "hush", "pause", "deaf", "deaf for a while"}

// simAct is one turn of a peer's script: when it has produced so many bytes.
type simAct struct {
	deed simDeed
	at   int64
	n    int
	d    time.Duration
}

// simPeer is the other end of a connection: an application, and the kernel below it, which takes
// and acknowledges bytes that the application has not read.
type simPeer struct {
	k    *simKernel
	sock *simSock // the program's end; nil: closed, or not accepted yet
	addr netip.AddrPort
	base int64 // where in the text its stream begins

	delay      time.Duration // of a reaction
	gap        time.Duration // between two steps
	chunk      int           // of one step
	ackDelay   time.Duration // of an acknowledgement
	window     int           // what its kernel holds
	script     []simAct
	echoes     bool
	reply      int           // bytes of its own, after our FIN
	closeAfter time.Duration // our FIN; never
	quitAt     int64         // closes when it has taken so many bytes; 0: does not

	out       []simPiece // to be sent
	held      int        // in its kernel, and not read
	arrived   int64      // at its kernel
	taken     int64      // by the application
	produced  int64
	delivered int64
	stirring  bool // a step is scheduled
	turn      func()
	closed    bool // whatever comes is answered by a reset
	hushed    bool
	deaf      bool
	pausedTil time.Duration
	finCame   bool // to its kernel
	finSeen   bool // by the application
	finSent   bool

	other *simPeer // of a connection within the program

	// Of a client of the simulated kernel's:
	sends    int64 // bytes still to be sent
	total    int64
	srvRead  int64 // by the server
	srvEnded bool  // the server was told of the end, or of an error

	// Of a listening socket:
	backlog    []*simPeer
	acceptErrs []error
}

// queueLen is what accept has to say, if there is a backlog.
func (p *simPeer) queueLen() int { return len(p.backlog) + len(p.acceptErrs) }

func (p *simPeer) text() simText { return p.k.sim.text }

func (p *simPeer) start() {
	p.produce(0, 0)
	p.kick()
}

// kick has the peer take a step after its delay.
func (p *simPeer) kick() {
	if !p.stirring && p.sock != nil {
		p.again(p.delay)
	}
}

func (p *simPeer) again(d time.Duration) {
	p.stirring = true
	if p.k.orderly {
		d = max(d, p.k.sim.grid)
	}
	if p.turn == nil {
		p.turn = p.step // made once: it is an allocation
	}
	p.k.in(d, p.turn)
}

// step is all that a peer does: each part moves at most a chunk.
func (p *simPeer) step() {
	p.stirring = false
	s := p.sock
	if s == nil || p.hushed || s.gone {
		return
	}
	if p.closed {
		p.answerWhatComes()
		return
	}
	if p.k.now < p.pausedTil {
		p.again(p.pausedTil - p.k.now)
		return
	}
	if p.other != nil {
		p.pass(p.other)
		return
	}
	p.arrive()
	p.read()
	p.sendOwn()
	p.deliver()
	if p.sock == nil || s.gone {
		return
	}
	p.end()
	s.changed()
	if !p.hushed && !p.closed && !p.stirring {
		p.goOn(p.hasMore())
	}
}

func (p *simPeer) hasMore() bool {
	return p.mayArrive() && p.held < p.window || p.held > 0 && !p.deaf ||
		p.sends > 0 && len(p.out) == 0 || len(p.out) > 0 && p.sock.rxLen < p.sock.rxCap
}

// mayArrive: there is something on the way to it.
func (p *simPeer) mayArrive() bool {
	return p.sock.onTheWay() > 0 || p.sock.finOnTheWay() && !p.finCame
}

// goOn has it take its next step: after its gap if it has left something for that, and after its
// delay if there is only what was sent in this very moment, as if that were sent behind this step.
func (p *simPeer) goOn(hasMore bool) {
	if hasMore {
		p.again(p.gap)
	} else if p.sock.sentNow() {
		p.kick()
	}
}

// arrive moves bytes from our kernel to the peer's, which acknowledges them.
func (p *simPeer) arrive() {
	s := p.sock
	n := min(p.chunk, s.onTheWay(), p.window-p.held)
	s.transit -= n
	p.held += n
	p.arrived += int64(n)
	fin := s.finOnTheWay() && !p.finCame
	if fin {
		p.finCame = true
	}
	if n > 0 || fin {
		p.acknowledge(n, fin)
	}
}

// acknowledge tells our kernel, some time later.
func (p *simPeer) acknowledge(n int, fin bool) {
	tell := func() {
		s := p.sock
		if s == nil || s.gone {
			return
		}
		s.unacked -= n
		s.finAcked = s.finAcked || fin
		s.changed()
		if p.k.trace != nil {
			p.k.logf("  net: %d bytes of %d are acknowledged, the FIN: %v", n, s.num, s.finAcked)
		}
		p.k.sim.sawAcknowledged(s)
	}
	if p.ackDelay == 0 {
		tell()
	} else {
		p.k.in(p.ackDelay, tell)
	}
}

// read moves bytes from the peer's kernel to the application.
func (p *simPeer) read() {
	n := min(p.chunk, p.held)
	if p.deaf || n == 0 {
		return
	}
	p.held -= n
	off := p.taken
	p.taken += int64(n)
	if p.k.trace != nil {
		p.k.logf("  net: peer of %d takes %d", p.sock.num, n)
	}
	if p.echoes {
		p.produce(p.base+off, n)
	}
	if p.quitAt > 0 && p.taken >= p.quitAt {
		p.out = append(p.out, simPiece{act: &simAct{deed: simClose}})
	}
}

// sendOwn produces bytes that are no echo: a client's.
func (p *simPeer) sendOwn() {
	if p.sends > 0 && len(p.out) == 0 {
		n := min(int64(p.chunk), p.sends)
		p.produce(p.base+p.total-p.sends, int(n))
		p.sends -= n
	}
}

// deliver moves what the peer sends to our kernel, and lets its acts take their turns.
func (p *simPeer) deliver() {
	s := p.sock
	room := min(p.chunk, s.rxCap-s.rxLen)
	moved := 0
	for len(p.out) > 0 && !p.closed && !p.hushed && !s.gone && p.k.now >= p.pausedTil {
		piece := &p.out[0]
		if piece.act != nil {
			act := piece.act
			p.out = p.out[1:]
			p.does(act)
			continue
		}
		n := min(piece.n, room-moved)
		if n == 0 {
			break
		}
		if !p.finSent {
			s.rx = append(s.rx, simPiece{piece.off, n, piece.literal, nil})
			s.rxLen += n
			p.delivered += int64(n)
		}
		moved += n
		piece.off += int64(n)
		piece.n -= n
		if piece.n == 0 {
			p.out = p.out[1:]
		}
	}
	if moved > 0 && p.k.trace != nil {
		p.k.logf("  net: peer of %d sends %d", s.num, moved)
	}
}

// end is what the peer does when it sees our FIN, or has sent all of its own.
func (p *simPeer) end() {
	if p.closed || p.hushed || p.finSent {
		return
	}
	if p.finCame && p.held == 0 && !p.deaf && !p.finSeen && len(p.out) == 0 {
		p.finSeen = true
		if p.reply > 0 {
			p.emit(simPiece{n: p.reply, literal: 'r'})
		}
	}
	if p.finSeen && len(p.out) == 0 && p.closeAfter != never {
		d := p.closeAfter
		p.closeAfter = never
		if d == 0 {
			p.does(&simAct{deed: simClose})
			return
		}
		p.k.in(d, func() {
			if p.sock != nil && !p.closed && !p.hushed {
				p.does(&simAct{deed: simClose})
			}
		})
	}
	if p.total > 0 && p.sends == 0 && len(p.out) == 0 {
		p.does(&simAct{deed: simHalfClose})
	}
}

// pass moves bytes, and then the FIN, to the connection's other end in the same program.
func (p *simPeer) pass(other *simPeer) {
	s := p.sock
	o := other.sock
	if o == nil {
		return // not accepted yet, or closed
	}
	n := min(p.chunk, s.onTheWay(), o.rxCap-o.rxLen)
	if n > 0 {
		o.rx = append(o.rx, simPiece{p.taken, n, simNoLiteral, nil})
		o.rxLen += n
		s.transit -= n
		s.unacked -= n
		p.arrived += int64(n)
		p.taken += int64(n)
	}
	fin := s.finOnTheWay() && !o.rxEOF
	if fin {
		o.rxEOF = true
		s.finAcked = true
		p.finCame = true
		other.finSent = true
	}
	if n > 0 || fin {
		p.k.sim.sawAcknowledged(s)
	}
	if p.k.trace != nil {
		p.k.logf("  net: %d bytes pass from %d to %d, the FIN: %v", n, s.num, o.num, o.rxEOF)
	}
	s.changed()
	o.changed()
	if !p.stirring {
		p.goOn(p.mayArrive() && o.rxLen < o.rxCap)
	}
}

// produce makes n bytes of the text, and what the script makes of them, ready to be sent.
func (p *simPeer) produce(off int64, n int) {
	for {
		room := n
		if len(p.script) > 0 {
			act := &p.script[0]
			if act.at <= p.produced {
				if act.deed <= simRepeat && n == 0 {
					return // it needs a byte
				}
				p.script = p.script[1:]
				used := p.garble(act, off, n)
				off += int64(used)
				n -= used
				continue
			}
			room = int(min(int64(n), act.at-p.produced))
		}
		if n == 0 {
			return
		}
		p.emit(simPiece{off: off, n: room, literal: simNoLiteral})
		off += int64(room)
		n -= room
	}
}

// garble is a turn of the script; it says how many bytes of the text it used up.
func (p *simPeer) garble(act *simAct, off int64, n int) int {
	switch act.deed {
	case simAlter:
		wrong := p.text().at(off) ^ byte(max(1, act.n%256))
		p.emit(simPiece{literal: int(wrong), n: 1})
		return 1
	case simDrop:
		return min(n, max(1, act.n))
	case simRepeat:
		again := min(off-p.base, int64(max(1, act.n)))
		if again > 0 {
			p.emit(simPiece{off: off - again, n: int(again), literal: simNoLiteral})
		}
	case simInsert:
		p.emit(simPiece{literal: act.n % 256, n: max(1, act.n)})
	default:
		p.out = append(p.out, simPiece{act: act})
	}
	return 0
}

func (p *simPeer) emit(piece simPiece) {
	p.produced += int64(piece.n)
	p.out = append(p.out, piece)
}

// does is an act.
func (p *simPeer) does(a *simAct) {
	k := p.k
	s := p.sock
	if k.trace != nil {
		k.logf("  net: peer of %d: %s", s.num, simDeedNames[a.deed])
	}
	switch a.deed {
	case simClose:
		p.close()
	case simHalfClose:
		s.rxEOF = true
		p.finSent = true
	case simReset:
		p.reset(errReset, false, "")
	case simResetNow:
		p.reset(errReset, true, "")
	case simResetLate:
		p.hushed = true
		k.in(max(a.d, k.sim.grid, 1), func() { // later, and not in the same moment
			if p.sock != nil {
				p.reset(errReset, false, "at last")
			}
		})
	case simUnreach:
		p.reset(syscall.EHOSTUNREACH, false, "")
	case simSoft:
		s.soft = os.NewSyscallError("read", syscall.EHOSTUNREACH)
	case simGiveUp:
		p.reset(errTimedOut, false, "")
	case simHush:
		p.hushed = true
	case simPause:
		p.pausedTil = k.now + a.d
	case simDeaf:
		p.deaf = true
	case simDeafFor:
		p.deaf = true
		k.in(a.d, func() {
			p.deaf = false
			p.kick()
		})
	}
	s.changed()
}

// close: a kernel that closes a socket with bytes unread resets the connection.
func (p *simPeer) close() {
	if p.held > 0 {
		p.reset(errReset, false, "closed with bytes unread")
		return
	}
	p.sock.rxEOF = true
	p.finSent = true
	p.closed = true
	p.k.sim.sawPeerClose()
	p.kick()
}

// answerWhatComes: the application has closed. Bytes are answered by a reset, a FIN is taken.
func (p *simPeer) answerWhatComes() {
	s := p.sock
	if s.onTheWay() > 0 {
		p.reset(errReset, false, "it was closed")
		return
	}
	if s.finOnTheWay() && !p.finCame {
		p.finCame = true
		p.acknowledge(0, true)
	}
	p.goOn(p.mayArrive())
}

// reset ends the connection in our kernel, with the error that the next call tells.
func (p *simPeer) reset(err error, flush bool, why string) {
	s := p.sock
	if s.gone {
		return
	}
	if p.k.trace != nil {
		p.k.logf("  net: %d: %v, unread bytes are lost: %v, %s", s.num, err, flush, why)
	}
	if flush {
		s.rx = nil
		s.rxLen = 0
	}
	p.hushed = true
	s.err = err
	s.gone = true
	s.changed()
	p.k.sim.sawReset(s)
}

// abandoned: the program has closed its end.
func (p *simPeer) abandoned() {
	s := p.sock
	p.sock = nil
	if p.other == nil || p.other.sock == nil {
		return
	}
	o := p.other
	if s.rxLen > 0 {
		o.reset(errReset, false, "the other end was closed with bytes unread")
		return
	}
	if s.transit > 0 { // they are sent all the same, and then the FIN
		o.sock.rx = append(o.sock.rx, simPiece{p.taken, s.transit, simNoLiteral, nil})
		o.sock.rxLen += s.transit
	}
	o.sock.rxEOF = true
	o.finSent = true
	o.sock.changed()
}

// accepted: a client has got its connection.
func (p *simPeer) accepted() {
	if p.other == nil {
		p.start()
	} else if p.other.sock != nil {
		p.other.kick()
	} else { // it left while it waited in the backlog
		p.sock.rxEOF = true
		p.finSent = true
		p.sock.changed()
	}
}

var (
	errSimInput  = errors.New("bad input")
	errSimOutput = errors.New("no space left on device")
)
