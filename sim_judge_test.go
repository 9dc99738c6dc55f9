package main

// The judge of a simulated run. It sees what anybody outside the program can see: what the peer got
// and when, what the peer sent and when that was read, what standard input gave, what standard
// output took, when a connect was answered, how long the program slept; and in the end the result
// lines and the exit status. From that alone it says, by the rules of README.md, what has to come of
// each connection, and when. It asks the program for nothing but its checked command line.
//
// In the order of this file: what is seen; what it means for one connection, at once or after a
// silence; what must hold whenever the program goes to sleep; what the lines must say.

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ---- What is seen ----

// simMoment is a time that the program can know only so exactly: a call begins and ends.
type simMoment struct{ from, to time.Duration }

func simAfter(t, d time.Duration) time.Duration { return t + min(d, never-t) }

func (m simMoment) plus(d time.Duration) simMoment {
	return simMoment{simAfter(m.from, d), simAfter(m.to, d)}
}

func simLater(a, b simMoment) simMoment {
	return simMoment{max(a.from, b.from), max(a.to, b.to)}
}

// simVerdict is what comes of a connection: an exit status, and words that its cause must have.
type simVerdict struct {
	status int
	words  []string
	idle   *simMoment // for how long the flow was idle, if the words tell
}

// simConn is what is seen of one of the client's connections.
type simConn struct {
	sim    *simulation
	number int
	chance simChance // draws its fate
	fate   simFate
	honest bool // its peer does only what an echo server does, or with eof any server

	tried   int // addresses
	causes  []error
	sock    *simSock
	by      simMoment     // when the present attempt has to be given up
	called  time.Duration // connect
	tryTurn int
	resent  int
	place   netip.AddrPort

	connected bool
	since     simMoment // connect was answered
	sent      int64     // bytes that our kernel took
	returned  int64     // bytes that were read and, with echo, are right
	lastRead  simMoment
	lastMoved simMoment // bytes, in either direction
	goneAt    simMoment // the peer was first known to have ended
	wrong     string    // the first byte that is no echo, in the line's words
	surplus   bool      // which it is because nothing was sent there
	refused   bool      // our kernel has taken less than it was given
	eof       bool      // the peer's FIN was read
	broken    bool      // the peer's direction, by an error
	outBroken bool      // our direction, by an error
	finOut    bool      // our FIN is out
	cause     string    // the first error
	causeErr  error
	outErr    bool // standard output has failed

	owing    bool
	awaiting bool          // standard input's next read
	awaits   simMoment     // since when
	life     simMoment     // the peer's last sign of it, or since when it owes
	ackedAt  time.Duration // the last one
	ackSeen  simMoment     // the last one that path has told of: when it came, when it was told
	newAcks  int           // that path has not told of
	looked   time.Duration // path was asked
	lookAt   int           // the turn of that
	silent   bool          // and it told of nothing new, though the time was up

	rounds int64     // begun
	began  simMoment // the last of them
	rtts   []simMoment

	draining bool
	drainBy  simMoment
	verdict  *simVerdict
	took     simMoment // its exchange_ms
	closed   bool
}

// sawAttempt: openSocket is called, for the next address of a connection whose last attempt has
// failed, or for the first one of another.
func (s *simulation) sawAttempt(to netip.AddrPort, from netip.Addr) *simConn {
	k := s.k
	c := s.failing
	s.failing = nil
	if c == nil {
		c = &simConn{sim: s, number: len(s.conns) + 1, lastRead: simMoment{never, never}}
		c.chance = simChance{state: s.connSeed ^ uint64(c.number)<<32}
		s.conns = append(s.conns, c)
	}
	if len(s.conns) > s.o.n || s.o.serve {
		k.fail("a connection too many: %d", len(s.conns))
	}
	if from != s.o.from {
		k.fail("the local address is %v, not that of -source", from)
	}
	if c.tried >= len(s.addrs) || to != netip.AddrPortFrom(s.addrs[c.tried], s.port) {
		k.fail("attempt %d is at %v, of %v port %d", c.tried+1, to, s.addrs, s.port)
	}
	c.by = simMoment{s.share(c, s.connectBy.from), s.share(c, s.connectBy.to)}
	c.tried++
	c.tryTurn = k.turn
	c.place = to
	c.sock = nil
	c.fate = s.newFate(c)
	return c
}

// share is when an attempt that begins now has to be given up: each of the addresses that are left
// has an equal part of the time that is left, but a second at least, if there is one.
func (s *simulation) share(c *simConn, connectBy time.Duration) time.Duration {
	now := s.k.now
	left := max(0, connectBy-now)
	part := max(time.Second, left/time.Duration(len(s.addrs)-c.tried))
	return simAfter(now, min(left, part))
}

func (c *simConn) sawConnectCall() {
	c.called = c.sim.k.now
	c.tried--
	c.by.to = max(c.by.to, c.sim.share(c, c.sim.connectBy.to))
	c.tried++
}

// sawFailedAttempt: of all causes the one furthest along decides, and every address is named.
// Where this machine has run out of something, no other address helps, and the run ends.
func (c *simConn) sawFailedAttempt(err error) {
	s := c.sim
	c.causes = append(c.causes, err)
	s.failing = nil
	local := errors.Is(err, errTooManyFiles) || err == errNoPort || err == errNoMemory ||
		err == errNoAddress && s.o.from.IsValid()
	switch {
	case local:
		c.verdict = &simVerdict{status: exitLocal, words: []string{simOwnWords(err)}}
		s.endsWith(c.verdict)
	case c.tried == len(s.addrs):
		c.verdict = c.unconnected()
	default:
		s.failing = c
	}
}

func (c *simConn) unconnected() *simVerdict {
	v := &simVerdict{status: exitConnect}
	refused := false
	for i, err := range c.causes {
		refused = refused || errors.Is(err, errRefused)
		if err == errTimedOut {
			v.status = exitConnectTimeout
		}
		v.words = append(v.words, c.sim.addrs[i].String()+": ", simOwnWords(err))
	}
	if refused {
		v.status = exitConnect
	}
	return v
}

