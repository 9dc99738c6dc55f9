package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/windows"
)

// What Winsock says on a bad day only, and what not every Winsock knows, is played here by another
// function in the place of Winsock's: as long as a test lasts, the first bytes of the true one are a
// jump to it. So none of these tests runs beside others.

// replace has all calls of a function of ws2_32.dll go to other code instead, until t ends.
func replace(t *testing.T, call string, code uintptr) {
	t.Helper()
	replaceProc(t, ws2_32.NewProc(call), code)
}

func replaceProc(t *testing.T, proc *windows.LazyProc, code uintptr) {
	t.Helper()
	err := proc.Find()
	if err != nil {
		t.Fatal(err)
	}
	jump := []byte{0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xe0} // mov rax, code; jmp rax
	binary.LittleEndian.PutUint64(jump[2:], uint64(code))
	before := overwrite(t, proc.Addr(), jump)
	t.Cleanup(func() { overwrite(t, proc.Addr(), before) })
}

// overwrite puts bytes in the place of code, and returns those that were there.
func overwrite(t *testing.T, at uintptr, code []byte) (before []byte) {
	t.Helper()
	size := uintptr(len(code))
	var protection uint32
	err := windows.VirtualProtect(at, size, windows.PAGE_EXECUTE_READWRITE, &protection)
	if err != nil {
		t.Fatal(err)
	}
	place := unsafe.Slice((*byte)(pointerTo(at)), len(code))
	before = slices.Clone(place)
	copy(place, code)
	windows.VirtualProtect(at, size, protection, &protection)
	return before
}

// pointerTo is an address that the collector has nothing to do with, as a pointer.
func pointerTo(at uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&at)) }

