package main

import (
	"bytes"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// ---- System calls ----

// BenchmarkCalls counts the system calls of one connection: those that 200 connections need beyond
// those of 100, so that what a process needs besides is no part of it.
func BenchmarkCalls(b *testing.B) {
	strace := benchFind("strace")
	if strace == "" {
		b.Skip("strace is not installed")
	}
	p := benchPrepare(b)
	fmt.Println("system calls of a connection")
	jobs := [][]string{{"echomux", p.echomux, "-q", "-n", "N", "HOST", "PORT", benchMessage}}
	if p.c != "" {
		jobs = append(jobs, []string{"correct", p.c, "PORT", "correct", "N"})
		jobs = append(jobs, []string{"bare", p.c, "PORT", "bare", "N"})
	}
	for _, job := range jobs {
		few := benchCalls(b, p, strace, 100, job[1:])
		many := benchCalls(b, p, strace, 200, job[1:])
		benchTellCalls(b, job[0], few, many)
	}
	benchEnd(b)
}

// benchCalls runs a command under strace and returns its calls by name. N in it stands for n.
func benchCalls(b *testing.B, p benchPrograms, strace string, n int, command []string) []benchCall {
	server := benchStart(b, p.server...)
	defer server.stop()
	report := filepath.Join(b.TempDir(), "calls")
	args := []string{"-f", "-c", "-S", "name", "-e", "trace=network,desc", "-o", report}
	for _, arg := range command {
		if arg == "N" {
			arg = strconv.Itoa(n)
		}
		args = append(args, arg)
	}
	benchRun(b, nil, server.client(strace, args...))
	text, err := os.ReadFile(report)
	if err != nil {
		b.Fatal(err)
	}
	return benchParseCalls(string(text))
}

// benchCall is how often a system call was made.
type benchCall struct {
	name  string
	count int
}

// benchParseCalls reads the table of strace -c: share, seconds, microseconds a call, calls, perhaps
// errors, and the name.
func benchParseCalls(table string) (calls []benchCall) {
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) < 5 || fields[len(fields)-1] == "total" {
			continue
		}
		if count, err := strconv.Atoi(fields[3]); err == nil {
			calls = append(calls, benchCall{fields[len(fields)-1], count})
		}
	}
	return calls
}

// benchTellCalls tells by how much 100 connections more have raised the counts.
func benchTellCalls(b *testing.B, name string, few, many []benchCall) {
	var sum float64
	var words []string
	for _, call := range many {
		more := call.count
		for _, before := range few {
			if before.name == call.name {
				more -= before.count
			}
		}
		if more == 0 {
			continue
		}
		each := float64(more) / 100
		sum += each
		words = append(words, fmt.Sprintf("%s %.3g", call.name, each))
	}
	fmt.Printf("    %-8s %5.2f: %s\n", name, sum, strings.Join(words, ", "))
	b.ReportMetric(sum, name+"-calls")
}

// ---- Memory ----

// BenchmarkMemory is the peak of resident memory: of one connection with 10 MB and with 1 GB from
// standard input, and what each further connection adds to it, in the client and in the server.
func BenchmarkMemory(b *testing.B) {
	p := benchPrepare(b)
	little := benchFile(benchZeros(b, 10_000_000))
	much := benchFile(benchZeros(b, 1_000_000_000))
	names := []string{"MB-for-10MB", "MB-for-1GB", "B/connection", "B/idle-served"}
	values := make([][]float64, len(names))
	benchTurns("peak of memory", 5, func(turn int) {
		few := p.peak(b, nil, "-q", "-n", "1000", "HOST", "PORT", benchMessage)
		many := p.peak(b, nil, "-q", "-n", "10000", "HOST", "PORT", benchMessage)
		found := []float64{
			p.peak(b, little, "-q", "HOST", "PORT") / 1e6,
			p.peak(b, much, "-q", "HOST", "PORT") / 1e6,
			(many - few) / 9000,
			p.idlePeak(b),
		}
		for i, value := range found {
			if turn >= 0 {
				values[i] = append(values[i], value)
			}
		}
	})
	for i, name := range names {
		low, median, high := benchQuartiles(values[i])
		fmt.Printf("    %-16s %7.4g  (%.4g to %.4g)\n", name, median, low, high)
		b.ReportMetric(median, name)
	}
	benchEnd(b)
}

