package main

// The simulation: what a run is made of (drawn from a seed), what must hold at every step of it, and
// what it must come to. The judgement rests on what the simulated kernel handed out and when, and on
// DESIGN's rules; main.go is asked for nothing but its options.
//
//	go test -run TestSim                              a fixed range of seeds
//	go test -run TestSim -sim.runs=1000000 -sim.seed=7   as many as you like, from there
//	go test -run TestSim -sim.runs=1 -sim.seed=N -v   one seed, step by step
//	go test -fuzz FuzzSim                             coverage finds the decisions

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// ---- What a connection came to ----

// verdict is the end of a connection: its status and what the text must name.
type verdict struct {
	status int
	words  []string
	n      int // connections
}

// fate is what becomes of one attempt to connect.
type fate struct {
	open, nonblock, err, shutdown error
	delay                         time.Duration
	never, prompt, self, early    bool
}

// trail is what the simulated kernel has seen of one of the client's connections.
type trail struct {
	*simulation
	index   int
	tried   int // addresses
	triedAt int // wait
	sock    *sock
	fate    fate
	by      time.Duration // deadline of the attempt
	causes  []error
	place   netip.AddrPort

	begun, closing, over    bool
	goal, sent, returned    int64
	blocked, finSent, owing bool
	moved                   time.Duration
	brokenBy                []string
	brokenStatus            int
	round                   int64
	began                   time.Duration
	drainBy                 time.Duration
	verdict                 *verdict
}

// ---- The run ----

type simulation struct {
	k       *kernel
	l       *loop
	o       options
	args    []string
	name    bool // HOST needs a lookup
	answer  lookupAnswer
	asked   chan time.Duration
	answers chan lookupAnswer
	waiting bool // the lookup has not answered

	src       simText
	addrs     []netip.Addr // in the order of the attempts
	connectBy time.Duration
	records   []*trail
	failing   *trail // is due to try its next address
	verdicts  []verdict
	finished  int
	signal    int // the status of one that was posted
	abortedBy *verdict
	ending    bool

	kind     string
	kindness int
	total    int64 // bytes that a connection is likely to send
	inp      simInput
	out      simOutput
	stderr   bytes.Buffer
	sigWait  int

	listeners []*simListener
	clients   []*peer
	noFamily  []bool // listen: v6, v4
	acceptor  string // the listener whose accept failed
	listenErr error
	servedOK  int
	servedBad int
	srvRead   int64
	srvWrote  int64

	pollerFaultAt, waitFaultAt int
}

type lookupAnswer struct {
	addrs []netip.Addr
	err   error
	delay time.Duration
}

type simListener struct {
	sock   *sock
	paused time.Duration
}

// simInput is standard input.
type simInput struct {
	in         *input
	lent       []byte
	given      int64
	total      int64
	most       int
	delay      func() time.Duration
	ended      bool // EOF or failure was handed over
	err        error
	withEOF    bool // the last bytes and EOF come together
	over       bool // the channel is closed
	postedWait int  // when the last bytes were handed over
}

// simOutput is standard output.
type simOutput struct {
	sim    *simulation
	due    []byte // what the last read obliges the program to write
	n      int64
	failAt int64
	slow   time.Duration
	failed bool
}

var errStdin, errStdout = errors.New("bad input"), errors.New("no space left on device")

func (o *simOutput) Write(p []byte) (int, error) {
	s := o.sim
	if !bytes.Equal(p, o.due) || o.failed {
		s.k.fail("standard output gets %d bytes; %d are due", len(p), len(o.due))
	}
	o.due = nil
	if o.slow > 0 {
		s.k.advance(s.k.now + s.k.span(o.slow))
	}
	r := s.records[0]
	if o.n+int64(len(p)) > o.failAt {
		o.failed = true
		n := o.failAt - o.n
		o.n = o.failAt
		s.k.logf("standard output fails")
		r.verdict = &verdict{exitLocal, []string{"standard output", errStdout.Error()}, 1}
		return int(n), errStdout
	}
	o.n += int64(len(p))
	r.moved = s.k.now
	return len(p), nil
}

// ---- The oracle: connecting ----

func (s *simulation) after(d time.Duration) time.Duration { return s.k.now + min(d, never-s.k.now) }

// attempt is a call of openSocket: the next address of a connection whose last attempt failed,
// or the first one of another.
func (s *simulation) attempt(to netip.AddrPort) *trail {
	r := s.failing
	s.failing = nil
	if r == nil {
		r = &trail{simulation: s, index: len(s.records)}
		s.records = append(s.records, r)
	}
	if len(s.records) > s.o.n || s.o.serve {
		s.k.fail("a connection too many: %d", len(s.records))
	}
	if r.tried >= len(s.addrs) || to != netip.AddrPortFrom(s.addrs[r.tried], s.o.port) {
		s.k.fail("attempt %d is at %v, of %v", r.tried+1, to, s.addrs)
	}
	left := max(0, s.connectBy-s.k.now) // an address whose turn comes too late gets no time
	r.triedAt = s.k.waits
	r.by = s.k.now + min(left, max(time.Second, left/time.Duration(len(s.addrs)-r.tried)))
	r.tried++
	r.place = to
	r.fate = s.newFate(r)
	return r
}

func (r *trail) attemptFailed(err error) {
	r.causes = append(r.causes, err)
	r.sock = nil
	switch {
	case errors.Is(err, errTooManyFiles):
		r.aborted(err)
	case r.tried == len(r.addrs):
		r.connectVerdict()
	default:
		r.failing = r
	}
}

// connectVerdict: of all causes the one furthest along decides; every address is named.
func (r *trail) connectVerdict() {
	words := []string{}
	refused, timedOut := false, false
	for i, err := range r.causes {
		refused = refused || err == errRefused
		timedOut = timedOut || err == errTimedOut
		words = append(words, fmt.Sprintf("connect %v: ", netip.AddrPortFrom(r.addrs[i], r.o.port)), textOf(err))
	}
	status := exitConnect
	if timedOut && !refused {
		status = exitConnectTimeout
	}
	r.verdict = &verdict{status, words, 1}
	r.ends()
}

