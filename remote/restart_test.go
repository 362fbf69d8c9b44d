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
	n := newNode(t, 5*time.Second)
	underLoad(t, n.open(remote.Config{}), 8, n.restart)
}

// The memory node is killed and started again and again under load. No call fails.
func TestKillUnderLoad(t *testing.T) {
	n := newNode(t, 5*time.Second)
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

// underLoad creates files, and commits and reads pages, while the memory node is
// restarted, and compares what is there then with what was acknowledged.
func underLoad(t *testing.T, p *remote.Pool, restarts int, restart func()) {
	f := mustCreate(t, p, "f", fileInode())
	g, err := p.Grant(ctx, region.ID(f.Ino), 64, 64)
	if err != nil {
		t.Fatal(err)
	}
	load, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var made, commits atomic.Int64
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
		files, pages := made.Load(), commits.Load()
		restart()
		for begun := time.Now(); made.Load() < files+20 || commits.Load() < pages+20; time.Sleep(time.Millisecond) {
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
	if got, want := int64(len(entries)), made.Load()+1; got != want {
		t.Errorf("%d names after %d creates", got, want)
	}
	if err := p.Check(ctx, func(problem string) { t.Error("check: " + problem) }); err != nil {
		t.Error(err)
	}
	t.Logf("%d files, %d commits", made.Load(), commits.Load())
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
