/*
 * Messages between a member (a process that attached to a region) and the
 * daemon, one per datagram. docs/protocol.md has the tables; integers are
 * little-endian.
 */
#ifndef WIRE_H
#define WIRE_H

#include <assert.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "messages, ring and heap are little-endian"
#endif
static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "the ring is shared memory");

#define WIRE_MAGIC UINT32_C(0x414d5052) /* "RPMA" */

enum {
	WIRE_VERSION = 1,
	WIRE_MAX = 65536,
	WIRE_NAME = 16,
	WIRE_PAGES = 8000,
};

enum wire_type {
	WIRE_HELLO = 1,
	WIRE_WELCOME,
	WIRE_REQUEST,
	WIRE_RESULT,
	WIRE_DUE,
	WIRE_READY,
	WIRE_LATE,
	WIRE_DRAIN,
	WIRE_DRAINED,
	WIRE_GO,
	WIRE_DONE,
	WIRE_RELEASE,
	WIRE_COMMITTED,
	WIRE_LOST,
	WIRE_GONE,
	WIRE_UNTRACKED,
	WIRE_KICK,
	WIRE_DETACH,
};

/* Flags of hello. */
enum { WIRE_TRACKS = 1, WIRE_RESTART_POINTS = 2, WIRE_COMMIT_ONLY = 4 };

struct wire_header {
	uint32_t magic;
	uint16_t version;
	uint16_t type;
	uint32_t length;
	uint32_t zero;
};

/* UNTRACKED, KICK, DETACH */
struct wire_empty {
	struct wire_header header;
};

/* READY, DRAIN */
struct wire_number {
	struct wire_header header;
	uint64_t n;
};

struct wire_hello {
	struct wire_header header;
	uint64_t ino;
	uint32_t flags;
	uint32_t frames;
	char name[WIRE_NAME];
};

struct wire_welcome {
	struct wire_header header;
	int32_t error;
	uint32_t member;
	uint64_t n;
	uint64_t epoch;
	uint64_t interval_ns;
};

struct wire_request {
	struct wire_header header;
	uint64_t id;
	uint64_t timeout_ns;
};

struct wire_result {
	struct wire_header header;
	uint64_t id;
	int32_t error;
	uint32_t late_tid;
	uint64_t epoch;
};

struct wire_due {
	struct wire_header header;
	uint64_t n;
	uint64_t timeout_ns;
};

struct wire_late {
	struct wire_header header;
	uint64_t n;
	uint32_t tid;
	uint32_t zero;
	char name[WIRE_NAME];
};

struct wire_drained {
	struct wire_header header;
	uint64_t n;
	int32_t error;
	uint32_t zero;
};

/* The number of the sealed epoch follows the pages. */
struct wire_go {
	struct wire_header header;
	uint64_t n;
	uint32_t sole;
	uint32_t count;
	uint64_t page[];
};

struct wire_done {
	struct wire_header header;
	uint64_t n;
	uint64_t upto;
	int32_t error;
	uint32_t rounds;
	uint64_t precopied;
	uint64_t copied;
	uint64_t scan_ns;
	uint64_t copy_ns;
	uint64_t pause_ns;
};

struct wire_release {
	struct wire_header header;
	uint64_t n;
	int32_t error;
	uint32_t zero;
	uint64_t epoch;
};

struct wire_committed {
	struct wire_header header;
	uint64_t epoch;
};

struct wire_lost {
	struct wire_header header;
	int32_t error;
	uint32_t zero;
	uint64_t epoch;
};

struct wire_gone {
	struct wire_header header;
	int32_t error;
	uint32_t zero;
};

static_assert(sizeof(struct wire_header) == 16, "");
static_assert(sizeof(struct wire_hello) == 48, "");
static_assert(sizeof(struct wire_welcome) == 48, "");
static_assert(sizeof(struct wire_request) == 32, "");
static_assert(sizeof(struct wire_result) == 40, "");
static_assert(sizeof(struct wire_due) == 32, "");
static_assert(sizeof(struct wire_number) == 24, "");
static_assert(sizeof(struct wire_late) == 48, "");
static_assert(sizeof(struct wire_drained) == 32, "");
static_assert(offsetof(struct wire_go, page) == 32, "");
static_assert(sizeof(struct wire_done) == 80, "");
static_assert(sizeof(struct wire_release) == 40, "");
static_assert(sizeof(struct wire_committed) == 24, "");
static_assert(sizeof(struct wire_lost) == 32, "");
static_assert(sizeof(struct wire_gone) == 24, "");

/* WIRE_HEADER begins a message of type in an initialiser. */
#define WIRE_HEADER(kind, message)                                             \
	.header = { .magic = WIRE_MAGIC, .version = WIRE_VERSION,              \
		    .type = (kind), .length = sizeof(message) }

/* wire_send sends a message; any thread may. fd < 0: no descriptor with it.
 * It waits a few seconds for a daemon that reads nothing. 0 or -errno. */
int wire_send(int sock, const void *message, int fd);

/*
 * wire_receive takes the next message, if one is there: its type, 0 if none
 * is, or a negative errno (-EPIPE: the daemon has closed). What it returns is
 * whole: header and length are right for the type, and a GO has as many pages
 * as it says. buffer has WIRE_MAX bytes and alignment 8.
 */
int wire_receive(int sock, void *buffer);

#endif
