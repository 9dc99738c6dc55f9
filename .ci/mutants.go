//go:build ignore

// Mutants puts deliberate faults into the program, one at a time, and says which of them the tests
// catch. The tree stays as it is: the compiler reads the faulty files through -overlay.
//
//	go run .ci/mutants.go NAME ...      those faults of .ci/mutants.txt, or of a run before: which
//	                                    test fails, and what it says
//	go run .ci/mutants.go -named        all faults of .ci/mutants.txt
//	go run .ci/mutants.go -quick        the exercises of doc/lesson.md, in two minutes, but for
//	                                    hang-up-not-folded, which is seen only as a test that hangs
//	go run .ci/mutants.go [-files main.go,poller_linux.go] [-n 100] [-seed 1]
//	                                    these, and those that follow from the syntax tree, in all
//	                                    four files; -n is a sample of so many for each file
//
// A fault of the syntax tree has a name too: its file, its function, what is done and to what. It
// does not change when the lines around it do. A fault is tried first on the tests nearest to it,
// then on all others; the first failure ends it. A failure that is gone when the same tests run
// once more does not count. So that hundreds of faults cost one build, each is a copy of its
// function, and an environment variable says which copy is called; a fault outside functions has a
// build of its own.
//
// poller_darwin.go runs over the emulation of kqueue, poller_windows.go under Wine; where that is
// missing they are skipped. It fails if a fault survives that is not called equivalent.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const allFiles = "main.go,poller_linux.go,poller_darwin.go,poller_windows.go"

var (
	files  = flag.String("files", allFiles, "of these files")
	number = flag.Int("n", 0, "a sample of so many for each file; 0: all")
	seed   = flag.Uint64("seed", 1, "of the sample")
	named  = flag.Bool("named", false, "those by hand alone")
	quick  = flag.Bool("quick", false, "the exercises of the lesson")
	list   = flag.Bool("list", false, "show them and try none")
	match  = flag.String("match", "", "those whose names fit this pattern")
	jobs   = flag.Int("jobs", 2, "so many at once")
	skip   = flag.String("skip", "", "leave these tests out")
	near   = flag.Bool("near", false, "try the nearest tests alone")
	flags  = flag.String("testflags", "", "more flags for the tests")
)

// mutant is one fault: a piece of a file's text that another takes the place of.
type mutant struct {
	name       string
	file       *sourceFile
	function   *function // nil: it is outside functions
	start, end int       // offsets in the file
	text       string
	what       string // a sentence about it; by hand
	equivalent string // why nobody can see it
	number     int    // from 1
}

// sourceFile is a file of the program.
type sourceFile struct {
	name      string
	text      string
	tree      *ast.File
	functions []*function
}

// function is one of its functions.
type function struct {
	name       string // receiver.name
	decl       *ast.FuncDecl
	start, end int
}

// nearest are the tests that are tried first, by the name of a function; the first row that fits.
var nearest = []struct{ function, tests string }{
	{`^(parse|options|split|setTime|versionLine|run$|kindOf|word|shortened)`,
		`Usage|Place|OneWord|Defaults|Help|Version|Messages|RuntimePoller`},
	{`^(server|listener|served|session\.(listen|reportServer|print|showP))`,
		`^TestSim$|Serve|Complaint|Progress|Listen`},
	{`^session\.(found|notFound|withAddresses|errand|gather)`,
		`^TestSim$|AddressOrder|Gathered|Lookup`},
	{`^progress`, `^TestSim$|Progress`},
	{`^(lookup|isLocal|ask|lookupError|causeOf|zoneIndex|resolve|checkHost)`,
		`Names|Usage|Localhost|Zone`},
	{`^(spread|bucket|milli|seconds|mbits|worse|tally|printable|quoted)`,
		`Spread|Tally|Quoted|Lines?$|Worst|^TestSim$`},
	{`^(judge|peerOwes|inputOwes)`, `Verdict|Judge|^TestSim$`},
	{``, `^TestSim$`},
}

// lookUp are the functions of a backend that find a name's addresses.
var lookUp = regexp.MustCompile(`^(newResolver|firstTries|questionConn)`)

// quickTests take a second together, and know main.go to the letter.
const quickTests = `^Test(Acts|EveryLetter|GivenUp|Gap|Compare|Rates|Figures|Printable|AddressForms|` +
	`RuntimePoller|PortTries|LogAllocatesNothing|Spread|Quoted)$`

const nearestOfBackends = `^Test(Seam|Clock|KindOf|ProcInput|WidePipe|Backlog|InputMode|Terminal|ReaderGone|` +
	`ErrorNumbers|NoDescriptors|Deferred|Retransmits|ConnectToItself|Doubt|Exclusive|Failing|` +
	`PollerFails|PollerCloses|WakesDo|Interrupted|ConnectErrors|CloseWrite|Address|WaitTimes|` +
	`EveryCall|FinUnack|SelfConnectN|NoSuch|ConnectNum|Pending|Winsock|NoWinsock|OptionsAsked|` +
	`FirstRefusal|VersionAsked|TypedEnd|WakeSocket|WakeAddress|FirstWait|TimeoutOf|NoDoubt|SelectAsked|SocketAsked|LimitText|Console)`

