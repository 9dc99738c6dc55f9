package main

import (
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Rounds, many connections, and their figures.

func TestRounds(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", echoes)
	r := echomux(t, nil, "-count", "5", "127.0.0.1", port, "data1", "data2")
	r.wantLine(t, 0, "ok", "sent=60 returned=60 connect_ms rounds=5 rtt_ms peer", "")
	r.wantLines(t, 1)
	r.wantStdout(t, strings.Repeat("data1\ndata2\n", 5))
}

// TestEvery: a line for each round, which starts no sooner than asked; a round that is not due is
// no timeout.
func TestEvery(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", echoes)
	start := time.Now()
	r := echomux(t, nil, "-count", "3", "-every", "1300ms", "-io-timeout", "1s",
		"127.0.0.1", port, "hello")
	r.wantLine(t, 0, "ok", "sent=18 returned=18 connect_ms rounds=3 rtt_ms peer", "")
	r.wantLines(t, 4)
	for i, l := range r.lines[:3] {
		l.want(t, "round", "rtt_ms peer", "")
		if l.count("round") != int64(i+1) {
			t.Errorf("line %d is %q", i, l.text)
		}
	}
	if took := time.Since(start); took < 2600*time.Millisecond {
		t.Errorf("three rounds took %v", took)
	}
	r = echomux(t, nil, "-q", "-count", "3", "-every", "1ms", "127.0.0.1", port, "hello")
	r.wantQuiet(t)
	// One line is promised even where there is one round.
	r = echomux(t, nil, "-every", "1h", "127.0.0.1", port, "hello")
	r.wantLine(t, 0, "ok", done, "")
	r.wantLines(t, 2)
	r.lines[0].want(t, "round", "rtt_ms peer", "")
}

// laterRounds are what -count is for: a flow that was good once. The text of an idle one tells for
// how long it was idle, whatever ends it.
var laterRounds = []peerTest{
	{name: "dropped", flags: "-io-timeout 1s -count 4", status: 5,
		keys:  "sent=18 returned=12 connect_ms rounds=2 rtt_ms peer",
		cause: "timed out after 1s of silence (12 of 18 bytes), idle for *s before round 3",
		talk: func(c *net.TCPConn) {
			returns(c, 12)
			ignores(c)
		}},
	{name: "dropped halfway", flags: "-io-timeout 1s -count 4", status: 5,
		keys:  "sent=18 returned=14 connect_ms rounds=2 rtt_ms peer",
		cause: "timed out after 1s of silence (14 of 18 bytes)",
		talk: func(c *net.TCPConn) {
			returns(c, 14)
			ignores(c)
		}},
	{name: "dropped while idle", flags: "-io-timeout 3s -count 4 -every 1200ms", status: 5,
		keys:  "sent=12 returned=6 connect_ms rounds=1 rtt_ms peer",
		cause: "timed out after 3s of silence (6 of 12 bytes), idle for *s before round 2",
		talk: func(c *net.TCPConn) {
			returns(c, 6)
			ignores(c)
		}},
	{name: "closed in a round", flags: "-count 4", status: 1,
		keys:  "sent=18 returned=12 connect_ms rounds=2 rtt_ms peer",
		cause: "closed early (12 of 18 bytes)",
		talk: func(c *net.TCPConn) {
			returns(c, 12)
			reads(c, 3)
			ends(c)
		}},
	{name: "changed in a round", flags: "-count 4", status: 1,
		keys:  "sent=18 returned=14 connect_ms rounds=2 rtt_ms peer",
		cause: "byte 14 differs: sent 0x6c, came back 0x4c: altered on the path",
		talk: func(c *net.TCPConn) {
			returns(c, 14)
			io.WriteString(c, "LLO\n")
			ignores(c)
		}},
	{name: "closed while idle", flags: "-count 4 -every 1h", status: 1,
		keys:  "sent=6 returned=6 connect_ms rounds=1 rtt_ms peer",
		cause: "closed by the peer after *s of silence, before round 2",
		talk: func(c *net.TCPConn) {
			returns(c, 6)
			time.Sleep(1200 * time.Millisecond)
		}},
	{name: "late, and closed a second after", flags: "-count 4 -every 1h", status: 1,
		keys:  "sent=6 returned=6 connect_ms rounds=1 rtt_ms peer",
		cause: "closed by the peer after *s of silence, before round 2",
		talk: func(c *net.TCPConn) {
			time.Sleep(2500 * time.Millisecond)
			returns(c, 6)
			time.Sleep(1200 * time.Millisecond)
		}},
	{name: "reset while idle", flags: "-count 4 -every 1h", status: 1, fault: resetReads,
		keys:  "sent=6 returned=6 connect_ms rounds=1 rtt_ms peer",
		cause: "read: connection reset by peer after *s of silence, before round 2",
		talk: func(c *net.TCPConn) {
			returns(c, 6)
			time.Sleep(1200 * time.Millisecond)
			resets(c)
		}},
}

func TestLaterRound(t *testing.T) {
	t.Parallel()
	for _, test := range laterRounds {
		t.Run(test.name, func(t *testing.T) {
			r := test.run(t)
			if strings.Contains(test.flags, "-every") {
				r.wantIdle(t)
			}
		})
	}
}

// idleForm is how a cause tells for how long a flow was idle.
var idleForm = regexp.MustCompile(`(\d+\.\d)s (of silence, )?before round 2`)

// wantIdle: the flow was idle for some time, at most that between the lines of the first round and
// of the end, give or take a second of a busy machine. Of a timeout that itself is no part.
func (r result) wantIdle(t testing.TB) {
	t.Helper()
	apart := r.line(t).at.Sub(r.lines[0].at)
	if r.status == exitIOTimeout {
		apart -= 3 * time.Second
	}
	text := idleForm.FindStringSubmatch(r.line(t).cause)
	if text == nil {
		t.Fatalf("it does not tell for how long it was idle: %q", r.line(t).cause)
	}
	idle, _ := strconv.ParseFloat(text[1], 64)
	if idle < 0.2 || idle > apart.Seconds()+1 {
		t.Errorf("it was idle for %v: %q", apart, r.line(t).cause)
	}
}

// TestInterrupted: a signal ends the run with the line so far. What has its verdict keeps it.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", echoes)
	_, silent := serve(t, "127.0.0.1:0", ignores)
	for _, test := range []struct {
		name, flags, port, ready, keys string
	}{
		{"rounds", "-count 0 -every 1h", port, "round=1",
			"sent=6 returned=6 connect_ms rounds=1 rtt_ms peer"},
		{"answer", "-io-timeout 0", silent, "sent: ",
			"sent=6 returned=0 connect_ms exchange_ms peer"},
		{"several", "-n 2 -io-timeout 0", silent, "#2 sent: ",
			"connections=2 ok=0 failures=0 unfinished=2 sent=12 returned=0 connect_ms"},
		{"several, of rounds", "-n 2 -count 0 -every 1h", port, "round=1 rtt_ms",
			"connections=2 ok=0 failures=0 unfinished=2 sent returned connect_ms rounds rtt_ms"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			args := append(strings.Fields(test.flags), "-v", "127.0.0.1", test.port, "hello")
			s, run := inside(t, func(*world) {}, args...)
			run.stderr.await(t, test.ready, 1)
			s.loop.post(func() { interrupt(s, 143) })
			run.end(t).wantLine(t, 143, "interrupted", test.keys, "")
		})
	}
}

