// Package test drives the program from outside, as its users do. It runs natively, with native
// peers, and only the program can be foreign:
//
//	go test ./test                                              builds echomux, and tests that
//	ECHOMUX='qemu-arm-static ./echomux-armv5' go test ./test    tests the file that one was given
//
// Paths in $ECHOMUX are absolute, or relative to the repository's top folder. (What lies outside of
// it is unknown to the cache of go test. Use -count=1 there.)
//
// Where a test stands:
//
//	help           runs of the program, what they came to, what is different where it is foreign
//	peer           peers by script
//	verdict        what a peer does, and the exit status, the words and the bytes that follow
//	lines          the result lines: keys, order, numbers; rounds, pauses, -n, sizes, the log
//	usage          command lines that are refused, -h, -version
//	signals        what ends a run, wherever it is stuck
//	serve          the echo server, and its clients
//	limits_linux   descriptors, memory, processor time; standing still; streams that are stuck
//	calls_linux    each system call fails once
//	names_linux    hosts files and name servers
//	net_linux      networks with faults
package test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// hang is how long anything may take that should take no time. The machine can be busy.
const hang = 2 * time.Minute

func TestMain(m *testing.M) {
	flag.Parse()
	flag.Set("test.parallel", "16") // the tests wait more than they work
	hearSignals()
	status := m.Run()
	os.RemoveAll(buildDir)
	os.Exit(status)
}

// hearSignals ends all processes if the tests are interrupted. It also keeps children from
// inheriting that a signal is ignored, as it is in a shell's background: what a process catches is
// not ignored by those that it starts.
func hearSignals() {
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		<-caught
		started.Range(func(p, _ any) bool {
			killGroup(p.(*process).Cmd)
			return true
		})
		os.RemoveAll(buildDir)
		os.Exit(1)
	}()
}

// ---- The program ----

// program is what is tested, and how it differs.
type program struct {
	words        []string // the command
	goos, goarch string
}

var buildDir string

// echomux is the program. To find it out by a test function and not in TestMain lets the cache of
// go test see the environment, and the files that are looked at here.
func echomux(t testing.TB) *program {
	t.Helper()
	p, err := findProgram()
	must(t, err)
	return p
}

var findProgram = sync.OnceValues(func() (*program, error) {
	words := strings.Fields(os.Getenv("ECHOMUX"))
	for i, word := range words {
		file := filepath.Join("..", word)
		if filepath.IsAbs(word) {
			file = word
		}
		info, err := os.Stat(file)
		if err == nil && info.Mode().IsRegular() {
			words[i], _ = filepath.Abs(file)
		}
	}
	if len(words) == 0 {
		built, err := build()
		if err != nil {
			return nil, err
		}
		words = []string{built}
	}
	p := &program{words: words}
	return p, p.askVersion()
})

// build builds the program as it is shipped: without C.
func build() (path string, err error) {
	poller := "poller_" + runtime.GOOS + ".go"
	for _, source := range []string{"main.go", poller, "go.mod", "go.sum"} {
		os.Stat("../" + source) // for the cache of go test
	}
	buildDir, err = os.MkdirTemp("", "echomux")
	if err != nil {
		return "", err
	}
	path = filepath.Join(buildDir, "echomux")
	if runtime.GOOS == "windows" {
		path += ".exe"
	}
	command := exec.Command("go", "build", "-o", path, ".")
	command.Dir = ".."
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	said, err := command.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("go build: %w: %s", err, said)
	}
	return path, err
}

// versionLine is what -version prints: the module's version, Go's, and the target.
var versionLine = regexp.MustCompile(`^echomux \S+ go\S+( \S+)* ([a-z0-9]+)/([a-z0-9]+)\n$`)

func (p *program) askVersion() error {
	ctx, cancel := context.WithTimeout(context.Background(), hang)
	defer cancel()
	words := append(slices.Clone(p.words), "-version")
	said, err := exec.CommandContext(ctx, words[0], words[1:]...).Output()
	match := versionLine.FindStringSubmatch(string(said))
	if err != nil || match == nil {
		return fmt.Errorf("%s: this is not echomux: %v, %q", strings.Join(words, " "), err, said)
	}
	p.goos = match[2]
	p.goarch = match[3]
	return nil
}

