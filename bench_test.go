package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// The benchmarks compare processes: echomux as it is shipped with programs that do the same job.
//
//	C              testdata/bench, compiled with gcc: the floor, for it verifies and does no more
//	bare, correct  two kinds of its connections, explained there
//	net            package net, testdata/bench/net
//	nc, ncat, socat
//
// What is not installed is left out, and the first lines say so. Machines are noisy, so only ratios
// are reported: the programs run in turn, A B C A B C, and a figure is the median of the turns'
// ratios, echomux's time to the other's: below 1, echomux is faster. The two figures behind it are
// the quartiles. Times are those of whole processes, from start to end. Behind "processor" is the
// same ratio of the processor time that the two have used, which another's load disturbs less.
//
// Each run has a server process of its own on a fresh port, since what one run leaves in TIME_WAIT
// slows the next one down. Benchmarks measure: no figure makes them fail.

const (
	benchBytes  = 300_000_000
	benchRounds = "30000"

	// With its newline it is 64 bytes.
	benchMessage = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde"
)

// BenchmarkBulkFile is standard input, a file, there and back.
func BenchmarkBulkFile(b *testing.B) { benchBulk(b, "300 MB from a file", benchFile) }

// BenchmarkBulkPipe is the same bytes from cat.
func BenchmarkBulkPipe(b *testing.B) {
	if _, err := exec.LookPath("cat"); err != nil {
		b.Skip(err)
	}
	benchBulk(b, "300 MB from a pipe", benchPipe)
}

func benchBulk(b *testing.B, title string, feed func(path string) benchFeed) {
	p := benchPrepare(b)
	input := feed(benchZeros(b, benchBytes))
	echomux := p.client("echomux", input, p.echomux, "-q", "HOST", "PORT")
	benchCompare(b, title, 15, []benchEntrant{
		echomux,
		p.client("C", input, p.c, "PORT", "file"),
		p.client("net", input, p.net, "bulk", "HOST:PORT"),
	})
	benchCompare(b, title+", of the slow ones", 3, []benchEntrant{
		echomux,
		p.client("nc", input, benchFind("nc"), "-N", "HOST", "PORT"),
		p.client("ncat", input, benchFind("ncat"), "HOST", "PORT"),
		p.client("socat", input, benchFind("socat"), "-t10", "-", "TCP:HOST:PORT"),
	})
}

// BenchmarkRounds is 64 bytes there and back, again and again on one connection.
func BenchmarkRounds(b *testing.B) {
	p := benchPrepare(b)
	many := []string{"-q", "-count", benchRounds, "HOST", "PORT", benchMessage}
	benchCompare(b, benchRounds+" rounds of 64 bytes", 11, []benchEntrant{
		p.client("echomux", nil, p.echomux, many...),
		p.client("C", nil, p.c, "PORT", "ping", benchRounds),
		p.client("net", nil, p.net, "rounds", "HOST:PORT", benchRounds),
	})
}

// BenchmarkConnections is 64 bytes there and back on each of many connections at once.
func BenchmarkConnections(b *testing.B) {
	for _, size := range []struct{ n, turns int }{{1000, 41}, {10_000, 11}} {
		n := strconv.Itoa(size.n)
		b.Run(n, func(b *testing.B) {
			p := benchPrepare(b)
			benchCompare(b, n+" connections", size.turns, []benchEntrant{
				p.connections(size.n),
				p.client("correct", nil, p.c, "PORT", "correct", n),
				p.client("bare", nil, p.c, "PORT", "bare", n),
				p.client("net", nil, p.net, "connections", "HOST:PORT", n),
			})
		})
	}
}

func (p benchPrograms) connections(n int) benchEntrant {
	many := strconv.Itoa(n)
	return p.client("echomux", nil, p.echomux, "-q", "-n", many, "HOST", "PORT", benchMessage)
}

