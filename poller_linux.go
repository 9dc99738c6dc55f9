// The contract in Linux's words: epoll(7) with an eventfd(2) to wake it, and BSD sockets.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ---- The poller ----

// epoll is the poller. The kernel keeps the list of what is watched.
type epoll struct {
	epfd   int                        // the epoll instance
	wakefd int                        // an eventfd in it, which is readable after a wake-up
	events [batchSize]unix.EpollEvent // room for what epoll_wait reports
}

func newPoller() (poller, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fault("epoll_create1", err)
	}
	wakefd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(epfd)
		return nil, fault("eventfd", err)
	}
	p := &epoll{epfd: epfd, wakefd: wakefd}
	err = p.change(socket(wakefd), 0, readable)
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// change: epoll_ctl(2). The 64 bits that the kernel hands back with an event, whose halves x/sys
// calls Fd and Pad, hold the descriptor and the readiness asked for.
func (p *epoll) change(s socket, was, want readiness) error {
	op := unix.EPOLL_CTL_MOD
	switch {
	case was == 0:
		op = unix.EPOLL_CTL_ADD
	case want == 0:
		op = unix.EPOLL_CTL_DEL
	}
	ev := unix.EpollEvent{Fd: int32(s), Pad: int32(want)}
	if want&readable != 0 {
		ev.Events |= unix.EPOLLIN
	}
	if want&writable != 0 {
		ev.Events |= unix.EPOLLOUT
	}
	return fault("epoll_ctl", unix.EpollCtl(p.epfd, op, int(s), &ev))
}

// forget: close(2) takes s out, as no other descriptor stands for the same socket (epoll(7), Q6).
func (p *epoll) forget(socket) {}

// wait: epoll_wait(2). EINTR, with n = -1, is a spurious return: the Go runtime signals its own
// threads.
func (p *epoll) wait(events []event, ms int) (int, error) {
	room := min(len(events), len(p.events))
	n, err := unix.EpollWait(p.epfd, p.events[:room], ms)
	if err != nil && err != unix.EINTR {
		return 0, fault("epoll_wait", err)
	}
	found := 0
	for i := range max(0, n) {
		ev := &p.events[i]
		if int(ev.Fd) == p.wakefd {
			p.consumeWake()
			continue
		}
		events[found] = event{socket(ev.Fd), folded(ev)}
		found++
	}
	return found, nil
}

// folded is the readiness of an event. EPOLLERR and EPOLLHUP come unasked; they say that whatever
// was asked for will not block.
func folded(ev *unix.EpollEvent) readiness {
	if ev.Events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		return readiness(ev.Pad)
	}
	var ready readiness
	if ev.Events&unix.EPOLLIN != 0 {
		ready |= readable
	}
	if ev.Events&unix.EPOLLOUT != 0 {
		ready |= writable
	}
	return ready
}

// wake adds 1 to the eventfd's counter. It fails only where the counter is full, and then a
// wake-up is pending.
func (p *epoll) wake() {
	one := [8]byte{1} // of a big-endian machine it is 1<<56, which serves as well
	unix.Write(p.wakefd, one[:])
}

// consumeWake sets the eventfd's counter to 0. EAGAIN says that it was.
func (p *epoll) consumeWake() {
	var count [8]byte
	unix.Read(p.wakefd, count[:])
}

func (p *epoll) close() error {
	unix.Close(p.wakefd)
	return fault("close", unix.Close(p.epfd))
}

// ---- Sockets: the same code in poller_linux.go and poller_darwin.go ----

// system is the sockets of this kernel.
type system struct{}

// fault turns an error number into the error of the contract that it means, or names the call that
// it came from. ECONNABORTED is what accept says of a connection that was reset before. EPROTOTYPE
// comes on Darwin alone.
func fault(call string, err error) error {
	switch err {
	case nil:
		return nil
	case unix.EAGAIN, unix.EINTR: // the Go runtime signals its own threads
		return errWouldBlock
	case unix.ECONNRESET, unix.EPIPE, unix.EPROTOTYPE, unix.ECONNABORTED:
		return errReset
	case unix.ECONNREFUSED:
		return errRefused
	case unix.ETIMEDOUT:
		return errTimedOut
	case unix.EADDRNOTAVAIL, unix.EAFNOSUPPORT:
		return errNoAddress
	case unix.ENOBUFS, unix.ENOMEM:
		return errNoMemory
	case unix.EMFILE:
		var limit unix.Rlimit // Go has raised the soft limit to the hard one at start
		unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
		return fmt.Errorf("%w (the limit is %d)", errTooManyFiles, limit.Cur)
	case unix.ENFILE:
		return fmt.Errorf("%w in the system", errTooManyFiles)
	}
	return os.NewSyscallError(call, err)
}

