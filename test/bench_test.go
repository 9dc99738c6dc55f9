//go:build linux

package test

import (
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// The benchmarks compare processes that do the same work: echomux as it is shipped, and others.
//
//	careful, bare   testdata/client.c, which says what they are; compiled by gcc
//	net             testdata/net.go: what one writes with package net
//	nc, ncat, ...   these compare nothing; iperf3 sends in one direction only
//
// Machines are noisy, so only ratios count. Two processes run in turn, A B A B, each with a new
// server, and each pair has the ratio of echomux's time to the other's: below 1, echomux is faster.
// Reported are the median of these ratios, and their quartiles q1 and q3. Times are those of whole
// processes, from start to end. load is what the machine had to do in the last minute; if it is
// much above 2, others have disturbed. Benchmarks measure, so no figure makes them fail.

// share is what a comparison may take, unless it takes fewest pairs. All take some nine minutes.
const (
	share  = 8 * time.Second
	fewest = 3
)

// work is what a client has to do: so many connections at once, and on each so many rounds.
type work struct{ connections, rounds, size int }

// entrant prepares a client's process for a port of 127.0.0.1.
type entrant func(b *testing.B, port string) *process

// measure runs something once, and returns what it took in microseconds.
type measure func(b *testing.B) float64

// ---- What runs ----

func (w work) echomux(b *testing.B, port string) *process {
	flags := []string{"-n", strconv.Itoa(w.connections), "-count", strconv.Itoa(w.rounds)}
	if w.size <= 64 {
		message := strings.Repeat("x", w.size-1) // and a newline
		return command(b, nil, append(flags, "127.0.0.1", port, message)...)
	}
	return command(b, nil, append(flags, "-size", strconv.Itoa(w.size), "127.0.0.1", port)...)
}

func (w work) careful(b *testing.B, port string) *process {
	return w.of(b, "client", port+" careful")
}

func (w work) bare(b *testing.B, port string) *process { return w.of(b, "client", port+" bare") }
func (w work) net(b *testing.B, port string) *process  { return w.of(b, "net", port) }

// of is the work of a program of testdata.
func (w work) of(b *testing.B, name, args string) *process {
	words := strings.Fields(fmt.Sprint(args, " ", w.connections, " ", w.rounds, " ", w.size))
	return tool(b, append([]string{built(b, name)}, words...)...)
}

// tool is the work of a command that reads from a file what flows. PORT in it stands for the port.
func (w work) tool(words string) entrant {
	return func(b *testing.B, port string) *process {
		fields := strings.Fields(strings.ReplaceAll(words, "PORT", port))
		needTool(b, fields[0])
		p := tool(b, fields...)
		zeros, err := os.CreateTemp(b.TempDir(), "zeros")
		must(b, err)
		must(b, zeros.Truncate(int64(w.size)))
		b.Cleanup(func() { zeros.Close() })
		p.Stdin = zeros
		return p
	}
}

// buildTestdata builds the programs of testdata, and says what is not installed.
var buildTestdata = sync.OnceValues(func() (dir string, err error) {
	for _, name := range []string{"gcc", "nc", "ncat", "socat", "iperf3", "unshare", "strace"} {
		_, missing := exec.LookPath(name)
		if missing != nil {
			fmt.Fprintf(os.Stderr, "# left out: %v\n", missing)
		}
	}
	if buildDir == "" { // echomux was not built here
		buildDir, err = os.MkdirTemp("", "echomux")
	}
	for _, words := range []string{"gcc -O2 -o client client.c", "gcc -O2 -o server server.c",
		"go build -o net net.go", "go build -o line line.go"} {
		fields := strings.Fields(words)
		fields[len(fields)-2] = filepath.Join(buildDir, fields[len(fields)-2])
		builder := exec.Command(fields[0], fields[1:]...)
		builder.Dir = "testdata"
		builder.Env = append(os.Environ(), "CGO_ENABLED=0")
		said, fault := builder.CombinedOutput()
		if fault != nil && err == nil {
			err = fmt.Errorf("%s: %w: %s", words, fault, said)
		}
	}
	return buildDir, err
})

// built is the path of a program of testdata.
func built(b testing.TB, name string) string {
	b.Helper()
	needProcess(b)
	dir, err := buildTestdata()
	needTool(b, "gcc")
	must(b, err)
	return filepath.Join(dir, name)
}

// server prepares a server's process: echomux, or the one in C.
func server(b *testing.B, inC bool, launcher ...string) *process {
	if inC {
		return tool(b, append(launcher, built(b, "server"))...)
	}
	return command(b, launcher, "-serve", "127.0.0.1", "0")
}

// with measures a client with a new server.
func with(client entrant, inC bool) measure {
	return func(b *testing.B) float64 {
		s := server(b, inC).start(b)
		defer s.kill()
		return took(b, client(b, s.listening(b)))
	}
}

// took lets a process run to its end, and returns its time.
func took(b *testing.B, p *process) (microseconds float64) {
	p.Stdout = nil
	p.Stderr = os.Stderr
	began := time.Now()
	p.start(b)
	<-p.over
	d := time.Since(began)
	if !p.ProcessState.Success() {
		b.Fatalf("%v: %v", p.Args, p.ProcessState)
	}
	return float64(d.Nanoseconds()) / 1e3
}

func (p *process) kill() {
	killGroup(p.Cmd)
	<-p.over
}

// ---- Comparisons ----

// compare lets two run in turn, and reports the ratio of their times.
func compare(b *testing.B, ours, others measure) {
	ours(b) // builds what it needs
	others(b)
	fmt.Fprintf(os.Stderr, "# %s\n", b.Name())
	var times, othersTimes, ratios []float64
	for end := time.Now().Add(share); len(ratios) < fewest || time.Now().Before(end); {
		a, z := ours(b), others(b)
		times = append(times, a)
		othersTimes = append(othersTimes, z)
		ratios = append(ratios, a/z)
	}
	b.ReportMetric(float64(len(ratios)), "pairs")
	b.ReportMetric(quantile(times, 0.5), "µs")
	b.ReportMetric(quantile(othersTimes, 0.5), "µs-other")
	b.ReportMetric(quantile(ratios, 0.25), "ratio-q1")
	b.ReportMetric(quantile(ratios, 0.5), "ratio")
	b.ReportMetric(quantile(ratios, 0.75), "ratio-q3")
	b.ReportMetric(0, "ns/op") // leaves it out
	var load float64
	text, _ := os.ReadFile("/proc/loadavg")
	fmt.Sscan(string(text), &load)
	b.ReportMetric(load, "load")
}

func quantile(values []float64, share float64) float64 {
	slices.Sort(values)
	return values[int(share*float64(len(values)-1)+0.5)]
}

// compareAll compares echomux as a client with others.
func compareAll(b *testing.B, w work, others map[string]entrant) {
	for _, name := range slices.Sorted(maps.Keys(others)) {
		b.Run(name, func(b *testing.B) {
			compare(b, with(w.echomux, true), with(others[name], true))
		})
	}
}

var (
	bulk     = work{1, 1, 300_000_000}
	rounds64 = work{1, 20_000, 64}
	atOnce   = work{200, 500, 64}
	exchange = work{1, 1, 64}
)

// BenchmarkBulk is 300 MB there and back.
func BenchmarkBulk(b *testing.B) {
	compareAll(b, bulk, map[string]entrant{"careful": bulk.careful, "net": bulk.net,
		"nc":    bulk.tool("nc -N 127.0.0.1 PORT"),
		"ncat":  bulk.tool("ncat 127.0.0.1 PORT"),
		"socat": bulk.tool("socat -t10 - TCP:127.0.0.1:PORT"),
	})
	b.Run("iperf3", func(b *testing.B) { compare(b, with(bulk.echomux, true), iperf3) })
}

// iperf3 sends as much, to a server of its own.
func iperf3(b *testing.B) float64 {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(b, err)
	port := portOf(listener.Addr())
	listener.Close() // and so it is free
	path := needTool(b, "iperf3")
	s := tool(b, path, "-s", "-B", "127.0.0.1", "-p", port, "--forceflush").start(b)
	defer s.kill()
	s.await(b, s.stdout, "Server listening", 1)
	return took(b, tool(b, path, "-c", "127.0.0.1", "-p", port, "-n", strconv.Itoa(bulk.size)))
}

// BenchmarkRounds is 64 bytes there and back, again and again.
func BenchmarkRounds(b *testing.B) {
	compareAll(b, rounds64, map[string]entrant{"careful": rounds64.careful, "net": rounds64.net})
}

// BenchmarkConnections is 64 bytes there and back on each of many connections at once.
func BenchmarkConnections(b *testing.B) {
	for _, n := range []int{1000, 10_000} {
		w := work{n, 1, 64}
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			compareAll(b, w, map[string]entrant{"careful": w.careful, "bare": w.bare, "net": w.net})
		})
	}
}

