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
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// The benchmarks compare whole processes: two ends in one process would share a heap, a scheduler
// and a limit of descriptors. What runs is this test binary once more, with ECHOMUX_BENCH naming a
// contender, which is echomux itself or another way to do the same job:
//
//	floor  a bare loop over the same calls that verifies nothing (bench_linux_test.go)
//	net    package net
//
// nc, ncat and socat run too where they are installed. Machines are noisy, so only ratios are
// reported: the contenders run in turn, A B C A B C, and a figure is the median of the turns'
// ratios, time of echomux/time of the other: below 1, echomux is faster. Every run has a server
// process of its own on a fresh port, since what one run leaves in TIME_WAIT slows the next down.

const message = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde" // 64 bytes with its newline

const (
	small = 10_000_000
	big   = 1_000_000_000
)

func BenchmarkBulk(b *testing.B) {
	once(b, func() {
		input := zeros(b, big)
		port := func(addr string) string { _, port, _ := net.SplitHostPort(addr); return port }
		compare(b, 7, append(clients(input, "bulk", 0),
			rival(input, "nc", func(addr string) []string { return []string{"-N", "127.0.0.1", port(addr)} }),
			rival(input, "ncat", func(addr string) []string { return []string{"127.0.0.1", port(addr)} }),
			rival(input, "socat", func(addr string) []string { return []string{"-t10", "-", "TCP:" + addr} })))
	})
}

func BenchmarkRounds(b *testing.B) {
	once(b, func() { compare(b, 11, clients("", "rounds", 50_000, "-count", "50000")) })
}

func BenchmarkConnections1000(b *testing.B) {
	once(b, func() { compare(b, 15, clients("", "connections", 1000, "-n", "1000")) })
}

func BenchmarkConnections10000(b *testing.B) {
	once(b, func() { compare(b, 9, clients("", "connections", 10_000, "-n", "10000")) })
}

// BenchmarkConnectionCost is a connection's cost among 10,000 to its cost among 1,000.
func BenchmarkConnectionCost(b *testing.B) {
	once(b, func() {
		many := clients("", "connections", 10_000, "-n", "10000")[0]
		few := clients("", "connections", 1000, "-n", "1000")[0]
		compare(b, 9, []contest{many, {"ten-times-1000", func(b *testing.B) (d time.Duration) {
			for range 10 {
				d += few.run(b)
			}
			return d
		}}})
	})
}

// BenchmarkStart is one small exchange from the start of the process to its end.
func BenchmarkStart(b *testing.B) {
	once(b, func() {
		input := zeros(b, len(message)+1)
		program := built(b)
		compare(b, 101, []contest{
			onClient(input, "echomux", func(addr string) *exec.Cmd {
				host, port, _ := net.SplitHostPort(addr)
				return exec.Command(program, "-q", host, port)
			}),
			rival(input, "nc", func(addr string) []string {
				host, port, _ := net.SplitHostPort(addr)
				return []string{"-N", host, port}
			}),
		})
	})
}

func BenchmarkServeBulk(b *testing.B) {
	once(b, func() { compare(b, 7, servers(zeros(b, big), "bulk", 0)) })
}

func BenchmarkServeRounds(b *testing.B) {
	once(b, func() { compare(b, 11, servers("", "rounds", 50_000)) })
}

// BenchmarkLoop is one round of both ends in one loop: what is left of it is allocated.
func BenchmarkLoop(b *testing.B) {
	b.ReportAllocs()
	rounds(b, int64(b.N))
}

// TestRoundsAllocateNothing compares a short run and a longer one: their difference is the steady
// state, of the client and of the server.
func TestRoundsAllocateNothing(t *testing.T) {
	short := testing.AllocsPerRun(3, func() { rounds(t, 10) })
	long := testing.AllocsPerRun(3, func() { rounds(t, 1010) })
	if long-short >= 20 { // the runtime's own
		t.Errorf("1000 further rounds allocate %v times", long-short)
	}
}

// rounds runs the demo, both ends in one loop, for n rounds.
func rounds(t testing.TB, n int64) {
	if status := run([]string{"-q", "-count", strconv.FormatInt(n, 10)}, nil, io.Discard, io.Discard); status != exitOK {
		t.Fatalf("exit status %d", status)
	}
}

// ---- The contests ----

// contest is one contender at one job.
type contest struct {
	name string
	run  func(b *testing.B) time.Duration // 0: not installed
}

