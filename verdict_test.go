package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// The verdict as a table, written by hand from what README.md promises: what has to come of a
// connection, whatever else is so. A word is what a column has to say, a|b one of two, - anything.
// For each combination of the facts there is exactly one row.
//
//	wrong        a byte came back that was not sent
//	local        standard input or standard output has failed
//	input        goesOn, undecided (only the next read tells), ended, empty, failed
//	settled      all that was read of it is back (echo)
//	acked        the peer has all that was sent, our FIN included (eof)
//	out, in      open, ended, broken
//	silent       the peer was silent for -io-timeout while it owed something
//	inputSilent  so was standard input, after the peer's end

const verdictColumns = 9

var echoVerdicts = []string{
	// wrong local input settled acked out in silent inputSilent
	"yes -   -                -   - -          -            -   -    wrongByte",
	"no  yes -                -   - -          -            -   -    localFailure",
	"no  no  empty            -   - -          -            -   -    nothingToSend",
	"no  no  ended            yes - -          -            -   -    wholeJob",
	// The peer has ended, and that was too early, unless the next read is EOF.
	"no  no  ended            no  - -          ended|broken -   -    peerEnded",
	"no  no  goesOn           -   - -          ended|broken -   -    peerEnded",
	"no  no  undecided        no  - -          ended|broken -   -    peerEnded",
	"no  no  undecided        yes - -          ended|broken -   no   goOn",
	"no  no  undecided        yes - -          ended|broken -   yes  peerEnded",
	// It has not ended. A write that failed ends sending only, until nothing more comes.
	"no  no  ended            no  - -          open         no  -    goOn",
	"no  no  ended            no  - open|ended open         yes -    tooSilent",
	"no  no  ended            no  - broken     open         yes -    peerEnded",
	"no  no  goesOn|undecided -   - -          open         no  -    goOn",
	"no  no  goesOn|undecided -   - open|ended open         yes -    tooSilent",
	"no  no  goesOn|undecided -   - broken     open         yes -    peerEnded",
}

var eofVerdicts = []string{
	// wrong local input settled acked out in silent inputSilent
	"-   yes -                -   -   -          -          -   -    localFailure",
	"-   no  -                -   -   -          broken     -   -    peerEnded",
	// A write that failed ends sending only.
	"-   no  -                -   -   broken     ended      -   -    peerEnded",
	"-   no  -                -   -   broken     open       no  -    goOn",
	"-   no  -                -   -   broken     open       yes -    peerEnded",
	// Both have ended: the job is whole when the peer has all of it.
	"-   no  -                -   yes ended      ended      -   -    wholeJob",
	"-   no  -                -   no  ended      ended      no  no   goOn",
	"-   no  -                -   no  ended      ended      yes no   tooSilent",
	"-   no  -                -   no  ended      ended      -   yes  inputNotEnded",
	// The peer's EOF does not end our sending; its own silence, or that of the input, does.
	"-   no  -                -   -   open       ended      no  no   goOn",
	"-   no  -                -   -   open       ended      yes no   tooSilent",
	"-   no  -                -   -   open       ended      -   yes  inputNotEnded",
	"-   no  -                -   -   open|ended open       no  -    goOn",
	"-   no  -                -   -   open|ended open       yes -    tooSilent",
}

var outcomeNames = map[string]outcome{
	"goOn": goOn, "wrongByte": wrongByte, "localFailure": localFailure, "nothingToSend": nothingToSend,
	"wholeJob": wholeJob, "peerEnded": peerEnded, "inputNotEnded": inputNotEnded, "tooSilent": tooSilent,
}

// verdictWords are the facts in the words of the tables.
func verdictWords(f facts) []string {
	yes := func(is bool) string {
		if is {
			return "yes"
		}
		return "no"
	}
	inputs := []string{"goesOn", "undecided", "ended", "empty", "failed"}
	halves := []string{"open", "ended", "broken"}
	return []string{
		yes(f.wrong), yes(f.outputFailed || f.input == failed), inputs[f.input], yes(f.allSettled),
		yes(f.acknowledged), halves[f.out], halves[f.in], yes(f.silent), yes(f.inputSilent),
	}
}

// everyFacts calls check with each combination.
func everyFacts(check func(f facts)) {
	bits := func(n, i int) bool { return n>>i&1 != 0 }
	for n := range 1 << 6 {
		for input := goesOn; input <= failed; input++ {
			for out := isOpen; out <= isBroken; out++ {
				for in := isOpen; in <= isBroken; in++ {
					check(facts{
						wrong: bits(n, 0), outputFailed: bits(n, 1), allSettled: bits(n, 2),
						acknowledged: bits(n, 3), silent: bits(n, 4), inputSilent: bits(n, 5),
						input: input, out: out, in: in,
					})
				}
			}
		}
	}
}

func TestJudgeTables(t *testing.T) {
	t.Parallel()
	for _, table := range []struct {
		name  string
		rows  []string
		judge func(facts) outcome
	}{
		{"echo", echoVerdicts, judgeEcho},
		{"eof", eofVerdicts, judgeEOF},
	} {
		used := make(map[string]bool)
		everyFacts(func(f facts) {
			words := verdictWords(f)
			var matching []string
			for _, row := range table.rows {
				if verdictRowMatches(row, words) {
					matching = append(matching, row)
					used[row] = true
				}
			}
			if len(matching) != 1 {
				t.Fatalf("%s, %q: %d rows, want one: %q", table.name, words, len(matching), matching)
			}
			want := outcomeNames[strings.Fields(matching[0])[verdictColumns]]
			got := table.judge(f)
			if got != want {
				t.Errorf("%s, %q: the verdict is %d, want %s", table.name, words, got, matching[0])
			}
		})
		if len(used) != len(table.rows) {
			t.Errorf("%s: %d rows of %d are of use", table.name, len(used), len(table.rows))
		}
	}
}

// verdictRowMatches: does a row say nothing else than words?
func verdictRowMatches(row string, words []string) bool {
	columns := strings.Fields(row)
	if len(columns) != verdictColumns+1 {
		panic(fmt.Sprintf("a row has %d columns: %s", len(columns), row))
	}
	for i, word := range words {
		if columns[i] != "-" && !slices.Contains(strings.Split(columns[i], "|"), word) {
			return false
		}
	}
	return true
}
