package test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// noise makes bytes that repeat nothing, always the same.
func noise(n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{}).Read(p)
	return p
}

// flood writes until the server takes no more, and returns how many bytes that were.
func flood(c *net.TCPConn, p []byte) int {
	c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	n, _ := c.Write(p)
	return n
}

// endServer ends a server, and wants what it has counted.
func endServer(t *testing.T, p *process, values string) {
	t.Helper()
	if echomux(t).hasSignals() {
		p.endBySignal(t, syscall.SIGTERM).want(t, 0, "ended", "").wantValues(t, values)
	}
}

// TestServePlaces: where it listens, and that it serves there.
func TestServePlaces(t *testing.T) {
	each(t, map[string][]string{ // the words, where that is, and clients
		"nothing":      {"0", "[::]:*", "127.0.0.1", "::1"},
		"a colon":      {":0", "[::]:*", "127.0.0.1", "::1"},
		"any":          {":: 0", "[::]:*", "127.0.0.1", "::1"},
		"any, IPv4":    {"0.0.0.0 0", "0.0.0.0:*", "127.0.0.1"},
		"IPv4":         {"127.0.0.1 0", "127.0.0.1:*", "127.0.0.1"},
		"IPv4, a word": {"127.0.0.1:0", "127.0.0.1:*", "127.0.0.1"},
		"IPv6":         {"::1 0", "[::1]:*", "::1"},
		"brackets":     {"[::1] 0", "[::1]:*", "::1"},
		"IPv6, a word": {"[::1]:0", "[::1]:*", "::1"},
		"JSON":         {"-json 127.0.0.1 0", "127.0.0.1:*", "127.0.0.1"},
	}, func(t *testing.T, c []string) {
		if strings.Contains(c[1], "::") && !hasIPv6() {
			t.Skip("this machine has no IPv6")
		}
		p := command(t, nil, append([]string{"-v", "-serve"}, strings.Fields(c[0])...)...)
		port := p.start(t).listening(t)
		for _, host := range c[2:] {
			run(t, host, port).want(t, 0, "ok", "")
			p.await(t, p.stderr, "accepted "+net.JoinHostPort(host, ""), 1)
		}
		clients := len(c[2:])
		endServer(t, p, fmt.Sprintf("at=%s clients=%d failed=0 received=%d returned=%d",
			c[1], clients, clients*roundSize, clients*roundSize))
	})
}

// TestServeFails: an address that cannot be listened on is a local failure.
func TestServeFails(t *testing.T) {
	t.Parallel()
	run(t, "-serve", "127.0.0.1", listen(t, "127.0.0.1:0", echoes)).want(t, 6, "failed", "* *")
	run(t, "-serve", "192.0.2.1", "0").want(t, 6, "failed", "* *")
	run(t, "-json", "-q", "-serve", "192.0.2.1", "0").want(t, 6, "failed", "* *")
}

// TestServeQuiet: with -q it says nothing.
func TestServeQuiet(t *testing.T) {
	t.Parallel()
	needSignals(t)
	p := command(t, nil, "-serve", "-q", "-v", "127.0.0.1", "0").start(t)
	p.await(t, p.stderr, "server: listening", 1)
	r := p.endBySignal(t, syscall.SIGTERM)
	if r.status != 0 || r.stdout != "" {
		t.Errorf("exit status %d, and it says %q", r.status, r.stdout)
	}
}

// recipe is run_client of the Python recipe, which sends the lines of standard input.
const recipe = `
import selectors, socket, sys
items = sys.stdin.buffer.readlines()
sent = received = 0
sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 50)
sock.setblocking(False)
poller = selectors.DefaultSelector()
poller.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
while items or received < sent:
    ready = poller.select(50)
    assert ready, "silence"
    for key, mask in ready:
        if mask & selectors.EVENT_WRITE:
            if items:
                n = sock.send(items[0])
                sent += n
                items[0] = items[0][n:]
                if not items[0]: items.pop(0)
            else:
                poller.modify(sock, selectors.EVENT_READ)
        if mask & selectors.EVENT_READ:
            data = sock.recv(1024)
            assert data, "closed early"
            sys.stdout.buffer.write(data)
            received += len(data)
sock.shutdown(socket.SHUT_WR)
`

// TestServeTools: clients that we have not written have every byte back.
func TestServeTools(t *testing.T) {
	data := noise(300_000)
	each(t, map[string][]string{
		"nc":     {"nc", "-N", "127.0.0.1", "PORT"},
		"ncat":   {"ncat", "127.0.0.1", "PORT"},
		"socat":  {"socat", "-t", "50", "-", "TCP:127.0.0.1:PORT"},
		"Python": {"python3", "-c", recipe, "PORT"},
	}, func(t *testing.T, words []string) {
		p, port := startServer(t, nil)
		words[0] = needTool(t, words[0])
		words[len(words)-1] = strings.Replace(words[len(words)-1], "PORT", port, 1)
		client := tool(t, words...)
		client.Stdin = bytes.NewReader(data)
		r := client.start(t).end(t)
		if words[1] == "-N" && r.status != 0 && r.stdout == "" {
			t.Skipf("this nc is not OpenBSD's: %s", r.stderr)
		}
		if r.status != 0 || r.stdout != string(data) {
			t.Errorf("status %d, %d bytes: %s", r.status, len(r.stdout), tail(r.stderr))
		}
		endServer(t, p, "clients=1 failed=0 received=300000 returned=300000")
	})
}

