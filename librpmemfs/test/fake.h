/*
 * A daemon for tests: it serves one file of a tmpfs, keeps the image that the
 * rings carry, and compares it at every barrier with the file itself.
 */
#ifndef FAKE_H
#define FAKE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct fake;

struct fake_faults {
	bool stall;		/* takes nothing from the rings */
	bool slow;		/* takes little from a ring until its member is ready */
	bool mute;		/* answers nothing */
	bool no_sole;		/* never lets a sole member go early */
	bool garbage;		/* sends a malformed message next */
	int refuse;		/* errno of WELCOME */
	bool extra;		/* asks for pages by GO */
	bool blind;		/* compares nothing: for measurements */
};

struct fake_counts {
	uint64_t barriers, called_off, lost, wrong, members, detached, entries;
	uint64_t untracked, drained, kicks;
	uint32_t late_tid;
	char late_name[17];
	/* of the last DONE */
	uint64_t precopied, copied, rounds, scan_ns, copy_ns, pause_ns;
};

/* fake_start makes the file and serves it. */
struct fake *fake_start(size_t bytes);
void fake_stop(struct fake *f);
const char *fake_path(struct fake *f);
void fake_set(struct fake *f, struct fake_faults faults);

/* fake_barrier runs a barrier and returns its error. */
int fake_barrier(struct fake *f, unsigned timeout_ms);

/* fake_hang_up closes all connections. */
void fake_hang_up(struct fake *f);

struct fake_counts fake_counts(struct fake *f);

/* fake_image copies the last committed image of bytes at offset. */
void fake_image(struct fake *f, size_t offset, void *to, size_t bytes);

#endif
