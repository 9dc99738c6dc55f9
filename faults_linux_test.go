package main

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Faults that a real kernel makes: packets that a firewall or a relay loses, processes that stand
// still, files and name servers that say anything.

// faultListen is an echo server on host, at that port if it is not "0".
func faultListen(t testing.TB, host, port string) (at, bound string) {
	t.Helper()
	return serve(t, net.JoinHostPort(host, port), echoes)
}

// faultRun is a whole process and how long it took.
func faultRun(t testing.TB, args ...string) (result, time.Duration) {
	t.Helper()
	start := time.Now()
	r := command(t, "1", nil, args...).start(t).end(t)
	return r, time.Since(start)
}

const firewall = `table inet fault {
	chain input {
		type filter hook input priority 0;
		ip daddr { 127.0.1.1, 127.0.1.7 } drop
		ip daddr 127.0.1.2 meta l4proto tcp reject with tcp reset
		ip daddr 127.0.1.3 reject with icmp type host-unreachable
		ip daddr 127.0.1.4 reject with icmp type port-unreachable
		ip daddr 127.0.1.5 reject with icmp type admin-prohibited
		ip daddr 127.0.1.6 tcp flags & psh == psh drop
	}
}`

const firewallHosts = `
127.0.1.1 half
127.0.0.1 half
127.0.1.1 silent
127.0.1.7 silent
127.0.1.2 refused
127.0.1.1 refused
127.0.1.3 late
127.0.1.2 late
127.0.0.1 late
`

// wordOf is the word of a last line.
func wordOf(status int) string {
	if status == 0 {
		return "ok"
	}
	return "failed"
}

// TestFaultFirewall: what a firewall does to a connect, and to a flow.
func TestFaultFirewall(t *testing.T) {
	if !faultSpace(t) {
		return
	}
	faultTool(t, firewall, "nft", "-f", "-")
	_, port := faultListen(t, "127.0.0.1", "0")
	faultListen(t, "127.0.1.6", port)
	faultFile(t, "/etc/hosts", firewallHosts)
	limit := []string{"-connect-timeout", "1500ms", "-io-timeout", "600ms"}
	const none, most = "sent=0 returned=0", 1500 * time.Millisecond
	for _, test := range []struct {
		host   string
		status int
		keys   string
		cause  string
		least  time.Duration
	}{
		{"127.0.1.1", 4, none, "127.0.1.1: timed out", most},
		{"silent", 4, none, "127.0.1.1: timed out; 127.0.1.7: timed out", most},
		{"half", 0, wholeHere, "", time.Second},
		{"127.0.1.2", 3, none, "127.0.1.2: connection refused", 0},
		{"refused", 3, none, "127.0.1.2: connection refused; 127.0.1.1: timed out", most},
		{"127.0.1.3", 3, none, "127.0.1.3: no route to host", 0},
		{"127.0.1.4", 3, none, "127.0.1.4: connection refused", 0},
		{"127.0.1.5", 3, none, "127.0.1.5: no route to host", 0},
		{"late", 0, wholeHere, "", 0},
		{"127.0.1.6", 5, "sent=6 returned=0 connect_ms exchange_ms ...",
			"timed out after 600ms of silence (0 of 6 bytes)", 600 * time.Millisecond},
	} {
		t.Run(test.host, func(t *testing.T) {
			t.Parallel()
			r, took := faultRun(t, append(limit, test.host, port, "hello")...)
			r.wantLine(t, test.status, wordOf(test.status), test.keys, test.cause)
			if took < test.least {
				t.Errorf("it took %v", took)
			}
			wantWithin(t, "it", took, test.least+4*time.Second)
		})
	}
}

// TestFaultRoutes: addresses that this host has no way to.
func TestFaultRoutes(t *testing.T) {
	if !faultSpace(t) {
		return
	}
	faultTool(t, `route add unreachable 192.0.2.1
route add prohibit 192.0.2.2
route add blackhole 192.0.2.3
route add unreachable 2001:db8::1
`, "ip", "-batch", "-")
	for host, want := range map[string]string{
		"192.0.2.1":   "no route to host",
		"192.0.2.2":   "permission denied",
		"192.0.2.3":   "invalid argument", // so Linux says
		"192.0.2.4":   "network is unreachable",
		"2001:db8::1": "no route to host",
	} {
		r, took := faultRun(t, host, "7", "hello")
		r.wantLine(t, 3, "failed", "sent=0 returned=0", host+": "+want)
		wantWithin(t, host, took, 20*time.Second)
	}
}

