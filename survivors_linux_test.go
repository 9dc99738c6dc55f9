package main

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestInterruptedWait: a signal to the thread that waits is no error, and no event. The Go runtime
// sends itself SIGURG, and nobody else minds it.
func TestInterruptedWait(t *testing.T) {
	p, err := newPoller()
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	thread := unix.Gettid()
	go func() {
		for range 20 {
			time.Sleep(5 * time.Millisecond)
			unix.Tgkill(unix.Getpid(), thread, unix.SIGURG)
		}
	}()
	interrupted := 0
	for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end); {
		start := time.Now()
		n, err := p.wait(make([]event, 1), 60)
		if n != 0 || err != nil {
			t.Fatalf("%d events, %v", n, err)
		}
		if time.Since(start) < 50*time.Millisecond {
			interrupted++
		}
	}
	if interrupted == 0 {
		t.Skip("no signal has interrupted a wait")
	}
}
