package main

// Every order of events, exhaustively. A run is the whole program over the simulated kernel of
// explore_kernel_test.go, in one goroutine. Whatever can go this way or that is a choice, so a run
// is a list of choices, and all lists up to a bound are run. A judge, who sees what the simulated
// peers do and what the kernel answers, and nothing of the program, says whether it went right.
//
// The bound: the peers' scripts and the fates of addresses are enumerated; of the kernel's
// deviations, see there, a run has as many as its part says. A failure prints its list, what each
// choice was, and how to run it again.
//
//	go test -run Explore                                        all parts, in some seconds
//	go test -run Explore -explore.more=1 -timeout=0             more deviations in a run
//	go test -run Explore -explore.run=attempts/3.0.1.2          one list, with -v
//	go test -run Explore -explore.random=1000000 -explore.seed=7  longer worlds, at random

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var (
	exploreRun    = flag.String("explore.run", "", "run the list PART/CHOICE.CHOICE... alone")
	exploreMore   = flag.Int("explore.more", 0, "deviations in a run beside each part's own")
	exploreRandom = flag.Int("explore.random", 10000, "runs of longer worlds at random")
	exploreSeed   = flag.Uint64("explore.seed", 1, "seed of the random runs")
)

// ---- The explorer ----

// choices is a run: what is decided, in order.
type choices struct {
	list       []int      // the answers; beyond its end every answer is 0, the obvious one
	counts     []int      // how many answers each question had
	next       int        // how many were given so far
	budget     int        // deviations that are left
	deviations int        // that were made
	random     *rand.Rand // decides beyond the end of the list, unless it is nil
	log        io.Writer  // what each choice was; nil: nobody wants to know
}

// pick decides between n answers. At random it is another one than the first in one of many cases.
func (c *choices) pick(n, many int) int {
	if c.next == len(c.list) {
		answer := 0
		if c.random != nil && c.random.IntN(many) == 0 {
			answer = c.random.IntN(n)
		}
		c.list = append(c.list, answer)
	}
	c.counts = append(c.counts[:c.next], n)
	answer := c.list[c.next]
	c.next++
	if answer >= n {
		panic(violation("this list is not one of this program: it has other choices"))
	}
	return answer
}

// choose decides about the world.
func (c *choices) choose(question string, n int) int {
	answer := c.pick(n, 1)
	c.logf("world: %s: %d", question, answer)
	return answer
}

// deviation decides about the kernel. What is not the first answer costs budget.
func (c *choices) deviation(n int) int {
	if c.budget == 0 {
		return 0
	}
	answer := c.pick(n, 12)
	if answer > 0 {
		c.budget--
		c.deviations++
	}
	return answer
}

// deviate decides what happens to question.
func (c *choices) deviate(question string, answers ...string) int {
	answer := c.deviation(len(answers))
	if answer > 0 {
		c.logf("choice %d: %s %s", c.next, question, answers[answer])
	}
	return answer
}

// which decides to which of some sockets something happens; -1: to none.
func (c *choices) which(what string, of []socket) int {
	answer := 0
	if len(of) > 0 {
		answer = c.deviation(len(of) + 1)
	}
	if answer > 0 {
		c.logf("choice %d: socket %d %s", c.next, of[answer-1], what)
	}
	return answer - 1
}

func (c *choices) logf(format string, args ...any) {
	if c.log != nil {
		fmt.Fprintf(c.log, "    "+format+"\n", args...)
	}
}

// advance makes the list the next one: the last answer that can be increased is, and what follows
// it is dropped. So all lists come.
func (c *choices) advance() bool {
	for i := c.next - 1; i >= 0; i-- {
		if c.list[i]+1 < c.counts[i] {
			c.list = c.list[:i+1]
			c.list[i]++
			return true
		}
	}
	return false
}

// String leaves out the end if it is obvious.
func (c *choices) String() string {
	var words []string
	last := 0
	for i, answer := range c.list[:c.next] {
		words = append(words, strconv.Itoa(answer))
		if answer > 0 {
			last = i
		}
	}
	return strings.Join(words[:last+1], ".")
}

// part is a part of what is explored.
type part struct {
	name   string
	world  func(c *choices) *simWorld
	budget int // deviations in a run, at most
	floor  int // fewer runs mean that something is not explored any more
}

