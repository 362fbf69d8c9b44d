/*
 * A lock-based hash map, the first of the programs with which ResPCT was
 * evaluated: a lock for each bucket, uniform keys, lookups and updates, and a
 * restart point after each operation. The map is the same code in ordinary
 * memory (without FILE) and in a heap in a file of an rpmemfs mount. It has no
 * log and no recovery.
 *
 * Khorguani, Ropars, De Palma, "ResPCT: Fast Checkpointing in Non-volatile
 * Memory for Multi-threaded Applications", EuroSys 2022,
 * doi:10.1145/3492321.3519590.
 */
#define _GNU_SOURCE
#include <err.h>
#include <inttypes.h>
#include <stdio.h>

#include "memory.h"

#define MAGIC UINT64_C(0x3150414d48534148) /* "HASHMAP1" */

struct node {
	uint64_t key;
	uint64_t value;
	struct node *next;
};

/*
 * A tally is what one thread did, in a cache line of its own. The sum over
 * all threads must equal what is in the map: an operation that were in the
 * epoch by half would show.
 */
struct tally {
	uint64_t operations;
	uint64_t items;		/* inserted less removed; wraps around */
	uint64_t sum;		/* of fingerprints, likewise */
	uint64_t unused[5];
};

struct map {
	uint64_t magic;
	uint64_t buckets;
	uint64_t keys;
	struct node **bucket;
	uint64_t unused[4];
	struct tally tally[MAX_THREADS];
};

/* A run is what ends with the program. */
struct run {
	struct memory memory;
	struct map *map;
	pthread_mutex_t *lock;	/* of each bucket */
	unsigned reads;
};

static uint64_t fingerprint(uint64_t key, uint64_t value)
{
	uint64_t x = (key + 1) * UINT64_C(0x9e3779b97f4a7c15) ^ value;

	return x * (x >> 32 | 1);
}

/* Keys are their own hash: neighbours share pages, and the working set is as
 * large as its nodes. */
static uint64_t bucket_of(const struct map *map, uint64_t key)
{
	return key % map->buckets;
}

static bool lookup(struct run *run, uint64_t key, uint64_t *value)
{
	uint64_t no = bucket_of(run->map, key);
	struct node *node;

	pthread_mutex_lock(&run->lock[no]);
	node = run->map->bucket[no];
	while (node && node->key != key)
		node = node->next;
	if (node)
		*value = node->value;
	pthread_mutex_unlock(&run->lock[no]);
	return node != NULL;
}

static void insert(struct run *run, struct tally *tally, uint64_t key,
		   uint64_t value)
{
	uint64_t no = bucket_of(run->map, key);
	struct node **head = &run->map->bucket[no], *node;

	pthread_mutex_lock(&run->lock[no]);
	for (node = *head; node && node->key != key; node = node->next)
		;
	if (node) {
		tally->sum -= fingerprint(key, node->value);
		node->value = value;
	} else {
		node = memory_alloc(&run->memory, sizeof(*node));
		if (!node)
			err(1, "memory_alloc");
		*node = (struct node){ key, value, *head };
		*head = node;
		tally->items++;
	}
	tally->sum += fingerprint(key, value);
	pthread_mutex_unlock(&run->lock[no]);
}

static void delete(struct run *run, struct tally *tally, uint64_t key)
{
	uint64_t no = bucket_of(run->map, key);
	struct node **link = &run->map->bucket[no], *node;

	pthread_mutex_lock(&run->lock[no]);
	while (*link && (*link)->key != key)
		link = &(*link)->next;
	node = *link;
	if (node) {
		*link = node->next;
		tally->items--;
		tally->sum -= fingerprint(key, node->value);
		memory_free(&run->memory, node);
	}
	pthread_mutex_unlock(&run->lock[no]);
}

