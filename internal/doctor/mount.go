package doctor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"unsafe"

	"golang.org/x/sys/unix"
)

const areaMount = "mount"

// mounting looks at what a mount needs.
func mounting(h Host) []Finding {
	var f []Finding
	if h.exists("dev/fuse") {
		f = append(f, Finding{areaMount, OK, "/dev/fuse is there", ""})
	} else {
		f = append(f, Finding{areaMount, Bad, "no /dev/fuse: nothing can be mounted",
			"modprobe fuse; in a container, start it with --device /dev/fuse --cap-add SYS_ADMIN"})
	}
	if os.Geteuid() != 0 {
		if _, err := exec.LookPath("fusermount3"); err != nil {
			f = append(f, Finding{areaMount, Bad, "no fusermount3: only root can mount", "install it (Debian: fuse3)"})
		}
	}
	return f
}

// From linux/userfaultfd.h of Linux 6.7.
const (
	uffdioAPI      = 0xc018aa3f
	uffdAPI        = 0xaa
	uffdUserMode   = 1
	uffdWPAsync    = 1 << 15
	uffdWPUnpopul  = 1 << 13
	pageFaultFlags = 1 << 0
)

// tracking looks at how attached programs find the pages that they stored to.
func tracking(Host) []Finding {
	err := tryWPAsync()
	switch {
	case err == nil:
		return []Finding{{areaMount, OK, "userfaultfd tracks stores without stopping threads (WP_ASYNC)", ""}}
	case errors.Is(err, unix.EPERM):
		return []Finding{{areaMount, Note, "userfaultfd is not allowed here: attached programs write back by fdatasync, which pauses them longer",
			"allow the system call where a container's seccomp profile forbids it"}}
	}
	return []Finding{{areaMount, Note, fmt.Sprintf("userfaultfd has no WP_ASYNC (%v): attached programs write back by fdatasync, which pauses them longer", err),
		"Linux 6.7 or later has it"}}
}

func tryWPAsync() error {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|uffdUserMode, 0, 0)
	if errno != 0 {
		return errno
	}
	defer unix.Close(int(fd)) //nolint:errcheck // nothing was done with it
	api := struct{ api, features, ioctls uint64 }{uffdAPI, uffdWPAsync | uffdWPUnpopul | pageFaultFlags, 0}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, uffdioAPI, uintptr(unsafe.Pointer(&api))); errno != 0 {
		return errno
	}
	return nil
}
