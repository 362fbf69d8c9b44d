/*
 * alloc pairs|churn THREADS SECONDS [FILE]: takes and gives blocks of malloc,
 * or of a heap in FILE, and prints the figures of workers.h.
 *
 * alloc pages COUNT BYTES FILE: stores to COUNT new blocks and prints how many
 * pages that dirtied, first in a new heap, then in one that was filled and
 * half emptied at random.
 */
#define _GNU_SOURCE
#include "blocks.h"
#include "memory.h"

struct job {
	struct memory memory;
	enum pattern pattern;
};

static void *take(struct memory *m, size_t bytes)
{
	volatile char *p = memory_alloc(m, bytes);

	if (!p)
		err(1, "%zu bytes", bytes);
	*p = 1;
	return (void *)p;
}

static void pairs(struct worker *self, struct memory *m)
{
	while (!workers_stop(self)) {
		memory_free(m, take(m, 64));
		worker_did(self);
	}
}

static void churn(struct worker *self, struct memory *m)
{
	void *live[LIVE] = { NULL };

	while (!workers_stop(self)) {
		uint64_t i = random_below(&self->random, LIVE);

		if (live[i])
			memory_free(m, live[i]);
		live[i] = take(m, random_size(&self->random));
		worker_did(self);
	}
	for (unsigned i = 0; i < LIVE; i++)
		if (live[i])
			memory_free(m, live[i]);
}

static void work(struct worker *self)
{
	struct job *job = self->arg;

	if (job->pattern == PAIRS)
		pairs(self, &job->memory);
	else
		churn(self, &job->memory);
}

static uint64_t dirtied(struct memory *m)
{
	struct rpmemfs_stats s;
	int error;

	memory_checkpoint(m, false);
	error = rpmemfs_stats(m->region, &s);
	if (error)
		memory_fail(error);
	return s.pages + s.precopied;
}

/* fill takes blocks and stores to all of each. */
static uint64_t fill(struct memory *m, void **block, uint64_t count,
		     size_t bytes)
{
	for (uint64_t i = 0; i < count; i++) {
		block[i] = memory_alloc(m, bytes);
		if (!block[i])
			err(1, "%zu bytes", bytes);
		memset(block[i], (int)i, bytes);
	}
	return dirtied(m);
}

static void pages(struct memory *m, uint64_t count, size_t bytes)
{
	enum { AGED = 10 };	/* blocks in the aged heap for each new one */
	void **block = calloc(count, (AGED + 1) * sizeof(*block));
	uint64_t random = 42;

	if (!block)
		err(1, "calloc");
	/* What a heap needs once is not what 10,000 blocks cost. */
	memory_free(m, take(m, bytes));
	dirtied(m);
	printf("new %" PRIu64 "\n", fill(m, block, count, bytes));
	fill(m, block + count, AGED * count, bytes);
	for (uint64_t i = 0; i < (AGED + 1) * count; i++)
		if (next_random(&random) >> 63)
			memory_free(m, block[i]);
	dirtied(m);
	printf("aged %" PRIu64 "\n", fill(m, block, count, bytes));
	free(block);
}

int main(int argc, char **argv)
{
	struct workload w = { .threads = 1, .seconds = 1 };
	struct job job;

	if (argc < 4 || argc > 5)
		errx(2, "usage: see alloc.c");
	w.file = argc == 5 ? argv[4] : NULL;
	memory_open(&job.memory, &w);
	if (strcmp(argv[1], "pages") == 0 && w.file) {
		pages(&job.memory, number(argv[2], 1, 1 << 20),
		      number(argv[3], 1, 1 << 20));
	} else {
		job.pattern = parse_pattern(argv[1]);
		w.threads = (unsigned)number(argv[2], 1, MAX_THREADS);
		w.seconds = atof(argv[3]);
		memory_idle(&job.memory);
		workers_run(&w, work, &job, NULL);
	}
	memory_close(&job.memory);
	return 0;
}
