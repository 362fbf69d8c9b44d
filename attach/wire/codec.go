package wire

import (
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// maxErrno is the largest errno of Linux.
const maxErrno = 4095

// putHeader appends a header whose length setLength fills in.
func putHeader(b []byte, k kind) []byte {
	b = binary.LittleEndian.AppendUint32(b, magic)
	b = binary.LittleEndian.AppendUint16(b, version)
	b = binary.LittleEndian.AppendUint16(b, uint16(k))
	return append(b, 0, 0, 0, 0, 0, 0, 0, 0)
}

func decodeHeader(b []byte) (kind, error) {
	if len(b) < headerSize || len(b) > MaxMessage {
		return 0, fmt.Errorf("%w: %d bytes", ErrMalformed, len(b))
	}
	if binary.LittleEndian.Uint32(b) != magic {
		return 0, fmt.Errorf("%w: magic", ErrMalformed)
	}
	if v := binary.LittleEndian.Uint16(b[4:]); v != version {
		return 0, fmt.Errorf("%w: version %d, want %d", ErrMalformed, v, version)
	}
	if n := binary.LittleEndian.Uint32(b[8:]); n != uint32(len(b)) {
		return 0, fmt.Errorf("%w: %d bytes, its header says %d", ErrMalformed, len(b), n)
	}
	if binary.LittleEndian.Uint32(b[12:]) != 0 {
		return 0, fmt.Errorf("%w: header: reserved bytes", ErrMalformed)
	}
	return kind(binary.LittleEndian.Uint16(b[6:])), nil
}

// A codec goes through the fields of a message in their order. It appends them to
// b, or takes them from the front of b. After the first error it does nothing.
type codec struct {
	b        []byte
	encoding bool
	err      error
}

func (c *codec) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
	}
}

// take returns the next n bytes when decoding; nil after an error.
func (c *codec) take(n int) []byte {
	if c.err == nil && len(c.b) < n {
		c.fail("too short")
	}
	if c.err != nil {
		return nil
	}
	b := c.b[:n]
	c.b = c.b[n:]
	return b
}

func (c *codec) u64(v *uint64) {
	if c.encoding {
		c.b = binary.LittleEndian.AppendUint64(c.b, *v)
	} else if b := c.take(8); b != nil {
		*v = binary.LittleEndian.Uint64(b)
	}
}

func (c *codec) u32(v *uint32) {
	if c.encoding {
		c.b = binary.LittleEndian.AppendUint32(c.b, *v)
	} else if b := c.take(4); b != nil {
		*v = binary.LittleEndian.Uint32(b)
	}
}

// zero is a reserved u32.
func (c *codec) zero() {
	var v uint32
	if c.u32(&v); v != 0 {
		c.fail("reserved bytes")
	}
}

// bool is a u32 of 0 or 1.
func (c *codec) bool(v *bool) {
	var u uint32
	if *v {
		u = 1
	}
	if c.u32(&u); u > 1 {
		c.fail("boolean %d", u)
	}
	*v = u == 1
}

// errno is an i32 that is 0 or a negative errno.
func (c *codec) errno(v *unix.Errno) {
	u := uint32(-int32(*v))
	c.u32(&u)
	if e := -int64(int32(u)); e < 0 || e > maxErrno {
		c.fail("errno %d", -e)
	} else {
		*v = unix.Errno(e)
	}
}

// flags are a u32 of known bits.
func (c *codec) flags(v *Flags) {
	u := uint32(*v)
	if c.u32(&u); u&^uint32(allFlags) != 0 {
		c.fail("flags %#x", u)
	}
	*v = Flags(u)
}

// name is 16 bytes, padded with zeros.
func (c *codec) name(v *string) {
	if c.encoding {
		if len(*v) > MaxName || strings.ContainsRune(*v, 0) {
			c.fail("name %q", *v)
			return
		}
		c.b = append(c.b, *v...)
		c.b = append(c.b, make([]byte, MaxName+1-len(*v))...)
		return
	}
	b := c.take(MaxName + 1)
	text := strings.TrimRight(string(b), "\x00")
	if len(text) > MaxName || strings.ContainsRune(text, 0) {
		c.fail("name %q", b)
	}
	*v = text
}

// pages are a u32 count and as many u64.
func (c *codec) pages(v *[]uint64) {
	if c.encoding && len(*v) > MaxPages {
		c.fail("%d pages, at most %d", len(*v), MaxPages)
		return
	}
	n := uint32(len(*v))
	if c.u32(&n); n > MaxPages {
		c.fail("%d pages, at most %d", n, MaxPages)
		return
	}
	if c.encoding {
		for i := range *v {
			c.u64(&(*v)[i])
		}
		return
	}
	b := c.take(8 * int(n))
	if len(b) == 0 {
		return
	}
	*v = make([]uint64, n)
	for i := range *v {
		(*v)[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
}
