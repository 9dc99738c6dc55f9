package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What a process holds and uses: descriptors, memory, processor time; and what it does where there
// is too little.

// usage is what a process holds and has used.
type processUsage struct {
	rss, peak int // kB
	fds       int
	cpu       time.Duration
}

func (u processUsage) String() string {
	return fmt.Sprintf("%d kB resident (peak %d), %d descriptors, %.2f s of processor time",
		u.rss, u.peak, u.fds, u.cpu.Seconds())
}

// heldBy is what p holds at present.
func heldBy(t testing.TB, p *process) processUsage {
	t.Helper()
	dir := "/proc/" + strconv.Itoa(p.Process.Pid)
	fds, err := os.ReadDir(dir + "/fd")
	if errors.Is(err, os.ErrNotExist) && os.Getenv("ECHOMUX_EXEC") == "" {
		t.Fatalf("process %d has ended: %s", p.Process.Pid, tail(p.stderr.String()))
	}
	if err != nil {
		t.Skip(err)
	}
	status, _ := os.ReadFile(dir + "/status")
	field := func(name string) (kB int) {
		_, rest, _ := strings.Cut(string(status), "\n"+name+":")
		fmt.Sscan(rest, &kB)
		return kB
	}
	return processUsage{field("VmRSS"), field("VmHWM"), len(fds), usedBy(p)}
}

// usedBy is the processor time that all threads of p have had; 0 if the kernel does not tell.
func usedBy(p *process) (sum time.Duration) {
	tasks, _ := filepath.Glob("/proc/" + strconv.Itoa(p.Process.Pid) + "/task/*/schedstat")
	for _, task := range tasks {
		text, _ := os.ReadFile(task)
		used, _, _ := strings.Cut(string(text), " ")
		ns, _ := strconv.ParseInt(used, 10, 64)
		sum += time.Duration(ns)
	}
	return sum
}

// wantIdle checks that p waits for d without any work.
func (p *process) wantIdle(t testing.TB, d time.Duration) {
	t.Helper()
	before := usedBy(p)
	time.Sleep(d)
	used := usedBy(p) - before
	t.Logf("%v of processor time in %v", used, d)
	if used > d/50 {
		t.Errorf("%v of processor time in %v", used, d)
	}
}

// TestIdle: waiting costs nothing, whatever is waited for.
func TestIdle(t *testing.T) {
	t.Parallel()
	faultRig(t)
	_, silent := serve(t, "127.0.0.1:0", ignores)
	over := make(chan struct{})
	_, stuck := serve(t, "127.0.0.1:0", func(*net.TCPConn) { <-over })
	t.Cleanup(func() { close(over) })
	_, port := startServer(t)
	for range 20 {
		io.WriteString(dialServer(t, "127.0.0.1", port), "x") // and never reads
	}
	_, halfClosed := serve(t, "127.0.0.1:0", ends)
	_, keeps := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		ignores(c)
		lingers(c)
	})
	typing := func(args ...string) *process {
		p := command(t, "1", nil, append([]string{"-io-timeout", "1h"}, args...)...)
		p.typed(t)
		return p.start(t)
	}
	unread := command(t, "1", nil, "-io-timeout", "1h", "127.0.0.1", stuck)
	unread.Stdin = io.LimitReader(zeroReader{}, 16<<20)
	unread.start(t)
	for what, p := range map[string]*process{
		"a silent peer":             typing("127.0.0.1", silent, "hello"),
		"100 silent peers":          typing("-n", "100", "127.0.0.1", silent, "hello"),
		"a peer that reads nothing": unread,
		"a user who thinks":         typing("127.0.0.1", silent),
		"a peer that has ended":     typing("-until", "eof", "127.0.0.1", halfClosed),
		"an end that was sent":      typing("-until", "eof", "127.0.0.1", keeps, "hello"),
		"a round that is not due":   typing("-count", "0", "-every", "1h", "127.0.0.1", port, "x"),
		"no descriptors":            exhaustedServer(t, 30),
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			p.goesOn(t, 500*time.Millisecond) // it has started
			p.wantIdle(t, 3*time.Second)
		})
	}
}

// exhaustedServer is a server that has no descriptor left of those.
func exhaustedServer(t testing.TB, limit int) *process {
	p, port := startServerBy(t, limited(limit))
	eventually(t, func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return strings.Contains(p.stderr.String(), "too many open files")
	}, func() string { return "descriptors do not run out" })
	return p
}

