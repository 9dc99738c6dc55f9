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
	args   []string // of echomux
	stdout *output
	stderr *output
	over   chan struct{} // closed at its end
	stop   context.CancelFunc
}

// dieWithParent makes a command end with the process that starts it, where the system can do that.
var dieWithParent = func(*exec.Cmd) {}

// command is echomux with args, run by ECHOMUX_EXEC if that is set (an emulator), and by before it
// the words of launcher. It ends with its test; or much later, where something else has gone wrong.
func command(t testing.TB, role string, launcher []string, args ...string) *process {
	t.Helper()
	return commandFor(t, 10*hang, role, launcher, args...)
}

// commandFor is command for a process that may take that long.
func commandFor(
	t testing.TB, limit time.Duration, role string, launcher []string, args ...string,
) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	words = append(words, launcher...)
	program := strings.Fields(os.Getenv("ECHOMUX_PROGRAM"))
	if role != "1" || len(program) == 0 {
		program = append(strings.Fields(os.Getenv("ECHOMUX_EXEC")), self)
	}
	words = append(words, program...)
	words = append(words, args...)
	ctx, stop := context.WithTimeout(context.Background(), limit)
	p := &process{
		Cmd:    exec.CommandContext(ctx, words[0], words[1:]...),
		args:   args,
		stdout: new(output),
		stderr: new(output),
		over:   make(chan struct{}),
		stop:   stop,
	}
	p.Env = append(os.Environ(), "ECHOMUX_RUN="+role)
	p.Stdout = p.stdout
	p.Stderr = p.stderr
	p.WaitDelay = hang / 2 // for what was written to be read, on a busy machine
	dieWithParent(p.Cmd)
	return p
}

// start starts it; the end of the test is the end of the process.
func (p *process) start(t testing.TB) *process {
	t.Helper()
	err := p.Start()
	if err != nil {
		t.Fatal(err)
	}
	p.reap(t)
	return p
}

// reap waits for the end of a process that was started.
func (p *process) reap(t testing.TB) {
	go func() {
		p.Wait()
		close(p.over)
	}()
	t.Cleanup(func() {
		p.stop()
		<-p.over
	})
}

// end waits for it, and takes its lines apart.
func (p *process) end(t testing.TB) result {
	t.Helper()
	select {
	case <-p.over:
		status := p.ProcessState.ExitCode()
		return newResult(t, p.args, status, p.stdout.String(), p.stderr.String())
	case <-time.After(hang):
		t.Fatalf("process %d does not end; so far %s", p.Process.Pid, tail(p.stderr.String()))
		panic("unreachable")
	}
}

func (p *process) signal(t testing.TB, s os.Signal) {
	t.Helper()
	err := p.Process.Signal(s)
	if err != nil {
		t.Fatalf("%v: %v", s, err)
	}
}

// goesOn fails if it ends within d.
func (p *process) goesOn(t testing.TB, d time.Duration) {
	t.Helper()
	select {
	case <-p.over:
		t.Fatalf("%v, and it should have gone on: %s", p.ProcessState, tail(p.stderr.String()))
	case <-time.After(d):
	}
}

// typed gives it a standard input that the test types into.
func (p *process) typed(t testing.TB) io.WriteCloser {
	t.Helper()
	stdin, err := p.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close() })
	return stdin
}

func needSignals(t testing.TB) {
	if runtime.GOOS == "windows" {
		t.Skip("no process can send another one a signal here")
	}
	if signal.Ignored(os.Interrupt) {
		t.Skip("SIGINT is ignored here, and stays so in every child")
	}
}

// lastPort counts from anywhere, so that two runs of the tests at one time hardly meet.
var lastPort atomic.Int64

func init() { lastPort.Store(rand.Int64N(10_000)) }

// closeAlone closes l while no child of another test has it too, from its fork to its exec.
func closeAlone(l net.Listener) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	l.Close()
}

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
		closeAlone(a)
		if err == nil {
			closeAlone(b)
			return port
		}
		if !strings.Contains(err.Error(), "in use") {
			return port // no IPv6
		}
	}
	t.Fatal("no free port")
	return ""
}

// startServer is echomux -serve on loopback as a process that is ready, at a port that the kernel
// chose.
func startServer(t testing.TB, flags ...string) (p *process, port string) {
	t.Helper()
	return startServerBy(t, nil, flags...)
}

