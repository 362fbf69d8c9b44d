package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/tests/lab/wire"
)

// An agent starts processes for the lab.
type agent struct {
	in *json.Decoder

	sendMu sync.Mutex
	out    *json.Encoder

	mu    sync.Mutex
	group map[int]int // process group by the lab's number of the process
}

// serve answers requests until the lab asks for the end.
func serve() {
	port, err := os.OpenFile(wire.Port, os.O_RDWR, 0)
	if err != nil {
		fatal(err)
	}
	a := &agent{in: json.NewDecoder(port), out: json.NewEncoder(port), group: map[int]int{}}
	a.send(wire.Reply{Ready: true, Uptime: uptime()})
	for {
		var q wire.Request
		if err := a.in.Decode(&q); err != nil {
			fatal(fmt.Errorf("request: %w", err))
		}
		switch {
		case q.PowerOff:
			return // the first process ends the machine
		case q.Signal != 0:
			a.signal(q.ID, syscall.Signal(q.Signal))
		default:
			a.start(q)
		}
	}
}

func uptime() float64 {
	text, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0
	}
	word, _, _ := strings.Cut(string(text), " ")
	seconds, _ := strconv.ParseFloat(word, 64) // it is for people
	return seconds
}

func (a *agent) send(r wire.Reply) {
	a.sendMu.Lock()
	defer a.sendMu.Unlock()
	if err := a.out.Encode(r); err != nil {
		fatal(fmt.Errorf("reply: %w", err))
	}
}

// A stream sends what a process writes.
type stream struct {
	a  *agent
	id int
	// wrap makes a reply of output.
	wrap func(id int, p []byte) wire.Reply
}

func (s stream) Write(p []byte) (int, error) {
	s.a.send(s.wrap(s.id, p))
	return len(p), nil
}

// start starts a process and reports what it writes and how it ends.
func (a *agent) start(q wire.Request) {
	cmd := exec.Command(q.Argv[0], q.Argv[1:]...)
	cmd.Dir = "/root"
	cmd.Env = append([]string{"PATH=" + path, "HOME=/root"}, q.Env...)
	cmd.Stdout = stream{a, q.ID, func(id int, p []byte) wire.Reply { return wire.Reply{ID: id, Out: p} }}
	cmd.Stderr = stream{a, q.ID, func(id int, p []byte) wire.Reply { return wire.Reply{ID: id, Err: p} }}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second // a child that lives on may hold the output open
	if err := cmd.Start(); err != nil {
		a.send(wire.Reply{ID: q.ID, Failed: err.Error()})
		return
	}
	a.mu.Lock()
	a.group[q.ID] = cmd.Process.Pid
	a.mu.Unlock()
	go func() {
		err := cmd.Wait()
		a.mu.Lock()
		delete(a.group, q.ID)
		a.mu.Unlock()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
			a.send(wire.Reply{ID: q.ID, Failed: err.Error()})
			return
		}
		status := cmd.ProcessState.ExitCode()
		if w := cmd.ProcessState.Sys().(syscall.WaitStatus); w.Signaled() {
			status = 128 + int(w.Signal())
		}
		a.send(wire.Reply{ID: q.ID, Exited: true, Status: status})
	}()
}

func (a *agent) signal(id int, s syscall.Signal) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if group, ok := a.group[id]; ok {
		_ = unix.Kill(-group, s) // it may have ended
	}
}