func (r *trail) ends() {
	r.over = true
	if r.abortedBy != nil { // it was counted
		return
	}
	r.finished++
	r.verdicts = append(r.verdicts, *r.verdict)
	r.k.logf("  verdict on #%d: %d %q", r.index+1, r.verdict.status, r.verdict.words)
}

// begins: connectResult has said that there is a connection, or was.
func (r *trail) begins(err error) {
	r.begun, r.moved = true, r.k.now
	if err != nil {
		r.brokenBy, r.brokenStatus = []string{"connect " + r.place.String(), errReset.Error()}, exitExchange
	} else if r.o.until == "connect" {
		r.verdict = &verdict{n: 1}
	}
}

// ---- The oracle: exchanging ----

func (r *trail) judge(status int, words ...string) {
	r.verdict = &verdict{status, words, 1}
}

// needless is how much of the stream has done its work.
func (r *trail) needless() int64 {
	if r.o.until == "echo" {
		return r.returned
	}
	return r.sent
}

// toSend is how much there is to be sent.
func (r *trail) toSend() int64 {
	if r.o.block != nil {
		return r.goal
	}
	return r.inp.given
}

// byCause: what broke the sending comes before what followed from it.
func (r *trail) byCause(status int, words ...string) {
	if r.brokenBy != nil {
		status, words = r.brokenStatus, r.brokenBy
	}
	r.judge(status, words...)
}

func exitOf(err error) int {
	if errors.Is(err, errTimedOut) {
		return exitIOTimeout
	}
	return exitExchange
}

func textOf(err error) string {
	if call, ok := err.(*os.SyscallError); ok {
		return call.Err.Error()
	}
	return err.Error()
}

func (s *sock) mayRead() {
	r := s.rec
	if r == nil {
		if p := s.peer; p.srvEnded || p.srvRead > s.wrote {
			s.k.fail("read(%d): ended %v, %d bytes are unwritten", s.num, p.srvEnded, p.srvRead-s.wrote)
		}
	} else if r.verdict != nil {
		s.k.fail("read(%d) after its end", s.num)
	}
}

func (s *sock) observeRead(p []byte, err error) {
	r := s.rec
	if r == nil {
		s.peer.serverRead(p, err)
		return
	}
	at := ""
	if err != nil || len(p) > 0 && r.o.until == "echo" && (r.closing || r.src.same(p, r.returned) < len(p) || r.returned+int64(len(p)) > r.sent) {
		at = "read " + r.place.String()
	}
	switch {
	case r.closing && len(p) > 0:
		r.judge(exitExchange, at, "more came back", fmt.Sprintf("byte %d ", r.sent))
	case r.closing:
		r.judge(exitOK)
	case err == io.EOF && r.o.until == "eof" && r.brokenBy == nil && r.sent == r.toSend():
		r.judge(exitOK)
	case err == io.EOF:
		r.byCause(exitExchange, at, "closed early", fmt.Sprintf("(%d of ", r.needless()))
	case err != nil:
		r.byCause(exitOf(err), at, textOf(err))
	default:
		good := int64(len(p))
		if r.o.until == "echo" {
			good = min(r.sent-r.returned, int64(r.src.same(p, r.returned)))
		}
		if n := r.returned + good; good == int64(len(p)) {
		} else if n == r.sent {
			r.judge(exitExchange, at, "more came back", fmt.Sprintf("byte %d is %#02x", n, p[good]))
		} else {
			r.judge(exitExchange, at, fmt.Sprintf("byte %d differs: sent %#02x, came back %#02x", n, r.src.at(n), p[good]))
		}
		r.returned += good
		r.moved = r.k.now
		if len(r.out.due) > 0 {
			r.k.fail("%d bytes did not get to standard output", len(r.out.due))
		}
		if r.o.n == 1 {
			r.out.due = p[:good]
		}
	}
}

// mayLook: a deadline that has passed lets the program look at a socket of which no event told.
func (s *sock) mayLook() bool {
	r, k := s.rec, s.k
	if r == nil || !r.begun {
		return false
	} else if by := r.moved + min(r.o.ioTimeout, never-r.moved); r.closing && k.now >= r.drainBy || !r.closing && r.owing && k.now >= by {
		s.lookedAt = k.waits
	}
	return s.lookedAt == k.waits
}

func (s *sock) mayWrite(p []byte) {
	r := s.rec
	if r == nil {
		if pending := s.peer.srvRead - s.wrote; int64(len(p)) != pending || s.peer.srvEnded {
			s.k.fail("write(%d, %d bytes), %d are pending", s.num, len(p), pending)
		}
		return
	}
	k := r.k
	if r.verdict != nil || r.closing || r.brokenBy != nil || r.finSent {
		k.fail("write(%d) after its end", s.num)
	}
	if r.o.block == nil {
		r.goal = r.inp.given
	} else if r.sent == r.goal { // a round begins
		switch {
		case r.returned != r.goal && r.o.until == "echo", r.o.count > 0 && r.round == r.o.count:
			k.fail("round %d: %d of %d bytes are back", r.round+1, r.returned, r.goal)
		case r.round > 0 && k.now-r.began < r.o.every:
			k.fail("round %d begins after %v, not %v", r.round+1, k.now-r.began, r.o.every)
		}
		r.round, r.began, r.goal = r.round+1, k.now, r.goal+int64(len(r.o.block))
	}
	if r.sent+int64(len(p)) > r.goal {
		k.fail("write(%d, %d bytes), of %d", s.num, len(p), r.goal-r.sent)
	}
}

func (s *sock) observeWrite(n, of int, err error) {
	r := s.rec
	if r == nil {
		s.peer.serverWrote(n, err)
		return
	}
	if n > 0 {
		r.moved = r.k.now
	}
	r.sent += int64(n)
	r.blocked = n < of
	if err != nil && err != errWouldBlock {
		r.blocked = false
		r.brokenBy, r.brokenStatus = []string{"write " + r.place.String(), textOf(err)}, exitOf(err)
	}
}

