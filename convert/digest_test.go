// SPDX-License-Identifier: Apache-2.0

package convert_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/lima-vm/go-qcow2reader/image"
	"pgregory.net/rapid"

	"github.com/imsprep/imsprep/convert"
)

// referenceDigest follows docs/verification.md literally, one byte after the other.
func referenceDigest(disk []byte) string {
	root := sha256.New()
	root.Write([]byte("imsprep-tree-1"))
	root.Write(binary.BigEndian.AppendUint64(nil, uint64(len(disk))))
	for j := 0; j*2097152 < len(disk); j++ {
		block := disk[j*2097152 : min((j+1)*2097152, len(disk))]
		if len(bytes.Trim(block, "\x00")) == 0 {
			continue
		}
		leaves := sha256.New()
		for len(block) > 0 {
			n := min(65536, len(block))
			leaf := sha256.Sum256(block[:n])
			leaves.Write(leaf[:])
			block = block[n:]
		}
		root.Write(binary.BigEndian.AppendUint64(nil, uint64(j)))
		root.Write(leaves.Sum(nil))
	}
	return "imsprep-tree-1:" + hex.EncodeToString(root.Sum(nil))
}

// memory is a disk of bytes; the ranges in zeros are said to be zeros and must not be read.
func memory(t interface{ Fatalf(string, ...any) }, disk []byte, zeros []image.Extent) *sparse {
	s := &sparse{size: int64(len(disk))}
	end := int64(0)
	for _, z := range zeros {
		if z.Start > end {
			s.runs = append(s.runs, image.Extent{Start: end, Length: z.Start - end, Allocated: true})
		}
		s.runs = append(s.runs, image.Extent{Start: z.Start, Length: z.Length, Zero: true})
		end = z.Start + z.Length
	}
	if end < s.size {
		s.runs = append(s.runs, image.Extent{Start: end, Length: s.size - end, Allocated: true})
	}
	s.data = func(p []byte, off int64) { copy(p, disk[off:]) }
	return s
}

// drawDisk draws a disk of at most 9 MiB of which most is zeros, and what it may say of that.
func drawDisk(t *rapid.T) ([]byte, []image.Extent) {
	disk := make([]byte, rapid.OneOf(rapid.IntRange(1, 200_000), rapid.IntRange(1, 9<<20)).Draw(t, "size"))
	noise := rand.NewChaCha8([32]byte{byte(rapid.IntRange(0, 255).Draw(t, "seed"))})
	for range rapid.IntRange(0, 6).Draw(t, "runs") {
		at := rapid.IntRange(0, len(disk)-1).Draw(t, "data at")
		noise.Read(disk[at:min(len(disk), at+rapid.SampledFrom([]int{1, 5000, 1 << 20}).Draw(t, "length"))])
	}
	var zeros []image.Extent
	for at := 0; at < len(disk); {
		n := min(rapid.IntRange(1, 3<<20).Draw(t, "extent"), len(disk)-at)
		if convert.IsZero(disk[at : at+n]) {
			zeros = append(zeros, image.Extent{Start: int64(at), Length: int64(n)})
		}
		at += n
	}
	return disk, zeros
}

// drawRanges cuts size bytes into ranges that ReadRange takes, in a random order.
func drawRanges(t *rapid.T, size int64) []image.Extent {
	var out []image.Extent
	for at := int64(0); at < size; {
		grains := rapid.OneOf(rapid.Int64Range(1, 3), rapid.Int64Range(1, 100), rapid.Just(int64(32))).Draw(t, "grains")
		n := min(grains*convert.Grain, size-at)
		out = append(out, image.Extent{Start: at, Length: n})
		at += n
	}
	if len(out) > 1 {
		return rapid.Permutation(out).Draw(t, "order")
	}
	return out
}

