package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The judge of explore_test.go. It knows what the simulated peers did, what the kernel has told the
// program, and what the documents promise. It knows nothing of how the program works. It looks
// three times: at each call, whether that is right now; before each wait, whether anything should
// have been done by now; and at the end, at the status and the figures.

// facts are what it knows of one connect, and of the connection that came of it; or of a connection
// of the server.
type facts struct {
	connection int
	fate       *fate
	client     *simClient

	openAt      time.Duration
	connectAt   time.Duration // when connect was called
	connectedAt time.Duration // never: it is not
	blockedAt   time.Duration // when the last call that tells what comes said would block
	closed      bool
	failure     error // the first one that a call has told, io.EOF too
	isUnread    bool  // it is not that of a read, so what has come is still to be read

	written  int           // bytes that the kernel took
	returned int           // bytes that were read, and were the right ones
	begun    int           // rounds
	back     int           // rounds
	beganAt  time.Duration // the round
	heardAt  time.Duration // the last byte, or the begin of the round if that was later
	least    time.Duration // that a round took
	most     time.Duration
	isWrong  bool          // a byte was read that must not come
	isSilent bool          // it was given up for that
	finAt    time.Duration // never: our FIN was not sent
}

type judge struct {
	facts      []*facts
	progress   bool // something was done since the last wait
	idleTurns  int  // in a row, in which nothing was
	deviations int  // up to the last wait
	signalled  bool
	lastTurn   bool // the next turn is one too many
	broken     bool // wait or watch has failed

	start     time.Duration // of the look-up
	found     bool          // it has found addresses
	lateTurns int           // since then without a connect
	hasFailed bool          // an address, since the last one was tried

	accepted int
	refused  int           // failures of accept
	resumeAt time.Duration // the end of the pause after the last one
}

func (j *judge) add(f facts) *facts {
	f.connectedAt = never
	f.finAt = never
	f.blockedAt = -1
	j.facts = append(j.facts, &f)
	return &f
}

// isOver says whether the loop has a reason to end.
func (j *judge) isOver() bool { return j.signalled || j.broken }

// ---- Between two turns ----

// beforeWait looks for what should have been done by now, and for turns without a cause.
func (j *judge) beforeWait(k *simKernel) {
	k.demand(!j.broken, "the loop goes on after a failure of the machine")
	k.demand(!j.lastTurn, "the loop goes on after a signal")
	j.lastTurn = j.signalled
	j.idleTurns++
	if j.progress || k.deviations > j.deviations {
		j.idleTurns = 0
	}
	j.progress = false
	j.deviations = k.deviations
	k.demand(j.idleTurns <= k.stale(), "a spin: too many turns in which nothing was done")
	if j.signalled {
		return
	}
	for _, f := range j.facts {
		switch {
		case f.closed:
		case f.client != nil:
			k.demand(f.failure == nil, "a client that has ended is kept")
		case f.connectedAt != never:
			j.checkConnection(k, f)
		}
	}
	if j.found {
		j.checkAttempts(k)
	}
}

// checkConnection finds what is late.
func (j *judge) checkConnection(k *simKernel, f *facts) {
	size := k.world.roundSize
	total := len(k.world.stream)
	switch {
	case f.isWrong:
		panic(violation("the loop goes on after a wrong byte"))
	case f.failure != nil && !f.isUnread:
		panic(violation("the loop goes on after the end of a connection"))
	case f.finAt != never:
		k.demand(k.clock < f.finAt+simDrainTime, "the end of the wait for the FIN is late")
	case f.failure != nil:
	case f.begun == 0:
		k.demand(k.clock <= f.connectedAt+simSlack, "the first round is late")
	case f.returned < f.begun*size:
		k.demand(k.clock < f.heardAt+simIOTimeout, "the I/O timeout is late")
	case f.returned < total:
		k.demand(k.clock < f.beganAt+k.world.every, "the next round is late")
	default:
		panic(violation("our FIN is late"))
	}
}

// checkAttempts finds an address that should have been tried by now.
func (j *judge) checkAttempts(k *simKernel) {
	w := k.world
	if len(j.facts) == 0 {
		j.lateTurns++
		k.demand(j.lateTurns < 2, "the look-up has ended, and no address is tried")
		return
	}
	for connection := range w.connections {
		j.checkRace(k, connection)
	}
}

