#define _GNU_SOURCE /* MADV_WIPEONFORK, PTHREAD_MUTEX_ADAPTIVE_NP */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "heap.h"

enum { NEW_HEAP_BYTES = RH_MIN_UNITS * RH_UNIT };

static uint32_t crc32c(const void *p, size_t n)
{
	const unsigned char *bytes = p;
	uint32_t crc = ~UINT32_C(0);

	for (size_t i = 0; i < n; i++) {
		crc ^= bytes[i];
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? UINT32_C(0x82f63b78) : 0);
	}
	return ~crc;
}

static const char magic[8] = "RPMHEAP";

int rh_header_check(const struct rh_header *header)
{
	static const unsigned char zero[sizeof(header->reserved1)];

	if (memcmp(header->magic, magic, sizeof(magic)) != 0)
		return -EINVAL;
	if (header->version != RH_VERSION)
		return -EPROTO;
	if (header->checksum !=
	    crc32c(header, offsetof(struct rh_header, checksum)))
		return -EUCLEAN;
	if (header->flags & ~(uint32_t)RH_FLAG_GUARDS || header->base == 0 ||
	    header->base % RH_CHUNK != 0 ||
	    memcmp(header->reserved1, zero, sizeof(zero)) != 0)
		return -EUCLEAN;
	return 0;
}

static bool is_new(const struct rh_header *header)
{
	const unsigned char *p = (const void *)header;

	return p[0] == 0 && memcmp(p, p + 1, sizeof(*header) - 1) == 0;
}

static int create(struct rpmemfs_heap *h, uint64_t size, unsigned flags)
{
	struct rh_header *header = h->header;
	struct rh_header first = {
		.version = RH_VERSION,
		.flags = flags & RPMEMFS_HEAP_GUARDS ? RH_FLAG_GUARDS : 0,
		.base = h->base,
	};

	if (size < NEW_HEAP_BYTES) {
		if (h->grow == NULL || h->mapped < NEW_HEAP_BYTES ||
		    h->grow(h->context, NEW_HEAP_BYTES) != 0)
			return -ENOMEM;
		size = NEW_HEAP_BYTES;
	}
	if (size > RH_SIZE_MAX)
		size = RH_SIZE_MAX;
	header->size = size / RH_UNIT * RH_UNIT;
	header->top = RH_META_UNITS_0 * RH_UNIT;
	header->chunks = 1;
	header->normal = 1;

	struct rh_unit *map = rh_unit_map(h, 0);
	memset(map, 0, RH_CHUNK_UNITS * sizeof(*map));
	for (unsigned i = 0; i < RH_META_UNITS_0; i++)
		map[i].kind = RH_META;
	rh_dir(h)[0] = (struct rh_chunk){
		.kind = RH_CUT,
		.low = RH_META_UNITS_0 / 16,
		.longest = RH_CHUNK_UNITS,
		.count = RH_META_UNITS_0,
	};
	header->sum = rh_state_sum(header);
	memcpy(first.magic, magic, sizeof(magic));
	first.checksum = crc32c(&first, offsetof(struct rh_header, checksum));
	memcpy(header, &first, offsetof(struct rh_header, lock));
	return 0;
}

uint64_t rh_exists(const struct rpmemfs_heap *h)
{
	struct stat st;

	if (h->fd < 0)
		return h->mapped;
	if (fstat(h->fd, &st) != 0)
		return 0;
	return (uint64_t)st.st_size < h->mapped ? (uint64_t)st.st_size :
						  h->mapped;
}

/*
 * A lock that was committed as held, in a heap that nobody else has open: the
 * commit caught a call in the middle, and the heap may be damaged.
 */
static int clear_lock(struct rpmemfs_heap *h)
{
	if (h->header->lock == 0)
		return 0;
	h->header->lock = 0;
	int problems = rpmemfs_heap_check(h, NULL, NULL);
	return problems > 0 ? -EUCLEAN : problems;
}

/* Opens what the region holds. alone: no other process has it open. */
static int open_content(struct rpmemfs_heap *h,
			const struct heap_region *region, unsigned flags,
			bool alone)
{
	int err = is_new(h->header) ? create(h, region->size, flags) :
				      rh_header_check(h->header);

	if (err != 0)
		return err;
	if (h->header->base != h->base)
		return -EINVAL;
	h->guards = h->header->flags & RH_FLAG_GUARDS;
	if (h->header->size > rh_exists(h))
		return -EUCLEAN;
	if (alone)
		err = clear_lock(h);
	return err;
}

/* Opens the region's file anew, so that its locks are nobody else's. */
static int reopen(int fd)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	int own = open(path, O_RDWR | O_CLOEXEC);
	return own < 0 ? -errno : own;
}

static int random_bytes(void *out, size_t n)
{
	return getrandom(out, n, 0) == (ssize_t)n ? 0 : -EIO;
}

