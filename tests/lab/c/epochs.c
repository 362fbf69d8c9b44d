/*
 * epochs maps a file and makes epochs of the same size in it: it stores to every
 * one of N pages and calls msync, again and again.
 *
 *	epochs FILE N COUNT	print nanoseconds per epoch, the median
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

static int compare(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	long pages = argc == 4 ? atol(argv[2]) : 0;
	long count = argc == 4 ? atol(argv[3]) : 0;
	int64_t *took;
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
	took = calloc((size_t)count, sizeof(*took));
	if (mem == MAP_FAILED || took == NULL)
		die("memory");
	for (long i = 0; i < count; i++) {
		int64_t begin = nanoseconds();

		for (long page = 0; page < pages; page++)
			memset(mem + page * PAGE, (int)(i + 1 + page), PAGE);
		if (msync(mem, (size_t)pages * PAGE, MS_SYNC) != 0)
			die("msync");
		took[i] = nanoseconds() - begin;
	}
	qsort(took, (size_t)count, sizeof(*took), compare);
	printf("%lld ns per epoch\n", (long long)took[count / 2]);
	return 0;
}
