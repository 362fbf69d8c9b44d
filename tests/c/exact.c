/*
 * exact FILE LOGBOOK SEED HALF FIRST THREADS: roleExact of
 * tests/exact_program_test.go with librpmemfs, and with forked children, one at
 * a time, that do steps as the thread after the last. exact_model_test.go
 * describes the workload and the logbook.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "rpmemfs.h"

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

enum {
	PAGE = 4096,
	WORDS = PAGE / 8,
	MAX_THREADS = 16,
	FIRST_HALF = 2, /* its page */
	LOGGED = 64,
	LOGGED_OFF = 64,
};

typedef _Atomic uint64_t word_t;

static struct rpmemfs *region;
static word_t *memory;
static char *logbook;
static uint64_t seed, half;
static uint64_t children; /* the thread that they are */
static int fd;
static atomic_ulong begun; /* threads */

/* A worker is a thread between its restart points. */
struct worker {
	uint64_t id;
	uint64_t done;	/* steps */
	uint64_t epoch;	/* the open one, when it looked last */
	uint64_t dice;
	bool forks;
	bool silent;
};

static void die(const char *what, int error)
{
	fprintf(stderr, "exact: %s: %s\n", what, rpmemfs_strerror(error));
	exit(1);
}

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
	x = (x ^ x >> 27) * 0x94d049bb133111eb;
	return x ^ x >> 31;
}

static uint64_t roll(struct worker *w, uint64_t sides)
{
	w->dice = mix(w->dice);
	return w->dice % sides;
}

static void step(struct worker *w)
{
	uint64_t words = half * WORDS;
	uint64_t h = mix(seed ^ w->id << 48 ^ ++w->done);
	uint64_t hot = (h >> 8) % half * WORDS;
	uint64_t other = roll(w, MAX_THREADS);

	atomic_store(&memory[WORDS + w->id * MAX_THREADS + other],
		     atomic_load(&memory[other]));

	for (uint64_t n = 1 + h % 12; n > 0; n--) {
		h = mix(h);
		uint64_t from = h % words, to = mix(h) % words;

		if (h >> 60 < 8)
			from = hot + h % WORDS;
		atomic_fetch_add(&memory[FIRST_HALF * WORDS + from], h | 1);
		atomic_fetch_add(&memory[FIRST_HALF * WORDS + words + to], h | 1);
	}
	atomic_store(&memory[w->id], w->done);
}

/* Words of a thread's page of the logbook. */
static word_t *noted(struct worker *w, uint64_t offset)
{
	return (word_t *)(void *)(logbook + w->id * PAGE + offset);
}

static void did(struct worker *w)
{
	atomic_store(noted(w, 0), w->done);
}

/* Notes the steps that the thread had done when an epoch was sealed. */
static void sealed(struct worker *w, uint64_t epoch)
{
	uint64_t at = LOGGED_OFF + epoch % LOGGED * 16;

	atomic_store(noted(w, at), 0);
	atomic_store(noted(w, at + 8), w->done);
	atomic_store(noted(w, at), epoch);
}

/* Begins where memory says, and forgets what was noted from an epoch on. */
static void restart(struct worker *w, uint64_t from)
{
	w->epoch = rpmemfs_epoch(region);
	w->done = atomic_load(&memory[w->id]);
	for (uint64_t i = 0; i < LOGGED; i++)
		if (atomic_load(noted(w, LOGGED_OFF + i * 16)) >= from)
			atomic_store(noted(w, LOGGED_OFF + i * 16), 0);
	did(w);
	sealed(w, w->epoch - 1);
}

/* Notes what was sealed while the thread was parked. */
static void passed(struct worker *w, int error)
{
	if (error == -EOWNERDEAD) {
		restart(w, rpmemfs_committed(region) + 1);
		if (!w->silent)
			puts("lost");
		return;
	}
	if (error)
		die("restart point", error);
	for (uint64_t now = rpmemfs_epoch(region); w->epoch < now; w->epoch++)
		sealed(w, w->epoch);
}

static void one(struct worker *w)
{
	step(w);
	did(w);
	passed(w, rpmemfs_restart_point(region));
}

/* Steps of a forked child, attached by itself. */
static void be_child(uint64_t id, uint64_t dice, pid_t parent)
{
	struct worker w = { .id = id, .dice = dice, .silent = true };
	int error;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	error = rpmemfs_thread_register(region);
	if (error && error != -EOWNERDEAD)
		die("attach a child", error);
	restart(&w, 0);
	for (uint64_t n = roll(&w, 200); n > 0; n--)
		one(&w);
	rpmemfs_close(region);
	_exit(0);
}

