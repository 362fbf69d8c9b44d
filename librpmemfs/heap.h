/*
 * The parts of the heap.
 *
 *	heap_alloc.c	malloc, free and the like; guards
 *	heap_cache.c	which thread has which cache; magazines
 *	heap_span.c	blocks of spans: refill and flush
 *	heap_units.c	spans of chunks, huge blocks, growing
 *	heap_lock.c	the lock, and locks on the file
 *	heap_open.c	create, open, close, fork
 *	heap_check.c	verifies header, directory and caches
 *	heap_check_spans.c	verifies unit maps, spans, lists and guards
 *
 * Ownership: what lies in the region is guarded by the heap's lock, but a cache
 * by the thread it is bound to. Lock order: owners, then the lock.
 *
 * Words of the region that other processes might have damaged are checked
 * where a wrong one would lead outside the region.
 */
#ifndef HEAP_H
#define HEAP_H

#include <pthread.h>
#include <stdbool.h>

#include "heap_attach.h"
#include "heap_layout.h"
#include "rpmemfs_heap.h"

#define RH_UNLIKELY(x) __builtin_expect(!!(x), 0)

/* A cache of this process; what a thread's key refers to. */
struct rh_binding {
	struct rpmemfs_heap *heap;
	bool bound; /* to a thread of this process */
};

struct rpmemfs_heap {
	/*
	 * A page that a forked child finds zeroed. serial is random: the
	 * thread-local copy of another heap, or of a parent, never equals it.
	 */
	_Atomic uint64_t serial;
	pthread_mutex_t forked; /* zeroed: unlocked */

	/* Immutable but for fork. */
	_Alignas(4096) unsigned char *mem;
	uint64_t mapped;
	struct rh_header *header;
	uint64_t base;
	bool guards;
	int fd; /* a description of our own, with the file's locks; or -1 */
	uint32_t id;
	int (*grow)(void *context, uint64_t size);
	void *context;
	pthread_key_t key; /* its value: the thread's binding */

	pthread_mutex_t mutex; /* half of the heap's lock */

	struct rh_binding none;	/* of threads for which no cache was left */
	pthread_mutex_t owners; /* guards what follows */
	struct rh_binding bindings[RH_CACHES];	/* of the caches */
};

/* The binding that the thread used last, if it is of a heap without guards. */
struct rh_local {
	uint64_t serial;
	struct rh_cache *cache;
};
extern _Thread_local struct rh_local rh_local
	__attribute__((tls_model("initial-exec"), visibility("hidden")));

static inline struct rh_chunk *rh_dir(const struct rpmemfs_heap *h)
{
	return (void *)(h->mem + RH_DIR_AT);
}

static inline struct rh_unit *rh_unit_map(const struct rpmemfs_heap *h,
					  uint64_t chunk)
{
	return (void *)(h->mem + (chunk << RH_CHUNK_SHIFT) + RH_MAP_AT);
}

static inline struct rh_unit *rh_unit_of(const struct rpmemfs_heap *h,
					 rh_span unit)
{
	return rh_unit_map(h, unit / RH_CHUNK_UNITS) + unit % RH_CHUNK_UNITS;
}

static inline struct rh_desc *rh_desc_of(const struct rpmemfs_heap *h,
					 rh_span span)
{
	uint64_t chunk = span / RH_CHUNK_UNITS;
	struct rh_desc *d =
		(void *)(h->mem + (chunk << RH_CHUNK_SHIFT) + RH_DESC_AT);
	return d + span % RH_CHUNK_UNITS;
}

static inline struct rh_cache *rh_cache_of(const struct rpmemfs_heap *h,
					   unsigned i)
{
	return (void *)(h->mem + RH_CACHES_AT + (uint64_t)i * RH_CACHE);
}

static inline struct rh_magazine *rh_magazine_of(struct rh_cache *cache,
						 unsigned class)
{
	return (void *)(cache->bytes + rh_magazine_at[class]);
}

/* Metadata units at the start of a chunk. */
static inline unsigned rh_meta_units(uint64_t chunk)
{
	return chunk == 0 ? RH_META_UNITS_0 : RH_META_UNITS;
}

/* Units of a chunk that lie below size. */
static inline unsigned rh_units_below(uint64_t size, uint64_t chunk)
{
	uint64_t start = chunk << RH_CHUNK_SHIFT;
	uint64_t below = size > start ? (size - start) >> RH_UNIT_SHIFT : 0;
	return below < RH_CHUNK_UNITS ? (unsigned)below : RH_CHUNK_UNITS;
}

