package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// One connection, its streams and its verdict, against real peers on loopback. What the line says
// of it is checked here too; its form is checked in every test, by newResult.

const done = "sent=6 returned=6 connect_ms exchange_ms peer" // one "hello\n", whole

// peerTest is one connection with some kind of peer. The one MESSAGE is "hello\n".
type peerTest struct {
	name   string
	flags  string
	talk   func(*net.TCPConn)
	status int
	keys   string
	cause  string // none: the job is done
	stdout string
	fault  string // of Wine
}

// resetReads is what Wine makes of a reset.
const resetReads = "a reset reads as EOF"

// goodPeers do what they should.
var goodPeers = []peerTest{
	{name: "echo", talk: echoes, keys: done, stdout: "hello\n"},
	{name: "single bytes", talk: echoesSingleBytes, keys: done, stdout: "hello\n"},
	{name: "slow but never silent", flags: "-io-timeout 4s", keys: done, stdout: "hello\n",
		talk: func(c *net.TCPConn) {
			for range 6 {
				time.Sleep(900 * time.Millisecond)
				returns(c, 1)
			}
		}},
	{name: "never closes", keys: done, stdout: "hello\n",
		talk: func(c *net.TCPConn) {
			echoes(c)
			lingers(c)
		}},
	{name: "resets when done", keys: done, stdout: "hello\n",
		talk: func(c *net.TCPConn) {
			returns(c, 6)
			reads(c, 1)
			resets(c)
		}},
	{name: "closes when all is back", keys: done, stdout: "hello\n",
		talk: func(c *net.TCPConn) { returns(c, 6) }},
}

// endingPeers end too soon.
var endingPeers = []peerTest{
	{name: "closes early", status: 1, keys: "sent=6 returned=3 connect_ms exchange_ms peer",
		cause: "closed early (3 of 6 bytes)", stdout: "hel",
		talk: func(c *net.TCPConn) {
			reads(c, 6)
			io.WriteString(c, "hel")
		}},
	{name: "closes at once", status: 1, keys: "sent=* returned=0 connect_ms exchange_ms peer",
		cause: "closed early (0 of 6 bytes)", talk: ends},
	{name: "resets", status: 1, keys: "sent=6 returned=0 connect_ms exchange_ms peer",
		cause: "read: connection reset by peer", fault: resetReads,
		talk: func(c *net.TCPConn) {
			reads(c, 6)
			resets(c)
		}},
	{name: "returns a part and resets", status: 1, fault: resetReads,
		keys:  "sent=6 returned=3 connect_ms exchange_ms peer",
		cause: "read: connection reset by peer", stdout: "hel",
		talk: func(c *net.TCPConn) {
			reads(c, 6)
			io.WriteString(c, "hel")
			time.Sleep(300 * time.Millisecond)
			resets(c)
		}},
}

// lyingPeers return other bytes, or more.
var lyingPeers = []peerTest{
	{name: "changes a byte", status: 1, keys: "sent=6 returned=2 connect_ms exchange_ms peer",
		cause: "byte 2 differs: sent 0x6c, came back 0x4c: altered on the path", stdout: "he",
		talk: func(c *net.TCPConn) {
			reads(c, 6)
			io.WriteString(c, "heLlo\n")
			ignores(c)
		}},
	{name: "changes a byte and resets", status: 1,
		keys:  "sent=6 returned=5 connect_ms exchange_ms peer",
		cause: "byte 5 differs: sent 0x0a, came back 0x09: altered on the path", stdout: "hello",
		talk: func(c *net.TCPConn) {
			reads(c, 6)
			io.WriteString(c, "hello\t")
			time.Sleep(300 * time.Millisecond)
			resets(c)
		}},
	{name: "returns more", status: 1, keys: done, stdout: "hello\n",
		cause: "more came back than was sent: byte 6 is 0x58: altered on the path",
		talk: func(c *net.TCPConn) {
			reads(c, 6)
			io.WriteString(c, "hello\nX")
			ignores(c)
		}},
	{name: "returns more after the end", status: 1, keys: done, stdout: "hello\n",
		cause: "more came back than was sent: byte 6 is 0x58: altered on the path",
		talk: func(c *net.TCPConn) {
			echoes(c) // to the client's FIN
			io.WriteString(c, "X")
		}},
	{name: "talks first", status: 1, keys: "sent=* returned=0 connect_ms exchange_ms peer",
		cause: "*: is this an echo server?",
		talk: func(c *net.TCPConn) {
			io.WriteString(c, "220 ready\n")
			ignores(c)
		}},
	{name: "answers", status: 1, keys: "sent=6 returned=0 connect_ms exchange_ms peer",
		cause: "byte 0 differs: sent 0x68, came back 0x65: is this an echo server?",
		talk: func(c *net.TCPConn) {
			reads(c, 6)
			io.WriteString(c, "error\n")
			ignores(c)
		}},
}

