//go:build ignore

// Kqueue(2) over epoll(7), and what else XNU does otherwise than Linux, so that the macOS backend can
// be tested on Linux. The script platforms puts this file, without its first line, into package unix
// of a copy of golang.org/x/sys. It shows the backend's logic, not XNU: it does what the manual
// promises, and fails where it is asked for more.

package unix

import (
	"sync"
	"syscall"
	"time"
)

// As in sys/event.h.
const (
	EVFILT_READ  = -1
	EVFILT_WRITE = -2
	EVFILT_USER  = -10
	EV_ADD       = 0x1
	EV_DELETE    = 0x2
	EV_CLEAR     = 0x20
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

// epollEvents are the events of epoll that concern a filter.
var epollEvents = map[int16]uint32{
	EVFILT_READ:  EPOLLIN | EPOLLRDHUP,
	EVFILT_WRITE: EPOLLOUT,
}

// watcher is a kqueue, which is an epoll instance, and a descriptor in it. Epoll's interest in the
// descriptor is the union of its filters.
type watcher struct{ kq, fd int }

var (
	filtersMu sync.Mutex
	filters   = make(map[watcher]uint32)
	users     = make(map[int]int) // the user event of each kqueue: an eventfd
)

func Kqueue() (int, error) {
	kq, err := EpollCreate1(EPOLL_CLOEXEC)
	if err != nil {
		return -1, err
	}
	user, err := Eventfd(0, EFD_CLOEXEC|EFD_NONBLOCK)
	if err == nil {
		err = EpollCtl(kq, EPOLL_CTL_ADD, user, &EpollEvent{Events: EPOLLIN, Fd: int32(user)})
	}
	if err != nil {
		closeDescriptor(kq)
		return -1, err
	}
	filtersMu.Lock()
	defer filtersMu.Unlock()
	users[kq] = user
	return kq, nil
}

// Kevent applies changes, or waits for events. Both in one call is not modelled.
func Kevent(kq int, changes, events []Kevent_t, timeout *Timespec) (int, error) {
	if len(events) > 0 && len(changes) > 0 {
		return -1, ENOTSUP
	}
	if len(events) > 0 {
		return waitForEvents(kq, events, timeout)
	}
	filtersMu.Lock()
	defer filtersMu.Unlock()
	for _, c := range changes {
		err := change(kq, c)
		if err != nil {
			return -1, err
		}
	}
	return 0, nil
}

func change(kq int, c Kevent_t) error {
	w := watcher{kq, int(c.Ident)}
	was := filters[w]
	bits := epollEvents[c.Filter]
	switch {
	case c.Filter == EVFILT_USER && c.Fflags == NOTE_TRIGGER:
		one := [8]byte{1}
		_, err := Write(users[kq], one[:])
		return err
	case c.Filter == EVFILT_USER && c.Flags == EV_ADD|EV_CLEAR:
		return nil
	case c.Flags == EV_ADD && bits != 0:
		filters[w] |= bits
	case c.Flags == EV_DELETE && was&bits != 0:
		filters[w] &^= bits
	case c.Flags == EV_DELETE:
		return ENOENT
	default:
		return ENOTSUP
	}
	op := EPOLL_CTL_MOD
	if was == 0 {
		op = EPOLL_CTL_ADD
	} else if filters[w] == 0 {
		op = EPOLL_CTL_DEL
	}
	err := EpollCtl(kq, op, w.fd, &EpollEvent{Events: filters[w], Fd: int32(w.fd)})
	if err != nil {
		filters[w] = was
	}
	return err
}

func waitForEvents(kq int, events []Kevent_t, timeout *Timespec) (int, error) {
	ms := -1
	if timeout != nil {
		ms = int((time.Duration(timeout.Nano()) + time.Millisecond - 1) / time.Millisecond)
	}
	ready := make([]EpollEvent, (len(events)+1)/2) // each may become two events
	n, err := EpollWait(kq, ready, ms)
	if err != nil {
		return -1, err
	}
	filtersMu.Lock()
	defer filtersMu.Unlock()
	var found []Kevent_t
	for _, r := range ready[:n] {
		if int(r.Fd) == users[kq] {
			var count [8]byte
			Read(users[kq], count[:]) // EV_CLEAR
			found = append(found, Kevent_t{Filter: EVFILT_USER})
			continue
		}
		for filter, bits := range epollEvents {
			seen := r.Events & (bits | EPOLLERR | EPOLLHUP)
			if filters[watcher{kq, int(r.Fd)}]&bits != 0 && seen != 0 {
				found = append(found, Kevent_t{Ident: uint64(r.Fd), Filter: filter})
			}
		}
	}
	return copy(events, found), nil
}

// Close: a descriptor's filters vanish with it.
func Close(fd int) error {
	filtersMu.Lock()
	for kq := range users {
		delete(filters, watcher{kq, fd})
	}
	filtersMu.Unlock()
	return closeDescriptor(fd)
}

// XNUAccept: an accepted socket inherits O_NONBLOCK.
func XNUAccept(fd int) (int, syscall.Sockaddr, error) {
	flags, err := FcntlInt(uintptr(fd), F_GETFL, 0)
	if err != nil {
		return -1, nil, err
	}
	return syscall.Accept4(fd, flags&O_NONBLOCK)
}

// XNUConnect: no IPv4 socket may connect to itself.
func XNUConnect(fd int, to syscall.Sockaddr) error {
	own, _ := syscall.Getsockname(fd)
	from, isIPv4 := own.(*syscall.SockaddrInet4)
	if isIPv4 && from.Port != 0 {
		to := to.(*syscall.SockaddrInet4)
		if from.Port == to.Port && from.Addr == to.Addr {
			return EINVAL
		}
	}
	return syscall.Connect(fd, to)
}
