package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Faults that a real kernel makes: packets that a firewall or a relay loses, processes that stand
// still, descriptors that run out, files and name servers that say anything. What takes root happens
// in namespaces that a test makes for itself; no packet leaves them.

const spaceVariable = "ECHOMUX_FAULT_SPACE"

// faultSpace runs the calling test once more, in a process with a network and a mount namespace of
// its own, and is false; in there, where loopback is up and /etc is the test's to write, it is true.
func faultSpace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(spaceVariable) != "" {
		raiseLoopback()
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		faultFile(t, "/etc/hosts", "")
		faultFile(t, "/etc/resolv.conf", "")
		return true
	}
	faultRig(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	test := exec.Command(self, "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=5m")
	test.Env = append(os.Environ(), spaceVariable+"=1")
	test.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS, Pdeathsig: syscall.SIGKILL}
	out := new(output)
	test.Stdout, test.Stderr = out, out
	if err := test.Start(); err != nil {
		t.Skipf("no namespaces (they take root): %v", err)
	}
	t.Parallel()
	if err := test.Wait(); err != nil {
		t.Errorf("%v\n%s", err, out)
	} else if strings.Contains(out.String(), "--- SKIP") || testing.Verbose() {
		t.Logf("\n%s", out)
	}
	return false
}

// faultRig skips on emulations: these tests are about this machine's kernel.
func faultRig(t testing.TB) {
	t.Helper()
	if os.Getenv("ECHOMUX_RIG") != "" || os.Getenv("ECHOMUX_EXEC") != "" {
		t.Skip("an emulation has no faults of its own")
	} else if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skip(err)
	}
}

// faultFile puts a file with that text in the place of path, in this mount namespace alone.
func faultFile(t testing.TB, path, text string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), filepath.Base(path))
	err := os.WriteFile(file, []byte(text), 0o644)
	if err == nil {
		unix.Unmount(path, unix.MNT_DETACH)
		if err = unix.Mount(file, path, "", unix.MS_BIND, ""); err == nil {
			t.Cleanup(func() { unix.Unmount(path, unix.MNT_DETACH) })
		}
	}
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// faultTool runs a command that changes this namespace.
func faultTool(t testing.TB, stdin, name string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skip(err)
	}
	tool := exec.Command(name, args...)
	tool.Stdin = strings.NewReader(stdin)
	if out, err := tool.CombinedOutput(); err != nil {
		t.Skipf("%s %q: %v: %s", name, args, err, out)
	}
}

// faultListen is an echo server on host, at that port if it is not "0".
func faultListen(t testing.TB, host, port string) (at, bound string) {
	return serve(t, net.JoinHostPort(host, port), echoes)
}

// faultRun is a whole process and how long it took.
func faultRun(t testing.TB, args ...string) (result, time.Duration) {
	t.Helper()
	start := time.Now()
	r := command(t, "1", nil, args...).start(t).end(t)
	return r, time.Since(start)
}

// A is 127.0.1.1 and so on.
const firewall = `table inet fault {
	chain input {
		type filter hook input priority 0;
		ip daddr { 127.0.1.1, 127.0.1.7 } drop
		ip daddr 127.0.1.2 meta l4proto tcp reject with tcp reset
		ip daddr 127.0.1.3 reject with icmp type host-unreachable
		ip daddr 127.0.1.4 reject with icmp type port-unreachable
		ip daddr 127.0.1.5 reject with icmp type admin-prohibited
		ip daddr 127.0.1.6 tcp flags & psh == psh drop
		ip6 daddr ::1 tcp dport 7 drop
	}
}`

