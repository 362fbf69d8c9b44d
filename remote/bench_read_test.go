package remote_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/remote"
	"github.com/rpmemfs/rpmemfs/volume"
)

// What a read of a file over the loopback costs: pages side by side and pages that lie
// apart in the pool, as they do in a file that was changed here and there; single pages at
// random; each with pages kept in local memory and without.
func BenchmarkRead(b *testing.B) {
	const pages = 4096
	n := newNode(b, 10*time.Second)
	writer := n.open(remote.Config{})
	file := mustCreate(b, writer, "f", fileInode())
	mounted := mountOver(b, writer)
	h, err := mounted.Open(ctx, file.Ino)
	if err != nil {
		b.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	page := make([]byte, region.PageSize)
	write := func(i int) {
		for j := range page {
			page[j] = byte(rng.Uint32())
		}
		if _, err := h.Write(ctx, page, int64(i)*region.PageSize, rdmacache.FromWrite); err != nil {
			b.Fatal(err)
		}
	}
	for i := range pages {
		write(i)
	}
	for _, i := range rng.Perm(pages / 2) { // the first half of the file lies apart
		write(i)
	}
	if err := h.Sync(ctx); err != nil {
		b.Fatal(err)
	}
	h.Release(ctx)
	mounted.stop()
	if err := writer.Close(); err != nil {
		b.Fatal(err)
	}
	for _, keep := range []int{-1, 0, 64 << 20} {
		p := n.open(remote.Config{})
		cfg := volume.Config{Pool: p, Conn: p.Conn()}
		name := "without"
		if keep >= 0 {
			cfg.Pages = rdmacache.NewPages(int64(keep))
			name = fmt.Sprintf("keeping %d MiB", keep>>20)
		}
		m := mountWith(b, p, cfg)
		h, err := m.Open(ctx, file.Ino)
		if err != nil {
			b.Fatal(err)
		}
		read := func(what string, n int, at func(i int) int) {
			b.Run(name+"/"+what, func(b *testing.B) {
				buf := make([]byte, n*region.PageSize)
				b.SetBytes(int64(len(buf)))
				for i := 0; b.Loop(); i++ {
					if _, err := h.Read(ctx, buf, int64(at(i))*region.PageSize); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
		read("128 KiB side by side", 32, func(i int) int { return pages/2 + i*32%(pages/2) })
		read("128 KiB apart", 32, func(i int) int { return i * 32 % (pages / 2) })
		read("a page at random", 1, func(int) int { return rng.IntN(pages) })
		h.Release(ctx)
		m.stop()
		if err := p.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// How long a commit of one page takes for one who has little to say, alone and beside one
// who writes as much as gets through.
func BenchmarkCommitBesideAWriter(b *testing.B) {
	n := newNode(b, 10*time.Second)
	open := func(share string) (*remote.Pool, *volume.Handle) {
		p := n.open(remote.Config{Share: share, Create: true})
		f := mustCreate(b, p, "f", fileInode())
		h, err := mountOver(b, p).Open(ctx, f.Ino)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { h.Release(ctx) })
		return p, h
	}
	_, light := open("light")
	_, heavy := open("heavy")
	commit := func(b *testing.B) {
		page := make([]byte, region.PageSize)
		var took []time.Duration
		for i := 0; b.Loop(); i++ {
			page[i%len(page)]++
			begun := time.Now()
			if _, err := light.Write(ctx, page, 0, rdmacache.FromWrite); err != nil {
				b.Fatal(err)
			}
			if err := light.Sync(ctx); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(begun))
			time.Sleep(time.Millisecond) // it has little to say
		}
		report(b, took)
	}
	b.Run("alone", commit)
	stop, ended := make(chan struct{}), make(chan int)
	go func() {
		written := 0
		defer func() { ended <- written }()
		block := make([]byte, 1<<20)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			for j := 0; j < len(block); j += region.PageSize {
				block[j], block[j+1], block[j+2] = byte(i), byte(i>>8), byte(i>>16)
			}
			if _, err := heavy.Write(ctx, block, int64(i%16)<<20, rdmacache.FromWrite); err != nil {
				b.Error(err)
				return
			}
			if i%8 == 7 {
				if err := heavy.Sync(ctx); err != nil {
					b.Error(err)
					return
				}
			}
			written += len(block)
		}
	}()
	begun := time.Now()
	b.Run("beside a heavy one", commit)
	close(stop)
	b.Logf("the heavy one wrote %.0f MB/s", float64(<-ended)/1e6/time.Since(begun).Seconds())
}

// report tells the median and the 99th percentile.
func report(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-median")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs-p99")
}
