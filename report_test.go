package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// What is printed: the form of result lines, the log, progress, and the lines of a server.

const (
	lineAt   = " at=2026-11-24T12:00:00.123Z"
	linePeer = " peer=192.0.2.7:9999"
)

// goodLines are of the form.
var goodLines = []string{
	"board:9999 ok sent=6 returned=6 connect_ms=0.15 exchange_ms=0.49" + linePeer + lineAt,
	"[::1]:9999 ok sent=6 returned=6 connect_ms=0.15 exchange_ms=0.49 peer=[::1]:9999" + lineAt,
	"a:1 ok sent=0 returned=0 connect_ms=0.15 peer=[fe80::1%eth0]:1" + lineAt,
	`b:1 failed sent=8192 returned=4096 connect_ms=0.15 exchange_ms=3.10 peer=1.2.3.4:1` + lineAt +
		` error="read: connection reset by peer"`,
	"b:1 failed sent=0 returned=0" + lineAt + ` error="127.0.0.1: \"\\\x00\u00e9"`,
	"b:1 failed sent=0 returned=0 rounds=0" + lineAt + ` error="x"`,
	"b:1 interrupted sent=60 returned=60 connect_ms=0.11 rounds=5 rtt_ms=0.10/0.12/0.19/0.19" +
		linePeer + lineAt,
	"b:1 ok sent=1000000 returned=0 connect_ms=0.11 exchange_ms=10.00 mbit_s=800" +
		" retransmits=7" + linePeer + lineAt,
	"b:1 round=1 rtt_ms=0.09" + linePeer + lineAt,
	"b:1 round=10 rtt_ms=0.09 connection=2" + linePeer + lineAt,
	"b:1 progress sent=3 returned=2 mbit_s=2220" + linePeer + lineAt,
	"b:1 progress sent=0 returned=0 mbit_s=0.00" + lineAt,
	"b:1 cause failures=2" + lineAt + ` error="read: connection reset by peer"`,
	"b:1 failed connections=100 ok=98 failures=2 unfinished=0 sent=1 returned=1 " +
		"connect_ms=0.11/0.12/0.19/0.19 exchange_ms=0.11/0.12/0.19/0.19" + lineAt,
	"b:1 interrupted connections=3 ok=1 failures=1 unfinished=1 sent=0 returned=0" + lineAt,
	"0.0.0.0:9999 listening" + lineAt,
	"0.0.0.0:9999 ended clients=1 failures=0 received=6 returned=6" + lineAt,
	"[::]:0 interrupted" + lineAt,
	":7 failed" + lineAt + ` error="listen [::]:7: address already in use"`,
}

