package tcp

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"os"
	"strings"
	"testing"
	"time"
)

// messages is one of each kind.
func messages() [][]byte {
	message := func(h header, data string) []byte {
		b := make([]byte, headerSize+len(data))
		copy(b[headerSize:], data)
		h.encode(b, b[headerSize:])
		return b
	}
	h := hello{token: [32]byte{0: 1, 31: 2}, stream: 3, attempt: 4, alive: time.Second}
	return [][]byte{
		h.encode(),
		(&welcome{kind: "file"}).encode(),
		(&welcome{kind: "tmpfs", volatile: true}).encode(),
		(&welcome{code: codeFenced, text: "over"}).encode(),
		message(header{kind: kindWrite, length: 5, sequence: 1, offset: 4096}, "hello"),
		message(header{kind: kindRead, length: 4096, sequence: 2, offset: 1 << 40}, ""),
		message(header{kind: kindFlush, sequence: 3}, ""),
		message(header{kind: kindData, length: 5, sequence: 2}, "world"),
		message(header{kind: kindDone, sequence: 3}, ""),
		message(header{kind: kindError, code: codeNoSpace, length: 4, sequence: 3}, "full"),
		message(header{kind: kindError, code: codeFenced}, ""),
		message(header{kind: kindAlive}, ""),
	}
}

// The bytes on the wire are those of the golden file.
func TestGoldenMessages(t *testing.T) {
	want, err := os.ReadFile("testdata/messages.hex")
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, m := range messages() {
		got.WriteString(hex.EncodeToString(m) + "\n")
	}
	if got.String() != string(want) {
		t.Errorf("messages differ from testdata/messages.hex; they are\n%s", got.String())
	}
}

// No single bit of a message can change unnoticed.
func TestFlippedBits(t *testing.T) {
	for i, m := range messages() {
		for bit := range 8 * len(m) {
			b := bytes.Clone(m)
			b[bit/8] ^= 1 << (bit % 8)
			if err := decodeAny(b); err == nil {
				t.Errorf("message %d with bit %d flipped is accepted", i, bit)
			}
		}
		if err := decodeAny(m); err != nil {
			t.Errorf("message %d: %v", i, err)
		}
	}
}

// decodeAny decodes a message by its length or, for most, header and all.
func decodeAny(b []byte) error {
	switch len(b) {
	case helloSize:
		return new(hello).decode(b)
	case welcomeSize:
		return new(welcome).decode(b)
	}
	var h header
	if err := h.decode(b); err != nil {
		return err
	}
	if h.follows() != len(b)-headerSize {
		return errors.New("length")
	}
	return h.verify(b[headerSize:])
}

// Headers with a good checksum and nonsense in them.
func TestHeaderRefuses(t *testing.T) {
	for name, h := range map[string]header{
		"kind 0":             {},
		"unknown kind":       {kind: 8},
		"long write":         {kind: kindWrite, length: maxData + 1},
		"long read":          {kind: kindRead, length: math.MaxUint32},
		"long error":         {kind: kindError, code: codeRead, length: maxText + 1},
		"empty write":        {kind: kindWrite},
		"empty read":         {kind: kindRead},
		"flush with data":    {kind: kindFlush, length: 1},
		"flush with offset":  {kind: kindFlush, offset: 1},
		"negative offset":    {kind: kindWrite, length: 1, offset: -1},
		"end past the range": {kind: kindRead, length: 2, offset: math.MaxInt64 - 1},
		"error without code": {kind: kindError},
		"code without error": {kind: kindWrite, length: 1, code: codeRead},
		"numbered alive":     {kind: kindAlive, sequence: 1},
	} {
		b := make([]byte, headerSize)
		h.encode(b, nil)
		if err := new(header).decode(b); !errors.Is(err, errProtocol) {
			t.Errorf("%s: %v, want errProtocol", name, err)
		}
	}
}

// What decodes encodes to the same bytes.
func FuzzDecode(f *testing.F) {
	for _, m := range messages() {
		f.Add(m)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var h header
		if len(b) >= headerSize && h.decode(b) == nil {
			got := make([]byte, headerSize)
			h.encodeSum(got)
			if !bytes.Equal(got, b[:headerSize]) {
				t.Errorf("header %x encodes to %x", b[:headerSize], got)
			}
		}
		var hi hello
		if hi.decode(b) == nil && !bytes.Equal(hi.encode(), b) {
			t.Errorf("hello %x encodes to %x", b, hi.encode())
		}
		var w welcome
		if w.decode(b) == nil && !bytes.Equal(w.encode(), b) {
			t.Errorf("welcome %x encodes to %x", b, w.encode())
		}
	})
}
