/*
 * threads is bank.c with several threads, which move money all at once. None of
 * them calls msync, and none waits for another: each declares a restart point
 * after each transfer, where it holds no half-made change. Every 64 ms the file
 * system waits until all threads stand at one, for a moment, and what is in
 * memory then becomes durable as one epoch.
 *
 *	threads create FILE ACCOUNTS	open accounts with 1,000 coins each
 *	threads run FILE THREADS	transfer until killed; print how many
 *					transfers are durable, again and again
 *	threads careless FILE THREADS	the same with the restart point in the
 *					wrong place: in the middle of a transfer
 *	threads check FILE		count the coins; exit status 1 if one
 *					is missing or made from nothing
 *
 * Several processes may run on one file. If one is killed, what all of them
 * did since the last epoch is undone, and the others go on from there.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <rpmemfs.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define MAGIC UINT64_C(0x3154484252504d52) /* "RMPRBHT1" */

/* How often an epoch ends. `rpmemfs mount --epoch` says it for all files. */
static const char interval[] = "64ms";

enum { COINS = 1000, MAX_THREADS = 64 };

/* An account has a cache line of its own. */
struct account {
	_Atomic int64_t coins;
	_Atomic uint64_t sent, received; /* how many transfers */
	uint64_t unused[5];
};

/* A bank is the whole file, exactly as it is in memory. */
struct bank {
	uint64_t magic;
	uint64_t accounts;	/* an even number */
	uint64_t unused[6];
	struct account account[];
};

/* A clerk is a thread. */
struct clerk {
	pthread_t thread;
	struct rpmemfs *region;
	uint64_t random;
	bool careless;
};

static void die(const char *what, const char *why)
{
	fprintf(stderr, "threads: %s: %s\n", what, why);
	exit(2);
}

static void must(const char *what, int error)
{
	if (error)
		die(what, rpmemfs_strerror(error));
}

static size_t bank_size(uint64_t accounts)
{
	return sizeof(struct bank) + accounts * sizeof(struct account);
}

static bool is_bank(const struct bank *bank, size_t bytes)
{
	return bytes >= sizeof(struct bank) && bank->magic == MAGIC &&
	       bank->accounts != 0 && bank->accounts % 2 == 0 &&
	       bank->accounts <= bytes / sizeof(struct account) &&
	       bank_size(bank->accounts) == bytes;
}

static void create(const char *path, uint64_t accounts)
{
	struct rpmemfs_options options = {
		.flags = RPMEMFS_CREATE, .size = bank_size(accounts),
	};
	struct rpmemfs *region;
	struct bank *bank;

	must(path, rpmemfs_open(path, &options, &region));
	bank = rpmemfs_base(region);
	if (bank->magic != 0)
		die(path, "is there already");
	for (uint64_t i = 0; i < accounts; i++)
		bank->account[i].coins = COINS;
	bank->accounts = accounts;
	bank->magic = MAGIC;
	must("checkpoint", rpmemfs_checkpoint(region, RPMEMFS_WAIT, NULL));
	must("close", rpmemfs_close(region));
	if (setxattr(path, "user.rpmemfs.interval", interval,
		     strlen(interval), 0) != 0)
		die("user.rpmemfs.interval", strerror(errno));
	printf("opened %" PRIu64 " accounts with %d coins each\n", accounts,
	       COINS);
}

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* restart_point takes notice of another process's death by doing nothing: this
 * program keeps nothing about the accounts outside of them. */
static void restart_point(struct rpmemfs *region)
{
	int error = rpmemfs_restart_point(region);

	if (error != -EOWNERDEAD)
		must("restart point", error);
}

