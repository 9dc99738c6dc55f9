// Echomux proves a TCP path end to end: it connects within a time limit, sends bytes, reads them
// back from an echo server, compares each one, and says in a line and an exit status what happened.
//
//	echomux                                   the recipe: both ends in one loop, every step logged
//	echomux [flags] HOST PORT [MESSAGE ...]   HOST:PORT and [HOST]:PORT will do too
//	echomux -serve [flags] [ADDRESS] PORT     be the echo server; PORT 0: the kernel chooses
//
// What is sent is the MESSAGEs, each with a newline. Without one it is data1 and data2; with - it
// is standard input, read to its end before anything else; with -size it is so many bytes of an
// endless generated stream. To send that once and to have it back is a round. echomux -h lists the
// flags. (The recipe is "I/O Multiplex (Client)", a few lines of Python that send data1 and data2.
// echomux grew out of it.)
//
// Result lines go to standard output, the log of -v to standard error. (If either is a pipe that
// nobody reads any more, SIGPIPE ends echomux, as usual.) The exit status is
//
//	0  every connection did its whole job; -serve was ended by a signal
//	1  the bytes are wrong: one differs, or more came back than was sent
//	2  usage
//	3  not connected: no such name, refused, unreachable, no local port, connected to itself
//	4  connect timeout, the name included
//	5  I/O timeout: silence while bytes were missing, or the kernel gave the peer up
//	6  local failure: descriptors, memory, standard input, a line that cannot be written
//	7  the connection was lost: reset, or closed before all was back
//
// and 130, 143 or 129 if SIGINT, SIGTERM or SIGHUP came before every connection had its verdict, or
// if echomux was stuck then, say in a write to a pipe that nobody reads, for half a second. Of
// several connections the worst decides: 1, 6, 7, 5, 4, 3. If all addresses of HOST have failed, it
// is 3 if one refused, else 4 if one timed out, else 6 if descriptors were missing, else 3.
//
// # On the wire
//
// Each connection is TCP's handshake, the bytes of its rounds in both directions at the same time,
// then a FIN from here, and for half a second at most the wait for the peer's FIN. With -connect it
// is the handshake alone, and a FIN.
//
// # The words
//
// A descriptor is the small number by which a process names an open socket to the kernel. As soon
// as the socket is closed, the number is free for the next one.
//
// A call blocks if it sleeps until it has something to do: a read until bytes have come, a write
// until there is room for them. On a socket in non-blocking mode no call sleeps. Where it would, it
// fails at once with "would block" (EAGAIN), and that is no error.
//
// Readiness is the kernel's word that a call would not block now. A poller (epoll, kqueue, select)
// sleeps until one of many sockets is ready, and so one goroutine can serve them all.
//
// Level-triggered means that a socket is reported as long as it is ready, every time one asks. So a
// program may read a part, and is told of the rest again. But it must not watch for what it will
// not act on, or the poller never sleeps.
//
// A FIN says that its sender will send no more bytes; the other direction goes on. To send one is
// to half-close. Whoever has read all bytes before it reads 0 bytes: EOF.
//
// A reset (RST) ends both directions at once, and bytes on their way are lost. What had arrived
// before it can mostly still be read.
//
// SO_ERROR is the error that is pending on a socket. It is cleared by being read. It says whether a
// connect that did not block has failed, and why.
//
// The backlog of a listening socket is the queue of connections that nobody has accepted yet.
//
// # The order
//
// The contract is what a kernel has to offer; one poller_<os>.go for each system fulfils it. The
// loop waits, and lets machines take steps. The echo server shows both at work. Then come the bytes
// that flow, and the client: each connection is driven by three kinds of machines. The rest is a
// program like any other: names, the run, the command line, the report.
package main

import (
	"bytes"
	"cmp"
	"container/heap"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
)

// ---- The contract ----

// socket is the descriptor of a TCP socket. (It is as wide as Windows wants it.)
type socket uintptr

// readiness is what a socket can be ready for, and is watched for. It is a set; 0 is nothing.
type readiness uint8

const (
	readable readiness = 1 << iota // a read would not block; of a listener, an accept
	writable                       // a write would not block, or a connect has ended
)

func (r readiness) String() string {
	return [...]string{"nothing", "read", "write", "read and write"}[r]
}

// kernel is all that the program wants of an operating system's kernel. newKernel, in
// poller_<os>.go, makes the real one.
type kernel interface {
	// watch makes the poller watch s for what want says. What it was watched for until now is was,
	// which is something else.
	//
	// A socket that is to connect is watched only after connect was called: before that, Linux
	// reports it as hung up. And it is watched for writable alone: on kqueue, a filter for reading
	// can consume the pending error, and then connectResult does not see it.
	watch(s socket, was, want readiness) error

	// wait sleeps for at most ms milliseconds, or without a limit if ms is -1. It returns sockets
	// that are ready for what they are watched for, or have failed, or were hung up by the peer. It
	// can return none, because the time has passed, or for a signal or wake. The slice lasts until
	// the next wait.
	//
	// It does not say what a socket is ready for, and it can be wrong: whoever has the socket
	// tries, and each call may say errWouldBlock. So nothing has to be known about the many ways in
	// which kernels report failures, report a socket twice, or report one that was closed.
	wait(ms int) ([]socket, error)

	// wake ends the wait that is under way, or else the next one. Any goroutine may call it.
	wake()

	// now is the time since some moment before, by a monotonic clock: nobody can set it.
	now() time.Duration

	// open makes a socket for the address family of to. Its calls block until setNonblock.
	open(to netip.Addr) (socket, error)
	setNonblock(s socket) error

	// connect is called once. If it returns nil, connecting is under way, and connectResult tells
	// how it has ended: errWouldBlock as long as it has not, errReset if there was a connection and
	// the peer has reset it. (A peer that resets instead of connecting is errRefused.)
	connect(s socket, to netip.AddrPort) error
	connectResult(s socket) (local, peer netip.AddrPort, err error)

	read(s socket, p []byte) (n int, err error)  // n > 0, io.EOF, or an error
	write(s socket, p []byte) (n int, err error) // n < len(p) is normal
	closeWrite(s socket)                         // half-closes: sends our FIN
	close(s socket)                              // and takes s out of the poller

	// listen makes a socket that listens and does not block. It returns at too, in which port 0 is
	// replaced by the one that the kernel has chosen. On [::] the socket takes IPv4 as well.
	listen(at netip.AddrPort) (s socket, bound netip.AddrPort, err error)
	accept(s socket) (accepted socket, peer netip.AddrPort, err error) // accepted does not block
}

// What the program does next, or says, depends on these errors. So all kernels return the same
// ones. Any other error carries the name of the call that has failed.
var (
	errWouldBlock  = errors.New("would block")
	errReset       = errors.New("connection reset by peer")
	errRefused     = errors.New("connection refused")
	errTimedOut    = errors.New("timed out")
	errUnreachable = errors.New("unreachable")                  // no way to the host is known
	errNoFamily    = errors.New("address family not supported") // say, a machine without IPv6
	errNoLocal     = errors.New("cannot assign requested address: " +
		"no local port is free, or this machine has no address of that kind")

	// errSelf: if nobody listens on a local port, connect can happen to choose this same port as
	// its own. Then the socket connects to itself (RFC 9293, section 3.5, simultaneous open), and
	// all that is sent comes back: a perfect, false echo.
	errSelf = errors.New("connected to itself, nobody listens")
)

