#define _GNU_SOURCE
#include "capture.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "futex.h"

/* Fewer pages than this are copied sooner than a thread is woken. */
enum { SHARE_PAGES = 64 };

/* A list ahead of the barrier. */
enum { AHEAD_PAGES = 256 };

int capture_open(struct capture *c, uint8_t *base, uint64_t reserve,
		 uint64_t size)
{
	long processors = sysconf(_SC_NPROCESSORS_ONLN);
	int error;

	c->base = base;
	c->ring.fd = c->track.uffd = c->track.pagemap = -1;
	c->helpers = processors > 1 ? (int)processors - 1 : 0;
	pthread_mutex_init(&c->lock, NULL);
	pthread_cond_init(&c->left, NULL);
	c->marks = reserve / PAGE;
	c->seen = mmap(NULL, c->marks, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	c->list = malloc(CAPTURE_RANGES * sizeof(*c->list));
	error = c->list && c->seen != MAP_FAILED ? 0 : -ENOMEM;
	if (!error)
		error = ring_open(&c->ring, reserve / PAGE);
	if (error) {
		capture_close(c);
		return error;
	}
	atomic_store(&c->tracks, track_open(&c->track, base, reserve) == 0);
	if (atomic_load(&c->tracks))
		track_arm(&c->track, size);
	return 0;
}

void capture_close(struct capture *c)
{
	track_close(&c->track);
	ring_close(&c->ring);
	free(c->list);
	c->list = NULL;
	if (c->seen != MAP_FAILED)
		munmap(c->seen, c->marks);
	c->seen = MAP_FAILED;
}

void capture_barrier(struct capture *c, uint64_t n)
{
	/* A mark is good for 255 barriers: then some pages count wrongly. */
	c->mark = (uint8_t)(n % UINT8_MAX + 1);
	atomic_store(&c->twice, 0);
}

void capture_begin(struct capture *c, uint64_t size, uint64_t tag,
		   uint64_t deadline, bool ahead)
{
	c->at = 0;
	c->end = atomic_load(&c->tracks) ? size : 0;
	c->ranges = 0;
	c->pages = 0;
	c->tag = tag;
	c->deadline = deadline;
	c->spare = ahead ? c->ring.frames / 8 : 0;
	c->most = ahead ? AHEAD_PAGES : CAPTURE_PAGES;
	atomic_store(&c->next, 0);
	atomic_store(&c->error, 0);
}

int capture_scan(struct capture *c)
{
	int n = track_scan(&c->track, &c->at, c->end, c->list, CAPTURE_RANGES,
			   c->most);

	c->ranges = n < 0 ? 0 : n;
	c->pages = 0;
	if (n > 0)
		c->pages = c->list[n - 1].before + c->list[n - 1].count;
	atomic_store(&c->next, 0);
	if (n < 0)	/* what it has forgotten is not found again */
		atomic_store(&c->tracks, false);
	return n < 0 ? n : 0;
}

/* put hands n pages to the daemon. */
static int put(struct capture *c, const uint64_t *pages, unsigned n)
{
	int kick = 0;
	struct patience patience = { c->spare, c->deadline, c->check, c->arg };
	int error = ring_put(&c->ring, c->base, pages, n, c->tag, &patience,
			     &kick);

	if (kick)
		c->kick(c->arg);
	return error;
}

/* range_of is the range that the list's page number i lies in. */
static const struct range *range_of(const struct capture *c, uint64_t i)
{
	int low = 0, high = c->ranges - 1;

	while (low < high) {
		int middle = low + (high - low + 1) / 2;

		if (c->list[middle].before <= i)
			low = middle;
		else
			high = middle - 1;
	}
	return &c->list[low];
}

/* work copies batches until none is left or an error occurred. */
static void work(struct capture *c)
{
	while (!atomic_load(&c->error)) {
		uint64_t i = atomic_fetch_add(&c->next, RING_BATCH);
		uint64_t pages[RING_BATCH];
		const struct range *r;
		unsigned n = 0, twice = 0;
		int error, none = 0;

		if (i >= c->pages)
			return;
		r = range_of(c, i);
		for (; n < RING_BATCH && i < c->pages; n++, i++) {
			while (i - r->before >= r->count)
				r++;
			pages[n] = r->page + (i - r->before);
			twice += c->seen[pages[n]] == c->mark;
			c->seen[pages[n]] = c->mark;
		}
		atomic_fetch_add(&c->twice, twice);
		error = put(c, pages, n);
		if (error)
			atomic_compare_exchange_strong(&c->error, &none, error);
	}
}

bool capture_help(struct capture *c)
{
	bool joined;

	pthread_mutex_lock(&c->lock);
	joined = c->open && atomic_load(&c->next) < c->pages;
	if (joined)
		c->inside++;
	pthread_mutex_unlock(&c->lock);
	if (!joined)
		return false;
	work(c);
	pthread_mutex_lock(&c->lock);
	if (--c->inside == 0)
		pthread_cond_signal(&c->left);
	pthread_mutex_unlock(&c->lock);
	return true;
}

int capture_copy(struct capture *c, bool shared)
{
	shared = shared && c->helpers > 0 && c->pages >= SHARE_PAGES;
	if (shared) {
		pthread_mutex_lock(&c->lock);
		c->open = true;
		pthread_mutex_unlock(&c->lock);
		c->offer(c->arg, c->helpers);
	}
	work(c);
	if (shared) {
		/* Helpers are in the middle of a batch at most. */
		pthread_mutex_lock(&c->lock);
		c->open = false;
		while (c->inside > 0)
			pthread_cond_wait(&c->left, &c->lock);
		pthread_mutex_unlock(&c->lock);
	}
	c->ranges = 0;
	c->pages = 0;
	return atomic_load(&c->error);
}

int capture_pages(struct capture *c, const uint64_t *pages, unsigned n,
		  uint64_t limit)
{
	uint64_t batch[RING_BATCH];
	unsigned m = 0;

	for (unsigned i = 0; i < n; i++)
		if (pages[i] < limit)
			batch[m++] = pages[i];
	return m > 0 ? put(c, batch, m) : 0;
}
