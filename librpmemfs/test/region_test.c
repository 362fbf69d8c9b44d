/*
 * The library against the daemon in fake.c, which compares what it got with
 * the file at every barrier.
 *
 *	region_test [SEED [TEST]]
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../futex.h"
#include "../ring.h"
#include "../rpmemfs.h"
#include "../track.h"
#include "check.h"
#include "fake.h"

enum { PAGE_SIZE = 4096, MIB = 1 << 20 };

static uint64_t seed;
static const char *self_path;

static struct rpmemfs *open_region(struct fake *f)
{
	struct rpmemfs *r;

	CHECK_ERROR(rpmemfs_open(fake_path(f), NULL, &r), 0);
	return r;
}

static uint64_t *word(struct rpmemfs *r, size_t page)
{
	return (uint64_t *)(void *)((char *)rpmemfs_base(r) + page * PAGE_SIZE);
}

static uint64_t image_word(struct fake *f, size_t page)
{
	uint64_t v;

	fake_image(f, page * PAGE_SIZE, &v, sizeof(v));
	return v;
}

static void nothing_wrong(struct fake *f)
{
	CHECK(fake_counts(f).wrong == 0);
}

/* How long a busy machine may take for what takes no time; only a test that
 * hangs comes to its end. */
#define PATIENCE (UINT64_C(60) * SEC)
enum { PATIENCE_MS = 60000 };

/* ThreadSanitizer makes all of this some ten times slower. */
#ifdef __SANITIZE_THREAD__
enum { FEWER = 5 };
#else
enum { FEWER = 1 };
#endif

/* eventually waits until a daemon's count has moved. */
#define EVENTUALLY(x)                                                          \
	do {                                                                   \
		uint64_t limit_ = after_ns(PATIENCE);                       \
		while (!(x)) {                                                 \
			CHECK(now_ns() < limit_);                              \
			usleep(1000);                                          \
		}                                                              \
	} while (0)

static void test_checkpoint(void)
{
	struct fake *f = fake_start(4 * MIB);
	struct rpmemfs *r = open_region(f);
	struct timespec soon = { .tv_nsec = 20000000 };
	struct rpmemfs_stats s;
	uint64_t epoch = 0;

	CHECK(rpmemfs_size(r) == 4 * MIB);
	CHECK((uintptr_t)rpmemfs_base(r) % (64 * MIB) == 0);
	CHECK(rpmemfs_committed(r) == 0 && rpmemfs_epoch(r) == 1);
	*word(r, 3) = 33;
	*word(r, 1000) = 44;
	CHECK_ERROR(rpmemfs_wait_durable(r, 1, &soon), -ETIMEDOUT);
	CHECK_ERROR(rpmemfs_wait_durable(r, 2, &soon), -EINVAL);
	CHECK_ERROR(rpmemfs_checkpoint(r, 2, NULL), -EINVAL);
	CHECK_ERROR(rpmemfs_checkpoint(r, RPMEMFS_WAIT, &epoch), 0);
	CHECK(epoch == 1 && rpmemfs_committed(r) == 1 && rpmemfs_epoch(r) == 2);
	CHECK(image_word(f, 3) == 33 && image_word(f, 1000) == 44);
	CHECK_ERROR(rpmemfs_stats(r, &s), 0);
	CHECK(s.barriers == 1 && s.called_off == 0);
	CHECK(s.precopied + s.pages == 2);
	*word(r, 3) = 34;
	CHECK_ERROR(rpmemfs_checkpoint(r, 0, &epoch), 0);
	CHECK(epoch == 2);
	CHECK_ERROR(rpmemfs_wait_durable(r, epoch, NULL), 0);
	CHECK(image_word(f, 3) == 34);
	CHECK_ERROR(rpmemfs_close(r), 0);
	EVENTUALLY(fake_counts(f).detached == 1);
	nothing_wrong(f);
	fake_stop(f);
}

/* Reading captures nothing; read(2) into the memory does. */
static void test_tracking(void)
{
	struct fake *f = fake_start(4 * MIB);
	struct rpmemfs *r = open_region(f);
	struct rpmemfs_stats s;
	uint64_t sum = 0;
	int zero = open("/dev/zero", O_RDONLY);

	for (size_t i = 0; i < 1024; i++)
		sum += *word(r, i);
	CHECK(sum == 0);
	CHECK_ERROR(rpmemfs_checkpoint(r, RPMEMFS_WAIT, NULL), 0);
	CHECK_ERROR(rpmemfs_stats(r, &s), 0);
	CHECK(s.precopied + s.pages == 0);
	CHECK(read(zero, word(r, 7), 100) == 100);
	CHECK_ERROR(rpmemfs_checkpoint(r, RPMEMFS_WAIT, NULL), 0);
	CHECK_ERROR(rpmemfs_stats(r, &s), 0);
	CHECK(s.precopied + s.pages == 1 &&
	      s.capture == RPMEMFS_CAPTURE_WP_ASYNC);
	close(zero);
	rpmemfs_close(r);
	nothing_wrong(f);
	fake_stop(f);
}

