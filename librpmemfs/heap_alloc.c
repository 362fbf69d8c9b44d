#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "heap.h"

/* What a block that came from a magazine promises: no byte is known zero. */
#define NOT_FRESH UINT64_MAX

_Noreturn void rh_misuse(const struct rpmemfs_heap *h, uint64_t offset,
			 const char *what)
{
	fprintf(stderr, "rpmemfs: heap: block %p (offset %llu) %s\n",
		(void *)(h->mem + offset), (unsigned long long)offset, what);
	abort();
}

static void *fail(int err)
{
	errno = -err;
	return NULL;
}

/* Every call but the fast ways passes here. */
static int enter(struct rpmemfs_heap *h)
{
	return RH_UNLIKELY(h->serial == 0) ? rh_after_fork(h) : 0;
}

static struct rh_cache *my_cache(struct rpmemfs_heap *h)
{
	if (rh_local.serial == h->serial)
		return rh_local.cache;
	return rh_cache_bind(h);
}

static uint64_t guard_bytes(const struct rpmemfs_heap *h)
{
	return h->guards ? RH_GUARD : 0;
}

/* Guards */

static struct rh_guard *guard_of(const struct rpmemfs_heap *h,
				 const struct rh_block *b)
{
	return (void *)(h->mem + b->offset + b->bytes - RH_GUARD);
}

static uint64_t filled(const struct rh_block *b, uint64_t asked)
{
	uint64_t left = b->bytes - RH_GUARD - asked;

	return left < RH_FILL_MAX ? left : RH_FILL_MAX;
}

static void guard_set(const struct rpmemfs_heap *h, const struct rh_block *b,
		      uint64_t asked)
{
	memset(h->mem + b->offset + asked, RH_FILL, filled(b, asked));
	*guard_of(h, b) = (struct rh_guard){ asked, RH_LIVE ^ b->offset };
}

const char *rh_guard_fault(const struct rpmemfs_heap *h,
			   const struct rh_block *b)
{
	struct rh_guard g = *guard_of(h, b);

	if (g.word == (RH_FREED ^ b->offset))
		return "is not in use: freed twice?";
	if (g.word != (RH_LIVE ^ b->offset) || g.bytes > b->bytes - RH_GUARD)
		return "was overrun: its guard is gone";
	const unsigned char *p = h->mem + b->offset + g.bytes;
	for (uint64_t i = 0, n = filled(b, g.bytes); i < n; i++)
		if (p[i] != RH_FILL)
			return "was overrun: bytes behind it changed";
	return NULL;
}

static void guard_verify(const struct rpmemfs_heap *h,
			 const struct rh_block *b)
{
	const char *fault = h->guards ? rh_guard_fault(h, b) : NULL;

	if (fault != NULL)
		rh_misuse(h, b->offset, fault);
}

/* Blocks by their address */

bool rh_find(const struct rpmemfs_heap *h, uint64_t offset,
	     struct rh_block *out)
{
	uint64_t chunk = offset >> RH_CHUNK_SHIFT;

	if (offset >= h->mapped || chunk >= RH_CHUNKS)
		return false;
	/* Without the lock: what else is in the entry may be changing. */
	const struct rh_chunk *dir = &rh_dir(h)[chunk];
	*out = (struct rh_block){ .offset = offset, .class = RH_CLASSES };
	out->span = (rh_span)(chunk * RH_CHUNK_UNITS);
	if (dir->kind == RH_HUGE) {
		out->huge = true;
		out->bytes = (uint64_t)dir->count << RH_CHUNK_SHIFT;
		return offset % RH_CHUNK == 0 &&
		       out->bytes <= h->mapped - offset;
	}
	if (dir->kind != RH_CUT)
		return false;
	struct rh_unit u = *rh_unit_of(h, (rh_span)(offset >> RH_UNIT_SHIFT));
	out->span += u.head;
	uint64_t start = rh_span_offset(out->span);
	if (offset < start)
		return false;
	if (u.kind == RH_LARGE) {
		out->bytes = rh_span_offset(rh_desc_of(h, out->span)->units);
		return offset == start && out->bytes != 0 &&
		       out->bytes <= h->mapped - offset;
	}
	if (u.kind != RH_SMALL || u.class >= RH_CLASSES)
		return false;
	const struct rh_class *c = &rh_classes[u.class];
	if (offset - start >= rh_span_offset(c->units))
		return false;
	out->class = u.class;
	out->bytes = c->size;
	return rh_is_multiple(c, offset - start) &&
	       rh_block_no(c, offset - start) < c->blocks;
}

/* The block at p, which the caller says is one. */
static struct rh_block find_used(const struct rpmemfs_heap *h, const void *p)
{
	uint64_t offset = (uintptr_t)p - (uintptr_t)h->mem;
	struct rh_block b;

	if (!rh_find(h, offset, &b))
		rh_misuse(h, offset, "is no block of this heap");
	guard_verify(h, &b);
	return b;
}

/* Taking */

