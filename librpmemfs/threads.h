/*
 * The thread protocol: how the threads of a program stop for a barrier.
 *
 * Barriers that threads have to look at are numbered by the region's helper
 * thread: due is the newest number raised, released the newest one that is
 * over (or was called off). A thread parks by storing the number it saw due
 * into its own acked, and waits until released has reached it. acked is never
 * cleared: a thread that was preempted on its way out of a barrier shows an
 * old number and does not look parked at the next one. (With a flag it would:
 * the trap of Khorguani et al., "ResPCT: Fast Checkpointing in Non-volatile
 * Memory for Multi-threaded Applications", EuroSys 2022,
 * doi:10.1145/3492321.3519590.)
 *
 * A thread that may block says so: acked = ALLOWED counts as parked at every
 * barrier. Leaving that state is Dekker's protocol with the helper: the thread
 * stores acked and then loads due, the helper stores due and then loads acked,
 * all four seq_cst, so that at least one of them sees the other.
 */
#ifndef THREADS_H
#define THREADS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#define ALLOWED UINT64_MAX
/* FAILED as due never equals an acked: every restart point takes the slow way
 * and returns the error. */
#define FAILED (UINT64_MAX - 1)

struct threads;

/* A thread is the record of one thread in one region. */
struct thread {
	_Atomic uint64_t acked;	/* written by the thread only */
	uint64_t losses;	/* how many it was told of; its own */
	pid_t tid;
	struct thread *mine;	/* next record of the same thread; its own */

	/* guarded by the lock in threads.c */
	struct threads *of;	/* NULL: the region was closed */
	struct thread *next, **link;
};

/* A threads is all threads of a region, seen from this process. */
struct threads {
	/* Its upper bits are the region's, so that no two regions of a process
	 * ever have the same number due. */
	_Atomic uint64_t due;
	uint64_t id;		/* the first due; never used twice */

	_Atomic uint64_t released;
	_Atomic uint64_t losses; /* epochs lost by the death of others */
	_Atomic int error;	/* final; set before due = FAILED */
	/* gate is the futex of all waiting threads. It moves when released, a
	 * job to help with, or anything else that they may wait for changed. */
	_Atomic uint32_t gate;
	_Atomic uint64_t arrivals; /* threads that parked or went */
	_Atomic uint64_t wanted;   /* arrivals at which to wake the helper */
	int wake;		/* eventfd of the helper */

	/* help lets a waiting thread take part in a job of the helper. False:
	 * there is none. */
	bool (*help)(void *arg);
	void *arg;

	struct thread *first;	/* guarded by the lock in threads.c */
};

/* The calling thread's records. */
struct mine {
	uint64_t acked;		/* as in self */
	uint64_t id;		/* of the region that self belongs to */
	struct thread *self;	/* the last that was used */
	struct thread *first;
};

extern _Thread_local struct mine mine
	__attribute__((tls_model("initial-exec"), visibility("hidden")));

/* threads_init begins with no thread. wake stays the caller's. */
void threads_init(struct threads *t, int wake, bool (*help)(void *), void *arg);

/* threads_end forgets all threads. None of them may be inside a call. */
void threads_end(struct threads *t);

/* threads_find is the calling thread's record, or NULL. */
struct thread *threads_find(struct threads *t);

/* threads_add registers the calling thread, in state ALLOWED. -ENOMEM. */
int threads_add(struct threads *t, struct thread **out);

/* threads_remove unregisters the calling thread. */
void threads_remove(struct threads *t, struct thread *self);

/* thread_passes is a restart point's usual case: no barrier is due. */
static inline bool thread_passes(const struct threads *t)
{
	/* Relaxed: who misses the newest due here parks at the next restart
	 * point, and the helper waits for that. */
	return mine.acked ==
	       atomic_load_explicit(&t->due, memory_order_relaxed);
}

/*
 * thread_park is a restart point at which a barrier may be due; it returns
 * when that barrier is over. 0, -EOWNERDEAD once after a loss, or the error
 * of the region.
 */
int thread_park(struct threads *t, struct thread *self);

/* thread_allow lets barriers pass without the calling thread, until
 * thread_prevent, which waits for the one that may be going on. Errors as in
 * thread_park. */
void thread_allow(struct threads *t, struct thread *self);
int thread_prevent(struct threads *t, struct thread *self);

/* thread_try_prevent does not wait: false, and the thread stays ALLOWED, while
 * a barrier is going on or after an error. */
bool thread_try_prevent(struct threads *t, struct thread *self);

static inline bool thread_allowed(struct thread *self)
{
	return atomic_load_explicit(&self->acked, memory_order_relaxed) ==
	       ALLOWED;
}

/* thread_verdict is what a call returns after it waited: see thread_park. */
int thread_verdict(struct threads *t, struct thread *self);

/* threads_wait waits until released has reached number, and helps meanwhile.
 * The helper ends every barrier, so this ends. */
void threads_wait(struct threads *t, uint64_t number);

/*
 * thread_cond_wait and thread_mutex_lock block in the state ALLOWED, and have
 * the mutex when they return 0, -EOWNERDEAD or the error of the region. While
 * a barrier is going on they give it up again: who runs through the barrier
 * may need it. stay: the thread was ALLOWED by itself and remains so.
 * The time is as in pthread_cond_timedwait; NULL: none. Other
 * errors are those of the functions they are named after; -ETIMEDOUT has the
 * mutex.
 */
int thread_cond_wait(struct threads *t, struct thread *self,
		     bool stay, pthread_cond_t *cond, pthread_mutex_t *mutex,
		     const struct timespec *until);
int thread_mutex_lock(struct threads *t, struct thread *self,
		      pthread_mutex_t *mutex);

/* What the helper thread calls. */

/* threads_raise makes a barrier due. */
uint64_t threads_raise(struct threads *t);

/*
 * threads_parked reports whether all threads are parked at number. If not, it
 * names one that is late, and the last of the threads that are missing writes
 * to the eventfd when it arrives.
 */
bool threads_parked(struct threads *t, uint64_t number, pid_t *late);

/* threads_release ends the barrier that is due. */
void threads_release(struct threads *t);

/* threads_fail lets all threads go, now and for ever, with an error. */
void threads_fail(struct threads *t, int error);

/* threads_news wakes all waiting threads: what they wait for may be there. */
void threads_news(struct threads *t, int count);

/* fork: hold the lock across it; the child has no registered thread. */
void threads_lock(void);
void threads_unlock(void);
void threads_child(void);	/* once in the child, with the lock held */
void threads_forget(struct threads *t); /* then for each region */

#endif
