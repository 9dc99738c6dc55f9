package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Where a test stands. Most files run echomux as a function in this process, against peers of
// package net on loopback; "process" is a process of its own, "namespaces" are networks that the
// test makes, as root.
//
//	the command line                       commandline     parse alone
//	one connection: streams, verdict       main            in this process
//	rounds, many connections, figures      rounds          in this process
//	lines, log, progress; TestServer...    report          in this process
//	signals, streams; TestServe...         process         process
//	signals, stuck wherever                signals_linux   process
//	the same status, many times over       verdict_linux   process
//	the verdict's tables                   verdict         pure functions
//	every word and figure of whole runs    acts            a scripted kernel; testdata/acts.txt
//	single functions                       parts           pure functions, tables
//	all orders of events                   sim, sim_...    a simulated kernel, judged from outside
//	names without a server, and with       names, ..._linux    a name server in namespaces
//	what a kernel has to keep              seam            its poller and sockets
//	what one system says                   seam_<os>       their error numbers and options
//	each call fails once                   calls           strace; calls_windows: other code in its place
//	backlogs, urgent data, full pipes      kernel_linux    process
//	descriptors, memory, processor time    limits_linux    process
//	packets lost, hosts gone, relays       faults_linux, spaces_linux   namespaces; .ci/faults
//	everything at once, for minutes        soak_linux      .ci/faults 10m
//	what a round costs; benchmarks         steady, bench   counted; measured
//	the documents, the files' own shape    docs, transcript, layout

// What several files of tests share: runs of echomux and what they came to, the parser of result
// lines, and peers. The peers are package net's: independent of the code under test.

// hang is how long anything may take that should take no time. The machine may be busy.
const hang = 60 * time.Second

// roles are what the test binary can be besides a test, by the value of ECHOMUX_RUN. Each prepares
// the process, then main follows.
var roles = map[string]func(){"1": func() {}}

func TestMain(m *testing.M) {
	prepare, isChild := roles[os.Getenv("ECHOMUX_RUN")]
	if isChild {
		os.Unsetenv("ECHOMUX_RUN")
		prepare()
		main()
		return
	}
	flag.Set("test.parallel", "16") // the tests wait more than they work
	hearSignals()
	status := m.Run()
	err := seen.readByAwk()
	if err != nil {
		fmt.Println("FAIL: the result lines, read by awk:", err)
		status = 1
	}
	os.Exit(status)
}

// hearSignals has children not inherit that a signal is ignored, as it is under nohup and in a
// shell's background: what a process catches is not ignored by those that it starts.
func hearSignals() {
	for _, s := range []os.Signal{os.Interrupt, syscall.SIGHUP} {
		if signal.Ignored(s) {
			signal.Notify(make(chan os.Signal, 1), s)
		}
	}
}

// faulty skips a test that the rig, not echomux, would fail. ECHOMUX_RIG names the rig.
func faulty(t testing.TB, rig, fault string) {
	t.Helper()
	if os.Getenv("ECHOMUX_RIG") == rig {
		t.Skipf("%s: %s", rig, fault)
	}
}

// ---- Runs ----

// output collects what echomux writes and may be read meanwhile.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// await waits until what was written contains text, n times.
func (o *output) await(t testing.TB, text string, n int) {
	t.Helper()
	came := func() bool { return strings.Count(o.String(), text) >= n }
	eventually(t, came, func() string {
		return fmt.Sprintf("%q did not come %d times, but %s", text, n, tail(o.String()))
	})
}

// tail is the end of a log, quoted.
func tail(s string) string { return fmt.Sprintf("%q", s[max(0, len(s)-1000):]) }

