package attach

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/attach/ring"
	"github.com/rpmemfs/rpmemfs/attach/wire"
)

// patience bounds every wait of a test.
const patience = 20 * time.Second

// fakeMember is a process with threads that change pages of the fake region between
// restart points. Its helper does what the protocol says; a test may change that by
// the hooks.
type fakeMember struct {
	t      *testing.T
	region *fakeRegion
	conn   *net.UnixConn
	ring   *ring.Producer
	id     uint32

	mu sync.Mutex // guards the fields below

	// Hooks; nil does what the protocol says.
	onDue   func(n uint64) (answered bool)
	onDrain func(n uint64) (answered bool)
	onGo    func(g *wire.Go) (answered bool)
	precopy bool // copy early, at each DUE

	cond          *sync.Cond // of any change
	due, released uint64
	epoch         uint64
	tag           uint64
	threads       int             // that run
	stop          bool            // threads end at once ...
	quit          bool            // or at a restart point
	written       map[uint64]bool // since the last scan
	losses        int
	gone          unix.Errno
	results       map[uint64]*wire.Result
	welcome       *wire.Welcome
	committed     uint64
	calledOff     map[unix.Errno]int
	eof           bool

	once    sync.Once      // ends it
	wg      sync.WaitGroup // of the helper
	running sync.WaitGroup // of the threads
}

// dial connects and sends HELLO.
func dial(t *testing.T, path string, r *fakeRegion, flags wire.Flags, frames uint32) *fakeMember {
	t.Helper()
	m, err := tryDial(t, path, r, flags, frames)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func tryDial(t *testing.T, path string, r *fakeRegion, flags wire.Flags, frames uint32) (*fakeMember, error) {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	m := &fakeMember{
		t: t, region: r, conn: conn, written: make(map[uint64]bool),
		results: make(map[uint64]*wire.Result), calledOff: make(map[unix.Errno]int),
	}
	m.cond = sync.NewCond(&m.mu)
	if m.ring, err = ring.Create(frames, func() { m.send(&wire.Kick{}) }); err != nil {
		return nil, err
	}
	b, err := wire.Append(nil, &wire.Hello{Ino: testIno, Flags: flags, Frames: frames, Name: "fake"})
	if err != nil {
		return nil, err
	}
	if _, _, err := conn.WriteMsgUnix(b, unix.UnixRights(int(m.ring.File().Fd())), nil); err != nil {
		return nil, err
	}
	m.wg.Go(m.helper)
	t.Cleanup(m.kill)
	return m, nil
}

// join connects and waits for the welcome.
func join(t *testing.T, path string, r *fakeRegion, flags wire.Flags, frames uint32) *fakeMember {
	t.Helper()
	m := dial(t, path, r, flags, frames)
	m.await("a welcome", func() bool { return m.welcome != nil })
	if m.welcome.Errno != 0 {
		t.Fatalf("refused: %v", m.welcome.Errno)
	}
	return m
}

// await waits for a condition of the fields.
func (m *fakeMember) await(what string, cond func() bool) {
	m.t.Helper()
	late := time.AfterFunc(patience, func() { m.cond.Broadcast() })
	defer late.Stop()
	begun := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	for !cond() {
		if time.Since(begun) > patience {
			m.t.Fatalf("member %d: no %s: due %d, released %d, %d threads run, gone %v, eof %v",
				m.id, what, m.due, m.released, m.threads, m.gone, m.eof)
		}
		m.cond.Wait()
	}
}

// told returns how often the member got LOST.
func (m *fakeMember) told() (n int) {
	m.change(func() { n = m.losses })
	return n
}

func (m *fakeMember) send(msg wire.Message) {
	b, err := wire.Append(nil, msg)
	if err != nil {
		m.t.Error(err)
		return
	}
	_, _ = m.conn.Write(b) // the daemon may be gone
}

// kill ends the process without a word: its threads first, as the kernel does.
func (m *fakeMember) kill() { m.once.Do(m.end) }

func (m *fakeMember) end() {
	m.change(func() { m.stop = true })
	m.running.Wait()
	_ = m.conn.Close()
	m.wg.Wait()
	_ = m.ring.Close()
}

// detach ends it cleanly.
func (m *fakeMember) detach() {
	m.change(func() { m.quit = true })
	m.running.Wait()
	m.send(&wire.Detach{})
	m.kill()
}

// helper reads messages.
func (m *fakeMember) helper() {
	b := make([]byte, wire.MaxMessage)
	for {
		n, err := m.conn.Read(b)
		if err != nil {
			m.change(func() { m.eof, m.stop = true, true })
			return
		}
		msg, err := wire.Decode(b[:n])
		if err != nil {
			m.t.Error(err)
			return
		}
		m.get(msg)
	}
}

func (m *fakeMember) change(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
	m.cond.Broadcast()
}

// atDue, atDrain and atGo set the hooks.
func (m *fakeMember) atDue(f func(n uint64) (answered bool))   { m.change(func() { m.onDue = f }) }
func (m *fakeMember) atDrain(f func(n uint64) (answered bool)) { m.change(func() { m.onDrain = f }) }
func (m *fakeMember) atGo(f func(g *wire.Go) (answered bool))  { m.change(func() { m.onGo = f }) }

func (m *fakeMember) get(msg wire.Message) {
	switch v := msg.(type) {
	case *wire.Welcome:
		m.change(func() {
			m.welcome, m.id, m.committed, m.epoch = v, v.Member, v.Epoch, v.Epoch
			m.due, m.released, m.tag = v.N, v.N, v.N
		})
	case *wire.Due:
		var early bool
		var hook func(uint64) bool
		m.change(func() { hook, early = m.onDue, m.precopy })
		if hook != nil && hook(v.N) {
			return
		}
		if early {
			m.copyOut(nil)
		}
		m.change(func() { m.due = v.N })
		m.wg.Go(func() { m.ready(v.N) })
	case *wire.Drain:
		var hook func(uint64) bool
		m.change(func() { hook = m.onDrain })
		if hook != nil && hook(v.N) {
			return
		}
		m.region.writeBack()
		m.send(&wire.Drained{N: v.N})
	case *wire.Go:
		var hook func(*wire.Go) bool
		m.change(func() { hook = m.onGo })
		if hook != nil && hook(v) {
			return
		}
		m.goOn(v)
	case *wire.Release:
		m.change(func() {
			if v.N < m.released {
				m.t.Errorf("release of %d after %d", v.N, m.released)
			}
			m.released, m.tag, m.epoch = v.N, v.N, v.Epoch
			if v.Errno != 0 {
				m.calledOff[v.Errno]++
			}
		})
	case *wire.Committed:
		m.change(func() { m.committed = v.Epoch })
	case *wire.Lost:
		m.change(func() { m.losses++; clear(m.written) })
	case *wire.Result:
		m.change(func() { m.results[v.ID] = v })
	case *wire.Gone:
		m.change(func() { m.gone = v.Errno })
	default:
		m.t.Errorf("unexpected message %+v", msg)
	}
}

// ready waits until all threads are parked. Those that were killed are not.
func (m *fakeMember) ready(n uint64) {
	m.mu.Lock()
	for m.threads > 0 && m.released < n && !m.stop {
		m.cond.Wait()
	}
	parked := m.threads == 0 && m.released < n && !m.stop
	m.mu.Unlock()
	if parked {
		m.send(&wire.Ready{N: n})
	}
}

// goOn copies what the member stored before the barrier.
func (m *fakeMember) goOn(v *wire.Go) {
	copied := m.copyOut(v.Pages)
	m.change(func() { m.tag = v.N })
	m.send(&wire.Done{N: v.N, Upto: m.ring.Head(), Copied: uint64(copied), CopyNs: 1})
	if v.Sole {
		m.change(func() { m.released = v.N })
	}
}

// copyOut scans and copies.
func (m *fakeMember) copyOut(extra []uint64) int {
	m.region.memMu.Lock()
	m.mu.Lock()
	pages := slices.Clone(extra)
	for no := range m.written {
		pages = append(pages, no)
	}
	clear(m.written)
	tag := m.tag
	m.mu.Unlock()
	m.region.memMu.Unlock()
	m.region.memMu.RLock()
	defer m.region.memMu.RUnlock()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := m.ring.Put(ctx, m.region.mem, pages, tag); err != nil {
		m.t.Error(err)
	}
	return len(pages)
}

// store writes a number all over a page.
func (m *fakeMember) store(page uint64, v uint64) {
	m.region.memMu.Lock()
	defer m.region.memMu.Unlock()
	p := m.region.mem[page*ring.PageSize : (page+1)*ring.PageSize]
	for i := 0; i < len(p); i += 512 {
		binary.LittleEndian.PutUint64(p[i:], v)
	}
	m.region.dirty[page] = true
	m.mu.Lock()
	defer m.mu.Unlock()
	m.written[page] = true
}

// register makes the calling thread count. It waits while a barrier is under way.
func (m *fakeMember) register() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.released < m.due && !m.stop {
		m.cond.Wait()
	}
	m.threads++
	m.cond.Broadcast()
}