// TestInterruptedAfter: what waits only for the peer's FIN has its verdict, and keeps it.
func TestInterruptedAfter(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		echoes(c)
		lingers(c)
	})
	for n, keys := range map[int]string{
		1: done,
		2: "connections=2 ok=2 failures=0 unfinished=0 sent=12 returned=12 connect_ms exchange_ms",
	} {
		args := []string{"-v", "-n", strconv.Itoa(n), "127.0.0.1", port, "hello"}
		s, run := inside(t, func(*world) {}, args...)
		run.stderr.await(t, "shutdown: ", n)
		s.loop.post(func() { interrupt(s, 143) })
		run.end(t).wantLine(t, 0, "ok", keys, "")
	}
}

// TestInterruptedBefore: a line comes even before there is anything to tell.
func TestInterruptedBefore(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		flags, keys string
	}{
		{"", "sent=0 returned=0"},
		{"-count 0", "sent=0 returned=0 rounds=0"},
		{"-n 3", "connections=3 ok=0 failures=0 unfinished=3 sent=0 returned=0"},
		{"-serve", ""},
	} {
		args := append(strings.Fields(test.flags), "name.example", "7")
		if test.flags != "-serve" {
			args = append(args, "hello")
		}
		s, run := inside(t, finds(time.Second, nil, errTimedOut), args...)
		s.loop.post(func() { interrupt(s, 130) })
		run.end(t).wantLine(t, 130, "interrupted", test.keys, "")
	}
}

