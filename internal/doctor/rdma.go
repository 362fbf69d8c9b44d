package doctor

import (
	"fmt"
	"slices"
	"strings"
)

const areaRDMA = "rdma"

// goodMTU is from where on a page is one packet.
const goodMTU = 4096

// rdma looks at the devices.
func rdma(h Host) []Finding {
	if h.RDMAErr != nil {
		return []Finding{{areaRDMA, Note, h.RDMAErr.Error(), "without RDMA, mount tcp://; Debian's libibverbs-dev and librdmacm-dev, and a build with -tags rdma, bring it"}}
	}
	if len(h.RDMA) == 0 {
		f := Finding{areaRDMA, Note, "no RDMA device", "without RDMA, mount tcp://"}
		if h.exists("sys/module/rdma_rxe") {
			f.Do = "an RDMA device can be had in software: rdma link add rxe0 type rxe netdev NETDEV"
		}
		return []Finding{f}
	}
	var f []Finding
	for _, d := range h.RDMA {
		f = append(f, device(d)...)
	}
	if !h.exists("dev/infiniband/rdma_cm") {
		f = append(f, Finding{areaRDMA, Bad, "no /dev/infiniband/rdma_cm: no connection can be made", "modprobe rdma_ucm"})
	}
	return f
}

func device(d RDMADevice) []Finding {
	name := d.Name
	if d.Netdev != "" {
		name += " (" + d.Netdev + ")"
	}
	if d.Err != nil {
		return []Finding{{areaRDMA, Bad, name + ": " + d.Err.Error(), "run this as root, or as a user who may open /dev/infiniband/uverbs*"}}
	}
	if !d.Active {
		return []Finding{{areaRDMA, Bad, name + " has no link", "ip link set up the interface; ibv_devinfo shows the port"}}
	}
	f := []Finding{{areaRDMA, OK, name + " has a link", ""}}
	if d.MTU > 0 && d.MTU < goodMTU {
		f = append(f, Finding{areaRDMA, Note, fmt.Sprintf("%s sends packets of %d bytes: a page is several", name, d.MTU),
			"ip link set mtu 4200 or more (9000) at both ends and in the switch"})
	}
	if d.Flush {
		f = append(f, Finding{areaRDMA, OK, name + " has RDMA FLUSH", ""})
	} else {
		f = append(f, Finding{areaRDMA, Note, name + " has no RDMA FLUSH, as most: see how commits become persistent, below", ""})
	}
	if d.ODP {
		f = append(f, Finding{areaRDMA, OK, name + " registers memory on demand, which is not used: it would take volatile memory for persistent", ""})
	}
	return f
}

// methods says how commits over RDMA would become persistent with this machine as the
// memory node (docs/rdma.md has the table).
func methods(h Host) []Finding {
	flush := false
	for _, d := range h.RDMA {
		flush = flush || d.Flush
	}
	devdax := slices.ContainsFunc(h.glob(daxDevices), func(d string) bool {
		persistent, err := h.persistent(d)
		return err == nil && persistent && !h.isKmem(d)
	})
	eadr := false
	for _, r := range h.glob("sys/bus/nd/devices/region*/persistence_domain") {
		eadr = eadr || h.read(r) == "cpu_cache"
	}
	if len(h.RDMA) == 0 {
		return nil
	}
	say := func(what, do string) []Finding {
		return []Finding{{areaRDMA, OK, "as a memory node: " + what, do}}
	}
	switch {
	case devdax && flush:
		return say("commits on device-dax become persistent by RDMA FLUSH, without this machine's processor", "")
	case devdax && eadr:
		return say("commits on device-dax become persistent by the processor; by a READ, without it, if you declare what the machine has", "serve --persistence eadr")
	case devdax:
		return say("commits on device-dax become persistent by this machine's processor", "with DDIO off, serve --persistence adr-no-ddio leaves it out (docs/rdma.md)")
	case strings.Contains(h.read("proc/self/mountinfo"), "dax"):
		return say("commits on a DAX file system go in messages, and become persistent by this machine's processor", "device-dax would need no processor")
	}
	return say("commits go in messages to a pool on a disk, or straight to one in volatile memory", "")
}
