/*
 * epochs maps a file and makes epochs of the same size in it: it stores to every
 * one of N pages and calls msync, again and again.
 *
 *	epochs FILE N COUNT	print nanoseconds per epoch, without the first
 */
#define _POSIX_C_SOURCE 200809L
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096 };

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int64_t nanoseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int main(int argc, char **argv)
{
	long pages = argc == 4 ? atol(argv[2]) : 0;
	long count = argc == 4 ? atol(argv[3]) : 0;
	int64_t begin = 0;
	char *mem;
	int fd;

	if (pages <= 0 || count <= 0) {
		fprintf(stderr, "usage: epochs FILE N COUNT\n");
		return 2;
	}
	fd = open(argv[1], O_RDWR | O_CREAT, 0644);
	if (fd < 0 || ftruncate(fd, pages * PAGE) != 0)
		die(argv[1]);
	mem = mmap(NULL, (size_t)pages * PAGE, PROT_READ | PROT_WRITE,
		   MAP_SHARED, fd, 0);
	if (mem == MAP_FAILED)
		die("mmap");
	for (long i = 0; i <= count; i++) {
		if (i == 1)
			begin = nanoseconds();
		for (long page = 0; page < pages; page++)
			memset(mem + page * PAGE, (int)(i + page), PAGE);
		if (msync(mem, (size_t)pages * PAGE, MS_SYNC) != 0)
			die("msync");
	}
	printf("%lld ns per epoch\n",
	       (long long)((nanoseconds() - begin) / count));
	return 0;
}
