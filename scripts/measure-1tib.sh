#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Imports a disk of 1 TiB with a few GiB of data into the local cloud and prints the plan, the peak
# memory of imsprep, and the bytes sent against the bytes of data. The object that the cloud ends up
# with is compared with the disk by qemu-img.
#
# usage: scripts/measure-1tib.sh [GIB-OF-DATA [VIRTUAL-GIB]]     after `make build` (default: 3 of 1024)
#        HASH=1 lets the cloud hash the whole rebuilt disk, too: some ten minutes for 1 TiB
set -euo pipefail
cd "$(dirname "$0")/.."

# inside DIR: what runs with the cloud's addresses in the environment.
inside() {
	local dir=$1
	local args=("$dir/disk.qcow2" --name measured --os-version 'Ubuntu 22.04 server 64bit' --key measured.raw)
	echo "--- The plan"
	bin/imsprep import "${args[@]}" --dry-run
	echo "--- The import"
	bin/imsprep import "${args[@]}" --keep-object --json --progress lines >"$dir/result.json" &
	local pid=$! peak=0 now
	# The kernel keeps the high-water mark; it is read until the process is gone.
	while now=$(awk '/^VmHWM/ { print $2 }' "/proc/$pid/status" 2>/dev/null) && [ -n "$now" ]; do
		peak=$now
		sleep 0.1
	done
	wait "$pid"
	cat "$dir/result.json"
	echo "--- Peak memory of imsprep: $((peak / 1024)) MiB"
	sed -n 's/^ *"\(data_bytes\|bytes_sent\|bytes_copied\|bytes_read\)": \([0-9]*\),*$/\1 \2/p' "$dir/result.json" |
		awk '{ printf "%s %d MiB\n", $1, $2 / 1048576 }'
	local object=$dir/cloud/buckets/$IMSPREP_BUCKET/measured.raw
	echo "--- The object: $(stat -c %s "$object") bytes, of which $(du -B1 "$object" | cut -f1) on disk"
	qemu-img compare -f qcow2 -F raw "$dir/disk.qcow2" "$object"
	bin/imsprep image show "$(sed -n 's/^ *"image_id": "\(.*\)",$/\1/p' "$dir/result.json")"
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