// peak runs echomux to its end and returns the peak in bytes. The rusage of a child begins with the
// peak of the process that forked it, so the figure has to come from /proc.
func (p benchPrograms) peak(b *testing.B, feed benchFeed, args ...string) (most float64) {
	server := benchStart(b, p.server...)
	defer server.stop()
	cmd := server.client(p.echomux, args...)
	if feed != nil {
		defer feed(b, cmd)()
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- cmd.Wait() }()
	for {
		select {
		case err := <-done:
			if err != nil {
				b.Fatal(cmd.Args, err)
			}
			return most
		case <-time.After(100 * time.Microsecond):
			most = max(most, benchPeak(cmd.Process.Pid))
		}
	}
}

// idlePeak is what one of 9,000 idle connections adds to the peak of echomux -serve.
func (p benchPrograms) idlePeak(b *testing.B) float64 {
	server := benchStart(b, p.echomux, "-serve", "127.0.0.1", "0")
	defer server.stop()
	var few float64
	buf := make([]byte, len(benchMessage))
	for i := range 10_000 {
		c, err := net.Dial("tcp", net.JoinHostPort(server.host, server.port))
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, benchMessage)
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
		if i == 999 {
			few = benchPeak(server.cmd.Process.Pid)
		}
	}
	return (benchPeak(server.cmd.Process.Pid) - few) / 9000
}

// benchPeak is the most memory that a process has held, VmHWM of proc(5), 0 if it is gone.
func benchPeak(pid int) float64 {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	kB, _ := strconv.Atoi(strings.TrimSpace(strings.SplitN(rest, "kB", 2)[0]))
	return float64(kB) * 1024
}

// ---- The C programs ----

// TestBenchC: the C programs that the benchmarks measure by compile without a warning, echo, and
// see a byte that differs.
func TestBenchC(t *testing.T) {
	t.Parallel()
	if why := benchWithoutC(); why != "" {
		t.Skip(why)
	}
	dir := t.TempDir() + string(filepath.Separator)
	client := benchCompile(t, dir, "client")
	server := benchStart(t, benchCompile(t, dir, "server"))
	defer server.stop()
	input := make([]byte, 3_000_001)
	rand.New(rand.NewSource(1)).Read(input)
	for _, job := range []string{"bulk 3000001", "file", "ping 100", "bare 300", "correct 300"} {
		out, err := benchClient(client, server.port, input, job)
		if err != nil {
			t.Errorf("%s: %v", job, err)
		}
		if job == "file" && !bytes.Equal(out, input) {
			t.Errorf("%d bytes in, and other %d out", len(input), len(out))
		}
	}
	liar := benchLiar(t)
	for _, job := range []string{"bulk 3000001", "file", "ping 100", "bare 1", "correct 1"} {
		if _, err := benchClient(client, liar, input, job); err == nil {
			t.Errorf("%s: a byte was altered, and the exit status is 0", job)
		}
	}
}

// benchClient runs the C client.
func benchClient(path, port string, input []byte, job string) ([]byte, error) {
	cmd := exec.Command(path, append([]string{port}, strings.Fields(job)...)...)
	cmd.Stdin = bytes.NewReader(input)
	return cmd.Output()
}

// benchLiar is the port of an echo server that alters the last byte of what it has read at once.
func benchLiar(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 4096)
				for n, err := c.Read(buf); err == nil; n, err = c.Read(buf) {
					buf[n-1] ^= 1
					c.Write(buf[:n])
				}
			}()
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}
