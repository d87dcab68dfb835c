// NEON: population counts of bytes, in byte sums that are widened every 31 steps.
#include <arm_neon.h>

#include "inner.h"

namespace esbnn {
namespace {

struct Neon {
    using V = uint8x16_t;
    static constexpr int kRegs = 4, kPositions = 4, kOctets = 1, kRun = 31, kFloats = 4;
    typedef float F __attribute__((vector_size(16)));
    typedef int32_t M __attribute__((vector_size(16)));
    ESBNN_INLINE V zero() { return vdupq_n_u8(0); }
    ESBNN_INLINE V load(const uint64_t* p) { return vreinterpretq_u8_u64(vld1q_u64(p)); }
    ESBNN_INLINE V broadcast(const uint64_t* p) { return vreinterpretq_u8_u64(vld1q_dup_u64(p)); }
    ESBNN_INLINE V add(V a, V b) { return vreinterpretq_u8_u64(vaddq_u64(vreinterpretq_u64_u8(a), vreinterpretq_u64_u8(b))); }
    ESBNN_INLINE V fold(V sum) { return vreinterpretq_u8_u64(vpaddlq_u32(vpaddlq_u16(vpaddlq_u8(sum)))); }
    ESBNN_INLINE V count(V sum, V x, V w) { return vaddq_u8(sum, vcntq_u8(veorq_u8(x, w))); }
    ESBNN_INLINE void store(V (&sums)[kPositions][kRegs], int32_t n_full, int32_t* out, int64_t pitch) {
        const int32x4_t full = vdupq_n_s32(n_full);
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
            uint32x4_t p[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) p[i] = vreinterpretq_u32_u8(sums[i][r]);          // filter 2r, 0, filter 2r+1, 0
            const uint64x2_t a = vreinterpretq_u64_u32(vtrn1q_u32(p[0], p[1])), b = vreinterpretq_u64_u32(vtrn1q_u32(p[2], p[3]));
            const int32x4_t even = vreinterpretq_s32_u64(vzip1q_u64(a, b)), odd = vreinterpretq_s32_u64(vzip2q_u64(a, b));
            vst1q_s32(out + 2 * r * pitch, vsubq_s32(full, vshlq_n_s32(even, 1)));
            vst1q_s32(out + (2 * r + 1) * pitch, vsubq_s32(full, vshlq_n_s32(odd, 1)));
        }
    }
    ESBNN_INLINE uint64_t bits64(const float* x, const float* thresholds) {
        static const uint32_t powers[4] = {1, 2, 4, 8};
        const uint32x4_t power = vld1q_u32(powers);
        uint64_t word = 0;
        for (int i = 0; i < 64; i += 4) {
            const uint32x4_t bits = vcgeq_f32(vld1q_f32(x + i), vld1q_f32(thresholds + i));
            word |= static_cast<uint64_t>(vaddvq_u32(vandq_u32(bits, power))) << i;
        }
        return word;
    }
};

}  // namespace

extern const Kernels neon_kernels;
const Kernels neon_kernels = kernels_of<Neon>();

}  // namespace esbnn
