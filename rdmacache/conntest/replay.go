package conntest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/rpmemfs/rpmemfs/rdmacache"
)

// Stress lets workers write, read and flush pages of their own, for rounds each,
// over a connection that may break. It returns the first promise that was broken:
// every write before a Flush that returned nil is durable, whole, and stays; reads
// see what was written. A write that no Flush covers is there whole or not, unless the
// Store was reached one-sided.
func Stress(ctx context.Context, c rdmacache.Conn, s *Store, seed uint64, workers, rounds int) error {
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			k := &worker{c: c, s: s, rng: rand.New(rand.NewPCG(seed, uint64(w))), base: int64(w) * workerPages}
			for round := range rounds {
				if err := k.round(ctx); err != nil {
					errs[w] = fmt.Errorf("worker %d, round %d: %w", w, round, err)
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// workerPages is how many pages a worker of Stress has.
const workerPages = 32

// A worker is one of Stress.
type worker struct {
	c    rdmacache.Conn
	s    *Store
	rng  *rand.Rand
	base int64               // its first page
	last [workerPages]uint64 // the version of each page that was written last
	safe [workerPages]uint64 // and that a flush covered
	next uint64
}

func (k *worker) round(ctx context.Context) error {
	for range 1 + k.rng.IntN(6) {
		page := k.rng.Int64N(workerPages)
		n := min(1+k.rng.Int64N(4), workerPages-page) // pages in one write
		p := make([]byte, n*pageSize)
		for i := range n {
			k.next++
			stamp(p[i*pageSize:(i+1)*pageSize], k.base+page+i, k.next)
			k.last[page+i] = k.next
		}
		if err := k.c.Write(ctx, p, (k.base+page)*pageSize); err != nil {
			return err
		}
	}
	if k.rng.IntN(2) == 0 {
		page := k.rng.Int64N(workerPages)
		p := make([]byte, pageSize)
		if err := k.c.Read(ctx, p, (k.base+page)*pageSize); err != nil {
			return err
		}
		if got, err := version(p, k.base+page); err != nil || got != k.last[page] {
			return fmt.Errorf("read page %d: version %d, %v; want %d", k.base+page, got, err, k.last[page])
		}
	}
	if k.rng.IntN(3) > 0 {
		if err := k.c.Flush(ctx); err != nil {
			return err
		}
		k.safe = k.last
	}
	return k.check()
}

// check compares the store with what flushes covered.
func (k *worker) check() error {
	for i := range int64(workerPages) {
		if k.s.partial() && k.last[i] != k.safe[i] {
			continue
		}
		got, err := version(k.s.Durable((k.base+i)*pageSize, pageSize), k.base+i)
		if err != nil || got < k.safe[i] || got > k.last[i] {
			return fmt.Errorf("page %d: durable is version %d, %v; flushed was %d, written %d", k.base+i, got, err, k.safe[i], k.last[i])
		}
	}
	return nil
}

// stamp makes p version v of a page.
func stamp(p []byte, page int64, v uint64) {
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], v<<20^uint64(page)<<9^uint64(i/8))
	}
}

// version returns the version of a page, or how it is none.
func version(p []byte, page int64) (uint64, error) {
	v := binary.LittleEndian.Uint64(p)
	if v != 0 {
		v = (v ^ uint64(page)<<9) >> 20
	}
	for i := 0; i < len(p); i += 8 {
		got, want := binary.LittleEndian.Uint64(p[i:]), v<<20^uint64(page)<<9^uint64(i/8)
		if v == 0 {
			want = 0
		}
		if got != want {
			return v, fmt.Errorf("torn at byte %d", i)
		}
	}
	return v, nil
}
