#include "pack.h"

#include <algorithm>
#include <cinttypes>

#include "error.h"
#include "pool.h"

namespace esbnn {
namespace {

constexpr std::int64_t kChunk = 1 << 14;         // values a thread takes at a time: some microseconds

struct Packing {
    const PackJob* job;
    const Kernels* kernels;
    std::int64_t words, rows, row_chunks;        // words of a group; rows a chunk
    bool flat;                                   // rows follow each other without gaps: one run for all of a chunk's
};

void pack_block(const Packing& p, std::int64_t n, std::int64_t group, std::int64_t block, std::int64_t y, std::int64_t rows) {
    const PackJob& job = *p.job;
    const esbnn_floats& f = job.floats;
    const std::int64_t first = group * job.channels + block * 64;
    const int channels = static_cast<int>(std::min<std::int64_t>(64, job.channels - block * 64));
    float thresholds[64] = {};
    std::uint64_t flips = 0;
    for (int c = 0; c < channels; ++c) {
        thresholds[c] = f.thresholds[(f.threshold_n > 1 ? n * f.threshold_c : 0) + (f.threshold_c > 1 ? first + c : 0)];
        if (f.flip_c > 0 && f.flips[f.flip_c > 1 ? first + c : 0] != 0) flips |= std::uint64_t{1} << c;
    }
    const std::int64_t pixel = job.groups * p.words;
    PackRun run;
    run.channels = channels;
    run.stride = f.stride_w;
    run.stride_c = f.stride_c;
    run.thresholds = thresholds;
    run.flips = flips;
    run.out_stride = pixel;
    const std::int64_t runs = p.flat ? 1 : rows;
    run.count = p.flat ? rows * job.w : job.w;
    for (std::int64_t i = 0; i < runs; ++i) {
        run.x = f.x + n * f.stride_n + first * f.stride_c + (y + i) * f.stride_h;
        run.out = job.words + ((n * job.h + y + i) * job.w) * pixel + group * p.words + block;
        p.kernels->pack(run);
    }
}

void pack_chunk(void* context, std::int64_t chunk, int) {
    const Packing& p = *static_cast<const Packing*>(context);
    const std::int64_t n = chunk / p.row_chunks, y = chunk % p.row_chunks * p.rows, rows = std::min(p.rows, p.job->h - y);
    for (std::int64_t group = 0; group < p.job->groups; ++group)
        for (std::int64_t block = 0; block < p.words; ++block) pack_block(p, n, group, block, y, rows);
}

}  // namespace

void check_floats(const esbnn_floats& f, std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w) {
    check_reach("x", f.x, f.x_count, n, c, h, w, f.stride_n, f.stride_c, f.stride_h, f.stride_w);
    if ((f.threshold_n != 1 && f.threshold_n != n) || (f.threshold_c != 1 && f.threshold_c != c))
        fail(ESBNN_E_ARGUMENT, "thresholds are [%" PRId64 ", %" PRId64 "], wanted [1 or %" PRId64 ", 1 or %" PRId64 "]", f.threshold_n, f.threshold_c, n, c);
    if (f.thresholds == nullptr && f.threshold_n > 0) fail(ESBNN_E_ARGUMENT, "thresholds are null");
    if (f.flip_c != 0 && f.flip_c != 1 && f.flip_c != c) fail(ESBNN_E_ARGUMENT, "there are %" PRId64 " flips, wanted none, 1 or %" PRId64, f.flip_c, c);
    if (f.flips == nullptr && f.flip_c > 0) fail(ESBNN_E_ARGUMENT, "flips are null but have %" PRId64 " elements", f.flip_c);
}

void pack_sign(const PackJob& job, const Kernels& kernels, std::int64_t threads) {
    if (job.n == 0 || job.h == 0 || job.w == 0) return;
    Packing p;
    p.job = &job;
    p.kernels = &kernels;
    p.words = (job.channels + 63) / 64;
    p.flat = job.floats.stride_h == job.floats.stride_w * job.w || job.h == 1;
    const std::int64_t row_values = job.w * job.groups * job.channels;
    p.rows = std::min(job.h, std::max<std::int64_t>(1, kChunk / row_values));
    if (threads == 1) p.rows = job.h;
    p.row_chunks = (job.h + p.rows - 1) / p.rows;
    parallel(threads, job.n * p.row_chunks, pack_chunk, &p);
}

}  // namespace esbnn
