#!/bin/bash
# Programs of librpmemfs on a mount, killed at any moment, or with their daemon:
# what is found afterwards is consistent, and not older than what was durable.
#
#	mount.sh BIN LIB [ROUNDS [SEED]]
#
# BIN has rpmemfs and rpmemctl, LIB has stress and region_test.
set -eu

bin=$1 lib=$2 rounds=${3:-6}
RANDOM=${4:-1}
mib=48 threads=4

if [[ $EUID != 0 || ! -e /dev/fuse ]]; then
	echo "mount.sh: skipped: not root, or no /dev/fuse"
	exit 0
fi

dir=$(mktemp -d "${TMPDIR:-/tmp}/rpmemfs-lib.XXXXXX")
file=$dir/mnt/file
daemon=
mkdir "$dir/mnt"

end() {
	if [[ -n $daemon ]]; then
		umount -l "$dir/mnt" 2>/dev/null || true
		kill "$daemon" 2>/dev/null || true
		wait "$daemon" 2>/dev/null || true
	fi
	umount -l "$dir/mnt" 2>/dev/null || true
	rm -rf "$dir"
}
trap end EXIT

fail() {
	echo "mount.sh: round $round: $*" >&2
	tail -n 20 "$dir"/*.log >&2
	exit 1
}

mount_it() {
	"$bin/rpmemfs" mount --pool "$dir/pool" --size 2GiB "$@" "$dir/mnt" \
		>>"$dir/daemon.log" 2>&1 &
	daemon=$!
	for ((i = 0; i < 200; i++)); do
		mountpoint -q "$dir/mnt" && return
		sleep 0.05
	done
	fail "no mount"
}

# check OUTPUT: the file against the last whole line that a program printed.
check() {
	local -a durable=()
	local line

	while IFS= read -r line; do
		read -ra durable <<<"$line"
	done <"$1"
	timeout 60 "$lib/stress" check "$file" $mib $((threads + 1)) "${durable[@]}" ||
		fail "what is found after $how"
}

sleep_a_little() { sleep "0.$((RANDOM % 900 + 100))"; }

round=0 how=nothing
mount_it
# Another program, whose death or life must not harm anybody.
for ((round = 1; round <= rounds; round++)); do
	: >"$dir/out"
	"$lib/stress" run "$file" $mib $threads 60 $RANDOM \
		>"$dir/out" 2>"$dir/err.log" &
	program=$!
	sleep 1
	sleep_a_little
	case $((round % 3)) in
	0)
		how="the death of the program"
		kill -KILL $program
		wait $program || true
		;;
	1)
		how="the death of the daemon"
		kill -KILL "$daemon"
		wait "$daemon" || true
		wait $program && fail "the program did not notice"
		umount -l "$dir/mnt" || true
		mount_it --epoch 20ms
		;;
	2)
		how="the death of another program"
		"$lib/stress" run "$file" $mib 1 60 $RANDOM $threads >/dev/null &
		other=$!
		sleep_a_little
		kill -KILL $other
		wait $other || true
		status=0
		wait $program || status=$?
		[[ $status == 3 ]] || fail "status $status of the survivor"
		;;
	esac
	check "$dir/out"
done
how="a clean end"
timeout 60 "$lib/stress" run "$file" $mib $threads 1 >"$dir/out" ||
	fail "the program failed"
check "$dir/out"
umount "$dir/mnt"
wait "$daemon" || fail "status of the daemon"
daemon=
echo "mount.sh: $rounds rounds"
