/* heap_test [-update]: the heap's contract, one thread at a time. */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#include "../heap.h"
#include "heap_golden.h"
#include "heap_expect.h"

static const uint64_t most = UINT64_C(1) << 30;

static struct rpmemfs_heap *attach(struct heap_region *r, unsigned flags)
{
	struct rpmemfs_heap *h;

	EXPECT(rpmemfs_heap_attach(r, flags, &h) == 0);
	return h;
}

static void test_classes(void)
{
	for (uint64_t n = 0; n <= RH_SMALL_MAX; n++) {
		unsigned c = rh_class_of(n);

		EXPECT(c < RH_CLASSES && rh_classes[c].size >= n);
		EXPECT(c == 0 || rh_classes[c - 1].size < n);
	}
	unsigned at = RH_CACHE_FIRST;
	for (unsigned i = 0; i < RH_CLASSES; i++) {
		const struct rh_class *c = &rh_classes[i];
		uint64_t span = rh_span_offset(c->units);

		EXPECT(rh_magazine_at[i] == at);
		at += 16 + 8u * c->cap;
		EXPECT((uint64_t)c->blocks * c->size <= span);
		for (uint64_t x = 0; x < span; x++) {
			EXPECT(rh_block_no(c, x) == x / c->size);
			EXPECT(rh_is_multiple(c, x) == (x % c->size == 0));
		}
	}
	EXPECT(at == RH_CACHE_END);
}

static void test_contract(unsigned flags)
{
	static const size_t sizes[] = { 0, 1, 16, 17, 100, 1024, 1025, 32768,
					32769, 100000, 5000000, 70000000,
					140000000 };
	struct heap_region r;

	heap_mem_open(&r, 0, most);
	struct rpmemfs_heap *h = attach(&r, flags);
	EXPECT(rpmemfs_root(h) == NULL);
	rpmemfs_free(h, NULL);
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		size_t n = sizes[i];
		unsigned char *p = rpmemfs_malloc(h, n);

		EXPECT(p != NULL && (uintptr_t)p % 16 == 0);
		EXPECT(rpmemfs_usable_size(h, p) >= n);
		memset(p, 0x5a, rpmemfs_usable_size(h, p));
		EXPECT(rpmemfs_set_root(h, p) == 0 && rpmemfs_root(h) == p);
		rpmemfs_set_root(h, NULL);
		rpmemfs_free(h, p);
		p = rpmemfs_calloc(h, n, 1);
		for (size_t j = 0; j < n; j++)
			EXPECT(p[j] == 0);
		memset(p, 0xa5, n);
		size_t want = n / 3 + 1000;
		p = rpmemfs_realloc(h, p, want);
		for (size_t j = 0; j < n && j < want; j++)
			EXPECT(p[j] == 0xa5);
		p = rpmemfs_realloc(h, p, n);
		for (size_t j = 0; j < n && j < want; j++)
			EXPECT(p[j] == 0xa5);
		EXPECT_SOUND(h);
		rpmemfs_free(h, p);
	}
	for (size_t align = 1; align <= (64 << 20); align *= 2)
		for (size_t n = 1; n < 200000; n = n * 7 + 1) {
			void *p = rpmemfs_aligned_alloc(h, align, n);

			EXPECT(p != NULL && (uintptr_t)p % align == 0);
			memset(p, 1, n);
			rpmemfs_free(h, p);
		}
	EXPECT(rpmemfs_aligned_alloc(h, 48, 1) == NULL && errno == EINVAL);
	EXPECT(rpmemfs_aligned_alloc(h, 0, 1) == NULL && errno == EINVAL);
	EXPECT(rpmemfs_malloc(h, SIZE_MAX) == NULL && errno == ENOMEM);
	EXPECT(rpmemfs_calloc(h, SIZE_MAX / 2, 3) == NULL && errno == ENOMEM);
	EXPECT(rpmemfs_set_root(h, &r) == -EINVAL);
	EXPECT_SOUND(h);
	rpmemfs_heap_close(h);
	heap_mem_close(&r);
}

