package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/attach"
	"github.com/rpmemfs/rpmemfs/fs"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/volume"
)

// A daemon is a mount and all that serves it, innermost first. Each is closed
// after what comes below it.
type daemon struct {
	o       options
	log     *slog.Logger
	started time.Time
	signals chan os.Signal

	source   source
	metrics  *metricsServer // nil without --metrics
	volume   *volume.Volume
	listener net.Listener      // of the control socket; nil without one
	socket   string            // its path
	attach   *net.UnixListener // of attached programs; nil without a control socket
	members  *attach.Server
	server   *fs.Server
}

// run mounts and serves until the mount is gone.
func (o *options) run(ctx context.Context) error {
	log, closeLog, err := o.newLog()
	if err != nil {
		return err
	}
	defer closeLog()
	d := &daemon{o: *o, log: log, started: time.Now()}
	if err := d.prepare(); err != nil {
		return err
	}
	defer d.catchSignals()()
	if err := d.open(ctx); err != nil {
		return errors.Join(err, d.close(ctx))
	}
	d.serve(ctx)
	if err := d.close(ctx); err != nil {
		return fmt.Errorf("the mount is gone, but not all could be closed cleanly: %w", err)
	}
	log.Info("unmounted", "mountpoint", d.o.mountpoint)
	return nil
}

// prepare checks what can be checked before the pool is touched, and makes both
// paths absolute.
func (d *daemon) prepare() error {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return errors.New("no /dev/fuse: load the kernel module with `modprobe fuse`; in a container, start it with --device /dev/fuse --cap-add SYS_ADMIN")
	}
	if os.Geteuid() != 0 {
		if err := unix.Access("/dev/fuse", unix.R_OK|unix.W_OK); err != nil {
			return fmt.Errorf("not root, and /dev/fuse is not for ordinary users here (%w): root can change that with `chmod 666 /dev/fuse`, or run this as root", err)
		}
		if _, err := exec.LookPath("fusermount3"); err != nil {
			return errors.New("not root, and no fusermount3: install it (Debian: apt-get install fuse3), or run this as root")
		}
	}
	var err error
	if !d.o.remote() {
		if d.o.pool, err = filepath.Abs(d.o.pool); err != nil {
			return err
		}
	}
	if d.o.mountpoint, err = prepareMountpoint(d.o.mountpoint, d.log); err != nil {
		return err
	}
	if !d.o.remote() && within(d.o.pool, d.o.mountpoint) {
		return fmt.Errorf("the pool %s lies below the mountpoint %s, which would hide it", d.o.pool, d.o.mountpoint)
	}
	return nil
}

func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// open opens everything. After an error close closes what is open.
func (d *daemon) open(ctx context.Context) error {
	var err error
	opening, opened := d.untilSignal(ctx)
	d.source, err = d.o.openSource(opening, d.log)
	if stopped := opened(); stopped != nil {
		return stopped // close gives back what was opened
	}
	if err != nil {
		return err
	}
	conn := d.source.conn()
	if d.o.metrics != "" {
		if d.metrics, err = listenMetrics(d.o.metrics, d.log); err != nil {
			return err
		}
		conn = d.metrics.meter(conn)
		d.metrics.addRDMA(d.source.rdma)
	}
	if d.listener, d.socket, err = d.o.listenControl(); err != nil {
		return err
	}
	attachSocket := ""
	if d.listener != nil {
		if d.attach, attachSocket, err = listenAttach(d.socket); err != nil {
			return fmt.Errorf("attach socket: %w", err)
		}
	}
	var committed func(time.Duration)
	if d.metrics != nil {
		committed = d.metrics.commits()
	}
	pages := d.o.pages()
	d.volume = volume.New(volume.Config{
		Pool:         d.source,
		Conn:         conn,
		Pages:        pages,
		FrameBytes:   int64(d.o.overlay),
		OnClose:      namespace.OnClose(d.o.onClose),
		Interval:     d.o.epochs.interval,
		ReadOnly:     d.o.readOnly,
		Shared:       d.shared(),
		Follow:       d.o.follow,
		Committed:    committed,
		Mountpoint:   d.o.mountpoint,
		Socket:       d.socket,
		AttachSocket: attachSocket,
		Log:          d.log,
	})
	d.members = d.newAttachServer()
	d.volume.SetMembers(members{d.members})
	if d.metrics != nil {
		d.metrics.addMount(d.volume, d.members.Files, d.source.why)
		d.metrics.addPages(pages)
	}
	d.server, err = fs.Mount(fs.Config{
		Volume:     d.volume,
		Source:     d.o.pool,
		AllowOther: d.o.allowOther || os.Geteuid() == 0,
		ReadOnly:   d.o.readOnly,
		NoExec:     d.o.noExec,
		ReadAhead:  d.source.readAhead(),
		Log:        d.log,
	}, d.o.mountpoint)
	if err != nil && os.Geteuid() != 0 && d.o.allowOther {
		return fmt.Errorf("%w; without root, --allow-other needs the line user_allow_other in /etc/fuse.conf", err)
	}
	return err
}

