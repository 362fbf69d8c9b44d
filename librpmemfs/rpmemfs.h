/*
 * librpmemfs: memory that outlives the program, one epoch at a time.
 *
 * A program opens a file of an rpmemfs mount, gets memory, and stores to it.
 * At a checkpoint everything that its threads (and those of all other programs
 * that have the file open this way) stored since the last one becomes durable
 * as one epoch: all of it or none of it. After any crash the file holds
 * exactly the last committed epoch.
 *
 *	struct rpmemfs *region;
 *	struct rpmemfs_options options = {
 *		.flags = RPMEMFS_CREATE, .size = 1 << 30,
 *	};
 *	int error = rpmemfs_open("/mnt/a/heap", &options, &region);
 *
 *	if (error)
 *		errx(1, "heap: %s", rpmemfs_strerror(error));
 *	struct state *state = rpmemfs_base(region);
 *	for (;;) {
 *		change(state);
 *		rpmemfs_restart_point(region);
 *	}
 *
 * Restart points. A checkpoint is cut at a barrier: a moment at which every
 * registered thread stands at a restart point, a place in the program where
 * the thread holds no half-made change. Between two restart points a thread
 * may store what it likes; none of it is ever seen alone. When no checkpoint
 * is due a restart point costs a nanosecond or two. When one is due the thread
 * waits there until all threads have come and their stores have been copied
 * (microseconds to a few milliseconds); it does not wait until the epoch is
 * durable. A thread that may block elsewhere (I/O, a lock, a condition) would
 * hold all others up, so it says so first: rpmemfs_allow_checkpoint,
 * rpmemfs_cond_wait, rpmemfs_mutex_lock.
 *
 * Threads register with their first restart point (the one that opens the
 * region: by that) and are forgotten when they end. A thread that is not
 * registered is not waited for, and must not store to the memory. A registered
 * one that only waits for others (pthread_join) has to allow checkpoints, or
 * to unregister.
 *
 * When checkpoints are made: when rpmemfs_checkpoint is called, when msync or
 * fsync is called on the file, by `rpmemctl checkpoint`, and at the mount's
 * interval if it has one. If a thread does not come to a restart point in time
 * the checkpoint is called off, the caller is told which thread was late, and
 * the epoch goes on.
 *
 * Errors are returned as negative errno values; rpmemfs_strerror describes
 * them. Every function may return, beside what it lists,
 *
 *	-EOWNERDEAD	Another program that had the region open died. What was
 *			stored since the last committed epoch, by anyone, is
 *			gone: memory holds the last committed epoch again. Each
 *			thread is told once. Whatever it knows about the
 *			memory from before (pointers, counts, locks held for
 *			it) has to be read anew.
 *	-EIO		The daemon is gone, or an I/O error has made the file
 *			read-only until it is mounted again. For ever: close.
 *
 * and then a thread may go on at once, but not as if nothing had happened.
 *
 * Death. If the program is killed, or ends by _exit or exec, the open epoch is
 * rolled back. If it ends by exit or by returning from main, it is detached as
 * by rpmemfs_close.
 *
 * fork. The child has the memory, and attaches by itself at its first call
 * here, with the calling thread only. Before that call it must not store to
 * the memory. If it cannot attach, its calls return the error, each time.
 *
 * Without Linux 6.7 (asynchronous write protection of userfaultfd), or where a
 * sandbox forbids it, everything works the same and pauses are longer: the
 * kernel writes the pages out during the pause. rpmemfs_stats tells.
 *
 * The library starts one thread a region. It handles no signals and installs
 * no handlers. All functions are safe for concurrent use, except open, close
 * and in signal handlers.
 */
#ifndef RPMEMFS_H
#define RPMEMFS_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default)

/* A struct rpmemfs is an open region: the file, its memory, the attachment. */
struct rpmemfs;

enum {
	/* rpmemfs_options.flags: make the file if it is not there */
	RPMEMFS_CREATE = 1,
	/* the same: copy nothing ahead of the pause. Less is copied in all, and
	 * pauses are longer. */
	RPMEMFS_NO_PRECOPY = 2,
	/* rpmemfs_checkpoint: return when the epoch is durable */
	RPMEMFS_WAIT = 1,
};

/* Zero is the default of each field; new fields take the place of reserved
 * ones. */
struct rpmemfs_options {
	unsigned flags;
	mode_t mode;		/* of a new file; 0: 0600, less the umask */
	size_t size;		/* bytes: a shorter file is made that long */
	/* Bytes of address space to map, which the file may grow to; 0: 64 GiB.
	 * It costs no memory. */
	size_t reserve;
	/* Where to map. NULL: where the heap in the file says, so that pointers
	 * stay valid; else at an address that is likely to be free in the next
	 * process too. A multiple of 64 MiB. */
	void *address;
	/* How long rpmemfs_checkpoint lets threads take to come to a restart
	 * point; 0: the daemon's choice. */
	uint64_t timeout_ns;
	uint64_t reserved[4];	/* must be zero */
};

/*
 * rpmemfs_open opens the file, maps it and attaches to its daemon. The memory
 * holds the last committed epoch (or the open one of other programs that have
 * the region open). opt may be NULL. The calling thread is registered.
 *
 *	-ENOENT, -EACCES ...	of open(2), ftruncate(2), mmap(2)
 *	-EOPNOTSUPP	not a file of an rpmemfs mount, or its daemon cannot
 *			attach programs
 *	-EEXIST		the address asked for, or written in the heap, is taken
 *	-EPERM		the daemon does not let this user attach
 *	-ETIMEDOUT	the daemon did not answer
 */
int rpmemfs_open(const char *path, const struct rpmemfs_options *opt,
		 struct rpmemfs **out);

