// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Sections of the report.
const (
	sectionConvert = "convert"
	sectionDurable = "durable"
	sectionWhole   = "whole"
	sectionZVHD2   = "zvhd2"
	sectionScale   = "scale"
	sectionMap     = "map"
)

// format is a disk to convert.
type format struct {
	name    string   // for people, and of the file
	qemu    string   // qemu's name of the format
	options []string // of qemu-img convert, nil = the base disk itself
	library bool     // go-qcow2reader reads it
	slow    bool     // decoding takes most of the time
}

var formats = []format{
	{"raw", "raw", nil, true, false},
	{"qcow2", "qcow2", []string{"-O", "qcow2"}, true, false},
	{"qcow2-zlib", "qcow2", []string{"-O", "qcow2", "-c"}, true, true},
	{"qcow2-zstd", "qcow2", []string{"-O", "qcow2", "-c", "-o", "compression_type=zstd"}, true, true},
	{"vmdk-streamOptimized", "vmdk", []string{"-O", "vmdk", "-o", "subformat=streamOptimized"}, false, true},
	{"vmdk-sparse", "vmdk", []string{"-O", "vmdk"}, false, false},
	{"vhd-dynamic", "vpc", []string{"-O", "vpc", "-o", "force_size=on"}, false, false},
	{"vhdx-dynamic", "vhdx", []string{"-O", "vhdx"}, false, false},
	{"vdi", "vdi", []string{"-O", "vdi"}, false, false},
}

// file is the disk's name.
func (b *bench) file(f format) string {
	if f.options == nil {
		return b.path(fmt.Sprintf("base-%dg.raw", b.gib))
	}
	return b.path(fmt.Sprintf("%s-%dg.%s", f.name, b.gib, f.qemu))
}

const (
	toolImsprep = "imsprep"
	toolQemu    = "qemu-img"
	toolNBD     = "nbdcopy"
	toolLibrary = "go-qcow2reader"
	toolPass    = "bitmap-pass"
	// Of the whole job: an object that has its bitmap inside, the choice where the layout of RAW's isn't confirmed, and
	// like all peers with the fastest setting.
	toolZVHD2  = "imsprep, ZVHD2 level 1"
	toolS3cmd  = "qemu-img, bitmap, s3cmd"
	toolRclone = "qemu-img, bitmap, rclone"
)

// cases are all there are, the interesting ones first: the time may not do for all rounds.
func (b *bench) cases(cloud *localcloud) []*benchCase {
	var all []*benchCase
	for _, f := range formats {
		all = append(all, b.convertCase(f))
	}
	all = append(all, b.wholeCase(cloud), b.durableCase())
	for _, level := range []int{1, 3} {
		all = append(all, b.zvhd2Case(level))
	}
	return append(all, b.scaleCase(), b.mapCase())
}

// convertCase is from one format to a sparse RAW file.
func (b *bench) convertCase(f format) *benchCase {
	src, out := b.file(f), b.path("out/out.raw")
	socket := b.path("out/nbd")
	bc := &benchCase{section: sectionConvert, name: f.name, slow: f.slow, warm: []string{src},
		prepare: func(ctx context.Context) error {
			if f.options == nil {
				_, err := b.base(ctx)
				return err
			}
			return b.disk(ctx, filepath.Base(src), f.options...)
		},
		check: func(ctx context.Context) error { return sameBytes(ctx, out, b.file(formats[0])) },
	}
	// Neither qemu-img nor nbdcopy nor the library waits until the file is on the disk.
	bc.tools = append(bc.tools,
		tool{name: toolImsprep, argv: []string{b.imsprep, "convert", "-q", "--no-sync", "--bitmap", "none", src, out}, outs: []string{out}},
		tool{name: toolQemu, argv: []string{"qemu-img", "convert", "-m", "16", "-W", "-f", f.qemu, "-O", "raw", src, out}, outs: []string{out}})
	// nbdcopy asks a server for the disk: nbdkit where that serves the format, else qemu-nbd, over as
	// many connections as both take.
	serve := `qemu-nbd -r -t -e 8 -f "$FORMAT" -k "$SOCKET" "$SRC"`
	if f.qemu == "raw" {
		serve = `nbdkit -f -r -U "$SOCKET" file "$SRC"`
	}
	script := serve + ` & server=$!
trap 'kill $server; wait $server' EXIT
until [ -S "$SOCKET" ]; do kill -0 $server; sleep 0.01; done
nbdcopy --connections=4 --requests=64 "nbd+unix:///?socket=$SOCKET" "$OUT"`
	bc.tools = append(bc.tools, tool{name: toolNBD, argv: []string{"bash", "-euc", script}, outs: []string{out, socket},
		env: []string{"FORMAT=" + f.qemu, "SOCKET=" + socket, "SRC=" + src, "OUT=" + out}})
	if f.library {
		self, _ := os.Executable()
		bc.tools = append(bc.tools, tool{name: toolLibrary, argv: []string{self, toolLibrary, src, out}, outs: []string{out}})
	}
	return bc
}

