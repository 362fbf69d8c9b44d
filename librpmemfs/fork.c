/*
 * All open regions of the process, and what becomes of them when it forks or
 * ends.
 *
 * A forked child has the mapping and nothing else: socket, ring and tracking
 * are its parent's. It gives them up at once, and attaches when it makes its
 * first call. Not sooner: most children call exec, and a member that does
 * counts as dead, which costs all others the open epoch.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/eventfd.h>

#include "futex.h"
#include "region.h"

enum { GOODBYE_SECONDS = 2 };

/* Lock order: list_lock, the regions' locks, the lock in threads.c. The helper
 * thread holds none of them while it waits for anything. */
static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static struct rpmemfs *list;

static pthread_once_t handlers_once = PTHREAD_ONCE_INIT;
static int handlers_error;

static void before_fork(void)
{
	pthread_mutex_lock(&list_lock);
	for (struct rpmemfs *r = list; r; r = r->next)
		pthread_mutex_lock(&r->lock);
	threads_lock();
}

static void after_fork(void)
{
	threads_unlock();
	for (struct rpmemfs *r = list; r; r = r->next)
		pthread_mutex_unlock(&r->lock);
	pthread_mutex_unlock(&list_lock);
}

static void in_child(void)
{
	threads_child();
	for (struct rpmemfs *r = list; r; r = r->next) {
		pthread_mutex_init(&r->lock, NULL);
		r->requests = NULL;
		if (!atomic_load(&r->detached))
			abandon(r);
		atomic_store(&r->detached, true);
	}
	pthread_mutex_init(&list_lock, NULL);
}

static void install_handlers(void)
{
	handlers_error = -pthread_atfork(before_fork, after_fork, in_child);
}

int list_add(struct rpmemfs *r)
{
	pthread_once(&handlers_once, install_handlers);
	if (handlers_error)
		return handlers_error;
	pthread_mutex_lock(&list_lock);
	r->next = list;
	list = r;
	pthread_mutex_unlock(&list_lock);
	return 0;
}

void list_remove(struct rpmemfs *r)
{
	struct rpmemfs **link = &list;

	pthread_mutex_lock(&list_lock);
	while (*link != r)
		link = &(*link)->next;
	*link = r->next;
	pthread_mutex_unlock(&list_lock);
}

static int attach_again(struct rpmemfs *r)
{
	struct wire_empty m = { WIRE_HEADER(WIRE_UNTRACKED, m) };
	int error = map_again(r);

	if (!error)
		error = attach(r);
	if (error)
		return error;
	r->stats = (struct rpmemfs_stats){ 0 };
	atomic_store(&r->detached, false);
	/* The child may have stored before, against the rules. If this does not
	 * go out the daemon is gone, and the helper thread finds out. */
	(void)wire_send(r->sock, &m, -1);
	return 0;
}

int attached(struct rpmemfs *r)
{
	int error = 0;

	if (!atomic_load(&r->detached))
		return 0;
	pthread_mutex_lock(&r->lock);
	if (atomic_load(&r->detached))
		error = attach_again(r);
	pthread_mutex_unlock(&r->lock);
	return error;
}

/* goodbye detaches at exit. Threads that wait at a restart point stay there,
 * others may run on; the memory stays mapped. */
static __attribute__((destructor)) void goodbye(void)
{
	uint64_t deadline = after_ns(GOODBYE_SECONDS * (uint64_t)SEC);

	pthread_mutex_lock(&list_lock);
	for (struct rpmemfs *r = list; r; r = r->next) {
		if (atomic_load(&r->detached))
			continue;
		atomic_store(&r->stop, 1);
		eventfd_write(r->wake, 1);
		while (!atomic_load(&r->ended) &&
		       futex_wait(&r->ended, 0, deadline, false))
			;
		if (atomic_load(&r->ended))
			join_helper(r);
	}
	pthread_mutex_unlock(&list_lock);
}
