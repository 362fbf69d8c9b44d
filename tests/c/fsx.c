/*
 * fsx does random operations on one file and compares it with a model in
 * memory after each: read, write, truncate, holes, mappings, syncs, close and
 * reopen, rename. After the program of the same name by Avadis Tevanian (Apple,
 * 1991), written anew for this file system's commits.
 *
 *	fsx [-k] [-s SEED] [-n OPS] [-l MAXLEN] -m MODEL FILE
 *	fsx -c -m MODEL FILE
 *
 * The model is kept in the file MODEL, which must not be on the file system
 * under test. Where MODEL exists, FILE has to match it at the start. With -k
 * the program expects to be killed together with the file system: before each
 * sync it writes MODEL.next, which becomes MODEL when the sync returned. -c
 * only checks: FILE must match MODEL or, if there is one, MODEL.next. Exit
 * status 3 means that the file system died under -k.
 *
 * FILE moves between its name and FILE.moved. Exit status 1 and the last
 * operations on standard error mean a mismatch.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PAGE = 4096, OPS_KEPT = 200, OP_TEXT = 80 };

static struct {
	char name[2][PATH_MAX];	/* the file's two names */
	int at;			/* which one it has now */
	int fd;
	uint8_t *map;		/* long-lived mapping of max bytes */
	bool map_dirty;		/* stored through a mapping since a sync */
} file;

static struct {
	uint8_t *data;		/* max bytes, zero from size on */
	size_t size;
	size_t max;
	char path[PATH_MAX];
	char next[PATH_MAX];
} model;

static struct {
	char text[OPS_KEPT][OP_TEXT];
	uint64_t n;
} history;

static uint8_t *scratch;
static uint64_t state;
static uint64_t syncs;
static bool expect_kill;

static uint64_t rnd(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state * UINT64_C(2685821657736338717);
}

static size_t below(size_t n)
{
	return n == 0 ? 0 : (size_t)(rnd() >> 11) % n;
}

__attribute__((format(printf, 1, 2)))
static void note(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(history.text[history.n % OPS_KEPT], OP_TEXT, fmt, ap);
	va_end(ap);
	history.n++;
}

__attribute__((noreturn, format(printf, 1, 2)))
static void fail(const char *fmt, ...)
{
	uint64_t from = history.n > OPS_KEPT ? history.n - OPS_KEPT : 0;
	va_list ap;

	for (uint64_t i = from; i < history.n; i++)
		fprintf(stderr, "%8" PRIu64 " %s\n", i,
			history.text[i % OPS_KEPT]);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "\n");
	exit(1);
}

/* must fails with errno; with -k a dead mount is no failure, but the end. */
static void must(bool ok, const char *what)
{
	if (ok)
		return;
	if (expect_kill && (errno == ENOTCONN || errno == ECONNABORTED ||
			    errno == EIO))
		exit(3);
	fail("%s: %s", what, strerror(errno));
}

/* compare checks bytes that were read at off. */
static void compare(const uint8_t *got, size_t off, size_t n, const char *how)
{
	if (n == 0 || memcmp(got, model.data + off, n) == 0)
		return;
	for (size_t i = 0; i < n; i++) {
		size_t bad = 0;

		if (got[i] == model.data[off + i])
			continue;
		for (size_t j = i; j < n; j++)
			bad += got[j] != model.data[off + j];
		fail("%s: byte %#zx (page %zu + %zu): got %#x, want %#x; "
		     "%zu bytes differ; size %#zx", how, off + i,
		     (off + i) / PAGE, (off + i) % PAGE, got[i],
		     model.data[off + i], bad, model.size);
	}
}

/* read_full reads up to n bytes at off and returns how many there were. */
static size_t read_full(int fd, uint8_t *p, size_t n, size_t off)
{
	size_t done = 0;

	while (done < n) {
		ssize_t got = pread(fd, p + done, n - done,
				    (off_t)(off + done));

		must(got >= 0, "pread");
		if (got == 0)
			break;
		done += (size_t)got;
	}
	return done;
}

