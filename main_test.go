package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"
)

// The tests run echomux against real peers on loopback, and these are package net's: independent of
// the code under test. Most call run; those of process_test.go start whole processes.

// hang is how long anything may take that should take no time. The machine may be busy.
const hang = 60 * time.Second

// roles are what the test binary can be besides a test, by the value of ECHOMUX_RUN. Each prepares
// the process, then main follows.
var roles = map[string]func(){"1": func() {}}

func TestMain(m *testing.M) {
	prepare, isChild := roles[os.Getenv("ECHOMUX_RUN")]
	if !isChild {
		flag.Set("test.parallel", "16") // the tests wait more than they work
		os.Exit(m.Run())
	}
	os.Unsetenv("ECHOMUX_RUN")
	prepare()
	main()
}

// faulty skips a test that the rig, not echomux, would fail. ECHOMUX_RIG names the rig.
func faulty(t testing.TB, rig, fault string) {
	t.Helper()
	if os.Getenv("ECHOMUX_RIG") == rig {
		t.Skipf("%s: %s", rig, fault)
	}
}

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
	eventually(t, func() bool { return strings.Count(o.String(), text) >= n },
		func() string { return fmt.Sprintf("%q did not come %d times, but %s", text, n, tail(o.String())) })
}

// tail is the end of a log, quoted.
func tail(s string) string { return fmt.Sprintf("%q", s[max(0, len(s)-1000):]) }

func eventually(t testing.TB, ok func() bool, what func() string) {
	t.Helper()
	for end := time.Now().Add(hang); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what())
		}
	}
}

// result is what a run of echomux came to.
type result struct {
	status         int
	stdout, stderr string
}

// running is a run that is not over yet.
type running struct {
	stdout, stderr *output
	status         chan int
}

func begin(stdin io.Reader, args ...string) *running {
	r := &running{new(output), new(output), make(chan int, 1)}
	go func() { r.status <- run(args, stdin, r.stdout, r.stderr) }()
	return r
}

