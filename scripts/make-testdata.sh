#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Makes the sample disks of testdata/ with public tools only: a file tree becomes
# two ext4 file systems behind a GPT, and qemu-img writes the disk as QCOW2. The
# content is repeatable with the same versions of the tools (fixed names, sizes,
# owners, times, UUIDs and hash seed); other versions may give other checksums.
# That is why testdata/manifest.tsv, which tests go by, is written by the same run.
#
# usage: scripts/make-testdata.sh [DIR]      (default: testdata)
set -euo pipefail
export LC_ALL=C TZ=UTC PATH="$PATH:/usr/sbin:/sbin"
umask 022

out=${1:-$(dirname "$0")/../testdata}
mkdir -p "$out"
out=$(cd "$out" && pwd)
for tool in qemu-img qemu-io mkfs.ext4 debugfs sfdisk gzip; do
	command -v "$tool" >/dev/null || { echo "make-testdata: $tool is missing (see scripts/setup.sh)" >&2; exit 1; }
done
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

epoch=1735689600 # 2025-01-01 00:00:00 UTC
export E2FSPROGS_FAKE_TIME=$epoch SOURCE_DATE_EPOCH=$epoch
mib=$((1 << 20))

# --- The trees. Text that compresses, noise that doesn't (gzip's own output, which
# --- is cheap to make without a random source), links, an empty file, a file with a hole.
boot=$tmp/boot root=$tmp/root
mkdir -p "$boot/grub" "$root"/{etc,bin,boot,home/user,usr/share/doc,var/log,var/lib/db}
seq 1 60000 | gzip -9n >"$boot/vmlinuz-6.1.0"
seq 7 7 300000 | gzip -9n >"$boot/initrd.img-6.1.0"
printf 'set default=0\nmenuentry "Sample" {\n  linux /vmlinuz-6.1.0 root=UUID=11111111-2222-3333-4444-555555555555\n}\n' >"$boot/grub/grub.cfg"
printf 'NAME="Sample Linux"\nID=sample\nVERSION_ID="1"\n' >"$root/etc/os-release"
printf 'UUID=11111111-2222-3333-4444-555555555555 / ext4 defaults 0 1\n' >"$root/etc/fstab"
echo sample >"$root/etc/hostname"
: >"$root/etc/machine-id"
for i in 1 2 3 4 5 6 7 8 9 10 11 12; do
	seq "$i" 7 $((i * 1700)) | sed "s/^/sample document $i, line /" >"$root/usr/share/doc/document-$i.txt"
done
seq 1 2000 | sed 's/^/2025-01-01T00:00:00Z sample kernel: message /' >"$root/var/log/messages"
seq 3 11 700000 | gzip -9n >"$root/var/lib/db/table-1.bin"
seq 5 13 900000 | gzip -9n >"$root/var/lib/db/table-2.bin"
seq 1 17 90000 | gzip -9n >"$root/home/user/notes.bin"
truncate -s $((24 * mib)) "$root/var/lib/db/sparse.db"
printf 'end of a file that is one long hole' >>"$root/var/lib/db/sparse.db"
ln -s ../etc/os-release "$root/usr/os-release"
ln "$root/usr/share/doc/document-1.txt" "$root/home/user/a-hard-link.txt"
find "$boot" "$root" -exec touch -h -d "@$epoch" {} +

# --- The disk: 256 MiB, most of it never written. A boot partition of 30 MiB and a
# --- root partition apart from it, so that data lies in several places.
disk=$tmp/disk.raw
truncate -s $((256 * mib)) "$disk"
sfdisk -q "$disk" <<-'GPT'
	label: gpt
	label-id: 0F1E2D3C-4B5A-6978-8796-A5B4C3D2E1F0
	unit: sectors
	start=2048,  size=2048,   type=21686148-6449-6E6F-744E-656564454649, uuid=00000000-0000-4000-8000-000000000001, name="bios"
	start=4096,  size=61440,  type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, uuid=00000000-0000-4000-8000-000000000002, name="boot"
	start=98304, size=421888, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, uuid=00000000-0000-4000-8000-000000000003, name="root"
GPT
# filesystem LABEL UUID TREE FIRST-SECTOR SECTORS
filesystem() {
	mkfs.ext4 -q -F -L "$1" -U "$2" -d "$3" -b 4096 -J size=4 -m 0 -O ^resize_inode \
		-E "offset=$(($4 * 512)),hash_seed=$2,root_owner=0:0,nodiscard,lazy_itable_init=1" \
		"$disk" "$(($5 / 2))k" 2>"$tmp/mkfs.log" || { cat "$tmp/mkfs.log" >&2; exit 1; }
	# mkfs takes the owner and the change time from the tree, where only the owner's
	# rights and the clock decide them.
	(cd "$3" && find . -mindepth 1 | sed 's/^\.//' | sort) | while read -r file; do
		for field in 'uid 0' 'gid 0' "ctime @$epoch"; do echo "set_inode_field $file $field"; done
	done >"$tmp/fields"
	echo "set_inode_field / ctime @$epoch" >>"$tmp/fields"
	debugfs -w -f "$tmp/fields" "$disk?offset=$(($4 * 512))" >/dev/null 2>&1
}
filesystem boot 99999999-8888-7777-6666-555555555555 "$boot" 4096 61440
filesystem root 11111111-2222-3333-4444-555555555555 "$root" 98304 421888

