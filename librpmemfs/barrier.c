/*
 * A barrier, as a member of the region sees it. docs/architecture.md has the
 * whole.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "futex.h"
#include "region.h"

/*
 * Rounds of copying before the threads are stopped, as live migration does:
 * another one as long as there is much to copy and the last one helped. What
 * a round leaves is what was stored to while it ran.
 */
enum {
	ROUNDS = 5,
	FEW_PAGES = 256,	/* copied in less time than a scan takes */
	SKIPS = 8,		/* barriers between two attempts, at most */
};

/* How long copying may wait for room in the ring. The daemon waits longer. */
#define COPY_NS (UINT64_C(50) * SEC)

/* How long the daemon may be silent. It bounds what it does by itself: write
 * back, copying of the others, a rollback. */
#define GRACE_NS (UINT64_C(180) * SEC)

static int send_number(struct rpmemfs *r, uint16_t type, uint64_t n)
{
	struct wire_number m = { WIRE_HEADER(type, m), .n = n };

	return wire_send(r->sock, &m, -1);
}

/* untracked tells the daemon to ask the kernel before the next seal. */
static int untracked(struct rpmemfs *r)
{
	struct wire_empty m = { WIRE_HEADER(WIRE_UNTRACKED, m) };

	return wire_send(r->sock, &m, -1);
}

/* missed deals with an error of capturing: pages were found and not copied, or
 * not found, but the kernel has them. */
static int missed(struct rpmemfs *r, int error)
{
	return error == -EIO ? error /* the daemon is gone */ : untracked(r);
}

/* size_now is how much of the mapping a scan has to cover. */
static uint64_t size_now(struct rpmemfs *r)
{
	if (atomic_load(&r->capture.tracks))
		track_ahead(&r->capture.track, map_size(r), map_size, r);
	return map_size(r);
}

/* precopy copies what was stored so far while the program runs, for at most
 * half of the time until a thread would be late. */
static int precopy(struct rpmemfs *r)
{
	struct member *m = &r->member;
	struct capture *c = &r->capture;
	uint64_t until = after_ns(m->timeout_ns / 2);
	uint64_t found = UINT64_MAX, last;

	if (!atomic_load(&c->tracks))
		return r->said_tracks ? untracked(r) : 0;
	if (r->no_precopy)
		return 0;
	if (m->skip > 0) {
		m->skip--;
		return 0;
	}
	do {
		last = found;
		found = 0;
		/* Waiting for room in the ring may take longer: then the daemon
		 * calls the barrier off, and nothing is lost. */
		capture_begin(c, size_now(r), m->tag, after_ns(COPY_NS), true);
		while (capture_more(c) && now_ns() < until) {
			int error = capture_scan(c);

			found += c->pages;
			if (!error)
				error = capture_copy(c, false);
			if (error)
				return missed(r, error);
		}
		m->stats.precopied += found;
		if (m->stats.rounds == 0)
			m->first = found;
	} while (++m->stats.rounds < ROUNDS && found > FEW_PAGES &&
		 found < last / 10 * 7 && now_ns() < until);
	return 0;
}

