/*
 * The ring through which captured pages go to the daemon. docs/protocol.md has
 * its layout.
 */
#ifndef RING_H
#define RING_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum {
	RING_MIN_FRAMES = 1024,
	RING_MAX_FRAMES = 16384,
	RING_BATCH = 16,	/* pages a call may put */
};

struct ring {
	int fd;			/* memfd, sealed: its size is fixed */
	uint32_t frames;
	uint8_t *map;
	size_t bytes;
	/* Frames that have memory. More get it in the ring's first lap, as it
	 * comes to them. */
	_Atomic uint32_t backed;
	pthread_mutex_t backing;
};

/* ring_open makes a ring that suits a file that may grow to so many pages. */
int ring_open(struct ring *r, uint64_t pages);
void ring_close(struct ring *r);

/* ring_ahead gets memory for the next n positions, outside of barriers. */
void ring_ahead(struct ring *r, uint64_t n);

/* ring_head is the position after the last one claimed. */
uint64_t ring_head(const struct ring *r);

/* What counts as room: all but spare frames. How long to wait for it: until
 * the deadline, or until check says other than 0. */
struct patience {
	uint32_t spare;
	uint64_t deadline;
	int (*check)(void *arg);
	void *arg;
};

/*
 * ring_put copies n <= RING_BATCH pages of the mapping at base into the ring.
 * It is safe for concurrent use. While the ring is full it waits for the
 * daemon; -ETIMEDOUT, or what check said. An error leaves the ring as it was.
 * *kick is set if the daemon has to be woken (it is left alone otherwise): not
 * before a good part of the ring is in use, as it would compete for processors
 * with threads on their way to the barrier. After DONE it wakes by itself.
 */
int ring_put(struct ring *r, const uint8_t *base, const uint64_t *pages,
	     unsigned n, uint64_t tag, const struct patience *patience,
	     int *kick);

#endif
