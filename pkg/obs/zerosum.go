// SPDX-License-Identifier: Apache-2.0

package obs

import (
	"crypto/md5"
	"encoding"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"io"
	"sync"
)

// How far apart the states of an MD5 of zeros are, in bytes: those that are remembered, those that are
// known beforehand, and of these the first few.
const (
	zeroSumGrid   = 4 << 20
	zeroStateGrid = 64 << 20
	fineStateGrid = zeroSumGrid
)

// zeroSums knows the MD5 of n zeros, up to MaxPartSize without hashing more than zeroStateGrid of
// them. It remembers the hash's state at every step of a finer grid, for the many lengths of a plan.
type zeroSums struct {
	mu     sync.Mutex
	sums   map[int64]sum
	states map[int64][]byte // after that many times zeroSumGrid zeros
}

func (s *zeroSums) of(n int64) sum {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.sums[n]; ok {
		return v
	}
	if s.sums == nil {
		s.sums, s.states = map[int64]sum{}, map[int64][]byte{}
	}
	at := n / zeroSumGrid
	h := s.nearest(&at)
	for ; at < n/zeroSumGrid; at++ {
		_, _ = io.Copy(h, newZeros(zeroSumGrid)) // neither side can fail
		s.states[at+1], _ = h.(encoding.BinaryMarshaler).MarshalBinary()
	}
	_, _ = io.Copy(h, newZeros(n%zeroSumGrid))
	v := sum(h.Sum(nil))
	s.sums[n] = v
	return v
}

// nearest returns the MD5 after the largest known number of steps up to *at, and sets *at to that.
func (s *zeroSums) nearest(at *int64) hash.Hash {
	h := md5.New()
	for ; *at > 0; *at-- {
		state, ok := s.states[*at]
		if !ok {
			state = zeroState(*at * zeroSumGrid)
		}
		if state != nil && h.(encoding.BinaryUnmarshaler).UnmarshalBinary(state) == nil {
			break
		}
	}
	return h
}

// zeroState returns what an MD5's MarshalBinary returns after n zeros, nil when that is not known.
func zeroState(n int64) []byte {
	const digits = 2 * md5.Size
	table, grid := zeroStates, int64(zeroStateGrid)
	if n < zeroStateGrid {
		table, grid = fineStates, fineStateGrid
	}
	i := int(n / grid)
	if i < 1 || n%grid != 0 || i > len(table)/digits {
		return nil
	}
	words, err := hex.DecodeString(table[(i-1)*digits : i*digits])
	if err != nil {
		return nil
	}
	b := append([]byte("md5\x01"), words...)
	b = append(b, make([]byte, md5.BlockSize)...)
	return binary.BigEndian.AppendUint64(b, uint64(n))
}

