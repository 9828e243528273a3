// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/imsprep/imsprep/bitmap"
)

// maxConfig bounds what is read as a configuration: a layout's literal bytes are in it.
const maxConfig = 16 << 20

// Config is the configuration file. It holds no secrets.
type Config struct {
	Version   int               `json:"version"` // 1
	Confirmed []confirmedLayout `json:"confirmed_bitmap_layouts"`
	// Concurrency and LimitRate are what the flags of these names are when nothing else says.
	Concurrency string `json:"concurrency,omitempty"`
	LimitRate   string `json:"limit_rate,omitempty"`
}

// confirmedLayout is a bitmap layout that a file of the vendor's own tool has confirmed.
type confirmedLayout struct {
	Name   string         `json:"name"`
	Region string         `json:"region,omitempty"` // empty for all regions
	Layout *LayoutSetting `json:"layout,omitempty"` // absent for a built-in layout
}

// LayoutSetting is a bitmap.Layout in a document.
type LayoutSetting struct {
	BlockSize int64  `json:"block_size"` // bytes
	BitOrder  string `json:"bit_order"`  // lsb-first, msb-first
	DataBit   uint8  `json:"data_bit"`
	PadBit    uint8  `json:"pad_bit"`
	WordBytes int    `json:"word_bytes"`
	BigEndian bool   `json:"big_endian"`
	PadTo     int64  `json:"pad_to"` // bytes, 0 for no padding
	TrimTail  bool   `json:"trim_tail"`
	Header    string `json:"header"`  // hexadecimal
	Trailer   string `json:"trailer"` // hexadecimal
}

// NewLayoutSetting describes a layout.
func NewLayoutSetting(l bitmap.Layout) *LayoutSetting {
	return &LayoutSetting{
		BlockSize: l.BlockSize, BitOrder: l.BitOrder.String(), DataBit: l.DataBit, PadBit: l.PadBit,
		WordBytes: l.Word.Bytes, BigEndian: l.Word.BigEndian, PadTo: l.PadTo, TrimTail: l.TrimTail,
		Header: hex.EncodeToString(l.Header), Trailer: hex.EncodeToString(l.Trailer),
	}
}

func (s *LayoutSetting) layout(name string) (bitmap.Layout, error) {
	l := bitmap.Layout{
		Name: name, BlockSize: s.BlockSize, DataBit: s.DataBit, PadBit: s.PadBit,
		Word: bitmap.Word{Bytes: s.WordBytes, BigEndian: s.BigEndian}, PadTo: s.PadTo, TrimTail: s.TrimTail,
	}
	switch s.BitOrder {
	case bitmap.LSBFirst.String():
	case bitmap.MSBFirst.String():
		l.BitOrder = bitmap.MSBFirst
	default:
		return l, fmt.Errorf("bitmap layout %q: unknown bit order %q", name, s.BitOrder)
	}
	var err error
	if l.Header, err = hex.DecodeString(s.Header); err != nil {
		return l, fmt.Errorf("bitmap layout %q: header: %w", name, err)
	}
	if l.Trailer, err = hex.DecodeString(s.Trailer); err != nil {
		return l, fmt.Errorf("bitmap layout %q: trailer: %w", name, err)
	}
	return l, l.Validate()
}

// ConfigPath is where the configuration lies, whether it exists or not.
func (o *Sources) ConfigPath() (string, error) {
	if path := o.Getenv("IMSPREP_CONFIG"); path != "" {
		return path, nil
	}
	dir := folder(o.ConfigDir)
	if dir == "" {
		return "", errors.New("no place for a configuration: IMSPREP_CONFIG can name one")
	}
	return filepath.Join(dir, "imsprep", "config.json"), nil
}

// Config reads the configuration; a file that doesn't exist is an empty one.
func (o *Sources) Config() (*Config, error) {
	c := &Config{Version: 1}
	path, err := o.ConfigPath()
	if err != nil {
		return c, nil // nowhere to have been saved to
	}
	switch fi, err := os.Stat(path); {
	case errors.Is(err, fs.ErrNotExist):
		return c, nil
	case err != nil:
		return nil, err
	case !fi.Mode().IsRegular(): // opening a pipe would wait for a writer
		return nil, usagef("the configuration %s isn't a file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, err
	}
	if err := c.parse(data); err != nil {
		return nil, usagef("the configuration %s: %w", path, err)
	}
	return c, nil
}

func (c *Config) parse(data []byte) error {
	if len(data) > maxConfig {
		return fmt.Errorf("more than %d bytes", maxConfig)
	}
	*c = Config{}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields() // a misspelt field would be taken for an absent one
	if err := dec.Decode(c); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("something follows the document")
	}
	if c.Version != 1 {
		return fmt.Errorf("version %d; this program knows version 1", c.Version)
	}
	for _, l := range c.Confirmed {
		if _, err := l.value(); err != nil {
			return err
		}
	}
	return nil
}

// value is the layout that an entry stands for. A built-in name can't be given another meaning.
func (c confirmedLayout) value() (bitmap.Layout, error) {
	builtIn, err := bitmap.Lookup(c.Name)
	switch {
	case c.Layout == nil:
		return builtIn, err
	case err == nil:
		return builtIn, fmt.Errorf("bitmap layout %q is built in and can't be defined", c.Name)
	case c.Name == "":
		return builtIn, errors.New("a bitmap layout without a name")
	}
	return c.Layout.layout(c.Name)
}

// confirmedIn returns the names of the layouts that are confirmed for a region.
func (c *Config) confirmedIn(region string) []string {
	var names []string
	for _, l := range c.Confirmed {
		if (l.Region == "" || l.Region == region) && !slices.Contains(names, l.Name) {
			names = append(names, l.Name)
		}
	}
	return names
}

// Confirm adds a layout, for one region or, with "", for all.
func (c *Config) Confirm(l bitmap.Layout, region string) {
	entry := confirmedLayout{Name: l.Name, Region: region}
	if _, err := bitmap.Lookup(l.Name); err != nil {
		entry.Layout = NewLayoutSetting(l)
	}
	c.Confirmed = slices.DeleteFunc(c.Confirmed, func(o confirmedLayout) bool {
		return o.Name == l.Name && o.Region == region
	})
	c.Confirmed = append(c.Confirmed, entry)
}

// SaveConfig replaces the configuration as a whole: another run sees the old one or the new one.
func (o *Sources) SaveConfig(c *Config) (path string, err error) {
	if path, err = o.ConfigPath(); err != nil {
		return "", err
	}
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return "", err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	f, err := os.CreateTemp(dir, ".config-*.json") // with mode 0600
	if err != nil {
		return "", err
	}
	_, err = f.Write(append(data, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return "", err
	}
	return path, nil
}

// LookupLayout finds a layout by name, in the configuration and among those built in.
func (o *Sources) LookupLayout(name string) (bitmap.Layout, error) {
	c, err := o.Config()
	if err != nil {
		return bitmap.Layout{}, err
	}
	for _, l := range c.Confirmed {
		if l.Name == name {
			return l.value()
		}
	}
	l, err := bitmap.Lookup(name)
	if err != nil {
		return l, &UsageError{err}
	}
	return l, nil
}