// badLines are each wrong in one place.
var badLines = []string{
	"",
	"b:1 ok",
	"b:1 ok sent=6 returned=6 connect_ms=0.15 exchange_ms=0.49" + linePeer, // no time
	"b ok sent=0 returned=0 connect_ms=0.15" + linePeer + lineAt,           // no port
	"b:1  ok sent=0 returned=0 connect_ms=0.15" + linePeer + lineAt,
	"b:1 ok sent=0 returned=0 connect_ms=0.15" + linePeer + lineAt + " ",
	"b:1 ok sent=0 returned=0 connect_ms=0.15" + linePeer + " at=2026-11-24T12:00:00Z",
	"b:1 ok sent=0 returned=0 connect_ms=0.15" + linePeer + " at=2026-13-24T12:00:00.123Z",
	"b:1 ok sent=0 returned=0 connect_ms=0.15" + linePeer + " at=2026-11-24T12:00:00.123+01:00",
	"b:1 well sent=0 returned=0 connect_ms=0.15" + linePeer + lineAt,
	"b:1 ok returned=0 sent=0 connect_ms=0.15" + linePeer + lineAt, // order
	"b:1 ok sent=0 sent=0 returned=0 connect_ms=0.15" + linePeer + lineAt,
	"b:1 ok sent=0 connect_ms=0.15" + linePeer + lineAt,
	"b:1 ok sent=0 returned=0 connect_ms=0.15 size=3" + linePeer + lineAt,
	"b:1 ok sent=0 returned=0 connect_ms=0.15" + linePeer + " size=3" + lineAt,
	"b:1 ok sent=00 returned=0 connect_ms=0.15" + linePeer + lineAt,
	"b:1 ok sent=-1 returned=0 connect_ms=0.15" + linePeer + lineAt,
	"b:1 ok sent= returned=0 connect_ms=0.15" + linePeer + lineAt,
	"b:1 ok sent=0 returned=0 connect_ms=0.1" + linePeer + lineAt,
	"b:1 ok sent=0 returned=0 connect_ms=0.123" + linePeer + lineAt,
	"b:1 ok sent=0 returned=0 connect_ms=.15" + linePeer + lineAt,
	"b:1 ok sent=0 returned=0 connect_ms=0.15ms" + linePeer + lineAt,
	"b:1 ok sent=0 returned=0 connect_ms=1e3" + linePeer + lineAt,
	"b:1 ok sent=0 returned=0 connect_ms=0.15/0.15/0.15/0.15" + linePeer + lineAt,
	"b:1 ok sent=0 returned=0 connect_ms=0.15" + lineAt, // no peer
	"b:1 ok sent=0 returned=0" + linePeer + lineAt,      // a peer before there is a connection
	"b:1 ok sent=0 returned=0 connect_ms=0.15 peer=192.0.2.7" + lineAt,
	"b:1 ok sent=0 returned=0 connect_ms=0.15 peer=[::ffff:192.0.2.7]:1" + lineAt,
	"b:1 ok sent=0 returned=0 connect_ms=0.15 peer=[0::1]:1" + lineAt,
	"b:1 ok sent=0 returned=0 connect_ms=0.15 retransmits=0" + linePeer + lineAt,
	"b:1 ok sent=0 returned=0 connect_ms=0.15" + linePeer + lineAt + ` error="x"`,
	"b:1 failed sent=0 returned=0" + lineAt,
	"b:1 failed sent=0 returned=0" + lineAt + ` error=""`,
	"b:1 failed sent=0 returned=0" + lineAt + ` error=x`,
	"b:1 failed sent=0 returned=0" + lineAt + ` error="a"b"`,
	"b:1 failed sent=0 returned=0" + lineAt + ` error="\x41"`, // not as Go quotes
	"b:1 failed sent=0 returned=0" + lineAt + ` error="é"`,
	"b:1 failed sent=0 returned=0 exchange_ms=0.49" + lineAt + ` error="x"`,
	"b:1 ok sent=6 returned=6 connect_ms=0.15 exchange_ms=0.49 rounds=2 " +
		"rtt_ms=0.10/0.12/0.19/0.19" + linePeer + lineAt,
	"b:1 ok sent=6 returned=6 connect_ms=0.15 rounds=2 rtt_ms=0.10/0.12/0.19" + linePeer + lineAt,
	"b:1 ok sent=6 returned=6 connect_ms=0.15 rounds=2 rtt_ms=0.10/0.20/0.19/0.19" +
		linePeer + lineAt,
	"b:1 ok sent=6 returned=6 connect_ms=0.15 rounds=2" + linePeer + lineAt,
	"b:1 ok sent=6 returned=6 connect_ms=0.15 rounds=0 rtt_ms=0.10/0.12/0.19/0.19" +
		linePeer + lineAt,
	"b:1 ok sent=1000000 returned=0 connect_ms=0.11 exchange_ms=10.00 mbit_s=100" +
		linePeer + lineAt,
	"b:1 ok sent=1000000 returned=0 connect_ms=0.11 exchange_ms=10.00 mbit_s=800.00" +
		linePeer + lineAt,
	"b:1 round=0 rtt_ms=0.09" + linePeer + lineAt,
	"b:1 round=1 rtt_ms=0.09/0.09/0.09/0.09" + linePeer + lineAt,
	"b:1 round rtt_ms=0.09" + linePeer + lineAt,
	"b:1 cause failures=0" + lineAt + ` error="x"`,
	"b:1 cause failures=1" + lineAt,
	"b:1 ok connections=2 ok=1 failures=1 unfinished=0 sent=0 returned=0" + lineAt,
	"b:1 failed connections=2 ok=2 failures=0 unfinished=0 sent=0 returned=0" + lineAt,
	"b:1 failed connections=3 ok=1 failures=1 unfinished=0 sent=0 returned=0" + lineAt,
	"b:1 ok connections=2 ok=2 failures=0 unfinished=0 sent=0 returned=0 connect_ms=0.15" + lineAt,
	"b:1 failed connections=1 ok=0 failures=1 unfinished=0 sent=0 returned=0" + lineAt +
		` error="x"`,
	"0.0.0.0:9 listening clients=0" + lineAt,
	"0.0.0.0:9 ended clients=1 failures=0 returned=6 received=6" + lineAt,
}

