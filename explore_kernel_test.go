package main

// A simulated kernel: what the rest of echomux sees of the world in explore_test.go. It is also a
// list of what a kernel may answer. The obvious is one answer; these are others, and no program may
// depend on their not being given:
//
//   - A read returns less than has arrived, a write takes less than it was given.
//   - A call says that it would block although the poller has just said that it would not.
//   - The poller reports a socket that is not ready, one twice, or one a turn later; and it reports
//     several in any order.
//   - A sleep ends for nothing, or long after its time: the process was stopped meanwhile.
//   - A number that was just closed is the next one to be given out.
//   - An error of a connection is told once. The next read says EOF.
//   - Any call can find that the machine has run out of something.
//
// Each of these deviations is a choice, and a run has few of them. What the peers do is chosen
// before the run, and belongs to the world. A turn takes a microsecond; all other time passes in
// sleep, while nothing is ready.

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"
)

// simKernel implements kernel, and is all else that the program finds outside. It tells the judge
// what it answers, and panics with a violation if a call is made that the contract does not allow.
type simKernel struct {
	*choices
	world *simWorld
	judge judge

	stdout   bytes.Buffer
	clock    time.Duration
	woken    bool
	sockets  [12]*simSocket // by number; the lowest one that is free is the next, as POSIX has it
	opened   int            // sockets that were made by open
	listener *simSocket
	backlog  []*simSocket // connected, and not accepted yet
	peers    []peer       // in the order in which they act
	lookUpAt time.Duration
	found    func() // ends the look-up; nil if none is under way
	notify   func(status int)
	calls    int      // in this turn
	named    []socket // watched, and ready
	idle     []socket // watched, and not ready
	tampered bool     // a deviation has changed more than the order of events
}

// phase is how far a socket has come.
type phase uint8

const (
	fresh phase = iota // its calls block
	nonblocking
	connecting
	connected
	listening
)

// simSocket is a socket as the kernel sees it.
type simSocket struct {
	number   socket
	phase    phase
	watched  readiness
	isNamed  bool // wait has reported it, and no call has followed yet
	peerName netip.AddrPort
	facts    *facts // what the judge knows of it; nil for a listener

	answerAt time.Duration // of connect; never: nobody answers
	answer   error

	inbox    []byte // has arrived, and was not read
	eof      bool   // behind it is the peer's FIN
	outbox   []byte // was written, and the peer has not taken it
	capacity int    // of outbox
	fin      bool   // closeWrite was called
	dead     bool   // nothing can be sent any more, and nothing arrives
	err      error  // why it is dead, until a call has told it
}

// errSim is the error of calls that fail for lack of something.
var errSim error = exhausted{errors.New("sim: no buffer space available")}

// simAddress is the address with a number.
func simAddress(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + i)}), 7)
}

// simHere is the local end of a connection.
var simHere = netip.MustParseAddrPort("192.0.2.99:50000")

// begin makes it the kernel of a new run. What it has allocated it keeps.
func (k *simKernel) begin(c *choices, w *simWorld) {
	k.stdout.Reset()
	*k = simKernel{choices: c, world: w, stdout: k.stdout, named: k.named, idle: k.idle}
	for _, client := range w.clients {
		k.peers = append(k.peers, client)
	}
	k.judge.progress = true
}

// args is the command line; what is to be told is told with -v.
func (k *simKernel) args() []string {
	if k.log == nil {
		return k.world.args
	}
	return append([]string{"-v"}, k.world.args...)
}

func (k *simKernel) outside() outside {
	out := outside{
		newKernel: func() (kernel, error) { return k, nil },
		lookUp:    k.lookUp,
		signals:   func(notify func(int)) { k.notify = notify },
		stdin:     strings.NewReader(k.world.stdin),
		stdout:    &k.stdout,
		stderr:    io.Discard,
	}
	if k.log != nil {
		out.stderr = k.log
	}
	return out
}