// builtBinary builds the program as it is used: static, and so it needs no descriptor to start.
func builtBinary(t testing.TB) (path string) {
	t.Helper()
	_, err := exec.LookPath("go")
	if err != nil {
		t.Skip(err)
	}
	path = filepath.Join(t.TempDir(), "echomux")
	build := exec.Command("go", "build", "-o", path, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

// commandBuilt is command with the built program.
func commandBuilt(t testing.TB, binary string, launcher []string, args ...string) *process {
	t.Helper()
	p := command(t, "1", launcher, args...)
	words := append(append([]string(nil), launcher...), binary)
	words = append(words, args...)
	path, err := exec.LookPath(words[0])
	if err != nil {
		t.Skip(err)
	}
	p.Path = path
	p.Args = words
	return p
}

// TestFewDescriptors: whatever the limit is, descriptors that do not suffice are a local failure in
// words, and never the Go runtime's last ones.
func TestFewDescriptors(t *testing.T) {
	t.Parallel()
	faultRig(t)
	_, port := serve(t, "127.0.0.1:0", echoes)
	binary := builtBinary(t)
	statuses := map[string]map[int]int{}
	for limit := 3; limit <= 20; limit++ {
		for _, words := range []string{
			"127.0.0.1 PORT hello",
			"localhost PORT hello",
			"127.0.0.1 PORT",
			"-v -count 300 127.0.0.1 PORT hello",
			"-count 3 -every 5ms -progress 5ms 127.0.0.1 PORT hello",
			"-n 5 127.0.0.1 PORT hello",
			"-n 5 127.0.0.1 PORT",
			"-q",
		} {
			args := strings.Fields(strings.Replace(words, "PORT", port, 1))
			p := commandBuilt(t, binary, limited(limit), args...)
			p.Stdin = strings.NewReader("hello")
			r := p.start(t).end(t)
			if statuses[words] == nil {
				statuses[words] = map[int]int{}
			}
			statuses[words][r.status]++
			wanting := "too many open files (the limit is " + strconv.Itoa(limit) + ")"
			said := strings.Contains(r.stderr, wanting)
			if r.status != 0 && (r.status != 6 || !said) {
				t.Errorf("%s with %d descriptors: status %d: %s",
					words, limit, r.status, tail(r.stderr))
			}
		}
	}
	for words, ended := range statuses {
		if ended[0] < 3 || ended[6] < 3 {
			t.Errorf("%s: exit statuses and how many of them: %v", words, ended)
		}
	}
	t.Logf("exit statuses and how many of them: %v", statuses)
}

// TestFewDescriptorsSignal: so it is where a signal ends the run.
func TestFewDescriptorsSignal(t *testing.T) {
	t.Parallel()
	faultRig(t)
	needSignals(t)
	binary := builtBinary(t)
	_, silent := serve(t, "127.0.0.1:0", ignores)
	for limit := 3; limit <= 14; limit++ {
		for words, ready := range map[string]string{
			"-v 127.0.0.1 PORT hello":       "sent: ",
			"-v -n 3 127.0.0.1 PORT hello":  "#3 sent: ",
			"-v -count 0 127.0.0.1 PORT a":  "sent: ",
			"-v -serve 127.0.0.1 0":         " listening at=",
			"-v -until eof 127.0.0.1 PORT ": "connected ",
		} {
			args := strings.Fields(strings.Replace(words, "PORT", silent, 1))
			p := commandBuilt(t, binary, limited(limit), args...)
			p.typed(t)
			p.start(t)
			eventually(t, func() bool {
				return p.isOver() || strings.Contains(p.stderr.String(), ready)
			}, func() string { return tail(p.stderr.String()) })
			p.Process.Signal(syscall.SIGTERM)
			r := p.end(t)
			want := 143
			if strings.Contains(words, "-serve") {
				want = 0
			}
			if r.status != want && r.status != 6 {
				t.Errorf("%s with %d descriptors: status %d: %s",
					words, limit, r.status, tail(r.stderr))
			}
		}
	}
}

// TestCollector: a server without descriptors survives its garbage collector, whose timers want a
// poller of the Go runtime's. Clients that stop reading and go on make it garbage.
func TestCollector(t *testing.T) {
	t.Parallel()
	faultRig(t)
	p, port := startServerBy(t, limited(64))
	var held []*net.TCPConn
	eventually(t, func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			held = append(held, c.(*net.TCPConn))
		}
		return strings.Contains(p.stderr.String(), "too many open files (the limit is 64)")
	}, func() string { return "descriptors do not run out" })
	pollers := 0
	fds, _ := filepath.Glob("/proc/" + strconv.Itoa(p.Process.Pid) + "/fd/*")
	for _, fd := range fds {
		name, _ := os.Readlink(fd)
		if name == "anon_inode:[eventpoll]" {
			pollers++
		}
	}
	if pollers != 2 { // the crash itself does not come every time, so look at its cause too
		t.Errorf("%d epoll instances: the Go runtime has yet to make its own", pollers)
	}
	for range 3 {
		makeGarbage(held)
	}
	for _, c := range held {
		c.Close()
	}
	r, _ := faultRun(t, "127.0.0.1", port, "hello")
	r.wantLine(t, 0, "ok", wholeHere, "")
	p.signal(t, syscall.SIGTERM)
	p.end(t).wantLine(t, 0, "ended", "clients failures received returned", "")
}

