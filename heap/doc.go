// Package heap is an allocator whose state lies in the bytes it is given: the
// content of a region. C programs use the same heap through librpmemfs, also at
// the same time; docs/format.md, section Heap, is the definition of both.
//
// # Model
//
// A region is cut into chunks of 64 MiB, a chunk into units of 16 KiB, and runs
// of units into spans. A small span holds blocks of one of 40 size classes, a
// large span one block, and a block that no chunk can hold is a huge run of
// chunks. Free blocks of a small span are bits in its descriptor. Free blocks at
// hand lie in caches: stacks, one for each class, that one goroutine or thread
// at a time owns.
//
// Nothing is logged and opening recovers nothing. Allocations, frees and the
// content of blocks become durable together, when the region's epoch commits, or
// roll back together. So an epoch must be sealed while nobody is inside a call of
// this package: at a restart point, and no call contains one.
//
// # Concurrency
//
// A Heap is safe for concurrent use. Its Alloc and Free share one cache, behind
// a mutex; a goroutine that allocates much takes a Cache of its own. What a
// cache does not have, and everything larger than 32 KiB, is guarded by the
// heap's lock: a mutex, then a word in the heap, for other processes.
//
// Lock order: shared cache, Heap.mu, the lock word, Heap.ownersMu.
//
// # Trust
//
// The bytes may be damaged. Every offset, count and index that is read from them
// is checked before it is followed: what cannot be is a CorruptError, never a
// panic. After one, a change may be half made: the heap refuses everything but
// reading, and the epoch should be rolled back. Nothing, however, protects from a
// file that is truncated below the heap's size while it is mapped: that is a
// SIGBUS.
//
// Slabs and magazines follow Bonwick and Adams, "Magazines and Vmem: Extending
// the Slab Allocator to Many CPUs and Arbitrary Resources", USENIX 2001; unlike
// there, magazines are part of the heap at rest and a full one is emptied by
// half. Rolling an allocator back with its epoch follows Khorguani et al.,
// "ResPCT: Fast Checkpointing in Non-volatile Memory for Multi-threaded
// Applications", EuroSys 2022, doi:10.1145/3492321.3519590.
package heap