/*
 * Threads change memory everywhere; whatever a thread changes is consistent
 * at its restart points only: the sum of its words, and its counter that is
 * written before and after.
 */
enum { WORKERS = 6, REGION = 16 * MIB, PAGES = REGION / PAGE_SIZE };

struct worker {
	struct rpmemfs *region;
	unsigned number;
	_Atomic bool *stop;
	pthread_mutex_t *mutex;
};

static void transfer(struct worker *w, uint64_t *rng, uint64_t stamp)
{
	unsigned at = w->number;

	word(w->region, 0)[at] = stamp;
	for (int i = 0; i < 8; i++) {
		size_t from = 1 + draw(rng) % (PAGES - 2);
		size_t to = 1 + draw(rng) % (PAGES - 2);
		uint64_t coins = draw(rng);

		word(w->region, from)[at] -= coins;
		if (draw(rng) % 64 == 0)
			sched_yield();
		word(w->region, to)[at] += coins;
	}
	word(w->region, PAGES - 1)[at] = stamp;
}

static void *work(void *arg)
{
	struct worker *w = arg;
	uint64_t rng = seed + w->number, stamp = 0;

	CHECK_ERROR(rpmemfs_thread_register(w->region), 0);
	while (!atomic_load(w->stop)) {
		transfer(w, &rng, ++stamp);
		switch (draw(&rng) % 64) {
		case 0:
			CHECK_ERROR(rpmemfs_allow_checkpoint(w->region), 0);
			usleep(100);
			CHECK_ERROR(rpmemfs_prevent_checkpoint(w->region), 0);
			break;
		case 1:
			CHECK_ERROR(rpmemfs_mutex_lock(w->region, w->mutex), 0);
			usleep(50);
			pthread_mutex_unlock(w->mutex);
			break;
		case 2:
			CHECK_ERROR(rpmemfs_checkpoint(w->region, 0, NULL), 0);
			break;
		default:
			CHECK_ERROR(rpmemfs_restart_point(w->region), 0);
		}
	}
	return NULL;
}

static void check_image(const uint64_t *image)
{
	for (unsigned i = 0; i < WORKERS; i++) {
		uint64_t sum = 0;

		for (size_t p = 1; p < PAGES - 1; p++)
			sum += image[p * PAGE_SIZE / 8 + i];
		CHECK(sum == 0);
		CHECK(image[i] == image[(PAGES - 1) * (PAGE_SIZE / 8) + i]);
	}
}

static void many_threads(struct fake_faults faults)
{
	struct fake *f = fake_start(REGION);
	struct rpmemfs *r = open_region(f);
	pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	uint64_t *image = malloc(REGION);
	struct worker w[WORKERS];
	pthread_t t[WORKERS];
	_Atomic bool stop = false;

	fake_set(f, faults);
	for (unsigned i = 0; i < WORKERS; i++) {
		w[i] = (struct worker){ r, i, &stop, &mutex };
		CHECK_ERROR(-pthread_create(&t[i], NULL, work, &w[i]), 0);
	}
	for (int i = 0; i < 30; i++) {
		CHECK_ERROR(rpmemfs_checkpoint(r, i % 2 ? RPMEMFS_WAIT : 0,
					       NULL), 0);
		fake_image(f, 0, image, REGION);
		check_image(image);
		usleep((useconds_t)(draw(&seed) % 5000));
	}
	atomic_store(&stop, true);
	rpmemfs_allow_checkpoint(r);
	for (unsigned i = 0; i < WORKERS; i++)
		pthread_join(t[i], NULL);
	rpmemfs_close(r);
	nothing_wrong(f);
	fake_stop(f);
	free(image);
}

static void test_threads(void)
{
	many_threads((struct fake_faults){ 0 });
}

static void test_threads_not_sole(void)
{
	many_threads((struct fake_faults){ .no_sole = true, .extra = true });
}

/*
 * More pages at a barrier than the ring has frames, and more ranges of them
 * than the list of a scan: a thread stores to every second page between two
 * restart points.
 */
enum { LARGE = 160 * MIB, LARGE_PAGES = LARGE / PAGE_SIZE };

static void *sweep(void *arg)
{
	struct worker *w = arg;

	CHECK_ERROR(rpmemfs_thread_register(w->region), 0);
	for (uint64_t round = 1; !atomic_load(w->stop); round++) {
		for (size_t p = round / 4 % 2; p < LARGE_PAGES; p += 2)
			*word(w->region, p) = round;
		CHECK_ERROR(rpmemfs_restart_point(w->region), 0);
	}
	return NULL;
}

