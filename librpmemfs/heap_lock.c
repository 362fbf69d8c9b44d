#define _GNU_SOURCE /* OFD locks, syscall */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "heap.h"

/* How long a waiter believes in a dead holder's rollback, and in a live one. */
static const int64_t wait_dead_ns = INT64_C(10) * 1000 * 1000 * 1000;
static const int64_t wait_alive_ns = INT64_C(60) * 1000 * 1000 * 1000;
/* How long it sleeps before it looks whether the holder lives. */
static const int64_t nap_ns = 20 * 1000 * 1000;

enum { SPINS = 200 };

static int64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 * 1000 * 1000 + ts.tv_nsec;
}

static void word_wait(_Atomic uint32_t *word, uint32_t seen)
{
	struct timespec nap = { .tv_nsec = nap_ns };

	syscall(SYS_futex, word, FUTEX_WAIT, seen, &nap, NULL, 0);
}

static bool holder_lives(struct rpmemfs_heap *h, uint32_t id)
{
	/* An error says nothing: believe in the longer wait. */
	return h->fd < 0 || rh_file_locked(h->fd, rh_byte_id(id), 1) != 0;
}

/*
 * Waits for the word, with the private mutex held: a holder with our own id is
 * a remnant of an epoch that was committed in the middle of a call.
 */
static int word_lock_slow(struct rpmemfs_heap *h)
{
	_Atomic uint32_t *word = &h->header->lock;
	const uint32_t waiters = (uint32_t)RH_LOCK_WAITERS;
	int64_t dead_since = 0, since = 0;

	for (unsigned turn = 0;; turn++) {
		uint32_t seen = atomic_load(word);
		uint32_t holder = seen & RH_LOCK_ID;

		if (holder == 0 || holder == h->id) {
			/* Others may wait too; let unlock wake them. */
			if (atomic_compare_exchange_weak(word, &seen,
							 h->id | waiters))
				return 0;
			continue;
		}
		if (turn < SPINS)
			continue;
		if (!(seen & waiters) &&
		    !atomic_compare_exchange_weak(word, &seen, seen | waiters))
			continue;
		word_wait(word, seen | waiters);

		int64_t now = now_ns();
		if (since == 0)
			since = now;
		if (holder_lives(h, holder))
			dead_since = 0;
		else if (dead_since == 0)
			dead_since = now;
		if (dead_since != 0 && now - dead_since > wait_dead_ns)
			return -EOWNERDEAD;
		if (now - since > wait_alive_ns)
			return -ETIMEDOUT;
	}
}

uint64_t rh_state_sum(const struct rh_header *header)
{
	const uint64_t *word = (const void *)&header->size;
	uint64_t sum = RH_STATE_SEED;

	for (int i = 0; i < 7; i++)
		sum ^= word[i];
	return sum;
}

static void release(struct rpmemfs_heap *h)
{
	uint32_t was = atomic_exchange(&h->header->lock, 0);

	if (RH_UNLIKELY(was & (uint32_t)RH_LOCK_WAITERS))
		syscall(SYS_futex, &h->header->lock, FUTEX_WAKE, 1, NULL, NULL,
			0);
	pthread_mutex_unlock(&h->mutex);
}

int rh_lock(struct rpmemfs_heap *h)
{
	uint32_t unlocked = 0;
	int err = 0;

	pthread_mutex_lock(&h->mutex);
	if (RH_UNLIKELY(!atomic_compare_exchange_strong(&h->header->lock,
							&unlocked, h->id)))
		err = word_lock_slow(h);
	if (RH_UNLIKELY(err != 0)) {
		pthread_mutex_unlock(&h->mutex);
		return err;
	}
	/* Another process may have grown it past what is mapped here. */
	if (RH_UNLIKELY(h->header->sum != rh_state_sum(h->header) ||
			h->header->size > h->mapped ||
			h->header->chunks > RH_CHUNKS)) {
		release(h);
		return -EUCLEAN;
	}
	return 0;
}

void rh_unlock(struct rpmemfs_heap *h)
{
	h->header->sum = rh_state_sum(h->header);
	release(h);
}

int64_t rh_byte_opening(void)
{
	return INT64_C(1) << 62;
}

int64_t rh_byte_cache(unsigned cache)
{
	return rh_byte_opening() + 4096 + cache;
}

int64_t rh_byte_id(uint32_t id)
{
	return rh_byte_opening() + (INT64_C(1) << 32) + id;
}

static int file_lock(int fd, int how, short type, int64_t byte, int64_t count,
		     struct flock *out)
{
	*out = (struct flock){
		.l_type = type,
		.l_whence = SEEK_SET,
		.l_start = byte,
		.l_len = count,
	};
	while (fcntl(fd, how, out) != 0) {
		if (errno == EINTR)
			continue;
		return errno == EACCES ? -EAGAIN : -errno;
	}
	return 0;
}

int rh_file_lock(int fd, int64_t byte, bool wait)
{
	struct flock lock;

	return file_lock(fd, wait ? F_OFD_SETLKW : F_OFD_SETLK, F_WRLCK, byte,
			 1, &lock);
}

void rh_file_unlock(int fd, int64_t byte)
{
	struct flock lock;

	/* Unlocking fails only for arguments that locking took. */
	(void)file_lock(fd, F_OFD_SETLK, F_UNLCK, byte, 1, &lock);
}

int rh_file_locked(int fd, int64_t byte, int64_t count)
{
	struct flock lock;
	int err = file_lock(fd, F_OFD_GETLK, F_WRLCK, byte, count, &lock);

	return err != 0 ? err : lock.l_type != F_UNLCK;
}
