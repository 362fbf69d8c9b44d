package tests

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A mount is a daemon with its pool and mount point. Several daemons may follow
// each other on one pool: it can be killed and mounted again.
type mount struct {
	t      *testing.T
	dir    string   // holds pool and mnt; removed at the end of the test
	pool   string   // the pool's directory
	mnt    string   // the mount point
	args   []string // more arguments of `rpmemfs mount`
	source string   // address of a memory node, instead of the pool
	node   *node    // that has the pool, with -node; else nil
	host   *host    // where the daemon runs; nil: the machine itself
	nobody bool     // run as an ordinary user
	daemon *child   // nil: not mounted
}

// fastDir and diskDir return a new directory that the test removes at its end.
func fastDir(t *testing.T) string { return newDir(t, shop.fast) }
func diskDir(t *testing.T) string { return newDir(t, shop.disk) }

func newDir(t *testing.T, parent string) string {
	t.Helper()
	dir, err := os.MkdirTemp(parent, strings.ReplaceAll(t.Name(), "/", "_")+"-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// newMount mounts a new pool in dir and unmounts it at the end of the test.
func newMount(t *testing.T, dir string, args ...string) *mount {
	t.Helper()
	m := prepareMount(t, dir, args...)
	m.start()
	return m
}

// prepareMount is newMount without starting the daemon.
func prepareMount(t *testing.T, dir string, args ...string) *mount {
	t.Helper()
	need(t, "/dev/fuse")
	if os.Getuid() != 0 {
		need(t, "fusermount3")
		if err := unix.Access("/dev/fuse", unix.R_OK|unix.W_OK); err != nil {
			t.Skipf("not root, and /dev/fuse is not for ordinary users here: %v", err)
		}
	}
	m := &mount{t: t, dir: dir, pool: filepath.Join(dir, "pool"), mnt: filepath.Join(dir, "mnt"), args: args}
	if err := os.Mkdir(m.mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	if *nodeFlag {
		size := ""
		if i := slices.Index(args, "--size"); i >= 0 { // it is the memory node that makes the pool
			size, args = args[i+1], slices.Delete(slices.Clone(args), i, i+2)
		}
		m.node = newSizedNode(t, dir, nil, longLease, size)
		m.source = "tcp://" + m.node.address
		m.args = append([]string{"--insecure", "--steal"}, args...)
	}
	t.Cleanup(func() {
		if m.daemon != nil {
			m.stop()
		}
		for _, left := range fuseMounts(m.dir) {
			t.Errorf("mount left: %s", left.path)
			left.remove()
		}
	})
	return m
}

// path names a file of the mount.
func (m *mount) path(name string) string { return filepath.Join(m.mnt, name) }

// command builds a command that runs as the daemon's user.
func (m *mount) command(name string, args ...string) *exec.Cmd {
	if m.nobody {
		return asNobody(name, args...)
	}
	return exec.Command(name, args...)
}

// start mounts the pool and fails the test if that does not work.
func (m *mount) start() {
	m.t.Helper()
	if err := m.tryStart(); err != nil {
		m.t.Fatal(err)
	}
}

// tryStart mounts the pool. The error holds what the daemon wrote.
func (m *mount) tryStart() error {
	m.t.Helper()
	args := append([]string{"mount"}, m.args...)
	if m.source == "" {
		args = append(args, m.pool, m.mnt)
	} else {
		args = append(args, m.source, m.mnt)
	}
	cmd := m.command(tool(m.t, "rpmemfs"), args...)
	if m.host != nil {
		cmd = m.host.command(tool(m.t, "rpmemfs"), args...)
	}
	m.daemon = spawn(m.t, cmd, m.abort)
	line, err := m.daemon.line()
	if err == nil && strings.HasPrefix(line, "mounted") {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("got %q, want a line that starts with mounted", line)
	}
	m.daemon.kill()
	m.inspectLog()
	m.daemon = nil
	return fmt.Errorf("mount: %w", err)
}

// stop asks the daemon to unmount, waits, and fails the test unless the daemon
// ends with success and takes its mount along.
func (m *mount) stop() {
	m.t.Helper()
	_ = syscall.Kill(m.daemon.cmd.Process.Pid, syscall.SIGTERM) // reported by finish if it died
	if _, err := m.daemon.finish(patience); err != nil {
		m.t.Errorf("clean unmount: %v", err)
	}
	if left := fuseMounts(m.mnt); len(left) > 0 {
		m.t.Errorf("daemon ended, its mount %s is still there", m.mnt)
		left[0].remove()
	}
	m.inspectLog()
	m.daemon = nil
}

// checkPool looks for damage in the pool, which is not mounted.
func (m *mount) checkPool() {
	m.t.Helper()
	if m.node != nil {
		m.node.stop()
		defer m.node.start()
	}
	if code, out := m.ctlCode("check", "--pool", m.pool); code != 0 {
		m.t.Errorf("check, not mounted: exit code %d: %s", code, out)
	}
}

// kill ends the daemon with SIGKILL. The dead mount stays until the next start,
// as on a real machine.
func (m *mount) kill() {
	m.t.Helper()
	m.daemon.kill()
	m.inspectLog()
	m.daemon = nil
}

// unmountDead takes away the dead mount of a killed daemon.
func (m *mount) unmountDead() {
	for _, left := range fuseMounts(m.mnt) {
		left.remove()
	}
}

// abort frees whatever hangs in this mount.
func (m *mount) abort() {
	for _, left := range fuseMounts(m.mnt) {
		if err := left.abort(); err != nil {
			m.t.Logf("abort %s: %v", m.mnt, err)
		}
	}
}

var crashed = regexp.MustCompile(`(?m)^(panic: |fatal error: |WARNING: DATA RACE|unexpected fault)`)

// inspectLog fails the test if the daemon panicked or raced.
func (m *mount) inspectLog() {
	m.t.Helper()
	log := m.daemon.stderr.String()
	if at := crashed.FindStringIndex(log); at != nil {
		m.t.Errorf("daemon crashed:\n%s", firstBytes(log[at[0]:], 6000))
	}
}

func firstBytes(s string, n int) string { return s[:min(n, len(s))] }

// role starts this binary in another role against the mount.
func (m *mount) role(role string, args ...string) *child {
	m.t.Helper()
	return startRole(m.t, m.abort, nil, role, args...)
}

// run runs a program to its end; it has to succeed. It returns its output.
func (m *mount) run(name string, args ...string) string {
	m.t.Helper()
	return m.program(name, args...).mustFinish(2 * patience)
}

// program starts a program against the mount.
func (m *mount) program(name string, args ...string) *child {
	m.t.Helper()
	return startCommand(m.t, m.command(name, args...), m.abort)
}

// ctl runs rpmemctl; it has to succeed.
func (m *mount) ctl(args ...string) string {
	m.t.Helper()
	return m.run(tool(m.t, "rpmemctl"), args...)
}

// ctlCode runs rpmemctl and returns its exit code and all its output.
func (m *mount) ctlCode(args ...string) (int, string) {
	m.t.Helper()
	c := m.program(tool(m.t, "rpmemctl"), args...)
	out, err := c.finish(patience)
	out += c.stderr.String()
	if crashed.MatchString(out) {
		m.t.Errorf("rpmemctl %s crashed:\n%s", strings.Join(args, " "), firstBytes(out, 6000))
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), out
	}
	return 0, out
}

// A fileStat is what the tests need of `rpmemctl stat --json`.
type fileStat struct {
	Size        uint64 `json:"size"`
	Pages       uint64 `json:"pages"`
	Epoch       uint64 `json:"epoch"`
	DirtyPages  int    `json:"dirty_pages"`
	Checkpoints int    `json:"checkpoints"`
	Handles     int    `json:"handles"`
}

func (m *mount) stat(name string) fileStat {
	m.t.Helper()
	var st fileStat
	out := m.ctl("stat", m.path(name), "--json")
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		m.t.Fatalf("rpmemctl stat --json: %v in %q", err, out)
	}
	return st
}

// settle waits until no program has the file open any more: the kernel tells
// the daemon of the last close after the program's end.
func (m *mount) settle(name string) {
	m.t.Helper()
	until(m.t, "the last handle of "+name+" is gone", func() bool {
		st := m.stat(name)
		return st.Handles == 0 && st.DirtyPages == 0
	})
}

// until polls a condition until it holds; patience bounds it.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	limit := time.Now().Add(patience)
	for wait := time.Millisecond; !holds(); wait = min(2*wait, 200*time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("waited %v in vain until %s", patience, what)
		}
		<-time.After(wait)
	}
}