// park waits while cond holds, and counts as parked; false when the thread has to
// end.
func (m *fakeMember) park(cond func() bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.threads--
	m.cond.Broadcast()
	for cond() && !m.stop && !m.quit {
		m.cond.Wait()
	}
	if m.stop || m.quit {
		return false
	}
	m.threads++
	return true
}

// thread changes two pages at a time, so that they are equal at restart points.
func (m *fakeMember) thread(a, b uint64, rng *rand.Rand) {
	m.register()
	for m.park(func() bool { return m.released < m.due }) {
		for range rng.IntN(3) {
			v := rng.Uint64()
			m.store(a, v)
			if rng.IntN(4) == 0 {
				time.Sleep(time.Duration(rng.IntN(200)) * time.Microsecond)
			}
			m.mu.Lock()
			stop := m.stop
			m.threads -= btoi(stop)
			m.mu.Unlock()
			if stop {
				return // in the middle of a change
			}
			m.store(b, v)
		}
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// request asks for a barrier and waits for its result.
func (m *fakeMember) request(id uint64, timeout time.Duration) *wire.Result {
	m.t.Helper()
	m.send(&wire.Request{ID: id, Timeout: uint64(timeout)})
	var r *wire.Result
	m.await(fmt.Sprintf("result %d", id), func() bool { r = m.results[id]; return r != nil })
	return r
}
