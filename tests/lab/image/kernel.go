package image

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// A kernel is an unpacked Debian kernel package.
type kernel struct {
	root    string
	modules string            // directory of the modules
	files   map[string]string // path of a module by its name
	builtin map[string]bool
}

func openKernel(root string) (*kernel, error) {
	found, err := filepath.Glob(filepath.Join(root, "usr/lib/modules/*"))
	if err == nil && len(found) == 0 {
		found, err = filepath.Glob(filepath.Join(root, "lib/modules/*")) // up to Debian 12
	}
	if err != nil || len(found) != 1 {
		return nil, fmt.Errorf("%s: want one kernel's modules, got %q, %v", root, found, err)
	}
	k := &kernel{root: root, modules: found[0], files: map[string]string{}, builtin: map[string]bool{}}
	err = filepath.WalkDir(filepath.Join(k.modules, "kernel"), func(path string, d fs.DirEntry, err error) error {
		if name, _, ok := strings.Cut(filepath.Base(path), ".ko"); ok && err == nil {
			k.files[moduleName(name)] = path
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	list, err := os.ReadFile(filepath.Join(k.modules, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	for line := range strings.FieldsSeq(string(list)) {
		k.builtin[moduleName(strings.TrimSuffix(filepath.Base(line), ".ko"))] = true
	}
	return k, nil
}

// moduleName maps a file's name to the module's: the kernel takes - and _ as the same.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// release is what uname -r says.
func (k *kernel) release() string { return filepath.Base(k.modules) }

// unpacked returns the kernel as an ELF file, which QEMU starts by its PVH entry: an
// emulated machine needs seconds to decompress a bzImage.
func (k *kernel) unpacked(ctx context.Context) ([]byte, error) {
	packed, err := os.ReadFile(filepath.Join(k.root, "boot/vmlinuz-"+k.release()))
	if err != nil {
		return nil, err
	}
	for _, format := range []struct {
		magic  string
		unpack []string
	}{
		{"\xfd7zXZ\x00", []string{"xz", "-dc"}},
		{"\x28\xb5\x2f\xfd", []string{"zstd", "-dcq"}},
		{"\x1f\x8b\x08", []string{"gzip", "-dc"}},
	} {
		// The magic may occur in the code before the payload, too.
		for from := 0; ; {
			at := bytes.Index(packed[from:], []byte(format.magic))
			if at < 0 {
				break
			}
			from += at
			cmd := exec.CommandContext(ctx, format.unpack[0], format.unpack[1:]...)
			cmd.Stdin = bytes.NewReader(packed[from:])
			out, err := cmd.Output() // fails at what follows the payload
			if bytes.HasPrefix(out, []byte("\x7fELF")) {
				return out, nil
			}
			if errors.Is(err, exec.ErrNotFound) {
				return nil, err
			}
			from++
		}
	}
	return nil, errors.New("no compressed ELF file in vmlinuz")
}

// A module is one kernel module, ready to be loaded.
type module struct {
	name string
	code []byte
}

var (
	dependencies = regexp.MustCompile(`\x00depends=([^\x00]*)`)
	// What is good to have before; often an alias, which several modules may have.
	wishes = regexp.MustCompile(`\x00softdep=pre: ?([^\x00]*)`)
)

// closure returns the modules with all they depend on, in an order in which they can
// be loaded. What is built into the kernel is left out.
func (k *kernel) closure(ctx context.Context, names []string) ([]module, error) {
	var order []module
	done := map[string]bool{}
	var visit func(name string) error
	visit = func(name string) error {
		name = moduleName(name)
		if done[name] || k.builtin[name] {
			return nil
		}
		done[name] = true
		code, err := k.module(ctx, name)
		if err != nil {
			return err
		}
		before := words(dependencies, code)
		for _, wish := range words(wishes, code) {
			if _, ok := k.files[moduleName(wish)]; ok {
				before = append(before, wish)
			}
		}
		for _, dependency := range before {
			if err := visit(dependency); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		order = append(order, module{name, code})
		return nil
	}
	for _, name := range names {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// words splits the lists of which a module has any number.
func words(list *regexp.Regexp, code []byte) []string {
	var all []string
	for _, match := range list.FindAllSubmatch(code, -1) {
		all = append(all, strings.FieldsFunc(string(match[1]), func(r rune) bool { return r == ',' || r == ' ' })...)
	}
	return all
}

// module reads a module and decompresses it. Its signature is left out: an emulated machine
// takes long to verify one.
func (k *kernel) module(ctx context.Context, name string) ([]byte, error) {
	path, ok := k.files[name]
	if !ok {
		return nil, fmt.Errorf("kernel %s has no module %s", k.release(), name)
	}
	var code []byte
	var err error
	switch filepath.Ext(path) {
	case ".xz":
		code, err = exec.CommandContext(ctx, "xz", "-dc", path).Output()
	case ".zst":
		code, err = exec.CommandContext(ctx, "zstd", "-dcq", path).Output()
	default:
		code, err = os.ReadFile(path)
	}
	return unsigned(code), err
}

// unsigned returns a module without the signature at its end (linux/include/linux/
// module_signature.h): that is followed by 12 bytes, of which the last 4 are its length,
// big-endian, and by a mark.
func unsigned(code []byte) []byte {
	const mark, trailer = "~Module signature appended~\n", 12
	rest, ok := bytes.CutSuffix(code, []byte(mark))
	if !ok || len(rest) < trailer {
		return code
	}
	size := int64(binary.BigEndian.Uint32(rest[len(rest)-4:]))
	if size > int64(len(rest)-trailer) {
		return code
	}
	return rest[:int64(len(rest)-trailer)-size]
}