func (k *simKernel) lookUp(host, family string, limit time.Duration,
	done func([]netip.Addr, error)) {
	fate := k.world.lookUp
	var addrs []netip.Addr
	for i := range k.world.fates {
		addrs = append(addrs, simAddress(i).Addr())
	}
	k.judge.start = k.clock
	k.lookUpAt = later(k.clock, fate.after)
	k.found = func() {
		if fate.err != nil {
			done(nil, fate.err)
			return
		}
		k.judge.found = true
		done(addrs, nil)
	}
	if fate.isAtOnce {
		k.endLookUp()
	}
}

// ---- Waiting ----

func (k *simKernel) now() time.Duration { return k.clock }
func (k *simKernel) wake()              { k.woken = true }

func (k *simKernel) watch(num socket, was, want readiness) error {
	s := k.enter("watch", num)
	k.demand(was == s.watched || k.judge.broken, "watch: the socket was watched for something else")
	k.demand(was != want, "watch: nothing changes")
	k.demand(s.phase >= connecting, "watch: before connect")
	k.demand(s.phase != connecting || want == writable, "watch: a connect, but for writable alone")
	k.judge.progress = true
	if k.fails("watch") {
		k.judge.broken = true
		return errSim
	}
	s.watched = want
	return nil
}

// ready is what the socket is ready for.
func (k *simKernel) ready(s *simSocket) (r readiness) {
	switch {
	case s.phase == listening && len(k.backlog) > 0:
		return readable
	case s.phase == connecting && k.clock >= s.answerAt:
		return writable
	case s.phase != connected:
		return 0
	case s.dead:
		return readable | writable
	}
	if len(s.inbox) > 0 || s.eof {
		r |= readable
	}
	if len(s.outbox) < s.capacity {
		r |= writable
	}
	return r
}

// collect sorts what is watched into what is ready for it, or has failed, and what is not.
func (k *simKernel) collect() (anyReady bool) {
	k.named = k.named[:0]
	k.idle = k.idle[:0]
	for _, s := range k.sockets {
		switch {
		case s == nil || s.watched == 0:
		case k.ready(s)&s.watched != 0 || s.dead && s.phase == connected:
			k.named = append(k.named, s.number)
		default:
			k.idle = append(k.idle, s.number)
		}
	}
	return len(k.named) > 0
}

func (k *simKernel) wait(ms int) ([]socket, error) {
	k.calls = 0
	k.judge.beforeWait(k)
	if k.fails("wait") {
		k.judge.broken = true
		return nil, errSim
	}
	before := k.clock
	isTold := k.pass(ms)
	if k.clock == before {
		k.clock += time.Microsecond
	}
	if !isTold {
		return nil, nil
	}
	return k.report(), nil
}

// pass lets the time pass until wait returns. It says whether that reports what is ready.
func (k *simKernel) pass(ms int) (isTold bool) {
	k.maySignal()
	k.letAct()
	if k.collect() || k.woken {
		if k.deviate("the process", "goes on", "is stopped for a minute") == 1 {
			k.stop()
		}
		return true
	}
	how := k.deviate("the sleep", "is as long as it has to be", "ends at once, for nothing",
		"is a minute too long", "is a minute too long, and nothing is told")
	switch how {
	case 0:
		k.sleep(ms)
	case 2, 3:
		k.stop()
	}
	return how == 0 || how == 2
}

// sleep lets the time pass until a socket is ready, or somebody wakes, or the limit has come.
func (k *simKernel) sleep(ms int) {
	until := never
	if ms >= 0 {
		until = k.clock + time.Duration(ms)*time.Millisecond
	}
	for !k.collect() && !k.woken && k.clock < until {
		next := min(k.nextEvent(), until)
		if next == never {
			k.judge.quiet(k)
			continue
		}
		k.clock = next
		k.letAct()
	}
}

// stop lets a minute pass, which is longer than all limits together.
func (k *simKernel) stop() {
	k.tampered = true
	end := k.clock + time.Minute
	for next := k.nextEvent(); next <= end; next = k.nextEvent() {
		k.clock = max(k.clock, next)
		k.letAct()
	}
	k.clock = end
	k.letAct()
}

