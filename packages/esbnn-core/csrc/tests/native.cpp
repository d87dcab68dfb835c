// Native tests of the C interface: random layers against a plain loop, on every path that this CPU can run; bad arguments; several
// callers at once; fork. Buffers have exactly the sizes that the interface asks for, so that sanitizers see every step beyond.
//
//   esbnn_native_tests [cases [seed [threads [fork]]]]      fork 0: without it (qemu-user cannot); exit status 0: all equal
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "esbnn.h"

namespace {

class Random {
public:
    explicit Random(std::uint64_t seed) : state_(seed * 2 + 1) {}
    std::uint64_t next() {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        return state_ * 0x2545F4914F6CDD1Du;
    }
    std::int64_t in(std::int64_t low, std::int64_t high) { return low + static_cast<std::int64_t>(next() % static_cast<std::uint64_t>(high - low + 1)); }
    bool coin() { return next() >> 63 != 0; }
    float real() { return static_cast<float>(static_cast<double>(next() >> 11) / 4503599627370496.0 - 1.0); }
    template <class T>
    T of(std::initializer_list<T> values) {
        return values.begin()[in(0, static_cast<std::int64_t>(values.size()) - 1)];
    }

private:
    std::uint64_t state_;
};

std::atomic<int> failures{0};
void expect(bool good, const char* what, const std::string& where) {
    if (good) return;
    ++failures;
    std::printf("FAILED %s: %s [%s]\n", where.c_str(), what, esbnn_error());
}

std::int64_t all_runs() {
    std::int64_t sum = 0;
    for (int i = 0; i < esbnn_path_count(); ++i) sum += esbnn_path_runs(i);
    return sum;
}

// A layer with its input, and everything that a plain loop makes of it.
struct Case {
    esbnn_conv_shape shape{};
    std::int64_t out_h = 0, out_w = 0, copies = 1, j = 0;
    std::vector<float> x, thresholds;
    std::vector<std::uint8_t> flips;
    std::unique_ptr<std::uint8_t, void (*)(void*)> weights{nullptr, std::free};
    std::int64_t weight_bytes = 0;
    std::vector<std::uint64_t> words, bits;
    std::vector<std::int8_t> signs, kernel;          // [N, C, H, W], [O, Cg, kh, kw]
    std::vector<std::int32_t> sums, group_sums;      // [N, O, H', W'], [N, G, H', W']
    std::vector<float> p, q, k, shortcut, out;
    std::int64_t threshold_n = 1, threshold_c = 1;
    bool channels_last = false, with_q = false, with_shortcut = false;
    std::int64_t stride[4]{};                        // of x

