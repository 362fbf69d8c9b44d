/*
 * Becoming a member of a region, and leaving it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "futex.h"
#include "region.h"

enum {
	/* The daemon answers when a barrier or a rollback is over. */
	WELCOME_SECONDS = 60,
	/* A daemon that takes no message for so long is given up. */
	SEND_SECONDS = 5,
};

/* discover asks the file for its number and for the daemon's socket. */
static int discover(struct rpmemfs *r, struct sockaddr_un *to)
{
	char text[32] = "";
	char *end;
	ssize_t n;

	to->sun_family = AF_UNIX;
	n = fgetxattr(r->fd, "user.rpmemfs.attach", to->sun_path,
		      sizeof(to->sun_path) - 1);
	if (n <= 0)
		return n < 0 && errno == ERANGE ? -ENAMETOOLONG : -EOPNOTSUPP;
	to->sun_path[n] = 0;
	n = fgetxattr(r->fd, "user.rpmemfs.ino", text, sizeof(text) - 1);
	if (n <= 0)
		return -EOPNOTSUPP;
	errno = 0;
	r->ino = strtoull(text, &end, 10);
	return errno || *end ? -EPROTO : 0;
}

static int dial(struct rpmemfs *r, const struct sockaddr_un *to)
{
	struct timeval limit = { .tv_sec = SEND_SECONDS };

	r->sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (r->sock < 0 ||
	    setsockopt(r->sock, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)))
		return -errno;
	while (connect(r->sock, (const struct sockaddr *)to, sizeof(*to)))
		if (errno != EINTR)
			return -errno;
	return 0;
}

static int say_hello(struct rpmemfs *r)
{
	struct wire_hello hello = {
		WIRE_HEADER(WIRE_HELLO, hello),
		.ino = r->ino,
		.flags = r->commit_only ? WIRE_COMMIT_ONLY :
					  WIRE_RESTART_POINTS,
		.frames = r->capture.ring.frames,
	};

	r->said_tracks = atomic_load(&r->capture.tracks);
	if (r->said_tracks)
		hello.flags |= WIRE_TRACKS;
	prctl(PR_GET_NAME, hello.name);
	return wire_send(r->sock, &hello, r->capture.ring.fd);
}

static int hear_welcome(struct rpmemfs *r)
{
	_Alignas(8) char buffer[WIRE_MAX];
	const struct wire_welcome *w = (const void *)buffer;
	struct pollfd in = { .fd = r->sock, .events = POLLIN };
	int got;

	do
		got = poll(&in, 1, WELCOME_SECONDS * 1000);
	while (got < 0 && errno == EINTR);
	if (got <= 0)
		return got ? -errno : -ETIMEDOUT;
	got = wire_receive(r->sock, buffer);
	if (got < 0)
		return got;
	if (got != WIRE_WELCOME || w->error > 0)
		return -EPROTO;
	if (w->error)
		return w->error;
	r->member.tag = w->n;
	atomic_store(&r->committed, w->epoch);
	atomic_store(&r->open, w->epoch + 1);
	return 0;
}

static void kick(void *region)
{
	struct rpmemfs *r = region;
	struct wire_empty m = { WIRE_HEADER(WIRE_KICK, m) };

	/* If it fails, the daemon is about to be found dead. */
	(void)wire_send(r->sock, &m, -1);
}

static void offer(void *region, int helpers)
{
	struct rpmemfs *r = region;

	threads_news(&r->threads, helpers);
}

/* check ends waits for the ring: nobody listens to the socket meanwhile. */
static int check(void *region)
{
	struct rpmemfs *r = region;
	struct pollfd sock = { .fd = r->sock, .events = POLLRDHUP };

	if (atomic_load(&r->stop))
		return -EIO;
	return poll(&sock, 1, 0) > 0 ? -EIO : 0;
}

static bool help(void *region)
{
	struct rpmemfs *r = region;

	return capture_help(&r->capture);
}

/* start_helper starts the helper thread with all signals blocked: they are the
 * program's. */
static int start_helper(struct rpmemfs *r)
{
	sigset_t all, old;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	error = pthread_create(&r->helper, NULL, member_run, r);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -error;
}

static void close_all(struct rpmemfs *r)
{
	if (r->sock >= 0)
		close(r->sock);
	if (r->wake >= 0)
		close(r->wake);
	r->sock = r->wake = -1;
	capture_close(&r->capture);
}

int attach(struct rpmemfs *r)
{
	struct sockaddr_un to = { 0 };
	int error;

	r->sock = r->wake = -1;
	r->member = (struct member){ .late_at = NEVER, .answer_by = NEVER };
	r->capture = (struct capture){
		.kick = kick, .offer = offer, .check = check, .arg = r,
	};
	atomic_store(&r->stop, 0);
	atomic_store(&r->ended, 0);
	r->joined = false;
	error = discover(r, &to);
	if (error)
		return error;
	/* The mapping is tracked before anyone can store to it. */
	error = capture_open(&r->capture, r->base, r->reserve, map_size(r));
	if (error)
		return error;
	r->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	error = r->wake < 0 ? -errno : 0;
	if (!error)
		error = dial(r, &to);
	if (!error)
		error = say_hello(r);
	if (!error)
		error = hear_welcome(r);
	if (!error) {
		threads_init(&r->threads, r->wake, help, r);
		error = start_helper(r);
	}
	if (error)
		close_all(r);
	return error;
}

void join_helper(struct rpmemfs *r)
{
	if (!r->joined)
		pthread_join(r->helper, NULL);
	r->joined = true;
}

void detach(struct rpmemfs *r)
{
	atomic_store(&r->stop, 1);
	eventfd_write(r->wake, 1);
	join_helper(r);
	threads_end(&r->threads);
	close_all(r);
}

void abandon(struct rpmemfs *r)
{
	threads_forget(&r->threads);
	close_all(r);
}
