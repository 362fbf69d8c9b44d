package tests

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// unmountedBy runs the program that unmounts m and waits until the daemon, which
// is not a child of this process, has ended.
func (m *mount) unmountedBy(name string, args ...string) {
	m.t.Helper()
	m.run(name, args...)
	until(m.t, "the daemon in the background has ended", func() bool {
		for _, p := range processesOf(shop.run) {
			if strings.Contains(p.cmdline, m.pool) {
				return false
			}
		}
		return len(fuseMounts(m.mnt)) == 0
	})
}

// umountCommand is how this user unmounts.
func umountCommand(t *testing.T) []string {
	if os.Getuid() == 0 {
		return []string{"umount"}
	}
	need(t, "fusermount3")
	return []string{"fusermount3", "-u"}
}

// mount --background returns when the mount is ready; umount ends the daemon.
func TestBackground(t *testing.T) {
	t.Parallel()
	m := prepareMount(t, fastDir(t))
	umount := append(umountCommand(t), m.mnt)
	for i := range 2 {
		m.run(tool(t, "rpmemfs"), "mount", "--background", "--pool", m.pool, m.mnt)
		out := m.run("sh", "-ec", `echo line >> "$1/file"; cat "$1/file"`, "sh", m.mnt)
		if got, want := strings.Count(out, "line"), i+1; got != want {
			t.Errorf("mount %d: %d lines, want %d", i, got, want)
		}
		m.unmountedBy(umount[0], umount[1:]...)
	}
	// A mount that cannot be says so and fails.
	c := m.program(tool(t, "rpmemfs"), "mount", "--background", "--pool", m.pool, m.dir+"/none")
	if out, err := c.finish(patience); err == nil {
		t.Errorf("mount on a directory that does not exist: %s", out)
	} else if !strings.Contains(err.Error(), "none") {
		t.Errorf("the error does not name the directory: %v", err)
	}
}

// mount.fuse.rpmemfs takes what mount(8) passes from fstab.
func TestMountHelper(t *testing.T) {
	t.Parallel()
	m := prepareMount(t, fastDir(t))
	umount := append(umountCommand(t), m.mnt)
	helper := filepath.Join(m.dir, "mount.fuse.rpmemfs")
	must(t, os.Symlink(tool(t, "rpmemfs"), helper))
	m.run(helper, m.pool, m.mnt, "-o", "rw,noatime,size=64MiB,on_close=commit,nofail")
	out := m.run("stat", "-f", "-c", "%b %S", m.mnt)
	if !strings.HasPrefix(out, "16") {
		t.Errorf("statfs of a pool of 64 MiB: %s", out)
	}
	m.unmountedBy(umount[0], umount[1:]...)
	if out, err := m.program(helper, m.pool, m.mnt, "-o", "colour=red").finish(patience); err == nil {
		t.Errorf("an unknown option: %s", out)
		m.unmountedBy(umount[0], umount[1:]...)
	}
}

// SIGINT, as Ctrl-C sends it, unmounts.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	m := newMount(t, fastDir(t))
	m.run("sh", "-c", `echo kept > "$1/file"`, "sh", m.mnt)
	must(t, syscall.Kill(m.daemon.cmd.Process.Pid, syscall.SIGINT))
	if _, err := m.daemon.finish(patience); err != nil {
		t.Errorf("after SIGINT: %v", err)
	}
	m.daemon = nil
	m.start()
	if got := m.run("cat", m.path("file")); got != "kept" {
		t.Errorf("after SIGINT and a new mount: %q", got)
	}
}

// The demo that the README shows runs, and its numbers are as promised.
func TestDemo(t *testing.T) {
	need(t, "/dev/fuse", "bash", "make")
	bank := cProgram(t, "bank")
	if _, err := threadsProgram(); err != nil { // built beside it
		t.Fatal(err)
	}
	tool(t, "rpmemfs") // built beside it
	for script, want := range map[string]int{"demo.sh": 21, "demo_nodes.sh": 5} {
		t.Run(script, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command("../examples/"+script, filepath.Dir(bank))
			cmd.Env = append(os.Environ(), "TMPDIR="+fastDir(t))
			out := startCommand(t, cmd, nil).mustFinish(5 * patience)
			if got := strings.Count(out, " exact"); got != want {
				t.Errorf("the demo was exact %d times, want %d:\n%s", got, want, out)
			}
		})
	}
}

// What a run left that was killed is cleared away, what others have in use is not.
func TestClearStale(t *testing.T) {
	ended := exec.Command("true")
	must(t, ended.Run())
	makeDir := func(pattern string) string {
		dir, err := os.MkdirTemp("/var/tmp", pattern)
		must(t, err)
		t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
		return dir
	}
	left := makeDir(fmt.Sprintf("%s%d-", dirPrefix, ended.Process.Pid))
	kept := []string{makeDir(fmt.Sprintf("%s%d-", dirPrefix, os.Getpid())), makeDir(dirPrefix), makeDir("rpmemfs-test-")}
	clearStale()
	if _, err := os.Stat(left); err == nil {
		t.Errorf("%s is still there", left)
	}
	for _, dir := range kept {
		if _, err := os.Stat(dir); err != nil {
			t.Error(err)
		}
	}
}
