/*
 * The preload library: unmodified programs become members of the regions that
 * they map. `rpmemctl run` loads it.
 *
 * Each shared writable mapping of a file of an rpmemfs mount is handed out of
 * one mapping of the whole file, which the library tracks (region.h). msync,
 * fsync and fdatasync on it become commits of what was captured: copying a page
 * into the ring costs a tenth of what the kernel's write-back does. What stores
 * by other ways (a fixed address, a forked child) makes the region leaky: the
 * kernel writes back at each commit, as it would without this library.
 *
 * The process is a member that has no restart points. If it is killed, its open
 * epoch is rolled back.
 */
#ifndef PRELOAD_H
#define PRELOAD_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "region.h"

/* preload_region.c */

/* region_open attaches the process to the file of fd, which it has open for
 * reading and writing; bytes is how much of it has to fit. */
int region_open(int fd, uint64_t bytes, struct rpmemfs **out);
void region_close(struct rpmemfs *r);

/* preload_files.c: the files that the process maps. */

struct file;

/*
 * files_map hands out length bytes of the file of fd from offset on. NULL: the
 * caller has to map it itself; whole is false if it is not to be tracked at
 * all, because of where or how the program wants it.
 */
void *files_map(int fd, uint64_t offset, uint64_t length, bool whole);

/* What files_find and files_of return is held until files_leave. NULL: not
 * one of ours. */
struct file *files_find(const void *address);
struct file *files_of(int fd);
void files_leave(struct file *f);

/* files_unmap takes length bytes at address back; the last bytes end the
 * attachment. files_resize makes them longer or shorter in place. */
void files_unmap(struct file *f, const void *address, uint64_t length);
bool files_resize(struct file *f, const void *address, uint64_t from,
		  uint64_t to);

/* files_end_of is where the mapping of f ends. */
const void *files_end_of(const struct file *f);

struct rpmemfs *files_region(struct file *f);

/* files_each calls fn with every file that is attached. */
void files_each(void (*fn)(struct file *f));

/* files_goodbye detaches all: the process is about to end. */
void files_goodbye(void);

/* preload_world.c: epochs that nobody asks for, and the threads they stop. */

/*
 * Between world_enter and world_leave the calling thread is not stopped: it may
 * hold locks of this library, and it does not store to regions. Calls nest.
 */
void world_enter(void);
void world_leave(void);
bool world_inside(void);

/* world_begin makes r one whose threads are stopped, and starts the thread of
 * the interval, as the environment says. */
void world_begin(struct rpmemfs *r);
/* world_commit makes what was stored to r durable: 0 or a negative errno. */
int world_commit(struct rpmemfs *r);
/* world_allows takes the signal that stops threads out of a set of signals to
 * block. */
void world_allows(sigset_t *set);
/* world_child is world_leave in a forked child, which has this thread only. */
void world_child(void);

#endif