// clients are echomux and its rivals in this binary at one of the clients' jobs.
func clients(input, job string, n int, flags ...string) []contest {
	cs := []contest{onClient(input, "echomux", func(addr string) *exec.Cmd {
		host, port, _ := net.SplitHostPort(addr)
		args := append(append([]string{"-q"}, flags...), host, port)
		if input == "" {
			args = append(args, message)
		}
		return itself("echomux", args...)
	})}
	for _, name := range []string{"floor", "net"} {
		if contenders[name+"-"+job] != nil {
			cs = append(cs, onClient(input, name, func(addr string) *exec.Cmd {
				return itself(name+"-"+job, addr, strconv.Itoa(n))
			}))
		}
	}
	return cs
}

// rival is a command that need not be installed.
func rival(input, name string, args func(addr string) []string) contest {
	path, err := exec.LookPath(name)
	if err != nil {
		return contest{name: name}
	}
	return onClient(input, name, func(addr string) *exec.Cmd { return exec.Command(path, args(addr)...) })
}

// onClient measures a client; the server is the leanest there is.
func onClient(input, name string, command func(addr string) *exec.Cmd) contest {
	return contest{name, func(b *testing.B) time.Duration {
		addr, stop := startBenchServer(b, either("floor-serve", "net-serve-copy"))
		defer stop()
		return timed(b, input, command(addr))
	}}
}

// servers are echomux -serve and its rivals; the client is the leanest there is.
func servers(input, job string, n int) (cs []contest) {
	for _, name := range []string{"echomux", "floor", "net", "net-copy"} {
		serve := strings.Replace(name, "net-copy", "net", 1) + "-serve" + map[bool]string{true: "-copy"}[name == "net-copy"]
		if name != "echomux" && contenders[serve] == nil {
			continue
		}
		cs = append(cs, contest{name, func(b *testing.B) time.Duration {
			addr, stop := startBenchServer(b, serve)
			defer stop()
			return timed(b, input, itself(either("floor-"+job, "net-"+job), addr, strconv.Itoa(n)))
		}})
	}
	return cs
}

// once keeps the benchmark function from being called again with a larger b.N: each contest has
// its number of turns.
func once(b *testing.B, f func()) {
	if _, again := finished.LoadOrStore(b.Name(), b.N); !again || b.N == 1 {
		f()
	}
}

var finished sync.Map

// compare lets the contenders run in turn and reports the first one's ratio to each of the others.
func compare(b *testing.B, turns int, cs []contest) {
	cs = slices.DeleteFunc(cs, func(c contest) bool { return c.run == nil })
	times := make([][]time.Duration, len(cs))
	for turn := range turns + 1 {
		for i, c := range cs {
			if d := c.run(b); turn > 0 { // the first turn warms up
				times[i] = append(times[i], d)
			}
		}
	}
	b.ReportMetric(0, "ns/op") // not a figure to compare with anybody's
	for i, c := range cs[1:] {
		ratios := make([]float64, turns)
		for turn := range turns {
			ratios[turn] = float64(times[0][turn]) / float64(times[i+1][turn])
		}
		b.ReportMetric(median(ratios), cs[0].name+"/"+c.name)
	}
	if os.Getenv("ECHOMUX_BENCH_TIMES") != "" {
		for i, c := range cs {
			slices.Sort(times[i])
			b.Logf("%-14s %v", c.name, times[i])
		}
	}
}

func median(v []float64) float64 {
	slices.Sort(v)
	return (v[len(v)/2] + v[(len(v)-1)/2]) / 2
}

// timed runs a command to its end, with the file input as its standard input.
func timed(b *testing.B, input string, cmd *exec.Cmd) time.Duration {
	if input != "" {
		f, err := os.Open(input)
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		cmd.Stdin = f
	}
	start := time.Now()
	if err := cmd.Run(); err != nil {
		b.Fatalf("%v: %v", cmd.Args, err)
	}
	return time.Since(start)
}

// startBenchServer starts a contender that serves. Stop ends it.
func startBenchServer(b testing.TB, name string) (addr string, stop func()) {
	addr, p := serverProcess(b, name)
	return addr, func() { p.Kill(); p.Wait() }
}