static void test_large(void)
{
	struct fake *f = fake_start(LARGE);
	struct rpmemfs *r = open_region(f);
	_Atomic bool stop = false;
	struct worker w = { r, 0, &stop, NULL };
	struct rpmemfs_stats s;
	uint64_t most = 0, without = 0;
	pthread_t t;

	CHECK_ERROR(rpmemfs_thread_unregister(r), 0);
	CHECK_ERROR(-pthread_create(&t, NULL, sweep, &w), 0);
	/* Until it has learned that rounds do not help: how soon depends on how
	 * much of the processor the thread gets. */
	for (int i = 0; i < 12 / FEWER || without <= 3; i++) {
		CHECK_ERROR(rpmemfs_checkpoint(r, RPMEMFS_WAIT, NULL), 0);
		for (size_t p = 2; p < LARGE_PAGES; p++)
			CHECK(image_word(f, p) == image_word(f, p - 2));
		CHECK_ERROR(rpmemfs_stats(r, &s), 0);
		most = s.pages > most ? s.pages : most;
		without += s.rounds == 0;
	}
	CHECK(most > RING_MAX_FRAMES);
	CHECK(fake_counts(f).kicks > 0);
	atomic_store(&stop, true);
	pthread_join(t, NULL);
	rpmemfs_close(r);
	nothing_wrong(f);
	fake_stop(f);
}

struct behind {
	struct fake *fake;
	unsigned timeout_ms;
};

static void *barrier_behind(void *arg)
{
	struct behind *b = arg;

	return (void *)(intptr_t)fake_barrier(b->fake, b->timeout_ms);
}

/* A daemon that takes no pages for a while: the barrier is late, or called
 * off, and nothing is lost. */
static void test_full_ring(void)
{
	enum { SIZE = 96 * MIB };
	struct fake *f = fake_start(SIZE);
	struct rpmemfs *r = open_region(f);
	pthread_t t;
	void *result;

	for (int too_long = 0; too_long < 2; too_long++) {
		struct behind b = { f, too_long ? 1000 : 30000 };

		for (size_t p = 0; p < SIZE / PAGE_SIZE; p++)
			*word(r, p) += 1;
		fake_set(f, (struct fake_faults){ .stall = true });
		CHECK_ERROR(-pthread_create(&t, NULL, barrier_behind, &b), 0);
		usleep(100000);
		if (!too_long)
			fake_set(f, (struct fake_faults){ 0 });
		CHECK_ERROR(rpmemfs_allow_checkpoint(r), 0);
		pthread_join(t, &result);
		CHECK((intptr_t)result == (too_long ? -ETIMEDOUT : 0));
		fake_set(f, (struct fake_faults){ 0 });
		CHECK_ERROR(rpmemfs_prevent_checkpoint(r), 0);
	}
	CHECK(fake_counts(f).untracked == 0);
	CHECK_ERROR(rpmemfs_checkpoint(r, RPMEMFS_WAIT, NULL), 0);
	CHECK(image_word(f, 23001) == 2);
	rpmemfs_close(r);
	nothing_wrong(f);
	fake_stop(f);
}

/* Copying ahead for a daemon that takes few pages in the time of a barrier ends
 * before a thread would be late. */
static void test_slow_ring(void)
{
	enum { SIZE = 96 * MIB };
	struct fake *f = fake_start(SIZE);
	struct rpmemfs *r = open_region(f);
	struct behind b = { f, 5000 };
	pthread_t t;
	void *result;

	for (size_t p = 0; p < SIZE / PAGE_SIZE; p++)
		*word(r, p) += 1;
	fake_set(f, (struct fake_faults){ .slow = true });
	CHECK_ERROR(-pthread_create(&t, NULL, barrier_behind, &b), 0);
	CHECK_ERROR(rpmemfs_allow_checkpoint(r), 0);
	pthread_join(t, &result);
	CHECK_ERROR((int)(intptr_t)result, 0);
	CHECK(fake_counts(f).untracked == 0);
	CHECK(fake_counts(f).precopied > 0 && fake_counts(f).copied > 0);
	CHECK_ERROR(rpmemfs_prevent_checkpoint(r), 0);
	CHECK(image_word(f, 23001) == 1);
	rpmemfs_close(r);
	nothing_wrong(f);
	fake_stop(f);
}

struct lazy {
	struct rpmemfs *region;
	_Atomic int go, tid;
};

