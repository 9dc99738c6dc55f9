package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A signal ends a run within half a second, whatever it is stuck in.

// signalMost is generous: the limit is half a second, and then a process has to end.
const signalMost = 2 * time.Second

// endBySignal sends a signal, and wants that status soon. It returns how long it took.
func (p *process) endBySignal(t testing.TB, s os.Signal, status int) time.Duration {
	t.Helper()
	start := time.Now()
	p.signal(t, s)
	select {
	case <-p.over:
	case <-time.After(hang):
		t.Fatalf("%v does not end it", s)
	}
	took := time.Since(start)
	wantWithin(t, fmt.Sprintf("%v ends it", s), took, signalMost)
	got := p.ProcessState.ExitCode()
	if got != status {
		t.Errorf("%v: status %d, want %d: %s", s, got, status, tail(p.stderr.String()))
	}
	return took
}

// interruptions counts runs that a signal has ended. On a busy machine half a second can be too
// short for the last line, and the limit comes first; but not every time.
type interruptions struct {
	runs, lines int
	longest     time.Duration
}

// want ends p by a signal, and wants the line so far.
func (i *interruptions) want(t testing.TB, p *process, s os.Signal, status int, keys string) {
	t.Helper()
	took := p.endBySignal(t, s, status)
	i.runs++
	i.longest = max(i.longest, took)
	r := p.end(t)
	if len(r.lines) == 0 && took > 400*time.Millisecond {
		t.Logf("no line in %v", took)
		return
	}
	i.lines++
	r.wantLine(t, status, "interrupted", keys, "")
}

// wantLines wants that most of them had a line.
func (i *interruptions) wantLines(t testing.TB) {
	t.Helper()
	t.Logf("of %d runs %d had their line; the longest took %v", i.runs, i.lines, i.longest)
	if i.runs > 2*i.lines {
		t.Errorf("of %d runs %d had their line", i.runs, i.lines)
	}
}

// awaitCall waits until a thread of p stays in a system call with that first argument, as
// proc_pid_syscall(5) tells.
func (p *process) awaitCall(t testing.TB, number int, first int32) {
	t.Helper()
	call := fmt.Sprintf("%d %#x ", number, uint64(int64(first)))
	short := fmt.Sprintf("%d %#x ", number, uint32(first)) // what has 32 bits can be shown so
	seen := map[string]int{}
	eventually(t, func() bool {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", p.Process.Pid))
		for _, task := range tasks {
			text, err := os.ReadFile(task)
			if os.IsPermission(err) {
				t.Skip(err)
			}
			if strings.HasPrefix(string(text), call) || strings.HasPrefix(string(text), short) {
				seen[task]++
			} else {
				seen[task] = 0
			}
			if seen[task] > 10 {
				return true
			}
		}
		return false
	}, func() string {
		return fmt.Sprintf("no thread stays in %s: %s", call, tail(p.stderr.String()))
	})
}

// stuckInOutput is a run whose standard output nobody reads.
func stuckInOutput(t testing.TB, flags ...string) *process {
	t.Helper()
	_, port := serve(t, "127.0.0.1:0", echoes)
	p := command(t, "1", nil, append(flags, "127.0.0.1", port)...)
	_, w := fullPipe(t)
	p.Stdin = bytes.NewReader(make([]byte, 8<<20))
	p.Stdout = w
	p.start(t)
	w.Close()
	p.awaitCall(t, unix.SYS_WRITE, 1)
	return p
}

// TestSignalStuckOutput: a standard output that nobody reads blocks the loop, and the line so far
// is printed all the same.
func TestSignalStuckOutput(t *testing.T) {
	t.Parallel()
	faultRig(t)
	needSignals(t)
	for _, s := range signals {
		t.Run(s.signal.String(), func(t *testing.T) {
			t.Parallel()
			var cut interruptions
			again(t, func(t *testing.T) {
				cut.want(t, stuckInOutput(t), s.signal, s.status, "sent returned connect_ms ...")
			})
			cut.wantLines(t)
		})
	}
}

