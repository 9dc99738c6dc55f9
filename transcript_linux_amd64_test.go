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

// TestTranscript compares the transcript in README.md with what strace sees of one exchange, so that
// the text cannot drift from the program. Descriptors, addresses and times are given names; the Go
// runtime's own calls, which concern none of the program's descriptors, are left out.
func TestTranscript(t *testing.T) {
	for _, tool := range []string{"strace", "go"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(readme), "<!-- transcript -->\n")
	if !ok {
		t.Fatal("README.md has no transcript")
	}
	var want []string
	for line := range strings.Lines(rest) {
		if strings.TrimSpace(line) == "" && want != nil {
			break
		}
		if line, ok := strings.CutPrefix(line, "    "); ok {
			call, _, _ := strings.Cut(line, " # ")
			want = append(want, strings.TrimSpace(call))
		}
	}

	binary := filepath.Join(t.TempDir(), "echomux")
	build := exec.Command("go", "build", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // libc would add calls of its own
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	at, port := serve(t, "127.0.0.1:0", echoes)
	log := filepath.Join(t.TempDir(), "strace")
	run := exec.Command("strace", "-f", "-s", "256", "-o", log, binary, "127.0.0.1", port, "hello")
	run.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1")
	if out, err := run.CombinedOutput(); bytes.Contains(out, []byte("ptrace")) {
		t.Skipf("strace: %s", out)
	} else if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if got := transcript(string(text), at); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("README.md's transcript is not what strace sees, which is:\n    %s", strings.Join(got, "\n    "))
	}
}

var (
	straceLine = regexp.MustCompile(`^(\d+) +(?:<\.\.\. \w+ resumed>)?(.*)$`)
	straceCall = regexp.MustCompile(`^(\w+)\((\d+|)(.*)\)\s+= (-?\w+)(.*)$`)
	straceAddr = regexp.MustCompile(`\{sa_family=AF_INET, sin_port=htons\((\d+)\), sin_addr=inet_addr\("127\.0\.0\.1"\)\}`)
	straceData = regexp.MustCompile(`\{events=([A-Z|]+), data=[^}]*u32=(\d+)[^}]*\}+`)
	straceWait = regexp.MustCompile(`(\], \d+, )\d+, NULL, \d+`)
	straceNull = regexp.MustCompile(`0x[0-9a-f]+$`) // of EPOLL_CTL_DEL, ignored by the kernel
	straceSize = regexp.MustCompile(`\[\d+ => \d+\]`)
)

// transcript picks the program's own calls out of strace's log and names what differs from run to run.
func transcript(log, peer string) (calls []string) {
	_, peerPort, _ := net.SplitHostPort(peer)
	started := map[string]int{} // thread: index of its unfinished call
	var whole []string
	for line := range strings.Lines(log) {
		m := straceLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		if i, ok := started[m[1]]; ok && strings.Contains(line, " resumed>") {
			whole[i] += m[2]
			delete(started, m[1])
			continue
		}
		call, unfinished := strings.CutSuffix(m[2], " <unfinished ...>")
		if unfinished {
			started[m[1]] = len(whole)
		}
		whole = append(whole, call)
	}
	names := map[string]string{"1": "1", "2": "2"}
	made := map[string]string{"epoll_create1": "EPOLL", "eventfd2": "EVENTFD", "socket": "SOCKET"}
	for _, call := range whole {
		m := straceCall.FindStringSubmatch(call)
		if m == nil {
			continue
		}
		name, fd, args, result, errno := m[1], m[2], m[3], m[4], m[5]
		if made[name] != "" {
			names[result], result = made[name], made[name]
		} else if fd = names[fd]; fd == "" || len(fd) == 1 && name != "write" {
			continue
		}
		args = straceAddr.ReplaceAllStringFunc(args, func(s string) string {
			if straceAddr.FindStringSubmatch(s)[1] == peerPort {
				return "PEER"
			}
			return "LOCAL"
		})
		args = straceData.ReplaceAllStringFunc(args, func(s string) string {
			d := straceData.FindStringSubmatch(s)
			return fmt.Sprintf("{%s, %s}", d[1], names[d[2]])
		})
		args = straceWait.ReplaceAllString(args, "${1}MS")
		args = straceSize.ReplaceAllString(args, "[16]")
		args = straceNull.ReplaceAllString(args, "NULL")
		switch {
		case name == "epoll_ctl":
			f := strings.Split(args, ", ") // f[0] is empty: args begin behind the first one
			f[2] = names[f[2]]
			args = strings.Join(f[:min(len(f), 5)], ", ")
		case result == "-1":
			result += " " + strings.Fields(errno)[0]
		case name == "fcntl" && result != "0":
			result = "FLAGS"
		case fd == "2":
			args, result = `, "echomux: PEER ok ..."`, "N"
		}
		calls = append(calls, fmt.Sprintf("%s(%s%s) = %s", name, fd, args, result))
	}
	return calls
}
