package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// maxHolders bounds how many processes are named.
const maxHolders = 20

// holders names the processes that use the mount, with what they use. It reads
// /proc only: the paths in it say enough, and the mount must not be touched.
func holders(mountpoint string) []string {
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	var found []string
	for _, dir := range procs {
		use := uses(dir, mountpoint)
		if len(use) == 0 {
			continue
		}
		if len(found) == maxHolders {
			return append(found, "and more")
		}
		comm, _ := os.ReadFile(dir + "/comm") // the process may have ended
		found = append(found, fmt.Sprintf("%s (%s): %s", filepath.Base(dir), strings.TrimSpace(string(comm)), strings.Join(use, ", ")))
	}
	return found
}

// uses says how one process uses the mount.
func uses(dir, mountpoint string) []string {
	inside := func(path string) bool {
		rest, ok := strings.CutPrefix(path, mountpoint)
		return ok && (rest == "" || rest[0] == '/' || strings.HasPrefix(rest, " (deleted)"))
	}
	var use []string
	for _, link := range []string{"cwd", "root", "exe"} {
		if target, err := os.Readlink(dir + "/" + link); err == nil && inside(target) {
			use = append(use, link+" "+target)
		}
	}
	fds, _ := os.ReadDir(dir + "/fd") // another user's
	for _, fd := range fds {
		if target, err := os.Readlink(dir + "/fd/" + fd.Name()); err == nil && inside(target) {
			use = append(use, "open "+target)
		}
	}
	if f, err := os.Open(dir + "/maps"); err == nil {
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if i := strings.IndexByte(lines.Text(), '/'); i >= 0 && inside(lines.Text()[i:]) {
				use = append(use, "mapped "+lines.Text()[i:])
			}
		}
		_ = f.Close() // only read
	}
	slices.Sort(use)
	use = slices.Compact(use)
	if len(use) > 3 {
		use = append(use[:3], strconv.Itoa(len(use)-3)+" more")
	}
	return use
}