func (r *running) end(t testing.TB) result {
	t.Helper()
	select {
	case status := <-r.status:
		return result{status, r.stdout.String(), r.stderr.String()}
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

// want checks the status and all of standard error: the lines that pattern describes, where A stands
// for the address at and N for a number with two decimals.
func (r result) want(t testing.TB, status int, at, pattern string) {
	t.Helper()
	if r.status != status {
		t.Errorf("status %d, want %d: %q", r.status, status, tail(r.stderr))
	}
	pattern = strings.NewReplacer("A", regexp.QuoteMeta(at), "N", `\d+\.\d\d`).Replace(pattern)
	if !regexp.MustCompile(`^` + pattern + `\n$`).MatchString(r.stderr) {
		t.Errorf("standard error is %s, want %q", tail(r.stderr), pattern)
	}
}

func (r result) wantStdout(t testing.TB, want string) {
	t.Helper()
	if r.stdout != want {
		t.Errorf("standard output is %s, want %s", quoted([]byte(r.stdout)), quoted([]byte(want)))
	}
}

// lastLine is the line that ends a run.
func (r result) lastLine() string {
	lines := strings.Split(strings.TrimSuffix(r.stderr, "\n"), "\n")
	return lines[len(lines)-1]
}

// serve makes a server at address, which calls talk with each connection, closes it after that, and
// ends with the test. It returns where it listens.
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
	for b := make([]byte, 1); ; {
		if _, err := c.Read(b); err != nil {
			return
		}
		c.Write(b)
	}
}

func ignores(c *net.TCPConn) { io.Copy(io.Discard, c) }

// reads consumes n bytes.
func reads(c *net.TCPConn, n int64) { io.CopyN(io.Discard, c, n) }

// lingers keeps c open to the end of the test, even if the client has closed it.
func lingers(c *net.TCPConn) {
	for {
		if _, err := c.Write(nil); err != nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
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

func noise(n int) []byte {
	p := make([]byte, n)
	for r, i := rand.New(rand.NewPCG(1, 2)), 0; i < n; i++ {
		p[i] = byte(r.Uint32())
	}
	return p
}

// TestPeers is one connection with each kind of peer. The one MESSAGE is "hello\n".
func TestPeers(t *testing.T) {
	t.Parallel()
	const ok = `echomux: A ok sent=6 returned=6 connect_ms=N exchange_ms=N`
	for _, test := range []struct {
		name   string
		flags  string
		talk   func(*net.TCPConn)
		status int
		stderr string
		stdout string
		fault  string // of Wine
	}{
		{"echo", "", echoes, 0, ok, "hello\n", ""},
		{"single bytes", "", echoesSingleBytes, 0, ok, "hello\n", ""},
		{"slow but never silent", "-io-timeout 4s", func(c *net.TCPConn) {
			for b := make([]byte, 1); ; time.Sleep(900 * time.Millisecond) {
				if _, err := c.Read(b); err != nil {
					return
				}
				c.Write(b)
			}
		}, 0, ok, "hello\n", ""},
		{"never closes", "", func(c *net.TCPConn) {
			echoes(c)
			lingers(c)
		}, 0, ok, "hello\n", ""},
		{"resets when done", "", func(c *net.TCPConn) {
			io.CopyN(c, c, 6)
			reads(c, 1)
			resets(c)
		}, 0, ok, "hello\n", ""},

		{"closes early", "", func(c *net.TCPConn) {
			reads(c, 6)
			io.WriteString(c, "hel")
		}, 1, `echomux: read A: closed early \(3 of 6 bytes\) sent=6 returned=3`, "hel", ""},
		{"closes at once", "", func(c *net.TCPConn) {
			c.CloseWrite()
			ignores(c)
		}, 1, `echomux: read A: closed early \(0 of 6 bytes\) sent=6 returned=0`, "", ""},
		{"resets", "", func(c *net.TCPConn) {
			reads(c, 6)
			resets(c)
		}, 1, `echomux: read A: connection reset by peer sent=6 returned=0`, "", "a reset reads as EOF"},
		{"returns a part and resets", "", func(c *net.TCPConn) {
			reads(c, 6)
			io.WriteString(c, "hel")
			time.Sleep(300 * time.Millisecond)
			resets(c)
		}, 1, `echomux: read A: connection reset by peer sent=6 returned=3`, "hel", "a reset reads as EOF"},
		{"changes a byte", "", func(c *net.TCPConn) {
			reads(c, 6)
			io.WriteString(c, "heLlo\n")
			ignores(c)
		}, 1, `echomux: read A: byte 2 differs: sent 0x6c, came back 0x4c: is this an echo server\? sent=6 returned=2`, "he", ""},
		{"changes a byte and resets", "", func(c *net.TCPConn) {
			reads(c, 6)
			io.WriteString(c, "hello\t")
			time.Sleep(300 * time.Millisecond)
			resets(c)
		}, 1, `echomux: read A: byte 5 differs: sent 0x0a, came back 0x09: is this an echo server\? sent=6 returned=5`, "hello", ""},
		{"returns more", "", func(c *net.TCPConn) {
			reads(c, 6)
			io.WriteString(c, "hello\nX")
			ignores(c)
		}, 1, `echomux: read A: more came back than was sent: byte 6 is 0x58: is this an echo server\? sent=6 returned=6`, "hello\n", ""},
		{"returns more after the end", "", func(c *net.TCPConn) {
			echoes(c) // to the client's FIN
			io.WriteString(c, "X")
		}, 1, `echomux: read A: more came back than was sent: byte 6 is 0x58: is this an echo server\? sent=6 returned=6`, "hello\n", ""},
		{"talks first", "", func(c *net.TCPConn) {
			io.WriteString(c, "220 ready\n")
			ignores(c)
		}, 1, `echomux: read A: byte 0 differs: sent 0x68, came back 0x32: is this an echo server\? sent=6 returned=0`, "", ""},

		{"silent", "-io-timeout 300ms", ignores, 5,
			`echomux: read A: timed out after 300ms of silence \(0 of 6 bytes\) sent=6 returned=0`, "", ""},
		{"silent halfway", "-io-timeout 1s", func(c *net.TCPConn) {
			reads(c, 6)
			io.WriteString(c, "hell")
			ignores(c)
		}, 5, `echomux: read A: timed out after 1s of silence \(4 of 6 bytes\) sent=6 returned=4`, "hell", ""},

		{"connect", "-until connect", ignores, 0, `echomux: A ok sent=0 returned=0 connect_ms=N`, "", ""},
		{"connect, then silence", "-until connect -io-timeout 1ms", ignores, 0, `echomux: A ok .*`, "", ""},
		{"eof from an echo server", "-until eof", echoes, 0, ok, "hello\n", ""},
		{"eof, answers after the half-close", "-until eof", func(c *net.TCPConn) {
			p, _ := io.ReadAll(c)
			fmt.Fprintf(c, "%q is %d bytes\n", p, len(p))
		}, 0, `echomux: A ok sent=6 returned=21 connect_ms=N exchange_ms=N`, "\"hello\\n\" is 6 bytes\n", ""},
		{"eof, talks first", "-until eof", func(c *net.TCPConn) {
			io.WriteString(c, "220 ready\n")
			ignores(c)
			io.WriteString(c, "221 bye\n")
		}, 0, `echomux: A ok sent=6 returned=18 .*`, "220 ready\n221 bye\n", ""},
		{"eof, silent", "-until eof -io-timeout 300ms", func(c *net.TCPConn) {
			ignores(c)
			lingers(c)
		}, 5, `echomux: read A: timed out after 300ms of silence.* sent=6 returned=0`, "", ""},
		{"eof, resets", "-until eof", func(c *net.TCPConn) {
			io.WriteString(c, "220 ready\n")
			ignores(c)
			time.Sleep(300 * time.Millisecond)
			resets(c)
		}, 1, `echomux: read A: connection reset by peer sent=6 returned=10`, "220 ready\n", "a reset reads as EOF"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if test.fault != "" {
				faulty(t, "wine", test.fault)
			}
			at, port := serve(t, "127.0.0.1:0", test.talk)
			r := echomux(t, nil, append(strings.Fields(test.flags), "127.0.0.1", port, "hello")...)
			r.want(t, test.status, at, test.stderr)
			r.wantStdout(t, test.stdout)
		})
	}
}

func TestMessages(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "127.0.0.1:0", echoes)
	for _, test := range []struct {
		messages []string
		stdout   string
	}{
		{[]string{"data1", "data2"}, "data1\ndata2\n"},
		{[]string{""}, "\n"},
		{[]string{"-v", "-no-flag", "--"}, "-v\n-no-flag\n--\n"},
		{[]string{"\x00\xff", "two\nlines"}, "\x00\xff\ntwo\nlines\n"},
	} {
		r := echomux(t, nil, append([]string{"127.0.0.1", port}, test.messages...)...)
		r.want(t, 0, at, fmt.Sprintf(`echomux: A ok sent=%d returned=%[1]d connect_ms=N exchange_ms=N`, len(test.stdout)))
		r.wantStdout(t, test.stdout)
	}
}

// TestStdin sends standard input in every shape.
func TestStdin(t *testing.T) {
	t.Parallel()
	big := string(noise(8 << 20))
	for _, test := range []struct {
		name, data string
		wrap       func(io.Reader) io.Reader
		talk       func(*net.TCPConn)
	}{
		{"empty", "", plain, echoes},
		{"one byte", "x", plain, echoes},
		{"no newline at the end", "a\nb", plain, echoes},
		{"data with EOF", "hello", iotest.DataErrReader, echoes},
		{"single bytes in", big[:3000], iotest.OneByteReader, echoes},
		{"single bytes back", big[:3000], plain, echoesSingleBytes},
		{"half reads", big[:1<<20], iotest.HalfReader, echoes},
		{"8 MiB", big, plain, echoes},
		{"8 MiB, to a server that stops now and then", big, plain, func(c *net.TCPConn) {
			for i := 0; ; i++ {
				if _, err := io.CopyN(c, c, 3<<20); err != nil {
					return
				}
				time.Sleep(100 * time.Millisecond)
			}
		}},
	} {
		for _, until := range []string{"echo", "eof"} {
			t.Run(test.name+" until "+until, func(t *testing.T) {
				t.Parallel()
				at, port := serve(t, "127.0.0.1:0", test.talk)
				r := echomux(t, test.wrap(strings.NewReader(test.data)), "-until", until, "127.0.0.1", port)
				r.want(t, 0, at, fmt.Sprintf(`echomux: A ok sent=%d returned=%[1]d connect_ms=N exchange_ms=N`, len(test.data)))
				r.wantStdout(t, test.data)
			})
		}
	}
}

// TestOneWay streams in one direction only, -until eof.
func TestOneWay(t *testing.T) {
	t.Parallel()
	big := noise(8 << 20)
	var got bytes.Buffer
	sunk := make(chan struct{})
	at, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		io.Copy(&got, c)
		close(sunk)
	})
	echomux(t, bytes.NewReader(big), "-until", "eof", "127.0.0.1", port).
		want(t, 0, at, fmt.Sprintf(`echomux: A ok sent=%d returned=0 .*`, len(big)))
	if <-sunk; !bytes.Equal(got.Bytes(), big) {
		t.Error("the server read other bytes")
	}
	at, port = serve(t, "127.0.0.1:0", func(c *net.TCPConn) { c.Write(big) })
	r := echomux(t, silentStdin(t), "-until", "eof", "127.0.0.1", port)
	r.want(t, 0, at, fmt.Sprintf(`echomux: A ok sent=0 returned=%d .*`, len(big)))
	r.wantStdout(t, string(big))
}

