/* Checks of the C tests, and their random numbers. */
#ifndef CHECK_H
#define CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(x)                                                               \
	do {                                                                   \
		if (!(x)) {                                                    \
			fprintf(stderr, "%s:%d: %s: not so\n", __FILE__,       \
				__LINE__, #x);                                 \
			abort();                                               \
		}                                                              \
	} while (0)

/* CHECK_ERROR compares a call's result with what it should be. */
#define CHECK_ERROR(call, want)                                                \
	do {                                                                   \
		int got_ = (call);                                             \
		if (got_ != (want)) {                                          \
			fprintf(stderr, "%s:%d: %s: got %d, want %d\n",        \
				__FILE__, __LINE__, #call, got_, (want));      \
			abort();                                               \
		}                                                              \
	} while (0)

/* draw is the next random number after *state (splitmix64). */
static inline uint64_t draw(uint64_t *state)
{
	uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return z ^ z >> 31;
}

#endif