// BenchmarkExchange is one small exchange, of which the process's start and end are the most. What
// can be had in Go is a program that prints a line, and C's exchange without its start and end.
func BenchmarkExchange(b *testing.B) {
	b.Run("line+careful", func(b *testing.B) {
		compare(b, with(exchange.echomux, true), func(b *testing.B) float64 {
			return took(b, tool(b, built(b, "line"))) + with(exchange.careful, true)(b) -
				took(b, tool(b, "/bin/true"))
		})
	})
	compareAll(b, exchange, map[string]entrant{"careful": exchange.careful, "net": exchange.net,
		"nc": exchange.tool("nc -N 127.0.0.1 PORT")})
}

// BenchmarkServe compares echomux -serve with the server in C. The client is the one in C.
func BenchmarkServe(b *testing.B) {
	for name, w := range map[string]work{"bulk": bulk, "rounds": rounds64, "200": atOnce} {
		b.Run(name, func(b *testing.B) {
			compare(b, with(w.careful, false), with(w.careful, true))
		})
	}
}

// ---- Growth ----

// growth is work of several sizes, each so many units of something.
type growth struct {
	unit   string
	client func(work, *testing.B, string) *process
	units  []int
	work   func(units int) work
}

// BenchmarkGrowth compares what a unit costs in works of different sizes. If time grows as the work
// does, the ratio is 1. (How much of it is the kernel's, the careful client shows.)
func BenchmarkGrowth(b *testing.B) {
	for _, g := range []growth{
		{"byte", work.echomux, []int{1e7, 1e8, 2e9},
			func(n int) work { return work{1, 1, 64 + n} }}, // a single one is of the pattern, too
		{"round", work.echomux, []int{1e3, 1e5, 1e6},
			func(n int) work { return work{1, n, 64} }},
		{"connection", work.echomux, []int{100, 1000, 10_000, 50_000}, connections},
		{"connection of careful", work.careful, []int{100, 10_000, 50_000}, connections},
	} {
		for _, n := range g.units[1:] {
			b.Run(fmt.Sprintf("%s/%d", g.unit, n), func(b *testing.B) {
				compare(b, g.perUnit(n), g.perUnit(g.units[0]))
			})
		}
	}
}

