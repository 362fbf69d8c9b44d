#include "heap_check.h"

void rh_check_guard(struct rh_check *ck, const struct rh_block *b)
{
	const char *fault;

	if (!ck->h->guards)
		return;
	fault = rh_guard_fault(ck->h, b);
	if (fault != NULL)
		rh_problem(ck, ck->h->mem + b->offset, "block %s", fault);
}

static void check_small_guards(struct rh_check *ck, rh_span span,
			       unsigned class)
{
	const struct rh_class *c = &rh_classes[class];
	const uint64_t *bitmap = rh_desc_of(ck->h, span)->bitmap;

	for (unsigned no = 0; no < c->blocks && ck->h->guards; no++) {
		struct rh_block b = {
			.offset = rh_span_offset(span) + (uint64_t)no * c->size,
			.bytes = c->size,
		};

		if (!(bitmap[no / 64] >> no % 64 & 1) &&
		    !rh_is_cached(ck, b.offset))
			rh_check_guard(ck, &b);
	}
}

static void check_small(struct rh_check *ck, rh_span span, unsigned class)
{
	const struct rh_class *c = &rh_classes[class];
	const struct rh_desc *d = rh_desc_of(ck->h, span);
	unsigned set = 0, beyond = 0;

	for (unsigned no = 0; no < 1024; no++) {
		if (!(d->bitmap[no / 64] >> no % 64 & 1))
			continue;
		if (no < c->blocks)
			set++;
		else
			beyond++;
	}
	if (d->units != c->units || d->blocks != c->blocks ||
	    d->class != class || d->kind != RH_SMALL)
		rh_problem(ck, d, "span %u: %u units, %u blocks, class %d",
			   span, d->units, d->blocks, d->class);
	if (d->free != set || beyond != 0)
		rh_problem(ck, d, "span %u: %u free blocks, %u in the bitmap",
			   span, d->free, set + beyond);
	if (d->free != 0)
		ck->listable[class]++;
	else if (d->next != 0 || d->prev != 0)
		rh_problem(ck, d, "span %u: in a list without free blocks",
			   span);
	check_small_guards(ck, span, class);
}

static void check_large(struct rh_check *ck, rh_span span, unsigned units)
{
	const struct rh_desc *d = rh_desc_of(ck->h, span);

	if (d->units != units || d->blocks != 1 || d->free != 0 ||
	    d->class != 0 || d->kind != RH_LARGE || d->next != 0 ||
	    d->prev != 0 || !rh_is_zero(d->bitmap, sizeof(d->bitmap))) {
		rh_problem(ck, d, "large block at %llu: descriptor",
			   (unsigned long long)rh_span_offset(span));
		return;
	}
	struct rh_block b = {
		.offset = rh_span_offset(span),
		.bytes = rh_span_offset(units),
	};
	rh_check_guard(ck, &b);
}

/* Checks the span whose first unit is at map[0]; returns its units. */
static unsigned check_span(struct rh_check *ck, const struct rh_unit *map,
			   rh_span span, unsigned below)
{
	struct rh_unit u = map[0];
	unsigned n = 0;

	while (n < below && map[n].head == u.head && map[n].kind == u.kind &&
	       map[n].class == u.class)
		n++;
	if (u.head != span % RH_CHUNK_UNITS ||
	    (u.kind != RH_SMALL && u.kind != RH_LARGE) ||
	    u.class >= RH_CLASSES || (u.kind == RH_LARGE && u.class != 0) ||
	    (u.kind == RH_SMALL && n != rh_classes[u.class].units)) {
		rh_problem(ck, map, "unit %u: head %u, class %d, kind %d, %u "
			   "units", span, u.head, u.class, u.kind, n);
		return n > 0 ? n : 1;
	}
	const struct rh_desc *d = rh_desc_of(ck->h, span);
	if (!rh_is_zero(d->reserved, sizeof(d->reserved)))
		rh_problem(ck, d->reserved, "span %u: reserved bytes are not "
			   "zero", span);
	if (u.kind == RH_SMALL)
		check_small(ck, span, u.class);
	else
		check_large(ck, span, n);
	ck->end = rh_span_offset(span + n);
	return n;
}

void rh_check_chunk(struct rh_check *ck, uint32_t chunk)
{
	const struct rh_chunk *dir = &rh_dir(ck->h)[chunk];
	const struct rh_unit *map = rh_unit_map(ck->h, chunk);
	unsigned end = rh_units_below(ck->size, chunk);
	unsigned meta = rh_meta_units(chunk), used = meta;
	unsigned run = 0, longest = 0, first_free = RH_CHUNK_UNITS;

	for (unsigned i = 0; i < meta; i++)
		if (map[i].head != 0 || map[i].class != 0 ||
		    map[i].kind != RH_META)
			rh_problem(ck, &map[i], "chunk %u: unit %u is not "
				   "marked as metadata", chunk, i);
	for (unsigned i = meta, n; i < end; i += n) {
		n = 1;
		if (rh_is_zero(&map[i], sizeof(map[i]))) {
			if (i < first_free)
				first_free = i;
			if (++run > longest)
				longest = run;
			continue;
		}
		run = 0;
		n = check_span(ck, &map[i], chunk * RH_CHUNK_UNITS + i,
			       end - i);
		used += n;
	}
	if (!rh_is_zero(&map[end], (RH_CHUNK_UNITS - end) * sizeof(map[0])))
		rh_problem(ck, &map[end], "chunk %u: units beyond size", chunk);
	if (dir->count != used)
		rh_problem(ck, dir, "chunk %u: %u units in use, not %u", chunk,
			   dir->count, used);
	if (dir->longest < longest || dir->low * 16u > first_free)
		rh_problem(ck, dir, "chunk %u: %u free units at %u, longest "
			   "%u, low %d", chunk, longest, first_free,
			   dir->longest, dir->low);
}

/* Whether span begins a small span of the class. */
static bool begins(const struct rh_check *ck, rh_span span, unsigned class)
{
	struct rh_block b;
	uint64_t offset = rh_span_offset(span);
	uint64_t chunk = offset >> RH_CHUNK_SHIFT;

	return offset < ck->size && chunk < ck->chunks &&
	       rh_dir(ck->h)[chunk].kind == RH_CUT &&
	       rh_units_below(ck->size, chunk) >= rh_meta_units(chunk) &&
	       rh_find(ck->h, offset, &b) && b.span == span &&
	       b.class == class;
}

static void check_list(struct rh_check *ck, unsigned class)
{
	const struct rh_list *list = &ck->h->header->lists[class];
	rh_span prev = 0, span = list->first;
	unsigned n = 0;

	/* Ends: each span has one prev, and that of the first is 0. */
	while (span != 0) {
		if (!begins(ck, span, class)) {
			rh_problem(ck, list, "list %u: no span at unit %u",
				   class, span);
			return;
		}
		const struct rh_desc *d = rh_desc_of(ck->h, span);
		if (d->prev != prev || d->free == 0) {
			rh_problem(ck, d, "list %u: span %u: prev %u, free %u",
				   class, span, d->prev, d->free);
			return;
		}
		prev = span;
		span = d->next;
		n++;
	}
	if (list->last != prev || n != ck->listable[class])
		rh_problem(ck, list, "list %u: %u spans, last %u; have free "
			   "blocks: %u", class, n, list->last,
			   ck->listable[class]);
}

void rh_check_lists(struct rh_check *ck)
{
	for (unsigned c = 0; c < RH_CLASSES; c++)
		check_list(ck, c);
}
