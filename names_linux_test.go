package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Names, with name servers of the tests' own. Each test has a network, an /etc and a host name to
// itself, so that no question leaves it. The program runs as a process and is judged by its exit
// status, by whom it connects to and by what the name servers were asked for.

const (
	typeA    = 1
	typeAAAA = 28
)

// nameSpace is faultSpace with an /etc that is empty.
func nameSpace(t *testing.T) bool {
	t.Helper()
	if !faultSpace(t) {
		return false
	}
	// Without a search line the resolver takes the host name's domain.
	err := unix.Sethostname([]byte("names"))
	if err == nil {
		err = unix.Mount("", "/etc", "tmpfs", 0, "")
	}
	if err != nil {
		t.Fatal(err)
	}
	return true
}

// etc writes a file of /etc, which is the test's own.
func etc(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join("/etc", name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// question is one query as the server got it.
type question struct {
	raw   []byte // to the end of the question, without what EDNS adds
	name  string
	rtype uint16
}

func (q question) String() string {
	switch q.rtype {
	case typeA:
		return q.name + " A"
	case typeAAAA:
		return q.name + " AAAA"
	}
	return fmt.Sprint(q.name, " ", q.rtype)
}

func newQuestion(raw []byte) (q question, err error) {
	const head = 12
	if len(raw) < head+5 {
		return q, fmt.Errorf("malformed query %x", raw)
	}
	var labels []string
	at := head
	for raw[at] != 0 {
		n := int(raw[at])
		if n > 63 || len(raw) < at+n+6 {
			return q, fmt.Errorf("malformed question %x", raw)
		}
		labels = append(labels, string(raw[at+1:at+1+n]))
		at += 1 + n
	}
	q.name = strings.Join(labels, ".")
	q.rtype = binary.BigEndian.Uint16(raw[at+1:])
	q.raw = bytes.Clone(raw[:at+5])
	return q, nil
}

// reply is the answer to q: a response code and records.
func (q question) reply(rcode byte, records ...[]byte) []byte {
	msg := bytes.Clone(q.raw)
	msg[2], msg[3] = 0x81, 0x80|rcode
	binary.BigEndian.PutUint16(msg[6:], uint16(len(records)))
	binary.BigEndian.PutUint16(msg[10:], 0)
	return append(msg, slices.Concat(records...)...)
}

// has is the answer of a name with the addresses: those of the type that was asked for.
func (q question) has(addrs ...string) []byte {
	var records [][]byte
	for _, a := range addrs {
		addr := netip.MustParseAddr(a)
		if addr.Is4() == (q.rtype == typeA) {
			records = append(records, record(q.rtype, addr.AsSlice()))
		}
	}
	return q.reply(0, records...)
}

// record belongs to the name in the question.
func record(rtype uint16, data []byte) []byte {
	r := []byte{0xc0, 12}
	r = binary.BigEndian.AppendUint16(r, rtype)
	r = append(r, 0, 1, 0, 0, 0, 60)
	return append(binary.BigEndian.AppendUint16(r, uint16(len(data))), data...)
}

// nameServer answers questions as answer says, nil being silence, and keeps what was asked.
type nameServer struct {
	answer func(question) []byte
	mu     sync.Mutex
	asked  []string
}

// take is what the server was asked for since the last call, in this order.
func (s *nameServer) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := s.asked
	s.asked = nil
	return asked
}

// newNameServer is at port 53 of an address, over UDP.
func newNameServer(t testing.TB, ip string, answer func(question) []byte) *nameServer {
	t.Helper()
	conn, err := net.ListenPacket("udp", net.JoinHostPort(ip, "53"))
	if err != nil {
		t.Fatal(err)
	}
	s := &nameServer{answer: answer}
	var answers sync.WaitGroup
	answers.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			q, ok := s.note(t, buf[:n])
			if ok {
				answers.Go(func() { // an answer that takes its time holds up no other
					if msg := answer(q); msg != nil {
						conn.WriteTo(msg, from)
					}
				})
			}
		}
	})
	t.Cleanup(func() {
		conn.Close()
		answers.Wait()
	})
	return s
}