func (s *sock) observeCloseWrite(err error) {
	r := s.rec
	k := s.k
	if r == nil {
		k.fail("the server half-closes %d", s.num)
	}
	if r.o.block == nil {
		r.goal = r.inp.given
	}
	last := r.inp.ended && r.inp.err == nil
	if r.o.block != nil {
		last = r.round == r.o.count
	}
	switch {
	case r.verdict != nil || !last || r.sent != r.goal || r.brokenBy != nil:
		k.fail("closeWrite(%d): last %v, sent %d of %d, verdict %v", s.num, last, r.sent, r.goal, r.verdict)
	case r.o.until == "eof":
		r.finSent = true
		if err != nil {
			r.brokenBy, r.brokenStatus = []string{"shutdown " + r.place.String(), textOf(err)}, exitExchange
		}
	case r.returned != r.goal:
		k.fail("closeWrite(%d): returned %d of %d", s.num, r.returned, r.goal)
	default:
		r.closing, r.drainBy = true, k.now+500*time.Millisecond
	}
}

// observeClose: whatever the program closes must have a verdict, or a deadline that has passed
// without anything that the program could have looked at.
func (s *sock) observeClose() {
	r, k := s.rec, s.k
	switch {
	case s.phase == listening:
		if !k.sim.ending {
			k.fail("the listener is closed")
		}
		return
	case r == nil:
		s.peer.serverClosed(s)
		return
	case r.over:
		return
	case len(r.causes) == r.tried: // this attempt has failed
		return
	case k.sim.ending:
		if r.verdict == nil && k.sim.signal == 0 && k.sim.abortedBy == nil {
			k.fail("#%d was not finished", r.index+1)
		}
		r.over = true
		return
	case r.verdict != nil:
	case !r.begun:
		if k.now < r.by || s.settled && max(s.endedAt, s.txHeld) < k.now {
			k.fail("#%d gives up connecting at %v, not %v; answered %v", r.index+1, k.now, r.by, s.settled)
		}
		r.attemptFailed(errTimedOut)
		return
	case r.closing:
		if k.now < r.drainBy || s.rxThere() && max(s.rxSince, s.rxHeld) < k.now {
			k.fail("#%d is drained until %v, not %v; something to read: %v", r.index+1, k.now, r.drainBy, s.rxThere())
		}
		r.judge(exitOK)
	default:
		by := r.moved + min(r.o.ioTimeout, never-r.moved)
		if i := &r.inp; i.err != nil && i.ended && (i.postedWait < k.waits || !r.owing || k.now < by) {
			r.judge(exitLocal, "standard input", errStdin.Error())
			break
		}
		switch {
		case !r.owing || k.now < by:
			k.fail("#%d times out at %v, not %v; owed %v", r.index+1, k.now, by, r.owing)
		case s.rxThere() && max(s.rxSince, s.rxHeld) < k.now || r.blocked && s.txThere() && max(s.txSince, s.txHeld) < k.now:
			k.fail("#%d times out with something to do", r.index+1)
		}
		r.byCause(exitIOTimeout, "read "+r.place.String(), "timed out")
	}
	r.ends()
}

// ---- The oracle: between two waits ----

// turnEnds checks all that must hold whenever the program goes to sleep for ms milliseconds.
func (s *simulation) turnEnds(ms int) {
	k := s.k
	switch {
	case s.signal != 0:
		k.fail("wait after a signal")
	case s.abortedBy != nil:
		k.fail("wait after a fatal error")
	case s.failing != nil:
		k.fail("#%d does not try its next address", s.failing.index+1)
	case !s.o.serve && s.finished == s.o.n:
		k.fail("wait, and all is done")
	case len(s.out.due) > 0:
		k.fail("%d bytes did not get to standard output", len(s.out.due))
	}
	if s.waiting && k.waits == 1 {
		s.lookUp()
	}
	if k.waits == s.sigWait {
		k.in(k.span(5*time.Second), func() { s.interrupt(one(&k.chance, 130, 143)) })
	} else if k.waits == 3000 {
		s.interrupt(130)
	}
	s.takeLoan()
	earliest := never
	for _, r := range s.records {
		if r.over {
			continue
		}
		want, deadline := r.turnEnds()
		if r.sock.armed != want {
			k.fail("#%d watches for %d, not %d", r.index+1, r.sock.armed, want)
		}
		if deadline <= k.woke && r.triedAt < k.waits-1 {
			k.fail("#%d: deadline %v has passed, it is %v", r.index+1, deadline, k.woke)
		}
		earliest = min(earliest, deadline)
	}
	for _, l := range s.listeners {
		want := readable
		if l.paused > k.woke {
			want = 0
			earliest = min(earliest, l.paused)
		}
		if l.sock.armed != want {
			k.fail("the listener watches for %d, not %d", l.sock.armed, want)
		}
	}
	for _, p := range s.clients {
		if a := p.sock; a != nil {
			want := readable
			if p.srvRead > a.wrote {
				want = writable
			}
			if p.srvEnded || a.armed != want {
				k.fail("the server watches %d for %d, not %d; ended %v", a.num, a.armed, want, p.srvEnded)
			}
		}
	}
	switch {
	case ms < -1 || ms > int(time.Hour/time.Millisecond):
		k.fail("wait for %d ms", ms)
	case ms == -1 && earliest != never:
		k.fail("wait without end, and a deadline at %v", earliest)
	case ms >= 0 && earliest != never && time.Duration(ms)*time.Millisecond-max(0, earliest-k.now) >= time.Millisecond:
		k.fail("wait for %d ms, and a deadline in %v", ms, earliest-k.now)
	}
}