// TestByteInTheMiddle damages one byte of many: standard output ends exactly before it.
func TestByteInTheMiddle(t *testing.T) {
	t.Parallel()
	big := noise(4 << 20)
	const bad = 3<<20 + 7
	at, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		io.CopyN(c, c, bad)
		var b [1]byte
		c.Read(b[:])
		c.Write([]byte{^b[0]})
		echoes(c)
	})
	r := echomux(t, bytes.NewReader(big), "127.0.0.1", port)
	r.want(t, 1, at, fmt.Sprintf(`echomux: read A: byte %d differs: sent 0x%02x, came back 0x%02x: is this an echo server\? sent=\d+ returned=%[1]d`,
		bad, big[bad], ^big[bad]))
	r.wantStdout(t, string(big[:bad]))
}

// tooMuch is more than the kernel takes for a peer with a small buffer that does not read.
const tooMuch, smallBuffer = 16 << 20, 64 << 10

// TestRefusedBytes: a peer that takes no more bytes is as silent as one that returns none.
func TestRefusedBytes(t *testing.T) {
	t.Parallel()
	for _, until := range []string{"echo", "eof"} {
		t.Run(until, func(t *testing.T) {
			t.Parallel()
			at, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
				c.SetReadBuffer(smallBuffer)
				lingers(c)
			})
			r := echomux(t, nil, "-until", until, "-io-timeout", "500ms", "127.0.0.1", port, strings.Repeat("x", tooMuch))
			r.want(t, 5, at, `echomux: (read|write) A: timed out after 500ms .*sent=\d+ returned=0`)
		})
	}
}

