/* SPDX-License-Identifier: MIT */
/*
 * kernels.h - what the CPU backend computes itself: all that is not left to
 * oneDNN.
 *
 * Every call names the element type of each operand, MP_F32 or MP_BF16 unless
 * said otherwise; they may be mixed. Sums, statistics and functions are f32 or
 * better inside. Dimensions are counted in elements, 1 or more.
 *
 * Memory: nothing is allocated; a kernel that needs scratch has a function
 * k_NAME_scratch that tells how many bytes, for `threads`, the most that
 * omp_get_max_threads() may be when the kernel runs. Scratch is 64-byte
 * aligned and its contents mean nothing between calls. Operands need only the
 * alignment of their type and are never read or written past their ends.
 * Where a comment says "in place", out may be the same memory as x (or a) if
 * the element type is the same.
 *
 * Threads: each kernel is one or more OpenMP parallel regions. Results do not
 * depend on the number of threads. The instruction set is chosen at run time.
 *
 * Errors: none; the caller has checked types and shapes.
 */
#ifndef CPU_KERNELS_H
#define CPU_KERNELS_H

#include "mpipe/backend.h"

struct k_in {
    const void *p;
    enum mp_dtype t;
};

struct k_out {
    void *p;
    enum mp_dtype t;
};

/* Name of the instruction set that is used: "amx_bf16", "avx512_bf16",
 * "avx512", "avx2" or "generic", for messages. */
const char *k_isa(void);
/* Whether there are instructions for bf16 products. */
int k_has_bf16(void);
/* Whether there is AMX for them, too, and Linux lets this process use it. Where
 * there is, AVX-512's products of bf16 take twice as long as those of f32
 * (measured on a Xeon of 2023: 89 against 179 GFLOP/s): convolutions are
 * oneDNN's there. */
int k_has_amx(void);

/* ---- attention ---- */

/* A sequence of a batch: row r of picture i of head h starts at element
 * i * batch + r * row + h * d. batch 0: the same for all pictures. */
struct k_rows {
    int64_t batch, row;
};

struct k_attention {
    int64_t n, t, s;   /* pictures, queries, keys */
    int64_t heads, d;  /* d is C / heads */
    float scale;       /* of q k^T */
    enum mp_dtype qt;  /* of q */
    enum mp_dtype kvt; /* of k and v */
    enum mp_dtype yt;  /* of the result */
    struct k_rows q, k, v, y;
};

/* softmax(q k^T scale) v per head. bf16 products are used where q, k and v are
 * all bf16. The scratch depends on everything in a but scale and the strides
 * (k.batch and v.batch count as zero or not). y may be the same memory as q if
 * type and strides are the same. */
size_t k_attention_scratch(const struct k_attention *a, int threads);
void k_attention(const struct k_attention *a, void *y, const void *q,
                 const void *k, const void *v, void *scratch);

/* ---- convolutions ---- */

/* How a result comes about. Winograd's ways are for 3x3 with stride 1: 4x4
 * results at a time from 1/4 of the products, or in bf16 2x2 from 4/9 of them
 * with 16/9 of the weights. */
enum k_way {
    K_DIRECT,       /* in f32 */
    K_WINOGRAD,     /* in f32; its weights are those of K_DIRECT */
    K_WINOGRAD_BF16 /* products of bf16, all else in f32; needs k_has_bf16() */
};

/* x N,H,W,C -> y N,yh,yw,K; top, left: rows and columns of zeros before x;
 * after it are as many as yh and yw ask for. */
struct k_conv {
    int64_t n, h, w, c;
    int64_t yh, yw, k;
    int64_t r, s, stride, top, left;
    enum k_way way;
    int plain; /* Winograd's ways: weights are K,C,3,3, as checkpoints have
                  them, and are rearranged next to the products, for every
                  block of tiles: the same results, later */
    int act;   /* any of enum mp_act */
};

#define K_MOST_TAPS 64

/* Whether it is fast here: AVX2 or better. */
int k_has_conv(void);
/* Weights K,C,R,S as k_conv takes them, 64-byte aligned; size in bytes. R S is
 * K_MOST_TAPS at most. */
size_t k_conv_weights(int64_t k, int64_t c, int64_t taps, enum k_way way);
void k_conv_pack(void *to, const float *w, int64_t k, int64_t c, int64_t r,
                 int64_t s, enum k_way way);
/* Whether k_conv takes less time with plain weights than k_conv_pack and
 * k_conv together. */
int k_conv_plain(const struct k_conv *a);
/* Scratch does not depend on `plain`.
 * y = act(conv + bias + residual); bias K or NULL; residual as y or p NULL, in
 * place of it if the type is the same. All f32 unless the way is in bf16. */
size_t k_conv_scratch(const struct k_conv *a, int threads);
void k_conv(const struct k_conv *a, struct k_out y, struct k_in x,
            const void *w, const float *bias, struct k_in residual,
            void *scratch);

/* y rows,K = x rows,C times w K,C, plus bias K or NULL, for few rows: for each
 * all weights are read, as they lie in a checkpoint. All f32. */
void k_product(float *y, const float *x, const float *w, const float *bias,
               int64_t rows, int64_t k, int64_t c);

/* ---- layouts of weights ---- */

#define K_BLOCKS 12

/* Weights K,C,R,S: blocks of K and C, the last one innermost, in strides of
 * whole blocks. */
