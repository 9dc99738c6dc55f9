package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Whole runs on a stage: a kernel, peers and a clock that follow a script, so that every word and
// every figure of what is printed is known beforehand. Each call of the kernel takes a
// millisecond, and a write to standard output seven: no figure may hold the time of a call that is
// not its own. What the simulation draws by chance stands here once, to the last digit.

// stage is the kernel. Time passes only in its calls and in wait.
type stage struct {
	t         testing.TB
	now       time.Duration
	plans     []plan // what will happen, in order of time
	socks     map[socket]*actor
	watched   map[socket]readiness
	last      socket
	limit     int // of sockets that are open; 0: none
	pending   bool
	waits     int
	peers     map[string]func(c *actor)
	arrive    []*actor // at the listener
	listening int
	busy      map[string]error // why an address cannot be listened at
	calls     []string         // with their sizes
	interrupt func(status int) // as a signal would
	joined    bool             // whoever connects meets the listener
	looks     int              // at the path of some socket
}

type plan struct {
	at   time.Duration
	does func()
}

// actor is a socket, and the script of its peer.
type actor struct {
	stage       *stage
	socket      socket
	local, peer netip.AddrPort
	listener    bool
	answered    bool
	answer      error
	in          []byte // came from the peer, and is not read
	fin         bool   // comes behind it
	reset       error  // comes at once, and once
	spent       bool   // reset was told
	jammed      error  // of every write
	nonblock    bool
	room        int // how much a write takes; each takes from it
	unacked     int
	resent      int
	finOut      bool
	got         []byte
	takes       func(p []byte) // is told of what was written
	ends        func()         // is told of our FIN
	hangsUp     func()         // is told of our close
	pendingErr  error
}

const stageCall = time.Millisecond

func newStage(t testing.TB) *stage {
	return &stage{
		t:       t,
		socks:   make(map[socket]*actor),
		watched: make(map[socket]readiness),
		peers:   make(map[string]func(*actor)),
		busy:    make(map[string]error),
	}
}

func (k *stage) call(what string, args ...any) {
	k.now += stageCall
	k.calls = append(k.calls, fmt.Sprintf(what, args...))
	k.due()
}

// made are the calls of a name, or of a name and what it was called with.
func (k *stage) made(call string) (made []string) {
	for _, c := range k.calls {
		if c == call || strings.HasPrefix(c, call+" ") {
			made = append(made, c)
		}
	}
	return made
}

// in has something happen after d.
func (k *stage) in(d time.Duration, does func()) {
	k.plans = append(k.plans, plan{k.now + d, does})
	slices.SortStableFunc(k.plans, func(a, b plan) int { return cmp.Compare(a.at, b.at) })
}

// due does what is due by now.
func (k *stage) due() {
	for len(k.plans) > 0 && k.plans[0].at <= k.now {
		does := k.plans[0].does
		k.plans = k.plans[1:]
		does()
	}
}

// ---- The poller ----

func (k *stage) change(s socket, was, want readiness) error {
	if k.watched[s] != was || was == want {
		k.t.Errorf("change(%v, %v, %v): it is watched for %v", s, was, want, k.watched[s])
	}
	if k.socks[s] == nil {
		k.t.Errorf("change of %v, which is closed", s)
	}
	k.watched[s] = want
	if want == 0 {
		delete(k.watched, s)
	}
	return nil
}

func (k *stage) forget(s socket) {
	if k.socks[s] == nil {
		k.t.Errorf("forget %v, which is closed", s)
	}
	delete(k.watched, s)
}

func (k *stage) ready(a *actor) (ready readiness) {
	if len(a.in) > 0 || a.fin || a.reset != nil && !a.spent || a.listener && len(k.arrive) > 0 {
		ready |= readable
	}
	if !a.listener && a.answered && (a.room > 0 || a.reset != nil) {
		ready |= writable
	}
	return ready & k.watched[a.socket]
}

func (k *stage) found(events []event) (n int) {
	for s := socket(1); s <= k.last; s++ {
		a := k.socks[s]
		if a == nil || k.ready(a) == 0 {
			continue
		}
		events[n] = event{s, k.ready(a)}
		n++
	}
	return n
}

func (k *stage) wait(events []event, ms int) (int, error) {
	k.waits++
	if k.waits > 20000 {
		panic("the loop spins")
	}
	end := k.now + time.Duration(ms)*time.Millisecond
	for {
		n := k.found(events)
		if n > 0 || k.pending {
			k.pending = false
			return n, nil
		}
		if len(k.plans) == 0 && ms < 0 {
			panic("the loop waits for ever")
		}
		if ms >= 0 && (len(k.plans) == 0 || k.plans[0].at > end) {
			k.now = max(k.now, end)
			return 0, nil
		}
		k.now = max(k.now, k.plans[0].at)
		k.due()
	}
}

func (k *stage) wake() { k.pending = true }

// ---- The sockets ----

func (k *stage) open(peer netip.AddrPort) *actor {
	k.last++
	a := &actor{stage: k, socket: k.last, peer: peer, room: 1 << 30}
	a.local = netip.AddrPortFrom(netip.MustParseAddr("192.0.2.200"), 40000+uint16(k.last))
	k.socks[a.socket] = a
	return a
}

func (k *stage) openSocket(to netip.AddrPort, from netip.Addr) (socket, error) {
	k.call("openSocket %v", to)
	if k.limit > 0 && len(k.socks) >= k.limit {
		return 0, fmt.Errorf("%w (the limit is %d)", errTooManyFiles, k.limit)
	}
	return k.open(to).socket, nil
}

func (k *stage) setNonblock(s socket) error {
	k.call("setNonblock")
	k.socks[s].nonblock = true
	return nil
}

