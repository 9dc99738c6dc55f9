// Echomux proves a TCP path end to end: it connects within a time limit, sends data, reads it back
// from an echo server, compares every byte, and says in a line and an exit status what happened.
//
//	echomux                                  the recipe: both ends in one loop, every step shown
//	echomux [flags] HOST PORT [MESSAGE ...]  prove the path, with standard input if no MESSAGE
//	echomux -serve [HOST] PORT               be the echo server
//
// # What happens on the wire
//
// A socket in non-blocking mode connects once. Then it writes until the kernel takes no more, and
// reads whatever is back, both directions at once. When all is back it half-closes, waits a moment
// for the peer's FIN, and closes. (With -until eof it half-closes when all is sent, and the peer's
// FIN is part of the job.) One goroutine does all that, in one loop around one poller. Other
// goroutines do only what blocks and cannot be waited for otherwise: they resolve a name, read
// standard input, wait for a signal. The first two decide nothing, and post what they got to the
// loop. The third ends the process.
//
// # The words
//
// A descriptor is the small number by which a process names an open socket to the kernel. It is
// free for the next socket as soon as it is closed.
//
// A call blocks if it sleeps until it has something to do: a read until bytes have come, a write
// until there is room for them. On a socket in non-blocking mode it never sleeps. Where it would,
// it fails at once with "would block" (EAGAIN, WSAEWOULDBLOCK), and that is no error.
//
// Readiness is the kernel's word that a call would not block now. A poller (epoll, kqueue, select)
// sleeps until one of many sockets is ready, and so one goroutine can serve them all.
//
// Level-triggered means that a socket is reported as long as it is ready, every time one asks. So
// a program may read a part, and is told of the rest again. But it must stop watching what it does
// not want to act on, or the poller never sleeps.
//
// A FIN says that its sender will send no more bytes; the other direction goes on. To send one is
// to half-close. Whoever reads it, behind the last byte, reads 0 bytes: EOF.
//
// A reset (RST) ends both directions at once, and bytes on their way are lost. A write fails with
// it, and so does a read, after what came before the reset.
//
// A hang-up is how a poller reports that both directions have ended, or an error. It comes whether
// one asks or not. Here it is folded into the readiness that was asked for, and the next call on
// the socket says what has happened.
//
// SO_ERROR is the socket's pending error, cleared by being read. It says how a connect ended that
// did not block.
//
// The backlog of a listening socket is the queue of connections that nobody has accepted yet.
//
// # The rooms
//
// The contract is what a kernel has to offer. The loop waits, and lets machines take steps. After
// the log, the echo server shows both at work. What flows, and the verdict, are what the client
// rests on: sources of bytes, their comparison, the clock of silence, and pure functions that
// decide. A connection of the client is up to three machines, one after the other, in one seat of
// the loop. Then come names, the run of one command line, the command line itself, and the report.
// Beside the contract stands one poller_<os>.go for each system.
//
// Left out on purpose: TLS, UDP, proxies, edge triggering, a second loop.
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
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ---- The contract ----

// The contract is what a poller_<os>.go has to offer. The comments there say only what its kernel
// adds to these. Everything is level-triggered, because every kernel can do that.

// socket is a descriptor or, on Windows, a SOCKET.
type socket uintptr

// readiness is a set of directions.
type readiness uint8

const (
	readable readiness = 1 << iota // read yields bytes, EOF or the error; accept, a connection
	writable                       // write takes bytes, or connect has finished
)

// event says that a socket is ready. A batch of events can name one socket twice: kqueue has an
// event for each direction. If the first event of a batch leads to the closing of a socket, a later
// event can still name that socket's number, and the number may belong to another socket by then.
// So no socket may be closed before all events of the batch were looked at. An event can also be
// wrong (a spurious readiness), so every call may say would block.
type event struct {
	socket socket
	ready  readiness
}

// poller waits until one of many sockets is ready.
//
// A socket that is to connect is watched only after connect was called, because Linux reports a
// socket as hung up before that. While connect is pending the socket is watched for writable alone,
// because on kqueue a filter for reading can take the error away.
type poller interface {
	// change makes the poller watch s for want. was is what s was watched for until now, and
	// differs from want. If want is nothing, s is taken out of the poller; otherwise the kernel
	// would report its hang-up for ever.
	change(s socket, was, want readiness) error

	// forget takes s out of the poller, just before s is closed. Where the kernel keeps the list of
	// what is watched, forget does nothing, since closing s takes it out of the list.
	forget(s socket)

	// wait blocks for at most ms milliseconds, or without a limit if ms is -1, and fills events. If
	// it returns no event and no error, the caller looks around: the time may have passed, or a
	// signal or wake may have ended the wait. Errors and hang-ups are folded into the readiness
	// that was asked for.
	wait(events []event, ms int) (n int, err error)

	// wake makes the wait that is under way return, or else the next wait. Several wake-ups make
	// only one wait return. Any goroutine may call wake, until close.
	wake()

	close() error
}

// sockets are the system's TCP sockets. After setNonblock no call on a socket blocks; the sockets
// that listen and accept return are non-blocking from the start. A failure is io.EOF (read), one of
// the errors below, an os.SyscallError that names the call, or an error about the zone of an
// address.
type sockets interface {
	// openSocket makes a socket of the family of to. It is still in blocking mode, and has
	// TCP_NODELAY and SO_OOBINLINE set (without SO_OOBINLINE urgent data would leave the stream).
	// If from is valid, it becomes the socket's local address.
	openSocket(to netip.AddrPort, from netip.Addr) (socket, error)

	// setNonblock puts s into non-blocking mode.
	setNonblock(s socket) error

	// connect is called once. If it returns nil, connecting has begun, and connectResult tells how
	// it ended.
	connect(s socket, to netip.AddrPort) error

	// connectResult returns errWouldBlock as long as there is no answer, and errReset if there was
	// a connection and the peer has reset it.
	connectResult(s socket) (local, peer netip.AddrPort, err error)

	read(s socket, p []byte) (n int, err error)  // n > 0, io.EOF, or an error
	write(s socket, p []byte) (n int, err error) // n < len(p) is normal

	// pendingError returns SO_ERROR: a failure that no call has returned yet.
	pendingError(s socket) error

	// path tells how many bytes the peer has not acknowledged yet, our FIN counted as one, and how
	// many segments were sent again. Each number is -1 where the kernel does not tell it.
	path(s socket) (unacknowledged, retransmits int)

	closeWrite(s socket) error // half-closes: sends our FIN
	close(s socket) error

	listen(at netip.AddrPort) (s socket, bound netip.AddrPort, err error)
	accept(s socket) (accepted socket, peer netip.AddrPort, err error) // non-blocking, options set
}

// What the program does depends on these errors, so they are returned bare (errTooManyFiles is
// wrapped, with the limit that was reached). Their texts are the same on every system.
var (
	errWouldBlock   = errors.New("would block") // not now
	errReset        = errors.New("connection reset by peer")
	errRefused      = errors.New("connection refused")
	errTimedOut     = errors.New("timed out")
	errNoAddress    = errors.New("cannot assign requested address") // this machine has none such
	errNoPort       = errors.New("no local port is free")
	errNoMemory     = errors.New("no buffer space available")
	errTooManyFiles = errors.New("too many open files")
)

// ---- The loop ----

const batchSize = 256 // events of one wait, at most

// machine is a small state machine. It knows the state of one job, and what to do next. Most
// machines have a socket. All a machine does is to take a step, and to say what it waits for after
// the step.
type machine interface {
	// step is called when something has happened that concerns the machine. ready is what its
	// socket is said to be ready for. A passed deadline looks like readiness for all that the
	// socket is watched for: the machine tries its socket, and only then compares its deadline with
	// loop.now. In the first step, and if only mail has come, ready is nothing.
	step(ready readiness)

	interest() readiness     // what the socket is watched for; a pure function of the state
	deadline() time.Duration // when to step even so, on the loop's clock; can be never, or atOnce
}

const (
	never  = time.Duration(math.MaxInt64)
	atOnce = time.Duration(0) // a deadline that has always passed: the next turn does not wait
)

// seat is a machine's place in the loop. A seat can hold a socket. A machine can hand its seat over
// to the next machine, together with the socket.
type seat struct {
	loop    *loop
	machine machine       // that has it at present; nil: the seat was given up
	socket  socket        // means something while holding
	holding bool          // there is a socket, ours to close
	armed   readiness     // what the poller watches the socket for
	due     time.Duration // the machine's deadline, when it was last asked
	ready   readiness     // what has come for the socket in this turn
	touched bool          // the seat is in loop.touched
	index   int           // of the seat in loop.seats
}

// loop is the one place that waits for sockets. A turn of the loop has two halves. In the first
// half the loop takes in whatever has happened: events of sockets, mail from other goroutines,
// deadlines that have passed. Each of these only touches a seat. In the second half the machine of
// each touched seat takes one step. So two events of one socket become one step, a machine knows
// everything that the turn has brought when it decides, and no socket is closed while events of the
// same batch are still to be looked at.
//
// Whoever changes a machine from outside has to touch its seat. There is nothing else to remember:
// the loop asks each machine for its interest and its deadline after each step, and nothing else
// changes what is waited for. (A socket that is released is no longer waited for.)
type loop struct {
	poller  poller
	sockets sockets
	clock   func() time.Duration // monotonic

	// now is the time at which this turn began: the clock, as it was when wait had returned.
	// Whether a machine's deadline has passed is judged by now (see touchOverdue). To measure a
	// time, or to set a deadline, one asks clock().
	now time.Duration

	earliest time.Duration    // no seat is due before; perhaps none is due then either
	events   []event          // room for one batch
	seats    []*seat          // in no order
	holders  map[socket]*seat // the seat that holds a socket
	touched  []*seat          // the seats whose machines step in this turn
	stopped  bool
	err      error                    // of the poller, which ended the loop
	onWatch  func(machine, readiness) // is told of each new interest; nil: nobody is

	// turning is there for signals alone (see endBy). The loop holds it during a turn, except in
	// unlocked.
	turning sync.Mutex

	mailbox sync.Mutex // guards the two below
	mail    []func()   // posted and not yet called
	closed  bool       // the poller is gone, and nobody reads mail any more
}

// newLoop is a loop without seats.
func newLoop(p poller, s sockets, clock func() time.Duration) *loop {
	return &loop{
		poller:   p,
		sockets:  s,
		clock:    clock,
		now:      clock(),
		earliest: never,
		events:   make([]event, batchSize),
		holders:  make(map[socket]*seat),
	}
}

// run turns until somebody sets stopped. It returns the error of a poller that has failed.
func (l *loop) run() error {
	l.turning.Lock()
	defer l.turning.Unlock()
	l.stepTouched()
	for !l.stopped {
		n, err := l.wait()
		if err != nil {
			return err
		}
		l.now = l.clock()
		for _, ev := range l.events[:n] {
			l.touchHolder(ev)
		}
		l.callMail()
		l.touchOverdue()
		l.stepTouched()
	}
	return l.err
}

// wait sleeps until there is something to take in.
func (l *loop) wait() (n int, err error) {
	l.unlocked(func() {
		n, err = l.poller.wait(l.events, l.waitMs())
	})
	return n, err
}

// waitMs is the time until the earliest deadline, in milliseconds: at most an hour, and -1 if there
// is no deadline. It is rounded up. If it were rounded down, the wait would end just before the
// deadline, and be followed by many waits of 0 ms.
func (l *loop) waitMs() int {
	if l.earliest == never {
		return -1
	}
	left := l.earliest - l.clock()
	left = max(left, 0)
	left = min(left, time.Hour)
	return int((left + time.Millisecond - 1) / time.Millisecond)
}

// unlocked calls f while turning is free. f can be stuck: it is a call of the poller, a write to
// standard output or a read of a regular file. A report may be printed meanwhile, so the caller has
// to count before the call whatever it has done.
func (l *loop) unlocked(f func()) {
	l.turning.Unlock()
	defer l.turning.Lock()
	f()
}

// touchHolder touches the seat of the socket that ev names.
func (l *loop) touchHolder(ev event) {
	s := l.holders[ev.socket]
	if s != nil { // else it is about nothing of ours
		s.touch(ev.ready & s.armed) // an event may be wrong, and say what nobody has asked for
	}
}

// callMail calls what has been posted.
func (l *loop) callMail() {
	l.mailbox.Lock()
	mail := l.mail
	l.mail = nil
	l.mailbox.Unlock()
	for _, letter := range mail {
		letter()
	}
}

// touchOverdue touches the seats whose deadlines have passed, as if everything that they wait for
// had come. So a machine tries its socket once more before it gives up: something may be there that
// wait has not brought, because the batch was full, or because this process was stopped for a while
// after wait had returned. If nothing is there, the try costs one call that says would block. It is
// not the loop that ends anything, but the machine, if its try has found nothing.
//
// No deadline lies before earliest, so the seats are looked at only when earliest has passed. Then
// the next earliest is computed.
//
// Because of that try, whether a deadline has passed is judged by now. Say a turn has begun at
// 10.0, one step of it lasts until 10.2, and the deadline of another machine, which steps after
// that one, is 10.1. Nobody has told this machine to try its socket. So its deadline passes in the
// next turn.
func (l *loop) touchOverdue() {
	if l.now < l.earliest {
		return
	}
	l.earliest = never
	for _, s := range l.seats {
		if s.due <= l.now {
			s.touch(s.armed) // after the step, arm takes its next deadline into account
		} else {
			l.earliest = min(l.earliest, s.due)
		}
	}
}

