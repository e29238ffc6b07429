/* SPDX-License-Identifier: MIT */
/*
 * kernels.h - what host and device agree on: the kernels by name and the one
 * argument that each takes, by value.
 *
 * Operands carry their element type (enum mp_dtype: F32, F16, BF16, where said
 * so U8 and I32), and any mixture will do; sums, statistics and functions are
 * f32. No value has more than INT32_MAX elements (checked by compile), so that
 * 32-bit arithmetic finds them all.
 *
 * Kernels whose name ends in _8 work on 8 elements of the last dimension at a
 * time: every row length must be a multiple of 8 and every address of 16
 * bytes. The others take anything.
 *
 * Where a comment says "in place", y may be the memory of x (or a) if their
 * types agree.
 */
#ifndef CUDA_KERNELS_H
#define CUDA_KERNELS_H

#include "mpipe/graph.h"

struct g_in {
    const void *p;
    int32_t type;
};

struct g_out {
    void *p;
    int32_t type;
};

/* y = act(x), n elements; x also U8. In place. */
struct g_map {
    struct g_out y;
    struct g_in x;
    uint32_t n;
    int32_t act;
};

/* x rows,2C -> y rows,C: first half * gelu(second half). */
struct g_geglu {
    struct g_out y;
    struct g_in x;
    uint32_t rows, c;
};

/* y = act(a + b), or a * b. a has dimensions dim; b's element for an index of
 * a is found with the steps, 0 along dimensions that it is repeated over. The
 * _8 kernel wants step[3] to be 1 or 0. In place of a. */
struct g_binary {
    struct g_out y;
    struct g_in a, b;
    uint32_t n, dim[4], step[4];
    int32_t multiply, act;
};

/* Rows of n elements, y_row and x_row elements apart; widen_8: the rest of each
 * row of y is zeros. */
struct g_copy {
    struct g_out y;
    struct g_in x;
    uint32_t rows, n, y_row, x_row;
};

/* Weights as K,taps,C: y[k][ty][tx][c] =
 * x[first + k * k_step + ty * ty_step + tx * tx_step + c * c_step], or 0 from
 * channel `have` on. */
struct g_pack {
    struct g_out y;
    struct g_in x;
    uint32_t k, ty, tx, c, have;
    int32_t first, k_step, ty_step, tx_step, c_step;
};

/* x N,H,W,C -> y N,OH,OW,row: what a 3x3 convolution multiplies with its
 * weights, as they are (C,3,3), and zeros. row is a multiple of 8. */
struct g_unfold {
    struct g_out y;
    struct g_in x;
    uint32_t n, h, w, c, oh, ow, row;
    uint32_t stride;
    int32_t top, left;
};

/* x N,H,W,C -> y N,YH,YW,C. */
struct g_spatial {
    struct g_out y;
    struct g_in x;
    uint32_t n, h, w, c, yh, yw;
    uint32_t top, left;     /* pad */
    float y_scale, x_scale; /* bilinear: H / YH, W / YW */
};

/* x outer,n,inner: n in reverse order. Types are equal. */
struct g_flip {
    struct g_out y;
    struct g_in x;
    uint32_t outer, n, inner;
};

/* Over the last dimension of x rows,C, or per element of it (batch norm). In
 * place, but for argmax: y is I32, one a row. */
struct g_rows {
    struct g_out y;
    struct g_in x, weight, bias, mean, var;
    uint32_t rows, c;
    float eps;
    int32_t act;
};

/* x N,H,W,C -> y N,C,3: mp_heatmap_peaks. */
struct g_peaks {
    float *y;
    const float *x;
    uint32_t h, w, c;
};

/* y = softmax(scale x) over the last dimension of x rows,C, which is f32 and of
 * at most GPU_SOFTEN channels. */
struct g_soften {
    struct g_out y;
    const float *x;
    uint32_t rows, c;
    float scale;
};

/* x N,HW,C. The group kernels do it all. Or group_sum, group_join and
 * group_apply, one after the other, with part: N x splits x groups x {the
 * group's first value of the picture, mean less that, sum of squares around the
 * mean} f32, where split i has seen the positions i * HW / splits and on; after
 * that N x groups x {first value, mean less that, 1 / deviation}. In place. */
struct g_group {
    struct g_out y;
    struct g_in x, weight, bias;
    float *part;
    uint32_t n, hw, c, groups, splits;
    float eps;
    int32_t act;
};

/* q N,T,C; k, v N,S,C, or with kv_batch 0 the same for all pictures. The flash
 * kernels want one 16-bit type, d a multiple of 8 and addresses of 16 bytes;
 * they cut the result into slices of GPU_FLASH_SLICE channels of a head. */
