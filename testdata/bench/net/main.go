// Net does the jobs of echomux with package net, as most programs in Go would.
//
//	net bulk ADDRESS               standard input to the server, what comes back to standard output
//	net rounds ADDRESS ROUNDS      64 bytes there and back, again and again
//	net connections ADDRESS COUNT  64 bytes there and back on each of them, all at once
//	net serve                      an echo server that reads and writes
//	net splice                     one that leaves the copying to io.Copy, and that to the kernel
//
// A server listens on a free port of 127.0.0.1 and prints the address.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
)

const chunk = 256 << 10 // bytes of one call, at most

var message = bytes.Repeat([]byte("m"), 64)

func main() {
	args := append(os.Args[1:], "", "", "")
	n, _ := strconv.Atoi(args[2])
	switch args[0] {
	case "bulk":
		bulk(args[1])
	case "rounds":
		rounds(args[1], n)
	case "connections":
		connections(args[1], n)
	case "serve":
		serve(copyEcho)
	case "splice":
		serve(func(c net.Conn) { io.Copy(c, c) })
	default:
		check(fmt.Errorf("%q is no job", args[0]))
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "net:", err)
		os.Exit(1)
	}
}

func dial(address string) *net.TCPConn {
	c, err := net.Dial("tcp", address)
	check(err)
	return c.(*net.TCPConn)
}

// bulk compares nothing, but sees the bytes: the structs hide what would let the kernel copy.
func bulk(address string) {
	c := dial(address)
	go func() {
		in := struct{ io.Reader }{os.Stdin}
		_, err := io.CopyBuffer(struct{ io.Writer }{c}, in, make([]byte, chunk))
		check(err)
		c.CloseWrite()
	}()
	back := struct{ io.Reader }{c}
	_, err := io.CopyBuffer(struct{ io.Writer }{os.Stdout}, back, make([]byte, chunk))
	check(err)
}

func exchange(c net.Conn, buf []byte) {
	_, err := c.Write(message)
	check(err)
	_, err = io.ReadFull(c, buf)
	check(err)
	if !bytes.Equal(buf, message) {
		check(errors.New("a byte differs"))
	}
}

func rounds(address string, n int) {
	c := dial(address)
	buf := make([]byte, len(message))
	for range n {
		exchange(c, buf)
	}
}

func connections(address string, n int) {
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			c := dial(address)
			buf := make([]byte, len(message))
			exchange(c, buf)
			c.CloseWrite()
			if n, err := c.Read(buf); err != io.EOF {
				check(fmt.Errorf("%d bytes and %v in the end", n, err))
			}
			c.Close()
		})
	}
	all.Wait()
}

func serve(echo func(net.Conn)) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	fmt.Println(l.Addr())
	for {
		c, err := l.Accept()
		check(err)
		go func() {
			echo(c)
			c.Close()
		}()
	}
}

func copyEcho(c net.Conn) {
	buf := make([]byte, chunk)
	for {
		n, err := c.Read(buf)
		if err == nil {
			_, err = c.Write(buf[:n])
		}
		if err != nil {
			return
		}
	}
}
