package test

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// What a process holds and uses, and what it does where there is too little of that.

// holding is what a process holds at present, and has used so far.
type holding struct {
	memory, peak int // kB
	descriptors  int
	processor    time.Duration
}

func (p *process) holds(t testing.TB) (h holding) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d", p.Process.Pid)
	descriptors, err := os.ReadDir(dir + "/fd")
	status, _ := os.ReadFile(dir + "/status")
	if err != nil || p.isOver() {
		t.Fatalf("it has ended: %s", tail(p.stdout.String()+p.stderr.String()))
	}
	h.descriptors = len(descriptors)
	for text := range strings.Lines(string(status)) {
		fmt.Sscanf(text, "VmRSS: %d kB", &h.memory)
		fmt.Sscanf(text, "VmHWM: %d kB", &h.peak)
	}
	tasks, _ := filepath.Glob(dir + "/task/*/schedstat") // proc_pid_schedstat: ns on a processor
	for _, task := range tasks {
		var ns int64
		text, _ := os.ReadFile(task)
		fmt.Sscan(string(text), &ns)
		h.processor += time.Duration(ns)
	}
	return h
}

// TestIdle: waiting costs nothing, whatever is waited for.
func TestIdle(t *testing.T) {
	t.Parallel()
	needProcess(t)
	silent := listen(t, "127.0.0.1:0", ignores)
	echoing := listen(t, "127.0.0.1:0", echoes)
	still := listen(t, "127.0.0.1:0", stands)
	hung := fullBacklog(t)
	server, port := startServer(t, nil)
	for range 10 {
		hello(dial(t, port))
		floods(dial(t, port))
	}
	input := commandTo(t, echoing, "")
	input.Args = append(input.Args, "-")
	input.StdinPipe()
	output, _, _ := startStuck(t)
	exhausted, exhaustedPort := startServer(t, limited(30))
	fill(t, exhausted, exhaustedPort)
	processes := map[string]*process{
		"silent":          commandTo(t, silent, "-v").start(t),
		"100 silent":      commandTo(t, silent, "-n 100").start(t),
		"never reads":     commandTo(t, still, "-size 1G").start(t),
		"a pause":         commandTo(t, echoing, "-count 2 -every 1h").start(t),
		"100 pauses":      commandTo(t, echoing, "-count 2 -every 1h -n 100").start(t),
		"a connect":       commandTo(t, hung, "-connect-timeout 0").start(t),
		"100 connects":    commandTo(t, hung, "-n 100").start(t),
		"a server":        server,
		"no descriptors":  exhausted,
		"standard input":  input.start(t),
		"standard output": output,
	}
	time.Sleep(time.Second) // they have begun to wait
	before := map[*process]time.Duration{}
	for _, p := range processes {
		before[p] = p.holds(t).processor
	}
	const d = 3 * time.Second
	time.Sleep(d)
	for name, p := range processes {
		if used := p.holds(t).processor - before[p]; used > d/20 {
			t.Errorf("%s: %v of processor time in %v", name, used, d)
		}
	}
}

// ---- Descriptors ----

const tooMany = "too many open files"

// limited starts a process with so many descriptors.
func limited(descriptors int) []string {
	return []string{"sh", "-c", fmt.Sprintf(`ulimit -n %d; exec "$@"`, descriptors), "sh"}
}

// pauses is how many times a server has said that it has no descriptors left.
func (p *process) pauses() int { return strings.Count(p.stdout.String(), "msg=paused") }

// fill connects to a server until it says that it has no descriptors left.
func fill(t *testing.T, p *process, port string) (clients []*net.TCPConn) {
	t.Helper()
	before := p.pauses()
	eventually(t, "the descriptors run out", func() bool {
		if p.pauses() > before {
			return true
		}
		clients = append(clients, dial(t, port))
		return false
	})
	return clients
}

// leastDescriptors is with how many the program starts. With less, the Go runtime ends with a stack
// trace before main.
func leastDescriptors(t *testing.T) int {
	for n := 3; n < 12; n++ {
		if command(t, limited(n), "-version").start(t).end(t).status == 0 {
			return n
		}
	}
	t.Fatal("it does not start with 12 descriptors")
	return 0
}

