package tests

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// connections is where the kernel shows FUSE connections, one directory each,
// named by the minor number of the mount's device.
const connections = "/sys/fs/fuse/connections"

// A fuseMount is a FUSE mount as /proc/self/mountinfo shows it. Nothing here
// touches the mount itself, which may be dead or hang.
type fuseMount struct {
	path  string
	minor string
}

// fuseMounts lists the FUSE mounts at or below one of the directories.
func fuseMounts(dirs ...string) []fuseMount {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var found []fuseMount
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		before, after, ok := strings.Cut(line, " - ")
		if !ok || len(strings.Fields(before)) < 5 || !strings.HasPrefix(after, "fuse") {
			continue
		}
		path := strings.ReplaceAll(fields[4], `\040`, " ")
		_, minor, _ := strings.Cut(fields[2], ":")
		for _, dir := range dirs {
			if path == dir || strings.HasPrefix(path, dir+"/") {
				found = append(found, fuseMount{path, minor})
				break
			}
		}
	}
	return found
}

// abort breaks the connection, which frees every process that hangs in it, and
// a daemon that hangs in exit.
func (m fuseMount) abort() error {
	file := connections + "/" + m.minor + "/abort"
	if _, err := os.Stat(file); err != nil {
		// Not every system mounts the control file system by itself.
		_ = unix.Mount("fusectl", connections, "fusectl", 0, "") // reported by the write below
	}
	return os.WriteFile(file, []byte("1"), 0o200)
}

// remove aborts the connection and takes the mount out of the tree.
func (m fuseMount) remove() {
	_ = m.abort() // gone already, or not root
	if unix.Unmount(m.path, unix.MNT_DETACH) == nil {
		return
	}
	_ = exec.Command("fusermount3", "-u", "-z", m.path).Run() // reported as left behind
}

// whereStuck says what a process waits for, for the report of a hang.
func whereStuck(pid int) string {
	var b strings.Builder
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return "(ended)"
	}
	for _, task := range tasks {
		dir := fmt.Sprintf("/proc/%d/task/%s/", pid, task.Name())
		stack, err := os.ReadFile(dir + "stack")
		if err != nil || len(stack) == 0 {
			stack, _ = os.ReadFile(dir + "wchan") // best effort
		}
		fmt.Fprintf(&b, "task %s:\n%s\n", task.Name(), stack)
	}
	return b.String()
}

// statusKB returns a field of /proc/PID/status, such as RssAnon, in KiB.
func statusKB(pid int, field string) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			return strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
		}
	}
	return 0, fmt.Errorf("no %s of process %d", field, pid)
}