// BenchmarkStart is one small exchange, of which the start of the process is the most. What is
// possible in Go is a program that prints one line, and then C's exchange, as C has measured it.
func BenchmarkStart(b *testing.B) {
	p := benchPrepare(b)
	file := benchFile(benchZeros(b, len(benchMessage)+1))
	benchCompare(b, "one exchange, process start included", 301, []benchEntrant{
		p.connections(1),
		p.lineAndExchange(),
		p.client("C", nil, p.c, "PORT", "correct", "1"),
		p.client("net", nil, p.net, "rounds", "HOST:PORT", "1"),
		p.client("nc", file, benchFind("nc"), "-N", "HOST", "PORT"),
	})
}

// lineAndExchange is the sum of two: a program that prints one line, and C's exchange.
func (p benchPrograms) lineAndExchange() benchEntrant {
	if p.c == "" {
		return benchEntrant{}
	}
	return benchEntrant{"line+C", func(b *testing.B) benchCost {
		line := benchRun(b, nil, exec.Command(p.line))
		server := benchStart(b, p.server...)
		defer server.stop()
		cmd := exec.Command(p.c, server.port, "correct", "1")
		var seconds strings.Builder
		cmd.Stderr = &seconds
		benchRun(b, nil, cmd)
		s, err := strconv.ParseFloat(strings.TrimSpace(seconds.String()), 64)
		if err != nil {
			b.Fatal(err)
		}
		return benchCost{wall: line.wall + time.Duration(s*float64(time.Second))}
	}}
}

// BenchmarkServeBulk and BenchmarkServeRounds compare servers, with the C client.
func BenchmarkServeBulk(b *testing.B) {
	benchServers(b, "-serve, 300 MB", "bulk", strconv.Itoa(benchBytes))
}

func BenchmarkServeRounds(b *testing.B) {
	benchServers(b, "-serve, "+benchRounds+" rounds", "ping", benchRounds)
}

func benchServers(b *testing.B, title string, job ...string) {
	p := benchPrepare(b)
	if p.c == "" {
		b.Skip("there is no C client")
	}
	benchCompare(b, title, 11, []benchEntrant{
		p.serving("echomux", job, p.echomux, "-serve", "127.0.0.1", "0"),
		p.serving("C", job, p.server...),
		p.serving("net", job, p.net, "serve"),
		p.serving("splice", job, p.net, "splice"),
	})
}

// BenchmarkGrowth is what a further connection costs among few and among many, and a further
// megabyte. Best would be a ratio of 1: cost that grows as the work does. The first megabyte is
// told and is no part of the ratio: in it the process touches its memory for the first time.
func BenchmarkGrowth(b *testing.B) {
	b.Run("connections", func(b *testing.B) {
		p := benchPrepare(b)
		sizes := []benchSize{{1, 40}, {100, 20}, {1000, 6}, {10_000, 2}}
		benchGrow(b, "connection", 0, sizes, func(n int) []benchEntrant {
			return []benchEntrant{
				p.connections(n),
				p.client("C", nil, p.c, "PORT", "correct", strconv.Itoa(n)),
			}
		})
	})
	b.Run("megabytes", func(b *testing.B) {
		p := benchPrepare(b)
		sizes := []benchSize{{0, 40}, {1, 40}, {100, 2}, {1000, 1}}
		benchGrow(b, "megabyte", 1, sizes, func(n int) []benchEntrant {
			input := benchFile(benchZeros(b, max(n*1_000_000, 64)))
			return []benchEntrant{
				p.client("echomux", input, p.echomux, "-q", "HOST", "PORT"),
				p.client("C", input, p.c, "PORT", "file"),
			}
		})
	})
}

// ---- The programs ----

// benchPrograms are the paths of what has been built for a benchmark.
type benchPrograms struct {
	echomux, net, line string
	c                  string   // the client, empty without gcc
	server             []string // the command of the server that clients run against
}

var benchAnnounce sync.Once

// benchPrepare builds the programs.
func benchPrepare(b testing.TB) (p benchPrograms) {
	benchAnnounce.Do(benchSay)
	dir := b.TempDir() + string(filepath.Separator)
	build := exec.Command("go", "build", "-o", dir)
	build.Args = append(build.Args, ".", "./testdata/bench/net", "./testdata/bench/line")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	p.echomux, p.net, p.line = dir+"echomux", dir+"net", dir+"line"
	p.server = []string{p.net, "serve"}
	if benchWithoutC() == "" {
		p.c = benchCompile(b, dir, "client")
		p.server = []string{benchCompile(b, dir, "server")}
	}
	return p
}

