/*
 * Opening and closing a region, and what can be asked about it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "heap_attach.h"
#include "region.h"

static int open_file(struct rpmemfs *r, const char *path,
		     const struct rpmemfs_options *opt)
{
	int flags = O_RDWR | O_CLOEXEC;
	struct stat st;

	if (opt->flags & RPMEMFS_CREATE)
		flags |= O_CREAT;
	r->fd = open(path, flags, opt->mode ? opt->mode : 0600);
	if (r->fd < 0 || fstat(r->fd, &st))
		return -errno;
	return S_ISREG(st.st_mode) ? 0 : -EOPNOTSUPP;
}

/* make_longer makes the file at least bytes long, and never shorter, whoever
 * else is doing the same. */
static int make_longer(struct rpmemfs *r, uint64_t bytes)
{
	struct stat st;

	if (bytes > INT64_MAX)
		return -EFBIG;
	if (fstat(r->fd, &st))
		return -errno;
	if ((uint64_t)st.st_size >= bytes)
		return 0;
	/* ftruncate could take back what another program added meanwhile. */
	return fallocate(r->fd, 0, (off_t)bytes - 1, 1) ? -errno : 0;
}

int rpmemfs_open(const char *path, const struct rpmemfs_options *opt,
		 struct rpmemfs **out)
{
	static const struct rpmemfs_options defaults;
	struct rpmemfs *r;
	int error;

	if (!opt)
		opt = &defaults;
	if (opt->flags & ~(unsigned)(RPMEMFS_CREATE | RPMEMFS_NO_PRECOPY))
		return -EINVAL;
	for (int i = 0; i < 4; i++)
		if (opt->reserved[i])
			return -EINVAL;
	r = aligned_alloc(64, (sizeof(*r) + 63) / 64 * 64);
	if (!r)
		return -ENOMEM;
	*r = (struct rpmemfs){
		.fd = -1,
		.timeout_ns = opt->timeout_ns,
		.no_precopy = opt->flags & RPMEMFS_NO_PRECOPY,
	};
	pthread_mutex_init(&r->lock, NULL);
	error = open_file(r, path, opt);
	if (!error)
		error = map_open(r, opt);
	if (!error)
		error = opt->size > r->reserve ? -ENOMEM :
						 make_longer(r, opt->size);
	if (!error)
		error = attach(r);
	if (error)
		goto fail;
	error = list_add(r);
	if (error)
		goto detach;
	error = rpmemfs_thread_register(r);
	if (error)
		goto remove;
	*out = r;
	return 0;
remove:
	list_remove(r);
detach:
	detach(r);
fail:
	map_close(r);
	free(r);
	return error;
}

int rpmemfs_close(struct rpmemfs *r)
{
	if (!r)
		return 0;
	list_remove(r);
	if (!atomic_load(&r->detached))
		detach(r);
	map_close(r);
	free(r);
	return 0;
}

void *rpmemfs_base(struct rpmemfs *r)
{
	return r->base;
}

size_t rpmemfs_size(struct rpmemfs *r)
{
	struct stat st;

	return fstat(r->fd, &st) ? 0 : (size_t)st.st_size;
}

int rpmemfs_grow(struct rpmemfs *r, size_t bytes)
{
	int error = attached(r);

	if (error)
		return error;
	if (bytes > r->reserve)
		return -ENOMEM;
	if (atomic_load(&r->capture.tracks))
		track_ahead(&r->capture.track, bytes, map_size, r);
	return make_longer(r, bytes);
}

uint64_t rpmemfs_epoch(struct rpmemfs *r)
{
	(void)attached(r);
	return atomic_load(&r->open);
}

uint64_t rpmemfs_committed(struct rpmemfs *r)
{
	(void)attached(r);
	return atomic_load(&r->committed);
}

int rpmemfs_stats(struct rpmemfs *r, struct rpmemfs_stats *out)
{
	int error = attached(r);

	if (error)
		return error;
	pthread_mutex_lock(&r->lock);
	*out = r->stats;
	pthread_mutex_unlock(&r->lock);
	out->capture = RPMEMFS_CAPTURE_DRAIN;
	if (atomic_load(&r->capture.tracks))
		out->capture = RPMEMFS_CAPTURE_WP_ASYNC;
	return atomic_load(&r->threads.error);
}

static int grow_heap(void *region, uint64_t bytes)
{
	return rpmemfs_grow(region, bytes);
}

int rpmemfs_heap_open(struct rpmemfs *r, unsigned flags,
		      struct rpmemfs_heap **out)
{
	/* Making a heap is a change like any other: no checkpoint may see half
	 * of it. */
	int error = rpmemfs_thread_register(r);
	struct heap_region region = {
		.mem = r->base,
		.mapped = r->reserve,
		.size = map_size(r),
		.fd = r->fd,
		.grow = grow_heap,
		.context = r,
	};

	return error ? error : rpmemfs_heap_attach(&region, flags, out);
}
