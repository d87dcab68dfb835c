// Carries and full adders: one step (64, 32 or 16 channels of one tap) to a word, and words of steps to counters.
//
// Weights of the words: the two singles 1, carries 2, results of leaves 4, then 8, 16 ...; the word that leaves a step weighs `kind`.
// States s[0..levels-1] hold one word of each weight from step to step; counters c[i] weigh kind << i.
#pragma once

#include "lanes.h"

namespace esbnn {
namespace affine {

// s += a + b: the new sum stays in s, the carry is returned. Majority of (a, b, old s) expressed through the new s (table 0xD4), so
// that no copy of s is needed.
ESBNN_INLINE __m512i add(__m512i& s, __m512i a, __m512i b) {
    s = _mm512_ternarylogic_epi64(s, a, b, 0x96);
    return _mm512_ternarylogic_epi64(a, b, s, 0xD4);
}
ESBNN_INLINE __m512i add(__m512i& s, __m512i a) {
    const __m512i carry = _mm512_and_si512(s, a);
    s = _mm512_xor_si512(s, a);
    return carry;
}

// Inline assembly, since g++ (12) does not fold a broadcast of eight bytes into the instruction, and spends 66 more a step.
ESBNN_INLINE __m512i affine_broadcast(__m512i data, const std::uint64_t* matrix) {
    __m512i r;
    __asm__("vgf2p8affineqb $0, %2%{1to8%}, %1, %0" : "=v"(r) : "v"(data), "m"(*matrix));
    return r;
}
// Eight bytes to every qword. Inline assembly again: g++ likes to load them to a general register, and the broadcast from there takes
// an execution port that the adders need.
ESBNN_INLINE __m512i broadcast_bytes(const std::uint8_t* bytes) {
    __m512i r;
    __asm__("vpbroadcastq %1, %0" : "=v"(r) : "m"(*reinterpret_cast<const std::uint8_t(*)[8]>(bytes)));
    return r;
}
ESBNN_INLINE __m512i affine_full(__m512i data, const std::uint64_t* matrix) {
    return _mm512_gf2p8affine_epi64_epi8(data, _mm512_load_si512(matrix), 0);
}

constexpr int levels_of(int kind) { return kind == 64 ? 6 : kind == 32 ? 5 : 4; }

template <int width>
struct Words {
    __m512i v[width];
};

// Form `chunks`: a word is 64 positions x 8 outputs; `width` blocks of 8 outputs share the data, matrices are broadcast.
template <int kind, int width>
struct ChunkForm {
    static constexpr int kKind = kind, kWidth = width, kMatrix = width;
    const std::uint8_t* data;
    std::size_t plane;
    __attribute__((always_inline)) inline void affine(int p, const std::uint64_t* m, Words<width>& low, Words<width>& high) const {
        const __m512i d = _mm512_loadu_si512(data + static_cast<std::size_t>(p) * plane);
        for (int i = 0; i < width; ++i) low.v[i] = affine_broadcast(d, m + i);
        for (int i = 0; i < width; ++i) high.v[i] = affine_broadcast(d, m + width + i);
    }
    __attribute__((always_inline)) inline void affine_last(int p, const std::uint64_t* m, Words<width>& low, Words<width>& first,
                                                           Words<width>& second) const {
        const __m512i d = _mm512_loadu_si512(data + static_cast<std::size_t>(p) * plane);
        for (int i = 0; i < width; ++i) low.v[i] = affine_broadcast(d, m + i);
        for (int i = 0; i < width; ++i) first.v[i] = affine_broadcast(d, m + width + i);
        for (int i = 0; i < width; ++i) second.v[i] = affine_broadcast(d, m + 2 * width + i);
    }
};

// Form `groups`: a word is 8 positions x 64 outputs; the data are broadcast, the matrices shared by `width` groups of positions.
template <int kind, int width>
struct GroupForm {
    static constexpr int kKind = kind, kWidth = width, kMatrix = 8;
    const std::uint8_t* data[width];
    std::size_t plane;
    __attribute__((always_inline)) inline __m512i at(int p, int i) const {
        return broadcast_bytes(data[i] + static_cast<std::size_t>(p) * plane);
    }
    __attribute__((always_inline)) inline void affine(int p, const std::uint64_t* m, Words<width>& low, Words<width>& high) const {
        for (int i = 0; i < width; ++i) {
            const __m512i d = at(p, i);
            low.v[i] = affine_full(d, m);
            high.v[i] = affine_full(d, m + 8);
        }
    }
    __attribute__((always_inline)) inline void affine_last(int p, const std::uint64_t* m, Words<width>& low, Words<width>& first,
                                                           Words<width>& second) const {
        for (int i = 0; i < width; ++i) {
            const __m512i d = at(p, i);
            low.v[i] = affine_full(d, m);
            first.v[i] = affine_full(d, m + 8);
            second.v[i] = affine_full(d, m + 16);
        }
    }
};

template <int width>
ESBNN_INLINE Words<width> add(Words<width>& s, const Words<width>& a, const Words<width>& b) {
    Words<width> carry;
    for (int i = 0; i < width; ++i) carry.v[i] = add(s.v[i], a.v[i], b.v[i]);
    return carry;
}

// The word of node `index` of a level, depth first, so that at most one word a level waits. Level 1 nodes are planes.
template <class Form, int level>
struct Node {
    static constexpr int width = Form::kWidth;
    static __attribute__((always_inline)) inline Words<width> word(const Form& f, const std::uint64_t* m, int index, Words<width>* s) {
        const Words<width> a = Node<Form, level - 1>::word(f, m, 2 * index, s);
        const Words<width> b = Node<Form, level - 1>::word(f, m, 2 * index + 1, s);
        return add(s[level], a, b);
    }
};

template <class Form>
struct Node<Form, 1> {
    static constexpr int width = Form::kWidth;
    static __attribute__((always_inline)) inline Words<width> word(const Form& f, const std::uint64_t* m, int plane, Words<width>* s) {
        Words<width> low, high;
        m += 2 * Form::kMatrix * plane;
        if (plane < Form::kKind / 4 - 1) {
            f.affine(plane, m, low, high);
        } else {
            Words<width> first, second;
            f.affine_last(plane, m, low, first, second);
            high = add(s[0], first, second);
        }
        return add(s[1], low, high);
    }
};

// One step; m: its kind/2 + 1 matrices.
template <class Form>
static __attribute__((always_inline)) inline Words<Form::kWidth> step_word(const Form& f, const std::uint64_t* m, Words<Form::kWidth>* s) {
    return Node<Form, levels_of(Form::kKind) - 1>::word(f, m, 0, s);
}

// Counters live in memory: they are touched once in three steps.
constexpr int kMaxCounters = 16;

template <int width>
ESBNN_INLINE void ripple(Words<width>* c, int from, int count, int i, __m512i t) {
    for (int k = from; k < count; ++k) t = add(c[k].v[i], t);
}

template <int width>
ESBNN_INLINE void count_three(Words<width>* c, int count, const Words<width>& t0, const Words<width>& t1, const Words<width>& t2) {
    for (int i = 0; i < width; ++i) {
        const __m512i k0 = add(c[0].v[i], t0.v[i], t1.v[i]);
        const __m512i k1 = add(c[0].v[i], t2.v[i]);
        ripple(c, 2, count, i, add(c[1].v[i], k0, k1));                // three steps always have at least two counters
    }
}

template <int width>
ESBNN_INLINE void count_one(Words<width>* c, int count, const Words<width>& t) {
    for (int i = 0; i < width; ++i) ripple(c, 0, count, i, t.v[i]);
}

}  // namespace affine
}  // namespace esbnn