static void *late_thread(void *arg)
{
	struct lazy *l = arg;

	pthread_setname_np(pthread_self(), "lazy");
	CHECK_ERROR(rpmemfs_restart_point(l->region), 0);
	*word(l->region, 5) = 1;
	atomic_store(&l->tid, gettid());
	while (!atomic_load(&l->go))
		usleep(1000);
	*word(l->region, 6) = 1;
	CHECK_ERROR(rpmemfs_restart_point(l->region), 0);
	return NULL;
}

/* A thread that does not come has the checkpoint called off, by its name. */
static void test_late(void)
{
	struct fake *f = fake_start(MIB);
	struct rpmemfs_options opt = { .timeout_ns = 100 * MSEC };
	struct rpmemfs_stats s;
	struct lazy l = { 0 };
	pthread_t t;

	CHECK_ERROR(rpmemfs_open(fake_path(f), &opt, &l.region), 0);
	CHECK_ERROR(-pthread_create(&t, NULL, late_thread, &l), 0);
	while (!atomic_load(&l.tid))
		usleep(1000);
	CHECK_ERROR(rpmemfs_checkpoint(l.region, 0, NULL), -ETIMEDOUT);
	CHECK_ERROR(rpmemfs_stats(l.region, &s), 0);
	CHECK(s.called_off == 1 && s.barriers == 0);
	CHECK(s.late_tid == (uint32_t)atomic_load(&l.tid));
	CHECK(strcmp(s.late_name, "lazy") == 0);
	CHECK(fake_counts(f).late_tid == s.late_tid);
	CHECK(strcmp(fake_counts(f).late_name, "lazy") == 0);
	CHECK(image_word(f, 5) == 0);
	atomic_store(&l.go, 1);
	pthread_join(t, NULL);
	CHECK_ERROR(rpmemfs_allow_checkpoint(l.region), 0);
	CHECK_ERROR(fake_barrier(f, PATIENCE_MS), 0);
	CHECK_ERROR(rpmemfs_prevent_checkpoint(l.region), 0);
	CHECK(image_word(f, 5) == 1 && image_word(f, 6) == 1);
	rpmemfs_close(l.region);
	nothing_wrong(f);
	fake_stop(f);
}

/* Stores to each page once. */
static void *crawl(void *arg)
{
	struct worker *w = arg;

	for (size_t p = 2; p < PAGES && !atomic_load(w->stop); p++) {
		CHECK_ERROR(rpmemfs_restart_point(w->region), 0);
		*word(w->region, p) = p;
		if (p % 16 == 0)
			usleep(1000);
	}
	return NULL;
}

/* Pages that one region found for a barrier that another calls off are in the
 * next one. */
static void test_late_other(void)
{
	struct fake *f = fake_start(REGION);
	struct rpmemfs_options opt = { .timeout_ns = 50 * MSEC };
	struct rpmemfs *a, *b = open_region(f);
	_Atomic bool stop = false;
	struct worker w = { .stop = &stop };
	pthread_t t;

	CHECK_ERROR(rpmemfs_open(fake_path(f), &opt, &a), 0);
	w.region = a;
	CHECK_ERROR(-pthread_create(&t, NULL, crawl, &w), 0);
	for (uint64_t i = 1; i < 4; i++) {
		uint64_t limit = after_ns(PATIENCE);
		struct rpmemfs_stats s;

		*word(a, 1) = i;
		/* b's thread, this one, is at no restart point of b. */
		CHECK_ERROR(rpmemfs_checkpoint(a, 0, NULL), -ETIMEDOUT);
		do {
			CHECK_ERROR(rpmemfs_stats(a, &s), 0);
			CHECK(now_ns() < limit);
		} while (s.called_off < i);
		CHECK_ERROR(rpmemfs_allow_checkpoint(a), 0);
		CHECK_ERROR(rpmemfs_allow_checkpoint(b), 0);
		CHECK_ERROR(fake_barrier(f, PATIENCE_MS), 0);
		CHECK_ERROR(rpmemfs_prevent_checkpoint(a), 0);
		CHECK_ERROR(rpmemfs_prevent_checkpoint(b), 0);
		CHECK(image_word(f, 1) == i);
	}
	atomic_store(&stop, true);
	pthread_join(t, NULL);
	rpmemfs_close(a);
	rpmemfs_close(b);
	nothing_wrong(f);
	fake_stop(f);
}

