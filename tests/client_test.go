package tests

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/client"
)

// roleClient attaches to a file with package client, as one participant, and obeys,
// one command a line:
//
//	store STAMP FROM TO	stamp pages [FROM, TO)
//	grow PAGES
//	stamps			print the stamps of all pages, in runs
//	point, allow, prevent	of the participant
//	checkpoint MS		Participant.Checkpoint, with a deadline
//	durable			wait until the epoch before the open one is
//
// It answers "ok" or one word for the error.
func roleClient(args []string) error {
	r, err := client.Open(args[0], client.Options{})
	if err != nil {
		return err
	}
	p := r.Join("the participant")
	fmt.Println("ready")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		answer, err := obeyClient(r, p, strings.Fields(in.Text()))
		var late *client.LateError
		switch {
		case errors.Is(err, client.ErrLost):
			answer = "lost"
		case errors.Is(err, client.ErrGone):
			answer = "gone"
		case errors.As(err, &late):
			answer = "late"
		case err != nil:
			answer = "error: " + err.Error()
		}
		fmt.Println(answer)
	}
	p.Leave()
	return r.Close()
}

func obeyClient(r *client.Region, p *client.Participant, words []string) (string, error) {
	numbers := make([]uint64, 3)
	for i, word := range words[1:] {
		n, err := strconv.ParseUint(word, 10, 64)
		if err != nil {
			return "", err
		}
		numbers[i] = n
	}
	mem := r.Bytes()
	var err error
	switch words[0] {
	case "store":
		for no := numbers[1]; no < numbers[2]; no++ {
			stampPage(mem[no*pageSize:(no+1)*pageSize], no, numbers[0])
		}
	case "grow":
		err = r.Grow(int64(numbers[0]) * pageSize)
	case "stamps":
		return stampRuns(mem)
	case "point":
		err = p.RestartPoint()
	case "allow":
		p.Allow()
	case "prevent":
		err = p.Prevent()
	case "checkpoint":
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(numbers[0])*time.Millisecond)
		defer cancel()
		_, err = p.Checkpoint(ctx)
	case "durable":
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		err = r.WaitDurable(ctx, r.Epoch()-1)
	default:
		err = errCommand
	}
	return "ok", err
}

// attachTo starts a program that attaches to a file.
func (m *mount) attachTo(name string) *mapper {
	m.t.Helper()
	c := m.role("client", m.path(name))
	c.mustLine("ready")
	return &mapper{m.t, c}
}

// isLate asks for a checkpoint that cannot be. The program is told who is late; on a
// machine that stands still its own deadline may come before that, a quarter later.
func (p *mapper) isLate() {
	p.t.Helper()
	got := ""
	for ms := 200; got != "late" && ms <= 20_000; ms *= 3 {
		got = p.do("checkpoint %d", ms)
		if got != "late" && got != "error: "+context.DeadlineExceeded.Error() {
			break
		}
	}
	if got != "late" {
		p.t.Fatalf("a checkpoint without the other program: got %q, want late", got)
	}
}

// Package client on a mount: what a checkpoint covers, what a death does to others,
// who is late, what the daemon's end is.
func TestClient(t *testing.T) {
	m := newMount(t, fastDir(t))
	m.role("truncate", m.path("f"), "0").mustFinish(patience)
	a, b := m.attachTo("f"), m.attachTo("f")
	a.ok("grow 300")
	a.ok("store 1 0 300")
	b.ok("allow")
	a.ok("checkpoint 10000")
	a.ok("durable")
	b.ok("prevent")

	// Stores of both, one epoch; the file is a process's like any other's.
	a.ok("store 2 0 100")
	b.ok("store 2 100 200")
	b.ok("allow")
	a.ok("allow")
	m.ctl("checkpoint", m.path("f"), "two")
	a.ok("prevent")
	b.ok("prevent")
	b.wants("2*200 1*100", "stamps")

	// Who does not come is late, and nothing happens.
	b.ok("store 3 0 1")
	a.isLate()
	b.ok("point")
	if st := m.stat("f"); st.Checkpoints != 1 {
		t.Errorf("got %d checkpoints, want 1", st.Checkpoints)
	}

	// A death takes the open epoch along, in everybody's memory.
	a.ok("store 4 50 60")
	a.ok("allow")
	b.c.kill()
	until(t, "the program is told", func() bool {
		got := a.do("prevent")
		if got == "ok" {
			a.ok("allow")
		}
		return got == "lost"
	})
	a.wants("2*200 1*100", "stamps")
	a.ok("point")
	a.ok("store 5 7 8")
	a.ok("checkpoint 10000")
	a.wants("2*7 5*1 2*192 1*100", "stamps")

	// Far beyond what was there.
	a.ok("grow 30000")
	a.ok("store 6 29999 30000")
	a.ok("checkpoint 10000")
	a.ok("store 7 0 300")
	m.kill()
	until(t, "the program is told", func() bool { return a.do("point") == "gone" })
	a.c.kill()
	m.start()
	c := m.attachTo("f")
	c.wants("2*7 5*1 2*192 1*100 0*29699 6*1", "stamps")

	// Leaving in order: what is left is stored by the kernel, and rolled back.
	c.ok("store 8 0 10")
	c.quit()
	m.settle("f")
	d := m.attachTo("f")
	d.wants("2*7 5*1 2*192 1*100 0*29699 6*1", "stamps")
	d.quit()
}
