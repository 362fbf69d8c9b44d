/*
 * restart FILE: what a restart point costs while no checkpoint is due. Prints
 * the median time of a call in picoseconds, loop included.
 */
#define _GNU_SOURCE
#include <err.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "rpmemfs.h"

enum { ROUNDS = 31, CALLS = 5000000 };

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000U + (uint64_t)t.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	struct rpmemfs_options options = {
		.flags = RPMEMFS_CREATE, .size = 1 << 20,
	};
	uint64_t took[ROUNDS];
	struct rpmemfs *region;
	int error;

	if (argc != 2)
		errx(2, "usage: restart FILE");
	error = rpmemfs_open(argv[1], &options, &region);
	if (error)
		errx(1, "%s: %s", argv[1], rpmemfs_strerror(error));
	for (int i = 0; i < ROUNDS; i++) {
		uint64_t begin = now();

		for (int n = 0; n < CALLS; n++) {
			error = rpmemfs_restart_point(region);
			if (error)
				errx(1, "%s", rpmemfs_strerror(error));
		}
		took[i] = now() - begin;
	}
	qsort(took, ROUNDS, sizeof(took[0]), by_size);
	printf("%" PRIu64 "\n", took[ROUNDS / 2] * 1000 / CALLS);
	rpmemfs_close(region);
	return 0;
}
