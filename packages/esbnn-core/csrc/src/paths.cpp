// The table of paths, slowest first.
#include "path.h"

#include <atomic>
#include <cstring>

#include "affine_path.h"
#include "esbnn.h"

namespace esbnn {

extern const Kernels scalar_kernels;
#if defined(ESBNN_X86)
extern const Kernels avx2_kernels, avx512bw_kernels, avx512vpopcnt_kernels;
#endif
#if defined(ESBNN_NEON)
extern const Kernels neon_kernels;
#endif

namespace {

constexpr std::uint32_t kAvx512 = kAvx512f | kAvx512bw | kAvx512vl | kAvx512dq;

const Path kPaths[] = {
    {"scalar", 0, &scalar_kernels, nullptr, nullptr, nullptr, nullptr},
#if defined(ESBNN_NEON)
    {"neon", kNeon, &neon_kernels, nullptr, nullptr, nullptr, nullptr},
#endif
#if defined(ESBNN_X86)
    {"avx2", kAvx2, &avx2_kernels, nullptr, nullptr, nullptr, nullptr},
    {"avx512bw", kAvx512, &avx512bw_kernels, nullptr, nullptr, nullptr, nullptr},
    {"avx512vpopcnt", kAvx512 | kAvx512vpopcntdq, &avx512vpopcnt_kernels, nullptr, nullptr, nullptr, nullptr},
    {"avx512gfni", kAvx512 | kAvx512vbmi | kAvx512vpopcntdq | kGfni, &avx512vpopcnt_kernels, affine_takes, affine_conv, affine_expansion_bytes,
     affine_expand},
#endif
};
constexpr int kCount = static_cast<int>(sizeof(kPaths) / sizeof(kPaths[0]));

std::atomic<int> forced{-1};
std::atomic<std::int64_t> runs[kCount];

int best() {
    for (int i = kCount - 1; i > 0; --i)
        if (path_supported(i)) return i;
    return 0;
}

}  // namespace

int path_count() { return kCount; }
const Path& path(int index) { return kPaths[index]; }
bool path_supported(int index) { return (kPaths[index].needs & ~features()) == 0; }

int find_path(const char* name) {
    for (int i = 0; i < kCount; ++i)
        if (std::strcmp(kPaths[i].name, name) == 0) return i;
    return -1;
}

int active_path() {
    const int index = forced.load(std::memory_order_relaxed);
    static const int chosen = best();
    return index >= 0 ? index : chosen;
}

int force_path(int index) {
    if (index >= 0 && !path_supported(index)) return ESBNN_E_UNSUPPORTED_PATH;
    forced.store(index, std::memory_order_relaxed);
    return ESBNN_OK;
}

int owner_of_kernels(int index) {
    for (int i = 0; i < index; ++i)
        if (kPaths[i].kernels == kPaths[index].kernels) return i;
    return index;
}

void count_run(int index) { runs[index].fetch_add(1, std::memory_order_relaxed); }
std::int64_t path_runs(int index) { return runs[index].load(std::memory_order_relaxed); }

}  // namespace esbnn
