/*
 * How long threads stand still: stores to random pages of a large region in
 * epochs of 100 ms, and the median of the pauses.
 *
 *	pause [FILE]	of a mount; without: tmpfs and a daemon of its own
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "../futex.h"
#include "../rpmemfs.h"
#include "check.h"
#include "fake.h"

enum { EPOCHS = 15 };

static const uint64_t gib = UINT64_C(1) << 30;

static int by_size(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static uint64_t median(uint64_t *v)
{
	qsort(v, EPOCHS, sizeof(*v), by_size);
	return v[EPOCHS / 2];
}

struct load {
	struct rpmemfs *region;
	uint64_t pages, epoch_ns;
	_Atomic bool stop;
	_Atomic uint64_t stores;
};

/* storer stores to random pages at an even pace. */
static void *storer(void *arg)
{
	struct load *l = arg;
	uint8_t *base = rpmemfs_base(l->region);
	uint64_t last = now_ns(), rng = l->pages, stores = 0;

	while (!atomic_load(&l->stop)) {
		uint64_t now = now_ns(), want;

		/* Nothing is made up for after a pause. */
		want = (now - last < MSEC ? now - last : MSEC) * l->pages;
		want = stores + want / l->epoch_ns;
		if (want > stores)
			last = now;
		for (; stores < want; stores++) {
			base[draw(&rng) % (gib / 4096) * 4096]++;
			CHECK_ERROR(rpmemfs_restart_point(l->region), 0);
		}
		atomic_store(&l->stores, stores);
		nanosleep(&(struct timespec){ 0, 50000 }, NULL);
	}
	CHECK_ERROR(rpmemfs_thread_unregister(l->region), 0);
	return NULL;
}

static void measure(struct rpmemfs *r, uint64_t pages, uint64_t epoch_ns)
{
	uint64_t pause[EPOCHS], park[EPOCHS], scan[EPOCHS], copy[EPOCHS];
	uint64_t dirty[EPOCHS], begun = 0, stored = 0;
	struct load load = { r, pages, epoch_ns, false, 0 };
	struct rpmemfs_stats s;
	pthread_t t;

	CHECK_ERROR(-pthread_create(&t, NULL, storer, &load), 0);
	for (int e = -2; e < EPOCHS; e++) {
		if (e == 0) {
			begun = now_ns();
			stored = atomic_load(&load.stores);
		}
		nanosleep(&(struct timespec){ 0, (long)epoch_ns }, NULL);
		CHECK_ERROR(rpmemfs_checkpoint(r, 0, NULL), 0);
		CHECK_ERROR(rpmemfs_stats(r, &s), 0);
		if (e < 0)
			continue;
		pause[e] = s.pause_ns;
		park[e] = s.park_ns;
		scan[e] = s.scan_ns;
		copy[e] = s.copy_ns;
		dirty[e] = s.pages;
	}
	stored = atomic_load(&load.stores) - stored;
	begun = now_ns() - begun;
	atomic_store(&load.stop, true);
	pthread_join(t, NULL);
	printf("%6llu stores in %3llu ms: pause %6.2f ms (park %.2f scan %.2f "
	       "copy %.2f), %5llu pages in it, %5llu before in %llu rounds\n",
	       (unsigned long long)(stored / EPOCHS),
	       (unsigned long long)(begun / EPOCHS / MSEC),
	       (double)median(pause) / MSEC, (double)median(park) / MSEC,
	       (double)median(scan) / MSEC, (double)median(copy) / MSEC,
	       (unsigned long long)median(dirty),
	       (unsigned long long)s.precopied, (unsigned long long)s.rounds);
}

int main(int argc, char **argv)
{
	struct fake *f = argc > 1 ? NULL : fake_start(gib);
	struct rpmemfs_options opt = {
		.flags = RPMEMFS_CREATE, .size = gib,
		.timeout_ns = UINT64_C(10) * SEC,
	};
	struct rpmemfs *r;
	volatile uint8_t *p;

	setlinebuf(stdout);
	CHECK_ERROR(rpmemfs_open(f ? fake_path(f) : argv[1], &opt, &r), 0);
	if (f)
		fake_set(f, (struct fake_faults){ .blind = true });
	p = rpmemfs_base(r);
	for (uint64_t i = 0; i < gib; i += 4096)
		p[i] = 1;
	CHECK_ERROR(rpmemfs_checkpoint(r, RPMEMFS_WAIT, NULL), 0);
	CHECK_ERROR(rpmemfs_thread_unregister(r), 0);
	measure(r, 10, 10 * MSEC);
	measure(r, 1000, 100 * MSEC);
	measure(r, 10000, 100 * MSEC);
	measure(r, 50000, 100 * MSEC);
	rpmemfs_close(r);
	if (f)
		fake_stop(f);
	return 0;
}
