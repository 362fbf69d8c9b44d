/*
 * lmdb writes transactions into an LMDB environment, or checks one.
 *
 *	lmdb run DIR [writemap]	one transaction after the other, "N" on stdout
 *				when transaction N is committed
 *	lmdb check DIR		prints the last transaction; fails unless every
 *				one before it is there, whole
 *
 * Transaction N puts KEYS keys "N/i" and overwrites the keys "last/i" with N.
 */
#include <lmdb.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KEYS = 20, BODY = 600, MAP_BYTES = 256 << 20 };

static void must(int rc, const char *what)
{
	if (rc == 0)
		return;
	fprintf(stderr, "%s: %s\n", what, mdb_strerror(rc));
	exit(1);
}

/* put stores n, repeated, as the body of key. */
static void put(MDB_txn *txn, MDB_dbi dbi, char *key, uint64_t n)
{
	static uint64_t body[BODY / sizeof(uint64_t)];
	MDB_val k = { strlen(key), key };
	MDB_val v = { sizeof(body), body };

	for (size_t i = 0; i < sizeof(body) / sizeof(body[0]); i++)
		body[i] = n;
	must(mdb_put(txn, dbi, &k, &v, 0), "mdb_put");
}

/* get returns the number that the body of key repeats; 0 if there is none. */
static uint64_t get(MDB_txn *txn, MDB_dbi dbi, char *key)
{
	MDB_val k = { strlen(key), key };
	MDB_val v;
	uint64_t first, n;
	int rc;

	rc = mdb_get(txn, dbi, &k, &v);
	if (rc == MDB_NOTFOUND)
		return 0;
	must(rc, "mdb_get");
	if (v.mv_size < sizeof(first)) {
		fprintf(stderr, "%s: %zu bytes\n", key, v.mv_size);
		exit(1);
	}
	memcpy(&first, v.mv_data, sizeof(first));
	for (size_t at = 0; at + sizeof(n) <= v.mv_size; at += sizeof(n)) {
		memcpy(&n, (char *)v.mv_data + at, sizeof(n));
		if (n != first) {
			fprintf(stderr, "%s: torn value\n", key);
			exit(1);
		}
	}
	return first;
}

static uint64_t last_of(MDB_txn *txn, MDB_dbi dbi)
{
	uint64_t last = 0;
	char key[64];

	for (int i = 0; i < KEYS; i++) {
		uint64_t n;

		snprintf(key, sizeof(key), "last/%d", i);
		n = get(txn, dbi, key);
		if (i == 0)
			last = n;
		if (n != last) {
			fprintf(stderr, "%s is of transaction %" PRIu64
				", last/0 of %" PRIu64 "\n", key, n, last);
			exit(1);
		}
	}
	return last;
}

static void run(MDB_env *env)
{
	MDB_txn *txn;
	MDB_dbi dbi;
	uint64_t n = 0;
	char key[64];

	for (;;) {
		must(mdb_txn_begin(env, NULL, 0, &txn), "mdb_txn_begin");
		must(mdb_dbi_open(txn, NULL, 0, &dbi), "mdb_dbi_open");
		if (n == 0)
			n = last_of(txn, dbi);
		n++;
		for (int i = 0; i < KEYS; i++) {
			snprintf(key, sizeof(key), "%" PRIu64 "/%d", n, i);
			put(txn, dbi, key, n);
			snprintf(key, sizeof(key), "last/%d", i);
			put(txn, dbi, key, n);
		}
		must(mdb_txn_commit(txn), "mdb_txn_commit");
		printf("%" PRIu64 "\n", n);
		fflush(stdout);
	}
}

static void check(MDB_env *env)
{
	MDB_txn *txn;
	MDB_dbi dbi;
	uint64_t last;
	char key[64];
	int rc;

	must(mdb_txn_begin(env, NULL, MDB_RDONLY, &txn), "mdb_txn_begin");
	rc = mdb_dbi_open(txn, NULL, 0, &dbi);
	must(rc, "mdb_dbi_open");
	last = last_of(txn, dbi);
	for (uint64_t n = 1; n <= last + 1; n++) {
		for (int i = 0; i < KEYS; i++) {
			uint64_t got;

			snprintf(key, sizeof(key), "%" PRIu64 "/%d", n, i);
			got = get(txn, dbi, key);
			if (got == (n <= last ? n : 0))
				continue;
			fprintf(stderr, "key %s holds %" PRIu64
				"; the last transaction is %" PRIu64 "\n",
				key, got, last);
			exit(1);
		}
	}
	mdb_txn_abort(txn);
	printf("%" PRIu64 "\n", last);
}

int main(int argc, char **argv)
{
	unsigned int flags = 0;
	MDB_env *env;

	if (argc < 3) {
		fprintf(stderr, "usage: lmdb run|check DIR [writemap]\n");
		return 2;
	}
	if (argc > 3 && strcmp(argv[3], "writemap") == 0)
		flags |= MDB_WRITEMAP;
	must(mdb_env_create(&env), "mdb_env_create");
	must(mdb_env_set_mapsize(env, MAP_BYTES), "mdb_env_set_mapsize");
	must(mdb_env_open(env, argv[2], flags, 0644), "mdb_env_open");
	if (strcmp(argv[1], "run") == 0)
		run(env);
	else
		check(env);
	mdb_env_close(env);
	return 0;
}
