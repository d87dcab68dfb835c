// The affine formulation (src/affine) as a path: hooks for the table in paths.cpp.
#pragma once

#include <cstdint>

#include "conv.h"

namespace esbnn {

bool affine_takes(const ConvJob& job);
void affine_conv(const ConvJob& job, const Kernels& kernels);
std::int64_t affine_expansion_bytes(const Shape& shape);
void affine_expand(const Shape& shape, const std::uint64_t* bits, std::uint8_t* out);

}  // namespace esbnn
