package main

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// What XNU's answers mean.

// TestFinUnacknowledged: RFC 9293 section 3.3.2 has the states, and netinet/tcp_fsm.h their numbers.
func TestFinUnacknowledged(t *testing.T) {
	t.Parallel()
	for state, name := range []string{"CLOSED", "LISTEN", "SYN-SENT", "SYN-RECEIVED", "ESTABLISHED",
		"CLOSE-WAIT", "FIN-WAIT-1", "CLOSING", "LAST-ACK", "FIN-WAIT-2", "TIME-WAIT"} {
		want := name == "FIN-WAIT-1" || name == "CLOSING" || name == "LAST-ACK"
		if finUnacknowledged(uint8(state)) != want {
			t.Errorf("%s (%d): our FIN is out and not acknowledged: %v", name, state, !want)
		}
	}
}

// TestSelfConnectNumber: EINVAL of connect says that an IPv4 socket would meet itself. IPv6 sockets
// may do that, and there it says that a call was wrong.
func TestSelfConnectNumber(t *testing.T) {
	t.Parallel()
	err := selfConnect(netip.MustParseAddr("127.0.0.1"), unix.EINVAL)
	if err.Error() != "connection refused (connected to itself)" {
		t.Errorf("IPv4: %v", err)
	}
	wantCall(t, "connect", selfConnect(netip.IPv6Loopback(), unix.EINVAL), unix.EINVAL)
}