func TestMany(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", echoes)
	for _, test := range []struct {
		args, keys string
	}{
		{"-n 50 127.0.0.1 PORT hello",
			"connections=50 ok=50 failures=0 unfinished=0 sent=300 returned=300 connect_ms " +
				"exchange_ms"},
		{"-n 10 -count 7 127.0.0.1 PORT hello",
			"connections=10 ok=10 failures=0 unfinished=0 sent=420 returned=420 connect_ms " +
				"rounds=70 rtt_ms"},
		{"-n 3 -until connect 127.0.0.1 PORT",
			"connections=3 ok=3 failures=0 unfinished=0 sent=0 returned=0 connect_ms"},
		{"-n 3 -until eof 127.0.0.1 PORT hello",
			"connections=3 ok=3 failures=0 unfinished=0 sent=18 returned=18 connect_ms " +
				"exchange_ms"},
	} {
		args := strings.Fields(strings.Replace(test.args, "PORT", port, 1))
		r := echomux(t, nil, args...)
		r.wantLine(t, 0, "ok", test.keys, "")
		r.wantLines(t, 1)
		r.wantStdout(t, "")
		echomux(t, nil, append([]string{"-q"}, args...)...).wantQuiet(t)
	}
	r := echomux(t, nil, "-n", "3", "-every", "1ms", "-count", "2", "127.0.0.1", port, "hello")
	r.wantLine(t, 0, "ok", "connections=3 ...", "")
	var who []string
	for _, l := range r.lines[:len(r.lines)-1] {
		l.want(t, "round", "rtt_ms connection peer", "")
		who = append(who, l.values["connection"]+"."+l.values["round"])
	}
	slices.Sort(who)
	if got := strings.Join(who, " "); got != "1.1 1.2 2.1 2.2 3.1 3.2" {
		t.Errorf("the lines of rounds are those of %s", got)
	}
}

// misbehave gives the nth connection the nth of some fates; the rest are echoed.
func misbehave(fates ...func(*net.TCPConn)) func(*net.TCPConn) {
	var turn atomic.Int64
	return func(c *net.TCPConn) {
		n := int(turn.Add(1)) - 1
		if n < len(fates) {
			fates[n](c)
			return
		}
		echoes(c)
	}
}

func lies(c *net.TCPConn) {
	reads(c, 6)
	io.WriteString(c, "heLlo\n")
	ignores(c)
}

func closesHalfway(c *net.TCPConn) {
	reads(c, 6)
	io.WriteString(c, "hel")
}

