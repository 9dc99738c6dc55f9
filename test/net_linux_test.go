package test

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Networks with faults. A test that wants one makes namespaces for itself (namespaces(7)), which
// takes root: a network of nothing but loopback, where nft and ip do what routers and cables do,
// an /etc that is empty, and its own processes. No packet leaves it.

const spaceVariable = "ECHOMUX_TEST_SPACE"

// inSpace runs the calling test once more, in namespaces of its own. It is true in there, and false
// outside, where nothing is left to do.
func inSpace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(spaceVariable) != "" {
		shell(t, `ip link set lo up
			mount -t tmpfs none /etc
			echo space >/proc/sys/kernel/hostname`) // its domain would be a search list
		return true
	}
	needProcess(t) // of an emulator the kernel is the same, and it takes seconds for what takes none
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	unshare := strings.Fields("--net --mount --uts --pid --fork --kill-child --mount-proc")
	words := append([]string{needTool(t, "unshare")}, unshare...)
	p := tool(t, append(words, self, "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=50s")...)
	p.Env = append(os.Environ(), spaceVariable+"=1",
		"ECHOMUX="+strings.Join(echomux(t).words, " "))
	r := p.start(t).end(t)
	switch {
	case strings.HasPrefix(r.stderr, "unshare: "):
		t.Skipf("namespaces take root: %s", r.stderr)
	case r.status != 0:
		t.Errorf("in its namespaces:\n%s%s", r.stdout, r.stderr)
	case strings.Contains(r.stdout, "--- SKIP: "+t.Name()+" "):
		t.Skipf("in its namespaces:\n%s", r.stdout)
	default:
		t.Log(r.stdout)
	}
	return false
}

// shell runs commands that set up a network, and skips where one of them cannot.
func shell(t testing.TB, commands string) {
	t.Helper()
	for _, name := range []string{"ip", "nft"} {
		needTool(t, name)
	}
	said, err := exec.Command("sh", "-ec", commands).CombinedOutput()
	if err != nil {
		t.Skipf("this machine has no such network: %v: %s: %s", err, said, commands)
	}
}

// rules has nft do something with packets that arrive.
func rules(t testing.TB, text string) {
	t.Helper()
	shell(t, `nft -f - <<END
		table inet faults {
			chain input {
				type filter hook input priority 0
				`+text+`
			}
		}
END`)
}

// etc writes a file of /etc, which is the test's own.
func etc(t testing.TB, name, text string) {
	t.Helper()
	err := os.WriteFile("/etc/"+name, []byte(text), 0o644)
	if err != nil {
		t.Fatal(err)
	}
}

// outcome is a run over a network, and what has to come of it.
type outcome struct {
	flags  string
	host   string
	status int
	cause  string // of the last line
	values string // of the same line
}

// check runs the program against a port.
func (o outcome) check(t *testing.T, port string) {
	t.Helper()
	args := append(strings.Fields(o.flags), o.host, port, "hello")
	if strings.Contains(o.flags, "-size") {
		args = args[:len(args)-1]
	}
	msg := "failed"
	if o.status == 0 {
		msg = "ok"
	}
	run(t, args...).want(t, o.status, msg, o.cause).wantValues(t, o.values)
}

func checkAll(t *testing.T, port string, outcomes []outcome) {
	for _, o := range outcomes {
		t.Run(o.host, func(t *testing.T) {
			t.Parallel()
			o.check(t, port)
		})
	}
}

