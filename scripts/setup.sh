#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs the public tools that tests and scripts use, where that is possible
# (Debian or its kin, as root or with sudo that asks for no password), and says
# loudly what is missing where it isn't. Succeeds either way: a test that needs
# a missing tool skips, or fails where IMSPREP_CI=1.
#
# usage: scripts/setup.sh [race|bench]      race: a C compiler too, for go test -race
#                                           bench: the tools that make bench compares with
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

missing() {
	local tool
	for tool in "$@"; do
		command -v "$tool" >/dev/null || printf '%s ' "$tool"
	done
}

if ! command -v go >/dev/null; then
	echo "setup: Go is missing; install 1.26 or later from https://go.dev/dl/" >&2
	exit 1
fi
tools=(qemu-img qemu-io mkfs.ext4 debugfs sfdisk) packages=(qemu-utils e2fsprogs fdisk)
if [ "${1:-}" = race ]; then
	tools+=("${CC:-gcc}") packages+=(gcc libc6-dev)
fi
if [ "${1:-}" = package ]; then
	tools=(gzip tar zip sha256sum) packages=(gzip tar zip coreutils)
fi
if [ "${1:-}" = bench ]; then
	tools+=(mkfs.xfs nbdcopy nbdkit qemu-nbd s3cmd rclone zstd) packages+=(xfsprogs libnbd-bin nbdkit s3cmd rclone zstd)
fi
[ -n "$(missing "${tools[@]}")" ] || exit 0

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo -n)
if command -v apt-get >/dev/null && "${as_root[@]}" true 2>/dev/null; then
	echo "setup: installing ${packages[*]} for: $(missing "${tools[@]}")" >&2
	log=$(mktemp)
	trap 'rm -f "$log"' EXIT
	{
		"${as_root[@]}" apt-get -qq update </dev/null &&
			"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
				apt-get -qq install -y --no-install-recommends "${packages[@]}" </dev/null
	} >"$log" 2>&1 || { echo "setup: apt-get failed:" >&2; tail -n 5 "$log" >&2; }
fi

left=$(missing "${tools[@]}")
[ -z "$left" ] || cat >&2 <<-FRAME
	+-----------------------------------------------------------------------------+
	| NOT EVERYTHING CAN BE TESTED HERE. Missing:
	|     $left
	| Tests that compare with qemu-img or use file systems made by e2fsprogs are
	| SKIPPED (with IMSPREP_CI=1 they FAIL). To run them, install:
	|     ${packages[*]}
	+-----------------------------------------------------------------------------+
FRAME
