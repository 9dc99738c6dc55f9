package test

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// eachSignal runs a test for each signal that ends a run, where there are any.
func eachSignal(t *testing.T, test func(*testing.T, syscall.Signal)) {
	needSignals(t)
	each(t, map[string]syscall.Signal{
		"INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "HUP": syscall.SIGHUP,
	}, test)
}

// endBySignal sends a signal, if the process has not ended by itself. That has to end it within
// half a second, whatever it is stuck in. On a busy machine this can be over before all is said.
func (p *process) endBySignal(t testing.TB, s syscall.Signal) result {
	t.Helper()
	began := time.Now()
	p.Process.Signal(s)
	r := p.end(t)
	took := time.Since(began)
	if took > 10*time.Second {
		t.Errorf("%v: it took %v", s, took)
	}
	isCut := r.status == 128+int(s) && len(r.of("interrupted")) == 0
	if isCut && took > 400*time.Millisecond && isBusy(t) {
		t.Skip("this machine is so busy that half a second was over before all was said")
	}
	return r
}

// isBusy tells whether runs that do nothing take long.
func isBusy(t testing.TB) bool {
	began := time.Now()
	for range 5 {
		run(t, "-version")
	}
	return time.Since(began) > 250*time.Millisecond
}

// moment is when a signal comes, and what the line says then.
type moment struct {
	place  func(*testing.T) (port string)
	flags  string
	ready  string // what the log or a line says by then,
	times  int    // so many times
	values string
}

// at makes a peer for a moment.
func at(peer script) func(*testing.T) string {
	return func(t *testing.T) string { return listen(t, "127.0.0.1:0", peer) }
}

var moments = map[string]moment{
	"connect": {fullBacklog, "-connect-timeout 0", "non-blocking", 1, "sent=0 connect_ms= peer="},
	"connect, several": {fullBacklog, "-n 500", "non-blocking", 400,
		"connections=500 ok=0 failed=0 unfinished=500 connect_min_ms="},
	"exchange": {at(ignores), "-io-timeout 0", "sent: ", 1,
		"sent=12 returned=0 rounds=0 connect_ms=* peer=* rtt_ms= lasted_ms=*"},
	"exchange, half": {at(inOrder(change(roundSize, first5), ignores)), "", "received: ", 1,
		"sent=12 returned=5 rounds=0 rtt_ms="},
	"exchange, bulk": {at(echoes), "-size 100000G", "received: ", 9,
		"sent=* returned=* rounds=0 mbit_s=*"},
	"exchange, quiet": {at(ignores), "-q", "sent: ", 1, "sent=12 returned=0"},
	"pause": {at(echoes), "-every 1h -count 2", "msg=round", 1,
		"sent=12 returned=12 rounds=1 rtt_min_ms=*"},
	"rounds": {at(echoes), "-count 0 -every 1ms", "msg=round", 20,
		"sent=* returned=* rtt_p99_ms=*"},
	"busy": {at(echoes), "-count 0", "received: ", 9, "sent=* rounds=*"},
	"each by itself": {at(inTurn(echoes, ignores, inOrder(take(roundSize), closes))), "-n 3",
		"shutdown", 1, "ok=1 failed=* unfinished=*"},
}

// TestSignals: a signal ends a run whatever it waits for, and the line tells how far it had come.
func TestSignals(t *testing.T) {
	eachSignal(t, func(t *testing.T, s syscall.Signal) {
		for name, m := range moments {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				p := commandTo(t, m.place(t), "-v "+m.flags).start(t)
				eventually(t, m.ready, func() bool {
					said := p.stderr.String() + p.stdout.String()
					return strings.Count(said, m.ready) >= m.times
				})
				r := p.endBySignal(t, s)
				r.want(t, 128+int(s), "interrupted", "").wantValues(t, m.values)
			})
		}
	})
}

