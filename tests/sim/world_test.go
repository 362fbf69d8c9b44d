package sim

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rpmemfs/rpmemfs/remote"
)

// A world is one schedule.
type world struct {
	net     *network
	machine *machine
	lease   time.Duration
	shares  []*share
	counts  *counts
	begun   time.Time
	unsure  chan struct{} // one token: see unheard
	over    chan struct{} // closed when no more faults and work begin

	stamps     atomic.Uint64
	background sync.WaitGroup

	mu          sync.Mutex // guards the fields below
	hosts       []*host    // alive
	tenures     []*tenure  // all
	generations map[uint64]bool
	trace       []string
	failures    []string
}

// counts tell what schedules reached.
type counts struct {
	schedules, tenures, ends            atomic.Int64
	epochs, refused                     atomic.Int64 // commits that succeeded, and others
	together                            atomic.Int64 // seals while epochs of the same file were in flight
	recoveries, unheard                 atomic.Int64 // files; and those at an epoch that was not acknowledged
	kills, cuts                         atomic.Int64 // of the memory node, of its power
	crashes, torn                       atomic.Int64 // of compute nodes; those in a commit whose flush did not arrive
	partitions, resets, stalls, replays atomic.Int64
	silences                            atomic.Int64        // connections for bytes that broke because no answer came
	readers, leaves, deaths             atomic.Int64        // sessions of readers; those that ended by an unmount, and without a word
	looks, fresh, renewals              atomic.Int64        // files that readers looked at, and at a newer epoch; sessions that were lost
	pins                                atomic.Int64        // that dead readers had, and that expired
	juggled                             atomic.Int64        // names and slots, as far as the end
	over                                [paths]atomic.Int64 // sessions, by path
	pieces, late, unreached             atomic.Int64        // RDMA writes in pieces, after the end of their queue pair, and refused
}

func (c *counts) each(fn func(what string, n *atomic.Int64)) {
	fn("schedules", &c.schedules)
	fn("sessions", &c.tenures)
	fn("unmounts", &c.ends)
	fn("commits", &c.epochs)
	fn("failed commits", &c.refused)
	fn("epochs sealed on others in flight", &c.together)
	fn("files recovered", &c.recoveries)
	fn("files found at epochs that were not acknowledged", &c.unheard)
	fn("kills of the memory node", &c.kills)
	fn("power cuts", &c.cuts)
	fn("crashes of compute nodes", &c.crashes)
	fn("crashes in a commit", &c.torn)
	fn("partitions", &c.partitions)
	fn("broken connections", &c.resets)
	fn("stalls", &c.stalls)
	fn("replays", &c.replays)
	fn("connections without an answer", &c.silences)
	fn("sessions of readers", &c.readers)
	fn("unmounts by readers", &c.leaves)
	fn("deaths of readers", &c.deaths)
	fn("files that readers looked at", &c.looks)
	fn("newer epochs that they saw", &c.fresh)
	fn("sessions that they lost and opened again", &c.renewals)
	fn("pins that expired", &c.pins)
	fn("names and slots juggled", &c.juggled)
	for p := range c.over {
		fn("sessions over "+path(p).String(), &c.over[p])
	}
	fn("RDMA writes in pieces", &c.pieces)
	fn("late RDMA writes", &c.late)
	fn("RDMA accesses refused", &c.unreached)
}

// add adds those of a schedule.
func (c *counts) add(more []int64) {
	c.each(func(_ string, n *atomic.Int64) {
		n.Add(more[0])
		more = more[1:]
	})
}

func (c *counts) String() string {
	var b strings.Builder
	c.each(func(what string, n *atomic.Int64) { fmt.Fprintf(&b, ", %d %s", n.Load(), what) })
	return b.String()[2:]
}

// missed names what never happened.
func (c *counts) missed() string {
	var missed []string
	c.each(func(what string, n *atomic.Int64) {
		if n.Load() == 0 {
			missed = append(missed, what)
		}
	})
	return strings.Join(missed, ", ")
}

func (w *world) stamp() uint64 { return w.stamps.Add(1) }

// note adds a line to what is printed when the schedule fails.
func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.noteLocked(format, args...)
}

func (w *world) noteLocked(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf("%9.4f ", time.Since(w.begun).Seconds())+fmt.Sprintf(format, args...))
}

func (w *world) fail(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.noteLocked("FAILED: "+format, args...)
	w.failures = append(w.failures, fmt.Sprintf(format, args...))
}

func (w *world) failed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.failures) > 0
}

// granted notes a session that was opened. No other has its generation.
func (w *world) granted(t *tenure) {
	w.mu.Lock()
	w.tenures = append(w.tenures, t)
	g := t.pool.Generation()
	taken := w.generations[g]
	w.generations[g] = true
	w.mu.Unlock()
	if taken {
		w.fail("not fenced: generation %d was granted twice", g)
	}
}

// unheard says that recovery found an epoch whose commit was not acknowledged: it may
// not have been flushed. That is a good moment for a power cut.
func (w *world) unheard() {
	w.counts.unheard.Add(1)
	select {
	case w.unsure <- struct{}{}:
	default:
	}
}

