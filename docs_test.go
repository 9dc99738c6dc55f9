package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// What the documents say is held against the program: links, flags, exit statuses, the form of each
// result line, and with -docs.run what the examples print. .ci/docs does all of it.
//
//	go test -run TestDocuments .
//	go test -run TestExamples -docs.run .               needs root on Linux for those in .ci/lab
//	go test -run TestExamples -docs.run -docs.update .  writes what they print into the documents
//
// An example is a block of fenced lines, in which "$ " stands before a command and what it prints
// follows. "console run" is run in this folder, "console lab=SCENE" on the client of .ci/lab. A line
// "..." stands for any lines. Numbers may differ.

var (
	docsRun    = flag.Bool("docs.run", false, "run the documents' examples")
	docsUpdate = flag.Bool("docs.update", false, "write what the examples print into the documents")
)

var documents = []string{"README.md", "doc/operating.md", "doc/lesson.md", "doc/evidence.md"}

func readDocument(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestDocuments(t *testing.T) {
	t.Parallel()
	for _, path := range documents {
		t.Run(path, func(t *testing.T) {
			text := readDocument(t, path)
			checkLinks(t, path, text)
			checkLines(t, text)
			checkAddresses(t, text)
		})
	}
	readme := readDocument(t, "README.md")
	words := len(strings.Fields(readme))
	if words > 1900 {
		t.Errorf("README.md has %d words, 1900 are the limit", words)
	}
	t.Run("usage", func(t *testing.T) { checkUsage(t) })
	t.Run("flags", func(t *testing.T) { checkFlags(t, readme) })
	t.Run("exit statuses", func(t *testing.T) { checkStatuses(t, readme) })
	t.Run("build lines", func(t *testing.T) { checkBuildLines(t, readme) })
	t.Run("names", func(t *testing.T) { checkNames(t) })
	t.Run("exercises", func(t *testing.T) { checkExercises(t) })
}

// withoutCode is text without its fenced blocks, in which # is a comment and [ no link.
func withoutCode(text string) string {
	var lines []string
	fenced := false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
		} else if !fenced && !strings.HasPrefix(line, "    ") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

var (
	linkForm    = regexp.MustCompile(`\]\(\s*([^)\s]+)\s*\)`)
	headingForm = regexp.MustCompile(`(?m)^#+ +(.+)$`)
	noAnchor    = regexp.MustCompile("[^a-z0-9 _-]")
)

// checkLinks: each file that is linked to is there, and so is the heading.
func checkLinks(t *testing.T, path, text string) {
	for _, link := range linkForm.FindAllStringSubmatch(withoutCode(text), -1) {
		target, anchor, _ := strings.Cut(link[1], "#")
		if strings.HasPrefix(target, "http") {
			continue
		}
		file := path
		if target != "" {
			file = filepath.Join(filepath.Dir(path), target)
		}
		info, err := os.Stat(file)
		if err == nil && info.IsDir() {
			continue
		}
		linked, err := os.ReadFile(file)
		if err != nil {
			t.Errorf("the link %s: %v", link[1], err)
			continue
		}
		if anchor != "" && !slices.Contains(anchors(string(linked)), anchor) {
			t.Errorf("the link %s: no such heading", link[1])
		}
	}
}

// anchors are the names that forges give to headings.
func anchors(text string) (names []string) {
	for _, heading := range headingForm.FindAllStringSubmatch(withoutCode(text), -1) {
		name := noAnchor.ReplaceAllString(strings.ToLower(strings.TrimSpace(heading[1])), "")
		names = append(names, strings.ReplaceAll(name, " ", "-"))
	}
	return names
}

// checkLines: every result line that is shown has the form that scripts rely on.
func checkLines(t *testing.T, text string) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "echomux: ") || !strings.Contains(line, " at=") {
			continue
		}
		_, err := parseLine(line)
		if err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
}

var addressForm = regexp.MustCompile(`\b\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\b`)

// checkAddresses: no address of anybody's (RFC 5737).
func checkAddresses(t *testing.T, text string) {
	for _, word := range addressForm.FindAllString(text, -1) {
		a, err := netip.ParseAddr(word)
		nobodys := netip.MustParsePrefix("192.0.2.0/24").Contains(a)
		if err == nil && !nobodys && !a.IsLoopback() && !a.IsUnspecified() {
			t.Errorf("%s is somebody's", word)
		}
	}
}