/*
 * rpmemfs_close detaches and unmaps. It commits nothing: what was stored since
 * the last checkpoint stays with the open epoch if other programs have the
 * region open, and is otherwise subject to the file's contract at its last
 * close (rolled back, by default). No other thread may be in a call. NULL is
 * allowed. It always succeeds.
 */
int rpmemfs_close(struct rpmemfs *region);

/* The memory begins at rpmemfs_base and has rpmemfs_size bytes: those of the
 * file, as of this call. Access beyond the end is SIGBUS, and so is making the
 * file shorter while this program has it open. */
void *rpmemfs_base(struct rpmemfs *region);
size_t rpmemfs_size(struct rpmemfs *region);

/*
 * rpmemfs_grow makes the file, and thus the memory, at least bytes long. What
 * is new is zero. The base stays where it is.
 *
 *	-ENOMEM		more than the address space reserved at open
 *	-ENOSPC		the pool is full
 */
int rpmemfs_grow(struct rpmemfs *region, size_t bytes);

/* A thread registers by its first restart point; to do so earlier makes that
 * cheap. Registering waits for a checkpoint that is going on. -ENOMEM. */
int rpmemfs_thread_register(struct rpmemfs *region);
/* rpmemfs_thread_unregister: checkpoints no longer wait for this thread, until
 * it registers again. It happens by itself when the thread ends. */
int rpmemfs_thread_unregister(struct rpmemfs *region);

/*
 * rpmemfs_restart_point declares that the calling thread holds no half-made
 * change. If a checkpoint is due it waits for the barrier, at most the
 * checkpoint's time-out.
 */
int rpmemfs_restart_point(struct rpmemfs *region);

/*
 * Between rpmemfs_allow_checkpoint and rpmemfs_prevent_checkpoint checkpoints
 * do not wait for the calling thread, which must not store to the memory.
 * Both are restart points; prevent waits while a barrier is going on.
 */
int rpmemfs_allow_checkpoint(struct rpmemfs *region);
int rpmemfs_prevent_checkpoint(struct rpmemfs *region);

/*
 * These wait as the pthread functions they are named after do, and let
 * checkpoints pass meanwhile: call them where the thread could have a restart
 * point. The mutex must not be part of a half-made change either: during a
 * checkpoint it is given up and taken again, so look at the condition again,
 * as always. Keep mutexes and conditions in ordinary memory.
 *
 * On 0, -ETIMEDOUT, -EOWNERDEAD and -EIO the mutex is held. Other errors are
 * those of pthread_cond_wait and so on, negative.
 */
int rpmemfs_cond_wait(struct rpmemfs *region, pthread_cond_t *cond,
		      pthread_mutex_t *mutex);
int rpmemfs_cond_timedwait(struct rpmemfs *region, pthread_cond_t *cond,
			   pthread_mutex_t *mutex,
			   const struct timespec *until);
int rpmemfs_mutex_lock(struct rpmemfs *region, pthread_mutex_t *mutex);

/*
 * rpmemfs_checkpoint makes a checkpoint. It is a restart point of the calling
 * thread. It returns when the threads go on; everything stored before the call
 * is then part of an epoch, whose number is stored in *epoch (unless NULL), but
 * that epoch may not be durable yet. With RPMEMFS_WAIT in flags it returns
 * when it is.
 *
 *	-ETIMEDOUT	called off: a thread did not come to a restart point
 *			(rpmemfs_stats names it), or the daemon does not answer
 *	-ENOSPC		the pool is full; the epoch stays open
 */
int rpmemfs_checkpoint(struct rpmemfs *region, unsigned flags, uint64_t *epoch);

/*
 * rpmemfs_wait_durable waits until epoch is committed, at most for the time
 * given (relative; NULL: no limit), and lets checkpoints pass meanwhile: it is
 * a restart point. It does not ask for a checkpoint.
 *
 *	-ETIMEDOUT	not committed yet
 *	-EINVAL		no such epoch has begun
 */
int rpmemfs_wait_durable(struct rpmemfs *region, uint64_t epoch,
			 const struct timespec *timeout);

/* rpmemfs_epoch is the number of the open epoch: what the calling thread stores
 * between here and its next restart point is durable when rpmemfs_committed
 * has reached it. The number of a lost epoch is used again. */
uint64_t rpmemfs_epoch(struct rpmemfs *region);
uint64_t rpmemfs_committed(struct rpmemfs *region);

enum rpmemfs_capture {
	RPMEMFS_CAPTURE_DRAIN,	 /* by the kernel's write-back */
	RPMEMFS_CAPTURE_WP_ASYNC, /* by userfaultfd; short pauses */
};

struct rpmemfs_stats {
	uint64_t barriers;	/* completed */
	uint64_t called_off;
	uint64_t lost;		/* times the open epoch was lost */

	/* of the last completed barrier */
	uint64_t pause_ns;	/* from the moment it was due for threads */
	uint64_t park_ns;	/* until all threads were parked */
	uint64_t scan_ns;	/* finding pages, during the pause */
	uint64_t copy_ns;	/* copying them */
	uint64_t pages;		/* copied during the pause */
	uint64_t precopied;	/* pages copied before it */
	uint64_t rounds;	/* in which that was done */

	enum rpmemfs_capture capture;
	/* the thread that was late when a barrier was called off last */
	uint32_t late_tid;
	char late_name[16];
	uint64_t reserved[4];
};

int rpmemfs_stats(struct rpmemfs *region, struct rpmemfs_stats *out);

/* rpmemfs_strerror describes an error returned by this library. */
const char *rpmemfs_strerror(int error);

#include "rpmemfs_heap.h"

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif

#endif