static void fork_one(struct worker *w)
{
	int status, error = rpmemfs_allow_checkpoint(region);

	if (error && error != -EOWNERDEAD)
		die("allow", error);
	pid_t parent = getpid(), child = fork();

	if (child < 0)
		die("fork", -errno);
	if (child == 0)
		be_child(children, w->dice, parent);
	if (waitpid(child, &status, 0) != child || status != 0)
		die("child", -ECHILD);
	int after = rpmemfs_prevent_checkpoint(region);

	passed(w, error ? error : after);
}

static void *work(void *arg)
{
	struct worker *w = arg;
	int error = rpmemfs_thread_register(region);

	if (error && error != -EOWNERDEAD)
		die("register", error);
	restart(w, 0);
	begun++;
	for (;;) {
		one(w);
		if (w->forks && roll(w, 2000) == 0) {
			fork_one(w);
		} else if (roll(w, 500) == 0) {
			error = rpmemfs_allow_checkpoint(region);
			if (error && error != -EOWNERDEAD)
				die("allow", error);
			usleep((useconds_t)roll(w, 20000));
			int after = rpmemfs_prevent_checkpoint(region);

			passed(w, error ? error : after);
		}
	}
	return NULL;
}

/* Makes the kernel write pages back and drop them. */
static void *disturb(void *arg)
{
	const unsigned all = SYNC_FILE_RANGE_WAIT_BEFORE |
		SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
	struct worker w = { .dice = seed };
	size_t size = rpmemfs_size(region);

	(void)arg;
	for (;;) {
		int error = 0;

		usleep((useconds_t)roll(&w, 10000));
		switch (roll(&w, 3)) {
		case 0:
			error = sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE);
			break;
		case 1:
			error = sync_file_range(fd, 0, 0, all);
			if (!error)
				error = madvise((void *)memory, size,
						MADV_PAGEOUT);
			break;
		case 2:
			error = -posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
			break;
		}
		if (error)
			die("disturb", -errno);
	}
	return NULL;
}

static void report_late(void)
{
	struct rpmemfs_stats stats;

	if (rpmemfs_stats(region, &stats))
		puts("late");
	else
		printf("late: thread %ju (%s)\n", (uintmax_t)stats.late_tid,
		       stats.late_name);
}

int main(int argc, char **argv)
{
	struct worker workers[MAX_THREADS], dice = { 0 };
	pthread_t thread;
	int error, book;

	if (argc != 7)
		return 2;
	seed = strtoull(argv[3], NULL, 10);
	half = strtoull(argv[4], NULL, 10);
	unsigned long first = strtoul(argv[5], NULL, 10);
	unsigned long threads = strtoul(argv[6], NULL, 10);

	if (half < 1 || threads < 1 || threads > MAX_THREADS ||
	    first + threads >= MAX_THREADS)
		return 2;
	children = first + threads;
	setvbuf(stdout, NULL, _IOLBF, 0);
	book = open(argv[2], O_RDWR | O_CLOEXEC);
	fd = open(argv[1], O_RDWR | O_CLOEXEC);
	if (fd < 0 || book < 0)
		die("open", -errno);
	logbook = mmap(NULL, MAX_THREADS * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED,
		       book, 0);
	if (logbook == MAP_FAILED)
		die("logbook", -errno);

	struct rpmemfs_options options = { .size = (FIRST_HALF + 2 * half) * PAGE };

	error = rpmemfs_open(argv[1], &options, &region);
	if (error)
		die("open", error);
	memory = rpmemfs_base(region);
	dice.dice = seed ^ first;
	for (unsigned long i = 0; i < threads; i++) {
		workers[i] = (struct worker){ .id = first + i,
					      .dice = mix(seed ^ i),
					      .forks = i == 0 };
		if (pthread_create(&thread, NULL, work, &workers[i]))
			die("thread", -EAGAIN);
	}
	if (pthread_create(&thread, NULL, disturb, NULL))
		die("thread", -EAGAIN);
	uint64_t found = rpmemfs_epoch(region) - 1;

	rpmemfs_thread_unregister(region);
	while (begun < threads)
		usleep(1000);
	printf("ready %ju\n", (uintmax_t)found);
	for (;;) {
		uint64_t epoch;

		error = rpmemfs_checkpoint(region, RPMEMFS_WAIT, &epoch);
		if (!error)
			printf("durable %ju\n", (uintmax_t)epoch);
		else if (error == -ETIMEDOUT)
			report_late();
		else if (error != -EOWNERDEAD)
			die("checkpoint", error);
		rpmemfs_thread_unregister(region);
		usleep((useconds_t)roll(&dice, 3000));
	}
}