/* What a block's address says about it. */
struct rh_block {
	uint64_t offset; /* of the block */
	uint64_t bytes;	 /* from there to the end of the block, guard too */
	unsigned class;	 /* RH_CLASSES: large or huge */
	rh_span span;	 /* huge: of the chunk's first unit */
	bool huge;
};

/*
 * Finds the block that begins at offset; false if none does. Whether it is in
 * use is not known.
 */
bool rh_find(const struct rpmemfs_heap *h, uint64_t offset,
	     struct rh_block *out);

/* heap_lock.c */

enum {
	RH_LOCK_ID = 0x7fffffff,
	RH_LOCK_WAITERS = INT32_MIN,
};

/* Take the heap's lock: 0, -EOWNERDEAD, -ETIMEDOUT or -EUCLEAN. */
int rh_lock(struct rpmemfs_heap *h);
void rh_unlock(struct rpmemfs_heap *h);
uint64_t rh_state_sum(const struct rh_header *header);

/* Bytes of the file that are locked: docs/format.md, Locks. */
int64_t rh_byte_opening(void);
int64_t rh_byte_cache(unsigned cache);
int64_t rh_byte_id(uint32_t id);

/* 0, -EAGAIN if another process holds it and wait is false, or an error. */
int rh_file_lock(int fd, int64_t byte, bool wait);
void rh_file_unlock(int fd, int64_t byte);
/* 1 if another process holds a lock on any of count bytes, 0, or an error. */
int rh_file_locked(int fd, int64_t byte, int64_t count);

/* heap_units.c: all with the lock held */

/*
 * Takes k units at a multiple of align units, of a chunk, and describes them as
 * a span without free blocks. *fresh is the offset from which on the
 * span's bytes were never used.
 */
int rh_units_take(struct rpmemfs_heap *h, unsigned k, unsigned align,
		  unsigned class, enum rh_unit_kind kind, rh_span *span,
		  uint64_t *fresh);
void rh_units_give(struct rpmemfs_heap *h, rh_span span, unsigned k);
/* Makes a large span of have units one of want units in place, if it can. */
bool rh_units_resize(struct rpmemfs_heap *h, rh_span span, unsigned have,
		     unsigned want);

/* Whether k units at a multiple of align fit into a chunk other than 0. */
bool rh_fits_chunk(uint64_t k, uint64_t align);

int rh_huge_take(struct rpmemfs_heap *h, uint64_t n, uint64_t *offset,
		 uint64_t *fresh);
void rh_huge_give(struct rpmemfs_heap *h, uint64_t chunk, uint64_t n);
bool rh_huge_resize(struct rpmemfs_heap *h, uint64_t chunk, uint64_t have,
		    uint64_t want);

int rh_grow(struct rpmemfs_heap *h, uint64_t need);

/* heap_span.c: both take the lock */

/*
 * Takes up to n blocks of the class, lowest first; at least one on success.
 */
int rh_blocks_take(struct rpmemfs_heap *h, unsigned class, uint64_t *offsets,
		   unsigned n, unsigned *got);
/* Gives back n blocks of the class. Aborts if one of them is free. */
int rh_blocks_give(struct rpmemfs_heap *h, unsigned class,
		   const uint64_t *offsets, unsigned n);

/* heap_cache.c */

/*
 * Returns the calling thread's cache, after binding it to one; NULL if all
 * are taken.
 */
struct rh_cache *rh_cache_bind(struct rpmemfs_heap *h);
void rh_cache_unbind(void *binding);
/* Through the cache, which may be NULL. */
int rh_cache_take(struct rpmemfs_heap *h, struct rh_cache *cache,
		  unsigned class, uint64_t *offset);
int rh_cache_give(struct rpmemfs_heap *h, struct rh_cache *cache,
		  unsigned class, uint64_t offset);
/* Empties caches that no thread has; whether there was anything in them. */
bool rh_caches_reclaim(struct rpmemfs_heap *h);

/* heap_open.c */

/* In a forked child, before its first use of the heap. */
int rh_after_fork(struct rpmemfs_heap *h);
/* Bytes of the region that exist, and are mapped. */
uint64_t rh_exists(const struct rpmemfs_heap *h);
/* The part of the header that never changes. */
int rh_header_check(const struct rh_header *header);

/* heap_alloc.c */

/* Says what is wrong with the block at offset, and aborts. */
_Noreturn void rh_misuse(const struct rpmemfs_heap *h, uint64_t offset,
			 const char *what);

/* heap_check.c */

bool rh_is_zero(const void *p, size_t n);

/* What is wrong with the guard of a block in use, or NULL. */
const char *rh_guard_fault(const struct rpmemfs_heap *h,
			   const struct rh_block *b);

#endif