func (s *nameServer) note(t testing.TB, raw []byte) (question, bool) {
	q, err := newQuestion(raw)
	if err != nil {
		t.Error(err)
		return q, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, q.String())
	return q, true
}

// overTCP has s answer over TCP too, after a pause.
func (s *nameServer) overTCP(t testing.TB, ip string, pause time.Duration, answer func(question) []byte) {
	t.Helper()
	serve(t, net.JoinHostPort(ip, "53"), func(c *net.TCPConn) {
		var size [2]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		raw := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(c, raw); err != nil {
			return
		}
		q, ok := s.note(t, raw)
		if ok {
			time.Sleep(pause)
			msg := answer(q)
			c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...))
		}
	})
}

func silence(question) []byte { return nil }

func noSuchName(q question) []byte { return q.reply(3) }

func serverFailure(q question) []byte { return q.reply(2) }

func loopbacksUp(q question) []byte { return q.has("127.0.0.1", "::1") }

// after answers so much later.
func answersAfter(pause time.Duration, answer func(question) []byte) func(question) []byte {
	return func(q question) []byte {
		time.Sleep(pause)
		return answer(q)
	}
}

// echoPair is an echo server on both loopback addresses at one port.
func echoPair(t testing.TB) (port string) {
	t.Helper()
	_, port = faultListen(t, "127.0.0.1", "0")
	faultListen(t, "::1", port)
	return port
}

// TestNamesFamilies: whom the program connects to, and what it asks for.
func TestNamesFamilies(t *testing.T) {
	if !nameSpace(t) {
		return
	}
	port := echoPair(t)
	s := newNameServer(t, "127.0.0.1", func(q question) []byte {
		switch q.name {
		case "both.test":
			return loopbacksUp(q)
		case "four.test":
			return q.has("127.0.0.1")
		case "six.test":
			return q.has("::1")
		}
		return q.reply(3)
	})
	etc(t, "resolv.conf", "nameserver 127.0.0.1\n")
	etc(t, "hosts", "127.0.0.1 file4.test alias.test\n::1 file6.test\n")
	for _, test := range []struct {
		flag, host string
		status     int
		words      string // of standard error
		asked      string
	}{
		{"-v", "both.test", 0, "", "A AAAA"},
		{"-v", "BOTH.test", 3, "no such name", "A AAAA"}, // the server keeps capitals apart, nobody else
		{"-4", "both.test", 0, "127.0.0.1:" + port, "A"},
		{"-6", "both.test", 0, "[::1]:" + port, "AAAA"},
		{"-v", "four.test", 0, "127.0.0.1:" + port, "A AAAA"},
		{"-v", "six.test", 0, "[::1]:" + port, "A AAAA"},
		{"-6", "four.test", 3, "lookup four.test", "AAAA"},
		{"-4", "six.test", 3, "lookup six.test", "A"},
		{"-v", "none.test", 3, "no such name", "A AAAA"},
		{"-v", "file4.test", 0, "127.0.0.1:" + port, ""},
		{"-v", "alias.test.", 0, "127.0.0.1:" + port, ""},
		{"-4", "File4.test", 0, "127.0.0.1:" + port, ""},
		{"-6", "file4.test", 3, "no address of that family", ""},
		{"-6", "file6.test", 0, "[::1]:" + port, ""},
		{"-4", "file6.test", 3, "no address of that family", ""},
	} {
		r, _ := faultRun(t, test.flag, test.host, port, "hello")
		r.wantName(t, test.status, test.host, test.words)
		var types []string
		for _, asked := range s.take() {
			name, rtype, _ := strings.Cut(asked, " ")
			types = append(types, rtype)
			if name != test.host {
				t.Errorf("%s: asked for %s", test.host, name)
			}
		}
		slices.Sort(types)
		if asked := strings.Join(types, " "); asked != test.asked {
			t.Errorf("%s %s: asked for %q, want %q", test.flag, test.host, asked, test.asked)
		}
	}
}