struct k_layout {
    int64_t dim[4], stride[4]; /* elements */
    int blocks, axis[K_BLOCKS];
    int64_t block[K_BLOCKS];
    /* If not 0, taps are rows: that of row k at tap t is row t K + k, in blocks
     * of so many, of which block[0] is a part (so it is of K). */
    int64_t of;
};

/* From f32 in a plain layout to blocks of type t; what the last blocks have
 * more than the weights becomes 0. bf16 as k_copy has it, but that where
 * there are instructions for that, the smallest numbers may become 0. 3x3
 * weights in a bf16 layout of 4x4 become the points of Winograd's F(2x2, 3x3):
 * it needs k_has_bf16(). */
int k_can_reorder(const struct k_layout *to, enum mp_dtype t,
                  const struct k_layout *from);
void k_reorder(struct k_out to, const struct k_layout *layout,
               const float *from, const struct k_layout *plain);
/* The same for one block of K, on this thread alone. */
void k_reorder_block(struct k_out to, const struct k_layout *layout,
                     const float *from, const struct k_layout *plain);

/* ---- norms, then act ---- */

/* x N,HW,C; weight, bias C; in place. act: any of enum mp_act. */
size_t k_group_norm_scratch(int64_t n, int64_t hw, int64_t c, int64_t groups);
void k_group_norm(struct k_out y, struct k_in x, struct k_in weight,
                  struct k_in bias, int64_t n, int64_t hw, int64_t c,
                  int64_t groups, float eps, int act, void *scratch);
/* x outer,N,inner: N in reverse order. */
void k_flip(struct k_out y, struct k_in x, int64_t outer, int64_t n,
            int64_t inner);
/* x rows,C; in place. */
size_t k_layer_norm_scratch(int64_t c);
void k_layer_norm(struct k_out y, struct k_in x, struct k_in weight,
                  struct k_in bias, int64_t rows, int64_t c, float eps, int act,
                  void *scratch);
/* x rows,C; all else C; in place. */
size_t k_batch_norm_scratch(int64_t c);
void k_batch_norm(struct k_out y, struct k_in x, struct k_in weight,
                  struct k_in bias, struct k_in mean, struct k_in var,
                  int64_t rows, int64_t c, float eps, int act, void *scratch);

/* ---- pointwise ---- */

/* In place. */
void k_act(struct k_out y, struct k_in x, int64_t n, int act);
/* x rows,2C -> y rows,C. */
void k_geglu(struct k_out y, struct k_in x, int64_t rows, int64_t c);
/* y = act(a + b) or act(a * b). b has andim dimensions or fewer, aligned with
 * a's at the end, each equal to a's or 1. In place of a; of b too if it has
 * a's shape. */
void k_add(struct k_out y, struct k_in a, struct k_in b, int andim,
           const int64_t *adim, int bndim, const int64_t *bdim, int act);
void k_mul(struct k_out y, struct k_in a, struct k_in b, int andim,
           const int64_t *adim, int bndim, const int64_t *bdim, int act);
/* Rows of n elements, dst_row and src_row elements apart. From f32, bf16 or u8
 * to f32 or bf16 (round to nearest, even; a NaN stays one), or any type to
 * itself. Concat is one call for each part, slice is one call. */
void k_copy(struct k_out dst, int64_t dst_row, struct k_in src, int64_t src_row,
            int64_t rows, int64_t n);

/* ---- spatial and last dimension ---- */

/* x N,H,W,C -> y N,h,w,C, align_corners = false, coordinates in f32. */
size_t k_resize_bilinear_scratch(int64_t w, int64_t c, int64_t yw, int threads);
void k_resize_bilinear(struct k_out y, struct k_in x, int64_t n, int64_t h,
                       int64_t w, int64_t c, int64_t yh, int64_t yw,
                       void *scratch);
void k_resize_nearest(struct k_out y, struct k_in x, int64_t n, int64_t h,
                      int64_t w, int64_t c, int64_t yh, int64_t yw);
/* What is left of a 3x3 convolution (stride 1, padding 1) of a map that is
 * enlarged from h x w to yh x yw first, when its products have been taken
 * before: z N,h,w,(3,3),K are those of each tap. */
struct k_enlarge {
    int64_t n, h, w, yh, yw, k;
    int nearest; /* else bilinear */
    int act;
};
size_t k_enlarge_scratch(const struct k_enlarge *a, int threads);
/* Bias (NULL: none), residual (p NULL: none) and activation included. */
void k_enlarge(const struct k_enlarge *a, struct k_out y, const float *z,
               const float *bias, struct k_in residual, void *scratch);
/* Adaptive average. */
void k_pool_avg(struct k_out y, struct k_in x, int64_t n, int64_t h, int64_t w,
                int64_t c, int64_t yh, int64_t yw);
/* x N,H,W,C at (top, left) of zeros N,yh,yw,C. */
void k_pad(struct k_out y, struct k_in x, int64_t n, int64_t h, int64_t w,
           int64_t c, int64_t top, int64_t left, int64_t yh, int64_t yw);
/* x rows,C; in place. */
void k_softmax(struct k_out y, struct k_in x, int64_t rows, int64_t c);
/* x rows,C -> index of the first maximum of each row. */
void k_argmax(int32_t *y, struct k_in x, int64_t rows, int64_t c);
/* x N,H,W,C -> y N,C,3: mp_heatmap_peaks. Both f32. */
void k_heatmap_peaks(float *y, const float *x, int64_t n, int64_t h, int64_t w,
                     int64_t c);

#endif