/* Large blocks grow and shrink where they are. */
static void test_realloc_in_place(void)
{
	struct heap_region r;

	heap_mem_open(&r, 0, most);
	struct rpmemfs_heap *h = attach(&r, 0);
	unsigned char *p = rpmemfs_malloc(h, 500000);
	EXPECT(rpmemfs_realloc(h, p, 1000000) == p);
	EXPECT(rpmemfs_realloc(h, p, 40000) == p);
	EXPECT(rpmemfs_malloc(h, 40000) == p + 49152);
	p = rpmemfs_malloc(h, 70 << 20);
	EXPECT(rpmemfs_realloc(h, p, 300 << 20) == p);
	EXPECT_SOUND(h);
	EXPECT(rpmemfs_realloc(h, p, 70 << 20) == p);
	EXPECT_SOUND(h);
	rpmemfs_heap_close(h);
	heap_mem_close(&r);
}

/* A full region gives NULL, and what is freed can be had again. */
static void test_full(void)
{
	struct heap_region r;

	heap_mem_open(&r, 8 << 20, 16 << 20);
	struct rpmemfs_heap *h = attach(&r, 0);
	void **first = NULL, **p;
	size_t n = 0;
	while ((p = rpmemfs_malloc(h, 1000)) != NULL) {
		*p = first;
		first = p;
		n++;
	}
	EXPECT(errno == ENOMEM && n > 10000 && n * 1024 < 16 << 20);
	for (; first != NULL; first = p) {
		p = *first;
		rpmemfs_free(h, first);
	}
	for (size_t i = 0; i < n; i++)
		EXPECT(rpmemfs_malloc(h, 1000) != NULL);
	EXPECT_SOUND(h);
	rpmemfs_heap_close(h);
	heap_mem_close(&r);
}

static void *take_and_leave(void *heap)
{
	void *p[300];

	for (int i = 0; i < 300; i++)
		p[i] = rpmemfs_malloc(heap, 64);
	for (int i = 0; i < 300; i++)
		rpmemfs_free(heap, p[i]);
	return p[299] == NULL ? NULL : heap;
}

static unsigned caches_in_use(struct rpmemfs_heap *h)
{
	unsigned n = 0;

	for (unsigned i = 0; i < RH_CACHES; i++)
		n += !rh_is_zero(rh_cache_of(h, i)->bytes, RH_CACHE);
	return n;
}

/* Threads one after another use the same cache; so does the next opening. */
static void test_adoption(void)
{
	struct heap_region r;
	pthread_t tid;
	void *result;

	heap_mem_open(&r, 0, most);
	struct rpmemfs_heap *h = attach(&r, 0);
	for (int i = 0; i < 10; i++) {
		pthread_create(&tid, NULL, take_and_leave, h);
		pthread_join(tid, &result);
		EXPECT(result == h);
	}
	EXPECT(caches_in_use(h) == 1);
	rpmemfs_heap_close(h);
	h = attach(&r, 0);
	take_and_leave(h);
	EXPECT(caches_in_use(h) == 1);
	EXPECT_SOUND(h);
	rpmemfs_heap_close(h);
	heap_mem_close(&r);
}

/* Memory that sits in caches nobody has is found before the region is full. */
static void test_reclaim(void)
{
	struct heap_region r;
	pthread_t tid;

	heap_mem_open(&r, 8 << 20, 8 << 20);
	struct rpmemfs_heap *h = attach(&r, 0);
	void *mine = rpmemfs_malloc(h, 1); /* the thread's is the next cache */
	pthread_create(&tid, NULL, take_and_leave, h);
	pthread_join(tid, NULL);
	EXPECT(mine != NULL && caches_in_use(h) == 2);
	while (rpmemfs_malloc(h, 16384) != NULL)
		;
	EXPECT(rh_magazine_of(rh_cache_of(h, 1), 3)->n == 0);
	EXPECT_SOUND(h);
	rpmemfs_heap_close(h);
	heap_mem_close(&r);
}

/* Misuse is found and named; the test goes on behind abort. */

static sigjmp_buf after_abort;

static void on_abort(int sig)
{
	siglongjmp(after_abort, sig);
}