// TestNamesServers: which servers cost what time, and whose word counts.
func TestNamesServers(t *testing.T) {
	if !nameSpace(t) {
		return
	}
	port := echoPair(t)
	const second = time.Second
	late := answersAfter(1500*time.Millisecond, loopbacksUp)
	for _, test := range []struct {
		name    string
		answers []func(question) []byte // of 127.0.0.1, 127.0.0.2 and so on; nil: nobody is there
		options string                  // of resolv.conf
		flags   string
		status  int
		words   string
		least   time.Duration
	}{
		{"one that is dead", []func(question) []byte{silence, loopbacksUp}, "", "-connect-timeout 4s", 0, "", second},
		{"one that is dead, no limit", []func(question) []byte{silence, loopbacksUp}, "", "-connect-timeout 0", 0, "", second},
		{"one that is dead, one family", []func(question) []byte{silence, loopbacksUp}, "", "-4 -connect-timeout 4s", 0, "", second},
		{"one that is dead, one after the other", []func(question) []byte{silence, loopbacksUp}, "options single-request\n", "-connect-timeout 4s", 0, "", 2 * second},
		{"two that are dead", []func(question) []byte{silence, silence, loopbacksUp}, "", "-connect-timeout 4s", 0, "", 2 * second},
		{"one that is dead, and a search", []func(question) []byte{silence, func(q question) []byte {
			if q.name == "a.test.two.test" {
				return loopbacksUp(q)
			}
			return q.reply(3)
		}}, "search one.test two.test\noptions ndots:2\n", "-connect-timeout 4900ms", 0, "", 2 * second},
		{"one that is slow", []func(question) []byte{late}, "", "-connect-timeout 20s", 0, "", 2500 * time.Millisecond},
		{"one that is slow, one family", []func(question) []byte{late}, "", "-6 -connect-timeout 20s", 0, "", 2500 * time.Millisecond},
		{"one that is slow, and one that is dead", []func(question) []byte{late, silence}, "", "-connect-timeout 20s", 0, "", 3500 * time.Millisecond},
		{"nobody there, and one", []func(question) []byte{nil, loopbacksUp}, "", "-connect-timeout 4s", 0, "", 0},
		{"nobody there", []func(question) []byte{nil}, "", "-connect-timeout 4s", 3, "connection refused", 0},
		{"a failure, and one", []func(question) []byte{serverFailure, loopbacksUp}, "", "-connect-timeout 4s", 0, "", 0},
		{"a failure", []func(question) []byte{serverFailure}, "", "-connect-timeout 4s", 3, "server misbehaving", 0},
		{"no such name", []func(question) []byte{noSuchName}, "", "", 3, "no such name", 0},
		{"no address", []func(question) []byte{func(q question) []byte { return q.reply(0) }}, "", "", 3, "no such name", 0},
		{"no such name, and one", []func(question) []byte{noSuchName, loopbacksUp}, "", "", 3, "no such name", 0},
		{"no such name, the second says", []func(question) []byte{silence, noSuchName}, "", "-connect-timeout 4s", 3, "no such name", second},
		{"no such name, after a failure", []func(question) []byte{serverFailure, noSuchName}, "", "-connect-timeout 4s", 3, "no such name", 0},
		{"silence, to the end", []func(question) []byte{silence}, "", "-connect-timeout 1500ms", 4, "timed out", 1500 * time.Millisecond},
		{"silence, and a short end", []func(question) []byte{silence}, "", "-connect-timeout 100ms", 4, "timed out", 100 * time.Millisecond},
		{"silence, until the resolver gives up", []func(question) []byte{silence}, "options attempts:1\n", "-connect-timeout 30s", 4, "timed out", second},
	} {
		t.Run(test.name, func(t *testing.T) {
			conf := test.options
			var servers []*nameServer
			for i, answer := range test.answers {
				ip := "127.0.0." + strconv.Itoa(1+i)
				conf += "nameserver " + ip + "\n"
				if answer != nil {
					servers = append(servers, newNameServer(t, ip, answer))
				}
			}
			etc(t, "resolv.conf", conf)
			r, took := faultRun(t, append(strings.Fields(test.flags), "a.test", port, "hello")...)
			r.wantName(t, test.status, "a.test", test.words)
			t.Logf("it took %v", took)
			if took < test.least || took > test.least+4*time.Second {
				t.Errorf("it took %v", took)
			}
			if test.name == "no such name, and one" && len(servers[1].take()) > 0 {
				t.Error("the second one was asked too")
			}
		})
	}
}

