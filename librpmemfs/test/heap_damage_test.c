/*
 * heap_damage_test [seed [stride]] changes every strideth byte of a heap's
 * metadata, one at a time. The check reports it, or it is harmless: the
 * blocks in use stay what they are when others come and go.
 */
#define _GNU_SOURCE
#include "../heap.h"
#include "heap_blocks.h"
#include "heap_mem.h"

enum { LIVE = 1500, SIZE = 16 << 20 };

static struct block *live[LIVE];
static unsigned char *image;
static struct heap_region r;
static size_t reported, harmless;

static uint64_t offset_of(const void *p)
{
	return (uint64_t)((const unsigned char *)p -
			  (const unsigned char *)r.mem);
}

/* Some of everything: full, open and empty spans, large blocks, a huge one. */
static void fill(struct rpmemfs_heap *h, uint64_t *rng)
{
	for (int i = 0; i < LIVE; i++) {
		size_t n = i == 0 ? 16 :
				    block_size(block_rng(rng)) % 20000 + 16;

		live[i] = rpmemfs_malloc(h, n);
		EXPECT(live[i] != NULL);
		block_fill(live[i], n, offset_of(live[i]), block_rng(rng));
	}
	rpmemfs_set_root(h, live[1]);
	for (int i = 2; i < LIVE; i += 3) {
		rpmemfs_free(h, live[i]);
		live[i] = NULL;
	}
	EXPECT_SOUND(h);
}

/* Other blocks come and go, and never touch those that were there. */
static void live_on(struct rpmemfs_heap *h, uint64_t rng)
{
	static struct block *own[300];
	int n = 0;

	for (int i = 0; i < 300; i++) {
		size_t bytes = 16 + block_rng(&rng) % 3000;
		struct block *b = rpmemfs_malloc(h, bytes);

		if (b == NULL)
			break;
		block_fill(b, bytes, offset_of(b), block_rng(&rng));
		own[n++] = b;
	}
	for (int i = 0; i < LIVE; i++)
		if (live[i] != NULL)
			block_verify(live[i], offset_of(live[i]));
	for (int i = 0; i < n; i++) {
		block_verify(own[i], offset_of(own[i]));
		rpmemfs_free(h, own[i]);
	}
}

static void try_byte(uint64_t at, unsigned char flip)
{
	unsigned char *mem = r.mem;
	struct rpmemfs_heap *h;
	int before = expect_failures;

	mem[at] ^= flip;
	int err = rpmemfs_heap_attach(&r, 0, &h);
	if (err != 0) {
		reported++;
		mem[at] ^= flip;
		return;
	}
	if (rpmemfs_heap_check(h, NULL, NULL) != 0) {
		reported++;
		mem[at] ^= flip; /* the check changes nothing */
	} else {
		harmless++;
		live_on(h, at);
		memcpy(r.mem, image, SIZE);
	}
	rpmemfs_heap_close(h);
	if (expect_failures != before)
		fprintf(stderr, "byte %llu ^ 0x%02x\n", (unsigned long long)at,
			flip);
}

static bool is_metadata(uint64_t at)
{
	return at < RH_META_UNITS_0 * RH_UNIT;
}

int main(int argc, char **argv)
{
	uint64_t rng = (argc > 1 ? strtoull(argv[1], NULL, 10) : 1) | 1;
	uint64_t stride = argc > 2 ? strtoull(argv[2], NULL, 10) : 23;
	struct rpmemfs_heap *h;

	/* Behind the file's end is address space, and SIGBUS. */
	heap_mem_open(&r, SIZE, UINT64_C(1) << 30);
	r.grow = NULL;
	EXPECT(rpmemfs_heap_attach(&r, 0, &h) == 0);
	fill(h, &rng);
	rpmemfs_heap_close(h);
	image = malloc(SIZE);
	memcpy(image, r.mem, SIZE);
	/* Pages of zeros are all alike: fewer of their bytes. */
	for (uint64_t page = 0; is_metadata(page); page += 4096) {
		uint64_t step = rh_is_zero(image + page, 4096) ? 4001 : stride;

		for (uint64_t i = block_rng(&rng) % step; i < 4096; i += step) {
			unsigned char flip =
				(unsigned char)(1 << block_rng(&rng) % 8);

			try_byte(page + i, flip);
			try_byte(page + i, 0xff);
		}
	}
	printf("heap_damage_test: %zu reported, %zu harmless\n", reported,
	       harmless);
	EXPECT(reported > 0);
	return expect_result("heap_damage_test");
}
