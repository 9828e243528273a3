// SPDX-License-Identifier: Apache-2.0

package vhdx_test

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/imsprep/imsprep/convert/vhdx"
)

// maxHostileAlloc is what opening a hostile image may allocate, in bytes.
const maxHostileAlloc = 64 << 20

// refused checks that the image is refused, by an Error with the words, without much memory or
// reading.
func refused(t *testing.T, s *store, o vhdx.Options, want string) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	s.count, s.read = true, 0
	_, err := vhdx.Preflight(context.Background(), s, s.size, o)
	runtime.ReadMemStats(&after)
	var e *vhdx.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want it refused", err)
	}
	if !strings.Contains(e.Reason, want) {
		t.Errorf("refused for %q, want a reason with %q", e.Reason, want)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > maxHostileAlloc {
		t.Errorf("allocated %d bytes, want at most %d", n, maxHostileAlloc)
	}
	if s.read > 2*s.size {
		t.Errorf("read %d bytes of a file of %d", s.read, s.size)
	}
}

// TestHostile is a table of what broke readers before.
func TestHostile(t *testing.T) {
	d := &disk{size: 4 * mib, block: mib, sector: 512, states: map[int64]uint64{0: 6, 2: 6}, order: []int64{0, 2},
		hot: map[int64]bool{1: true}}
	dynamic := d.write()
	if _, _, err := open(dynamic, nil); err != nil {
		t.Fatalf("the base of the cases must be right: %v", err)
	}
	child := *d
	child.child, child.present = true, func(int64) bool { return true }
	child.states = map[int64]uint64{0: 7, 2: 6}
	child.locator = [][2]string{{"parent_linkage", "{" + idParent + "}"}}
	differencing := child.write()
	if _, _, err := open(differencing, child.parent()); err != nil {
		t.Fatalf("the base of the cases must be right: %v", err)
	}
	const bitmapEntry = batAt + 8*4096
	locatorAt := int64(itemsAt + 8 + 8 + 4 + 4 + 16)

	header := func(put func(s *store, at int64)) func(s *store) {
		return func(s *store) {
			put(s, 64*kib)
			put(s, 128*kib)
			s.sealAll()
		}
	}
	region := func(put func(s *store, at int64)) func(s *store) {
		return func(s *store) {
			put(s, 192*kib)
			put(s, 256*kib)
			s.sealAll()
		}
	}
	addRegion := func(offset, length, flags uint32, id string) func(s *store) {
		return region(func(s *store, at int64) {
			s.put32(at+8, 3)
			s.put(at+80, guidBytes(id)...)
			s.put64(at+96, uint64(offset))
			s.put32(at+104, length)
			s.put32(at+108, flags)
		})
	}
	put16 := func(at int64, v uint16) func(s *store) { return func(s *store) { s.put16(at, v) } }
	put32 := func(at int64, v uint32) func(s *store) { return func(s *store) { s.put32(at, v) } }
	put64 := func(at int64, v uint64) func(s *store) { return func(s *store) { s.put64(at, v) } }
	addItem := func(id string, offset, length, flags uint32) func(s *store) {
		return func(s *store) {
			s.put16(metadataAt+10, 6)
			e := int64(metadataAt + 32 + 32*5)
			s.put(e, guidBytes(id)...)
			s.put32(e+16, offset)
			s.put32(e+20, length)
			s.put32(e+24, flags)
		}
	}
	// log uses the log with one entry that update changes before it is written.
	log := func(change func(entry []byte) []byte, updates ...update) func(s *store) {
		return func(s *store) {
			e := logEntry(idLog, 7, 0, s.size, s.size, updates)
			if change != nil {
				e = change(e)
			}
			s.putLog(0, e)
			s.useLog()
		}
	}
	sealed := func(change func(p []byte)) func([]byte) []byte {
		return func(p []byte) []byte {
			change(p)
			sealEntry(p)
			return p
		}
	}
	sector := update{at: batAt, data: make([]byte, 4096)}
	const none = "no complete sequence"

	for _, tc := range []struct {
		name  string
		base  *store
		spoil func(s *store)
		want  string
	}{
		{"empty", dynamic, func(s *store) { s.truncate(0) }, "too short"},
		{"short", dynamic, func(s *store) { s.truncate(mib - 1) }, "too short"},
		{"signature", dynamic, func(s *store) { s.put(7, 'E') }, "signature"},
		{"huge", dynamic, func(s *store) { s.size = 1 << 60 }, "limit"},

		{"both headers bad", dynamic, func(s *store) { s.put(64*kib+9, 1); s.put(128*kib+9, 1) }, "header"},
		{"header signatures", dynamic, header(func(s *store, at int64) { s.put(at, 'H') }), "header"},
		{"equal sequence numbers", dynamic, func(s *store) {
			s.put64(64*kib+8, 6)
			s.put(64*kib+16, 1)
			s.sealAll()
		}, "sequence number 6"},
		{"version 2", dynamic, header(func(s *store, at int64) { s.put16(at+66, 2) }), "version"},
		{"version 0", dynamic, header(func(s *store, at int64) { s.put16(at+66, 0) }), "version"},

		{"both region tables bad", dynamic, func(s *store) { s.put(192*kib+9, 1); s.put(256*kib+9, 1) }, "region table"},
		{"region count 2048", dynamic, region(func(s *store, at int64) { s.put32(at+8, 2048) }), "2048 entries"},
		{"region count 0xFFFFFFFF", dynamic, region(func(s *store, at int64) { s.put32(at+8, 1<<32-1) }), "entries"},
		{"no region", dynamic, region(func(s *store, at int64) { s.put32(at+8, 0) }), "lacks"},
		{"no BAT", dynamic, region(func(s *store, at int64) { s.put32(at+8, 1) }), "lacks"},
		{"regions overlap", dynamic, region(func(s *store, at int64) { s.put64(at+64, metadataAt) }), "overlaps"},
		{"region over the log", dynamic, region(func(s *store, at int64) { s.put64(at+64, logAt) }), "overlaps"},
		{"region in the headers", dynamic, region(func(s *store, at int64) { s.put64(at+64, 0) }), "region"},
		{"region off a MB", dynamic, region(func(s *store, at int64) { s.put64(at+64, batAt+4096) }), "region"},
		{"region beyond the end", dynamic, region(func(s *store, at int64) { s.put64(at+64, 1<<40) }), "region"},
		{"region at 2^64-1 MB", dynamic, region(func(s *store, at int64) { s.put64(at+64, offsetAll) }), "region"},
		{"region length 0", dynamic, region(func(s *store, at int64) { s.put32(at+72, 0) }), "region"},
		{"region length 4 GiB - 1 MB", dynamic, region(func(s *store, at int64) { s.put32(at+72, 1<<32-mib) }), "region"},
		{"region twice", dynamic, addRegion(4*mib, mib, 0, idBAT), "twice"},
		{"required unknown region", dynamic, addRegion(4*mib, mib, 1, idLog), "unknown region"},
		{"block in an unknown region", dynamic, addRegion(4*mib, mib, 0, idLog), "overlaps the region " + idLog},

		{"metadata signature", dynamic, func(s *store) { s.put(metadataAt, 'M') }, "signature"},
		{"metadata count 2048", dynamic, put16(metadataAt+10, 2048), "2048 entries"},
		{"metadata count 65535", dynamic, put16(metadataAt+10, 65535), "entries"},
		{"metadata count 0", dynamic, put16(metadataAt+10, 0), "missing"},
		{"metadata offset 0xFFFFFFFF", dynamic, put32(metadataAt+32+16, 1<<32-1), "metadata item"},
		{"metadata offset in the table", dynamic, put32(metadataAt+32+16, 32), "metadata item"},
		{"metadata length 0xFFFFFFFF", dynamic, put32(metadataAt+32+20, 1<<32-1), "metadata item"},
		{"metadata length 4", dynamic, put32(metadataAt+32+20, 4), "too short"},
		{"metadata items overlap", dynamic, put32(metadataAt+32+32+16, 64*kib+4), "overlaps"},
		{"metadata item twice", dynamic, addItem("2fa54224-cd1b-4876-b211-5dbed83bf4b8", 128*kib, 8, 6), "twice"},
		{"required unknown item", dynamic, addItem(idLog, 128*kib, 8, 4), "unknown metadata item"},
		{"required user item", dynamic, addItem("2fa54224-cd1b-4876-b211-5dbed83bf4b8", 128*kib, 8, 5), "unknown"},
		{"parent locator without the flag", dynamic,
			addItem("a8d35f2d-b30b-454d-abf7-d3d84834ab0c", 128*kib, 8, 4), "differencing"},
		{"parent flag without a locator", dynamic, put32(itemsAt+4, 2), "differencing"},
		{"unknown file parameters", dynamic, put32(itemsAt+4, 4), "unknown bits"},

		{"block size 0", dynamic, put32(itemsAt, 0), "block size 0"},
		{"block size 3 MB", dynamic, put32(itemsAt, 3*mib), "block size"},
		{"block size 512 MB", dynamic, put32(itemsAt, 512*mib), "block size"},
		{"block size 512 KiB", dynamic, put32(itemsAt, 512*kib), "block size"},
		{"logical sector size 0", dynamic, put32(itemsAt+16, 0), "logical sector size 0"},
		{"logical sector size 513", dynamic, put32(itemsAt+16, 513), "logical sector size 513"},
		{"physical sector size 0", dynamic, put32(itemsAt+20, 0), "physical sector size 0"},
		{"size not a multiple", dynamic, put64(itemsAt+8, 4*mib-1), "virtual disk size"},
		{"size not a multiple of 4096", dynamic, func(s *store) {
			s.put32(itemsAt+16, 4096)
			s.put64(itemsAt+8, 4*mib-512)
		}, "virtual disk size"},
		{"size 0", dynamic, put64(itemsAt+8, 0), "virtual disk size"},
		{"size 2^64-512", dynamic, put64(itemsAt+8, 1<<64-512), "virtual disk size"},
		{"size above 64 TiB", dynamic, put64(itemsAt+8, 64<<40+512), "virtual disk size"},
		{"BAT too short", dynamic, put64(itemsAt+8, 64<<40), "too few"},

		{"state 4", dynamic, put64(batAt+8, 4), "state 4"},
		{"state 5", dynamic, put64(batAt+8, 5), "state 5"},
		{"state 7", dynamic, put64(batAt+8, 4*mib|7), "partially present"},
		{"block in the headers", dynamic, put64(batAt+8, 6), "overlaps the header section at 0"},
		{"block in the log", dynamic, put64(batAt+8, logAt|6), "overlaps the log"},
		{"block in the metadata", dynamic, put64(batAt+8, metadataAt|6), "overlaps the metadata region"},
		{"block in the BAT", dynamic, put64(batAt+8, batAt|6), "overlaps the block allocation table"},
		{"block beyond the end", dynamic, put64(batAt+8, 1<<40|6), "truncated"},
		{"block at 2^63", dynamic, put64(batAt+8, 1<<63|6), "truncated"},
		{"block at 2^64-1 MB", dynamic, put64(batAt+8, offsetAll|6), "truncated"},
		{"equal blocks", dynamic, func(s *store) { s.put64(batAt+8, s.get64(batAt)) }, "overlaps another block"},
		{"truncated", dynamic, func(s *store) { s.truncate(s.size - 4096) }, "truncated"},
		{"overlapping blocks", dynamic, func(s *store) {
			s.put32(itemsAt, 2*mib)
			s.truncate(16 * mib)
			s.put64(batAt+8, s.get64(batAt)+mib)
		}, "overlaps another block"},

		{"sector bitmap missing", differencing, put64(bitmapEntry, 0), "sector bitmap"},
		{"sector bitmap state 1", differencing, put64(bitmapEntry, 1), "sector bitmap"},
		{"sector bitmap state 7", differencing, put64(bitmapEntry, 7), "sector bitmap"},
		{"sector bitmap beyond the end", differencing, put64(bitmapEntry, 1<<40|6), "truncated"},
		{"sector bitmap over a block", differencing, func(s *store) { s.put64(bitmapEntry, s.get64(batAt)&^7|6) }, "overlaps"},
		{"child state 5", differencing, put64(batAt+8, 5), "state 5"},
		{"locator type", differencing, func(s *store) { s.put(locatorAt, 0) }, "unknown type"},
		{"locator count", differencing, put16(locatorAt+18, 65535), "too short"},
		{"locator key offset", differencing, put32(locatorAt+20, 1<<32-1), "entry 0"},
		{"locator value offset", differencing, put32(locatorAt+24, 1<<32-1), "entry 0"},
		{"locator key length", differencing, put16(locatorAt+28, 65535), "entry 0"},
		{"flag without locator", differencing, put16(metadataAt+10, 5), "contradict"},
		{"locator without flag", differencing, put32(itemsAt+4, 0), "contradict"},

		{"log length 0", dynamic, func(s *store) {
			header(func(s *store, at int64) { s.put32(at+68, 0) })(s)
			s.useLog()
		}, "log length 0"},
		{"log length 1", dynamic, header(func(s *store, at int64) { s.put32(at+68, 1) }), "log length 1"},
		{"log length 4 GiB - 1 MB", dynamic, header(func(s *store, at int64) { s.put32(at+68, 1<<32-mib) }), "the log"},
		{"log length above the limit", dynamic, func(s *store) {
			header(func(s *store, at int64) { s.put32(at+68, 129*mib) })(s)
			s.useLog()
		}, "log length"},
		{"log at 0", dynamic, header(func(s *store, at int64) { s.put64(at+72, 0) }), "the log"},
		{"log off a MB", dynamic, header(func(s *store, at int64) { s.put64(at+72, logAt+512) }), "the log"},
		{"log at 2^63", dynamic, header(func(s *store, at int64) { s.put64(at+72, 1<<63) }), "the log"},
		{"log beyond the end", dynamic, header(func(s *store, at int64) { s.put64(at+72, 1<<40) }), "the log"},
		{"log version 1", dynamic, func(s *store) {
			header(func(s *store, at int64) { s.put16(at+64, 1) })(s)
			log(nil)(s)
		}, "log version 1"},
		{"log empty", dynamic, func(s *store) { s.useLog() }, none},
		{"log of another GUID", dynamic, func(s *store) {
			s.putLog(0, logEntry(idData, 7, 0, s.size, s.size, nil))
			s.useLog()
		}, none},
		{"log entry length 0", dynamic, log(sealed(func(p []byte) { le.PutUint32(p[8:], 0) })), none},
		{"log entry length 1", dynamic, log(sealed(func(p []byte) { le.PutUint32(p[8:], 1) })), none},
		{"log entry larger than the ring", dynamic, log(sealed(func(p []byte) { le.PutUint32(p[8:], 2*mib) })), none},
		{"log entry length 0xFFFFF000", dynamic, log(sealed(func(p []byte) { le.PutUint32(p[8:], 1<<32-4096) })), none},
		{"log count 0xFFFFFFFF", dynamic, log(sealed(func(p []byte) { le.PutUint32(p[24:], 1<<32-1) })), none},
		{"log count without room for data", dynamic,
			log(func(p []byte) []byte {
				p = p[:4096]
				le.PutUint32(p[8:], 4096)
				sealEntry(p)
				return p
			}, sector), "behind the entry"},
		{"log sequence number 0", dynamic, log(sealed(func(p []byte) { le.PutUint64(p[16:], 0) })), none},
		{"log checksum", dynamic, log(func(p []byte) []byte { p[4]++; return p }), none},
		{"log tail elsewhere", dynamic, log(sealed(func(p []byte) { le.PutUint32(p[12:], 4096) })), none},
		{"log tail off a sector", dynamic, log(sealed(func(p []byte) { le.PutUint32(p[12:], 1) })), none},
		{"log tail behind the ring", dynamic, log(sealed(func(p []byte) { le.PutUint32(p[12:], mib) })), none},
		{"log torn sector", dynamic, log(func(p []byte) []byte { clear(p[6000:]); return p }, sector), none},
		{"log torn sector with a good checksum", dynamic, log(sealed(func(p []byte) { clear(p[6000:]) }), sector), "data sector"},
		{"log data signature", dynamic, log(sealed(func(p []byte) { p[4096] = 'D' }), sector), "data sector"},
		{"log descriptor signature", dynamic, log(sealed(func(p []byte) { p[64] = 'D' }), sector), "signature"},
		{"log descriptor number", dynamic, log(sealed(func(p []byte) { p[64+24]++ }), sector), "sequence number"},
		{"log flushed size beyond the file", dynamic, log(sealed(func(p []byte) { le.PutUint64(p[48:], 64*mib) })), "truncated"},
		{"log flushed size 2^64-1", dynamic, log(sealed(func(p []byte) { le.PutUint64(p[48:], 1<<64-1) })), "truncated"},
		{"log last size 2^64-1", dynamic, log(sealed(func(p []byte) { le.PutUint64(p[56:], 1<<64-1) })), "limit"},
		{"log target 0", dynamic, log(nil, update{data: make([]byte, 4096)}), "update"},
		{"log target in the headers", dynamic, log(nil, update{at: 128 * kib, data: make([]byte, 4096)}), "update"},
		{"log target 2^63", dynamic, log(nil, update{at: -1 << 63, data: make([]byte, 4096)}), "update"},
		{"log target off a sector", dynamic, log(nil, update{at: batAt + 512, data: make([]byte, 4096)}), "update"},
		{"log target above the limit", dynamic, log(nil, update{at: 1 << 60, data: make([]byte, 4096)}), "update"},
		{"log zeros above the limit", dynamic, log(nil, update{at: batAt, zeros: 1 << 60}), "update"},
		{"log zeros of 2^64-4096", dynamic, log(nil, update{at: batAt, zeros: -4096}), "update"},
		{"log zeros of 100 bytes", dynamic, log(nil, update{at: batAt, zeros: 100}), "update"},
		{"log zeros over the region tables", dynamic, log(nil, update{at: 192 * kib, zeros: 128 * kib}), "region table"},
		{"log of a huge range of zeros", dynamic, log(nil, update{at: metadataAt, zeros: 1 << 46}), "metadata"},
		{"log of a rival sequence of the same numbers", dynamic, func(s *store) {
			s.putLog(0, logEntry(idLog, 7, 0, s.size, s.size, []update{{at: batAt, data: bytes.Repeat([]byte{4}, 4096)}}))
			s.putLog(64*kib, logEntry(idLog, 6, 64*kib, s.size, s.size, nil))
			s.useLog()
		}, "state 4"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := tc.base.clone()
			tc.spoil(s)
			refused(t, s, vhdx.Options{AllowParent: tc.base == differencing}, tc.want)
			if tc.want != "differencing" {
				return
			}
			refused(t, s, vhdx.Options{AllowParent: true}, "contradict")
		})
	}
	t.Run("limit", func(t *testing.T) {
		refused(t, dynamic.clone(), vhdx.Options{MaxVirtualSize: 4*mib - 512}, "limit")
	})
}

