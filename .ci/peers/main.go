// What .ci/lab needs besides echomux:
//
//	peers board          on the board: a web server, a name server that knows no name, and three
//	                     faulty servers
//	peers proxy TO       on the router: a proxy that turns \n into \r\n
package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
)

func main() {
	err := fmt.Errorf("usage: peers board | peers proxy TO")
	switch {
	case len(os.Args) == 2 && os.Args[1] == "board":
		go func() { fail(serveNames("192.0.2.7:53")) }()
		go func() { fail(serve(":7001", closesEarly)) }()
		go func() { fail(serve(":7002", resets)) }()
		go func() { fail(serve(":7003", swallows)) }()
		err = http.ListenAndServe(":8000", http.HandlerFunc(hello))
	case len(os.Args) == 3 && os.Args[1] == "proxy":
		err = serve(":9998", func(near *net.TCPConn) { handOn(near, os.Args[2]) })
	}
	fail(err)
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func hello(w http.ResponseWriter, _ *http.Request) {
	w.Header()["Date"] = nil
	io.WriteString(w, "<p>hello</p>\n")
}

// serveNames answers every question with NXDOMAIN (RFC 1035 section 4.1).
func serveNames(at string) error {
	server, err := net.ListenPacket("udp", at)
	if err != nil {
		return err
	}
	query := make([]byte, 512)
	for {
		n, from, err := server.ReadFrom(query)
		if err != nil {
			return err
		}
		if n < 12 {
			continue
		}
		question := query[12:n]
		end := bytes.IndexByte(question, 0)
		if end < 0 || end+5 > len(question) {
			continue
		}
		answer := append([]byte{query[0], query[1], 0x81, 0x83, 0, 1, 0, 0, 0, 0, 0, 0}, question[:end+5]...)
		server.WriteTo(answer, from)
	}
}

// serve has talk have each connection.
func serve(at string, talk func(*net.TCPConn)) error {
	server, err := net.Listen("tcp", at)
	if err != nil {
		return err
	}
	for {
		c, err := server.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			talk(c.(*net.TCPConn))
		}()
	}
}

// closesEarly returns three bytes, and ends.
func closesEarly(c *net.TCPConn) {
	io.CopyN(c, c, 3)
	c.CloseWrite()
	io.Copy(io.Discard, c)
}

func resets(c *net.TCPConn) {
	io.CopyN(io.Discard, c, 3)
	c.SetLinger(0)
}

// swallows takes all and returns nothing.
func swallows(c *net.TCPConn) { io.Copy(io.Discard, c) }

// handOn is a proxy to another place, which alters what it sends there.
func handOn(near *net.TCPConn, to string) {
	c, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	far := c.(*net.TCPConn)
	defer far.Close()
	go func() {
		io.Copy(lineEnds{far}, near)
		far.CloseWrite()
	}()
	io.Copy(near, far)
	near.CloseWrite()
}

// lineEnds writes \r\n for \n.
type lineEnds struct{ w io.Writer }

func (l lineEnds) Write(p []byte) (int, error) {
	_, err := l.w.Write(bytes.ReplaceAll(p, []byte("\n"), []byte("\r\n")))
	return len(p), err
}
