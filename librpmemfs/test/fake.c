#define _GNU_SOURCE
#include "fake.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "../futex.h"
#include "../track.h"
#include "../wire.h"
#include "check.h"

enum { MEMBERS = 16, ASKS = 256 };

struct peer {
	int sock;		/* -1: none */
	uint8_t *ring;
	size_t bytes;
	uint32_t frames;
	uint64_t tail, upto;
	bool tracks, ready, done, drained;
};

struct ask {
	struct peer *peer;	/* NULL: fake_barrier */
	uint64_t id;
	uint64_t timeout_ns;
};

struct fake {
	char dir[64], path[128], sock_path[128];
	int fd, listener, wake;
	size_t bytes;
	uint8_t *image;		/* committed and sealed pages */
	uint8_t *truth;		/* the file at the barrier */
	uint64_t *when;
	uint8_t **open;		/* pages of the open epoch */
	struct peer peers[MEMBERS];
	uint64_t n, epoch;
	bool died, undrained;
	struct ask asks[ASKS];	/* not answered yet, oldest first */
	unsigned asking;
	pthread_t thread;
	_Atomic bool stop, hang_up;

	pthread_mutex_t lock;	/* guards what follows */
	pthread_cond_t answered;
	struct fake_faults faults;
	struct fake_counts counts;
	bool asked, answer_there;
	uint64_t timeout_ns;
	int answer;
	uint8_t *committed;
};

static struct fake_faults faults(struct fake *f)
{
	pthread_mutex_lock(&f->lock);
	struct fake_faults x = f->faults;

	pthread_mutex_unlock(&f->lock);
	return x;
}

#define COUNT(f, what)                                                         \
	do {                                                                   \
		pthread_mutex_lock(&(f)->lock);                                \
		(f)->counts.what;                                              \
		pthread_mutex_unlock(&(f)->lock);                              \
	} while (0)

static void gone(struct fake *f, struct peer *p, bool clean)
{
	close(p->sock);
	p->sock = -1;
	munmap(p->ring, p->bytes);
	if (clean) {
		f->undrained = true;
		COUNT(f, detached++);
	} else {
		f->died = true;
	}
}

static void send_to(struct fake *f, struct peer *p, const void *m)
{
	if (p->sock >= 0 && !faults(f).mute)
		(void)wire_send(p->sock, m, -1);
}

static _Atomic uint32_t *word32(struct peer *p, size_t at)
{
	return (_Atomic uint32_t *)(void *)(p->ring + at);
}

static _Atomic uint64_t *word64(struct peer *p, size_t at)
{
	return (_Atomic uint64_t *)(void *)(p->ring + at);
}

static uint64_t *words(struct peer *p, size_t at)
{
	return (uint64_t *)(void *)(p->ring + at);
}

/* take applies what the ring holds: tags below n to the image that is being
 * sealed (n = 0: all to the open epoch). drop: entries with tag < n vanish. */
static void take(struct fake *f, struct peer *p, uint64_t n, bool drop)
{
	size_t frames_at = (PAGE + p->frames * 32 + PAGE - 1) / PAGE * PAGE;
	uint64_t from = p->tail;
	uint64_t upto = faults(f).slow && !p->ready ? from + 6 : UINT64_MAX;

	if (faults(f).blind)
		p->tail = atomic_load(word64(p, 64));
	while (p->tail < upto) {
		uint64_t slot = p->tail % p->frames;
		size_t at = PAGE + slot * 32;
		const uint8_t *frame = p->ring + frames_at + slot * PAGE;
		uint64_t page, when, tag;
		uint8_t **to;

		if (atomic_load(word64(p, at)) != p->tail + 1)
			break;
		page = words(p, at)[1];
		when = words(p, at)[2];
		tag = words(p, at)[3];
		CHECK(page < f->bytes / PAGE);
		CHECK(tag <= f->n);
		COUNT(f, entries++);
		p->tail++;
		if (drop && tag < n)
			continue;
		if (tag < n) {
			CHECK(!f->open[page]);
			if (when >= f->when[page]) {
				f->when[page] = when;
				memcpy(f->image + page * PAGE, frame, PAGE);
			}
			continue;
		}
		to = &f->open[page];
		if (!*to) {
			*to = malloc(PAGE);
			f->when[page] = 0;
		}
		if (when >= f->when[page]) {
			f->when[page] = when;
			memcpy(*to, frame, PAGE);
		}
	}
	if (p->tail == from)
		return;
	atomic_store(word64(p, 128), p->tail);
	atomic_fetch_add(word32(p, 136), 1);
	if (atomic_exchange(word32(p, 140), 0))
		syscall(SYS_futex, word32(p, 136), FUTEX_WAKE, INT_MAX, NULL,
			NULL, 0);
}

