package heap

import "bytes"

// Guards of a heap that was created with them: the last bytes of a block.
//
//	0  bytes  asked for
//	8  word   guardLive while in use, guardFreed once freed, XOR the block's offset
//
// The first guardFillMax of the bytes between those asked for and the guard are
// guardFill.

func guardAt(b block) uint64 { return b.off + b.size - guardSize }

// guard sets the guard of a block for n bytes.
func (m memory) guard(b block, n uint64) {
	at := guardAt(b)
	fill := m[b.off+n : min(at, b.off+n+guardFillMax)]
	for i := range fill {
		fill[i] = guardFill
	}
	m.put64(at, n)
	m.put64(at+8, guardLive^b.off)
}

// guarded verifies a block's guard and returns the bytes asked for.
func (m memory) guarded(b block) (uint64, error) {
	at := guardAt(b)
	n := m.u64(at)
	switch word := m.u64(at + 8); {
	case word == guardFreed^b.off:
		return 0, ErrNotBlock
	case word != guardLive^b.off, n > b.size-guardSize, !allFill(m[b.off+n : min(at, b.off+n+guardFillMax)]):
		return 0, ErrOverrun
	}
	return n, nil
}

// allFill reports whether all bytes are guardFill.
func allFill(b []byte) bool {
	return len(b) == 0 || b[0] == guardFill && bytes.Equal(b[1:], b[:len(b)-1])
}