// TestParseLine: the parser takes what is of the form, and nothing else.
func TestParseLine(t *testing.T) {
	t.Parallel()
	for _, line := range goodLines {
		l, err := parseLine("echomux: " + line)
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		seen.add(l)
	}
	for _, line := range badLines {
		l, err := parseLine("echomux: " + line)
		if err == nil {
			t.Errorf("%s is taken for %+v", line, l)
		}
	}
	for _, line := range []string{goodLines[0], "echomux: " + goodLines[0] + "\n", "echomux: x"} {
		_, err := parseLine(line)
		if err == nil {
			t.Errorf("%q is taken for a line", line)
		}
	}
}

// TestParsedLine: what the parser finds is what is there.
func TestParsedLine(t *testing.T) {
	t.Parallel()
	l, err := parseLine(`echomux: b:1 failed sent=8 returned=4 connect_ms=0.15 exchange_ms=3.10` +
		linePeer + lineAt + ` error="a\n\"b\" \u00e9"`)
	if err != nil {
		t.Fatal(err)
	}
	keys := []string{"sent", "returned", "connect_ms", "exchange_ms", "peer"}
	at := time.Date(2026, 11, 24, 12, 0, 0, 123e6, time.UTC)
	if l.place != "b:1" || l.word != "failed" || !slices.Equal(l.keys, keys) || !l.at.Equal(at) ||
		l.cause != "a\n\"b\" é" || l.count("sent") != 8 || l.values["peer"] != "192.0.2.7:9999" ||
		l.times("exchange_ms")[0] != 3100*time.Microsecond || l.has("rounds") {
		t.Errorf("it is taken for %+v", l)
	}
}

// TestPlace: a line names the place as it was asked for, in one word.
func TestPlace(t *testing.T) {
	t.Parallel()
	for host, place := range map[string]string{
		"name.example": "name.example:7",
		"NAME.example": "NAME.example:7",
		"::1":          "[::1]:7",
		"0::01":        "[0::01]:7",
		"a b":          `a\x20b:7`,
		"a\nb\x1bc":    `a\nb\x1bc:7`,
		"münchen":      `m\u00fcnchen:7`,
	} {
		s := &session{options: &options{host: host, port: 7}}
		if s.place() != place {
			t.Errorf("%q is %s, want %s", host, s.place(), place)
		}
	}
}

func TestQuiet(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", echoes)
	r := echomux(t, nil, "-q", "-progress", "1ms", "127.0.0.1", port, "hello")
	r.wantQuiet(t)
	r.wantStdout(t, "hello\n")
	_, port = serve(t, "127.0.0.1:0", ends)
	r = echomux(t, nil, "-q", "127.0.0.1", port, "hello")
	r.wantLine(t, 1, "failed", "sent=* returned=0 ...", "closed early (0 of 6 bytes)")
	r = echomux(t, nil, "-q", "-n", "2", "127.0.0.1", port, "hello")
	r.wantLine(t, 1, "failed", "connections=2 ...", "")
	r.wantLines(t, 2)
}