static int take_spans(struct rpmemfs_heap *h, uint64_t total, uint64_t align,
		      struct rh_block *b, uint64_t *fresh)
{
	uint64_t k = (total + RH_UNIT - 1) / RH_UNIT;
	uint64_t align_units = align > RH_UNIT ? align / RH_UNIT : 1;
	int err = rh_lock(h);

	if (err != 0)
		return err;
	b->class = RH_CLASSES;
	if (rh_fits_chunk(k, align_units)) {
		err = rh_units_take(h, (unsigned)k, (unsigned)align_units, 0,
				    RH_LARGE, &b->span, fresh);
		b->offset = rh_span_offset(b->span);
		b->bytes = k << RH_UNIT_SHIFT;
	} else {
		uint64_t n = (total + RH_CHUNK - 1) / RH_CHUNK;

		err = rh_huge_take(h, n, &b->offset, fresh);
		b->huge = true;
		b->bytes = n << RH_CHUNK_SHIFT;
	}
	rh_unlock(h);
	return err;
}

static int take_once(struct rpmemfs_heap *h, uint64_t total, uint64_t align,
		     struct rh_block *b, uint64_t *fresh)
{
	*b = (struct rh_block){ 0 };
	*fresh = NOT_FRESH;
	if (total > RH_SMALL_MAX || align > RH_UNIT)
		return take_spans(h, total, align, b, fresh);
	b->class = rh_class_of(total);
	while (b->class < RH_CLASSES && rh_classes[b->class].size % align != 0)
		b->class++;
	if (b->class == RH_CLASSES)
		return take_spans(h, total, align, b, fresh);
	b->bytes = rh_classes[b->class].size;
	return rh_cache_take(h, my_cache(h), b->class, &b->offset);
}

static int take(struct rpmemfs_heap *h, size_t bytes, uint64_t align,
		struct rh_block *b, uint64_t *fresh)
{
	int err = enter(h);

	if (err != 0)
		return err;
	if (bytes > RH_SIZE_MAX)
		return -ENOMEM;
	uint64_t total = bytes + guard_bytes(h);
	if (total == 0)
		total = 1;
	err = take_once(h, total, align, b, fresh);
	if (err == -ENOMEM && rh_caches_reclaim(h))
		err = take_once(h, total, align, b, fresh);
	if (err == 0 && h->guards)
		guard_set(h, b, bytes);
	return err;
}

static void *take_address(struct rpmemfs_heap *h, size_t bytes, uint64_t align)
{
	struct rh_block b;
	uint64_t fresh;
	int err = take(h, bytes, align, &b, &fresh);

	return err == 0 ? h->mem + b.offset : fail(err);
}

/*
 * An error cannot be told: the blocks are lost to the heap until the region is
 * rolled back, as it has to be after -EOWNERDEAD.
 */
static void give(struct rpmemfs_heap *h, const struct rh_block *b)
{
	if (h->guards)
		guard_of(h, b)->word = RH_FREED ^ b->offset;
	if (b->class < RH_CLASSES) {
		(void)rh_cache_give(h, my_cache(h), b->class, b->offset);
		return;
	}
	if (rh_lock(h) != 0)
		return;
	if (b->huge)
		rh_huge_give(h, b->offset >> RH_CHUNK_SHIFT,
			     b->bytes >> RH_CHUNK_SHIFT);
	else
		rh_units_give(h, b->span,
			      (unsigned)(b->bytes >> RH_UNIT_SHIFT));
	rh_unlock(h);
}

/* The calls */

void *rpmemfs_malloc(struct rpmemfs_heap *h, size_t bytes)
{
	if (RH_UNLIKELY(rh_local.serial != h->serial || bytes > RH_SMALL_MAX))
		return take_address(h, bytes, 1);

	unsigned class = rh_class_of(bytes);
	struct rh_magazine *m = rh_magazine_of(rh_local.cache, class);
	uint32_t n = m->n;
	if (RH_UNLIKELY(n == 0))
		return take_address(h, bytes, 1);
	uint64_t offset = m->slots[n - 1];
	m->n = n - 1;
	m->sum ^= offset;
	return h->mem + offset;
}

static __attribute__((noinline)) void free_slow(struct rpmemfs_heap *h, void *p)
{
	if (p == NULL || enter(h) != 0)
		return;
	struct rh_block b = find_used(h, p);
	int saved = errno;
	give(h, &b);
	errno = saved;
}

/*
 * The fast way: a small block into a magazine with room. A program that frees
 * and takes blocks of one class in turn waits for the address of the
 * magazine, hence for what leads from p to it; the checks run beside it.
 */
