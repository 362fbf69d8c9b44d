package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

const (
	scaleNodes = 8
	scalePages = 1024 // of an epoch: 4 MiB
	scaleTime  = 2 * time.Second
)

// nodeScale lets compute nodes commit to one memory node at a time: 1, 2, 4 and 8, each
// its own share.
func (b *bench) nodeScale() error {
	n, err := b.memoryNode("", "--size=1GiB")
	if err != nil {
		return err
	}
	var mounts []*server
	var stores []*storer
	for i := range scaleNodes {
		name := fmt.Sprintf("mnt%d", i)
		m, err := n.mount(name, name)
		if err != nil {
			return err
		}
		s, err := b.storer(filepath.Join(m.mnt, "file"), scalePages*4096)
		if err != nil {
			return err
		}
		mounts, stores = append(mounts, m), append(stores, s)
	}
	counts := []int{1, 2, 4, scaleNodes}
	runs := make([][]crowd, len(counts))
	for range b.times(5) {
		for i, count := range counts {
			c, err := commitTogether(n, stores[:count])
			if err != nil {
				return err
			}
			runs[i] = append(runs[i], c)
		}
	}
	one := middleOf(runs[0], func(c crowd) float64 { return c.speed })
	for i, count := range counts {
		speed := middleOf(runs[i], func(c crowd) float64 { return c.speed })
		slowest := middleOf(runs[i], func(c crowd) float64 { return c.slowest })
		cpu := middleOf(runs[i], func(c crowd) float64 { return c.cpu })
		wish := ""
		if count == scaleNodes {
			wish = verdict(speed >= one, ">= 1 (total)") + ", " + verdict(slowest >= 0.5, ">= 0.5 (slowest)")
		}
		b.add(fmt.Sprintf("node: %d compute nodes, epochs of 4 MiB", count), fmt.Sprintf("%.0f MiB/s", speed),
			fmt.Sprintf("%.0f MiB/s (1 node)", one), fmt.Sprintf("%.2f", speed/one), wish)
		b.add(fmt.Sprintf("  the slowest has %.2f of its fair share; memory node %.2f CPU s a GiB", slowest, cpu), "", "", "", "")
	}
	for _, s := range stores {
		err = errors.Join(err, s.close())
	}
	return errors.Join(err, stop(mounts...), n.end())
}

// A crowd is what came of some compute nodes that committed at the same time.
type crowd struct {
	speed   float64 // MiB/s committed, of all
	slowest float64 // share of the slowest, 1 is fair
	cpu     float64 // seconds of the memory node for a GiB
}

// commitTogether lets stores commit epoch after epoch for scaleTime.
func commitTogether(n *memoryNode, stores []*storer) (crowd, error) {
	before, err := n.cpuSeconds()
	if err != nil {
		return crowd{}, err
	}
	bytes, speeds := make([]float64, len(stores)), make([]float64, len(stores))
	errs := make([]error, len(stores))
	var wg sync.WaitGroup
	begin := time.Now()
	for i, s := range stores {
		wg.Go(func() {
			for errs[i] == nil && time.Since(begin) < scaleTime {
				_, storeErr := s.do("seq", scalePages)
				_, commitErr := s.do("fsync")
				errs[i] = errors.Join(storeErr, commitErr)
				bytes[i] += scalePages * 4096
			}
			speeds[i] = bytes[i] / (1 << 20) / time.Since(begin).Seconds()
		})
	}
	wg.Wait()
	after, err := n.cpuSeconds()
	if err := errors.Join(append(errs, err)...); err != nil {
		return crowd{}, err
	}
	sum := func(of []float64) (total float64) {
		for _, f := range of {
			total += f
		}
		return total
	}
	total := sum(speeds)
	return crowd{
		speed:   total,
		slowest: slices.Min(speeds) * float64(len(speeds)) / total,
		cpu:     (after - before) / (sum(bytes) / (1 << 30)),
	}, nil
}

// middleOf returns the median of one figure.
func middleOf(runs []crowd, figure func(crowd) float64) float64 {
	all := make([]float64, len(runs))
	for i, c := range runs {
		all[i] = figure(c)
	}
	slices.Sort(all)
	return all[len(all)/2]
}
