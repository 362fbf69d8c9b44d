/*
 * The thread protocol, driven by a helper of the test's own: more threads than
 * processors store to plain memory between restart points, block in all the
 * ways there are, come and go, while barriers follow each other without a
 * pause. At each barrier the helper looks for a half-made change, and for a
 * thread that runs. Under ThreadSanitizer any access of a thread between "all
 * are parked" and the release is a data race.
 *
 *	threads_test [SEED [SECONDS]]
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/eventfd.h>

#include "../futex.h"
#include "../threads.h"
#include "check.h"

enum { THREADS = 12, WORDS = 64 };

static struct threads all;
static _Atomic bool stop;
static uint64_t seed = 1;

/* Plain memory, each row its thread's: equal words at restart points. */
static uint64_t words[THREADS][WORDS];
static uint64_t shared[2];	/* the same, under mutex */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static _Atomic uint64_t steps;

static bool nothing_to_help(void *arg)
{
	(void)arg;
	return false;
}

static struct thread *join(void)
{
	struct thread *self = threads_find(&all);

	if (self)
		return self;
	CHECK_ERROR(threads_add(&all, &self), 0);
	CHECK_ERROR(thread_prevent(&all, self), 0);
	return self;
}

static void change(uint64_t *row, uint64_t *rng)
{
	for (int i = 0; i < WORDS; i++) {
		row[i]++;
		if (draw(rng) % 256 == 0)
			sched_yield();
	}
}

static void step(struct thread *self, uint64_t *row, uint64_t *rng)
{
	struct timespec until;

	change(row, rng);
	switch (draw(rng) % 16) {
	case 0:
		thread_allow(&all, self);
		sched_yield();
		CHECK_ERROR(thread_prevent(&all, self), 0);
		break;
	case 1:
		CHECK_ERROR(thread_mutex_lock(&all, self, &mutex), 0);
		shared[0]++;
		sched_yield();
		shared[1]++;
		pthread_cond_signal(&cond);
		CHECK_ERROR(-pthread_mutex_unlock(&mutex), 0);
		break;
	case 2:
		CHECK_ERROR(thread_mutex_lock(&all, self, &mutex), 0);
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_nsec += (long)(draw(rng) % 1000000);
		if (until.tv_nsec >= SEC) {
			until.tv_sec++;
			until.tv_nsec -= SEC;
		}
		(void)thread_cond_wait(&all, self, false, &cond, &mutex,
				       &until);
		shared[0]++;
		shared[1]++;
		CHECK_ERROR(-pthread_mutex_unlock(&mutex), 0);
		break;
	default:
		if (!thread_passes(&all))
			CHECK_ERROR(thread_park(&all, self), 0);
	}
	atomic_fetch_add(&steps, 1);
}

/* A short life: register, work, end (mostly without a word). */
static void *live(void *arg)
{
	uint64_t *row = arg;
	uint64_t rng = seed ^ (uintptr_t)row ^ atomic_load(&steps);
	uint64_t left = draw(&rng) % 2000;
	struct thread *self = join();

	while (left-- > 0 && !atomic_load(&stop))
		step(self, row, &rng);
	if (draw(&rng) % 2)
		threads_remove(&all, self);
	return NULL;
}

static void *respawn(void *arg)
{
	while (!atomic_load(&stop)) {
		pthread_t t;

		CHECK_ERROR(-pthread_create(&t, NULL, live, arg), 0);
		pthread_join(t, NULL);
	}
	return NULL;
}

static void consistent(void)
{
	for (int i = 0; i < THREADS; i++)
		for (int j = 1; j < WORDS; j++)
			CHECK(words[i][j] == words[i][0]);
	CHECK(shared[0] == shared[1]);
}

/* park makes a barrier due and waits until all are parked. False: it took too
 * long, and is called off. */
static bool park(int ms)
{
	uint64_t number = threads_raise(&all);
	uint64_t limit = after_ns((uint64_t)ms * MSEC);
	struct pollfd in = { .fd = all.wake, .events = POLLIN };
	eventfd_t drop;
	pid_t late;

	while (!threads_parked(&all, number, &late)) {
		if (now_ns() >= limit)
			return false;
		/* A wake-up that gets lost shows as this second. */
		CHECK(poll(&in, 1, 10000) == 1);
		eventfd_read(all.wake, &drop);
	}
	return true;
}

static void barriers(uint64_t seconds)
{
	static uint64_t before[THREADS][WORDS];
	uint64_t end = after_ns(seconds * SEC), rng = seed, n = 0, off = 0;

	while (now_ns() < end) {
		if (!park(10000)) {
			off++;
			threads_release(&all);
			continue;
		}
		n++;
		consistent();
		memcpy(before, words, sizeof(before));
		for (uint64_t i = draw(&rng) % 8; i > 0; i--)
			sched_yield();
		CHECK(memcmp(before, words, sizeof(before)) == 0);
		threads_release(&all);
		if (draw(&rng) % 4 == 0)
			sched_yield();
	}
	printf("threads_test: %llu barriers, %llu called off, %llu steps\n",
	       (unsigned long long)n, (unsigned long long)off,
	       (unsigned long long)atomic_load(&steps));
	CHECK(n > 10 && off == 0);
}

/* A restart point without a checkpoint due costs next to nothing. */
static void cost(void)
{
	enum { N = 20000000 };
	struct thread *self = join();
	uint64_t best = UINT64_MAX;

	for (int round = 0; round < 5; round++) {
		uint64_t begun = now_ns();

		for (int i = 0; i < N; i++) {
			if (!thread_passes(&all))
				CHECK_ERROR(thread_park(&all, self), 0);
			__asm__ volatile("" ::: "memory");
		}
		if (now_ns() - begun < best)
			best = now_ns() - begun;
	}
	printf("threads_test: restart point %.2f ns\n",
	       (double)best / (double)N);
	threads_remove(&all, self);
}

static void *waits(void *arg)
{
	struct thread *self = join();

	atomic_store((_Atomic int *)arg, 1);
	while (thread_park(&all, self) == 0)
		sched_yield();
	CHECK_ERROR(thread_park(&all, self), -EIO);
	thread_allow(&all, self);
	CHECK_ERROR(thread_prevent(&all, self), -EIO);
	CHECK_ERROR(thread_prevent(&all, self), -EIO);
	CHECK(!thread_passes(&all));
	return NULL;
}

/* An error frees who waits and meets every later restart point. */
static void failing(void)
{
	_Atomic int there = 0;
	pthread_t t;

	CHECK_ERROR(-pthread_create(&t, NULL, waits, &there), 0);
	while (!atomic_load(&there))
		sched_yield();
	CHECK(park(10000));
	threads_fail(&all, -EIO);
	pthread_join(t, NULL);
}

int main(int argc, char **argv)
{
	pthread_t t[THREADS];

	seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
	threads_init(&all, eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
		     nothing_to_help, NULL);
	cost();
	for (int i = 0; i < THREADS; i++)
		CHECK_ERROR(-pthread_create(&t[i], NULL, respawn, words[i]), 0);
	barriers(argc > 2 ? strtoull(argv[2], NULL, 10) : 3);
	atomic_store(&stop, true);
	for (int i = 0; i < THREADS; i++)
		pthread_join(t[i], NULL);
	failing();
	threads_end(&all);
	return 0;
}
