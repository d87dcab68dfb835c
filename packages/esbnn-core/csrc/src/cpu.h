// Instruction sets that the CPU has and the operating system lets programs use (registers are saved for them).
#pragma once

#include <cstdint>

namespace esbnn {

enum Feature : std::uint32_t {
    kAvx2 = 1u << 0,
    kAvx512f = 1u << 1,
    kAvx512bw = 1u << 2,
    kAvx512vl = 1u << 3,
    kAvx512dq = 1u << 4,
    kAvx512vbmi = 1u << 5,
    kAvx512vpopcntdq = 1u << 6,
    kGfni = 1u << 7,
    kNeon = 1u << 8,
};
constexpr int kFeatureCount = 9;

const char* feature_name(int index);       // null outside the range
std::uint32_t features();                  // detected once
const char* names_of(std::uint32_t set, char* text, int size);

}  // namespace esbnn