// exhausted is the error of a call for which this machine had no descriptors or no memory left.
type exhausted struct{ error }

// is says whether err is a T.
func is[T error](err error) bool {
	_, ok := err.(T)
	return ok
}

// ---- The loop ----

// machine is a small state machine that drives a socket. It knows the state of one job.
type machine interface {
	// step is called when the socket may be ready, or when due has come. It tries once whatever
	// there is to do, and only then looks whether that was too late, by the time at which the step
	// began. So what has arrived counts, even if this process was stopped for a minute. A step for
	// nothing does no harm.
	step()

	// After each step the loop asks what to wait for. The answers follow from the machine's state,
	// so there is nothing to switch on or off.
	interest() readiness
	due() time.Duration // when to step even if the socket is not ready; can be never
}

// Times are those of the kernel's clock. never is later than all others; as a limit it is none.
const never = time.Duration(math.MaxInt64)

// later returns the time that is d after t.
func later(t, d time.Duration) time.Duration {
	if d > never-t {
		return never
	}
	return t + d
}

// seat is a socket's place in the loop, with the machine that drives it.
type seat struct {
	socket  socket
	machine machine
	label   string        // of its lines in the log: "server: ", or nothing for the client
	watched readiness     // what the poller watches the socket for
	due     time.Duration // what the machine has answered last
	index   int           // of this seat in the queue; see below
}

// loop is the one place that waits for sockets and times. (Standard input and output can also
// block; see catchSignals.)
type loop struct {
	kernel  kernel
	log     io.Writer // nil without -v
	seats   map[socket]*seat
	queue   queue         // the same seats, in the order in which they are due
	buffer  []byte        // what was read last, from whichever socket
	mail    chan func()   // what is to be called in the next turn
	dueUpTo time.Duration // the time that stepDue has gone by last
	yielded time.Duration // when the Go scheduler had its turn last
	stopped bool          // the loop ends after the present turn
	err     error         // why the loop cannot go on
}

const chunkSize = 256 << 10 // bytes of one read or write, at most

func newLoop(k kernel) *loop {
	return &loop{
		kernel: k,
		seats:  make(map[socket]*seat),
		buffer: make([]byte, chunkSize),
		// The end of the look-up, a signal, more connections: of each there is one at most. So post
		// never sleeps, not even when the loop itself posts.
		mail: make(chan func(), 3),
	}
}

// run takes turns until the loop is stopped. In a turn it waits, the machines of the sockets that
// may be ready step, what was posted is called, and the machines that are due step.
//
// Every few milliseconds it lets the Go scheduler run. A goroutine that never does is taken to be
// stuck after 10 ms: the runtime interrupts it, and takes its processor away in each call that it
// is in (retake in proc.go). Then rounds and connections cost 7 to 8% more, and -serve 11%.
func (l *loop) run() error {
	for !l.stopped {
		ready, err := l.kernel.wait(l.waitMs())
		l.failOn(err)
		for _, sock := range ready {
			l.step(sock)
		}
		l.takeMail()
		l.stepDue()
		if l.dueUpTo-l.yielded > 5*time.Millisecond {
			l.yielded = l.dueUpTo
			runtime.Gosched()
		}
	}
	return l.err
}

// failOn ends the run, if err is not nil, for a reason that lies with this computer. Of two reasons
// the first one stands.
func (l *loop) failOn(err error) {
	if err != nil && l.err == nil {
		l.err = err
		l.stopped = true
	}
}

// waitMs is the time until the first machine is due in milliseconds, -1 if none ever is. It is
// rounded up, or else the wait would end just before that time, and be followed by many of 0 ms.
func (l *loop) waitMs() int {
	if len(l.queue) == 0 || l.queue[0].due == never {
		return -1
	}
	left := l.queue[0].due - l.kernel.now()
	left = min(max(left, 0), time.Hour) // so that it fits into any kernel's integer
	return int((left + time.Millisecond - 1) / time.Millisecond)
}

// stepDue lets the machines step whose time has come, the earliest first. Each does so once: ask
// makes its next time later than dueUpTo, so it has to wait for the next turn, and this loop ends.
func (l *loop) stepDue() {
	l.dueUpTo = l.kernel.now()
	for len(l.queue) > 0 && l.queue[0].due <= l.dueUpTo {
		l.step(l.queue[0].socket)
	}
}

// post makes the loop call f. Any goroutine may call post, and nothing else of the loop.
func (l *loop) post(f func()) {
	l.mail <- f
	l.kernel.wake()
}

// takeMail calls what was posted before. What these calls post waits for the next turn.
func (l *loop) takeMail() {
	for range len(l.mail) {
		call := <-l.mail
		call()
	}
}

// add gives a socket a seat, and a machine that drives it. The machine is asked at once.
func (l *loop) add(sock socket, m machine, label string) {
	seat := &seat{socket: sock, machine: m, label: label, due: never}
	l.seats[sock] = seat
	heap.Push(&l.queue, seat)
	l.ask(seat)
}

// handOver makes m drive the socket from now on. Only the machine that has driven it so far may
// call that, in its step; when that returns, the loop asks m.
func (l *loop) handOver(sock socket, m machine) { l.seats[sock].machine = m }

// step lets the machine of a socket step. A step before, in the same turn, can have closed the
// socket. Then it has no seat any more, or its number is that of a new socket, whose machine steps
// for nothing.
func (l *loop) step(sock socket) {
	seat := l.seats[sock]
	if seat == nil {
		return
	}
	seat.machine.step()
	if l.seats[sock] == seat { // the step has not closed it
		l.ask(seat)
	}
}

// ask asks the machine what to wait for, and tells the queue and the poller what has changed. A
// poller that fails is of no use to the others either, so that ends the run.
func (l *loop) ask(seat *seat) {
	seat.due = max(seat.machine.due(), l.dueUpTo+1)
	heap.Fix(&l.queue, seat.index)
	want := seat.machine.interest()
	if want == seat.watched {
		return
	}
	err := l.kernel.watch(seat.socket, seat.watched, want)
	l.failOn(err)
	seat.watched = want
	l.logf("%swatching for %v", seat.label, want)
}

func (l *loop) close(sock socket) {
	seat := l.seats[sock]
	delete(l.seats, sock)
	heap.Remove(&l.queue, seat.index)
	l.kernel.close(sock)
	l.logf("%sclosed", seat.label)
}

// read reads once, most bytes at most. They are in the loop's buffer, so they last for one step.
func (l *loop) read(sock socket, most int) ([]byte, error) {
	n, err := l.kernel.read(sock, l.buffer[:most])
	l.logBytes(sock, "received", l.buffer[:n])
	return l.buffer[:n], err
}

// write writes once, a chunk at most.
func (l *loop) write(sock socket, p []byte) (int, error) {
	n, err := l.kernel.write(sock, p[:min(len(p), chunkSize)])
	l.logBytes(sock, "sent", p[:n])
	return n, err
}

func (l *loop) logBytes(sock socket, what string, p []byte) {
	if l.log != nil && len(p) > 0 {
		l.logf("%s%s: %s", l.seats[sock].label, what, quoted(p))
	}
}