/* Locks an id; this is what makes the process a user of the heap. */
static int choose_id(struct rpmemfs_heap *h)
{
	for (int turn = 0; turn < 100; turn++) {
		int err = random_bytes(&h->id, sizeof(h->id));
		if (err != 0)
			return err;
		h->id &= RH_LOCK_ID;
		if (h->id == 0)
			continue;
		if (h->fd < 0)
			return 0;
		err = rh_file_lock(h->fd, rh_byte_id(h->id), false);
		if (err != -EAGAIN)
			return err;
	}
	return -EAGAIN;
}

static int open_shared(struct rpmemfs_heap *h,
		       const struct heap_region *region, unsigned flags)
{
	int err = 0;
	bool alone = true;

	if (h->fd >= 0) {
		err = rh_file_lock(h->fd, rh_byte_opening(), true);
		if (err != 0)
			return err;
		err = rh_file_locked(h->fd, rh_byte_id(0), RH_LOCK_ID);
		alone = err == 0;
	}
	if (err >= 0)
		err = choose_id(h);
	if (err == 0)
		err = open_content(h, region, flags, alone);
	if (h->fd >= 0)
		rh_file_unlock(h->fd, rh_byte_opening());
	return err;
}

static void new_mutexes(struct rpmemfs_heap *h)
{
	pthread_mutexattr_t attr;

	/* The lock is held for less than going to sleep takes. */
	pthread_mutexattr_init(&attr);
	pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ADAPTIVE_NP);
	pthread_mutex_init(&h->mutex, &attr);
	pthread_mutexattr_destroy(&attr);
	pthread_mutex_init(&h->owners, NULL);
}

static void forget_bindings(struct rpmemfs_heap *h)
{
	h->none.heap = h;
	for (unsigned i = 0; i < RH_CACHES; i++)
		h->bindings[i] = (struct rh_binding){ .heap = h };
}

static int new_serial(struct rpmemfs_heap *h)
{
	uint64_t serial;
	int err = random_bytes(&serial, sizeof(serial));

	h->serial = serial | 1; /* a thread's copy is 0 at first */
	return err;
}

static void destroy(struct rpmemfs_heap *h)
{
	if (h->fd >= 0)
		close(h->fd);
	munmap(h, sizeof(*h));
}

int rpmemfs_heap_attach(const struct heap_region *region, unsigned flags,
			struct rpmemfs_heap **out)
{
	uint64_t base = region->base != 0 ? region->base :
					    (uintptr_t)region->mem;

	if (flags & ~(unsigned)RPMEMFS_HEAP_GUARDS || base % RH_CHUNK != 0 ||
	    (uintptr_t)region->mem % RH_CHUNK != 0)
		return -EINVAL;
	if (region->size < sizeof(struct rh_header) &&
	    (region->grow == NULL ||
	     region->grow(region->context, NEW_HEAP_BYTES) != 0))
		return -ENOMEM;
	struct rpmemfs_heap *h = mmap(NULL, sizeof(*h), PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (h == MAP_FAILED)
		return -errno;
	h->mem = region->mem;
	h->mapped = region->mapped < RH_SIZE_MAX ? region->mapped : RH_SIZE_MAX;
	h->header = (void *)h->mem;
	h->base = base;
	h->grow = region->grow;
	h->context = region->context;
	h->fd = -1;
	new_mutexes(h);
	forget_bindings(h);

	int err = new_serial(h);
	if (err == 0 && madvise(h, 4096, MADV_WIPEONFORK) != 0)
		err = -errno;
	if (err == 0 && region->fd >= 0) {
		h->fd = reopen(region->fd);
		err = h->fd < 0 ? h->fd : 0;
	}
	if (err == 0)
		err = open_shared(h, region, flags);
	if (err == 0)
		err = -pthread_key_create(&h->key, rh_cache_unbind);
	if (err != 0) {
		destroy(h);
		return err;
	}
	*out = h;
	return 0;
}

void rpmemfs_heap_close(struct rpmemfs_heap *h)
{
	if (h == NULL)
		return;
	pthread_key_delete(h->key);
	destroy(h);
}

/*
 * The parent keeps its caches, its id and its locks: the child begins without.
 * It must have a description of the file of its own first, since locks
 * belong to the description, and would be taken as held twice.
 */
int rh_after_fork(struct rpmemfs_heap *h)
{
	int err = 0;

	pthread_mutex_lock(&h->forked);
	if (h->serial != 0)
		goto out;
	if (h->fd < 0) {
		err = -EPERM; /* nothing keeps two processes apart */
		goto out;
	}
	int fd = reopen(h->fd);
	if (fd < 0) {
		err = fd;
		goto out;
	}
	close(h->fd);
	h->fd = fd;
	new_mutexes(h);
	forget_bindings(h);
	pthread_setspecific(h->key, NULL);
	rh_local.serial = 0;
	err = choose_id(h);
	if (err == 0)
		err = new_serial(h);
out:
	pthread_mutex_unlock(&h->forked);
	return err;
}
