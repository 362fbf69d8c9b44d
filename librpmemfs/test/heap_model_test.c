/*
 * heap_model_test [seed [operations]]: random operations by one thread, with
 * rollbacks, and by four that pass blocks to each other.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>

#include "heap_blocks.h"
#include "heap_mem.h"

enum { SLOTS = 3000, THREADS = 4 };

static const uint64_t most = UINT64_C(4) << 30;

static uint64_t offset_of(const struct heap_region *r, const void *p)
{
	return (uint64_t)((const char *)p - (const char *)r->mem);
}

struct world {
	struct heap_region *r;
	struct rpmemfs_heap *h;
	_Atomic(struct block *) slots[SLOTS];
	size_t steps;
	_Atomic uint64_t seed;
};

static struct block *take(struct world *w, uint64_t *rng)
{
	uint64_t r = block_rng(rng);
	size_t n = block_size(block_rng(rng));
	struct block *b;

	if (r % 8 == 0) {
		size_t align = (size_t)16 << (r >> 8) % 14;

		b = rpmemfs_aligned_alloc(w->h, align, n);
		EXPECT((uintptr_t)b % align == 0);
	} else if (r % 8 == 1) {
		b = rpmemfs_calloc(w->h, 1, n);
		for (size_t i = 0; b != NULL && i < n; i++)
			if (((char *)b)[i] != 0) {
				EXPECT(!"calloc: zeros");
				break;
			}
	} else {
		b = rpmemfs_malloc(w->h, n);
	}
	EXPECT(b != NULL && rpmemfs_usable_size(w->h, b) >= n);
	block_fill(b, n, offset_of(w->r, b), r >> 32);
	return b;
}

static void give(struct world *w, struct block *b)
{
	if (b == NULL)
		return;
	block_verify(b, offset_of(w->r, b));
	b->bytes = 0;
	rpmemfs_free(w->h, b);
}

static struct block *resize(struct world *w, struct block *b, uint64_t r)
{
	size_t n = block_size(r), old = b->bytes;

	block_verify(b, offset_of(w->r, b));
	uint64_t tag = b->tag ^ offset_of(w->r, b);
	b = rpmemfs_realloc(w->h, b, n);
	EXPECT(b != NULL && b->bytes == old);
	unsigned char want = (unsigned char)tag;
	for (size_t i = 0; i + 16 < old && i + 16 < n && i < 512; i++)
		EXPECT(b->rest[i] == want);
	block_fill(b, n, offset_of(w->r, b), tag);
	return b;
}

static void step(struct world *w, uint64_t *rng)
{
	uint64_t r = block_rng(rng);
	_Atomic(struct block *) *slot = &w->slots[(r >> 8) % SLOTS];
	struct block *b = NULL;

	switch (r % 4) {
	case 0:
		give(w, atomic_exchange(slot, NULL));
		break;
	case 1:
		b = atomic_exchange(slot, NULL);
		if (b != NULL)
			b = resize(w, b, block_rng(rng));
		give(w, atomic_exchange(slot, b));
		break;
	default:
		b = take(w, rng);
		give(w, atomic_exchange(slot, b));
	}
}

static void *work(void *arg)
{
	struct world *w = arg;
	uint64_t rng = atomic_fetch_add(&w->seed, 0x9e3779b97f4a7c15) | 1;

	for (size_t i = 0; i < w->steps; i++)
		step(w, &rng);
	return NULL;
}

static void begin(struct world *w, struct heap_region *r, unsigned flags,
		  uint64_t seed)
{
	heap_mem_open(r, 0, most);
	w->r = r;
	w->seed = seed;
	for (size_t i = 0; i < SLOTS; i++)
		w->slots[i] = NULL;
	EXPECT(rpmemfs_heap_attach(r, flags, &w->h) == 0);
}

/* Everything is given back: what stays in use are caches and empty spans. */
static void end(struct world *w)
{
	for (size_t i = 0; i < SLOTS; i++)
		give(w, w->slots[i]);
	EXPECT_SOUND(w->h);
	rpmemfs_heap_close(w->h);
	heap_mem_close(w->r);
}

static void alone(unsigned flags, uint64_t seed, size_t operations)
{
	static struct world w;
	static struct block *kept[SLOTS];
	struct heap_region r;
	uint64_t rng = seed | 1;
	unsigned char *image = NULL;
	uint64_t image_size = 0;

	begin(&w, &r, flags, seed);
	for (size_t i = 0; i < operations; i++) {
		step(&w, &rng);
		if (i % (operations / 20) != 0)
			continue;
		EXPECT_SOUND(w.h);
		if (image != NULL && block_rng(&rng) % 2) {
			/* As after the death of a member: back to the image. */
			memcpy(r.mem, image, image_size);
			EXPECT(ftruncate(r.fd, (off_t)image_size) == 0);
			EXPECT(ftruncate(r.fd, (off_t)r.size) == 0);
			for (size_t j = 0; j < SLOTS; j++)
				w.slots[j] = kept[j];
			EXPECT_SOUND(w.h);
		} else {
			free(image);
			image_size = r.size;
			image = malloc(image_size);
			memcpy(image, r.mem, image_size);
			for (size_t j = 0; j < SLOTS; j++)
				kept[j] = w.slots[j];
		}
	}
	free(image);
	end(&w);
}

static void together(unsigned flags, uint64_t seed, size_t operations)
{
	static struct world w;
	struct heap_region r;
	pthread_t tids[THREADS];

	begin(&w, &r, flags, seed);
	/* Threads come and go: caches change hands. */
	for (int turn = 0; turn < 5; turn++) {
		w.steps = operations / THREADS / 5;
		for (int i = 0; i < THREADS; i++)
			pthread_create(&tids[i], NULL, work, &w);
		for (int i = 0; i < THREADS; i++)
			pthread_join(tids[i], NULL);
		EXPECT_SOUND(w.h);
	}
	end(&w);
}

int main(int argc, char **argv)
{
	uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
	size_t operations = argc > 2 ? strtoull(argv[2], NULL, 10) : 250000;

	alone(0, seed, operations);
	alone(RPMEMFS_HEAP_GUARDS, seed, operations);
	together(0, seed, operations);
	together(RPMEMFS_HEAP_GUARDS, seed, operations);
	if (expect_failures != 0)
		fprintf(stderr, "heap_model_test %llu\n",
			(unsigned long long)seed);
	return expect_result("heap_model_test");
}
