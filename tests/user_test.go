package tests

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// asNobody runs a command as an ordinary user.
func asNobody(name string, args ...string) *exec.Cmd {
	return exec.Command("setpriv", append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", "--", name}, args...)...)
}

// openFuse gives its mount namespace a /dev/fuse that ordinary users may open,
// as most systems have it, and becomes another program.
const openFuse = `mkdir "$0/dev"
mount -t tmpfs -o mode=755 none "$0/dev"
mknod "$0/dev/fuse" c 10 229
chmod 666 "$0/dev/fuse"
mount --bind "$0/dev/fuse" /dev/fuse
exec "$@"`

// An ordinary user mounts with fusermount3, works, is killed and mounts again.
// It happens in a mount namespace of its own.
func TestOrdinaryUser(t *testing.T) {
	if dir := insideDir(); dir != "" {
		ordinaryUser(t, dir)
		return
	}
	t.Parallel()
	need(t, "fusermount3", "setpriv", "unshare", "/dev/fuse")
	if os.Getuid() != 0 {
		t.Skip("not root: the other tests mount as an ordinary user already")
	}
	if out, err := exec.Command("unshare", "--mount", "true").CombinedOutput(); err != nil {
		t.Skipf("no mount namespaces here: %v %s", err, out)
	}
	dir := fastDir(t)
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "--", "sh", "-ec", openFuse, dir,
		self, "-test.run", "^TestOrdinaryUser$", "-test.v", "-test.timeout", "5m")
	cmd.Env = append(os.Environ(), insideEnv+"="+dir, toolsEnv+"="+filepath.Dir(tool(t, "rpmemfs")), runEnv+"="+shop.run)
	out, err := startCommand(t, cmd, nil).finish(5 * patience)
	if err != nil {
		t.Errorf("as an ordinary user: %v", err)
	}
	if testing.Verbose() {
		t.Log(out)
	}
}

func ordinaryUser(t *testing.T, dir string) {
	m := prepareMount(t, dir)
	m.nobody = true
	for _, path := range []string{dir, m.mnt} {
		must(t, os.Chown(path, 65534, 65534))
	}
	m.start()
	m.run("sh", "-ec", `cd "$1"; echo hello > file; mkdir d; mv file d/; sync d/file; cat d/file`, "sh", m.mnt)
	m.ctl("checkpoint", m.path("d/file"), "first")
	// Nobody else gets in, root neither.
	if out, err := exec.Command("cat", m.path("d/file")).CombinedOutput(); err == nil {
		t.Errorf("another user reads %q", out)
	}
	m.kill()
	m.start()
	if got := m.run("cat", m.path("d/file")); got != "hello" {
		t.Errorf("after the daemon's death: %q", got)
	}
	m.stop()
	m.start()
	m.unmountedByUser()
}

// unmountedByUser lets the user take the mount away by fusermount3; the daemon
// ends with success.
func (m *mount) unmountedByUser() {
	m.t.Helper()
	m.run("fusermount3", "-u", m.mnt)
	if _, err := m.daemon.finish(patience); err != nil {
		m.t.Errorf("after fusermount3 -u: %v", err)
	}
	m.daemon = nil
}
