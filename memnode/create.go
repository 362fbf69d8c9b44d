package memnode

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/internal/media"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

// CreateOptions says what pool Create makes.
type CreateOptions struct {
	// SizeBytes is the size of the data, rounded down to whole slots. 0 is all
	// of Device or Media, or half of what the file system of the pool has free.
	// A data file is sparse: it takes space as slots are written.
	SizeBytes int64
	// Device is a device-dax device, or a file, that holds the data instead of
	// a new file; the pool gets a link to it. What it contained is lost.
	Device string
	// Media gets the pool's header instead of a data file. Create does not
	// close it.
	Media media.Media
	Now   func() time.Time // nil: time.Now

	noSync bool // tests: the pool survives the process only
}

// maxDefaultSize bounds the size that nobody asked for: some file systems have
// no larger files.
const maxDefaultSize = 8 << 40

// Create makes a pool in dir, which it makes too if need be. A crash on the way
// leaves no pool, and Create can be called again.
//
// Errors match ErrPoolExist, ErrLocked or ErrSize where one of them is the
// reason.
func Create(dir string, opts CreateOptions) error {
	if err := createDir(dir, opts); err != nil {
		return fmt.Errorf("create pool %s: %w", dir, err)
	}
	return nil
}

// OpenOrCreate opens the pool in dir for writing, after it made one if there was
// none.
func OpenOrCreate(dir string, create CreateOptions, opts Options) (p *Pool, created bool, err error) {
	err = Create(dir, create)
	switch {
	case err == nil:
		created = true
	case !errors.Is(err, ErrPoolExist), findPool(dir) != nil:
		return nil, false, err // a pool that is on the device only is another one
	}
	p, err = Open(dir, opts)
	return p, created, err
}

func createDir(dir string, opts CreateOptions) error {
	if _, err := os.Stat(filepath.Join(dir, metaFile)); err == nil {
		return ErrPoolExist // also when it is in use
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	lock, _, err := lockPool(filepath.Join(dir, lockFile), false)
	if err != nil {
		return err
	}
	defer lock.Close() // holds nothing but the lock
	if err := clearLeftovers(dir); err != nil {
		return err
	}
	h := header{created: time.Now().UnixNano()}
	if opts.Now != nil {
		h.created = opts.Now().UnixNano()
	}
	if _, err := rand.Read(h.pool[:]); err != nil {
		return err
	}
	if h.slots, err = chooseSlots(dir, opts); err != nil {
		return err
	}
	// The new directory first: where it is found, data is of no use yet.
	if err := createMeta(filepath.Join(dir, newMetaFile), h, opts.noSync); err != nil {
		return err
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	if err := createData(dir, h, opts); err != nil {
		return err
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	// From here on there is a pool.
	if err := os.Rename(filepath.Join(dir, newMetaFile), filepath.Join(dir, metaFile)); err != nil {
		return err
	}
	return errors.Join(syncDir(dir), syncDir(filepath.Dir(filepath.Clean(dir))))
}

// clearLeftovers removes what an interrupted creation left. The lock is held.
func clearLeftovers(dir string) error {
	data, meta := filepath.Join(dir, dataFile), filepath.Join(dir, newMetaFile)
	if _, err := os.Lstat(filepath.Join(dir, metaFile)); err == nil {
		return ErrPoolExist
	}
	if _, err := os.Lstat(meta); errors.Is(err, os.ErrNotExist) {
		if _, err := os.Lstat(data); err == nil {
			return fmt.Errorf("there is %s, but no meta.db: restore meta.db, or remove %s to lose what it holds", data, data)
		}
		return nil
	} else if err != nil {
		return err
	}
	if err := os.Remove(data); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Remove(meta)
}

// chooseSlots returns the number of slots of the new pool.
func chooseSlots(dir string, opts CreateOptions) (uint64, error) {
	size := opts.SizeBytes
	if size == 0 && opts.Media != nil {
		size = opts.Media.Size()
	}
	if size == 0 && opts.Device != "" {
		m, err := media.Open(opts.Device, media.Options{ReadOnly: true})
		if err != nil {
			return 0, err
		}
		size = m.Size()
		_ = m.Close() // read only
	}
	if size == 0 {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
		}
		size = int64(min(st.Bavail, maxDefaultSize/uint64(st.Bsize))) * st.Bsize / 2
		size &^= 1<<20 - 1
	}
	if size < 0 || !validSlots(uint64(size)/region.PageSize) {
		return 0, fmt.Errorf("%w: %d bytes, want %d to %d", ErrSize, size, minSlots*region.PageSize, int64(region.MaxSlot)*region.PageSize)
	}
	return uint64(size) / region.PageSize, nil
}

// createMeta makes the directory of an empty pool.
func createMeta(path string, h header, noSync bool) error {
	m, err := openMeta(path, false, noSync)
	if err != nil {
		return err
	}
	err = m.update(func(t txn) error { return populate(t, h) })
	return errors.Join(err, m.close())
}

// populate fills an empty meta.db. The root belongs to whoever made the pool.
func populate(t txn, h header) error {
	for _, name := range slices.Concat(buckets, lateBuckets) {
		if _, err := t.tx.CreateBucket([]byte(name)); err != nil {
			return err
		}
	}
	rec := poolRecord(h)
	if err := t.put(bucketPool, []byte("pool"), rec.encode()); err != nil {
		return err
	}
	if err := t.putState(stateRecord{nextIno: namespace.Root + 1, inodes: 1}); err != nil {
		return err
	}
	return t.putInode(&namespace.Inode{
		Ino:    namespace.Root,
		Mode:   unix.S_IFDIR | 0o755,
		UID:    uint32(os.Geteuid()),
		GID:    uint32(os.Getegid()),
		Nlink:  2,
		Parent: namespace.Root,
		Atime:  h.created,
		Mtime:  h.created,
		Ctime:  h.created,
	})
}

// createData makes the data and writes its header durably.
func createData(dir string, h header, opts CreateOptions) error {
	if opts.Media != nil {
		return writeHeader(opts.Media, h)
	}
	path := filepath.Join(dir, dataFile)
	if opts.Device != "" {
		target, err := filepath.Abs(opts.Device)
		if err != nil {
			return err
		}
		if err := os.Symlink(target, path); err != nil {
			return err
		}
	} else if err := createDataFile(path, int64(h.slots)*region.PageSize); err != nil {
		return err
	}
	m, err := media.Open(path, media.Options{})
	if err != nil {
		return err
	}
	return errors.Join(writeHeader(m, h), m.Close())
}

// createDataFile makes a sparse file whose size is durable: a flush through a
// mapping would not make it so.
func createDataFile(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Sync(), f.Close())
}

// writeHeader writes slot 0. It refuses a medium that holds a pool already, which
// only a device can.
func writeHeader(m media.Media, h header) error {
	b := make([]byte, region.PageSize)
	if err := m.ReadAt(b, 0); err != nil {
		return err
	}
	var old header
	if err := old.decode(b); err == nil || errors.Is(err, ErrVersion) {
		return fmt.Errorf("%w on the device (%v): clear its first %d bytes to lose it", ErrPoolExist, old.pool, region.PageSize)
	}
	clear(b)
	copy(b, h.encode())
	if err := m.WriteAt(b, 0); err != nil {
		return err
	}
	return m.Flush()
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