func checkUsage(t *testing.T) {
	lines := strings.Split(strings.TrimSuffix(usage, "\n"), "\n")
	if len(lines) > 24 {
		t.Errorf("-h has %d lines", len(lines))
	}
	for _, line := range lines {
		if len(line) > 80 {
			t.Errorf("-h has a line of %d columns: %s", len(line), line)
		}
	}
}

var (
	usageFlag  = regexp.MustCompile(`(?m)^  (-[a-z0-9-]+)(?:, (-[a-z0-9-]+))?`)
	tableRow   = regexp.MustCompile(`(?m)^\| (.*?) \|`)
	quotedFlag = regexp.MustCompile("`(-[a-z0-9-]+)`")
)

// section is what stands under a heading of the second level.
func section(t *testing.T, text, heading string) string {
	t.Helper()
	_, rest, found := strings.Cut(text, "\n## "+heading+"\n")
	if !found {
		t.Fatalf("there is no section %s", heading)
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	return rest
}

// checkFlags: README's table has the flags of -h, and the program knows each.
func checkFlags(t *testing.T, readme string) {
	inUsage := []string{"-serve", "-h"} // one stands in another place, the other is what one has typed
	for _, match := range usageFlag.FindAllStringSubmatch(usage, -1) {
		inUsage = append(inUsage, match[1])
		if match[2] != "" {
			inUsage = append(inUsage, match[2])
		}
	}
	var inTable []string
	for _, row := range tableRow.FindAllStringSubmatch(section(t, readme, "Flags"), -1) {
		for _, match := range quotedFlag.FindAllStringSubmatch(row[1], -1) {
			inTable = append(inTable, match[1])
		}
	}
	slices.Sort(inUsage)
	slices.Sort(inTable)
	if !slices.Equal(inUsage, inTable) {
		t.Errorf("-h has %v, README.md %v", inUsage, inTable)
	}
	for _, name := range inTable {
		_, err := parse([]string{name})
		if err != nil && strings.Contains(err.Error(), "not defined") {
			t.Errorf("the program does not know %s", name)
		}
	}
}

// checkStatuses: README's table has the statuses of the program, each once.
func checkStatuses(t *testing.T, readme string) {
	want := []int{
		exitOK, exitExchange, exitUsage, exitConnect, exitConnectTimeout, exitIOTimeout, exitLocal,
		130, 143, 129,
	}
	var got []int
	for _, row := range tableRow.FindAllStringSubmatch(section(t, readme, "Exit status"), -1) {
		for word := range strings.SplitSeq(row[1], ", ") {
			var status int
			_, err := fmt.Sscan(word, &status)
			if err == nil {
				got = append(got, status)
			}
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("README.md has the exit statuses %v, the program %v", got, want)
	}
	_, inUsage, _ := strings.Cut(usage, "exit status: ")
	for _, status := range want {
		if !regexp.MustCompile(fmt.Sprintf(`(^|[^\d])%d[^\d]`, status)).MatchString(inUsage) {
			t.Errorf("-h does not name the exit status %d", status)
		}
	}
}

// checkBuildLines: no two of them write one file, and none of them needs a C library.
func checkBuildLines(t *testing.T, readme string) {
	var files []string
	for line := range strings.Lines(readme) {
		if !strings.HasPrefix(line, "    ") || !strings.Contains(line, "go build") {
			continue
		}
		_, file, named := strings.Cut(line, " -o ")
		file, _, _ = strings.Cut(file, " ")
		if !named || slices.Contains(files, file) {
			t.Errorf("no name of its own: %s", line)
		}
		if !strings.Contains(line, "CGO_ENABLED=0 ") {
			t.Errorf("no CGO_ENABLED=0: %s", line)
		}
		files = append(files, file)
	}
	if len(files) == 0 {
		t.Error("there are no build lines")
	}
}

var codeName = regexp.MustCompile("`([a-z][A-Za-z]*)\\.([a-z][A-Za-z]*)`")

// checkNames: what the lesson calls type.method or type.field is in the source.
func checkNames(t *testing.T) {
	lesson := readDocument(t, "doc/lesson.md")
	source := readDocument(t, "main.go") + readDocument(t, "poller_linux.go") +
		readDocument(t, "poller_darwin.go") + readDocument(t, "poller_windows.go")
	for _, name := range codeName.FindAllStringSubmatch(lesson, -1) {
		kind := regexp.MustCompile(`(?m)^type ` + name[1] + ` `)
		member := regexp.MustCompile(`\(\w* ?\*?` + name[1] + `\) ` + name[2] + `\(|(?m)^\t` + name[2] + `\b`)
		if !kind.MatchString(source) && name[1] != "main" || !member.MatchString(source) {
			t.Errorf("%s.%s is not in the source", name[1], name[2])
		}
	}
}

var exerciseName = regexp.MustCompile(`(?m)^\d+\. \*\*([a-z-]+)\*\* In `)

// checkExercises: each of the fourteen is one of the deliberate faults.
func checkExercises(t *testing.T) {
	faults := readDocument(t, ".ci/mutants.txt")
	names := exerciseName.FindAllStringSubmatch(readDocument(t, "doc/lesson.md"), -1)
	if len(names) != 14 {
		t.Errorf("%d exercises, want 14", len(names))
	}
	for _, name := range names {
		if !strings.Contains(faults, "\nname "+name[1]+"\n") {
			t.Errorf("the exercise %s is no fault of .ci/mutants.txt", name[1])
		}
	}
}

// ---- Examples ----

// example is a block of commands and what they print.
type example struct {
	path     string
	line     int    // of the fence, from 1
	where    string // "run", or "lab=" and a scene
	commands []exampleCommand
}

type exampleCommand struct {
	text   string
	output []string
}

// examples are those of a document that can be run.
func examples(path, text string) (found []*example) {
	var open *example
	fenced := false
	for i, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(line, "```") {
			where, isConsole := strings.CutPrefix(line, "```console ")
			open = nil
			fenced = !fenced
			if fenced && isConsole {
				open = &example{path: path, line: i + 1, where: where}
				found = append(found, open)
			}
			continue
		}
		if open == nil {
			continue
		}
		command, isCommand := strings.CutPrefix(line, "$ ")
		if isCommand {
			open.commands = append(open.commands, exampleCommand{text: command})
		} else if n := len(open.commands); n > 0 {
			open.commands[n-1].output = append(open.commands[n-1].output, line)
		}
	}
	return found
}

// mark stands between what two commands print.
const mark = "\x1e"

// TestExamples runs them.
func TestExamples(t *testing.T) {
	if !*docsRun {
		t.Skip("-docs.run is not given")
	}
	if runtime.GOOS != "linux" {
		t.Skip("the examples are Linux's")
	}
	tools := t.TempDir()
	for _, build := range [][]string{
		{"-o", filepath.Join(tools, "echomux"), "."},
		{"-o", filepath.Join(tools, "peers"), ".ci/peers/main.go"},
	} {
		command := exec.Command("go", append([]string{"build", "-buildvcs=false"}, build...)...)
		command.Env = append(os.Environ(), "CGO_ENABLED=0")
		out, err := command.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	image := make([]byte, 5_000_000)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range image {
		image[i] = byte(random.Uint32())
	}
	for _, path := range documents {
		text := readDocument(t, path)
		for _, e := range examples(path, text) {
			t.Run(fmt.Sprintf("%s:%d", path, e.line), func(t *testing.T) {
				dir := t.TempDir()
				err := os.WriteFile(filepath.Join(dir, "image.bin"), image, 0o600)
				if err != nil {
					t.Fatal(err)
				}
				recipes, err := filepath.Abs("doc/recipes")
				if err == nil {
					err = os.Symlink(recipes, filepath.Join(dir, "recipes"))
				}
				if err != nil {
					t.Fatal(err)
				}
				text = strings.Replace(text, e.text(), e.run(t, tools, dir), 1)
			})
		}
		if *docsUpdate {
			err := os.WriteFile(path, []byte(text), 0o666)
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// text is the block's inside as the document has it.
func (e *example) text() string {
	var b strings.Builder
	for _, c := range e.commands {
		b.WriteString("$ " + c.text + "\n")
		for _, line := range c.output {
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}

// run runs an example, compares, and returns it with what was printed.
func (e *example) run(t *testing.T, tools, dir string) string {
	script := "exec 2>&1\n"
	for _, c := range e.commands {
		script += "printf '" + `\036` + "'\n" + c.text + "\n"
	}
	command := exec.Command("bash", "-c", script)
	scene, inLab := strings.CutPrefix(e.where, "lab=")
	if inLab {
		root, err := filepath.Abs(".ci/lab")
		if err != nil {
			t.Fatal(err)
		}
		needs(t, "ip", "nft", "tc", "unshare")
		command = exec.Command(root, scene, "bash", "-c", script)
		command.Dir = dir
	}
	command.Env = append(os.Environ(), "ECHOMUX_LAB_TOOLS="+tools, "LC_ALL=C",
		"PATH="+tools+":"+os.Getenv("PATH"))
	printed, err := command.CombinedOutput()
	if !strings.Contains(string(printed), mark) {
		t.Fatalf("%v: %s", err, printed)
	}
	parts := strings.Split(string(printed), mark)[1:]
	var b strings.Builder
	for i, c := range e.commands {
		b.WriteString("$ " + c.text + "\n")
		got := ""
		if i < len(parts) {
			got = parts[i]
		}
		want := strings.Join(c.output, "\n")
		if !slices.Contains(c.output, "...") {
			b.WriteString(strings.TrimSuffix(got, "\n"))
			if got != "" {
				b.WriteString("\n")
			}
		} else {
			b.WriteString(want + "\n")
		}
		c.compare(t, strings.Split(strings.TrimSuffix(got, "\n"), "\n"))
	}
	return b.String()
}

func needs(t *testing.T, tools ...string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip(".ci/lab needs root")
	}
	for _, tool := range tools {
		_, err := exec.LookPath(tool)
		if err != nil {
			t.Skip(err)
		}
	}
}

// compare holds the form of what was printed against the form of what is shown.
func (c exampleCommand) compare(t *testing.T, got []string) {
	t.Helper()
	want := c.output
	if len(want) == 0 {
		want = []string{""}
	}
	pattern := "^"
	for _, line := range formsOf(t, want) {
		if line == "..." {
			pattern += `(.*\n)*`
		} else {
			pattern += regexp.QuoteMeta(line) + `\n`
		}
	}
	text := strings.Join(formsOf(t, got), "\n") + "\n"
	if !regexp.MustCompile(pattern + "$").MatchString(text) {
		t.Errorf("$ %s\nprints\n%s\nand is shown with\n%s", c.text,
			strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

var (
	anyNumber = regexp.MustCompile(`\d+(\.\d+)?`)
	processID = regexp.MustCompile(`^\[echomux \(\d+\)\]`)
	aTime     = regexp.MustCompile(`at=[0-9-]+T[0-9:.]+Z`)
	aFigure   = regexp.MustCompile(`(_ms=|round=|\b)\d+\.\d\d\b|(round=)\d+`)
	freePort  = regexp.MustCompile(`:\d{5}\b`)
)

// formsOf is lines without what differs from run to run. Equal ones that follow each other are one.
func formsOf(t *testing.T, lines []string) (forms []string) {
	t.Helper()
	for _, line := range lines {
		form := line
		if strings.HasPrefix(line, "echomux: ") && strings.Contains(line, " at=") {
			l, err := parseLine(line)
			if err != nil {
				t.Errorf("%s: %v", line, err)
			}
			keys := slices.DeleteFunc(slices.Clone(l.keys), func(key string) bool { return key == "retransmits" })
			form = fmt.Sprintf("%s %s %v %s", freePort.ReplaceAllString(l.place, ":N"), l.word, keys,
				anyNumber.ReplaceAllString(l.cause, "N"))
		}
		form = processID.ReplaceAllString(form, "[echomux (N)]")
		form = freePort.ReplaceAllString(form, ":N")
		form = aTime.ReplaceAllString(form, "at=N")
		form = aFigure.ReplaceAllString(form, "${1}${2}N")
		if len(forms) == 0 || forms[len(forms)-1] != form {
			forms = append(forms, form)
		}
	}
	return forms
}
