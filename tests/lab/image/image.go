// Package image makes what a guest boots: an uncompressed kernel, and an initramfs that
// is the guest's whole root file system.
//
// Base makes the parts that come from Debian packages, once. Boot adds the programs
// under test, which change with every run.
package image

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// A Spec says what is in an image.
type Spec struct {
	Kernel   string   // root of an unpacked kernel package
	Userland string   // root of unpacked packages
	Modules  []string // kernel modules, loaded in this order, each after what it needs
	Programs []string // paths of programs in Userland
	Files    []string // paths of other files in Userland
	Plugins  []string // patterns of libraries that programs load by themselves
}

// ModuleDir has the modules of a guest in the order in which they are to be loaded, as
// 000-NAME.ko and so on.
const ModuleDir = "lib/modules"

// A Base is an image without the programs under test.
type Base struct {
	Kernel string // path of the kernel's ELF file
	Initrd string // path of the initramfs
}

// version counts what Build has made of the same Spec.
const version = 2

// Build returns the image of s, made below dir unless it is there.
func Build(ctx context.Context, dir string, s Spec) (Base, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return Base{}, err
	}
	sum := sha256.Sum256(fmt.Appendf(text, "%d", version))
	dir = filepath.Join(dir, "image-"+hex.EncodeToString(sum[:4]))
	b := Base{Kernel: filepath.Join(dir, "vmlinux"), Initrd: filepath.Join(dir, "initrd.cpio")}
	if _, err := os.Stat(dir); err == nil {
		return b, nil
	}
	unfinished, err := os.MkdirTemp(filepath.Dir(dir), filepath.Base(dir)+".unfinished-")
	if err != nil {
		return Base{}, err
	}
	err = s.build(ctx, unfinished)
	if err == nil {
		err = os.Rename(unfinished, dir)
	}
	if err != nil {
		return Base{}, fmt.Errorf("image: %w", errors.Join(err, os.RemoveAll(unfinished)))
	}
	return b, nil
}

func (s Spec) build(ctx context.Context, dir string) error {
	k, err := openKernel(s.Kernel)
	if err != nil {
		return err
	}
	vmlinux, err := k.unpacked(ctx)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "vmlinux"), vmlinux, 0o644); err != nil {
		return err
	}
	modules, err := k.closure(ctx, s.Modules)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, "initrd.cpio"), func(w io.Writer) error {
		a := newArchive(w)
		for _, name := range []string{"proc", "sys", "dev", "tmp", "run", "root", "mnt", "etc"} {
			a.dir(name)
		}
		a.add("dev/console", modeConsole, nil, 5, 1)
		// Since Debian 13 packages have everything below /usr.
		for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
			a.link(name, "usr/"+name)
		}
		for i, m := range modules {
			a.file(path.Join("usr", ModuleDir, fmt.Sprintf("%03d-%s.ko", i, m.name)), m.code)
		}
		if err := s.copyUserland(&userland{root: s.Userland, out: a}); err != nil {
			return err
		}
		for name, text := range map[string]string{
			"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
			"etc/group":  "root:x:0:\n",
			"etc/hosts":  "127.0.0.1 localhost\n",
		} {
			a.file(name, []byte(text))
		}
		return a.close()
	})
}

func (s Spec) copyUserland(u *userland) error {
	programs := append([]string{"usr/lib64/ld-linux-x86-64.so.2"}, s.Programs...)
	for _, pattern := range s.Plugins {
		found, err := filepath.Glob(filepath.Join(u.root, pattern))
		if err != nil || len(found) == 0 {
			return fmt.Errorf("%s: no such library, %v", pattern, err)
		}
		for _, path := range found {
			programs = append(programs, strings.TrimPrefix(path, u.root+"/"))
		}
	}
	for _, program := range programs {
		if err := u.program(program); err != nil {
			return err
		}
	}
	for _, file := range s.Files {
		if err := u.file(file); err != nil {
			return err
		}
	}
	return nil
}

// Boot writes an initramfs that has files, from guest path to host path, besides what b
// has. Their modes are those on the host.
func (b Base) Boot(path string, files map[string]string) error {
	return writeFile(path, func(w io.Writer) error {
		base, err := os.Open(b.Initrd)
		if err != nil {
			return err
		}
		defer func() { _ = base.Close() }() // only read
		if _, err := io.Copy(w, base); err != nil {
			return err
		}
		a := newArchive(w)
		for name, from := range files {
			content, err := os.ReadFile(from)
			if err != nil {
				return err
			}
			st, err := os.Stat(from)
			if err != nil {
				return err
			}
			a.add(name, modeRegular|int(st.Mode().Perm()), content, 0, 0)
		}
		return a.close()
	})
}

func writeFile(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	if err := write(w); err != nil {
		return errors.Join(err, f.Close())
	}
	return errors.Join(w.Flush(), f.Close())
}
