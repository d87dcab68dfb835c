// AVX-512 with VPOPCNTDQ: xor, population count, add.
#include "avx512.h"

namespace esbnn {
namespace {

struct Avx512vpopcnt : Avx512 {
    static constexpr int kRun = 0;
    ESBNN_INLINE V fold(V sum) { return sum; }
    ESBNN_INLINE V count(V sum, V x, V w) { return _mm512_add_epi64(sum, _mm512_popcnt_epi64(_mm512_xor_si512(x, w))); }
};

}  // namespace

extern const Kernels avx512vpopcnt_kernels;
const Kernels avx512vpopcnt_kernels = kernels_of<Avx512vpopcnt>();

}  // namespace esbnn
