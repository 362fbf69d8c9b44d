# What the demonstrations share. Source it; it sets bin from the script's argument,
# a directory work that tidy_work removes, and the words to speak with.

bin=$(cd "${1:?usage: ${0##*/} BIN}" && pwd)
work=$(mktemp -d "${TMPDIR:-/var/tmp}/rpmemfs-demo-XXXXXX")

if [[ -t 1 ]]; then
	bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
else
	bold='' green='' red='' plain=''
fi

say() { printf '%s\n' "$*"; }
title() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
show() { printf '  $ %s\n' "$*"; }
fail() {
	printf '%sFAILED: %s%s\n' "$red" "$*" "$plain" >&2
	[[ -s $work/daemon.log ]] && tail -n 5 "$work/daemon.log" >&2
	exit 1
}

# slay ends processes that this script started, without the shell's own remarks.
slay() {
	{ kill -KILL "$@" && wait "$@"; } 2>/dev/null || true
}

# dismiss asks a daemon to end, and ends it if it does not within 10 s.
dismiss() {
	kill -TERM "$1" 2>/dev/null || true
	for _ in {1..100}; do
		kill -0 "$1" 2>/dev/null || break
		sleep 0.1
	done
	slay "$1"
}

# unmount_left takes away a mount that its daemon left.
unmount_left() {
	if grep -q " $1 fuse" /proc/self/mounts; then
		umount -l "$1" 2>/dev/null || fusermount3 -uz "$1" || true
	fi
}

# await waits for a line of the file $2 that begins with $1, from the process $3.
await() {
	for _ in {1..3000}; do
		grep -q "^$1" "$2" && return
		kill -0 "$3" 2>/dev/null || fail "no '$1': the daemon ended"
		sleep 0.02
	done
	fail "no '$1' in a minute"
}

# working waits until the program has written $1 lines.
working() {
	for _ in {1..3000}; do
		(($(wc -l <"$work/acked") >= $1)) && return
		kill -0 "$program" 2>/dev/null || fail "the program ended"
		sleep 0.02
	done
	fail "the program did nothing for a minute"
}

thousands() { LC_ALL=C sed -E ':a; s/([0-9])([0-9]{3})($|[^0-9])/\1,\2\3/; ta' <<<"$1"; }
