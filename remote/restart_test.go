package remote_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/memnode"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/node"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/remote"
)

// The memory node is stopped and started again and again under load. No call fails.
func TestRestartUnderLoad(t *testing.T) {
	n := newNode(t, long)
	underLoad(t, n.open(remote.Config{}), 8, n.restart)
}

// The memory node is killed and started again and again under load. No call fails.
func TestKillUnderLoad(t *testing.T) {
	n := newNode(t, long)
	if err := n.open(remote.Config{}).Close(); err != nil {
		t.Fatal(err)
	}
	n.stop()
	c := &child{TB: t, node: n}
	c.start()
	t.Cleanup(func() { c.kill() })
	underLoad(t, n.open(remote.Config{}), 8, func() {
		c.kill()
		c.start()
	})
}

// A juggler changes names, attributes and slots of its own, so that each change fails if
// the one before is made twice, or not at all.
type juggler struct {
	pool *remote.Pool
	dir  namespace.Ino
	file namespace.Inode
}

// juggle does a round, after which all is as before, but for the other file.
func (j *juggler) juggle() error {
	p := j.pool
	other, err := p.Create(ctx, j.dir, "other", fileInode())
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	if _, err := p.Rename(ctx, j.dir, "file", j.dir, "other", namespace.RenameExchange); err != nil {
		return fmt.Errorf("exchange: %w", err)
	}
	if n, err := p.Lookup(ctx, j.dir, "file"); err != nil || n.Ino != other.Ino {
		return fmt.Errorf("after an exchange: %+v, %w", n, err)
	}
	gone, err := p.Unlink(ctx, j.dir, "file")
	if err != nil || gone.Ino != other.Ino || gone.Nlink != 0 {
		return fmt.Errorf("unlink: %+v, %w", gone, err)
	}
	if _, err := p.Reap(ctx, gone.Ino); err != nil {
		return fmt.Errorf("reap: %w", err)
	}
	if _, err := p.Rename(ctx, j.dir, "other", j.dir, "file", namespace.RenameNoReplace); err != nil {
		return fmt.Errorf("rename: %w", err)
	}
	if err := p.SetXattr(ctx, j.file.Ino, "user.x", nil, namespace.XattrCreate); err != nil {
		return fmt.Errorf("set an attribute: %w", err)
	}
	if err := p.RemoveXattr(ctx, j.file.Ino, "user.x"); err != nil {
		return fmt.Errorf("remove an attribute: %w", err)
	}
	id := region.ID(j.file.Ino)
	g, err := p.Grant(ctx, id, 5, 5)
	if err != nil {
		return fmt.Errorf("grant: %w", err)
	}
	if err := p.Return(ctx, id, g.Runs); err != nil {
		return fmt.Errorf("return: %w", err)
	}
	return nil
}

func newJuggler(t *testing.T, p *remote.Pool, name string) *juggler {
	t.Helper()
	dir := mustCreate(t, p, name, dirInode())
	f, err := p.Create(ctx, dir.Ino, "file", fileInode())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Grant(ctx, region.ID(f.Ino), 1, 1); err != nil {
		t.Fatal(err)
	}
	return &juggler{pool: p, dir: dir.Ino, file: f}
}

