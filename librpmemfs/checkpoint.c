/*
 * Asking for checkpoints, and waiting for them.
 */
#define _GNU_SOURCE
#include <errno.h>

#include "futex.h"
#include "region.h"

/*
 * The daemon bounds barriers and commits by itself. These are for a daemon
 * that is stuck: how long it may be silent beyond the threads' time-out before
 * the threads go on, and until a commit is durable.
 */
#define BARRIER_NS (UINT64_C(60) * SEC)
#define COMMIT_NS (UINT64_C(600) * SEC)

/* pause_for_news waits for news, and helps with what is on offer. False: too
 * late. */
static bool pause_for_news(struct rpmemfs *r, uint32_t gate, uint64_t deadline)
{
	if (capture_help(&r->capture))
		return true;
	return futex_wait(&r->threads.gate, gate, deadline, false);
}

/* begin lets barriers pass without the calling thread, if it is registered;
 * finish ends that, and returns error unless there is a worse one. */
static struct thread *begin(struct rpmemfs *r, bool *stay)
{
	struct thread *self = threads_find(&r->threads);

	*stay = self && thread_allowed(self);
	if (self && !*stay)
		thread_allow(&r->threads, self);
	return self;
}

static int finish(struct rpmemfs *r, struct thread *self, bool stay, int error)
{
	int back = self && !stay ? thread_prevent(&r->threads, self) : 0;

	return back ? back : error;
}

static void add(struct rpmemfs *r, struct request *q)
{
	pthread_mutex_lock(&r->lock);
	q->id = ++r->last_id;
	q->seals = r->seals;
	q->next = r->requests;
	r->requests = q;
	pthread_mutex_unlock(&r->lock);
}

static void drop(struct rpmemfs *r, struct request *q)
{
	struct request **link = &r->requests;

	pthread_mutex_lock(&r->lock);
	while (*link != q)
		link = &(*link)->next;
	*link = q->next;
	pthread_mutex_unlock(&r->lock);
}

/* over reports whether q has its answer, which is *error. */
static bool over(struct rpmemfs *r, const struct request *q, bool durable,
		 int *error)
{
	bool done;

	pthread_mutex_lock(&r->lock);
	done = q->answered || (q->served && !durable);
	*error = q->answered && (durable || !q->served) ? q->error : 0;
	pthread_mutex_unlock(&r->lock);
	if (!done) {
		*error = atomic_load(&r->threads.error);
		done = *error != 0;
	}
	return done;
}

int rpmemfs_checkpoint(struct rpmemfs *r, unsigned flags, uint64_t *epoch)
{
	struct wire_request m = { WIRE_HEADER(WIRE_REQUEST, m),
				  .timeout_ns = r->timeout_ns };
	bool durable = flags & RPMEMFS_WAIT, stay;
	struct request q = { 0 };
	struct thread *self;
	uint64_t deadline;
	int error;

	if (flags & ~(unsigned)RPMEMFS_WAIT)
		return -EINVAL;
	error = attached(r);
	if (error)
		return error;
	self = begin(r, &stay);
	add(r, &q);
	m.id = q.id;
	deadline = after_ns(r->timeout_ns + (durable ? COMMIT_NS : BARRIER_NS));
	error = wire_send(r->sock, &m, -1);
	if (error)
		error = -EIO;
	while (!error) {
		uint32_t gate = atomic_load(&r->threads.gate);

		if (over(r, &q, durable, &error))
			break;
		if (!pause_for_news(r, gate, deadline))
			error = -ETIMEDOUT;
	}
	drop(r, &q);
	if (!error && epoch)
		*epoch = q.served ? q.epoch : atomic_load(&r->committed);
	return finish(r, self, stay, error);
}

int rpmemfs_wait_durable(struct rpmemfs *r, uint64_t epoch,
			 const struct timespec *timeout)
{
	uint64_t deadline = NEVER, losses;
	struct thread *self;
	bool stay;
	int error = attached(r);

	if (error)
		return error;
	if (epoch > atomic_load(&r->open))
		return -EINVAL;
	if (timeout && (timeout->tv_sec < 0 || timeout->tv_nsec < 0 ||
			timeout->tv_nsec >= SEC))
		return -EINVAL;
	if (timeout && timeout->tv_sec < INT32_MAX)
		deadline = after_ns((uint64_t)timeout->tv_sec * SEC +
				    (uint64_t)timeout->tv_nsec);
	self = begin(r, &stay);
	/* A thread that was not told of a loss means an epoch from before. */
	losses = self ? self->losses : atomic_load(&r->threads.losses);
	for (;;) {
		uint32_t gate = atomic_load(&r->threads.gate);

		uint64_t committed = atomic_load(&r->committed);

		/* Then losses: the number may have been used again. */
		if (atomic_load(&r->threads.losses) != losses)
			error = -EOWNERDEAD;
		else if (committed < epoch)
			error = atomic_load(&r->threads.error);
		if (error || committed >= epoch)
			break;
		if (!pause_for_news(r, gate, deadline)) {
			error = -ETIMEDOUT;
			break;
		}
	}
	return finish(r, self, stay, error);
}
