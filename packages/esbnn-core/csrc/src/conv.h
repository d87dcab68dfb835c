// One convolution, checked, and its run by xor and population counts.
#pragma once

#include "path.h"
#include "shape.h"
#include "weights.h"

namespace esbnn {

// Everything in here has been checked: sizes agree, pointers reach.
struct ConvJob {
    Shape shape;
    const esbnn_conv_args* args;
    const std::uint64_t* words;          // packed input; null if it comes as floats (args->floats)
    Weights weights;
    std::int64_t threads;
    bool has_sums() const { return args->sums.data != nullptr; }
    bool has_group_sums() const { return args->group_sums.data != nullptr; }
    bool has_out() const { return args->out.data != nullptr; }
};

ConvJob check_conv(const esbnn_conv_args& args);
void run_conv(const ConvJob& job, const Kernels& kernels);

}  // namespace esbnn
