package lab

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/tests/lab/debian"
	"github.com/rpmemfs/rpmemfs/tests/lab/image"
	"github.com/rpmemfs/rpmemfs/tests/lab/machine"
)

var (
	labFlag   = flag.Bool("lab", false, "run the lab; without it every test is skipped, as it needs both processors for minutes")
	cacheFlag = flag.String("lab.cache", "", "folder with what was fetched (default: rpmemfs-lab in the user's cache directory)")
)

// The Debian release that the guests consist of: the first one with FLUSH in its kernel
// and in rdma-core. The kernel of the one before has neither FLUSH nor ATOMIC WRITE.
const (
	release    = "trixie"
	oldRelease = "bookworm"
)

// trees are the packages that the lab consists of.
var trees = struct{ qemu, kernel, oldKernel, userland debian.Tree }{
	qemu: debian.Tree{Name: "qemu", Packages: []string{"qemu-system-x86"}},
	kernel: debian.Tree{Name: "kernel", Alone: true,
		Packages: []string{`^linux-image-6\.12\.[0-9]+\+deb[0-9]+-amd64$`}},
	oldKernel: debian.Tree{Name: "old-kernel", Alone: true,
		Packages: []string{`^linux-image-6\.1\.0-[0-9]+-amd64$`}},
	userland: debian.Tree{Name: "userland", Packages: []string{
		"ibverbs-providers", "librdmacm1t64", "libibverbs-dev", "librdmacm-dev",
		"perftest", "iproute2", "busybox-static", "e2fsprogs",
	}},
}

// A lab is all that machines need, ready in files.
type lab struct {
	dir      string // of this run; removed at its end
	qemu     machine.QEMU
	system   system                 // what a machine boots unless it is said otherwise
	old      func() (system, error) // one with the older kernel, fetched when it is first asked for
	userland string
	sdk      string // headers and libraries of the userland's rdma-core
	tsc      int    // ticks in a millisecond
}

// A system is what a machine boots.
type system struct{ kernel, initrd string }

// patience is how long the lab waits for anything in a guest. Emulated machines are
// slow, and the host may be busy.
const patience = 5 * time.Minute

// theLab is made once in a run, by the first test that needs it.
var theLab = sync.OnceValues(func() (*lab, error) {
	l := &lab{dir: runDir}
	return l, l.prepare(context.Background())
})

var runDir string // set by TestMain before any test runs

func TestMain(m *testing.M) {
	flag.Parse()
	if !*labFlag {
		os.Exit(m.Run())
	}
	var err error
	if runDir, err = os.MkdirTemp("", "rpmemfs-lab-"); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
	// The machines end with this process; its files do not.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		<-signals
		_ = os.RemoveAll(runDir) // machines may still write; what is left is in /tmp
		os.Exit(1)
	}()
	code := m.Run()
	if err := os.RemoveAll(runDir); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		code = 1
	}
	os.Exit(code)
}

// need returns the lab, or skips the test where there cannot be one.
func need(t *testing.T) *lab {
	t.Helper()
	if !*labFlag {
		t.Skip("not asked for: make lab, or the flag -lab")
	}
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		t.Skipf("the guests are Linux on amd64, and run with this machine's programs, which are for %s/%s", runtime.GOOS, runtime.GOARCH)
	}
	l, err := theLab()
	switch {
	case errors.Is(err, debian.ErrUnavailable), errors.Is(err, exec.ErrNotFound):
		t.Skipf("no lab on this machine: %v", err)
	case err != nil:
		t.Fatal(err)
	}
	return l
}

// prepare fetches, builds, and makes the image.
func (l *lab) prepare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	dir := *cacheFlag
	if dir == "" {
		parent, err := os.UserCacheDir()
		if err != nil {
			return err
		}
		dir = filepath.Join(parent, "rpmemfs-lab")
	}
	say := func(format string, a ...any) { fmt.Fprintf(os.Stderr, "lab: "+format+"\n", a...) }
	cache := debian.Cache{Dir: dir, Release: release, Log: say}
	var err error
	if l.userland, err = cache.Unpack(ctx, trees.userland); err != nil {
		return err
	}
	// The compiler works while the rest is fetched.
	var programs map[string]string
	built := make(chan error, 1)
	go func() {
		var err error
		programs, err = l.build(ctx)
		built <- err
	}()
	base, err := l.fetchMachine(ctx, &cache)
	if err := errors.Join(err, <-built); err != nil {
		return err
	}
	l.system = system{base.Kernel, filepath.Join(l.dir, "initrd.cpio")}
	l.old = sync.OnceValues(func() (system, error) {
		cache := debian.Cache{Dir: dir, Release: oldRelease, Log: say}
		return l.fetchOld(&cache, programs)
	})
	return base.Boot(l.system.initrd, programs)
}

// fetchOld fetches the older kernel, and makes a system of it with the same programs.
func (l *lab) fetchOld(cache *debian.Cache, programs map[string]string) (system, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	kernel, err := cache.Unpack(ctx, trees.oldKernel)
	if err != nil {
		return system{}, err
	}
	base, err := image.Build(ctx, cache.Dir, guestSpec(kernel, l.userland))
	if err != nil {
		return system{}, err
	}
	old := system{base.Kernel, filepath.Join(l.dir, "old-initrd.cpio")}
	return old, base.Boot(old.initrd, programs)
}

// fetchMachine fetches QEMU and what guests boot.
func (l *lab) fetchMachine(ctx context.Context, cache *debian.Cache) (image.Base, error) {
	kernel, err := cache.Unpack(ctx, trees.kernel)
	if err != nil {
		return image.Base{}, err
	}
	if l.qemu.Root, err = cache.Unpack(ctx, trees.qemu); err != nil {
		return image.Base{}, err
	}
	return image.Build(ctx, cache.Dir, guestSpec(kernel, l.userland))
}

// guestSpec says what a guest has besides the programs under test.
func guestSpec(kernel, userland string) image.Spec {
	const lib = "usr/lib/x86_64-linux-gnu/"
	return image.Spec{
		Kernel: kernel, Userland: userland,
		Modules: []string{
			"crc32c_generic", "crc32c_intel", "crc32_generic", // looked up by name, no module depends on them
			"virtio_pci", "virtio_net", "virtio_blk", "virtio_console",
			"nfit", "nd_pmem", "dax_pmem", "device_dax", "ext4", "fuse",
			"dummy", "rdma_rxe", "rdma_ucm", "ib_uverbs",
		},
		Programs: []string{
			"usr/bin/busybox", "usr/bin/ip", "usr/bin/rdma", "usr/sbin/mke2fs", "usr/bin/ib_write_bw",
			lib + "libibverbs.so.1", lib + "librdmacm.so.1", lib + "libc.so.6", lib + "libgcc_s.so.1",
		},
		Files:   []string{"etc/libibverbs.d/rxe.driver", "etc/mke2fs.conf"},
		Plugins: []string{lib + "libibverbs/librxe-*.so"},
	}
}
