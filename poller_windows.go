// The seam in Windows' words: Winsock's select with a UDP socket to wake it, Winsock's sockets.

package main

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

// What golang.org/x/sys lacks.
var (
	ws2_32          = windows.NewLazySystemDLL("ws2_32.dll")
	procSelect      = ws2_32.NewProc("select")
	procAccept      = ws2_32.NewProc("accept")
	procIoctlsocket = ws2_32.NewProc("ioctlsocket")
)

const (
	fionbio            = 0x8004667e            // winsock2.h: FIONBIO
	soOOBInline        = 0x100                 // winsock2.h: SO_OOBINLINE
	soError            = 0x1007                // winsock2.h: SO_ERROR
	soExclusiveAddrUse = ^windows.SO_REUSEADDR // winsock2.h: SO_EXCLUSIVEADDRUSE
	backlog            = -(1<<16 - 1)          // winsock2.h: SOMAXCONN_HINT; SOMAXCONN would mean some 200
	sioTCPInitialRTO   = 0x98000011            // mstcpip.h: SIO_TCP_INITIAL_RTO
)

// selector is the poller. Winsock's select keeps nothing between calls, so what is watched is kept
// here and every wait costs O(N). WSAPoll does too, and before Windows 10 2004 it reports no failed
// connect (Windows Server 2016 and 2019).
type selector struct {
	watched  map[socket]readiness
	wakeSock socket
	sets     [3]fdSet // of readable, writable and failing
}

// failing is what a socket is watched for too while it connects: added for writability alone, and
// not modified since.
const failing = writable << 1

// fdSet is the fd_set of winsock2.h: a u_int count, padded to a word, then that many SOCKETs, each
// a word. FD_SETSIZE only sizes the array of C's declaration; select looks at the count.
type fdSet []uintptr

func (set *fdSet) clear()       { *set = append((*set)[:0], 0) }
func (set *fdSet) put(s socket) { *set = append(*set, uintptr(s)); (*set)[0]++ }

// members are the sockets that select left in the set: all that are ready.
func (set fdSet) members() []uintptr { return set[1:][:uint32(set[0])] }

func newPoller() (poller, error) {
	var data windows.WSAData // counted, and never cleaned up: that would be the end of all sockets
	if err := windows.WSAStartup(0x202, &data); err != nil {
		return nil, fault("wsastartup", err)
	}
	s, err := newSocket(windows.AF_INET, windows.SOCK_DGRAM, windows.IPPROTO_UDP)
	if err != nil {
		return nil, fault("wsasocket", err)
	}
	// Connected to itself it takes nobody else's datagrams.
	var sa windows.Sockaddr = &windows.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	err = windows.Bind(windows.Handle(s), sa)
	if err == nil {
		sa, err = windows.Getsockname(windows.Handle(s))
	}
	if err == nil {
		err = windows.Connect(windows.Handle(s), sa)
	}
	if err = cmp.Or(fault("connect", err), system{}.setNonblock(s)); err != nil {
		windows.Closesocket(windows.Handle(s))
		return nil, err
	}
	return &selector{watched: make(map[socket]readiness), wakeSock: s}, nil
}

func (p *selector) add(s socket, want readiness) error {
	if want == writable {
		want |= failing
	}
	return p.modify(s, want)
}

func (p *selector) modify(s socket, want readiness) error { p.watched[s] = want; return nil }
func (p *selector) remove(s socket) error                 { delete(p.watched, s); return nil }

// wait: select changes its sets, so they are filled anew for each call. Without any socket it would
// fail; the one that wakes is always there.
func (p *selector) wait(events []event, ms int) (int, error) {
	for i := range p.sets {
		p.sets[i].clear()
	}
	p.sets[0].put(p.wakeSock)
	for s, want := range p.watched { // in random order: none is always beyond the end of events
		for i := range p.sets {
			if want&(readable<<i) != 0 {
				p.sets[i].put(s)
			}
		}
	}
	var timeout *windows.Timeval // nil: no limit
	if ms >= 0 {
		timeout = &windows.Timeval{Sec: int32(ms / 1000), Usec: int32(ms % 1000 * 1000)}
	}
	// The first argument is ignored. What the others point to stays alive and in its place for the
	// call. LazyProc.Call would allocate, on each turn of the loop.
	n, _, errno := syscall.SyscallN(procSelect.Addr(), 0, uintptr(unsafe.Pointer(&p.sets[0][0])),
		uintptr(unsafe.Pointer(&p.sets[1][0])), uintptr(unsafe.Pointer(&p.sets[2][0])), uintptr(unsafe.Pointer(timeout)))
	if int32(n) < 0 {
		return 0, fault("select", errno)
	} else if n == 0 {
		return 0, nil // what the sets hold after a timeout is nowhere promised
	}
	return p.folded(events), nil
}

