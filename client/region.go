package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/attach/ring"
	"github.com/rpmemfs/rpmemfs/attach/wire"
	"github.com/rpmemfs/rpmemfs/epoch"
)

// Options of Open. The zero value is good for most programs.
type Options struct {
	// Reserve is the address space in bytes that the file may grow into; 0 is
	// 64 GiB, or the file's size if that is more. It costs no memory.
	Reserve int64
	// Frames is the number of pages that wait for the daemon at most, a power of
	// two from 64 to 65536; 0 is 16384. It costs 4 KiB of memory each.
	Frames uint32
}

const defaultReserve = 64 << 30

// A Region is an attached file. Its methods are safe for concurrent use; who
// stores to Bytes is a Participant.
type Region struct {
	file    *os.File
	mem     []byte // all that is reserved; what is past the file's end is not there
	ring    *ring.Producer
	session session
	threads threads
	helper  helper
	stop    func()        // makes the helper give up what it waits for
	ended   chan struct{} // closed when the helper has returned
	size    atomic.Int64  // of the file, as last seen

	// Epochs are counted here: the daemon uses the number of an epoch again in which
	// nothing was stored, or that was lost.
	mu         sync.Mutex // guards the fields below
	open       epoch.ID
	committed  epoch.ID
	rolledBack []span // ascending
	requests   map[uint64]*request
	lastID     uint64
	news       chan struct{} // closed and replaced when one of the above changed
	err        error         // why the region is of no more use
}

// A span is epochs from first to last.
type span struct{ first, last epoch.ID }

// A request is a Checkpoint that waits for its Result.
type request struct {
	result    *wire.Result // nil: the region ended
	committed epoch.ID
	done      chan struct{}
}

// Open opens and maps a file of a mount and attaches the process to it. It waits
// while a barrier of the file is under way, at most a minute. Close releases what
// it holds.
//
// An error that matches ErrNotAttachable says that the file is on no mount that
// serves this.
func Open(path string, opts Options) (*Region, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	place, err := findDaemon(file)
	if err == nil {
		var r *Region
		if r, err = attach(file, place, opts); err == nil {
			return r, nil
		}
	}
	_ = file.Close() // the first error counts
	return nil, fmt.Errorf("attach %s: %w", path, err)
}

// A place is where a file's daemon listens, and what it calls the file.
type place struct {
	socket string
	ino    uint64
}

func findDaemon(file *os.File) (place, error) {
	socket, err := xattr(file, "user.rpmemfs.attach")
	if err != nil {
		return place{}, fmt.Errorf("%w: %w", ErrNotAttachable, err)
	}
	text, err := xattr(file, "user.rpmemfs.ino")
	if err != nil {
		return place{}, fmt.Errorf("%w: %w", ErrNotAttachable, err)
	}
	ino, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return place{}, fmt.Errorf("user.rpmemfs.ino: %w", err)
	}
	return place{socket, ino}, nil
}

func xattr(file *os.File, name string) (string, error) {
	buf := make([]byte, 256)
	n, err := unix.Fgetxattr(int(file.Fd()), name, buf)
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return string(buf[:n]), nil
}

// attach takes the file over if it succeeds.
func attach(file *os.File, at place, opts Options) (_ *Region, err error) {
	r := &Region{
		file: file, ended: make(chan struct{}),
		requests: make(map[uint64]*request), news: make(chan struct{}),
	}
	defer func() {
		if err != nil {
			r.free()
		}
	}()
	size := r.Size()
	if opts.Reserve == 0 {
		opts.Reserve = max(defaultReserve, size)
	}
	if opts.Frames == 0 {
		opts.Frames = ring.DefaultFrames
	}
	if opts.Reserve < size {
		return nil, fmt.Errorf("reserve %d bytes for a file of %d: %w", opts.Reserve, size, unix.EINVAL)
	}
	opts.Reserve = roundUp(opts.Reserve)
	if r.mem, err = mapFile(file, opts.Reserve, at.ino); err != nil {
		return nil, err
	}
	if r.ring, err = ring.Create(opts.Frames, r.session.kick); err != nil {
		return nil, err
	}
	flags := wire.RestartPoints
	track, terr := newTracker(r.mem, r.Size)
	if terr == nil {
		flags |= wire.Tracks
	}
	// Without tracking the daemon has the kernel write all dirty pages at a barrier.
	r.helper = helper{r: r, track: track}
	welcome, err := r.session.dial(at, flags, r.ring)
	if err != nil {
		return nil, err
	}
	r.committed, r.open = epoch.ID(welcome.Epoch), epoch.ID(welcome.Epoch)+1
	r.threads.init(welcome.N)
	r.helper.tag = welcome.N
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	go func() {
		defer close(r.ended)
		r.helper.run(ctx)
	}()
	return r, nil
}

// free releases everything but the file.
func (r *Region) free() {
	r.session.close()
	if r.helper.track != nil {
		r.helper.track.close()
	}
	if r.ring != nil {
		_ = r.ring.Close() // nothing is lost: the daemon has its own mapping
	}
	if r.mem != nil {
		_ = unmap(r.mem) // the arguments are those of the mapping
	}
}

// Close detaches and unmaps; Bytes is invalid then. It commits nothing: what was
// stored since the last epoch stays in the file, open, and what the mount does at
// the last close decides (README, "What happens at close"). All participants have
// to have left. Waiting calls return ErrClosed.
func (r *Region) Close() error {
	r.mu.Lock()
	closed := errors.Is(r.err, ErrClosed)
	r.mu.Unlock()
	if closed {
		return nil
	}
	_ = r.session.send(&wire.Detach{}) // a daemon that is gone need not know
	r.fail(ErrClosed)
	<-r.ended
	r.free()
	return r.file.Close()
}

