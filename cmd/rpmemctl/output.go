package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
)

// print writes v as JSON, or calls human.
func (a *app) print(v any, human func(w io.Writer)) error {
	if a.json {
		e := json.NewEncoder(a.out)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(v)
	}
	w := &errWriter{w: a.out}
	human(w)
	return w.err
}

// An errWriter keeps the first error.
type errWriter struct {
	w   io.Writer
	err error
}

func (e *errWriter) Write(p []byte) (int, error) {
	if e.err != nil {
		return 0, e.err
	}
	n, err := e.w.Write(p)
	e.err = err
	return n, err
}

// table aligns columns. Cells are separated by tabs and a row ends with a newline.
func table(w io.Writer, fill func(w io.Writer)) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fill(t)
	_ = t.Flush() // errWriter keeps it
}

// fields prints name and value pairs, one a line; an empty value leaves its line
// out.
func fields(w io.Writer, pairs ...string) {
	table(w, func(w io.Writer) {
		for i := 0; i+1 < len(pairs); i += 2 {
			if pairs[i+1] != "" {
				fmt.Fprintf(w, "%s:\t%s\n", pairs[i], pairs[i+1])
			}
		}
	})
}

// A fileJSON is a file as --json shows it.
type fileJSON struct {
	Path              string  `json:"path"`
	Name              string  `json:"name,omitempty"`
	Ino               uint64  `json:"ino"`
	Type              string  `json:"type"`
	Mode              string  `json:"mode"`
	UID               uint32  `json:"uid"`
	GID               uint32  `json:"gid"`
	Nlink             uint32  `json:"nlink"`
	Size              *uint64 `json:"size,omitempty"`
	Pages             *uint64 `json:"pages,omitempty"`
	Epoch             *uint64 `json:"epoch,omitempty"`
	DirtyPages        *uint64 `json:"dirty_pages,omitempty"`
	DirtyMappedPages  *uint64 `json:"dirty_mapped_pages,omitempty"`
	DirtyWrittenPages *uint64 `json:"dirty_written_pages,omitempty"`
	SizeChanged       *bool   `json:"size_changed,omitempty"`
	GrantedBytes      *uint64 `json:"granted_bytes,omitempty"`
	SpareBytes        *uint64 `json:"spare_bytes,omitempty"`
	Checkpoints       *uint32 `json:"checkpoints,omitempty"`
	Handles           *uint32 `json:"handles,omitempty"`
	Attached          *uint32 `json:"attached,omitempty"`
	OnClose           string  `json:"on_close,omitempty"`
	Mtime             string  `json:"mtime"`
	Poisoned          string  `json:"poisoned,omitempty"`
	Error             string  `json:"error,omitempty"`
}

// describe puts a file into its JSON form. failed is why its region could not be
// asked; empty if it could.
func describe(path string, f *controlpb.File, failed string) fileJSON {
	j := fileJSON{
		Path:  path,
		Ino:   f.GetIno(),
		Type:  fileType(f.GetMode()),
		Mode:  modeText(f.GetMode()),
		UID:   f.GetUid(),
		GID:   f.GetGid(),
		Nlink: f.GetNlink(),
		Mtime: jsonTime(f.GetMtime()),
		Error: failed,
	}
	if j.Type != "file" || failed != "" {
		return j
	}
	dirty := f.GetDirtyMappedPages() + f.GetDirtyWrittenPages()
	j.Size, j.Pages, j.Epoch = &f.Size, &f.Pages, &f.Epoch
	j.DirtyPages, j.DirtyMappedPages, j.DirtyWrittenPages = &dirty, &f.DirtyMappedPages, &f.DirtyWrittenPages
	j.SizeChanged, j.GrantedBytes, j.SpareBytes = &f.SizeChanged, &f.GrantedBytes, &f.SpareBytes
	j.Checkpoints, j.Handles, j.Attached = &f.Checkpoints, &f.Handles, &f.Attached
	j.OnClose, j.Poisoned = f.GetOnClose(), f.GetPoisoned()
	return j
}

// fileType names the type bits of a mode.
func fileType(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "dir"
	case unix.S_IFLNK:
		return "symlink"
	}
	return "other"
}

// modeText is a mode as ls -l shows it, without set-ID bits.
func modeText(mode uint32) string {
	b := []byte("?rwxrwxrwx")
	types := map[uint32]byte{
		unix.S_IFREG: '-', unix.S_IFDIR: 'd', unix.S_IFLNK: 'l',
		unix.S_IFIFO: 'p', unix.S_IFSOCK: 's', unix.S_IFBLK: 'b', unix.S_IFCHR: 'c',
	}
	if c, ok := types[mode&unix.S_IFMT]; ok {
		b[0] = c
	}
	for i := range 9 {
		if mode>>(8-i)&1 == 0 {
			b[1+i] = '-'
		}
	}
	return string(b)
}

func jsonTime(ns int64) string { return time.Unix(0, ns).UTC().Format(time.RFC3339Nano) }

func (a *app) time(ns int64) string {
	if ns == 0 {
		return "-"
	}
	return time.Unix(0, ns).In(a.location).Format("2006-01-02 15:04:05")
}

// size is a number of bytes for people.
func size(n uint64) string { return humanize.IBytes(n) }

// exactSize is size and the exact number beside it.
func exactSize(n uint64) string {
	if n < 1024 {
		return plural(n, "byte")
	}
	return fmt.Sprintf("%s (%s bytes)", size(n), number(n))
}

func number(n uint64) string {
	if n > 1<<62 {
		return fmt.Sprint(n)
	}
	return humanize.Comma(int64(n))
}

func plural(n uint64, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return number(n) + " " + noun + "s"
}

// clean makes a name safe for a terminal.
func clean(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Sprintf("%q", s)
	}
	return s
}
