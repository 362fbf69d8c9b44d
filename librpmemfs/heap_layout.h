/* The bytes of a heap: docs/format.md, section Heap. */
#ifndef HEAP_LAYOUT_H
#define HEAP_LAYOUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "a heap's integers are little-endian"
#endif

enum {
	RH_VERSION = 1,
	RH_FLAG_GUARDS = 1,

	RH_UNIT_SHIFT = 14,
	RH_UNIT = 1 << RH_UNIT_SHIFT,
	RH_CHUNK_SHIFT = 26,
	RH_CHUNK = 1 << RH_CHUNK_SHIFT,
	RH_CHUNK_UNITS = RH_CHUNK / RH_UNIT,
	RH_CHUNKS = 65536,

	RH_MAP_AT = 4096,
	RH_DESC_AT = 20480,
	RH_DIR_AT = 688128,
	RH_CACHES_AT = 1212416,
	RH_META_UNITS = 42,   /* of a chunk */
	RH_META_UNITS_0 = 330, /* of chunk 0 */
	RH_MIN_UNITS = 512,

	RH_CACHES = 256,
	RH_CACHE = 16384,
	RH_CACHE_FIRST = 64,	/* offset of the first magazine */
	RH_CACHE_END = 15168,	/* end of the last */

	RH_CLASSES = 40,
	RH_SMALL_MAX = 32768,
	RH_GUARD = 16,
	RH_FILL = 0xFB,
	RH_FILL_MAX = 64,
};

static const uint64_t RH_SIZE_MAX = (uint64_t)RH_CHUNKS << RH_CHUNK_SHIFT;
static const uint64_t RH_STATE_SEED = 0x45544154534d5052; /* RPMSTATE */
static const uint64_t RH_LIVE = 0x4d50522d4556494c;	  /* LIVE-RPM */
static const uint64_t RH_FREED = 0x4d50522d45455246;	  /* FREE-RPM */

enum rh_chunk_kind {
	RH_UNUSED,
	RH_CUT,
	RH_HUGE,
	RH_HUGE_REST,
};

enum rh_unit_kind {
	RH_FREE,
	RH_META,
	RH_SMALL,
	RH_LARGE,
};

/* Spans by unit number (chunk * 4096 + unit); 0 is none. */
typedef uint32_t rh_span;

struct rh_list {
	rh_span first;
	rh_span last;
};

struct rh_header {
	char magic[8];
	uint32_t version;
	uint32_t flags;
	uint64_t base;
	unsigned char reserved1[36];
	uint32_t checksum;
	_Atomic uint32_t lock;
	unsigned char reserved2[60];
	uint64_t size;
	uint64_t root;
	uint64_t top;
	uint32_t chunks;
	uint32_t normal;
	uint32_t huge;
	uint32_t first;
	uint64_t reserved3[2];
	uint64_t sum;
	unsigned char reserved4[64];
	struct rh_list lists[RH_CLASSES];
	unsigned char reserved5[3520];
};

_Static_assert(offsetof(struct rh_header, checksum) == 60, "");
_Static_assert(offsetof(struct rh_header, lock) == 64, "");
_Static_assert(offsetof(struct rh_header, size) == 128, "");
_Static_assert(offsetof(struct rh_header, first) == 164, "");
_Static_assert(offsetof(struct rh_header, sum) == 184, "");
_Static_assert(offsetof(struct rh_header, lists) == 256, "");
_Static_assert(sizeof(struct rh_header) == 4096, "");

struct rh_chunk {
	uint8_t kind;
	uint8_t low;
	uint16_t longest;
	uint32_t count;
};

_Static_assert(sizeof(struct rh_chunk) == 8, "");

struct rh_unit {
	uint16_t head;
	uint8_t class;
	uint8_t kind;
};

_Static_assert(sizeof(struct rh_unit) == 4, "");

struct rh_desc {
	rh_span next;
	rh_span prev;
	uint16_t units;
	uint16_t blocks;
	uint16_t free;
	uint8_t class;
	uint8_t kind;
	uint64_t reserved[2];
	uint64_t bitmap[16];
};

_Static_assert(offsetof(struct rh_desc, class) == 14, "");
_Static_assert(offsetof(struct rh_desc, bitmap) == 32, "");
_Static_assert(sizeof(struct rh_desc) == 160, "");
_Static_assert(RH_DESC_AT + RH_CHUNK_UNITS * 160 <= RH_META_UNITS * RH_UNIT,
	       "");

struct rh_magazine {
	uint32_t n;
	uint32_t reserved;
	uint64_t sum;
	uint64_t slots[];
};

struct rh_cache {
	unsigned char bytes[RH_CACHE];
};

/* At the end of each block of a heap with guards. */
struct rh_guard {
	uint64_t bytes;
	uint64_t word;
};

/* A size class; recip is 2^32 / size, rounded up. */
struct rh_class {
	uint32_t size;
	uint32_t recip;
	uint16_t units;
	uint16_t blocks;
	uint16_t cap; /* of its magazine */
	uint16_t pad;
};

extern const struct rh_class rh_classes[RH_CLASSES]
	__attribute__((visibility("hidden")));

/* Where the class's magazine lies in a cache. */
extern const uint16_t rh_magazine_at[RH_CLASSES]
	__attribute__((visibility("hidden")));

/* The class of n bytes, n from 0 to 1024, is rh_class_small[(n + 15) / 16]. */
extern const uint8_t rh_class_small[65] __attribute__((visibility("hidden")));

/* Returns the smallest class of at least n <= RH_SMALL_MAX bytes. */
static inline unsigned rh_class_of(uint64_t n)
{
	if (n <= 1024)
		return rh_class_small[(n + 15) / 16];
	unsigned log2 = 63 - (unsigned)__builtin_clzll(n - 1);
	return 8 + (log2 - 7) * 4 + (unsigned)((n - 1) >> (log2 - 2) & 3);
}

/* Returns at / size; at is an offset in a span of the class. */
static inline unsigned rh_block_no(const struct rh_class *c, uint64_t at)
{
	return (unsigned)(at * c->recip >> 32);
}

/*
 * Whether size divides at, an offset in a span of the class: the remainder is
 * what the product with the reciprocal leaves below 2^32 (Lemire, Kaser, Kurz,
 * "Faster remainder by direct computation", 2019, doi:10.1002/spe.2689).
 */
static inline bool rh_is_multiple(const struct rh_class *c, uint64_t at)
{
	return (uint32_t)(at * c->recip) < c->recip;
}

static inline uint64_t rh_span_offset(rh_span span)
{
	return (uint64_t)span << RH_UNIT_SHIFT;
}

#endif
