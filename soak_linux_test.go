package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A soak: hundreds of connections in both roles, and every fault at once. It takes -soak.

var soak = flag.Duration("soak", 0, "how long TestFaultSoak lasts; 0: it is left out")

const (
	soakPeers = 60     // misbehaving clients of each server at once
	soakMany  = 100    // connections of one run against misbehaving servers
	soakSize  = 20_001 // bytes that each of them sends
)

// soaking is what the parts of a soak share.
type soaking struct {
	t    *testing.T
	end  time.Time
	work sync.WaitGroup

	clients atomic.Int64 // that misbehaved
	runs    atomic.Int64 // of clients, against servers that misbehave
	honest  atomic.Int64 // connections of these that were echoed as they should be

	mu     sync.Mutex
	causes map[string]int // of failure, and how often each
}

func (s *soaking) goesOn() bool { return time.Now().Before(s.end) }

// note keeps a cause of failure.
func (s *soaking) note(cause string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.causes[cause]++
}

// report tells what there was, and each cause of failure.
func (s *soaking) report() {
	s.t.Logf("in %v: %d clients that misbehaved; %d runs of %d connections, %d to honest peers",
		*soak, s.clients.Load(), s.runs.Load(), soakMany, s.honest.Load())
	s.mu.Lock()
	defer s.mu.Unlock()
	for cause, n := range s.causes {
		s.t.Errorf("%d times: %s", n, cause)
	}
}

// soakProcess is a process of the soak without a limit to its time.
type soakProcess struct {
	*process
	name   string
	before processUsage
	middle processUsage
}

func (s *soaking) start(name string, launcher []string, args ...string) *soakProcess {
	p := commandFor(s.t, *soak+10*time.Minute, "1", launcher, args...).start(s.t)
	return &soakProcess{process: p, name: name}
}

// startFaithful is start for a client that does its part all the time.
func (s *soaking) startFaithful(name string, args ...string) *soakProcess {
	const patience = "1m"
	flags := []string{"-q", "-count", "0", "-connect-timeout", patience, "-io-timeout", patience}
	return s.start(name, nil, append(flags, args...)...)
}

// startServer is start for a server that is ready.
func (s *soaking) startServer(name, host string, launcher []string) (p *soakProcess, port string) {
	p = s.start(name, launcher, "-serve", host, "0")
	port = p.listening(s.t)[0].port()
	time.Sleep(100 * time.Millisecond)
	p.before = heldBy(s.t, p.process)
	return p, port
}

// TestFaultSoak: what a server holds afterwards is what it held before, and who did its part all
// the time was served all the time.
func TestFaultSoak(t *testing.T) {
	if *soak == 0 {
		t.Skip("it takes -soak, such as -soak 1m; .ci/faults gives it")
	}
	if !faultSpace(t) {
		return
	}
	newTunPath(t, 1500).set(10*time.Millisecond, 10)
	s := &soaking{t: t, causes: map[string]int{}}
	server, port := s.startServer("the server", "127.0.0.1", nil)
	short, shortPort := s.startServer("the server of 40 descriptors", "127.0.0.1", limited(40))
	far, farPort := s.startServer("the server behind the path", "192.0.2.1", nil)
	long := strings.Repeat("m", 3000)
	faithful := []*soakProcess{
		s.startFaithful("the client of 200 connections",
			"-n", "200", "-every", "10ms", "127.0.0.1", port, "hello"),
		s.startFaithful("the client behind the path", "-every", "50ms", "192.0.2.2", farPort, long),
	}
	s.end = time.Now().Add(*soak)
	s.misbehave(port, true)
	s.misbehave(shortPort, false)
	for seed := range uint64(2) {
		s.work.Go(func() { s.runAgainstFaults(seed) })
	}
	s.work.Go(func() { s.stopAndGo(server.process, faithful[0].process) })
	time.Sleep(*soak / 2)
	for _, p := range append(faithful, server, short, far) {
		p.middle = heldBy(t, p.process)
	}
	s.work.Wait()
	s.wantFaithful(faithful)
	servers := []*soakProcess{server, short, far}
	for _, p := range servers {
		s.wantAsBefore(p)
	}
	s.wantComplaints(short, shortPort)
	for _, p := range servers {
		s.wantGoroutines(p)
	}
	s.report()
}

// wantComplaints: a server without descriptors said so, not too often, and serves again.
func (s *soaking) wantComplaints(p *soakProcess, port string) {
	s.t.Helper()
	n := strings.Count(p.stderr.String(), "too many open files")
	if n == 0 || n > 2+int(*soak/time.Minute) {
		s.t.Errorf("%s complained %d times", p.name, n)
	}
	r := echomux(s.t, nil, "127.0.0.1", port, "hello")
	r.wantLine(s.t, 0, "ok", wholeHere, "")
}

