package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The command line. In the tables a word is what stands between two spaces, and @ an empty one.

func wordsOf(line string) []string {
	words := strings.Fields(line)
	for i, word := range words {
		words[i] = strings.ReplaceAll(word, "@", "")
	}
	return words
}

// usageErrors are command lines that are wrong, and what the error has to name.
var usageErrors = []struct {
	args, names string
}{
	// HOST and PORT
	{"127.0.0.1", `PORT is missing after "127.0.0.1"`},
	{"localhost", `PORT is missing after "localhost"`},
	{"::1", `PORT is missing after "::1"`},
	{"[::1]", `PORT is missing after "[::1]"`},
	{"::1:7 hello", `PORT "hello"`},
	{"127.0.0.1 0 x", `PORT "0"`},
	{"127.0.0.1:0 x", `PORT "0"`},
	{"127.0.0.1 65536 x", `PORT "65536"`},
	{"127.0.0.1 99999999999999999999 x", `PORT "99999999999999999999"`},
	{"127.0.0.1 -7 x", `PORT "-7"`},
	{"127.0.0.1 7.0 x", `PORT "7.0"`},
	{"127.0.0.1 0x7 x", `PORT "0x7"`},
	{"127.0.0.1 echo x", `PORT "echo"`},
	{"127.0.0.1 +7 x", `PORT "+7"`},
	{"127.0.0.1: x", `PORT ""`},
	{"[::1]: x", `PORT ""`},
	{"127.0.0.1 @ x", `PORT ""`},
	{"127.0.0.1 -- 7", `PORT "--"`},
	{"@ 7 x", "HOST must not be empty"},
	{":7 x", "HOST must not be empty"},
	{"[] 7 x", `"[]"`},
	{"[]:7 x", `"[]:7"`},
	{"[board]:7 x", `"[board]:7"`},
	{"[::1 7 x", `"[::1"`},
	{"[::1]7 x", `"[::1]7"`},
	{"[[::1]]:7 x", `"[[::1]]:7"`},
	{"a:b:c 7 x", "a:b:c"},
	{"1.2.3.4:5:6 7 x", "1.2.3.4:5:6"},
	// what looks like an address and is none
	{"127.1 7 x", "127.1"},
	{"1 7 x", `"1"`},
	{"1.2.3.256 7 x", "1.2.3.256"},
	{"1.2.3.4. 7 x", "1.2.3.4."},
	{"1.2.3.4.5:7 x", "1.2.3.4.5"},
	{"host.1 7 x", "host.1"},
	{"-serve 127.1 7", "127.1"},
	// words that look like flags, behind PORT
	{"127.0.0.1 7 -count 3", `"-count"`},
	{"127.0.0.1 7 hello -count 3", `"-count"`},
	{"127.0.0.1:7 -v", `"-v"`},
	{"127.0.0.1 7 hello --", `"--"`},
	{"127.0.0.1 7 --count=3", `"--count=3"`},
	{"127.0.0.1 7 -7", `"-7"`},
	// times
	{"-connect-timeout -1s 127.0.0.1 7 x", "-connect-timeout"},
	{"-connect-timeout 5 127.0.0.1 7 x", `"5" for flag -connect-timeout`},
	{"-connect-timeout soon 127.0.0.1 7 x", "soon"},
	{"-io-timeout -1ns 127.0.0.1 7 x", "-io-timeout"},
	{"-io-timeout 1e3s 127.0.0.1 7 x", "1e3s"},
	{"-io-timeout", "-io-timeout"},
	{"-every -1s 127.0.0.1 7 x", "-every"},
	{"-every 1 127.0.0.1 7 x", `"1" for flag -every`},
	{"-progress -1s 127.0.0.1 7 x", "-progress"},
	{"-progress= 127.0.0.1 7 x", `"" for flag -progress`},
	// numbers
	{"-n 0 127.0.0.1 7 x", "-n 0"},
	{"-n -1 127.0.0.1 7 x", "-n -1"},
	{"-n many 127.0.0.1 7 x", "many"},
	{"-n 1.5 127.0.0.1 7 x", "1.5"},
	{"-n 99999999999999999999 127.0.0.1 7 x", "99999999999999999999"},
	{"-n= 127.0.0.1 7 x", `"" for flag -n`},
	{"-count -1 127.0.0.1 7 x", "-count -1"},
	{"-count 1s 127.0.0.1 7 x", "1s"},
	// other flags
	{"-v=maybe 127.0.0.1 7 x", "maybe"},
	{"-until never 127.0.0.1 7 x", "never"},
	{"-until @ 127.0.0.1 7 x", "-until"},
	{"-until ECHO 127.0.0.1 7 x", "ECHO"},
	{"-source here 127.0.0.1 7 x", `"here" for flag -source`},
	{"-source @ 127.0.0.1 7 x", "-source"},
	{"-source 127.0.0.1:7 127.0.0.1 7 x", "127.0.0.1:7"},
	{"-source 127.1 127.0.0.1 7 x", "127.1"},
	{"-source localhost 127.0.0.1 7 x", "localhost"},
	{"-nosuch 127.0.0.1 7 x", "-nosuch"},
	{"-retry 3 127.0.0.1 7 x", "-retry"},
	{"---v 127.0.0.1 7 x", "---v"},
	// what does not go together
	{"-4 -6 127.0.0.1 7 x", "-4 and -6 exclude each other (echomux -h"},
	{"-4 -source ::1 h 7 x", "-source ::1"},
	{"-6 -source 192.0.2.1 h 7 x", "-source 192.0.2.1"},
	{"-q -v 127.0.0.1 7 x", "-q and -v exclude each other (echomux -h"},
	{"-q -v", "-q and -v exclude each other (echomux -h"},
	{"-v -q -serve 7", "-q and -v exclude each other (echomux -h"},
	{"-until connect 127.0.0.1 7 x", "-until connect"},
	{"-until connect 127.0.0.1:7 -- x", "-until connect"},
	{"-until connect -count 2 127.0.0.1 7", "-count"},
	{"-until connect -count 0 127.0.0.1 7", "-count"},
	{"-until eof -count 2 127.0.0.1 7 x", "-count"},
	{"-count -1 -q -v -every 1s 127.0.0.1 7", "-count"}, // the first of several
	{"-q -v -source ::1 -4 127.0.0.1 7 x", "-q"},
	{"-every 1s 127.0.0.1 7", "-every needs a -count"},
	{"-until eof -every 1s 127.0.0.1 7 x", "-every"},
	{"-until connect -every 1s 127.0.0.1 7", "-every"},
	// the server
	{"-serve", "PORT is missing after -serve"},
	{"-serve 127.0.0.1", `"127.0.0.1"`},
	{"-serve 127.0.0.1 7 x", `"x"`},
	{"-serve 127.0.0.1 7 x y", `"x"`},
	{"-serve 127.0.0.1:7 x", `"x"`},
	{"-serve :7 x", `"x"`},
	{"-serve 70000", "70000"},
	{"-serve :", `PORT ""`},
	{"-serve -1", "-1"},
	{"-serve @ 7", "HOST must not be empty"},
	{"-serve @", `PORT ""`},
	{"-serve [80]", `"[80]": must be [ADDRESS]`},
	{"-serve [", `"[": must be [ADDRESS]`},
	{"-serve [127.0.0.1]", `PORT is missing after "[127.0.0.1]"`},
	{"-serve ::1", `PORT is missing after "::1"`},
	{"-serve -n 2 7", "-serve does not go with -n (echomux -h"},
	{"-serve -count 2 7", "-serve does not go with -count (echomux -h"},
	{"-serve -every 1s 7", "-serve does not go with -every (echomux -h"},
	{"-serve -progress 1s 7", "-serve does not go with -progress (echomux -h"},
	{"-serve -until eof 7", "-serve does not go with -until (echomux -h"},
	{"-serve -source 127.0.0.1 7", "-serve does not go with -source (echomux -h"},
}

