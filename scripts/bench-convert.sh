#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Compares `imsprep convert` with `qemu-img convert` on disks of one content in several formats.
# The two take turns; printed are the medians of wall and CPU seconds and their ratio. Machines differ
# and drift: only the ratios mean something.
#
# usage: scripts/bench-convert.sh [MIB-OF-DATA [RUNS [DISK...]]]      after `make build` (default: 1024, 5, all)
set -euo pipefail
cd "$(dirname "$0")/.."
mib=${1:-1024} runs=${2:-5}
disks=("${@:3}")
((${#disks[@]})) || disks=(plain.qcow2 zlib.qcow2 zstd.qcow2 dynamic.vpc dynamic.vhdx dynamic.vdi sparse.vmdk stream.vmdk)
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
for disk in "${disks[@]}"; do
	case $disk in
	zlib.*) options=(-c -o compression_type=zlib) ;;
	zstd.*) options=(-c -o compression_type=zstd) ;;
	stream.*) options=(-o subformat=streamOptimized) ;;
	*.vpc) options=(-o force_size=on) ;; # or the size is one that a geometry can state
	*) options=() ;;
	esac
	qemu-img convert -f raw -O "${disk##*.}" "${options[@]}" "$dir/disk.raw" "$dir/$disk"
done
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

printf '%-13s %22s %22s %22s\n' disk 'imsprep wall/cpu s' 'qemu-img wall/cpu s' 'ratio wall/cpu'
for disk in "${disks[@]}"; do
	for ((i = 0; i < runs; i++)); do
		run "$dir/$disk.ours" bin/imsprep convert -q --bitmap none "$dir/$disk" "$dir/out.raw"
		run "$dir/$disk.qemu" qemu-img convert -f "${disk##*.}" -O raw "$dir/$disk" "$dir/out.raw"
	done
	a=$(median "$dir/$disk.ours" 1) b=$(median "$dir/$disk.ours" 2)
	c=$(median "$dir/$disk.qemu" 1) d=$(median "$dir/$disk.qemu" 2)
	awk -v disk="$disk" -v a="$a" -v b="$b" -v c="$c" -v d="$d" \
		'BEGIN { printf "%-13s %11.2f /%9.2f %11.2f /%9.2f %11.2f /%9.2f\n", disk, a, b, c, d, a / c, b / d }'
done
