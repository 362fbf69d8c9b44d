package ring

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// seed is the same in every package, so that all take it at once.
var seed = flag.Uint64("seed", 0, "seed of the random tests; 0 is a fixed one")

var update = flag.Bool("update", false, "write ../testdata/ring.hex anew")

func pair(t testing.TB, frames uint32) (*Producer, *Consumer, chan struct{}) {
	t.Helper()
	kicked := make(chan struct{}, 1)
	p, err := Create(frames, func() {
		select {
		case kicked <- struct{}{}:
		default:
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	c, err := Open(int(p.File().Fd()), frames)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return p, c, kicked
}

// The header, and the descriptors of the first two positions, 16 bytes a line.
func TestGolden(t *testing.T) {
	p, c, _ := pair(t, MinFrames)
	if err := p.Put(t.Context(), make([]byte, 10*PageSize), []uint64{9, 3}, 41); err != nil {
		t.Fatal(err)
	}
	p.word64(p.descriptor(0) + offWhen).Store(1_000_000_007)
	p.word64(p.descriptor(1) + offWhen).Store(1_000_000_009)
	p.word32(offSpaceWaiters).Store(1)
	var e Entry
	if ok, err := c.Next(&e, make([]byte, PageSize)); !ok || err != nil || e != (Entry{9, 1_000_000_007, 41}) {
		t.Fatalf("got %+v, %v, %v", e, ok, err)
	}
	c.Free()
	c.word32(offAsleep).Store(1)

	var text strings.Builder
	for b := range slices.Chunk(slices.Concat(p.mem[:208], p.mem[headerSize:headerSize+2*descriptorSize]), 16) {
		text.WriteString(hex.EncodeToString(b) + "\n")
	}
	const path = "../testdata/ring.hex"
	if *update {
		if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text.String() != string(want) {
		t.Errorf("%s: the layout changed; that needs a new version", path)
	}
}

func TestSize(t *testing.T) {
	for frames, want := range map[uint32]int64{
		0: 0, 32: 0, 65: 0, 131072: 0,
		64:    4096 + 4096 + 64<<12,
		128:   4096 + 4096 + 128<<12,
		16384: 4096 + 128<<12 + 16384<<12,
		65536: 4096 + 512<<12 + 65536<<12,
	} {
		if got := Size(frames); got != want {
			t.Errorf("%d frames: got %d bytes, want %d", frames, got, want)
		}
	}
}

// Several producers, a small ring, a consumer that sleeps: every page arrives once,
// whole, and each producer's in its order.
func TestPut(t *testing.T) {
	const producers, each = 4, 3000
	p, c, kicked := pair(t, MinFrames)
	mem := make([]byte, producers*PageSize)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for i := range uint64(producers) {
		rng := rand.New(rand.NewPCG(*seed, i))
		wg.Go(func() {
			mine := mem[i*PageSize : (i+1)*PageSize]
			for tag := uint64(0); tag < each; {
				n := min(1+rng.Uint64N(40), each-tag)
				for j := 0; j < PageSize; j += 8 {
					binary.LittleEndian.PutUint64(mine[j:], tag)
				}
				if err := p.Put(ctx, mem, slices.Repeat([]uint64{i}, int(n)), tag); err != nil {
					t.Error(err)
					return
				}
				tag += n
			}
		})
	}
	var last [producers]Entry
	var e Entry
	b, want := make([]byte, PageSize), make([]byte, PageSize)
	for n := 0; n < producers*each; {
		ok, err := c.Next(&e, b)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			if c.Sleep() {
				select {
				case <-kicked:
				case <-ctx.Done():
					t.Fatalf("asleep at %d entries", n)
				}
				c.Wake()
			}
			continue
		}
		n++
		for j := 0; j < PageSize; j += 8 {
			binary.LittleEndian.PutUint64(want[j:], e.Tag)
		}
		if !bytes.Equal(b, want) {
			t.Fatalf("entry %+v: torn page", e)
		}
		if was := last[e.Page]; e.Tag < was.Tag || e.When < was.When {
			t.Fatalf("entry %+v after %+v", e, was)
		}
		last[e.Page] = e
	}
	wg.Wait()
	if c.Pos() != producers*each || p.Head() != c.Pos() {
		t.Errorf("at %d, claimed %d, want %d", c.Pos(), p.Head(), producers*each)
	}
	if ok, err := c.Next(&e, b); ok || err != nil {
		t.Errorf("at the end: got %v, %v", ok, err)
	}
}

// A full ring makes producers wait, as long as their context allows, and claims
// nothing for those that give up.
func TestFull(t *testing.T) {
	p, c, _ := pair(t, MinFrames)
	mem, page := make([]byte, PageSize), make([]byte, PageSize)
	if err := p.Put(t.Context(), mem, make([]uint64, MinFrames), 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := p.Put(ctx, mem, make([]uint64, 1), 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	if p.Head() != MinFrames {
		t.Errorf("claimed %d, want %d", p.Head(), MinFrames)
	}
	put := make(chan error, 1)
	go func() { put <- p.Put(t.Context(), mem, make([]uint64, 1), 0) }()
	var e Entry
	for range batch {
		if ok, err := c.Next(&e, page); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	if err := <-put; err != nil {
		t.Fatal(err)
	}
}

func TestCheck(t *testing.T) {
	p, c, _ := pair(t, MinFrames)
	var e Entry
	if err := p.Put(t.Context(), make([]byte, PageSize), make([]uint64, 3), 0); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if ok, err := c.Next(&e, make([]byte, PageSize)); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	for upto, ok := range map[uint64]bool{0: true, 3: true, 3 + MinFrames: true, 4 + MinFrames: false, 1<<64 - 1: false} {
		if err := c.Check(upto); (err == nil) != ok || err != nil && !errors.Is(err, ErrProtocol) {
			t.Errorf("%d: got %v, want fine: %v", upto, err, ok)
		}
	}
}

// Whatever a producer writes, the consumer names what is wrong, or takes an entry.
func TestHostile(t *testing.T) {
	for name, seq := range map[string]uint64{"ahead": 2, "far ahead": 1 << 63, "never": 1<<64 - 1} {
		p, c, _ := pair(t, MinFrames)
		p.word64(p.descriptor(0) + offSeq).Store(seq)
		var e Entry
		if ok, err := c.Next(&e, make([]byte, PageSize)); ok || !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: got %v, %v; want ErrProtocol", name, ok, err)
		}
	}
	// The second round knows what the first left.
	p, c, _ := pair(t, MinFrames)
	var e Entry
	if err := p.Put(t.Context(), make([]byte, PageSize), make([]uint64, MinFrames), 0); err != nil {
		t.Fatal(err)
	}
	for range MinFrames {
		if ok, err := c.Next(&e, make([]byte, PageSize)); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	p.word64(p.descriptor(0) + offSeq).Store(0)
	if ok, err := c.Next(&e, make([]byte, PageSize)); ok || !errors.Is(err, ErrProtocol) {
		t.Errorf("went back: got %v, %v; want ErrProtocol", ok, err)
	}
	// Noise everywhere.
	rng := rand.New(rand.NewPCG(*seed, 99))
	for range 200 {
		p, c, _ := pair(t, MinFrames)
		for i := range p.mem[16:8192] {
			p.mem[16+i] = byte(rng.Uint32())
		}
		for i := range uint64(MinFrames) {
			if rng.IntN(10) > 0 {
				p.word64(p.descriptor(i) + offSeq).Store(i + 1)
			}
		}
		for ok, err := true, error(nil); ok; {
			if ok, err = c.Next(&e, make([]byte, PageSize)); err != nil && !errors.Is(err, ErrProtocol) {
				t.Fatal(err)
			}
		}
		c.Sleep()
		c.Wake()
	}
}

// Each ring here is a good one but for what its name says.
func TestOpenRefuses(t *testing.T) {
	const sealing = unix.MFD_ALLOW_SEALING
	type change func(m *mapping)
	keep := func(*mapping) {}
	memfd := func(flags int, size int64, seals int, f change) int {
		t.Helper()
		fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|flags)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		if err := unix.Ftruncate(fd, size); err != nil {
			t.Fatal(err)
		}
		m := mapping{mem: make([]byte, headerSize), frames: 64}
		m.putHeader()
		f(&m)
		if _, err := unix.Pwrite(fd, m.mem, 0); err != nil {
			t.Fatal(err)
		}
		if flags&sealing != 0 {
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
				t.Fatal(err)
			}
		}
		return fd
	}
	good := memfd(sealing, Size(64), wantSeals, keep)
	c, err := Open(good, 64)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for name, c := range map[string]struct {
		fd     int
		frames uint32
	}{
		"a file":          {int(file.Fd()), 64},
		"no seals":        {memfd(0, Size(64), 0, keep), 64},
		"may shrink":      {memfd(sealing, Size(64), unix.F_SEAL_GROW|unix.F_SEAL_SEAL, keep), 64},
		"may grow":        {memfd(sealing, Size(64), unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL, keep), 64},
		"may be sealed":   {memfd(sealing, Size(64), unix.F_SEAL_SHRINK|unix.F_SEAL_GROW, keep), 64},
		"too small":       {memfd(sealing, headerSize, wantSeals, keep), 64},
		"too large":       {memfd(sealing, Size(128), wantSeals, keep), 64},
		"magic":           {memfd(sealing, Size(64), wantSeals, func(m *mapping) { m.mem[0] = 0 }), 64},
		"another version": {memfd(sealing, Size(64), wantSeals, func(m *mapping) { m.mem[offVersion]++ }), 64},
		"other frames":    {memfd(sealing, Size(64), wantSeals, func(m *mapping) { m.mem[offFrames]++ }), 64},
		"no such number":  {good, 65},
		"many frames":     {good, 1 << 31},
	} {
		if c, err := Open(c.fd, c.frames); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: got %v, %v; want ErrProtocol", name, c, err)
		}
	}
}

// An entry that is published as the consumer goes to sleep keeps it awake; one that
// is published later kicks it, once.
func TestSleep(t *testing.T) {
	p, c, kicked := pair(t, MinFrames)
	var e Entry
	mem, page := make([]byte, PageSize), make([]byte, PageSize)
	put := func() {
		t.Helper()
		if err := p.Put(t.Context(), mem, []uint64{0}, 0); err != nil {
			t.Fatal(err)
		}
	}
	if ok, err := c.Next(&e, page); ok || err != nil {
		t.Fatal(ok, err)
	}
	put()
	if c.Sleep() {
		t.Error("asleep with an entry there")
	}
	if ok, err := c.Next(&e, page); !ok || err != nil {
		t.Fatal(ok, err)
	}
	put()
	select {
	case <-kicked:
		t.Error("kicked while awake")
	default:
	}
	if ok, err := c.Next(&e, page); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if !c.Sleep() {
		t.Fatal("awake with no entry there")
	}
	put()
	<-kicked
	put()
	select {
	case <-kicked:
		t.Error("kicked twice")
	default:
	}
}

// The consumer wakes whoever waits for room.
func TestFreeWakes(t *testing.T) {
	p, c, _ := pair(t, MinFrames)
	if err := p.Put(t.Context(), make([]byte, PageSize), make([]uint64, 1), 0); err != nil {
		t.Fatal(err)
	}
	space := p.word32(offSpace)
	seen := space.Load()
	p.word32(offSpaceWaiters).Store(1)
	woken := make(chan struct{})
	go func() {
		defer close(woken)
		futexWait(space, seen, time.Minute)
	}()
	time.Sleep(10 * time.Millisecond) // it sleeps now, or the test shows nothing
	var e Entry
	if ok, err := c.Next(&e, make([]byte, PageSize)); !ok || err != nil {
		t.Fatal(ok, err)
	}
	c.Free()
	select {
	case <-woken:
	case <-time.After(20 * time.Second):
		t.Error("still asleep")
	}
}

func BenchmarkNext(b *testing.B) {
	p, c, _ := pair(b, 1024)
	mem, page := make([]byte, PageSize), make([]byte, PageSize)
	pages := make([]uint64, 1024)
	var e Entry
	for i := 0; b.Loop(); i++ {
		if i%1024 == 0 {
			b.StopTimer()
			if err := p.Put(b.Context(), mem, pages, 0); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
		if ok, err := c.Next(&e, page); !ok || err != nil {
			b.Fatal(ok, err)
		}
	}
}
