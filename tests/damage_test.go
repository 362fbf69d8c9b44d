package tests

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// damagedFile is a file of the pool that the damage tests harm, and the stamps
// of its committed epochs; the last is what it holds.
type damagedFile struct {
	name   string
	pages  int
	stamps []uint64
}

var damagedFiles = []damagedFile{
	{"small", 3, []uint64{1, 2}},
	{"large", 1500, []uint64{1, 2, 3}},
	{"once", 40, []uint64{5}},
}

// goodPool makes a pool, leaves it by a clean unmount and returns the bytes of
// its files.
func goodPool(t *testing.T, m *mount) map[string][]byte {
	t.Helper()
	for _, f := range damagedFiles {
		p := m.newMapper(f.name, f.pages)
		for _, stamp := range f.stamps {
			p.ok("store %d 0 %d", stamp, f.pages)
			p.ok("msync")
		}
		p.quit()
	}
	m.ctl("checkpoint", m.path("large"), "kept")
	m.run("sh", "-ec", `cd "$1"; mkdir d; ln -s ../small d/link; ln small d/hard`, "sh", m.mnt)
	m.stop()
	return readPool(t, m.pool)
}

func readPool(t *testing.T, pool string) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	entries, err := os.ReadDir(pool)
	must(t, err)
	for _, e := range entries {
		info, err := e.Info()
		must(t, err)
		if info.Mode().IsRegular() {
			files[e.Name()], err = os.ReadFile(filepath.Join(pool, e.Name()))
			must(t, err)
		}
	}
	return files
}

// restorePool puts the pool's files back as they were.
func restorePool(t *testing.T, pool string, files map[string][]byte) {
	t.Helper()
	for name, content := range files {
		must(t, os.WriteFile(filepath.Join(pool, name), content, 0o600))
	}
}

// roleScan prints, for every page of a file, its stamp or EIO, in runs. Any
// other error, and a page that is torn or in a wrong place, is an error.
func roleScan(args []string) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	var runs []string
	last, n := "", 0
	for no := range uint64(st.Size() / pageSize) {
		page := make([]byte, pageSize)
		word := "EIO"
		if _, err := f.ReadAt(page, int64(no)*pageSize); err == nil {
			stamp, err := pageStamp(page, no)
			if err != nil {
				return err
			}
			word = fmt.Sprint(stamp)
		} else if !errors.Is(err, syscall.EIO) {
			return err
		}
		if n > 0 && word != last {
			runs = append(runs, fmt.Sprintf("%s*%d", last, n))
			n = 0
		}
		last = word
		n++
	}
	fmt.Println(strings.Join(append(runs, fmt.Sprintf("%s*%d", last, n)), " "))
	return nil
}

// verdict is what became of a damaged pool.
type verdict struct {
	refused int // it could not be mounted
	errors  int // some page or file gave an error
	older   int // a file came back as an older epoch, whole
	intact  int // all there
}

// inspect mounts a damaged pool and requires that nothing it serves is wrong:
// every page of a file is of one committed epoch, or an error.
func (m *mount) inspect(t *testing.T, v *verdict, what string) {
	t.Helper()
	code, out := m.ctlCode("check", "--pool", m.pool)
	if code < 0 || code > 2 {
		t.Errorf("%s: check: exit code %d: %s", what, code, out)
	}
	if err := m.tryStart(); err != nil {
		if !strings.Contains(err.Error(), "rpmemfs") || strings.Contains(err.Error(), "no output for") {
			t.Errorf("%s: %v", what, err)
		}
		if code == 0 {
			t.Errorf("%s: check finds nothing, mount: %v", what, err)
		}
		v.refused++
		return
	}
	damaged, older := false, false
	for _, f := range damagedFiles {
		c := m.role("scan", m.path(f.name))
		out, err := c.finish(patience)
		if err != nil {
			if !strings.Contains(err.Error(), "input/output error") && !strings.Contains(err.Error(), "no such file") {
				t.Errorf("%s: %v", what, err)
			}
			damaged = true
			continue
		}
		seen := make(map[string]bool)
		for run := range strings.FieldsSeq(out) {
			stamp, _, _ := strings.Cut(run, "*")
			seen[stamp] = true
		}
		damaged = damaged || seen["EIO"]
		delete(seen, "EIO")
		if len(seen) > 1 {
			t.Errorf("%s: %s is a mix of epochs: %s", what, f.name, out)
			continue
		}
		for stamp := range seen {
			if stamp != fmt.Sprint(f.stamps[len(f.stamps)-1]) {
				older = true
				t.Logf("%s: %s came back as %s", what, f.name, out)
			}
		}
	}
	switch {
	case damaged:
		v.errors++
		if code == 0 {
			t.Errorf("%s: check finds nothing, reading gives errors", what)
		}
	case older:
		v.older++
		if code == 0 {
			t.Errorf("%s: check finds nothing, a file came back as an older epoch", what)
		}
	default:
		v.intact++
	}
	m.stop()
}

