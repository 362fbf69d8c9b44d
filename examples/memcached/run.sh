#!/bin/bash
# memcached, unmodified, on rpmemfs: 10,000 keys are saved under a name, changed,
# lost with everything killed, and brought back as they were when saved.
# README.md says what is preserved and what is not. Exit status 0 only if every
# key was as promised.
#
#	examples/memcached/run.sh BIN	BIN has rpmemfs and rpmemctl (make build)
set -euo pipefail

bin=$(cd "${1:?usage: run.sh BIN}" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d "${TMPDIR:-/var/tmp}/rpmemfs-memcached-XXXXXX")
pool=$work/pool mnt=$work/mnt socket=$work/run/memcached
cache=$mnt/cache/cache
daemon='' server='' first=''

# memcached refuses to run as root: its Debian package brings a user for it.
user=()
if ((EUID == 0)); then
	name=$(id -un memcache 2>/dev/null || echo nobody)
	user=(-u "$name")
fi

say() { printf '%s\n' "$*"; }
title() { printf '\n%s\n' "$*"; }
# shorten keeps the paths in the output of rpmemctl readable.
shorten() { sed "s|$mnt|MNT|g; s|^|  |"; }
fail() {
	printf 'FAILED: %s\n' "$*" >&2
	tail -n 5 "$work"/*.log >&2 || true
	exit 1
}
keys() { timeout 60 python3 "$here/keys.py" "$socket" "$@"; }
# right says how keys compare, and fails unless all are right.
right() {
	local report
	report=$(keys check "$@") || fail "$report"
	say "  $report"
}

# slay ends processes that this script started, without the shell's own remarks.
slay() {
	{ kill -KILL "$@" && wait "$@"; } 2>/dev/null || true
}

tidy() {
	local status=$?
	trap - EXIT INT TERM
	for pid in $server $first; do
		slay "$pid"
	done
	if [[ -n $daemon ]]; then
		kill -TERM "$daemon" 2>/dev/null || true
		for _ in {1..100}; do
			kill -0 "$daemon" 2>/dev/null || break
			sleep 0.1
		done
		slay "$daemon"
	fi
	if grep -q " $mnt fuse" /proc/self/mounts; then
		umount -l "$mnt" 2>/dev/null || fusermount3 -uz "$mnt" || true
	fi
	rm -rf "$work"
	exit "$status"
}
trap tidy EXIT
trap 'exit 130' INT TERM

# start_mount mounts the pool and waits until it is ready.
start_mount() {
	: >"$work/mount.out"
	"$bin/rpmemfs" mount --pool "$pool" --size 512MiB "$mnt" \
		>"$work/mount.out" 2>>"$work/daemon.log" &
	daemon=$!
	for _ in {1..500}; do
		grep -q '^mounted' "$work/mount.out" && return
		kill -0 "$daemon" 2>/dev/null || fail "the mount did not come up"
		sleep 0.02
	done
	fail "the mount did not come up in 10 s"
}

# start_memcached starts a cache of 64 MiB whose items live in the file $1. With
# a file $1.meta from a graceful stop beside it the start is warm; memcached
# removes $1.meta then. In the very second of the stop it would start cold.
start_memcached() {
	local stopped
	stopped=$(sed -n 's/^Kstop_time //p' "$1.meta" 2>/dev/null || true)
	while (($(date +%s) <= ${stopped:-0})); do
		sleep 0.1
	done
	memcached "${user[@]}" -m 64 -s "$socket" -e "$1" 2>>"$work/memcached.log" &
	server=$!
	keys wait || fail "memcached did not come up"
}

# stop_memcached is the documented graceful stop: memcached finishes what it is
# doing, calls msync on FILE, which commits one epoch, writes FILE.meta, and ends.
stop_memcached() {
	kill -USR1 "$server"
	wait "$server" || fail "memcached did not stop gracefully"
	server=''
}

# save keeps the state of a stopped memcached under the name $1: the file as a
# checkpoint, and FILE.meta as a clone, because the next start removes
# FILE.meta, and the checkpoints of a file go with it. The clone comes last:
# where it is, the checkpoint is too.
save() {
	"$bin/rpmemctl" checkpoint "$cache" "$1"
	"$bin/rpmemctl" clone "$cache.meta" "$cache.$1.meta"
}

# restore makes the files those of the name $1; memcached must not run. FILE.meta
# goes first and comes last: cut off anywhere, a start is cold or right, and
# restore can be done again.
restore() {
	rm -f "$cache.meta"
	"$bin/rpmemctl" restore "$cache" "$1"
	"$bin/rpmemctl" clone "$cache.$1.meta" "$cache.meta"
}

command -v memcached >/dev/null || fail "memcached is not installed"
mkdir "$mnt" "$work/run"

title "1. An unmodified memcached, its items in a file of an rpmemfs mount"
start_mount
say "  $(head -n 1 "$work/mount.out")"
mkdir "$mnt/cache"
if ((EUID == 0)); then
	chmod 755 "$work"
	chown "$name" "$mnt/cache" "$work/run"
fi
start_memcached "$cache"
keys fill monday 0 10000
say "  10,000 keys set"

title "2. Stopped with SIGUSR1, saved as monday"
stop_memcached
save monday | shorten

title "3. Started again, warm; half of the keys changed, 5,000 added"
start_memcached "$cache"
right monday 0 10000
keys fill tuesday 5000 15000
right tuesday 5000 15000

title "4. memcached and the daemon killed with SIGKILL"
slay "$daemon" "$server"
server=''
start_mount
say "  mounted again; there is no cache.meta, so tuesday's state cannot be started"
[[ ! -e $cache.meta ]] || fail "cache.meta is there"

title "5. Restored to monday"
restore monday | shorten
start_memcached "$cache"
right monday 0 10000
count=$(keys count)
[[ $count == 10000 ]] || fail "$count keys, not 10000"
say "  and no key of tuesday is there"

title "6. A second memcached on a clone of monday, while the first one changes"
keys fill wednesday 0 10000
"$bin/rpmemctl" clone "$cache@monday" "$mnt/cache/test" | shorten
"$bin/rpmemctl" clone "$cache.monday.meta" "$mnt/cache/test.meta" | shorten
first=$server
socket=$work/run/second
start_memcached "$mnt/cache/test"
say "  the clone:"
right monday 0 10000
slay "$server"
server=$first first='' socket=$work/run/memcached
say "  the first one:"
right wednesday 0 10000

title "7. Everything stopped gracefully"
stop_memcached
kill -TERM "$daemon"
wait "$daemon" || fail "the daemon did not end cleanly"
daemon=''
"$bin/rpmemctl" check --pool "$pool" | sed 's/^/  /' || fail "the pool is damaged"

title "Every key as it was saved."
