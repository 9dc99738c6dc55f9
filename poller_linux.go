// The seam in Linux's words: epoll(7) with an eventfd(2) to wake it, BSD sockets.

package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// epoll is the poller: one epoll instance and the eventfd in it.
type epoll struct {
	epfd, wakefd int
	events       [batchSize]unix.EpollEvent
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
	return p, p.add(socket(wakefd), readable)
}

func (p *epoll) add(s socket, want readiness) error    { return p.ctl(unix.EPOLL_CTL_ADD, s, want) }
func (p *epoll) modify(s socket, want readiness) error { return p.ctl(unix.EPOLL_CTL_MOD, s, want) }
func (p *epoll) remove(s socket) error                 { return p.ctl(unix.EPOLL_CTL_DEL, s, 0) }

// ctl changes the interest list. The 64 bits that the kernel hands back with an event hold the
// descriptor and the readiness asked for.
func (p *epoll) ctl(op int, s socket, want readiness) error {
	ev := unix.EpollEvent{Fd: int32(s), Pad: int32(want)}
	if want&readable != 0 {
		ev.Events |= unix.EPOLLIN
	}
	if want&writable != 0 {
		ev.Events |= unix.EPOLLOUT
	}
	return fault("epoll_ctl", unix.EpollCtl(p.epfd, op, int(s), &ev))
}

// wait: epoll_wait(2). EINTR, with n = -1, is a spurious return: the Go runtime signals its threads.
func (p *epoll) wait(events []event, ms int) (found int, err error) {
	n, err := unix.EpollWait(p.epfd, p.events[:min(len(events), batchSize)], ms)
	if err != nil && err != unix.EINTR {
		return 0, fault("epoll_wait", err)
	}
	for i := range max(0, n) {
		if ev := &p.events[i]; int(ev.Fd) == p.wakefd {
			var count [8]byte
			unix.Read(p.wakefd, count[:]) // sets the counter to 0; EAGAIN: it was
		} else {
			events[found] = event{socket(ev.Fd), folded(ev)}
			found++
		}
	}
	return found, nil
}

// folded is the readiness of an event. EPOLLERR and EPOLLHUP come unasked; they say that whatever
// was asked for will not block.
func folded(ev *unix.EpollEvent) (r readiness) {
	if ev.Events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		return readiness(ev.Pad)
	}
	if ev.Events&unix.EPOLLIN != 0 {
		r |= readable
	}
	if ev.Events&unix.EPOLLOUT != 0 {
		r |= writable
	}
	return r
}

// wake adds 1 to the eventfd's counter. It fails only where the counter is full, and then
// a wake-up is pending.
func (p *epoll) wake() {
	unix.Write(p.wakefd, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // big-endian: 1<<56, as good
}

func (p *epoll) close() error {
	unix.Close(p.wakefd)
	return fault("close", unix.Close(p.epfd))
}

// ---- Names ----

// newResolver is Go's own resolver, also where libc is linked in. It waits five seconds for an answer
// before it asks the next name server (resolv.conf(5), timeout), which is more than a run has. So
// the first try of each question at each server ends after a second. The second try has all of the
// resolver's time, and a server that is merely slow still answers.
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

// dial connects the resolver to a server. Of a connection that is no UDP, the resolver has its way.
func (f *firstTries) dial(ctx context.Context, network, server string) (net.Conn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, network, server)
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		return conn, err
	}
	return &questionConn{UDPConn: udp, server: server, tries: f}, nil
}

// isFirst: was the question never asked before? From now on it was.
func (f *firstTries) isFirst(server, question string) bool {
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

// Write sends the question, after the resolver has set its deadline, which is never less than a
// second away. Two bytes are drawn anew for each try; the rest tells one question from another (RFC
// 1035 section 4.1).
func (c *questionConn) Write(query []byte) (int, error) {
	if c.tries.isFirst(c.server, string(query[2:])) {
		c.SetDeadline(time.Now().Add(firstTryTime)) // can only fail on a closed connection
	}
	return c.UDPConn.Write(query)
}

// What sockets need that Darwin does otherwise.
const (
	cloexec = unix.SOCK_CLOEXEC
	sigTerm = unix.SIGTERM
	sigPipe = unix.SIGPIPE
)

// acceptNonblock is accept4(2): an accepted socket does not inherit O_NONBLOCK here.
func acceptNonblock(fd int) (int, unix.Sockaddr, error) {
	return unix.Accept4(fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
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