// connect starts the peer's script, which says how it ends; without one it never does.
func (k *stage) connect(s socket, to netip.AddrPort) error {
	k.call("connect %v", to)
	if !k.socks[s].nonblock {
		k.t.Errorf("connect to %v sleeps: its socket is in blocking mode", to)
	}
	script := k.peers[to.String()]
	if script != nil {
		script(k.socks[s])
	}
	if k.joined {
		k.join(k.socks[s])
	}
	return k.socks[s].refusedAtOnce()
}

// join makes the other end of c a client of the listener.
func (k *stage) join(c *actor) {
	other := &actor{stage: k, peer: c.local, room: 1 << 30}
	k.arrive = append(k.arrive, other)
	c.answered = true
	for a, b := range map[*actor]*actor{c: other, other: c} {
		a.takes = func(p []byte) { b.in = append(b.in, p...) }
		a.ends = func() { b.fin = true }
		a.hangsUp = func() { b.fin = true }
	}
}

func (a *actor) refusedAtOnce() error {
	if a.pendingErr != nil && !a.answered {
		return a.pendingErr
	}
	return nil
}

func (k *stage) connectResult(s socket) (local, peer netip.AddrPort, err error) {
	k.call("connectResult")
	a := k.socks[s]
	if !a.answered {
		return local, peer, errWouldBlock
	}
	return a.local, a.peer, a.answer
}

func (k *stage) read(s socket, p []byte) (int, error) {
	a := k.socks[s]
	n := copy(p, a.in)
	k.call("read %d of %d", n, len(p))
	a.in = a.in[n:]
	switch {
	case n > 0:
		return n, nil
	case a.reset != nil && !a.spent:
		a.spent = true
		return 0, a.reset
	case a.fin || a.reset != nil:
		return 0, io.EOF
	}
	return 0, errWouldBlock
}

func (k *stage) write(s socket, p []byte) (int, error) {
	a := k.socks[s]
	k.call("write %d", len(p))
	if a.jammed != nil {
		return 0, a.jammed
	}
	if a.reset != nil {
		a.spent = true
		return 0, a.reset
	}
	n := min(len(p), a.room)
	if n == 0 {
		return 0, errWouldBlock
	}
	a.room -= n
	a.unacked += n
	a.got = append(a.got, p[:n]...)
	if a.takes != nil {
		a.takes(slices.Clone(p[:n]))
	}
	return n, nil
}

func (k *stage) pendingError(s socket) error {
	a := k.socks[s]
	err := a.pendingErr
	a.pendingErr = nil
	return err
}

func (k *stage) path(s socket) (unacknowledged, retransmits int) {
	k.looks++
	return k.socks[s].unacked, k.socks[s].resent
}

func (k *stage) closeWrite(s socket) error {
	k.call("closeWrite")
	a := k.socks[s]
	if a.finOut {
		k.t.Error("a second FIN")
	}
	a.finOut = true
	a.unacked++
	if a.ends != nil {
		a.ends()
	}
	return nil
}

func (k *stage) close(s socket) error {
	k.call("close")
	if k.watched[s] != 0 {
		k.t.Errorf("%v is closed while it is watched for %v", s, k.watched[s])
	}
	if k.socks[s].hangsUp != nil {
		k.socks[s].hangsUp()
	}
	delete(k.socks, s)
	return nil
}

func (k *stage) listen(at netip.AddrPort) (socket, netip.AddrPort, error) {
	k.call("listen %v", at)
	err := k.busy[at.String()]
	if err != nil {
		return 0, netip.AddrPort{}, err
	}
	if at.Port() == 0 {
		at = netip.AddrPortFrom(at.Addr(), 50001+uint16(k.listening))
		k.listening++
	}
	a := k.open(at)
	a.listener = true
	return a.socket, at, nil
}

func (k *stage) accept(s socket) (socket, netip.AddrPort, error) {
	k.call("accept")
	if len(k.arrive) == 0 {
		return 0, netip.AddrPort{}, errWouldBlock
	}
	if k.limit > 0 && len(k.socks) >= k.limit {
		return 0, netip.AddrPort{}, fmt.Errorf("%w (the limit is %d)", errTooManyFiles, k.limit)
	}
	c := k.arrive[0]
	k.arrive = k.arrive[1:]
	if c.answer != nil {
		return 0, netip.AddrPort{}, c.answer
	}
	k.last++
	c.socket = k.last
	c.answered = true
	k.socks[c.socket] = c
	return c.socket, c.peer, nil
}

// The poller is closed by a name that the sockets have too.
type stagePoller struct{ *stage }

func (stagePoller) close() error { return nil }

// ---- What peers do ----

// accepts answers connect after d.
func (a *actor) accepts(d time.Duration) *actor { return a.answers(d, nil) }

func (a *actor) answers(d time.Duration, err error) *actor {
	a.stage.in(d, func() {
		a.answered = true
		a.answer = err
	})
	return a
}

// sends has text come after d.
func (a *actor) sends(d time.Duration, text string) *actor {
	a.stage.in(d, func() { a.in = append(a.in, text...) })
	return a
}

func (a *actor) finishes(d time.Duration) *actor {
	a.stage.in(d, func() { a.fin = true })
	return a
}

func (a *actor) resets(d time.Duration) *actor {
	a.stage.in(d, func() {
		a.reset = errReset
		a.in = nil
	})
	return a
}

// echoes gives back all that is written, each piece d later, and our FIN likewise.
func (a *actor) echoes(d time.Duration) *actor {
	a.takes = func(p []byte) {
		a.sends(d, string(p))
		a.acks(d, len(p))
	}
	a.ends = func() {
		a.finishes(d)
		a.acks(d, 1)
	}
	return a
}

