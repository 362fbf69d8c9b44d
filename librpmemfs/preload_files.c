/*
 * The files that the process maps, and what of them it was given.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "futex.h"
#include "preload.h"

/* A piece is a mapping that the program has, in bytes of the file. Pieces may
 * overlap: who maps a range twice gets the same address twice. */
struct piece {
	uint64_t from, to;
	struct piece *next;
};

struct file {
	dev_t dev;
	ino_t ino;
	struct rpmemfs *region;	/* NULL: not attached */
	struct piece *pieces;
	unsigned users;		/* calls that use region */
	bool leaky;		/* mapped without us at some time */
	struct file *next;
};

/* Lock order: table_lock, then those of region.h. It is held while a file is
 * attached. */
static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static struct file *table;
static _Atomic unsigned regions; /* attached; read without the lock */

/* The region's own handlers, which run between these, unmap things. */
static void before_fork(void)
{
	world_enter();
	pthread_mutex_lock(&table_lock);
}

/* The child may store, and nothing of that is tracked here. */
static void forked(void)
{
	for (struct file *f = table; f; f = f->next) {
		f->leaky = true;
		if (f->region)
			atomic_store(&f->region->leaky, true);
	}
	pthread_mutex_unlock(&table_lock);
}

static void after_fork(void)
{
	forked();
	world_leave();
}

static void in_child(void)
{
	for (struct file *f = table; f; f = f->next)
		f->users = 0; /* of threads that are not here */
	forked();
	world_child();
}

static void install_handlers(void)
{
	/* If it fails there is no memory, and the next fork fails too. */
	(void)pthread_atfork(before_fork, after_fork, in_child);
}

static struct file *look_up(const struct stat *st)
{
	for (struct file *f = table; f; f = f->next)
		if (f->dev == st->st_dev && f->ino == st->st_ino)
			return f;
	return NULL;
}

/* file_of finds the entry of a file, or makes one. */
static struct file *file_of(const struct stat *st)
{
	struct file *f = look_up(st);

	if (f)
		return f;
	f = calloc(1, sizeof(*f));
	if (!f)
		return NULL;
	f->dev = st->st_dev;
	f->ino = st->st_ino;
	f->next = table;
	table = f;
	return f;
}

static void set_leaky(struct file *f)
{
	f->leaky = true;
	if (f->region)
		atomic_store(&f->region->leaky, true);
}

static int file_attach(struct file *f, int fd, uint64_t bytes)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	int error;

	if (f->region)
		return 0;
	error = region_open(fd, bytes, &f->region);
	if (error)
		return error;
	atomic_store(&f->region->leaky, f->leaky);
	atomic_fetch_add(&regions, 1);
	/* After the region's own: handlers before a fork run last to first, and
	 * table_lock comes before its locks. */
	pthread_once(&once, install_handlers);
	return 0;
}

/* file_detach ends an attachment that nobody uses. */
static void file_detach(struct file *f)
{
	if (!f->region || f->pieces || f->users)
		return;
	region_close(f->region);
	f->region = NULL;
	atomic_fetch_sub(&regions, 1);
}

static void *hand_out(struct file *f, int fd, uint64_t offset, uint64_t length)
{
	uint64_t to = offset + (length + PAGE - 1) / PAGE * PAGE;
	struct piece *p;

	if (to < offset || to > INT64_MAX || file_attach(f, fd, to) ||
	    to > f->region->reserve)
		return NULL;
	p = malloc(sizeof(*p));
	if (!p) {
		file_detach(f);
		return NULL;
	}
	*p = (struct piece){ offset, to, f->pieces };
	f->pieces = p;
	return f->region->base + offset;
}

