/*
 * The C side of the tests that let librpmemfs and package heap work on one heap.
 *
 *	peer replay FILE BASE [guards]	reads calls from standard input, does them
 *	peer swap FILE BASE SEED THREADS CALLS	works on a heap that others use too
 *	peer check FILE BASE		prints what is wrong with the heap
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "heap_attach.h"
#include "rpmemfs_heap.h"

static const uint64_t reserve = UINT64_C(2) << 30;
static const uint64_t align = UINT64_C(64) << 20;

static struct rpmemfs_heap *heap;
static unsigned char *mem;
static int fd;

static _Noreturn void die(const char *what, int err)
{
	fprintf(stderr, "peer: %s: %s\n", what, strerror(err));
	exit(1);
}

static int grow(void *context, uint64_t size)
{
	struct stat st;

	(void)context;
	if (fstat(fd, &st) != 0)
		return -errno;
	if ((uint64_t)st.st_size >= size)
		return 0;
	return ftruncate(fd, (off_t)size) == 0 ? 0 : -errno;
}

static void open_heap(const char *path, const char *base, unsigned flags)
{
	struct stat st;

	fd = open(path, O_RDWR);
	if (fd < 0 || fstat(fd, &st) != 0)
		die(path, errno);
	/* A heap lies at a multiple of 64 MiB. */
	unsigned char *space = mmap(NULL, reserve + align, PROT_NONE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (space == MAP_FAILED)
		die("mmap", errno);
	space += align - (uintptr_t)space % align;
	mem = mmap(space, reserve, PROT_READ | PROT_WRITE,
		   MAP_SHARED | MAP_FIXED, fd, 0);
	if (mem == MAP_FAILED)
		die("mmap", errno);
	struct heap_region region = {
		.mem = mem,
		.mapped = reserve,
		.size = (uint64_t)st.st_size,
		.base = strtoull(base, NULL, 0),
		.fd = fd,
		.grow = grow,
	};
	int err = rpmemfs_heap_attach(&region, flags, &heap);
	if (err != 0)
		die("attach", -err);
}

/* Calls from standard input: blocks have numbers. */

enum { BLOCKS = 100000 };

static int replay(void)
{
	static unsigned char *blocks[BLOCKS];
	char call;
	unsigned no;
	uint64_t size, at;

	while (scanf(" %c %u %" SCNu64 " %" SCNu64, &call, &no, &size,
		     &at) == 4) {
		if (no >= BLOCKS)
			die("block number", ERANGE);
		unsigned char **p = &blocks[no];
		switch (call) {
		case 'a':
			*p = rpmemfs_calloc(heap, 1, size);
			break;
		case 'A':
			*p = rpmemfs_aligned_alloc(heap, at, size);
			if (*p != NULL)
				memset(*p, 0, size);
			break;
		case 'r':
			*p = rpmemfs_realloc(heap, *p, size);
			break;
		case 'f':
			rpmemfs_free(heap, *p);
			*p = NULL;
			continue;
		case 's':
			if (rpmemfs_set_root(heap, *p) != 0)
				die("set root", EINVAL);
			continue;
		default:
			die("call", EINVAL);
		}
		if (*p == NULL)
			die("allocate", errno);
		if (size > 0)
			(*p)[size - 1] = (unsigned char)no;
	}
	return 0;
}

/*
 * The root block is an array of offsets of blocks. A call takes a block out of a
 * place, puts another one there, and verifies and frees what it took: mostly what
 * another thread or process made.
 */

enum { SLOTS = 4096 };

struct head {
	uint64_t size;
	uint64_t key;
};

struct worker {
	pthread_t thread;
	uint64_t random;
	uint64_t calls;
};

