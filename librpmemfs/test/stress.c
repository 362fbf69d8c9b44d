/*
 * A program for crash tests on a mount: threads change memory everywhere, and
 * each holds its invariant at restart points only.
 *
 *	stress run FILE MIB THREADS SECONDS [SEED [FIRST]]
 *		goes on for SECONDS, 0: for ever; prints, each time an epoch is
 *		durable, how many changes of each thread it has at least. Ends
 *		with status 3 after -EOWNERDEAD, without a word. FIRST is the
 *		number of the first thread, where several programs run
 *	stress check FILE MIB THREADS [CHANGES...]
 *		reads the file: every invariant holds, and no thread has fewer
 *		changes
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "../rpmemfs.h"
#include "check.h"

enum { PAGE_BYTES = 4096, MOST = 64, MOVES = 8 };

static struct rpmemfs *region;
static uint64_t *words;		/* the region */
static uint64_t pages, seed;
static unsigned threads, first;
static _Atomic bool stop;
static _Atomic int lost;

/* Thread at has a word in each page: the first page's and the last one's are
 * how many changes it made, and those between add up to nothing. */
static uint64_t *word(uint64_t *image, uint64_t page, unsigned at)
{
	return &image[page * (PAGE_BYTES / 8) + at];
}

static void change(unsigned at, uint64_t *rng)
{
	++*word(words, 0, at);
	for (int i = 0; i < MOVES; i++) {
		uint64_t coins = draw(rng);

		*word(words, 1 + draw(rng) % (pages - 2), at) += coins;
		*word(words, 1 + draw(rng) % (pages - 2), at) -= coins;
	}
	++*word(words, pages - 1, at);
}

static void *work(void *arg)
{
	unsigned at = (unsigned)(uintptr_t)arg;
	uint64_t rng = seed + at * 1000003;
	int error = rpmemfs_thread_register(region);

	while (!error && !atomic_load(&stop)) {
		change(at, &rng);
		if (draw(&rng) % 64 == 0) {
			error = rpmemfs_allow_checkpoint(region);
			usleep((useconds_t)(draw(&rng) % 300));
			if (!error)
				error = rpmemfs_prevent_checkpoint(region);
		} else {
			error = rpmemfs_restart_point(region);
		}
	}
	if (error) {
		atomic_store(&lost, error);
		atomic_store(&stop, true);
	}
	(void)rpmemfs_thread_unregister(region);
	return NULL;
}

/* tell prints changes that are durable. */
static int tell(void)
{
	uint64_t had[MOST];
	int error;

	/* What others store meanwhile is more, never less. */
	for (unsigned i = 0; i < threads; i++)
		had[i] = __atomic_load_n(word(words, pages - 1, first + i),
					 __ATOMIC_RELAXED);
	error = rpmemfs_checkpoint(region, RPMEMFS_WAIT, NULL);
	if (error)
		return error;
	for (unsigned i = 0; i < threads; i++)
		printf("%llu ", (unsigned long long)had[i]);
	printf("\n");
	fflush(stdout);
	return 0;
}

static int run(const char *path, uint64_t seconds)
{
	struct rpmemfs_options opt = {
		.flags = RPMEMFS_CREATE,
		.size = pages * PAGE_BYTES,
		.timeout_ns = UINT64_C(10000000000), /* of a busy machine */
	};
	uint64_t rng = seed;
	time_t end = time(NULL) + (time_t)seconds;
	pthread_t t[MOST];
	int error = rpmemfs_open(path, &opt, &region);

	if (error) {
		fprintf(stderr, "stress: %s: %s\n", path,
			rpmemfs_strerror(error));
		return 1;
	}
	words = rpmemfs_base(region);
	CHECK_ERROR(rpmemfs_thread_unregister(region), 0);
	for (unsigned i = 0; i < threads; i++)
		CHECK_ERROR(-pthread_create(&t[i], NULL, work,
					    (void *)(uintptr_t)(first + i)), 0);
	while (!atomic_load(&stop) && (!seconds || time(NULL) < end)) {
		error = tell();
		if (error && error != -ETIMEDOUT)
			break;
		usleep((useconds_t)(draw(&rng) % 30000));
	}
	atomic_store(&stop, true);
	for (unsigned i = 0; i < threads; i++)
		pthread_join(t[i], NULL);
	if (!error)
		error = atomic_load(&lost);
	if (error && error != -EOWNERDEAD)
		fprintf(stderr, "stress: %s\n", rpmemfs_strerror(error));
	else if (!error)
		error = tell();
	rpmemfs_close(region);
	return error == -EOWNERDEAD ? 3 : error ? 1 : 0;
}

static int check(const char *path, int argc, char **argv)
{
	uint64_t *image = calloc(pages, PAGE_BYTES);
	size_t at = 0, all = pages * PAGE_BYTES;
	int fd = open(path, O_RDONLY), wrong = 0;
	ssize_t n = 1;

	CHECK(fd >= 0 && image);
	while (at < all && n > 0) {
		n = read(fd, (char *)image + at, all - at);
		CHECK(n >= 0);
		at += (size_t)n;
	}
	for (unsigned i = 0; i < threads; i++) {
		uint64_t sum = 0, begun = *word(image, 0, i);
		uint64_t least = (int)i < argc ? strtoull(argv[i], NULL, 10) : 0;

		for (uint64_t p = 1; p < pages - 1; p++)
			sum += *word(image, p, i);
		if (sum || begun != *word(image, pages - 1, i) ||
		    begun < least) {
			printf("stress: thread %u: %llu changes begun, %llu "
			       "ended, %llu durable; sum %#llx\n", i,
			       (unsigned long long)begun,
			       (unsigned long long)*word(image, pages - 1, i),
			       (unsigned long long)least,
			       (unsigned long long)sum);
			wrong = 1;
		}
	}
	free(image);
	close(fd);
	return wrong;
}

int main(int argc, char **argv)
{
	if (argc < 5)
		return 2;
	pages = strtoull(argv[3], NULL, 10) * 256;
	threads = (unsigned)strtoul(argv[4], NULL, 10);
	if (pages < 3 || threads < 1 || threads > MOST)
		return 2;
	if (strcmp(argv[1], "check") == 0)
		return check(argv[2], argc - 5, argv + 5);
	first = argc > 7 ? (unsigned)strtoul(argv[7], NULL, 10) : 0;
	if (first + threads > MOST)
		return 2;
	seed = argc > 6 ? strtoull(argv[6], NULL, 10) : 1;
	return run(argv[2], argc > 5 ? strtoull(argv[5], NULL, 10) : 1);
}
