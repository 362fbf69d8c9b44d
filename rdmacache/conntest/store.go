package conntest

import (
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/rpmemfs/rpmemfs/rdmacache"
)

// ErrRange is what a Store returns for an access outside it.
var ErrRange = errors.New("conntest: outside the store")

const pageSize = rdmacache.PageSize

// Hooks are called before the operations of a Store, without locks; nil ones are not.
// An error that one returns is the operation's, which then does nothing.
type Hooks struct {
	Write, Read func(p []byte, off int64) error
	Flush       func() error
}

// A Store is a memory node's bytes, in memory, with what a power loss would leave of
// them. It is safe for concurrent use.
type Store struct {
	medium rdmacache.Medium // immutable
	done   chan struct{}
	end    sync.Once

	mu      sync.Mutex
	hooks   Hooks
	visible []byte
	durable []byte
	dirty   map[int64]struct{} // pages of visible that may differ from durable
	writes  int
	flushes int
}

var _ rdmacache.Handler = (*Store)(nil)

// NewStore returns a Store of size bytes, all zero. Medium m decides how a transport
// treats it: kind "file" may take long.
func NewStore(size int64, m rdmacache.Medium) *Store {
	return &Store{
		medium: m, done: make(chan struct{}), visible: make([]byte, size), durable: make([]byte, size),
		dirty: make(map[int64]struct{}),
	}
}

// Medium is what NewStore was told.
func (s *Store) Medium() rdmacache.Medium { return s.medium }

// Inject replaces the hooks.
func (s *Store) Inject(h Hooks) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hooks = h
}

func (s *Store) hooked() Hooks {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hooks
}

// Done is closed by End.
func (s *Store) Done() <-chan struct{} { return s.done }

// End ends the session: every later access is rdmacache.ErrFenced.
func (s *Store) End() { s.end.Do(func() { close(s.done) }) }

func (s *Store) check(op string, n int, off int64) error {
	select {
	case <-s.done:
		return rdmacache.ErrFenced
	default:
	}
	if off < 0 || off > math.MaxInt64-int64(n) || off+int64(n) > int64(len(s.visible)) {
		return fmt.Errorf("%s %d bytes at %d: %w", op, n, off, ErrRange)
	}
	return nil
}

// ReadAt fills p from off.
func (s *Store) ReadAt(p []byte, off int64) error {
	if f := s.hooked().Read; f != nil {
		if err := f(p, off); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check("read", len(p), off); err != nil {
		return err
	}
	copy(p, s.visible[off:])
	return nil
}

// WriteAt stores p at off.
func (s *Store) WriteAt(p []byte, off int64) error {
	if f := s.hooked().Write; f != nil {
		if err := f(p, off); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check("write", len(p), off); err != nil {
		return err
	}
	copy(s.visible[off:], p)
	for page := off / pageSize; page*pageSize < off+int64(len(p)); page++ {
		s.dirty[page] = struct{}{}
	}
	s.writes++
	return nil
}

// Flush makes the writes before it durable.
func (s *Store) Flush() error {
	if f := s.hooked().Flush; f != nil {
		if err := f(); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check("flush", 0, 0); err != nil {
		return err
	}
	s.flushes++
	for page := range s.dirty {
		at, end := page*pageSize, min((page+1)*pageSize, int64(len(s.visible)))
		copy(s.durable[at:end], s.visible[at:end])
	}
	clear(s.dirty)
	return nil
}

// LosePower forgets what was not flushed.
func (s *Store) LosePower() {
	s.mu.Lock()
	defer s.mu.Unlock()
	copy(s.visible, s.durable)
	clear(s.dirty)
}

// Durable returns a copy of n bytes from off as a power loss would leave them.
func (s *Store) Durable(off int64, n int) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]byte(nil), s.durable[off:off+int64(n)]...)
}

// Counts returns how many writes and flushes were done.
func (s *Store) Counts() (writes, flushes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writes, s.flushes
}
