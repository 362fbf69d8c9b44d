package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// module is the root of the sources.
const module = "../.."

// build builds all that runs in guests, and returns the files by their place there.
func (l *lab) build(ctx context.Context) (map[string]string, error) {
	env, err := l.rdmaEnvironment()
	if err != nil {
		return nil, err
	}
	static := append(os.Environ(), "CGO_ENABLED=0")
	files := map[string]string{}
	for _, b := range []struct {
		name string // in the guest
		env  []string
		argv []string // OUT stands for the file to be made
	}{
		{"init", static, []string{"go", "build", "-ldflags=-s -w", "-o", "OUT", "./tests/lab/guest"}},
		{"lab/rpmemfs", static, []string{"go", "build", "-ldflags=-s -w", "-o", "OUT", "./cmd/rpmemfs"}},
		{"lab/rpmemctl", static, []string{"go", "build", "-ldflags=-s -w", "-o", "OUT", "./cmd/rpmemctl"}},
		{"lab/bank", nil, []string{"gcc", "-std=c11", "-O2", "-static", "-o", "OUT", "examples/bank/bank.c"}},
		{"lab/epochs", nil, []string{"gcc", "-std=c11", "-O2", "-Wall", "-Wextra", "-static", "-o", "OUT", "tests/lab/c/epochs.c"}},
		{"lab/tsc", nil, []string{"gcc", "-std=c11", "-O2", "-Wall", "-Wextra", "-o", "OUT", "tests/lab/c/tsc.c"}},
		{"lab/flush", nil, append([]string{"gcc", "-std=c11", "-O2", "-Wall", "-Wextra", "-o", "OUT", "tests/lab/c/flush.c"}, l.rdmaFlags("-libverbs", "-lrdmacm")...)},
	} {
		out := filepath.Join(l.dir, filepath.Base(b.name))
		for i := range b.argv {
			if b.argv[i] == "OUT" {
				b.argv[i] = out
			}
		}
		cmd := exec.CommandContext(ctx, b.argv[0], b.argv[1:]...)
		cmd.Dir, cmd.Env = module, b.env
		if text, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w:\n%s", strings.Join(b.argv, " "), err, text)
		}
		files[b.name] = out
	}
	_ = env
	ticks, err := exec.CommandContext(ctx, files["lab/tsc"]).Output()
	if err == nil {
		l.tsc, err = strconv.Atoi(strings.TrimSpace(string(ticks)))
	}
	return files, errors.Join(err, l.certify(ctx, files))
}

// certify makes certificates of the nodes and adds them to files.
func (l *lab) certify(ctx context.Context, files map[string]string) error {
	pki := filepath.Join(l.dir, "pki")
	for _, args := range [][]string{
		{"init", pki},
		{"issue", pki, "node", "--host", nodeHost},
		{"issue", pki, "c", "--share", "bank"},
	} {
		out, err := exec.CommandContext(ctx, files["lab/rpmemctl"], append([]string{"pki"}, args...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("rpmemctl pki %s: %w: %s", args[0], err, out)
		}
	}
	return filepath.WalkDir(pki, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files["pki"+strings.TrimPrefix(path, pki)] = path
		}
		return err
	})
}

// rdmaEnvironment returns the environment in which cgo finds the guests' rdma-core.
func (l *lab) rdmaEnvironment() ([]string, error) {
	include, lib := filepath.Join(l.dir, "include"), filepath.Join(l.dir, "lib")
	for _, dir := range []string{include, lib} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, err
		}
	}
	// Only these headers, and not those of the guests' C library beside them.
	for _, name := range []string{"infiniband", "rdma"} {
		if err := os.Symlink(filepath.Join(l.userland, "usr/include", name), filepath.Join(include, name)); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{"libibverbs", "librdmacm"} {
		from, err := filepath.Glob(filepath.Join(l.userland, "usr/lib/x86_64-linux-gnu", name+".so.1"))
		if err != nil || len(from) != 1 {
			return nil, fmt.Errorf("%s is not in the userland, %v", name, err)
		}
		if err := os.Symlink(from[0], filepath.Join(lib, name+".so")); err != nil {
			return nil, err
		}
	}
	return append(os.Environ(), "CGO_ENABLED=1",
		"CGO_CFLAGS=-O2 -g -isystem "+include,
		"CGO_LDFLAGS="+strings.Join(l.rdmaFlags(), " "),
		"PKG_CONFIG=true",
	), nil
}

// rdmaFlags are what a C compiler needs for the guests' rdma-core. What its libraries
// need of a newer C library than the host's is found in the guest.
func (l *lab) rdmaFlags(libraries ...string) []string {
	return append([]string{"-isystem", filepath.Join(l.dir, "include"), "-L" + filepath.Join(l.dir, "lib"),
		"-Wl,--allow-shlib-undefined"}, libraries...)
}
