#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Makes a QCOW2 with a huge virtual size and a little data spread over all of it,
# for tests of memory and speed. Takes about as much disk space as there is data,
# and seconds. Half of the pieces are noise, the others alternate between noise and
# text every 64 KiB; a few begin off any cluster's start.
#
# usage: scripts/make-sparse-qcow2.sh FILE [GIB-OF-DATA [VIRTUAL-GIB]]
#        (default: 3 of 1024); prints FILE, the data bytes and the virtual bytes
set -euo pipefail

if [ $# -lt 1 ] || [ $# -gt 3 ]; then
	sed -n '/^# usage/,/^set/s/^# *//p' "$0" >&2
	exit 2
fi
file=$1 data=${2:-3} virtual=${3:-1024}
command -v qemu-img >/dev/null && command -v qemu-io >/dev/null || {
	echo "make-sparse-qcow2: qemu-img and qemu-io are missing (see scripts/setup.sh)" >&2
	exit 1
}
if [ -e "$file" ]; then
	echo "make-sparse-qcow2: $file exists" >&2
	exit 1
fi
if [ "$data" -lt 1 ] || [ "$data" -gt $((virtual / 2)) ]; then
	echo "make-sparse-qcow2: the data must be 1 GiB to half of the virtual size" >&2
	exit 2
fi

tmp=$(mktemp -d)
partial=$file.tmp
trap 'rm -rf "$tmp" "$partial"' EXIT
mib=$((1 << 20)) piece=$((32 << 20))
head -c $piece /dev/urandom >"$tmp/noise"
awk 'BEGIN { for (i = 0; i < 1500; i++) printf "a line of text for the sparse disk, number %d\n", i }' >"$tmp/text"
truncate -s 65536 "$tmp/text"
cp "$tmp/noise" "$tmp/mixed"
for ((i = 1; i < piece / 65536; i += 2)); do
	dd if="$tmp/text" of="$tmp/mixed" bs=65536 seek=$i conv=notrunc status=none
done

qemu-img create -q -f qcow2 "$partial" "${virtual}G"
pieces=$((data * 1024 * mib / piece))
step=$((virtual * 1024 * mib / pieces / 65536 * 65536))
writes=()
for ((i = 0; i < pieces; i++)); do
	content=noise
	[ $((i % 2)) = 0 ] || content=mixed
	# Off the step's start by a varying number of sectors, and now and then by one
	# that is no multiple of a cluster; the last piece ends where the disk ends.
	offset=$((i * step + (i * 7919 % 512) * 65536 + (i % 8 == 3 ? 4096 : 0)))
	[ $i != $((pieces - 1)) ] || offset=$((virtual * 1024 * mib - piece))
	writes+=(-c "write -q -s $tmp/$content $offset $piece")
done
qemu-io -f qcow2 -t unsafe "${writes[@]}" "$partial"
mv "$partial" "$file"
printf '%s\t%d data bytes\t%d virtual bytes\n' "$file" $((pieces * piece)) $((virtual * 1024 * mib))
