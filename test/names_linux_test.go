package test

import (
	"bytes"
	"encoding/binary"
	"maps"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Names, with a hosts file and name servers of the tests' own, in namespaces of their own.

const (
	typeA    = 1
	typeAAAA = 28
)

// question is a query of RFC 1035.
type question struct {
	raw   []byte // to the end of the question, without what EDNS adds
	name  string
	rtype uint16
}

func newQuestion(raw []byte) question {
	var labels []string
	at := 12 // behind the header
	for raw[at] != 0 {
		n := int(raw[at])
		labels = append(labels, string(raw[at+1:at+1+n]))
		at += 1 + n
	}
	return question{bytes.Clone(raw[:at+5]), strings.Join(labels, "."),
		binary.BigEndian.Uint16(raw[at+1:])}
}

// reply is an answer with a response code, and those of the addresses that were asked for.
func (q question) reply(code byte, addrs ...string) []byte {
	msg := bytes.Clone(q.raw)
	msg[2] = 0x81 // a response
	msg[3] = 0x80 | code
	msg[11] = 0 // no EDNS
	for _, text := range addrs {
		addr := netip.MustParseAddr(text)
		if addr.Is4() != (q.rtype == typeA) {
			continue
		}
		msg[7]++ // the number of records
		msg = append(msg, 0xc0, 12)
		msg = binary.BigEndian.AppendUint16(msg, q.rtype)
		msg = append(msg, 0, 1, 0, 0, 0, 60, 0, byte(addr.BitLen()/8))
		msg = append(msg, addr.AsSlice()...)
	}
	return msg
}

// answer is what a name server does; nil is silence.
type answer func(question) []byte

func silence(question) []byte        { return nil }
func hasNothing(q question) []byte   { return q.reply(0) }
func misbehaves(q question) []byte   { return q.reply(2) }
func noSuchName(q question) []byte   { return q.reply(3) }
func hasLoopbacks(q question) []byte { return q.reply(0, "127.0.0.1", "::1") }

// nameServer is at port 53 of an address. It keeps what it is asked for.
type nameServer struct {
	mu    sync.Mutex
	asked map[string]bool // such as "board.test A"
}

func newNameServer(t testing.TB, ip string, reply answer) *nameServer {
	t.Helper()
	conn, err := net.ListenPacket("udp", net.JoinHostPort(ip, "53"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	s := &nameServer{asked: map[string]bool{}}
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			q := newQuestion(buf[:n])
			s.note(q)
			msg := reply(q)
			if msg != nil {
				conn.WriteTo(msg, from)
			}
		}
	}()
	return s
}

func (s *nameServer) note(q question) {
	types := map[uint16]string{typeA: "A", typeAAAA: "AAAA"}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[q.name+" "+types[q.rtype]] = true
}

// echoPair is an echo server on both loopback addresses, at one port.
func echoPair(t testing.TB) (port string) {
	t.Helper()
	port = listen(t, "127.0.0.1:0", echoes)
	listen(t, "[::1]:"+port, echoes)
	return port
}

const timedOut = "lookup board.test: *timed out*"

const noSuchNameText = ": no such name, or no address of that family"

// TestNamesFamilies: where a name leads, and what the name server is asked for.
func TestNamesFamilies(t *testing.T) {
	if !inSpace(t) {
		return
	}
	port := echoPair(t)
	etc(t, "hosts", "127.0.0.1 file4.test\n::1 file6.test\n")
	etc(t, "resolv.conf", "nameserver 127.0.0.1\n")
	server := newNameServer(t, "127.0.0.1", func(q question) []byte {
		addrs := map[string][]string{"both.test": {"127.0.0.1", "::1"}, "four.test": {"127.0.0.1"},
			"six.test": {"::1"}, "none.test": {}}[q.name]
		if addrs == nil {
			return q.reply(3)
		}
		return q.reply(0, addrs...)
	})
	const four, six, failed = "peer=127.0.0.1:*", "peer=[::1]:*", "sent=0 peer="
	for _, test := range []struct {
		outcome
		asked string // with a space between
	}{
		{outcome{"", "both.test", 0, "", six}, "A AAAA"},
		{outcome{"-4", "both.test", 0, "", four}, "A"},
		{outcome{"-6", "both.test", 0, "", six}, "AAAA"},
		{outcome{"", "four.test", 0, "", four}, "A AAAA"},
		{outcome{"", "six.test", 0, "", six}, "A AAAA"},
		{outcome{"-6", "four.test", 3, "lookup four.test" + noSuchNameText, failed}, "AAAA"},
		{outcome{"-4", "six.test", 3, "lookup six.test" + noSuchNameText, failed}, "A"},
		{outcome{"", "none.test", 3, "lookup none.test" + noSuchNameText, failed}, "A AAAA"},
		{outcome{"", "wrong.test", 3, "lookup wrong.test" + noSuchNameText, failed}, "A AAAA"},
		{outcome{"", "file4.test", 0, "", four}, ""},
		{outcome{"-6", "file6.test", 0, "", six}, ""},
		{outcome{"-6", "file4.test", 3, "lookup file4.test" + noSuchNameText, failed}, ""},
	} {
		server.asked = map[string]bool{}
		test.check(t, port)
		want := map[string]bool{}
		for _, rtype := range strings.Fields(test.asked) {
			want[test.host+" "+rtype] = true
		}
		server.mu.Lock()
		if !maps.Equal(server.asked, want) {
			t.Errorf("%s %s: asked for %v, want %v", test.flags, test.host, server.asked, want)
		}
		server.mu.Unlock()
	}
}

// TestNamesServers: whose word counts, and that one silent name server does not cost the run.
func TestNamesServers(t *testing.T) {
	if !inSpace(t) {
		return
	}
	port := echoPair(t)
	rules(t, "ip daddr { 127.0.1.1, 127.0.1.2, 127.0.1.3, 127.0.1.4 } drop")
	addresses := func(q question) []byte {
		return q.reply(0, "127.0.1.1", "127.0.1.2", "127.0.1.3", "127.0.1.4", "127.0.0.1")
	}
	const noSuch = "lookup board.test" + noSuchNameText
	for _, test := range []struct {
		name    string
		servers []answer // at 127.0.0.1, 127.0.0.2 and so on; nil: nobody is there
		flags   string
		status  int
		cause   string
	}{
		{"the first is silent", []answer{silence, hasLoopbacks}, "", 0, ""},
		{"two are silent", []answer{silence, silence, hasLoopbacks}, "-connect-timeout 9s", 0, ""},
		{"nobody is at the first", []answer{nil, hasLoopbacks}, "", 0, ""},
		{"the first has failed", []answer{misbehaves, hasLoopbacks}, "", 0, ""},
		{"all are silent", []answer{silence, silence}, "-connect-timeout 1500ms", 4, timedOut},
		{"no limit, all are silent", []answer{silence}, "-connect-timeout 0", 4, timedOut},
		{"all have failed", []answer{misbehaves}, "", 3, "lookup board.test: *"},
		{"nobody is there", []answer{nil}, "", 3, "lookup board.test: *"},
		{"the first knows better", []answer{noSuchName, hasLoopbacks}, "", 3, noSuch},
		{"there is no address", []answer{hasNothing}, "", 3, noSuch},
		{"four of five addresses are dead", []answer{addresses}, "", 0, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			conf := ""
			for i, reply := range test.servers {
				ip := "127.0.0." + strconv.Itoa(1+i)
				conf += "nameserver " + ip + "\n"
				if reply != nil {
					newNameServer(t, ip, reply)
				}
			}
			etc(t, "resolv.conf", conf)
			outcome{test.flags, "board.test", test.status, test.cause, ""}.check(t, port)
		})
	}
}