// TestFaultPorts: with two ephemeral ports, a connect to one of them that nobody listens on meets
// itself, every time: a perfect, false echo. And a third connection finds no port.
func TestFaultPorts(t *testing.T) {
	if !faultSpace(t) {
		return
	}
	err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 40001"), 0)
	if err != nil {
		t.Skip(err)
	}
	itself := 0
	for i := 0; i < 20 || i < 200 && itself == 0; i++ { // what met itself may be in TIME_WAIT for long
		r, _ := faultRun(t, "127.0.0.1", strconv.Itoa(40000+i%2), "hello")
		r.wantLine(t, 3, "failed", "sent=0 returned=0", "127.0.0.1: connection refused*")
		r.wantStdout(t, "")
		if strings.HasSuffix(r.line(t).cause, " (connected to itself)") {
			itself++
		}
	}
	if itself == 0 {
		t.Error("none has met itself")
	}
	_, port := serve(t, "127.0.0.1:9", lingers)
	held := []*net.TCPConn{dialServer(t, "127.0.0.1", port), dialServer(t, "127.0.0.1", port)}
	r, _ := faultRun(t, "127.0.0.1", port, "hello")
	r.wantLine(t, 6, "failed", "sent=0 returned=0", "no local port is free")
	for _, c := range held {
		resets(c) // so that its port is free at once
	}
	// No other address helps.
	r, _ = faultRun(t, "-n", "5", "-io-timeout", "1s", "127.0.0.1", port, "hello")
	r.wantLine(t, 6, "failed", "connections=5 ok=0 failures unfinished sent returned ...", "")
	r.wantLines(t, 2)
	r.lines[0].want(t, "cause", "failures=3", "no local port is free")
}

// TestFaultSource: a local address of this machine serves, another one is a local failure.
func TestFaultSource(t *testing.T) {
	if !faultSpace(t) {
		return
	}
	sources := make(chan string, 1)
	_, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		sources <- c.RemoteAddr().(*net.TCPAddr).IP.String()
		echoes(c)
	})
	r, _ := faultRun(t, "-source", "127.0.0.77", "127.0.0.1", port, "hello")
	r.wantLine(t, 0, "ok", wholeHere, "")
	source := <-sources
	if source != "127.0.0.77" {
		t.Errorf("it came from %s", source)
	}
	r, _ = faultRun(t, "-source", "192.0.2.1", "127.0.0.1", port, "hello")
	r.wantLine(t, 6, "failed", "sent=0 returned=0", "cannot assign requested address")

	// bind must not take a port for every destination: two ports, and four connections.
	err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 40001"), 0)
	if err != nil {
		t.Skip(err)
	}
	var runs []*process
	for _, host := range []string{"127.0.0.5", "127.0.0.6"} {
		_, port := serve(t, host+":9", ignores)
		p := command(t, "1", nil, "-v", "-n", "2", "-source", "127.0.0.77", host, port, "hello")
		runs = append(runs, p.start(t))
	}
	for _, p := range runs {
		p.stderr.await(t, "#2 sent: ", 1)
		p.stderr.await(t, "#1 sent: ", 1)
		p.signal(t, syscall.SIGTERM)
		p.end(t)
	}
}

// TestFaultRetransmits: segments that were sent again are told where there were any.
func TestFaultRetransmits(t *testing.T) {
	if !faultSpace(t) {
		return
	}
	_, port := faultListen(t, "127.0.0.1", "0")
	again(t, func(t *testing.T) {
		r, _ := faultRun(t, "127.0.0.1", port, "hello")
		r.wantLine(t, 0, "ok", wholeHere, "")
		restore := cutOff(t, "tcp dport "+port+" tcp flags & psh == psh numgen inc mod 3 == 0")
		defer restore()
		for _, args := range [][]string{
			{"-count", "9", "-io-timeout", "30s", "127.0.0.1", port, "hello"},
			{"-n", "1", "-io-timeout", "30s", "127.0.0.1", port, strings.Repeat("m", 100_000)},
			{"-until", "eof", "-io-timeout", "30s", "127.0.0.1", port, strings.Repeat("m", 99_999)},
		} {
			r, _ = faultRun(t, args...)
			line := r.line(t)
			n := line.count("retransmits")
			if r.status != 0 || args[0] == "-count" && n < 1 {
				t.Errorf("%.60q on a path that loses packets: %s", args, tail(r.stderr))
			}
			t.Logf("%.20q: retransmits=%d", args, n)
		}
	})
}

