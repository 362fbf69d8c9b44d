package attach

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/attach/ring"
	"github.com/rpmemfs/rpmemfs/attach/wire"
	"github.com/rpmemfs/rpmemfs/epoch"
)

// nullRegion takes everything and keeps nothing.
type nullRegion struct{}

func (nullRegion) Attach(context.Context, uint64, uint32, uint32) (Region, error) {
	return nullRegion{}, nil
}

func (nullRegion) Barrier(ctx context.Context, quiesce func(context.Context, func() ([]uint64, epoch.ID, error)) error) (epoch.ID, error) {
	return 1, quiesce(ctx, func() ([]uint64, epoch.ID, error) { return nil, 1, nil })
}

func (nullRegion) Capture(context.Context, bool, uint64, int64, []byte) error { return nil }
func (nullRegion) Untracked([]int) bool                                       { return false }
func (nullRegion) Condemn()                                                   {}
func (nullRegion) Rollback(context.Context) error                             { return nil }
func (nullRegion) Committed() epoch.ID                                        { return 0 }
func (nullRegion) Size() int64                                                { return 1 << 30 }
func (nullRegion) Err() error                                                 { return nil }
func (nullRegion) Close()                                                     {}

// BenchmarkBarrier is a barrier of one member that says READY and DONE at once, with
// so many pages in its ring. What the daemon adds to the pause is ready-go (from
// READY sent to GO read) and done-release.
func BenchmarkBarrier(b *testing.B) {
	for _, c := range []struct {
		name  string
		pages int
	}{{"empty", 0}, {"1000pages", 1000}} {
		b.Run(c.name, func(b *testing.B) { benchmarkBarrier(b, make([]uint64, c.pages)) })
	}
}

func benchmarkBarrier(b *testing.B, pages []uint64) {
	path := filepath.Join(b.TempDir(), "s")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		b.Fatal(err)
	}
	s := NewServer(Config{Regions: nullRegion{}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	defer func() { cancel(); <-done }()

	// A blocking socket, as a member in C has.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		b.Fatal(err)
	}
	send := func(m wire.Message, oob []byte) {
		msg, err := wire.Append(nil, m)
		if err != nil {
			b.Fatal(err)
		}
		if err := unix.Sendmsg(fd, msg, oob, nil, 0); err != nil {
			b.Fatal(err)
		}
	}
	buf := make([]byte, wire.MaxMessage)
	read := func() wire.Message {
		n, err := unix.Read(fd, buf)
		if err != nil {
			b.Fatal(err)
		}
		m, err := wire.Decode(buf[:n])
		if err != nil {
			b.Fatal(err)
		}
		return m
	}
	p, err := ring.Create(ring.DefaultFrames, func() { send(&wire.Kick{}, nil) })
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	mem := make([]byte, ring.PageSize)
	send(&wire.Hello{Ino: 1, Flags: parks, Frames: p.Frames(), Name: "bench"}, unix.UnixRights(int(p.File().Fd())))
	read()

	var readyGo, doneRelease, taken time.Duration
	for b.Loop() {
		send(&wire.Request{ID: 1}, nil)
		n := read().(*wire.Due).N
		time.Sleep(100 * time.Microsecond) // the daemon sleeps again, as behind a program
		start := time.Now()
		send(&wire.Ready{N: n}, nil)
		read()
		readyGo += time.Since(start)
		if err := p.Put(ctx, mem, pages, n-1); err != nil {
			b.Fatal(err)
		}
		start = time.Now()
		send(&wire.Done{N: n, Upto: p.Head()}, nil)
		read()
		doneRelease += time.Since(start)
		for {
			if _, ok := read().(*wire.Result); ok {
				break
			}
		}
		taken += time.Since(start)
	}
	b.ReportMetric(float64(readyGo.Microseconds())/float64(b.N), "us-ready-go")
	b.ReportMetric(float64(doneRelease.Microseconds())/float64(b.N), "us-done-release")
	b.ReportMetric(float64(taken.Microseconds())/float64(b.N), "us-done-result")
}