// TestUsage: each error names the word that is wrong, and exits 2 with one line on standard error.
const usageFile = "testdata/usage.txt"

var usageUpdate = flag.Bool("usage.update", false, "write "+usageFile+" anew, to be read over")

// TestUsage: what is wrong is named, in the words of testdata/usage.txt.
func TestUsage(t *testing.T) {
	t.Parallel()
	written, err := os.ReadFile(usageFile)
	if err != nil {
		t.Fatal(err)
	}
	all := ""
	for _, test := range usageErrors {
		r := echomux(t, nil, wordsOf(test.args)...)
		if r.status != 2 || !strings.Contains(r.stderr, test.names) {
			t.Errorf("echomux %s: status %d, %q; want 2 and %s",
				test.args, r.status, r.stderr, test.names)
		}
		text := fmt.Sprintf("$ echomux %s\n%s", test.args, r.stderr)
		all += text
		if !strings.Contains(string(written), text) && !*usageUpdate {
			t.Errorf("%s lacks this:\n%s", usageFile, text)
		}
	}
	if *usageUpdate {
		os.WriteFile(usageFile, []byte(all), 0o644)
	} else if !t.Failed() && string(written) != all {
		t.Errorf("%s has what nothing says any more, or another order", usageFile)
	}
	r := echomux(t, nil, "a\x1b2J\nb", "7\xff")
	if r.status != 2 || !strings.Contains(r.stderr, `"7\xff"`) {
		t.Errorf("status %d, %q", r.status, r.stderr)
	}
}