// TestFaultFirewall: what a firewall does to a connect, and to a flow.
func TestFaultFirewall(t *testing.T) {
	if !faultSpace(t) {
		return
	}
	faultTool(t, firewall, "nft", "-f", "-")
	_, port := faultListen(t, "127.0.0.1", "0")
	faultListen(t, "127.0.1.6", port)
	faultFile(t, "/etc/hosts", `
127.0.1.1 half
127.0.0.1 half
127.0.1.1 silent
127.0.1.7 silent
127.0.1.2 refused
127.0.1.1 refused
127.0.1.3 late
127.0.1.2 late
127.0.0.1 late
`)
	limit := []string{"-connect-timeout", "1500ms", "-io-timeout", "600ms"}
	for _, test := range []struct {
		host   string
		status int
		stderr string
		least  time.Duration
	}{
		{"127.0.1.1", 4, `connect 127.0.1.1:P: timed out`, 1500 * time.Millisecond},
		{"silent", 4, `connect 127.0.1.1:P: timed out; connect 127.0.1.7:P: timed out`, 1500 * time.Millisecond},
		{"half", 0, `127.0.0.1:P ok`, time.Second},
		{"127.0.1.2", 3, `connect 127.0.1.2:P: connection refused`, 0},
		{"refused", 3, `connect 127.0.1.2:P: connection refused; connect 127.0.1.1:P: timed out`, 1500 * time.Millisecond},
		{"127.0.1.3", 3, `connect 127.0.1.3:P: no route to host`, 0},
		{"127.0.1.4", 3, `connect 127.0.1.4:P: connection refused`, 0},
		{"127.0.1.5", 3, `connect 127.0.1.5:P: no route to host`, 0},
		{"late", 0, `127.0.0.1:P ok`, 0},
		{"127.0.1.6", 5, `read 127.0.1.6:P: timed out after 600ms of silence \(0 of 6 bytes\) sent=6 returned=0`, 600 * time.Millisecond},
	} {
		t.Run(test.host, func(t *testing.T) {
			t.Parallel()
			r, took := faultRun(t, append(limit, test.host, port, "hello")...)
			r.want(t, test.status, "", "echomux: "+strings.ReplaceAll(test.stderr, "P", port)+".*")
			if took < test.least || took > test.least+4*time.Second {
				t.Errorf("it took %v", took)
			}
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
		"192.0.2.1":   `no route to host`,
		"192.0.2.2":   `permission denied`,
		"192.0.2.3":   `invalid argument`, // so Linux says
		"192.0.2.4":   `network is unreachable`,
		"2001:db8::1": `no route to host`,
	} {
		r, took := faultRun(t, host, "7", "hello")
		r.want(t, 3, net.JoinHostPort(host, "7"), `echomux: connect A: `+want+` sent=0 returned=0`)
		if took > 20*time.Second { // with the race detector, on a busy machine
			t.Errorf("%s took %v", host, took)
		}
	}
}

// TestFaultPorts: with two ephemeral ports, a connect to one of them that nobody listens on meets
// itself, every time; and a third connection finds no port.
func TestFaultPorts(t *testing.T) {
	if !faultSpace(t) {
		return
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 40001"), 0); err != nil {
		t.Skip(err)
	}
	for i := range 20 {
		at := "127.0.0.1:" + strconv.Itoa(40000+i%2)
		r, _ := faultRun(t, "127.0.0.1", strconv.Itoa(40000+i%2), "hello")
		r.want(t, 3, at, `echomux: connect A: connection refused( \(connected to itself\))? sent=0 returned=0`)
		r.wantStdout(t, "")
	}
	_, port := faultListen(t, "127.0.0.1", "9")
	r, _ := faultRun(t, "-n", "5", "127.0.0.1", port, "hello")
	r.want(t, 3, "127.0.0.1:9", `echomux: connect A: cannot assign requested address \(3 connections\)
echomux: A ok=2 failed=3 sent=12 returned=12 .*`)
}

// TestFaultNameServer: what name servers do besides answering.
func TestFaultNameServer(t *testing.T) {
	if !faultSpace(t) {
		return
	}
	faultTool(t, firewall, "nft", "-f", "-")
	_, port := faultListen(t, "127.0.0.1", "0")
	faultDNS(t, "127.0.0.1:53", func(query []byte) []byte { return faultAnswer(query, "127.0.0.1") })
	for _, test := range []struct {
		servers string
		status  int
		words   string
		least   time.Duration
	}{
		{"127.0.0.1", 0, "", 0},
		{"127.0.0.2", 3, "connection refused", 0},
		{"127.0.1.4", 3, "connection refused", 0},
		{"192.0.2.1", 3, "network is unreachable", 0},
		{"127.0.1.1", 4, "timed out", 1500 * time.Millisecond},
		{"127.0.1.1 127.0.0.1", 0, "", time.Second},
		{"127.0.0.2 192.0.2.1 127.0.0.1", 0, "", 0},
	} {
		faultFile(t, "/etc/resolv.conf", "nameserver "+strings.ReplaceAll(test.servers, " ", "\nnameserver ")+"\n")
		r, took := faultRun(t, "-connect-timeout", "2s", "a.test", port, "hello")
		r.wantName(t, test.status, "a.test", test.words)
		if took < test.least || took > test.least+4*time.Second {
			t.Errorf("%s: it took %v", test.servers, took)
		}
	}
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
		for buf := make([]byte, 1500); ; {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			} else if a := answer(buf[:n]); a != nil {
				server.WriteTo(a, from)
			}
		}
	}()
	t.Cleanup(func() { server.Close(); <-done })
}

// faultAnswer answers a query of type A with that address, and others with nothing.
func faultAnswer(query []byte, ip string) []byte {
	q, err := newQuestion(query)
	if err != nil {
		return nil
	}
	return q.has(ip)
}

// faultTidy: whatever came in, standard error is lines of printable ASCII, not many and not long.
func faultTidy(t testing.TB, r result) {
	t.Helper()
	for i := range len(r.stderr) {
		if c := r.stderr[i]; c != '\n' && (c < ' ' || c > '~') {
			t.Errorf("control bytes on standard error: %s", tail(r.stderr))
			break
		}
	}
	if len(r.stderr) > 10_000 || !strings.HasSuffix(r.stderr, "\n") {
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
	for _, test := range []struct {
		status int
		args   []string
	}{
		{3, []string{strings.Repeat("a", 10_000), port, "x"}},
		{3, []string{strings.Repeat("a.", 5_000), port, "x"}},
		{3, []string{strings.Repeat(".", 10_000), port, "x"}},
		{2, []string{strings.Repeat(control, 1000), port, "x"}},
		{2, []string{"a" + control, port, "x"}},
		{3, []string{"a\x1b\r\x7f", port, "x"}},
		{3, []string{"\xff\xfe", port, "x"}},
		{3, []string{"::1%" + control, port, "x"}},
		{3, []string{"::1%" + strings.Repeat("a", 10_000), port, "x"}},
		{3, []string{"-v", "fe80::1%" + control, port, "x"}},
		{2, []string{"-" + control, port}},
		{2, []string{"-n=" + control, "127.0.0.1", port, "x"}},
		{2, []string{"-until", control, "127.0.0.1", port, "x"}},
		{2, []string{"127.0.0.1", control, "x"}},
		{2, []string{control}},
		{2, []string{"127.0.0.1", strings.Repeat("9", 3_000), "x"}},
		{2, []string{"-n", "9223372036854775808", "127.0.0.1", port, "x"}},
		{2, []string{"-io-timeout", "2562047h47m16.854775808s", "127.0.0.1", port, "x"}},
		{0, []string{"-v", "127.0.0.1", port, control, "\xff\xfe", ""}},
		{0, []string{"-v", "-connect-timeout", "2562047h47m16.854775807s", "-io-timeout", "2562047h47m16.854775807s", "localhost", port, "x"}},
		{0, []string{"-count", "2", "-every", "1ns", "127.0.0.1", port, "x"}},
		{0, []string{"127.0.0.1", port, strings.Repeat("m", 120_000)}},
	} {
		r, took := faultRun(t, test.args...)
		faultTidy(t, r)
		if r.status != test.status {
			t.Errorf("%.80q: status %d, want %d: %s", test.args, r.status, test.status, tail(r.stderr))
		}
		if took > 20*time.Second { // with the race detector, on a busy machine
			t.Errorf("%.80q: it took %v", test.args, took)
		}
	}
	// As much of everything as there is: descriptors end it, or the signal.
	most := strconv.Itoa(math.MaxInt)
	r := command(t, "1", limited(64), "-n", most, "-count", "9223372036854775807", "127.0.0.1", port, "x").start(t).end(t)
	r.want(t, 6, "127.0.0.1:"+port, `echomux: connect A: too many open files \(the limit is 64\) \(`+most+` connections\)
echomux: A ok=0 failed=`+most+` sent=\d+ returned=\d+.*`)
	p := command(t, "1", nil, "-count", "9223372036854775807", "-every", "2562047h47m16.854775807s", "127.0.0.1", port, "x").start(t)
	p.stderr.await(t, "round=1", 1)
	p.signal(t, syscall.SIGTERM)
	if r := p.end(t); r.status != 143 {
		t.Errorf("status %d: %s", r.status, tail(r.stderr))
	}
}

// TestFaultPeerBytes: what a peer sends reaches standard output as it is, and standard error not.
func TestFaultPeerBytes(t *testing.T) {
	t.Parallel()
	faultRig(t)
	_, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) { io.WriteString(c, evil); c.CloseWrite(); ignores(c) })
	for until, status := range map[string]int{"echo": 1, "eof": 0} {
		r, _ := faultRun(t, "-v", "-until", until, "127.0.0.1", port, evil[:5])
		faultTidy(t, r)
		if want := map[string]string{"echo": evil[:5], "eof": evil}[until]; r.status != status || r.stdout != want {
			t.Errorf("-until %s: status %d, standard output %q: %s", until, r.status, r.stdout, tail(r.stderr))
		}
	}
	at, port := faultListen(t, "127.0.0.1", "0")
	p := command(t, "1", nil, "127.0.0.1", port)
	p.Stdin = strings.NewReader(evil)
	r := p.start(t).end(t)
	r.want(t, 0, at, `echomux: A ok .*`)
	r.wantStdout(t, evil)
}

