// Package doctor looks at what a machine has of what rpmemfs uses, and says what to do
// about the rest. It changes nothing.
package doctor

import (
	"os"
	"path/filepath"
	"strings"
)

// A Level says how bad a Finding is.
type Level string

// The levels.
const (
	OK   Level = "ok"   // as it should be
	Note Level = "note" // rpmemfs works without, or does something in another way
	Bad  Level = "fix"  // something does not work
)

// A Finding is one thing that was looked at.
type Finding struct {
	Area  string `json:"area"` // "mount", "memory", "rdma"
	Level Level  `json:"level"`
	What  string `json:"what"`         // was found
	Do    string `json:"do,omitempty"` // what to do about it
}

// An RDMADevice is what the RDMA stack tells of a device.
type RDMADevice struct {
	Name   string
	Err    error  // why nothing below is known
	Active bool   // a port has a link
	Netdev string // of that port; empty: unknown
	MTU    int    // bytes, of RDMA packets
	Flush  bool   // has the FLUSH operation
	ODP    bool   // registers memory on demand
}

// A Host is the machine that is looked at.
type Host struct {
	Root string // where /proc, /sys and /dev are; empty: here
	// RDMA are the devices, or why none can be found.
	RDMA    []RDMADevice
	RDMAErr error
}

// Look looks at everything.
func Look(h Host) []Finding {
	if h.Root == "" {
		h.Root = "/"
	}
	var found []Finding
	for _, look := range []func(Host) []Finding{mounting, tracking, persistentMemory, memoryLimit, rdma, methods} {
		found = append(found, look(h)...)
	}
	return found
}

// read returns a file below the root without its last newline; empty if there is none.
func (h Host) read(path string) string {
	b, err := os.ReadFile(filepath.Join(h.Root, path))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// glob returns the names below the root that match, without the root.
func (h Host) glob(pattern string) []string {
	names, err := filepath.Glob(filepath.Join(h.Root, pattern))
	if err != nil {
		return nil // the patterns are constants
	}
	for i := range names {
		names[i] = "/" + strings.TrimPrefix(strings.TrimPrefix(names[i], h.Root), "/")
	}
	return names
}

func (h Host) exists(path string) bool { return len(h.glob(path)) > 0 }
