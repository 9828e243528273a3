#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Compares `imsprep convert` with `qemu-img convert` on QCOW2 disks of one content: plain, zlib and zstd.
# The two take turns; printed are the medians of wall and CPU seconds and their ratio. Machines differ
# and drift: only the ratios mean something.
#
# usage: scripts/bench-convert.sh [MIB-OF-DATA [RUNS]]      after `make build` (default: 1024, 5)
set -euo pipefail
cd "$(dirname "$0")/.."
mib=${1:-1024} runs=${2:-5}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

# Half text, half noise, in turns of 4 MiB, and a hole as large as both.
awk 'BEGIN { for (i = 0; i < 70000; i++) printf "line %d of a text that a compressor likes, %d\n", i, i * i }' |
	head -c $((4 << 20)) >"$dir/text"
for ((i = 0; i < mib / 8; i++)); do
	cat "$dir/text"
	head -c $((4 << 20)) /dev/urandom
done >"$dir/disk.raw"
truncate -s $((mib * 2))M "$dir/disk.raw"
qemu-img convert -f raw -O qcow2 "$dir/disk.raw" "$dir/plain.qcow2"
qemu-img convert -f raw -O qcow2 -c -o compression_type=zlib "$dir/disk.raw" "$dir/zlib.qcow2"
qemu-img convert -f raw -O qcow2 -c -o compression_type=zstd "$dir/disk.raw" "$dir/zstd.qcow2"
rm "$dir/disk.raw"

# run FILE COMMAND...: appends "wall cpu" to FILE.
run() {
	local file=$1
	shift
	rm -f "$dir/out.raw"
	{ TIMEFORMAT='%R %U %S'; time "$@" >/dev/null 2>&1; } 2>"$dir/time"
	awk '{ print $1, $2 + $3 }' "$dir/time" >>"$file"
}
median() { cut -d ' ' -f "$2" "$1" | sort -n | sed -n "$(((runs + 1) / 2))p"; }

printf '%-6s %22s %22s %22s\n' disk 'imsprep wall/cpu s' 'qemu-img wall/cpu s' 'ratio wall/cpu'
for disk in plain zlib zstd; do
	for ((i = 0; i < runs; i++)); do
		run "$dir/$disk.ours" bin/imsprep convert -q --bitmap none "$dir/$disk.qcow2" "$dir/out.raw"
		run "$dir/$disk.qemu" qemu-img convert -f qcow2 -O raw "$dir/$disk.qcow2" "$dir/out.raw"
	done
	a=$(median "$dir/$disk.ours" 1) b=$(median "$dir/$disk.ours" 2)
	c=$(median "$dir/$disk.qemu" 1) d=$(median "$dir/$disk.qemu" 2)
	awk -v disk="$disk" -v a="$a" -v b="$b" -v c="$c" -v d="$d" \
		'BEGIN { printf "%-6s %11.2f /%9.2f %11.2f /%9.2f %11.2f /%9.2f\n", disk, a, b, c, d, a / c, b / d }'
done
