package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/internal/quiesce"
)

type stoppedJSON struct {
	checkpointJSON
	Pages     uint64        `json:"pages"`
	Processes int           `json:"processes"`
	Threads   int           `json:"threads"`
	Pause     time.Duration `json:"pause_ns"`
}

// checkpointStopped commits a file, and keeps the epoch if args has a name for it,
// while all processes that map it for writing stand still.
func (a *app) checkpointStopped(ctx context.Context, args []string) error {
	path := args[0]
	p, err := a.regular(ctx, path)
	if err != nil {
		return err
	}
	ctx, cancel := a.request(ctx)
	defer cancel()
	st, err := p.stat(ctx, a)
	if err != nil {
		return err
	}
	if st.GetAttached() > 0 {
		return hinted(fmt.Errorf("%s: %s attached, and must run to reach a restart point", path, plural(uint64(st.GetAttached()), "program")),
			"Leave --quiesce out: programs that are attached stop at their restart points by themselves.")
	}
	f, err := bounded(ctx, func() (*os.File, error) { return os.Open(path) })
	if err != nil {
		return fmt.Errorf("%s: %w", path, cause(err))
	}
	defer f.Close()
	file, err := quiesce.FileOf(f)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	// It waits for the kernel, and the kernel for the daemon.
	drain := func(how func(*os.File) error) error {
		_, err := bounded(ctx, func() (struct{}, error) { return struct{}{}, how(f) })
		return err
	}
	if err := drain(quiesce.Preclean); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	result := stoppedJSON{checkpointJSON: checkpointJSON{Path: path}}
	var failed error
	report, err := quiesce.Run(ctx, file, nil,
		func() error { return drain(quiesce.Drain) },
		func(int) error {
			failed = a.commitStopped(ctx, p, args[1:], &result)
			return failed
		})
	switch {
	case failed != nil:
		return failed
	case err != nil:
		return fmt.Errorf("%s: %w", path, err)
	}
	result.Processes, result.Threads, result.Pause = report.Processes, report.Threads, report.Pause
	return a.print(result, func(w io.Writer) {
		kept := ""
		if result.Name != "" {
			kept = " and kept as " + clean(result.Name)
		}
		processes := plural(uint64(result.Processes), "process")
		if result.Processes != 1 {
			processes = fmt.Sprintf("%d processes", result.Processes)
		}
		fmt.Fprintf(w, "%s: epoch %d is committed%s: %s; %s of %s stood still for %v\n", clean(path), result.Epoch, kept,
			plural(result.Pages, "page"), plural(uint64(result.Threads), "thread"), processes, result.Pause.Round(10*time.Microsecond))
	})
}

// commitStopped is what happens while the processes stand still.
func (a *app) commitStopped(ctx context.Context, p *place, name []string, result *stoppedJSON) error {
	st, err := p.stat(ctx, a)
	if err != nil {
		return err
	}
	result.Pages = st.GetDirtyMappedPages() + st.GetDirtyWrittenPages()
	if len(name) == 0 {
		resp, err := p.client.Commit(ctx, &controlpb.CommitRequest{Ino: p.ino})
		if err != nil {
			return fmt.Errorf("%s: %w", p.path, err)
		}
		result.Epoch = resp.GetEpoch()
		return nil
	}
	resp, err := p.client.SaveCheckpoint(ctx, &controlpb.SaveCheckpointRequest{Ino: p.ino, Name: name[0]})
	if err != nil {
		return a.checkpointError(p.path, name[0], err)
	}
	result.Epoch, result.Name = resp.GetCheckpoint().GetEpoch(), resp.GetCheckpoint().GetName()
	return nil
}
