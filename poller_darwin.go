// The contract in macOS's words: kqueue(2) with a user event to wake it, and BSD sockets.

package main

import (
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ---- The poller ----

// poller is the real kernel. The list of what is watched is in kqueue.
type poller struct {
	kq     int                // the kqueue, with a user event in it that wake triggers
	events [256]unix.Kevent_t // room for what one kevent reports
	ready  []socket           // what wait returns
	start  time.Time          // now is the time since then
}

func newKernel() (kernel, error) {
	kq, err := unix.Kqueue()
	if err != nil {
		return nil, fault("kqueue", err)
	}
	k := &poller{kq: kq, start: time.Now()}
	// EV_CLEAR: a user event is over as soon as it was reported, so wait has nothing to read.
	return k, k.change(0, unix.EVFILT_USER, unix.EV_ADD|unix.EV_CLEAR, 0)
}

// watch adds and deletes filters. kqueue has one for each direction, so each is added and deleted
// by itself. (EVFILT_READ and EVFILT_WRITE are negative numbers, not bits of a mask.)
func (k *poller) watch(s socket, was, want readiness) error {
	err := k.filter(s, unix.EVFILT_READ, was&readable, want&readable)
	if err != nil {
		return err
	}
	return k.filter(s, unix.EVFILT_WRITE, was&writable, want&writable)
}

func (k *poller) filter(s socket, filter int, was, want readiness) error {
	switch {
	case want == was:
		return nil
	case want == 0:
		return k.change(s, filter, unix.EV_DELETE, 0)
	}
	return k.change(s, filter, unix.EV_ADD, 0)
}

// change calls kevent(2) with no room for events, so that it takes none away from wait.
func (k *poller) change(s socket, filter, flags int, fflags uint32) error {
	changes := []unix.Kevent_t{{Fflags: fflags}}
	unix.SetKevent(&changes[0], int(s), filter, flags)
	_, err := unix.Kevent(k.kq, changes, nil, nil)
	return fault("kevent", err)
}

// wait calls kevent(2). A socket whose filters both have something to say is returned twice. That
// it has failed, or that the peer has sent FIN, comes as EV_EOF with the filter that it concerns;
// the machine's next call on the socket tells. EINTR: there was a signal, for instance SIGCONT, or
// one that the Go runtime sends to its own threads.
func (k *poller) wait(ms int) ([]socket, error) {
	limit := unix.NsecToTimespec(int64(ms) * int64(time.Millisecond))
	timeout := &limit
	if ms < 0 {
		timeout = nil
	}
	n, err := unix.Kevent(k.kq, nil, k.events[:], timeout)
	if err == unix.EINTR {
		return nil, nil
	}
	if err != nil {
		return nil, fault("kevent", err)
	}
	k.ready = k.ready[:0]
	for _, event := range k.events[:n] {
		if event.Filter != unix.EVFILT_USER {
			k.ready = append(k.ready, socket(event.Ident))
		}
	}
	return k.ready, nil
}

// wake triggers the user event.
func (k *poller) wake() { k.change(0, unix.EVFILT_USER, 0, unix.NOTE_TRIGGER) }

// now uses mach_absolute_time, as package time does.
func (k *poller) now() time.Duration { return time.Since(k.start) }

// fault turns an error number into the error of the contract that it means. Any other error gets
// the name of the call that it came from. EPROTOTYPE is what write says while a reset is under way,
// up to macOS 11 (tcp_usr_send in XNU's bsd/netinet/tcp_usrreq.c). EHOSTDOWN is what it says if a
// host of the own network does not answer ARP any more (route_to_gwroute in bsd/net/route.c).
func fault(call string, err error) error {
	switch err {
	case nil:
		return nil
	case unix.EAGAIN, unix.EINTR:
		return errWouldBlock
	case unix.ECONNRESET, unix.EPIPE, unix.EPROTOTYPE:
		return errReset
	case unix.ECONNREFUSED:
		return errRefused
	case unix.ETIMEDOUT:
		return errTimedOut
	case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EHOSTDOWN, unix.ENETDOWN:
		return errUnreachable
	case unix.EAFNOSUPPORT:
		return errNoFamily
	case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
		return exhausted{os.NewSyscallError(call, err)}
	}
	return os.NewSyscallError(call, err)
}

// ---- The sockets ----

// open: see socket(2), tcp(4). The options cannot fail on a TCP socket. TCP_NODELAY sends small
// pieces at once, SO_OOBINLINE keeps urgent data in the stream. Nothing is said of close-on-exec,
// because echomux starts no program.
func (k *poller) open(to netip.Addr) (socket, error) {
	domain := unix.AF_INET6
	if to.Is4() {
		domain = unix.AF_INET
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM, unix.IPPROTO_TCP)
	if err != nil {
		return 0, fault("socket", err)
	}
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
	return socket(fd), nil
}

// setNonblock uses F_SETFL of fcntl(2). A new socket has no other flag that would have to be kept.
func (k *poller) setNonblock(s socket) error {
	_, err := unix.FcntlInt(uintptr(s), unix.F_SETFL, unix.O_NONBLOCK)
	return fault("fcntl", err)
}

// connect calls connect(2). EINPROGRESS is the rule; EALREADY and EINTR also mean that connecting
// goes on. EADDRINUSE and EAGAIN mean here what EADDRNOTAVAIL means: no local port is free. EINVAL
// means that an IPv4 socket would have connected to itself, which XNU refuses (tcp_connect in its
// bsd/netinet/tcp_usrreq.c).
func (k *poller) connect(s socket, to netip.AddrPort) error {
	sa, err := sockaddr(to)
	if err != nil {
		return err
	}
	err = syscall.Connect(int(s), sa)
	switch err {
	case unix.EINPROGRESS, unix.EALREADY, unix.EINTR:
		return nil
	case unix.EADDRNOTAVAIL, unix.EADDRINUSE, unix.EAGAIN:
		return errNoLocal
	case unix.EINVAL:
		if to.Addr().Is4() {
			return errSelf
		}
	}
	return fault("connect", err)
}

// connectResult reads SO_ERROR, which is cleared by that, so its value has to be acted on. 0 means
// that connect has not failed. Whether connecting is done, only the peer's name tells: ENOTCONN
// means that it still goes on. EINVAL means that the connection has ended since SO_ERROR was read
// (getpeername in XNU's bsd/kern/uipc_syscalls.c); the next connectResult finds out how.
func (k *poller) connectResult(s socket) (local, peer netip.AddrPort, err error) {
	errno, err := unix.GetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return local, peer, fault("getsockopt", err)
	}
	if errno != 0 {
		return local, peer, fault("connect", unix.Errno(errno))
	}
	to, err := syscall.Getpeername(int(s))
	if err == unix.ENOTCONN || err == unix.EINVAL {
		return local, peer, errWouldBlock
	}
	if err != nil {
		return local, peer, fault("getpeername", err)
	}
	from, err := syscall.Getsockname(int(s))
	return addrPort(from), addrPort(to), fault("getsockname", err)
}

