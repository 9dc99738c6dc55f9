package main

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/windows"
)

// What Winsock lets a test see, and what its poller owes to select.

// errorNumbers are the rows of fault. A number that the program does not act on stays what it is.
var errorNumbers = []errorNumber{
	{windows.WSAEWOULDBLOCK, errWouldBlock},
	{windows.WSAEINTR, errWouldBlock},
	{windows.WSAECONNRESET, errReset},
	{windows.WSAECONNABORTED, errReset},
	{windows.WSAENETRESET, errReset},
	{windows.WSAECONNREFUSED, errRefused},
	{windows.WSAETIMEDOUT, errTimedOut},
	{windows.WSAEADDRNOTAVAIL, errNoAddress},
	{windows.WSAEAFNOSUPPORT, errNoAddress},
	{windows.WSAENOBUFS, errNoMemory},
	{windows.WSAEMFILE, errTooManyFiles},
	{windows.WSAEHOSTUNREACH, windows.WSAEHOSTUNREACH},
	{windows.WSAENETUNREACH, windows.WSAENETUNREACH},
	{windows.WSAEADDRINUSE, windows.WSAEADDRINUSE},
	{windows.WSAEACCES, windows.WSAEACCES},
	{windows.WSAEINVAL, windows.WSAEINVAL},
	{windows.WSAENOTCONN, windows.WSAENOTCONN},
	{windows.WSAENOTSOCK, windows.WSAENOTSOCK},
}

// TestLimitText: Winsock does not say what its limit is.
func TestLimitText(t *testing.T) {
	err := fault("socket", windows.WSAEMFILE)
	if err.Error() != "too many open files (Winsock names no limit)" {
		t.Error(err)
	}
}

func shortenBacklog(fd uintptr) {
	windows.Listen(windows.Handle(fd), 0)
}

// patientConnect stays pending. Windows refuses where a queue is full; without refuseAtOnce that
// takes 2 s.
func patientConnect(s socket, to netip.AddrPort) error {
	sa, err := sockaddr(to)
	if err != nil {
		return err
	}
	err = windows.Connect(windows.Handle(s), sa)
	if err == windows.WSAEWOULDBLOCK {
		return nil
	}
	return err
}

func visibleOptions(s socket) []socketOption {
	option := func(level, name int) bool {
		value, err := windows.GetsockoptInt(windows.Handle(s), level, name)
		return err == nil && value != 0
	}
	return []socketOption{
		{"TCP_NODELAY", option(windows.IPPROTO_TCP, windows.TCP_NODELAY), true, true},
		{"SO_OOBINLINE", option(windows.SOL_SOCKET, soOOBInline), true, true},
		{"SO_KEEPALIVE", option(windows.SOL_SOCKET, windows.SO_KEEPALIVE), false, true},
	}
}

// TestDoubts: sockets that are watched for writability alone are reported once a second, all of
// them, though they are full, and no more often. A reset may have come unseen.
func TestDoubts(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	const many = 10
	full := make([]socket, many)
	for i := range full {
		s, _ := p.pair()
		p.fillOnce(s)
		full[i] = s
	}
	for _, s := range full {
		p.watch(s, writable)
	}
	reports := make(map[socket]int)
	waits := 0
	events := make([]event, 3) // fewer than there are
	start := time.Now()
	for time.Since(start) < 3500*time.Millisecond {
		n, err := p.wait(events, 10_000)
		p.must("wait", err)
		waits++
		for _, ev := range events[:n] {
			reports[ev.socket]++
		}
	}
	for _, s := range full {
		if reports[s] < 2 || reports[s] > 4 {
			t.Errorf("socket %v is reported %d times in 3.5 s", s, reports[s])
		}
	}
	if waits > 10*many {
		t.Errorf("%d waits in 3.5 s", waits)
	}
}