// report is what wait returns: the sockets that are ready, or nearly so.
func (k *simKernel) report() []socket {
	k.woken = false
	k.collect()
	for i := 0; i+1 < len(k.named); i++ {
		j := i + 1 + k.which("comes first", k.named[i+1:])
		if j > i {
			k.named[i], k.named[j] = k.named[j], k.named[i]
		}
	}
	twice := k.which("is named twice", k.named)
	if twice >= 0 {
		k.named = append(k.named, k.named[twice])
	}
	held := k.which("is held back for a turn", k.named)
	if held >= 0 {
		k.named = append(k.named[:held], k.named[held+1:]...)
	}
	wrong := k.which("is named, though it is not ready", k.idle)
	if wrong >= 0 {
		k.named = append(k.named, k.idle[wrong])
	}
	for _, num := range k.named {
		k.sockets[num].isNamed = true
	}
	k.logf("%v: wait reports %v", k.clock, k.named)
	return k.named
}

// nextEvent is when something happens by itself.
func (k *simKernel) nextEvent() time.Duration {
	next := never
	if k.found != nil {
		next = k.lookUpAt
	}
	for _, s := range k.sockets {
		if s != nil && s.phase == connecting && s.answerAt > k.clock {
			next = min(next, s.answerAt)
		}
	}
	for _, p := range k.peers {
		next = min(next, p.nextAt(k))
	}
	return next
}

// letAct lets everybody do what they can do by now. A peer can also be slow, and do one thing now
// and the others in the next turn.
func (k *simKernel) letAct() {
	if k.found != nil && k.clock >= k.lookUpAt {
		k.endLookUp()
	}
	for _, p := range k.peers {
		for acts := 0; p.nextAt(k) <= k.clock; acts++ {
			if acts > 0 && k.deviate("the peer", "goes on", "goes on in the next turn") == 1 {
				break
			}
			p.act(k)
		}
	}
}

func (k *simKernel) endLookUp() {
	found := k.found
	k.found = nil
	k.judge.progress = true
	found()
}

// maySignal lets a signal come.
func (k *simKernel) maySignal() {
	mayCome := k.world.signals && !k.judge.signalled
	if mayCome && k.deviate("a signal", "does not come", "comes") == 1 {
		k.signal()
	}
}

func (k *simKernel) signal() {
	k.tampered = true
	k.judge.signalled = true
	k.judge.progress = true
	k.notify(simSignal)
}

const simSignal = 130 // the exit status of SIGINT

// ---- Sockets ----

// enter is the begin of a call on a socket.
func (k *simKernel) enter(call string, num socket) *simSocket {
	k.calls++
	k.demand(k.calls < 1000, "a turn that does not end")
	if int(num) >= len(k.sockets) || k.sockets[num] == nil {
		panic(violation(fmt.Sprintf("%s: socket %d is not open", call, num)))
	}
	s := k.sockets[num]
	k.demand(call != "close" || s.phase != connected || !s.isNamed,
		"close: nobody has looked at what was reported")
	s.isNamed = false
	return s
}

// demand says what the contract does not allow.
func (k *simKernel) demand(isRight bool, what string) {
	if !isRight {
		panic(violation(what))
	}
}

// fails: any call can find that there is too little of something.
func (k *simKernel) fails(call string) bool {
	if !k.world.failures || k.deviate(call, "does its work", "fails") == 0 {
		return false
	}
	k.tampered = true
	return true
}

// meanwhile is the time between two calls of one turn, in which the others do not sleep.
func (k *simKernel) meanwhile() {
	k.maySignal()
	for _, p := range k.peers {
		canAct := p.nextAt(k) <= k.clock
		if canAct && k.deviate("meanwhile", "nothing happens", "the peer acts") == 1 {
			p.act(k)
			return
		}
	}
}

// isHidden: any call that could do its work can say would block all the same.
func (k *simKernel) isHidden(call string) bool {
	return k.deviate(call, "does its work", "would block") == 1
}

