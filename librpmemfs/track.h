/*
 * Which pages of a mapping were stored to: userfaultfd in asynchronous
 * write-protect mode and the PAGEMAP_SCAN ioctl, Linux 6.7 and newer.
 */
#ifndef TRACK_H
#define TRACK_H

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
};

/*
 * track_open starts to track the mapping [base, base+bytes). Until it is
 * closed the process must not register it elsewhere. A negative errno: this
 * kernel (or a container's policy) does not let us; nothing is held then.
 */
int track_open(struct track *t, void *base, size_t bytes);
void track_close(struct track *t);

/*
 * track_arm makes the pages below bytes tell a first read from a first store.
 * It must come before anyone can store to them: what was stored before is not
 * reported. Pages beyond, which the file gets when it grows, are reported once
 * when they are first read, which costs time and nothing else.
 */
void track_arm(struct track *t, uint64_t bytes);

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