// eventually waits until ok, and fails with what if that takes too long.
func eventually(t testing.TB, ok func() bool, what func() string) {
	t.Helper()
	end := time.Now().Add(hang)
	for !ok() {
		if time.Now().After(end) {
			t.Fatal(what())
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// running is a run that is not over yet.
type running struct {
	args           []string
	stdout, stderr *output
	status         chan int
}

// begin starts echomux inside this process.
func begin(stdin io.Reader, args ...string) *running {
	stdout := new(output)
	r := beginTo(stdout, stdin, args...)
	r.stdout = stdout
	return r
}

// beginTo starts it with a standard output of the test's own.
func beginTo(stdout io.Writer, stdin io.Reader, args ...string) *running {
	r := &running{args: args, stdout: new(output), stderr: new(output), status: make(chan int, 1)}
	go func() { r.status <- run(args, stdin, stdout, r.stderr) }()
	return r
}

func (r *running) end(t testing.TB) result {
	t.Helper()
	select {
	case status := <-r.status:
		return newResult(t, r.args, status, r.stdout.String(), r.stderr.String())
	case <-time.After(hang):
		t.Fatalf("echomux hangs; so far %s", tail(r.stderr.String()))
		panic("unreachable")
	}
}

// echomux is one whole run.
func echomux(t testing.TB, stdin io.Reader, args ...string) result {
	t.Helper()
	return begin(stdin, args...).end(t)
}

// ---- What a run came to ----

// result is what a run of echomux came to.
type result struct {
	status         int
	stdout, stderr string
	lines          []resultLine // of standard error, in order
}

// newResult is what the run with args came to. Whoever gets a result has had all of standard error
// checked: each line is one of the log or a result line, they stand in their order, and they have
// the keys that such a run has.
func newResult(t testing.TB, args []string, status int, stdout, stderr string) result {
	t.Helper()
	r := result{status: status, stdout: stdout, stderr: stderr}
	o, err := parse(args)
	if err != nil || o.help || o.version {
		r.checkUsage(t, err)
		return r
	}
	for line := range strings.Lines(stderr) {
		r.addLine(t, o, line)
	}
	err = r.check(o)
	if err != nil {
		t.Errorf("echomux %q, status %d: %v; %s", args, status, err, tail(stderr))
	}
	return r
}

// logForm is the form of the recipe's log.
var logForm = regexp.MustCompile(`^\[echomux \(\d+\)\] [ -~]+\n$`)

// addLine takes in one line of standard error.
func (r *result) addLine(t testing.TB, o *options, line string) {
	t.Helper()
	if logForm.MatchString(line) {
		if !o.verbose {
			t.Errorf("without -v it logs %q", line)
		}
		return
	}
	l, err := parseLine(strings.TrimSuffix(line, "\n"))
	if err == nil && !strings.HasSuffix(line, "\n") {
		err = errors.New("it does not end")
	}
	if err != nil {
		t.Errorf("the line %q: %v", line, err)
		return
	}
	err = l.check(o)
	if err != nil {
		t.Errorf("of this run the line %q: %v", line, err)
	}
	r.lines = append(r.lines, l)
	seen.add(l)
}

// checkUsage: help and the version are all of a run's output, and so is the one line of an error.
func (r *result) checkUsage(t testing.TB, err error) {
	t.Helper()
	form := regexp.MustCompile(`^echomux: [ -~]+ \(echomux -h shows the usage\)\n$`)
	switch {
	case err == nil && (r.status != 0 || r.stderr != "" || r.stdout == ""):
		t.Errorf("status %d, %q, %s; want 0 and output", r.status, r.stdout, tail(r.stderr))
	case err != nil && (r.status != 2 || r.stdout != "" || !form.MatchString(r.stderr)):
		t.Errorf("status %d, %q, %s; want 2 and one line", r.status, r.stdout, tail(r.stderr))
	}
}

// check compares the exit status with the lines: the last one's word says the same, and no other
// line ends a run.
func (r *result) check(o *options) error {
	signalled := r.status >= 128 || r.status < 0
	if len(r.lines) == 0 {
		if signalled || r.status == 0 && o.quiet {
			return nil
		}
		return errors.New("there is no result line")
	}
	if r.status == 0 && o.quiet {
		return errors.New("-q does not print what is no failure")
	}
	for _, l := range r.lines[:len(r.lines)-1] {
		if slices.Contains([]string{"ok", "failed", "interrupted", "ended"}, l.word) {
			return fmt.Errorf("%q is not the last line", l.text)
		}
	}
	want := "failed"
	switch {
	case signalled: // a process that was stuck may have ended without its last line
		return nil
	case r.status == 0 && o.serve:
		want = "ended"
	case r.status == 0:
		want = "ok"
	}
	last := r.lines[len(r.lines)-1]
	if last.word != want {
		return fmt.Errorf("the last line is %q, want %s", last.text, want)
	}
	return nil
}

// line is the line that ends a run.
func (r result) line(t testing.TB) resultLine {
	t.Helper()
	if len(r.lines) == 0 {
		t.Fatalf("status %d, and no result line in %s", r.status, tail(r.stderr))
	}
	return r.lines[len(r.lines)-1]
}

// wantLine checks the exit status and the last line: its word, its keys in their order, and its
// cause. See resultLine.want.
func (r result) wantLine(t testing.TB, status int, word, keys, cause string) {
	t.Helper()
	if r.status != status {
		t.Errorf("status %d, want %d: %s", r.status, status, tail(r.stderr))
	}
	r.line(t).want(t, word, keys, cause)
}

// wantLines checks how many result lines there are.
func (r result) wantLines(t testing.TB, n int) {
	t.Helper()
	if len(r.lines) != n {
		t.Errorf("%d result lines, want %d: %s", len(r.lines), n, tail(r.stderr))
	}
}

// wantQuiet checks that all went well, and that nothing is said about it.
func (r result) wantQuiet(t testing.TB) {
	t.Helper()
	if r.status != 0 || r.stderr != "" {
		t.Errorf("status %d and %s, want 0 and silence", r.status, tail(r.stderr))
	}
}

func (r result) wantStdout(t testing.TB, want string) {
	t.Helper()
	if r.stdout != want {
		t.Errorf("standard output is %s, want %s", quoted([]byte(r.stdout)), quoted([]byte(want)))
	}
}

// like compares text with a pattern in which each * stands for anything.
func like(text, pattern string) bool {
	parts := strings.Split(pattern, "*")
	for i, part := range parts {
		parts[i] = regexp.QuoteMeta(part)
	}
	return regexp.MustCompile(`(?s)^` + strings.Join(parts, ".*") + `$`).MatchString(text)
}

// ---- Result lines ----

// resultLine is one line for people and for scripts, taken apart:
//
//	echomux: PLACE WORD KEY=VALUE ... at=TIME error="CAUSE"
type resultLine struct {
	text   string
	place  string
	word   string // round for round=N
	keys   []string
	values map[string]string // of keys, and of a round its number
	at     time.Time
	cause  string // unquoted; no line has an empty one
}

// forms are the keys of each word in their order, and the letter says what a value is: a count, a
// time, four times, a rate, an address. A question mark stands behind what can be missing.
var forms = map[string]string{
	"one": "sent=C returned=C connect_ms=T? exchange_ms=T? rounds=C? rtt_ms=S? mbit_s=R? " +
		"retransmits=C? peer=A?",
	"many": "connections=C ok=C failures=C unfinished=C sent=C returned=C connect_ms=S? " +
		"exchange_ms=S? rounds=C? rtt_ms=S?",
	"bare":      "",
	"round":     "rtt_ms=T connection=C? peer=A",
	"progress":  "sent=C returned=C mbit_s=R? peer=A?",
	"cause":     "failures=C",
	"listening": "",
	"ended":     "clients=C failures=C received=C returned=C",
}

// values are the forms of values.
var values = map[string]*regexp.Regexp{
	"C": regexp.MustCompile(`^(0|[1-9]\d*)$`),
	"T": regexp.MustCompile(`^(0|[1-9]\d*)\.\d\d$`),
	"S": regexp.MustCompile(`^((0|[1-9]\d*)\.\d\d(/|$)){4}$`),
	"R": regexp.MustCompile(`^(\d\.\d\d|10\.00|[1-9]\d+)$`),
	"A": regexp.MustCompile(`^.+:\d+$`),
}

// lineForm is what every line has.
var lineForm = regexp.MustCompile(`^echomux: ([!-~]*:\d+) ([a-z]+|round=[1-9]\d*)` +
	`((?: [a-z_]+=[!-~]+)*) at=(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d\d\dZ)(?: error=(".+"))?$`)

// parseLine takes a line apart. It fails on whatever is not exactly of the form, so that a script
// may rely on that: this is the contract.
func parseLine(line string) (resultLine, error) {
	parts := lineForm.FindStringSubmatch(line)
	if parts == nil {
		return resultLine{}, errors.New("it has not the form of a result line")
	}
	l := resultLine{text: line, place: parts[1], word: parts[2], values: map[string]string{}}
	word, number, isRound := strings.Cut(l.word, "=")
	if isRound != (word == "round") {
		return l, errors.New("only a round has a number")
	}
	l.word = word
	for _, word := range strings.Fields(parts[3]) {
		key, value, _ := strings.Cut(word, "=")
		l.keys = append(l.keys, key)
		l.values[key] = value
	}
	err := l.parseEnd(parts[4], parts[5])
	if err == nil {
		err = l.checkForm()
	}
	if err == nil {
		err = l.checkSense()
	}
	if isRound {
		l.values["round"] = number
	}
	return l, err
}

// parseEnd reads what every line can end in.
func (l *resultLine) parseEnd(at, cause string) (err error) {
	l.at, err = time.Parse("2006-01-02T15:04:05.000Z", at)
	if err != nil || cause == "" {
		return err
	}
	l.cause, err = strconv.Unquote(cause)
	if err != nil {
		return fmt.Errorf("error=%s: %w", cause, err)
	}
	if strconv.QuoteToASCII(l.cause) != cause {
		return fmt.Errorf("error=%s is not quoted as Go does", cause)
	}
	return nil
}

// form is which of the forms the line has to have.
func (l resultLine) form() string {
	isLast := slices.Contains([]string{"ok", "failed", "interrupted"}, l.word)
	switch {
	case !isLast:
		return l.word
	case len(l.keys) == 0:
		return "bare"
	case l.keys[0] == "connections":
		return "many"
	}
	return "one"
}

// checkForm compares the keys with those of the form, and each value with what it should be.
func (l resultLine) checkForm() error {
	form, known := forms[l.form()]
	if !known {
		return fmt.Errorf("unknown word %q", l.word)
	}
	left := l.keys
	for _, field := range strings.Fields(form) {
		key, kind, _ := strings.Cut(field, "=")
		kind, optional := strings.CutSuffix(kind, "?")
		if len(left) == 0 || left[0] != key {
			if optional {
				continue
			}
			return fmt.Errorf("%s is missing, or not in its place", key)
		}
		if !values[kind].MatchString(l.values[key]) {
			return fmt.Errorf("%s=%s is malformed", key, l.values[key])
		}
		left = left[1:]
	}
	if len(left) > 0 {
		return fmt.Errorf("%s does not belong here", left[0])
	}
	return nil
}

// checkSense holds what the parts of a line say against each other.
func (l resultLine) checkSense() error {
	form := l.form()
	needsCause := form == "cause" || l.word == "failed" && form != "many"
	switch {
	case needsCause != (l.cause != ""):
		return fmt.Errorf("a cause where none belongs, or none: %q", l.cause)
	case form == "one" && l.has("peer") != l.has("connect_ms"):
		return errors.New("peer stands exactly where connect_ms does")
	case l.has("exchange_ms") && !l.has("connect_ms"):
		return errors.New("an exchange before there is a connection")
	case l.has("exchange_ms") && l.has("rounds"):
		return errors.New("rounds have no exchange_ms")
	case form != "round" && l.has("rtt_ms") != (l.has("rounds") && l.values["rounds"] != "0"):
		return errors.New("rtt_ms stands exactly where there were rounds")
	case l.values["retransmits"] == "0" || l.values["connection"] == "0":
		return errors.New("a number that cannot be 0")
	case form == "cause" && l.values["failures"] == "0":
		return errors.New("a cause of nothing")
	case form == "many":
		return l.checkMany()
	case form == "one" && l.has("mbit_s"):
		return l.checkRate()
	}
	return l.checkValues()
}

// checkRate: mbit_s is the larger of sent and returned by exchange_ms, each rounded as it is.
func (l resultLine) checkRate() error {
	rate, _ := strconv.ParseFloat(l.values["mbit_s"], 64)
	ms, _ := strconv.ParseFloat(l.values["exchange_ms"], 64)
	bits := 8 * float64(max(l.count("sent"), l.count("returned")))
	least := bits/1000/(ms+0.006) - 0.51
	most := bits/1000/max(ms-0.006, 0.00001) + 0.51
	if rate < least || rate > most {
		return fmt.Errorf("mbit_s is not between %.2f and %.2f", least, most)
	}
	return l.checkValues()
}

// checkMany holds the counts of several connections against each other.
func (l resultLine) checkMany() error {
	ok := l.count("ok")
	failures := l.count("failures")
	unfinished := l.count("unfinished")
	fits := map[string]bool{
		"ok":          failures == 0 && unfinished == 0,
		"failed":      failures > 0, // where descriptors run out, the run ends at once
		"interrupted": unfinished > 0,
	}
	switch {
	case ok+failures+unfinished != l.count("connections"):
		return errors.New("not all connections are accounted for")
	case !fits[l.word]:
		return errors.New("the counts say something else")
	}
	return l.checkValues()
}

// checkValues: the four times ascend, and an address is written as it should be.
func (l resultLine) checkValues() error {
	for _, key := range l.keys {
		if strings.HasSuffix(key, "_ms") && !slices.IsSorted(l.times(key)) {
			return fmt.Errorf("%s=%s does not ascend", key, l.values[key])
		}
	}
	if !l.has("peer") {
		return nil
	}
	peer, err := netip.ParseAddrPort(l.values["peer"])
	if err == nil && (peer.String() != l.values["peer"] || peer.Addr().Is4In6()) {
		err = errors.New("it is written differently")
	}
	if err != nil {
		return fmt.Errorf("peer=%s: %w", l.values["peer"], err)
	}
	return nil
}

func (l resultLine) has(key string) bool { return slices.Contains(l.keys, key) }

// count is the value of a key that counts; -1 if there is none.
func (l resultLine) count(key string) int64 {
	n, err := strconv.ParseInt(l.values[key], 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// times are the values of a key with one time, or four. Nothing if it is not there.
func (l resultLine) times(key string) (times []time.Duration) {
	if !l.has(key) {
		return nil
	}
	for part := range strings.SplitSeq(l.values[key], "/") {
		ms, _ := strconv.ParseFloat(part, 64)
		times = append(times, time.Duration(ms*float64(time.Millisecond)))
	}
	return times
}

// check holds the line against what was asked for.
func (l resultLine) check(o *options) error {
	age := time.Since(l.at)
	if age < -time.Minute || age > time.Hour {
		return errors.New("it is not of now")
	}
	if o.serve {
		return l.checkServe(o)
	}
	host := strings.ReplaceAll(printable(o.host), " ", `\x20`)
	port := strconv.Itoa(int(o.port))
	switch {
	case o.recipe:
	case l.place != net.JoinHostPort(host, port):
		return errors.New("it has another place")
	case l.has("peer") && !strings.HasSuffix(l.values["peer"], ":"+port):
		return errors.New("the peer has another port")
	}
	if l.form() == "one" || l.form() == "many" {
		return l.checkLast(o)
	}
	return l.checkBetween(o)
}

// checkLast: the last line has the keys that such a run has.
func (l resultLine) checkLast(o *options) error {
	one := l.form() == "one"
	rounds := o.count != 1
	exchanges := o.until != untilConnect && !rounds
	streams := exchanges && one && o.block == nil
	connected := l.has("connect_ms")
	switch {
	case one != (o.n == 1):
		return fmt.Errorf("it is of %d connections", o.n)
	case l.has("rounds") != rounds:
		return fmt.Errorf("it is of %d rounds", o.count)
	case l.has("exchange_ms") && !exchanges:
		return errors.New("only an exchange without rounds has exchange_ms")
	case one && !l.has("exchange_ms") && exchanges && connected:
		return errors.New("exchange_ms is missing")
	case l.has("mbit_s") != (streams && connected):
		return errors.New("mbit_s stands where standard input was streamed")
	}
	return nil
}

// checkBetween: a line before the last is one that was asked for.
func (l resultLine) checkBetween(o *options) error {
	switch {
	case l.word == "round" && (o.every == 0 || o.quiet):
		return errors.New("nobody asked for lines of rounds")
	case l.word == "round" && (o.n > 1) != l.has("connection"):
		return fmt.Errorf("it is of %d connections", o.n)
	case l.word == "progress" && (o.progress == 0 || o.quiet):
		return errors.New("nobody asked for progress")
	case l.word == "cause" && o.n == 1:
		return errors.New("a single connection has its cause in the last line")
	case l.form() == "listening" || l.form() == "ended" || l.form() == "bare":
		return errors.New("only a server has such a line")
	}
	return nil
}

// checkServe: the lines of a server have its words.
func (l resultLine) checkServe(o *options) error {
	switch {
	case !slices.Contains([]string{"listening", "cause", "ended", "bare"}, l.form()):
		return errors.New("a server has no such line")
	case o.quiet && (l.word == "listening" || l.word == "ended"):
		return errors.New("-q does not print what is no failure")
	case o.port != 0 && !strings.HasSuffix(l.place, fmt.Sprintf(":%d", o.port)):
		return errors.New("the place has another port")
	}
	return nil
}

// want checks a line's word, its keys in their order, and its cause. In keys, a word is KEY, which
// has to be there, or KEY=VALUE; the last may be ..., for whatever follows. In a value and in the
// cause each * stands for anything.
func (l resultLine) want(t testing.TB, word, keys, cause string) {
	t.Helper()
	if l.word != word || !l.hasKeys(strings.Fields(keys)) || !like(l.cause, cause) {
		t.Errorf("the line is %q,\nwant %s, keys %s, cause %q", l.text, word, keys, cause)
	}
}

// hasKeys compares the keys with those wanted. A kernel may always have sent a segment again.
func (l resultLine) hasKeys(wanted []string) bool {
	left := slices.Clone(l.keys)
	if !slices.Contains(wanted, "retransmits") {
		left = slices.DeleteFunc(left, func(key string) bool { return key == "retransmits" })
	}
	for _, word := range wanted {
		if word == "..." {
			return true
		}
		key, value, hasValue := strings.Cut(word, "=")
		if len(left) == 0 || left[0] != key || hasValue && !like(l.values[key], value) {
			return false
		}
		left = left[1:]
	}
	return len(left) == 0
}

// seen are all result lines of this run of the tests.
var seen seenLines

type seenLines struct {
	mu    sync.Mutex
	lines []resultLine
}

func (s *seenLines) add(l resultLine) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, l)
}

// awkScript reads result lines as an operator's script does. A cause can hold spaces, and is the end
// of the line; no other value can.
const awkScript = "doc/recipes/lines.awk"

// forAwk is what awkScript makes of the line.
func (l resultLine) forAwk() string {
	word := l.word
	if word == "round" {
		word = "round=" + l.values["round"]
	}
	text := l.place + " " + word
	for _, key := range l.keys {
		text += " " + key + " " + l.values[key]
	}
	text += " at " + l.at.Format("2006-01-02T15:04:05.000Z")
	cause := strconv.QuoteToASCII(l.cause)
	return text + " cause " + cause[1:len(cause)-1] + "\n"
}

// readByAwk has a script read all lines that were seen, where there is an awk.
func (s *seenLines) readByAwk() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	awk, err := exec.LookPath("awk")
	if err != nil || len(s.lines) == 0 {
		return nil
	}
	var in, want strings.Builder
	for _, l := range s.lines {
		in.WriteString(l.text + "\n")
		want.WriteString(l.forAwk())
	}
	command := exec.Command(awk, "-f", awkScript)
	command.Env = append(os.Environ(), "LC_ALL=C")
	command.Stdin = strings.NewReader(in.String())
	got, err := command.Output()
	if err != nil {
		return err
	}
	lines := strings.Split(string(got), "\n")
	for i, line := range strings.Split(want.String(), "\n") {
		if i >= len(lines) || lines[i] != line {
			return fmt.Errorf("it does not find %q", line)
		}
	}
	return nil
}

// ---- Peers ----

// serve makes a server at address, which calls talk with each connection, closes it after that,
// and ends with the test. It returns where it listens.
func serve(t testing.TB, address string, talk func(*net.TCPConn)) (at, port string) {
	t.Helper()
	server, err := net.Listen("tcp", address)
	if err != nil {
		if strings.HasPrefix(address, "[::1]") {
			t.Skipf("no IPv6 here: %v", err)
		}
		t.Fatal(err)
	}
	var mu sync.Mutex
	var conns []net.Conn
	var talks sync.WaitGroup
	talks.Go(func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			talks.Go(func() {
				defer c.Close()
				talk(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		server.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		talks.Wait()
	})
	at = server.Addr().String()
	_, port, _ = net.SplitHostPort(at)
	return at, port
}

// closedPort is a port that nobody listens on until the test ends: a connection has it.
func closedPort(t testing.TB) (at, port string) {
	t.Helper()
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	c, err := net.Dial("tcp", server.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	at = c.LocalAddr().String()
	_, port, _ = net.SplitHostPort(at)
	return at, port
}

// What servers do. Their errors are of no interest: what echomux says of them is.

func echoes(c *net.TCPConn) { io.Copy(c, c) }

func echoesSingleBytes(c *net.TCPConn) {
	b := make([]byte, 1)
	for {
		_, err := c.Read(b)
		if err != nil {
			return
		}
		c.Write(b)
	}
}

func ignores(c *net.TCPConn) { io.Copy(io.Discard, c) }

// reads consumes n bytes.
func reads(c *net.TCPConn, n int64) { io.CopyN(io.Discard, c, n) }

// returns echoes n bytes.
func returns(c *net.TCPConn, n int64) { io.CopyN(c, c, n) }

// lingers keeps c open to the end of the test, even if the client has closed it.
func lingers(c *net.TCPConn) {
	for {
		_, err := c.Write(nil)
		if err != nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// ends half-closes, and lets the client do what it likes.
func ends(c *net.TCPConn) {
	c.CloseWrite()
	ignores(c)
}

func resets(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

// silentStdin is a standard input that nobody types into.
func silentStdin(t testing.TB) io.Reader {
	r, w := io.Pipe()
	t.Cleanup(func() { w.Close() })
	return r
}

// noise is n bytes that are the same in every run, and do not repeat.
func noise(n int) []byte {
	p := make([]byte, n)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

// interrupt has a session report as it does after a signal, whose exit status is given; but the
// process goes on.
func interrupt(s *session, status int) {
	s.interrupted = status
	s.loop.stopped = true
}