// makeGarbage has a server keep bytes for each of its clients, and get rid of them.
func makeGarbage(clients []*net.TCPConn) {
	chunk := make([]byte, 256<<10)
	for _, c := range clients {
		c.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
		var err error
		for err == nil {
			_, err = c.Write(chunk)
		}
	}
	for range 2 {
		for _, c := range clients {
			c.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
			var err error
			for err == nil {
				_, err = c.Read(chunk)
			}
		}
	}
}

// exchangeAndStay sends a message to a server and reads it back, and is idle from then on.
func exchangeAndStay(t testing.TB, port string, message []byte) {
	t.Helper()
	c := dialServer(t, "127.0.0.1", port)
	go c.Write(message)
	_, err := io.ReadFull(c, make([]byte, len(message)))
	if err != nil {
		t.Fatal(err)
	}
}

// TestServeMemory: an idle client costs a server little, whatever it has sent before. One that
// never reads costs a buffer, and no more.
func TestServeMemory(t *testing.T) {
	t.Parallel()
	faultRig(t)
	const idle, unread = 1500, 60
	manyDescriptors(t, idle+500)
	p, port := startServer(t)
	message := noise(300_000)
	exchangeAndStay(t, port, message)
	before := heldBy(t, p)
	for range idle {
		exchangeAndStay(t, port, message)
	}
	middle := heldBy(t, p)
	each := (middle.rss - before.rss) * 1024 / idle
	t.Logf("an idle client costs %d bytes: at first %v, with all %v", each, before, middle)
	if each > 2<<10 {
		t.Errorf("an idle client costs %d bytes", each)
	}
	if middle.fds != before.fds+idle {
		t.Errorf("%d clients, but %d descriptors at first and %d now", idle, before.fds, middle.fds)
	}
	chunk := make([]byte, 256<<10)
	for range unread {
		c := dialServer(t, "127.0.0.1", port)
		c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		var err error
		for err == nil {
			_, err = c.Write(chunk)
		}
	}
	after := heldBy(t, p)
	each = (after.rss - middle.rss) / unread
	t.Logf("a client that never reads costs %d kB: now %v", each, after)
	if each > 2*chunkSize>>10 { // the Go runtime lets garbage grow as large as what is in use
		t.Errorf("a client that never reads costs %d kB", each)
	}
}

func (p *process) isOver() bool {
	select {
	case <-p.over:
		return true
	default:
		return false
	}
}

// TestWidePipe: a pipe that is streamed holds a whole read from then on, as far as this user may
// ask for that; one that is not read, or holds more, stays as it was.
func TestWidePipe(t *testing.T) {
	t.Parallel()
	underQEMU(t, "F_SETPIPE_SZ is unknown")
	_, port := serve(t, "127.0.0.1:0", echoes)
	for _, test := range []struct {
		args   []string
		before int
		want   int
	}{
		{[]string{"127.0.0.1", port}, 64 << 10, inputRead},
		{[]string{"127.0.0.1", port}, 1 << 20, 1 << 20},
		{[]string{"127.0.0.1", port, "hello"}, 64 << 10, 64 << 10},
	} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, test.before)
		io.WriteString(w, "x")
		w.Close()
		result := echomux(t, r, test.args...)
		if result.status != 0 {
			t.Errorf("%v: status %d", test.args, result.status)
		}
		size, err := unix.FcntlInt(r.Fd(), unix.F_GETPIPE_SZ, 0)
		if err != nil || size != test.want {
			t.Errorf("%v: the pipe holds %d bytes (%v), want %d", test.args, size, err, test.want)
		}
	}
}
