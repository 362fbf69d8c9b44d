package main

import (
	"context"
	"fmt"
	"hash/crc32"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs/model"
)

const (
	rdmaPool = 8 << 20
	// rdmaOver is what a page may cost beyond its copy and its checksum.
	rdmaOver = 500 * time.Nanosecond
)

// rdma tells what a page that is pushed over RDMA costs the compute node's processor, with
// a device that takes no time: beyond the copy to registered memory and the checksum.
func (b *bench) rdma() error {
	pool := &plainPool{mem: make([]byte, rdmaPool), done: make(chan struct{})}
	f := model.New(model.Config{})
	node := f.Host("node", model.HostOptions{Flush: true, Media: []model.Medium{model.Plain(pool.mem)}})
	l, err := node.Listen(":7472")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- verbs.Serve(ctx, l, pool, verbs.ServerConfig{}) }()
	defer func() {
		cancel()
		<-served // that it was cancelled
	}()
	c, err := verbs.Dial(ctx, verbs.Config{
		NIC: f.Host("compute", model.HostOptions{Flush: true}).Null(), Address: "node:7472",
		Token: func(context.Context) (t [32]byte, err error) { return t, nil },
	})
	if err != nil {
		return err
	}
	for _, way := range []struct {
		name         string
		piece, flush int
	}{
		{"1 page, flushed", rdmacache.PageSize, rdmacache.PageSize},
		{"page by page, flushed by the MiB", rdmacache.PageSize, 1 << 20},
		{"in pieces of 1 MiB, flushed", 1 << 20, 1 << 20},
	} {
		if err := b.rdmaPush(c, way.name, way.piece, way.flush); err != nil {
			return err
		}
	}
	return c.Close()
}

func (b *bench) rdmaPush(c *verbs.Conn, name string, piece, flush int) error {
	data, to := make([]byte, rdmaPool), make([]byte, rdmaPool)
	for i := range data {
		data[i], to[i] = byte(i), byte(i) // the first use of memory is not to be timed
	}
	bare := func() error {
		for i := 0; i < rdmaPool; i += piece {
			checksums(data[i : i+piece])
			copy(to[i:], data[i:i+piece])
		}
		return nil
	}
	push := func() error {
		for i := 0; i < rdmaPool; i += piece {
			checksums(data[i : i+piece])
			if err := c.Write(context.Background(), data[i:i+piece], int64(i)); err != nil {
				return err
			}
			if (i+piece)%flush != 0 {
				continue
			}
			if err := c.Flush(context.Background()); err != nil {
				return err
			}
		}
		return nil
	}
	sides := []func() error{push, bare}
	took := make([][]time.Duration, len(sides))
	for round := range 1 + b.times(60) {
		for i, side := range sides {
			began, err := processorTime()
			if err != nil {
				return err
			}
			if err := side(); err != nil {
				return err
			}
			now, err := processorTime()
			if err != nil {
				return err
			}
			if round > 0 { // the first warms up
				took[i] = append(took[i], (now-began)/(rdmaPool/rdmacache.PageSize))
			}
		}
	}
	ours, theirs := median(took[0]), median(took[1])
	b.add("rdma: processor time of a page, "+name, round(ours), round(theirs)+" (copy and CRC)",
		fmt.Sprintf("%.2f", float64(ours)/float64(theirs)),
		verdict(ours-theirs <= rdmaOver, fmt.Sprintf("<= %v more", rdmaOver)))
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksums takes those of the pages of p, as the cache does.
func checksums(p []byte) (sum uint32) {
	for ; len(p) > 0; p = p[rdmacache.PageSize:] {
		sum ^= crc32.Checksum(p[:rdmacache.PageSize], castagnoli)
	}
	return sum
}

// processorTime is what all threads of the process used.
func processorTime() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t); err != nil {
		return 0, err
	}
	return time.Duration(t.Nano()), nil
}

// plainPool is the session of every token: memory, all of it the session's.
type plainPool struct {
	mem  []byte
	done chan struct{}
}

func (p *plainPool) Take([32]byte) (verbs.Session, error)       { return p, nil }
func (p *plainPool) ReadOnly() bool                             { return false }
func (p *plainPool) Done() <-chan struct{}                      { return p.done }
func (p *plainPool) ReadAt(b []byte, off int64) error           { copy(b, p.mem[off:]); return nil }
func (p *plainPool) WriteAt(b []byte, off int64) error          { copy(p.mem[off:], b); return nil }
func (p *plainPool) Flush() error                               { return nil }
func (p *plainPool) Medium() rdmacache.Medium                   { return rdmacache.Medium{Kind: "dax"} }
func (p *plainPool) Bytes() []byte                              { return p.mem }
func (p *plainPool) Extent(int64) (start, end int64, err error) { return 0, int64(len(p.mem)), nil }
func (p *plainPool) Persist(off, n int64) error                 { return nil }
func (p *plainPool) Expose(rdmacache.Window) error              { return nil }
func (p *plainPool) Withdraw(rdmacache.Window)                  {}
