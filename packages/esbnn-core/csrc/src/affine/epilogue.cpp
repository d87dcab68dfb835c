// Counts to int32 sums and to floats: one stream a channel and copy.
#include "counts.h"

namespace esbnn {
namespace affine {
namespace {

struct Channel {                                 // one output and copy of one image
    const std::uint16_t* counts;
    std::int64_t length;
    int full, shift;                             // dot = full - (count << shift)
    float p, k;
    const float* shortcut;
    float* y;
    std::uint64_t* bits;                         // words kBitMapPitch apart, or null
    float threshold;
    std::uint16_t flip;                          // 0 or all ones
    struct {
        float lo, hi;                            // clamp
        float in, positive, negative, out;       // slopes
        bool zero, has_in, has_positive, has_out;
    } act[2];
};

template <int kind>
ESBNN_INLINE __m512 activate(__m512 y, const Channel& c, int i) {
    if constexpr (kind == Activation::clamp) {
        // operand order: a NaN comes out as it went in
        return _mm512_min_ps(_mm512_set1_ps(c.act[i].hi), _mm512_max_ps(_mm512_set1_ps(c.act[i].lo), y));
    } else if constexpr (kind == Activation::slopes) {
        if (c.act[i].has_in) y = _mm512_add_ps(y, _mm512_set1_ps(c.act[i].in));
        if (c.act[i].zero) {
            y = _mm512_max_ps(_mm512_setzero_ps(), y);
            if (c.act[i].has_positive) y = _mm512_mul_ps(y, _mm512_set1_ps(c.act[i].positive));
        } else {
            const __mmask16 above = _mm512_cmp_ps_mask(y, _mm512_setzero_ps(), _CMP_GT_OQ);
            const __m512 slope = _mm512_mask_blend_ps(above, _mm512_set1_ps(c.act[i].negative), _mm512_set1_ps(c.act[i].positive));
            y = _mm512_mul_ps(y, slope);
        }
        if (c.act[i].has_out) y = _mm512_add_ps(y, _mm512_set1_ps(c.act[i].out));
        return y;
    } else {
        return y;
    }
}

ESBNN_INLINE __m512i dots(const std::uint16_t* counts, __m512i full, __m128i shift) {
    const __m512i c = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(counts)));
    return _mm512_sub_epi32(full, _mm512_sll_epi32(c, shift));
}

template <int before, bool shortcut, int after>
void stream(const Channel& c) {
    const __m512i full = _mm512_set1_epi32(c.full);
    const __m128i shift = _mm_cvtsi32_si128(c.shift);
    const __m512 p = _mm512_set1_ps(c.p), k = _mm512_set1_ps(c.k), threshold = _mm512_set1_ps(c.threshold);
    for (std::int64_t i = 0; i < c.length; i += 16) {
        const std::int64_t left = c.length - i;
        const __mmask16 valid = left >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << left) - 1);
        // Two roundings, product then sum: what the float network computes. Contraction is off for this file.
        __m512 y = _mm512_add_ps(_mm512_mul_ps(p, _mm512_cvtepi32_ps(dots(c.counts + i, full, shift))), k);
        y = activate<before>(y, c, 0);
        if constexpr (shortcut) y = _mm512_add_ps(y, left >= 16 ? _mm512_loadu_ps(c.shortcut + i) : _mm512_maskz_loadu_ps(valid, c.shortcut + i));
        y = activate<after>(y, c, 1);
        if (c.y != nullptr) {
            if (left >= 16)
                _mm512_storeu_ps(c.y + i, y);
            else
                _mm512_mask_storeu_ps(c.y + i, valid, y);
        }
        if (c.bits != nullptr) {
            const std::uint16_t bits = static_cast<std::uint16_t>(_mm512_cmp_ps_mask(y, threshold, _CMP_GE_OQ) ^ c.flip);
            __builtin_memcpy(reinterpret_cast<char*>(c.bits + (i >> 6) * kBitMapPitch) + (i >> 4 & 3) * 2, &bits, 2);
        }
    }
}

using Stream = void (*)(const Channel&);

template <int before, bool shortcut>
Stream choose_after(int after) {
    if (after == Activation::clamp) return stream<before, shortcut, Activation::clamp>;
    if (after == Activation::slopes) return stream<before, shortcut, Activation::slopes>;
    return stream<before, shortcut, Activation::none>;
}