func (r *trail) turnEnds() (want readiness, deadline time.Duration) {
	k := r.k
	if r.verdict != nil {
		k.fail("#%d has ended and is not closed", r.index+1)
	} else if !r.begun {
		return writable, r.by
	} else if r.closing {
		return readable, r.drainBy
	}
	last := r.inp.ended
	if r.o.block == nil {
		r.goal = r.inp.given
	} else {
		last = r.round == r.o.count
	}
	want, deadline = readable, never
	if r.blocked {
		want |= writable
	}
	if r.brokenBy == nil {
		switch {
		case r.sent < r.goal && !r.blocked:
			k.fail("#%d has %d bytes to send and does not try", r.index+1, r.goal-r.sent)
		case r.inp.err != nil && r.inp.ended:
			k.fail("#%d goes on without standard input", r.index+1)
		case r.o.until == "eof" && last && r.sent == r.goal && !r.finSent:
			k.fail("#%d has sent all and does not half-close", r.index+1)
		case r.o.until == "echo" && last && r.returned == r.goal:
			k.fail("#%d has all back and does not end", r.index+1)
		case r.o.block == nil && !last && r.inp.lent == nil && (r.returned == r.goal || r.o.until == "eof" && r.sent == r.goal):
			k.fail("#%d does not read standard input", r.index+1)
		case r.o.block != nil && r.round == 0:
			k.fail("#%d has not begun", r.index+1)
		}
		if r.o.block != nil && r.returned == r.goal && !last {
			deadline = r.began + min(r.o.every, never-r.began)
		}
	}
	owing := r.blocked || r.finSent || r.brokenBy != nil || r.o.until == "echo" && r.returned < r.sent
	if owing != r.owing {
		r.owing, r.moved = owing, k.now
	}
	if owing {
		deadline = r.moved + min(r.o.ioTimeout, never-r.moved)
	}
	return want, deadline
}

// takeLoan is standard input's reader: it takes the slice that is lent, and fills it some day.
func (s *simulation) takeLoan() {
	i := &s.inp
	if i.in == nil || i.lent != nil || i.over {
		return
	}
	select {
	case p, ok := <-i.in.lend:
		if i.over = !ok; i.over {
			return
		}
		r := s.records[0]
		kept := r.returned
		if s.o.until == "eof" {
			kept = r.sent
		}
		if len(p) == 0 || i.ended || r.brokenBy != nil || i.given+int64(len(p))-kept > ringSize {
			s.k.fail("a loan of %d bytes, with %d in the ring; ended %v", len(p), i.given-kept, i.ended)
		}
		i.lent = p
		if d := i.delay(); d != never {
			s.k.in(d, s.readInput)
		}
	default:
	}
}

func (s *simulation) readInput() {
	i, k := &s.inp, s.k
	p := i.lent
	i.lent = nil
	n := int(min(int64(len(p)), i.total-i.given, int64(1+k.upTo(i.most))))
	s.src.fill(p[:n], i.given)
	i.given += int64(n)
	i.in.total.Store(i.given)
	i.in.err = nil
	if i.given == i.total && (n == 0 || i.withEOF) {
		i.ended = true
		if i.in.err = io.EOF; i.err != nil {
			i.in.err = i.err
		}
	}
	k.logf("standard input: %d, %v", n, i.in.err)
	i.postedWait = k.waits
	k.credit++
	s.l.post(i.in.deliver)
}

// lookUp hands the answer over: the goroutine that asked is let go on until it has posted.
func (s *simulation) lookUp() {
	k := s.k
	left := <-s.asked
	if left != s.connectBy-k.now {
		k.fail("the lookup has %v, not %v", left, s.connectBy-k.now)
	}
	a := s.answer
	if a.delay >= left {
		a = lookupAnswer{nil, errTimedOut, left}
	}
	if a.err == nil {
		s.addrs = s.ofFamily(a.addrs)
	}
	k.in(a.delay, func() {
		k.logf("  net: lookup: %v %v", a.addrs, a.err)
		s.waiting, k.handing = false, true
		s.answers <- a
		<-k.wokenBy
		k.handing = false
		k.woken = true
		k.credit++
		switch {
		case s.signal != 0: // it came first
		case a.err == errTimedOut:
			s.abortedBy = &verdict{exitConnectTimeout, []string{"lookup host.example: timed out"}, s.o.n}
		case a.err != nil:
			s.abortedBy = &verdict{exitConnect, []string{"lookup host.example: " + a.err.Error()}, s.o.n}
		case len(s.addrs) == 0:
			s.noAddress("host.example")
		}
	})
}

func (s *simulation) noAddress(host string) {
	s.abortedBy = &verdict{exitConnect, []string{"lookup " + host + ": no address of that family"}, s.o.n}
}

func (s *simulation) ofFamily(addrs []netip.Addr) (left []netip.Addr) {
	for _, a := range addrs {
		a = a.Unmap()
		if (s.o.family == "ip" || a.Is4() == (s.o.family == "ip4")) && !slices.Contains(left, a) {
			left = append(left, a)
		}
	}
	return left[:min(len(left), maxAddrs)]
}

// nothingLeft: nobody will ever do anything. The user gives up.
func (s *simulation) nothingLeft() { s.interrupt(130) }

func (s *simulation) interrupt(status int) {
	if s.signal != 0 || s.ending {
		return
	}
	s.signal = status
	s.k.logf("signal: %d", status)
	s.k.credit++
	s.l.post(func() { s.l.jobs, s.l.interrupted = 0, status })
}

func (s *simulation) pollerFails(a *sock) bool {
	if s.pollerFaultAt > 0 {
		s.pollerFaultAt--
		return s.pollerFaultAt == 0
	}
	return false
}

func (s *simulation) waitFails() error {
	if s.waitFaultAt == s.k.waits {
		return os.NewSyscallError("epoll_wait", syscall.EBADF)
	}
	return nil
}

func (s *simulation) aborted(err error) {
	if s.abortedBy == nil {
		s.abortedBy = &verdict{exitLocal, []string{err.Error()}, s.o.n - s.finished}
	}
}

// ---- The oracle: serving ----

// listenFails: one of two families may be missing, not both.
func (s *simulation) listenFails(at netip.AddrPort) error {
	err := s.listenErr
	if s.noFamily[0] && at.Addr().Is6() || s.noFamily[1] && at.Addr().Is4() {
		err = errNoAddress
	}
	if !s.o.demo {
		s.addrs = s.addrs[1:]
	}
	if err != nil && (err != errNoAddress || len(s.listeners) == 0 && (s.o.demo || len(s.addrs) == 0)) {
		s.abortedBy = &verdict{exitLocal, []string{"listen " + at.String(), textOf(err)}, s.o.n}
	}
	return err
}

