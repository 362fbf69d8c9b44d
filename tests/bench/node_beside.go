package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"
)

const (
	lightPages = 1024    // of a file
	heavyPages = 32 << 8 // of an epoch: 32 MiB
	besideTime = 2 * time.Second
)

// nodeBeside times the commit of one page alone, and while another compute node commits
// large epochs to the same memory node without a pause.
func (b *bench) nodeBeside() error {
	n, err := b.memoryNode("", "--size=512MiB")
	if err != nil {
		return err
	}
	var mounts []*server
	var stores []*storer
	for i, pages := range []int64{lightPages, heavyPages} {
		name := fmt.Sprintf("mnt%d", i)
		m, err := n.mount(name, name)
		if err != nil {
			return err
		}
		s, err := b.storer(filepath.Join(m.mnt, "file"), pages*4096)
		if err != nil {
			return err
		}
		if err := commitAll(s, pages); err != nil {
			return err
		}
		mounts, stores = append(mounts, m), append(stores, s)
	}
	light, heavy := stores[0], stores[1]
	var alone, beside []time.Duration
	var speeds []float64
	for range b.times(5) {
		begun := time.Now()
		for time.Since(begun) < besideTime/4 {
			t, err := commitPage(light)
			if err != nil {
				return err
			}
			alone = append(alone, t)
		}
		took, speed, err := commitBeside(light, heavy)
		if err != nil {
			return err
		}
		beside, speeds = append(beside, took...), append(speeds, speed)
	}
	late := func(d []time.Duration) time.Duration {
		slices.Sort(d)
		return d[len(d)*99/100]
	}
	slices.Sort(speeds)
	b.add("node: commit of 1 page beside epochs of 32 MiB", round(median(beside)), round(median(alone))+" (alone)",
		fmt.Sprintf("%.2f", float64(median(beside))/float64(median(alone))), "")
	b.add("  the 99th of 100", round(late(beside)), round(late(alone))+" (alone)",
		fmt.Sprintf("%.2f", float64(late(beside))/float64(late(alone))), "")
	b.add(fmt.Sprintf("  while the other one committed %.0f MiB/s", speeds[len(speeds)/2]), "", "", "", "")
	return errors.Join(light.close(), heavy.close(), stop(mounts...), n.end())
}

// commitPage times the commit of a page at random.
func commitPage(s *storer) (time.Duration, error) {
	if _, err := s.do("rand", 1, lightPages); err != nil {
		return 0, err
	}
	return s.do("msync")
}

func commitAll(s *storer, pages int64) error {
	_, storeErr := s.do("seq", pages)
	_, commitErr := s.do("fsync")
	return errors.Join(storeErr, commitErr)
}

// commitBeside times commits of light beside heavy, for as long as that takes for some
// epochs, and tells how much heavy commits in MiB/s.
func commitBeside(light, heavy *storer) (took []time.Duration, speed float64, err error) {
	ended := make(chan error, 1)
	begun := time.Now()
	go func() {
		for epochs := 1; ; epochs++ {
			err := commitAll(heavy, heavyPages)
			if spent := time.Since(begun); err != nil || spent >= besideTime {
				speed = float64(epochs) * heavyPages * 4096 / (1 << 20) / spent.Seconds()
				ended <- err
				return
			}
		}
	}()
	for {
		t, err := commitPage(light)
		if err != nil {
			return nil, 0, errors.Join(err, <-ended)
		}
		took = append(took, t)
		select {
		case err := <-ended:
			return took, speed, err
		default:
		}
	}
}