/* The daemon goes away, or talks nonsense: EIO, for ever. */
static void test_gone(void)
{
	for (int how = 0; how < 2; how++) {
		struct fake *f = fake_start(MIB);
		struct rpmemfs *r = open_region(f);
		uint64_t limit = after_ns(PATIENCE);

		*word(r, 1) = 1;
		if (how == 0)
			fake_hang_up(f);
		else
			fake_set(f, (struct fake_faults){ .garbage = true });
		while (rpmemfs_restart_point(r) == 0)
			CHECK(now_ns() < limit);
		fake_set(f, (struct fake_faults){ 0 });
		CHECK_ERROR(rpmemfs_restart_point(r), -EIO);
		CHECK_ERROR(rpmemfs_checkpoint(r, 0, NULL), -EIO);
		CHECK_ERROR(rpmemfs_wait_durable(r, 1, NULL), -EIO);
		CHECK_ERROR(rpmemfs_allow_checkpoint(r), -EIO);
		CHECK_ERROR(rpmemfs_prevent_checkpoint(r), -EIO);
		CHECK_ERROR(rpmemfs_restart_point(r), -EIO);
		CHECK_ERROR(rpmemfs_close(r), 0);
		fake_stop(f);
	}
}

static void test_refused(void)
{
	struct fake *f = fake_start(MIB);
	struct rpmemfs_options bad = { .flags = 8 }, full = { 0 };
	struct rpmemfs *r;

	fake_set(f, (struct fake_faults){ .refuse = -EPERM });
	CHECK_ERROR(rpmemfs_open(fake_path(f), NULL, &r), -EPERM);
	CHECK_ERROR(rpmemfs_open(fake_path(f), &bad, &r), -EINVAL);
	full.reserved[3] = 1;
	CHECK_ERROR(rpmemfs_open(fake_path(f), &full, &r), -EINVAL);
	CHECK_ERROR(rpmemfs_open("/dev/null", NULL, &r), -EOPNOTSUPP);
	CHECK_ERROR(rpmemfs_open("/proc/self/exe", NULL, &r), -ETXTBSY);
	CHECK_ERROR(rpmemfs_open("/nowhere", NULL, &r), -ENOENT);
	CHECK_ERROR(rpmemfs_close(NULL), 0);
	CHECK(strcmp(rpmemfs_strerror(-EPERM), "Operation not permitted") == 0);
	CHECK(strstr(rpmemfs_strerror(-EOWNERDEAD), "committed") != NULL);
	CHECK(strcmp(rpmemfs_strerror(12345), "unknown error") == 0);
	fake_stop(f);
}

static uint64_t sizes[4];	/* that growing_size returns, in turn */

static uint64_t growing_size(void *at)
{
	return sizes[(*(int *)at)++];
}

/* Pages that a growing file reached before they were armed count as stored to;
 * others that nobody touched do not. */
static void test_ahead(void)
{
	enum { SIZE = 256 * MIB };
	int fd = memfd_create("ahead", MFD_CLOEXEC), calls = 0;
	struct range list[16];
	struct track t;
	uint8_t *base;
	uint64_t at = 0;

	CHECK(fd >= 0 && ftruncate(fd, SIZE) == 0);
	base = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(base != MAP_FAILED);
	CHECK_ERROR(track_open(&t, base, SIZE), 0);
	track_arm(&t, PAGE);
	track_ahead(&t, 32 * MIB, growing_size, &calls);
	CHECK(calls == 0);

	/* As said before it grows: nothing. */
	sizes[0] = sizes[1] = PAGE;
	track_ahead(&t, 80 * MIB, growing_size, &calls);
	CHECK(calls == 2);
	CHECK_ERROR(track_scan(&t, &at, 144 * MIB, list, 16, SIZE), 0);
	base[100 * MIB] = 1;
	at = 0;
	CHECK_ERROR(track_scan(&t, &at, 144 * MIB, list, 16, SIZE), 1);
	CHECK(list[0].page == 100 * MIB / PAGE && list[0].count == 1);

	/* Overtaken. */
	sizes[2] = 90 * MIB;
	sizes[3] = 150 * MIB;
	track_ahead(&t, 140 * MIB, growing_size, &calls);
	CHECK(calls == 4);
	at = 0;
	CHECK_ERROR(track_scan(&t, &at, 150 * MIB, list, 16, SIZE), 1);
	CHECK(list[0].page == 144 * MIB / PAGE &&
	      list[0].count == 6 * MIB / PAGE);
	at = 0;
	CHECK_ERROR(track_scan(&t, &at, 150 * MIB, list, 16, SIZE), 0);
	track_close(&t);
	munmap(base, SIZE);
	close(fd);
}

