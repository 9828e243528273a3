#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Imports a disk of 1 TiB with a few GiB of data into the local cloud, as RAW and as ZVHD2, and prints for each the
# plan, the peak memory of imsprep, the seconds, and the bytes sent against the bytes of data. The RAW object is
# compared with the disk by qemu-img; the images that the cloud rebuilds of both are compared by their hashes.
#
# usage: scripts/measure-1tib.sh [GIB-OF-DATA [VIRTUAL-GIB]]     after `make build` (default: 3 of 1024)
#        HASH=1 lets the cloud hash the whole rebuilt disks, zeros and all: some ten minutes each for 1 TiB
set -euo pipefail
cd "$(dirname "$0")/.."

# import_as FORMAT DIR: imports and prints; the image's sparse hash goes to DIR/FORMAT.sum.
import_as() {
	local format=$1 dir=$2
	local args=("$dir/disk.qcow2" --name "$format" --os-version 'Ubuntu 22.04 server 64bit' --key "measured.$format" --format "$format")
	echo "=== $format: the plan"
	bin/imsprep import "${args[@]}" --dry-run
	echo "=== $format: the import"
	bin/imsprep import "${args[@]}" --keep-object --json --progress lines >"$dir/$format.json" &
	local pid=$! peak=0 now
	# The kernel keeps the high-water mark; it is read until the process is gone.
	while now=$(awk '/^VmHWM/ { print $2 }' "/proc/$pid/status" 2>/dev/null) && [ -n "$now" ]; do
		peak=$now
		sleep 0.1
	done
	wait "$pid"
	echo "peak memory of imsprep: $((peak / 1024)) MiB"
	sed -n 's/^ *"\(seconds\|data_bytes\|bytes_sent\|bytes_copied\|bytes_read\|parts_sent\|parts_copied\|requests\)": \([0-9.]*\),*$/\1 \2/p' "$dir/$format.json"
	local object=$dir/cloud/buckets/$IMSPREP_BUCKET/measured.$format
	echo "the object: $(stat -c %s "$object") bytes, of which $(du -B1 "$object" | cut -f1) on disk"
	bin/imsprep image show "$(sed -n 's/^ *"image_id": "\(.*\)",$/\1/p' "$dir/$format.json")" |
		tee >(sed -n 's/^__content_sparse_sha256 *//p' >"$dir/$format.sum") | grep '^__content'
}

# inside DIR: what runs with the cloud's addresses in the environment.
inside() {
	import_as raw "$1"
	qemu-img compare -f qcow2 -F raw "$1/disk.qcow2" "$1/cloud/buckets/$IMSPREP_BUCKET/measured.raw"
	import_as zvhd2 "$1"
	cmp "$1/raw.sum" "$1/zvhd2.sum"
	echo "The images of both are identical."
}

if [ "${1:-}" = inside ]; then
	inside "$2"
	exit
fi
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
scripts/make-sparse-qcow2.sh "$dir/disk.qcow2" "${1:-3}" "${2:-1024}"
limit=()
[ -z "${HASH:-}" ] || limit=(--hash-limit 0)
bin/localcloud --dir "$dir/cloud" "${limit[@]}" --exec "$BASH" scripts/measure-1tib.sh inside "$dir"
