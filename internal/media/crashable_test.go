package media

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
)

func TestCrashable(t *testing.T) {
	m := NewCrashable(64<<10, -1)
	exercise(t, m)
	if m.Lost() {
		t.Error("a negative cut came")
	}
	m.PowerOff()
	for what, err := range map[string]error{
		"ReadAt":  m.ReadAt(make([]byte, 1), 0),
		"WriteAt": m.WriteAt(make([]byte, 1), 0),
		"Flush":   m.Flush(),
	} {
		if !errors.Is(err, ErrPowerLost) {
			t.Errorf("%s without power = %v, want ErrPowerLost", what, err)
		}
	}
}

func TestCrashableCutsAtFlush(t *testing.T) {
	for cut := range 4 {
		m := NewCrashable(4096, cut)
		for i := range cut {
			if err := m.Flush(); err != nil {
				t.Errorf("cut %d: flush %d = %v", cut, i, err)
			}
		}
		if err := m.Flush(); !errors.Is(err, ErrPowerLost) || !m.Lost() {
			t.Errorf("cut %d: flush %d = %v, Lost() = %v", cut, cut, err, m.Lost())
		}
		if got := m.Flushes(); got != cut+1 {
			t.Errorf("cut %d: Flushes() = %d, want %d", cut, got, cut+1)
		}
	}
}

// What was flushed is there; each word of what was not has the value of one of
// its writes or the flushed one; and whole, lost and torn writes all occur.
func TestCrashableRestart(t *testing.T) {
	const size, words = 16384, 16384 / 8
	rng := rand.New(rand.NewPCG(*seed, 0))
	var whole, lost, torn int
	for range 2000 {
		m := NewCrashable(size, 1)
		base := make([]byte, size)
		for i := range base {
			base[i] = byte(rng.Uint32())
		}
		if err := errors.Join(m.WriteAt(base, 0), m.Flush()); err != nil {
			t.Fatal(err)
		}
		can := make([]map[uint64]bool, words) // values each word may have
		now := bytes.Clone(base)
		for i := range can {
			can[i] = map[uint64]bool{binary.LittleEndian.Uint64(base[8*i:]): true}
		}
		type write struct {
			off  int64
			data []byte
		}
		var writes []write
		for range 1 + rng.IntN(4) {
			data := make([]byte, 8*(1+rng.IntN(600)))
			for i := range data {
				data[i] = byte(rng.Uint32())
			}
			off := 8 * rng.Int64N(int64(words-len(data)/8))
			writes = append(writes, write{off, data})
			if err := m.WriteAt(data, off); err != nil {
				t.Fatal(err)
			}
			copy(now[off:], data)
			for i := range len(data) / 8 {
				can[off/8+int64(i)][binary.LittleEndian.Uint64(data[8*i:])] = true
			}
		}
		got := make([]byte, size)
		if err := m.ReadAt(got, 0); err != nil || !bytes.Equal(got, now) {
			t.Fatalf("before the cut: %v, newest content visible: %v; -seed=%d", err, bytes.Equal(got, now), *seed)
		}
		if err := m.Flush(); !errors.Is(err, ErrPowerLost) {
			t.Fatalf("Flush = %v, want ErrPowerLost", err)
		}
		r := m.Restart(rng, -1)
		if err := r.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		for i := range can {
			if v := binary.LittleEndian.Uint64(got[8*i:]); !can[i][v] {
				t.Fatalf("word %d = %#x was never written; -seed=%d", i, v, *seed)
			}
		}
		w := writes[len(writes)-1] // nothing overwrites the last
		part := got[w.off : w.off+int64(len(w.data))]
		switch {
		case bytes.Equal(part, w.data):
			whole++
		case bytes.Equal(part, base[w.off:w.off+int64(len(w.data))]):
			lost++
		default:
			torn++
		}
		// What survived is flushed: another restart changes nothing.
		again := make([]byte, size)
		if err := r.Restart(rng, -1).ReadAt(again, 0); err != nil || !bytes.Equal(again, got) {
			t.Fatalf("a second restart: %v, same content: %v; -seed=%d", err, bytes.Equal(again, got), *seed)
		}
	}
	if min(whole, lost, torn) < 200 {
		t.Errorf("of 2000 writes %d came back whole, %d not at all, %d torn: want each often; -seed=%d", whole, lost, torn, *seed)
	}
}

