package test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// meeting is a run against a peer, and what it has to come to.
type meeting struct {
	peer   script // nil: nobody listens
	flags  string
	status int
	cause  string // * is any text; RESET and REFUSED are errors that some rigs tell otherwise
	values string // of the last line
}

// wordsOf replaces the names of errors that some rigs tell otherwise.
func (p *program) wordsOf(cause string) string {
	reset := "connection reset by peer"
	refused := "connection refused"
	if !p.seesResets() {
		reset = "closed early"
	}
	if !p.namesConnectErrors() {
		refused = "*"
	}
	return strings.NewReplacer("RESET", reset, "REFUSED", refused).Replace(cause)
}

// want wants that a run came to that.
func (m meeting) want(t *testing.T, r result) line {
	t.Helper()
	msg := "failed"
	if m.status == 0 {
		msg = "ok"
	}
	return r.want(t, m.status, msg, echomux(t).wordsOf(m.cause))
}

// Without a MESSAGE a round is "data1\n" and "data2\n".
const roundSize = 12

const isEcho = "; is this an echo server?"

// none are the values of a run to which nothing right came back.
const none = "returned=0 rounds=0 rtt_ms="

// The exit status and the words of each cause, whatever brings it about.
var meetings = map[string]meeting{
	// All bytes are back, and none too many.
	"echoes":              {echoes, "", 0, "", "sent=12 returned=12 rounds=1 rtt_ms=*"},
	"echoes, then closes": {echo(roundSize), "", 0, "", "returned=12"},
	"echoes, then resets": {
		inOrder(echo(roundSize), rests, resets), "", 0, "", "returned=12"},
	"echoes, then stands still": {inOrder(echo(roundSize), stands), "", 0, "", "returned=12"},
	"resets at our FIN": {
		inOrder(echo(roundSize), ignores, resets), "", 0, "", "returned=12 local=* peer=*"},
	"half-closes after the last byte": {
		inOrder(echo(roundSize), halfCloses, ignores), "", 0, "", "returned=12"},
	"returns byte by byte": {
		inOrder(trickle(roundSize, 1e6), ignores), "", 0, "", "returned=12"},
	"slower in all than the limit, but never silent for so long": {
		inOrder(trickle(roundSize, 25e7), ignores), "-io-timeout 2s", 0, "", "returned=12"},
	"reads first what it returns": {
		inOrder(change(300<<10, slices.Clone[[]byte]), ignores), "-size 300K", 0, "", "mbit_s=*"},

	// The bytes are wrong.
	"alters the first byte": {inOrder(flip(roundSize, 0), ignores), "", 1,
		"byte 0 differs: sent 0x64, came back 0x65" + isEcho, "sent=12 " + none},
	"alters a byte": {inOrder(flip(roundSize, 7), ignores), "", 1,
		"byte 7 differs: sent 0x61, came back 0x60", "sent=12 returned=7 rounds=0"},
	"alters the last byte": {inOrder(flip(roundSize, roundSize-1), ignores), "", 1,
		"byte 11 differs: sent 0x0a, came back 0x0b", "returned=11 rounds=0"},
	"alters a byte, then resets": {inOrder(flip(roundSize, 7), resets), "", 1,
		"byte 7 differs: sent 0x61, came back 0x60", "returned=7"},
	"turns newlines into two bytes": {inOrder(change(roundSize, crlf), ignores), "", 1,
		"byte 5 differs: sent 0x0a, came back 0x0d", "returned=5"},
	"loses a byte": {inOrder(take(1), echoes), "", 1,
		"byte 0 differs: sent 0x64, came back 0x61" + isEcho, none},
	"alters a byte of round 2": {inOrder(echo(roundSize), flip(roundSize, 7), ignores),
		"-count 3", 1, "byte 19 differs: sent 0x61, came back 0x60", "returned=19 rounds=1"},
	"adds a byte": {inOrder(change(roundSize, oneMore), ignores), "", 1,
		"more came back than was sent", "returned=12"},
	"sends everything twice": {inOrder(change(roundSize, twice), ignores), "", 1,
		"more came back than was sent", "sent=12 returned=12"},
	"adds a byte after our FIN": {inOrder(echo(roundSize), ignores, say("x")), "", 1,
		"more came back than was sent", "returned=12 rounds=1 rtt_ms=*"},
	"adds a byte in the pause": {inOrder(echo(roundSize), rests, say("x"), ignores),
		"-count 2 -every 30s", 1, "more came back than was sent", "returned=12 rounds=1"},
	"greets": {inOrder(take(1), say("220 ready\r\n"), ignores), "", 1,
		"byte 0 differs: sent 0x64, came back 0x32" + isEcho, none},
	"greets at once": {inOrder(say("SSH-2.0-x\r\n"), ignores), "", 1, "*" + isEcho, none},
	"greets at once, then resets": {inOrder(say("SSH-2.0-x\r\n"), rests, resets), "", 1,
		"*" + isEcho, none},
	"greets with what we will say, and more": {inOrder(say("data1\ndata2\ndata1"), ignores), "", 1,
		"more came back than was sent*", ""},

	// There is no connection.
	"nobody listens": {nil, "", 3, "127.0.0.1: REFUSED",
		"sent=0 " + none + " connect_ms= lasted_ms= local= peer="},
	"nobody listens, several times": {nil, "-n 3", 3, "",
		"failed=3 sent=0 " + none + " connect_p50_ms="},
	"nobody listens, -q":           {nil, "-q", 3, "127.0.0.1: REFUSED", ""},
	"nobody listens, only connect": {nil, "-connect", 3, "127.0.0.1: REFUSED", "connect_ms="},
	"there is no address of that family": {echoes, "-6", 3,
		"lookup 127.0.0.1: *no address of that family", "sent=0"},
	"of -6 and -4 the later one holds": {echoes, "-6 -4", 0, "", ""},

	// There is one, and no more is wanted.
	"echoes, only connect": {echoes, "-connect", 0, "",
		"sent=0 " + none + " connect_ms=* peer=*"},
	"closes, only connect":       {closes, "-connect", 0, "", "connect_ms=*"},
	"resets, only connect":       {resets, "-connect", 0, "", "connect_ms=*"},
	"greets, only connect":       {say("220 ready\r\n"), "-connect", 0, "", "returned=0"},
	"stands still, only connect": {stands, "-connect -io-timeout 1ms", 0, "", "sent=0"},
	"only connect, several times": {echoes, "-connect -n 20", 0, "",
		"ok=20 rounds=0 connect_max_ms=*"},

	// The peer is silent while bytes are missing.
	"is silent": {ignores, "-io-timeout 300ms", 5,
		"timed out after 300ms of silence (0 of 12 bytes)", "sent=12 " + none + " lasted_ms=*"},
	"never reads": {stands, "-io-timeout 300ms", 5,
		"timed out after 300ms of silence (0 of 12 bytes)", "sent=12 " + none},
	"never reads what no buffer holds": {stands, "-size 1G -io-timeout 1s", 5,
		"timed out after 1s of silence (0 of 1073741824 bytes)", none},
	"takes, and never returns": {sip, "-size 1G -io-timeout 1s", 5,
		"timed out after 1s of silence (0 of 1073741824 bytes)", none},
	"returns 5 bytes, then is silent": {inOrder(echo(5), ignores), "-io-timeout 1s", 5,
		"timed out after 1s of silence (5 of 12 bytes)", "returned=5 rounds=0"},
	"is silent in round 2": {inOrder(echo(roundSize), ignores), "-count 2 -io-timeout 1s", 5,
		"timed out after 1s of silence (0 of 12 bytes)", "returned=12 rounds=1"},
	"is silent after a pause": {inOrder(echo(roundSize), ignores),
		"-count 2 -every 200ms -io-timeout 1s", 5,
		"timed out after 1s of silence (0 of 12 bytes), idle for *s before round 2",
		"returned=12 rounds=1"},
	"a pause is no silence": {echoes, "-count 2 -every 2500ms -io-timeout 2s", 0, "", "rounds=2"},

	// The connection is lost.
	"closes": {inOrder(take(roundSize), closes), "", 7, "closed early (0 of 12 bytes)",
		"sent=12 " + none},
	"returns 5 bytes, then closes": {inOrder(change(roundSize, first5), closes), "", 7,
		"closed early (5 of 12 bytes)", "sent=12 returned=5 rounds=0"},
	"half-closes at once": {inOrder(halfCloses, ignores), "", 7, "closed early (0 of 12 bytes)",
		none},
	"half-closes too soon": {inOrder(change(roundSize, first5), halfCloses, ignores), "", 7,
		"closed early (5 of 12 bytes)", "returned=5"},
	"resets": {inOrder(take(roundSize), resets), "", 7, "RESET (0 of 12 bytes)",
		"sent=12 " + none},
	"returns 5 bytes, then resets": {inOrder(change(roundSize, first5), rests, resets), "", 7,
		"RESET (5 of 12 bytes)", "sent=12 returned=5"},
	"resets what comes": {inOrder(take(1<<20), resets), "-size 1G", 7,
		"* (0 of 1073741824 bytes)", none},
	"closes what comes": {inOrder(echo(1<<20), closes), "-size 1G", 7,
		"* (* of 1073741824 bytes)", "rounds=0 mbit_s=*"},
	"resets at once": {resets, "", 7, "c* (0 of 12 bytes)", none}, // Wine says now this, now that
	"closes in round 2": {inOrder(echo(roundSize), take(roundSize), closes), "-count 2", 7,
		"closed early (0 of 12 bytes)", "returned=12 rounds=1"},
	"closes in the pause": {inOrder(echo(roundSize), rests, closes), "-count 2 -every 30s", 7,
		"closed early, idle for *s before round 2", "sent=12 returned=12 rounds=1"},
	"resets in the pause": {inOrder(echo(roundSize), rests, resets), "-count 2 -every 30s", 7,
		"RESET, idle for *s before round 2", "sent=12 returned=12 rounds=1"},
	"closes after a pause": {inOrder(echo(roundSize), take(roundSize), closes),
		"-count 2 -every 200ms", 7,
		"closed early (0 of 12 bytes), idle for *s before round 2", "sent=24 returned=12"},
	"resets after a pause": {inOrder(echo(roundSize), take(roundSize), resets),
		"-count 2 -every 200ms", 7,
		"RESET (0 of 12 bytes), idle for *s before round 2", "sent=24 returned=12"},
	"closes after a pause, but returns 5 bytes": {
		inOrder(echo(roundSize), change(roundSize, first5), closes), "-count 2 -every 200ms", 7,
		"closed early (5 of 12 bytes)", "sent=24 returned=17 rounds=1"},
}

