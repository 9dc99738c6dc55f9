package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// The resolver against name servers of the test's own, on loopback addresses that share a port.

const (
	typeA     = 1
	typeCNAME = 5
	typeAAAA  = 28
)

// question is one query as the server got it.
type question struct {
	raw   []byte
	name  string
	rtype uint16
	turn  int // how many the server got before
}

// newQuestion takes a query apart: any deviation from RFC 1035 is an error of the client's.
func newQuestion(raw []byte, turn int) (q question, err error) {
	q = question{raw: bytes.Clone(raw), turn: turn}
	if len(raw) < 17 || !bytes.Equal(raw[2:12], []byte{1, 0, 0, 1, 0, 0, 0, 0, 0, 0}) {
		return q, fmt.Errorf("malformed query %x", raw)
	}
	var labels []string
	rest := raw[12:]
	for rest[0] != 0 {
		n := int(rest[0])
		if n > 63 || len(rest) < n+6 {
			return q, fmt.Errorf("malformed question %x", raw)
		}
		labels, rest = append(labels, string(rest[1:1+n])), rest[1+n:]
	}
	q.name = strings.Join(labels, ".")
	if len(rest) != 5 || rest[3] != 0 || rest[4] != 1 {
		return q, fmt.Errorf("malformed question %x", raw)
	}
	q.rtype = binary.BigEndian.Uint16(rest[1:])
	return q, nil
}

// reply is the answer to q: a response code and records.
func (q question) reply(rcode byte, records ...[]byte) []byte {
	msg := bytes.Clone(q.raw)
	msg[2], msg[3] = 0x81, 0x80|rcode
	binary.BigEndian.PutUint16(msg[6:], uint16(len(records)))
	return append(msg, slices.Concat(records...)...)
}

// has is the answer of a name with the addresses: those of the type that was asked for.
func (q question) has(addrs ...string) []byte {
	var records [][]byte
	for _, a := range addrs {
		if addr := netip.MustParseAddr(a); addr.Is4() == (q.rtype == typeA) {
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

// nameServer answers each query with the datagrams that answer returns, and keeps what was asked.
type nameServer struct {
	conn  *net.UDPConn
	mu    sync.Mutex
	asked []string // "name A"
}

func (s *nameServer) questions() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

func newNameServer(t testing.TB, ip string, port uint16, answer func(question) [][]byte) *nameServer {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), port)))
	if err != nil && port == 0 && ip != "127.0.0.1" {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	s := &nameServer{conn: conn}
	over := make(chan struct{})
	t.Cleanup(func() { conn.Close(); <-over })
	go func() {
		defer close(over)
		for buf := make([]byte, 1<<16); ; {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			q, err := newQuestion(buf[:n], len(s.questions()))
			if err != nil {
				t.Error(err)
				continue
			}
			s.mu.Lock()
			s.asked = append(s.asked, q.name+map[uint16]string{typeA: " A", typeAAAA: " AAAA"}[q.rtype])
			s.mu.Unlock()
			for _, msg := range answer(q) {
				conn.WriteToUDPAddrPort(msg, from)
			}
		}
	}()
	return s
}

func (s *nameServer) port() uint16 { return uint16(s.conn.LocalAddr().(*net.UDPAddr).Port) }

