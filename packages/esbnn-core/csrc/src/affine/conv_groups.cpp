// Form `groups`: 8 positions x 64 outputs a register, one or two groups of positions in flight. For small maps, whose last chunk of
// 64 positions would be mostly empty.
#include "sums.h"

namespace esbnn {
namespace affine {
namespace {

template <int kind, int width>
__attribute__((noinline)) void sum(const Plan& plan, const std::uint8_t* group_planes, const std::uint64_t* m, const std::int32_t* q, __m512i* out) {
    using Form = GroupForm<kind, width>;
    const std::size_t plane = plan.plane_bytes;
    sum_steps<Form>(
        plan, m,
        [&](std::int64_t offset) __attribute__((always_inline)) {
            Form f;
            for (int i = 0; i < width; ++i) f.data[i] = group_planes + q[i] + offset;
            f.plane = plane;
            return f;
        },
        [&](int k) __attribute__((always_inline)) {
            Words<width> w;
            const std::uint8_t* table = plan.start[k];
            for (int i = 0; i < width; ++i) w.v[i] = table != nullptr ? broadcast_bytes(table + q[i]) : _mm512_setzero_si512();
            return w;
        },
        out);
}

}  // namespace

void sum_groups(const Plan& plan, const std::uint8_t* group_planes, const std::uint64_t* m, int width, const std::int32_t* q, __m512i* out) {
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
