// Counts to int32 sums and to floats.
//
// Outputs are finished a few hundred positions at a time, soon after they were counted: reading the shortcut and writing y then
// overlap with the arithmetic of the next chunks.
#include "counts.h"

namespace esbnn {
namespace affine {
namespace {

ESBNN_INLINE __m512i load_counts(const std::uint16_t* counts) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(counts)));
}
ESBNN_INLINE __mmask16 first_lanes(std::int64_t n) { return n >= 16 ? 0xFFFF : n <= 0 ? 0 : static_cast<__mmask16>((1u << n) - 1); }

template <int kind>
ESBNN_INLINE __m512 activate(__m512 y, const Activation& a, int j) {
    if constexpr (kind == Activation::clamp) {
        // operand order: a NaN comes out as it went in
        return _mm512_min_ps(_mm512_set1_ps(a.hi), _mm512_max_ps(_mm512_set1_ps(a.lo), y));
    } else if constexpr (kind == Activation::slopes) {
        if (a.shift_in != nullptr) y = _mm512_add_ps(y, _mm512_set1_ps(a.shift_in[j]));
        if (a.negative == nullptr) {
            y = _mm512_max_ps(_mm512_setzero_ps(), y);
            if (a.positive != nullptr) y = _mm512_mul_ps(y, _mm512_set1_ps(a.positive[j]));
        } else {
            const __mmask16 above = _mm512_cmp_ps_mask(y, _mm512_setzero_ps(), _CMP_GT_OQ);
            const __m512 positive = _mm512_set1_ps(a.positive != nullptr ? a.positive[j] : 1.0f);
            y = _mm512_mul_ps(y, _mm512_mask_blend_ps(above, _mm512_set1_ps(a.negative[j]), positive));
        }
        if (a.shift_out != nullptr) y = _mm512_add_ps(y, _mm512_set1_ps(a.shift_out[j]));
        return y;
    } else {
        return y;
    }
}

struct Line {
    __m512 full, scale, p, k;                    // dot = full + scale*count, scale -2 or -1
};

template <int before, bool shortcut, int after>
ESBNN_INLINE __m512 sixteen(const Epilogue& e, const Line& l, int j, const std::uint16_t* counts, const float* add, __mmask16 valid) {
    // The sum itself is a small integer, so the fused form is exact. Then two roundings, product and addition: what the float
    // network computes. Contraction is off for this file.
    const __m512 dot = _mm512_fmadd_ps(l.scale, _mm512_cvtepi32_ps(load_counts(counts)), l.full);
    __m512 y = activate<before>(_mm512_add_ps(_mm512_mul_ps(l.p, dot), l.k), e.before, j);
    if constexpr (shortcut) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(valid, add));
    return activate<after>(y, e.after, j);
}

// Positions [at, at + length) of an image, outputs [first, first + outputs) and all their copies; counts[o*stride] is the first of
// output o, and counts may be read up to the next multiple of 64.
struct Part {
    int first, outputs, image;
    std::int64_t at, length;
    const std::uint16_t* counts;
    std::size_t stride;
};

// Up to 64 positions of channel j; returns their bits (unless no bits are wanted).
template <int before, bool shortcut, int after, bool bits>
ESBNN_INLINE std::uint64_t sixty_four(const Epilogue& e, const Line& l, int j, const std::uint16_t* counts, const float* add, float* y,
                                      const __mmask16 valid[4], __m512 threshold) {
    std::uint64_t out = 0;
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
        const __m512 r = sixteen<before, shortcut, after>(e, l, j, counts + 16 * v, add + 16 * v, valid[v]);
        if (!bits || y != nullptr) _mm512_mask_storeu_ps(y + 16 * v, valid[v], r);
        if (bits) out |= static_cast<std::uint64_t>(_mm512_cmp_ps_mask(r, threshold, _CMP_GE_OQ)) << (16 * v);
    }
    return out;
}