// simOwnWords is an error's own words, without the call that a line may name before them.
func simOwnWords(err error) string {
	call, ok := err.(*os.SyscallError)
	if ok {
		return call.Err.Error()
	}
	return err.Error()
}

// sawConnected: there is a connection, or there was one that is reset.
func (c *simConn) sawConnected(reset error, begun time.Duration) {
	s := c.sim
	c.connected = true
	c.since = simMoment{begun, s.k.now}
	c.life = c.since
	c.lastMoved = c.since
	if s.o.until == untilConnect {
		c.verdict = &simVerdict{status: exitOK}
	} else if reset != nil {
		c.breaks("connect", reset)
		c.outBroken = true
	}
}

// goes notes the first sign that the peer has ended.
func (c *simConn) goes(at simMoment) {
	if c.goneAt.to == 0 {
		c.goneAt = at
	}
}

// breaks notes an error; the first one words the verdict.
func (c *simConn) breaks(call string, err error) {
	c.goes(simMoment{c.sim.k.turnAt, c.sim.k.now})
	if c.cause == "" {
		c.cause = call + ": " + simOwnWords(err)
		c.causeErr = err
	}
}

// sawWrite: the program gives n bytes to the kernel. They must be the next ones of what there is
// to send, and a round begins only when it may.
func (s *simulation) sawWrite(a *simSock, p []byte, n int, err error, begun time.Duration) {
	if a.conn == nil {
		s.sawServerWrite(a, p, n, err)
		return
	}
	c := a.conn
	k := s.k
	if c.verdict != nil || c.draining {
		k.fail("#%d: write after its end", c.number)
	}
	if s.text.same(p, c.sent) < len(p) {
		k.fail("#%d: it sends other bytes than were to be sent, from %d on", c.number, c.sent)
	}
	if s.inRounds() && c.sent == c.toSend() {
		c.roundBegins(begun)
	}
	if c.sent+int64(len(p)) > c.toSend() {
		k.fail("#%d: it sends %d bytes, and there are %d", c.number, len(p), c.toSend()-c.sent)
	}
	c.refused = n < len(p)
	c.sent += int64(n)
	switch {
	case n > 0:
		c.lastMoved = simMoment{k.turnAt, k.now}
		if k.mute {
			c.ackedAt = k.now // that our kernel takes more is all that one sees then
			c.newAcks++
		}
	case err != errWouldBlock:
		c.refused = false
		c.outBroken = true
		c.breaks("write", err)
	}
}

// roundBegins: with its first byte tried, when all of the one before is back.
func (c *simConn) roundBegins(begun time.Duration) {
	s := c.sim
	k := s.k
	switch {
	case c.returned != c.toSend() && s.o.until == untilEcho:
		k.fail("#%d: round %d begins, and %d of %d bytes are back", c.number, c.rounds+1, c.returned, c.toSend())
	case c.rounds == s.o.count && s.o.count > 0:
		k.fail("#%d: a round too many", c.number)
	case c.rounds > 0 && k.now < simAfter(c.began.from, s.o.every):
		k.fail("#%d: round %d begins after %v", c.number, c.rounds+1, k.now-c.began.from)
	}
	c.rounds++
	c.began = simMoment{begun, begun}
}

// sawRead: the program has read p, or the end.
func (s *simulation) sawRead(a *simSock, p []byte, err error, begun time.Duration) {
	if a.conn == nil {
		s.sawServerRead(a, p, err)
		return
	}
	c := a.conn
	at := simMoment{begun, s.k.now}
	if c.verdict != nil {
		s.k.fail("#%d: read after its end", c.number)
	}
	switch {
	case c.draining && len(p) > 0:
		c.verdict = &simVerdict{status: exitExchange, words: []string{simSurplus(c.returned, p[0])}}
	case c.draining:
		c.verdict = &simVerdict{status: exitOK}
	case err == io.EOF:
		c.eof = !c.outBroken // after an error a read of 0 bytes is no FIN
		c.broken = c.outBroken
		c.goes(at)
	case err != nil:
		c.broken = true
		c.goes(at)
		c.breaks("read", err)
	default:
		c.sawBytes(p, at)
	}
}

func simSurplus(at int64, got byte) string {
	return fmt.Sprintf("more came back than was sent: byte %d is %#02x", at, got)
}

// sawBytes: with echo they must be what was sent. What is right goes to standard output, in this
// turn.
func (c *simConn) sawBytes(p []byte, at simMoment) {
	s := c.sim
	good := len(p)
	if s.o.until == untilEcho {
		good = s.text.same(p, c.returned)
		good = min(good, int(c.sent-c.returned))
		switch wrong := c.returned + int64(good); {
		case good == len(p):
		case wrong == c.sent:
			c.surplus = true
			c.wrong = simSurplus(wrong, p[good]) + simHint(wrong)
		default:
			c.wrong = fmt.Sprintf("byte %d differs: sent %#02x, came back %#02x",
				wrong, s.text.at(wrong), p[good]) + simHint(wrong)
		}
	}
	c.returned += int64(good)
	c.life = at
	c.lastRead = at
	c.lastMoved = at
	if s.inRounds() && good > 0 && c.returned == c.toSend() && s.o.until == untilEcho {
		c.rtts = append(c.rtts, simMoment{at.from - c.began.to, at.to - c.began.from})
	}
	if s.o.n == 1 {
		s.out.due = append(s.out.due, p[:good]...)
	}
}

func simHint(at int64) string {
	if at == 0 {
		return ": is this an echo server?"
	}
	return ": altered on the path"
}

