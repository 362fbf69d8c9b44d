#!/bin/bash
# Shows what rpmemfs is for: a bank that keeps its accounts in mapped memory is
# killed ten times, alone or together with the file system, and never loses a
# coin; then the same with threads and without msync. Exit status 0 only if
# every number was as promised.
#
#	examples/demo.sh BIN	BIN has rpmemfs, rpmemctl, bank and threads
#				(make demo)
set -euo pipefail

# shellcheck source=lib.sh
source "$(dirname "$0")/lib.sh"
pool=$work/pool mnt=$work/mnt book=$work/mnt/bank clerks=$work/mnt/clerks
accounts=65536 rounds=10
daemon= program=
mkdir "$mnt"

tidy() {
	local status=$?
	trap - EXIT INT TERM
	[[ -z $program ]] || slay "$program"
	[[ -z $daemon ]] || dismiss "$daemon"
	unmount_left "$mnt"
	rm -rf "$work"
	exit "$status"
}
trap tidy EXIT
trap 'exit 130' INT TERM

# start_mount mounts the pool and waits until it is ready.
start_mount() {
	: >"$work/mount.out"
	"$bin/rpmemfs" mount --pool "$pool" --size 256MiB "$mnt" \
		>"$work/mount.out" 2>>"$work/daemon.log" &
	daemon=$!
	await mounted "$work/mount.out" "$daemon"
}

# settled waits until the daemon has heard that the program that had the file $1
# open is gone.
settled() {
	for _ in {1..200}; do
		"$bin/rpmemctl" stat "$1" --json |
			grep -Eq '"handles": *0\b' && return
		sleep 0.02
	done
	fail "the killed program still holds the file open"
}

# strike kills the program that has the file $1 open, the daemon, or both, and
# mounts again if it has to. It says whom in who.
strike() {
	case $((RANDOM % 3)) in
	0)
		who="the program"
		slay "$program"
		settled "$1"
		;;
	1)
		who="the daemon"
		slay "$daemon"
		slay "$program" # its mapping is dead, it cannot go on
		start_mount
		;;
	2)
		who="program and daemon"
		slay "$program" "$daemon"
		start_mount
		;;
	esac
	program=
}

title "1. A file system whose files are failure-atomic memory"
show "rpmemfs mount --pool POOL MNT"
start_mount
say "  $(head -n 1 "$work/mount.out")"

title "2. A bank: $(thousands $accounts) accounts in a mapped file, 4 MiB"
say "  It maps the file, moves coins between accounts with plain stores, and calls"
say "  msync after every 1,000 transfers. It has no log and no recovery code"
say "  (examples/bank/bank.c). Each msync commits all its stores as one epoch."
show "bank create MNT/bank $accounts"
say "  $("$bin/bank" create "$book" $accounts)"

title "3. Killed with SIGKILL, $rounds times, in the middle of transfers"
say "  acknowledged: the last msync that returned before the kill"
say "  found:        the commit that is in the file afterwards"
say
printf '  %-6s %-22s %12s %8s   %-22s\n' round killed acknowledged found coins
last=0
for ((round = 1; round <= rounds; round++)); do
	: >"$work/acked"
	"$bin/bank" run "$book" 1000 >"$work/acked" 2>/dev/null &
	program=$!
	sleep "0.$((RANDOM % 6))$((RANDOM % 10))"
	strike "$book"
	acked=$(grep -E '^[0-9]+$' "$work/acked" | tail -n 1 || true)
	acked=${acked:-$last}
	report=$(timeout 30 "$bin/bank" check "$book") || fail "round $round: $report"
	found=$(sed -E 's/^commit ([0-9]+):.*/\1/' <<<"$report")
	coins=$(sed -E 's/.*, ([0-9-]+ of [0-9]+) coins$/\1/' <<<"$report")
	if ((found < acked || found > acked + 1)); then
		fail "round $round: acknowledged $acked, found $found"
	fi
	printf '  %-6s %-22s %12s %8s   %s %sexact%s\n' "$round" "$who" \
		"$acked" "$found" "$(thousands "$coins")" "$green" "$plain"
	last=$found
