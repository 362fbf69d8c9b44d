package model_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rpmemfs/rpmemfs/internal/media"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs/model"
)

var _ model.Medium = (*media.Crashable)(nil)

// each runs fn in bubbles, with many seeds.
func each(t *testing.T, n int, fn func(t *testing.T, seed uint64)) {
	for i := range uint64(n) {
		synctest.Test(t, func(t *testing.T) { fn(t, *seed+i) })
		if t.Failed() {
			t.Fatalf("-seed %d", *seed+i)
		}
	}
}

// What a queue does takes effect in order, however late and in pieces: a Read has the
// Write before it whole, a Send that arrived says that it is there, and nothing of the
// Write after a Read is in what that brought.
func TestOrder(t *testing.T) {
	each(t, 100, func(t *testing.T, seed uint64) {
		rng := rand.New(rand.NewPCG(seed, 0))
		l := connect(t, setup{cfg: hostileConfig(seed), recvs: 8})
		defer l.close()
		for round := range 8 {
			at, n := 1024+8*rng.IntN(1000), 1+rng.IntN(4000)
			fill(l.client.mem[at:at+n], rng)
			read := l.op(verbs.OpRead, at, n)
			read.Local = l.client.mem[20000 : 20000+n]
			after := l.write(at, n)
			after.Local = l.client.mem[40000 : 40000+n]
			fill(after.Local, rng)
			work := []verbs.Work{l.write(at, n), read, l.op(verbs.OpSend, 0, 8), after}
			for i := range work {
				work[i].Signaled = i == 3
			}
			if err := l.client.queue.Post(work); err != nil {
				t.Fatal(err)
			}
			l.finish(l.server, 1)
			first, second := l.client.mem[at:at+n], after.Local
			for i, b := range l.server.mem[at : at+n] {
				if b != first[i] && b != second[i] {
					t.Fatalf("round %d: a Send overtook a Write", round)
				}
			}
			if d := l.finish(l.client, 1); d[0].Err != nil || !bytes.Equal(l.server.mem[at:at+n], second) {
				t.Fatalf("round %d: %v; a completion overtook a Write", round, d)
			}
			if !bytes.Equal(l.client.mem[20000:20000+n], first) {
				t.Fatalf("round %d: a Read has not the Write before it, and that alone", round)
			}
		}
	})
}

// A large write is seen half done; its words are whole.
func TestTornWrites(t *testing.T) {
	torn := 0
	each(t, 60, func(t *testing.T, seed uint64) {
		l := connect(t, setup{cfg: hostileConfig(seed)})
		defer l.close()
		const at, n = 1004, 3001 // not at words
		for i := range n {
			l.client.mem[at+i] = 0xff
		}
		if err := l.client.queue.Post([]verbs.Work{l.write(at, n)}); err != nil {
			t.Fatal(err)
		}
		for range 1000 {
			time.Sleep(10 * time.Microsecond)
			synctest.Wait()
			var seen []byte
			l.look(func() { seen = bytes.Clone(l.server.mem) })
			some, none := false, false
			address := l.server.mr.Address()
			for i := at; i < at+n; i++ {
				some, none = some || seen[i] != 0, none || seen[i] == 0
				if i > at && (address+uint64(i))%8 != 0 && seen[i] != seen[i-1] {
					t.Fatalf("a word is torn, at byte %d", i)
				}
			}
			if some && none {
				torn++
				break
			}
		}
		l.finish(l.client, 1)
	})
	if torn == 0 {
		t.Error("no write was ever half done")
	}
}