/* The file grows under the program. */
static void test_grow(void)
{
	struct fake *f = fake_start(4 * MIB);
	struct rpmemfs_options opt = { .reserve = 64 * MIB };
	struct rpmemfs_stats s;
	struct rpmemfs *r;

	CHECK(truncate(fake_path(f), 5000) == 0);
	CHECK_ERROR(rpmemfs_open(fake_path(f), &opt, &r), 0);
	CHECK(rpmemfs_size(r) == 5000);
	*word(r, 1) = 1;
	CHECK_ERROR(rpmemfs_checkpoint(r, 0, NULL), 0);
	CHECK_ERROR(rpmemfs_grow(r, 2 * MIB), 0);
	CHECK_ERROR(rpmemfs_grow(r, MIB), 0);
	CHECK(rpmemfs_size(r) == 2 * MIB);
	*word(r, 400) = 2;
	CHECK_ERROR(rpmemfs_checkpoint(r, 0, NULL), 0);
	CHECK_ERROR(rpmemfs_stats(r, &s), 0);
	CHECK(s.precopied + s.pages == 1);	/* not what is untouched */
	CHECK(truncate(fake_path(f), 4 * MIB) == 0);	/* someone else */
	*word(r, 1000) = 3;
	CHECK_ERROR(rpmemfs_checkpoint(r, RPMEMFS_WAIT, NULL), 0);
	CHECK(image_word(f, 1) == 1 && image_word(f, 400) == 2 &&
	      image_word(f, 1000) == 3);
	CHECK_ERROR(rpmemfs_grow(r, 65 * MIB), -ENOMEM);
	rpmemfs_close(r);
	nothing_wrong(f);
	fake_stop(f);
}

static void test_address(void)
{
	struct fake *f = fake_start(MIB);
	struct rpmemfs_options opt = { .address = (void *)0x550000000000 };
	struct rpmemfs *r, *other;

	CHECK_ERROR(rpmemfs_open(fake_path(f), &opt, &r), 0);
	CHECK(rpmemfs_base(r) == opt.address);
	CHECK_ERROR(rpmemfs_open(fake_path(f), &opt, &other), -EEXIST);
	opt.address = (void *)0x550000001000;
	CHECK_ERROR(rpmemfs_open(fake_path(f), &opt, &other), -EINVAL);
	rpmemfs_close(r);
	fake_stop(f);
}

/* Two regions in one process, and one of them twice. */
static void test_several(void)
{
	struct fake *f = fake_start(MIB), *g = fake_start(MIB);
	struct rpmemfs *a = open_region(f), *b = open_region(g);
	struct rpmemfs *c = open_region(f);

	for (uint64_t i = 1; i < 20; i++) {
		*word(a, 1) = i;
		*word(b, 2) = i;
		*word(c, 3) = i;
		CHECK_ERROR(rpmemfs_allow_checkpoint(c), 0);
		CHECK_ERROR(rpmemfs_checkpoint(a, RPMEMFS_WAIT, NULL), 0);
		CHECK_ERROR(rpmemfs_prevent_checkpoint(c), 0);
		CHECK_ERROR(rpmemfs_checkpoint(b, RPMEMFS_WAIT, NULL), 0);
		CHECK(image_word(f, 1) == i && image_word(g, 2) == i &&
		      image_word(f, 3) == i);
		CHECK_ERROR(rpmemfs_restart_point(b), 0);
	}
	rpmemfs_close(a);
	*word(c, 3) = 99;
	CHECK_ERROR(rpmemfs_checkpoint(c, RPMEMFS_WAIT, NULL), 0);
	CHECK(image_word(f, 3) == 99);
	rpmemfs_close(c);
	rpmemfs_close(b);
	nothing_wrong(f);
	nothing_wrong(g);
	fake_stop(f);
	fake_stop(g);
}

static int ended(pid_t pid)
{
	int status;

	CHECK(waitpid(pid, &status, 0) == pid);
	return status;
}

/* run starts this program again for a role. */
static pid_t run(const char *role, struct fake *f)
{
	pid_t pid = vfork();

	if (pid == 0) {
		execl(self_path, self_path, role, fake_path(f), (char *)NULL);
		_exit(127);
	}
	return pid;
}

static void role_leaver(struct rpmemfs *r)
{
	*word(r, 9) = 9;	/* and returns from main */
}

static void role_victim(struct rpmemfs *r)
{
	*word(r, 1) = 666;
	*word(r, 2) = 666;
	_exit(0);
}

/* Dies and leaves a child that has made no call. */
static void role_parent(struct rpmemfs *r)
{
	*word(r, 1) = 666;
	if (fork() == 0) {
		alarm(40);	/* longer than the test waits */
		pause();
	}
	_exit(0);
}

/* Death of another program: what was not committed is gone, and everybody is
 * told, once. */