func (a *actor) acks(d time.Duration, n int) *actor {
	a.stage.in(d, func() { a.unacked -= n })
	return a
}

// ---- Runs ----

// slowOutput is a standard output whose writes take their time.
type slowOutput struct {
	stage *stage
	takes time.Duration
	text  strings.Builder
	err   error
}

func (o *slowOutput) Write(p []byte) (int, error) {
	o.stage.now += o.takes
	if o.err != nil {
		return 0, o.err
	}
	return o.text.Write(p)
}

// stageInput is a standard input whose pieces come at their times.
type stageInput struct {
	pieces []string
	err    error // behind them; nil: EOF
}

func (in *stageInput) Read(p []byte) (int, error) {
	if len(in.pieces) == 0 {
		if in.err != nil {
			return 0, in.err
		}
		return 0, io.EOF
	}
	n := copy(p, in.pieces[0])
	in.pieces[0] = in.pieces[0][n:]
	if in.pieces[0] == "" {
		in.pieces = in.pieces[1:]
	}
	return n, nil
}

// act is one run on a stage. What has to come of it stands in testdata/acts.txt.
type act struct {
	name   string
	args   string
	script func(k *stage, w *world)
}

const actPeer = "192.0.2.1:7"

// stageTime is what the wall's clock shows when the stage's shows 0.
var stageTime = time.Date(2026, 11, 24, 12, 0, 0, 0, time.FixedZone("", 3600))

// run plays the act, and returns what the standard streams got. What is to run beside the loop
// runs a little later, in its goroutine.
func (a act) run(t *testing.T) (stdout string, status int, lines string) {
	t.Helper()
	return a.runOn(newStage(t))
}

func (a act) runOn(k *stage) (stdout string, status int, lines string) {
	t := k.t
	out := &slowOutput{stage: k, takes: 7 * time.Millisecond}
	var stderr strings.Builder
	w := world{
		poller:  stagePoller{k},
		sockets: k,
		clock:   func() time.Duration { return k.now },
		wall:    func() time.Time { return stageTime.Add(k.now) },
		spawn:   func(f func()) { k.in(3*stageCall, f) },
		resolve: func(string, string, time.Duration) ([]netip.Addr, error) { return nil, errNoName },
		stdin:   &stageInput{},
		stdout:  out,
		stderr:  &stderr,
	}
	a.script(k, &w)
	o, err := parse(strings.Fields(a.args))
	if err != nil {
		t.Fatal(err)
	}
	s := newSession(o, w)
	k.interrupt = func(status int) {
		interrupt(s, status)
		k.pending = true
	}
	status = s.run()
	if s.loop.turning.TryLock() {
		t.Error("a signal could report a second time")
	}
	for s, left := range k.socks {
		if !left.peer.IsValid() {
			continue // the act's own
		}
		t.Errorf("socket %v to %v is left open", s, left.peer)
	}
	pid := strconv.Itoa(os.Getpid())
	return out.text.String(), status, strings.ReplaceAll(stderr.String(), "("+pid+")", "(1)")
}

// text is how an act stands in testdata/acts.txt.
func (a act) text(t *testing.T) string {
	stdout, status, lines := a.run(t)
	text := fmt.Sprintf("== %s\n$ echomux %s\n%s", a.name, a.args, lines)
	if stdout != "" {
		text += fmt.Sprintf("standard output: %s\n", quoted([]byte(stdout)))
	}
	return text + fmt.Sprintf("status %d\n\n", status)
}

const actsFile = "testdata/acts.txt"

var actsUpdate = flag.Bool("acts.update", false, "write "+actsFile+" anew, to be read over")

// TestActs compares each run with testdata/acts.txt, to the last letter.
func TestActs(t *testing.T) {
	written, err := os.ReadFile(actsFile)
	if err != nil {
		t.Fatal(err)
	}
	all := ""
	acts := slices.Concat(dialActs, echoActs, eofActs, roundActs, manyActs, serverActs)
	for _, a := range acts {
		t.Run(a.name, func(t *testing.T) {
			if strings.Contains(a.name, "zone") {
				faulty(t, "qemu", "some targets know no interfaces")
				faulty(t, "qemu-mips", "some targets know no interfaces")
			}
			text := a.text(t)
			all += text
			before, _, found := strings.Cut(string(written), text)
			if *actsUpdate || found && (before == "" || strings.HasSuffix(before, "\n\n")) {
				return
			}
			t.Error(difference(string(written), a.name, text))
		})
	}
	if *actsUpdate {
		os.WriteFile(actsFile, []byte(all), 0o644)
		return
	}
	for line := range strings.Lines(string(written)) {
		name, isHeading := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "== ")
		if isHeading && !slices.ContainsFunc(acts, func(a act) bool { return a.name == name }) {
			t.Errorf("%s: nobody plays %q", actsFile, name)
		}
	}
}

// difference is the first line in which an act is not as it is written, and then all of it.
func difference(written, name, text string) string {
	_, was, _ := strings.Cut(written, "== "+name+"\n")
	was, _, _ = strings.Cut("== "+name+"\n"+was, "\n\n")
	want := strings.Split(was, "\n")
	got := strings.Split(text, "\n")
	i := 0
	for i < min(len(got), len(want)) && got[i] == want[i] {
		i++
	}
	wanted := "nothing more"
	if i < len(want) {
		wanted = want[i]
	}
	return fmt.Sprintf("%q, want %q (%s):\n%s", got[min(i, len(got)-1)], wanted, actsFile, text)
}

// at is a script for the one peer of most acts.
func at(script func(c *actor)) func(*stage, *world) {
	return func(k *stage, w *world) { k.peers[actPeer] = script }
}

var errDisk = errors.New("disk on fire")

