// Line prints one line: what the start and the end of a program in Go cost.
package main

import "fmt"

func main() { fmt.Println("one line") }