// logf writes a line of the log in the form of the Python recipe that echomux grew out of.
func (l *loop) logf(format string, args ...any) {
	if l.log != nil {
		message := fmt.Sprintf(format, args...)
		fmt.Fprintf(l.log, "[echomux (%d)] %s\n", os.Getpid(), printable(message))
	}
}

// queue is a heap: its first seat is due first. With it a turn of the loop costs what happens in
// it, and hardly what is connected. These are the methods that package container/heap asks for.
type queue []*seat

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due < q[j].due }

func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index = i
	q[j].index = j
}

func (q *queue) Push(item any) {
	seat := item.(*seat)
	seat.index = len(*q)
	*q = append(*q, seat)
}

func (q *queue) Pop() any {
	last := len(*q) - 1
	seat := (*q)[last]
	*q = (*q)[:last]
	return seat
}

// ---- The echo server ----

// server is the machine that accepts connections. It also counts, for all of them.
type server struct {
	loop   *loop
	socket socket
	bound  netip.AddrPort                  // where it listens
	resume time.Duration                   // the end of a pause; never if there is none
	print  func(msg string, values ...any) // prints a result line; see The report

	clients, failed             int64 // accepted so far; of these, ended by an error
	received, returned, dropped int64 // bytes; dropped were those that a client left behind
}

func (srv *server) listen(at netip.AddrPort) error {
	var err error
	srv.socket, srv.bound, err = srv.loop.kernel.listen(at)
	if err != nil {
		return err
	}
	srv.resume = never
	srv.loop.logf("server: listening on %v", srv.bound)
	srv.loop.add(srv.socket, srv, "server: ")
	return nil
}

func (srv *server) isPausing() bool { return srv.resume != never }

func (srv *server) interest() readiness {
	if srv.isPausing() {
		return 0
	}
	return readable
}

func (srv *server) due() time.Duration { return srv.resume }

// step accepts one connection. If another one waits, the level-triggered poller will tell. It would
// also tell after accept has failed, say for want of descriptors, at once and always again. So a
// pause follows.
func (srv *server) step() {
	now := srv.loop.kernel.now()
	if srv.isPausing() && now < srv.resume {
		return
	}
	sock, peer, err := srv.loop.kernel.accept(srv.socket)
	if err != nil && err != errWouldBlock {
		if !srv.isPausing() { // that another pause follows is no news
			srv.print("paused", "at", srv.bound.String(), "error", err.Error())
		}
		srv.resume = later(now, time.Second)
		return
	}
	srv.resume = never
	if err == nil {
		srv.clients++
		srv.loop.logf("server: accepted %v", peer)
		srv.loop.add(sock, &echo{server: srv, socket: sock}, "server: ")
	}
}

// echo is the machine of one accepted connection. It reads only after all that it has read before
// is written. So a client that stops reading blocks only itself, and costs one buffer.
type echo struct {
	server  *server
	socket  socket
	pending []byte // what the kernel has refused so far; mostly nothing
}

func (e *echo) interest() readiness {
	if len(e.pending) > 0 {
		return writable
	}
	return readable
}

// due: a client may be silent for as long as it likes.
func (e *echo) due() time.Duration { return never }

func (e *echo) step() {
	err := e.move()
	if err == nil || err == errWouldBlock {
		return
	}
	if err != io.EOF { // at EOF all that the client has sent was written back
		e.server.failed++
		e.server.loop.logf("server: failed: %v", err)
	}
	e.server.dropped += int64(len(e.pending))
	e.server.loop.close(e.socket)
}

// move reads, unless something is pending, and writes at once: mostly there is room. What the
// kernel refuses is copied, because the loop's buffer is for the next machine. A client that stops
// reading can cost as much as was read at once. So that is a chunk only while all clients together
// hold little, and otherwise 64 KiB, which takes 14% longer in bulk.
func (e *echo) move() error {
	l := e.server.loop
	if len(e.pending) == 0 {
		held := e.server.received - e.server.returned - e.server.dropped // by all clients
		p, err := l.read(e.socket, int(max(64<<10, chunkSize-held)))
		if err != nil {
			return err
		}
		e.pending = p
		e.server.received += int64(len(p))
	}
	n, err := l.write(e.socket, e.pending)
	e.server.returned += int64(n)
	e.pending = bytes.Clone(e.pending[n:])
	return err
}

// ---- What flows ----

// flow is what each connection sends: one block of bytes, over and over. So the byte at each offset
// of the stream is known, nothing that was sent has to be kept for the comparison, and all
// connections share the block.
type flow struct {
	block     []byte // never changed
	roundSize int64  // bytes
}

// newPattern makes a block for rounds of any size. Its length is the largest prime below 1 MiB.
// What a buffer on the path loses, or sends twice, mostly has the size of some power of two, which
// is no multiple of a prime: what follows is out of step, and shows. The seed is fixed, and so are
// the bytes.
func newPattern() []byte {
	block := make([]byte, 1<<20-3)
	rand.NewChaCha8([32]byte{}).Read(block)
	return block
}

// piece returns the bytes of the stream between two offsets, or of these as many as there are up to
// the end of the block.
func (f flow) piece(begin, end int64) []byte {
	size := int64(len(f.block))
	at := begin % size
	return f.block[at:min(size, at+end-begin)]
}

// wrong is the error of bytes that came back, and are not those that were sent.
type wrong struct{ error }

var errSurplus = wrong{errors.New("more came back than was sent")}

// compare compares p, which came back, with the stream from offset on. The stream was sent up to
// the offset sent, so no more of it can come back. compare returns how many bytes are right, and
// what is wrong with the one after them.
func (f flow) compare(p []byte, offset, sent int64) (right int64, err error) {
	if int64(len(p)) > sent-offset {
		err = errSurplus
		p = p[:sent-offset]
	}
	for right < int64(len(p)) {
		want := f.piece(offset+right, offset+int64(len(p)))
		got := p[right:][:len(want)]
		if !bytes.Equal(want, got) {
			i := 0
			for want[i] == got[i] {
				i++
			}
			right += int64(i)
			return right, wrong{fmt.Errorf("byte %d differs: sent 0x%02x, came back 0x%02x",
				offset+right, want[i], got[i])}
		}
		right += int64(len(want))
	}
	return right, err
}

// ---- The connection ----

// A connection is driven by three kinds of machines. Each of them hands its socket over to the
// next:
//
//	attempt ---- there is ----> exchange ----- all bytes ----> drain
//	             a connection                  are back
//
//	One for each address        It sends and receives,         Our FIN is out, and it
//	that is being tried. It     and is watched for             waits for the peer's, for
//	is watched for writable.    readable, and for writable     half a second at most.
//	                            while bytes are left to send.
//
// Each can also be the last one. What they have in common is the connection.

// These are the exit statuses; the package doc has their meaning.
const (
	exitOK = iota
	exitWrong
	exitUsage
	exitNotConnected
	exitConnectTimeout
	exitIOTimeout
	exitLocal
	exitLost
)

// job is what each connection has to do.
type job struct {
	flow        flow
	connectOnly bool          // nothing is sent
	rounds      int64         // how many
	every       time.Duration // from the begin of a round to that of the next one, at least
	ioTimeout   time.Duration // the longest silence while bytes are missing
}