func newWorld(seed uint64, counts *counts) *world {
	return &world{
		net: newNetwork(rand.New(rand.NewPCG(seed, 2))), counts: counts, begun: time.Now(),
		unsure: make(chan struct{}, 1), over: make(chan struct{}), generations: map[uint64]bool{},
	}
}

// equip gives the hosts to come devices, if the path needs them.
func (w *world) equip(seed uint64, p path) {
	w.note("the data path: %v", p)
	w.net.path = p
	if p != overTCP {
		w.net.fabric = newFabric(rand.New(rand.NewPCG(seed, 6)), w.net, w.lease)
	}
}

// tally adds what the devices did to the counts.
func (w *world) tally() {
	if f := w.net.fabric; f != nil {
		s := f.Stats()
		w.counts.pieces.Add(int64(s.Torn))
		w.counts.late.Add(int64(s.Late))
		w.counts.unreached.Add(int64(s.Refused))
	}
}

// run plays the schedule of a seed in dir. It returns what failed and what happened.
func run(dir string, seed uint64, counts *counts) (failures, trace []string) {
	rng := rand.New(rand.NewPCG(seed, 1))
	w := newWorld(seed, counts)
	w.lease = time.Duration(1000+rng.IntN(1500)) * time.Millisecond
	w.equip(seed, pathOf(seed))
	w.net.slow.Store(true)
	for i := range 1 + rng.IntN(2) {
		w.shares = append(w.shares, newShare(fmt.Sprintf("s%d", i)))
	}
	kind := "crashable"
	if rng.IntN(2) == 0 {
		kind = "file" // the memory node flushes beside, see package rdmacache/tcp
	}
	var err error
	if w.machine, err = newMachine(dir, w.net, rand.New(rand.NewPCG(seed, 3))); err == nil {
		err = w.machine.start(w.lease, nextCut(rng), kind)
	}
	if err != nil {
		return []string{err.Error()}, nil
	}
	var nodes sync.WaitGroup
	for i := range 2 + rng.IntN(3) {
		nodeRNG := rand.New(rand.NewPCG(seed, uint64(100+i)))
		nodes.Go(func() { w.compute(nodeRNG, fmt.Sprintf("c%d", i)) })
	}
	for i := range 1 + rng.IntN(2) {
		nodeRNG := rand.New(rand.NewPCG(seed, uint64(200+i)))
		nodes.Go(func() { w.read(nodeRNG, fmt.Sprintf("r%d", i)) })
	}
	w.disturb(rng, kind)
	close(w.over)
	nodes.Wait()
	w.readersLeave(rng, kind)
	w.last(rng, kind)
	w.background.Wait()
	w.tally()
	if w.machine.stop == nil {
		return w.failures, w.trace
	}
	if err := w.machine.stop(); err != nil {
		w.fail("stop the memory node: %v", err)
	}
	counts.schedules.Add(1)
	return w.failures, w.trace
}

// nextCut is the flush during which the power goes.
func nextCut(rng *rand.Rand) int {
	if rng.IntN(2) == 0 {
		return -1
	}
	return rng.IntN(60)
}

func (w *world) ended() bool {
	select {
	case <-w.over:
		return true
	default:
		return w.failed()
	}
}

// compute is a compute node: one session after the other, each on a host of its own,
// as if the machine was started again.
func (w *world) compute(rng *rand.Rand, name string) {
	for life := 0; !w.ended(); life++ {
		h := w.net.newCompute(fmt.Sprintf("%s.%d", name, life))
		w.add(h)
		s := w.shares[rng.IntN(len(w.shares))]
		t := w.open(rng, name, h, s, remote.Config{
			Steal: rng.IntN(2) == 0,
			Wait:  time.Duration(rng.Int64N(int64(2 * w.lease))),
			// Every third goes on after its lease, if nobody came.
			Patience: time.Duration(life%3/2) * 4 * w.lease,
		})
		if t != nil {
			w.tenure(t)
		}
		w.remove(h)
		h.hold(false, false)
		time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond)
	}
}

// tenure works until something ends it.
func (w *world) tenure(t *tenure) {
	defer t.serveReaders()()
	if t.alone(t.recover) != nil {
		t.abandon()
		return
	}
	for steps := 3 + t.rng.IntN(25); steps > 0 && !w.ended(); steps-- {
		if t.work() != nil {
			t.abandon()
			return
		}
		time.Sleep(time.Duration(t.rng.IntN(80)) * time.Millisecond)
	}
	if t.rng.IntN(2) == 0 {
		w.counts.ends.Add(1)
		_ = t.alone(func() error { t.end(); return nil })
		return
	}
	t.abandon()
}

func (w *world) add(h *host) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hosts = append(w.hosts, h)
}

func (w *world) remove(h *host) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.hosts {
		if w.hosts[i] == h {
			w.hosts = append(w.hosts[:i], w.hosts[i+1:]...)
			return
		}
	}
}
