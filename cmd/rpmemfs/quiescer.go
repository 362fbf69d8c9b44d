package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/control"
	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/internal/quiesce"
	"github.com/rpmemfs/rpmemfs/volume"
)

// quiescerName is the hidden command of the helper that runQuiescer starts.
const quiescerName = "commit-epochs"

func quiescerCommand() *cobra.Command {
	q := quiescer{names: make(map[uint64]string), nameless: make(map[uint64]time.Time), said: make(map[uint64]string), due: make(map[uint64]time.Time)}
	socket := ""
	cmd := &cobra.Command{
		Use:    quiescerName + " --epoch TIME --socket PATH MOUNTPOINT",
		Short:  "Commit the files that programs map, until standard input ends",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q.mountpoint = args[0]
			ctx, cancel := context.WithCancel(cmd.Context())
			go func() {
				_, _ = io.Copy(io.Discard, os.Stdin) // until the daemon is gone
				cancel()
			}()
			var err error
			if q.client, err = control.Dial(socket); err != nil {
				return err
			}
			return q.run(ctx)
		},
	}
	cmd.Flags().DurationVar(&q.interval, epochFlag, 0, "time between epochs")
	cmd.Flags().StringVar(&socket, "socket", "", "path of the daemon's control socket")
	return cmd
}

// A quiescer commits an epoch of each file that programs map for writing, every
// interval, while it has those programs stopped. Files that programs are attached to
// have epochs of their own.
type quiescer struct {
	client     *control.Client
	mountpoint string
	interval   time.Duration
	device     quiesce.Device

	names    map[uint64]string    // paths below the mountpoint, as last seen
	nameless map[uint64]time.Time // files without a name, and when to look again
	said     map[uint64]string    // the last complaint about a file
	due      map[uint64]time.Time // files with an interval of their own
}

const (
	// stopLimit bounds one stop, and with it how long programs stand still when the
	// daemon hangs.
	stopLimit = 10 * time.Second
	// namelessFor is how long a file without a name is not looked for. A removed
	// file does not outlive its programs: it needs no epochs.
	namelessFor = 5 * time.Second
)

