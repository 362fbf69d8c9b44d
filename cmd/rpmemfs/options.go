package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/rpmemfs/rpmemfs/internal/nodeurl"
	"github.com/rpmemfs/rpmemfs/internal/pki"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/node"
)

// options are what a mount is asked for, by flags or by mount(8).
type options struct {
	pool       string // directory, or the address of a memory node
	mountpoint string
	tls        pki.Options
	steal      bool
	wait       time.Duration // for the lease
	lease      time.Duration
	patience   time.Duration // 0: as long as the lease
	heartbeat  time.Duration // 0: a third of the lease
	queuePairs int           // of an RDMA mount; 0: a default
	metrics    string        // address; empty: none
	size       byteSize      // of a new pool; 0: a default
	device     string        // that holds a new pool's data; empty: a file
	overlay    byteSize      // memory of one file's open epoch; 0: a default
	cache      cacheSize     // memory for clean pages
	onClose    closeMode
	epochs     epochOptions
	control    string // path of the socket; empty: a default; "none": no socket
	allowOther bool
	readOnly   bool
	follow     time.Duration // between refreshes of a mount that is read-only; 0: none
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

A memory node (see "rpmemfs serve") is mounted by its address. The mount takes the lease
of the share, and waits for it if another one has it: when that ends, or is dead for
as long as its lease lasts. A mount that loses its lease can write nothing more; its
files give EIO until it is mounted again. While the memory node does not answer, calls wait:
as long as the lease lasts, or for --patience if that is longer. Beyond the lease the mount
goes on when the memory node answers again, unless anybody else wanted the share. With rdma:// the bytes of files go over RDMA, not
encrypted, and everything else over TLS.

With --read-only a share needs no lease: any number of nodes mount it beside the one
that writes. Each file shows one committed epoch, whole, the newest when it was first
used, and goes on to the newest one by "rpmemctl refresh", or every so often with
--follow.

SIGTERM and SIGINT unmount: the daemon waits for programs that use the mount, and
names them. A second signal detaches the mount from the file tree and still waits;
a third ends the daemon at once, as a crash does.`

const mountExample = `  rpmemfs mount --pool /var/lib/pools/a --size 50GiB /mnt/a
  rpmemfs mount --pool ~/pool --background ~/mnt; umount ~/mnt
  rpmemfs mount --pool /var/lib/pools/a --epoch 64ms --quiesce stop /mnt/a
  rpmemfs mount --pki /etc/rpmemfs tcp://memnode/app /mnt/app
  rpmemfs mount --pki /etc/rpmemfs rdma://memnode/app /mnt/app
  mount -t fuse.rpmemfs /var/lib/pools/a /mnt/a -o size=50GiB,on_close=commit`

// longWait is for ever, for who waits for a lease.
const longWait = 365 * 24 * time.Hour

func mountCommand() *cobra.Command { return mountCommandOf(&options{}) }

// mountCommandOf is mountCommand, and sets o from its flags.
func mountCommandOf(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "mount [flags] {--pool DIR | {tcp|rdma}://HOST[:PORT][/SHARE]} MOUNTPOINT",
		Short:   "Mount a pool, or a share of a memory node, on a directory",
		Long:    mountLong,
		Example: mountExample,
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.setPlaces(args); err != nil {
				return err
			}
			if err := o.epochs.check(o); err != nil {
				return err
			}
			if err := o.checkReader(); err != nil {
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
	f.StringVar(&o.device, "device", "", helpDevice)
	f.BoolVar(&o.background, "background", false, "return when the mount is ready; the daemon goes on")
	f.Var(&o.onClose, "on-close", "what uncommitted stores through mappings do at the last close: rollback or commit")
	f.Var(&o.overlay, "overlay", "memory that one file's open epoch takes before it goes to the pool, such as 64MiB")
	f.Var(&o.cache, "cache", "memory for pages that the kernel has dropped (default 64MiB for a memory node, 0 for a pool of this machine)")
	o.epochs.addFlags(f)
	addTLSFlags(cmd, &o.tls)
	f.BoolVar(&o.steal, "steal", false, "take the lease of the share from who has it; what that mount did not commit is lost")
	f.DurationVar(&o.wait, "wait", longWait, "how long to wait for the lease of the share")
	f.DurationVar(&o.lease, "lease", 0, "how long the lease lasts without a sign of life (default: as the memory node says)")
	f.DurationVar(&o.patience, "patience", 0, "how long calls wait for a memory node that does not answer, if longer than the lease, before they fail with EIO")
	f.DurationVar(&o.heartbeat, "heartbeat", 0, "time between renewals of the lease, at most half of it (default: a third)")
	f.IntVar(&o.queuePairs, "queue-pairs", 0, "RDMA queue pairs to use, where one cannot fill the link (default 1, at most 16)")
	f.StringVar(&o.metrics, "metrics", "", "serve Prometheus metrics and /healthz on this `address`, such as 127.0.0.1:9470")
	f.StringVar(&o.control, "control", "", "path of the control socket, or none (default in /run/rpmemfs or $XDG_RUNTIME_DIR/rpmemfs)")
	f.BoolVar(&o.allowOther, "allow-other", false, "let other users in, under the files' permissions (default for root)")
	f.BoolVar(&o.readOnly, "read-only", false, "refuse every change; of a memory node's share take no lease, and show committed epochs")
	f.DurationVar(&o.follow, "follow", 0, "with --read-only, how often all files go on to their newest epochs (default: when asked)")
	f.BoolVar(&o.noExec, "no-exec", false, "let no program of the mount be executed")
	f.TextVar(&o.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	f.BoolVar(&o.logJSON, "log-json", false, "log as JSON, a line each")
	f.StringVar(&o.logFile, "log-file", "", "append the log to a file (default: standard error, or syslog with --background)")
	o.epochs.complete(cmd)
	must(cmd.MarkFlagDirname("pool"))
	must(cmd.RegisterFlagCompletionFunc("on-close", cobra.FixedCompletions([]string{"rollback", "commit"}, cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.RegisterFlagCompletionFunc("log-level", cobra.FixedCompletions([]string{"debug", "info", "warn", "error"}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

const helpDevice = "device-dax `device`, such as /dev/dax0.0, that holds the data of a new pool; the pool's directory then has the names only"

const maxQueuePairs = 16

// minFollow is how often a mount can be refreshed at most: each time the one that
// writes is asked for every file in use.
const minFollow = 10 * time.Millisecond

// checkReader refuses what does not go with a mount that only reads.
func (o *options) checkReader() error {
	switch {
	case o.follow != 0 && (!o.readOnly || !o.remote()):
		return errors.New("--follow is for --read-only mounts of a memory node: nobody else changes what this one shows")
	case o.follow != 0 && o.follow < minFollow:
		return fmt.Errorf("--follow %v: want at least %v", o.follow, minFollow)
	case o.steal && o.readOnly:
		return errors.New("--steal takes a lease, and --read-only needs none")
	}
	return nil
}

// minHeartbeat is how often a mount can renew its lease at most.
const minHeartbeat = 10 * time.Millisecond

// checkWaits refuses times that make no sense.
func (o *options) checkWaits() error {
	switch {
	case o.patience < 0 || o.patience > node.MaxPatience:
		return fmt.Errorf("--patience %v: want 0 to %v", o.patience, node.MaxPatience)
	case o.heartbeat != 0 && o.heartbeat < minHeartbeat:
		return fmt.Errorf("--heartbeat %v: want at least %v", o.heartbeat, minHeartbeat)
	case o.lease != 0 && o.heartbeat > o.lease/2:
		return fmt.Errorf("--heartbeat %v: want at most half of the lease, %v", o.heartbeat, o.lease/2)
	}
	return nil
}

// setPlaces takes the arguments: [SOURCE] MOUNTPOINT.
func (o *options) setPlaces(args []string) error {
	o.mountpoint = args[len(args)-1]
	switch {
	case len(args) == 2 && o.pool != "":
		return fmt.Errorf("both --pool %s and %s: which is to be mounted?", o.pool, args[0])
	case len(args) == 2:
		o.pool = args[0]
	case o.pool == "":
		return errors.New("what is to be mounted? Name a pool with --pool DIR, or a memory node as in tcp://host/share")
	}
	if o.remote() {
		if o.size != 0 || o.device != "" {
			return errors.New("--size and --device are for a pool of one's own: that of a memory node has its size")
		}
		u, err := nodeurl.Parse(o.pool)
		if err == nil && o.queuePairs != 0 && (!u.RDMA || o.queuePairs < 0 || o.queuePairs > maxQueuePairs) {
			err = fmt.Errorf("--queue-pairs %d: want 1 to %d, and rdma://", o.queuePairs, maxQueuePairs)
		}
		return cmp.Or(err, o.checkWaits())
	}
	if o.steal || o.wait != longWait || o.lease != 0 || o.patience != 0 || o.heartbeat != 0 || o.queuePairs != 0 || o.tls != (pki.Options{}) {
		return errors.New("--steal, --wait, --lease, --patience, --heartbeat and certificates are for memory nodes, as in tcp://host/share: a pool of one's own needs none")
	}
	return nil
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

// A cacheSize is a byteSize that may be 0, and knows whether it was set.
type cacheSize struct {
	byteSize
	set bool
}

func (c *cacheSize) Set(s string) error {
	c.set = true
	if n, err := humanize.ParseBytes(s); err == nil && n == 0 {
		c.byteSize = 0
		return nil
	}
	return c.byteSize.Set(s)
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
