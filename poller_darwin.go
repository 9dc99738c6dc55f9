// The contract in macOS's words: kqueue(2) with a user event to wake it, and BSD sockets.
//
// XNU cuts a backlog down to 128 (kern.ipc.somaxconn), and has 16,384 local ports for connections
// (49152 to 65535). Where macOS lets no program into the local network that its user has not
// allowed there, connect says EHOSTUNREACH, as if there were no route.

package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ---- The poller ----

// kqueue is the poller. The kernel keeps the list of what is watched.
type kqueue struct {
	kq     int                      // the kqueue, with a user event in it
	events [batchSize]unix.Kevent_t // room for what kevent reports
}

func newPoller() (poller, error) {
	kq, err := unix.Kqueue()
	if err != nil {
		return nil, fault("kqueue", err)
	}
	unix.CloseOnExec(kq)
	p := &kqueue{kq: kq}
	// EV_CLEAR: to be reported once is to be consumed, so wait has nothing to read.
	err = p.apply(filterChange(0, unix.EVFILT_USER, unix.EV_ADD|unix.EV_CLEAR))
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// change: kevent(2). A socket has two filters, not one with a mask: their names are the
// numbers -1 and -2, which OR-ed would name the first alone.
func (p *kqueue) change(s socket, was, want readiness) error {
	changes := make([]unix.Kevent_t, 0, 2)
	added := want &^ was
	removed := was &^ want
	if added&readable != 0 {
		changes = append(changes, filterChange(s, unix.EVFILT_READ, unix.EV_ADD))
	}
	if added&writable != 0 {
		changes = append(changes, filterChange(s, unix.EVFILT_WRITE, unix.EV_ADD))
	}
	if removed&readable != 0 {
		changes = append(changes, filterChange(s, unix.EVFILT_READ, unix.EV_DELETE))
	}
	if removed&writable != 0 {
		changes = append(changes, filterChange(s, unix.EVFILT_WRITE, unix.EV_DELETE))
	}
	return p.apply(changes...)
}

// filterChange is a change of one filter. EV_RECEIPT asks for an answer to it, success included,
// and keeps kevent from returning events that only wait may take.
func filterChange(s socket, filter, flags int) unix.Kevent_t {
	var ev unix.Kevent_t
	unix.SetKevent(&ev, int(s), filter, flags|unix.EV_RECEIPT)
	return ev
}

// apply makes all changes in one call. Their receipts take their places: EV_ERROR with an error
// number in data, 0 for success.
func (p *kqueue) apply(changes ...unix.Kevent_t) error {
	n, err := unix.Kevent(p.kq, changes, changes, nil)
	if err != nil {
		return fault("kevent", err)
	}
	for _, receipt := range changes[:n] {
		if receipt.Data != 0 {
			return fault("kevent", unix.Errno(receipt.Data))
		}
	}
	return nil
}

// forget: close(2) takes s out (kqueue(2)).
func (p *kqueue) forget(socket) {}

// wait: kevent(2). EINTR, with n = -1, is a spurious return: the Go runtime signals its own
// threads.
func (p *kqueue) wait(events []event, ms int) (int, error) {
	var timeout *unix.Timespec // nil: no limit
	if ms >= 0 {
		t := unix.NsecToTimespec(int64(ms) * int64(time.Millisecond))
		timeout = &t
	}
	room := min(len(events), len(p.events))
	n, err := unix.Kevent(p.kq, nil, p.events[:room], timeout)
	if err != nil && err != unix.EINTR {
		return 0, fault("kevent", err)
	}
	found := 0
	for i := range max(0, n) {
		ev := &p.events[i]
		if ev.Filter == unix.EVFILT_USER {
			continue
		}
		events[found] = event{socket(ev.Ident), folded(ev)}
		found++
	}
	return found, nil
}

// folded is the readiness of an event: the filter alone tells. EV_EOF comes with the filter that it
// concerns; that fflags then hold the socket's error is left to the next call on the socket, which
// names it. EV_ERROR is about a list of changes, and wait passes none.
func folded(ev *unix.Kevent_t) readiness {
	if ev.Filter == unix.EVFILT_WRITE {
		return writable
	}
	return readable
}

// wake triggers the user event. It cannot fail while the kqueue is open; triggered twice before
// wait looks, it is reported once.
func (p *kqueue) wake() {
	trigger := filterChange(0, unix.EVFILT_USER, 0)
	trigger.Fflags = unix.NOTE_TRIGGER
	p.apply(trigger)
}

func (p *kqueue) close() error { return fault("close", unix.Close(p.kq)) }

// ---- Sockets: the same code in poller_linux.go and poller_darwin.go ----

// system is the sockets of this kernel.
type system struct{}

// fault turns an error number into the error of the contract that it means, or names the call that
// it came from. EPROTOTYPE is what XNU's write says while a reset is under way (tcp_usr_send in its
// bsd/netinet/tcp_usrreq.c), ECONNABORTED what accept says of a connection that was reset before.
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

// connectResult: SO_ERROR is cleared by being read, so its value has to be acted on. 0 means that
// connect has not failed; whether it is done, only the peer's name tells. ENOTCONN says that it is
// pending. So does EINVAL, which only XNU says (getpeername in its bsd/kern/uipc_syscalls.c): both
// directions have ended since SO_ERROR was read. The reason is in SO_ERROR now, the poller reports
// the socket again, and the next call tells.
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

// bindAndListen: SO_REUSEADDR lets a server start again while connections of the one before are in
// TIME_WAIT. On XNU it also lets one listen to an address while another program of the same user
// listens to all addresses on that port, and gets what comes for that address. IPV6_V6ONLY leaves
// IPv4 to its own listener. Accepted sockets inherit the options set here and in openSocket (UNIX
// Network Programming, section 7.4): SO_KEEPALIVE finds out that a client has vanished, or it would
// hold a descriptor for ever. The backlog is what a kernel's 16 bits hold, and the kernel cuts it
// down to its own limit.
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

const cloexec = 0 // there is no SOCK_CLOEXEC, and echomux starts no program that could inherit

// readNow and writeNow are read(2) and write(2), which are called through libSystem here.
func readNow(fd int, p []byte) (int, error) { return unix.Read(fd, p) }

func writeNow(fd int, p []byte) (int, error) { return unix.Write(fd, p) }

// acceptNonblock is accept(2): an accepted socket inherits O_NONBLOCK here. Without a descriptor
// left it fails, and the connection that waited is gone: XNU drops it (accept_nocancel in its
// bsd/kern/uipc_syscalls.c), where Linux leaves it in the queue.
func acceptNonblock(fd int) (int, syscall.Sockaddr, error) {
	return syscall.Accept(fd)
}

// deferPort: bind reserves a port for every destination at once, and nothing here defers that.
func deferPort(fd int) {}

// selfConnect says what EINVAL of connect means: no IPv4 socket may connect to itself (tcp_connect
// in XNU's bsd/netinet/tcp_usrreq.c). One of IPv6 may, and then both its names are the same.
func selfConnect(to netip.Addr, err error) error {
	if to.Is4() {
		return fmt.Errorf("%w (connected to itself)", errRefused)
	}
	return os.NewSyscallError("connect", err)
}

// unacknowledgedBytes: SO_NWRITE, getsockopt(2), is what the send buffer holds, and bytes stay
// there until the peer acknowledges them. The FIN is not among them: the connection's state tells
// of it. Where there is no state, there is no connection any more.
func unacknowledgedBytes(fd int) int {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_NWRITE)
	if err != nil {
		return -1
	}
	info, err := unix.GetsockoptTCPConnectionInfo(fd, unix.IPPROTO_TCP, unix.TCP_CONNECTION_INFO)
	if err == nil && finUnacknowledged(info.State) {
		n++
	}
	return n
}

