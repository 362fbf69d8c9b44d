/*
 * The hash map of hashmap.c on libpmemobj, to compare with: each update is a
 * transaction. FILE becomes a new pool. There are no checkpoints; an update is
 * durable when it returns. On tmpfs set PMEM_IS_PMEM_FORCE=1, or every
 * transaction calls msync.
 */
#define _GNU_SOURCE
#include <err.h>
#include <libpmemobj.h>
#include <stdlib.h>

#include "workers.h"

struct node {
	uint64_t key;
	uint64_t value;
	PMEMoid next;
};

enum { NODE = 1 };		/* type number */

struct run {
	PMEMobjpool *pool;
	PMEMoid *bucket;
	uint64_t buckets, keys;
	pthread_mutex_t *lock;
	unsigned reads;
};

static struct node *at(PMEMoid oid)
{
	return pmemobj_direct(oid);
}

static bool lookup(struct run *run, uint64_t key, uint64_t *value)
{
	uint64_t no = key % run->buckets;
	struct node *node;

	pthread_mutex_lock(&run->lock[no]);
	node = at(run->bucket[no]);
	while (node && node->key != key)
		node = at(node->next);
	if (node)
		*value = node->value;
	pthread_mutex_unlock(&run->lock[no]);
	return node != NULL;
}

static void begin(struct run *run)
{
	if (pmemobj_tx_begin(run->pool, NULL, TX_PARAM_NONE))
		errx(1, "begin: %s", pmemobj_errormsg());
}

static void change(void *p, size_t bytes)
{
	if (pmemobj_tx_add_range_direct(p, bytes))
		errx(1, "add range: %s", pmemobj_errormsg());
}

static void commit(void)
{
	pmemobj_tx_commit();
	if (pmemobj_tx_end())
		errx(1, "commit: %s", pmemobj_errormsg());
}

static void insert(struct run *run, uint64_t key, uint64_t value)
{
	uint64_t no = key % run->buckets;
	PMEMoid *head = &run->bucket[no], fresh;
	struct node *node;

	pthread_mutex_lock(&run->lock[no]);
	for (node = at(*head); node && node->key != key; node = at(node->next))
		;
	begin(run);
	if (node) {
		change(&node->value, sizeof(node->value));
		node->value = value;
	} else {
		fresh = pmemobj_tx_alloc(sizeof(*node), NODE);
		if (OID_IS_NULL(fresh))
			errx(1, "alloc: %s", pmemobj_errormsg());
		*at(fresh) = (struct node){ key, value, *head };
		change(head, sizeof(*head));
		*head = fresh;
	}
	commit();
	pthread_mutex_unlock(&run->lock[no]);
}

static void delete(struct run *run, uint64_t key)
{
	uint64_t no = key % run->buckets;
	PMEMoid *link = &run->bucket[no], old;

	pthread_mutex_lock(&run->lock[no]);
	while (at(*link) && at(*link)->key != key)
		link = &at(*link)->next;
	old = *link;
	if (at(old)) {
		begin(run);
		change(link, sizeof(*link));
		*link = at(old)->next;
		if (pmemobj_tx_free(old))
			errx(1, "free: %s", pmemobj_errormsg());
		commit();
	}
	pthread_mutex_unlock(&run->lock[no]);
}

static void work(struct worker *self)
{
	struct run *run = self->arg;
	uint64_t value = 0;

	while (!workers_stop(self)) {
		uint64_t key = random_below(&self->random, run->keys);
		uint64_t dice = random_below(&self->random, 200);

		if (dice < 2 * run->reads)
			lookup(run, key, &value);
		else if (dice & 1)
			insert(run, key, self->random);
		else
			delete(run, key);
		worker_did(self);
	}
}

int main(int argc, char **argv)
{
	struct workload w = workload_parse(argc, argv,
		"runs a hash map in a new libpmemobj pool FILE");
	struct run run = {
		.buckets = w.buckets, .keys = w.keys, .reads = w.reads,
	};
	size_t array = w.buckets * sizeof(PMEMoid);
	PMEMoid root;

	if (!w.file || w.check)
		errx(2, "a new FILE is needed");
	run.pool = pmemobj_create(w.file, "rpmemfs hash map",
				  2 * array + w.keys * 128 + (128U << 20),
				  0600);
	if (!run.pool)
		errx(1, "%s: %s", w.file, pmemobj_errormsg());
	root = pmemobj_root(run.pool, array);
	if (OID_IS_NULL(root))
		errx(1, "root: %s", pmemobj_errormsg());
	run.bucket = pmemobj_direct(root);
	run.lock = calloc(w.buckets, sizeof(run.lock[0]));
	if (!run.lock)
		err(1, "calloc");
	for (uint64_t i = 0; i < w.buckets; i++)
		pthread_mutex_init(&run.lock[i], NULL);
	for (uint64_t key = 0; key < w.keys; key += 2)
		insert(&run, key, key);
	workers_run(&w, work, &run, NULL);
	pmemobj_close(run.pool);
	return 0;
}
