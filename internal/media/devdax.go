package media

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// openDeviceDAX maps a device-dax character device. There is no other way to
// reach its bytes, so a processor that cannot flush is an error here. It takes f
// over if it succeeds.
func openDeviceDAX(f *os.File, opts Options) (*Pmem, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("stat: %w", err)
	}
	size, err := deviceDAXSize("/sys", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	if err != nil {
		return nil, err
	}
	persistent, err := PersistentDAX(deviceDir("/sys", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	if err != nil {
		return nil, err
	}
	prot := unix.PROT_READ
	if !opts.ReadOnly {
		prot |= unix.PROT_WRITE
	}
	m, err := mapPmem(f, size, prot, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	m.device, m.volatile = true, !persistent
	return m, nil
}

// deviceDir is the directory of a character device below the sysfs mounted at sys.
func deviceDir(sys string, major, minor uint32) string {
	return filepath.Join(sys, "dev/char", fmt.Sprintf("%d:%d", major, minor))
}

// deviceDAXSize returns the size in bytes of the device-dax device with the
// given number, below the sysfs mounted at sys.
func deviceDAXSize(sys string, major, minor uint32) (int64, error) {
	dir := deviceDir(sys, major, minor)
	subsystem, err := os.Readlink(filepath.Join(dir, "subsystem"))
	if err != nil || filepath.Base(subsystem) != "dax" {
		return 0, fmt.Errorf("character device %d:%d is not device-dax", major, minor)
	}
	text, err := os.ReadFile(filepath.Join(dir, "size"))
	if err != nil {
		return 0, fmt.Errorf("size of device-dax %d:%d: %w", major, minor, err)
	}
	size, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || size <= 0 {
		return 0, fmt.Errorf("size of device-dax %d:%d: sysfs says %q", major, minor, text)
	}
	return size, nil
}

// PersistentDAX tells whether the memory of a device-dax device survives power loss. dir is
// the device's directory in sysfs, or a link to it.
//
// Persistent memory belongs to a bus of the kernel's NVDIMM subsystem, that behind CXL too. All
// other devices are of memory that firmware sets apart for its speed or size (Linux,
// drivers/dax/Kconfig: DEV_DAX_HMEM, DEV_DAX_CXL), and so are regions of type nd_volatile. What a
// virtual machine's host gives it as virtio-pmem is persistent only after a request to the host,
// which no device-dax device makes.
func PersistentDAX(dir string) (bool, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false, fmt.Errorf("where a device-dax device belongs to: %w", err)
	}
	for region := dir; region != filepath.Dir(region); region = filepath.Dir(region) {
		bus := filepath.Dir(region)
		if !strings.HasPrefix(filepath.Base(bus), "ndbus") {
			continue
		}
		if strings.HasPrefix(filepath.Base(filepath.Dir(bus)), "virtio") {
			return false, nil
		}
		kind, err := os.ReadFile(filepath.Join(region, "devtype"))
		if err != nil {
			return false, fmt.Errorf("type of the NVDIMM region of a device-dax device: %w", err)
		}
		return strings.TrimSpace(string(kind)) != "nd_volatile", nil
	}
	return false, nil
}
