// Counts of one chunk, and of all groups of positions.
#include "counts.h"

namespace esbnn {
namespace affine {

void chunk_counts(const Plan& plan, const std::uint8_t* group_planes, const std::uint64_t* m, int width, int chunk, std::uint16_t* counts,
                  std::size_t pitch) {
    alignas(64) __m512i sums[2 * kMaxCountPlanes];
    sum_chunk(plan, group_planes, m, width, 64 * chunk, sums);
    const __m512i order = _mm512_loadu_si512(plan.chunk_order + 64 * static_cast<std::size_t>(chunk));
    for (int i = 0; i < width; ++i, counts += 8 * pitch)
        planes_to_counts(sums + i, plan.count_planes, width, order, [&](int channel, __m512i first, __m512i last) {
            _mm512_storeu_si512(counts + static_cast<std::size_t>(channel) * pitch, first);
            _mm512_storeu_si512(counts + static_cast<std::size_t>(channel) * pitch + 32, last);
        });
}

void group_counts(const Plan& plan, const std::uint8_t* group_planes, const std::uint64_t* m, int blocks, std::uint16_t* counts) {
    const std::size_t pitch = count_pitch(plan);
    alignas(64) __m512i sums[2 * kMaxCountPlanes];
    for (int g = 0; g < plan.position_groups; g += 2) {
        const int width = plan.position_groups - g < 2 ? 1 : 2;
        sum_groups(plan, group_planes, m, width, plan.group_start + g, sums);
        for (int i = 0; i < width; ++i) {
            std::uint16_t* to = counts + (plan.group_real[g + i] - plan.group_real[0]);
            const __m512i order = _mm512_loadu_si512(plan.group_order + 64 * static_cast<std::size_t>(g + i));
            planes_to_counts(sums + i, plan.count_planes, width, order, [&](int channel, __m512i even, __m512i odd) {
                std::uint16_t* p = to + static_cast<std::size_t>(channel) * pitch;
                const std::size_t block = 8 * pitch;
                const auto put = [&](int b, __m128i v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p + static_cast<std::size_t>(b) * block), v); };
                put(0, _mm512_castsi512_si128(even));
                put(1, _mm512_castsi512_si128(odd));
                if (blocks <= 2) return;
                put(2, _mm512_extracti32x4_epi32(even, 1));
                put(3, _mm512_extracti32x4_epi32(odd, 1));
                if (blocks <= 4) return;
                put(4, _mm512_extracti32x4_epi32(even, 2));
                put(5, _mm512_extracti32x4_epi32(odd, 2));
                put(6, _mm512_extracti32x4_epi32(even, 3));
                put(7, _mm512_extracti32x4_epi32(odd, 3));
            });
        }
    }
}

std::size_t scratch_bytes(const Plan& plan) {
    // Only groups of positions need a buffer; never nothing, so that a caller may always allocate.
    const std::size_t bytes = plan.position_groups == 0 ? 0 : count_pitch(plan) * 64 * sizeof(std::uint16_t);
    return bytes + 64;
}

}  // namespace affine
}  // namespace esbnn
