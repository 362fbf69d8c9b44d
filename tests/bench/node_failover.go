package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

const (
	failoverLease = 2 * time.Second
	failoverLimit = failoverLease + 300*time.Millisecond
)

// nodeFailover times how long a share is out of reach when the daemon that has it is
// killed and another mount waits for it.
func (b *bench) nodeFailover() error {
	for _, c := range []struct {
		name string
		size int64
	}{{"1 GiB", 1 << 30}, {"1 TiB, sparse", 1 << 40}} {
		n, err := b.memoryNode("", "--size=1GiB", "--lease="+failoverLease.String())
		if err != nil {
			return err
		}
		took, mounts, err := b.failovers(n, c.size)
		if err != nil {
			return err
		}
		most := slices.Max(took)
		b.add(fmt.Sprintf("node: SIGKILL to first load and store elsewhere, lease %v, %s", failoverLease, c.name),
			fmt.Sprintf("%s, at most %s", round(median(took)), round(most)), "", "", verdict(most <= failoverLimit, "<= "+failoverLimit.String()))
		b.add("  of it: until mounted there", round(median(mounts)), "", "", "")
		if err := n.end(); err != nil {
			return err
		}
	}
	return nil
}

// failovers kills one mount after the other, and returns how long the next took to load
// and store, and of it, to be mounted.
func (b *bench) failovers(n *memoryNode, size int64) (took, mounts []time.Duration, err error) {
	const first = 256 // pages that hold something for certain
	now, err := n.mount("mnt0", "app")
	if err != nil {
		return nil, nil, err
	}
	s, err := b.storer(filepath.Join(now.mnt, "file"), size)
	if err != nil {
		return nil, nil, err
	}
	if err := s.epoch(step{"rand", 10_000, size / 4096}); err != nil {
		return nil, nil, err
	}
	rounds := b.times(9)
	for i := range rounds {
		next, err := n.launch(fmt.Sprintf("mnt%d", (i+1)%2), "app")
		if err != nil {
			return nil, nil, err
		}
		if err := errors.Join(s.epoch(step{"seq", first}), s.epoch(step{"rand", 1000, 1 << 18})); err != nil {
			return nil, nil, err
		}
		// The lease is renewed every third of it; the kill comes at all times between.
		time.Sleep(failoverLease / 3 * time.Duration(i) / time.Duration(rounds))
		if _, err := s.do("rand", 100, first); err != nil { // an open epoch, to be lost
			return nil, nil, err
		}
		killed := time.Now()
		now.kill()
		if _, err := next.await("mounted"); err != nil {
			return nil, nil, err
		}
		then, err := b.storer(filepath.Join(next.mnt, "file"), size)
		if err != nil {
			return nil, nil, err
		}
		if _, err := then.do("rand", 1, first); err != nil { // the fault loads the page
			return nil, nil, err
		}
		took, mounts = append(took, time.Since(killed)), append(mounts, next.ready.Sub(killed))
		_ = s.close() // its mount is dead
		if err := syscall.Unmount(now.mnt, syscall.MNT_DETACH); err != nil {
			return nil, nil, err
		}
		now, s = next, then
	}
	return took, mounts, errors.Join(s.close(), stop(now))
}

// epoch stores, and commits.
func (s *storer) epoch(store step) error {
	_, err := s.do(store[0].(string), store[1:]...)
	if err == nil {
		_, err = s.do("fsync")
	}
	return err
}