// sawCloseWrite: our FIN tells the peer that we have sent all. With echo it may go only when all is
// back too.
func (s *simulation) sawCloseWrite(a *simSock, err error) {
	c := a.conn
	k := s.k
	whole := c.inputOver() && c.sent == c.toSend() && !c.outBroken
	if s.o.until == untilEcho {
		whole = c.inputOver() && c.returned == c.toSend()
	}
	if c.verdict != nil || !whole {
		k.fail("#%d: its FIN goes, with %d of %d bytes sent and %d back, the input over: %v", c.number,
			c.sent, c.toSend(), c.returned, c.inputOver())
	}
	if s.o.until == untilEcho {
		c.draining = true
		c.drainBy = simMoment{k.turnAt, k.now}.plus(500 * time.Millisecond)
		c.ends()
		return
	}
	c.finOut = err == nil
	if err != nil {
		c.outBroken = true
		c.breaks("shutdown", err)
	}
}

// ends takes the figure of an exchange: from connected to the last byte read, or to the verdict.
func (c *simConn) ends() {
	at := c.lastRead
	if at.from == never {
		at = simMoment{c.sim.k.turnAt, c.sim.k.now}
	}
	c.took = simMoment{at.from - c.since.to, at.to - c.since.from}
}

func (c *simConn) sawPath() {
	if c.sim.fatal != nil { // the loop is over, and the report asks how much was sent again
		return
	}
	c.looked = c.sim.k.now
	if c.newAcks > 0 && !c.outBroken {
		c.newAcks = 0
		c.ackSeen = simMoment{c.ackedAt, c.looked}
	}
	turn := c.sim.k.turn
	if c.lookAt < turn { // a later look may be for the report alone
		c.lookAt = turn
		c.silent = c.sim.k.turnAt >= c.silence().from && c.owes()
	}
}

// sawPendingError: what the network says in passing, that a host is unreachable, ends nothing.
func (c *simConn) sawPendingError(err error) {
	if err == errReset || err == errTimedOut {
		c.outBroken = true
		c.breaks("read", err)
	}
}

func (s *simulation) sawAcknowledged(a *simSock) {
	if a.conn != nil && !s.k.mute {
		a.conn.ackedAt = s.k.now
		a.conn.newAcks++
	}
}

func (s *simulation) sawReset(*simSock) {}

// ---- What it means for one connection ----

// inRounds: are MESSAGEs sent, or standard input that was read to its end before?
func (s *simulation) inRounds() bool { return s.block != nil }

// toSend is how much there is to be sent so far.
func (c *simConn) toSend() int64 {
	if c.sim.inRounds() {
		return c.rounds * int64(len(c.sim.block))
	}
	return c.sim.inp.known.given
}

// inputOver: is that all? Nobody types to a peer that has gone: its FIN ends a terminal's input,
// with eof.
func (c *simConn) inputOver() bool {
	s := c.sim
	if s.inRounds() {
		return c.rounds == s.o.count && s.o.count > 0 || len(s.block) == 0
	}
	return s.inp.known.ended || c.eof && s.o.until == untilEOF && s.inp.kind == terminalInput
}

func (c *simConn) inputFailed() bool { return !c.sim.inRounds() && c.sim.inp.known.err != nil }

// settled is how much has done its work: with echo what is back, with eof what is sent.
func (c *simConn) settled() int64 {
	if c.sim.o.until == untilEcho {
		return c.returned
	}
	return c.sent
}

// decided is the verdict on a connection that nothing can change any more, or nil: the first row
// that holds. It does not depend on the order in which things became known.
func (c *simConn) decided() *simVerdict {
	switch {
	case c.verdict != nil:
		return c.verdict
	case !c.connected:
		return nil
	case c.wrong != "" && c.surplus && c.cause != "": // nothing is surplus where a write has failed
		return &simVerdict{status: exitExchange, words: []string{c.cause}}
	case c.wrong != "":
		return &simVerdict{status: exitExchange, words: []string{c.wrong}}
	case c.outErr:
		return &simVerdict{status: exitLocal, words: []string{"standard output"}}
	case c.inputFailed():
		return &simVerdict{status: exitLocal, words: []string{"standard input", errSimInput.Error()}}
	case c.sim.o.until == untilEOF:
		return c.decidedEOF()
	}
	return c.decidedEcho()
}

func (c *simConn) decidedEcho() *simVerdict {
	over := c.inputOver()
	all := c.returned == c.toSend()
	switch {
	case over && c.toSend() == 0 && !c.sim.inRounds():
		return &simVerdict{status: exitLocal, words: []string{"nothing to send"}}
	case over && all: // whatever the peer does now
		return &simVerdict{status: exitOK}
	case (c.eof || c.broken) && (!all || c.sim.inRounds()):
		return c.peerEnded()
	}
	return nil
}

func (c *simConn) decidedEOF() *simVerdict {
	switch {
	case c.broken, c.outBroken && c.eof:
		return c.peerEnded()
	case c.finOut && c.eof && c.acknowledged() && c.newAcks == 0:
		return &simVerdict{status: exitOK}
	}
	return nil
}

// acknowledged: the peer's kernel has said that it has all, and our FIN.
func (c *simConn) acknowledged() bool {
	return c.sock != nil && (c.sim.k.mute || c.sock.outstanding() == 0)
}

// peerEnded words how the peer ended before its time: what the kernel said first, or that it
// closed. Where all was back by then, the flow was idle, and the words tell for how long.
func (c *simConn) peerEnded() *simVerdict {
	v := &simVerdict{status: exitExchange}
	idle := c.settled() == c.toSend() && c.sent > 0 && !c.inputOver()
	switch {
	case c.cause != "":
		v.words = append(v.words, c.cause)
	case idle:
		v.words = append(v.words, "closed by the peer")
	default:
		v.words = append(v.words, fmt.Sprintf("closed early (%d of %d bytes)", c.settled(), c.toSend()))
	}
	if c.causeErr == errTimedOut {
		v.status = exitIOTimeout // our kernel has lost patience
	}
	if idle {
		before := "standard input ended"
		if c.sim.inRounds() {
			before = fmt.Sprintf("round %d", c.rounds+1)
		}
		v.words = append(v.words, " after ", "s of silence, before "+before)
		v.idle = &simMoment{c.goneAt.from - c.lastMoved.to, c.goneAt.to - c.lastMoved.from}
	}
	return v
}