// serve answers the kernel and the control socket until the mount is gone.
func (d *daemon) serve(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	background := func(name string, run func(context.Context) error) func() {
		ctx, stop := context.WithCancel(ctx)
		done := make(chan struct{})
		wg.Go(func() {
			defer close(done)
			if err := run(ctx); err != nil && ctx.Err() == nil {
				d.log.Error(name+" ended", "err", err)
			}
		})
		return func() { stop(); <-done }
	}
	stopVolume := background("background work", d.volume.Run)
	stopControl := func() {}
	if d.listener != nil {
		stopControl = background("control socket", d.runControl)
	}
	stopAttach := func() {}
	if d.attach != nil {
		stopAttach = background("attach socket", d.runAttach)
	}
	stopReaders := background("readers", d.serveReaders)
	stopLease := background("lease", d.watchLease)
	stopSignals := background("signals", d.handleSignals)
	stopMetrics := func() {}
	if d.metrics != nil {
		stopMetrics = background("metrics", func(ctx context.Context) error { return d.metrics.run(ctx, d.healthy) })
	}
	stopQuiescer := func() {}
	if d.o.epochs.quiesce.Stop {
		stopQuiescer = background("epochs of programs that are not attached", d.runQuiescer)
	}
	d.announce(ctx)
	d.server.Serve()
	stopQuiescer()
	stopSignals()
	stopLease()
	stopReaders()
	stopMetrics()
	stopControl()
	stopAttach()
	stopVolume()
	wg.Wait()
}

// healthy is the answer of /healthz: why programs cannot commit, or nil.
func (d *daemon) healthy(ctx context.Context) error {
	if err := d.source.why(); err != nil {
		return err
	}
	st, err := d.volume.Status(ctx)
	if err == nil && st.PoisonedFiles > 0 {
		err = fmt.Errorf("%d files take no more commits", st.PoisonedFiles)
	}
	return err
}

// announce says that the mount is ready, in one line.
func (d *daemon) announce(ctx context.Context) {
	m := d.source.conn().Medium()
	size, free := "?", "?"
	if u, err := d.volume.Usage(ctx); err == nil {
		size, free = humanize.IBytes(u.Slots*region.PageSize), humanize.IBytes(u.FreeSlots*region.PageSize)
	}
	socket := d.socket
	if socket == "" {
		socket = "none"
	}
	medium := m.Kind
	if m.Volatile {
		medium += ", VOLATILE: committed epochs do not survive a power loss or a reboot"
	}
	line := fmt.Sprintf("mounted %s on %s: medium %s; size %s, %s free; generation %d; control socket %s",
		d.o.pool, d.o.mountpoint, medium, size, free, d.source.Generation(), socket)
	if m.Volatile {
		d.log.Warn("the pool is volatile: it is in memory, and lost with the machine", "pool", d.o.pool, "medium", m.Kind)
	}
	if parent() == nil {
		fmt.Println(line)
	}
	tellParent(nil, line)
}

// close closes what open opened, outermost first.
func (d *daemon) close(ctx context.Context) error {
	var errs []error
	if d.volume != nil {
		errs = append(errs, d.volume.Close(ctx))
	}
	if d.metrics != nil {
		if err := d.metrics.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if d.listener != nil {
		if err := d.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
		if err := os.Remove(d.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if d.attach != nil {
		if err := d.attach.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
		// Closing it removed the socket.
	}
	if d.source != nil {
		err := d.source.close()
		if lost := d.source.why(); errors.Is(lost, rdmacache.ErrFenced) {
			return fmt.Errorf("the lease was lost, and what was not committed with it: %w", lost) // all errors come from that
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
