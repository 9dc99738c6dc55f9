//go:build ignore

// An answer to the last exercise of doc/lesson.md: the contract's poller in the words of poll(2),
// for Linux. .ci/poll puts it in the place of the one over epoll.

package main

import "golang.org/x/sys/unix"

// ---- The poller ----

// pollList is the poller. poll(2) keeps nothing between calls, so what is watched is kept here, and
// every wait costs O(N). The first entry is the eventfd that wakes; the others are sockets.
type pollList struct {
	fds    []unix.PollFd
	places map[socket]int // of each socket in fds
	next   int            // the entry with which the next report begins
}

func newPoller() (poller, error) {
	wakefd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fault("eventfd", err)
	}
	p := &pollList{places: make(map[socket]int)}
	p.fds = append(p.fds, unix.PollFd{Fd: int32(wakefd), Events: unix.POLLIN})
	return p, nil
}

// change makes no system call. What is watched for nothing leaves the list: an entry with no events
// would still report its hang-up, for ever.
func (p *pollList) change(s socket, was, want readiness) error {
	place, known := p.places[s]
	switch {
	case want == 0:
		p.forget(s)
	case known:
		p.fds[place].Events = asked(want)
	default:
		p.places[s] = len(p.fds)
		p.fds = append(p.fds, unix.PollFd{Fd: int32(s), Events: asked(want)})
	}
	return nil
}

// forget takes s out of the list. The last entry takes its place.
func (p *pollList) forget(s socket) {
	place, known := p.places[s]
	if !known {
		return
	}
	last := len(p.fds) - 1
	p.fds[place] = p.fds[last]
	p.places[socket(p.fds[place].Fd)] = place
	p.fds = p.fds[:last]
	delete(p.places, s)
}

// asked is a readiness in the words of poll(2).
func asked(want readiness) (events int16) {
	if want&readable != 0 {
		events |= unix.POLLIN
	}
	if want&writable != 0 {
		events |= unix.POLLOUT
	}
	return events
}

// wait: poll(2). EINTR is a spurious return: the Go runtime signals its threads.
func (p *pollList) wait(events []event, ms int) (int, error) {
	_, err := unix.Poll(p.fds, ms)
	if err == unix.EINTR {
		return 0, nil
	}
	if err != nil {
		return 0, fault("poll", err)
	}
	if p.fds[0].Revents != 0 {
		p.consumeWake()
	}
	return p.report(events), nil
}

// report fills events with the sockets that are ready. poll sets no limit to what it finds, but the
// caller has room for so many events only. What does not fit comes first the next time, or those
// that stay ready would hide it for ever.
func (p *pollList) report(events []event) int {
	found := 0
	for range p.fds {
		if found == len(events) {
			break
		}
		fd := &p.fds[p.next%len(p.fds)]
		p.next = p.next%len(p.fds) + 1
		if fd.Revents != 0 && fd != &p.fds[0] {
			events[found] = event{socket(fd.Fd), folded(fd)}
			found++
		}
	}
	return found
}

// folded is the readiness of an entry. POLLERR and POLLHUP come unasked; they say that whatever was
// asked for will not block.
func folded(fd *unix.PollFd) readiness {
	reported := fd.Revents
	if reported&(unix.POLLERR|unix.POLLHUP) != 0 {
		reported = fd.Events
	}
	var ready readiness
	if reported&unix.POLLIN != 0 {
		ready |= readable
	}
	if reported&unix.POLLOUT != 0 {
		ready |= writable
	}
	return ready
}

// wake adds 1 to the eventfd's counter. It fails only where the counter is full, and then a wake-up
// is pending.
func (p *pollList) wake() {
	one := [8]byte{1}
	unix.Write(int(p.fds[0].Fd), one[:])
}

// consumeWake sets the counter to 0.
func (p *pollList) consumeWake() {
	var count [8]byte
	unix.Read(int(p.fds[0].Fd), count[:])
}

func (p *pollList) close() error { return fault("close", unix.Close(int(p.fds[0].Fd))) }
