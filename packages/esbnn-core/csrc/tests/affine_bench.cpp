// Speed of the affine path against a good xor + popcount kernel (AVX-512 VPOPCNTDQ), interleaved, one thread, batch 1. Stand-alone:
//     affine_bench [milliseconds a layer, default 400] [name filter]
// Minima and medians in microseconds. The peer keeps 8 outputs a register, 4 registers x 6 positions in flight, broadcasts pixel
// words, pads by -1 and leaves raw int32 sums; packing is not counted for it.
#include "../src/affine/affine.h"

#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

using namespace esbnn::affine;

namespace {

template <class T>
T* aligned(std::size_t n) {
    const std::size_t bytes = (n * sizeof(T) + 4095) / 4096 * 4096;
    void* p = std::aligned_alloc(4096, bytes);
    std::memset(p, 0, bytes);
    return static_cast<T*>(p);
}

struct Popcount {
    int positions, outputs, words, steps;                  // steps = taps * words a pixel
    std::vector<std::int32_t> start;                       // word of each position's first tap
    std::vector<std::int32_t> offset;                      // words from there, each step
    std::uint64_t *x, *w;                                  // [padded pixel][word]; [block of 32 outputs][step][32]
    std::int32_t* out;                                     // [position][outputs]

    explicit Popcount(const Geometry& g, const Plan& plan) {
        words = (g.channels + 63) / 64;
        const int row = g.width + 2 * g.pad_w, rows = g.height + 2 * g.pad_h;
        for (int y = 0; y < plan.out_h; ++y)
            for (int i = 0; i < plan.out_w; ++i) start.push_back((y * g.stride_h * row + i * g.stride_w) * words);
        for (int ky = 0; ky < g.kernel_h; ++ky)
            for (int kx = 0; kx < g.kernel_w; ++kx)
                for (int c = 0; c < words; ++c) offset.push_back((ky * row + kx) * words + c);
        positions = static_cast<int>(start.size());
        steps = static_cast<int>(offset.size());
        outputs = (g.outputs + 31) / 32 * 32;
        x = aligned<std::uint64_t>(static_cast<std::size_t>(row * rows * words));
        w = aligned<std::uint64_t>(static_cast<std::size_t>(outputs * steps));
        out = aligned<std::int32_t>(static_cast<std::size_t>(positions * outputs));
        std::mt19937_64 rng(3);
        for (int i = 0; i < row * rows * words; ++i) x[i] = rng();
        for (int i = 0; i < outputs * steps; ++i) w[i] = rng();
    }

    template <int n>
    __attribute__((always_inline)) inline void run(const std::uint64_t* m, int block, int first) const {
        __m512i acc[4][n];
        for (int i = 0; i < 4; ++i)
            for (int j = 0; j < n; ++j) acc[i][j] = _mm512_setzero_si512();
        const std::uint64_t* p[n];
        for (int j = 0; j < n; ++j) p[j] = x + start[static_cast<std::size_t>(first + j)];
        for (int s = 0; s < steps; ++s, m += 32) {
            const std::int64_t at = offset[static_cast<std::size_t>(s)];
            __m512i v[4];
            for (int i = 0; i < 4; ++i) v[i] = _mm512_load_si512(m + 8 * i);
            for (int j = 0; j < n; ++j) {
                const __m512i d = _mm512_set1_epi64(static_cast<long long>(p[j][at]));
                for (int i = 0; i < 4; ++i) acc[i][j] = _mm512_add_epi64(acc[i][j], _mm512_popcnt_epi64(_mm512_xor_si512(v[i], d)));
            }
        }
        const __m512i full = _mm512_set1_epi64(64 * steps);
        for (int j = 0; j < n; ++j)
            for (int i = 0; i < 4; ++i)
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + static_cast<std::size_t>(first + j) * outputs + 32 * block + 8 * i),
                                    _mm512_cvtepi64_epi32(_mm512_sub_epi64(full, _mm512_slli_epi64(acc[i][j], 1))));
    }

    void conv() const {
        for (int b = 0; b < outputs / 32; ++b) {
            const std::uint64_t* m = w + static_cast<std::size_t>(b * steps) * 32;
            int i = 0;
            for (; i + 6 <= positions; i += 6) run<6>(m, b, i);
            for (; i + 2 <= positions; i += 2) run<2>(m, b, i);
            for (; i < positions; ++i) run<1>(m, b, i);
        }
    }
};