var dialActs = []act{
	{"-until connect", "-until connect 192.0.2.1 7", at(func(c *actor) {
		c.accepts(20 * stageCall)
	})},
	{"reset as it was connected", "-v 192.0.2.1 7 hello", at(func(c *actor) {
		c.answers(20*stageCall, errReset).resets(0)
	})},
	{"reset as it was connected, with bytes to read", "-until eof 192.0.2.1 7 hello",
		at(func(c *actor) {
			c.answers(20*stageCall, errReset).sends(0, "421 busy\n").finishes(0)
		})},
	{"refused", "192.0.2.1 7 hello", at(func(c *actor) { c.answers(20*stageCall, errRefused) })},
	{"refused by connect itself", "-v 192.0.2.1 7 hello", at(func(c *actor) {
		c.pendingErr = os.NewSyscallError("connect", errors.New("no route to host"))
	})},
	{"a spurious event while connect is pending", "-connect-timeout 1s 192.0.2.1 7 hello",
		at(func(c *actor) {
			c.room = 0
			c.stage.in(100*stageCall, func() {
				c.reset = errWouldBlock
				c.answered = true
				c.answer = errWouldBlock
			})
			c.stage.in(101*stageCall, func() { c.reset = nil; c.answered = false })
		})},
	{"connect timeout", "-connect-timeout 1s 192.0.2.1 7 hello", at(func(c *actor) {})},
	{"connect timeout just missed", "-connect-timeout 1s 192.0.2.1 7 hello", at(func(c *actor) {
		c.accepts(995 * stageCall).echoes(0)
	})},
	{"connected to itself", "192.0.2.1 7 hello", at(func(c *actor) {
		c.accepts(0)
		c.local = c.peer
	})},
	{"a name with three addresses", "-v board.test 7 hello", func(k *stage, w *world) {
		found(k, w, "192.0.2.9", "::ffff:192.0.2.8", "192.0.2.9", "192.0.2.1")
		k.peers["192.0.2.9:7"] = func(c *actor) { c.answers(5*stageCall, errRefused) }
		k.peers["192.0.2.8:7"] = func(c *actor) {}
		k.peers[actPeer] = func(c *actor) { c.accepts(0).echoes(0) }
	}},
	{"all of its addresses fail, one by timeout", "-connect-timeout 3s board.test 7 hello",
		func(k *stage, w *world) {
			found(k, w, "192.0.2.9", "192.0.2.8")
			k.peers["192.0.2.8:7"] = func(c *actor) {
				c.answers(5*stageCall, os.NewSyscallError("connect", errDisk))
			}
		}},
	{"all of its addresses fail, one refuses", "-connect-timeout 3s board.test 7 hello",
		func(k *stage, w *world) {
			found(k, w, "192.0.2.9", "192.0.2.8")
			k.peers["192.0.2.8:7"] = func(c *actor) { c.answers(5*stageCall, errRefused) }
		}},
	{"each address has its share, and a second at least", "-connect-timeout 2s board.test 7 hello",
		func(k *stage, w *world) {
			found(k, w, "192.0.2.9", "192.0.2.8", "192.0.2.7", "192.0.2.6")
		}},
	{"no address of the family", "-6 board.test 7 hello",
		func(k *stage, w *world) { found(k, w, "192.0.2.9") }},
	{"a zone that there is not", "board.test 7 hello", func(k *stage, w *world) {
		found(k, w, "fe80::1%nosuchzone")
	}},
	{"no such name", "board.test 7 hello", func(k *stage, w *world) {}},
	{"a name server that refuses", "board.test 7 hello", func(k *stage, w *world) {
		w.resolve = func(string, string, time.Duration) ([]netip.Addr, error) { return nil, errDisk }
	}},
	{"no descriptor for the name", "board.test 7 hello", func(k *stage, w *world) {
		w.resolve = func(string, string, time.Duration) ([]netip.Addr, error) {
			return nil, errTooManyFiles
		}
	}},
	{"a name that is slow", "-connect-timeout 2ms board.test 7 hello",
		func(k *stage, w *world) { found(k, w, "192.0.2.1") }},
	{"a long name in an error", strings.Repeat("abcdefghi.",
		25) + "test 7 hello", func(k *stage, w *world) {}},
	{"no descriptor", "192.0.2.1 7 hello", func(k *stage, w *world) {
		k.limit = 1
		k.open(netip.AddrPort{})
	}},
	{"no port", "192.0.2.1 7 hello", at(func(c *actor) { c.pendingErr = errNoPort })},
	{"no memory", "192.0.2.1 7 hello", at(func(c *actor) { c.pendingErr = errNoMemory })},
	{"no address of -source", "-source 192.0.2.77 192.0.2.1 7 hello",
		at(func(c *actor) { c.pendingErr = errNoAddress })},
	{"no address from which it can be reached", "192.0.2.1 7 hello",
		at(func(c *actor) { c.pendingErr = errNoAddress })},
}

// found is what the name server says.
func found(k *stage, w *world, addrs ...string) {
	w.resolve = func(host, family string, limit time.Duration) (all []netip.Addr, err error) {
		k.calls = append(k.calls, fmt.Sprint("resolve ", host, family, limit))
		for _, a := range addrs {
			all = append(all, netip.MustParseAddr(a))
		}
		return all, nil
	}
}

// typed has standard input give pieces, each of which takes a while.
func typed(w *world, kind inputKind, pieces ...string) {
	w.stdin = &stageInput{pieces: pieces}
	w.kind = kind
}

// play is a script for the one peer and for standard input.
func play(kind inputKind, pieces []string, script func(c *actor)) func(*stage, *world) {
	return func(k *stage, w *world) {
		typed(w, kind, pieces...)
		k.peers[actPeer] = script
	}
}