// places are the forms of HOST, PORT and MESSAGEs. A block of "-" is standard input.
var places = []struct {
	args, host string
	port       uint16
	block      string
}{
	{"127.0.0.1 7", "127.0.0.1", 7, "-"},
	{"127.0.0.1 007", "127.0.0.1", 7, "-"},
	{"127.0.0.1:65535", "127.0.0.1", 65535, "-"},
	{"127.0.0.1:7 hello", "127.0.0.1", 7, "hello\n"},
	{"127.0.0.1:7 8 hello", "127.0.0.1", 7, "8\nhello\n"},
	{"board 7 hello", "board", 7, "hello\n"},
	{"board:7 hello", "board", 7, "hello\n"},
	{"a.b1. 7", "a.b1.", 7, "-"},
	{"a.1~ 7", "a.1~", 7, "-"},
	{"-until eof -until echo -every 1s board 7 x", "board", 7, "x\n"},
	{"-source ::1", "::1", 0, "data1\ndata2\n"},
	{"-6", "::1", 0, "data1\ndata2\n"},
	{"-4", "127.0.0.1", 0, "data1\ndata2\n"},
	{"1a 7", "1a", 7, "-"},
	{"::1 7 hello", "::1", 7, "hello\n"},
	{"[::1] 7 hello", "::1", 7, "hello\n"},
	{"[::1]:7 hello", "::1", 7, "hello\n"},
	{"[127.0.0.1] 7", "127.0.0.1", 7, "-"},
	{"fe80::1%lo 7", "fe80::1%lo", 7, "-"},
	{"[fe80::1%lo]:7", "fe80::1%lo", 7, "-"},
	{"::ffff:1.2.3.4 7", "::ffff:1.2.3.4", 7, "-"},
	{"-- 127.0.0.1 7 hello", "127.0.0.1", 7, "hello\n"},
	{"-n 2 -- 127.0.0.1:7 hello", "127.0.0.1", 7, "hello\n"},
	{"127.0.0.1 7 --", "127.0.0.1", 7, "-"},
	{"127.0.0.1 7 -- -count 3", "127.0.0.1", 7, "-count\n3\n"},
	{"127.0.0.1:7 -- -- --", "127.0.0.1", 7, "--\n--\n"},
	{"-- 127.0.0.1 7 -- -v", "127.0.0.1", 7, "-v\n"},
	{"127.0.0.1 7 - @ -", "127.0.0.1", 7, "-\n\n-\n"},
	{"-until connect 127.0.0.1:7", "127.0.0.1", 7, "-"},
	{"-serve 7", "", 7, "-"},
	{"-serve 0", "", 0, "-"},
	{"-serve :7", "", 7, "-"},
	{"-serve :0", "", 0, "-"},
	{"-serve ::1 7", "::1", 7, "-"},
	{"-serve [::1]:7", "::1", 7, "-"},
	{"-serve [::] 0", "::", 0, "-"},
	{"-serve 127.0.0.1:0", "127.0.0.1", 0, "-"},
	{"-serve localhost 7", "localhost", 7, "-"},
}