// TestSlowPeer takes our bytes slowly: each one moved restarts the clock.
func TestSlowPeer(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		c.SetReadBuffer(smallBuffer)
		for range 32 { // the first half: the kernel's buffers hide how the end is read
			reads(c, tooMuch/64)
			time.Sleep(125 * time.Millisecond)
		}
		ignores(c)
	})
	echomux(t, nil, "-until", "eof", "-io-timeout", "3s", "127.0.0.1", port, strings.Repeat("x", tooMuch)).
		want(t, 0, at, fmt.Sprintf(`echomux: A ok sent=%d returned=0 .*`, tooMuch+1))
}

// TestForesight: the right bytes, but before they were sent, are no echo.
func TestForesight(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		c.SetReadBuffer(smallBuffer)
		for chunk := bytes.Repeat([]byte("x"), 1<<20); ; {
			if _, err := c.Write(chunk); err != nil {
				return
			}
		}
	})
	echomux(t, nil, "127.0.0.1", port, strings.Repeat("x", tooMuch)).
		want(t, 1, at, `echomux: read A: more came back than was sent: byte \d+ is 0x78: .*`)
}

// TestUnsent: -until eof, a peer that leaves before it has taken what there was to send.
func TestUnsent(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		c.SetReadBuffer(smallBuffer)
		reads(c, 1)
		time.Sleep(200 * time.Millisecond)
		c.CloseWrite()
		time.Sleep(200 * time.Millisecond)
	})
	echomux(t, nil, "-until", "eof", "127.0.0.1", port, strings.Repeat("x", tooMuch)).
		want(t, 1, at, `echomux: (read|write) A: .*sent=\d+ returned=0`)
}

// TestEOFWithIdleStdin: with -until eof a standard input that nobody types into keeps nothing alive;
// otherwise the peer has closed early, even with all back.
func TestEOFWithIdleStdin(t *testing.T) {
	t.Parallel()
	talk := func(c *net.TCPConn) { io.CopyN(c, c, 6) }
	for _, test := range []struct {
		until  string
		status int
		stderr string
	}{
		{"eof", 0, `echomux: A ok sent=6 returned=6 connect_ms=N exchange_ms=N`},
		{"echo", 1, `echomux: read A: closed early \(6 of 6 bytes\) sent=6 returned=6`},
	} {
		at, port := serve(t, "127.0.0.1:0", talk)
		stdin, user := io.Pipe()
		defer user.Close()
		go io.WriteString(user, "hello\n")
		r := echomux(t, stdin, "-until", test.until, "127.0.0.1", port)
		r.want(t, test.status, at, test.stderr)
		r.wantStdout(t, "hello\n")
	}
}

// TestTalksBeforeUs: nothing was sent, so any byte is one too many.
func TestTalksBeforeUs(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		io.WriteString(c, "220 ready\n")
		ignores(c)
	})
	r := echomux(t, silentStdin(t), "127.0.0.1", port)
	r.want(t, 1, at, `echomux: read A: more came back than was sent: byte 0 is 0x32: is this an echo server\? sent=0 returned=0`)
	r.wantStdout(t, "")
}

// TestThinkingUser: the silence of the user is not the peer's.
func TestThinkingUser(t *testing.T) {
	t.Parallel()
	for _, until := range []string{"echo", "eof"} {
		t.Run(until, func(t *testing.T) {
			t.Parallel()
			at, port := serve(t, "127.0.0.1:0", echoes)
			stdin, user := io.Pipe()
			r := begin(stdin, "-until", until, "-io-timeout", "1s", "127.0.0.1", port)
			time.Sleep(1300 * time.Millisecond)
			for i := range 2 {
				io.WriteString(user, "hello\n")
				r.stdout.await(t, "hello\n", i+1)
				time.Sleep(1300 * time.Millisecond)
			}
			user.Close()
			r.end(t).want(t, 0, at, `echomux: A ok sent=12 returned=12 connect_ms=N exchange_ms=N`)
		})
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	faulty(t, "qemu-mips", "SO_ERROR carries the host's error number")
	at, port := closedPort(t)
	echomux(t, nil, "127.0.0.1", port, "hello").
		want(t, 3, at, `echomux: connect A: connection refused sent=0 returned=0`)
	echomux(t, nil, "-until", "connect", "127.0.0.1", port).
		want(t, 3, at, `echomux: connect A: connection refused sent=0 returned=0`)
}

func TestIPv6(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "[::1]:0", echoes)
	r := echomux(t, nil, "::1", port, "hello")
	r.want(t, 0, at, `echomux: A ok sent=6 returned=6 connect_ms=N exchange_ms=N`)
	r.wantStdout(t, "hello\n")
}

