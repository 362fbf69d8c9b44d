package tests

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

// SQLite commits transactions; daemon, program or both are killed in the middle
// of them. Mounted again, the database passes its integrity check and holds
// every transaction that SQLite acknowledged, whole.
func TestSQLite(t *testing.T) {
	for _, journal := range []string{"DELETE", "TRUNCATE", "WAL"} {
		t.Run(journal, func(t *testing.T) {
			t.Parallel()
			need(t, "sqlite3")
			rng, _ := newRand(t)
			m := newMount(t, fastDir(t))
			db := m.path("bank.db")
			m.run("sqlite3", "-bail", db, "PRAGMA journal_mode="+journal+`;
				CREATE TABLE txn(id INTEGER PRIMARY KEY, rows INTEGER);
				CREATE TABLE item(txn INTEGER, body BLOB);
				CREATE INDEX item_txn ON item(txn);`)
			m.run("sync") // the kernel's flusher may come at any time; it must not matter
			var found int
			for i := range rounds(25) {
				who := victim(rng.IntN(3))
				shell := m.program("sqlite3", "-bail", db)
				shell.say(".timeout 5000")
				// Small caches spill dirty pages into the file in mid-transaction.
				shell.say("PRAGMA synchronous=FULL; PRAGMA cache_size=20; PRAGMA wal_autocheckpoint=50;")
				for n := found + 1; n < found+200; n++ {
					shell.say(sqlTransaction(n, 1+rng.IntN(60)))
				}
				acked := found
				for range rng.IntN(6) {
					acked = sqliteAck(t, shell.mustLine(""), acked)
				}
				<-time.After(time.Duration(rng.IntN(8000)) * time.Microsecond)
				if who != killProgram {
					m.kill()
				}
				_ = shell.cmd.Process.Kill() // it may have ended
				for _, line := range shell.drainUntilExit(patience) {
					acked = sqliteAck(t, line, acked)
				}
				if who != killProgram {
					m.start()
				}
				found = sqliteCheck(t, m, db)
				t.Logf("round %d: kill %s: acknowledged %d, found %d", i, who, acked, found)
				if found < acked || found > acked+1 {
					t.Fatalf("kill %s: the database holds transaction %d; want %d or %d", who, found, acked, acked+1)
				}
			}
			m.stop()
			m.start()
			if again := sqliteCheck(t, m, db); again != found {
				t.Errorf("after a clean unmount: transaction %d, before: %d", again, found)
			}
		})
	}
}

func sqlTransaction(n, rows int) string {
	return fmt.Sprintf(`BEGIN IMMEDIATE;
		WITH RECURSIVE seq(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM seq WHERE i < %d)
			INSERT INTO item SELECT %d, randomblob(700) FROM seq;
		INSERT INTO txn VALUES(%d, %d);
		COMMIT; SELECT 'acked %d.';`, rows, n, n, rows, n)
}

// sqliteAck returns the transaction that a line of the shell acknowledges, or
// before if it is another line (the values of pragmas) or was cut off.
func sqliteAck(t *testing.T, line string, before int) int {
	t.Helper()
	number, ok := strings.CutPrefix(line, "acked ")
	number, whole := strings.CutSuffix(number, ".")
	if !ok || !whole {
		return before
	}
	n, err := strconv.Atoi(number)
	if err != nil {
		t.Fatalf("sqlite3: got %q", line)
	}
	return n
}

// sqliteCheck checks the database and returns its last transaction.
func sqliteCheck(t *testing.T, m *mount, db string) int {
	t.Helper()
	out := m.run("sqlite3", "-bail", "-cmd", ".timeout 5000", db, `PRAGMA integrity_check;
SELECT count(*) FROM txn WHERE rows <> (SELECT count(*) FROM item WHERE item.txn = txn.id);
SELECT count(*) FROM item WHERE txn NOT IN (SELECT id FROM txn);
SELECT count(*) - ifnull(max(id), 0) FROM txn;
SELECT ifnull(max(id), 0) FROM txn;`)
	lines := strings.Fields(out)
	if len(lines) != 5 || lines[0] != "ok" {
		t.Fatalf("integrity_check: got %q", out)
	}
	for i, what := range []string{"incomplete transactions", "rows of no transaction", "missing transactions"} {
		if lines[i+1] != "0" {
			t.Errorf("%s %s", lines[i+1], what)
		}
	}
	last, err := strconv.Atoi(lines[4])
	if err != nil {
		t.Fatal(err)
	}
	return last
}