// owes: does the peer owe anything? Bytes that it does not take, or that are not back; with eof
// bytes that it has not acknowledged, and after our FIN its own; and what explains a broken write.
func (c *simConn) owes() bool {
	switch {
	case c.sim.o.until == untilEcho && (c.eof || c.broken): // there is nobody any more
		return false
	case c.refused, c.outBroken:
		return true
	case c.sim.o.until == untilEcho:
		return c.returned < c.sent
	case c.finOut && !c.eof:
		return true
	}
	return !c.acknowledged()
}

// silence is when the peer has been silent for too long: not before from, and to is when the
// program must say so. With eof it looks at acknowledgements only when the time is up, and if some
// have come by then, whenever that was, the time begins again.
func (c *simConn) silence() simMoment {
	limit := c.sim.o.ioTimeout
	if !c.owing || limit == 0 {
		return simMoment{never, never}
	}
	if c.sim.o.until == untilEcho {
		return c.life.plus(limit)
	}
	silent := simLater(c.life, c.ackSeen).plus(limit)
	if c.outBroken { // what it took before is no matter, and is not looked at any more
		silent.from = 0
	}
	return silent
}

// awaitsInput: the peer has ended, all that standard input gave has done its work, and only its next
// read can tell whether that was all.
func (c *simConn) awaitsInput() bool {
	s := c.sim
	return (c.eof || c.broken) && !s.inRounds() && !c.inputOver() && c.settled() == c.toSend()
}

// inputSilence is when that has been waited for long enough.
func (c *simConn) inputSilence() simMoment {
	s := c.sim
	if !c.awaiting || s.o.ioTimeout == 0 {
		return simMoment{never, never}
	}
	return simLater(c.awaits, s.inp.known.at).plus(s.o.ioTimeout)
}

// expired is the verdict on a connection whose time is up in this turn, or nil.
func (c *simConn) expired() *simVerdict {
	s := c.sim
	now := s.k.turnAt
	silent := now >= c.silence().from
	if s.o.until == untilEOF && !s.k.mute && !c.outBroken {
		silent = c.silent && c.lookAt == s.k.turn
	}
	switch {
	case now >= c.inputSilence().from && s.o.until == untilEcho:
		return c.peerEnded()
	case silent && c.outBroken:
		return c.peerEnded()
	case now >= c.inputSilence().from:
		s.unsure = s.unsure || silent && now < c.inputSilence().to // both times are up, or one is
		return &simVerdict{status: exitExchange, words: []string{"standard input was not at its end"}}
	case silent:
		return c.tooSilent()
	}
	return nil
}

// tooSilent words a timeout. Where the answer to a later round never began, the words tell for how
// long the flow was idle before that round.
func (c *simConn) tooSilent() *simVerdict {
	words := fmt.Sprintf("timed out after %v of silence (%d of %d bytes)", c.sim.o.ioTimeout, c.settled(), c.toSend())
	v := &simVerdict{status: exitIOTimeout, words: []string{words}}
	if c.rounds > 1 && c.returned == (c.rounds-1)*int64(len(c.sim.block)) {
		v.words = append(v.words, ", idle for ", fmt.Sprintf("s before round %d", c.rounds))
		v.idle = &simMoment{c.began.from - c.lastRead.to, c.began.to - c.lastRead.from}
	}
	return v
}

// simIdleWords finds how long a flow was idle by the words of a cause.
var simIdleWords = regexp.MustCompile(`(?: after |idle for )([0-9.]+)s (?:of silence, )?before `)

// wantIdle compares it with what was seen, to a tenth of a second.
func (s *simulation) wantIdle(v *simVerdict, cause string) {
	if v.idle == nil {
		return
	}
	found := simIdleWords.FindStringSubmatch(cause)
	if found == nil {
		s.k.fail("the cause does not tell how long it was idle: %q", cause)
	}
	got, err := strconv.ParseFloat(found[1], 64)
	if err != nil || got < v.idle.from.Seconds()-0.051 || got > v.idle.to.Seconds()+0.051 {
		s.k.fail("it was idle from %v to %v, and the cause is %q", v.idle.from, v.idle.to, cause)
	}
}

// sawClose: the program gives a socket up. It must have a reason, and must have looked whether
// there was something to read.
func (s *simulation) sawClose(a *simSock) {
	k := s.k
	c := a.conn
	switch {
	case a.phase == simListening:
		if !s.ending() {
			k.fail("the listener is closed")
		}
		return
	case c == nil:
		s.sawServerClose(a)
		return
	case c.closed, len(c.causes) == c.tried:
		return
	}
	v := c.decided()
	if v != nil && v.status == exitOK && s.o.until == untilEOF && c.lookAt == k.turn {
		s.unsure = s.unsure || c.silent || s.signalKnown != 0 // all is acknowledged, or just was not yet
	}
	unread := a.rxThere() && max(a.rxSince, a.rxHeld) < k.turnAt
	switch {
	case v != nil:
	case !c.connected:
		c.givesUpConnecting(a)
		return
	case c.draining:
		if k.turnAt < c.drainBy.from && !s.ending() || unread && !s.ending() {
			k.fail("#%d: drained until %v, not %v; unread: %v", c.number, k.now, c.drainBy.from, unread)
		}
		v = &simVerdict{status: exitOK}
	default:
		v = c.expired()
		if v != nil && s.ending() && k.turnAt < min(c.silence().to, c.inputSilence().to) {
			s.unsure = true // its time was up, or just not yet
		}
		if s.abrupt || v == nil && s.ending() {
			c.closed = true // unfinished
			return
		}
		if v == nil {
			k.fail("#%d: it gives up, and nothing is decided: owing %v, silent until %v", c.number,
				c.owing, c.silence())
		}
		if unread && !c.eof && !c.broken && !s.ending() {
			k.fail("#%d: it gives up, and there is something to read", c.number)
		}
	}
	c.concludes(v)
}

