package main

import (
	"bytes"
	"encoding/json"
	"io"
	"math"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestParse holds what a command line comes to. What it refuses, test/ shows from outside.
func TestParse(t *testing.T) {
	is := func(want any, got func(s *session) any) func(*testing.T, *session) {
		return func(t *testing.T, s *session) {
			t.Helper()
			if !reflect.DeepEqual(got(s), want) {
				t.Errorf("got %v, want %v", got(s), want)
			}
		}
	}
	place := func(s *session) any { return []any{s.host, int(s.port), s.client.target} }
	sent := func(s *session) any { return string(s.client.job.flow.block) }
	size := func(s *session) any { return s.client.job.flow.roundSize }
	limits := func(s *session) any { return []any{s.connectTimeout, s.client.job.ioTimeout} }
	rounds := func(s *session) any { return s.client.job.rounds }
	listens := func(s *session) any { return netip.AddrPortFrom(s.address, s.port).String() }
	for _, c := range []struct {
		args  string
		check func(*testing.T, *session) // nil: it is refused
	}{
		{"board 9999", is([]any{"board", 9999, "board:9999"}, place)},
		{"board:9999", is([]any{"board", 9999, "board:9999"}, place)},
		{"[::1]:9999", is([]any{"::1", 9999, "[::1]:9999"}, place)},
		{"[::1] 9999", is([]any{"::1", 9999, "[::1]:9999"}, place)},
		{"::1 9999", is([]any{"::1", 9999, "[::1]:9999"}, place)},
		{"fe80::1%eth0 9999", is([]any{"fe80::1%eth0", 9999, "[fe80::1%eth0]:9999"}, place)},
		{"-- board 9999", is([]any{"board", 9999, "board:9999"}, place)},
		{"-serve 9999", is("[::]:9999", listens)},
		{"-serve :9999", is("[::]:9999", listens)},
		{"-serve 127.0.0.1:0", is("127.0.0.1:0", listens)},
		{"-serve ::ffff:127.0.0.1 9", is("127.0.0.1:9", listens)},
		{"-serve [::1]:65535", is("[::1]:65535", listens)},
		{"board 9", is("data1\ndata2\n", sent)},
		{"board:9 a b", is("a\nb\n", sent)},
		{"board 9 -- -a -", is("-a\n-\n", sent)},
		{"board 9 a --", nil},
		{"board 9 -", is(true, func(s *session) any { return s.useStdin })},
		{"board 9 é", is("é\n", sent)},
		{"board 9", is(int64(12), size)},
		{"-size 1 board 9", is(int64(1), size)},
		{"-size 3K board 9", is(int64(3<<10), size)},
		{"-size=2M board 9", is(int64(2<<20), size)},
		{"-size 4G board 9", is(int64(4<<30), size)},
		{"board 9", is([]any{3500 * time.Millisecond, 5500 * time.Millisecond}, limits)},
		{"-connect-timeout 0 -io-timeout 0 board 9", is([]any{never, never}, limits)},
		{"-count 0 board 9", is(int64(math.MaxInt64), rounds)},
		{"-4 -6 board 9", is("ip6", func(s *session) any { return s.family })},
		{"", is(true, func(s *session) any { return s.verbose && s.address.IsLoopback() })},
	} {
		t.Run(c.args, func(t *testing.T) {
			s := &session{family: "ip"}
			err := s.parse(strings.Fields(c.args))
			if (err == nil) != (c.check != nil) {
				t.Fatalf("error %v", err)
			}
			if c.check != nil {
				c.check(t, s)
			}
		})
	}
}

// TestCompare sends a stream through compare in reads of random sizes, around the ends of the
// block too, and then alters one byte of it.
func TestCompare(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	pattern := newPattern()
	for _, block := range [][]byte{[]byte("a\n"), []byte("data1\ndata2\n"), pattern[:1000], pattern} {
		f := flow{block, int64(len(block))}
		total := int64(2*len(block) + len(block)/2 + 1)
		stream := bytes.Repeat(block, 3)[:total]
		bad := random.Int64N(total)
		altered := bytes.Clone(stream)
		altered[bad] ^= 0x20
		for _, came := range [][]byte{stream, altered} {
			right, err := compareAll(f, came, random)
			switch {
			case came[bad] == stream[bad] && (err != nil || right != total):
				t.Errorf("block of %d: %d of %d bytes are right: %v", len(block), right, total, err)
			case came[bad] != stream[bad] && (!is[wrong](err) || right != bad):
				t.Errorf("block of %d: byte %d is wrong: found at %d: %v", len(block), bad, right, err)
			}
		}
	}
}

// compareAll compares came, all of which was sent, in pieces of random sizes.
func compareAll(f flow, came []byte, random *rand.Rand) (right int64, err error) {
	total := int64(len(came))
	for right < total && err == nil {
		n := 1 + random.Int64N(min(chunkSize, total-right))
		var more int64
		more, err = f.compare(came[right:right+n], right, total)
		right += more
	}
	return right, err
}

// TestSurplus: what was not sent cannot come back, whatever it is.
func TestSurplus(t *testing.T) {
	f := flow{[]byte("abc"), 3}
	for _, c := range []struct {
		came  string
		sent  int64
		right int64
		want  string
	}{
		{"abca", 3, 3, errSurplus.Error()},
		{"a", 0, 0, errSurplus.Error()},
		{"abX", 2, 2, errSurplus.Error()},
		{"aXc", 2, 1, "byte 1 differs: sent 0x62, came back 0x58"},
		{"abcabc", 6, 6, ""},
	} {
		right, err := f.compare([]byte(c.came), 0, c.sent)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if right != c.right || text != c.want {
			t.Errorf("%q: %d right, %q; want %d, %q", c.came, right, text, c.right, c.want)
		}
	}
}

// TestPattern: what is lost or sent twice has mostly the size of a power of two, or of several. None
// of these may be a multiple of the block's length.
func TestPattern(t *testing.T) {
	size := len(newPattern())
	for divisor := 2; divisor*divisor <= size; divisor++ {
		if size%divisor == 0 {
			t.Fatalf("%d is a multiple of %d", size, divisor)
		}
	}
	if !bytes.Equal(newPattern(), newPattern()) || size >= 1<<20 {
		t.Errorf("the pattern has %d bytes, and changes", size)
	}
}

// TestHistogram holds percentiles against those of the sorted times, within 5%.
func TestHistogram(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for _, spread := range []float64{0, 0.1, 1, 2} {
		var h histogram
		var times []time.Duration
		for range 10_000 {
			d := time.Duration(1e5 * math.Exp(spread*random.NormFloat64()))
			times = append(times, d)
			h.add(d)
		}
		slices.Sort(times)
		if h.least != times[0] || h.most != times[len(times)-1] || h.n != len(times) {
			t.Errorf("spread %v: %d times from %v to %v", spread, h.n, h.least, h.most)
		}
		for percent := 1; percent < 100; percent++ {
			want := times[len(times)*percent/100-1]
			off := float64(h.percentile(float64(percent)/100))/float64(want) - 1
			if math.Abs(off) > 0.05 {
				t.Errorf("spread %v: percentile %d is off by %.1f%%", spread, percent, off*100)
			}
		}
	}
}

// TestHistogramEdges: no time is too short or too long, and one alone is exact.
func TestHistogramEdges(t *testing.T) {
	for _, d := range []time.Duration{0, 1, 2, time.Hour, never} {
		var h histogram
		h.add(d)
		if h.percentile(0.5) != d || h.percentile(0.99) != d {
			t.Errorf("%v alone has the median %v", d, h.percentile(0.5))
		}
	}
	if pairs := new(histogram).pairs("rtt", true); len(pairs) != 0 {
		t.Errorf("without a time there are pairs: %v", pairs)
	}
}

// TestLineText words texts in both forms: none may reach a terminal raw, and JSON gives them back.
func TestLineText(t *testing.T) {
	for _, c := range []struct{ text, logfmt string }{
		{"plain:1", `plain:1`},
		{"two words", `"two words"`},
		{"a=b", `"a=b"`},
		{`say "hi"`, `"say \"hi\""`},
		{`c:\`, `"c:\\"`},
		{`"`, `"\""`},
		{"\x1b[31m", `"\u001b[31m"`},
		{"tab\tline\n", `"tab\u0009line\u000a"`},
		{"bücher", `"b\u00fccher"`},
		{"\U0001f600", `"\ud83d\ude00"`},
		{"\x7f", `"\u007f"`},
	} {
		got := wordLine([]any{"key", c.text}, false)
		if got != "key="+c.logfmt {
			t.Errorf("%q: got %s, want %s", c.text, got, c.logfmt)
		}
		object := wordLine([]any{"key", c.text}, true)
		var back map[string]string
		err := json.Unmarshal([]byte(object), &back)
		if err != nil || back["key"] != c.text {
			t.Errorf("%q: %s is %q: %v", c.text, object, back["key"], err)
		}
	}
}

// TestLine words a line with each kind of value; what is "" is left out.
func TestLine(t *testing.T) {
	pairs := []any{"msg", "ok", "status", 0, "none", "", "rtt_ms", 1234567 * time.Nanosecond,
		"mbit_s", 5591.4591, "error", "a b"}
	for asJSON, want := range map[bool]string{
		false: `msg=ok status=0 rtt_ms=1.235 mbit_s=5591.459 error="a b"`,
		true:  `{"msg":"ok","status":0,"rtt_ms":1.235,"mbit_s":5591.459,"error":"a b"}`,
	} {
		if got := wordLine(pairs, asJSON); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

// mirror is a kernel of one connection that gives back what was written, on the real clock.
type mirror struct {
	kernel // the other methods are not called
	bytes  []byte
	start  time.Time
}

func (m *mirror) now() time.Duration                       { return time.Since(m.start) }
func (m *mirror) watch(socket, readiness, readiness) error { return nil }
func (m *mirror) wait(int) ([]socket, error)               { return []socket{1}, nil }

func (m *mirror) write(_ socket, p []byte) (int, error) {
	m.bytes = append(m.bytes, p...)
	return len(p), nil
}

func (m *mirror) read(_ socket, p []byte) (int, error) {
	if len(m.bytes) == 0 {
		return 0, errWouldBlock
	}
	n := copy(p, m.bytes)
	m.bytes = m.bytes[:0]
	return n, nil
}

// TestRoundsAllocateNothing: a run of any length has constant memory, and nothing to collect.
func TestRoundsAllocateNothing(t *testing.T) {
	m := &mirror{start: time.Now()}
	s := &session{outside: outside{stdout: io.Discard, stderr: io.Discard}, family: "ip"}
	err := s.parse([]string{"-count", "0", "board", "9"})
	if err != nil {
		t.Fatal(err)
	}
	s.loop = newLoop(m)
	s.client.loop = s.loop
	c := &connection{client: &s.client, number: 1, socket: 1}
	x := &exchange{conn: c}
	s.loop.add(1, x, "")
	perRound := testing.AllocsPerRun(1000, func() { s.loop.step(1) })
	if perRound != 0 || s.client.tally.roundsBack < 900 {
		t.Errorf("%v allocations in each of %d rounds", perRound, s.client.tally.roundsBack)
	}
}