// silentPeers keep us waiting.
var silentPeers = []peerTest{
	{name: "silent", flags: "-io-timeout 300ms", talk: ignores, status: 5,
		keys:  "sent=6 returned=0 connect_ms exchange_ms peer",
		cause: "timed out after 300ms of silence (0 of 6 bytes)"},
	{name: "silent halfway", flags: "-io-timeout 2s", status: 5, stdout: "hell",
		keys:  "sent=6 returned=4 connect_ms exchange_ms peer",
		cause: "timed out after 2s of silence (4 of 6 bytes)",
		talk: func(c *net.TCPConn) {
			reads(c, 6)
			io.WriteString(c, "hell")
			ignores(c)
		}},
	{name: "silent for longer than the default, without a limit", flags: "-io-timeout 0",
		keys: done, stdout: "hello\n",
		talk: func(c *net.TCPConn) {
			time.Sleep(6 * time.Second)
			echoes(c)
		}},
	{name: "eof, silent", flags: "-until eof -io-timeout 300ms", status: 5,
		keys:  "sent=6 returned=0 connect_ms exchange_ms peer",
		cause: "timed out after 300ms of silence*",
		talk: func(c *net.TCPConn) {
			ignores(c)
			lingers(c)
		}},
}

// eofPeers are not asked for an echo.
var eofPeers = []peerTest{
	{name: "eof from an echo server", flags: "-until eof", talk: echoes, keys: done,
		stdout: "hello\n"},
	{name: "eof, answers after the half-close", flags: "-until eof",
		keys: "sent=6 returned=21 connect_ms exchange_ms peer", stdout: "\"hello\\n\" is 6 bytes\n",
		talk: func(c *net.TCPConn) {
			p, _ := io.ReadAll(c)
			fmt.Fprintf(c, "%q is %d bytes\n", p, len(p))
		}},
	{name: "eof, talks first", flags: "-until eof", stdout: "220 ready\n221 bye\n",
		keys: "sent=6 returned=18 connect_ms exchange_ms peer",
		talk: func(c *net.TCPConn) {
			io.WriteString(c, "220 ready\n")
			ignores(c)
			io.WriteString(c, "221 bye\n")
		}},
	{name: "eof, half-closes at once", flags: "-until eof",
		keys: "sent=6 returned=0 connect_ms exchange_ms peer", talk: ends},
	{name: "eof, resets", flags: "-until eof", status: 1, stdout: "220 ready\n", fault: resetReads,
		keys:  "sent=6 returned=10 connect_ms exchange_ms peer",
		cause: "read: connection reset by peer*",
		talk: func(c *net.TCPConn) {
			io.WriteString(c, "220 ready\n")
			ignores(c)
			time.Sleep(300 * time.Millisecond)
			resets(c)
		}},
}

func TestPeers(t *testing.T) {
	t.Parallel()
	for _, tests := range [][]peerTest{goodPeers, endingPeers, lyingPeers, silentPeers, eofPeers} {
		for _, test := range tests {
			t.Run(test.name, func(t *testing.T) { test.run(t) })
		}
	}
}

// run is the one connection. Lines of rounds stand before the last one.
func (test peerTest) run(t *testing.T) result {
	t.Parallel()
	if test.fault != "" {
		faulty(t, "wine", test.fault)
	}
	at, port := serve(t, "127.0.0.1:0", test.talk)
	args := append(strings.Fields(test.flags), "127.0.0.1", port, "hello")
	r := echomux(t, nil, args...)
	word := "ok"
	if test.cause != "" {
		word = "failed"
	}
	r.wantLine(t, test.status, word, test.keys, test.cause)
	for _, l := range r.lines[:len(r.lines)-1] {
		l.want(t, "round", "rtt_ms peer", "")
	}
	if test.stdout != "" || r.line(t).count("returned") == 0 {
		r.wantStdout(t, test.stdout)
	}
	if got := r.line(t).values["peer"]; got != at {
		t.Errorf("the peer is %s, want %s", got, at)
	}
	return r
}