var echoActs = []act{
	{"a spurious event while draining, and a byte too many", "192.0.2.1 7 hello", at(func(c *actor) {
		c.accepts(0).echoes(0)
		c.ends = func() {
			c.stage.in(100*stageCall, func() { c.reset = errWouldBlock })
			c.stage.in(200*stageCall, func() {
				c.reset = nil
				c.in = []byte("x")
			})
		}
	})},
	{"a write fails, and then a read", "-v 192.0.2.1 7 hello", at(func(c *actor) {
		c.accepts(0)
		c.jammed = errReset
		c.stage.in(50*stageCall, func() { c.reset = errTimedOut })
	})},
	{"echo", "192.0.2.1 7 hello",
		at(func(c *actor) { c.accepts(20 * stageCall).echoes(30 * stageCall) })},
	{"echo, quiet", "-q 192.0.2.1 7 hello",
		at(func(c *actor) { c.accepts(20 * stageCall).echoes(30 * stageCall) })},
	{"echo, every step", "-v 192.0.2.1 7 hello world", at(func(c *actor) {
		c.accepts(20 * stageCall).echoes(30 * stageCall)
	})},
	{"a byte differs", "192.0.2.1 7 hello",
		at(func(c *actor) { c.accepts(0).sends(10*stageCall, "heLlo\n") })},
	{"the first byte differs", "192.0.2.1 7 hello",
		at(func(c *actor) { c.accepts(0).sends(10*stageCall, "220 smtp\n") })},
	{"more than was sent", "192.0.2.1 7 hello",
		at(func(c *actor) { c.accepts(0).sends(10*stageCall, "hello\nX") })},
	{"before anything was sent", "192.0.2.1 7", at(func(c *actor) { c.accepts(0).sends(0, "X") })},
	{"a byte too many in the drain", "192.0.2.1 7 hello", at(func(c *actor) {
		c.accepts(0).echoes(0)
		c.ends = func() { c.sends(400*stageCall, "XY") }
	})},
	{"a reset in the drain", "-v 192.0.2.1 7 hello", at(func(c *actor) {
		c.accepts(0).echoes(0)
		c.ends = func() { c.resets(400 * stageCall) }
	})},
	{"a peer that never closes", "-v 192.0.2.1 7 hello", at(func(c *actor) {
		c.accepts(0).echoes(0)
		c.ends = nil
	})},
	{"closed early", "192.0.2.1 7 hello", at(func(c *actor) {
		c.accepts(0).sends(10*stageCall, "hel").finishes(20 * stageCall)
	})},
	{"closed with the last byte", "-v 192.0.2.1 7 hello", at(func(c *actor) {
		c.accepts(0).sends(10*stageCall, "hello\n").finishes(10 * stageCall)
	})},
	{"reset", "-v 192.0.2.1 7 hello", at(func(c *actor) {
		c.accepts(0).sends(10*stageCall, "hel").resets(20 * stageCall)
	})},
	{"the kernel gives up", "192.0.2.1 7 hello", at(func(c *actor) {
		c.accepts(0).sends(10*stageCall, "hel")
		c.stage.in(50*stageCall, func() { c.reset = errTimedOut })
	})},
	{"a write is reset, and the answer is read", "-v 192.0.2.1 7 hello", at(func(c *actor) {
		c.accepts(0)
		c.room = 2
		c.stage.in(20*stageCall, func() { c.in = []byte("he"); c.reset = errReset })
	})},
	{"a write fails, and the peer is silent", "-io-timeout 1s 192.0.2.1 7 hello", at(func(c *actor) {
		c.accepts(0)
		c.jammed = errNoMemory
	})},
	{"a write fails, and the peer ends", "-io-timeout 1s 192.0.2.1 7 hello", at(func(c *actor) {
		c.accepts(0).finishes(500 * stageCall)
		c.jammed = errNoMemory
	})},
	{"silence", "-io-timeout 2s 192.0.2.1 7 hello", at(func(c *actor) {
		c.accepts(0).sends(1000*stageCall, "hel")
		c.resent = 2
	})},
	{"an answer at the last moment", "-io-timeout 2s 192.0.2.1 7 hello", at(func(c *actor) {
		c.accepts(0).sends(2002*stageCall, "hello\n")
	})},
	{"the kernel takes little", "-v 192.0.2.1 7 hello", at(func(c *actor) {
		c.accepts(0).echoes(10 * stageCall)
		c.room = 2
		c.stage.in(50*stageCall, func() { c.room = 100 })
	})},
	{"the kernel takes nothing more", "-io-timeout 1s 192.0.2.1 7 hello", at(func(c *actor) {
		c.accepts(0).echoes(10 * stageCall)
		c.room = 2
	})},
	{"standard output fails", "192.0.2.1 7 hello", func(k *stage, w *world) {
		w.stdout.(*slowOutput).err = errDisk
		at(func(c *actor) { c.accepts(0).echoes(0) })(k, w)
	}},
	{"standard output fails, and a byte differs", "192.0.2.1 7 hello", func(k *stage, w *world) {
		w.stdout.(*slowOutput).err = errDisk
		at(func(c *actor) { c.accepts(0).sends(0, "heLlo\n") })(k, w)
	}},
	{"standard output is slow", "-io-timeout 1s 192.0.2.1 7 hello", func(k *stage, w *world) {
		w.stdout.(*slowOutput).takes = 5 * time.Second
		at(func(c *actor) { c.accepts(0).sends(0, "hel").sends(5500*stageCall, "lo\n") })(k, w)
	}},
	{"standard input as a file", "-v 192.0.2.1 7",
		play(regularFile, []string{"hello\n", "world\n"}, func(c *actor) {
			c.accepts(0).echoes(5 * stageCall)
		})},
	{"standard input as a pipe", "-v 192.0.2.1 7",
		play(otherInput, []string{"hello\n", "world\n"}, func(c *actor) {
			c.accepts(0).echoes(5 * stageCall)
		})},
	{"standard input is empty", "192.0.2.1 7",
		play(otherInput, nil, func(c *actor) { c.accepts(0).echoes(0) })},
	{"standard input fails", "192.0.2.1 7", func(k *stage, w *world) {
		w.stdin = &stageInput{pieces: []string{"hello\n"}, err: errDisk}
		at(func(c *actor) { c.accepts(0).echoes(0) })(k, w)
	}},
	{"closed before standard input ended", "-io-timeout 2s 192.0.2.1 7", func(k *stage, w *world) {
		slowInput(k, w, 4000*stageCall, "hello\n")
		k.peers[actPeer] = func(c *actor) { c.accepts(0).echoes(0).finishes(4500 * stageCall) }
	}},
	{"closed as standard input ended", "-io-timeout 2s 192.0.2.1 7", func(k *stage, w *world) {
		slowInput(k, w, 1000*stageCall, "hello\n")
		k.peers[actPeer] = func(c *actor) { c.accepts(0).echoes(0).finishes(1500 * stageCall) }
	}},
	{"closed, and standard input went on", "-io-timeout 2s 192.0.2.1 7", func(k *stage, w *world) {
		slowInput(k, w, 1000*stageCall, "hello\n", "world\n")
		k.peers[actPeer] = func(c *actor) { c.accepts(0).echoes(0).finishes(1500 * stageCall) }
	}},
	{"a user who thinks", "-io-timeout 1s 192.0.2.1 7", func(k *stage, w *world) {
		slowInput(k, w, 4000*stageCall, "hello\n")
		k.peers[actPeer] = func(c *actor) { c.accepts(0).echoes(0) }
	}},
	{"a megabyte and a half", "192.0.2.1 7",
		play(regularFile, []string{strings.Repeat("0123456789abcdef", 98304)}, func(c *actor) {
			c.accepts(0).echoes(0)
		})},
	{"progress", "-progress 1s -io-timeout 10s 192.0.2.1 7 hello", at(func(c *actor) {
		c.accepts(0).sends(1500*stageCall, "hel").sends(4200*stageCall, "lo\n")
		c.resent = 1
	})},
}

