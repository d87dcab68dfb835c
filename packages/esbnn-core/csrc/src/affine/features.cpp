// Feature planes: for each group of three channels, maj, x1^x3 and x1^x2 of a position in one byte, 64 positions a store.
//
// Rows are stored in ascending order and always by 64 bytes: what overhangs has the value of padding, and the rows after it repair it.
#include "affine.h"
#include "grouping.h"
#include "lanes.h"

#include <cstring>

namespace esbnn {
namespace affine {
namespace {

// Where the columns [64*segment, +64) of a row go: one entry a phase column.
struct Columns {
    bool permute;
    int column;                                  // first column of the plane's row that is written
    __mmask64 valid;                             // bytes that come from the segment; the others are padding
    alignas(64) std::uint8_t index[64];
};

struct Work {
    const Plan* plan;
    const BitMap* map;
    std::int64_t channel;                        // first of the block, in the map
    __mmask8 real[8];                            // real channels of z_k
    const std::uint8_t* pads;
    std::uint8_t* block;
};

struct Three {
    __m512i m, u, v;
};

ESBNN_INLINE Three features_of(__m512i a, __m512i b, __m512i c) {
    return Three{majority(a, b, c), _mm512_xor_si512(a, c), _mm512_xor_si512(a, b)};
}

// The last 16 items (e, f) in the lanes that grouping.h names: q in 0-3, r in 4 5, u in 6, the singles in 7 of m and u.
ESBNN_INLINE Three tail_of(__m512i e, __m512i f) {
    const __m512i swapped = _mm512_shuffle_i64x2(e, e, 0x4E);                          // lane j = e[4+j]
    const __m512i q = xor3(e, swapped, f);
    const __m512i r1 = _mm512_shuffle_i64x2(q, q, 0x00), r2 = _mm512_shuffle_i64x2(q, q, 0x55);      // lanes 4 5 = q[0] q[1]; q[2] q[3]
    const __m512i r = xor3(r1, r2, f);
    const __m512i u1 = _mm512_permutex_epi64(_mm512_shuffle_i64x2(r, r, 0xAA), 0x00);    // every lane = r[0], in lane 4 of r
    const __m512i u2 = _mm512_permutex_epi64(_mm512_shuffle_i64x2(r, r, 0xAA), 0x55);
    const __m512i x1 = _mm512_mask_mov_epi64(_mm512_mask_mov_epi64(e, 0x30, r1), 0x40, u1);
    const __m512i x2 = _mm512_mask_mov_epi64(_mm512_mask_mov_epi64(swapped, 0x30, r2), 0x40, u2);
    Three t = features_of(x1, x2, f);
    const __m512i u = xor3(u1, u2, f);                                                  // right in lane 6
    t.m = _mm512_mask_permutex_epi64(t.m, 0x80, u, 0xA0);                               // lane 7 = u[6]
    t.u = _mm512_mask_mov_epi64(t.u, 0x80, f);                                          // lane 7 = f[7]
    t.v = _mm512_maskz_mov_epi64(0x7F, t.v);
    return t;
}

// Planes first .. first + count - 1 from their two halves.
template <int count>
ESBNN_INLINE void store_planes(const Work& w, Three low, Three high, __m512i one, int first, const Columns* columns, int n_columns,
                               std::uint8_t* row, std::size_t phase_bytes) {
    __m512i r[8] = {low.m, low.u, low.v, high.m, high.u, high.v, one, _mm512_setzero_si512()};
    transpose_qwords(r);
    const std::size_t stride = w.plan->plane_bytes;
    for (int j = 0; j < count; ++j) {
        const __m512i bytes = transpose_bits(transpose_bytes_reversed(r[j]));
        std::uint8_t* plane = row + static_cast<std::size_t>(first + j) * stride;
        if (!columns[0].permute) {
            _mm512_storeu_si512(plane + columns[0].column, bytes);
            continue;
        }
        const __m512i pad = _mm512_set1_epi8(static_cast<char>(w.pads[first + j]));
        for (int c = 0; c < n_columns; ++c)
            _mm512_storeu_si512(plane + static_cast<std::size_t>(c) * phase_bytes + columns[c].column,
                                _mm512_mask_permutexvar_epi8(pad, columns[c].valid, _mm512_load_si512(columns[c].index), bytes));
    }
}

// One segment of one row: bits from `at` of the map on, `width` of them real.
template <int kind>
ESBNN_INLINE void row_features(const Work& w, std::int64_t at, int width, const Columns* columns, int n_columns, std::uint8_t* row,
                               std::size_t phase_bytes) {
    const std::uint64_t inside = width >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << width) - 1;
    const __m512i mask = _mm512_set1_epi64(static_cast<long long>(inside));
    const __m128i shift = _mm_cvtsi64_si128(at & 63), back = _mm_cvtsi64_si128(64 - (at & 63));
    const bool two = (at & 63) + width > 64;
    const bool hi = w.plan->geo.pad == Pad::hi;
    __m512i z[8];
    for (int k = 0; k < kind / 8; ++k) {
        __m512i v = _mm512_srl_epi64(load_lanes(*w.map, w.channel + 8 * k, at >> 6, w.real[k]), shift);
        if (two) v = _mm512_or_si512(v, _mm512_sll_epi64(load_lanes(*w.map, w.channel + 8 * k, (at >> 6) + 1, w.real[k]), back));
        v = _mm512_and_si512(v, mask);
        if (hi) v = _mm512_mask_or_epi64(v, w.real[k], v, _mm512_set1_epi64(static_cast<long long>(~inside)));
        z[k] = v;
    }
    const __m512i one = w.plan->geo.pad == Pad::skip ? mask : _mm512_set1_epi64(-1);
    if constexpr (kind == 64) {
        const __m512i a = xor3(z[0], z[1], z[2]), b = xor3(z[3], z[4], z[5]), c = xor3(z[6], z[7], a);
        store_planes<8>(w, features_of(z[0], z[1], z[2]), features_of(z[3], z[4], z[5]), one, 0, columns, n_columns, row, phase_bytes);
        store_planes<8>(w, features_of(z[6], z[7], a), tail_of(b, c), one, 8, columns, n_columns, row, phase_bytes);
    } else if constexpr (kind == 32) {
        const __m512i a = xor3(z[0], z[1], z[2]);
        store_planes<8>(w, features_of(z[0], z[1], z[2]), tail_of(a, z[3]), one, 0, columns, n_columns, row, phase_bytes);
    } else {
        const Three low = tail_of(z[0], z[1]);
        const Three high = {_mm512_shuffle_i64x2(low.m, low.m, 0x4E), _mm512_shuffle_i64x2(low.u, low.u, 0x4E),
                            _mm512_shuffle_i64x2(low.v, low.v, 0x4E)};
        store_planes<4>(w, low, high, one, 0, columns, n_columns, row, phase_bytes);
    }
}

void fill_columns(const Plan& plan, int segment, Columns* out) {
    const int stride = plan.geo.stride_w, pad = plan.geo.pad_w;
    for (int f = 0; f < stride; ++f) {
        if (plan.phase_column_used[f] == 0) continue;
        Columns& c = out[plan.phase_column_used[f] - 1];
        // padded column X = x + pad = stride*column + f; the first that comes from this segment:
        const int from = 64 * segment + pad - f;
        c.column = from <= 0 ? 0 : (from + stride - 1) / stride;
        c.permute = stride != 1;
        c.valid = 0;
        std::memset(c.index, 0, 64);
        for (int i = 0; i < 64; ++i) {
            const int x = stride * (c.column + i) + f - pad - 64 * segment;
            if (x < 0 || x >= 64) continue;
            c.valid |= static_cast<__mmask64>(1) << i;
            c.index[i] = static_cast<std::uint8_t>(x);
        }
    }
}

template <int kind>
void block_features(const Work& w) {
    const Plan& plan = *w.plan;
    const Geometry& g = plan.geo;
    const int segments = (g.width + 63) / 64;
    const std::size_t phase_bytes = plan.plane_bytes * static_cast<std::size_t>(plan.planes);
    Columns columns[8];
    if (segments == 1) fill_columns(plan, 0, columns);
    for (int n = 0; n < g.images; ++n)
        for (int y = 0; y < g.height; ++y) {
            const int padded = y + g.pad_h, used = plan.phase_row_used[padded % g.stride_h];
            if (used == 0) continue;
            std::uint8_t* row = w.block + static_cast<std::size_t>((used - 1) * plan.phase_columns) * phase_bytes +
                                static_cast<std::size_t>(n * plan.image_rows + padded / g.stride_h) * static_cast<std::size_t>(plan.row_stride);
            const std::int64_t at = n * w.map->image_bits + y * w.map->row_stride;
            for (int s = 0; s < segments; ++s) {
                if (segments > 1) fill_columns(plan, s, columns);
                const int width = g.width - 64 * s < 64 ? g.width - 64 * s : 64;
                row_features<kind>(w, at + 64 * s, width, columns, plan.phase_columns, row, phase_bytes);
            }
        }
}

}  // namespace

void init_planes(const Plan& plan, std::uint8_t* planes) {
    for (int b = 0; b < plan.blocks * plan.geo.groups; ++b)
        for (int f = 0; f < plan.phases; ++f)
            for (int j = 0; j < plan.planes; ++j, planes += plan.plane_bytes)
                std::memset(planes, plan.pad_bytes[b % plan.blocks * plan.planes + j], plan.plane_bytes);
}

void features(const Plan& plan, const BitMap& map, std::uint8_t* planes, int first, int last) {
    for (int b = first; b < last; ++b) {
        const int group = b / plan.blocks, block = b % plan.blocks;
        Work w{&plan, &map, static_cast<std::int64_t>(group) * plan.group_channels + block * plan.kind, {}, plan.pad_bytes + block * plan.planes,
               planes + static_cast<std::size_t>(b) * plan.block_bytes};
        for (int k = 0; k < 8; ++k) {
            const int left = plan.group_channels - block * plan.kind - 8 * k;
            w.real[k] = left >= 8 ? 0xFF : left <= 0 ? 0 : static_cast<__mmask8>((1u << left) - 1);
        }
        if (plan.kind == 64) block_features<64>(w);
        if (plan.kind == 32) block_features<32>(w);
        if (plan.kind == 16) block_features<16>(w);
    }
}

}  // namespace affine
}  // namespace esbnn