// faultTidy: whatever came in, standard error is lines of printable ASCII, not many and not long.
func faultTidy(t testing.TB, r result) {
	t.Helper()
	for i := range len(r.stderr) {
		c := r.stderr[i]
		if c != '\n' && (c < ' ' || c > '~') {
			t.Errorf("control bytes on standard error: %s", tail(r.stderr))
			break
		}
	}
	if len(r.stderr) > 70_000 || !strings.HasSuffix(r.stderr, "\n") {
		t.Errorf("%d bytes on standard error: %s", len(r.stderr), tail(r.stderr))
	}
}

const evil = "\x1b]0;evil\x07\x1b[2J\x9b31m\r\x00\x7f"

// TestFaultWords: hostile words on the command line.
func TestFaultWords(t *testing.T) {
	t.Parallel()
	faultRig(t)
	_, port := faultListen(t, "127.0.0.1", "0")
	control := strings.ReplaceAll(evil, "\x00", "")
	const longest = "2562047h47m16.854775807s"
	for _, test := range []struct {
		status int
		args   []string
	}{
		{3, []string{strings.Repeat("a", 10_000), port, "x"}},
		{3, []string{strings.Repeat("a.", 5_000), port, "x"}},
		{2, []string{strings.Repeat(control, 1000), port, "x"}},
		{2, []string{"a" + control, port, "x"}},
		{3, []string{"a\x1b\r\x7f", port, "x"}},
		{3, []string{"\xff\xfe", port, "x"}},
		{3, []string{"::1%" + control, port, "x"}},
		{3, []string{"::1%" + strings.Repeat("a", 10_000), port, "x"}},
		{3, []string{"-v", "fe80::1%" + control, port, "x"}},
		{2, []string{"-" + control, port}},
		{2, []string{"-n=" + control, "127.0.0.1", port, "x"}},
		{2, []string{"127.0.0.1", control, "x"}},
		{2, []string{control}},
		{2, []string{"127.0.0.1", strings.Repeat("9", 3_000), "x"}},
		{2, []string{"-n", "9223372036854775808", "127.0.0.1", port, "x"}},
		{2, []string{"-io-timeout", "2562047h47m16.854775808s", "127.0.0.1", port, "x"}},
		{0, []string{"-v", "127.0.0.1", port, control, "\xff\xfe", ""}},
		{0, []string{"-v", "-connect-timeout", longest, "127.0.0.1", port, "x"}},
		{0, []string{"-v", "-io-timeout", longest, "127.0.0.1", port, "x"}},
		{0, []string{"-count", "2", "-every", "1ns", "127.0.0.1", port, "x"}},
		{0, []string{"127.0.0.1", port, strings.Repeat("m", 120_000)}},
	} {
		r, took := faultRun(t, test.args...)
		faultTidy(t, r)
		if r.status != test.status {
			t.Errorf("%.80q: status %d, want %d: %s",
				test.args, r.status, test.status, tail(r.stderr))
		}
		wantWithin(t, fmt.Sprintf("%.80q", test.args), took, 20*time.Second)
	}
}

// TestFaultMost: as much of everything as there is. Descriptors end it, or the signal.
func TestFaultMost(t *testing.T) {
	t.Parallel()
	faultRig(t)
	_, port := faultListen(t, "127.0.0.1", "0")
	most := strconv.Itoa(math.MaxInt)
	args := []string{"-n", most, "-count", "4611686018427387903", "127.0.0.1", port, "x"}
	r := command(t, "1", limited(64), args...).start(t).end(t)
	r.wantLine(t, 6, "failed", "connections="+most+" ok=0 failures unfinished ...", "")
	r.lines[0].want(t, "cause", "failures", "too many open files (the limit is 64)")
	const longest = "2562047h47m16.854775807s"
	args = []string{"-count", "4611686018427387903", "-every", longest, "127.0.0.1", port, "x"}
	p := command(t, "1", nil, args...).start(t)
	p.stderr.await(t, "round=1", 1)
	p.signal(t, syscall.SIGTERM)
	p.end(t).wantLine(t, 143, "interrupted",
		"sent=2 returned=2 connect_ms rounds=1 rtt_ms peer", "")
}

