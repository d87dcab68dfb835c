// Bits straight from count planes: count < T for every output channel, bit-sliced, one vpternlog a plane.
#include "counts.h"

namespace esbnn {
namespace affine {
namespace {

// Table: [copy][group][count plane, then flips][block of 8 outputs, in eights]: bit i of a byte belongs to output i of the block.
int blocks_of(const Plan& plan) { return (plan.group_outputs + 63) / 64 * 8; }
std::size_t rows_of(const Plan& plan) { return static_cast<std::size_t>(plan.count_planes) + 1; }

// lt = majority(not d, t, lt) from the lowest plane up.
ESBNN_INLINE __m512i less_step(__m512i d, __m512i t, __m512i lt) { return _mm512_ternarylogic_epi64(d, t, lt, 0x8E); }

ESBNN_INLINE __m512i reverse_in_qwords(__m512i v) {
    const __m512i index = _mm512_set4_epi32(0x08090A0B, 0x0C0D0E0F, 0x00010203, 0x04050607);
    return _mm512_shuffle_epi8(v, index);
}

struct Target {
    const Plan* plan;
    const BitMap* out;
    int copies;
    const std::uint8_t* table;
    int blocks;                                  // of a row of the table
    const std::uint8_t* rows(int copy, int group) const {
        return table + static_cast<std::size_t>(copy * plan->geo.groups + group) * rows_of(*plan) * static_cast<std::size_t>(blocks);
    }
};

ESBNN_INLINE __mmask8 real_lanes(int left) { return left >= 8 ? 0xFF : static_cast<__mmask8>((1u << left) - 1); }

// One block of a chunk: 64 positions of 8 channels are whole words.
void chunk_bits(const Target& t, const __m512i* sums, int step, int chunk, int group, int block) {
    const Plan& plan = *t.plan;
    const int left = plan.group_outputs - 8 * block;
    for (int r = 0; r < t.copies; ++r) {
        const std::uint8_t* row = t.rows(r, group) + block;
        __m512i lt = _mm512_setzero_si512();
        for (int k = 0; k < plan.count_planes; ++k) lt = less_step(sums[k * step], _mm512_set1_epi8(static_cast<char>(row[k * t.blocks])), lt);
        lt = _mm512_xor_si512(lt, _mm512_set1_epi8(static_cast<char>(row[plan.count_planes * t.blocks])));
        const std::int64_t channel = static_cast<std::int64_t>(r) * plan.geo.outputs + group * plan.group_outputs + 8 * block;
        store_lanes(*t.out, channel, chunk, real_lanes(left), transpose_bytes(transpose_bits(reverse_in_qwords(lt))));
    }
}

// 64 channels of 8 positions from q on: bytes of words.
void group_bits(const Target& t, const __m512i* sums, int step, int q, int group, int first_block, int outputs) {
    const Plan& plan = *t.plan;
    const int blocks = (outputs + 7) / 8;
    for (int r = 0; r < t.copies; ++r) {
        const std::uint8_t* row = t.rows(r, group) + first_block;
        alignas(64) std::uint8_t bytes[64];
        __m512i lt = _mm512_setzero_si512(), spread = _mm512_setzero_si512();
        for (int k = 0; k <= plan.count_planes; ++k) {
            // eight bytes of the table, each over the eight positions of its qword
            const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(row + k * t.blocks));
            spread = _mm512_permutexvar_epi8(_mm512_load_si512(kBlockBytes.at), _mm512_castsi128_si512(eight));
            if (k < plan.count_planes) lt = less_step(sums[k * step], spread, lt);
        }
        lt = _mm512_xor_si512(lt, spread);
        _mm512_store_si512(bytes, transpose_bits(reverse_in_qwords(lt)));              // qword = block, byte = channel, bit = position
        const int at = q & 63;
        for (int b = 0; b < blocks; ++b) {
            const std::int64_t channel = static_cast<std::int64_t>(r) * plan.geo.outputs + group * plan.group_outputs + 8 * (first_block + b);
            const __mmask8 real = real_lanes(outputs - 8 * b);
            const __m512i v = _mm512_cvtepu8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes + 8 * b)));
            const __m128i up = _mm_cvtsi32_si128(at), down = _mm_cvtsi32_si128(64 - at);
            const __m512i eight = _mm512_set1_epi64(255);
            __m512i word = load_lanes(*t.out, channel, q >> 6, real);
            word = _mm512_or_si512(_mm512_andnot_si512(_mm512_sll_epi64(eight, up), word), _mm512_sll_epi64(v, up));
            store_lanes(*t.out, channel, q >> 6, real, word);
            if (at <= 56) continue;
            word = load_lanes(*t.out, channel, (q >> 6) + 1, real);
            word = _mm512_or_si512(_mm512_andnot_si512(_mm512_srl_epi64(eight, down), word), _mm512_srl_epi64(v, down));
            store_lanes(*t.out, channel, (q >> 6) + 1, real, word);
        }
    }
}

}  // namespace