// TestFaultFiles: a hosts file and a resolv.conf of garbage, and long ones.
func TestFaultFiles(t *testing.T) {
	if !faultSpace(t) {
		return
	}
	_, port := faultListen(t, "127.0.0.1", "0")
	faultDNS(t, "127.0.0.1:53", func(query []byte) []byte { return faultAnswer(query, "127.0.0.1") })
	garbage, size := string(noise(100_000)), 200<<10
	fill := func(line string) string { return strings.Repeat(line, size/len(line)) }
	var others []byte
	for i := range 1000 { // package net takes a socket to sort each of a name's addresses (RFC 6724)
		others = fmt.Appendf(others, "127.%d.%d.%d a.test\n", 64|i>>16&63, i>>8&255, i&255)
	}
	for what, test := range map[string]struct {
		hosts, conf string
		status      int
	}{
		"no file says anything":   {"", "", 0},
		"garbage":                 {garbage, garbage, 0},
		"garbage around":          {garbage + "\n127.0.0.1 a.test\n" + garbage, "", 0},
		"NULs":                    {fill("\x00"), fill("\x00"), 0},
		"no newline":              {fill("127.0.0.1 "), fill("nameserver 127.0.0.1 "), 0},
		"others":                  {fill("127.0.0.1 b.test\n"), fill("nameserver 127.0.0.1\n"), 0},
		"this one":                {strings.Repeat("127.0.0.1 a.test\n", 1000), "", 0},
		"nobody there":            {strings.Repeat("127.0.0.9 a.test\n", 1000), "", 3},
		"nobody, anywhere":        {string(others), "", 3},
		"zones of control bytes":  {"::1%" + strings.ReplaceAll(evil, "\r", "") + " a.test\n", "", 3},
		"a long zone":             {"::1%" + strings.Repeat("x", 9000) + " a.test\n", "", 3},
		"search":                  {"", "nameserver 127.0.0.1\noptions ndots:9\nsearch" + strings.Repeat(" "+evil, 2000), 0},
		"search, long":            {"", fill("search " + strings.Repeat("x", 300) + "\n"), 0},
		"options":                 {"", fill("options ndots:99999999999999999999 timeout:-1 attempts:99999999999999999999 : a:\n"), 0},
		"name servers of garbage": {"", "nameserver 1.2.3\nnameserver ::ffff:127.0.0.1\nnameserver\nnameserver 127.0.0.1%" + evil, 0},
		"a name server's zone":    {"", "nameserver fe80::1%\x1b[31m\n", 3},
	} {
		faultFile(t, "/etc/hosts", test.hosts)
		faultFile(t, "/etc/resolv.conf", test.conf)
		r, took := faultRun(t, "-connect-timeout", "3s", "a.test", port, "hello")
		faultTidy(t, r)
		if r.status != test.status || took > 20*time.Second { // with the race detector, on a busy machine
			t.Errorf("%s: status %d, want %d, in %v: %s", what, r.status, test.status, took, tail(r.stderr))
		}
	}
}

// TestFaultAnswers: answers of a name server that mutates them.
func TestFaultAnswers(t *testing.T) {
	if !faultSpace(t) {
		return
	}
	_, port := faultListen(t, "127.0.0.1", "0")
	random := rand.New(rand.NewPCG(3, 4))
	faultDNS(t, "127.0.0.1:53", func(query []byte) []byte {
		q, err := newQuestion(query)
		if err != nil {
			return nil
		}
		a := q.has("127.0.0.1")
		switch random.IntN(6) {
		case 0:
			return a[:random.IntN(len(a))]
		case 1: // thousands of addresses where nobody is, as far as a datagram goes
			for len(a) < 60_000 {
				a = append(a, 0xc0, 12, 0, byte(q.rtype), 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 9)
			}
			a[6], a[7] = 0xff, 0xff
		case 2: // names that point at themselves
			a = append(a[:len(q.raw)], 0xc0, byte(len(q.raw)), 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1)
		}
		for range random.IntN(8) {
			a[2+random.IntN(len(a)-2)] ^= 1 << random.IntN(8)
		}
		return a
	})
	faultFile(t, "/etc/resolv.conf", "options timeout:1 attempts:1\n")
	fates := map[int]int{}
	for range 5 {
		var runs [60]*running
		for i := range runs {
			runs[i] = begin(nil, "-4", "-connect-timeout", "300ms", "a.test", port, "hello")
		}
		for _, run := range runs {
			r := run.end(t)
			faultTidy(t, r)
			fates[r.status]++
		}
	}
	t.Logf("by exit status: %v", fates)
	if fates[0] == 0 || fates[3] == 0 || fates[4] == 0 || fates[0]+fates[3]+fates[4] != 300 {
		t.Errorf("by exit status: %v", fates)
	}
}