// client is what all connections of a run have in common: the client's side of the run.
type client struct {
	loop      *loop
	job       job
	total     int64                           // connections that there are to be
	started   int64                           // connections that there are
	target    string                          // HOST:PORT, for the result lines
	addrs     []netip.AddrPort                // of HOST, in the order in which they are tried
	timeLeft  time.Duration                   // for a connection to be made, from its begin
	headStart time.Duration                   // of an address before the next one is tried
	print     func(msg string, values ...any) // prints a result line; see The report
	tally     tally
}

// tally is what the connections come to; it becomes the last result line. The verdict on a
// connection is an exit status, and the cause if that is not 0.
type tally struct {
	judged   int64                // connections that have their verdict
	verdicts [exitLost + 1]int64  // how many of these have each exit status
	causes   [exitLost + 1]string // of the first one with each
	draining int64                // connections that a drain has now

	sent, returned int64 // bytes that the kernel took; that came back, and were the right ones
	roundsBack     int64 // rounds of which every byte is back

	connectTimes, roundTimes histogram // see The report

	connectedAt time.Duration // when the first connection was made; 0 before that
	heardAt     time.Duration // when a byte last came back

	// Of the connection that was made last:
	local, peer string
	skipped     string // the addresses that came before its own, and what became of each
}

// judge counts n connections that have the same verdict.
func (t *tally) judge(status int, err error, n int64) {
	t.judged += n
	t.verdicts[status] += n
	if t.causes[status] == "" && err != nil {
		t.causes[status] = err.Error()
	}
}

// connection is one connection for all of its life. c.loop, c.job, c.tally and so on are those of
// the client.
type connection struct {
	*client
	number int64 // from 1

	// While it connects:
	attempts  []*attempt    // one for each address that was tried so far
	connectBy time.Duration // the end of its time

	// Once it is connected:
	socket socket
	peer   string

	sent, returned int64 // bytes that the kernel took; that came back, and were the right ones
}

// start starts all connections. If there are so many addresses that the head starts would take
// more than the time that is left, they are shorter, so that each address has its try.
func (cl *client) start(timeLeft time.Duration) {
	cl.timeLeft = timeLeft
	cl.headStart = min(mostHeadStart, timeLeft/time.Duration(len(cl.addrs)))
	cl.startSome()
}

// startSome starts a few connections, and posts itself for the others. If all were started in one
// turn, the time that is measured for each would include the work of starting the others.
func (cl *client) startSome() {
	for range min(16, cl.total-cl.started) {
		cl.started++
		c := &connection{client: cl, number: cl.started}
		c.connectBy = later(cl.loop.kernel.now(), cl.timeLeft)
		c.tryNext()
	}
	if cl.started < cl.total {
		cl.loop.post(cl.startSome)
	}
}

// finish gives a connection its verdict. The run ends with the last one.
func (c *connection) finish(status int, err error) {
	c.tally.judge(status, err, 1)
	if c.tally.judged == c.total {
		c.loop.stopped = true
	}
}

// ---- The connection: attempt ----

// To connect within a time limit is what SO_SNDTIMEO does for a blocking connect on Linux, see
// socket(7), and nowhere else. Here it is spelled so that every system has it: non-blocking mode,
// one connect, and the wait for writability until a deadline.
//
// The addresses of HOST race, after RFC 8305. The first one is tried at once, the next one as soon
// as an attempt has failed, or when the one before has had its head start; the others go on. So an
// address that does not answer costs a head start, and not all the time that there is.
const mostHeadStart = 250 * time.Millisecond

// attempt is the machine that connects to one address. It waits for writability, because that is
// how a poller says that connecting has ended.
type attempt struct {
	conn   *connection
	to     netip.AddrPort
	socket socket
	began  time.Duration // when connect was called
	err    error         // why it has ended without a connection; nil as long as it has not
}

func (a *attempt) isAlive() bool { return a.err == nil }

// tryNext begins an attempt with the next address for which that is possible. If there is none, and
// no attempt is under way, the connection has failed.
func (c *connection) tryNext() {
	for len(c.attempts) < len(c.addrs) {
		a := &attempt{conn: c, to: c.addrs[len(c.attempts)]}
		c.attempts = append(c.attempts, a)
		a.err = a.connect()
		if a.isAlive() {
			return
		}
		c.loop.logf("%v: %v", a.to, a.err)
	}
	if !slices.ContainsFunc(c.attempts, (*attempt).isAlive) {
		c.finish(statusOf(c.attempts), errors.New(outcomes(c.attempts)))
	}
}

// nextDue is when to try the next address; never if there is none. Whichever attempt steps first
// then tries that address, and so makes nextDue later. Another attempt's seat can still have the
// time before, which costs a step for nothing; it never has one that is too late. (The last attempt
// has always called connect, or else tryNext would have gone on to the next address.)
func (c *connection) nextDue() time.Duration {
	if len(c.attempts) == len(c.addrs) {
		return never
	}
	last := c.attempts[len(c.attempts)-1]
	return later(last.began, c.headStart)
}

// connect opens a socket, and calls connect for it. To make the socket non-blocking is a call of
// its own, here as in the recipe, because it is what all else in this program rests on.
func (a *attempt) connect() error {
	c := a.conn
	k := c.loop.kernel
	if k.now() >= c.connectBy {
		return fmt.Errorf("%w before it was tried", errTimedOut)
	}
	sock, err := k.open(a.to.Addr())
	if err != nil {
		return err
	}
	err = k.setNonblock(sock)
	if err == nil {
		c.loop.logf("switch to non-blocking mode, connect to %v", a.to)
		a.began = k.now()
		err = k.connect(sock, a.to)
	}
	if err != nil {
		k.close(sock)
		return err
	}
	a.socket = sock
	c.loop.add(sock, a, "")
	return nil
}

func (a *attempt) interest() readiness { return writable }

func (a *attempt) due() time.Duration { return min(a.conn.nextDue(), a.conn.connectBy) }

func (a *attempt) step() {
	c := a.conn
	now := c.loop.kernel.now()
	local, peer, err := c.loop.kernel.connectResult(a.socket)
	switch {
	case err == nil && local == peer:
		a.fail(errSelf)
	case err == nil || err == errReset: // after a reset there was a connection, too
		a.win(local, peer, now, err)
	case err != errWouldBlock:
		a.fail(err)
	case now >= c.connectBy:
		a.fail(errTimedOut)
	case now >= c.nextDue():
		c.tryNext()
	}
}

// fail ends an attempt, and so the next one can begin.
func (a *attempt) fail(err error) {
	a.err = err
	a.conn.loop.logf("%v: %v", a.to, err)
	a.conn.loop.close(a.socket)
	a.conn.tryNext()
}

// win closes the other attempts, and hands the socket over to an exchange; lost is why that will
// find the connection broken, or nil. With -connect there is nothing left to do: it was connected.
func (a *attempt) win(local, peer netip.AddrPort, now time.Duration, lost error) {
	c := a.conn
	for _, other := range c.attempts {
		if other != a && other.isAlive() {
			other.err = fmt.Errorf("no answer in %.2fs", (now - other.began).Seconds())
			c.loop.close(other.socket)
		}
	}
	t := &c.tally
	if lost == nil { // after a reset the kernel has no names any more, and they stay empty
		c.loop.logf("connected %v to %v", local, peer)
		c.peer = peer.String()
		t.peer = c.peer
		t.local = local.String()
	}
	c.socket = a.socket
	t.connectedAt = cmp.Or(t.connectedAt, now)
	t.connectTimes.add(now - a.began)
	t.skipped = outcomes(c.attempts[:slices.Index(c.attempts, a)])
	if c.job.connectOnly {
		c.loop.close(c.socket)
		c.finish(exitOK, nil)
		return
	}
	c.loop.handOver(c.socket, &exchange{conn: c, lost: lost, heard: now})
}