// stepTouched lets the machine of each touched seat take a step. The list grows meanwhile, because
// a step can seat another machine or hand its own seat over, and both of these touch a seat.
func (l *loop) stepTouched() {
	for i := 0; i < len(l.touched); i++ {
		l.touched[i].step()
	}
	clear(l.touched)
	l.touched = l.touched[:0]
}

// post makes the loop call f, which should touch a seat. Any goroutine may call post, even after
// the end of the loop.
func (l *loop) post(f func()) {
	l.mailbox.Lock()
	defer l.mailbox.Unlock()
	if l.closed {
		return
	}
	l.mail = append(l.mail, f)
	if len(l.mail) == 1 { // else callMail is still to come because of the first letter
		l.poller.wake()
	}
}

// close gives up all seats, and closes the poller.
func (l *loop) close() {
	for len(l.seats) > 0 {
		l.seats[len(l.seats)-1].giveUp()
	}
	l.mailbox.Lock()
	defer l.mailbox.Unlock()
	l.closed = true
	l.poller.close() // whatever it says, it is gone
}

// after returns now + d, without overflow.
func after(now, d time.Duration) time.Duration { return now + min(d, never-now) }

// sit gives m a seat, without a socket. m takes its first step in this turn.
func (l *loop) sit(m machine) *seat {
	s := &seat{loop: l, machine: m, index: len(l.seats)}
	l.seats = append(l.seats, s)
	s.touch(0)
	return s
}

// touch makes the seat's machine take a step in this turn. ready is what its socket has become
// ready for.
func (s *seat) touch(ready readiness) {
	s.ready |= ready
	if !s.touched {
		s.touched = true
		s.loop.touched = append(s.loop.touched, s)
	}
}

// step lets the machine take its step, and then arms the seat for what the machine waits for. If
// the machine hands the seat over, the order is: dial steps, exchange steps (in the same turn,
// without readiness), the seat is armed for exchange. What the socket is still ready for will be
// reported again.
func (s *seat) step() {
	m := s.machine
	ready := s.ready
	s.ready = 0
	s.touched = false
	if m == nil { // given up since it was touched
		return
	}
	m.step(ready)
	if s.machine == m { // else the seat was given up, or handed over
		s.arm()
	}
}

// arm asks the machine what it waits for, and makes the loop and the poller wait for that.
func (s *seat) arm() {
	s.due = s.machine.deadline()
	s.loop.earliest = min(s.loop.earliest, s.due)
	if s.holding {
		s.watch(s.machine.interest())
	}
}

// watch makes the poller watch the socket for want.
func (s *seat) watch(want readiness) {
	if want == s.armed {
		return
	}
	err := s.loop.poller.change(s.socket, s.armed, want)
	s.armed = want
	if err != nil {
		s.loop.err = err
		s.loop.stopped = true
	}
	if s.loop.onWatch != nil {
		s.loop.onWatch(s.machine, want)
	}
}

// hold gives the seat a socket, which the seat will close. The socket is watched only after the
// machine's step, and so not before the machine has called connect.
func (s *seat) hold(sock socket) {
	s.socket = sock
	s.holding = true
	s.loop.holders[sock] = s
}

// release takes the socket out of the poller and then closes it. In the other order the socket's
// number could already belong to another socket. It does not matter whether close fails: the
// descriptor is gone in any case (close(2)).
func (s *seat) release() {
	if !s.holding {
		return
	}
	s.loop.poller.forget(s.socket)
	s.armed = 0
	s.holding = false
	delete(s.loop.holders, s.socket)
	s.loop.sockets.close(s.socket)
}

// handOver gives the seat and its socket to m. m takes its first step in this turn.
func (s *seat) handOver(m machine) {
	s.machine = m
	s.touch(0)
}

// giveUp ends the seat and closes its socket. In the list of seats the last one takes its place.
func (s *seat) giveUp() {
	if s.machine == nil {
		return
	}
	s.release()
	s.machine = nil
	seats := s.loop.seats
	last := len(seats) - 1
	seats[s.index] = seats[last]
	seats[s.index].index = s.index
	seats[last] = nil
	s.loop.seats = seats[:last]
}

// ---- The log ----

// logger writes the log of -v. The recipe (echomux without arguments) writes it too.
type logger struct {
	w       io.Writer
	verbose bool
	prefix  string // of each line, to tell whose it is
}

func (l logger) printf(format string, args ...any) {
	if l.verbose {
		text := fmt.Sprintf(format, args...)
		fmt.Fprintf(l.w, "[echomux (%d)] %s%s\n", os.Getpid(), l.prefix, text)
	}
}

// data logs bytes. Without -v it allocates nothing; printf would, for its arguments.
func (l logger) data(what string, p []byte) {
	if l.verbose && len(p) > 0 {
		l.printf("%s: %s", what, quoted(p))
	}
}

// quoted renders bytes for a terminal: each line of text becomes a quoted string, and a long text
// is cut.
func quoted(p []byte) string {
	const most = 60
	var words []string
	for line := range strings.Lines(string(p[:min(len(p), most)])) {
		words = append(words, strconv.QuoteToASCII(line))
	}
	text := strings.Join(words, " ")
	if len(p) > most {
		text += fmt.Sprintf("... (%d bytes)", len(p))
	}
	return text
}

// word quotes a word of the command line for a usage error.
func word(text string) string { return shortened(strconv.QuoteToASCII(text)) }

// shortened leaves out the middle of a text that is too long for a line.
func shortened(text string) string {
	const part = 100
	if len(text) <= 2*part {
		return text
	}
	return text[:part] + "..." + text[len(text)-part:]
}

// printable makes a word that somebody else has chosen fit for a terminal and for one line.
func printable(word string) string {
	text := strconv.QuoteToASCII(word)
	return strings.ReplaceAll(text[1:len(text)-1], `\"`, `"`)
}

// failure tells why something went wrong. Failures with the same operation and exit status are
// counted together.
type failure struct {
	op  string
	err error // all that is said
}

func (f *failure) Error() string { return f.err.Error() }

// called makes a failure of the error of a call on a socket. The name of the call stands before the
// error.
func called(op string, err error) *failure {
	return &failure{op, fmt.Errorf("%s: %w", op, withoutCall(op, err))}
}

// withoutCall returns err without the name of the call, if that is op.
func withoutCall(op string, err error) error {
	call, ok := err.(*os.SyscallError)
	if ok && call.Syscall == op {
		return call.Err
	}
	return err
}

// ---- The echo server ----

// server is what all connections of a server share: that of -serve, or the one inside the recipe.
type server struct {
	loop      *loop
	log       logger
	listeners []*listener
	buffer    []byte // every socket is read into this one
	clients   int    // accepted so far
	failures  int    // of connections that an error has ended
	received  int64
	returned  int64
	complain  func(at netip.AddrPort, failures int, err error) // prints that accept fails
}

const (
	chunkSize      = 256 << 10              // bytes of one read of a socket, at most
	acceptBatch    = 64                     // connections accepted in one step, at most
	acceptPause    = 100 * time.Millisecond // when accept fails, say for want of descriptors
	complaintPause = time.Minute            // between two lines about that
)

// listener is the machine that accepts connections. After accept has failed, the listener pauses
// and watches nothing: the connections that wait in its backlog would be reported again at once.
type listener struct {
	server   *server
	seat     *seat
	at       netip.AddrPort
	paused   bool
	resume   time.Duration // the end of the pause
	failures int           // of accept, not reported yet
	quiet    time.Duration // no complaint before
}

// listen seats a listener.
func (s *server) listen(at netip.AddrPort) (bound netip.AddrPort, err error) {
	sock, bound, err := s.loop.sockets.listen(at)
	if err != nil {
		return bound, err
	}
	l := &listener{server: s, at: bound}
	l.seat = s.loop.sit(l)
	l.seat.hold(sock)
	s.listeners = append(s.listeners, l)
	s.log.printf("listening on %v", bound)
	return bound, nil
}

func (l *listener) interest() readiness {
	if l.paused {
		return 0
	}
	return readable
}

func (l *listener) deadline() time.Duration {
	if l.paused {
		return l.resume
	}
	return never
}

// step accepts the connections that wait in the backlog. During a pause nothing is watched, so a
// step without readiness (if it is not the first) means that the pause is over. Then the poller
// will tell again whether connections are waiting.
func (l *listener) step(ready readiness) {
	l.paused = false
	if ready == 0 {
		return
	}
	for i := range acceptBatch {
		sock, peer, err := l.server.loop.sockets.accept(l.seat.socket)
		switch {
		case err == nil:
			l.server.serve(sock, peer)
		case err == errReset: // it left while it waited in the backlog
		case err == errWouldBlock:
			return
		case i > 0:
			// The backlog may be empty in spite of this error: Linux looks for a free descriptor
			// first, and fails if there is none. If a connection does wait, the next step begins
			// with this failure.
			return
		default:
			l.pause(err)
			return
		}
	}
}

// pause stops accepting for a moment, and complains, but not too often.
func (l *listener) pause(err error) {
	now := l.server.loop.clock()
	l.paused = true
	l.resume = after(now, acceptPause)
	l.failures++
	if now >= l.quiet {
		l.server.complain(l.at, l.failures, err)
		l.failures = 0
		l.quiet = after(now, complaintPause)
	}
}

// served is the machine of one accepted connection. It reads only after everything that it has read
// is written. So a client that stops reading blocks only itself, and costs one buffer at most.
type served struct {
	server  *server
	seat    *seat
	peer    netip.AddrPort
	pending []byte // read, and refused by the kernel so far; nil: nothing
}

// serve seats an accepted connection.
func (s *server) serve(sock socket, peer netip.AddrPort) {
	c := &served{server: s, peer: peer}
	c.seat = s.loop.sit(c)
	c.seat.hold(sock)
	s.clients++
	s.log.printf("accepted %v", peer)
}

// interest: a connection either reads or writes.
func (c *served) interest() readiness {
	if c.pending != nil {
		return writable
	}
	return readable
}

// deadline: a client may be silent for as long as it likes.
func (c *served) deadline() time.Duration { return never }

// step reads once and writes that at once. It waits for writability only if the kernel has refused
// bytes.
func (c *served) step(ready readiness) {
	if ready == 0 {
		return
	}
	if c.pending != nil {
		c.write(c.pending)
		return
	}
	s := c.server
	n, err := s.loop.sockets.read(c.seat.socket, s.buffer)
	switch err {
	case nil:
		s.received += int64(n)
		s.log.data("recv", s.buffer[:n])
		c.write(s.buffer[:n])
	case errWouldBlock:
	case io.EOF: // all that it sent was written back
		c.end(nil)
	default:
		c.end(called("read", err))
	}
}

// write sends p. It keeps the bytes that the kernel refuses.
func (c *served) write(p []byte) {
	s := c.server
	n, err := s.loop.sockets.write(c.seat.socket, p)
	if err != nil && err != errWouldBlock {
		c.end(called("write", err))
		return
	}
	s.returned += int64(n)
	s.log.data("sent", p[:n])
	rest := p[n:]
	switch {
	case len(rest) == 0:
		c.pending = nil
	case c.pending == nil:
		c.pending = slices.Clone(rest) // the next connection reads into the buffer
	default:
		c.pending = rest
	}
}

// end closes the connection. If an error has ended it, and not the client's FIN, it counts as a
// failure.
func (c *served) end(f *failure) {
	if f != nil {
		c.server.failures++
		c.server.log.printf("%v: %v", c.peer, f)
	}
	c.seat.giveUp()
	c.server.log.printf("closed %v", c.peer)
}

// ---- What flows ----

// source is what is to be sent on one connection. It is a stream of bytes, and each byte is known
// by its offset in the stream. There are two sources: the MESSAGEs, and standard input. At any time
//
//	0 <= settled <= sent <= end
//
//	bytes before settled    are needed no more
//	from settled to sent    are sent, and kept to be compared with what comes back
//	from sent to end        are taken in, and not sent yet
//	from end on             are not there yet
//
// In echo a byte is settled when it has come back and was compared. In eof a byte is settled when
// it is sent.
type source interface {
	// refill takes in the bytes that can be had now. Bytes before settled are no longer needed.
	refill(settled int64)

	end() int64                  // the offset before which all is taken in
	piece(from, to int64) []byte // the longest contiguous part that begins at from, up to to
	state() inputState           // of what follows end
	due() time.Duration          // when refill has more by the clock alone, or never
}

// inputState tells whether more bytes will follow those that were taken in.
type inputState uint8

const (
	goesOn    inputState = iota // more rounds will begin
	undecided                   // only the next read of standard input tells whether there is more
	ended                       // nothing follows end
	emptyEnd                    // nothing follows end, which is 0
	failed                      // standard input could not be read
)

// ring holds the bytes of a stream: the byte with offset n stands at n modulo the ring's length, so
// no byte is ever moved. The MESSAGEs are a ring that is always full. Standard input passes through
// a ring; there a settled byte can be overwritten by the byte whose offset is one whole length
// higher:
//
//	|...#########....|   and, where the stream has reached the end   |####......######|
//	    |        |       of the ring and gone on at its begin:           |     |
//	 settled    end                                                     end  settled
//
//	# kept, from settled to end      . free; behind end is the gap, where the next read goes
type ring []byte

