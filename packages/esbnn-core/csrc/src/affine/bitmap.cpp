// Float tensors and channel-packed words to bit maps.
#include "affine.h"
#include "lanes.h"

namespace esbnn {
namespace affine {
namespace {

// Positions [0, count) of one channel of one image, contiguous floats, to words at a distance of kBitMapPitch.
void pack_run(const float* x, std::int64_t count, float threshold, std::uint64_t flip, std::uint64_t* out) {
    const __m512 t = _mm512_set1_ps(threshold);
    for (; count >= 64; count -= 64, x += 64, out += kBitMapPitch) {
        const __mmask16 a = _mm512_cmp_ps_mask(_mm512_loadu_ps(x), t, _CMP_GE_OQ);
        const __mmask16 b = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + 16), t, _CMP_GE_OQ);
        const __mmask16 c = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + 32), t, _CMP_GE_OQ);
        const __mmask16 d = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + 48), t, _CMP_GE_OQ);
        *out = _mm512_kunpackd(_mm512_kunpackw(d, c), _mm512_kunpackw(b, a)) ^ flip;
    }
    if (count <= 0) return;
    std::uint64_t word = 0;
    for (std::int64_t i = 0; i < count; i += 16) {
        const __mmask16 valid = count - i >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << (count - i)) - 1);
        const std::uint64_t bits = _mm512_mask_cmp_ps_mask(valid, _mm512_maskz_loadu_ps(valid, x + i), t, _CMP_GE_OQ);
        word |= bits << i;
    }
    *out = word ^ flip;
}

// The same for any strides; slow, for layouts that are neither NCHW-like nor channels last.
void pack_strided(const float* x, int height, int width, std::int64_t stride_h, std::int64_t stride_w, float threshold, std::uint64_t flip,
                  std::uint64_t* out) {
    std::uint64_t word = 0;
    int at = 0;
    for (int y = 0; y < height; ++y)
        for (int c = 0; c < width; ++c) {
            word |= static_cast<std::uint64_t>(x[y * stride_h + c * stride_w] >= threshold) << at;
            if (++at == 64) *out = word ^ flip, out += kBitMapPitch, word = 0, at = 0;
        }
    if (at > 0) *out = word ^ flip;
}

// in[r] = channel word of position r; out[c] = position word of channel c.
void transpose_words(const std::uint64_t in[64], std::uint64_t* out) {
    __m512i r[8];
    // Qword g of r[p] after the byte step: byte 7-i = channels 8g..8g+7 of position 8p+i; after the bit step byte c, bit i.
    for (int p = 0; p < 8; ++p) r[p] = transpose_bits(transpose_bytes_reversed(_mm512_load_si512(in + 8 * p)));
    transpose_qwords(r);
    for (int g = 0; g < 8; ++g) _mm512_storeu_si512(out + 8 * g, transpose_bytes(r[g]));
}

void pack_channels_last(const float* x, int channels, int height, int width, std::int64_t stride_h, std::int64_t stride_w,
                        const float thresholds[64], std::uint64_t flip, std::uint64_t* out) {
    alignas(64) std::uint64_t words[64];
    __m512 t[4];
    __mmask16 valid[4];
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_load_ps(thresholds + 16 * i);
        const int left = channels - 16 * i;
        valid[i] = left >= 16 ? 0xFFFF : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
    }
    const int total = height * width;
    int y = 0, c = 0;
    for (int at = 0; at < total; at += 64, out += kBitMapPitch) {
        const int n = total - at < 64 ? total - at : 64;
        for (int i = 0; i < n; ++i) {
            const float* p = x + y * stride_h + c * stride_w;
            std::uint64_t word = 0;
            for (int k = 0; k < 4; ++k) {
                const std::uint64_t bits = _mm512_mask_cmp_ps_mask(valid[k], _mm512_maskz_loadu_ps(valid[k], p + 16 * k), t[k], _CMP_GE_OQ);
                word |= bits << (16 * k);
            }
            words[i] = word ^ flip;
            if (++c == width) c = 0, ++y;
        }
        for (int i = n; i < 64; ++i) words[i] = 0;
        transpose_words(words, out);
    }
}

}  // namespace

void pack_map(const Source& s, int images, int channels, int height, int width, const BitMap& out, int block_first, int block_last) {
    const std::int64_t size = static_cast<std::int64_t>(height) * width;
    const bool rows_touch = s.stride_w == 1 && (s.stride_h == width || height == 1);
    for (int b = block_first; b < block_last; ++b)
        for (int n = 0; n < images; ++n) {
            std::uint64_t* words = out.words + b * out.block_stride() + n * (out.image_bits / 64) * kBitMapPitch;
            const int first = 64 * b, count = channels - first < 64 ? channels - first : 64;
            alignas(64) float thresholds[64] = {};
            std::uint64_t flips = 0;
            for (int c = 0; c < count; ++c) {
                thresholds[c] = s.threshold[n * s.threshold_n + (first + c) * s.threshold_c];
                if (s.flip != nullptr && s.flip[first + c] != 0) flips |= std::uint64_t{1} << c;
            }
            const float* x = s.x + n * s.stride_n + first * s.stride_c;
            if (s.stride_c == 1 && !rows_touch) {
                pack_channels_last(x, count, height, width, s.stride_h, s.stride_w, thresholds, flips, words);
                continue;
            }
            for (int c = 0; c < count; ++c) {
                const std::uint64_t flip = 0 - (flips >> c & 1);
                if (rows_touch)
                    pack_run(x + c * s.stride_c, size, thresholds[c], flip, words + c);
                else
                    pack_strided(x + c * s.stride_c, height, width, s.stride_h, s.stride_w, thresholds[c], flip, words + c);
            }
        }
}

void pack_words_map(const std::uint64_t* in, int images, int groups, int group_channels, int height, int width, const BitMap& out,
                    int block_first, int block_last) {
    const int row = (group_channels + 63) / 64, total = height * width;
    const std::int64_t pixel = static_cast<std::int64_t>(groups) * row;
    alignas(64) std::uint64_t words[64];
    for (int b = block_first; b < block_last; ++b)
        for (int n = 0; n < images; ++n) {
            std::uint64_t* to = out.words + b * out.block_stride() + n * (out.image_bits / 64) * kBitMapPitch;
            const std::uint64_t* from = in + n * static_cast<std::int64_t>(total) * pixel;
            const int last = 64 * (b + 1) < groups * group_channels ? 64 * (b + 1) : groups * group_channels;
            for (int at = 0; at < total; at += 64, to += kBitMapPitch) {
                const int count = total - at < 64 ? total - at : 64;
                for (int i = 0; i < 64; ++i) words[i] = 0;
                // Channels of the block are runs of consecutive bits of the source: a run ends with a group or a source word.
                for (int c = 64 * b; c < last;) {
                    const int group = c / group_channels, inside = c % group_channels, shift = inside % 64;
                    int run = 64 - shift;
                    if (run > group_channels - inside) run = group_channels - inside;
                    if (run > last - c) run = last - c;
                    const std::uint64_t mask = run == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << run) - 1;
                    const std::uint64_t* p = from + at * pixel + group * row + inside / 64;
                    for (int i = 0; i < count; ++i) words[i] |= (p[i * pixel] >> shift & mask) << (c - 64 * b);
                    c += run;
                }
                transpose_words(words, to);
            }
        }
}

}  // namespace affine
}  // namespace esbnn
