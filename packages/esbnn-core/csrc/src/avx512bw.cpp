// AVX-512BW: population counts by table, a nibble at a time, in byte sums.
#include "avx512.h"

namespace esbnn {
namespace {

struct Avx512bw : Avx512 {
    static constexpr int kRun = 31;
    ESBNN_INLINE V fold(V sum) { return _mm512_sad_epu8(sum, _mm512_setzero_si512()); }
    ESBNN_INLINE V count(V sum, V x, V w) {
        const V table = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
        const V nibble = _mm512_set1_epi8(15), v = _mm512_xor_si512(x, w);
        sum = _mm512_add_epi8(sum, _mm512_shuffle_epi8(table, _mm512_and_si512(v, nibble)));
        return _mm512_add_epi8(sum, _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble)));
    }
};

}  // namespace

extern const Kernels avx512bw_kernels;
const Kernels avx512bw_kernels = kernels_of<Avx512bw>();

}  // namespace esbnn
