package heap

import (
	"fmt"
	"reflect"
)

// A Ptr is the offset of a T in a heap; the zero Ptr is none. It may lie in the
// heap itself, and it is 8 bytes there:
//
//	type node struct {
//		next heap.Ptr[node]
//		key  uint64
//	}
type Ptr[T any] Offset

// An Allocator is a *Heap or a *Cache.
type Allocator interface {
	Alloc(size uint64) (Offset, error)
	heap() *Heap
}

var (
	_ Allocator = (*Heap)(nil)
	_ Allocator = (*Cache)(nil)
)

func (h *Heap) heap() *Heap  { return h }
func (c *Cache) heap() *Heap { return c.h }

// New allocates a zeroed T. Beyond the errors of Alloc it returns ErrType if T
// holds Go pointers: maps, strings, slices, interfaces, channels, functions.
func New[T any](a Allocator) (Ptr[T], error) { return NewArray[T](a, 1) }

// NewArray allocates n zeroed Ts in a row; see Array.
func NewArray[T any](a Allocator, n uint64) (Ptr[T], error) {
	h := a.heap()
	if h == nil {
		return 0, ErrClosed
	}
	t := reflect.TypeFor[T]()
	if err := h.storable(t); err != nil {
		return 0, err
	}
	if n > maxSize/uint64(max(t.Size(), 1)) {
		return 0, fmt.Errorf("allocate %d of %v: %w", n, t, ErrNoSpace)
	}
	off, err := a.Alloc(n * uint64(t.Size()))
	return Ptr[T](off), err
}

// Get returns the T in place, to read and to store to, as long as it is not
// freed: a loop looks it up once. It returns nil for the zero Ptr, and if the T would not lie inside of
// the heap, aligned, or may not lie in one. What the bytes mean is the caller's
// business: offsets that are not followed through Get, Array or Bytes are
// checked by nobody.
func (p Ptr[T]) Get(h *Heap) *T {
	if p == 0 || h.storable(reflect.TypeFor[T]()) != nil {
		return nil
	}
	return at[T](h.mapped(Offset(p)), uint64(p))
}

// Array returns n Ts in a row in place; nil where Get would return nil.
func (p Ptr[T]) Array(h *Heap, n uint64) []T {
	if p == 0 || n > maxSize || h.storable(reflect.TypeFor[T]()) != nil {
		return nil
	}
	return arrayAt[T](h.mapped(Offset(p)), uint64(p), n)
}

// storable reports whether a type may lie in a heap. It looks at each once.
func (h *Heap) storable(t reflect.Type) error {
	if known, ok := h.types.Load(t); ok {
		if known == nil {
			return nil
		}
		return known.(error)
	}
	err := plain(t)
	if err != nil {
		err = fmt.Errorf("%w: %v: %w", ErrType, t, err)
	}
	h.types.Store(t, err)
	return err
}

// plain returns what of a type holds Go pointers, or has a size that differs from
// machine to machine.
func plain(t reflect.Type) error {
	switch t.Kind() {
	case reflect.Bool, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Int,
		reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uint,
		reflect.Float32, reflect.Float64, reflect.Complex64, reflect.Complex128:
		return nil
	case reflect.Array:
		return plain(t.Elem())
	case reflect.Struct:
		for i := range t.NumField() {
			if err := plain(t.Field(i).Type); err != nil {
				return fmt.Errorf("field %s: %w", t.Field(i).Name, err)
			}
		}
		return nil
	}
	return fmt.Errorf("a %v", t.Kind())
}
