// The affine formulation behind the C interface: plans by sizes, weights' expansion, and a convolution in three steps over the threads.
//
// An expansion is 64 bytes that name the loop form it was made for, then matrices. The form is chosen by the map that the weights were
// prepared for; maps of other sizes use it too. What this path has no way for goes to the popcount kernels (see `affine_takes`).
#include "affine_path.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "affine/affine.h"
#include "pool.h"
#include "scratch.h"

namespace esbnn {
namespace {

using affine::BitMap;
using affine::Forms;
using affine::Geometry;
using affine::Plan;

constexpr std::int64_t kHeader = 64;
constexpr std::size_t kPlans = 256;                          // some networks' worth of layers

struct Expansion {
    std::int32_t forms;
    std::int32_t reserved;
    std::int64_t matrices;                                   // bytes
};

struct Entry {
    Geometry geometry;
    Forms forms;
    std::shared_ptr<const Plan> plan;
};

std::mutex plans_mutex;
std::vector<Entry>& plans() {
    static auto* kept = new std::vector<Entry>;              // never destroyed: other threads may outlive this file's statics
    return *kept;
}

// Null if the sizes are not for this path.
std::shared_ptr<const Plan> plan_of(const Geometry& geometry, Forms forms) {
    {
        std::lock_guard<std::mutex> lock(plans_mutex);
        for (const Entry& entry : plans())
            if (entry.forms == forms && std::memcmp(&entry.geometry, &geometry, sizeof(Geometry)) == 0) return entry.plan;
    }
    std::shared_ptr<const Plan> made(affine::make_plan(geometry, forms), [](const Plan* plan) { affine::free_plan(const_cast<Plan*>(plan)); });
    std::lock_guard<std::mutex> lock(plans_mutex);
    if (plans().size() >= kPlans) plans().erase(plans().begin(), plans().begin() + kPlans / 4);
    plans().push_back({geometry, forms, made});
    return made;
}

// False if a size does not fit.
bool geometry_of(const Shape& s, Geometry& g) {
    for (const std::int64_t size : {s.n, s.all_channels(), s.h, s.w, s.filters, s.padding_h + s.padding_w, s.dilation_h + s.dilation_w})
        if (size > (1 << 24)) return false;
    if (s.kernel_h > 64 || s.kernel_w > 64 || s.stride_h > 64 || s.stride_w > 64) return false;
    static_assert(sizeof(Geometry) == 15 * sizeof(int), "compared byte by byte");
    const auto i = [](std::int64_t size) { return static_cast<int>(size); };
    g = {i(s.n), i(s.all_channels()), i(s.h), i(s.w), i(s.filters), i(s.groups), i(s.kernel_h), i(s.kernel_w), i(s.stride_h), i(s.stride_w),
         i(s.padding_h), i(s.padding_w), i(s.dilation_h), i(s.dilation_w), static_cast<affine::Pad>(s.pad)};
    return true;
}

bool rows_contiguous(const esbnn_map& m, std::int64_t out_w) {
    return m.data == nullptr || (m.stride_w == 1 && m.stride_h == out_w);
}

const Expansion& expansion_of(const ConvJob& job) { return *reinterpret_cast<const Expansion*>(job.weights.expansion); }

struct Steps {
    const ConvJob* job;
    const Plan* plan;
    BitMap map;
    std::uint8_t* planes;
    const void* matrices;
    std::uint8_t* scratch;
    std::int64_t scratch_bytes;
    std::int64_t image;                                      // the first one
    const affine::Epilogue* epilogue;
};

void pack_block(void* context, std::int64_t block, int) {
    const Steps& t = *static_cast<const Steps*>(context);
    const Shape& s = t.job->shape;
    const Geometry& g = t.plan->geo;
    const int first = static_cast<int>(block);
    if (t.job->words != nullptr) {
        const std::uint64_t* words = t.job->words + t.image * s.h * s.w * s.pixel_words;
        affine::pack_words_map(words, g.images, g.groups, t.plan->group_channels, g.height, g.width, t.map, first, first + 1);
        return;
    }
    const esbnn_floats& f = t.job->args->floats;
    affine::Source source{f.x + t.image * f.stride_n, f.stride_n, f.stride_c, f.stride_h, f.stride_w, f.thresholds, 0, 0, nullptr};
    source.threshold_n = f.threshold_n > 1 ? f.threshold_c : 0;
    source.threshold_c = f.threshold_c > 1 ? 1 : 0;
    source.threshold += t.image * source.threshold_n;
    source.flip = f.flips;                                   // one a channel: affine_takes saw to it
    affine::pack_map(source, g.images, g.channels, g.height, g.width, t.map, first, first + 1);
}

void make_features(void* context, std::int64_t block, int) {
    const Steps& t = *static_cast<const Steps*>(context);
    affine::features(*t.plan, t.map, t.planes, static_cast<int>(block), static_cast<int>(block) + 1);
}

void convolve_unit(void* context, std::int64_t unit, int slot) {
    const Steps& t = *static_cast<const Steps*>(context);
    const int first = static_cast<int>(unit);
    void* scratch = t.scratch + slot * t.scratch_bytes;
    const esbnn_map& sums = t.job->args->sums;
    if (t.job->has_sums())
        affine::conv_dot(*t.plan, t.planes, t.matrices, first, first + 1, scratch, static_cast<std::int32_t*>(sums.data) + t.image * sums.stride_n,
                         sums.stride_n, sums.stride_c);
    if (t.epilogue != nullptr) affine::conv_float(*t.plan, t.planes, t.matrices, first, first + 1, scratch, *t.epilogue);
}

// What the epilogue reads, and the vectors that stand for absent ones.
struct Line {
    affine::Epilogue epilogue;
    std::vector<float> zeros, ones, k;
    std::vector<std::uint8_t> k_class;
    std::vector<std::int32_t> window_sums;

