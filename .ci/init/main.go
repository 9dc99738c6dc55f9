// A kernel, this program and echomux are a whole system: no shell, no /proc, no /etc. As process 1
// it raises lo, has echomux prove itself and powers off. Anywhere else it packs that system's
// initramfs: init FILE.cpio INIT ECHOMUX
package main

import (
	"bytes"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() == 1 {
		boot()
	}
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: init FILE.cpio INIT ECHOMUX")
		os.Exit(2)
	}
	if err := pack(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// pack writes the archive in the "newc" format of the kernel's initramfs-buffer-format.rst.
func pack(path, init, echomux string) error {
	var b bytes.Buffer
	inode := 0
	put := func(name string, mode, major, minor int, data []byte) {
		inode++
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			inode, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name)
		b.Write(make([]byte, -b.Len()&3))
		b.Write(data)
		b.Write(make([]byte, -b.Len()&3))
	}
	put("dev", unix.S_IFDIR|0o755, 0, 0, nil)
	put("dev/console", unix.S_IFCHR|0o600, 5, 1, nil)
	for _, file := range [][2]string{{"init", init}, {"echomux", echomux}} {
		data, err := os.ReadFile(file[1])
		if err != nil {
			return err
		}
		put(file[0], unix.S_IFREG|0o755, 0, 0, data)
	}
	put("TRAILER!!!", 0, 0, 0, nil)
	return os.WriteFile(path, b.Bytes(), 0o644)
}

// boot is process 1. It never returns.
func boot() {
	run, passed := 0, 0
	check := func(want int, args ...string) {
		run++
		got, err := exitStatus(start(args...))
		if got == want && err == nil {
			passed++
		}
		fmt.Printf("init: echomux %q: exit status %d, expected %d, %v\n", args, got, want, err)
	}
	fmt.Printf("init: raise lo: %v\n", raise("lo"))
	check(0)       // the demo
	check(0, "-6") // the demo over IPv6
	server, err := start("-serve", "localhost", "7")
	for range 100 { // until it listens
		if s, _ := exitStatus(start("-q", "-until", "connect", "localhost", "7")); s == 0 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	check(0, "localhost", "7", "by name")
	check(0, "-n", "20", "-count", "3", "127.0.0.1", "7", "many")
	check(0, "-6", "localhost", "7", "IPv6 by name")
	check(0, "::1%lo", "7", "with an interface's name")
	check(3, "localhost", "9", "refused")
	check(3, "elsewhere", "7", "no such name, nor anybody to ask")
	run++
	if err == nil {
		server.Signal(unix.SIGTERM)
	}
	if s, err := exitStatus(server, err); s == 0 && err == nil { // it was asked to end
		passed++
	}
	fmt.Printf("init: the server was stopped\ninit: run %d passed %d\n", run, passed)
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {}
}

func start(args ...string) (*os.Process, error) {
	return os.StartProcess("/echomux", append([]string{"echomux"}, args...), &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
}

func exitStatus(p *os.Process, err error) (int, error) {
	if err != nil {
		return -1, err
	}
	s, err := p.Wait()
	if err != nil {
		return -1, err
	}
	return s.ExitCode(), nil
}

// raise sets IFF_UP, netdevice(7); 127.0.0.1 and ::1 come with it.
func raise(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}
