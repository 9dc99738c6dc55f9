package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Networks of a test's own. What takes root happens in namespaces (namespaces(7)) that a test makes
// for itself; no packet leaves them.

const spaceVariable = "ECHOMUX_FAULT_SPACE"

// faultSpace runs the calling test once more, in a process with a network and a mount namespace of
// its own, and is false; in there, where loopback is up and /etc is the test's to write, it is
// true.
func faultSpace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(spaceVariable) != "" {
		raiseLoopback()
		err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		if err != nil {
			t.Fatal(err)
		}
		faultFile(t, "/etc/hosts", "")
		faultFile(t, "/etc/resolv.conf", "")
		return true
	}
	faultRig(t)
	test, out := inNamespaces(t)
	err := test.Start()
	if err != nil {
		t.Skipf("no namespaces (they take root): %v", err)
	}
	t.Parallel()
	err = test.Wait()
	text := out.String()
	switch {
	case err != nil:
		t.Errorf("%v\n%s", err, text)
	case strings.Contains(text, "--- SKIP: "+t.Name()+" "):
		t.Skipf("\n%s", text)
	case testing.Verbose():
		t.Logf("\n%s", text)
	}
	return false
}

// inNamespaces is the calling test once more, in namespaces of its own.
func inNamespaces(t *testing.T) (test *exec.Cmd, out *output) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	test = exec.Command(self, "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=1h",
		"-repeat="+strconv.Itoa(*repeat), "-soak="+soak.String())
	test.Env = append(os.Environ(), spaceVariable+"=1")
	test.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	}
	out = new(output)
	test.Stdout = out
	test.Stderr = out
	return test, out
}

// faultRig skips on emulations: these tests are about this machine's kernel.
func faultRig(t testing.TB) {
	t.Helper()
	if os.Getenv("ECHOMUX_RIG") != "" || os.Getenv("ECHOMUX_EXEC") != "" {
		t.Skip("an emulation has no faults of its own")
	}
	_, err := os.Stat("/proc/self/stat")
	if err != nil {
		t.Skip(err)
	}
}

// faultFile puts a file with that text in the place of path, in this mount namespace alone.
func faultFile(t testing.TB, path, text string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), filepath.Base(path))
	err := os.WriteFile(file, []byte(text), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	mountOver(t, file, path)
}

// faultHang puts a FIFO that nobody writes in the place of path: whoever opens it waits for ever.
func faultHang(t testing.TB, path string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), filepath.Base(path))
	err := unix.Mkfifo(file, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	mountOver(t, file, path)
}

func mountOver(t testing.TB, file, path string) {
	t.Helper()
	unix.Unmount(path, unix.MNT_DETACH)
	err := unix.Mount(file, path, "", unix.MS_BIND, "")
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	t.Cleanup(func() { unix.Unmount(path, unix.MNT_DETACH) })
}

// runTool runs a command that changes a namespace: that of the calling thread.
func runTool(stdin, name string, args ...string) error {
	tool := exec.Command(name, args...)
	tool.Stdin = strings.NewReader(stdin)
	out, err := tool.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %q: %w: %s", name, args, err, out)
	}
	return nil
}

// faultTool is runTool for a test that can do nothing without.
func faultTool(t testing.TB, stdin, name string, args ...string) {
	t.Helper()
	err := runTool(stdin, name, args...)
	if err != nil {
		t.Skip(err)
	}
}

// cutOff loses packets as nft's conditions say, until the function that it returns is called.
func cutOff(t testing.TB, conditions string) (restore func()) {
	t.Helper()
	faultTool(t, `table inet cut {
	chain input {
		type filter hook input priority 0;
		`+conditions+` drop
	}
}`, "nft", "-f", "-")
	return func() { faultTool(t, "", "nft", "delete", "table", "inet", "cut") }
}

// farNetwork is a second network namespace, joined to the present one by a pair of interfaces: here
// near with 192.0.2.1, there far with 192.0.2.2.
type farNetwork struct {
	jobs chan func()
}

func newFarNetwork(t testing.TB) *farNetwork {
	t.Helper()
	far := &farNetwork{jobs: make(chan func())}
	thread := make(chan int)
	go func() {
		runtime.LockOSThread() // for good: the thread, and its namespace, end with this goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err != nil {
			close(thread)
			return
		}
		thread <- unix.Gettid()
		for job := range far.jobs {
			job()
		}
	}()
	id, ok := <-thread
	if !ok {
		t.Skip("no second namespace")
	}
	t.Cleanup(func() { close(far.jobs) })
	faultTool(t, "link add near type veth peer name far netns "+strconv.Itoa(id)+`
address add 192.0.2.1/24 dev near
link set near up
`, "ip", "-batch", "-")
	far.do(t, func() error {
		return runTool("address add 192.0.2.2/24 dev far\nlink set far up\n", "ip", "-batch", "-")
	})
	return far
}