func (k *poller) read(s socket, p []byte) (int, error) {
	n, err := unix.Read(int(s), p)
	if n == 0 && err == nil {
		return 0, io.EOF
	}
	return max(0, n), fault("read", err)
}

// write calls write(2). After a reset that says ECONNRESET, or EPIPE if ECONNRESET was told before,
// or if the peer had half-closed. The signal that comes with EPIPE, SIGPIPE, is ignored by the Go
// runtime, but for standard output and standard error.
func (k *poller) write(s socket, p []byte) (int, error) {
	n, err := unix.Write(int(s), p)
	return max(0, n), fault("write", err)
}

// closeWrite calls shutdown(2), which fails only if the connection is gone. The next read tells.
func (k *poller) closeWrite(s socket) { unix.Shutdown(int(s), unix.SHUT_WR) }

// close calls close(2). Whatever that says, the descriptor is gone, and kqueue has forgotten it.
func (k *poller) close(s socket) { unix.Close(int(s)) }

func (k *poller) listen(at netip.AddrPort) (socket, netip.AddrPort, error) {
	s, err := k.open(at.Addr())
	if err != nil {
		return 0, at, err
	}
	err = k.setNonblock(s)
	if err == nil {
		at, err = bindAndListen(int(s), at)
	}
	if err != nil {
		k.close(s)
		return 0, at, err
	}
	return s, at, nil
}