// piece returns the bytes from offset from to offset to, or as many of them as are contiguous in
// the ring.
func (r ring) piece(from, to int64) []byte {
	size := int64(len(r))
	i := from % size
	return r[i:min(size, i+to-from)]
}

// messages is the source of the MESSAGEs: one block of bytes, shared by all connections, that is
// sent once in each round. A round begins when all bytes of the round before are settled, and not
// before a pause has passed since that round began.
type messages struct {
	clock  func() time.Duration
	block  ring          // never changed
	rounds int64         // in all; 0: without end
	pause  time.Duration // from the begin of one round to that of the next
	begun  int64         // rounds so far
	began  time.Duration // when the last one did
}

// refill begins the next round if its time has come.
func (m *messages) refill(settled int64) {
	if settled < m.end() {
		return
	}
	now := m.clock()
	if now >= m.due() { // never, after the last one
		m.begun++
		m.began = now
	}
}

func (m *messages) end() int64                  { return m.begun * int64(len(m.block)) }
func (m *messages) piece(from, to int64) []byte { return m.block.piece(from, to) }

func (m *messages) state() inputState {
	if m.rounds > 0 && m.begun == m.rounds {
		return ended
	}
	return goesOn
}

// due is the time from which on the next round may begin.
func (m *messages) due() time.Duration {
	switch {
	case m.state() == ended:
		return never
	case m.begun == 0:
		return atOnce
	}
	return after(m.began, m.pause)
}

// inputKind tells what standard input is.
type inputKind uint8

const (
	otherInput    inputKind = iota // a pipe, a socket, a device: a read may wait for somebody
	regularFile                    // with a size above 0: its bytes are there
	terminalInput                  // somebody types
)

const (
	ringSize  = 1 << 20   // bytes of standard input that are kept, at most
	inputRead = 256 << 10 // bytes of one read of it, at most
)

// input is the source that streams standard input. If its ring is full, nothing is read, so the
// memory stays constant. A regular file is read by the loop itself, because its bytes are there.
// Everything else may have to wait for somebody, so a goroutine reads it and posts what it got. (A
// console cannot be polled on every system, and O_NONBLOCK would stay set in the user's shell.)
type input struct {
	loop    *loop
	seat    *seat // that waits for the bytes
	spawn   func(func())
	reader  io.Reader
	kind    inputKind
	ring    ring
	taken   int64 // bytes read so far
	reading bool  // a goroutine reads into the gap, and nobody else looks there
	err     error // io.EOF, or why no more can be read
}

// refill reads once into the gap, or starts a goroutine that does.
func (in *input) refill(settled int64) {
	if in.reading || in.err != nil {
		return
	}
	gap := in.gap(settled)
	switch {
	case len(gap) == 0:
	case in.kind == regularFile:
		in.readHere(gap)
	default:
		in.readBeside(gap)
	}
}

func (in *input) readHere(gap []byte) {
	var n int
	var err error
	in.loop.unlocked(func() { n, err = in.reader.Read(gap) })
	in.took(n, err)
}

func (in *input) readBeside(gap []byte) {
	in.reading = true
	in.spawn(func() {
		n, err := in.reader.Read(gap)
		if err == io.EOF && in.kind == terminalInput {
			time.Sleep(terminalEOFDelay)
		}
		in.loop.post(func() {
			in.reading = false
			in.took(n, err)
			in.seat.touch(0)
		})
	})
}

// gap returns the room for the next read. Room in the ring becomes free in blocks of 256 KiB;
// otherwise a full ring would be filled by many reads of a few bytes. For example, when 300 KiB are
// settled, one block of them is free, and bytes can be taken in up to offset 1280 KiB.
func (in *input) gap(settled int64) []byte {
	roomEnd := settled - settled%inputRead + int64(len(in.ring))
	return in.ring.piece(in.taken, min(roomEnd, in.taken+inputRead))
}

// took notes the outcome of a read.
func (in *input) took(n int, err error) {
	if in.err == nil { // else it has ended, or was stopped, before
		in.taken += int64(n)
		in.err = err
	}
}

// stop ends the stream: no more is read.
func (in *input) stop() { in.took(0, io.EOF) }

func (in *input) end() int64                  { return in.taken }
func (in *input) piece(from, to int64) []byte { return in.ring.piece(from, to) }
func (in *input) due() time.Duration          { return never }

func (in *input) state() inputState {
	switch {
	case in.err == nil:
		return undecided
	case in.err != io.EOF:
		return failed
	case in.taken == 0:
		return emptyEnd
	}
	return ended
}

// mismatch describes the first byte that is not the echo of a byte sent.
type mismatch struct {
	at      int64 // its offset in the stream
	surplus bool  // no byte was sent there
	want    byte  // what was sent there
	got     byte  // what came back
}

// compare compares p, which came back, with the bytes of src that were sent. p begins at offset
// from, and sent is the offset of the first byte that was not sent. It counts the bytes that agree,
// and describes the first that does not.
func compare(p []byte, src source, from, sent int64) (good int, wrong *mismatch) {
	for good < len(p) {
		at := from + int64(good)
		if at == sent {
			return good, &mismatch{at: at, surplus: true, got: p[good]}
		}
		want := src.piece(at, min(sent, from+int64(len(p))))
		got := p[good : good+len(want)]
		if !bytes.Equal(got, want) { // in bulk; one by one only where it is known to end
			n := 0
			for got[n] == want[n] {
				n++
			}
			return good + n, &mismatch{at: at + int64(n), want: want[n], got: got[n]}
		}
		good += len(want)
	}
	return good, nil
}

func (m *mismatch) Error() string {
	hint := "altered on the path"
	if m.at == 0 {
		hint = "is this an echo server?"
	}
	if m.surplus {
		return fmt.Sprintf("more came back than was sent: byte %d is %#02x: %s", m.at, m.got, hint)
	}
	return fmt.Sprintf("byte %d differs: sent %#02x, came back %#02x: %s",
		m.at, m.want, m.got, hint)
}

// ---- Silence and verdict ----

// After each step of a connection a verdict is made of what is known about it, the facts. All rules
// stand in this room, as pure functions of the facts: who owes something, so that a clock measures
// his silence, and what the verdict is.

// idleClock measures the silence of somebody who owes something. It starts when the debt begins,
// and starts again with every sign of life. Signs of life of the peer are bytes that were read and,
// in eof, acknowledgements; that our own kernel takes bytes says nothing about the peer. Standard
// input shows life with the bytes that it brings.
type idleClock struct {
	limit time.Duration // the longest silence; 0: any
	owes  bool
	since time.Duration // when it started; means something while owes
}

// setOwes notes whether anything is owed now.
func (c *idleClock) setOwes(owes bool, now time.Duration) {
	if owes && !c.owes {
		c.since = now
	}
	c.owes = owes
}

// restart notes a sign of life.
func (c *idleClock) restart(now time.Duration) { c.since = now }

func (c *idleClock) deadline() time.Duration {
	if !c.owes || c.limit == 0 {
		return never
	}
	return after(c.since, c.limit)
}

// half is the state of one direction of a connection.
type half uint8

const (
	isOpen   half = iota
	hasEnded      // by a FIN: ours is out, or the peer's is read
	isBroken      // by an error; if out is, what the peer sent before may still be there to be read
)

// facts are everything that the rules depend on.
type facts struct {
	wrong        bool       // a byte came back that was not sent (echo)
	outputFailed bool       // standard output has failed
	input        inputState // of the source
	allSettled   bool       // each byte that was taken in
	allBack      bool       // each byte that was sent (echo)
	acknowledged bool       // each byte that is out, by the peer's kernel, and our FIN (eof)
	bufferFull   bool       // our kernel has refused bytes, for want of room
	out          half       // from us to the peer
	in           half       // from the peer to us
	silent       bool       // the peer owes something, and was silent for too long
	inputSilent  bool       // standard input owes something, and was silent for too long
}

// peerOwesEcho reports whether the peer owes a sign of life in echo. The peer has to send back what
// it got, and to take what we send. After a write has failed, the peer owes its end (EOF or an
// error), which a read will bring. After that end nothing more can come.
func peerOwesEcho(f facts) bool {
	if f.in != isOpen {
		return false
	}
	return !f.allBack || f.bufferFull || f.out == isBroken
}

// peerOwesEOF reports whether the peer owes a sign of life in eof. The peer has to take what we
// send, and to send its FIN after ours. After a write has failed, it owes its end.
func peerOwesEOF(f facts) bool {
	finOwed := f.out == hasEnded && f.in == isOpen
	return !f.acknowledged || f.bufferFull || f.out == isBroken || finOwed
}

// inputOwes reports whether everything depends on the next read of standard input: the peer has
// ended, all bytes that were read so far have done their work, and only that read can tell whether
// these were all.
func inputOwes(f facts) bool {
	return f.in != isOpen && f.input == undecided && f.allSettled
}

// outcome is a verdict. goOn means that there is none yet.
type outcome uint8

const (
	goOn outcome = iota
	wrongByte
	localFailure
	nothingToSend
	wholeJob
	peerEnded
	inputNotEnded
	tooSilent
)

// judgeEcho gives the verdict for -until echo: the first case that holds. It is asked after each
// step, when everything that a turn has brought is known. So the order of the events within the
// turn decides nothing.
func judgeEcho(f facts) outcome {
	switch {
	case f.wrong:
		return wrongByte
	case f.outputFailed || f.input == failed:
		return localFailure
	case f.input == emptyEnd:
		return nothingToSend
	case f.input == ended && f.allSettled:
		return wholeJob
	case inputOwes(f) && !f.inputSilent:
		// The peer may have ended at the right time. The next read of standard input tells. If it
		// says EOF, the job is whole. If it brings bytes, not all bytes are settled any more, and
		// the next case holds. If it brings nothing in time, inputSilent is set, and the next case
		// holds too.
		return goOn
	case f.in != isOpen:
		return peerEnded
	case f.silent && f.out == isBroken: // what the peer sent before it went has had time to come
		return peerEnded
	case f.silent:
		return tooSilent
	}
	return goOn
}

// judgeEOF gives the verdict for -until eof: the first case that holds. The peer's EOF does not end
// our sending, because a receiver that has nothing to say half-closes at once and still wants our
// bytes.
func judgeEOF(f facts) outcome {
	switch {
	case f.outputFailed || f.input == failed:
		return localFailure
	case f.in == isBroken: // a read has failed
		return peerEnded
	case f.out == isBroken && f.in == hasEnded: // a write has failed, and there is no more to read
		return peerEnded
	case f.out == isBroken && f.silent: // a write has failed, and nothing comes that tells why
		return peerEnded
	case f.out == hasEnded && f.in == hasEnded && f.acknowledged:
		return wholeJob
	case f.in == hasEnded && f.inputSilent: // the peer has ended, and we still cannot
		return inputNotEnded
	case f.silent:
		return tooSilent
	}
	return goOn
}

// These are the exit statuses. If a signal has left something undone, the status is 128 plus the
// number of the signal.
const (
	exitOK             = iota // every connection did its whole job; -serve was asked to end
	exitExchange              // reset, closed early, a wrong byte or one too many, ...
	exitUsage                 // the command line
	exitConnect               // no such name, refused, unreachable, connected to itself
	exitConnectTimeout        // the name's resolution included
	exitIOTimeout             // silence while the peer owed something
	exitLocal                 // standard input or output, or this machine lacks something
)

// ---- The client ----

// A connection is driven by up to three machines, one after the other, in one seat of the loop.
// Each of them hands the socket over to the next:
//
//	dial ----- there is ------> exchange ----- all bytes -----> drain
//	           a connection                    are back (echo)
//
//	It connects, and is         It sends and receives,          Our FIN is out, and it
//	watched for writable.       and is watched for              waits for the peer's, for
//	                            readable, and for writable      half a second at most.
//	                            after bytes were refused.
//
// Each machine can be the last one. A connection may have failed; with -until connect the job is
// done when there is a connection; and with -until eof the FINs are part of the exchange. What the
// three machines have in common is the connection. It knows what the report will tell about it, and
// it counts itself when it is finished.

// client is what all connections of a run share.
type client struct {
	loop      *loop
	options   *options
	world     *world
	log       logger
	tally     *tally
	block     []byte        // what each connection sends; nil: standard input is streamed
	addrs     []netip.Addr  // of HOST, in the order in which they are tried
	port      uint16        // of HOST
	connectBy time.Duration // the end of the time for all addresses
	buffer    []byte        // every socket is read into this one
	only      *connection   // where there is just one
	roundDone func(r round) // counts a round, and prints its line
}

const startBatch = 16 // connections begun between two looks at the poller

// starter is the machine that begins the connections, a few in each turn. The poller is asked in
// between; otherwise the time measured for one connection would include the time for starting all
// the others.
type starter struct {
	client *client
	seat   *seat
}

func (s *starter) interest() readiness     { return 0 }
func (s *starter) deadline() time.Duration { return atOnce }

func (s *starter) step(readiness) {
	c := s.client
	for range startBatch {
		if c.tally.begun == c.options.n {
			s.seat.giveUp()
			return
		}
		c.tally.begun++
		c.begin(c.tally.begun)
	}
}

