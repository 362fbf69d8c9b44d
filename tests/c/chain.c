/*
 * chain FILE THREADS LINKS: each thread stores 1, 2, 3, ... to LINKS words, each in
 * a page of its own, one after the other. In an image of one moment the words of a
 * thread fall along the chain, by one in all. Every other page stays empty, so that
 * the kernel writes each one back by itself. Each line of standard input is answered
 * with the number of rounds of the slowest thread; it ends with the input. It
 * blocks all signals, as many programs do in most threads.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PAGE = 4096, MAX_THREADS = 64 };

static char *memory;
static long links;

static _Atomic uint64_t *word(long thread, long link)
{
	/* Links that follow each other lie far apart. */
	long place = (link * 7 + thread * 3) % links;

	return (void *)(memory + (thread * links + place) * 2 * PAGE);
}

static void *run(void *arg)
{
	long thread = (long)arg;

	for (uint64_t n = 1;; n++)
		for (long i = 0; i < links; i++)
			atomic_store_explicit(word(thread, i), n,
					      memory_order_release);
	return NULL;
}

int main(int argc, char **argv)
{
	sigset_t all;
	pthread_t id;
	char line[16];
	long threads;
	int fd;

	if (argc != 4)
		return 2;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	threads = atol(argv[2]);
	links = atol(argv[3]);
	if (threads < 1 || threads > MAX_THREADS || links < 1)
		return 2;
	fd = open(argv[1], O_RDWR);
	if (fd < 0) {
		perror(argv[1]);
		return 1;
	}
	memory = mmap(NULL, (size_t)(threads * links) * 2 * PAGE,
		      PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	close(fd);
	for (long i = 0; i < threads; i++)
		if (pthread_create(&id, NULL, run, (void *)i))
			return 1;
	while (fgets(line, sizeof(line), stdin)) {
		uint64_t least = UINT64_MAX;

		for (long i = 0; i < threads; i++) {
			uint64_t n = atomic_load(word(i, links - 1));

			least = n < least ? n : least;
		}
		printf("%llu\n", (unsigned long long)least);
		fflush(stdout);
	}
	return 0;
}
