// What a path (an instruction set's kernels) is, and the one table of them: dispatch, tests and benches read it.
//
// A path's own file is compiled with its instructions, and nothing else is. Such a file must not instantiate templates or inline functions
// that other files also use (the linker keeps one copy, perhaps the one with the wrong instructions): no standard library in it but
// plain C headers, and everything of ours in an unnamed namespace.
#pragma once

#include <cstdint>

#include "cpu.h"

namespace esbnn {

struct Shape;
struct ConvJob;

// Mismatch counts of eight or sixteen filters at many positions, as S = n_full - 2*mismatches.
struct SumsJob {
    const std::uint64_t* const* at;      // [positions] where each position's window begins
    std::int64_t positions;              // a multiple of 8 (the last may repeat)
    const std::int64_t* offsets;         // [steps] words from there
    std::int64_t steps;
    const std::uint64_t* weights;        // [steps, 8] words of eight filters
    std::int64_t octet_stride;           // words to the next eight filters
    int octets;                          // 1 or 2
    std::int32_t n_full;
    std::int32_t* out;                   // [8*octets, pitch]
    std::int64_t pitch;
};

// y = p*S + q*Ss + k, shortcut, activation for one output channel at neighbouring positions. Every step rounds on its own.
struct EpilogueRun {
    std::int64_t count;
    const std::int32_t* sums;
    const std::int32_t* group_sums;      // null: no second term
    float p, q, k;
    const float* k_map;                  // null: k; otherwise a value for each position
    const float* shortcut;               // null: none
    int act;                             // esbnn_act
    bool act_first;
    float lo, hi;
    float pos, neg, shift_in, shift_out;
    float* out;
};

// Bits of neighbouring positions x up to 64 channels.
struct PackRun {
    const float* x;
    std::int64_t count;                  // positions
    std::int64_t stride, stride_c;       // from position to position, from channel to channel
    int channels;                        // 1..64
    const float* thresholds;             // [64]; beyond `channels` anything
    std::uint64_t flips;
    std::uint64_t* out;
    std::int64_t out_stride;             // words from position to position
};

struct Kernels {
    void (*sums)(const SumsJob&);
    void (*epilogue)(const EpilogueRun&);
    void (*pack)(const PackRun&);
};

struct Path {
    const char* name;
    std::uint32_t needs;                                         // features
    const Kernels* kernels;
    // A path with a formulation of its own, all null otherwise. takes: whether it can do a job whose weights have its expansion; else
    // `kernels` do it. expand reads bits [O, kh, kw, words].
    bool (*takes)(const ConvJob& job);
    void (*conv)(const ConvJob& job, const Kernels& kernels);
    std::int64_t (*expansion_bytes)(const Shape& shape);         // 0: not for these sizes
    void (*expand)(const Shape& shape, const std::uint64_t* bits, std::uint8_t* out);
};

int path_count();
const Path& path(int index);
bool path_supported(int index);
int find_path(const char* name);                                 // -1: no such path
int active_path();
int force_path(int index);                                       // -1: the best; returns an esbnn_status
int owner_of_kernels(int index);                                 // the path whose popcount kernels this one has: itself, or another
void count_run(int index);
std::int64_t path_runs(int index);

}  // namespace esbnn