struct Timed {
    const char* name;
    std::function<void()> call;
    std::vector<double> us;
};

void interleave(std::vector<Timed>& all, double ms) {
    using Clock = std::chrono::steady_clock;
    const auto begin = Clock::now();
    do {
        for (Timed& t : all) {
            t.call();                                      // its own data back in the caches
            const auto a = Clock::now();
            t.call();
            t.call();
            t.call();
            t.us.push_back(std::chrono::duration<double, std::micro>(Clock::now() - a).count() / 3);
        }
    } while (std::chrono::duration<double, std::milli>(Clock::now() - begin).count() < ms);
    for (Timed& t : all) std::sort(t.us.begin(), t.us.end());
}

struct Layer {
    const char* name;
    int channels, size, outputs, kernel, stride, copies;
};

void bench(const Layer& layer, double ms) {
    Geometry g;
    g.channels = layer.channels, g.height = g.width = layer.size, g.outputs = layer.outputs;
    g.kernel_h = g.kernel_w = layer.kernel, g.stride_h = g.stride_w = layer.stride, g.pad_h = g.pad_w = layer.kernel / 2;
    std::mt19937_64 rng(5);
    std::vector<Timed> all;
    Plan* plans[4];
    Plan* best = nullptr;
    static const char* names[4] = {"bits best", "bits chunks", "bits groups", "bits mixed"};
    const int taps = g.kernel_h * g.kernel_w, J = layer.copies * g.outputs;
    std::vector<std::uint64_t> w(static_cast<std::size_t>(g.outputs * taps * ((g.channels + 63) / 64)));
    for (auto& v : w) v = rng();
    const std::size_t in = static_cast<std::size_t>(g.channels * g.height * g.width);
    float* x = aligned<float>(in);
    for (std::size_t i = 0; i < in; ++i) x[i] = static_cast<float>(static_cast<std::int64_t>(rng())) * 1e-19f;
    std::vector<float> threshold(static_cast<std::size_t>(g.channels), 0.01f);
    BitMap map = bit_map(1, g.height, g.width);
    map.words = aligned<std::uint64_t>(bit_map_bytes(map, g.channels) / 8);
    const Source source{x, 0, static_cast<std::int64_t>(g.height) * g.width, g.width, 1, threshold.data(), 0, 1, nullptr};
    std::vector<std::int32_t> least(static_cast<std::size_t>(J), 3);
    for (int f = 0; f < 4; ++f) {
        Plan* plan = plans[f] = make_plan(g, static_cast<Forms>(f));
        if (f == 0) best = plan;
        if (f > 0 && plan->forms != static_cast<Forms>(f)) continue;
        auto* planes = aligned<std::uint8_t>(plan->workspace_bytes);
        auto* m = aligned<std::uint8_t>(plan->weight_bytes);
        auto* scratch = aligned<std::uint8_t>(scratch_bytes(*plan));
        prepare_weights(*plan, w.data(), m, 0, plan->units);
        init_planes(*plan, planes);
        pack_map(source, 1, g.channels, g.height, g.width, map, 0, (g.channels + 63) / 64);
        features(*plan, map, planes, 0, plan->blocks);
        auto* table = aligned<std::uint8_t>(switch_bytes(*plan, layer.copies));
        prepare_switch(*plan, layer.copies, least.data(), nullptr, table);
        BitMap next = switch_map(*plan);
        next.words = aligned<std::uint64_t>(bit_map_bytes(next, J) / 8);
        if (f > 0) {
            all.push_back({names[f], [=] { conv_bits(*plan, planes, m, 0, plan->units, scratch, layer.copies, table, next); }, {}});
            continue;
        }
        const std::size_t size = static_cast<std::size_t>(plan->out_h) * plan->out_w;
        auto* dot = aligned<std::int32_t>(size * g.outputs);
        auto* y = aligned<float>(size * J);
        // an identity shortcut is the layer's own input, as in a residual block
        auto* shortcut = size * static_cast<std::size_t>(J) == in ? x : aligned<float>(size * J);
        auto* pk = aligned<float>(static_cast<std::size_t>(J));
        const auto pack = [=] {
            pack_map(source, 1, g.channels, g.height, g.width, map, 0, (g.channels + 63) / 64);
            features(*plan, map, planes, 0, plan->blocks);
        };
        Epilogue e;
        e.copies = layer.copies, e.p = e.k = pk, e.y = y, e.y_c = e.shortcut_c = static_cast<std::int64_t>(size), e.shortcut = shortcut;
        all.push_back({"pack_map", [=] { pack_map(source, 1, g.channels, g.height, g.width, map, 0, (g.channels + 63) / 64); }, {}});
        all.push_back({"features", [=] { features(*plan, map, planes, 0, plan->blocks); }, {}});
        all.push_back({"conv to int32", [=] { conv_dot(*plan, planes, m, 0, plan->units, scratch, dot, 0, static_cast<std::int64_t>(size)); }, {}});
        all.push_back({"conv + epilogue", [=] { conv_float(*plan, planes, m, 0, plan->units, scratch, e); }, {}});
        all.push_back({"total fp32 to fp32", [=] { pack(); conv_float(*plan, planes, m, 0, plan->units, scratch, e); }, {}});
        all.push_back({"floor: y = shortcut", [=] {
                           const float one = pk[0];
                           for (std::size_t i = 0; i < size * static_cast<std::size_t>(J); ++i) y[i] = shortcut[i] + one;
                       }, {}});
        all.push_back({"bits to bits", [=] { features(*plan, map, planes, 0, plan->blocks); conv_bits(*plan, planes, m, 0, plan->units, scratch, layer.copies, table, next); }, {}});
    }
    const Popcount peer(g, *best);
    all.push_back({"xor+popcount", [&] { peer.conv(); }, {}});
    interleave(all, ms);
    const double macs = static_cast<double>(best->real_positions) * g.outputs * g.channels * taps;
    const Timed& p = all.back();
    std::printf("%s   form %d, kind %d, weights %zu KiB, planes %zu KiB\n", layer.name, static_cast<int>(best->forms), best->kind, best->weight_bytes >> 10,
                best->workspace_bytes >> 10);
    for (const Timed& t : all)
        std::printf("   %-20s %8.2f %8.2f us   %6.0f GMAC/s   popcount/this %5.2f %5.2f\n", t.name, t.us.front(), t.us[t.us.size() / 2], macs / t.us.front() * 1e-3,
                    p.us.front() / t.us.front(), p.us[p.us.size() / 2] / t.us[t.us.size() / 2]);
}

}  // namespace

int main(int argc, char** argv) {
    const double ms = argc > 1 ? std::atof(argv[1]) : 400;
    const Layer layers[] = {{"56x56 64->64 3x3", 64, 56, 64, 3, 1, 1},   {"28x28 128->128 3x3", 128, 28, 128, 3, 1, 1}, {"14x14 256->256 3x3", 256, 14, 256, 3, 1, 1},
                            {"7x7 512->512 3x3", 512, 7, 512, 3, 1, 1},   {"8x8 64->64 3x3", 64, 8, 64, 3, 1, 1},        {"56->28 64->128 3x3 stride 2", 64, 56, 128, 3, 2, 1},
                            {"14x14 512->512 1x1", 512, 14, 512, 1, 1, 1}, {"ES 56x56 128->32 3x3, 4 copies", 128, 56, 32, 3, 1, 4},
                            {"16x16 32->32 3x3", 32, 16, 32, 3, 1, 1},    {"32x32 16->16 3x3", 16, 32, 16, 3, 1, 1}};
    for (const Layer& l : layers)
        if (argc < 3 || std::strstr(l.name, argv[2]) != nullptr) bench(l, ms);
    return 0;
}
