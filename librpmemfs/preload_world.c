/*
 * Epochs that nobody asks for: a thread of the library commits every file at an
 * interval, and may stop the program's other threads for that.
 *
 * Threads are stopped by a signal, whose handler waits. Where they stop is no
 * restart point: what it gives is the memory of one moment. Functions that a
 * signal interrupts without restarting them (signal(7): epoll_wait, nanosleep
 * and some more) return EINTR in the program.
 *
 * The environment says what to do:
 *	RPMEMFS_EPOCH_NS	the interval; 0 or nothing: no epochs
 *	RPMEMFS_QUIESCE		"stop": stop the threads
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "futex.h"
#include "preload.h"

enum {
	MAX_STOPPED = 4096,	/* threads */
	STOP_SECONDS = 1,	/* until a thread that does not come is late */
	DEFAULT_SECONDS = 1,
};

/* A seat is a thread that was sent the signal. */
struct seat {
	pid_t tid;
	_Atomic uint32_t arrived; /* the stop it arrived at */
};

/* A visitor is a thread inside this library. */
struct visitor {
	pid_t tid;
	unsigned depth;
	bool stays;		/* a thread of this library: no signal for it */
	struct visitor *next;
	sigset_t mask;		/* the program's */
};

static struct {
	bool stops;		/* set before the program begins, then constant */
	bool clock;		/* there is a thread of the interval */
	uint64_t interval_ns;
	int signal;

	/* The region that the thread of the interval commits, and the one that
	 * has the threads stopped: only ever the former. */
	_Atomic(struct rpmemfs *) wanted, holder;
	_Atomic uint32_t stop;	/* number of the stop going on; 0: none */
	_Atomic uint32_t last;	/* number of the last one begun */
	_Atomic uint32_t news;	/* futex: a thread has arrived */
	struct seat seats[MAX_STOPPED];

	/* Taken with the signal blocked only, and held for moments. */
	pthread_mutex_t lock;
	struct visitor *visitors;
} world = { .lock = PTHREAD_MUTEX_INITIALIZER };

static _Thread_local struct visitor visitor
	__attribute__((tls_model("initial-exec")));

/* block is pthread_sigmask, which the program's calls of get another one of. */
static void block(int how, const sigset_t *set, sigset_t *old)
{
	syscall(SYS_rt_sigprocmask, how, set, old, _NSIG / 8);
}

bool world_inside(void)
{
	return visitor.depth != 0;
}

/* visit blocks the signal first: who is in the list must not be in the handler. */
static void visit(bool stays)
{
	sigset_t ours;

	if (visitor.depth++ || !world.stops)
		return;
	sigemptyset(&ours);
	sigaddset(&ours, world.signal);
	block(SIG_BLOCK, &ours, &visitor.mask);
	visitor.tid = (pid_t)syscall(SYS_gettid);
	visitor.stays = stays;
	pthread_mutex_lock(&world.lock);
	visitor.next = world.visitors;
	world.visitors = &visitor;
	pthread_mutex_unlock(&world.lock);
	/* A stop going on need not wait for this thread any more. */
	atomic_fetch_add(&world.news, 1);
	futex_wake(&world.news, INT_MAX);
}

void world_enter(void)
{
	visit(false);
}

void world_leave(void)
{
	struct visitor **link = &world.visitors;
	int old = errno;

	if (--visitor.depth || !visitor.tid)
		return;
	pthread_mutex_lock(&world.lock);
	while (*link != &visitor)
		link = &(*link)->next;
	*link = visitor.next;
	pthread_mutex_unlock(&world.lock);
	visitor.tid = 0;
	/* A signal that came meanwhile is taken here. */
	block(SIG_SETMASK, &visitor.mask, NULL);
	errno = old;
}

static void stay(void)
{
	visit(true);
}

/* is_visitor reports whether a thread is inside the library, or, if stays, one
 * of its own. */
static bool is_visitor(pid_t tid, bool stays)
{
	struct visitor *v;

	pthread_mutex_lock(&world.lock);
	for (v = world.visitors; v && v->tid != tid; v = v->next)
		;
	if (v && stays && !v->stays)
		v = NULL;
	pthread_mutex_unlock(&world.lock);
	return v != NULL;
}