// Positions come in ascending order: bits below `from` stay, bits above are written later or are a gap.
ESBNN_INLINE void append_bits(std::uint64_t* words, std::int64_t from, std::int64_t count, std::uint64_t bits) {
    const std::int64_t shift = from & 63;
    std::uint64_t* word = words + (from >> 6) * kBitMapPitch;
    *word = shift == 0 ? bits : (*word & ((std::uint64_t{1} << shift) - 1)) | bits << shift;
    if (shift != 0 && shift + count > 64) word[kBitMapPitch] = bits >> (64 - shift);
}

template <int before, bool shortcut, int after, bool bits>
void finish(const Plan& plan, const Epilogue& e, const Part& part) {
    Line line;
    line.full = _mm512_set1_ps(static_cast<float>(plan.full));
    line.scale = _mm512_set1_ps(plan.odd ? -1.0f : -2.0f);
    for (int r = 0; r < e.copies; ++r)
        for (int o = 0; o < part.outputs; ++o) {
            const int j = r * plan.geo.outputs + part.first + o;
            line.p = _mm512_set1_ps(e.p[j]);
            line.k = _mm512_set1_ps(e.k[j]);
            const float* add = shortcut ? e.shortcut + part.image * e.shortcut_n + j * e.shortcut_c + part.at : nullptr;
            float* y = e.y != nullptr ? e.y + part.image * e.y_n + j * e.y_c + part.at : nullptr;
            const std::uint16_t* counts = part.counts + static_cast<std::size_t>(o) * part.stride;
            const __m512 threshold = bits ? _mm512_set1_ps(e.threshold[j]) : _mm512_setzero_ps();
            for (std::int64_t i = 0; i < part.length; i += 64) {
                const std::int64_t left = part.length - i;
                const __mmask16 valid[4] = {first_lanes(left), first_lanes(left - 16), first_lanes(left - 32), first_lanes(left - 48)};
                std::uint64_t b = sixty_four<before, shortcut, after, bits>(e, line, j, counts + i, add + i, y + i, valid, threshold);
                if constexpr (bits) {
                    if (e.flip != nullptr && e.flip[j] != 0) b = ~b;
                    std::uint64_t* words = e.bits->words + (j >> 6) * e.bits->block_stride() + part.image * (e.bits->image_bits / 64) * kBitMapPitch;
                    append_bits(words + (j & 63), part.at + i, left < 64 ? left : 64, b);
                }
            }
        }
}

// The same with Q or classes of K, for the few layers that have them: kinds of activations are looked up at run time.
ESBNN_INLINE __m512 activate_any(__m512 y, const Activation& a, int j) {
    if (a.kind == Activation::clamp) return activate<Activation::clamp>(y, a, j);
    if (a.kind == Activation::slopes) return activate<Activation::slopes>(y, a, j);
    return y;
}