    explicit Line(const ConvJob& job) {
        const Shape& s = job.shape;
        const esbnn_epilogue& e = job.args->epilogue;
        const auto j = static_cast<std::size_t>(s.filters * e.copies);
        epilogue.copies = static_cast<int>(e.copies);
        epilogue.p = e.p;
        if (e.k_kind == ESBNN_K_NONE) zeros.assign(j, 0.0f);
        epilogue.k = e.k_kind == ESBNN_K_NONE ? zeros.data() : e.k;
        if (e.k_kind == ESBNN_K_CLASSES) {
            const std::int64_t classes = e.k_rows * e.k_cols;
            k.assign(16 * j, 0.0f);
            for (std::size_t i = 0; i < j; ++i) std::memcpy(&k[16 * i], e.k + static_cast<std::int64_t>(i) * classes, static_cast<std::size_t>(classes) * 4);
            for (std::int64_t y = 0; y < s.out_h; ++y)
                for (std::int64_t x = 0; x < s.out_w; ++x) k_class.push_back(static_cast<std::uint8_t>(e.row_class[y] * e.k_cols + e.col_class[x]));
            epilogue.k = k.data();
            epilogue.k_class = k_class.data();
        }
        epilogue.q = e.q;
        affine::Activation& act = e.act_before_add != 0 ? epilogue.before : epilogue.after;
        if (e.act == ESBNN_ACT_CLAMP) act = {affine::Activation::clamp, e.clamp_lo, e.clamp_hi};
        if (e.act == ESBNN_ACT_TWO_SLOPE) {
            if (e.neg == nullptr) ones.assign(j, 1.0f);
            act.kind = affine::Activation::slopes;
            act.shift_in = e.shift_in;
            act.positive = e.pos;
            act.negative = e.neg != nullptr ? e.neg : ones.data();
            act.shift_out = e.shift_out;
        }
    }

