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
// and a limit of descriptors. What runs is this test binary once more, as echomux or in a role that
// does the same job in another way:
//
//	floor  a bare loop over the same calls that verifies nothing (bench_linux_test.go)
//	net    package net
//
// nc, ncat and socat run too where they are installed. Machines are noisy, so only ratios are
// reported: the contenders run in turn, A B C A B C, and a figure is the median of the turns'
// ratios, time of echomux/time of the other: below 1, echomux is faster. Every run has a server
// process of its own on a fresh port, since what one run leaves in TIME_WAIT slows the next down.

const (
	message  = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde" // 64 bytes with its newline
	gigabyte = 1_000_000_000
)

// BenchmarkBulk is 1 GB from standard input, there and back.
func BenchmarkBulk(b *testing.B) {
	input := zeros(b, gigabyte)
	compare(b, 7, append(clients(input, "bulk", 0),
		rival(input, "nc", "-N", "HOST", "PORT"),
		rival(input, "ncat", "HOST", "PORT"),
		rival(input, "socat", "-t10", "-", "TCP:HOST:PORT")))
}

// BenchmarkRounds is a message of 64 bytes there and back, again and again on one connection.
func BenchmarkRounds(b *testing.B) { compare(b, 11, clients("", "rounds", 30_000, "-count", "30000")) }

// BenchmarkConnections is that message once on each of many connections at once. Last comes what a
// connection costs among 10,000 to what it costs among 1,000, the process's start and end left out.
func BenchmarkConnections(b *testing.B) {
	few, many := clients("", "connections", 1000, "-n", "1000"), clients("", "connections", 10_000, "-n", "10000")
	b.Run("1000", func(b *testing.B) { compare(b, 15, few) })
	b.Run("10000", func(b *testing.B) { compare(b, 9, many) })
	b.Run("cost", func(b *testing.B) {
		one := clients("", "connections", 1)[0]
		compare(b, 9, []contest{
			{"10000", func(b *testing.B) time.Duration { return many[0].run(b) - one.run(b) }},
			{"10*1000", func(b *testing.B) (sum time.Duration) {
				for range 10 {
					sum += few[0].run(b) - one.run(b)
				}
				return sum
			}},
		})
	})
}

// BenchmarkStart is one small exchange from the start of the process to its end.
func BenchmarkStart(b *testing.B) {
	input, program := zeros(b, len(message)+1), built(b)
	compare(b, 201, []contest{
		onClient(input, "echomux", func(host, port string) *exec.Cmd { return exec.Command(program, "-q", host, port) }),
		rival(input, "nc", "-N", "HOST", "PORT"),
	})
}

// BenchmarkServeBulk and BenchmarkServeRounds compare servers, with the leanest client.
func BenchmarkServeBulk(b *testing.B)   { compare(b, 7, servers(zeros(b, gigabyte), "bulk", 0)) }
func BenchmarkServeRounds(b *testing.B) { compare(b, 11, servers("", "rounds", 30_000)) }

// BenchmarkLoop is one round with both ends in one loop. It is there for its allocations: none.
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

// TestRoundsCallNothingElse counts at the seam: a round is one write, one wait and one read, and its
// interest never changes.
func TestRoundsCallNothingElse(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", echoes)
	calls := func(n string) map[string]int {
		o, err := parse([]string{"-q", "-count", n, "127.0.0.1", port, message})
		if err != nil {
			t.Fatal(err)
		}
		p, err := newPoller()
		if err != nil {
			t.Fatal(err)
		}
		calls, start := map[string]int{}, time.Now()
		l := newLoop(o, countingPoller{p, calls}, countingSockets{system{}, calls}, func() time.Duration { return time.Since(start) })
		l.stdout, l.stderr = io.Discard, io.Discard
		l.run()
		l.close()
		if status := l.report(); status != exitOK {
			t.Fatalf("exit status %d", status)
		}
		return calls
	}
	few, many := calls("100"), calls("1100")
	for call, most := range map[string]int{"write": 1000, "read": 1000, "wait": 1020, "change": 0} { // a signal of the runtime's ends a wait
		if got := many[call] - few[call]; got > most {
			t.Errorf("%d calls of %s in 1000 further rounds, want at most %d", got, call, most)
		}
	}
}

type countingPoller struct {
	poller
	calls map[string]int
}

func (p countingPoller) add(s socket, want readiness) error {
	p.calls["change"]++
	return p.poller.add(s, want)
}

func (p countingPoller) modify(s socket, want readiness) error {
	p.calls["change"]++
	return p.poller.modify(s, want)
}

func (p countingPoller) wait(events []event, ms int) (int, error) {
	p.calls["wait"]++
	return p.poller.wait(events, ms)
}

type countingSockets struct {
	sockets
	calls map[string]int
}

func (k countingSockets) read(s socket, p []byte) (int, error) {
	k.calls["read"]++
	return k.sockets.read(s, p)
}

func (k countingSockets) write(s socket, p []byte) (int, error) {
	k.calls["write"]++
	return k.sockets.write(s, p)
}

// ---- The contests ----

// contest is one contender at one job.
type contest struct {
	name string
	run  func(b *testing.B) time.Duration // nil: it is not installed
}