// startServerBy is startServer by a launcher.
func startServerBy(t testing.TB, launcher []string, flags ...string) (p *process, port string) {
	t.Helper()
	args := append(append([]string{"-serve"}, flags...), "127.0.0.1", "0")
	p = command(t, "1", launcher, args...).start(t)
	return p, p.listening(t)[0].port()
}

// place is where a server listens.
type place string

// port is the part behind the last colon.
func (at place) port() string { return string(at[strings.LastIndex(string(at), ":")+1:]) }

// listening waits until a server says where it can be reached.
func (p *process) listening(t testing.TB) (places []place) {
	t.Helper()
	p.stderr.await(t, " listening at=", 1)
	for line := range strings.Lines(p.stderr.String()) {
		l, err := parseLine(strings.TrimSuffix(line, "\n"))
		if err == nil && l.word == "listening" {
			places = append(places, place(l.place))
		}
	}
	if len(places) == 0 {
		t.Fatalf("no line says where it listens: %s", tail(p.stderr.String()))
	}
	return places
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

const (
	oneKeys   = "sent returned connect_ms exchange_ms ..."
	manyKeys  = "connections ok failures unfinished sent returned ..."
	wholeHere = "sent=6 returned=6 connect_ms exchange_ms peer=127.0.0.1:*" // of "hello\n"
)

func TestProcess(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", echoes)
	r := command(t, "1", nil, "127.0.0.1", port, "data1", "data2").start(t).end(t)
	r.wantLine(t, 0, "ok", "sent=12 returned=12 connect_ms exchange_ms peer=127.0.0.1:"+port, "")
	r.wantStdout(t, "data1\ndata2\n")
	r = command(t, "1", nil, "127.0.0.1", "0", "data1").start(t).end(t)
	if r.status != 2 {
		t.Errorf("PORT 0: status %d", r.status)
	}
	r = command(t, "1", nil).start(t).end(t)
	r.wantStdout(t, "data1\ndata2\n")
	if r.status != 0 {
		t.Errorf("the demo: status %d, %s", r.status, tail(r.stderr))
	}
}

// TestProcessPipes sends 8 MiB through real pipes, both ways.
func TestProcessPipes(t *testing.T) {
	t.Parallel()
	big := noise(8 << 20)
	_, port := serve(t, "127.0.0.1:0", echoes)
	p := command(t, "1", nil, "127.0.0.1", port)
	p.Stdin = bytes.NewReader(big)
	r := p.start(t).end(t)
	r.wantLine(t, 0, "ok", "sent=8388608 returned=8388608 connect_ms exchange_ms mbit_s ...", "")
	r.wantStdout(t, string(big))
}

// TestProcessStdinFile: a file cannot be polled everywhere, but must be sent.
func TestProcessStdinFile(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", echoes)
	big := noise(3<<20 + 1)
	f, err := os.CreateTemp("", "input") // t.TempDir could not be removed under Wine
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	_, err = f.Write(big)
	if err == nil {
		_, err = f.Seek(0, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	p := command(t, "1", nil, "127.0.0.1", port)
	p.Stdin = f
	r := p.start(t).end(t)
	r.wantLine(t, 0, "ok", "sent=3145729 returned=3145729 connect_ms exchange_ms mbit_s ...", "")
	r.wantStdout(t, string(big))
}

// TestProcessClosedStdout: a reader of our output that has left is a local failure with a line, not
// a silent death by SIGPIPE.
func TestProcessClosedStdout(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", echoes)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	p := command(t, "1", nil, "127.0.0.1", port, "hello")
	p.Stdout = w
	p.start(t).end(t).wantLine(t, 6, "failed", "sent=6 returned=6 connect_ms exchange_ms ...",
		"standard output: nobody reads it any more")
}

// TestProcessClosedStderr: a reader of the lines that has left changes nothing else.
func TestProcessClosedStderr(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", echoes)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	p := command(t, "1", nil, "-v", "-count", "3", "-every", "1ms", "127.0.0.1", port, "hello")
	p.Stderr = w
	p.start(t)
	<-p.over
	if p.ProcessState.ExitCode() != 0 || p.stdout.String() != strings.Repeat("hello\n", 3) {
		t.Errorf("%v, standard output %q", p.ProcessState, p.stdout)
	}
}

// TestProcessStdinNotAwaited: the goroutine that waits for a user does not outlive the job. The
// peer's end is not the user's, so that takes as long as standard input may be silent.
func TestProcessStdinNotAwaited(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) { io.WriteString(c, "bye\n") })
	p := command(t, "1", nil, "-until", "eof", "-io-timeout", "300ms", "127.0.0.1", port)
	p.typed(t)
	r := p.start(t).end(t)
	r.wantLine(t, 1, "failed", "sent=0 returned=4 ...", "standard input was not at its end")
	r.wantStdout(t, "bye\n")
}

var signals = []struct {
	signal os.Signal
	status int
}{
	{os.Interrupt, 130},
	{syscall.SIGTERM, 143},
	{syscall.SIGHUP, 129},
}

// TestSignals: the first signal prints the line so far.
func TestSignals(t *testing.T) {
	t.Parallel()
	needSignals(t)
	_, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		returns(c, 3)
		ignores(c)
	})
	const one = "connect_ms exchange_ms peer=127.0.0.1:*"
	for _, test := range []struct {
		args  string
		ready string // in the log, before the signal
		keys  string
	}{
		{"-v 127.0.0.1 PORT hello", "recv: ", "sent=6 returned=3 " + one},
		{"-v 127.0.0.1 PORT", "connected ", "sent=0 returned=0 connect_ms exchange_ms mbit_s peer"},
		{"-v -count 0 -every 1h 127.0.0.1 PORT ab", "round=1",
			"sent=3 returned=3 connect_ms rounds=1 rtt_ms peer"},
		{"-v -n 2 127.0.0.1 PORT hello", "#2 recv: ",
			"connections=2 ok=0 failures=0 unfinished=2 sent=12 returned=* connect_ms"},
	} {
		for _, s := range signals {
			t.Run(s.signal.String()+" "+test.args, func(t *testing.T) {
				t.Parallel()
				args := strings.Replace(test.args, "PORT", port, 1)
				p := command(t, "1", nil, strings.Fields(args)...)
				p.typed(t)
				p.start(t)
				p.stderr.await(t, test.ready, 1)
				p.signal(t, s.signal)
				p.end(t).wantLine(t, s.status, "interrupted", test.keys, "")
			})
		}
	}
}

