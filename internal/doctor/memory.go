package doctor

import (
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/rpmemfs/rpmemfs/internal/media"
)

const areaMemory = "memory"

// persistentMemory looks for memory that keeps its content, and how it can be used.
func persistentMemory(h Host) []Finding {
	var f []Finding
	for _, d := range h.glob(daxDevices) {
		name := filepath.Base(d)
		if h.isKmem(d) {
			f = append(f, Finding{areaMemory, Note, name + " is ordinary memory of the system (kmem)",
				"to use it for a pool: daxctl reconfigure-device --mode=devdax " + name})
			continue
		}
		if persistent, err := h.persistent(d); err != nil {
			f = append(f, Finding{areaMemory, Note, fmt.Sprintf("device-dax /dev/%s: whether it is persistent is unknown: %v", name, err), ""})
			continue
		} else if !persistent {
			f = append(f, Finding{areaMemory, Note, fmt.Sprintf("device-dax /dev/%s is volatile: it belongs to no NVDIMM", name),
				"a pool there is lost with the power; devices of persistent memory survive"})
			continue
		}
		f = append(f, Finding{areaMemory, OK, fmt.Sprintf("device-dax /dev/%s: RDMA devices can reach it; serve --device /dev/%s", name, name), ""})
	}
	for _, m := range strings.Split(h.read("proc/self/mountinfo"), "\n") {
		if fields := strings.Fields(m); len(fields) > 4 && isDAX(m) {
			f = append(f, Finding{areaMemory, OK, "DAX file system on " + fields[4] + ": a pool there is persistent memory", ""},
				Finding{areaMemory, Note, "RDMA devices do not reach files on " + fields[4] + ": the memory node's processor stores what they send",
					"for RDMA use device-dax"})
		}
	}
	for _, n := range h.glob("sys/bus/nd/devices/namespace*/mode") {
		if mode := h.read(n); mode == "raw" && h.read(filepath.Join(filepath.Dir(n), "size")) != "0" {
			name := filepath.Base(filepath.Dir(n))
			f = append(f, Finding{areaMemory, Note, name + " is in raw mode, which has no DAX",
				"ndctl create-namespace -f -e " + name + " --mode=devdax   (what it holds is lost)"})
		}
	}
	for _, r := range h.glob("sys/bus/nd/devices/region*/persistence_domain") {
		name := filepath.Base(filepath.Dir(r))
		switch domain := h.read(r); domain {
		case "cpu_cache":
			f = append(f, Finding{areaMemory, OK, name + ": power loss spares the processor's caches (eADR)", "serve --rdma may say --persistence eadr"})
		case "memory_controller":
			f = append(f, Finding{areaMemory, OK, name + ": power loss spares what reached the memory controller (ADR)",
				"whether DDIO is off, no program can tell: see docs/rdma.md before you say --persistence adr-no-ddio"})
		}
	}
	if len(f) == 0 {
		f = append(f, Finding{areaMemory, Note, "no persistent memory: pools are files, and a commit waits for a disk", ""})
	}
	return append(f, flushInstruction(h))
}

// daxDevices are those of device-dax, below the root.
const daxDevices = "sys/bus/dax/devices/dax*"

// isKmem says whether the system has a device-dax device for ordinary memory.
func (h Host) isKmem(device string) bool {
	return h.exists(filepath.Join(device, "driver/module/drivers/dax:kmem"))
}

// persistent says whether the memory of a device-dax device survives power loss.
func (h Host) persistent(device string) (bool, error) {
	return media.PersistentDAX(filepath.Join(h.Root, device))
}

// isDAX says whether a line of mountinfo is a DAX mount: super options follow the dash.
func isDAX(line string) bool {
	_, super, ok := strings.Cut(line, " - ")
	fields := strings.Fields(super)
	if !ok || len(fields) < 3 {
		return false
	}
	for _, o := range strings.Split(fields[2], ",") {
		if o == "dax" || o == "dax=always" {
			return true
		}
	}
	return false
}

func flushInstruction(h Host) Finding {
	_, flags, _ := strings.Cut(h.read("proc/cpuinfo"), "flags")
	flags, _, _ = strings.Cut(flags, "\n")
	for _, f := range []string{"clwb", "clflushopt", "clflush"} {
		for _, have := range strings.Fields(flags) {
			if have == f {
				level, do := OK, ""
				if f != "clwb" {
					level, do = Note, "processors with CLWB keep the lines that they write back"
				}
				return Finding{areaMemory, level, "the processor writes caches back by " + strings.ToUpper(f), do}
			}
		}
	}
	return Finding{areaMemory, Note, "the processor has no known instruction to write a cache line back: DAX is not used", ""}
}

// wantLocked is what a mount over RDMA registers at least.
const wantLocked = 64 << 20

// memoryLimit looks at how much memory may be registered.
func memoryLimit(h Host) []Finding {
	if len(h.RDMA) == 0 {
		return nil
	}
	limit, err := lockLimit(h)
	switch {
	case capIPCLock(h):
		return []Finding{{areaRDMA, OK, "any amount of memory may be registered (CAP_IPC_LOCK)", ""}}
	case err != nil:
		return []Finding{{areaRDMA, Note, "the limit of locked memory is unknown: " + err.Error(), ""}}
	case limit == math.MaxUint64:
		return []Finding{{areaRDMA, OK, "any amount of memory may be registered (memlock is unlimited)", ""}}
	case limit < wantLocked:
		return []Finding{{areaRDMA, Bad, fmt.Sprintf("only %d KiB of memory may be registered", limit>>10),
			"raise memlock: LimitMEMLOCK=infinity in the unit, or /etc/security/limits.conf; a memory node registers what its clients use"}}
	}
	return []Finding{{areaRDMA, Note, fmt.Sprintf("%d MiB of memory may be registered: a mount needs less, a memory node registers what its clients use", limit>>20),
		"for a memory node: LimitMEMLOCK=infinity"}}
}

// lockLimit is how many bytes this process may lock; math.MaxUint64: any number.
func lockLimit(h Host) (uint64, error) {
	_, line, _ := strings.Cut(h.read("proc/self/limits"), "Max locked memory")
	soft, _, _ := strings.Cut(strings.TrimSpace(line), " ")
	if soft == "unlimited" {
		return math.MaxUint64, nil
	}
	return strconv.ParseUint(soft, 10, 64)
}

// capIPCLock says whether this process may lock any amount of memory.
func capIPCLock(h Host) bool {
	const capability = 14
	_, after, ok := strings.Cut(h.read("proc/self/status"), "CapEff:")
	var mask uint64
	if _, err := fmt.Sscanf(strings.TrimSpace(after), "%x", &mask); !ok || err != nil {
		return false
	}
	return mask>>capability&1 == 1
}