// What was posted lands after the client is gone, in order, until the server closes the
// queue pair or the MR; then nothing changes the memory.
func TestLateWrites(t *testing.T) {
	late, cut := 0, 0
	each(t, 200, func(t *testing.T, seed uint64) {
		rng := rand.New(rand.NewPCG(seed, 0))
		cfg := hostileConfig(seed)
		l := connect(t, setup{cfg: cfg})
		var work []verbs.Work
		for i := range 16 {
			binary.LittleEndian.PutUint64(l.client.mem[8*i:], ^uint64(0))
			work = append(work, l.write(8*i, 8))
		}
		if err := l.client.queue.Post(work); err != nil {
			t.Fatal(err)
		}
		landed := func() (n int) {
			gap := false
			var seen []byte
			l.look(func() { seen = bytes.Clone(l.server.mem[:128]) })
			for i := range 16 {
				switch binary.LittleEndian.Uint64(seen[8*i:]) {
				case 0:
					gap = true
				default:
					n++
					if gap {
						t.Fatal("writes landed out of order")
					}
				}
			}
			return n
		}
		time.Sleep(time.Duration(rng.IntN(300)) * time.Microsecond)
		switch rng.IntN(3) {
		case 0:
			l.client.host.Crash()
		case 1:
			l.client.host.Break(false)
		default:
			if err := l.client.queue.Close(); err != nil {
				t.Fatal(err)
			}
		}
		clear(l.client.mem) // it is the client's again
		synctest.Wait()
		before := landed()
		time.Sleep(time.Duration(rng.Int64N(int64(cfg.Late))))
		if rng.IntN(2) == 0 {
			if err := l.server.queue.Close(); err != nil {
				t.Fatal(err)
			}
		} else if err := l.server.mr.Close(); err != nil {
			t.Fatal(err)
		}
		fenced := landed()
		if fenced > before {
			late++
		}
		time.Sleep(2 * cfg.Late)
		synctest.Wait()
		if landed() != fenced {
			t.Fatal("a write landed after the server's end was closed")
		}
		if l.fabric.Stats().Refused > 0 {
			cut++
		}
	})
	if late == 0 || cut == 0 {
		t.Errorf("%d times writes landed late, %d times too late: want both", late, cut)
	}
}

// A queue pair that breaks fails work of which some has taken effect.
func TestUnknownOutcome(t *testing.T) {
	took := 0
	each(t, 100, func(t *testing.T, seed uint64) {
		l := connect(t, setup{cfg: hostileConfig(seed)})
		defer l.close()
		l.client.mem[0] = 1
		if err := l.client.queue.Post([]verbs.Work{l.write(0, 8)}); err != nil {
			t.Fatal(err)
		}
		l.server.host.Hold(true, false) // acknowledgements do not get out
		time.Sleep(time.Duration(seed%300) * time.Microsecond)
		l.client.host.Break(true)
		if d := l.finish(l.client, 1); d[0].Err == nil {
			t.Fatal("it succeeded")
		}
		if l.server.mem[0] == 1 {
			took++
		}
		l.broken(l.client)
		l.broken(l.server)
	})
	if took == 0 || took == 100 {
		t.Errorf("of 100 writes that failed %d took effect", took)
	}
}

// A partition holds work up; one that is too long breaks the queue pair.
func TestPartition(t *testing.T) {
	for _, hostile := range []bool{false, true} {
		for _, short := range []bool{true, false} {
			for _, out := range []bool{true, false} {
				synctest.Test(t, func(t *testing.T) {
					var cfg model.Config
					if hostile {
						cfg = hostileConfig(*seed)
					}
					l := connect(t, setup{cfg: cfg})
					defer l.close()
					l.client.mem[0] = 1
					l.client.host.Hold(out, !out)
					if err := l.client.queue.Post([]verbs.Work{l.write(0, 8)}); err != nil {
						t.Fatal(err)
					}
					time.Sleep(900 * time.Millisecond)
					l.look(func() {
						if landed := l.server.mem[0] == 1; landed == out {
							t.Errorf("what leaves is held: %v; landed: %v", out, landed)
						}
					})
					if !short {
						time.Sleep(200 * time.Millisecond)
					}
					l.client.host.Hold(false, false)
					if d := l.finish(l.client, 1); (d[0].Err == nil) != short {
						t.Errorf("short: %v: %v", short, d)
					}
				})
			}
		}
	}
}

