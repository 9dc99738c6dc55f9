//go:build ignore

// Mutants puts one deliberate fault after another into main.go and says which of them the tests
// catch. The tree stays as it is: the compiler reads the faulty file through -overlay.
//
//	go run .ci/mutants.go              all of them
//	go run .ci/mutants.go drain ring   those whose names contain a word
//
// It fails if a fault survives, or if the text that it is keyed by is not in main.go exactly once.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

type mutant struct{ name, old, new string }

var mutants = []mutant{
	// Deadlines.
	{"lost deadline: settle forgets it", "l.earliest = min(l.earliest, m.deadline())\n\twas, want", "was, want"},
	{"lost deadline: expire forgets the others", "\t\tl.settle(m)\n\t}\n}\n\n// watch begins", "\t}\n}\n\n// watch begins"},
	{"deadline fires late: rounded down and up once more", "+ time.Millisecond - 1) / time.Millisecond)", "+ 2*time.Millisecond) / time.Millisecond)"},
	{"wait rounded down: it spins before the deadline", "time.Hour) + time.Millisecond - 1) / time.Millisecond)", "time.Hour)) / time.Millisecond)"},
	{"wait not clamped to an hour", "min(max(0, l.earliest-l.now), time.Hour)", "max(0, l.earliest-l.now)"},
	{"deadlines never looked at", "if l.now >= l.earliest {", "if false {"},
	{"deadlines looked at one tick late", "if l.now >= l.earliest {", "if l.now > l.earliest {"},
	{"expire serves those to come", "if m.deadline() <= l.now {", "if m.deadline() <= l.now+time.Second {"},
	{"after overflows", "return l.now + min(d, never-l.now) }", "return l.now + d }"},
	{"idle deadline overflows", "return c.moved + min(c.ioTimeout, never-c.moved)", "return c.moved + c.ioTimeout"},
	{"idle clock that never stops", "return c.blocked || c.finSent || c.broken != nil || c.until == \"echo\" && c.returned < c.sent", "return true"},
	{"idle clock blind to refused bytes", "return c.blocked || c.finSent", "return c.finSent"},
	{"idle clock blind to our FIN", "return c.blocked || c.finSent ||", "return c.blocked ||"},
	{"idle clock blind to a broken write", "c.finSent || c.broken != nil ||", "c.finSent ||"},
	{"idle clock blind to bytes owed", "|| c.until == \"echo\" && c.returned < c.sent", ""},
	{"idle clock not restarted by bytes sent", "\t\t\tc.moved = c.now\n\t\t\tc.logData(\"sent\"", "\t\t\tc.logData(\"sent\""},
	{"idle clock not restarted by bytes received", "is no silence of the peer\n\tc.moved = c.now", "is no silence of the peer"},
	{"idle clock not restarted when the debt begins", "c.owing, c.moved = owing, c.now", "c.owing = owing"},
	{"idle clock runs while standard output is slow", "c.now = c.clock() // a slow reader", "// a slow reader"},
	{"timeout without a last look", "c.ready(c.interest()) // once more", "// once more"},
	{"timeout before completion", "case c.state == over || c.deadline() > c.now:", "case c.state == over:"},
	{"connect timeout per address, not of all", "min(left, max(minTry,", "max(left, max(minTry,"},
	{"no second for one address of several", "max(minTry, left/time.Duration(len(c.addrs)-c.tried))", "left/time.Duration(len(c.addrs)-c.tried)"},
	{"shares counted wrongly", "left/time.Duration(len(c.addrs)-c.tried)", "left/time.Duration(len(c.addrs))"},
	{"drain without a deadline", "c.state, c.by = closing, c.after(drainTime)", "c.state, c.by = closing, never"},
	{"drain ends at once", "c.state, c.by = closing, c.after(drainTime)", "c.state, c.by = closing, c.now"},

	// Readiness.
	{"write interest kept", "\tif r&writable != 0 {\n\t\tc.blocked = false\n\t}\n", ""},
	{"write interest never", "\tcase c.blocked:\n\t\treturn readable | writable\n", ""},
	{"write interest alone while bytes are refused", "return readable | writable", "return writable"},
	{"read interest while connecting", "case c.state == connecting:\n\t\treturn writable", "case c.state == connecting:\n\t\treturn readable | writable"},
	{"stale event taken for the new socket's", "m == nil || m.base().born == l.turn ||", "m == nil ||"},
	{"event of a closed socket", "m == nil || m.base()", "m.base()"},
	{"event that is not armed any more", " || ev.ready&m.base().armed == 0 {", " {"},
	{"direction that is not armed any more", "m.ready(ev.ready & m.base().armed)", "m.ready(ev.ready)"},
	{"settle forgotten after an event", "m.ready(ev.ready & m.base().armed)\n\t\t\tl.settle(m)", "m.ready(ev.ready & m.base().armed)"},
	{"settle forgotten after input", "\tc.advance()\n\tc.settle(c)\n", "\tc.advance()\n"},
	{"write tried before the read", "if r&readable != 0 { // first", "if r&writable != 0 && c.state == exchanging {\n\t\tc.blocked = false\n\t\tc.send()\n\t\tr &^= writable\n\t}\n\tif r&readable != 0 { // first"},
	{"both directions whatever came", "if r&readable != 0 { // first", "if true { // first"},
	{"write after the read ended it", "\tif c.state != exchanging {\n\t\treturn\n\t}\n\tif !c.last", "\tif c.state == connecting {\n\t\treturn\n\t}\n\tif !c.last"},

	// Sockets.
	{"closed while the poller has it", "\tif w.armed != 0 {\n\t\tw.poller.remove(w.sock)\n\t}\n\tw.net.close(w.sock)", "\tw.net.close(w.sock)\n\tif w.armed != 0 {\n\t\tw.poller.remove(w.sock)\n\t}"},
	{"not closed", "\tw.net.close(w.sock)\n", ""},
	{"not removed", "\t\tw.poller.remove(w.sock)\n", ""},
	{"the wrong machine forgotten", "w.machines[last].base().index = w.index\n", ""},
	{"still watched when closed", "\tdelete(w.watched, w.sock)\n", ""},
	{"connect without the flip", "if err = c.net.setNonblock(s); err != nil {\n\t\treturn err\n\t}\n", ""},
	{"self-connect", "if err == nil && local == peer {", "if err == nil && local == peer && false {"},
	{"connect pending taken for an answer", "} else if err != nil && err != errReset {\n\t\treturn err", "} else if err != nil && err != errReset && err != errWouldBlock {\n\t\treturn err"},
	{"reset while connecting taken for a refusal", "} else if err != nil && err != errReset {", "} else if err != nil {"},
	{"reset while connecting ignored", "c.broken = described(\"connect\", c.peer, err)", ""},
	{"an address twice", "!slices.Contains(usable, a) && len(usable)", "len(usable)"},
	{"mapped addresses kept apart", "a = a.Unmap() //", "//"},
	{"first address only", "case c.tried == len(c.addrs):", "default:"},
	{"timed out before refused", "errTimedOut) && !errors.Is(err, errRefused):", "errTimedOut):"},
	{"causes of the last address only", "c.causes = errors.Join(c.causes, err)", "c.causes = err"},
	{"out of descriptors goes on", "case errors.Is(err, errTooManyFiles): // the", "case false: // the"},
	{"connections after the end", "for i := 0; i < l.n && l.jobs > 0; i++ {", "for i := 0; i < l.n; i++ {"},

	// Writing.
	{"short write taken for a whole one", "c.sent, c.tally.sent, c.now = c.sent+int64(n),", "c.sent, c.tally.sent, c.now = c.sent+int64(len(p)),"},
	{"short write tried again at once", "if c.blocked = n < len(p); n > 0 {", "if c.blocked = n == 0; n > 0 {"},
	{"would block is an error", "if err != nil && err != errWouldBlock {\n\t\t\tc.broken", "if err != nil {\n\t\t\tc.broken"},
	{"a failed write ends all", "c.broken = described(\"write\", c.peer, err) // replies may still be readable", "c.finish(exitExchange, described(\"write\", c.peer, err))"},
	{"write after a failed one", "!c.blocked && c.broken == nil {", "!c.blocked {"},
	{"a broken write forgotten", "err = cmp.Or(c.broken, described(\"read\", c.peer, err))", "err = described(\"read\", c.peer, err)"},

	// Reading.
	{"would block is a failure", "\tcase err == errWouldBlock:\n\tcase err == nil:\n\t\tc.accept", "\tcase err == nil:\n\t\tc.accept"},
	{"read after EOF", "\tcase err == io.EOF:\n\t\tc.fail(", "\tcase err == io.EOF:\n\tcase err == errReset:\n\t\tc.fail("},
	{"EOF is success", "case err == io.EOF && c.until == \"eof\" && c.sent == c.goal && c.broken == nil:", "case err == io.EOF:"},
	{"EOF before all is sent is success", "c.until == \"eof\" && c.sent == c.goal && c.broken == nil:", "c.until == \"eof\" && c.broken == nil:"},
	{"EOF after a broken write is success", "c.sent == c.goal && c.broken == nil:", "c.sent == c.goal:"},
	{"read error ignored", "\tdefault:\n\t\tc.fail(err)\n", ""},
	{"late failure changes success", "case c.state == closing: // EOF", "case c.state == closing && err == io.EOF: // EOF"},
	{"compare skipped", "if !bytes.Equal(got, want) {", "if !bytes.Equal(got, want) && false {"},
	{"compare skips the first byte", "if !bytes.Equal(got, want) {", "if !bytes.Equal(got[1:], want[1:]) {"},
	{"compare against the wrong offset", "at := c.returned + int64(good)\n", "at := c.returned + int64(good)/2\n"},
	{"compare up to goal, not sent", "if at == c.sent {", "if at == c.goal {"},
	{"surplus ignored", "if at == c.sent {\n\t\t\treturn good, fmt", "if at == c.sent {\n\t\t\treturn len(p), nil\n\t\t\treturn good, fmt"},
	{"wrong byte handed on", "c.stdout.Write(p[:good])", "c.stdout.Write(p)"},
	{"nothing handed on", "if c.n == 1 && good > 0 {", "if false {"},
	{"all connections handed on", "if c.n == 1 && good > 0 {", "if good > 0 {"},
	{"standard output's failure ignored", "c.finish(exitLocal, fmt.Errorf(\"standard output: %w\", err))\n\t\t\treturn\n", ""},
	{"eof mode compares", "if c.until != \"echo\" {\n\t\treturn len(p), nil", "if c.until == \"connect\" {\n\t\treturn len(p), nil"},

	// The exchange's steps.
	{"drain skipped", "\tif c.until == \"echo\" {\n\t\tc.tally.exchange.add(c.now - c.since)\n", "\tif c.until == \"echo\" {\n\t\tc.tally.exchange.add(c.now - c.since)\n\t\tc.finish(exitOK, nil)\n\t\treturn\n"},
	{"half-close skipped after an echo", "if err := c.net.closeWrite(c.sock); err != nil {", "if c.until == \"echo\" {\n\t} else if err := c.net.closeWrite(c.sock); err != nil {"},
	{"half-close skipped in eof mode", "if err := c.net.closeWrite(c.sock); err != nil {", "if c.until == \"eof\" {\n\t} else if err := c.net.closeWrite(c.sock); err != nil {"},
	{"half-close before the end of input", "if c.last && c.idle() {", "if (c.last || c.until == \"eof\") && c.idle() {"},
	{"half-close before all is sent", "if c.last && c.idle() {", "if c.last && (c.idle() || c.until == \"eof\" && !c.finSent && c.broken == nil) {"},
	{"half-close twice", "c.goal && !c.finSent && c.broken == nil\n", "c.goal && c.broken == nil\n"},
	{"half-close or a round after a broken write", "!c.finSent && c.broken == nil\n", "!c.finSent\n"},
	{"half-close failed and forgotten", "c.broken = described(\"shutdown\", c.peer, err)", "_ = err"},
	{"done when all is sent", "return c.settled() == c.goal", "return c.sent == c.goal"},
	{"done before the last round", "c.last = c.round == c.count", "c.last = c.round >= c.count-1"},
	{"a round too many", "c.round == c.count", "c.round > c.count"},
	{"rounds too early", "if !c.last && c.due <= c.now && c.idle() {", "if !c.last && c.idle() {"},
	{"rounds never due", "c.began, c.due = c.now, c.after(c.every)", "c.began, c.due = c.now, never"},
	{"connect mode goes on", "case c.until == \"connect\":\n\t\tc.finish(exitOK, nil)\n", "case c.until == \"connect\":\n"},

	// Standard input.
	{"off by one in the ring", "c.settled()+ringSize)", "c.settled()+ringSize+1)"},
	{"a ring that never frees", "c.data.piece(c.goal, c.settled()+ringSize)", "c.data.piece(c.goal, max(c.goal, ringSize))"},
	{"the ring freed by sending", "c.data.piece(c.goal, c.settled()+ringSize)", "c.data.piece(c.goal, c.sent+ringSize)"},
	{"piece past the ring's end", "return r[i:min(int64(len(r)), i+to-from)]", "return r[i:min(int64(len(r)), i+to-from+1)]"},
	{"two loans", "if c.in == nil || c.in.lent ||", "if c.in == nil ||"},
	{"a loan after the end of input", "c.in.lent || c.last ||", "c.in.lent ||"},
	{"a loan after a broken write", "|| c.last || c.broken != nil {", "|| c.last {"},
	{"no loan across the ring's end", "if len(p) >= loanSize || len(p) > 0 && (c.goal+int64(len(p)))%ringSize == 0 {", "if len(p) >= loanSize {"},
	{"input's bytes with its end lost", "\tc.goal = in.total.Load()\n", "\tif in.err == nil {\n\t\tc.goal = in.total.Load()\n\t}\n"},
	{"input's failure is its end", "c.last = in.err == io.EOF;", "c.last = in.err != nil;"},
	{"input's end ignored", "if c.last = in.err == io.EOF; in.err != nil && !c.last {", "if in.err != nil && in.err != io.EOF {"},
	{"input on its way at the EOF forgotten", "c.goal = c.in.total.Load() // what", "// what"},
	{"input not sent until the next event", "\tc.advance()\n\tc.settle(c)\n", "\tc.settle(c)\n"},
	{"a loan never returned", "\tin.lent = false\n\tc.loans--\n", "\tin.lent = false\n"},

	// The end.
	{"a connection counted twice", "if c.jobs > 0 { // else", "if true { // else"},
	{"an abort counts nobody", "l.tally.count(status, err, l.jobs)\n", ""},
	{"a poller's failure ignored", "\t\tl.abort(exitLocal, err)\n\t\tl.now = l.clock()", "\t\t_ = err\n\t\tl.now = l.clock()"},
	{"status of the last failure", "if t.failed == 0 {", "if true {"},
	{"a timeout is any failure", "\t\treturn timeout\n", "\t\treturn other\n"},
	{"sockets left open", "for len(l.machines) > 0 {", "for false {"},
	{"wake-up after the end", "if !l.closed {", "if true {"},
	{"mail without a wake-up", "\t\tl.poller.wake()\n", ""},
	{"mail delivered twice", "\t\t(<-l.mail)()\n", "\t\tf := <-l.mail\n\t\tf()\n\t\tf()\n"},

	// The server.
	{"a failing accept does not pause", "s.paused, s.silent = s.after(acceptPause), s.after(time.Minute)", "s.silent = s.after(time.Minute)"},
	{"a pause without an end", "func (s *listener) expired()                { s.paused = never }", "func (s *listener) expired() {}"},
	{"a paused listener listens on", "if s.paused != never {", "if false {"},
	{"one reset in the backlog ends accepting", "case errReset: // it left", "case io.EOF: // it left"},
	{"the server reads before all is written", "if len(e.pending) > 0 {\n\t\treturn writable", "if len(e.pending) > 0 {\n\t\treturn readable | writable"},
	{"the server drops what was refused", "e.pending = e.pending[n:]", "e.pending = nil"},
	{"the server's buffer is shared", "e.kept, e.buf, e.spare = e.buf, e.spare, nil", "e.kept, e.spare = e.buf, nil"},
	{"the server keeps who has left", "\tcase err == io.EOF: // the good end\n\t\te.served.ok++\n\t\te.close()", "\tcase err == io.EOF: // the good end\n\t\te.served.ok++"},
	{"the server ignores a failure", "\t\te.served.failed++\n\t\te.logf(\"%v\", described(op, e.peer, err))\n\t\te.close()", "\t\te.served.failed++\n\t\te.logf(\"%v\", described(op, e.peer, err))"},
	{"one family missing is fatal", "if err == errNoAddress && (l.served.place", "if err == nil && (l.served.place"},
	{"no family is fine", "i+1 < len(addrs)) {", "i >= 0) {"},
}