// givesUpConnecting: not before the attempt's time is up, and not when the answer was there.
func (c *simConn) givesUpConnecting(a *simSock) {
	k := c.sim.k
	if c.sim.abrupt || c.sim.ending() && (k.turnAt < c.by.from || c.tryTurn == k.turn) {
		c.closed = true // unfinished
		return
	}
	if k.turnAt < c.by.from || a.settled && max(a.settledAt, a.txHeld) < k.turnAt {
		k.fail("#%d: it gives up connecting at %v, not %v; answered: %v", c.number, k.now, c.by, a.settled)
	}
	c.sawFailedAttempt(errTimedOut)
}

// concludes notes the verdict. 0 is for the whole job alone, an honest peer is never blamed.
func (c *simConn) concludes(v *simVerdict) {
	k := c.sim.k
	c.closed = true
	if !c.draining && c.connected {
		c.ends()
	}
	c.verdict = v
	if k.trace != nil {
		k.logf("  judge: #%d comes to %d %q", c.number, v.status, v.words)
	}
	if c.sock == nil || c.sock.peer == nil || c.sim.o.until == untilConnect {
		return
	}
	p := c.sock.peer
	arrived := p.arrived == c.toSend() && (c.sim.o.until == untilEcho || p.finCame || k.mute)
	if v.status == exitOK && c.honest && !arrived && !k.mute {
		k.fail("#%d: a success, and the peer has %d of %d bytes", c.number, p.arrived, c.toSend())
	}
	blamesInput := slices.Contains(v.words, "standard input was not at its end") // and not the peer
	if v.status == exitExchange && c.honest && !blamesInput {
		k.fail("#%d: the peer did nothing wrong: %q", c.number, v.words)
	}
}

// ---- What must hold whenever the program goes to sleep ----

// turnEnds: the program is about to sleep for ms milliseconds. Whatever is decided must be over by
// now, whatever could go on must have something to wake it, and the sleep must not go beyond what
// has to be done by the clock, but for the rounding up to a whole millisecond.
func (s *simulation) turnEnds(ms int) {
	k := s.k
	switch {
	case s.signalKnown != 0:
		k.fail("it sleeps after a signal")
	case s.fatal != nil:
		k.fail("it sleeps after what ends the run: %q", s.fatal.words)
	case s.failing != nil:
		k.fail("#%d does not try its next address", s.failing.number)
	case len(s.out.due) > 0:
		k.fail("%d bytes did not get to standard output", len(s.out.due))
	case ms < -1 || ms > int(time.Hour/time.Millisecond):
		k.fail("wait for %d ms", ms)
	}
	s.userActs()
	s.sleepUntil = never
	s.again = ms == 0
	if s.again {
		s.sleepUntil = 0
	} else if ms > 0 {
		s.sleepUntil = simAfter(k.now, time.Duration(ms-1)*time.Millisecond)
	}
	open := 0
	for _, c := range s.conns {
		if c.verdict == nil || !c.closed && len(c.causes) < c.tried {
			open++
			c.sleeps()
		}
	}
	if !s.o.serve && open == 0 && len(s.conns) == s.o.n {
		k.fail("it sleeps, and all is done")
	}
	if len(s.conns) < s.o.n && !s.o.serve && !s.again {
		s.waitsToConnect()
	}
	s.serverSleeps()
}

// within: by moment m something has to be done by the clock.
func (s *simulation) within(what string, m simMoment) {
	k := s.k
	if m.to == never {
		return
	}
	if m.to <= k.turnAt {
		k.fail("%s is missed: due %v, and it is %v", what, m, k.turnAt)
	}
	if s.sleepUntil > m.to {
		k.fail("%s will be missed: due %v, and it sleeps beyond %v", what, m, s.sleepUntil)
	}
}

// waitsToConnect: no connection has begun. Then standard input is read to its end, or the name is
// looked up, which has a deadline.
func (s *simulation) waitsToConnect() {
	switch {
	case s.gathering():
		if !s.inp.underWay() {
			s.k.fail("nobody reads standard input")
		}
	case s.lookingUp:
		s.within("the look-up's deadline", s.connectBy)
	default:
		s.k.fail("only %d connections of %d have begun", len(s.conns), s.o.n)
	}
}

// sleeps: what must hold for one connection.
func (c *simConn) sleeps() {
	s := c.sim
	k := s.k
	v := c.decided()
	name := fmt.Sprintf("#%d", c.number)
	switch {
	case v != nil && !(c.draining && v.status == exitOK):
		k.fail("%s is decided and goes on: %d %q", name, v.status, v.words)
	case !c.connected:
		c.mustWatch(writable)
		if c.tryTurn < k.turn { // without time left, an attempt is due at once
			s.within(name+"'s connect", c.by)
		}
		return
	case c.draining:
		c.mustWatch(readable)
		s.within(name+"'s drain", c.drainBy)
		return
	case v != nil:
		k.fail("%s has all back and does not half-close", name)
	}
	owing := c.owes()
	if owing && !c.owing {
		c.life = simMoment{min(max(c.life.from, k.turnAt), k.now), k.now}
	}
	c.owing = owing
	awaiting := c.awaitsInput()
	if awaiting && !c.awaiting {
		c.awaits = simMoment{k.turnAt, k.now}
	}
	c.awaiting = awaiting
	c.flows()
	s.within(name+"'s silence", c.silence())
	s.within(name+"'s wait for standard input", c.inputSilence())
	if s.o.until == untilEOF && c.eof && c.finOut {
		s.within(name+"'s look for acknowledgements", simMoment{0, simAfter(c.looked, 10*time.Millisecond)})
	}
}

