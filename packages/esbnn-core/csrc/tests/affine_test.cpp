// Exactness of the affine path against a plain loop: sums, fused floats (bit for bit), bits, packing. Stand-alone:
//     affine_test [seconds of random cases, default 10] [seed]
// Prints the number of comparisons and exits 1 at the first difference.
#include "../src/affine/affine.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <random>
#include <string>
#include <vector>

using namespace esbnn::affine;

namespace {

std::mt19937 rng(1);
long comparisons = 0;

int pick(int lo, int hi) { return std::uniform_int_distribution<int>(lo, hi)(rng); }
int one_of(std::initializer_list<int> list) { return list.begin()[pick(0, static_cast<int>(list.size()) - 1)]; }
float real() { return std::uniform_real_distribution<float>(-1.0f, 1.0f)(rng); }

std::string describe(const Geometry& g, Forms forms) {
    char text[256];
    std::snprintf(text, sizeof text, "n%d c%d %dx%d o%d g%d k%dx%d s%d,%d p%d,%d d%d,%d pad %d forms %d", g.images, g.channels, g.height, g.width,
                  g.outputs, g.groups, g.kernel_h, g.kernel_w, g.stride_h, g.stride_w, g.pad_h, g.pad_w, g.dilation_h, g.dilation_w,
                  static_cast<int>(g.pad), static_cast<int>(forms));
    return text;
}

[[noreturn]] void fail(const Geometry& g, Forms forms, const char* what, long at) {
    std::printf("DIFFERENT: %s at %ld: %s\n", what, at, describe(g, forms).c_str());
    std::exit(1);
}

template <class T>
struct Buffer {                                    // exactly the asked size, 64-byte aligned, so that sanitizers see every overrun
    T* p;
    std::size_t bytes;
    explicit Buffer(std::size_t n, int fill = 0xA5) : bytes((n * sizeof(T) + 63) / 64 * 64) {
        p = static_cast<T*>(std::aligned_alloc(64, bytes));
        std::memset(static_cast<void*>(p), fill, bytes);
    }
    ~Buffer() { std::free(p); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
};

// The reference: sums of +-1 over real taps (or padded bits).
struct Problem {
    Geometry g;
    int out_h, out_w;
    std::vector<std::uint8_t> x, w;                // bits [N,C,H,W], [O,C/g,kh,kw]
    std::vector<std::int32_t> dot;                 // [N,O,H',W']

