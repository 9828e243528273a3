// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"unicode"
)

const (
	mib = int64(1) << 20
	gib = int64(1) << 30
)

// command runs a program that makes something, and shows what it says only if it fails.
func command(ctx context.Context, stdin string, argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%q: %w: %s", argv, err, bytes.TrimSpace(out))
	}
	return nil
}

// once makes a file unless it is there; it gets its name when it is complete.
func (b *bench) once(path string, build func(temp string) error) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	b.say("making %s", filepath.Base(path))
	temp := path + ".tmp"
	_ = os.Remove(temp)
	if err := build(temp); err != nil {
		_ = os.Remove(temp)
		return err
	}
	return os.Rename(temp, path)
}

// base is the disk that all others are made from: a GPT with two partitions, an ext4 and an XFS, each
// half full of the files of /usr.
func (b *bench) base(ctx context.Context) (string, error) {
	path := b.path(fmt.Sprintf("base-%dg.raw", b.gib))
	return path, b.once(path, func(temp string) error {
		tree := b.path("tree")
		defer os.RemoveAll(tree)
		size := b.gib * gib
		part := (size/2 - 2*mib) / mib * mib
		fill := part / 2
		if err := copyTree(ctx, "/usr", tree, []string{"ext4", "xfs"}, fill); err != nil {
			return err
		}
		ext4, xfs := temp+".ext4", temp+".xfs"
		defer os.Remove(ext4)
		defer os.Remove(xfs)
		for _, f := range []string{ext4, xfs} {
			if err := os.WriteFile(f, nil, 0o644); err != nil {
				return err
			}
			if err := os.Truncate(f, part); err != nil {
				return err
			}
		}
		if err := command(ctx, "", "mkfs.ext4", "-q", "-F", "-d", filepath.Join(tree, "ext4"), ext4); err != nil {
			return err
		}
		proto, err := protofile(filepath.Join(tree, "xfs"))
		if err != nil {
			return err
		}
		list := temp + ".proto"
		defer os.Remove(list)
		if err := os.WriteFile(list, []byte(proto), 0o644); err != nil {
			return err
		}
		if err := command(ctx, "", "mkfs.xfs", "-q", "-f", "-d", "agcount=2", "-p", list, xfs); err != nil {
			return err
		}
		disk, err := os.Create(temp)
		if err != nil {
			return err
		}
		defer disk.Close()
		if err := disk.Truncate(size); err != nil {
			return err
		}
		table := fmt.Sprintf("label: gpt\nstart=1MiB, size=%dMiB\nsize=%dMiB\n", part/mib, part/mib)
		if err := command(ctx, table, "sfdisk", "-q", temp); err != nil {
			return err
		}
		for i, f := range []string{ext4, xfs} {
			if _, err := copyData(ctx, disk, mib+int64(i)*part, f, 0, part); err != nil {
				return err
			}
		}
		return disk.Close()
	})
}

// copyTree fills a folder a share with fill bytes of the files below from, over again if those aren't
// enough.
func copyTree(ctx context.Context, from, to string, shares []string, fill int64) error {
	share, full := 0, int64(0)
	enough := errors.New("enough")
	for pass := 0; ; pass++ {
		before := full
		err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || strings.ContainsFunc(path, func(r rune) bool { return r > unicode.MaxASCII || r <= ' ' }) {
				return nil // what can't be read is left out; a protofile knows no blanks
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			rel, err := filepath.Rel(from, path)
			if err != nil {
				return err
			}
			dst := filepath.Join(to, shares[share], fmt.Sprint("pass", pass), rel)
			if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
				return err
			}
			n, err := copyFile(path, dst)
			if err != nil {
				return err
			}
			// A file takes an inode and half a block more than it has bytes.
			if full += n + 2048; full >= fill {
				if share, full = share+1, 0; share == len(shares) {
					return enough
				}
			}
			return nil
		})
		switch {
		case err == enough:
			return nil
		case err != nil:
			return err
		case before == full:
			return fmt.Errorf("no file below %s can be read", from)
		}
	}
}

func copyFile(src, dst string) (int64, error) {
	in, err := os.Open(src)
	if err != nil {
		return 0, nil
	}
	defer in.Close()
	out, err := os.Create(dst)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(out, in)
	return n, errors.Join(err, out.Close())
}