template <bool shortcut>
Stream choose(int before, int after) {
    if (before == Activation::clamp) return choose_after<Activation::clamp, shortcut>(after);
    if (before == Activation::slopes) return choose_after<Activation::slopes, shortcut>(after);
    return choose_after<Activation::none, shortcut>(after);
}

void set_activation(Channel& c, int i, const Activation& a, int j) {
    c.act[i].lo = a.lo;
    c.act[i].hi = a.hi;
    c.act[i].has_in = a.shift_in != nullptr;
    c.act[i].has_out = a.shift_out != nullptr;
    c.act[i].has_positive = a.positive != nullptr;
    c.act[i].zero = a.negative == nullptr;
    c.act[i].in = a.shift_in != nullptr ? a.shift_in[j] : 0.0f;
    c.act[i].out = a.shift_out != nullptr ? a.shift_out[j] : 0.0f;
    c.act[i].positive = a.positive != nullptr ? a.positive[j] : 1.0f;
    c.act[i].negative = a.negative != nullptr ? a.negative[j] : 0.0f;
}

}  // namespace

void conv_dot(const Plan& plan, const std::uint8_t* planes, const void* matrices, int unit_first, int unit_last, void* scratch,
              std::int32_t* dot, std::int64_t dot_n, std::int64_t dot_c) {
    std::uint16_t* counts = static_cast<std::uint16_t*>(scratch);
    const std::size_t pitch = count_pitch(plan);
    const std::int64_t size = static_cast<std::int64_t>(plan.out_h) * plan.out_w;
    const __m512i full = _mm512_set1_epi32(plan.full);
    const __m128i shift = _mm_cvtsi32_si128(plan.odd ? 0 : 1);
    for (int unit = unit_first; unit < unit_last; ++unit) {
        unit_counts(plan, planes, matrices, unit, counts);
        const UnitOutputs out = unit_outputs(plan, unit);
        for (int o = 0; o < out.count; ++o)
            for (int n = 0; n < plan.geo.images; ++n) {
                const std::uint16_t* from = counts + static_cast<std::size_t>(o) * pitch + n * size;
                std::int32_t* to = dot + n * dot_n + (out.first + o) * dot_c;
                for (std::int64_t i = 0; i < size; i += 16) {
                    const __mmask16 valid = size - i >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << (size - i)) - 1);
                    _mm512_mask_storeu_epi32(to + i, valid, dots(from + i, full, shift));
                }
            }
    }
}

void conv_float(const Plan& plan, const std::uint8_t* planes, const void* matrices, int unit_first, int unit_last, void* scratch,
                const Epilogue& e) {
    std::uint16_t* counts = static_cast<std::uint16_t*>(scratch);
    const std::size_t pitch = count_pitch(plan);
    const std::int64_t size = static_cast<std::int64_t>(plan.out_h) * plan.out_w;
    const Stream run = e.shortcut != nullptr ? choose<true>(e.before.kind, e.after.kind) : choose<false>(e.before.kind, e.after.kind);
    Channel c{};
    c.length = size;
    c.full = plan.full;
    c.shift = plan.odd ? 0 : 1;
    for (int unit = unit_first; unit < unit_last; ++unit) {
        unit_counts(plan, planes, matrices, unit, counts);
        const UnitOutputs out = unit_outputs(plan, unit);
        for (int o = 0; o < out.count; ++o)
            for (int r = 0; r < e.copies; ++r) {
                const int j = r * plan.geo.outputs + out.first + o;
                c.p = e.p[j];
                c.k = e.k[j];
                set_activation(c, 0, e.before, j);
                set_activation(c, 1, e.after, j);
                if (e.bits != nullptr) {
                    c.threshold = e.threshold[j];
                    c.flip = e.flip != nullptr && e.flip[j] != 0 ? 0xFFFF : 0;
                }
                for (int n = 0; n < plan.geo.images; ++n) {
                    c.counts = counts + static_cast<std::size_t>(o) * pitch + n * size;
                    c.shortcut = e.shortcut != nullptr ? e.shortcut + n * e.shortcut_n + j * e.shortcut_c : nullptr;
                    c.y = e.y != nullptr ? e.y + n * e.y_n + j * e.y_c : nullptr;
                    if (e.bits != nullptr)
                        c.bits = e.bits->words + (j >> 6) * e.bits->block_stride() + n * (e.bits->image_bits / 64) * kBitMapPitch + (j & 63);
                    run(c);
                }
            }
    }
}

}  // namespace affine
}  // namespace esbnn