// faultPath is a network of one TUN device, where 192.0.2.2 is this very host behind a path that the
// test controls: the relay swaps the two addresses of each packet, which leaves the checksums right.
type faultPath struct {
	tun         int
	delay       atomic.Int64 // ns, each way
	loss        atomic.Int64 // of 1000 packets
	packets     atomic.Int64 // that came by
	queue       chan faultPacket
	stop, ended chan struct{}
}

type faultPacket struct {
	due  time.Time
	data []byte
}

func newFaultPath(t testing.TB, mtu uint32) *faultPath {
	t.Helper()
	tun, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("/dev/net/tun: %v", err)
	}
	control, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(control)
	for _, step := range []struct {
		fd      int
		request uint
		set     func(*unix.Ifreq)
	}{
		{tun, unix.TUNSETIFF, func(r *unix.Ifreq) { r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI) }},
		{control, unix.SIOCSIFADDR, func(r *unix.Ifreq) { r.SetInet4Addr([]byte{192, 0, 2, 1}) }},
		{control, unix.SIOCSIFNETMASK, func(r *unix.Ifreq) { r.SetInet4Addr([]byte{255, 255, 255, 0}) }},
		{control, unix.SIOCSIFMTU, func(r *unix.Ifreq) { r.SetUint32(mtu) }},
		{control, unix.SIOCSIFFLAGS, func(r *unix.Ifreq) { r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING) }},
	} {
		r, err := unix.NewIfreq("fault0")
		if err == nil {
			step.set(r)
			err = unix.IoctlIfreq(step.fd, step.request, r)
		}
		if err != nil {
			t.Skipf("TUN device: request %#x: %v", step.request, err)
		}
	}
	p := &faultPath{tun: tun, queue: make(chan faultPacket, 10_000), stop: make(chan struct{}), ended: make(chan struct{}, 2)}
	go p.take()
	go p.give()
	t.Cleanup(func() {
		close(p.stop)
		<-p.ended
		<-p.ended
		unix.Close(tun)
	})
	return p
}

// take reads packets and loses some.
func (p *faultPath) take() {
	defer func() { p.ended <- struct{}{} }()
	random := rand.New(rand.NewPCG(5, 6))
	for buf := make([]byte, 1<<16); ; {
		select {
		case <-p.stop:
			return
		default:
		}
		unix.Poll([]unix.PollFd{{Fd: int32(p.tun), Events: unix.POLLIN}}, 20)
		n, err := unix.Read(p.tun, buf)
		if err != nil || n < 20 || buf[0]>>4 != 4 {
			continue
		}
		p.packets.Add(1)
		if random.Int64N(1000) < p.loss.Load() {
			continue
		}
		data := bytes.Clone(buf[:n])
		copy(data[12:16], buf[16:20])
		copy(data[16:20], buf[12:16])
		select {
		case p.queue <- faultPacket{time.Now().Add(time.Duration(p.delay.Load())), data}:
		default: // full: lost
		}
	}
}

// give writes them when they are due.
func (p *faultPath) give() {
	defer func() { p.ended <- struct{}{} }()
	for {
		select {
		case <-p.stop:
			return
		case q := <-p.queue:
			time.Sleep(time.Until(q.due))
			unix.Write(p.tun, q.data)
		}
	}
}

// TestFaultPath: delay, loss, small packets, and a path that falls silent for a while or for good.
func TestFaultPath(t *testing.T) {
	if !faultSpace(t) {
		return
	}
	path := newFaultPath(t, 296)
	_, port := faultListen(t, "192.0.2.1", "0")
	at := "192.0.2.2:" + port
	send := func(size int, flags ...string) *process {
		p := command(t, "1", nil, append(flags, "192.0.2.2", port)...)
		p.Stdin = bytes.NewReader(noise(size))
		return p.start(t)
	}

	before := path.packets.Load()
	r := send(300_000).end(t)
	r.want(t, 0, at, `echomux: A ok sent=300000 returned=300000 .*`)
	r.wantStdout(t, string(noise(300_000)))
	if n := path.packets.Load() - before; n < 600_000/256 {
		t.Errorf("%d packets of at most 256 bytes", n)
	}

	path.delay.Store(int64(60 * time.Millisecond)) // each way
	r = send(20_000).end(t)
	r.want(t, 0, at, `echomux: A ok sent=20000 returned=20000 connect_ms=(1[2-9]|[2-9]\d|\d\d\d+)\d\.\d\d exchange_ms=N`)
	r, _ = faultRun(t, "-count", "5", "192.0.2.2", port, "hello")
	r.want(t, 0, at, `echomux: A ok sent=30 returned=30 .* rounds=5 rtt_ms=(1[2-9]|[2-9]\d|\d\d\d+)\d\..*`)

	// An answer that is there when the deadline has passed counts, so on a busy machine it must be late.
	path.delay.Store(int64(time.Second))
	r, _ = faultRun(t, "-connect-timeout", "100ms", "192.0.2.2", port, "hello")
	r.want(t, 4, at, `echomux: connect A: timed out sent=0 returned=0`)

	path.delay.Store(int64(2 * time.Millisecond))
	path.loss.Store(50)
	r = send(40_000, "-connect-timeout", "30s", "-io-timeout", "30s").end(t)
	r.want(t, 0, at, `echomux: A ok sent=40000 returned=40000 .*`)
	r, _ = faultRun(t, "-n", "50", "-connect-timeout", "30s", "-io-timeout", "30s", "192.0.2.2", port, "hello")
	r.want(t, 0, at, `echomux: A ok=50 failed=0 sent=300 returned=300 .*`)
	path.loss.Store(0)

	dark := func(until func(p *process)) result {
		path.delay.Store(int64(20 * time.Millisecond))
		p := command(t, "1", nil, "-io-timeout", "1s", "-count", "0", "-every", "50ms", "192.0.2.2", port, "hello").start(t)
		p.stderr.await(t, "round=3 ", 1)
		path.loss.Store(1000)
		until(p)
		path.loss.Store(0)
		return p.end(t)
	}
	r = dark(func(p *process) { <-p.over })
	if r.status != 5 || !strings.Contains(r.lastLine(), "timed out after 1s of silence") {
		t.Errorf("a path that fell silent: status %d, %q", r.status, r.lastLine())
	}
	r = dark(func(p *process) {
		time.Sleep(300 * time.Millisecond)
		path.loss.Store(0)
		rounds := strings.Count(p.stderr.String(), "round=")
		p.stderr.await(t, "round=", rounds+3)
		p.signal(t, syscall.SIGTERM)
	})
	if r.status != 143 {
		t.Errorf("a path that fell silent for a moment: status %d, %q", r.status, r.lastLine())
	}
}

