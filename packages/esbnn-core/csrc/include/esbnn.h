/* The C interface of ES-BNN's packed kernels: one-bit activations and weights, integer sums, a fused float epilogue.
 *
 * Plain C, no torch, no Python. Every function that can fail returns an `esbnn_status`; the text of the calling thread's last failure
 * is `esbnn_error()`. Sizes are counts of elements unless a name says bytes, strides are elements and not negative. Every pointer comes
 * with the number of elements that may be touched through it; a null pointer with a count above zero is an error, as is a count that is
 * too small. No exception leaves the library. All functions may be called from several threads at once and after a fork.
 *
 * Words: bit 1 is +1, bit 0 is -1. Packed activations are uint64 words [N, H, W, G, ceil(Cg/64)]: channel c of group g is bit c%64 of
 * word c/64; the spare bits of the last word are zero, in activations and in weights.
 *
 *   S_st = sum over a window's valid taps of activation * weight (as +-1)            integer, one for each of O filters
 *   S_s  = sum over a window's valid taps of the activation                          integer, one for each of G groups
 *   y_j  = P_j*S_st[o] + Q_j*S_s[group(o)] + K_j,   j = r*O + o for copies r         float32; every product and sum rounded on its own
 */
#ifndef ESBNN_H
#define ESBNN_H

#include <stdint.h>

#if defined(__GNUC__)
#define ESBNN_API __attribute__((visibility("default")))
#else
#define ESBNN_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Raised whenever a struct or a meaning changes; callers compare it with `esbnn_abi_version()` before anything else. */
#define ESBNN_ABI_VERSION 1

typedef enum esbnn_status {
    ESBNN_OK = 0,
    ESBNN_E_ARGUMENT = 1,         /* a size, pointer or setting that cannot be meant */
    ESBNN_E_UNKNOWN_PATH = 2,     /* no path has this name */
    ESBNN_E_UNSUPPORTED_PATH = 3, /* the path is not for this CPU, or cannot do what is asked */
    ESBNN_E_MEMORY = 4,
    ESBNN_E_INTERNAL = 5
} esbnn_status;

typedef enum esbnn_pad {
    ESBNN_PAD_SKIP = 0, /* padded taps add nothing: what zero padding after the sign does */
    ESBNN_PAD_LO = 1,   /* padded taps are -1 */
    ESBNN_PAD_HI = 2    /* padded taps are +1 */
} esbnn_pad;

typedef enum esbnn_k_kind {
    ESBNN_K_NONE = 0,    /* no third term; K's count is 0 */
    ESBNN_K_CHANNEL = 1, /* K [J] */
    ESBNN_K_CLASSES = 2, /* K [J, k_rows, k_cols], indexed by row_class[H'] and col_class[W'] */
    ESBNN_K_MAP = 3      /* K [J, H', W'] */
} esbnn_k_kind;

typedef enum esbnn_act {
    ESBNN_ACT_NONE = 0,
    ESBNN_ACT_CLAMP = 1,    /* min(max(v, clamp_lo), clamp_hi); NaN stays */
    ESBNN_ACT_TWO_SLOPE = 2 /* u = v + shift_in; u = u > 0 ? pos*u : neg*u; u + shift_out. Each [J], or absent */
} esbnn_act;

/* A convolution's sizes. Linear layers are 1x1 convolutions. */
typedef struct esbnn_conv_shape {
    int64_t n, h, w;      /* input maps */
    int64_t groups;       /* G */
    int64_t channels;     /* input channels of one group, Cg */
    int64_t filters;      /* output channels of all groups, O, before copies */
    int64_t kernel_h, kernel_w;
    int64_t stride_h, stride_w;
    int64_t padding_h, padding_w;
    int64_t dilation_h, dilation_w;
    int32_t pad;          /* esbnn_pad */
    int32_t reserved;     /* 0 */
} esbnn_conv_shape;

/* A float32 map [N, C, H, W] by strides, and the comparison that makes its bits: bit = (x >= threshold) xor flip. NaN gives 0 xor flip.
 * thresholds: [t_n, t_c] with t_n 1 or N, t_c 1 or C = G*Cg; flips: [f_c] bytes with f_c 0 (none), 1 or C. */
typedef struct esbnn_floats {
    const float *x;
    int64_t x_count;
    int64_t stride_n, stride_c, stride_h, stride_w;
    const float *thresholds;
    int64_t threshold_n, threshold_c;
    const uint8_t *flips;
    int64_t flip_c;
} esbnn_floats;

/* A float32 or int32 map [N, C, H', W'] by strides, to read or to write. data null with count 0: absent. */
typedef struct esbnn_map {
    void *data;
    int64_t count;
    int64_t stride_n, stride_c, stride_h, stride_w;
} esbnn_map;

typedef struct esbnn_epilogue {
    int64_t copies;                       /* R; J = R*O */
    const float *p;                       /* [J] */
    int64_t p_count;
    const float *q;                       /* [J] or absent */
    int64_t q_count;
    const float *k;
    int64_t k_count;
    const int32_t *row_class;             /* [H'] in 0..k_rows-1, for ESBNN_K_CLASSES */
    int64_t row_class_count;
    const int32_t *col_class;             /* [W'] */
    int64_t col_class_count;
    int64_t k_rows, k_cols;
    int32_t k_kind;                       /* esbnn_k_kind */
    int32_t act;                          /* esbnn_act */
    int32_t act_before_add;               /* 1: activation, then the shortcut; 0: the shortcut, then the activation */
    float clamp_lo, clamp_hi;
    int32_t reserved;                     /* 0 */
    const float *pos, *neg, *shift_in, *shift_out; /* each [J] or absent */
    int64_t pos_count, neg_count, shift_in_count, shift_out_count;
    esbnn_map shortcut;                   /* float32 [N, J, H', W'], or absent */
} esbnn_epilogue;

