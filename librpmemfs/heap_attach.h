/* Opening a heap in any memory; rpmemfs_heap_open does it for a region. */
#ifndef HEAP_ATTACH_H
#define HEAP_ATTACH_H

#include <stddef.h>
#include <stdint.h>

struct rpmemfs_heap;

struct heap_region {
	void *mem;	 /* mapped shared, at a multiple of 64 MiB */
	uint64_t mapped; /* bytes of address space at mem; never changes */
	uint64_t size;	 /* bytes of it that exist now */
	uint64_t base;	 /* address to record instead of mem's, if not 0 */
	int fd;		 /* of the file behind mem; -1: all of mapped exists,
			    and only this process uses it */

	/*
	 * Makes the region at least size bytes large (at most mapped) for all
	 * who map it, new bytes zero; 0 or a negative errno. NULL: it cannot
	 * grow. Called with the heap's lock held.
	 */
	int (*grow)(void *context, uint64_t size);
	void *context;
};

/* As rpmemfs_heap_open. fd stays the caller's; *region is copied. */
int rpmemfs_heap_attach(const struct heap_region *region, unsigned flags,
			struct rpmemfs_heap **out);

#endif
