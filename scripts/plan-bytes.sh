#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Prints, for real disks and for scattered ones, how many bytes are data, how few any parts of 5 MiB and more
# could hold them in (the floor), and how many a RAW upload sends; with the seconds and the peak memory of
# planning. The local cloud answers the plan's questions; nothing is uploaded, but with UPLOAD=ISLANDS: then
# a disk of that many islands is, one every 12 MiB (APART=MIB), and compared with the disk by qemu-img; with FORMAT=zvhd2 it
# is uploaded so, and compared by imsprep.
#
# usage: scripts/plan-bytes.sh [DISK...]     after `make build`; needs GNU time
#        IMSPREP_CORPUS: a folder of other programs' disks, of which one is measured too
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:/usr/sbin:/sbin

# number NAME: a number of the JSON document on standard input.
number() { sed -n 's/^ *"'"$1"'": \([0-9]*\),*$/\1/p' | head -n 1; }

mib() { awk -v n="$1" 'BEGIN { printf n < 10485760 ? "%.1f" : "%.0f", n / 1048576 }'; }

# plan NAME DISK FOLDER: a line of the table.
plan() {
	local json=$3/plan.json time=$3/time
	command time -f '%e %M' -o "$time" bin/imsprep upload "$2" "obs://$IMSPREP_BUCKET/disk.raw" --format raw \
		--accept-unconfirmed-bitmap --dry-run --json >"$json"
	read -r seconds memory <"$time"
	printf '| %s | %s | %s | %s | %s | %s | %s | %s | %s |\n' "$1" "$(mib "$(number virtual_size <"$json")")" \
		"$(mib "$(number data_bytes <"$json")")" "$(mib "$(number floor_bytes <"$json")")" "$(mib "$(number part_bytes <"$json")")" \
		"$(number parts <"$json")" "$(number requests <"$json")" "$seconds" $((memory / 1024))
}

# ext4 FILE GIB FOLDER: a disk with a file system that holds a folder.
ext4() {
	truncate -s "$2G" "$1.raw"
	mke2fs -q -t ext4 -d "$3" "$1.raw"
	qemu-img convert -O qcow2 "$1.raw" "$1"
	rm "$1.raw"
}

type -P time >/dev/null || {
	echo "plan-bytes: GNU time is missing" >&2
	exit 1
}

inside() {
	local dir=$1 object
	shift
	echo '| disk | virtual MiB | data MiB | floor MiB | sent MiB | parts | requests | s | peak MiB |'
	echo '|---|---|---|---|---|---|---|---|---|'
	if [ $# -gt 0 ]; then
		for disk in "$@"; do plan "$(basename "$disk")" "$disk" "$dir"; done
	else
		plan 'ext4, 256 MiB, a few files (testdata)' testdata/ext4-zlib.qcow2 "$dir"
		ext4 "$dir/a.qcow2" 20 "$(go env GOROOT)/src"
		plan 'ext4, 20 GiB, the sources of Go' "$dir/a.qcow2" "$dir"
		ext4 "$dir/b.qcow2" 100 /usr/share
		plan 'ext4, 100 GiB, /usr/share' "$dir/b.qcow2" "$dir"
		if [ -n "${IMSPREP_CORPUS:-}" ]; then
			plan 'four file systems, NTFS among them (corpus)' "$IMSPREP_CORPUS/qcow2/scalibr_valid-ext-exfat-fat32-ntfs.qcow2.gz" "$dir"
		fi
		scripts/make-scattered-qcow2.sh "$dir/c.qcow2" >/dev/null
		plan 'scattered: 4 KiB every 16 MiB of 1 TiB' "$dir/c.qcow2" "$dir"
		scripts/make-scattered-qcow2.sh "$dir/d.qcow2" 4000 1024 >/dev/null
		plan 'scattered: 4 KiB every 262 MiB of 1 TiB' "$dir/d.qcow2" "$dir"
	fi
	[ -n "${UPLOAD:-}" ] || return 0
	echo "=== uploading $UPLOAD islands"
	local format=${FORMAT:-raw}
	scripts/make-scattered-qcow2.sh "$dir/u.qcow2" "$UPLOAD" $(((UPLOAD * ${APART:-12} + 1023) / 1024)) >/dev/null
	object=obs://$IMSPREP_BUCKET/u.$format
	command time -f '%e s, %U + %S s of CPU, peak memory %M KiB' bin/imsprep upload "$dir/u.qcow2" "$object" --format "$format" \
		--accept-unconfirmed-bitmap --json --progress none | grep -E '"(bytes|parts|requests|retries)'
	if [ "$format" = raw ]; then
		qemu-img compare -f qcow2 -F raw "$dir/u.qcow2" "$dir/cloud/buckets/$IMSPREP_BUCKET/u.raw"
	else
		bin/imsprep verify "$dir/u.qcow2" "$object" --progress none
	fi
	ls "$dir/cloud/buckets/$IMSPREP_BUCKET"
}

if [ "${1:-}" = inside ]; then
	shift
	inside "$@"
	exit
fi
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
bin/localcloud --dir "$dir/cloud" --exec "$BASH" scripts/plan-bytes.sh inside "$dir" "$@"
