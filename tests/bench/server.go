package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// limit bounds every wait of the bench.
const limit = 5 * time.Minute

// A server is a running FUSE daemon.
type server struct {
	mnt    string
	ready  time.Time // when it said that it is mounted
	cmd    *exec.Cmd
	out    *bufio.Scanner
	cancel context.CancelFunc
}

// serve starts a daemon and waits for its line "mounted".
func serve(mnt, name string, args ...string) (*server, error) {
	s, err := launch(mnt, name, args...)
	if err != nil {
		return nil, err
	}
	_, err = s.await("mounted")
	return s, err
}

// launch starts a daemon, on a directory if it is one that mounts.
func launch(mnt, name string, args ...string) (*server, error) {
	if mnt != "" {
		// It exists after a kill, as a dead mount that nothing may touch.
		if err := os.Mkdir(mnt, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	s := &server{mnt: mnt, cmd: exec.CommandContext(ctx, name, args...), cancel: cancel}
	s.cmd.Stderr = os.Stderr
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	pipe, err := s.cmd.StdoutPipe()
	if err != nil {
		cancel()
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		cancel()
		return nil, err
	}
	s.out = bufio.NewScanner(pipe)
	return s, nil
}

// await waits for the daemon's first line, which begins with word, and returns the
// rest of it. After an error the daemon has ended.
func (s *server) await(word string) (string, error) {
	s.out.Scan()
	rest, ok := strings.CutPrefix(s.out.Text(), word+" ")
	if !ok {
		s.cancel()
		return "", errors.Join(fmt.Errorf("%s: not %s: %q", s.cmd.Path, word, s.out.Text()), s.cmd.Wait())
	}
	s.ready = time.Now()
	return rest, nil
}

// stop unmounts and returns what the daemon still said.
func (s *server) stop() (string, error) {
	defer s.cancel()
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // reported by Wait
	var rest []string
	for s.out.Scan() {
		rest = append(rest, s.out.Text())
	}
	if err := s.cmd.Wait(); err != nil {
		return "", fmt.Errorf("%s: %w", s.cmd.Path, err)
	}
	return strings.Join(rest, "\n"), nil
}

// kill ends the daemon as a crash does.
func (s *server) kill() {
	defer s.cancel()
	_ = s.cmd.Process.Kill() // it runs: nobody else ends it
	_ = s.cmd.Wait()         // "signal: killed"
}

// mount starts rpmemfs on a pool of the bench.
func (b *bench) mount(pool string, args ...string) (*server, error) {
	mnt := filepath.Join(b.dir, "mnt")
	args = append([]string{"mount", "--log-level=error", "--pool", filepath.Join(b.dir, pool)}, args...)
	return serve(mnt, b.rpmemfs, append(args, mnt)...)
}

// pair starts both file systems.
func (b *bench) pair(size string) (ours, theirs *server, err error) {
	if ours, err = b.mount("pool", "--size", size); err != nil {
		return nil, nil, err
	}
	original := filepath.Join(b.dir, "original")
	if err := os.MkdirAll(original, 0o755); err != nil {
		return nil, nil, err
	}
	theirs, err = serve(filepath.Join(b.dir, "loop"), b.loopback, original, filepath.Join(b.dir, "loop"))
	if err != nil {
		return nil, nil, err
	}
	return ours, theirs, theirs.relaxWriteback()
}

// relaxWriteback lifts the kernel's limits on dirty pages of a mount, as rpmemfs
// does for its own: else the flusher would send most pages before the system call
// that is timed.
func (s *server) relaxWriteback() error {
	for _, mount := range mounts() {
		if mount.dir == s.mnt {
			dir := filepath.Join("/sys/class/bdi", mount.device)
			return errors.Join(
				os.WriteFile(filepath.Join(dir, "strict_limit"), []byte("0"), 0),
				os.WriteFile(filepath.Join(dir, "max_ratio"), []byte("100"), 0))
		}
	}
	return fmt.Errorf("%s is not mounted", s.mnt)
}

// A mounted is a mount of this machine.
type mounted struct{ device, dir string }

// mounts lists the mounts of this machine; none if /proc cannot tell.
func mounts() (all []mounted) {
	table, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 4 {
			all = append(all, mounted{fields[2], fields[4]})
		}
	}
	return all
}

// unpair stops both, makes sure that the loopback file system was not passed
// through, and removes what they kept.
func (b *bench) unpair(ours, theirs *server) error {
	_, err := ours.stop()
	said, err2 := theirs.stop()
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	if n, _ := strconv.Atoi(strings.TrimPrefix(said, "writes ")); n == 0 {
		return fmt.Errorf("loopback saw no WRITE (%q): it was passed through, nothing here can be compared", said)
	}
	return b.discard()
}

// abandon takes away the mounts that a failed measurement left.
func (b *bench) abandon() {
	for _, mount := range mounts() {
		if strings.HasPrefix(mount.dir, b.dir+"/") {
			// Busy or not: the daemons end with this process.
			_ = syscall.Unmount(mount.dir, syscall.MNT_DETACH)
		}
	}
}

// discard removes the pools and files of a measurement.
func (b *bench) discard() error {
	var err error
	for _, name := range []string{"pool", "own", "original"} {
		err = errors.Join(err, os.RemoveAll(filepath.Join(b.dir, name)))
	}
	return err
}

// A storer is a running helper of tests/c/store.c on one file.
type storer struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func (b *bench) storer(file string, bytes int64) (*storer, error) {
	s := &storer{cmd: exec.Command(b.store, file, strconv.FormatInt(bytes, 10))}
	s.cmd.Stderr = os.Stderr
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	s.out = bufio.NewScanner(out)
	return s, s.cmd.Start()
}

// do runs a command of the helper and returns how long it took there.
func (s *storer) do(command string, args ...any) (time.Duration, error) {
	if _, err := fmt.Fprintln(s.in, append([]any{command}, args...)...); err != nil {
		return 0, err
	}
	if !s.out.Scan() {
		return 0, fmt.Errorf("store: %s: no answer", command)
	}
	n, err := strconv.ParseInt(s.out.Text(), 10, 64)
	return time.Duration(n), err
}

func (s *storer) close() error {
	return errors.Join(s.in.Close(), s.cmd.Wait())
}