// connection is what is known about one connection for all of its life, whichever machine has the
// seat. The numbers are for the report.
type connection struct {
	client      *client
	log         logger
	seat        *seat
	number      int // from 1
	peer        netip.AddrPort
	connected   time.Duration // when connect was answered; never: it was not
	lastRead    time.Duration // when the last byte was read; never: none was
	sent        int64         // bytes that the kernel took
	returned    int64         // bytes that came (back), in echo up to the first wrong one
	concluded   time.Duration // when the exchange had its verdict; never: it has none
	retransmits int           // segments sent again, or -1
}

// round describes one round that has come back, for the report.
type round struct {
	conn   *connection
	number int64
	took   time.Duration
}

// begin seats the machine that connects.
func (c *client) begin(number int) {
	conn := &connection{
		client:      c,
		log:         c.log,
		number:      number,
		connected:   never,
		lastRead:    never,
		concluded:   never,
		retransmits: -1,
	}
	if c.options.n == 1 {
		c.only = conn
	} else if c.log.verbose {
		conn.log.prefix = fmt.Sprintf("#%d ", number)
	}
	conn.seat = c.loop.sit(&dial{conn: conn, client: c})
}

// exchangeTime is the time from connected to the last byte that was read. If no byte was read, it
// ends at the verdict; if there is no verdict either, it ends now.
func (c *connection) exchangeTime() time.Duration {
	end := c.lastRead
	if end == never {
		end = min(c.concluded, c.client.loop.clock())
	}
	return end - c.connected
}

// finish closes the connection and counts it.
func (c *connection) finish(status int, f *failure) {
	c.noteRetransmits()
	c.seat.giveUp()
	c.log.printf("closed")
	c.client.tally.count(status, f, 1)
	if c.client.tally.counted() == c.client.options.n {
		c.client.loop.stopped = true
	}
}

// noteRetransmits asks the kernel for the number of retransmits. Only a run of one connection
// reports it.
func (c *connection) noteRetransmits() {
	if c == c.client.only && c.connected != never && c.seat.holding {
		_, c.retransmits = c.client.loop.sockets.path(c.seat.socket)
	}
}

// endRun ends the run because this machine lacks something. The connections that were not begun yet
// would fail in the same way, and are counted as failed. They count as begun then, so that no other
// connection that fails in this turn counts them again. The connections under way stay unfinished.
func (c *client) endRun(status int, f *failure) {
	notBegun := c.tally.n - c.tally.begun
	c.tally.begun = c.tally.n
	c.tally.count(status, f, notBegun)
	c.loop.stopped = true
}

// ---- The client: connecting ----

// dial is the machine that connects. It tries one address after the other, each with a new socket,
// until one connects. It waits for writability, because that is how a kernel says that connecting
// has ended.
type dial struct {
	conn   *connection
	client *client
	tried  int           // addresses so far
	began  time.Duration // when connect was called for the last one
	by     time.Duration // its deadline
	causes []error       // why each one failed
}

const minTry = time.Second // for one address of several, while that much is left

func (d *dial) interest() readiness     { return writable }
func (d *dial) deadline() time.Duration { return d.by }

// errSelf counts as a refusal, since nobody listens.
var errSelf = fmt.Errorf("%w (connected to itself)", errRefused)

func (d *dial) step(ready readiness) {
	if !d.conn.seat.holding {
		d.connectNext()
		return
	}
	if ready == 0 {
		return
	}
	local, peer, err := d.client.loop.sockets.connectResult(d.conn.seat.socket)
	switch {
	case err == errWouldBlock && d.client.loop.now < d.by:
	case err == errWouldBlock:
		d.goOnAfter(errTimedOut)
	case err == nil && local == peer:
		// If nobody listens on a local port, connect can happen to choose this same port as its own
		// ephemeral port. Then the socket connects to itself (RFC 9293 section 3.5, simultaneous
		// open), and everything sent comes back: a perfect, false echo.
		d.goOnAfter(errSelf)
	case err == nil:
		d.conn.log.printf("connected %v to %v", local, d.conn.peer)
		d.succeed(nil)
	case err == errReset: // there was a connection
		d.conn.log.printf("connected to %v", d.conn.peer)
		d.succeed(err)
	default:
		d.goOnAfter(err)
	}
}

// goOnAfter notes that the present address has failed, and goes on to the next one.
func (d *dial) goOnAfter(err error) {
	d.noteCause(err)
	d.connectNext()
}

// noteCause keeps the reason why the present address has failed, and closes its socket.
func (d *dial) noteCause(err error) {
	d.conn.seat.release()
	d.causes = append(d.causes, withoutCall("connect", err))
	d.conn.log.printf("connect %v: %v", d.conn.peer, err)
}

// connectNext begins to connect to the next address for which that is possible. If there is none
// left, the connection has failed, and is counted. If the reason is that this machine lacks
// something, the run ends too.
func (d *dial) connectNext() {
	for d.tried < len(d.client.addrs) && !d.lacks() {
		err := d.connect()
		if err == nil {
			return
		}
		d.noteCause(err)
	}
	status, f := d.judge()
	d.conn.finish(status, f)
	if d.lacks() {
		d.client.endRun(status, f)
	}
}

// connect makes a socket for the next address and calls connect(2) for it, once, without blocking.
func (d *dial) connect() error {
	c := d.client
	d.conn.peer = netip.AddrPortFrom(c.addrs[d.tried], c.port)
	d.tried++
	s, err := c.loop.sockets.openSocket(d.conn.peer, c.options.from)
	if err != nil {
		return err
	}
	d.conn.seat.hold(s)
	d.conn.log.printf("socket for %v", d.conn.peer)
	err = c.loop.sockets.setNonblock(s)
	if err != nil {
		return err
	}
	d.conn.log.printf("switch to non-blocking mode")
	d.began = c.loop.clock()
	d.by = d.shareOfTime()
	err = c.loop.sockets.connect(s, d.conn.peer)
	if err != nil {
		return err
	}
	d.conn.log.printf("connect is on its way")
	return nil
}

// shareOfTime returns the deadline for the present address. The time that is left is shared evenly
// by this address and those not tried yet. But an address gets at least minTry, if that much is
// left.
func (d *dial) shareOfTime() time.Duration {
	left := max(0, d.client.connectBy-d.began)
	sharers := len(d.client.addrs) - d.tried + 1
	share := left / time.Duration(sharers)
	return after(d.began, min(left, max(share, minTry)))
}

// lacks reports whether this machine has run out of something that every connection needs. Then no
// other address is tried.
func (d *dial) lacks() bool {
	if len(d.causes) == 0 {
		return false
	}
	err := d.causes[len(d.causes)-1]
	return errors.Is(err, errTooManyFiles) || err == errNoPort || err == errNoMemory ||
		err == errNoAddress && d.client.options.from.IsValid()
}

// judge gives the verdict on a connection that was never connected. The address that came furthest
// decides, since it tells most about HOST: refused (a host has answered), then timed out, then
// everything else. The text names every address.
func (d *dial) judge() (status int, f *failure) {
	if d.lacks() {
		return exitLocal, &failure{"connect", d.causes[len(d.causes)-1]}
	}
	texts := make([]string, len(d.causes))
	refused := false
	timedOut := false
	for i, err := range d.causes {
		texts[i] = fmt.Sprintf("%v: %v", d.client.addrs[i], err)
		refused = refused || errors.Is(err, errRefused)
		timedOut = timedOut || err == errTimedOut
	}
	status = exitConnect
	if timedOut && !refused {
		status = exitConnectTimeout
	}
	return status, &failure{"connect", errors.New(strings.Join(texts, "; "))}
}

// succeed ends connecting. If reset is not nil, there was a connection and the peer has reset it;
// bytes that the peer sent before can still be read.
func (d *dial) succeed(reset error) {
	d.conn.connected = d.client.loop.clock()
	d.client.tally.connect.add(d.conn.connected - d.began)
	if d.client.options.until == untilConnect {
		d.conn.finish(exitOK, nil)
		return
	}
	x := newExchange(d.conn)
	if reset != nil {
		x.breakSending(called("connect", reset))
	}
	d.conn.seat.handOver(x)
}

// ---- The client: sending and receiving ----

// exchange is the machine that sends, receives and compares. It has two halves, out and in.
// Whatever happens to them is noted, and at the end of each step one verdict is made of what is
// known.
type exchange struct {
	conn     *connection
	client   *client
	loop     *loop
	echo     bool // -until echo; else eof
	source   source
	input    *input    // the source, if that is standard input
	messages *messages // the source, if that is the MESSAGEs

	out        half
	in         half
	bufferFull bool          // the kernel has refused bytes, for want of room
	yields     bool          // there may be more to send, but the rest of the loop has a turn first
	acked      int64         // offset that the peer's kernel is known to have, our FIN as one (eof)
	ackLook    time.Duration // when to look at that again, once both halves have ended (eof)

	idle      idleClock // of the peer
	inputIdle idleClock // of standard input, once the peer has ended

	// These are for the text of the verdict.
	wrong     *mismatch
	broke     *failure // the first that the kernel said of a half that is broken
	outputErr error
	movedAt   time.Duration // when the last byte was sent, or was read and handed on
	goneAt    time.Duration // when the peer first was known to have ended; never: it was not
}

func newExchange(conn *connection) *exchange {
	c := conn.client
	x := &exchange{
		conn:      conn,
		client:    c,
		loop:      c.loop,
		echo:      c.options.until == untilEcho,
		idle:      idleClock{limit: c.options.ioTimeout},
		inputIdle: idleClock{limit: c.options.ioTimeout},
		goneAt:    never,
	}
	if c.block != nil {
		x.messages = &messages{
			clock:  c.loop.clock,
			block:  c.block,
			rounds: c.options.count,
			pause:  c.options.every,
		}
		x.source = x.messages
		return x
	}
	x.input = &input{
		loop:   c.loop,
		seat:   conn.seat,
		spawn:  c.world.spawn,
		reader: c.world.stdin,
		kind:   c.world.kind,
		ring:   make(ring, ringSize),
	}
	x.source = x.input
	return x
}

// interest: the exchange writes without waiting for writability. It waits for that only after the
// kernel has refused bytes. If it always did, the poller would report nearly always that there is
// room, and the loop would not sleep.
func (x *exchange) interest() readiness {
	var want readiness
	if x.in == isOpen {
		want |= readable
	}
	if x.bufferFull && x.out == isOpen {
		want |= writable
	}
	return want
}

// deadline is the earliest time at which somebody's silence becomes too long, or at which there is
// something more to do.
func (x *exchange) deadline() time.Duration {
	if x.yields {
		return atOnce
	}
	by := min(x.idle.deadline(), x.inputIdle.deadline())
	// The next round cannot begin before the present one is settled, even if its time has come.
	// Until then due would lie in the past, and the loop would not sleep.
	if x.out == isOpen && x.settled() == x.source.end() {
		by = min(by, x.source.due())
	}
	if x.bothEnded() {
		by = min(by, x.ackLook)
	}
	return by
}

// step: the order of the lines is that of causes and effects. Settled bytes make room for input,
// input can be sent, and the end of the input leads to our FIN. Whatever a line makes possible is
// tried by the lines below it, in the same step, because no event will tell about it. For example,
// if halfClose stood above send, our FIN would not follow the last bytes: nothing is left to be
// sent, so no readiness would wake the machine, while the peer waits for the FIN.
func (x *exchange) step(ready readiness) {
	if ready&readable != 0 {
		x.receive() // settles bytes, so that the ring has room, and the next round may begin
	}
	if ready&writable != 0 {
		x.bufferFull = false
	}
	x.send() // what is there, to its end if that is reached
	if !x.echo {
		x.halfClose() // after the end
		x.countAcks() // of all that is out, our FIN included
	}
	f := x.facts()
	x.runClocks(f) // for what is owed now
	x.conclude(f)
}

// receive reads once. If there is more to read, the level-triggered poller will report it again. A
// read of 0 bytes is EOF. But a kernel tells of a reset only once: if a write was told of it, reads
// return 0 bytes afterwards, and the log must not call that a FIN.
func (x *exchange) receive() {
	n, err := x.loop.sockets.read(x.conn.seat.socket, x.client.buffer)
	switch {
	case err == nil:
		x.arrived(x.client.buffer[:n])
	case err == errWouldBlock:
	case err == io.EOF && x.out == isBroken:
		x.in = isBroken
	case err == io.EOF:
		x.in = hasEnded
		x.conn.log.printf("the peer's FIN")
		if !x.echo && x.input != nil && x.input.kind == terminalInput {
			x.input.stop() // nobody types to somebody who has gone
		}
	default:
		x.in = isBroken
		x.noteBroken(called("read", err))
	}
}

// arrived compares the bytes that were read, and hands the right ones on. The times are taken
// before standard output is written, because that can block. The peer's clock is restarted after
// it, because a slow standard output is not the peer's silence.
func (x *exchange) arrived(p []byte) {
	good := len(p)
	if x.echo {
		good, x.wrong = compare(p, x.source, x.conn.returned, x.conn.sent)
	}
	x.conn.lastRead = x.loop.clock()
	x.conn.returned += int64(good)
	x.client.tally.returned += int64(good)
	x.conn.log.data("recv", p)
	if good > 0 {
		x.noteRound()
		x.handOn(p[:good])
	}
	x.movedAt = x.loop.clock()
	x.idle.restart(x.movedAt)
}

