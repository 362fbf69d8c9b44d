package memnode

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

var update = flag.Bool("update", false, "write the golden files")

// A format is one structure at rest: an example, and its decoder, which returns
// what the encoder makes of what it decoded.
type format struct {
	name   string
	sample []byte
	decode func(b []byte) ([]byte, error)
}

func formats() []format {
	var id uuid
	copy(id[:], "0123456789abcdef")
	return []format{
		{"header", (&header{id, 1024, 1_700_000_000_000_000_000}).encode(), func(b []byte) ([]byte, error) {
			var h header
			if err := h.decode(b); err != nil {
				return nil, err
			}
			return h.encode(), nil
		}},
		{"pool", (&poolRecord{id, 1024, 1_700_000_000_000_000_000}).encode(), func(b []byte) ([]byte, error) {
			var r poolRecord
			if err := r.decode(b); err != nil {
				return nil, err
			}
			return r.encode(), nil
		}},
		{"state", (&stateRecord{7, 1001, 900}).encode(), func(b []byte) ([]byte, error) {
			var r stateRecord
			if err := r.decode(b); err != nil {
				return nil, err
			}
			return r.encode(), nil
		}},
		{"inode", encodeInode(&namespace.Inode{
			Ino: 5, Mode: unix.S_IFLNK | 0o777, UID: 1, GID: 2, Nlink: 3, Rdev: 4, OnClose: namespace.OnCloseCommit,
			Atime: 6, Mtime: -7, Ctime: 8, MtimeEpoch: 9, Target: "a/target",
		}), func(b []byte) ([]byte, error) {
			n, err := decodeInode(5, b)
			if err != nil {
				return nil, err
			}
			return encodeInode(&n), nil
		}},
		{"dirent", (&dirent{1234, unix.S_IFREG}).encode(), func(b []byte) ([]byte, error) {
			var d dirent
			if err := d.decode(b); err != nil {
				return nil, err
			}
			return d.encode(), nil
		}},
		{"region", (&regionRecord{77, 5}).encode(), func(b []byte) ([]byte, error) {
			var r regionRecord
			if err := r.decode(b); err != nil {
				return nil, err
			}
			return r.encode(), nil
		}},
		{"extent", encodeExtent(4096), func(b []byte) ([]byte, error) {
			r, err := decodeExtent(77, b)
			if err != nil {
				return nil, err
			}
			return encodeExtent(r.N), nil
		}},
		{"checkpoint", encodeCheckpoint(&region.Checkpoint{
			Epoch: 1, Time: 2, Size: 3, Mtime: 4, Pages: 5, Tree: region.Tree{Root: 6, CRC: 7, Height: 8},
		}), func(b []byte) ([]byte, error) {
			c, err := decodeCheckpoint("name", b)
			if err != nil {
				return nil, err
			}
			return encodeCheckpoint(&c), nil
		}},
		{"xattr", encodeXattr([]byte("value")), func(b []byte) ([]byte, error) {
			v, err := decodeXattr(b)
			if err != nil {
				return nil, err
			}
			return encodeXattr(v), nil
		}},
		{"mark", encodeMark(), func(b []byte) ([]byte, error) {
			if err := decodeMark(b); err != nil {
				return nil, err
			}
			return encodeMark(), nil
		}},
		{"share", (&shareRecord{1 << 40, 77, 5}).encode(), func(b []byte) ([]byte, error) {
			var r shareRecord
			if err := r.decode(b); err != nil {
				return nil, err
			}
			return r.encode(), nil
		}},
		{"names", (&namesRecord{1 << 30, 77}).encode(), func(b []byte) ([]byte, error) {
			var r namesRecord
			if err := r.decode(b); err != nil {
				return nil, err
			}
			return r.encode(), nil
		}},
		{"lease", (&Lease{
			Generation: 8, Session: [16]byte{1, 2}, TokenHash: [32]byte{3, 4}, Holder: "node-1", Timeout: 10 * time.Second, Granted: 9,
		}).encode(), func(b []byte) ([]byte, error) {
			l, err := decodeLease(1, b)
			if err != nil {
				return nil, err
			}
			return l.encode(), nil
		}},
		{"request", (&requestRecord{
			Request: Request{ID: 5000, Generation: 8, Digest: [16]byte{1, 2, 3}}, kind: answerGrant,
			grant: region.Grant{Super: 77, Runs: []region.Run{{Start: 78, N: 40}}},
		}).encode(), func(b []byte) ([]byte, error) {
			r, err := decodeRequest(b)
			if err != nil {
				return nil, err
			}
			return r.encode(), nil
		}},
		{"request_inode", (&requestRecord{
			Request: Request{ID: 5001, Generation: 8}, kind: answerInode,
			inode: namespace.Inode{Ino: 9, Mode: unix.S_IFREG | 0o644, Nlink: 1, Share: 4},
		}).encode(), func(b []byte) ([]byte, error) {
			r, err := decodeRequest(b)
			if err != nil {
				return nil, err
			}
			return r.encode(), nil
		}},
		{"request_heir", (&requestRecord{Request: Request{ID: 5002, Generation: 8}, kind: answerHeir, heir: 9}).encode(), func(b []byte) ([]byte, error) {
			r, err := decodeRequest(b)
			if err != nil {
				return nil, err
			}
			return r.encode(), nil
		}},
		{"inode_share", encodeInode(&namespace.Inode{
			Ino: 5, Mode: unix.S_IFDIR | 0o755, Nlink: 2, Parent: 7, Share: 0x0102_0304_0506,
		}), func(b []byte) ([]byte, error) {
			n, err := decodeInode(5, b)
			if err != nil {
				return nil, err
			}
			return encodeInode(&n), nil
		}},
	}
}

