#include <errno.h>

#include "heap.h"

/*
 * Blocks of small spans. A span is in its class's list while it has free
 * blocks. Blocks are taken from the first span and freed spans join at the end,
 * so that a span collects free blocks for a while, and those handed out in a
 * row lie together.
 */

/* Whether span is one of the class: its descriptor can be trusted so far. */
static bool is_of_class(const struct rpmemfs_heap *h, rh_span span,
			unsigned class)
{
	if (span == 0 || rh_span_offset(span) >= h->header->size ||
	    rh_dir(h)[span / RH_CHUNK_UNITS].kind != RH_CUT)
		return false;
	struct rh_unit u = *rh_unit_of(h, span);
	return u.kind == RH_SMALL && u.class == class &&
	       u.head == span % RH_CHUNK_UNITS;
}

static int list_append(struct rpmemfs_heap *h, unsigned class, rh_span span)
{
	struct rh_list *list = &h->header->lists[class];
	struct rh_desc *d = rh_desc_of(h, span);

	d->next = 0;
	d->prev = list->last;
	if (list->last == 0) {
		list->first = span;
	} else {
		if (!is_of_class(h, list->last, class))
			return -EUCLEAN;
		rh_desc_of(h, list->last)->next = span;
	}
	list->last = span;
	return 0;
}

static int list_remove(struct rpmemfs_heap *h, unsigned class, rh_span span)
{
	struct rh_list *list = &h->header->lists[class];
	struct rh_desc *d = rh_desc_of(h, span);

	if ((d->prev != 0 && !is_of_class(h, d->prev, class)) ||
	    (d->next != 0 && !is_of_class(h, d->next, class)))
		return -EUCLEAN;
	if (d->prev != 0)
		rh_desc_of(h, d->prev)->next = d->next;
	else
		list->first = d->next;
	if (d->next != 0)
		rh_desc_of(h, d->next)->prev = d->prev;
	else
		list->last = d->prev;
	d->next = 0;
	d->prev = 0;
	return 0;
}

static int span_make(struct rpmemfs_heap *h, unsigned class)
{
	const struct rh_class *c = &rh_classes[class];
	uint64_t fresh;
	rh_span span;
	int err = rh_units_take(h, c->units, 1, class, RH_SMALL, &span, &fresh);

	if (err != 0)
		return err;
	struct rh_desc *d = rh_desc_of(h, span);
	d->blocks = c->blocks;
	d->free = c->blocks;
	for (unsigned b = 0; b < c->blocks; b += 64)
		d->bitmap[b / 64] = UINT64_MAX;
	if (c->blocks % 64 != 0)
		d->bitmap[c->blocks / 64] =
			(UINT64_C(1) << c->blocks % 64) - 1;
	return list_append(h, class, span);
}

/* Takes up to n free blocks of one span, lowest first. */
static unsigned span_take(struct rpmemfs_heap *h, unsigned class, rh_span span,
			  uint64_t *offsets, unsigned n)
{
	const struct rh_class *c = &rh_classes[class];
	struct rh_desc *d = rh_desc_of(h, span);
	uint64_t start = rh_span_offset(span);
	unsigned got = 0;

	for (unsigned w = 0; w * 64 < c->blocks && got < n; w++) {
		uint64_t bits = d->bitmap[w];

		for (; bits != 0 && got < n; bits &= bits - 1) {
			unsigned b = w * 64 + (unsigned)__builtin_ctzll(bits);
			offsets[got++] = start + (uint64_t)b * c->size;
		}
		d->bitmap[w] = bits;
	}
	d->free = (uint16_t)(d->free - got);
	return got;
}

static int take_locked(struct rpmemfs_heap *h, unsigned class,
		       uint64_t *offsets, unsigned n, unsigned *got)
{
	struct rh_list *list = &h->header->lists[class];

	if (list->first == 0) {
		int err = span_make(h, class);
		if (err != 0)
			return err;
	}
	while (*got < n && list->first != 0) {
		rh_span span = list->first;

		if (!is_of_class(h, span, class))
			return -EUCLEAN;
		unsigned took =
			span_take(h, class, span, offsets + *got, n - *got);
		if (took == 0)
			return -EUCLEAN;
		*got += took;
		if (rh_desc_of(h, span)->free == 0) {
			int err = list_remove(h, class, span);
			if (err != 0)
				return err;
		}
	}
	return 0;
}

int rh_blocks_take(struct rpmemfs_heap *h, unsigned class, uint64_t *offsets,
		   unsigned n, unsigned *got)
{
	*got = 0;
	int err = rh_lock(h);
	if (err != 0)
		return err;
	err = take_locked(h, class, offsets, n, got);
	rh_unlock(h);
	return *got > 0 ? 0 : err;
}

static int give_locked(struct rpmemfs_heap *h, unsigned class, uint64_t offset)
{
	const struct rh_class *c = &rh_classes[class];
	struct rh_list *list = &h->header->lists[class];
	uint64_t unit = offset >> RH_UNIT_SHIFT;

	if (offset >= h->header->size ||
	    rh_dir(h)[offset >> RH_CHUNK_SHIFT].kind != RH_CUT)
		return -EUCLEAN;
	struct rh_unit u = *rh_unit_of(h, (rh_span)unit);
	rh_span span = (rh_span)(unit - unit % RH_CHUNK_UNITS + u.head);
	if (!is_of_class(h, span, class) || span > unit)
		return -EUCLEAN;
	struct rh_desc *d = rh_desc_of(h, span);
	unsigned b = rh_block_no(c, offset - rh_span_offset(span));
	if (b >= c->blocks)
		return -EUCLEAN;
	uint64_t bit = UINT64_C(1) << b % 64;
	if (d->bitmap[b / 64] & bit)
		rh_misuse(h, offset, "was freed twice, some time ago");
	d->bitmap[b / 64] |= bit;
	d->free++;
	if (d->free == 1)
		return list_append(h, class, span);
	if (d->free == c->blocks && list->first != list->last) {
		int err = list_remove(h, class, span);
		if (err != 0)
			return err;
		rh_units_give(h, span, c->units);
	}
	return 0;
}

int rh_blocks_give(struct rpmemfs_heap *h, unsigned class,
		   const uint64_t *offsets, unsigned n)
{
	int err = rh_lock(h);
	if (err != 0)
		return err;
	for (unsigned i = 0; i < n; i++) {
		int e = give_locked(h, class, offsets[i]);
		if (err == 0)
			err = e;
	}
	rh_unlock(h);
	return err;
}
