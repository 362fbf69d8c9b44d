/* Memory for heaps under test: a file that is not linked, mapped shared. */
#ifndef HEAP_MEM_H
#define HEAP_MEM_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../heap_attach.h"
#include "../rpmemfs_heap.h"

enum { HEAP_MEM_ALIGN = 64 << 20 };

static int heap_mem_grow(void *context, uint64_t size)
{
	struct heap_region *r = context;

	if (ftruncate(r->fd, (off_t)size) != 0)
		return -errno;
	r->size = size;
	return 0;
}

/* Maps fd over bytes of address space at a multiple of 64 MiB. */
static inline void *heap_mem_map(int fd, uint64_t bytes)
{
	unsigned char *p = mmap(NULL, bytes + HEAP_MEM_ALIGN, PROT_NONE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
				0);
	if (p == MAP_FAILED)
		return MAP_FAILED;
	p += -(uintptr_t)p % HEAP_MEM_ALIGN;
	return mmap(p, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
		    fd, 0);
}

/* A region of size bytes that can grow to most. */
static inline void heap_mem_open(struct heap_region *r, uint64_t size,
				 uint64_t most)
{
	*r = (struct heap_region){
		.mapped = most,
		.size = size,
		.fd = memfd_create("heap", MFD_CLOEXEC),
		.grow = heap_mem_grow,
		.context = r,
	};
	if (r->fd < 0 || ftruncate(r->fd, (off_t)size) != 0 ||
	    (r->mem = heap_mem_map(r->fd, most)) == MAP_FAILED) {
		perror("heap_mem_open");
		exit(2);
	}
}

static inline void heap_mem_close(struct heap_region *r)
{
	munmap(r->mem, r->mapped);
	close(r->fd);
}

#endif