// wantFaithful ends the clients that did their part, and wants that none of it failed.
func (s *soaking) wantFaithful(clients []*soakProcess) {
	s.t.Helper()
	for _, p := range clients {
		after := heldBy(s.t, p.process)
		s.t.Logf("%s, meanwhile: %v", p.name, p.middle)
		s.t.Logf("%s, at last:   %v", p.name, after)
		if after.fds != p.middle.fds || after.peak > 128<<10 {
			s.t.Errorf("%s: meanwhile %v, at last %v", p.name, p.middle, after)
		}
		p.signal(s.t, syscall.SIGTERM)
		r := p.end(s.t)
		keys := "sent returned connect_ms rounds rtt_ms ..."
		if strings.Contains(strings.Join(p.args, " "), " -n ") {
			keys = "connections ok=0 failures=0 unfinished ..."
		}
		r.wantLine(s.t, 143, "interrupted", keys, "")
		s.t.Log(r.line(s.t).text)
	}
}

// wantAsBefore wants that a server which nobody uses any more holds what it held at first.
func (s *soaking) wantAsBefore(p *soakProcess) {
	t := s.t
	t.Helper()
	eventually(t, func() bool { return heldBy(t, p.process).fds == p.before.fds }, func() string {
		return fmt.Sprintf("%s: at first %v, now %v", p.name, p.before, heldBy(t, p.process))
	})
	after := heldBy(t, p.process)
	t.Logf("%s, before:    %v", p.name, p.before)
	t.Logf("%s, meanwhile: %v", p.name, p.middle)
	t.Logf("%s, after:     %v", p.name, after)
	p.wantIdle(t, 2*time.Second)
	if after.peak > 128<<10 {
		t.Errorf("%s: memory grows: %v", p.name, after)
	}
}

// wantGoroutines ends a server with SIGQUIT, upon which Go lists its goroutines and those of its
// runtime: a dozen, however many clients there were.
func (s *soaking) wantGoroutines(p *soakProcess) {
	s.t.Helper()
	p.signal(s.t, syscall.SIGQUIT)
	<-p.over
	n := strings.Count(p.stderr.String(), "\ngoroutine ")
	s.t.Logf("%s, at last: %d goroutines", p.name, n)
	if n == 0 || n > 25 {
		s.t.Errorf("%s: %d goroutines: %s", p.name, n, tail(p.stderr.String()))
	}
}

// stopAndGo has processes stand still for a while, now and then.
func (s *soaking) stopAndGo(processes ...*process) {
	random := rand.New(rand.NewPCG(8, 9))
	for s.goesOn() {
		p := processes[random.IntN(len(processes))]
		p.Process.Signal(syscall.SIGSTOP)
		time.Sleep(time.Duration(random.IntN(500)) * time.Millisecond)
		p.Process.Signal(syscall.SIGCONT)
		time.Sleep(time.Duration(random.IntN(3000)) * time.Millisecond)
	}
}

// misbehave has clients misbehave towards a server, which may be one that cannot always serve.
func (s *soaking) misbehave(port string, serves bool) {
	for i := range soakPeers {
		n, _ := strconv.ParseUint(port, 10, 64)
		random := rand.New(rand.NewPCG(uint64(i), n))
		s.work.Go(func() {
			for s.goesOn() {
				time.Sleep(time.Duration(random.IntN(600)) * time.Millisecond)
				s.clients.Add(1)
				err := soakClient(port, random)
				if err != nil && serves {
					s.note("a client: " + stripPorts(err))
				}
			}
		})
	}
}

// stripPorts is an error's last part, so that the same causes have the same text.
func stripPorts(err error) string {
	text := err.Error()
	return text[strings.LastIndex(text, "->")+1:]
}

// soakClient misbehaves towards an echo server, once, in a way that random chooses. It complains of
// bytes that do not come back from where they should.
func soakClient(port string, random *rand.Rand) error {
	dialed, err := net.DialTimeout("tcp", "127.0.0.1:"+port, time.Minute)
	if err != nil {
		return err
	}
	c := dialed.(*net.TCPConn)
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	data := noise(1 + random.IntN(100_000))
	pause := func(most time.Duration) { time.Sleep(time.Duration(random.Int64N(int64(most)))) }
	return misbehaviour(c, random, data, pause)
}