// TestNetConnect: what firewalls, routers and routes do to a connect, and what several addresses of
// a name make of that.
func TestNetConnect(t *testing.T) {
	if !inSpace(t) {
		return
	}
	rules(t, `
		ip daddr { 127.0.1.1, 127.0.1.11, 127.0.1.12, 127.0.1.13 } drop
		ip daddr 127.0.1.2 meta l4proto tcp reject with tcp reset
		ip daddr 127.0.1.3 reject with icmp type host-unreachable
		ip daddr 127.0.1.4 reject with icmp type port-unreachable
		ip daddr 127.0.1.5 reject with icmp type admin-prohibited
		ip daddr 127.0.1.6 ip length > 1400 drop`)
	shell(t, `
		ip route add unreachable 192.0.2.1
		ip route add prohibit 192.0.2.2
		ip route add blackhole 192.0.2.3
		ip route add unreachable 2001:db8::1`)
	etc(t, "hosts", `
		127.0.1.1  half
		127.0.0.1  half
		127.0.1.1  last
		127.0.1.11 last
		127.0.1.12 last
		127.0.1.13 last
		127.0.0.1  last
		127.0.1.1  silent
		127.0.1.11 silent
		127.0.1.2  answered
		127.0.1.1  answered
		127.0.1.3  second
		127.0.0.1  second
		127.0.1.3  unreachable
		192.0.2.1  unreachable`)
	port := listen(t, "127.0.0.1:0", echoes)
	listen(t, "127.0.1.6:"+port, echoes)
	const short = "-connect-timeout 1s"
	checkAll(t, port, []outcome{
		{short, "127.0.1.1", 4, "127.0.1.1: timed out", "sent=0 connect_ms="},
		{"", "127.0.1.2", 3, "127.0.1.2: connection refused", "sent=0"},
		{"", "127.0.1.3", 3, "127.0.1.3: *unreachable*", "sent=0"},
		{"", "127.0.1.4", 3, "127.0.1.4: connection refused", "sent=0"},
		{"", "127.0.1.5", 3, "127.0.1.5: *unreachable*", "sent=0"},
		{"-size 4K -io-timeout 600ms", "127.0.1.6", 5,
			"timed out after 600ms of silence (0 of 4096 bytes)", "sent=4096 returned=0"},
		{"", "192.0.2.1", 3, "192.0.2.1: *unreachable*", "sent=0"},
		{"", "192.0.2.2", 3, "192.0.2.2: *permission denied", "sent=0"},
		{"", "192.0.2.3", 3, "192.0.2.3: *invalid argument", "sent=0"}, // so Linux says
		{"", "192.0.2.4", 3, "192.0.2.4: *unreachable*", "sent=0"},     // there is no route
		{"", "2001:db8::1", 3, "2001:db8::1: *unreachable*", "sent=0"},
		{short, "half", 0, "", "skipped=127.0.1.1:* peer=127.0.0.1:" + port},
		{"", "last", 0, "", "skipped=127.0.1.1:*127.0.1.13:* peer=127.0.0.1:" + port},
		{short, "silent", 4, "127.0.1.1: timed out; 127.0.1.11: timed out", ""},
		{short, "answered", 3, "127.0.1.2: connection refused; 127.0.1.1: timed out", ""},
		{"", "second", 0, "", "skipped=127.0.1.3:*unreachable peer=127.0.0.1:" + port},
		{"", "unreachable", 3, "127.0.1.3: *; 192.0.2.1: *", ""},
	})
}

// TestNetDeadFirst: the first address does not answer, the second one fails at once. There is
// nothing to do until the limit, and no processor time is spent on it.
func TestNetDeadFirst(t *testing.T) {
	if !inSpace(t) {
		return
	}
	rules(t, "ip daddr 127.0.1.1 drop")
	etc(t, "hosts", "127.0.1.1 board\n192.0.2.4 board\n")
	p := command(t, nil, "-connect-timeout", "3s", "board", "7").start(t)
	p.end(t).want(t, 4, "failed", "127.0.1.1: timed out; 192.0.2.4: *unreachable*")
	used := p.ProcessState.UserTime() + p.ProcessState.SystemTime()
	if used > 400*time.Millisecond {
		t.Errorf("it used %v of processor time in 3s", used)
	}
}

