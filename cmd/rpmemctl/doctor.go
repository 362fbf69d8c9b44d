package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/rpmemfs/rpmemfs/internal/doctor"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
)

func newDoctor(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "look at what this machine has, and say what to do",
		Long: `Look at what a mount, a pool in persistent memory and RDMA need: /dev/fuse, userfaultfd, DAX
devices and file systems, RDMA devices with their link, packet size and FLUSH operation,
and how much memory they may register; say what is wrong and what to do about it, and how
commits over RDMA would become persistent here. Nothing is changed.

Exit codes: 0 nothing to fix, 1 something does not work.`,
		Example: `  rpmemctl doctor
  rpmemctl doctor --json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return a.doctor() },
	}
}

type doctorJSON struct {
	OK       bool             `json:"ok"`
	Findings []doctor.Finding `json:"findings"`
}

func (a *app) doctor() error {
	host := doctor.Host{}
	reports, err := verbs.Devices()
	host.RDMAErr = err
	for _, r := range reports {
		host.RDMA = append(host.RDMA, rdmaDevice(r))
	}
	list := doctorJSON{OK: true, Findings: doctor.Look(host)}
	bad := 0
	for _, f := range list.Findings {
		if f.Level == doctor.Bad {
			list.OK = false
			bad++
		}
	}
	err = a.print(list, func(w io.Writer) {
		for _, f := range list.Findings {
			fmt.Fprintf(w, "%-4s  %-6s  %s\n", f.Level, f.Area, f.What)
			if f.Do != "" {
				fmt.Fprintf(w, "%15s %s\n", "->", f.Do)
			}
		}
	})
	if err == nil && bad > 0 {
		err = &codeError{exitFailed, fmt.Errorf("%s to fix", plural(uint64(bad), "thing"))}
	}
	return err
}

// rdmaDevice is a device as the doctor looks at it: by its first port with a link.
func rdmaDevice(r verbs.DeviceReport) doctor.RDMADevice {
	d := doctor.RDMADevice{Name: r.Name, Flush: r.Flush, ODP: r.OnDemand, Err: r.Err}
	for _, p := range r.Ports {
		if !d.Active {
			d.Active, d.Netdev, d.MTU = p.State == "active", p.Netdev, p.MTU
		}
	}
	return d
}
