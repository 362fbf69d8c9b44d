#include <string.h>

#include "heap.h"

_Thread_local struct rh_local rh_local;

/* A thread that found no cache is bound to this, so as to search only once. */
static struct rh_binding *no_cache(struct rpmemfs_heap *h)
{
	return &h->none;
}

/* Takes cache i, if no thread of any process has it. */
static struct rh_binding *claim(struct rpmemfs_heap *h, unsigned i)
{
	struct rh_binding *b = &h->bindings[i];

	pthread_mutex_lock(&h->owners);
	if (b->bound || (h->fd >= 0 && rh_file_lock(h->fd, rh_byte_cache(i),
						    false) != 0))
		b = NULL;
	else
		b->bound = true;
	pthread_mutex_unlock(&h->owners);
	return b;
}

static void yield(struct rpmemfs_heap *h, struct rh_binding *b)
{
	pthread_mutex_lock(&h->owners);
	b->bound = false;
	if (h->fd >= 0)
		rh_file_unlock(h->fd,
			       rh_byte_cache((unsigned)(b - h->bindings)));
	pthread_mutex_unlock(&h->owners);
}

/* Whether every magazine holds what its sum says: a damaged one is not used. */
static bool is_sound(struct rh_cache *cache)
{
	for (unsigned c = 0; c < RH_CLASSES; c++) {
		struct rh_magazine *m = rh_magazine_of(cache, c);
		uint64_t sum = 0;

		if (m->n > rh_classes[c].cap)
			return false;
		for (uint32_t i = 0; i < m->n; i++)
			sum ^= m->slots[i];
		if (sum != m->sum)
			return false;
	}
	return true;
}

/* Takes the lowest cache that can be had. */
static struct rh_binding *claim_any(struct rpmemfs_heap *h)
{
	for (unsigned i = 0; i < RH_CACHES; i++) {
		struct rh_binding *b = claim(h, i);

		if (b == NULL)
			continue;
		if (is_sound(rh_cache_of(h, i)))
			return b;
		yield(h, b);
	}
	return NULL;
}

struct rh_cache *rh_cache_bind(struct rpmemfs_heap *h)
{
	struct rh_binding *b = pthread_getspecific(h->key);

	if (b == NULL) {
		b = claim_any(h);
		if (b == NULL)
			b = no_cache(h);
		if (pthread_setspecific(h->key, b) != 0) {
			/* Nothing would give it back: do without. */
			if (b != no_cache(h))
				yield(h, b);
			return NULL;
		}
	}
	if (b == no_cache(h))
		return NULL;
	struct rh_cache *cache =
		rh_cache_of(h, (unsigned)(b - h->bindings));
	if (!h->guards) {
		rh_local.serial = h->serial;
		rh_local.cache = cache;
	}
	return cache;
}

void rh_cache_unbind(void *binding)
{
	struct rh_binding *b = binding;

	/* A forked child has not opened the heap: the cache is its parent's. */
	if (b->heap->serial == 0)
		return;
	if (rh_local.serial == b->heap->serial)
		rh_local.serial = 0;
	if (b != no_cache(b->heap))
		yield(b->heap, b);
}

int rh_cache_take(struct rpmemfs_heap *h, struct rh_cache *cache,
		  unsigned class, uint64_t *offset)
{
	unsigned got;

	if (cache == NULL)
		return rh_blocks_take(h, class, offset, 1, &got);

	struct rh_magazine *m = rh_magazine_of(cache, class);
	if (m->n == 0) {
		/*
		 * Highest first: the lowest blocks of all spans would share
		 * one set of the processor's cache.
		 */
		int err = rh_blocks_take(h, class, m->slots,
					 rh_classes[class].cap / 2, &got);
		if (err != 0)
			return err;
		m->n = got;
		for (unsigned i = 0; i < got; i++)
			m->sum ^= m->slots[i];
	}
	*offset = m->slots[--m->n];
	m->sum ^= *offset;
	return 0;
}

/* Gives the n oldest blocks of a magazine back to their spans. */
static int flush(struct rpmemfs_heap *h, unsigned class, struct rh_magazine *m,
		 unsigned n)
{
	int err = rh_blocks_give(h, class, m->slots, n);

	for (unsigned i = 0; i < n; i++)
		m->sum ^= m->slots[i];
	m->n -= n;
	memmove(m->slots, m->slots + n, m->n * sizeof(m->slots[0]));
	return err;
}

int rh_cache_give(struct rpmemfs_heap *h, struct rh_cache *cache,
		  unsigned class, uint64_t offset)
{
	if (cache == NULL)
		return rh_blocks_give(h, class, &offset, 1);

	struct rh_magazine *m = rh_magazine_of(cache, class);
	int err = 0;
	if (m->n >= rh_classes[class].cap)
		err = flush(h, class, m, rh_classes[class].cap / 2);
	m->slots[m->n++] = offset;
	m->sum ^= offset;
	return err;
}

bool rh_caches_reclaim(struct rpmemfs_heap *h)
{
	bool any = false;

	for (unsigned i = 0; i < RH_CACHES; i++) {
		struct rh_binding *b = claim(h, i);
		struct rh_cache *cache = rh_cache_of(h, i);

		if (b == NULL)
			continue;
		for (unsigned c = 0; c < RH_CLASSES && is_sound(cache); c++) {
			struct rh_magazine *m = rh_magazine_of(cache, c);

			if (m->n > 0 && flush(h, c, m, m->n) == 0)
				any = true;
		}
		yield(h, b);
	}
	return any;
}