void finish_general(const Plan& plan, const Epilogue& e, const Part& part) {
    const __m512 full = _mm512_set1_ps(static_cast<float>(plan.full)), scale = _mm512_set1_ps(plan.odd ? -1.0f : -2.0f);
    for (int r = 0; r < e.copies; ++r)
        for (int o = 0; o < part.outputs; ++o) {
            const int j = r * plan.geo.outputs + part.first + o, group = (part.first + o) / plan.group_outputs;
            const std::uint16_t* counts = part.counts + static_cast<std::size_t>(o) * part.stride;
            const __m512 table = e.k_class != nullptr ? _mm512_loadu_ps(e.k + 16 * j) : _mm512_set1_ps(e.k[j]);
            std::uint64_t bits = 0;
            for (std::int64_t i = 0; i < part.length; i += 16) {
                const __mmask16 valid = first_lanes(part.length - i);
                const std::int64_t at = part.at + i;
                __m512 y = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(load_counts(counts + i)), full);
                y = _mm512_mul_ps(_mm512_set1_ps(e.p[j]), y);
                if (e.q != nullptr) {
                    const std::int32_t* sums = e.window_sums + part.image * e.window_sums_n + group * e.window_sums_g + at;
                    y = _mm512_add_ps(y, _mm512_mul_ps(_mm512_set1_ps(e.q[j]), _mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(valid, sums))));
                }
                if (e.k_class != nullptr)
                    y = _mm512_add_ps(y, _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(valid, e.k_class + at)), table));
                else
                    y = _mm512_add_ps(y, table);
                y = activate_any(y, e.before, j);
                if (e.shortcut != nullptr) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(valid, e.shortcut + part.image * e.shortcut_n + j * e.shortcut_c + at));
                y = activate_any(y, e.after, j);
                if (e.y != nullptr) _mm512_mask_storeu_ps(e.y + part.image * e.y_n + j * e.y_c + at, valid, y);
                if (e.bits == nullptr) continue;
                bits |= static_cast<std::uint64_t>(_mm512_cmp_ps_mask(y, _mm512_set1_ps(e.threshold[j]), _CMP_GE_OQ)) << (i & 63);
                if ((i & 63) != 48 && i + 16 < part.length) continue;
                if (e.flip != nullptr && e.flip[j] != 0) bits = ~bits;
                std::uint64_t* words = e.bits->words + (j >> 6) * e.bits->block_stride() + part.image * (e.bits->image_bits / 64) * kBitMapPitch;
                const std::int64_t begin = i & ~std::int64_t{63}, left = part.length - begin;
                append_bits(words + (j & 63), part.at + begin, left < 64 ? left : 64, bits);
                bits = 0;
            }
        }
}

using Finish = void (*)(const Plan&, const Epilogue&, const Part&);

template <int before, int after>
Finish choose_flags(const Epilogue& e) {
    if (e.shortcut != nullptr) return e.bits != nullptr ? finish<before, true, after, true> : finish<before, true, after, false>;
    return e.bits != nullptr ? finish<before, false, after, true> : finish<before, false, after, false>;
}

template <int before>
Finish choose_after(const Epilogue& e) {
    if (e.after.kind == Activation::clamp) return choose_flags<before, Activation::clamp>(e);
    if (e.after.kind == Activation::slopes) return choose_flags<before, Activation::slopes>(e);
    return choose_flags<before, Activation::none>(e);
}

Finish choose(const Epilogue& e) {
    if (e.q != nullptr || e.k_class != nullptr) return finish_general;
    if (e.before.kind == Activation::clamp) return choose_after<Activation::clamp>(e);
    if (e.before.kind == Activation::slopes) return choose_after<Activation::slopes>(e);
    return choose_after<Activation::none>(e);
}

// Real positions [first, last) of all images, split at images; put(image, position, length, counts).
template <class Put>
ESBNN_INLINE void each_image(const Plan& plan, std::int64_t first, std::int64_t last, const std::uint16_t* counts, const Put& put) {
    if (plan.geo.images == 1) return put(0, first, last - first, counts);
    const std::int64_t size = static_cast<std::int64_t>(plan.out_h) * plan.out_w;
    for (std::int64_t from = first; from < last;) {
        const std::int64_t image = from / size, end = (image + 1) * size < last ? (image + 1) * size : last;
        put(static_cast<int>(image), from - image * size, end - from, counts + (from - first));
        from = end;
    }
}

struct Floats {
    const Plan& plan;
    const Epilogue& e;
    Finish finish;

    void put(int first, int outputs, std::int64_t from, std::int64_t to, const std::uint16_t* counts, std::size_t stride) const {
        each_image(plan, from, to, counts, [&](int image, std::int64_t at, std::int64_t length, const std::uint16_t* c) {
            finish(plan, e, Part{first, outputs, image, at, length, c, stride});
        });
    }
};

struct Sums {
    const Plan& plan;
    std::int32_t* dot;
    std::int64_t dot_n, dot_c;