// TestUntilConnect: a connection is all that is asked for, whatever the peer does with it. Nothing
// is read from standard input, and nothing sent.
func TestUntilConnect(t *testing.T) {
	t.Parallel()
	faulty(t, "qemu-mips", "SO_ERROR carries the host's error number")
	for _, talk := range []func(*net.TCPConn){ignores, echoes, ends, resets} {
		_, port := serve(t, "127.0.0.1:0", talk)
		for range 30 {
			input := iotest.ErrReader(errors.New("nobody should read it"))
			r := echomux(t, input, "-until", "connect", "-io-timeout", "1ns", "127.0.0.1", port)
			r.wantLine(t, 0, "ok", "sent=0 returned=0 connect_ms peer", "")
			r.wantStdout(t, "")
		}
	}
}

func TestMessages(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", echoes)
	for _, test := range []struct {
		words  []string
		stdout string
	}{
		{[]string{"data1", "data2"}, "data1\ndata2\n"},
		{[]string{""}, "\n"},
		{[]string{"-"}, "-\n"},
		{[]string{"--", "-v", "-no-flag", "--", "x"}, "-v\n-no-flag\n--\nx\n"},
		{[]string{"--", "--"}, "--\n"},
		{[]string{"\x00\xff", "two\nlines"}, "\x00\xff\ntwo\nlines\n"},
	} {
		r := echomux(t, nil, append([]string{"127.0.0.1", port}, test.words...)...)
		keys := fmt.Sprintf("sent=%d returned=%[1]d connect_ms exchange_ms peer", len(test.stdout))
		r.wantLine(t, 0, "ok", keys, "")
		r.wantStdout(t, test.stdout)
	}
	r := echomux(t, strings.NewReader("input"), "--", "127.0.0.1", port, "--")
	r.wantLine(t, 0, "ok", "sent=5 returned=5 ...", "")
}