const quickOnes = `always-writable wait-rounded-down wake-not-consumed closed-while-watched ` +
	`step-in-the-batch blocking-connect self-connect short-write-is-whole send-then-read ` +
	`buffer-shared no-half-close no-last-look sending-is-life`

func main() {
	flag.Parse()
	go endGroups()
	if *quick {
		flag.CommandLine.Parse(strings.Fields("-near -files main.go,poller_linux.go " + quickOnes))
	}
	if flag.NArg() == 0 && flag.NFlag() == 0 {
		fmt.Println("all mutants of all four files: this takes hours; -n 100 is a sample")
	}
	survivors := 0
	for name := range strings.SplitSeq(*files, ",") {
		file := parseFile(name)
		chosen := choose(append(readNamed(file), file.generated()...))
		if len(chosen) == 0 {
			continue
		}
		if *list {
			for _, m := range chosen {
				fmt.Printf("%s\n%s", m.name, m.diff())
			}
			continue
		}
		survivors += tryAll(file, chosen)
	}
	if survivors+stale > 0 {
		os.Exit(1)
	}
}

func fail(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "mutants: "+format+"\n", args...)
	os.Exit(2)
}

func must(err error) {
	if err != nil {
		fail("%v", err)
	}
}

// choose is those that the command line asks for. The sample is of those that are made by the
// syntax tree; those made by hand are always among them.
func choose(all []*mutant) (chosen []*mutant) {
	var made []*mutant
	for _, m := range all {
		asked := flag.NArg() == 0 || slices.Contains(flag.Args(), m.name)
		fits, err := regexp.MatchString(*match, m.name)
		must(err)
		switch {
		case !asked || !fits || *named && m.what == "":
		case m.what == "":
			made = append(made, m)
		default:
			chosen = append(chosen, m)
		}
	}
	if *number > 0 && *number < len(made) {
		r := rand.New(rand.NewPCG(*seed, 0))
		r.Shuffle(len(made), func(i, k int) { made[i], made[k] = made[k], made[i] })
		made = made[:*number]
	}
	chosen = append(chosen, made...)
	for i, m := range chosen {
		m.number = i + 1
	}
	return chosen
}

// ---- Files ----

func parseFile(name string) *sourceFile {
	text, err := os.ReadFile(name)
	must(err)
	set := token.NewFileSet()
	tree, err := parser.ParseFile(set, name, text, parser.ParseComments)
	must(err)
	f := &sourceFile{name: name, text: string(text), tree: tree}
	for _, d := range tree.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if ok {
			f.functions = append(f.functions,
				&function{functionName(fn), fn, at(fn.Pos()), at(fn.End())})
		}
	}
	return f
}

// at is the offset of a position: a set with one file begins at 1.
func at(p token.Pos) int { return int(p) - 1 }

func (f *sourceFile) of(n ast.Node) string { return f.text[at(n.Pos()):at(n.End())] }

func functionName(fn *ast.FuncDecl) string {
	if fn.Recv == nil {
		return fn.Name.Name
	}
	t := fn.Recv.List[0].Type
	star, ok := t.(*ast.StarExpr)
	if ok {
		t = star.X
	}
	return t.(*ast.Ident).Name + "." + fn.Name.Name
}

// diff shows the fault as lines taken away and lines put in.
func (m *mutant) diff() string {
	text := m.file.text
	from := strings.LastIndexByte(text[:m.start], '\n') + 1
	to := m.end
	if to == from || text[to-1] != '\n' {
		to += strings.IndexByte(text[to:], '\n') + 1
	}
	line := 1 + strings.Count(text[:from], "\n")
	s := fmt.Sprintf("    %s:%d\n", m.file.name, line)
	for old := range strings.Lines(text[from:to]) {
		s += "    -" + old
	}
	for changed := range strings.Lines(text[from:m.start] + m.text + text[m.end:to]) {
		s += "    +" + changed
	}
	return strings.TrimSuffix(s, "\n") + "\n"
}

// ---- Faults by hand ----

var stale int // faults by hand whose text the program has no more

// readNamed reads those of .ci/mutants.txt that are in file. The head of that file tells its form.
func readNamed(file *sourceFile) (all []*mutant) {
	text, err := os.ReadFile(".ci/mutants.txt")
	must(err)
	for block := range strings.SplitSeq(string(text), "\n\n") {
		fields := make(map[string]string)
		for line := range strings.Lines(block) {
			key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			fields[key] += strings.TrimSpace(value) + "\n"
		}
		place := strings.Fields(fields["in"])
		if len(place) != 2 || place[0] != file.name {
			continue
		}
		m, err := file.byHand(place[1], fields)
		if err != nil {
			fmt.Printf("stale      %s: %v\n", strings.TrimSpace(fields["name"]), err)
			stale++
			continue
		}
		all = append(all, m)
	}
	return all
}

