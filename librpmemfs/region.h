/*
 * An open region, and what the files of this library know of each other.
 */
#ifndef REGION_H
#define REGION_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "capture.h"
#include "rpmemfs.h"
#include "threads.h"
#include "wire.h"

/* A request is a call of rpmemfs_checkpoint that waits. */
struct request {
	uint64_t id;
	uint64_t seals;		/* seen when it began */
	bool served;		/* a later seal's barrier is over */
	uint64_t epoch;		/* which that sealed */
	bool answered;		/* the daemon's RESULT is there: */
	int error;
	struct request *next;
};

/* A quiescer stops the threads of a program that has no restart points. */
struct quiescer {
	/* The helper thread begins with join, and ends with leave. */
	void (*join)(void);
	void (*leave)(void);
	/* stop is called when a barrier is due; an error: thread *late did not
	 * stop, and all others go on. go_on follows if it is 0. */
	int (*stop)(struct rpmemfs *r, pid_t *late);
	void (*go_on)(struct rpmemfs *r);
};

/*
 * A member is the state of the barrier going on; only the helper thread uses
 * it. IDLE -> (DUE) PARKING -> (all threads parked) PARKED -> (GO) COPIED ->
 * (RELEASE) IDLE, or RELEASE with an error from any of them.
 */
struct member {
	enum { IDLE, PARKING, PARKED, COPIED } state;
	uint64_t n;		/* the daemon's number of the barrier */
	uint64_t number;	/* the threads' number of it */
	uint64_t tag;		/* of pages copied now */
	uint64_t timeout_ns;
	uint64_t late_at;	/* when threads are late; NEVER: were named */
	uint64_t answer_by;	/* when the daemon is given up */
	uint64_t since;		/* when it was raised for the threads */
	bool released;		/* by GO already */
	bool stopped;		/* threads, by the quiescer */
	int missed;		/* errno: pages were not captured */
	uint64_t first;		/* pages of the first round */
	unsigned skip, skips;	/* barriers without rounds: to come, last */
	struct rpmemfs_stats stats; /* of this barrier */
};

struct rpmemfs {
	struct threads threads;	/* first: its first line is the hot one */

	/* The daemon's numbers of epochs; the helper thread writes them. That
	 * of a lost epoch is used again. */
	_Atomic uint64_t open;
	_Atomic uint64_t committed;

	int fd;
	uint64_t ino;
	uint8_t *base;
	uint64_t reserve;	/* bytes mapped at base */
	uint64_t timeout_ns;	/* of requests */
	bool no_precopy;
	bool commit_only;	/* a preloaded program: its threads do not park, */
	const struct quiescer *quiescer; /* but may be stopped by this, or NULL */
	/* Stores escape the tracking: the kernel writes back at each barrier. */
	_Atomic bool leaky;

	/* The attachment, made anew in a forked child. */
	int sock;
	int wake;		/* eventfd: threads parked, or stop */
	struct capture capture;
	bool said_tracks;	/* to the daemon */
	struct member member;
	pthread_t helper;
	bool joined;
	_Atomic int stop;
	_Atomic uint32_t ended;	/* futex: the helper thread has */

	_Atomic bool detached;	/* in a forked child that made no call yet */

	pthread_mutex_t lock;	/* guards the fields below */
	uint64_t last_id;
	uint64_t seals;		/* GOs handled */
	struct request *requests;
	struct rpmemfs_stats stats;

	struct rpmemfs *next;	/* guarded by the lock in fork.c */
};

/* map.c */

/* map_size is the size of the file, at most what is mapped, whole pages. The
 * argument is a struct rpmemfs. */
uint64_t map_size(void *region);
int map_open(struct rpmemfs *r, const struct rpmemfs_options *opt);
/* map_again maps the file at the same place through another descriptor. */
int map_again(struct rpmemfs *r);
void map_close(struct rpmemfs *r);

/* attach.c */

/* attach makes r a member of its region and starts the helper thread. An error
 * leaves nothing behind. */
int attach(struct rpmemfs *r);
/* detach ends the helper thread and the membership. */
void detach(struct rpmemfs *r);
/* join_helper waits until the helper thread is gone, which was told to stop. */
void join_helper(struct rpmemfs *r);
/* abandon gives up, in a forked child, what belongs to the parent. */
void abandon(struct rpmemfs *r);

/* member.c */

void *member_run(void *region);
/* member_serve begins the epoch after the sealed one, and tells requests that
 * the barrier is over. */
void member_serve(struct rpmemfs *r, uint64_t epoch);

/* barrier.c: each handles a message and returns 0 or the error by which the
 * attachment ends. */
int barrier_due(struct rpmemfs *r, uint64_t n, uint64_t timeout_ns);
int barrier_arrived(struct rpmemfs *r);
int barrier_late(struct rpmemfs *r);
int barrier_drain(struct rpmemfs *r, uint64_t n);
int barrier_go(struct rpmemfs *r, const struct wire_go *go);
int barrier_release(struct rpmemfs *r, const struct wire_release *release);
/* barrier_go_on lets the threads of a preloaded program run again. */
void barrier_go_on(struct rpmemfs *r);

/* restart.c */

/* enter finds the calling thread's record, registering it if need be; in a
 * forked child it attaches first. fresh: it was registered just now, and is
 * ALLOWED. */
int enter(struct rpmemfs *r, struct thread **self, bool *fresh);

/* fork.c */
int list_add(struct rpmemfs *r);
void list_remove(struct rpmemfs *r);
/* attached makes sure that a forked child is. */
int attached(struct rpmemfs *r);

#endif