// echoesWithPauses stops now and then, and leaves both kernels' buffers full.
func echoesWithPauses(c *net.TCPConn) {
	for {
		_, err := io.CopyN(c, c, 3<<20)
		if err != nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// TestStdin sends standard input in every shape.
func TestStdin(t *testing.T) {
	t.Parallel()
	plain := func(r io.Reader) io.Reader { return r }
	big := string(noise(8 << 20))
	for _, test := range []struct {
		name, data string
		wrap       func(io.Reader) io.Reader
		talk       func(*net.TCPConn)
	}{
		{"one byte", "x", plain, echoes},
		{"no newline at the end", "a\nb", plain, echoes},
		{"data with EOF", "hello", iotest.DataErrReader, echoes},
		{"single bytes in", big[:3000], iotest.OneByteReader, echoes},
		{"single bytes back", big[:3000], plain, echoesSingleBytes},
		{"half reads", big[:1<<20], iotest.HalfReader, echoes},
		{"exactly the ring", big[:ringSize], plain, echoes},
		{"8 MiB", big, plain, echoes},
		{"8 MiB, to a server that pauses", big, plain, echoesWithPauses},
	} {
		for _, until := range []string{"echo", "eof"} {
			t.Run(test.name+" until "+until, func(t *testing.T) {
				t.Parallel()
				_, port := serve(t, "127.0.0.1:0", test.talk)
				input := test.wrap(strings.NewReader(test.data))
				r := echomux(t, input, "-until", until, "127.0.0.1", port)
				keys := fmt.Sprintf("sent=%d returned=%[1]d ...", len(test.data))
				r.wantLine(t, 0, "ok", keys, "")
				r.wantStdout(t, test.data)
			})
		}
	}
}

// TestStdinEmpty: an echo of nothing proves nothing, and is no success. A server that is only
// listened to is one.
func TestStdinEmpty(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", echoes)
	const nothing = "nothing to send: give a MESSAGE, or -until connect"
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, input := range []io.Reader{strings.NewReader(""), null} {
		r := echomux(t, input, "127.0.0.1", port)
		keys := "sent=0 returned=0 connect_ms exchange_ms mbit_s=0.00 peer"
		r.wantLine(t, 6, "failed", keys, nothing)
	}
	r := echomux(t, strings.NewReader(""), "-count", "2", "127.0.0.1", port)
	r.wantLine(t, 6, "failed", "sent=0 returned=0 rounds=0", nothing)
	r = echomux(t, strings.NewReader(""), "-n", "2", "127.0.0.1", port)
	r.wantLine(t, 6, "failed", "connections=2 ok=0 failures=2 unfinished=0 sent=0 returned=0", "")
	r.lines[0].want(t, "cause", "failures=2", nothing)
	r = echomux(t, strings.NewReader(""), "-until", "eof", "127.0.0.1", port)
	r.wantLine(t, 0, "ok", "sent=0 returned=0 ...", "")
	r = echomux(t, strings.NewReader(""), "-until", "eof", "-n", "2", "127.0.0.1", port)
	r.wantLine(t, 0, "ok", "connections=2 ok=2 ...", "")
}

// TestGathered: with several connections, or rounds, standard input is read to its end and then
// sent as MESSAGEs are, if it is not too much to be kept.
func TestGathered(t *testing.T) {
	t.Parallel()
	data := string(noise(ringSize))
	for _, test := range []struct {
		args, data, keys string
	}{
		{"-n 3", "x", "connections=3 ok=3 failures=0 unfinished=0 sent=3 returned=3 ..."},
		{"-n 3 -until eof", "xy", "connections=3 ok=3 failures=0 unfinished=0 sent=6 ..."},
		{"-count 3", "a\nb", "sent=9 returned=9 connect_ms rounds=3 rtt_ms peer"},
		{"-count 5", data, "sent=5242880 returned=5242880 connect_ms rounds=5 rtt_ms peer"},
		{"-n 2 -count 2", data[1:], "connections=2 ok=2 failures=0 unfinished=0 sent=4194300 ..."},
	} {
		_, port := serve(t, "127.0.0.1:0", echoes)
		args := append(strings.Fields(test.args), "127.0.0.1", port)
		r := echomux(t, iotest.HalfReader(strings.NewReader(test.data)), args...)
		r.wantLine(t, 0, "ok", test.keys, "")
		if args[1] == "5" {
			r.wantStdout(t, strings.Repeat(data, 5))
		}
	}
	_, port := closedPort(t) // nobody connects before the input is known
	r := echomux(t, strings.NewReader(data+"x"), "-count", "2", "127.0.0.1", port)
	r.wantLine(t, 6, "failed", "sent=0 returned=0 rounds=0", "standard input: *1048576 bytes*")
	torn := iotest.ErrReader(errors.New("the tape is torn"))
	r = echomux(t, torn, "-count", "0", "127.0.0.1", port)
	r.wantLine(t, 6, "failed", "sent=0 returned=0 rounds=0", "standard input: the tape is torn")
}

// TestLargeMessages: rounds of more than a segment, which a path can lose where it passes small
// ones.
func TestLargeMessages(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", echoes)
	large := strings.Repeat("x", 140_000)
	r := echomux(t, nil, "-count", "4", "127.0.0.1", port, large)
	r.wantLine(t, 0, "ok", "sent=560004 returned=560004 connect_ms rounds=4 rtt_ms peer", "")
}

// TestOneWay streams in one direction only, -until eof.
func TestOneWay(t *testing.T) {
	t.Parallel()
	big := noise(8 << 20)
	var got bytes.Buffer
	sunk := make(chan struct{})
	_, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		io.Copy(&got, c)
		close(sunk)
	})
	r := echomux(t, bytes.NewReader(big), "-until", "eof", "127.0.0.1", port)
	r.wantLine(t, 0, "ok", "sent=8388608 returned=0 connect_ms exchange_ms mbit_s peer", "")
	<-sunk
	if !bytes.Equal(got.Bytes(), big) {
		t.Error("the server read other bytes")
	}
	_, port = serve(t, "127.0.0.1:0", func(c *net.TCPConn) { c.Write(big) })
	r = echomux(t, strings.NewReader(""), "-until", "eof", "127.0.0.1", port)
	r.wantLine(t, 0, "ok", "sent=0 returned=8388608 connect_ms exchange_ms mbit_s peer", "")
	r.wantStdout(t, string(big))
}

// TestReceiver: one that has nothing to say half-closes at once, and still wants every byte.
func TestReceiver(t *testing.T) {
	t.Parallel()
	got := make(chan int64, 1)
	_, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		c.CloseWrite()
		n, _ := io.Copy(io.Discard, c)
		got <- n
	})
	input, user := io.Pipe()
	r := begin(input, "-until", "eof", "127.0.0.1", port)
	time.Sleep(300 * time.Millisecond)
	user.Write(make([]byte, 100_000))
	user.Close()
	r.end(t).wantLine(t, 0, "ok", "sent=100000 returned=0 ...", "")
	if n := <-got; n != 100_000 {
		t.Errorf("it received %d bytes", n)
	}
}

// TestEndsRace: the end of standard input and that of the peer come in any order, and the status is
// the same: all is back. Or it is not the same job: bytes follow that can no more be returned.
func TestEndsRace(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) { returns(c, 5) })
	for i := range 40 {
		input, user := io.Pipe()
		go func() {
			io.WriteString(user, "hello")
			time.Sleep(time.Duration(i) * 100 * time.Microsecond)
			user.Close()
		}()
		r := echomux(t, input, "127.0.0.1", port)
		r.wantLine(t, 0, "ok", "sent=5 returned=5 ...", "")
	}
	input := io.MultiReader(strings.NewReader("hello"), strings.NewReader("again"))
	r := echomux(t, iotest.OneByteReader(input), "127.0.0.1", port)
	if r.status != 1 {
		t.Errorf("half an echo is status %d", r.status)
	}
}

