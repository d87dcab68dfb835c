#include "cpu.h"

#include <cstdio>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace esbnn {
namespace {

const char* const kNames[kFeatureCount] = {"avx2",       "avx512f", "avx512bw", "avx512vl", "avx512dq",
                                           "avx512vbmi", "avx512vpopcntdq", "gfni", "neon"};

#if defined(__x86_64__)
std::uint64_t enabled_states() {
    std::uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return static_cast<std::uint64_t>(high) << 32 | low;
}

std::uint32_t detect() {
    std::uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    if (!(c >> 27 & 1)) return 0;                          // OSXSAVE: without it xgetbv is no instruction
    const std::uint64_t states = enabled_states();
    const bool ymm = (states & 0x06) == 0x06, zmm = (states & 0xE6) == 0xE6;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    std::uint32_t out = 0;
    if (ymm && (b >> 5 & 1)) out |= kAvx2;
    if (ymm && (c >> 8 & 1)) out |= kGfni;
    if (zmm && (b >> 16 & 1)) {
        out |= kAvx512f;
        if (b >> 30 & 1) out |= kAvx512bw;
        if (b >> 31 & 1) out |= kAvx512vl;
        if (b >> 17 & 1) out |= kAvx512dq;
        if (c >> 1 & 1) out |= kAvx512vbmi;
        if (c >> 14 & 1) out |= kAvx512vpopcntdq;
    }
    return out;
}
#elif defined(__aarch64__)
std::uint32_t detect() { return kNeon; }                   // part of the architecture's base
#else
std::uint32_t detect() { return 0; }
#endif

}  // namespace

const char* feature_name(int index) { return index >= 0 && index < kFeatureCount ? kNames[index] : nullptr; }

std::uint32_t features() {
    static const std::uint32_t found = detect();
    return found;
}

const char* names_of(std::uint32_t set, char* text, int size) {
    int used = 0;
    text[0] = '\0';
    for (int i = 0; i < kFeatureCount; ++i)
        if (set >> i & 1 && used < size) used += std::snprintf(text + used, static_cast<std::size_t>(size - used), "%s%s", used ? " " : "", kNames[i]);
    return text;
}

}  // namespace esbnn