var parts = []part{
	{"attempts", attemptWorld, 2, 30000},
	{"race", raceWorld, 1, 18000},
	{"exchange", exchangeWorld, 2, 25000},
	{"rounds", roundsWorld, 1, 13000},
	{"pair", pairWorld, 1, 2500},
	{"look-up", lookUpWorld, 3, 5000},
	{"signals", signalWorld, 3, 7000},
	{"server", serverWorld, 2, 10000},
	{"clients", clientsWorld, 1, 1500},
	{"random", randomWorld, 30, 0}, // which is not enumerated
}

func TestExplore(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(1000))
	for _, p := range parts {
		if *exploreRun == "" {
			t.Run(p.name, p.explore)
		} else if name, list, _ := strings.Cut(*exploreRun, "/"); name == p.name {
			p.replay(t, list)
		}
	}
}

// explore runs all lists of a part, or some at random.
func (p *part) explore(t *testing.T) {
	c := &choices{}
	if p.name == "random" {
		c.random = rand.New(rand.NewPCG(*exploreSeed, 0))
	}
	k := &simKernel{}
	runs := 0
	for more := true; more; {
		runs++
		c.budget = p.budget + *exploreMore
		wrong := p.run(c, k)
		if wrong != "" {
			t.Errorf("run %d, %s/%v: %s", runs, p.name, c, wrong)
			p.replay(t, c.String())
			return
		}
		if c.random == nil {
			more = c.advance()
		} else {
			c.list = c.list[:0]
			more = runs < *exploreRandom
		}
	}
	t.Logf("%d runs", runs)
	if runs < p.floor {
		t.Errorf("these are fewer than %d: something is not explored any more", p.floor)
	}
}

// replay runs one list, and tells what happens. Its budget has no bound, because the list has one.
func (p *part) replay(t *testing.T, list string) {
	var log bytes.Buffer
	c := &choices{log: &log, budget: math.MaxInt}
	for word := range strings.SplitSeq(list, ".") {
		answer, err := strconv.Atoi(word)
		if err != nil {
			t.Fatal(err)
		}
		c.list = append(c.list, answer)
	}
	wrong := p.run(c, &simKernel{})
	t.Logf("go test -run Explore -v -explore.run=%s/%s\n%s", p.name, list, &log)
	if wrong != "" {
		t.Error(wrong)
	}
}

// violation is what no program may do.
type violation string

// run runs the list of choices. It returns what was wrong, "" if nothing was.
func (p *part) run(c *choices, k *simKernel) (wrong string) {
	defer func() {
		switch reason := recover().(type) {
		case nil:
		case violation:
			wrong = string(reason)
		default:
			wrong = fmt.Sprintf("panic: %v\n%s", reason, debug.Stack())
		}
	}()
	c.next = 0
	c.deviations = 0
	k.begin(c, p.world(c))
	status := run(k.args(), k.outside())
	k.logf("status %d, and this was printed:\n%s", status, k.stdout.String())
	k.judge.end(k, status, k.stdout.String())
	return ""
}

// ---- The worlds ----

// simWorld is what is chosen before a run. A world has one exit status that is right, whatever the
// order of events is: so the same causes must have the same status in every order.
type simWorld struct {
	args        []string
	stdin       string // the bytes of a round
	stream      string // what each connection has to send, all rounds together
	roundSize   int
	every       time.Duration
	connectOnly bool
	connections int
	lookUp      lookUpFate
	fates       []*fate  // of the addresses
	scripts     []script // of the peers, by connection
	clients     []*simClient
	noIPv6      bool
	signals     bool // one may come
	failures    bool // calls may fail
	expected    int  // exit status, as long as nothing but the order of events is chosen
}

const (
	unknown    = -1 // more than one status is right
	unfinished = -2 // of a connection: it has no verdict
)

// These are the limits unless flags say otherwise, and times that the documents name.
const (
	simConnectTimeout = 3500 * time.Millisecond
	simIOTimeout      = 5500 * time.Millisecond
	simHeadStart      = 250 * time.Millisecond
	simDrainTime      = 500 * time.Millisecond
	simPause          = time.Second
	simSlack          = 2 * time.Millisecond // what is due at once may wait for the next turn
)

// fate is what becomes of a connect to an address.
type fate struct {
	words string
	after time.Duration // of the answer
	err   error         // the answer; nil: there is a connection
	stage string        // the call that fails with err; "": the answer tells it
	self  bool          // the socket has connected to itself
}

