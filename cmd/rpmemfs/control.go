package main

import (
	"context"
	"os"

	"github.com/rpmemfs/rpmemfs/control"
)

// runControl serves the control socket until ctx ends.
func (d *daemon) runControl(ctx context.Context) error {
	info := control.Info{
		Version:    version(),
		Pool:       d.o.pool,
		Mountpoint: d.o.mountpoint,
		Pid:        os.Getpid(),
		OwnerUID:   uint32(os.Geteuid()),
		Started:    d.started,
		Attached:   d.members.Files,
	}
	if l, ok := d.source.(leased); ok {
		info.Lease = func() control.Lease {
			return control.Lease{Share: l.Share(), Lasts: l.Lease(), Lost: l.Err()}
		}
		info.Transport = l.Transport
	}
	return control.NewServer(d.volume, info, d.log).Run(ctx, d.listener)
}
