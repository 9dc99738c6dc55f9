package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// Parts of the program by themselves, with tables.

// TestGap: where the next read of standard input goes, by what was read and what is settled.
func TestGap(t *testing.T) {
	const size = int64(ringSize)
	const most = int64(inputRead)
	for _, test := range []struct {
		taken, settled int64
		from, length   int64 // in the ring
	}{
		{0, 0, 0, most},
		{10, 0, 10, most},
		{most, 0, most, most},
		{size - most, 0, size - most, most},
		{size - 10, 0, size - 10, 10},
		{size, 0, 0, 0},        // full
		{size, most - 1, 0, 0}, // one byte of the block is not settled
		{size, most, 0, most},
		{size + 10, most, 10, most - 10}, // what is left of the room
		{size + 10, 2*most - 1, 10, most - 10},
		{size + 10, 2 * most, 10, most},
		{size + most, most + 10, 0, 0},
		{2*size - 10, size, size - 10, 10},
		{3 * size, 3 * size, 0, most},
	} {
		in := &input{ring: make(ring, size), taken: test.taken}
		for i := range in.ring {
			in.ring[i] = byte(i>>16 + i)
		}
		gap := in.gap(test.settled)
		if int64(len(gap)) != test.length {
			t.Errorf("taken %d, settled %d: %d bytes, want %d",
				test.taken, test.settled, len(gap), test.length)
		} else if len(gap) > 0 && &gap[0] != &in.ring[test.from] {
			t.Errorf("taken %d, settled %d: it does not begin at %d", test.taken, test.settled, test.from)
		}
	}
}

// TestCompare: the first byte that is no echo, wherever it is in what was read and in the ring.
func TestCompare(t *testing.T) {
	src := &messages{block: ring("abcdefgh"), begun: 3, rounds: 4}
	for _, test := range []struct {
		from, sent int64
		p          string
		good       int
		wrong      string
	}{
		{0, 8, "abcdefgh", 8, ""},
		{2, 8, "cde", 3, ""},
		{6, 20, "ghabcdefghab", 12, ""},
		{6, 20, "ghabcdXfghab", 6, "byte 12 differs: sent 0x65, came back 0x58: altered on the path"},
		{6, 20, "gXabcdefghab", 1, "byte 7 differs: sent 0x68, came back 0x58: altered on the path"},
		{0, 8, "Xbcd", 0, "byte 0 differs: sent 0x61, came back 0x58: is this an echo server?"},
		{0, 4, "abcdefgh", 4, "more came back than was sent: byte 4 is 0x65: altered on the path"},
		{0, 0, "a", 0, "more came back than was sent: byte 0 is 0x61: is this an echo server?"},
		{6, 10, "ghabcd", 4, "more came back than was sent: byte 10 is 0x63: altered on the path"},
		{6, 10, "ghXbcd", 2, "byte 8 differs: sent 0x61, came back 0x58: altered on the path"},
	} {
		good, wrong := compare([]byte(test.p), src, test.from, test.sent)
		text := ""
		if wrong != nil {
			text = wrong.Error()
		}
		if good != test.good || text != test.wrong {
			t.Errorf("%q from %d of %d: %d good, %q; want %d, %q", test.p, test.from, test.sent,
				good, text, test.good, test.wrong)
		}
	}
}

// TestAddressForms: an address is the same after the kernel's form, its zone as a number.
func TestAddressForms(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"192.0.2.1:7", "0.0.0.0:0", "255.255.255.255:65535",
		"[2001:db8::1]:7", "[::]:65535", "[fe80::1%1]:7", "[fe80::1%4000000000]:9999",
	} {
		at := netip.MustParseAddrPort(text)
		sa, err := sockaddr(at)
		if err != nil {
			t.Errorf("%v: %v", at, err)
		} else if addrPort(sa) != at {
			t.Errorf("%v is %v afterwards", at, addrPort(sa))
		}
	}
	_, err := sockaddr(netip.MustParseAddrPort("[fe80::1%nosuchzone]:7"))
	if err == nil {
		t.Error("a zone that there is not is one")
	}
	if addrPort(nil).IsValid() {
		t.Errorf("nothing is %v", addrPort(nil))
	}
}

