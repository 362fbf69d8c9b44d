package verbs

import (
	"fmt"
	"math/bits"

	"golang.org/x/sys/unix"
)

const hugePage = 2 << 20

// mapArena returns size bytes of memory outside the Go heap, rounded up to whole huge
// pages, in such pages if the system has them: the device needs fewer entries for it.
func mapArena(size int) ([]byte, error) {
	size = (size + hugePage - 1) &^ (hugePage - 1)
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_PRIVATE | unix.MAP_ANONYMOUS
	if mem, err := unix.Mmap(-1, 0, size, prot, flags|unix.MAP_HUGETLB); err == nil {
		return mem, nil
	}
	mem, err := unix.Mmap(-1, 0, size, prot, flags)
	if err != nil {
		return nil, fmt.Errorf("verbs: map %d bytes: %w", size, err)
	}
	_ = unix.Madvise(mem, unix.MADV_HUGEPAGE) // small ones will do
	return mem, nil
}

// An arena is the memory of a lane that its device reaches, registered in a domain of
// that device. The lane owns it and closes it last.
type arena struct {
	mem      []byte
	ring     []byte // parts of mem, as the next
	reads    []byte
	messages []byte // maxClientCredits to send, and as many to receive
	landing  []byte // where the READs go that nobody looks at

	device Device // of domain; run of the lane uses it and the next two
	domain Domain
	mr     MR
}

// maxClientCredits is how many messages a client has under way, whatever the memory node
// allows.
const maxClientCredits = 16

// landingSize is how many bytes a READ asks for that pushes writes out.
const landingSize = 8

func newArena(window int) (*arena, error) {
	mem, err := mapArena(window + readSize + 2*maxClientCredits*messageSize + landingSize)
	if err != nil {
		return nil, err
	}
	return &arena{
		mem: mem, ring: mem[:window:window], reads: mem[window : window+readSize],
		messages: mem[window+readSize:][:2*maxClientCredits*messageSize],
		landing:  mem[window+readSize+2*maxClientCredits*messageSize:][:landingSize],
	}, nil
}

// send and receive are the buffers of message i.
func (a *arena) send(i int) []byte { return a.messages[i*messageSize : (i+1)*messageSize] }
func (a *arena) receive(i int) []byte {
	return a.messages[(maxClientCredits+i)*messageSize:][:messageSize]
}

// register makes d the device that reaches the arena. No queue pair of the one before is
// left. A device that was reset is another one, of the same name.
func (a *arena) register(d Device) error {
	if a.mr != nil && a.device == d {
		return nil
	}
	if err := a.deregister(); err != nil {
		return err
	}
	domain, err := d.NewDomain()
	if err != nil {
		return fmt.Errorf("verbs: %s: make a domain: %w", d.Name(), err)
	}
	mr, err := domain.Register(a.mem, 0)
	if err != nil {
		_ = domain.Close() // it is empty
		return fmt.Errorf("verbs: %s: register %d bytes: %w", d.Name(), len(a.mem), err)
	}
	a.device, a.domain, a.mr = d, domain, mr
	return nil
}

func (a *arena) deregister() error {
	if a.mr == nil {
		return nil
	}
	if err := a.mr.Close(); err != nil {
		return fmt.Errorf("verbs: %s: deregister: %w", a.device.Name(), err)
	}
	a.mr = nil
	if err := a.domain.Close(); err != nil {
		return fmt.Errorf("verbs: %s: close a domain: %w", a.device.Name(), err)
	}
	return nil
}

// close gives the memory back. Where the device does not let go of it, it is left.
func (a *arena) close() error {
	if err := a.deregister(); err != nil {
		return err
	}
	return unix.Munmap(a.mem)
}

const (
	readBlock = 64 << 10
	readSize  = 64 * readBlock
	maxRead   = 8 * readBlock // bytes of one RDMA read
)

// A blocks is the set of blocks of arena.reads that are in use.
type blocks uint64

// take finds room for n bytes, at most maxRead, and returns the number of the first block.
func (b *blocks) take(n int) (first int, ok bool) {
	count := blocksOf(n)
	free := ^uint64(*b)
	for range count - 1 { // keep what begins a run that is longer by one
		free &= free >> 1
	}
	if free == 0 {
		return 0, false
	}
	first = bits.TrailingZeros64(free)
	*b |= blocks((1<<count - 1) << first)
	return first, true
}

func (b *blocks) free(first, n int) {
	*b &^= blocks((1<<blocksOf(n) - 1) << first)
}

func blocksOf(n int) int { return (n + readBlock - 1) / readBlock }
