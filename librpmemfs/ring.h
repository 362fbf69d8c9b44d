/*
 * The ring through which captured pages go to the daemon. docs/protocol.md has
 * its layout.
 */
#ifndef RING_H
#define RING_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum {
	RING_MIN_FRAMES = 1024,
	RING_MAX_FRAMES = 16384,
	RING_BATCH = 16,	/* pages a call may put */
};

struct ring {
	int fd;			/* memfd, sealed against shrinking and growing */
	uint32_t frames;
	uint8_t *map;
	size_t bytes;
};

/* ring_open makes a ring that suits a file of so many pages, all of its
 * memory allocated. */
int ring_open(struct ring *r, uint64_t pages);
void ring_close(struct ring *r);

/* ring_head is the position after the last one claimed. */
uint64_t ring_head(const struct ring *r);

/* How long to wait for room: until the deadline, or until check says other
 * than 0. */
struct patience {
	uint64_t deadline;
	int (*check)(void *arg);
	void *arg;
};

/*
 * ring_put copies n <= RING_BATCH pages of the mapping at base into the ring.
 * It is safe for concurrent use. While the ring is full it waits for the
 * daemon; -ETIMEDOUT, or what check said. An error leaves the ring as it was.
 * *kick is set if the daemon has to be woken (it is left alone otherwise).
 */
int ring_put(struct ring *r, const uint8_t *base, const uint64_t *pages,
	     unsigned n, uint64_t tag, const struct patience *patience,
	     int *kick);

#endif
