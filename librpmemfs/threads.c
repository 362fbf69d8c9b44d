#define _GNU_SOURCE
#include "threads.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "futex.h"

_Thread_local struct mine mine;

/*
 * The lock guards the lists of all regions: threads come and go rarely, and a
 * thread that ends must find out whether its region is still there. Nothing
 * is waited for under it.
 */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static pthread_key_t at_exit_key;
static pthread_once_t at_exit_once = PTHREAD_ONCE_INIT;
static int at_exit_error;

/* How many of a number's bits count barriers. */
enum { COUNT_BITS = 40 };

/* acknowledge stores the calling thread's number. */
static void acknowledge(struct thread *self, uint64_t number)
{
	mine.acked = number;
	atomic_store(&self->acked, number);
}

/* arrive counts a thread that needs no more waiting for. */
static void arrive(struct threads *t)
{
	uint64_t n = atomic_fetch_add(&t->arrivals, 1) + 1;

	if (n >= atomic_load(&t->wanted))
		eventfd_write(t->wake, 1);
}

static bool barrier_going_on(struct threads *t)
{
	return atomic_load(&t->due) > atomic_load(&t->released);
}

static void unlink_locked(struct thread *self)
{
	struct threads *t = self->of;

	if (!t)
		return;
	*self->link = self->next;
	if (self->next)
		self->next->link = self->link;
	self->of = NULL;
	if (barrier_going_on(t))
		arrive(t);
}

/* thread_ends runs as the destructor of a thread's key. */
static void thread_ends(void *unused)
{
	struct thread *next;

	(void)unused;
	pthread_mutex_lock(&lock);
	for (struct thread *self = mine.first; self; self = next) {
		next = self->mine;
		unlink_locked(self);
		free(self);
	}
	pthread_mutex_unlock(&lock);
	mine = (struct mine){0};
}

static void make_key(void)
{
	at_exit_error = -pthread_key_create(&at_exit_key, thread_ends);
}

void threads_init(struct threads *t, int wake, bool (*help)(void *), void *arg)
{
	static _Atomic uint64_t last;
	uint64_t number = (atomic_fetch_add(&last, 1) + 1) << COUNT_BITS;

	*t = (struct threads){
		.id = number,
		.due = number,
		.released = number,
		.wanted = UINT64_MAX,
		.wake = wake,
		.help = help,
		.arg = arg,
	};
}

void threads_end(struct threads *t)
{
	pthread_mutex_lock(&lock);
	for (struct thread *self = t->first; self; self = self->next)
		self->of = NULL;
	t->first = NULL;
	pthread_mutex_unlock(&lock);
}

struct thread *threads_find(struct threads *t)
{
	struct thread *self;

	if (mine.id == t->id)
		return mine.self;
	pthread_mutex_lock(&lock);
	for (self = mine.first; self && self->of != t; self = self->mine)
		;
	pthread_mutex_unlock(&lock);
	if (self) {
		mine.id = t->id;
		mine.self = self;
		mine.acked = atomic_load(&self->acked);
	}
	return self;
}

/* drop_orphans_locked frees the calling thread's records of closed regions. */
static void drop_orphans_locked(void)
{
	struct thread **link = &mine.first;

	while (*link) {
		struct thread *self = *link;

		if (self->of) {
			link = &self->mine;
			continue;
		}
		*link = self->mine;
		free(self);
	}
}

int threads_add(struct threads *t, struct thread **out)
{
	struct thread *self;

	pthread_once(&at_exit_once, make_key);
	if (at_exit_error)
		return at_exit_error;
	/* Any value but NULL has the destructor called. */
	if (pthread_setspecific(at_exit_key, &lock))
		return -ENOMEM;
	self = calloc(1, sizeof(*self));
	if (!self)
		return -ENOMEM;
	atomic_init(&self->acked, ALLOWED);
	self->losses = atomic_load(&t->losses);
	self->tid = (pid_t)syscall(SYS_gettid);

	pthread_mutex_lock(&lock);
	drop_orphans_locked();
	self->of = t;
	self->next = t->first;
	self->link = &t->first;
	if (self->next)
		self->next->link = &self->next;
	t->first = self;
	pthread_mutex_unlock(&lock);

	self->mine = mine.first;
	mine = (struct mine){
		.acked = ALLOWED, .id = t->id, .self = self, .first = self
	};
	*out = self;
	return 0;
}

