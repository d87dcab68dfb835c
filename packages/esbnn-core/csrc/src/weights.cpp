#include "weights.h"

#include <cinttypes>
#include <cstring>

#include "error.h"

namespace esbnn {
namespace {

constexpr std::int64_t kHeader = 64;

std::int64_t round_up(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }

struct Sections {
    std::int64_t words, tap_sums, end;   // offsets in bytes
};

Sections sections(const Shape& s) {
    const std::int64_t lanes = s.groups * s.octets * 8;
    const std::int64_t sums = kHeader + product("the weights", {lanes, s.taps, s.words}) * 8;
    return {kHeader, sums, round_up(sums + product("the weights", {lanes, s.taps}) * 4)};
}

}  // namespace

std::int64_t weights_bytes(const Shape& shape, const Path* expand) {
    const std::int64_t extra = expand != nullptr && expand->expansion_bytes != nullptr ? expand->expansion_bytes(shape) : 0;
    return sections(shape).end + round_up(extra);
}

void prepare_weights(const Shape& s, const Path* expand, const std::uint64_t* bits, std::uint8_t* out) {
    const Sections at = sections(s);
    const std::int64_t bytes = weights_bytes(s, expand), extra = bytes - at.end;
    const std::int64_t lanes = s.groups * s.octets * 8;
    const std::uint64_t last = static_cast<std::uint64_t>(s.last_mask());
    std::memset(out, 0, static_cast<std::size_t>(bytes));
    const std::int64_t header[8] = {ESBNN_WEIGHTS_MAGIC, s.filters, s.groups, s.channels, s.kernel_h, s.kernel_w, bytes, extra ? at.end : 0};
    std::memcpy(out, header, sizeof(header));
    for (std::int64_t o = 0; o < s.filters; ++o) {
        const std::int64_t group = o / s.group_filters, lane = (group * s.octets * 8) + o % s.group_filters;
        for (std::int64_t tap = 0; tap < s.taps; ++tap) {
            std::int32_t ones = 0;
            for (std::int64_t k = 0; k < s.words; ++k) {
                std::uint64_t word = bits[(o * s.taps + tap) * s.words + k];
                if (k == s.words - 1) word &= last;                  // spare bits never count
                ones += __builtin_popcountll(word);
                const std::int64_t index = ((lane / 8 * s.taps + tap) * s.words + k) * 8 + lane % 8;
                std::memcpy(out + at.words + index * 8, &word, 8);
            }
            std::memcpy(out + at.tap_sums + (tap * lanes + lane) * 4, &ones, 4);
        }
    }
    if (extra > 0) expand->expand(s, bits, out + at.end);
}

Weights read_weights(const Shape& s, const void* data, std::int64_t bytes) {
    const Sections at = sections(s);
    const auto* base = static_cast<const std::uint8_t*>(data);
    if (base == nullptr || bytes < at.end)
        fail(ESBNN_E_ARGUMENT, "the weights have %" PRId64 " bytes, these sizes need %" PRId64, base == nullptr ? 0 : bytes, at.end);
    if (reinterpret_cast<std::uintptr_t>(base) % 8 != 0) fail(ESBNN_E_ARGUMENT, "the weights are not aligned to 8 bytes");
    std::int64_t header[8];
    std::memcpy(header, base, sizeof(header));
    if (header[0] != ESBNN_WEIGHTS_MAGIC) fail(ESBNN_E_ARGUMENT, "these are not weights that esbnn_prepare_weights wrote, or of another version");
    const std::int64_t wanted[5] = {s.filters, s.groups, s.channels, s.kernel_h, s.kernel_w};
    static const char* const names[5] = {"filters", "groups", "channels of a group", "rows of the kernel", "columns of the kernel"};
    for (int i = 0; i < 5; ++i)
        if (header[i + 1] != wanted[i])
            fail(ESBNN_E_ARGUMENT, "the weights are for %" PRId64 " %s, the call has %" PRId64, header[i + 1], names[i], wanted[i]);
    if (header[6] > bytes) fail(ESBNN_E_ARGUMENT, "the weights are cut off: %" PRId64 " bytes of %" PRId64, bytes, header[6]);
    Weights out{reinterpret_cast<const std::uint64_t*>(base + at.words), reinterpret_cast<const std::int32_t*>(base + at.tap_sums), nullptr, 0};
    if (header[7] != 0) {
        if (header[7] != at.end || header[6] < at.end) fail(ESBNN_E_ARGUMENT, "the weights' expansion is not where it belongs");
        out.expansion = base + at.end;
        out.expansion_bytes = header[6] - at.end;
    }
    return out;
}

}  // namespace esbnn
