package media

import "sync"

// An Op is a kind of call that a Faulty can fail.
type Op int

const (
	OpRead Op = iota
	OpWrite
	OpFlush
	opCount
)

func (o Op) String() string {
	switch o {
	case OpRead:
		return "read"
	case OpWrite:
		return "write"
	case OpFlush:
		return "flush"
	}
	return "unknown"
}

// Faulty passes calls on to another medium and fails one of them, once. It is
// for tests. The failed call does what a failing device does at its worst: a
// read fills half of the buffer, a write stores half of it, a flush does
// nothing. Calls after it work again, so a caller that goes on where it must not
// is found out.
type Faulty struct {
	Media // immutable

	op  Op
	n   int
	err error

	mu    sync.Mutex
	calls [opCount]int
}

var _ Media = (*Faulty)(nil)

// NewFaulty returns a medium over m whose call number n of kind op, counted from
// 0, returns err. A negative n never comes.
func NewFaulty(m Media, op Op, n int, err error) *Faulty {
	return &Faulty{Media: m, op: op, n: n, err: err}
}

// Calls counts the calls of kind op so far.
func (f *Faulty) Calls(op Op) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[op]
}

// Fired tells whether the failure has happened.
func (f *Faulty) Fired() bool { return f.n >= 0 && f.Calls(f.op) > f.n }

// fails counts a call and tells whether it is the one.
func (f *Faulty) fails(op Op) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[op]++
	return op == f.op && f.calls[op] == f.n+1
}

// ReadAt reads, or fails after half of p.
func (f *Faulty) ReadAt(p []byte, off int64) error {
	if f.fails(OpRead) {
		_ = f.Media.ReadAt(p[:len(p)/2], off) // the failure is f.err
		return f.err
	}
	return f.Media.ReadAt(p, off)
}

// WriteAt writes, or fails after half of p.
func (f *Faulty) WriteAt(p []byte, off int64) error {
	if f.fails(OpWrite) {
		_ = f.Media.WriteAt(p[:len(p)/2], off) // the failure is f.err
		return f.err
	}
	return f.Media.WriteAt(p, off)
}

// Flush flushes, or fails without having done so.
func (f *Faulty) Flush() error {
	if f.fails(OpFlush) {
		return f.err
	}
	return f.Media.Flush()
}