// TestSignalStuckLines: where not even the line can be written, the process ends all the same.
func TestSignalStuckLines(t *testing.T) {
	t.Parallel()
	faultRig(t)
	needSignals(t)
	_, port := serve(t, "127.0.0.1:0", echoes)
	for args, status := range map[string]int{
		"-v 127.0.0.1 " + port + " hello": 143,
		"-v -serve 127.0.0.1 0":           0, // as far as anybody can tell it listens
	} {
		again(t, func(t *testing.T) {
			p := command(t, "1", nil, strings.Fields(args)...)
			_, w := fullPipe(t)
			p.Stderr = w
			p.start(t)
			w.Close()
			p.awaitCall(t, unix.SYS_WRITE, 2)
			p.endBySignal(t, syscall.SIGTERM, status)
		})
	}
}

// TestSignalStuckLookup: so does a look-up that hangs, and a time limit is one of the loop's.
func TestSignalStuckLookup(t *testing.T) {
	if !faultSpace(t) {
		return
	}
	faultHang(t, "/etc/hosts")
	for _, s := range signals {
		t.Run(s.signal.String(), func(t *testing.T) {
			t.Parallel()
			var cut interruptions
			again(t, func(t *testing.T) {
				p := command(t, "1", nil, "-connect-timeout", "1h", "a.test", "7", "hello").start(t)
				p.awaitCall(t, unix.SYS_OPENAT, unix.AT_FDCWD)
				cut.want(t, p, s.signal, s.status, "sent=0 returned=0")
			})
			cut.wantLines(t)
		})
	}
	t.Run("-serve", func(t *testing.T) {
		t.Parallel()
		p := command(t, "1", nil, "-serve", "-connect-timeout", "1h", "a.test", "7").start(t)
		p.awaitCall(t, unix.SYS_OPENAT, unix.AT_FDCWD)
		p.endBySignal(t, syscall.SIGTERM, 143)
		p.end(t).wantLine(t, 143, "interrupted", "", "")
	})
	t.Run("timeout", func(t *testing.T) {
		t.Parallel()
		again(t, func(t *testing.T) {
			start := time.Now()
			p := command(t, "1", nil, "-connect-timeout", "1s", "a.test", "7", "hello").start(t)
			r := p.end(t)
			took := time.Since(start)
			r.wantLine(t, 4, "failed", "sent=0 returned=0", "lookup a.test: timed out")
			if took < time.Second {
				t.Errorf("it took %v", took)
			}
			wantWithin(t, "a connect timeout of 1s", took, 4*time.Second)
		})
	})
}

// TestSignalStuckInput: and a standard input that has to be known as a whole, and does not end.
func TestSignalStuckInput(t *testing.T) {
	t.Parallel()
	faultRig(t)
	needSignals(t)
	_, port := serve(t, "127.0.0.1:0", echoes)
	for flag, keys := range map[string]string{
		"-n":     "connections=2 ok=0 failures=0 unfinished=2 sent=0 returned=0",
		"-count": "sent=0 returned=0 rounds=0",
	} {
		for _, s := range signals {
			t.Run(flag+" "+s.signal.String(), func(t *testing.T) {
				t.Parallel()
				p := command(t, "1", nil, flag, "2", "127.0.0.1", port)
				io.WriteString(p.typed(t), "hello\n")
				p.start(t)
				p.awaitCall(t, unix.SYS_READ, 0)
				new(interruptions).want(t, p, s.signal, s.status, keys)
			})
		}
	}
}

// TestSignalFirst: the first signal decides, and later ones do nothing. While the run is stuck
// there is time for them. (Of signals that come at once Go tells no order.)
func TestSignalFirst(t *testing.T) {
	t.Parallel()
	faultRig(t)
	needSignals(t)
	if overloaded() {
		t.Skip("on this busy machine a signal is not heard before the next one comes")
	}
	var cut interruptions
	again(t, func(t *testing.T) {
		for i, s := range signals {
			p := stuckInOutput(t)
			go func() {
				time.Sleep(100 * time.Millisecond) // the first has been heard by then
				for range 3 {
					p.Process.Signal(signals[(i+1)%len(signals)].signal)
					p.Process.Signal(signals[(i+2)%len(signals)].signal)
				}
			}()
			cut.want(t, p, s.signal, s.status, "sent returned connect_ms ...")
		}
	})
	cut.wantLines(t)
}

