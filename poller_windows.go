// The contract in Windows' words: select of Winsock with a UDP socket to wake it, and Winsock's
// sockets. Error numbers are the WSAE constants; package syscall's ECONNREFUSED and the like are
// invented here, and no call returns them.

package main

import (
	"errors"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

// ---- The poller ----

// poller is the real kernel. Its select keeps no list of what is watched, so the list is here.
// (WSAPoll reports no failed connect before Windows 10 2004.)
type poller struct {
	watched     map[socket]readiness
	waker       socket        // a UDP socket, which is readable after wake
	reads       fdSet         // what is watched for readable
	writes      fdSet         // what is watched for writable
	writeOnly   fdSet         // what is watched for writable alone: it may be connecting, and fail
	ready       []socket      // what wait returns
	recheckedAt time.Duration // when writeOnly was returned last, whatever select had found
	start       int64         // now is the time since then, in counts of a counter
	frequency   int64         // counts in a second
}

// fdSet is the fd_set of winsock2.h: a count, which is element 0 here, and that many sockets. The
// count is a u_int, padded to a word. (FD_SETSIZE is only the size of the array that C declares.)
type fdSet []socket

func (set *fdSet) clear() { *set = append((*set)[:0], 0) }

func (set *fdSet) add(s socket) {
	*set = append(*set, s)
	(*set)[0]++
}

func (set fdSet) members() []socket { return set[1 : 1+set[0]] }

func newKernel() (kernel, error) {
	var data windows.WSAData
	err := windows.WSAStartup(0x202, &data)
	if err != nil {
		return nil, fault("wsastartup", err)
	}
	k := &poller{
		watched:   make(map[socket]readiness),
		start:     counter(queryPerformanceCounter),
		frequency: counter(queryPerformanceFrequency),
	}
	k.waker, err = newSocket(windows.AF_INET, windows.SOCK_DGRAM, windows.IPPROTO_UDP)
	if err != nil {
		return nil, err
	}
	err = connectToItself(windows.Handle(k.waker))
	if err != nil {
		return nil, err
	}
	return k, k.setNonblock(k.waker)
}

// connectToItself makes h a UDP socket that sends to itself, and takes nobody else's datagrams.
func connectToItself(h windows.Handle) error {
	err := windows.Bind(h, &windows.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	if err != nil {
		return fault("bind", err)
	}
	own, err := windows.Getsockname(h)
	if err != nil {
		return fault("getsockname", err)
	}
	return fault("connect", windows.Connect(h, own))
}

func (k *poller) watch(s socket, was, want readiness) error {
	k.watched[s] = want
	return nil
}

// wait calls select. It replaces the members of each set by those that are ready, so the sets are
// filled anew each time. A socket that is in two of them is returned twice.
func (k *poller) wait(ms int) ([]socket, error) {
	k.fillSets()
	k.ready = k.ready[:0]
	if k.writeOnly[0] > 0 {
		ms = k.recheck(ms)
	}
	n, err := selectReady(k.reads, k.writes, k.writeOnly, ms)
	if err != nil || n == 0 { // what is in the sets after a timeout is not defined
		return k.ready, err
	}
	for _, s := range k.reads.members() {
		if s == k.waker {
			k.consumeWakes()
			continue
		}
		k.ready = append(k.ready, s)
	}
	k.ready = append(k.ready, k.writes.members()...)
	k.ready = append(k.ready, k.writeOnly.members()...)
	return k.ready, nil
}

func (k *poller) fillSets() {
	k.reads.clear()
	k.writes.clear()
	k.writeOnly.clear()
	k.reads.add(k.waker)
	for s, want := range k.watched {
		if want&readable != 0 {
			k.reads.add(s)
		}
		if want&writable != 0 {
			k.writes.add(s)
		}
		if want == writable {
			k.writeOnly.add(s)
		}
	}
}

// recheck adds the sockets of writeOnly to ready once in a second, and returns how long select may
// wait. select reports a reset among the sockets that are watched for reading alone. After one, a
// socket that is watched for writable alone may never be reported, because its buffer stays full.
// So its machine tries.
func (k *poller) recheck(ms int) int {
	left := k.recheckedAt + time.Second - k.now()
	if left <= 0 {
		k.recheckedAt = k.now()
		k.ready = append(k.ready, k.writeOnly.members()...)
		return 0
	}
	leftMs := int(left/time.Millisecond) + 1
	if ms < 0 {
		return leftMs
	}
	return min(ms, leftMs)
}

// selectReady calls select, whose first argument means nothing, and returns how many sockets are
// ready. SyscallN keeps in their places what the other arguments point to.
func selectReady(reads, writes, fails fdSet, ms int) (int, error) {
	timeout := &windows.Timeval{Sec: int32(ms / 1000), Usec: int32(ms % 1000 * 1000)}
	if ms < 0 {
		timeout = nil
	}
	n, _, err := syscall.SyscallN(selectProc.Addr(), 0,
		uintptr(unsafe.Pointer(&reads[0])),
		uintptr(unsafe.Pointer(&writes[0])),
		uintptr(unsafe.Pointer(&fails[0])),
		uintptr(unsafe.Pointer(timeout)))
	if int32(n) < 0 {
		return 0, fault("select", err)
	}
	return int(n), nil
}

// wake sends a datagram of a byte. That fails only if the buffer is full, and then a wake-up is
// pending anyway.
func (k *poller) wake() { k.write(k.waker, []byte{1}) }

func (k *poller) consumeWakes() {
	var err error
	for err == nil {
		_, err = k.read(k.waker, make([]byte, 1))
	}
}

// now uses QueryPerformanceCounter. The clock of package time moves with the timer interrupt, once
// in 0.5 to 15.6 ms (golang/go issue 67066).
func (k *poller) now() time.Duration {
	passed := counter(queryPerformanceCounter) - k.start
	return time.Duration(float64(passed) / float64(k.frequency) * 1e9)
}

// counter calls one of the counter's two functions, which do not fail.
func counter(function *windows.LazyProc) int64 {
	var count int64
	syscall.SyscallN(function.Addr(), uintptr(unsafe.Pointer(&count)))
	return count
}

// fault turns an error number into the error of the contract that it means. Any other error gets
// the name of the call that it came from.
func fault(call string, err error) error {
	switch err {
	case nil:
		return nil
	case windows.WSAEWOULDBLOCK:
		return errWouldBlock
	case windows.WSAECONNRESET:
		return errReset
	case windows.WSAECONNREFUSED:
		return errRefused
	case windows.WSAETIMEDOUT:
		return errTimedOut
	case windows.WSAENETUNREACH, windows.WSAEHOSTUNREACH:
		return errUnreachable
	case windows.WSAEAFNOSUPPORT:
		return errNoFamily
	case windows.WSAEMFILE, windows.WSAENOBUFS:
		return exhausted{os.NewSyscallError(call, err)}
	}
	return os.NewSyscallError(call, err)
}

// What golang.org/x/sys lacks.
var (
	ws2_32     = windows.NewLazySystemDLL("ws2_32.dll")
	selectProc = ws2_32.NewProc("select")
	acceptProc = ws2_32.NewProc("accept")
	ioctlProc  = ws2_32.NewProc("ioctlsocket")

	kernel32                  = windows.NewLazySystemDLL("kernel32.dll")
	queryPerformanceCounter   = kernel32.NewProc("QueryPerformanceCounter")
	queryPerformanceFrequency = kernel32.NewProc("QueryPerformanceFrequency")
)

const (
	soOOBInline        = 0x100                 // winsock2.h
	soError            = 0x1007                // winsock2.h
	soExclusiveAddrUse = ^windows.SO_REUSEADDR // winsock2.h
	fionbio            = 0x8004667e            // winsock2.h
	somaxconnHint      = -math.MaxUint16       // winsock2.h: SOMAXCONN_HINT(65535)
	sioTCPInitialRTO   = 0x98000011            // mstcpip.h
)

// ---- The sockets ----

func (k *poller) open(to netip.Addr) (socket, error) {
	domain := int32(windows.AF_INET6)
	if to.Is4() {
		domain = windows.AF_INET
	}
	s, err := newSocket(domain, windows.SOCK_STREAM, windows.IPPROTO_TCP)
	if err != nil {
		return 0, err
	}
	setOptions(windows.Handle(s))
	return s, nil
}

// newSocket calls WSASocket, because only that can make a handle that no child inherits. Overlapped
// is what socket would make.
func newSocket(domain, kind, protocol int32) (socket, error) {
	const flags = windows.WSA_FLAG_OVERLAPPED | windows.WSA_FLAG_NO_HANDLE_INHERIT
	h, err := windows.WSASocket(domain, kind, protocol, nil, 0, flags)
	return socket(h), fault("wsasocket", err)
}

// setOptions cannot fail on a TCP socket. TCP_NODELAY sends small pieces at once, SO_OOBINLINE
// keeps urgent data in the stream.
func setOptions(h windows.Handle) {
	windows.SetsockoptInt(h, windows.IPPROTO_TCP, windows.TCP_NODELAY, 1)
	windows.SetsockoptInt(h, windows.SOL_SOCKET, soOOBInline, 1)
}

func (k *poller) setNonblock(s socket) error {
	on := uint32(1)
	r, _, err := ioctlProc.Call(uintptr(s), fionbio, uintptr(unsafe.Pointer(&on)))
	if int32(r) != 0 {
		return fault("ioctlsocket", err)
	}
	return nil
}

// connect calls connect of Winsock. WSAEWOULDBLOCK is the rule: connecting is under way. WSAENOBUFS
// is what it says if all local ports are in use, many of them in TIME_WAIT.
func (k *poller) connect(s socket, to netip.AddrPort) error {
	sa, err := sockaddr(to)
	if err != nil {
		return err
	}
	if to.Addr().IsLoopback() {
		refuseAtOnce(windows.Handle(s))
	}
	err = windows.Connect(windows.Handle(s), sa)
	switch err {
	case windows.WSAEWOULDBLOCK:
		return nil
	case windows.WSAEADDRNOTAVAIL, windows.WSAEADDRINUSE, windows.WSAENOBUFS:
		return errNoLocal
	}
	return fault("connect", err)
}

// refuseAtOnce: when its SYN is refused, Windows sends it again, for 2 s, in the hope of a
// listener. On loopback there is none to hope for; Go and libuv ask for the same. rto is the struct
// TCP_INITIAL_RTO_PARAMETERS of mstcpip.h: 0xffff keeps the usual time, 0xfe is
// TCP_INITIAL_RTO_NO_SYN_RETRANSMISSIONS. Before Windows 10 1709 it fails, and the refusal takes
// its time.
func refuseAtOnce(h windows.Handle) {
	rto := [4]byte{0xff, 0xff, 0xfe}
	var n uint32
	windows.WSAIoctl(h, sioTCPInitialRTO, &rto[0], uint32(len(rto)), nil, 0, &n, nil, 0)
}

// connectResult asks select, without waiting, whether connecting has ended. The peer's name does
// not tell: Winsock knows it as soon as connect was called (zbus pull request 1964). An error in
// SO_ERROR counts whatever select says; it is cleared by being read. Without one, a socket that is
// not ready still connects, one that has failed does not say why, and all others are connected, or
// were.
func (k *poller) connectResult(s socket) (local, peer netip.AddrPort, err error) {
	fails := fdSet{1, s}
	n, err := selectReady(fdSet{0}, fdSet{1, s}, fails, 0)
	if err != nil {
		return local, peer, err
	}
	errno, err := windows.GetsockoptInt(windows.Handle(s), windows.SOL_SOCKET, soError)
	switch {
	case err != nil:
		return local, peer, fault("getsockopt", err)
	case errno != 0:
		return local, peer, fault("connect", windows.Errno(errno))
	case n == 0:
		return local, peer, errWouldBlock
	case fails[0] > 0: // if this were would block, select would say so for ever
		return local, peer, errors.New("connect: failed without a reason")
	}
	to, err := windows.Getpeername(windows.Handle(s))
	if err == windows.WSAENOTCONN { // it was connected, or it would not be writable
		return local, peer, errReset
	}
	if err != nil {
		return local, peer, fault("getpeername", err)
	}
	from, err := windows.Getsockname(windows.Handle(s))
	return addrPort(from), addrPort(to), fault("getsockname", err)
}

// read calls WSARecv. (Recvfrom of x/sys fails where no peer is named, and TCP names none.)
func (k *poller) read(s socket, p []byte) (int, error) {
	buf := windows.WSABuf{Len: uint32(len(p)), Buf: unsafe.SliceData(p)}
	var n, flags uint32
	err := windows.WSARecv(windows.Handle(s), &buf, 1, &n, &flags, nil, nil)
	if err != nil {
		return 0, fault("wsarecv", err)
	}
	if n == 0 {
		return 0, io.EOF
	}
	return int(n), nil
}

// write calls WSASend. (Sendto of x/sys does not say how many bytes were taken.)
func (k *poller) write(s socket, p []byte) (int, error) {
	buf := windows.WSABuf{Len: uint32(len(p)), Buf: unsafe.SliceData(p)}
	var n uint32
	err := windows.WSASend(windows.Handle(s), &buf, 1, &n, 0, nil, nil)
	return int(n), fault("wsasend", err)
}

// closeWrite calls shutdown, which fails only if the connection is gone. The next read tells.
func (k *poller) closeWrite(s socket) { windows.Shutdown(windows.Handle(s), windows.SHUT_WR) }

// close calls closesocket, and takes s out of the list.
func (k *poller) close(s socket) {
	windows.Closesocket(windows.Handle(s))
	delete(k.watched, s)
}

func (k *poller) listen(at netip.AddrPort) (socket, netip.AddrPort, error) {
	s, err := k.open(at.Addr())
	if err != nil {
		return 0, at, err
	}
	err = k.setNonblock(s)
	if err == nil {
		at, err = bindAndListen(windows.Handle(s), at)
	}
	if err != nil {
		k.close(s)
		return 0, at, err
	}
	return s, at, nil
}

// bindAndListen sets the options of a listener. SO_REUSEADDR would let other programs listen to the
// same port; SO_EXCLUSIVEADDRUSE forbids it to them. But then bind fails while a connection of the
// server before still exists, if only in TIME_WAIT (src/win/tcp.c of libuv). Without IPV6_V6ONLY
// [::] takes IPv4 too.
func bindAndListen(h windows.Handle, at netip.AddrPort) (bound netip.AddrPort, err error) {
	windows.SetsockoptInt(h, windows.SOL_SOCKET, soExclusiveAddrUse, 1)
	if at.Addr().Is6() {
		windows.SetsockoptInt(h, windows.IPPROTO_IPV6, windows.IPV6_V6ONLY, 0)
	}
	sa, err := sockaddr(at)
	if err != nil {
		return at, err
	}
	err = windows.Bind(h, sa)
	if err != nil {
		return at, fault("bind", err)
	}
	err = windows.Listen(h, somaxconnHint)
	if err != nil {
		return at, fault("listen", err)
	}
	name, err := windows.Getsockname(h)
	return addrPort(name), fault("getsockname", err)
}

// accept calls accept of Winsock, and sets all options itself: that an accepted socket inherits
// them is promised nowhere. SO_KEEPALIVE finds out that a client has vanished, which would hold a
// descriptor for ever. WSAECONNRESET is about a connection that was reset in the backlog; Wine says
// WSAENOTCONN.
func (k *poller) accept(s socket) (socket, netip.AddrPort, error) {
	var sa windows.RawSockaddrAny
	size := int32(unsafe.Sizeof(sa))
	r, _, err := acceptProc.Call(uintptr(s), uintptr(unsafe.Pointer(&sa)),
		uintptr(unsafe.Pointer(&size)))
	h := windows.Handle(r)
	switch {
	case h != windows.InvalidHandle:
	case err == windows.WSAECONNRESET || err == windows.WSAENOTCONN:
		return 0, netip.AddrPort{}, errWouldBlock
	default:
		return 0, netip.AddrPort{}, fault("accept", err)
	}
	setOptions(h)
	windows.SetsockoptInt(h, windows.SOL_SOCKET, windows.SO_KEEPALIVE, 1)
	peer, _ := sa.Sockaddr() // fails for other families than those of IP
	return socket(h), addrPort(peer), k.setNonblock(socket(h))
}

// ---- Addresses, names, signals ----

// sockaddr returns a in the kernel's form. A zone is the name or the number of an interface.
func sockaddr(a netip.AddrPort) (windows.Sockaddr, error) {
	if a.Addr().Is4() {
		return &windows.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}, nil
	}
	sa := &windows.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
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
func addrPort(sa windows.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *windows.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *windows.SockaddrInet6:
		addr := netip.AddrFrom16(sa.Addr).Unmap()
		if sa.ZoneId != 0 {
			addr = addr.WithZone(strconv.Itoa(int(sa.ZoneId)))
		}
		return netip.AddrPortFrom(addr, uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// resolver asks the system, which knows more sources than a hosts file and DNS.
func resolver() *net.Resolver { return &net.Resolver{} }

// endingSignals end the program. SIGINT is Ctrl-C or Ctrl-Break, SIGTERM is the end of the console
// or of the session.
func endingSignals() map[os.Signal]int {
	return map[os.Signal]int{windows.SIGINT: 130, windows.SIGTERM: 143}
}