/* One convolution. Its input is `words`, or `floats` (then it is packed on the way). Outputs that are absent are not made. */
typedef struct esbnn_conv_args {
    uint64_t struct_bytes;                /* sizeof(esbnn_conv_args) */
    esbnn_conv_shape shape;
    const uint64_t *words;                /* packed activations, or null */
    int64_t word_count;
    esbnn_floats floats;                  /* used if words is null and word_count 0 */
    const void *weights;                  /* what esbnn_prepare_weights wrote, aligned to 64 bytes or not */
    int64_t weights_bytes;
    esbnn_map sums;                       /* int32 S_st [N, O, H', W'], or absent */
    esbnn_map group_sums;                 /* int32 S_s [N, G, H', W'], or absent */
    esbnn_map out;                        /* float32 y [N, J, H', W'], or absent: then the epilogue is not looked at */
    esbnn_epilogue epilogue;
    int64_t threads;                      /* 1 or more: this many at most, the caller included */
} esbnn_conv_args;

typedef struct esbnn_pack_args {
    uint64_t struct_bytes;                /* sizeof(esbnn_pack_args) */
    int64_t n, h, w, groups, channels;    /* channels of one group */
    esbnn_floats floats;
    uint64_t *words;                      /* [N, H, W, G, ceil(Cg/64)], all of it is written */
    int64_t word_count;
    int64_t threads;
} esbnn_pack_args;

/* -- about the library ---------------------------------------------------------------------------------------------------------- */
ESBNN_API int32_t esbnn_abi_version(void);
ESBNN_API const char *esbnn_error(void); /* of the calling thread; "" before the first failure; valid until its next failing call */

/* What the CPU offers and the operating system lets programs use. */
ESBNN_API int32_t esbnn_feature_count(void);
ESBNN_API const char *esbnn_feature_name(int32_t index);   /* null outside the range */
ESBNN_API int32_t esbnn_feature_present(int32_t index);    /* 1, 0, or -1 outside the range */

/* The table of paths built into this library, slowest first. */
ESBNN_API int32_t esbnn_path_count(void);
ESBNN_API const char *esbnn_path_name(int32_t index);      /* null outside the range */
ESBNN_API const char *esbnn_path_needs(int32_t index);     /* names of features, separated by spaces */
ESBNN_API int32_t esbnn_path_supported(int32_t index);     /* 1, 0, or -1 outside the range */
ESBNN_API int32_t esbnn_path_active(void);                 /* index of the path that calls use now */
ESBNN_API int64_t esbnn_path_runs(int32_t index);          /* convolutions that its own kernels did so far; -1 outside */
ESBNN_API int32_t esbnn_force_path(const char *name);      /* null or "": back to the best supported one */

/* -- sizes ---------------------------------------------------------------------------------------------------------------------- */
ESBNN_API int32_t esbnn_output_size(const esbnn_conv_shape *shape, int64_t *out_h, int64_t *out_w);
ESBNN_API int32_t esbnn_packed_words(int64_t n, int64_t h, int64_t w, int64_t groups, int64_t channels, int64_t *words);

/* -- weights -------------------------------------------------------------------------------------------------------------------- */
/* From bits as uint64 words [O, kh, kw, ceil(Cg/64)] to the form that kernels read. The form is checked by every convolution that uses
 * it and holds what each popcount path needs. `expand` names a path (null: none) that the form shall hold more for: such weights run
 * faster there and still run everywhere; without it, or for a call that it has no way for, a path with a formulation of its own runs the
 * best popcount kernels of its instruction set, which then count the run. n, h, w of the shape matter to an expansion only, which may hold for one size of map.
 *
 * The form: int64 header {magic, O, G, Cg, kh, kw, all bytes, offset of the expansion or 0}; words [G, B, kh*kw, ceil(Cg/64), 8] with
 * B = ceil(O/G/8), filter 8*b + i in lane i, zero for filters that do not exist; int32 numbers of +1 weights [kh*kw, G*B*8]; the
 * expansion, at a multiple of 64 bytes. */
#define ESBNN_WEIGHTS_MAGIC INT64_C(0x0157544E4E425345) /* "ESBNNTW" and the form's version 1, little endian */
ESBNN_API int32_t esbnn_weights_bytes(const esbnn_conv_shape *shape, const char *expand, int64_t *bytes);
ESBNN_API int32_t esbnn_prepare_weights(const esbnn_conv_shape *shape, const char *expand, const uint64_t *bits, int64_t bit_words,
                                        void *weights, int64_t weights_bytes);

/* -- work ----------------------------------------------------------------------------------------------------------------------- */
ESBNN_API int32_t esbnn_pack_sign(const esbnn_pack_args *args);
ESBNN_API int32_t esbnn_conv2d(const esbnn_conv_args *args);

#ifdef __cplusplus
}
#endif
#endif