// files is a resolver with a hosts file and a resolv.conf of these texts.
func files(t testing.TB, hosts, conf string, port uint16) resolver {
	t.Helper()
	r := resolver{filepath.Join(t.TempDir(), "hosts"), filepath.Join(t.TempDir(), "resolv.conf"), port}
	for path, text := range map[string]string{r.hosts: hosts, r.conf: conf} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// look returns the addresses of host in one string, or the error.
func look(t testing.TB, r resolver, host, family string, within time.Duration) (string, error) {
	t.Helper()
	type answer struct {
		addrs []netip.Addr
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		addrs, err := r.lookup(host, family, time.Now().Add(within))
		done <- answer{addrs, err}
	}()
	select {
	case a := <-done:
		return strings.Trim(fmt.Sprint(a.addrs), "[]"), a.err
	case <-time.After(hang):
		t.Fatalf("the lookup of %q hangs", host)
		panic("unreachable")
	}
}

func silence(question) [][]byte { return nil }

func hasBoth(q question) [][]byte { return [][]byte{q.has("192.0.2.1", "2001:db8::1")} }

// TestAnswers is one name server, and what it says to a question for "name.test".
func TestAnswers(t *testing.T) {
	t.Parallel()
	const within = 10 * time.Second
	hundred, hundredSpaced := [][]byte{}, ""
	for i := range 100 {
		hundred = append(hundred, record(typeA, []byte{192, 0, 2, byte(i)}))
		hundredSpaced += fmt.Sprintf(" 192.0.2.%d", i)
	}
	then := func(bad func(question) []byte) func(question) [][]byte { // the right answer follows
		return func(q question) [][]byte { return append([][]byte{bad(q)}, hasBoth(q)...) }
	}
	only := func(bad func(question) []byte) func(question) [][]byte {
		return func(q question) [][]byte { return [][]byte{bad(q)} }
	}
	changed := func(change func(msg []byte)) func(question) []byte {
		return func(q question) []byte {
			msg := q.has("192.0.2.66", "2001:db8::66")
			change(msg)
			return msg
		}
	}
	appended := func(tail ...byte) func(question) []byte { // one record says the header, and this is there
		return func(q question) []byte { return append(q.reply(0, nil), tail...) }
	}
	lyingID := changed(func(msg []byte) { msg[0] ^= 1 })
	wrongName := changed(func(msg []byte) { msg[13] ^= 3 })
	wrongType := changed(func(msg []byte) { msg[24] ^= typeA ^ typeAAAA })
	notAnswer := changed(func(msg []byte) { msg[2] &^= 0x80 })
	for _, test := range []struct {
		name   string
		answer func(question) [][]byte
		family string
		within time.Duration
		addrs  string
		err    string
	}{
		{"both", hasBoth, "ip", within, "2001:db8::1 192.0.2.1", ""},
		{"A only", only(func(q question) []byte { return q.has("192.0.2.1", "192.0.2.2") }), "ip", within, "192.0.2.1 192.0.2.2", ""},
		{"AAAA only", only(func(q question) []byte { return q.has("2001:db8::1", "2001:db8::2") }), "ip", within, "2001:db8::1 2001:db8::2", ""},
		{"several of both", only(func(q question) []byte {
			return q.has("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2")
		}), "ip", within, "2001:db8::1 192.0.2.1 192.0.2.2 2001:db8::2", ""},
		{"-4", hasBoth, "ip4", within, "192.0.2.1", ""},
		{"-6", hasBoth, "ip6", within, "2001:db8::1", ""},
		{"no such name", only(func(q question) []byte { return q.reply(3) }), "ip", within, "", "no such name"},
		{"no address", only(func(q question) []byte { return q.reply(0) }), "ip", within, "", "no such name"},
		{"failure", only(func(q question) []byte { return q.reply(2) }), "ip", within, "", "name server 127.0.0.1:PORT: response code 2"},
		{"refused", only(func(q question) []byte { return q.reply(5) }), "ip", within, "", "name server 127.0.0.1:PORT: response code 5"},
		{"A, and a failure for AAAA", func(q question) [][]byte {
			if q.rtype == typeAAAA {
				return [][]byte{q.reply(2)}
			}
			return hasBoth(q)
		}, "ip", within, "192.0.2.1", ""},
		{"A, and silence for AAAA", func(q question) [][]byte {
			if q.rtype == typeAAAA {
				return nil
			}
			return hasBoth(q)
		}, "ip", within, "192.0.2.1", ""},
		{"an alias", only(func(q question) []byte {
			target := []byte("\x05other\x04test\x00")
			address := record(q.rtype, netip.MustParseAddr(map[uint16]string{typeA: "192.0.2.1", typeAAAA: "2001:db8::1"}[q.rtype]).AsSlice())
			return q.reply(0, record(typeCNAME, target), append(bytes.Clone(target), address[2:]...))
		}), "ip", within, "2001:db8::1 192.0.2.1", ""},
		{"a hundred", only(func(q question) []byte {
			if q.rtype == typeA {
				return q.reply(0, hundred...)
			}
			return q.reply(0)
		}), "ip", within, strings.TrimSpace(hundredSpaced), ""},
		{"in capitals", only(func(q question) []byte {
			msg := q.has("192.0.2.1", "2001:db8::1")
			copy(msg[12:], bytes.ToUpper(msg[12:22]))
			return msg
		}), "ip", within, "2001:db8::1 192.0.2.1", ""},
		{"twice", func(q question) [][]byte { return append(hasBoth(q), hasBoth(q)...) }, "ip", within, "2001:db8::1 192.0.2.1", ""},

		{"silence", silence, "ip", 300 * time.Millisecond, "", "timed out"},
		{"a lying id first", then(lyingID), "ip", within, "2001:db8::1 192.0.2.1", ""},
		{"a lying id", only(lyingID), "ip", 300 * time.Millisecond, "", "timed out"},
		{"a wrong name first", then(wrongName), "ip", within, "2001:db8::1 192.0.2.1", ""},
		{"a wrong name", only(wrongName), "ip", 300 * time.Millisecond, "", "timed out"},
		{"a wrong type", only(wrongType), "ip", 300 * time.Millisecond, "", "timed out"},
		{"the question", only(func(q question) []byte { return q.raw }), "ip", 300 * time.Millisecond, "", "timed out"},
		{"not an answer", only(notAnswer), "ip", 300 * time.Millisecond, "", "timed out"},
		{"an empty datagram first", then(func(question) []byte { return nil }), "ip", within, "2001:db8::1 192.0.2.1", ""},
		{"noise first", then(func(question) []byte { return noise(300) }), "ip", within, "2001:db8::1 192.0.2.1", ""},
		{"a header only", only(func(q question) []byte { return q.has()[:12] }), "ip", 300 * time.Millisecond, "", "timed out"},

		{"truncated, with addresses", only(changed(func(msg []byte) { msg[2] |= 2; msg[7] = 9 })), "ip", within, "2001:db8::66 192.0.2.66", ""},
		{"truncated, without", only(func(q question) []byte {
			msg := q.reply(0)
			msg[2] |= 2
			return msg
		}), "ip", within, "", "truncated"},
		{"more announced than there is", only(changed(func(msg []byte) { msg[6], msg[7] = 0xff, 0xff })), "ip", within, "", "malformed"},
		{"noise after the question", only(appended(noise(200)...)), "ip", within, "", "malformed"},
		{"a name that never ends", only(appended(bytes.Repeat([]byte{1, 'x'}, 200)...)), "ip", within, "", "malformed"},
		{"a label beyond the end", only(appended(63, 'x')), "ip", within, "", "malformed"},
		{"a reserved kind of label", only(appended(append([]byte{0x80, 0}, make([]byte, 40)...)...)), "ip", within, "", "malformed"},
		{"half a pointer", only(appended(0xc0)), "ip", within, "", "malformed"},
		{"data beyond the end", only(func(q question) []byte {
			msg := q.has("192.0.2.1", "2001:db8::1")
			return msg[:len(msg)-1]
		}), "ip", within, "", "malformed"},
		{"a pointer to itself", only(func(q question) []byte {
			loop := record(q.rtype, netip.MustParseAddr(map[uint16]string{typeA: "192.0.2.1", typeAAAA: "2001:db8::1"}[q.rtype]).AsSlice())
			loop[1] = byte(len(q.raw))
			return q.reply(0, loop)
		}), "ip", within, "2001:db8::1 192.0.2.1", ""},
		{"pointers to each other", only(func(q question) []byte {
			at := len(q.raw)
			one := append([]byte{1, 'x', 0xc0, byte(at + 16 + 2)}, record(typeCNAME, []byte{0xc0, byte(at)})[2:]...)
			return q.reply(0, one, one, q.has("192.0.2.1", "2001:db8::1")[at:])
		}), "ip", within, "2001:db8::1 192.0.2.1", ""},
		{"addresses of a wrong length and class", only(func(q question) []byte {
			chaos := record(q.rtype, make([]byte, map[uint16]int{typeA: 4, typeAAAA: 16}[q.rtype]))
			chaos[5] = 3
			good := q.has("192.0.2.1", "2001:db8::1")[len(q.raw):]
			return q.reply(0, record(q.rtype, []byte{1, 2, 3}), record(q.rtype, nil), record(typeA, make([]byte, 16)),
				record(typeAAAA, make([]byte, 4)), chaos, good)
		}), "ip", within, "2001:db8::1 192.0.2.1", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newNameServer(t, "127.0.0.1", 0, test.answer)
			r := files(t, "", "nameserver 127.0.0.1\noptions timeout:3 attempts:1\n", s.port())
			addrs, err := look(t, r, "name.test", test.family, test.within)
			want := strings.Replace(test.err, "PORT", fmt.Sprint(s.port()), 1)
			if addrs != test.addrs || (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%q, %v, want %q, %s", addrs, err, test.addrs, want)
			}
			if want == "timed out" && !errors.Is(err, errTimedOut) {
				t.Errorf("%v is no timeout", err)
			}
			for _, asked := range s.questions() {
				if family := map[string]string{"name.test A": "ip6", "name.test AAAA": "ip4"}[asked]; family == "" || family == test.family {
					t.Errorf("asked for %q with %s", asked, test.family)
				}
			}
		})
	}
}