/* on_signal stops the thread that it comes to, while the stop lasts. */
static void on_signal(int number, siginfo_t *info, void *context)
{
	struct seat *seat = info->si_value.sival_ptr;
	int old = errno;
	uint32_t stop = atomic_load(&world.stop);

	(void)number;
	(void)context;
	if (info->si_code == SI_QUEUE && info->si_pid == getpid() && stop &&
	    seat >= world.seats && seat < world.seats + MAX_STOPPED &&
	    seat->tid == (pid_t)syscall(SYS_gettid)) {
		atomic_store(&seat->arrived, stop);
		atomic_fetch_add(&world.news, 1);
		futex_wake(&world.news, INT_MAX);
		while (atomic_load(&world.stop) == stop)
			futex_wait(&world.stop, stop, NEVER, false);
	}
	errno = old;
}

/* next_task reads the number of a thread from fd, a directory of threads; 0:
 * there are no more. Nothing may allocate memory here: a stopped thread may
 * be in malloc. */
struct tasks {
	int fd;
	long at, end;
	_Alignas(8) char buffer[4096];
};

static pid_t next_task(struct tasks *t)
{
	/* struct linux_dirent64: the name is at byte 19. */
	for (;;) {
		unsigned short size;
		const char *name;

		if (t->at >= t->end) {
			t->at = 0;
			t->end = syscall(SYS_getdents64, t->fd, t->buffer,
					 sizeof(t->buffer));
			if (t->end <= 0)
				return 0;
		}
		memcpy(&size, t->buffer + t->at + 16, sizeof(size));
		name = t->buffer + t->at + 19;
		t->at += size;
		if (name[0] >= '1' && name[0] <= '9')
			return (pid_t)strtol(name, NULL, 10);
	}
}

static void signal_thread(struct seat *seat, pid_t tid)
{
	siginfo_t info;

	atomic_store(&seat->arrived, 0);
	seat->tid = tid;
	memset(&info, 0, sizeof(info));
	info.si_code = SI_QUEUE;
	info.si_pid = getpid();
	info.si_uid = getuid();
	info.si_value.sival_ptr = seat;
	if (syscall(SYS_rt_tgsigqueueinfo, getpid(), tid, world.signal, &info))
		seat->tid = 0;	/* it has ended */
}

/* call_in sends the signal to every thread that has no seat yet, and returns
 * how many these were; -1: there are too many threads. */
static int call_in(int *seats)
{
	struct tasks t = { .fd = open("/proc/self/task",
				      O_RDONLY | O_DIRECTORY | O_CLOEXEC) };
	int found = 0;
	pid_t tid;

	if (t.fd < 0)
		return -1;
	while (found >= 0 && (tid = next_task(&t)) != 0) {
		int i = 0;

		while (i < *seats && world.seats[i].tid != tid)
			i++;
		if (i < *seats || is_visitor(tid, true))
			continue;
		if (*seats == MAX_STOPPED) {
			found = -1;
		} else {
			signal_thread(&world.seats[(*seats)++], tid);
			found++;
		}
	}
	close(t.fd);
	return found;
}

static bool exists(pid_t tid)
{
	return syscall(SYS_tgkill, getpid(), tid, 0) == 0;
}

/* await waits until every thread with a seat stands still, or has ended. */
static bool await(int seats, uint32_t stop, uint64_t deadline, pid_t *late)
{
	for (int i = 0; i < seats;) {
		struct seat *s = &world.seats[i];
		uint32_t news = atomic_load(&world.news);

		if (!s->tid || atomic_load(&s->arrived) == stop ||
		    is_visitor(s->tid, false) || !exists(s->tid)) {
			i++;
			continue;
		}
		if (now_ns() >= deadline) {
			*late = s->tid;
			return false;
		}
		/* An end of a thread wakes nobody. */
		futex_wait(&world.news, news,
			   now_ns() + 1 * (uint64_t)MSEC, false);
	}
	return true;
}

static void end_stop(void)
{
	atomic_store(&world.stop, 0);
	futex_wake(&world.stop, INT_MAX);
}