func connections(n int) work { return work{n, 1, 64} }

// perUnit measures a unit of the work: what n units take longer than a single one, divided. It does
// so in a network of its own, where there are ports enough, and with descriptors enough.
func (g growth) perUnit(n int) measure {
	return func(b *testing.B) float64 {
		const allow = `if (ulimit -n 60000) 2>&-; then ulimit -n 60000; fi; exec "$@"`
		cannot := exec.Command("sh", "-c", "ulimit -n 60000").Run()
		if g.work(n).connections > 15_000 && cannot != nil {
			b.Skip("this machine does not allow so many descriptors")
		}
		s := server(b, true, needTool(b, "unshare"), "--net", "sh", "-ec", "ip link set lo up;"+
			"echo 1024 65535 >/proc/sys/net/ipv4/ip_local_port_range;"+allow, "sh").start(b)
		defer s.kill()
		eventually(b, "it listens", func() bool { return s.stdout.String() != "" || s.isOver() })
		if s.isOver() {
			b.Skipf("such a network takes root: %s", s.stderr)
		}
		port := s.listening(b)
		mean := func(w work) float64 {
			sum, count := 0.0, 0.0
			for ; sum < 0.3e6; count++ {
				p := g.client(w, b, port)
				pid := strconv.Itoa(s.Process.Pid)
				p.enter(b, "nsenter", "-t", pid, "-n", "sh", "-ec", allow, "sh")
				sum += took(b, p)
			}
			return sum / count
		}
		return (mean(g.work(n)) - mean(g.work(1))) / float64(n-1)
	}
}

