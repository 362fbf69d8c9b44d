/*
 * Waiting for a mutex or a condition without holding up barriers.
 */
#define _GNU_SOURCE
#include <errno.h>

#include "threads.h"

/*
 * come_back leaves the state ALLOWED with the mutex held. If it waited with
 * the mutex instead, a thread that needs it could not get to its next restart
 * point, and the barrier would never be complete.
 */
static int come_back(struct threads *t, struct thread *self,
		     pthread_mutex_t *mutex)
{
	while (!thread_try_prevent(t, self)) {
		int error = atomic_load(&t->error);

		if (error)
			return error;
		error = -pthread_mutex_unlock(mutex);
		if (error)
			return error;
		threads_wait(t, atomic_load(&t->due));
		error = -pthread_mutex_lock(mutex);
		if (error)
			return error;
	}
	return thread_verdict(t, self);
}

int thread_cond_wait(struct threads *t, struct thread *self,
		     bool stay, pthread_cond_t *cond, pthread_mutex_t *mutex,
		     const struct timespec *until)
{
	int waited, back;

	thread_allow(t, self);
	if (until)
		waited = -pthread_cond_timedwait(cond, mutex, until);
	else
		waited = -pthread_cond_wait(cond, mutex);
	if (stay)
		return waited;
	back = come_back(t, self, mutex);
	return back ? back : waited;
}

int thread_mutex_lock(struct threads *t, struct thread *self,
		      pthread_mutex_t *mutex)
{
	int error;

	if (thread_allowed(self))
		return -pthread_mutex_lock(mutex);
	error = pthread_mutex_trylock(mutex);
	if (error != EBUSY)
		return -error;
	thread_allow(t, self);
	error = -pthread_mutex_lock(mutex);
	if (error) {
		/* The region's own error comes at the next restart point. */
		(void)thread_prevent(t, self);
		return error;
	}
	return come_back(t, self, mutex);
}