// TestFewDescriptors: descriptors that do not suffice are a local failure in words, wherever they
// run out, and never a stack trace.
func TestFewDescriptors(t *testing.T) {
	needProcess(t)
	least := leastDescriptors(t)
	port := listen(t, "127.0.0.1:0", echoes)
	each(t, map[string][]string{
		"one":     {"127.0.0.1", port},
		"name":    {"localhost", port},
		"input":   {"-v", "127.0.0.1", port, "-"},
		"connect": {"-connect", "127.0.0.1", port},
		"rounds":  {"-count", "3", "-every", "5ms", "127.0.0.1", port},
		"several": {"-n", "5", "127.0.0.1", port},
	}, func(t *testing.T, args []string) {
		seen := map[int]int{}
		for limit := least; limit < least+10; limit++ {
			p := command(t, limited(limit), args...)
			p.Stdin = strings.NewReader("hello")
			r := p.start(t).end(t)
			seen[r.status]++
			said := strings.Contains(r.stdout+r.stderr, tooMany)
			if r.status != 0 && (r.status != 6 || !said) {
				t.Errorf("%d descriptors: exit status %d: %s %.300s", limit, r.status, r.stdout,
					r.stderr)
			}
		}
		if seen[0] < 2 || seen[6] < 2 {
			t.Errorf("exit statuses, and how many of them: %v", seen)
		}
	})
}

// TestManyDescriptors: those connections fail for which there is no descriptor, and no others.
func TestManyDescriptors(t *testing.T) {
	t.Parallel()
	needProcess(t)
	port := listen(t, "127.0.0.1:0", echoes)
	p := command(t, limited(40), "-count", "2", "-every", "1s", "-n", "100", "127.0.0.1", port)
	r := p.start(t).end(t)
	l := r.want(t, 6, "failed", "")
	ok := l.number(t, "ok")
	cause := r.of("cause")[0]
	if ok < 20 || ok > 40 || cause.number(t, "connections") != 100-ok ||
		!strings.HasSuffix(cause.values["error"], tooMany) {
		t.Errorf("of 40 descriptors: %s", r.stdout)
	}
}

// TestPaused: a server without descriptors says so once, serves those clients that it has, and goes
// on when it can; and then it can say so again.
func TestPaused(t *testing.T) {
	t.Parallel()
	needProcess(t)
	p, port := startServer(t, limited(32))
	// The Go runtime wants a poller of its own as soon as it has a timer, say that of the garbage
	// collector, and ends the process if it cannot have one. So it has to be there by now.
	pollers := 0
	names, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.Process.Pid))
	for _, name := range names {
		target, _ := os.Readlink(name)
		if target == "anon_inode:[eventpoll]" {
			pollers++
		}
	}
	if pollers != 2 {
		t.Errorf("%d pollers: the Go runtime has yet to make its own", pollers)
	}
	for range 2 {
		clients := fill(t, p, port)
		said := p.pauses()
		for _, c := range clients[:15] {
			hello(c)
			flood(c, make([]byte, 1<<20)) // work for the garbage collector
		}
		time.Sleep(2500 * time.Millisecond) // two pauses more, and nothing new to say
		if p.pauses() != said {
			t.Fatalf("it says more than once that it has no descriptors: %s", p.stdout)
		}
		for _, c := range clients {
			c.Close()
		}
		runTo(t, port, "").want(t, 0, "ok", "")
	}
	r := p.endBySignal(t, syscall.SIGTERM)
	r.want(t, 0, "ended", "")
	r.of("paused")[0].wantValues(t, "at=127.0.0.1:"+port)
}

// ---- Memory ----

// TestServeMemory: an idle client costs a server little, whatever it has sent before, and many that
// do not read a small buffer each; and descriptors are given back.
func TestServeMemory(t *testing.T) {
	t.Parallel()
	needProcess(t)
	const bytes = 300_000
	stream := make([]byte, 32<<20)
	echoed := func(c *net.TCPConn) {
		go c.Write(stream[:bytes])
		io.CopyN(io.Discard, c, bytes)
	}
	p, port := startServer(t, nil)
	var clients []*net.TCPConn
	none := p.holds(t).descriptors
	has := func(n int) func() bool {
		return func() bool { return p.holds(t).descriptors == none+n }
	}
	for _, kind := range []struct {
		n, most int // kB for each
		play    script
	}{
		{1, 2000, echoed}, // the first one pays for all
		{200, 8, echoed},
		{30, 100, func(c *net.TCPConn) { flood(c, stream) }},
	} {
		before := p.holds(t)
		var plays sync.WaitGroup
		for range kind.n {
			c := dial(t, port)
			clients = append(clients, c)
			plays.Go(func() { kind.play(c) })
		}
		plays.Wait()
		eventually(t, "all are accepted", has(len(clients)))
		after := p.holds(t)
		if (after.memory-before.memory)/kind.n > kind.most {
			t.Errorf("%d clients more: %+v, %+v", kind.n, before, after)
		}
	}
	for _, c := range clients {
		c.Close()
	}
	eventually(t, "all descriptors are given back", has(0))
}