static uint64_t next(uint64_t *x)
{
	*x += 0x9e3779b97f4a7c15;
	uint64_t z = *x;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static uint64_t draw_size(uint64_t *random)
{
	uint64_t n = next(random) % 1000, r = next(random);

	return sizeof(struct head) + (n < 900 ? r % 400 :
				      n < 998 ? r % 60000 :
						r % 3000000);
}

static void fill(struct head *b, uint64_t size, uint64_t key)
{
	uint64_t *words = (uint64_t *)(void *)b;

	for (uint64_t i = 2; i < size / 8; i += 1 + i / 8)
		words[i] = key + i;
	b->size = size;
	b->key = key;
}

static void verify(const struct head *b)
{
	const uint64_t *words = (const uint64_t *)(const void *)b;
	size_t usable = rpmemfs_usable_size(heap, b);

	if (b->size < sizeof(*b) || b->size > usable) {
		fprintf(stderr, "peer: block of %zu bytes says %" PRIu64 "\n",
			usable, b->size);
		exit(1);
	}
	for (uint64_t i = 2; i < b->size / 8; i += 1 + i / 8)
		if (words[i] != b->key + i)
			die("a block changed", EUCLEAN);
}

static void *work(void *arg)
{
	struct worker *w = arg;
	_Atomic uint64_t *slots = rpmemfs_root(heap);

	for (uint64_t i = 0; i < w->calls; i++) {
		uint64_t place = next(&w->random) % SLOTS;
		uint64_t put = 0;

		if (next(&w->random) % 3 > 0) {
			uint64_t size = draw_size(&w->random);
			struct head *b = rpmemfs_malloc(heap, size);

			if (b == NULL)
				die("malloc", errno);
			fill(b, size, next(&w->random));
			put = (uint64_t)((unsigned char *)b - mem);
		}
		uint64_t taken = atomic_exchange(&slots[place], put);
		if (taken == 0)
			continue;
		struct head *b = (void *)(mem + taken);
		verify(b);
		if (next(&w->random) % 8 == 0) {
			uint64_t size = draw_size(&w->random);
			uint64_t key = b->key;

			b = rpmemfs_realloc(heap, b, size);
			if (b == NULL)
				die("realloc", errno);
			if (b->key != key)
				die("realloc lost the content", EUCLEAN);
			fill(b, size, key);
			verify(b);
		}
		rpmemfs_free(heap, b);
	}
	return NULL;
}

static int swap(uint64_t seed, unsigned threads, uint64_t calls)
{
	struct worker *w = calloc(threads, sizeof(*w));

	if (w == NULL || rpmemfs_root(heap) == NULL)
		die("root", EINVAL);
	for (unsigned i = 0; i < threads; i++) {
		w[i].random = seed + i;
		w[i].calls = calls / threads;
		int err = pthread_create(&w[i].thread, NULL, work, &w[i]);
		if (err != 0)
			die("thread", err);
	}
	for (unsigned i = 0; i < threads; i++)
		pthread_join(w[i].thread, NULL);
	free(w);
	return 0;
}

static void report(void *context, uint64_t offset, const char *text)
{
	(void)context;
	printf("%" PRIu64 ": %s\n", offset, text);
}

static int check(void)
{
	int problems = rpmemfs_heap_check(heap, report, NULL);

	if (problems < 0)
		die("check", -problems);
	return problems > 0;
}

int main(int argc, char **argv)
{
	int code = 2;

	if (argc < 4)
		return code;
	bool guards = argc == 5 && strcmp(argv[4], "guards") == 0;
	open_heap(argv[2], argv[3], guards ? RPMEMFS_HEAP_GUARDS : 0);
	if (strcmp(argv[1], "replay") == 0)
		code = replay();
	else if (strcmp(argv[1], "check") == 0)
		code = check();
	else if (strcmp(argv[1], "swap") == 0 && argc == 7)
		code = swap(strtoull(argv[4], NULL, 0),
			    (unsigned)atoi(argv[5]),
			    strtoull(argv[6], NULL, 0));
	rpmemfs_heap_close(heap);
	return code;
}