// TestMixedFates: equal failures are one line, whenever they come, and the worst status is that of
// the run.
func TestMixedFates(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", misbehave(ignores, closesHalfway, lies, ends, ignores,
		func(c *net.TCPConn) {
			time.Sleep(300 * time.Millisecond)
			closesHalfway(c)
		}))
	r := echomux(t, nil, "-n", "10", "-io-timeout", "1s", "127.0.0.1", port, "hello")
	r.wantLine(t, 1, "failed", "connections=10 ok=4 failures=6 unfinished=0 sent=* returned=32 "+
		"connect_ms exchange_ms", "")
	r.wantCauses(t, map[string]string{
		"closed early (*":     "3",
		"byte 2 differs: *":   "1",
		"timed out after 1s*": "2",
	})
}

// wantCauses compares the lines before the last with causes and how many failed of each.
func (r result) wantCauses(t testing.TB, causes map[string]string) {
	t.Helper()
	r.wantLines(t, len(causes)+1)
	for cause, failures := range causes {
		found := slices.ContainsFunc(r.lines, func(l resultLine) bool {
			return l.word == "cause" && like(l.cause, cause) && l.values["failures"] == failures
		})
		if !found {
			t.Errorf("no cause of %s failures %q: %s", failures, cause, tail(r.stderr))
		}
	}
}

// TestWorstStatus: which of several statuses is the run's: 6, 1, 5, 4, 3, in this order, and not
// the order in which they come.
func TestWorstStatus(t *testing.T) {
	t.Parallel()
	order := []int{exitOK, exitConnect, exitConnectTimeout, exitIOTimeout, exitExchange, exitLocal}
	for i, worse := range order {
		for _, better := range order[:i] {
			for _, statuses := range [][]int{{worse, better}, {better, worse}} {
				var sum tally
				for _, status := range statuses {
					f := &failure{"read", errReset}
					if status == exitOK {
						f = nil
					}
					sum.count(status, f, 1)
				}
				if sum.status != worse {
					t.Errorf("of %v comes %d", statuses, sum.status)
				}
			}
		}
	}
}

// TestOffsets: connections that fail at as many different places as there are have one cause.
func TestOffsets(t *testing.T) {
	t.Parallel()
	faulty(t, "wine", resetReads)
	const n = 2000
	var turn atomic.Int64
	_, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		i := turn.Add(1)
		returns(c, i)
		switch i % 4 {
		case 0:
			c.Write([]byte{'?'})
			ignores(c)
		case 1:
			resets(c)
		default:
			reads(c, n+1-i)
		}
	})
	r := echomux(t, nil, "-n", strconv.Itoa(n), "127.0.0.1", port, strings.Repeat("x", n))
	r.wantLine(t, 1, "failed", "connections=2000 ok=* failures=* unfinished=0 ...", "")
	causes := len(r.lines) - 1
	if causes < 2 || causes > 5 {
		t.Errorf("%d causes: %s", causes, tail(r.stderr))
	}
	var failures int64
	for _, l := range r.lines[:causes] {
		l.want(t, "cause", "failures", "*")
		failures += l.count("failures")
	}
	if failures != r.line(t).count("failures") || failures < n*9/10 {
		t.Errorf("%d failures in the causes: %s", failures, r.line(t).text)
	}
}

// TestTally: causes are counted by status and operation, with the first text. There are ten at
// most, so the tally does not grow with what it counts.
func TestTally(t *testing.T) {
	t.Parallel()
	for _, ops := range []int{5, 20} {
		var sum tally
		for i := range 10_000 {
			f := &failure{"op" + strconv.Itoa(i%ops), fmt.Errorf("failure %d", i)}
			sum.count(1+i/ops%2, f, 1)
		}
		if sum.failures != 10_000 || len(sum.causes) != 10 {
			t.Errorf("%d failures of %d causes", sum.failures, len(sum.causes))
		}
		for i, c := range sum.causes {
			text := fmt.Sprintf("failure %d", i)
			if c.n != 10_000/ops/2 || c.text != text || c.status != 1+i/ops%2 {
				t.Errorf("cause %d is %+v", i, *c)
			}
		}
	}
}