// durableCase is a conversion that counts when the file is on the disk.
func (b *bench) durableCase() *benchCase {
	bc := b.convertCase(formats[1])
	out := b.path("out/out.raw")
	bc.section, bc.name, bc.slow = sectionDurable, "qcow2, until it is on the disk", true
	src := b.file(formats[1])
	bc.tools = []tool{
		{name: toolImsprep, argv: []string{b.imsprep, "convert", "-q", "--bitmap", "none", src, out}, outs: []string{out}},
		{name: "qemu-img and sync", outs: []string{out}, env: []string{"SRC=" + src, "OUT=" + out},
			argv: []string{"bash", "-euc", `qemu-img convert -m 16 -W -f qcow2 -O raw "$SRC" "$OUT"; sync "$OUT"`}},
	}
	return bc
}

// wholeCase is from a disk to an object and its bitmap in the bucket: of one two and a half times as large as the
// others, about a fifth of which is data, as it is with disks of servers.
func (b *bench) wholeCase(cloud *localcloud) *benchCase {
	var f format
	for _, f = range formats {
		if f.name == "qcow2-zlib" {
			break
		}
	}
	packed, src := b.file(f), b.path(fmt.Sprintf("whole-%dg.qcow2", b.wholeGiB()))
	raw, mf := b.path("out/whole.raw"), b.path("out/whole.mf")
	self, _ := os.Executable()
	bc := &benchCase{section: sectionWhole, name: fmt.Sprintf("%s, %d GiB, a fifth of it data", f.name, b.wholeGiB()), slow: true, warm: []string{src}}
	bc.prepare = func(ctx context.Context) error {
		if err := b.disk(ctx, filepath.Base(packed), f.options...); err != nil {
			return err
		}
		err := b.once(src, func(temp string) error {
			if _, err := copyFile(packed, temp); err != nil {
				return err
			}
			return command(ctx, "", "qemu-img", "resize", "-q", "-f", "qcow2", temp, fmt.Sprintf("%dG", b.wholeGiB()))
		})
		if err != nil {
			return err
		}
		return cloud.start(ctx, func(env []string) {
			for i := range bc.tools {
				bc.tools[i].env = append(env, "SRC="+src, "RAW="+raw, "MF="+mf, "BENCH="+self, "IMSPREP="+b.imsprep, "STATE="+b.path("out/state"))
			}
		})
	}
	// The parts, and the object of the round before, which is there until they replace it.
	bc.memory = func() (string, int64) { return cloud.dir, b.gib * gib * 9 / 8 }
	// What there is to do today.
	today := `qemu-img convert -m 16 -W -f qcow2 -O raw "$SRC" "$RAW"
"$BENCH" ` + toolPass + ` "$RAW" "$MF"
`
	sent := func([]byte) (n int64, err error) {
		for _, f := range []string{raw, mf} {
			fi, e := os.Stat(f)
			if e != nil {
				err = errors.Join(err, e)
				continue
			}
			n += fi.Size()
		}
		return n, err
	}
	told := func(stdout []byte) (int64, error) {
		var doc struct {
			Sent int64 `json:"bytes_sent"`
		}
		err := json.Unmarshal(stdout, &doc)
		if err == nil && doc.Sent == 0 {
			err = fmt.Errorf("no bytes_sent in %s", stdout)
		}
		return doc.Sent, err
	}
	ours := func(name, key, options string) tool {
		return tool{name: name, sent: told, argv: []string{"bash", "-euc",
			`exec "$IMSPREP" upload "$SRC" obs://images/` + key + ` --overwrite --state-dir "$STATE" --json -q ` + options}}
	}
	bc.tools = []tool{
		ours(toolImsprep, "ours.raw", "--format raw --accept-unconfirmed-bitmap"),
		ours(toolZVHD2, "ours.zvhd2", "--format zvhd2 --compression-level 1"),
		{name: toolS3cmd, outs: []string{raw, mf}, sent: sent, argv: []string{"bash", "-euc", today + `
for f in "$RAW" "$MF"; do
	s3cmd --config=/dev/null --no-ssl --host="$HOST" --host-bucket="$HOST" --access_key="$HW_ACCESS_KEY" --secret_key="$HW_SECRET_KEY" \
		--region="$HW_REGION_NAME" --no-progress put "$f" "s3://images/s3cmd-${f##*/}"
done`}},
		{name: toolRclone, outs: []string{raw, mf}, sent: sent, argv: []string{"bash", "-euc", today + `
unset ${!AWS_@} # of the user's own account
export RCLONE_S3_PROVIDER=Other RCLONE_S3_ACCESS_KEY_ID=$HW_ACCESS_KEY RCLONE_S3_SECRET_ACCESS_KEY=$HW_SECRET_KEY
export RCLONE_S3_REGION=$HW_REGION_NAME RCLONE_S3_ENDPOINT=http://$HOST
for f in "$RAW" "$MF"; do
	rclone --config /dev/null copyto --s3-no-check-bucket --s3-upload-concurrency 8 --s3-chunk-size 16M "$f" ":s3:images/rclone-${f##*/}"
done`}},
	}
	return bc
}