// TestNetGivenUp: the kernel gives a peer up in the middle, and says why. (tcp_retries2 has it do
// so after a second, and not after a quarter of an hour.)
func TestNetGivenUp(t *testing.T) {
	if !inSpace(t) {
		return
	}
	shell(t, `echo 1 >/proc/sys/net/ipv4/tcp_retries2
		ip address add 192.0.2.1/32 dev lo`)
	for _, test := range []struct {
		host  string
		fault func(t *testing.T)
		cause string
	}{
		{"127.0.1.1", func(t *testing.T) { rules(t, "ip daddr 127.0.1.1 drop") },
			"timed out (0 of 6 bytes)*"},
		{"127.0.1.2", func(t *testing.T) {
			rules(t, "ip daddr 127.0.1.2 reject with icmp type host-unreachable")
		}, "*unreachable (0 of 6 bytes)*"},
		{"192.0.2.1", func(t *testing.T) { shell(t, "ip address del 192.0.2.1/32 dev lo") },
			"* (0 of 6 bytes)*"}, // silence too, if it was the peer that could send no more
	} {
		t.Run(test.host, func(t *testing.T) {
			t.Parallel()
			port := listen(t, test.host+":0", echoes)
			args := strings.Fields("-io-timeout 10s -count 0 -every 20ms " + test.host)
			p := command(t, nil, append(args, port, "hello")...).start(t)
			p.await(t, p.stdout, "msg=round", 3)
			test.fault(t)
			p.end(t).want(t, 5, "failed", test.cause)
		})
	}
}

// TestNetForgets: a router forgets a flow that is idle, and then drops what belongs to it.
func TestNetForgets(t *testing.T) {
	if !inSpace(t) {
		return
	}
	port := listen(t, "127.0.0.1:0", echoes)
	rules(t, "ct state established,related accept; tcp flags syn / fin,syn,rst,ack accept; drop")
	shell(t, `cd /proc/sys/net/netfilter
		echo 2 >nf_conntrack_tcp_timeout_established
		echo 0 >nf_conntrack_tcp_loose`)
	outcome{"-count 2 -every 4s -io-timeout 1s", "127.0.0.1", 5,
		"timed out after 1s of silence (0 of 6 bytes), idle for *s before round 2",
		"rounds=1 sent=12 returned=6"}.check(t, port)
}

// TestNetLoses: packets that are lost cost time, and nothing else.
func TestNetLoses(t *testing.T) {
	if !inSpace(t) {
		return
	}
	rules(t, "meta l4proto tcp numgen random mod 100 < 5 drop")
	port := listen(t, "127.0.0.1:0", echoes)
	const patient = "-connect-timeout 45s -io-timeout 45s "
	checkAll(t, port, []outcome{
		{patient + "-n 10 -count 10", "127.0.0.1", 0, "", "ok=10 rounds=100 returned=600"},
		{patient + "-size 1M", "127.0.0.1", 0, "", "sent=1048576 returned=1048576"},
	})
}

const noLocal = "cannot assign requested address: " +
	"no local port is free, or this machine has no address of that kind"

// TestNetPorts: with one local port, a connect to that very port reaches itself, a perfect and
// false echo. And while a connection has it, there is none for the next one.
func TestNetPorts(t *testing.T) {
	if !inSpace(t) {
		return
	}
	shell(t, "echo 40000 40000 >/proc/sys/net/ipv4/ip_local_port_range")
	outcome{"", "127.0.0.1", 3, "127.0.0.1: connected to itself*", "sent=0"}.check(t, "40000")
	outcome{"", "::1", 3, "::1: connected to itself*", "sent=0"}.check(t, "40000")
	for _, host := range []string{"127.0.0.2", "::1"} {
		t.Run(host, func(t *testing.T) {
			at := net.JoinHostPort(host, "9")
			listen(t, at, echoes)
			c, err := net.Dial("tcp", at) // and has the port
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			outcome{"", host, 3, host + ": " + noLocal, "sent=0"}.check(t, "9")
		})
	}
}

// startAnywhere starts a server without an address, and returns where it says that it listens.
func startAnywhere(t *testing.T, launcher ...string) (at, port string) {
	t.Helper()
	p := command(t, launcher, "-serve", "0").start(t)
	port = p.listening(t)
	return strings.Fields(p.stdout.String())[2], port
}

