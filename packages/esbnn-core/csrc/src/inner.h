// The inner kernels, written once. A path's file includes this, describes its registers in a struct and takes the address of `kKernels`.
//
//   struct Isa {
//       using V = ...;                        64-bit lanes
//       static constexpr int kRegs;           V's of eight lanes
//       static constexpr int kPositions;      positions in flight, 4 or 8
//       static constexpr int kOctets;         groups of eight filters in flight, 1 or 2
//       static constexpr int kRun;            steps that `count` can add before `fold`; 0: any number, and fold is the identity
//       static constexpr int kFloats;         floats of a register
//       using F, M = ...;                     GCC's vectors of so many floats and int32
//       static V zero(), load(const u64*), broadcast(const u64*), count(V sum, V x, V w), fold(V sum), add(V, V)
//       static void store(V sums[kPositions][kRegs], int32 n_full, int32* out, int64 pitch)      S of eight filters x kPositions
//       static u64 bits64(const float* x, const float* thresholds)
//   };
//
// Everything is in an unnamed namespace: see path.h.
#pragma once

#include <stdint.h>
#include <string.h>

#include "esbnn.h"
#include "path.h"

#define ESBNN_INLINE static inline __attribute__((always_inline))

namespace esbnn {
namespace {

// -- sums -----------------------------------------------------------------------------------------------------------------------------
template <class I, int B>
__attribute__((noinline)) void sums_tile(const SumsJob& job, int64_t first, int octet) {
    using V = typename I::V;
    constexpr int P = I::kPositions, R = I::kRegs;
    const uint64_t* at[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) at[p] = job.at[first + p];
    const uint64_t* w = job.weights + octet * job.octet_stride;
    const int64_t next = job.octet_stride;
    V sum[B][P][R];
#pragma GCC unroll 2
    for (int b = 0; b < B; ++b)
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) sum[b][p][r] = I::zero();
    const auto steps = [&](V(&acc)[B][P][R], int64_t from, int64_t to) __attribute__((always_inline)) {
        for (int64_t k = from; k < to; ++k) {
            const int64_t offset = job.offsets[k];
            V weight[B][R];
#pragma GCC unroll 2
            for (int b = 0; b < B; ++b)
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) weight[b][r] = I::load(w + b * next + 8 * k + r * (8 / R));
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) {
                const V x = I::broadcast(at[p] + offset);
#pragma GCC unroll 2
                for (int b = 0; b < B; ++b)
#pragma GCC unroll 8
                    for (int r = 0; r < R; ++r) acc[b][p][r] = I::count(acc[b][p][r], x, weight[b][r]);
            }
        }
    };
    if constexpr (I::kRun == 0) {
        steps(sum, 0, job.steps);
    } else {
        for (int64_t k = 0; k < job.steps; k += I::kRun) {
            V acc[B][P][R];
#pragma GCC unroll 2
            for (int b = 0; b < B; ++b)
#pragma GCC unroll 8
                for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
                    for (int r = 0; r < R; ++r) acc[b][p][r] = I::zero();
            steps(acc, k, k + I::kRun < job.steps ? k + I::kRun : job.steps);
#pragma GCC unroll 2
            for (int b = 0; b < B; ++b)
#pragma GCC unroll 8
                for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
                    for (int r = 0; r < R; ++r) sum[b][p][r] = I::add(sum[b][p][r], I::fold(acc[b][p][r]));
        }
    }
#pragma GCC unroll 2
    for (int b = 0; b < B; ++b) I::store(sum[b], job.n_full, job.out + (octet + b) * 8 * job.pitch + first, job.pitch);
}

template <class I>
void sums(const SumsJob& job) {
    if (I::kOctets == 2 && job.octets == 2) {
        for (int64_t p = 0; p < job.positions; p += I::kPositions) sums_tile<I, I::kOctets>(job, p, 0);
    } else {
        for (int octet = 0; octet < job.octets; ++octet)
            for (int64_t p = 0; p < job.positions; p += I::kPositions) sums_tile<I, 1>(job, p, octet);
    }
}

// -- epilogue -------------------------------------------------------------------------------------------------------------------------
template <int act>
ESBNN_INLINE float activate(float v, const EpilogueRun& e) {
    if constexpr (act == ESBNN_ACT_CLAMP) {
        v = v < e.lo ? e.lo : v;
        return v > e.hi ? e.hi : v;
    }
    if constexpr (act == ESBNN_ACT_TWO_SLOPE) {
        v += e.shift_in;
        v = v > 0.0f ? e.pos * v : e.neg * v;
        return v + e.shift_out;
    }
    return v;
}