// statusOf returns the exit status of a connection for which every address has failed. A refusal is
// an answer, and so it counts more than silence. The order in which they failed does not count.
func statusOf(attempts []*attempt) int {
	status := exitNotConnected
	for _, a := range attempts {
		switch {
		case a.err == errRefused:
			return exitNotConnected
		case errors.Is(a.err, errTimedOut):
			status = exitConnectTimeout
		case is[exhausted](a.err) && status == exitNotConnected:
			status = exitLocal
		}
	}
	return status
}

// outcomes names each address, and what became of it.
func outcomes(attempts []*attempt) string {
	var texts []string
	for _, a := range attempts {
		texts = append(texts, fmt.Sprintf("%v: %v", a.to.Addr(), a.err))
	}
	return strings.Join(texts, "; ")
}

// ---- The connection: exchange ----

// exchange is the machine that sends, receives and compares, both directions at once. (To send
// everything and then to read would end in a deadlock as soon as all buffers on the path are full.)
type exchange struct {
	conn  *connection
	lost  error         // why nothing can be sent any more; what can still be read counts
	round int64         // the number of the present round, from 1; 0 before it begins
	goal  int64         // the offset in the stream at which the round ends
	began time.Duration // when the round began
	heard time.Duration // when a byte last came back; when it was connected, if none has
}

// isOwed says whether bytes are missing.
func (x *exchange) isOwed() bool { return x.conn.returned < x.goal }

// isComplete says whether all rounds are back.
func (x *exchange) isComplete() bool { return x.round == x.conn.job.rounds && !x.isOwed() }

// interest is readable, because the peer can end at any time, and writable while bytes are left to
// send. If it were always writable, the poller would report all the time that there is room.
func (x *exchange) interest() readiness {
	if x.conn.sent < x.goal {
		return readable | writable
	}
	return readable
}

// due is the end of the silence while bytes are missing, and the begin of the next round while none
// is.
func (x *exchange) due() time.Duration {
	if x.lost != nil {
		return 0 // at once
	}
	return min(x.nextRound(), x.silenceEnd())
}

// nextRound is when the next round begins: never while bytes are missing, or after the last one.
// Without -every that is at once, because every is 0.
func (x *exchange) nextRound() time.Duration {
	switch {
	case x.round == 0:
		return 0 // at once
	case x.isOwed() || x.isComplete():
		return never
	}
	return later(x.began, x.conn.job.every)
}

// silenceEnd is when the peer has been silent for too long: never while no byte is missing, because
// a pause is no silence. Only bytes that come back are a sign of life. What the kernel takes may
// lie in its buffer.
func (x *exchange) silenceEnd() time.Duration {
	if !x.isOwed() {
		return never
	}
	return later(max(x.began, x.heard), x.conn.job.ioTimeout)
}

// step moves bytes, and then looks whether that was too late, or was all. A lost connection is read
// until there is an error; it needs no other limit.
func (x *exchange) step() {
	now := x.conn.loop.kernel.now()
	err := x.move(now)
	switch {
	case err != nil:
		x.fail(err)
	case x.lost == nil && now >= x.silenceEnd():
		x.fail(fmt.Errorf("%w after %v of silence", errTimedOut, x.conn.job.ioTimeout))
	case x.isComplete():
		x.startDrain()
	}
}

// move receives first, because that can end a round, and so the next one can begin. It sends
// without waiting for writability: mostly there is room. If sending fails, the connection is lost,
// but what has come before that counts first: there may be a wrong byte in it. now, when the step
// began, is what limits go by; times that are told are taken anew.
func (x *exchange) move(now time.Duration) error {
	err := x.receive()
	if err != nil && err != errWouldBlock {
		return err
	}
	if now >= x.nextRound() {
		x.beginRound()
	}
	err = x.send()
	if err != nil && err != errWouldBlock {
		x.lost = err
	}
	return nil
}

// receive reads once and compares. If there is more to read, the level-triggered poller will tell.
// If there is no more to read from a lost connection, the error is x.lost, whatever read says.
func (x *exchange) receive() error {
	c := x.conn
	p, err := c.loop.read(c.socket, chunkSize)
	if err != nil {
		return cmp.Or(x.lost, err)
	}
	right, err := c.job.flow.compare(p, c.returned, c.sent)
	c.returned += right
	c.tally.returned += right
	x.heard = c.loop.kernel.now()
	c.tally.heardAt = x.heard
	if right > 0 && !x.isOwed() { // a wrong byte in a pause ends no round
		x.endRound()
	}
	return err
}

// endRound counts a round that is back. With -every it is a line.
func (x *exchange) endRound() {
	c := x.conn
	took := x.heard - x.began
	c.tally.roundsBack++
	c.tally.roundTimes.add(took)
	if c.job.every > 0 {
		c.print("round", "target", c.target, "peer", c.peer, "connection", c.number,
			"round", x.round, "rtt_ms", took)
	}
}

// beginRound makes the next round's bytes the ones to be sent.
func (x *exchange) beginRound() {
	x.round++
	x.goal += x.conn.job.flow.roundSize
	x.began = x.conn.loop.kernel.now()
}

// send writes once, if anything is left to send, and can be sent.
func (x *exchange) send() error {
	c := x.conn
	if c.sent == x.goal || x.lost != nil {
		return nil
	}
	n, err := c.loop.write(c.socket, c.job.flow.piece(c.sent, x.goal))
	c.sent += int64(n)
	c.tally.sent += int64(n)
	return err
}

// startDrain half-closes, and leaves the rest to drain.
func (x *exchange) startDrain() {
	c := x.conn
	c.loop.logf("shutdown: all %d bytes are back", c.returned)
	c.loop.kernel.closeWrite(c.socket)
	c.tally.draining++
	c.loop.handOver(c.socket, &drain{conn: c, until: later(c.loop.kernel.now(), time.Second/2)})
}

// fail closes the connection, and gives it the verdict that is due to err.
func (x *exchange) fail(err error) {
	status := exitLost
	switch {
	case is[wrong](err):
		status = exitWrong
	case is[exhausted](err):
		status = exitLocal
	case errors.Is(err, errTimedOut) || err == errUnreachable: // or the kernel gave the peer up
		status = exitIOTimeout
	}
	x.conn.loop.close(x.conn.socket)
	x.conn.finish(status, x.explain(err))
}

// explain adds to an error what an operator wants to know. If no right byte ever came back, that is
// whether this is an echo server. If the connection was lost, it is how far the round had come. If
// that is nowhere, and there was a pause before it, it is also for how long the connection was
// idle: some paths forget idle connections.
func (x *exchange) explain(err error) error {
	c := x.conn
	switch {
	case is[wrong](err) && c.returned == 0:
		return fmt.Errorf("%w; is this an echo server?", err)
	case is[wrong](err):
		return err
	case err == io.EOF:
		err = errors.New("closed early")
	}
	size := c.job.flow.roundSize
	back := c.returned % size // of the present round: all rounds have one size
	round := x.round
	idle := x.began - x.heard
	if x.isOwed() || round == 0 {
		err = fmt.Errorf("%w (%d of %d bytes)", err, back, size)
	} else { // in the pause before the next round
		round++
		idle = c.loop.kernel.now() - x.heard
	}
	if c.job.every > 0 && round > 1 && back == 0 {
		err = fmt.Errorf("%w, idle for %.1fs before round %d", err, idle.Seconds(), round)
	}
	return err
}

