package test

import (
	"bytes"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// What peers do with a connection. A script is called with it, and when it returns, the connection
// is closed.
type script = func(*net.TCPConn)

// inOrder is a script that plays others, one after the other.
func inOrder(scripts ...script) script {
	return func(c *net.TCPConn) {
		for _, play := range scripts {
			play(c)
		}
	}
}

// inTurn plays the first script with the first connection that is accepted, and so on.
func inTurn(scripts ...script) script {
	var accepted atomic.Int64
	return func(c *net.TCPConn) { scripts[int(accepted.Add(1)-1)%len(scripts)](c) }
}

// echoes is what a peer should do.
func echoes(c *net.TCPConn) { io.Copy(c, c) }

// ignores reads to the end, and says nothing.
func ignores(c *net.TCPConn) { io.Copy(io.Discard, c) }

// closes is the end of a script.
func closes(*net.TCPConn) {}

// resets throws the connection away, with what has not arrived.
func resets(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

// halfCloses says that nothing more will be sent.
func halfCloses(c *net.TCPConn) { c.CloseWrite() }

// stands does nothing any more, not even read. (The connection is closed at the end of the test.)
func stands(*net.TCPConn) { select {} }

// rests does nothing for a moment, in which what was sent arrives.
func rests(*net.TCPConn) { time.Sleep(100 * time.Millisecond) }

// echo returns n bytes.
func echo(n int64) script { return func(c *net.TCPConn) { io.CopyN(c, c, n) } }

// take reads n bytes.
func take(n int64) script { return func(c *net.TCPConn) { io.CopyN(io.Discard, c, n) } }

func say(text string) script { return func(c *net.TCPConn) { io.WriteString(c, text) } }

// change reads n bytes, and returns what f makes of them, in one piece.
func change(n int, f func([]byte) []byte) script {
	return func(c *net.TCPConn) {
		p := make([]byte, n)
		io.ReadFull(c, p)
		c.Write(f(p))
	}
}

// flip alters one of n bytes.
func flip(n, at int) script {
	return change(n, func(p []byte) []byte {
		p[at] ^= 1
		return p
	})
}

// trickle returns n bytes, one at a time.
func trickle(n int, pause time.Duration) script {
	return func(c *net.TCPConn) {
		for range n {
			time.Sleep(pause)
			io.CopyN(c, c, 1)
		}
	}
}

// sip reads slowly and says nothing, so that room is made all the time.
func sip(c *net.TCPConn) {
	for {
		_, err := io.CopyN(io.Discard, c, 64<<10)
		if err != nil {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// crlf returns lines as some terminals would.
func crlf(p []byte) []byte { return bytes.ReplaceAll(p, []byte("\n"), []byte("\r\n")) }

// recorder echoes, and keeps what it has read.
type recorder struct {
	mu  sync.Mutex
	got []byte
}

func (r *recorder) play(c *net.TCPConn) {
	p := make([]byte, 64<<10)
	for {
		n, err := c.Read(p)
		if err != nil {
			return
		}
		r.mu.Lock()
		r.got = append(r.got, p[:n]...)
		r.mu.Unlock()
		c.Write(p[:n])
	}
}

// bytes are what was read so far, of all connections.
func (r *recorder) bytes() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.got
}

// editor echoes a stream in which the bytes between two offsets are replaced.
func editor(from, to int64, with func([]byte) []byte) script {
	return func(c *net.TCPConn) {
		echo(from)(c)
		change(int(to-from), with)(c)
		echoes(c)
	}
}

func twice(p []byte) []byte   { return append(p, p...) }
func nothing(p []byte) []byte { return nil }

func negated(p []byte) []byte {
	for i := range p {
		p[i] = ^p[i]
	}
	return p
}
