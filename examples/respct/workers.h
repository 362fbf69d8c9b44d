/*
 * What the programs here share: the command line, the threads, the clock, and
 * the figures at the end, one "name value" a line.
 */
#ifndef WORKERS_H
#define WORKERS_H

#include <err.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum { MAX_THREADS = 64 };

/* A workload is what the command line asks for. */
struct workload {
	const char *file;	/* NULL: ordinary memory */
	unsigned threads;
	unsigned reads;		/* of 100 operations */
	uint64_t buckets;
	uint64_t keys;		/* drawn uniformly from [0, keys) */
	unsigned epoch_ms;	/* 0: the program makes no checkpoints */
	double seconds;
	bool check;		/* only look whether FILE is consistent */
	bool tell;		/* print every epoch as it becomes durable */
};

struct workers;

/* A worker is a thread. Only random and operations are its own to change. */
struct worker {
	_Alignas(64) uint64_t random;
	_Atomic uint64_t operations;
	unsigned number;
	struct workers *all;
	void *arg;		/* as given to workers_run */
	pthread_t thread;
	_Atomic pid_t tid;
};

struct workers {
	_Atomic bool stop;
	void (*work)(struct worker *self);
	struct worker worker[MAX_THREADS];
};

/* A tick is called in the main thread every epoch_ms; measured is false while
 * the program warms up. */
typedef void tick(void *arg, bool measured);

static inline bool workers_stop(struct worker *self)
{
	return atomic_load_explicit(&self->all->stop, memory_order_relaxed);
}

/* worker_did counts an operation. */
static inline void worker_did(struct worker *self)
{
	uint64_t n = atomic_load_explicit(&self->operations,
					  memory_order_relaxed);

	atomic_store_explicit(&self->operations, n + 1, memory_order_relaxed);
}

/* next_random is Marsaglia's xorshift64*. */
static inline uint64_t next_random(uint64_t *state)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return *state * UINT64_C(0x2545f4914f6cdd1d);
}

/* random_below is uniform in [0, n) for n far below 2^32. */
static inline uint64_t random_below(uint64_t *state, uint64_t n)
{
	return ((next_random(state) >> 32) * n) >> 32;
}

static const char workload_options[] =
	"  -t THREADS (2)   -s SECONDS (5)    -e EPOCH_MS (64; 0: none)\n"
	"  -b BUCKETS (1048576)               -k KEYS (2 * BUCKETS)\n"
	"  -r READS of 100 operations (90)\n"
	"  -c  check FILE and end             -v  print every durable epoch\n"
	"Without FILE everything is in ordinary memory.\n";

static inline _Noreturn void usage(const char *name, const char *summary)
{
	fprintf(stderr, "usage: %s [options] [FILE]\n%s\n%s", name, summary,
		workload_options);
	exit(2);
}

static inline uint64_t number(const char *text, uint64_t low, uint64_t high)
{
	char *end;
	uint64_t n = strtoull(text, &end, 10);

	if (end == text || *end != '\0' || n < low || n > high)
		errx(2, "%s: not a number from %" PRIu64 " to %" PRIu64, text,
		     low, high);
	return n;
}

static inline struct workload workload_parse(int argc, char **argv,
					     const char *summary)
{
	struct workload w = {
		.threads = 2, .reads = 90, .buckets = 1 << 20,
		.epoch_ms = 64, .seconds = 5,
	};
	int option;

	while ((option = getopt(argc, argv, "t:s:e:b:k:r:cv")) != -1) {
		switch (option) {
		case 't':
			w.threads = (unsigned)number(optarg, 1, MAX_THREADS);
			break;
		case 's':
			w.seconds = atof(optarg);
			break;
		case 'e':
			w.epoch_ms = (unsigned)number(optarg, 0, 1000000);
			break;
		case 'b':
			w.buckets = number(optarg, 1, 1 << 28);
			break;
		case 'k':
			w.keys = number(optarg, 1, 1 << 28);
			break;
		case 'r':
			w.reads = (unsigned)number(optarg, 0, 100);
			break;
		case 'c':
			w.check = true;
			break;
		case 'v':
			w.tell = true;
			break;
		default:
			usage(argv[0], summary);
		}
	}
	if (optind < argc)
		w.file = argv[optind++];
	if (optind < argc || !(w.seconds > 0) || (w.check && !w.file))
		usage(argv[0], summary);
	if (w.keys == 0)
		w.keys = 2 * w.buckets;
	return w;
}

static inline void *start(void *arg)
{
	struct worker *self = arg;

	atomic_store(&self->tid, (pid_t)syscall(SYS_gettid));
	self->all->work(self);
	return NULL;
}