// wholeGiB is the virtual size of wholeCase's disk.
func (b *bench) wholeGiB() int64 { return b.gib * 5 / 2 }

// zvhd2Case is compressing data, the processors' work above all.
func (b *bench) zvhd2Case(level int) *benchCase {
	src, out := b.path(fmt.Sprintf("dense-%dg.raw", b.gib)), b.path("out/out.zvhd2")
	ours := []string{b.imsprep, "convert", "-q", "--no-sync", "-O", "zvhd2", "--compression-level", fmt.Sprint(level), src, out}
	zstd := []string{"zstd", "-q", "-f", "-T0", fmt.Sprint("-", level), src, "-o", out}
	return &benchCase{section: sectionZVHD2, name: fmt.Sprint("level ", level), warm: []string{src}, prepare: b.dense, slow: true,
		tools: []tool{
			{name: toolImsprep, argv: ours, outs: []string{out}},
			{name: "zstd", argv: zstd, outs: []string{out}},
			{name: "imsprep, one processor", argv: ours, outs: []string{out}, env: []string{"GOMAXPROCS=1"}},
		}}
}

var virtualSizes = []int64{64 * gib, 256 * gib, 1024 * gib}

// scaleCase is the same data on disks of several sizes. It is compressed: how long writing as much as that takes
// depends more on what the system does with its memory than on anything of ours.
func (b *bench) scaleCase() *benchCase {
	out := b.path("out/out.zvhd2")
	bc := &benchCase{section: sectionScale, name: fmt.Sprintf("%d GiB of data in 64 pieces", b.scale), slow: true}
	for _, v := range virtualSizes {
		src := b.path(spreadName(v, b.scale))
		bc.tools = append(bc.tools, tool{name: fmt.Sprintf("%d GiB", v/gib), warm: src, outs: []string{out},
			argv: []string{b.imsprep, "convert", "-q", "--no-sync", "-O", "zvhd2", "--compression-level", "1", src, out}})
	}
	bc.prepare = func(ctx context.Context) error {
		for _, v := range virtualSizes {
			if err := b.spread(ctx, v); err != nil {
				return err
			}
		}
		return nil
	}
	return bc
}

// mapCase lists the extents of large disks.
func (b *bench) mapCase() *benchCase {
	spread, full := b.path(spreadName(1024*gib, b.scale)), b.path("mapped-1024g.qcow2")
	return &benchCase{section: sectionMap, name: "1 TiB", warm: []string{full},
		prepare: func(ctx context.Context) error {
			if err := b.spread(ctx, 1024*gib); err != nil {
				return err
			}
			return b.once(full, func(temp string) error {
				return command(ctx, "", "qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", temp, "1T")
			})
		},
		tools: []tool{
			{name: "imsprep map, data in 64 pieces", argv: []string{b.imsprep, "map", "--json", spread}},
			{name: "qemu-img map, data in 64 pieces", argv: []string{"qemu-img", "map", "--output=json", spread}},
			{name: "imsprep map, all 16,777,216 clusters mapped", argv: []string{b.imsprep, "map", "--json", full}},
			{name: "qemu-img map, all 16,777,216 clusters mapped", argv: []string{"qemu-img", "map", "--output=json", full}},
		}}
}

// hostOf returns the host and port of an address.
func hostOf(url string) string {
	_, rest, ok := strings.Cut(url, "://")
	if !ok {
		rest = url
	}
	return strings.TrimSuffix(rest, "/")
}