static int begin_stop(pid_t *late)
{
	uint64_t deadline = after_ns(STOP_SECONDS * (uint64_t)SEC);
	uint32_t stop = atomic_fetch_add(&world.last, 1) + 1;
	int seats = 0, found;

	if (!stop)
		stop = atomic_fetch_add(&world.last, 1) + 1;
	atomic_store(&world.stop, stop);
	/* Threads that are not stopped yet may start others. */
	while ((found = call_in(&seats)) > 0)
		if (!await(seats, stop, deadline, late))
			break;
	if (!found)
		return 0;
	end_stop();
	if (found < 0)
		*late = getpid();
	return -ETIMEDOUT;
}

/* stop: who calls msync has chosen the moment; only epochs of the interval need
 * a stop. */
static int stop(struct rpmemfs *r, pid_t *late)
{
	int error;

	if (atomic_load(&world.wanted) != r)
		return 0;
	error = begin_stop(late);
	if (!error)
		atomic_store(&world.holder, r);
	return error;
}

static void go_on(struct rpmemfs *r)
{
	if (atomic_load(&world.holder) != r)
		return;
	atomic_store(&world.holder, NULL);
	end_stop();
}

static const struct quiescer quiescer = {
	.join = stay, .leave = world_leave, .stop = stop, .go_on = go_on,
};

int world_commit(struct rpmemfs *r)
{
	int error, tries = 0;

	/* An epoch of the interval that is called off, because a thread does
	 * not stop, takes requests with it that came meanwhile. */
	do
		error = rpmemfs_checkpoint(r, RPMEMFS_WAIT, NULL);
	while (error == -ETIMEDOUT && world.stops && ++tries < 3);
	return error;
}

/* epoch makes one epoch of a file. Of an error the next msync hears too. */
static void epoch(struct file *f)
{
	struct rpmemfs *r = files_region(f);

	if (world.stops)
		atomic_store(&world.wanted, r);
	(void)rpmemfs_checkpoint(r, RPMEMFS_WAIT, NULL);
	atomic_store(&world.wanted, NULL);
}

/* keep_time is the thread of the interval. */
static void *keep_time(void *none)
{
	uint64_t next = now_ns();

	stay();
	for (;;) {
		_Atomic uint32_t never = 0;
		uint64_t now;

		next += world.interval_ns;
		now = now_ns();
		if (next < now)
			next = now;
		while (now_ns() < next)
			futex_wait(&never, 0, next, false);
		files_each(epoch);
	}
	return none;
}

static void start_clock(void)
{
	sigset_t all, old;
	pthread_t id;

	sigfillset(&all);
	block(SIG_SETMASK, &all, &old);
	if (pthread_create(&id, NULL, keep_time, NULL) == 0)
		pthread_detach(id);
	else
		fprintf(stderr, "rpmemfs: no thread for epochs\n");
	block(SIG_SETMASK, &old, NULL);
}

/* set_up runs before the program, which may block all signals early. */
static __attribute__((constructor)) void set_up(void)
{
	const char *interval = getenv("RPMEMFS_EPOCH_NS");
	const char *mode = getenv("RPMEMFS_QUIESCE");
	struct sigaction action = {
		.sa_sigaction = on_signal,
		.sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK,
	};

	world.interval_ns = interval ? strtoull(interval, NULL, 10) : 0;
	if (!world.interval_ns)
		return;
	if (mode && strcmp(mode, "stop") == 0) {
		/* Programs that use real-time signals begin at the other end. */
		world.signal = SIGRTMAX - 2;
		sigfillset(&action.sa_mask);
		if (sigaction(world.signal, &action, NULL) == 0)
			world.stops = true;
	}
}

void world_begin(struct rpmemfs *r)
{
	if (world.stops) {
		r->quiescer = &quiescer;
		r->no_precopy = false;
	}
	if (world.interval_ns && !world.clock)
		start_clock();
	world.clock = true;
}

void world_allows(sigset_t *set)
{
	if (world.stops)
		sigdelset(set, world.signal);
}

void world_child(void)
{
	pthread_mutex_init(&world.lock, NULL);
	world.visitors = visitor.tid ? &visitor : NULL;
	visitor.next = NULL;
	atomic_store(&world.wanted, NULL);
	atomic_store(&world.holder, NULL);
	atomic_store(&world.stop, 0);
	world.clock = false; /* until it attaches to another file */
	world_leave();
}