// What is different where the program is foreign. All that tests want to know of it stands here.

// hasSignals: Windows has none, and Wine ends a process for them.
func (p *program) hasSignals() bool { return p.goos != "windows" }

// seesResets: on Wine 8 a connection that was reset reads as one that was closed.
func (p *program) seesResets() bool { return p.goos != "windows" || runtime.GOOS == "windows" }

// namesConnectErrors: QEMU 7 has MIPS programs read the host's numbers from SO_ERROR.
func (p *program) namesConnectErrors() bool {
	return runtime.GOARCH == p.goarch || !strings.HasPrefix(p.goarch, "mips")
}

// isProcess: what the system tells of the process that was started, it tells of the program, and
// not of an emulator.
func (p *program) isProcess() bool { return len(p.words) == 1 && p.goos == runtime.GOOS }

// skipShort skips, with -short, what no system decides: it is the same on all.
func skipShort(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: it is the same on every system")
	}
}

// needSignals skips the test of a program that knows no signals.
func needSignals(t testing.TB) {
	t.Helper()
	if !echomux(t).hasSignals() {
		t.Skip("this system has no signals")
	}
}

// needProcess skips what an emulator would falsify.
func needProcess(t testing.TB) {
	t.Helper()
	if !echomux(t).isProcess() {
		t.Skip("the program runs in an emulator, which has descriptors and calls of its own")
	}
}

// needTool returns the path of a tool, and skips without it.
func needTool(t testing.TB, name string) (path string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skip(err)
	}
	return path
}

// ---- Processes ----

// output collects what a process writes, and can be read meanwhile.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// tail is the end of a text, quoted.
func tail(text string) string { return fmt.Sprintf("%q", text[max(0, len(text)-1000):]) }

// each runs a test for each of the cases, all at the same time. (They wait for their turn, so no
// process should be started before.)
func each[T any](t *testing.T, cases map[string]T, check func(*testing.T, T)) {
	t.Parallel()
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			check(t, c)
		})
	}
}

// must ends a test that cannot do what it needs.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until ok, and fails with what if that takes too long.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(hang); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in %v: %s", hang, what)
		}
	}
}

// process is a process, of the program mostly, in a group of its own. The end of the test ends it.
type process struct {
	*exec.Cmd
	stdout, stderr *output
	args           []string      // of the program
	hasLines       bool          // its standard output has result lines
	isPlain        bool          // nothing but the program writes to its streams
	over           chan struct{} // closed at its end
}

var started sync.Map // *process, true

// command prepares a run of the program. launcher is what starts it, say nohup; mostly nil.
func command(t testing.TB, launcher []string, args ...string) *process {
	t.Helper()
	words := slices.Concat(launcher, echomux(t).words, args)
	p := tool(t, words...)
	p.args = args
	p.hasLines = !slices.Contains(args, "-h") && !slices.Contains(args, "-version")
	p.isPlain = len(launcher) == 0
	return p
}

