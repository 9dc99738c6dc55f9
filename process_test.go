package main

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// What only a whole process can show: signals, real standard streams, the server.

// process is echomux as a process of its own: the test binary, again.
type process struct {
	*exec.Cmd
	stdout, stderr *output
	over           chan struct{} // closed at its end
	stop           context.CancelFunc
}

// command is echomux with args, run by ECHOMUX_EXEC if that is set (an emulator), and by before it
// the words of launcher.
func command(t testing.TB, role string, launcher []string, args ...string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	words := append(append(launcher, strings.Fields(os.Getenv("ECHOMUX_EXEC"))...), self)
	words = append(words, args...)
	ctx, stop := context.WithTimeout(context.Background(), 2*hang)
	p := &process{exec.CommandContext(ctx, words[0], words[1:]...), new(output), new(output), make(chan struct{}), stop}
	p.Env = append(os.Environ(), "ECHOMUX_RUN="+role)
	p.Stdout, p.Stderr, p.WaitDelay = p.stdout, p.stderr, time.Second
	return p
}

// start starts it; the end of the test is the end of the process.
func (p *process) start(t testing.TB) *process {
	t.Helper()
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.Wait(); close(p.over) }()
	t.Cleanup(func() { p.stop(); <-p.over })
	return p
}

func (p *process) end(t testing.TB) result {
	t.Helper()
	select {
	case <-p.over:
		return result{p.ProcessState.ExitCode(), p.stdout.String(), p.stderr.String()}
	case <-time.After(hang):
		t.Fatalf("process %d does not end; so far %s", p.Process.Pid, tail(p.stderr.String()))
		panic("unreachable")
	}
}

func (p *process) signal(t testing.TB, s os.Signal) {
	t.Helper()
	if err := p.Process.Signal(s); err != nil {
		t.Fatalf("%v: %v", s, err)
	}
}

func needSignals(t testing.TB) {
	if runtime.GOOS == "windows" {
		t.Skip("no process can send another one a signal here")
	} else if signal.Ignored(os.Interrupt) {
		t.Skip("SIGINT is ignored here, and stays so in every child")
	}
}

// lastPort counts from anywhere, so that two runs of the tests at one time hardly meet.
var lastPort atomic.Int64

func init() { lastPort.Store(rand.Int64N(10_000)) }

// port0 is a port that is free in both families and no other test's. The kernel's own choice, once
// closed, could be the next test's before a process has started; it is never one of these.
func port0(t testing.TB) string {
	t.Helper()
	for range 100 {
		port := strconv.FormatInt(10_000+lastPort.Add(1)%10_000, 10)
		a, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err != nil {
			continue
		}
		b, err := net.Listen("tcp", net.JoinHostPort("::1", port))
		a.Close()
		if err == nil {
			b.Close()
			return port
		} else if !strings.Contains(err.Error(), "in use") {
			return port // no IPv6
		}
	}
	t.Fatal("no free port")
	return ""
}

// startServer is echomux -serve as a process that is ready.
func startServer(t testing.TB, flags ...string) (p *process, port string) {
	t.Helper()
	port = port0(t)
	p = command(t, "1", nil, append(append([]string{"-serve"}, flags...), port)...).start(t)
	eventually(t, func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			c.Close()
		}
		return err == nil
	}, func() string { return "the server does not listen: " + tail(p.stderr.String()) })
	return p, port
}

func dialServer(t testing.TB, host, port string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", net.JoinHostPort(host, port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(hang))
	return c.(*net.TCPConn)
}

func TestProcess(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "127.0.0.1:0", echoes)
	r := command(t, "1", nil, "127.0.0.1", port, "data1", "data2").start(t).end(t)
	r.want(t, 0, at, `echomux: A ok sent=12 returned=12 connect_ms=N exchange_ms=N`)
	r.wantStdout(t, "data1\ndata2\n")
	r = command(t, "1", nil, "127.0.0.1", "0", "data1").start(t).end(t)
	r.want(t, 2, at, `echomux: .*"0".*`)
	r = command(t, "1", nil).start(t).end(t)
	if r.status != 0 || r.stdout != "data1\ndata2\n" {
		t.Errorf("the demo: status %d, %q", r.status, r.stdout)
	}
}

