package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What a run comes to does not depend on chance: each of these does its run several times, with a
// process and a peer that are real, and wants the same each time.

var repeat = flag.Int("repeat", 3, "how often a test that has to come to the same does its run")

// again does a run as often as -repeat says.
func again(t *testing.T, once func(t *testing.T)) {
	t.Helper()
	for i := range *repeat {
		ok := t.Run(strconv.Itoa(i+1), once)
		if !ok {
			return
		}
	}
}

// overloaded: do processes wait so long for a processor that nothing can be said of time?
func overloaded() bool {
	text, _ := os.ReadFile("/proc/loadavg")
	waiting, _, _ := strings.Cut(string(text), " ")
	load, _ := strconv.ParseFloat(waiting, 64)
	return load > 4*float64(runtime.NumCPU())
}

// wantWithin checks an upper limit of time, where the machine leaves time to anybody.
func wantWithin(t testing.TB, what string, took, most time.Duration) {
	t.Helper()
	switch {
	case took <= most:
	case overloaded():
		t.Logf("%s: %v, but the machine is overloaded", what, took)
	default:
		t.Errorf("%s: %v, more than %v", what, took, most)
	}
}

// feed gives p a pipe as standard input, which has data after a moment and then its end.
func (p *process) feed(t testing.TB, after time.Duration, data []byte) {
	t.Helper()
	stdin, err := p.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		time.Sleep(after)
		stdin.Write(data)
		stdin.Close()
	}()
}

// zeros is a file of that many bytes, which takes no room.
func zeros(t testing.TB, size int64) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "zeros")
	if err == nil {
		err = f.Truncate(size)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// TestVerdictReceiver: a receiver that has nothing to say half-closes at once, and still wants all
// that is sent.
func TestVerdictReceiver(t *testing.T) {
	t.Parallel()
	faultRig(t)
	data := noise(100_000)
	again(t, func(t *testing.T) {
		received := make(chan []byte, 1)
		_, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
			c.CloseWrite()
			all, _ := io.ReadAll(c)
			received <- all
		})
		p := command(t, "1", nil, "-until", "eof", "127.0.0.1", port)
		p.feed(t, 50*time.Millisecond, data)
		r := p.start(t).end(t)
		r.wantLine(t, 0, "ok", "sent=100000 returned=0 connect_ms exchange_ms mbit_s ...", "")
		if !bytes.Equal(<-received, data) {
			t.Error("it has received other bytes")
		}
	})
}

// TestVerdictNcat is the same with ncat as the receiver.
func TestVerdictNcat(t *testing.T) {
	t.Parallel()
	faultRig(t)
	ncat, err := exec.LookPath("ncat")
	if err != nil {
		t.Skip(err)
	}
	data := noise(100_000)
	again(t, func(t *testing.T) {
		received, port := ncatReceives(t, ncat)
		p := command(t, "1", nil, "-until", "eof", "127.0.0.1", port)
		p.feed(t, 50*time.Millisecond, data)
		p.start(t).end(t).wantLine(t, 0, "ok", "sent=100000 returned=0 ...", "")
		eventually(t, func() bool { return received.String() == string(data) }, func() string {
			return fmt.Sprintf("it has received %d bytes", len(received.String()))
		})
	})
}

// ncatReceives starts ncat as a receiver, and returns when it listens.
func ncatReceives(t *testing.T, ncat string) (received *output, port string) {
	t.Helper()
	port = port0(t)
	receiver := exec.Command(ncat, "-l", "127.0.0.1", port, "--recv-only")
	dieWithParent(receiver)
	received, errs := new(output), new(output)
	receiver.Stdout = received
	receiver.Stderr = errs
	err := receiver.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		receiver.Process.Kill()
		receiver.Wait()
	})
	awaitSocket(t, port, errs)
	return received, port
}

// awaitSocket waits until somebody listens at that port of 127.0.0.1, and does not connect to it.
func awaitSocket(t testing.TB, port string, errs *output) {
	t.Helper()
	n, _ := strconv.Atoi(port)
	entry := fmt.Sprintf(" 0100007F:%04X 00000000:0000 0A ", n) // proc_net_tcp: 0A is LISTEN
	eventually(t, func() bool {
		if strings.Contains(errs.String(), "in use") {
			t.Skip(errs) // by somebody who is no test of ours
		}
		sockets, _ := os.ReadFile("/proc/net/tcp")
		return strings.Contains(string(sockets), entry)
	}, func() string { return "nobody listens: " + errs.String() })
}

