package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// holders names the processes that map or have open a file of a mount, as far as
// this process may look. Of the mount it touches the file's attributes only.
func holders(path string) []string {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_INO|unix.STATX_MNT_ID, &st); err != nil {
		return nil
	}
	device := fmt.Sprintf("%02x:%02x", st.Dev_major, st.Dev_minor)
	ino := strconv.FormatUint(st.Ino, 10)
	mount := strconv.FormatUint(st.Mnt_id, 10)
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is right
	var found []string
	for _, dir := range dirs {
		pid := filepath.Base(dir)
		if pid == strconv.Itoa(os.Getpid()) {
			continue
		}
		maps := mapsFile(dir, device, ino)
		if !maps && !opensFile(dir, mount, ino) {
			continue
		}
		name, _ := os.ReadFile(dir + "/comm") // it may have ended by now
		how := "has it open"
		if maps {
			how = "maps it"
		}
		found = append(found, fmt.Sprintf("%s (process %s) %s", bytes.TrimSpace(name), pid, how))
	}
	return found
}

// mapsFile looks for a mapping of the file, proc_pid_maps(5).
func mapsFile(dir, device, ino string) bool {
	maps, err := os.ReadFile(dir + "/maps")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(maps)) {
		f := strings.Fields(line)
		if len(f) >= 5 && f[3] == device && f[4] == ino {
			return true
		}
	}
	return false
}

// opensFile looks for an open descriptor of the file, proc_pid_fdinfo(5).
func opensFile(dir, mount, ino string) bool {
	infos, _ := filepath.Glob(dir + "/fdinfo/*") // the pattern is right
	for _, info := range infos {
		text, err := os.ReadFile(info)
		if err != nil {
			continue
		}
		sameMount, sameIno := false, false
		for line := range strings.Lines(string(text)) {
			key, value, _ := strings.Cut(line, ":")
			value = strings.TrimSpace(value)
			sameMount = sameMount || key == "mnt_id" && value == mount
			sameIno = sameIno || key == "ino" && value == ino
		}
		if sameMount && sameIno {
			return true
		}
	}
	return false
}
