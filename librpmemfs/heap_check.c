#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "heap_check.h"

enum { CACHED_MAX = RH_CACHES * (RH_CACHE_END - RH_CACHE_FIRST) / 8 };

void rh_problem(struct rh_check *ck, const volatile void *where,
		const char *format, ...)
{
	char text[160];
	va_list args;

	ck->problems++;
	if (ck->report == NULL)
		return;
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	const volatile unsigned char *at = where;
	ck->report(ck->context, (uint64_t)(at - ck->h->mem), text);
}

bool rh_is_zero(const void *p, size_t n)
{
	const unsigned char *bytes = p;

	return n == 0 ||
	       (bytes[0] == 0 && memcmp(bytes, bytes + 1, n - 1) == 0);
}

static void check_reserved(struct rh_check *ck, const void *p, size_t n,
			   const char *where)
{
	if (!rh_is_zero(p, n))
		rh_problem(ck, p, "%s: reserved bytes are not zero", where);
}

/* Whether the chunk's metadata lies below size. */
static bool has_metadata(const struct rh_check *ck, uint64_t chunk)
{
	return rh_units_below(ck->size, chunk) >= rh_meta_units(chunk);
}

bool rh_check_find(const struct rh_check *ck, uint64_t offset,
		   struct rh_block *out)
{
	uint64_t chunk = offset >> RH_CHUNK_SHIFT;

	if (offset >= ck->size || chunk >= ck->chunks ||
	    (rh_dir(ck->h)[chunk].kind == RH_CUT && !has_metadata(ck, chunk)) ||
	    !rh_find(ck->h, offset, out) || out->bytes > ck->size - offset)
		return false;
	if (out->class == RH_CLASSES)
		return true;
	uint64_t at = offset - rh_span_offset(out->span);
	unsigned no = rh_block_no(&rh_classes[out->class], at);
	return !(rh_desc_of(ck->h, out->span)->bitmap[no / 64] >> no % 64 & 1);
}

/* Returns false if the header says too little to go on. */
static bool check_header(struct rh_check *ck)
{
	const struct rh_header *header = ck->h->header;
	uint64_t exists = rh_exists(ck->h);

	if (rh_header_check(header) != 0) {
		rh_problem(ck, header, "header: damaged");
		return false;
	}
	check_reserved(ck, header->reserved2, sizeof(header->reserved2),
		       "header");
	check_reserved(ck, header->reserved3, sizeof(header->reserved3),
		       "header");
	check_reserved(ck, header->reserved4, sizeof(header->reserved4),
		       "header");
	check_reserved(ck, header->reserved5, sizeof(header->reserved5),
		       "header");
	if (header->sum != rh_state_sum(header))
		rh_problem(ck, &header->sum, "header: sum of the state");
	ck->size = header->size;
	if (ck->size % RH_UNIT != 0 || ck->size > exists) {
		rh_problem(ck, &header->size, "header: size %llu of %llu",
			   (unsigned long long)ck->size,
			   (unsigned long long)exists);
		ck->size = exists / RH_UNIT * RH_UNIT;
	}
	if (ck->size < (uint64_t)RH_MIN_UNITS * RH_UNIT) {
		rh_problem(ck, &header->size, "header: size %llu is too small",
			   (unsigned long long)ck->size);
		return false;
	}
	if (ck->size > RH_SIZE_MAX)
		ck->size = RH_SIZE_MAX;
	uint64_t most = (ck->size + RH_CHUNK - 1) >> RH_CHUNK_SHIFT;
	ck->chunks = header->chunks;
	if (ck->chunks < 1 || ck->chunks > most) {
		rh_problem(ck, &header->chunks, "header: %u chunks",
			   header->chunks);
		ck->chunks = (uint32_t)most;
	}
	return true;
}

/* Returns the number of chunks of the huge block at c. */
static uint32_t check_huge(struct rh_check *ck, uint32_t c)
{
	const struct rh_chunk *dir = rh_dir(ck->h);
	uint32_t n = dir[c].count;

	if (n < 1 || n > ck->chunks - c ||
	    ((uint64_t)c + n) << RH_CHUNK_SHIFT > ck->size) {
		rh_problem(ck, &dir[c], "huge block: %u chunks", n);
		return 1;
	}
	for (uint32_t i = 1; i < n; i++)
		if (dir[c + i].kind != RH_HUGE_REST || dir[c + i].count != i) {
			rh_problem(ck, &dir[c + i],
				   "chunk %u: not chunk %u of a huge block",
				   c + i, i);
			return i;
		}
	struct rh_block b = {
		.offset = (uint64_t)c << RH_CHUNK_SHIFT,
		.bytes = (uint64_t)n << RH_CHUNK_SHIFT,
	};
	ck->end = b.offset + b.bytes;
	rh_check_guard(ck, &b);
	return n;
}

