package main

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
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
	test.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
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
		ip daddr 127.0.1.1 drop
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
127.0.1.1 silent
127.0.1.2 refused
127.0.1.1 refused
127.0.1.3 late
127.0.1.2 late
127.0.0.1 late
`)
	limit := []string{"-connect-timeout", "1500ms", "-io-timeout", "600ms"}
	for _, test := range []struct {
		host        string
		status      int
		stderr      string
		least, most time.Duration
	}{
		{"127.0.1.1", 4, `connect 127.0.1.1:P: timed out`, 1500 * time.Millisecond, 3 * time.Second},
		{"silent", 4, `connect 127.0.1.1:P: timed out; connect 127.0.1.1:P: timed out`, 1500 * time.Millisecond, 3 * time.Second},
		{"half", 0, `127.0.0.1:P ok`, time.Second, 3 * time.Second},
		{"127.0.1.2", 3, `connect 127.0.1.2:P: connection refused`, 0, time.Second},
		{"refused", 3, `connect 127.0.1.2:P: connection refused; connect 127.0.1.1:P: timed out`, 1500 * time.Millisecond, 3 * time.Second},
		{"127.0.1.3", 3, `connect 127.0.1.3:P: no route to host`, 0, time.Second},
		{"127.0.1.4", 3, `connect 127.0.1.4:P: connection refused`, 0, time.Second},
		{"127.0.1.5", 3, `connect 127.0.1.5:P: no route to host`, 0, time.Second},
		{"late", 0, `127.0.0.1:P ok`, 0, time.Second},
		{"127.0.1.6", 5, `read 127.0.1.6:P: timed out after 600ms of silence \(0 of 6 bytes\) sent=6 returned=0`, 600 * time.Millisecond, 2 * time.Second},
	} {
		t.Run(test.host, func(t *testing.T) {
			t.Parallel()
			r, took := faultRun(t, append(limit, test.host, port, "hello")...)
			r.want(t, test.status, "", "echomux: "+strings.ReplaceAll(test.stderr, "P", port)+".*")
			if took < test.least || took > test.most {
				t.Errorf("it took %v, not %v to %v", took, test.least, test.most)
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
		if took > 2*time.Second {
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
	faultDNS(t, "127.0.0.1:53", func(query []byte) []byte { return faultAnswer(query, 127, 0, 0, 1) })
	for _, test := range []struct {
		servers     string
		status      int
		stderr      string
		least, most time.Duration
	}{
		{"127.0.0.1", 0, `127.0.0.1:P ok`, 0, time.Second},
		{"127.0.0.2", 3, `lookup a.test: name server 127.0.0.2:53: connection refused`, 0, time.Second},
		{"127.0.1.4", 3, `lookup a.test: name server 127.0.1.4:53: connection refused`, 0, time.Second},
		{"192.0.2.1", 3, `lookup a.test: name server 192.0.2.1:53: connect: network is unreachable`, 0, time.Second},
		{"127.0.1.1", 4, `lookup a.test: name server 127.0.1.1:53: timed out`, 1500 * time.Millisecond, 3 * time.Second},
		{"127.0.1.1 127.0.0.1", 0, `127.0.0.1:P ok`, time.Second, 3 * time.Second},
		{"127.0.0.2 192.0.2.1 127.0.0.1", 0, `127.0.0.1:P ok`, 0, time.Second},
	} {
		faultFile(t, "/etc/resolv.conf", "nameserver "+strings.ReplaceAll(test.servers, " ", "\nnameserver ")+"\n")
		r, took := faultRun(t, "-connect-timeout", "2s", "a.test", port, "hello")
		r.want(t, test.status, "", "echomux: "+strings.ReplaceAll(test.stderr, "P", port)+".*")
		if took < test.least || took > test.most {
			t.Errorf("%s: it took %v, not %v to %v", test.servers, took, test.least, test.most)
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
func faultAnswer(query []byte, ip ...byte) []byte {
	n := len(query)
	a := append([]byte{query[0], query[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, query[12:]...)
	if query[n-3] == 1 {
		a[7] = 1
		a = append(append(a, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4), ip...)
	}
	return a
}

// TestFaultLookupDescriptors: a look-up without descriptors is no name's fault.
func TestFaultLookupDescriptors(t *testing.T) {
	if !faultSpace(t) {
		return
	}
	p := command(t, "1", limited(8), "a.test", "7", "hello").start(t)
	if r := p.end(t); r.status != 6 || !strings.Contains(r.stderr, "too many open files (the limit is 8)") {
		t.Errorf("status %d: %q", r.status, r.stderr)
	}
}
