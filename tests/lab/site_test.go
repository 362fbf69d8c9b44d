package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/tests/lab/machine"
)

// slow is what the log tells of.
const slow = 3 * time.Second

// A site is the machines of one test, and the network between them.
type site struct {
	t    *testing.T
	l    *lab
	dir  string
	hub  *machine.Hub
	plug string // where machines find the hub
}

// newSite makes a site without machines. At the end of the test all of it is gone.
func newSite(t *testing.T) *site {
	t.Helper()
	l := need(t)
	dir, err := os.MkdirTemp(l.dir, "site-") // short: it holds sockets
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, l: l, dir: dir, plug: filepath.Join(dir, "hub")}
	if s.hub, err = machine.NewHub(s.plug); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.hub.Close(); err != nil {
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

const (
	nodeHost = "10.0.0.1" // the memory node's address
	nodeCard = 1
)

// memoryNode is the configuration of a machine with persistent memory, and a disk.
func (s *site) memoryNode() machine.Config {
	return machine.Config{Name: "m", Card: nodeCard, Hub: s.plug, Address: nodeHost + "/24",
		NVDIMM: s.file("nvdimm", 256<<20), NVDIMMMode: "devdax", Disk: s.file("disk", 64<<20)}
}

// computeNode is the configuration of a machine without. card is 2 or more.
func (s *site) computeNode(card int) machine.Config {
	return machine.Config{Name: fmt.Sprintf("c%d", card), Card: card, Hub: s.plug, Address: fmt.Sprintf("10.0.0.%d/24", card)}
}

// boot starts a machine. It is killed at the end of the test, and its console shown if
// the test failed.
func (s *site) boot(cfg machine.Config) *machine.Machine {
	s.t.Helper()
	return s.bootAll(cfg)[0]
}

// bootAll starts machines at the same time.
func (s *site) bootAll(configs ...machine.Config) []*machine.Machine {
	s.t.Helper()
	machines, errs := make([]*machine.Machine, len(configs)), make([]error, len(configs))
	ctx := s.ctx()
	var wg sync.WaitGroup
	for i, cfg := range configs {
		cfg.QEMU, cfg.Dir = s.l.qemu, s.dir
		if cfg.Kernel == "" {
			cfg.Kernel, cfg.Initrd = s.l.system.kernel, s.l.system.initrd
		}
		cfg.Memory, cfg.TSC = 768, s.l.tsc
		wg.Go(func() { machines[i], errs[i] = machine.Start(ctx, cfg) })
	}
	wg.Wait()
	for i, m := range machines {
		if m == nil {
			continue
		}
		s.t.Logf("%s is up after %.1f s of its own time", configs[i].Name, m.Uptime)
		s.t.Cleanup(func() {
			m.Kill()
			if s.t.Failed() {
				s.t.Logf("console of %s:\n%s", configs[i].Name, m.Console())
			}
		})
	}
	if err := errors.Join(errs...); err != nil {
		s.t.Fatal(err)
	}
	return machines
}

// ctx ends when patience is over.
func (s *site) ctx() context.Context {
	ctx, cancel := context.WithTimeoutCause(context.Background(), patience, fmt.Errorf("no end in %v", patience))
	s.t.Cleanup(cancel)
	return ctx
}

// until waits for a condition outside of a guest.
func (s *site) until(what string, done func() bool) {
	s.t.Helper()
	ctx := s.ctx()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			s.t.Fatalf("%s: %v", what, context.Cause(ctx))
		}
	}
}

// run runs a program in a machine, which has to succeed.
func (s *site) run(m *machine.Machine, argv ...string) string {
	s.t.Helper()
	begin := time.Now()
	out, err := m.Run(s.ctx(), argv...)
	if err != nil {
		s.t.Fatal(err)
	}
	if took := time.Since(begin); took > slow {
		s.t.Logf("%s: %s took %v", m.Name, strings.Join(argv, " "), took.Round(time.Millisecond))
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