// TestSpoofedAnswer comes from another port than the question went to.
func TestSpoofedAnswer(t *testing.T) {
	t.Parallel()
	other, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	// The server learns where the client is only from the datagram, so it listens itself.
	server, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		for buf := make([]byte, 1000); ; {
			n, from, err := server.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if q, err := newQuestion(buf[:n], 0); err == nil {
				other.WriteToUDPAddrPort(q.has("192.0.2.66", "2001:db8::66"), from)
			}
		}
	}()
	r := files(t, "", "nameserver 127.0.0.1\n", uint16(server.LocalAddr().(*net.UDPAddr).Port))
	if addrs, err := look(t, r, "name.test", "ip", 300*time.Millisecond); !errors.Is(err, errTimedOut) {
		t.Errorf("%q, %v", addrs, err)
	}
}

// TestServers: a server that is dead leaves the next one, and the connection, their time.
func TestServers(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		first  func(question) [][]byte // nil: nobody listens there
		silent bool
	}{
		{"nobody", nil, false},
		{"silence", silence, true},
		{"failure", func(q question) [][]byte { return [][]byte{q.reply(2)} }, false},
		{"nonsense", func(q question) [][]byte { return [][]byte{append(q.reply(0, nil), 0xff)} }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			good := newNameServer(t, "127.0.0.1", 0, hasBoth)
			if test.first != nil {
				newNameServer(t, "127.0.0.2", good.port(), test.first)
			}
			r := files(t, "", "nameserver 127.0.0.2\nnameserver 127.0.0.1\n", good.port())
			start := time.Now()
			addrs, err := look(t, r, "name.test", "ip", 6*time.Second)
			if addrs != "2001:db8::1 192.0.2.1" || err != nil {
				t.Errorf("%q, %v", addrs, err)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("it took %v of 6 s, and connecting is still to come", took)
			}
		})
	}
	t.Run("a name that does not exist is not asked for twice", func(t *testing.T) {
		t.Parallel()
		first := newNameServer(t, "127.0.0.1", 0, func(q question) [][]byte { return [][]byte{q.reply(3)} })
		second := newNameServer(t, "127.0.0.2", first.port(), hasBoth)
		r := files(t, "", "nameserver 127.0.0.1\nnameserver 127.0.0.2\n", first.port())
		if addrs, err := look(t, r, "name.test", "ip", 20*time.Second); err != errNoName || len(second.questions()) > 0 {
			t.Errorf("%q, %v; the second one was asked for %v", addrs, err, second.questions())
		}
	})
	t.Run("a name that only the second knows not to exist", func(t *testing.T) {
		t.Parallel()
		for _, failure := range []func(question) [][]byte{silence, func(q question) [][]byte { return [][]byte{q.reply(2)} }} {
			first := newNameServer(t, "127.0.0.1", 0, failure)
			newNameServer(t, "127.0.0.2", first.port(), func(q question) [][]byte { return [][]byte{q.reply(3)} })
			r := files(t, "", "nameserver 127.0.0.1\nnameserver 127.0.0.2\n", first.port())
			if addrs, err := look(t, r, "name.test", "ip", 4*time.Second); err != errNoName {
				t.Errorf("%q, %v", addrs, err)
			}
		}
	})
	t.Run("a search name that nobody knows about, and one that does not exist", func(t *testing.T) {
		t.Parallel()
		s := newNameServer(t, "127.0.0.1", 0, func(q question) [][]byte {
			if q.name == "name.one.test" {
				return [][]byte{q.reply(2)}
			}
			return [][]byte{q.reply(3)}
		})
		r := files(t, "", "nameserver 127.0.0.1\nsearch one.test\n", s.port())
		if addrs, err := look(t, r, "name", "ip", 4*time.Second); err == nil || !strings.Contains(err.Error(), "response code 2") {
			t.Errorf("%q, %v", addrs, err)
		}
	})
	t.Run("one that is slow", func(t *testing.T) {
		t.Parallel()
		s := newNameServer(t, "127.0.0.1", 0, func(q question) [][]byte {
			if q.turn == 0 {
				time.Sleep(2 * time.Second)
			}
			return hasBoth(q)
		})
		if addrs, err := look(t, files(t, "", "nameserver 127.0.0.1\n", s.port()), "name.test", "ip", 3500*time.Millisecond); err != nil {
			t.Errorf("%q, %v", addrs, err)
		}
	})
	t.Run("none that answers, for all the time there is", func(t *testing.T) {
		t.Parallel()
		s := newNameServer(t, "127.0.0.1", 0, silence)
		start := time.Now()
		addrs, err := look(t, files(t, "", "nameserver 127.0.0.1\n", s.port()), "name.test", "ip", time.Second)
		if took := time.Since(start); took < time.Second || !errors.Is(err, errTimedOut) || !strings.Contains(err.Error(), "127.0.0.1") {
			t.Errorf("%q, %v, after %v", addrs, err, took)
		}
	})
	t.Run("the fourth is not asked", func(t *testing.T) {
		t.Parallel()
		fourth := newNameServer(t, "127.0.0.1", 0, hasBoth)
		r := files(t, "", "nameserver 127.0.0.2\nnameserver 127.0.0.3\nnameserver 127.0.0.4\nnameserver 127.0.0.1\n", fourth.port())
		if addrs, err := look(t, r, "name.test", "ip", 20*time.Second); err == nil || len(fourth.questions()) > 0 {
			t.Errorf("%q, %v; asked for %v", addrs, err, fourth.questions())
		}
	})
	t.Run("over IPv6", func(t *testing.T) {
		t.Parallel()
		s := newNameServer(t, "::1", 0, hasBoth)
		r := files(t, "", "nameserver ::1\n", s.port())
		if addrs, err := look(t, r, "name.test", "ip", 20*time.Second); addrs != "2001:db8::1 192.0.2.1" {
			t.Errorf("%q, %v", addrs, err)
		}
	})
	t.Run("without resolv.conf", func(t *testing.T) {
		t.Parallel()
		s := newNameServer(t, "127.0.0.1", 0, hasBoth)
		r := resolver{"/nonexistent/hosts", "/nonexistent/resolv.conf", s.port()}
		if addrs, err := look(t, r, "name.test", "ip", 20*time.Second); addrs != "2001:db8::1 192.0.2.1" {
			t.Errorf("%q, %v", addrs, err)
		}
	})
}