void threads_remove(struct threads *t, struct thread *self)
{
	struct thread **link = &mine.first;

	pthread_mutex_lock(&lock);
	unlink_locked(self);
	pthread_mutex_unlock(&lock);
	while (*link != self)
		link = &(*link)->mine;
	*link = self->mine;
	if (mine.id == t->id)
		mine = (struct mine){ .first = mine.first };
	free(self);
}

int thread_verdict(struct threads *t, struct thread *self)
{
	int error = atomic_load(&t->error);
	uint64_t losses = atomic_load(&t->losses);

	if (error)
		return error;
	if (self->losses != losses) {
		self->losses = losses;
		return -EOWNERDEAD;
	}
	return 0;
}

void threads_wait(struct threads *t, uint64_t number)
{
	for (;;) {
		uint32_t gate = atomic_load(&t->gate);

		if (atomic_load(&t->released) >= number)
			return;
		if (!t->help(t->arg))
			futex_wait(&t->gate, gate, NEVER, false);
	}
}

int thread_park(struct threads *t, struct thread *self)
{
	/* One load: what is acknowledged is what is waited for. */
	uint64_t due = atomic_load(&t->due);

	if (due == FAILED)
		return atomic_load(&t->error);
	if (thread_allowed(self))
		return thread_verdict(t, self);
	acknowledge(self, due);
	if (atomic_load(&t->released) < due) {
		arrive(t);
		threads_wait(t, due);
	}
	return thread_verdict(t, self);
}

void thread_allow(struct threads *t, struct thread *self)
{
	acknowledge(self, ALLOWED);
	if (barrier_going_on(t))
		arrive(t);
}

bool thread_try_prevent(struct threads *t, struct thread *self)
{
	uint64_t due = atomic_load(&t->due);

	if (due == FAILED || atomic_load(&t->released) < due)
		return false;
	acknowledge(self, due);
	if (atomic_load(&t->due) == due)
		return true;
	/* The helper may have seen the number of the last barrier, and taken
	 * this thread for a running one. */
	thread_allow(t, self);
	return false;
}

int thread_prevent(struct threads *t, struct thread *self)
{
	if (!thread_allowed(self))
		return thread_park(t, self);
	while (!thread_try_prevent(t, self)) {
		int error = atomic_load(&t->error);

		if (error)
			return error;
		threads_wait(t, atomic_load(&t->due));
	}
	return thread_verdict(t, self);
}

uint64_t threads_raise(struct threads *t)
{
	return atomic_fetch_add(&t->due, 1) + 1;
}

bool threads_parked(struct threads *t, uint64_t number, pid_t *late)
{
	uint64_t arrived, missing;

	do {
		/* Before the look at the threads: an arrival that the look
		 * missed is counted after this. */
		arrived = atomic_load(&t->arrivals);
		missing = 0;
		pthread_mutex_lock(&lock);
		for (struct thread *i = t->first; i; i = i->next) {
			uint64_t acked = atomic_load(&i->acked);

			if (acked == number || acked == ALLOWED)
				continue;
			if (missing++ == 0)
				*late = i->tid;
		}
		pthread_mutex_unlock(&lock);
		if (missing == 0) {
			atomic_store(&t->wanted, UINT64_MAX);
			return true;
		}
		atomic_store(&t->wanted, arrived + missing);
	} while (atomic_load(&t->arrivals) >= arrived + missing);
	return false;
}

void threads_news(struct threads *t, int count)
{
	atomic_fetch_add(&t->gate, 1);
	futex_wake(&t->gate, count);
}

void threads_release(struct threads *t)
{
	atomic_store(&t->wanted, UINT64_MAX);
	atomic_store(&t->released, atomic_load(&t->due));
	threads_news(t, INT_MAX);
}

void threads_fail(struct threads *t, int error)
{
	atomic_store(&t->error, error);
	atomic_store(&t->due, FAILED);
	threads_release(t);
}

void threads_lock(void)
{
	pthread_mutex_lock(&lock);
}

void threads_unlock(void)
{
	pthread_mutex_unlock(&lock);
}

void threads_child(void)
{
	drop_orphans_locked();
	mine = (struct mine){0};
	pthread_mutex_init(&lock, NULL);
}

void threads_forget(struct threads *t)
{
	struct thread *next;

	for (struct thread *self = t->first; self; self = next) {
		next = self->next;
		free(self);
	}
	t->first = NULL;
}
