/*
 * bank keeps accounts in a file that it maps into memory, and moves money
 * between them. It has no log, no journal and no recovery code: a transfer is
 * two stores, and every so many transfers one msync makes all of them durable.
 *
 *	bank create FILE ACCOUNTS	open accounts with 1,000 coins each
 *	bank run FILE [EVERY]		transfer for ever; msync after every
 *					EVERY transfers (1000) and print the
 *					number of the commit
 *	bank check FILE			count the coins; print the number of the
 *					last commit; exit status 1 if a coin is
 *					missing or made from nothing
 *
 * On an ordinary file system the kernel writes pages whenever it likes, so a
 * crash leaves a file in which some transfers are half done. On an rpmemfs
 * mount the file is what it was at the last msync, whatever dies.
 */
#define _POSIX_C_SOURCE 200809L
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC UINT64_C(0x314b4e414252504d) /* "MPRBANK1" */

enum { COINS = 1000 };

/* An account has a cache line of its own. */
struct account {
	int64_t coins;
	uint64_t transfers;
	uint64_t unused[6];
};

/* A bank is the whole file, exactly as it is in memory. */
struct bank {
	uint64_t magic;
	uint64_t accounts;
	uint64_t commits;	/* how many times msync has been called */
	uint64_t transfers;
	uint64_t unused[4];
	struct account account[];
};

static void die(const char *what)
{
	perror(what);
	exit(2);
}

static size_t bank_size(uint64_t accounts)
{
	return sizeof(struct bank) + accounts * sizeof(struct account);
}

/* map_bank maps the file; bytes is its size, or 0 to take it as it is. */
static struct bank *map_bank(const char *path, int flags, size_t *bytes)
{
	struct stat st;
	void *mem;
	int fd;

	fd = open(path, O_RDWR | flags, 0644);
	if (fd < 0)
		die(path);
	if (*bytes != 0 && ftruncate(fd, (off_t)*bytes) != 0)
		die("ftruncate");
	if (fstat(fd, &st) != 0)
		die("fstat");
	*bytes = (size_t)st.st_size;
	if (*bytes < sizeof(struct bank)) {
		fprintf(stderr, "%s: not a bank\n", path);
		exit(1);
	}
	mem = mmap(NULL, *bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (mem == MAP_FAILED)
		die("mmap");
	close(fd);	/* the mapping keeps the file open */
	return mem;
}

static struct bank *open_bank(const char *path, size_t *bytes)
{
	struct bank *bank;

	*bytes = 0;
	bank = map_bank(path, 0, bytes);
	if (bank->magic != MAGIC || bank->accounts == 0 ||
	    bank->accounts > *bytes / sizeof(struct account) ||
	    *bytes != bank_size(bank->accounts)) {
		fprintf(stderr, "%s: not a bank\n", path);
		exit(1);
	}
	return bank;
}

static void create(const char *path, uint64_t accounts)
{
	size_t bytes = bank_size(accounts);
	struct bank *bank = map_bank(path, O_CREAT | O_EXCL, &bytes);

	bank->magic = MAGIC;
	bank->accounts = accounts;
	for (uint64_t i = 0; i < accounts; i++)
		bank->account[i].coins = COINS;
	if (msync(bank, bytes, MS_SYNC) != 0)
		die("msync");
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

static void run(const char *path, uint64_t every)
{
	uint64_t random = (uint64_t)getpid() * UINT64_C(0x9e3779b97f4a7c15);
	size_t bytes;
	struct bank *bank = open_bank(path, &bytes);

	for (;;) {
		uint64_t from = next_random(&random) % bank->accounts;
		uint64_t to = next_random(&random) % bank->accounts;
		int64_t coins = (int64_t)(next_random(&random) % 100);

		/* Between these two stores the books do not balance. */
		bank->account[from].coins -= coins;
		bank->account[to].coins += coins;

		bank->account[from].transfers++;
		if (++bank->transfers % every != 0)
			continue;
		bank->commits++;
		if (msync(bank, bytes, MS_SYNC) != 0)
			die("msync");
		printf("%" PRIu64 "\n", bank->commits);
		fflush(stdout);
	}
}

static int check(const char *path)
{
	size_t bytes;
	struct bank *bank = open_bank(path, &bytes);
	int64_t want = (int64_t)bank->accounts * COINS;
	uint64_t transfers = 0;
	int64_t coins = 0;

	for (uint64_t i = 0; i < bank->accounts; i++) {
		coins += bank->account[i].coins;
		transfers += bank->account[i].transfers;
	}
	printf("commit %" PRIu64 ": %" PRIu64 " transfers, %" PRId64
	       " of %" PRId64 " coins\n", bank->commits, bank->transfers,
	       coins, want);
	return coins != want || transfers != bank->transfers;
}

int main(int argc, char **argv)
{
	const char *command = argc > 2 ? argv[1] : "";
	uint64_t number = argc > 3 ? strtoull(argv[3], NULL, 10) : 0;

	if (strcmp(command, "create") == 0 && number > 0)
		create(argv[2], number);
	else if (strcmp(command, "run") == 0)
		run(argv[2], number > 0 ? number : 1000);
	else if (strcmp(command, "check") == 0)
		return check(argv[2]);
	else {
		fprintf(stderr, "usage: bank create FILE ACCOUNTS | "
			"run FILE [EVERY] | check FILE\n");
		return 2;
	}
	return 0;
}