// checkRace does that for one connection.
func (j *judge) checkRace(k *simKernel, connection int) {
	tried := 0
	pending := false
	var last *facts
	for _, f := range j.facts {
		switch {
		case f.connection != connection:
			continue
		case f.connectedAt != never:
			return
		}
		tried++
		pending = pending || !f.closed
		last = f
	}
	if !pending && k.world.connections > 1 {
		return // others go on
	}
	k.demand(pending, "all addresses have failed, and the loop goes on")
	k.demand(k.clock < j.start+simConnectTimeout, "the connect timeout is late")
	if tried < len(k.world.fates) {
		k.demand(!j.hasFailed, "an address has failed, and the next one is not tried")
		k.demand(k.clock < last.openAt+simHeadStart, "the next address is late")
	}
}

// quiet is when nobody but the program can do anything any more, and it waits.
func (j *judge) quiet(k *simKernel) {
	k.demand(k.listener != nil, "a stall: it waits for nothing")
	k.demand(len(k.backlog) == 0, "a stall: a client waits to be accepted")
	for _, c := range k.world.clients {
		f := c.socket.facts
		isBroken := f.failure != nil && f.failure != io.EOF
		k.demand(isBroken || c.back == c.sent, "a stall: bytes of a client are not back")
		k.demand(f.closed == (f.failure != nil), "a client is closed too early, or never")
		k.demand(c.ending == stay || f.failure != nil, "a stall: the end of a client is not seen")
	}
	k.signal()
}

// ---- The calls ----

func (j *judge) sawOpen(k *simKernel, to *fate) *facts {
	w := k.world
	j.progress = true
	k.demand(j.found, "open: before the look-up has ended")
	f := j.add(facts{fate: to, openAt: k.clock})
	n := len(j.facts)
	k.demand(n <= w.connections*len(w.fates), "open: an address is tried again")
	if w.connections > 1 {
		f.connection = n - 1
		return f
	}
	if n > 1 {
		left := simConnectTimeout - (j.facts[0].openAt - j.start)
		headStart := min(simHeadStart, left/time.Duration(len(w.fates)))
		k.demand(j.hasFailed || k.clock >= j.facts[n-2].openAt+headStart, "an address is early")
		k.demand(k.clock < j.start+simConnectTimeout, "an address is tried after the limit")
	}
	for _, other := range j.facts {
		k.demand(other.connectedAt == never, "an address is tried after the connection")
	}
	j.hasFailed = false
	return f
}

// sawFailure: a connect has failed.
func (j *judge) sawFailure(f *facts, err error) {
	j.progress = true
	f.failure = err
	f.closed = f.fate.stage == "open" // or else there is a socket to close
	j.hasFailed = true
}

func (j *judge) sawConnected(k *simKernel, f *facts, err error) {
	j.progress = true
	f.failure = err // a reset after the connection
	f.isUnread = err != nil
	f.connectedAt = k.clock
	f.heardAt = k.clock
}

func (j *judge) sawRead(k *simKernel, f *facts, p []byte, err error) {
	k.demand(!f.isWrong, "read: after a wrong byte")
	k.demand(f.failure == nil || f.isUnread, "read: after the end")
	if err == errWouldBlock {
		f.blockedAt = k.clock
		return
	}
	j.progress = true
	if f.failure == nil {
		f.failure = err
	}
	f.isUnread = f.isUnread && err == nil
	if f.client != nil {
		k.demand(f.written == f.returned, "read: of a client that does not read")
		f.returned += len(p)
		return
	}
	for _, b := range p {
		if f.returned >= f.written || b != k.world.stream[f.returned] {
			f.isWrong = true
			return
		}
		f.returned++
		f.heardAt = k.clock
		if f.returned%k.world.roundSize == 0 {
			took := k.clock - f.beganAt
			if f.back == 0 {
				f.least = took
			}
			f.back++
			f.least = min(f.least, took)
			f.most = max(f.most, took)
		}
	}
}

func (j *judge) sawWrite(k *simKernel, f *facts, p []byte, n int, err error) {
	k.demand(!f.isWrong && (f.failure == nil || f.isUnread), "write: after the end")
	if f.client != nil {
		k.demand(f.written+len(p) <= f.returned, "write: more than was read")
	} else {
		j.checkWrite(k, f, p)
	}
	f.written += n
	if err == errWouldBlock {
		return
	}
	j.progress = true
	if err != nil {
		f.failure = err
		f.isUnread = true
	}
}