// slowInput has each read of standard input take pause.
func slowInput(k *stage, w *world, pause time.Duration, pieces ...string) {
	typed(w, otherInput, pieces...)
	w.spawn = func(f func()) { k.in(pause, f) }
}

var eofActs = []act{
	{"eof", "-v -until eof 192.0.2.1 7 hello", at(func(c *actor) {
		c.accepts(0).echoes(10 * stageCall)
	})},
	{"eof: a peer that ends first", "-v -until eof 192.0.2.1 7",
		play(otherInput, []string{"hello\n"}, func(c *actor) {
			c.accepts(0).sends(0, "bye\n").finishes(stageCall)
			c.takes = func(p []byte) { c.acks(40*stageCall, len(p)) }
			c.ends = func() { c.acks(95*stageCall, 1) }
		})},
	{"eof: not acknowledged", "-io-timeout 1s -until eof 192.0.2.1 7 hello", at(func(c *actor) {
		c.accepts(0).finishes(5 * stageCall)
	})},
	{"eof: acknowledged slowly", "-io-timeout 1s -until eof 192.0.2.1 7 hello", at(func(c *actor) {
		c.accepts(0).acks(900*stageCall, 3).acks(1800*stageCall, 3).acks(2700*stageCall, 1)
		c.finishes(3500 * stageCall)
	})},
	{"eof: the peer says nothing", "-io-timeout 1s -until eof 192.0.2.1 7 hello",
		at(func(c *actor) {
			c.accepts(0).acks(10*stageCall, 7)
		})},
	{"eof: reset after its FIN", "-until eof 192.0.2.1 7 hello", at(func(c *actor) {
		c.accepts(0).finishes(5 * stageCall)
		c.stage.in(55*stageCall, func() { c.pendingErr = errReset })
	})},
	{"eof: the kernel gives up after its FIN", "-until eof 192.0.2.1 7 hello", at(func(c *actor) {
		c.accepts(0).finishes(5 * stageCall)
		c.stage.in(55*stageCall, func() { c.pendingErr = errTimedOut })
	})},
	{"eof: reset", "-until eof 192.0.2.1 7 hello", at(func(c *actor) {
		c.accepts(0).sends(5*stageCall, "421 busy\n").resets(100 * stageCall)
	})},
	{"eof: a broken write, and what came before", "-until eof 192.0.2.1 7",
		func(k *stage, w *world) {
			slowInput(k, w, 100*stageCall, "hello\n", "world\n")
			k.peers[actPeer] = func(c *actor) {
				c.accepts(0)
				c.stage.in(150*stageCall, func() { c.in = []byte("421 busy\n"); c.reset = errReset })
			}
		}},
	{"eof: a write fails, and the peer is silent", "-io-timeout 1s -until eof 192.0.2.1 7 hello",
		at(func(c *actor) {
			c.accepts(0).sends(500*stageCall, "421 busy\n")
			c.jammed = errNoMemory
		})},
	{"eof: a write fails, and the peer ends", "-io-timeout 1s -until eof 192.0.2.1 7 hello",
		at(func(c *actor) {
			c.accepts(0).sends(100*stageCall, "421 busy\n").finishes(500 * stageCall)
			c.jammed = errNoMemory
		})},
	{"eof: input that is silent after the peer's end", "-io-timeout 2s -until eof 192.0.2.1 7",
		func(k *stage, w *world) {
			slowInput(k, w, 3000*stageCall, "hello\n")
			k.peers[actPeer] = func(c *actor) { c.accepts(0).finishes(500 * stageCall) }
		}},
	{"eof: input that goes on after the peer's end", "-io-timeout 2s -until eof 192.0.2.1 7",
		func(k *stage, w *world) {
			slowInput(k, w, 1500*stageCall, "hello\n", "world\n")
			k.peers[actPeer] = func(c *actor) {
				c.accepts(0).finishes(500 * stageCall)
				c.takes = func(p []byte) { c.acks(0, len(p)) }
				c.ends = func() { c.acks(0, 1) }
			}
		}},
	{"eof: a terminal, and the peer's end", "-v -until eof 192.0.2.1 7", func(k *stage, w *world) {
		slowInput(k, w, 3000*stageCall, "hello\n")
		w.kind = terminalInput
		k.peers[actPeer] = func(c *actor) {
			c.accepts(0).finishes(500 * stageCall)
			c.ends = func() { c.acks(0, 1) }
		}
	}},
	{"eof: a broken write tells of the reset", "-v -until eof 192.0.2.1 7", func(k *stage, w *world) {
		slowInput(k, w, 100*stageCall, "hello\n", "world\n")
		k.peers[actPeer] = func(c *actor) {
			c.accepts(0)
			c.stage.in(150*stageCall, func() {
				c.in = []byte("421 busy\n")
				c.reset = errReset
				c.spent = true // by the write
			})
			c.finishes(250 * stageCall)
		}
	}},
	{"eof: three megabytes, and an answer meanwhile", "-v -until eof 192.0.2.1 7",
		play(regularFile, []string{strings.Repeat("0123456789abcdef", 196608)}, func(c *actor) {
			c.accepts(0).sends(0, "go on\n").finishes(50 * stageCall)
			c.takes = func(p []byte) { c.acks(stageCall, len(p)) }
			c.ends = func() { c.acks(0, 1) }
		})},
	{"eof: an empty input", "-until eof 192.0.2.1 7", play(otherInput, nil, func(c *actor) {
		c.accepts(0).sends(30*stageCall, "time\n").finishes(30 * stageCall)
		c.ends = func() { c.acks(0, 1) }
	})},
	{"eof: standard output fails", "-until eof 192.0.2.1 7 hello", func(k *stage, w *world) {
		w.stdout.(*slowOutput).err = errDisk
		at(func(c *actor) { c.accepts(0).echoes(0) })(k, w)
	}},
}

