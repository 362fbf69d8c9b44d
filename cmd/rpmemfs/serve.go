package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/internal/media"
	"github.com/rpmemfs/rpmemfs/memnode"
	"github.com/rpmemfs/rpmemfs/node"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
	"github.com/rpmemfs/rpmemfs/region"
)

// A memoryNode is a served pool and all that serves it.
type memoryNode struct {
	o   serveOptions
	log *slog.Logger

	tls     *tls.Config // nil: insecure
	pool    *memnode.Pool
	control net.Listener
	data    net.Listener
	rdma    verbs.Listener // nil: none
	metrics *metricsServer // nil: none
}

// run serves the pool until a signal comes.
func (o *serveOptions) run(ctx context.Context) error {
	log, closeLog, err := o.log.newLog()
	if err != nil {
		return err
	}
	defer closeLog()
	m := &memoryNode{o: *o, log: log}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer signal.Stop(signals)

	if err := m.open(); err != nil {
		return errors.Join(err, m.close())
	}
	err = errors.Join(m.serve(ctx, signals), m.close())
	if err != nil {
		return fmt.Errorf("serve %s: %w", m.o.pool, err)
	}
	log.Info("stopped", "pool", m.o.pool)
	return nil
}

// open opens everything, the pool last: what is wrong with flags and addresses
// shows before a pool is made. After an error close closes what is open.
func (m *memoryNode) open() error {
	var err error
	if m.tls, err = m.o.tls.ServerConfig(); err != nil {
		return err
	}
	if m.control, err = m.o.listenNode("listen", m.o.listen, defaultListen); err != nil {
		return err
	}
	if m.data, err = m.o.listenNode("data", m.o.data, defaultData); err != nil {
		return err
	}
	if m.rdma, err = m.o.listenRDMA(); err != nil {
		return err
	}
	if m.o.metrics != "" {
		if m.metrics, err = listenMetrics(m.o.metrics, m.log); err != nil {
			return err
		}
	}
	if m.o.pool, err = filepath.Abs(m.o.pool); err != nil {
		return err
	}
	return m.openPool()
}

// openPool opens the pool, and makes it first if there is none.
func (m *memoryNode) openPool() error {
	create := memnode.CreateOptions{SizeBytes: int64(m.o.size), Device: m.o.device}
	pool, created, err := memnode.OpenOrCreate(m.o.pool, create, memnode.Options{Log: m.log, KeepOrphans: true})
	switch {
	case errors.Is(err, memnode.ErrLocked):
		return fmt.Errorf("%w; unmount it there, or stop the memory node that serves it", err)
	case errors.Is(err, media.ErrReadOnly):
		return fmt.Errorf("%w; a memory node has to write", err)
	case err != nil:
		return err
	}
	m.pool = pool
	if created {
		m.log.Info("made a new pool", "pool", m.o.pool)
	} else if m.o.size != 0 || m.o.device != "" {
		m.log.Debug("the pool exists; its size and device stay", "pool", m.o.pool)
	}
	return nil
}

// serve answers until the first signal, and then lets calls under way end. A second
// signal ends the process as a crash does: what was acknowledged is durable.
func (m *memoryNode) serve(ctx context.Context, signals <-chan os.Signal) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for asked := 0; ; asked++ {
			select {
			case <-ended:
				return
			case s := <-signals:
				m.log.Info("signal", "signal", s.String())
			}
			if asked > 0 {
				m.log.Error("ending at once, as a crash does")
				os.Exit(exitError)
			}
			m.notify("STOPPING=1")
			cancel()
		}
	}()
	cfg := node.Config{Pool: m.pool, TLS: m.tls, Lease: m.o.lease, Version: version(), Log: m.log,
		RDMA: m.rdma, Persistence: verbs.Persistence(m.o.persistence)}
	if m.metrics != nil {
		cfg.Flushed = m.metrics.Durations("rpmemfs_flush_seconds", "Flushes that commits wait for.")
	}
	server := node.NewServer(cfg)
	told := make(chan error, 1)
	if m.metrics != nil {
		m.metrics.addNode(m.pool, server.Stats)
		go func() { told <- m.metrics.run(ctx, m.healthy) }()
	} else {
		told <- nil
	}
	err := server.Run(ctx, &firstAccept{Listener: m.control, do: m.announce}, m.data)
	cancel()
	// Metrics are no reason to stop serving, and their end is none to fail.
	if toldErr := <-told; toldErr != nil {
		m.log.Warn("metrics", "err", toldErr)
	}
	return err
}

// healthy tells whether the directory of the pool answers.
func (m *memoryNode) healthy(ctx context.Context) error {
	_, err := m.pool.Usage(ctx)
	return err
}

// announce says that the node is ready, in one line, and tells systemd.
func (m *memoryNode) announce() {
	medium := m.pool.Medium()
	kind := medium.Kind
	if medium.Volatile {
		kind += ", VOLATILE: committed epochs do not survive a power loss or a reboot"
		m.log.Warn("the pool is volatile: it is in memory, and lost with the machine", "pool", m.o.pool, "medium", medium.Kind)
	}
	size, free := "?", "?"
	if u, err := m.pool.Usage(context.Background()); err == nil {
		size, free = humanize.IBytes(u.Slots*region.PageSize), humanize.IBytes(u.FreeSlots*region.PageSize)
	}
	trust := "TLS"
	if m.tls == nil {
		trust = "INSECURE, for this machine only"
		m.log.Warn("served without TLS: every program of this machine can read and destroy the pool", "pool", m.o.pool)
	}
	line := fmt.Sprintf("serving %s on %s, data on %s: %s; medium %s; size %s, %s free; generation %d",
		m.o.pool, m.control.Addr(), m.data.Addr(), trust, kind, size, free, m.pool.Generation())
	if m.rdma != nil {
		line += "; RDMA, not encrypted, on " + m.rdma.Addr().String()
	}
	if m.metrics != nil {
		line += "; metrics on " + m.metrics.listener.Addr().String()
	}
	fmt.Println(line)
	m.notify("READY=1\nSTATUS=" + line)
}

func (m *memoryNode) notify(state string) {
	if err := notifySystemd(state); err != nil {
		m.log.Warn("tell systemd", "err", err)
	}
}

// close closes what open opened. The server has closed the listeners it got.
func (m *memoryNode) close() error {
	var errs []error
	listeners := []net.Listener{m.control, m.data}
	if m.metrics != nil {
		listeners = append(listeners, m.metrics.listener)
	}
	for _, l := range listeners {
		if l == nil {
			continue
		}
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if m.rdma != nil {
		if err := m.rdma.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if m.pool != nil {
		errs = append(errs, m.pool.Close())
	}
	return errors.Join(errs...)
}
