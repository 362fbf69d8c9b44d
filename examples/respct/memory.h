/*
 * Memory for a data structure: that of malloc, or a heap in a file of an
 * rpmemfs mount. The structures here are the same code for both. Errors end
 * the program.
 */
#ifndef MEMORY_H
#define MEMORY_H

#include <stdbool.h>
#include <stddef.h>

#include "rpmemfs.h"
#include "workers.h"

struct memory {
	struct rpmemfs *region;	/* NULL: ordinary memory */
	struct rpmemfs_heap *heap;
	bool tell;

	struct rpmemfs_stats *barrier;	/* of the checkpoints measured */
	size_t barriers, room;
};

static inline _Noreturn void memory_fail(int error)
{
	errx(1, "%s", rpmemfs_strerror(error));
}

static inline void *memory_alloc(struct memory *m, size_t bytes)
{
	return m->heap ? rpmemfs_malloc(m->heap, bytes) : malloc(bytes);
}

static inline void memory_free(struct memory *m, void *block)
{
	if (m->heap)
		rpmemfs_free(m->heap, block);
	else
		free(block);
}

static inline void memory_restart_point(struct memory *m)
{
	int error = m->heap ? rpmemfs_restart_point(m->region) : 0;

	if (error)
		memory_fail(error);
}

/* memory_root is what the last program made the root, or NULL. */
static inline void *memory_root(struct memory *m)
{
	return m->heap ? rpmemfs_root(m->heap) : NULL;
}

static inline void memory_open(struct memory *m, const struct workload *w)
{
	struct rpmemfs_options opt = {
		.flags = w->check ? 0 : RPMEMFS_CREATE,
	};
	int error;

	*m = (struct memory){ .tell = w->tell };
	if (!w->file)
		return;
	error = rpmemfs_open(w->file, &opt, &m->region);
	if (!error)
		error = rpmemfs_heap_open(m->region, 0, &m->heap);
	if (error)
		errx(1, "%s: %s", w->file, rpmemfs_strerror(error));
}

static inline void memory_close(struct memory *m)
{
	if (!m->region)
		return;
	rpmemfs_heap_close(m->heap);
	rpmemfs_close(m->region);
	free(m->barrier);
}

/* memory_take_aligned returns zeroed memory, aligned to a power of two. */
static inline void *memory_take_aligned(struct memory *m, size_t alignment,
					size_t bytes)
{
	void *p;

	bytes = (bytes + alignment - 1) / alignment * alignment;
	if (m->heap)
		p = rpmemfs_aligned_alloc(m->heap, alignment, bytes);
	else
		p = aligned_alloc(alignment, bytes);
	if (!p)
		err(1, "%zu bytes", bytes);
	return memset(p, 0, bytes);
}

static inline void *memory_take(struct memory *m, size_t bytes)
{
	return memory_take_aligned(m, 16, bytes);
}

static inline void memory_set_root(struct memory *m, void *block)
{
	int error = m->heap ? rpmemfs_set_root(m->heap, block) : 0;

	if (error)
		memory_fail(error);
}

/* memory_idle: the calling thread stores nothing more. */
static inline void memory_idle(struct memory *m)
{
	if (m->region)
		rpmemfs_thread_unregister(m->region);
}

/* memory_checkpoint waits for a durable epoch, and remembers its figures for
 * memory_report if it is to be measured. The calling thread need not be
 * registered. */
static inline void memory_checkpoint(struct memory *m, bool measured)
{
	uint64_t epoch;
	int error;

	if (!m->region)
		return;
	error = rpmemfs_checkpoint(m->region, RPMEMFS_WAIT, &epoch);
	if (error == -ETIMEDOUT)
		return;		/* the next one will do */
	if (error)
		memory_fail(error);
	if (m->tell) {
		printf("epoch %" PRIu64 "\n", epoch);
		fflush(stdout);
	}
	if (!measured)
		return;
	if (m->barriers == m->room) {
		m->room = 2 * m->room + 64;
		m->barrier = realloc(m->barrier,
				     m->room * sizeof(*m->barrier));
		if (!m->barrier)
			err(1, "realloc");
	}
	error = rpmemfs_stats(m->region, &m->barrier[m->barriers++]);
	if (error)
		memory_fail(error);
}

static inline int by_size(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* memory_tell prints median and maximum of one figure. */
static inline void memory_tell(const struct memory *m, const char *name,
			       size_t offset)
{
	uint64_t *all = calloc(m->barriers, sizeof(*all));

	if (!all)
		err(1, "calloc");
	for (size_t i = 0; i < m->barriers; i++)
		memcpy(&all[i], (const char *)&m->barrier[i] + offset,
		       sizeof(*all));
	qsort(all, m->barriers, sizeof(*all), by_size);
	printf("%s %" PRIu64 "\n%s_max %" PRIu64 "\n", name,
	       all[m->barriers / 2], name, all[m->barriers - 1]);
	free(all);
}

/* memory_report prints the medians of what was remembered. */
static inline void memory_report(const struct memory *m)
{
	uint64_t captured = 0;
	struct rpmemfs_stats now;

	printf("epochs %zu\n", m->barriers);
	if (m->barriers == 0)
		return;
	for (size_t i = 0; i < m->barriers; i++)
		captured += m->barrier[i].pages + m->barrier[i].precopied;
	printf("pages_captured %" PRIu64 "\n", captured);
	memory_tell(m, "pause_ns", offsetof(struct rpmemfs_stats, pause_ns));
	memory_tell(m, "park_ns", offsetof(struct rpmemfs_stats, park_ns));
	memory_tell(m, "scan_ns", offsetof(struct rpmemfs_stats, scan_ns));
	memory_tell(m, "copy_ns", offsetof(struct rpmemfs_stats, copy_ns));
	memory_tell(m, "pages", offsetof(struct rpmemfs_stats, pages));
	memory_tell(m, "precopied", offsetof(struct rpmemfs_stats, precopied));
	memory_tell(m, "rounds", offsetof(struct rpmemfs_stats, rounds));
	if (rpmemfs_stats(m->region, &now) == 0)
		printf("called_off %" PRIu64 "\ncapture %s\n", now.called_off,
		       now.capture == RPMEMFS_CAPTURE_WP_ASYNC ? "wp_async" :
								 "drain");
}

static inline void print_problem(void *context, uint64_t offset,
				 const char *text)
{
	(void)context;
	printf("heap: offset %" PRIu64 ": %s\n", offset, text);
}

/* memory_sound reports whether the heap is, and prints what is not. */
static inline bool memory_sound(struct memory *m)
{
	int problems = rpmemfs_heap_check(m->heap, print_problem, NULL);

	if (problems < 0)
		memory_fail(problems);
	return problems == 0;
}

/* memory_holds reports whether a block could lie at p. */
static inline bool memory_holds(struct memory *m, const void *p, size_t bytes)
{
	uintptr_t base = (uintptr_t)rpmemfs_base(m->region);
	size_t size = rpmemfs_size(m->region);
	uintptr_t at = (uintptr_t)p;

	return at % 8 == 0 && at >= base && at - base < size &&
	       size - (at - base) >= bytes;
}

#endif
