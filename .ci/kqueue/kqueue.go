//go:build ignore

// Kqueue(2) over epoll(7), and what else poller_darwin.go asks XNU for, so that the macOS backend
// can be tested on Linux. The script .ci/platforms puts this file, without the line above, into
// package unix of a copy of golang.org/x/sys, where it also renames the functions that this file
// defines anew. It shows the backend's logic, not XNU: it does what the manual promises.

package unix

import (
	"encoding/binary"
	"sync"
	"syscall"
	"time"
)

// As in sys/event.h.
const (
	EVFILT_READ  = -1
	EVFILT_WRITE = -2
	EVFILT_USER  = -10

	EV_ADD     = 0x1
	EV_DELETE  = 0x2
	EV_ENABLE  = 0x4
	EV_DISABLE = 0x8
	EV_ONESHOT = 0x10
	EV_CLEAR   = 0x20
	EV_RECEIPT = 0x40
	EV_ERROR   = 0x4000
	EV_EOF     = 0x8000

	NOTE_TRIGGER = 0x1000000
)

type Kevent_t struct {
	Ident  uint64
	Filter int16
	Flags  uint16
	Fflags uint32
	Data   int64
	Udata  *byte
}

func SetKevent(k *Kevent_t, fd, mode, flags int) {
	k.Ident = uint64(fd)
	k.Filter = int16(mode)
	k.Flags = uint16(flags)
}

// knote is a filter in a kqueue.
type knote struct {
	flags     uint16 // of EV_ADD; EV_CLEAR counts for EVFILT_USER alone
	triggered bool
}

type knoteName struct {
	ident  uint64
	filter int16
}

// queue is a kqueue: an epoll instance, whose interest in a descriptor is the union of its filters.
// The eventfd is readable while a user event is triggered.
type queue struct {
	eventfd int
	notes   map[knoteName]*knote
	ready   []EpollEvent // of the one goroutine that waits
}

var (
	kqueuesMu sync.Mutex
	kqueues   = make(map[int]*queue)
)

func Kqueue() (int, error) {
	epfd, err := EpollCreate1(EPOLL_CLOEXEC)
	if err != nil {
		return -1, err
	}
	efd, err := Eventfd(0, EFD_CLOEXEC|EFD_NONBLOCK)
	if err != nil {
		closeDescriptor(epfd)
		return -1, err
	}
	err = EpollCtl(epfd, EPOLL_CTL_ADD, efd, &EpollEvent{Events: EPOLLIN, Fd: int32(efd)})
	if err != nil {
		closeDescriptor(efd)
		closeDescriptor(epfd)
		return -1, err
	}
	kqueuesMu.Lock()
	defer kqueuesMu.Unlock()
	kqueues[epfd] = &queue{eventfd: efd, notes: make(map[knoteName]*knote)}
	return epfd, nil
}

// Kevent: the changes in order, each with a place in events if it failed or has EV_RECEIPT; events
// are waited for only if no such place was taken, and without room for any there is no wait.
func Kevent(kq int, changes, events []Kevent_t, timeout *Timespec) (int, error) {
	kqueuesMu.Lock()
	q := kqueues[kq]
	if q == nil {
		kqueuesMu.Unlock()
		return -1, EBADF
	}
	n := 0
	for _, c := range changes { // a copy: events may be the same array
		err := q.change(kq, c)
		if err == nil && c.Flags&EV_RECEIPT == 0 {
			continue
		}
		if n == len(events) {
			if err != nil {
				kqueuesMu.Unlock()
				return -1, err
			}
			continue
		}
		c.Flags |= EV_ERROR
		c.Data = 0
		if errno, ok := err.(Errno); ok {
			c.Data = int64(errno)
		}
		events[n] = c
		n++
	}
	kqueuesMu.Unlock()
	if n > 0 || len(events) == 0 {
		return n, nil
	}
	return q.scan(kq, events, timeout)
}

// change applies one change.
func (q *queue) change(kq int, c Kevent_t) error {
	name := knoteName{c.Ident, c.Filter}
	note := q.notes[name]
	switch c.Filter {
	case EVFILT_READ, EVFILT_WRITE, EVFILT_USER:
	default:
		return EINVAL
	}
	if c.Flags&(EV_ENABLE|EV_DISABLE|EV_ONESHOT) != 0 || c.Filter != EVFILT_USER && c.Flags&EV_CLEAR != 0 {
		return EINVAL // not modelled
	}
	switch {
	case c.Flags&EV_DELETE != 0 && note == nil:
		return ENOENT
	case c.Flags&EV_DELETE != 0:
		delete(q.notes, name)
	case c.Flags&EV_ADD == 0 && note == nil:
		return ENOENT
	case note == nil:
		note = &knote{flags: c.Flags}
		q.notes[name] = note
	}
	if c.Filter == EVFILT_USER {
		if note != nil && c.Fflags&NOTE_TRIGGER != 0 {
			note.triggered = true
		}
		q.signal()
		return nil
	}
	err := q.arm(kq, int(c.Ident))
	if err != nil && c.Flags&EV_ADD != 0 {
		delete(q.notes, name)
	}
	return err
}