// TestVerdictOneRead: a server that takes one read and closes has not taken 100 MB.
func TestVerdictOneRead(t *testing.T) {
	t.Parallel()
	faultRig(t)
	const size = 100_000_000
	for _, until := range []string{"eof", "echo"} {
		for _, kind := range []string{"file", "pipe"} {
			t.Run(until+" "+kind, func(t *testing.T) {
				t.Parallel()
				again(t, func(t *testing.T) {
					_, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
						c.Read(make([]byte, 64<<10))
					})
					p := command(t, "1", nil, "-until", until, "127.0.0.1", port)
					if kind == "file" {
						p.Stdin = zeros(t, size)
					} else {
						p.Stdin = io.LimitReader(zeroReader{}, size)
					}
					r := p.start(t).end(t)
					r.wantLine(t, 1, "failed", oneKeys, "*")
					if r.line(t).values["sent"] == strconv.Itoa(size) {
						t.Error("all was sent, and the server takes one read")
					}
				})
			})
		}
	}
}

// zeroReader is /dev/zero.
type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestVerdictSlowLink: a link of 1 Mbit/s, with more in the kernel's buffer than it carries in the
// I/O timeout, is no silence as long as the peer acknowledges.
func TestVerdictSlowLink(t *testing.T) {
	if !faultSpace(t) {
		return
	}
	far := newFarNetwork(t)
	faultTool(t, "", "tc", "qdisc", "add", "dev", "near", "root", "tbf",
		"rate", "1mbit", "burst", "5kb", "latency", "20s")
	const size = 500_000
	counts := make(chan int64, 1)
	port := far.serve(t, func(c *net.TCPConn) {
		n, _ := io.Copy(io.Discard, c)
		counts <- n
	})
	again(t, func(t *testing.T) {
		p := command(t, "1", nil, "-until", "eof", "-io-timeout", "1s", "192.0.2.2", port)
		p.Stdin = zeros(t, size)
		start := time.Now()
		r := p.start(t).end(t)
		took := time.Since(start)
		r.wantLine(t, 0, "ok", "sent=500000 returned=0 connect_ms exchange_ms mbit_s ...", "")
		n := <-counts
		if n != size {
			t.Errorf("%d bytes received", n)
		}
		if took < 3*time.Second {
			t.Skipf("it took %v: the link is not slow", took)
		}
	})
}

// TestVerdictInputEnd: an echo that is whole is a success, whether standard input's end or the
// peer's comes first. The peer goes as soon as it has echoed one read.
func TestVerdictInputEnd(t *testing.T) {
	t.Parallel()
	faultRig(t)
	for name, leave := range map[string]func(*net.TCPConn){
		"closes": func(c *net.TCPConn) { c.Close() },
		"resets": resets,
	} {
		_, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
			buf := make([]byte, 100)
			n, _ := c.Read(buf)
			c.Write(buf[:n])
			leave(c)
		})
		run := func(t *testing.T, flags ...string) *process {
			return command(t, "1", nil, append(flags, "127.0.0.1", port)...)
		}
		for _, late := range []time.Duration{0, 50 * time.Millisecond} {
			t.Run(fmt.Sprint(name, ", input ends after ", late), func(t *testing.T) {
				t.Parallel()
				again(t, func(t *testing.T) { inputEnds(t, run(t), late) })
			})
		}
		t.Run(name+", input goes on", func(t *testing.T) {
			t.Parallel()
			again(t, func(t *testing.T) { inputGoesOn(t, run(t), "more") })
		})
		t.Run(name+", input is silent", func(t *testing.T) {
			t.Parallel()
			again(t, func(t *testing.T) { inputGoesOn(t, run(t, "-io-timeout", "2s"), "") })
		})
	}
}

// inputEnds: the peer of p has gone, or is about to, when its input ends.
func inputEnds(t *testing.T, p *process, late time.Duration) {
	if late == 0 {
		p.feed(t, 0, []byte("hello"))
	} else {
		stdin := p.typed(t)
		io.WriteString(stdin, "hello")
		time.AfterFunc(late, func() { stdin.Close() })
	}
	r := p.start(t).end(t)
	r.wantLine(t, 0, "ok", "sent=5 returned=5 connect_ms exchange_ms mbit_s peer", "")
	r.wantStdout(t, "hello")
}

// inputGoesOn: the peer of p has gone, and its input is not at its end.
func inputGoesOn(t *testing.T, p *process, more string) {
	stdin := p.typed(t)
	io.WriteString(stdin, "hello")
	p.start(t)
	eventually(t, func() bool { return p.stdout.String() == "hello" || p.isOver() }, func() string {
		return "the first part does not come back"
	})
	io.WriteString(stdin, more)
	r := p.end(t)
	r.wantLine(t, 1, "failed", "sent returned=5 ...", "*")
	line := r.line(t)
	cause := line.cause
	silent := like(cause, "*of silence, before standard input ended")
	early := like(cause, "closed early (5 of 9 bytes)") || like(cause, "*reset by peer")
	if more == "" && !silent || more != "" && !early {
		t.Errorf("the cause is %q", cause)
	}
}