// shorten: of several bytes one may be moved.
func (k *simKernel) shorten(call string, n int) int {
	if n > 1 && k.deviate(call, "moves all", "moves one byte") == 1 {
		return 1
	}
	return n
}

// stale is how many deadlines may be stale at a time: one for each socket.
func (k *simKernel) stale() int {
	open := 0
	for _, s := range k.sockets {
		if s != nil {
			open++
		}
	}
	return max(open, 1)
}

// seat gives a socket the lowest number that is free.
func (k *simKernel) seat(s *simSocket) socket {
	for i := 3; ; i++ {
		if k.sockets[i] == nil {
			k.sockets[i] = s
			s.number = socket(i)
			return s.number
		}
	}
}

func (k *simKernel) open(to netip.Addr) (socket, error) {
	place := k.opened % len(k.world.fates)
	k.demand(to == simAddress(place).Addr(), "open: another address was due")
	fate := k.world.fates[place]
	f := k.judge.sawOpen(k, fate)
	k.opened++
	if fate.stage == "open" {
		k.judge.sawFailure(f, fate.err)
		return 0, fate.err
	}
	s := &simSocket{facts: f, peerName: simAddress(place), answerAt: never, capacity: 1 << 20}
	k.peers = append(k.peers, newSimPeer(s, k.world, f.connection))
	return k.seat(s), nil
}

func (k *simKernel) setNonblock(num socket) error {
	s := k.enter("setNonblock", num)
	s.phase = nonblocking
	if s.facts.fate.stage == "setNonblock" {
		k.judge.sawFailure(s.facts, s.facts.fate.err)
		return s.facts.fate.err
	}
	return nil
}

func (k *simKernel) connect(num socket, to netip.AddrPort) error {
	s := k.enter("connect", num)
	k.demand(s.phase == nonblocking, "connect: it would block, or is the second one")
	k.demand(to == s.peerName, "connect: to another address")
	fate := s.facts.fate
	s.phase = connecting
	s.facts.connectAt = k.clock
	if fate.stage == "connect" {
		k.judge.sawFailure(s.facts, fate.err)
		return fate.err
	}
	s.answerAt = later(k.clock, fate.after)
	s.answer = fate.err
	return nil
}

// connectResult tells a reset that has followed the connection, and then nobody else does.
func (k *simKernel) connectResult(num socket) (local, peer netip.AddrPort, err error) {
	s := k.enter("connectResult", num)
	k.meanwhile()
	k.demand(s.phase == connecting, "connectResult: there is no connect under way")
	if k.clock < s.answerAt || k.isHidden("connectResult") {
		s.facts.blockedAt = k.clock
		return local, peer, errWouldBlock
	}
	if s.answer != nil {
		k.judge.sawFailure(s.facts, s.answer)
		return local, peer, s.answer
	}
	s.phase = connected
	err = s.err
	s.err = nil
	if s.facts.fate.self {
		k.judge.sawFailure(s.facts, errSelf)
		return s.peerName, s.peerName, err
	}
	k.judge.sawConnected(k, s.facts, err)
	if err != nil {
		return local, peer, err
	}
	return simHere, s.peerName, nil
}

func (k *simKernel) read(num socket, p []byte) (n int, err error) {
	s := k.enter("read", num)
	k.meanwhile()
	k.demand(s.phase == connected && len(p) > 0, "read: of what is not connected, or of no bytes")
	switch {
	case k.ready(s)&readable == 0 || !s.dead && k.isHidden("read"): // the dead do not block
		err = errWouldBlock
	case k.fails("read"):
		err = errSim
	case len(s.inbox) > 0:
		n = k.shorten("read", copy(p, s.inbox))
		s.inbox = s.inbox[n:]
	case s.err != nil:
		err = s.err
		s.err = nil
	default:
		err = io.EOF
	}
	k.judge.sawRead(k, s.facts, p[:n], err)
	return n, err
}