void *files_map(int fd, uint64_t offset, uint64_t length, bool whole)
{
	struct stat st;
	struct file *f;
	void *got = NULL;

	if ((fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDWR || fstat(fd, &st) ||
	    !S_ISREG(st.st_mode) ||
	    fgetxattr(fd, "user.rpmemfs.attach", NULL, 0) <= 0)
		return NULL;
	pthread_mutex_lock(&table_lock);
	f = file_of(&st);
	if (f && whole)
		got = hand_out(f, fd, offset, length);
	if (f && !got)
		set_leaky(f);
	pthread_mutex_unlock(&table_lock);
	return got;
}

struct file *files_find(const void *address)
{
	struct file *f;

	if (!atomic_load(&regions))
		return NULL;
	pthread_mutex_lock(&table_lock);
	for (f = table; f; f = f->next)
		if (f->region &&
		    (uintptr_t)address - (uintptr_t)f->region->base <
			    f->region->reserve)
			break;
	if (f)
		f->users++;
	pthread_mutex_unlock(&table_lock);
	return f;
}

struct file *files_of(int fd)
{
	struct stat st;
	struct file *f;

	if (!atomic_load(&regions) || fstat(fd, &st))
		return NULL;
	pthread_mutex_lock(&table_lock);
	f = look_up(&st);
	if (f && f->region)
		f->users++;
	else
		f = NULL;
	pthread_mutex_unlock(&table_lock);
	return f;
}

void files_leave(struct file *f)
{
	pthread_mutex_lock(&table_lock);
	if (f->users)
		f->users--;
	file_detach(f);
	pthread_mutex_unlock(&table_lock);
}

/* cut takes [from, to) out of one piece that has some of it, and returns where
 * the part that it took ends. */
static uint64_t cut(struct file *f, uint64_t from, uint64_t to)
{
	for (struct piece **link = &f->pieces; *link; link = &(*link)->next) {
		struct piece *p = *link, *rest;
		uint64_t end = to < p->to ? to : p->to;

		if (from < p->from || from >= p->to)
			continue;
		if (from == p->from && end == p->to) {
			*link = p->next;
			free(p);
		} else if (from == p->from) {
			p->from = end;
		} else {
			/* Without memory for the rest it stays mapped. */
			rest = end < p->to ? malloc(sizeof(*rest)) : NULL;
			if (rest) {
				*rest = (struct piece){ end, p->to, p->next };
				p->next = rest;
			}
			if (rest || end == p->to)
				p->to = from;
		}
		return end;
	}
	return from + PAGE; /* a hole */
}

void files_unmap(struct file *f, const void *address, uint64_t length)
{
	uint64_t from = (uintptr_t)address - (uintptr_t)f->region->base;
	uint64_t to = from + (length + PAGE - 1) / PAGE * PAGE;

	pthread_mutex_lock(&table_lock);
	/* Exactly what was handed out comes back whole, the youngest first. */
	for (struct piece **link = &f->pieces; *link; link = &(*link)->next) {
		struct piece *p = *link;

		if (p->from != from || p->to != to)
			continue;
		*link = p->next;
		free(p);
		from = to;
		break;
	}
	while (from < to && f->pieces)
		from = cut(f, from, to);
	pthread_mutex_unlock(&table_lock);
}

bool files_resize(struct file *f, const void *address, uint64_t old,
		  uint64_t length)
{
	uint64_t from = (uintptr_t)address - (uintptr_t)f->region->base;
	uint64_t end = from + (old + PAGE - 1) / PAGE * PAGE;
	uint64_t to = from + (length + PAGE - 1) / PAGE * PAGE;
	bool found = false;

	pthread_mutex_lock(&table_lock);
	for (struct piece *p = f->pieces; p && !found; p = p->next) {
		found = p->from <= from && p->to == end && to > from &&
			to <= f->region->reserve;
		if (found)
			p->to = to;
	}
	pthread_mutex_unlock(&table_lock);
	return found;
}

const void *files_end_of(const struct file *f)
{
	return f->region->base + f->region->reserve;
}

struct rpmemfs *files_region(struct file *f)
{
	return f->region;
}

void files_each(void (*fn)(struct file *f))
{
	struct file *f;

	/* Entries are only added, at the front. */
	pthread_mutex_lock(&table_lock);
	f = table;
	pthread_mutex_unlock(&table_lock);
	for (; f; f = f->next) {
		bool held;

		pthread_mutex_lock(&table_lock);
		held = f->region != NULL;
		f->users += held;
		pthread_mutex_unlock(&table_lock);
		if (!held)
			continue;
		fn(f);
		files_leave(f);
	}
}

void files_goodbye(void)
{
	uint64_t deadline = after_ns(2 * (uint64_t)SEC);

	/* Who is in the middle of a call holds the lock, perhaps this thread,
	 * under its signal handler. Then the epoch goes, as after a kill. */
	if (pthread_mutex_trylock(&table_lock))
		return;
	for (struct file *f = table; f; f = f->next) {
		struct rpmemfs *r = f->region;

		if (!r || atomic_load(&r->detached))
			continue;
		atomic_store(&r->stop, 1);
		eventfd_write(r->wake, 1);
		while (!atomic_load(&r->ended) &&
		       futex_wait(&r->ended, 0, deadline, false))
			;
	}
	pthread_mutex_unlock(&table_lock);
}