// TestNamesStuck: a look-up that does not come back ends in time, and for a signal.
func TestNamesStuck(t *testing.T) {
	if !inSpace(t) {
		return
	}
	needSignals(t)
	etc(t, "resolv.conf", "nameserver 127.0.0.1\n")
	server := newNameServer(t, "127.0.0.1", silence)
	interrupt := func(isStuck func() bool) {
		t.Helper()
		p := command(t, nil, "-connect-timeout", "0", "board.test", "7").start(t)
		eventually(t, "the look-up has begun", isStuck)
		p.signal(t, syscall.SIGINT)
		began := time.Now()
		p.end(t).want(t, 130, "interrupted", "").wantValues(t, "sent=0 connect_ms=")
		if time.Since(began) > 5*time.Second {
			t.Errorf("a signal took %v", time.Since(began))
		}
	}
	interrupt(func() bool {
		server.mu.Lock()
		defer server.mu.Unlock()
		return server.asked["board.test A"]
	})
	err := syscall.Mkfifo("/etc/hosts", 0o644) // whoever opens it waits for a writer
	if err != nil {
		t.Fatal(err)
	}
	outcome{"-connect-timeout 1s", "board.test", 4, timedOut, ""}.check(t, "7")
	interrupt(func() bool {
		writer, err := os.OpenFile("/etc/hosts", os.O_WRONLY|syscall.O_NONBLOCK, 0)
		if err == nil { // so there is a reader
			t.Cleanup(func() { writer.Close() })
		}
		return err == nil
	})
}

// TestNamesExhausted: a look-up for which no descriptor is left is a failure of this machine, and
// not of the name.
func TestNamesExhausted(t *testing.T) {
	if !inSpace(t) {
		return
	}
	port := echoPair(t)
	etc(t, "resolv.conf", "nameserver 127.0.0.1\n")
	newNameServer(t, "127.0.0.1", hasLoopbacks)
	statuses := map[int]int{}
	for descriptors := 5; descriptors <= 16; descriptors++ {
		r := command(t, limited(descriptors), "board.test", port).start(t).end(t)
		said := r.stdout + r.stderr
		switch {
		case strings.Contains(r.stderr, "fatal error: "): // Go's own poller has found none
		case r.status == 0 || r.status == 6 && strings.Contains(said, tooMany):
			statuses[r.status]++
		default:
			t.Errorf("%d descriptors: exit status %d, %s", descriptors, r.status, said)
		}
		if strings.Contains(said, `"lookup board.test: `) {
			statuses[3]++
		}
	}
	if statuses[0] == 0 || statuses[3] == 0 {
		t.Errorf("no look-up has failed, or every run: %v", statuses)
	}
}

// TestNamesRaw: what is no printable ASCII in HOST could be a command for the terminal. (What is
// printed is checked for that wherever it is parsed.)
func TestNamesRaw(t *testing.T) {
	if !inSpace(t) {
		return
	}
	etc(t, "hosts", "")
	for _, host := range []string{"b\u00f6rd", "board\x1b[31m", "\xff\xfe", "a b", `"=\`,
		"::1%\x1b[31m", strings.Repeat("a", 5000)} {
		for _, flag := range []string{"-v", "-json"} {
			r := run(t, flag, host, "7")
			r.want(t, 3, "failed", "*").wantValues(t, "target=*:7")
		}
	}
}