// folded turns the sets into events. Failure to connect has a set of its own and is, to the loop, an
// end of connecting: writable. A socket can be in two sets and is then two events.
func (p *selector) folded(events []event) (found int) {
	for i, set := range p.sets {
		for _, s := range set.members() {
			if socket(s) == p.wakeSock {
				var p1 [1]byte
				for err := error(nil); err == nil; { // one datagram for each wake
					_, err = system{}.read(socket(s), p1[:])
				}
			} else if found < len(events) { // the rest is reported again
				events[found] = event{socket(s), [...]readiness{readable, writable, writable}[i]}
				found++
			}
		}
	}
	return found
}

// wake sends a datagram of one byte. It fails only where the buffer is full, and then a wake-up is
// pending.
func (p *selector) wake() { system{}.write(p.wakeSock, []byte{1}) }

func (p *selector) close() error { return system{}.close(p.wakeSock) }

// ---- Names ----

// newResolver is the system's, which knows more sources than a hosts file and DNS.
func newResolver() *net.Resolver { return &net.Resolver{} }

const (
	sigTerm = windows.SIGTERM // the console's closing, to the Go runtime
	sigPipe = windows.SIGPIPE // never comes
)

// ---- Sockets ----

// system is the sockets of this kernel.
type system struct{}

// fault turns an error number into what the loop acts on, or names the call that it came from. Here
// package syscall's ECONNREFUSED and the like are invented values that no call returns.
func fault(call string, err error) error {
	switch err {
	case nil:
		return nil
	case windows.WSAEWOULDBLOCK, windows.WSAEINTR:
		return errWouldBlock
	case windows.WSAECONNRESET, windows.WSAECONNABORTED, windows.WSAENETRESET,
		windows.WSAENOTCONN: // Wine's accept, of what was reset in the backlog
		return errReset
	case windows.WSAECONNREFUSED:
		return errRefused
	case windows.WSAETIMEDOUT:
		return errTimedOut
	case windows.WSAEADDRNOTAVAIL, windows.WSAEAFNOSUPPORT:
		return errNoAddress
	case windows.WSAEMFILE:
		return fmt.Errorf("%w (Winsock names no limit)", errTooManyFiles)
	}
	return os.NewSyscallError(call, err)
}

func domain(a netip.AddrPort) int32 {
	if a.Addr().Is4() {
		return windows.AF_INET
	}
	return windows.AF_INET6
}

func sockaddr(a netip.AddrPort) (windows.Sockaddr, error) {
	if a.Addr().Is4() {
		return &windows.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}, nil
	}
	zone, err := zoneNumber(a.Addr().Zone())
	return &windows.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16(), ZoneId: zone}, err
}