// TestManyReset: a connection reset at once, even before its connect was seen to end, was not
// refused.
func TestManyReset(t *testing.T) {
	t.Parallel()
	faulty(t, "qemu-mips", "SO_ERROR carries the host's error number")
	faulty(t, "wine", resetReads)
	_, port := serve(t, "127.0.0.1:0", resets)
	r := echomux(t, nil, "-n", "200", "127.0.0.1", port, "hello")
	r.wantLine(t, 1, "failed", "connections=200 ok=0 failures=200 unfinished=0 ...", "")
	for _, l := range r.lines[:len(r.lines)-1] {
		l.want(t, "cause", "failures", "*: connection reset by peer")
	}
}

func TestManyRefused(t *testing.T) {
	t.Parallel()
	faulty(t, "qemu-mips", "SO_ERROR carries the host's error number")
	_, port := closedPort(t)
	r := echomux(t, nil, "-n", "7", "127.0.0.1", port, "hello")
	r.wantLine(t, 3, "failed", "connections=7 ok=0 failures=7 unfinished=0 sent=0 returned=0", "")
	r.wantCauses(t, map[string]string{"127.0.0.1: connection refused": "7"})
	_, run := inside(t, finds(0, nil, errTimedOut), "-n", "7", "name.example", port, "hello")
	r = run.end(t)
	r.wantLine(t, 4, "failed", "connections=7 ok=0 failures=7 unfinished=0 sent=0 returned=0", "")
	r.wantCauses(t, map[string]string{"lookup name.example: timed out": "7"})
}

// ---- Figures ----

// delays answers each of some messages of 6 bytes after its delay.
func delays(each ...time.Duration) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		for _, d := range each {
			p := make([]byte, 6)
			_, err := io.ReadFull(c, p)
			if err != nil {
				return
			}
			time.Sleep(d)
			c.Write(p)
		}
		ignores(c)
	}
}

// atLeast checks one time of a line.
func (l resultLine) atLeast(t testing.TB, key string, i int, least time.Duration) {
	t.Helper()
	times := l.times(key)
	if len(times) <= i || times[i] < least {
		t.Errorf("%s is not %v at least: %q", key, least, l.text)
	}
}

// below checks one time of a line. The bound is what would be wrong, far above what is right.
func (l resultLine) below(t testing.TB, key string, i int, most time.Duration) {
	t.Helper()
	times := l.times(key)
	if len(times) <= i || times[i] >= most {
		t.Errorf("%s is not below %v: %q", key, most, l.text)
	}
}

// TestExchangeTime: an exchange takes from connected to the last byte read, or to the verdict.
func TestExchangeTime(t *testing.T) {
	t.Parallel()
	const second = time.Second
	for _, test := range []struct {
		name, flags string
		talk        func(*net.TCPConn)
		least, most time.Duration
	}{
		{"delayed", "", delays(second), second, hang},
		{"delayed, of several", "-n 2", delays(second), second, hang},
		{"none came", "-io-timeout 1s", ignores, second, hang},
		{"some came", "-io-timeout 2s", func(c *net.TCPConn) {
			returns(c, 3)
			ignores(c)
		}, 0, 2 * second},
		{"slow to close", "-until eof", func(c *net.TCPConn) {
			returns(c, 6)
			time.Sleep(2 * second)
		}, 0, 2 * second},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, port := serve(t, "127.0.0.1:0", test.talk)
			args := append(strings.Fields(test.flags), "127.0.0.1", port, "hello")
			l := echomux(t, nil, args...).line(t)
			l.below(t, "connect_ms", 0, second)
			l.atLeast(t, "exchange_ms", 0, test.least)
			l.below(t, "exchange_ms", 0, test.most)
		})
	}
}

