/* Golden heaps: calls from a file, and the nonzero bytes of a region as hex. */
#ifndef HEAP_GOLDEN_H
#define HEAP_GOLDEN_H

#include "heap_mem.h"

enum { GOLDEN_SIZE = 8 << 20 };
#define GOLDEN_BASE UINT64_C(0x200000000000)

void golden_play(struct rpmemfs_heap *h, const char *path);
void golden_write(const struct heap_region *r, const char *path);
void golden_read(struct heap_region *r, const char *path, uint64_t most);

#endif
