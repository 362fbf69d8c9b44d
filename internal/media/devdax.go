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
	prot := unix.PROT_READ
	if !opts.ReadOnly {
		prot |= unix.PROT_WRITE
	}
	m, err := mapPmem(f, size, prot, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	m.device = true
	return m, nil
}

// deviceDAXSize returns the size in bytes of the device-dax device with the
// given number, below the sysfs mounted at sys.
func deviceDAXSize(sys string, major, minor uint32) (int64, error) {
	dir := filepath.Join(sys, "dev/char", fmt.Sprintf("%d:%d", major, minor))
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