// TestMemory: memory does not depend on how much flows, in how many rounds and lines.
func TestMemory(t *testing.T) {
	needProcess(t)
	each(t, map[string]string{
		"size": "-size 1000G", "sizes": "-size 1M -count 0", "rounds": "-count 0",
		"lines": "-count 0 -every 1ns -q",
	}, func(t *testing.T, flags string) {
		_, port := startServer(t, nil)
		p := commandTo(t, port, flags).start(t)
		time.Sleep(2 * time.Second)
		held := p.holds(t)
		l := p.endBySignal(t, syscall.SIGINT).want(t, 130, "interrupted", "")
		if held.peak > 40<<10 || l.number(t, "returned") < 50 {
			t.Errorf("%+v: %s", held, l.text)
		}
	})
}

// ---- Standing still ----

// stop stops a process, and waits until it stands still.
func (p *process) stop(t testing.TB) {
	t.Helper()
	p.signal(t, syscall.SIGSTOP)
	eventually(t, "it stands still", func() bool {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Process.Pid))
		return strings.Contains(string(text), ") T ")
	})
}

// TestStopped: a process that stood still for longer than a limit looks first at what has arrived
// meanwhile. Here the peer does something while it does.
func TestStopped(t *testing.T) {
	needSignals(t)
	const silence = "timed out after 1s of silence "
	each(t, map[string]meeting{
		"all":          {echo(roundSize), "", 0, "", ""},
		"all, and end": {inOrder(echo(roundSize), halfCloses), "", 0, "", ""},
		"nothing":      {take(roundSize), "", 5, silence + "(0 of 12 bytes)", ""},
		"end": {inOrder(take(roundSize), halfCloses), "", 7,
			"closed early (0 of 12 bytes)", ""},
		"a part":   {change(roundSize, first5), "", 5, silence + "(5 of 12 bytes)", ""},
		"too much": {change(roundSize, twice), "", 1, "more came back than was sent", ""},
	}, func(t *testing.T, m meeting) {
		turn := make(chan bool)
		await := func(*net.TCPConn) { <-turn }
		pass := func(*net.TCPConn) { turn <- true }
		port := listen(t, "127.0.0.1:0", inOrder(await, m.peer, pass, ignores))
		p := commandTo(t, port, "-v -io-timeout 1s").start(t)
		p.await(t, p.stderr, "sent: ", 1)
		p.stop(t)
		turn <- true
		<-turn
		time.Sleep(1100 * time.Millisecond)
		p.signal(t, syscall.SIGCONT)
		m.want(t, p.end(t))
	})
}

// TestStoppedConnect: so it is with a connection that was made meanwhile, and one that was not.
func TestStoppedConnect(t *testing.T) {
	needSignals(t)
	each(t, map[string]meeting{
		"made":                {echoes, "", 0, "", ""},
		"made and reset":      {resets, "", 7, "connection reset by peer (0 of 12 bytes)", ""},
		"made, reset, enough": {resets, "-connect", 0, "", ""},
		"not":                 {nil, "", 4, "127.0.0.1: timed out", ""},
	}, func(t *testing.T, m meeting) {
		if strings.Contains(t.Name(), "reset") && !echomux(t).namesConnectErrors() {
			t.Skip("QEMU hands on the host's number for a reset")
		}
		listener := shortBacklog(t)
		port := portOf(listener.Addr())
		dial(t, port)
		began := time.Now()
		p := commandTo(t, port, "-v -connect-timeout 2s "+m.flags).start(t)
		p.await(t, p.stderr, "non-blocking", 1)
		p.stop(t)
		if m.peer != nil {
			serveOn(t, listener, m.peer) // the SYN is sent again after a second
		}
		time.Sleep(time.Until(began.Add(4 * time.Second)))
		p.signal(t, syscall.SIGCONT)
		m.want(t, p.end(t))
	})
}