static void write_full(int fd, const uint8_t *p, size_t n, size_t off)
{
	size_t done = 0;

	while (done < n) {
		ssize_t put = pwrite(fd, p + done, n - done,
				     (off_t)(off + done));

		must(put > 0, "pwrite");
		done += (size_t)put;
	}
}

static void compare_all(const char *how)
{
	struct stat st;
	size_t n;

	must(fstat(file.fd, &st) == 0, "fstat");
	if ((size_t)st.st_size != model.size)
		fail("%s: size is %#jx, want %#zx", how,
		     (intmax_t)st.st_size, model.size);
	n = read_full(file.fd, scratch, model.max, 0);
	if (n != model.size)
		fail("%s: read %#zx bytes, want %#zx", how, n, model.size);
	compare(scratch, 0, n, how);
}

static void open_file(int flags)
{
	file.fd = open(file.name[file.at], O_RDWR | flags, 0644);
	must(file.fd >= 0, "open");
	file.map = mmap(NULL, model.max, PROT_READ | PROT_WRITE, MAP_SHARED,
			file.fd, 0);
	must(file.map != MAP_FAILED, "mmap");
}

static void close_file(void)
{
	must(munmap(file.map, model.max) == 0, "munmap");
	must(close(file.fd) == 0, "close");
}

/* save_model makes path the model, whole: its size, then its bytes. */
static void save_model(const char *path)
{
	char part[PATH_MAX + 8];
	uint64_t size = model.size;
	int fd;

	snprintf(part, sizeof(part), "%s.part", path);
	fd = open(part, O_WRONLY | O_CREAT | O_TRUNC, 0644);
	must(fd >= 0, part);
	write_full(fd, (uint8_t *)&size, sizeof(size), 0);
	write_full(fd, model.data, model.size, sizeof(size));
	must(close(fd) == 0, part);
	must(rename(part, path) == 0, "rename model");
}

/* load_model returns false if there is no such model. */
static bool load_model(const char *path)
{
	uint64_t size;
	int fd = open(path, O_RDONLY);

	if (fd < 0)
		return false;
	if (read_full(fd, (uint8_t *)&size, sizeof(size), 0) != sizeof(size) ||
	    size > model.max)
		fail("%s: not a model", path);
	model.size = (size_t)size;
	memset(model.data, 0, model.max);
	if (read_full(fd, model.data, model.size, sizeof(size)) != model.size)
		fail("%s: cut off", path);
	close(fd);
	return true;
}

/* sync_with runs one of the ways to commit. */
static void sync_with(unsigned int way)
{
	static const char *const names[] = { "fsync", "fdatasync", "msync" };
	int rc;

	note("%s", names[way]);
	if (expect_kill)
		save_model(model.next);
	if (way == 0)
		rc = fsync(file.fd);
	else if (way == 1)
		rc = fdatasync(file.fd);
	else
		rc = msync(file.map, model.max, MS_SYNC);
	must(rc == 0, names[way]);
	file.map_dirty = false;
	if (expect_kill) {
		must(rename(model.next, model.path) == 0, "rename model");
		printf("%" PRIu64 "\n", ++syncs);
		fflush(stdout);
	}
}

/* range picks a place of at most limit bytes; half of them touch page edges. */
static void range(size_t limit, size_t *off, size_t *n)
{
	size_t most = limit < 65536 ? limit : 65536;

	*off = below(limit);
	*n = 1 + below(rnd() % 4 == 0 ? most : 5000);
	if (rnd() % 4 == 0)
		*off -= *off % PAGE;
	if (rnd() % 4 == 0)
		*n += PAGE - (*off + *n) % PAGE;
	if (*off + *n > limit)
		*n = limit - *off;
}

