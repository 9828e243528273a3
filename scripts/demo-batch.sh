#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A migration in small: twelve disks of seven formats, one of them broken, one hostile, one whose import
# job fails, and a run that is killed with SIGKILL and started again, against a cloud on this machine.
# What must come out of it is checked.
#
# usage: scripts/demo-batch.sh [FOLDER]      after `make build`; FOLDER keeps the plan and the report
set -euo pipefail
cd "$(dirname "$0")/.."

imsprep=${IMSPREP:-bin/imsprep}
localcloud=${LOCALCLOUD:-bin/localcloud}

fail() {
	echo "demo-batch: $*" >&2
	exit 1
}

step() { printf '\n--- %s\n' "$*"; }

# count NAME FILE: the number that the report's totals have under NAME.
count() { sed -n '/"totals"/,/}/s/^ *"'"$1"'": \([0-9]*\),\{0,1\}$/\1/p' "$2"; }

# image NAME FIELD FILE: a field of an image of the report, which has one field a line.
image() {
	awk -v name="\"name\": \"$1\"," -v field="\"$2\":" '
		index($0, "\"index\":") { found = 0 }
		index($0, name) { found = 1 }
		found && index($0, field) { sub(/^[^:]*: "?/, ""); sub(/"?,?$/, ""); print; exit }' "$3"
}

# disks FOLDER: makes the disks.
disks() {
	local dir=$1 base=testdata/ext4-zlib.qcow2
	mkdir -p "$dir/shop"
	cp "$base" "$dir/web.qcow2"
	cp testdata/ext4-zstd.qcow2 "$dir/doubtful.qcow2"
	qemu-img convert -O vmdk "$base" "$dir/esx.vmdk"
	qemu-img convert -O vpc -o force_size=on "$base" "$dir/azure.vhd"
	qemu-img convert -O vhdx "$base" "$dir/hyper.vhdx"
	qemu-img convert -O vdi "$base" "$dir/box.vdi"
	# A RAW disk in gzip, and one with much in it.
	truncate -s 64M "$dir/packed.raw"
	dd if="$base" of="$dir/packed.raw" bs=1M seek=3 conv=notrunc status=none
	gzip "$dir/packed.raw"
	head -c 48M /dev/urandom >"$dir/large.raw"
	# A machine of two disks, as VMware exports one.
	qemu-img convert -O vmdk -o subformat=streamOptimized "$base" "$dir/shop/system.vmdk"
	qemu-img create -q -f vmdk -o subformat=streamOptimized "$dir/shop/empty.vmdk" 32M
	qemu-img convert -O vmdk -o subformat=streamOptimized testdata/ext4-plain.qcow2 "$dir/shop/data.vmdk"
	cat >"$dir/shop/shop.ovf" <<-'OVF'
		<?xml version="1.0"?>
		<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
		 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
		 <References><File ovf:id="f1" ovf:href="data.vmdk"/><File ovf:id="f2" ovf:href="system.vmdk"/></References>
		 <DiskSection>
		  <Disk ovf:diskId="d1" ovf:fileRef="f1" ovf:capacity="268435456"/><Disk ovf:diskId="d2" ovf:fileRef="f2" ovf:capacity="268435456"/>
		 </DiskSection>
		 <VirtualSystem ovf:id="shop"><Name>shop</Name>
		  <OperatingSystemSection ovf:id="94"><Description>Ubuntu Linux (64-bit)</Description></OperatingSystemSection>
		  <VirtualHardwareSection>
		   <Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>6</rasd:ResourceType></Item>
		   <Item><rasd:AddressOnParent>1</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/d1</rasd:HostResource><rasd:InstanceID>2</rasd:InstanceID><rasd:Parent>1</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
		   <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/d2</rasd:HostResource><rasd:InstanceID>3</rasd:InstanceID><rasd:Parent>1</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
		  </VirtualHardwareSection>
		 </VirtualSystem>
		</Envelope>
	OVF
	tar -C "$dir/shop" --format=ustar -cf "$dir/shop.ova" shop.ovf system.vmdk data.vmdk
	rm -r "$dir/shop"
	# One that is cut off, and one that would have a file of this machine read as its content.
	head -c 100000 "$base" >"$dir/broken.qcow2"
	qemu-img create -q -u -f qcow2 -F raw -b /etc/passwd "$dir/hostile.qcow2" 1G
}