// TestFaultPeerBytes: what a peer sends reaches standard output as it is, and standard error not.
func TestFaultPeerBytes(t *testing.T) {
	t.Parallel()
	faultRig(t)
	_, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		io.WriteString(c, evil)
		ends(c)
	})
	for _, test := range []struct {
		until  string
		status int
		stdout string
	}{{"echo", 1, evil[:5]}, {"eof", 0, evil}} {
		r, _ := faultRun(t, "-v", "-until", test.until, "127.0.0.1", port, evil[:5])
		faultTidy(t, r)
		r.wantStdout(t, test.stdout)
		if r.status != test.status {
			t.Errorf("-until %s: status %d: %s", test.until, r.status, tail(r.stderr))
		}
	}
	_, port = faultListen(t, "127.0.0.1", "0")
	p := command(t, "1", nil, "127.0.0.1", port)
	p.Stdin = strings.NewReader(evil)
	r := p.start(t).end(t)
	r.wantLine(t, 0, "ok", oneKeys, "")
	r.wantStdout(t, evil)
}

// faultDNS answers datagrams at address; nil is silence.
func faultDNS(t testing.TB, address string, answer func(query []byte) []byte) {
	t.Helper()
	server, err := net.ListenPacket("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			a := answer(buf[:n])
			if a != nil {
				server.WriteTo(a, from)
			}
		}
	}()
	t.Cleanup(func() {
		server.Close()
		<-done
	})
}

