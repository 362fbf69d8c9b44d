package media

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"
)

// What Bytes shows is what ReadAt reads: before, after, and through a Close.
func TestCrashableBytes(t *testing.T) {
	const size = 5*4096 + 100
	rng := rand.New(rand.NewPCG(*seed, 0))
	m := NewCrashable(size, -1)
	want := make([]byte, size)
	var mem []byte
	for step := range 3000 {
		off := rng.Int64N(size)
		p := make([]byte, rng.Int64N(min(6000, size-off)+1))
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		var err error
		switch rng.IntN(8) {
		case 0, 1:
			err = m.WriteAt(p, off)
			copy(want[off:], p)
		case 2, 3:
			err = m.Store(p, off)
			copy(want[off:], p)
		case 4:
			err = m.Persist(off, int64(len(p)))
		case 5:
			err = m.Flush()
		case 6:
			err = m.Close()
			mem = nil
		case 7:
			mem = m.Bytes()
		}
		got := make([]byte, size)
		if err := errors.Join(err, m.ReadAt(got, 0)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) || mem != nil && !bytes.Equal(mem, want) {
			t.Fatalf("step %d: ReadAt right: %v, Bytes: %v; -seed=%d", step, bytes.Equal(got, want), bytes.Equal(mem, want), *seed)
		}
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"outside":  m.Persist(size-1, 2),
		"negative": m.Persist(8, -1),
	} {
		if !errors.Is(err, ErrRange) {
			t.Errorf("Persist %s = %v, want ErrRange", what, err)
		}
	}
	m.PowerOff()
	if err := errors.Join(m.Store(nil, 0)); !errors.Is(err, ErrPowerLost) {
		t.Errorf("Store without power = %v", err)
	}
	if err := m.Persist(0, 8); !errors.Is(err, ErrPowerLost) {
		t.Errorf("Persist without power = %v", err)
	}
}

// A model by word: which values each may come back with after a power loss.
func TestCrashablePersist(t *testing.T) {
	const size, words = 8192, 8192 / 8
	rng := rand.New(rand.NewPCG(*seed, 0))
	var lost, mixed int
	for round := range 1500 {
		m := NewCrashable(size, -1)
		mapped := rng.IntN(2) == 0
		if mapped && m.Bytes() == nil {
			t.Fatal("no memory")
		}
		type word struct {
			durable map[uint64]bool // what may come back
			now     uint64
			around  bool // the newest is by Store
		}
		model := make([]word, words)
		for i := range model {
			model[i].durable = map[uint64]bool{0: true}
		}
		settle := func(i int) { model[i].durable = map[uint64]bool{model[i].now: true} }
		touched := func(off, n int64) (int, int) { return int(off / 8), int((off + n + 7) / 8) }
		for range 1 + rng.IntN(12) {
			n := 8 * (1 + rng.Int64N(200))
			off := 8 * rng.Int64N((size-n)/8+1)
			var err error
			switch k := rng.IntN(7); {
			case k < 5:
				p := make([]byte, n)
				for i := range p {
					p[i] = byte(rng.Uint32())
				}
				around := k < 3
				if around {
					err = m.Store(p, off)
				} else {
					err = m.WriteAt(p, off)
				}
				for i := range int(n / 8) {
					w := &model[int(off/8)+i]
					w.now, w.around = binary.LittleEndian.Uint64(p[8*i:]), around
					w.durable[w.now] = true
				}
			case k < 6:
				cut := rng.Int64N(n) // not at words
				err = m.Persist(off+cut, n-cut)
				if first, end := touched(off+cut, n-cut); err == nil {
					for i := first; i < end; i++ {
						settle(i)
					}
				}
			default:
				err = m.Flush()
				for i := range model {
					if !model[i].around {
						settle(i)
					}
				}
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		got := make([]byte, size)
		if err := m.Restart(rng, -1).ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		for i := range model {
			v := binary.LittleEndian.Uint64(got[8*i:])
			if !model[i].durable[v] {
				t.Fatalf("round %d: word %d came back as %#x, which it may not; -seed=%d", round, i, v, *seed)
			}
			if v != model[i].now {
				lost++
			}
			if len(model[i].durable) > 1 {
				mixed++
			}
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if lost < mixed/20 || mixed == 0 {
		t.Errorf("%d words might be lost, %d were: nothing is tested; -seed=%d", mixed, lost, *seed)
	}
}

// A Flush is the processor's: what a device stored can still be lost after it.
func TestCrashableFlushIsNotForStores(t *testing.T) {
	rng := rand.New(rand.NewPCG(*seed, 0))
	lost := 0
	for range 200 {
		m := NewCrashable(4096, -1)
		if err := errors.Join(m.Store([]byte("12345678"), 64), m.WriteAt([]byte("abcdefgh"), 128), m.Flush()); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 4096)
		if err := m.Restart(rng, -1).ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		if string(got[128:136]) != "abcdefgh" {
			t.Fatal("a write that was flushed is lost")
		}
		if got[64] == 0 {
			lost++
		}
	}
	if lost == 0 {
		t.Error("a flush of the processor made what a device stored persistent")
	}
}