// TestSignalStuck: so it does where standard input does not end, and where nobody reads standard
// output. (Not every line can be written then.)
func TestSignalStuck(t *testing.T) {
	eachSignal(t, func(t *testing.T, s syscall.Signal) {
		input := commandTo(t, closedPort(t), "")
		input.Args = append(input.Args, "-")
		stdin, err := input.StdinPipe()
		must(t, err)
		input.start(t)
		stdin.Write(make([]byte, 1<<20)) // no pipe holds that, so it reads
		output, _, _ := startStuck(t)
		for _, p := range []*process{input, output} {
			p.signal(t, s)
			if r := p.end(t); r.status != 128+int(s) {
				t.Errorf("%v: exit status %d", p.Args, r.status)
			}
		}
	})
}

// startStuck starts a run whose standard output nobody reads, and waits until that has stopped it.
func startStuck(t *testing.T) (p *process, stdout *os.File, peer *recorder) {
	t.Helper()
	peer = new(recorder)
	p = commandTo(t, listen(t, "127.0.0.1:0", peer.play), "-io-timeout 1s -count 0 -every 1ns")
	stdout, w, err := os.Pipe()
	must(t, err)
	t.Cleanup(func() { stdout.Close() })
	p.Stdout = w
	p.start(t)
	w.Close()
	for before := -1; before < 200 || len(peer.bytes()) > before; {
		before = len(peer.bytes())
		time.Sleep(300 * time.Millisecond)
		if p.isOver() {
			t.Fatalf("it has ended: %v %s", p.ProcessState, p.stderr)
		}
	}
	return p, stdout, peer
}

// TestSignalTwice: timeout(1) sends its signal to the process and to its group. The second one
// takes nothing from the line, nor does a third.
func TestSignalTwice(t *testing.T) {
	eachSignal(t, func(t *testing.T, s syscall.Signal) {
		p := commandTo(t, listen(t, "127.0.0.1:0", ignores), "-v -n 100").start(t)
		p.await(t, p.stderr, "sent: ", 100)
		p.signal(t, s)
		for range 2 {
			p.Process.Signal(s) // it may have ended
		}
		l := p.endBySignal(t, s).want(t, 128+int(s), "interrupted", "")
		l.wantValues(t, "unfinished=100 sent=1200")
	})
}

// TestSignalIgnored: what was ignored at the start stays so, as nohup(1) wants it, and the shell
// for what it runs in the background.
func TestSignalIgnored(t *testing.T) {
	t.Parallel()
	needSignals(t)
	port := listen(t, "127.0.0.1:0", echoes)
	for name, s := range map[string]syscall.Signal{"INT": syscall.SIGINT, "HUP": syscall.SIGHUP} {
		launcher := []string{needTool(t, "sh"), "-c", `trap "" ` + name + `; exec "$@"`, "sh"}
		p := command(t, launcher, "-count", "0", "-every", "10ms", "127.0.0.1", port).start(t)
		p.await(t, p.stdout, "msg=round", 1)
		p.signal(t, s)
		p.await(t, p.stdout, "msg=round", strings.Count(p.stdout.String(), "msg=round")+30)
		p.endBySignal(t, syscall.SIGTERM).want(t, 143, "interrupted", "")
	}
}

// TestSignalVerdict: what has its verdict keeps it, and while it waits for the peer's FIN it has.
func TestSignalVerdict(t *testing.T) {
	eachSignal(t, func(t *testing.T, s syscall.Signal) {
		port := listen(t, "127.0.0.1:0", inOrder(echo(roundSize), stands))
		p := commandTo(t, port, "-v -n 3").start(t)
		p.await(t, p.stderr, "shutdown", 3)
		p.endBySignal(t, s).want(t, 0, "ok", "")
	})
}

// TestSignalServer: a server ends well, from its first line on and whatever its clients do.
func TestSignalServer(t *testing.T) {
	eachSignal(t, func(t *testing.T, s syscall.Signal) {
		for range 5 {
			p, _ := startServer(t, nil)
			p.endBySignal(t, s).want(t, 0, "ended", "").wantValues(t, "clients=0 received=0")
		}
		p, port := startServer(t, nil)
		flood(dial(t, port), make([]byte, 32<<20))
		p.endBySignal(t, s).want(t, 0, "ended", "").wantValues(t, "clients=1 failed=0 received=*")
	})
}
