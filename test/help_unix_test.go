//go:build unix

package test

import (
	"net"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
)

// ownGroup gives a process a group of its own, so that its children can be ended with it.
func ownGroup(c *exec.Cmd) { c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

func killGroup(c *exec.Cmd) error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }

// fullBacklog is a port of 127.0.0.1 whose backlog is full, so that a connect hangs.
func fullBacklog(t *testing.T) (port string) {
	t.Helper()
	port = portOf(shortBacklog(t).Addr())
	dial(t, port)
	return port
}

// shortBacklog is a listener whose backlog holds one connection.
func shortBacklog(t *testing.T) net.Listener {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("on this system a full backlog does not let a connect hang")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { listener.Close() })
	raw, err := listener.(*net.TCPListener).SyscallConn()
	must(t, err)
	raw.Control(func(fd uintptr) { err = syscall.Listen(int(fd), 0) }) // for a second time
	must(t, err)
	return listener
}