func (f *sourceFile) byHand(where string, fields map[string]string) (*mutant, error) {
	field := func(key string) string { return strings.TrimSpace(fields[key]) }
	m := &mutant{name: field("name"), file: f, what: field("what"), equivalent: field("equivalent")}
	i := slices.IndexFunc(f.functions, func(fn *function) bool { return fn.name == where })
	if i < 0 {
		return nil, fmt.Errorf("%s has no function %s", f.name, where)
	}
	m.function = f.functions[i]
	body := f.text[m.function.start:m.function.end]
	var lines []string
	for line := range strings.Lines(field("-") + "\n") {
		lines = append(lines, regexp.QuoteMeta(strings.TrimSpace(line)))
	}
	found := regexp.MustCompile(strings.Join(lines, `\s*\n\s*`)).FindAllStringIndex(body, -1)
	if len(found) != 1 {
		return nil, fmt.Errorf("%s has its text %d times", where, len(found))
	}
	m.start = m.function.start + found[0][0]
	m.end = m.function.start + found[0][1]
	m.text = field("+")
	return m, nil
}

// equivalents are the reasons for which faults of the syntax tree change nothing, by their names.
func equivalents() map[string]string {
	text, err := os.ReadFile(".ci/mutants.txt")
	must(err)
	reasons := make(map[string]string)
	for block := range strings.SplitSeq(string(text), "\n\n") {
		lines := strings.Split(strings.TrimSpace(block), "\n")
		name, ok := strings.CutPrefix(lines[0], "same ")
		if ok && len(lines) > 1 {
			reasons[name] = strings.TrimPrefix(lines[1], "why ")
		}
	}
	return reasons
}

// ---- Faults by the syntax tree ----

// generator makes the faults of one function, or of what stands outside functions.
type generator struct {
	file     *sourceFile
	function *function
	unseen   map[ast.Node]bool // literals that no test can question
	all      []*mutant
}

func (f *sourceFile) generated() (all []*mutant) {
	for _, fn := range f.functions {
		g := &generator{file: f, function: fn, unseen: make(map[ast.Node]bool)}
		if fn.decl.Body != nil {
			ast.Inspect(fn.decl.Body, g.visit)
		}
		all = append(all, g.all...)
	}
	g := &generator{file: f}
	for _, d := range f.tree.Decls {
		decl, ok := d.(*ast.GenDecl)
		if ok && (decl.Tok == token.CONST || decl.Tok == token.VAR) {
			ast.Inspect(decl, g.visit)
		}
	}
	all = append(all, g.all...)
	reasons := equivalents()
	seen := make(map[string]int)
	for _, m := range all {
		seen[m.name]++
		if seen[m.name] > 1 {
			m.name += fmt.Sprintf(" #%d", seen[m.name])
		}
		m.equivalent = reasons[m.name]
	}
	return all
}

// put adds a fault: text takes the place of what is between two positions.
func (g *generator) put(kind string, from, to token.Pos, text string) {
	where := "-"
	if g.function != nil {
		where = g.function.name
	}
	old := strings.Join(strings.Fields(g.file.text[at(from):at(to)]), " ")
	if len(old) > 70 {
		old = old[:67] + "..."
	}
	g.all = append(g.all, &mutant{
		name:     g.file.name + " " + where + " " + kind + ": " + old,
		file:     g.file,
		function: g.function,
		start:    at(from),
		end:      at(to),
		text:     text,
	})
}

func (g *generator) visit(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.IfStmt:
		g.condition(n.Cond, true)
	case *ast.ForStmt:
		g.condition(n.Cond, false)
	case *ast.SwitchStmt:
		g.cases(n.Body, n.Tag == nil)
	case *ast.TypeSwitchStmt:
		g.cases(n.Body, false)
	case *ast.BinaryExpr:
		g.binary(n)
	case *ast.BasicLit:
		if !g.unseen[n] {
			g.literal(n)
		}
	case *ast.Ident:
		g.flip(n)
	case *ast.CallExpr:
		return g.call(n)
	case *ast.CompositeLit:
		g.elements(n)
	case *ast.ReturnStmt:
		g.returned(n)
	case *ast.AssignStmt:
		if n.Tok != token.DEFINE {
			g.put("dropped", n.Pos(), n.End(), "")
		}
	case *ast.ExprStmt, *ast.IncDecStmt, *ast.DeferStmt, *ast.GoStmt, *ast.BranchStmt:
		g.put("dropped", n.Pos(), n.End(), "")
	}
	return true
}

func (g *generator) condition(c ast.Expr, isIf bool) {
	if c == nil {
		return
	}
	text := g.file.of(c)
	g.put("negated", c.Pos(), c.End(), "!("+text+")")
	if isIf {
		g.put("never", c.Pos(), c.End(), "("+text+") && false")
		g.put("always", c.Pos(), c.End(), "("+text+") || true")
	}
}

// cases: each is emptied, its conditions go one by one, and neighbours change places.
func (g *generator) cases(body *ast.BlockStmt, tagless bool) {
	for i, s := range body.List {
		c := s.(*ast.CaseClause)
		if len(c.Body) > 0 {
			g.put("emptied", c.Colon+1, c.End(), "")
		}
		if c.List != nil {
			g.put("case gone", c.Pos(), c.End(), "")
		}
		for k, e := range c.List {
			if tagless {
				g.condition(e, false)
			} else if len(c.List) > 1 {
				g.without("row gone", c.List, k)
			}
		}
		if tagless && i+1 < len(body.List) {
			next := body.List[i+1].(*ast.CaseClause)
			if next.List == nil || g.exclude(c, next) {
				continue
			}
			g.put("swapped", c.Pos(), next.End(), g.file.of(next)+"\n"+g.file.of(c)+"\n")
		}
	}
}