// tool prepares any other program.
func tool(t testing.TB, words ...string) *process {
	t.Helper()
	limit := hang
	if test, isTest := t.(*testing.T); isTest {
		end, hasEnd := test.Deadline()
		if hasEnd {
			limit = min(limit, time.Until(end)-3*time.Second) // go test leaves no time to tidy up
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	p := &process{stdout: new(output), stderr: new(output), over: make(chan struct{})}
	p.Cmd = exec.CommandContext(ctx, words[0], words[1:]...)
	p.Cancel = func() error { return killGroup(p.Cmd) }
	p.WaitDelay = 5 * time.Second
	p.Stdout = p.stdout
	p.Stderr = p.stderr
	ownGroup(p.Cmd)
	t.Cleanup(func() {
		cancel()
		if p.Process != nil {
			<-p.over
		}
	})
	return p
}

func (p *process) start(t testing.TB) *process {
	t.Helper()
	must(t, p.Start())
	started.Store(p, true)
	go func() {
		p.Wait()
		killGroup(p.Cmd) // what it has left behind
		started.Delete(p)
		close(p.over)
	}()
	return p
}

func (p *process) isOver() bool {
	select {
	case <-p.over:
		return true
	default:
		return false
	}
}

// await waits until the process has written text n times.
func (p *process) await(t testing.TB, o *output, text string, n int) {
	t.Helper()
	came := func() bool { return strings.Count(o.String(), text) >= n }
	eventually(t, fmt.Sprintf("%q, %d times", text, n), func() bool { return came() || p.isOver() })
	if !came() {
		t.Fatalf("%q did not come %d times, but %s and %s (%v)", text, n,
			tail(p.stdout.String()), tail(p.stderr.String()), p.Args)
	}
}

// signal sends a signal to a process that is expected to run.
func (p *process) signal(t testing.TB, s os.Signal) {
	t.Helper()
	must(t, p.Process.Signal(s))
}

// end waits for the end of a run.
func (p *process) end(t testing.TB) result {
	t.Helper()
	<-p.over // its context sees to that
	r := result{status: p.ProcessState.ExitCode(), stdout: p.stdout.String(),
		stderr: p.stderr.String(), args: p.args}
	if r.status < 0 {
		t.Fatalf("%v: %v: %s and %s", p.Args, p.ProcessState, tail(r.stdout), tail(r.stderr))
	}
	if p.hasLines {
		r.lines = parseLines(t, r.stdout, slices.Contains(p.args, "-json"))
	}
	for text := range strings.Lines(r.stderr) {
		if p.isPlain && !logLine.MatchString(text) {
			t.Errorf("standard error has the line %q", text)
		}
	}
	return r
}

// logLine is a line on standard error: of the log, or why the program could not do its work.
var logLine = regexp.MustCompile(`^(\[echomux \(\d+\)\] |echomux: )[ -~]+\n$`)

// run is one whole run of the program.
func run(t testing.TB, args ...string) result {
	t.Helper()
	return command(t, nil, args...).start(t).end(t)
}

// commandTo prepares a run to a port of 127.0.0.1. Limits that flags does not set are far away.
func commandTo(t testing.TB, port, flags string) *process {
	t.Helper()
	args := slices.Concat([]string{"-connect-timeout", "50s", "-io-timeout", "50s"},
		strings.Fields(flags), []string{"127.0.0.1", port})
	return command(t, nil, args...)
}

func runTo(t testing.TB, port, flags string) result {
	t.Helper()
	return commandTo(t, port, flags).start(t).end(t)
}

// startServer starts echomux -serve on 127.0.0.1, and waits until it listens.
func startServer(t testing.TB, launcher []string, flags ...string) (p *process, port string) {
	t.Helper()
	args := slices.Concat([]string{"-serve"}, flags, []string{"127.0.0.1", "0"})
	p = command(t, launcher, args...).start(t)
	return p, p.listening(t)
}

var listeningAt = regexp.MustCompile(`msg.{1,3}listening.*:(\d+)"?}?\n`)

// listening waits until a server listens, and returns its port.
func (p *process) listening(t testing.TB) (port string) {
	t.Helper()
	p.await(t, p.stdout, "\n", 1)
	match := listeningAt.FindStringSubmatch(p.stdout.String())
	if match == nil {
		t.Fatalf("it does not listen: %s", tail(p.stdout.String()))
	}
	return match[1]
}

// ---- What a run came to ----

// result is what a run of the program came to. Its streams have been checked: there is nothing in
// them but lines in their form.
type result struct {
	args           []string
	status         int
	stdout, stderr string
	lines          []line // of standard output
}

// line is a result line.
type line struct {
	text   string
	keys   []string
	values map[string]string
}

// number is the value of a key, which has to be a number.
func (l line) number(t testing.TB, key string) float64 {
	t.Helper()
	n, err := strconv.ParseFloat(l.values[key], 64)
	must(t, err)
	return n
}

// last is the last line, which says how the run ended.
func (r result) last(t testing.TB) line {
	t.Helper()
	if len(r.lines) == 0 {
		t.Fatalf("%q printed no line: status %d, %s", r.args, r.status, tail(r.stderr))
	}
	return r.lines[len(r.lines)-1]
}

// of returns the lines with that msg.
func (r result) of(msg string) (found []line) {
	for _, l := range r.lines {
		if l.values["msg"] == msg {
			found = append(found, l)
		}
	}
	return found
}

// want checks the status and the last line. cause is its error, where * is any text. If several
// connections have failed, there are lines for their causes, and no others.
func (r result) want(t testing.TB, status int, msg, cause string) line {
	t.Helper()
	l := r.last(t)
	said, _ := strconv.Atoi(l.values["status"])
	if r.status != status || said != status || l.values["msg"] != msg ||
		!like(l.values["error"], cause) {
		t.Errorf("%q: exit status %d, want %d, %s, %q: %s %s", r.args, r.status, status, msg, cause,
			l.text, tail(r.stderr))
	}
	severalFailed := l.values["connections"] != "" && l.values["failed"] != "0"
	if (len(r.of("cause")) > 0) != severalFailed {
		t.Errorf("%q: the causes' lines are %v, of %s", r.args, r.of("cause"), l.text)
	}
	return l
}

// wantValues checks values of a line, which are given as "key=value key=value". * is any text, and
// "key=" is a key that the line does not have.
func (l line) wantValues(t testing.TB, pairs string) {
	t.Helper()
	for _, pair := range strings.Fields(pairs) {
		key, value, _ := strings.Cut(pair, "=")
		_, has := l.values[key]
		if !like(l.values[key], value) || has != (value != "") {
			t.Errorf("want %s in %s", pair, l.text)
		}
	}
}

// like compares a text with a pattern, in which * is any text.
func like(text, pattern string) bool {
	parts := strings.Split(pattern, "*")
	for i, part := range parts {
		parts[i] = regexp.QuoteMeta(part)
	}
	return regexp.MustCompile("(?s)^" + strings.Join(parts, ".*") + "$").MatchString(text)
}

// parseLines parses standard output. It allows nothing that the manual does not.
func parseLines(t testing.TB, stdout string, isJSON bool) (lines []line) {
	t.Helper()
	for text := range strings.Lines(stdout) {
		l, err := parseLine(text, isJSON)
		if err != nil {
			t.Errorf("%v: %q", err, text)
		}
		lines = append(lines, l)
	}
	return lines
}

// A text in quotes has JSON's escapes in both forms, and all is printable ASCII.
const quoted = `"(?:[ !#-[\]-~]|\\.)*"`

var (
	word   = regexp.MustCompile(`^([a-z][a-z0-9_]*)=(` + quoted + `|[!#-<>-[\]-~]+)[ \n]`)
	member = regexp.MustCompile(`^[{,]"([a-z][a-z0-9_]*)":(` + quoted + `|\d+(?:\.\d+)?)`)
	// Quotes have texts that are no plain words, or with JSON all of them.
	isPlain = regexp.MustCompile(`^[!#-<>-[\]-~]+$`)
	isText  = regexp.MustCompile(`^(time|msg|target|local|peer|at|skipped|error)$`)
)

func parseLine(text string, isJSON bool) (l line, err error) {
	l = line{text: text, values: map[string]string{}}
	item, end := word, ""
	if isJSON {
		item, end = member, "}\n"
	}
	flat := ""
	rest := text
	for {
		match := item.FindStringSubmatch(rest)
		if match == nil {
			break
		}
		rest = rest[len(match[0]):]
		key, value := match[1], match[2]
		isQuoted := value[0] == '"'
		if isQuoted {
			err = json.Unmarshal([]byte(match[2]), &value)
		}
		mustQuote := isJSON && isText.MatchString(key) || !isPlain.MatchString(value)
		if err != nil || isQuoted != mustQuote {
			return l, fmt.Errorf("quotes of %s: %v", key, err)
		}
		l.keys = append(l.keys, key)
		l.values[key] = value
		flat += " " + key + "=" + strings.Join(strings.Fields(value), "_")
	}
	order := lineForms[l.values["msg"]]
	if rest != end || order == nil || !order.MatchString(flat) {
		err = fmt.Errorf("keys, their order, or the form of a value")
	}
	return l, err
}

// lineForms has the keys for each msg in their order, with the form of each value.
var lineForms = func() map[string]*regexp.Regexp {
	times := "( N_ms| N_min_ms N_p50_ms N_p99_ms N_max_ms)?"
	last := " status( target)?( local peer)?( connections ok failed unfinished)?" +
		" sent returned rounds" + strings.ReplaceAll(times, "N", "connect") +
		strings.ReplaceAll(times, "N", "rtt") + "( mbit_s)?( lasted_ms)?( skipped)?"
	compiled := map[string]*regexp.Regexp{}
	for msg, keys := range map[string]string{
		"ok":          last,
		"failed":      last + "( error)?",
		"interrupted": last,
		"cause":       " status target connections error",
		"round":       " target peer connection round rtt_ms",
		"listening":   " at",
		"paused":      " at error",
		"ended":       " status at clients failed received returned",
	} {
		pattern := regexp.MustCompile(`\w+`).ReplaceAllStringFunc("time msg"+keys, valueForm)
		compiled[msg] = regexp.MustCompile("^ " + pattern + "$")
	}
	return compiled
}()

// valueForm is the regular expression for a key and its value, without spaces.
func valueForm(key string) string {
	form := `\d+`
	switch {
	case key == "time":
		form = `\d{4}-\d\d-\d\dT[\d:]{8}\.\d{3}Z`
	case key == "local" || key == "peer" || key == "at":
		form = `([0-9.]+|\[[0-9a-f:.]+(%\w+)?\]):\d+`
	case isText.MatchString(key):
		form = `\S+`
	case strings.HasSuffix(key, "_ms"):
		form = `\d+\.\d{3}`
	case key == "mbit_s":
		form = `\d+(\.\d+)?`
	}
	return key + "=" + form
}

// ---- Places ----

// listen makes a peer at an address of this machine, say "127.0.0.1:0". It plays script for each
// connection, and closes that afterwards. (serveOn does so with a listener of another kind.)
func listen(t testing.TB, at string, script func(*net.TCPConn)) (port string) {
	t.Helper()
	listener, err := net.Listen("tcp", at)
	must(t, err)
	serveOn(t, listener, script)
	return portOf(listener.Addr())
}

// serveOn plays script for each connection that a listener accepts, until the test ends.
func serveOn(t testing.TB, listener net.Listener, script func(*net.TCPConn)) {
	context.AfterFunc(t.Context(), func() { listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			context.AfterFunc(t.Context(), func() { c.Close() })
			go func() {
				defer c.Close()
				script(c.(*net.TCPConn))
			}()
		}
	}()
}

func portOf(at net.Addr) string { return strconv.Itoa(at.(*net.TCPAddr).Port) }

// closedPort is a port of 127.0.0.1 at which nobody listens as long as the test runs: it is the
// local port of a connection, so nobody else is given it.
func closedPort(t testing.TB) string {
	t.Helper()
	return portOf(dial(t, listen(t, "127.0.0.1:0", ignores)).LocalAddr())
}

// dial connects to a port of 127.0.0.1 until the test ends.
func dial(t testing.TB, port string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", "127.0.0.1:"+port)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(hang))
	return c.(*net.TCPConn)
}

// hasIPv6 tells whether this machine has IPv6 on loopback.
func hasIPv6() bool {
	listener, err := net.Listen("tcp", "[::1]:0")
	if err == nil {
		listener.Close()
	}
	return err == nil
}
