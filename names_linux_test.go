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

// overTCP has s answer over TCP too.
func (s *nameServer) overTCP(t testing.TB, ip string, answer func(question) []byte) {
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
			msg := answer(q)
			c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...))
		}
	})
}

func silence(question) []byte { return nil }

func noSuchName(q question) []byte { return q.reply(3) }

func serverFailure(q question) []byte { return q.reply(2) }

func loopbacks(q question) []byte { return q.has("127.0.0.1", "::1") }

// after answers so much later.
func after(pause time.Duration, answer func(question) []byte) func(question) []byte {
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
			return loopbacks(q)
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
		{"-v", "BOTH.test", 3, "no such name", "A AAAA"}, // this server tells capitals apart
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

// answers are name servers at 127.0.0.1, 127.0.0.2 and so on; where one is nil nobody is there.
type answers []func(question) []byte

var (
	late     = after(1500*time.Millisecond, loopbacks)
	noRecord = func(q question) []byte { return q.reply(0) }
	onlyTwo  = func(q question) []byte { return q.onlyIn("a.test.two.test") }
	patient  = "options timeout:20\n" // longer than any test has
	searches = "search one.test two.test\noptions ndots:2\n"
)

func (q question) onlyIn(name string) []byte {
	if q.name == name {
		return loopbacks(q)
	}
	return q.reply(3)
}

// TestNamesServers: which servers cost what time, and whose word counts. Without a limit of its own
// for the first try, a dead server would cost what resolv.conf says.
func TestNamesServers(t *testing.T) {
	if !nameSpace(t) {
		return
	}
	port := echoPair(t)
	for _, test := range []struct {
		name    string
		answers answers
		conf    string // lines of resolv.conf
		flags   string // "-connect-timeout" and what follows it
		status  int
		words   string // of standard error
		leastMs int
	}{
		{"dead, good", answers{silence, loopbacks}, patient, "15s", 0, "", 1000},
		{"dead, good, IPv4", answers{silence, loopbacks}, patient, "15s -4", 0, "", 1000},
		{"dead, good, A then AAAA", answers{silence, loopbacks},
			patient + "options single-request\n", "15s", 0, "", 2000},
		{"dead, dead, good", answers{silence, silence, loopbacks}, patient, "15s", 0, "", 2000},
		{"dead, good, and a search", answers{silence, onlyTwo},
			patient + searches, "15s", 0, "", 2000},
		{"slow", answers{late}, "", "20s", 0, "", 2500},
		{"slow, IPv6", answers{late}, "", "20s -6", 0, "", 2500},
		{"slow, dead", answers{late, silence}, "", "20s", 0, "", 3500},
		{"nobody, good", answers{nil, loopbacks}, "", "15s", 0, "", 0},
		{"nobody", answers{nil}, "", "15s", 3, "connection refused", 0},
		{"failure, good", answers{serverFailure, loopbacks}, "", "15s", 0, "", 0},
		{"failure", answers{serverFailure}, "", "15s", 3, "misbehaving", 0},
		{"no such name", answers{noSuchName}, "", "15s", 3, "no such name", 0},
		{"no address", answers{noRecord}, "", "15s", 3, "no such name", 0},
		{"dead, no such name", answers{silence, noSuchName},
			patient, "15s", 3, "no such name", 1000},
		{"failure, no such name", answers{serverFailure, noSuchName},
			"", "15s", 3, "no such name", 0},
		{"silence", answers{silence}, "", "1500ms", 4, "timed out", 1500},
		{"silence, and little time", answers{silence}, "", "100ms", 4, "timed out", 100},
		{"silence, and the resolver gives up", answers{silence},
			patient + "options attempts:1\n", "15s", 4, "timed out", 1000},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.answers.start(t, test.conf)
			flags := strings.Fields("-connect-timeout " + test.flags)
			r, took := faultRun(t, append(flags, "a.test", port, "hello")...)
			r.wantName(t, test.status, "a.test", test.words)
			t.Logf("it took %v", took)
			least := time.Duration(test.leastMs) * time.Millisecond
			if took < least || took > least+10*time.Second {
				t.Errorf("it took %v, which should be %v", took, least)
			}
		})
	}
}

// start has the servers answer, and resolv.conf name them.
func (a answers) start(t testing.TB, conf string) (servers []*nameServer) {
	t.Helper()
	for i, answer := range a {
		ip := "127.0.0." + strconv.Itoa(1+i)
		conf += "nameserver " + ip + "\n"
		if answer != nil {
			servers = append(servers, newNameServer(t, ip, answer))
		}
	}
	etc(t, "resolv.conf", conf)
	return servers
}