// exclude: do two cases compare the same thing with two values first? Then their order decides
// nothing.
func (g *generator) exclude(a, b *ast.CaseClause) bool {
	left, right := firstComparison(a.List[0]), firstComparison(b.List[0])
	return left != nil && right != nil && g.file.of(left.X) == g.file.of(right.X) &&
		g.file.of(left.Y) != g.file.of(right.Y)
}

// firstComparison is the == that a condition begins with, if what follows is joined by && alone.
func firstComparison(e ast.Expr) *ast.BinaryExpr {
	for {
		b, ok := e.(*ast.BinaryExpr)
		switch {
		case ok && b.Op == token.LAND:
			e = b.X
		case ok && b.Op == token.EQL:
			return b
		default:
			return nil
		}
	}
}

// without is a list without its element k.
func (g *generator) without(kind string, list []ast.Expr, k int) {
	if k+1 < len(list) {
		g.put(kind, list[k].Pos(), list[k+1].Pos(), "")
	} else if k > 0 {
		g.put(kind, list[k-1].End(), list[k].End(), "")
	}
}

// others are what an operator can be mistaken for.
var others = map[token.Token]string{
	token.LSS: "<=", token.LEQ: "<", token.GTR: ">=", token.GEQ: ">",
	token.EQL: "!=", token.NEQ: "==", token.LAND: "||", token.LOR: "&&",
	token.ADD: "-", token.SUB: "+", token.MUL: "/", token.QUO: "*", token.REM: "/",
	token.AND: "|", token.OR: "&", token.SHL: ">>", token.SHR: "<<", token.AND_NOT: "&",
}

func (g *generator) binary(n *ast.BinaryExpr) {
	other, ok := others[n.Op]
	if !ok {
		return
	}
	left := g.file.of(n.X)
	right := g.file.of(n.Y)
	g.put(n.Op.String()+" is "+other, n.Pos(), n.End(), left+" "+other+" "+right)
	if n.Op == token.LAND || n.Op == token.LOR {
		g.put("left alone", n.Pos(), n.End(), left)
		g.put("right alone", n.Pos(), n.End(), right)
	}
}

// literal: numbers become others, and texts have a letter too many.
func (g *generator) literal(n *ast.BasicLit) {
	switch n.Kind {
	case token.INT:
		g.put("one more", n.Pos(), n.End(), "("+n.Value+"+1)")
		if n.Value != "0" {
			g.put("half", n.Pos(), n.End(), "("+n.Value+"/2)")
		}
	case token.FLOAT:
		g.put("half", n.Pos(), n.End(), "("+n.Value+"/2)")
	case token.STRING:
		if len(n.Value) > 2 && len(n.Value) < 200 {
			last := len(n.Value) - 1
			g.put("text", n.Pos(), n.End(), n.Value[:last]+"~"+n.Value[last:])
		}
	}
}

func (g *generator) flip(n *ast.Ident) {
	switch n.Name {
	case "true":
		g.put("flipped", n.Pos(), n.End(), "false")
	case "false":
		g.put("flipped", n.Pos(), n.End(), "true")
	}
}

// call: min and max are confused. What the log of -v says in detail is left alone, and so are the
// numbers that switch an option of a socket on, of which any but 0 would do.
func (g *generator) call(n *ast.CallExpr) bool {
	switch fn := n.Fun.(type) {
	case *ast.Ident:
		if fn.Name == "min" {
			g.put("min is max", fn.Pos(), fn.End(), "max")
		}
		if fn.Name == "max" {
			g.put("max is min", fn.Pos(), fn.End(), "min")
		}
	case *ast.SelectorExpr:
		return fn.Sel.Name != "printf" && fn.Sel.Name != "SetsockoptInt"
	}
	return true
}

// elements: fields of a struct, and elements of a list, are left out.
func (g *generator) elements(n *ast.CompositeLit) {
	_, isArray := n.Type.(*ast.ArrayType)
	for k, e := range n.Elts {
		_, isPair := e.(*ast.KeyValueExpr)
		if !isPair && !isArray {
			continue
		}
		if len(n.Elts) == 1 {
			g.put("field gone", e.Pos(), e.End(), "")
			continue
		}
		g.without("field gone", n.Elts, k)
	}
}

// returned: an error becomes nil, a bool its opposite. Numbers beside an error are left alone, since
// nobody looks at them.
func (g *generator) returned(n *ast.ReturnStmt) {
	if len(n.Results) == 0 || g.function == nil {
		return
	}
	results := g.function.decl.Type.Results
	last := n.Results[len(n.Results)-1]
	if results == nil || g.file.of(last) == "nil" || g.file.of(last) == "true" {
		return
	}
	switch g.file.of(results.List[len(results.List)-1].Type) {
	case "error":
		g.put("no error", last.Pos(), last.End(), "nil")
		for _, other := range n.Results {
			g.unseen[other] = true
		}
	case "bool":
		g.put("negated", last.Pos(), last.End(), "!("+g.file.of(last)+")")
	}
}