// TestHostileLogs are logs that would take time by the square of their length or worse.
func TestHostileLogs(t *testing.T) {
	const ring = 16 * mib
	base := func() *store {
		s := (&disk{size: 4 * mib, block: mib, sector: 512}).write()
		s.truncate(32 * mib)
		for _, at := range []int64{64 * kib, 128 * kib} {
			s.put32(at+68, ring)
			s.put64(at+72, 8*mib)
		}
		s.useLog()
		return s
	}
	each := func(s *store, entry func(position int64) []byte) {
		for position := int64(0); position < ring; position += 4096 {
			s.put(8*mib+position, entry(position)...)
		}
	}
	t.Run("every sector begins an entry as long as the ring", func(t *testing.T) {
		s := base()
		e := logEntry(idLog, 1, 0, 0, 0, nil)
		le.PutUint32(e[8:], ring)
		each(s, func(int64) []byte { return e })
		refused(t, s, vhdx.Options{}, "no complete sequence")
	})
	t.Run("one run of entries whose tail is missing", func(t *testing.T) {
		s := base()
		each(s, func(p int64) []byte {
			if p >= ring/2 {
				return nil
			}
			return logEntry(idLog, uint64(p/4096)+1, ring/2, 0, 0, nil)
		})
		refused(t, s, vhdx.Options{}, "no complete sequence")
	})
	t.Run("ranges of zeros over each other", func(t *testing.T) {
		s := base()
		var zeros []update
		for i := range int64(100000) {
			zeros = append(zeros, update{at: mib + 4096*i, zeros: 1<<40 - 8192*i})
		}
		for i, e := 0, logEntry(idLog, 1, 0, 0, 0, zeros); i < len(e); i += 4096 {
			s.put(8*mib+int64(i), e[i:i+4096]...)
		}
		refused(t, s, vhdx.Options{}, "metadata")
	})
	t.Run("more updates than are kept", func(t *testing.T) {
		s := base()
		e := logEntry(idLog, 1, 0, 0, 0, make([]update, 500000))
		for i := 64; i < 64+32*500000; i += 32 {
			le.PutUint64(e[i+8:], 4096)
			le.PutUint64(e[i+16:], batAt)
		}
		sealEntry(e)
		for i := 0; i < len(e); i += 4096 {
			s.put(8*mib+int64(i), e[i:i+4096]...)
		}
		refused(t, s, vhdx.Options{}, "updates")
	})
}