# --- The same disk after some use, for the overlay: a file added, a file removed and
# --- its blocks discarded, as a guest does with fstrim.
used=$tmp/used.raw rootfs="$tmp/used.raw?offset=$((98304 * 512))"
cp --sparse=always "$disk" "$used"
seq 2 19 700000 | gzip -9n >"$tmp/added.bin"
touch -d "@$epoch" "$tmp/added.bin"
blocks=$(debugfs -R 'blocks /var/lib/db/table-2.bin' "$rootfs" 2>/dev/null)
debugfs -w "$rootfs" >/dev/null 2>&1 <<-CMDS
	write $tmp/added.bin /home/user/added.bin
	set_inode_field /home/user/added.bin uid 0
	set_inode_field /home/user/added.bin gid 0
	rm /var/lib/db/table-2.bin
CMDS
test -n "$blocks"
for b in $blocks; do
	dd if=/dev/zero of="$used" bs=4096 seek=$((98304 / 8 + b)) count=1 conv=notrunc status=none
done
for image in "$disk" "$used"; do
	for start in 4096 98304; do
		e2fsck -fn "$image?offset=$((start * 512))" >"$tmp/fsck.log" 2>&1 || { cat "$tmp/fsck.log" >&2; exit 1; }
	done
done

# --- QCOW2.
cd "$out"
rm -f ext4-zlib.qcow2 ext4-zstd.qcow2 ext4-plain.qcow2 ext4-overlay.qcow2
qemu-img convert -q -f raw -O qcow2 -c -o compression_type=zlib "$disk" ext4-zlib.qcow2
qemu-img convert -q -f raw -O qcow2 -c -o compression_type=zstd "$disk" ext4-zstd.qcow2
qemu-img convert -q -f raw -O qcow2 "$disk" ext4-plain.qcow2

# Only the clusters that differ go into the overlay, as a hypervisor would have left
# it: as data, or as zero clusters that hide what the backing file has there.
qemu-img create -q -f qcow2 -b ext4-zlib.qcow2 -F qcow2 ext4-overlay.qcow2
cluster=65536
writes=()
for c in $(cmp -l "$disk" "$used" | awk '{ c = int(($1 - 1) / 65536); if (c != last || NR == 1) print c; last = c }'); do
	chunk=$tmp/cluster-$c
	dd if="$used" of="$chunk" bs=$cluster skip="$c" count=1 status=none
	if cmp -s -n $cluster "$chunk" /dev/zero; then
		writes+=(-c "write -z $((c * cluster)) $cluster")
	else
		writes+=(-c "write -s $chunk $((c * cluster)) $cluster")
	fi
done
qemu-io -f qcow2 "${writes[@]}" ext4-overlay.qcow2 >/dev/null

# --- What tests go by.
version=$(qemu-img --version | sed -n '1s/^qemu-img version \([^ ]*\).*/\1/p')
# row FILE HOW
row() {
	qemu-img check -q "$1"
	local size sum
	size=$(qemu-img info --output=json "$1" | sed -n 's/^    "virtual-size": \([0-9]*\),*$/\1/p')
	qemu-img convert -q -O raw "$1" "$tmp/content.raw"
	sum=$(sha256sum <"$tmp/content.raw")
	[ "$(sha256sum <"$3")" = "$sum" ] || { echo "make-testdata: $1 is not the disk it was made from" >&2; exit 1; }
	printf '%s\t%s\t%s\t%s\n' "$1" "$size" "${sum%% *}" "$2"
}
{
	printf 'file\tvirtual_size\tsha256\thow\n'
	row ext4-zlib.qcow2 "qemu-img $version convert -c -o compression_type=zlib; GPT, two ext4" "$disk"
	row ext4-zstd.qcow2 "qemu-img $version convert -c -o compression_type=zstd; the same disk" "$disk"
	row ext4-plain.qcow2 "qemu-img $version convert; the same disk" "$disk"
	row ext4-overlay.qcow2 "qemu-img $version create -b ext4-zlib.qcow2 -F qcow2, then qemu-io; a file added, one removed and trimmed" "$used"
} >"$tmp/manifest.tsv"
mv "$tmp/manifest.tsv" manifest.tsv
cut -f1-3 manifest.tsv