std::size_t switch_bytes(const Plan& plan, int copies) {
    return static_cast<std::size_t>(copies * plan.geo.groups * blocks_of(plan)) * rows_of(plan);
}

void prepare_switch(const Plan& plan, int copies, const std::int32_t* least, const std::uint8_t* flip, std::uint8_t* table) {
    const std::size_t blocks = static_cast<std::size_t>(blocks_of(plan)), planes = static_cast<std::size_t>(plan.count_planes);
    for (std::size_t i = 0; i < switch_bytes(plan, copies); ++i) table[i] = 0;
    for (int r = 0; r < copies; ++r)
        for (int group = 0; group < plan.geo.groups; ++group, table += (planes + 1) * blocks)
            for (int o = 0; o < plan.group_outputs; ++o) {
                const int j = r * plan.geo.outputs + group * plan.group_outputs + o;
                bool flipped = flip != nullptr && flip[j] != 0;
                // dot >= least  <=>  (count << shift) <= full - least  <=>  count < T
                const std::int64_t room = static_cast<std::int64_t>(plan.full) - least[j];
                std::int64_t t = room < 0 ? 0 : plan.odd ? room + 1 : room / 2 + 1;
                if (t >= std::int64_t{1} << planes) t = 0, flipped = !flipped;                          // always true
                std::uint8_t* to = table + o / 8;
                for (std::size_t k = 0; k < planes; ++k) to[k * blocks] = static_cast<std::uint8_t>(to[k * blocks] | (t >> k & 1) << (o % 8));
                to[planes * blocks] = static_cast<std::uint8_t>(to[planes * blocks] | static_cast<int>(flipped) << (o % 8));
            }
}

void conv_bits(const Plan& plan, const std::uint8_t* planes, const void* matrices, int unit_first, int unit_last, void*, int copies,
               const std::uint8_t* table, const BitMap& out) {
    const Target target{&plan, &out, copies, table, blocks_of(plan)};
    alignas(64) __m512i sums[2 * kMaxCountPlanes];
    for (int unit = unit_first; unit < unit_last; ++unit) {
        const UnitOutputs o = unit_outputs(plan, unit);
        const int first_block = unit % plan.units_per_group * plan.unit_blocks, blocks = (o.count + 7) / 8;
        const std::uint8_t* group_planes = planes + plan.block_bytes * static_cast<std::size_t>(plan.blocks * o.group);
        const char* base = static_cast<const char*>(matrices) + plan.unit_bytes * static_cast<std::size_t>(unit);
        const std::uint64_t* m = reinterpret_cast<const std::uint64_t*>(base);
        for (int b = 0; plan.chunks > 0 && b < blocks; b += 2) {
            const int width = blocks - b < 2 ? 1 : 2;
            for (int c = 0; c < plan.chunks; ++c) {
                sum_chunk(plan, group_planes, m, width, 64 * c, sums);
                for (int i = 0; i < width; ++i) chunk_bits(target, sums + i, width, c, o.group, first_block + b + i);
            }
            m += static_cast<std::size_t>(plan.steps * plan.matrices * width);
        }
        m = reinterpret_cast<const std::uint64_t*>(base + (plan.forms == Forms::mixed ? plan.unit_bytes / 2 : 0));
        for (int g = 0; g < plan.position_groups; g += 2) {
            const int width = plan.position_groups - g < 2 ? 1 : 2;
            sum_groups(plan, group_planes, m, width, plan.group_start + g, sums);
            for (int i = 0; i < width; ++i) group_bits(target, sums + i, width, plan.group_start[g + i], o.group, first_block, o.count);
        }
    }
}

}  // namespace affine
}  // namespace esbnn