func (s *simulation) listener(a *sock) {
	a.changed()
	s.listeners = append(s.listeners, &simListener{sock: a})
	if s.o.demo {
		s.o.port = a.to.Port()
	} else if len(s.listeners) == 1 {
		s.arrivals(a)
	}
}

// listenerAt is the program's own socket that a connect to at would meet.
func (s *simulation) listenerAt(at netip.AddrPort) *sock {
	for _, l := range s.listeners {
		if l.sock.to == at {
			return l.sock
		}
	}
	return nil
}

func (s *simulation) pausing(a *sock) bool {
	for _, l := range s.listeners {
		if l.sock == a && l.paused > s.k.now {
			return true
		}
	}
	return false
}

func (s *simulation) acceptFailed(a *sock, err error) {
	if err == errReset {
		return
	}
	s.acceptor = a.to.String()
	for _, l := range s.listeners {
		if l.sock == a {
			l.paused = s.k.now + 100*time.Millisecond
		}
	}
}

func (p *peer) accepted() {
	p.k.sim.temper(p, p.sock)
	if p.other == nil {
		p.start()
	} else if p.other.sock != nil {
		p.other.kick()
	} else { // it left while it waited in the backlog
		p.sock.rxEOF, p.finSent = true, true
		p.sock.changed()
	}
}

func (p *peer) serverRead(b []byte, err error) {
	s := p.k.sim
	p.srvRead += int64(len(b))
	s.srvRead += int64(len(b))
	if err == io.EOF {
		p.srvEnded = true
		s.servedOK++
		if p.srvRead != p.sock.wrote || !p.finSent && !p.gone {
			p.k.fail("the server ends %v: read %d, wrote %d", p.addr, p.srvRead, p.sock.wrote)
		}
	} else if err != nil {
		p.srvEnded = true
		s.servedBad++
	}
}

func (p *peer) serverWrote(n int, err error) {
	s := p.k.sim
	s.srvWrote += int64(n)
	if err != nil && err != errWouldBlock {
		p.srvEnded = true
		s.servedBad++
	}
}

func (p *peer) serverClosed(a *sock) {
	if !p.srvEnded && !p.k.sim.ending {
		p.k.fail("the server closes %d, which has not ended", a.num)
	}
}

// ---- The judgement ----

func (s *simulation) judge(status int) {
	k := s.k
	want := exitOK
	if s.abortedBy != nil {
		s.verdicts = append(s.verdicts, *s.abortedBy)
	}
	ok, failed := 0, 0
	var first *verdict
	for i := range s.verdicts {
		v := &s.verdicts[i]
		if v.status == exitOK {
			ok += v.n
			continue
		}
		failed += v.n
		if first == nil {
			first = v
			want = v.status
		}
	}
	if rest := s.o.n - ok - failed; rest > 0 && s.signal == 0 || rest < 0 {
		k.fail("%d ok, %d failed, of %d", ok, failed, s.o.n)
	}
	if s.signal != 0 {
		want = s.signal
	}
	text := s.stderr.String()
	if status != want {
		k.fail("status %d, not %d: %s", status, want, text)
	}
	if s.o.quiet && want == exitOK {
		for line := range strings.Lines(text) {
			if !strings.HasPrefix(line, "echomux: accept "+s.acceptor) || s.acceptor == "" {
				k.fail("-q says %q", text)
			}
		}
		return
	}
	text = strings.TrimSuffix(text, "\n")
	lastLine := text[strings.LastIndexByte(text, '\n')+1:]
	var expect []string
	received := "sent"
	var sent, returned int64
	for _, r := range s.records {
		sent, returned = sent+r.sent, returned+r.returned
	}
	switch {
	case s.o.serve && s.signal != 0 && first == nil:
		expect = append(expect, "interrupted", fmt.Sprintf("ok=%d failed=%d", s.servedOK, s.servedBad))
		sent, returned, received = s.srvRead, s.srvWrote, "received"
	case s.o.n > 1:
		expect = append(expect, fmt.Sprintf("ok=%d failed=%d", ok, failed))
		n := 0
		for line := range strings.Lines(text) {
			if i := strings.LastIndex(line, " ("); i > 0 && strings.HasSuffix(line, " connections)\n") {
				m, _ := strconv.Atoi(strings.TrimSuffix(line[i+2:], " connections)\n"))
				n += m
			}
		}
		if n != failed {
			k.fail("%d failures are reported, of %d: %s", n, failed, text)
		}
		for _, v := range s.verdicts {
			if v.status != exitOK && !anyLine(text, v.words) {
				k.fail("%q is not in the report: %s", v.words, text)
			}
		}
	case s.signal != 0:
		expect = append(expect, "interrupted")
	case first != nil:
		expect = first.words
	default:
		expect = append(expect, " ok")
	}
	expect = append(expect, fmt.Sprintf(" %s=%d returned=%d", received, sent, returned))
	if !strings.HasPrefix(lastLine, "echomux: ") || !anyLine(lastLine, expect) {
		k.fail("the last line lacks one of %q: %s", expect, lastLine)
	}
	if s.o.n == 1 && !s.o.serve && s.o.until != "connect" && s.out.n != returned && !s.out.failed {
		k.fail("%d bytes on standard output, of %d", s.out.n, returned)
	}
}

// anyLine: one line of text has all words, in their order.
func anyLine(text string, words []string) bool {
	for line := range strings.Lines(text) {
		rest, found := line, true
		for _, w := range words {
			i := strings.Index(rest, w)
			if found = i >= 0; !found {
				break
			}
			rest = rest[i+len(w):]
		}
		if found {
			return true
		}
	}
	return false
}

// ---- What is drawn ----

func (s *simulation) duration(most time.Duration) time.Duration {
	k := s.k
	switch k.pick(8) {
	case 0:
		return one(&k.chance, time.Second, 500*time.Millisecond, 3500*time.Millisecond, 5500*time.Millisecond)
	case 1:
		return 1 + k.span(time.Millisecond)
	case 2:
		if k.oneIn(4) {
			return never - k.span(time.Hour)
		}
		return 24 * time.Hour
	}
	return 1 + k.span(most)
}

