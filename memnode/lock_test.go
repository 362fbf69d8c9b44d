package memnode

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Whoever is named in the lock file is waited for until all its threads are done, unless
// its number is another process's by now.
func TestHolderIsAwaited(t *testing.T) {
	child := exec.Command("sleep", "60")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = child.Process.Kill(); _ = child.Wait() }()
	_, started := threadState(fmt.Sprintf("/proc/%d/stat", child.Process.Pid))
	path := filepath.Join(t.TempDir(), "lock")
	if err := os.WriteFile(path, fmt.Appendf(nil, "%d %s\n", child.Process.Pid, started), 0o600); err != nil {
		t.Fatal(err)
	}
	f, before, err := lockPool(path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if want := (holder{child.Process.Pid, started}); before != want {
		t.Errorf("before: %+v, want %+v", before, want)
	}
	if got := readHolder(f); got.pid != os.Getpid() || got.started == "" || got.lives() {
		t.Errorf("this process: %+v, lives %v", got, got.lives())
	}
	wantErr(t, "await who lives", before.await(20*time.Millisecond), ErrLocked)
	for _, other := range []holder{{}, {before.pid, before.started + "1"}, {before.pid, ""}, {1 << 30, "5"}} {
		wantErr(t, fmt.Sprintf("await %+v", other), other.await(0), nil)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "await who was killed", before.await(20*time.Second), nil) // it is a zombie
}

// Who closed the pool is not waited for, though its process goes on.
func TestCloserIsNotAwaited(t *testing.T) {
	dir := newPoolDir(t)
	p := openPool(t, dir)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	f, before, err := lockPool(filepath.Join(dir, lockFile), false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if before != (holder{}) {
		t.Errorf("the lock names %+v", before)
	}
}