// TestByteInTheMiddle damages one byte of many: standard output ends exactly before it.
func TestByteInTheMiddle(t *testing.T) {
	t.Parallel()
	big := noise(4 << 20)
	const bad = 3<<20 + 7
	_, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		returns(c, bad)
		var b [1]byte
		c.Read(b[:])
		c.Write([]byte{^b[0]})
		echoes(c)
	})
	r := echomux(t, bytes.NewReader(big), "127.0.0.1", port)
	r.wantLine(t, 1, "failed", fmt.Sprintf("sent=* returned=%d ...", bad),
		fmt.Sprintf("byte %d differs: sent 0x%02x, came back 0x%02x: altered on the path",
			bad, big[bad], ^big[bad]))
	r.wantStdout(t, string(big[:bad]))
}

const (
	tooMuch     = 16 << 20 // more than the kernel takes for a peer that does not read
	smallBuffer = 64 << 10 // the peer's, for that
)

// TestRefusedBytes: a peer that takes no more bytes is as silent as one that returns none.
func TestRefusedBytes(t *testing.T) {
	t.Parallel()
	for _, until := range []string{"echo", "eof"} {
		t.Run(until, func(t *testing.T) {
			t.Parallel()
			_, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
				c.SetReadBuffer(smallBuffer)
				lingers(c)
			})
			r := echomux(t, nil, "-until", until, "-io-timeout", "500ms",
				"127.0.0.1", port, strings.Repeat("x", tooMuch))
			r.wantLine(t, 5, "failed", "sent=* returned=0 ...", "timed out after 500ms of silence*")
		})
	}
}

// TestSlowPeer takes our bytes slowly: each one that it takes is a sign of life.
func TestSlowPeer(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		c.SetReadBuffer(smallBuffer)
		for range 32 { // the first half: the kernel's buffers hide how the end is read
			reads(c, tooMuch/64)
			time.Sleep(125 * time.Millisecond)
		}
		ignores(c)
	})
	r := echomux(t, nil, "-until", "eof", "-io-timeout", "3s",
		"127.0.0.1", port, strings.Repeat("x", tooMuch))
	r.wantLine(t, 0, "ok", fmt.Sprintf("sent=%d returned=0 ...", tooMuch+1), "")
}

// TestForesight: the right bytes, but before they were sent, are no echo.
func TestForesight(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		c.SetReadBuffer(smallBuffer)
		chunk := bytes.Repeat([]byte("x"), 1<<20)
		for {
			_, err := c.Write(chunk)
			if err != nil {
				return
			}
		}
	})
	r := echomux(t, nil, "127.0.0.1", port, strings.Repeat("x", tooMuch))
	r.wantLine(t, 1, "failed", "sent=* returned=* ...",
		"more came back than was sent: byte * is 0x78: *")
}

// TestUnsent: -until eof, a peer that leaves before it has taken what there was to send. Its kernel
// resets the connection.
func TestUnsent(t *testing.T) {
	t.Parallel()
	faulty(t, "wine", "a reset reads as EOF")
	faulty(t, "qemu-mips", "SO_ERROR carries the host's error number")
	for _, size := range []int{tooMuch, 8 * smallBuffer} { // the kernel takes the smaller one
		_, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
			c.SetReadBuffer(smallBuffer)
			reads(c, 1)
			time.Sleep(200 * time.Millisecond)
			c.CloseWrite()
			time.Sleep(200 * time.Millisecond)
		})
		message := strings.Repeat("x", size)
		r := echomux(t, nil, "-until", "eof", "127.0.0.1", port, message)
		r.wantLine(t, 1, "failed", "sent=* returned=0 ...", "*: connection reset by peer")
	}
}

// TestSilentInput: the peer has ended, and whether that was right only the next read of standard
// input can tell, which does not come. That wait is ours: it is no silence of the peer's.
func TestSilentInput(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		until, cause string
	}{
		{"eof", "standard input was not at its end"},
		{"echo", "closed by the peer after *s of silence, before standard input ended"},
	} {
		t.Run(test.until, func(t *testing.T) {
			t.Parallel()
			_, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) { returns(c, 6) })
			input, user := io.Pipe()
			defer user.Close()
			go io.WriteString(user, "hello\n")
			start := time.Now()
			r := echomux(t, input, "-until", test.until, "-io-timeout", "3s", "127.0.0.1", port)
			keys := "sent=6 returned=6 connect_ms exchange_ms mbit_s peer"
			r.wantLine(t, 1, "failed", keys, test.cause)
			r.wantStdout(t, "hello\n")
			if took := time.Since(start); took < 3*time.Second {
				t.Errorf("it waited for %v", took)
			}
			if like(r.line(t).cause, "* after 3.*") {
				t.Errorf("the peer was not silent for so long: %q", r.line(t).cause)
			}
		})
	}
}