// TestNamesFirstWord: a server's "no such name" is not asked about elsewhere.
func TestNamesFirstWord(t *testing.T) {
	if !nameSpace(t) {
		return
	}
	servers := answers{noSuchName, loopbacks}.start(t, "")
	r, _ := faultRun(t, "a.test", "7", "hello")
	r.wantName(t, 3, "a.test", "no such name")
	if asked := servers[1].take(); len(asked) > 0 {
		t.Errorf("the second one was asked for %q", asked)
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
	s.overTCP(t, "127.0.0.1", late)
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
	newNameServer(t, "::1", loopbacks)
	newNameServer(t, "fe80::1%lo", loopbacks)
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
	ip := exec.Command("ip", "address", "add", "fe80::1/64", "dev", "lo", "nodad")
	out, err := ip.CombinedOutput()
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
	beyond := strconv.FormatInt(1<<32+int64(ifi.Index), 10)
	etc(t, "hosts", "fe80::1%lo board.test\nfe80::1%nosuchzone lost.test\n"+
		"fe80::1%\x1b[31m evil.test\nfe80::1%"+strings.Repeat("x", 3000)+" long.test\n")
	for _, test := range []struct {
		host   string
		status int
		words  string
	}{
		{"fe80::1%lo", 0, ""},
		{"fe80::1%" + index, 0, ""},
		{"board.test", 0, ""},
		{"fe80::1%" + beyond, 3, "zone"}, // no number of 32 bits, and no name
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
	var exists string // set while no process runs
	s := newNameServer(t, "127.0.0.1", func(q question) []byte {
		if q.name == exists {
			return loopbacks(q)
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
		exists = test.exists
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
	s := newNameServer(t, "127.0.0.1", func(q question) []byte {
		return q.has("127.0.0.9", "2001:db8::9")
	})
	etc(t, "resolv.conf", "nameserver 127.0.0.1\nsearch one.test\n")
	etc(t, "hosts", "192.0.2.1 localhost localhost.test\n")
	for _, host := range []string{"localhost", "localhost.", "LocalHost", "board.localhost",
		"a.b.LOCALHOST."} {
		for _, flag := range []string{"-v", "-4", "-6"} {
			r, _ := faultRun(t, flag, host, port, "hello")
			r.wantName(t, 0, host, "")
		}
	}
	for _, host := range []string{"127.1", "1.2.3.256", "256.256.256.256", "1", "1.", "a.2",
		"[::1]", "::1::", "a:7", "127.0.0.1:7"} {
		r, _ := faultRun(t, host, port, "hello")
		r.wantName(t, 2, "", host)
	}
	for _, host := range []string{strings.Repeat("x", 64), strings.Repeat("x.", 200), "a..b", "..",
		".a", "a b", "\x7f.test", "\xff.test", "n\u00e4me.test", "a\x1bb.test"} {
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
	newNameServer(t, "127.0.0.1", loopbacks)
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
			return loopbacks(q)
		case "silent.test":
			return nil
		}
		return q.reply(3)
	})
	etc(t, "resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
	look := func() {
		echomux(t, nil, "a.test", port, "hello").wantName(t, 0, "a.test", "")
		echomux(t, nil, "none.test", port, "hello").wantName(t, 3, "none.test", "no such name")
		r := echomux(t, nil, "-connect-timeout", "50ms", "silent.test", port, "hello")
		r.wantName(t, 4, "silent.test", "timed out")
	}
	held := func() (n int) {
		fds, err := filepath.Glob("/proc/self/fd/*")
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			what, _ := os.Readlink(fd)
			if !strings.HasPrefix(what, "pipe:") { // io.Copy of the echo server keeps some
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
	newNameServer(t, "127.0.0.1", loopbacks)
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
	program := strings.Fields(os.Getenv("ECHOMUX_PROGRAM"))
	if len(program) == 0 {
		t.Skip("ECHOMUX_PROGRAM names no program of another system")
	}
	if !nameSpace(t) {
		return
	}
	port := echoPair(t)
	newNameServer(t, "127.0.0.1", func(q question) []byte {
		switch q.name {
		case "both.test":
			return loopbacks(q)
		case "silent.test":
			return nil
		}
		return q.reply(3)
	})
	etc(t, "resolv.conf", "nameserver 127.0.0.1\n")
	elsewhere := func(args ...string) (result, time.Duration) {
		p := command(t, "1", nil, args...)
		p.Path, p.Args = program[0], append(slices.Clone(program), args...)
		start := time.Now()
		return p.start(t).end(t), time.Since(start)
	}
	for flag, tried := range map[string]string{"-4": "127.0.0.1:" + port, "-6": "[::1]:" + port} {
		r, _ := elsewhere(flag, "both.test", port, "hello")
		if r.status != 0 && r.status != 3 || !strings.Contains(r.lastLine(), tried) {
			t.Errorf("%s: status %d: %q", flag, r.status, r.stderr)
		}
	}
	r, _ := elsewhere("none.test", port, "hello")
	r.wantName(t, 3, "none.test", "no such name")
	r, took := elsewhere("-connect-timeout", "1500ms", "silent.test", port, "hello")
	r.wantName(t, 4, "silent.test", "timed out")
	t.Logf("silence took %v", took)
	if took < 1500*time.Millisecond || took > 8*time.Second {
		t.Errorf("it took %v", took)
	}
}
