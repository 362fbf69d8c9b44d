/*
 * Capture: finding the pages that were stored to and copying them into the
 * ring, by the helper thread and, at a barrier, by the threads that wait.
 */
#ifndef CAPTURE_H
#define CAPTURE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "ring.h"
#include "track.h"

/* The list of a scan holds at most so much; then it is copied. */
enum { CAPTURE_RANGES = 16384, CAPTURE_PAGES = 16384 };

struct capture {
	_Atomic bool tracks;	/* false: the daemon has to drain */
	uint8_t *base;
	struct track track;
	struct ring ring;
	void (*kick)(void *arg); /* wakes the daemon; any thread may call it */
	void (*offer)(void *arg, int helpers); /* wakes threads to help */
	int (*check)(void *arg); /* errno that ends waits for the ring, or 0 */
	void *arg;
	int helpers;		/* threads worth waking: processors less one */

	/* The pass going on; the helper thread writes all this while the job
	 * is closed, and helping threads read it while it is open. */
	uint64_t at, end;	/* bytes: scanned up to, mapping's end */
	struct range *list;
	int ranges;
	uint64_t pages;		/* in the list */
	uint64_t tag;
	uint64_t deadline;
	uint32_t spare;		/* frames of the ring to leave free */
	uint64_t most;		/* pages in a list */
	uint8_t *seen;		/* by page: mark of the last barrier that took it */
	uint64_t marks;		/* bytes at seen */
	uint8_t mark;		/* of this barrier; any but 0 */
	_Atomic uint64_t twice;	/* pages taken more than once for this barrier */
	_Atomic uint64_t next;	/* page of the list to copy next */
	_Atomic int error;	/* of the pass, first one */

	pthread_mutex_t lock;	/* guards the fields below */
	pthread_cond_t left;
	bool open;
	int inside;
};

/*
 * capture_open prepares to capture the mapping of reserve bytes at base, whose
 * file has size bytes. The caller has set kick, offer, check and arg. That the
 * kernel cannot track is no error.
 */
int capture_open(struct capture *c, uint8_t *base, uint64_t reserve,
		 uint64_t size);
void capture_close(struct capture *c);

/* capture_barrier begins to count the pages that barrier n takes twice. */
void capture_barrier(struct capture *c, uint64_t n);

/*
 * A pass is capture_begin, then capture_scan and capture_copy in turns while
 * capture_more. Until a list was copied nothing else remembers its pages.
 * deadline bounds waits for room in the ring. A pass ahead of the barrier
 * leaves some of the ring to those who are in more of a hurry, and takes short
 * lists: a page that the program's memory has to get first, or that there is no
 * room for, may take milliseconds. An error: pages were missed.
 */
void capture_begin(struct capture *c, uint64_t size, uint64_t tag,
		   uint64_t deadline, bool ahead);
int capture_scan(struct capture *c);
int capture_copy(struct capture *c, bool shared);

static inline bool capture_more(const struct capture *c)
{
	return c->at < c->end;
}

/* capture_pages copies n <= RING_BATCH pages that the daemon named; those from
 * limit on do not exist. */
int capture_pages(struct capture *c, const uint64_t *pages, unsigned n,
		  uint64_t limit);

/* capture_help takes part in the copying that is on offer. False: none is. */
bool capture_help(struct capture *c);

#endif
