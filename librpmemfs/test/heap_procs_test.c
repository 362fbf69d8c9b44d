/*
 * heap_procs_test [seed [operations]]: several processes use one heap; some are
 * killed. It starts itself again as "heap_procs_test child ...".
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <time.h>

#include "../heap.h"
#include "heap_blocks.h"
#include "heap_mem.h"

enum { SLOTS = 2000, CHILDREN = 3, FD = 9 };

static const uint64_t most = UINT64_C(1) << 30;
extern char **environ;

/* The root: blocks that all processes may exchange, by offset. */
struct shared {
	_Atomic uint64_t slots[SLOTS];
	_Atomic uint32_t waiting;
};

static uint64_t offset_of(const struct heap_region *r, const void *p)
{
	return (uint64_t)((const char *)p - (const char *)r->mem);
}

static void give(struct heap_region *r, struct rpmemfs_heap *h, uint64_t offset)
{
	struct block *b = (void *)((char *)r->mem + offset);

	if (offset == 0)
		return;
	block_verify(b, offset);
	rpmemfs_free(h, b);
}

static void work(struct heap_region *r, struct rpmemfs_heap *h, uint64_t rng,
		 uint64_t operations)
{
	struct shared *s = rpmemfs_root(h);

	for (uint64_t i = 0; i < operations; i++) {
		uint64_t random = block_rng(&rng), offset = 0;

		if (random % 3 != 0) {
			size_t n = block_size(block_rng(&rng));
			struct block *b = rpmemfs_malloc(h, n);

			EXPECT(b != NULL);
			offset = offset_of(r, b);
			block_fill(b, n, offset, random >> 32);
		}
		give(r, h, atomic_exchange(&s->slots[(random >> 8) % SLOTS],
					   offset));
	}
}

static unsigned caches_in_use(struct rpmemfs_heap *h)
{
	unsigned n = 0;

	for (unsigned i = 0; i < RH_CACHES; i++)
		n += !rh_is_zero(rh_cache_of(h, i)->bytes, RH_CACHE);
	return n;
}

static pid_t start(const struct heap_region *r, const char *what, uint64_t seed,
		   uint64_t operations)
{
	char base[32], rng[32], ops[32];
	char *argv[] = { "heap_procs_test", "child", (char *)what, base, rng,
			 ops, NULL };
	posix_spawn_file_actions_t actions;
	pid_t pid;

	snprintf(base, sizeof(base), "%llu",
		 (unsigned long long)(uintptr_t)r->mem);
	snprintf(rng, sizeof(rng), "%llu", (unsigned long long)(seed | 1));
	snprintf(ops, sizeof(ops), "%llu", (unsigned long long)operations);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, r->fd, FD);
	if (posix_spawn(&pid, "/proc/self/exe", &actions, NULL, argv,
			environ) != 0) {
		perror("posix_spawn");
		exit(2);
	}
	posix_spawn_file_actions_destroy(&actions);
	return pid;
}

static int wait_for(pid_t pid)
{
	int status = -1;

	EXPECT(waitpid(pid, &status, 0) == pid);
	return status;
}

static int child(char **argv)
{
	uint64_t base = strtoull(argv[3], NULL, 10);
	uint64_t rng = strtoull(argv[4], NULL, 10);
	struct heap_region r = {
		.mapped = most,
		.size = (uint64_t)lseek(FD, 0, SEEK_END),
		.base = base, /* offsets do: it may be mapped elsewhere */
		.fd = FD,
		.grow = heap_mem_grow,
		.context = &r,
	};
	struct rpmemfs_heap *h;

	r.mem = heap_mem_map(FD, most);
	int err = rpmemfs_heap_attach(&r, 0, &h);
	EXPECT(err == 0);
	if (err != 0)
		return 1;
	work(&r, h, rng, strtoull(argv[5], NULL, 10));
	if (strcmp(argv[2], "killed") == 0)
		raise(SIGKILL);
	if (strcmp(argv[2], "holding") == 0) {
		EXPECT(rh_lock(h) == 0);
		raise(SIGKILL);
	}
	rpmemfs_heap_close(h);
	return expect_failures != 0;
}

static void *wait_for_lock(void *arg)
{
	struct rpmemfs_heap *h = arg;
	struct shared *s = rpmemfs_root(h);

	s->waiting = 1;
	/* Large, so that the lock is needed. */
	void *p = rpmemfs_malloc(h, 100000);
	s->waiting = 2;
	return p;
}

/* Who waits for a dead process's lock goes on after the rollback. */
static void dead_holder(struct heap_region *r, struct rpmemfs_heap *h,
			uint64_t seed)
{
	struct shared *s = rpmemfs_root(h);
	struct timespec moment = { .tv_nsec = 100 * 1000 * 1000 };
	pthread_t tid;
	void *p;

	EXPECT(WTERMSIG(wait_for(start(r, "holding", seed, 1000))) == SIGKILL);
	EXPECT(h->header->lock != 0);
	pthread_create(&tid, NULL, wait_for_lock, h);
	for (int i = 0; i < 600 && s->waiting == 0; i++) /* a busy machine */
		nanosleep(&moment, NULL);
	nanosleep(&moment, NULL);
	EXPECT(s->waiting == 1);
	h->header->lock = 0; /* what rolling back does */
	pthread_join(tid, &p);
	EXPECT(p != NULL && s->waiting == 2);
	rpmemfs_free(h, p);
}

int main(int argc, char **argv)
{
	struct heap_region r;
	struct rpmemfs_heap *h;
	pid_t pids[CHILDREN];

	if (argc > 5 && strcmp(argv[1], "child") == 0)
		return child(argv);
	uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
	uint64_t operations = argc > 2 ? strtoull(argv[2], NULL, 10) : 100000;

	heap_mem_open(&r, 0, most);
	EXPECT(rpmemfs_heap_attach(&r, 0, &h) == 0);
	struct shared *s = rpmemfs_calloc(h, 1, sizeof(*s));
	EXPECT(rpmemfs_set_root(h, s) == 0);
	for (uint64_t i = 0; i < CHILDREN; i++)
		pids[i] = start(&r, "whole", seed * 100 + i * 2, operations);
	work(&r, h, seed * 100 + 51, operations);
	for (int i = 0; i < CHILDREN; i++)
		EXPECT(wait_for(pids[i]) == 0);
	EXPECT_SOUND(h);

	/* The caches of those who were killed are taken over. */
	unsigned caches = caches_in_use(h);
	for (uint64_t i = 0; i < 5; i++) {
		pid_t pid = start(&r, "killed", seed * 200 + i * 2, 2000);

		EXPECT(WTERMSIG(wait_for(pid)) == SIGKILL);
	}
	EXPECT(caches_in_use(h) == caches && caches <= CHILDREN + 1);
	EXPECT_SOUND(h);
	dead_holder(&r, h, seed);
	EXPECT_SOUND(h);
	for (size_t i = 0; i < SLOTS; i++)
		give(&r, h, s->slots[i]);
	EXPECT_SOUND(h);
	rpmemfs_heap_close(h);
	heap_mem_close(&r);
	return expect_result("heap_procs_test");
}
