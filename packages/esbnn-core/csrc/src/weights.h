// The prepared form of weights (described in esbnn.h): writing it, and reading it with every size checked.
#pragma once

#include <cstddef>
#include <cstdint>

#include "path.h"
#include "shape.h"

namespace esbnn {

struct Weights {
    const std::uint64_t* words;          // [G, B, taps, words, 8], not aligned for certain
    const std::int32_t* tap_sums;        // [taps, G*B*8] numbers of +1 weights
    const std::uint8_t* expansion;       // null: none
    std::int64_t expansion_bytes;
};

std::int64_t weights_bytes(const Shape& shape, const Path* expand);
void prepare_weights(const Shape& shape, const Path* expand, const std::uint64_t* bits, std::uint8_t* out);
Weights read_weights(const Shape& shape, const void* data, std::int64_t bytes);

}  // namespace esbnn