// openSocket: tcp(7), socket(7). The options cannot fail on a TCP socket, so nobody asks.
func (system) openSocket(to netip.AddrPort, from netip.Addr) (socket, error) {
	fd, err := unix.Socket(domain(to.Addr()), unix.SOCK_STREAM|cloexec, unix.IPPROTO_TCP)
	if err != nil {
		return 0, fault("socket", err)
	}
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
	if from.IsValid() {
		err = bindSource(fd, from)
	}
	if err != nil {
		unix.Close(fd)
		return 0, err
	}
	return socket(fd), nil
}

// bindSource gives fd a local address, and leaves the port to connect.
func bindSource(fd int, from netip.Addr) error {
	deferPort(fd)
	sa, err := sockaddr(netip.AddrPortFrom(from, 0))
	if err != nil {
		return err
	}
	return fault("bind", syscall.Bind(fd, sa))
}

// setNonblock: F_SETFL, fcntl(2). A new socket has no other flag that would have to be kept.
func (system) setNonblock(s socket) error {
	_, err := unix.FcntlInt(uintptr(s), unix.F_SETFL, unix.O_NONBLOCK)
	return fault("fcntl", err)
}

// connect: connect(2). EINPROGRESS is the rule, and a signal does not stop what has begun. EAGAIN
// is not "not now" here: no local port is free. ECONNABORTED comes before there is a connection,
// and so is no reset.
func (system) connect(s socket, to netip.AddrPort) error {
	sa, err := sockaddr(to)
	if err != nil {
		return err
	}
	err = syscall.Connect(int(s), sa)
	switch err {
	case unix.EINPROGRESS, unix.EALREADY, unix.EINTR:
		return nil
	case unix.EAGAIN:
		return errNoPort
	case unix.EADDRNOTAVAIL:
		return noPort(to.Addr())
	case unix.ECONNABORTED:
		return os.NewSyscallError("connect", err)
	case unix.EINVAL:
		return selfConnect(to.Addr(), err)
	}
	return fault("connect", err)
}

// noPort says what EADDRNOTAVAIL of connect means. With IPv4 all local ports are taken; with IPv6
// it can also be that this machine has no address from which to can be reached.
func noPort(to netip.Addr) error {
	if to.Is4() {
		return errNoPort
	}
	return errNoAddress
}

// connectResult: SO_ERROR is cleared by being read, so its value has to be acted on. 0 means that
// connect has not failed; whether it is done, only the peer's name tells. ENOTCONN says that it is
// pending. So does EINVAL, on Darwin alone (endNames).
func (system) connectResult(s socket) (local, peer netip.AddrPort, err error) {
	errno, err := unix.GetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return local, peer, fault("getsockopt", err)
	}
	switch unix.Errno(errno) {
	case 0:
		return endNames(int(s))
	case unix.ECONNABORTED: // before there was a connection
		return local, peer, os.NewSyscallError("connect", unix.ECONNABORTED)
	}
	return local, peer, fault("connect", unix.Errno(errno))
}

// endNames are both ends of a connection, as connectResult has to say them.
func endNames(fd int) (local, peer netip.AddrPort, err error) {
	to, err := syscall.Getpeername(fd)
	switch err {
	case nil:
	case unix.ENOTCONN, unix.EINVAL:
		return local, peer, errWouldBlock
	default:
		return local, peer, fault("getpeername", err)
	}
	from, err := syscall.Getsockname(fd)
	if err != nil {
		return local, peer, fault("getsockname", err)
	}
	return addrPort(from), addrPort(to), nil
}