// run commits until ctx ends. The next round begins when the interval is over, and
// never before the last one has ended.
func (q *quiescer) run(ctx context.Context) error {
	top, err := os.Open(q.mountpoint)
	if err != nil {
		return err
	}
	file, err := quiesce.FileOf(top)
	_ = top.Close() // nothing was written; held open it would keep the mount busy
	if err != nil {
		return err
	}
	q.device = file.Device
	for next := time.Now(); ; next = later(next.Add(q.interval), time.Now()) {
		timer := time.NewTimer(time.Until(next))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		if err := q.round(ctx); err != nil && ctx.Err() == nil {
			return err
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// round commits each file that is due. It returns an error if the daemon does not
// answer.
func (q *quiescer) round(ctx context.Context) error {
	status, err := q.client.Status(ctx, &controlpb.StatusRequest{})
	if err != nil {
		return err
	}
	if status.GetOpenHandles() == 0 {
		return nil // a mapping holds one
	}
	writers, err := quiesce.WritersOn(q.device)
	if err != nil {
		return err
	}
	now := time.Now()
	for _, ino := range slices.Sorted(maps.Keys(writers)) {
		if now.Before(q.due[ino]) || now.Before(q.nameless[ino]) {
			continue
		}
		err := q.commit(ctx, ino, writers[ino])
		if errors.Is(err, control.ErrUnavailable) || ctx.Err() != nil {
			return err
		}
		q.say(ino, err)
	}
	q.forget(writers)
	return nil
}

// say tells about an error of a file, once until it is another one.
func (q *quiescer) say(ino uint64, err error) {
	text := ""
	if err != nil {
		text = fmt.Sprintf("file %d: %v", ino, err)
	}
	if text != "" && text != q.said[ino] {
		fmt.Println(strings.ReplaceAll(text, "\n", " "))
	}
	q.said[ino] = text
}

// forget drops what is known of files that nobody maps.
func (q *quiescer) forget(writers map[uint64][]int) {
	mapped := func(ino uint64) bool { return writers[ino] != nil }
	maps.DeleteFunc(q.names, func(ino uint64, _ string) bool { return !mapped(ino) })
	maps.DeleteFunc(q.nameless, func(ino uint64, _ time.Time) bool { return !mapped(ino) })
	maps.DeleteFunc(q.said, func(ino uint64, _ string) bool { return !mapped(ino) })
	maps.DeleteFunc(q.due, func(ino uint64, _ time.Time) bool { return !mapped(ino) })
}

// commit makes an epoch of a file, if it changed.
func (q *quiescer) commit(ctx context.Context, ino uint64, pids []int) error {
	st, err := q.client.Stat(ctx, &controlpb.StatRequest{Ino: ino})
	if err != nil {
		return err
	}
	if st.GetFile().GetAttached() > 0 {
		return nil
	}
	f, err := q.open(ctx, ino)
	if f == nil {
		return err
	}
	// Held open it would keep the mount busy, and put the contract of the last
	// close off.
	defer f.Close()
	interval, err := intervalOf(f)
	if err != nil || interval == 0 {
		return err
	}
	begin := time.Now()
	if err := quiesce.Preclean(f); err != nil {
		return err
	}
	if st, err = q.client.Stat(ctx, &controlpb.StatRequest{Ino: ino}); err != nil {
		return err
	}
	if s := st.GetFile(); s.GetDirtyMappedPages() == 0 && s.GetDirtyWrittenPages() == 0 && !s.GetSizeChanged() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, stopLimit)
	defer cancel()
	_, err = quiesce.Run(ctx, quiesce.File{Device: q.device, Ino: ino}, pids,
		func() error { return drain(ctx, f) },
		func(threads int) error {
			if threads == 0 {
				return nil // all have ended: what they left is for the last close
			}
			_, err := q.client.Commit(ctx, &controlpb.CommitRequest{Ino: ino})
			return err
		})
	if interval > q.interval {
		q.due[ino] = begin.Add(interval)
	}
	return err
}

// drain is quiesce.Drain that gives up when ctx ends: the kernel waits for a daemon
// that may hang.
func drain(ctx context.Context, f *os.File) error {
	done := make(chan error, 1)
	go func() { done <- quiesce.Drain(f) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// intervalOf returns the time between the epochs of a file: its own, or the mount's.
func intervalOf(f *os.File) (time.Duration, error) {
	buf := make([]byte, 64)
	n, err := unix.Fgetxattr(int(f.Fd()), volume.XattrInterval, buf)
	if err != nil {
		return 0, fmt.Errorf("attribute %s: %w", volume.XattrInterval, err)
	}
	return time.ParseDuration(string(buf[:n]))
}

// open opens a file by its number; nil if it has no name.
func (q *quiescer) open(ctx context.Context, ino uint64) (*os.File, error) {
	for look := range 2 {
		path, known := q.names[ino]
		if known {
			f, err := os.Open(filepath.Join(q.mountpoint, path))
			if err == nil {
				file, err := quiesce.FileOf(f)
				if err == nil && file == (quiesce.File{Device: q.device, Ino: ino}) {
					return f, nil
				}
				_ = f.Close() // another file has this name now
			} else if !errors.Is(err, os.ErrNotExist) {
				return nil, err
			}
		}
		if look == 0 {
			if err := q.lookUp(ctx); err != nil {
				return nil, err
			}
		}
	}
	q.nameless[ino] = time.Now().Add(namelessFor)
	return nil, nil
}

// lookUp asks the daemon for the names of the files that are open.
func (q *quiescer) lookUp(ctx context.Context) error {
	stream, err := q.client.OpenFiles(ctx, &controlpb.OpenFilesRequest{})
	if err != nil {
		return err
	}
	clear(q.names)
	for {
		f, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		q.names[f.GetIno()] = string(f.GetPath())
	}
}