// TestAttempts: lost datagrams are sent again, as often as resolv.conf says.
func TestAttempts(t *testing.T) {
	t.Parallel()
	loses := func(n int) func(question) [][]byte {
		return func(q question) [][]byte {
			if q.turn < n {
				return nil
			}
			return hasBoth(q)
		}
	}
	for _, test := range []struct {
		options string
		lost    int
		asked   int
		addrs   string
	}{
		{"timeout:2", 2, 4, "2001:db8::1 192.0.2.1"},
		{"timeout:2", 99, 4, ""}, // two attempts
		{"timeout:2 attempts:1", 99, 2, ""},
		{"timeout:2 attempts:3", 4, 6, "2001:db8::1 192.0.2.1"},
		{"timeout:0 attempts:0", 0, 2, "2001:db8::1 192.0.2.1"},
		{"timeout:x attempts:-1 attempts:99999999999999999999 ndots", 0, 2, "2001:db8::1 192.0.2.1"},
	} {
		t.Run(fmt.Sprint(test.options, " ", test.lost), func(t *testing.T) {
			t.Parallel()
			s := newNameServer(t, "127.0.0.1", 0, loses(test.lost))
			r := files(t, "", "nameserver 127.0.0.1\noptions rotate "+test.options+"\n", s.port())
			addrs, err := look(t, r, "name.test", "ip", 20*time.Second)
			if addrs != test.addrs || err != nil && !errors.Is(err, errTimedOut) {
				t.Errorf("%q, %v, want %q", addrs, err, test.addrs)
			}
			if asked := s.questions(); len(asked) != test.asked {
				t.Errorf("asked %v, want %d questions", asked, test.asked)
			}
		})
	}
}