func (system) read(s socket, p []byte) (int, error) {
	n, err := readNow(int(s), p)
	if err != nil {
		return 0, fault("read", err)
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (system) write(s socket, p []byte) (int, error) {
	n, err := writeNow(int(s), p)
	if err != nil {
		return 0, fault("write", err)
	}
	return n, nil
}

// pendingError: on Linux SO_ERROR also tells what an ICMP message said of a connection that goes on
// trying. An acknowledgement that comes later takes that back (tcp_ack in net/ipv4/tcp_input.c).
func (system) pendingError(s socket) error {
	errno, err := unix.GetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return fault("getsockopt", err)
	}
	if errno != 0 {
		return fault("getsockopt", unix.Errno(errno))
	}
	return nil
}

func (system) path(s socket) (unacknowledged, retransmits int) {
	return unacknowledgedBytes(int(s)), retransmittedSegments(int(s))
}

// closeWrite: shutdown(2). ENOTCONN says that the peer's reset was faster, and the next read tells.
func (system) closeWrite(s socket) error {
	err := unix.Shutdown(int(s), unix.SHUT_WR)
	if err == unix.ENOTCONN {
		return nil
	}
	return fault("shutdown", err)
}

func (system) close(s socket) error { return fault("close", unix.Close(int(s))) }

func (k system) listen(at netip.AddrPort) (socket, netip.AddrPort, error) {
	s, err := k.openSocket(at, netip.Addr{})
	if err != nil {
		return 0, netip.AddrPort{}, err
	}
	bound, err := bindAndListen(int(s), at)
	if err != nil {
		unix.Close(int(s))
		return 0, netip.AddrPort{}, err
	}
	return s, bound, nil
}

// bindAndListen: SO_REUSEADDR lets a server start again while connections of the one before are in
// TIME_WAIT. IPV6_V6ONLY leaves IPv4 to its own listener. Accepted sockets inherit the options set
// here and in openSocket (UNIX Network Programming, section 7.4): SO_KEEPALIVE finds out that a
// client has vanished, or it would hold a descriptor for ever. The backlog is what a kernel's 16
// bits hold, and the kernel cuts it down to its own limit.
func bindAndListen(fd int, at netip.AddrPort) (bound netip.AddrPort, err error) {
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	if at.Addr().Is6() {
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	sa, err := sockaddr(at)
	if err != nil {
		return bound, err
	}
	err = syscall.Bind(fd, sa)
	if err != nil {
		return bound, fault("bind", err)
	}
	err = unix.Listen(fd, math.MaxUint16)
	if err != nil {
		return bound, fault("listen", err)
	}
	err = system{}.setNonblock(socket(fd))
	if err != nil {
		return bound, err
	}
	name, err := syscall.Getsockname(fd)
	return addrPort(name), fault("getsockname", err)
}

func (system) accept(s socket) (socket, netip.AddrPort, error) {
	fd, sa, err := acceptNonblock(int(s))
	if err != nil {
		return 0, netip.AddrPort{}, fault("accept", err)
	}
	return socket(fd), addrPort(sa), nil
}

func domain(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// sockaddr is a in the kernel's form. Calls with addresses are package syscall's: each time that a
// kernel tells an address, x/sys asks it for SO_PROTOCOL too, on which nothing here rests.
func sockaddr(a netip.AddrPort) (syscall.Sockaddr, error) {
	if a.Addr().Is4() {
		return &syscall.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}, nil
	}
	index, err := zoneIndex(a.Addr().Zone())
	if err != nil {
		return nil, err
	}
	return &syscall.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16(), ZoneId: index}, nil
}

// addrPort is sa in the form of package netip.
func addrPort(sa syscall.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *syscall.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *syscall.SockaddrInet6:
		ip := netip.AddrFrom16(sa.Addr)
		if sa.ZoneId != 0 {
			ip = ip.WithZone(strconv.Itoa(int(sa.ZoneId)))
		}
		return netip.AddrPortFrom(ip, uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// ---- The rest: what sockets need, clock, names, standard input, signals ----

const cloexec = unix.SOCK_CLOEXEC

// readNow and writeNow are read(2) and write(2) on a socket in non-blocking mode. unix.Read would
// tell the Go runtime that this thread may sleep, and these do not.
func readNow(fd int, p []byte) (int, error) { return callNow(unix.SYS_READ, fd, p) }

func writeNow(fd int, p []byte) (int, error) { return callNow(unix.SYS_WRITE, fd, p) }

func callNow(number uintptr, fd int, p []byte) (int, error) {
	first := unsafe.Pointer(unsafe.SliceData(p))
	n, _, errno := unix.RawSyscall(number, uintptr(fd), uintptr(first), uintptr(len(p)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// acceptNonblock is accept4(2): an accepted socket does not inherit O_NONBLOCK here.
func acceptNonblock(fd int) (int, syscall.Sockaddr, error) {
	return syscall.Accept4(fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
}

// deferPort: IP_BIND_ADDRESS_NO_PORT, ip(7). bind would reserve a port for every destination at
// once; connect needs one that is free for this destination. It is for both families.
func deferPort(fd int) {
	unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
}

// selfConnect: Darwin says with EINVAL that a socket may not connect to itself. Here it may, and
// then both its names are the same.
func selfConnect(to netip.Addr, err error) error {
	return os.NewSyscallError("connect", err)
}

// unacknowledgedBytes: SIOCOUTQ, tcp(7), which x/sys has under its number's other name. It is a
// difference of two sequence numbers, and the FIN takes one. The kernel writes 32 bits; in Go's int
// of 64, which x/sys's IoctlGetInt has, they are the upper half on a big-endian machine.
func unacknowledgedBytes(fd int) int {
	n, err := unix.IoctlGetUint32(fd, unix.TIOCOUTQ)
	if err != nil {
		return -1
	}
	return int(n)
}

// retransmittedSegments: TCP_INFO, tcp(7).
func retransmittedSegments(fd int) int {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return -1
	}
	return int(info.Total_retrans)
}

// newClock is CLOCK_MONOTONIC, which Go reads without a system call.
func newClock() func() time.Duration {
	start := time.Now()
	return func() time.Duration { return time.Since(start) }
}

// newResolver is Go's own resolver, however echomux was built. It asks the name servers of
// resolv.conf(5) one after the other, each for five seconds, and then all of them again. That is
// more than a run has by default. So here the first try of a question at a server ends after a
// second, and the second try has all its time: a dead first server costs a second, and one that
// needs 1.5 s has answered after 2.5 s. A try is a dial, a deadline, a question and an answer
// (package net, dnsclient_unix.go).
func newResolver() *net.Resolver {
	tries := &firstTries{asked: make(map[string]bool)}
	return &net.Resolver{PreferGo: true, Dial: tries.dial}
}

const firstTryTime = time.Second

// firstTries knows which questions a name server was asked before.
type firstTries struct {
	mu    sync.Mutex      // the resolver asks for A and AAAA side by side
	asked map[string]bool // by server and question
}

// dial connects the resolver to a server. Over TCP the resolver's own limits are right.
func (f *firstTries) dial(ctx context.Context, network, server string) (net.Conn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, network, server)
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		return conn, err
	}
	return &questionConn{UDPConn: udp, server: server, tries: f}, nil
}

// asks notes that a server is asked a question, and says whether it was not before.
func (f *firstTries) asks(server, question string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := server + " " + question
	before := f.asked[key]
	f.asked[key] = true
	return !before
}

// questionConn is UDP to a name server, for one question. It stays a net.PacketConn, by which the
// resolver tells UDP from TCP.
type questionConn struct {
	*net.UDPConn
	server string
	tries  *firstTries
}

// Write sends the question. The resolver has set the deadline of this try just before; at the first
// try one of ours takes its place. That may be later than the resolver's; the loop has a deadline
// of its own for the whole look-up. A question begins with two bytes that are drawn anew for each
// try, and the others tell whether it was asked before (RFC 1035 section 4.1).
func (c *questionConn) Write(query []byte) (int, error) {
	if c.tries.asks(c.server, string(query[2:])) {
		c.SetDeadline(time.Now().Add(firstTryTime)) // can only fail on a closed connection
	}
	return c.UDPConn.Write(query)
}

// kindOfInput: only a regular file with a size can be read without waiting for anybody; files of
// /proc have none, and some of them block.
func kindOfInput(file *os.File) inputKind {
	info, err := file.Stat()
	switch {
	case err != nil:
		return otherInput
	case info.Mode().IsRegular() && info.Size() > 0:
		return regularFile
	case isTerminal(file):
		return terminalInput
	}
	return otherInput
}

// isTerminal asks what isatty(3) does.
func isTerminal(file *os.File) bool {
	terminal := false
	onDescriptor(file, func(fd uintptr) {
		_, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
		terminal = err == nil
	})
	return terminal
}

// onDescriptor calls f with file's descriptor; not at all if file is closed. It leaves file as it
// is: file.Fd would put a pipe back into blocking mode, for all that share it.
func onDescriptor(file *os.File, f func(fd uintptr)) {
	raw, err := file.SyscallConn()
	if err == nil {
		raw.Control(f)
	}
}

// widenPipe: F_SETPIPE_SZ, fcntl(2). A pipe holds 64 KiB else, and still does where the calls fail:
// on what is no pipe, or if this user's pipes hold too much already (pipe(7)).
func widenPipe(pipe *os.File, size int) {
	onDescriptor(pipe, func(fd uintptr) {
		before, err := unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0)
		if err == nil && before < size {
			unix.FcntlInt(fd, unix.F_SETPIPE_SZ, size)
		}
	})
}

// terminalEOFDelay: an EOF of a terminal is what somebody has typed.
const terminalEOFDelay = 0

func readerGone(err error) bool { return errors.Is(err, unix.EPIPE) }

const (
	sigTerm = unix.SIGTERM
	sigHup  = unix.SIGHUP
	sigPipe = unix.SIGPIPE
)