func TestPlaces(t *testing.T) {
	t.Parallel()
	for _, test := range places {
		o, err := parse(wordsOf(test.args))
		if err != nil {
			t.Errorf("echomux %s: %v", test.args, err)
			continue
		}
		block := "-"
		if o.block != nil {
			block = string(o.block)
		}
		if o.host != test.host || o.port != test.port || block != test.block {
			t.Errorf("echomux %s: %q, %d, %q", test.args, o.host, o.port, block)
		}
	}
}

// TestOneWord: a place in one word is where the run goes.
func TestOneWord(t *testing.T) {
	t.Parallel()
	at, port := serve(t, "127.0.0.1:0", echoes)
	for _, place := range []string{at, "[127.0.0.1] " + port, "[127.0.0.1]:" + port} {
		r := echomux(t, nil, append(strings.Fields(place), "hello")...)
		r.wantLine(t, 0, "ok", "sent=6 returned=6 connect_ms exchange_ms peer="+at, "")
		if r.line(t).place != at {
			t.Errorf("%s is %s", place, r.line(t).place)
		}
	}
	at, port = serve(t, "[::1]:0", echoes)
	for _, place := range []string{at, "::1 " + port, "[::1] " + port} {
		r := echomux(t, nil, append(strings.Fields(place), "hello")...)
		r.wantLine(t, 0, "ok", "sent=6 returned=6 connect_ms exchange_ms peer="+at, "")
		if r.line(t).place != at {
			t.Errorf("%s is %s", place, r.line(t).place)
		}
	}
}

// TestDefaults: the command line without flags, and what each flag changes.
func TestDefaults(t *testing.T) {
	t.Parallel()
	base, err := parse([]string{"h", "7"})
	if err != nil {
		t.Fatal(err)
	}
	if base.connectTimeout != 3500*time.Millisecond || base.ioTimeout != 5500*time.Millisecond ||
		base.until != untilEcho || base.n != 1 || base.count != 1 || base.every != 0 ||
		base.progress != 0 || base.from.IsValid() || base.family != "ip" {
		t.Errorf("the defaults are %+v", base)
	}
	for flags, field := range map[string]string{
		"-connect-timeout 1h30m": "connectTimeout",
		"-connect-timeout=0":     "connectTimeout",
		"--io-timeout 0s":        "ioTimeout",
		"-until eof":             "until",
		"-n 2":                   "n",
		"-count 0":               "count",
		"-count 5":               "count",
		"-every 1ms -count 1":    "every",
		"-progress 1s":           "progress",
		"-source ::1":            "from",
		"-4":                     "family",
		"-6=true":                "family",
		"-v":                     "verbose",
		"-q":                     "quiet",
		"-q=false":               "",
	} {
		words := append(strings.Fields(flags), "h", "7", "x")
		o, err := parse(words)
		if err != nil {
			t.Errorf("%s: %v", flags, err)
			continue
		}
		o.block = nil
		if got := strings.Join(different(base, o), " "); got != field {
			t.Errorf("%s changes %s", flags, got)
		}
	}
}

