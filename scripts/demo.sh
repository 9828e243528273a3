#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Takes a real QCOW2 disk to an image id on a cloud on this machine, and proves that
# the image's content is the disk's. The sums it goes by are not ours: qemu-img's in
# testdata/manifest.tsv, and sha256sum's of a RAW file.
#
# usage: scripts/demo.sh      after `make build`; `make demo` does both
set -euo pipefail
cd "$(dirname "$0")/.."

disk=ext4-zlib.qcow2

fail() {
	echo "demo: $*" >&2
	exit 1
}

# field NAME: the value of a field of the JSON document on standard input, which has
# one field a line.
field() {
	sed -n 's/^ *"'"$1"'": *"\{0,1\}\([^",]*\)"\{0,1\},\{0,1\}$/\1/p' | head -n 1
}

sha256() {
	if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -d ' ' -f 1
}

# Inside the cloud: localcloud runs this script again, with the cloud's addresses and
# a user's keys in the environment.
inside() {
	local tmp=$1 want id image content own
	want=$(awk -F '\t' -v file="$disk" '$1 == file { print $3 }' testdata/manifest.tsv)
	[ -n "$want" ] || fail "testdata/manifest.tsv does not list $disk"

	echo "--- The disk, as imsprep sees it"
	bin/imsprep info "testdata/$disk"

	echo "--- Import: upload to bucket $IMSPREP_BUCKET, register, follow the job"
	bin/imsprep import "testdata/$disk" --bucket "$IMSPREP_BUCKET" --name demo \
		--os-version 'Ubuntu 22.04 server 64bit' --poll 1s --json >"$tmp/import.json"
	cat "$tmp/import.json"
	id=$(field image_id <"$tmp/import.json")
	[ -n "$id" ] || fail "the import's result has no image id"

	echo "--- The image, as the cloud sees it"
	bin/imsprep image show "$id" --json >"$tmp/image.json"
	cat "$tmp/image.json"
	image=$(field status <"$tmp/image.json")
	[ "$image" = active ] || fail "image $id is ${image:-in no state}, not active"
	content=$(field __content_sha256 <"$tmp/image.json")
	[ -n "$content" ] || fail "the cloud does not tell the sum of the image's content"

	echo "--- The same disk as a RAW file of our own"
	bin/imsprep convert "testdata/$disk" "$tmp/disk.raw"
	own=$(sha256 <"$tmp/disk.raw")

	printf '%s\n' '--- SHA-256 of the content' \
		"image, rebuilt by the cloud from the blocks that the bitmap marks  $content" \
		"disk, as qemu-img reads it                                         $want" \
		"disk, as imsprep convert writes it                                 $own"
	[ "$content" = "$want" ] || fail "the image's content is not the disk's"
	[ "$own" = "$want" ] || fail "the RAW file's content is not the disk's"
	echo "image $id active, content verified: sha256 $content"
}

if [ "${1:-}" = inside ]; then
	inside "$2"
	exit
fi
if [ ! -x bin/imsprep ] || [ ! -x bin/localcloud ]; then
	fail "bin/imsprep and bin/localcloud are not built: run make build"
fi
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
bin/localcloud --dir "$tmp/cloud" --exec "$BASH" scripts/demo.sh inside "$tmp"