var roundActs = []act{
	{"three rounds", "-count 3 -every 1s 192.0.2.1 7 hello", at(func(c *actor) {
		c.accepts(0).echoes(30 * stageCall)
	})},
	{"three rounds, quiet", "-q -count 3 -every 1s 192.0.2.1 7 hello", at(func(c *actor) {
		c.accepts(0).echoes(30 * stageCall)
	})},
	{"two rounds at once", "-v -count 2 192.0.2.1 7 hello",
		at(func(c *actor) { c.accepts(0).echoes(30 * stageCall) })},
	{"rounds that end early", "-count 3 -every 2s 192.0.2.1 7 hello", at(func(c *actor) {
		c.accepts(0).echoes(0).finishes(3500 * stageCall)
	})},
	{"reset between rounds", "-count 3 -every 2s 192.0.2.1 7 hello", at(func(c *actor) {
		c.accepts(0).echoes(0).resets(1500 * stageCall)
	})},
	{"a later round is not answered", "-io-timeout 1s -count 3 -every 2s 192.0.2.1 7 hello",
		at(func(c *actor) {
			c.accepts(0).echoes(0)
			c.stage.in(1500*stageCall, func() { c.takes = nil })
		})},
	{"a round is answered in part", "-io-timeout 1s -count 3 -every 2s 192.0.2.1 7 hello",
		at(func(c *actor) {
			c.accepts(0).echoes(0)
			c.stage.in(1500*stageCall, func() { c.takes = func([]byte) { c.sends(0, "hel") } })
		})},
	{"one round with -every", "-every 1s 192.0.2.1 7 hello",
		at(func(c *actor) { c.accepts(0).echoes(30 * stageCall) })},
	{"rounds with the least pause", "-count 2 -every 1ns 192.0.2.1 7 hello", at(good)},
	{"rounds of standard input", "-count 2 192.0.2.1 7",
		play(otherInput, []string{"hello\n", "world\n"}, func(c *actor) {
			c.accepts(0).echoes(5 * stageCall)
		})},
	{"rounds of nothing", "-count 2 192.0.2.1 7", play(otherInput, nil, func(c *actor) {})},
	{"rounds of an input that fails", "-count 2 192.0.2.1 7",
		func(k *stage, w *world) { w.stdin = &stageInput{err: errDisk} }},
	{"rounds of a full mebibyte", "-count 2 192.0.2.1 7",
		play(otherInput, []string{strings.Repeat("x", 1<<20)}, func(c *actor) {
			c.accepts(0).echoes(0)
		})},
	{"rounds of more than a mebibyte", "-count 2 192.0.2.1 7",
		play(otherInput, []string{strings.Repeat("x", 1<<20+1)}, func(c *actor) {})},
}

// fates gives each connection to the one peer its own script, in their order.
func fates(scripts ...func(c *actor)) func(*stage, *world) {
	n := 0
	return at(func(c *actor) {
		scripts[n%len(scripts)](c)
		n++
	})
}

func good(c *actor)    { c.accepts(10 * stageCall).echoes(30 * stageCall) }
func refuses(c *actor) { c.answers(10*stageCall, errRefused) }

