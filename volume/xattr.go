package volume

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rpmemfs/rpmemfs/namespace"
)

// Extended attributes that this package gives a meaning. They are never listed,
// so that tools that copy attributes do not copy them.
const (
	xattrPrefix = "user.rpmemfs."

	// XattrCheckpoint makes a checkpoint of the name that is set; the empty name
	// only commits. It cannot be read.
	XattrCheckpoint = xattrPrefix + "checkpoint"
	// XattrOnClose reads and sets "rollback" or "commit"; removing it goes back
	// to what the mount says.
	XattrOnClose = xattrPrefix + "on_close"
	// XattrRefresh, when it is read, makes a file of a mount beside a writer show its
	// newest committed epoch, which is the value; of a directory all files that are
	// in use, and the value is empty. Reading it is what a mount that is read-only allows.
	XattrRefresh     = xattrPrefix + "refresh"
	XattrEpoch       = xattrPrefix + "epoch"       // last committed, decimal
	XattrDirtyPages  = xattrPrefix + "dirty_pages" // of the open epoch, decimal
	XattrCheckpoints = xattrPrefix + "checkpoints" // names, oldest first, each ended by a newline
	XattrPoisoned    = xattrPrefix + "poisoned"    // why the region is poisoned, empty if it is not
	XattrIno         = xattrPrefix + "ino"         // decimal
	XattrSocket      = xattrPrefix + "socket"      // path of the control socket
	XattrMountpoint  = xattrPrefix + "mountpoint"
	XattrAttach      = xattrPrefix + "attach" // path of the attach socket
	// XattrInterval reads and sets the time between the epochs of programs that are
	// attached, such as "64ms"; "0" is none. Removing it goes back to what the
	// mount says.
	XattrInterval = xattrPrefix + "interval"
	XattrMedium   = xattrPrefix + "medium" // "file", "tmpfs", "dax"

	xattrCapability = "security.capability"
	xattrACLPrefix  = "system.posix_acl_"
)

// Xattr returns the value of an extended attribute.
func (v *Volume) Xattr(ctx context.Context, ino namespace.Ino, name string) ([]byte, error) {
	if !strings.HasPrefix(name, xattrPrefix) {
		if strings.HasPrefix(name, xattrACLPrefix) {
			return nil, ErrNotSupported // nothing would enforce it
		}
		return v.cfg.Pool.Xattr(ctx, ino, name)
	}
	text, err := v.virtualXattr(ctx, ino, name)
	return []byte(text), err
}

func (v *Volume) virtualXattr(ctx context.Context, ino namespace.Ino, name string) (string, error) {
	switch name {
	case XattrIno:
		return strconv.FormatUint(uint64(ino), 10), nil
	case XattrSocket:
		return v.cfg.Socket, nil
	case XattrMountpoint:
		return v.cfg.Mountpoint, nil
	case XattrMedium:
		return v.cfg.Conn.Medium().Kind, nil
	case XattrAttach:
		if v.cfg.AttachSocket == "" {
			return "", namespace.ErrNoXattr
		}
		return v.cfg.AttachSocket, nil
	case XattrInterval:
		return v.Interval(ctx, ino).String(), nil
	case XattrRefresh:
		return v.refreshText(ctx, ino)
	case XattrOnClose, XattrEpoch, XattrDirtyPages, XattrCheckpoints, XattrPoisoned:
	default:
		return "", namespace.ErrNoXattr
	}
	n, err := v.cfg.Pool.Inode(ctx, ino)
	if err != nil {
		return "", err
	}
	if n.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return "", namespace.ErrNoXattr
	}
	switch name {
	case XattrOnClose:
		return onCloseText(v.onClose(n)), nil
	case XattrCheckpoints:
		list, err := v.Checkpoints(ctx, ino)
		var b strings.Builder
		for _, c := range list {
			b.WriteString(c.Name + "\n")
		}
		return b.String(), err
	}
	f, err := v.acquire(ctx, ino)
	if err != nil {
		return "", err
	}
	defer v.release(f)
	switch name {
	case XattrEpoch:
		return strconv.FormatUint(uint64(f.cache.Committed()), 10), nil
	case XattrDirtyPages:
		mapped, written := f.cache.Dirty()
		return strconv.Itoa(mapped + written), nil
	}
	if err := f.cache.Err(); err != nil {
		return err.Error(), nil
	}
	return "", nil
}

