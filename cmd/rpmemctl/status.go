package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/region"
)

func newStatus(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "status [PATH]",
		Short: "show pools: medium, space, open files, counters",
		Long: `Show the pool that holds PATH. Without PATH, show every rpmemfs mount of this machine, or
with --pool that pool. A volatile medium is called so: it survives crashes of
programs and of the daemon, but not of the machine.`,
		Example: `  rpmemctl status
  rpmemctl status /mnt --json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.look = true
			return a.status(cmd.Context(), args)
		},
	}
}

type statusJSON struct {
	Pools []poolJSON `json:"pools"`
}

type poolJSON struct {
	Pool            string `json:"pool"`
	Mountpoint      string `json:"mountpoint"`
	PID             int64  `json:"pid"`
	Version         string `json:"version"`
	OwnerUID        uint32 `json:"owner_uid"`
	Started         string `json:"started"`
	Medium          string `json:"medium"`
	Transport       string `json:"transport,omitempty"` // to a memory node
	Volatile        bool   `json:"volatile"`
	ReadOnly        bool   `json:"read_only"`
	Generation      uint64 `json:"generation"`
	SizeBytes       uint64 `json:"size_bytes"`
	FreeBytes       uint64 `json:"free_bytes"`
	Inodes          uint64 `json:"inodes"`
	OpenFiles       uint64 `json:"open_files"`
	OpenHandles     uint64 `json:"open_handles"`
	DirtyPages      uint64 `json:"dirty_pages"`
	PoisonedFiles   uint64 `json:"poisoned_files"`
	OnClose         string `json:"on_close"`
	Commits         uint64 `json:"commits"`
	Rollbacks       uint64 `json:"rollbacks"`
	RolledBackPages uint64 `json:"rolled_back_pages"`
	FailedCloses    uint64 `json:"failed_closes"`
	PagesCommitted  uint64 `json:"pages_committed"`
	BytesCommitted  uint64 `json:"bytes_committed"`
	PagesUnchanged  uint64 `json:"pages_unchanged"`
	MediumWritten   uint64 `json:"medium_bytes_written"`
	MediumFlushes   uint64 `json:"medium_flushes"`
	Error           string `json:"error,omitempty"`

	Lease    *leaseJSON     `json:"lease,omitempty"`
	Attached []attachedJSON `json:"attached"`

	started int64
}

// A leaseJSON is the right of a mount to write a share of a memory node, or to read it.
type leaseJSON struct {
	Share   string `json:"share"`
	LastsNS uint64 `json:"lasts_ns"`
	Lost    string `json:"lost,omitempty"` // why it is over
}

func leaseOf(s *controlpb.StatusResponse) *leaseJSON {
	if s.GetLease() == nil {
		return nil
	}
	return &leaseJSON{Share: s.GetLease().GetShare(), LastsNS: s.GetLease().GetLasts(), Lost: s.GetLease().GetLost()}
}

func (l *leaseJSON) text(readOnly bool) string {
	switch {
	case l == nil:
		return ""
	case l.Lost != "":
		return "LOST, files give EIO until it is mounted again: " + clean(l.Lost)
	case readOnly:
		return fmt.Sprintf("none, to read share %s; what it shows is kept for %v after each sign of life", clean(l.Share), time.Duration(l.LastsNS))
	}
	return fmt.Sprintf("of share %s, for %v after each sign of life", clean(l.Share), time.Duration(l.LastsNS))
}

func (a *app) status(ctx context.Context, args []string) error {
	var list statusJSON
	if len(args) > 0 || a.pool != "" {
		st, err := a.poolStatus(ctx, a.pathOrHere(args))
		if err != nil {
			return err
		}
		list.Pools = []poolJSON{*st}
		return a.printStatus(list)
	}
	found, err := mounts()
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	list.Pools = []poolJSON{}
	var failed error
	for _, m := range found {
		st, err := a.poolStatus(ctx, m.path)
		if err != nil && m.gone() {
			continue // unmounted meanwhile
		}
		if err != nil {
			st = &poolJSON{Pool: m.source, Mountpoint: m.path, Error: plain(err)}
			failed = err
		}
		list.Pools = append(list.Pools, *st)
	}
	if err := a.printStatus(list); err != nil {
		return err
	}
	return failed
}

func (a *app) poolStatus(ctx context.Context, path string) (*poolJSON, error) {
	p, err := a.place(ctx, path)
	if err != nil {
		return nil, err
	}
	ctx, cancel := a.request(ctx)
	defer cancel()
	s, err := p.client.Status(ctx, &controlpb.StatusRequest{})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &poolJSON{
		Pool: s.GetPool(), Mountpoint: s.GetMountpoint(), PID: s.GetPid(), Version: s.GetVersion(),
		OwnerUID: s.GetOwnerUid(), Started: jsonTime(s.GetStarted()), started: s.GetStarted(),
		Medium: s.GetMedium(), Volatile: s.GetVolatile(), ReadOnly: s.GetReadOnly(), Generation: s.GetGeneration(),
		SizeBytes: s.GetSizeBytes(), FreeBytes: s.GetFreeBytes(), Inodes: s.GetInodes(),
		OpenFiles: s.GetOpenFiles(), OpenHandles: s.GetOpenHandles(),
		DirtyPages: s.GetDirtyPages(), PoisonedFiles: s.GetPoisonedFiles(), OnClose: s.GetOnClose(),
		Commits: s.GetCommits(), Rollbacks: s.GetRollbacks(),
		RolledBackPages: s.GetRolledBackPages(), FailedCloses: s.GetFailedCloses(),
		PagesCommitted: s.GetPagesCommitted(), BytesCommitted: s.GetPagesCommitted() * region.PageSize,
		PagesUnchanged: s.GetPagesUnchanged(),
		MediumWritten:  s.GetMediumBytesWritten(), MediumFlushes: s.GetMediumFlushes(),
		Transport: s.GetTransport(), Lease: leaseOf(s), Attached: attachedFiles(s),
	}, nil
}

func (a *app) printStatus(list statusJSON) error {
	return a.print(list, func(w io.Writer) {
		if len(list.Pools) == 0 {
			fmt.Fprintln(w, "no rpmemfs mounts")
		}
		for i, s := range list.Pools {
			if i > 0 {
				fmt.Fprintln(w)
			}
			a.printPool(w, s)
		}
	})
}

func (a *app) printPool(w io.Writer, s poolJSON) {
	if s.Error != "" {
		fields(w, "pool", clean(s.Pool), "mounted on", clean(s.Mountpoint), "error", s.Error)
		return
	}
	mounted, served := "not mounted", ""
	if s.Mountpoint != "" {
		mounted = clean(s.Mountpoint)
		if s.ReadOnly {
			mounted += ", read-only"
		}
		served = fmt.Sprintf("process %d, version %s, since %s (%s)", s.PID, s.Version, a.time(s.started),
			humanize.RelTime(time.Unix(0, s.started), a.now(), "ago", "from now"))
	}
	medium := s.Medium + ", flushed data survives power loss"
	if s.Volatile {
		medium = s.Medium + ", VOLATILE: nothing survives a reboot or power loss"
	}
	poisoned := ""
	if s.PoisonedFiles > 0 {
		poisoned = plural(s.PoisonedFiles, "file")
	}
	// A memory node that takes the mount for gone does not tell of the pool.
	space, inodes := "", ""
	if s.SizeBytes > 0 {
		used := s.SizeBytes - min(s.FreeBytes, s.SizeBytes)
		space = fmt.Sprintf("%s of %s used, %s free", size(used), size(s.SizeBytes), size(s.FreeBytes))
		inodes = plural(s.Inodes, "inode") + ", "
	}
	fields(w,
		"pool", clean(s.Pool),
		"mounted on", mounted,
		"served by", served,
		"medium", medium,
		"transport", clean(s.Transport),
		"space", space,
		"files", fmt.Sprintf("%s%d open by %s", inodes, s.OpenFiles, plural(s.OpenHandles, "handle")),
		"open epochs", plural(s.DirtyPages, "dirty page"),
		"poisoned", poisoned,
		"commits", fmt.Sprintf("%s of %s; %s of %s; %s", number(s.Commits), plural(s.PagesCommitted, "page"),
			plural(s.Rollbacks, "rollback"), plural(s.RolledBackPages, "page"), plural(s.FailedCloses, "failed close")),
		"written", fmt.Sprintf("%s to the medium, flushed %s; %s arrived unchanged", size(s.MediumWritten),
			plural(s.MediumFlushes, "time"), plural(s.PagesUnchanged, "page")),
		"on close", onCloseText(s.OnClose),
		"generation", fmt.Sprint(s.Generation),
		"lease", s.Lease.text(s.ReadOnly),
	)
	for _, f := range s.Attached {
		fmt.Fprintln(w)
		printAttached(w, f)
	}
}