# inside: runs in the environment of the cloud.
inside() {
	local dir=$1 code=0 log="$1/events.jsonl" plan="$1/plan.yaml" id pid

	step "The plan that is proposed"
	"$imsprep" batch plan "$dir/disks" --name demo --os-version 'Ubuntu 22.04 server 64bit' --images 3 >"$plan"
	cat "$plan"

	step "What people edit: the broken disk is to be tried all the same, and one gets a bitmap that the cloud can't read"
	sed -i.orig -e '/^  - name: broken$/,/^$/{/refused:/d;}' \
		-e 's/^  - name: doubtful$/&\n    format: raw\n    bitmap_layout: compact\n    accept_unconfirmed_bitmap: true/' "$plan"
	diff "$plan.orig" "$plan" || true
	rm "$plan.orig"

	step "Look before you leap"
	"$imsprep" batch run "$plan" --dry-run || code=$?
	[ $code = 8 ] || fail "the dry run ended with $code, not with 8"

	step "A run, killed while it sends the large disk"
	"$imsprep" batch run "$plan" --poll 200ms --progress json >/dev/null 2>"$log" &
	pid=$!
	until grep -q '"image":"large".*"phase":"upload"' "$log"; do
		kill -0 $pid 2>/dev/null || fail "the run ended before it sent the large disk: $(tail -n 3 "$log")"
		sleep 0.05
	done
	kill -KILL $pid 2>/dev/null || true
	wait $pid 2>/dev/null || true
	"$imsprep" batch status "$plan"
	"$imsprep" batch status "$plan" --json >"$dir/killed.json"

	step "The same command again"
	code=0
	"$imsprep" batch run "$plan" --poll 200ms --report-dir "$dir/report" || code=$?
	[ $code = 8 ] || fail "the run ended with $code, not with 8"

	step "What came out of it"
	local report="$dir/report/report.json"
	cat "$dir/report/report.md"
	for want in images=12 done=9 failed=1 refused=2 interrupted=0 pending=0; do
		[ "$(count "${want%=*}" "$report")" = "${want#*=}" ] || fail "$(count "${want%=*}" "$report") are ${want%=*}, not ${want#*=}"
	done
	for want in broken=refused hostile=refused doubtful=failed large=done shop=done shop-data-1=done; do
		[ "$(image "${want%=*}" status "$report")" = "${want#*=}" ] || fail "${want%=*} is $(image "${want%=*}" status "$report")"
	done
	# On a machine that is too busy to kill it in time it may have been done before.
	[ "$(image large status "$dir/killed.json")" = done ] || [ "$(image large runs "$report")" = 2 ] ||
		fail "the large disk took $(image large runs "$report") runs"
	[ "$(image shop-data-1 type "$report")" = data ] || fail "the second disk of the machine isn't a data disk"
	grep -q '<!DOCTYPE html>' "$dir/report/report.html" || fail "there is no page"

	# The content of an image is its disk's, as qemu-img reads it.
	local sum
	id=$(image shop image_id "$report")
	sum=$("$imsprep" image show "$id" --json | sed -n 's/^ *"__content_sha256": "\(.*\)",\{0,1\}$/\1/p')
	[ -n "$sum" ] && grep -q "ext4-zlib.qcow2.*$sum" testdata/manifest.tsv || fail "image $id has the content $sum"

	step "Once more: what is done stays done"
	code=0
	"$imsprep" batch run "$plan" --poll 200ms --json >"$dir/again.json" 2>/dev/null || code=$?
	[ $code = 8 ] || fail "the run ended with $code, not with 8"
	[ "$(image shop image_id "$dir/again.json")" = "$id" ] || fail "the image of shop is another one"
	[ "$(count done "$dir/again.json")" = 9 ] || fail "$(count done "$dir/again.json") are done"

	step "9 of 12 images are there; 2 disks were refused and 1 job failed, as they should. The page: $dir/report/report.html"
}

if [ "${1:-}" = inside ]; then
	inside "$2"
	exit
fi
command -v qemu-img >/dev/null || fail "qemu-img is needed to make the disks: run scripts/setup.sh"
"$imsprep" version >/dev/null 2>&1 && [ -x "$(command -v "$localcloud")" ] || fail "bin/imsprep and bin/localcloud are not built: run make build"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
dir=$tmp/demo
if [ $# -gt 0 ]; then
	mkdir -p "$1"
	dir=$(cd "$1" && pwd)
fi
mkdir -p "$dir"
step "The disks"
disks "$dir/disks"
ls -l "$dir/disks"
IMSPREP=$imsprep LOCALCLOUD=$localcloud IMSPREP_STATE_DIR=$dir/state "$localcloud" --dir "$tmp/cloud" --exec "$BASH" scripts/demo-batch.sh inside "$dir"