// bindAndListen sets the options of a listener; accepted sockets inherit these and those of open.
// SO_REUSEADDR lets a server start again while connections of the server before are in TIME_WAIT.
// SO_KEEPALIVE finds out that a client has vanished, which would hold a descriptor for ever.
// Without IPV6_V6ONLY [::] takes IPv4 too. The backlog is the largest number that fits in 16 bits;
// the kernel reduces it to its own limit, which is mostly 128 (kern.ipc.somaxconn).
func bindAndListen(fd int, at netip.AddrPort) (bound netip.AddrPort, err error) {
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	if at.Addr().Is6() {
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
	}
	sa, err := sockaddr(at)
	if err != nil {
		return at, err
	}
	err = syscall.Bind(fd, sa)
	if err != nil {
		return at, fault("bind", err)
	}
	err = unix.Listen(fd, 1<<16-1)
	if err != nil {
		return at, fault("listen", err)
	}
	name, err := syscall.Getsockname(fd)
	return addrPort(name), fault("getsockname", err)
}

// accept calls accept(2); an accepted socket inherits O_NONBLOCK here. A connection that was reset
// in the backlog comes without an address, of which package syscall makes ECONNABORTED. If there is
// no descriptor, the connection that waited is gone (accept_nocancel in XNU's
// bsd/kern/uipc_syscalls.c), where Linux keeps it in the backlog.
func (k *poller) accept(s socket) (socket, netip.AddrPort, error) {
	fd, sa, err := syscall.Accept(int(s))
	switch err {
	case nil:
		return socket(fd), addrPort(sa), nil
	case unix.ECONNABORTED:
		return 0, netip.AddrPort{}, errWouldBlock
	}
	return 0, netip.AddrPort{}, fault("accept", err)
}

// ---- Addresses, names, signals ----

// sockaddr returns a in the kernel's form. A zone is the name or the number of an interface. (All
// calls with addresses are those of package syscall, as in poller_linux.go.)
func sockaddr(a netip.AddrPort) (syscall.Sockaddr, error) {
	if a.Addr().Is4() {
		return &syscall.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}, nil
	}
	sa := &syscall.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	zone := a.Addr().Zone()
	if zone == "" {
		return sa, nil
	}
	index, err := strconv.Atoi(zone)
	if err != nil {
		card, err := net.InterfaceByName(zone)
		if err != nil {
			return nil, err
		}
		index = card.Index
	}
	sa.ZoneId = uint32(index)
	return sa, nil
}

// addrPort returns sa in the form of package netip. On a socket for both families, an IPv4 address
// has the form of an IPv6 one.
func addrPort(sa syscall.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *syscall.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *syscall.SockaddrInet6:
		addr := netip.AddrFrom16(sa.Addr).Unmap()
		if sa.ZoneId != 0 {
			addr = addr.WithZone(strconv.Itoa(int(sa.ZoneId)))
		}
		return netip.AddrPortFrom(addr, uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// resolver asks the system, which knows more sources than hosts(5) and resolver(5) tell.
func resolver() *net.Resolver { return &net.Resolver{} }

// endingSignals end the program, each with the exit status that a shell gives to it.
func endingSignals() map[os.Signal]int {
	return map[os.Signal]int{unix.SIGHUP: 129, unix.SIGINT: 130, unix.SIGTERM: 143}
}