// arm makes epoll's interest in a descriptor the union of its filters.
func (q *queue) arm(kq, fd int) error {
	ev := EpollEvent{Fd: int32(fd)}
	if q.notes[knoteName{uint64(fd), EVFILT_READ}] != nil {
		ev.Events |= EPOLLIN | EPOLLRDHUP
	}
	if q.notes[knoteName{uint64(fd), EVFILT_WRITE}] != nil {
		ev.Events |= EPOLLOUT
	}
	if ev.Events == 0 {
		return EpollCtl(kq, EPOLL_CTL_DEL, fd, &ev)
	}
	err := EpollCtl(kq, EPOLL_CTL_MOD, fd, &ev)
	if err == ENOENT {
		err = EpollCtl(kq, EPOLL_CTL_ADD, fd, &ev)
	}
	return err
}

// signal makes the eventfd readable exactly while a user event is triggered.
func (q *queue) signal() {
	var count [8]byte
	Read(q.eventfd, count[:])
	for name, note := range q.notes {
		if name.filter == EVFILT_USER && note.triggered {
			binary.NativeEndian.PutUint64(count[:], 1)
			Write(q.eventfd, count[:])
			return
		}
	}
}

// scan waits for events until the timeout. It waits on if all that epoll named has gone.
func (q *queue) scan(kq int, events []Kevent_t, timeout *Timespec) (int, error) {
	if len(q.ready) < len(events) {
		q.ready = make([]EpollEvent, len(events))
	}
	var deadline time.Time
	if timeout != nil {
		if timeout.Sec < 0 || timeout.Nsec < 0 || timeout.Nsec >= 1e9 {
			return -1, EINVAL
		}
		deadline = time.Now().Add(time.Duration(timeout.Nano()))
	}
	for {
		ms := -1
		if timeout != nil {
			ms = int(min(max(0, time.Until(deadline)+time.Millisecond-1), time.Hour) / time.Millisecond)
		}
		n, err := EpollWait(kq, q.ready[:len(events)], ms)
		if err != nil {
			return -1, err
		}
		if found := q.collect(q.ready[:n], events); found > 0 {
			return found, nil
		}
		if timeout != nil && !time.Now().Before(deadline) {
			return 0, nil
		}
	}
}

// collect turns what epoll says into an event for each filter it concerns.
func (q *queue) collect(ready []EpollEvent, events []Kevent_t) (n int) {
	kqueuesMu.Lock()
	defer kqueuesMu.Unlock()
	put := func(ev Kevent_t) {
		if n < len(events) { // there is no more room: level triggering reports it again
			events[n] = ev
			n++
		}
	}
	for _, r := range ready {
		fd := int(r.Fd)
		if fd == q.eventfd {
			for name, note := range q.notes {
				if name.filter == EVFILT_USER && note.triggered && n < len(events) {
					put(Kevent_t{Ident: name.ident, Filter: EVFILT_USER, Flags: note.flags &^ (EV_ADD | EV_RECEIPT)})
					note.triggered = note.flags&EV_CLEAR == 0
				}
			}
			q.signal()
			continue
		}
		const failed = EPOLLERR | EPOLLHUP
		if q.notes[knoteName{uint64(fd), EVFILT_WRITE}] != nil && r.Events&(EPOLLOUT|failed) != 0 {
			put(Kevent_t{Ident: uint64(fd), Filter: EVFILT_WRITE, Flags: eof(r.Events & failed)})
		}
		if q.notes[knoteName{uint64(fd), EVFILT_READ}] != nil && r.Events&(EPOLLIN|EPOLLRDHUP|failed) != 0 {
			size, _ := IoctlGetInt(fd, TIOCINQ)
			put(Kevent_t{Ident: uint64(fd), Filter: EVFILT_READ, Flags: eof(r.Events & (failed | EPOLLRDHUP)), Data: int64(size)})
		}
	}
	return n
}