// enter has a launcher start the process.
func (p *process) enter(b *testing.B, launcher ...string) {
	p.Path = needTool(b, launcher[0])
	p.Args = append(launcher, p.Args...)
}

// BenchmarkIdle is what a busy client of -serve notices of idle ones, and the memory of these.
func BenchmarkIdle(b *testing.B) {
	for _, n := range []int{3000, 10_000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			alone, alonePort := startServer(b, nil)
			shared, sharedPort := startServer(b, nil)
			hello(dial(b, sharedPort)) // the first one pays for all
			before := shared.holds(b).memory
			for range n {
				hello(dial(b, sharedPort))
			}
			grown := shared.holds(b).memory - before
			compare(b,
				func(b *testing.B) float64 { return took(b, rounds64.careful(b, sharedPort)) },
				func(b *testing.B) float64 { return took(b, rounds64.careful(b, alonePort)) })
			b.ReportMetric(float64(grown*1024/n), "bytes/client")
			alone.kill()
			shared.kill()
		})
	}
}

// BenchmarkMemory is the most memory that a client has held by the end of a round.
func BenchmarkMemory(b *testing.B) {
	s := server(b, true).start(b)
	port := s.listening(b)
	for _, size := range []string{"1", "1M", "100M", "10G"} {
		p := commandTo(b, port, "-count 2 -every 1h -size "+size).start(b)
		p.await(b, p.stdout, "msg=round", 1)
		b.ReportMetric(float64(p.holds(b).peak)/1024, "MiB-"+size)
		p.kill()
	}
	b.ReportMetric(0, "ns/op")
	s.kill()
}

// ---- System calls ----

// BenchmarkCalls counts a client's system calls. Those of the Go runtime, in brackets, vary: it
// makes more of them the slower strace is.
func BenchmarkCalls(b *testing.B) {
	needStrace(b)
	for unit, works := range map[string][2]work{
		"connection": {{1, 1, 64}, {1001, 1, 64}},
		"round":      {{1, 1, 64}, {1, 1001, 64}},
		"megabyte":   {{1, 1, 1e6}, {1, 1, 1001e6}},
	} {
		for name, client := range map[string]func(work, *testing.B, string) *process{
			"echomux": work.echomux, "careful": work.careful, "bare": work.bare,
		} {
			calls := countCalls(b, client, works[1])
			for call, n := range countCalls(b, client, works[0]) {
				calls[call] -= n
			}
			var texts []string
			for _, call := range slices.Sorted(maps.Keys(calls)) {
				text := fmt.Sprintf("%s %.2f", call, calls[call]/1000)
				if strings.Contains("futex nanosleep sched_yield madvise tgkill", call) {
					text = "(" + text + ")"
				}
				if calls[call] >= 10 && call != "total" {
					texts = append(texts, text)
				}
			}
			b.Logf("a %s of %s: %s", unit, name, strings.Join(texts, ", "))
		}
	}
	b.ReportMetric(0, "ns/op")
}

func countCalls(b *testing.B, client func(work, *testing.B, string) *process, w work) (
	calls map[string]float64) {
	s := server(b, true).start(b)
	p := client(w, b, s.listening(b))
	path := filepath.Join(b.TempDir(), "calls")
	p.enter(b, "strace", "-f", "-c", "-U", "calls,name", "-o", path)
	took(b, p)
	s.kill()
	text, err := os.ReadFile(path)
	must(b, err)
	calls = map[string]float64{}
	for line := range strings.Lines(string(text)) {
		var n float64
		var name string
		fmt.Sscan(line, &n, &name) // the headline has no number
		calls[name] = n
	}
	return calls
}
