/*
 * The helper thread: it listens to the daemon and to arriving threads.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "futex.h"
#include "region.h"

void member_serve(struct rpmemfs *r, uint64_t epoch)
{
	atomic_store(&r->open, epoch + 1);
	pthread_mutex_lock(&r->lock);
	for (struct request *q = r->requests; q; q = q->next) {
		if (q->served || q->seals >= r->seals)
			continue;
		q->served = true;
		q->epoch = epoch;
	}
	pthread_mutex_unlock(&r->lock);
}

static void on_result(struct rpmemfs *r, const struct wire_result *m)
{
	pthread_mutex_lock(&r->lock);
	for (struct request *q = r->requests; q; q = q->next) {
		if (q->id != m->id)
			continue;
		q->answered = true;
		q->error = m->error;
	}
	if (m->error == -ETIMEDOUT && m->late_tid != r->stats.late_tid) {
		/* A thread of another program; it has no name here. */
		r->stats.late_tid = m->late_tid;
		memset(r->stats.late_name, 0, sizeof(r->stats.late_name));
	}
	pthread_mutex_unlock(&r->lock);
	threads_news(&r->threads, INT_MAX);
}

static void on_committed(struct rpmemfs *r, uint64_t epoch)
{
	atomic_store(&r->committed, epoch);
	if (atomic_load(&r->open) <= epoch)
		atomic_store(&r->open, epoch + 1);
	threads_news(&r->threads, INT_MAX);
}

/* on_lost: the daemon has rolled back while all threads of all members were
 * parked; RELEASE follows. */
static void on_lost(struct rpmemfs *r, uint64_t epoch)
{
	/* losses first: who sees the numbers used again sees it too. */
	atomic_fetch_add(&r->threads.losses, 1);
	atomic_store(&r->committed, epoch);
	atomic_store(&r->open, epoch + 1);
	/* What the kernel dropped from its cache is no longer armed. */
	if (r->member.state == PARKED && atomic_load(&r->capture.tracks))
		track_arm(&r->capture.track, map_size(r));
	pthread_mutex_lock(&r->lock);
	r->stats.lost++;
	pthread_mutex_unlock(&r->lock);
	threads_news(&r->threads, INT_MAX);
}

static int dispatch(struct rpmemfs *r, const void *m, int type)
{
	switch (type) {
	case WIRE_DUE: {
		const struct wire_due *due = m;

		return barrier_due(r, due->n, due->timeout_ns);
	}
	case WIRE_DRAIN:
		return barrier_drain(r, ((const struct wire_number *)m)->n);
	case WIRE_GO:
		return barrier_go(r, m);
	case WIRE_RELEASE:
		return barrier_release(r, m);
	case WIRE_RESULT:
		on_result(r, m);
		return 0;
	case WIRE_COMMITTED:
		on_committed(r, ((const struct wire_committed *)m)->epoch);
		return 0;
	case WIRE_LOST:
		on_lost(r, ((const struct wire_lost *)m)->epoch);
		return 0;
	case WIRE_GONE:
		return -EIO;
	}
	return -EPROTO;
}

/* next_look is the poll timeout until the next deadline, in ms. */
static int next_look(const struct member *m)
{
	uint64_t at = m->late_at < m->answer_by ? m->late_at : m->answer_by;
	uint64_t now = now_ns();

	if (at == NEVER)
		return -1;
	if (at <= now)
		return 0;
	at = (at - now) / MSEC + 1;
	return at < INT_MAX ? (int)at : INT_MAX;
}

static int look(struct rpmemfs *r, void *buffer)
{
	struct member *m = &r->member;
	struct pollfd in[] = {
		{ .fd = r->sock, .events = POLLIN },
		{ .fd = r->wake, .events = POLLIN },
	};
	eventfd_t drop;
	int got, error = 0;

	if (poll(in, 2, next_look(m)) < 0 && errno != EINTR)
		return -errno;
	if (in[1].revents) {
		eventfd_read(r->wake, &drop);
		error = barrier_arrived(r);
	}
	while (!error && (got = wire_receive(r->sock, buffer)) != 0)
		error = got < 0 ? got : dispatch(r, buffer, got);
	if (!error && now_ns() >= m->late_at)
		error = barrier_late(r);
	if (!error && now_ns() >= m->answer_by)
		error = -ETIMEDOUT;
	return error;
}

void *member_run(void *region)
{
	struct rpmemfs *r = region;
	struct wire_empty bye = { WIRE_HEADER(WIRE_DETACH, bye) };
	void *buffer = aligned_alloc(8, WIRE_MAX);
	int error = buffer ? 0 : -ENOMEM;

	if (r->quiescer)
		r->quiescer->join();
	while (!error && !atomic_load(&r->stop))
		error = look(r, buffer);
	barrier_go_on(r);
	if (error) {
		/* Whatever went wrong, this process no longer takes part: for
		 * its threads the daemon is gone. Closing tells the daemon. */
		threads_fail(&r->threads, -EIO);
		shutdown(r->sock, SHUT_RDWR);
	} else {
		(void)wire_send(r->sock, &bye, -1);
	}
	free(buffer);
	if (r->quiescer)
		r->quiescer->leave();
	atomic_store(&r->ended, 1);
	futex_wake(&r->ended, INT_MAX);
	return NULL;
}