// benchSay says once what comes, and what is missing.
func benchSay() {
	fmt.Fprintln(os.Stderr, "bench: all benchmarks take some four minutes on two cores")
	if why := benchWithoutC(); why != "" {
		fmt.Fprintf(os.Stderr, "bench: %s: no figure for C; package net is the server\n", why)
	}
	for _, name := range []string{"nc", "ncat", "socat", "strace"} {
		if benchFind(name) == "" {
			fmt.Fprintf(os.Stderr, "bench: %s is not installed: no figure for it\n", name)
		}
	}
}

// benchWithoutC says why nothing can be compiled, if so.
func benchWithoutC() string {
	if runtime.GOOS != "linux" {
		return "the C sources are for Linux"
	}
	if benchFind("gcc") == "" {
		return "gcc is not installed"
	}
	return ""
}

// benchCompile compiles one of the C sources and returns the program's path.
func benchCompile(b testing.TB, dir, name string) string {
	source := filepath.Join("testdata", "bench", name+".c")
	gcc := exec.Command("gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-o", dir+name, source)
	if out, err := gcc.CombinedOutput(); err != nil || len(out) > 0 {
		b.Fatalf("%s: %v: %s", source, err, out)
	}
	return dir + name
}

// benchFind is the path of a command, empty if it is not installed.
func benchFind(name string) string {
	path, _ := exec.LookPath(name)
	return path
}

// benchZeros is the path of a file of n bytes that takes no room.
func benchZeros(b testing.TB, n int) string {
	path := filepath.Join(b.TempDir(), "zeros")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, int64(n))); err != nil {
		b.Fatal(err)
	}
	return path
}

// ---- The runs ----

// benchEntrant is a program at a job. One run is a whole process from start to end.
type benchEntrant struct {
	name string
	run  func(b *testing.B) benchCost // nil: it is not there
}

// benchCost is what a run has cost. No processor time: it is not known.
type benchCost struct{ wall, processor time.Duration }

// client is a program against the usual server; HOST and PORT stand for the server's.
func (p benchPrograms) client(name string, feed benchFeed, path string,
	args ...string) benchEntrant {
	if path == "" {
		return benchEntrant{name: name}
	}
	return benchEntrant{name, func(b *testing.B) benchCost {
		server := benchStart(b, p.server...)
		defer server.stop()
		return benchRun(b, feed, server.client(path, args...))
	}}
}

// serving is a server against the C client. The processor time is the server's.
func (p benchPrograms) serving(name string, job []string, command ...string) benchEntrant {
	return benchEntrant{name, func(b *testing.B) benchCost {
		server := benchStart(b, command...)
		defer server.stop()
		cost := benchRun(b, nil, exec.Command(p.c, append([]string{server.port}, job...)...))
		return benchCost{cost.wall, server.stop()}
	}}
}

// benchFeed prepares a command's standard input, with processes of its own if it needs some, and
// returns what ends them.
type benchFeed func(b *testing.B, cmd *exec.Cmd) (end func())

// benchFile feeds a file.
func benchFile(path string) benchFeed {
	return func(b *testing.B, cmd *exec.Cmd) func() {
		f, err := os.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		cmd.Stdin = f
		return func() { f.Close() }
	}
}

// benchPipe feeds what cat reads from a file.
func benchPipe(path string) benchFeed {
	return func(b *testing.B, cmd *exec.Cmd) func() {
		r, w, err := os.Pipe()
		if err != nil {
			b.Fatal(err)
		}
		cat := exec.Command("cat", path)
		cat.Stdout = w
		if err := cat.Start(); err != nil {
			b.Fatal(err)
		}
		w.Close()
		cmd.Stdin = r
		return func() {
			r.Close() // and if the command has died, cat does now
			cat.Wait()
		}
	}
}

