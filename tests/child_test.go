package tests

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A lockedBuffer is a bytes.Buffer that a process's output can go to while a
// test reads it.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// A child is a running process of a test, in a process group of its own. Its
// standard output arrives line by line.
type child struct {
	t      *testing.T
	name   string
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stderr lockedBuffer
	lines  chan string   // closed at the end of the output
	exited chan struct{} // closed when the process was waited for
	err    error         // of Wait; valid when exited is closed
	unhang func()        // frees a process that hangs in a mount; may be nil
}

// startCommand starts cmd. At the end of the test it is killed if it still runs.
func startCommand(t *testing.T, cmd *exec.Cmd, unhang func()) *child {
	t.Helper()
	c := spawn(t, cmd, unhang)
	t.Cleanup(c.end)
	return c
}

// spawn starts cmd; the caller sees to its end.
func spawn(t *testing.T, cmd *exec.Cmd, unhang func()) *child {
	t.Helper()
	c := &child{
		t: t, name: strings.Join(cmd.Args, " "), cmd: cmd, unhang: unhang,
		lines: make(chan string, 1024), exited: make(chan struct{}),
	}
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	// The race detector sleeps a second at the end of each process.
	cmd.Env = append(cmd.Env, runEnv+"="+shop.run, "GORACE=atexit_sleep_ms=0")
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	cmd.Stderr = &c.stderr
	stdout, err := cmd.StdoutPipe()
	if err == nil && cmd.Stdin == nil {
		c.stdin, err = cmd.StdinPipe()
	}
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatalf("start %s: %v", c.name, err)
	}
	go func() {
		in := bufio.NewScanner(stdout)
		in.Buffer(nil, 16<<20)
		for in.Scan() {
			c.lines <- in.Text()
		}
		close(c.lines)
		c.err = cmd.Wait()
		close(c.exited)
	}()
	return c
}

// end kills the process if it still runs, and drops its output.
func (c *child) end() {
	select {
	case <-c.exited:
		return
	default:
	}
	c.kill()
	for range c.lines {
	}
	<-c.exited
}

// kill sends SIGKILL to the process and its group, and returns when it is dead.
func (c *child) kill() {
	_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL) // it may have ended
	c.drainUntilExit(patience)
}

// drainUntilExit waits for the end of the process and returns the lines it
// still wrote. A process that does not end is freed by aborting its mount.
func (c *child) drainUntilExit(limit time.Duration) []string {
	c.t.Helper()
	var rest []string
	timer := time.NewTimer(limit)
	defer timer.Stop()
	lines := c.lines
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				lines = nil
				continue
			}
			rest = append(rest, line)
		case <-c.exited:
			for line := range c.lines { // closed before exited is
				rest = append(rest, line)
			}
			return rest
		case <-timer.C:
			c.t.Errorf("%s: still running after %v; stderr:\n%s\n%s", c.name, limit, &c.stderr, whereStuck(c.cmd.Process.Pid))
			_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL) // it may have ended
			if c.unhang != nil {
				c.unhang()
			}
			limit = 10 * time.Second
			timer.Reset(limit)
		}
	}
}

// line returns the next line of output, or an error when the process ended or
// patience did.
func (c *child) line() (string, error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case line, ok := <-c.lines:
		if !ok {
			<-c.exited
			return "", fmt.Errorf("%s: ended: %w; stderr:\n%s", c.name, errors.Join(io.EOF, c.err), &c.stderr)
		}
		return line, nil
	case <-timer.C:
		return "", fmt.Errorf("%s: no output for %v; stderr:\n%s\n%s", c.name, patience, &c.stderr, whereStuck(c.cmd.Process.Pid))
	}
}

// mustLine fails the test unless the next line is there and starts with prefix.
// It returns the rest of the line.
func (c *child) mustLine(prefix string) string {
	c.t.Helper()
	line, err := c.line()
	if err != nil {
		c.t.Fatal(err)
	}
	rest, ok := strings.CutPrefix(line, prefix)
	if !ok {
		c.t.Fatalf("%s: got line %q, want %q...; stderr:\n%s", c.name, line, prefix, &c.stderr)
	}
	return strings.TrimSpace(rest)
}

// say writes a line to the child's standard input. A child that has died is not
// an error here.
func (c *child) say(line string) {
	_, _ = io.WriteString(c.stdin, line+"\n") // EPIPE: it was killed
}

// finish closes the child's input, waits for its end and returns what it wrote
// and how it ended.
func (c *child) finish(limit time.Duration) (string, error) {
	c.t.Helper()
	if c.stdin != nil {
		_ = c.stdin.Close() // EPIPE: it ended by itself
	}
	out := strings.Join(c.drainUntilExit(limit), "\n")
	if c.err != nil {
		return out, fmt.Errorf("%s: %w\n%s%s", c.name, c.err, out, &c.stderr)
	}
	return out, nil
}

// mustFinish is finish for a child that has to succeed.
func (c *child) mustFinish(limit time.Duration) string {
	c.t.Helper()
	out, err := c.finish(limit)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// startRole starts this binary in another role, with env added.
func startRole(t *testing.T, unhang func(), env []string, role string, args ...string) *child {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.Background(), self, args...)
	cmd.Env = append(append(os.Environ(), env...), roleEnv+"="+role)
	return startCommand(t, cmd, unhang)
}

// play runs a role and returns the exit status of the process.
func play(name string, args []string) int {
	role, ok := roles[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "no role %q\n", name)
		return 2
	}
	if err := role(args); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		return 1
	}
	return 0
}