// TestDoubtsOfChanged: who is watched for something else by now, or for nothing, is not in doubt.
func TestDoubtsOfChanged(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	kept, _ := p.pair()
	p.fillOnce(kept)
	dropped, _ := p.pair()
	p.fillOnce(dropped)
	p.watch(kept, writable)
	p.watch(dropped, writable)
	p.poll(100 * time.Millisecond)
	time.Sleep(1200 * time.Millisecond)
	events := make([]event, 1)
	n, err := p.wait(events, 5000)
	p.must("wait", err)
	if n != 1 {
		t.Fatalf("%d events after a second", n)
	}
	p.watch(kept, 0)
	p.watch(dropped, readable)
	p.silent("neither is watched for writing")
}

// TestExclusive: nobody shares the port of a listener, SO_REUSEADDR or not.
func TestExclusive(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	_, bound := p.listening("127.0.0.1:0")
	s, err := newSocket(windows.AF_INET, windows.SOCK_STREAM, windows.IPPROTO_TCP)
	p.must("newSocket", err)
	p.watched[s] = 0
	h := windows.Handle(s)
	windows.SetsockoptInt(h, windows.SOL_SOCKET, windows.SO_REUSEADDR, 1)
	sa, err := sockaddr(bound)
	p.must("sockaddr", err)
	err = windows.Bind(h, sa)
	if err == nil {
		t.Error("another socket is bound to the listener's address")
	}
}

// A call that fails says which one it was.

// TestFailingCalls: what each call says of a socket that is not open.
func TestFailingCalls(t *testing.T) {
	const none = socket(windows.InvalidHandle)
	calls := callsOf(none, "ioctlsocket", "wsarecv", "wsasend", "closesocket")
	bindErr := bindSource(none, netip.MustParseAddr("127.0.0.1"))
	_, selectErr := isWritable(none)
	calls = append(calls, failedCall{"bind", bindErr}, failedCall{"select", selectErr})
	for _, c := range calls {
		wantCall(t, c.call, c.err, windows.WSAENOTSOCK)
	}
}

// TestConnectNumbers: what Winsock's numbers mean of connect, and the call by its name else.
func TestConnectNumbers(t *testing.T) {
	for number, want := range map[windows.Errno]error{
		windows.WSAEADDRINUSE:    errNoPort,
		windows.WSAECONNREFUSED:  errRefused,
		windows.WSAETIMEDOUT:     errTimedOut,
		windows.WSAEADDRNOTAVAIL: errNoAddress,
	} {
		err := connectFault(number)
		if err != want {
			t.Errorf("%v: %v, want %v", number, err, want)
		}
	}
	for _, number := range []windows.Errno{windows.WSAECONNABORTED, windows.WSAENETUNREACH} {
		wantCall(t, "connect", connectFault(number), number)
	}
	nowhere := netip.MustParseAddrPort("[fe80::1%no-such-zone]:9")
	err := system{}.connect(socket(windows.InvalidHandle), nowhere)
	if err == nil || !strings.Contains(err.Error(), "zone") {
		t.Errorf("to no zone: %v", err)
	}
}

// TestPendingRefusal: SO_ERROR has what became of a connect.
func TestPendingRefusal(t *testing.T) {
	p := newPlatform(t)
	at, _ := closedPort(t)
	s := p.connecting(netip.MustParseAddrPort(at))
	p.watch(s, writable)
	p.await(s, writable)
	p.want("pendingError", p.net.pendingError(s), errRefused)
}

// TestNoSuchSocket: a family that there is not, and a zone.
func TestNoSuchSocket(t *testing.T) {
	s, err := newSocket(-2, windows.SOCK_STREAM, windows.IPPROTO_TCP)
	if err == nil {
		t.Errorf("a socket of no family: %v", s)
	}
	local := netip.MustParseAddr("fe80::1%no-such-zone")
	_, err = system{}.openSocket(netip.MustParseAddrPort("[fe80::2]:9"), local)
	if err == nil || !strings.Contains(err.Error(), "zone") {
		t.Errorf("a local address in no zone: %v", err)
	}
	_, _, err = system{}.listen(netip.AddrPortFrom(local, 0))
	if err == nil || !strings.Contains(err.Error(), "zone") {
		t.Errorf("listening in no zone: %v", err)
	}
}

