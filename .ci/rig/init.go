// A kernel, this program as process 1, echomux and the test of the kernel are a whole system: no
// shell, no library. It raises lo, has both prove themselves, says so and powers off.
package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	os.Mkdir("/proc", 0o755)
	os.Mkdir("/etc", 0o755)
	unix.Mount("proc", "/proc", "proc", 0, "")
	os.WriteFile("/etc/hosts", []byte("127.0.0.1 localhost\n"), 0o644)
	fmt.Println("init: raise lo:", raise("lo"))

	failures := 0
	check := func(want int, words ...string) {
		got := run(start(words...))
		fmt.Printf("init: %q: exit status %d, want %d\n", words, got, want)
		if got != want {
			failures++
		}
	}
	check(0, "/kernel.test", "-test.v", "-test.run=^TestKernel")
	check(0, "/echomux")
	server := start("/echomux", "-serve", "7")
	for run(start("/echomux", "-q", "-connect", "localhost", "7")) != 0 {
		time.Sleep(50 * time.Millisecond) // until it listens
	}
	check(0, "/echomux", "localhost", "7", "by name")
	check(0, "/echomux", "-n", "20", "-count", "3", "127.0.0.1", "7", "many")
	check(0, "/echomux", "-size", "10M", "127.0.0.1", "7")
	check(3, "/echomux", "localhost", "9", "refused")
	check(3, "/echomux", "elsewhere", "7", "there is nobody to ask")
	server.Signal(unix.SIGTERM)
	status := run(server)
	fmt.Printf("init: the server has ended with %d, %d checks have failed\n", status, failures)
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) // a board that cannot be switched off
	select {}
}

func start(words ...string) *os.Process {
	streams := []*os.File{os.Stdin, os.Stdout, os.Stderr}
	p, err := os.StartProcess(words[0], words, &os.ProcAttr{Files: streams, Env: os.Environ()})
	if err != nil {
		panic(err)
	}
	return p
}

func run(p *os.Process) (status int) {
	state, err := p.Wait()
	if err != nil {
		panic(err)
	}
	return state.ExitCode()
}

// raise sets IFF_UP, netdevice(7). The addresses come with it.
func raise(name string) error {
	request, _ := unix.NewIfreq(name)
	request.SetUint16(unix.IFF_UP)
	fd, _ := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	defer unix.Close(fd)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}
