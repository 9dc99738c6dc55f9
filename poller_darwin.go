// The seam in macOS's words: kqueue(2) with an EVFILT_USER to wake it, BSD sockets.

package main

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// kqueue is the poller: one kqueue and the user event in it.
type kqueue struct {
	kq     int
	events [batchSize]unix.Kevent_t
}

func newPoller() (poller, error) {
	kq, err := unix.Kqueue()
	if err != nil {
		return nil, fault("kqueue", err)
	}
	unix.CloseOnExec(kq)
	p := &kqueue{kq: kq}
	// EV_CLEAR: to be reported once is to be consumed, so wait has nothing to read.
	return p, p.change(filter(0, unix.EVFILT_USER, unix.EV_ADD|unix.EV_CLEAR))
}

func (p *kqueue) add(s socket, want readiness) error { return p.modify(s, want) }

// modify adds the filters of want and deletes the others. A socket has two filters, not one with a
// mask: their names are negative numbers, which OR-ed would name a third filter. To add one that is
// there changes nothing, and to delete one that is not is no failure to change.
func (p *kqueue) modify(s socket, want readiness) error {
	var changes [2]unix.Kevent_t
	for i, of := range [...]int{unix.EVFILT_READ, unix.EVFILT_WRITE} {
		changes[i] = filter(s, of, unix.EV_DELETE)
		if want&(readable<<i) != 0 {
			changes[i] = filter(s, of, unix.EV_ADD)
		}
	}
	return p.change(changes[:]...)
}

func (p *kqueue) remove(s socket) error { return p.modify(s, 0) }

// filter is a change of one filter. EV_RECEIPT asks for an answer to it, success included, and
// keeps kevent from returning events that only wait may take.
func filter(s socket, of, flags int) (ev unix.Kevent_t) {
	unix.SetKevent(&ev, int(s), of, flags|unix.EV_RECEIPT)
	return ev
}

// change makes all changes in one call. Its receipts take the places of the changes: EV_ERROR with
// an error number in data, 0 for success.
func (p *kqueue) change(changes ...unix.Kevent_t) error {
	n, err := unix.Kevent(p.kq, changes, changes, nil)
	if err != nil {
		return fault("kevent", err)
	}
	for _, receipt := range changes[:n] {
		// ENOENT: to be deleted, and never added; modify does not remember which are in.
		if errno := unix.Errno(receipt.Data); errno != 0 && errno != unix.ENOENT {
			return fault("kevent", errno)
		}
	}
	return nil
}

// wait: kevent(2). EINTR, with n = -1, is a spurious return: the Go runtime signals its threads.
func (p *kqueue) wait(events []event, ms int) (found int, err error) {
	var timeout *unix.Timespec // nil: no limit
	if ms >= 0 {
		t := unix.NsecToTimespec(int64(ms) * int64(time.Millisecond))
		timeout = &t
	}
	n, err := unix.Kevent(p.kq, nil, p.events[:min(len(events), batchSize)], timeout)
	if err != nil && err != unix.EINTR {
		return 0, fault("kevent", err)
	}
	for i := range max(0, n) {
		if ev := &p.events[i]; ev.Filter != unix.EVFILT_USER {
			events[found] = event{socket(ev.Ident), folded(ev)}
			found++
		}
	}
	return found, nil
}

// folded is the readiness of an event: the filter alone tells. EV_EOF comes with the filter that it
// concerns, fflags then holding the socket's error, say why connect failed; the next call on the
// socket names it. EV_ERROR is about a list of changes, and wait passes none.
func folded(ev *unix.Kevent_t) readiness {
	if ev.Filter == unix.EVFILT_WRITE {
		return writable
	}
	return readable
}

// wake triggers the user event. It cannot fail while the kqueue is open; triggered twice before
// wait looks, it is reported once.
func (p *kqueue) wake() {
	trigger := filter(0, unix.EVFILT_USER, 0)
	trigger.Fflags = unix.NOTE_TRIGGER
	p.change(trigger)
}

func (p *kqueue) close() error { return fault("close", unix.Close(p.kq)) }

// ---- Names ----

// newResolver is the system's, which knows more sources than hosts(5) and resolver(5) tell.
func newResolver() *net.Resolver { return &net.Resolver{} }

// What sockets need that Linux does otherwise.
const (
	cloexec = 0 // there is no SOCK_CLOEXEC, and echomux starts no program that could inherit
	sigTerm = unix.SIGTERM
	sigPipe = unix.SIGPIPE
)

// acceptNonblock is accept(2): an accepted socket inherits O_NONBLOCK here.
func acceptNonblock(fd int) (int, unix.Sockaddr, error) {
	return unix.Accept(fd)
}

// ---- Sockets: from here on the same in poller_linux.go and poller_darwin.go; a test compares ----

// system is the sockets of this kernel.
type system struct{}