// TestRoundTimes: the four times of rounds are the least, the median, the 99th percentile and the
// most, of what the lines of the rounds say, and these begin and end with each round.
func TestRoundTimes(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	delay := []time.Duration{1500 * ms, 0, 100 * ms, 0, 500 * ms, 600 * ms, 700 * ms}
	_, port := serve(t, "127.0.0.1:0", delays(delay...))
	r := echomux(t, nil, "-count", "7", "-every", "1ms", "127.0.0.1", port, "hello")
	r.wantLines(t, 8)
	l := r.line(t)
	l.want(t, "ok", "sent=42 returned=42 connect_ms rounds=7 rtt_ms peer", "")
	l.below(t, "connect_ms", 0, 1500*ms)
	var all []time.Duration
	for i, least := range delay {
		r.lines[i].atLeast(t, "rtt_ms", 0, least)
		all = append(all, r.lines[i].times("rtt_ms")...)
	}
	var sum time.Duration
	for _, rtt := range all[1:] {
		sum += rtt
	}
	if span := r.lines[6].at.Sub(r.lines[0].at); sum > span+2*time.Second {
		t.Errorf("rounds 2 to 7 took %v, in a time of %v", sum, span)
	}
	slices.Sort(all)
	got := l.times("rtt_ms")
	for i, want := range []time.Duration{all[0], all[3], all[6], all[6]} {
		allowed := time.Duration(0) // for least and most
		if i == 1 || i == 2 {
			allowed = want/20 + ms/100
		}
		if got[i] < want-allowed || got[i] > want+allowed {
			t.Errorf("the rounds took %v, and time %d is %v: %s", all, i, got[i], l.text)
		}
	}
}

// TestConnectTimes: with -n, no connection's time holds that of starting the others.
func TestConnectTimes(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", ignores)
	start := time.Now()
	r := echomux(t, nil, "-n", "3000", "-until", "connect", "127.0.0.1", port)
	took := time.Since(start)
	l := r.line(t)
	l.want(t, "ok", "connections=3000 ...", "")
	l.below(t, "connect_ms", 1, took/8)
}

// TestSpread: median and 99th percentile are within 5% of those of the sorted values, in memory
// that does not grow.
func TestSpread(t *testing.T) {
	t.Parallel()
	random := noise(200_000)
	for _, test := range []struct {
		name  string
		value func(i int) time.Duration
	}{
		{"one", func(int) time.Duration { return 123_456_789 }},
		{"ascending", func(i int) time.Duration { return time.Duration(i * 1000) }},
		{"nanoseconds", func(i int) time.Duration { return time.Duration(i % 50) }},
		{"powers", func(i int) time.Duration { return 1 << (random[i] % 63) }},
		{"random", func(i int) time.Duration {
			return time.Duration(random[i])*time.Millisecond + time.Duration(random[i+1])
		}},
		{"two far apart", func(i int) time.Duration { return 1 + time.Duration(i%2)*time.Hour }},
	} {
		for _, n := range []int{1, 2, 3, 99, 100, 101, 100_000} {
			checkSpread(t, fmt.Sprintf("%s, %d", test.name, n), n, test.value)
		}
	}
	var s spread
	s.add(-time.Second)
	if s.key("x", false) != " x_ms=0.00/0.00/0.00/0.00" {
		t.Errorf("a time below 0 is %s", s.key("x", false))
	}
}

// checkSpread compares a spread of n values with the values.
func checkSpread(t *testing.T, name string, n int, value func(int) time.Duration) {
	t.Helper()
	var s spread
	var all []time.Duration
	for i := range n {
		all = append(all, value(i))
		s.add(value(i))
	}
	slices.Sort(all)
	if s.n != int64(n) || s.least != all[0] || s.most != all[n-1] || len(s.buckets) > 1024 {
		t.Errorf("%s: %d values from %v to %v", name, s.n, s.least, s.most)
	}
	for _, share := range []float64{0.5, 0.99} {
		got := float64(s.at(share))
		want := float64(all[(n*int(share*100)+99)/100-1])
		if got < want*0.95 || got > want*1.05 {
			t.Errorf("%s: at %v it is %v, want %v", name, share, got, want)
		}
	}
}
