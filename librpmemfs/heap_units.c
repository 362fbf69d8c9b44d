#include <errno.h>
#include <string.h>

#include "heap.h"

/*
 * Everything here works with the heap's lock held, and chooses as
 * docs/format.md, Sequences, says.
 */

static uint64_t max64(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static bool is_free(struct rh_unit u)
{
	return u.kind == RH_FREE;
}

static void put_span(struct rpmemfs_heap *h, rh_span span, unsigned from,
		     unsigned to, unsigned class, enum rh_unit_kind kind)
{
	struct rh_unit *map = rh_unit_of(h, span);
	struct rh_unit u = {
		.head = (uint16_t)(span % RH_CHUNK_UNITS),
		.class = (uint8_t)class,
		.kind = (uint8_t)kind,
	};

	for (unsigned i = from; i < to; i++)
		map[i] = u;
}

/* Makes chunk one that is cut into units; it is unused, or wholly free. */
static void chunk_cut(struct rpmemfs_heap *h, uint32_t chunk)
{
	struct rh_header *header = h->header;
	struct rh_unit *map = rh_unit_map(h, chunk);
	unsigned meta = rh_meta_units(chunk);

	memset(map, 0, RH_CHUNK_UNITS * sizeof(*map));
	for (unsigned i = 0; i < meta; i++)
		map[i].kind = RH_META;
	rh_dir(h)[chunk] = (struct rh_chunk){
		.kind = RH_CUT,
		.low = (uint8_t)(meta / 16),
		.longest = RH_CHUNK_UNITS,
		.count = meta,
	};
	header->normal++;
	if (header->chunks <= chunk)
		header->chunks = chunk + 1;
	if (header->first > chunk)
		header->first = chunk;
}

/* Returns the unit behind the span that unit i, which is not free, is in. */
static unsigned behind(struct rpmemfs_heap *h, uint32_t chunk, unsigned i)
{
	struct rh_unit u = rh_unit_map(h, chunk)[i];
	rh_span span = chunk * RH_CHUNK_UNITS + u.head % RH_CHUNK_UNITS;
	unsigned end = u.head;

	if (u.kind == RH_META)
		end = rh_meta_units(chunk);
	else
		end += rh_desc_of(h, span)->units;
	return end > i ? end : i + 1;
}

/* A run of free units, found or not, and the longest that was passed. */
struct run {
	unsigned start;
	unsigned longest;
	bool found;
};

static struct run find_run(struct rpmemfs_heap *h, uint32_t chunk, unsigned k,
			   unsigned align)
{
	const struct rh_unit *map = rh_unit_map(h, chunk);
	unsigned end = rh_units_below(h->header->size, chunk);
	unsigned i = rh_dir(h)[chunk].low * 16u;
	struct run run = { 0 };

	while (i < end && !is_free(map[i]))
		i = behind(h, chunk, i);
	/* Units beyond size count as free: they will be after growing. */
	rh_dir(h)[chunk].low =
		(uint8_t)((i < RH_CHUNK_UNITS ? i : RH_CHUNK_UNITS - 1) / 16);
	while (i < end) {
		unsigned from = i;
		unsigned start = (i + align - 1) / align * align;

		while (i < end && is_free(map[i]) && i < start + k)
			i++;
		if (i == start + k) {
			run.start = start;
			run.found = true;
			return run;
		}
		if (i - from > run.longest)
			run.longest = i - from;
		while (i < end && !is_free(map[i]))
			i = behind(h, chunk, i);
	}
	return run;
}

/* Searches the chunks that are cut. */
static bool find_in_cut(struct rpmemfs_heap *h, unsigned k, unsigned align,
			rh_span *span)
{
	struct rh_header *header = h->header;

	while (header->first < header->chunks &&
	       (rh_dir(h)[header->first].kind != RH_CUT ||
		rh_dir(h)[header->first].count >= RH_CHUNK_UNITS))
		header->first++;
	for (uint32_t c = header->first; c < header->chunks; c++) {
		struct rh_chunk *dir = &rh_dir(h)[c];

		if (dir->kind != RH_CUT || dir->longest < k)
			continue;
		struct run run = find_run(h, c, k, align);
		if (run.found) {
			*span = c * RH_CHUNK_UNITS + run.start;
			return true;
		}
		if (align == 1)
			dir->longest = (uint16_t)run.longest;
	}
	return false;
}

static unsigned first_start(unsigned align)
{
	return (RH_META_UNITS + align - 1) / align * align;
}

/* Makes the lowest unused chunk below size that could hold it one of kind 1. */
static bool cut_unused(struct rpmemfs_heap *h, unsigned k, unsigned align)
{
	struct rh_header *header = h->header;
	bool all_used = header->normal + header->huge == header->chunks;
	uint32_t c = all_used ? header->chunks : 1;

	/* The entry at chunks is unused too. */
	for (; c <= header->chunks && c < RH_CHUNKS; c++) {
		if (rh_dir(h)[c].kind != RH_UNUSED ||
		    rh_units_below(header->size, c) < first_start(align) + k)
			continue;
		chunk_cut(h, c);
		return true;
	}
	return false;
}

int rh_grow(struct rpmemfs_heap *h, uint64_t need)
{
	struct rh_header *header = h->header;
	uint64_t old = header->size;
	uint64_t chunk = old >> RH_CHUNK_SHIFT;
	const uint64_t mib = 1 << 20;

	if (need <= old)
		return 0;
	if (need > h->mapped || need > RH_SIZE_MAX || h->grow == NULL)
		return -ENOMEM;
	uint64_t want = (max64(need, old + old / 8) + mib - 1) / mib * mib;
	if (want > RH_SIZE_MAX)
		want = RH_SIZE_MAX;
	if (want > h->mapped || h->grow(h->context, want) != 0) {
		want = need;
		if (h->grow(h->context, want) != 0)
			return -ENOMEM;
	}
	header->size = want;
	if (chunk < header->chunks && rh_dir(h)[chunk].kind == RH_CUT)
		rh_dir(h)[chunk].longest = RH_CHUNK_UNITS;
	return 0;
}

/* Grows so that a search for k units can succeed. */
static int grow_for(struct rpmemfs_heap *h, unsigned k, unsigned align)
{
	struct rh_header *header = h->header;
	uint32_t c = header->chunks - 1;
	uint64_t start = RH_CHUNK_UNITS;

	if (rh_dir(h)[c].kind == RH_CUT) {
		const struct rh_unit *map = rh_unit_map(h, c);
		unsigned tail = RH_CHUNK_UNITS;

		while (tail > 0 && is_free(map[tail - 1]))
			tail--;
		start = (tail + align - 1) / align * align;
	}
	if (start + k > RH_CHUNK_UNITS) {
		c++;
		start = first_start(align);
	}
	return rh_grow(h, ((uint64_t)c * RH_CHUNK_UNITS + start + k)
				  << RH_UNIT_SHIFT);
}

static int find_units(struct rpmemfs_heap *h, unsigned k, unsigned align,
		      rh_span *span)
{
	for (int turn = 0; turn < 2; turn++) {
		if (find_in_cut(h, k, align, span))
			return 0;
		if (cut_unused(h, k, align) && find_in_cut(h, k, align, span))
			return 0;
		if (turn > 0)
			break;
		int err = grow_for(h, k, align);
		if (err != 0)
			return err;
	}
	return -EUCLEAN;
}

int rh_units_take(struct rpmemfs_heap *h, unsigned k, unsigned align,
		  unsigned class, enum rh_unit_kind kind, rh_span *span,
		  uint64_t *fresh)
{
	int err = find_units(h, k, align, span);
	if (err != 0)
		return err;

	struct rh_desc *d = rh_desc_of(h, *span);
	put_span(h, *span, 0, k, class, kind);
	rh_dir(h)[*span / RH_CHUNK_UNITS].count += k;
	*d = (struct rh_desc){
		.units = (uint16_t)k,
		.blocks = 1,
		.class = (uint8_t)class,
		.kind = (uint8_t)kind,
	};
	*fresh = h->header->top;
	h->header->top = max64(h->header->top, rh_span_offset(*span + k));
	return 0;
}

void rh_units_give(struct rpmemfs_heap *h, rh_span span, unsigned k)
{
	uint32_t chunk = span / RH_CHUNK_UNITS;
	unsigned head = span % RH_CHUNK_UNITS;
	struct rh_chunk *dir = &rh_dir(h)[chunk];

	memset(rh_unit_of(h, span), 0, k * sizeof(struct rh_unit));
	dir->count -= k;
	unsigned longest = 2u * dir->longest + k;
	unsigned all = RH_CHUNK_UNITS - dir->count;
	dir->longest = (uint16_t)(longest < all ? longest : all);
	if (dir->low > head / 16)
		dir->low = (uint8_t)(head / 16);
	if (h->header->first > chunk)
		h->header->first = chunk;
}

bool rh_units_resize(struct rpmemfs_heap *h, rh_span span, unsigned have,
		     unsigned want)
{
	struct rh_unit *map = rh_unit_of(h, span);
	uint32_t chunk = span / RH_CHUNK_UNITS;
	unsigned end = rh_units_below(h->header->size, chunk);

	if (want < have)
		rh_units_give(h, span + want, have - want);
	if (want > have) {
		if (span % RH_CHUNK_UNITS + want > end)
			return false;
		for (unsigned i = have; i < want; i++)
			if (!is_free(map[i]))
				return false;
		put_span(h, span, have, want, 0, RH_LARGE);
		rh_dir(h)[chunk].count += want - have;
		h->header->top =
			max64(h->header->top, rh_span_offset(span + want));
	}
	rh_desc_of(h, span)->units = (uint16_t)want;
	return true;
}

bool rh_fits_chunk(uint64_t k, uint64_t align)
{
	return align <= RH_CHUNK_UNITS / 2 && k <= RH_CHUNK_UNITS &&
	       first_start((unsigned)align) + k <= RH_CHUNK_UNITS;
}

/* Whether a huge block may lie on chunk c. */
static bool may_be_huge(const struct rpmemfs_heap *h, uint64_t c)
{
	const struct rh_chunk *dir = &rh_dir(h)[c];

	return c >= h->header->chunks || dir->kind == RH_UNUSED ||
	       (dir->kind == RH_CUT && dir->count == RH_META_UNITS);
}

static void put_huge(struct rpmemfs_heap *h, uint64_t chunk, uint64_t from,
		     uint64_t to)
{
	struct rh_header *header = h->header;

	for (uint64_t i = from; i < to; i++) {
		struct rh_chunk *dir = &rh_dir(h)[chunk + i];

		if (dir->kind == RH_CUT)
			header->normal--;
		*dir = (struct rh_chunk){
			.kind = RH_HUGE_REST,
			.count = (uint32_t)i,
		};
	}
	rh_dir(h)[chunk].kind = RH_HUGE;
	rh_dir(h)[chunk].count = (uint32_t)to;
	header->huge += (uint32_t)(to - from);
	if (header->chunks < chunk + to)
		header->chunks = (uint32_t)(chunk + to);
	header->top = max64(header->top, (chunk + to) << RH_CHUNK_SHIFT);
}

/*
 * A chunk that was cut has metadata in it: its bytes are not zero although
 * nothing below top may have been used.
 */
static uint64_t zero_from(const struct rpmemfs_heap *h, uint64_t chunk,
			  uint64_t n)
{
	uint64_t from = h->header->top;

	for (uint64_t c = chunk; c < chunk + n && c < h->header->chunks; c++)
		if (rh_dir(h)[c].kind != RH_UNUSED)
			from = max64(from, (c + 1) << RH_CHUNK_SHIFT);
	return from;
}

int rh_huge_take(struct rpmemfs_heap *h, uint64_t n, uint64_t *offset,
		 uint64_t *fresh)
{
	uint64_t run = 0, c = 1;

	for (; c < RH_CHUNKS && run < n; c++)
		run = may_be_huge(h, c) ? run + 1 : 0;
	if (run < n)
		return -ENOMEM;
	uint64_t chunk = c - n;
	int err = rh_grow(h, c << RH_CHUNK_SHIFT);
	if (err != 0)
		return err;
	*fresh = zero_from(h, chunk, n);
	put_huge(h, chunk, 0, n);
	*offset = chunk << RH_CHUNK_SHIFT;
	return 0;
}

void rh_huge_give(struct rpmemfs_heap *h, uint64_t chunk, uint64_t n)
{
	memset(&rh_dir(h)[chunk], 0, n * sizeof(struct rh_chunk));
	h->header->huge -= (uint32_t)n;
}

bool rh_huge_resize(struct rpmemfs_heap *h, uint64_t chunk, uint64_t have,
		    uint64_t want)
{
	if (want < have)
		rh_huge_give(h, chunk + want, have - want);
	for (uint64_t i = have; i < want; i++)
		if (chunk + i >= RH_CHUNKS || !may_be_huge(h, chunk + i))
			return false;
	if (want > have) {
		if (rh_grow(h, (chunk + want) << RH_CHUNK_SHIFT) != 0)
			return false;
		put_huge(h, chunk, have, want);
	}
	rh_dir(h)[chunk].count = (uint32_t)want;
	return true;
}