// TestNamesOverTCP: an answer that no datagram holds comes over TCP, which has the resolver's time.
func TestNamesOverTCP(t *testing.T) {
	if !nameSpace(t) {
		return
	}
	port := echoPair(t)
	s := newNameServer(t, "127.0.0.1", func(q question) []byte {
		msg := q.reply(0)
		msg[2] |= 2 // truncated
		return msg
	})
	s.overTCP(t, "127.0.0.1", 1500*time.Millisecond, loopbacksUp)
	etc(t, "resolv.conf", "nameserver 127.0.0.1\n")
	r, took := faultRun(t, "-connect-timeout", "20s", "a.test", port, "hello")
	r.wantName(t, 0, "a.test", "")
	if asked := s.take(); len(asked) != 4 || took < 1500*time.Millisecond {
		t.Errorf("asked for %q in %v", asked, took)
	}
}

// TestNamesOverIPv6: a server's address may have a zone.
func TestNamesOverIPv6(t *testing.T) {
	if !nameSpace(t) {
		return
	}
	linkLocal(t)
	port := echoPair(t)
	newNameServer(t, "::1", loopbacksUp)
	newNameServer(t, "fe80::1%lo", loopbacksUp)
	for _, server := range []string{"::1", "fe80::1%lo"} {
		etc(t, "resolv.conf", "nameserver "+server+"\n")
		r, _ := faultRun(t, "a.test", port, "hello")
		r.wantName(t, 0, "a.test", "")
	}
}

// linkLocal gives lo the address fe80::1.
func linkLocal(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip(err)
	}
	out, err := exec.Command("ip", "address", "add", "fe80::1/64", "dev", "lo", "nodad").CombinedOutput()
	if err != nil {
		t.Skipf("no link-local address: %v: %s", err, out)
	}
}

// TestNamesZones: of an address on the command line and of one in a file.
func TestNamesZones(t *testing.T) {
	if !nameSpace(t) {
		return
	}
	linkLocal(t)
	_, port := faultListen(t, "fe80::1%lo", "0")
	ifi, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	index := strconv.Itoa(ifi.Index)
	etc(t, "hosts", "fe80::1%lo board.test\nfe80::1%nosuchzone lost.test\nfe80::1%\x1b[31m evil.test\n"+
		"fe80::1%"+strings.Repeat("x", 3000)+" long.test\n")
	for _, test := range []struct {
		host   string
		status int
		words  string
	}{
		{"fe80::1%lo", 0, ""},
		{"fe80::1%" + index, 0, ""},
		{"board.test", 0, ""},
		{"fe80::1%" + strconv.FormatInt(1<<32+int64(ifi.Index), 10), 3, "zone"}, // no number of 32 bits, and no name
		{"fe80::1%nosuchzone", 3, "nosuchzone"},
		{"fe80::1%\x1b[31m", 3, `zone "\x1b[31m"`},
		{"fe80::1%" + strings.Repeat("x", 3000), 3, "zone"},
		{"lost.test", 3, "nosuchzone"},
		{"evil.test", 3, `\x1b[31m`},
		{"long.test", 3, "xxx"},
	} {
		for _, flag := range []string{"-v", "-6"} {
			r, _ := faultRun(t, flag, test.host, port, "hello")
			faultTidy(t, r)
			r.wantName(t, test.status, "", test.words)
		}
	}
}