// TestSearch: the names that a host can stand for, in their order.
func TestSearch(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		conf, host, exists string
		asked              string
	}{
		{"search one.test two.test", "www", "www.two.test", "www.one.test www.two.test"},
		{"search one.test two.test", "www", "www", "www.one.test www.two.test www"},
		{"search one.test two.test", "www.x", "www.x.two.test", "www.x www.x.one.test www.x.two.test"},
		{"search one.test\noptions ndots:2", "www.x", "www.x", "www.x.one.test www.x"},
		{"search one.test\noptions ndots:2", "www.x.y", "www.x.y.one.test", "www.x.y www.x.y.one.test"},
		{"options ndots:0\nsearch one.test", "www", "www.one.test", "www www.one.test"},
		{"search one.test\noptions ndots:5", "www.x.", "", "www.x"},
		{"search one.test", "www.", "", "www"},
		{"domain one.test", "www", "www.one.test", "www.one.test"},
		{"domain one.test\nsearch two.test three.test", "www", "www.three.test", "www.two.test www.three.test"},
		{"search one.test\ndomain two.test", "www", "www.two.test", "www.two.test"},
		{"search .one.test. two..test", "www", "www", "www.one.test www"},
		{"search", "www", "www", "www"},
		{"", "www", "www", "www"},
		{"# search one.test\n; search one.test\n\tsearch\ttwo.test # three.test", "www", "www.two.test", "www.two.test"},
	} {
		t.Run(test.conf+" "+test.host, func(t *testing.T) {
			t.Parallel()
			s := newNameServer(t, "127.0.0.1", 0, func(q question) [][]byte {
				if q.name == test.exists {
					return hasBoth(q)
				}
				return [][]byte{q.reply(3)}
			})
			addrs, err := look(t, files(t, "", "nameserver 127.0.0.1\n"+test.conf, s.port()), test.host, "ip4", 20*time.Second)
			if want := test.exists != ""; (addrs == "192.0.2.1") != want || (err == nil) != want || !want && err != errNoName {
				t.Errorf("%q, %v", addrs, err)
			}
			if asked := strings.ReplaceAll(strings.Join(s.questions(), " "), " A", ""); asked != test.asked {
				t.Errorf("asked for %s, want %s", asked, test.asked)
			}
		})
	}
}

