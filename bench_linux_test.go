package main

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The floor: echomux's calls in echomux's order, without its loop, its states, its deadlines and its
// comparing.

var (
	_ = role("floor-bulk", floorBulk)
	_ = role("floor-rounds", floorRounds)
	_ = role("floor-connections", floorConnections)
	_ = role("floor-serve", floorServe)
)

// watcher is an epoll instance.
type watcher struct {
	fd     int
	events [batchSize]unix.EpollEvent
}

func newWatcher() *watcher {
	runtime.LockOSThread()
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	check(err)
	return &watcher{fd: fd}
}

func (w *watcher) set(op, fd int, events uint32) {
	check(unix.EpollCtl(w.fd, op, fd, &unix.EpollEvent{Fd: int32(fd), Events: events}))
}

func (w *watcher) wait() []unix.EpollEvent {
	for {
		n, err := unix.EpollWait(w.fd, w.events[:], -1)
		if err != unix.EINTR {
			check(err)
			return w.events[:n]
		}
	}
}

// dial begins to connect a socket, with the seam's own calls.
func dial(addr string) int {
	to := netip.MustParseAddrPort(addr)
	s, err := system{}.openSocket(to)
	check(err)
	check(system{}.setNonblock(s))
	if err = (system{}).connect(s, to); err != errWouldBlock {
		check(err)
	}
	return int(s)
}

// dialed says whether the connection stands.
func dialed(fd int) {
	_, _, err := system{}.connectResult(socket(fd))
	check(err)
}

// moved is the count of a read or a write, 0 for "would block".
func moved(n int, err error) int {
	if err == unix.EAGAIN || err == unix.EINTR {
		return 0
	}
	check(err)
	return n
}

func floorBulk(addr string, _ int) {
	w, fd := newWatcher(), dial(addr)
	w.set(unix.EPOLL_CTL_ADD, fd, unix.EPOLLOUT)
	w.wait()
	dialed(fd)
	w.set(unix.EPOLL_CTL_MOD, fd, unix.EPOLLIN)
	in, out := make([]byte, chunkSize), make([]byte, chunkSize)
	var left []byte
	for blocked, ended := false, false; ; {
		for !blocked && !ended {
			if len(left) == 0 {
				n, err := unix.Read(0, in)
				check(err)
				if left = in[:n]; n == 0 {
					ended = true
					unix.Shutdown(fd, unix.SHUT_WR)
					break
				}
			}
			left = left[moved(unix.Write(fd, left)):]
			if blocked = len(left) > 0; blocked {
				w.set(unix.EPOLL_CTL_MOD, fd, unix.EPOLLIN|unix.EPOLLOUT)
			}
		}
		ready := w.wait()[0].Events
		if ready&unix.EPOLLOUT != 0 {
			blocked = false
			w.set(unix.EPOLL_CTL_MOD, fd, unix.EPOLLIN)
		}
		if ready&unix.EPOLLIN != 0 {
			n, err := unix.Read(fd, out)
			if err == nil && n == 0 {
				return
			}
			for p := out[:moved(n, err)]; len(p) > 0; {
				p = p[moved(unix.Write(1, p)):]
			}
		}
	}
}

func floorRounds(addr string, n int) {
	w, fd := newWatcher(), dial(addr)
	w.set(unix.EPOLL_CTL_ADD, fd, unix.EPOLLOUT)
	w.wait()
	dialed(fd)
	w.set(unix.EPOLL_CTL_MOD, fd, unix.EPOLLIN)
	out, in := []byte(message+"\n"), make([]byte, chunkSize)
	for range n {
		_, err := unix.Write(fd, out)
		check(err)
		for got := 0; got < len(out); {
			w.wait()
			got += moved(unix.Read(fd, in))
		}
		_, err = unix.Write(1, in[:len(out)])
		check(err)
	}
}

func floorConnections(addr string, n int) {
	w := newWatcher()
	for range n {
		w.set(unix.EPOLL_CTL_ADD, dial(addr), unix.EPOLLOUT)
	}
	out, in := []byte(message+"\n"), make([]byte, chunkSize)
	for n > 0 {
		for _, ev := range w.wait() {
			fd := int(ev.Fd)
			if ev.Events&unix.EPOLLOUT != 0 {
				dialed(fd)
				_, err := unix.Write(fd, out)
				check(err)
				w.set(unix.EPOLL_CTL_MOD, fd, unix.EPOLLIN)
				continue
			}
			got, err := unix.Read(fd, in)
			if moved(got, err) == len(out) {
				unix.Shutdown(fd, unix.SHUT_WR)
			} else if err == nil && got == 0 {
				w.set(unix.EPOLL_CTL_DEL, fd, 0)
				unix.Close(fd)
				n--
			}
		}
	}
}