// equivalent names the faults that change nothing that can be observed, with the reason.
var equivalent = map[string]string{
	"a loan never returned":                "the count serves only the check for a stall, and no other path leads into one",
	"direction that is not armed any more": "nothing is refused any more, so there is nothing to write",
	"still watched when closed":            "what is closed is not armed, so its events are discarded; its number's next machine replaces it",
}

func main() {
	source, err := os.ReadFile("main.go")
	if err != nil {
		fail("%v: run this at the top of the repository", err)
	}
	dir, err := os.MkdirTemp("", "mutants")
	if err != nil {
		fail("%v", err)
	}
	defer os.RemoveAll(dir)
	here, err := filepath.Abs("main.go")
	if err != nil {
		fail("%v", err)
	}
	faulty, overlay := filepath.Join(dir, "main.go"), filepath.Join(dir, "overlay.json")
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{here: faulty}})
	if err != nil {
		fail("%v", err)
	}
	if err := os.WriteFile(overlay, replace, 0o600); err != nil {
		fail("%v", err)
	}
	total, killed, bad := 0, 0, 0
	for _, m := range mutants {
		if !wanted(m.name) {
			continue
		}
		total++
		if n := strings.Count(string(source), m.old); n != 1 {
			bad++
			fmt.Printf("STALE     %s: its text is in main.go %d times, not once\n", m.name, n)
			continue
		}
		text := strings.Replace(string(source), m.old, m.new, 1)
		if err := os.WriteFile(faulty, []byte(text), 0o600); err != nil {
			fail("%v", err)
		}
		start := time.Now()
		cmd := exec.Command("go", "test", "-vet=off", "-count=1", "-timeout=30s", "-overlay="+overlay, "-run=^(TestSim|FuzzSim)", ".")
		out, err := cmd.CombinedOutput()
		reason, same := equivalent[m.name]
		switch {
		case strings.Contains(string(out), "[build failed]"):
			bad++
			fmt.Printf("NO BUILD  %s\n%s", m.name, out)
		case err == nil && same:
			killed++
			fmt.Printf("same      %s: %s\n", m.name, reason)
		case err == nil:
			bad++
			fmt.Printf("SURVIVES  %s\n", m.name)
		case same:
			bad++
			fmt.Printf("NOT SAME  %s: it is caught after all\n", m.name)
		default:
			killed++
			fmt.Printf("killed    %s (%.1fs): %s\n", m.name, time.Since(start).Seconds(), cause(string(out)))
		}
	}
	fmt.Printf("%d mutants, %d killed or equivalent\n", total, killed)
	if bad > 0 || total == 0 {
		os.Exit(1)
	}
}

func wanted(name string) bool {
	for _, word := range os.Args[1:] {
		if strings.Contains(name, word) {
			return true
		}
	}
	return len(os.Args) == 1
}

// cause is the invariant that the fault broke, in short.
func cause(out string) string {
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if _, text, found := strings.Cut(line, " -v): "); found {
			return text[:min(len(text), 100)]
		} else if strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") {
			return line[:min(len(line), 100)]
		}
	}
	return strings.TrimSpace(out[:min(len(out), 200)])
}

func fail(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "mutants: "+format+"\n", args...)
	os.Exit(1)
}