var fates = []*fate{
	{words: "connects"},
	{words: "drops", after: never},
	{words: "refuses", err: errRefused},
	{words: "has no route", err: errUnreachable, stage: "connect"},
	{words: "connects after 400 ms", after: 400 * time.Millisecond},
	{words: "refuses after 100 ms", err: errRefused, after: 100 * time.Millisecond},
	{words: "finds no descriptor", err: errSim, stage: "open"},
	{words: "times out after 1 s", err: errTimedOut, after: time.Second},
	{words: "connects after 100 ms", after: 100 * time.Millisecond},
	{words: "connects after 10 s", after: 10 * time.Second},
	{words: "has no family", err: errNoFamily, stage: "open"},
	{words: "has no local port", err: errNoLocal, stage: "connect"},
	{words: "refuses at once", err: errRefused, stage: "connect"},
	{words: "connects to itself", self: true},
	{words: "is unreachable after 300 ms", err: errUnreachable, after: 300 * time.Millisecond},
	{words: "stays blocking", err: errors.New("fcntl: sim"), stage: "setNonblock"},
}

// lookUpFate is what becomes of a look-up.
type lookUpFate struct {
	isAtOnce bool          // it ends before the loop begins
	after    time.Duration // or else in the first turn after this
	err      error
}

var lookUpFates = []lookUpFate{
	{isAtOnce: true},
	{},
	{after: 200 * time.Millisecond},
	{after: simConnectTimeout - 50*time.Millisecond},
	{after: simConnectTimeout, err: &net.DNSError{Err: "sim", IsTimeout: true}},
	{err: &net.DNSError{Err: "sim", IsNotFound: true}},
}

// newWorld has one address that connects, and echoes stdin once.
func newWorld(stdin string) *simWorld {
	return &simWorld{
		args:        []string{"board", "7", "-"},
		stdin:       stdin,
		stream:      stdin,
		roundSize:   len(stdin),
		connections: 1,
		lookUp:      lookUpFates[0],
		fates:       fates[:1],
		scripts:     []script{usual(len(stdin))},
		failures:    true,
	}
}

func (w *simWorld) setFlags(flags ...string) { w.args = append(flags, w.args...) }

// chooseFates gives the world n addresses, with fates out of the first ones.
func (w *simWorld) chooseFates(c *choices, n, first int) {
	w.fates = nil
	for range n {
		i := c.choose("an address", first)
		c.logf("it %s", fates[i].words)
		w.fates = append(w.fates, fates[i])
	}
	w.expected = statusOfFates(w.fates, w.lookUp.after)
}

// chooseConnect can make the world one with -connect.
func (w *simWorld) chooseConnect(c *choices) {
	if c.choose("-connect", 2) == 1 {
		w.connectOnly = true
		w.args = []string{"-connect", "board", "7"}
	}
}

// statusOfFates is the exit status if all that connects is an echo server.
func statusOfFates(fates []*fate, lookUpTook time.Duration) int {
	var failures []error
	for _, f := range fates {
		switch {
		case f.after >= simConnectTimeout-lookUpTook:
			failures = append(failures, errTimedOut)
		case f.err != nil:
			failures = append(failures, f.err)
		case f.self:
			failures = append(failures, errSelf)
		default:
			return exitOK
		}
	}
	return statusOfFailures(failures)
}

// statusOfFailures is the exit status if no address has connected.
func statusOfFailures(failures []error) int {
	switch {
	case slices.Contains(failures, errRefused):
		return exitNotConnected
	case slices.Contains(failures, errTimedOut):
		return exitConnectTimeout
	case slices.Contains(failures, errSim):
		return exitLocal
	}
	return exitNotConnected
}

// attemptWorld has one or two addresses, with all fates that there are.
func attemptWorld(c *choices) *simWorld {
	w := newWorld("a")
	n := 1 + c.choose("addresses", 2)
	w.chooseFates(c, n, len(fates))
	if n == 1 {
		w.chooseConnect(c)
	}
	return w
}

// raceWorld has three, with the most telling ones.
func raceWorld(c *choices) *simWorld {
	w := newWorld("a")
	w.chooseFates(c, 3, 9)
	return w
}

// scriptCase is a script, and the exit status that is right for it.
type scriptCase struct {
	script script
	status int
}

const short = 300 * time.Millisecond