// finUnacknowledged: netinet/tcp_fsm.h has these states, RFC 9293 section 3.3.2 their meaning.
func finUnacknowledged(state uint8) bool {
	const (
		finWait1 = 6
		closing  = 7
		lastAck  = 8
	)
	return state == finWait1 || state == closing || state == lastAck
}

// retransmittedSegments: TCP_CONNECTION_INFO, netinet/tcp.h.
func retransmittedSegments(fd int) int {
	info, err := unix.GetsockoptTCPConnectionInfo(fd, unix.IPPROTO_TCP, unix.TCP_CONNECTION_INFO)
	if err != nil {
		return -1
	}
	return int(info.Txretransmitpackets)
}

// newClock is mach_absolute_time, which Go reads without a system call.
func newClock() func() time.Duration {
	start := time.Now()
	return func() time.Duration { return time.Since(start) }
}

// newResolver asks the system, which knows more sources than hosts(5) and resolver(5) tell. Every
// program here links libSystem anyway.
func newResolver() *net.Resolver { return &net.Resolver{} }

// kindOfInput: only a regular file with a size can be read without waiting for anybody.
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
		_, err := unix.IoctlGetTermios(int(fd), unix.TIOCGETA)
		terminal = err == nil
	})
	return terminal
}

// widenPipe: a pipe grows by itself, to 64 KiB (pipe_write in XNU's bsd/kern/sys_pipe.c), and no
// call asks for more.
func widenPipe(*os.File, int) {}

// terminalEOFDelay: an EOF of a terminal is what somebody has typed.
const terminalEOFDelay = 0

func readerGone(err error) bool { return errors.Is(err, unix.EPIPE) }

const (
	sigTerm = unix.SIGTERM
	sigHup  = unix.SIGHUP
	sigPipe = unix.SIGPIPE
)