static void accept_one(struct fake *f)
{
	int sock = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC), ring = -1;
	struct wire_hello hello;
	char control[64];
	struct iovec data = { &hello, sizeof(hello) };
	struct msghdr m = { .msg_iov = &data, .msg_iovlen = 1,
			    .msg_control = control,
			    .msg_controllen = sizeof(control) };
	struct wire_welcome w = { WIRE_HEADER(WIRE_WELCOME, w), .n = f->n,
				  .epoch = f->epoch };
	struct peer *p = f->peers;
	struct stat st;

	CHECK(recvmsg(sock, &m, MSG_CMSG_CLOEXEC) == sizeof(hello));
	CHECK(hello.header.type == WIRE_HELLO && hello.ino == 42);
	CHECK(hello.header.length == sizeof(hello) && !hello.header.zero);
	CHECK(memchr(hello.name, 0, sizeof(hello.name)));
	memcpy(&ring, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(ring));
	CHECK(fcntl(ring, F_GET_SEALS) ==
	      (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL));
	while (p->sock >= 0)
		p++;
	CHECK(p < f->peers + MEMBERS);
	CHECK(fstat(ring, &st) == 0);
	*p = (struct peer){ .sock = sock, .frames = hello.frames,
			    .bytes = (size_t)st.st_size,
			    .tracks = hello.flags & WIRE_TRACKS };
	CHECK(hello.flags & WIRE_RESTART_POINTS);
	p->ring = mmap(NULL, p->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring,
		       0);
	CHECK(p->ring != MAP_FAILED && !memcmp(p->ring, "RPMRING", 8));
	CHECK(*words(p, 8) == (1 | (uint64_t)p->frames << 32));
	close(ring);
	w.error = faults(f).refuse;
	send_to(f, p, &w);
	if (w.error) {
		close(sock);
		munmap(p->ring, p->bytes);
		p->sock = -1;
		return;
	}
	COUNT(f, members++);
}

/* old: the barrier that a member speaks of was called off before. */
static bool old(struct fake *f, uint64_t n)
{
	CHECK(n <= f->n);
	return n < f->n;
}

/* A message from a member. */
static void hear(struct fake *f, struct peer *p, int *off)
{
	_Alignas(8) char buffer[4096];
	const struct wire_header *h = (const void *)buffer;
	ssize_t n = recv(p->sock, buffer, sizeof(buffer), MSG_DONTWAIT);

	if (n < 0 && errno == EAGAIN)
		return;
	if (n <= 0) {
		gone(f, p, false);
		*off = -EOWNERDEAD;
		return;
	}
	CHECK(h->magic == WIRE_MAGIC && h->version == WIRE_VERSION &&
	      h->length == (size_t)n && h->zero == 0);
	switch (h->type) {
	case WIRE_REQUEST: {
		const struct wire_request *m = (const void *)buffer;

		CHECK(f->asking < ASKS);
		f->asks[f->asking++] = (struct ask){ p, m->id, m->timeout_ns };
		break;
	}
	case WIRE_READY:
		if (old(f, ((const struct wire_number *)h)->n))
			break;
		CHECK(!p->ready);
		p->ready = true;
		break;
	case WIRE_LATE: {
		const struct wire_late *m = (const void *)buffer;

		if (old(f, m->n))
			break;
		CHECK(m->zero == 0);
		COUNT(f, late_tid = m->tid);
		pthread_mutex_lock(&f->lock);
		memcpy(f->counts.late_name, m->name, WIRE_NAME);
		pthread_mutex_unlock(&f->lock);
		*off = -ETIMEDOUT;
		break;
	}
	case WIRE_DRAINED:
		p->drained = true;
		break;
	case WIRE_DONE: {
		const struct wire_done *m = (const void *)buffer;

		if (old(f, m->n))
			break;
		CHECK(p->ready && !p->done);
		p->done = true;
		p->upto = m->upto;
		if (m->error)
			*off = m->error;
		pthread_mutex_lock(&f->lock);
		f->counts.precopied = m->precopied;
		f->counts.copied = m->copied;
		f->counts.rounds = m->rounds;
		f->counts.scan_ns = m->scan_ns;
		f->counts.copy_ns = m->copy_ns;
		f->counts.pause_ns = m->pause_ns;
		pthread_mutex_unlock(&f->lock);
		break;
	}
	case WIRE_UNTRACKED:
		f->undrained = true;
		COUNT(f, untracked++);
		break;
	case WIRE_KICK:
		COUNT(f, kicks++);
		break;
	case WIRE_DETACH:
		gone(f, p, true);
		break;
	default:
		CHECK(!"message of a member");
	}
}