func newSimulation(c chance, trace io.Writer) *simulation {
	k := &kernel{chance: c, trace: trace, fdLimit: 1 << 20, socks: make([]*sock, 1, 8), wokenBy: make(chan struct{})}
	s := &simulation{k: k, noFamily: make([]bool, 2)}
	k.sim, s.out.sim = s, s
	if k.oneIn(2) {
		k.now = k.span(100 * time.Hour)
	}
	odds := func(n int) int {
		if k.oneIn(2) {
			return 2 + k.upTo(n)
		}
		return 0
	}
	k.short, k.spurious, k.split, k.partial = odds(16), odds(16), odds(8), odds(8)
	k.spuriousLeft = 20
	if k.oneIn(8) {
		k.late = 3 + k.upTo(20)
	}
	s.kindness = one(&k.chance, 1, 2, 3, 3, 4, 4, 8, 100)
	s.total = int64(1 + k.upTo(1<<15))
	if k.oneIn(200) {
		s.total = int64(1 + k.upTo(5<<20))
	}
	s.out.failAt = int64(never)
	s.sigWait = -1
	if k.oneIn(16) {
		s.sigWait = k.upTo(100)
	}
	if k.oneIn(200) {
		s.pollerFaultAt = 1 + k.upTo(10)
	} else if k.oneIn(200) {
		s.waitFaultAt = 1 + k.upTo(20)
	}
	var args []string
	flag := func(name string, value any) { args = append(args, fmt.Sprintf("-%s=%v", name, value)) }
	if k.oneIn(3) {
		flag("connect-timeout", s.duration(10*time.Second))
	}
	if k.oneIn(8) {
		flag("q", true)
	} else if k.oneIn(16) {
		flag("v", true)
	}
	s.kind = one(&k.chance, "stdin", "stdin", "stdin", "messages", "messages", "rounds", "eof", "eof messages", "connect", "serve", "many", "many", "demo")
	switch s.kind {
	case "serve":
		flag("serve", true)
		if k.oneIn(8) {
			flag(one(&k.chance, "4", "6"), true)
		}
		s.addrs = []netip.Addr{netip.IPv6Unspecified(), netip.IPv4Unspecified()}
		if k.oneIn(4) {
			s.addrs = s.addrs[k.pick(2):][:1]
			args = append(args, s.addrs[0].String())
		}
		if k.oneIn(8) {
			s.noFamily[k.pick(2)] = true
			s.noFamily[k.pick(2)] = true
		} else if k.oneIn(16) {
			s.listenErr = os.NewSyscallError("bind", syscall.EADDRINUSE)
		}
		args = append(args, "9999")
		if k.oneIn(8) {
			k.fdLimit = 3 + k.upTo(20)
		}
	case "demo":
		s.addrs = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
		if k.oneIn(2) {
			flag("n", 1+k.upTo(20))
		}
		if k.oneIn(4) {
			flag("6", true)
			s.addrs[0] = netip.IPv6Loopback()
		}
		switch k.pick(4) {
		case 0:
			flag("until", one(&k.chance, "connect", "eof"))
		case 1:
			flag("count", 1+k.upTo(5))
		}
		s.total = 12
		if k.oneIn(16) {
			s.listenErr = one(&k.chance, errNoAddress, error(os.NewSyscallError("bind", syscall.EADDRINUSE)))
		} else if k.oneIn(16) {
			k.fdLimit = 1 + k.upTo(20)
		}
	default:
		if k.oneIn(2) {
			flag("io-timeout", s.duration(10*time.Second))
		}
		s.client(flag, &args)
	}
	s.args = args
	return s
}

func (s *simulation) client(flag func(string, any), args *[]string) {
	k := s.k
	messages := true
	switch s.kind {
	case "stdin":
		messages = false
	case "eof", "eof messages":
		flag("until", "eof")
		messages = s.kind == "eof messages"
	case "connect":
		flag("until", "connect")
		if messages = k.oneIn(2); k.oneIn(2) {
			flag("n", 1+k.upTo(30))
		}
	case "rounds", "many":
		if s.kind == "many" {
			n := 1 + k.upTo(30)
			flag("n", n)
			s.total = 1 + s.total/int64(n)
			if k.oneIn(8) {
				k.fdLimit = k.upTo(n)
			}
			if k.oneIn(2) {
				break
			}
		}
		count := k.upTo(12)
		flag("count", count)
		if count == 0 {
			s.sigWait = k.upTo(200)
		}
		if k.oneIn(2) {
			flag("every", s.duration(20*time.Second))
		}
	}
	if k.oneIn(12) {
		flag(one(&k.chance, "4", "6"), true)
	}
	pool := []netip.Addr{}
	for i := range one(&k.chance, 6, 6, 6, 40) {
		if i > 0 && k.oneIn(16) {
			i = k.pick(i) // a name may have an address twice, or mapped too
		}
		a := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
		if k.oneIn(2) {
			a = netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: byte(i)})
		} else if k.oneIn(4) {
			a = netip.AddrFrom16(a.As16())
		}
		pool = append(pool, a)
	}
	if s.name = k.oneIn(3); s.name {
		s.asked, s.answers, s.waiting = make(chan time.Duration), make(chan lookupAnswer), true
		s.answer = lookupAnswer{addrs: pool[:k.upTo(len(pool))], delay: k.span(5 * time.Second)}
		if len(s.answer.addrs) == 0 {
			s.answer.err = errNoName
		}
		*args = append(*args, "host.example", "7")
	} else {
		s.addrs = pool[:1]
		*args = append(*args, pool[0].String(), "7")
	}
	if k.oneIn(4) {
		s.out.slow = k.span(10 * time.Second)
	}
	if k.oneIn(12) {
		s.out.failAt = int64(k.upTo(int(s.total)))
	}
	if messages {
		for range 1 + k.pick(3) {
			*args = append(*args, strings.Repeat(one(&k.chance, "a", "data1", "\x00\xff", "0123456789abcdefghi", ""), int(s.total)/16))
		}
		return
	}
	i := &s.inp
	if k.oneIn(16) { // more than the ring holds
		s.total = int64(1<<20 + k.pick(2<<20))
	}
	i.total = s.total
	if k.oneIn(8) {
		i.total = 0
	}
	if k.oneIn(16) {
		i.err = errStdin
	}
	i.withEOF = k.oneIn(8)
	i.most = max(1+k.upTo(1<<17), int(i.total/100))
	slow, stuck := 1+k.span(20*time.Second), k.oneIn(8)
	i.delay = func() time.Duration {
		switch k.pick(8) {
		case 1:
			if stuck && k.oneIn(4) {
				return never
			}
			return k.span(slow)
		case 2:
			return k.span(time.Millisecond)
		}
		return 0
	}
}