// One bit flips somewhere in the pool: what is served is right or an error,
// check says so, and nothing panics or hangs.
func TestDamagedBits(t *testing.T) {
	for _, file := range []string{"data", "meta.db"} {
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			rng, _ := newRand(t)
			m := newMount(t, fastDir(t), "--size", "32MiB")
			good := goodPool(t, m)
			used := usedPages(good[file])
			var v verdict
			flip := func(at, bit int) {
				bad := bytes.Clone(good[file])
				bad[at] ^= 1 << bit
				must(t, os.WriteFile(filepath.Join(m.pool, file), bad, 0o600))
				m.inspect(t, &v, fmt.Sprintf("bit %d flips in %s at %d", bit, file, at))
				restorePool(t, m.pool, good)
			}
			if file == "meta.db" { // type, count and length of each page
				for _, page := range used[:min(len(used), 10)] {
					for at := 8; at < 16; at += 2 {
						flip(page*pageSize+at, 0)
						flip(page*pageSize+at+1, 7)
					}
				}
			}
			for range rounds(40) {
				at := used[rng.IntN(len(used))]*pageSize + rng.IntN(pageSize)
				if rng.IntN(2) == 0 { // headers are at the front of a page
					at -= at%pageSize - rng.IntN(64)
				}
				flip(at, rng.IntN(8))
			}
			t.Logf("refused %d, errors %d, older epoch %d, intact %d", v.refused, v.errors, v.older, v.intact)
			m.start() // the good pool again
			for _, f := range damagedFiles {
				if got, want := m.stampOf(f.name), f.stamps[len(f.stamps)-1]; got != want {
					t.Errorf("%s: stamp %d, want %d", f.name, got, want)
				}
			}
		})
	}
}

// usedPages lists the pages of a file that are not all zero.
func usedPages(b []byte) []int {
	var used []int
	zero := make([]byte, pageSize)
	for at := 0; at < len(b); at += pageSize {
		if page := b[at:min(at+pageSize, len(b))]; !bytes.Equal(page, zero[:len(page)]) {
			used = append(used, at/pageSize)
		}
	}
	return used
}

// A damaged page of a file is an error with its place, and the rest of the file
// stays readable and writable.
func TestDamagedPage(t *testing.T) {
	t.Parallel()
	m := newMount(t, fastDir(t), "--size", "32MiB")
	good := goodPool(t, m)
	const page = 777
	at := newestPage(good["data"], page, 3)
	if at < 0 {
		t.Fatal("page not found in data")
	}
	bad := bytes.Clone(good["data"])
	bad[at+1000] ^= 4
	must(t, os.WriteFile(filepath.Join(m.pool, "data"), bad, 0o600))
	code, out := m.ctlCode("check", "--pool", m.pool)
	if code != 1 || !strings.Contains(out, fmt.Sprint(page)) {
		t.Errorf("check: exit code %d, %q; want 1 and page %d named", code, out, page)
	}
	m.start()
	got := m.role("scan", m.path("large")).mustFinish(patience)
	if want := "3*777 EIO*1 3*722"; got != want {
		t.Errorf("scan: got %s, want %s", got, want)
	}
	if code, out := m.ctlCode("check", m.mnt); code != 1 {
		t.Errorf("check, mounted: exit code %d: %s", code, out)
	}
	// Storing the whole page again heals the file.
	m.run("dd", "if=/dev/zero", "of="+m.path("large"), "bs=4096", "count=1", fmt.Sprint("seek=", page), "conv=notrunc,fsync")
	got = m.role("scan", m.path("large")).mustFinish(patience)
	if want := "3*777 0*1 3*722"; got != want {
		t.Errorf("scan after the page was written again: got %s, want %s", got, want)
	}
}

