// AVX2: population counts by table, a nibble at a time, in byte sums.
#include <immintrin.h>

#include "inner.h"

namespace esbnn {
namespace {

struct Avx2 {
    using V = __m256i;
    static constexpr int kRegs = 2, kPositions = 4, kOctets = 1, kRun = 31, kFloats = 8;
    typedef float F __attribute__((vector_size(32)));
    typedef int32_t M __attribute__((vector_size(32)));
    ESBNN_INLINE V zero() { return _mm256_setzero_si256(); }
    ESBNN_INLINE V load(const uint64_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    ESBNN_INLINE V broadcast(const uint64_t* p) { return _mm256_set1_epi64x(static_cast<long long>(*p)); }
    ESBNN_INLINE V add(V a, V b) { return _mm256_add_epi64(a, b); }
    ESBNN_INLINE V fold(V sum) { return _mm256_sad_epu8(sum, _mm256_setzero_si256()); }
    ESBNN_INLINE V count(V sum, V x, V w) {
        const V table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
        const V nibble = _mm256_set1_epi8(15), v = _mm256_xor_si256(x, w);
        sum = _mm256_add_epi8(sum, _mm256_shuffle_epi8(table, _mm256_and_si256(v, nibble)));
        return _mm256_add_epi8(sum, _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble)));
    }
    // Counts to S and from filter-lanes to position-lanes.
    ESBNN_INLINE void store(V (&sums)[kPositions][kRegs], int32_t n_full, int32_t* out, int64_t pitch) {
        const V full = _mm256_set1_epi32(n_full);
#pragma GCC unroll 2
        for (int r = 0; r < 2; ++r) {
            const V a = _mm256_or_si256(sums[0][r], _mm256_slli_epi64(sums[1][r], 32));
            const V b = _mm256_or_si256(sums[2][r], _mm256_slli_epi64(sums[3][r], 32));
            V even = _mm256_unpacklo_epi64(a, b), odd = _mm256_unpackhi_epi64(a, b);
            even = _mm256_sub_epi32(full, _mm256_slli_epi32(even, 1));
            odd = _mm256_sub_epi32(full, _mm256_slli_epi32(odd, 1));
            int32_t* to = out + 4 * r * pitch;
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(even));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to + pitch), _mm256_castsi256_si128(odd));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 2 * pitch), _mm256_extracti128_si256(even, 1));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 3 * pitch), _mm256_extracti128_si256(odd, 1));
        }
    }
    ESBNN_INLINE uint64_t bits64(const float* x, const float* thresholds) {
        uint64_t word = 0;
        for (int i = 0; i < 64; i += 8) {
            const __m256 bits = _mm256_cmp_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(thresholds + i), _CMP_GE_OQ);
            word |= static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_ps(bits))) << i;
        }
        return word;
    }
};

}  // namespace

extern const Kernels avx2_kernels;
const Kernels avx2_kernels = kernels_of<Avx2>();

}  // namespace esbnn
