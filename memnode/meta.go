package memnode

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

// A metaStore keeps the pool's directory in transactions: boltMeta, or a fake
// that loses power. update commits what fn did durably when it returns nil, or
// nothing; errUnchanged from fn makes it nothing without an error.
type metaStore interface {
	view(fn func(txn) error) error
	update(fn func(txn) error) error
	close() error
}

// A pagedStore is a metaStore that can check what its values are stored in. No
// transaction may commit meanwhile.
type pagedStore interface {
	checkPages(say func(format string, args ...any)) error
}

// errUnchanged ends a transaction that found nothing to change.
var errUnchanged = errors.New("memnode: unchanged")

// metaMmapBytes is how much address space meta.db gets to begin with. When it
// grows beyond its mapping, writers wait for readers.
const metaMmapBytes = 64 << 20

// metaLockTimeout bounds the wait for a process that has meta.db open past the
// pool's own lock, such as the bbolt tool.
const metaLockTimeout = time.Second

// boltMeta is meta.db: a B+ tree of which a transaction is atomic and durable
// once committed.
//
// bbolt panics over damaged pages, and reads them through a mapping. Both come
// out as errors here and poison the store, as does a commit that failed in a way
// that leaves open whether it is durable.
type boltMeta struct {
	db   *bolt.DB // immutable
	file *os.File // immutable; of db

	mu    sync.Mutex
	err   error // set once; matches ErrPoisoned
	stuck bool  // a panic left the database's own locks held
}

// openMeta opens the file at path, creating it unless readOnly.
func openMeta(path string, readOnly, noSync bool) (m *boltMeta, err error) {
	var file *os.File
	openFile := func(path string, flags int, mode os.FileMode) (*os.File, error) {
		f, err := os.OpenFile(path, flags, mode)
		if err != nil {
			return nil, err
		}
		st, err := f.Stat()
		if err == nil && st.Size() > 0 {
			err = checkMetaFile(f, st.Size())
		}
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		file = f
		return f, nil
	}
	defer func(old bool) {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			_ = file.Close() // and with it bbolt's lock
			m, err = nil, &CorruptError{File: "meta.db", Name: "database", What: fmt.Sprint(r)}
		}
	}(debug.SetPanicOnFault(true))
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		Timeout:         metaLockTimeout,
		ReadOnly:        readOnly,
		FreelistType:    bolt.FreelistMapType,
		InitialMmapSize: metaMmapBytes,
		NoSync:          noSync,
		NoGrowSync:      noSync,
		NoStatistics:    true,
		PageSize:        boltPageSize,
		OpenFile:        openFile,
	})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, fmt.Errorf("%s: %w: some program has it open", path, ErrLocked)
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return nil, &CorruptError{File: "meta.db", Name: "database", What: err.Error()}
	case err != nil:
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &boltMeta{db: db, file: file}, nil
}

func (m *boltMeta) view(fn func(txn) error) (err error) {
	if err := m.poisoned(); err != nil {
		return err
	}
	var tx *bolt.Tx
	defer func(old bool) {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			err = m.panicked(tx, r)
		}
	}(debug.SetPanicOnFault(true))
	if tx, err = m.begin(false); err != nil {
		return err
	}
	err = fn(txn{tx: tx, share: namespace.Root})
	_ = tx.Rollback() // ends a reader; nothing is undone
	return err
}

func (m *boltMeta) update(fn func(txn) error) (err error) {
	if err := m.poisoned(); err != nil {
		return err
	}
	var tx *bolt.Tx
	defer func(old bool) {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			err = m.panicked(tx, r)
		}
	}(debug.SetPanicOnFault(true))
	if tx, err = m.begin(true); err != nil {
		return err
	}
	if err := fn(txn{tx: tx, share: namespace.Root}); err != nil {
		_ = tx.Rollback() // only memory is undone, which does not fail
		if errors.Is(err, errUnchanged) {
			return nil
		}
		return err
	}
	number := tx.ID()
	if err := tx.Commit(); err != nil {
		return m.failed(number, err)
	}
	return nil
}

// checkPages reports damage of the pages of the file.
func (m *boltMeta) checkPages(say func(format string, args ...any)) error {
	st, err := m.file.Stat()
	if err != nil {
		return err
	}
	checkMetaPages(m.file, st.Size(), say)
	return nil
}

func (m *boltMeta) begin(writable bool) (*bolt.Tx, error) {
	// The transaction before may have been the one that failed.
	tx, err := m.db.Begin(writable)
	if errors.Is(err, berrors.ErrDatabaseNotOpen) {
		return nil, ErrClosed
	}
	if err != nil {
		return nil, fmt.Errorf("meta.db: %w", err)
	}
	if err := m.poisoned(); err != nil {
		_ = tx.Rollback() // nothing was done
		return nil, err
	}
	return tx, nil
}

// failed makes an error of that of committing transaction number. A full file
// system is no more than that while the transaction before is the newest: its
// root is written last, and only after all else was synced.
func (m *boltMeta) failed(number int, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		if tx, berr := m.db.Begin(false); berr == nil {
			newest := tx.ID()
			_ = tx.Rollback() // ends a reader
			if newest < number {
				return fmt.Errorf("%w: meta.db: %w", region.ErrNoSpace, err)
			}
		}
	}
	return m.poison(fmt.Errorf("meta.db: commit: %w", err))
}

// panicked ends a transaction out of which r came.
func (m *boltMeta) panicked(tx *bolt.Tx, r any) error {
	ended := false
	func() {
		defer func() { _ = recover() }() // the first panic is the one to report
		if tx != nil {
			_ = tx.Rollback() // r is the error
			ended = true
		}
	}()
	m.mu.Lock()
	m.stuck = m.stuck || !ended
	m.mu.Unlock()
	return m.poison(&CorruptError{File: "meta.db", Name: "database", What: fmt.Sprint(r)})
}

func (m *boltMeta) poison(err error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		m.err = fmt.Errorf("%w: %w", ErrPoisoned, err)
	}
	return m.err
}

func (m *boltMeta) poisoned() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// close waits for transactions under way. After a panic that left locks behind
// it gives the file up to the end of the process rather than wait for ever.
func (m *boltMeta) close() error {
	m.mu.Lock()
	stuck := m.stuck
	m.mu.Unlock()
	if stuck {
		return nil
	}
	return m.db.Close()
}
