/*
 * Waiting for a word of memory to change, and the clock of all deadlines.
 */
#ifndef FUTEX_H
#define FUTEX_H

#include <errno.h>
#include <linux/futex.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* NEVER is a deadline that does not come. */
#define NEVER UINT64_MAX

enum { MSEC = 1000000, SEC = 1000000000 };

/* now_ns is CLOCK_MONOTONIC, which is also the clock of ring entries. */
static inline uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * SEC + (uint64_t)t.tv_nsec;
}

/* after_ns is the deadline that comes ns from now. */
static inline uint64_t after_ns(uint64_t ns)
{
	uint64_t now = now_ns();

	return ns < NEVER - now ? now + ns : NEVER;
}

/*
 * futex_wait sleeps while *word == seen, at most until the deadline. It may
 * return early. False: the deadline has passed. A shared word lies in memory
 * that other processes wake.
 */
static inline bool futex_wait(_Atomic uint32_t *word, uint32_t seen,
			      uint64_t deadline, bool shared)
{
	int op = FUTEX_WAIT_BITSET | (shared ? 0 : FUTEX_PRIVATE_FLAG);
	struct timespec t = {
		.tv_sec = (time_t)(deadline / SEC),
		.tv_nsec = (long)(deadline % SEC),
	};

	return syscall(SYS_futex, word, op, seen, deadline == NEVER ? NULL : &t,
		       NULL, FUTEX_BITSET_MATCH_ANY) == 0 ||
	       errno != ETIMEDOUT;
}

/* futex_wake wakes up to n waiters of this process. */
static inline void futex_wake(_Atomic uint32_t *word, int n)
{
	syscall(SYS_futex, word, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, n, NULL, NULL,
		0);
}

#endif
