// The contract in Linux's words: epoll(7) with an eventfd(2) to wake it, and BSD sockets.

package main

import (
	"context"
	"encoding/binary"
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

// poller is the real kernel. The list of what is watched is in epoll.
type poller struct {
	epfd   int                  // the epoll instance
	wakefd int                  // an eventfd in it, which wake writes to
	events [256]unix.EpollEvent // room for what one epoll_wait reports
	ready  []socket             // what wait returns
	start  time.Time            // now is the time since then
}

func newKernel() (kernel, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fault("epoll_create1", err)
	}
	wakefd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fault("eventfd", err)
	}
	// EPOLLET, edge-triggered: each write is reported once. So nobody has to read the eventfd. If
	// it were level-triggered, it would be reported again and again.
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(wakefd)}
	err = unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, wakefd, &ev)
	return &poller{epfd: epfd, wakefd: wakefd, start: time.Now()}, fault("epoll_ctl", err)
}

// watch calls epoll_ctl(2). Without EPOLLET epoll is level-triggered.
func (k *poller) watch(s socket, was, want readiness) error {
	op := unix.EPOLL_CTL_MOD
	if was == 0 {
		op = unix.EPOLL_CTL_ADD
	} else if want == 0 {
		op = unix.EPOLL_CTL_DEL
	}
	events := [...]uint32{
		readable:            unix.EPOLLIN,
		writable:            unix.EPOLLOUT,
		readable | writable: unix.EPOLLIN | unix.EPOLLOUT,
	}
	ev := unix.EpollEvent{Events: events[want], Fd: int32(s)}
	return fault("epoll_ctl", unix.EpollCtl(k.epfd, op, int(s), &ev))
}

// wait calls epoll_wait(2). It reports EPOLLERR and EPOLLHUP even if nobody asks; the machine's
// next call on the socket tells why. EINTR: there was a signal, for instance SIGCONT, or one that
// the Go runtime sends to its own threads.
func (k *poller) wait(ms int) ([]socket, error) {
	n, err := unix.EpollWait(k.epfd, k.events[:], ms)
	if err == unix.EINTR {
		return nil, nil
	}
	if err != nil {
		return nil, fault("epoll_wait", err)
	}
	k.ready = k.ready[:0]
	for _, event := range k.events[:n] {
		if event.Fd != int32(k.wakefd) {
			k.ready = append(k.ready, socket(event.Fd))
		}
	}
	return k.ready, nil
}

// wake adds 1 to the counter of the eventfd, which nobody reads: it has room for 2^64 wakes.
func (k *poller) wake() {
	unix.Write(k.wakefd, binary.NativeEndian.AppendUint64(nil, 1))
}

// now uses CLOCK_MONOTONIC, as package time does.
func (k *poller) now() time.Duration { return time.Since(k.start) }

// fault turns an error number into the error of the contract that it means. Any other error gets
// the name of the call that it came from. After EINTR, a call is made again as after EAGAIN.
func fault(call string, err error) error {
	switch err {
	case nil:
		return nil
	case unix.EAGAIN, unix.EINTR:
		return errWouldBlock
	case unix.ECONNRESET, unix.EPIPE:
		return errReset
	case unix.ECONNREFUSED:
		return errRefused
	case unix.ETIMEDOUT:
		return errTimedOut
	case unix.ENETUNREACH, unix.EHOSTUNREACH:
		return errUnreachable
	case unix.EAFNOSUPPORT:
		return errNoFamily
	case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
		return exhausted{os.NewSyscallError(call, err)}
	}
	return os.NewSyscallError(call, err)
}

// ---- The sockets ----

// open: see socket(7), tcp(7). The options cannot fail on a TCP socket. TCP_NODELAY sends small
// pieces at once, SO_OOBINLINE keeps urgent data in the stream.
func (k *poller) open(to netip.Addr) (socket, error) {
	domain := unix.AF_INET6
	if to.Is4() {
		domain = unix.AF_INET
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
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
// goes on. EADDRINUSE and EAGAIN mean here what EADDRNOTAVAIL means: no local port is free.
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
	}
	return fault("connect", err)
}

// connectResult reads SO_ERROR, which is cleared by that, so its value has to be acted on. 0 means
// that connect has not failed. Whether connecting is done, only the peer's name tells: ENOTCONN
// means that it still goes on.
func (k *poller) connectResult(s socket) (local, peer netip.AddrPort, err error) {
	errno, err := unix.GetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return local, peer, fault("getsockopt", err)
	}
	if errno != 0 {
		return local, peer, fault("connect", unix.Errno(errno))
	}
	to, err := syscall.Getpeername(int(s))
	if err == unix.ENOTCONN {
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

// close calls close(2). Whatever that says, the descriptor is gone, and epoll has forgotten it.
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
// the kernel reduces it to its own limit.
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

// accept calls accept4(2), because an accepted socket does not inherit O_NONBLOCK on Linux.
// ECONNABORTED and the others are about the one connection that was to be accepted, which was
// reset, or is unreachable. accept(2) wants them to be treated like EAGAIN.
func (k *poller) accept(s socket) (socket, netip.AddrPort, error) {
	fd, sa, err := syscall.Accept4(int(s), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	switch err {
	case unix.ECONNABORTED, unix.EPROTO, unix.ENETDOWN, unix.ENETUNREACH, unix.EHOSTDOWN,
		unix.EHOSTUNREACH, unix.ENOPROTOOPT, unix.EOPNOTSUPP, unix.ENONET:
		err = unix.EAGAIN
	}
	return socket(fd), addrPort(sa), fault("accept", err)
}

// ---- Addresses, names, signals ----

// sockaddr returns a in the kernel's form. A zone is the name or the number of an interface. (All
// calls with addresses are those of package syscall: those of x/sys ask the kernel for SO_PROTOCOL
// with each address that they return.)
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

// resolver is Go's own, however echomux was built: without PreferGo a build beside a C compiler
// would call libc.
func resolver() *net.Resolver { return &net.Resolver{PreferGo: true, Dial: askNameServer} }

// askNameServer gives a name server a second to answer. Go's resolver would wait for five, and so
// a first server that is dead would cost all the time that there is. The resolver would overwrite a
// deadline that is set here; so a timer ends the connection's reads.
func askNameServer(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, network, address)
	if err == nil {
		time.AfterFunc(time.Second, func() { conn.SetDeadline(time.Now()) })
	}
	return conn, err
}

// endingSignals end the program, each with the exit status that a shell gives to it.
func endingSignals() map[os.Signal]int {
	return map[os.Signal]int{unix.SIGHUP: 129, unix.SIGINT: 130, unix.SIGTERM: 143}
}