    void put(int first, int outputs, std::int64_t from, std::int64_t to, const std::uint16_t* counts, std::size_t stride) const {
        const __m512i full = _mm512_set1_epi32(plan.full);
        const __m128i shift = _mm_cvtsi32_si128(plan.odd ? 0 : 1);
        each_image(plan, from, to, counts, [&](int image, std::int64_t at, std::int64_t length, const std::uint16_t* c) {
            for (int o = 0; o < outputs; ++o, c += stride) {
                std::int32_t* y = dot + image * dot_n + (first + o) * dot_c + at;
                for (std::int64_t i = 0; i < length; i += 16)
                    _mm512_mask_storeu_epi32(y + i, first_lanes(length - i), _mm512_sub_epi32(full, _mm512_sll_epi32(load_counts(c + i), shift)));
            }
        });
    }
};

// Chunks that are counted before their outputs are finished: enough for runs of a channel that the processor's prefetching and
// address translation like, few enough that counts stay in the first level cache. The pitch is an odd number of cache lines.
constexpr int kChunksAtOnce = 4;
constexpr std::size_t kPitch = 64 * kChunksAtOnce + 96;

template <class Sink>
void run_unit(const Plan& plan, const std::uint8_t* planes, const void* matrices, int unit, std::uint16_t* counts, const Sink& sink) {
    const UnitOutputs out = unit_outputs(plan, unit);
    const std::uint8_t* group_planes = planes + plan.block_bytes * static_cast<std::size_t>(plan.blocks * out.group);
    const char* base = static_cast<const char*>(matrices) + plan.unit_bytes * static_cast<std::size_t>(unit);
    const std::uint64_t* m = reinterpret_cast<const std::uint64_t*>(base);
    const int blocks = (out.count + 7) / 8;
    for (int b = 0; plan.chunks > 0 && b < blocks; b += 2) {
        const int width = blocks - b < 2 ? 1 : 2, outputs = out.count - 8 * b < 8 * width ? out.count - 8 * b : 8 * width;
        for (int c = 0; c < plan.chunks; c += kChunksAtOnce) {
            const int end = c + kChunksAtOnce < plan.chunks ? c + kChunksAtOnce : plan.chunks;
            alignas(64) std::uint16_t buffer[16 * kPitch];
            for (int k = c; k < end; ++k) chunk_counts(plan, group_planes, m, width, k, buffer + (plan.chunk_real[k] - plan.chunk_real[c]), kPitch);
            sink.put(out.first + 8 * b, outputs, plan.chunk_real[c], plan.chunk_real[end], buffer, kPitch);
        }
        m += static_cast<std::size_t>(plan.steps * plan.matrices * width);
    }
    if (plan.position_groups == 0) return;
    m = reinterpret_cast<const std::uint64_t*>(base + (plan.forms == Forms::mixed ? plan.unit_bytes / 2 : 0));
    group_counts(plan, group_planes, m, blocks, counts);
    const int first = plan.chunk_real[plan.chunks];                        // groups may begin a little before
    sink.put(out.first, out.count, first, plan.real_positions, counts + (first - plan.group_real[0]), count_pitch(plan));
}

}  // namespace

void conv_dot(const Plan& plan, const std::uint8_t* planes, const void* matrices, int unit_first, int unit_last, void* scratch,
              std::int32_t* dot, std::int64_t dot_n, std::int64_t dot_c) {
    const Sums sink{plan, dot, dot_n, dot_c};
    for (int unit = unit_first; unit < unit_last; ++unit) run_unit(plan, planes, matrices, unit, static_cast<std::uint16_t*>(scratch), sink);
}

void conv_float(const Plan& plan, const std::uint8_t* planes, const void* matrices, int unit_first, int unit_last, void* scratch,
                const Epilogue& e) {
    const Floats sink{plan, e, choose(e)};
    if (e.y == nullptr && e.bits == nullptr) return;
    for (int unit = unit_first; unit < unit_last; ++unit) run_unit(plan, planes, matrices, unit, static_cast<std::uint16_t*>(scratch), sink);
}

}  // namespace affine
}  // namespace esbnn