static void check_directory(struct rh_check *ck)
{
	const struct rh_header *header = ck->h->header;
	const struct rh_chunk *dir = rh_dir(ck->h);
	uint32_t normal = 0, huge = 0, c = 0, n;

	if (dir[0].kind != RH_CUT)
		rh_problem(ck, &dir[0], "chunk 0: kind %d", dir[0].kind);
	for (; c < ck->chunks; c += n) {
		n = 1;
		if (dir[c].kind == RH_UNUSED && rh_is_zero(&dir[c], 8))
			continue;
		if (dir[c].kind == RH_CUT) {
			normal++;
			if (has_metadata(ck, c))
				rh_check_chunk(ck, c);
			else
				rh_problem(ck, &dir[c], "chunk %u: beyond size",
					   c);
			if (c < header->first && dir[c].count < RH_CHUNK_UNITS)
				rh_problem(ck, &header->first,
					   "header: first is %u, but chunk %u "
					   "has free units", header->first, c);
		} else if (dir[c].kind == RH_HUGE && dir[c].low == 0 &&
			   dir[c].longest == 0) {
			n = check_huge(ck, c);
			huge += n;
		} else {
			rh_problem(ck, &dir[c], "chunk %u: kind %d", c,
				   dir[c].kind);
		}
	}
	check_reserved(ck, &dir[c], (RH_CHUNKS - c) * sizeof(*dir),
		       "directory");
	if (header->normal != normal || header->huge != huge)
		rh_problem(ck, &header->normal,
			   "header: %u normal, %u huge chunks, not %u and %u",
			   header->normal, header->huge, normal, huge);
	if (header->top % RH_UNIT != 0 || header->top < ck->end ||
	    header->top > ck->size)
		rh_problem(ck, &header->top, "header: top %llu",
			   (unsigned long long)header->top);
}

/* Bytes that were never part of a span are zero; calloc relies on it. */
static void check_fresh(struct rh_check *ck)
{
	uint64_t at = ck->h->header->top, next;

	for (; at < ck->size; at = next) {
		uint64_t chunk = at >> RH_CHUNK_SHIFT;
		uint64_t start = chunk << RH_CHUNK_SHIFT;

		if (chunk < ck->chunks && rh_dir(ck->h)[chunk].kind == RH_CUT &&
		    at < start + rh_span_offset(rh_meta_units(chunk))) {
			next = start + rh_span_offset(rh_meta_units(chunk));
			continue;
		}
		next = at + RH_UNIT - at % RH_UNIT;
		if (!rh_is_zero(ck->h->mem + at, next - at)) {
			rh_problem(ck, ck->h->mem + at, "unit behind top is "
				   "not zero");
			return;
		}
	}
}

static int by_offset(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

bool rh_is_cached(const struct rh_check *ck, uint64_t offset)
{
	return bsearch(&offset, ck->cached, ck->cached_n, sizeof(offset),
		       by_offset) != NULL;
}

static void check_magazine(struct rh_check *ck, unsigned cache, unsigned class)
{
	const struct rh_magazine *m =
		rh_magazine_of(rh_cache_of(ck->h, cache), class);
	struct rh_block b;
	uint64_t sum = 0;

	if (m->n > rh_classes[class].cap || m->reserved != 0) {
		rh_problem(ck, m, "cache %u: class %u: %u blocks", cache, class,
			   m->n);
		return;
	}
	for (uint32_t i = 0; i < m->n; i++) {
		sum ^= m->slots[i];
		if (rh_check_find(ck, m->slots[i], &b) && b.class == class)
			ck->cached[ck->cached_n++] = m->slots[i];
		else
			rh_problem(ck, &m->slots[i],
				   "cache %u: class %u: no block at %llu",
				   cache, class,
				   (unsigned long long)m->slots[i]);
	}
	if (sum != m->sum)
		rh_problem(ck, &m->sum, "cache %u: class %u: sum", cache,
			   class);
}

static void check_caches(struct rh_check *ck)
{
	for (unsigned i = 0; i < RH_CACHES; i++) {
		const unsigned char *bytes = rh_cache_of(ck->h, i)->bytes;

		check_reserved(ck, bytes, RH_CACHE_FIRST, "cache");
		check_reserved(ck, bytes + RH_CACHE_END,
			       RH_CACHE - RH_CACHE_END, "cache");
		for (unsigned c = 0; c < RH_CLASSES; c++)
			check_magazine(ck, i, c);
	}
	qsort(ck->cached, ck->cached_n, sizeof(ck->cached[0]), by_offset);
	for (size_t i = 1; i < ck->cached_n; i++)
		if (ck->cached[i] == ck->cached[i - 1])
			rh_problem(ck, ck->h->mem + ck->cached[i],
				   "block is in two slots of caches");
}

static void check_root(struct rh_check *ck)
{
	const uint64_t *root = &ck->h->header->root;
	struct rh_block b;

	if (*root != 0 &&
	    (!rh_check_find(ck, *root, &b) || rh_is_cached(ck, *root)))
		rh_problem(ck, root, "header: root %llu is no block in use",
			   (unsigned long long)*root);
}

int rpmemfs_heap_check(struct rpmemfs_heap *h, rpmemfs_heap_report *report,
		       void *context)
{
	struct rh_check ck = { .h = h, .report = report, .context = context };

	ck.cached = malloc(CACHED_MAX * sizeof(ck.cached[0]));
	if (ck.cached == NULL)
		return -ENOMEM;
	if (check_header(&ck)) {
		check_caches(&ck);
		check_directory(&ck);
		rh_check_lists(&ck);
		check_root(&ck);
		check_fresh(&ck);
	}
	free(ck.cached);
	return ck.problems;
}
