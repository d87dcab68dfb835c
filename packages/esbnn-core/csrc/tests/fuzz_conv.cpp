// Fuzzer of the C interface's argument checks (clang's libFuzzer): sizes, strides, counts and kinds from the input, buffers exactly as
// large as their counts say, so that any step beyond one is seen. Weights' header and content come from the input as well.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "esbnn.h"

namespace {

class Input {
public:
    Input(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {}
    std::uint8_t byte() {
        if (left_ == 0) return 0;
        --left_;
        return *data_++;
    }
    // Mostly small, sometimes anything.
    std::int64_t number(std::int64_t usual) {
        const std::uint8_t kind = byte();
        if (kind < 200) return kind % (usual + 1);
        if (kind < 225) return -static_cast<std::int64_t>(byte());
        std::int64_t value = 0;
        for (int i = 0; i < 8; ++i) value = static_cast<std::int64_t>(static_cast<std::uint64_t>(value) << 8 | byte());
        return kind < 240 ? value & 0xFFFF : value;
    }
    // A buffer of `count` elements, or of none where the count is no size to try; the call is told the buffer's true count.
    template <class T>
    std::vector<T> buffer(std::int64_t count) {
        std::vector<T> out(static_cast<std::size_t>(count < 0 || count > 20000 ? 0 : count));
        std::uint8_t seed = byte();
        for (T& value : out) value = static_cast<T>(seed = static_cast<std::uint8_t>(seed * 5 + 1));
        return out;
    }

private:
    const std::uint8_t* data_;
    std::size_t left_;
};

template <class T>
T* pointer(std::vector<T>& v) { return v.empty() ? nullptr : v.data(); }
template <class T>
std::int64_t count(const std::vector<T>& v) { return static_cast<std::int64_t>(v.size()); }

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Input in(data, size);
    esbnn_conv_args args{};
    args.struct_bytes = sizeof(args);
    esbnn_conv_shape& s = args.shape;
    s = {in.number(3), in.number(9), in.number(9), in.number(3), in.number(140), in.number(24), in.number(4), in.number(4), in.number(3),
         in.number(3), in.number(3), in.number(3), in.number(3), in.number(3), static_cast<std::int32_t>(in.number(3)), 0};
    esbnn_force_path(esbnn_path_name(in.byte() % esbnn_path_count()));

    // Weights that fit where the sizes can be meant, with some bytes overwritten.
    std::int64_t bytes = 0, out_h = 0, out_w = 0, words = 0;  // all 0 where the sizes cannot be meant
    const char* expand = in.byte() % 2 ? esbnn_path_name(esbnn_path_active()) : nullptr;
    const bool meant = esbnn_output_size(&s, &out_h, &out_w) == ESBNN_OK && esbnn_weights_bytes(&s, expand, &bytes) == ESBNN_OK && bytes < (1 << 21) &&
                       esbnn_packed_words(s.n, s.h, s.w, s.groups, s.channels, &words) == ESBNN_OK && words < 20000;
    if (!meant) bytes = out_h = out_w = words = 0;
    std::vector<std::uint64_t> weights(static_cast<std::size_t>(meant ? (bytes + 7) / 8 : in.byte()));
    if (meant) {
        std::vector<std::uint64_t> bits(static_cast<std::size_t>(s.filters * s.kernel_h * s.kernel_w * ((s.channels + 63) / 64)), 0x123456789ABCDEFu);
        if (esbnn_prepare_weights(&s, expand, bits.data(), count(bits), weights.data(), bytes) != ESBNN_OK) __builtin_trap();
        for (int i = in.byte() % 4; i > 0; --i) reinterpret_cast<std::uint8_t*>(weights.data())[(in.byte() | in.byte() << 8) % bytes] = in.byte();
        if (in.byte() % 8 == 0) weights.resize(weights.size() / 2);
    }
    args.weights = pointer(weights);
    args.weights_bytes = meant ? std::min<std::int64_t>(bytes, count(weights) * 8) : count(weights) * 8;

