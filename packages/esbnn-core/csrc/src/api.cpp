// The C interface: every function checks what it was given and turns failures into a status.
#include "esbnn.h"

#include <cinttypes>
#include <new>

#include "conv.h"
#include "error.h"
#include "cpu.h"
#include "pack.h"
#include "path.h"
#include "weights.h"

namespace {

using namespace esbnn;

template <class F>
int32_t guarded(F&& body) noexcept {
    try {
        body();
        return ESBNN_OK;
    } catch (const Error& error) {
        set_error_text(error.text);
        return error.status;
    } catch (const std::bad_alloc&) {
        set_error_text("there is not enough memory");
        return ESBNN_E_MEMORY;
    } catch (...) {
        set_error_text("an error inside the library that it has no name for");
        return ESBNN_E_INTERNAL;
    }
}

template <class T>
const T& argument(const T* pointer, const char* what) {
    if (pointer == nullptr) fail(ESBNN_E_ARGUMENT, "%s is null", what);
    return *pointer;
}

template <class T>
const T& versioned(const T* pointer, const char* what) {
    const T& args = argument(pointer, what);
    if (args.struct_bytes != sizeof(T))
        fail(ESBNN_E_ARGUMENT, "%s has %" PRIu64 " bytes, this library knows %zu: caller and library are of different versions", what,
             args.struct_bytes, sizeof(T));
    return args;
}

bool has_path(int32_t index) { return index >= 0 && index < path_count(); }

// A path by name for an expansion; null or "": none.
const Path* path_named(const char* name) {
    if (name == nullptr || name[0] == '\0') return nullptr;
    const int index = find_path(name);
    if (index < 0) fail(ESBNN_E_UNKNOWN_PATH, "no path has the name %.40s", name);
    return &path(index);
}

}  // namespace

extern "C" {

int32_t esbnn_abi_version(void) { return ESBNN_ABI_VERSION; }
const char* esbnn_error(void) { return error_text(); }

int32_t esbnn_feature_count(void) { return kFeatureCount; }
const char* esbnn_feature_name(int32_t index) { return feature_name(index); }
int32_t esbnn_feature_present(int32_t index) {
    if (feature_name(index) == nullptr) return -1;
    return static_cast<int32_t>(features() >> index & 1);
}

int32_t esbnn_path_count(void) { return path_count(); }
const char* esbnn_path_name(int32_t index) { return has_path(index) ? path(index).name : nullptr; }
const char* esbnn_path_needs(int32_t index) {
    thread_local char text[160];
    return has_path(index) ? names_of(path(index).needs, text, sizeof(text)) : nullptr;
}
int32_t esbnn_path_supported(int32_t index) { return has_path(index) ? static_cast<int32_t>(path_supported(index)) : -1; }
int32_t esbnn_path_active(void) { return active_path(); }
int64_t esbnn_path_runs(int32_t index) { return has_path(index) ? path_runs(index) : -1; }

int32_t esbnn_force_path(const char* name) {
    return guarded([&] {
        int index = -1;
        if (name != nullptr && name[0] != '\0') {
            index = find_path(name);
            if (index < 0) fail(ESBNN_E_UNKNOWN_PATH, "no path has the name %.40s", name);
        }
        char needs[160];
        if (force_path(index) != ESBNN_OK)
            fail(ESBNN_E_UNSUPPORTED_PATH, "this CPU cannot run the path %s: it needs %s", name, names_of(path(index).needs & ~features(), needs, sizeof(needs)));
    });
}

int32_t esbnn_output_size(const esbnn_conv_shape* shape, int64_t* out_h, int64_t* out_w) {
    return guarded([&] {
        const Shape s = check_shape(argument(shape, "shape"));
        argument(out_h, "out_h");
        argument(out_w, "out_w");
        *out_h = s.out_h;
        *out_w = s.out_w;
    });
}

int32_t esbnn_packed_words(int64_t n, int64_t h, int64_t w, int64_t groups, int64_t channels, int64_t* words) {
    return guarded([&] {
        argument(words, "words");
        *words = check_shape({n, h, w, groups, channels, groups, 1, 1, 1, 1, 0, 0, 1, 1, 0, 0}).word_count;
    });
}

int32_t esbnn_weights_bytes(const esbnn_conv_shape* shape, const char* expand, int64_t* bytes) {
    return guarded([&] {
        const Path* wanted = path_named(expand);
        const Shape s = check_shape(argument(shape, "shape"), wanted != nullptr);
        argument(bytes, "bytes");
        *bytes = weights_bytes(s, wanted);
    });
}

int32_t esbnn_prepare_weights(const esbnn_conv_shape* shape, const char* expand, const uint64_t* bits, int64_t bit_words, void* weights,
                              int64_t bytes) {
    return guarded([&] {
        const Path* wanted = path_named(expand);
        const Shape s = check_shape(argument(shape, "shape"), wanted != nullptr);
        const int64_t needed = product("the weights", {s.filters, s.taps, s.words}), room = weights_bytes(s, wanted);
        if (bits == nullptr || bit_words != needed)
            fail(ESBNN_E_ARGUMENT, "the bits have %" PRId64 " words, wanted %" PRId64, bits == nullptr ? 0 : bit_words, needed);
        if (weights == nullptr || bytes != room)
            fail(ESBNN_E_ARGUMENT, "there is room for %" PRId64 " bytes of weights, wanted %" PRId64, weights == nullptr ? 0 : bytes, room);
        prepare_weights(s, wanted, bits, static_cast<uint8_t*>(weights));
    });
}

int32_t esbnn_pack_sign(const esbnn_pack_args* given) {
    return guarded([&] {
        const esbnn_pack_args& args = versioned(given, "esbnn_pack_args");
        const Shape s = check_shape({args.n, args.h, args.w, args.groups, args.channels, args.groups, 1, 1, 1, 1, 0, 0, 1, 1, 0, 0});
        if (args.threads < 1) fail(ESBNN_E_ARGUMENT, "threads is %" PRId64 ", wanted 1 or more", args.threads);
        if (args.words == nullptr && args.word_count > 0) fail(ESBNN_E_ARGUMENT, "words is null but has %" PRId64 " elements", args.word_count);
        if (args.word_count != s.word_count) fail(ESBNN_E_ARGUMENT, "there is room for %" PRId64 " words, wanted %" PRId64, args.word_count, s.word_count);
        if (s.word_count == 0) return;
        if (args.floats.x == nullptr) fail(ESBNN_E_ARGUMENT, "x is null");
        check_floats(args.floats, s.n, s.all_channels(), s.h, s.w);
        pack_sign({s.n, s.h, s.w, s.groups, s.channels, args.floats, args.words}, *path(active_path()).kernels, args.threads);
    });
}

int32_t esbnn_conv2d(const esbnn_conv_args* given) {
    return guarded([&] {
        const ConvJob job = check_conv(versioned(given, "esbnn_conv_args"));
        const int index = active_path();
        const Path& active = path(index);
        if (active.conv != nullptr && job.weights.expansion != nullptr && active.takes(job)) {
            active.conv(job, *active.kernels);
            count_run(index);
        } else {
            run_conv(job, *active.kernels);
            count_run(owner_of_kernels(index));
        }
    });
}

}  // extern "C"