// ---- One build for many ----

// instrumented is the file with a copy of its function for each fault. lines are those of the
// copies.
func (f *sourceFile) instrumented(mutants []*mutant) (text string, lines map[int]*mutant) {
	var b strings.Builder
	lines = make(map[int]*mutant)
	written := 0
	for _, fn := range f.functions {
		elsewhere := func(m *mutant) bool { return m.function != fn }
		own := slices.DeleteFunc(slices.Clone(mutants), elsewhere)
		if len(own) == 0 {
			continue
		}
		b.WriteString(f.text[written:fn.start])
		b.WriteString(f.signature(fn, "") + " {\nswitch mutantNow {\n")
		for _, m := range own {
			call := f.forward(fn, m.suffix())
			if fn.decl.Type.Results == nil {
				call += "\nreturn"
			} else {
				call = "return " + call
			}
			fmt.Fprintf(&b, "case %d:\n%s\n", m.number, call)
		}
		body := at(fn.decl.Body.Pos())
		b.WriteString("}\n" + f.text[body+1:fn.end])
		written = fn.end
	}
	b.WriteString(f.text[written:] + "\n")
	line := 1 + strings.Count(b.String(), "\n")
	for _, m := range mutants {
		copied := f.copied(m)
		for range strings.Lines(copied) {
			lines[line] = m
			line++
		}
		b.WriteString(copied)
	}
	return b.String(), lines
}

// where is the name of its function, if it is in one.
func (m *mutant) where() string {
	if m.function == nil {
		return ""
	}
	return m.function.name
}

func (m *mutant) suffix() string { return fmt.Sprintf("Mutant%d", m.number) }

func (f *sourceFile) copied(m *mutant) string {
	body := at(m.function.decl.Body.Pos())
	return f.signature(m.function, m.suffix()) + " " +
		f.text[body:m.start] + m.text + f.text[m.end:m.function.end] + "\n"
}

// signature is a function's head, in which every parameter has a name.
func (f *sourceFile) signature(fn *function, suffix string) string {
	d := fn.decl
	s := "func "
	if d.Recv != nil {
		s += "(" + f.parameters(d.Recv, "mutantRecv", true) + ") "
	}
	s += d.Name.Name + suffix + "(" + f.parameters(d.Type.Params, "mutantArg", true) + ")"
	if d.Type.Results != nil {
		s += " " + f.of(d.Type.Results)
	}
	return s
}

// forward is a call with a function's own arguments.
func (f *sourceFile) forward(fn *function, suffix string) string {
	args := f.parameters(fn.decl.Type.Params, "mutantArg", false)
	s := fn.decl.Name.Name + suffix + "(" + args + ")"
	if fn.decl.Recv != nil {
		s = f.parameters(fn.decl.Recv, "mutantRecv", false) + "." + s
	}
	return s
}

// parameters are a list's names, with their types or without.
func (f *sourceFile) parameters(fields *ast.FieldList, unnamed string, typed bool) string {
	var all []string
	for _, field := range fields.List {
		names := field.Names
		if len(names) == 0 {
			names = []*ast.Ident{{Name: "_"}}
		}
		for _, name := range names {
			word := name.Name
			if word == "_" {
				word = unnamed + strconv.Itoa(len(all))
			}
			_, variadic := field.Type.(*ast.Ellipsis)
			switch {
			case typed:
				word += " " + f.of(field.Type)
			case variadic:
				word += "..."
			}
			all = append(all, word)
		}
	}
	return strings.Join(all, ", ")
}

const switchFile = `package main

import (
	"os"
	"strconv"
)

var mutantNow = func() int {
	n, _ := strconv.Atoi(os.Getenv("ECHOMUX_MUTANT"))
	return n
}()
`

// ---- Rigs ----

// rig is where a file's faults are compiled and run.
type rig struct {
	dir     string
	env     []string
	build   []string          // flags of go test
	replace map[string]string // the overlay without any fault
	exec    []string          // what stands before the test binary
	limit   bool              // of memory
	near    string
	missing string // why nothing can run
}

func newRig(name string) *rig {
	dir, err := os.MkdirTemp("", "echomux-mutants")
	must(err)
	r := &rig{dir: dir, replace: make(map[string]string), limit: true}
	r.env = append(os.Environ(), "CGO_ENABLED=0", "LC_ALL=C")
	switch name {
	case "main.go":
		return r
	case "poller_darwin.go":
		r.prepareKqueue()
	case "poller_windows.go":
		r.prepareWine()
	}
	r.near = nearestOfBackends
	return r
}

func (r *rig) prepareKqueue() {
	out, err := exec.Command(".ci/rig/kqueue", r.dir).CombinedOutput()
	if err != nil {
		r.missing = "the emulation of kqueue: " + string(out)
		return
	}
	r.env = append(r.env, "ECHOMUX_RIG=kqueue-emulation")
	r.build = []string{"-modfile=" + filepath.Join(r.dir, "alt.mod")}
	text, err := os.ReadFile(filepath.Join(r.dir, "overlay.json"))
	must(err)
	var overlay struct{ Replace map[string]string }
	must(json.Unmarshal(text, &overlay))
	r.replace = overlay.Replace
}

