package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"syscall"

	"github.com/rpmemfs/rpmemfs/tests/lab/wire"
)

// ErrGone says that a process ended without an exit status: its machine was killed, or
// it could not be started.
var ErrGone = errors.New("no exit status")

// A Process runs in a machine.
type Process struct {
	m    *Machine
	id   int
	name string

	mu      sync.Mutex
	out     bytes.Buffer
	err     bytes.Buffer
	ended   bool
	status  int
	failed  string
	changed chan struct{} // closed and replaced by whoever changes something
}

// Start starts a program. env is added to its environment, as NAME=VALUE.
func (m *Machine) Start(env []string, argv ...string) (*Process, error) {
	p := &Process{m: m, name: strings.Join(argv, " "), changed: make(chan struct{})}
	m.mu.Lock()
	if m.gone {
		m.mu.Unlock()
		return nil, fmt.Errorf("%s: %w: machine %s is gone", p.name, ErrGone, m.Name)
	}
	m.lastID++
	p.id = m.lastID
	m.processes[p.id] = p
	m.mu.Unlock()
	return p, m.send(wire.Request{ID: p.id, Argv: argv, Env: env})
}

// Run runs a program to its end and returns its standard output. The error of one that
// ends with another status than 0 has all of its output.
func (m *Machine) Run(ctx context.Context, argv ...string) (string, error) {
	p, err := m.Start(nil, argv...)
	if err != nil {
		return "", err
	}
	return p.Output(ctx)
}

// Output waits for the end of a process and returns its standard output.
func (p *Process) Output(ctx context.Context) (string, error) {
	status, err := p.Wait(ctx)
	if err == nil && status != 0 {
		err = fmt.Errorf("%s: exit status %d:\n%s", p, status, p.text())
	}
	return p.Stdout(), err
}

// String is the command.
func (p *Process) String() string { return p.m.Name + ": " + p.name }

// take changes the process as a reply says.
func (p *Process) take(r wire.Reply) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out.Write(r.Out)
	p.err.Write(r.Err)
	if r.Exited || r.Failed != "" {
		p.ended, p.status, p.failed = true, r.Status, r.Failed
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

// until waits for a condition, which is looked at with mu held.
func (p *Process) until(ctx context.Context, done func() bool) error {
	for {
		p.mu.Lock()
		ok, changed := done(), p.changed
		p.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w; so far:\n%s", p, context.Cause(ctx), p.text())
		}
	}
}

// Wait waits for the end of the process and returns its exit status. The error matches
// ErrGone if it has none. When ctx is done the process is killed.
func (p *Process) Wait(ctx context.Context) (int, error) {
	if err := p.until(ctx, func() bool { return p.ended }); err != nil {
		return 0, errors.Join(err, p.Signal(syscall.SIGKILL))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed != "" {
		return 0, fmt.Errorf("%s: %w: %s", p, ErrGone, p.failed)
	}
	return p.status, nil
}

// Match waits until the standard output and error together match a pattern, and returns
// the match with its groups. It fails if the process ends before.
func (p *Process) Match(ctx context.Context, pattern *regexp.Regexp) ([]string, error) {
	var match []string
	ended := false
	err := p.until(ctx, func() bool {
		match = pattern.FindStringSubmatch(p.out.String() + p.err.String())
		ended = p.ended
		return match != nil || ended
	})
	if err == nil && match == nil {
		err = fmt.Errorf("%s: ended without a match of %s:\n%s", p, pattern, p.text())
	}
	return match, err
}

// Lines waits until the process has written at least n lines to its standard output,
// and returns how many there are. It fails if the process ends before.
func (p *Process) Lines(ctx context.Context, n int) (int, error) {
	lines, ended := 0, false
	err := p.until(ctx, func() bool {
		lines, ended = bytes.Count(p.out.Bytes(), []byte("\n")), p.ended
		return lines >= n || ended
	})
	if err == nil && lines < n {
		err = fmt.Errorf("%s: ended after %d lines, want %d:\n%s", p, lines, n, p.text())
	}
	return lines, err
}

// Stdout returns what the process has written to its standard output so far.
func (p *Process) Stdout() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// Stderr is Stdout for the standard error.
func (p *Process) Stderr() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err.String()
}

func (p *Process) text() string { return p.Stdout() + p.Stderr() }

// Signal sends a signal to the process and all that it started, unless it has ended.
func (p *Process) Signal(s syscall.Signal) error {
	return p.m.send(wire.Request{ID: p.id, Signal: int(s)})
}