static void fill(uint8_t *p, size_t n)
{
	uint64_t word = rnd();

	for (size_t i = 0; i < n; i++) {
		if (i % 8 == 0)
			word = word * 6364136223846793005U + 1442695040888963407U;
		p[i] = (uint8_t)(word >> (8 * (i % 8)));
	}
}

static void grow(size_t size)
{
	if (size > model.size)
		model.size = size;
}

static void do_read(void)
{
	size_t off, n, got, want;

	range(model.max, &off, &n);
	note("read %#zx+%#zx", off, n);
	got = read_full(file.fd, scratch, n, off);
	want = off < model.size ? model.size - off : 0;
	if (got != (n < want ? n : want))
		fail("read %#zx+%#zx: got %#zx bytes of a file of %#zx",
		     off, n, got, model.size);
	compare(scratch, off, got, "read");
}

static void do_write(void)
{
	size_t off, n;

	range(model.max, &off, &n);
	note("write %#zx+%#zx", off, n);
	fill(scratch, n);
	write_full(file.fd, scratch, n, off);
	memcpy(model.data + off, scratch, n);
	grow(off + n);
}

static void do_append(void)
{
	size_t n = 1 + below(3000);
	int fd;

	if (model.size + n > model.max)
		return;
	note("append %#zx", n);
	fill(scratch, n);
	fd = open(file.name[file.at], O_WRONLY | O_APPEND);
	must(fd >= 0, "open to append");
	for (size_t done = 0; done < n;) {
		/* A mount that dies takes a part, and the rest fails. */
		ssize_t w = write(fd, scratch + done, n - done);

		must(w > 0, "append");
		done += (size_t)w;
	}
	must(close(fd) == 0, "close");
	memcpy(model.data + model.size, scratch, n);
	grow(model.size + n);
}

/* do_map reads or stores through a mapping, a new one or the long-lived one. */
static void do_map(bool store, bool new)
{
	uint8_t *map = file.map;
	size_t off, n;

	if (model.size == 0)
		return;
	range(model.size, &off, &n);
	note("map%s %#zx+%#zx%s", store ? "write" : "read", off, n,
	     new ? " new" : "");
	if (new) {
		map = mmap(NULL, model.size, PROT_READ | PROT_WRITE,
			   MAP_SHARED, file.fd, 0);
		must(map != MAP_FAILED, "mmap");
	}
	if (store) {
		fill(model.data + off, n);
		memcpy(map + off, model.data + off, n);
		file.map_dirty = true;
	} else {
		compare(map + off, off, n, "mapping");
	}
	if (new)
		must(munmap(map, model.size) == 0, "munmap");
}

static void do_truncate(void)
{
	size_t size = below(model.max);

	if (rnd() % 4 == 0)
		size -= size % PAGE;
	note("truncate %#zx to %#zx", model.size, size);
	must(ftruncate(file.fd, (off_t)size) == 0, "ftruncate");
	if (size < model.size)
		memset(model.data + size, 0, model.size - size);
	model.size = size;
}