// fail ends the region with a first error, and lets everybody go.
func (r *Region) fail(err error) {
	r.mu.Lock()
	if r.err == nil || errors.Is(err, ErrClosed) {
		r.err = err
	}
	for id, q := range r.requests {
		close(q.done)
		delete(r.requests, id)
	}
	r.tell()
	r.mu.Unlock()
	r.threads.end()
	r.stop()
	r.session.shut()
}

// tell wakes whoever waits for news. The caller holds mu.
func (r *Region) tell() {
	close(r.news)
	r.news = make(chan struct{})
}

// Bytes returns the region's memory, as long as the file is now. It is valid until
// Close; after growing, by whichever process, another call returns more.
func (r *Region) Bytes() []byte { return r.mem[:min(r.Size(), int64(len(r.mem)))] }

// Size returns the file's size in bytes.
func (r *Region) Size() int64 {
	var st unix.Stat_t
	if err := unix.Fstat(int(r.file.Fd()), &st); err == nil {
		r.size.Store(st.Size)
	}
	return r.size.Load()
}

// Grow makes the file at least size bytes long. The new bytes are zero, and durable
// with the next epoch. It returns an error that matches unix.ENOMEM if size is
// more than was reserved.
func (r *Region) Grow(size int64) error {
	if size > int64(len(r.mem)) {
		return fmt.Errorf("grow to %d bytes: %d are reserved: %w", size, len(r.mem), unix.ENOMEM)
	}
	if size <= r.Size() {
		return nil
	}
	if t := r.helper.track; t != nil {
		if err := t.reach(size); err != nil {
			return fmt.Errorf("grow to %d bytes: %w", size, err)
		}
	}
	// Not ftruncate: another process may grow it further at this moment.
	if err := unix.Fallocate(int(r.file.Fd()), 0, size-1, 1); err != nil {
		return fmt.Errorf("grow to %d bytes: %w", size, err)
	}
	return nil
}

// Checkpoint makes everything stored before the call durable and returns the epoch
// that it committed. All participants, of all processes, have to reach a restart
// point meanwhile: a participant calls Participant.Checkpoint instead. They may take
// three quarters of the time until ctx's deadline, or, without one, as long as the
// daemon decides.
//
// An error that matches ErrCalledOff says that the epoch is still open; a LateError
// names who was late.
func (r *Region) Checkpoint(ctx context.Context) (epoch.ID, error) {
	q := &request{done: make(chan struct{})}
	var patience time.Duration
	if deadline, ok := ctx.Deadline(); ok {
		if patience = time.Until(deadline); patience <= 0 {
			return 0, context.DeadlineExceeded
		}
	}
	r.mu.Lock()
	if err := r.err; err != nil {
		r.mu.Unlock()
		return 0, err
	}
	r.lastID++
	id := r.lastID
	r.requests[id] = q
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.requests, id)
		r.mu.Unlock()
	}()
	// The answer, and the commit before it, take their time too.
	if err := r.session.send(&wire.Request{ID: id, Timeout: uint64(patience - patience/4)}); err != nil {
		return 0, r.gone(err)
	}
	select {
	case <-q.done:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if q.result == nil {
		return 0, r.Err()
	}
	return q.committed, resultError(q.result)
}

func resultError(m *wire.Result) error {
	switch {
	case m.Errno == 0:
		return nil
	case m.Errno == unix.EOWNERDEAD:
		return ErrLost
	case m.Errno == unix.ETIMEDOUT && m.LateTID != 0:
		return &LateError{m.LateTID}
	case m.Errno == unix.EIO:
		return fmt.Errorf("%w: checkpoint: %w", ErrGone, m.Errno)
	}
	return fmt.Errorf("%w: %w", ErrCalledOff, m.Errno)
}

// WaitDurable returns when epoch id is committed: with nil, or with ErrLost if it
// was rolled back. It asks for no barrier.
func (r *Region) WaitDurable(ctx context.Context, id epoch.ID) error {
	for {
		r.mu.Lock()
		committed, err, news := r.committed, r.err, r.news
		lost := slices.ContainsFunc(r.rolledBack, func(s span) bool { return s.first <= id && id <= s.last })
		r.mu.Unlock()
		switch {
		case lost:
			return ErrLost
		case committed >= id:
			return nil
		case err != nil:
			return err
		}
		select {
		case <-news:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Committed returns the last committed epoch.
func (r *Region) Committed() epoch.ID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.committed
}

// Epoch returns the number of the open epoch. For a participant it changes only in
// RestartPoint, Prevent and Checkpoint: what it stores now commits as this epoch,
// or, if that is rolled back, never.
//
// A Region counts its epochs from the file's last committed one at Open, and one
// for each barrier and each rollback. The numbers that rpmemctl shows leave out
// epochs in which nothing was stored.
func (r *Region) Epoch() epoch.ID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.open
}

// Err returns why the region is of no more use, or nil.
func (r *Region) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// gone wraps the cause of the region's end, or returns the end's own error.
func (r *Region) gone(cause error) error {
	if err := r.Err(); err != nil {
		return err
	}
	return fmt.Errorf("%w: %w", ErrGone, cause)
}