// faultAnswer answers a query of type A with that address, and others with nothing (RFC 1035). It
// returns the length of the part that repeats the question, too.
func faultAnswer(query []byte, ip ...byte) (answer []byte, question int) {
	const header = 12
	length := bytes.IndexByte(query[header:], 0)
	question = header + length + 5
	if length < 0 || question > len(query) {
		return nil, 0
	}
	answer = []byte{query[0], query[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}
	answer = append(answer, query[header:question]...)
	if query[question-3] == 1 {
		answer[7] = 1
		answer = append(answer, 0xc0, header, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4)
		answer = append(answer, ip...)
	}
	return answer, question
}

// faultyFiles are a hosts file and a resolv.conf each, and what becomes of a name with them.
func faultyFiles() map[string]faultyFile {
	garbage := string(noise(100_000))
	fill := func(line string) string { return strings.Repeat(line, (200<<10)/len(line)) }
	var others []byte
	for i := range 1000 {
		others = fmt.Appendf(others, "127.%d.%d.%d a.test\n", 64|i>>16&63, i>>8&255, i&255)
	}
	const server = "nameserver 127.0.0.1\n"
	huge := "99999999999999999999"
	options := "options ndots:" + huge + " timeout:-1 attempts:" + huge + " : a:\n"
	zone := strings.ReplaceAll(evil, "\r", "")
	search := "options ndots:9\nsearch" + strings.Repeat(" "+evil, 2000)
	garbled := "nameserver 1.2.3\nnameserver ::ffff:127.0.0.1\nnameserver\n"
	return map[string]faultyFile{
		"no file says anything":   {"", "", 0},
		"garbage":                 {garbage, garbage, 0},
		"garbage around":          {garbage + "\n127.0.0.1 a.test\n" + garbage, "", 0},
		"NULs":                    {fill("\x00"), fill("\x00"), 0},
		"no newline":              {fill("127.0.0.1 "), fill("nameserver 127.0.0.1 "), 0},
		"others":                  {fill("127.0.0.1 b.test\n"), fill(server), 0},
		"this one":                {strings.Repeat("127.0.0.1 a.test\n", 1000), "", 0},
		"nobody there":            {strings.Repeat("127.0.0.9 a.test\n", 1000), "", 3},
		"nobody, anywhere":        {string(others), "", 3},
		"zones of control bytes":  {"::1%" + zone + " a.test\n", "", 3},
		"a long zone":             {"::1%" + strings.Repeat("x", 9000) + " a.test\n", "", 3},
		"search":                  {"", server + search, 0},
		"search, long":            {"", fill("search " + strings.Repeat("x", 300) + "\n"), 0},
		"options":                 {"", fill(options), 0},
		"name servers of garbage": {"", garbled, 0},
		"a name server's zone":    {"", "nameserver fe80::1%\x1b[31m\n", 3},
	}
}

type faultyFile struct {
	hosts, conf string
	status      int
}

// TestFaultFiles: a hosts file and a resolv.conf of garbage, and long ones.
func TestFaultFiles(t *testing.T) {
	if !faultSpace(t) {
		return
	}
	_, port := faultListen(t, "127.0.0.1", "0")
	faultDNS(t, "127.0.0.1:53", func(query []byte) []byte {
		a, _ := faultAnswer(query, 127, 0, 0, 1)
		return a
	})
	for what, test := range faultyFiles() {
		faultFile(t, "/etc/hosts", test.hosts)
		faultFile(t, "/etc/resolv.conf", test.conf)
		r, took := faultRun(t, "-connect-timeout", "1m", "a.test", port, "hello")
		faultTidy(t, r)
		if r.status != test.status {
			t.Errorf("%s: status %d, want %d, in %v: %s",
				what, r.status, test.status, took, tail(r.stderr))
		}
		wantWithin(t, what, took, 20*time.Second)
	}
}

// TestFaultAnswers: answers of a name server that mutates them.
func TestFaultAnswers(t *testing.T) {
	if !faultSpace(t) {
		return
	}
	_, port := faultListen(t, "127.0.0.1", "0")
	random := rand.New(rand.NewPCG(3, 4))
	faultDNS(t, "127.0.0.1:53", func(query []byte) []byte { return faultMutated(query, random) })
	faultFile(t, "/etc/resolv.conf", "options timeout:1 attempts:1\n")
	fates := map[int]int{}
	for range 3 {
		var runs [60]*running
		for i := range runs {
			runs[i] = begin(nil, "-4", "-connect-timeout", "3s", "a.test", port, "hello")
		}
		for _, run := range runs {
			r := run.end(t)
			faultTidy(t, r)
			fates[r.status]++
		}
	}
	t.Logf("by exit status: %v", fates)
	if fates[0] == 0 || fates[3] == 0 || fates[0]+fates[3]+fates[4] != 180 {
		t.Errorf("by exit status: %v", fates)
	}
}

func faultMutated(query []byte, random *rand.Rand) []byte {
	a, n := faultAnswer(query, 127, 0, 0, 1)
	if a == nil {
		return nil
	}
	switch random.IntN(6) {
	case 0:
		return a[:random.IntN(len(a))]
	case 1: // thousands of addresses where nobody is, as far as a datagram goes
		for len(a) < 60_000 {
			a = append(a, 0xc0, 12, 0, query[n-3], 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 9)
		}
		a[6], a[7] = 0xff, 0xff
	case 2: // names that point at themselves
		a = append(a[:n], 0xc0, byte(n), 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1)
	}
	for range random.IntN(8) {
		a[2+random.IntN(len(a)-2)] ^= 1 << random.IntN(8)
	}
	return a
}

// sendOver is a process that sends size bytes over a path.
func sendOver(t testing.TB, port string, size int, flags ...string) *process {
	t.Helper()
	p := command(t, "1", nil, append(flags, "192.0.2.2", port)...)
	p.Stdin = bytes.NewReader(noise(size))
	return p.start(t)
}

// wantDelay checks that a figure holds the time that the path takes.
func wantDelay(t testing.TB, line resultLine, key string, least time.Duration) {
	t.Helper()
	if line.times(key)[0] < least {
		t.Errorf("the path takes %v: %s", least, line.text)
	}
}

// TestFaultPath: delay, loss and small packets.
func TestFaultPath(t *testing.T) {
	if !faultSpace(t) {
		return
	}
	path := newTunPath(t, 296)
	_, port := faultListen(t, "192.0.2.1", "0")
	const rest = "connect_ms exchange_ms mbit_s ..."

	before := path.packets.Load()
	r := sendOver(t, port, 300_000).end(t)
	r.wantLine(t, 0, "ok", "sent=300000 returned=300000 "+rest, "")
	r.wantStdout(t, string(noise(300_000)))
	n := path.packets.Load() - before
	if n < 600_000/256 {
		t.Errorf("%d packets of at most 256 bytes", n)
	}

	const delay = 60 * time.Millisecond
	path.delay.Store(int64(delay)) // each way
	r = sendOver(t, port, 20_000).end(t)
	r.wantLine(t, 0, "ok", "sent=20000 returned=20000 "+rest, "")
	wantDelay(t, r.line(t), "connect_ms", 2*delay)
	r, _ = faultRun(t, "-count", "5", "192.0.2.2", port, "hello")
	r.wantLine(t, 0, "ok", "sent=30 returned=30 connect_ms rounds=5 rtt_ms ...", "")
	wantDelay(t, r.line(t), "rtt_ms", 2*delay)

	// An answer that is there when the deadline has passed counts, so it must be late.
	path.delay.Store(int64(time.Second))
	r, _ = faultRun(t, "-connect-timeout", "100ms", "192.0.2.2", port, "hello")
	r.wantLine(t, 4, "failed", "sent=0 returned=0", "192.0.2.2: timed out")

	path.delay.Store(int64(2 * time.Millisecond))
	path.loss.Store(50)
	patient := []string{"-connect-timeout", "30s", "-io-timeout", "30s"}
	r = sendOver(t, port, 40_000, patient...).end(t)
	r.wantLine(t, 0, "ok", "sent=40000 returned=40000 "+rest, "")
	r, _ = faultRun(t, append(patient, "-n", "50", "192.0.2.2", port, "hello")...)
	r.wantLine(t, 0, "ok", "connections=50 ok=50 ...", "")
}

// TestFaultDark: a path that falls silent, for good or for a moment.
func TestFaultDark(t *testing.T) {
	if !faultSpace(t) {
		return
	}
	path := newTunPath(t, 1500)
	path.delay.Store(int64(20 * time.Millisecond))
	_, port := faultListen(t, "192.0.2.1", "0")
	darkened := func() *process {
		args := strings.Fields("-io-timeout 1s -count 0 -every 50ms 192.0.2.2 " + port + " hello")
		p := command(t, "1", nil, args...).start(t)
		p.stderr.await(t, "round=3 ", 1)
		path.loss.Store(1000)
		return p
	}
	p := darkened()
	p.end(t).wantLine(t, 5, "failed", "sent returned connect_ms rounds rtt_ms ...",
		"timed out after 1s of silence*")
	path.loss.Store(0)

	p = darkened()
	time.Sleep(300 * time.Millisecond)
	path.loss.Store(0)
	rounds := strings.Count(p.stderr.String(), "round=")
	p.stderr.await(t, "round=", rounds+3)
	p.signal(t, syscall.SIGTERM)
	p.end(t).wantLine(t, 143, "interrupted",
		"sent returned connect_ms rounds rtt_ms retransmits peer", "")
}

// TestFaultStopped: a process that stood still for longer than the I/O timeout, while the peer did
// its part, goes on; where the peer stood still, it does not.
func TestFaultStopped(t *testing.T) {
	t.Parallel()
	faultRig(t)
	t.Run("client", stoppedClient)
	t.Run("many", stoppedMany)
	t.Run("server, for good", func(t *testing.T) {
		t.Parallel()
		server, port := startServer(t)
		server.signal(t, syscall.SIGSTOP)
		defer server.signal(t, syscall.SIGCONT)
		r, _ := faultRun(t, "-io-timeout", "1s", "127.0.0.1", port, "hello")
		r.wantLine(t, 5, "failed", "sent=6 returned=0 connect_ms exchange_ms peer",
			"timed out after 1s of silence (0 of 6 bytes)")
	})
	t.Run("server, for a moment", func(t *testing.T) {
		t.Parallel()
		server, port := startServer(t)
		args := []string{"-count", "0", "-every", "10ms", "127.0.0.1", port, "hello"}
		p := command(t, "1", nil, args...).start(t)
		p.stderr.await(t, "round=3 ", 1)
		server.signal(t, syscall.SIGSTOP)
		time.Sleep(300 * time.Millisecond)
		rounds := strings.Count(p.stderr.String(), "round=")
		server.signal(t, syscall.SIGCONT)
		p.stderr.await(t, "round=", rounds+3)
		p.signal(t, syscall.SIGTERM)
		p.end(t).wantLine(t, 143, "interrupted", "sent returned connect_ms rounds rtt_ms peer", "")
	})
}

// stoppedClient: on a busy machine the peer, which is this process, may stand still as long as the
// client. That happens, but not three times.
func stoppedClient(t *testing.T) {
	t.Parallel()
	_, port := faultListen(t, "127.0.0.1", "0")
	big := noise(8 << 20)
	r := stoppedOnce(t, port, big)
	for tries := 1; r.status == 5 && tries < 3; tries++ {
		t.Log(tail(r.stderr))
		r = stoppedOnce(t, port, big)
	}
	r.wantLine(t, 0, "ok", "sent=8388608 returned=8388608 ...", "")
	r.wantStdout(t, string(big))
}

func stoppedOnce(t *testing.T, port string, big []byte) result {
	t.Helper()
	p := command(t, "1", nil, "-io-timeout", "1s", "127.0.0.1", port)
	p.feed(t, 0, big)
	p.start(t)
	eventually(t, func() bool { return len(p.stdout.String()) > 1<<20 }, func() string {
		return "nothing comes back"
	})
	p.Process.Signal(syscall.SIGSTOP)
	time.Sleep(2 * time.Second)
	p.Process.Signal(syscall.SIGCONT)
	return p.end(t)
}

func stoppedMany(t *testing.T) {
	t.Parallel()
	released := make(chan struct{})
	var back atomic.Int64
	_, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		<-released
		returns(c, 6)
		back.Add(1)
		ignores(c)
	})
	args := []string{"-io-timeout", "6s", "-v", "-n", "500", "127.0.0.1", port, "hello"}
	p := command(t, "1", nil, args...).start(t)
	p.stderr.await(t, "sent: ", 500)
	p.signal(t, syscall.SIGSTOP)
	close(released)
	time.Sleep(7 * time.Second)
	eventually(t, func() bool { return back.Load() == 500 }, func() string {
		return "the peer is late"
	})
	p.signal(t, syscall.SIGCONT)
	p.end(t).wantLine(t, 0, "ok", "connections=500 ok=500 failures=0 unfinished=0 sent=3000 "+
		"returned=3000 ...", "")
}