// TestNames that no DNS message can hold are not asked for.
func TestNames(t *testing.T) {
	t.Parallel()
	label := strings.Repeat("x", 63)
	longest := strings.Join([]string{label, label, label, label[:61]}, ".") // 253
	s := newNameServer(t, "127.0.0.1", 0, hasBoth)
	r := files(t, "", "nameserver 127.0.0.1\n", s.port())
	for _, host := range []string{longest, longest + ".", label, "UPPER.test", "under_score.test"} {
		if addrs, err := look(t, r, host, "ip", 20*time.Second); addrs != "2001:db8::1 192.0.2.1" {
			t.Errorf("%q: %q, %v", host, addrs, err)
		}
	}
	before := len(s.questions())
	for _, host := range []string{longest + "x", longest + ".x", label + "x", label + "x.test", "a..b", ".", "..", ".a", "a b.test", "a\x00b.test",
		"a\x1b[2Jb.test", "a\nb.test", "\x7f.test", "n\u00e4me.test", "\xff.test", strings.Repeat("x.", 5000), strings.Repeat("x", 1<<20)} {
		if addrs, err := look(t, r, host, "ip", 20*time.Second); err != errNoName {
			t.Errorf("%.80q: %q, %v", host, addrs, err)
		}
	}
	if asked := s.questions()[before:]; len(asked) > 0 {
		t.Errorf("asked for %.100q", asked)
	}
}