    // expand: the path that the weights shall hold an expansion for, or null.
    explicit Case(Random& r, const char* expand = nullptr) {
        esbnn_conv_shape& s = shape;
        do {
            s = {};
            s.n = r.in(1, 3), s.h = r.in(1, 9), s.w = r.in(1, 60) > 57 ? r.in(250, 530) : r.in(1, 12);
            s.groups = r.of<std::int64_t>({1, 1, 1, 2, 3});
            s.channels = r.of<std::int64_t>({1, 2, 7, 16, 31, 33, 63, 64, 65, 100, 128, 130});
            s.filters = s.groups * r.of<std::int64_t>({1, 2, 7, 8, 9, 16, 17, 24, 40});
            s.kernel_h = r.of<std::int64_t>({1, 2, 3, 3, 5}), s.kernel_w = r.of<std::int64_t>({1, 2, 3, 3, 4});
            s.stride_h = r.in(1, 3), s.stride_w = r.in(1, 3);
            s.padding_h = r.in(0, 3), s.padding_w = r.in(0, 3);
            s.dilation_h = r.in(1, 2), s.dilation_w = r.in(1, 3);
            s.pad = static_cast<std::int32_t>(r.in(0, 2));
        } while (s.h + 2 * s.padding_h < (s.kernel_h - 1) * s.dilation_h + 1 || s.w + 2 * s.padding_w < (s.kernel_w - 1) * s.dilation_w + 1);
        out_h = (s.h + 2 * s.padding_h - (s.kernel_h - 1) * s.dilation_h - 1) / s.stride_h + 1;
        out_w = (s.w + 2 * s.padding_w - (s.kernel_w - 1) * s.dilation_w - 1) / s.stride_w + 1;
        const std::int64_t c = s.groups * s.channels;
        channels_last = r.coin();
        if (channels_last)
            stride[0] = s.h * s.w * c, stride[1] = 1, stride[2] = s.w * c, stride[3] = c;
        else
            stride[0] = s.h * s.w * c, stride[1] = s.h * s.w, stride[2] = s.w, stride[3] = 1;
        x.resize(static_cast<std::size_t>(s.n * c * s.h * s.w));
        for (float& v : x) v = r.in(0, 20) == 0 ? (r.coin() ? 0.0f : std::numeric_limits<float>::quiet_NaN()) : r.real();
        threshold_n = r.coin() ? s.n : 1, threshold_c = r.coin() ? c : 1;
        thresholds.resize(static_cast<std::size_t>(threshold_n * threshold_c));
        for (float& v : thresholds) v = r.coin() ? 0.0f : r.real() / 4;
        if (r.coin()) flips.resize(static_cast<std::size_t>(r.coin() ? c : 1));
        for (std::uint8_t& v : flips) v = r.coin();
        const std::int64_t row = (s.channels + 63) / 64, taps = s.kernel_h * s.kernel_w;
        kernel.resize(static_cast<std::size_t>(s.filters * s.channels * taps));
        bits.resize(static_cast<std::size_t>(s.filters * taps * row));
        for (std::int64_t o = 0; o < s.filters; ++o)
            for (std::int64_t i = 0; i < s.channels; ++i)
                for (std::int64_t t = 0; t < taps; ++t) {
                    const bool bit = r.coin();
                    kernel[static_cast<std::size_t>((o * s.channels + i) * taps + t)] = bit ? 1 : -1;
                    if (bit) bits[static_cast<std::size_t>((o * taps + t) * row + i / 64)] |= std::uint64_t{1} << (i % 64);
                }
        std::int64_t bytes = 0;
        expect(esbnn_weights_bytes(&s, expand, &bytes) == ESBNN_OK, "weights_bytes", "prepare");
        weights.reset(static_cast<std::uint8_t*>(std::aligned_alloc(64, static_cast<std::size_t>(bytes))));
        weight_bytes = bytes;
        expect(esbnn_prepare_weights(&s, expand, bits.data(), static_cast<std::int64_t>(bits.size()), weights.get(), bytes) == ESBNN_OK, "prepare_weights", "prepare");
        copies = r.in(1, 3), j = copies * s.filters;
        p.resize(static_cast<std::size_t>(j)), q.resize(p.size()), k.resize(p.size());
        for (std::vector<float>* v : {&p, &q, &k})
            for (float& value : *v) value = r.real();
        with_q = r.coin(), with_shortcut = r.coin();
        if (with_shortcut) shortcut.resize(static_cast<std::size_t>(s.n * j * out_h * out_w));
        for (float& v : shortcut) v = r.real();
        plain();
    }