// TestProcessPipes sends 8 MiB through real pipes, both ways.
func TestProcessPipes(t *testing.T) {
	t.Parallel()
	big := noise(8 << 20)
	at, port := serve(t, "127.0.0.1:0", echoes)
	p := command(t, "1", nil, "127.0.0.1", port)
	p.Stdin = bytes.NewReader(big)
	r := p.start(t).end(t)
	r.want(t, 0, at, `echomux: A ok sent=8388608 returned=8388608 .*`)
	r.wantStdout(t, string(big))
}

// TestProcessStdinFile: a file cannot be polled everywhere, but must be sent.
func TestProcessStdinFile(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "127.0.0.1:0", echoes)
	big := noise(3<<20 + 1)
	f, err := os.CreateTemp("", "input") // t.TempDir could not be removed under Wine
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(big); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, 0); err != nil {
		t.Fatal(err)
	}
	p := command(t, "1", nil, "127.0.0.1", port)
	p.Stdin = f
	r := p.start(t).end(t)
	r.want(t, 0, at, `echomux: A ok sent=3145729 returned=3145729 .*`)
	r.wantStdout(t, string(big))
}

// TestProcessClosedStdout: a reader of our output that has left is a local failure with a line, not
// a silent death by SIGPIPE.
func TestProcessClosedStdout(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "127.0.0.1:0", echoes)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	p := command(t, "1", nil, "127.0.0.1", port, "hello")
	p.Stdout = w
	p.start(t).end(t).want(t, 6, at, `echomux: standard output: .+ sent=6 returned=\d`)
}

// TestProcessStdinNotAwaited: the goroutine that waits for a user does not outlive the job.
func TestProcessStdinNotAwaited(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) { io.WriteString(c, "bye\n") })
	p := command(t, "1", nil, "-until", "eof", "127.0.0.1", port)
	stdin, err := p.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	r := p.start(t).end(t)
	r.want(t, 0, at, `echomux: A ok sent=0 returned=4 .*`)
	r.wantStdout(t, "bye\n")
}

// TestSignals: the first SIGINT or SIGTERM prints the line so far.
func TestSignals(t *testing.T) {
	t.Parallel()
	needSignals(t)
	at, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		io.CopyN(c, c, 3)
		ignores(c)
	})
	for _, test := range []struct {
		signal os.Signal
		status int
		args   string
		ready  string // in the log, before the signal
		line   string
	}{
		{os.Interrupt, 130, "-v 127.0.0.1 PORT hello", "recv: ", ` sent=6 returned=3 connect_ms=N`},
		{syscall.SIGTERM, 143, "-v 127.0.0.1 PORT hello", "recv: ", ` sent=6 returned=3 connect_ms=N`},
		{os.Interrupt, 130, "-v 127.0.0.1 PORT", "connected ", ` sent=0 returned=0 connect_ms=N`},
		{os.Interrupt, 130, "-v -count 0 -every 1h 127.0.0.1 PORT ab", "round=1", ` sent=3 returned=3 connect_ms=N rounds=1 rtt_ms=N/N/N`},
		{syscall.SIGTERM, 143, "-v -n 2 127.0.0.1 PORT hello", "#2 recv: ", ` ok=0 failed=0 sent=12 returned=\d connect_ms=N/N/N`},
	} {
		t.Run(test.signal.String()+" "+test.args, func(t *testing.T) {
			t.Parallel()
			p := command(t, "1", nil, strings.Fields(strings.Replace(test.args, "PORT", port, 1))...)
			stdin, err := p.StdinPipe() // a user who types nothing
			if err != nil {
				t.Fatal(err)
			}
			defer stdin.Close()
			p.start(t)
			p.stderr.await(t, test.ready, 1)
			p.signal(t, test.signal)
			r := p.end(t)
			r.stderr = r.lastLine() + "\n"
			r.want(t, test.status, at, `echomux: A interrupted`+test.line)
		})
	}
}