// TestNamesSearch: the names that a host can stand for, in their order.
func TestNamesSearch(t *testing.T) {
	if !nameSpace(t) {
		return
	}
	port := echoPair(t)
	var exists atomic.Value // the only name that there is
	s := newNameServer(t, "127.0.0.1", func(q question) []byte {
		if q.name == exists.Load() {
			return loopbacksUp(q)
		}
		return q.reply(3)
	})
	for _, test := range []struct {
		conf, host, exists string
		asked              string
	}{
		{"search one.test two.test", "www", "www.two.test", "www.one.test www.two.test"},
		{"search one.test two.test", "www", "www", "www.one.test www.two.test www"},
		{"search one.test two.test", "www.x", "www.x.two.test", "www.x www.x.one.test www.x.two.test"},
		{"search one.test\noptions ndots:2", "www.x", "www.x", "www.x.one.test www.x"},
		{"search one.test", "www.", "", "www"},
		{"domain one.test", "www", "www.one.test", "www.one.test"},
		{"", "www", "www", "www"},
	} {
		exists.Store(test.exists)
		etc(t, "resolv.conf", "nameserver 127.0.0.1\n"+test.conf+"\n")
		r, _ := faultRun(t, "-4", test.host, port, "hello")
		if test.exists == "" {
			r.wantName(t, 3, test.host, "no such name")
		} else {
			r.wantName(t, 0, test.host, "")
		}
		asked := strings.ReplaceAll(strings.Join(s.take(), " "), " A", "")
		if asked != test.asked {
			t.Errorf("%q, %s: asked for %q, want %q", test.conf, test.host, asked, test.asked)
		}
	}
}

// TestNamesNotAsked: what is no name, what is loopback's, and what no DNS message can hold.
func TestNamesNotAsked(t *testing.T) {
	if !nameSpace(t) {
		return
	}
	port := echoPair(t)
	s := newNameServer(t, "127.0.0.1", func(q question) []byte { return q.has("127.0.0.9", "2001:db8::9") })
	etc(t, "resolv.conf", "nameserver 127.0.0.1\nsearch one.test\n")
	etc(t, "hosts", "192.0.2.1 localhost localhost.test\n")
	for _, host := range []string{"localhost", "localhost.", "LocalHost", "board.localhost", "a.b.LOCALHOST."} {
		for _, flag := range []string{"-v", "-4", "-6"} {
			r, _ := faultRun(t, flag, host, port, "hello")
			r.wantName(t, 0, host, "")
		}
	}
	for _, host := range []string{"127.1", "1.2.3.256", "256.256.256.256", "1", "1.", "a.2", "[a.test]", "::1::"} {
		r, _ := faultRun(t, host, port, "hello")
		r.wantName(t, 2, "", host)
	}
	for _, host := range []string{strings.Repeat("x", 64), strings.Repeat("x.", 200), "a..b", "..", ".a", "a b", "\x7f.test", "\xff.test",
		"n\u00e4me.test", "a\x1bb.test"} {
		r, _ := faultRun(t, host, port, "hello")
		faultTidy(t, r)
		r.wantName(t, 3, "", "no such name")
	}
	if asked := s.take(); len(asked) > 0 {
		t.Errorf("asked for %q", asked)
	}
	r, _ := faultRun(t, "notlocalhost", port, "hello")
	if asked := s.take(); r.status != 3 || len(asked) != 2 {
		t.Errorf("notlocalhost: status %d, asked for %q", r.status, asked)
	}
}

// TestNamesEmptyEtc: without any file there is loopback, and a name server that may be there too.
func TestNamesEmptyEtc(t *testing.T) {
	if !nameSpace(t) {
		return
	}
	os.Remove("/etc/hosts")
	os.Remove("/etc/resolv.conf")
	port := echoPair(t)
	r, _ := faultRun(t, "localhost", port, "hello")
	r.wantName(t, 0, "localhost", "")
	r, _ = faultRun(t, "a.test", port, "hello")
	r.wantName(t, 3, "a.test", "connection refused")
	newNameServer(t, "127.0.0.1", loopbacksUp)
	r, _ = faultRun(t, "a.test", port, "hello")
	r.wantName(t, 0, "a.test", "")
}

// TestNamesHostileServer: what stands in resolv.conf reaches no terminal as it is.
func TestNamesHostileServer(t *testing.T) {
	if !nameSpace(t) {
		return
	}
	for _, zone := range []string{"\x1b[31m", "\u202e\xff", strings.Repeat("x", 9000)} {
		etc(t, "resolv.conf", "nameserver fe80::1%"+zone+"\n")
		for _, flag := range []string{"-q", "-v"} {
			r, _ := faultRun(t, flag, "a.test", "7", "hello")
			faultTidy(t, r)
			r.wantName(t, 3, "a.test", "name server")
			if len(r.stderr) > 1000 {
				t.Errorf("%d bytes on standard error", len(r.stderr))
			}
		}
	}
}