// benchRun runs a command to its end.
func benchRun(b *testing.B, feed benchFeed, cmd *exec.Cmd) benchCost {
	var complaint strings.Builder
	if cmd.Stderr == nil {
		cmd.Stderr = &complaint
	}
	start := time.Now()
	if feed != nil {
		defer feed(b, cmd)()
	}
	if err := cmd.Run(); err != nil {
		b.Fatalf("%v: %v: %s", cmd.Args, err, complaint.String())
	}
	wall := time.Since(start)
	return benchCost{wall, benchProcessor(cmd)}
}

// benchProcessor is the processor time of a process that has ended.
func benchProcessor(cmd *exec.Cmd) time.Duration {
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
}

// benchServer is a server process that listens.
type benchServer struct {
	cmd        *exec.Cmd
	host, port string
}

// benchStart starts a server and waits for its address: the first line that it prints, of which it
// is the last word, or echomux's line that says so, of which it is the second.
func benchStart(b testing.TB, command ...string) *benchServer {
	s := &benchServer{cmd: exec.Command(command[0], command[1:]...)}
	r, w, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	s.cmd.Stdout, s.cmd.Stderr = w, w
	err = s.cmd.Start()
	w.Close()
	if err != nil {
		b.Fatal(err)
	}
	out := bufio.NewReader(r)
	line, _ := out.ReadString('\n') // without a line there is no address
	address, _, _ := strings.Cut(strings.TrimPrefix(line, "echomux: "), " ")
	s.host, s.port, err = net.SplitHostPort(strings.TrimSpace(address))
	if err != nil {
		s.stop()
		b.Fatalf("%v: %q: %v", command, line, err)
	}
	go func() {
		io.Copy(io.Discard, out)
		r.Close()
	}()
	return s
}

// client is a command against the server; HOST and PORT in the arguments stand for the server's.
func (s *benchServer) client(path string, args ...string) *exec.Cmd {
	cmd := exec.Command(path)
	for _, arg := range args {
		named := strings.NewReplacer("HOST", s.host, "PORT", s.port).Replace(arg)
		cmd.Args = append(cmd.Args, named)
	}
	return cmd
}

// stop ends the server and returns the processor time that it has used. It may be called again.
func (s *benchServer) stop() time.Duration {
	s.cmd.Process.Kill()
	s.cmd.Wait()
	return benchProcessor(s.cmd)
}

// ---- The figures ----

// benchCompare lets the entrants run in turn and tells the first one's ratio to each of the others.
func benchCompare(b *testing.B, title string, turns int, entrants []benchEntrant) {
	entrants = benchPresent(entrants)
	if len(entrants) < 2 {
		return
	}
	costs := make([][]benchCost, len(entrants))
	benchTurns(title, turns, func(turn int) {
		for i, e := range entrants {
			if cost := e.run(b); turn >= 0 {
				costs[i] = append(costs[i], cost)
			}
		}
	})
	for i := range len(entrants) - 1 {
		benchTellRatio(b, entrants[0].name, entrants[i+1].name, costs[0], costs[i+1])
	}
	for i, e := range entrants {
		wall := make([]float64, turns)
		for turn, cost := range costs[i] {
			wall[turn] = cost.wall.Seconds() * 1000
		}
		_, median, _ := benchQuartiles(wall)
		fmt.Printf("    %s %.2f ms", e.name, median)
	}
	fmt.Println()
	benchEnd(b)
}

// benchPresent leaves out what is not there.
func benchPresent(entrants []benchEntrant) []benchEntrant {
	return slices.DeleteFunc(entrants, func(e benchEntrant) bool { return e.run == nil })
}

// benchTurns has a first turn, number -1, that warms up and tells how long the others will take.
func benchTurns(title string, turns int, run func(turn int)) {
	start := time.Now()
	run(-1)
	seconds := time.Since(start).Seconds() * float64(turns)
	fmt.Fprintf(os.Stderr, "bench: %s: %d turns, about %.0f s ", title, turns, seconds)
	for turn := range turns {
		run(turn)
		if turn*20/turns != (turn+1)*20/turns {
			fmt.Fprint(os.Stderr, ".")
		}
	}
	fmt.Fprintln(os.Stderr)
	fmt.Println(title)
}