// machineCode is code that can be called. It stays for the life of the process.
func machineCode(t *testing.T, code []byte) uintptr {
	t.Helper()
	at, err := windows.VirtualAlloc(0, 4096, windows.MEM_COMMIT|windows.MEM_RESERVE,
		windows.PAGE_READWRITE)
	if err != nil {
		t.Fatal(err)
	}
	overwrite(t, at, code)
	var before uint32
	err = windows.VirtualProtect(at, 4096, windows.PAGE_EXECUTE_READ, &before)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// fails has a function of Winsock's fail with an error number, until t ends. It is written in
// machine code since the error is the thread's, and what returns from Go may change it.
func fails(t *testing.T, call string, number windows.Errno) {
	t.Helper()
	setLastError := ws2_32.NewProc("WSASetLastError").Addr()
	code := []byte{0x48, 0x83, 0xec, 0x28, 0xb9} // sub rsp, 40; mov ecx, number
	code = binary.LittleEndian.AppendUint32(code, uint32(number))
	code = append(code, 0x48, 0xb8) // mov rax, setLastError
	code = binary.LittleEndian.AppendUint64(code, uint64(setLastError))
	code = append(code, 0xff, 0xd0, 0x48, 0x83, 0xc4, 0x28) // call rax; add rsp, 40
	if call == "accept" || call == "WSASocketW" {
		code = append(code, 0x48, 0xc7, 0xc0, 0xff, 0xff, 0xff, 0xff) // mov rax, -1: INVALID_SOCKET
	} else {
		code = append(code, 0xb8, 0xff, 0xff, 0xff, 0xff) // mov eax, -1: SOCKET_ERROR, an int
	}
	code = append(code, 0xc3) // ret
	replace(t, call, machineCode(t, code))
}

// answers has a function of Winsock's do nothing and return a number, until t ends.
func answers(t *testing.T, call string, number uint32) {
	t.Helper()
	code := binary.LittleEndian.AppendUint32([]byte{0xb8}, number) // mov eax, number
	replace(t, call, machineCode(t, append(code, 0xc3)))           // ret
}

// TestSelectAsked: how long select is asked to wait. Without a limit it gets no time at all, which
// is a null pointer.
func TestSelectAsked(t *testing.T) {
	var asked []string
	replace(t, "select", windows.NewCallback(
		func(n, readers, writers, failing uintptr, timeout *windows.Timeval) uintptr {
			text := "no limit"
			if timeout != nil {
				text = fmt.Sprintf("%d s, %d us", timeout.Sec, timeout.Usec)
			}
			asked = append(asked, text)
			return 0
		}))
	p := newPlatform(t)
	for _, ms := range []int{-1, 0, 1, 999, 1250, 3_600_000} {
		p.wait(make([]event, 1), ms)
	}
	isWritable(1)
	want := []string{"no limit", "0 s, 0 us", "0 s, 1000 us", "0 s, 999000 us", "1 s, 250000 us",
		"3600 s, 0 us", "0 s, 0 us"}
	if !slices.Equal(asked, want) {
		t.Errorf("asked for %q, want %q", asked, want)
	}
}

// TestSocketAsked: what kinds of sockets there are. WSA_FLAG_OVERLAPPED is 1 in winsock2.h, and
// WSA_FLAG_NO_HANDLE_INHERIT 0x80.
func TestSocketAsked(t *testing.T) {
	var asked string
	replace(t, "WSASocketW", windows.NewCallback(
		func(family, kind, proto, info, group, flags uintptr) uintptr {
			asked = fmt.Sprintf("%d/%d/%d, %d, %d, %#x", family, kind, proto, info, group, flags)
			return uintptr(windows.InvalidHandle)
		}))
	for what, row := range map[string]struct {
		act  func()
		want string
	}{
		"IPv4": {func() {
			system{}.openSocket(netip.MustParseAddrPort("127.0.0.1:9"), netip.Addr{})
		}, "2/1/6, 0, 0, 0x81"},
		"IPv6": {func() {
			system{}.openSocket(netip.MustParseAddrPort("[::1]:9"), netip.Addr{})
		}, "23/1/6, 0, 0, 0x81"},
		"what wakes": {func() { newPoller() }, "2/2/17, 0, 0, 0x81"},
	} {
		asked = ""
		row.act()
		if asked != row.want {
			t.Errorf("%s: asked for %s, want %s", what, asked, row.want)
		}
	}
}

// TestConsole: what has a console mode is a terminal, unless it is a regular file with a size.
func TestConsole(t *testing.T) {
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	defer reader.Close()
	file, err := os.Open(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	directory, err := os.Open(os.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer directory.Close()
	var asked uintptr
	hasMode := uintptr(0)
	replaceProc(t, kernel32.NewProc("GetConsoleMode"), windows.NewCallback(
		func(console uintptr, mode *uint32) uintptr {
			asked = console
			return hasMode
		}))
	for _, test := range []struct {
		hasMode uintptr
		file    *os.File
		want    inputKind
	}{
		{0, directory, otherInput}, {1, file, regularFile},
		{0, reader, otherInput}, {1, reader, terminalInput},
	} {
		hasMode = test.hasMode
		got := kindOfInput(test.file)
		if got != test.want {
			t.Errorf("console %d, %s: kind %d, want %d", test.hasMode, test.file.Name(), got, test.want)
		}
	}
	if asked != reader.Fd() {
		t.Errorf("asked about %d, want %d", asked, reader.Fd())
	}
	reader.Close()
	if kindOfInput(reader) != otherInput {
		t.Error("a closed file is of some kind")
	}
}

// option is what setsockopt was asked for.
type option struct{ level, name, value int32 }

func (o option) String() string { return fmt.Sprintf("%#x/%#x=%d", o.level, o.name, o.value) }

// optionsSet are the options that do sets, whether this Winsock knows them or not. The numbers are
// those of winsock2.h, ws2def.h and ws2ipdef.h.
func optionsSet(t *testing.T, do func(t *testing.T)) (set []option) {
	t.Helper()
	t.Run("options", func(t *testing.T) {
		replace(t, "setsockopt", windows.NewCallback(
			func(s, level, name uintptr, value *int32, size uintptr) uintptr {
				if size != 4 {
					t.Errorf("an option of %d bytes", size)
				}
				set = append(set, option{int32(level), int32(name), *value})
				return 0
			}))
		do(t)
	})
	return set
}

var (
	noDelay     = option{6, 0x1, 1}
	oobInline   = option{0xffff, 0x100, 1}
	keepAlive   = option{0xffff, 0x8, 1}
	exclusive   = option{0xffff, ^0x4, 1}
	only6       = option{41, 27, 1}
	reusesPorts = option{0xffff, 0x3007, 1} // SO_REUSE_UNICASTPORT
)

// TestOptionsAsked: which options each kind of socket is given.
func TestOptionsAsked(t *testing.T) {
	var k system
	open := func(from string) func(t *testing.T) {
		return func(t *testing.T) {
			local, _ := netip.ParseAddr(from)
			s, err := k.openSocket(netip.MustParseAddrPort("127.0.0.1:9"), local)
			if err != nil {
				t.Fatal(err)
			}
			k.close(s)
		}
	}
	listens := func(at string) func(t *testing.T) {
		return func(t *testing.T) {
			s, _, err := k.listen(netip.MustParseAddrPort(at))
			if err != nil {
				t.Fatal(err)
			}
			k.close(s)
		}
	}
	for _, test := range []struct {
		name string
		do   func(t *testing.T)
		want []option
	}{
		{"a client", open(""), []option{noDelay, oobInline}},
		{"-source", open("127.0.0.1"), []option{noDelay, oobInline, reusesPorts}},
		{"a listener", listens("127.0.0.1:0"), []option{noDelay, oobInline, exclusive}},
		{"a listener, IPv6", listens("[::1]:0"), []option{noDelay, oobInline, exclusive, only6}},
		{"an accepted socket", func(t *testing.T) {
			listener, _ := waiting(t)
			s, _, err := k.accept(listener)
			if err != nil {
				t.Fatal(err)
			}
			k.close(s)
		}, []option{
			noDelay, oobInline, exclusive, // of the listener
			noDelay, oobInline, // of the client
			noDelay, oobInline, keepAlive,
		}},
	} {
		got := optionsSet(t, test.do)
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

// waiting is a listener with a connection in its backlog.
func waiting(t *testing.T) (listener, client socket) {
	t.Helper()
	p := newPlatform(t)
	listener, bound := p.listening("127.0.0.1:0")
	client = p.connecting(bound)
	_, _, err := p.result(client)
	p.must("connectResult", err)
	p.watch(listener, readable)
	p.await(listener, readable)
	return listener, client
}

// TestFirstRefusal: on loopback no SYN is to be sent again, and elsewhere as often as ever. connect
// itself does nothing here, so nobody is asked for anything.
func TestFirstRefusal(t *testing.T) {
	var asked []string
	replace(t, "WSAIoctl", windows.NewCallback(
		func(s, code uintptr, in *[4]byte, size, out, room uintptr, n *uint32, a, b uintptr) uintptr {
			asked = append(asked, fmt.Sprintf("%#x %x %d", uint32(code), *in, size))
			if out != 0 || room != 0 {
				t.Errorf("room for an answer at %#x, of %d bytes", out, room)
			}
			*n = 0
			return 0
		}))
	fails(t, "connect", windows.WSAEWOULDBLOCK)
	for to, want := range map[string][]string{
		"127.0.0.1:9": {"0x98000011 fffffe00 4"}, // SIO_TCP_INITIAL_RTO of mstcpip.h
		"[::1]:9":     {"0x98000011 fffffe00 4"},
		"192.0.2.1:9": nil,
	} {
		asked = nil
		at := netip.MustParseAddrPort(to)
		s, err := system{}.openSocket(at, netip.Addr{})
		if err != nil {
			t.Fatal(err)
		}
		err = system{}.connect(s, at)
		system{}.close(s)
		if err != nil || !slices.Equal(asked, want) {
			t.Errorf("to %s: %v, and asked is %q, want %q", to, err, asked, want)
		}
	}
}

// TestBacklogAsked: SOMAXCONN_HINT(65535) of winsock2.h, since SOMAXCONN is taken for 200.
func TestBacklogAsked(t *testing.T) {
	var asked int32
	replace(t, "listen", windows.NewCallback(func(s, backlog uintptr) uintptr {
		asked = int32(backlog)
		return 0
	}))
	s, _, err := system{}.listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	system{}.close(s)
	if asked != -65535 {
		t.Errorf("a backlog of %d", asked)
	}
}

// TestVersionAsked: Winsock 2.2.
func TestVersionAsked(t *testing.T) {
	var asked uint16
	replace(t, "WSAStartup", windows.NewCallback(func(version uintptr, data *byte) uintptr {
		asked = uint16(version)
		return 0
	}))
	p, err := newPoller()
	if err != nil {
		t.Fatal(err)
	}
	p.close()
	if asked != 0x0202 {
		t.Errorf("version %#x", asked)
	}
}

// actsOfWinsock are what can be asked of the backend. Each begins anew, and gives back all that it
// has if no call fails.
var actsOfWinsock = map[string]func() error{
	"newPoller": func() error {
		p, err := newPoller()
		if err == nil {
			p.close()
		}
		return err
	},
	"openSocket": func() error {
		s, err := system{}.openSocket(netip.MustParseAddrPort("127.0.0.1:9"), netip.Addr{})
		if err == nil {
			system{}.close(s)
		}
		return err
	},
	"openSocket, -source": func() error {
		local := netip.MustParseAddr("127.0.0.1")
		s, err := system{}.openSocket(netip.MustParseAddrPort("127.0.0.1:9"), local)
		if err == nil {
			system{}.close(s)
		}
		return err
	},
	"listen": func() error {
		s, _, err := system{}.listen(netip.MustParseAddrPort("127.0.0.1:0"))
		if err == nil {
			system{}.close(s)
		}
		return err
	},
}

// actsOnSocket are what can be asked of a socket: of a client that is connected, or of a listener.
var actsOnSocket = map[string]func(listener, client socket) error{
	"setNonblock": func(_, s socket) error { return system{}.setNonblock(s) },
	"connect": func(_, s socket) error {
		return system{}.connect(s, netip.MustParseAddrPort("127.0.0.1:9"))
	},
	"connectResult": func(_, s socket) error {
		_, _, err := system{}.connectResult(s)
		return err
	},
	"pendingError": func(_, s socket) error { return system{}.pendingError(s) },
	"closeWrite":   func(_, s socket) error { return system{}.closeWrite(s) },
	"read": func(_, s socket) error {
		_, err := system{}.read(s, make([]byte, 1))
		return err
	},
	"write": func(_, s socket) error {
		_, err := system{}.write(s, make([]byte, 1))
		return err
	},
	"accept": func(listener, _ socket) error {
		s, _, err := system{}.accept(listener)
		if err == nil {
			system{}.close(s)
		}
		return err
	},
}

// TestWinsockFails: each call fails once in each act that makes it. It is named, where its number
// means nothing else, and what was opened before is closed again.
func TestWinsockFails(t *testing.T) {
	const strange = windows.WSAENETDOWN // means nothing to echomux
	for _, test := range []struct {
		call   string
		number windows.Errno
		act    string
		want   any // an error of the contract, the name of a call, or nil
	}{
		{"WSASocketW", strange, "newPoller", "wsasocket"},
		{"bind", strange, "newPoller", "bind"},
		{"getsockname", strange, "newPoller", "getsockname"},
		{"connect", strange, "newPoller", "connect"},
		{"ioctlsocket", strange, "newPoller", "ioctlsocket"},
		{"WSASocketW", windows.WSAEMFILE, "newPoller", errTooManyFiles},

		{"WSASocketW", strange, "openSocket", "wsasocket"},
		{"WSASocketW", windows.WSAEAFNOSUPPORT, "openSocket", errNoAddress},
		{"WSASocketW", windows.WSAENOBUFS, "openSocket", errNoMemory},
		{"setsockopt", strange, "openSocket", nil},
		{"bind", strange, "openSocket", nil},
		{"setsockopt", strange, "openSocket, -source", nil},
		{"bind", strange, "openSocket, -source", "bind"},
		{"bind", windows.WSAEADDRNOTAVAIL, "openSocket, -source", errNoAddress},

		{"WSASocketW", strange, "listen", "wsasocket"},
		{"setsockopt", strange, "listen", nil},
		{"bind", strange, "listen", "bind"},
		{"bind", windows.WSAEADDRINUSE, "listen", "bind"},
		{"listen", strange, "listen", "listen"},
		{"ioctlsocket", strange, "listen", "ioctlsocket"},
		{"getsockname", strange, "listen", "getsockname"},

		{"ioctlsocket", strange, "setNonblock", "ioctlsocket"},
		{"connect", strange, "connect", "connect"},
		{"connect", windows.WSAEWOULDBLOCK, "connect", nil},
		{"connect", windows.WSAEINPROGRESS, "connect", nil},
		{"connect", windows.WSAEALREADY, "connect", nil},
		{"connect", windows.WSAEADDRINUSE, "connect", errNoPort},
		{"connect", windows.WSAECONNABORTED, "connect", "connect"},
		{"getsockopt", strange, "connectResult", "getsockopt"},
		{"select", strange, "connectResult", "select"},
		{"getpeername", strange, "connectResult", "getpeername"},
		{"getpeername", windows.WSAENOTCONN, "connectResult", errReset},
		{"getsockname", strange, "connectResult", "getsockname"},
		{"getsockopt", strange, "pendingError", "getsockopt"},
		{"shutdown", strange, "closeWrite", "shutdown"},
		{"shutdown", windows.WSAENOTCONN, "closeWrite", nil},
		{"WSARecv", strange, "read", "wsarecv"},
		{"WSARecv", windows.WSAECONNABORTED, "read", errReset},
		{"WSASend", strange, "write", "wsasend"},
		{"WSASend", windows.WSAENETRESET, "write", errReset},
		{"accept", strange, "accept", "accept"},
		{"accept", windows.WSAENOTCONN, "accept", errReset},
		{"accept", windows.WSAECONNRESET, "accept", errReset},
		{"accept", windows.WSAEMFILE, "accept", errTooManyFiles},
		{"ioctlsocket", strange, "accept", "ioctlsocket"},
		{"setsockopt", strange, "accept", nil},
	} {
		t.Run(fmt.Sprintf("%s, %s says %d", test.act, test.call, test.number), func(t *testing.T) {
			act := actsOfWinsock[test.act]
			if act == nil {
				listener, client := waiting(t)
				act = func() error { return actsOnSocket[test.act](listener, client) }
			}
			before := lastHandle(t)
			t.Run("acting", func(t *testing.T) {
				fails(t, test.call, test.number)
				wantFailure(t, act(), test.want, test.number)
				if test.act != "accept" && test.act != "read" { // there is one connection to accept
					for range 20 {
						act()
					}
				}
			})
			more := (lastHandle(t) - before) / 4
			if more >= 10 || test.act == "accept" && more > 0 {
				t.Errorf("%d handles more than before", more)
			}
		})
	}
}

// wantFailure holds an error against what a row of a table says of it.
func wantFailure(t *testing.T, err error, want any, number windows.Errno) {
	t.Helper()
	switch want := want.(type) {
	case nil:
		if err != nil {
			t.Errorf("%v, want none", err)
		}
	case error:
		if !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	case string:
		wantCall(t, want, err, number)
	}
}

// lastHandle is the highest number of some new sockets. The numbers of closed ones are used again, so
// it goes up with those that stay open.
func lastHandle(t *testing.T) (last int) {
	t.Helper()
	for range 16 {
		s, err := newSocket(windows.AF_INET, windows.SOCK_DGRAM, windows.IPPROTO_UDP)
		if err != nil {
			t.Fatal(err)
		}
		defer system{}.close(s)
		last = max(last, int(s))
	}
	return last
}

// TestWakeAddress: what wakes is bound to loopback from the start, and to a port that is free.
func TestWakeAddress(t *testing.T) {
	var asked []byte
	replace(t, "bind", windows.NewCallback(func(s uintptr, name *[16]byte, size uintptr) uintptr {
		asked = slices.Clone(name[:size])
		return 0
	}))
	p, err := newPoller()
	if err == nil {
		p.close()
	}
	want := make([]byte, 16) // struct sockaddr_in of ws2def.h
	copy(want, []byte{windows.AF_INET, 0, 0, 0, 127, 0, 0, 1})
	if !bytes.Equal(asked, want) {
		t.Errorf("bound to %x, want %x", asked, want)
	}
}

// TestTimeoutOfSelect: what the sets hold after a timeout says nothing. This select leaves them as
// they were asked.
func TestTimeoutOfSelect(t *testing.T) {
	p := newPlatform(t)
	s, _ := p.pair()
	p.watch(s, readable|writable)
	answers(t, "select", 0)
	n, err := p.wait(make([]event, 4), 0)
	if n != 0 || err != nil {
		t.Errorf("%d events, %v", n, err)
	}
}

// TestNoWinsock: without Winsock there is no poller.
func TestNoWinsock(t *testing.T) {
	answers(t, "WSAStartup", uint32(windows.WSASYSNOTREADY))
	_, err := newPoller()
	var named *os.SyscallError
	if !errors.As(err, &named) || named.Syscall != "wsastartup" {
		t.Errorf("%v, want a failure of wsastartup", err)
	}
}