// TestVerdictConnect: -until connect has its connection, whatever the server does with it.
func TestVerdictConnect(t *testing.T) {
	t.Parallel()
	faultRig(t)
	_, port := serve(t, "127.0.0.1:0", resets)
	again(t, func(t *testing.T) {
		r := command(t, "1", nil, "-until", "connect", "127.0.0.1", port).start(t).end(t)
		r.wantLine(t, 0, "ok", "sent=0 returned=0 connect_ms peer", "")
		r = command(t, "1", nil, "-until", "connect", "-n", "50", "127.0.0.1", port).start(t).end(t)
		r.wantLine(t, 0, "ok", "connections=50 ok=50 failures=0 unfinished=0 sent=0 returned=0 "+
			"connect_ms", "")
	})
}

// TestVerdictNothing: without anything to send nothing is proved. A client that is started without
// a standard input is a frequent mistake (cron, ssh -n).
func TestVerdictNothing(t *testing.T) {
	t.Parallel()
	faultRig(t)
	_, port := serve(t, "127.0.0.1:0", echoes)
	for _, flags := range []string{"", "-n 2", "-count 2", "-count 0 -every 1ms"} {
		for _, kind := range []string{"/dev/null", "empty file", "empty pipe"} {
			t.Run(flags+" "+kind, func(t *testing.T) {
				t.Parallel()
				again(t, func(t *testing.T) {
					args := append(strings.Fields(flags), "127.0.0.1", port)
					p := command(t, "1", nil, args...) // os/exec makes it /dev/null
					switch kind {
					case "empty file":
						p.Stdin = zeros(t, 0)
					case "empty pipe":
						p.feed(t, 0, nil)
					}
					r := p.start(t).end(t)
					if r.status != 6 || !strings.Contains(r.stderr, "nothing to send: ") {
						t.Errorf("status %d: %s", r.status, tail(r.stderr))
					}
				})
			})
		}
	}
}

// TestVerdictTyped: a path that is cut while somebody types is noticed in the time that was asked
// for, though the kernel's buffer takes every line.
func TestVerdictTyped(t *testing.T) {
	if !faultSpace(t) {
		return
	}
	came := make(chan bool, 1000)
	_, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		buf := make([]byte, 100)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			came <- true
			c.Write(buf[:n])
		}
	})
	for _, until := range []string{"echo", "eof"} {
		t.Run(until, func(t *testing.T) {
			again(t, func(t *testing.T) { typeIntoCut(t, until, port, came) })
		})
	}
}

func typeIntoCut(t *testing.T, until, port string, came chan bool) {
	p := command(t, "1", nil, "-until", until, "-io-timeout", "1s", "127.0.0.1", port)
	stdin := p.typed(t)
	p.start(t)
	io.WriteString(stdin, "first\n")
	<-came
	eventually(t, func() bool { return p.stdout.String() == "first\n" }, func() string {
		return "the first line does not come back"
	})
	restore := cutOff(t, "tcp dport "+port)
	defer restore()
	start := time.Now()
	go func() {
		for {
			_, err := io.WriteString(stdin, "line\n")
			if err != nil {
				return
			}
			time.Sleep(500 * time.Millisecond)
		}
	}()
	r := p.end(t)
	took := time.Since(start)
	r.wantLine(t, 5, "failed", "sent returned=6 ...", "timed out after 1s of silence (*")
	if took < time.Second {
		t.Errorf("it took %v", took)
	}
	wantWithin(t, "silence of 1s was noticed", took, 10*time.Second)
}

// fullPipe is a pipe that takes no byte more until somebody reads.
func fullPipe(t testing.TB) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close()
		w.Close()
	})
	size, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096)
	if err == nil {
		_, err = w.Write(make([]byte, size))
	}
	if err != nil {
		t.Fatal(err)
	}
	return r, w
}

// readSlowly reads a pipe's worth now and then.
func readSlowly(r io.Reader, nap time.Duration) {
	buf := make([]byte, 4096)
	for {
		time.Sleep(nap)
		_, err := io.ReadFull(r, buf)
		if err != nil {
			return
		}
	}
}

// TestVerdictSlowOutput: no figure holds the time that our own standard output takes.
func TestVerdictSlowOutput(t *testing.T) {
	t.Parallel()
	faultRig(t)
	const nap, most = time.Second, 600 * time.Millisecond
	for _, key := range []string{"rtt_ms", "exchange_ms"} {
		t.Run(key, func(t *testing.T) {
			t.Parallel()
			again(t, func(t *testing.T) {
				_, port := serve(t, "127.0.0.1:0", echoes)
				args := []string{"127.0.0.1", port, "hello"}
				if key == "rtt_ms" {
					// Each round fills what the reader has taken.
					args = []string{"-count", "2", "127.0.0.1", port, strings.Repeat("m", 4095)}
				}
				p := command(t, "1", nil, args...)
				r, w := fullPipe(t)
				p.Stdout = w
				p.start(t)
				w.Close()
				go readSlowly(r, nap)
				start := time.Now()
				result := p.end(t)
				result.wantLine(t, 0, "ok", "...", "")
				line := result.line(t)
				times := line.times(key)
				if len(times) == 0 || time.Since(start) < nap {
					t.Fatalf("a reader that naps for %v: %s", nap, line.text)
				}
				wantWithin(t, line.text, times[len(times)-1], most)
			})
		})
	}
}