// noteRound counts the present round of MESSAGEs, if its last byte was just read.
func (x *exchange) noteRound() {
	m := x.messages
	if x.echo && m != nil && x.conn.returned == m.end() {
		x.client.roundDone(round{x.conn, m.begun, x.conn.lastRead - m.began})
	}
}

// handOn writes the bytes that came back to standard output. With several connections it does not,
// since their bytes would be mixed.
func (x *exchange) handOn(p []byte) {
	if x.client.options.n == 1 && x.outputErr == nil {
		x.loop.unlocked(func() { _, x.outputErr = x.client.world.stdout.Write(p) })
	}
}

// send takes in bytes from the source and writes them, until there are no more or the kernel
// refuses them. After each write it looks at the source again: one read may not have brought
// everything that is there, and in eof a write makes room in the ring.
func (x *exchange) send() {
	x.yields = false
	for written := 0; written < sendShare; {
		x.takeIn()
		if !x.canWrite() {
			return
		}
		written += x.write()
	}
	x.yields = !x.bufferFull
}

const sendShare = 1 << 20 // bytes after which a step sends no more

// takeIn makes the source take in the bytes that it can have. After the peer's end no other round
// begins. (The first round always begins, because the first step comes before anything was read.)
// Standard input is still read after the peer's end, since the verdict depends on whether it has
// ended too.
func (x *exchange) takeIn() {
	if x.in == isOpen || x.input != nil {
		x.source.refill(x.settled())
	}
}

// canWrite reports whether there are bytes to write and somebody will take them. An echo server
// returns nothing more after its end. In eof the peer still takes bytes after its FIN.
func (x *exchange) canWrite() bool {
	isUseful := x.in == isOpen || !x.echo
	return isUseful && x.out == isOpen && !x.bufferFull && x.conn.sent < x.source.end()
}

// write writes once. If the kernel takes only a part, it has refused the rest, and another write
// would only be told so.
func (x *exchange) write() int {
	p := x.source.piece(x.conn.sent, x.source.end())
	n, err := x.loop.sockets.write(x.conn.seat.socket, p)
	if err != nil && err != errWouldBlock {
		x.breakSending(called("write", err))
		return 0
	}
	x.bufferFull = n < len(p)
	x.conn.sent += int64(n)
	x.client.tally.sent += int64(n)
	if n > 0 {
		x.movedAt = x.loop.clock()
		x.inputIdle.restart(x.movedAt) // it has brought these bytes
		x.conn.log.data("sent", p[:n])
	}
	return n
}

// settled returns the offset before which no byte is needed any more.
func (x *exchange) settled() int64 {
	if x.echo {
		return x.conn.returned
	}
	return x.conn.sent
}

// breakSending ends sending before its time.
func (x *exchange) breakSending(f *failure) {
	x.out = isBroken
	x.noteBroken(f)
}

// noteBroken keeps the first failure that the kernel has told.
func (x *exchange) noteBroken(f *failure) {
	x.conn.log.printf("%v", f)
	if x.broke == nil {
		x.broke = f
	}
}

// ---- The client: -until eof ----

// With -until eof an exchange has phases. First our bytes go out. Our FIN follows the last byte, so
// that the peer can end too. When the peer's FIN was read as well, only acknowledgements may be
// missing. In this last phase there is nothing left to be read or written, so the socket is watched
// for nothing, and no event will tell of acknowledgements or of a reset. So the exchange asks for
// both of them every 10 ms. (The peer's FIN may also come before ours. It does not change what we
// send.)

// halfClose sends our FIN behind the last byte.
func (x *exchange) halfClose() {
	state := x.source.state()
	atEnd := x.conn.sent == x.source.end() && (state == ended || state == emptyEnd)
	if x.out != isOpen || !atEnd {
		return
	}
	x.conn.log.printf("shutdown: all %d bytes are sent", x.conn.sent)
	err := x.loop.sockets.closeWrite(x.conn.seat.socket)
	if err != nil {
		x.breakSending(called("shutdown", err))
		return
	}
	x.out = hasEnded
}

// bothEnded reports whether our FIN is out and the peer's FIN was read.
func (x *exchange) bothEnded() bool { return x.out == hasEnded && x.in == hasEnded }

// countAcks updates acked, the offset before which the peer's kernel has acknowledged everything.
// It is the number of bytes that are out, less the bytes that our kernel still keeps because it may
// have to send them again. Where the kernel does not tell (-1), everything counts as acknowledged.
// During an upload the peer may send nothing back, and then acknowledgements are its only sign of
// life. No event tells of them, so each step asks for them. If there is no other step, the idle
// clock's deadline brings one, so that they are asked for before a silence is declared too long.
func (x *exchange) countAcks() {
	if x.out == isBroken {
		return
	}
	unacknowledged, _ := x.loop.sockets.path(x.conn.seat.socket)
	acked := x.offset() - int64(max(0, unacknowledged))
	if acked > x.acked {
		x.acked = acked
		x.idle.restart(x.loop.clock())
	}
	if x.bothEnded() {
		x.ackLook = after(x.loop.clock(), ackPause)
		x.findReset()
	}
}

const ackPause = 10 * time.Millisecond // between two looks, where only acknowledgements are missing

// findReset asks for a pending error, and words it as a read would have done. Other errors than
// these two are what a router has said (ICMP) about a connection that still goes on.
func (x *exchange) findReset() {
	err := x.loop.sockets.pendingError(x.conn.seat.socket)
	if err == errReset || err == errTimedOut {
		x.breakSending(called("read", err))
	}
}

// offset is the number of bytes that are out. Our FIN counts as one byte, because the kernel
// acknowledges it so.
func (x *exchange) offset() int64 {
	if x.out == hasEnded {
		return x.conn.sent + 1
	}
	return x.conn.sent
}

// ---- The client: how an exchange ends ----

// runClocks starts and stops the clocks of silence. It also notes when the peer has ended.
func (x *exchange) runClocks(f facts) {
	now := x.loop.clock()
	if x.goneAt == never && (x.in != isOpen || x.out == isBroken) {
		x.goneAt = now
	}
	if x.echo {
		x.idle.setOwes(peerOwesEcho(f), now)
	} else {
		x.idle.setOwes(peerOwesEOF(f), now)
	}
	x.inputIdle.setOwes(inputOwes(f), now)
}

// facts collects the facts, but for the silences, which the clocks know.
func (x *exchange) facts() facts {
	return facts{
		wrong:        x.wrong != nil,
		outputFailed: x.outputErr != nil,
		input:        x.source.state(),
		allSettled:   x.settled() == x.source.end(),
		allBack:      x.conn.returned == x.conn.sent,
		acknowledged: x.acked == x.offset(),
		bufferFull:   x.bufferFull,
		out:          x.out,
		in:           x.in,
	}
}

// conclude asks for the verdict and acts on it. A silence that has become too long since this turn
// began does not count yet: the next turn will try the socket first, and then judge.
func (x *exchange) conclude(f facts) {
	now := x.loop.now
	f.silent = now >= x.idle.deadline()
	f.inputSilent = now >= x.inputIdle.deadline()
	var verdict outcome
	if x.echo {
		verdict = judgeEcho(f)
	} else {
		verdict = judgeEOF(f)
	}
	if verdict == goOn {
		return
	}
	x.conn.concluded = x.loop.clock()
	x.client.tally.exchange.add(x.conn.exchangeTime())
	switch {
	case verdict != wholeJob:
		x.conn.finish(x.explain(verdict))
	case x.in == isOpen:
		x.startDrain()
	default:
		x.conn.finish(exitOK, nil)
	}
}

// startDrain half-closes after an echo, and hands the seat over to drain. The job is done, and only
// a surplus byte can change that. If the socket were closed at once, such a byte would be hidden,
// and be answered with a reset.
func (x *exchange) startDrain() {
	x.conn.log.printf("shutdown: all %d bytes are back", x.conn.returned)
	x.loop.sockets.closeWrite(x.conn.seat.socket) // if it fails, the peer has gone already
	x.client.tally.draining++
	by := after(x.loop.clock(), drainTime)
	x.conn.seat.handOver(&drain{conn: x.conn, client: x.client, by: by})
}

const drainTime = 500 * time.Millisecond // for the peer's FIN after ours

// drain is the machine that waits half a second at most for the peer's FIN, after ours. The job is
// done, so an error is as good as the peer's FIN, and so is the end of the time.
type drain struct {
	conn   *connection
	client *client
	by     time.Duration
}

func (d *drain) interest() readiness     { return readable }
func (d *drain) deadline() time.Duration { return d.by }

func (d *drain) step(ready readiness) {
	if ready == 0 {
		return
	}
	n, err := d.client.loop.sockets.read(d.conn.seat.socket, d.client.buffer)
	if err == errWouldBlock && d.client.loop.now < d.by {
		return
	}
	d.client.tally.draining--
	if n > 0 {
		wrong := &mismatch{at: d.conn.returned, surplus: true, got: d.client.buffer[0]}
		d.conn.finish(exitExchange, &failure{"compare", wrong})
		return
	}
	d.conn.log.printf("drained: %v", err) // EOF, would block at the end of the time, or a failure
	d.conn.finish(exitOK, nil)
}

// ---- The client: a verdict in words ----

// errNothing is a failure, because standard input may be empty by mistake: under cron, or after ssh
// -n, it is /dev/null.
var errNothing = &failure{"input", errors.New("nothing to send: give a MESSAGE, or -until connect")}

// explain returns the exit status and the words of a verdict.
func (x *exchange) explain(verdict outcome) (status int, f *failure) {
	switch verdict {
	case wrongByte:
		if x.wrong.surplus && x.broke != nil {
			return exitExchange, x.broke // a failed write may have sent a part: this is its echo
		}
		return exitExchange, &failure{"compare", x.wrong}
	case localFailure:
		return exitLocal, x.streamFailure()
	case nothingToSend:
		return exitLocal, errNothing
	case inputNotEnded:
		return exitExchange, &failure{"input", errors.New("standard input was not at its end")}
	case tooSilent:
		return exitIOTimeout, &failure{"silence", errors.New(x.silence())}
	}
	status = exitExchange
	if x.broke != nil && errors.Is(x.broke.err, errTimedOut) {
		status = exitIOTimeout // the kernel has lost patience before we did
	}
	return status, x.peerFailure()
}

// streamFailure tells which standard stream has failed, and why.
func (x *exchange) streamFailure() *failure {
	if x.outputErr == nil {
		return &failure{"input", fmt.Errorf("standard input: %w", x.input.err)}
	}
	if readerGone(x.outputErr) {
		return &failure{"output", errors.New("standard output: nobody reads it any more")}
	}
	return &failure{"output", fmt.Errorf("standard output: %w", x.outputErr)}
}

// peerFailure tells how the peer has ended: what the kernel has said, or "closed by the peer after
// 2.0s of silence, before round 2", or "closed early (3 of 6 bytes)".
func (x *exchange) peerFailure() *failure {
	idle := x.idleText()
	switch {
	case x.broke != nil:
		return &failure{x.broke.op, fmt.Errorf("%w%s", x.broke.err, idle)}
	case idle != "":
		return &failure{"closed", fmt.Errorf("closed by the peer%s", idle)}
	}
	err := fmt.Errorf("closed early (%d of %d bytes)", x.settled(), x.source.end())
	return &failure{"closed", err}
}

// idleText tells for how long the flow was idle when the peer ended, and before what. It is empty
// if bytes were still missing, or if none were sent at all.
func (x *exchange) idleText() string {
	if x.conn.sent == 0 || x.settled() < x.source.end() {
		return ""
	}
	silence := seconds(x.goneAt - x.movedAt)
	switch x.source.state() {
	case goesOn:
		return fmt.Sprintf(" after %s of silence, before round %d", silence, x.messages.begun+1)
	case undecided:
		return fmt.Sprintf(" after %s of silence, before standard input ended", silence)
	}
	return ""
}

// silence is the text of a timeout. If nothing of a later round came back, it also tells for how
// long the flow was idle before that round: a device on the path may have forgotten the flow
// meanwhile.
func (x *exchange) silence() string {
	text := fmt.Sprintf("timed out after %v of silence (%d of %d bytes)",
		x.idle.limit, x.settled(), x.source.end())
	m := x.messages
	if m != nil && m.begun > 1 && x.conn.returned == m.end()-int64(len(m.block)) {
		idle := seconds(m.began - x.conn.lastRead)
		text += fmt.Sprintf(", idle for %s before round %d", idle, m.begun)
	}
	return text
}

// ---- Names ----

// Package net finds the addresses of a name, in the way of each system (newResolver in
// poller_<os>.go). This room refuses what is not a name, and makes what package net says fit for a
// terminal and for an exit status.

const maxAddrs = 128 // of a name: each is tried, and named if all fail

var (
	errNoName   = errors.New("no such name")
	errNoFamily = errors.New("no address of that family")
)

// checkHost refuses a HOST that looks like an address and is not one. If it were taken for a name,
// a name server would be asked for it, and might even know an answer.
func checkHost(host string) error {
	_, err := netip.ParseAddr(host)
	if err == nil {
		return nil
	}
	if strings.ContainsAny(host, "[]:") {
		return fmt.Errorf("HOST %s: is no address, and no name has brackets or colons", word(host))
	}
	name := strings.TrimSuffix(host, ".")
	label := name[strings.LastIndexByte(name, '.')+1:]
	if label != "" && strings.Trim(label, "0123456789") == "" {
		return fmt.Errorf("HOST %s: is no address, and no name ends in a number", word(host))
	}
	return nil
}

