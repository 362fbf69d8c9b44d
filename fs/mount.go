// Package fs serves a volume as a FUSE mount. It is a thin adapter: it translates
// requests of the kernel into calls of package volume, and errors into errno.
//
// Inode numbers are the volume's own, so the kernel's NodeId is a namespace.Ino.
// The kernel's page cache is never dropped on its own account (the mount is the
// only writer), there is no writeback cache (write(2) arrives at once and is told
// apart from stores through mappings by FUSE_WRITE_CACHE), and no passthrough:
// with it msync(2) would send nothing. Locks are the kernel's own, which is right
// while there is one mount.
//
// What the kernel sends, as fs/fuse of Linux 6.18 does it: stores through a
// mapping come as WRITE with FUSE_WRITE_CACHE when it writes pages back, at the
// latest before the FSYNC of msync(2) or fsync(2), before the FLUSH of close(2),
// and when a mapping goes away, before RELEASE. A RELEASE can be missing if the
// connection is aborted.
//
// The process that serves a mount must never touch it: no call here resolves a
// path below the mountpoint.
package fs

import (
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/volume"
)

// A Config says what to mount and how.
type Config struct {
	Volume *volume.Volume
	Source string // shown as the device of the mount; the pool's directory
	// AllowOther lets other users in, under the permissions of the files. Without
	// root it needs user_allow_other in /etc/fuse.conf.
	AllowOther bool
	ReadOnly   bool
	NoExec     bool // no program of the mount can be executed
	// ReadAhead is how many bytes the kernel asks for ahead of a program that reads
	// in sequence; 0 is the kernel's own choice. Only root can set it.
	ReadAhead int
	Log       *slog.Logger // nil discards
}

// A Server is a mount and the loop that answers its requests.
type Server struct {
	fuse       *fuse.Server
	mountpoint string
	log        *slog.Logger
}

const (
	// maxWrite is the largest WRITE in bytes, and the largest READ.
	maxWrite = 1 << 20
	// maxBackground is how many WRITEs of write-back the kernel sends before it
	// waits for answers. Each takes a goroutine and a buffer of maxWrite: more of
	// them cost memory and contention, and made msync slower (docs/rationale.md).
	maxBackground = 16
)

// Mount mounts the volume on a directory, given by an absolute path without
// symbolic links. When it returns programs can use the mount; their requests are
// answered once Serve runs.
func Mount(cfg Config, mountpoint string) (*Server, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	root := os.Geteuid() == 0
	opts := &fuse.MountOptions{
		FsName:                   cfg.Source,
		Name:                     "rpmemfs",
		AllowOther:               cfg.AllowOther,
		Options:                  []string{"default_permissions"},
		DirectMount:              root,
		DirectMountStrict:        root,
		DirectMountFlags:         unix.MS_NOSUID | unix.MS_NODEV,
		MaxWrite:                 maxWrite,
		MaxBackground:            maxBackground,
		CongestionThreshold:      maxBackground,
		ExplicitDataCacheControl: true,
		// What is read is in memory. A pipe would be filled with the head of each answer,
		// and emptied again.
		DisableSplice: true,
		// READDIRPLUS_AUTO: a plain listing need not open every region.
		// HANDLE_KILLPRIV_V2: the kernel need not ask for security.capability at
		// every write; the daemon drops privileges itself.
		ExtraCapabilities: fuse.CAP_READDIRPLUS_AUTO | fuse.CAP_HANDLE_KILLPRIV_V2,
		Logger:            slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	if cfg.ReadOnly {
		opts.DirectMountFlags |= unix.MS_RDONLY
		if !root {
			opts.Options = append(opts.Options, "ro")
		}
	}
	if cfg.NoExec {
		opts.DirectMountFlags |= unix.MS_NOEXEC
		if !root {
			opts.Options = append(opts.Options, "noexec")
		}
	}
	opts.Logger.SetFlags(log.Lmsgprefix)
	raw := newRawFS(cfg)
	server, err := fuse.NewServer(raw, mountpoint, opts)
	if err != nil {
		if !root { // what it says ends in a newline
			err = errors.New(strings.TrimSpace(err.Error()))
		}
		return nil, fmt.Errorf("mount %s: %w", mountpoint, err)
	}
	cfg.Volume.SetInvalidator(&invalidator{server})
	s := &Server{server, mountpoint, cfg.Log}
	if root {
		s.tune(cfg.ReadAhead)
	}
	return s, nil
}

// Serve answers requests until the mount is gone: unmounted by whomever, or its
// connection aborted. When it returns no request is under way.
func (s *Server) Serve() { s.fuse.Serve() }

// Unmount unmounts. An error that matches unix.EBUSY reports that programs use
// the mount; nothing has changed then.
func (s *Server) Unmount() error { return unmount(s.mountpoint, false) }

// Detach takes the mount out of the file tree at once. Programs that use it go
// on; Serve returns when the last has ended.
func (s *Server) Detach() error { return unmount(s.mountpoint, true) }

func unmount(mountpoint string, detach bool) error {
	if os.Geteuid() == 0 {
		flags := unix.UMOUNT_NOFOLLOW
		if detach {
			flags |= unix.MNT_DETACH
		}
		if err := unix.Unmount(mountpoint, flags); err != nil {
			return fmt.Errorf("unmount %s: %w", mountpoint, err)
		}
		return nil
	}
	args := []string{"-u", "-q", "--", mountpoint}
	if detach {
		args = append([]string{"-z"}, args...)
	}
	fusermount, err := exec.LookPath("fusermount3")
	if err != nil {
		return fmt.Errorf("unmount %s: %w", mountpoint, err)
	}
	out, err := exec.Command(fusermount, args...).CombinedOutput()
	if err == nil {
		return nil
	}
	if _, mounted := device(mountpoint); !mounted {
		return fmt.Errorf("unmount %s: %w", mountpoint, unix.EINVAL)
	}
	// It does not tell why; in use is the one reason a mount of one's own has.
	return fmt.Errorf("unmount %s: %w (%s)", mountpoint, unix.EBUSY, strings.TrimSpace(string(out)))
}

// tune lifts the limits that the kernel puts on dirty pages of FUSE mounts: with them
// its flusher writes most pages back in the middle of an epoch, and programs stall. It
// also sets how far the kernel reads ahead. All that is a matter of speed only.
func (s *Server) tune(readAhead int) {
	dev, ok := device(s.mountpoint)
	if !ok {
		s.log.Debug("mount is not in /proc/self/mountinfo", "mountpoint", s.mountpoint)
		return
	}
	knobs := []struct{ name, value string }{{"strict_limit", "0"}, {"max_ratio", "100"}}
	if readAhead > 0 {
		knobs = append(knobs, struct{ name, value string }{"read_ahead_kb", strconv.Itoa(readAhead >> 10)})
	}
	for _, knob := range knobs {
		path := filepath.Join("/sys/class/bdi", dev, knob.name)
		if err := os.WriteFile(path, []byte(knob.value), 0); err != nil {
			s.log.Debug("tune the mount", "err", err)
		}
	}
}

// device returns the major:minor of the FUSE mount at a path. It reads the table
// of mounts and never the mount.
func device(mountpoint string) (dev string, ok bool) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", false
	}
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		_, after, found := strings.Cut(line, " - ")
		if found && len(fields) > 4 && Unescape(fields[4]) == mountpoint && strings.HasPrefix(after, "fuse") {
			dev, ok = fields[2], true // the last one is on top
		}
	}
	return dev, ok
}

// Unescape turns the octal escapes of /proc/self/mountinfo back into bytes.
func Unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