// TestMappedAddress: ::ffff:127.0.0.1 is IPv4, in the socket and in the report.
func TestMappedAddress(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "127.0.0.1:0", echoes)
	echomux(t, nil, "-4", "::ffff:127.0.0.1", port, "hello").want(t, 0, at, `echomux: A ok sent=6 .*`)
}

// TestLocalhost has two addresses wherever IPv6 is configured: the one that works is found, and when
// none does, all are named.
func TestLocalhost(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "127.0.0.1:0", echoes)
	for _, flags := range [][]string{{}, {"-4"}} {
		echomux(t, nil, append(flags, "localhost", port, "hello")...).want(t, 0, at, `echomux: A ok sent=6 .*`)
	}
	faulty(t, "qemu-mips", "SO_ERROR carries the host's error number")
	at, port = closedPort(t)
	echomux(t, nil, "-4", "localhost", port, "hello").want(t, 3, at, `echomux: connect A: connection refused sent=0 returned=0`)
	r := echomux(t, nil, "localhost", port, "hello")
	r.want(t, 3, "", `echomux: .*connection refused.* sent=0 returned=0`)
	if !strings.Contains(r.stderr, at) {
		t.Errorf("%q does not name %s", r.stderr, at)
	}
	if l, err := net.Listen("tcp", "[::1]:0"); err == nil {
		l.Close()
		if !strings.Contains(r.stderr, "[::1]:"+port) {
			t.Errorf("%q does not name [::1]:%s", r.stderr, port)
		}
	}
}

func TestNoAddress(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		args   []string
		stderr string
	}{
		{[]string{"a..b", "7", "x"}, `echomux: lookup a\.\.b: .+ sent=0 returned=0`},
		{[]string{"-4", "::1", "7", "x"}, `echomux: lookup ::1: .+ sent=0 returned=0`},
		{[]string{"-6", "127.0.0.1", "7", "x"}, `echomux: lookup 127\.0\.0\.1: .+ sent=0 returned=0`},
		{[]string{"-6", "::ffff:127.0.0.1", "7", "x"}, `echomux: lookup ::ffff:127\.0\.0\.1: .+ sent=0 returned=0`},
		{[]string{"fe80::1%nosuchzone", "7", "x"}, `echomux: .*nosuchzone.*`},
	} {
		echomux(t, nil, test.args...).want(t, 3, "", test.stderr)
	}
}

// failingWriter takes some bytes, then fails.
type failingWriter struct{ left int }

func (w *failingWriter) Write(p []byte) (int, error) {
	if len(p) > w.left {
		return w.left, errors.New("the disk is full")
	}
	w.left -= len(p)
	return len(p), nil
}

func TestStandardStreamsFail(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "127.0.0.1:0", echoes)
	stderr := new(output)
	status := run([]string{"127.0.0.1", port, "hello"}, nil, &failingWriter{3}, stderr)
	result{status, "", stderr.String()}.want(t, 6, at, `echomux: standard output: the disk is full sent=6 returned=\d`)

	stdin := io.MultiReader(strings.NewReader("hello\n"), iotest.ErrReader(errors.New("the tape is torn")))
	echomux(t, stdin, "127.0.0.1", port).
		want(t, 6, at, `echomux: standard input: the tape is torn sent=\d returned=\d`)
}

// TestSlowOutput: a slow reader of our output is back-pressure, not silence of the peer.
func TestSlowOutput(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "127.0.0.1:0", echoes)
	stderr := new(output)
	status := run([]string{"-io-timeout", "1s", "127.0.0.1", port, strings.Repeat("x", 1<<20)}, nil, &slowWriter{2}, stderr)
	result{status, "", stderr.String()}.want(t, 0, at, `echomux: A ok sent=1048577 returned=1048577 .*`)
}

// slowWriter takes more than a second for each of its first writes.
type slowWriter struct{ slow int }

func (w *slowWriter) Write(p []byte) (int, error) {
	if w.slow--; w.slow >= 0 {
		time.Sleep(1300 * time.Millisecond)
	}
	return len(p), nil
}

func TestRounds(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "127.0.0.1:0", echoes)
	r := echomux(t, nil, "-count", "5", "127.0.0.1", port, "data1", "data2")
	r.want(t, 0, at, `echomux: A ok sent=60 returned=60 connect_ms=N rounds=5 rtt_ms=N/N/N`)
	r.wantStdout(t, strings.Repeat("data1\ndata2\n", 5))
}