done
say
say "  Found is always what was acknowledged, or one more: the msync that was under"
say "  way at the kill. Never a mix of two epochs, so every coin is there."

title "4. Four threads, and no msync anywhere"
say "  The threads move coins all at once (examples/bank/threads.c). Each calls"
say "  rpmemfs_restart_point after each transfer: it holds no half-made one there."
say "  Every 64 ms the daemon waits until all four stand at such a point, and what"
say "  is in memory then is the epoch. They go on while it is made durable."
show "threads create MNT/clerks $accounts"
say "  $("$bin/threads" create "$clerks" $accounts)"
say
say "  acknowledged: transfers that the program knew to be durable before the kill"
say "  found:        transfers that are in the file afterwards"
say
printf '  %-6s %-22s %12s %12s   %-22s\n' round killed acknowledged found coins
last=0
for ((round = 1; round <= rounds; round++)); do
	: >"$work/acked"
	"$bin/threads" run "$clerks" 4 >"$work/acked" 2>/dev/null &
	program=$!
	working 1
	sleep "0.$((RANDOM % 4))$((RANDOM % 10))"
	strike "$clerks"
	acked=$(grep -E '^[0-9]+$' "$work/acked" | tail -n 1 || true)
	acked=${acked:-$last}
	report=$(timeout 30 "$bin/threads" check "$clerks") || fail "round $round: $report"
	found=${report%% *}
	coins=$(sed -E 's/.*, ([0-9-]+ of [0-9]+) coins$/\1/' <<<"$report")
	if ((found < acked)); then
		fail "round $round: acknowledged $acked, found $found"
	fi
	printf '  %-6s %-22s %12s %12s   %s %sexact%s\n' "$round" "$who" \
		"$(thousands "$acked")" "$(thousands "$found")" \
		"$(thousands "$coins")" "$green" "$plain"
	last=$found
done
say
say "  At any kill some threads were in the middle of a transfer, and an epoch was"
say "  being copied or committed. None of that is ever seen."
say
say "  What a restart point is worth: here is the same program with the call in the"
say "  middle of a transfer. Its epochs hold half-made ones, and a kill shows them."
: >"$work/acked"
"$bin/threads" careless "$clerks" 4 >"$work/acked" 2>/dev/null &
program=$!
working 3
strike "$clerks"
if damage=$("$bin/threads" check "$clerks"); then
	fail "the careless restart points did not show: $damage"
fi
say "  $(thousands "$(sed -E 's/.*, //' <<<"$damage")")   ${red}wrong${plain}"

title "5. A checkpoint, a disaster, and the way back"
show "rpmemctl checkpoint MNT/bank friday"
"$bin/rpmemctl" checkpoint "$book" friday | sed 's/^/  /'
before=$("$bin/bank" check "$book") || fail "before the disaster: $before"
say "  $before"
show "dd if=/dev/urandom of=MNT/bank ...     # scribble over 100 pages, and sync"
dd if=/dev/urandom of="$book" bs=4096 seek=100 count=100 \
	conv=notrunc,fsync status=none
if damage=$("$bin/bank" check "$book"); then
	fail "the damage did not show: $damage"
fi
say "  $damage   ${red}wrong${plain}"
show "rpmemctl restore MNT/bank friday"
settled "$book"
"$bin/rpmemctl" restore "$book" friday | sed 's/^/  /'
after=$("$bin/bank" check "$book") || fail "after restore: $after"
say "  $after   ${green}exact${plain}"
[[ $after == "$before" ]] || fail "restore brought back '$after', not '$before'"

title "6. Unmount and check the pool"
kill -TERM "$daemon"
wait "$daemon" || fail "the daemon did not end cleanly"
daemon=
show "rpmemctl check --pool POOL"
"$bin/rpmemctl" check --pool "$pool" | sed 's/^/  /' || fail "the pool is damaged"

title "All $((2 * rounds)) kills survived, every coin accounted for."