    // The definition, tap by tap.
    void plain() {
        const esbnn_conv_shape& s = shape;
        const std::int64_t c = s.groups * s.channels, row = (s.channels + 63) / 64, per = s.filters / s.groups;
        signs.resize(x.size());
        words.assign(static_cast<std::size_t>(s.n * s.h * s.w * s.groups * row), 0);
        for (std::int64_t n = 0; n < s.n; ++n)
            for (std::int64_t i = 0; i < c; ++i)
                for (std::int64_t y = 0; y < s.h; ++y)
                    for (std::int64_t z = 0; z < s.w; ++z) {
                        const float v = x[static_cast<std::size_t>(n * stride[0] + i * stride[1] + y * stride[2] + z * stride[3])];
                        const float t = thresholds[static_cast<std::size_t>((threshold_n > 1 ? n : 0) * threshold_c + (threshold_c > 1 ? i : 0))];
                        const bool flip = !flips.empty() && flips[flips.size() > 1 ? static_cast<std::size_t>(i) : 0] != 0;
                        const bool bit = (v >= t) != flip;
                        signs[static_cast<std::size_t>(((n * c + i) * s.h + y) * s.w + z)] = bit ? 1 : -1;
                        if (bit)
                            words[static_cast<std::size_t>((((n * s.h + y) * s.w + z) * s.groups + i / s.channels) * row + i % s.channels / 64)] |=
                                std::uint64_t{1} << (i % s.channels % 64);
                    }
        sums.assign(static_cast<std::size_t>(s.n * s.filters * out_h * out_w), 0);
        group_sums.assign(static_cast<std::size_t>(s.n * s.groups * out_h * out_w), 0);
        out.assign(static_cast<std::size_t>(s.n * j * out_h * out_w), 0);
        for (std::int64_t n = 0; n < s.n; ++n)
            for (std::int64_t o = 0; o < s.filters; ++o)
                for (std::int64_t y = 0; y < out_h; ++y)
                    for (std::int64_t z = 0; z < out_w; ++z) {
                        std::int32_t st = 0, ss = 0;
                        for (std::int64_t i = 0; i < s.channels; ++i)
                            for (std::int64_t a = 0; a < s.kernel_h; ++a)
                                for (std::int64_t b = 0; b < s.kernel_w; ++b) {
                                    const std::int64_t iy = y * s.stride_h - s.padding_h + a * s.dilation_h, iz = z * s.stride_w - s.padding_w + b * s.dilation_w;
                                    std::int32_t v = s.pad == ESBNN_PAD_HI ? 1 : s.pad == ESBNN_PAD_LO ? -1 : 0;
                                    if (iy >= 0 && iy < s.h && iz >= 0 && iz < s.w)
                                        v = signs[static_cast<std::size_t>(((n * c + o / per * s.channels + i) * s.h + iy) * s.w + iz)];
                                    st += v * kernel[static_cast<std::size_t>(((o * s.channels + i) * s.kernel_h + a) * s.kernel_w + b)];
                                    ss += v;
                                }
                        const std::size_t at = static_cast<std::size_t>((y * out_w) + z), plane = static_cast<std::size_t>(out_h * out_w);
                        sums[static_cast<std::size_t>(n * s.filters + o) * plane + at] = st;
                        group_sums[static_cast<std::size_t>(n * s.groups + o / per) * plane + at] = ss;
                        for (std::int64_t copy = 0; copy < copies; ++copy) {
                            const std::size_t channel = static_cast<std::size_t>(copy * s.filters + o), to = (static_cast<std::size_t>(n * j) + channel) * plane + at;
                            float v = p[channel] * static_cast<float>(st);
                            if (with_q) v += q[channel] * static_cast<float>(ss);
                            v += k[channel];
                            if (with_shortcut) v += shortcut[to];
                            v = v < -1.0f ? -1.0f : v;
                            out[to] = v > 1.0f ? 1.0f : v;
                        }
                    }
    }

    esbnn_floats floats() const {
        return {x.data(), static_cast<std::int64_t>(x.size()), stride[0], stride[1], stride[2], stride[3], thresholds.data(), threshold_n, threshold_c,
                flips.empty() ? nullptr : flips.data(), static_cast<std::int64_t>(flips.size())};
    }

    template <class T>
    esbnn_map map(std::vector<T>& data, std::int64_t channels) const {
        if (data.empty()) return {};
        return {data.data(), static_cast<std::int64_t>(data.size()), channels * out_h * out_w, out_h * out_w, out_w, 1};
    }

