// A client for the benchmarks: what one writes with package net, a goroutine for each connection.
//
// usage: net PORT CONNECTIONS ROUNDS SIZE
//
// All connections are to 127.0.0.1, and at once. On each, ROUNDS times, SIZE bytes go to an echo
// server, and every byte that comes back is compared. What goes wrong ends the process.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"log"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"time"
)

const chunk = 256 << 10

// stream is what flows, over and over.
var stream = make([]byte, chunk)

func main() {
	var numbers [3]int
	for i := range numbers {
		numbers[i], _ = strconv.Atoi(os.Args[2+i])
	}
	connections, rounds, size := numbers[0], numbers[1], numbers[2]
	rand.NewChaCha8([32]byte{}).Read(stream[:min(chunk, size)])
	var all sync.WaitGroup
	for range connections {
		all.Go(func() {
			err := talk("127.0.0.1:"+os.Args[1], rounds, size)
			if err != nil {
				log.Fatal(err)
			}
		})
	}
	all.Wait()
	fmt.Println("msg=ok")
}

// talk is one connection. The goroutine that sends is there only if a round is longer than what a
// kernel takes at once.
func talk(address string, rounds, size int) error {
	conn, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(100 * time.Second))
	buffer := make([]byte, min(chunk, size))
	for range rounds {
		if size > 64<<10 {
			go send(conn, size)
		} else {
			err = send(conn, size)
		}
		if err != nil {
			return err
		}
		err = receive(conn, buffer, size)
		if err != nil {
			return err
		}
	}
	conn.(*net.TCPConn).CloseWrite()
	n, _ := conn.Read(buffer)
	if n > 0 {
		return errors.New("more came back than was sent")
	}
	return nil
}

func send(conn net.Conn, size int) error {
	for size > 0 {
		n, err := conn.Write(stream[:min(size, chunk)])
		if err != nil {
			return err
		}
		size -= n
	}
	return nil
}

func receive(conn net.Conn, buffer []byte, size int) error {
	for offset := 0; offset < size; {
		n, err := conn.Read(buffer)
		if err != nil {
			return err
		}
		for got := buffer[:n]; len(got) > 0; {
			want := stream[offset%chunk:]
			want = want[:min(len(want), len(got))]
			if !bytes.Equal(got[:len(want)], want) {
				return errors.New("a byte differs")
			}
			got = got[len(want):]
			offset += len(want)
		}
	}
	return nil
}