// TestDigestAndNotes reads random disks in random ranges, some of them by another scanner whose notes are
// learned: digest, counters and marks are those of the content, always.
func TestDigestAndNotes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		disk, zeros := drawDisk(t)
		img := memory(t, disk, zeros)
		block := rapid.SampledFrom([]int64{512, 32 << 10, 64 << 10, 1 << 20, 2 << 20, 4 << 20, 64 << 20}).Draw(t, "block")
		m, other := newMarks(block), newMarks(block)
		s := convert.NewScanner(img, m).WithDigest()
		earlier := convert.NewScanner(img, other).WithDigest()
		ctx := context.Background()
		for _, r := range drawRanges(t, img.size) {
			reader := s
			how := rapid.IntRange(0, 2).Draw(t, "how")
			if how == 1 {
				reader = earlier
			}
			// A part may be made of pieces that are read and pieces that are copied.
			all := true
			for at := r.Start; at < r.Start+r.Length; {
				n := min(rapid.Int64Range(1, 40).Draw(t, "piece")*convert.Grain, r.Start+r.Length-at)
				if e, _ := img.Extent(at, n); !e.Zero || e.Length < n {
					p := make([]byte, n)
					zero, err := reader.ReadRange(ctx, p, at)
					if err != nil || zero != convert.IsZero(p) || !bytes.Equal(p, disk[at:at+n]) {
						t.Fatalf("%d bytes at %d: zero %t, %v", n, at, zero, err)
					}
				} else {
					all = false
				}
				at += n
			}
			if how != 1 && all {
				continue
			}
			note, err := reader.Note(r.Start, r.Length)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Learn(r.Start, r.Length, note); err != nil {
				t.Fatal(err)
			}
		}
		d, err := s.Digest(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if want := referenceDigest(disk); d.String() != want {
			t.Fatalf("%v, want %v", d, want)
		}
		data := int64(0)
		for b := int64(0); b*block < img.size; b++ {
			p := disk[b*block : min((b+1)*block, img.size)]
			if m.data[b] == convert.IsZero(p) {
				t.Fatalf("block %d is marked %t", b, m.data[b])
			}
			if m.data[b] {
				data += int64(len(p))
			}
		}
		if block >= convert.Grain {
			if st := s.Stats(); st.DataBytes != data || st.ZeroBytes != img.size-data {
				t.Fatalf("%+v of %d bytes, %d of data", st, img.size, data)
			}
		}
		var text convert.Digest
		if b, err := d.MarshalText(); err != nil || text.UnmarshalText(b) != nil || text != d {
			t.Fatalf("%s came back as %v", b, text)
		}
	})
}

// TestDigestTells changes a disk in ways that must change its digest.
func TestDigestTells(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		disk, _ := drawDisk(t)
		digest := func(b []byte) string {
			s := convert.NewScanner(memory(t, b, nil), nil).WithDigest()
			if err := convert.Scan(context.Background(), s, convert.ScanOptions{}, nil); err != nil {
				t.Fatal(err)
			}
			d, err := s.Digest(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			return d.String()
		}
		was := digest(disk)
		if was != referenceDigest(disk) {
			t.Fatal("another digest than the reference's")
		}
		flipped := slices.Clone(disk)
		flipped[rapid.IntRange(0, len(disk)-1).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		swapped := slices.Clone(disk)
		unit := rapid.SampledFrom([]int{1, convert.Grain, convert.DigestBlock}).Draw(t, "unit")
		if n := len(disk) / unit; n > 1 {
			i, j := rapid.IntRange(0, n-1).Draw(t, "one"), rapid.IntRange(0, n-1).Draw(t, "other")
			a, b := swapped[i*unit:(i+1)*unit], swapped[j*unit:(j+1)*unit]
			tmp := slices.Clone(a)
			copy(a, b)
			copy(b, tmp)
		}
		for name, other := range map[string][]byte{"flipped": flipped, "swapped": swapped, "longer": append(slices.Clone(disk), 0), "shorter": disk[:len(disk)-1]} {
			if len(other) > 0 && !bytes.Equal(disk, other) && digest(other) == was {
				t.Fatalf("the digest of the %s disk is the same", name)
			}
		}
	})
}