// Local memory is read when a write lands, not when it was posted: who changes it before
// the completion sees that.
func TestLocalMemoryIsReadLate(t *testing.T) {
	late := 0
	each(t, 20, func(t *testing.T, seed uint64) {
		l := connect(t, setup{cfg: hostileConfig(seed)})
		defer l.close()
		l.client.mem[0] = 1
		if err := l.client.queue.Post([]verbs.Work{l.write(0, 8)}); err != nil {
			t.Fatal(err)
		}
		l.look(func() { l.client.mem[0] = 2 })
		l.finish(l.client, 1)
		if l.server.mem[0] == 2 {
			late++
		}
	})
	if late == 0 {
		t.Error("never")
	}
}

// A key is used again. The old MR is closed all the same.
func TestKeysAreUsedAgain(t *testing.T) {
	f := model.New(model.Config{Rand: rand.New(rand.NewPCG(*seed, 0))})
	d, _ := f.Host("h", model.HostOptions{}).NewDomain()
	seen, again := map[uint32]bool{}, 0
	for range 50 {
		m, err := d.Register(make([]byte, 8), verbs.RemoteRead)
		if err != nil {
			t.Fatal(err)
		}
		if seen[m.RKey()] {
			again++
		}
		seen[m.RKey()] = true
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		if err := m.Close(); err == nil {
			t.Error("an MR was closed twice")
		}
	}
	if again == 0 {
		t.Error("never")
	}
}

// Writes are visible in order and persist in any order, until something covers them:
// FLUSH, for its place and its queue; a Read where that is enough; the processor. A
// completion alone promises nothing, nor does the processor's Flush.
func TestPersistence(t *testing.T) {
	for name, c := range map[string]struct {
		reads  bool // of HostOptions
		then   func(l *link, m *media.Crashable) ([]verbs.Work, error)
		lost   bool // some of it, some time
		beside bool // the same, of what is written beside
	}{
		"nothing": {lost: true, beside: true},
		"flush": {beside: true, then: func(l *link, _ *media.Crashable) ([]verbs.Work, error) {
			return []verbs.Work{l.op(verbs.OpFlush, 1000, 5000)}, nil
		}},
		"flush elsewhere": {lost: true, beside: true, then: func(l *link, _ *media.Crashable) ([]verbs.Work, error) {
			return []verbs.Work{l.op(verbs.OpFlush, 30000, 5000)}, nil
		}},
		"read": {reads: true, then: func(l *link, _ *media.Crashable) ([]verbs.Work, error) {
			return []verbs.Work{l.op(verbs.OpRead, 0, 8)}, nil
		}},
		"read without effect": {lost: true, beside: true, then: func(l *link, _ *media.Crashable) ([]verbs.Work, error) {
			return []verbs.Work{l.op(verbs.OpRead, 0, 8)}, nil
		}},
		"processor": {beside: true, then: func(_ *link, m *media.Crashable) ([]verbs.Work, error) {
			return nil, m.Persist(1000, 5000)
		}},
		"processor's flush": {lost: true, beside: true, then: func(_ *link, m *media.Crashable) ([]verbs.Work, error) {
			return nil, m.Flush()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			lost, beside := 0, 0
			each(t, 60, func(t *testing.T, seed uint64) {
				rng := rand.New(rand.NewPCG(seed, 0))
				m := media.NewCrashable(size, -1)
				defer m.Close()
				opts := model.HostOptions{Flush: true, ReadPersists: c.reads, Media: []model.Medium{m}}
				l := connect(t, setup{
					cfg: hostileConfig(seed), client: opts, server: opts, mem: m.Bytes(),
					queue:  verbs.QueueConfig{Sends: 8, Recvs: 8, Flush: true},
					access: verbs.RemoteRead | verbs.RemoteWrite | verbs.RemoteFlush,
				})
				for i := range l.client.mem {
					l.client.mem[i] = 1
				}
				work := []verbs.Work{l.write(10000, 2000), l.write(1000, 5000)}
				if err := l.client.queue.Post(work); err != nil {
					t.Fatal(err)
				}
				l.finish(l.client, 2)
				if !bytes.Equal(m.Bytes()[1000:6000], l.client.mem[1000:6000]) {
					t.Fatal("a Write is not visible")
				}
				if c.then != nil {
					more, err := c.then(l, m)
					if err := errors.Join(err, l.client.queue.Post(more)); err != nil {
						t.Fatal(err)
					}
					for _, d := range l.finish(l.client, len(more)) {
						if d.Err != nil {
							t.Fatal(d.Err)
						}
					}
				}
				l.close()
				got := make([]byte, size)
				if err := m.Restart(rng, -1).ReadAt(got, 0); err != nil {
					t.Fatal(err)
				}
				if bytes.Contains(got[1000:6000], []byte{0}) {
					lost++
				}
				if bytes.Contains(got[10000:12000], []byte{0}) {
					beside++
				}
			})
			if (lost > 0) != c.lost || (beside > 0) != c.beside {
				t.Errorf("%d times something was lost, %d times beside it; want that: %v, %v", lost, beside, c.lost, c.beside)
			}
		})
	}
}

