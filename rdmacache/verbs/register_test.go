package verbs

import (
	"errors"
	"fmt"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/conntest"
	"github.com/rpmemfs/rpmemfs/region"
)

// pickyDomain registers nothing that has the page at byte bad of mem.
type pickyDomain struct {
	Domain
	mem []byte
	bad int
	err error
}

func (d *pickyDomain) Register(mem []byte, _ Access) (MR, error) {
	start := int(uintptr(unsafe.Pointer(&mem[0])) - uintptr(unsafe.Pointer(&d.mem[0])))
	if start <= d.bad && d.bad < start+len(mem) {
		return nil, fmt.Errorf("register: %w", d.err)
	}
	return fakeMR{new(fakeDevice)}, nil
}

type storeSession struct{ *conntest.Store }

func (storeSession) ReadOnly() bool { return false }

// A page that cannot be registered costs no other. Who needs it is told so, rather than to
// come again.
func TestRegisterAroundBadPage(t *testing.T) {
	const size, bad = 1 << 20, 77 * region.PageSize
	dax, tmpfs := rdmacache.Medium{Kind: "dax"}, rdmacache.Medium{Kind: "tmpfs", Volatile: true}
	for _, c := range []struct {
		name   string
		medium rdmacache.Medium
		err    error
		want   code
		others bool // can be reached
	}{
		{"hole in a full tmpfs", tmpfs, unix.EFAULT, codeNoSpace, true},
		{"poisoned", dax, unix.EHWPOISON, codeRange, true},
		{"fault", dax, unix.EFAULT, codeRange, true},
		{"full", dax, unix.ENOSPC, codeNoSpace, false},
		{"device", dax, unix.EIO, codeUnavailable, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := conntest.NewStore(size, c.medium)
			w := &window{session: storeSession{s}, mem: s.Bytes(), domain: &pickyDomain{mem: s.Bytes(), bad: bad, err: c.err}}
			for off := int64(0); off < size; off += region.PageSize {
				x, err := w.reach(off + 5)
				if off == bad || !c.others {
					if got := codeOf(err, codeUnavailable); err == nil || got != c.want || !errors.Is(err, c.err) && c.want != codeRange {
						t.Fatalf("reach page at %d = %v, code %d; want code %d", off, err, got, c.want)
					}
				} else if err != nil || x.start > off || x.end < off+region.PageSize {
					t.Fatalf("reach page at %d = %+v, %v", off, x, err)
				}
			}
			if n := len(w.mappings); n > 20 || c.others && n < 2 {
				t.Errorf("%d mappings", n)
			}
		})
	}
}

// limitedDomain registers so many bytes, and no more.
type limitedDomain struct {
	Domain
	left int
}

type limitedMR struct {
	fakeMR
	domain *limitedDomain
	n      int
}

func (d *limitedDomain) Register(mem []byte, _ Access) (MR, error) {
	if len(mem) > d.left {
		return nil, fmt.Errorf("register %d bytes: %w", len(mem), unix.ENOMEM)
	}
	d.left -= len(mem)
	return limitedMR{fakeMR{new(fakeDevice)}, d, len(mem)}, nil
}

func (m limitedMR) Close() error { m.domain.left += m.n; return nil }

// A limit of locked memory is used up to the last few pages, in smaller and smaller parts.
func TestRegisterUpToLimit(t *testing.T) {
	const size, limit = 64 << 20, 40<<20 + 1
	s := conntest.NewStore(size, rdmacache.Medium{Kind: "dax"})
	d := &limitedDomain{left: limit}
	w := &window{session: wholeSession{storeSession{s}}, mem: s.Bytes(), domain: d}
	got := int64(0)
	for off := int64(0); ; {
		x, err := w.reach(off)
		if errors.Is(err, unix.ENOMEM) {
			break
		}
		if err != nil || x.start > off || x.end <= off {
			t.Fatalf("reach %d = %+v, %v", off, x, err)
		}
		got += x.end - off
		off = x.end
	}
	if d.left >= minChunk || got <= limit-minChunk || len(w.mappings) > 8 {
		t.Errorf("%d bytes in %d parts, %d left", got, len(w.mappings), d.left)
	}
	w.Revoke(0, size)
	if d.left != limit || w.mapped.Load() != 0 {
		t.Errorf("%d bytes are still registered", limit-d.left)
	}
}

// wholeSession lets all be reached at once.
type wholeSession struct{ storeSession }

func (s wholeSession) Extent(int64) (start, end int64, err error) {
	return 0, int64(len(s.Bytes())), nil
}
