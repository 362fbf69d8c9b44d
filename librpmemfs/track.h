/*
 * Which pages of a mapping were stored to: userfaultfd in asynchronous
 * write-protect mode and the PAGEMAP_SCAN ioctl, Linux 6.7 and newer.
 */
#ifndef TRACK_H
#define TRACK_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

enum { PAGE = 4096 };

/* A range of pages that were stored to. */
struct range {
	uint64_t page;
	uint64_t count;
	uint64_t before;	/* pages in the ranges before this one */
};

struct track {
	int uffd;
	int pagemap;
	uint8_t *base;
	uint64_t bytes;

	pthread_mutex_t lock;	/* guards the fields below */
	uint64_t armed;		/* bytes, see track_ahead */
	struct range unsure;	/* reported by the next scan; count 0: none */
};

/*
 * track_open starts to track the mapping [base, base+bytes). Until it is
 * closed the process must not register it elsewhere. A negative errno: this
 * kernel (or a container's policy) does not let us; nothing is held then.
 */
int track_open(struct track *t, void *base, size_t bytes);
void track_close(struct track *t);

/*
 * A page that was never touched is reported as stored to, unless it is armed.
 * That costs time only, but much of it if a file grows by gigabytes. So pages
 * are armed before the file reaches them; arming later could forget a store.
 *
 * track_arm arms all pages of a file of size bytes, and some beyond. No thread
 * may be storing; what was stored before is not reported.
 */
void track_arm(struct track *t, uint64_t size);

/*
 * track_ahead arms pages ahead of a file that has, or is about to have, size
 * bytes, while threads store. file_size is called to find out whether the file
 * has overtaken it.
 */
void track_ahead(struct track *t, uint64_t size, uint64_t (*file_size)(void *),
		 void *arg);

/*
 * track_scan finds what was stored to in bytes [*at, end) since it was last
 * reported, write-protects it again, and moves *at to where it stopped: at
 * end, or where it had max ranges or max_pages pages. A store after the scan is
 * reported by the next one. It returns the number of ranges or a negative
 * errno, after which pages may have been missed.
 */
int track_scan(struct track *t, uint64_t *at, uint64_t end, struct range *list,
	       int max, uint64_t max_pages);

#endif