// fault turns an error number into what the loop acts on, or names the call that it came from.
func fault(call string, err error) error {
	switch err {
	case nil:
		return nil
	case unix.EAGAIN, unix.EINTR: // the Go runtime signals its own threads
		return errWouldBlock
	case unix.ECONNRESET, unix.EPIPE, unix.EPROTOTYPE, unix.ECONNABORTED: // EPROTOTYPE: XNU's write, mid-reset
		return errReset
	case unix.ECONNREFUSED:
		return errRefused
	case unix.ETIMEDOUT:
		return errTimedOut
	case unix.EADDRNOTAVAIL, unix.EAFNOSUPPORT:
		return errNoAddress
	case unix.EMFILE:
		var limit unix.Rlimit // Go has raised the soft limit to the hard one at start
		unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
		return fmt.Errorf("%w (the limit is %d)", errTooManyFiles, limit.Cur)
	case unix.ENFILE:
		return fmt.Errorf("%w in the system", errTooManyFiles)
	}
	return os.NewSyscallError(call, err)
}

func domain(a netip.AddrPort) int {
	if a.Addr().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func sockaddr(a netip.AddrPort) (unix.Sockaddr, error) {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}, nil
	}
	zone, err := zoneNumber(a.Addr().Zone())
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16(), ZoneId: zone}, err
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		ip := netip.AddrFrom16(sa.Addr)
		if sa.ZoneId != 0 {
			ip = ip.WithZone(strconv.Itoa(int(sa.ZoneId)))
		}
		return netip.AddrPortFrom(ip, uint16(sa.Port))
	}
	return netip.AddrPort{}
}

func (system) openSocket(to netip.AddrPort) (socket, error) {
	fd, err := unix.Socket(domain(to), unix.SOCK_STREAM|cloexec, unix.IPPROTO_TCP)
	if err != nil {
		return 0, fault("socket", err)
	}
	// tcp(7), socket(7). Neither can fail on a TCP socket, and neither is worth giving up for.
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
	return socket(fd), nil
}

func (system) setNonblock(s socket) error { return fault("fcntl", unix.SetNonblock(int(s), true)) }

// connect: EAGAIN is not "not now" here, but "no local port is free", connect(2).
func (system) connect(s socket, to netip.AddrPort) error {
	sa, err := sockaddr(to)
	if err == nil {
		err = unix.Connect(int(s), sa)
	}
	switch err {
	case unix.EINPROGRESS, unix.EALREADY, unix.EINTR:
		return errWouldBlock
	case unix.EAGAIN:
		return os.NewSyscallError("connect", err)
	}
	return fault("connect", err)
}

// connectResult: SO_ERROR is cleared by being read. 0 can also mean that connect is still at it,
// and then there is no peer yet.
func (system) connectResult(s socket) (local, peer netip.AddrPort, err error) {
	if errno, err := unix.GetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_ERROR); err != nil || errno != 0 {
		return local, peer, fault("connect", cmp.Or[error](err, unix.Errno(errno)))
	}
	to, err := unix.Getpeername(int(s))
	if err == unix.ENOTCONN || err == unix.EINVAL { // EINVAL: macOS
		return local, peer, errWouldBlock
	} else if err != nil {
		return local, peer, fault("getpeername", err)
	}
	from, err := unix.Getsockname(int(s))
	return addrPort(from), addrPort(to), fault("getsockname", err)
}

func (system) read(s socket, p []byte) (int, error) {
	n, err := unix.Read(int(s), p)
	if n == 0 && err == nil {
		return 0, io.EOF
	}
	return max(0, n), fault("read", err)
}

func (system) write(s socket, p []byte) (int, error) {
	n, err := unix.Write(int(s), p)
	return max(0, n), fault("write", err)
}

func (system) closeWrite(s socket) error {
	if err := unix.Shutdown(int(s), unix.SHUT_WR); err != unix.ENOTCONN {
		return fault("shutdown", err)
	}
	return nil // the peer's reset was faster
}

func (system) close(s socket) error { return fault("close", unix.Close(int(s))) }

// listen: accepted sockets inherit the options set here (UNIX Network Programming, section 7.4).
// The backlog is what a kernel's 16 bits hold; it cuts it down to its own limit.
func (k system) listen(at netip.AddrPort) (s socket, bound netip.AddrPort, err error) {
	if s, err = k.openSocket(at); err != nil {
		return s, bound, err
	}
	fd := int(s)
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) // TIME_WAIT is no obstacle
	if at.Addr().Is6() {
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1) // IPv4 has its own listener
	}
	sa, err := sockaddr(at)
	for _, step := range []func() error{
		func() error { return err },
		func() error { return unix.Bind(fd, sa) },
		func() error { return unix.Listen(fd, 1<<16-1) },
		func() error { return unix.SetNonblock(fd, true) },
		func() error { sa, err = unix.Getsockname(fd); return err },
	} {
		if err := step(); err != nil {
			unix.Close(fd)
			return 0, bound, fault("listen", err)
		}
	}
	return s, addrPort(sa), nil
}

func (system) accept(s socket) (socket, netip.AddrPort, error) {
	fd, sa, err := acceptNonblock(int(s))
	return socket(fd), addrPort(sa), fault("accept", err)
}
