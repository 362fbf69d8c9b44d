package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// nodeRead reads 1 GiB in order from a mount that has cached nothing: of a memory node,
// of go-fuse's loopback file system over a directory in memory, as the pool is, and over
// one on disk of which the kernel has nothing in memory, and of a pool of its own.
func (b *bench) nodeRead() (err error) {
	const size = 1 << 30
	n, err := b.memoryNode("", "--size=3GiB")
	if err != nil {
		return err
	}
	original, loop := filepath.Join(b.dir, "original"), filepath.Join(b.dir, "loop")
	if err := os.Mkdir(original, 0o755); err != nil {
		return err
	}
	disk, err := os.MkdirTemp("/var/tmp", "rpmemfs-bench")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(disk)) }()
	sides := []func() (*server, error){
		func() (*server, error) { return n.mount("mnt", "app") },
		func() (*server, error) { return serve(loop, b.loopback, original, loop) },
		func() (*server, error) { return b.own("3GiB") },
		func() (*server, error) { return serve(loop, b.loopback, disk, loop) },
	}
	took := make([][]time.Duration, len(sides))
	for round := range 1 + b.times(5) { // the first writes the file
		for i, mount := range sides {
			m, err := mount() // anew each time: nothing is cached, here and in the kernel
			if err != nil {
				return err
			}
			file := filepath.Join(m.mnt, "file")
			if round == 0 {
				err = b.fill(file, size)
			} else if err = forget(disk); err == nil {
				var t time.Duration
				t, err = readAll(file, size)
				took[i] = append(took[i], t)
			}
			if err := errors.Join(err, stop(m)); err != nil {
				return err
			}
		}
	}
	speed := func(i int) float64 { return size / (1 << 20) / median(took[i]).Seconds() }
	ratio := speed(0) / speed(1)
	b.add("node: 1 GiB read in order, nothing cached", fmt.Sprintf("%.0f MiB/s", speed(0)), fmt.Sprintf("%.0f MiB/s", speed(1)),
		fmt.Sprintf("%.2f", ratio), verdict(ratio >= 0.6, ">= 0.60"))
	b.add("  against the loopback over a file on disk", "", fmt.Sprintf("%.0f MiB/s", speed(3)), fmt.Sprintf("%.2f", speed(0)/speed(3)), "")
	b.add("  from a pool of its own", fmt.Sprintf("%.0f MiB/s", speed(2)), "", fmt.Sprintf("%.2f", speed(2)/speed(1)), "")
	return n.end()
}

// forget makes the kernel drop what it has in memory of the file in dir, which is in no use.
func forget(dir string) error {
	f, err := os.Open(filepath.Join(dir, "file"))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // it was only read
	if err := f.Sync(); err != nil {
		return err
	}
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// fill stores to every page of a new file and commits it.
func (b *bench) fill(file string, size int64) error {
	s, err := b.storer(file, size)
	if err != nil {
		return err
	}
	return errors.Join(s.epoch(step{"seq", size / 4096}), s.close())
}

// readAll times how long reading a file of size bytes takes.
func readAll(file string, size int64) (time.Duration, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }() // it was only read
	buf := make([]byte, 1<<20)
	begin := time.Now()
	n := int64(0)
	for {
		got, err := f.Read(buf)
		n += int64(got)
		if err == io.EOF {
			break
		}
		if err != nil {
			return 0, err
		}
	}
	took := time.Since(begin)
	if n != size {
		return 0, fmt.Errorf("read %d bytes of %d", n, size)
	}
	return took, nil
}