func (r *rig) prepareWine() {
	prefix := filepath.Join(r.dir, "wine")
	must(os.Mkdir(prefix, 0o700))
	r.env = append(r.env, "WINEPREFIX="+prefix, "WINEDEBUG=-all", "ECHOMUX_RIG=wine")
	prepare := exec.Command(".ci/rig/wine")
	prepare.Env = r.env
	out, err := prepare.Output()
	if err != nil {
		r.missing = "Wine: " + err.Error()
		return
	}
	r.exec = []string{strings.TrimSpace(string(out))}
	r.env = append(r.env, "GOOS=windows")
	r.limit = false
}

func (r *rig) close() {
	if len(r.exec) > 0 {
		end := exec.Command(filepath.Join(filepath.Dir(r.exec[0]), "wineserver64"), "-k")
		end.Env = r.env
		end.Run()
	}
	os.RemoveAll(r.dir)
}

// compile builds the tests with a file's text replaced, and with others.
func (r *rig) compile(binary string, changed map[string]string) (messages string, err error) {
	replace := maps.Clone(r.replace)
	dir := binary + ".files"
	must(os.MkdirAll(dir, 0o700))
	here, err := os.Getwd()
	must(err)
	for name, text := range changed {
		written := filepath.Join(dir, name)
		must(os.WriteFile(written, []byte(text), 0o600))
		if name == "poller_darwin.go" {
			must(exec.Command("sed", "-i", "-f", ".ci/rig/xnu.sed", written).Run())
		}
		for to, from := range replace {
			if filepath.Base(from) == name {
				name = filepath.Base(to) // kqueue's backend is in epoll's place
			}
		}
		replace[filepath.Join(here, name)] = written
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	must(err)
	overlay := filepath.Join(dir, "overlay.json")
	must(os.WriteFile(overlay, text, 0o600))
	args := []string{"test", "-c", "-vet=off", "-gcflags=-e", "-o", binary, "-overlay=" + overlay}
	build := exec.Command("go", append(args, append(r.build, ".")...)...)
	build.Env = r.env
	out, err := build.CombinedOutput()
	return string(out), err
}

var errorLine = regexp.MustCompile(`(?m)^\S*?(\w+\.go):(\d+):\d+: `)

// compileAll builds one binary for all faults, and returns those that compile.
func (r *rig) compileAll(file *sourceFile, mutants []*mutant) (binary string, good []*mutant) {
	binary = filepath.Join(r.dir, "all.test")
	for {
		text, lines := file.instrumented(mutants)
		changed := map[string]string{file.name: text, "mutant_switch.go": switchFile}
		messages, err := r.compile(binary, changed)
		if err == nil {
			return binary, mutants
		}
		bad := make(map[*mutant]bool)
		for _, found := range errorLine.FindAllStringSubmatch(messages, -1) {
			line, _ := strconv.Atoi(found[2])
			bad[lines[line]] = true
		}
		delete(bad, nil)
		if len(bad) == 0 {
			fail("the tests do not compile:\n%s", messages)
		}
		for m := range bad {
			if m.what != "" {
				fmt.Printf("no build   %s\n", m.name)
				stale++
			}
		}
		mutants = slices.DeleteFunc(mutants, func(m *mutant) bool { return bad[m] })
	}
}

// ---- Runs ----

// trial is a run of a test binary with one fault.
type trial struct {
	rig     *rig
	binary  string
	number  int
	tests   string // pattern of those that run
	skip    string // and of those that do not
	timeout time.Duration
	all     bool // go on after a failure
}

// failed is what a trial has found.
type failed struct {
	test, message string
}

// groups are the process groups of trials under way, which end with this process.
var groups sync.Map

func endGroups() {
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, os.Interrupt, syscall.SIGTERM)
	<-caught
	groups.Range(func(group, _ any) bool {
		syscall.Kill(-group.(int), syscall.SIGKILL)
		return true
	})
	os.Exit(130)
}

var (
	resultForm  = regexp.MustCompile(`^(\s*)--- (FAIL|PASS|SKIP): (\S+)`)
	currentForm = regexp.MustCompile(`^=== (?:RUN|NAME|CONT)\s+(\S+)`)
	messageForm = regexp.MustCompile(`^\s+\w+_test\.go:\d+: (.*)`)
)