// TestTalksBeforeUs: nothing was sent, so any byte is one too many.
func TestTalksBeforeUs(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		io.WriteString(c, "220 ready\n")
		ignores(c)
	})
	r := echomux(t, silentStdin(t), "127.0.0.1", port)
	r.wantLine(t, 1, "failed", "sent=0 returned=0 ...",
		"more came back than was sent: byte 0 is 0x32: is this an echo server?")
	r.wantStdout(t, "")
}

// TestThinkingUser: the silence of the user is not the peer's.
func TestThinkingUser(t *testing.T) {
	t.Parallel()
	for _, until := range []string{"echo", "eof"} {
		t.Run(until, func(t *testing.T) {
			t.Parallel()
			_, port := serve(t, "127.0.0.1:0", echoes)
			stdin, user := io.Pipe()
			r := begin(stdin, "-until", until, "-io-timeout", "2s", "127.0.0.1", port)
			time.Sleep(2300 * time.Millisecond)
			for i := range 2 {
				io.WriteString(user, "hello\n")
				r.stdout.await(t, "hello\n", i+1)
				time.Sleep(2300 * time.Millisecond)
			}
			user.Close()
			r.end(t).wantLine(t, 0, "ok", "sent=12 returned=12 ...", "")
		})
	}
}

// TestTypingToTheDead: what is typed restarts no clock. The peer owes since the first line.
func TestTypingToTheDead(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", ignores)
	input, user := io.Pipe()
	defer user.Close()
	go func() {
		for {
			_, err := io.WriteString(user, "hello\n")
			if err != nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
	}()
	r := echomux(t, input, "-io-timeout", "1s", "127.0.0.1", port)
	r.wantLine(t, 5, "failed", "sent=* returned=0 ...", "timed out after 1s of silence (0 of *)")
}

func TestRefused(t *testing.T) {
	t.Parallel()
	faulty(t, "qemu-mips", "SO_ERROR carries the host's error number")
	_, port := closedPort(t)
	for _, flags := range []string{"-until echo", "-until eof", "-until connect"} {
		r := echomux(t, nil, append(strings.Fields(flags), "127.0.0.1", port)...)
		r.wantLine(t, 3, "failed", "sent=0 returned=0", "127.0.0.1: connection refused")
		r.wantLines(t, 1)
	}
	r := echomux(t, nil, "-count", "3", "127.0.0.1", port, "hello")
	r.wantLine(t, 3, "failed", "sent=0 returned=0 rounds=0", "127.0.0.1: connection refused")
}

func TestIPv6(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "[::1]:0", echoes)
	r := echomux(t, nil, "::1", port, "hello")
	r.wantLine(t, 0, "ok", "sent=6 returned=6 connect_ms exchange_ms peer="+at, "")
	r.wantStdout(t, "hello\n")
}

// TestMappedAddress: ::ffff:127.0.0.1 is IPv4, in the socket and in the report. The place is as it
// was asked for.
func TestMappedAddress(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "127.0.0.1:0", echoes)
	r := echomux(t, nil, "-4", "::ffff:127.0.0.1", port, "hello")
	r.wantLine(t, 0, "ok", "sent=6 returned=6 connect_ms exchange_ms peer="+at, "")
	if got := r.line(t).place; got != "[::ffff:127.0.0.1]:"+port {
		t.Errorf("the place is %s", got)
	}
}