// TestEvery: a line for each round, which starts no sooner than asked; a round that is not due is no
// timeout.
func TestEvery(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "127.0.0.1:0", echoes)
	start := time.Now()
	echomux(t, nil, "-count", "3", "-every", "1300ms", "-io-timeout", "1s", "127.0.0.1", port, "hello").
		want(t, 0, at, `echomux: A round=1 rtt_ms=N\nechomux: A round=2 rtt_ms=N\nechomux: A round=3 rtt_ms=N\n`+
			`echomux: A ok sent=18 returned=18 connect_ms=N rounds=3 rtt_ms=N/N/N`)
	if took := time.Since(start); took < 2590*time.Millisecond {
		t.Errorf("three rounds took %v", took)
	}
	echomux(t, nil, "-q", "-count", "3", "-every", "1ms", "127.0.0.1", port, "hello").wantQuiet(t)
	// One line is promised even where there is one round.
	echomux(t, nil, "-every", "1h", "127.0.0.1", port, "hello").
		want(t, 0, at, `echomux: A round=1 rtt_ms=N\nechomux: A ok sent=6 returned=6 connect_ms=N rounds=1 rtt_ms=N/N/N`)
}

func (r result) wantQuiet(t testing.TB) {
	t.Helper()
	if r.status != 0 || r.stderr != "" {
		t.Errorf("status %d and %q, want 0 and silence", r.status, r.stderr)
	}
}

// TestLaterRound is what -count is for: a flow that was good once.
func TestLaterRound(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		talk   func(*net.TCPConn)
		status int
		stderr string
	}{
		{"dropped", func(c *net.TCPConn) {
			io.CopyN(c, c, 12)
			ignores(c)
		}, 5, `echomux: read A: timed out after 1s of silence .* sent=18 returned=12 rounds=2 rtt_ms=N/N/N`},
		{"closed", func(c *net.TCPConn) {
			io.CopyN(c, c, 12)
			reads(c, 3)
			c.CloseWrite()
			ignores(c)
		}, 1, `echomux: read A: closed early .* sent=18 returned=12 rounds=2 rtt_ms=N/N/N`},
		{"changed", func(c *net.TCPConn) {
			io.CopyN(c, c, 14)
			io.WriteString(c, "LLO\n")
			ignores(c)
		}, 1, `echomux: read A: byte 14 differs: sent 0x6c, came back 0x4c: .* sent=18 returned=14 rounds=2 rtt_ms=N/N/N`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			at, port := serve(t, "127.0.0.1:0", test.talk)
			echomux(t, nil, "-io-timeout", "1s", "-count", "4", "127.0.0.1", port, "hello").
				want(t, test.status, at, test.stderr)
		})
	}
}

// TestClosedBetweenRounds: a close while nothing is owed is noticed at once, not at the next round.
func TestClosedBetweenRounds(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) { io.CopyN(c, c, 6) })
	echomux(t, nil, "-count", "2", "-every", "1h", "127.0.0.1", port, "hello").
		want(t, 1, at, `echomux: A round=1 rtt_ms=N\nechomux: read A: closed early \(6 of 6 bytes\) sent=6 returned=6 rounds=1 rtt_ms=N/N/N`)
}

func TestMany(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "127.0.0.1:0", echoes)
	r := echomux(t, nil, "-n", "50", "127.0.0.1", port, "hello")
	r.want(t, 0, at, `echomux: A ok=50 failed=0 sent=300 returned=300 connect_ms=N/N/N exchange_ms=N/N/N`)
	r.wantStdout(t, "")
	echomux(t, nil, "-n", "10", "-count", "7", "127.0.0.1", port, "hello").
		want(t, 0, at, `echomux: A ok=10 failed=0 sent=420 returned=420 connect_ms=N/N/N rounds=70 rtt_ms=N/N/N`)
	echomux(t, nil, "-n", "3", "-until", "connect", "127.0.0.1", port, "hello").
		want(t, 0, at, `echomux: A ok=3 failed=0 sent=0 returned=0 connect_ms=N/N/N`)
	echomux(t, nil, "-q", "-n", "3", "127.0.0.1", port, "hello").wantQuiet(t)
}

