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

	"github.com/rpmemfs/rpmemfs/internal/pki"
)

// module is the root of the sources.
const module = "../.."

// build builds all that runs in guests, and returns the files by their place there.
func (l *lab) build(ctx context.Context) (map[string]string, error) {
	if err := l.linkRDMA(); err != nil {
		return nil, err
	}
	small := "GOFLAGS=" + os.Getenv("GOFLAGS") + " '-ldflags=-s -w'" // without what debuggers need
	rdma := append(os.Environ(), "CGO_ENABLED=1", small, "CGO_CFLAGS=-O2 -isystem "+filepath.Join(l.sdk, "include"),
		"CGO_LDFLAGS="+strings.Join(l.rdmaFlags(), " "))
	static := append(os.Environ(), "CGO_ENABLED=0", small)
	files := map[string]string{}
	const flush = "-tags=rdma,rdmaflush"
	for _, b := range []struct {
		env   []string
		argv  []string // DIR stands for where the files go
		names []string // of the files, in the guest
	}{
		{static, []string{"go", "build", "-o", "DIR/init", "./tests/lab/guest"}, []string{"init"}},
		{rdma, []string{"go", "build", flush, "-o", "DIR/", "./cmd/rpmemfs", "./cmd/rpmemctl", "./tests/lab/commit"},
			[]string{"lab/rpmemfs", "lab/rpmemctl", "lab/commit"}},
		{rdma, []string{"go", "build", "-tags=rdma", "-o", "DIR/rpmemfs-noflush", "./cmd/rpmemfs"}, []string{"lab/rpmemfs-noflush"}},
		{rdma, []string{"go", "test", "-c", flush, "-o", "DIR/verbs.test", "./rdmacache/verbs"}, []string{"lab/verbs.test"}},
		{nil, []string{"gcc", "-std=c11", "-O2", "-static", "-o", "DIR/bank", "examples/bank/bank.c"}, []string{"lab/bank"}},
		{nil, []string{"gcc", "-std=c11", "-O2", "-Wall", "-Wextra", "-static", "-o", "DIR/epochs", "tests/lab/c/epochs.c"}, []string{"lab/epochs"}},
		{nil, []string{"gcc", "-std=c11", "-O2", "-Wall", "-Wextra", "-o", "DIR/tsc", "tests/lab/c/tsc.c"}, []string{"lab/tsc"}},
		{nil, append([]string{"gcc", "-std=c11", "-O2", "-Wall", "-Wextra", "-o", "DIR/flush", "tests/lab/c/flush.c"}, l.rdmaFlags("-libverbs", "-lrdmacm")...),
			[]string{"lab/flush"}},
	} {
		for i, arg := range b.argv {
			b.argv[i] = strings.Replace(arg, "DIR", l.dir, 1)
		}
		cmd := exec.CommandContext(ctx, b.argv[0], b.argv[1:]...)
		cmd.Dir, cmd.Env = module, b.env
		if text, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w:\n%s", strings.Join(b.argv, " "), err, text)
		}
		for _, name := range b.names {
			files[name] = filepath.Join(l.dir, filepath.Base(name))
		}
	}
	ticks, err := exec.CommandContext(ctx, files["lab/tsc"]).Output()
	if err == nil {
		l.tsc, err = strconv.Atoi(strings.TrimSpace(string(ticks)))
	}
	return files, errors.Join(err, l.certify(files))
}

// certify makes certificates of the nodes and adds them to files.
func (l *lab) certify(files map[string]string) error {
	dir := filepath.Join(l.dir, "pki")
	if err := pki.Init(dir); err != nil {
		return err
	}
	for _, r := range []pki.Request{
		{Name: "node", Hosts: []string{nodeHost}},
		{Name: "c", Shares: []pki.Grant{{Share: "bank"}, {Share: "bare"}}},
	} {
		if _, err := pki.Issue(dir, r); err != nil {
			return err
		}
	}
	return filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files["pki"+strings.TrimPrefix(path, dir)] = path
		}
		return err
	})
}

// linkRDMA makes folders with nothing but the headers and libraries of the guests'
// rdma-core: beside them in the userland are those of a newer C library than the host's
// compiler is for. Their place stays the same, so that Go's build cache is of use.
func (l *lab) linkRDMA() error {
	l.sdk = strings.Replace(l.userland, trees.userland.Name, "sdk", 1)
	usr := filepath.Join(l.userland, "usr")
	const lib = "lib/x86_64-linux-gnu"
	for name, target := range map[string]string{
		"include/infiniband": filepath.Join(usr, "include/infiniband"),
		"include/rdma":       filepath.Join(usr, "include/rdma"),
		"lib/libibverbs.so":  filepath.Join(usr, lib, "libibverbs.so.1"),
		"lib/librdmacm.so":   filepath.Join(usr, lib, "librdmacm.so.1"),
	} {
		link := filepath.Join(l.sdk, name)
		if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
			return err
		}
		if err := os.Symlink(target, link); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// rdmaFlags are what a C compiler needs for the guests' rdma-core. What its libraries
// need of a newer C library than the host's is found in the guest.
func (l *lab) rdmaFlags(libraries ...string) []string {
	return append([]string{"-isystem", filepath.Join(l.sdk, "include"), "-L" + filepath.Join(l.sdk, "lib"),
		"-Wl,--allow-shlib-undefined"}, libraries...)
}
