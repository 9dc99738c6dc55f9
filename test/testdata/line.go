// A program for the benchmarks: the least that a program in Go can do and have something to say.
package main

import "fmt"

func main() { fmt.Println("msg=ok") }
