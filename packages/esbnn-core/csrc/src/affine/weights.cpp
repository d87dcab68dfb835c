// Matrices of gf2p8affineqb from weight bits. No special instructions in here.
//
// The instruction gives, for data byte d and the 8-byte matrix A,  result bit i = parity(A.byte[7-i] AND d):  the row of output i of
// a block sits in byte 7-i. The row of a group is  1, w1^w2, w1^w3  on the bits M U V of its half, and maj(w) on bit 6; note that
// w1^w2 goes with U = x1^x3 and w1^w3 with V = x1^x2. A single parity has 1 on its bit and its weight parity on bit 6.
// Order: [unit][step][half, then the second single][block of the form: 2 or 8]; a last odd block of form `chunks` stands alone.
#include "affine.h"
#include "grouping.h"

#include <cstring>

namespace esbnn {
namespace affine {
namespace {

// Bit i of a byte to bit 0 of byte 7-i.
std::uint64_t spread(std::uint64_t bits) {
    std::uint64_t out = 0;
    for (int i = 0; i < 8; ++i) out |= (bits >> i & 1) << (8 * (7 - i));
    return out;
}

struct Step {                                  // matrices of one step for up to 64 outputs: [matrix][block of 8]
    std::uint64_t matrix[33][8];
};

// items[c] = bits of the outputs, for channel c of the block; real = the outputs that exist (others get rows of zeros).
void fill_step(int kind, const std::uint64_t* items, std::uint64_t real, Step& out) {
    const auto rows = [&](int at, int shift, std::uint64_t a, std::uint64_t b, std::uint64_t c) {
        for (int block = 0; block < 8; ++block) {
            const int s = 8 * block;
            out.matrix[at][block] = spread(real >> s & 255) << shift | spread((a & real) >> s & 255) << (shift + 1) |
                                    spread((b & real) >> s & 255) << (shift + 2) | spread((c & real) >> s & 255) << 6;
        }
    };
    const Singles s = for_each_group(kind, items, [&](int half, std::uint64_t w1, std::uint64_t w2, std::uint64_t w3) {
        rows(half, half % 2 ? 3 : 0, w1 ^ w2, w1 ^ w3, (w1 & w2) | (w3 & (w1 | w2)));
    });
    rows(kind / 2 - 1, 3, 0, 0, s.first);
    rows(kind / 2, 4, 0, 0, s.second);
}

}  // namespace

void prepare_weights(const Plan& plan, const std::uint64_t* words, void* matrices, int unit_first, int unit_last) {
    const int taps = plan.geo.kernel_h * plan.geo.kernel_w, count = plan.matrices;
    const std::size_t row = static_cast<std::size_t>((plan.group_channels + 63) / 64), out_row = row * static_cast<std::size_t>(taps);
    for (int unit = unit_first; unit < unit_last; ++unit) {
        const int group = unit / plan.units_per_group;
        const int first = unit % plan.units_per_group * plan.unit_blocks * 8;
        const int outputs = plan.group_outputs - first < plan.unit_blocks * 8 ? plan.group_outputs - first : plan.unit_blocks * 8;
        const int blocks = (outputs + 7) / 8;
        const std::uint64_t real = outputs == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << outputs) - 1;
        char* const unit_base = static_cast<char*>(matrices) + static_cast<std::size_t>(unit) * plan.unit_bytes;
        char* const groups_base = unit_base + (plan.forms == Forms::mixed ? plan.unit_bytes / 2 : 0);
        if (plan.forms != Forms::groups) std::memset(unit_base, 0, plan.forms == Forms::mixed ? plan.unit_bytes / 2 : plan.unit_bytes);
        for (int s = 0; s < plan.steps; ++s) {
            const int block = s / taps, tap = s % taps;
            std::uint64_t items[64] = {};
            for (int o = 0; o < outputs; ++o) {
                const std::size_t out = static_cast<std::size_t>(group * plan.group_outputs + first + o);
                const int channel = block * plan.kind;
                std::uint64_t word = words[out * out_row + static_cast<std::size_t>(tap) * row + static_cast<std::size_t>(channel / 64)];
                word >>= channel % 64;
                const int left = plan.group_channels - channel < plan.kind ? plan.group_channels - channel : plan.kind;
                for (int c = 0; c < left; ++c) items[c] |= (word >> c & 1) << o;
            }
            Step step;
            fill_step(plan.kind, items, real, step);
            if (plan.forms != Forms::chunks)
                std::memcpy(groups_base + static_cast<std::size_t>(s * count) * 64, step.matrix, static_cast<std::size_t>(count) * 64);
            if (plan.forms != Forms::groups)
                for (int b = 0; b < blocks; b += 2) {
                    const int n = blocks - b < 2 ? 1 : 2;
                    char* pair = unit_base + static_cast<std::size_t>(b * plan.steps * count) * 8;
                    for (int m = 0; m < count; ++m)
                        std::memcpy(pair + static_cast<std::size_t>((s * count + m) * n) * 8, &step.matrix[m][b], static_cast<std::size_t>(n) * 8);
                }
        }
    }
}

}  // namespace affine
}  // namespace esbnn