struct g_attention {
    struct g_out y;
    struct g_in q, k, v;
    uint32_t n, t, s, heads, d;
    uint32_t kv_batch; /* elements from picture to picture */
    float scale;
};

/* Cross-correlation of x N,H,W,C with w K,R,S,C (both of one type, but x of
 * the kernels without _8 may be any): OH x OW results per picture, which stand
 * `step` apart in y N,YH,YW,K from (y0, x0) on: that is how a transposed
 * convolution is made of plain ones. y = act(sum + bias + residual). The
 * residual has y's shape and may be y. */
struct g_conv {
    struct g_out y;
    struct g_in x, w, residual;
    const float *bias; /* residual.p and bias may be NULL */
    uint32_t n, h, wd, c, r, s, k, oh, ow;
    uint32_t stride;
    int32_t top, left;
    uint32_t yh, yw, step, y0, x0;
    int32_t act;
};

/* The end of a 3x3 convolution (padding 1) of a map that is enlarged first to
 * YH,YW: z N,H,W,9,K are the products of the small map with each tap. y
 * N,YH,YW,K = act(sum of the taps' products, each enlarged and moved, + bias +
 * residual). The residual has y's shape and may be y. */
struct g_enlarge {
    struct g_out y;
    struct g_in z, residual;
    const float *bias; /* residual.p and bias may be NULL */
    uint32_t n, h, w, k, yh, yw;
    uint32_t rows;          /* of the result, one after the other by a thread */
    float y_scale, x_scale; /* bilinear: H / YH, W / YW */
    int32_t nearest, act;
};

/* Name, type of the argument. Grids:
 *   map, binary, copy, pack, unfold, spatial ones, flip: GPU_THREADS threads,
 *     one (or one times 8) element each
 *   geglu: likewise, of the result; geglu_TYPE: GPU_GEGLU times 8 elements
 *     each. C is a multiple of 8
 *   rows: a warp each row, GPU_ROWS rows a block
 *   layer_norm_TYPE: C is a multiple of 8, at most GPU_LAYER; a block each row,
 *     of at least C / 8 threads
 *   layer_norm_TYPE_768: as rows, C at most 768
 *   layer_norm_TYPE_384: half a warp each row, C at most 384
 *   soften: a block of GPU_THREADS each row
 *   heatmap_peaks: a block of GPU_THREADS each map, N x C
 *   group_TYPE_V: groups x N blocks of at most GPU_GROUP_THREADS. C / groups is
 *     a multiple of V and at most V for each thread; each thread holds at most
 *     GPU_GROUP_HELD(V) times V elements, at positions threads /
 *     (C / groups / V) apart
 *   group_TYPE_V_few: likewise, at most GPU_GROUP_FEW times V
 *   group_sum: splits x N blocks of GPU_THREADS; group_join: as rows, of N x
 *     groups; group_apply: any x N
 *   attention: a warp each query, GPU_ROWS queries a block, heads, N
 *   flash: GPU_FLASH_QUERIES queries a block (_2: twice as many), slices x
 *     heads, N
 *   conv_thin: a warp each pixel, GPU_ROWS a block; K <= GPU_THIN
 *   enlarge: in x pictures, of these slices of `rows` rows, of these blocks of
 *     GPU_THREADS: GPU_ENLARGE_SIDE channels (enlarge_KIND_TYPE: times 8) of
 *     all columns, then the next
 *   conv_f32: tiles of 64 x 64, 256 threads
 *   conv_128, conv_64: tiles of 128 x 128 and 64 x 64; 256 and 128 threads */
