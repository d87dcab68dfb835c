// Convolution by xor and population counts, for every path that has such kernels.
//
// Work is cut into chunks: neighbouring output positions of one image x some filters. A chunk copies the input rows that it reads into a
// padded buffer, so that every tap of every position is one offset, and runs eight or sixteen filters at a time over all its positions.
// Padding with a bit is then a bit like others. Padding that adds nothing (skip) is counted as bits 0 and corrected: such a tap made
// popcount(w) mismatches, known for each filter, and the few positions at the border are visited once more.
#include "conv.h"

#include <algorithm>
#include <cstring>

#include "pack.h"
#include "pool.h"
#include "scratch.h"

namespace esbnn {
namespace {

constexpr std::int64_t kPositions = 256;         // of a chunk: sums of sixteen filters stay in the first cache
constexpr std::int64_t kPitch = kPositions + 16;
constexpr std::int64_t kWork = 100000;           // steps x positions x octets that are worth a thread's attention: some microseconds

using std::int32_t;
using std::int64_t;
using std::uint32_t;
using std::uint64_t;
using std::uint8_t;

int64_t align(int64_t bytes) { return (bytes + 63) / 64 * 64; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Conv {
    const ConvJob* job;
    const Kernels* kernels;
    const uint64_t* words;
    bool padded;                                 // is there padding at all
    bool correct;                                // and does it add nothing
    bool group_sums;                             // are they wanted
    int64_t rows, columns;                       // of a chunk's positions: several whole rows, or a part of one
    int64_t row_chunks, column_chunks;           // of an image
    int64_t octets, octet_chunks;                // of a chunk, of all filters
    int64_t all_octets;
    int64_t buffer_words;                        // of a chunk's padded rows
    // A slot's scratch: padded words | window pointers | border positions | sums | sums of groups | a row of K | a shortcut | an output
    int64_t at_pointers, at_border, at_sums, at_group_sums, at_k, at_shortcut, at_out, slot_bytes;
    int64_t* offsets;                            // [taps, words], for the padded rows of whole-row chunks
    uint8_t* slots;
};

struct Border {
    int32_t position, first_row, last_row, first_column, last_column;   // the taps that lie inside the map
};

struct Chunk {
    int64_t n, y, x, rows, columns, count;       // its positions
    int64_t octet, octets;
    const uint64_t* base;                        // of its first window, group 0
    int64_t row_words, pixel_words;              // of the buffer
};

// Taps inside the map along one axis: [first, last).
void inside(int64_t out, int64_t in, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation, int32_t& first, int32_t& last) {
    const int64_t begin = out * stride - padding;
    first = static_cast<int32_t>(begin >= 0 ? 0 : std::min(kernel, ceil_div(-begin, dilation)));
    last = static_cast<int32_t>(begin >= in ? 0 : std::min(kernel, (in - 1 - begin) / dilation + 1));
    if (last < first) last = first;
}

// The input rows and columns that the chunk reads, with what lies outside the map filled in.
void fill_buffer(const Conv& c, const Chunk& k, uint64_t* buffer, int64_t y0, int64_t x0, int64_t height, int64_t width) {
    const Shape& s = c.job->shape;
    const int64_t pixel = s.pixel_words;
    const auto outside = [&](uint64_t* to, int64_t pixels) {
        if (s.pad != ESBNN_PAD_HI) {
            std::memset(to, 0, static_cast<std::size_t>(pixels * pixel) * 8);
            return;
        }
        for (int64_t i = 0; i < pixels * pixel; ++i) to[i] = (i + 1) % s.words == 0 ? static_cast<uint64_t>(s.last_mask()) : ~uint64_t{0};
    };
    const int64_t left = std::min(width, std::max<int64_t>(0, -x0)), right = std::min(width, std::max<int64_t>(0, x0 + width - s.w));
    for (int64_t i = 0; i < height; ++i, buffer += width * pixel) {
        const int64_t y = y0 + i, middle = width - left - right;
        if (y < 0 || y >= s.h || middle <= 0) {
            outside(buffer, width);
            continue;
        }
        outside(buffer, left);
        std::memcpy(buffer + left * pixel, c.words + ((k.n * s.h + y) * s.w + x0 + left) * pixel, static_cast<std::size_t>(middle * pixel) * 8);
        outside(buffer + (width - right) * pixel, right);
    }
}

// sums of activations over windows: S_s = 2*popcount - n, [positions] of one group.
void sum_group(const Conv& c, const Chunk& k, const uint64_t* const* at, const int64_t* offsets, const Border* border, int64_t borders, int32_t* out) {
    const Shape& s = c.job->shape;
    const int64_t steps = s.taps * s.words;
    const int32_t n_full = static_cast<int32_t>(s.taps * s.channels);
    for (int64_t p = 0; p < k.count; ++p) {
        int64_t ones = 0;
        for (int64_t i = 0; i < steps; ++i) ones += __builtin_popcountll(at[p][offsets[i]]);
        out[p] = static_cast<int32_t>(2 * ones) - n_full;
    }
    for (int64_t b = 0; b < borders; ++b) {
        const int64_t valid = static_cast<int64_t>(border[b].last_row - border[b].first_row) * (border[b].last_column - border[b].first_column);
        out[border[b].position] += static_cast<int32_t>((s.taps - valid) * s.channels);
    }
}

// Positions whose windows leave the map: what padded taps were counted as, taken back.
void correct_border(const Conv& c, const Border* border, int64_t borders, int64_t lane, int lanes, int32_t* sums) {
    const Shape& s = c.job->shape;
    const int64_t all_lanes = c.all_octets * 8;
    int32_t delta[16] = {};
    for (int64_t b = 0; b < borders; ++b) {
        const Border& e = border[b];
        const bool same = b > 0 && e.first_row == border[b - 1].first_row && e.last_row == border[b - 1].last_row &&
                          e.first_column == border[b - 1].first_column && e.last_column == border[b - 1].last_column;
        if (!same) {
            uint32_t ones[16] = {};                      // unsigned: weights come from outside and may say anything
            int64_t missing = 0;
            for (int64_t row = 0; row < s.kernel_h; ++row)
                for (int64_t column = 0; column < s.kernel_w; ++column) {
                    if (row >= e.first_row && row < e.last_row && column >= e.first_column && column < e.last_column) continue;
                    const int32_t* of_tap = c.job->weights.tap_sums + (row * s.kernel_w + column) * all_lanes + lane;
                    for (int i = 0; i < lanes; ++i) ones[i] += static_cast<uint32_t>(of_tap[i]);
                    ++missing;
                }
            for (int i = 0; i < lanes; ++i) delta[i] = static_cast<int32_t>(2 * ones[i] - static_cast<uint32_t>(missing * s.channels));
        }
        for (int i = 0; i < lanes; ++i) {
            int32_t& sum = sums[i * kPitch + e.position];
            sum = static_cast<int32_t>(static_cast<uint32_t>(sum) + static_cast<uint32_t>(delta[i]));
        }
    }
}

template <class T>
T* map_at(const esbnn_map& m, int64_t n, int64_t channel, int64_t y, int64_t x) {
    return static_cast<T*>(m.data) + n * m.stride_n + channel * m.stride_c + y * m.stride_h + x * m.stride_w;
}
bool contiguous(const esbnn_map& m, const Chunk& k, int64_t out_w) {
    return (m.stride_w == 1 || k.columns == 1) && (k.rows == 1 || m.stride_h == (k.columns == 1 ? 1 : out_w));
}

template <class T>
void scatter(const T* from, const esbnn_map& m, int64_t channel, const Chunk& k, int64_t out_w) {
    if (contiguous(m, k, out_w)) {
        std::memcpy(map_at<T>(m, k.n, channel, k.y, k.x), from, static_cast<std::size_t>(k.count) * sizeof(T));
        return;
    }
    for (int64_t y = 0; y < k.rows; ++y) {
        T* to = map_at<T>(m, k.n, channel, k.y + y, k.x);
        for (int64_t x = 0; x < k.columns; ++x) to[x * m.stride_w] = *from++;
    }
}

// One filter's sums to its copies' outputs.
void finish(const Conv& c, const Chunk& k, uint8_t* slot, int64_t filter, const int32_t* sums, const int32_t* group_sums) {
    const Shape& s = c.job->shape;
    const esbnn_conv_args& args = *c.job->args;
    const esbnn_epilogue& e = args.epilogue;
    if (c.job->has_sums()) scatter(sums, args.sums, filter, k, s.out_w);
    if (!c.job->has_out()) return;
    EpilogueRun run{};
    run.count = k.count;
    run.sums = sums;
    run.group_sums = e.q != nullptr ? group_sums : nullptr;
    run.act = e.act;
    run.act_first = e.act_before_add != 0;
    run.lo = e.clamp_lo;
    run.hi = e.clamp_hi;
    const bool in_place = contiguous(args.out, k, s.out_w);
    for (int64_t copy = 0; copy < e.copies; ++copy) {
        const int64_t j = copy * s.filters + filter;
        run.p = e.p[j];
        run.q = e.q != nullptr ? e.q[j] : 0.0f;
        run.k = e.k_kind == ESBNN_K_CHANNEL ? e.k[j] : 0.0f;
        run.k_map = nullptr;
        if (e.k_kind == ESBNN_K_MAP) run.k_map = e.k + (j * s.out_h + k.y) * s.out_w + k.x;
        if (e.k_kind == ESBNN_K_CLASSES) {
            float* row = reinterpret_cast<float*>(slot + c.at_k);
            run.k_map = row;
            for (int64_t y = 0; y < k.rows; ++y) {
                const float* table = e.k + (j * e.k_rows + e.row_class[k.y + y]) * e.k_cols;
                for (int64_t x = 0; x < k.columns; ++x) *row++ = table[e.col_class[k.x + x]];
            }
        }
        run.shortcut = nullptr;
        if (e.shortcut.data != nullptr) {
            if (contiguous(e.shortcut, k, s.out_w)) {
                run.shortcut = map_at<const float>(e.shortcut, k.n, j, k.y, k.x);
            } else {
                float* gathered = reinterpret_cast<float*>(slot + c.at_shortcut);
                run.shortcut = gathered;
                for (int64_t y = 0; y < k.rows; ++y) {
                    const float* from = map_at<const float>(e.shortcut, k.n, j, k.y + y, k.x);
                    for (int64_t x = 0; x < k.columns; ++x) *gathered++ = from[x * e.shortcut.stride_w];
                }
            }
        }
        run.pos = e.pos != nullptr ? e.pos[j] : 1.0f;
        run.neg = e.neg != nullptr ? e.neg[j] : 1.0f;
        run.shift_in = e.shift_in != nullptr ? e.shift_in[j] : 0.0f;
        run.shift_out = e.shift_out != nullptr ? e.shift_out[j] : 0.0f;
        run.out = in_place ? map_at<float>(args.out, k.n, j, k.y, k.x) : reinterpret_cast<float*>(slot + c.at_out);
        c.kernels->epilogue(run);
        if (!in_place) scatter(run.out, args.out, j, k, s.out_w);
    }
}

void run_chunk(void* context, int64_t index, int slot_index) {
    const Conv& c = *static_cast<const Conv*>(context);
    const Shape& s = c.job->shape;
    uint8_t* slot = c.slots + slot_index * c.slot_bytes;
    Chunk k{};
    k.octet = index % c.octet_chunks * c.octets;
    k.octets = std::min(c.octets, c.all_octets - k.octet);
    index /= c.octet_chunks;
    k.x = index % c.column_chunks * c.columns;
    k.columns = std::min(c.columns, s.out_w - k.x);
    index /= c.column_chunks;
    k.y = index % c.row_chunks * c.rows;
    k.rows = std::min(c.rows, s.out_h - k.y);
    k.n = index / c.row_chunks;
    k.count = k.rows * k.columns;
    k.pixel_words = s.pixel_words;

    const int64_t y0 = k.y * s.stride_h - s.padding_h, x0 = k.x * s.stride_w - s.padding_w;
    if (c.padded) {
        auto* buffer = reinterpret_cast<uint64_t*>(slot);
        const int64_t width = (c.columns - 1) * s.stride_w + (s.kernel_w - 1) * s.dilation_w + 1;
        fill_buffer(c, k, buffer, y0, x0, (k.rows - 1) * s.stride_h + (s.kernel_h - 1) * s.dilation_h + 1, width);
        k.base = buffer;
        k.row_words = width * s.pixel_words;
    } else {
        k.base = c.words + ((k.n * s.h + y0) * s.w + x0) * s.pixel_words;
        k.row_words = s.w * s.pixel_words;
    }

    auto* border = reinterpret_cast<Border*>(slot + c.at_border);
    int64_t borders = 0;
    if (c.correct)
        for (int64_t y = 0, p = 0; y < k.rows; ++y) {
            Border e{};
            inside(k.y + y, s.h, s.kernel_h, s.stride_h, s.padding_h, s.dilation_h, e.first_row, e.last_row);
            for (int64_t x = 0; x < k.columns; ++x, ++p) {
                inside(k.x + x, s.w, s.kernel_w, s.stride_w, s.padding_w, s.dilation_w, e.first_column, e.last_column);
                if (e.first_row == 0 && e.first_column == 0 && e.last_row == s.kernel_h && e.last_column == s.kernel_w) continue;
                e.position = static_cast<int32_t>(p);
                border[borders++] = e;
            }
        }

    const auto** at = reinterpret_cast<const uint64_t**>(slot + c.at_pointers);
    auto* sums = reinterpret_cast<int32_t*>(slot + c.at_sums);
    auto* group_sums = reinterpret_cast<int32_t*>(slot + c.at_group_sums);
    const int64_t steps = s.taps * s.words, rounded = (k.count + 7) / 8 * 8;
    int64_t group = -1;
    for (int64_t octet = k.octet; octet < k.octet + k.octets;) {
        if (octet / s.octets != group) {
            group = octet / s.octets;
            int64_t p = 0;
            for (int64_t y = 0; y < k.rows; ++y)
                for (int64_t x = 0; x < k.columns; ++x)
                    at[p++] = k.base + y * s.stride_h * k.row_words + x * s.stride_w * k.pixel_words + group * s.words;
            for (; p < rounded; ++p) at[p] = at[k.count - 1];
            if (c.group_sums) {
                sum_group(c, k, at, c.offsets, border, borders, group_sums);
                if (c.job->has_group_sums() && octet % s.octets == 0) scatter(group_sums, c.job->args->group_sums, group, k, s.out_w);
            }
        }
        const int64_t left = std::min((group + 1) * s.octets, k.octet + k.octets) - octet;
        SumsJob job;
        job.at = at;
        job.positions = rounded;
        job.offsets = c.offsets;
        job.steps = steps;
        job.weights = c.job->weights.words + octet * steps * 8;
        job.octet_stride = steps * 8;
        job.octets = left >= 2 ? 2 : 1;
        job.n_full = static_cast<int32_t>(s.taps * s.channels);
        job.out = sums;
        job.pitch = kPitch;
        c.kernels->sums(job);
        if (borders > 0) correct_border(c, border, borders, octet * 8, 8 * job.octets, sums);
        const int64_t first = octet % s.octets * 8, lanes = std::min<int64_t>(8 * job.octets, s.group_filters - first);
        for (int64_t i = 0; i < lanes; ++i) finish(c, k, slot, group * s.group_filters + first + i, sums + i * kPitch, group_sums);
        octet += job.octets;
    }
}

}  // namespace

void run_conv(const ConvJob& job, const Kernels& kernels) {
    const Shape& s = job.shape;
    if (s.n == 0 || s.positions() == 0 || (!job.has_sums() && !job.has_group_sums() && !job.has_out())) return;
    static thread_local Scratch packed, shared;
    Conv c{};
    c.job = &job;
    c.kernels = &kernels;
    c.words = job.words;
    if (c.words == nullptr) {
        auto* words = reinterpret_cast<uint64_t*>(packed.get(s.word_count * 8));
        pack_sign(PackJob{s.n, s.h, s.w, s.groups, s.channels, job.args->floats, words}, kernels, job.threads);
        c.words = words;
    }
    c.padded = s.padding_h > 0 || s.padding_w > 0;
    c.correct = c.padded && s.pad == ESBNN_PAD_SKIP;
    c.group_sums = job.has_group_sums() || (job.has_out() && job.args->epilogue.q != nullptr);

    const int64_t steps = s.taps * s.words;
    c.columns = s.out_w <= kPositions ? s.out_w : ceil_div(s.out_w, ceil_div(s.out_w, kPositions));
    c.rows = std::min(s.out_h, s.out_w <= kPositions ? kPositions / s.out_w : 1);
    c.all_octets = s.groups * s.octets;
    c.octets = c.all_octets;
    if (job.threads > 1) {
        // Rows first (they are cut anyway), then filters, as long as a piece is worth it.
        const int64_t wanted = 4 * job.threads, row_work = c.columns * steps * c.all_octets;
        const int64_t least_rows = std::max<int64_t>(1, ceil_div(kWork, row_work));
        if (s.n * ceil_div(s.out_h, c.rows) * ceil_div(s.out_w, c.columns) < wanted)
            c.rows = std::max(std::min(c.rows, least_rows), std::min(c.rows, ceil_div(s.out_h * s.n, wanted)));
        const int64_t pieces = s.n * ceil_div(s.out_h, c.rows) * ceil_div(s.out_w, c.columns);
        if (pieces < wanted) {
            const int64_t octet_work = c.rows * c.columns * steps, least = std::max<int64_t>(2, ceil_div(kWork, octet_work));
            c.octets = std::min(c.all_octets, std::max(least, ceil_div(c.all_octets, ceil_div(wanted, pieces))));
            c.octets += c.octets % 2;
        }
    }
    c.row_chunks = ceil_div(s.out_h, c.rows);
    c.column_chunks = ceil_div(s.out_w, c.columns);
    c.octet_chunks = ceil_div(c.all_octets, c.octets);

    const int64_t buffer_width = (c.columns - 1) * s.stride_w + (s.kernel_w - 1) * s.dilation_w + 1;
    const int64_t buffer_height = (c.rows - 1) * s.stride_h + (s.kernel_h - 1) * s.dilation_h + 1;
    c.buffer_words = c.padded ? product("the padded rows", {buffer_height, buffer_width, s.pixel_words, 8}) / 8 : 0;
    c.at_pointers = align(c.buffer_words * 8);
    c.at_border = c.at_pointers + align(kPitch * 8);
    c.at_sums = c.at_border + align(c.correct ? kPositions * static_cast<int64_t>(sizeof(Border)) : 0);
    c.at_group_sums = c.at_sums + align(16 * kPitch * 4);
    c.at_k = c.at_group_sums + align(kPitch * 4);
    c.at_shortcut = c.at_k + align(kPitch * 4);
    c.at_out = c.at_shortcut + align(kPitch * 4);
    c.slot_bytes = c.at_out + align(kPitch * 4);
    const int64_t chunks = s.n * c.row_chunks * c.column_chunks * c.octet_chunks;
    const int64_t slots = std::max<int64_t>(1, std::min<int64_t>({job.threads, chunks, kMaxThreads}));
    const int64_t offset_bytes = align(steps * 8);
    uint8_t* memory = shared.get(offset_bytes + product("the working memory", {slots, c.slot_bytes}));
    c.offsets = reinterpret_cast<int64_t*>(memory);
    c.slots = memory + offset_bytes;
    const int64_t row_words = (c.padded ? buffer_width : s.w) * s.pixel_words;
    for (int64_t row = 0, i = 0; row < s.kernel_h; ++row)
        for (int64_t column = 0; column < s.kernel_w; ++column)
            for (int64_t word = 0; word < s.words; ++word)
                c.offsets[i++] = row * s.dilation_h * row_words + column * s.dilation_w * s.pixel_words + word;
    parallel(slots, chunks, run_chunk, &c);
}

}  // namespace esbnn