    void at(const ConvJob& job, std::int64_t image) {
        const esbnn_conv_args& args = *job.args;
        const esbnn_map &shortcut = args.epilogue.shortcut, &out = args.out;
        if (shortcut.data != nullptr) epilogue.shortcut = static_cast<const float*>(shortcut.data) + image * shortcut.stride_n;
        epilogue.shortcut_n = shortcut.stride_n;
        epilogue.shortcut_c = shortcut.stride_c;
        epilogue.y = static_cast<float*>(out.data) + image * out.stride_n;
        epilogue.y_n = out.stride_n;
        epilogue.y_c = out.stride_c;
        if (!window_sums.empty()) {
            epilogue.window_sums_g = job.shape.positions();
            epilogue.window_sums_n = job.shape.groups * epilogue.window_sums_g;
            epilogue.window_sums = window_sums.data() + image * epilogue.window_sums_n;
        }
    }
};

// Sums of activations alone are the popcount kernels' work: they need no weights.
void sum_groups(const ConvJob& job, const Kernels& kernels, const esbnn_map& out) {
    esbnn_conv_args args = *job.args;
    args.sums = args.out = {};
    args.group_sums = out;
    ConvJob only = job;
    only.args = &args;
    run_conv(only, kernels);
}

}  // namespace

std::int64_t affine_expansion_bytes(const Shape& s) {
    Geometry g;
    if (s.n == 0 || s.positions() == 0 || !geometry_of(s, g)) return 0;
    const auto plan = plan_of(g, Forms::best);
    return plan == nullptr ? 0 : kHeader + static_cast<std::int64_t>(plan->weight_bytes);
}

void affine_expand(const Shape& s, const std::uint64_t* bits, std::uint8_t* out) {
    Geometry g;
    geometry_of(s, g);
    const auto plan = plan_of(g, Forms::best);
    const Expansion header{static_cast<std::int32_t>(plan->forms), 0, static_cast<std::int64_t>(plan->weight_bytes)};
    std::memcpy(out, &header, sizeof(header));
    affine::prepare_weights(*plan, bits, out + kHeader, 0, plan->units);
}

bool affine_takes(const ConvJob& job) {
    const Shape& s = job.shape;
    const esbnn_conv_args& args = *job.args;
    if (s.n == 0 || s.positions() == 0 || (!job.has_sums() && !job.has_out())) return false;
    if (reinterpret_cast<std::uintptr_t>(job.weights.expansion) % 64 != 0 || job.weights.expansion_bytes < kHeader) return false;
    if (!rows_contiguous(args.sums, s.out_w)) return false;
    if (job.words == nullptr && args.floats.flip_c == 1 && s.all_channels() != 1) return false;
    if (job.has_out()) {
        const esbnn_epilogue& e = args.epilogue;
        if (!rows_contiguous(args.out, s.out_w) || !rows_contiguous(e.shortcut, s.out_w)) return false;
        if (e.k_kind == ESBNN_K_MAP || (e.k_kind == ESBNN_K_CLASSES && (e.k_rows > 16 || e.k_cols > 16 || e.k_rows * e.k_cols > 16))) return false;
    }
    const Expansion& made = expansion_of(job);
    Geometry g;
    if (made.forms <= static_cast<int>(Forms::best) || made.forms > static_cast<int>(Forms::mixed) || !geometry_of(s, g)) return false;
    const std::int64_t images = affine::good_images(g);
    for (const std::int64_t together : {images, s.n % images}) {
        if (together == 0) continue;
        g.images = static_cast<int>(together);
        const auto plan = plan_of(g, static_cast<Forms>(made.forms));
        // A small map may have no whole chunk for the mixed form; then the matrices are not laid out for it.
        if (plan == nullptr || static_cast<int>(plan->forms) != made.forms || static_cast<std::int64_t>(plan->weight_bytes) != made.matrices ||
            made.matrices > job.weights.expansion_bytes - kHeader)
            return false;
    }
    return true;
}

void affine_conv(const ConvJob& job, const Kernels& kernels) {
    const Shape& s = job.shape;
    const auto forms = static_cast<Forms>(expansion_of(job).forms);
    Geometry g;
    geometry_of(s, g);
    const std::int64_t images = affine::good_images(g);
    static thread_local Scratch map_words, planes, scratch;

    std::unique_ptr<Line> line;
    if (job.has_out()) line = std::make_unique<Line>(job);
    if (line != nullptr && line->epilogue.q != nullptr) {
        line->window_sums.resize(static_cast<std::size_t>(s.n * s.groups * s.positions()));
        sum_groups(job, kernels, {line->window_sums.data(), s.n * s.groups * s.positions(), s.groups * s.positions(), s.positions(), s.out_w, 1});
    }
    if (job.has_group_sums()) sum_groups(job, kernels, job.args->group_sums);

    for (std::int64_t image = 0; image < s.n; image += images) {
        g.images = static_cast<int>(std::min(images, s.n - image));
        const auto plan = plan_of(g, forms);
        if (plan == nullptr) throw std::bad_alloc();         // it was there for affine_takes
        Steps t{};
        t.job = &job;
        t.plan = plan.get();
        t.image = image;
        t.map = affine::bit_map(g.images, g.height, g.width);
        t.map.words = reinterpret_cast<std::uint64_t*>(map_words.get(static_cast<std::int64_t>(affine::bit_map_bytes(t.map, g.channels))));
        t.planes = planes.get(static_cast<std::int64_t>(plan->workspace_bytes));
        t.matrices = job.weights.expansion + kHeader;
        t.scratch_bytes = (static_cast<std::int64_t>(affine::scratch_bytes(*plan)) + 63) / 64 * 64;
        const std::int64_t slots = std::max<std::int64_t>(1, std::min<std::int64_t>({job.threads, plan->units, kMaxThreads}));
        t.scratch = scratch.get(slots * t.scratch_bytes);
        if (line != nullptr) {
            line->at(job, image);
            t.epilogue = &line->epilogue;
        }
        affine::init_planes(*plan, t.planes);
        parallel(job.threads, (g.channels + 63) / 64, pack_block, &t);
        parallel(job.threads, static_cast<std::int64_t>(g.groups) * plan->blocks, make_features, &t);
        parallel(slots, plan->units, convolve_unit, &t);
    }
}

}  // namespace esbnn