// misbehaviour is what it does with its connection.
func misbehaviour(
	c *net.TCPConn, random *rand.Rand, data []byte, pause func(most time.Duration),
) error {
	switch random.IntN(9) {
	case 0: // says nothing
		pause(2 * time.Second)
	case 1: // leaves at once
		c.SetLinger(0)
	case 2: // is as it should be
		return wholeEcho(c, data, func() {})
	case 3: // reads late
		return wholeEcho(c, data, func() { pause(2 * time.Second) })
	case 4: // floods, and never reads
		c.SetWriteDeadline(time.Now().Add(time.Duration(random.Int64N(int64(time.Second)))))
		var err error
		for err == nil {
			_, err = c.Write(data)
			time.Sleep(time.Millisecond)
		}
		c.SetLinger(random.IntN(2) - 1)
	case 5: // sends single bytes and resets
		for range random.IntN(20) {
			c.Write(data[:1])
			pause(100 * time.Millisecond)
		}
		c.SetLinger(0)
	case 6: // half-closes at once
		return wholeEcho(c, nil, func() {})
	case 7: // leaves with bytes unread
		c.Write(data)
		pause(200 * time.Millisecond)
	case 8: // reads a part and resets
		go c.Write(data)
		io.CopyN(io.Discard, c, random.Int64N(int64(len(data))))
		pause(time.Second)
		c.SetLinger(0)
	}
	return nil
}

// wholeEcho sends data and a FIN, waits, and wants all of it back, to the server's FIN.
func wholeEcho(c *net.TCPConn, data []byte, wait func()) error {
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		c.Write(data)
		c.CloseWrite()
	}()
	wait()
	got, err := io.ReadAll(c)
	<-sent
	if err == nil && !bytes.Equal(got, data) {
		err = errors.New("other bytes came back, or not all")
	}
	return err
}

// runAgainstFaults has echomux prove paths to servers that misbehave.
func (s *soaking) runAgainstFaults(seed uint64) {
	for s.goesOn() {
		err := s.runAgainst(seed)
		if err != nil {
			s.note("a run against servers that misbehave: " + err.Error())
		}
	}
}

// runAgainst is one run of many connections, each of whose servers has a fate of its own: as many
// succeed as were echoed as they should be.
func (s *soaking) runAgainst(seed uint64) error {
	var seeds, good, done atomic.Int64
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Close()
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			random := rand.New(rand.NewPCG(uint64(s.runs.Load()), uint64(seeds.Add(1))<<1+seed))
			go func() {
				defer done.Add(1)
				defer c.Close()
				c.SetDeadline(time.Now().Add(time.Minute))
				if soakServer(c.(*net.TCPConn), random) {
					good.Add(1)
				}
			}()
		}
	}()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	r, err := s.runMany(port)
	if err != nil {
		return err
	}
	for seeds.Load() < soakMany || done.Load() < soakMany {
		time.Sleep(time.Millisecond)
	}
	s.runs.Add(1)
	s.honest.Add(good.Load())
	want := fmt.Sprintf(" ok=%d failures=%d unfinished=0 ", good.Load(), soakMany-good.Load())
	if r.status != 1 || !strings.Contains(r.stderr, want) {
		return fmt.Errorf("status %d, want%sin %s", r.status, want, tail(r.stderr))
	}
	return nil
}

// runMany is the run.
func (s *soaking) runMany(port string) (r result, err error) {
	args := []string{"-n", strconv.Itoa(soakMany), "-connect-timeout", "1m", "-io-timeout", "5s",
		"127.0.0.1", port, strings.Repeat("m", soakSize-1)}
	p := command(s.t, "1", nil, args...)
	err = p.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return r, err
	}
	status := p.ProcessState.ExitCode()
	p.stop()
	return newResult(s.t, args, status, p.stdout.String(), p.stderr.String()), nil
}

// soakServer misbehaves towards a client that awaits soakSize bytes; it tells whether it did not.
func soakServer(c *net.TCPConn, random *rand.Rand) (honest bool) {
	part := random.Int64N(soakSize)
	p := make([]byte, soakSize+1)
	switch fate := random.IntN(9); fate {
	case 0, 1, 2: // is as it should be, in one go or in pieces
		for n := int64(0); n < soakSize; {
			m := min(soakSize-n, 1+random.Int64N(soakSize))
			returns(c, m)
			n += m
			if fate > 0 {
				time.Sleep(time.Duration(random.IntN(100)) * time.Millisecond)
			}
		}
		echoes(c)
		return true
	case 3: // resets
		returns(c, part)
		resets(c)
	case 4: // closes early
		returns(c, part)
		ends(c)
	case 5: // returns another byte
		io.ReadFull(c, p[:soakSize])
		p[part] ^= 1 << random.IntN(8)
		c.Write(p[:soakSize])
		ignores(c)
	case 6: // returns one too many
		io.ReadFull(c, p[:soakSize])
		c.Write(p)
		ignores(c)
	case 7: // falls silent
		returns(c, part)
		ignores(c)
	case 8: // floods
		var err error
		for err == nil {
			_, err = c.Write(p)
		}
	}
	return false
}
