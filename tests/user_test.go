package tests

import (
	"os"
	"os/exec"
	"testing"
)

// An ordinary user mounts with fusermount3, works, is killed and mounts again.
func TestOrdinaryUser(t *testing.T) {
	t.Parallel()
	need(t, "fusermount3", "setpriv", "/dev/fuse")
	if os.Getuid() != 0 {
		t.Skip("not root: the other tests mount as an ordinary user already")
	}
	if out, err := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
		"sh", "-c", "test -w /dev/fuse").CombinedOutput(); err != nil {
		t.Skipf("an ordinary user may not open /dev/fuse here: %s", out)
	}
	dir := fastDir(t)
	m := prepareMount(t, dir)
	m.nobody = true
	for _, path := range []string{dir, m.mnt} {
		must(t, os.Chown(path, 65534, 65534))
	}
	m.start()
	m.run("sh", "-ec", `cd "$1"; echo hello > file; mkdir d; mv file d/; sync d/file; cat d/file`, "sh", m.mnt)
	m.ctl("checkpoint", m.path("d/file"), "first")
	m.kill()
	m.start()
	if got := m.run("cat", m.path("d/file")); got != "hello" {
		t.Errorf("after the daemon's death: %q", got)
	}
}
