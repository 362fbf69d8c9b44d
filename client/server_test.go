package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	daemonside "github.com/rpmemfs/rpmemfs/attach"
	"github.com/rpmemfs/rpmemfs/epoch"
)

// A tmpfsRegion is a region of attach.Server that commits to memory. Rolling back
// writes the committed image to the file, which is what mappings show then.
type tmpfsRegion struct {
	t    *testing.T
	file *os.File

	// A member detached: the kernel has its last stores. There is no kernel between
	// this region and the file, so the next seal looks at the file instead.
	detached atomic.Bool

	mu        sync.Mutex // guards the fields below
	committed epoch.ID
	durable   []byte // the committed image
	open      map[uint64]copied
	sealed    map[uint64]copied
	rollbacks int
}

// copied is the newest copy of a page.
type copied struct {
	when int64
	page []byte
}

func (r *tmpfsRegion) Barrier(ctx context.Context, quiesce func(context.Context, func() ([]uint64, epoch.ID, error)) error) (epoch.ID, error) {
	err := quiesce(ctx, func() ([]uint64, epoch.ID, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.detached.Swap(false) {
			if err := r.drain(); err != nil {
				return nil, 0, err
			}
		}
		r.sealed, r.open = r.open, make(map[uint64]copied)
		return nil, r.committed + 1, nil
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	sealed := r.sealed
	r.sealed = nil
	if err != nil {
		for no, c := range sealed { // called off: the epoch is open again
			if c.when > r.open[no].when || r.open[no].page == nil {
				r.open[no] = c
			}
		}
		return r.committed, err
	}
	for no, c := range sealed {
		copy(r.durable[no*pageSize:], c.page)
	}
	if len(sealed) > 0 {
		r.committed++
	}
	return r.committed, nil
}

// drain takes the file as it is. The caller holds mu, and all members are parked.
func (r *tmpfsRegion) drain() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return err
	}
	for no := range uint64(len(r.durable) / pageSize) {
		p := make([]byte, pageSize)
		if _, err := r.file.ReadAt(p, int64(no)*pageSize); err != nil {
			return err
		}
		r.open[no] = copied{now.Nano(), p} // what was copied before is older, at the barrier newer
	}
	return nil
}

func (r *tmpfsRegion) Capture(_ context.Context, sealed bool, page uint64, when int64, p []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	to := r.open
	if sealed {
		to = r.sealed
	}
	if when >= to[page].when {
		to[page] = copied{when, append([]byte(nil), p...)}
	}
	return nil
}

func (r *tmpfsRegion) Rollback(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.open)
	r.rollbacks++
	_, err := r.file.WriteAt(r.durable, 0)
	return err
}

func (r *tmpfsRegion) Committed() epoch.ID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.committed
}

func (r *tmpfsRegion) lost() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rollbacks
}

func (r *tmpfsRegion) Untracked([]int) bool { return false }
func (r *tmpfsRegion) Condemn()             {}
func (r *tmpfsRegion) Size() int64          { return int64(len(r.durable)) }
func (r *tmpfsRegion) Err() error           { return nil }
func (r *tmpfsRegion) Close()               {}

func (r *tmpfsRegion) Attach(context.Context, uint64, uint32, uint32) (daemonside.Region, error) {
	return r, nil
}

// served makes a file of so many pages and a server for it.
func served(t *testing.T, pages int) (*tmpfsRegion, place) {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "rpmemfs-client-")
	if err != nil {
		t.Skipf("no tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	file, err := os.OpenFile(filepath.Join(dir, "file"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	if err := file.Truncate(int64(pages) * pageSize); err != nil {
		t.Fatal(err)
	}
	at := place{filepath.Join(dir, "socket"), 7}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: at.socket, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	r := &tmpfsRegion{t: t, file: file, durable: make([]byte, pages*pageSize), open: make(map[uint64]copied)}
	log := slog.New(slog.NewTextHandler(testWriter{t}, nil))
	server := daemonside.NewServer(daemonside.Config{Regions: r, Log: log})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return r, at
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// join attaches once more.
func (r *tmpfsRegion) join(at place) *Region {
	r.t.Helper()
	file, err := os.OpenFile(r.file.Name(), os.O_RDWR, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	m, err := attach(file, at, Options{Reserve: 1 << 30, Frames: 128})
	if err != nil {
		r.t.Fatal(err)
	}
	return m
}

// With the real server: members come, move numbers between pages, commit, leave and
// die. Each committed image has all of each move; after a death memory has the
// committed image again, and every participant is told.
func TestServer(t *testing.T) {
	const pages, members, writers = 640, 3, 2
	region, at := served(t, pages)
	var over atomic.Bool
	var wg sync.WaitGroup
	var deaths atomic.Int32
	defer wg.Wait() // before the server ends
	defer over.Store(true)
	for i := range members {
		rng := rand.New(rand.NewPCG(*seed, uint64(i)))
		wg.Go(func() {
			for !over.Load() && !t.Failed() {
				dies := rng.IntN(3) == 0
				if dies {
					deaths.Add(1)
				}
				m := region.join(at)
				member(t, m, rng, writers, dies)
				region.detached.Store(true)
				_ = m.Close() // of one that died: the connection is closed already
				region.detached.Store(true)
			}
		})
	}
	observer := region.join(at)
	for limit := time.Now().Add(patience); region.Committed() < 60 || region.lost() < 5; {
		if time.Now().After(limit) {
			t.Fatalf("only %d epochs, %d rollbacks", region.Committed(), region.lost())
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		_, err := observer.Checkpoint(ctx)
		cancel()
		if err != nil && !errors.Is(err, ErrLost) && !errors.Is(err, ErrCalledOff) {
			t.Fatal(err)
		}
		region.mu.Lock()
		sum := int64(0)
		for no := range pages {
			sum += *(*int64)(unsafe.Pointer(&region.durable[no*pageSize]))
		}
		region.mu.Unlock()
		if sum != 0 {
			t.Fatalf("epoch %d: %d are missing", region.Committed(), sum)
		}
	}
	over.Store(true)
	wg.Wait()
	if err := observer.Close(); err != nil {
		t.Error(err)
	}
	t.Logf("%d epochs, %d deaths, %d rollbacks", region.Committed(), deaths.Load(), region.lost())
}

// member moves numbers for a while, and perhaps dies in the middle of it.
func member(t *testing.T, r *Region, rng *rand.Rand, writers int, dies bool) {
	mem := r.Bytes()
	until := time.Now().Add(time.Duration(5+rng.IntN(40)) * time.Millisecond)
	var wg sync.WaitGroup
	for i := range writers {
		rng := rand.New(rand.NewPCG(rng.Uint64(), 0))
		wg.Go(func() {
			p := r.Join(fmt.Sprint("writer ", i))
			defer p.Leave()
			for time.Now().Before(until) {
				from, to := rng.IntN(len(mem)/pageSize), rng.IntN(len(mem)/pageSize)
				atomic.AddInt64((*int64)(unsafe.Pointer(&mem[from*pageSize])), -1)
				if rng.IntN(100) == 0 {
					time.Sleep(20 * time.Microsecond)
				}
				atomic.AddInt64((*int64)(unsafe.Pointer(&mem[to*pageSize])), 1)
				if err := p.RestartPoint(); err != nil && !errors.Is(err, ErrLost) {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if dies {
		r.Join("victim")
		atomic.AddInt64((*int64)(unsafe.Pointer(&mem[0])), 1000) // half a move
		_ = r.session.conn.Close()
	}
}
