/*
 * alloc_pmemobj pairs|churn THREADS SECONDS FILE: what alloc.c does, with the
 * atomic allocator of libpmemobj (no transactions) in a new pool FILE.
 */
#define _GNU_SOURCE
#include <libpmemobj.h>

#include "blocks.h"

struct job {
	PMEMobjpool *pool;
	PMEMoid *live;		/* LIVE for each thread */
	enum pattern pattern;
};

static void take(struct job *job, PMEMoid *where, size_t bytes)
{
	if (pmemobj_alloc(job->pool, where, bytes, 1, NULL, NULL))
		errx(1, "alloc: %s", pmemobj_errormsg());
	*(volatile char *)pmemobj_direct(*where) = 1;
}

static void work(struct worker *self)
{
	struct job *job = self->arg;
	PMEMoid *live = job->live + (uint64_t)self->number * LIVE;

	while (!workers_stop(self)) {
		if (job->pattern == PAIRS) {
			take(job, &live[0], 64);
			pmemobj_free(&live[0]);
		} else {
			uint64_t i = random_below(&self->random, LIVE);

			pmemobj_free(&live[i]);
			take(job, &live[i], random_size(&self->random));
		}
		worker_did(self);
	}
}

int main(int argc, char **argv)
{
	struct workload w = { 0 };
	struct job job;
	PMEMoid root;

	if (argc != 5)
		errx(2, "usage: see alloc_pmemobj.c");
	job.pattern = parse_pattern(argv[1]);
	w.threads = (unsigned)number(argv[2], 1, MAX_THREADS);
	w.seconds = atof(argv[3]);
	job.pool = pmemobj_create(argv[4], "bench", 64U << 20, 0600);
	if (!job.pool)
		errx(1, "%s: %s", argv[4], pmemobj_errormsg());
	root = pmemobj_root(job.pool, w.threads * LIVE * sizeof(PMEMoid));
	if (OID_IS_NULL(root))
		errx(1, "root: %s", pmemobj_errormsg());
	job.live = pmemobj_direct(root);
	workers_run(&w, work, &job, NULL);
	pmemobj_close(job.pool);
	return 0;
}