func (c *simConn) mustWatch(want readiness) {
	if c.sock.armed != want {
		c.sim.k.fail("#%d watches for %s, and needs %s", c.number, simDirections[c.sock.armed], simDirections[want])
	}
}

// flows: nothing that could go on may have nothing to wake it. The peer's bytes and its end are
// watched for until the end is read. Bytes that are to be sent and that our kernel has refused wait
// for room; without any, that is not watched for, or the program spins. Rounds that are due begin.
// Standard input is read as long as there is room for what it gives.
func (c *simConn) flows() {
	s := c.sim
	k := s.k
	sending := !c.outBroken && !c.finOut && (s.o.until == untilEOF || !c.eof && !c.broken)
	rest := c.toSend() - c.sent
	var want readiness
	if !c.eof && !c.broken {
		want |= readable
	}
	if sending && rest > 0 {
		want |= writable
	}
	if !s.again || c.sock.armed&^want != 0 {
		c.mustWatch(want)
	}
	if s.again || !sending && !c.awaitsInput() {
		return
	}
	switch {
	case rest > 0 && sending:
	case c.inputOver():
		if s.o.until == untilEOF && sending {
			k.fail("#%d has sent all and does not half-close", c.number)
		}
	case !s.inRounds():
		c.mustRead()
	case c.rounds == 0:
		k.fail("#%d does not begin", c.number)
	case c.returned == c.toSend():
		s.within(fmt.Sprintf("#%d's next round", c.number), c.began.plus(s.o.every))
	}
}

// mustRead: half of what is kept is free, so somebody must be reading, and more than is kept must
// never be.
func (c *simConn) mustRead() {
	s := c.sim
	kept := s.inp.known.given - c.settled()
	if kept > 1<<20 {
		s.k.fail("#%d: %d bytes of standard input are kept", c.number, kept)
	}
	if !s.inp.underWay() && kept <= 1<<19 {
		s.k.fail("#%d: there is room for standard input, and nobody reads it", c.number)
	}
}

// ---- The server ----

// sawServerRead: a served client's bytes. They are kept until they are written again, and meanwhile
// nothing is read.
func (s *simulation) sawServerRead(a *simSock, p []byte, err error) {
	c := a.peer
	if c.srvEnded || c.srvRead > a.wrote {
		s.k.fail("the server reads from %v: ended %v, %d bytes are unwritten", c.addr, c.srvEnded, c.srvRead-a.wrote)
	}
	c.srvRead += int64(len(p))
	s.srvRead += int64(len(p))
	if err == nil {
		return
	}
	c.srvEnded = true
	if err != io.EOF {
		s.srvFailed++
	} else if c.srvRead != a.wrote || !c.finSent {
		s.k.fail("the server ends %v: it read %d and wrote %d", c.addr, c.srvRead, a.wrote)
	}
}

// sawServerWrite: a client gets back what it has sent, and nothing else.
func (s *simulation) sawServerWrite(a *simSock, p []byte, n int, err error) {
	c := a.peer
	rest := c.srvRead - a.wrote
	if int64(len(p)) != rest || c.srvEnded || s.text.same(p, c.base+a.wrote) < len(p) {
		s.k.fail("the server writes %d bytes to %v, and %d wait; they may differ", len(p), c.addr, rest)
	}
	s.srvWrote += int64(n)
	if err != nil && err != errWouldBlock {
		c.srvEnded = true
		s.srvFailed++
	}
}

func (s *simulation) sawServerClose(a *simSock) {
	if !a.peer.srvEnded && !s.ending() {
		s.k.fail("the server closes %v, which has not ended", a.peer.addr)
	}
}

// sawAcceptFail: a listener that cannot accept pauses for a moment, unless it has just accepted
// somebody: perhaps nobody else waits. The recipe ends then, since it would wait for nothing.
func (s *simulation) sawAcceptFail(a *simSock, err error) {
	k := s.k
	if err == errWouldBlock || err == errReset {
		return
	}
	s.troubled = true
	for _, l := range s.listeners {
		if l.sock != a || l.tookAt == k.turn {
			continue
		}
		l.paused = simMoment{k.turnAt, k.now}.plus(100 * time.Millisecond)
		if s.o.recipe {
			s.endsWith(&simVerdict{status: exitLocal, words: []string{"accept: " + err.Error()}})
		}
	}
}

func (s *simulation) sawAccepted(a *simSock) {
	s.accepted++
	for _, l := range s.listeners {
		if l.sock == a {
			l.tookAt = s.k.turn
		}
	}
}

// serverSleeps: a client whose bytes were refused waits for room, every other one is read, and who
// waits in the backlog is accepted, after a pause at the latest.
func (s *simulation) serverSleeps() {
	k := s.k
	for _, l := range s.listeners {
		if k.turnAt >= l.paused.to {
			l.paused = simMoment{}
		}
		if l.sock.armed != readable {
			if k.turnAt >= l.paused.from && l.paused.to == 0 {
				k.fail("the listener at %v does not accept", l.sock.to)
			}
			s.within("the listener's pause", l.paused)
		}
	}
	for _, p := range s.clients {
		a := p.sock
		if a == nil || k.socks[a.num] != a {
			continue
		}
		want := readable
		if p.srvRead > a.wrote {
			want = writable
		}
		if p.srvEnded || a.armed != want {
			k.fail("the server watches %d for %s, not %s; ended: %v", a.num,
				simDirections[a.armed], simDirections[want], p.srvEnded)
		}
	}
}

// ---- What the lines must say ----

// simLine is a result line, taken apart.
type simLine struct {
	place, word, cause string
	values             map[string]string
}