// TestIgnoredSignal: under nohup, or in a shell's background, a signal was ignored and stays so.
func TestIgnoredSignal(t *testing.T) {
	t.Parallel()
	needSignals(t)
	_, port := serve(t, "127.0.0.1:0", ignores)
	for name, ignored := range map[string]os.Signal{"INT": os.Interrupt, "HUP": syscall.SIGHUP} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			launcher := []string{"sh", "-c", `trap "" ` + name + `; exec "$@"`, "sh"}
			p := command(t, "1", launcher, "-v", "127.0.0.1", port, "hello").start(t)
			p.stderr.await(t, "sent: ", 1)
			p.signal(t, ignored)
			p.goesOn(t, 700*time.Millisecond)
			p.signal(t, syscall.SIGTERM)
			p.end(t).wantLine(t, 143, "interrupted", "sent=6 returned=0 ...", "")
		})
	}
}

// TestServe: package net's client against the server, in both families.
func TestServe(t *testing.T) {
	t.Parallel()
	p := command(t, "1", nil, "-serve", "0").start(t)
	places := p.listening(t)
	port := places[0].port()
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
			if err != nil {
				t.Skipf("no such family here: %v", err)
			}
			l.Close()
			c := dialServer(t, host, port)
			io.WriteString(c, "hello")
			got := make([]byte, 5)
			_, err = io.ReadFull(c, got)
			if err != nil || string(got) != "hello" {
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
	r.wantLine(t, 0, "ok", "connections=100 ok=100 failures=0 unfinished=0 sent=1800 "+
		"returned=1800 connect_ms rounds=300 rtt_ms", "")
}

// TestServeOneAddress: -serve HOST PORT listens there and nowhere else.
func TestServeOneAddress(t *testing.T) {
	t.Parallel()
	p, port := startServer(t)
	places := p.listening(t)
	if len(places) != 1 || string(places[0]) != "127.0.0.1:"+port {
		t.Errorf("it listens at %v", places)
	}
	c := dialServer(t, "127.0.0.1", port)
	io.WriteString(c, "x")
	n, err := c.Read(make([]byte, 2))
	if n != 1 {
		t.Errorf("%d bytes came back, %v", n, err)
	}
	other, err := net.Dial("tcp", "[::1]:"+port)
	if err == nil {
		other.Close()
		t.Error("it listens on ::1 too")
	}
}

// TestServeStoppedReader: a client that stops reading stops only itself, and loses nothing.
func TestServeStoppedReader(t *testing.T) {
	t.Parallel()
	_, port := startServer(t)
	stopped := dialServer(t, "127.0.0.1", port)
	chunk := noise(1 << 20)
	sent := 0
	for sent < 256<<20 {
		stopped.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		n, err := stopped.Write(chunk[sent%len(chunk):])
		sent += n
		if err != nil {
			break // stuck
		}
	}
	r := echomux(t, bytes.NewReader(noise(3<<20)), "127.0.0.1", port)
	r.wantLine(t, 0, "ok", "sent=3145728 returned=3145728 ...", "")
	stopped.CloseWrite()
	got := 0
	buf := make([]byte, 64<<10)
	for {
		n, err := stopped.Read(buf)
		for p := buf[:n]; len(p) > 0; {
			want := chunk[got%len(chunk):]
			m := min(len(p), len(want))
			if !bytes.Equal(p[:m], want[:m]) {
				t.Fatalf("other bytes after %d", got)
			}
			got += m
			p = p[m:]
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if got != sent {
		t.Errorf("%d of %d bytes came back", got, sent)
	}
}

// TestServeBadClients: one that resets and one that leaves with its echo unread end only
// themselves, and the last line counts those that went without their FIN.
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
	echomux(t, nil, "127.0.0.1", port, "hello").wantLine(t, 0, "ok", wholeHere, "")
	faulty(t, "wine", "accept does not give what was reset in the backlog")
	p.stderr.await(t, "server: accepted", 41)
	p.stderr.await(t, "server: closed", 41)
	needSignals(t)
	p.signal(t, syscall.SIGTERM)
	r := p.end(t)
	r.wantLine(t, 0, "ended", "clients=41 failures received returned", "")
	last := r.line(t)
	n := last.count("failures")
	if n < 20 || n > 40 {
		t.Errorf("%d of 20 resets, and 20 more that are resets if the echo was faster", n)
	}
}

// TestServeInUse: a port that is taken is a local failure that names it.
func TestServeInUse(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "127.0.0.1:0", echoes)
	r := echomux(t, nil, "-serve", "127.0.0.1", port)
	r.wantLine(t, 6, "failed", "", "listen "+at+": *")
}

// TestServeSignals: a server that listens was a success, whichever signal ends it.
func TestServeSignals(t *testing.T) {
	t.Parallel()
	needSignals(t)
	for _, s := range signals {
		for _, quiet := range []bool{false, true} {
			p, port := startServer(t)
			if quiet {
				port = port0(t)
				p = command(t, "1", nil, "-q", "-serve", "127.0.0.1", port).start(t)
				awaitListener(t, port)
			}
			for i, until := range []string{"eof", "echo"} {
				message := strings.Repeat("x", 999+i)
				r := echomux(t, nil, "-until", until, "127.0.0.1", port, message)
				r.wantLine(t, 0, "ok", oneKeys, "")
			}
			open := dialServer(t, "127.0.0.1", port)
			io.WriteString(open, "x")
			open.Read(make([]byte, 1))
			p.signal(t, s.signal)
			r := p.end(t)
			if quiet {
				r.wantQuiet(t)
				continue
			}
			r.wantLine(t, 0, "ended", "clients=3 failures=0 received=2002 returned=2002", "")
			r.wantLines(t, 2)
		}
	}
}

// awaitListener waits until somebody listens at that port of 127.0.0.1.
func awaitListener(t testing.TB, port string) {
	t.Helper()
	eventually(t, func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			c.Close()
		}
		return err == nil
	}, func() string { return "nobody listens" })
}

// TestServeAgain: a server that was just ended, with connections in TIME_WAIT, can be started again
// at once.
func TestServeAgain(t *testing.T) {
	t.Parallel()
	needSignals(t)
	port := port0(t)
	for range 3 {
		p := command(t, "1", nil, "-serve", "127.0.0.1", port).start(t)
		p.listening(t)
		c := dialServer(t, "127.0.0.1", port)
		io.WriteString(c, "x")
		c.Read(make([]byte, 1))
		p.signal(t, syscall.SIGTERM) // it closes first, and TIME_WAIT is on its side
		p.end(t).wantLine(t, 0, "ended", "clients=1 failures=0 received=1 returned=1", "")
		c.Close()
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
	form := regexp.MustCompile(`^\[echomux \(` + strconv.Itoa(p.Process.Pid) + `\)\] `)
	if !form.MatchString(r.stderr) {
		t.Errorf("process %d logs %q", p.Process.Pid, r.stderr)
	}
}
