/* SPDX-License-Identifier: MIT */
/*
 * mpipe/graph.h - describe a network; nothing is computed here.
 *
 * A graph is built for one input shape, so every shape is known while
 * building: mp_dim() may be asked at once. Life cycle: libmpipe makes the
 * graph and binds it to a checkpoint; backbone and head append nodes;
 * libmpipe checks, folds, fuses, compiles and frees it.
 *
 * Layout: maps are N x H x W x C, token sequences N x T x C, so a map of one
 * picture is its token sequence: mp_reshape between the two moves nothing.
 * Weights keep the layout of the checkpoint (K x C x R x S).
 *
 * Values are f32 in meaning; the precision they are kept in is a policy of the
 * session, not of the network.
 *
 * Errors are sticky: a wrong call returns node {0} and is remembered, calls on
 * {0} return {0}, and mp_graph_check() tells the first error, once. Weights
 * that the checkpoint does not have are collected the same way, so that all of
 * them are listed together; mp_dim() of {0} is 1.
 *
 * Threads: one thread per graph.
 */
#ifndef MPIPE_GRAPH_H
#define MPIPE_GRAPH_H

#include "mpipe/base.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MP_RANK 4 /* most dimensions of a value */

typedef struct {
    uint32_t id; /* index into its graph; 0 is none */
} mp_node;

struct mp_graph;

enum mp_act {
    MP_ACT_NONE,
    MP_RELU,    /* max(x, 0) */
    MP_SILU,    /* x * sigmoid(x) */
    MP_GELU,    /* the exact one: x * (1 + erf(x / sqrt 2)) / 2 */
    MP_SIGMOID, /* 1 / (1 + exp(-x)) */
    MP_RSQRT    /* 1 / sqrt(x) */
};

/* 0, or the first error of the calls so far, or the list of missing and
 * differently shaped weights (the first few by name, and how many). */