// Xattrs returns the names of the stored attributes.
func (v *Volume) Xattrs(ctx context.Context, ino namespace.Ino) ([]string, error) {
	names, err := v.cfg.Pool.Xattrs(ctx, ino)
	return slices.DeleteFunc(names, func(name string) bool { return strings.HasPrefix(name, xattrPrefix) }), err
}

// SetXattr sets an extended attribute, durably, or does what a virtual one stands
// for.
func (v *Volume) SetXattr(ctx context.Context, ino namespace.Ino, name string, value []byte, flags namespace.XattrFlags) error {
	if err := v.writable(); err != nil {
		return err
	}
	if strings.HasPrefix(name, xattrACLPrefix) {
		return ErrNotSupported
	}
	if !strings.HasPrefix(name, xattrPrefix) {
		return v.cfg.Pool.SetXattr(ctx, ino, name, value, flags)
	}
	n, err := v.cfg.Pool.Inode(ctx, ino)
	if err != nil {
		return err
	}
	if n.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return fmt.Errorf("set %s: %w", name, namespace.ErrInvalid)
	}
	switch name {
	case XattrCheckpoint:
		if len(value) == 0 {
			_, err = v.Commit(ctx, ino)
		} else {
			_, err = v.Checkpoint(ctx, ino, string(value))
		}
		return err
	case XattrOnClose:
		on, err := parseOnClose(string(value))
		if err != nil {
			return err
		}
		return v.setOnClose(ctx, ino, on)
	case XattrInterval:
		if _, err := parseInterval(string(value)); err != nil {
			return err
		}
		return v.cfg.Pool.SetXattr(ctx, ino, name, value, flags)
	}
	return fmt.Errorf("set %s: %w", name, namespace.ErrInvalid)
}

// RemoveXattr removes an extended attribute, durably.
func (v *Volume) RemoveXattr(ctx context.Context, ino namespace.Ino, name string) error {
	if err := v.writable(); err != nil {
		return err
	}
	switch {
	case name == XattrOnClose:
		return v.setOnClose(ctx, ino, namespace.OnCloseDefault)
	case name == XattrInterval:
		return v.cfg.Pool.RemoveXattr(ctx, ino, name)
	case strings.HasPrefix(name, xattrPrefix):
		return fmt.Errorf("remove %s: %w", name, namespace.ErrInvalid)
	case strings.HasPrefix(name, xattrACLPrefix):
		return ErrNotSupported
	}
	return v.cfg.Pool.RemoveXattr(ctx, ino, name)
}

func (v *Volume) setOnClose(ctx context.Context, ino namespace.Ino, on namespace.OnClose) error {
	_, err := v.cfg.Pool.Update(ctx, ino, func(n *namespace.Inode) { n.OnClose = on })
	return err
}

// Interval returns the time between the epochs of programs attached to a file; 0 is
// none.
func (v *Volume) Interval(ctx context.Context, ino namespace.Ino) time.Duration {
	if value, err := v.cfg.Pool.Xattr(ctx, ino, XattrInterval); err == nil {
		if d, err := parseInterval(string(value)); err == nil {
			return d
		}
	}
	return v.cfg.Interval
}

// parseInterval reads what XattrInterval is set to.
func parseInterval(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d != 0 && d < MinInterval {
		return 0, fmt.Errorf("interval %q, want a time of at least %v such as 64ms, or 0: %w", text, MinInterval, namespace.ErrInvalid)
	}
	return d, nil
}

// MinInterval is the shortest time between epochs: a barrier takes about that long.
const MinInterval = time.Millisecond

func onCloseText(on namespace.OnClose) string {
	if on == namespace.OnCloseCommit {
		return "commit"
	}
	return "rollback"
}

// parseOnClose reads what onCloseText writes.
func parseOnClose(text string) (namespace.OnClose, error) {
	switch text {
	case "rollback":
		return namespace.OnCloseRollback, nil
	case "commit":
		return namespace.OnCloseCommit, nil
	}
	return 0, fmt.Errorf("on-close %q, want rollback or commit: %w", text, namespace.ErrInvalid)
}