// checkWrite knows a round by its first write.
func (j *judge) checkWrite(k *simKernel, f *facts, p []byte) {
	w := k.world
	k.demand(strings.HasPrefix(w.stream[f.written:], string(p)), "write: other bytes were due")
	size := w.roundSize
	if f.written == f.begun*size {
		k.demand(f.returned == f.written, "a round begins before the last one is back")
		k.demand(f.begun == 0 || k.clock >= f.beganAt+w.every, "a round begins too early")
		f.begun++
		f.beganAt = k.clock
		f.heardAt = k.clock
	}
	k.demand(f.written+len(p) <= f.begun*size, "write: bytes of the next round")
}

func (j *judge) sawFin(k *simKernel, f *facts) {
	j.progress = true
	k.demand(f.client == nil && !f.isWrong, "closeWrite: by the server, or after a wrong byte")
	k.demand(f.returned == len(k.world.stream), "closeWrite: before all is back")
	f.finAt = k.clock
}

func (j *judge) sawClose(k *simKernel, f *facts) {
	j.progress = true
	f.closed = true
	switch {
	case j.isOver():
		j.sawEnd(k, f)
	case f.failure != nil || f.isWrong:
	case f.client != nil:
		panic(violation("close: of a client that has not ended"))
	case f.connectedAt == never:
		j.checkGivingUp(k, f)
	case k.world.connectOnly:
	case f.finAt != never:
		k.demand(k.clock >= f.finAt+simDrainTime, "close: without waiting for the peer's FIN")
	default:
		f.isSilent = true
		k.demand(f.returned < f.begun*k.world.roundSize, "close: in a pause")
		k.demand(k.clock >= f.heardAt+simIOTimeout, "close: before the I/O timeout")
		k.demand(f.blockedAt == k.clock, "close: without a look at what has come")
	}
}

// sawEnd: the loop has ended, and closes all. If the time of a connection is over, it has its
// verdict all the same, because the turn is finished first.
func (j *judge) sawEnd(k *simKernel, f *facts) {
	switch {
	case f.blockedAt != k.clock || f.failure != nil || f.client != nil:
	case f.connectedAt == never && k.clock >= j.start+simConnectTimeout:
		f.failure = errTimedOut
	case f.connectedAt != never && f.returned < f.begun*k.world.roundSize:
		f.isSilent = k.clock >= f.heardAt+simIOTimeout
	}
}

// checkGivingUp: an attempt is closed that has not failed.
func (j *judge) checkGivingUp(k *simKernel, f *facts) {
	for _, other := range j.facts {
		if other.connection == f.connection && other.connectedAt != never {
			return
		}
	}
	k.demand(k.clock >= j.start+simConnectTimeout, "close: before the connect timeout")
	k.demand(f.blockedAt == k.clock, "close: without a look at the connect's result")
	f.failure = errTimedOut
}

func (j *judge) sawArrival(c *simClient) *facts { return j.add(facts{client: c}) }

func (j *judge) sawAccept(k *simKernel, isFailure bool) {
	j.progress = true
	k.demand(k.clock >= j.resumeAt, "accept: in the pause")
	if isFailure {
		j.refused++
		j.resumeAt = k.clock + simPause
		return
	}
	j.accepted++
}

// ---- The verdict ----

// status is the exit status of a connection that was made.
func (f *facts) status(connectOnly bool) int {
	switch {
	case connectOnly:
		return exitOK
	case f.isWrong:
		return exitWrong
	case f.finAt != never:
		return exitOK
	case f.failure != nil:
		return statusOfEnd(f.failure)
	case f.isSilent:
		return exitIOTimeout
	}
	return unfinished
}

func statusOfEnd(err error) int {
	switch err {
	case errSim:
		return exitLocal
	case errTimedOut, errUnreachable:
		return exitIOTimeout
	}
	return exitLost
}

// verdict is the exit status of a connection.
func (j *judge) verdict(k *simKernel, connection int) int {
	w := k.world
	var failures []error
	pending := false
	for _, f := range j.facts {
		switch {
		case f.connection != connection:
		case f.connectedAt != never:
			return f.status(w.connectOnly)
		case f.failure == nil:
			pending = true
		default:
			failures = append(failures, f.failure)
		}
	}
	if pending || len(failures) < len(w.fates) && k.clock < j.start+simConnectTimeout {
		return unfinished
	}
	if len(failures) < len(w.fates) { // there was no time for the others
		failures = append(failures, errTimedOut)
	}
	return statusOfFailures(failures)
}

