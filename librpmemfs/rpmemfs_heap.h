/*
 * A heap in a region: malloc whose memory outlives the program.
 *
 * Everything the heap knows lies in the region, so an epoch commits or rolls
 * back blocks and their content as one. There is no recovery: the heap that
 * is found after a crash is the heap of the last committed epoch, and blocks
 * that were allocated later are free again. Pointers into the heap may be
 * stored in it; the region is always mapped at the same address.
 *
 * Any number of threads, of several processes that map the region at once,
 * may use a heap together. No call contains a restart point. A program without
 * restart points must not commit (msync) while one of its threads is inside a
 * call. After fork() the child may go on using the heap.
 *
 * A block freed twice, a pointer that no heap returned, and the like are
 * bugs that would damage the heap: the library says so on standard error and
 * calls abort(), and the open epoch is rolled back with the process.
 * Without guards some are only noticed a while later.
 */
#ifndef RPMEMFS_HEAP_H
#define RPMEMFS_HEAP_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default)

struct rpmemfs;
struct rpmemfs_heap;

enum {
	/*
	 * A new heap gets guards: 16 bytes at the end of each block that tell
	 * stores beyond the bytes asked for, and every second free, when the
	 * block is freed. An existing heap stays as it was created.
	 */
	RPMEMFS_HEAP_GUARDS = 1
};

/*
 * rpmemfs_heap_open opens the heap that is the content of a region, or
 * creates one if the region is new (its first page is zero). Creating becomes
 * durable with the next epoch. Close the heap before the region.
 *
 *	-EINVAL		the region holds something else, or is mapped elsewhere
 *	-EPROTO		a heap of another version
 *	-EUCLEAN	the heap is damaged; rpmemctl heap check says where
 *	-ENOMEM		no memory, or the region is too small and cannot grow
 */
int rpmemfs_heap_open(struct rpmemfs *region, unsigned flags,
		      struct rpmemfs_heap **out);

/*
 * rpmemfs_heap_close gives back what the process holds of the heap, not its
 * content. No other thread may be inside a call, nor call again.
 */
void rpmemfs_heap_close(struct rpmemfs_heap *heap);

/*
 * These are like their namesakes in C. A block is aligned to 16 bytes, and to
 * its size if that is a power of two up to 16384. NULL comes with errno:
 *
 *	ENOMEM		too large, or the region cannot grow
 *	EINVAL		alignment is no power of two, or above 64 MiB
 *	EUCLEAN		the heap is damaged
 *	EOWNERDEAD	another process died inside a call and the region was
 *			not rolled back within ten seconds
 *	ETIMEDOUT	another process has been inside a call for a minute
 */
void *rpmemfs_malloc(struct rpmemfs_heap *heap, size_t bytes);
void *rpmemfs_calloc(struct rpmemfs_heap *heap, size_t count, size_t bytes);
void *rpmemfs_realloc(struct rpmemfs_heap *heap, void *block, size_t bytes);
void *rpmemfs_aligned_alloc(struct rpmemfs_heap *heap, size_t alignment,
			    size_t bytes);
void rpmemfs_free(struct rpmemfs_heap *heap, void *block);

/* The bytes of a block that may be used: what was asked for, or more. */
size_t rpmemfs_usable_size(struct rpmemfs_heap *heap, const void *block);

/* The block by which a program finds its data; NULL in a new heap. */
void *rpmemfs_root(struct rpmemfs_heap *heap);

/*
 * rpmemfs_set_root makes block, or NULL, the root.
 *
 *	-EINVAL		block is no block of this heap
 *	-EOWNERDEAD, -ETIMEDOUT, -EUCLEAN as above
 */
int rpmemfs_set_root(struct rpmemfs_heap *heap, void *block);

/* Told one inconsistency: text names what is wrong, offset where (bytes). */
typedef void rpmemfs_heap_report(void *context, uint64_t offset,
				 const char *text);

/*
 * rpmemfs_heap_check walks the whole heap, calls report (if not NULL) for
 * every inconsistency, and returns their number, or a negative errno. It
 * changes nothing, and no damage makes it fail. No thread of any process may be
 * inside a call of the heap meanwhile.
 */
int rpmemfs_heap_check(struct rpmemfs_heap *heap, rpmemfs_heap_report *report,
		       void *context);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif

#endif