// TestIgnoredSignal: under nohup, or in a shell's background, SIGINT was ignored and stays so.
func TestIgnoredSignal(t *testing.T) {
	t.Parallel()
	needSignals(t)
	_, port := serve(t, "127.0.0.1:0", ignores)
	p := command(t, "1", []string{"sh", "-c", `trap "" INT; exec "$@"`, "sh"}, "-v", "127.0.0.1", port, "hello").start(t)
	p.stderr.await(t, "sent: ", 1)
	p.signal(t, os.Interrupt)
	select {
	case <-p.over:
		t.Fatalf("it ended: %q", p.stderr)
	case <-time.After(500 * time.Millisecond):
	}
	p.signal(t, syscall.SIGTERM)
	if r := p.end(t); r.status != 143 {
		t.Errorf("status %d: %q", r.status, r.stderr)
	}
}

// TestSecondSignal: while the loop is stuck in a write that nobody reads, the first signal waits for
// it; the second one ends the process at once.
func TestSecondSignal(t *testing.T) {
	t.Parallel()
	needSignals(t)
	_, port := serve(t, "127.0.0.1:0", echoes)
	unread, stdout, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer unread.Close()
	p := command(t, "1", nil, "-v", "127.0.0.1", port)
	p.Stdin, p.Stdout = bytes.NewReader(make([]byte, 8<<20)), stdout
	p.start(t)
	stdout.Close()
	for last := -1; ; time.Sleep(500 * time.Millisecond) { // until it is stuck
		now := len(p.stderr.String())
		if now == last && now > 0 {
			break
		}
		last = now
	}
	p.signal(t, syscall.SIGTERM)
	select {
	case <-p.over:
		t.Fatalf("it ended although its output was not taken: %s", tail(p.stderr.String()))
	case <-time.After(300 * time.Millisecond):
	}
	p.signal(t, syscall.SIGTERM)
	if r := p.end(t); r.status != 143 {
		t.Errorf("status %d: %q", r.status, r.lastLine())
	}
}

// TestServe: package net's client against the server, in both families.
func TestServe(t *testing.T) {
	t.Parallel()
	_, port := startServer(t)
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			if l, err := net.Listen("tcp", net.JoinHostPort(host, "0")); err != nil {
				t.Skipf("no such family here: %v", err)
			} else {
				l.Close()
			}
			c := dialServer(t, host, port)
			io.WriteString(c, "hello")
			got := make([]byte, 5)
			if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
				t.Fatalf("%q came back, %v", got, err)
			}
			// After a half-close all that is on its way comes back, then EOF, not a reset.
			big := noise(4 << 20)
			go func() {
				c.Write(big)
				c.CloseWrite()
			}()
			all, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(all, big) {
				t.Errorf("%d of %d bytes came back, %v", len(all), len(big), err)
			}
		})
	}
	r := echomux(t, nil, "-n", "100", "-count", "3", "127.0.0.1", port, "hello")
	r.want(t, 0, "127.0.0.1:"+port, `echomux: A ok=100 failed=0 .* rounds=300 .*`)
}

// TestServeOneAddress: -serve HOST PORT listens there and nowhere else.
func TestServeOneAddress(t *testing.T) {
	t.Parallel()
	port := port0(t)
	p := command(t, "1", nil, "-v", "-serve", "127.0.0.1", port).start(t)
	p.stderr.await(t, "listening on 127.0.0.1:"+port, 1)
	c := dialServer(t, "127.0.0.1", port)
	io.WriteString(c, "x")
	if n, err := c.Read(make([]byte, 2)); n != 1 {
		t.Errorf("%d bytes came back, %v", n, err)
	}
	if c, err := net.Dial("tcp", "[::1]:"+port); err == nil {
		c.Close()
		t.Error("it listens on ::1 too")
	}
}

