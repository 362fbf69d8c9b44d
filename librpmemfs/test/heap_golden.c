#define _GNU_SOURCE
#include <inttypes.h>
#include <string.h>

#include "heap_golden.h"

enum { BLOCKS = 2000 };

static _Noreturn void bad(const char *path, const char *line)
{
	fprintf(stderr, "%s: cannot do: %s\n", path, line);
	exit(2);
}

static void call(struct rpmemfs_heap *h, void **blocks, const char *op,
		 size_t i, size_t a, size_t b)
{
	if (strcmp(op, "take") == 0)
		blocks[i] = rpmemfs_malloc(h, a);
	else if (strcmp(op, "align") == 0)
		blocks[i] = rpmemfs_aligned_alloc(h, a, b);
	else if (strcmp(op, "realloc") == 0)
		blocks[i] = rpmemfs_realloc(h, blocks[i], a);
	else if (strcmp(op, "free") == 0)
		rpmemfs_free(h, blocks[i]);
	else if (strcmp(op, "root") == 0)
		rpmemfs_set_root(h, blocks[i]);
	else
		bad("sequence", op);
	if (blocks[i] == NULL)
		bad("sequence", op);
}

void golden_play(struct rpmemfs_heap *h, const char *path)
{
	static void *blocks[BLOCKS];
	char line[200], op[20];
	FILE *f = fopen(path, "r");

	if (f == NULL)
		bad(path, strerror(errno));
	while (fgets(line, sizeof(line), f) != NULL) {
		size_t first, last, a = 1, b = 0;

		if (line[0] == '#')
			continue;
		if (sscanf(line, "%19s %zu-%zu %zu", op, &first, &last,
			   &a) < 3) {
			if (sscanf(line, "%19s %zu %zu %zu", op, &first, &a,
				   &b) < 2)
				bad(path, line);
			last = first;
		}
		size_t step = strcmp(op, "free") == 0 ? a : 1;
		if (last >= BLOCKS || step == 0)
			bad(path, line);
		for (size_t i = first; i <= last; i += step)
			call(h, blocks, op, i, a, b);
	}
	fclose(f);
}

void golden_write(const struct heap_region *r, const char *path)
{
	const unsigned char *mem = r->mem;
	static const unsigned char zero[16];
	FILE *f = fopen(path, "w");

	if (f == NULL)
		bad(path, strerror(errno));
	fprintf(f, "# heap.seq says how it was made. Lines of zeros are left "
		   "out.\nsize %" PRIu64 "\n", r->size);
	for (uint64_t at = 0; at < r->size; at += 16) {
		if (memcmp(mem + at, zero, 16) == 0)
			continue;
		fprintf(f, "%08" PRIx64 ":", at);
		for (int i = 0; i < 16; i++)
			fprintf(f, " %02x", mem[at + (uint64_t)i]);
		fputc('\n', f);
	}
	fclose(f);
}

void golden_read(struct heap_region *r, const char *path, uint64_t most)
{
	char line[200];
	uint64_t size, at;
	FILE *f = fopen(path, "r");

	if (f == NULL)
		bad(path, strerror(errno));
	memset(r, 0, sizeof(*r));
	while (fgets(line, sizeof(line), f) != NULL) {
		char *p = line;

		if (line[0] == '#')
			continue;
		if (sscanf(line, "size %" SCNu64, &size) == 1) {
			heap_mem_open(r, size, most);
			continue;
		}
		at = strtoull(p, &p, 16);
		if (r->mem == NULL || *p++ != ':' || at + 16 > r->size)
			bad(path, line);
		for (int i = 0; i < 16; i++)
			((unsigned char *)r->mem)[at++] =
				(unsigned char)strtoul(p, &p, 16);
	}
	fclose(f);
	if (r->mem == NULL)
		bad(path, "no size");
}