// TestFaultSlowReader: a reader of standard output that takes nothing for longer than the I/O
// timeout is no silence of the peer.
func TestFaultSlowReader(t *testing.T) {
	t.Parallel()
	faultRig(t)
	_, port := faultListen(t, "127.0.0.1", "0")
	p := command(t, "1", nil, "-io-timeout", "4s", "127.0.0.1", port)
	big := noise(8 << 20)
	slow, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	p.Stdin = bytes.NewReader(big)
	p.Stdout = w
	p.start(t)
	w.Close()
	var got []byte
	buf := make([]byte, 5<<20)
	for err == nil {
		time.Sleep(6 * time.Second)
		var n int
		n, err = io.ReadFull(slow, buf)
		got = append(got, buf[:n]...)
	}
	p.end(t).wantLine(t, 0, "ok", "sent=8388608 returned=8388608 ...", "")
	if !bytes.Equal(got, big) {
		t.Errorf("%d other bytes", len(got))
	}
}

// TestFaultHead: what reads only the first line of our output makes the run fail, in words and not
// by a signal.
func TestFaultHead(t *testing.T) {
	t.Parallel()
	faultRig(t)
	_, port := faultListen(t, "127.0.0.1", "0")
	again(t, func(t *testing.T) {
		head := exec.Command("head", "-n", "1")
		dieWithParent(head)
		in, err := head.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		first := new(output)
		head.Stdout = first
		p := command(t, "1", nil, "-count", "0", "-every", "20ms", "127.0.0.1", port, "hello")
		p.Stdout = in
		err = head.Start()
		if err != nil {
			t.Skip(err)
		}
		p.start(t)
		in.Close()
		head.Wait()
		r := p.end(t)
		r.wantLine(t, 6, "failed", "sent returned connect_ms rounds rtt_ms peer",
			"standard output: nobody reads it any more")
		if first.String() != "hello\n" {
			t.Errorf("head shows %q", first)
		}
	})
}

