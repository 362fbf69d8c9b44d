package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/rpmemfs/rpmemfs/tests/lab/machine"
)

// A site is the machines of one test, and the network between them.
type site struct {
	t     *testing.T
	l     *lab
	dir   string
	hub   string
	cards int
}

// newSite makes a site without machines. At the end of the test all of it is gone.
func newSite(t *testing.T) *site {
	t.Helper()
	l := need(t)
	dir, err := os.MkdirTemp(l.dir, "site-") // short: it holds sockets
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, l: l, dir: dir, hub: filepath.Join(dir, "hub")}
	hub, err := machine.NewHub(s.hub)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := hub.Close(); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return s
}

// file makes a file of zeros for an NVDIMM or a disk.
func (s *site) file(name string, size int64) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// boot starts a machine. It is killed at the end of the test, and its console shown if
// the test failed.
func (s *site) boot(cfg machine.Config) *machine.Machine {
	s.t.Helper()
	cfg.QEMU, cfg.Kernel, cfg.Initrd, cfg.Dir = s.l.qemu, s.l.kernel, s.l.initrd, s.dir
	if cfg.Memory == 0 {
		cfg.Memory = 768
	}
	m, err := machine.Start(s.ctx(), cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Logf("%s is up after %.1f s of its own time", cfg.Name, m.Uptime)
	s.t.Cleanup(func() {
		m.Kill()
		if s.t.Failed() {
			s.t.Logf("console of %s:\n%s", cfg.Name, m.Console())
		}
	})
	return m
}

// ctx ends when patience is over.
func (s *site) ctx() context.Context {
	ctx, cancel := context.WithTimeoutCause(context.Background(), patience, fmt.Errorf("no end in %v", patience))
	s.t.Cleanup(cancel)
	return ctx
}

// run runs a program in a machine, which has to succeed.
func (s *site) run(m *machine.Machine, argv ...string) string {
	s.t.Helper()
	out, err := m.Run(s.ctx(), argv...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// start starts a program in a machine.
func (s *site) start(m *machine.Machine, argv ...string) *machine.Process {
	s.t.Helper()
	p, err := m.Start(nil, argv...)
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

// Machines boot, see each other, and have RDMA and persistent memory.
func TestBoot(t *testing.T) {
	s := newSite(t)
	m := s.boot(machine.Config{Name: "m", Card: 1, Hub: s.hub, Address: "10.0.0.1/24",
		NVDIMM: s.file("nvdimm", 256<<20), NVDIMMMode: "devdax"})
	c := s.boot(machine.Config{Name: "c", Card: 2, Hub: s.hub, Address: "10.0.0.2/24"})
	t.Log(s.run(m, "sh", "-c", "uname -a; ls -l /dev/dax0.0; rdma link; free -m; dmesg | tail -5"))
	t.Log(s.run(c, "ping", "-c", "3", "10.0.0.1"))
}