// echoServer is an echo server with Python's selectors.
const echoServer = `
import selectors, socket
poller = selectors.DefaultSelector()
listener = socket.create_server(("127.0.0.1", 0))
poller.register(listener, selectors.EVENT_READ)
print("127.0.0.1:%d" % listener.getsockname()[1], flush=True)
while True:
    for key, mask in poller.select():
        if key.fileobj is listener:
            poller.register(listener.accept()[0], selectors.EVENT_READ)
            continue
        data = key.fileobj.recv(1024)
        if data: key.fileobj.sendall(data)
        else: poller.unregister(key.fileobj); key.fileobj.close()
`

// TestServers: echo servers that we have not written return every byte.
func TestServers(t *testing.T) {
	each(t, map[string][]string{
		"socat":  {"socat", "-d", "-d", "TCP-LISTEN:0,bind=127.0.0.1,fork", "EXEC:cat"},
		"Python": {"python3", "-c", echoServer},
	}, func(t *testing.T, words []string) {
		words[0] = needTool(t, words[0])
		server := tool(t, words...).start(t)
		place := regexp.MustCompile(`127\.0\.0\.1:(\d+)\s`)
		var match []string
		eventually(t, "it listens", func() bool {
			match = place.FindStringSubmatch(server.stdout.String() + server.stderr.String())
			return match != nil
		})
		runTo(t, match[1], "").want(t, 0, "ok", "")
		l := runTo(t, match[1], "-n 3 -count 3 -size 20K").want(t, 0, "ok", "")
		l.wantValues(t, "sent=184320 rounds=9")
	})
}

// wantBack sends all bytes that are not sent yet, half-closes, and wants everything back, and
// then the end.
func wantBack(t *testing.T, c *net.TCPConn, all, unsent []byte) {
	t.Helper()
	c.SetDeadline(time.Now().Add(hang))
	go func() {
		c.Write(unsent)
		c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, all) {
		t.Errorf("%d bytes of %d are back, or others: %v", len(got), len(all), err)
	}
}

// TestServeBulk: many bytes for several clients at once, while another one has stopped reading.
// That blocks nobody else, and when it goes on, every byte is there.
func TestServeBulk(t *testing.T) {
	t.Parallel()
	p, port := startServer(t, nil)
	data := noise(32 << 20)
	stopped := dial(t, port)
	sent := flood(stopped, data)
	if sent == 0 || sent == len(data) {
		t.Fatalf("%d bytes were sent", sent)
	}
	var clients sync.WaitGroup
	const each = 2 << 20
	for range 4 {
		c := dial(t, port)
		clients.Go(func() { wantBack(t, c, data[:each], data[:each]) })
	}
	clients.Wait()
	wantBack(t, stopped, data[:sent], nil)
	total := sent + 4*each
	endServer(t, p, fmt.Sprintf("clients=5 failed=0 received=%d returned=%d", total, total))
}

func hello(c *net.TCPConn) {
	io.WriteString(c, "hello")
	io.ReadFull(c, make([]byte, 5))
}

func floods(c *net.TCPConn) { flood(c, make([]byte, 32<<20)) }

// client is what a client does, and what the server has counted then.
type client struct {
	play   script
	values string
}

// TestServeClients: what bad clients do is counted.
func TestServeClients(t *testing.T) {
	each(t, map[string]client{
		"says nothing":             {closes, "failed=0 received=0 returned=0"},
		"closes":                   {inOrder(hello, closes), "failed=0 received=5 returned=5"},
		"half-closes, and waits":   {inOrder(hello, halfCloses, ignores), "failed=0 returned=5"},
		"resets":                   {inOrder(hello, resets), "failed=1 received=5 returned=5"},
		"resets, and has not read": {inOrder(floods, resets), "failed=1 received=*"},
		"closes, and has not read": {inOrder(floods, closes), "failed=1 received=*"},
		"stays":                    {hello, "failed=0 received=5 returned=5"},
	}, func(t *testing.T, c client) {
		p, port := startServer(t, nil, "-v")
		conn := dial(t, port)
		c.play(conn)
		if !strings.HasSuffix(t.Name(), "stays") {
			conn.Close()
			p.await(t, p.stderr, "server: closed", 1)
		}
		endServer(t, p, "clients=1 "+c.values)
	})
}

// TestServeMany: and it concerns nobody else.
func TestServeMany(t *testing.T) {
	t.Parallel()
	p, port := startServer(t, nil)
	for range 20 {
		for _, play := range []script{closes, resets, inOrder(hello, resets), hello} {
			play(dial(t, port))
		}
	}
	l := runTo(t, port, "-n 300 -count 3").want(t, 0, "ok", "")
	l.wantValues(t, "ok=300 rounds=900 sent=10800")
	checkNumbers(t, l)
	endServer(t, p, "clients=380 failed=* received=* returned=*")
}