/* step takes from the rings, and waits for something to happen. n as in take;
 * accept: new members may come. */
static void step(struct fake *f, uint64_t n, bool accept, int *off,
		 int timeout_ms)
{
	struct pollfd in[MEMBERS + 2] = { { .fd = f->wake, .events = POLLIN } };
	eventfd_t drop;

	in[1] = (struct pollfd){ .fd = accept ? f->listener : -1,
				 .events = POLLIN };
	for (int i = 0; i < MEMBERS; i++) {
		struct peer *p = &f->peers[i];

		in[i + 2] = (struct pollfd){ .fd = p->sock, .events = POLLIN };
		if (p->sock < 0 || faults(f).stall)
			continue;
		/* A kick would make it faster. */
		atomic_store(word32(p, 192), !faults(f).slow);
		take(f, p, n, false);
	}
	poll(in, MEMBERS + 2, timeout_ms);
	if (in[0].revents)
		eventfd_read(f->wake, &drop);
	if (in[1].revents)
		accept_one(f);
	for (int i = 0; i < MEMBERS; i++)
		if (in[i + 2].revents && f->peers[i].sock >= 0)
			hear(f, &f->peers[i], off);
}

#define EACH(f, p)                                                             \
	for (struct peer *p = (f)->peers; p < (f)->peers + MEMBERS; p++)       \
		if (p->sock >= 0)

static void release(struct fake *f, int error)
{
	struct wire_release m = { WIRE_HEADER(WIRE_RELEASE, m), .n = f->n,
				  .error = error, .epoch = f->epoch };

	EACH(f, p)
		send_to(f, p, &m);
	if (error) {
		COUNT(f, called_off++);
	}
}

/* read_truth reads the file, which may have holes and be short. */
static void read_truth(struct fake *f)
{
	ssize_t n = pread(f->fd, f->truth, f->bytes, 0);

	CHECK(n >= 0);
	memset(f->truth + n, 0, f->bytes - (size_t)n);
}

/* roll_back makes file and image the last committed epoch. */
static void roll_back(struct fake *f)
{
	struct wire_lost m = { WIRE_HEADER(WIRE_LOST, m), .error = -EOWNERDEAD,
			       .epoch = f->epoch };

	EACH(f, p)
		take(f, p, f->n, true);
	for (size_t i = 0; i < f->bytes / PAGE; i++) {
		free(f->open[i]);
		f->open[i] = NULL;
	}
	read_truth(f);
	pthread_mutex_lock(&f->lock);
	memcpy(f->image, f->committed, f->bytes);
	pthread_mutex_unlock(&f->lock);
	for (size_t i = 0; i < f->bytes; i += PAGE)
		if (memcmp(f->truth + i, f->image + i, PAGE))
			CHECK(pwrite(f->fd, f->image + i, PAGE, (off_t)i) ==
			      PAGE);
	f->died = false;
	COUNT(f, lost++);
	EACH(f, p)
		send_to(f, p, &m);
}

/* until runs steps until all members have what cond says. */
#define UNTIL(f, n, what, limit)                                               \
	for (;;) {                                                             \
		bool all = true;                                               \
		EACH(f, p)                                                     \
			all = all && (what);                                   \
		if (all || off)                                                \
			break;                                                 \
		if (now_ns() > (limit)) {                                      \
			off = -ETIMEDOUT;                                      \
			break;                                                 \
		}                                                              \
		step(f, n, false, &off, 20);                                   \
		if (atomic_load(&f->stop))                                     \
			return -ECANCELED;                                     \
	}

static void seal(struct fake *f)
{
	EACH(f, p)
		if (!faults(f).stall)
			take(f, p, 0, false);
	for (size_t i = 0; i < f->bytes / PAGE; i++) {
		if (!f->open[i])
			continue;
		memcpy(f->image + i * PAGE, f->open[i], PAGE);
		free(f->open[i]);
		f->open[i] = NULL;
	}
}

static void compare(struct fake *f)
{
	unsigned told = 0;

	for (size_t i = 0; i < f->bytes; i += PAGE) {
		if (!memcmp(f->truth + i, f->image + i, PAGE))
			continue;
		COUNT(f, wrong++);
		if (told++ >= 3)
			continue;
		fprintf(stderr, "fake: barrier %llu: page %zu differs: begins "
			"with %#llx, in the file with %#llx\n",
			(unsigned long long)f->n, i / PAGE,
			(unsigned long long)*(uint64_t *)(void *)(f->image + i),
			(unsigned long long)*(uint64_t *)(void *)(f->truth + i));
	}
}

