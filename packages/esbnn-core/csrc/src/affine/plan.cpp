// Geometry of the affine path: what it takes, and every offset and table that a layer needs. No special instructions in here.
#include "affine.h"
#include "grouping.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

namespace esbnn {
namespace affine {
namespace {

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }
int out_size(int in, int kernel, int stride, int pad, int dilation) { return (in + 2 * pad - (kernel - 1) * dilation - 1) / stride + 1; }

// Rows (columns) of a plane: with stride 1 the pad after one row is the pad before the next, otherwise every residue has its own.
int plane_extent(int in, int kernel, int stride, int pad, int dilation) {
    if (stride == 1 && pad <= (kernel - 1) * dilation) return in + pad;
    return static_cast<int>(ceil_div(in + 2 * pad, stride));
}

// Channels a block: the fewest matrices win; a block of k has k/2 - 1 carries and two single parities. Steps cost about 3 more.
int choose_kind(int channels) {
    int best = 64;
    std::int64_t best_cost = -1;
    for (int kind : {64, 32, 16}) {
        const std::int64_t cost = ceil_div(channels, kind) * (kind / 2 + 1 + 3);
        if (best_cost < 0 || cost < best_cost) best = kind, best_cost = cost;
    }
    return best;
}

struct Owner : Plan {                // the plan and its tables, in one object so that free_plan frees all
    Owner() : Plan() {}
    std::vector<std::uint8_t> row_used, column_used, pads, chunk_orders, group_orders, starts[20];
    std::vector<std::int64_t> offsets;
    std::vector<std::int32_t> chunk_reals, group_starts, group_reals;
};

// Which flattened positions are outputs, and how many taps of each lie outside the map.
struct Positions {
    std::vector<std::uint8_t> real;
    std::vector<std::int32_t> missing;
};

Positions find_positions(const Plan& p) {
    const Geometry& g = p.geo;
    const std::size_t padded = static_cast<std::size_t>(round_up(p.positions, 64)) + 64;
    Positions out{std::vector<std::uint8_t>(padded, 0), std::vector<std::int32_t>(padded, 0)};
    const auto valid = [](int o, int in, int kernel, int stride, int pad, int dilation) {
        int n = 0;
        for (int k = 0; k < kernel; ++k) {
            const int at = o * stride - pad + k * dilation;
            n += at >= 0 && at < in;
        }
        return n;
    };
    std::vector<int> columns(static_cast<std::size_t>(p.out_w));
    for (int x = 0; x < p.out_w; ++x) columns[x] = valid(x, g.width, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w);
    for (int n = 0; n < g.images; ++n)
        for (int y = 0; y < p.out_h; ++y) {
            const int rows = valid(y, g.height, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h);
            for (int x = 0; x < p.out_w; ++x) {
                const std::size_t q = static_cast<std::size_t>(n * p.image_rows + y) * p.row_stride + x;
                out.real[q] = 1;
                out.missing[q] = g.kernel_h * g.kernel_w - rows * columns[x];
            }
        }
    return out;
}

// Candidate for form `groups`: every eight positions from q on, or from the start of each row from q's row on. The first of a row
// may then begin before q; those outputs are simply computed twice, equal.
std::vector<std::int32_t> find_groups(const Plan& p, const Positions& at, int from) {
    std::vector<std::int32_t> flat, rows;
    const auto has_real = [&](int q, int begin) {
        for (int i = 0; i < 8; ++i)
            if (q + i >= begin && q + i < p.positions && at.real[q + i]) return true;
        return false;
    };
    for (int q = from; q < p.positions; q += 8)
        if (has_real(q, from)) flat.push_back(q);
    for (int n = 0; n < p.geo.images; ++n)
        for (int y = 0; y < p.out_h; ++y)
            for (int x = 0; x < p.out_w; x += 8) {
                const int q = (n * p.image_rows + y) * p.row_stride + x;
                if (has_real(q, from)) rows.push_back(q);
            }
    return rows.size() < flat.size() ? rows : flat;
}

// vpermb index of `lanes` positions from q: real positions first, in order (of at most 64 lanes).
int real_first(const Plan& p, const Positions& at, int q, int lanes, std::uint8_t* index) {
    int n = 0;
    for (int i = 0; i < lanes; ++i)
        if (q + i < p.positions && at.real[q + i]) index[n++] = static_cast<std::uint8_t>(i);
    const int real = n;
    while (n < lanes) index[n++] = 0;
    return real;
}

void fill_chunks(Owner& o, const Positions& at) {
    Plan& p = o;
    o.chunk_orders.resize(64 * static_cast<std::size_t>(p.chunks));
    o.chunk_reals.assign(1, 0);
    for (int c = 0; c < p.chunks; ++c) {
        std::uint8_t index[64];
        const int real = real_first(p, at, 64 * c, 64, index);
        o.chunk_reals.push_back(o.chunk_reals.back() + real);
        // qwords in the order 0 4 1 5 2 6 3 7: then unpacking low and high bytes gives positions 0-31 and 32-63
        static const int order[8] = {0, 4, 1, 5, 2, 6, 3, 7};
        for (int i = 0; i < 8; ++i) std::memcpy(&o.chunk_orders[64 * static_cast<std::size_t>(c) + 8 * i], index + 8 * order[i], 8);
    }
}

void fill_groups(Owner& o, const Positions& at) {
    Plan& p = o;
    o.group_starts = find_groups(p, at, 64 * p.chunks);
    p.position_groups = static_cast<int>(o.group_starts.size());
    std::vector<std::int32_t> before(at.real.size() + 1, 0);
    for (std::size_t q = 0; q < at.real.size(); ++q) before[q + 1] = before[q] + at.real[q];
    for (const int q : o.group_starts) {
        o.group_reals.push_back(before[static_cast<std::size_t>(q)]);
        std::uint8_t index[8];
        real_first(p, at, q, 8, index);
        for (int block = 0; block < 8; ++block)
            for (int i = 0; i < 8; ++i) o.group_orders.push_back(static_cast<std::uint8_t>(8 * block + index[i]));
    }
}

// A tap that is skipped adds no mismatch, so dot = n_valid - 2*count. Starting count from (n_full - n_valid)/2 = channels*missing/2
// makes it n_full - 2*count everywhere. Where that is not an integer an extra lowest plane holds the half.
void fill_start(Owner& o, const Positions& at) {
    Plan& p = o;
    int bits = 0;
    while ((1 << bits) < p.steps + 1) ++bits;
    const bool skips = p.geo.pad == Pad::skip && (p.geo.pad_h > 0 || p.geo.pad_w > 0);
    p.odd = skips && p.group_channels % 2 != 0;
    p.count_planes = p.levels + bits + (p.odd ? 1 : 0);
    p.full = p.group_channels * p.geo.kernel_h * p.geo.kernel_w;
    if (!skips) return;
    for (int k = 0; k < p.count_planes; ++k) {
        const int bit = p.odd ? k : k + 1;
        std::vector<std::uint8_t> table(at.real.size(), 0);
        bool any = false;
        for (std::size_t q = 0; q < table.size(); ++q)
            if (static_cast<std::int64_t>(p.group_channels) * at.missing[q] >> bit & 1) table[q] = 255, any = true;
        if (any || (p.odd && k == 0)) o.starts[k].swap(table);
    }
}

void choose_forms(Plan& p, const Positions& at, Forms wanted) {
    const std::int64_t out_blocks = ceil_div(p.group_outputs, 8), wide = ceil_div(out_blocks, 8);
    const int all = static_cast<int>(ceil_div(p.positions, 64));
    const auto groups_after = [&](int chunks) { return static_cast<std::int64_t>(find_groups(p, at, 64 * chunks).size()); };
    const int whole = all - 1;
    if (wanted == Forms::best) {
        // registers of results; a group costs a little more (its data are broadcast loads), an odd block or group alone much more
        const double chunks = static_cast<double>(all * (2 * (out_blocks / 2)) + 1.4 * all * (out_blocks % 2));
        const double groups = 1.08 * static_cast<double>(wide * groups_after(0));
        const double mixed = whole < 1 ? 1e30 : static_cast<double>(whole * out_blocks) + 1.08 * static_cast<double>(wide * groups_after(whole));
        wanted = Forms::chunks;
        if (groups < 0.97 * chunks) wanted = Forms::groups;
        if (mixed < 0.97 * chunks && mixed < groups) wanted = Forms::mixed;
    }
    if (wanted == Forms::mixed && whole < 1) wanted = Forms::groups;
    p.forms = wanted;
    p.chunks = wanted == Forms::chunks ? all : wanted == Forms::mixed ? whole : 0;
    p.unit_blocks = wanted == Forms::chunks ? 2 : 8;
}

// Bytes of padded positions: a zero byte adds nothing to any carry; a bit 0 everywhere leaves only the constant of bit 6.
void fill_pads(Owner& o) {
    Plan& p = o;
    o.pads.assign(static_cast<std::size_t>(p.blocks * p.planes), 0);
    if (p.geo.pad == Pad::skip) return;
    for (int b = 0; b < p.blocks; ++b) {
        std::uint64_t items[64] = {};
        for (int c = 0; c < p.kind; ++c) items[c] = p.geo.pad == Pad::hi && b * p.kind + c < p.group_channels;
        std::uint8_t* bytes = &o.pads[static_cast<std::size_t>(b * p.planes)];
        for (int j = 0; j < p.planes; ++j) bytes[j] = 0x40;
        const Singles s = for_each_group(p.kind, items, [&](int half, std::uint64_t x1, std::uint64_t x2, std::uint64_t x3) {
            const std::uint64_t m = (x1 & x2) | (x3 & (x1 | x2));
            bytes[half / 2] = static_cast<std::uint8_t>(bytes[half / 2] | (m | (x1 ^ x3) << 1 | (x1 ^ x2) << 2) << (half % 2 ? 3 : 0));
        });
        bytes[p.planes - 1] = static_cast<std::uint8_t>(bytes[p.planes - 1] | s.first << 3 | s.second << 4);
    }
}

bool fill(Owner& o, const Geometry& g, Forms wanted) {
    Plan& p = o;
    p.geo = g;
    p.out_h = out_size(g.height, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h);
    p.out_w = out_size(g.width, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w);
    p.group_channels = g.channels / g.groups;
    p.group_outputs = g.outputs / g.groups;
    p.kind = choose_kind(p.group_channels);
    p.levels = p.kind == 64 ? 6 : p.kind == 32 ? 5 : 4;
    p.blocks = static_cast<int>(ceil_div(p.group_channels, p.kind));
    p.planes = p.kind / 4;
    p.matrices = p.kind / 2 + 1;
    p.row_stride = plane_extent(g.width, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w);
    p.image_rows = plane_extent(g.height, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h);
    p.positions = ((g.images - 1) * p.image_rows + p.out_h - 1) * p.row_stride + p.out_w;
    p.real_positions = g.images * p.out_h * p.out_w;

    const auto residues = [](int kernel, int stride, int dilation, std::vector<std::uint8_t>& used) {
        used.assign(static_cast<std::size_t>(stride), 0);
        std::uint8_t n = 0;
        for (int k = 0; k < kernel; ++k)
            if (!used[static_cast<std::size_t>(k * dilation % stride)]) used[static_cast<std::size_t>(k * dilation % stride)] = ++n;
        return static_cast<int>(n);
    };
    p.phase_rows = residues(g.kernel_h, g.stride_h, g.dilation_h, o.row_used);
    p.phase_columns = residues(g.kernel_w, g.stride_w, g.dilation_w, o.column_used);
    p.phases = p.phase_rows * p.phase_columns;

    const std::int64_t reach = static_cast<std::int64_t>((g.kernel_h - 1) * g.dilation_h / g.stride_h) * p.row_stride +
                               (g.kernel_w - 1) * g.dilation_w / g.stride_w;
    const std::int64_t rows = static_cast<std::int64_t>(g.images) * p.image_rows + g.pad_h;
    const std::int64_t read = round_up(p.positions, 64) + reach + 64, written = (rows + 1) * p.row_stride + 128;
    p.plane_bytes = static_cast<std::size_t>(round_up(read > written ? read : written, 64) | 64);        // an odd multiple of 64
    p.block_bytes = p.plane_bytes * static_cast<std::size_t>(p.planes * p.phases);
    p.workspace_bytes = p.block_bytes * static_cast<std::size_t>(p.blocks * g.groups);

    p.steps = p.blocks * g.kernel_h * g.kernel_w;
    for (int b = 0; b < p.blocks; ++b)
        for (int ky = 0; ky < g.kernel_h; ++ky)
            for (int kx = 0; kx < g.kernel_w; ++kx) {
                const int dy = ky * g.dilation_h, dx = kx * g.dilation_w;
                const int phase = (o.row_used[static_cast<std::size_t>(dy % g.stride_h)] - 1) * p.phase_columns +
                                  o.column_used[static_cast<std::size_t>(dx % g.stride_w)] - 1;
                o.offsets.push_back(static_cast<std::int64_t>(p.block_bytes) * b +
                                        static_cast<std::int64_t>(p.plane_bytes) * p.planes * phase +
                                        static_cast<std::int64_t>(dy / g.stride_h) * p.row_stride + dx / g.stride_w);
            }

    const Positions at = find_positions(p);
    choose_forms(p, at, wanted);
    fill_chunks(o, at);
    if (p.forms != Forms::chunks) fill_groups(o, at);
    fill_start(o, at);
    fill_pads(o);
    if (p.count_planes > 16) return false;

    const std::size_t step = 8 * static_cast<std::size_t>(p.matrices * p.unit_blocks);
    p.units_per_group = static_cast<int>(ceil_div(p.group_outputs, 8 * p.unit_blocks));
    p.units = p.units_per_group * g.groups;
    p.unit_bytes = step * static_cast<std::size_t>(p.steps) * (p.forms == Forms::mixed ? 2 : 1);
    p.weight_bytes = p.unit_bytes * static_cast<std::size_t>(p.units);
    return true;
}

}  // namespace

bool supported(const Geometry& g) {
    const auto axis = [](int in, int kernel, int stride, int pad, int dilation) {
        return in >= 1 && in <= 4096 && kernel >= 1 && kernel <= 7 && stride >= 1 && stride <= 2 && dilation >= 1 && dilation <= 16 &&
               pad >= 0 && pad <= (kernel - 1) * dilation && in + 2 * pad >= (kernel - 1) * dilation + 1;
    };
    if (!axis(g.height, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h) || !axis(g.width, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w)) return false;
    if (g.images < 1 || g.channels < 1 || g.outputs < 1 || g.groups < 1 || g.channels % g.groups != 0 || g.outputs % g.groups != 0) return false;
    // sums (and their halves for an odd number of channels) fit 16 planes; flattened positions fit 32 bits with room
    const std::int64_t sum = static_cast<std::int64_t>(g.channels / g.groups) * g.kernel_h * g.kernel_w;
    const std::int64_t area = static_cast<std::int64_t>(g.images) * (g.height + 32) * (g.width + 128);
    return sum <= 16384 && area < (std::int64_t{1} << 28);
}

Plan* make_plan(const Geometry& geometry, Forms forms) {
    if (!supported(geometry)) return nullptr;
    Owner* o = nullptr;
    try {
        o = new Owner;
        if (!fill(*o, geometry, forms)) {
            delete o;
            return nullptr;
        }
    } catch (const std::bad_alloc&) {
        delete o;
        return nullptr;
    }
    Plan& p = *o;
    p.phase_row_used = o->row_used.data();
    p.phase_column_used = o->column_used.data();
    p.pad_bytes = o->pads.data();
    p.step_offset = o->offsets.data();
    p.chunk_real = o->chunk_reals.data();
    p.chunk_order = o->chunk_orders.data();
    p.group_start = o->group_starts.data();
    p.group_real = o->group_reals.data();
    p.group_order = o->group_orders.data();
    for (int k = 0; k < 20; ++k) p.start[k] = o->starts[k].empty() ? nullptr : o->starts[k].data();
    return &p;
}

void free_plan(Plan* plan) {
    delete static_cast<Owner*>(plan);
}

int good_images(const Geometry& geometry) {
    // Planes take planes*plane_bytes a block, read once a unit: half a megabyte keeps them in a core's second level cache.
    Geometry one = geometry;
    one.images = 1;
    if (!supported(one)) return 1;
    const double bytes = static_cast<double>(geometry.height + geometry.pad_h) * (geometry.width + geometry.pad_w) *
                         static_cast<double>(geometry.channels) / 4.0;
    const int fit = bytes > 0 ? static_cast<int>(524288.0 / bytes) : 1;
    return fit < 1 ? 1 : fit < geometry.images ? fit : geometry.images;
}

BitMap bit_map(int images, int height, int row_stride) {
    BitMap map;
    map.row_stride = row_stride;
    map.image_bits = round_up(static_cast<std::int64_t>(height) * row_stride, 64);
    map.length = map.image_bits / 64 * images + 1;
    return map;
}

BitMap switch_map(const Plan& plan) {
    BitMap map;
    map.row_stride = plan.row_stride;
    map.image_bits = static_cast<std::int64_t>(plan.image_rows) * plan.row_stride;
    map.length = ceil_div(plan.positions, 64) + 1;
    return map;
}

std::size_t bit_map_bytes(const BitMap& map, int channels) {
    return static_cast<std::size_t>(map.block_stride() * ceil_div(channels, 64)) * sizeof(std::uint64_t);
}

}  // namespace affine
}  // namespace esbnn
