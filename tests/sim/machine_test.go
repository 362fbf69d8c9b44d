package sim

import (
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rpmemfs/rpmemfs/internal/media"
	"github.com/rpmemfs/rpmemfs/memnode"
	"github.com/rpmemfs/rpmemfs/node"
	"github.com/rpmemfs/rpmemfs/region"
)

const poolSlots = 6000

// A machine is the memory node: its disk outlives the process that serves it.
//
// The pool's directory, meta.db, is a file on tmpfs: a transaction that has returned
// survives. One that is under way when the machine dies may survive or not.
type machine struct {
	net  *network
	rng  *rand.Rand // of its owner, the goroutine that makes faults
	dir  string
	disk *media.Crashable

	failed chan struct{} // one token: the power went during a flush

	// Of the life that runs:
	gate *gate
	pool *memnode.Pool
	stop func() error // nil: none runs
}

// newMachine makes a pool in dir.
func newMachine(dir string, n *network, rng *rand.Rand) (*machine, error) {
	m := &machine{
		net: n, rng: rng, dir: filepath.Join(dir, "pool"), failed: make(chan struct{}, 1),
		disk: media.NewCrashable(poolSlots*region.PageSize, -1),
	}
	return m, memnode.Create(m.dir, memnode.CreateOptions{Media: m.disk})
}

// start begins a life, whose power goes during flush number cut, if that is not
// negative.
func (m *machine) start(lease time.Duration, cut int, kind string) error {
	pool, err := m.open(cut, kind)
	if errors.Is(err, media.ErrPowerLost) { // while it started
		m.disk = m.disk.Restart(m.rng, -1)
		pool, err = m.open(-1, kind)
	}
	if err != nil {
		return err
	}
	control, data := m.net.listen(controlPort), m.net.listen(dataPort)
	devices, known, err := m.listenRDMA()
	if err != nil {
		return err
	}
	server := node.NewServer(node.Config{Pool: pool, Lease: lease, RDMA: devices, Persistence: known})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	m.pool = pool
	go func() { done <- server.Run(ctx, control, data) }()
	m.stop = func() error {
		cancel()
		return errors.Join(<-done, pool.Close())
	}
	return nil
}

func (m *machine) open(cut int, kind string) (*memnode.Pool, error) {
	m.gate = &gate{Crashable: m.disk, machine: m, kind: kind}
	m.gate.cut.Store(int64(cut))
	return memnode.Open(m.dir, memnode.Options{KeepOrphans: true, Media: m.gate})
}

// kill ends the life. What was not flushed is still there if the power stays.
func (m *machine) kill(power bool) {
	m.net.down() // nothing that happens from now on is heard of
	m.gate.dead.Store(true)
	if m.net.nodeNIC != nil {
		m.net.nodeNIC.Crash()
	}
	if !power {
		m.disk.PowerOff()
	}
	_ = m.stop() // its medium is gone: that it says so is right
	m.stop = nil
	if m.disk.Lost() {
		m.disk = m.disk.Restart(m.rng, -1)
	}
	select {
	case <-m.failed: // of this life
	default:
	}
}

// A gate is the way of one life to the disk.
type gate struct {
	*media.Crashable
	machine *machine
	kind    string
	dead    atomic.Bool
	cut     atomic.Int64 // flushes until the power goes; negative: never
	failing sync.Once
}

var errDead = errors.New("sim: the process is dead")

func (g *gate) Kind() string { return g.kind }

func (g *gate) ReadAt(p []byte, off int64) error {
	if g.dead.Load() {
		return errDead
	}
	return g.Crashable.ReadAt(p, off)
}

func (g *gate) WriteAt(p []byte, off int64) error {
	if g.dead.Load() {
		return errDead
	}
	return g.Crashable.WriteAt(p, off)
}

func (g *gate) Flush() error {
	if g.dead.Load() {
		return errDead
	}
	g.count()
	return g.Crashable.Flush()
}

func (g *gate) Store(p []byte, off int64) error {
	if g.dead.Load() {
		return errDead
	}
	return g.Crashable.Store(p, off)
}

func (g *gate) Persist(off, n int64) error {
	if g.dead.Load() {
		return errDead
	}
	g.count()
	return g.Crashable.Persist(off, n)
}

// count counts a flush; perhaps the power goes during it.
func (g *gate) count() {
	if g.cut.Add(-1) != -1 {
		return
	}
	g.failing.Do(func() {
		g.machine.net.down()
		g.PowerOff()
		select {
		case g.machine.failed <- struct{}{}:
		default:
		}
	})
}
