// A convolution's sizes, checked: no later arithmetic on them can overflow, and every sum is exact in float32.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "esbnn.h"

namespace esbnn {

struct Shape : esbnn_conv_shape {
    std::int64_t out_h, out_w;
    std::int64_t words;                  // of a pixel and group: ceil(Cg/64)
    std::int64_t pixel_words;            // of a pixel
    std::int64_t taps;
    std::int64_t group_filters;          // O/G
    std::int64_t octets;                 // eight filters at a time, of one group
    std::int64_t word_count;             // of the packed input
    std::int64_t positions() const { return out_h * out_w; }
    std::int64_t all_channels() const { return groups * channels; }
    std::int64_t last_mask() const {     // valid bits of a group's last word
        return channels % 64 == 0 ? -1 : static_cast<std::int64_t>((std::uint64_t{1} << (channels % 64)) - 1);
    }
};

// Throws Error on sizes that cannot be meant. `maps` false: n, h, w are not looked at and the output has no size.
Shape check_shape(const esbnn_conv_shape& shape, bool maps = true);

// Product of sizes below 2^62, or Error naming `what`.
std::int64_t product(const char* what, std::initializer_list<std::int64_t> sizes);

// Strides of [n, c, h, w] reach within `count` elements; an empty map needs none. Null with count > 0 is an Error.
void check_reach(const char* what, const void* data, std::int64_t count, std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w,
                 std::int64_t stride_n, std::int64_t stride_c, std::int64_t stride_h, std::int64_t stride_w);

}  // namespace esbnn