// A FLUSH covers the writes of its own queue only.
func TestFlushOfAnotherQueue(t *testing.T) {
	lost := 0
	each(t, 40, func(t *testing.T, seed uint64) {
		m := media.NewCrashable(size, -1)
		defer m.Close()
		opts := model.HostOptions{Flush: true, Media: []model.Medium{m}}
		two := [2]*link{}
		for i := range two {
			two[i] = connect(t, setup{
				client: opts, server: opts, mem: m.Bytes(), queue: verbs.QueueConfig{Sends: 8, Recvs: 8, Flush: true},
				access: verbs.RemoteWrite | verbs.RemoteFlush,
			})
			defer two[i].close()
			two[i].client.mem[4096] = 1
		}
		if err := two[0].client.queue.Post([]verbs.Work{two[0].write(4096, 8)}); err != nil {
			t.Fatal(err)
		}
		if err := two[1].client.queue.Post([]verbs.Work{two[1].op(verbs.OpFlush, 0, size)}); err != nil {
			t.Fatal(err)
		}
		if d := two[1].finish(two[1].client, 1); d[0].Err != nil {
			t.Fatal(d[0].Err)
		}
		got := make([]byte, size)
		if err := m.Restart(rand.New(rand.NewPCG(seed, 0)), -1).ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		if got[4096] == 0 {
			lost++
		}
	})
	if lost == 0 {
		t.Error("it covered the other queue's")
	}
}

// Memory without power answers nothing: the queue pair breaks.
func TestPowerLoss(t *testing.T) {
	for _, op := range []verbs.Op{verbs.OpWrite, verbs.OpRead, verbs.OpFlush} {
		synctest.Test(t, func(t *testing.T) {
			m := media.NewCrashable(size, 0)
			defer m.Close()
			opts := model.HostOptions{Flush: true, Media: []model.Medium{m}}
			l := connect(t, setup{
				client: opts, server: opts, mem: m.Bytes(), queue: verbs.QueueConfig{Sends: 8, Recvs: 8, Flush: true},
				access: verbs.RemoteRead | verbs.RemoteWrite | verbs.RemoteFlush,
			})
			if op != verbs.OpFlush {
				m.PowerOff()
			}
			if err := l.client.queue.Post([]verbs.Work{l.write(0, 8), l.op(op, 0, 8)}); err != nil {
				t.Fatal(err)
			}
			if d := l.finish(l.client, 2); d[1].Err == nil || !m.Lost() {
				t.Errorf("operation %d: %v", op, d)
			}
			l.server.host.PowerOff()
			l.server.host.Crash()
			l.close()
		})
	}
}
