// Writes the DLL named by its argument: bcryptprimitives.dll for a Wine that has none. Go programs
// take their random numbers from its ProcessPrng. The DLL holds no code, only that one export, as a
// forwarder to the function that older Windows offered (PE Format, "The .edata Section").
package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
)

const (
	headers = 0x200  // size of all headers, padded to the file's alignment
	rva     = 0x1000 // where the only section is mapped
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: pe FILE.dll")
		os.Exit(2)
	}
	if err := os.WriteFile(os.Args[1], image(), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func image() []byte {
	exports := edata()
	var b bytes.Buffer
	put := func(fields ...any) {
		for _, f := range fields {
			binary.Write(&b, binary.LittleEndian, f)
		}
	}
	// The DOS header: its magic and, at 0x3c, the offset of the PE header.
	put([]byte("MZ"), make([]byte, 0x3a), uint32(0x40))
	// The COFF header: amd64, one section; executable, large addresses, DLL.
	put([]byte("PE\x00\x00"), uint16(0x8664), uint16(1), uint32(0), uint32(0), uint32(0), uint16(240), uint16(0x2022))
	// The optional header of PE32+: linker, sizes of code and data, no entry point.
	put(uint16(0x20b), uint16(0), uint32(0), uint32(0x200), uint32(0), uint32(0), uint32(rva))
	put(uint64(0x180000000), uint32(rva), uint32(headers)) // base, both alignments
	put(uint16(6), uint16(0), uint16(0), uint16(0), uint16(6), uint16(0), uint32(0))
	put(uint32(2*rva), uint32(headers), uint32(0))                  // image, headers, checksum
	put(uint16(2), uint16(0x160))                                   // subsystem; relocatable, no execution of data
	put(uint64(1<<20), uint64(1<<12), uint64(1<<20), uint64(1<<12)) // stack, heap
	put(uint32(0), uint32(16), uint32(rva), uint32(len(exports)), make([]byte, 15*8))
	// The section: initialised data, readable.
	put([]byte(".edata\x00\x00"), uint32(len(exports)), uint32(rva), uint32(0x200), uint32(headers), make([]byte, 12), uint32(0x40000040))
	put(make([]byte, headers-b.Len()), exports, make([]byte, 0x200-len(exports)))
	return b.Bytes()
}

// edata is the export directory, its three tables of one entry each, and the strings.
func edata() []byte {
	const (
		functions = rva + 40 // the directory's size
		names     = functions + 4
		ordinals  = names + 4
		texts     = ordinals + 2
	)
	dll, name, forward := "bcryptprimitives.dll\x00", "ProcessPrng\x00", "advapi32.SystemFunction036\x00"
	nameAt := uint32(texts + len(dll))
	var b bytes.Buffer
	for _, f := range []any{
		uint32(0), uint32(0), uint32(0), uint32(texts), uint32(1), uint32(1), uint32(1), // ordinal base, counts
		uint32(functions), uint32(names), uint32(ordinals),
		nameAt + uint32(len(name)), // within the section: a forwarder, not code
		nameAt, uint16(0), []byte(dll + name + forward),
	} {
		binary.Write(&b, binary.LittleEndian, f)
	}
	return b.Bytes()
}
