// Count planes to u16 counts, by 8x8 bit transposes across registers.
#pragma once

#include "sums.h"

namespace esbnn {
namespace affine {

// One swap stage: distance `d` registers and bits; only the first `used` registers of each 2d hold anything but zero.
template <int d, int used>
ESBNN_INLINE void swap_stage(__m512i r[8]) {
    const __m512i mask = _mm512_set1_epi8(d == 4 ? 0x0F : d == 2 ? 0x33 : 0x55);
    for (int i = 0; i < 8; ++i) {
        if ((i & d) != 0) continue;
        const int inside = i & (2 * d - 1);
        if (inside + d < used) {
            const __m512i a = r[i], b = r[i + d];
            r[i] = _mm512_ternarylogic_epi64(mask, a, _mm512_slli_epi64(b, d), 0xCA);
            r[i + d] = _mm512_ternarylogic_epi64(mask, _mm512_srli_epi64(a, d), b, 0xCA);
        } else if (inside < used) {
            r[i + d] = _mm512_and_si512(mask, _mm512_srli_epi64(r[i], d));
            r[i] = _mm512_and_si512(mask, r[i]);
        }
    }
}

// Registers hold planes 0..used-1 (byte = position, bit = channel); afterwards register i holds channel i (bit = plane).
template <int used>
ESBNN_INLINE void transpose_planes(__m512i r[8]) {
    swap_stage<4, used>(r);
    swap_stage<2, (used < 4 ? used : 4)>(r);
    swap_stage<1, (used < 2 ? used : 2)>(r);
}

// planes[k*step], k < 8 + high; order: vpermb index; put(i, first 32 counts, last 32 counts) for channel i of the block (chunks), or
// the 128-bit lanes L of channels 16L+i and 16L+8+i (groups).
template <int high, class Put>
ESBNN_INLINE void planes_to_counts(const __m512i* planes, int low, int step, __m512i order, const Put& put) {
    __m512i l[8], h[8];
    for (int k = 0; k < 8; ++k) l[k] = k < low ? _mm512_permutexvar_epi8(order, planes[k * step]) : _mm512_setzero_si512();
    transpose_planes<8>(l);
    for (int k = 0; k < 8; ++k) h[k] = _mm512_setzero_si512();
    if constexpr (high > 0) {
        for (int k = 0; k < high; ++k) h[k] = _mm512_permutexvar_epi8(order, planes[(8 + k) * step]);
        transpose_planes<high>(h);
    }
    for (int i = 0; i < 8; ++i) put(i, _mm512_unpacklo_epi8(l[i], h[i]), _mm512_unpackhi_epi8(l[i], h[i]));
}

template <class Put>
ESBNN_INLINE void planes_to_counts(const __m512i* planes, int count, int step, __m512i order, const Put& put) {
    switch (count > 8 ? count - 8 : 0) {
        case 0: return planes_to_counts<0>(planes, count, step, order, put);
        case 1: return planes_to_counts<1>(planes, 8, step, order, put);
        case 2: return planes_to_counts<2>(planes, 8, step, order, put);
        case 3: return planes_to_counts<3>(planes, 8, step, order, put);
        case 4: return planes_to_counts<4>(planes, 8, step, order, put);
        case 5: return planes_to_counts<5>(planes, 8, step, order, put);
        case 6: return planes_to_counts<6>(planes, 8, step, order, put);
        case 7: return planes_to_counts<7>(planes, 8, step, order, put);
        default: return planes_to_counts<8>(planes, 8, step, order, put);
    }
}

// Real positions of one chunk, for `width` blocks of 8 outputs: counts[output][pitch]; 64 are written, garbage after the
// real ones.
void chunk_counts(const Plan& plan, const std::uint8_t* group_planes, const std::uint64_t* m, int width, int chunk, std::uint16_t* counts,
                  std::size_t pitch);

// Real positions of all groups, from group_real[0] on: counts[output of 64][count_pitch]. The finishing loops read up to a multiple
// of 64, and stores overhang by seven.
ESBNN_INLINE std::size_t count_pitch(const Plan& plan) {
    const std::size_t real = static_cast<std::size_t>(plan.real_positions - plan.group_real[0]);
    return ((real + 64 + 31) / 32) * 32 | 32;                              // an odd number of cache lines
}
void group_counts(const Plan& plan, const std::uint8_t* group_planes, const std::uint64_t* m, int blocks, std::uint16_t* counts);

// The outputs of a unit: the first of them, and how many exist.
struct UnitOutputs {
    int group, first, count;
};
ESBNN_INLINE UnitOutputs unit_outputs(const Plan& plan, int unit) {
    const int group = unit / plan.units_per_group, inside = unit % plan.units_per_group * plan.unit_blocks * 8;
    const int left = plan.group_outputs - inside, all = plan.unit_blocks * 8;
    return UnitOutputs{group, group * plan.group_outputs + inside, left < all ? left : all};
}

}  // namespace affine
}  // namespace esbnn