// TestRates: Mbit/s, with two digits where that is little; nothing where no time has passed.
func TestRates(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		bytes int64
		took  time.Duration
		want  string
	}{
		{0, time.Second, " mbit_s=0.00"},
		{125_000, time.Second, " mbit_s=1.00"},
		{125_000, 2 * time.Second, " mbit_s=0.50"},
		{1_249_000, time.Second, " mbit_s=9.99"},
		{1_250_000, time.Second, " mbit_s=10"},
		{1_000_000_000, time.Second, " mbit_s=8000"},
		{1, 1, " mbit_s=8000"},
		{1, 0, ""},
		{1, -1, ""},
	} {
		got := mbits(test.bytes, test.took)
		if got != test.want {
			t.Errorf("%d bytes in %v: %q, want %q", test.bytes, test.took, got, test.want)
		}
	}
}

// TestFigures: how times are written, and which four figures stand for many.
func TestFigures(t *testing.T) {
	t.Parallel()
	if milliseconds(1234567*time.Nanosecond) != "1.23" || seconds(1260*time.Millisecond) != "1.3s" {
		t.Errorf("%s, %s", milliseconds(1234567*time.Nanosecond), seconds(1260*time.Millisecond))
	}
	var s spread
	if s.key("rtt", true) != "" || s.key("rtt", false) != "" {
		t.Error("figures of nothing")
	}
	for i := range 1000 {
		s.add(time.Duration(1000-i) * time.Millisecond)
	}
	s.add(-time.Second) // counts as 0
	one := s.key("rtt", true)
	all := s.key("rtt", false)
	if one != " rtt_ms=0.00" || all != " rtt_ms=0.00/492.31/984.63/1000.00" {
		t.Errorf("%q, %q", one, all)
	}
}

// TestPrintable: what somebody else chose, for one line of a terminal.
func TestPrintable(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ text, printed, word string }{
		{"a.test", "a.test", `"a.test"`},
		{`"a"`, `"a"`, `"\"a\""`},
		{"\x1b[31m\n", `\x1b[31m\n`, `"\x1b[31m\n"`},
		{"\u00fc", `\u00fc`, `"\u00fc"`},
		{"", "", `""`},
	} {
		if printable(test.text) != test.printed || word(test.text) != test.word {
			t.Errorf("%q: %s, %s", test.text, printable(test.text), word(test.text))
		}
	}
	long := strings.Repeat("a", 100) + "b" + strings.Repeat("c", 100)
	cut := strings.Repeat("a", 100) + "..." + strings.Repeat("c", 100)
	if shortened(long) != cut || shortened(long[1:]) != long[1:] {
		t.Errorf("%s, %s", shortened(long), shortened(long[1:]))
	}
}

// TestWakesDoNotAddUp: several wake-ups make one wait return, and no other.
func TestWakesDoNotAddUp(t *testing.T) {
	t.Parallel()
	p, err := newPoller()
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	for range 5 {
		p.wake()
	}
	time.Sleep(50 * time.Millisecond)
	clock := newClock()
	waited := func(ms int) time.Duration {
		start := clock()
		n, err := p.wait(make([]event, 4), ms)
		took := clock() - start
		if n != 0 || err != nil || took > 10*time.Second {
			t.Errorf("a wait of %d ms took %v: %d events, %v", ms, took, n, err)
		}
		return took
	}
	waited(20_000)
	// A signal of the Go runtime may end a wait too, but hardly three, and four wake-ups would.
	var took [3]time.Duration
	for i := range took {
		took[i] = waited(100)
		if took[i] >= 80*time.Millisecond {
			return
		}
	}
	t.Errorf("waits of 100 ms took %v", took)
}

