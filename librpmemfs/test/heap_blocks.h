/* Blocks that say what they are, so that any overlap or loss is noticed. */
#ifndef HEAP_BLOCKS_H
#define HEAP_BLOCKS_H

#include <stdint.h>
#include <string.h>

#include "heap_expect.h"

struct block {
	uint64_t bytes;
	uint64_t tag; /* seed of the rest, XOR the offset */
	unsigned char rest[];
};

static inline uint64_t block_rng(uint64_t *rng)
{
	*rng ^= *rng << 13;
	*rng ^= *rng >> 7;
	*rng ^= *rng << 17;
	return *rng;
}

/* Mostly small, seldom huge. */
static inline size_t block_size(uint64_t r)
{
	switch (r % 64) {
	case 0:
		return 16 + (r >> 16) % 400000;
	case 1: case 2: case 3: case 4:
		return 16 + (r >> 16) % 40000;
	default:
		return 16 + (r >> 16) % 600;
	}
}

enum { BLOCK_EDGE = 512 };

/* Of large blocks only the first and last bytes are looked at. */
static inline size_t block_edge(const struct block *b)
{
	size_t n = b->bytes - sizeof(*b);

	return n < BLOCK_EDGE ? n : BLOCK_EDGE;
}

static inline unsigned char *block_last(struct block *b)
{
	return (unsigned char *)b + b->bytes - block_edge(b);
}

static inline void block_fill(struct block *b, size_t bytes, uint64_t offset,
			      uint64_t tag)
{
	b->bytes = bytes;
	b->tag = tag ^ offset;
	memset(b->rest, (int)(tag & 0xff), block_edge(b));
	memset(block_last(b), (int)(tag & 0xff), block_edge(b));
}

static inline void block_verify(struct block *b, uint64_t offset)
{
	unsigned char want = (unsigned char)(b->tag ^ offset);
	const unsigned char *last = block_last(b);

	for (size_t i = 0; i < block_edge(b); i++)
		EXPECT(b->rest[i] == want && last[i] == want);
}

#endif
