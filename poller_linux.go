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

// change calls epoll_ctl(2). With each event the kernel returns 64 bits that were given to it. Here
// they hold the descriptor and the readiness that was asked for. (x/sys calls the two halves Fd and
// Pad.)
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

// forget does nothing: close(2) takes s out of epoll, because no other descriptor stands for the
// same socket (epoll(7), Q6).
func (p *epoll) forget(socket) {}

// wait calls epoll_wait(2). EINTR, with n = -1, counts as a spurious return, because the Go runtime
// signals its own threads.
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

// folded returns the readiness of an event. EPOLLERR and EPOLLHUP are reported even if nobody asks.
// They mean that the call that was waited for will not block.
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

// wake adds 1 to the counter of the eventfd. The write fails only if the counter is full, and then
// a wake-up is pending anyway.
func (p *epoll) wake() {
	one := [8]byte{1} // of a big-endian machine it is 1<<56, which serves as well
	unix.Write(p.wakefd, one[:])
}

// consumeWake sets the counter of the eventfd to 0. If it is 0 already, the read fails with EAGAIN.
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

// fault turns an error number into the error of the contract that it means. Any other error gets
// the name of the call that it came from. accept says ECONNABORTED about a connection that was
// reset in the backlog. EPROTOTYPE comes on Darwin alone.
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

// openSocket: see tcp(7), socket(7). The options cannot fail on a TCP socket, so the results are
// not looked at.
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

// bindSource gives fd a local address. The port is left to connect.
func bindSource(fd int, from netip.Addr) error {
	deferPort(fd)
	sa, err := sockaddr(netip.AddrPortFrom(from, 0))
	if err != nil {
		return err
	}
	return fault("bind", syscall.Bind(fd, sa))
}

// setNonblock uses F_SETFL of fcntl(2). A new socket has no other flag that would have to be kept.
func (system) setNonblock(s socket) error {
	_, err := unix.FcntlInt(uintptr(s), unix.F_SETFL, unix.O_NONBLOCK)
	return fault("fcntl", err)
}

// connect calls connect(2). EINPROGRESS is the rule. EALREADY and EINTR (a signal) also mean that
// connecting goes on. EAGAIN does not mean "not now" here: no local port is free. ECONNABORTED
// comes before there is a connection, so it is not a reset.
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

// noPort tells what EADDRNOTAVAIL of connect means. With IPv4 it means that all local ports are
// taken. With IPv6 it can also mean that this machine has no address from which to can be reached.
func noPort(to netip.Addr) error {
	if to.Is4() {
		return errNoPort
	}
	return errNoAddress
}

// connectResult reads SO_ERROR, which is cleared by that, so its value has to be acted on. 0 means
// that connect has not failed. Whether connecting is done, only the peer's name tells: ENOTCONN
// means that it is still pending. (So does EINVAL, which comes on Darwin alone.)
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

// endNames returns both ends of a connection, in the form that connectResult returns.
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

// pendingError reads SO_ERROR. On Linux SO_ERROR also has what an ICMP message has said about a
// connection that goes on trying. A later acknowledgement takes that back (tcp_ack in
// net/ipv4/tcp_input.c).
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

// closeWrite calls shutdown(2). ENOTCONN means that the peer has reset the connection before, and
// the next read, or SO_ERROR, will tell.
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

// bindAndListen sets the options of a listener. SO_REUSEADDR lets a server start again while
// connections of the server before are in TIME_WAIT. IPV6_V6ONLY leaves IPv4 to a listener of its
// own. Accepted sockets inherit the options that are set here and in openSocket (UNIX Network
// Programming, section 7.4). SO_KEEPALIVE finds out that a client has vanished; without it the
// client would hold a descriptor for ever. The backlog is the largest number that fits in a
// kernel's 16 bits, and the kernel reduces it to its own limit.
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

// sockaddr returns a in the kernel's form. All calls with addresses are those of package syscall:
// x/sys would ask the kernel for SO_PROTOCOL with each address that it returns, and nobody needs
// that here.
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

