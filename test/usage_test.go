package test

import (
	"debug/elf"
	"os"
	"runtime"
	"strings"
	"testing"
)

// refused are command lines, and what the error has to name. HOST and PORT in them are those of a
// peer, and ” is an empty word.
var refused = map[string]string{
	"HOST": "PORT", "HOST:": "PORT", ":PORT": "HOST", "'' PORT": "HOST", "[::1]": "PORT",
	"HOST 0": "0", "HOST 65536": "65536", "HOST http": "http", "HOST -7": "-7", "HOST:0": "0",
	"HOST 7x": "7x", "HOST ''": "PORT", "[::1]:70000": "70000",

	"-x HOST PORT": "-x", "-\x1b[31m HOST PORT": "-", "--- HOST PORT": "---", "-n": "-n",
	"-json=maybe HOST PORT": "maybe", "-connect-timeout HOST PORT": "-connect-timeout",
	"-connect-timeout -1s HOST PORT": "-connect-timeout", "-io-timeout 5 HOST PORT": "-io-timeout",
	"-io-timeout -1ms HOST PORT": "-io-timeout", "-every -1s HOST PORT": "-every",
	"-every soon HOST PORT": "soon", "-n 0 HOST PORT": "-n", "-n -1 HOST PORT": "-n",
	"-n many HOST PORT": "many", "-count -1 HOST PORT": "-count", "-count 1.5 HOST PORT": "1.5",
	"-size 0 HOST PORT": "-size", "-size -1 HOST PORT": "-1", "-size 1T HOST PORT": "1T",
	"-size K HOST PORT": "-size", "-size 1KK HOST PORT": "1KK", "-size 1.5M HOST PORT": "1.5M",
	"-size '' HOST PORT": "-size", "-size 99999999999999999999 HOST PORT": "99999999999999999999",
	"-size 9999999999G HOST PORT": "9999999999G",

	"HOST PORT -n": "-n", "HOST PORT a -v": "-v", "HOST:PORT -x": "-x", "HOST PORT a -- b": "--",
	"HOST PORT --": "--", "HOST:PORT --": "--", "HOST PORT - a": "-", "HOST PORT a -": "-",
	"HOST PORT - -": "-", "-size 10 HOST PORT word": "word", "-size 10 HOST PORT -": "-",
	"-connect HOST PORT word": "word", "-connect HOST PORT -": "-",
	"-serve HOST PORT word": "word", "-serve HOST PORT -": "-", "-serve HOST:PORT word": "word",

	"-serve": "PORT", "-serve 65536": "65536", "-serve HOST http": "http", "-serve -1": "-1",
	"-serve localhost PORT": "localhost", "-serve localhost:PORT": "localhost",
	"-serve -n 2 PORT": "-n", "-serve -count 2 PORT": "-count", "-serve -size 10 PORT": "-size",
	"-serve -connect PORT": "-connect", "-serve -every 1s PORT": "-every",
	"-serve -connect-timeout 1s PORT": "-connect-timeout", "-4 -serve PORT": "-4",
	"-io-timeout 1s -serve PORT": "-io-timeout", "-serve -6 PORT": "-6",

	"fe80::1 PORT": "fe80::1", "[fe80::1] PORT": "fe80::1", "[fe80::1]:PORT": "fe80::1",
	"-serve fe80::1 PORT": "fe80::1", "-serve [fe80::1]:0": "fe80::1",
}

// TestUsage: a command line that is refused exits 2, with one line on standard error that names the
// word, and nothing is sent.
func TestUsage(t *testing.T) {
	skipShort(t)
	var peer recorder
	port := listen(t, "127.0.0.1:0", peer.play)
	t.Cleanup(func() {
		if len(peer.bytes()) > 0 {
			t.Errorf("the peer has read %q", peer.bytes())
		}
	})
	cases := map[string][2]string{}
	for words, named := range refused {
		cases[words] = [2]string{words, named}
	}
	each(t, cases, func(t *testing.T, c [2]string) {
		args := strings.Fields(strings.NewReplacer("HOST", "127.0.0.1", "PORT", port).Replace(c[0]))
		for i, arg := range args {
			args[i] = strings.ReplaceAll(arg, "''", "")
		}
		r := run(t, args...)
		rest, isOurs := strings.CutPrefix(r.stderr, "echomux: ")
		isOne := isOurs && r.stdout == "" && strings.Count(r.stderr, "\n") == 1
		if r.status != 2 || !isOne || !strings.Contains(rest, c[1]) {
			t.Errorf("%q: exit status %d, want 2 and a line with %q: %q and %q",
				args, r.status, c[1], r.stdout, r.stderr)
		}
	})
}

// TestHelp: -h fits a terminal, and says all that there is to say.
func TestHelp(t *testing.T) {
	t.Parallel()
	r := run(t, "-h")
	lines := strings.Split(strings.TrimSuffix(r.stdout, "\n"), "\n")
	if r.status != 0 || r.stderr != "" || len(lines) > 24 {
		t.Errorf("exit status %d, %d lines: %q", r.status, len(lines), r.stderr)
	}
	for _, text := range lines {
		if len(text) > 80 || strings.Contains(text, "\t") {
			t.Errorf("this line has %d columns: %q", len(text), text)
		}
	}
	for _, word := range []string{"-connect-timeout", "3.5s", "-io-timeout", "5.5s", "-connect ",
		"-size", "-n ", "-count", "-every", "-4", "-6", "-json", "-v", "-q", "-version", "-serve",
		"HOST PORT", "MESSAGE", "ADDRESS"} {
		if !strings.Contains(r.stdout, word) {
			t.Errorf("nothing of %s", word)
		}
	}
}

// TestVersion: the module's version, Go's, and the target; and on Linux the file is static.
func TestVersion(t *testing.T) {
	t.Parallel()
	r := run(t, "-version")
	if r.status != 0 || r.stderr != "" || !versionLine.MatchString(r.stdout) {
		t.Errorf("exit status %d: %q and %q", r.status, r.stdout, r.stderr)
	}
	target := " " + runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH + "\n"
	if os.Getenv("ECHOMUX") == "" && !strings.HasSuffix(r.stdout, target) {
		t.Errorf("it was built with %q, and says %q", target, r.stdout)
	}
	words := echomux(t).words
	file, err := elf.Open(words[len(words)-1])
	if err != nil {
		t.Skip("it is no program of Linux: ", err)
	}
	defer file.Close()
	for _, part := range file.Progs {
		if part.Type == elf.PT_INTERP || part.Type == elf.PT_DYNAMIC {
			t.Errorf("it wants to be linked when it is loaded: %v", part.Type)
		}
	}
}
