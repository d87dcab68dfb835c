// Count planes of one output unit's positions: what conv_chunks.cpp and conv_groups.cpp make and counts.h, switch.cpp read.
#pragma once

#include "adders.h"

namespace esbnn {
namespace affine {

constexpr int kMaxCountPlanes = 17;

// Planes [count plane][width] of one chunk (width = blocks of 8 outputs, 1 or 2) at flattened position q; `group_planes` is the
// convolution group's first plane, m the matrices of the blocks.
void sum_chunk(const Plan& plan, const std::uint8_t* group_planes, const std::uint64_t* m, int width, int q, __m512i* out);

// Planes [count plane][width] of one or two groups of positions for 64 outputs.
void sum_groups(const Plan& plan, const std::uint8_t* group_planes, const std::uint64_t* m, int width, const std::int32_t* q, __m512i* out);

// All steps of a form. data(step offset) -> Form; start(k) -> the words that plane k starts from.
template <class Form, class Data, class Start>
ESBNN_INLINE void sum_steps(const Plan& plan, const std::uint64_t* m, const Data& data, const Start& start, __m512i* out) {
    constexpr int width = Form::kWidth, levels = levels_of(Form::kKind);
    using W = Words<width>;
    W s[levels], c[kMaxCounters];
    const int first = plan.odd ? 1 : 0, counters = plan.count_planes - first - levels;
    for (int k = 0; k < levels; ++k) s[k] = start(first + k);
    for (int k = 0; k < counters; ++k) c[k] = start(first + levels + k);
    const int matrix_words = (Form::kKind / 2 + 1) * Form::kMatrix;
    int i = 0;
    for (; i + 3 <= plan.steps; i += 3, m += 3 * matrix_words) {
        const W t0 = step_word(data(plan.step_offset[i]), m, s);
        const W t1 = step_word(data(plan.step_offset[i + 1]), m + matrix_words, s);
        const W t2 = step_word(data(plan.step_offset[i + 2]), m + 2 * matrix_words, s);
        count_three(c, counters, t0, t1, t2);
    }
    for (; i < plan.steps; ++i, m += matrix_words) count_one(c, counters, step_word(data(plan.step_offset[i]), m, s));

    if (first == 1) {
        const W odd = start(0);
        for (int k = 0; k < width; ++k) out[k] = odd.v[k];
    }
    out += first * width;
    for (int k = 0; k < levels; ++k)
        for (int j = 0; j < width; ++j) out[k * width + j] = s[k].v[j];
    for (int k = 0; k < counters; ++k)
        for (int j = 0; j < width; ++j) out[(levels + k) * width + j] = c[k].v[j];
}

}  // namespace affine
}  // namespace esbnn