// TestServeStoppedReader: a client that stops reading stops only itself, and loses nothing.
func TestServeStoppedReader(t *testing.T) {
	t.Parallel()
	_, port := startServer(t)
	stopped := dialServer(t, "127.0.0.1", port)
	chunk, sent := noise(1<<20), 0
	for stuck := false; !stuck && sent < 256<<20; {
		stopped.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		n, err := stopped.Write(chunk[sent%len(chunk):])
		sent, stuck = sent+n, err != nil
	}
	r := echomux(t, bytes.NewReader(noise(3<<20)), "127.0.0.1", port)
	r.want(t, 0, "127.0.0.1:"+port, `echomux: A ok sent=3145728 returned=3145728 .*`)
	stopped.CloseWrite()
	got := 0
	for buf := make([]byte, 64<<10); ; {
		n, err := stopped.Read(buf)
		for p := buf[:n]; len(p) > 0; {
			want := chunk[got%len(chunk):]
			m := min(len(p), len(want))
			if !bytes.Equal(p[:m], want[:m]) {
				t.Fatalf("other bytes after %d", got)
			}
			got, p = got+m, p[m:]
		}
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if got != sent {
		t.Errorf("%d of %d bytes came back", got, sent)
	}
}

// TestServeBadClients: one that resets and one that leaves with its echo unread end only themselves.
func TestServeBadClients(t *testing.T) {
	t.Parallel()
	p, port := startServer(t, "-v")
	for range 20 {
		c := dialServer(t, "127.0.0.1", port)
		c.Write(make([]byte, 1<<20))
		resets(c)
		c = dialServer(t, "127.0.0.1", port)
		c.Write(make([]byte, 100))
		c.Close()
	}
	echomux(t, nil, "127.0.0.1", port, "hello").want(t, 0, "127.0.0.1:"+port, `echomux: A ok .*`)
	faulty(t, "wine", "accept does not give what was reset in the backlog")
	p.stderr.await(t, "accepted", 42) // one was startServer's, one the good one
	p.stderr.await(t, "closed", 42)
}

// TestServeInUse: a port that is taken is a local failure that names it.
func TestServeInUse(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "127.0.0.1:0", echoes)
	r := echomux(t, nil, "-serve", "127.0.0.1", port)
	r.want(t, 6, at, `echomux: listen A: .+`)
}

// TestServeSignals: the server ends by a signal, with one line.
func TestServeSignals(t *testing.T) {
	t.Parallel()
	needSignals(t)
	for s, status := range map[os.Signal]int{os.Interrupt: 130, syscall.SIGTERM: 143} {
		p, port := startServer(t)
		for i, until := range []string{"eof", "echo"} {
			echomux(t, nil, "-until", until, "127.0.0.1", port, strings.Repeat("x", 999+i)).want(t, 0, "127.0.0.1:"+port, `echomux: A ok .*`)
		}
		open := dialServer(t, "127.0.0.1", port)
		io.WriteString(open, "x")
		open.Read(make([]byte, 1))
		p.signal(t, s)
		r := p.end(t) // the probe of startServer may be counted or not
		r.want(t, status, "", `echomux: .*:`+port+`.* interrupted ok=[23] failed=0 received=2002 returned=2002`)
	}
}

// TestPID: the number in the log is the process's.
func TestPID(t *testing.T) {
	t.Parallel()
	if os.Getenv("ECHOMUX_EXEC") != "" {
		t.Skip("the emulator's number may be another")
	}
	p := command(t, "1", nil).start(t)
	r := p.end(t)
	if !regexp.MustCompile(`^\[echomux \(` + strconv.Itoa(p.Process.Pid) + `\)\] `).MatchString(r.stderr) {
		t.Errorf("process %d logs %q", p.Process.Pid, r.stderr)
	}
}