// TestMixedFates: the first failure in time decides, equal ones are one line.
func TestMixedFates(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		pause  time.Duration // before the early closes
		status int
	}{
		{"closed early first", 0, 1},
		{"timed out first", 3 * time.Second, 5},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			turn := make(chan int, 10)
			for i := range 10 {
				turn <- i
			}
			at, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
				switch i := <-turn; {
				case i < 4:
					echoes(c)
				case i < 7:
					ignores(c)
				case test.pause == 0:
					c.CloseWrite()
					ignores(c)
				default: // never silent for long, and then closed
					for range test.pause / (200 * time.Millisecond) {
						io.CopyN(c, c, 1)
						time.Sleep(200 * time.Millisecond)
					}
					c.CloseWrite()
					ignores(c)
				}
			})
			r := echomux(t, nil, "-q", "-n", "10", "-io-timeout", "1s", "127.0.0.1", port, strings.Repeat("x", 99))
			r.want(t, test.status, at, `(?s)(echomux: read .*\n){2}echomux: A ok=4 failed=6 sent=1000 returned=\d+ connect_ms=N/N/N exchange_ms=N/N/N`)
			if !regexp.MustCompile(`(?m)^echomux: read [0-9.:]+: timed out after 1s of silence .*\(3 connections\)$`).MatchString(r.stderr) {
				t.Errorf("the three that timed out are not one line: %q", r.stderr)
			}
			if !regexp.MustCompile(`(?m)^echomux: read [0-9.:]+: closed early .*\(3 connections\)$`).MatchString(r.stderr) {
				t.Errorf("the three that were closed early are not one line: %q", r.stderr)
			}
		})
	}
}

// TestManyReset: a connection reset at once, even before its connect was seen to end, was not refused.
func TestManyReset(t *testing.T) {
	t.Parallel()
	faulty(t, "qemu-mips", "SO_ERROR carries the host's error number")
	faulty(t, "wine", "a reset reads as EOF")
	_, port := serve(t, "127.0.0.1:0", resets)
	r := echomux(t, nil, "-n", "200", "127.0.0.1", port, "hello")
	if r.status != 1 || !strings.Contains(r.lastLine(), " ok=0 failed=200 ") || !strings.Contains(r.stderr, "connection reset by peer") {
		t.Errorf("status %d: %s", r.status, tail(r.stderr))
	}
}

func TestManyRefused(t *testing.T) {
	t.Parallel()
	faulty(t, "qemu-mips", "SO_ERROR carries the host's error number")
	at, port := closedPort(t)
	echomux(t, nil, "-n", "7", "127.0.0.1", port, "hello").
		want(t, 3, at, `echomux: connect A: connection refused \(7 connections\)\nechomux: A ok=0 failed=7 sent=0 returned=0`)
	port = port0(t)
	echomux(t, nil, "-n", "2", "::1", port, "hello").
		want(t, 3, "[::1]:"+port, `echomux: connect A: .+ \(2 connections\)\nechomux: A ok=0 failed=2 sent=0 returned=0`)
}

func TestQuiet(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", echoes)
	r := echomux(t, nil, "-q", "127.0.0.1", port, "hello")
	r.wantQuiet(t)
	r.wantStdout(t, "hello\n")
	at, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		c.CloseWrite()
		ignores(c)
	})
	echomux(t, nil, "-q", "127.0.0.1", port, "hello").want(t, 1, at, `echomux: read A: closed early .*`)
}

// TestVerbose: the log has the recipe's form, and its steps in their order.
func TestVerbose(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "127.0.0.1:0", echoes)
	long := strings.Repeat("long ", 1000)
	r := echomux(t, nil, "-v", "127.0.0.1", port, "data1", "esc\x1b[2J", long)
	if r.status != 0 {
		t.Fatalf("status %d: %q", r.status, r.stderr)
	}
	lines := strings.Split(strings.TrimSuffix(r.stderr, "\n"), "\n")
	form := regexp.MustCompile(fmt.Sprintf(`^\[echomux \(%d\)\] [ -~]+$`, os.Getpid()))
	for _, line := range lines[:len(lines)-1] {
		if !form.MatchString(line) || len(line) > 250 {
			t.Errorf("not a log line: %q", line)
		}
	}
	if !strings.HasPrefix(lines[len(lines)-1], "echomux: "+at+" ok ") {
		t.Errorf("last line %q", lines[len(lines)-1])
	}
	rest := r.stderr
	for _, step := range []string{"switch to non-blocking mode", "connected ", `sent: "data1\n" "esc\x1b[2J\n"`, "read only", "recv: ", "closed"} {
		_, after, found := strings.Cut(rest, step)
		if !found {
			t.Errorf("no %q in %q", step, rest)
		}
		rest = after
	}
}

// TestDemo is the recipe, both ends in one loop.
func TestDemo(t *testing.T) {
	t.Parallel()
	r := echomux(t, nil)
	if r.status != 0 || !regexp.MustCompile(`^echomux: 127\.0\.0\.1:\d+ ok sent=12 returned=12 connect_ms=\d+\.\d\d exchange_ms=\d+\.\d\d$`).MatchString(r.lastLine()) {
		t.Errorf("status %d, last line %q", r.status, r.lastLine())
	}
	r.wantStdout(t, "data1\ndata2\n")
	for _, step := range []string{`] sent: "data1\n"`, `server: recv: "data1\n"`, `server: sent: "data1\n"`, `] recv: "data1\n"`} {
		if !strings.Contains(r.stderr, step) {
			t.Errorf("no %q in %q", step, r.stderr)
		}
	}
	echomux(t, nil, "-q").wantQuiet(t)
	echomux(t, nil, "-q", "-n", "20", "-count", "3").wantQuiet(t)
	if l, err := net.Listen("tcp", "[::1]:0"); err == nil {
		l.Close()
		echomux(t, nil, "-q", "-6").wantQuiet(t)
	}
}