// run returns the first test that has failed, or all of them; nothing, if all is well.
func (t trial) run() (failures []failed) {
	args := append(slices.Clone(t.rig.exec), t.binary, "-test.v", "-test.short",
		"-test.paniconexit0", "-test.run="+t.tests, "-test.skip="+t.skip,
		"-test.timeout="+t.timeout.String())
	args = append(args, strings.Fields(*flags)...)
	if !t.all {
		args = append(args, "-test.failfast")
	}
	if t.rig.limit {
		args = append([]string{"sh", "-c", `ulimit -v 8000000; exec "$@"`, "sh"}, args...)
	}
	command := exec.Command(args[0], args[1:]...)
	command.Env = append(slices.Clone(t.rig.env), "ECHOMUX_MUTANT="+strconv.Itoa(t.number))
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	reader, writer, err := os.Pipe()
	must(err)
	command.Stdout = writer
	command.Stderr = writer
	must(command.Start())
	writer.Close()
	group := command.Process.Pid
	groups.Store(group, true)
	defer groups.Delete(group)
	end := func() { syscall.Kill(-group, syscall.SIGKILL) }
	hanging := time.AfterFunc(t.timeout+5*time.Second, end)
	failures, passed := t.read(reader)
	end()
	err = command.Wait()
	hanging.Stop()
	reader.Close()
	if len(failures) == 0 && !passed {
		failures = append(failures, failed{"(the process)", fmt.Sprint("ended: ", err)})
	}
	return failures
}

// read follows a test's output until it fails, or to its end. Each test's first message is
// kept; the simulation's last, since it tells first how it came to that.
func (t trial) read(output io.Reader) (failures []failed, passed bool) {
	messages := make(map[string]string)
	current := ""
	lines := bufio.NewScanner(output)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		line := lines.Text()
		found := currentForm.FindStringSubmatch(line)
		if found != nil {
			current = found[1]
			continue
		}
		found = messageForm.FindStringSubmatch(line)
		if found != nil {
			for part := current; part != "."; part = filepath.Dir(part) {
				if messages[part] == "" || strings.HasPrefix(part, "TestSim") {
					messages[part] = current + ": " + found[1]
				}
			}
			continue
		}
		found = resultForm.FindStringSubmatch(line)
		switch {
		case line == "PASS":
			passed = true
		case strings.HasPrefix(line, "FAIL:"), strings.HasPrefix(line, "panic: "),
			strings.HasPrefix(line, "fatal error: "), strings.HasPrefix(line, "runtime: "):
			f := failed{strings.Split(current, "/")[0], line}
			if strings.HasPrefix(line, "panic: test timed out") {
				f.test = hangingTest(lines, f.test)
			}
			return append(failures, f), false
		case found != nil && (found[1] == "" || t.all) && found[2] == "FAIL":
			f := failed{found[3], messages[found[3]]}
			for f.message == "" && lines.Scan() {
				if strings.HasPrefix(lines.Text(), "panic: ") {
					f.message = lines.Text()
				}
			}
			failures = append(failures, f)
			if !t.all {
				return failures, false
			}
		}
	}
	return failures, passed
}

// hangingTest is the first that the testing package calls running, or the one given.
func hangingTest(lines *bufio.Scanner, given string) string {
	for lines.Scan() {
		name, _, found := strings.Cut(strings.TrimSpace(lines.Text()), " (")
		if found && strings.HasPrefix(name, "Test") {
			return strings.Split(name, "/")[0]
		}
	}
	return given
}

// ---- One fault ----

// A test that hangs is a failure too, though a slow machine must not make one: without a fault the
// nearest tests of a backend take four seconds, those of main.go ten, and all of them a minute.
const (
	nearTimeOfBackends = 20 * time.Second
	nearTime           = time.Minute
	restTime           = 4 * time.Minute
)

// fate is what came of a fault.
type fate struct {
	word string // killed, survived, equivalent, no build
	failed
	took time.Duration
}

// judge tries the nearest tests, and then the others.
func judge(base trial, m *mutant) fate {
	began := time.Now()
	base.number = m.number
	pattern := base.rig.near
	if lookUp.MatchString(m.where()) {
		pattern = "^TestNames"
	}
	for _, row := range nearest {
		here := regexp.MustCompile(row.function).MatchString(m.where())
		if pattern == "" && here {
			pattern = row.tests
		}
	}
	first := base
	first.tests = pattern
	first.timeout = nearTime
	if pattern == base.rig.near {
		first.timeout = nearTimeOfBackends
	}
	others := base
	others.tests = ""
	others.timeout = restTime
	others.skip = joined(base.skip, pattern)
	trials := []trial{first, others}
	if *near {
		trials = trials[:1]
	}
	if base.rig.near == "" {
		acts := first
		acts.tests = quickTests
		trials = append([]trial{acts}, trials...)
	}
	for _, t := range trials {
		f, ok := insist(t)
		if ok {
			return fate{"killed", f, time.Since(began)}
		}
	}
	return fate{word: "survived", took: time.Since(began)}
}

// insist runs a trial until it passes, or until a test fails twice. What fails once by chance is
// left out from then on.
func insist(t trial) (failed, bool) {
	for {
		failures := t.run()
		if len(failures) == 0 {
			return failed{}, false
		}
		f := failures[0]
		certain := strings.HasPrefix(f.test, "TestSim") || f.test == "TestActs"
		hung := strings.HasPrefix(f.message, "panic: test timed out")
		if certain || hung || f.test == "" || f.test == "(the process)" {
			return f, true // it has no chance in it, or cannot be told from the others
		}
		again := t
		again.tests = "^" + f.test + "$"
		again.skip = ""
		if len(again.run()) > 0 {
			return f, true
		}
		t.skip = joined(t.skip, "^"+f.test+"$")
	}
}