// ---- The connection: drain ----

// drain is the machine that waits for the peer's FIN, after ours. If the socket were closed at
// once, a byte too many would stay unseen, and the kernel would answer it with a reset. The job is
// done, so an error is as good as the peer's FIN, and so is the end of the time.
type drain struct {
	conn  *connection
	until time.Duration
}

func (d *drain) interest() readiness { return readable }
func (d *drain) due() time.Duration  { return d.until }

func (d *drain) step() {
	c := d.conn
	now := c.loop.kernel.now()
	_, err := c.loop.read(c.socket, chunkSize)
	if err == errWouldBlock && now < d.until {
		return
	}
	c.tally.draining--
	c.loop.close(c.socket)
	if err == nil {
		c.finish(exitWrong, errSurplus)
		return
	}
	c.finish(exitOK, nil)
}

// ---- Names ----

// lookUp calls done with the addresses of host, in another goroutine, because net's look-up blocks.
// net gives up when the limit has passed, whatever the look-up is stuck in. family is ip, ip4 or
// ip6, the words of package net.
func lookUp(host, family string, limit time.Duration, done func([]netip.Addr, error)) {
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		done(resolver().LookupNetIP(ctx, family, host))
	}()
}

// lookUpFailure returns the exit status and the text of an error of lookUp. An error that is not
// net.DNSError says that there are addresses, but of the other family.
func lookUpFailure(err error) (status int, text string) {
	failure, isOfNames := err.(*net.DNSError)
	switch {
	case !isOfNames || failure.IsNotFound:
		return exitNotConnected, "no such name, or no address of that family"
	case failure.IsTimeout:
		return exitConnectTimeout, "timed out"
	case strings.Contains(failure.Err, "too many open files"): // only the text is left of it
		return exitLocal, failure.Err
	}
	return exitNotConnected, failure.Err
}

// ---- The run ----

// outside is all that a run touches. So a test can run the whole program in one goroutine, over a
// simulated kernel, and decide when each thing happens.
type outside struct {
	newKernel func() (kernel, error)
	lookUp    func(host, family string, limit time.Duration, done func([]netip.Addr, error))
	signals   func(notify func(status int)) // catches them from now on

	stdin          io.Reader
	stdout, stderr io.Writer
}

func main() {
	// The Go runtime has a poller of its own, and makes it when it first needs a timer. If there
	// are no descriptors left by then, it ends the process with a stack trace. So let it be now.
	time.Sleep(time.Nanosecond)
	out := outside{newKernel, lookUp, catchSignals, os.Stdin, os.Stdout, os.Stderr}
	os.Exit(run(os.Args[1:], out))
}

// run does what the command line says. It returns the exit status.
func run(args []string, out outside) (status int) {
	s := &session{outside: out, family: "ip"}
	err := s.parse(args)
	switch {
	case err == flag.ErrHelp:
		fmt.Fprint(out.stdout, usage)
		return exitOK
	case err != nil:
		fmt.Fprintf(out.stderr, "echomux: %s (see echomux -h)\n", printable(err.Error()))
		return exitUsage
	case s.version:
		info, _ := debug.ReadBuildInfo() // a module always has it
		target := runtime.GOOS + "/" + runtime.GOARCH
		fmt.Fprintln(out.stdout, "echomux", info.Main.Version, runtime.Version(), target)
		return exitOK
	}
	k, err := out.newKernel() // without it there is only the report, which then does not need it
	s.loop = newLoop(k)
	s.server = server{loop: s.loop, print: s.print}
	s.client.loop = s.loop
	s.client.print = s.print
	if s.verbose {
		s.loop.log = out.stderr
	}
	if err == nil {
		err = s.start()
	}
	if err == nil {
		err = s.loop.run()
	}
	status = s.report(err)
	for len(s.loop.queue) > 0 { // no machine steps any more
		s.loop.close(s.loop.queue[0].socket)
	}
	return status
}

// session is one run of the program: a client, a server, or in the recipe both.
type session struct {
	outside   outside
	loop      *loop
	server    server
	client    client
	signal    int   // the exit status of the signal that has ended the loop; 0 if none has
	unwritten error // why a result line could not be written

	// What the command line says, beside the client's job:
	connectTimeout time.Duration // never if there is no limit
	hasSize        bool          // the bytes are generated
	useStdin       bool          // the bytes are standard input
	host           string
	port           uint16     // 0: the kernel chooses
	family         string     // ip, ip4 or ip6
	address        netip.Addr // ADDRESS, or HOST if that is an address

	serve, json, verbose, quiet, version bool // the flags of these names
}

// start begins what the loop goes on with by itself.
func (s *session) start() error {
	s.outside.signals(func(status int) {
		s.loop.post(func() {
			s.signal = status
			s.loop.stopped = true
		})
	})
	if !s.serve && s.host != "" {
		return s.startClient()
	}
	err := s.server.listen(netip.AddrPortFrom(s.address, s.port))
	if err == errNoFamily && s.address == netip.IPv6Unspecified() {
		err = s.server.listen(netip.AddrPortFrom(netip.IPv4Unspecified(), s.port))
	}
	switch {
	case err != nil:
		return err
	case s.serve:
		s.print("listening", "at", s.server.bound.String())
	default: // the recipe
		s.client.target = s.server.bound.String()
		s.client.addrs = []netip.AddrPort{s.server.bound}
		s.client.start(s.connectTimeout)
	}
	return nil
}

// startClient reads standard input, if that is to be sent, and then looks HOST up.
func (s *session) startClient() error {
	if s.useStdin {
		input, err := io.ReadAll(io.LimitReader(s.outside.stdin, mostInput+1))
		switch {
		case err != nil:
			return fmt.Errorf("standard input: %w", err)
		case len(input) == 0 || len(input) > mostInput:
			return errors.New("standard input is empty, or longer than 64 MiB (see -size)")
		}
		s.client.job.flow = flow{input, int64(len(input))}
	}
	began := s.loop.kernel.now()
	s.outside.lookUp(s.host, s.family, s.connectTimeout, func(addrs []netip.Addr, err error) {
		s.loop.post(func() { s.found(addrs, err, began) })
	})
	return nil
}

const mostInput = 64 << 20 // bytes of standard input

// found goes on with the addresses of HOST, or with the reason why there are none.
func (s *session) found(addrs []netip.Addr, err error, began time.Duration) {
	if err != nil {
		status, text := lookUpFailure(err)
		s.giveUp(status, fmt.Errorf("lookup %s: %s", s.host, text))
		return
	}
	if s.address.IsValid() { // net has checked its family, and dropped its zone
		addrs = []netip.Addr{s.address}
	}
	for _, addr := range addrs {
		s.client.addrs = append(s.client.addrs, netip.AddrPortFrom(addr.Unmap(), s.port))
	}
	s.client.start(s.connectTimeout - (s.loop.kernel.now() - began))
}

// giveUp gives all connections that have no verdict the same one, and ends the run.
func (s *session) giveUp(status int, err error) {
	t := &s.client.tally
	t.judge(status, err, s.client.total-t.judged)
	s.loop.stopped = true
}

