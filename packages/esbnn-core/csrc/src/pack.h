// Packing float maps to words: the checked job, and its run over the threads.
#pragma once

#include "path.h"
#include "shape.h"

namespace esbnn {

struct PackJob {
    std::int64_t n, h, w, groups, channels;      // channels of one group
    esbnn_floats floats;
    std::uint64_t* words;
};

void check_floats(const esbnn_floats& floats, std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w);
void pack_sign(const PackJob& job, const Kernels& kernels, std::int64_t threads);

}  // namespace esbnn
