package tests

import (
	"math/rand/v2"
	"strconv"
	"testing"
	"time"
)

// victim is what a round kills.
type victim int

const (
	killDaemon victim = iota
	killProgram
	killBoth
)

func (v victim) String() string { return [...]string{"daemon", "program", "both"}[v] }

// A program stores the same epoch number in every page of a mapping and commits,
// again and again; daemon, program or both are killed at a random moment. What
// is mounted again is one epoch, whole: the last acknowledged one or the one in
// flight. A program's death alone rolls its open epoch back.
//
// Was seen to fail with an fsync that is acknowledged but does not commit, with a
// record that lacks its last page, and with a last close that commits stores of a
// mapping.
func TestKill(t *testing.T) {
	for _, place := range []struct {
		name  string
		dir   func(*testing.T) string
		share int // of the rounds, in percent
	}{{"tmpfs", fastDir, 80}, {"disk", diskDir, 20}} {
		t.Run(place.name, func(t *testing.T) {
			t.Parallel()
			rng, _ := newRand(t)
			m := newMount(t, place.dir(t))
			s := stamper{m: m, rng: rng, acked: make(map[string]uint64)}
			for i := range (rounds(150)*place.share + 99) / 100 {
				s.round(i)
			}
		})
	}
}

// A stamper runs the rounds of one mount.
type stamper struct {
	m     *mount
	rng   *rand.Rand
	acked map[string]uint64 // by file: the stamp found last
}

func (s *stamper) round(i int) {
	m, t := s.m, s.m.t
	hows := []string{"msync", "fsync", "fdatasync", "write"}
	pages := []int{1, 7, 300, 2000}[s.rng.IntN(4)]
	how := hows[s.rng.IntN(len(hows))]
	// One file for a size and a way: a file never changes its size here.
	name := how + strconv.Itoa(pages)
	who := victim(s.rng.IntN(3))
	if how == "write" && who == killProgram {
		who = killBoth // write(2) data of an open epoch commits at the last close
	}

	program := m.role("stamp", m.path(name), strconv.Itoa(pages), how)
	program.mustLine("from")
	acked := s.acked[name]
	for range s.rng.IntN(4) {
		acked = lastNumber(t, []string{program.mustLine("")}, acked)
	}
	<-time.After(time.Duration(s.rng.IntN(4000)) * time.Microsecond)

	if who == killBoth && how != "write" && s.rng.IntN(2) == 0 {
		_ = program.cmd.Process.Kill() // it may have ended
	}
	if who != killProgram {
		m.kill()
	}
	// After the daemon's death the program ends by SIGBUS or an error, but not
	// before it touches the mount again.
	_ = program.cmd.Process.Kill() // it may have ended
	acked = lastNumber(t, program.drainUntilExit(patience), acked)
	if who == killProgram {
		m.settle(name)
	} else {
		if s.rng.IntN(3) == 0 {
			m.unmountDead() // else the next mount has to
		}
		m.start()
	}

	found := m.stampOf(name)
	t.Logf("round %d: kill %s: %s: acknowledged %d, found %d", i, who, name, acked, found)
	if found < acked || found > acked+1 {
		t.Fatalf("kill %s: %s holds epoch %d; want %d or %d", who, name, found, acked, acked+1)
	}
	if s.rng.IntN(8) == 0 {
		m.stop()
		m.start()
		if again := m.stampOf(name); again != found {
			t.Fatalf("%s holds epoch %d after a clean unmount, %d before", name, again, found)
		}
	}
	s.acked[name] = found
}
