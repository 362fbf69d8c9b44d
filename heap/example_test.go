package heap_test

import (
	"fmt"
	"log"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/heap"
)

type element struct {
	Below heap.Ptr[element] // 0 for the lowest
	Value uint64
}

// A stack that is found again through the root. In a program the bytes are those
// of a client.Region, and Options.Grow and Options.Owners are given.
func Example() {
	mem, err := unix.Mmap(-1, 0, 8<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		log.Fatal(err)
	}
	h, err := heap.Create(mem, heap.Options{})
	if err != nil {
		log.Fatal(err)
	}
	for value := range uint64(3) {
		p, err := heap.New[element](h)
		if err != nil {
			log.Fatal(err)
		}
		*p.Get(h) = element{Below: heap.Ptr[element](h.Root()), Value: value}
		if err := h.SetRoot(heap.Offset(p)); err != nil {
			log.Fatal(err)
		}
	}
	if err := h.Close(); err != nil {
		log.Fatal(err)
	}

	if h, err = heap.Open(mem, heap.Options{}); err != nil {
		log.Fatal(err)
	}
	for p := heap.Ptr[element](h.Root()); p != 0; p = p.Get(h).Below {
		fmt.Println(p.Get(h).Value)
	}
	// Output:
	// 2
	// 1
	// 0
}
