// Command commit makes epochs over RDMA as a mount does, without a file system around
// them: what it takes beyond hand-written RDMA (../c/flush.c) is what rpmemfs takes.
//
//	commit ADDRESS SHARE PKI EPOCHS
//
// It opens a share of the memory node with the control API at ADDRESS, and writes epochs of
// a page with its record, near it as in a small file and apart as in a large one, and of
// 1 MiB in pages and in one piece. Each is flushed before the next begins. It prints
// nanoseconds per epoch, the median, and what was counted.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/internal/pki"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/remote"
)

const (
	area       = 4 << 20 // bytes of pages, as much as flush.c has
	pushed     = 1 << 20 // bytes of a large epoch
	recordSize = 128     // of an epoch of one page
	patience   = 4 * time.Minute
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 5 {
		log.Fatal("usage: commit ADDRESS SHARE PKI EPOCHS")
	}
	epochs, err := strconv.Atoi(os.Args[4])
	if err == nil && epochs < 1 {
		err = errors.New("no epochs")
	}
	if err == nil {
		err = run(os.Args[1], os.Args[2], os.Args[3], epochs)
	}
	if err != nil {
		log.Fatal("commit: ", err)
	}
}

func run(address, share, certificates string, epochs int) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	pool, err := open(ctx, address, share, certificates)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()
	b := bench{pool: pool, conn: pool.Conn()}
	if err := b.grant(ctx); err != nil {
		return err
	}
	for _, e := range []struct {
		name  string
		slots int64
	}{{"page, small file", 8}, {"page, large file", area / region.PageSize}} {
		err := b.measure(ctx, e.name, epochs, func(ctx context.Context, i int) error { return b.page(ctx, i, e.slots) })
		if err != nil {
			return err
		}
	}
	for _, piece := range []int{region.PageSize, pushed} {
		err := b.measure(ctx, fmt.Sprintf("1 MiB, %d at a time", piece), max(epochs/20, 1), func(ctx context.Context, i int) error {
			return b.push(ctx, i, piece)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// open takes the lease of a share, for RDMA.
func open(ctx context.Context, address, share, certificates string) (*remote.Pool, error) {
	o := pki.Options{Pki: certificates}
	security, err := o.ClientConfig()
	if err != nil {
		return nil, err
	}
	if security.ServerName, _, err = net.SplitHostPort(address); err != nil {
		return nil, err
	}
	nic, err := verbs.Open()
	if err != nil {
		return nil, err
	}
	return remote.Dial(ctx, remote.Config{
		Address: address, TLS: security, Share: share, Create: true, Steal: true, NIC: nic, Holder: "commit",
	})
}

// A bench has a share, and room in it.
type bench struct {
	pool  *remote.Pool
	conn  rdmacache.Conn
	pages int64 // where area bytes for pages begin in the pool
	log   int64 // and a page for records
	buf   [pushed]byte
}

// grant gets the room, as that of a file.
func (b *bench) grant(ctx context.Context) error {
	file, err := b.pool.Create(ctx, namespace.Root, fmt.Sprint("file", os.Getpid()), namespace.Inode{Mode: unix.S_IFREG | 0o600})
	if err != nil {
		return err
	}
	const slots = area/region.PageSize + 1
	grant, err := b.pool.Grant(ctx, region.ID(file.Ino), slots, slots)
	if err != nil {
		return err
	}
	if len(grant.Runs) != 1 {
		return fmt.Errorf("granted %d slots in %d runs", slots, len(grant.Runs))
	}
	b.log = grant.Runs[0].Start.Offset()
	b.pages = b.log + region.PageSize
	return nil
}

// page makes an epoch of a page, in the next of so many slots behind the records. What is
// near is flushed as one.
func (b *bench) page(ctx context.Context, i int, slots int64) error {
	page := b.buf[:region.PageSize]
	b.fill(page, i)
	if err := b.conn.Write(ctx, page, b.pages+int64(i)%slots*region.PageSize); err != nil {
		return err
	}
	if err := b.conn.Write(ctx, page[:recordSize], b.log+int64(i)*recordSize%region.PageSize); err != nil {
		return err
	}
	return b.conn.Flush(ctx)
}

// push makes an epoch of 1 MiB.
func (b *bench) push(ctx context.Context, i, piece int) error {
	b.fill(b.buf[:], i)
	for at := 0; at < pushed; at += piece {
		if err := b.conn.Write(ctx, b.buf[at:at+piece], b.pages+int64(i)*pushed%area+int64(at)); err != nil {
			return err
		}
	}
	return b.conn.Flush(ctx)
}

// fill is memset.
func (b *bench) fill(p []byte, i int) {
	p[0] = byte(i + 1)
	for n := 1; n < len(p); n *= 2 {
		copy(p[n:], p[:n])
	}
}

// measure makes epochs, and one before them to make everything warm.
func (b *bench) measure(ctx context.Context, name string, epochs int, epoch func(ctx context.Context, i int) error) error {
	ctx = context.WithoutCancel(ctx) // as in a mount: half a commit is worse than a late one
	if err := epoch(ctx, 0); err != nil {
		return err
	}
	before, _ := b.pool.RDMA()
	times := make([]time.Duration, epochs)
	for i := range times {
		begin := time.Now()
		if err := epoch(ctx, i+1); err != nil {
			return err
		}
		times[i] = time.Since(begin)
	}
	slices.Sort(times)
	took := times[epochs/2]
	s, _ := b.pool.RDMA()
	n := float64(epochs)
	fmt.Printf("%s: %d ns per epoch; %.2f doorbells, %.2f WRITEs, %.2f FLUSHes, %.2f round trips, %.2f waits, %.2f polls\n",
		name, took.Nanoseconds(), float64(s.Posts-before.Posts)/n, float64(s.Writes-before.Writes)/n, float64(s.Flushes-before.Flushes)/n,
		float64(s.RoundTrips-before.RoundTrips)/n, float64(s.Waits-before.Waits)/n, float64(s.Polls-before.Polls)/n)
	return nil
}