// toxiproxy is Shopify's, which puts faults between real peers.
type toxiproxy struct {
	url string
}

// newToxiproxy starts the server that .ci/faults installs, and names in ECHOMUX_TOXIPROXY.
func newToxiproxy(t testing.TB) *toxiproxy {
	t.Helper()
	path := os.Getenv("ECHOMUX_TOXIPROXY")
	if path == "" {
		t.Skip("ECHOMUX_TOXIPROXY is not set; .ci/faults sets it")
	}
	control := port0(t)
	proxy := exec.Command(path, "-host", "127.0.0.1", "-port", control)
	dieWithParent(proxy)
	log := new(output)
	proxy.Stdout = log
	proxy.Stderr = log
	err := proxy.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		proxy.Process.Kill()
		proxy.Wait()
	})
	p := &toxiproxy{"http://127.0.0.1:" + control}
	eventually(t, func() bool {
		status, _ := p.post("/reset", "")
		return status/100 == 2
	}, log.String)
	return p
}

func (p *toxiproxy) post(path, body string) (status int, text string) {
	r, err := http.Post(p.url+path, "application/json", strings.NewReader(body))
	if err != nil {
		return 0, err.Error()
	}
	defer r.Body.Close()
	all, _ := io.ReadAll(r.Body)
	return r.StatusCode, string(all)
}

