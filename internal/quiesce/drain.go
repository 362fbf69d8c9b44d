package quiesce

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Drain sends to its daemon what the kernel has of stores to f, and waits for the
// answer. It commits nothing. It must not be called by the daemon of f's mount.
func Drain(f *os.File) error {
	const all = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	for {
		err := unix.SyncFileRange(int(f.Fd()), 0, 0, all)
		if !errors.Is(err, unix.EINTR) {
			if err != nil {
				return fmt.Errorf("sync_file_range: %w", err)
			}
			return nil
		}
	}
}

const (
	// maxRounds bounds Preclean for programs that store faster than it drains.
	maxRounds = 5
	// shortRound is one that would hardly lengthen a stop.
	shortRound = 2 * time.Millisecond
)

// Preclean drains f while programs run, so that less is left for the stop: in rounds,
// as long as each is clearly shorter than the one before.
func Preclean(f *os.File) error {
	for round, last := 0, time.Duration(0); round < maxRounds; round++ {
		begin := time.Now()
		if err := Drain(f); err != nil {
			return err
		}
		took := time.Since(begin)
		if took < shortRound || round > 0 && took > last*7/10 {
			return nil
		}
		last = took
	}
	return nil
}