static void test_death(void)
{
	struct fake *f = fake_start(MIB);
	struct rpmemfs *r = open_region(f);
	uint64_t limit = after_ns(PATIENCE), epoch;
	struct rpmemfs_stats s;
	pid_t pid;
	int error;

	*word(r, 1) = 1;
	CHECK_ERROR(rpmemfs_checkpoint(r, RPMEMFS_WAIT, NULL), 0);
	*word(r, 3) = 3;
	epoch = rpmemfs_epoch(r);
	pid = run("victim", f);
	while ((error = rpmemfs_restart_point(r)) == 0)
		CHECK(now_ns() < limit);
	CHECK_ERROR(error, -EOWNERDEAD);
	CHECK_ERROR(rpmemfs_restart_point(r), 0);
	CHECK(*word(r, 1) == 1 && *word(r, 2) == 0 && *word(r, 3) == 0);
	CHECK(ended(pid) == 0);
	CHECK_ERROR(rpmemfs_stats(r, &s), 0);
	CHECK(s.lost == 1);
	CHECK(rpmemfs_epoch(r) == epoch);
	CHECK_ERROR(rpmemfs_wait_durable(r, epoch - 1, NULL), 0);
	*word(r, 4) = 4;
	CHECK_ERROR(rpmemfs_checkpoint(r, RPMEMFS_WAIT, NULL), 0);
	CHECK(image_word(f, 1) == 1 && image_word(f, 3) == 0 &&
	      image_word(f, 4) == 4);

	/* A thread that waits for an epoch that dies. */
	*word(r, 5) = 5;
	pid = run("victim", f);
	CHECK_ERROR(rpmemfs_wait_durable(r, rpmemfs_epoch(r), NULL),
		    -EOWNERDEAD);
	CHECK_ERROR(rpmemfs_restart_point(r), 0);
	CHECK(*word(r, 5) == 0);
	CHECK(ended(pid) == 0);

	/* A child that it leaves behind keeps nothing of it alive. */
	limit = after_ns(UINT64_C(30) * SEC);
	pid = run("parent", f);
	while ((error = rpmemfs_restart_point(r)) == 0)
		CHECK(now_ns() < limit);
	CHECK_ERROR(error, -EOWNERDEAD);
	CHECK(ended(pid) == 0);

	/* Who ends as programs should is not dead. */
	CHECK(ended(run("leaver", f)) == 0);
	EVENTUALLY(fake_counts(f).detached == 1);
	CHECK_ERROR(rpmemfs_checkpoint(r, RPMEMFS_WAIT, NULL), 0);
	CHECK(image_word(f, 9) == 9 && fake_counts(f).lost == 3);
	rpmemfs_close(r);
	nothing_wrong(f);
	fake_stop(f);
}

/* In a child of fork. */
static __attribute__((unused)) void child(struct rpmemfs *r, int how)
{
	alarm(120);
	CHECK_ERROR(rpmemfs_restart_point(r), 0);
	*word(r, 8) = (uint64_t)how + 1;
	CHECK_ERROR(rpmemfs_checkpoint(r, RPMEMFS_WAIT, NULL), 0);
	*word(r, 8) += 100;
	if (how == 0)
		rpmemfs_close(r);
	_exit(0);
}

static void test_fork(void)
{
#ifdef __SANITIZE_THREAD__
	fprintf(stderr, "region_test: fork: skipped: ThreadSanitizer knows no "
		"threads in children\n");
#else
	struct fake *f = fake_start(MIB);
	struct rpmemfs *r = open_region(f);
	int error = 0;
	pid_t pid;

	/* A child that only calls exec is nobody. */
	pid = fork();
	if (pid == 0) {
		execl("/bin/true", "true", (char *)NULL);
		_exit(127);
	}
	CHECK(ended(pid) == 0);
	CHECK_ERROR(rpmemfs_checkpoint(r, RPMEMFS_WAIT, NULL), 0);
	CHECK(fake_counts(f).members == 1 && fake_counts(f).lost == 0);

	for (int how = 0; how < 2; how++) {
		CHECK_ERROR(rpmemfs_allow_checkpoint(r), 0);
		pid = fork();
		if (pid == 0)
			child(r, how);
		CHECK(ended(pid) == 0);
		CHECK(fake_counts(f).members == 2 + (uint64_t)how);
		CHECK(image_word(f, 8) == (uint64_t)how + 1);
		if (how == 1)	/* ended without a word */
			EVENTUALLY(fake_counts(f).lost == 1);
		error = rpmemfs_prevent_checkpoint(r);
		CHECK(error == (how == 1 ? -EOWNERDEAD : 0));
		CHECK(*word(r, 8) == (how == 0 ? 101 : 2));
	}
	CHECK_ERROR(rpmemfs_checkpoint(r, RPMEMFS_WAIT, NULL), 0);
	rpmemfs_close(r);
	nothing_wrong(f);
	fake_stop(f);
#endif
}

static void *fork_often(void *arg)
{
	_Atomic bool *stop = arg;

	while (!atomic_load(stop)) {
		pid_t pid = fork();

		if (pid == 0)
			_exit(0);
		CHECK(ended(pid) == 0);
	}
	return NULL;
}