// faultIdle is what p uses of the processor during d, in nanoseconds of all its threads.
func faultIdle(t testing.TB, p *process, d time.Duration) time.Duration {
	t.Helper()
	before := faultCPU(t, p)
	time.Sleep(d)
	return faultCPU(t, p) - before
}

func faultCPU(t testing.TB, p *process) (sum time.Duration) {
	t.Helper()
	tasks, _ := filepath.Glob("/proc/" + strconv.Itoa(p.Process.Pid) + "/task/*/schedstat")
	for _, task := range tasks {
		text, _ := os.ReadFile(task)
		used, _, _ := strings.Cut(string(text), " ")
		ns, _ := strconv.ParseInt(used, 10, 64)
		sum += time.Duration(ns)
	}
	if sum == 0 {
		t.Skip("no schedstat here")
	}
	return sum
}

// TestFaultStopped: a process that stood still for longer than the I/O timeout, while the peer did
// its part, goes on; where the peer stood still, it does not.
func TestFaultStopped(t *testing.T) {
	t.Parallel()
	faultRig(t)
	limit := []string{"-io-timeout", "1s"}
	const nap = 2 * time.Second
	server, port := startServer(t)
	at := "127.0.0.1:" + port
	t.Run("client", func(t *testing.T) {
		t.Parallel()
		at, port := faultListen(t, "127.0.0.1", "0")
		p := command(t, "1", nil, append(limit, "127.0.0.1", port)...)
		in, err := p.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		p.start(t)
		big := noise(8 << 20)
		go func() { in.Write(big); in.Close() }()
		eventually(t, func() bool { return len(p.stdout.String()) > 1<<20 }, func() string { return "nothing comes back" })
		p.signal(t, syscall.SIGSTOP)
		time.Sleep(nap)
		p.signal(t, syscall.SIGCONT)
		r := p.end(t)
		r.want(t, 0, at, `echomux: A ok sent=8388608 returned=8388608 .*`)
		r.wantStdout(t, string(big))
	})
	t.Run("many", func(t *testing.T) {
		t.Parallel()
		released := make(chan struct{})
		var back atomic.Int64
		late, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
			<-released
			io.CopyN(c, c, 6)
			back.Add(1)
			ignores(c)
		})
		p := command(t, "1", nil, "-io-timeout", "3s", "-v", "-n", "500", "127.0.0.1", port, "hello").start(t)
		p.stderr.await(t, "sent: ", 500)
		p.signal(t, syscall.SIGSTOP)
		close(released)
		time.Sleep(4 * time.Second)
		eventually(t, func() bool { return back.Load() == 500 }, func() string { return "the peer is late" })
		p.signal(t, syscall.SIGCONT)
		r := p.end(t)
		r.stderr = r.lastLine() + "\n"
		r.want(t, 0, late, `echomux: A ok=500 failed=0 sent=3000 returned=3000 .*`)
	})
	t.Run("server, for good", func(t *testing.T) {
		server.signal(t, syscall.SIGSTOP)
		defer server.signal(t, syscall.SIGCONT)
		r, _ := faultRun(t, append(limit, "127.0.0.1", port, "hello")...)
		r.want(t, 5, at, `echomux: read A: timed out after 1s of silence \(0 of 6 bytes\) sent=6 returned=0`)
	})
	t.Run("server, for a moment", func(t *testing.T) {
		p := command(t, "1", nil, "-count", "0", "-every", "10ms", "127.0.0.1", port, "hello").start(t)
		p.stderr.await(t, "round=3 ", 1)
		server.signal(t, syscall.SIGSTOP)
		time.Sleep(300 * time.Millisecond)
		rounds := strings.Count(p.stderr.String(), "round=")
		server.signal(t, syscall.SIGCONT)
		p.stderr.await(t, "round=", rounds+3)
		p.signal(t, syscall.SIGTERM)
		if r := p.end(t); r.status != 143 {
			t.Errorf("status %d: %s", r.status, tail(r.stderr))
		}
	})
}

// TestFaultSlowReader: a reader of standard output that takes nothing for longer than the I/O
// timeout is no silence of the peer.
func TestFaultSlowReader(t *testing.T) {
	t.Parallel()
	faultRig(t)
	at, port := faultListen(t, "127.0.0.1", "0")
	p := command(t, "1", nil, "-io-timeout", "1s", "127.0.0.1", port)
	big := noise(8 << 20)
	slow, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	p.Stdin, p.Stdout = bytes.NewReader(big), w
	p.start(t)
	w.Close()
	var got []byte
	for buf := make([]byte, 5<<20); ; {
		time.Sleep(2 * time.Second)
		n, err := io.ReadFull(slow, buf)
		got = append(got, buf[:n]...)
		if err != nil {
			break
		}
	}
	p.end(t).want(t, 0, at, `echomux: A ok sent=8388608 returned=8388608 .*`)
	if !bytes.Equal(got, big) {
		t.Errorf("%d other bytes", len(got))
	}
}