// Writes that are not made of whole words tear only between words.
func TestCrashableUnalignedWrites(t *testing.T) {
	rng := rand.New(rand.NewPCG(*seed, 0))
	for range 2000 {
		m := NewCrashable(100, -1)
		off, n := rng.Int64N(50), 1+rng.IntN(50)
		if err := m.WriteAt(bytes.Repeat([]byte{1}, n), off); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 100)
		if err := m.Restart(rng, -1).ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		for i, b := range got {
			inside := int64(i) >= off && int64(i) < off+int64(n)
			if !inside && b != 0 {
				t.Fatalf("byte %d outside of the write [%d,+%d) changed; -seed=%d", i, off, n, *seed)
			}
			if inside && i%8 != 0 && int64(i-1) >= off && b != got[i-1] {
				t.Fatalf("word of byte %d is torn by the write [%d,+%d); -seed=%d", i, off, n, *seed)
			}
		}
	}
}

// A restart must not share pages that either side can still change.
func TestCrashableRestartsAreIndependent(t *testing.T) {
	rng := rand.New(rand.NewPCG(*seed, 0))
	m := NewCrashable(8192, -1)
	if err := errors.Join(m.WriteAt([]byte{1}, 0), m.Flush()); err != nil {
		t.Fatal(err)
	}
	a, b := m.Restart(rng, -1), m.Restart(rng, -1)
	if err := errors.Join(a.WriteAt([]byte{2}, 0), a.Flush()); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 1)
	if err := b.ReadAt(got, 0); err != nil || got[0] != 1 {
		t.Errorf("a write to one restart shows in another: %d, %v", got[0], err)
	}
}

func TestFaultyFailsOnce(t *testing.T) {
	call := map[Op]func(m Media) error{
		OpRead:  func(m Media) error { return m.ReadAt(make([]byte, 16), 0) },
		OpWrite: func(m Media) error { return m.WriteAt(bytes.Repeat([]byte{7}, 16), 0) },
		OpFlush: func(m Media) error { return m.Flush() },
	}
	for op, do := range call {
		for n := range 3 {
			f := NewFaulty(NewCrashable(4096, -1), op, n, io.ErrClosedPipe)
			for i := range 4 {
				var want error
				if i == n {
					want = io.ErrClosedPipe
				}
				if got := do(f); got != want {
					t.Errorf("%v %d of a medium that fails %d = %v, want %v", op, i, n, got, want)
				}
				if got := f.Fired(); got != (i >= n) {
					t.Errorf("%v %d: Fired() = %v", op, i, got)
				}
			}
			if got := f.Calls(op); got != 4 {
				t.Errorf("Calls(%v) = %d, want 4", op, got)
			}
		}
	}
	// A failed write leaves half.
	m := NewCrashable(4096, -1)
	_ = call[OpWrite](NewFaulty(m, OpWrite, 0, io.ErrClosedPipe)) // the failure is wanted
	got := make([]byte, 16)
	if err := m.ReadAt(got, 0); err != nil || got[7] != 7 || got[8] != 0 {
		t.Errorf("after a failed write: %v, %v, want its first half", got, err)
	}
}

// BenchmarkCrashable is one short life of a pool of 4 MiB: 100 pages written,
// ten flushes, a cut, a restart.
func BenchmarkCrashable(b *testing.B) {
	b.ReportAllocs()
	rng := rand.New(rand.NewPCG(1, 0))
	p := make([]byte, 4096)
	for b.Loop() {
		m := NewCrashable(4<<20, 9)
		for i := range 100 {
			_ = m.WriteAt(p, rng.Int64N(1024)*4096)
			if i%10 == 9 {
				_ = m.Flush()
			}
		}
		m.Restart(rng, -1)
	}
}