// TestDigestVector has the values of docs/verification.md.
func TestDigestVector(t *testing.T) {
	disk := make([]byte, 5<<20+512)
	for i := range 100_000 {
		disk[2<<20+i] = byte(i % 251)
	}
	disk[len(disk)-1] = 1
	s := convert.NewScanner(memory(t, disk, nil), nil).WithDigest()
	if err := convert.Scan(t.Context(), s, convert.ScanOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	d, err := s.Digest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const want = "imsprep-tree-1:5f4638b825b86282e038a68cd835eed8ba2bdb4afacb3623356ffa3478e85262"
	if d.String() != want || referenceDigest(disk) != want {
		t.Errorf("got %v and %s, want %s", d, referenceDigest(disk), want)
	}
	manual, err := os.ReadFile(filepath.Join("..", "docs", "verification.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, vector := range []string{want, referenceDigest(make([]byte, 1<<20))} {
		if !bytes.Contains(manual, []byte(vector)) {
			t.Errorf("docs/verification.md doesn't have %s", vector)
		}
	}
}

// TestDigestMisses: what was neither read nor is known to be zeros has no digest, and no note.
func TestDigestMisses(t *testing.T) {
	disk := make([]byte, 6<<20)
	disk[100] = 1
	img := memory(t, disk, []image.Extent{{Start: 4 << 20, Length: 2 << 20}})
	s := convert.NewScanner(img, nil).WithDigest()
	for _, n := range []int64{convert.Grain, 4<<20 - convert.Grain} {
		if _, err := s.Digest(t.Context()); err == nil {
			t.Error("a digest of what wasn't read")
		}
		if _, err := s.Note(0, 6<<20); err == nil {
			t.Error("a note on what wasn't read")
		}
		off := int64(0)
		if n > convert.Grain {
			off = convert.Grain
		}
		if _, err := s.ReadRange(t.Context(), make([]byte, n), off); err != nil {
			t.Fatal(err)
		}
	}
	d, err := s.Digest(t.Context())
	if err != nil || d.String() != referenceDigest(disk) {
		t.Errorf("%v, %v", d, err)
	}
	rest := convert.NewScanner(img, nil).WithDigest()
	if _, err := rest.ReadRange(t.Context(), make([]byte, convert.Grain), 3<<20); err != nil {
		t.Fatal(err)
	}
	if err := rest.ReadRest(t.Context()); err != nil || rest.Stats().BytesRead != 4<<20 {
		t.Errorf("the rest: %v, %+v", err, rest.Stats())
	}
	if d, err := rest.Digest(t.Context()); err != nil || d.String() != referenceDigest(disk) {
		t.Errorf("%v, %v", d, err)
	}
	if _, err := convert.NewScanner(img, nil).Digest(t.Context()); !errors.Is(err, convert.ErrNoDigest) {
		t.Errorf("without asking for one: %v", err)
	}
}

// TestBadNotes damages a note in every byte and gives it to wrong scanners: nothing is learned.
func TestBadNotes(t *testing.T) {
	disk := make([]byte, 5<<20)
	for i := 3 << 20; i < len(disk); i += 1000 {
		disk[i] = 1
	}
	img := memory(t, disk, nil)
	read := func(s *convert.Scanner) *convert.Scanner {
		if _, err := s.ReadRange(t.Context(), make([]byte, 3<<20), 1<<20); err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := read(convert.NewScanner(img, nil).WithDigest())
	note, err := s.Note(1<<20, 3<<20)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := read(convert.NewScanner(img, nil)).Note(1<<20, 3<<20)
	if err != nil {
		t.Fatal(err)
	}
	fresh := convert.NewScanner(img, nil).WithDigest()
	refuse := func(what string, s *convert.Scanner, off, n int64, note []byte) {
		t.Helper()
		var bad *convert.NoteError
		if err := s.Learn(off, n, note); !errors.As(err, &bad) {
			t.Errorf("%s: %v", what, err)
		}
		if st := s.Stats(); st != (convert.ScanStats{}) {
			t.Errorf("%s: learned %+v", what, st)
		}
	}
	for i := range note {
		b := bytes.Clone(note)
		b[i] ^= 0x10
		refuse(fmt.Sprintf("byte %d", i), fresh, 1<<20, 3<<20, b)
		refuse(fmt.Sprintf("%d bytes", i), fresh, 1<<20, 3<<20, note[:i])
	}
	refuse("a longer one", fresh, 1<<20, 3<<20, append(bytes.Clone(note), 0))
	refuse("another range", fresh, 0, 3<<20, note)
	refuse("no digests", fresh, 1<<20, 3<<20, plain)
	refuse("another unit", convert.NewScanner(img, newMarks(512)).WithDigest(), 1<<20, 3<<20, note)
	refuse("another disk", convert.NewScanner(memory(t, disk[:4<<20], nil), nil).WithDigest(), 1<<20, 3<<20, note)
	if err := convert.NewScanner(img, nil).Learn(1<<20, 3<<20, note); err != nil {
		t.Errorf("more than is needed: %v", err)
	}
	if err := fresh.Learn(1<<20, 3<<20, note); err != nil || fresh.Stats().DataBytes == 0 {
		t.Errorf("the good one: %v, %+v", err, fresh.Stats())
	}
}

// FuzzLearn gives arbitrary notes: what is accepted is what Note would give back.
func FuzzLearn(f *testing.F) {
	disk := make([]byte, 5<<20)
	disk[0], disk[3<<20] = 1, 1
	img := memory(f, disk, nil)
	s := convert.NewScanner(img, nil).WithDigest()
	if _, err := s.ReadRange(context.Background(), make([]byte, 4<<20), 0); err != nil {
		f.Fatal(err)
	}
	note, err := s.Note(0, 4<<20)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(note[:len(note)-4])
	f.Fuzz(func(t *testing.T, note []byte) {
		// A checksum keeps a fuzzer out; it is not what is to be tested.
		note = convert.SealNote(note)
		s := convert.NewScanner(img, nil).WithDigest()
		if err := s.Learn(0, 4<<20, note); err != nil {
			if s.Stats() != (convert.ScanStats{}) {
				t.Fatalf("%v, but learned %+v", err, s.Stats())
			}
			return
		}
		if got, err := s.Note(0, 4<<20); err != nil || !bytes.Equal(got, note) {
			t.Fatalf("%x came back as %x, %v", note, got, err)
		}
	})
}

// TestDigestOfZVHD2 has the same digest in both formats.
func TestDigestOfZVHD2(t *testing.T) {
	disk := make([]byte, 7<<20+512)
	rand.NewChaCha8([32]byte{1}).Read(disk[3<<20 : 5<<20])
	var d convert.Digest
	_, err := convert.EncodeZVHD2(t.Context(), memory(t, disk, nil), io.Discard, convert.ZVHD2Options{Digest: &d})
	if err != nil || d.String() != referenceDigest(disk) {
		t.Errorf("%v, %v", d, err)
	}
}

// BenchmarkScan reads what is all data, with and without a digest.
func BenchmarkScan(b *testing.B) {
	disk := make([]byte, 64<<20)
	rand.NewChaCha8([32]byte{1}).Read(disk)
	img := memory(b, disk, nil)
	for _, digest := range []bool{false, true} {
		b.Run(fmt.Sprintf("digest=%t", digest), func(b *testing.B) {
			b.SetBytes(int64(len(disk)))
			for b.Loop() {
				s := convert.NewScanner(img, nil)
				if digest {
					s.WithDigest()
				}
				if err := convert.Scan(b.Context(), s, convert.ScanOptions{}, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// Data makes marks a marker that can be asked.
func (m *marks) Data(block int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.data[block]
}

// TestDigestConcurrently reads a disk from many goroutines, in ranges that share blocks.
func TestDigestConcurrently(t *testing.T) {
	disk := make([]byte, 8<<20)
	rand.NewChaCha8([32]byte{2}).Read(disk)
	s := convert.NewScanner(memory(t, disk, nil), newMarks(4<<20)).WithDigest()
	var wg sync.WaitGroup
	for off := int64(0); off < int64(len(disk)); off += 3 * convert.Grain {
		wg.Go(func() {
			n := min(3*convert.Grain, int64(len(disk))-off)
			if _, err := s.ReadRange(t.Context(), make([]byte, n), off); err != nil {
				t.Error(err)
			}
			if _, err := s.Note(off, n); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if d, err := s.Digest(t.Context()); err != nil || d.String() != referenceDigest(disk) || s.Stats().DataBytes != 8<<20 {
		t.Errorf("%v, %v, %+v", d, err, s.Stats())
	}
}