// simParse takes a line apart: the place, one word, key=value, and the cause last, quoted.
func simParse(line string) (l simLine, ok bool) {
	rest, ok := strings.CutPrefix(line, "echomux: ")
	if !ok {
		return l, false
	}
	rest, quoted, caused := strings.Cut(rest, " error=")
	if caused {
		text, err := strconv.Unquote(quoted)
		if err != nil {
			return l, false
		}
		l.cause = text
	}
	words := strings.Fields(rest)
	if len(words) < 3 {
		return l, false
	}
	l.place = words[0]
	l.word = words[1]
	l.values = make(map[string]string)
	for _, w := range words[1:] {
		key, value, found := strings.Cut(w, "=")
		if found {
			l.values[key] = value
		}
	}
	_, err := time.Parse("2006-01-02T15:04:05.000Z", l.values["at"])
	return l, err == nil
}

// has: the words stand in text, in their order.
func (v *simVerdict) has(text string) bool {
	for _, w := range v.words {
		i := strings.Index(text, w)
		if i < 0 {
			return false
		}
		text = text[i+len(w):]
	}
	return true
}

// simBadness: of several connections the worst decides, and that is a local failure, then a wrong
// exchange, silence, a connect timeout, no connection.
func simBadness(status int) int {
	return slices.Index([]int{exitOK, exitConnect, exitConnectTimeout, exitIOTimeout, exitExchange, exitLocal}, status)
}

// judge compares the exit status and the lines with what has come of the connections.
func (s *simulation) judge(status int) {
	k := s.k
	s.status = status
	want := exitOK
	sum := simSum{}
	for _, c := range s.conns {
		sum.add(c)
		if c.verdict != nil && simBadness(c.verdict.status) > simBadness(want) {
			want = c.verdict.status
		}
	}
	sum.unfinished = s.o.n - sum.ok - len(sum.failed)
	if s.signalKnown != 0 && s.fatal != nil && status == s.signalKnown {
		return // both came in one turn
	}
	interrupted := s.signalKnown != 0 && sum.unfinished > 0 && s.fatal == nil
	if sum.unfinished > 0 && s.fatal != nil && simBadness(s.fatal.status) > simBadness(want) {
		want = s.fatal.status
	}
	if interrupted {
		want = s.signalKnown
	}
	if sum.unfinished > 0 && s.signalKnown == 0 && s.fatal == nil && !s.o.serve {
		k.fail("%d of %d connections are not finished, and the run ends", sum.unfinished, s.o.n)
	}
	if s.o.serve && s.fatal == nil {
		want = exitOK
		if len(s.listeners) == 0 {
			want = s.signalKnown
		}
	}
	if s.unsure {
		return
	}
	if status != want {
		k.fail("status %d, not %d: %s", status, want, s.err.tail())
	}
	lines := s.resultLines()
	if s.o.quiet && want == exitOK {
		if len(lines) > 0 && !s.troubled {
			k.fail("-q says %q", s.err.tail())
		}
		return
	}
	if len(lines) == 0 {
		k.fail("it says nothing: %q", s.err.tail())
	}
	last := lines[len(lines)-1]
	switch {
	case s.o.serve:
		s.judgeServed(last)
	case s.o.n == 1:
		s.judgeOnly(last, &sum, interrupted)
	default:
		s.judgeMany(last, lines, &sum, interrupted)
	}
}

// simSum is what several connections come to.
type simSum struct {
	ok, unfinished int
	failed         []*simVerdict
	sent, returned int64
	connect, took  []simMoment
	rtts           []simMoment
}

func (sum *simSum) add(c *simConn) {
	sum.sent += c.sent
	sum.returned += c.returned
	sum.rtts = append(sum.rtts, c.rtts...)
	if c.connected {
		sum.connect = append(sum.connect, simMoment{c.since.from - c.called, c.since.to - c.called})
	}
	if c.verdict == nil && !c.draining {
		return
	}
	if c.connected && c.sim.o.until != untilConnect {
		sum.took = append(sum.took, c.took)
	}
	if c.verdict == nil || c.verdict.status == exitOK {
		sum.ok++
	} else {
		sum.failed = append(sum.failed, c.verdict)
	}
}

// resultLines are the lines that are no log; each must have its form.
func (s *simulation) resultLines() (lines []simLine) {
	for text := range strings.Lines(s.err.String()) {
		if strings.HasPrefix(text, "[echomux (") {
			continue
		}
		line, ok := simParse(strings.TrimSuffix(text, "\n"))
		if !ok {
			s.k.fail("a line of another form: %q", text)
		}
		lines = append(lines, line)
	}
	return lines
}

func (s *simulation) wantWord(last simLine, failed, interrupted bool) {
	want := "ok"
	if interrupted {
		want = "interrupted"
	} else if failed {
		want = "failed"
	}
	if last.word != want {
		s.k.fail("the last line says %q, not %q", last.word, want)
	}
}

func (s *simulation) wantKey(l simLine, key string, want int64) {
	if l.values[key] != strconv.FormatInt(want, 10) {
		s.k.fail("%s=%s, not %d", key, l.values[key], want)
	}
}

// judgeOnly: the last line of one connection.
func (s *simulation) judgeOnly(last simLine, sum *simSum, interrupted bool) {
	k := s.k
	var v *simVerdict
	if len(sum.failed) > 0 {
		v = sum.failed[0]
	} else if sum.unfinished > 0 {
		v = s.fatal
	}
	s.wantWord(last, v != nil, interrupted)
	if v != nil && !interrupted && !v.has(last.cause) {
		k.fail("the cause is %q, and lacks %q", last.cause, v.words)
	}
	if v != nil && !interrupted {
		s.wantIdle(v, last.cause)
	}
	if (v == nil || interrupted) && last.cause != "" {
		k.fail("there is a cause: %q", last.cause)
	}
	s.wantKey(last, "sent", sum.sent)
	s.wantKey(last, "returned", sum.returned)
	s.wantFigure(last, "connect_ms", sum.connect, true)
	if s.o.count != 1 {
		s.wantKey(last, "rounds", int64(len(sum.rtts)))
		s.wantFigure(last, "rtt_ms", sum.rtts, false)
	} else {
		s.wantFigure(last, "exchange_ms", s.onlyTook(), true)
		s.wantRate(last, max(sum.sent, sum.returned))
	}
	if s.o.until != untilConnect && s.out.n != sum.returned && !s.out.failed {
		k.fail("standard output has %d bytes of %d", s.out.n, sum.returned)
	}
	s.wantRounds(sum)
}