// floorServe serves what the floor's clients need: bytes that the kernel refuses are copied aside.
func floorServe(string, int) {
	w := newWatcher()
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	check(err)
	check(unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	check(unix.Listen(l, 1<<16-1))
	sa, err := unix.Getsockname(l)
	check(err)
	fmt.Printf("127.0.0.1:%d\n", sa.(*unix.SockaddrInet4).Port)
	w.set(unix.EPOLL_CTL_ADD, l, unix.EPOLLIN)
	buf, pending := make([]byte, chunkSize), map[int][]byte{}
	for {
		for _, ev := range w.wait() {
			fd := int(ev.Fd)
			if fd == l {
				for range batchSize {
					fd, _, err := unix.Accept4(l, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
					if err == unix.EAGAIN {
						break
					}
					check(err)
					unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
					w.set(unix.EPOLL_CTL_ADD, fd, unix.EPOLLIN)
				}
				continue
			}
			left, err := []byte(nil), error(nil)
			if ev.Events&unix.EPOLLOUT != 0 {
				left = pending[fd]
			} else {
				n := 0
				if n, err = unix.Read(fd, buf); err == nil && n == 0 || err == unix.ECONNRESET {
					unix.Close(fd)
					continue
				}
				left = buf[:moved(n, err)]
			}
			n := moved(unix.Write(fd, left))
			if n < len(left) {
				if ev.Events&unix.EPOLLOUT == 0 {
					left = append([]byte(nil), left...)
					w.set(unix.EPOLL_CTL_MOD, fd, unix.EPOLLOUT)
				}
				pending[fd] = left[n:]
			} else if ev.Events&unix.EPOLLOUT != 0 {
				delete(pending, fd)
				w.set(unix.EPOLL_CTL_MOD, fd, unix.EPOLLIN)
			}
		}
	}
}

// ---- Memory ----

// BenchmarkMemory is the peak of resident memory: of one connection with 10 MB and with 1 GB from
// standard input, and what each further connection adds to it, in the client and in the server.
func BenchmarkMemory(b *testing.B) {
	program := built(b)
	var little, much, ratios, perConn, perIdle []float64
	for range 5 {
		l, m := clientPeak(b, zeros(b, 10_000_000), program), clientPeak(b, zeros(b, gigabyte), program)
		few, many := clientPeak(b, "", program, "-n", "1000"), clientPeak(b, "", program, "-n", "10000")
		little, much, ratios = append(little, l/1e6), append(much, m/1e6), append(ratios, m/l)
		perConn, perIdle = append(perConn, (many-few)/9000), append(perIdle, idlePeak(b))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(little), "MB-for-10MB")
	b.ReportMetric(median(much), "MB-for-1GB")
	b.ReportMetric(median(ratios), "1GB/10MB")
	b.ReportMetric(median(perConn), "B/connection")
	b.ReportMetric(median(perIdle), "B/idle-served")
}

// clientPeak runs a client to its end and returns its peak in bytes. The rusage of a child begins
// with the peak of the process that forked it, so the figure has to come from /proc.
func clientPeak(b *testing.B, input, program string, flags ...string) (most float64) {
	addr, server := startBenchServer(b, "floor-serve")
	defer stop(server)
	host, port, _ := net.SplitHostPort(addr)
	args := append(append([]string{"-q"}, flags...), host, port)
	if input == "" {
		args = append(args, message)
	}
	cmd := exec.Command(program, args...)
	defer feed(b, cmd, input)()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- cmd.Wait() }()
	for {
		select {
		case err := <-done:
			if err != nil {
				b.Fatal(cmd.Args, err)
			}
			return most
		case <-time.After(100 * time.Microsecond):
			most = max(most, peak(cmd.Process.Pid))
		}
	}
}

// idlePeak is what one of 9,000 idle connections adds to the peak of echomux -serve.
func idlePeak(b *testing.B) float64 {
	addr, p := startBenchServer(b, "echomux-serve")
	defer stop(p)
	var few float64
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	buf := make([]byte, len(message))
	for len(conns) < 10_000 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			b.Fatal(err)
		}
		conns = append(conns, c)
		io.WriteString(c, message)
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
		if len(conns) == 1000 {
			few = peak(p.Pid)
		}
	}
	return (peak(p.Pid) - few) / 9000
}

// peak is the most memory that a process has held, VmHWM of proc(5), 0 if it is gone.
func peak(pid int) float64 {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	kB, _ := strconv.Atoi(strings.TrimSpace(strings.SplitN(rest, "kB", 2)[0]))
	return float64(kB) * 1024
}