static int barrier(struct fake *f, uint64_t timeout)
{
	uint64_t limit = now_ns() + timeout + SEC;
	struct wire_due due = { WIRE_HEADER(WIRE_DUE, due), .n = ++f->n,
				.timeout_ns = timeout };
	_Alignas(8) char buffer[1024];
	struct wire_go *go = (void *)buffer;
	struct wire_number drain = { WIRE_HEADER(WIRE_DRAIN, drain),
				     .n = f->n };
	unsigned members = 0;
	int off = 0;

	EACH(f, p) {
		p->ready = p->done = p->drained = false;
		f->undrained = f->undrained || !p->tracks;
		members++;
		send_to(f, p, &due);
	}
	UNTIL(f, 0, p->ready, limit);
	if (off == -EOWNERDEAD) {	/* wait for the others, roll back */
		off = 0;
		UNTIL(f, 0, p->ready, limit);
	}
	if (f->died && off != -ETIMEDOUT) {
		roll_back(f);
		release(f, -EOWNERDEAD);
		return -EOWNERDEAD;
	}
	if (off) {
		release(f, off);
		return off;
	}
	if (f->undrained && members) {
		struct peer *one = f->peers;

		while (one->sock < 0)
			one++;
		send_to(f, one, &drain);
		UNTIL(f, 0, p != one || p->drained, limit);
		COUNT(f, drained++);
	}
	if (!faults(f).blind)
		read_truth(f);
	if (f->undrained)	/* what the kernel would have sent */
		memcpy(f->image, f->truth, f->bytes);
	f->undrained = false;
	seal(f);
	*go = (struct wire_go){ WIRE_HEADER(WIRE_GO, *go), .n = f->n };
	go->sole = members == 1 && !faults(f).no_sole;
	if (faults(f).extra)
		for (; go->count < 64; go->count++)
			go->page[go->count] = go->count * UINT64_C(5);
	go->page[go->count] = f->epoch + 1;
	go->header.length = (uint32_t)(sizeof(*go) + 8 * (go->count + 1));
	EACH(f, p)
		send_to(f, p, go);
	limit = now_ns() + timeout + 3ull * SEC;
	UNTIL(f, f->n, p->done && (p->tail >= p->upto || faults(f).stall),
	      limit);
	if (!off)
		f->epoch++;
	if (off == -EOWNERDEAD) {
		/* Died after GO: the real one asks for another barrier. */
		release(f, -EIO);
		return off;
	}
	release(f, off);
	if (off) {
		f->undrained = true;
		return off;
	}
	if (!faults(f).blind)
		compare(f);
	pthread_mutex_lock(&f->lock);
	if (!f->faults.blind)
		memcpy(f->committed, f->image, f->bytes);
	f->counts.barriers++;
	pthread_mutex_unlock(&f->lock);
	return 0;
}

static void commit(struct fake *f)
{
	struct wire_committed m = { WIRE_HEADER(WIRE_COMMITTED, m),
				    .epoch = f->epoch };

	EACH(f, p)
		send_to(f, p, &m);
}

static void answer(struct fake *f, const struct ask *ask, int error)
{
	struct wire_result m = { WIRE_HEADER(WIRE_RESULT, m), .id = ask->id,
				 .error = error, .epoch = f->epoch };

	if (ask->peer) {
		if (error == -ETIMEDOUT)
			m.late_tid = f->counts.late_tid;
		send_to(f, ask->peer, &m);
		return;
	}
	pthread_mutex_lock(&f->lock);
	f->answer = error;
	f->answer_there = true;
	pthread_cond_broadcast(&f->answered);
	pthread_mutex_unlock(&f->lock);
}