// different names the fields in which two command lines differ.
func different(a, b *options) (fields []string) {
	left := reflect.ValueOf(*a)
	right := reflect.ValueOf(*b)
	for i := range left.NumField() {
		if fmt.Sprint(left.Field(i)) != fmt.Sprint(right.Field(i)) {
			fields = append(fields, left.Type().Field(i).Name)
		}
	}
	return fields
}

func TestHelp(t *testing.T) {
	t.Parallel()
	for _, args := range []string{"-h", "-help", "--help", "-v -h 127.0.0.1"} {
		r := echomux(t, nil, strings.Fields(args)...)
		for _, words := range []string{"HOST PORT", "MESSAGE", "-serve", "-connect-timeout 3.5s",
			"-io-timeout 5.5s", "-until echo", "-n 1", "-count 1", "-every 0s", "-progress 0s",
			"-source ADDRESS", "-4, -6", "-v, -q", "-version", "README"} {
			if !strings.Contains(r.stdout, words) {
				t.Errorf("%s does not explain %s", args, words)
			}
		}
		lines := strings.Split(strings.TrimSuffix(r.stdout, "\n"), "\n")
		if len(lines) > 24 {
			t.Errorf("%s has %d lines", args, len(lines))
		}
		for _, line := range lines {
			if len(line) > 80 {
				t.Errorf("%s has a line of %d columns: %s", args, len(line), line)
			}
		}
	}
}

// versionForm is version, commit, Go release, target, and whether it is static.
var versionForm = regexp.MustCompile(
	`^echomux (\S+) commit (\S+) (go\S+) (\S+)/(\S+) (static|not known to be static)\n$`)

func TestVersion(t *testing.T) {
	t.Parallel()
	info, ok := debug.ReadBuildInfo()
	r := echomux(t, nil, "-version")
	words := versionForm.FindStringSubmatch(r.stdout)
	if words == nil {
		t.Fatalf("it says %q", r.stdout)
	}
	if ok && words[3] != info.GoVersion || words[4] != runtime.GOOS || words[5] != runtime.GOARCH {
		t.Errorf("of %s, %s, %s: %q", info.GoVersion, runtime.GOOS, runtime.GOARCH, r.stdout)
	}
	echomux(t, nil, "-version", "-n", "7", "127.0.0.1")
}

