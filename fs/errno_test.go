package fs

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/volume"
)

func TestStatus(t *testing.T) {
	tests := []struct {
		err    error
		want   unix.Errno
		logged bool
	}{
		{nil, 0, false},
		{namespace.ErrNotExist, unix.ENOENT, false},
		{namespace.ErrExist, unix.EEXIST, false},
		{namespace.ErrNotDir, unix.ENOTDIR, false},
		{namespace.ErrIsDir, unix.EISDIR, false},
		{namespace.ErrNotEmpty, unix.ENOTEMPTY, false},
		{namespace.ErrNameTooLong, unix.ENAMETOOLONG, false},
		{namespace.ErrInvalid, unix.EINVAL, false},
		{namespace.ErrNoXattr, unix.ENODATA, false},
		{namespace.ErrTooBig, unix.E2BIG, false},
		{namespace.ErrTooManyLinks, unix.EMLINK, false},
		{region.ErrNoSpace, unix.ENOSPC, false},
		{region.ErrCorrupt, unix.EIO, true},
		{&region.CorruptError{Region: 1, What: "checksum"}, unix.EIO, true},
		{region.ErrVersion, unix.EIO, true},
		{epoch.ErrPoisoned, unix.EIO, false},
		{rdmacache.ErrFenced, unix.EIO, false},
		// A region that a full medium poisoned stays poisoned: not ENOSPC.
		{fmt.Errorf("%w: %w", epoch.ErrPoisoned, region.ErrNoSpace), unix.EIO, false},
		{rdmacache.ErrNoData, unix.ENXIO, false},
		{rdmacache.ErrTooLarge, unix.EFBIG, false},
		{volume.ErrBusy, unix.EBUSY, false},
		{volume.ErrReadOnly, unix.EROFS, false},
		{volume.ErrClosed, unix.ENODEV, false},
		{volume.ErrNotRegular, unix.EINVAL, false},
		{volume.ErrNotSupported, unix.EOPNOTSUPP, false},
		{errors.New("something else"), unix.EIO, true},
		{unix.EACCES, unix.EIO, true}, // of the pool's files, not of the program's
	}
	for _, test := range tests {
		err := test.err
		for range 2 { // as it is, and wrapped
			var log bytes.Buffer
			r := &rawFS{log: slog.New(slog.NewTextHandler(&log, nil))}
			if got := r.status("op", 1, err); got != fuse.Status(test.want) {
				t.Errorf("%v: got %v, want %v", err, got, test.want)
			}
			if got := strings.Count(log.String(), "\n"); got != map[bool]int{true: 1}[test.logged] {
				t.Errorf("%v: got %d lines logged, want logged %v", err, got, test.logged)
			}
			if err != nil {
				err = fmt.Errorf("outer: %w", err)
			}
		}
	}
}

func TestTimes(t *testing.T) {
	for _, ns := range []int64{0, 1, 1e9, 1_700_000_000_123_456_789, -1, -1e9, -1_500_000_001} {
		sec, nsec := splitTime(ns)
		if got := joinTime(sec, nsec); got != ns {
			t.Errorf("split and joined: got %d, want %d", got, ns)
		}
	}
	for _, test := range []struct {
		sec  int64
		want int64
	}{
		{math.MaxInt64, 9_223_372_036e9},
		{math.MinInt64, -9_223_372_036e9},
	} {
		if got := joinTime(uint64(test.sec), 0); got != test.want {
			t.Errorf("second %d: got %d, want the nearest, %d", test.sec, got, test.want)
		}
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{
		`/mnt`:            "/mnt",
		`/a\040b`:         "/a b",
		`/tab\011\134x`:   "/tab\t\\x",
		`/end\04`:         `/end\04`,
		`/not\08x`:        `/not\08x`,
		`/two\040\040b\n`: `/two  b\n`,
	} {
		if got := Unescape(in); got != want {
			t.Errorf("%s: got %q, want %q", in, got, want)
		}
	}
}
