package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/spf13/cobra"

	"github.com/rpmemfs/rpmemfs/internal/nodeurl"
	"github.com/rpmemfs/rpmemfs/internal/pki"
	"github.com/rpmemfs/rpmemfs/node"
)

// Default ports of a memory node.
const (
	defaultListen = nodeurl.DefaultPort
	defaultData   = 7471
	defaultRDMA   = 7472
)

// serveOptions are what a memory node is asked for.
type serveOptions struct {
	pool   string
	listen string // host:port of the API; empty: a default
	data   string // the same of the data path
	tls    pki.Options
	rdma   string // the same of the data path over RDMA; empty: there is none
	// persistence is what the operator knows of RDMA writes.
	persistence persistence
	size        byteSize // of a new pool; 0: a default
	device      string   // that holds a new pool's data; empty: a file
	lease       time.Duration
	metrics     string  // host:port; empty: none
	log         options // of which only the log's are set
}

const serveLong = `Serve a pool to other machines, which mount it, or shares of it, with
rpmemfs mount tcp://HOST[:PORT][/SHARE] MOUNTPOINT.

The pool is a directory, as for mount. If there is none yet, it is made, with room for
--size. With --device its data is on a device-dax device, and the directory has the rest,
which has to be as durable. While it is served nothing else can mount it, this machine neither but through
tcp://.

Compute nodes and this one show each other certificates ("rpmemctl pki" makes them); a
certificate says which shares its owner may mount. Give --pki the directory with ca.crt
and this node's .crt and .key. --insecure does without, for this machine alone.

With --rdma compute nodes may mount rdma://HOST too, and write and read the pool's memory
themselves; the pool is then best on persistent memory: on device-dax (--device), or on a
DAX file system. RDMA is not encrypted: serve it in networks that you trust only. How
written bytes become persistent is found out; --persistence tells what no program can find
out. "rpmemctl doctor" looks at what this machine has.

A mount has the lease of its share and renews it; one that is silent for --lease loses it
to the next. After a restart of the memory node mounts go on where they were.

SIGTERM and SIGINT stop: calls under way end, leases stay recorded. A second signal ends
the process at once, as a crash does.`

const serveExample = `  rpmemfs serve --pki /etc/rpmemfs/pki --size 100GiB /var/lib/rpmemfs/pool
  rpmemfs serve --pki /etc/rpmemfs/pki --listen 10.0.0.1:7470 --data 10.0.0.1:7471 /mnt/pmem/pool
  rpmemfs serve --pki /etc/rpmemfs/pki --rdma : --device /dev/dax0.0 /var/lib/rpmemfs/pool
  rpmemfs serve --insecure /dev/shm/pool; rpmemfs mount --insecure tcp://localhost /mnt`

func serveCommand() *cobra.Command {
	o := serveOptions{}
	cmd := &cobra.Command{
		Use:     "serve [flags] POOL",
		Short:   "Serve a pool to other machines",
		Long:    serveLong,
		Example: serveExample,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.pool = args[0]
			if o.lease < node.MinLease || o.lease > node.MaxLease {
				return fmt.Errorf("--lease %v: want %v to %v", o.lease, node.MinLease, node.MaxLease)
			}
			if o.persistence != 0 && o.rdma == "" {
				return errors.New("--persistence is about RDMA: give --rdma too")
			}
			return o.run(cmd.Context())
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.listen, "listen", "", fmt.Sprintf("HOST:PORT of the API (default :%d; with --insecure on 127.0.0.1)", defaultListen))
	f.StringVar(&o.data, "data", "", fmt.Sprintf("HOST:PORT of the data path, at which clients reach the HOST of the API too (default :%d; with --insecure on 127.0.0.1)", defaultData))
	f.StringVar(&o.rdma, "rdma", "", fmt.Sprintf("serve the data path over RDMA too, on this HOST:PORT, at which clients reach the HOST of the API; \":\" is every device, port %d (default: no RDMA)", defaultRDMA))
	f.Var(&o.persistence, "persistence", "what makes RDMA writes persistent: auto, adr-no-ddio (they go to memory that power loss spares, past the processor's caches), eadr (power loss spares the caches too), cpu (only this machine's processor)")
	addTLSFlags(cmd, &o.tls)
	f.Var(&o.size, "size", "size of a new pool, such as 10GiB (default: half of what is free there)")
	f.StringVar(&o.device, "device", "", helpDevice)
	f.DurationVar(&o.lease, "lease", node.DefaultLease, "how long a mount may be silent before it loses its lease, if it does not say itself")
	f.StringVar(&o.metrics, "metrics", "", "HOST:PORT for Prometheus and health checks, /metrics and /healthz, without TLS (default: none)")
	f.TextVar(&o.log.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	f.BoolVar(&o.log.logJSON, "log-json", false, "log as JSON, a line each")
	f.StringVar(&o.log.logFile, "log-file", "", "append the log to a file (default: standard error)")
	must(cmd.RegisterFlagCompletionFunc("persistence", cobra.FixedCompletions(persistenceWords, cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.RegisterFlagCompletionFunc("log-level", cobra.FixedCompletions([]string{"debug", "info", "warn", "error"}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

// listenNode listens on an address of a flag. Without TLS only this machine may
// reach it.
func (o *serveOptions) listenNode(flag, address string, port int) (net.Listener, error) {
	if address == "" {
		host := ""
		if o.tls.Insecure {
			host = "127.0.0.1"
		}
		address = net.JoinHostPort(host, fmt.Sprint(port))
	}
	addr, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("--%s %s: %w", flag, address, err)
	}
	if o.tls.Insecure && !addr.IP.IsLoopback() {
		return nil, fmt.Errorf("--%s %s: with --insecure whoever reaches it could read and destroy the pool; only addresses of this machine (127.0.0.1, ::1) will do, or use --pki", flag, address)
	}
	l, err := net.ListenTCP("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("--%s %s: %w", flag, address, err)
	}
	return l, nil
}
