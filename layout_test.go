package main

import (
	"bytes"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// What the design promises about the files themselves.

func sourceOf(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func imports(t testing.TB, name string) (paths []string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range f.Imports {
		path, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	return paths
}

// TestSocketHalves: Linux and Darwin sockets are the same lines, between the two markers, but for
// what comments say of one of them.
func TestSocketHalves(t *testing.T) {
	t.Parallel()
	linux := socketLines(t, "poller_linux.go")
	darwin := socketLines(t, "poller_darwin.go")
	for i := range min(len(linux), len(darwin)) {
		if linux[i] != darwin[i] {
			t.Fatalf("%d lines below the marker: Linux has %q, Darwin %q", i, linux[i], darwin[i])
		}
	}
	if len(linux) != len(darwin) {
		t.Errorf("Linux has %d lines, Darwin %d", len(linux), len(darwin))
	}
	if len(linux) < 50 {
		t.Errorf("only %d lines are shared", len(linux))
	}
}

func socketLines(t testing.TB, name string) []string {
	t.Helper()
	_, below, found := strings.Cut(sourceOf(t, name), "\n// ---- Sockets")
	if !found {
		t.Fatalf("%s has no sockets", name)
	}
	lines, _, found := strings.Cut(below, "\n// ---- The rest")
	if !found {
		t.Fatalf("%s has no rest", name)
	}
	code := strings.Split(lines, "\n")
	return slices.DeleteFunc(code, func(line string) bool {
		return strings.HasPrefix(strings.TrimSpace(line), "//")
	})
}

// TestOrder: every backend has the same sections, and in the first one the same methods and
// functions in the same order, so that a comparison of two shows only what differs.
func TestOrder(t *testing.T) {
	t.Parallel()
	want := []string{
		"func newPoller(", ") change(", ") forget(", ") wait(", "func folded|) folded(", ") wake(", ") close(",
		"// ---- Sockets", "type system struct{}", "func fault(", ") openSocket(",
		"func bindSource(", ") setNonblock(", ") connect(", ") connectResult(",
		"func endNames(", ") read(", ") write(",
		") pendingError(", ") path(", ") closeWrite(", ") close(", ") listen(",
		"func bindAndListen(", ") accept(", "func domain(", "func sockaddr(", "func addrPort(",
		"// ---- The rest", "func deferPort(", "func newClock(", "func newResolver(",
		"func kindOfInput(", "func widenPipe(", "terminalEOFDelay", "func readerGone(",
		"sigTerm", "sigHup", "sigPipe",
	}
	for _, system := range []string{"linux", "darwin", "windows"} {
		rest := sourceOf(t, "poller_"+system+".go")
		for _, what := range want {
			one, other, either := strings.Cut(what, "|")
			_, below, found := strings.Cut(rest, one)
			if !found && either {
				_, below, found = strings.Cut(rest, other)
			}
			if !found {
				t.Errorf("poller_%s.go: no %s in its place", system, what)
				break
			}
			rest = below
		}
	}
}

// TestImports: main.go knows no system. What is not the standard library's is golang.org/x/sys, and
// only the backends have it; package syscall and unsafe pointers are theirs too, for what that lacks.
func TestImports(t *testing.T) {
	t.Parallel()
	for name, system := range map[string]string{
		"main.go":           "",
		"poller_linux.go":   "golang.org/x/sys/unix",
		"poller_darwin.go":  "golang.org/x/sys/unix",
		"poller_windows.go": "golang.org/x/sys/windows",
	} {
		found := ""
		for _, path := range imports(t, name) {
			switch path {
			case "syscall", "unsafe":
				if name == "main.go" {
					t.Errorf("%s imports %q", name, path)
				}
			case "runtime", "C", "time/tzdata":
				t.Errorf("%s imports %q", name, path)
			}
			if strings.Contains(path, ".") {
				found += path
			}
		}
		if found != system {
			t.Errorf("%s imports %q, want %q", name, found, system)
		}
	}
	text := sourceOf(t, "main.go")
	for _, directive := range []string{"//go:build", "//go:linkname"} {
		if strings.Contains(text, directive) {
			t.Errorf("main.go is not for every system: %s", directive)
		}
	}
}

// TestDependencies: no cgo, and nothing but golang.org/x/sys that is not the standard library's.
func TestDependencies(t *testing.T) {
	t.Parallel()
	_, err := exec.LookPath("go")
	if err != nil {
		t.Skip(err)
	}
	for _, system := range []string{"linux", "darwin", "windows"} {
		list := exec.Command("go", "list", "-deps", ".")
		list.Env = append(os.Environ(), "GOOS="+system, "GOARCH=amd64", "CGO_ENABLED=0", "GOFLAGS=")
		var complaint bytes.Buffer
		list.Stderr = &complaint
		out, err := list.Output()
		if err != nil {
			t.Fatalf("%s: %v: %s", system, err, &complaint)
		}
		deps := strings.Fields(string(out))
		if !slices.Contains(deps, "echomux") {
			t.Errorf("%s: is this the program? It depends on %v", system, deps)
		}
		for _, dep := range deps {
			if dep == "runtime/cgo" || isForeign(dep) {
				t.Errorf("%s: depends on %s", system, dep)
			}
		}
	}
}

// isForeign: a path without a dot is the standard library's, and what that has vendored is too.
func isForeign(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return strings.Contains(first, ".") && !strings.HasPrefix(path, "golang.org/x/sys/")
}
