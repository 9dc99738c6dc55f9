package main

import (
	"bytes"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// What the design promises about the files themselves.

func source(t testing.TB, name string) string {
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
		path, _ := strconv.Unquote(i.Path.Value)
		paths = append(paths, path)
	}
	return paths
}

// TestSocketHalves: Linux and Darwin sockets are the same lines, below the marker.
func TestSocketHalves(t *testing.T) {
	t.Parallel()
	const marker = "\n// ---- Sockets:"
	var halves [2][]string
	for i, name := range []string{"poller_linux.go", "poller_darwin.go"} {
		_, half, found := strings.Cut(source(t, name), marker)
		if !found {
			t.Fatalf("%s has no line that begins with %q", name, marker[1:])
		}
		halves[i] = strings.Split(half, "\n")
	}
	for i := range max(len(halves[0]), len(halves[1])) {
		var lines [2]string
		for j, half := range halves {
			if i < len(half) {
				lines[j] = half[i]
			}
		}
		if lines[0] != lines[1] || i >= min(len(halves[0]), len(halves[1])) {
			t.Fatalf("%d lines below the marker: Linux has %q, Darwin %q", i, lines[0], lines[1])
		}
	}
	if len(halves[0]) < 50 {
		t.Errorf("only %d lines are shared", len(halves[0]))
	}
}

// TestNeutral: main.go knows no system.
func TestNeutral(t *testing.T) {
	t.Parallel()
	for _, path := range imports(t, "main.go") {
		if slices.Contains([]string{"syscall", "unsafe", "runtime", "C"}, path) || strings.Contains(path, ".") {
			t.Errorf("main.go imports %q", path)
		}
	}
	if text := source(t, "main.go"); strings.Contains(text, "//go:build") || strings.Contains(text, "//go:linkname") {
		t.Error("main.go is not for every system")
	}
}

// TestDependencies: no cgo in what is built as README.md says; nothing but golang.org/x/sys from
// elsewhere.
func TestDependencies(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("go"); err != nil {
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
		if !slices.Contains(deps, "golang.org/x/sys/"+map[string]string{"linux": "unix", "darwin": "unix", "windows": "windows"}[system]) {
			t.Errorf("%s: is this the program? It depends on %v", system, deps)
		}
		for _, dep := range deps {
			// A path without a dot is the standard library's; vendored ones belong to it too.
			foreign := strings.Contains(strings.Split(dep, "/")[0], ".") && !strings.HasPrefix(dep, "golang.org/x/sys/")
			if foreign || dep == "runtime/cgo" {
				t.Errorf("%s: depends on %s", system, dep)
			}
		}
	}
}

// TestFiles: one reads two files and no more, so there are no others.
func TestFiles(t *testing.T) {
	t.Parallel()
	fixed := []string{".ci", ".gitignore", "README.md", "go.mod", "go.sum", "main.go",
		"poller_darwin.go", "poller_linux.go", "poller_windows.go", "testdata"}
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, e := range entries {
		name := e.Name()
		built, _ := filepath.Match("*.test", strings.TrimSuffix(name, ".exe"))
		switch {
		case name == ".git", strings.HasPrefix(name, "echomux"), built: // not the project's: see .gitignore
		case strings.HasSuffix(name, "_test.go"):
		case !slices.Contains(fixed, name):
			t.Errorf("%s is outside the layout", name)
		default:
			found = append(found, name)
		}
	}
	for _, name := range fixed {
		if !slices.Contains(found, name) {
			t.Errorf("%s is missing", name)
		}
	}
}
