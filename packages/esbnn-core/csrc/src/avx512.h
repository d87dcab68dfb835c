// What the two AVX-512 popcount paths share. Unnamed namespace and nothing of the standard library: see path.h.
#pragma once

#include <immintrin.h>

#include "inner.h"

namespace esbnn {
namespace {

struct Avx512 {
    using V = __m512i;
    static constexpr int kRegs = 1, kPositions = 8, kOctets = 2, kFloats = 16;
    typedef float F __attribute__((vector_size(64)));
    typedef int32_t M __attribute__((vector_size(64)));
    ESBNN_INLINE V zero() { return _mm512_setzero_si512(); }
    ESBNN_INLINE V load(const uint64_t* p) { return _mm512_loadu_si512(p); }
    // From memory in one load; through a general register it would take an execution port that the counts need.
    ESBNN_INLINE V broadcast(const uint64_t* p) {
        V r;
        __asm__("vpbroadcastq %1, %0" : "=v"(r) : "m"(*p));
        return r;
    }
    ESBNN_INLINE V add(V a, V b) { return _mm512_add_epi64(a, b); }
    // Counts to S and from filter-lanes to position-lanes.
    ESBNN_INLINE void store(V (&sums)[8][1], int32_t n_full, int32_t* out, int64_t pitch) {
        const V full = _mm512_set1_epi32(n_full);
        V pair[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            const V both = _mm512_or_si512(sums[2 * i][0], _mm512_slli_epi64(sums[2 * i + 1][0], 32));
            pair[i] = _mm512_sub_epi32(full, _mm512_slli_epi32(both, 1));
        }
        const V low_even = _mm512_unpacklo_epi64(pair[0], pair[1]), low_odd = _mm512_unpackhi_epi64(pair[0], pair[1]);
        const V high_even = _mm512_unpacklo_epi64(pair[2], pair[3]), high_odd = _mm512_unpackhi_epi64(pair[2], pair[3]);
        const V first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
        put(out, 2 * pitch, _mm512_permutex2var_epi64(low_even, first, high_even));
        put(out + pitch, 2 * pitch, _mm512_permutex2var_epi64(low_odd, first, high_odd));
        put(out + 4 * pitch, 2 * pitch, _mm512_permutex2var_epi64(low_even, second, high_even));
        put(out + 5 * pitch, 2 * pitch, _mm512_permutex2var_epi64(low_odd, second, high_odd));
    }
    ESBNN_INLINE uint64_t bits64(const float* x, const float* thresholds) {
        uint64_t word = 0;
#pragma GCC unroll 4
        for (int i = 0; i < 64; i += 16) {
            const __mmask16 bits = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + i), _mm512_loadu_ps(thresholds + i), _CMP_GE_OQ);
            word |= static_cast<uint64_t>(bits) << i;
        }
        return word;
    }

private:
    ESBNN_INLINE void put(int32_t* out, int64_t distance, V rows) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_castsi512_si256(rows));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + distance), _mm512_extracti64x4_epi64(rows, 1));
    }
};

}  // namespace
}  // namespace esbnn
