package test

import (
	"context"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// The documents are held against the program: links, -h, the man page, and with -docs the examples.
// An example is a fenced block "console run" or "console lab=SCENE", the latter for the client of
// .ci/lab. In it "$ " stands before a command, "> " before its next line, and what it prints
// follows. Both run in a folder that has what the repository has.

var (
	runExamples    = flag.Bool("docs", false, "run the examples of the documents")
	updateExamples = flag.Bool("docs-update", false, "and write what they print into the documents")
)

var documents = []string{"README.md", "doc/operating.md", "doc/evidence.md", "doc/lesson.md"}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", path))
	must(t, err)
	return string(text)
}

var (
	linkForm    = regexp.MustCompile(`\]\(([^)\s#]*)(#[^)\s]*)?\)`)
	headingForm = regexp.MustCompile(`(?m)^#+ (.+)$`)
	notInAnchor = regexp.MustCompile("[^a-z0-9 _-]")
)

// TestDocsLinks: what is linked to is there, the headings too.
func TestDocsLinks(t *testing.T) {
	for _, path := range documents {
		for _, link := range linkForm.FindAllStringSubmatch(read(t, path), -1) {
			target := filepath.Join(filepath.Dir(path), link[1])
			if link[1] == "" {
				target = path
			}
			_, err := os.Stat(filepath.Join("..", target))
			switch {
			case strings.HasPrefix(link[1], "https://"):
			case err != nil:
				t.Errorf("%s: %v", path, err)
			case link[2] != "" && !slices.Contains(anchors(read(t, target)), link[2]):
				t.Errorf("%s: %s has no heading %s", path, target, link[2])
			}
		}
	}
}

// anchors are the names that forges give to headings.
func anchors(text string) (names []string) {
	for _, heading := range headingForm.FindAllStringSubmatch(text, -1) {
		name := notInAnchor.ReplaceAllString(strings.ToLower(heading[1]), "")
		names = append(names, "#"+strings.ReplaceAll(name, " ", "-"))
	}
	return names
}

var (
	typeForm   = regexp.MustCompile(`(?ms)^type (\w+) (?:struct|interface) \{\n(.*?)^\}$`)
	methodForm = regexp.MustCompile(`(?m)^func \(\w+ \*?(\w+)\) (\w+)\(`)
	namedForm  = regexp.MustCompile("`([a-z]\\w*)\\.([a-z]\\w*)`")
)

// TestDocsNames: a `type.name` of the lesson is a method or a field of the program.
func TestDocsNames(t *testing.T) {
	sources := read(t, "main.go") + read(t, "poller_linux.go") + read(t, "poller_windows.go")
	for _, named := range namedForm.FindAllStringSubmatch(read(t, "doc/lesson.md"), -1) {
		isNamed := func(match []string) bool { return match[1] == named[1] && match[2] == named[2] }
		field := regexp.MustCompile(`(?m)^\t(\w+, )*` + named[2] + `\b`)
		isField := func(match []string) bool { return match[1] == named[1] && field.MatchString(match[2]) }
		if !slices.ContainsFunc(methodForm.FindAllStringSubmatch(sources, -1), isNamed) &&
			!slices.ContainsFunc(typeForm.FindAllStringSubmatch(sources, -1), isField) {
			t.Errorf("doc/lesson.md names %s, which there is not", named[0])
		}
	}
}

var (
	usageFlag = regexp.MustCompile(`(?m)^  (-[^\s,]+(?:, -[^\s,]+)*)( \S+)?  +(\S.*)$`)
	flagDash  = regexp.MustCompile(`(^| )-`)
)

// TestDocsUsage: README.md has the text of -h, and the man page has its words for each flag and
// each exit status.
func TestDocsUsage(t *testing.T) {
	usage := run(t, "-h").stdout
	readme := read(t, "README.md")
	if !strings.Contains(readme, usage) {
		t.Error("README.md does not have the text of -h")
	}
	if n := len(strings.Fields(readme)); n > 1000 {
		t.Errorf("README.md has %d words, 1,000 are the limit", n)
	}
	man := read(t, "doc/echomux.1")
	flags := usageFlag.FindAllStringSubmatch(usage, -1)
	_, statuses, _ := strings.Cut(strings.Join(strings.Fields(usage), " "), "exit status: ")
	items := strings.Split(strings.TrimSuffix(statuses, "."), "; ")
	if len(flags) < 10 || len(items) < 9 {
		t.Fatalf("-h has only the flags %q and the statuses %q", flags, items)
	}
	for _, match := range flags {
		names := flagDash.ReplaceAllString(strings.ReplaceAll(match[1], ",", " ,"), "${1}Fl ")
		form := regexp.QuoteMeta(match[3])
		if !regexp.MustCompile("\n\\.It " + names + "( Ar .*)?\n" + form + "\n").MatchString(man) {
			t.Errorf("the man page does not have the flag %q", match[0])
		}
	}
	for _, item := range items {
		status, text, _ := strings.Cut(item, " ")
		if !strings.Contains(man, "\n.It "+status+"\n"+text+"\n") {
			t.Errorf("the man page does not have the status %q", item)
		}
	}
}

