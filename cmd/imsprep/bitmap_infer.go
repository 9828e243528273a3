// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/imsprep/imsprep/bitmap"
	"github.com/imsprep/imsprep/convert"
	"github.com/imsprep/imsprep/pkg/settings"
)

func (a *app) bitmapInferCommand() *cobra.Command {
	var save bool
	var region string
	cmd := &cobra.Command{
		Use:   "infer RAW REF.mf [RAW REF.mf ...]",
		Short: "Find the layout of bitmaps that another tool made",
		Long: `Infer reads RAW files and the bitmaps that the vendor's tool made of them, and searches for the
layouts that make exactly these bitmaps. One answer can be saved as confirmed with --save; of several
it tells which of the files of bitmap probes would separate them; of none it tells what is known, with
exit code 1.`,
		Example: `  imsprep bitmap infer small.raw small.mf
  imsprep bitmap infer a.raw a.mf b.raw b.mf --save --region cn-north-4`,
		Args: a.args(func(_ *cobra.Command, args []string) error {
			if len(args) == 0 || len(args)%2 != 0 {
				return errors.New("infer needs pairs of a RAW file and its bitmap")
			}
			return nil
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.usageHint = cmd.CommandPath()
			if region != "" && !save {
				return usagef("--region has a meaning only with --save")
			}
			return a.runBitmapInfer(cmd.Context(), args, save, region)
		},
	}
	cmd.Flags().BoolVar(&save, "save", false, "save the layout, if there is one answer, as confirmed")
	cmd.Flags().StringVar(&region, "region", "", "the region that --save confirms it for (default: all)")
	return cmd
}

// extentMarker gathers the sectors with data of a disk that is scanned, so that a large disk with
// little data costs little.
type extentMarker struct {
	mu   sync.Mutex
	data []bitmap.Extent
}

// maxExtents bounds the memory: 16 bytes each.
const maxExtents = 16 << 20

func (*extentMarker) BlockSize() int64 { return bitmap.MinBlockSize }

func (m *extentMarker) MarkRange(off, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if k := len(m.data) - 1; k >= 0 && m.data[k].Start+m.data[k].Length == off {
		m.data[k].Length += n
		return
	}
	if len(m.data) <= maxExtents {
		m.data = append(m.data, bitmap.Extent{Start: off, Length: n})
	}
}

// extents returns what was marked in order, neighbours merged.
func (m *extentMarker) extents() ([]bitmap.Extent, error) {
	if len(m.data) > maxExtents {
		return nil, usagef("its data is in more than %d pieces; take a smaller disk", maxExtents)
	}
	slices.SortFunc(m.data, func(a, b bitmap.Extent) int { return cmp.Compare(a.Start, b.Start) })
	out := m.data[:0]
	for _, e := range m.data {
		if k := len(out) - 1; k >= 0 && out[k].Start+out[k].Length == e.Start {
			out[k].Length += e.Length
		} else {
			out = append(out, e)
		}
	}
	return out, nil
}

// readPair reads a RAW file's data map and the bitmap that goes with it.
func (a *app) readPair(ctx context.Context, raw, mf string) (bitmap.Pair, error) {
	p := bitmap.Pair{Name: raw}
	for _, path := range []string{raw, mf} {
		if fi, err := os.Stat(path); err != nil {
			return p, err
		} else if path == mf && !fi.Mode().IsRegular() {
			return p, usagef("%q isn't a file", path)
		} else if path == raw {
			p.VirtualSize = fi.Size()
		}
	}
	f, err := os.Open(mf)
	if err != nil {
		return p, err
	}
	defer f.Close()
	if p.File, err = io.ReadAll(io.LimitReader(f, bitmap.DefaultMaxFile+1)); err != nil || p.VirtualSize == 0 {
		return p, err // an empty file is a probe, but no disk
	}
	// Whatever the content looks like: the other tool read it as RAW.
	disk, err := convert.Open(ctx, raw, convert.OpenOptions{Format: formatRAW})
	if err != nil {
		return p, err
	}
	defer disk.Close()
	p.VirtualSize = disk.Size()
	var m extentMarker
	done := a.localProgress(phaseScan, disk.Size())
	err = convert.Scan(ctx, convert.NewScanner(disk, &m), convert.ScanOptions{Progress: done.add}, nil)
	done.close(err)
	if err != nil {
		return p, err
	}
	if p.Data, err = m.extents(); err != nil {
		return p, fmt.Errorf("%s: %w", raw, err)
	}
	return p, disk.CheckUnchanged()
}

// inferLayout is a layout in the document of `bitmap infer`.
type inferLayout struct {
	Name string `json:"name"`
	*settings.LayoutSetting
}

type inferResult struct {
	Pairs       int               `json:"pairs"`
	Layouts     []inferLayout     `json:"layouts"`
	Equivalent  int               `json:"equivalent"`
	Incomplete  bool              `json:"incomplete"`
	Separating  []inferSeparation `json:"separating_probes,omitempty"`
	Evidence    []inferEvidence   `json:"evidence,omitempty"`
	Correlation *inferCorrelation `json:"correlation,omitempty"`
	Saved       string            `json:"saved,omitempty"` // path of the configuration
}

type inferSeparation struct {
	Probe string `json:"probe"`
	Files int    `json:"files"` // different bitmaps that the layouts make of it
}

type inferEvidence struct {
	Path        string `json:"path"`
	VirtualSize int64  `json:"virtual_size"`
	DataBytes   int64  `json:"data_bytes"`
	Length      int64  `json:"length"`
	First       string `json:"first"` // hexadecimal
	Ones        int64  `json:"ones"`
}

type inferCorrelation struct {
	Path        string  `json:"path"`
	BlockSize   int64   `json:"block_size"`
	BitOrder    string  `json:"bit_order"`
	Offset      int64   `json:"offset"`
	Coefficient float64 `json:"coefficient"`
	Agree       int64   `json:"agree"`
	Blocks      int64   `json:"blocks"`
}

func newInferResult(pairs int, r bitmap.Inference) inferResult {
	out := inferResult{Pairs: pairs, Layouts: []inferLayout{}, Equivalent: r.Equivalent, Incomplete: r.Incomplete}
	for _, l := range r.Layouts {
		out.Layouts = append(out.Layouts, inferLayout{l.Name, settings.NewLayoutSetting(l)})
	}
	for _, s := range r.Separating {
		out.Separating = append(out.Separating, inferSeparation{s.Probe.Name, s.Files})
	}
	for _, e := range r.Evidence {
		out.Evidence = append(out.Evidence, inferEvidence{e.Name, e.VirtualSize, e.Data, e.Length, hex.EncodeToString(e.First), e.Ones})
	}
	if c := r.Best; c != nil {
		out.Correlation = &inferCorrelation{c.Pair, c.BlockSize, c.BitOrder.String(), c.Offset, c.Coefficient, c.Agree, c.Blocks}
	}
	return out
}

func (a *app) runBitmapInfer(ctx context.Context, args []string, save bool, region string) error {
	var pairs []bitmap.Pair
	for i := 0; i < len(args); i += 2 {
		p, err := a.readPair(ctx, args[i], args[i+1])
		if err != nil {
			return err
		}
		pairs = append(pairs, p)
	}
	found, err := bitmap.Infer(pairs, bitmap.InferOptions{})
	if err != nil {
		return err
	}
	res := newInferResult(len(pairs), found)
	unique := len(found.Layouts) == 1 && !found.Incomplete
	if save && unique {
		c, err := a.sources().Config()
		if err != nil {
			return err
		}
		c.Confirm(found.Layouts[0], region)
		if res.Saved, err = a.sources().SaveConfig(c); err != nil {
			return err
		}
	}
	if a.flags.json {
		err = a.printJSON(res)
	} else {
		err = a.printInference(res)
	}
	switch {
	case err != nil:
		return err
	case len(found.Layouts) == 0 && found.Incomplete:
		return errors.New("no layout was found within the bounds of the search")
	case len(found.Layouts) == 0:
		return errors.New("no known kind of layout makes these bitmaps")
	case save && !unique:
		return errors.New("nothing was saved: more than one layout is possible; add pairs")
	case res.Saved != "":
		a.say("saved as confirmed: %s in %s", found.Layouts[0].Name, res.Saved)
	}
	return nil
}

func (a *app) printInference(r inferResult) error {
	var fields []field
	for _, l := range r.Layouts {
		fields = append(fields, field{"layout " + l.Name, describeLayout(l.LayoutSetting)})
	}
	if r.Incomplete && len(r.Layouts) > 0 {
		fields = append(fields, field{"and more", "the search met its bounds; more pairs narrow it"})
	}
	for i, s := range r.Separating {
		if i == 5 {
			break
		}
		fields = append(fields, field{"separated by", fmt.Sprintf("probe %s, of which they make %d different bitmaps", s.Probe, s.Files)})
	}
	for _, e := range r.Evidence {
		fields = append(fields, field{e.Path, fmt.Sprintf("disk of %s, %s of data; bitmap of %d bytes, %d bits set\nbegins with %s",
			size(e.VirtualSize), size(e.DataBytes), e.Length, e.Ones, e.First)})
	}
	if c := r.Correlation; c != nil {
		fields = append(fields, field{"best fit", fmt.Sprintf("in %s, from byte %d, %s, blocks of %s: %d of %d bits agree (correlation %.3f)",
			c.Path, c.Offset, c.BitOrder, size(c.BlockSize), c.Agree, c.Blocks, c.Coefficient)})
	}
	return printFields(a.out, fields)
}

// describeLayout is a layout in words.
func describeLayout(s *settings.LayoutSetting) string {
	words := []string{
		"blocks of " + size(s.BlockSize), s.BitOrder, fmt.Sprintf("%d is data", s.DataBit), fmt.Sprintf("%d past the end", s.PadBit),
	}
	if s.WordBytes > 1 {
		order := "little"
		if s.BigEndian {
			order = "big"
		}
		words = append(words, fmt.Sprintf("%s-endian words of %d bytes", order, s.WordBytes))
	}
	if s.PadTo > 0 {
		words = append(words, fmt.Sprintf("padded to %d bytes", s.PadTo))
	}
	if s.TrimTail {
		words = append(words, "trailing zeros dropped")
	}
	for _, literal := range []struct{ name, hex string }{{"header", s.Header}, {"trailer", s.Trailer}} {
		if n := len(literal.hex) / 2; n > 0 {
			words = append(words, fmt.Sprintf("%s of %d bytes (%.32s)", literal.name, n, literal.hex))
		}
	}
	return strings.Join(words, ", ")
}