/* A moment is what was used up to then. */
struct moment {
	double at;		/* seconds */
	double process;		/* of processor time */
	double user, system;	/* of the workers */
	uint64_t faults;
	uint64_t operations;
};

static inline double clock_seconds(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* add_usage reads proc_pid_stat(5) of a thread. */
static inline void add_usage(struct moment *m, pid_t tid)
{
	char path[64], line[1024], *rest;
	unsigned long long faults, user, system;
	double hertz = (double)sysconf(_SC_CLK_TCK);
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", (int)tid);
	f = fopen(path, "re");
	if (!f || !fgets(line, sizeof(line), f))
		err(1, "%s", path);
	fclose(f);
	rest = strrchr(line, ')');
	if (!rest || sscanf(rest, ") %*c %*d %*d %*d %*d %*d %*u %llu %*u %*u "
			    "%*u %llu %llu", &faults, &user, &system) != 3)
		errx(1, "%s: %s", path, line);
	m->faults += faults;
	m->user += (double)user / hertz;
	m->system += (double)system / hertz;
}

static inline struct moment look(struct workers *all, unsigned threads)
{
	struct moment m = {
		.at = clock_seconds(CLOCK_MONOTONIC),
		.process = clock_seconds(CLOCK_PROCESS_CPUTIME_ID),
	};

	for (unsigned i = 0; i < threads; i++) {
		struct worker *w = &all->worker[i];
		pid_t tid;

		while ((tid = atomic_load(&w->tid)) == 0)
			usleep(100);
		add_usage(&m, tid);
		m.operations += atomic_load(&w->operations);
	}
	return m;
}

static inline void sleep_until(double at)
{
	struct timespec t = { .tv_sec = (time_t)at };

	t.tv_nsec = (long)((at - (double)t.tv_sec) * 1e9);
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) != 0)
		;
}

/* pass lets time pass, with a tick every epoch_ms. A tick that takes longer
 * delays the next one. */
static inline void pass(const struct workload *w, double until, tick *each,
			void *arg, bool measured)
{
	double period = w->epoch_ms / 1e3;
	double now = clock_seconds(CLOCK_MONOTONIC), next = now + period;

	if (!each || w->epoch_ms == 0) {
		sleep_until(until);
		return;
	}
	while (next < until) {
		sleep_until(next);
		each(arg, measured);
		now = clock_seconds(CLOCK_MONOTONIC);
		next = next + period > now ? next + period : now;
	}
	sleep_until(until);
}

static inline void report(const struct moment *a, const struct moment *b)
{
	double seconds = b->at - a->at;
	double user = b->user - a->user, system = b->system - a->system;
	uint64_t operations = b->operations - a->operations;

	printf("operations %" PRIu64 "\n", operations);
	printf("seconds %.3f\n", seconds);
	printf("operations_per_second %.0f\n", (double)operations / seconds);
	printf("workers_user_seconds %.3f\n", user);
	printf("workers_system_seconds %.3f\n", system);
	printf("workers_faults %" PRIu64 "\n", b->faults - a->faults);
	printf("others_cpu_seconds %.3f\n",
	       b->process - a->process - user - system);
}

/*
 * workers_run runs work in each of w->threads threads, until workers_stop is
 * true for it, and prints operations, time and processor time. What the first
 * tenth of the time brings is not counted.
 */
static inline void workers_run(const struct workload *w,
			       void (*work)(struct worker *self), void *arg,
			       tick *each)
{
	static struct workers all;
	struct moment begin, end;
	double now;

	all.work = work;
	for (unsigned i = 0; i < w->threads; i++) {
		struct worker *self = &all.worker[i];

		self->random = (uint64_t)getpid() << 32 | (i + 1);
		self->number = i;
		self->all = &all;
		self->arg = arg;
		errno = pthread_create(&self->thread, NULL, start, self);
		if (errno)
			err(1, "pthread_create");
	}
	now = clock_seconds(CLOCK_MONOTONIC);
	pass(w, now + w->seconds / 10, each, arg, false);
	puts("measuring");	/* for who reads this through a pipe */
	fflush(stdout);
	begin = look(&all, w->threads);
	pass(w, begin.at + w->seconds, each, arg, true);
	end = look(&all, w->threads);
	puts("measured");
	fflush(stdout);
	atomic_store(&all.stop, true);
	for (unsigned i = 0; i < w->threads; i++)
		pthread_join(all.worker[i].thread, NULL);
	report(&begin, &end);
}

#endif
