/*
 * heap_bench [seconds] compares the heap with the C library's malloc, in
 * millions of operations a second (one malloc or one free), and counts the
 * pages that small allocations dirty.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "heap_mem.h"

typedef void *take_fn(struct rpmemfs_heap *, size_t);
typedef void give_fn(struct rpmemfs_heap *, void *);

struct job {
	struct rpmemfs_heap *heap;
	take_fn *take;
	give_fn *give;
	double seconds;
	uint64_t ops;
};

static void *libc_take(struct rpmemfs_heap *heap, size_t n)
{
	(void)heap;
	return malloc(n);
}

static void libc_give(struct rpmemfs_heap *heap, void *p)
{
	(void)heap;
	free(p);
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static uint64_t next(uint64_t *rng)
{
	*rng ^= *rng << 13;
	*rng ^= *rng >> 7;
	*rng ^= *rng << 17;
	return *rng;
}

/* malloc and free of the same block, 16 to 512 bytes. */
static void *pairs(void *arg)
{
	struct job *j = arg;
	double end = now() + j->seconds;

	while (now() < end)
		for (size_t i = 0; i < 100000; i++) {
			void *p = j->take(j->heap, 16 + i % 32 * 16);
			*(volatile char *)p = 1;
			j->give(j->heap, p);
			j->ops += 2;
		}
	return NULL;
}

/* A thousand blocks taken in a row, then freed in the same order. */
static void *rows(void *arg)
{
	struct job *j = arg;
	double end = now() + j->seconds;
	void *p[1000];

	while (now() < end)
		for (int turn = 0; turn < 50; turn++) {
			for (size_t i = 0; i < 1000; i++) {
				p[i] = j->take(j->heap, 16 + i % 16 * 16);
				*(volatile char *)p[i] = 1;
			}
			for (size_t i = 0; i < 1000; i++)
				j->give(j->heap, p[i]);
			j->ops += 2000;
		}
	return NULL;
}

/* A random one of 10000 blocks is replaced by one of random size. */
static void replace(struct job *j, size_t most)
{
	enum { BLOCKS = 10000 };
	void **p = calloc(BLOCKS, sizeof(*p));
	uint64_t rng = 88172645463325252u;
	double end = now() + j->seconds;

	while (now() < end)
		for (int turn = 0; turn < 10000; turn++) {
			uint64_t r = next(&rng);
			size_t i = r % BLOCKS;

			j->give(j->heap, p[i]);
			p[i] = j->take(j->heap, 1 + (r >> 32) % most);
			*(volatile char *)p[i] = 1;
			j->ops += 2;
		}
	for (size_t i = 0; i < BLOCKS; i++)
		j->give(j->heap, p[i]);
	free(p);
}

static void *replace_small(void *arg)
{
	replace(arg, 256);
	return NULL;
}

static void *replace_mixed(void *arg)
{
	replace(arg, 4096);
	return NULL;
}

/* 64 blocks of 64 KiB to 1 MiB, replaced at random, first page touched. */
static void *large(void *arg)
{
	struct job *j = arg;
	void *p[64] = { NULL };
	uint64_t rng = 88172645463325252u;
	double end = now() + j->seconds;

	while (now() < end)
		for (int turn = 0; turn < 100; turn++) {
			uint64_t r = next(&rng);

			j->give(j->heap, p[r % 64]);
			p[r % 64] = j->take(j->heap,
					    65536 + (r >> 32) % 1000000);
			*(volatile char *)p[r % 64] = 1;
			j->ops += 2;
		}
	for (size_t i = 0; i < 64; i++)
		j->give(j->heap, p[i]);
	return NULL;
}

static double run(struct rpmemfs_heap *heap, void *(*work)(void *),
		  int threads, double seconds)
{
	struct job jobs[16];
	pthread_t tids[16];
	uint64_t ops = 0;
	double start = now();

	for (int i = 0; i < threads; i++) {
		jobs[i] = (struct job){
			.heap = heap,
			.take = heap != NULL ? rpmemfs_malloc : libc_take,
			.give = heap != NULL ? rpmemfs_free : libc_give,
			.seconds = seconds,
		};
		pthread_create(&tids[i], NULL, work, &jobs[i]);
	}
	for (int i = 0; i < threads; i++) {
		pthread_join(tids[i], NULL);
		ops += jobs[i].ops;
	}
	return (double)ops / (now() - start) / 1e6;
}

static void compare(const char *name, void *(*work)(void *), double seconds)
{
	for (int threads = 1; threads <= 2; threads++) {
		struct heap_region r;
		struct rpmemfs_heap *heap;
		double ours = 0, libc = 0;

		heap_mem_open(&r, 0, UINT64_C(4) << 30);
		if (rpmemfs_heap_attach(&r, 0, &heap) != 0)
			exit(2);
		/* Alternating, best of three: other load only ever slows. */
		for (int turn = 0; turn < 3; turn++) {
			double x = run(NULL, work, threads, seconds);
			libc = x > libc ? x : libc;
			x = run(heap, work, threads, seconds);
			ours = x > ours ? x : ours;
		}
		printf("%-14s threads %d  libc %6.1f  heap %6.1f  ratio %.2f\n",
		       name, threads, libc, ours, ours / libc);
		rpmemfs_heap_close(heap);
		heap_mem_close(&r);
	}
}

/* Pages that 10000 allocations change, in a heap that was just created. */
static void density(size_t least, size_t most)
{
	struct heap_region r;
	struct rpmemfs_heap *heap;
	size_t bytes = 0, pages = 0;
	uint64_t rng = 88172645463325252u;

	heap_mem_open(&r, 0, UINT64_C(1) << 30);
	if (rpmemfs_heap_attach(&r, 0, &heap) != 0)
		exit(2);
	size_t size = r.size;
	unsigned char *before = malloc(size);
	memcpy(before, r.mem, size);
	for (int i = 0; i < 10000; i++) {
		size_t n = least + next(&rng) % (most - least + 1);

		memset(rpmemfs_malloc(heap, n), 1, n);
		bytes += n;
	}
	const unsigned char *after = r.mem;
	for (size_t at = 0; at < r.size; at += 4096) {
		static const unsigned char zero[4096];
		const void *old = at < size ? before + at : zero;

		pages += memcmp(after + at, old, 4096) != 0;
	}
	free(before);
	printf("10000 of %zu to %zu bytes: %zu pages, %.2f of the bytes\n",
	       least, most, pages, (double)pages * 4096 / (double)bytes);
	rpmemfs_heap_close(heap);
	heap_mem_close(&r);
}

int main(int argc, char **argv)
{
	double seconds = argc > 1 ? atof(argv[1]) : 0.3;

	compare("pairs", pairs, seconds);
	compare("rows", rows, seconds);
	compare("replace 256", replace_small, seconds);
	compare("replace 4096", replace_mixed, seconds);
	compare("large", large, seconds);
	density(16, 16);
	density(64, 64);
	density(16, 128);
	density(16, 1024);
	density(1, 256);
	return 0;
}
