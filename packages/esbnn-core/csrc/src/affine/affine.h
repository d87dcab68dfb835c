// Binary convolution by GF(2)-affine carries (AVX-512BW/VBMI + GFNI): the interface to the rest of the library.
//
// For three products p_i = x_i ^ w_i of an activation bit and a weight bit,
//     parity = (x1^x2^x3) ^ (w1^w2^w3)                      again an x ^ w: it joins the next group of three
//     carry  = maj(p1,p2,p3) = maj(x) ^ a.(x1^x3) ^ b.(x1^x2) ^ c,    a = w1^w2, b = w1^w3, c = maj(w)
// so a carry is one gf2p8affineqb of features of x, for 8 output channels and 64 positions at once; full adders of two
// vpternlog sum carries to count planes (plane k holds bit k of the number of mismatches). Everything here is exact.
//
//     x --bits--> BitMap --features--> planes --affine + adders--> count planes --> dot, floats, or the next BitMap
//
// No function allocates but make_plan; none keeps state; all may be called from several threads. The caller owns every
// buffer, aligned to 64 bytes. Functions declared under "needs the instructions" run only on CPUs that have them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace esbnn {
namespace affine {

enum class Pad : int { skip, lo, hi };                       // padding: fewer taps, or a bit 0, or a bit 1
enum class Forms : int { best, chunks, groups, mixed };      // see Plan; `best` chooses by the size of the map

struct Geometry {
    int images = 1;                                          // convolved together, as one tall map
    int channels = 0, height = 0, width = 0;                 // of the input, all groups
    int outputs = 0, groups = 1;
    int kernel_h = 3, kernel_w = 3;
    int stride_h = 1, stride_w = 1;
    int pad_h = 1, pad_w = 1;
    int dilation_h = 1, dilation_w = 1;
    Pad pad = Pad::skip;
};

// Bits of a tensor, position by position: pixel (n,y,x) is position p = n*image_bits + y*row_stride + x, bit (p & 63) of
// words[channel / 64][p >> 6][channel & 63]. Gaps between rows and images may hold anything. Each word of 64 positions takes 72
// words for its 64 channels: without the spare eight, strides of 4096 bytes alias in the L1 cache.
constexpr int kBitMapPitch = 72;

struct BitMap {
    std::uint64_t* words = nullptr;
    std::int64_t row_stride = 0, image_bits = 0;
    std::int64_t length = 0;                                 // words of 64 positions, one spare included
    std::int64_t block_stride() const { return length * kBitMapPitch; }    // in words, from 64 channels to the next 64
};

// Everything about one layer on one map size that does not depend on weights or activations. Made once, read-only afterwards.
// Two loop forms: `chunks` has 64 flattened positions x 8 output channels in a register, `groups` 8 positions x 64 output
// channels (better lanes on small maps). `mixed` does whole chunks first and the remaining positions in groups.
struct Plan {
    Geometry geo;
    Forms forms;                                             // never `best`
    int out_h, out_w;
    int group_channels, group_outputs;                       // per convolution group
    int kind;                                                // channels a block of planes: 64, 32 or 16
    int levels;                                              // log2(kind)
    int blocks;                                              // channel blocks a convolution group
    int planes, matrices;                                    // a block and tap: kind/4 planes, kind/2 + 1 matrices
    // feature planes: [group][block][phase][plane][plane_bytes]; one phase for each residue of row and column modulo the stride
    int phases, phase_rows, phase_columns;                   // phases = used rows x used columns of the residues
    const std::uint8_t* phase_row_used;                      // [stride_h]: index of the phase row + 1, 0 if never read
    const std::uint8_t* phase_column_used;                   // [stride_w]
    int row_stride, image_rows;                              // of a plane
    std::size_t plane_bytes, block_bytes, workspace_bytes;
    const std::uint8_t* pad_bytes;                           // [block of the group][plane]: byte of a padded position
    // steps of the convolution: (block, tap), in the order of the matrices
    int steps;
    const std::int64_t* step_offset;                         // from a position's byte in the group's first plane
    // outputs
    int unit_blocks;                                         // blocks of 8 outputs a unit: 2 (chunks) or 8 (groups, mixed)
    int units_per_group, units;
    std::size_t unit_bytes, weight_bytes;                    // matrices of a unit, of the layer
    int positions;                                           // flattened output positions, pad columns and rows included
    int real_positions;                                      // images * out_h * out_w
    int chunks;                                              // done in form `chunks`, from position 0
    const std::int32_t* chunk_real;                          // [chunks + 1]: real positions before chunk k
    const std::uint8_t* chunk_order;                         // [chunks][64]: vpermb index that drops pads, see counts.h
    int position_groups;                                     // done in form `groups`
    const std::int32_t* group_start;                         // [position_groups]: flattened position of the first of 8
    const std::int32_t* group_real;                          // [position_groups]: real positions before it
    const std::uint8_t* group_order;                         // [position_groups][64]
    // count planes
    int count_planes;                                        // planes of 2*mismatches (odd plane first) or of mismatches
    bool odd;                                                // an odd number of channels skips taps: see `start`
    const std::uint8_t* start[20];                           // per count plane, [positions + 64] bytes 0 or 255, or null (zero)
    int full;                                                // dot = full - (odd ? 1 : 2) * count
};

// Portable (no special instructions) -----------------------------------------------------------------------------------------
bool supported(const Geometry& geometry);
Plan* make_plan(const Geometry& geometry, Forms forms = Forms::best);    // null if not supported or out of memory
void free_plan(Plan* plan);
// A number of images to convolve together so that planes stay near the core; at least 1, at most geometry.images.
int good_images(const Geometry& geometry);

// Matrices of weights given as words [outputs][kernel_h*kernel_w][ceil(group_channels/64)], bit = (w >= 0), spare bits ignored.
// They depend on channels, outputs, groups, kernel and plan.forms, not on the map: any plan equal in those may use them.
void prepare_weights(const Plan& plan, const std::uint64_t* words, void* matrices, int unit_first, int unit_last);

// A map of `images` x `height` rows of `row_stride` positions that starts each image at a whole word (what pack_map, pack_words_map
// and conv_float write), and the map that conv_bits writes. Set `words` to a buffer of bit_map_bytes(map, channels) bytes.
BitMap bit_map(int images, int height, int row_stride);
BitMap switch_map(const Plan& plan);
std::size_t bit_map_bytes(const BitMap& map, int channels);

// Needs the instructions -----------------------------------------------------------------------------------------------------
// Writes every padded position of planes (workspace_bytes); once for a buffer that serves this plan only, else before each use.
void init_planes(const Plan& plan, std::uint8_t* planes);

// Bits (x >= threshold) xor flip of float32 [N,C,H,W]; strides in elements. Thresholds are read at n*threshold_n + c*threshold_c.
struct Source {
    const float* x;
    std::int64_t stride_n, stride_c, stride_h, stride_w;
    const float* threshold;
    std::int64_t threshold_n, threshold_c;
    const std::uint8_t* flip;                                // [C] or null
};
void pack_map(const Source& x, int images, int channels, int height, int width, const BitMap& out, int block_first, int block_last);

// The same from words [N,H,W,G,ceil(Cg/64)] with bit c of a group in word c/64; spare bits ignored.
void pack_words_map(const std::uint64_t* words, int images, int groups, int group_channels, int height, int width, const BitMap& out,
                    int block_first, int block_last);

// Feature planes of a map's bits, for plane blocks [first, last) of groups*blocks.
void features(const Plan& plan, const BitMap& map, std::uint8_t* planes, int first, int last);

// What follows the sums, per channel j = r*outputs + o of outputs*copies:
//     y = P[j]*dot, rounded; y = y + Q[j]*S, each rounded; y = y + K[j]; before; y = y + shortcut; after; store;
//     bit = (y >= threshold[j]) xor flip[j]
// S are window sums of the activations alone: conv_dot of a layer with one filter of bits 1 a group. With `k_class`, K depends on
// how much of a window lies inside the map: K[16*j + class of the position].
struct Activation {
    enum Kind : int { none, clamp, slopes } kind = none;
    float lo = -1.0f, hi = 1.0f;                             // clamp
    const float* shift_in = nullptr;                         // slopes: z = y + shift_in; z > 0 ? z*positive : z*negative; + shift_out
    const float* positive = nullptr;                         // each [J]; null: no shift, slope 1
    const float* negative = nullptr;                         // null: slope 0
    const float* shift_out = nullptr;
};

struct Epilogue {
    int copies = 1;
    const float* p = nullptr;                                // [J]
    const float* k = nullptr;                                // [J], or [J,16] with k_class
    const std::uint8_t* k_class = nullptr;                   // [H'*W'], 0..15, or null
    const float* q = nullptr;                                // [J] or null
    const std::int32_t* window_sums = nullptr;               // [N,groups,H',W'], rows contiguous; strides in elements
    std::int64_t window_sums_n = 0, window_sums_g = 0;
    Activation before, after;
    const float* shortcut = nullptr;                         // [N,J,H',W'], rows contiguous; strides in elements
    std::int64_t shortcut_n = 0, shortcut_c = 0;
    float* y = nullptr;                                      // the same layout; null: not stored
    std::int64_t y_n = 0, y_c = 0;
    const BitMap* bits = nullptr;                            // bit_map(images, H', W'), J channels; null: none
    const float* threshold = nullptr;                        // [J]
    const std::uint8_t* flip = nullptr;                      // [J] or null
};

// Bits straight from the integer sums, never through floats: bit = (dot >= least[j]) xor flip[j], j = r*outputs + o. prepare_switch
// turns the limits (once a layer and map size) into the table that conv_bits compares count planes with.
std::size_t switch_bytes(const Plan& plan, int copies);
void prepare_switch(const Plan& plan, int copies, const std::int32_t* least, const std::uint8_t* flip /* [J] or null */, std::uint8_t* table);

std::size_t scratch_bytes(const Plan& plan);                 // of one calling thread
void conv_dot(const Plan& plan, const std::uint8_t* planes, const void* matrices, int unit_first, int unit_last, void* scratch,
              std::int32_t* dot, std::int64_t dot_n, std::int64_t dot_c);
void conv_float(const Plan& plan, const std::uint8_t* planes, const void* matrices, int unit_first, int unit_last, void* scratch,
                const Epilogue& epilogue);
// Writes switch_map(plan); the channels (lanes) of different units are different words, so threads need no order.
void conv_bits(const Plan& plan, const std::uint8_t* planes, const void* matrices, int unit_first, int unit_last, void* scratch,
               int copies, const std::uint8_t* table, const BitMap& out);

}  // namespace affine
}  // namespace esbnn
