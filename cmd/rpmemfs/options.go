package main

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/rpmemfs/rpmemfs/namespace"
)

// options are what a mount is asked for, by flags or by mount(8).
type options struct {
	pool       string
	mountpoint string
	size       byteSize // of a new pool; 0: a default
	overlay    byteSize // memory of one file's open epoch; 0: a default
	onClose    closeMode
	epochs     epochOptions
	control    string // path of the socket; empty: a default; "none": no socket
	allowOther bool
	readOnly   bool
	noExec     bool
	background bool
	logLevel   slog.Level
	logJSON    bool
	logFile    string
}

const mountLong = `Mount a pool on a directory.

The pool is a directory. If there is none yet, it is made, with room for --size.
Every file of the mount keeps its committed epochs in it: msync and fsync commit
all that was stored in a file since the last time, whole or not at all, and a
crash of the program, of this daemon or of the machine goes back to that.

What write(2) wrote also commits when the file is closed for the last time.
Stores through a mapping that no msync committed are rolled back then, unless
--on-close=commit, or the file's attribute user.rpmemfs.on_close, says otherwise.

With --epoch, files that programs are attached to (see rpmemfs.h) commit every so
often, when the programs are at restart points. --quiesce stop does so for all other
programs that map files: it stops them for the moment it takes, wherever they are. The
file's attribute user.rpmemfs.interval sets another time, or 0 for none.

SIGTERM and SIGINT unmount: the daemon waits for programs that use the mount, and
names them. A second signal detaches the mount from the file tree and still waits;
a third ends the daemon at once, as a crash does.`

const mountExample = `  rpmemfs mount --pool /var/lib/pools/a --size 50GiB /mnt/a
  rpmemfs mount --pool ~/pool --background ~/mnt; umount ~/mnt
  rpmemfs mount --pool /var/lib/pools/a --epoch 64ms --quiesce stop /mnt/a
  mount -t fuse.rpmemfs /var/lib/pools/a /mnt/a -o size=50GiB,on_close=commit`

func mountCommand() *cobra.Command {
	o := options{}
	cmd := &cobra.Command{
		Use:     "mount --pool DIR [flags] MOUNTPOINT",
		Short:   "Mount a pool on a directory",
		Long:    mountLong,
		Example: mountExample,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.mountpoint = args[0]
			if err := o.epochs.check(&o); err != nil {
				return err
			}
			if o.background {
				return startBackground()
			}
			return o.run(cmd.Context())
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.pool, "pool", "", "directory of the pool; made if it does not exist")
	f.Var(&o.size, "size", "size of a new pool, such as 10GiB (default: half of what is free there)")
	f.BoolVar(&o.background, "background", false, "return when the mount is ready; the daemon goes on")
	f.Var(&o.onClose, "on-close", "what uncommitted stores through mappings do at the last close: rollback or commit")
	f.Var(&o.overlay, "overlay", "memory that one file's open epoch takes before it goes to the pool, such as 64MiB")
	o.epochs.addFlags(f)
	f.StringVar(&o.control, "control", "", "path of the control socket, or none (default in /run/rpmemfs or $XDG_RUNTIME_DIR/rpmemfs)")
	f.BoolVar(&o.allowOther, "allow-other", false, "let other users in, under the files' permissions (default for root)")
	f.BoolVar(&o.readOnly, "read-only", false, "refuse every change")
	f.BoolVar(&o.noExec, "no-exec", false, "let no program of the mount be executed")
	f.TextVar(&o.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	f.BoolVar(&o.logJSON, "log-json", false, "log as JSON, a line each")
	f.StringVar(&o.logFile, "log-file", "", "append the log to a file (default: standard error, or syslog with --background)")
	o.epochs.complete(cmd)
	must(cmd.MarkFlagRequired("pool"))
	must(cmd.MarkFlagDirname("pool"))
	must(cmd.RegisterFlagCompletionFunc("on-close", cobra.FixedCompletions([]string{"rollback", "commit"}, cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.RegisterFlagCompletionFunc("log-level", cobra.FixedCompletions([]string{"debug", "info", "warn", "error"}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

// must is for calls that fail only if the program is wrong.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// A byteSize is a size in bytes that is written as 10GiB.
type byteSize uint64

func (b *byteSize) String() string {
	if *b == 0 {
		return ""
	}
	return humanize.IBytes(uint64(*b))
}

func (b *byteSize) Type() string { return "SIZE" }

func (b *byteSize) Set(s string) error {
	n, err := humanize.ParseBytes(s)
	if err != nil || n == 0 || n > 1<<60 {
		return fmt.Errorf("%q is not a size such as 10GiB", s)
	}
	*b = byteSize(n)
	return nil
}

// A closeMode is a namespace.OnClose as people write it.
type closeMode namespace.OnClose

func (c *closeMode) String() string {
	if *c == closeMode(namespace.OnCloseCommit) {
		return "commit"
	}
	return "rollback"
}

func (c *closeMode) Type() string { return "MODE" }

func (c *closeMode) Set(s string) error {
	switch strings.ToLower(s) {
	case "rollback":
		*c = closeMode(namespace.OnCloseRollback)
	case "commit":
		*c = closeMode(namespace.OnCloseCommit)
	default:
		return fmt.Errorf("%q is neither rollback nor commit", s)
	}
	return nil
}