// TestSource: the peer sees the address that was asked for. One that is not of this machine is a
// failure of this machine's, and addresses of the other family are passed over.
func TestSource(t *testing.T) {
	t.Parallel()
	from := make(chan string, 1)
	_, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		from <- c.RemoteAddr().(*net.TCPAddr).IP.String()
		echoes(c)
	})
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Skipf("no second address here: %v", err)
	}
	l.Close()
	for _, source := range []string{"127.0.0.2", "::ffff:127.0.0.3"} {
		r := echomux(t, nil, "-source", source, "127.0.0.1", port, "hello")
		r.wantLine(t, 0, "ok", done, "")
		if r.status != 0 {
			return // it saw nobody
		}
		if got := <-from; got != strings.TrimPrefix(source, "::ffff:") {
			t.Errorf("with -source %s the peer sees %s", source, got)
		}
	}
	for _, flags := range []string{"", "-n 3 ", "-until connect "} {
		args := append(strings.Fields(flags), "-source", "192.0.2.1", "127.0.0.1", port)
		r := echomux(t, strings.NewReader("x"), args...)
		if r.status != 6 || r.lines[0].cause != "cannot assign requested address" {
			t.Errorf("%s: status %d: %s", flags, r.status, tail(r.stderr))
		}
	}
	r := echomux(t, nil, "-source", "fe80::1%no-such-zone", "::1", port, "x")
	r.wantLine(t, 6, "failed", "sent=0 returned=0", `-source fe80::1%no-such-zone: zone "no-such-zone": *`)
	r = echomux(t, nil, "-source", "::1", "127.0.0.1", port, "x")
	r.wantLine(t, 3, "failed", "sent=0 returned=0", "lookup 127.0.0.1: no address of that family")
}

// elsewhere is a place with another time of day. Lines have UTC there too.
var elsewhere = time.FixedZone("elsewhere", 3*60*60)

// inside is a run in a world that is real but for what change replaces.
func inside(t testing.TB, change func(*world), args ...string) (*session, *running) {
	t.Helper()
	o, err := parse(args)
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPoller()
	if err != nil {
		t.Fatal(err)
	}
	r := &running{args: args, stdout: new(output), stderr: new(output), status: make(chan int, 1)}
	w := world{
		poller:  p,
		sockets: system{},
		clock:   newClock(),
		wall:    func() time.Time { return time.Now().In(elsewhere) },
		spawn:   func(f func()) { go f() },
		resolve: resolve,
		stdin:   strings.NewReader(""),
		stdout:  r.stdout,
		stderr:  r.stderr,
	}
	change(&w)
	s := newSession(o, w)
	go func() { r.status <- s.run() }()
	return s, r
}

// finds is a world in which every name has addrs, after a while.
func finds(pause time.Duration, addrs []netip.Addr, err error) func(*world) {
	return func(w *world) {
		w.resolve = func(string, string, time.Duration) ([]netip.Addr, error) {
			time.Sleep(pause)
			return addrs, err
		}
	}
}

// loopbacks are n addresses of this machine.
func loopbacks(n int) (addrs []netip.Addr) {
	for i := range n {
		addrs = append(addrs, netip.AddrFrom4([4]byte{127, 0, byte(i / 250), byte(1 + i%250)}))
	}
	return addrs
}

// TestAddressOrder: addresses are tried as the resolver gives them, each once, and all that failed
// are named, 128 at most.
func TestAddressOrder(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "127.0.0.1:0", echoes)
	mapped := netip.MustParseAddr("::ffff:127.0.0.1")
	addrs := append(loopbacks(3)[1:], mapped, loopbacks(1)[0])
	_, run := inside(t, finds(0, addrs, nil), "name.example", port, "hello")
	run.end(t).wantLine(t, 0, "ok", "sent=6 returned=6 connect_ms exchange_ms peer="+at, "")

	faulty(t, "qemu-mips", "SO_ERROR carries the host's error number")
	_, port = closedPort(t)
	want := ""
	for _, a := range loopbacks(128) {
		want += "; " + a.String() + ": connection refused"
	}
	addrs = append(loopbacks(1), loopbacks(1000)...)
	_, run = inside(t, finds(0, addrs, nil), "-connect-timeout", "1m", "name.example", port, "x")
	run.end(t).wantLine(t, 3, "failed", "sent=0 returned=0", want[2:])
	_, run = inside(t, finds(0, addrs, nil), "-6", "name.example", port, "hello")
	run.end(t).wantLine(t, 3, "failed", "sent=0 returned=0",
		"lookup name.example: no address of that family")
}

// TestLookupTime: the look-up is part of the time to connect, whatever it is stuck in; without a
// limit it may take as long as it likes.
func TestLookupTime(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", echoes)
	for _, test := range []struct {
		flags              string
		pause, least, most time.Duration
		status             int
		word, keys, cause  string
	}{
		{"-connect-timeout 0", 4 * time.Second, 4 * time.Second, hang, 0, "ok", done, ""},
		{"-connect-timeout 1s", 30 * time.Second, time.Second, 20 * time.Second, 4, "failed",
			"sent=0 returned=0", "lookup name.example: timed out"},
		{"-connect-timeout 30s", time.Second, time.Second, hang, 0, "ok", done, ""},
	} {
		t.Run(test.flags, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			args := append(strings.Fields(test.flags), "name.example", port, "hello")
			_, run := inside(t, finds(test.pause, loopbacks(1), nil), args...)
			r := run.end(t)
			r.wantLine(t, test.status, test.word, test.keys, test.cause)
			took := time.Since(start)
			if took < test.least || took > test.most {
				t.Errorf("it took %v", took)
			}
			if test.status == 0 {
				r.line(t).below(t, "connect_ms", 0, time.Second)
			}
		})
	}
}