// TestVerbose: the log has the recipe's form, and its steps in their order. No line is long, and
// nothing in it is raw.
func TestVerbose(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", echoes)
	long := strings.Repeat("long ", 1000)
	r := echomux(t, nil, "-v", "127.0.0.1", port, "data1", "esc\x1b[2J", long)
	r.wantLine(t, 0, "ok", "sent=5015 returned=5015 ...", "")
	own := fmt.Sprintf("[echomux (%d)] ", os.Getpid())
	for line := range strings.Lines(r.stderr) {
		if !strings.HasPrefix(line, own) && line != r.line(t).text+"\n" || len(line) > 250 {
			t.Errorf("not a log line: %q", line)
		}
	}
	rest := r.stderr
	for _, step := range []string{"switch to non-blocking mode", "connected ",
		`sent: "data1\n" "esc\x1b[2J\n"`, "read only", "recv: ", "shutdown: ", "closed", " ok "} {
		_, after, found := strings.Cut(rest, step)
		if !found {
			t.Errorf("no %q in %q", step, rest)
		}
		rest = after
	}
}

// TestQuoted: 60 bytes are shown, and how many there are if there are more.
func TestQuoted(t *testing.T) {
	t.Parallel()
	x := strings.Repeat("x", 61)
	for data, want := range map[string]string{
		"":              "",
		"a\nb":          `"a\n" "b"`,
		"a\n":           `"a\n"`,
		"\x00\xffé\t\"": `"\x00\xff\u00e9\t\""`,
		x[:59]:          `"` + x[:59] + `"`,
		x[:60]:          `"` + x[:60] + `"`,
		x:               `"` + x[:60] + `"... (61 bytes)`,
		x[:60] + "\n":   `"` + x[:60] + `"... (61 bytes)`,
	} {
		if got := quoted([]byte(data)); got != want {
			t.Errorf("%q is %s, want %s", data, got, want)
		}
	}
}

// TestDemo is the recipe, both ends in one loop.
func TestDemo(t *testing.T) {
	t.Parallel()
	r := echomux(t, nil)
	r.wantLine(t, 0, "ok", "sent=12 returned=12 connect_ms exchange_ms peer=127.0.0.1:*", "")
	if l := r.line(t); l.place != l.values["peer"] {
		t.Errorf("the place is not the peer: %s", l.text)
	}
	r.wantStdout(t, "data1\ndata2\n")
	for _, step := range []string{`] sent: "data1\n"`, `server: recv: "data1\n"`,
		`server: sent: "data1\n"`, `] recv: "data1\n"`} {
		if !strings.Contains(r.stderr, step) {
			t.Errorf("no %q in %q", step, r.stderr)
		}
	}
	echomux(t, nil, "-q").wantQuiet(t)
	echomux(t, nil, "-q", "-n", "20", "-count", "3").wantQuiet(t)
	l, err := net.Listen("tcp", "[::1]:0")
	if err == nil {
		l.Close()
		echomux(t, nil, "-q", "-6").wantQuiet(t)
	}
}

// TestProgress: a line this often, with what was moved so far and how fast since the line before.
func TestProgress(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", echoes)
	input, user := io.Pipe()
	run := begin(input, "-progress", "250ms", "127.0.0.1", port)
	run.stderr.await(t, "progress sent=0 returned=0 mbit_s=0.00", 4)
	user.Write(make([]byte, 1_000_000))
	run.stderr.await(t, "progress sent=1000000 returned=1000000", 2)
	user.Close()
	r := run.end(t)
	r.wantLine(t, 0, "ok", "sent=1000000 returned=1000000 connect_ms exchange_ms mbit_s peer", "")
	var bits float64
	last := r.lines[0].at.Add(-250 * time.Millisecond)
	for _, l := range r.lines[:len(r.lines)-1] {
		l.want(t, "progress", "sent returned mbit_s peer", "")
		var rate float64
		fmt.Sscan(l.values["mbit_s"], &rate)
		bits += rate * 1e6 * l.at.Sub(last).Seconds()
		last = l.at
	}
	// An emulated process may stop between the look at the clock that the rate is by and at=. There
	// the act "progress" of TestActs is what tells.
	emulator := strings.HasPrefix(os.Getenv("ECHOMUX_RIG"), "qemu")
	// Twice as many count where they are sent before one line and back after it.
	if !emulator && (bits < 4e6 || bits > 18e6) {
		t.Errorf("by the lines, %.0f bits were moved, and not 8000000: %s", bits, tail(r.stderr))
	}
	if l := r.lines[len(r.lines)-2]; l.values["mbit_s"] != "0.00" {
		t.Errorf("nothing was moved since the line before: %s", l.text)
	}
}

