// The seam in Linux's words: epoll(7) with an eventfd(2) to wake it, a resolver, BSD sockets.

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
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

// Package net would do this, and link libc wherever gcc is at hand. Here is the part of hosts(5) and
// resolv.conf(5) that servers and boards use. Left out: nsswitch.conf, EDNS, TCP after a truncated
// answer (the addresses that fit are enough to connect), internationalised names.

// resolver says where names are looked up.
type resolver struct {
	hosts, conf string // paths
	port        uint16
}

// resolve finds the addresses of host within left: in the hosts file, else by DNS.
func resolve(host, family string, left time.Duration) ([]netip.Addr, error) {
	return resolver{"/etc/hosts", "/etc/resolv.conf", 53}.lookup(host, family, time.Now().Add(left))
}

func (r resolver) lookup(host, family string, deadline time.Time) (addrs []netip.Addr, err error) {
	name := strings.TrimSuffix(host, ".")
	eachLine(r.hosts, func(words []string) {
		a, err := netip.ParseAddr(words[0])
		asked := family == "ip" || (family == "ip4") == a.Unmap().Is4()
		if err == nil && asked && slices.ContainsFunc(words[1:], func(w string) bool { return strings.EqualFold(w, name) }) {
			addrs = append(addrs, a)
		}
	})
	if last := name[strings.LastIndexByte(name, '.')+1:]; strings.EqualFold(last, "localhost") {
		// RFC 6761 section 6.3: loopback, whatever a file lacks or a server says.
		addrs = append(addrs, netip.IPv6Loopback(), netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	}
	if addrs != nil {
		return addrs, nil
	}
	return r.dns(host, family, deadline)
}

// eachLine calls f with the words of each line that has any. A file that cannot be opened has none.
// A line too long for anything real counts as several.
func eachLine(path string, f func(words []string)) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) // os.Open would make a second epoll
	if err != nil {
		return
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	for lines := bufio.NewReaderSize(file, 16<<10); ; {
		line, _, err := lines.ReadLine()
		if err != nil {
			return
		}
		text, _, _ := strings.Cut(string(line), "#")
		if words := strings.Fields(text); len(words) > 0 {
			f(words)
		}
	}
}

// dns asks for each name that host can stand for until one exists, and each server in turn until one
// knows. None but the last may take all the time: the next one needs some, and so does connecting.
func (r resolver) dns(host, family string, deadline time.Time) ([]netip.Addr, error) {
	var servers []netip.AddrPort
	names, absolute := []string{strings.TrimSuffix(host, ".")}, strings.HasSuffix(host, ".")
	ndots, timeout, attempts := 1, 5, 2
	numbers := map[string]*int{"ndots": &ndots, "timeout": &timeout, "attempts": &attempts}
	eachLine(r.conf, func(words []string) {
		a, err := netip.ParseAddr(words[min(1, len(words)-1)])
		switch {
		case words[0] == "nameserver" && err == nil && len(servers) < 3 && printable(a.Zone()) == a.Zone():
			servers = append(servers, netip.AddrPortFrom(a.Unmap(), r.port))
		case (words[0] == "domain" || words[0] == "search") && !absolute:
			names = names[:1]
			for _, domain := range words[1:] {
				names = append(names, names[0]+"."+strings.Trim(domain, "."))
			}
		case words[0] == "options":
			for _, w := range words[1:] {
				option, value, _ := strings.Cut(w, ":")
				if n, _ := strconv.ParseUint(value, 10, 8); numbers[option] != nil {
					*numbers[option] = int(n)
				}
			}
		}
	})
	if servers == nil {
		servers = append(servers, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), r.port))
	}
	if strings.Count(host, ".") < ndots {
		names = append(names[1:], names[0])
	}
	outcome := errNoName
	for n, name := range names {
		var failure error // of the servers asked for it, if none knows
		tries := max(1, attempts) * len(servers)
		for i := range tries {
			server, left := servers[i%len(servers)], time.Until(deadline)
			if left <= 0 {
				return nil, errTimedOut
			}
			share := left
			if i+1 < tries || n+1 < len(names) {
				some := min(time.Second, left/2)
				share = max(some, (left-some)/time.Duration(len(servers)-i%len(servers)))
			}
			share = min(share, time.Duration(max(1, timeout))*time.Second)
			addrs, err := exchange(server, name, family, time.Now().Add(share))
			if err == nil {
				return addrs, nil
			} else if err == errNoName {
				failure = nil
				break
			}
			failure = fmt.Errorf("name server %v: %w", server, err)
		}
		outcome = cmp.Or(failure, outcome)
	}
	return nil, outcome
}

// patience is for the other family's answer when one is there, cf. RFC 8305 section 3.
const patience = 250 * time.Millisecond

