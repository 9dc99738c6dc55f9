// The contract in Windows' words: Winsock's select with a UDP socket to wake it, and Winsock's
// sockets. Its error numbers are package windows' WSAE constants; package syscall's ECONNREFUSED
// and the like are invented values here, which no call returns.

package main

import (
	"errors"
	"fmt"
	"io"
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

// selector is the poller. Winsock's select keeps nothing between calls, so what is watched is kept
// here, and every wait costs O(N). So it is with WSAPoll, which before Windows 10 2004 reports no
// failed connect (Windows Server 2016 and 2019).
type selector struct {
	watched  map[socket]readiness
	wakeSock socket    // a UDP socket, which is readable after a wake-up
	sets     [3]fdSet  // what select is asked, and then what it has found
	first    int       // the set that is read first after the next select
	doubts   []socket  // to be reported as writable, whether they are or not
	doubtAt  time.Time // when doubts is filled next; zero while there can be none
}

// The sets of select. Failure to connect has a set of its own.
const (
	readSet = iota
	writeSet
	failSet
)

// fdSet is the fd_set of winsock2.h: a u_int count, padded to a word, then that many SOCKETs, each
// a word. FD_SETSIZE only sizes the array of C's declaration; select looks at the count.
type fdSet []socket

func (set *fdSet) clear() { *set = append((*set)[:0], 0) }

func (set *fdSet) put(s socket) {
	*set = append(*set, s)
	(*set)[0]++
}

// members are the sockets in the set; after select, those that are ready.
func (set fdSet) members() []socket { return set[1:][:uint32(set[0])] }

func newPoller() (poller, error) {
	var data windows.WSAData // counted, and never cleaned up: that would be the end of all sockets
	err := windows.WSAStartup(0x202, &data)
	if err != nil {
		return nil, fault("wsastartup", err)
	}
	s, err := newSocket(windows.AF_INET, windows.SOCK_DGRAM, windows.IPPROTO_UDP)
	if err != nil {
		return nil, err
	}
	p := &selector{
		watched:  make(map[socket]readiness),
		wakeSock: s,
	}
	err = connectToItself(s)
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// connectToItself makes s a UDP socket that takes nobody else's datagrams.
func connectToItself(s socket) error {
	h := windows.Handle(s)
	err := windows.Bind(h, &windows.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	if err != nil {
		return fault("bind", err)
	}
	sa, err := windows.Getsockname(h)
	if err != nil {
		return fault("getsockname", err)
	}
	err = windows.Connect(h, sa)
	if err != nil {
		return fault("connect", err)
	}
	return system{}.setNonblock(s)
}

// change: what is watched for nothing is in no set.
func (p *selector) change(s socket, was, want readiness) error {
	p.watched[s] = want
	return nil
}

func (p *selector) forget(s socket) { delete(p.watched, s) }

// wait: select, and beside what that finds, what is in doubt.
func (p *selector) wait(events []event, ms int) (int, error) {
	p.fillSets()
	p.fillDoubts()
	n, err := callSelect(&p.sets, p.limited(ms))
	if err != nil {
		return 0, err
	}
	found := p.doubted(events)
	if n > 0 { // what the sets hold after a timeout is nowhere promised
		found += p.folded(events[found:])
	}
	return found, nil
}

// fillSets: select changes its sets, so they are filled anew for each call. Without any socket it
// would fail; the one that wakes is always there. A socket that is watched for writability alone
// may be connecting, and that may fail. The map's order is a random one, so none is always beyond
// the end of events.
func (p *selector) fillSets() {
	for i := range p.sets {
		p.sets[i].clear()
	}
	p.sets[readSet].put(p.wakeSock)
	for s, want := range p.watched {
		if want&readable != 0 {
			p.sets[readSet].put(s)
		}
		if want&writable != 0 {
			p.sets[writeSet].put(s)
		}
		if want == writable {
			p.sets[failSet].put(s)
		}
	}
}

// fillDoubts: a reset may not end a wait for writability alone. It is an event of its own, for
// which select does not ask (mio and wepoll do, as AFD_POLL_ABORT), and a full buffer stays full.
// So once a second such sockets are reported writable. If they are not, that costs a write each.
func (p *selector) fillDoubts() {
	alone := p.sets[failSet].members()
	if len(alone) == 0 {
		p.doubtAt = time.Time{}
		return
	}
	now := time.Now()
	if p.doubtAt.IsZero() {
		p.doubtAt = now.Add(time.Second)
	}
	if len(p.doubts) == 0 && !now.Before(p.doubtAt) {
		p.doubts = append(p.doubts, alone...)
		p.doubtAt = now.Add(time.Second)
	}
}

// limited is ms, or less where something will be in doubt before.
func (p *selector) limited(ms int) int {
	if len(p.doubts) > 0 {
		return 0
	}
	if len(p.sets[failSet].members()) == 0 {
		return ms
	}
	left := time.Until(p.doubtAt) + time.Millisecond - 1
	leftMs := max(0, int(left/time.Millisecond))
	if ms < 0 {
		return leftMs
	}
	return min(ms, leftMs)
}

// doubted reports sockets in doubt. What does not fit is reported by the next wait.
func (p *selector) doubted(events []event) int {
	found := 0
	for len(p.doubts) > 0 && found < len(events) {
		last := len(p.doubts) - 1
		s := p.doubts[last]
		p.doubts = p.doubts[:last]
		if p.watched[s] == writable { // it may have changed since
			events[found] = event{s, writable}
			found++
		}
	}
	return found
}

// folded turns the sets into events. To fail to connect is to be done with connecting: writable. A
// socket can be in two sets, and is two events then. What does not fit is reported again; and each
// time another set is read first, or many that stay readable would hide what is in the others.
func (p *selector) folded(events []event) int {
	found := 0
	for i := range p.sets {
		which := (p.first + i) % len(p.sets)
		ready := writable
		if which == readSet {
			ready = readable
		}
		for _, s := range p.sets[which].members() {
			if s == p.wakeSock {
				p.consumeWake()
			} else if found < len(events) {
				events[found] = event{s, ready}
				found++
			}
		}
	}
	p.first = (p.first + 1) % len(p.sets)
	return found
}

// wake sends a datagram of one byte. It fails only where the buffer is full, and then a wake-up is
// pending.
func (p *selector) wake() { system{}.write(p.wakeSock, []byte{1}) }

// consumeWake reads one datagram for each wake-up.
func (p *selector) consumeWake() {
	var one [1]byte
	for {
		_, err := system{}.read(p.wakeSock, one[:])
		if err != nil {
			return
		}
	}
}

func (p *selector) close() error { return system{}.close(p.wakeSock) }

// callSelect: select, whose first argument is ignored. What the others point to stays alive and in
// its place for the call; LazyProc.Call would allocate, on each turn of the loop.
func callSelect(sets *[3]fdSet, ms int) (int, error) {
	var timeout *windows.Timeval // nil: no limit
	if ms >= 0 {
		timeout = &windows.Timeval{Sec: int32(ms / 1000), Usec: int32(ms % 1000 * 1000)}
	}
	n, _, errno := syscall.SyscallN(procSelect.Addr(), 0,
		uintptr(unsafe.Pointer(&sets[readSet][0])),
		uintptr(unsafe.Pointer(&sets[writeSet][0])),
		uintptr(unsafe.Pointer(&sets[failSet][0])),
		uintptr(unsafe.Pointer(timeout)))
	if int32(n) < 0 {
		return 0, fault("select", errno)
	}
	return int(int32(n)), nil
}

// ---- Sockets: Winsock's ----

// system is the sockets of this kernel.
type system struct{}

// fault turns an error number into the error of the contract that it means, or names the call that
// it came from.
func fault(call string, err error) error {
	switch err {
	case nil:
		return nil
	case windows.WSAEWOULDBLOCK, windows.WSAEINTR:
		return errWouldBlock
	case windows.WSAECONNRESET, windows.WSAECONNABORTED, windows.WSAENETRESET:
		return errReset
	case windows.WSAECONNREFUSED:
		return errRefused
	case windows.WSAETIMEDOUT:
		return errTimedOut
	case windows.WSAEADDRNOTAVAIL, windows.WSAEAFNOSUPPORT:
		return errNoAddress
	case windows.WSAENOBUFS:
		return errNoMemory
	case windows.WSAEMFILE:
		return fmt.Errorf("%w (Winsock names no limit)", errTooManyFiles)
	}
	return os.NewSyscallError(call, err)
}

func (system) openSocket(to netip.AddrPort, from netip.Addr) (socket, error) {
	s, err := newSocket(domain(to.Addr()), windows.SOCK_STREAM, windows.IPPROTO_TCP)
	if err != nil {
		return 0, err
	}
	setOptions(s)
	if from.IsValid() {
		err = bindSource(s, from)
	}
	if err != nil {
		windows.Closesocket(windows.Handle(s))
		return 0, err
	}
	return s, nil
}

// newSocket: WSASocket, since only it can make a handle that no child inherits. Overlapped is what
// socket would make.
func newSocket(domain, kind, proto int32) (socket, error) {
	const flags = windows.WSA_FLAG_OVERLAPPED | windows.WSA_FLAG_NO_HANDLE_INHERIT
	h, err := windows.WSASocket(domain, kind, proto, nil, 0, flags)
	if err != nil {
		return 0, fault("wsasocket", err)
	}
	return socket(h), nil
}

// setOptions: they cannot fail on a TCP socket, so nobody asks.
func setOptions(s socket) {
	windows.SetsockoptInt(windows.Handle(s), windows.IPPROTO_TCP, windows.TCP_NODELAY, 1)
	windows.SetsockoptInt(windows.Handle(s), windows.SOL_SOCKET, soOOBInline, 1)
}

// bindSource gives s a local address, and leaves the port to connect.
func bindSource(s socket, from netip.Addr) error {
	deferPort(s)
	sa, err := sockaddr(netip.AddrPortFrom(from, 0))
	if err != nil {
		return err
	}
	return fault("bind", windows.Bind(windows.Handle(s), sa))
}

func (system) setNonblock(s socket) error {
	on := uint32(1)
	r, _, err := procIoctlsocket.Call(uintptr(s), fionbio, uintptr(unsafe.Pointer(&on)))
	if int32(r) != 0 {
		return fault("ioctlsocket", err)
	}
	return nil
}

func (system) connect(s socket, to netip.AddrPort) error {
	sa, err := sockaddr(to)
	if err != nil {
		return err
	}
	if to.Addr().IsLoopback() {
		refuseAtOnce(s)
	}
	err = windows.Connect(windows.Handle(s), sa)
	switch err {
	case windows.WSAEWOULDBLOCK, windows.WSAEINPROGRESS, windows.WSAEALREADY:
		return nil
	}
	return connectFault(err)
}

// connectFault is what a failure to connect comes to, told at once or by SO_ERROR. WSAEADDRINUSE
// says that no local port is free. WSAECONNABORTED comes before there is a connection, and so is no
// reset.
func connectFault(err error) error {
	switch err {
	case windows.WSAEADDRINUSE:
		return errNoPort
	case windows.WSAECONNABORTED:
		return os.NewSyscallError("connect", err)
	}
	return fault("connect", err)
}

// connectResult: SO_ERROR is cleared by being read, so its value has to be acted on. 0 means that
// connect has not failed. Whether it is done, the peer's name does not tell: Microsoft's page says
// that it is known when connected, but Winsock tells it as soon as connect was called (zbus pull
// request 1964, asupersync issue 62). So select has to say that the socket is writable.
func (system) connectResult(s socket) (local, peer netip.AddrPort, err error) {
	errno, err := windows.GetsockoptInt(windows.Handle(s), windows.SOL_SOCKET, soError)
	if err != nil {
		return local, peer, fault("getsockopt", err)
	}
	if errno == 0 {
		return endNames(s)
	}
	return local, peer, connectFault(windows.Errno(errno))
}

// endNames are both ends of a connection, as connectResult has to say them. WSAENOTCONN: it was
// connected, or it would not be writable, and is no more.
func endNames(s socket) (local, peer netip.AddrPort, err error) {
	done, err := isWritable(s)
	if err != nil {
		return local, peer, err
	}
	if !done {
		return local, peer, errWouldBlock
	}
	to, err := windows.Getpeername(windows.Handle(s))
	switch err {
	case nil:
	case windows.WSAENOTCONN:
		return local, peer, errReset
	default:
		return local, peer, fault("getpeername", err)
	}
	from, err := windows.Getsockname(windows.Handle(s))
	if err != nil {
		return local, peer, fault("getsockname", err)
	}
	return addrPort(from), addrPort(to), nil
}

// isWritable asks select, with no time, about one socket.
func isWritable(s socket) (bool, error) {
	sets := [3]fdSet{readSet: {0}, writeSet: {1, s}, failSet: {0}}
	n, err := callSelect(&sets, 0)
	return n > 0, err
}

// read: WSARecv. Recvfrom of x/sys fails where it reports a peer, and TCP reports none.
func (system) read(s socket, p []byte) (int, error) {
	buf := windows.WSABuf{Len: uint32(len(p)), Buf: unsafe.SliceData(p)}
	var n uint32
	var flags uint32
	err := windows.WSARecv(windows.Handle(s), &buf, 1, &n, &flags, nil, nil)
	if err != nil {
		return 0, fault("wsarecv", err)
	}
	if n == 0 {
		return 0, io.EOF
	}
	return int(n), nil
}

// write: WSASend, since Sendto of x/sys does not say how many bytes were taken.
func (system) write(s socket, p []byte) (int, error) {
	buf := windows.WSABuf{Len: uint32(len(p)), Buf: unsafe.SliceData(p)}
	var n uint32
	err := windows.WSASend(windows.Handle(s), &buf, 1, &n, 0, nil, nil)
	if err != nil {
		return 0, fault("wsasend", err)
	}
	return int(n), nil
}

func (system) pendingError(s socket) error {
	errno, err := windows.GetsockoptInt(windows.Handle(s), windows.SOL_SOCKET, soError)
	if err != nil {
		return fault("getsockopt", err)
	}
	if errno != 0 {
		return fault("getsockopt", windows.Errno(errno))
	}
	return nil
}

// path: Winsock does not say.
func (system) path(s socket) (unacknowledged, retransmits int) { return -1, -1 }

// closeWrite: WSAENOTCONN says that the peer's reset was faster, and the next read tells.
func (system) closeWrite(s socket) error {
	err := windows.Shutdown(windows.Handle(s), windows.SHUT_WR)
	if err == windows.WSAENOTCONN {
		return nil
	}
	return fault("shutdown", err)
}

func (system) close(s socket) error {
	return fault("closesocket", windows.Closesocket(windows.Handle(s)))
}

func (k system) listen(at netip.AddrPort) (socket, netip.AddrPort, error) {
	s, err := k.openSocket(at, netip.Addr{})
	if err != nil {
		return 0, netip.AddrPort{}, err
	}
	bound, err := bindAndListen(s, at)
	if err != nil {
		windows.Closesocket(windows.Handle(s))
		return 0, netip.AddrPort{}, err
	}
	return s, bound, nil
}

// bindAndListen: SO_REUSEADDR would share the port with another process here. SO_EXCLUSIVEADDRUSE
// keeps others from sharing it, at a price: as long as a connection of an earlier server is in
// TIME_WAIT, bind fails (libuv src/win/tcp.c). IPV6_V6ONLY leaves IPv4 to its own listener.
func bindAndListen(s socket, at netip.AddrPort) (bound netip.AddrPort, err error) {
	h := windows.Handle(s)
	windows.SetsockoptInt(h, windows.SOL_SOCKET, soExclusiveAddrUse, 1)
	if at.Addr().Is6() {
		windows.SetsockoptInt(h, windows.IPPROTO_IPV6, windows.IPV6_V6ONLY, 1)
	}
	sa, err := sockaddr(at)
	if err != nil {
		return bound, err
	}
	err = windows.Bind(h, sa)
	if err != nil {
		return bound, fault("bind", err)
	}
	err = windows.Listen(h, backlog)
	if err != nil {
		return bound, fault("listen", err)
	}
	err = system{}.setNonblock(s)
	if err != nil {
		return bound, err
	}
	sa, err = windows.Getsockname(h)
	return addrPort(sa), fault("getsockname", err)
}

// accept sets everything itself: that an accepted socket inherits it is nowhere promised. Wine says
// WSAENOTCONN of a connection that was reset in the backlog, Windows WSAECONNRESET. SO_KEEPALIVE
// finds out that a client has vanished, or it would hold a socket for ever.
func (k system) accept(s socket) (socket, netip.AddrPort, error) {
	var rsa windows.RawSockaddrAny
	size := int32(unsafe.Sizeof(rsa))
	r, _, err := procAccept.Call(uintptr(s), uintptr(unsafe.Pointer(&rsa)),
		uintptr(unsafe.Pointer(&size)))
	h := windows.Handle(r)
	if h == windows.InvalidHandle { // INVALID_SOCKET is the same value
		if err == windows.WSAENOTCONN {
			err = windows.WSAECONNRESET
		}
		return 0, netip.AddrPort{}, fault("accept", err)
	}
	setOptions(socket(h))
	windows.SetsockoptInt(h, windows.SOL_SOCKET, windows.SO_KEEPALIVE, 1)
	err = k.setNonblock(socket(h))
	if err != nil {
		windows.Closesocket(h)
		return 0, netip.AddrPort{}, err
	}
	sa, _ := rsa.Sockaddr() // fails on another family than those of IP
	return socket(h), addrPort(sa), nil
}

func domain(a netip.Addr) int32 {
	if a.Is4() {
		return windows.AF_INET
	}
	return windows.AF_INET6
}

// sockaddr is a in the kernel's form.
func sockaddr(a netip.AddrPort) (windows.Sockaddr, error) {
	if a.Addr().Is4() {
		return &windows.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}, nil
	}
	index, err := zoneIndex(a.Addr().Zone())
	if err != nil {
		return nil, err
	}
	return &windows.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16(), ZoneId: index}, nil
}

// addrPort is sa in the form of package netip. A zone stays the interface's number; its name, which
// can be in any script, is for people.
func addrPort(sa windows.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *windows.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *windows.SockaddrInet6:
		ip := netip.AddrFrom16(sa.Addr)
		if sa.ZoneId != 0 {
			ip = ip.WithZone(strconv.FormatUint(uint64(sa.ZoneId), 10))
		}
		return netip.AddrPortFrom(ip, uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// ---- The rest: what sockets need, clock, names, standard input, signals ----

// What golang.org/x/sys lacks.
var (
	ws2_32          = windows.NewLazySystemDLL("ws2_32.dll")
	procSelect      = ws2_32.NewProc("select")
	procAccept      = ws2_32.NewProc("accept")
	procIoctlsocket = ws2_32.NewProc("ioctlsocket")

	kernel32      = windows.NewLazySystemDLL("kernel32.dll")
	procCounter   = kernel32.NewProc("QueryPerformanceCounter")
	procFrequency = kernel32.NewProc("QueryPerformanceFrequency")
)

const (
	fionbio            = 0x8004667e            // winsock2.h: FIONBIO
	soOOBInline        = 0x100                 // winsock2.h: SO_OOBINLINE
	soError            = 0x1007                // winsock2.h: SO_ERROR
	soReuseUnicastPort = 0x3007                // ws2def.h: SO_REUSE_UNICASTPORT
	soExclusiveAddrUse = ^windows.SO_REUSEADDR // winsock2.h: SO_EXCLUSIVEADDRUSE
	sioTCPInitialRTO   = 0x98000011            // mstcpip.h: SIO_TCP_INITIAL_RTO
	backlog            = -(1<<16 - 1)          // winsock2.h: SOMAXCONN_HINT; SOMAXCONN is some 200
)

// deferPort: bind would reserve a port for every destination at once; connect needs one that is
// free for this destination. Before Windows 10 that fails, and the port is reserved.
func deferPort(s socket) {
	windows.SetsockoptInt(windows.Handle(s), windows.SOL_SOCKET, soReuseUnicastPort, 1)
}

// refuseAtOnce: a SYN that is refused is sent again here, for 2 s, as if the listener were about to
// come. On loopback it is not; Go and libuv ask for the same. Before Windows 10 1709 that fails,
// and the refusal takes its 2 s.
func refuseAtOnce(s socket) {
	// mstcpip.h: TCP_INITIAL_RTO_PARAMETERS. Rtt 0xffff is the default's, MaxSynRetransmissions
	// 0xfe is TCP_INITIAL_RTO_NO_SYN_RETRANSMISSIONS; the last byte is padding.
	rto := [4]byte{0xff, 0xff, 0xfe}
	var returned uint32
	windows.WSAIoctl(windows.Handle(s), sioTCPInitialRTO, &rto[0], uint32(len(rto)),
		nil, 0, &returned, nil, 0)
}

// newClock is QueryPerformanceCounter, which moves 10 million times a second. Go's own clock moves
// with the timer interrupt, once in 0.5 to 15.6 ms (runtime/sys_windows_amd64.s, golang/go 67066).
func newClock() func() time.Duration {
	frequency := queryCounter(procFrequency) // fixed since the machine was started
	start := queryCounter(procCounter)
	return func() time.Duration {
		passed := queryCounter(procCounter) - start
		seconds := time.Duration(passed / frequency)
		rest := time.Duration(passed % frequency) // multiplied as a whole, passed would overflow
		return seconds*time.Second + rest*time.Second/time.Duration(frequency)
	}
}

// queryCounter calls one of the two functions of the counter. Neither fails since Windows XP.
func queryCounter(proc *windows.LazyProc) int64 {
	var value int64
	syscall.SyscallN(proc.Addr(), uintptr(unsafe.Pointer(&value)))
	return value
}

// newResolver asks the system, which knows more sources than a hosts file and DNS. Every program
// here loads its DLLs anyway.
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

// isTerminal: only a console has a mode.
func isTerminal(file *os.File) bool {
	terminal := false
	onDescriptor(file, func(fd uintptr) {
		var mode uint32
		err := windows.GetConsoleMode(windows.Handle(fd), &mode)
		terminal = err == nil
	})
	return terminal
}

// widenPipe: whoever makes a pipe says how much it holds (CreatePipe).
func widenPipe(*os.File, int) {}

// terminalEOFDelay: Ctrl-C ends a read of the console as an EOF would, and the signal comes a
// moment later. CPython waits as long for it (read_console_w in its Modules/_io/winconsoleio.c).
const terminalEOFDelay = 100 * time.Millisecond

// readerGone: ERROR_NO_DATA is what a write says while the reader's end is being closed.
func readerGone(err error) bool {
	return errors.Is(err, windows.ERROR_BROKEN_PIPE) || errors.Is(err, windows.ERROR_NO_DATA)
}

const (
	sigTerm = windows.SIGTERM // the console's closing, to the Go runtime
	sigHup  = windows.SIGHUP  // never comes
	sigPipe = windows.SIGPIPE // never comes
)
