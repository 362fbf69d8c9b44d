/*
 * The messages against the golden bytes that the daemon's tests wrote, and
 * malformed ones.
 *
 *	wire_test MESSAGES.HEX
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../wire.h"
#include "check.h"

static int pair[2];
static _Alignas(8) char buffer[WIRE_MAX];

static size_t unhex(const char *text, unsigned char *to)
{
	size_t n = 0;
	unsigned byte;

	for (; sscanf(text, "%2x", &byte) == 1; text += 2)
		to[n++] = (unsigned char)byte;
	return n;
}

static int receive(const void *message, size_t n)
{
	CHECK(send(pair[1], message, n, 0) == (ssize_t)n);
	return wire_receive(pair[0], buffer);
}

/* What this side sends, with the values of the golden file. */
static const void *golden(int type)
{
	static struct wire_hello hello = {
		WIRE_HEADER(WIRE_HELLO, hello), .ino = 0x0102030405060708,
		.flags = WIRE_TRACKS | WIRE_RESTART_POINTS, .frames = 16384,
		.name = "fifteen-letters",
	};
	static struct wire_request request = {
		WIRE_HEADER(WIRE_REQUEST, request), .id = 0xfedcba9876543210,
		.timeout_ns = 1000000000,
	};
	static struct wire_number ready = { WIRE_HEADER(WIRE_READY, ready),
					    .n = 42 };
	static struct wire_late late = { WIRE_HEADER(WIRE_LATE, late), .n = 42,
					 .tid = 4711, .name = "worker" };
	static struct wire_drained drained = {
		WIRE_HEADER(WIRE_DRAINED, drained), .n = 42, .error = -EIO,
	};
	static struct wire_done done = {
		WIRE_HEADER(WIRE_DONE, done), .n = 42, .upto = 70000,
		.error = -ENOMEM, .rounds = 5, .precopied = 60000,
		.copied = 64, .scan_ns = 900000, .copy_ns = 40000,
		.pause_ns = 1000000,
	};
	static struct wire_empty untracked = { WIRE_HEADER(WIRE_UNTRACKED,
							   untracked) };
	static struct wire_empty kick = { WIRE_HEADER(WIRE_KICK, kick) };
	static struct wire_empty detach = { WIRE_HEADER(WIRE_DETACH, detach) };

	switch (type) {
	case WIRE_HELLO:
		return &hello;
	case WIRE_REQUEST:
		return &request;
	case WIRE_READY:
		return &ready;
	case WIRE_LATE:
		return &late;
	case WIRE_DRAINED:
		return &drained;
	case WIRE_DONE:
		return &done;
	case WIRE_UNTRACKED:
		return &untracked;
	case WIRE_KICK:
		return &kick;
	case WIRE_DETACH:
		return &detach;
	}
	return NULL;
}

/* What this side takes. */
static void taken(int type)
{
	const struct wire_welcome *w = (const void *)buffer;
	const struct wire_result *r = (const void *)buffer;
	const struct wire_due *due = (const void *)buffer;
	const struct wire_go *go = (const void *)buffer;
	const struct wire_release *release = (const void *)buffer;
	const struct wire_lost *lost = (const void *)buffer;

	switch (type) {
	case WIRE_WELCOME:
		CHECK(w->error == -EACCES && w->member == 3 && w->n == 41 &&
		      w->epoch == 40 && w->interval_ns == 64000000);
		break;
	case WIRE_RESULT:
		CHECK(r->id == 0xfedcba9876543210 && r->error == -ETIMEDOUT &&
		      r->late_tid == 4711 && r->epoch == 40);
		break;
	case WIRE_DUE:
		CHECK(due->n == 42 && due->timeout_ns == 1000000000);
		break;
	case WIRE_GO:
		CHECK(go->n == 42 && go->sole == 1 && go->count == 2 &&
		      go->page[0] == 7 && go->page[1] == UINT64_C(1) << 38 &&
		      go->page[2] == 41);
		break;
	case WIRE_RELEASE:
		CHECK(release->n == 42 && release->error == -EOWNERDEAD &&
		      release->epoch == 41);
		break;
	case WIRE_LOST:
		CHECK(lost->error == -EOWNERDEAD && lost->epoch == 41);
		break;
	}
}

static void malformed(void)
{
	struct wire_due due = { WIRE_HEADER(WIRE_DUE, due), .n = 1 }, bad;
	_Alignas(8) char page[64] = { 0 };
	struct wire_go *go = (void *)page;

	CHECK(receive(&due, sizeof(due)) == WIRE_DUE);
	CHECK(receive(&due, sizeof(due) - 1) == -EPROTO);
	CHECK(receive(&due, 8) == -EPROTO);
	bad = due;
	bad.header.magic++;
	CHECK(receive(&bad, sizeof(bad)) == -EPROTO);
	bad = due;
	bad.header.version++;
	CHECK(receive(&bad, sizeof(bad)) == -EPROTO);
	bad = due;
	bad.header.length++;
	CHECK(receive(&bad, sizeof(bad)) == -EPROTO);
	bad = due;
	bad.header.type = WIRE_KICK;	/* only members send it */
	CHECK(receive(&bad, sizeof(bad)) == -EPROTO);

	*go = (struct wire_go){ WIRE_HEADER(WIRE_GO, *go), .n = 1 };
	go->header.length = 40;
	CHECK(receive(go, 40) == WIRE_GO);
	go->count = 1;
	CHECK(receive(go, 40) == -EPROTO);
	go->count = UINT32_MAX;
	CHECK(receive(go, 40) == -EPROTO);
	go->header.length = 24;
	CHECK(receive(go, 24) == -EPROTO);
}

int main(int argc, char **argv)
{
	FILE *file = argc > 1 ? fopen(argv[1], "r") : NULL;
	char *line = NULL;
	size_t room = 0;
	int messages = 0;

	CHECK(file != NULL);
	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0);
	while (getline(&line, &room, file) > 0) {
		static unsigned char bytes[WIRE_MAX];
		size_t n = unhex(line, bytes);
		int type = bytes[6];
		const void *mine = golden(type);

		messages++;
		if (mine) {
			CHECK(wire_send(pair[1], mine, -1) == 0);
			CHECK(recv(pair[0], buffer, WIRE_MAX, 0) == (ssize_t)n);
			CHECK(memcmp(buffer, bytes, n) == 0);
			continue;
		}
		if (type == WIRE_DRAIN)
			CHECK(n == sizeof(struct wire_number));
		CHECK(receive(bytes, n) == type);
		taken(type);
	}
	CHECK(messages == WIRE_DETACH);
	malformed();
	CHECK(wire_receive(pair[0], buffer) == 0);
	close(pair[1]);
	CHECK(wire_receive(pair[0], buffer) == -EPIPE);
	free(line);
	fclose(file);
	return 0;
}
