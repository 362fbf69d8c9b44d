#!/bin/bash
# Installs what the tests use, where apt and the rights for it are there.
# Quiet and quick when nothing is missing; never fails: a test that lacks
# something is skipped by name.
#
#	tests/install.sh fuse | all
set -u

want=(fuse3:fusermount3 iproute2:ip)
if [[ ${1:-all} == all ]]; then
	want+=(
		sqlite3:sqlite3
		g++:g++
		lmdb-utils:mdb_stat
		liblmdb-dev:/usr/include/lmdb.h
		fio:fio
		python3:/usr/bin/python3
		python3-numpy:/usr/lib/python3/dist-packages/numpy
		attr:setfattr
		util-linux:setpriv
		nftables:nft
		spin:spin
		memcached:memcached
		libpmemobj-dev:/usr/include/libpmemobj.h
		pkg-config:pkg-config
		xz-utils:xz
		libibverbs-dev:/usr/include/infiniband/verbs.h
		librdmacm-dev:/usr/include/rdma/rdma_cma.h
	)
fi

missing=()
for item in "${want[@]}"; do
	package=${item%%:*} proof=${item#*:}
	if [[ $proof == /* ]]; then
		[[ -e $proof ]] || missing+=("$package")
	else
		command -v "$proof" >/dev/null || missing+=("$package")
	fi
done
((${#missing[@]})) || exit 0

if ! command -v apt-get >/dev/null; then
	echo "install: no apt-get here; missing: ${missing[*]}" >&2
	exit 0
fi
as_root=()
if ((EUID != 0)); then
	if ! sudo -n true 2>/dev/null; then
		echo "install: not root; missing: ${missing[*]}" >&2
		exit 0
	fi
	as_root=(sudo -n)
fi

echo "install: ${missing[*]}"
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive timeout 300 apt-get -qq
	-o DPkg::Lock::Timeout=120)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# The tests want the program memcached, and nobody asked for the service.
had_memcached=$(command -v memcached)
# One package that cannot be had must not keep the others away.
if ! "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >"$log" 2>&1; then
	"${apt[@]}" update >"$log" 2>&1 || true
	for package in "${missing[@]}"; do
		if ! "${apt[@]}" install -y --no-install-recommends "$package" \
			>"$log" 2>&1; then
			echo "install: $package: $(tail -n 1 "$log")" >&2
		fi
	done
fi
if [[ -z $had_memcached && -d /run/systemd/system ]] &&
	command -v memcached >/dev/null; then
	"${as_root[@]}" systemctl --quiet disable --now memcached >"$log" 2>&1 || true
fi
exit 0