// middles are what a peer can do before the last byte is back.
var middles = []scriptCase{
	{script{act: alter}, exitWrong},
	{script{act: alter, then: finish}, exitWrong},
	{script{act: alter, then: reset}, exitWrong},
	{script{act: add}, exitWrong},
	{script{act: add, then: finish}, exitWrong},
	{script{act: add, then: reset}, exitWrong},
	{script{act: add, after: short}, exitWrong},
	{script{act: finish}, exitLost},
	{script{act: finish, after: short}, exitLost},
	{script{act: reset}, exitLost},
	{script{act: reset, after: short}, exitLost},
	{script{act: lose}, exitLost},
	{script{act: stay}, exitIOTimeout},
	{script{act: swallow, after: 3 * time.Second}, exitIOTimeout},
	{script{act: slowly, after: 3 * time.Second}, exitOK},
	{script{act: tooLate, after: 6 * time.Second}, exitIOTimeout},
	{script{act: giveUp}, exitIOTimeout},
	{script{act: cutOff, after: short}, exitIOTimeout},
}

// endings are what it can do after that.
var endings = []scriptCase{
	{script{act: finish, afterFin: true}, exitOK},
	{script{act: finish, afterFin: true, after: short}, exitOK},
	{script{act: finish}, exitOK},
	{script{act: stay}, exitOK},
	{script{act: reset}, exitOK},
	{script{act: reset, afterFin: true}, exitOK},
	{script{act: lose}, unknown},
	{script{act: giveUp}, exitOK},
	{script{act: add}, exitWrong},
	{script{act: add, then: reset}, exitWrong},
	{script{act: add, then: finish, afterFin: true}, exitWrong},
	{script{act: add, afterFin: true, after: short}, exitWrong},
	{script{act: add, afterFin: true, after: time.Second}, exitOK},
}

// guesses are what it can do in a pause besides.
var guesses = []scriptCase{
	{script{act: guess}, exitWrong},
	{script{act: guess, after: short}, exitWrong},
}

// chooseScript chooses what the peer does. It returns the exit status that is right.
func (w *simWorld) chooseScript(c *choices) (s script, status int) {
	n := len(w.stream)
	at := n - c.choose("bytes from the end at which the peer deviates", n+1)
	cases := middles
	switch {
	case at == n:
		cases = endings
	case w.every > 0 && at > 0 && at%w.roundSize == 0:
		cases = append(slices.Clip(middles), guesses...)
	}
	one := cases[c.choose("what it does there", len(cases))]
	one.script.at = at
	one.script.isNarrow = c.choose("the buffers are wide or narrow", 2) == 1
	c.logf("the peer echoes %d of %d bytes, then it %v", at, n, one.script.act)
	return one.script, one.status
}

// exchangeWorld has one round, of three bytes at most.
func exchangeWorld(c *choices) *simWorld {
	w := newWorld("abc"[:1+c.choose("more bytes", 3)])
	w.scripts[0], w.expected = w.chooseScript(c)
	if len(w.stream) == 3 {
		c.budget-- // or else it would take a minute
	}
	return w
}

// setRounds makes of the world one with several rounds.
func (w *simWorld) setRounds(n int, every time.Duration) {
	w.stream = strings.Repeat(w.stdin, n)
	w.every = every
	w.setFlags("-count", strconv.Itoa(n), "-every", every.String())
}

// roundsWorld has two rounds, with a pause between them or without.
func roundsWorld(c *choices) *simWorld {
	w := newWorld("ab"[:1+c.choose("more bytes", 2)])
	w.setRounds(2, time.Duration(c.choose("-every", 2))*7*time.Second) // longer than a silence
	w.scripts[0], w.expected = w.chooseScript(c)
	return w
}

// worst is the order of exit statuses if connections have ended differently.
var worst = []int{exitWrong, exitLocal, exitLost, exitIOTimeout, exitConnectTimeout,
	exitNotConnected, exitOK}

// worseOf returns the status that counts more.
func worseOf(a, b int) int {
	if a == unknown || b == unknown {
		return unknown
	}
	return worst[min(slices.Index(worst, a), slices.Index(worst, b))]
}

