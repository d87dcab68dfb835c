// Small register moves shared by the files of this path. Everything is static: these files are compiled with instructions that the
// rest of the library must not get through a shared inline function.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "affine.h"

#define ESBNN_INLINE static inline __attribute__((always_inline))

namespace esbnn {
namespace affine {

// Eight channels' words of a map, lane i = channel + i, zero where `real` is not set. Eight channels may straddle two blocks of 64.
ESBNN_INLINE __m512i load_lanes(const BitMap& map, std::int64_t channel, std::int64_t word, __mmask8 real) {
    const std::int64_t lane = channel & 63;
    const std::uint64_t* p = map.words + (channel >> 6) * map.block_stride() + word * kBitMapPitch;
    if (lane <= 56) return _mm512_maskz_loadu_epi64(real, p + lane);
    const int here = static_cast<int>(64 - lane);
    const __mmask8 low = static_cast<__mmask8>(real & ((1u << here) - 1));
    const __m512i v = _mm512_maskz_loadu_epi64(low, p + lane);
    return _mm512_mask_loadu_epi64(v, static_cast<__mmask8>(real & ~low & (0xFFu << here)), p + map.block_stride() - here);
}

ESBNN_INLINE void store_lanes(const BitMap& map, std::int64_t channel, std::int64_t word, __mmask8 real, __m512i v) {
    const std::int64_t lane = channel & 63;
    std::uint64_t* p = map.words + (channel >> 6) * map.block_stride() + word * kBitMapPitch;
    if (lane <= 56) {
        _mm512_mask_storeu_epi64(p + lane, real, v);
        return;
    }
    const int here = static_cast<int>(64 - lane);
    _mm512_mask_storeu_epi64(p + lane, static_cast<__mmask8>(real & ((1u << here) - 1)), v);
    _mm512_mask_storeu_epi64(p + map.block_stride() - here, static_cast<__mmask8>(real & (0xFFu << here)), v);
}

ESBNN_INLINE __m512i xor3(__m512i a, __m512i b, __m512i c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
ESBNN_INLINE __m512i majority(__m512i a, __m512i b, __m512i c) { return _mm512_ternarylogic_epi64(a, b, c, 0xE8); }

// 8x8 transpose of qwords: lane j of r[i] goes to lane i of r[j].
ESBNN_INLINE void transpose_qwords(__m512i r[8]) {
    __m512i t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm512_unpacklo_epi64(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi64(r[i], r[i + 1]);
    }
    for (int i = 0; i < 2; ++i) {
        const __m512i a = _mm512_shuffle_i64x2(t[i], t[2 + i], 0x44), b = _mm512_shuffle_i64x2(t[4 + i], t[6 + i], 0x44);
        const __m512i c = _mm512_shuffle_i64x2(t[i], t[2 + i], 0xEE), d = _mm512_shuffle_i64x2(t[4 + i], t[6 + i], 0xEE);
        r[i] = _mm512_shuffle_i64x2(a, b, 0x88);
        r[2 + i] = _mm512_shuffle_i64x2(a, b, 0xDD);
        r[4 + i] = _mm512_shuffle_i64x2(c, d, 0x88);
        r[6 + i] = _mm512_shuffle_i64x2(c, d, 0xDD);
    }
}

// vpermb index of the 8x8 transpose of bytes: destination byte 8g+b takes source byte 8b+g; reversed: 8g+7-b takes 8b+g.
struct ByteIndex {
    alignas(64) std::uint8_t at[64];
    constexpr explicit ByteIndex(bool reversed) : at() {
        for (int g = 0; g < 8; ++g)
            for (int b = 0; b < 8; ++b) at[8 * g + (reversed ? 7 - b : b)] = static_cast<std::uint8_t>(8 * b + g);
    }
};
static constexpr ByteIndex kStraightBytes(false), kReversedBytes(true);

// Byte b to all eight bytes of qword b.
struct BlockIndex {
    alignas(64) std::uint8_t at[64];
    constexpr BlockIndex() : at() {
        for (int i = 0; i < 64; ++i) at[i] = static_cast<std::uint8_t>(i / 8);
    }
};
static constexpr BlockIndex kBlockBytes;

ESBNN_INLINE __m512i transpose_bytes(__m512i v) { return _mm512_permutexvar_epi8(_mm512_load_si512(kStraightBytes.at), v); }
ESBNN_INLINE __m512i transpose_bytes_reversed(__m512i v) { return _mm512_permutexvar_epi8(_mm512_load_si512(kReversedBytes.at), v); }

// The bit-transposing data of gf2p8affineqb: with the matrix in `m`, byte r of the result has as bit i bit r of m.byte[7-i].
ESBNN_INLINE __m512i transpose_bits(__m512i m) { return _mm512_gf2p8affine_epi64_epi8(_mm512_set1_epi64(static_cast<long long>(0x8040201008040201ULL)), m, 0); }

}  // namespace affine
}  // namespace esbnn