var manyActs = []act{
	{"four connections", "-v -n 4 192.0.2.1 7 hello", fates(good)},
	{"forty connections", "-n 40 192.0.2.1 7 hello", fates(good)},
	{"every fate", "-io-timeout 1s -connect-timeout 2s -n 7 192.0.2.1 7 hello",
		fates(good, refuses, func(c *actor) {},
			func(c *actor) { c.accepts(0).resets(10 * stageCall) },
			func(c *actor) { c.accepts(0) },
			func(c *actor) { c.accepts(0).sends(5*stageCall, "HELLO\n") }, refuses)},
	{"every fate, quiet", "-q -n 3 192.0.2.1 7 hello", fates(good, refuses, good)},
	{"closed early, and when idle", "-n 2 -count 2 -every 1s 192.0.2.1 7 hello",
		fates(func(c *actor) { c.accepts(0).sends(5*stageCall, "hel").finishes(10 * stageCall) },
			func(c *actor) { c.accepts(0).sends(5*stageCall, "hello\n").finishes(500 * stageCall) })},
	{"some are refused", "-n 6 192.0.2.1 7 hello", fates(good, refuses)},
	{"descriptors run out", "-n 6 192.0.2.1 7 hello", func(k *stage, w *world) {
		k.limit = 4
		at(good)(k, w)
	}},
	{"many connections, rounds", "-n 2 -count 2 -every 1s 192.0.2.1 7 hello", fates(good)},
	{"many connections, progress", "-n 2 -progress 20ms 192.0.2.1 7 hello", fates(good)},
	{"many connections, -until connect", "-n 3 -until connect 192.0.2.1 7", fates(good)},
	{"many connections, of standard input", "-n 2 192.0.2.1 7",
		play(otherInput, []string{"hello\n"}, good)},
}

// client is one that comes to the listener after d.
func (k *stage) client(d time.Duration, script func(c *actor)) {
	k.in(d, func() {
		c := &actor{stage: k, room: 1 << 30}
		port := 50000 + uint16(k.now/time.Millisecond%1000)
		c.peer = netip.AddrPortFrom(netip.MustParseAddr("192.0.2.50"), port)
		k.arrive = append(k.arrive, c)
		script(c)
	})
}

var serverActs = []act{
	{"the recipe", "", func(k *stage, w *world) { k.joined = true }},
	{"the recipe, IPv6", "-6", func(k *stage, w *world) { k.joined = true }},
	{"a server", "-v -serve 192.0.2.5 9", func(k *stage, w *world) {
		k.client(10*stageCall, func(c *actor) {
			c.sends(5*stageCall, "hello\n").finishes(20 * stageCall)
		})
		k.client(30*stageCall, func(c *actor) {
			c.sends(5*stageCall, "hello\n").resets(20 * stageCall)
		})
		k.client(300*stageCall, func(c *actor) { c.answer = errReset })
		k.client(300*stageCall, func(c *actor) {
			c.room = 2
			c.sends(5*stageCall, "hello\n").finishes(20 * stageCall)
			k.in(100*stageCall, func() { c.room = 2 })
			k.in(200*stageCall, func() { c.room = 2 })
		})
		k.in(time.Second, func() { k.interrupt(130) })
	}},
	{"a server on every address", "-serve 9",
		func(k *stage, w *world) { k.in(time.Second, func() { k.interrupt(130) }) }},
	{"a server without IPv6", "-serve 9", func(k *stage, w *world) {
		k.busy["[::]:9"] = errNoAddress
		k.in(time.Second, func() { k.interrupt(130) })
	}},
	{"a server without any address", "-serve 9", func(k *stage, w *world) {
		k.busy["[::]:9"] = errNoAddress
		k.busy["0.0.0.0:9"] = errNoAddress
	}},
	{"a server at a port in use", "-serve 9", func(k *stage, w *world) {
		k.busy["[::]:9"] = os.NewSyscallError("bind", errors.New("address already in use"))
	}},
	{"a server at any port", "-serve 0", func(k *stage, w *world) {
		k.busy["[::]:50001"] = os.NewSyscallError("bind", errors.New("address already in use"))
		k.in(time.Second, func() { k.interrupt(130) })
	}},
	{"a server, quiet", "-q -serve 9",
		func(k *stage, w *world) { k.in(time.Second, func() { k.interrupt(130) }) }},
	{"a server without descriptors for two minutes", "-serve 192.0.2.5 9",
		func(k *stage, w *world) {
			k.limit = 1
			k.client(10*stageCall, func(c *actor) {})
			k.in(150*time.Second, func() { k.limit = 10 })
			k.in(151*time.Second, func() { k.interrupt(130) })
		}},
	{"interrupted", "192.0.2.1 7 hello", func(k *stage, w *world) {
		at(func(c *actor) { c.accepts(0).sends(10*stageCall, "hel") })(k, w)
		k.in(time.Second, func() { k.interrupt(130) })
	}},
	{"interrupted in the drain", "192.0.2.1 7 hello", func(k *stage, w *world) {
		at(func(c *actor) {
			c.accepts(0).echoes(0)
			c.ends = nil
		})(k, w)
		k.in(100*stageCall, func() { k.interrupt(130) })
	}},
	{"interrupted before it was connected", "192.0.2.1 7 hello", func(k *stage, w *world) {
		k.in(time.Second, func() { k.interrupt(130) })
	}},
	{"interrupted while the name was looked up", "board.test 7 hello", func(k *stage, w *world) {
		w.spawn = func(func()) {}
		k.in(time.Second, func() { k.interrupt(130) })
	}},
	{"interrupted, many", "-n 3 192.0.2.1 7 hello", func(k *stage, w *world) {
		fates(good, func(c *actor) { c.accepts(0) })(k, w)
		k.in(time.Second, func() { k.interrupt(130) })
	}},
}
