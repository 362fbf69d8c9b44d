/*
 * A lock-based queue, the second of the programs with which ResPCT was
 * evaluated (see hashmap.c): the two-lock queue of Michael and Scott, "Simple,
 * Fast, and Practical Non-Blocking and Blocking Concurrent Queue Algorithms",
 * PODC 1996, doi:10.1145/248052.248106. Each thread puts and takes at random,
 * with a restart point after each operation.
 *
 * -k is the number of items that wait in it at the beginning; -b and -r mean
 * nothing here.
 */
#define _GNU_SOURCE
#include <err.h>
#include <inttypes.h>
#include <stdio.h>

#include "memory.h"

#define MAGIC UINT64_C(0x3145554555515350) /* "PSQUEUE1" */

struct node {
	uint64_t producer;
	uint64_t number;	/* counts the producer's items */
	_Atomic(struct node *) next;
};

/* A tally is what one thread did, in a cache line of its own. */
struct tally {
	uint64_t put;
	uint64_t taken;
	uint64_t unused[6];
};

struct queue {
	uint64_t magic;
	uint64_t unused[7];
	struct node *head;	/* what was taken last */
	uint64_t unused_too[7];
	struct node *tail;
	uint64_t unused_as_well[7];
	struct tally tally[MAX_THREADS];
};

struct run {
	struct memory memory;
	struct queue *queue;
	_Alignas(64) pthread_mutex_t head;
	_Alignas(64) pthread_mutex_t tail;
};

static struct node *make_node(struct memory *m, uint64_t producer,
			      uint64_t number)
{
	struct node *node = memory_alloc(m, sizeof(*node));

	if (!node)
		err(1, "memory_alloc");
	node->producer = producer;
	node->number = number;
	atomic_init(&node->next, NULL);
	return node;
}

static void put(struct run *run, struct worker *self)
{
	struct queue *q = run->queue;
	struct tally *tally = &q->tally[self->number];
	struct node *node = make_node(&run->memory, self->number, tally->put);

	tally->put++;
	pthread_mutex_lock(&run->tail);
	/* The queue may hold no item: then the taker reads this next. */
	atomic_store_explicit(&q->tail->next, node, memory_order_release);
	q->tail = node;
	pthread_mutex_unlock(&run->tail);
}

static void take(struct run *run, struct worker *self)
{
	struct queue *q = run->queue;
	struct node *old, *next;

	pthread_mutex_lock(&run->head);
	old = q->head;
	next = atomic_load_explicit(&old->next, memory_order_acquire);
	if (next)
		q->head = next;
	pthread_mutex_unlock(&run->head);
	if (!next)
		return;
	q->tally[self->number].taken++;
	memory_free(&run->memory, old);
}

static void work(struct worker *self)
{
	struct run *run = self->arg;

	memory_restart_point(&run->memory);
	while (!workers_stop(self)) {
		if (next_random(&self->random) >> 63)
			put(run, self);
		else
			take(run, self);
		worker_did(self);
		memory_restart_point(&run->memory);
	}
}

static struct queue *create(struct run *run, const struct workload *w)
{
	struct memory *m = &run->memory;
	struct queue *q = memory_take_aligned(m, 64, sizeof(*q));
	struct worker filler = { .number = 0 };

	q->head = q->tail = make_node(m, MAX_THREADS, 0);
	run->queue = q;
	for (uint64_t i = 0; i < w->keys; i++)
		put(run, &filler);
	q->magic = MAGIC;
	memory_set_root(m, q);
	return q;
}

static struct queue *open_queue(struct run *run)
{
	struct queue *q = memory_root(&run->memory);

	if (q && (!memory_holds(&run->memory, q, sizeof(*q)) ||
		  q->magic != MAGIC))
		errx(1, "holds something else");
	return q;
}

/*
 * walk follows the queue from its head. The items of one producer have to
 * stand in the order in which it put them, none missing, up to the last one.
 */
static bool walk(struct run *run, uint64_t most, uint64_t *items)
{
	const struct queue *q = run->queue;
	uint64_t next[MAX_THREADS] = { 0 };
	bool seen[MAX_THREADS] = { false };
	struct node *node = q->head;

	for (;;) {
		if (!memory_holds(&run->memory, node, sizeof(*node)))
			return false;
		if (!atomic_load(&node->next))
			break;
		node = atomic_load(&node->next);
		if (!memory_holds(&run->memory, node, sizeof(*node)) ||
		    node->producer >= MAX_THREADS || ++*items > most)
			return false;
		if (seen[node->producer] &&
		    node->number != next[node->producer])
			return false;
		seen[node->producer] = true;
		next[node->producer] = node->number + 1;
	}
	for (unsigned i = 0; i < MAX_THREADS; i++)
		if (seen[i] && next[i] != q->tally[i].put)
			return false;
	return node == q->tail;
}

static bool check(struct run *run)
{
	uint64_t put_all = 0, taken = 0, items = 0;
	bool right;

	for (unsigned i = 0; i < MAX_THREADS; i++) {
		put_all += run->queue->tally[i].put;
		taken += run->queue->tally[i].taken;
	}
	right = walk(run, put_all - taken, &items) &&
		items == put_all - taken;
	right = memory_sound(&run->memory) && right;
	printf("epoch %" PRIu64 ": %" PRIu64 " of %" PRIu64 " items, %" PRIu64
	       " put: %s\n", rpmemfs_committed(run->memory.region), items,
	       put_all - taken, put_all,
	       right ? "consistent" : "INCONSISTENT");
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
		"runs a queue with a lock at each end");
	struct run run = {
		.head = PTHREAD_MUTEX_INITIALIZER,
		.tail = PTHREAD_MUTEX_INITIALIZER,
	};
	bool right = true;

	memory_open(&run.memory, &w);
	run.queue = open_queue(&run);
	if (w.check) {
		right = !run.queue || check(&run);
	} else {
		if (!run.queue)
			run.queue = create(&run, &w);
		memory_idle(&run.memory);
		memory_checkpoint(&run.memory, false);
		workers_run(&w, work, &run, tick_epoch);
		memory_report(&run.memory);
	}
	memory_close(&run.memory);
	return right ? 0 : 1;
}
