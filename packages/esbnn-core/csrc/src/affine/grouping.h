// Which three items form a group. One order for activations (features.cpp, in registers), weights and pad bytes (here, in words).
//
// z_k lane j = channel 8k+j of a block of 64, 32 or 16; [n] = lane; a parity is the xor of its group's three items.
//     64:  A[j] = (z0,z1,z2)[j]   B[j] = (z3,z4,z5)[j]   C[j] = (z6,z7,parity of A)[j]    then the tail of (parity B, parity C)
//     32:  A[j] = (z0,z1,z2)[j]                                                           then the tail of (parity A, z3)
//     16:                                                                                      the tail of (z0, z1)
//     tail of (e, f), 16 items:  q[j] = (e[j], e[4+j], f[j]), j < 4;   r[j] = (q[j], q[2+j], f[4+j]), j < 2;   u = (r[0], r[1], f[6])
//                                and two singles: parity of u, f[7]
// A byte plane holds two groups, a low half (M U V in bits 0 1 2) and a high half (bits 3 4 5); bit 6 is 1 on real positions. Halves
// are numbered 2*plane + (high); the last half holds the singles (bits 3, 4):
//     64:  planes 0-7 A low, B high; planes 8-15 C low, tail high       32:  planes 0-7 A low, tail high
//     16:  planes 0-3 tail 0-3 low, tail 4-6 and singles high            (tail order: q0 q1 q2 q3 r0 r1 u)
#pragma once

#include <cstdint>

namespace esbnn {
namespace affine {

struct Singles {
    std::uint64_t first, second;
};

// Calls visit(half, x1, x2, x3) for every group, each bit of the words on its own.
template <class Visit>
static inline Singles for_each_group(int kind, const std::uint64_t* z, const Visit& visit) {
    std::uint64_t a[8], b[8], c[8], e[8], f[8];
    const auto group = [&](int half, std::uint64_t x1, std::uint64_t x2, std::uint64_t x3) {
        visit(half, x1, x2, x3);
        return x1 ^ x2 ^ x3;
    };
    for (int j = 0; j < 8; ++j) {
        if (kind == 64) {
            a[j] = group(2 * j, z[j], z[8 + j], z[16 + j]);
            b[j] = group(2 * j + 1, z[24 + j], z[32 + j], z[40 + j]);
            c[j] = group(16 + 2 * j, z[48 + j], z[56 + j], a[j]);
        } else if (kind == 32) {
            a[j] = group(2 * j, z[j], z[8 + j], z[16 + j]);
        }
        e[j] = kind == 64 ? b[j] : kind == 32 ? a[j] : z[j];
        f[j] = kind == 64 ? c[j] : kind == 32 ? z[24 + j] : z[8 + j];
    }
    const auto tail_half = [&](int t) { return kind == 64 ? 17 + 2 * t : kind == 32 ? 1 + 2 * t : t < 4 ? 2 * t : 2 * (t - 4) + 1; };
    std::uint64_t q[4], r[2];
    for (int j = 0; j < 4; ++j) q[j] = group(tail_half(j), e[j], e[4 + j], f[j]);
    for (int j = 0; j < 2; ++j) r[j] = group(tail_half(4 + j), q[j], q[2 + j], f[4 + j]);
    const std::uint64_t u = group(tail_half(6), r[0], r[1], f[6]);
    return Singles{u, f[7]};
}

}  // namespace affine
}  // namespace esbnn
