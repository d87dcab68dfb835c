#include "shape.h"

#include <cinttypes>

#include "error.h"

namespace esbnn {
namespace {

constexpr std::int64_t kLargest = INT32_MAX;                      // of one size
constexpr std::int64_t kExact = std::int64_t{1} << 24;            // integers up to here are exact in float32

void within(const char* name, std::int64_t value, std::int64_t low) {
    if (value < low || value > kLargest)
        fail(ESBNN_E_ARGUMENT, "%s is %" PRId64 ", wanted %" PRId64 " to %" PRId64, name, value, low, kLargest);
}

std::int64_t output(const char* name, std::int64_t in, std::int64_t kernel, std::int64_t stride, std::int64_t padding, std::int64_t dilation) {
    const std::int64_t reach = (kernel - 1) * dilation + 1, padded = in + 2 * padding;
    if (in > 0 && padded < reach)
        fail(ESBNN_E_ARGUMENT, "the kernel reaches over %" PRId64 " of a padded %s of %" PRId64, reach, name, padded);
    return in > 0 ? (padded - reach) / stride + 1 : 0;
}

}  // namespace

std::int64_t product(const char* what, std::initializer_list<std::int64_t> sizes) {
    std::int64_t out = 1;
    for (const std::int64_t size : sizes)
        if (__builtin_mul_overflow(out, size, &out) || out > INT64_MAX / 64) fail(ESBNN_E_ARGUMENT, "%s has more elements than can be addressed", what);
    return out;
}

Shape check_shape(const esbnn_conv_shape& given, bool maps) {
    Shape s{};
    static_cast<esbnn_conv_shape&>(s) = given;
    if (!maps) s.n = s.h = s.w = 0;
    within("n", s.n, 0);
    within("h", s.h, 0);
    within("w", s.w, 0);
    within("groups", s.groups, 1);
    within("channels", s.channels, 1);
    within("filters", s.filters, 1);
    within("kernel_h", s.kernel_h, 1);
    within("kernel_w", s.kernel_w, 1);
    within("stride_h", s.stride_h, 1);
    within("stride_w", s.stride_w, 1);
    within("padding_h", s.padding_h, 0);
    within("padding_w", s.padding_w, 0);
    within("dilation_h", s.dilation_h, 1);
    within("dilation_w", s.dilation_w, 1);
    if (s.pad < ESBNN_PAD_SKIP || s.pad > ESBNN_PAD_HI) fail(ESBNN_E_ARGUMENT, "pad is %d, wanted 0 (skip), 1 (lo) or 2 (hi)", s.pad);
    if (s.reserved != 0) fail(ESBNN_E_ARGUMENT, "a reserved field of the shape is not 0");
    if (s.filters % s.groups != 0) fail(ESBNN_E_ARGUMENT, "%" PRId64 " groups do not divide %" PRId64 " filters", s.groups, s.filters);
    s.taps = product("a kernel", {s.kernel_h, s.kernel_w});
    if (product("a window", {s.taps, s.channels}) > kExact)
        fail(ESBNN_E_ARGUMENT, "a window of %" PRId64 " values: above %" PRId64 " its sum is not exact in float32", s.taps * s.channels, kExact);
    s.words = (s.channels + 63) / 64;
    s.pixel_words = product("a pixel", {s.groups, s.words});
    s.group_filters = s.filters / s.groups;
    s.octets = (s.group_filters + 7) / 8;
    product("the weights", {s.groups, s.octets * 8, s.taps, s.words, 8});
    if (!maps) return s;
    s.out_h = output("height", s.h, s.kernel_h, s.stride_h, s.padding_h, s.dilation_h);
    s.out_w = output("width", s.w, s.kernel_w, s.stride_w, s.padding_w, s.dilation_w);
    s.word_count = product("the packed input", {s.n, s.h, s.w, s.pixel_words});
    product("the padded input", {s.h + 2 * s.padding_h, s.w + 2 * s.padding_w, s.pixel_words, 8});
    product("the output", {s.n, s.filters, s.out_h, s.out_w, 4});
    return s;
}

void check_reach(const char* what, const void* data, std::int64_t count, std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w,
                 std::int64_t stride_n, std::int64_t stride_c, std::int64_t stride_h, std::int64_t stride_w) {
    if (count < 0) fail(ESBNN_E_ARGUMENT, "the count of %s is negative: %" PRId64, what, count);
    if (data == nullptr && count > 0) fail(ESBNN_E_ARGUMENT, "%s is null but has %" PRId64 " elements", what, count);
    if (stride_n < 0 || stride_c < 0 || stride_h < 0 || stride_w < 0) fail(ESBNN_E_ARGUMENT, "%s has a negative stride", what);
    if (n == 0 || c == 0 || h == 0 || w == 0) return;
    std::int64_t last = 0, step;
    const std::int64_t sizes[4] = {n, c, h, w}, strides[4] = {stride_n, stride_c, stride_h, stride_w};
    for (int i = 0; i < 4; ++i)
        if (__builtin_mul_overflow(sizes[i] - 1, strides[i], &step) || __builtin_add_overflow(last, step, &last))
            fail(ESBNN_E_ARGUMENT, "%s has strides that lead beyond what can be addressed", what);
    if (last >= count)
        fail(ESBNN_E_ARGUMENT, "%s has %" PRId64 " elements, its sizes and strides reach element %" PRId64, what, count, last);
}

}  // namespace esbnn
