package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// written returns how many bytes the daemon of a mount has written to the pool's
// medium: pages, records and tables.
func (b *bench) written(m *server) (int64, error) {
	out, err := exec.Command(b.rpmemctl, "status", "--json", m.mnt).Output()
	if err != nil {
		return 0, fmt.Errorf("rpmemctl status: %w", err)
	}
	var status struct {
		Pools []struct {
			Written *int64 `json:"medium_bytes_written"`
		} `json:"pools"`
	}
	if err := json.Unmarshal(out, &status); err != nil {
		return 0, fmt.Errorf("rpmemctl status: %w", err)
	}
	if len(status.Pools) != 1 || status.Pools[0].Written == nil {
		return 0, fmt.Errorf("rpmemctl status tells no medium_bytes_written: %s", out)
	}
	return *status.Pools[0].Written, nil
}

// rssBytes returns the daemon's resident memory. A pool on tmpfs that is mapped is
// shared memory of the pool, not of the daemon.
func (s *server) rssBytes() (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	var sum int64
	for line := range strings.Lines(string(status)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "RssAnon:" && fields[0] != "RssFile:" {
			continue
		}
		kib, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/PID/status: %q: %w", line, err)
		}
		sum += kib << 10
	}
	return sum, nil
}

// cpuSeconds returns how much processor time the daemon has used.
func (s *server) cpuSeconds() (float64, error) {
	path := fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid)
	stat, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("%s: %q", path, stat)
	}
	user, err := strconv.ParseFloat(fields[11], 64)
	system, err2 := strconv.ParseFloat(fields[12], 64)
	const hertz = 100 // USER_HZ, on every architecture that Go knows
	return (user + system) / hertz, errors.Join(err, err2)
}

// samplePeriod is how often peakBytes looks: the kernel keeps a peak of all
// resident memory only.
const samplePeriod = 20 * time.Millisecond

// peakBytes samples the daemon's memory until the function it returns is called,
// which tells the most that was seen.
func (s *server) peakBytes() (stop func() int64) {
	quit, peak := make(chan struct{}), make(chan int64)
	go func() {
		most := int64(0)
		tick := time.NewTicker(samplePeriod)
		defer tick.Stop()
		for {
			if now, err := s.rssBytes(); err == nil {
				most = max(most, now)
			}
			select {
			case <-tick.C:
			case <-quit:
				peak <- most
				return
			}
		}
	}()
	return func() int64 {
		close(quit)
		return <-peak
	}
}