// exchange asks one server for AAAA and A side by side, on one connected socket: it takes nobody
// else's datagrams and reports an ICMP refusal. One IPv6 address comes first, then IPv4's, so that
// a family that is broken on the way costs one attempt to connect.
func exchange(server netip.AddrPort, name, family string, deadline time.Time) ([]netip.Addr, error) {
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	defer p.close()
	fd, err := unix.Socket(domain(server), unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fault("socket", err)
	}
	defer unix.Close(fd)
	to, err := sockaddr(server)
	if err = cmp.Or(err, p.add(socket(fd), readable), unix.Connect(fd, to)); err != nil {
		return nil, fault("connect", err)
	}
	queries, found, open := [2][]byte{}, [2][]netip.Addr{}, 0
	for i, rtype := range []byte{28, 1} { // AAAA: RFC 3596; A: RFC 1035 section 3.2.2
		if family == "ip" || (family == "ip6") == (rtype == 28) {
			if queries[i] = newQuery(name, rtype); queries[i] == nil {
				return nil, errNoName
			}
			if _, err := unix.Write(fd, queries[i]); err != nil { // it can be the query before that is refused
				return nil, fault("write", err)
			}
			open++
		}
	}
	outcome, events, buf := errNoName, make([]event, 1), make([]byte, 64<<10)
	for open > 0 {
		left := max(0, time.Until(deadline)) // at 0 there is one more look: we may have been stopped
		p.wait(events, int((left+time.Millisecond-1)/time.Millisecond))
		n, err := system{}.read(socket(fd), buf)
		if err == errWouldBlock && left == 0 {
			err = errTimedOut
		}
		if err != nil && err != errWouldBlock && err != io.EOF { // an empty datagram is no EOF
			outcome = err
			break
		}
		for i, q := range queries {
			if addrs, err := parseAnswer(buf[:n], q); err != errForeign {
				if found[i], queries[i] = addrs, nil; err != nil && err != errNoName {
					outcome = err
				}
				open--
				if soon := time.Now().Add(patience); len(addrs) > 0 && soon.Before(deadline) {
					deadline = soon
				}
			}
		}
	}
	one := min(1, len(found[0]))
	if addrs := slices.Concat(found[0][:one], found[1], found[0][one:]); len(addrs) > 0 {
		return addrs, nil
	}
	return nil, outcome
}

// newQuery is a DNS message that asks for name, RFC 1035 section 4; nil if there can be none.
func newQuery(name string, rtype byte) []byte {
	q := []byte{0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0} // id, recursion desired, one question
	unix.Getrandom(q[:2], 0)                        // whole, for so few bytes: getrandom(2)
	for _, label := range strings.Split(name, ".") {
		q = append(append(q, byte(len(label))), label...)
		if len(label) == 0 || len(label) > 63 || len(q) > 12+254 ||
			strings.ContainsFunc(label, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			return nil
		}
	}
	return append(q, 0, 0, rtype, 0, 1)
}

var errForeign = errors.New("not the answer")

// parseAnswer takes the addresses out of msg, if that answers query. Names are skipped, never
// followed, so compression cannot loop. Of a truncated answer the addresses that fit count.
func parseAnswer(msg, query []byte) (addrs []netip.Addr, err error) {
	n := len(query)
	if n == 0 || len(msg) < n || !bytes.Equal(msg[:2], query[:2]) || msg[2]&0xf8 != 0x80 || // QR, QUERY
		!bytes.Equal(msg[4:6], query[4:6]) || !bytes.EqualFold(msg[12:n], query[12:]) {
		return nil, errForeign
	}
	if rcode := msg[3] & 15; rcode == 3 {
		return nil, errNoName
	} else if rcode != 0 {
		return nil, fmt.Errorf("response code %d", rcode)
	}
	rest, truncated := msg[n:], msg[2]&2 != 0
	for range int(msg[6])<<8 | int(msg[7]) {
		rest = skipName(rest) // then type, class, TTL, length, data: section 4.1.3
		size := 10
		if len(rest) >= size {
			size += int(rest[8])<<8 | int(rest[9])
		}
		if len(rest) < size {
			if !truncated {
				return nil, errors.New("malformed answer")
			}
			break
		}
		a, ok := netip.AddrFromSlice(rest[10:size])
		if ok && bytes.Equal(rest[:4], query[n-4:]) && a.Is4() == (query[n-3] == 1) {
			addrs = append(addrs, a)
		}
		rest = rest[size:]
	}
	if truncated && addrs == nil {
		return nil, errors.New("truncated answer")
	} else if addrs == nil {
		return nil, errNoName
	}
	return addrs, nil
}

// skipName returns what follows the name at the start of b, nil if it does not end.
func skipName(b []byte) []byte {
	for len(b) > 0 && 0 < b[0] && b[0] < 64 {
		b = b[min(len(b), 1+int(b[0])):]
	}
	switch {
	case len(b) >= 1 && b[0] == 0:
		return b[1:]
	case len(b) >= 2 && b[0] >= 0xc0: // a pointer ends a name, section 4.1.4
		return b[2:]
	}
	return nil
}

// interfaceIndex: SIOCGIFINDEX, netdevice(7).
func interfaceIndex(name string) (int, error) {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return 0, unix.ENODEV
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr)
	return int(ifr.Uint32()), err
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

// sockaddr needs the number of a zone, which can be an interface's name, RFC 4007 section 11.
func sockaddr(a netip.AddrPort) (unix.Sockaddr, error) {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}, nil
	}
	zone, err := strconv.Atoi(cmp.Or(a.Addr().Zone(), "0"))
	if err != nil {
		zone, err = interfaceIndex(a.Addr().Zone())
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16(), ZoneId: uint32(zone)}, err
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
