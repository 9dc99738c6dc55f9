package main

import (
	"net"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Names on every system, as far as these go without a name server: no name here can be asked for.

// wantName checks the exit status and that the last line has the words of the cause. Where the name
// could not be looked up it is in the line too.
func (r result) wantName(t testing.TB, status int, host, words string) {
	t.Helper()
	line := r.lastLine()
	before, quotedCause, found := strings.Cut(line, "error=")
	if found {
		cause, _ := strconv.Unquote(quotedCause)
		line = before + cause
	}
	if r.status != status {
		t.Errorf("status %d, want %d: %s", r.status, status, tail(r.stderr))
	}
	if !strings.Contains(line, words) {
		t.Errorf("%q does not say %q", line, words)
	}
	if status != 0 && !strings.Contains(line, host) {
		t.Errorf("%q does not name %s", line, host)
	}
	if status == 0 && r.stdout != "hello\n" {
		t.Errorf("standard output is %q", r.stdout)
	}
}

// TestNamesLocalhost is loopback's on every system, in the families that are asked for.
func TestNamesLocalhost(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "127.0.0.1:0", echoes)
	for _, host := range []string{"localhost", "LOCALHOST.", "board.localhost"} {
		echomux(t, nil, host, port, "hello").wantName(t, 0, host, at)
		echomux(t, nil, "-4", host, port, "hello").wantName(t, 0, host, at)
	}
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skipf("no IPv6 here: %v", err)
	}
	l.Close()
	at, port = serve(t, "[::1]:0", echoes)
	echomux(t, nil, "localhost", port, "hello").wantName(t, 0, "localhost", at)
	echomux(t, nil, "-6", "localhost", port, "hello").wantName(t, 0, "localhost", at)
	faulty(t, "qemu-mips", "SO_ERROR carries the host's error number")
	echomux(t, nil, "-4", "localhost", port, "hello").wantName(t, 3, "127.0.0.1", "connection refused")
}

// TestNamesImpossible: labels that are empty or too long are in no name, and nobody is asked.
func TestNamesImpossible(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"a..b", strings.Repeat("x", 64) + ".test"} {
		start := time.Now()
		r := echomux(t, nil, "-connect-timeout", "20s", host, "7", "hello")
		r.wantName(t, 3, "", "lookup ")
		r.wantName(t, 3, "", "no such name")
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("%s: it took %v", host, took)
		}
	}
}

// TestNamesUsage: what is neither an address nor a name is a word that is wrong, and no question to
// a name server.
func TestNamesUsage(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"127.1", "127.0.0.1.", "1.2.3.256", "256.1.1.1", "0127.0.0.1", "1.2.3", "1", "7.", "a.b.3",
		"[a.test]", "[::1", "[::1]7", ":::", "::1::", "fe80::1%"} {
		r := echomux(t, nil, host, "7", "hello")
		if r.status != 2 || r.stdout != "" || strings.Count(r.stderr, "\n") != 1 || !strings.Contains(r.stderr, host) {
			t.Errorf("%s: status %d, %q", host, r.status, r.stderr)
		}
	}
	r := echomux(t, nil, "[\x1b[31m"+strings.Repeat("x", 5000), "7", "hello")
	if r.status != 2 || len(r.stderr) > 500 || !strings.Contains(r.stderr, `[\x1b[31m`) {
		t.Errorf("status %d, %.500q", r.status, r.stderr)
	}
}

// lastLine is the line that ends a run, a usage error included.
func (r result) lastLine() string {
	lines := strings.Split(strings.TrimSuffix(r.stderr, "\n"), "\n")
	return lines[len(lines)-1]
}