/* Forks while barriers and threads go on: no deadlock, nobody harmed. */
static void test_fork_often(void)
{
	struct fake *f = fake_start(MIB);
	struct rpmemfs *r = open_region(f);
	_Atomic bool stop = false;
	pthread_t t;

	CHECK_ERROR(-pthread_create(&t, NULL, fork_often, &stop), 0);
	for (uint64_t i = 1; i < 200 / FEWER; i++) {
		*word(r, i) = i;
		CHECK_ERROR(rpmemfs_checkpoint(r, 0, NULL), 0);
	}
	atomic_store(&stop, true);
	pthread_join(t, NULL);
	CHECK(fake_counts(f).members == 1 && fake_counts(f).lost == 0);
	rpmemfs_close(r);
	nothing_wrong(f);
	fake_stop(f);
}

/* Without userfaultfd the daemon is asked to drain. */
static void role_sandbox(struct rpmemfs *unused)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { 4, code };

	(void)unused;
	CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

static void test_drain(void)
{
	struct fake *f = fake_start(MIB);

	CHECK(ended(run("drain", f)) == 0);
	CHECK(fake_counts(f).drained == 1);
	CHECK(image_word(f, 77) == 7);
	nothing_wrong(f);
	fake_stop(f);
}

/* The same when tracking fails later. */
static void test_tracking_fails(void)
{
	struct fake *f = fake_start(MIB);
	struct rpmemfs *r = open_region(f);
	struct rpmemfs_stats s;
	int found = 0, null = open("/dev/null", O_RDONLY);

	*word(r, 1) = 1;
	CHECK_ERROR(rpmemfs_checkpoint(r, RPMEMFS_WAIT, NULL), 0);
	for (int fd = 3; fd < 64; fd++) {
		char name[64], path[64] = "";

		snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
		if (readlink(name, path, sizeof(path) - 1) > 0 &&
		    strstr(path, "/pagemap"))
			found += dup2(null, fd) == fd;
	}
	CHECK(found == 1);
	for (uint64_t i = 2; i < 5; i++) {
		*word(r, i) = i;
		CHECK_ERROR(rpmemfs_checkpoint(r, RPMEMFS_WAIT, NULL), 0);
		CHECK(image_word(f, i) == i);
		CHECK(fake_counts(f).drained == i - 1);
	}
	CHECK_ERROR(rpmemfs_stats(r, &s), 0);
	CHECK(s.capture == RPMEMFS_CAPTURE_DRAIN);
	close(null);
	rpmemfs_close(r);
	nothing_wrong(f);
	fake_stop(f);
}

static int role(const char *name, const char *path)
{
	bool drain = strcmp(name, "drain") == 0;
	struct rpmemfs_stats s;
	struct rpmemfs *r;

	alarm(120);
	if (drain)
		role_sandbox(NULL);
	CHECK_ERROR(rpmemfs_open(path, NULL, &r), 0);
	if (strcmp(name, "victim") == 0)
		role_victim(r);
	if (strcmp(name, "parent") == 0)
		role_parent(r);
	if (strcmp(name, "leaver") == 0)
		role_leaver(r);
	if (drain) {
		*word(r, 77) = 7;
		CHECK_ERROR(rpmemfs_checkpoint(r, RPMEMFS_WAIT, NULL), 0);
		CHECK_ERROR(rpmemfs_stats(r, &s), 0);
		CHECK(s.capture == RPMEMFS_CAPTURE_DRAIN);
	}
	return 0;
}

static const struct {
	const char *name;
	void (*run)(void);
} tests[] = {
	{ "checkpoint", test_checkpoint },
	{ "tracking", test_tracking },
	{ "threads", test_threads },
	{ "threads_not_sole", test_threads_not_sole },
	{ "large", test_large },
	{ "full_ring", test_full_ring },
	{ "slow_ring", test_slow_ring },
	{ "late", test_late },
	{ "late_other", test_late_other },
	{ "gone", test_gone },
	{ "refused", test_refused },
	{ "ahead", test_ahead },
	{ "grow", test_grow },
	{ "address", test_address },
	{ "several", test_several },
	{ "death", test_death },
	{ "fork", test_fork },
	{ "fork_often", test_fork_often },
	{ "drain", test_drain },
	{ "tracking_fails", test_tracking_fails },
};

int main(int argc, char **argv)
{
	self_path = argv[0];
	if (argc > 2 && strncmp(argv[2], "/", 1) == 0)
		return role(argv[1], argv[2]);
	for (size_t i = 0; i < sizeof(tests) / sizeof(*tests); i++) {
		if (argc > 2 && strcmp(argv[2], tests[i].name) != 0)
			continue;
		seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
		fprintf(stderr, "region_test: %s\n", tests[i].name);
		alarm(300);
		tests[i].run();
	}
	return 0;
}