func (k *simKernel) write(num socket, p []byte) (n int, err error) {
	s := k.enter("write", num)
	k.meanwhile()
	k.demand(s.phase == connected && len(p) > 0, "write: to what is not connected, or no bytes")
	k.demand(!s.fin, "write: after our FIN")
	switch {
	case s.err != nil:
		err = s.err
		s.err = nil
	case s.dead:
		err = errReset
	case k.ready(s)&writable == 0 || k.isHidden("write"):
		err = errWouldBlock
	case k.fails("write"):
		err = errSim
	default:
		n = k.shorten("write", min(len(p), s.capacity-len(s.outbox)))
		s.outbox = append(s.outbox, p[:n]...)
	}
	k.judge.sawWrite(k, s.facts, p, n, err)
	return n, err
}

func (k *simKernel) closeWrite(num socket) {
	s := k.enter("closeWrite", num)
	k.demand(s.phase == connected && !s.fin, "closeWrite: not connected, or the second one")
	s.fin = true
	k.judge.sawFin(k, s.facts)
}

func (k *simKernel) close(num socket) {
	s := k.enter("close", num)
	k.sockets[num] = nil
	if s.facts != nil {
		k.judge.sawClose(k, s.facts)
	}
	s.phase = fresh // and nobody acts on it any more
}

func (k *simKernel) listen(at netip.AddrPort) (socket, netip.AddrPort, error) {
	k.demand(k.listener == nil, "listen: twice")
	if k.world.noIPv6 && at.Addr().Is6() {
		return 0, at, errNoFamily
	}
	k.listener = &simSocket{phase: listening}
	return k.seat(k.listener), at, nil
}

func (k *simKernel) accept(num socket) (socket, netip.AddrPort, error) {
	s := k.enter("accept", num)
	k.meanwhile()
	k.demand(s.phase == listening, "accept: of what does not listen")
	if len(k.backlog) == 0 || k.isHidden("accept") {
		return 0, netip.AddrPort{}, errWouldBlock
	}
	isFailure := k.fails("accept")
	k.judge.sawAccept(k, isFailure)
	if isFailure {
		return 0, netip.AddrPort{}, errSim
	}
	accepted := k.backlog[0]
	k.backlog = k.backlog[1:]
	accepted.phase = connected
	return k.seat(accepted), accepted.peerName, nil
}

// ---- Peers ----

// peer is what is at the other end of a connection.
type peer interface {
	nextAt(k *simKernel) time.Duration // when it can do the next thing; never: others have to move
	act(k *simKernel)                  // does the next thing
}

// act is what a peer does.
type act uint8

const (
	stay    act = iota // does nothing any more
	alter              // takes a byte, and sends another one
	add                // sends a byte of its own
	guess              // sends the next byte before it has come
	slowly             // echoes each byte when half of the limit is over
	tooLate            // echoes each when the limit is over
	swallow            // takes a byte, and sends none
	finish             // sends its FIN
	reset              // what has arrived before stays readable, as on Linux
	lose               // resets, and what has arrived is lost, as on Windows
	giveUp             // the kernel finds that the peer has vanished
	cutOff             // a router says that it is out of reach
)

func (a act) String() string {
	return [...]string{"is silent", "alters it", "adds one", "guesses it", "echoes slowly",
		"echoes too late", "swallows it", "closes", "resets", "resets and loses", "vanishes",
		"is cut off"}[a]
}

// script is what a peer does: it echoes all bytes before one, and then does something else.
type script struct {
	at       int // the offset of that byte
	act      act
	then     act // what it does after it, if that is alter or add
	after    time.Duration
	afterFin bool // it waits for our FIN before that
	isNarrow bool // each buffer between here and there has room for one byte
}

// usual is the script of a correct echo server, for a stream of n bytes.
func usual(n int) script { return script{at: n, act: finish, afterFin: true} }

// simPeer is the peer of a client.
type simPeer struct {
	socket *simSocket
	script script
	stream string
	echoed int           // bytes
	since  time.Duration // when it could begin with the script's act; never if it cannot yet
}