// TestUsage: each error names the bad word and exits 2, with nothing on standard output.
func TestUsage(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		args, names string
	}{
		{"127.0.0.1", "127.0.0.1"},
		{"127.0.0.1 0 x", `"0"`},
		{"127.0.0.1 65536 x", "65536"},
		{"127.0.0.1 70000 x", "70000"},
		{"127.0.0.1 -7 x", "-7"},
		{"127.0.0.1 7.0 x", "7.0"},
		{"127.0.0.1 echo x", "echo"},
		{"127.0.0.1 +7 x", "+7"},
		{"@ 7 x", "HOST"}, // @ is an empty word here
		{"127.0.0.1 @ x", "PORT"},
		{"-connect-timeout 0s 127.0.0.1 7 x", "-connect-timeout"},
		{"-connect-timeout -1s 127.0.0.1 7 x", "-connect-timeout"},
		{"-connect-timeout 5 127.0.0.1 7 x", `"5" for flag -connect-timeout`},
		{"-connect-timeout soon 127.0.0.1 7 x", "soon"},
		{"-io-timeout 0s 127.0.0.1 7 x", "-io-timeout"},
		{"-io-timeout -1s 127.0.0.1 7 x", "-io-timeout"},
		{"-n 0 127.0.0.1 7 x", "-n 0"},
		{"-n -1 127.0.0.1 7 x", "-n -1"},
		{"-n many 127.0.0.1 7 x", "many"},
		{"-n 99999999999999999999 127.0.0.1 7 x", "99999999999999999999"},
		{"-n= 127.0.0.1 7 x", `"" for flag -n`},
		{"-v=maybe 127.0.0.1 7 x", "maybe"},
		{"-n 2 127.0.0.1 7", "-n"},
		{"-n 2 -until eof 127.0.0.1 7", "-n"},
		{"-count -1 127.0.0.1 7 x", "-count -1"},
		{"-count 2 127.0.0.1 7", "-count"},
		{"-count 0 127.0.0.1 7", "-count"},
		{"-count 2 -until eof 127.0.0.1 7 x", "eof"},
		{"-count 2 -until connect 127.0.0.1 7 x", "connect"},
		{"-every 1s -until eof 127.0.0.1 7 x", "eof"},
		{"-every -1s 127.0.0.1 7 x", "-every -1s"},
		{"-until never 127.0.0.1 7 x", "never"},
		{"-until @ 127.0.0.1 7 x", "-until"},
		{"-4 -6 127.0.0.1 7 x", "-6"},
		{"-nosuch 127.0.0.1 7 x", "-nosuch"},
		{"---v 127.0.0.1 7 x", "---v"},
		{"-\x1b[31m 127.0.0.1 7 x", `\x1b[31m`},
		{"-n \x1b[31m 127.0.0.1 7 x", `\x1b[31m`},
		{"-\u202e 127.0.0.1 7 x", `\u202e`},
		{"-io-timeout", "-io-timeout"},
		{"-serve", "PORT"},
		{"-serve 127.0.0.1 7 x", "x"},
		{"-serve 127.0.0.1 7 x y", "x"},
		{"-serve 0", `"0"`},
		{"-serve 70000", "70000"},
		{"-serve @ 7", "HOST"},
		{"-serve -n 2 7", "-n"},
		{"-serve -count 2 7", "-count"},
	} {
		args := strings.Fields(test.args)
		for i, word := range args {
			if word == "@" {
				args[i] = ""
			}
		}
		r := echomux(t, nil, args...)
		if r.status != 2 || r.stdout != "" || strings.Count(r.stderr, "\n") != 1 ||
			!strings.HasPrefix(r.stderr, "echomux: ") || !strings.Contains(r.stderr, test.names) {
			t.Errorf("echomux %s: status %d, %q; want 2, one line, and %q in it", test.args, r.status, r.stdout+r.stderr, test.names)
		}
	}
}

func TestHelp(t *testing.T) {
	t.Parallel()
	for _, flag := range []string{"-h", "-help", "--help"} {
		r := echomux(t, nil, flag)
		if r.status != 0 || r.stderr != "" {
			t.Errorf("%s: status %d, %q", flag, r.status, r.stderr)
		}
		for _, word := range []string{"HOST PORT", "-serve", "-connect-timeout", "3.5s", "-io-timeout", "5.5s", "-until", "-n", "-count", "-every", "-4", "-6", "-v", "-q"} {
			if !strings.Contains(r.stdout, word) {
				t.Errorf("%s does not explain %s", flag, word)
			}
		}
	}
}

func plain(r io.Reader) io.Reader { return r }