// wantRate: with standard input as it comes, the line tells how fast that was.
func (s *simulation) wantRate(l simLine, bytes int64) {
	text, found := l.values["mbit_s"]
	if s.inRounds() || s.o.until == untilConnect || len(s.conns) == 0 || !s.conns[0].connected {
		if found {
			s.k.fail("mbit_s=%s", text)
		}
		return
	}
	took := s.conns[0].took
	if took.from <= 0 {
		return
	}
	got, err := strconv.ParseFloat(text, 64)
	least := float64(bytes) * 8e3 / float64(took.to)
	most := float64(bytes) * 8e3 / float64(took.from)
	loose := 0.0051
	if most >= 10 {
		loose = 0.51
	}
	if err != nil || got < least-loose || got > most+loose {
		s.k.fail("mbit_s=%s, and it is from %.2f to %.2f", text, least, most)
	}
}

// onlyTook is the time of one exchange, finished or not.
func (s *simulation) onlyTook() []simMoment {
	if len(s.conns) == 0 || !s.conns[0].connected || s.o.until == untilConnect {
		return nil
	}
	c := s.conns[0]
	if c.lastRead.from == never && c.verdict == nil {
		c.took = simMoment{0, s.k.now - c.since.from} // to the report
	} else if c.verdict == nil && !c.draining {
		c.ends()
	}
	return []simMoment{c.took}
}

// judgeMany: the last lines of several connections.
func (s *simulation) judgeMany(last simLine, lines []simLine, sum *simSum, interrupted bool) {
	failed := len(sum.failed)
	if s.fatal != nil {
		n, _ := strconv.Atoi(last.values["failures"])
		failed = max(failed, min(n, failed+sum.unfinished)) // those that never began
		sum.unfinished -= failed - len(sum.failed)
	}
	s.wantWord(last, failed > 0, interrupted)
	s.wantKey(last, "connections", int64(s.o.n))
	s.wantKey(last, "ok", int64(sum.ok))
	s.wantKey(last, "failures", int64(failed))
	s.wantKey(last, "unfinished", int64(sum.unfinished))
	s.wantKey(last, "sent", sum.sent)
	s.wantKey(last, "returned", sum.returned)
	s.wantFigure(last, "connect_ms", sum.connect, false)
	if s.o.count != 1 {
		s.wantKey(last, "rounds", int64(len(sum.rtts)))
		s.wantFigure(last, "rtt_ms", sum.rtts, false)
	} else {
		s.wantFigure(last, "exchange_ms", sum.took, false)
	}
	if s.fatal != nil {
		sum.failed = append(sum.failed, s.fatals...)
	}
	counted := 0
	for _, l := range lines {
		if l.word != "cause" {
			continue
		}
		n, _ := strconv.Atoi(l.values["failures"])
		counted += n
		if !slices.ContainsFunc(sum.failed, func(v *simVerdict) bool { return v.has(l.cause) }) {
			s.k.fail("nothing has failed of %q", l.cause)
		}
	}
	if counted != failed {
		s.k.fail("the causes are those of %d failures, of %d", counted, failed)
	}
	s.wantRounds(sum)
}

// wantRounds: with -every each round is a line.
func (s *simulation) wantRounds(sum *simSum) {
	n := strings.Count(s.err.String(), " round=")
	want := len(sum.rtts)
	if s.o.every == 0 || s.o.quiet {
		want = 0
	}
	if n != want {
		s.k.fail("%d lines of rounds, of %d", n, want)
	}
}

// judgeServed: -serve ends well when it is interrupted.
func (s *simulation) judgeServed(last simLine) {
	switch {
	case s.fatal != nil:
		if last.word != "failed" || !s.fatal.has(last.cause) {
			s.k.fail("the last line is %v, and lacks %q", last, s.fatal.words)
		}
	case len(s.listeners) == 0:
		s.wantWord(last, false, true)
	default:
		if last.word != "ended" {
			s.k.fail("the last line says %q", last.word)
		}
		s.wantKey(last, "clients", int64(s.accepted))
		s.wantKey(last, "failures", int64(s.srvFailed))
		s.wantKey(last, "received", s.srvRead)
		s.wantKey(last, "returned", s.srvWrote)
	}
}

// wantFigure: one value, or the least, the median, the 99th percentile and the most. The first and
// the last are exact, the others may be 5% off.
func (s *simulation) wantFigure(l simLine, key string, all []simMoment, one bool) {
	text, found := l.values[key]
	if found != (len(all) > 0) {
		s.k.fail("%s is there: %v, and %d times were taken", key, found, len(all))
	}
	if !found {
		return
	}
	parts := strings.Split(text, "/")
	if one != (len(parts) == 1) || !one && len(parts) != 4 {
		s.k.fail("%s=%s", key, text)
	}
	var from, to []time.Duration
	for _, m := range all {
		from = append(from, max(0, m.from))
		to = append(to, max(0, m.to))
	}
	slices.Sort(from)
	slices.Sort(to)
	for i, part := range parts {
		rank := [...]int{0, (len(all) + 1) / 2, (99*len(all) + 99) / 100, len(all)}[i]
		rank = max(rank-1, 0)
		loose := 1.0
		if i == 1 || i == 2 {
			loose = 1.05
		}
		got, err := strconv.ParseFloat(part, 64)
		least := float64(from[rank])/1e6/loose - 0.0051
		most := float64(to[rank])/1e6*loose + 0.0051
		if err != nil || got < least || got > most {
			s.k.fail("%s=%s, and %d of it is from %v to %v", key, text, i, from[rank], to[rank])
		}
	}
}
