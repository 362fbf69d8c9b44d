#define _GNU_SOURCE
#include "ring.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "futex.h"
#include "track.h"

struct header {
	char magic[8];
	uint32_t version;
	uint32_t frames;
	uint8_t unused0[48];
	_Atomic uint64_t head;
	uint8_t unused1[56];
	_Atomic uint64_t tail;
	_Atomic uint32_t space;
	_Atomic uint32_t space_waiters;
	uint8_t unused2[48];
	_Atomic uint32_t asleep;
};

_Static_assert(offsetof(struct header, head) == 64, "");
_Static_assert(offsetof(struct header, tail) == 128, "");
_Static_assert(offsetof(struct header, space) == 136, "");
_Static_assert(offsetof(struct header, space_waiters) == 140, "");
_Static_assert(offsetof(struct header, asleep) == 192, "");

struct entry {
	_Atomic uint64_t seq;	/* position + 1 once the frame is full */
	uint64_t page;
	uint64_t when;
	uint64_t tag;
};

_Static_assert(sizeof(struct entry) == 32, "");

/* How long a wait for space goes without a check. */
enum { LOOK = 50 * MSEC };

/* Frames that get memory at once; divides every ring's number of them. */
enum { BACKED_STEP = 1024 };

static size_t frames_at(uint32_t frames)
{
	size_t end = PAGE + frames * sizeof(struct entry);

	return (end + PAGE - 1) / PAGE * PAGE;
}

static struct header *header(const struct ring *r)
{
	return (struct header *)(void *)r->map;
}

/* Linux 5.14. */
enum { POPULATE_WRITE = 23 };

/* back makes sure that the first frames, up to this one, have memory: running
 * out of it when they are stored to would be SIGBUS. */
static int back(struct ring *r, uint64_t frame)
{
	int error = 0;

	if (frame > r->frames)
		frame = r->frames;
	if (frame <= atomic_load(&r->backed))
		return 0;
	pthread_mutex_lock(&r->backing);
	while (frame > atomic_load(&r->backed)) {
		size_t from = frames_at(r->frames) +
			      (size_t)atomic_load(&r->backed) * PAGE;

		error = -posix_fallocate(r->fd, (off_t)from,
					 (off_t)BACKED_STEP * PAGE);
		if (error)
			break;
		/* Cheaper than a fault for each; without it they come. */
		(void)madvise(r->map + from, (size_t)BACKED_STEP * PAGE,
			      POPULATE_WRITE);
		atomic_fetch_add(&r->backed, BACKED_STEP);
	}
	pthread_mutex_unlock(&r->backing);
	return error;
}

int ring_open(struct ring *r, uint64_t pages)
{
	int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
	int error;
	void *map;

	*r = (struct ring){ .frames = RING_MIN_FRAMES };
	while (r->frames < RING_MAX_FRAMES && r->frames < pages)
		r->frames *= 2;
	r->bytes = frames_at(r->frames) + (size_t)r->frames * PAGE;
	r->fd = memfd_create("rpmemfs-ring", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (r->fd < 0)
		return -errno;
	pthread_mutex_init(&r->backing, NULL);
	if (ftruncate(r->fd, (off_t)r->bytes)) {
		error = errno;
		goto fail;
	}
	error = posix_fallocate(r->fd, 0, (off_t)frames_at(r->frames));
	if (error)
		goto fail;
	error = ENOMEM;
	map = mmap(NULL, r->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd,
		   0);
	if (map == MAP_FAILED)
		goto fail;
	r->map = map;
	error = -back(r, BACKED_STEP);
	if (error)
		goto fail;
	if (fcntl(r->fd, F_ADD_SEALS, seals)) {
		error = errno;
		goto fail;
	}
	memcpy(header(r)->magic, "RPMRING", 8);
	header(r)->version = 1;
	header(r)->frames = r->frames;
	return 0;
fail:
	ring_close(r);
	return -error;
}

void ring_close(struct ring *r)
{
	if (r->map)
		munmap(r->map, r->bytes);
	if (r->fd >= 0)
		close(r->fd);
	*r = (struct ring){ .fd = -1 };
}

uint64_t ring_head(const struct ring *r)
{
	return atomic_load(&header(r)->head);
}

void ring_ahead(struct ring *r, uint64_t n)
{
	(void)back(r, ring_head(r) + n); /* or whoever needs it does */
}

/* room reports whether n positions from head on, and spare ones, are free. */
static bool room(struct ring *r, uint64_t head, unsigned n, uint32_t spare)
{
	return head + n - atomic_load(&header(r)->tail) <= r->frames - spare;
}

/* busy: the daemon should be awake. Sooner, and it would compete for processors
 * with the threads that copy. */
static bool busy(struct ring *r)
{
	return atomic_load(&header(r)->head) - atomic_load(&header(r)->tail) >
	       r->frames / 4 * 3;
}

static int wait_for_room(struct ring *r, unsigned n, const struct patience *p)
{
	struct header *h = header(r);

	for (;;) {
		uint32_t space = atomic_load(&h->space);
		uint64_t look = after_ns(LOOK);
		int error = p->check(p->arg);

		if (error)
			return error;
		/* Waiters first, then the look at tail: the daemon moves tail
		 * first and then looks for waiters. */
		atomic_store(&h->space_waiters, 1);
		if (room(r, atomic_load(&h->head), n, p->spare))
			return 0;
		if (now_ns() >= p->deadline)
			return -ETIMEDOUT;
		futex_wait(&h->space, space,
			   look < p->deadline ? look : p->deadline, true);
	}
}

/* claim takes n positions. It takes none that are not free: an error must
 * leave no hole, which the daemon would wait for. */
static int claim(struct ring *r, unsigned n, const struct patience *p,
		 uint64_t *position)
{
	_Atomic uint64_t *head = &header(r)->head;

	*position = atomic_load(head);
	for (;;) {
		int error = back(r, *position + n);

		if (error)
			return error;
		if (!room(r, *position, n, p->spare)) {
			error = wait_for_room(r, n, p);
			if (error)
				return error;
			*position = atomic_load(head);
		} else if (atomic_compare_exchange_weak(head, position,
							*position + n)) {
			return 0;
		}
	}
}

int ring_put(struct ring *r, const uint8_t *base, const uint64_t *pages,
	     unsigned n, uint64_t tag, const struct patience *patience,
	     int *kick)
{
	struct entry *entries = (struct entry *)(void *)(r->map + PAGE);
	uint8_t *frames = r->map + frames_at(r->frames);
	uint64_t position, when;
	uint32_t asleep = 1;
	int error;

	error = claim(r, n, patience, &position);
	if (error)
		return error;
	/* The scan is over, the copying not begun: a store that the copy may
	 * miss is later than both, and reported by the next scan. */
	when = now_ns();
	for (unsigned i = 0; i < n; i++, position++) {
		size_t slot = position % r->frames;
		struct entry *e = &entries[slot];

		memcpy(frames + slot * PAGE, base + pages[i] * PAGE, PAGE);
		e->page = pages[i];
		e->when = when;
		e->tag = tag;
		/* seq_cst, as asleep below: the daemon stores asleep and then
		 * looks at seq once more. */
		atomic_store(&e->seq, position + 1);
	}
	if (atomic_load(&header(r)->asleep) && busy(r) &&
	    atomic_compare_exchange_strong(&header(r)->asleep, &asleep, 0))
		*kick = 1;
	return 0;
}