void rpmemfs_free(struct rpmemfs_heap *h, void *p)
{
	uint64_t offset = (uintptr_t)p - (uintptr_t)h->mem;

	if (RH_UNLIKELY(rh_local.serial != h->serial || offset >= h->mapped ||
			rh_dir(h)[offset >> RH_CHUNK_SHIFT].kind != RH_CUT)) {
		free_slow(h, p);
		return;
	}
	/* Chunks are aligned in memory too. */
	const unsigned char *chunk =
		(unsigned char *)p - (uintptr_t)p % RH_CHUNK;
	const struct rh_unit *u =
		(const struct rh_unit *)(chunk + RH_MAP_AT) +
		(uintptr_t)p / RH_UNIT % RH_CHUNK_UNITS;
	unsigned class = u->class;
	if (RH_UNLIKELY(u->kind != RH_SMALL || class >= RH_CLASSES)) {
		free_slow(h, p);
		return;
	}
	const struct rh_class *c = &rh_classes[class];
	uint64_t at = offset % RH_CHUNK - ((uint64_t)u->head << RH_UNIT_SHIFT);
	struct rh_magazine *m = rh_magazine_of(rh_local.cache, class);
	uint32_t n = m->n;
	if (RH_UNLIKELY(!rh_is_multiple(c, at) || n >= c->cap)) {
		free_slow(h, p);
		return;
	}
	if (RH_UNLIKELY(n > 0 && m->slots[n - 1] == offset))
		rh_misuse(h, offset, "was freed twice");
	m->slots[n] = offset;
	m->n = n + 1;
	m->sum ^= offset;
}

void *rpmemfs_calloc(struct rpmemfs_heap *h, size_t count, size_t bytes)
{
	struct rh_block b;
	uint64_t fresh;
	size_t all;

	if (__builtin_mul_overflow(count, bytes, &all))
		return fail(-ENOMEM);
	int err = take(h, all, 1, &b, &fresh);
	if (err != 0)
		return fail(err);
	if (fresh > b.offset) {
		uint64_t used = fresh - b.offset;
		memset(h->mem + b.offset, 0, used < all ? used : all);
	}
	return h->mem + b.offset;
}

void *rpmemfs_aligned_alloc(struct rpmemfs_heap *h, size_t alignment,
			    size_t bytes)
{
	if (alignment == 0 || (alignment & (alignment - 1)) != 0 ||
	    alignment > RH_CHUNK)
		return fail(-EINVAL);
	return take_address(h, bytes, alignment);
}

/* Whether total bytes fit the block where it is; it may have been resized. */
static bool resize(struct rpmemfs_heap *h, struct rh_block *b, uint64_t total)
{
	if (b->class < RH_CLASSES)
		return total <= b->bytes &&
		       (total > b->bytes / 2 || rh_class_of(total) == b->class);

	uint64_t unit = b->huge ? RH_CHUNK : RH_UNIT;
	uint64_t k = (total + RH_UNIT - 1) / RH_UNIT;
	uint64_t have = b->bytes / unit;
	uint64_t want = (total + unit - 1) / unit;
	if (total <= RH_SMALL_MAX || rh_fits_chunk(k, 1) == b->huge)
		return false;
	if (want == have)
		return true;
	if (rh_lock(h) != 0)
		return false;
	bool done = b->huge ? rh_huge_resize(h, b->offset / RH_CHUNK, have,
					     want) :
			      rh_units_resize(h, b->span, (unsigned)have,
					      (unsigned)want);
	rh_unlock(h);
	if (done)
		b->bytes = want * unit;
	return done;
}

void *rpmemfs_realloc(struct rpmemfs_heap *h, void *p, size_t bytes)
{
	if (p == NULL)
		return rpmemfs_malloc(h, bytes);
	int err = enter(h);
	if (err != 0)
		return fail(err);
	if (bytes > RH_SIZE_MAX)
		return fail(-ENOMEM);

	struct rh_block b = find_used(h, p);
	uint64_t had = h->guards ? guard_of(h, &b)->bytes : b.bytes;
	if (resize(h, &b, bytes + guard_bytes(h))) {
		if (h->guards)
			guard_set(h, &b, bytes);
		return p;
	}
	void *moved = take_address(h, bytes, 1);
	if (moved == NULL)
		return NULL;
	memcpy(moved, p, had < bytes ? had : bytes);
	give(h, &b);
	return moved;
}

size_t rpmemfs_usable_size(struct rpmemfs_heap *h, const void *p)
{
	if (p == NULL)
		return 0;
	struct rh_block b = find_used(h, p);
	return h->guards ? guard_of(h, &b)->bytes : b.bytes;
}

void *rpmemfs_root(struct rpmemfs_heap *h)
{
	uint64_t root = __atomic_load_n(&h->header->root, __ATOMIC_ACQUIRE);

	return root == 0 || root >= h->mapped ? NULL : h->mem + root;
}

int rpmemfs_set_root(struct rpmemfs_heap *h, void *p)
{
	uint64_t offset = p == NULL ? 0 : (uintptr_t)p - (uintptr_t)h->mem;
	struct rh_block b;
	int err = enter(h);

	if (err != 0)
		return err;
	if (p != NULL && !rh_find(h, offset, &b))
		return -EINVAL;
	err = rh_lock(h);
	if (err != 0)
		return err;
	__atomic_store_n(&h->header->root, offset, __ATOMIC_RELEASE);
	rh_unlock(h);
	return 0;
}
