#!/bin/bash
# Shows what a memory node is for: a program loses its whole machine in the middle
# of an epoch and goes on at another one. Three machines are three network
# namespaces where this is run by root, and three sets of processes elsewhere. Exit
# status 0 only if every number was as promised.
#
#	examples/demo_nodes.sh BIN	BIN has rpmemfs, rpmemctl and threads
#					(make demo)
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "$0")/lib.sh"
# No machine, however busy, is silent for a lease this long.
pki=$work/pki lease=5s accounts=65536 rounds=4
declare -A daemon=() # by name: node, alice, bob
program=
namespaces=()

tidy() {
	local status=$?
	trap - EXIT INT TERM
	[[ -z $program ]] || slay "$program"
	for who in alice bob node; do
		[[ -z ${daemon[$who]:-} ]] || dismiss "${daemon[$who]}"
		unmount_left "$work/$who"
	done
	for space in "${namespaces[@]}"; do
		ip netns del "$space" || true
	done
	rm -rf "$work"
	exit "$status"
}
trap tidy EXIT
trap 'exit 130' INT TERM

# network gives each machine a namespace, and cables to the memory node's.
network() {
	local who space hub="rpmemfs-$$-node" i=0
	for who in node alice bob; do
		space=rpmemfs-$$-$who
		ip netns add "$space" || return
		namespaces+=("$space")
		ip -n "$space" link set lo up
	done
	for who in alice bob; do
		space=rpmemfs-$$-$who i=$((i + 1))
		ip -n "$hub" link add "$who" type veth peer name eth0 netns "$space" || return
		ip -n "$hub" addr add "10.98.$i.1/24" dev "$who"
		ip -n "$space" addr add "10.98.$i.2/24" dev eth0
		ip -n "$hub" link set "$who" up
		ip -n "$space" link set eth0 up
	done
}

if ((EUID == 0)) && command -v ip >/dev/null && network 2>>"$work/daemon.log"; then
	machines="three network namespaces" port=7470
	declare -A address=([alice]=10.98.1.1 [bob]=10.98.2.1)
	at() { # at MACHINE COMMAND...
		local space=rpmemfs-$$-$1
		shift
		exec nsenter "--net=/run/netns/$space" -- "$@"
	}
else
	machines="three sets of processes" port=$((20000 + RANDOM % 20000))
	declare -A address=([alice]=127.0.0.1 [bob]=127.0.0.1)
	at() {
		shift
		exec "$@"
	}
fi

start_node() {
	: >"$work/node.out"
	at node "$bin/rpmemfs" serve "$work/pool" --size 256MiB --lease $lease --pki "$pki/node" \
		--listen ":$port" --data ":$((port + 1))" >"$work/node.out" 2>>"$work/daemon.log" &
	daemon[node]=$!
	await serving "$work/node.out" "${daemon[node]}"
}

# start_mount lets a compute node ask for the lease of the share; mounted waits
# until it has it.
start_mount() {
	: >"$work/$1.out"
	at "$1" "$bin/rpmemfs" mount --pki "$pki/$1" "tcp://${address[$1]}:$port/bank" "$work/$1" \
		>"$work/$1.out" 2>>"$work/daemon.log" &
	daemon[$1]=$!
}
mounted() { await mounted "$work/$1.out" "${daemon[$1]}"; }

run_bank() {
	: >"$work/acked"
	"$bin/threads" run "$work/$1/bank" 4 >"$work/acked" 2>/dev/null &
	program=$!
	working 2
}

# check shows what the file holds at machine $1, after the loss of $2.
check() {
	local acked report found coins
	acked=$(grep -E '^[0-9]+$' "$work/acked" | tail -n 1 || true)
	report=$(timeout 30 "$bin/threads" check "$work/$1/bank") || fail "$report"
	found=${report%% *}
	coins=$(sed -E 's/.*, ([0-9-]+ of [0-9]+) coins$/\1/' <<<"$report")
	((found >= ${acked:-0})) || fail "acknowledged $acked, found $found"
	printf '  %-34s %12s %12s   %s %sexact%s\n' "$2" "$(thousands "${acked:-0}")" \
		"$(thousands "$found")" "$(thousands "$coins")" "$green" "$plain"
}

title "7. A memory node, and two compute nodes ($machines)"
show "rpmemctl pki init PKI; rpmemctl pki issue PKI node --host ...; ... alice --share bank; ... bob --share bank"
"$bin/rpmemctl" pki init "$pki" >/dev/null
"$bin/rpmemctl" pki issue "$pki" node --host 127.0.0.1 --host 10.98.1.1 --host 10.98.2.1 >/dev/null
for who in alice bob; do
	mkdir "$work/$who"
	"$bin/rpmemctl" pki issue "$pki" $who --share bank >/dev/null
done
show "rpmemfs serve POOL --lease $lease --pki PKI/node"
start_node
say "  $(head -n 1 "$work/node.out")"
show "rpmemfs mount --pki PKI/alice tcp://${address[alice]}:$port/bank MNT     # on machine alice"
start_mount alice
mounted alice
"$bin/threads" create "$work/alice/bank" $accounts | sed 's/^/  /'
show "rpmemfs mount --pki PKI/bob tcp://${address[bob]}:$port/bank MNT         # bob waits for the lease"
start_mount bob

title "8. Machines die, and the threads of section 4 go on elsewhere"
say
printf '  %-34s %12s %12s   %s\n' "lost" acknowledged found coins
here=alice there=bob
for ((round = 1; round <= rounds; round++)); do
	run_bank $here
	sleep "0.$((RANDOM % 5))$((RANDOM % 10))"
	slay "${daemon[$here]}" "$program"
	program=
	begun=$(date +%s%N)
	mounted $there
	took=$((($(date +%s%N) - begun) / 1000000))
	check $there "$here; $there had the lease in $took ms"
	unmount_left "$work/$here"
	start_mount $here
	read -r here there <<<"$there $here"
done
run_bank $here
slay "${daemon[node]}"
lines=$(wc -l <"$work/acked")
start_node
working $((lines + 5))
slay "$program"
program=
for _ in {1..200}; do
	"$bin/rpmemctl" stat "$work/$here/bank" --json | grep -Eq '"handles": *0\b' && break
	sleep 0.02
done
check $here "the memory node, and it came back"
say
say "  The other machine waits until the lease of the dead one is over ($lease): only then"
say "  nobody else can write. When the memory node dies and comes back in that time the"
say "  program notices nothing but a longer wait."

title "9. The end"
dismiss "${daemon[$there]}" # it still waits for the lease
dismiss "${daemon[$here]}"
dismiss "${daemon[node]}"
daemon=()
show "rpmemctl check --pool POOL"
"$bin/rpmemctl" check --pool "$work/pool" | sed 's/^/  /' || fail "the pool is damaged"
