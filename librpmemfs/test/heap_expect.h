/* Assertions of the heap's tests. */
#ifndef HEAP_EXPECT_H
#define HEAP_EXPECT_H

#include <stdio.h>
#include <stdlib.h>

#include "../rpmemfs_heap.h"

static _Atomic int expect_failures;

#define EXPECT(condition)						\
	do {								\
		if (!(condition))					\
			expect_failed(__FILE__, __LINE__, #condition);	\
	} while (0)

#define EXPECT_SOUND(heap)						\
	EXPECT(rpmemfs_heap_check((heap), expect_report, NULL) == 0)

static inline void expect_failed(const char *file, int line, const char *what)
{
	fprintf(stderr, "%s:%d: expected %s\n", file, line, what);
	if (++expect_failures > 20)
		exit(1);
}

static inline void expect_report(void *context, uint64_t offset,
				 const char *text)
{
	(void)context;
	fprintf(stderr, "  at %llu: %s\n", (unsigned long long)offset, text);
}

static inline int expect_result(const char *name)
{
	if (expect_failures == 0)
		printf("%s: ok\n", name);
	return expect_failures != 0;
}

#endif