// TestProgressBefore: before there is a connection there is no peer; with several, none either.
func TestProgressBefore(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", echoes)
	world := finds(700*time.Millisecond, loopbacks(1), nil)
	_, run := inside(t, world, "-progress", "100ms", "name.example", port, "hello")
	r := run.end(t)
	r.wantLine(t, 0, "ok", done, "")
	r.lines[0].want(t, "progress", "sent=0 returned=0 mbit_s=0.00", "")
	r = echomux(t, nil, "-progress", "100ms", "-n", "2", "-count", "3", "-every", "300ms",
		"127.0.0.1", port, "hello")
	r.wantLine(t, 0, "ok", "connections=2 ...", "")
	for _, l := range r.lines {
		if l.word == "progress" {
			l.want(t, "progress", "sent returned mbit_s", "")
			return
		}
	}
	t.Errorf("no progress: %s", tail(r.stderr))
}

// listening starts a server in this process, and returns where it listens.
func listening(t testing.TB, args ...string) (s *session, run *running, places []string) {
	t.Helper()
	s, run = inside(t, func(*world) {}, append([]string{"-serve"}, args...)...)
	t.Cleanup(func() { s.loop.post(func() { interrupt(s, 143) }) })
	run.stderr.await(t, " listening at=", 1)
	return s, run, placesIn(t, run.stderr.String())
}

// placesIn are the places of result lines.
func placesIn(t testing.TB, text string) (places []string) {
	t.Helper()
	for line := range strings.Lines(text) {
		l, err := parseLine(strings.TrimSuffix(line, "\n"))
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		places = append(places, l.place)
	}
	return places
}

// TestServerLines: a line for each listener as soon as it listens, with the port that the kernel
// chose, and one at the end. A server that is told to end has done its job.
func TestServerLines(t *testing.T) {
	t.Parallel()
	s, run, places := listening(t, "127.0.0.1", "0")
	if len(places) != 1 || !like(places[0], "127.0.0.1:*") || like(places[0], "*:0") {
		t.Fatalf("it listens on %v", places)
	}
	host, port, _ := net.SplitHostPort(places[0])
	echomux(t, nil, places[0], "hello").wantLine(t, 0, "ok", done, "")
	r := echomux(t, nil, "-n", "20", "-count", "5", host, port, "hello")
	r.wantLine(t, 0, "ok", "connections=20 ok=20 ...", "")
	c, err := net.Dial("tcp", places[0])
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "x")
	c.Read(make([]byte, 1))
	resets(c.(*net.TCPConn))
	time.Sleep(100 * time.Millisecond)
	s.loop.post(func() { interrupt(s, 143) })
	r = run.end(t)
	if os.Getenv("ECHOMUX_RIG") == "wine" {
		return // a reset reads as EOF
	}
	r.wantLine(t, 0, "ended", "clients=22 failures=1 received=607 returned=607", "")
	r.wantLines(t, 2)
	r.lines[0].want(t, "listening", "", "")
	if got := r.line(t).place; got != places[0] {
		t.Errorf("what ended is %s", got)
	}
}