// TestFaultIdle: waiting costs nothing, whatever is waited for.
func TestFaultIdle(t *testing.T) {
	t.Parallel()
	faultRig(t)
	_, silent := serve(t, "127.0.0.1:0", ignores)
	over := make(chan struct{})
	_, stuck := serve(t, "127.0.0.1:0", func(*net.TCPConn) { <-over })
	t.Cleanup(func() { close(over) })
	_, port := startServer(t)
	for range 20 {
		io.WriteString(dialServer(t, "127.0.0.1", port), "x") // and never reads
	}
	exhausted := command(t, "1", limited(30), "-serve", "127.0.0.1", port0(t)).start(t)
	exhaustedPort := exhausted.Args[len(exhausted.Args)-1]
	eventually(t, func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:"+exhaustedPort)
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return strings.Contains(exhausted.stderr.String(), "too many open files (the limit is 30)")
	}, func() string { return "descriptors do not run out" })
	input := func(p *process, size int) *process {
		stdin, err := p.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		p.start(t)
		go stdin.Write(make([]byte, size))
		return p
	}
	many := []string{"-io-timeout", "1m", "-n", "100", "127.0.0.1", silent, "hello"}
	for what, p := range map[string]*process{
		"a silent peer":               command(t, "1", nil, "-io-timeout", "1m", "127.0.0.1", silent, "hello").start(t),
		"100 silent peers":            command(t, "1", nil, many...).start(t),
		"a peer that reads nothing":   input(command(t, "1", nil, "-io-timeout", "1m", "127.0.0.1", stuck), 16<<20),
		"a user who thinks":           input(command(t, "1", nil, "127.0.0.1", silent), 0),
		"a round that is not due":     command(t, "1", nil, "-count", "0", "-every", "1h", "127.0.0.1", port, "hello").start(t),
		"a server out of descriptors": exhausted,
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			time.Sleep(500 * time.Millisecond) // it has started
			select {
			case <-p.over:
				t.Fatalf("it is over: %s", tail(p.stderr.String()))
			default:
			}
			const d = 3 * time.Second
			used := faultIdle(t, p, d)
			t.Logf("%v of processor time in %v", used, d)
			if used > d/50 {
				t.Errorf("%v of processor time in %v", used, d)
			}
		})
	}
}

// TestFaultCollector: a server without descriptors survives its garbage collector, whose timers want
// TestFaultFewDescriptors: whatever the limit is, descriptors that do not suffice are a local failure.
func TestFaultFewDescriptors(t *testing.T) {
	t.Parallel()
	faultRig(t)
	at, port := serve(t, "127.0.0.1:0", echoes)
	ended := map[int]int{}
	for limit := 5; limit < 17; limit++ {
		wanting := "too many open files (the limit is " + strconv.Itoa(limit) + ")"
		for _, args := range [][]string{{"127.0.0.1", port, "x"}, {"127.0.0.1", port}, {"-v", "-count", "300", "127.0.0.1", port, "x"},
			{"-n", "2", "127.0.0.1", port, "x"}, {"-serve", "127.0.0.1", port}} {
			// The server finds its port taken, if it comes that far.
			r := command(t, "1", limited(limit), args...).start(t).end(t)
			ended[r.status]++
			if r.status != 0 && (r.status != 6 || !strings.Contains(r.stderr, wanting) && !strings.Contains(r.stderr, "echomux: listen "+at+": ")) {
				t.Errorf("%q with %d descriptors: status %d: %s", args, limit, r.status, tail(r.stderr))
			}
		}
	}
	if ended[0] < 5 || ended[6] < 15 {
		t.Errorf("exit statuses and how many of them: %v", ended)
	}
}

// one. Clients that stop reading and go on make it garbage.
func TestFaultCollector(t *testing.T) {
	t.Parallel()
	faultRig(t)
	port := port0(t)
	p := command(t, "1", limited(64), "-serve", "127.0.0.1", port).start(t)
	var held []*net.TCPConn
	eventually(t, func() bool {
		if c, err := net.Dial("tcp", "127.0.0.1:"+port); err == nil {
			held = append(held, c.(*net.TCPConn))
		}
		return strings.Contains(p.stderr.String(), "too many open files (the limit is 64)")
	}, func() string { return "descriptors do not run out" })
	pollers := 0
	fds, _ := filepath.Glob("/proc/" + strconv.Itoa(p.Process.Pid) + "/fd/*")
	for _, fd := range fds {
		if name, _ := os.Readlink(fd); name == "anon_inode:[eventpoll]" {
			pollers++
		}
	}
	if pollers != 2 { // the crash itself does not come every time, so look at its cause too
		t.Errorf("%d epoll instances: the Go runtime has yet to make its own", pollers)
	}
	chunk := make([]byte, 256<<10)
	for range 3 {
		for _, c := range held {
			c.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
			for err := error(nil); err == nil; {
				_, err = c.Write(chunk)
			}
		}
		for range 2 {
			for _, c := range held {
				c.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
				for err := error(nil); err == nil; {
					_, err = c.Read(chunk)
				}
			}
		}
	}
	for _, c := range held {
		c.Close()
	}
	r, _ := faultRun(t, "127.0.0.1", port, "hello")
	r.want(t, 0, "127.0.0.1:"+port, `echomux: A ok .*`)
	p.signal(t, syscall.SIGTERM)
	if r := p.end(t); r.status != 143 {
		t.Errorf("status %d: %.300q", r.status, r.stderr)
	}
}