// manyDescriptors skips where fewer than n can be open at once.
func manyDescriptors(t testing.TB, n uint64) {
	t.Helper()
	var limit unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	if err != nil || limit.Max < n {
		t.Skipf("%d descriptors are too few: %v", limit.Max, err)
	}
}

// TestVerdictMany: no connection's time holds that of starting the others.
func TestVerdictMany(t *testing.T) {
	t.Parallel()
	faultRig(t)
	manyDescriptors(t, 5500)
	again(t, func(t *testing.T) {
		_, port := startServer(t)
		r := command(t, "1", nil, "-n", "5000", "127.0.0.1", port, "hello").start(t).end(t)
		r.wantLine(t, 0, "ok", "connections=5000 ok=5000 failures=0 unfinished=0 sent=30000 "+
			"returned=30000 connect_ms exchange_ms", "")
		line := r.line(t)
		times := line.times("connect_ms")
		if len(times) != 4 || times[1] > 100*time.Millisecond {
			t.Errorf("connecting on loopback takes no time: %s", line.text)
		}
		t.Log(line.text)
	})
}

// TestVerdictManySignal: a signal is heard while thousands of connections are begun.
func TestVerdictManySignal(t *testing.T) {
	t.Parallel()
	faultRig(t)
	needSignals(t)
	manyDescriptors(t, 5500)
	at := fullBacklog(t, "127.0.0.1", 0)
	var cut interruptions
	again(t, func(t *testing.T) {
		args := []string{"-n", "5000", "-connect-timeout", "1h", "127.0.0.1", portOf(at), "x"}
		p := command(t, "1", nil, args...).start(t)
		begun := 0
		eventually(t, func() bool {
			begun = heldBy(t, p).fds
			return begun > 100
		}, func() string { return "they are not begun" })
		cut.want(t, p, syscall.SIGINT, 130,
			"connections=5000 ok=0 failures=0 unfinished=5000 sent=0 returned=0")
		t.Logf("%d descriptors were open", begun)
	})
	cut.wantLines(t)
}

// TestVerdictFirstWrite: where the first write has failed, what came back is no surplus. strace has
// the process stand still until the peer has sent three bytes and reset: before it is known that
// connect has succeeded, and before the first write.
func TestVerdictFirstWrite(t *testing.T) {
	t.Parallel()
	faultRig(t)
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip(err)
	}
	for call, cause := range map[string]string{
		"connect":     "connect: connection reset by peer",
		"getsockname": "*: connection reset by peer", // of the write, if the peer is not too fast
	} {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			if call == "getsockname" && os.Getenv("ECHOMUX_PROGRAM") != "" {
				t.Skip("another build may make that call before it has connected")
			}
			again(t, func(t *testing.T) {
				gone := make(chan bool, 1)
				_, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
					io.WriteString(c, "abc")
					resets(c)
					gone <- true
				})
				launcher := []string{strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace=" + call,
					"-e", "inject=" + call + ":signal=STOP"}
				p := command(t, "1", launcher, "-v", "127.0.0.1", port, "hello").start(t)
				p.continueWhen(t, gone)
				r := p.end(t)
				r.wantLine(t, 1, "failed", "sent=0 returned=0 connect_ms exchange_ms peer", cause)
				r.wantStdout(t, "")
			})
		})
	}
}

// continueWhen continues the process that p traces, as often as it stands still, from then on.
func (p *process) continueWhen(t testing.TB, gone chan bool) {
	t.Helper()
	select {
	case <-gone:
	case <-p.over:
		if strings.Contains(p.stderr.String(), "ptrace") {
			t.Skip(p.stderr)
		}
		t.Fatalf("%v: %s", p.ProcessState, tail(p.stderr.String()))
	}
	p.stderr.await(t, "[echomux (", 1)
	id := regexp.MustCompile(`^\[echomux \((\d+)\)\]`).FindStringSubmatch(p.stderr.String())
	if id == nil {
		t.Fatalf("its log begins with %.100q", p.stderr)
	}
	pid, _ := strconv.Atoi(id[1])
	for {
		select {
		case <-p.over:
			return
		case <-time.After(20 * time.Millisecond):
			syscall.Kill(pid, syscall.SIGCONT)
		}
	}
}