// TestLocalhost has two addresses wherever IPv6 is configured: the one that works is found, and
// when none does, all are named.
func TestLocalhost(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", echoes)
	echomux(t, nil, "localhost", port, "hello").wantLine(t, 0, "ok", done, "")
	_, port = closedPort(t)
	faulty(t, "qemu-mips", "SO_ERROR carries the host's error number")
	r := echomux(t, nil, "localhost", port, "hello")
	r.wantLine(t, 3, "failed", "sent=0 returned=0", "*127.0.0.1: connection refused*")
}

// TestNoAddress: what is not connected because HOST has no address names HOST.
func TestNoAddress(t *testing.T) {
	t.Parallel()
	for args, cause := range map[string]string{
		"-4 ::1 7 x":                "lookup ::1: no address of that family",
		"-6 127.0.0.1 7 x":          "lookup 127.0.0.1: no address of that family",
		"-6 ::ffff:127.0.0.1 7 x":   "lookup ::ffff:127.0.0.1: no address of that family",
		"fe80::1%nosuchzone 7 x":    "lookup fe80::1%nosuchzone: *nosuchzone*",
		"-6 fe80::1%nosuchzone 7 x": "lookup fe80::1%nosuchzone: *nosuchzone*",
	} {
		r := echomux(t, nil, strings.Fields(args)...)
		r.wantLine(t, 3, "failed", "sent=0 returned=0", cause)
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
	_, port := serve(t, "127.0.0.1:0", echoes)
	r := beginTo(&failingWriter{3}, nil, "127.0.0.1", port, "hello").end(t)
	r.wantLine(t, 6, "failed", done, "standard output: the disk is full")
	r = beginTo(&failingWriter{8}, nil, "-count", "3", "127.0.0.1", port, "hello").end(t)
	r.wantLine(t, 6, "failed", "sent=* returned=12 connect_ms rounds=2 rtt_ms peer",
		"standard output: the disk is full")

	torn := iotest.ErrReader(errors.New("the tape is torn"))
	stdin := io.MultiReader(strings.NewReader("hello\n"), torn)
	r = echomux(t, stdin, "127.0.0.1", port)
	r.wantLine(t, 6, "failed", "sent=* returned=* ...", "standard input: the tape is torn")
}

// TestReaderGone is | head -1: nobody reads what comes back any more.
func TestReaderGone(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", echoes)
	head, stdout, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdout.Close()
	run := beginTo(stdout, nil, "-count", "0", "-every", "10ms", "-v", "127.0.0.1", port, "hello")
	io.ReadFull(head, make([]byte, 6))
	head.Close()
	r := run.end(t)
	r.wantLine(t, 6, "failed", "sent=* returned=* connect_ms rounds=* rtt_ms peer",
		"standard output: nobody reads it any more")
}

// slowWriter takes its time for each of its first two writes.
type slowWriter struct {
	pause  time.Duration
	writes int
}

func (w *slowWriter) Write(p []byte) (int, error) {
	w.writes++
	if w.writes <= 2 {
		time.Sleep(w.pause)
	}
	return len(p), nil
}

// TestSlowOutput: a slow reader of our output is back-pressure, not silence of the peer, and no
// figure holds it.
func TestSlowOutput(t *testing.T) {
	t.Parallel()
	_, port := serve(t, "127.0.0.1:0", echoes)
	for _, test := range []struct {
		name, flags string
		size        int
		keys        string
		figure      string
		index       int
	}{
		{"many reads", "-io-timeout 2s", 1 << 20,
			"sent=1048577 returned=1048577 connect_ms exchange_ms peer", "connect_ms", 0},
		{"one read", "-io-timeout 2s", 5, done, "exchange_ms", 0},
		{"rounds", "-io-timeout 2s -count 3", 5,
			"sent=18 returned=18 connect_ms rounds=3 rtt_ms peer", "rtt_ms", 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			args := append(strings.Fields(test.flags), "127.0.0.1", port)
			args = append(args, strings.Repeat("x", test.size))
			r := beginTo(&slowWriter{pause: 3 * time.Second}, nil, args...).end(t)
			r.wantLine(t, 0, "ok", test.keys, "")
			r.line(t).below(t, test.figure, test.index, 3*time.Second)
		})
	}
}