static void work(struct worker *self)
{
	struct run *run = self->arg;
	struct tally *tally = &run->map->tally[self->number];
	uint64_t keys = run->map->keys, value = 0;

	memory_restart_point(&run->memory);
	while (!workers_stop(self)) {
		uint64_t key = random_below(&self->random, keys);
		uint64_t dice = random_below(&self->random, 200);

		if (dice < 2 * run->reads) {
			lookup(run, key, &value);
		} else {
			if (dice & 1)
				insert(run, tally, key, self->random);
			else
				delete(run, tally, key);
			tally->operations++;
		}
		worker_did(self);
		memory_restart_point(&run->memory);
	}
}

/* create makes a map with every second key in it. */
static struct map *create(struct run *run, const struct workload *w)
{
	struct memory *m = &run->memory;
	struct map *map = memory_take_aligned(m, 64, sizeof(*map));

	map->buckets = w->buckets;
	map->keys = w->keys;
	map->bucket = memory_take(m, w->buckets * sizeof(map->bucket[0]));
	run->map = map;
	for (uint64_t key = 0; key < w->keys; key += 2)
		insert(run, &map->tally[0], key, key);
	map->magic = MAGIC;
	memory_set_root(m, map);
	return map;
}

static void make_locks(struct run *run, uint64_t buckets)
{
	run->lock = calloc(buckets, sizeof(run->lock[0]));
	if (!run->lock)
		err(1, "calloc");
	for (uint64_t i = 0; i < buckets; i++)
		pthread_mutex_init(&run->lock[i], NULL);
}

static struct map *open_map(struct run *run)
{
	struct map *map = memory_root(&run->memory);

	if (map && (!memory_holds(&run->memory, map, sizeof(*map)) ||
		    map->magic != MAGIC))
		errx(1, "holds something else");
	return map;
}

/* count walks the whole map; false when it finds what cannot be. */
static bool count(struct run *run, struct tally *found)
{
	struct map *map = run->map;
	struct memory *m = &run->memory;

	if (!memory_holds(m, map->bucket, map->buckets * sizeof(void *)))
		return false;
	for (uint64_t no = 0; no < map->buckets; no++) {
		struct node *node = map->bucket[no];
		uint64_t last = 0;

		for (; node; node = node->next) {
			if (!memory_holds(m, node, sizeof(*node)) ||
			    bucket_of(map, node->key) != no ||
			    node->key >= map->keys ||
			    ++last > map->keys / map->buckets + 1) {
				printf("bucket %" PRIu64 " is damaged\n", no);
				return false;
			}
			found->items++;
			found->sum += fingerprint(node->key, node->value);
		}
	}
	return true;
}

static bool check(struct run *run)
{
	struct tally found = { 0 }, want = { 0 };
	bool right;

	for (unsigned i = 0; i < MAX_THREADS; i++) {
		const struct tally *t = &run->map->tally[i];

		want.operations += t->operations;
		want.items += t->items;
		want.sum += t->sum;
	}
	right = count(run, &found) && found.items == want.items &&
		found.sum == want.sum;
	right = memory_sound(&run->memory) && right;
	printf("epoch %" PRIu64 ": %" PRIu64 " of %" PRIu64
	       " items, %" PRIu64 " updates: %s\n",
	       rpmemfs_committed(run->memory.region), found.items, want.items,
	       want.operations, right ? "consistent" : "INCONSISTENT");
	return right;
}

static void tick_epoch(void *arg, bool measured)
{
	struct run *run = arg;

	memory_checkpoint(&run->memory, measured);
}

int main(int argc, char **argv)
{
	struct workload w = workload_parse(argc, argv,
		"runs a hash map with a lock for each bucket");
	struct run run = { .reads = w.reads };
	bool right = true;

	memory_open(&run.memory, &w);
	run.map = open_map(&run);
	if (w.check) {
		right = !run.map || check(&run);
	} else {
		make_locks(&run, run.map ? run.map->buckets : w.buckets);
		if (!run.map)
			run.map = create(&run, &w);
		memory_idle(&run.memory);
		memory_checkpoint(&run.memory, false);
		workers_run(&w, work, &run, tick_epoch);
		memory_report(&run.memory);
	}
	memory_close(&run.memory);
	return right ? 0 : 1;
}