// resolve finds the addresses of host in a family: ip4, ip6, or ip for both. (localhost has always
// both.) limit is a time limit, 0 for none. The errors do not repeat the name; errors.Is recognises
// errNoName, errNoFamily, errTimedOut and errTooManyFiles.
func resolve(host, family string, limit time.Duration) (addrs []netip.Addr, err error) {
	if isLocalhost(host) {
		return []netip.Addr{netip.IPv6Loopback(), netip.AddrFrom4([4]byte{127, 0, 0, 1})}, nil
	}
	ctx := context.Background()
	if limit > 0 {
		limited, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		ctx = limited
	}
	addrs, err = ask(ctx, newResolver(), host, family)
	if err != nil {
		return nil, resolverError(err)
	}
	return addrs, nil
}

// isLocalhost reports whether host is a name of loopback. Such a name is loopback's even if a hosts
// file lacks it or a name server says something else, so nobody is asked for it (RFC 6761 section
// 6.3).
func isLocalhost(host string) bool {
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	return name == "localhost" || strings.HasSuffix(name, ".localhost")
}

// ask calls LookupNetIP, which asks for the wanted family alone, but loses zones. A link-local
// address is of no use without its zone, so a host with such an address is looked up once more.
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

// resolverError turns an error of the resolver into one of ours.
func resolverError(err error) error {
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
	return fmt.Errorf("name server %s: %w", shortened(printable(dns.Server)), cause)
}

// causeOf returns the last words of an error of package net. There are many such errors, without
// error numbers behind them: "read udp 127.0.0.1:39482->127.0.0.2:53: read: connection refused".
func causeOf(text string) error {
	if strings.Contains(text, errTooManyFiles.Error()) {
		return errTooManyFiles
	}
	words := strings.Split(text, ": ")
	return errors.New(shortened(printable(words[len(words)-1])))
}

// zoneIndex returns the number of a zone, 0 for no zone. A zone can be the name of an interface
// (RFC 4007 section 11).
func zoneIndex(zone string) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	number, err := strconv.ParseUint(zone, 10, 32)
	if err == nil {
		return uint32(number), nil
	}
	named, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, fmt.Errorf("zone %s: %w", word(zone), causeOf(err.Error()))
	}
	return uint32(named.Index), nil
}

// ---- The run of one command line ----

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

// run is echomux as a function. It returns the exit status.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	o, err := parse(args)
	if err != nil {
		fmt.Fprintf(stderr, "echomux: %v (echomux -h shows the usage)\n", err)
		return exitUsage
	}
	if o.help {
		io.WriteString(stdout, usage)
		return exitOK
	}
	if o.version {
		printVersion(stdout)
		return exitOK
	}
	p, err := newPoller()
	if err == nil && o.needsRuntimePoller() {
		err = startRuntimePoller()
	}
	if o.streams() {
		widenInput(stdin)
	}
	s := newSession(o, world{
		poller:  p,
		sockets: system{},
		clock:   newClock(),
		wall:    time.Now,
		spawn:   func(f func()) { go f() },
		resolve: resolve,
		stdin:   stdin,
		kind:    kindOf(stdin),
		stdout:  stdout,
		stderr:  stderr,
	})
	if err != nil {
		s.fail(exitLocal, &failure{"poller", err})
		return s.report()
	}
	s.catchSignals()
	return s.run()
}

// kindOf tells what standard input is. In a test it can be anything.
func kindOf(stdin io.Reader) inputKind {
	file, ok := stdin.(*os.File)
	if !ok {
		return otherInput
	}
	return kindOfInput(file)
}

// widenInput makes standard input hold a whole read, if it is a pipe. Each read hands bytes over
// from one goroutine to another, so fewer and larger reads are faster.
func widenInput(stdin io.Reader) {
	file, ok := stdin.(*os.File)
	if ok {
		widenPipe(file, inputRead)
	}
}

// onDescriptor calls f with file's descriptor (on Windows, its handle); if file is closed, it does
// not. file.Fd would put a pipe back into blocking mode, for all processes that share it.
func onDescriptor(file *os.File, f func(fd uintptr)) {
	raw, err := file.SyscallConn()
	if err == nil {
		raw.Control(f)
	}
}

// A poller_<os>.go defines these beside the contract. The lines do nothing; with them the compiler
// checks that nothing is missing.
var (
	_ sockets                       = system{}
	_ func() (poller, error)        = newPoller
	_ func() func() time.Duration   = newClock    // monotonic, finer than 0.1 ms
	_ func() *net.Resolver          = newResolver // of this system
	_ func(file *os.File) inputKind = kindOfInput
	_ func(pipe *os.File, size int) = widenPipe        // has it hold that many bytes, if it can
	_ func(err error) bool          = readerGone       // is err that of a pipe without a reader?
	_ time.Duration                 = terminalEOFDelay // Windows shows Ctrl-C as an EOF at first
	_ [3]os.Signal                  = [...]os.Signal{sigTerm, sigHup, sigPipe}
)

// world is everything outside that a run has to do with. A simulation replaces it.
type world struct {
	poller  poller
	sockets sockets
	clock   func() time.Duration // monotonic
	wall    func() time.Time
	spawn   func(f func()) // runs f beside the loop; f may post, and touches nothing else of it
	resolve func(host, family string, limit time.Duration) ([]netip.Addr, error)
	stdin   io.Reader
	kind    inputKind // of stdin
	stdout  io.Writer
	stderr  io.Writer
}

// session is the run of one command line.
type session struct {
	options     *options
	world       *world
	log         logger
	loop        *loop
	client      *client // nil with -serve
	server      *server // with -serve, and in the recipe; else nil
	tally       tally
	interrupted int      // the exit status of a signal; 0: there was none
	failure     *failure // why the run could not begin, or go on
	status      int      // with failure
}

func newSession(o *options, w world) *session {
	s := &session{options: o, world: &w}
	s.log = logger{w: w.stderr, verbose: o.verbose}
	s.loop = newLoop(w.poller, w.sockets, w.clock)
	s.tally.n = o.n
	if o.verbose {
		s.loop.onWatch = s.logWatching
	}
	if o.serve || o.recipe {
		s.server = &server{
			loop:     s.loop,
			log:      s.log,
			buffer:   make([]byte, chunkSize),
			complain: s.printComplaint,
		}
		s.server.log.prefix = "server: "
	}
	if !o.serve {
		s.client = &client{
			loop:      s.loop,
			options:   o,
			world:     s.world,
			log:       s.log,
			tally:     &s.tally,
			block:     o.block,
			port:      o.port,
			buffer:    make([]byte, chunkSize),
			roundDone: s.countRound,
		}
	}
	return s
}

// run is the whole run. It returns the exit status.
func (s *session) run() int {
	s.loop.turning.Lock()
	s.begin()
	s.loop.turning.Unlock()
	err := s.loop.run()
	s.loop.turning.Lock() // for good: what is reported now is not reported by a signal too
	if err != nil {
		s.fail(exitLocal, &failure{"poller", err})
	}
	status := s.report()
	s.loop.close()
	return status
}

// begin seats the first machines. One machine waits for the addresses of HOST; before it, another
// one waits for standard input, if that has to be known as a whole. Each of them leads to the next.
func (s *session) begin() {
	if s.options.progress > 0 && !s.options.quiet {
		s.showProgress()
	}
	_, err := zoneIndex(s.options.from.Zone())
	switch {
	case err != nil: // the address of -source is not of this machine
		s.fail(exitLocal, &failure{"source", fmt.Errorf("-source %v: %w", s.options.from, err)})
	case s.options.serve:
		s.withAddresses(s.listenAll)
	case s.options.recipe:
		s.withAddresses(s.connectToServer)
	case s.options.gathers():
		s.gather()
	default:
		s.withAddresses(s.connectAll)
	}
}

// fail ends the run before its time. If more goes wrong in the same turn, the first cause stays.
func (s *session) fail(status int, cause *failure) {
	s.loop.stopped = true
	if s.failure == nil {
		s.status = status
		s.failure = cause
	}
}

// ---- The run: what comes before the first connection ----

// errand is the machine that waits for work that is done in a goroutine, because the work blocks.
// The deadline is the loop's, so it holds whatever the work is stuck in.
type errand struct {
	session *session
	seat    *seat
	done    bool
	by      time.Duration
	next    func(done bool) // is called once: when the work is done, or its time is up
}

// startErrand makes a goroutine do the work, and then the loop call next. The work leaves its
// results in variables of the caller. next may read these variables only if done is true.
func (s *session) startErrand(work func(), by time.Duration, next func(done bool)) {
	e := &errand{session: s, by: by, next: next}
	e.seat = s.loop.sit(e)
	s.world.spawn(func() {
		work()
		s.loop.post(func() {
			e.done = true
			e.seat.touch(0)
		})
	})
}

func (e *errand) interest() readiness     { return 0 }
func (e *errand) deadline() time.Duration { return e.by }

func (e *errand) step(readiness) {
	if e.done || e.session.loop.now >= e.by {
		e.seat.giveUp()
		e.next(e.done)
	}
}

// gather reads standard input to its end, however long that takes, because all of it is sent more
// than once: in rounds, or on several connections.
func (s *session) gather() {
	var data []byte
	var err error
	read := func() { data, err = io.ReadAll(io.LimitReader(s.world.stdin, ringSize+1)) }
	s.startErrand(read, never, func(bool) {
		switch {
		case err != nil:
			s.fail(exitLocal, &failure{"input", fmt.Errorf("standard input: %w", err)})
		case len(data) > ringSize:
			s.fail(exitLocal, &failure{"input", errTooMuch})
		case len(data) == 0 && s.options.until == untilEcho:
			s.fail(exitLocal, errNothing)
		default:
			s.client.block = data // not nil, even if it is empty
			s.withAddresses(s.connectAll)
		}
	})
}

var errTooMuch = fmt.Errorf("standard input: more than %d bytes cannot be sent again", ringSize)

// withAddresses calls next with the addresses of HOST, as soon as they are known.
func (s *session) withAddresses(next func([]netip.Addr)) {
	limit := s.options.connectTimeout
	by := never
	if limit > 0 {
		by = after(s.loop.clock(), limit)
	}
	if s.client != nil {
		s.client.connectBy = by
	}
	if s.options.host == "" { // -serve on every address
		s.found([]netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}, next)
		return
	}
	literal, err := netip.ParseAddr(s.options.host)
	if err == nil {
		s.found([]netip.Addr{literal}, next)
		return
	}
	var addrs []netip.Addr
	ask := func() { addrs, err = s.world.resolve(s.options.host, s.options.family, limit) }
	s.startErrand(ask, by, func(done bool) {
		switch {
		case !done:
			s.notFound(errTimedOut)
		case err != nil:
			s.notFound(err)
		default:
			s.found(addrs, next)
		}
	})
}

// notFound ends the run: no address of HOST is known.
func (s *session) notFound(err error) {
	status := exitConnect
	switch {
	case errors.Is(err, errTimedOut):
		status = exitConnectTimeout
	case errors.Is(err, errTooManyFiles):
		status = exitLocal
	}
	host := shortened(printable(s.options.host))
	s.fail(status, &failure{"lookup", fmt.Errorf("lookup %s: %w", host, err)})
}

// found calls next with the addresses that can be used. They are unmapped (::ffff:192.0.2.1 is
// IPv4). They are of the family that is asked for, and of that of -source. Their zone, if there is
// one, is one of this machine. And each address is used only once.
func (s *session) found(addrs []netip.Addr, next func([]netip.Addr)) {
	var usable []netip.Addr
	unusable := errNoFamily
	for _, a := range addrs {
		a = a.Unmap()
		_, err := zoneIndex(a.Zone())
		switch {
		case err != nil:
			unusable = err
		case s.options.takes(a) && !slices.Contains(usable, a) && len(usable) < maxAddrs:
			usable = append(usable, a)
		}
	}
	if len(usable) == 0 {
		s.notFound(unusable)
		return
	}
	s.log.printf("resolved %s to %v", shortened(printable(s.options.host)), usable)
	next(usable)
}

// connectToServer is the recipe: the client connects to this program's own server.
func (s *session) connectToServer(addrs []netip.Addr) {
	s.listenAll(addrs)
	if s.failure == nil {
		s.client.port = s.server.listeners[0].at.Port()
		s.connectAll(addrs)
	}
}

// connectAll begins the connections.
func (s *session) connectAll(addrs []netip.Addr) {
	s.client.addrs = addrs
	st := &starter{client: s.client}
	st.seat = s.loop.sit(st)
}

// portTries is how often the kernel may choose a port for -serve 0.
const portTries = 20

// listenAll starts a listener on each address. An address that this kernel lacks (say, of IPv6) is
// passed over, as long as another address can be served. If the kernel chooses the port, the port
// that it has chosen for one address may be taken at the next. Then the kernel has to choose again.
func (s *session) listenAll(addrs []netip.Addr) {
	var err error
	for range portTries {
		err = s.listenOnce(addrs)
		if err == nil {
			return
		}
		if s.options.port != 0 || len(s.server.listeners) == 0 || errors.Is(err, errTooManyFiles) {
			s.fail(exitLocal, &failure{"listen", err})
			return
		}
		for _, l := range s.server.listeners {
			l.seat.giveUp()
		}
		s.server.listeners = nil
	}
	s.fail(exitLocal, &failure{"listen", fmt.Errorf("no port is free at every address: %w", err)})
}