// TestFaultProxy: faults that Shopify's toxiproxy puts between real peers. .ci/faults installs it and
// names its server in ECHOMUX_TOXIPROXY.
func TestFaultProxy(t *testing.T) {
	t.Parallel()
	faultRig(t)
	path := os.Getenv("ECHOMUX_TOXIPROXY")
	if path == "" {
		t.Skip("ECHOMUX_TOXIPROXY is not set; .ci/faults sets it")
	}
	control := port0(t)
	proxy := exec.Command(path, "-host", "127.0.0.1", "-port", control)
	proxy.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log := new(output)
	proxy.Stdout, proxy.Stderr = log, log
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { proxy.Process.Kill(); proxy.Wait() })
	post := func(path, body string) (int, string) {
		r, err := http.Post("http://127.0.0.1:"+control+path, "application/json", strings.NewReader(body))
		if err != nil {
			return 0, err.Error()
		}
		defer r.Body.Close()
		text, _ := io.ReadAll(r.Body)
		return r.StatusCode, string(text)
	}
	eventually(t, func() bool { status, _ := post("/reset", ""); return status/100 == 2 }, log.String)
	_, upstream := startServer(t)
	const size = 200_000
	for i, test := range []struct {
		toxic, attributes string
		status            int
		stderr            string // after the address
		least             time.Duration
	}{
		{"latency", `"latency": 300, "jitter": 50`, 0, ` ok sent=200000 returned=200000 .*`, 250 * time.Millisecond},
		{"bandwidth", `"rate": 200`, 0, ` ok sent=200000 returned=200000 .*`, 700 * time.Millisecond},
		{"slow_close", `"delay": 2000`, 0, ` ok sent=200000 returned=200000 .*`, 0},
		{"slicer", `"average_size": 500, "size_variation": 300, "delay": 500`, 0, ` ok sent=200000 returned=200000 .*`, 0},
		{"timeout", `"timeout": 0`, 5, `: timed out after 1s of silence \(0 of 200000 bytes\) sent=200000 returned=0`, time.Second},
		{"timeout", `"timeout": 300`, 1, `: (closed early \(0 of 200000 bytes\)|connection reset by peer) sent=200000 returned=0`, 300 * time.Millisecond},
		{"reset_peer", `"timeout": 0`, 1, `: connection reset by peer sent=\d+ returned=\d+`, 0},
		{"reset_peer", `"timeout": 300`, 1, `: connection reset by peer sent=\d+ returned=\d+`, 300 * time.Millisecond},
		{"limit_data", `"bytes": 100000`, 1, `: (closed early \(\d+ of \d+ bytes\)|connection reset by peer) sent=\d+ returned=\d+`, 0},
	} {
		for _, stream := range []string{"upstream", "downstream"} {
			t.Run(fmt.Sprint(test.toxic, " ", test.attributes, " ", stream), func(t *testing.T) {
				t.Parallel()
				name, port := fmt.Sprint(stream, i), port0(t)
				if status, text := post("/proxies", fmt.Sprintf(`{"name": %q, "listen": "127.0.0.1:%s", "upstream": "127.0.0.1:%s", "enabled": true}`, name, port, upstream)); status != 201 {
					t.Fatal(text)
				} else if status, text = post("/proxies/"+name+"/toxics", fmt.Sprintf(`{"type": %q, "stream": %q, "attributes": {%s}}`, test.toxic, stream, test.attributes)); status != 200 {
					t.Fatal(text)
				}
				p := command(t, "1", nil, "-io-timeout", "1s", "127.0.0.1", port)
				data := noise(size)
				p.Stdin = bytes.NewReader(data)
				start := time.Now()
				r := p.start(t).end(t)
				took := time.Since(start)
				r.want(t, test.status, "127.0.0.1:"+port, "echomux: (read |write )?A"+test.stderr)
				if !strings.HasPrefix(string(data), r.stdout) || test.status == 0 && len(r.stdout) != size {
					t.Errorf("%d bytes on standard output, or others", len(r.stdout))
				}
				if took < test.least || took > test.least+8*time.Second {
					t.Errorf("it took %v", took)
				}
			})
		}
	}
}

var soak = flag.Duration("soak", 3*time.Second, "how long TestFaultSoak lasts")

// faultUsage is what a process holds and has used.
type faultUsage struct {
	rss, peak, fds int // kB, kB
	cpu            time.Duration
}

func (u faultUsage) String() string {
	return fmt.Sprintf("%d kB resident (peak %d), %d descriptors, %.2f s of processor time", u.rss, u.peak, u.fds, u.cpu.Seconds())
}

func faultHeld(t testing.TB, p *process) (u faultUsage) {
	t.Helper()
	dir := "/proc/" + strconv.Itoa(p.Process.Pid)
	fds, err := os.ReadDir(dir + "/fd")
	if err != nil {
		t.Fatalf("process %d: %v: %.1000s", p.Process.Pid, err, p.stderr)
	}
	status, _ := os.ReadFile(dir + "/status")
	field := func(name string) (kB int) {
		_, rest, _ := strings.Cut(string(status), "\n"+name+":")
		fmt.Sscan(rest, &kB)
		return kB
	}
	return faultUsage{field("VmRSS"), field("VmHWM"), len(fds), faultCPU(t, p)}
}

// faultClient misbehaves towards an echo server, once, in a way that random chooses. It complains of
// bytes that do not come back from where they should.
func faultClient(port string, random *rand.Rand) error {
	pause := func(most time.Duration) { time.Sleep(time.Duration(random.Int64N(int64(most)))) }
	dialed, err := net.DialTimeout("tcp", "127.0.0.1:"+port, 20*time.Second)
	if err != nil {
		return err
	}
	c := dialed.(*net.TCPConn)
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	data := make([]byte, 1+random.IntN(100_000))
	for i := range data {
		data[i] = byte(i ^ i>>8)
	}
	whole := func() error {
		got, err := io.ReadAll(c)
		if err == nil && !bytes.Equal(got, data) {
			err = fmt.Errorf("%d of %d bytes came back, or others", len(got), len(data))
		}
		return err
	}
	switch random.IntN(9) {
	case 0: // says nothing
		pause(2 * time.Second)
	case 1: // leaves at once
		c.SetLinger(0)
	case 2: // as it should be
		go func() { c.Write(data); c.CloseWrite() }()
		return whole()
	case 3: // reads late
		sent := make(chan struct{})
		go func() { c.Write(data); c.CloseWrite(); close(sent) }()
		pause(2 * time.Second)
		err := whole()
		<-sent
		return err
	case 4: // never reads
		c.SetWriteDeadline(time.Now().Add(time.Duration(random.Int64N(int64(time.Second)))))
		for err := error(nil); err == nil; time.Sleep(time.Millisecond) {
			_, err = c.Write(data)
		}
		c.SetLinger(random.IntN(2) - 1)
	case 5: // sends single bytes and resets
		for range random.IntN(20) {
			c.Write(data[:1])
			pause(100 * time.Millisecond)
		}
		c.SetLinger(0)
	case 6: // half-closes at once
		data = nil
		c.CloseWrite()
		return whole()
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

// faultServer misbehaves towards a client that awaits size bytes; it tells whether it did not.
func faultServer(c *net.TCPConn, size int64, random *rand.Rand) (honest bool) {
	part := random.Int64N(size)
	switch fate := random.IntN(8); fate {
	case 0, 1, 2: // as it should be, in one go or in pieces
		for n := int64(0); n < size; {
			m := min(size-n, 1+random.Int64N(size))
			io.CopyN(c, c, m)
			n += m
			if fate > 0 {
				time.Sleep(time.Duration(random.IntN(100)) * time.Millisecond)
			}
		}
		io.Copy(c, c)
		return true
	case 3: // resets
		io.CopyN(c, c, part)
		resets(c)
	case 4: // closes early
		io.CopyN(c, c, part)
		c.CloseWrite()
		io.Copy(io.Discard, c)
	case 5: // returns another byte
		p := make([]byte, size)
		io.ReadFull(c, p)
		p[part] ^= 1 << random.IntN(8)
		c.Write(p)
		io.Copy(io.Discard, c)
	case 6: // returns one too many
		p := make([]byte, size+1)
		io.ReadFull(c, p[:size])
		c.Write(p)
		io.Copy(io.Discard, c)
	case 7: // falls silent
		io.CopyN(c, c, part)
		ignores(c)
	}
	return false
}

// faultEndless is p without a limit to its time.
func faultEndless(p *process) *process {
	c := exec.Command(p.Args[0], p.Args[1:]...)
	c.Env, c.Stdout, c.Stderr, c.WaitDelay = p.Env, p.Stdout, p.Stderr, p.WaitDelay
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.stop()
	p.Cmd, p.stop = c, func() { c.Process.Kill() }
	return p
}

// faultAwait waits until somebody listens.
func faultAwait(t testing.TB, port string) {
	t.Helper()
	eventually(t, func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			c.Close()
		}
		return err == nil
	}, func() string { return "nobody listens" })
}