// newFate draws what becomes of an attempt.
func (s *simulation) newFate(r *trail) (f fate) {
	k := s.k
	if s.kind == "faultless" {
		return fate{}
	}
	f.prompt = k.oneIn(2)
	if k.oneIn(2) {
		f.delay = k.span(3 * time.Second)
	}
	if k.pick(s.kindness+len(s.addrs)/2) != 0 {
		return f
	}
	switch k.pick(12) {
	case 0:
		f.open = one(&k.chance, errNoAddress, error(os.NewSyscallError("socket", syscall.EACCES)))
	case 1:
		f.nonblock = os.NewSyscallError("fcntl", syscall.EBADF)
	case 2, 3:
		f.err = errRefused
	case 4:
		f.err = one(&k.chance, error(os.NewSyscallError("connect", syscall.ENETUNREACH)), errNoAddress, errTimedOut)
	case 5, 6:
		f.never = true
	case 7:
		f.self = true
	case 8:
		f.err = errReset
	case 9:
		f.delay = k.span(100 * time.Second)
	case 10:
		f.shutdown = os.NewSyscallError("shutdown", syscall.EINVAL)
	case 11:
		f.err, f.delay = errRefused, k.span(100*time.Second)
	}
	return f
}

// newPeer draws what the connection meets.
func (s *simulation) newPeer(a *sock) *peer {
	k := s.k
	p := &peer{k: k, sock: a, src: s.src, echoes: true, chunk: 1 << 17}
	if s.kind == "faultless" {
		return p
	}
	s.temper(p, a)
	if s.o.until == "eof" {
		p.echoes = k.oneIn(2)
		p.reply = k.upTo(1 << 14)
	}
	if k.pick(s.kindness) == 0 {
		for range 1 + k.pick(2) {
			f := fault1{act: act(k.pick(int(lastAct) + 1)), at: int64(k.upTo(int(2 * s.total))), n: k.upTo(2000), d: k.span(20 * time.Second)}
			if k.oneIn(4) {
				f.at = s.total
			} else if k.oneIn(8) {
				f.at = 0
			}
			p.script = append(p.script, f)
		}
		slices.SortStableFunc(p.script, func(a, b fault1) int { return int(a.at - b.at) })
		p.closeAfter = one(&k.chance, 0, never, 500*time.Millisecond, 500*time.Millisecond-1, k.span(time.Second))
		if k.oneIn(8) {
			p.reply = 1 + k.upTo(10)
		}
	}
	return p
}

func (s *simulation) temper(p *peer, a *sock) {
	k := s.k
	least := int(s.total / 100)
	p.chunk = max(least, 1+k.upTo(1<<17))
	a.rxCap, a.txCap = max(least, a.rxCap), max(least, a.txCap)
	if k.oneIn(2) {
		p.delay = k.span(100 * time.Millisecond)
	} else if k.pick(2*s.kindness) == 0 {
		p.delay = k.span(20 * time.Second)
	}
	if k.oneIn(2) {
		p.gap = k.span(100 * time.Millisecond)
	}
}

// arrivals draws the clients of -serve.
func (s *simulation) arrivals(a *sock) {
	k := s.k
	n := k.upTo(40)
	s.total = 1 + s.total/int64(n+1)
	for i := range n {
		k.in(k.span(5*time.Second), func() {
			if k.oneIn(16) {
				a.acceptE = append(a.acceptE, one(&k.chance, errReset, errTooManyFiles, error(os.NewSyscallError("accept", syscall.ENOBUFS))))
			}
			p := &peer{k: k, src: s.src, base: int64(i) * 977, addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}), 5000)}
			p.total = int64(1 + k.upTo(int(s.total)))
			p.sends = p.total
			p.closeAfter = never
			if k.pick(s.kindness) == 0 {
				p.script = append(p.script, fault1{act: one(&k.chance, fin, rst, rstNow, rstLater, unreach, hush, pause, deaf, deafFor), at: int64(k.upTo(int(p.total))), n: k.upTo(9), d: k.span(20 * time.Second)})
			}
			a.backlog = append(a.backlog, p)
			s.clients = append(s.clients, p)
			a.changed()
		})
	}
}

// ---- Running it ----

// run is one simulated run; it returns what is wrong with it, if anything.
func (s *simulation) run() (wrong string) {
	k := s.k
	defer func() {
		if e := recover(); e != nil {
			f, ok := e.(failure)
			if !ok {
				f.text = fmt.Sprintf("panic: %v\n%s", e, debug.Stack())
			}
			wrong = f.text
			k.logf("WRONG: %s", f.text)
		}
	}()
	if k.trace != nil {
		shown := []string{}
		for _, a := range s.args {
			shown = append(shown, printable(a))
		}
		k.logf("%s: echomux %q", s.kind, shown)
	}
	var err error
	if s.o, err = parse(s.args); err != nil {
		k.fail("usage: %v", err)
	}
	s.src = newSimText(s.o.block)
	s.addrs = s.ofFamily(s.addrs)
	start := k.now
	s.connectBy = s.after(s.o.connectTimeout)
	k.woke = start
	l := newLoop(s.o, simPoller{k}, k, func() time.Duration { return k.now })
	s.l = l
	l.stdout, l.stderr = &s.out, &s.stderr
	l.lookup = func(host, family string, left time.Duration) ([]netip.Addr, error) {
		s.asked <- left
		a := <-s.answers
		return a.addrs, a.err
	}
	l.startInput = func(in *input) {
		if s.inp.in != nil {
			k.fail("standard input is started twice")
		}
		s.inp.in = in
	}
	if !s.name && len(s.addrs) == 0 {
		s.noAddress(printable(s.o.host))
	}
	l.run()
	s.ending = true
	l.close()
	if s.waiting { // whoever still resolves may post after the end
		if k.waits == 0 {
			<-s.asked
		}
		s.answers <- lookupAnswer{err: errNoName}
	}
	if s.inp.in != nil && s.inp.lent != nil {
		s.readInput()
	}
	status := l.report()
	k.logf("status %d: %s", status, s.stderr.String())
	s.judge(status)
	return ""
}