template <bool with_q, bool k_map, bool add, int act, bool act_first>
void stream(const EpilogueRun& given) {
    const EpilogueRun e = given;                      // by value: nothing that is written can change it
    const int32_t* __restrict sums = e.sums;
    const int32_t* __restrict group_sums = e.group_sums;
    const float* __restrict k = e.k_map;
    const float* __restrict shortcut = e.shortcut;
    float* __restrict out = e.out;
    for (int64_t i = 0; i < e.count; ++i) {
        float v = e.p * static_cast<float>(sums[i]);
        if constexpr (with_q) v += e.q * static_cast<float>(group_sums[i]);
        v += k_map ? k[i] : e.k;
        if constexpr (act_first) v = activate<act>(v, e);
        if constexpr (add) v += shortcut[i];
        if constexpr (!act_first) v = activate<act>(v, e);
        out[i] = v;
    }
}

template <bool with_q, bool k_map, bool add>
void choose_act(const EpilogueRun& e) {
    if (e.act == ESBNN_ACT_CLAMP) return add && e.act_first ? stream<with_q, k_map, add, 1, true>(e) : stream<with_q, k_map, add, 1, false>(e);
    if (e.act == ESBNN_ACT_TWO_SLOPE) return add && e.act_first ? stream<with_q, k_map, add, 2, true>(e) : stream<with_q, k_map, add, 2, false>(e);
    return stream<with_q, k_map, add, 0, false>(e);
}

template <bool with_q, bool k_map>
void choose_add(const EpilogueRun& e) {
    return e.shortcut != nullptr ? choose_act<with_q, k_map, true>(e) : choose_act<with_q, k_map, false>(e);
}

void epilogue(const EpilogueRun& e) {
    if (e.group_sums != nullptr) return e.k_map != nullptr ? choose_add<true, true>(e) : choose_add<true, false>(e);
    return e.k_map != nullptr ? choose_add<false, true>(e) : choose_add<false, false>(e);
}

// -- packing --------------------------------------------------------------------------------------------------------------------------
// Lanes are positions: a compare adds one channel's bit to a register of positions. GCC's vectors, so that one text serves all.
template <class I>
void pack_planes(const PackRun& run) {
    constexpr int L = I::kFloats;
    using F = typename I::F;
    using M = typename I::M;
    int64_t i = 0;
    for (; i + L <= run.count; i += L) {
        M half[2] = {M{}, M{}};
        const float* x = run.x + i;
        for (int h = 0; h < 2; ++h) {
            M got = M{};
            const int last = run.channels < 32 * (h + 1) ? run.channels : 32 * (h + 1);
            for (int c = 32 * h; c < last; ++c) {
                F v;
                memcpy(&v, x + c * run.stride_c, sizeof(v));
                const F t = run.thresholds[c] - F{};
                got |= (v >= t) & static_cast<int32_t>(1u << (c & 31));
            }
            half[h] = got;
        }
        uint64_t* out = run.out + i * run.out_stride;
        for (int l = 0; l < L; ++l) {
            const uint64_t word = static_cast<uint64_t>(static_cast<uint32_t>(half[1][l])) << 32 | static_cast<uint32_t>(half[0][l]);
            out[l * run.out_stride] = word ^ run.flips;
        }
    }
    for (; i < run.count; ++i) {
        uint64_t word = 0;
        for (int c = 0; c < run.channels; ++c) word |= static_cast<uint64_t>(run.x[i + c * run.stride_c] >= run.thresholds[c]) << c;
        run.out[i * run.out_stride] = word ^ run.flips;
    }
}

template <class I>
void pack(const PackRun& run) {
    if (run.stride == 1 && run.count > 1) return pack_planes<I>(run);
    if (run.stride_c == 1) {
        const uint64_t real = run.channels == 64 ? ~uint64_t{0} : (uint64_t{1} << run.channels) - 1;
        float padded[64] = {0.0f};
        for (int64_t i = 0; i < run.count; ++i) {
            const float* x = run.x + i * run.stride;
            if (run.channels < 64) memcpy(padded, x, static_cast<unsigned>(run.channels) * sizeof(float)), x = padded;
            run.out[i * run.out_stride] = (I::bits64(x, run.thresholds) & real) ^ run.flips;
        }
        return;
    }
    for (int64_t i = 0; i < run.count; ++i) {
        const float* x = run.x + i * run.stride;
        uint64_t word = 0;
        for (int c = 0; c < run.channels; ++c) word |= static_cast<uint64_t>(x[c * run.stride_c] >= run.thresholds[c]) << c;
        run.out[i * run.out_stride] = word ^ run.flips;
    }
}

template <class I>
constexpr Kernels kernels_of() {
    return Kernels{sums<I>, epilogue, pack<I>};
}

}  // namespace
}  // namespace esbnn
