package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The flag is the same in every package, so that all take it at once.
var _ = flag.Uint64("seed", 0, "seed of the random tests; 0 is a fixed one; none here")

var update = flag.Bool("update", false, "write ../testdata/messages.hex anew")

// samples has one message of each type, in their order.
var samples = []Message{
	&Hello{Ino: 0x0102030405060708, Flags: Tracks | RestartPoints, Frames: 16384, Name: "fifteen-letters"},
	&Welcome{Errno: unix.EACCES, Member: 3, N: 41, Epoch: 40, Interval: 64_000_000},
	&Request{ID: 0xfedcba9876543210, Timeout: 1_000_000_000},
	&Result{ID: 0xfedcba9876543210, Errno: unix.ETIMEDOUT, LateTID: 4711, Epoch: 40},
	&Due{N: 42, Timeout: 1_000_000_000},
	&Ready{N: 42},
	&Late{N: 42, TID: 4711, Name: "worker"},
	&Drain{N: 42},
	&Drained{N: 42, Errno: unix.EIO},
	&Go{N: 42, Sole: true, Pages: []uint64{7, 1 << 38}, Epoch: 41},
	&Done{N: 42, Upto: 70000, Errno: unix.ENOMEM, Rounds: 5, Precopied: 60000, Copied: 64,
		ScanNs: 900_000, CopyNs: 40_000, PauseNs: 1_000_000},
	&Release{N: 42, Errno: unix.EOWNERDEAD, Epoch: 41},
	&Committed{Epoch: 41},
	&Lost{Errno: unix.EOWNERDEAD, Epoch: 41},
	&Gone{Errno: unix.EIO},
	&Untracked{},
	&Kick{},
	&Detach{},
}

func encode(t testing.TB, m Message) []byte {
	t.Helper()
	b, err := Append(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The bytes of each message, one a line. librpmemfs tests itself by the same file.
func TestGolden(t *testing.T) {
	const path = "../testdata/messages.hex"
	var text strings.Builder
	for i, m := range samples {
		if m.kind() != kind(i+1) {
			t.Errorf("sample %d is a %v", i, m.kind())
		}
		text.WriteString(hex.EncodeToString(encode(t, m)) + "\n")
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
		t.Errorf("%s: the bytes of messages changed; that needs a new version", path)
	}
}

func TestDecodeWhatWasEncoded(t *testing.T) {
	for _, want := range samples {
		got, err := Decode(encode(t, want))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	}
}

// A message fills several in a row, as in a member's buffer.
func TestAppend(t *testing.T) {
	b := encode(t, &Ready{N: 1})
	both, err := Append(b, &Late{N: 2})
	if err != nil || !bytes.Equal(both, append(encode(t, &Ready{N: 1}), encode(t, &Late{N: 2})...)) {
		t.Errorf("got %x, %v", both, err)
	}
	got, err := Append(b, &Late{Name: "sixteen-letters-"})
	if !errors.Is(err, ErrMalformed) || !bytes.Equal(got, b) {
		t.Errorf("a name too long: got %x, %v", got, err)
	}
	if _, err := Append(nil, &Late{Name: "a\x00b"}); !errors.Is(err, ErrMalformed) {
		t.Errorf("a name with a zero: got %v", err)
	}
	if _, err := Append(nil, &Go{Pages: make([]uint64, MaxPages+1)}); !errors.Is(err, ErrMalformed) {
		t.Errorf("too many pages: got %v", err)
	}
	if b, err := Append(nil, &Go{Pages: make([]uint64, MaxPages)}); err != nil || len(b) > MaxMessage {
		t.Errorf("the longest message: %d bytes, %v", len(b), err)
	}
}

// What members send fits the daemon's buffer.
func TestMaxRequest(t *testing.T) {
	for _, m := range samples {
		switch m.(type) {
		case *Hello, *Request, *Ready, *Late, *Drained, *Done, *Untracked, *Kick, *Detach:
			if n := len(encode(t, m)); n > MaxRequest {
				t.Errorf("%v: %d bytes", m.kind(), n)
			}
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	put := func(m Message, off int, bytes ...byte) []byte {
		b := encode(t, m)
		copy(b[off:], bytes)
		return b
	}
	ready := encode(t, &Ready{N: 1})
	for name, b := range map[string][]byte{
		"empty":           {},
		"no header":       ready[:15],
		"magic":           put(&Ready{}, 0, 'X'),
		"version":         put(&Ready{}, 4, 2),
		"type 0":          put(&Kick{}, 6, 0),
		"type 19":         put(&Kick{}, 6, 19),
		"length":          put(&Ready{}, 8, 23),
		"reserved":        put(&Ready{}, 12, 1),
		"short":           put(&Late{}, 6, byte(kindDone)),
		"long":            put(&Late{}, 6, byte(kindReady)),
		"cut":             ready[:20],
		"flags":           put(&Hello{}, 24, 8),
		"errno of 1":      put(&Gone{}, 16, 1),
		"errno of -4096":  put(&Gone{}, 16, 0, 0xf0, 0xff, 0xff),
		"sole of 2":       put(&Go{}, 24, 2),
		"pages":           put(&Go{}, 28, 2),
		"too many pages":  put(&Go{}, 28, 0xff, 0xff, 0xff, 0xff),
		"reserved field":  put(&Late{}, 28, 1),
		"name of 16":      put(&Late{Name: "fifteen-letters"}, 47, 'x'),
		"name with zeros": put(&Late{}, 33, 'x'),
		"too large":       make([]byte, MaxMessage+1),
	} {
		if m, err := Decode(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: got %+v, %v; want ErrMalformed", name, m, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range samples {
		f.Add(encode(f, m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("got %v, want ErrMalformed", err)
			}
			return
		}
		if again := encode(t, m); !bytes.Equal(again, b) {
			t.Fatalf("%x decodes to %+v, which is %x", b, m, again)
		}
	})
}
