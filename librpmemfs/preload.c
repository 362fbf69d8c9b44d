/*
 * The functions that a preloaded program gets instead of the C library's. What
 * is not about a mapping of ours goes to the kernel unchanged.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "preload.h"

#define EXPORT __attribute__((visibility("default")))

/* Not in the headers of all C libraries. */
#ifndef MAP_TYPE
#define MAP_TYPE 0x0f
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

/* The process that the library was loaded into, or a child by fork. In a child
 * by vfork, which has this memory, getpid says otherwise. */
static _Atomic pid_t owner;

static void own(void)
{
	atomic_store(&owner, (pid_t)syscall(SYS_getpid));
}

static __attribute__((constructor)) void loaded(void)
{
	own();
	(void)pthread_atfork(NULL, NULL, own);
}

/* result makes of a negative errno what system calls return. */
static int result(int error)
{
	if (!error)
		return 0;
	/* The open epoch is lost: for who asked to keep it, an I/O error. */
	errno = error == -EOWNERDEAD ? EIO : -error;
	return -1;
}

/* tracks says whether a mapping may come out of the library's own. */
static bool tracks(int prot, int flags)
{
	const int harmless = MAP_TYPE | MAP_NORESERVE | MAP_POPULATE |
			     MAP_NONBLOCK | MAP_DENYWRITE | MAP_EXECUTABLE;

	return prot == (PROT_READ | PROT_WRITE) && !(flags & ~harmless);
}

EXPORT void *mmap(void *address, size_t length, int prot, int flags, int fd,
		  off_t offset)
{
	int type = flags & MAP_TYPE;
	void *got = NULL;

	if ((type == MAP_SHARED || type == MAP_SHARED_VALIDATE) &&
	    !(flags & MAP_ANONYMOUS) && fd >= 0 && length && offset >= 0 &&
	    offset % PAGE == 0 && !world_inside()) {
		int old = errno;

		world_enter();
		got = files_map(fd, (uint64_t)offset, length,
				tracks(prot, flags));
		world_leave();
		errno = old;
	}
	return got ? got :
		     (void *)syscall(SYS_mmap, address, length, prot, flags, fd,
				     offset);
}

EXPORT void *mmap64(void *address, size_t length, int prot, int flags, int fd,
		    off_t offset) __attribute__((alias("mmap")));

EXPORT int munmap(void *address, size_t length)
{
	struct file *f = world_inside() ? NULL : files_find(address);
	size_t ours;

	if (!f)
		return (int)syscall(SYS_munmap, address, length);
	if ((uintptr_t)address % PAGE || !length) {
		files_leave(f);
		return result(-EINVAL);
	}
	world_enter();
	ours = (size_t)((const char *)files_end_of(f) - (char *)address);
	files_unmap(f, address, length < ours ? length : ours);
	files_leave(f);
	world_leave();
	if (length <= ours)
		return 0;
	return (int)syscall(SYS_munmap, (char *)address + ours, length - ours);
}

EXPORT void *mremap(void *address, size_t from, size_t to, int flags, ...)
{
	struct file *f = world_inside() ? NULL : files_find(address);
	void *want = NULL;
	bool done;

	if (flags & MREMAP_FIXED) {
		va_list rest;

		va_start(rest, flags);
		want = va_arg(rest, void *);
		va_end(rest);
	}
	if (!f)
		return (void *)syscall(SYS_mremap, address, from, to, flags,
				       want);
	world_enter();
	done = !(flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) && to &&
	       (uintptr_t)address % PAGE == 0 &&
	       files_resize(f, address, from, to);
	files_leave(f);
	world_leave();
	if (done)
		return address;
	errno = flags & (MREMAP_FIXED | MREMAP_DONTUNMAP) ? EINVAL : ENOMEM;
	return MAP_FAILED;
}

static int commit(struct file *f)
{
	int error;

	world_enter();
	error = world_commit(files_region(f));
	files_leave(f);
	world_leave();
	return result(error);
}

EXPORT int msync(void *address, size_t length, int flags)
{
	struct file *f = world_inside() ? NULL : files_find(address);
	const int known = MS_ASYNC | MS_SYNC | MS_INVALIDATE;

	if (!f)
		return (int)syscall(SYS_msync, address, length, flags);
	if ((uintptr_t)address % PAGE || flags & ~known ||
	    (flags & MS_ASYNC && flags & MS_SYNC)) {
		files_leave(f);
		return result(-EINVAL);
	}
	if (!(flags & MS_SYNC)) {
		files_leave(f);
		return 0;
	}
	return commit(f);
}

EXPORT int fsync(int fd)
{
	struct file *f = world_inside() ? NULL : files_of(fd);

	return f ? commit(f) : (int)syscall(SYS_fsync, fd);
}

EXPORT int fdatasync(int fd)
{
	struct file *f = world_inside() ? NULL : files_of(fd);

	return f ? commit(f) : (int)syscall(SYS_fdatasync, fd);
}

EXPORT int pthread_sigmask(int how, const sigset_t *set, sigset_t *old)
{
	sigset_t less;

	if (set && how != SIG_UNBLOCK && !world_inside()) {
		less = *set;
		world_allows(&less);
		set = &less;
	}
	return syscall(SYS_rt_sigprocmask, how, set, old, _NSIG / 8) ? errno :
								      0;
}

EXPORT int sigprocmask(int how, const sigset_t *set, sigset_t *old)
{
	int error = pthread_sigmask(how, set, old);

	return error ? result(-error) : 0;
}

/* The process ends in order, but without its exit handlers. */
EXPORT _Noreturn void _exit(int status)
{
	if (syscall(SYS_getpid) == atomic_load(&owner))
		files_goodbye();
	for (;;)
		syscall(SYS_exit_group, status);
}

EXPORT _Noreturn void _Exit(int status) __attribute__((alias("_exit")));