// TestServerEverywhere: without HOST both families are served, on one port, also where the kernel
// chooses it. Each has its line, and the last one names both.
func TestServerEverywhere(t *testing.T) {
	t.Parallel()
	hosts := []string{"0.0.0.0"}
	l, err := net.Listen("tcp", "[::1]:0")
	if err == nil {
		l.Close()
		hosts = append(hosts, "::")
	}
	s, run, places := listening(t, "0")
	s.loop.post(func() { interrupt(s, 130) })
	r := run.end(t)
	r.wantLine(t, 0, "ended", "clients=0 failures=0 received=0 returned=0", "")
	r.wantLines(t, len(hosts)+1)
	_, port, _ := net.SplitHostPort(places[0])
	var want []string
	for i, host := range hosts {
		want = append(want, net.JoinHostPort(host, port))
		if r.lines[i].place != want[i] {
			t.Errorf("line %d is %s, want %s", i, r.lines[i].text, want[i])
		}
	}
	if got := r.line(t).place; got != strings.Join(want, ",") || port == "0" {
		t.Errorf("what ended is %s, want %v", got, want)
	}
}

// TestServerInUse: a port that is taken is a local failure that names it, and no line before says
// that the other address is served.
func TestServerInUse(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "127.0.0.1:0", echoes)
	for _, args := range []string{"127.0.0.1 " + port, at, "-q " + at} {
		r := echomux(t, nil, append([]string{"-serve"}, strings.Fields(args)...)...)
		r.wantLine(t, 6, "failed", "", "listen "+at+": *")
		r.wantLines(t, 1)
	}
}

// TestServerNames: a server's HOST can be a name.
func TestServerNames(t *testing.T) {
	t.Parallel()
	_, run := inside(t, finds(0, nil, errTimedOut), "-serve", "name.example", "0")
	run.end(t).wantLine(t, 4, "failed", "", "lookup name.example: timed out")
	s, run := inside(t, finds(0, loopbacks(2), nil), "-serve", "name.example", "0")
	run.stderr.await(t, " listening ", 2)
	s.loop.post(func() { interrupt(s, 143) })
	run.end(t).wantLine(t, 0, "ended", "clients=0 ...", "")
}

// TestServerRestart: a server that was just ended can be started again, where it was, although the
// connections that it closed are still known there.
func TestServerRestart(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("what has exclusive use of an address has to wait for those")
	}
	place := "127.0.0.1:0"
	for range 3 {
		s, run := startedAgain(t, place)
		place = placesIn(t, run.stderr.String())[0]
		c, err := net.Dial("tcp", place)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "x")
		c.Read(make([]byte, 1))
		s.loop.post(func() { interrupt(s, 143) })
		run.end(t).wantLine(t, 0, "ended", "clients=1 failures=0 received=1 returned=1", "")
		c.Close()
	}
}

// startedAgain is a server that listens at a place. For a moment another test can be there: with a
// connection whose port the kernel chose, or by a child that has the listener until its exec. What
// is in TIME_WAIT stays for a minute.
func startedAgain(t testing.TB, place string) (*session, *running) {
	t.Helper()
	end := time.Now().Add(15 * time.Second)
	for {
		s, run := inside(t, func(*world) {}, "-serve", place)
		eventually(t, func() bool { return strings.Contains(run.stderr.String(), " at=") },
			func() string { return "it says nothing" })
		text := run.stderr.String()
		if strings.Contains(text, " listening at=") {
			return s, run
		}
		if !strings.Contains(text, "address already in use") || time.Now().After(end) {
			t.Fatal(tail(text))
		}
		run.end(t)
		time.Sleep(100 * time.Millisecond)
	}
}

// lacking is a system on which listening at some address fails.
type lacking struct {
	system
	listens func(at netip.AddrPort) error
}

func (l lacking) listen(at netip.AddrPort) (socket, netip.AddrPort, error) {
	err := l.listens(at)
	if err != nil {
		return 0, at, err
	}
	return l.system.listen(at)
}

// TestServerLacksFamily: a kernel without IPv6 can serve IPv4; one with neither can serve nobody.
func TestServerLacksFamily(t *testing.T) {
	t.Parallel()
	s, run := inside(t, func(w *world) {
		w.sockets = lacking{listens: func(at netip.AddrPort) error {
			if at.Addr().Is6() {
				return errNoAddress
			}
			return nil
		}}
	}, "-serve", "0")
	run.stderr.await(t, " listening ", 1)
	s.loop.post(func() { interrupt(s, 143) })
	r := run.end(t)
	r.wantLine(t, 0, "ended", "clients=0 ...", "")
	r.wantLines(t, 2)
	if !like(r.lines[0].place, "0.0.0.0:*") {
		t.Errorf("it listens on %s", r.lines[0].place)
	}
	_, run = inside(t, func(w *world) {
		w.sockets = lacking{listens: func(netip.AddrPort) error { return errNoAddress }}
	}, "-serve", "7")
	run.end(t).wantLine(t, 6, "failed", "", "listen *:7: cannot assign requested address")
}