// clients are echomux and the roles that do the same job of a client's. Its input is a file, or else
// the message n times.
func clients(input, job string, n int, flags ...string) []contest {
	cs := []contest{onClient(input, "echomux", func(host, port string) *exec.Cmd {
		args := append(append([]string{"-q"}, flags...), host, port)
		if input == "" {
			args = append(args, message)
		}
		return itself("1", args...)
	})}
	for _, name := range []string{"floor", "net"} {
		if roles[name+"-"+job] != nil {
			cs = append(cs, onClient(input, name, func(host, port string) *exec.Cmd {
				return itself(name+"-"+job, net.JoinHostPort(host, port), strconv.Itoa(n))
			}))
		}
	}
	return cs
}

// rival is a command; HOST and PORT in args stand for the server's.
func rival(input, name string, args ...string) contest {
	path, err := exec.LookPath(name)
	if err != nil {
		return contest{name: name}
	}
	return onClient(input, name, func(host, port string) *exec.Cmd {
		cmd := exec.Command(path)
		for _, arg := range args {
			cmd.Args = append(cmd.Args, strings.NewReplacer("HOST", host, "PORT", port).Replace(arg))
		}
		return cmd
	})
}

// onClient measures a client, with the leanest server.
func onClient(input, name string, command func(host, port string) *exec.Cmd) contest {
	return contest{name, func(b *testing.B) time.Duration {
		addr, server := startBenchServer(b, either("floor-serve", "net-copy-serve"))
		defer stop(server)
		host, port, _ := net.SplitHostPort(addr)
		return timed(b, input, command(host, port))
	}}
}

// servers are echomux -serve and the roles that do the same.
func servers(input, job string, n int) (cs []contest) {
	for _, name := range []string{"echomux", "floor", "net", "net-copy"} {
		if name == "echomux" || roles[name+"-serve"] != nil {
			cs = append(cs, contest{name, func(b *testing.B) time.Duration {
				addr, server := startBenchServer(b, name+"-serve")
				defer stop(server)
				return timed(b, input, itself(either("floor-"+job, "net-"+job), addr, strconv.Itoa(n)))
			}})
		}
	}
	return cs
}

// compare lets the contenders run in turn and reports the first one's ratio to each of the others.
// The turns take longer than -benchtime's second, so b.N stays 1.
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
	if testing.Verbose() {
		for i, c := range cs {
			slices.Sort(times[i])
			b.Logf("%s: %v to %v, median %v", c.name, times[i][0], times[i][turns-1], times[i][turns/2])
		}
	}
}

func median(v []float64) float64 {
	slices.Sort(v)
	return (v[len(v)/2] + v[(len(v)-1)/2]) / 2
}

// feed opens the file input, if one is named, as cmd's standard input. Stop closes it.
func feed(b testing.TB, cmd *exec.Cmd, input string) (stop func()) {
	if input == "" {
		return func() {}
	}
	f, err := os.Open(input)
	if err != nil {
		b.Fatal(err)
	}
	cmd.Stdin = f
	return func() { f.Close() }
}

// timed runs a command to its end, with the file input as its standard input.
func timed(b *testing.B, input string, cmd *exec.Cmd) time.Duration {
	defer feed(b, cmd, input)()
	start := time.Now()
	if err := cmd.Run(); err != nil {
		b.Fatalf("%v: %v", cmd.Args, err)
	}
	return time.Since(start)
}

// startBenchServer starts a server on a fresh port.
func startBenchServer(b testing.TB, name string) (addr string, server *os.Process) {
	if name == "echomux-serve" {
		port := port0(b)
		addr = "127.0.0.1:" + port
		cmd := itself("1", "-serve", "-q", "127.0.0.1", port)
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		eventually(b, func() bool {
			c, err := net.Dial("tcp", addr)
			if err == nil {
				c.Close()
			}
			return err == nil
		}, func() string { return "echomux -serve does not listen" })
		return addr, cmd.Process
	}
	cmd := itself(name)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		b.Fatal(err)
	}
	addr, err = bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatalf("%s: %v", name, err)
	}
	return strings.TrimSpace(addr), cmd.Process
}

func stop(server *os.Process) {
	server.Kill()
	server.Wait()
}

// either is the first of the names that is a role on this platform.
func either(names ...string) string {
	for _, name := range names {
		if roles[name] != nil {
			return name
		}
	}
	return ""
}

// itself is this binary in a role.
func itself(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "ECHOMUX_RUN="+name)
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

// ---- The roles ----

var (
	_ = role("net-bulk", netBulk)
	_ = role("net-rounds", netRounds)
	_ = role("net-connections", netConnections)
	_ = role("net-serve", func(string, int) { netServe(func(c *net.TCPConn) { io.Copy(c, c) }) })
	_ = role("net-copy-serve", func(string, int) { netServe(copyEcho) })
)

// role adds one to what this binary can be: f, with what is on the command line.
func role(name string, f func(addr string, n int)) bool {
	roles[name] = func() {
		var addr string
		var n int
		if len(os.Args) == 3 {
			addr = os.Args[1]
			n, _ = strconv.Atoi(os.Args[2])
		}
		f(addr, n)
		os.Exit(0)
	}
	return true
}

// check ends a role that cannot do its job.
func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
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