// TestNamesDescriptors: a look-up gives back what it takes, whatever comes of it.
func TestNamesDescriptors(t *testing.T) {
	if !nameSpace(t) {
		return
	}
	port := echoPair(t)
	newNameServer(t, "127.0.0.1", func(q question) []byte {
		switch q.name {
		case "a.test":
			return loopbacksUp(q)
		case "silent.test":
			return nil
		}
		return q.reply(3)
	})
	etc(t, "resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
	look := func() {
		echomux(t, nil, "a.test", port, "hello").wantName(t, 0, "a.test", "")
		echomux(t, nil, "none.test", port, "hello").wantName(t, 3, "none.test", "no such name")
		echomux(t, nil, "-connect-timeout", "50ms", "silent.test", port, "hello").wantName(t, 4, "silent.test", "timed out")
	}
	held := func() (n int) {
		fds, err := filepath.Glob("/proc/self/fd/*")
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			what, _ := os.Readlink(fd)
			if !strings.HasPrefix(what, "pipe:") { // the echo server's io.Copy keeps some, for splice(2)
				n++
			}
		}
		return n
	}
	before := held() + 2 // the Go runtime's poller, which may be there already
	for range 20 {
		look()
	}
	eventually(t, func() bool { return held() <= before }, func() string {
		return fmt.Sprintf("%d descriptors before, %d after", before, held())
	})
}

// TestNamesFewDescriptors: whatever the limit is, a look-up ends well or as a local failure.
func TestNamesFewDescriptors(t *testing.T) {
	if !nameSpace(t) {
		return
	}
	port := echoPair(t)
	newNameServer(t, "127.0.0.1", loopbacksUp)
	etc(t, "resolv.conf", "nameserver 127.0.0.1\n")
	ended := map[int]int{}
	for limit := 4; limit < 16; limit++ {
		r := command(t, "1", limited(limit), "a.test", port, "hello").start(t).end(t)
		ended[r.status]++
		if r.status != 0 && (r.status != 6 || !strings.Contains(r.stderr, "too many open files")) {
			t.Errorf("with %d descriptors: status %d: %s", limit, r.status, tail(r.stderr))
		}
	}
	if ended[0] < 4 || ended[6] < 4 {
		t.Errorf("exit statuses and how many of them: %v", ended)
	}
}

// TestNamesElsewhere is what ECHOMUX_PROGRAM says instead of this test binary: echomux of another
// system, in this one's emulation of it, with the resolver that it has there. Of an emulation whose
// sockets live elsewhere only the addresses that it tries can be seen.
func TestNamesElsewhere(t *testing.T) {
	if os.Getenv("ECHOMUX_PROGRAM") == "" {
		t.Skip("ECHOMUX_PROGRAM names no program of another system")
	}
	if !nameSpace(t) {
		return
	}
	port := echoPair(t)
	newNameServer(t, "127.0.0.1", func(q question) []byte {
		switch q.name {
		case "both.test":
			return loopbacksUp(q)
		case "silent.test":
			return nil
		}
		return q.reply(3)
	})
	etc(t, "resolv.conf", "nameserver 127.0.0.1\n")
	for flag, tried := range map[string]string{"-4": "127.0.0.1", "-6": "::1"} {
		r, _ := faultRun(t, flag, "both.test", port, "hello")
		if r.status != 0 && r.status != 3 || !strings.Contains(r.lastLine(), tried) {
			t.Errorf("%s: status %d: %q", flag, r.status, r.stderr)
		}
	}
	r, _ := faultRun(t, "none.test", port, "hello")
	r.wantName(t, 3, "none.test", "no such name")
	r, took := faultRun(t, "-connect-timeout", "1500ms", "silent.test", port, "hello")
	r.wantName(t, 4, "silent.test", "timed out")
	t.Logf("silence took %v", took)
	if took < 1500*time.Millisecond || took > 6*time.Second {
		t.Errorf("it took %v", took)
	}
}