func first5(p []byte) []byte  { return p[:5] }
func oneMore(p []byte) []byte { return append(p, 'x') }

func TestVerdict(t *testing.T) { each(t, meetings, checkMeeting) }

func checkMeeting(t *testing.T, m meeting) {
	name := t.Name()
	early := strings.HasSuffix(name, "resets_at_once") || strings.HasSuffix(name, "resets,_only_connect")
	if early && !echomux(t).namesConnectErrors() {
		t.Skip("QEMU hands on the host's number for a reset")
	}
	var port string
	if m.peer == nil {
		port = closedPort(t)
	} else {
		port = listen(t, "127.0.0.1:0", m.peer)
	}
	l := m.want(t, runTo(t, port, m.flags))
	l.wantValues(t, "target=127.0.0.1:"+port+" "+m.values)
	if m.status == 5 && l.number(t, "lasted_ms") < 300 {
		t.Errorf("it has not waited: %s", l.text)
	}
}

// TestWorst: with several connections each has its own fate, each status that some have failed with
// has its line, and the worst of them is the run's.
func TestWorst(t *testing.T) {
	each(t, map[string][]int{
		"all":       {0, 0, 7, 7, 5, 1},
		"the first": {1, 5, 7, 0},
		"the last":  {0, 5, 5, 7},
		"silence":   {5, 0},
		"alone":     {1, 1},
	}, checkWorst)
}