// TestSignalTimeout: timeout(1) signals a process and then its group, and the last line is not
// lost.
func TestSignalTimeout(t *testing.T) {
	t.Parallel()
	faultRig(t)
	needSignals(t)
	timeout, err := exec.LookPath("timeout")
	if err != nil {
		t.Skip(err)
	}
	_, port := serve(t, "127.0.0.1:0", echoes)
	for _, s := range []struct {
		name   string
		status int
	}{{"TERM", 143}, {"INT", 130}, {"HUP", 129}} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			ran := 0
			again(t, func(t *testing.T) {
				launcher := []string{timeout, "--preserve-status", "-s", s.name, "2"}
				args := []string{"-v", "-count", "0", "-every", "100ms", "127.0.0.1", port, "hello"}
				r := command(t, "1", launcher, args...).start(t).end(t)
				if !strings.Contains(r.stderr, " round=1 ") {
					t.Skip("on this busy machine it was not under way in time")
				}
				ran++
				r.wantLine(t, s.status, "interrupted",
					"sent returned connect_ms rounds rtt_ms peer", "")
			})
			t.Logf("%d runs had their line", ran)
		})
	}
}

// TestSignalNohup: what nohup(1) ignores stays ignored.
func TestSignalNohup(t *testing.T) {
	t.Parallel()
	faultRig(t)
	needSignals(t)
	nohup, err := exec.LookPath("nohup")
	if err != nil {
		t.Skip(err)
	}
	_, port := serve(t, "127.0.0.1:0", echoes)
	args := []string{"-count", "0", "-every", "50ms", "127.0.0.1", port, "hello"}
	p := command(t, "1", []string{nohup}, args...).start(t)
	p.stderr.await(t, "round=2 ", 1)
	p.signal(t, syscall.SIGHUP)
	rounds := strings.Count(p.stderr.String(), " round=")
	p.stderr.await(t, " round=", rounds+20)
	p.endBySignal(t, syscall.SIGTERM, 143)
}

// TestSignalDraining: a run that has its verdict keeps it. The peer has returned all, and does not
// close, so the client waits for it for a moment.
func TestSignalDraining(t *testing.T) {
	t.Parallel()
	faultRig(t)
	needSignals(t)
	_, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		returns(c, 6)
		lingers(c)
	})
	again(t, func(t *testing.T) {
		p := command(t, "1", nil, "-v", "127.0.0.1", port, "hello").start(t)
		p.stderr.await(t, "shutdown: all 6 bytes are back", 1)
		p.Process.Signal(syscall.SIGTERM) // it may have ended by itself
		p.end(t).wantLine(t, 0, "ok", wholeHere, "")

		p = command(t, "1", nil, "-v", "-n", "3", "127.0.0.1", port, "hello").start(t)
		p.stderr.await(t, "shutdown: all 6 bytes are back", 3)
		p.Process.Signal(syscall.SIGINT)
		p.end(t).wantLine(t, 0, "ok", "connections=3 ok=3 failures=0 unfinished=0 ...", "")
	})
}

// TestSignalServer: a server that serves ends at once, and that was its success.
func TestSignalServer(t *testing.T) {
	t.Parallel()
	faultRig(t)
	needSignals(t)
	again(t, func(t *testing.T) {
		for _, s := range signals {
			p, port := startServer(t)
			c := dialServer(t, "127.0.0.1", port)
			io.WriteString(c, "x")
			c.Read(make([]byte, 1))
			go io.Copy(c, zeroReader{}) // a client that reads no more
			time.Sleep(50 * time.Millisecond)
			p.endBySignal(t, s.signal, 0)
			p.end(t).wantLine(t, 0, "ended", "clients=1 failures=0 received returned", "")
			c.Close()
		}
	})
}
