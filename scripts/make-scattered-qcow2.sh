#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Makes a QCOW2 with a little data in many places, one 4 KiB cluster each, for tests of how few bytes an
# upload can do with. Takes some 9 KiB of disk space for each of them.
#
# usage: scripts/make-scattered-qcow2.sh FILE [ISLANDS [VIRTUAL-GIB]]
#        (default: 65536 on 1024, which is one every 16 MiB)
set -euo pipefail

if [ $# -lt 1 ] || [ $# -gt 3 ]; then
	sed -n '/^# usage/,/^set/s/^# *//p' "$0" >&2
	exit 2
fi
file=$1 islands=${2:-65536} virtual=${3:-1024}
command -v qemu-img >/dev/null && command -v qemu-io >/dev/null || {
	echo "make-scattered-qcow2: qemu-img and qemu-io are missing (see scripts/setup.sh)" >&2
	exit 1
}
if [ -e "$file" ]; then
	echo "make-scattered-qcow2: $file exists" >&2
	exit 1
fi
partial=$file.tmp
trap 'rm -f "$partial"' EXIT
qemu-img create -q -f qcow2 -o cluster_size=4096 "$partial" "${virtual}G"
# Each begins at a multiple of 64 KiB, in the middle of its share of the disk, and none is like its neighbour.
awk -v n="$islands" -v size="$((virtual << 30))" 'BEGIN {
	for (i = 0; i < n; i++) printf "write -q -P %d %.0f 4k\n", i % 255 + 1, int((i + 0.5) * size / n / 65536) * 65536
}' | qemu-io -f qcow2 -t unsafe "$partial" | sed 's/^\(qemu-io> \)*//; /^$/d' >&2
mv "$partial" "$file"
printf '%s\t%d islands\t%d virtual bytes\n' "$file" "$islands" $((virtual << 30))