    void check(const std::string& where, std::int64_t threads, bool packed_input) {
        const esbnn_conv_shape& s = shape;
        std::vector<std::uint64_t> got_words(words.size(), ~std::uint64_t{0});
        esbnn_pack_args pack{sizeof(pack), s.n, s.h, s.w, s.groups, s.channels, floats(), got_words.data(), static_cast<std::int64_t>(got_words.size()), threads};
        expect(esbnn_pack_sign(&pack) == ESBNN_OK && got_words == words, "packed words", where);

        std::vector<std::int32_t> got_sums(sums.size(), -12345), got_group_sums(group_sums.size(), -12345);
        std::vector<float> got(out.size(), -12345.0f);
        esbnn_conv_args args{};
        args.struct_bytes = sizeof(args);
        args.shape = s;
        if (packed_input)
            args.words = words.data(), args.word_count = static_cast<std::int64_t>(words.size());
        else
            args.floats = floats();
        args.weights = weights.get(), args.weights_bytes = weight_bytes;
        args.sums = map(got_sums, s.filters), args.group_sums = map(got_group_sums, s.groups), args.out = map(got, j);
        args.epilogue.copies = copies;
        args.epilogue.p = p.data(), args.epilogue.p_count = j;
        if (with_q) args.epilogue.q = q.data(), args.epilogue.q_count = j;
        args.epilogue.k = k.data(), args.epilogue.k_count = j, args.epilogue.k_kind = ESBNN_K_CHANNEL;
        args.epilogue.act = ESBNN_ACT_CLAMP, args.epilogue.clamp_lo = -1.0f, args.epilogue.clamp_hi = 1.0f;
        args.epilogue.shortcut = map(shortcut, j);
        args.threads = threads;
        expect(esbnn_conv2d(&args) == ESBNN_OK, "conv2d", where);
        expect(got_sums == sums, "sums", where);
        expect(got_group_sums == group_sums, "sums of groups", where);
        expect(std::memcmp(got.data(), out.data(), out.size() * sizeof(float)) == 0, "outputs", where);
    }
};

// Every change of one number must give an error or a result, never a crash.
void bad_arguments(Random& r, int rounds) {
    Case c(r, esbnn_path_name(esbnn_path_count() - 1));
    for (int i = 0; i < rounds; ++i) {
        std::vector<float> got(c.out.size());
        esbnn_conv_args args{};
        args.struct_bytes = sizeof(args);
        args.shape = c.shape;
        args.words = c.words.data(), args.word_count = static_cast<std::int64_t>(c.words.size());
        args.weights = c.weights.get(), args.weights_bytes = c.weight_bytes;
        args.out = c.map(got, c.j);
        args.epilogue.copies = c.copies;
        args.epilogue.p = c.p.data(), args.epilogue.p_count = c.j;
        args.epilogue.k = c.k.data(), args.epilogue.k_count = c.j, args.epilogue.k_kind = ESBNN_K_CHANNEL;
        // One thread: a changed stride may make outputs overlap, and two threads would then race for the same garbage.
        args.threads = 1;
        // A size, count, stride or kind; pointers stay.
        std::int64_t* const fields[] = {
            &args.shape.n, &args.shape.h, &args.shape.w, &args.shape.groups, &args.shape.channels, &args.shape.filters, &args.shape.kernel_h,
            &args.shape.kernel_w, &args.shape.stride_h, &args.shape.stride_w, &args.shape.padding_h, &args.shape.padding_w, &args.shape.dilation_h,
            &args.shape.dilation_w, &args.word_count, &args.out.count, &args.out.stride_n, &args.out.stride_c, &args.out.stride_h,
            &args.out.stride_w, &args.epilogue.copies, &args.epilogue.p_count, &args.epilogue.q_count, &args.epilogue.k_count, &args.epilogue.k_rows,
            &args.threads};
        std::int64_t& field = *fields[r.in(0, static_cast<std::int64_t>(sizeof(fields) / sizeof(fields[0])) - 1)];
        const std::int64_t was = field;
        field = r.of<std::int64_t>({0, -1, was + 1, was - 1, was * 2, INT32_MAX, INT64_MAX, INT64_MIN, std::int64_t{1} << 40});
        // Counts above the truth cannot be told from it, threads mean nothing to the result.
        if ((&field == &args.word_count || &field == &args.out.count || &field == &args.threads) && field > was) continue;
        if (esbnn_conv2d(&args) == ESBNN_E_ARGUMENT) expect(esbnn_error()[0] != '\0', "an error without a text", "bad arguments");
    }
    esbnn_conv_args empty{};
    expect(esbnn_conv2d(nullptr) == ESBNN_E_ARGUMENT, "null arguments", "bad arguments");
    expect(esbnn_conv2d(&empty) == ESBNN_E_ARGUMENT, "an empty struct", "bad arguments");
    expect(esbnn_pack_sign(nullptr) == ESBNN_E_ARGUMENT, "null arguments", "bad arguments");
    expect(esbnn_force_path("abacus") == ESBNN_E_UNKNOWN_PATH, "an unknown path", "bad arguments");
    expect(esbnn_path_name(-1) == nullptr && esbnn_path_name(99) == nullptr && esbnn_path_runs(99) == -1, "indices outside", "bad arguments");
}

}  // namespace