static void *work(void *arg)
{
	struct clerk *clerk = arg;
	struct bank *bank = rpmemfs_base(clerk->region);
	uint64_t half = bank->accounts / 2;

	for (;;) {
		/* The two are in pages that are far apart. */
		uint64_t one = next_random(&clerk->random) % half;
		uint64_t two = next_random(&clerk->random) % half + half;
		uint64_t coins = next_random(&clerk->random) % 100;
		bool back = next_random(&clerk->random) % 2;
		struct account *from = &bank->account[back ? two : one];
		struct account *to = &bank->account[back ? one : two];

		from->coins -= (int64_t)coins;
		from->sent++;
		/* Here the books do not balance. */
		if (clerk->careless)
			restart_point(clerk->region);
		to->coins += (int64_t)coins;
		to->received++;
		if (!clerk->careless)
			restart_point(clerk->region);
	}
	return NULL;
}

static uint64_t count_received(struct bank *bank)
{
	uint64_t received = 0;

	for (uint64_t i = 0; i < bank->accounts; i++)
		received += bank->account[i].received;
	return received;
}

static void run(const char *path, uint64_t threads, bool careless)
{
	static struct clerk clerks[MAX_THREADS];
	struct rpmemfs *region;
	struct bank *bank;
	int error;

	must(path, rpmemfs_open(path, NULL, &region));
	bank = rpmemfs_base(region);
	if (!is_bank(bank, rpmemfs_size(region)))
		die(path, "not a bank of threads");
	for (uint64_t i = 0; i < threads; i++) {
		clerks[i].region = region;
		clerks[i].careless = careless;
		clerks[i].random = ((uint64_t)getpid() * MAX_THREADS + i + 1) *
				   UINT64_C(0x9e3779b97f4a7c15);
		error = pthread_create(&clerks[i].thread, NULL, work,
				       &clerks[i]);
		if (error)
			die("pthread_create", strerror(error));
	}
	/* This thread never stores to the bank, so it needs no restart points.
	 * What it has counted before it asks for the epoch's number is part of
	 * that epoch, or of an older one. */
	for (;;) {
		uint64_t received = count_received(bank);

		error = rpmemfs_wait_durable(region, rpmemfs_epoch(region),
					     NULL);
		if (error == -EOWNERDEAD)
			continue;
		must("wait", error);
		printf("%" PRIu64 "\n", received);
		fflush(stdout);
	}
}

/* check needs no library: the file is a file. */
static int check(const char *path)
{
	uint64_t sent = 0, received = 0;
	int64_t coins = 0, want;
	struct bank *bank;
	struct stat st;
	int fd;

	fd = open(path, O_RDONLY);
	if (fd < 0 || fstat(fd, &st) != 0)
		die(path, strerror(errno));
	bank = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
	if (bank == MAP_FAILED)
		die(path, strerror(errno));
	close(fd);	/* the mapping keeps the file open */
	if (!is_bank(bank, (size_t)st.st_size))
		die(path, "not a bank of threads");
	for (uint64_t i = 0; i < bank->accounts; i++) {
		coins += bank->account[i].coins;
		sent += bank->account[i].sent;
		received += bank->account[i].received;
	}
	want = (int64_t)bank->accounts * COINS;
	printf("%" PRIu64 " transfers sent, %" PRIu64 " received, %" PRId64
	       " of %" PRId64 " coins\n", sent, received, coins, want);
	return coins != want || sent != received;
}

int main(int argc, char **argv)
{
	const char *command = argc > 2 ? argv[1] : "";
	uint64_t number = argc > 3 ? strtoull(argv[3], NULL, 10) : 0;
	bool careless = strcmp(command, "careless") == 0;

	if (strcmp(command, "create") == 0 && number > 0 && number % 2 == 0)
		create(argv[2], number);
	else if ((strcmp(command, "run") == 0 || careless) && number > 0 &&
		 number <= MAX_THREADS)
		run(argv[2], number, careless);
	else if (strcmp(command, "check") == 0)
		return check(argv[2]);
	else {
		fprintf(stderr, "usage: threads create FILE ACCOUNTS (even) | "
			"run FILE THREADS | careless FILE THREADS | "
			"check FILE\n");
		return 2;
	}
	return 0;
}
