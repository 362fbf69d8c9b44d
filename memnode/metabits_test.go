package memnode

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/rpmemfs/rpmemfs/namespace"
)

// Whatever bit flips in the header of a page of meta.db, or in its first elements:
// where the pool does not open any more a check says why.
func TestMetaBits(t *testing.T) {
	t.Parallel()
	const headers = boltPageHeader + 4*boltElement
	dir := newPoolDir(t)
	p := openPool(t, dir)
	for _, name := range []string{"a", "b", "c"} {
		mustCreate(t, p, namespace.Root, name, fileInode())
	}
	p.Close()
	path := filepath.Join(dir, metaFile)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refused, flips := 0, 0
	for page := 0; page < len(good); page += boltPageSize {
		if bytes.Count(good[page:][:boltPageSize], []byte{0}) == boltPageSize {
			continue
		}
		for bit := range 8 * headers {
			bad := bytes.Clone(good)
			bad[page+bit/8] ^= 1 << (bit % 8)
			flips++
			err := opens(t, dir, bad)
			if err == nil {
				continue
			}
			refused++
			if !checkFinds(t, dir, bad) {
				t.Errorf("page %d, bit %d: a check finds nothing, and %v", page/boltPageSize, bit, err)
			}
		}
	}
	t.Logf("%d of %d refused", refused, flips)
}

// opens opens the pool with that meta.db, as a mount does.
func opens(t *testing.T, dir string, meta []byte) error {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, metaFile), meta, 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := Open(dir, Options{noSync: true})
	if err == nil {
		p.Close()
	}
	return err
}

// checkFinds reports whether a check of the pool with that meta.db finds something.
func checkFinds(t *testing.T, dir string, meta []byte) bool {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, metaFile), meta, 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := Open(dir, Options{ReadOnly: true})
	if err != nil {
		return true
	}
	defer p.Close()
	found := 0
	err = p.Check(t.Context(), func(string) { found++ })
	return err != nil || found > 0
}
