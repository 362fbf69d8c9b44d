package image

import (
	"fmt"
	"io"
	"path"
	"strings"
)

// An archive writes an initramfs: a cpio archive of the "newc" format, as described in
// the kernel's Documentation/driver-api/early-userspace/buffer-format.rst. Every file
// belongs to root.
type archive struct {
	w    io.Writer
	seen map[string]bool
	err  error // the first one
}

const (
	modeDir     = 0o040755
	modeRegular = 0o100000
	modeProgram = modeRegular | 0o755
	modeLink    = 0o120777
	modeConsole = 0o020600
)

func newArchive(w io.Writer) *archive { return &archive{w: w, seen: map[string]bool{".": true}} }

// file adds a file, and the directories above it, unless the name is taken.
func (a *archive) file(name string, content []byte) { a.add(name, modeProgram, content, 0, 0) }

// link adds a symbolic link.
func (a *archive) link(name, target string) { a.add(name, modeLink, []byte(target), 0, 0) }

// dir adds a directory.
func (a *archive) dir(name string) { a.add(name, modeDir, nil, 0, 0) }

func (a *archive) add(name string, mode int, content []byte, major, minor int) {
	name = path.Clean(strings.TrimPrefix(name, "/"))
	if a.seen[name] {
		return
	}
	a.seen[name] = true
	if parent := path.Dir(name); !a.seen[parent] {
		a.dir(parent)
	}
	a.entry(name, mode, content, major, minor)
}

func (a *archive) entry(name string, mode int, content []byte, major, minor int) {
	const uid, gid, links, mtime, dev, sum = 0, 0, 1, 0, 0, 0
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		len(a.seen), mode, uid, gid, links, mtime, len(content), dev, dev, major, minor, len(name)+1, sum)
	a.write([]byte(header + name + "\x00"))
	a.pad(len(header) + len(name) + 1)
	a.write(content)
	a.pad(len(content))
}

// pad fills up to a multiple of four bytes.
func (a *archive) pad(n int) { a.write(make([]byte, -n&3)) }

func (a *archive) write(b []byte) {
	if a.err == nil {
		_, a.err = a.w.Write(b)
	}
}

// close ends the archive. Another one may follow it in the same file.
func (a *archive) close() error {
	a.entry("TRAILER!!!", 0, nil, 0, 0)
	return a.err
}