// addrPort returns sa in the form of package netip.
func addrPort(sa syscall.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *syscall.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *syscall.SockaddrInet6:
		ip := netip.AddrFrom16(sa.Addr)
		if sa.ZoneId != 0 {
			ip = ip.WithZone(strconv.FormatUint(uint64(sa.ZoneId), 10))
		}
		return netip.AddrPortFrom(ip, uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// ---- The rest: what sockets need, clock, names, standard input, signals ----

const cloexec = unix.SOCK_CLOEXEC

// readNow and writeNow call read(2) and write(2) on a socket in non-blocking mode. unix.Read would
// tell the Go runtime that the thread may sleep in the call. These calls never sleep, so they can
// do without that.
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

// acceptNonblock calls accept4(2), because an accepted socket does not inherit O_NONBLOCK on Linux.
func acceptNonblock(fd int) (int, syscall.Sockaddr, error) {
	return syscall.Accept4(fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
}

// deferPort sets IP_BIND_ADDRESS_NO_PORT, ip(7), which serves both families. Without it bind would
// reserve a port for all destinations at once; connect needs only a port that is free for its
// destination.
func deferPort(fd int) {
	unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
}

// selfConnect: Darwin says with EINVAL that a socket may not connect to itself. On Linux it may,
// and then both its names are the same.
func selfConnect(to netip.Addr, err error) error {
	return os.NewSyscallError("connect", err)
}

// unacknowledgedBytes uses SIOCOUTQ, tcp(7), which x/sys has under the other name of its number.
// The result is a difference of two sequence numbers, and the FIN takes one. The kernel writes 32
// bits. x/sys's IoctlGetInt would have it write them into an int of 64 bits, where they are the
// upper half on a big-endian machine.
func unacknowledgedBytes(fd int) int {
	n, err := unix.IoctlGetUint32(fd, unix.TIOCOUTQ)
	if err != nil {
		return -1
	}
	return int(n)
}

// retransmittedSegments uses TCP_INFO, tcp(7).
func retransmittedSegments(fd int) int {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return -1
	}
	return int(info.Total_retrans)
}

// newClock reads CLOCK_MONOTONIC, for which Go makes no system call.
func newClock() func() time.Duration {
	start := time.Now()
	return func() time.Duration { return time.Since(start) }
}

// newResolver returns Go's own resolver, however echomux was built. That resolver asks the name
// servers of resolv.conf(5) one after the other, waits five seconds for each, and then asks all of
// them again. This is more time than a run has by default. So here the first try of a question at a
// server ends after a second, and the second try has its five. A dead first server costs a second
// then, and a server that needs 1.5 s has answered after 2.5 s. For each try the resolver dials,
// sets a deadline, writes the question and reads the answer (package net, dnsclient_unix.go).
func newResolver() *net.Resolver {
	tries := &firstTries{asked: make(map[string]bool)}
	return &net.Resolver{PreferGo: true, Dial: tries.dial}
}

const firstTryTime = time.Second

// firstTries knows which questions were already asked at which name server.
type firstTries struct {
	mu    sync.Mutex      // the resolver asks for A and AAAA side by side
	asked map[string]bool // by server and question
}

// dial connects the resolver to a name server. TCP is left as it is: there the resolver's own
// limits are right.
func (f *firstTries) dial(ctx context.Context, network, server string) (net.Conn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, network, server)
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		return conn, err
	}
	return &questionConn{UDPConn: udp, server: server, tries: f}, nil
}

// asks notes that a server is asked a question, and reports whether it was not asked that before.
func (f *firstTries) asks(server, question string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := server + " " + question
	before := f.asked[key]
	f.asked[key] = true
	return !before
}

// questionConn is a UDP connection to a name server, for one question. It has to stay a
// net.PacketConn, because the resolver tells UDP from TCP by that.
type questionConn struct {
	*net.UDPConn
	server string
	tries  *firstTries
}

// Write sends the question. The resolver has set the deadline of this try just before. In the first
// try a deadline of ours takes its place. (It may be later than the resolver's; the loop has a
// deadline for the whole look-up.) The first two bytes of a question are drawn anew for each try;
// by the other bytes the question is recognised (RFC 1035 section 4.1).
func (c *questionConn) Write(query []byte) (int, error) {
	if c.tries.asks(c.server, string(query[2:])) {
		c.SetDeadline(time.Now().Add(firstTryTime)) // can only fail on a closed connection
	}
	return c.UDPConn.Write(query)
}

// kindOfInput: only a regular file with a size can be read without waiting for anybody. The files
// of /proc have no size, and reading some of them blocks.
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

// isTerminal asks what isatty(3) asks.
func isTerminal(file *os.File) bool {
	terminal := false
	onDescriptor(file, func(fd uintptr) {
		_, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
		terminal = err == nil
	})
	return terminal
}

// widenPipe uses F_SETPIPE_SZ, fcntl(2). A pipe holds 64 KiB by default. It stays so if the calls
// fail: if file is not a pipe, or if this user's pipes hold too much already (pipe(7)).
func widenPipe(pipe *os.File, size int) {
	onDescriptor(pipe, func(fd uintptr) {
		before, err := unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0)
		if err == nil && before < size {
			unix.FcntlInt(fd, unix.F_SETPIPE_SZ, size)
		}
	})
}

// terminalEOFDelay is 0, because an EOF of a terminal is what somebody has typed.
const terminalEOFDelay = 0

func readerGone(err error) bool { return errors.Is(err, unix.EPIPE) }

const (
	sigTerm = unix.SIGTERM
	sigHup  = unix.SIGHUP
	sigPipe = unix.SIGPIPE
)