var (
	simRuns = flag.Int("sim.runs", 8000, "simulated runs")
	simSeed = flag.Uint64("sim.seed", 1, "the first one's seed")
)

// simulate runs one seed, and on failure once more, to tell what happened.
func simulate(t *testing.T, c chance, always bool) {
	var log bytes.Buffer
	var trace io.Writer
	if always {
		trace = &log
	}
	wrong := newSimulation(c, trace).run()
	if wrong != "" && !always {
		again := newSimulation(c, &log).run()
		if again != wrong {
			t.Errorf("it does not replay: %s", again)
		}
	}
	if always {
		t.Log("\n" + log.String())
	}
	if wrong != "" {
		text := log.String()
		if len(text) > 20000 && !always {
			text = text[:4000] + "\n...\n" + text[len(text)-16000:]
		}
		t.Fatalf("seed %d (go test -run TestSim -sim.runs=1 -sim.seed=%d -v): %s\n%s", c.state, c.state, wrong, text)
	}
}

func TestSim(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(1000))
	runs := *simRuns
	if testing.Short() {
		runs = min(runs, 500)
	}
	for i := range uint64(runs) {
		simulate(t, chance{state: *simSeed + i}, runs == 1)
	}
}

// FuzzSim lets coverage find the decisions that a seed would draw.
func FuzzSim(f *testing.F) {
	for seed := range uint64(8) {
		c := chance{state: seed}
		decisions := make([]byte, 40*seed)
		for i := range decisions {
			decisions[i] = byte(c.next())
		}
		f.Add(seed, decisions)
	}
	f.Fuzz(func(t *testing.T, seed uint64, decisions []byte) {
		simulate(t, chance{seed, decisions}, false)
	})
}

// TestSimReplays: a seed is worth nothing if it does not replay.
func TestSimReplays(t *testing.T) {
	for seed := range uint64(100) {
		var logs [2]bytes.Buffer
		for i := range logs {
			newSimulation(chance{state: seed}, &logs[i]).run()
		}
		if !bytes.Equal(logs[0].Bytes(), logs[1].Bytes()) {
			t.Fatalf("seed %d has two logs", seed)
		}
	}
}

// TestSimHostile: no number on the command line, however large, makes a deadline or a count
// overflow. The peers are faultless.
func TestSimHostile(t *testing.T) {
	const most = "9223372036854775807"
	mostN := strconv.Itoa(math.MaxInt) // -n is an int
	for _, test := range []struct {
		args   []string
		status int
		text   string
	}{
		{[]string{"-connect-timeout", most + "ns", "-io-timeout", most + "ns", "192.0.2.1", "7", "x"}, 0, " ok sent=2 returned=2"},
		{[]string{"-connect-timeout", "1ns", "-io-timeout", "1ns", "192.0.2.1", "7", "x"}, 0, " ok sent=2 returned=2"},
		{[]string{"-every", most + "ns", "-count", most, "192.0.2.1", "7", "x"}, 130, "interrupted sent=2 returned=2"},
		{[]string{"-every", most + "ns", "-count", "0", "-n", "3", "192.0.2.1", "7", "x"}, 130, "interrupted ok=0 failed=0 sent=6 returned=6"},
		{[]string{"-count", most, "192.0.2.1", "7", "x"}, 130, "interrupted sent="},
		{[]string{"-n", mostN, "192.0.2.1", "7", "x"}, 6, "ok=0 failed=" + mostN + " sent="},
		{[]string{"-n", mostN, "-until", "connect", "192.0.2.1", "7", "x"}, 6, "failed=" + mostN[:len(mostN)-4]},
		{[]string{"-n", mostN, "-count", most, "-every", most + "ns", "-connect-timeout", most + "ns", "-io-timeout", most + "ns", "192.0.2.1", "7", "x"}, 6, "ok=0 failed=" + mostN},
		{[]string{"-serve", "-connect-timeout", most + "ns", "192.0.2.1", "65535"}, 130, "192.0.2.1:65535 interrupted ok="},
	} {
		for _, start := range []time.Duration{0, never / 2} {
			s := newSimulation(chance{state: 5}, nil)
			k := s.k
			*s = simulation{k: k, args: test.args, kindness: 1 << 20, total: 100, noFamily: make([]bool, 2), sigWait: -1, kind: "faultless"}
			*k = kernel{chance: k.chance, now: start, fdLimit: 50, socks: make([]*sock, 1), sim: s}
			s.out.sim, s.out.failAt = s, int64(never)
			s.addrs = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
			if wrong := s.run(); wrong != "" {
				t.Errorf("%q: %s", test.args, wrong)
			} else if !strings.Contains(s.stderr.String(), test.text) {
				t.Errorf("%q from %v: %s", test.args, start, s.stderr.String())
			} else if status := s.l.report(); status != test.status {
				t.Errorf("%q: status %d, not %d", test.args, status, test.status)
			}
		}
	}
	for _, bad := range [][]string{
		{"-n", most + "0", "h", "7", "x"}, {"-count", most + "0", "h", "7", "x"}, {"-every", most + "s", "h", "7", "x"},
		{"-io-timeout", most + "0ns", "h", "7"}, {"-connect-timeout", "1e30s", "h", "7"}, {"h", most}, {"h", "65536"},
		{"-n", "-" + most, "h", "7", "x"}, {"-count", "-1", "h", "7", "x"}, {"-every", "-1ns", "h", "7", "x"},
	} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}
