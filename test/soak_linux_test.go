package test

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"net"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A soak: -serve under all kinds of clients at once, for as long as one likes. What it holds at the
// end is what it has held before.

var soak = flag.Duration("soak", 0, "how long TestSoak lasts; 0: it is left out")

// soakClient is what a client does with a connection to an echo server.
type soakClient func(c *net.TCPConn, random *rand.Rand, data []byte) error

var soakClients = []soakClient{
	// Two that want all back. One of them reads late.
	func(c *net.TCPConn, _ *rand.Rand, data []byte) error { return wholeEcho(c, data, 0) },
	func(c *net.TCPConn, random *rand.Rand, data []byte) error {
		return wholeEcho(c, data, random.IntN(2000))
	},
	// One that has nothing to say, and one that does not even end.
	func(c *net.TCPConn, random *rand.Rand, _ []byte) error { return wholeEcho(c, nil, 0) },
	func(c *net.TCPConn, random *rand.Rand, _ []byte) error { return pause(random.IntN(2000)) },
	// Some that reset: at once, after single bytes, or when they have read a part.
	func(c *net.TCPConn, random *rand.Rand, _ []byte) error { return c.SetLinger(0) },
	func(c *net.TCPConn, random *rand.Rand, data []byte) error {
		for range random.IntN(20) {
			c.Write(data[:1])
			pause(random.IntN(100))
		}
		return c.SetLinger(0)
	},
	func(c *net.TCPConn, random *rand.Rand, data []byte) error {
		go c.Write(data)
		take(random.Int64N(int64(len(data))))(c)
		return c.SetLinger(0)
	},
	// One that leaves without reading.
	func(c *net.TCPConn, random *rand.Rand, data []byte) error {
		c.Write(data)
		return pause(random.IntN(200))
	},
	// One that sends for as long as it can, and never reads.
	func(c *net.TCPConn, random *rand.Rand, data []byte) error {
		c.SetWriteDeadline(time.Now().Add(time.Duration(random.IntN(1000)) * time.Millisecond))
		var err error
		for err == nil {
			_, err = c.Write(data)
		}
		return pause(random.IntN(2000))
	},
}

func pause(ms int) error {
	time.Sleep(time.Duration(ms) * time.Millisecond)
	return nil
}

// wholeEcho sends data and a FIN, and wants all of it back, to the server's FIN.
func wholeEcho(c *net.TCPConn, data []byte, ms int) error {
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		c.Write(data)
		c.CloseWrite()
	}()
	pause(ms)
	got, err := io.ReadAll(c)
	<-sent
	if err == nil && !bytes.Equal(got, data) {
		err = errors.New("other bytes came back, or not all")
	}
	return err
}

// startLong starts the program without a limit to its time.
func startLong(t *testing.T, args ...string) *process {
	p := command(t, nil, args...)
	unlimited := exec.Command(p.Args[0], p.Args[1:]...)
	unlimited.Stdout = p.stdout
	unlimited.Stderr = p.stderr
	ownGroup(unlimited)
	p.Cmd = unlimited
	t.Cleanup(func() { killGroup(p.Cmd) })
	return p.start(t)
}

// TestSoak has faithful clients of the program itself all the time, and sixty others that come and
// go. The server stands still now and then.
func TestSoak(t *testing.T) {
	if *soak == 0 {
		t.Skip("it takes -soak, say -soak 10m; see .ci/soak")
	}
	needProcess(t)
	server := startLong(t, "-serve", "127.0.0.1", "0")
	port := server.listening(t)
	run(t, "127.0.0.1", port).want(t, 0, "ok", "")
	before := server.holds(t)
	patient := "-q -count 0 -connect-timeout 1m -io-timeout 1m "
	var faithful []*process
	for _, flags := range []string{"-n 100 -every 20ms", "-size 3M -every 100ms", "-every 5ms"} {
		args := append(strings.Fields(patient+flags), "127.0.0.1", port)
		faithful = append(faithful, startLong(t, args...))
	}
	end := time.Now().Add(*soak)
	var others sync.WaitGroup
	for seed := range uint64(60) {
		others.Go(func() { comeAndGo(t, port, seed, end) })
	}
	others.Go(func() { standAndGo(server, end) })
	time.Sleep(*soak / 2)
	half := server.holds(t)
	others.Wait()
	atLast := server.holds(t)
	for _, p := range faithful {
		p.signal(t, syscall.SIGTERM)
		l := p.end(t).want(t, 143, "interrupted", "")
		t.Log(l.text)
		if l.values["failed"] != "" {
			l.wantValues(t, "failed=0")
		}
	}
	t.Logf("before %+v, at half time %+v, at last %+v", before, half, atLast)
	if atLast.memory > half.memory*3/2+20_000 {
		t.Error("its memory grows")
	}
	if atLast.processor > 3*half.processor {
		t.Error("its work grows")
	}
	checkRest(t, server, before)
}

// comeAndGo is a client of one kind after the other.
func comeAndGo(t *testing.T, port string, seed uint64, end time.Time) {
	random := rand.New(rand.NewPCG(seed, seed))
	data := make([]byte, 300_000)
	for i := range data {
		data[i] = byte(random.Uint32())
	}
	for time.Now().Before(end) {
		c, err := net.DialTimeout("tcp", "127.0.0.1:"+port, time.Minute)
		if err != nil {
			t.Error(err)
			return
		}
		c.SetDeadline(time.Now().Add(time.Minute))
		kind := random.IntN(len(soakClients))
		err = soakClients[kind](c.(*net.TCPConn), random, data[:1+random.IntN(len(data))])
		c.Close()
		if err != nil {
			t.Errorf("client %d: %v", kind, err)
		}
		pause(random.IntN(500))
	}
}

// standAndGo has a process stand still now and then.
func standAndGo(p *process, end time.Time) {
	random := rand.New(rand.NewPCG(1, 2))
	for time.Now().Before(end) {
		p.Process.Signal(syscall.SIGSTOP)
		pause(random.IntN(500))
		p.Process.Signal(syscall.SIGCONT)
		pause(random.IntN(4000))
	}
}

// checkRest: a server whose clients have gone holds what it held before them, and does nothing.
func checkRest(t *testing.T, server *process, before holding) {
	t.Helper()
	eventually(t, "the descriptors are closed", func() bool {
		return server.holds(t).descriptors == before.descriptors
	})
	used := server.holds(t).processor
	pause(3000)
	used = server.holds(t).processor - used
	t.Logf("then %v of processor time in 3s", used)
	if used > 60*time.Millisecond {
		t.Errorf("it used %v of processor time in 3s without clients", used)
	}
	server.signal(t, syscall.SIGTERM)
	t.Log(server.end(t).want(t, 0, "ended", "").text)
}