static void do_fallocate(int mode, const char *name)
{
	size_t off, n;

	range(model.max, &off, &n);
	if (n == 0)
		return;
	note("%s %#zx+%#zx", name, off, n);
	if (fallocate(file.fd, mode, (off_t)off, (off_t)n) != 0) {
		must(errno == EOPNOTSUPP && mode == FALLOC_FL_ZERO_RANGE, name);
		return;
	}
	if (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
		memset(model.data + off, 0, n);
	if (!(mode & FALLOC_FL_KEEP_SIZE))
		grow(off + n);
}

static void do_copy(void)
{
	size_t from, to, n;
	off_t in, out;
	ssize_t done;

	range(model.size, &from, &n);
	to = below(model.max - n);
	if (n == 0 || (to < from + n && from < to + n))
		return;
	note("copy %#zx+%#zx to %#zx", from, n, to);
	in = (off_t)from;
	out = (off_t)to;
	done = copy_file_range(file.fd, &in, file.fd, &out, n, 0);
	if (done < 0 && (errno == EOPNOTSUPP || errno == ENOSYS ||
			 errno == EXDEV))
		return;
	must(done > 0, "copy_file_range");
	memcpy(model.data + to, model.data + from, (size_t)done);
	grow(to + (size_t)done);
}

static void do_write_back(void)
{
	note("sync_file_range");
	must(sync_file_range(file.fd, 0, 0, SYNC_FILE_RANGE_WAIT_BEFORE |
			     SYNC_FILE_RANGE_WRITE |
			     SYNC_FILE_RANGE_WAIT_AFTER) == 0,
	     "sync_file_range");
}

/*
 * do_seek requires that what SEEK_HOLE calls a hole reads as zeros. The kernel
 * does not write mappings back before it asks a FUSE daemon for holes.
 */
static void do_seek(void)
{
	off_t hole, data;

	if (model.size == 0)
		return;
	if (file.map_dirty)
		do_write_back();
	hole = lseek(file.fd, (off_t)below(model.size), SEEK_HOLE);
	must(hole >= 0, "SEEK_HOLE");
	note("seek hole %#jx", (intmax_t)hole);
	if ((size_t)hole >= model.size)
		return;
	data = lseek(file.fd, hole, SEEK_DATA);
	if (data < 0) {
		must(errno == ENXIO, "SEEK_DATA");
		data = (off_t)model.size;
	}
	for (off_t i = hole; i < data; i++)
		if (model.data[i] != 0)
			fail("hole %#jx-%#jx: byte %#jx is %#x",
			     (intmax_t)hole, (intmax_t)data, (intmax_t)i,
			     model.data[i]);
}

static void do_partial_msync(void)
{
	size_t off = below(model.max);

	off -= off % PAGE;
	note("msync from %#zx", off);
	if (expect_kill)
		return; /* commits what the kernel happened to send */
	must(msync(file.map + off, model.max - off, MS_SYNC) == 0, "msync");
}

static void do_reopen(void)
{
	bool trunc = rnd() % 8 == 0;

	/* Stores through a mapping would be rolled back at the last close. */
	if (file.map_dirty || expect_kill)
		sync_with((unsigned int)(rnd() % 3));
	note("close and open%s", trunc ? " O_TRUNC" : "");
	close_file();
	open_file(trunc ? O_TRUNC : 0);
	if (trunc) {
		memset(model.data, 0, model.size);
		model.size = 0;
	}
	compare_all("reopened");
}

static void do_rename(void)
{
	const char *from = file.name[file.at], *to = file.name[!file.at];
	bool over = rnd() % 2;
	struct stat st;

	note("rename%s", over ? " over a file" : "");
	if (over) {
		int fd = open(to, O_WRONLY | O_CREAT, 0644);

		must(fd >= 0, "create");
		must(write(fd, "junk", 4) == 4, "write");
		must(close(fd) == 0, "close");
	}
	must(rename(from, to) == 0, "rename");
	must(stat(from, &st) == -1 && errno == ENOENT, "old name is gone");
	file.at = !file.at;
}

static void do_map_read(void) { do_map(false, rnd() % 2); }
static void do_map_store(void) { do_map(true, rnd() % 2); }
static void do_sync(void) { sync_with((unsigned int)(rnd() % 3)); }

static void do_punch(void)
{
	do_fallocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, "punch");
}

static void do_zero(void) { do_fallocate(FALLOC_FL_ZERO_RANGE, "zero"); }
static void do_keep(void) { do_fallocate(FALLOC_FL_KEEP_SIZE, "keep"); }
static void do_reserve(void) { do_fallocate(0, "fallocate"); }

