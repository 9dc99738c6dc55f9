package test

import (
	"bytes"
	"fmt"
	"math/big"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Every line that a run prints passes the parser of help_test.go. Here is what it has to say.

// The keys of times, N standing for the name: of one, or the least, median, 99th percentile, most.
const (
	one  = " N_ms"
	four = " N_min_ms N_p50_ms N_p99_ms N_max_ms"
)

// keys are those of the last line of a success.
func keys(which, connect, rtt, more string) string {
	return "time msg status target" + which + " sent returned rounds" +
		strings.ReplaceAll(connect, "N", "connect") + strings.ReplaceAll(rtt, "N", "rtt") +
		more + " lasted_ms"
}

// TestKeys: the command line decides the keys, and both forms have the same ones.
func TestKeys(t *testing.T) {
	skipShort(t)
	port := listen(t, "127.0.0.1:0", echoes)
	const peer, all = " local peer", " connections ok failed unfinished"
	each(t, map[string]struct{ flags, keys string }{
		"one":            {"", keys(peer, one, one, "")},
		"rounds":         {"-count 2", keys(peer, one, four, "")},
		"one, as a line": {"-count 1 -every 1ms", keys(peer, one, one, "")},
		"several":        {"-n 2", keys(all, four, four, "")},
		"several rounds": {"-n 2 -count 2", keys(all, four, four, "")},
		"size":           {"-size 10", keys(peer, one, one, " mbit_s")},
		"several sizes":  {"-size 1M -n 2 -count 2", keys(all, four, four, " mbit_s")},
		"connect":        {"-connect", keys(peer, one, "", "")},
		"connects":       {"-connect -n 3", keys(all, four, "", "")},
	}, func(t *testing.T, c struct{ flags, keys string }) {
		for _, form := range []string{"", " -json"} {
			l := runTo(t, port, c.flags+form).want(t, 0, "ok", "")
			if strings.Join(l.keys, " ") != c.keys {
				t.Errorf("want %s in %s", c.keys, l.text)
			}
			checkNumbers(t, l)
		}
	})
}

// checkNumbers checks that the numbers of a success go together.
func checkNumbers(t *testing.T, l line) {
	t.Helper()
	at, err := time.Parse("2006-01-02T15:04:05.000Z", l.values["time"])
	isWrong := err != nil || time.Since(at).Abs() > 2*hang
	isWrong = isWrong || l.values["sent"] != l.values["returned"]
	before := map[string]float64{}
	for _, key := range l.keys {
		name, isTime := strings.CutSuffix(key, "_ms")
		if isTime {
			name, _, _ = strings.Cut(name, "_")
			isWrong = isWrong || l.number(t, key) < before[name]
			before[name] = l.number(t, key)
		}
	}
	if isWrong || before["rtt"] > before["lasted"] {
		t.Errorf("the numbers contradict each other: %s", l.text)
	}
}

// rounds are runs of several rounds.
type rounds struct {
	n, count int
	every    time.Duration
	flags    string
}

// TestRounds: with -every each round is a line, none is begun too soon, and none is missing.
func TestRounds(t *testing.T) {
	each(t, map[string]rounds{
		"with pauses":         {1, 5, 100 * time.Millisecond, ""},
		"with pauses, JSON":   {1, 5, 100 * time.Millisecond, "-json"},
		"several with pauses": {3, 4, 50 * time.Millisecond, ""},
		"no pause at the end": {1, 1, time.Hour, ""},
		"short pauses":        {1, 50, time.Nanosecond, ""},
		"no lines":            {2, 3000, 0, ""},
		"no lines with -q":    {2, 5, time.Millisecond, "-q"},
	}, checkRounds)
}

func checkRounds(t *testing.T, c rounds) {
	port := listen(t, "127.0.0.1:0", echoes)
	r := runTo(t, port, fmt.Sprintf("-n %d -count %d -every %v %s", c.n, c.count, c.every, c.flags))
	if c.flags == "-q" {
		if r.status != 0 || r.stdout != "" {
			t.Errorf("exit status %d, and it is not quiet: %s", r.status, r.stdout)
		}
		return
	}
	l := r.want(t, 0, "ok", "")
	l.wantValues(t, fmt.Sprintf("rounds=%d sent=%d", c.n*c.count, c.n*c.count*roundSize))
	checkNumbers(t, l)
	if l.number(t, "lasted_ms")*1e6 < float64(c.count-1)*float64(c.every) {
		t.Errorf("the rounds are too close together: %s", l.text)
	}
	if c.every == 0 {
		c.count = 0 // they are no lines
	}
	told := map[string]int{} // rounds, by connection
	for _, l := range r.of("round") {
		told[l.values["connection"]]++
		l.wantValues(t, fmt.Sprintf("target=127.0.0.1:%s peer=127.0.0.1:%s round=%d",
			port, port, told[l.values["connection"]]))
	}
	for i := range c.n {
		if told[strconv.Itoa(i+1)] != c.count {
			t.Errorf("the lines of rounds, by connection: %v", told)
		}
	}
}

// ---- What flows ----

// message is a way to say what is to be sent.
type message struct{ flags, words, stdin, sent string } // words are separated by |

// TestMessages: what is sent is what was said, each MESSAGE with a newline, or standard input.
func TestMessages(t *testing.T) {
	long := strings.Repeat("m", 100_000)
	each(t, map[string]message{
		"none":                {"", "", "", "data1\ndata2\n"},
		"input not asked for": {"", "", "input", "data1\ndata2\n"},
		"one":                 {"", "hello", "", "hello\n"},
		"an empty one":        {"", "hello world||x", "", "hello world\n\nx\n"},
		"not flags":           {"", "--|-x|--|-", "", "-x\n--\n-\n"},
		"odd characters":      {"", "=\"\\|\xc3\xa4\x1b[31m", "", "=\"\\\n\xc3\xa4\x1b[31m\n"},
		"rounds":              {"-count 3", "a|bc", "", "a\nbc\na\nbc\na\nbc\n"},
		"a long one":          {"-count 2", long, "", long + "\n" + long + "\n"},
		"input":               {"", "-", "no newline", "no newline"},
		"binary input":        {"", "-", "\x00\xff\r\n\n", "\x00\xff\r\n\n"},
		"long input":          {"-count 2", "-", long, long + long},
	}, func(t *testing.T, c message) {
		odd := strings.Contains(c.words, "\xc3") || strings.Contains(c.words, long)
		if odd && echomux(t).goos == "windows" {
			t.Skip("Windows has arguments of another encoding, and of 32 KiB together")
		}
		var peer recorder
		p := commandTo(t, listen(t, "127.0.0.1:0", peer.play), c.flags)
		if c.words != "" {
			p.Args = append(p.Args, strings.Split(c.words, "|")...)
		}
		p.Stdin = strings.NewReader(c.stdin)
		p.start(t).end(t).want(t, 0, "ok", "")
		if string(peer.bytes()) != c.sent {
			t.Errorf("the peer has read %.100q", peer.bytes())
		}
	})
}

// TestInput: standard input is read to its end before anything else, which may take its time but
// has a most. An empty one proves nothing, and so it is no success.
func TestInput(t *testing.T) {
	port := listen(t, "127.0.0.1:0", echoes)
	const most = 64 << 20
	each(t, map[string]int{"none": 0, "slow": 1, "most": most, "too much": most + 1},
		func(t *testing.T, size int) {
			if size > 1 {
				needProcess(t) // there it takes long
			}
			p := commandTo(t, port, "-connect-timeout 5s")
			p.Args = append(p.Args, "-")
			r, w, err := os.Pipe()
			must(t, err)
			defer w.Close()
			p.Stdin = r
			p.start(t)
			r.Close()
			w.Write(make([]byte, size))
			if size == 1 {
				time.Sleep(5500 * time.Millisecond) // this is no time of the connect
			}
			w.Close()
			if size == 0 || size > most {
				p.end(t).want(t, 6, "failed", "*standard input*").wantValues(t, "sent=0 peer=")
				return
			}
			p.end(t).want(t, 0, "ok", "").wantValues(t, fmt.Sprintf("sent=%d", size))
		})
}

// pattern returns the beginning of the stream that -size sends, and its period.
func pattern(t *testing.T, flags string) (stream []byte, period int) {
	t.Helper()
	var peer recorder
	runTo(t, listen(t, "127.0.0.1:0", peer.play), flags).want(t, 0, "ok", "")
	stream = peer.bytes()
	return stream, bytes.Index(stream[1:], stream[:64]) + 1
}

// TestPattern: what -size sends has a prime period below 1 MiB, so that a buffer that is lost
// shifts it, and is the same in each run. Rounds continue it.
func TestPattern(t *testing.T) {
	t.Parallel()
	stream, period := pattern(t, "-size 3M")
	if !big.NewInt(int64(period)).ProbablyPrime(10) || period < 1<<19 || period >= 1<<20 {
		t.Fatalf("the period is %d", period)
	}
	if len(stream) != 3<<20 || !bytes.Equal(stream[period:], stream[:len(stream)-period]) {
		t.Error("it is not periodic, or not 3 MiB")
	}
	again, _ := pattern(t, "-size 1M -count 3")
	if !bytes.Equal(stream, again) {
		t.Error("three rounds of a third are another stream")
	}
}

// TestSizes: rounds of all sizes around those of buffers, and of the pattern.
func TestSizes(t *testing.T) {
	_, period := pattern(t, "-size 3M")
	port := listen(t, "127.0.0.1:0", echoes)
	sizes := map[string]int{"1": 1, "2": 2, "1K": 1 << 10, "1M": 1 << 20, "4M": 4 << 20}
	for _, edge := range []int{64 << 10, 256 << 10, 512 << 10, period, 2 * period} {
		for size := edge - 1; size <= edge+1; size++ {
			sizes[strconv.Itoa(size)] = size
		}
	}
	each(t, sizes, func(t *testing.T, size int) {
		words := strings.TrimPrefix(t.Name(), "TestSizes/")
		l := runTo(t, port, "-count 3 -size "+words).want(t, 0, "ok", "")
		l.wantValues(t, fmt.Sprintf("sent=%d returned=%d rounds=3", 3*size, 3*size))
	})
}

// damage is what a path does to the bytes of a stream from an offset on.
type damage struct {
	at, n int
	how   func([]byte) []byte
	cause string
}

// TestDamage: a byte that differs is told by its place, wherever that is, and bytes that are lost
// or come twice are seen.
func TestDamage(t *testing.T) {
	skipShort(t)
	stream, period := pattern(t, "-size 3M")
	const size = 1_200_000 // two rounds of it
	damages := map[string]damage{}
	for _, at := range []int{0, 1, 65535, 65536, 262143, 262144, 262145, period - 1, period,
		period + 1, size - 1, size, 2*size - 1} {
		cause := fmt.Sprintf("byte %d differs: sent 0x%02x, came back 0x%02x",
			at, stream[at], ^stream[at])
		if at == 0 {
			cause += isEcho
		}
		damages[strconv.Itoa(at)] = damage{at, 1, negated, cause}
	}
	for _, n := range []int{1, 1448, 4096, 65536, 262144} {
		const cause = "byte * differs: sent 0x*, came back 0x*"
		damages[fmt.Sprint(n, " lost")] = damage{500_000, n, nothing, cause}
		damages[fmt.Sprint(n, " twice")] = damage{500_000, n, twice, cause}
	}
	each(t, damages, func(t *testing.T, d damage) {
		port := listen(t, "127.0.0.1:0", editor(int64(d.at), int64(d.at+d.n), d.how))
		l := runTo(t, port, fmt.Sprint("-count 2 -size ", size)).want(t, 1, "failed", d.cause)
		l.wantValues(t, fmt.Sprintf("rounds=%d", d.at/size))
		returned := int(l.number(t, "returned"))
		if returned < d.at || returned > d.at+d.n+8 { // what was lost can be like what follows
			t.Errorf("damaged at %d, but: %s", d.at, l.text)
		}
	})
}

// ---- Places ----

// TestPlaces: where a run goes, and what its lines call that.
func TestPlaces(t *testing.T) {
	ports := []string{"PORT", listen(t, "127.0.0.1:0", echoes)}
	if hasIPv6() {
		ports = append(ports, "SIX", listen(t, "[::1]:0", echoes))
	}
	each(t, map[string][2]string{
		"two words":      {"127.0.0.1 PORT", "target=127.0.0.1:PORT peer=127.0.0.1:PORT"},
		"one word":       {"127.0.0.1:PORT", "target=127.0.0.1:PORT local=127.0.0.1:*"},
		"-4":             {"-4 127.0.0.1 PORT", "local=127.0.0.1:*"},
		"mapped":         {"::ffff:127.0.0.1 PORT", "peer=127.0.0.1:PORT local=127.0.0.1:*"},
		"any":            {"0.0.0.0 PORT", "peer=127.0.0.1:PORT"},
		"a name":         {"localhost:PORT", "target=localhost:PORT peer=127.0.0.1:*"},
		"a name, -4":     {"-4 localhost PORT", "peer=127.0.0.1:* skipped="},
		"IPv6":           {"::1 SIX", "target=[::1]:SIX peer=[::1]:SIX local=[::1]:*"},
		"IPv6, brackets": {"[::1] SIX", "target=[::1]:SIX"},
		"IPv6, one word": {"[::1]:SIX", "target=[::1]:SIX"},
		"-6":             {"-6 ::1 SIX", "peer=[::1]:SIX"},
		"any, IPv6":      {":: SIX", "peer=[::1]:SIX"},
	}, func(t *testing.T, c [2]string) {
		words := strings.NewReplacer(ports...).Replace(c[0])
		if strings.Contains(words, "SIX") {
			t.Skip("this machine has no IPv6")
		}
		if strings.Contains(t.Name(), "any") && echomux(t).goos == "windows" {
			t.Skip("Windows does not connect to the unspecified address")
		}
		l := run(t, strings.Fields(words)...).want(t, 0, "ok", "")
		l.wantValues(t, strings.NewReplacer(ports...).Replace(c[1]))
		if !like(l.values["skipped"], "") && !like(l.values["skipped"], "::1: *") {
			t.Errorf("skipped: %s", l.text)
		}
	})
}

// TestRaw: what an argument or a peer says reaches a terminal in printable characters only; the
// parsers of both streams see to that. (No name server is asked for names that are none.)
func TestRaw(t *testing.T) {
	t.Parallel()
	port := listen(t, "127.0.0.1:0", inOrder(take(2), say("\x1b[31m\xff\n\r\x00\x7f"), ignores))
	r := run(t, "-v", "127.0.0.1", port, "x")
	r.want(t, 1, "failed", "byte 0 differs: sent 0x78, came back 0x1b"+isEcho)
	if !strings.Contains(r.stderr, "received: ") {
		t.Errorf("the log has not what was received: %s", r.stderr)
	}
	if echomux(t).goos == "windows" {
		t.Skip("Windows has arguments of another encoding")
	}
	for _, host := range []string{
		"a\x1b[31mb", "b\xc3\xa4r", "\xff\xfe", "a \"quoted\" b", "a\\b=c\n",
	} {
		for _, form := range []string{"-v", "-json"} {
			l := run(t, "-connect-timeout", "50s", form, host, "7").want(t, 3, "failed", "lookup *")
			l.wantValues(t, "target=*:7 sent=0")
		}
	}
}

// ---- The log ----

// TestLog: -v tells the steps in the recipe's form and order, and of many bytes only the first.
func TestLog(t *testing.T) {
	t.Parallel()
	port := listen(t, "127.0.0.1:0", echoes)
	p := commandTo(t, port, "-v").start(t)
	r := p.end(t)
	wantInOrder(t, r.stderr, `non-blocking mode`, `watch.* write`, `connected .*127\.0\.0\.1:`+port,
		`sent: "data1\\n" "data2\\n"$`, `received: "data1\\n" "data2\\n"$`, `shutdown`, `closed`)
	prefix := fmt.Sprintf("[echomux (%d)] ", p.Process.Pid)
	if echomux(t).isProcess() && strings.Count(r.stderr, prefix) != strings.Count(r.stderr, "\n") {
		t.Errorf("want %s in each line of %s", prefix, r.stderr)
	}
	for text := range strings.Lines(runTo(t, port, "-v -size 1M").stderr) {
		if len(text) > 500 {
			t.Errorf("a line of the log has %d bytes", len(text))
		}
	}
}

// TestRecipe: without a command line both ends run in one process, and every step is logged.
func TestRecipe(t *testing.T) {
	t.Parallel()
	r := run(t)
	r.want(t, 0, "ok", "").wantValues(t, "target=127.0.0.1:* sent=12 returned=12 rounds=1")
	wantInOrder(t, r.stderr, `\] server: .*listening`, `\] switch to non-blocking mode`,
		`\] sent: "data1\\n" "data2\\n"$`, `\] server: received: "data1\\n" "data2\\n"$`,
		`\] server: sent: "data1\\n" "data2\\n"$`, `\] received: "data1\\n" "data2\\n"$`)
}

// wantInOrder checks that lines match the patterns in this order, with others between them.
func wantInOrder(t *testing.T, text string, patterns ...string) {
	t.Helper()
	rest := text
	for _, pattern := range patterns {
		place := regexp.MustCompile("(?m)" + pattern).FindStringIndex(rest)
		if place == nil {
			t.Fatalf("%s does not come in its order in\n%s", pattern, text)
		}
		rest = rest[place[1]:]
	}
}