// TestWaitTimes: a wait may be longer than a second, and shorter than a millisecond's multiple.
func TestWaitTimes(t *testing.T) {
	p, err := newPoller()
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	clock := newClock()
	for _, ms := range []int{0, 30, 1250} {
		start := clock()
		n, err := p.wait(make([]event, 1), ms)
		took := clock() - start
		if n != 0 || err != nil {
			t.Errorf("a wait of %d ms: %d events, %v", ms, n, err)
		}
		least := time.Duration(ms-20) * time.Millisecond
		if took < least || took > least+900*time.Millisecond {
			t.Errorf("a wait of %d ms took %v", ms, took)
		}
	}
}

// TestPollerCloses: closed twice is an error.
func TestPollerCloses(t *testing.T) {
	p, err := newPoller()
	if err != nil {
		t.Fatal(err)
	}
	err = p.close()
	if err != nil {
		t.Errorf("close: %v", err)
	}
	_, err = p.wait(make([]event, 1), 0)
	if !errors.Is(err, windows.WSAENOTSOCK) {
		t.Errorf("wait after close: %v", err)
	}
	err = p.close()
	if !errors.Is(err, windows.WSAENOTSOCK) {
		t.Errorf("closed twice: %v", err)
	}
}

// TestReaderGoneNumbers: both numbers of a pipe without a reader.
func TestReaderGoneNumbers(t *testing.T) {
	for _, err := range []error{windows.ERROR_BROKEN_PIPE, windows.ERROR_NO_DATA} {
		if !readerGone(&os.PathError{Op: "write", Path: "pipe", Err: err}) {
			t.Errorf("%v is not recognised", err)
		}
	}
}

// TestExclusiveOption: a listener lets nobody share its port.
func TestExclusiveOption(t *testing.T) {
	var k system
	s, _, err := k.listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer k.close(s)
	h := windows.Handle(s)
	exclusive, err := windows.GetsockoptInt(h, windows.SOL_SOCKET, soExclusiveAddrUse)
	if err != nil {
		t.Skip(err)
	}
	shared, _ := windows.GetsockoptInt(h, windows.SOL_SOCKET, windows.SO_REUSEADDR)
	if exclusive == 0 || shared != 0 {
		t.Errorf("SO_EXCLUSIVEADDRUSE is %d, SO_REUSEADDR is %d", exclusive, shared)
	}
}

// TestFailingListen: a socket that cannot listen.
func TestFailingListen(t *testing.T) {
	s, err := newSocket(windows.AF_INET, windows.SOCK_DGRAM, windows.IPPROTO_UDP)
	if err != nil {
		t.Fatal(err)
	}
	defer system{}.close(s)
	_, err = bindAndListen(s, netip.MustParseAddrPort("127.0.0.1:0"))
	var named *os.SyscallError
	if !errors.As(err, &named) || named.Syscall != "listen" {
		t.Errorf("%v, want listen: %v", err, windows.WSAEOPNOTSUPP)
	}
}

// TestDoubtIsNotEarly: a wait that ends when sockets are in doubt ends no sooner.
func TestDoubtIsNotEarly(t *testing.T) {
	p := &selector{doubtAt: time.Now().Add(500 * time.Millisecond)}
	for i := range p.sets {
		p.sets[i].clear()
	}
	if p.limited(-1) != -1 || p.limited(20) != 20 {
		t.Errorf("without doubt %d, %d", p.limited(-1), p.limited(20))
	}
	p.sets[failSet].put(1)
	for _, ms := range []int{-1, 10_000} {
		got := p.limited(ms)
		early := time.Until(p.doubtAt) - time.Duration(got)*time.Millisecond
		if early > 0 || got > 500 {
			t.Errorf("of %d ms are left %d, %v too little", ms, got, early)
		}
	}
	if p.limited(20) != 20 {
		t.Errorf("of 20 ms are left %d", p.limited(20))
	}
	p.doubtAt = time.Now().Add(-time.Second)
	if p.limited(20) != 0 || p.limited(-1) != 0 {
		t.Errorf("too late: %d, %d", p.limited(20), p.limited(-1))
	}
	p.doubtAt = time.Now().Add(time.Minute)
	if p.limited(20) != 20 || p.limited(0) != 0 {
		t.Errorf("in a minute: %d, %d", p.limited(20), p.limited(0))
	}
	p.doubts = []socket{1}
	if p.limited(20) != 0 || p.limited(-1) != 0 {
		t.Errorf("in doubt: %d, %d", p.limited(20), p.limited(-1))
	}
}