func newSimPeer(s *simSocket, w *simWorld, connection int) *simPeer {
	p := &simPeer{socket: s, script: w.scripts[connection], stream: w.stream, since: never}
	if p.script.isNarrow {
		s.capacity = 1
	}
	return p
}

func (p *simPeer) nextAt(k *simKernel) time.Duration {
	s := p.socket
	hasByte := len(s.outbox) > 0 && (len(s.inbox) == 0 || !p.script.isNarrow)
	isConnected := s.phase == connected || s.phase == connecting && s.answer == nil
	switch {
	case !isConnected || k.clock < s.answerAt || s.dead:
		return never
	case p.echoed < p.script.at && hasByte:
		return k.clock
	case p.echoed < p.script.at || p.script.act == stay:
		return never
	}
	switch p.script.act {
	case alter, slowly, tooLate, swallow:
		if !hasByte {
			return never
		}
	case giveUp, cutOff: // it takes much longer to find that than to see that there is a connection
		if s.phase != connected {
			return never
		}
	}
	if p.script.afterFin && !s.fin {
		return never
	}
	if p.since == never {
		p.since = k.clock
	}
	return p.since + p.script.after
}

func (p *simPeer) act(k *simKernel) {
	if p.echoed < p.script.at {
		p.send(p.take())
		p.echoed++
		return
	}
	k.logf("%v: the peer %v", k.clock, p.script.act)
	p.since = never
	p.script = p.follow(p.script)
}

// follow does what the script says, and returns the script for what comes then.
func (p *simPeer) follow(s script) script {
	then := script{act: stay}
	switch s.act {
	case alter:
		p.send(p.take() ^ 1)
		then.act = s.then
	case add:
		p.send('X')
		then.act = s.then
	case guess:
		p.send(p.stream[p.echoed])
	case slowly, tooLate:
		p.send(p.take())
		p.echoed++
		then = s
		then.at++
		if then.at == len(p.stream) {
			then = usual(then.at)
		}
	case swallow:
		p.take()
		then = s
	case finish:
		p.socket.eof = true
	case reset:
		p.die(errReset)
	case lose:
		p.socket.inbox = nil
		p.die(errReset)
	case giveUp:
		p.die(errTimedOut)
	case cutOff:
		p.die(errUnreachable)
	}
	return then
}

func (p *simPeer) take() byte {
	b := p.socket.outbox[0]
	p.socket.outbox = p.socket.outbox[1:]
	return b
}

func (p *simPeer) send(b byte) { p.socket.inbox = append(p.socket.inbox, b) }

func (p *simPeer) die(err error) {
	p.socket.dead = true
	p.socket.err = err
}

// simClient is a client of the server.
type simClient struct {
	arriveAt time.Duration
	bytes    int // to send
	ending   act // after them: stay, finish or reset
	readFrom time.Duration

	socket *simSocket
	isDone bool // the ending was done
	sent   int
	back   int
}

func (c *simClient) nextAt(k *simKernel) time.Duration {
	switch {
	case c.socket == nil:
		return c.arriveAt
	case c.socket.dead:
		return never
	case c.sent < c.bytes || c.ending != stay && !c.isDone:
		return k.clock
	case len(c.socket.outbox) > 0:
		return max(k.clock, c.readFrom)
	}
	return never
}

func (c *simClient) act(k *simKernel) {
	s := c.socket
	switch {
	case s == nil:
		c.socket = &simSocket{capacity: 1 << 20, peerName: simHere, facts: k.judge.sawArrival(c)}
		if c.readFrom > 0 {
			c.socket.capacity = 1
		}
		k.backlog = append(k.backlog, c.socket)
	case c.sent < c.bytes:
		s.inbox = append(s.inbox, 'a'+byte(c.sent))
		c.sent++
	case c.ending == finish && !c.isDone:
		s.eof = true
		c.isDone = true
	case c.ending == reset && !c.isDone:
		s.dead = true
		s.err = errReset
		c.isDone = true
	default:
		k.demand(s.outbox[0] == 'a'+byte(c.back), "what the server returns is not what came")
		s.outbox = s.outbox[1:]
		c.back++
	}
}
