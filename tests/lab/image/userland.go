package image

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// libDir is where Debian has its libraries.
const libDir = "usr/lib/x86_64-linux-gnu"

// A userland copies programs from an unpacked tree of packages into an archive, with
// the libraries that they need.
type userland struct {
	root string
	out  *archive
}

// file copies the file at path, which may be a symbolic link inside of the tree, under
// that name.
func (u *userland) file(path string) error {
	content, err := os.ReadFile(filepath.Join(u.root, path))
	if err != nil {
		return err
	}
	u.out.file(path, content)
	return nil
}

// program copies an ELF file and its libraries.
func (u *userland) program(path string) error {
	if u.out.seen[path] {
		return nil
	}
	if err := u.file(path); err != nil {
		return err
	}
	libraries, err := importedLibraries(filepath.Join(u.root, path))
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, name := range libraries {
		if err := u.library(name); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// library copies a shared library by its soname.
func (u *userland) library(soname string) error {
	err := u.program(filepath.Join(libDir, soname))
	if errors.Is(err, fs.ErrNotExist) && slices.Contains([]string{"ld-linux-x86-64.so.2"}, soname) {
		return nil // the dynamic linker has a place of its own
	}
	return err
}

func importedLibraries(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	return f.ImportedLibraries()
}