MP_API int mp_graph_check(const struct mp_graph *g, struct mp_error *err);
/* Remember an error of the caller's own, as a wrong mp_* call would. */
MP_API void mp_graph_fail(struct mp_graph *g, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

MP_API int mp_ndim(const struct mp_graph *g, mp_node x);
MP_API int64_t mp_dim(const struct mp_graph *g, mp_node x, int axis);

/* Names of weights get the prefixes pushed so far put in front of them. */
MP_API void mp_push(struct mp_graph *g, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
MP_API void mp_pop(struct mp_graph *g);

/* ---- leaves ---- */

/* Fed at every run: row-major, dtype t (MP_U8 for pixels, else MP_F32). */
MP_API mp_node mp_input(struct mp_graph *g, const char *name, enum mp_dtype t,
                        int ndim, const int64_t *dim);
/* A tensor of the checkpoint; dim -1 takes what the file has. The same name
 * is the same node. */
MP_API mp_node mp_weight(struct mp_graph *g, const char *name, int ndim,
                         const int64_t *dim);
/* Its shape: number of dimensions, or -1 if there is none of that name. dim
 * has room for MP_RANK and may be NULL. Asking does not make it needed: this
 * is how an architecture is read off a checkpoint. */
MP_API int mp_weight_shape(const struct mp_graph *g, const char *name,
                           int64_t *dim);
/* Tensors under this prefix (full name, no pushed prefix) are known and not
 * used: no warning about them. */
MP_API void mp_weight_unused(struct mp_graph *g, const char *prefix);
/* A constant; data (row-major) is copied. */
MP_API mp_node mp_const(struct mp_graph *g, int ndim, const int64_t *dim,
                        const float *data);
/* A constant of one element, shape {1}. */
MP_API mp_node mp_scalar(struct mp_graph *g, float value);

/* ---- primitives ---- */

struct mp_conv {
    int32_t stride;                   /* 1 or more, both directions */
    int32_t top, left, bottom, right; /* zero padding, pixels */
};
/* x N,H,W,C; w K,C,R,S; bias K or none -> N,H',W',K. Cross-correlation. */
MP_API mp_node mp_conv2d(struct mp_graph *g, mp_node x, mp_node w, mp_node bias,
                         struct mp_conv p);
/* Transposed: x N,H,W,C; w C,K,R,S; bias K or none. Output side:
 * (n - 1) * stride - 2 * pad + r + out_pad. */
MP_API mp_node mp_deconv2d(struct mp_graph *g, mp_node x, mp_node w,
                           mp_node bias, int stride, int pad, int out_pad);
/* y = x w^T + bias over the last dimension: x ..., C; w K,C (or K,C,1,1). The
 * weight may be any node: the prompt product is mp_linear(maps, prompts). */
MP_API mp_node mp_linear(struct mp_graph *g, mp_node x, mp_node w,
                         mp_node bias);
/* softmax(q k^T * scale) v per head; q N,T,C; k, v N,S,C or 1,S,C (the same
 * for every picture); heads consecutive ranges of C / heads channels. */
MP_API mp_node mp_attention(struct mp_graph *g, mp_node q, mp_node k, mp_node v,
                            int heads, float scale);
/* Statistics per picture and group of C / groups consecutive channels over
 * all positions, biased variance; weight, bias C. x N,...,C. */
MP_API mp_node mp_group_norm(struct mp_graph *g, mp_node x, mp_node weight,
                             mp_node bias, int groups, float eps);
/* Over the last dimension. */
MP_API mp_node mp_layer_norm(struct mp_graph *g, mp_node x, mp_node weight,
                             mp_node bias, float eps);
/* With running statistics: (x - mean) / sqrt(var + eps) * weight + bias. */
MP_API mp_node mp_batch_norm(struct mp_graph *g, mp_node x, mp_node weight,
                             mp_node bias, mp_node mean, mp_node var,
                             float eps);
MP_API mp_node mp_act(struct mp_graph *g, mp_node x, enum mp_act kind);
/* x ..., 2C -> ..., C: first half * gelu(second half). */
MP_API mp_node mp_geglu(struct mp_graph *g, mp_node x);
/* Elementwise. b has the shape of a, or broadcasts: dimensions aligned at the
 * end, each equal to a's or 1. */
MP_API mp_node mp_add(struct mp_graph *g, mp_node a, mp_node b);
MP_API mp_node mp_mul(struct mp_graph *g, mp_node a, mp_node b);
/* All of x[0..n) along axis (negative: from the end). */
MP_API mp_node mp_concat(struct mp_graph *g, const mp_node *x, int n, int axis);
MP_API mp_node mp_slice(struct mp_graph *g, mp_node x, int axis, int64_t start,
                        int64_t count);
MP_API mp_node mp_reshape(struct mp_graph *g, mp_node x, int ndim,
                          const int64_t *dim); /* one -1 allowed */
/* x N,H,W,C -> N,h,w,C. Bilinear: align_corners = false, no antialiasing,
 * coordinates in f32. Nearest: source floor(d * n / m). */
MP_API mp_node mp_resize_bilinear(struct mp_graph *g, mp_node x, int64_t h,
                                  int64_t w);
MP_API mp_node mp_resize_nearest(struct mp_graph *g, mp_node x, int64_t h,
                                 int64_t w);
/* Adaptive average: bin i averages floor(i n / s) .. ceil((i+1) n / s) - 1. */
MP_API mp_node mp_pool_avg(struct mp_graph *g, mp_node x, int64_t h, int64_t w);
/* Put x N,H,W,C at (top, left) of a map of zeros N,h,w,C. */
MP_API mp_node mp_pad(struct mp_graph *g, mp_node x, int64_t top, int64_t left,
                      int64_t h, int64_t w);
/* In reverse order along axis (negative: from the end): of a map, axis 2 swaps
 * left and right. */
MP_API mp_node mp_flip(struct mp_graph *g, mp_node x, int axis);
/* Over the last dimension; argmax: the first maximum, as i32, without that
 * dimension. */
MP_API mp_node mp_softmax(struct mp_graph *g, mp_node x);
MP_API mp_node mp_argmax(struct mp_graph *g, mp_node x);
/* Where each map is highest: x N,H,W,C -> N,C,3: x, y in pixels of the map,
 * from the middle of the first one, and the highest value. Its place, of equal
 * ones the first in row-major order, is moved by a step of Newton's method
 * towards the top of the logarithm of the blurred map (Zhang et al. 2020, DARK,
 * as in mmpose 0.24). -1, -1 where no value is above 0. A NaN anywhere in a
 * map: -1, -1, NaN. x and the result are kept in f32 whatever the policy. */
MP_API mp_node mp_heatmap_peaks(struct mp_graph *g, mp_node x);
/* u8 -> f32 (0..255), or the identity on f32. */
MP_API mp_node mp_float(struct mp_graph *g, mp_node x);

/* A result of the graph; kept in f32 (i32 for argmax) whatever the policy. */
MP_API void mp_output(struct mp_graph *g, const char *name, mp_node x);

/* ---- layers: primitives with the weights NAME.weight, NAME.bias ----
 * Sizes come from the checkpoint. A bias that the file lacks is none. */

/* pad -1: (r - 1) / 2 on all sides. */
MP_API mp_node mp_conv_layer(struct mp_graph *g, mp_node x, const char *name,
                             int stride, int pad);
/* Kernel 4: pad 1; 3: pad 1, output padding 1; 2: pad 0: all double H, W. */
MP_API mp_node mp_deconv_layer(struct mp_graph *g, mp_node x, const char *name);
MP_API mp_node mp_linear_layer(struct mp_graph *g, mp_node x, const char *name);
MP_API mp_node mp_group_norm_layer(struct mp_graph *g, mp_node x,
                                   const char *name, int groups, float eps);
MP_API mp_node mp_layer_norm_layer(struct mp_graph *g, mp_node x,
                                   const char *name);
/* Also NAME.running_mean, .running_var; eps 1e-5. */
MP_API mp_node mp_batch_norm_layer(struct mp_graph *g, mp_node x,
                                   const char *name);
/* stages times twice the size: transposed convolution NAME.0, batch norm
 * NAME.1, ReLU; then NAME.3 and NAME.4, NAME.6 and NAME.7, ... */
MP_API mp_node mp_upsample_layers(struct mp_graph *g, mp_node x,
                                  const char *name, int stages);

#ifdef __cplusplus
}
#endif
#endif