static void *serve(void *arg)
{
	struct fake *f = arg;
	struct wire_gone junk = { WIRE_HEADER(99, junk) };

	while (!atomic_load(&f->stop)) {
		uint64_t timeout = UINT64_C(30) * SEC;	/* on a busy machine */
		unsigned served;
		int off = 0;

		step(f, 0, true, &off, f->died || f->asking ? 0 : 1000);
		if (faults(f).garbage)
			EACH(f, p)
				send_to(f, p, &junk);
		if (atomic_exchange(&f->hang_up, false))
			EACH(f, p)
				gone(f, p, true);
		pthread_mutex_lock(&f->lock);
		if (f->asked && f->asking < ASKS) {
			f->asks[f->asking++] =
				(struct ask){ NULL, 1, f->timeout_ns };
			f->asked = false;
		}
		pthread_mutex_unlock(&f->lock);
		if (!f->asking && !f->died)
			continue;
		for (unsigned i = 0; i < f->asking; i++)
			if (f->asks[i].timeout_ns)
				timeout = f->asks[i].timeout_ns;
		served = f->asking;
		off = barrier(f, timeout);
		if (!off)
			commit(f);
		for (unsigned i = 0; i < served; i++)
			answer(f, &f->asks[i], off);
		f->asking -= served;
		memmove(f->asks, f->asks + served,
			f->asking * sizeof(*f->asks));
	}
	return NULL;
}

struct fake *fake_start(size_t bytes)
{
	struct fake *f = calloc(1, sizeof(*f));
	struct sockaddr_un at = { .sun_family = AF_UNIX };

	CHECK(f != NULL);
	strcpy(f->dir, "/dev/shm/rpmemfs-test-XXXXXX");
	CHECK(mkdtemp(f->dir) != NULL);
	snprintf(f->path, sizeof(f->path), "%s/file", f->dir);
	snprintf(f->sock_path, sizeof(f->sock_path), "%s/sock", f->dir);
	f->bytes = bytes;
	f->fd = open(f->path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	CHECK(f->fd >= 0 && ftruncate(f->fd, (off_t)bytes) == 0);
	CHECK(fsetxattr(f->fd, "user.rpmemfs.attach", f->sock_path,
			strlen(f->sock_path), 0) == 0);
	CHECK(fsetxattr(f->fd, "user.rpmemfs.ino", "42", 2, 0) == 0);
	f->image = calloc(1, bytes);
	f->truth = calloc(1, bytes);
	f->committed = calloc(1, bytes);
	f->when = calloc(bytes / PAGE, 8);
	f->open = calloc(bytes / PAGE, sizeof(void *));
	for (int i = 0; i < MEMBERS; i++)
		f->peers[i].sock = -1;
	pthread_mutex_init(&f->lock, NULL);
	pthread_cond_init(&f->answered, NULL);
	f->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	f->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	strcpy(at.sun_path, f->sock_path);
	CHECK(bind(f->listener, (struct sockaddr *)&at, sizeof(at)) == 0);
	CHECK(listen(f->listener, 16) == 0);
	CHECK(pthread_create(&f->thread, NULL, serve, f) == 0);
	return f;
}

void fake_stop(struct fake *f)
{
	atomic_store(&f->stop, true);
	eventfd_write(f->wake, 1);
	pthread_join(f->thread, NULL);
	EACH(f, p)
		gone(f, p, true);
	close(f->listener);
	close(f->wake);
	close(f->fd);
	unlink(f->path);
	unlink(f->sock_path);
	rmdir(f->dir);
	for (size_t i = 0; i < f->bytes / PAGE; i++)
		free(f->open[i]);
	free(f->open);
	free(f->when);
	free(f->image);
	free(f->truth);
	free(f->committed);
	free(f);
}

const char *fake_path(struct fake *f)
{
	return f->path;
}

void fake_set(struct fake *f, struct fake_faults x)
{
	pthread_mutex_lock(&f->lock);
	f->faults = x;
	pthread_mutex_unlock(&f->lock);
	eventfd_write(f->wake, 1);
}

int fake_barrier(struct fake *f, unsigned timeout_ms)
{
	int error;

	pthread_mutex_lock(&f->lock);
	f->asked = true;
	f->answer_there = false;
	f->timeout_ns = (uint64_t)timeout_ms * MSEC;
	eventfd_write(f->wake, 1);
	while (!f->answer_there)
		pthread_cond_wait(&f->answered, &f->lock);
	error = f->answer;
	pthread_mutex_unlock(&f->lock);
	return error;
}

void fake_hang_up(struct fake *f)
{
	atomic_store(&f->hang_up, true);
	eventfd_write(f->wake, 1);
}

struct fake_counts fake_counts(struct fake *f)
{
	pthread_mutex_lock(&f->lock);
	struct fake_counts c = f->counts;

	pthread_mutex_unlock(&f->lock);
	return c;
}

void fake_image(struct fake *f, size_t offset, void *to, size_t bytes)
{
	pthread_mutex_lock(&f->lock);
	memcpy(to, f->committed + offset, bytes);
	pthread_mutex_unlock(&f->lock);
}