// TestVersionLine: what a build can leave in a binary, and what is said of it.
func TestVersionLine(t *testing.T) {
	t.Parallel()
	with := func(settings ...string) *debug.BuildInfo {
		info := &debug.BuildInfo{GoVersion: "go1.26"}
		for _, setting := range settings {
			key, value, _ := strings.Cut(setting, "=")
			info.Settings = append(info.Settings, debug.BuildSetting{Key: key, Value: value})
		}
		return info
	}
	for _, test := range []struct {
		info *debug.BuildInfo
		want string
	}{
		{nil, "unknown commit unknown  / not known to be static"},
		{with("GOOS=linux", "GOARCH=arm", "CGO_ENABLED=0"), "unknown commit unknown go1.26 linux/arm static"},
		{with("GOOS=linux", "GOARCH=arm", "CGO_ENABLED=1"),
			"unknown commit unknown go1.26 linux/arm not known to be static"},
		{with("GOOS=windows", "GOARCH=amd64", "CGO_ENABLED=0"),
			"unknown commit unknown go1.26 windows/amd64 not known to be static"},
		{with("vcs.revision=abc", "vcs.modified=false"),
			"abc commit abc go1.26 / not known to be static"},
		{with("vcs.revision=abc", "vcs.modified=true"),
			"abc+modified commit abc+modified go1.26 / not known to be static"},
	} {
		got := versionLine(test.info)
		if got != "echomux "+test.want+"\n" {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
}

// TestBuiltVersion: a build can be given its version; without cgo it is static on Linux.
func TestBuiltVersion(t *testing.T) {
	t.Parallel()
	goTool, err := exec.LookPath("go")
	if err != nil || os.Getenv("ECHOMUX_EXEC") != "" || testing.Short() {
		t.Skip("no build here")
	}
	program := filepath.Join(t.TempDir(), "echomux.exe")
	build := exec.Command(goTool, "build", "-buildvcs=false", "-o", program,
		"-ldflags", "-X main.version=v1.2.3", ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	line, err := exec.Command(program, "-version").Output()
	words := versionForm.FindStringSubmatch(string(line))
	if err != nil || words == nil || words[1] != "v1.2.3" || words[2] != "unknown" ||
		(words[6] == "static") != (runtime.GOOS == "linux") {
		t.Errorf("it says %q, %v", line, err)
	}
}

// FuzzParse: whatever the words are, they are options that can be run, or an error that names one
// of them, in one line that is fit for a terminal.
func FuzzParse(f *testing.F) {
	for _, test := range usageErrors {
		f.Add(test.args)
	}
	for _, test := range places {
		f.Add(test.args)
	}
	f.Add("")
	f.Add("-h")
	f.Add("-version")
	f.Add("-q -n 3 -count 0 -every 1s -connect-timeout 0 -io-timeout 1h -6 -source ::1 h 7 -- -x")
	f.Fuzz(func(t *testing.T, line string) {
		args := wordsOf(line)
		o, err := parse(args)
		switch {
		case err != nil:
			if !namesOne(err.Error(), args) {
				t.Errorf("%q: %q names none of them", args, err)
			}
		case !o.help && !o.version:
			checkOptions(t, args, o)
		}
	})
}

// namesOne: is the message fit for a terminal, and does it name a flag or a word?
func namesOne(message string, args []string) bool {
	unfit := func(r rune) bool { return r < ' ' || r > '~' }
	if strings.ContainsFunc(message, unfit) {
		return false
	}
	return slices.ContainsFunc(args, func(word string) bool {
		name, _, _ := strings.Cut(word, "=")
		if strings.HasPrefix(word, "-") {
			name = "-" + strings.TrimLeft(name, "-")
		}
		return strings.Contains(message, strconv.QuoteToASCII(word)) ||
			name != "" && strings.Contains(message, printable(name)) ||
			namesHost(message, word)
	})
}

// namesHost: a place can be named without brackets, and one in one word by what stands before or
// behind a colon.
func namesHost(message, word string) bool {
	bare := strings.NewReplacer("[", "", "]", "")
	named := func(part string) bool {
		return strings.Contains(bare.Replace(message), bare.Replace(strconv.QuoteToASCII(part)))
	}
	for i := range len(word) {
		if word[i] == ':' && (named(word[:i]) || named(word[i+1:])) {
			return true
		}
	}
	return named(word)
}

// checkOptions: they can be run.
func checkOptions(t *testing.T, args []string, o *options) {
	t.Helper()
	client := !o.serve && !o.recipe
	for what, broken := range map[string]bool{
		"no HOST":           client && o.host == "",
		"no PORT":           client && o.port == 0,
		"both -q and -v":    o.quiet && o.verbose,
		"a number":          o.n < 1 || o.count < 0,
		"a time":            min(o.connectTimeout, o.ioTimeout, o.every, o.progress) < 0,
		"rounds":            o.count != 1 && o.until != untilEcho,
		"a MESSAGE":         client && o.until == untilConnect && o.block != nil,
		"no newline":        o.block != nil && o.block[len(o.block)-1] != '\n',
		"the family":        !slices.Contains([]string{"ip", "ip4", "ip6"}, o.family),
		"the server's":      o.serve && (o.n != 1 || o.count != 1 || o.block != nil),
		"HOST has brackets": strings.ContainsAny(o.host, "[]"),
	} {
		if broken {
			t.Errorf("%q: %s: %+v", args, what, *o)
		}
	}
}
