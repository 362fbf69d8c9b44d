package verbs

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"strings"
	"testing"
)

// sealed is m as it is sent.
func sealed(m message) []byte {
	b := make([]byte, messageSize)
	return b[:m.encode(b)]
}

// messages is one of each kind.
func messages() [][]byte {
	return [][]byte{
		sealed(message{kind: kindMap, id: 1, off: 1 << 40}),
		sealed(message{kind: kindMapped, id: 1, extent: extent{1 << 40, 1<<40 + 1<<20, 0x7f0000001000, 17}}),
		sealed(message{kind: kindPersist, id: 2, ranges: []place{{4096, 64}, {1 << 40, 1 << 20}}}),
		sealed(message{kind: kindDone, id: 2}),
		sealed(message{kind: kindError, code: codeRange, id: 3, text: "not here"}),
	}
}

// greetings is one of each kind that goes along with a connection.
func greetings() [][]byte {
	return [][]byte{
		(&hello{flushes: true, token: [32]byte{0: 1, 31: 2}, stream: 3, attempt: 4}).encode(),
		(&hello{wants: true, token: [32]byte{5}, stream: 6, attempt: 7}).encode(),
		(&welcome{method: ByFlush, credits: 8, kind: "dax"}).encode(),
		(&welcome{method: ByRead, volatile: true, readOnly: true, credits: 8, kind: "tmpfs"}).encode(),
		(&refusal{codeFenced, "over"}).encodeReject(),
	}
}

func frames() [][]byte {
	var all [][]byte
	for _, f := range []struct {
		data    string
		credits int
		flags   uint16
	}{{"hello", 0, 0}, {"", 16, 0}, {"", 0, frameEnd}} {
		b := make([]byte, frameHeader, frameHeader+len(f.data))
		encodeFrame(b, len(f.data), f.credits, f.flags)
		all = append(all, append(b, f.data...))
	}
	return all
}

// The bytes on the wire are those of the golden file.
func TestGoldenMessages(t *testing.T) {
	want, err := os.ReadFile("testdata/messages.hex")
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, m := range append(append(greetings(), messages()...), frames()...) {
		got.WriteString(hex.EncodeToString(m) + "\n")
	}
	if got.String() != string(want) {
		t.Errorf("messages differ from testdata/messages.hex; they are\n%s", got.String())
	}
}

// decodeGreeting decodes what goes along with a connection, and encodes it again.
func decodeGreeting(b []byte) ([][]byte, error) {
	var h hello
	var w welcome
	var r refusal
	var again [][]byte
	errH, errW, errR := h.decode(b), w.decode(b), r.decodeReject(b)
	if errH == nil {
		again = append(again, h.encode())
	}
	if errW == nil {
		again = append(again, w.encode())
	}
	if errR == nil {
		again = append(again, r.encodeReject())
	}
	if len(again) == 0 {
		return nil, errors.Join(errH, errW, errR)
	}
	return again, nil
}

// No single bit of a message can change unnoticed.
func TestFlippedBits(t *testing.T) {
	for _, b := range messages() {
		for bit := range 8 * len(b) {
			x := bytes.Clone(b)
			x[bit/8] ^= 1 << (bit % 8)
			if err := new(message).decode(x); err == nil {
				t.Errorf("message %x with bit %d flipped is accepted", b, bit)
			}
		}
	}
	for _, b := range greetings() {
		for bit := range 8 * len(b) {
			x := bytes.Clone(b)
			x[bit/8] ^= 1 << (bit % 8)
			if _, err := decodeGreeting(x); err == nil {
				t.Errorf("greeting %x with bit %d flipped is accepted", b, bit)
			}
		}
		// A connection manager may hand over more than was sent.
		if again, err := decodeGreeting(append(bytes.Clone(b), 0, 0, 0)); err != nil || !bytes.Equal(again[0], b) {
			t.Errorf("greeting %x with zeros behind it: %x, %v", b, again, err)
		}
	}
}

func FuzzMessageDecode(f *testing.F) {
	for _, b := range messages() {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= headerSize && len(b) <= messageSize {
			b = bytes.Clone(b) // the checksum would keep everything else out
			putMessageSum(b)
		}
		var m message
		if m.decode(b) == nil && !bytes.Equal(sealed(m), b) {
			t.Errorf("%x is %+v, which is %x", b, m, sealed(m))
		}
	})
}

func FuzzGreetingDecode(f *testing.F) {
	for _, b := range greetings() {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, size := range []int{helloSize, welcomeSize, rejectSize} {
			if len(b) < size {
				continue
			}
			b := bytes.Clone(b)
			seal(b[:size])
			again, err := decodeGreeting(b)
			if err == nil && !bytes.Equal(again[0][:size], b[:size]) {
				t.Errorf("%x is %x", b, again[0])
			}
		}
		_, _ = decodeGreeting(b) // it does not panic
	})
}