/* name_of reads the name of a thread of this process. */
static void name_of(pid_t tid, char name[WIRE_NAME])
{
	char path[48];
	ssize_t n = -1;
	int fd;

	memset(name, 0, WIRE_NAME);
	snprintf(path, sizeof(path), "/proc/self/task/%d/comm", (int)tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	n = read(fd, name, WIRE_NAME);	/* 15 bytes and a line feed */
	close(fd);
	if (n > 0)
		memset(name + n - 1, 0, WIRE_NAME - (size_t)n + 1);
}

/* say_late asks the daemon to call the barrier off. */
static int say_late(struct rpmemfs *r, pid_t tid)
{
	struct member *m = &r->member;
	struct wire_late late = { WIRE_HEADER(WIRE_LATE, late), .n = m->n };

	m->late_at = NEVER;
	name_of(tid, late.name);
	late.tid = (uint32_t)tid;
	pthread_mutex_lock(&r->lock);
	r->stats.late_tid = late.tid;
	memcpy(r->stats.late_name, late.name, WIRE_NAME);
	pthread_mutex_unlock(&r->lock);
	return wire_send(r->sock, &late, -1);
}

void barrier_go_on(struct rpmemfs *r)
{
	if (r->member.stopped)
		r->quiescer->go_on(r);
	r->member.stopped = false;
}

/* back_off leaves rounds out for a while, longer each time. */
static void back_off(struct member *m)
{
	m->skips = m->skips ? m->skips * 2 : 1;
	if (m->skips > SKIPS)
		m->skips = SKIPS;
	m->skip = m->skips;
}

/* learn leaves rounds out where they do not help: a program that stores to the
 * same pages again and again dirties them faster than they are copied. */
static void learn(struct rpmemfs *r)
{
	struct member *m = &r->member;

	if (m->stats.rounds == 0 || m->first <= FEW_PAGES)
		return;
	/* They halved the pause, and few pages were copied twice for it. */
	if (m->stats.pages <= m->first / 2 &&
	    atomic_load(&r->capture.twice) <= m->first / 4) {
		m->skips = 0;
		return;
	}
	back_off(m);
}

int barrier_due(struct rpmemfs *r, uint64_t n, uint64_t timeout_ns)
{
	struct member *m = &r->member;
	uint64_t late_at = after_ns(timeout_ns);
	pid_t late;
	int error;

	if (m->state != IDLE)
		return -EPROTO;
	m->n = n;
	m->timeout_ns = timeout_ns;
	m->released = false;
	m->missed = 0;
	m->stats = (struct rpmemfs_stats){ 0 };
	capture_barrier(&r->capture, n);
	error = precopy(r);
	if (now_ns() >= late_at)
		back_off(m);	/* or the next one is too late again */
	if (!error && atomic_load(&r->leaky))
		error = untracked(r);
	if (error)
		return error;
	m->state = PARKING;
	m->late_at = late_at;
	m->answer_by = late_at < NEVER - GRACE_NS ? late_at + GRACE_NS : NEVER;
	m->since = now_ns();
	m->number = threads_raise(&r->threads);
	if (r->quiescer) {
		if (r->quiescer->stop(r, &late))
			return say_late(r, late);
		m->stopped = true;
	}
	return barrier_arrived(r);
}

int barrier_arrived(struct rpmemfs *r)
{
	struct member *m = &r->member;
	uint64_t now;
	pid_t late;
	int error;

	if (m->state != PARKING ||
	    !threads_parked(&r->threads, m->number, &late))
		return 0;
	m->state = PARKED;
	m->late_at = NEVER;
	error = send_number(r, WIRE_READY, m->n);
	if (error)
		return error;
	now = now_ns();
	m->stats.park_ns = now - m->since;
	/* While the others park. What is found is copied after GO. */
	capture_begin(&r->capture, size_now(r), m->tag, after_ns(COPY_NS),
		      false);
	error = capture_more(&r->capture) ? capture_scan(&r->capture) : 0;
	m->stats.scan_ns = now_ns() - now;
	/* Too late for this barrier to drain: DONE says that it failed. */
	m->missed = error;
	return error ? missed(r, error) : 0;
}

int barrier_late(struct rpmemfs *r)
{
	struct member *m = &r->member;
	pid_t tid = 0;

	if (threads_parked(&r->threads, m->number, &tid))
		return barrier_arrived(r);
	return say_late(r, tid);
}

int barrier_drain(struct rpmemfs *r, uint64_t n)
{
	struct wire_drained m = { WIRE_HEADER(WIRE_DRAINED, m), .n = n };

	if (r->member.state != PARKED || n != r->member.n)
		return -EPROTO;
	if (sync_file_range(r->fd, 0, 0,
			    SYNC_FILE_RANGE_WAIT_BEFORE |
				    SYNC_FILE_RANGE_WRITE |
				    SYNC_FILE_RANGE_WAIT_AFTER))
		m.error = -errno;
	r->member.answer_by = after_ns(GRACE_NS);
	return wire_send(r->sock, &m, -1);
}

/* copy_rest copies what the scan found, scans on if the list was too short,
 * and copies the pages that the daemon asked for. */
static int copy_rest(struct rpmemfs *r, const struct wire_go *go)
{
	struct member *m = &r->member;
	struct capture *c = &r->capture;
	uint64_t limit = map_size(r) / PAGE;
	int error = 0;

	for (;;) {
		m->stats.pages += c->pages;
		error = capture_copy(c, true);
		if (error || !capture_more(c))
			break;
		error = capture_scan(c);
		if (error)
			break;
	}
	for (uint32_t i = 0; i < go->count && !error; i += RING_BATCH) {
		uint32_t n = go->count - i;

		error = capture_pages(c, go->page + i,
				      n < RING_BATCH ? n : RING_BATCH, limit);
	}
	return error;
}

/* account notes what a barrier took when its threads go on. */
static void account(struct rpmemfs *r)
{
	struct member *m = &r->member;
	struct rpmemfs_stats *s = &r->stats;

	m->stats.pause_ns = now_ns() - m->since;
	learn(r);
	pthread_mutex_lock(&r->lock);
	m->stats.barriers = s->barriers + 1;
	m->stats.called_off = s->called_off;
	m->stats.lost = s->lost;
	m->stats.late_tid = s->late_tid;
	memcpy(m->stats.late_name, s->late_name, sizeof(s->late_name));
	*s = m->stats;
	pthread_mutex_unlock(&r->lock);
}

static void release(struct rpmemfs *r, uint64_t epoch)
{
	r->member.released = true;
	account(r);
	member_serve(r, epoch);
	threads_release(&r->threads);
	barrier_go_on(r);
}

int barrier_go(struct rpmemfs *r, const struct wire_go *go)
{
	struct member *m = &r->member;
	struct wire_done done = { WIRE_HEADER(WIRE_DONE, done), .n = go->n };
	uint64_t begun = now_ns(), epoch = go->page[go->count];
	int error;

	if (m->state != PARKED || go->n != m->n)
		return -EPROTO;
	pthread_mutex_lock(&r->lock);
	r->seals++;
	pthread_mutex_unlock(&r->lock);

	done.error = m->missed;
	error = copy_rest(r, go);
	if (error) {
		done.error = error;
		error = missed(r, error);
	}
	if (error)
		return error;
	m->stats.copy_ns = now_ns() - begun;
	done.upto = ring_head(&r->capture.ring);
	done.rounds = (uint32_t)m->stats.rounds;
	done.precopied = m->stats.precopied;
	done.copied = m->stats.pages;
	done.scan_ns = m->stats.scan_ns;
	done.copy_ns = m->stats.copy_ns;
	done.pause_ns = now_ns() - m->since;
	/* From DONE on the daemon takes entries of this number for the next
	 * epoch's. */
	m->tag = m->n;
	m->state = COPIED;
	m->answer_by = after_ns(m->timeout_ns + GRACE_NS);
	/* Before DONE: it wakes the daemon, which may take this processor until
	 * the ring is empty. */
	if (go->sole && !done.error)
		release(r, epoch);
	return wire_send(r->sock, &done, -1);
}

/* called_off lets the threads go on in the epoch that stays open. */
static int called_off(struct rpmemfs *r, int error)
{
	struct member *m = &r->member;
	bool found = m->state == PARKED && error != -EOWNERDEAD;

	pthread_mutex_lock(&r->lock);
	r->stats.called_off++;
	pthread_mutex_unlock(&r->lock);
	threads_release(&r->threads);
	barrier_go_on(r);
	/* What the scan took off the kernel's list is on no other. */
	r->capture.tag = m->tag;
	error = found ? capture_copy(&r->capture, false) : 0;
	return error ? missed(r, error) : 0;
}

int barrier_release(struct rpmemfs *r, const struct wire_release *m)
{
	struct member *member = &r->member;
	int error = 0;

	if (member->state == IDLE || m->n != member->n ||
	    (!m->error && member->state != COPIED))
		return -EPROTO;
	member->tag = m->n;
	if (m->error && !member->released)
		error = called_off(r, m->error);
	else if (!member->released)
		release(r, m->epoch);
	member->state = IDLE;
	member->late_at = NEVER;
	member->answer_by = NEVER;
	ring_ahead(&r->capture.ring, 2 * (member->stats.precopied +
					  member->stats.pages));
	return error;
}