// zeroStates are the four words of an MD5 after 64 MiB, 128 MiB, ... 5 GiB of zeros, in hexadecimal.
// Hashing that much takes ten seconds, in which no byte would move.
const zeroStates = "" +
	"f797d816ccf93c586a154951b4e7b96c5ba291ab041b4d3e0162aa5332a8c5eb1fa602bc1a57bcf1193a2a202f0b38a5" +
	"fc2a8d3bca31b9d9c68e258dbb341fdbf62f01509e07473a6b08bf166fd92c0c8051b9a76423760ef003129a77e7cbb0" +
	"2ac64bfdd994336fd3b23561a95e91d7f0407588ae350ce476d7e5b6161dc26fd4c5887059dba0e308f43ac122f9338c" +
	"2ba0877e1dc3bfadb272d1857ef3ed289e83c533a4ac665d8214e2deff4d62b4813722995f830de4764b01d65ee56b49" +
	"6ef9b2e0398b64fd9c502c3f6d6896a6d791db8b46e504d17b08edada75b386057dcdc6b4c28be708c4b25fcf7c63ccd" +
	"c0fb74d660e5541f75090577685bcce0604df35b0d100100e598a09743dabf04dbc78b557a653cc5f083900c46b8a1ec" +
	"1d37118d8a27c6d4b3c93af96f0f0714d2d32645fa1e5ba78e2cbd9df8010189f5e71af4651e520f4698db7f20ccfb2b" +
	"3d65efa4aa02a74e2a373df3b0e4a5c71710b45f336fbf361a7dd0cbea74f771190694742c34437ac2e30457b1cdc774" +
	"6de5b1e1616a88e6a4b4633eb87bbe3b2c616ea4befe9479c2689865a5c488427cdce9dff11b7e3b624094f2b59c0483" +
	"e9b4c5b00090ec93dadae86de7599ac2ac1034e58ae9a7a5c6309cccd0086a6e624d0ea29811481306eb76ecb4f0adcf" +
	"a88090206f56fdf13b7dccae74d04a5e706401ffbe0d3a36699330a2d762eaeccae4329bef5ebfbf28477ee0cb1b7699" +
	"26575327a38181a584fa50e5edfe928f3e9fba2deddc67be0e57aed8f23cca79355c353b9a9f81137181ee11363d1a37" +
	"fbb925a1fda2ace641fa5abe2e98728155577c2f3cb4254cd78045b6103bdbc0e539a65091bad83296b035f997d15c72" +
	"6f087f116a6d8dee486838d7042f7e6022bda4260ab9353a461f5694fe6fd4619408925c711155376ae0924a3eb38a62" +
	"035177fb8417d05344d8fb37eea29987d6a944b45caefb155aedef33c1549c745e88a7d7f5dcbace512663e605e6c831" +
	"6da729ae771d3b3d7460eb993ee04dcffb2b50870bf9b13c986077a12e2af4b61f265f71c1887f568b748e94d2686705" +
	"6ea711f9f3c5ab59b8eff9e4389a875a220c7ee69079f972df88856524bb65f050ce1ea987406be507fb2ee195cc4098" +
	"60a968ee7dddbafd169b271f541c043887d332bdcd638341be213ae682310f385983316b26b3ae761c71d592bbd3937d" +
	"28554a38f40703fb336a41f3295c1ec67835ee577754a50d765422cd60c742700d24db3c956ddce6d19ba17c73c41234" +
	"3b321b3235cb9180fb342b25fe73518e74774f3ed0ddfbce0877030a6a1b54687567ae580f47bd5540c06d47a6af148d" +
	"7dd59106850f04c00a10df0052c70584ceef0db54374e4c4824edec9e03e3e3a5cea27a7b0bcda38ad0978c331336065" +
	"bd2ded0aac54fc021857fcee61bb26ec569fa8dc4fc29377f6a53217404102b49c50f68ba048c342cc740f35dc123d6e" +
	"f0ee0e7573ed26eec83a8b242b7de4e65a9ab43439acb7eb1fe113ccc41a39d641e3dbaf92c6930b767e58e726bac4f7" +
	"d001f4dd2c8bad154fb50c25f7a255e48611f1c0ca0f07d37713c5c33ce1cec9629b5dc4610bf3a87a3272034c78613f" +
	"b83901c4eec26306f754da562cc9fbaaf9908e9f3d11eaf94afe50e46b2b0885dceacb6f27d04943cb712f1b848d50d4" +
	"433f6d581aa3e3d4e0768dd24c0bb2d7cc4dce6c415837f32b6af6b8457edfccc3b9aa9f82640de1f6ea716b49077890" +
	"6953a0d3ef6157fb18798efaffde45c37f8da2586a208add1760ecaa6717f461"

// fineStates are those after 4 MiB, 8 MiB, ... 60 MiB.
const fineStates = "" +
	"f33373afe85b8c25bca107904faf451e8c0e35964f29edb826a9c1a544e9df6a5d24063e15013bfdf56f9de13cc2f9d4" +
	"7725cf733acdc362a65558dddad59005a153e95dbf11e205d5f930080961aac7c464c7e025a9d4341e5b487b33ca098e" +
	"5e25a3e603ecf1e6c8aa84093c177202719976a77f248508affcf4e0bbc37dd7a8d32228ed6d369a0dae57e38d5a122c" +
	"3cd5feee83fbf50259ff8037ca10b1576be0eed0daf712f91759f982dba47be3d4cd0643065c1528b6315f1d47d30809" +
	"8203c591f0fe681760dbc1fba7675966800c22f39c13f991e5ce21ea2c8a5ff77419abe73c38b00948a010983f99dc77"