// TestServerPortTaken: the port that the kernel chooses for one family may be taken in the other;
// then another choice is tried, though not for ever.
func TestServerPortTaken(t *testing.T) {
	t.Parallel()
	inUse := os.NewSyscallError("bind", errors.New("address already in use"))
	for _, taken := range []int{3, 1000} {
		tries := 0
		s, run := inside(t, func(w *world) {
			w.sockets = lacking{listens: func(at netip.AddrPort) error {
				if at.Addr().Is4() {
					return nil
				}
				tries++
				if tries <= taken {
					return inUse
				}
				return errNoAddress // it need not exist
			}}
		}, "-serve", "0")
		if taken == 1000 {
			run.end(t).wantLine(t, 6, "failed", "", "*")
			continue
		}
		run.stderr.await(t, " listening ", 1)
		s.loop.post(func() { interrupt(s, 143) })
		r := run.end(t)
		r.wantLine(t, 0, "ended", "clients=0 ...", "")
		r.wantLines(t, 2)
	}
}

// TestServerQuiet: what is no failure is not said.
func TestServerQuiet(t *testing.T) {
	t.Parallel()
	s, run := inside(t, func(*world) {}, "-serve", "-q", "127.0.0.1", "0")
	s.loop.post(func() { interrupt(s, 143) })
	run.end(t).wantQuiet(t)
}

// cannotAccept is a system that has run out of descriptors.
type cannotAccept struct{ system }

func (cannotAccept) accept(socket) (socket, netip.AddrPort, error) {
	return 0, netip.AddrPort{}, errTooManyFiles
}

// TestComplaints: a listener that cannot accept says so at once, then once a minute with how often
// it could not, for as long as it goes on. It tries ten times a second, and not for ever at once.
func TestComplaints(t *testing.T) {
	t.Parallel()
	p, err := newPoller()
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	now := 17 * time.Hour
	l := newLoop(p, cannotAccept{}, func() time.Duration { return now })
	var complaints []string
	s := &server{loop: l, complain: func(at netip.AddrPort, failures int, err error) {
		complaints = append(complaints, fmt.Sprintf("%v %d %v", now, failures, err))
	}}
	listener := &listener{server: s}
	listener.seat = l.sit(listener)
	for now < 17*time.Hour+3*time.Minute {
		l.now = now
		if listener.interest() == readable {
			listener.step(readable)
		}
		if listener.deadline() != now+acceptPause {
			t.Fatalf("at %v it waits until %v", now, listener.deadline())
		}
		now = listener.deadline()
		l.now = now
		listener.step(0)
	}
	want := []string{"17h0m0s 1 too many open files", "17h1m0s 600 too many open files",
		"17h2m0s 600 too many open files"}
	if !slices.Equal(complaints, want) {
		t.Errorf("it says %q, want %q", complaints, want)
	}
}

// TestServerCannotAccept: such a line is that of a cause.
func TestServerCannotAccept(t *testing.T) {
	t.Parallel()
	refuse := func(w *world) { w.sockets = cannotAccept{} }
	s, run := inside(t, refuse, "-serve", "127.0.0.1", "0")
	run.stderr.await(t, " listening ", 1)
	place := strings.Fields(run.stderr.String())[1]
	c, err := net.Dial("tcp", place)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	run.stderr.await(t, " cause ", 1)
	s.loop.post(func() { interrupt(s, 143) })
	r := run.end(t)
	r.wantLine(t, 0, "ended", "clients=0 failures=0 received=0 returned=0", "")
	r.lines[1].want(t, "cause", "failures=1", "accept: too many open files")
}