// TestQueryIDs: an answer has to be guessed, so ids must not repeat or count.
func TestQueryIDs(t *testing.T) {
	t.Parallel()
	ids, steps := map[uint16]bool{}, map[uint16]bool{}
	for i, last := 0, uint16(0); i < 100; i++ {
		id := binary.BigEndian.Uint16(newQuery("name.test", typeA))
		ids[id], steps[id-last], last = true, true, id
	}
	if len(ids) < 90 || len(steps) < 90 {
		t.Errorf("a hundred queries with %d ids and %d steps between them", len(ids), len(steps))
	}
}

func TestHosts(t *testing.T) {
	t.Parallel()
	s := newNameServer(t, "127.0.0.1", 0, func(q question) [][]byte { return [][]byte{q.has("192.0.2.99")} })
	long := strings.Repeat("long ", 200_000)
	random := make([]byte, 1<<16)
	for r, i := rand.New(rand.NewPCG(3, 4)), 0; i < len(random); i++ {
		random[i] = byte(r.Uint32())
	}
	for _, test := range []struct {
		name, hosts, host, addrs string
	}{
		{"a name", "192.0.2.1 name.test\n", "name.test", "192.0.2.1"},
		{"an alias, tabs, a comment", "# head\n\n192.0.2.1\tother.test\t name.test # more.test\n", "name.test", "192.0.2.1"},
		{"no newline at the end", "192.0.2.1 name.test", "name.test", "192.0.2.1"},
		{"capitals", "192.0.2.1 Name.TEST", "nAME.test", "192.0.2.1"},
		{"a trailing dot", "192.0.2.1 name.test", "name.test.", "192.0.2.1"},
		{"carriage returns", "192.0.2.1 name.test\r\n", "name.test", "192.0.2.1"},
		{"several", "192.0.2.1 name.test\n2001:db8::1 name.test\n192.0.2.2 name.test\n", "name.test", "192.0.2.1 2001:db8::1 192.0.2.2"},
		{"commented out", "#192.0.2.1 name.test\n192.0.2.2 #name.test\n", "name.test", "192.0.2.99"},
		{"another name", "192.0.2.1 name.test.example\n192.0.2.2 a.name.test\n192.0.2.3 name\n", "name.test", "192.0.2.99"},
		{"an address only", "192.0.2.1\n\n192.0.2.2 \n", "name.test", "192.0.2.99"},
		{"no address", "name.test 192.0.2.1\n300.1.1.1 name.test\n", "name.test", "192.0.2.99"},
		{"an address with a zone", "fe80::1%lo name.test\n", "name.test", "fe80::1%lo"},
		{"garbage around", string(random) + "\n192.0.2.1 name.test\n" + string(random), "name.test", "192.0.2.1"},
		{"NULs", strings.Repeat("\x00", 1<<16) + "\n192.0.2.1 name.test\n", "name.test", "192.0.2.1"},
		{"a long line before", "192.0.2.7 " + long + "\n192.0.2.1 name.test\n", "name.test", "192.0.2.1"},
		{"empty", "", "name.test", "192.0.2.99"},
	} {
		r := files(t, test.hosts, "nameserver 127.0.0.1\n", s.port())
		if addrs, err := look(t, r, test.host, "ip", 20*time.Second); addrs != test.addrs {
			t.Errorf("%s: %q, %v, want %q", test.name, addrs, err, test.addrs)
		}
	}
	r := files(t, "", string(random)+"\nnameserver\nnameserver localhost\nnameserver 127.0.0.1\n"+string(random), s.port())
	r.hosts = t.TempDir() // a directory
	if addrs, err := look(t, r, "name.test", "ip4", 20*time.Second); addrs != "192.0.2.99" {
		t.Errorf("garbage around the name server: %q, %v", addrs, err)
	}
}

