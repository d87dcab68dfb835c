// The checks of a convolution's arguments.
#include <algorithm>
#include <cinttypes>

#include "conv.h"
#include "error.h"
#include "pack.h"
#include "pool.h"

namespace esbnn {
namespace {

void vector(const char* what, const void* data, std::int64_t count, std::int64_t wanted, bool optional) {
    if (data == nullptr && count != 0) fail(ESBNN_E_ARGUMENT, "%s is null but has %" PRId64 " elements", what, count);
    if (data == nullptr && optional) return;
    if (count != wanted) fail(ESBNN_E_ARGUMENT, "%s has %" PRId64 " elements, wanted %" PRId64, what, count, wanted);
}

void map(const char* what, const esbnn_map& m, std::int64_t n, std::int64_t c, const Shape& s) {
    if (m.data == nullptr && m.count == 0) return;
    check_reach(what, m.data, m.count, n, c, s.out_h, s.out_w, m.stride_n, m.stride_c, m.stride_h, m.stride_w);
}

void classes(const char* what, const std::int32_t* data, std::int64_t count, std::int64_t wanted, std::int64_t limit) {
    vector(what, data, count, wanted, false);
    for (std::int64_t i = 0; i < count; ++i)
        if (data[i] < 0 || data[i] >= limit) fail(ESBNN_E_ARGUMENT, "%s[%" PRId64 "] is %d, wanted 0 to %" PRId64, what, i, data[i], limit - 1);
}

void check_epilogue(const esbnn_epilogue& e, const Shape& s) {
    if (e.copies < 1 || e.copies > INT32_MAX) fail(ESBNN_E_ARGUMENT, "copies is %" PRId64 ", wanted 1 or more", e.copies);
    const std::int64_t j = product("the output", {s.filters, e.copies});
    product("the output", {s.n, j, s.out_h, s.out_w, 4});
    vector("p", e.p, e.p_count, j, false);
    if (e.p == nullptr) fail(ESBNN_E_ARGUMENT, "p is null");
    vector("q", e.q, e.q_count, j, true);
    switch (e.k_kind) {
        case ESBNN_K_NONE: vector("k", e.k, e.k_count, 0, true); break;
        case ESBNN_K_CHANNEL: vector("k", e.k, e.k_count, j, false); break;
        case ESBNN_K_CLASSES:
            if (e.k_rows < 1 || e.k_cols < 1) fail(ESBNN_E_ARGUMENT, "k has %" PRId64 " x %" PRId64 " border classes, wanted 1 or more", e.k_rows, e.k_cols);
            vector("k", e.k, e.k_count, product("k", {j, e.k_rows, e.k_cols}), false);
            classes("row_class", e.row_class, e.row_class_count, s.out_h, e.k_rows);
            classes("col_class", e.col_class, e.col_class_count, s.out_w, e.k_cols);
            break;
        case ESBNN_K_MAP: vector("k", e.k, e.k_count, product("k", {j, s.out_h, s.out_w}), false); break;
        default: fail(ESBNN_E_ARGUMENT, "k_kind is %d, wanted 0 to 3", e.k_kind);
    }
    if (e.act < ESBNN_ACT_NONE || e.act > ESBNN_ACT_TWO_SLOPE) fail(ESBNN_E_ARGUMENT, "act is %d, wanted 0 (none), 1 (clamp) or 2 (two slopes)", e.act);
    if (e.act_before_add != 0 && e.act_before_add != 1) fail(ESBNN_E_ARGUMENT, "act_before_add is %d, wanted 0 or 1", e.act_before_add);
    if (e.reserved != 0) fail(ESBNN_E_ARGUMENT, "a reserved field of the epilogue is not 0");
    vector("pos", e.pos, e.pos_count, j, true);
    vector("neg", e.neg, e.neg_count, j, true);
    vector("shift_in", e.shift_in, e.shift_in_count, j, true);
    vector("shift_out", e.shift_out, e.shift_out_count, j, true);
    map("shortcut", e.shortcut, s.n, j, s);
}

}  // namespace

ConvJob check_conv(const esbnn_conv_args& args) {
    ConvJob job{};
    job.shape = check_shape(args.shape);
    job.args = &args;
    const Shape& s = job.shape;
    if (args.threads < 1) fail(ESBNN_E_ARGUMENT, "threads is %" PRId64 ", wanted 1 or more", args.threads);
    job.threads = std::min<std::int64_t>(args.threads, kMaxThreads);
    if (args.words != nullptr || args.word_count != 0) {
        vector("words", args.words, args.word_count, s.word_count, false);
        job.words = args.words;
    } else if (s.word_count > 0) {
        if (args.floats.x == nullptr) fail(ESBNN_E_ARGUMENT, "there is no input: words and x are null");
        check_floats(args.floats, s.n, s.all_channels(), s.h, s.w);
    }
    job.weights = read_weights(s, args.weights, args.weights_bytes);
    map("sums", args.sums, s.n, s.filters, s);
    map("group_sums", args.group_sums, s.n, s.groups, s);
    if (args.out.data != nullptr || args.out.count != 0) {
        check_epilogue(args.epilogue, s);
        map("out", args.out, s.n, s.filters * args.epilogue.copies, s);
    }
    return job;
}

}  // namespace esbnn