// end judges the exit status and the lines.
func (j *judge) end(k *simKernel, status int, lines string) {
	w := k.world
	for _, s := range k.sockets {
		k.demand(s == nil, "a socket is left open")
	}
	line := lines[strings.LastIndex(strings.TrimSuffix(lines, "\n"), "\n")+1:]
	k.demand(field(line, "status") == strconv.Itoa(status), "the line has another status")
	if w.expected != unknown && !k.tampered {
		k.demand(status == w.expected, fmt.Sprintf("status %d, not %d", status, w.expected))
	}
	if j.broken && status == exitLocal {
		return // what has its verdict already keeps it, as after a signal
	}
	if k.listener != nil {
		j.checkServer(k, lines, line)
		return
	}
	j.checkClient(k, status, line)
}

func (j *judge) checkServer(k *simKernel, lines, line string) {
	failed := 0
	received := 0
	returned := 0
	for _, f := range j.facts {
		if f.failure != nil && f.failure != io.EOF {
			failed++
		}
		received += f.returned
		returned += f.written
	}
	demandFigure(k, line, "clients", j.accepted)
	demandFigure(k, line, "failed", failed)
	demandFigure(k, line, "received", received)
	demandFigure(k, line, "returned", returned)
	paused := strings.Count(lines, "msg=paused")
	k.demand(min(j.refused, 1) <= paused && paused <= j.refused, "paused is said wrongly")
}

// checkClient knows what status there has to be.
func (j *judge) checkClient(k *simKernel, status int, line string) {
	w := k.world
	if !j.found && w.lookUp.err != nil && k.found == nil {
		return
	}
	want := exitOK
	ok := 0
	missing := 0
	isOpen := slices.ContainsFunc(j.facts, func(f *facts) bool {
		return f.isUnread
	})
	for connection := range w.connections {
		one := j.verdict(k, connection)
		switch one {
		case unfinished:
			missing++
			if j.broken {
				want = worseOf(want, exitLocal)
			}
		case exitOK:
			ok++
		default:
			want = worseOf(want, one)
		}
	}
	if missing > 0 && !j.broken {
		k.demand(j.signalled, "the run ends, and a connection has no verdict")
		want = simSignal
	}
	if status == simSignal && j.signalled && isOpen {
		return // it could not know yet
	}
	k.demand(status == want, fmt.Sprintf("status %d, but what has happened is %d", status, want))
	if !j.broken {
		j.checkFigures(k, line, ok, missing)
	}
}

func (j *judge) checkFigures(k *simKernel, line string, ok, missing int) {
	w := k.world
	written := 0
	returned := 0
	back := 0
	var one *facts
	for _, f := range j.facts {
		written += f.written
		returned += f.returned
		back += f.back
		if f.connectedAt != never && (one == nil || f.connectedAt < one.connectedAt) {
			one = f
		}
	}
	demandFigure(k, line, "sent", written)
	demandFigure(k, line, "returned", returned)
	demandFigure(k, line, "rounds", back)
	if w.connections > 1 {
		demandFigure(k, line, "ok", ok)
		demandFigure(k, line, "failed", w.connections-ok-missing)
		demandFigure(k, line, "unfinished", missing)
		return
	}
	if one == nil {
		return
	}
	demandTime(k, line, "connect_ms", one.connectedAt-one.connectAt)
	demandTime(k, line, "lasted_ms", k.clock-one.connectedAt)
	switch {
	case back == 0:
	case len(w.stream) == w.roundSize:
		demandTime(k, line, "rtt_ms", one.most)
	default:
		demandTime(k, line, "rtt_min_ms", one.least)
		demandTime(k, line, "rtt_max_ms", one.most)
	}
}

// field returns the value of a key in a line; "" if it is not there.
func field(line, key string) string {
	_, value, _ := strings.Cut(line, " "+key+"=")
	end := " "
	if strings.HasPrefix(value, `"`) {
		value = value[1:]
		end = `"`
	}
	value, _, _ = strings.Cut(strings.TrimSuffix(value, "\n"), end)
	return value
}

func demandFigure(k *simKernel, line, key string, want int) {
	text := field(line, key)
	k.demand(text == strconv.Itoa(want), fmt.Sprintf("%s is %q, not %d", key, text, want))
}

func demandTime(k *simKernel, line, key string, want time.Duration) {
	text := field(line, key)
	ms, err := strconv.ParseFloat(text, 64)
	k.demand(err == nil && time.Duration(ms*1e6).Round(time.Microsecond) == want,
		fmt.Sprintf("%s is %q, not %v", key, text, want))
}