// catchSignals calls notify with the exit status of the first signal that ends the program. Half a
// second later, less some time for the end itself, it ends the process: the loop may be stuck, say
// in a write to standard output, or have not begun, because standard input does not end. A signal
// that was ignored at the start stays ignored, as nohup(1) wants it.
func catchSignals(notify func(status int)) {
	statuses := endingSignals()
	caught := make(chan os.Signal, 1)
	for sig := range statuses {
		if !signal.Ignored(sig) {
			signal.Notify(caught, sig)
		}
	}
	go func() {
		status := statuses[<-caught]
		notify(status)
		time.Sleep(450 * time.Millisecond)
		os.Exit(status)
	}()
}

// ---- The command line ----

const usage = `usage: echomux [flags] HOST PORT [MESSAGE ...]  what is sent has to come back
       echomux -serve [-v] [-q] [-json] [ADDRESS] PORT    be the echo server
       echomux                     the recipe: both ends in one loop, logged
Each MESSAGE is sent with a newline; none: data1, data2; -: standard input.
  -connect-timeout 3.5s  name to connection, all addresses together; 0: no limit
  -io-timeout 5.5s       longest silence while bytes are missing; 0: no limit
  -connect               only connect; nothing is sent (a port check)
  -size N                a round is N generated bytes (K, M, G), no MESSAGE
  -n 1                   connections at once
  -count 1               rounds on each connection; 0: until a signal
  -every 0s              from one round's begin to the next; each is a line
  -4, -6                 one address family
  -v, -q, -json          log every step; no line for success; lines as JSON
  -version               module version, Go release, target
exit status: 0 all done; 1 wrong bytes; 2 usage; 3 not connected; 4 connect
timeout; 5 I/O timeout; 6 local failure; 7 connection lost; 128 + a signal.
`

// parse reads and checks the command line. A limit of 0, which is none, becomes never, and 0 rounds
// become very many.
func (s *session) parse(args []string) error {
	job := &s.client.job
	set := s.defineFlags(job)
	err := set.Parse(args)
	if err != nil || s.version {
		return err
	}
	set.Visit(func(f *flag.Flag) {
		value := f.Value.String()
		switch {
		case strings.HasPrefix(value, "-"):
			err = fmt.Errorf("-%s %s: must not be negative", f.Name, value)
		case f.Name == "n" && value == "0":
			err = errors.New("-n 0: must be above zero")
		case s.serve && !slices.Contains([]string{"serve", "json", "v", "q"}, f.Name):
			err = fmt.Errorf("-%s does nothing with -serve", f.Name)
		}
	})
	if err != nil {
		return err
	}
	s.connectTimeout = cmp.Or(s.connectTimeout, never)
	job.ioTimeout = cmp.Or(job.ioTimeout, never)
	job.rounds = cmp.Or(job.rounds, math.MaxInt64)
	words := set.Args()
	switch {
	case len(words) > 0:
		words, err = s.parsePlace(words)
	case s.serve:
		err = errors.New("PORT is missing after -serve")
	default: // the recipe, which is there to be watched
		s.address = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		s.client.target = "127.0.0.1:0" // until the kernel has chosen
		s.verbose = true
	}
	if err != nil {
		return err
	}
	return s.parseMessages(words)
}