// newestPage finds where data holds page no of file "large" with a stamp.
func newestPage(data []byte, no, stamp uint64) int {
	want := make([]byte, pageSize)
	stampPage(want, no, stamp)
	for at := 0; at+pageSize <= len(data); at += pageSize {
		if bytes.Equal(data[at:at+pageSize], want) {
			return at
		}
	}
	return -1
}

// Files of the pool that are cut short, missing, of another pool or of another
// version are refused by name, without changing anything.
func TestBadPools(t *testing.T) {
	t.Parallel()
	m := newMount(t, fastDir(t), "--size", "32MiB")
	good := goodPool(t, m)
	other := newMount(t, fastDir(t), "--size", "32MiB")
	foreign := goodPool(t, other)

	rng := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, len(good["data"]))
	for i := 0; i < len(noise); i += 8 {
		binary.LittleEndian.PutUint64(noise[i:], rng.Uint64())
	}
	half := func(b []byte) []byte { return b[:len(b)/2] }
	future := bytes.Clone(good["data"])
	future[8]++ // docs/format.md: the version in the pool's header
	for _, c := range []struct {
		name, file string
		content    []byte // nil: the file is gone
	}{
		{"data cut in half", "data", half(good["data"])},
		{"data cut to a page", "data", good["data"][:pageSize]},
		{"data empty", "data", []byte{}},
		{"data missing", "data", nil},
		{"data of another pool", "data", foreign["data"]},
		{"data of noise", "data", noise},
		{"data of a later version", "data", future},
		{"meta.db cut to four pages", "meta.db", good["meta.db"][:4*pageSize]},
		{"meta.db of 100 bytes", "meta.db", good["meta.db"][:100]},
		{"meta.db empty", "meta.db", []byte{}},
		{"meta.db missing", "meta.db", nil},
		{"meta.db of another pool", "meta.db", foreign["meta.db"]},
		{"meta.db of noise", "meta.db", noise[:len(good["meta.db"])]},
	} {
		t.Run(c.name, func(t *testing.T) {
			sub := *m
			sub.t = t
			path := filepath.Join(m.pool, c.file)
			if c.content == nil {
				must(t, os.Remove(path))
			} else {
				must(t, os.WriteFile(path, c.content, 0o600))
			}
			code, out := sub.ctlCode("check", "--pool", m.pool)
			if code != 1 && code != 2 {
				t.Errorf("check: exit code %d, want 1 or 2: %s", code, out)
			}
			if err := sub.tryStart(); err == nil {
				t.Error("it was mounted")
				sub.stop()
			} else if !strings.Contains(err.Error(), m.pool) {
				t.Errorf("the error does not name the pool: %v", err)
			} else if strings.Contains(c.name, "version") && !strings.Contains(err.Error(), "version 2") {
				t.Errorf("the error does not name the version: %v", err)
			} else {
				t.Log(firstBytes(err.Error()[strings.Index(err.Error(), "stderr:")+8:], 200))
			}
			restorePool(t, m.pool, good)
		})
	}
	m.start()
	for _, f := range damagedFiles {
		if got, want := m.stampOf(f.name), f.stamps[len(f.stamps)-1]; got != want {
			t.Errorf("%s: stamp %d, want %d", f.name, got, want)
		}
	}
}

// A pool is locked against a second opener.
func TestPoolIsLocked(t *testing.T) {
	t.Parallel()
	dir := fastDir(t)
	m := newMount(t, dir)
	second := prepareMount(t, fastDir(t))
	second.pool = m.pool
	err := second.tryStart()
	if err == nil {
		t.Fatal("one pool was mounted twice")
	}
	if !strings.Contains(err.Error(), "in use") && !strings.Contains(err.Error(), "locked") {
		t.Errorf("the second mount: %v", err)
	}
	m.run("sh", "-c", `echo works > "$1/file"; cat "$1/file"`, "sh", m.mnt)
}
