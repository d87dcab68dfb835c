// Counts of an output unit, in whichever forms the plan has.
#include "counts.h"

namespace esbnn {
namespace affine {
namespace {

void chunk_counts(const Plan& plan, const std::uint8_t* group_planes, const std::uint64_t* m, int blocks, std::uint16_t* counts) {
    const std::size_t pitch = count_pitch(plan);
    alignas(64) __m512i sums[2 * kMaxCountPlanes];
    for (int b = 0; b < blocks; b += 2) {
        const int width = blocks - b < 2 ? 1 : 2;
        for (int c = 0; c < plan.chunks; ++c) {
            sum_chunk(plan, group_planes, m, width, 64 * c, sums);
            const __m512i order = _mm512_loadu_si512(plan.chunk_order + 64 * static_cast<std::size_t>(c));
            for (int i = 0; i < width; ++i) {
                std::uint16_t* to = counts + static_cast<std::size_t>(8 * (b + i)) * pitch + plan.chunk_real[c];
                planes_to_counts(sums + i, plan.count_planes, width, order, [&](int channel, __m512i first, __m512i last) {
                    _mm512_storeu_si512(to + static_cast<std::size_t>(channel) * pitch, first);
                    _mm512_storeu_si512(to + static_cast<std::size_t>(channel) * pitch + 32, last);
                });
            }
        }
        m += static_cast<std::size_t>(plan.steps * plan.matrices * width);
    }
}

void group_counts(const Plan& plan, const std::uint8_t* group_planes, const std::uint64_t* m, std::uint16_t* counts) {
    const std::size_t pitch = count_pitch(plan);
    alignas(64) __m512i sums[2 * kMaxCountPlanes];
    for (int g = 0; g < plan.position_groups; g += 2) {
        const int width = plan.position_groups - g < 2 ? 1 : 2;
        sum_groups(plan, group_planes, m, width, plan.group_start + g, sums);
        for (int i = 0; i < width; ++i) {
            std::uint16_t* to = counts + plan.group_real[g + i];
            const __m512i order = _mm512_loadu_si512(plan.group_order + 64 * static_cast<std::size_t>(g + i));
            planes_to_counts(sums + i, plan.count_planes, width, order, [&](int channel, __m512i even, __m512i odd) {
                std::uint16_t* p = to + static_cast<std::size_t>(channel) * pitch;
                const std::size_t eight = 8 * pitch;
                _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_castsi512_si128(even));
                _mm_storeu_si128(reinterpret_cast<__m128i*>(p + eight), _mm512_castsi512_si128(odd));
                _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 2 * eight), _mm512_extracti32x4_epi32(even, 1));
                _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 3 * eight), _mm512_extracti32x4_epi32(odd, 1));
                _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 4 * eight), _mm512_extracti32x4_epi32(even, 2));
                _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 5 * eight), _mm512_extracti32x4_epi32(odd, 2));
                _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 6 * eight), _mm512_extracti32x4_epi32(even, 3));
                _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 7 * eight), _mm512_extracti32x4_epi32(odd, 3));
            });
        }
    }
}

}  // namespace

void unit_counts(const Plan& plan, const std::uint8_t* planes, const void* matrices, int unit, std::uint16_t* counts) {
    const UnitOutputs out = unit_outputs(plan, unit);
    const std::uint8_t* group_planes = planes + plan.block_bytes * static_cast<std::size_t>(plan.blocks * out.group);
    const char* m = static_cast<const char*>(matrices) + plan.unit_bytes * static_cast<std::size_t>(unit);
    if (plan.chunks > 0) chunk_counts(plan, group_planes, reinterpret_cast<const std::uint64_t*>(m), (out.count + 7) / 8, counts);
    if (plan.position_groups == 0) return;
    if (plan.forms == Forms::mixed) m += plan.unit_bytes / 2;
    group_counts(plan, group_planes, reinterpret_cast<const std::uint64_t*>(m), counts);
}

std::size_t scratch_bytes(const Plan& plan) { return count_pitch(plan) * static_cast<std::size_t>(8 * plan.unit_blocks) * sizeof(std::uint16_t); }

}  // namespace affine
}  // namespace esbnn