// TestStoppedServer: what was reset in the backlog is no reason to pause, or to stop.
func TestStoppedServer(t *testing.T) {
	t.Parallel()
	needSignals(t)
	p, port := startServer(t, nil)
	p.stop(t)
	for range 50 {
		resets(dial(t, port))
	}
	p.signal(t, syscall.SIGCONT)
	runTo(t, port, "").want(t, 0, "ok", "")
	r := p.endBySignal(t, syscall.SIGTERM)
	r.want(t, 0, "ended", "")
	if len(r.of("paused")) > 0 {
		t.Errorf("it has paused: %s", r.stdout)
	}
}

// TestConnectTimeout: one without an answer ends in time, for one connection and for many.
func TestConnectTimeout(t *testing.T) {
	t.Parallel()
	port := fullBacklog(t)
	began := time.Now()
	runTo(t, port, "-connect-timeout 700ms").want(t, 4, "failed", "127.0.0.1: timed out").
		wantValues(t, "sent=0 connect_ms= peer=")
	if time.Since(began) < 700*time.Millisecond {
		t.Error("it has not waited")
	}
	r := runTo(t, port, "-connect -n 50 -connect-timeout 700ms")
	r.want(t, 4, "failed", "").wantValues(t, "connections=50 failed=50 ok=0")
	r.of("cause")[0].wantValues(t, "status=4 connections=50")
}

// ---- Standard streams ----

// TestSlowOutput: a reader of the lines that stops for longer than the limit is no silence of the
// peer's.
func TestSlowOutput(t *testing.T) {
	t.Parallel()
	needSignals(t)
	p, stdout, peer := startStuck(t) // with an I/O timeout of 1 s
	time.Sleep(1500 * time.Millisecond)
	go io.Copy(io.Discard, stdout)
	before := len(peer.bytes())
	eventually(t, "it goes on", func() bool {
		return len(peer.bytes()) > before+1000 || p.isOver()
	})
	if r := p.endBySignal(t, syscall.SIGTERM); r.status != 143 {
		t.Errorf("exit status %d", r.status)
	}
}

// TestFull: a line that cannot be written is a local failure, with a word on standard error. If
// its reader has gone, SIGPIPE ends the run, as it does everywhere.
func TestFull(t *testing.T) {
	needProcess(t)
	port := listen(t, "127.0.0.1:0", echoes)
	silent := listen(t, "127.0.0.1:0", ignores)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	must(t, err)
	t.Cleanup(func() { full.Close() })
	r, broken, err := os.Pipe()
	must(t, err)
	r.Close()
	t.Cleanup(func() { broken.Close() })
	each(t, map[string][]string{
		"one": {"127.0.0.1", port}, "JSON": {"-json", "127.0.0.1", port},
		"several": {"-n", "2", "127.0.0.1", port}, "server": {"-serve", "127.0.0.1", "0"},
		"rounds": {"-count", "0", "-every", "1ms", "127.0.0.1", port}, "recipe": {},
		"failed": {"-io-timeout", "100ms", "127.0.0.1", silent},
	}, func(t *testing.T, args []string) {
		p := command(t, nil, args...)
		p.Stdout = full
		r := p.start(t).end(t)
		if r.status != 6 || !strings.Contains(r.stderr, "no space left on device") {
			t.Errorf("/dev/full: exit status %d: %q", r.status, r.stderr)
		}
		p = command(t, nil, args...)
		p.Stdout = broken
		<-p.start(t).over
		status := p.ProcessState.Sys().(syscall.WaitStatus)
		if !status.Signaled() || status.Signal() != syscall.SIGPIPE {
			t.Errorf("a closed pipe: %v", p.ProcessState)
		}
	})
}

// TestClosedStreams: no socket becomes a standard stream that was closed at the start.
func TestClosedStreams(t *testing.T) {
	t.Parallel()
	needProcess(t) // Wine's own descriptors would take the places of the streams
	var peer recorder
	port := listen(t, "127.0.0.1:0", peer.play)
	for _, streams := range []string{"<&-", ">&-", "2>&-", "<&- >&- 2>&-"} {
		launcher := []string{"sh", "-c", `exec "$@" ` + streams, "sh"}
		r := command(t, launcher, "-v", "127.0.0.1", port, "x").start(t).end(t)
		if r.status != 0 {
			t.Errorf("%s: exit status %d: %q and %q", streams, r.status, r.stdout, r.stderr)
		}
	}
	if string(peer.bytes()) != strings.Repeat("x\n", 4) {
		t.Errorf("the peer has read %q", peer.bytes())
	}
}
