package main

// A simulated platform: a kernel of sockets, a poller and a network, with a virtual clock. All that
// is left to chance is drawn from one source, so a seed replays to the same calls, event for event.
// What the program may rely on is checked where it happens (see kernel.fail); what came of each
// connection is kept in a trail, from which sim_test.go derives the outcome that must be reported.

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"os"
	"syscall"
	"time"
)

// ---- Chance ----

// chance is the source of all decisions: the bytes of a fuzzer first, then a seed (splitmix64).
type chance struct {
	state uint64
	given []byte
}

func (c *chance) next() uint64 {
	c.state += 0x9e3779b97f4a7c15
	z := c.state
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// pick is one of 0..n-1.
func (c *chance) pick(n int) int { return int(c.pick64(int64(n))) }

func (c *chance) pick64(n int64) int64 {
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

func (c *chance) oneIn(n int) bool { return c.pick(n) == 1 }

// upTo is one of 0..n, small ones as likely as large ones.
func (c *chance) upTo(n int) int { return int(c.upTo64(int64(n))) }

func (c *chance) upTo64(n int64) int64 {
	bits := 0
	for n>>bits > 0 {
		bits++
	}
	return min(n, c.pick64(1<<c.pick(bits+1)))
}

func (c *chance) span(most time.Duration) time.Duration {
	return time.Duration(c.upTo64(int64(most)))
}

// one is one of the values given.
func one[T any](c *chance, values ...T) T { return values[c.pick(len(values))] }

// ---- The kernel ----

type kernel struct {
	chance
	now     time.Duration
	woke    time.Duration // when wait last returned
	waits   int
	credit  int // what has happened; waits may not exceed it by much
	queue   []timer
	ordered int
	socks   []*sock // by number
	fdLimit int
	fdInUse int
	hours   int // waited in vain, one at a time
	woken   bool
	handing bool // a lookup's goroutine is about to wake
	wokenBy chan struct{}
	dead    bool // the poller is closed

	// How unkind this run is, as one in so many; 0: never.
	short, spurious, split, partial, late int
	spuriousLeft                          int

	trace io.Writer // the event log, when a seed is replayed
	sim   *simulation
}

type timer struct {
	at  time.Duration
	seq int
	f   func()
}

// failure is a broken invariant.
type failure struct{ text string }

func (k *kernel) fail(format string, args ...any) {
	panic(failure{fmt.Sprintf(format, args...)})
}

func (k *kernel) logf(format string, args ...any) {
	if k.trace != nil {
		fmt.Fprintf(k.trace, "%14.9f  %s\n", float64(k.now)/1e9, fmt.Sprintf(format, args...))
	}
}

func (k *kernel) chanceOf(oneIn int) bool { return oneIn > 0 && k.oneIn(oneIn) }

// at schedules f.
func (k *kernel) at(t time.Duration, f func()) {
	k.ordered++
	q := append(k.queue, timer{max(t, k.now), k.ordered, f})
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

func (k *kernel) in(d time.Duration, f func()) { k.at(k.now+min(d, never-k.now), f) }

func (t timer) before(u timer) bool { return t.at < u.at || t.at == u.at && t.seq < u.seq }

func (k *kernel) popTimer() func() {
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

// advance lets the time pass until t, and what is due by then happen.
func (k *kernel) advance(t time.Duration) {
	for len(k.queue) > 0 && k.queue[0].at <= t {
		k.now = max(k.now, k.queue[0].at)
		if k.credit++; k.credit > 1<<22 {
			k.fail("the simulation itself spins")
		}
		k.popTimer()()
	}
	k.now = max(k.now, t)
}

// ---- Sockets ----

type phase uint8

const (
	fresh     phase = iota // made, still blocking
	idle                   // made, non-blocking
	pending                // connect was called
	connected              // and its result was asked for; or accepted
	listening
	closed
)

// sock is a socket of the program's. Bytes in flight are kept as what they are made of.
type sock struct {
	k     *kernel
	num   socket
	phase phase
	born  int // wait during which it was made
	armed readiness
	known bool // to the poller

	told     readiness // by this turn's events
	toldBoth bool      // by one event, and it was not read yet
	lookedAt int       // turn in which a deadline allowed a look unasked
	refused  bool      // the last write was short

	to      netip.AddrPort
	local   netip.AddrPort
	fate    error         // of connect
	settled bool          // connect has ended
	endedAt time.Duration // then

	rx       []seg
	rxLen    int
	rxCap    int
	rxErr    error // read after the bytes, once
	rxEOF    bool  // read after those
	rxSince  time.Duration
	rxHeld   time.Duration // spuriously not ready until then
	txQueued int           // taken by the kernel, not yet by the peer
	txCap    int
	txSince  time.Duration
	txHeld   time.Duration
	txErr    error // of writes
	fin      bool  // closeWrite was called
	nread    int64
	wrote    int64

	peer    *peer
	rec     *trail
	backlog []*peer // of a listener
	acceptE []error // what accept says first
}

// seg is a run of bytes: n bytes of the stream from off, or the literal byte, or a turn of the
// script, which happens when all before it is delivered.
type seg struct {
	off     int64
	n       int
	literal int // -1: none
	act     *fault1
}

// stream is what is sent: a text that repeats itself after a prime number of bytes.
const streamPeriod = 8191

var streamText = func() []byte {
	var c chance
	text := make([]byte, streamPeriod)
	for i := range text {
		text[i] = byte(c.next())
	}
	return bytes.Repeat(text, 20) // so that any 128 KiB of it are contiguous
}()

// simText is where the bytes of a stream come from: the text above, or MESSAGEs over and over.
type simText struct {
	block []byte // repeated; long enough for any one read
	size  int    // of what is repeated
}

func newSimText(messages []byte) simText {
	if messages == nil {
		return simText{streamText, streamPeriod}
	}
	return simText{messages, len(messages)}
}

func (s simText) at(off int64) byte { return s.block[off%int64(s.size)] }

// fill copies the stream from off to p.
func (s simText) fill(p []byte, off int64) {
	for len(p) > 0 {
		n := copy(p, s.block[off%int64(s.size):])
		p, off = p[n:], off+int64(n)
	}
}

// same counts the first bytes of p that are those from off on.
func (s simText) same(p []byte, off int64) int {
	done := 0
	for done < len(p) {
		want := s.block[off%int64(s.size):]
		n := min(len(want), len(p)-done)
		if !bytes.Equal(want[:n], p[done:done+n]) {
			for i := 0; ; i++ {
				if want[i] != p[done+i] {
					return done + i
				}
			}
		}
		done, off = done+n, off+int64(n)
	}
	return done
}

func (k *kernel) newSock() *sock {
	s := &sock{k: k, born: k.waits, rxSince: never, txSince: 0, local: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, 1}), uint16(1024+k.pick(60000)))}
	s.txCap = 1 + k.upTo(1<<18)
	s.rxCap = 1 + k.upTo(1<<18)
	for i := range k.socks { // the lowest free number, as POSIX has it
		if k.socks[i] == nil && i > 0 {
			s.num, k.socks[i] = socket(i), s
			k.fdInUse++
			return s
		}
	}
	s.num = socket(len(k.socks))
	k.socks = append(k.socks, s)
	k.fdInUse++
	return s
}

func (k *kernel) sock(call string, num socket) *sock {
	if k.dead {
		k.fail("%s(%d) after the poller's end", call, num)
	}
	if int(num) >= len(k.socks) || k.socks[num] == nil {
		k.fail("%s(%d): no such socket", call, num)
	}
	return k.socks[num]
}

// rxThere: a read would yield something.
func (s *sock) rxThere() bool { return s.rxLen > 0 || s.rxErr != nil || s.rxEOF }

// txThere: a write would yield something.
func (s *sock) txThere() bool { return s.txErr != nil || s.txQueued < s.txCap }

// changed notes since when the socket has been ready, after anything that may have changed that.
func (s *sock) changed() {
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

func (s *sock) ready() (r readiness) {
	now := s.k.now
	switch s.phase {
	case pending:
		if s.settled && now >= s.txHeld {
			r = writable
		}
	case connected:
		if s.rxThere() && now >= s.rxHeld {
			r |= readable
		}
		if s.txThere() && now >= s.txHeld {
			r |= writable
		}
	case listening:
		if len(s.backlog)+len(s.acceptE) > 0 && now >= s.rxHeld {
			r = readable
		}
	}
	return r & s.armed
}

func nothing() {}

// spuriously makes a call of s fail with errWouldBlock although the socket was ready, and the
// readiness stay away for a moment.
func (s *sock) spuriously(held, since *time.Duration) bool {
	k := s.k
	if k.spuriousLeft == 0 || !k.chanceOf(k.spurious) {
		return false
	}
	k.spuriousLeft--
	k.credit++
	*since = k.now
	*held = k.now + k.span(2*time.Millisecond)
	k.at(*held, nothing)
	return true
}

func (k *kernel) openSocket(to netip.AddrPort) (socket, error) {
	rec := k.sim.attempt(to)
	k.credit++
	if err := rec.fate.open; err != nil {
		k.logf("openSocket(%v): %v", to, err)
		rec.attemptFailed(err)
		return 0, err
	}
	if k.fdInUse >= k.fdLimit {
		err := fmt.Errorf("%w (the limit is %d)", errTooManyFiles, k.fdLimit)
		k.logf("openSocket(%v): %v", to, err)
		rec.attemptFailed(err)
		return 0, err
	}
	s := k.newSock()
	s.to, s.rec, rec.sock = to, rec, s
	k.logf("openSocket(%v) = %d for #%d", to, s.num, rec.index+1)
	return s.num, nil
}

func (k *kernel) setNonblock(num socket) error {
	s := k.sock("setNonblock", num)
	if s.phase != fresh {
		k.fail("setNonblock(%d) in phase %d", num, s.phase)
	}
	if err := s.rec.fate.nonblock; err != nil {
		k.logf("setNonblock(%d): %v", num, err)
		s.rec.attemptFailed(err)
		return err
	}
	s.phase = idle
	return nil
}

func (k *kernel) connect(num socket, to netip.AddrPort) error {
	s := k.sock("connect", num)
	if s.phase != idle || to != s.to {
		k.fail("connect(%d, %v) in phase %d, a socket for %v", num, to, s.phase, s.to)
	}
	f := &s.rec.fate
	s.phase, s.fate = pending, f.err
	if f.self {
		s.local = to
	}
	if f.delay == 0 && !f.never {
		k.connectEnds(s)
		if f.err != nil && f.err != errReset {
			k.logf("connect(%d, %v): %v", num, to, f.err)
			s.rec.attemptFailed(f.err)
			return f.err
		}
		if f.prompt {
			k.logf("connect(%d, %v) at once", num, to)
			return nil
		}
	} else if !f.never {
		k.in(f.delay, func() {
			if s.phase == pending {
				k.connectEnds(s)
			}
		})
	}
	k.logf("connect(%d, %v): pending", num, to)
	return errWouldBlock
}

// connectEnds: the handshake is over, or has failed. From here on the peer can act.
func (k *kernel) connectEnds(s *sock) {
	s.settled, s.endedAt = true, k.now
	if k.trace != nil {
		k.logf("  net: connect of %d ends: %v", s.num, s.fate)
	}
	if s.fate == nil && !s.rec.fate.self || s.fate == errReset {
		if l := k.sim.listenerAt(s.to); l != nil && s.fate == nil {
			k.join(s, l)
			return
		}
		s.peer = k.sim.newPeer(s)
		s.peer.start()
	}
}

// join makes a connection between two ends of the program's: what one peer takes, the other sends.
func (k *kernel) join(s, l *sock) {
	a, b := &peer{k: k, sock: s, src: k.sim.src}, &peer{k: k, src: k.sim.src, addr: s.local}
	a.other, b.other = b, a
	k.sim.temper(a, s)
	s.peer = a
	k.sim.clients = append(k.sim.clients, b)
	l.backlog = append(l.backlog, b)
	l.changed()
}

func (k *kernel) connectResult(num socket) (local, peer netip.AddrPort, err error) {
	s := k.sock("connectResult", num)
	if s.phase != pending {
		k.fail("connectResult(%d) in phase %d", num, s.phase)
	}
	if s.told == 0 && s.born < k.waits && k.now < s.rec.by {
		k.fail("connectResult(%d), and no event has said anything", num)
	}
	if s.born == k.waits && !s.settled && k.now < s.rec.by {
		k.fail("connectResult(%d): a stale event was taken for the new socket's", num)
	}
	if !s.settled || k.now < s.txHeld || s.spuriously(&s.txHeld, &s.endedAt) {
		if k.trace != nil {
			k.logf("connectResult(%d): still pending", num)
		}
		return local, peer, errWouldBlock
	}
	if s.fate != nil && s.fate != errReset {
		if k.trace != nil {
			k.logf("connectResult(%d): %v", num, s.fate)
		}
		s.rec.attemptFailed(s.fate)
		return local, peer, s.fate
	}
	if s.local == s.to {
		if k.trace != nil {
			k.logf("connectResult(%d): to itself", num)
		}
		s.rec.attemptFailed(errRefused)
		return s.local, s.to, nil
	}
	s.phase = connected
	s.changed()
	k.credit++
	if s.fate == errReset || s.rxErr == errReset && s.rec.fate.early {
		s.rxErr, s.rxEOF = nil, true // the error was read
		s.txErr = errReset
		s.changed()
		if k.trace != nil {
			k.logf("connectResult(%d): reset", num)
		}
		s.rec.begins(errReset)
		return local, peer, errReset
	}
	if k.trace != nil {
		k.logf("connectResult(%d): connected", num)
	}
	s.rec.begins(nil)
	return s.local, s.to, nil
}

func (k *kernel) read(num socket, p []byte) (int, error) {
	s := k.sock("read", num)
	if s.phase != connected || len(p) == 0 {
		k.fail("read(%d, %d bytes) in phase %d", num, len(p), s.phase)
	}
	s.mayRead()
	if look := s.mayLook(); s.told&readable == 0 && !look {
		k.fail("read(%d), of which no event said that it is readable", num)
	}
	s.toldBoth = false
	if !s.rxThere() || k.now < s.rxHeld || s.spuriously(&s.rxHeld, &s.rxSince) {
		if k.trace != nil {
			k.logf("read(%d): would block", num)
		}
		return 0, errWouldBlock
	}
	k.credit++
	if s.rxLen > 0 {
		n := s.shorten(min(s.rxLen, len(p)))
		got := p[:n]
		for i := 0; i < n; {
			g := &s.rx[0]
			m := min(g.n, n-i)
			if g.literal >= 0 {
				for j := range m {
					p[i+j] = byte(g.literal)
				}
			} else {
				s.peer.src.fill(p[i:i+m], g.off)
				g.off += int64(m)
			}
			i += m
			if g.n -= m; g.n == 0 {
				s.rx = s.rx[1:]
			}
		}
		s.rxLen -= n
		s.nread += int64(n)
		s.changed()
		if k.trace != nil {
			k.logf("read(%d) = %d", num, n)
		}
		s.peer.kick()
		if s.peer.other != nil {
			s.peer.other.kick() // there is room again
		}
		s.observeRead(got, nil)
		return n, nil
	}
	err := io.EOF
	if s.rxErr != nil {
		err, s.rxErr = named("read", s.rxErr), nil
		s.rxEOF = true
	}
	s.changed()
	if k.trace != nil {
		k.logf("read(%d): %v", num, err)
	}
	s.observeRead(nil, err)
	return 0, err
}

// named is err as the contract has it: one of the bare ones, or the system's, with the call.
func named(call string, err error) error {
	if _, ok := err.(syscall.Errno); ok {
		return os.NewSyscallError(call, err)
	}
	return err
}

// shorten: any call may move less than it could, down to one byte.
func (s *sock) shorten(n int) int {
	if s.k.chanceOf(s.k.short) {
		return min(n, 1+s.k.upTo(n))
	}
	return n
}

func (k *kernel) write(num socket, p []byte) (int, error) {
	s := k.sock("write", num)
	if s.phase != connected || len(p) == 0 || s.fin {
		k.fail("write(%d, %d bytes) in phase %d, fin %v", num, len(p), s.phase, s.fin)
	}
	s.mayWrite(p)
	if s.refused && s.told&writable == 0 && !s.mayLook() {
		k.fail("write(%d), which has refused bytes, and no event since", num)
	}
	if s.toldBoth && s.refused {
		k.fail("write(%d) before the read", num)
	}
	s.refused = false
	if s.txErr != nil {
		err := s.txErr
		if s.rxErr != nil && k.oneIn(2) { // one and the same: SO_ERROR is handed out once
			err, s.rxErr, s.rxEOF = s.rxErr, nil, true
			s.txErr = errReset
		}
		err = named("write", err)
		s.changed()
		k.credit++
		if k.trace != nil {
			k.logf("write(%d, %d): %v", num, len(p), err)
		}
		s.observeWrite(0, len(p), err)
		return 0, err
	}
	if !s.txThere() || k.now < s.txHeld || s.spuriously(&s.txHeld, &s.txSince) {
		if k.trace != nil {
			k.logf("write(%d, %d): would block", num, len(p))
		}
		s.refused = true
		s.observeWrite(0, len(p), errWouldBlock)
		return 0, errWouldBlock
	}
	n := s.shorten(min(len(p), s.txCap-s.txQueued))
	if same := s.peer.src.same(p[:n], s.peer.base+s.wrote); same < n {
		k.fail("write(%d): byte %d is not the stream's", num, s.wrote+int64(same))
	}
	s.refused = n < len(p)
	s.txQueued += n
	s.wrote += int64(n)
	s.changed()
	k.credit++
	if k.trace != nil {
		k.logf("write(%d, %d) = %d", num, len(p), n)
	}
	s.peer.kick()
	s.observeWrite(n, len(p), nil)
	return n, nil
}

func (k *kernel) closeWrite(num socket) error {
	s := k.sock("closeWrite", num)
	if s.phase != connected || s.fin {
		k.fail("closeWrite(%d) in phase %d, fin %v", num, s.phase, s.fin)
	}
	s.fin = true
	k.credit++
	var err error
	if s.rec != nil {
		err = s.rec.fate.shutdown
	}
	k.logf("closeWrite(%d): %v", num, err)
	s.observeCloseWrite(err)
	if err == nil {
		s.peer.kick()
	}
	return err
}

func (k *kernel) close(num socket) error {
	s := k.sock("close", num)
	if s.known {
		k.fail("close(%d): it is still in the poller", num)
	}
	k.logf("close(%d)", num)
	s.observeClose()
	s.phase = closed
	k.socks[num] = nil
	k.fdInUse--
	k.credit++
	if s.peer != nil {
		s.peer.sock = nil
		if o := s.peer.other; o != nil && o.sock != nil {
			if s.rxLen+s.txQueued > 0 {
				o.reset(errReset, false, "the other end was closed")
			} else {
				o.sock.rxEOF, o.finSent = true, true
			}
			o.sock.changed()
		}
	}
	if k.oneIn(16) {
		return os.NewSyscallError("close", syscall.EIO)
	}
	return nil
}

func (k *kernel) listen(at netip.AddrPort) (socket, netip.AddrPort, error) {
	if err := k.sim.listenFails(at); err != nil {
		k.logf("listen(%v): %v", at, err)
		return 0, at, err
	}
	s := k.newSock()
	s.phase, s.to = listening, at
	k.credit++
	if at.Port() == 0 {
		s.to = netip.AddrPortFrom(at.Addr(), 40000)
	}
	k.logf("listen(%v) = %d", s.to, s.num)
	k.sim.listener(s)
	return s.num, s.to, nil
}

func (k *kernel) accept(num socket) (socket, netip.AddrPort, error) {
	s := k.sock("accept", num)
	if s.phase != listening {
		k.fail("accept(%d) in phase %d", num, s.phase)
	}
	none := netip.AddrPort{}
	if s.told == 0 || k.sim.pausing(s) {
		k.fail("accept(%d): no event, or it is paused", num)
	}
	if len(s.acceptE) > 0 {
		err := s.acceptE[0]
		s.acceptE = s.acceptE[1:]
		k.credit++
		if k.trace != nil {
			k.logf("accept(%d): %v", num, err)
		}
		k.sim.acceptFailed(s, err)
		return 0, none, err
	}
	if len(s.backlog) == 0 || k.now < s.rxHeld || s.spuriously(&s.rxHeld, &s.rxSince) {
		if k.trace != nil {
			k.logf("accept(%d): would block", num)
		}
		return 0, none, errWouldBlock
	}
	if k.fdInUse >= k.fdLimit {
		k.credit++
		if k.trace != nil {
			k.logf("accept(%d): %v", num, errTooManyFiles)
		}
		k.sim.acceptFailed(s, errTooManyFiles)
		return 0, none, errTooManyFiles
	}
	p := s.backlog[0]
	s.backlog = s.backlog[1:]
	a := k.newSock()
	k.credit++
	a.phase, a.peer, p.sock = connected, p, a
	a.changed()
	if k.trace != nil {
		k.logf("accept(%d) = %d from %v", num, a.num, p.addr)
	}
	p.accepted()
	return a.num, p.addr, nil
}

// ---- The poller ----

func (k *kernel) add(num socket, want readiness) error {
	s := k.sock("add", num)
	if s.known || want == 0 || s.phase == fresh || s.phase == idle || s.phase == pending && want != writable {
		k.fail("add(%d, %d): known %v, phase %d", num, want, s.known, s.phase)
	}
	return k.arm("add", s, want, true)
}

func (k *kernel) modify(num socket, want readiness) error {
	s := k.sock("modify", num)
	if !s.known || want == 0 || want == s.armed || s.phase == pending {
		k.fail("modify(%d, %d): known %v, armed %d, phase %d", num, want, s.known, s.armed, s.phase)
	}
	return k.arm("modify", s, want, true)
}

func (k *kernel) remove(num socket) error {
	s := k.sock("remove", num)
	if !s.known {
		k.fail("remove(%d): the poller does not have it", num)
	}
	return k.arm("remove", s, 0, false)
}

func (k *kernel) arm(call string, s *sock, want readiness, known bool) error {
	k.credit++
	if k.trace != nil {
		k.logf("%s(%d, %s)", call, s.num, [...]string{"-", "r", "w", "rw"}[want])
	}
	s.armed, s.known = want, known
	if known && k.sim.pollerFails(s) {
		err := os.NewSyscallError("epoll_ctl", syscall.ENOSPC)
		k.logf("%s(%d): %v", call, s.num, err)
		k.sim.aborted(err)
		return err
	}
	return nil
}

func (k *kernel) wake() {
	if k.dead {
		k.fail("wake after the poller's end")
	}
	if k.handing {
		k.wokenBy <- struct{}{}
		return
	}
	k.woken = true
}

// closePoller is the poller's close; a socket's is close.
func (k *kernel) closePoller() error {
	for _, s := range k.socks {
		if s != nil {
			k.fail("the poller is closed before socket %d", s.num)
		}
	}
	k.dead = true
	return nil
}

// wait lets the time pass until a socket is ready, a wake-up, or ms milliseconds.
func (k *kernel) wait(events []event, ms int) (int, error) {
	if k.dead {
		k.fail("wait after close")
	}
	for _, s := range k.socks {
		if s != nil {
			s.told, s.toldBoth = 0, false
		}
	}
	k.waits++
	if k.waits > 2*k.credit+64 {
		k.fail("it spins: wait number %d after only %d events", k.waits, k.credit)
	}
	k.sim.turnEnds(ms)
	limit := never
	if ms >= 0 {
		limit = k.now + min(time.Duration(ms)*time.Millisecond, never-k.now)
	}
	if k.trace != nil {
		k.logf("wait(%d ms)", ms)
	}
	k.advance(k.now)
	if k.spuriousLeft > 0 && k.chanceOf(k.spurious) {
		k.spuriousLeft--
		k.credit++
		if k.trace != nil {
			k.logf("wait: nothing, for no reason")
		}
		k.woke = k.now
		return 0, nil
	}
	for !k.woken && !k.anyReady() {
		next := never
		if len(k.queue) > 0 {
			next = k.queue[0].at
		}
		if next == never && limit == never {
			k.sim.nothingLeft()
		} else if next > limit {
			k.advance(limit)
			if ms == int(time.Hour/time.Millisecond) {
				if k.credit, k.hours = k.credit+1, k.hours+1; k.hours == 50 {
					k.sim.nothingLeft() // the user has seen enough
				}
			}
			break
		} else {
			k.advance(next)
		}
	}
	if k.chanceOf(k.late) { // the process was stopped, and goes on
		k.credit++
		k.advance(k.now + k.span(20*time.Second))
		if k.trace != nil {
			k.logf("wait: late")
		}
	}
	k.woken = false
	k.woke = k.now
	if err := k.sim.waitFails(); err != nil {
		if k.trace != nil {
			k.logf("wait: %v", err)
		}
		k.sim.abortedBy = nil // a lookup's answer is only on its way
		k.sim.aborted(err)
		return 0, err
	}
	return k.batch(events), nil
}

func (k *kernel) anyReady() bool {
	for _, s := range k.socks {
		if s != nil && s.known && s.ready() != 0 {
			return true
		}
	}
	return false
}

// batch names ready sockets: not always all, not always both directions, one twice, or one
// that is not ready at all.
func (k *kernel) batch(events []event) int {
	n := 0
	put := func(s *sock, r readiness) {
		if n < len(events) && r != 0 {
			events[n] = event{s.num, r}
			n++
			s.told |= r
			s.toldBoth = s.toldBoth || r == readable|writable
		}
	}
	from := 0
	if k.split > 0 {
		from = k.pick(len(k.socks) + 1)
	}
	for i := range k.socks {
		s := k.socks[(i+from)%len(k.socks)]
		if s == nil || !s.known {
			continue
		}
		r := s.ready()
		switch {
		case k.chanceOf(k.partial) && r != 0 && n > 0: // another time
		case k.chanceOf(k.split): // two events for one socket, in either order, or the same one twice
			k.credit++
			if r == readable|writable && k.oneIn(2) {
				first := one(&k.chance, readable, writable)
				put(s, first)
				if k.oneIn(2) {
					put(s, r&^first)
				}
			} else {
				put(s, r)
				put(s, r)
			}
		case r == 0 && k.spuriousLeft > 0 && k.chanceOf(k.spurious):
			k.spuriousLeft--
			k.credit++
			if k.trace != nil {
				k.logf("wait: %d is ready, which is not so", s.num)
			}
			put(s, s.armed)
		default:
			put(s, r)
		}
	}
	if k.split > 0 && n > 1 && k.oneIn(2) {
		i := k.pick(n)
		events[0], events[i] = events[i], events[0]
	}
	if k.trace != nil {
		for _, e := range events[:n] {
			if k.trace != nil {
				k.logf("wait: %d is ready for %s", e.socket, [...]string{"-", "r", "w", "rw"}[e.ready])
			}
		}
	}
	return n
}

// simPoller is the kernel as a poller; its close is not a socket's.
type simPoller struct{ *kernel }

func (p simPoller) close() error { return p.closePoller() }

// ---- Peers ----

type act uint8

const (
	alter act = iota
	drop
	repeat
	insert
	fin       // closes, with whatever is unread
	halfClose // says that it has no more, and reads on
	rst       // resets after what it has sent
	rstNow    // and throws away what is not read
	rstLater  // its reset comes without its data
	unreach   // the network answers
	timeout   // the kernel gives up on the peer
	hush      // never does anything again
	pause
	deaf     // stops reading
	deafFor  // for a while
	lastAct  = deafFor
	nobody   = -1
	halfHour = 30 * time.Minute
)

var actNames = [...]string{"alter", "drop", "repeat", "insert", "fin", "halfClose", "rst", "rstNow", "rstLater", "unreach", "timeout", "hush", "pause", "deaf", "deafFor"}

// fault1 is one turn of a peer's script: when it has produced at bytes.
type fault1 struct {
	act act
	at  int64
	n   int
	d   time.Duration
}

// peer is the other end of a connection.
type peer struct {
	k    *kernel
	sock *sock // the program's end; nil: closed, or not accepted yet
	addr netip.AddrPort
	src  simText
	base int64 // of the stream's text

	delay, gap time.Duration // of a reaction, between two steps
	chunk      int           // of one step
	script     []fault1
	echoes     bool
	reply      int           // bytes of its own after the FIN
	closeAfter time.Duration // the client's FIN; never

	out       []seg
	taken     int64
	produced  int64
	delivered int64
	stirring  bool // a step is scheduled
	turn      func()
	gone      bool // it has closed or reset, or is never heard of again
	noRead    bool
	pausedTil time.Duration
	finSeen   bool
	finSent   bool

	other *peer // of a connection within the program

	// Of a client of the simulated kernel's:
	sends    int64 // bytes still to be sent
	total    int64
	srvRead  int64 // by the server
	srvEnded bool  // it was told of the end, or of an error
}

func (p *peer) start() {
	p.produce(0, 0)
	p.kick()
}

func (p *peer) kick() {
	if !p.stirring && p.sock != nil {
		p.stirring = true
		if p.turn == nil {
			p.turn = p.step // made once: it is an allocation
		}
		p.k.in(p.delay, p.turn)
	}
}

func (p *peer) step() {
	p.stirring = false
	s := p.sock
	if s == nil || p.gone || s.txErr != nil {
		if s != nil && p.gone && s.txQueued > 0 && s.txErr == nil && p.finSent {
			p.reset(errReset, false, "it was closed") // data for a socket that is no more
		}
		return
	}
	k := p.k
	if k.now < p.pausedTil {
		p.stirring = true
		k.at(p.pausedTil, p.turn)
		return
	}
	if p.other != nil {
		p.pass(p.other)
		return
	}
	if n := min(p.chunk, s.txQueued); n > 0 && !p.noRead {
		s.txQueued -= n
		off := p.taken
		p.taken += int64(n)
		if p.echoes {
			p.produce(p.base+off, n)
		}
		if k.trace != nil {
			k.logf("  net: peer of %d takes %d", s.num, n)
		}
	}
	if p.sends > 0 && len(p.out) == 0 {
		n := min(int64(p.chunk), p.sends)
		p.produce(p.base+p.total-p.sends, int(n))
		p.sends -= n
	}
	room := min(p.chunk, s.rxCap-s.rxLen)
	moved := 0
	for len(p.out) > 0 && !p.gone && k.now >= p.pausedTil {
		g := &p.out[0]
		if g.act != nil {
			a := g.act
			p.out = p.out[1:]
			p.does(a)
			if p.sock == nil {
				return
			}
			continue
		}
		n := min(g.n, room-moved)
		if n == 0 {
			break
		}
		if !p.finSent {
			s.rx = append(s.rx, seg{g.off, n, g.literal, nil})
			s.rxLen += n
			p.delivered += int64(n)
		}
		moved += n
		g.off += int64(n)
		if g.n -= n; g.n == 0 {
			p.out = p.out[1:]
		}
	}
	if moved > 0 {
		if k.trace != nil {
			k.logf("  net: peer of %d sends %d", s.num, moved)
		}
	}
	s.changed()
	if s.fin && s.txQueued == 0 && !p.finSeen && len(p.out) == 0 && !p.gone {
		p.finSeen = true
		if p.reply > 0 {
			p.out = append(p.out, seg{off: 0, n: p.reply, literal: 'r'})
		}
	}
	if p.finSeen && len(p.out) == 0 && !p.gone && !p.finSent && p.closeAfter != never {
		f := &fault1{act: fin}
		if p.closeAfter == 0 {
			p.does(f)
		} else {
			k.in(p.closeAfter, func() {
				if p.sock != nil && !p.gone {
					p.does(f)
					p.sock.changed()
				}
			})
			p.closeAfter = never
		}
	}
	if p.total > 0 && p.sends == 0 && len(p.out) == 0 && !p.finSent && !p.gone {
		p.does(&fault1{act: halfClose})
	}
	more := s.txQueued > 0 && !p.noRead || p.sends > 0 && len(p.out) == 0 || len(p.out) > 0 && s.rxLen < s.rxCap
	if more && !p.gone && !p.stirring {
		p.stirring = true
		k.in(p.gap, p.turn)
	}
}

// pass moves bytes, and then the FIN, to the connection's other end in the same program.
func (p *peer) pass(other *peer) {
	s, o := p.sock, other.sock
	if o == nil {
		return // not accepted yet, or closed
	}
	if n := min(p.chunk, s.txQueued, o.rxCap-o.rxLen); n > 0 {
		o.rx = append(o.rx, seg{p.taken, n, nobody, nil})
		o.rxLen += n
		s.txQueued -= n
		p.taken += int64(n)
		p.k.logf("  net: %d bytes pass from %d to %d", n, s.num, o.num)
	}
	if s.fin && s.txQueued == 0 && !o.rxEOF {
		o.rxEOF, other.finSent = true, true
		p.k.logf("  net: the FIN passes from %d to %d", s.num, o.num)
	}
	s.changed()
	o.changed()
	if s.txQueued > 0 && o.rxLen < o.rxCap && !p.stirring {
		p.stirring = true
		p.k.in(p.gap, p.turn)
	}
}

// produce adds n bytes of the stream to what will be sent, and what the script makes of them.
func (p *peer) produce(off int64, n int) {
	for {
		room := n
		if len(p.script) > 0 {
			a := &p.script[0]
			if a.at <= p.produced {
				if a.act <= repeat && n == 0 {
					return // it needs a byte
				}
				p.script = p.script[1:]
				switch a.act {
				case alter:
					p.emit(seg{literal: int(p.src.at(off) ^ byte(max(1, a.n%256))), n: 1})
					off, n = off+1, n-1
				case drop:
					d := min(n, max(1, a.n))
					off, n = off+int64(d), n-d
				case repeat:
					if d := min(off-p.base, int64(max(1, a.n))); d > 0 {
						p.emit(seg{off: off - d, n: int(d), literal: nobody})
					}
				case insert:
					p.emit(seg{literal: a.n % 256, n: max(1, a.n)})
				default:
					p.out = append(p.out, seg{act: a})
				}
				continue
			}
			room = int(min(int64(n), a.at-p.produced))
		}
		if n == 0 {
			return
		}
		p.emit(seg{off: off, n: room, literal: nobody})
		off, n = off+int64(room), n-room
	}
}

func (p *peer) emit(g seg) {
	p.produced += int64(g.n)
	p.out = append(p.out, g)
}

// does is one turn of the script.
func (p *peer) does(a *fault1) {
	k, s := p.k, p.sock
	if k.trace != nil {
		k.logf("  net: peer of %d: %s %d %v", s.num, actNames[a.act], a.n, a.d)
	}
	switch a.act {
	case fin:
		if s.txQueued > 0 && a.n%2 == 1 {
			p.reset(errReset, a.n%4 == 1, "closed with bytes unread")
			return
		}
		s.rxEOF, p.finSent, p.gone = true, true, true
		p.kick() // to answer what still comes
	case halfClose:
		s.rxEOF, p.finSent = true, true
	case rst:
		p.reset(errReset, false, "")
	case rstNow:
		p.reset(errReset, true, "")
	case rstLater:
		p.gone = true
		k.in(a.d, func() {
			if p.sock != nil {
				p.reset(errReset, false, "at last")
			}
		})
	case unreach:
		p.reset(syscall.EHOSTUNREACH, false, "")
	case timeout:
		p.reset(errTimedOut, false, "")
	case hush:
		p.gone = true
	case pause:
		p.pausedTil = k.now + a.d
	case deaf:
		p.noRead = true
	case deafFor:
		p.noRead = true
		k.in(a.d, func() {
			p.noRead = false
			p.kick()
		})
	}
	s.changed()
}

func (p *peer) reset(err error, flush bool, why string) {
	s := p.sock
	p.k.logf("  net: peer of %d resets: %v (unread data lost: %v) %s", s.num, err, flush, why)
	p.gone = true
	if flush {
		s.rx, s.rxLen = nil, 0
	}
	if s.phase == pending && s.rec != nil && flush {
		s.rec.fate.early = true // the error is found by connectResult
	}
	s.rxErr, s.txErr = err, err
	s.changed()
}
