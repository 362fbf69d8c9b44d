package sim

import (
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rpmemfs/rpmemfs/remote"
)

// A compute node dies in a commit whose flush does not arrive, the next one finds the
// epoch, and then the memory node loses power, and what was not flushed, under it. The
// session goes on, and what it commits is found by the third. Schedules get here
// seldom.
func TestPowerCutUnderASession(t *testing.T) {
	for p := range paths {
		t.Run(p.String(), func(t *testing.T) { powerCutsUnderASession(t, p) })
	}
}

func powerCutsUnderASession(t *testing.T, p path) {
	lost := 0
	for i := range uint64(20) {
		dir, err := os.MkdirTemp(memoryDir(), "rpmemfs-sim")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(*seed+i, &counts{})
			w.lease = 2 * time.Second
			w.equip(*seed+i, p)
			if w.powerCutUnderASession(t, dir, rand.New(rand.NewPCG(*seed+i, 5))) {
				lost++
			}
			if *story {
				t.Log(strings.Join(w.trace, "\n"))
			}
			if w.failed() {
				t.Errorf("-seed %d: %s\n%s", *seed+i, strings.Join(w.failures, "\n"), strings.Join(w.trace, "\n"))
			}
		})
	}
	if lost == 0 {
		t.Error("the epoch that was not flushed was never found: the test tests nothing")
	}
}

// powerCutUnderASession tells whether the second session found the epoch.
func (w *world) powerCutUnderASession(t *testing.T, dir string, rng *rand.Rand) (found bool) {
	s := newShare("s")
	w.shares = append(w.shares, s)
	var err error
	if w.machine, err = newMachine(dir, w.net, rng); err == nil {
		err = w.machine.start(w.lease, -1, "crashable")
	}
	if err != nil {
		t.Fatal(err)
	}
	open := func(name string) *tenure {
		t := w.open(rng, name, w.net.newCompute(name), s, remote.Config{Steal: true})
		if t == nil {
			w.fail("%s does not open the share", name)
		} else if t.recover() != nil {
			w.fail("%s does not recover", name)
			t.abandon()
			t = nil
		}
		return t
	}
	commit := func(t *tenure, name string) error {
		stamp, err := t.store(name)
		if err != nil {
			return err
		}
		return t.commit(name, stamp)
	}
	defer func() {
		w.background.Wait()
		_ = w.machine.stop() // checked elsewhere
	}()

	first := open("first")
	if first == nil {
		return false
	}
	if first.create() != nil || commit(first, "f1") != nil {
		w.fail("the first session does not work")
	}
	first.host.clip()
	died := make(chan struct{})
	go func() {
		defer close(died)
		_ = commit(first, "f1") // fails, when the lease is over
	}()
	time.Sleep(time.Second)
	first.host.die()

	second := open("second")
	<-died
	first.abandon()
	if second == nil {
		return false
	}
	found = w.counts.unheard.Load() > 0
	w.machine.kill(false)
	if err := w.machine.start(w.lease, -1, "crashable"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if commit(second, "f1") != nil {
			w.fail("the second session cannot commit")
			break
		}
	}
	third := open("third")
	second.abandon()
	if third != nil {
		third.end()
	}
	return found
}