// benchTellRatio tells how two entrants compare.
func benchTellRatio(b *testing.B, one, other string, ones, others []benchCost) {
	var wall, processor []float64
	for turn := range ones {
		wall = append(wall, float64(ones[turn].wall)/float64(others[turn].wall))
		if others[turn].processor > 0 {
			ratio := float64(ones[turn].processor) / float64(others[turn].processor)
			processor = append(processor, ratio)
		}
	}
	name := one + "/" + other
	low, median, high := benchQuartiles(wall)
	fmt.Printf("    %-16s %5.2f  (%.2f to %.2f)", name, median, low, high)
	b.ReportMetric(median, name)
	if len(processor) == len(wall) {
		low, median, high := benchQuartiles(processor)
		fmt.Printf("   processor %5.2f  (%.2f to %.2f)", median, low, high)
	}
	fmt.Println()
}

// benchQuartiles are the values with a quarter, a half and three quarters of all below them.
func benchQuartiles(v []float64) (low, median, high float64) {
	v = slices.Clone(v)
	slices.Sort(v)
	at := func(share float64) float64 {
		place := share * float64(len(v)-1)
		below := int(place)
		above := min(below+1, len(v)-1)
		return v[below] + (v[above]-v[below])*(place-float64(below))
	}
	return at(0.25), at(0.5), at(0.75)
}

// benchEnd leaves out the figure that is nobody's to compare with. A benchmark that takes less than
// a second is run again, so none does.
func benchEnd(b *testing.B) {
	b.ReportMetric(0, "ns/op")
	time.Sleep(time.Second - b.Elapsed())
}

// benchSize is an amount of work, and how often it is run in a turn: noise drowns little work.
type benchSize struct{ units, times int }

// benchGrow tells what a further unit costs between one size and the next. The first few of these
// steps may have a reason to cost more: the ratio of the dearest step to the cheapest leaves out
// as many.
func benchGrow(b *testing.B, unit string, apart int, sizes []benchSize,
	entrants func(units int) []benchEntrant) {
	bySize := make([][]benchEntrant, len(sizes))
	for i, size := range sizes {
		bySize[i] = benchPresent(entrants(size.units))
	}
	names := bySize[0]
	costs := make([][][]float64, len(names)) // by entrant, step and turn, in microseconds a unit
	for i := range costs {
		costs[i] = make([][]float64, len(sizes)-1)
	}
	benchTurns("cost of a further "+unit, 7, func(turn int) {
		for i := range names {
			last := benchMean(b, bySize[0][i], sizes[0].times)
			for j, size := range sizes[1:] {
				seconds := benchMean(b, bySize[j+1][i], size.times)
				if turn >= 0 {
					cost := (seconds - last) * 1e6 / float64(size.units-sizes[j].units)
					costs[i][j] = append(costs[i][j], cost)
				}
				last = seconds
			}
		}
	})
	for i, e := range names {
		benchTellGrowth(b, e.name, apart, sizes, costs[i])
	}
	benchEnd(b)
}

// benchMean is the seconds of a run, several taken together.
func benchMean(b *testing.B, e benchEntrant, times int) float64 {
	var sum time.Duration
	for range times {
		sum += e.run(b).wall
	}
	return sum.Seconds() / float64(times)
}

// benchTellGrowth tells what a further unit costs an entrant in each step.
func benchTellGrowth(b *testing.B, name string, apart int, sizes []benchSize, costs [][]float64) {
	var medians []float64
	for i, cost := range costs {
		low, median, high := benchQuartiles(cost)
		medians = append(medians, median)
		fmt.Printf("    %-8s from %d to %d: %.1f us (%.1f to %.1f)\n",
			name, sizes[i].units, sizes[i+1].units, median, low, high)
	}
	ratio := slices.Max(medians[apart:]) / slices.Min(medians[apart:])
	fmt.Printf("    %-8s most/least %.2f\n", name, ratio)
	b.ReportMetric(ratio, name+"-most/least")
}