// listenOnce listens at each address, on one port for all.
func (s *session) listenOnce(addrs []netip.Addr) error {
	port := s.options.port
	var lacking error
	for _, a := range addrs {
		at := netip.AddrPortFrom(a, port)
		bound, err := s.server.listen(at)
		if err == errNoAddress {
			lacking = fmt.Errorf("listen %v: %w", at, err)
			continue
		}
		if err != nil {
			return fmt.Errorf("listen %v: %w", at, err)
		}
		port = bound.Port()
	}
	if len(s.server.listeners) == 0 {
		return lacking
	}
	for _, l := range s.server.listeners {
		s.printListening(l.at)
	}
	return nil
}

// ---- The run: progress, signals, the Go runtime ----

// progress is the machine that prints a line now and then.
type progress struct {
	session  *session
	due      time.Duration
	since    time.Duration // of the line before
	sent     int64         // by then
	returned int64         // by then
}

func (s *session) showProgress() {
	now := s.loop.clock()
	s.loop.sit(&progress{session: s, since: now, due: after(now, s.options.progress)})
}

func (p *progress) interest() readiness     { return 0 }
func (p *progress) deadline() time.Duration { return p.due }

func (p *progress) step(readiness) {
	s := p.session
	now := s.loop.clock()
	if s.loop.now < p.due {
		return
	}
	moved := max(s.tally.sent-p.sent, s.tally.returned-p.returned)
	s.printProgress(moved, now-p.since)
	p.sent = s.tally.sent
	p.returned = s.tally.returned
	p.since = now
	p.due = after(now, s.options.progress)
}

// signalLimit is the time after which a signal ends the process even if it is stuck.
const signalLimit = 450 * time.Millisecond

// catchSignals makes the first SIGINT, SIGTERM or SIGHUP end the process, with the line so far.
// Later signals do nothing, because timeout(1) signals a process and then its group. A signal that
// was ignored at the start stays ignored, where Go can know that: SIGINT and SIGHUP (os/signal).
func (s *session) catchSignals() {
	signal.Ignore(sigPipe) // a closed standard output is an error to report, not a silent death
	caught := make(chan os.Signal, 1)
	for _, sig := range []os.Signal{os.Interrupt, sigTerm, sigHup} {
		if !signal.Ignored(sig) {
			signal.Notify(caught, sig)
		}
	}
	go func() {
		s.endBy(statusOfSignal(<-caught))
	}()
}

// endBy ends the process because of a signal. It runs in a goroutine of its own, and prints the
// report in the loop's place, as soon as the loop does not hold turning: between two turns, or
// while it is stuck in a write to standard output, or in a file system that hangs. During a write
// to standard error the loop holds turning, and the report would be stuck too; then a timer ends
// the process. The timer may need the Go runtime's poller, which a short run has not started yet.
// If there is no room for that poller, there is no timer.
func (s *session) endBy(status int) {
	statusThen := status
	if s.options.serve {
		statusThen = exitOK // as far as anybody can tell without the lock, it listens
	}
	if startRuntimePoller() == nil {
		time.AfterFunc(signalLimit, func() { os.Exit(statusThen) })
	}
	s.loop.turning.Lock()
	s.interrupted = status
	os.Exit(s.report())
}

// statusOfSignal returns 128 plus the signal's number, as shells do.
func statusOfSignal(sig os.Signal) int {
	switch sig {
	case sigTerm:
		return 143
	case sigHup:
		return 129
	}
	return 130
}

// startRuntimePoller makes the Go runtime create its own poller now, when a lack of descriptors can
// still be reported. The runtime creates that poller when it first needs it, for a timer or for a
// socket of package net. If there are no descriptors left by then, the process dies with a stack
// trace (netpollinit in the runtime's netpoll_epoll.go). So another poller of ours is opened first,
// to see whether there is room, and closed again. Then a sleep sets a timer.
func startRuntimePoller() error {
	trial, err := newPoller()
	if err != nil {
		return err
	}
	trial.close()
	time.Sleep(time.Nanosecond)
	return nil
}

// needsRuntimePoller reports whether the run looks up a name, or goes on for so long that the
// garbage collector, which sets timers, may run. One short exchange needs no runtime poller, and
// saves the system calls for it.
func (o *options) needsRuntimePoller() bool {
	_, err := netip.ParseAddr(o.host)
	isName := err != nil
	return isName || o.serve || o.n > 1 || o.countsRounds() || o.streams() || o.progress > 0
}

// ---- The command line ----

// untilKind tells when a connection's job is whole.
type untilKind uint8

const (
	untilEcho    untilKind = iota // every byte came back, identical
	untilEOF                      // all is sent, and the peer has ended too
	untilConnect                  // there is a connection
)

// options are what the command line says, checked.
type options struct {
	connectTimeout time.Duration // 0: no limit
	ioTimeout      time.Duration // 0: no limit
	until          untilKind
	n              int
	count          int64 // 0: without end
	every          time.Duration
	progress       time.Duration // 0: no lines
	from           netip.Addr    // the local address (-source); invalid: the kernel chooses
	family         string        // ip, ip4 or ip6, the words of package net
	verbose        bool
	quiet          bool
	serve          bool
	recipe         bool
	help           bool
	version        bool
	host           string // "": every address (-serve)
	port           uint16 // 0: the kernel chooses (-serve)
	block          []byte // the MESSAGEs; nil: standard input
}

const usage = `usage: echomux [flags] HOST PORT [MESSAGE ...]  what is sent has to come back
       echomux -serve [HOST] PORT              be the echo server
       echomux                                 the recipe: both ends in one loop
Each MESSAGE is sent with a newline; without one, standard input is sent.
  -connect-timeout 3.5s  name to connection, all addresses together; 0: no limit
  -io-timeout 5.5s       longest silence while the peer owes something; 0: none
  -until echo            done when: connect, there is a connection; echo, every
                         byte is back; eof, all is sent and the peer ended too
  -n 1                   connections at once
  -count 1               rounds on each connection; 0: until Ctrl-C
  -every 0s              between the starts of two rounds; each is a line
  -progress 0s           a line of progress this often
  -source ADDRESS        connect from this local address
  -4, -6                 one address family
  -v, -q                 log every step; print only failures
  -version               what this binary is
exit status: 0 every connection did its whole job; 1 the exchange went wrong;
2 usage; 3 not connected; 4 connect timeout; 5 I/O timeout; 6 local failure;
130, 143, 129 interrupted. The rest is in README.md.
`

// parse reads and checks the command line. Its errors name the word that is wrong.
func parse(args []string) (*options, error) {
	o := &options{}
	words, err := o.parseFlags(args)
	if err == flag.ErrHelp {
		o.help = true
		return o, nil
	}
	if err != nil || o.version {
		return o, err
	}
	switch {
	case len(words) == 0 && !o.serve:
		o.recipe = true
		o.verbose = o.verbose || !o.quiet
		o.block = []byte("data1\ndata2\n")
		o.host = "127.0.0.1"
		if o.family == "ip6" || o.from.Is6() {
			o.host = "::1"
		}
	default:
		words, err = o.parsePlace(words)
	}
	if err != nil {
		return o, err
	}
	err = o.parseMessages(words)
	if err != nil {
		return o, err
	}
	return o, o.check()
}