// chooseBriefly chooses out of a few scripts of each kind, for streams of one byte.
func (w *simWorld) chooseBriefly(c *choices) (s script, status int) {
	few := []scriptCase{
		{usual(1), exitOK},
		{script{at: 1, act: stay}, exitOK},
		{script{at: 1, act: add}, exitWrong},
		{script{at: 1, act: add, afterFin: true, after: short}, exitWrong},
		{script{act: alter, then: reset}, exitWrong},
		{script{act: finish}, exitLost},
		{script{act: reset, after: short}, exitLost},
		{script{act: stay}, exitIOTimeout},
		{script{act: slowly, after: 3 * time.Second}, exitOK},
	}
	one := few[c.choose("what the peer does", len(few))]
	c.logf("the peer echoes %d bytes, then it %v", one.script.at, one.script.act)
	return one.script, one.status
}

// pairWorld has two connections.
func pairWorld(c *choices) *simWorld {
	w := newWorld("a")
	w.connections = 2
	w.setFlags("-n", "2")
	w.chooseFates(c, 1, 3)
	if w.expected != exitOK {
		w.scripts = append(w.scripts, usual(1))
		return w
	}
	first, status := w.chooseBriefly(c)
	second, other := w.chooseBriefly(c)
	w.scripts = []script{first, second}
	w.expected = worseOf(status, other)
	return w
}

// lookUpWorld has look-ups that end early, late and badly, and signals.
func lookUpWorld(c *choices) *simWorld {
	w := newWorld("a")
	w.signals = true
	w.failures = false
	w.lookUp = lookUpFates[c.choose("the look-up", len(lookUpFates))]
	w.chooseFates(c, 1, 3)
	failure, isFailure := w.lookUp.err.(*net.DNSError)
	switch {
	case isFailure && failure.IsTimeout:
		w.expected = exitConnectTimeout
	case isFailure:
		w.expected = exitNotConnected
	}
	return w
}

// signalWorld has signals.
func signalWorld(c *choices) *simWorld {
	w := newWorld("a")
	w.signals = true
	w.failures = false
	w.chooseConnect(c)
	if !w.connectOnly {
		w.scripts[0], w.expected = w.chooseBriefly(c)
	}
	return w
}

// newServer is a world with a server, to which clients come.
func newServer(clients ...simClient) *simWorld {
	w := &simWorld{args: []string{"-serve", "7"}, failures: true, expected: exitOK}
	for _, c := range clients {
		w.clients = append(w.clients, &c)
	}
	return w
}

// chooseClient chooses what a client does.
func chooseClient(c *choices) simClient {
	return simClient{
		bytes:    c.choose("bytes of a client", 3),
		ending:   []act{finish, reset, stay}[c.choose("it ends with a FIN, a reset, or not", 3)],
		arriveAt: time.Duration(c.choose("it is late", 2)) * short,
		readFrom: time.Duration(c.choose("it is lazy", 2)) * 2 * time.Second,
	}
}

// serverWorld has the server, and one client or none.
func serverWorld(c *choices) *simWorld {
	if c.choose("clients", 2) == 1 {
		return newServer(chooseClient(c))
	}
	w := newServer()
	w.noIPv6 = c.choose("IPv6 is missing", 2) == 1
	return w
}

// clientsWorld has two clients out of these.
func clientsWorld(c *choices) *simWorld {
	all := []simClient{
		{bytes: 2, ending: finish},
		{bytes: 2, ending: finish, readFrom: 2 * time.Second},
		{bytes: 1, ending: reset},
		{bytes: 1, ending: stay, arriveAt: short},
		{ending: finish, arriveAt: short},
		{ending: reset},
	}
	return newServer(all[c.choose("one client", len(all))], all[c.choose("the other", len(all))])
}

// randomWorld has longer streams, more addresses and more of everything.
func randomWorld(c *choices) *simWorld {
	switch c.choose("the kind", 3) {
	case 0:
		return newServer(chooseClient(c), chooseClient(c), chooseClient(c))
	case 1:
		w := newWorld("a")
		w.signals = c.choose("signals", 2) == 1
		w.chooseFates(c, 1+c.choose("addresses", 5), len(fates))
		w.chooseConnect(c)
		return w
	}
	w := newWorld("abcdefgh"[:1+c.choose("more bytes", 8)])
	w.signals = c.choose("signals", 2) == 1
	w.setRounds(1+c.choose("more rounds", 4), time.Duration(c.choose("-every", 3))*time.Second/2)
	w.scripts[0], w.expected = w.chooseScript(c)
	return w
}
