/*
 * store maps a file and does what it is told on standard input, one command a
 * line, and answers with the nanoseconds that it took. The bench programs use
 * it: what is measured has no garbage collector and no runtime in it.
 *
 *	store FILE BYTES	FILE grows to BYTES if it is smaller
 *
 *	rand N LIMIT	store to N different pages of the first LIMIT
 *	seq N		store to the first N pages in order
 *	write N		the same by write(2), 1 MiB a call
 *	read OFFSET	read one byte, through a new descriptor
 *	msync, fsync, writeback
 *	series K WORD N LIMIT	K times: store to N random pages, not timed, and
 *			do WORD; the answer is the median of WORD's times
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, CHUNK = 1 << 20 };

static struct {
	const char *path;
	int fd;
	uint8_t *mem;
	size_t bytes;
} file;

static uint64_t stamp;	/* no store repeats what is there */
static uint64_t state = 88172645463325252U;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t rnd(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000U + (uint64_t)t.tv_nsec;
}

static void store_page(size_t no)
{
	memcpy(file.mem + no * PAGE + 64, &stamp, sizeof(stamp));
}

/* store_random picks n of limit pages, none twice. */
static void store_random(size_t n, size_t limit)
{
	static uint8_t *taken;
	static size_t size;

	if (limit > size) {
		free(taken);
		taken = malloc(limit);
		size = limit;
	}
	if (taken == NULL || n > limit)
		die("rand");
	memset(taken, 0, limit);
	for (size_t left = n; left > 0;) {
		size_t no = rnd() % limit;

		if (taken[no])
			continue;
		taken[no] = 1;
		store_page(no);
		left--;
	}
}

static void write_pages(size_t n)
{
	static uint64_t buf[CHUNK / sizeof(uint64_t)];

	for (size_t i = 0; i < CHUNK / sizeof(uint64_t); i++)
		buf[i] = stamp + i;
	for (size_t at = 0; at < n * PAGE; at += CHUNK)
		if (pwrite(file.fd, buf, CHUNK, (off_t)at) != CHUNK)
			die("pwrite");
}

static void read_byte(size_t offset)
{
	uint8_t byte;
	int fd = open(file.path, O_RDONLY);

	if (fd < 0 || pread(fd, &byte, 1, (off_t)offset) != 1)
		die("read");
	close(fd);
}

static int obey(const char *word, size_t a, size_t b)
{
	stamp++;
	if (strcmp(word, "rand") == 0)
		store_random(a, b);
	else if (strcmp(word, "seq") == 0)
		for (size_t no = 0; no < a; no++)
			store_page(no);
	else if (strcmp(word, "write") == 0)
		write_pages(a);
	else if (strcmp(word, "read") == 0)
		read_byte(a);
	else if (strcmp(word, "msync") == 0)
		return msync(file.mem, file.bytes, MS_SYNC);
	else if (strcmp(word, "fsync") == 0)
		return fsync(file.fd);
	else if (strcmp(word, "writeback") == 0)
		return sync_file_range(file.fd, 0, 0,
				       SYNC_FILE_RANGE_WAIT_BEFORE |
				       SYNC_FILE_RANGE_WRITE |
				       SYNC_FILE_RANGE_WAIT_AFTER);
	else
		die(word);
	return 0;
}

static int by_size(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* series returns the median time of k times word after stores to n pages. */
static uint64_t series(size_t k, const char *word, size_t n, size_t limit)
{
	uint64_t *took = calloc(k, sizeof(*took));
	uint64_t median;

	if (took == NULL || k == 0)
		die("series");
	for (size_t i = 0; i < k; i++) {
		uint64_t begin;

		if (n > 0)
			obey("rand", n, limit);
		begin = now();
		if (obey(word, 0, 0) != 0)
			die(word);
		took[i] = now() - begin;
	}
	qsort(took, k, sizeof(*took), by_size);
	median = took[k / 2];
	free(took);
	return median;
}

int main(int argc, char **argv)
{
	char line[256], word[32], inner[32];
	struct stat st;

	if (argc != 3) {
		fprintf(stderr, "usage: store FILE BYTES\n");
		return 2;
	}
	file.path = argv[1];
	file.bytes = strtoull(argv[2], NULL, 10);
	file.fd = open(file.path, O_RDWR | O_CREAT, 0644);
	if (file.fd < 0 || fstat(file.fd, &st) != 0)
		die(file.path);
	if ((size_t)st.st_size < file.bytes &&
	    ftruncate(file.fd, (off_t)file.bytes) != 0)
		die("ftruncate");
	file.mem = mmap(NULL, file.bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
			file.fd, 0);
	if (file.mem == MAP_FAILED)
		die("mmap");
	stamp = now();
	while (fgets(line, sizeof(line), stdin) != NULL) {
		size_t a = 0, b = 0, k = 0;
		uint64_t begin;

		if (sscanf(line, "series %zu %31s %zu %zu", &k, inner, &a,
			   &b) == 4) {
			printf("%" PRIu64 "\n", series(k, inner, a, b));
			fflush(stdout);
			continue;
		}
		if (sscanf(line, "%31s %zu %zu", word, &a, &b) < 1)
			continue;
		begin = now();
		if (obey(word, a, b) != 0)
			die(word);
		printf("%" PRIu64 "\n", now() - begin);
		fflush(stdout);
	}
	return 0;
}