#define GPU_THREADS       256
#define GPU_GROUP_THREADS 512
#define GPU_GROUP_FEW     4
#define GPU_GROUP_HELD(v) ((v) == 4 ? 11 : 16)
#define GPU_GROUP_APPLY   5 /* blocks of group_apply that find room at a time */
#define GPU_GEGLU         2
#define GPU_ROWS          8
#define GPU_LAYER         4096
#define GPU_SOFTEN        8192
#define GPU_THIN          8
#define GPU_ENLARGE_SIDE  8
#define GPU_FLASH_QUERIES 64
#define GPU_FLASH_SLICE   160 /* at most; 128 of the widest */
/* Elements of a row of n in shared memory, n a multiple of 8. */
#define FLASH_ROW(n) ((n) / 8 % 2 ? (n) : (n) + 8)
#define GPU_KERNELS(X)                                                         \
    X(map, struct g_map)                                                       \
    X(map_8, struct g_map)                                                     \
    X(geglu, struct g_geglu)                                                   \
    X(geglu_8, struct g_geglu)                                                 \
    X(geglu_bf16, struct g_geglu)                                              \
    X(geglu_f16, struct g_geglu)                                               \
    X(binary, struct g_binary)                                                 \
    X(binary_8, struct g_binary)                                               \
    X(copy, struct g_copy)                                                     \
    X(copy_8, struct g_copy)                                                   \
    X(widen_8, struct g_copy)                                                  \
    X(pack, struct g_pack)                                                     \
    X(unfold_8, struct g_unfold)                                               \
    X(bilinear, struct g_spatial)                                              \
    X(bilinear_8, struct g_spatial)                                            \
    X(nearest, struct g_spatial)                                               \
    X(nearest_8, struct g_spatial)                                             \
    X(pool, struct g_spatial)                                                  \
    X(pool_8, struct g_spatial)                                                \
    X(pad, struct g_spatial)                                                   \
    X(pad_8, struct g_spatial)                                                 \
    X(flip, struct g_flip)                                                     \
    X(flip_8, struct g_flip)                                                   \
    X(layer_norm, struct g_rows)                                               \
    X(layer_norm_8, struct g_rows)                                             \
    X(layer_norm_bf16, struct g_rows)                                          \
    X(layer_norm_f16, struct g_rows)                                           \
    X(layer_norm_bf16_768, struct g_rows)                                      \
    X(layer_norm_f16_768, struct g_rows)                                       \
    X(layer_norm_bf16_384, struct g_rows)                                      \
    X(layer_norm_f16_384, struct g_rows)                                       \
    X(batch_norm, struct g_rows)                                               \
    X(softmax, struct g_rows)                                                  \
    X(soften_8, struct g_soften)                                               \
    X(argmax, struct g_rows)                                                   \
    X(heatmap_peaks, struct g_peaks)                                           \
    X(group_bf16_2, struct g_group)                                            \
    X(group_bf16_2_few, struct g_group)                                        \
    X(group_bf16_4, struct g_group)                                            \
    X(group_bf16_4_few, struct g_group)                                        \
    X(group_bf16_8, struct g_group)                                            \
    X(group_bf16_8_few, struct g_group)                                        \
    X(group_f16_2, struct g_group)                                             \
    X(group_f16_2_few, struct g_group)                                         \
    X(group_f16_4, struct g_group)                                             \
    X(group_f16_4_few, struct g_group)                                         \
    X(group_f16_8, struct g_group)                                             \
    X(group_f16_8_few, struct g_group)                                         \
    X(group_join, struct g_group)                                              \
    X(group_sum, struct g_group)                                               \
    X(group_sum_8, struct g_group)                                             \
    X(group_apply, struct g_group)                                             \
    X(group_apply_8, struct g_group)                                           \
    X(attention, struct g_attention)                                           \
    X(flash_bf16_40, struct g_attention)                                       \
    X(flash_bf16_40_2, struct g_attention)                                     \
    X(flash_bf16_80, struct g_attention)                                       \
    X(flash_bf16_80_2, struct g_attention)                                     \
    X(flash_bf16_160, struct g_attention)                                      \
    X(flash_bf16_512, struct g_attention)                                      \
    X(flash_f16_40, struct g_attention)                                        \
    X(flash_f16_40_2, struct g_attention)                                      \
    X(flash_f16_80, struct g_attention)                                        \
    X(flash_f16_80_2, struct g_attention)                                      \
    X(flash_f16_160, struct g_attention)                                       \
    X(flash_f16_512, struct g_attention)                                       \
    X(conv_thin, struct g_conv)                                                \
    X(conv_thin_8, struct g_conv)                                              \
    X(enlarge, struct g_enlarge)                                               \
    X(enlarge_nearest_bf16, struct g_enlarge)                                  \
    X(enlarge_nearest_f16, struct g_enlarge)                                   \
    X(enlarge_bilinear_bf16, struct g_enlarge)                                 \
    X(enlarge_bilinear_f16, struct g_enlarge)                                  \
    X(conv_f32, struct g_conv)                                                 \
    X(conv_bf16_64, struct g_conv)                                             \
    X(conv_bf16_64_8, struct g_conv)                                           \
    X(conv_bf16_128_8, struct g_conv)                                          \
    X(conv_f16_64, struct g_conv)                                              \
    X(conv_f16_64_8, struct g_conv)                                            \
    X(conv_f16_128_8, struct g_conv)

enum gpu_kernel {
#define X(name, arg) GPU_##name,
    GPU_KERNELS(X)
#undef X
        GPU_KERNEL_COUNT
};

#endif