// TestFaultSoak: hundreds of connections, in both roles, whose peers misbehave at random. What a
// server holds afterwards is what it held before.
func TestFaultSoak(t *testing.T) {
	t.Parallel()
	faultRig(t)
	const each, n, size = 150, 100, 20_001
	port, shortPort := port0(t), port0(t)
	server := faultEndless(command(t, "1", nil, "-serve", "127.0.0.1", port)).start(t)
	short := faultEndless(command(t, "1", limited(64), "-serve", "127.0.0.1", shortPort)).start(t)
	faultAwait(t, port)
	faultAwait(t, shortPort)
	time.Sleep(100 * time.Millisecond)
	before, shortBefore := faultHeld(t, server), faultHeld(t, short)
	faithful := faultEndless(command(t, "1", nil, "-q", "-n", strconv.Itoa(n), "-count", "0", "-every", "200ms", "-connect-timeout", "30s", "-io-timeout", "30s", "127.0.0.1", port, "hello")).start(t)

	end := time.Now().Add(*soak)
	var work sync.WaitGroup
	var clients, served, honest, runs atomic.Int64
	for i := range 2 * each {
		random := rand.New(rand.NewPCG(uint64(i), 7))
		work.Go(func() {
			for time.Now().Before(end) {
				time.Sleep(time.Duration(random.IntN(600)) * time.Millisecond)
				clients.Add(1)
				if i%2 == 0 {
					if err := faultClient(port, random); err != nil {
						t.Errorf("a client: %v", err)
						return
					}
				} else {
					faultClient(shortPort, random) // it may have to wait for a descriptor too long
				}
			}
		})
	}
	for i := range 2 {
		work.Go(func() {
			for time.Now().Before(end) {
				var seeds, good atomic.Int64
				_, port := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
					c.SetDeadline(time.Now().Add(hang))
					if faultServer(c, size, rand.New(rand.NewPCG(uint64(runs.Load()), uint64(seeds.Add(1))<<1+uint64(i)))) {
						good.Add(1)
					}
				})
				p := command(t, "1", nil, "-n", strconv.Itoa(n), "-connect-timeout", "30s", "-io-timeout", "5s", "127.0.0.1", port, strings.Repeat("m", size-1))
				p.start(t)
				<-p.over
				eventually(t, func() bool { return seeds.Load() == n }, func() string { return "not all came" })
				runs.Add(1)
				line := result{stderr: p.stderr.String()}.lastLine()
				served.Add(n)
				time.Sleep(50 * time.Millisecond) // the last of them find out
				honest.Add(good.Load())
				if want := fmt.Sprintf(" ok=%d failed=%d ", good.Load(), n-good.Load()); !strings.Contains(line, want) || p.ProcessState.ExitCode() != 1 {
					t.Errorf("status %d, want%sin %q: %s", p.ProcessState.ExitCode(), want, line, tail(p.stderr.String()))
				}
			}
		})
	}
	time.Sleep(time.Until(end) / 2)
	middle, clientMiddle := faultHeld(t, server), faultHeld(t, faithful)
	work.Wait()
	clientAfter := faultHeld(t, faithful)
	faithful.signal(t, syscall.SIGTERM)
	if r := faithful.end(t); r.status != 143 || !strings.Contains(r.lastLine(), "failed=0") {
		t.Errorf("the client that went round: status %d, %s", r.status, tail(r.stderr))
	} else {
		t.Log(r.lastLine())
	}
	for _, s := range []struct {
		*process
		before faultUsage
	}{{server, before}, {short, shortBefore}} {
		eventually(t, func() bool { return faultHeld(t, s.process).fds == s.before.fds }, func() string {
			return fmt.Sprintf("at first %v, now %v", s.before, faultHeld(t, s.process))
		})
		after := faultHeld(t, s.process)
		idle := faultIdle(t, s.process, time.Second)
		t.Logf("server, before: %v", s.before)
		t.Logf("server, after:  %v", after)
		if idle > 20*time.Millisecond {
			t.Errorf("%v of processor time in an idle second", idle)
		}
		if after.peak > 128<<10 {
			t.Errorf("memory grows: %v", after)
		}
	}
	t.Logf("server, meanwhile: %v", middle)
	t.Logf("client, meanwhile: %v", clientMiddle)
	t.Logf("client, at last:   %v", clientAfter)
	if n := strings.Count(short.stderr.String(), "too many open files"); n > 1+int(*soak/time.Minute) {
		t.Errorf("the server without descriptors complained %d times", n)
	}
	t.Logf("in %v: %d clients of servers; %d clients' connections in %d runs, %d to honest peers", *soak, clients.Load(), served.Load(), runs.Load(), honest.Load())
	echomux(t, nil, "127.0.0.1", shortPort, "hello").want(t, 0, "127.0.0.1:"+shortPort, `echomux: A ok .*`)
}
