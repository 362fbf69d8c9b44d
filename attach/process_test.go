package attach

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/attach/ring"
)

// childEnv holds the socket's path in the process that TestChildKeepsSocket starts.
const childEnv = "RPMEMFS_ATTACH_TEST_SOCKET"

// A process dies while a child of it holds its socket open: that is a death too,
// which only the pidfd tells.
func TestChildKeepsSocket(t *testing.T) {
	if path := os.Getenv(childEnv); path != "" {
		attachAndDie(t, path)
	}
	r := newFakeRegion(t, 8)
	s, path := serve(t, r, nil)
	m := join(t, path, r, parks, ring.MinFrames)
	cmd := exec.Command(os.Args[0], "-test.run=^TestChildKeepsSocket$")
	cmd.Env = append(os.Environ(), childEnv+"="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	sleeper, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatalf("the child said %q", out)
	}
	defer func() { _ = unix.Kill(sleeper, unix.SIGKILL) }()
	m.await("LOST", func() bool { return m.losses == 1 })
	if st, _ := s.Status(testIno); len(st.Members) != 1 {
		t.Errorf("%d members", len(st.Members))
	}
	if err := unix.Kill(sleeper, 0); err != nil {
		t.Errorf("the child's child: %v; the test showed nothing", err)
	}
}

// attachAndDie attaches the process, prints the pid of a child that keeps the
// socket, and ends without a word.
func attachAndDie(t *testing.T, path string) {
	m := join(t, path, newFakeRegion(t, 8), parks, ring.MinFrames)
	file, err := m.conn.File()
	if err != nil {
		t.Fatal(err)
	}
	sleep := exec.Command("sleep", "60")
	sleep.ExtraFiles = []*os.File{file}
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = os.Stdout.WriteString(strconv.Itoa(sleep.Process.Pid)) // the parent says if it is missing
	os.Exit(1)
}