// TestDoubtsOnce: what is in doubt comes once into the list, however long nobody has fetched it.
func TestDoubtsOnce(t *testing.T) {
	p := &selector{doubts: []socket{1}, doubtAt: time.Now().Add(-time.Second)}
	for i := range p.sets {
		p.sets[i].clear()
	}
	p.sets[failSet].put(1)
	p.fillDoubts()
	if len(p.doubts) != 1 {
		t.Errorf("in doubt are %v", p.doubts)
	}
}

// TestNoDoubt: a socket that is watched for reading too needs none, as select tells of its reset. A
// single one that is not comes into doubt.
func TestNoDoubt(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	full, _ := p.pair()
	p.fillOnce(full)
	p.watch(full, readable|writable)
	start := time.Now()
	p.wait(make([]event, 1), 2500)
	took := time.Since(start)
	if took < 2300*time.Millisecond {
		t.Errorf("a wait of 2.5 s took %v", took)
	}
	p.watch(full, writable)
	for range 5 {
		n, err := p.wait(make([]event, 1), 2500)
		p.must("wait", err)
		if n == 1 {
			return
		}
	}
	t.Error("watched for writing alone it is not reported")
}

// TestTypedEnd: an EOF of the console is told a moment later, since Ctrl-C begins with one.
func TestTypedEnd(t *testing.T) {
	p, err := newPoller()
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	l := newLoop(p, system{}, newClock())
	for kind, most := range map[inputKind]time.Duration{
		terminalInput: time.Second, otherInput: 50 * time.Millisecond,
	} {
		in := &input{
			loop:   l,
			spawn:  func(f func()) { f() },
			reader: strings.NewReader(""),
			kind:   kind,
			ring:   make(ring, ringSize),
		}
		start := time.Now()
		in.refill(0)
		took := time.Since(start)
		if took > most || kind == terminalInput && took < 95*time.Millisecond {
			t.Errorf("kind %d: an EOF took %v", kind, took)
		}
	}
}

// TestWakeSocket: what wakes takes no datagram of another host, or of another program.
func TestWakeSocket(t *testing.T) {
	p, err := newPoller()
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	h := windows.Handle(p.(*selector).wakeSock)
	from, err := windows.Getsockname(h)
	if err != nil {
		t.Fatal(err)
	}
	to, err := windows.Getpeername(h)
	if err != nil {
		t.Fatal(err)
	}
	if addrPort(from) != addrPort(to) || addrPort(from).Addr() != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("from %v to %v", addrPort(from), addrPort(to))
	}
}

// TestFirstWait: nothing is in doubt from the beginning, nor when it is first watched.
func TestFirstWait(t *testing.T) {
	p := newPlatform(t)
	full, _ := p.pair()
	p.fillOnce(full)
	fresh, err := newPoller()
	p.must("newPoller", err)
	defer fresh.close()
	for range 2 {
		p.must("change", fresh.change(full, 0, writable))
		n, err := fresh.wait(make([]event, 1), 100)
		if n != 0 || err != nil {
			t.Errorf("%d events at once, %v", n, err)
		}
		p.must("change", fresh.change(full, writable, 0))
		fresh.wait(make([]event, 1), 1200) // for so long nothing is watched
	}
}