#define EXPECT_ABORT(call)						\
	do {								\
		if (sigsetjmp(after_abort, 1) == 0) {			\
			call;						\
			EXPECT(!"aborted: " #call);			\
		}							\
	} while (0)

static void test_misuse(void)
{
	struct heap_region r;
	struct sigaction sa = { .sa_handler = on_abort }, old;
	long on_stack = 0;

	sigaction(SIGABRT, &sa, &old);
	heap_mem_open(&r, 0, most);
	struct rpmemfs_heap *h = attach(&r, 0);
	char *p = rpmemfs_malloc(h, 100), *q = rpmemfs_malloc(h, 100);
	char *big = rpmemfs_malloc(h, 100000);
	rpmemfs_free(h, p);
	EXPECT_ABORT(rpmemfs_free(h, p));
	EXPECT_ABORT(rpmemfs_free(h, q + 16));
	EXPECT_ABORT(rpmemfs_free(h, big + 16384));
	EXPECT_ABORT(rpmemfs_free(h, &on_stack));
	EXPECT_ABORT(rpmemfs_free(h, r.mem));
	rpmemfs_free(h, big);
	EXPECT_ABORT(rpmemfs_free(h, big));
	EXPECT_SOUND(h);
	rpmemfs_heap_close(h);
	heap_mem_close(&r);

	heap_mem_open(&r, 0, most);
	h = attach(&r, RPMEMFS_HEAP_GUARDS);
	p = rpmemfs_malloc(h, 100);
	q = rpmemfs_malloc(h, 100);
	big = rpmemfs_malloc(h, 100000);
	rpmemfs_free(h, p);
	rpmemfs_free(h, q);
	EXPECT_ABORT(rpmemfs_free(h, p));
	p = rpmemfs_malloc(h, 100);
	EXPECT_SOUND(h);
	p[100]++;
	EXPECT(rpmemfs_heap_check(h, NULL, NULL) == 1);
	EXPECT_ABORT(rpmemfs_free(h, p));
	p[100]--;
	memset(p, 7, 128);
	EXPECT_ABORT(rpmemfs_realloc(h, p, 200));
	big[100000] = 'x';
	EXPECT_ABORT(rpmemfs_free(h, big));
	rpmemfs_heap_close(h);
	heap_mem_close(&r);
	sigaction(SIGABRT, &old, NULL);
}

/* Going back to older bytes goes back to the older heap. */
static void test_rollback(void)
{
	struct heap_region r;

	heap_mem_open(&r, 0, most);
	struct rpmemfs_heap *h = attach(&r, 0);
	unsigned char *p[100];
	for (int i = 0; i < 100; i++)
		p[i] = memset(rpmemfs_malloc(h, 200), i, 200);
	for (int i = 0; i < 100; i += 2)
		rpmemfs_free(h, p[i]);
	uint64_t size = r.size;
	unsigned char *image = malloc(size);
	memcpy(image, r.mem, size);

	for (int turn = 0; turn < 3; turn++) {
		for (int i = 1; i < 100; i += 2)
			rpmemfs_free(h, p[i]);
		for (int i = 0; i < 1000; i++)
			memset(rpmemfs_malloc(h, (size_t)i * 37), 0xee,
			       (size_t)i * 37);
		EXPECT(rpmemfs_malloc(h, 100 << 20) != NULL);
		EXPECT(heap_mem_grow(&r, size) == 0);
		memcpy(r.mem, image, size);
		EXPECT_SOUND(h);
		for (int i = 1; i < 100; i += 2)
			for (int j = 0; j < 200; j++)
				EXPECT(p[i][j] == i);
	}
	free(image);
	rpmemfs_heap_close(h);
	heap_mem_close(&r);
}

/* What was committed in the middle of a call is cleared, or refused. */
static void test_held_lock(void)
{
	struct heap_region r;
	struct rpmemfs_heap *again;

	heap_mem_open(&r, 0, most);
	struct rpmemfs_heap *h = attach(&r, 0);
	h->header->lock = h->id; /* ours: a remnant */
	EXPECT(rpmemfs_malloc(h, 10) != NULL);
	EXPECT(h->header->lock == 0);
	rpmemfs_heap_close(h);

	((struct rh_header *)r.mem)->lock = 12345;
	h = attach(&r, 0);
	EXPECT(h->header->lock == 0);
	h->header->lock = 12345; /* somebody else has it open: not cleared */
	EXPECT(rpmemfs_heap_attach(&r, 0, &again) == 0);
	EXPECT(h->header->lock == 12345);
	rpmemfs_heap_close(again);
	rpmemfs_heap_close(h);

	((struct rh_header *)r.mem)->normal++;
	EXPECT(rpmemfs_heap_attach(&r, 0, &again) == -EUCLEAN);
	heap_mem_close(&r);
}

static uint64_t seen_offset;

static void remember(void *context, uint64_t offset, const char *text)
{
	(void)context;
	(void)text;
	seen_offset = offset;
}

/* Damage that keeps every sum right, and what calls make of wrong sums. */
static void test_damage(void)
{
	struct heap_region r;

	heap_mem_open(&r, 0, most);
	struct rpmemfs_heap *h = attach(&r, 0);
	char *p = rpmemfs_malloc(h, 16);
	struct rh_magazine *m = rh_magazine_of(rh_cache_of(h, 0), 0);
	uint64_t kept = m->slots[5];

	m->slots[5] = m->slots[6];
	m->sum ^= kept ^ m->slots[6];
	EXPECT(rpmemfs_heap_check(h, remember, NULL) == 1 &&
	       seen_offset == m->slots[6]);
	m->sum ^= kept ^ m->slots[6];
	EXPECT(rpmemfs_heap_check(h, NULL, NULL) == 2);
	m->slots[5] = kept;
	EXPECT_SOUND(h);

	EXPECT(rpmemfs_set_root(h, p) == 0);
	rpmemfs_free(h, p);
	EXPECT(rpmemfs_heap_check(h, remember, NULL) == 1);
	EXPECT(seen_offset == offsetof(struct rh_header, root));
	EXPECT(rpmemfs_set_root(h, NULL) == 0);

	h->header->top ^= 1 << 20;
	EXPECT(rpmemfs_malloc(h, 100000) == NULL && errno == EUCLEAN);
	h->header->top ^= 1 << 20;
	EXPECT(rpmemfs_malloc(h, 100000) != NULL);

	((char *)r.mem)[r.size - 1] = 1;
	EXPECT(rpmemfs_heap_check(h, NULL, NULL) == 1);
	((char *)r.mem)[r.size - 1] = 0;

	rpmemfs_heap_close(h);
	m->n = 1 << 30; /* nobody takes such a cache over */
	h = attach(&r, 0);
	EXPECT(rpmemfs_malloc(h, 16) != NULL && caches_in_use(h) == 2);
	EXPECT(rpmemfs_heap_check(h, NULL, NULL) == 1);
	rpmemfs_heap_close(h);
	heap_mem_close(&r);
}

/* Whatever is missing of a heap, the check looks no further. */
static void test_cut_short(void)
{
	static const uint64_t units[] = {
		12300, 8192 + 43, 8192 + 41, 8192 + 2, 8192, 4096 + 1000,
		4096 + 42, 4096 + 40, 4096 + 1, 4096, 3000, 512, 511, 1,
	};
	struct heap_region r;

	heap_mem_open(&r, 0, most);
	struct rpmemfs_heap *h = attach(&r, 0);
	for (int i = 0; i < 100; i++)
		EXPECT(rpmemfs_malloc(h, 1 << 20) != NULL);
	EXPECT(rpmemfs_malloc(h, 70 << 20) != NULL);
	void *p = rpmemfs_malloc(h, 20); /* a cache that refers to the end */
	for (int i = 0; i < 3000; i++)
		EXPECT(rpmemfs_malloc(h, 4096) != NULL);
	rpmemfs_free(h, p);
	EXPECT(rpmemfs_set_root(h, rpmemfs_malloc(h, 30000)) == 0);
	EXPECT_SOUND(h);
	/* Its descriptor will lie behind the end before it does. */
	rh_unit_map(h, 1)->kind = RH_LARGE;
	for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
		EXPECT(ftruncate(r.fd, (off_t)(units[i] * RH_UNIT)) == 0);
		EXPECT(rpmemfs_heap_check(h, NULL, NULL) > 0);
		/* The same, when the header knows. */
		h->header->size = units[i] * RH_UNIT;
		h->header->root = h->header->size - RH_UNIT;
		h->header->sum = rh_state_sum(h->header);
		EXPECT(rpmemfs_heap_check(h, NULL, NULL) > 0);
	}
	rpmemfs_heap_close(h);
	heap_mem_close(&r);
}