// insideDir returns "" in the test process. In the child process of runInside it
// is the directory of the mount to work in.
func insideDir() string { return os.Getenv(insideEnv) }

// runInside runs the current test again in a child process whose working place
// is dir, and fails if that fails.
func (m *mount) runInside(dir string) {
	m.t.Helper()
	self, err := os.Executable()
	if err != nil {
		m.t.Fatal(err)
	}
	pattern := "^" + regexp.QuoteMeta(m.t.Name()) + "$"
	cmd := exec.Command(self, "-test.run", pattern, "-test.v", "-test.timeout", "5m")
	cmd.Env = append(os.Environ(), insideEnv+"="+dir)
	c := startCommand(m.t, cmd, m.abort)
	out, err := c.finish(5 * patience)
	if err != nil || testing.Verbose() {
		m.t.Logf("inside %s:\n%s", dir, out)
	}
	if err != nil || !strings.Contains(out, "--- PASS: "+m.t.Name()) {
		m.t.Errorf("inside the mount: failed, exit code %d", c.cmd.ProcessState.ExitCode())
	}
	for line := range strings.Lines(out) {
		if strings.Contains(line, "--- SKIP") {
			m.t.Log(strings.TrimSpace(line))
		}
	}
}

// xattrNumber reads a decimal xattr of a file in a child process.
func (m *mount) xattrNumber(name, attr string) uint64 {
	m.t.Helper()
	out := m.role("getxattr", m.path(name), attr).mustFinish(patience)
	n, err := strconv.ParseUint(strings.TrimSpace(out), 10, 64)
	if err != nil {
		m.t.Fatalf("xattr %s of %s: %v", attr, name, err)
	}
	return n
}

// roleGetxattr prints an extended attribute.
func roleGetxattr(args []string) error {
	buf := make([]byte, 64<<10)
	n, err := unix.Getxattr(args[0], args[1], buf)
	if err != nil {
		return err
	}
	fmt.Println(string(bytes.TrimSpace(buf[:n])))
	return nil
}