// TestNetFamilies: without IPv6, and without anything.
func TestNetFamilies(t *testing.T) {
	if !inSpace(t) {
		return
	}
	_, both := startAnywhere(t)
	outcome{"", "127.0.0.1", 0, "", "peer=127.0.0.1:" + both}.check(t, both)
	outcome{"", "::1", 0, "", "peer=[::1]:" + both}.check(t, both)
	shell(t, "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6")
	_, port := startAnywhere(t)
	outcome{"", "127.0.0.1", 0, "", "peer=127.0.0.1:" + port}.check(t, port)
	outcome{"", "::1", 3, "::1: " + noLocal, "sent=0"}.check(t, port)

	down := []string{needTool(t, "unshare"), "--net"} // where nobody has raised lo
	command(t, down, "127.0.0.1", port).start(t).end(t).
		want(t, 3, "failed", "127.0.0.1: *unreachable*")
	command(t, down).start(t).end(t).want(t, 3, "failed", "127.0.0.1: *unreachable*")
}

// TestNetZones: a link-local address is one of an interface.
func TestNetZones(t *testing.T) {
	if !inSpace(t) {
		return
	}
	shell(t, `ip link add near type veth peer name far
		ip address add fe80::7/64 dev near nodad
		ip link set near up
		ip link set far up`)
	port := listen(t, "[fe80::7%near]:0", echoes)
	outcome{"", "fe80::7%near", 0, "", "target=[fe80::7%near]:" + port}.check(t, port)
	outcome{"", "fe80::7%nobody", 3, "fe80::7%nobody: *", "sent=0"}.check(t, port)
	p := command(t, nil, "-serve", "fe80::7%near", "0").start(t)
	served := p.listening(t)
	outcome{"", "fe80::7%near", 0, "", "peer=[fe80::7%*]:" + served}.check(t, served)
	for _, args := range [][]string{{"fe80::7", port}, {"-serve", "fe80::7", "0"}} {
		r := run(t, args...)
		if r.status != 2 || !strings.Contains(r.stderr, "zone") {
			t.Errorf("%q: exit status %d, %q", args, r.status, r.stderr)
		}
	}
}

// TestNetBacklog: connections that nobody accepts wait in the kernel, and those for which it has no
// room wait outside.
func TestNetBacklog(t *testing.T) {
	if !inSpace(t) {
		return
	}
	needSignals(t)
	shell(t, "echo 8 >/proc/sys/net/core/somaxconn")
	server, port := startServer(t, nil)
	server.signal(t, syscall.SIGSTOP)
	args := strings.Fields("-v -n 30 -connect-timeout 45s -io-timeout 45s 127.0.0.1 " + port)
	p := command(t, nil, args...).start(t)
	p.await(t, p.stderr, "switch to non-blocking mode", 30)
	outcome{"-connect-timeout 500ms", "127.0.0.1", 4, "127.0.0.1: timed out", ""}.check(t, port)
	server.signal(t, syscall.SIGCONT)
	p.end(t).want(t, 0, "ok", "").wantValues(t, "ok=30")
}

// TestNetStrangers: connections that were reset before they were accepted are no reason to pause.
func TestNetStrangers(t *testing.T) {
	t.Parallel()
	needSignals(t)
	server, port := startServer(t, nil)
	server.signal(t, syscall.SIGSTOP)
	for range 20 {
		resets(dial(t, port))
	}
	p := command(t, nil, "127.0.0.1", port).start(t)
	server.signal(t, syscall.SIGCONT)
	p.end(t).want(t, 0, "ok", "")
	server.signal(t, syscall.SIGTERM)
	r := server.end(t)
	r.want(t, 0, "ended", "").wantValues(t, "clients=21 received=12 returned=12")
	if len(r.of("paused")) > 0 {
		t.Errorf("it paused: %s", r.stdout)
	}
}

// TestNetUnspecified: what stands for this machine has an address in the end.
func TestNetUnspecified(t *testing.T) {
	t.Parallel()
	port := listen(t, "127.0.0.1:0", echoes)
	outcome{"", "0.0.0.0", 0, "", "target=0.0.0.0:* peer=127.0.0.1:" + port}.check(t, port)
}
