#define _GNU_SOURCE
#include "track.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/*
 * From the kernel's interface (Linux 6.7: linux/userfaultfd.h, linux/fs.h).
 * Headers of distributions are older than the kernels that run there.
 */
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

enum {
	WP_UNPOPULATED = 1 << 13,	/* UFFD_FEATURE_WP_UNPOPULATED */
	WP_ASYNC = 1 << 15,		/* UFFD_FEATURE_WP_ASYNC */
	SCAN_WP_MATCHING = 1 << 0,	/* PM_SCAN_WP_MATCHING */
	SCAN_CHECK_WPASYNC = 1 << 1,	/* PM_SCAN_CHECK_WPASYNC */
	IS_WRITTEN = 1 << 1,		/* PAGE_IS_WRITTEN */
};

struct page_region {
	uint64_t start;
	uint64_t end;
	uint64_t categories;
};

struct scan_arg {			/* struct pm_scan_arg */
	uint64_t size;
	uint64_t flags;
	uint64_t start;
	uint64_t end;
	uint64_t walk_end;
	uint64_t vec;
	uint64_t vec_len;
	uint64_t max_pages;
	uint64_t category_inverted;
	uint64_t category_mask;
	uint64_t category_anyof_mask;
	uint64_t return_mask;
};

_Static_assert(sizeof(struct scan_arg) == 96, "struct pm_scan_arg");

/* How far ahead of the file's end pages are armed; 128 KiB of page tables. */
enum { AHEAD = 64 << 20 };

#define SCAN _IOWR('f', 16, struct scan_arg)

int track_open(struct track *t, void *base, size_t bytes)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = WP_ASYNC | WP_UNPOPULATED |
			    UFFD_FEATURE_PAGEFAULT_FLAG_WP,
	};
	struct uffdio_register area = {
		.range = { (uintptr_t)base, bytes },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};
	struct range none;
	uint64_t at = 0;
	int error;

	*t = (struct track){ .base = base, .bytes = bytes, .pagemap = -1 };
	pthread_mutex_init(&t->lock, NULL);
	/* Faults of the kernel (read(2) into the mapping) are tracked all the
	 * same: in asynchronous mode nobody has to handle them. */
	t->uffd = (int)syscall(SYS_userfaultfd,
			       O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (t->uffd < 0)
		return -errno;
	if (ioctl(t->uffd, UFFDIO_API, &api))
		goto fail;
	t->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (t->pagemap < 0 || ioctl(t->uffd, UFFDIO_REGISTER, &area))
		goto fail;
	error = track_scan(t, &at, PAGE, &none, 1, 1);
	if (error >= 0)
		return 0;
	errno = -error;
fail:
	error = errno;
	track_close(t);
	return -error;
}

void track_close(struct track *t)
{
	if (t->pagemap >= 0)
		close(t->pagemap);
	if (t->uffd >= 0)
		close(t->uffd);
	t->pagemap = t->uffd = -1;
}

static void arm(struct track *t, uint64_t from, uint64_t to)
{
	struct uffdio_writeprotect area = {
		.range = { (uintptr_t)t->base + from, to - from },
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};

	/* A failure costs false reports, see track.h. */
	(void)ioctl(t->uffd, UFFDIO_WRITEPROTECT, &area);
	t->armed = to;
}

static uint64_t ahead_of(const struct track *t, uint64_t size)
{
	return size < t->bytes - AHEAD ? size + AHEAD : t->bytes;
}

void track_arm(struct track *t, uint64_t size)
{
	pthread_mutex_lock(&t->lock);
	t->unsure.count = 0;
	arm(t, 0, ahead_of(t, size));
	pthread_mutex_unlock(&t->lock);
}

void track_ahead(struct track *t, uint64_t size, uint64_t (*file_size)(void *),
		 void *arg)
{
	uint64_t from, to = ahead_of(t, size);

	pthread_mutex_lock(&t->lock);
	if (to <= t->armed || size + AHEAD / 2 <= t->armed) {
		pthread_mutex_unlock(&t->lock);
		return;
	}
	/* Pages that the file has already may have been stored to. */
	from = file_size(arg);
	if (from < t->armed)
		from = t->armed;
	if (from < to)
		arm(t, from, to);
	size = file_size(arg);
	if (size > from) {	/* it grew meanwhile: count all as stored to */
		if (t->unsure.count == 0)
			t->unsure.page = from / PAGE;
		t->unsure.count = size / PAGE - t->unsure.page;
	}
	pthread_mutex_unlock(&t->lock);
}

/* take_unsure begins the list with the pages that were armed too late. */
static int take_unsure(struct track *t, struct range *list)
{
	int n = 0;

	pthread_mutex_lock(&t->lock);
	if (t->unsure.count)
		list[n++] = t->unsure;
	t->unsure.count = 0;
	pthread_mutex_unlock(&t->lock);
	return n;
}

int track_scan(struct track *t, uint64_t *at, uint64_t end, struct range *list,
	       int max, uint64_t max_pages)
{
	uintptr_t base = (uintptr_t)t->base;
	int n = take_unsure(t, list);
	uint64_t before = n ? list[0].count : 0;

	while (*at < end && n < max && before < max_pages) {
		struct page_region found[128];
		int room = max - n < 128 ? max - n : 128;
		struct scan_arg arg = {
			.size = sizeof(arg),
			.flags = SCAN_WP_MATCHING | SCAN_CHECK_WPASYNC,
			.start = base + *at,
			.end = base + end,
			.vec = (uintptr_t)found,
			.vec_len = (uint64_t)room,
			.max_pages = max_pages - before,
			.category_mask = IS_WRITTEN,
			.return_mask = IS_WRITTEN,
		};
		int got = ioctl(t->pagemap, SCAN, &arg);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		for (int i = 0; i < got; i++) {
			struct range *r = &list[n++];

			r->page = (found[i].start - base) / PAGE;
			r->count = (found[i].end - found[i].start) / PAGE;
			r->before = before;
			before += r->count;
		}
		*at = arg.walk_end - base;
	}
	return n;
}