int main(int argc, char** argv) {
    const long cases = argc > 1 ? std::atol(argv[1]) : 300;
    const std::uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
    const std::int64_t threads = argc > 3 ? std::atol(argv[3]) : 3;
    for (int i = 0; i < esbnn_path_count(); ++i) {
        const std::string name = esbnn_path_name(i);
        if (esbnn_path_supported(i) != 1) {
            std::printf("skipped path %s: this CPU has not all of %s\n", name.c_str(), esbnn_path_needs(i));
            expect(esbnn_force_path(name.c_str()) == ESBNN_E_UNSUPPORTED_PATH, "an unsupported path was taken", name);
            continue;
        }
        expect(esbnn_force_path(name.c_str()) == ESBNN_OK && esbnn_path_active() == i, "the path was not taken", name);
        const std::int64_t before = esbnn_path_runs(i), all_before = all_runs();
        Random r(seed);
        for (long n = 0; n < cases; ++n) {
            Case c(r, name.c_str());
            c.check(name + " case " + std::to_string(n), r.coin() ? 1 : threads, r.coin());
        }
        // A path with a formulation of its own leaves what it has no way for to its popcount kernels.
        const std::int64_t own = esbnn_path_runs(i) - before;
        expect(all_runs() - all_before == cases && own > cases / 20, "the path did not run", name);
        std::printf("path %s: %ld cases, %ld by kernels of its own\n", name.c_str(), cases, static_cast<long>(own));
    }
    esbnn_force_path(nullptr);
    Random r(seed + 1);
    for (int i = 0; i < 20; ++i) bad_arguments(r, 60);

    // Several callers, each with several threads.
    std::vector<std::thread> callers;
    for (int t = 0; t < 4; ++t)
        callers.emplace_back([t, seed, threads] {
            Random own(seed + 10 + static_cast<std::uint64_t>(t));
            for (int n = 0; n < 15; ++n) Case(own, esbnn_path_name(esbnn_path_active())).check("caller " + std::to_string(t), threads, n % 2 == 0);
        });
    for (std::thread& caller : callers) caller.join();

#if defined(__SANITIZE_THREAD__)
    const bool forks = false;                        // its own threads do not survive one
#else
    const bool forks = argc <= 4 || std::atoi(argv[4]) != 0;
#endif
    if (forks) {
        // A child makes its own threads.
        const pid_t child = fork();
        if (child == 0) {
            failures = 0;
            for (int n = 0; n < 10; ++n) Case(r).check("child", threads, true);
            _exit(failures == 0 ? 0 : 1);
        }
        int status = -1;
        expect(waitpid(child, &status, 0) == child && status == 0, "the child failed", "fork");
    }
    std::printf("%d failures\n", failures.load());
    return failures == 0 ? 0 : 1;
}