// protofile describes a tree to mkfs.xfs.
func protofile(root string) (string, error) {
	var w strings.Builder
	w.WriteString("/dev/null\n0 0\nd--755 0 0\n")
	var list func(dir string) error
	list = func(dir string) error {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if !e.IsDir() {
				fmt.Fprintf(&w, "%s ---644 0 0 %s\n", e.Name(), path)
				continue
			}
			fmt.Fprintf(&w, "%s d--755 0 0\n", e.Name())
			if err := list(path); err != nil {
				return err
			}
		}
		w.WriteString("$\n")
		return nil
	}
	err := list(root)
	return w.String(), err
}

// copyData copies up to n bytes of a file's data from the offset from on, which become those from off on,
// and leaves zeros out. It returns where in the source it stopped.
func copyData(ctx context.Context, dst *os.File, off int64, path string, from, n int64) (int64, error) {
	src, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer src.Close()
	buf, zeros := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := from; at < from+n; {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		p := buf[:min(int64(len(buf)), from+n-at)]
		k, err := io.ReadFull(io.NewSectionReader(src, at, int64(len(p))), p)
		if k == 0 {
			return at, nil
		}
		if !bytes.Equal(p[:k], zeros[:k]) {
			if _, err := dst.WriteAt(p[:k], off+at-from); err != nil {
				return 0, err
			}
		}
		at += int64(k)
		if err != nil {
			return at, nil
		}
	}
	return from + n, nil
}

// disk returns the base disk in another format, as qemu-img writes it.
func (b *bench) disk(ctx context.Context, name string, options ...string) error {
	base, err := b.base(ctx)
	if err != nil {
		return err
	}
	return b.once(b.path(name), func(temp string) error {
		return command(ctx, "", append(append([]string{"qemu-img", "convert", "-m", "4", "-f", "raw"}, options...), base, temp)...)
	})
}

// dense is a RAW file of nothing but the base disk's data.
func (b *bench) dense(ctx context.Context) error {
	base, err := b.base(ctx)
	if err != nil {
		return err
	}
	return b.once(b.path(fmt.Sprintf("dense-%dg.raw", b.gib)), func(temp string) error {
		return b.writeDense(ctx, base, temp, b.gib*gib)
	})
}

func (b *bench) writeDense(ctx context.Context, base, temp string, most int64) error {
	src, err := os.Open(base)
	if err != nil {
		return err
	}
	defer src.Close()
	out, err := os.Create(temp)
	if err != nil {
		return err
	}
	defer out.Close()
	buf, zeros := make([]byte, 64<<10), make([]byte, 64<<10)
	written := int64(0)
	for off := int64(0); written < most; {
		start, end, err := nextData(src, off)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		for off = start; off < end && written < most; off += int64(len(buf)) {
			if err := ctx.Err(); err != nil {
				return err
			}
			n, err := src.ReadAt(buf, off)
			if err != nil && err != io.EOF {
				return err
			}
			if n == len(buf) && !bytes.Equal(buf, zeros) {
				if _, err := out.WriteAt(buf, written); err != nil {
					return err
				}
				written += int64(n)
			}
		}
		off = end
	}
	return out.Close()
}

// spread makes a QCOW2 of a virtual size with data in 64 pieces, as many GiB of it as config.scale says.
func (b *bench) spread(ctx context.Context, virtual int64) error {
	if err := b.dense(ctx); err != nil {
		return err
	}
	dense := b.path(fmt.Sprintf("dense-%dg.raw", b.gib))
	return b.once(b.path(spreadName(virtual, b.scale)), func(temp string) error {
		raw := temp + ".raw"
		defer os.Remove(raw)
		out, err := os.Create(raw)
		if err != nil {
			return err
		}
		defer out.Close()
		if err := out.Truncate(virtual); err != nil {
			return err
		}
		const pieces = 64
		piece := b.scale * gib / pieces
		fi, err := os.Stat(dense)
		if err != nil {
			return err
		}
		for i := range int64(pieces) {
			from := i * piece % max(1, (fi.Size()-piece)/mib*mib)
			if _, err := copyData(ctx, out, i*(virtual/pieces), dense, from, piece); err != nil {
				return err
			}
		}
		if err := out.Close(); err != nil {
			return err
		}
		return command(ctx, "", "qemu-img", "convert", "-m", "16", "-W", "-f", "raw", "-O", "qcow2", raw, temp)
	})
}

func spreadName(virtual, scale int64) string {
	return fmt.Sprintf("spread-%dg-of-%dg.qcow2", scale, virtual/gib)
}

// sameBytes compares two files.
func sameBytes(ctx context.Context, a, b string) error { return command(ctx, "", "cmp", a, b) }