// parseFlags reads the flags, and returns the words after them.
func (o *options) parseFlags(args []string) (words []string, err error) {
	o.connectTimeout = 3500 * time.Millisecond
	o.ioTimeout = 5500 * time.Millisecond
	set := flag.NewFlagSet("echomux", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.Func("connect-timeout", "", setTime(&o.connectTimeout))
	set.Func("io-timeout", "", setTime(&o.ioTimeout))
	set.Func("until", "", o.setUntil)
	set.IntVar(&o.n, "n", 1, "")
	set.Int64Var(&o.count, "count", 1, "")
	set.Func("every", "", setTime(&o.every))
	set.Func("progress", "", setTime(&o.progress))
	set.Func("source", "", o.setSource)
	four := set.Bool("4", false, "")
	six := set.Bool("6", false, "")
	set.BoolVar(&o.verbose, "v", false, "")
	set.BoolVar(&o.quiet, "q", false, "")
	set.BoolVar(&o.serve, "serve", false, "")
	set.BoolVar(&o.version, "version", false, "")
	err = set.Parse(args)
	if err != nil && err != flag.ErrHelp {
		err = errors.New(shortened(printable(err.Error())))
	}
	switch {
	case err != nil:
		return nil, err
	case *four && *six:
		return nil, errors.New("-4 and -6 exclude each other")
	case *four:
		o.family = "ip4"
	case *six:
		o.family = "ip6"
	default:
		o.family = "ip"
	}
	return set.Args(), nil
}

// setTime reads a duration, which may not be below zero.
func setTime(d *time.Duration) func(word string) error {
	return func(word string) error {
		value, err := time.ParseDuration(word)
		if err != nil || value < 0 {
			return errors.New("must be a time with its unit, such as 3.5s")
		}
		*d = value
		return nil
	}
}

func (o *options) setUntil(word string) error {
	switch word {
	case "echo":
		o.until = untilEcho
	case "eof":
		o.until = untilEOF
	case "connect":
		o.until = untilConnect
	default:
		return errors.New("must be connect, echo or eof")
	}
	return nil
}

func (o *options) setSource(word string) error {
	a, err := netip.ParseAddr(word)
	if err != nil {
		return errors.New("must be an IP address")
	}
	o.from = a.Unmap()
	return nil
}

// takes reports whether a is of the family that is asked for, and of that of -source.
func (o *options) takes(a netip.Addr) bool {
	if o.from.IsValid() && o.from.Is4() != a.Is4() {
		return false
	}
	return o.family == "ip" || a.Is4() == (o.family == "ip4")
}

// parsePlace reads HOST PORT, which may be one word, and returns the words after it. With -serve
// HOST may be missing, and then the one word is PORT or :PORT.
func (o *options) parsePlace(words []string) (rest []string, err error) {
	if len(words) == 0 {
		return nil, errors.New("PORT is missing after -serve")
	}
	first := words[0]
	if o.serve && len(words) == 1 {
		port := strings.TrimPrefix(first, ":")
		if !strings.ContainsAny(port, ":[") {
			return nil, o.setPort(port)
		}
	}
	place, err := splitPlace(first)
	if err != nil {
		return nil, err
	}
	words = append(place, words[1:]...)
	switch {
	case len(words) == 1:
		return nil, fmt.Errorf("PORT is missing after %s", word(first))
	case o.serve && len(words) > 2:
		return nil, fmt.Errorf("-serve takes [HOST] PORT, and not %s too", word(words[2]))
	case words[0] == "":
		return nil, fmt.Errorf("%s: HOST must not be empty", word(first))
	}
	err = checkHost(words[0])
	if err != nil {
		return nil, err
	}
	o.host = words[0]
	return words[2:], o.setPort(words[1])
}

// splitPlace splits HOST:PORT (with exactly one colon) and [HOST]:PORT into two words. From [HOST]
// it takes the brackets. Every other word is HOST alone.
func splitPlace(place string) (words []string, err error) {
	if !strings.HasPrefix(place, "[") {
		if strings.Count(place, ":") == 1 {
			return strings.Split(place, ":"), nil
		}
		return []string{place}, nil
	}
	address, rest, closed := strings.Cut(place[1:], "]")
	_, err = netip.ParseAddr(address)
	port, colon := strings.CutPrefix(rest, ":")
	switch {
	case closed && err == nil && rest == "":
		return []string{address}, nil
	case closed && err == nil && colon:
		return []string{address, port}, nil
	}
	return nil, fmt.Errorf("%s: must be [ADDRESS] or [ADDRESS]:PORT", word(place))
}

// setPort reads PORT. With -serve, 0 means that the kernel chooses.
func (o *options) setPort(text string) error {
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 && !o.serve {
		return fmt.Errorf("PORT %s: must be a number from 1 to 65535", word(text))
	}
	o.port = uint16(port)
	return nil
}

// parseMessages makes one block of the words after PORT. A word that looks like a flag is an error,
// because flags stand before HOST, unless the first word is --.
func (o *options) parseMessages(words []string) error {
	escaped := len(words) > 0 && words[0] == "--"
	if escaped {
		words = words[1:]
	}
	for _, message := range words {
		if len(message) > 1 && message[0] == '-' && !escaped {
			return fmt.Errorf("%s: flags precede HOST; to send it, put -- after PORT",
				word(message))
		}
		o.block = append(o.block, message...)
		o.block = append(o.block, '\n')
	}
	return nil
}

// countsRounds reports whether the run is made of rounds. To send the MESSAGEs once is not called a
// round.
func (o *options) countsRounds() bool { return o.count != 1 }

// gathers reports whether standard input is read as a whole, because it is sent more than once.
func (o *options) gathers() bool {
	return o.block == nil && o.until != untilConnect && (o.n > 1 || o.countsRounds())
}

// streams reports whether standard input is sent as it comes.
func (o *options) streams() bool {
	return o.block == nil && o.until != untilConnect && !o.gathers() && !o.serve
}

// check finds flags and words that do not go together.
func (o *options) check() error {
	switch {
	case o.n < 1:
		return fmt.Errorf("-n %v: must be above zero", o.n)
	case o.count < 0:
		return fmt.Errorf("-count %v: must not be below zero", o.count)
	case o.quiet && o.verbose:
		return errors.New("-q and -v exclude each other")
	case o.from.IsValid() && !o.takes(o.from):
		return fmt.Errorf("-source %v: is not of the family that is asked for", o.from)
	case o.serve:
		return o.checkServe()
	case o.countsRounds() && o.until != untilEcho:
		return errors.New("-count needs -until echo")
	case o.every > 0 && o.until != untilEcho:
		return errors.New("-every needs -until echo")
	case o.every > 0 && o.streams():
		return errors.New("-every needs a -count other than 1, or a MESSAGE")
	case o.until == untilConnect && o.block != nil && !o.recipe:
		return errors.New("-until connect sends nothing, and takes no MESSAGE")
	}
	return nil
}

// checkServe finds flags that do not go with -serve.
func (o *options) checkServe() error {
	for _, rule := range []struct {
		broken bool
		name   string
	}{
		{o.n != 1, "-n"},
		{o.count != 1, "-count"},
		{o.every != 0, "-every"},
		{o.progress != 0, "-progress"},
		{o.until != untilEcho, "-until"},
		{o.from.IsValid(), "-source"},
	} {
		if rule.broken {
			return fmt.Errorf("-serve does not go with %s", rule.name)
		}
	}
	return nil
}

// version is set by the linker: -X main.version=...
var version string

// printVersion writes the line of -version.
func printVersion(w io.Writer) {
	info, _ := debug.ReadBuildInfo()
	io.WriteString(w, versionLine(info))
}

// versionLine says what this binary is, from the information that the build has left in it (nil if
// there is none).
func versionLine(info *debug.BuildInfo) string {
	if info == nil {
		info = &debug.BuildInfo{}
	}
	settings := make(map[string]string)
	for _, setting := range info.Settings {
		settings[setting.Key] = setting.Value
	}
	commit := cmp.Or(settings["vcs.revision"], "unknown")
	if settings["vcs.modified"] == "true" {
		commit += "+modified"
	}
	static := "not known to be static"
	if settings["GOOS"] == "linux" && settings["CGO_ENABLED"] == "0" {
		static = "static"
	}
	return fmt.Sprintf("echomux %s commit %s %s %s/%s %s\n", cmp.Or(version, commit), commit,
		info.GoVersion, settings["GOOS"], settings["GOARCH"], static)
}

// ---- The report ----

// byBadness orders the exit statuses of connections. The run's status is the worst of all its
// connections, so that no failure is hidden by a lesser one.
var byBadness = []int{
	exitOK, exitConnect, exitConnectTimeout, exitIOTimeout, exitExchange, exitLocal,
}

// worse reports whether status is worse than other.
func worse(status, other int) bool {
	return slices.Index(byBadness, status) > slices.Index(byBadness, other)
}

// maxCauses is the number of causes of failure that a run tells at most.
const maxCauses = 10

// causeCount is a cause of failure, and how many connections have failed because of it.
type causeCount struct {
	status int
	op     string
	text   string // of the first
	n      int
}

// tally counts what the client's connections came to. Its size does not depend on their number. At
// any time each of the n connections is one of these: counted (in ok or failures), draining, or
// unfinished.
type tally struct {
	n        int // connections in all
	begun    int
	draining int // with a verdict, which is success, but not yet closed, and so not counted
	ok       int
	failures int
	status   int // the worst
	sent     int64
	returned int64
	connect  spread
	exchange spread
	rtt      spread
	causes   []*causeCount
}

// counted is how many connections have ended.
func (t *tally) counted() int { return t.ok + t.failures }

// count adds n connections that ended alike. f is nil if they have done their whole job.
func (t *tally) count(status int, f *failure, n int) {
	if f == nil {
		t.ok += n
		return
	}
	if n == 0 {
		return
	}
	t.failures += n
	if worse(status, t.status) {
		t.status = status
	}
	for _, c := range t.causes {
		if c.status == status && c.op == f.op {
			c.n += n
			return
		}
	}
	if len(t.causes) < maxCauses {
		t.causes = append(t.causes, &causeCount{status, f.op, f.Error(), n})
	}
}

// spread is a histogram of durations in constant memory. Each bucket is wider than the one before
// by the same factor; 16 buckets double a duration. So a value that is read from it is wrong by
// 2.2% and half a nanosecond at most.
type spread struct {
	n       int64
	least   time.Duration
	most    time.Duration
	buckets []int64 // nil while n is 0
}

const bucketsPerDoubling = 16

func (s *spread) add(d time.Duration) {
	d = max(d, 0)
	if s.n == 0 {
		s.buckets = make([]int64, 64*bucketsPerDoubling) // 2^63 ns is the most
		s.least = d
	}
	s.n++
	s.least = min(s.least, d)
	s.most = max(s.most, d)
	s.buckets[bucketOf(d)]++
}

// bucketOf returns the number of the bucket of d. It uses d + 1 ns, since 0 has no logarithm.
func bucketOf(d time.Duration) int {
	doublings := math.Log2(1 + float64(d))
	return int(math.Round(doublings * bucketsPerDoubling))
}

// bucketMiddle returns the value that stands for all values of a bucket.
func bucketMiddle(i int) time.Duration {
	return time.Duration(math.Round(math.Exp2(float64(i)/bucketsPerDoubling))) - 1
}

// at returns the value that the given share of all values does not exceed.
func (s *spread) at(share float64) time.Duration {
	rank := int64(math.Ceil(share * float64(s.n)))
	var seen int64
	for i, n := range s.buckets {
		seen += n
		if n > 0 && seen >= rank {
			return min(max(bucketMiddle(i), s.least), s.most)
		}
	}
	return s.most
}

// milliseconds is d as lines show it.
func milliseconds(d time.Duration) string {
	return strconv.FormatFloat(float64(d)/float64(time.Millisecond), 'f', 2, 64)
}

// seconds is d as texts show it.
func seconds(d time.Duration) string {
	return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + "s"
}

// key is a figure in a line. If one is set, it is the only value; otherwise it is the least, the
// median, the 99th percentile and the most. Without values it is empty.
func (s *spread) key(name string, one bool) string {
	switch {
	case s.n == 0:
		return ""
	case one:
		return " " + name + "_ms=" + milliseconds(s.least)
	}
	return " " + name + "_ms=" + milliseconds(s.least) + "/" + milliseconds(s.at(0.5)) + "/" +
		milliseconds(s.at(0.99)) + "/" + milliseconds(s.most)
}

// mbits is a rate in Mbit/s.
func mbits(bytes int64, d time.Duration) string {
	if d <= 0 {
		return ""
	}
	rate := float64(bytes) * 8 / d.Seconds() / 1e6
	digits := 0
	if rate < 10 {
		digits = 2
	}
	return " mbit_s=" + strconv.FormatFloat(rate, 'f', digits, 64)
}

// printLine writes a result line, for people and for scripts: the place, what the line is about,
// keys with values, the time, and the cause at the end.
func (s *session) printLine(place, words string, cause string) {
	at := s.world.wall().UTC().Format("2006-01-02T15:04:05.000Z")
	line := "echomux: " + place + " " + words + " at=" + at
	if cause != "" {
		line += " error=" + strconv.QuoteToASCII(cause)
	}
	io.WriteString(s.world.stderr, line+"\n")
}

// place returns HOST and PORT as they were asked for, in one word.
func (s *session) place() string {
	port := s.options.port
	if s.options.recipe && len(s.server.listeners) > 0 {
		port = s.server.listeners[0].at.Port()
	}
	host := strings.ReplaceAll(printable(s.options.host), " ", `\x20`)
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}

// report prints the line that ends the run, and before it the lines of the causes. It returns the
// exit status.
func (s *session) report() int {
	if s.options.serve {
		return s.reportServer()
	}
	t := &s.tally
	if s.failure != nil {
		t.count(s.status, s.failure, t.n-t.counted()-t.draining)
	}
	t.ok += t.draining // they have their verdict
	status := t.status
	word := "ok"
	switch {
	case s.interrupted != 0 && t.counted() < t.n:
		status = s.interrupted
		word = "interrupted"
	case status != exitOK:
		word = "failed"
	case s.options.quiet:
		return status
	}
	if t.n == 1 {
		s.printOnly(word)
	} else {
		s.printMany(word)
	}
	return status
}

// printOnly prints the last line of a run of one connection.
func (s *session) printOnly(word string) {
	t := &s.tally
	conn := s.client.only
	line := fmt.Sprintf("%s sent=%d returned=%d", word, t.sent, t.returned)
	line += t.connect.key("connect", true)
	connected := conn != nil && conn.connected != never
	if connected {
		conn.noteRetransmits()
	}
	switch {
	case s.options.countsRounds():
		line += s.roundKeys()
	case connected && s.options.until != untilConnect:
		line += " exchange_ms=" + milliseconds(conn.exchangeTime())
	}
	if connected && s.options.streams() {
		line += mbits(max(t.sent, t.returned), conn.exchangeTime())
	}
	if connected && conn.retransmits > 0 {
		line += fmt.Sprintf(" retransmits=%d", conn.retransmits)
	}
	if connected {
		line += conn.keys()
	}
	text := ""
	if word == "failed" {
		text = t.causes[0].text
	}
	s.printLine(s.place(), line, text)
}

// keys are the keys that tell one connection from others.
func (c *connection) keys() string {
	line := ""
	if c.client.options.n > 1 {
		line = fmt.Sprintf(" connection=%d", c.number)
	}
	return line + " peer=" + c.peer.String()
}

// roundKeys are the figures of rounds.
func (s *session) roundKeys() string {
	return fmt.Sprintf(" rounds=%d", s.tally.rtt.n) + s.tally.rtt.key("rtt", false)
}

// printMany prints the last lines of a run of several connections: the causes of failures, then the
// sums.
func (s *session) printMany(word string) {
	t := &s.tally
	for _, c := range t.causes {
		s.printLine(s.place(), fmt.Sprintf("cause failures=%d", c.n), c.text)
	}
	line := fmt.Sprintf("%s connections=%d ok=%d failures=%d unfinished=%d sent=%d returned=%d",
		word, t.n, t.ok, t.failures, t.n-t.counted(), t.sent, t.returned)
	line += t.connect.key("connect", false)
	if s.options.countsRounds() {
		line += s.roundKeys()
	} else {
		line += t.exchange.key("exchange", false)
	}
	s.printLine(s.place(), line, "")
}

// countRound counts a round. With -every it prints a line for the round.
func (s *session) countRound(r round) {
	s.tally.rtt.add(r.took)
	if s.options.every > 0 && !s.options.quiet {
		line := fmt.Sprintf("round=%d rtt_ms=%s", r.number, milliseconds(r.took))
		s.printLine(s.place(), line+r.conn.keys(), "")
	}
}

// printProgress prints a line about the bytes that were moved since the line before.
func (s *session) printProgress(moved int64, since time.Duration) {
	line := fmt.Sprintf("progress sent=%d returned=%d", s.tally.sent, s.tally.returned)
	line += mbits(moved, since)
	conn := s.client.only
	if conn != nil && conn.connected != never {
		line += conn.keys()
	}
	s.printLine(s.place(), line, "")
}

// reportServer prints the last line of -serve. A server that listens does so until somebody ends
// it, so that is a success.
func (s *session) reportServer() int {
	if s.failure != nil {
		s.printLine(s.place(), "failed", s.failure.Error())
		return s.status
	}
	if len(s.server.listeners) == 0 {
		s.printLine(s.place(), "interrupted", "")
		return s.interrupted
	}
	if s.options.quiet {
		return exitOK
	}
	places := make([]string, len(s.server.listeners))
	for i, l := range s.server.listeners {
		places[i] = l.at.String()
	}
	line := fmt.Sprintf("ended clients=%d failures=%d received=%d returned=%d",
		s.server.clients, s.server.failures, s.server.received, s.server.returned)
	s.printLine(strings.Join(places, ","), line, "")
	return exitOK
}

// printListening tells where the server can be reached, as soon as it can.
func (s *session) printListening(at netip.AddrPort) {
	if s.options.serve && !s.options.quiet {
		s.printLine(at.String(), "listening", "")
	}
}

// printComplaint tells that a listener cannot accept. In the recipe that ends the run, because the
// client waits for it.
func (s *session) printComplaint(at netip.AddrPort, failures int, err error) {
	f := called("accept", err)
	if s.options.recipe {
		s.fail(exitLocal, f)
		return
	}
	line := fmt.Sprintf("cause failures=%d", failures)
	s.printLine(at.String(), line, f.Error())
}

// logWatching logs what a connection, or one of the server's sockets, is watched for.
func (s *session) logWatching(m machine, want readiness) {
	words := [...]string{"nothing", "read only", "write only", "read and write"}
	text := "watching for " + words[want]
	switch m := m.(type) {
	case *dial:
		m.conn.log.printf("%s", text)
	case *exchange:
		m.conn.log.printf("%s", text)
	case *drain:
		m.conn.log.printf("%s", text)
	default:
		s.server.log.printf("%s", text)
	}
}