// TestPortTries: how often the kernel may choose a port for -serve 0.
func TestPortTries(t *testing.T) {
	k := newStage(t)
	taken := func(k *stage, w *world) {
		for port := 50001; port < 50100; port++ {
			k.busy[fmt.Sprintf("[::]:%d", port)] = errors.New("address already in use")
		}
	}
	_, status, lines := act{"", "-serve 0", taken}.runOn(k)
	tries := len(k.made("listen 0.0.0.0:0"))
	text := `error="no port is free at every address: listen [::]:50020: address already in use"`
	if status != exitLocal || tries != 20 || !strings.Contains(lines, text) {
		t.Errorf("status %d after %d tries: %s", status, tries, lines)
	}
}

// TestVainLooks: the kernel is asked for retransmits only where they are printed.
func TestVainLooks(t *testing.T) {
	for args, want := range map[string]int{"-n 2 192.0.2.1 7 hello": 0, "192.0.2.1 7 hello": 1} {
		k := newStage(t)
		_, status, lines := act{"", args, fates(good)}.runOn(k)
		if status != exitOK || k.looks != want {
			t.Errorf("%s: %d looks at the path, want %d; %s", args, k.looks, want, lines)
		}
	}
}

// TestKindOf: a file is of some kind, and whatever else is read may have to be waited for.
func TestKindOf(t *testing.T) {
	file, err := os.Open("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if kindOf(file) != regularFile || kindOf(strings.NewReader("x")) != otherInput {
		t.Errorf("kinds %d and %d", kindOf(file), kindOf(strings.NewReader("x")))
	}
}

// TestStopped: what a reader brings after the stream was stopped is not taken in.
func TestStopped(t *testing.T) {
	in := &input{ring: make(ring, ringSize)}
	in.took(5, nil)
	in.stop()
	in.took(3, nil)
	in.took(0, io.ErrUnexpectedEOF)
	if in.end() != 5 || in.state() != ended || in.err != io.EOF {
		t.Errorf("the end is %d, in state %d: %v", in.end(), in.state(), in.err)
	}
}

// TestVainAccepts: after one connection, a failure of accept ends the step.
func TestVainAccepts(t *testing.T) {
	k := newStage(t)
	crowd := func(k *stage, w *world) {
		k.limit = 2 // the listener, and one client
		for range 3 {
			k.client(10*stageCall, func(*actor) {})
		}
		k.in(50*stageCall, func() { k.interrupt(130) })
	}
	_, status, lines := act{"", "-serve 192.0.2.5 9", crowd}.runOn(k)
	accepts := len(k.made("accept"))
	if status != exitOK || accepts != 3 { // a client, a failure, and the failure that begins a pause
		t.Errorf("%d calls of accept: %s", accepts, lines)
	}
}

// TestLogOfOneByte: however little it is, it is logged.
func TestLogOfOneByte(t *testing.T) {
	var text strings.Builder
	l := logger{w: &text, verbose: true}
	l.data("sent", nil)
	l.data("sent", []byte("x"))
	if !strings.HasSuffix(text.String(), "] sent: \"x\"\n") || strings.Count(text.String(), "\n") != 1 {
		t.Errorf("%q", text.String())
	}
}

// TestVainWrites: while the kernel has no room, nobody asks it whether it has.
func TestVainWrites(t *testing.T) {
	k := newStage(t)
	full := at(func(c *actor) {
		c.accepts(0).sends(30*stageCall, "x").finishes(80 * stageCall)
		c.room = 2
		k.in(50*stageCall, func() { c.room = 100 })
	})
	_, status, _ := act{"", "-until eof 192.0.2.1 7 hello", full}.runOn(k)
	writes := k.made("write")
	if !slices.Equal(writes, []string{"write 6", "write 4"}) {
		t.Errorf("status %d, %q", status, writes)
	}
}

// TestLogAllocatesNothing: without -v.
func TestLogAllocatesNothing(t *testing.T) {
	l := logger{w: io.Discard}
	p := []byte("hello")
	allocated := testing.AllocsPerRun(100, func() { l.data("sent", p) })
	if allocated != 0 {
		t.Errorf("%v allocations", allocated)
	}
}

