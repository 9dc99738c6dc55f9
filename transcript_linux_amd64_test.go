package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// transcriptMark stands before the transcript in README.md, or in what README.md refers to.
const transcriptMark = "<!-- transcript -->\n"

// TestTranscript compares the transcript in the manual with what strace sees of one exchange, so
// that the text cannot drift from the program. Descriptors, addresses and times are given names;
// the Go runtime's own calls, which concern none of the program's descriptors, are left out.
func TestTranscript(t *testing.T) {
	t.Parallel()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip(err)
	}
	file, want := writtenTranscript(t)
	at, port := serve(t, "127.0.0.1:0", echoes)
	log := filepath.Join(t.TempDir(), "strace")
	binary := builtBinary(t)
	p := exec.Command(strace, "-f", "-s", "256", "-o", log, binary, "127.0.0.1", port, "hello")
	dieWithParent(p)
	p.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1")
	out, err := p.CombinedOutput()
	if bytes.Contains(out, []byte("ptrace")) {
		t.Skipf("strace: %s", out)
	}
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(transcript(string(text), at), "\n    ")
	if got != strings.Join(want, "\n    ") {
		t.Errorf("the transcript in %s is not what strace sees, which is:\n    %s", file, got)
	}
}

// writtenTranscript is the one for readers, without its comments.
func writtenTranscript(t testing.TB) (file string, calls []string) {
	t.Helper()
	for _, file := range []string{"README.md", "doc/lesson.md"} {
		text, _ := os.ReadFile(file)
		_, rest, found := strings.Cut(string(text), transcriptMark)
		if !found {
			continue
		}
		for line := range strings.Lines(rest) {
			code, isCode := strings.CutPrefix(line, "    ")
			if !isCode && calls != nil {
				break
			}
			if isCode {
				call, _, _ := strings.Cut(code, " # ")
				calls = append(calls, strings.TrimSpace(call))
			}
		}
		return file, calls
	}
	t.Fatal("neither README.md nor doc/lesson.md has a transcript")
	return "", nil
}

var (
	straceAddr = regexp.MustCompile(`\{sa_family=AF_INET, sin_port=htons\((\d+)\), ` +
		`sin_addr=inet_addr\("127\.0\.0\.1"\)\}`)
	straceData = regexp.MustCompile(`\{events=([A-Z|]+), data=[^}]*u32=(\d+)[^}]*\}+`)
	straceWait = regexp.MustCompile(`(\], \d+, )\d+, NULL, \d+`)
	straceNull = regexp.MustCompile(`0x[0-9a-f]+$`) // of EPOLL_CTL_DEL, ignored by the kernel
	straceSize = regexp.MustCompile(`\[\d+ => \d+\]`)
	straceInfo = regexp.MustCompile(`(TCP_INFO, )(".*"(\.\.\.)?|\{.*\}), \[\d+( => \d+)?\]`)
)

// transcriber knows the names of descriptors.
type transcriber struct {
	peerPort string
	names    map[string]string
}

// transcript picks the program's own calls out of strace's log and names what differs from run to
// run.
func transcript(log, peer string) (calls []string) {
	_, port, _ := net.SplitHostPort(peer)
	tr := &transcriber{port, map[string]string{"1": "1", "2": "2"}}
	for _, call := range wholeCalls(log) {
		m := straceCall.FindStringSubmatch(call)
		if m == nil {
			continue
		}
		text := tr.transcribe(m[1], m[2], m[3], m[4], m[5])
		if text != "" {
			calls = append(calls, text)
		}
	}
	return calls
}

// transcribe is one call, or nothing if it is not the program's.
func (tr *transcriber) transcribe(name, fd, args, result, errno string) string {
	made := map[string]string{"epoll_create1": "EPOLL", "eventfd2": "EVENTFD", "socket": "SOCKET"}
	if made[name] != "" {
		tr.names[result] = made[name]
		result = made[name]
	} else {
		fd = tr.names[fd]
		if fd == "" || len(fd) == 1 && name != "write" {
			return ""
		}
	}
	args = tr.rename(args)
	switch {
	case name == "epoll_ctl":
		f := strings.Split(args, ", ") // f[0] is empty: args begin behind the first one
		f[2] = tr.names[f[2]]
		args = strings.Join(f[:min(len(f), 5)], ", ")
	case result == "-1":
		result += " " + strings.Fields(errno)[0]
	case name == "fcntl" && result != "0":
		result = "FLAGS"
	case fd == "2":
		args = `, "echomux: PEER ok ..."`
		result = "N"
	}
	return fmt.Sprintf("%s(%s%s) = %s", name, fd, args, result)
}

// rename gives names to what differs from run to run.
func (tr *transcriber) rename(args string) string {
	args = straceAddr.ReplaceAllStringFunc(args, func(s string) string {
		if straceAddr.FindStringSubmatch(s)[1] == tr.peerPort {
			return "PEER"
		}
		return "LOCAL"
	})
	args = straceData.ReplaceAllStringFunc(args, func(s string) string {
		d := straceData.FindStringSubmatch(s)
		return fmt.Sprintf("{%s, %s}", d[1], tr.names[d[2]])
	})
	args = straceWait.ReplaceAllString(args, "${1}MS")
	args = straceInfo.ReplaceAllString(args, "${1}INFO")
	args = straceSize.ReplaceAllString(args, "[16]")
	return straceNull.ReplaceAllString(args, "NULL")
}
