/*
 * What the allocation benches of all allocators do: a thread takes and gives
 * blocks, as fast as it can.
 */
#ifndef BLOCKS_H
#define BLOCKS_H

#include <stdint.h>
#include <string.h>

#include "workers.h"

enum {
	LIVE = 1000,		/* blocks of a thread in use at once in churn */
	SMALLEST = 16,
	LARGEST = 256,
};

/* What of malloc/free is asked for: one block at a time of 64 bytes, or blocks
 * of random sizes in the place of others picked at random. */
enum pattern { PAIRS, CHURN };

static inline enum pattern parse_pattern(const char *word)
{
	if (strcmp(word, "pairs") == 0)
		return PAIRS;
	if (strcmp(word, "churn") == 0)
		return CHURN;
	errx(2, "%s: pairs or churn", word);
}

static inline size_t random_size(uint64_t *random)
{
	return SMALLEST + random_below(random, LARGEST - SMALLEST + 1);
}

#endif