var (
	exampleForm = regexp.MustCompile("(?ms)^```console (run|lab=[a-z]+)\\n(.*?)^```$")
	commandForm = regexp.MustCompile(`(?m)^\$ (.*(?:\n> .*)*)\n((?:[^$\n].*\n|\n)*)`)
)

// TestDocsExamples runs each example, and compares.
func TestDocsExamples(t *testing.T) {
	if !*runExamples {
		t.Skip("-docs is not given")
	}
	needProcess(t)
	for _, path := range documents {
		text := read(t, path)
		for _, match := range exampleForm.FindAllStringSubmatch(text, -1) {
			commands := commandForm.FindAllStringSubmatch(match[2], -1)
			first, _, _ := strings.Cut(commands[0][1], "\n")
			t.Run(path+" "+match[1]+" "+first, func(t *testing.T) {
				now := example(t, match[1], commands)
				text = strings.Replace(text, match[2], now, 1)
			})
		}
		if *updateExamples {
			must(t, os.WriteFile(filepath.Join("..", path), []byte(text), 0o666))
		}
	}
}

// example runs commands, and returns their block with what they print now.
func example(t *testing.T, where string, commands [][]string) (block string) {
	script := "exec 2>&1\n"
	for _, match := range commands {
		script += "printf '\\036'\n" + strings.ReplaceAll(match[1], "\n> ", "\n") + "\n"
	}
	words := []string{"bash", "-c", script}
	scene, inLab := strings.CutPrefix(where, "lab=")
	if inLab {
		if os.Getuid() != 0 {
			t.Skip(".ci/lab needs root")
		}
		lab, err := filepath.Abs("../.ci/lab")
		must(t, err)
		words = append([]string{lab, scene}, words...)
	}
	program := echomux(t).words[0]
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute) // some build
	defer cancel()
	c := exec.CommandContext(ctx, words[0], words[1:]...)
	ownGroup(c)
	c.Cancel = func() error { return killGroup(c) }
	p := &process{Cmd: c}
	started.Store(p, true)
	defer started.Delete(p)
	c.Dir = linked(t)
	c.Env = append(os.Environ(), "ECHOMUX="+program, "LC_ALL=C",
		"PATH="+filepath.Dir(program)+":"+os.Getenv("PATH"))
	printed, err := c.CombinedOutput()
	parts := strings.Split(string(printed), "\x1e")[1:]
	if len(parts) != len(commands) {
		t.Fatalf("%v: %s", err, printed)
	}
	for i, match := range commands {
		if masked(parts[i]) != masked(match[2]) {
			t.Errorf("$ %s\nprints\n%s\nand is shown with\n%s", match[1], parts[i], match[2])
		}
		block += "$ " + match[1] + "\n" + parts[i]
	}
	return block
}

// linked is a folder with links to all that the repository has, but its history.
func linked(t *testing.T) (dir string) {
	dir = t.TempDir()
	top, err := filepath.Abs("..")
	must(t, err)
	entries, err := os.ReadDir(top)
	must(t, err)
	for _, entry := range entries {
		if entry.Name() != ".git" {
			must(t, os.Symlink(filepath.Join(top, entry.Name()), filepath.Join(dir, entry.Name())))
		}
	}
	return dir
}

// What differs from run to run: times, numbers with a point, process ids, ports and large numbers.
var varying = regexp.MustCompile(`\d+-\d+-\d+T[\d:.]+Z|\d+(\.\d+)+|\(\d+\)|\d{5,}`)

// masked is text without that. Equal lines that follow each other are one.
func masked(text string) string {
	lines := strings.Split(strings.TrimSpace(varying.ReplaceAllString(text, "N")), "\n")
	return strings.Join(slices.Compact(lines), "\n")
}
