/*
 * tsc prints how many ticks the processor's time stamp counter makes in a
 * millisecond. A guest that measures it itself is wrong by any factor when the
 * host is busy, and its clock then runs at that pace.
 */
#define _POSIX_C_SOURCE 200809L
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

static int64_t nanoseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* read_both reads clock and counter at nearly the same moment. */
static void read_both(int64_t *ns, uint64_t *ticks)
{
	int64_t best = INT64_MAX;

	for (int i = 0; i < 100; i++) {
		int64_t before = nanoseconds();
		uint64_t now = __rdtsc();
		int64_t took = nanoseconds() - before;

		if (took < best) {
			best = took;
			*ns = before + took / 2;
			*ticks = now;
		}
	}
}

int main(void)
{
	const struct timespec pause = { .tv_nsec = 200000000 };
	uint64_t from_ticks, to_ticks;
	int64_t from, to;

	read_both(&from, &from_ticks);
	nanosleep(&pause, NULL);
	read_both(&to, &to_ticks);
	printf("%.0f\n", (double)(to_ticks - from_ticks) * 1e6 / (double)(to - from));
	return 0;
}
