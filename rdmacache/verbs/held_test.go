package verbs

import "testing"

// Where extents are scarce, who needs another has his turn, though others always have
// something to read within those that there are: nothing new begins before it was asked for.
func TestHeldAskHasItsTurn(t *testing.T) {
	a, err := newArena(minWindow)
	if err != nil {
		t.Fatal(err)
	}
	l := &lane{arena: a, many: 1}
	k := &link{limit: 8, extents: extents{{start: 0, end: 4096, address: 1 << 20, rkey: 1}}}
	t.Cleanup(func() {
		if err := a.close(); err != nil {
			t.Error(err)
		}
	})
	within, beyond := place{0, 100}, place{1 << 30, 100}
	wants := func(p place) *readOp { return &readOp{place: p} }
	ops := func() (ops []Op) {
		l.gather(k)
		for _, w := range k.outbox {
			ops = append(ops, w.Op)
		}
		k.outbox = nil
		return ops
	}
	l.reads = []*readOp{wants(within), wants(beyond)}
	if got := ops(); len(got) != 1 || got[0] != OpRead {
		t.Errorf("posted %v, want a READ: the other has to wait for it", got)
	}
	l.reads = append([]*readOp{wants(within)}, l.reads...)
	if got := ops(); len(got) != 0 {
		t.Errorf("posted %v before that READ is done", got)
	}
	k.reads = nil // it is
	if got := ops(); len(got) != 2 || got[0] != OpSend || got[1] != OpRead {
		t.Errorf("posted %v, want MAP and a READ", got)
	}
}
