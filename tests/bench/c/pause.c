/*
 * pause HOW FILE MIB PAGES EPOCH_MS EPOCHS: how long a program stands still
 * for a checkpoint. One thread stores to PAGES random pages of MIB in each
 * epoch, evenly over its time. HOW is
 *
 *	capture		restart points; pages are copied ahead of the pause
 *	late		the same, but all pages are copied in the pause
 *	fdatasync	the thread calls fdatasync itself, as a program without
 *			the library has to
 *
 * Prints, for each epoch: how long the storing thread stood still; of it, as
 * the library says, the pause, park, scan and copy; pages copied in the pause,
 * and before it; rounds; all times in ns. Last: the time until durable.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "rpmemfs.h"

#define MS UINT64_C(1000000)

enum { PAGE = 4096, WARM_UP = 3, AT_ONCE = 64 };

struct job {
	struct rpmemfs *region;	/* NULL: fdatasync on fd */
	int fd;
	uint8_t *mem;
	uint64_t limit;		/* pages of the file */
	uint64_t pages;		/* to store to in an epoch */
	uint64_t epoch_ns;
	unsigned epochs;
	_Atomic uint64_t stood;	/* time in the restart point of the barrier */
	_Atomic bool stop;
};

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 * MS + (uint64_t)t.tv_nsec;
}

static void sleep_until(uint64_t ns)
{
	struct timespec t = {
		.tv_sec = (time_t)(ns / (1000 * MS)),
		.tv_nsec = (long)(ns % (1000 * MS)),
	};

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) != 0)
		;
}

static void check(int error)
{
	if (error)
		errx(1, "%s", rpmemfs_strerror(error));
}

/* checkpoint makes one, also where the machine is so busy that threads, or the
 * copying of the whole file, are late. */
static void checkpoint(struct job *job)
{
	int error = -ETIMEDOUT;

	for (int i = 0; i < 10 && error == -ETIMEDOUT; i++)
		error = rpmemfs_checkpoint(job->region, RPMEMFS_WAIT, NULL);
	check(error);
}

static void store(struct job *job, uint64_t *random)
{
	uint64_t page;

	*random ^= *random << 13;
	*random ^= *random >> 7;
	*random ^= *random << 17;
	page = (*random >> 16) % job->limit;
	memcpy(job->mem + page * PAGE + 64, random, sizeof(*random));
}

/* stores does the stores of the time from begun until now; done of them are. It
 * does some at a time: on a machine that cannot keep the pace it would not end. */
static uint64_t stores(struct job *job, uint64_t begun, uint64_t done,
		       uint64_t *random)
{
	uint64_t due = (now() - begun) * job->pages / job->epoch_ns;

	if (due > done + AT_ONCE)
		due = done + AT_ONCE;
	for (; done < due; done++)
		store(job, random);
	return done;
}

/* work never sleeps: the program is busy, and so is its processor. */
static void *work(void *arg)
{
	struct job *job = arg;
	uint64_t random = 88172645463325252U, begun = now(), done = 0;

	while (!atomic_load(&job->stop)) {
		uint64_t epoch, before, took;

		done = stores(job, begun, done, &random);
		epoch = rpmemfs_epoch(job->region);
		before = now();
		check(rpmemfs_restart_point(job->region));
		took = now() - before;
		/* Else it was an interrupt, or another process. */
		if (rpmemfs_epoch(job->region) != epoch)
			atomic_store(&job->stood, took);
	}
	return NULL;
}

static void capture(struct job *job)
{
	pthread_t thread;
	uint64_t at = now();

	errno = pthread_create(&thread, NULL, work, job);
	if (errno)
		err(1, "pthread_create");
	for (unsigned i = 0; i < WARM_UP + job->epochs; i++) {
		struct rpmemfs_stats s;
		uint64_t begun;

		at = at + job->epoch_ns > now() ? at + job->epoch_ns : now();
		sleep_until(at);
		begun = now();
		checkpoint(job);
		begun = now() - begun;
		check(rpmemfs_stats(job->region, &s));
		if (i < WARM_UP)
			continue;
		printf("%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64
		       " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64
		       " %" PRIu64 "\n", atomic_load(&job->stood), s.pause_ns,
		       s.park_ns, s.scan_ns, s.copy_ns, s.pages, s.precopied,
		       s.rounds, begun);
	}
	atomic_store(&job->stop, true);
	pthread_join(thread, NULL);
}

static void fdatasyncs(struct job *job)
{
	uint64_t random = 88172645463325252U;

	for (unsigned i = 0; i < WARM_UP + job->epochs; i++) {
		uint64_t begun = now(), done = 0;

		while (done < job->pages)
			done = stores(job, begun, done, &random);
		begun = now();
		if (fdatasync(job->fd) != 0)
			err(1, "fdatasync");
		if (i >= WARM_UP)
			printf("%" PRIu64 " 0 0 0 0 0 0 0 %" PRIu64 "\n",
			       now() - begun, now() - begun);
	}
}

int main(int argc, char **argv)
{
	struct rpmemfs_options options = { .flags = RPMEMFS_CREATE };
	struct job job = { .fd = -1 };
	size_t bytes;

	if (argc != 7)
		errx(2, "usage: pause HOW FILE MIB PAGES EPOCH_MS EPOCHS");
	bytes = strtoull(argv[3], NULL, 10) << 20;
	job.limit = bytes / PAGE;
	job.pages = strtoull(argv[4], NULL, 10);
	job.epoch_ns = strtoull(argv[5], NULL, 10) * MS;
	job.epochs = (unsigned)strtoul(argv[6], NULL, 10);
	options.size = bytes;
	if (bytes == 0 || job.epoch_ns == 0)
		errx(2, "MIB and EPOCH_MS are above 0");
	if (strcmp(argv[1], "fdatasync") == 0) {
		job.fd = open(argv[2], O_RDWR | O_CREAT, 0600);
		if (job.fd < 0 || ftruncate(job.fd, (off_t)bytes) != 0)
			err(1, "%s", argv[2]);
		job.mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
			       job.fd, 0);
		if (job.mem == MAP_FAILED)
			err(1, "mmap");
	} else {
		if (strcmp(argv[1], "late") == 0)
			options.flags |= RPMEMFS_NO_PRECOPY;
		check(rpmemfs_open(argv[2], &options, &job.region));
		job.mem = rpmemfs_base(job.region);
	}
	/* Every page is there and mapped, as after some time of work. */
	for (size_t at = 0; at < bytes; at += PAGE)
		job.mem[at]++;
	if (!job.region) {
		fdatasync(job.fd);
		fdatasyncs(&job);
		return 0;
	}
	check(rpmemfs_thread_unregister(job.region));
	checkpoint(&job);
	capture(&job);
	rpmemfs_close(job.region);
	return 0;
}