// underLoad creates files, changes names and slots, and commits and reads pages, while
// the memory node is restarted, and compares what is there then with what was acknowledged.
func underLoad(t *testing.T, p *remote.Pool, restarts int, restart func()) {
	f := mustCreate(t, p, "f", fileInode())
	g, err := p.Grant(ctx, region.ID(f.Ino), 64, 64)
	if err != nil {
		t.Fatal(err)
	}
	jugglers := []*juggler{newJuggler(t, p, "j0"), newJuggler(t, p, "j1")}
	before, err := p.Usage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	load, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var made, commits, rounds atomic.Int64
	for _, j := range jugglers {
		wg.Go(func() {
			for load.Err() == nil {
				if err := j.juggle(); err != nil {
					t.Error(err)
					return
				}
				rounds.Add(1)
			}
		})
	}
	for worker := range 4 {
		wg.Go(func() {
			for i := 0; load.Err() == nil; i++ {
				name := fmt.Sprintf("%d-%d", worker, i)
				if _, err := p.Create(ctx, namespace.Root, name, fileInode()); err != nil {
					t.Errorf("create %s: %v", name, err)
					return
				}
				made.Add(1)
			}
		})
		wg.Go(func() {
			off := (g.Runs[0].Start + 16 + region.Slot(worker)).Offset()
			for i := 0; load.Err() == nil; i++ {
				page := fmt.Appendf(nil, "%4096d", i)
				if err := errors.Join(p.Conn().Write(ctx, page, off), p.Conn().Flush(ctx)); err != nil {
					t.Errorf("commit: %v", err)
					return
				}
				got := make([]byte, len(page))
				if err := p.Conn().Read(ctx, got, off); err != nil || string(got) != string(page) {
					t.Errorf("read after commit %d: %v", i, err)
					return
				}
				commits.Add(1)
			}
		})
	}
	for range restarts {
		files, pages, turns := made.Load(), commits.Load(), rounds.Load()
		restart()
		for begun := time.Now(); made.Load() < files+20 || commits.Load() < pages+20 || rounds.Load() < turns+2; time.Sleep(time.Millisecond) {
			if time.Since(begun) > patience || t.Failed() {
				t.Fatal("nothing goes on after a restart")
			}
		}
	}
	cancel()
	wg.Wait()
	entries, err := p.ReadDir(ctx, namespace.Root)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := int64(len(entries)), made.Load()+3; got != want {
		t.Errorf("%d names after %d creates", got, want)
	}
	after, err := p.Usage(ctx)
	if err != nil || after.FreeSlots != before.FreeSlots {
		t.Errorf("%d slots are free, %v, want %d", after.FreeSlots, err, before.FreeSlots)
	}
	for _, j := range jugglers {
		if entries, err := p.ReadDir(ctx, j.dir); err != nil || len(entries) != 1 || entries[0].Ino != j.file.Ino {
			t.Errorf("got %+v, %v", entries, err)
		}
	}
	if err := p.Check(ctx, func(problem string) { t.Error("check: " + problem) }); err != nil {
		t.Error(err)
	}
	t.Logf("%d files, %d commits, %d rounds", made.Load(), commits.Load(), rounds.Load())
}

// A child is a memory node in a process of its own.
type child struct {
	testing.TB
	node *memoryNode
	cmd  *exec.Cmd
}

// childEnv tells a child which pool to serve where.
const childEnv = "REMOTE_TEST_NODE"

func (c *child) start() {
	c.Helper()
	c.cmd = exec.Command(os.Args[0], "-test.run=^TestChild$", "-test.timeout=60s")
	c.cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %s", childEnv, c.node.dir, c.node.control, c.node.data))
	c.cmd.Stderr = os.Stderr
	if err := c.cmd.Start(); err != nil {
		c.Fatal(err)
	}
	for begun := time.Now(); ; time.Sleep(time.Millisecond) {
		conn, err := net.Dial("tcp", c.node.control)
		if err == nil {
			_ = conn.Close()
			return
		}
		if time.Since(begun) > patience {
			c.Fatal(err)
		}
	}
}

func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait() // it says that it was killed
}

// TestChild is the body of a child. It ends by being killed.
func TestChild(t *testing.T) {
	var dir, control, data string
	if n, _ := fmt.Sscan(os.Getenv(childEnv), &dir, &control, &data); n != 3 {
		t.Skip("not a child: " + childEnv + " is not set")
	}
	pool, err := memnode.Open(dir, memnode.Options{KeepOrphans: true})
	if err != nil {
		t.Fatal(err)
	}
	var listeners []net.Listener
	for _, address := range []string{data, control} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, l)
	}
	t.Error(node.NewServer(node.Config{Pool: pool}).Run(ctx, listeners[1], listeners[0]))
}