// TestLocalhostAlways: whatever a file lacks or a server says.
func TestLocalhostAlways(t *testing.T) {
	t.Parallel()
	s := newNameServer(t, "127.0.0.1", 0, func(q question) [][]byte { return [][]byte{q.has("192.0.2.66", "2001:db8::66")} })
	for hosts, want := range map[string]string{
		"":                                   "::1 127.0.0.1",
		"127.0.0.1 localhost\n":              "127.0.0.1 ::1 127.0.0.1", // the loop passes over what it has tried
		"127.0.0.1 localhost\n::1 localhost": "127.0.0.1 ::1 ::1 127.0.0.1",
		"::1 ip6-localhost\n192.0.2.1 other": "::1 127.0.0.1",
	} {
		r := files(t, hosts, "nameserver 127.0.0.1\nsearch one.test\n", s.port())
		for _, host := range []string{"localhost", "localhost.", "LocalHost"} {
			if addrs, err := look(t, r, host, "ip", 20*time.Second); addrs != want || err != nil {
				t.Errorf("%s with %q: %q, %v, want %q", host, hosts, addrs, err, want)
			}
		}
		if addrs, err := look(t, r, "board.localhost", "ip", 20*time.Second); addrs != "::1 127.0.0.1" || err != nil {
			t.Errorf("board.localhost: %q, %v", addrs, err)
		}
	}
	if asked := s.questions(); len(asked) > 0 {
		t.Errorf("asked for %v", asked)
	}
	r := resolver{"/nonexistent", "/nonexistent", 1}
	if addrs, err := look(t, r, "localhost", "ip4", 20*time.Second); !strings.Contains(addrs, "127.0.0.1") || err != nil {
		t.Errorf("without any file: %q, %v", addrs, err)
	}
	if addrs, err := look(t, files(t, "", "nameserver 127.0.0.1\n", s.port()), "notlocalhost", "ip4", 20*time.Second); addrs != "192.0.2.66" {
		t.Errorf("notlocalhost: %q, %v", addrs, err)
	}
}

// FuzzParseAnswer feeds parseAnswer whole messages and, so that more get past the header, records.
func FuzzParseAnswer(f *testing.F) {
	queries := [][]byte{newQuery("name.test", typeA), newQuery("name.test", typeAAAA)}
	for _, query := range queries {
		query[0], query[1] = 0x12, 0x34
		q, err := newQuestion(query, 0)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(q.has("192.0.2.1", "192.0.2.2", "2001:db8::1"))
		f.Add(q.reply(3))
		f.Add(record(q.rtype, make([]byte, 16)))
		f.Add(append(record(typeCNAME, []byte{0xc0, 12}), record(q.rtype, make([]byte, 4))...))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, query := range queries {
			q := question{raw: query}
			announced := make([][]byte, min(len(data)/11, 300)+1)
			for _, msg := range [][]byte{data, append(q.reply(0, announced...), data...)} {
				before := bytes.Clone(msg)
				addrs, err := parseAnswer(msg, query)
				if !bytes.Equal(msg, before) {
					t.Fatal("the message was changed")
				}
				if (err == nil) != (len(addrs) > 0) {
					t.Fatalf("%d addresses, %v", len(addrs), err)
				}
				if len(addrs)*15 > len(msg) {
					t.Fatalf("%d addresses in %d bytes", len(addrs), len(msg))
				}
				for _, a := range addrs {
					if a.Is4() != (query[len(query)-3] == typeA) || !bytes.Contains(msg, a.AsSlice()) {
						t.Fatalf("%v is not in the message", a)
					}
				}
				if len(msg) > 1 {
					msg[1] ^= 0x80
					if err == errForeign {
						continue
					}
					if _, err := parseAnswer(msg, query); err != errForeign {
						t.Fatalf("with another id: %v", err)
					}
				}
			}
		}
	})
}
