package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait; reaching it is a failure.
const patience = 30 * time.Second

// built says that there is a directory of binaries to remove.
var built bool

// binaries builds the daemon and the tool, once.
var binaries = sync.OnceValues(func() (string, error) {
	built = true
	dir, err := os.MkdirTemp("", "rpmemctl-bin-")
	if err != nil {
		return "", err
	}
	out, err := exec.Command("go", "build", "-o", dir+"/", "../rpmemfs", ".").CombinedOutput()
	if err != nil {
		return dir, fmt.Errorf("go build: %w: %s", err, out)
	}
	return dir, nil
})

// A mounted is a daemon on a pool in memory. The test process never touches its
// mount point: every command that does is a child process.
type mounted struct {
	t      *testing.T
	bin    string
	dir    string
	pool   string
	point  string
	flags  []string
	daemon *exec.Cmd // nil while there is none
	log    daemonLog
}

// newMounted mounts a new pool with more flags.
func newMounted(t *testing.T, flags ...string) *mounted {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("/dev/fuse is missing here")
	}
	if _, err := exec.LookPath("fusermount3"); err != nil && os.Getuid() != 0 {
		t.Skip("fusermount3 is missing here")
	}
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	dir := fastDir(t)
	m := &mounted{t: t, bin: bin, dir: dir, pool: filepath.Join(dir, "pool"), point: filepath.Join(dir, "mnt"), flags: flags}
	if err := os.Mkdir(m.point, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.stop()
		if strings.Contains(m.log.String(), "panic:") {
			t.Errorf("the daemon crashed:\n%s", m.log.String())
		}
	})
	m.start()
	return m
}

// A daemonLog is what a daemon has written so far. It is safe for concurrent use.
type daemonLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *daemonLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *daemonLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// start mounts the pool and waits until programs can use it.
func (m *mounted) start() {
	m.t.Helper()
	args := append([]string{"mount", "--pool", m.pool, "--size", "64MiB"}, m.flags...)
	cmd := exec.Command(filepath.Join(m.bin, "rpmemfs"), append(args, m.point)...)
	cmd.Stderr = &m.log
	out, err := cmd.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.daemon = cmd
	line := make(chan string, 1)
	go func() {
		l, _ := bufio.NewReader(out).ReadString('\n') // an empty line tells of the error
		line <- l
	}()
	select {
	case l := <-line:
		if !strings.HasPrefix(l, "mounted") {
			m.stop()
			m.t.Fatalf("mount: got %q, want a line that starts with mounted; log:\n%s", l, m.log.String())
		}
	case <-time.After(patience):
		m.stop()
		m.t.Fatal("mount: no answer")
	}
}

// stop unmounts and ends the daemon, by force if it does not end by itself.
func (m *mounted) stop() {
	if m.daemon == nil {
		return
	}
	daemon := m.daemon
	m.daemon = nil
	_ = daemon.Process.Signal(syscall.SIGTERM) // Wait tells
	force := time.AfterFunc(patience, func() {
		m.t.Error("the daemon does not end")
		_ = daemon.Process.Kill() // Wait tells
		_ = exec.Command("umount", "-l", m.point).Run()
	})
	defer force.Stop()
	if err := daemon.Wait(); err != nil {
		m.t.Errorf("daemon: %v; log:\n%s", err, m.log.String())
		_ = exec.Command("umount", "-l", m.point).Run() // it may be gone
	}
}

// kill ends the daemon as a crash does. Its dead mount stays.
func (m *mounted) kill() {
	m.t.Helper()
	if err := m.daemon.Process.Kill(); err != nil {
		m.t.Fatal(err)
	}
	_ = m.daemon.Wait() // it was killed
	m.daemon = nil
}

// unmountDead takes the mount of a killed daemon away.
func (m *mounted) unmountDead() {
	m.t.Helper()
	if out, err := exec.Command("umount", "-l", m.point).CombinedOutput(); err != nil {
		m.t.Errorf("umount -l: %v: %s", err, out)
	}
}

func (m *mounted) path(name string) string { return filepath.Join(m.point, name) }

// ctl runs the tool as a process of its own.
func (m *mounted) ctl(args ...string) (code int, out, errOut string) {
	m.t.Helper()
	return m.command("", filepath.Join(m.bin, "rpmemctl"), args...)
}

func (m *mounted) command(in, name string, args ...string) (code int, out, errOut string) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var o, e bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(in), &o, &e
	cmd.Dir = m.dir
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		m.t.Fatalf("%s %q: %v", name, args, errors.Join(err, ctx.Err()))
	}
	return cmd.ProcessState.ExitCode(), o.String(), e.String()
}

// ok runs the tool; it has to succeed in silence.
func (m *mounted) ok(args ...string) string {
	m.t.Helper()
	code, out, errOut := m.ctl(args...)
	if code != exitOK || errOut != "" {
		m.t.Fatalf("rpmemctl %q: exit code %d, stderr %q; want 0 and silence", args, code, errOut)
	}
	return out
}

// refused runs the tool; it has to fail with a code and say all of the texts.
func (m *mounted) refused(want int, texts []string, args ...string) {
	m.t.Helper()
	code, out, errOut := m.ctl(args...)
	if code != want {
		m.t.Errorf("rpmemctl %q: exit code %d, want %d; %s%s", args, code, want, out, errOut)
	}
	for _, text := range texts {
		if !strings.Contains(errOut, text) {
			m.t.Errorf("rpmemctl %q: stderr %q, want %q in it", args, errOut, text)
		}
	}
}

// sh runs a shell command in the test's directory; it has to succeed.
func (m *mounted) sh(script string) string {
	m.t.Helper()
	code, out, errOut := m.command("", "sh", "-euc", script)
	if code != 0 {
		m.t.Fatalf("sh -c %q: exit code %d: %s%s", script, code, out, errOut)
	}
	return out
}

// A mapper is a child process that maps a file; see roleMap.
type mapper struct {
	t     *testing.T
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string
}

func (m *mounted) mapper(name string) *mapper {
	m.t.Helper()
	self, err := os.Executable()
	if err != nil {
		m.t.Fatal(err)
	}
	cmd := exec.Command(self, m.path(name))
	cmd.Env = append(os.Environ(), roleEnv+"=map")
	p := m.child(cmd)
	p.want("ready")
	return p
}

// child starts a process that obeys lines of its standard input, and ends with that.
func (m *mounted) child(cmd *exec.Cmd) *mapper {
	m.t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	p := &mapper{t: m.t, cmd: cmd, in: in, lines: make(chan string, 16)}
	go func() {
		defer close(p.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			p.lines <- s.Text()
		}
	}()
	m.t.Cleanup(p.end)
	return p
}

// say sends a line and compares the answer.
func (p *mapper) say(line, want string) {
	p.t.Helper()
	if _, err := io.WriteString(p.in, line+"\n"); err != nil {
		p.t.Fatal(err)
	}
	p.want(want)
}

func (p *mapper) want(want string) {
	p.t.Helper()
	select {
	case got := <-p.lines:
		if got != want {
			p.t.Fatalf("mapper: got %q, want %q", got, want)
		}
	case <-time.After(patience):
		p.t.Fatalf("mapper: no answer, want %q", want)
	}
}

// end lets the process end; twice is once.
func (p *mapper) end() {
	if p.cmd == nil {
		return
	}
	_ = p.in.Close() // ends it
	force := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
	defer force.Stop()
	for range p.lines { // until it has ended
	}
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("mapper: %v", err)
	}
	p.cmd = nil
}
