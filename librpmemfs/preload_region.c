/*
 * Attaching a program that knows nothing of it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "preload.h"

/* Address space for a file to grow into costs nothing but itself. */
#define RESERVE (UINT64_C(64) << 30)

static int open_again(struct rpmemfs *r, int fd)
{
	char path[32];

	/* A descriptor of our own: the program closes its. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	r->fd = open(path, O_RDWR | O_CLOEXEC);
	return r->fd < 0 ? -errno : 0;
}

int region_open(int fd, uint64_t bytes, struct rpmemfs **out)
{
	struct rpmemfs_options opt = {
		.reserve = bytes < RESERVE ? RESERVE : bytes,
	};
	struct wire_empty m = { WIRE_HEADER(WIRE_UNTRACKED, m) };
	struct rpmemfs *r = aligned_alloc(64, (sizeof(*r) + 63) / 64 * 64);
	int error;

	if (!r)
		return -ENOMEM;
	*r = (struct rpmemfs){ .fd = -1, .commit_only = true,
			       .no_precopy = true };
	pthread_mutex_init(&r->lock, NULL);
	error = open_again(r, fd);
	if (!error)
		error = map_open(r, &opt);
	if (!error) {
		world_begin(r);
		error = attach(r);
	}
	if (error)
		goto fail;
	error = list_add(r);
	if (error) {
		detach(r);
		goto fail;
	}
	/* This process may have stored before, or the one that it was before
	 * exec. */
	(void)wire_send(r->sock, &m, -1);
	*out = r;
	return 0;
fail:
	map_close(r);
	free(r);
	return error;
}

void region_close(struct rpmemfs *r)
{
	rpmemfs_close(r);
}
