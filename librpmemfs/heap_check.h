/* One walk of rpmemfs_heap_check. */
#ifndef HEAP_CHECK_H
#define HEAP_CHECK_H

#include "heap.h"

struct rh_check {
	const struct rpmemfs_heap *h;
	rpmemfs_heap_report *report;
	void *context;
	int problems;

	uint64_t size;	 /* bytes that may be looked at */
	uint32_t chunks; /* directory entries that lie within size */
	uint64_t end;	 /* of the last span or huge block */

	uint64_t *cached; /* offsets in magazines, in order */
	size_t cached_n;

	unsigned listable[RH_CLASSES]; /* spans with free blocks */
};

void rh_problem(struct rh_check *ck, const volatile void *where,
		const char *format, ...)
	__attribute__((format(printf, 3, 4)));


/*
 * Finds a block as rh_find does, below size. A small block that is free
 * in its span is none.
 */
bool rh_check_find(const struct rh_check *ck, uint64_t offset,
		   struct rh_block *out);
bool rh_is_cached(const struct rh_check *ck, uint64_t offset);

void rh_check_chunk(struct rh_check *ck, uint32_t chunk);
void rh_check_lists(struct rh_check *ck);
void rh_check_guard(struct rh_check *ck, const struct rh_block *b);

#endif
