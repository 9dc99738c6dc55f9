package main

import (
	"io"
	"strconv"
	"testing"
	"time"
)

// What a round costs once the connection stands: counted, not timed.

// BenchmarkLoop is one round with both ends in one loop. It is there for its allocations: none.
func BenchmarkLoop(b *testing.B) {
	b.ReportAllocs()
	rounds(b, int64(b.N))
}

// TestRoundsAllocateNothing compares a short run and a longer one: their difference is the steady
// state, of the client and of the server.
func TestRoundsAllocateNothing(t *testing.T) {
	short := testing.AllocsPerRun(3, func() { rounds(t, 10) })
	long := testing.AllocsPerRun(3, func() { rounds(t, 1010) })
	if long-short >= 20 { // the runtime's own
		t.Errorf("1000 further rounds allocate %v times", long-short)
	}
}

// rounds runs the demo, both ends in one loop, for n rounds.
func rounds(t testing.TB, n int64) {
	if status := run([]string{"-q", "-count", strconv.FormatInt(n, 10)}, nil, io.Discard, io.Discard); status != exitOK {
		t.Fatalf("exit status %d", status)
	}
}

// TestRoundsCallNothingElse counts at the seam: a round is one write, one wait and one read, and its
// interest never changes.
func TestRoundsCallNothingElse(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", echoes)
	calls := func(n string) map[string]int {
		o, err := parse([]string{"-q", "-count", n, "127.0.0.1", port, "message"})
		if err != nil {
			t.Fatal(err)
		}
		p, err := newPoller()
		if err != nil {
			t.Fatal(err)
		}
		calls := make(map[string]int)
		steady := newSession(o, world{
			poller:  countingPoller{p, calls},
			sockets: countingSockets{system{}, calls},
			clock:   newClock(),
			wall:    time.Now,
			stdout:  io.Discard,
			stderr:  io.Discard,
		})
		if status := steady.run(); status != exitOK {
			t.Fatalf("exit status %d", status)
		}
		return calls
	}
	few := calls("100")
	many := calls("1100")
	// A signal of the runtime's can end a wait.
	most := map[string]int{"write": 1000, "read": 1000, "wait": 1020, "change": 0}
	for call, most := range most {
		if got := many[call] - few[call]; got > most {
			t.Errorf("%d calls of %s in 1000 further rounds, want at most %d", got, call, most)
		}
	}
}

type countingPoller struct {
	poller
	calls map[string]int
}

func (p countingPoller) change(s socket, was, want readiness) error {
	p.calls["change"]++
	return p.poller.change(s, was, want)
}

func (p countingPoller) wait(events []event, ms int) (int, error) {
	p.calls["wait"]++
	return p.poller.wait(events, ms)
}

type countingSockets struct {
	sockets
	calls map[string]int
}

func (k countingSockets) read(s socket, p []byte) (int, error) {
	k.calls["read"]++
	return k.sockets.read(s, p)
}

func (k countingSockets) write(s socket, p []byte) (int, error) {
	k.calls["write"]++
	return k.sockets.write(s, p)
}