static void test_refused(void)
{
	struct heap_region r;
	struct rpmemfs_heap *h;

	heap_mem_open(&r, 8 << 20, most);
	*(char *)r.mem = 'x';
	EXPECT(rpmemfs_heap_attach(&r, 0, &h) == -EINVAL);
	*(char *)r.mem = 0;
	EXPECT(rpmemfs_heap_attach(&r, 0x80, &h) == -EINVAL);
	h = attach(&r, 0);
	rpmemfs_heap_close(h);
	r.base = (uintptr_t)r.mem + HEAP_MEM_ALIGN;
	EXPECT(rpmemfs_heap_attach(&r, 0, &h) == -EINVAL);
	r.base = 0;
	EXPECT(ftruncate(r.fd, 4 << 20) == 0);
	EXPECT(rpmemfs_heap_attach(&r, 0, &h) == -EUCLEAN);
	EXPECT(ftruncate(r.fd, 8 << 20) == 0);
	((struct rh_header *)r.mem)->version = 2;
	EXPECT(rpmemfs_heap_attach(&r, 0, &h) == -EPROTO);
	heap_mem_close(&r);
}

/* A forked child goes on with a cache of its own. */
static void test_fork(void)
{
	struct heap_region r;
	int status;

	heap_mem_open(&r, 0, most);
	struct rpmemfs_heap *h = attach(&r, 0);
	void *p = rpmemfs_malloc(h, 64);
	pid_t pid = fork();
	EXPECT(pid >= 0);
	if (pid == 0) {
		void *q = rpmemfs_malloc(h, 64);

		rpmemfs_free(h, p);
		_exit(q == NULL || q == p || take_and_leave(h) != h);
	}
	EXPECT(take_and_leave(h) == h);
	EXPECT(waitpid(pid, &status, 0) == pid && status == 0);
	EXPECT(caches_in_use(h) == 2);

	/* One that ends a thread, without the heap, gives back nothing.
	 * ThreadSanitizer has a thread of its own that never ends. */
#ifndef __SANITIZE_THREAD__
	pid = fork();
	if (pid == 0)
		pthread_exit(NULL);
	EXPECT(waitpid(pid, &status, 0) == pid && status == 0);
#endif
	EXPECT(rh_file_locked(r.fd, rh_byte_cache(0), 1) == 1);
	EXPECT_SOUND(h);
	rpmemfs_heap_close(h);
	heap_mem_close(&r);
}

