// The portable path: the oracle of the others, and what runs where nothing better does.
#include "inner.h"

namespace esbnn {
namespace {

struct Scalar {
    struct V {
        uint64_t lane;
    };
    static constexpr int kRegs = 8, kPositions = 4, kOctets = 1, kRun = 0, kFloats = 4;
    typedef float F __attribute__((vector_size(16)));
    typedef int32_t M __attribute__((vector_size(16)));
    ESBNN_INLINE V zero() { return {0}; }
    ESBNN_INLINE V load(const uint64_t* p) { return {*p}; }
    ESBNN_INLINE V broadcast(const uint64_t* p) { return {*p}; }
    ESBNN_INLINE V add(V a, V b) { return {a.lane + b.lane}; }
    ESBNN_INLINE V fold(V sum) { return sum; }
    ESBNN_INLINE V count(V sum, V x, V w) {
        uint64_t v = x.lane ^ w.lane;                 // by halving sums: the base instruction sets have no popcount
        v -= v >> 1 & 0x5555555555555555u;
        v = (v & 0x3333333333333333u) + (v >> 2 & 0x3333333333333333u);
        v = (v + (v >> 4)) & 0x0F0F0F0F0F0F0F0Fu;
        return {sum.lane + (v * 0x0101010101010101u >> 56)};
    }
    ESBNN_INLINE void store(V (&sums)[kPositions][kRegs], int32_t n_full, int32_t* out, int64_t pitch) {
        for (int i = 0; i < 8; ++i)
            for (int p = 0; p < kPositions; ++p) out[i * pitch + p] = n_full - 2 * static_cast<int32_t>(sums[p][i].lane);
    }
    ESBNN_INLINE uint64_t bits64(const float* x, const float* thresholds) {
        uint64_t word = 0;
        for (int i = 0; i < 64; ++i) word |= static_cast<uint64_t>(x[i] >= thresholds[i]) << i;
        return word;
    }
};

}  // namespace

extern const Kernels scalar_kernels;
const Kernels scalar_kernels = kernels_of<Scalar>();

}  // namespace esbnn