func serverProcess(b testing.TB, name string) (addr string, p *os.Process) {
	cmd := itself(name)
	var out *bufio.Reader
	if name == "echomux-serve" { // takes no port 0, and -v says where it listens
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		host, port, _ := net.SplitHostPort(l.Addr().String())
		l.Close()
		addr, cmd = net.JoinHostPort(host, port), itself("echomux", "-serve", "-q", host, port)
	} else {
		pipe, err := cmd.StdoutPipe()
		if err != nil {
			b.Fatal(err)
		}
		out = bufio.NewReader(pipe)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	if out != nil {
		line, err := out.ReadString('\n')
		if err != nil {
			b.Fatalf("%s: %v", name, err)
		}
		return strings.TrimSpace(line), cmd.Process
	}
	for range 5000 {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return addr, cmd.Process
		}
		time.Sleep(time.Millisecond)
	}
	b.Fatalf("%s does not listen", name)
	return
}

// either is the first of the names that is a contender on this platform.
func either(names ...string) string {
	for _, name := range names {
		if contenders[name] != nil {
			return name
		}
	}
	return ""
}

// itself is this binary as a contender.
func itself(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "ECHOMUX_BENCH="+name)
	cmd.Stderr = os.Stderr
	return cmd
}

// built is the path of echomux as it is shipped, which is smaller than this binary and starts faster.
func built(b testing.TB) string {
	path := filepath.Join(b.TempDir(), "echomux")
	build := exec.Command("go", "build", "-o", path, ".")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	return path
}

// zeros is the path of a file of n bytes that takes no room.
func zeros(b testing.TB, n int) string {
	path := filepath.Join(b.TempDir(), "zeros")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, int64(n))); err != nil {
		b.Fatal(err)
	}
	return path
}

// ---- The contenders ----

// contenders are what this binary can be.
var contenders = map[string]func(addr string, n int){
	"net-bulk":        netBulk,
	"net-rounds":      netRounds,
	"net-connections": netConnections,
	"net-serve":       func(string, int) { netServe(func(c *net.TCPConn) { io.Copy(c, c) }) },
	"net-serve-copy":  func(string, int) { netServe(copyEcho) },
}

// contender adds one. A platform's file calls it in a variable's initialiser, before any init.
func contender(name string, f func(addr string, n int)) bool {
	contenders[name] = f
	return true
}

func init() {
	var addr string
	var n int
	name := os.Getenv("ECHOMUX_BENCH")
	switch f := contenders[name]; {
	case name == "":
		return
	case name == "echomux":
		main()
	case f == nil:
		check(fmt.Errorf("no contender %q", name))
	default:
		if len(os.Args) == 3 {
			addr = os.Args[1]
			n, _ = strconv.Atoi(os.Args[2])
		}
		f(addr, n)
	}
	os.Exit(0)
}

// check ends a contender that cannot do its job.
func check(err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Getenv("ECHOMUX_BENCH"), err)
		os.Exit(1)
	}
}

// netBulk copies standard input to the server and what comes back to standard output. The structs
// hide what would let the kernel copy for it: a client that verifies has to see the bytes.
func netBulk(addr string, _ int) {
	c, err := net.Dial("tcp", addr)
	check(err)
	go func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{os.Stdin}, make([]byte, chunkSize))
		check(err)
		c.(*net.TCPConn).CloseWrite()
	}()
	_, err = io.CopyBuffer(struct{ io.Writer }{os.Stdout}, struct{ io.Reader }{c}, make([]byte, chunkSize))
	check(err)
}

func netRounds(addr string, n int) {
	c, err := net.Dial("tcp", addr)
	check(err)
	buf := []byte(message + "\n")
	for range n {
		_, err = c.Write(buf)
		check(err)
		_, err = io.ReadFull(c, buf)
		check(err)
	}
}

func netConnections(addr string, n int) {
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			c, err := net.Dial("tcp", addr)
			check(err)
			buf := []byte(message + "\n")
			_, err = c.Write(buf)
			check(err)
			_, err = io.ReadFull(c, buf)
			check(err)
			c.(*net.TCPConn).CloseWrite()
			if n, err := c.Read(buf); err != io.EOF {
				check(fmt.Errorf("%d bytes and %v in the end", n, err))
			}
			c.Close()
		})
	}
	all.Wait()
}

func netServe(echo func(*net.TCPConn)) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	fmt.Println(l.Addr())
	for {
		c, err := l.Accept()
		check(err)
		go func() {
			echo(c.(*net.TCPConn))
			c.Close()
		}()
	}
}

// copyEcho reads and writes; on Linux io.Copy is splice(2).
func copyEcho(c *net.TCPConn) {
	buf := make([]byte, chunkSize)
	for {
		n, err := c.Read(buf)
		if err == nil {
			_, err = c.Write(buf[:n])
		}
		if err != nil {
			return
		}
	}
}
