package test

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The lesson is held against the program: its transcripts against what strace sees, and its
// exercises against their patches.

var (
	transcript = regexp.MustCompile("(?ms)^```c ([a-z]+)\\n(.*?)^```$") // its name, and the calls
	shownCall  = regexp.MustCompile(`(?m)^(\w+)\(.*?\) = (?:\d+|-1 (E[A-Z]+))\b`)
	failure    = regexp.MustCompile(` E[A-Z]+\b`)
)

// TestLessonTranscripts: from the first one on, these are the calls, in this order, and these fail.
func TestLessonTranscripts(t *testing.T) {
	t.Parallel()
	needStrace(t)
	ports := map[string]string{
		"exchange": listen(t, "127.0.0.1:0", echoes),
		"refused":  closedPort(t),
	}
	shown := transcript.FindAllStringSubmatch(read(t, "doc/lesson.md"), -1)
	if len(shown) != len(ports) {
		t.Fatalf("the lesson has %d transcripts, want %d", len(shown), len(ports))
	}
	for _, block := range shown {
		t.Run(block[1], func(t *testing.T) {
			t.Parallel()
			lines := shownCall.FindAllStringSubmatch(block[2], -1)
			var made, told []string
			for _, line := range lines {
				told = append(told, strings.TrimSpace(line[1]+" "+line[2]))
			}
			_, calls := trace(t, "", "127.0.0.1", ports[block[1]], "hello")
			for _, c := range calls {
				if c.isOwn && (c.name == lines[0][1] || len(made) > 0) {
					made = append(made, c.name+failure.FindString(c.text))
				}
			}
			if !slices.Equal(made, told) {
				made = made[:min(len(made), 40)]
				t.Errorf("the calls are\n%s\nand the lesson has\n%s",
					strings.Join(made, ", "), strings.Join(told, ", "))
			}
		})
	}
}

var exercise = regexp.MustCompile(`(?ms)^(\d\d)\. (.*?)\n\n`)

// TestLessonExercises: each exercise of the lesson is a patch with the same number, whose head asks
// the same question.
func TestLessonExercises(t *testing.T) {
	exercises := exercise.FindAllStringSubmatch(read(t, "doc/lesson.md")+"\n\n", -1)
	paths, err := filepath.Glob("../doc/exercises/*.patch")
	must(t, err)
	if len(exercises) != 12 || len(paths) != 12 {
		t.Fatalf("there are %d exercises and %d patches, want 12", len(exercises), len(paths))
	}
	for i, path := range paths {
		name := filepath.Base(path)
		head := read(t, "doc/exercises/"+name)
		question := strings.Join(strings.Fields(exercises[i][2]), " ")
		if !strings.HasPrefix(name, exercises[i][1]+"-") ||
			!strings.HasPrefix(strings.Join(strings.Fields(head), " "), question) {
			t.Errorf("%s does not ask: %s", name, question)
		}
	}
}
