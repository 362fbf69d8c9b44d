package main

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A mountPoint is an rpmemfs mount of this machine, as the kernel lists it.
type mountPoint struct {
	path   string
	source string // the pool's directory
	id     string // mount ID
}

// mounts lists the rpmemfs mounts that this process can see.
func mounts() ([]mountPoint, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var list []mountPoint
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if m, ok := parseMount(lines.Text()); ok {
			list = append(list, m)
		}
	}
	return list, lines.Err()
}

// gone says whether the mount is no longer there.
func (m mountPoint) gone() bool {
	list, err := mounts()
	return err == nil && !slices.Contains(list, m)
}

// parseMount reads a line of mountinfo, proc(5).
func parseMount(line string) (mountPoint, bool) {
	before, after, ok := strings.Cut(line, " - ")
	if !ok {
		return mountPoint{}, false
	}
	b, a := strings.Fields(before), strings.Fields(after)
	if len(b) < 5 || len(a) < 2 || a[0] != "fuse.rpmemfs" {
		return mountPoint{}, false
	}
	return mountPoint{path: unescape(b[4]), source: unescape(a[1]), id: b[0]}, true
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && octal(s[i+1]) && octal(s[i+2]) && octal(s[i+3]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func octal(c byte) bool { return '0' <= c && c <= '7' }

// mountOf finds the mount that holds a path, without touching it.
func mountOf(path string) (mountPoint, bool) {
	path, err := filepath.Abs(path)
	if err != nil {
		return mountPoint{}, false
	}
	list, err := mounts()
	if err != nil {
		return mountPoint{}, false
	}
	var best mountPoint
	found := false
	for _, m := range list {
		in := path == m.path || strings.HasPrefix(path, strings.TrimSuffix(m.path, "/")+"/")
		if in && len(m.path) >= len(best.path) {
			best, found = m, true
		}
	}
	return best, found
}
