package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/tests/lab/image"
	"github.com/rpmemfs/rpmemfs/tests/lab/wire"
)

// setUp makes a bare kernel a machine with a network card, an RDMA device on it, and an
// NVDIMM, as far as the emulated hardware is there.
func setUp() error {
	if err := mountAll(); err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}); err != nil {
		return err
	}
	if err := loadModules(); err != nil {
		return err
	}
	if err := run("/usr/bin/busybox", "--install", "-s", "/busybox"); err != nil {
		return err
	}
	arguments, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	for word := range strings.FieldsSeq(string(arguments)) {
		var err error
		if name, ok := strings.CutPrefix(word, wire.ArgName); ok {
			err = unix.Sethostname([]byte(name))
		} else if address, ok := strings.CutPrefix(word, wire.ArgAddress); ok {
			err = network(address)
		} else if mode, ok := strings.CutPrefix(word, wire.ArgNVDIMM); ok {
			err = nvdimm(mode)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", word, err)
		}
	}
	return nil
}

func mountAll() error {
	for _, m := range []struct{ kind, at string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/dev/shm"}, {"tmpfs", "/tmp"},
		{"tmpfs", "/run"}, {"tracefs", "/sys/kernel/tracing"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	return os.MkdirAll("/busybox", 0o755)
}

// loadModules loads what the image has, in the order of the names. A module for hardware
// that this guest lacks is no error.
func loadModules() error {
	files, err := filepath.Glob(filepath.Join("/", image.ModuleDir, "*.ko"))
	if err != nil {
		return err
	}
	for _, file := range files {
		code, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := unix.InitModule(code, ""); err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", filepath.Base(file), err)
		}
	}
	return nil
}

// network gives the network card an address and makes it an RDMA device. Without a card
// it is the interface that leads nowhere which the module dummy makes: librdmacm knows no
// device for the loopback interface.
func network(address string) error {
	if err := run("/usr/bin/ip", "link", "set", "lo", "up"); err != nil {
		return err
	}
	card := "eth0"
	if _, err := os.Stat("/sys/class/net/" + card); err != nil {
		card = "dummy0"
	}
	// The largest MTU of an RDMA packet is 4096 bytes and its headers.
	for _, command := range [][]string{
		{"/usr/bin/ip", "link", "set", card, "mtu", "4300"},
		{"/usr/bin/ip", "address", "add", address, "dev", card},
		{"/usr/bin/ip", "link", "set", card, "up"},
		{"/usr/bin/rdma", "link", "add", "rxe0", "type", "rxe", "netdev", card},
	} {
		if err := run(command[0], command[1:]...); err != nil {
			return err
		}
	}
	return nil
}

func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
