/*
 * The mapping of a region. All of the address space that the file may grow to
 * is mapped to it at once: growth by any process needs no call here.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "heap.h"
#include "region.h"

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

#define GIB (UINT64_C(1) << 30)
#define ALIGNMENT (UINT64_C(64) << 20)	/* a heap's chunk: docs/format.md */
#define DEFAULT_RESERVE (64 * GIB)

/*
 * Regions without a heap, or whose heap is to be made, are mapped where
 * neither the kernel nor allocators nor sanitizers put anything, at a place
 * that depends on the file: another process that maps other regions too is
 * likely to find it free.
 */
#define PLACES_FROM UINT64_C(0x200000000000)
enum { PLACES = 512, TRIES = 16 };

/* Present in programs built with ThreadSanitizer, which has all that space for
 * itself. */
extern void __tsan_init(void) __attribute__((weak));

uint64_t map_size(void *region)
{
	const struct rpmemfs *r = region;
	struct stat st;
	uint64_t size;

	if (fstat(r->fd, &st))
		return 0;
	size = ((uint64_t)st.st_size + PAGE - 1) / PAGE * PAGE;
	return size < r->reserve ? size : r->reserve;
}

/* map_at maps r at an address that must be free. */
static int map_at(struct rpmemfs *r, uint64_t address)
{
	void *want = (void *)(uintptr_t)address;
	void *got = mmap(want, r->reserve, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED_NOREPLACE, r->fd, 0);

	if (got == MAP_FAILED)
		return -errno;
	if (got != want) {	/* a kernel that takes it for a hint */
		munmap(got, r->reserve);
		return -EEXIST;
	}
	r->base = got;
	return 0;
}

/* map_anywhere lets the kernel choose an aligned place. */
static int map_anywhere(struct rpmemfs *r)
{
	uint64_t bytes = r->reserve + ALIGNMENT;
	uint8_t *all = mmap(NULL, bytes, PROT_NONE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uint64_t before, after;

	if (all == MAP_FAILED)
		return -errno;
	before = (ALIGNMENT - (uintptr_t)all % ALIGNMENT) % ALIGNMENT;
	after = bytes - before - r->reserve;
	if (mmap(all + before, r->reserve, PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_FIXED, r->fd, 0) == MAP_FAILED) {
		int error = errno;

		munmap(all, bytes);
		return -error;
	}
	if (before)
		munmap(all, before);
	if (after)
		munmap(all + before + r->reserve, after);
	r->base = all + before;
	return 0;
}

static int map_by_habit(struct rpmemfs *r)
{
	uint64_t step = (r->reserve + DEFAULT_RESERVE - 1) / DEFAULT_RESERVE;
	uint64_t place = r->ino * UINT64_C(0x9e3779b97f4a7c15) >> 55;

	for (int i = 0; i < TRIES && !__tsan_init; i++, place += step)
		if (map_at(r, PLACES_FROM +
				      place % PLACES * DEFAULT_RESERVE) == 0)
			return 0;
	return map_anywhere(r);
}

/* heap_base is where the heap in the file wants to be mapped; 0: none is. */
static uint64_t heap_base(const struct rpmemfs *r)
{
	struct rh_header header;
	ssize_t n = pread(r->fd, &header, sizeof(header), 0);

	if (n != sizeof(header) || rh_header_check(&header))
		return 0;
	return header.base;
}

int map_open(struct rpmemfs *r, const struct rpmemfs_options *opt)
{
	uint64_t address = (uintptr_t)opt->address;

	r->reserve = opt->reserve ? opt->reserve : DEFAULT_RESERVE;
	r->reserve = (r->reserve + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
	if (address % ALIGNMENT)
		return -EINVAL;
	if (!address)
		address = heap_base(r);
	if (address)
		return map_at(r, address);
	return map_by_habit(r);
}

int map_again(struct rpmemfs *r)
{
	char path[32];
	int fd, error = 0;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", r->fd);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	/* The same number: the heap keeps it too. */
	if (dup3(fd, r->fd, O_CLOEXEC) < 0 ||
	    mmap(r->base, r->reserve, PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_FIXED, r->fd, 0) == MAP_FAILED)
		error = -errno;
	close(fd);
	return error;
}

void map_close(struct rpmemfs *r)
{
	if (r->base)
		munmap(r->base, r->reserve);
	if (r->fd >= 0)
		close(r->fd);
}