// fates are what the peer does with a connection, and the words of its failure, by exit status.
var fates = map[int]meeting{
	0: {peer: echoes},
	1: {peer: inOrder(flip(roundSize, 7), ignores),
		cause: "byte 7 differs: sent 0x61, came back 0x60"},
	7: {peer: inOrder(take(roundSize), closes), cause: "closed early (0 of 12 bytes)"},
	5: {peer: ignores, cause: "timed out after 2s of silence (0 of 12 bytes)"},
}

func checkWorst(t *testing.T, statuses []int) {
	var scripts []script
	count := map[int]int{}
	for _, status := range statuses {
		scripts = append(scripts, fates[status].peer)
		count[status]++
	}
	port := listen(t, "127.0.0.1:0", inTurn(scripts...))
	r := runTo(t, port, fmt.Sprint("-io-timeout 2s -n ", len(statuses)))
	var want []int // from the worst
	for _, status := range []int{1, 7, 5} {
		if count[status] > 0 {
			want = append(want, status)
		}
	}
	causes := r.of("cause")
	if len(causes) != len(want) {
		t.Fatalf("want lines for %v: %s", want, r.stdout)
	}
	for i, status := range want {
		causes[i].wantValues(t, fmt.Sprintf("status=%d connections=%d", status, count[status]))
		if causes[i].values["error"] != fates[status].cause {
			t.Errorf("want %q in %s", fates[status].cause, causes[i].text)
		}
	}
	l := r.want(t, want[0], "failed", "")
	l.wantValues(t, fmt.Sprintf("connections=%d ok=%d failed=%d unfinished=0",
		len(statuses), count[0], len(statuses)-count[0]))
}