// add makes a proxy.
func (p *toxiproxy) add(t testing.TB, name, port, upstream string) {
	t.Helper()
	status, text := p.post("/proxies", fmt.Sprintf(
		`{"name": %q, "listen": "127.0.0.1:%s", "upstream": "127.0.0.1:%s", "enabled": true}`,
		name, port, upstream))
	if status != 201 {
		t.Fatal(text)
	}
}

// poison gives it a fault.
func (p *toxiproxy) poison(t testing.TB, name, stream string, toxic toxic) {
	t.Helper()
	status, text := p.post("/proxies/"+name+"/toxics", fmt.Sprintf(
		`{"type": %q, "stream": %q, "attributes": {%s}}`, toxic.name, stream, toxic.attributes))
	if status != 200 {
		t.Fatal(text)
	}
}

// toxic is a fault, and what becomes of 200 kB with it.
type toxic struct {
	name       string
	attributes string
	status     int
	cause      string
	least      time.Duration
}

var toxics = []toxic{
	{"latency", `"latency": 300, "jitter": 50`, 0, "", 250 * time.Millisecond},
	{"bandwidth", `"rate": 200`, 0, "", 700 * time.Millisecond},
	{"slow_close", `"delay": 2000`, 0, "", 0},
	{"slicer", `"average_size": 500, "size_variation": 300, "delay": 500`, 0, "", 0},
	{"timeout", `"timeout": 0`, 5, "timed out after 1s of silence (0 of *", time.Second},
	{"timeout", `"timeout": 300`, 1, "*", 300 * time.Millisecond},
	{"reset_peer", `"timeout": 0`, 1, "*: connection reset by peer", 0},
	{"reset_peer", `"timeout": 300`, 1, "*: connection reset by peer", 300 * time.Millisecond},
	{"limit_data", `"bytes": 100000`, 1, "*", 0},
}

// TestFaultProxy: faults between real peers.
func TestFaultProxy(t *testing.T) {
	t.Parallel()
	faultRig(t)
	proxy := newToxiproxy(t)
	_, upstream := startServer(t)
	for i, toxic := range toxics {
		for _, stream := range []string{"upstream", "downstream"} {
			t.Run(fmt.Sprint(toxic.name, " ", toxic.attributes, " ", stream), func(t *testing.T) {
				t.Parallel()
				name, port := fmt.Sprint(stream, i), port0(t)
				proxy.add(t, name, port, upstream)
				proxy.poison(t, name, stream, toxic)
				runToxic(t, toxic, port)
			})
		}
	}
}

func runToxic(t *testing.T, toxic toxic, port string) {
	const size = 200_000
	data := noise(size)
	p := command(t, "1", nil, "-io-timeout", "1s", "127.0.0.1", port)
	p.Stdin = bytes.NewReader(data)
	start := time.Now()
	r := p.start(t).end(t)
	took := time.Since(start)
	r.wantLine(t, toxic.status, wordOf(toxic.status), oneKeys, toxic.cause)
	whole := len(r.stdout) == size
	if !strings.HasPrefix(string(data), r.stdout) || whole != (toxic.status == 0) {
		t.Errorf("%d bytes on standard output, or others", len(r.stdout))
	}
	if took < toxic.least {
		t.Errorf("it took %v", took)
	}
	wantWithin(t, "it", took, toxic.least+8*time.Second)
}
