package tests

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

// A storeProgram writes numbered transactions into files of the mount and prints
// the number of each when it is committed.
type storeProgram struct {
	start func(m *mount) *child
	check func(m *mount) uint64 // verifies the store and returns its last transaction
}

// LMDB with and without MDB_WRITEMAP: kill and recover.
func TestLMDB(t *testing.T) {
	for _, mode := range []string{"plain", "writemap"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			need(t, "mdb_stat", "/usr/include/lmdb.h")
			exe := cProgram(t, "lmdb")
			m := newMount(t, fastDir(t))
			dir := m.path("env")
			m.run("mkdir", dir)
			killStore(t, m, storeProgram{
				start: func(m *mount) *child { return m.program(exe, "run", dir, mode) },
				check: func(m *mount) uint64 {
					m.run("mdb_stat", "-a", "-e", dir)
					return mustNumber(t, m.run(exe, "check", dir))
				},
			})
		})
	}
}

// bbolt, through its module: kill and Check.
func TestBolt(t *testing.T) {
	t.Parallel()
	m := newMount(t, fastDir(t))
	file := m.path("bolt.db")
	killStore(t, m, storeProgram{
		start: func(m *mount) *child { return m.role("bolt", file) },
		check: func(m *mount) uint64 { return mustNumber(t, m.role("boltload", file).mustFinish(patience)) },
	})
}

func mustNumber(t *testing.T, out string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(strings.TrimSpace(out), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// killStore kills daemon, program or both while the program commits, and
// requires that the store is sound afterwards and holds what was acknowledged.
func killStore(t *testing.T, m *mount, p storeProgram) {
	t.Helper()
	rng, _ := newRand(t)
	var found uint64
	for i := range rounds(25) {
		who := victim(rng.IntN(3))
		program := p.start(m)
		acked := found
		for range 1 + rng.IntN(6) {
			acked = lastNumber(t, []string{program.mustLine("")}, acked)
		}
		<-time.After(time.Duration(rng.IntN(5000)) * time.Microsecond)
		if who != killProgram {
			m.kill()
		}
		_ = program.cmd.Process.Kill() // it may have ended
		acked = lastNumber(t, program.drainUntilExit(patience), acked)
		if who != killProgram {
			m.start()
		}
		found = p.check(m)
		t.Logf("round %d: kill %s: acknowledged %d, found %d", i, who, acked, found)
		if found < acked || found > acked+1 {
			t.Fatalf("kill %s: the store holds transaction %d; want %d or %d", who, found, acked, acked+1)
		}
	}
	m.stop()
	m.start()
	if again := p.check(m); again != found {
		t.Errorf("after a clean unmount: transaction %d, before: %d", again, found)
	}
}

var boltBucket = []byte("txn")

// roleBolt commits transactions to a bbolt file: each puts a few keys of its own
// and overwrites one.
func roleBolt(args []string) error {
	db, err := bolt.Open(args[0], 0o644, &bolt.Options{Timeout: patience})
	if err != nil {
		return err
	}
	for {
		var n uint64
		err := db.Update(func(tx *bolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists(boltBucket)
			if err != nil {
				return err
			}
			if n, err = b.NextSequence(); err != nil {
				return err
			}
			for i := range 10 {
				if err := b.Put(fmt.Appendf(nil, "%08d/%d", n, i), make([]byte, 700)); err != nil {
					return err
				}
			}
			return b.Put([]byte("last"), binary.BigEndian.AppendUint64(nil, n))
		})
		if err != nil {
			return err
		}
		fmt.Println(n)
	}
}

// roleBoltCheck checks a bbolt file and prints its last transaction.
func roleBoltCheck(args []string) error {
	db, err := bolt.Open(args[0], 0o644, &bolt.Options{Timeout: patience})
	if err != nil {
		return err
	}
	var last uint64
	err = db.View(func(tx *bolt.Tx) error {
		var errs []error
		for err := range tx.Check() {
			errs = append(errs, err)
		}
		b := tx.Bucket(boltBucket)
		if b == nil {
			return errors.Join(errs...)
		}
		last = binary.BigEndian.Uint64(b.Get([]byte("last")))
		if got, want := b.Stats().KeyN, int(last)*10+1; got != want {
			errs = append(errs, fmt.Errorf("%d keys after transaction %d; want %d", got, last, want))
		}
		return errors.Join(errs...)
	})
	if err != nil {
		return err
	}
	fmt.Println(last)
	return db.Close()
}
