/*
 * ways FILE WAY [END]: stores 1 to the first word of each page of an empty file
 * of PAGES pages in one of many ways, and commits with msync or fsync. Then it
 * stores 2 everywhere and ends without a commit, by END if that is given.
 *
 * Where stores escape the preload library there is a commit before them: it
 * takes the first one for one that may have to ask the kernel.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 64, SIZE = PAGES * PAGE };

static int fd;

static void check(int ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "ways: %s: %s\n", what, strerror(errno));
	exit(1);
}

static char *map(size_t length, int prot, int flags, void *address, off_t at)
{
	char *m = mmap(address, length, prot, MAP_SHARED | flags, fd, at);

	check(m != MAP_FAILED, "mmap");
	return m;
}

static char *map_all(void)
{
	return map(SIZE, PROT_READ | PROT_WRITE, 0, NULL, 0);
}

static void store(char *m, int from, int to, uint64_t value)
{
	for (int i = from; i < to; i++)
		*(volatile uint64_t *)(void *)(m + i * PAGE) = value;
}

static void sync_all(char *m)
{
	check(msync(m, PAGE, MS_SYNC) == 0, "msync");
}

static char *plain(void)
{
	char *m = map_all();

	store(m, 0, PAGES, 1);
	sync_all(m);
	return m;
}

static char *by_fsync(void)
{
	char *m = map_all();

	store(m, 0, PAGES, 1);
	check(fsync(fd) == 0, "fsync");
	return m;
}

/* The second half by write(2), which fdatasync commits too. */
static char *with_write(void)
{
	const uint64_t one = 1;
	char *m = map_all();

	store(m, 0, PAGES / 2, 1);
	for (int i = PAGES / 2; i < PAGES; i++)
		check(pwrite(fd, &one, sizeof(one), i * PAGE) == sizeof(one),
		      "pwrite");
	check(fdatasync(fd) == 0, "fdatasync");
	return m;
}

/* Two mappings that overlap, of which the first goes, in two parts. */
static char *overlapping(void)
{
	char *a = map_all(), *b = map_all() + 0;

	store(a, 0, PAGES / 2, 1);
	check(munmap(a, SIZE / 4) == 0, "munmap");
	check(munmap(a + SIZE / 4, SIZE - SIZE / 4) == 0, "munmap");
	store(b, PAGES / 2, PAGES, 1);
	sync_all(b);
	return b;
}

/* From an offset on, and the rest by a mapping at a fixed address, which the
 * library does not see; the descriptor is closed. */
static char *fixed(void)
{
	char *place = mmap(NULL, SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
			   -1, 0);
	char *a = map(SIZE / 2, PROT_READ | PROT_WRITE, 0, NULL, SIZE / 2);
	char *b;

	check(place != MAP_FAILED, "mmap");
	b = map(SIZE, PROT_READ | PROT_WRITE, MAP_FIXED, place, 0);
	close(fd);
	check(b == place, "mmap of a fixed address");
	sync_all(a);
	store(a, 0, PAGES / 2, 1);
	store(b, 0, PAGES / 2, 1);
	sync_all(a);
	return b;
}

/* A read-only mapping that becomes writable. */
static char *protected(void)
{
	char *a = map_all();
	char *b = map(SIZE, PROT_READ, 0, NULL, 0);

	sync_all(a);
	check(mprotect(b, SIZE, PROT_READ | PROT_WRITE) == 0, "mprotect");
	store(b, 0, PAGES, 1);
	sync_all(a);
	return b;
}

static char *remapped(void)
{
	char *a = map(SIZE / 4, PROT_READ | PROT_WRITE, 0, NULL, 0);
	char *b = mremap(a, SIZE / 4, SIZE, MREMAP_MAYMOVE);

	check(b != MAP_FAILED, "mremap");
	store(b, 0, PAGES, 1);
	sync_all(b);
	return b;
}

/* A child stores half, and the parent commits. */
static char *forked(void)
{
	char *m = map_all();
	int status;
	pid_t pid;

	sync_all(m);
	pid = fork();
	check(pid >= 0, "fork");
	if (!pid) {
		store(m, 0, PAGES / 2, 1);
		_exit(0);
	}
	check(waitpid(pid, &status, 0) == pid && status == 0, "child");
	store(m, PAGES / 2, PAGES, 1);
	sync_all(m);
	return m;
}

/* The child commits what both stored, and ends; the parent goes on. */
static char *child_commits(void)
{
	char *m = map_all();
	int status;
	pid_t pid;

	store(m, 0, PAGES / 2, 1);
	sync_all(m);
	pid = fork();
	check(pid >= 0, "fork");
	if (!pid) {
		store(m, PAGES / 2, PAGES, 1);
		sync_all(m);
		_exit(0);
	}
	check(waitpid(pid, &status, 0) == pid && status == 0, "child");
	return m;
}

/* A vforked child that ends by _exit is not the end of its parent. */
static char *vforked(void)
{
	char *m = map_all();
	pid_t pid = vfork();

	if (!pid) {
		execl("/nowhere", "nowhere", (char *)NULL);
		_exit(0);
	}
	check(pid > 0 && waitpid(pid, NULL, 0) == pid, "vfork");
	store(m, 0, PAGES, 1);
	sync_all(m);
	return m;
}

/* Mapped, committed and unmapped again and again. */
static char *in_turns(void)
{
	for (int i = 0; i < PAGES; i += 16) {
		char *m = map_all();

		store(m, i, i + 16, 1);
		sync_all(m);
		check(munmap(m, SIZE) == 0, "munmap");
	}
	return map_all();
}

static void misuse(char *m)
{
	check(msync(m + 1, PAGE, MS_SYNC) == -1 && errno == EINVAL,
	      "msync of no page");
	check(msync(m, PAGE, MS_SYNC | MS_ASYNC) == -1 && errno == EINVAL,
	      "msync both ways");
	check(msync(m, PAGE, MS_ASYNC) == 0, "msync later");
	check(munmap(m + 1, PAGE) == -1 && errno == EINVAL, "munmap of no page");
	check(mmap(NULL, 0, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) ==
			      MAP_FAILED &&
		      (errno == EINVAL || errno == EBADF),
	      "mmap of nothing");
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		char *(*run)(void);
	} ways[] = {
		{ "plain", plain },	    { "fsync", by_fsync },
		{ "write", with_write },    { "overlapping", overlapping },
		{ "fixed", fixed },	    { "protected", protected },
		{ "remapped", remapped },   { "forked", forked },
		{ "child", child_commits }, { "vforked", vforked },
		{ "turns", in_turns },
	};
	char *m = NULL;

	if (argc != 3 && argc != 4)
		return 2;
	fd = open(argv[1], O_RDWR);
	check(fd >= 0, argv[1]);
	for (size_t i = 0; i < sizeof(ways) / sizeof(*ways); i++)
		if (strcmp(argv[2], ways[i].name) == 0)
			m = ways[i].run();
	if (!m)
		return 2;
	misuse(m);
	store(m, 0, PAGES, 2);
	if (argc == 4 && strcmp(argv[3], "_exit") == 0)
		_exit(0);
	if (argc == 4 && strcmp(argv[3], "kill") == 0)
		kill(getpid(), SIGKILL);
	return 0;
}