// TestRuntimePoller: which runs are so short that the runtime does without its poller.
func TestRuntimePoller(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		args string
		want bool
	}{
		{"127.0.0.1 7 x", false},
		{"::1 7 x", false},
		{"-until connect 127.0.0.1 7", false},
		{"-until eof 127.0.0.1 7 x", false},
		{"-every 1s 127.0.0.1 7 x", false},
		{"", false},
		{"localhost 7 x", true},
		{"-n 2 127.0.0.1 7 x", true},
		{"-count 2 127.0.0.1 7 x", true},
		{"-count 0 127.0.0.1 7 x", true},
		{"-progress 1ns 127.0.0.1 7 x", true},
		{"127.0.0.1 7", true},
		{"-serve 127.0.0.1 7", true},
		{"-serve 7", true},
	} {
		o, err := parse(strings.Fields(test.args))
		if err != nil {
			t.Fatal(err)
		}
		if o.needsRuntimePoller() != test.want {
			t.Errorf("%q: %v, want %v", test.args, !test.want, test.want)
		}
	}
}

// TestCloseWriteUnconnected: where there is no connection any more, our FIN is no failure.
func TestCloseWriteUnconnected(t *testing.T) {
	t.Parallel()
	var k system
	s, err := k.openSocket(netip.MustParseAddrPort("127.0.0.1:9"), netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	defer k.close(s)
	err = k.closeWrite(s)
	if err != nil {
		t.Error(err)
	}
}

// TestEveryLetter: several letters that were posted before a turn are all read in it, in their order.
func TestEveryLetter(t *testing.T) {
	t.Parallel()
	k := newStage(t)
	l := newLoop(stagePoller{k}, k, func() time.Duration { return k.now })
	read := ""
	l.post(func() { read += "a" })
	l.post(func() { read += "b" })
	l.post(func() { read += "c"; l.stopped = true })
	err := l.run()
	if err != nil || read != "abc" || k.waits != 1 {
		t.Errorf("%v; read %q after %d waits", err, read, k.waits)
	}
}

// stepper is a machine that counts its steps, and wants to read.
type stepper struct{ steps int }

func (s *stepper) step(readiness)          { s.steps++ }
func (s *stepper) interest() readiness     { return readable }
func (s *stepper) deadline() time.Duration { return never }

// TestGivenUp: what comes for a seat after its end does nothing, and its neighbours stay. A seat
// without a socket is no matter of the poller's.
func TestGivenUp(t *testing.T) {
	t.Parallel()
	k := newStage(t)
	l := newLoop(stagePoller{k}, k, func() time.Duration { return k.now })
	machines := []*stepper{{}, {}, {}}
	var seats []*seat
	for _, m := range machines {
		seats = append(seats, l.sit(m))
	}
	l.stepTouched()
	seats[0].giveUp()
	seats[0].giveUp()
	for _, s := range seats {
		s.touch(readable)
		if s.armed != 0 {
			t.Errorf("seat %d has no socket and is watched for %d", s.index, s.armed)
		}
	}
	l.stepTouched()
	if machines[0].steps != 1 || machines[1].steps != 2 || machines[2].steps != 2 {
		t.Errorf("steps: %d, %d, %d", machines[0].steps, machines[1].steps, machines[2].steps)
	}
	for _, s := range l.seats[:cap(l.seats)][len(l.seats):] {
		if s != nil {
			t.Error("a seat that was given up keeps its machine, and what that has, from the collector")
		}
	}
	if len(l.seats) != 2 || seats[1].index+seats[2].index != 1 || l.seats[seats[1].index] != seats[1] {
		t.Errorf("%d seats are left", len(l.seats))
	}
}

// wantCall checks that err is number, under a call's name.
func wantCall(t *testing.T, call string, err error, number error) {
	t.Helper()
	var named *os.SyscallError
	if !errors.As(err, &named) || named.Syscall != call || named.Err != number {
		t.Errorf("%v, want %s: %v", err, call, number)
	}
}