func addrPort(sa windows.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *windows.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *windows.SockaddrInet6:
		ip := netip.AddrFrom16(sa.Addr)
		if sa.ZoneId != 0 {
			ip = ip.WithZone(strconv.Itoa(int(sa.ZoneId)))
		}
		return netip.AddrPortFrom(ip, uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// newSocket: WSASocket, since only it can make a handle that no child inherits. Overlapped is what
// socket would make.
func newSocket(domain, kind, proto int32) (socket, error) {
	h, err := windows.WSASocket(domain, kind, proto, nil, 0, windows.WSA_FLAG_OVERLAPPED|windows.WSA_FLAG_NO_HANDLE_INHERIT)
	return socket(h), err
}

func (system) openSocket(to netip.AddrPort) (socket, error) {
	s, err := newSocket(domain(to), windows.SOCK_STREAM, windows.IPPROTO_TCP)
	if err != nil {
		return 0, fault("wsasocket", err)
	}
	setOptions(s)
	return s, nil
}

// setOptions: neither can fail on a TCP socket, and neither is worth giving up for.
func setOptions(s socket) {
	windows.SetsockoptInt(windows.Handle(s), windows.IPPROTO_TCP, windows.TCP_NODELAY, 1)
	windows.SetsockoptInt(windows.Handle(s), windows.SOL_SOCKET, soOOBInline, 1)
}

func (system) setNonblock(s socket) error {
	on := uint32(1)
	if r, _, err := procIoctlsocket.Call(uintptr(s), fionbio, uintptr(unsafe.Pointer(&on))); int32(r) != 0 {
		return fault("ioctlsocket", err)
	}
	return nil
}

// connect: a SYN that is refused is sent again here, for 2 s, as if the listener were about to come.
// On loopback it is not; Go and libuv ask for the same. Before Windows 10 1709 that fails, and the
// refusal takes its 2 s.
func (system) connect(s socket, to netip.AddrPort) error {
	sa, err := sockaddr(to)
	if err == nil && to.Addr().IsLoopback() {
		// mstcpip.h: TCP_INITIAL_RTO_PARAMETERS. Rtt 0xffff is the default's, MaxSynRetransmissions
		// 0xfe is TCP_INITIAL_RTO_NO_SYN_RETRANSMISSIONS; the last byte is padding.
		rto, n := [4]byte{0xff, 0xff, 0xfe}, uint32(0)
		windows.WSAIoctl(windows.Handle(s), sioTCPInitialRTO, &rto[0], uint32(len(rto)), nil, 0, &n, nil, 0)
	}
	if err == nil {
		err = windows.Connect(windows.Handle(s), sa)
	}
	if err == windows.WSAEINPROGRESS || err == windows.WSAEALREADY {
		return errWouldBlock
	}
	return fault("connect", err)
}

// connectResult: 0 can also mean that connect is still at it, and then there is no peer yet.
func (system) connectResult(s socket) (local, peer netip.AddrPort, err error) {
	if errno, err := windows.GetsockoptInt(windows.Handle(s), windows.SOL_SOCKET, soError); err != nil || errno != 0 {
		return local, peer, fault("connect", cmp.Or[error](err, windows.Errno(errno)))
	}
	to, err := windows.Getpeername(windows.Handle(s))
	if err == windows.WSAENOTCONN {
		return local, peer, errWouldBlock
	} else if err != nil {
		return local, peer, fault("getpeername", err)
	}
	from, err := windows.Getsockname(windows.Handle(s))
	return addrPort(from), addrPort(to), fault("getsockname", err)
}

// read: WSARecv. Recvfrom of x/sys fails where it reports a peer, and TCP reports none.
func (system) read(s socket, p []byte) (int, error) {
	buf := windows.WSABuf{Len: uint32(len(p)), Buf: unsafe.SliceData(p)}
	var n, flags uint32
	err := windows.WSARecv(windows.Handle(s), &buf, 1, &n, &flags, nil, nil)
	if err == nil && n == 0 {
		return 0, io.EOF
	}
	return int(n), fault("wsarecv", err)
}

func (system) write(s socket, p []byte) (int, error) {
	buf := windows.WSABuf{Len: uint32(len(p)), Buf: unsafe.SliceData(p)}
	var n uint32
	err := windows.WSASend(windows.Handle(s), &buf, 1, &n, 0, nil, nil)
	return int(n), fault("wsasend", err)
}

func (system) closeWrite(s socket) error {
	if err := windows.Shutdown(windows.Handle(s), windows.SHUT_WR); err != windows.WSAENOTCONN {
		return fault("shutdown", err)
	}
	return nil // the peer's reset was faster
}

func (system) close(s socket) error {
	return fault("closesocket", windows.Closesocket(windows.Handle(s)))
}

// listen: SO_REUSEADDR would share the port with another process here, and nothing is needed against
// TIME_WAIT; SO_EXCLUSIVEADDRUSE keeps others from sharing it.
func (k system) listen(at netip.AddrPort) (s socket, bound netip.AddrPort, err error) {
	if s, err = k.openSocket(at); err != nil {
		return s, bound, err
	}
	h := windows.Handle(s)
	windows.SetsockoptInt(h, windows.SOL_SOCKET, soExclusiveAddrUse, 1)
	if at.Addr().Is6() {
		windows.SetsockoptInt(h, windows.IPPROTO_IPV6, windows.IPV6_V6ONLY, 1) // IPv4 has its own listener
	}
	sa, err := sockaddr(at)
	for _, step := range []func() error{
		func() error { return err },
		func() error { return windows.Bind(h, sa) },
		func() error { return windows.Listen(h, backlog) },
		func() error { return k.setNonblock(s) },
		func() error { sa, err = windows.Getsockname(h); return err },
	} {
		if err := step(); err != nil {
			windows.Closesocket(h)
			return 0, bound, fault("listen", err)
		}
	}
	return s, addrPort(sa), nil
}

// accept makes non-blocking what it has accepted: that the listener's mode is inherited is nowhere
// promised.
func (k system) accept(s socket) (socket, netip.AddrPort, error) {
	var rsa windows.RawSockaddrAny
	size := int32(unsafe.Sizeof(rsa))
	h, _, err := procAccept.Call(uintptr(s), uintptr(unsafe.Pointer(&rsa)), uintptr(unsafe.Pointer(&size)))
	if windows.Handle(h) == windows.InvalidHandle { // INVALID_SOCKET is the same value
		return 0, netip.AddrPort{}, fault("accept", err)
	}
	setOptions(socket(h))
	if err := k.setNonblock(socket(h)); err != nil {
		windows.Closesocket(windows.Handle(h))
		return 0, netip.AddrPort{}, err
	}
	sa, err := rsa.Sockaddr()
	return socket(h), addrPort(sa), fault("accept", err)
}
