package doctor

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var _ = flag.Uint64("seed", 0, "of tests that are random; none here")

// machine makes a root with files, directories where the name ends in a slash, and links where the
// text is an arrow and a path below the root, to a directory that is made.
func machine(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(path, 0o755)
		} else if to, ok := strings.CutPrefix(text, "-> "); ok {
			to = filepath.Join(root, to)
			err = errors.Join(err, os.MkdirAll(to, 0o755), os.Symlink(to, path))
		} else if err == nil {
			err = os.WriteFile(path, []byte(text+"\n"), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// has says whether there is a finding of a level whose text contains the words.
func has(found []Finding, level Level, words string) bool {
	return slices.ContainsFunc(found, func(f Finding) bool {
		return f.Level == level && strings.Contains(f.What+" / "+f.Do, words)
	})
}

func TestLook(t *testing.T) {
	const (
		pmem   = "sys/bus/nd/devices/region0/persistence_domain"
		devdax = "sys/bus/dax/devices/dax0.0"
		nvdimm = "-> sys/devices/ndbus0/region0/dax0.0"
		kind   = "sys/devices/ndbus0/region0/devtype"
		cpu    = "proc/cpuinfo"
		limits = "proc/self/limits"
		// As the kernel writes it (proc_pid_limits(5)).
		lockLine = "Max processes             31544                31544                processes\nMax locked memory         "
	)
	device := RDMADevice{Name: "rxe0", Netdev: "eth0", Active: true, MTU: 4096, Flush: true}
	old := device
	old.Flush = false
	for name, x := range map[string]struct {
		files map[string]string
		rdma  []RDMADevice
		err   error
		want  map[string]Level
	}{
		"nothing": {nil, nil, nil, map[string]Level{
			"no /dev/fuse": Bad, "no persistent memory": Note, "no RDMA device": Note, "no known instruction": Note,
		}},
		"built without": {nil, nil, errors.New("built without RDMA"), map[string]Level{"built without RDMA": Note}},
		"FLUSH on device-dax": {map[string]string{"dev/fuse": "", devdax: nvdimm, kind: "nd_pmem", "dev/infiniband/rdma_cm": "", cpu: "flags\t\t: fpu clwb clflush"},
			[]RDMADevice{device}, nil, map[string]Level{
				"by RDMA FLUSH": OK, "rxe0 (eth0) has a link": OK, "--device /dev/dax0.0": OK, "back by CLWB": OK, "/dev/fuse is there": OK,
			}},
		"eADR": {map[string]string{devdax: nvdimm, kind: "nd_pmem", pmem: "cpu_cache"}, []RDMADevice{old}, nil, map[string]Level{
			"serve --persistence eadr": OK, "(eADR)": OK, "no RDMA FLUSH": Note, "modprobe rdma_ucm": Bad,
		}},
		"ADR": {map[string]string{devdax: nvdimm, kind: "nd_pmem", pmem: "memory_controller"}, []RDMADevice{old}, nil, map[string]Level{
			"by this machine's processor": OK, "--persistence adr-no-ddio": OK,
		}},
		"fs-dax": {map[string]string{"proc/self/mountinfo": "36 35 259:0 / /mnt/pmem rw,relatime - ext4 /dev/pmem0 rw,dax=always"},
			[]RDMADevice{device}, nil, map[string]Level{"DAX file system on /mnt/pmem": OK, "do not reach files on /mnt/pmem": Note, "in messages": OK}},
		"raw namespace": {map[string]string{"sys/bus/nd/devices/namespace0.0/mode": "raw", "sys/bus/nd/devices/namespace0.0/size": "1024"},
			nil, nil, map[string]Level{"--mode=devdax": Note}},
		"kmem": {map[string]string{devdax + "/driver/module/drivers/dax:kmem/": ""}, []RDMADevice{device}, nil,
			map[string]Level{"daxctl reconfigure-device": Note, "in messages": OK}},
		"volatile device-dax": {map[string]string{devdax: "-> sys/devices/platform/hmem.0/dax0.0"}, []RDMADevice{device}, nil,
			map[string]Level{"dax0.0 is volatile": Note, "in messages": OK}},
		"not allowed": {nil, []RDMADevice{{Name: "mlx5_0", Err: errors.New("permission denied")}}, nil, map[string]Level{"mlx5_0: permission denied": Bad}},
		"no link":     {nil, []RDMADevice{{Name: "mlx5_0"}}, nil, map[string]Level{"mlx5_0 has no link": Bad}},
		"small packets, on demand": {nil, []RDMADevice{{Name: "a", Active: true, MTU: 1024, ODP: true}}, nil,
			map[string]Level{"packets of 1024 bytes": Note, "on demand": OK}},
		"little memory": {map[string]string{limits: lockLine + "8388608              8388608              bytes"}, []RDMADevice{device}, nil,
			map[string]Level{"only 8192 KiB": Bad}},
		"some memory": {map[string]string{limits: lockLine + "134217728            unlimited            bytes"}, []RDMADevice{device}, nil,
			map[string]Level{"128 MiB of memory": Note}},
		"all memory": {map[string]string{limits: lockLine + "unlimited            unlimited            bytes"}, []RDMADevice{device}, nil,
			map[string]Level{"memlock is unlimited": OK}},
		"who may lock memory": {map[string]string{limits: lockLine + "65536 65536 bytes", "proc/self/status": "CapPrm:\t0\nCapEff:\t0000000000004000"},
			[]RDMADevice{device}, nil, map[string]Level{"CAP_IPC_LOCK": OK}},
		"software device possible": {map[string]string{"sys/module/rdma_rxe/": ""}, nil, nil, map[string]Level{"rdma link add": Note}},
	} {
		t.Run(name, func(t *testing.T) {
			found := Look(Host{Root: machine(t, x.files), RDMA: x.rdma, RDMAErr: x.err})
			for words, level := range x.want {
				if !has(found, level, words) {
					t.Errorf("no %q that says %q in %+v", level, words, found)
				}
			}
			for _, f := range found {
				if f.Level == Bad && f.Do == "" {
					t.Errorf("%q: what to do?", f.What)
				}
			}
		})
	}
}

// This machine can be looked at, whatever it is.
func TestHere(t *testing.T) {
	found := Look(Host{})
	for _, want := range []string{"userfaultfd", "the processor writes caches back"} {
		if !slices.ContainsFunc(found, func(f Finding) bool { return strings.Contains(f.What, want) }) {
			t.Errorf("no %q in %+v", want, found)
		}
	}
}