static void test_golden(const char *dir, const char *name, unsigned flags,
			bool update)
{
	char seq[300], path[300];
	struct heap_region made, golden;

	snprintf(seq, sizeof(seq), "%s/heap.seq", dir);
	snprintf(path, sizeof(path), "%s/%s", dir, name);
	heap_mem_open(&made, GOLDEN_SIZE, most);
	made.base = GOLDEN_BASE;
	struct rpmemfs_heap *h = attach(&made, flags);
	golden_play(h, seq);
	EXPECT_SOUND(h);
	rpmemfs_heap_close(h);
	if (update)
		golden_write(&made, path);

	golden_read(&golden, path, most);
	EXPECT(golden.size == made.size);
	for (uint64_t i = 0; i < made.size && i < golden.size; i++)
		if (((char *)golden.mem)[i] != ((char *)made.mem)[i]) {
			fprintf(stderr, "%s: byte %llu\n", path,
				(unsigned long long)i);
			EXPECT(!"the bytes of the golden file");
			break;
		}
	golden.base = GOLDEN_BASE;
	h = attach(&golden, 0);
	EXPECT_SOUND(h);
	rpmemfs_heap_close(h);
	heap_mem_close(&golden);
	heap_mem_close(&made);
}

int main(int argc, char **argv)
{
	bool update = argc > 1 && strcmp(argv[1], "-update") == 0;
	const char *dir = argc > 1 && !update ? argv[1] : "test/testdata";

	test_classes();
	test_contract(0);
	test_contract(RPMEMFS_HEAP_GUARDS);
	test_realloc_in_place();
	test_full();
	test_adoption();
	test_reclaim();
	test_misuse();
	test_rollback();
	test_held_lock();
	test_damage();
	test_cut_short();
	test_refused();
	test_fork();
	test_golden(dir, "heap.hex", 0, update);
	test_golden(dir, "heap_guards.hex", RPMEMFS_HEAP_GUARDS, update);
	return expect_result("heap_test");
}
