#!/bin/bash
# Kills the hash map and the queue, or the daemon under them, at random moments,
# and looks whether what is found is consistent, and no older than the last epoch
# that was said to be durable. Each round goes on with what the last one left.
#
#	crash.sh BIN [ROUNDS]
set -euo pipefail

bin=$(realpath "$1") rounds=${2:-20}
dir=$(mktemp -d)
mnt=$dir/mnt daemon=
mkdir "$mnt"
trap 'umount -l "$mnt" 2>/dev/null || true; kill -9 $daemon 2>/dev/null || true; rm -rf "$dir"' EXIT

mount_pool() {
	"$bin/rpmemfs" mount --log-level=error --pool "$dir/pool" --size 512MiB \
		"$mnt" >"$dir/mounted" &
	daemon=$!
	for _ in {1..200}; do
		grep -q '^mounted' "$dir/mounted" && return
		sleep 0.05
	done
	echo "crash: the daemon did not mount" >&2
	exit 1
}

mount_pool
for ((round = 1; round <= rounds; round++)); do
	for program in hashmap queue; do
		"$bin/$program" -v -b 10000 -r 20 -e $((RANDOM % 20 + 1)) -s 60 \
			"$mnt/$program" >"$dir/out" 2>"$dir/err" &
		pid=$!
		sleep "$((RANDOM % 2)).$((RANDOM % 1000 + 100))"
		victim=$pid
		((RANDOM % 3)) || victim=$daemon
		{
			kill -9 "$victim"
			wait "$victim"
			if ((victim == daemon)); then
				umount -l "$mnt" # frees the program, too
				kill -9 "$pid"
				wait "$pid"
				mount_pool
			fi
		} 2>/dev/null || true

		acked=$(sed -n 's/^epoch //p' "$dir/out" | tail -n 1)
		said=$("$bin/$program" -c "$mnt/$program") || {
			echo "crash: round $round, $program: $said" >&2
			exit 1
		}
		found=$(sed -n 's/^epoch \([0-9]*\):.*/\1/p' <<<"$said")
		if ((${found:-0} < ${acked:-0})); then
			echo "crash: round $round, $program: epoch $acked is lost: $said" >&2
			exit 1
		fi
		echo "$round: $program: $said"
	done
done