// do has job done in the far namespace.
func (far *farNetwork) do(t testing.TB, job func() error) {
	t.Helper()
	done := make(chan error)
	far.jobs <- func() { done <- job() }
	err := <-done
	if err != nil {
		t.Skip(err)
	}
}

// serve is a server there, which calls talk with each connection.
func (far *farNetwork) serve(t testing.TB, talk func(*net.TCPConn)) (port string) {
	t.Helper()
	far.do(t, func() error {
		_, port = serve(t, "192.0.2.2:0", talk)
		return nil
	})
	return port
}

// tunPath is a network of one TUN device, where 192.0.2.2 is this very host behind a path that the
// test controls: the relay swaps the two addresses of each packet, which leaves the checksums
// right.
type tunPath struct {
	tun     int
	delay   atomic.Int64 // ns, each way
	loss    atomic.Int64 // of 1000 packets
	packets atomic.Int64 // that came by
	queue   chan tunPacket
	stop    chan struct{}
	ended   chan struct{}
}

type tunPacket struct {
	due  time.Time
	data []byte
}

func newTunPath(t testing.TB, mtu uint32) *tunPath {
	t.Helper()
	tun, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("/dev/net/tun: %v", err)
	}
	setUpTun(t, tun, mtu)
	p := &tunPath{
		tun:   tun,
		queue: make(chan tunPacket, 10_000),
		stop:  make(chan struct{}),
		ended: make(chan struct{}, 2),
	}
	go p.take()
	go p.give()
	t.Cleanup(func() {
		close(p.stop)
		<-p.ended
		<-p.ended
		unix.Close(tun)
	})
	return p
}

// set gives the path a delay each way, and a loss of so many in 1000 packets.
func (p *tunPath) set(delay time.Duration, loss int64) {
	p.delay.Store(int64(delay))
	p.loss.Store(loss)
}

// setUpTun gives the device a name, an address and an MTU, and raises it.
func setUpTun(t testing.TB, tun int, mtu uint32) {
	t.Helper()
	control, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(control)
	type request = *unix.Ifreq
	address, mask := []byte{192, 0, 2, 1}, []byte{255, 255, 255, 0}
	for _, step := range []struct {
		fd      int
		request uint
		set     func(request)
	}{
		{tun, unix.TUNSETIFF, func(r request) { r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI) }},
		{control, unix.SIOCSIFADDR, func(r request) { r.SetInet4Addr(address) }},
		{control, unix.SIOCSIFNETMASK, func(r request) { r.SetInet4Addr(mask) }},
		{control, unix.SIOCSIFMTU, func(r request) { r.SetUint32(mtu) }},
		{control, unix.SIOCSIFFLAGS, func(r request) { r.SetUint16(unix.IFF_UP) }},
	} {
		r, err := unix.NewIfreq("path0")
		if err == nil {
			step.set(r)
			err = unix.IoctlIfreq(step.fd, step.request, r)
		}
		if err != nil {
			t.Skipf("TUN device: request %#x: %v", step.request, err)
		}
	}
}

// take reads packets and loses some.
func (p *tunPath) take() {
	defer func() { p.ended <- struct{}{} }()
	random := rand.New(rand.NewPCG(5, 6))
	buf := make([]byte, 1<<16)
	for {
		select {
		case <-p.stop:
			return
		default:
		}
		unix.Poll([]unix.PollFd{{Fd: int32(p.tun), Events: unix.POLLIN}}, 20)
		n, err := unix.Read(p.tun, buf)
		if err != nil || n < 20 || buf[0]>>4 != 4 {
			continue
		}
		p.packets.Add(1)
		if random.Int64N(1000) < p.loss.Load() {
			continue
		}
		data := bytes.Clone(buf[:n])
		copy(data[12:16], buf[16:20])
		copy(data[16:20], buf[12:16])
		due := time.Now().Add(time.Duration(p.delay.Load()))
		select {
		case p.queue <- tunPacket{due, data}:
		default: // full: lost
		}
	}
}

// give writes them when they are due.
func (p *tunPath) give() {
	defer func() { p.ended <- struct{}{} }()
	for {
		select {
		case <-p.stop:
			return
		case q := <-p.queue:
			time.Sleep(time.Until(q.due))
			unix.Write(p.tun, q.data)
		}
	}
}