func (s *session) defineFlags(job *job) *flag.FlagSet {
	set := flag.NewFlagSet("echomux", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.DurationVar(&s.connectTimeout, "connect-timeout", 3500*time.Millisecond, "")
	set.DurationVar(&job.ioTimeout, "io-timeout", 5500*time.Millisecond, "")
	set.BoolVar(&job.connectOnly, "connect", false, "")
	set.Func("size", "", s.parseSize)
	set.Int64Var(&s.client.total, "n", 1, "")
	set.Int64Var(&job.rounds, "count", 1, "")
	set.DurationVar(&job.every, "every", 0, "")
	set.BoolFunc("4", "", func(string) error { s.family = "ip4"; return nil })
	set.BoolFunc("6", "", func(string) error { s.family = "ip6"; return nil })
	set.BoolVar(&s.json, "json", false, "")
	set.BoolVar(&s.verbose, "v", false, "")
	set.BoolVar(&s.quiet, "q", false, "")
	set.BoolVar(&s.version, "version", false, "")
	set.BoolVar(&s.serve, "serve", false, "")
	return set
}

func (s *session) parseSize(text string) error {
	digits := strings.TrimRight(text, "KMG")
	factors := map[string]int64{"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
	factor := factors[text[len(digits):]]
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 1 || factor == 0 || n > math.MaxInt64/factor {
		return errors.New("must be a number above zero, such as 300M")
	}
	s.hasSize = true
	s.client.job.flow = flow{newPattern(), n * factor}
	return nil
}

// parsePlace reads HOST PORT or [ADDRESS] PORT, which may be one word, and returns the words after
// it.
func (s *session) parsePlace(words []string) (rest []string, err error) {
	host, port, err := net.SplitHostPort(words[0])
	rest = words[1:]
	switch {
	case err == nil: // it is one word
	case len(words) > 1:
		host = strings.Trim(words[0], "[]")
		port = words[1]
		rest = words[2:]
	case s.serve:
		port = words[0]
	default:
		return nil, fmt.Errorf("PORT is missing after %q", words[0])
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || number == 0 && !s.serve {
		return nil, fmt.Errorf("PORT %q: must be a number from 1 to 65535", port)
	}
	addr, err := netip.ParseAddr(cmp.Or(host, "::"))
	switch {
	case host == "" && !s.serve:
		return nil, fmt.Errorf("HOST is missing before %q", words[0])
	case err != nil && s.serve:
		return nil, fmt.Errorf("ADDRESS %q: must be an IP address", host)
	case addr.Is6() && addr.IsLinkLocalUnicast() && addr.Zone() == "":
		return nil, fmt.Errorf("%v: a link-local address needs a zone: %v%%eth0", addr, addr)
	}
	s.client.target = net.JoinHostPort(host, port)
	s.host = host
	s.port = uint16(number)
	s.address = addr.Unmap()
	return rest, nil
}

// parseMessages makes what flows of the MESSAGEs.
func (s *session) parseMessages(words []string) error {
	switch {
	case len(words) > 0 && (s.serve || s.client.job.connectOnly || s.hasSize):
		return fmt.Errorf("%q: -serve, -connect and -size go without a MESSAGE", words[0])
	case s.hasSize:
		return nil
	case len(words) == 0:
		words = []string{"data1", "data2"}
	case words[0] == "--" && len(words) > 1:
		words = words[1:]
	case slices.Equal(words, []string{"-"}):
		s.useStdin = true
		return nil
	default:
		i := slices.IndexFunc(words, func(w string) bool { return strings.HasPrefix(w, "-") })
		if i >= 0 {
			return fmt.Errorf("%q: flags precede HOST, - stands alone, "+
				"and other MESSAGEs with - come after PORT and --", words[i])
		}
	}
	block := []byte(strings.Join(words, "\n") + "\n")
	s.client.job.flow = flow{block, int64(len(block))}
	return nil
}

// ---- The report ----

// print writes a result line: keys and their values, in turn. A value that is "" is left out with
// its key. A line that cannot be written ends the run.
func (s *session) print(msg string, pairs ...any) {
	if s.quiet && slices.Contains([]string{"ok", "round", "listening", "ended"}, msg) {
		return
	}
	now := time.Now().UTC().Format("2006-01-02T15:04:05.000Z")
	pairs = append([]any{"time", now, "msg", msg}, pairs...)
	_, err := fmt.Fprintln(s.outside.stdout, wordLine(pairs, s.json))
	s.unwritten = cmp.Or(s.unwritten, err)
	s.loop.failOn(err)
}

// wordLine words a line, as a JSON object or in logfmt. Both have JSON's escapes, but in logfmt a
// plain word has no quotes.
func wordLine(pairs []any, asJSON bool) string {
	var words []string
	for i := 0; i < len(pairs); i += 2 {
		key := pairs[i]
		value := wordValue(pairs[i+1])
		switch {
		case value == `""`:
		case asJSON:
			words = append(words, fmt.Sprintf("%q:%s", key, value))
		case strings.ContainsAny(value, ` =\`):
			words = append(words, fmt.Sprintf("%s=%s", key, value))
		default:
			words = append(words, fmt.Sprintf("%s=%s", key, strings.Trim(value, `"`)))
		}
	}
	if asJSON {
		return "{" + strings.Join(words, ",") + "}"
	}
	return strings.Join(words, " ")
}

// wordValue words a value for JSON: a time in milliseconds, another number, or a text.
func wordValue(value any) string {
	switch v := value.(type) {
	case time.Duration:
		return fmt.Sprintf("%.3f", float64(v)/1e6)
	case float64:
		return fmt.Sprintf("%.3f", v)
	case string:
		return `"` + printable(strings.NewReplacer(`"`, `\"`, `\`, `\\`).Replace(v)) + `"`
	}
	return fmt.Sprint(value)
}

// quoted returns the lines of p, each in quotes, or of a long p the first bytes.
func quoted(p []byte) string {
	const most = 60
	lines := slices.Collect(bytes.Lines(p[:min(len(p), most)]))
	text := strings.Trim(fmt.Sprintf("%q", lines), "[]")
	if len(p) > most {
		text += fmt.Sprintf("... (%d bytes)", len(p))
	}
	return text
}

// printable returns text in printable ASCII, with JSON's escapes for all else. What a peer, a name
// server or an argument says could be a command for the terminal.
func printable(text string) string {
	var b strings.Builder
	for _, unit := range utf16.Encode([]rune(text)) {
		if ' ' <= unit && unit <= '~' {
			b.WriteByte(byte(unit))
		} else {
			fmt.Fprintf(&b, `\u%04x`, unit)
		}
	}
	return b.String()
}

// report prints the lines at the end of the run, and returns the exit status. err is why the loop
// could not go on, or could not begin. Then a server has the line of a connection that has failed.
func (s *session) report(err error) (status int) {
	if err != nil {
		s.giveUp(exitLocal, err)
	} else { // what drains when a signal comes has done its job
		s.client.tally.judge(exitOK, nil, s.client.tally.draining)
	}
	if s.serve && err == nil {
		srv := &s.server
		s.print("ended", "status", exitOK, "at", srv.bound.String(), "clients", srv.clients,
			"failed", srv.failed, "received", srv.received, "returned", srv.returned)
	} else {
		status = s.reportClient()
	}
	if s.unwritten != nil {
		fmt.Fprintln(s.outside.stderr, "echomux:", s.unwritten)
		return exitLocal
	}
	return status
}

// reportClient prints what the connections came to. A signal has come too late if all have their
// verdict.
func (s *session) reportClient() (status int) {
	cl := &s.client
	t := &cl.tally
	status = s.reportCauses()
	msg := "ok"
	cause := t.causes[status]
	switch {
	case s.unwritten != nil: // some line before this one
		msg = "failed"
		status = exitLocal
	case t.judged < cl.total: // only a signal ends the loop before
		msg = "interrupted"
		status = s.signal
	case status != exitOK:
		msg = "failed"
	}
	line := []any{"status", status, "target", cl.target}
	isOne := cl.total == 1
	if isOne {
		line = append(line, "local", t.local, "peer", t.peer)
	} else {
		cause = "" // the cause of each status has a line of its own
		line = append(line, "connections", cl.total, "ok", t.verdicts[exitOK],
			"failed", t.judged-t.verdicts[exitOK], "unfinished", cl.total-t.judged)
	}
	line = append(line, "sent", t.sent, "returned", t.returned, "rounds", t.roundsBack)
	line = append(line, t.connectTimes.pairs("connect", isOne)...)
	line = append(line, t.roundTimes.pairs("rtt", isOne && cl.job.rounds == 1)...)
	if s.hasSize && t.heardAt > t.connectedAt { // the first round begins with the connection
		line = append(line, "mbit_s", float64(t.returned)*8e3/float64(t.heardAt-t.connectedAt))
	}
	if t.connectTimes.n > 0 {
		line = append(line, "lasted_ms", s.loop.kernel.now()-t.connectedAt)
	}
	s.print(msg, append(line, "skipped", t.skipped, "error", cause)...)
	return status
}

// reportCauses returns the worst exit status that a connection has failed with. It is that of the
// run: a wrong byte must not hide behind many resets. If there are several connections, it prints
// a line for each status.
func (s *session) reportCauses() (worst int) {
	cl := &s.client
	for _, status := range []int{exitWrong, exitLocal, exitLost, exitIOTimeout,
		exitConnectTimeout, exitNotConnected} {
		if cl.tally.verdicts[status] == 0 {
			continue
		}
		worst = cmp.Or(worst, status) // exitOK is 0
		if cl.total > 1 {
			s.print("cause", "status", status, "target", cl.target,
				"connections", cl.tally.verdicts[status], "error", cl.tally.causes[status])
		}
	}
	return worst
}

// histogram counts times in constant memory, in buckets of which 16 double a time. So a time that
// is read from it is wrong by 3.2% at most.
type histogram struct {
	n       int
	buckets [64 * 16]int // 2^63 ns is the most

	least, most time.Duration
}

// firstBucket is the number of the bucket for 1 ns. A bucket's number is the first 16 bits of the
// time as a float64: the sign, 11 bits of exponent, and 4 bits of fraction.
const firstBucket = 0x3ff0

func (h *histogram) add(d time.Duration) {
	if h.n == 0 || d < h.least {
		h.least = d
	}
	h.n++
	h.most = max(h.most, d)
	h.buckets[math.Float64bits(float64(max(d, 1)))>>48-firstBucket]++
}

// percentile returns the time that the given share of all times does not exceed.
func (h *histogram) percentile(share float64) time.Duration {
	i := -1
	for seen := 0; float64(seen) < share*float64(h.n); {
		i++
		seen += h.buckets[i]
	}
	middle := math.Float64frombits(uint64(i+firstBucket)<<48 | 1<<47)
	return min(max(time.Duration(middle), h.least), h.most)
}

// pairs returns the keys and values of a line: one if there is only one time by the command line,
// otherwise the least, the median, the 99th percentile and the most.
func (h *histogram) pairs(name string, isOne bool) []any {
	switch {
	case h.n == 0:
		return nil
	case isOne:
		return []any{name + "_ms", h.least}
	}
	return []any{name + "_min_ms", h.least, name + "_p50_ms", h.percentile(0.5),
		name + "_p99_ms", h.percentile(0.99), name + "_max_ms", h.most}
}