    const std::int64_t channels = meant ? s.groups * s.channels : 1, h = meant ? s.h : 1, w = meant ? s.w : 1;
    auto packed = in.buffer<std::uint64_t>(words - (in.byte() % 16 == 0));
    auto x = in.buffer<float>(meant ? s.n * channels * s.h * s.w - (in.byte() % 16 == 0) : 5);
    auto thresholds = in.buffer<float>(s.n > 0 && meant ? s.n * channels : 1);
    auto flips = in.buffer<std::uint8_t>(channels);
    if (in.byte() % 2) {
        args.words = pointer(packed), args.word_count = count(packed);
    } else {
        args.floats = {pointer(x), count(x), channels * h * w, h * w, w, 1, pointer(thresholds), 1, 1, nullptr, 0};
        if (in.byte() % 2) args.floats.threshold_n = meant ? s.n : in.number(3), args.floats.threshold_c = channels;
        if (in.byte() % 2) args.floats.flips = pointer(flips), args.floats.flip_c = count(flips);
        if (in.byte() % 4 == 0) args.floats.stride_w = in.number(20), args.floats.stride_c = in.number(20);
        if (args.floats.threshold_n > 1000 || args.floats.threshold_n < 0 || args.floats.threshold_n * args.floats.threshold_c > count(thresholds)) args.floats.threshold_n = args.floats.threshold_c = 1;
        if (thresholds.empty()) args.floats.threshold_n = 0;
    }

    esbnn_epilogue& e = args.epilogue;
    e.copies = in.number(3);
    const std::int64_t j = meant && e.copies > 0 && e.copies < 100 ? s.filters * e.copies : 1, area = std::min<std::int64_t>(out_h * out_w, 1000);
    auto line = in.buffer<float>(j), k = in.buffer<float>(j * std::max<std::int64_t>(area, 16));
    auto out = in.buffer<float>(s.n > 0 && meant ? s.n * j * area : 1), shortcut = in.buffer<float>(count(out));
    auto sums = in.buffer<std::int32_t>(s.n > 0 && meant ? s.n * s.filters * area : 1), group_sums = in.buffer<std::int32_t>(count(sums));
    std::vector<std::int32_t> row_class(static_cast<std::size_t>(std::min<std::int64_t>(out_h, 1000))), col_class(static_cast<std::size_t>(std::min<std::int64_t>(out_w, 1000)));
    for (std::int32_t& c : row_class) c = in.byte() % 5 - (in.byte() == 9);
    for (std::int32_t& c : col_class) c = in.byte() % 5;
    e.p = pointer(line), e.p_count = count(line);
    if (in.byte() % 2) e.q = pointer(line), e.q_count = count(line);
    e.k_kind = static_cast<std::int32_t>(in.number(4));
    e.k_rows = e.k_cols = 4;
    const std::int64_t k_wanted[] = {0, j, j * 16, j * area};
    if (e.k_kind > 0 && e.k_kind < 4) e.k = pointer(k), e.k_count = std::min(count(k), k_wanted[e.k_kind]);
    e.row_class = pointer(row_class), e.row_class_count = count(row_class), e.col_class = pointer(col_class), e.col_class_count = count(col_class);
    e.act = static_cast<std::int32_t>(in.number(3));
    e.act_before_add = in.byte() % 2;
    e.clamp_lo = -1.0f, e.clamp_hi = 1.0f;
    if (in.byte() % 2) e.neg = pointer(line), e.neg_count = count(line);
    const auto map = [&](auto& data, std::int64_t of) {
        esbnn_map m{pointer(data), count(data), of * out_h * out_w, out_h * out_w, out_w, 1};
        if (in.byte() % 8 == 0) m.stride_h = in.number(40), m.stride_c = in.number(100);
        return in.byte() % 3 ? m : esbnn_map{};
    };
    args.out = map(out, j);
    e.shortcut = map(shortcut, j);
    args.sums = map(sums, meant ? s.filters : 1);
    args.group_sums = map(group_sums, meant ? s.groups : 1);
    args.threads = in.number(3);
    const std::int32_t status = esbnn_conv2d(&args);
    if (status != ESBNN_OK && (status != ESBNN_E_ARGUMENT || esbnn_error()[0] == '\0')) __builtin_trap();
    return 0;
}
