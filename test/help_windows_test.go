package test

import (
	"os/exec"
	"syscall"
	"testing"
)

// ownGroup gives a process a group of its own, which keys of the console do not reach.
func ownGroup(c *exec.Cmd) {
	c.SysProcAttr = &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP}
}

func killGroup(c *exec.Cmd) error { return c.Process.Kill() }

func fullBacklog(t *testing.T) (port string) {
	t.Skip("on this system a full backlog refuses")
	return ""
}
