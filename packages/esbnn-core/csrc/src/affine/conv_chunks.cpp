// Form `chunks`: 64 flattened positions x 8 outputs a register, one or two blocks of outputs in flight.
#include "sums.h"

namespace esbnn {
namespace affine {
namespace {

template <int kind, int width>
__attribute__((noinline)) void sum(const Plan& plan, const std::uint8_t* group_planes, const std::uint64_t* m, int q, __m512i* out) {
    using Form = ChunkForm<kind, width>;
    const std::uint8_t* base = group_planes + q;
    const std::size_t plane = plan.plane_bytes;
    sum_steps<Form>(
        plan, m, [&](std::int64_t offset) __attribute__((always_inline)) { return Form{base + offset, plane}; },
        [&](int k) __attribute__((always_inline)) {
            Words<width> w;
            const std::uint8_t* table = plan.start[k];
            const __m512i v = table != nullptr ? _mm512_loadu_si512(table + q) : _mm512_setzero_si512();
            for (int i = 0; i < width; ++i) w.v[i] = v;
            return w;
        },
        out);
}

}  // namespace

void sum_chunk(const Plan& plan, const std::uint8_t* group_planes, const std::uint64_t* m, int width, int q, __m512i* out) {
    if (width == 2) {
        if (plan.kind == 64) return sum<64, 2>(plan, group_planes, m, q, out);
        if (plan.kind == 32) return sum<32, 2>(plan, group_planes, m, q, out);
        return sum<16, 2>(plan, group_planes, m, q, out);
    }
    if (plan.kind == 64) return sum<64, 1>(plan, group_planes, m, q, out);
    if (plan.kind == 32) return sum<32, 1>(plan, group_planes, m, q, out);
    return sum<16, 1>(plan, group_planes, m, q, out);
}

}  // namespace affine
}  // namespace esbnn