// The bytes at rest are those of the golden files, and docs/format.md.
func TestGoldenFormats(t *testing.T) {
	for _, f := range formats() {
		path := filepath.Join("testdata", f.name+".hex")
		if *update {
			if err := os.WriteFile(path, []byte(hex.Dump(f.sample)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.Dump(f.sample); got != string(want) {
			t.Errorf("%s is\n%swant\n%s", f.name, got, want)
		}
		if again, err := f.decode(f.sample); err != nil || !bytes.Equal(again, f.sample) {
			t.Errorf("%s decodes to\n%s, %v", f.name, hex.Dump(again), err)
		}
	}
}

// No prefix of a structure decodes, and reserved bytes are checked.
func TestDecodersRefuse(t *testing.T) {
	for _, f := range formats() {
		for n := range f.sample {
			if f.name == "xattr" && n >= xattrSize {
				continue // a shorter value
			}
			if _, err := f.decode(f.sample[:n]); err == nil {
				t.Errorf("%d bytes of a %s decode", n, f.name)
			}
		}
		for i := 1; i < len(f.sample); i++ {
			b := bytes.Clone(f.sample)
			b[i] ^= 0x80
			if again, err := f.decode(b); err == nil && !bytes.Equal(again, b) {
				t.Errorf("%s: byte %d is ignored", f.name, i)
			}
		}
	}
	for what, b := range map[string][]byte{
		"an inode without a type":             encodeInode(&namespace.Inode{Mode: 0o644}),
		"an inode with strange mode bits":     encodeInode(&namespace.Inode{Mode: unix.S_IFREG | 1<<20}),
		"a directory without a parent":        encodeInode(&namespace.Inode{Mode: unix.S_IFDIR}),
		"a file with a parent":                encodeInode(&namespace.Inode{Mode: unix.S_IFREG, Parent: 1}),
		"a file with a target":                encodeInode(&namespace.Inode{Mode: unix.S_IFREG, Target: "x"}),
		"a symbolic link without a target":    encodeInode(&namespace.Inode{Mode: unix.S_IFLNK}),
		"a symbolic link with a long target":  encodeInode(&namespace.Inode{Mode: unix.S_IFLNK, Target: strings.Repeat("x", namespace.MaxSymlink+1)}),
		"an inode in the share of the root":   encodeInode(&namespace.Inode{Mode: unix.S_IFREG, Share: namespace.Root}),
		"a file that is a share":              encodeInode(&namespace.Inode{Mode: unix.S_IFREG, Share: 5, Ino: 5}),
		"a share below another directory":     encodeInode(&namespace.Inode{Mode: unix.S_IFDIR, Share: 5, Ino: 5, Parent: 6}),
		"an inode of version 2 in no share":   withVersion(encodeInode(&namespace.Inode{Mode: unix.S_IFREG}), 2),
		"an inode of version 1 in a share":    withVersion(encodeInode(&namespace.Inode{Mode: unix.S_IFREG, Share: 7}), 1),
		"an inode with an unknown on_close":   encodeInode(&namespace.Inode{Mode: unix.S_IFREG, OnClose: 3}),
		"a state with more inodes than names": (&stateRecord{1, 5, 5}).encode(),
	} {
		decode := formats()[3].decode
		if len(b) == stateRecordSize {
			decode = formats()[2].decode
		}
		if _, err := decode(b); err == nil {
			t.Errorf("%s decodes", what)
		}
	}
	for what, l := range map[string]Lease{
		"without a generation": {Timeout: 1},
		"without a timeout":    {Generation: 1},
		"with a long holder":   {Generation: 1, Timeout: 1, Holder: strings.Repeat("x", maxHolder+1)},
	} {
		if _, err := decodeLease(2, l.encode()); err == nil {
			t.Errorf("a lease %s decodes", what)
		}
	}
	if _, err := decodeLease(0, (&Lease{Generation: 1, Timeout: 1}).encode()); err == nil {
		t.Error("a lease of share 0 decodes")
	}
	for _, r := range []region.Run{{Start: 0, N: 1}, {Start: 1, N: 0}, {Start: region.MaxSlot - 1, N: 2}, {Start: 1, N: 1<<64 - 1}, {Start: region.MaxSlot, N: 1}} {
		if got, err := decodeExtent(r.Start, encodeExtent(r.N)); err == nil {
			t.Errorf("the extent %v decodes to %v", r, got)
		}
	}
}

func withVersion(b []byte, version byte) []byte {
	b[0] = version
	return b
}

// A value is good only in its place.
func TestValueIsBoundToItsKey(t *testing.T) {
	v := sealValue(bucketOrphans, key1(5), encodeMark())
	if _, err := openValue(bucketOrphans, key1(5), v); err != nil {
		t.Fatal(err)
	}
	_, err := openValue(bucketOrphans, key1(6), v)
	wantErr(t, "value under another key", err, ErrCorrupt)
	_, err = openValue(bucketFamilies, key1(5), v)
	wantErr(t, "value in another bucket", err, ErrCorrupt)
	wantErr(t, "the same as the region sees it", err, region.ErrCorrupt)
	_, err = openValue(bucketOrphans, key1(5), v[:4])
	wantErr(t, "short value", err, ErrCorrupt)
	_, err = openValue(bucketOrphans, key1(5), nil)
	wantErr(t, "empty value", err, ErrCorrupt)
	v[0] = 2
	_, err = openValue(bucketOrphans, key1(5), v)
	wantErr(t, "value of another version", err, ErrVersion)
	_, ierr := openValue(bucketInodes, key1(5), sealValue(bucketInodes, key1(5), []byte{3, 0, 0, 0}))
	wantErr(t, "inode of another version", ierr, ErrVersion)
	if want := "version 2, this program knows version 1"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error = %v, want it to say %q", err, want)
	}
}

// What decodes encodes to the same bytes, and nothing panics.
// The first sample that is named has the decoder; the others are where it begins, too.
func fuzzFormat(f *testing.F, name string, samples ...string) {
	for _, format := range formats() {
		if slices.Contains(samples, format.name) {
			f.Add(format.sample)
		}
	}
	for _, format := range formats() {
		if format.name != name {
			continue
		}
		f.Add(format.sample)
		f.Fuzz(func(t *testing.T, b []byte) {
			again, err := format.decode(b)
			if err != nil {
				return
			}
			if name == "header" {
				b = b[:headerSize] // the rest of the slot is not its
			} else if b[0] != valueVersion && (b[0] != shareInodeVersion || !strings.HasPrefix(name, "inode")) {
				return // openValue refuses it
			}
			if !bytes.Equal(again, b) {
				t.Errorf("%x decodes and encodes to %x", b, again)
			}
		})
		return
	}
	f.Fatalf("no format %q", name)
}

func FuzzHeaderDecode(f *testing.F)     { fuzzFormat(f, "header") }
func FuzzPoolDecode(f *testing.F)       { fuzzFormat(f, "pool") }
func FuzzStateDecode(f *testing.F)      { fuzzFormat(f, "state") }
func FuzzInodeDecode(f *testing.F)      { fuzzFormat(f, "inode") }
func FuzzDirentDecode(f *testing.F)     { fuzzFormat(f, "dirent") }
func FuzzRegionDecode(f *testing.F)     { fuzzFormat(f, "region") }
func FuzzExtentDecode(f *testing.F)     { fuzzFormat(f, "extent") }
func FuzzCheckpointDecode(f *testing.F) { fuzzFormat(f, "checkpoint") }
func FuzzXattrDecode(f *testing.F)      { fuzzFormat(f, "xattr") }
func FuzzMarkDecode(f *testing.F)       { fuzzFormat(f, "mark") }
func FuzzShareDecode(f *testing.F)      { fuzzFormat(f, "share") }
func FuzzLeaseDecode(f *testing.F)      { fuzzFormat(f, "lease") }
func FuzzNamesDecode(f *testing.F)      { fuzzFormat(f, "names") }
func FuzzRequestDecode(f *testing.F)    { fuzzFormat(f, "request", "request_inode", "request_heir") }
func FuzzShareInodeDecode(f *testing.F) { fuzzFormat(f, "inode_share") }

// FuzzMetaPages gives the page checker any file.
func FuzzMetaPages(f *testing.F) {
	dir := f.TempDir()
	path := filepath.Join(dir, metaFile)
	if err := createMeta(path, header{slots: minSlots}, true); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(0), uint64(0), uint32(0), uint64(0))
	f.Fuzz(func(t *testing.T, at1 uint32, v1 uint64, at2 uint32, v2 uint64) {
		b := bytes.Clone(good)
		for i := range 8 {
			b[(int(at1)+i)%len(b)] ^= byte(v1 >> (8 * i))
			b[(int(at2)+i)%len(b)] ^= byte(v2 >> (8 * i))
		}
		problems := 0
		checkMetaPages(bytes.NewReader(b), int64(len(b)), func(string, ...any) { problems++ })
		if bytes.Equal(b, good) && problems > 0 {
			t.Errorf("%d problems in a good file", problems)
		}
	})
}

// The page checker finds what bbolt's own would: a page that is free and in use,
// one that is neither, and one that is in two trees. And it finds a bucket that is
// said to be a value.
func TestMetaPagesFindsDamage(t *testing.T) {
	dir := newPoolDir(t)
	p := openPool(t, dir)
	for i := range 300 { // enough for branch pages, and for free ones
		mustCreate(t, p, namespace.Root, fmt.Sprintf("a rather long name %d", i), fileInode())
	}
	wantSound(t, p)
	p.Close()
	good, err := os.ReadFile(filepath.Join(dir, metaFile))
	if err != nil {
		t.Fatal(err)
	}
	root, err := newestRoot(bytes.NewReader(good))
	if err != nil {
		t.Fatal(err)
	}
	list := good[root.freelist*boltPageSize:]
	if list[10] == 0 {
		t.Fatal("no free pages to play with")
	}
	for what, change := range map[string]func(list []byte){
		"free page in use":   func(list []byte) { copy(list[16:], littleEndian(root.root)) },
		"free page lost":     func(list []byte) { list[10]-- },
		"free page outside":  func(list []byte) { copy(list[16:], littleEndian(root.pages)) },
		"free list too long": func(list []byte) { list[10], list[11] = 0xff, 0x7f },
		"free list a branch": func(list []byte) { list[8] = boltBranch },
	} {
		b := bytes.Clone(good)
		change(b[root.freelist*boltPageSize:])
		found := 0
		checkMetaPages(bytes.NewReader(b), int64(len(b)), func(string, ...any) { found++ })
		if found == 0 {
			t.Errorf("%s: not found", what)
		}
	}
	top := root.root * boltPageSize
	for i := range uint64(good[top+10]) {
		b := bytes.Clone(good)
		b[top+boltPageHeader+i*boltElement] ^= boltBucketLeaf
		if err := checkMetaFile(bytes.NewReader(b), int64(len(b))); err == nil {
			t.Errorf("bucket %d is a value: not found", i)
		}
	}
	checkMetaPages(bytes.NewReader(good), int64(len(good)), func(f string, args ...any) { t.Errorf(f, args...) })
	wantErr(t, "a file without its end", checkMetaSize(bytes.NewReader(good), int64(root.pages-1)*boltPageSize), ErrTruncated)
}

func littleEndian(n uint64) []byte { return binary.LittleEndian.AppendUint64(nil, n) }
