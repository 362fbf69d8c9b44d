package region

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write testdata/*.hex anew")

// golden compares b with a file in testdata: 16 bytes a line, in hexadecimal.
func golden(t *testing.T, name string, b []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".hex")
	var text strings.Builder
	for len(b) > 0 {
		n := min(16, len(b))
		text.WriteString(hex.EncodeToString(b[:n]) + "\n")
		b = b[n:]
	}
	if *update {
		if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text.String() != string(want) {
		t.Errorf("%s: the bytes at rest changed; a new layout needs a new version", path)
	}
}

var (
	goldenSuper = superblock{
		id: 0x0102, sequence: 9, generation: 4, epoch: 77, size: 123456789, mtime: 1_700_000_000_000_000_001,
		tree: Tree{Root: 0x1111, CRC: 0xdeadbeef, Height: 3}, series: 5,
		log: [2]Run{{0x20, 2}, {0x40, 128}}, pages: 30141,
	}
	goldenRecord = record{
		kind: kindEpoch, id: 0x0102, generation: 4, epoch: 78, durable: 77, size: 123456789, cut: NoPage,
		mtime: 1_700_000_000_000_000_002, series: 5,
		pages: []PageChange{{Page: 3, Slot: 0x55, CRC: 0xcafef00d}, {Page: 1 << 39, Slot: 0, CRC: 0}},
	}
	goldenMark = record{
		kind: kindMark, id: 0x0102, generation: 4, epoch: 78, durable: 78, size: 123456789, cut: NoPage,
		mtime: 1_700_000_000_000_000_002, series: 5, pages: []PageChange{},
	}
)

func TestGolden(t *testing.T) {
	golden(t, "superblock", goldenSuper.encode())
	golden(t, "record", goldenRecord.encode())
	golden(t, "mark", goldenMark.encode())
	n := newNode(0)
	n.entries[0] = Entry{Slot: 7, CRC: 0x01020304, Series: 1}
	n.entries[255] = Entry{Slot: 1 << 47, CRC: 0xffffffff, Series: 2}
	b := make([]byte, PageSize)
	n.encode(b)
	golden(t, "node", b)
}

func TestDecodeWhatWasEncoded(t *testing.T) {
	var sb superblock
	if err := sb.decode(goldenSuper.encode(), 0); err != nil || sb != goldenSuper {
		t.Errorf("superblock: got %+v, %v; want %+v", sb, err, goldenSuper)
	}
	for _, want := range []record{goldenRecord, goldenMark} {
		var r record
		if n, err := r.decode(want.encode(), 0); err != nil || n != recordBytes(len(want.pages)) || !reflect.DeepEqual(r, want) {
			t.Errorf("record: got %+v, length %d, %v; want %+v", r, n, err, want)
		}
	}
}

// Every single flipped bit is found, and named.
func TestDecodeRefusesFlippedBits(t *testing.T) {
	for i := range superSize * 8 {
		b := goldenSuper.encode()
		b[i/8] ^= 1 << (i % 8)
		var sb superblock
		if err := sb.decode(b, 0); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("superblock bit %d: got %v, want ErrCorrupt", i, err)
		}
	}
	for i := range len(goldenRecord.encode()) * 8 {
		b := goldenRecord.encode()
		b[i/8] ^= 1 << (i % 8)
		var r record
		if _, err := r.decode(b, 0); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("record bit %d: got %v, want ErrCorrupt", i, err)
		}
	}
}

// A superblock of another version is refused by name, not taken for damage.
func TestDecodeRefusesVersion(t *testing.T) {
	b := goldenSuper.encode()
	b[8]++
	putChecksum(b)
	var sb superblock
	if err := sb.decode(b, 0); !errors.Is(err, ErrVersion) {
		t.Errorf("got %v, want ErrVersion", err)
	}
}

func putChecksum(b []byte) {
	crc := Checksum(b[:124])
	b[124], b[125], b[126], b[127] = byte(crc), byte(crc>>8), byte(crc>>16), byte(crc>>24)
}

func FuzzSuperblockDecode(f *testing.F) {
	f.Add(goldenSuper.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= superSize {
			putChecksum(b) // or nothing would ever get further
		}
		var sb superblock
		if sb.decode(b, 0) == nil && !bytes.Equal(sb.encode(), b[:superSize]) {
			t.Error("what was decoded encodes to other bytes")
		}
	})
}

func FuzzRecordDecode(f *testing.F) {
	f.Add(goldenRecord.encode(), uint16(2))
	f.Add(goldenMark.encode(), uint16(0))
	f.Fuzz(func(t *testing.T, b []byte, count uint16) {
		if n := int(count); len(b) >= recordBytes(n) {
			b[76], b[77], b[78], b[79] = byte(n), byte(n>>8), 0, 0
			crc := recordChecksum(b, n)
			b[92], b[93], b[94], b[95] = byte(crc), byte(crc>>8), byte(crc>>16), byte(crc>>24)
		}
		var r record
		n, err := r.decode(b, 0)
		if err == nil && !bytes.Equal(r.encode(), b[:n]) {
			t.Error("what was decoded encodes to other bytes")
		}
	})
}

func FuzzNodeDecode(f *testing.F) {
	f.Add(bytes.Repeat([]byte{1, 2, 0, 0, 0, 0, 0, 0}, PageSize/8))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) != PageSize {
			return
		}
		n := newNode(0)
		if !decodeEntries(&n.entries, b) {
			return
		}
		got := make([]byte, PageSize)
		if n.encode(got); !bytes.Equal(got, b) {
			t.Error("what was decoded encodes to other bytes")
		}
	})
}