// eof is EV_EOF if a hang-up was seen. The error that kqueue then puts into fflags is not: on Linux
// to look at it is to take it away.
func eof(seen uint32) uint16 {
	if seen != 0 {
		return EV_EOF
	}
	return 0
}

// Close: a descriptor's filters vanish with it.
func Close(fd int) error {
	kqueuesMu.Lock()
	if q := kqueues[fd]; q != nil {
		closeDescriptor(q.eventfd)
		delete(kqueues, fd)
	}
	for kq, q := range kqueues {
		had := q.notes[knoteName{uint64(fd), EVFILT_READ}] != nil || q.notes[knoteName{uint64(fd), EVFILT_WRITE}] != nil
		delete(q.notes, knoteName{uint64(fd), EVFILT_READ})
		delete(q.notes, knoteName{uint64(fd), EVFILT_WRITE})
		if had { // a duplicate of fd would keep epoll's interest alive
			EpollCtl(kq, EPOLL_CTL_DEL, fd, &EpollEvent{})
		}
	}
	kqueuesMu.Unlock()
	return closeDescriptor(fd)
}

// AcceptInheriting takes the place of syscall.Accept: on BSD an accepted socket inherits O_NONBLOCK.
func AcceptInheriting(fd int) (int, syscall.Sockaddr, error) {
	flags, err := FcntlInt(uintptr(fd), F_GETFL, 0)
	if err != nil {
		return -1, nil, err
	}
	return syscall.Accept4(fd, flags&O_NONBLOCK)
}

// ---- Sockets ----

// As in sys/socket.h, netinet/tcp.h and sys/ttycom.h.
const (
	SO_NWRITE           = 0x1024
	TCP_CONNECTION_INFO = 0x106
	TIOCGETA            = TCGETS // its meaning, not its number
)

// TCPConnectionInfo has the fields that are asked for.
type TCPConnectionInfo struct {
	State               uint8
	Txretransmitpackets uint64
}

// bsdStates are the numbers of netinet/tcp_fsm.h, by those of Linux's net/tcp_states.h.
var bsdStates = [...]uint8{
	1:  4,  // ESTABLISHED
	2:  2,  // SYN_SENT
	3:  3,  // SYN_RECV, SYN_RECEIVED
	4:  6,  // FIN_WAIT1
	5:  9,  // FIN_WAIT2
	6:  10, // TIME_WAIT
	7:  0,  // CLOSE, CLOSED
	8:  5,  // CLOSE_WAIT
	9:  8,  // LAST_ACK
	10: 1,  // LISTEN
	11: 7,  // CLOSING
}

// GetsockoptTCPConnectionInfo: XNU has none of a connection that is gone.
func GetsockoptTCPConnectionInfo(fd, level, opt int) (*TCPConnectionInfo, error) {
	if level != IPPROTO_TCP || opt != TCP_CONNECTION_INFO {
		return nil, ENOPROTOOPT
	}
	info, err := GetsockoptTCPInfo(fd, IPPROTO_TCP, TCP_INFO)
	if err != nil {
		return nil, err
	}
	if info.State == 7 {
		return nil, ECONNRESET
	}
	return &TCPConnectionInfo{bsdStates[info.State], uint64(info.Total_retrans)}, nil
}

// GetsockoptInt: SO_NWRITE is what the send buffer holds. Linux counts the FIN with it.
func GetsockoptInt(fd, level, opt int) (int, error) {
	if level != SOL_SOCKET || opt != SO_NWRITE {
		return getsockoptInt(fd, level, opt)
	}
	n, err := IoctlGetInt(fd, TIOCOUTQ)
	if err != nil {
		return 0, err
	}
	info, err := GetsockoptTCPInfo(fd, IPPROTO_TCP, TCP_INFO)
	if err != nil {
		return 0, err
	}
	finIsOut := info.State == 4 || info.State == 9 || info.State == 11
	if finIsOut && n > 0 {
		n--
	}
	return n, nil
}

// ConnectElsewhere takes the place of syscall.Connect: no IPv4 socket may connect to itself.
func ConnectElsewhere(fd int, sa syscall.Sockaddr) error {
	to, isIPv4 := sa.(*syscall.SockaddrInet4)
	if isIPv4 {
		own, err := syscall.Getsockname(fd)
		if err != nil {
			return err
		}
		from, _ := own.(*syscall.SockaddrInet4)
		if from != nil && from.Addr == to.Addr && from.Port == to.Port {
			return EINVAL
		}
	}
	return syscall.Connect(fd, sa)
}
