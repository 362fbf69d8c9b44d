/*
 * The calls that threads make where they hold no half-made change.
 */
#define _GNU_SOURCE
#include <errno.h>

#include "region.h"

int enter(struct rpmemfs *r, struct thread **self, bool *fresh)
{
	int error = attached(r);

	*fresh = false;
	if (error)
		return error;
	*self = threads_find(&r->threads);
	if (*self)
		return 0;
	*fresh = true;
	return threads_add(&r->threads, self);
}

static __attribute__((noinline)) int restart_slowly(struct rpmemfs *r)
{
	struct thread *self;
	bool fresh;
	int error = enter(r, &self, &fresh);

	if (error)
		return error;
	if (fresh)
		return thread_prevent(&r->threads, self);
	return thread_park(&r->threads, self);
}

int rpmemfs_restart_point(struct rpmemfs *r)
{
	if (__builtin_expect(thread_passes(&r->threads), 1))
		return 0;
	return restart_slowly(r);
}

int rpmemfs_thread_register(struct rpmemfs *r)
{
	struct thread *self;
	bool fresh;
	int error = enter(r, &self, &fresh);

	if (error || !fresh)
		return error;
	return thread_prevent(&r->threads, self);
}

int rpmemfs_thread_unregister(struct rpmemfs *r)
{
	struct thread *self = threads_find(&r->threads);

	if (self)
		threads_remove(&r->threads, self);
	return 0;
}

int rpmemfs_allow_checkpoint(struct rpmemfs *r)
{
	struct thread *self;
	bool fresh;
	int error = enter(r, &self, &fresh);

	if (error)
		return error;
	thread_allow(&r->threads, self);
	return thread_verdict(&r->threads, self);
}

int rpmemfs_prevent_checkpoint(struct rpmemfs *r)
{
	struct thread *self;
	bool fresh;
	int error = enter(r, &self, &fresh);

	if (error)
		return error;
	return thread_prevent(&r->threads, self);
}

int rpmemfs_cond_wait(struct rpmemfs *r, pthread_cond_t *cond,
		      pthread_mutex_t *mutex)
{
	return rpmemfs_cond_timedwait(r, cond, mutex, NULL);
}

int rpmemfs_cond_timedwait(struct rpmemfs *r, pthread_cond_t *cond,
			   pthread_mutex_t *mutex,
			   const struct timespec *until)
{
	struct thread *self;
	bool fresh;
	int error = enter(r, &self, &fresh);

	if (error)
		return error;
	return thread_cond_wait(&r->threads, self,
				!fresh && thread_allowed(self), cond, mutex,
				until);
}

int rpmemfs_mutex_lock(struct rpmemfs *r, pthread_mutex_t *mutex)
{
	struct thread *self;
	bool fresh;
	int error = enter(r, &self, &fresh);

	if (!error && fresh)
		error = thread_prevent(&r->threads, self);
	if (error) {
		/* With an error of the region the mutex is held, always. */
		int locked = pthread_mutex_lock(mutex);

		return locked ? -locked : error;
	}
	return thread_mutex_lock(&r->threads, self, mutex);
}
