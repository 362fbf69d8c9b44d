package main

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/rpmemfs/rpmemfs/internal/doctor"
)

// Every command tells people what it does, with an example that names it.
func TestHelp(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			walk(sub)
		}
		if !c.Runnable() {
			return
		}
		if c.Short == "" || c.Long == "" || !strings.Contains(c.Example, c.CommandPath()) {
			t.Errorf("%s lacks a short or long text, or an example of itself", c.CommandPath())
		}
	}
	walk(newRoot(newApp(nil, nil, nil)))
	for _, topic := range []string{"exit-codes", "json", "paths"} {
		if out := mustCtl(t, "help", topic); len(out) < 100 {
			t.Errorf("help %s: got %q", topic, out)
		}
	}
}

// The help of --json names every field of every object.
func TestHelpNamesFields(t *testing.T) {
	for _, v := range []any{
		fileJSON{}, listJSON{}, checkpointJSON{}, commitAllJSON{}, checkpointsJSON{}, keptCheckpointJSON{}, removedJSON{},
		rollbackJSON{}, refreshJSON{}, refreshedJSON{}, restoreJSON{}, exportJSON{}, checkJSON{}, problemJSON{}, statusJSON{}, poolJSON{}, versionJSON{},
		heapCheckJSON{}, heapProblemJSON{}, heapStatJSON{}, heapClassJSON{}, heapSpansJSON{},
		certificatesJSON{}, certificateJSON{}, sharesJSON{}, shareJSON{}, changedShareJSON{}, leasesJSON{}, doctorJSON{}, doctor.Finding{}, shareLeaseJSON{}, endedJSON{},
	} {
		typ := reflect.TypeOf(v)
		for i := range typ.NumField() {
			name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			if name == "" {
				continue
			}
			if !regexp.MustCompile(`\b` + name + `\b`).MatchString(jsonHelp) {
				t.Errorf("%s of %v is not in the help", name, typ)
			}
		}
	}
}

// Lines of mountinfo, with what the kernel escapes.
func TestParseMount(t *testing.T) {
	for _, tt := range []struct {
		line string
		want mountPoint
		ok   bool
	}{
		{`36 25 0:42 / /mnt/a\040b rw,nosuid - fuse.rpmemfs /pools/x\134y rw,user_id=0`, mountPoint{"/mnt/a b", `/pools/x\y`, "36"}, true},
		{`36 25 0:42 / /mnt rw shared:1 master:2 - fuse.rpmemfs /p rw`, mountPoint{"/mnt", "/p", "36"}, true},
		{`36 25 0:42 / /mnt rw - fuse.sshfs host: rw`, mountPoint{}, false},
		{`36 25 0:42 - fuse.rpmemfs`, mountPoint{}, false},
		{``, mountPoint{}, false},
	} {
		if got, ok := parseMount(tt.line); got != tt.want || ok != tt.ok {
			t.Errorf("%q: got %+v, %v; want %+v, %v", tt.line, got, ok, tt.want, tt.ok)
		}
	}
}

func TestShellQuote(t *testing.T) {
	for in, want := range map[string]string{
		"/mnt/a-b_c.1": "/mnt/a-b_c.1",
		"":             "''",
		"a b":          "'a b'",
		"it's":         `'it'\''s'`,
		"$(rm)":        "'$(rm)'",
	} {
		if got := shellQuote(in); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
}

// The names of packages are left out of messages, other words are not.
func TestPlain(t *testing.T) {
	for in, want := range map[string]string{
		"pki: issue x: pki: exists already":     "issue x: exists already",
		"region: memnode: no":                   "no",
		"open /etc/pki: no such file":           "open /etc/pki: no such file",
		"a: region: b region: c":                "a: b region: c",
		"heap: control: unknown: media: broken": "heap: unknown: broken",
	} {
		if got := plain(errors.New(in)); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestSizeFlag(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "4096": 4096, "4k": 4096, "2M": 2 << 20, "1.5GiB": 3 << 29, "1G": 1 << 30, "64MB": 64e6,
	} {
		var s sizeFlag
		if err := s.Set(in); err != nil || int64(s) != want {
			t.Errorf("%q: got %d, %v; want %d", in, s, err, want)
		}
	}
	for _, in := range []string{"", "-1", "k", "lots", "1e30", "9E", "99999999999P"} {
		var s sizeFlag
		if err := s.Set(in); err == nil {
			t.Errorf("%q: got %d, want an error", in, s)
		}
	}
}

// memFile is a newFile that counts what is written.
type memFile struct {
	data    []byte
	written int
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	if end := int(off) + len(p); end > len(f.data) {
		f.data = append(f.data, make([]byte, end-len(f.data))...)
	}
	f.written += len(p)
	return copy(f.data[off:], p), nil
}

func (f *memFile) Truncate(size int64) error {
	f.data = append(f.data, make([]byte, max(0, int(size)-len(f.data)))...)[:size]
	return nil
}
func (f *memFile) Sync() error  { return nil }
func (f *memFile) Close() error { return nil }

// An imported stream keeps every byte and drops zero pages.
func TestFillStream(t *testing.T) {
	rng := rand.New(rand.NewPCG(*seed, 0))
	a := newApp(nil, nil, nil)
	for _, size := range []int{0, 1, pageSize, 3*pageSize - 1, 1<<20 + 5, 3 << 20} {
		in := make([]byte, size)
		pages := 0
		for at := 0; at < size; at += pageSize * (1 + rng.IntN(4)) {
			in[min(at+rng.IntN(pageSize), size-1)] = 1
			pages++
		}
		var f memFile
		if err := a.fill(t.Context(), &f, bytes.NewReader(in)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(f.data, in) {
			t.Errorf("size %d: the file differs (-seed %d)", size, *seed)
		}
		if f.written > pages*pageSize {
			t.Errorf("size %d: %d bytes written, want at most %d pages (-seed %d)", size, f.written, pages, *seed)
		}
	}
}