    void compute() {
        const int cg = g.channels / g.groups, og = g.outputs / g.groups;
        dot.assign(static_cast<std::size_t>(g.images) * g.outputs * out_h * out_w, 0);
        std::size_t at = 0;
        for (int n = 0; n < g.images; ++n)
            for (int o = 0; o < g.outputs; ++o)
                for (int y = 0; y < out_h; ++y)
                    for (int xo = 0; xo < out_w; ++xo, ++at) {
                        int sum = 0;
                        for (int ky = 0; ky < g.kernel_h; ++ky)
                            for (int kx = 0; kx < g.kernel_w; ++kx) {
                                const int iy = y * g.stride_h - g.pad_h + ky * g.dilation_h, ix = xo * g.stride_w - g.pad_w + kx * g.dilation_w;
                                const bool inside = iy >= 0 && iy < g.height && ix >= 0 && ix < g.width;
                                if (!inside && g.pad == Pad::skip) continue;
                                const std::uint8_t* wp = &w[((static_cast<std::size_t>(o) * cg) * g.kernel_h + ky) * g.kernel_w + kx];
                                const std::size_t plane = static_cast<std::size_t>(g.height) * g.width;
                                const std::uint8_t* xp = inside ? &x[(static_cast<std::size_t>(n) * g.channels + o / og * cg) * plane + static_cast<std::size_t>(iy) * g.width + ix] : nullptr;
                                for (int c = 0; c < cg; ++c) {
                                    const int bit = inside ? xp[static_cast<std::size_t>(c) * plane] : g.pad == Pad::hi;
                                    sum += bit == wp[static_cast<std::size_t>(c) * g.kernel_h * g.kernel_w] ? 1 : -1;
                                }
                            }
                        dot[at] = sum;
                    }
    }
};

enum class Fill { random, plus, minus };

Problem make_problem(const Geometry& g, const Plan& plan, Fill fill) {
    Problem p{g, plan.out_h, plan.out_w, {}, {}, {}};
    p.x.resize(static_cast<std::size_t>(g.images) * g.channels * g.height * g.width);
    p.w.resize(static_cast<std::size_t>(g.outputs) * (g.channels / g.groups) * g.kernel_h * g.kernel_w);
    for (auto& b : p.x) b = fill == Fill::random ? rng() >> 7 & 1 : fill == Fill::plus;
    const int weights = pick(0, 5);                // mostly random; extremes reach the largest counts
    for (auto& b : p.w) b = weights == 0 ? 0 : weights == 1 ? 1 : rng() >> 7 & 1;
    p.compute();
    return p;
}

void weights_of(const Problem& p, const Plan& plan, std::vector<std::uint64_t>& words) {
    const int cg = p.g.channels / p.g.groups, taps = p.g.kernel_h * p.g.kernel_w, row = (cg + 63) / 64;
    words.assign(static_cast<std::size_t>(p.g.outputs) * taps * row, 0);
    for (int o = 0; o < p.g.outputs; ++o)
        for (int t = 0; t < taps; ++t) {
            std::uint64_t* to = &words[(static_cast<std::size_t>(o) * taps + t) * row];
            if (cg % 64 != 0) to[row - 1] = ~std::uint64_t{0} << (cg % 64);              // spare bits hold anything
            for (int c = 0; c < cg; ++c) to[c / 64] |= static_cast<std::uint64_t>(p.w[(static_cast<std::size_t>(o) * cg + c) * taps + t]) << (c % 64);
        }
    (void)plan;
}

// Packs the problem's bits in one of four ways.
void pack_in(const Problem& p, const BitMap& map) {
    const Geometry& g = p.g;
    const int blocks = (g.channels + 63) / 64, way = pick(0, 3);
    const std::size_t size = static_cast<std::size_t>(g.height) * g.width;
    if (way == 3) {
        const int cg = g.channels / g.groups, row = (cg + 63) / 64;
        std::vector<std::uint64_t> words(static_cast<std::size_t>(g.images) * size * g.groups * row, 0);
        for (int n = 0; n < g.images; ++n)
            for (int c = 0; c < g.channels; ++c)
                for (std::size_t i = 0; i < size; ++i)
                    words[((n * size + i) * g.groups + c / cg) * row + c % cg / 64] |=
                        static_cast<std::uint64_t>(p.x[(static_cast<std::size_t>(n) * g.channels + c) * size + i]) << (c % cg % 64);
        pack_words_map(words.data(), g.images, g.groups, cg, g.height, g.width, map, 0, blocks);
        return;
    }
    const bool per_sample = pick(0, 1), per_channel = pick(0, 1), flips = pick(0, 1);
    std::vector<float> t(static_cast<std::size_t>(per_sample ? g.images : 1) * (per_channel ? g.channels : 1));
    for (auto& v : t) v = pick(0, 3) == 0 ? 0.0f : real();
    std::vector<std::uint8_t> flip(static_cast<std::size_t>(g.channels));
    for (auto& f : flip) f = pick(0, 1);
    Source s{nullptr, 0, 0, 0, 0, t.data(), per_sample ? (per_channel ? g.channels : 1) : 0, per_channel ? 1 : 0, flips ? flip.data() : nullptr};
    // NCHW, channels last, or rows with gaps
    const std::int64_t gap = way == 2 ? 3 : 0;
    s.stride_c = way == 1 ? 1 : static_cast<std::int64_t>(g.height) * (g.width + gap);
    s.stride_w = way == 1 ? g.channels : 1;
    s.stride_h = way == 1 ? static_cast<std::int64_t>(g.width) * g.channels : g.width + gap;
    s.stride_n = static_cast<std::int64_t>(g.channels) * g.height * (g.width + gap);
    std::vector<float> x(static_cast<std::size_t>(s.stride_n) * g.images, std::nanf(""));
    for (int n = 0; n < g.images; ++n)
        for (int c = 0; c < g.channels; ++c)
            for (int y = 0; y < g.height; ++y)
                for (int i = 0; i < g.width; ++i) {
                    const float at = t[static_cast<std::size_t>(n * s.threshold_n + c * s.threshold_c)];
                    const bool bit = p.x[((static_cast<std::size_t>(n) * g.channels + c) * g.height + y) * g.width + i] != (flips && flip[c]);
                    const int kind = pick(0, 7);                        // exactly at, next to, far from the threshold, or NaN (bit 0)
                    const float below = kind == 0 ? std::nanf("") : kind < 3 ? std::nextafter(at, -9.0f) : at - 1.0f;
                    x[static_cast<std::size_t>(n * s.stride_n + c * s.stride_c + y * s.stride_h + i * s.stride_w)] = bit ? (kind < 3 ? at : at + 1.0f) : below;
                }
    s.x = x.data();
    pack_map(s, g.images, g.channels, g.height, g.width, map, 0, blocks);
}

// Scalar model of the epilogue.
float model(const Activation& a, float y, int j) {
    if (a.kind == Activation::clamp) return std::fmin(a.hi, std::fmax(a.lo, y));
    if (a.kind == Activation::none) return y;
    if (a.shift_in) y = y + a.shift_in[j];
    if (a.negative == nullptr)
        y = (y > 0 ? y : 0.0f) * (a.positive ? a.positive[j] : 1.0f);
    else
        y = y > 0 ? y * (a.positive ? a.positive[j] : 1.0f) : y * a.negative[j];
    return a.shift_out ? y + a.shift_out[j] : y;
}

struct Layer {                                     // a plan with planes and matrices filled
    const Problem& p;
    const Plan& plan;
    Buffer<std::uint8_t> planes, matrices, scratch;
    Layer(const Problem& problem, const Plan& pl) : p(problem), plan(pl), planes(pl.workspace_bytes), matrices(pl.weight_bytes), scratch(scratch_bytes(pl)) {
        std::vector<std::uint64_t> words;
        weights_of(p, plan, words);
        prepare_weights(plan, words.data(), matrices.p, 0, plan.units);
        init_planes(plan, planes.p);
    }
    void load(const BitMap& map) {
        const int all = plan.blocks * plan.geo.groups, half = all / 2;
        features(plan, map, planes.p, half, all);
        features(plan, map, planes.p, 0, half);
    }
};

void check_dot(Layer& l, const char* what) {
    const std::size_t size = static_cast<std::size_t>(l.p.out_h) * l.p.out_w, image = size * l.p.g.outputs;
    std::vector<std::int32_t> dot(image * l.p.g.images, 12345);
    const int half = l.plan.units / 2;
    conv_dot(l.plan, l.planes.p, l.matrices.p, half, l.plan.units, l.scratch.p, dot.data(), static_cast<std::int64_t>(image), static_cast<std::int64_t>(size));
    conv_dot(l.plan, l.planes.p, l.matrices.p, 0, half, l.scratch.p, dot.data(), static_cast<std::int64_t>(image), static_cast<std::int64_t>(size));
    for (std::size_t i = 0; i < dot.size(); ++i)
        if (dot[i] != l.p.dot[i]) fail(l.p.g, l.plan.forms, what, static_cast<long>(i));
    ++comparisons;
}

// Bits of channels [J] by a map, convolved by a 1x1 or 3x3 layer, must equal the reference of that layer: checks the whole hand-over.
void check_next(const Problem& p, const BitMap& map, const std::vector<std::uint8_t>& bits, int channels, const char* what) {
    Geometry g;
    g.images = p.g.images, g.channels = channels, g.height = p.out_h, g.width = p.out_w;
    g.outputs = one_of({3, 8, 64});
    g.kernel_h = g.kernel_w = one_of({1, 3});
    g.pad_h = g.pad_w = g.kernel_h / 2;
    g.stride_h = g.stride_w = one_of({1, 2});
    g.pad = static_cast<Pad>(pick(0, 2));
    Plan* plan = make_plan(g);
    if (plan == nullptr) fail(g, Forms::best, "next layer refused", 0);
    Problem next{g, plan->out_h, plan->out_w, bits, {}, {}};
    next.w.resize(static_cast<std::size_t>(g.outputs) * channels * g.kernel_h * g.kernel_w);
    for (auto& b : next.w) b = rng() >> 7 & 1;
    next.compute();
    {
        Layer l(next, *plan);
        l.load(map);
        check_dot(l, what);
    }
    free_plan(plan);
}

void check_float(Layer& l) {
    const Geometry& g = l.p.g;
    const int copies = one_of({1, 1, 2, 4}), channels = copies * g.outputs;
    const std::size_t size = static_cast<std::size_t>(l.p.out_h) * l.p.out_w, total = static_cast<std::size_t>(g.images) * channels * size;
    const auto values = [&] {
        std::vector<float> v(static_cast<std::size_t>(channels));
        for (auto& f : v) f = real();
        return v;
    };
    const auto p = values(), q = values(), threshold = values(), in = values(), pos = values(), neg = values(), shift = values();
    std::vector<float> k(16 * static_cast<std::size_t>(channels));
    for (auto& f : k) f = real();
    std::vector<std::uint8_t> flip(static_cast<std::size_t>(channels)), k_class(size);
    for (auto& f : flip) f = pick(0, 1);
    for (auto& f : k_class) f = static_cast<std::uint8_t>(pick(0, 15));
    std::vector<std::int32_t> sums(size * static_cast<std::size_t>(g.images * g.groups));
    for (auto& f : sums) f = pick(-4608, 4608);
    std::vector<float> shortcut(total), y(total, -77.0f);
    for (auto& f : shortcut) f = real();
    Epilogue e;
    e.copies = copies, e.p = p.data(), e.k = k.data();
    for (Activation* a : {&e.before, &e.after}) {
        a->kind = static_cast<Activation::Kind>(pick(0, 2));
        if (pick(0, 1)) a->shift_in = in.data();
        if (pick(0, 1)) a->positive = pos.data();
        if (pick(0, 2)) a->negative = neg.data();
        if (pick(0, 1)) a->shift_out = shift.data();
    }
    if (pick(0, 1)) e.shortcut = shortcut.data();
    const bool classes = pick(0, 3) == 0;
    if (classes) e.k_class = k_class.data();
    if (pick(0, 3) == 0) e.q = q.data(), e.window_sums = sums.data();
    e.window_sums_g = static_cast<std::int64_t>(size), e.window_sums_n = e.window_sums_g * g.groups;
    e.shortcut_n = e.y_n = static_cast<std::int64_t>(channels * size);
    e.shortcut_c = e.y_c = static_cast<std::int64_t>(size);
    e.y = y.data();
    BitMap map = bit_map(g.images, l.p.out_h, l.p.out_w);
    Buffer<std::uint64_t> words(bit_map_bytes(map, channels) / 8);
    map.words = words.p;
    e.bits = &map, e.threshold = threshold.data(), e.flip = pick(0, 1) ? flip.data() : nullptr;
    const int half = l.plan.units / 2;
    conv_float(l.plan, l.planes.p, l.matrices.p, 0, half, l.scratch.p, e);
    conv_float(l.plan, l.planes.p, l.matrices.p, half, l.plan.units, l.scratch.p, e);
    std::vector<std::uint8_t> bits(total);
    std::size_t at = 0;
    for (int n = 0; n < g.images; ++n)
        for (int j = 0; j < channels; ++j)
            for (std::size_t i = 0; i < size; ++i, ++at) {
                volatile float product = p[j] * static_cast<float>(l.p.dot[(static_cast<std::size_t>(n) * g.outputs + j % g.outputs) * size + i]);
                float v = product;
                if (e.q) {
                    product = q[j] * static_cast<float>(sums[(static_cast<std::size_t>(n) * g.groups + j % g.outputs / (g.outputs / g.groups)) * size + i]);
                    v = v + product;
                }
                v = v + (classes ? k[16 * static_cast<std::size_t>(j) + k_class[i]] : k[j]);
                v = model(e.before, v, j);
                if (e.shortcut) v = v + shortcut[at];
                v = model(e.after, v, j);
                if (std::memcmp(&v, &y[at], 4) != 0 && !(v == 0.0f && y[at] == 0.0f)) fail(g, l.plan.forms, "float", static_cast<long>(at));
                bits[at] = (v >= threshold[j]) != (e.flip && flip[j]);
            }
    ++comparisons;
    if (channels <= 512) check_next(l.p, map, bits, channels, "bits of floats");
}

void check_bits(Layer& l) {
    const Geometry& g = l.p.g;
    const int copies = one_of({1, 1, 2, 3}), channels = copies * g.outputs;
    const std::size_t size = static_cast<std::size_t>(l.p.out_h) * l.p.out_w;
    std::vector<std::int32_t> least(static_cast<std::size_t>(channels));
    std::vector<std::uint8_t> flip(static_cast<std::size_t>(channels));
    for (auto& v : least) v = pick(0, 9) == 0 ? one_of({-100000, 100000, l.plan.full, -l.plan.full, l.plan.full + 1}) : pick(-l.plan.full / 8 - 2, l.plan.full / 8 + 2);
    for (auto& f : flip) f = pick(0, 1);
    std::vector<std::uint8_t> table(switch_bytes(l.plan, copies));
    prepare_switch(l.plan, copies, least.data(), flip.data(), table.data());
    BitMap map = switch_map(l.plan);
    Buffer<std::uint64_t> words(bit_map_bytes(map, channels) / 8);
    map.words = words.p;
    const int half = l.plan.units / 2;
    conv_bits(l.plan, l.planes.p, l.matrices.p, half, l.plan.units, l.scratch.p, copies, table.data(), map);
    conv_bits(l.plan, l.planes.p, l.matrices.p, 0, half, l.scratch.p, copies, table.data(), map);
    std::vector<std::uint8_t> bits(static_cast<std::size_t>(g.images) * channels * size);
    std::size_t at = 0;
    for (int n = 0; n < g.images; ++n)
        for (int j = 0; j < channels; ++j)
            for (std::size_t i = 0; i < size; ++i, ++at)
                bits[at] = (l.p.dot[(static_cast<std::size_t>(n) * g.outputs + j % g.outputs) * size + i] >= least[j]) != (flip[j] != 0);
    if (channels <= 512) check_next(l.p, map, bits, channels, "bits of counts");
}

void check(const Geometry& g, Forms forms, Fill fill) {
    if (!supported(g)) fail(g, forms, "refused", 0);
    Plan* plan = make_plan(g, forms);
    if (plan == nullptr) fail(g, forms, "no plan", 0);
    const Problem p = make_problem(g, *plan, fill);
    {
        Layer l(p, *plan);
        BitMap map = bit_map(g.images, g.height, g.width);
        Buffer<std::uint64_t> words(bit_map_bytes(map, g.channels) / 8);
        map.words = words.p;
        pack_in(p, map);
        l.load(map);
        check_dot(l, "dot");
        check_float(l);
        check_bits(l);
    }
    free_plan(plan);
}

Geometry layer(int c, int o, int h, int w, int kernel, int stride, int groups = 1, int images = 1) {
    Geometry g;
    g.images = images, g.channels = c, g.outputs = o, g.height = h, g.width = w, g.groups = groups;
    g.kernel_h = g.kernel_w = kernel, g.stride_h = g.stride_w = stride, g.pad_h = g.pad_w = kernel / 2;
    return g;
}

void fixed_list() {
    const std::vector<Geometry> list = {
        layer(64, 64, 8, 8, 3, 1), layer(64, 8, 1, 1, 3, 1), layer(64, 64, 10, 56, 3, 1), layer(64, 16, 3, 64, 3, 1), layer(128, 128, 7, 9, 3, 1),
        layer(256, 24, 14, 14, 3, 1), layer(512, 64, 7, 7, 3, 1), layer(512, 128, 7, 7, 1, 1), layer(64, 128, 14, 14, 3, 2), layer(65, 9, 5, 11, 3, 1),
        layer(1, 1, 4, 4, 3, 1), layer(3, 7, 9, 33, 3, 2), layer(16, 16, 32, 32, 3, 1), layer(32, 32, 16, 16, 3, 1), layer(48, 40, 6, 17, 3, 1),
        layer(96, 72, 5, 5, 3, 1), layer(128, 64, 9, 9, 3, 1, 2), layer(80, 48, 8, 8, 3, 1, 4), layer(36, 12, 7, 7, 3, 1, 3), layer(24, 24, 6, 6, 3, 2, 12),
        layer(64, 64, 8, 8, 3, 1, 1, 3), layer(40, 64, 7, 7, 3, 2, 1, 5), layer(64, 32, 3, 65, 3, 1), layer(33, 8, 2, 130, 3, 2), layer(320, 64, 1, 1, 1, 1)};
    for (const Geometry& base : list)
        for (const Pad pad : {Pad::skip, Pad::lo, Pad::hi})
            for (const Fill fill : {Fill::random, Fill::plus, Fill::minus})
                for (const Forms forms : {Forms::best, Forms::chunks, Forms::groups, Forms::mixed}) {
                    Geometry g = base;
                    g.pad = pad;
                    check(g, forms, fill);
                }
}

Geometry random_geometry() {
    for (;;) {
        Geometry g;
        g.images = one_of({1, 1, 1, 2, 3, 7});
        g.groups = one_of({1, 1, 1, 2, 3, 4});
        g.channels = g.groups * (pick(0, 1) ? pick(1, 140) : one_of({16, 32, 48, 64, 96, 128, 192, 256}));
        g.outputs = g.groups * (pick(0, 1) ? pick(1, 80) : one_of({8, 16, 32, 64, 128}));
        g.height = pick(1, 18);
        g.width = pick(0, 9) == 0 ? pick(57, 140) : pick(1, 34);
        g.kernel_h = one_of({1, 3, 3, 3, 2, 5});
        g.kernel_w = pick(0, 3) ? g.kernel_h : one_of({1, 2, 3, 5, 7});
        g.stride_h = one_of({1, 1, 2});
        g.stride_w = pick(0, 3) ? g.stride_h : one_of({1, 2});
        g.dilation_h = one_of({1, 1, 1, 2, 3});
        g.dilation_w = pick(0, 3) ? g.dilation_h : one_of({1, 2});
        g.pad_h = pick(0, 4) ? (g.kernel_h - 1) * g.dilation_h / 2 : pick(0, (g.kernel_h - 1) * g.dilation_h);
        g.pad_w = pick(0, 4) ? (g.kernel_w - 1) * g.dilation_w / 2 : pick(0, (g.kernel_w - 1) * g.dilation_w);
        g.pad = static_cast<Pad>(pick(0, 2));
        if (!supported(g)) continue;
        const double work = static_cast<double>(g.images) * g.height * g.width * g.channels * g.outputs / g.groups * g.kernel_h * g.kernel_w;
        if (work < 3e7) return g;
    }
}

}  // namespace

int main(int argc, char** argv) {
    const double seconds = argc > 1 ? std::atof(argv[1]) : 10.0;
    if (argc > 2) rng.seed(static_cast<unsigned>(std::atoi(argv[2])));
    fixed_list();
    std::printf("fixed list: %ld comparisons, no difference\n", comparisons);
    long cases = 0;
    const std::clock_t begin = std::clock();
    while (static_cast<double>(std::clock() - begin) < seconds * CLOCKS_PER_SEC) {
        check(random_geometry(), static_cast<Forms>(pick(0, 3)), static_cast<Fill>(pick(0, 4) ? 0 : pick(1, 2)));
        ++cases;
    }
    std::printf("random: %ld cases; %ld comparisons in all, no difference\n", cases, comparisons);
    return 0;
}