static void step(void)
{
	static const struct {
		size_t weight;
		void (*op)(void);
	} ops[] = {
		{ 50, do_read }, { 50, do_write }, { 8, do_append },
		{ 25, do_map_read }, { 70, do_map_store }, { 16, do_truncate },
		{ 8, do_punch }, { 8, do_reserve }, { 8, do_keep },
		{ 8, do_zero }, { 8, do_copy }, { 8, do_seek },
		{ 8, do_partial_msync }, { 8, do_write_back },
		{ 25, do_sync }, { 1, do_reopen }, { 1, do_rename },
	};
	size_t sum = 0, pick;

	for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++)
		sum += ops[i].weight;
	pick = below(sum);
	for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
		if (pick < ops[i].weight) {
			ops[i].op();
			return;
		}
		pick -= ops[i].weight;
	}
}

/* is_junk says that a file is what do_rename makes to be replaced. */
static bool is_junk(const char *name)
{
	int fd = open(name, O_RDONLY);
	size_t n;

	must(fd >= 0, "open");
	n = read_full(fd, scratch, model.max, 0);
	close(fd);
	return n == 0 || (n == 4 && memcmp(scratch, "junk", 4) == 0);
}

/*
 * find_file sets which of its names the file has. Both exist if a rename was
 * cut after its victim was made.
 */
static void find_file(void)
{
	struct stat st;
	bool here = stat(file.name[0], &st) == 0;
	bool moved = stat(file.name[1], &st) == 0;

	file.at = moved && (!here || (is_junk(file.name[0]) &&
				      !is_junk(file.name[1])));
}

static bool file_matches(void)
{
	struct stat st;

	must(fstat(file.fd, &st) == 0, "fstat");
	return (size_t)st.st_size == model.size &&
	       read_full(file.fd, scratch, model.max, 0) == model.size &&
	       memcmp(scratch, model.data, model.size) == 0;
}

/* check_only compares with the model of the last sync or the one in flight. */
static void check_only(void)
{
	open_file(0);
	if (load_model(model.next) && file_matches()) {
		must(rename(model.next, model.path) == 0, "rename model");
		printf("next\n");
		return;
	}
	unlink(model.next);
	if (!load_model(model.path))
		model.size = 0; /* killed before the first sync */
	compare_all("recovered");
	printf("last\n");
}

int main(int argc, char **argv)
{
	uint64_t ops = 20000, seed = 1;
	bool check = false;
	int opt;

	model.max = 256 << 10;
	while ((opt = getopt(argc, argv, "cks:n:l:m:")) != -1) {
		switch (opt) {
		case 'c': check = true; break;
		case 'k': expect_kill = true; break;
		case 's': seed = strtoull(optarg, NULL, 10); break;
		case 'n': ops = strtoull(optarg, NULL, 10); break;
		case 'l': model.max = strtoull(optarg, NULL, 10); break;
		case 'm':
			snprintf(model.path, sizeof(model.path), "%s", optarg);
			snprintf(model.next, sizeof(model.next), "%s.next",
				 optarg);
			break;
		default: return 2;
		}
	}
	if (optind + 1 != argc || model.path[0] == 0 || model.max < 2 * PAGE) {
		fprintf(stderr, "usage: fsx [-ck] [-s SEED] [-n OPS] "
			"[-l MAXLEN] -m MODEL FILE\n");
		return 2;
	}
	snprintf(file.name[0], PATH_MAX, "%s", argv[optind]);
	snprintf(file.name[1], PATH_MAX, "%s.moved", argv[optind]);
	state = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
	model.data = calloc(1, model.max);
	scratch = malloc(model.max + PAGE);
	must(model.data != NULL && scratch != NULL, "malloc");

	find_file();
	if (check) {
		check_only();
		return 0;
	}
	open_file(O_CREAT);
	if (load_model(model.path))
		compare_all("at the start");
	for (uint64_t i = 0; i < ops; i++) {
		step();
		if (i % 512 == 0)
			compare_all("now and then");
	}
	sync_with(0);
	compare_all("at the end");
	close_file();
	save_model(model.path);
	printf("done\n");
	return 0;
}