func joined(a, b string) string {
	if a == "" {
		return b
	}
	return a + "|" + b
}

// ---- All faults of a file ----

// sums count fates.
type sums struct {
	mu         sync.Mutex
	count      map[string]int
	unexpected int
}

// tryAll returns how many survive that should not, or do not survive though they should.
func tryAll(file *sourceFile, mutants []*mutant) int {
	r := newRig(file.name)
	defer r.close()
	if r.missing != "" {
		fmt.Printf("%s: skipped: this machine lacks %s\n", file.name, r.missing)
		return 0
	}
	var inside, outside []*mutant
	for _, m := range mutants {
		if m.function != nil {
			inside = append(inside, m)
		} else {
			outside = append(outside, m)
		}
	}
	began := time.Now()
	binary, good := r.compileAll(file, inside)
	s := &sums{count: make(map[string]int)}
	s.count["no build"] = len(inside) - len(good)
	base := r.base(binary)
	fmt.Printf("%s: %d faults, of which %d compile; ready after %.0fs\n",
		file.name, len(mutants), len(good)+len(outside), time.Since(began).Seconds())
	r.decideAll(base, append(good, outside...), s)
	s.print(file)
	return s.unexpected
}

// base is the trial that all others are made of. Unless a few faults are asked for by name, it
// leaves out what fails without a fault.
func (r *rig) base(binary string) trial {
	t := trial{rig: r, binary: binary, skip: *skip, timeout: 10 * time.Minute}
	if flag.NArg() > 0 {
		return t
	}
	all := t
	all.all = true
	if *near {
		all.tests = r.near
	}
	if *near && r.near == "" {
		all.tests = quickTests
		for _, row := range nearest {
			all.tests = joined(all.tests, row.tests)
		}
	}
	t.skip = all.unreliable()
	return t
}

// decideAll shares the faults out among so many workers.
func (r *rig) decideAll(base trial, mutants []*mutant, s *sums) {
	work := make(chan *mutant)
	var workers sync.WaitGroup
	for range *jobs {
		workers.Go(func() {
			for m := range work {
				s.note(m, r.decide(base, m))
			}
		})
	}
	for _, m := range mutants {
		work <- m
	}
	close(work)
	workers.Wait()
}

// unreliable runs all tests without a fault, and adds those that fail to those that are left out.
func (t trial) unreliable() (skip string) {
	skip = t.skip
	failures := t.run()
	for _, f := range failures {
		parent := func(other failed) bool { return strings.HasPrefix(other.test, f.test+"/") }
		if f.test == "(the process)" || slices.ContainsFunc(failures, parent) {
			continue
		}
		fmt.Printf("left out, since it fails without a fault: %s: %s\n", f.test, f.message)
		skip = joined(skip, patternOf(f.test))
	}
	return skip
}

// patternOf matches one test alone.
func patternOf(test string) string {
	parts := strings.Split(test, "/")
	for i, part := range parts {
		parts[i] = "^" + regexp.QuoteMeta(part) + "$"
	}
	return strings.Join(parts, "/")
}

// decide judges a fault; one outside functions has a build of its own.
func (r *rig) decide(base trial, m *mutant) fate {
	if m.function == nil {
		base.binary = filepath.Join(r.dir, fmt.Sprintf("%d.test", m.number))
		defer os.Remove(base.binary)
		text := m.file.text[:m.start] + m.text + m.file.text[m.end:]
		_, err := r.compile(base.binary, map[string]string{m.file.name: text})
		if err != nil {
			return fate{word: "no build"}
		}
	}
	return judge(base, m)
}

// note counts and prints one fate.
func (s *sums) note(m *mutant, f fate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.word == "survived" && m.equivalent != "" {
		f.word = "equivalent"
	}
	s.count[f.word]++
	var b bytes.Buffer
	fmt.Fprintf(&b, "%-10s %s (%.0fs)\n", f.word, m.name, f.took.Seconds())
	switch f.word {
	case "killed":
		fmt.Fprintf(&b, "    %s: %s\n", f.test, f.message[:min(len(f.message), 300)])
		if m.equivalent != "" {
			s.unexpected++
			fmt.Fprintf(&b, "    but it is called equivalent: %s\n", m.equivalent)
		}
	case "survived":
		s.unexpected++
		fmt.Fprintf(&b, "%s", m.diff())
	case "equivalent":
		fmt.Fprintf(&b, "    %s\n", m.equivalent)
	}
	if m.what != "" {
		fmt.Fprintf(&b, "    %s\n", m.what)
	}
	os.Stdout.Write(b.Bytes())
}

func (s *sums) print(file *sourceFile) {
	killed := s.count["killed"]
	survived := s.count["survived"]
	same := s.count["equivalent"]
	share := func(n, of int) float64 { return 100 * float64(n) / float64(max(1, of)) }
	fmt.Printf("%s: %d killed, %d survived: %.1f%%; %d equivalent: %.1f%%; %d do not compile\n",
		file.name, killed, survived, share(killed, killed+survived),
		same, share(same, killed+survived+same), s.count["no build"])
}
