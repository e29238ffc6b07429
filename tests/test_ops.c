/* SPDX-License-Identifier: MIT */
/*
 * test_ops.c - every op on every backend against its plain-C reference, over
 * odd shapes, f32 and bf16. A case is a small graph; what a session on the
 * backend gives (folded, fused, compiled) must be what the references of op.c
 * give, run node by node with nothing rewritten. An op without a case fails.
 */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "device.h"
#include "graph_impl.h"
#include "module.h"
#include "session.h"

/* NMSE = sum (got - want)^2 / sum want^2. f32: DESIGN's bound per op. bf16:
 * inputs and the result are rounded to 8 bits (relative 2^-9, squared 4e-6,
 * uniformly 1.3e-6 each); what is worse than both together is a mistake. */
#define NMSE_F32  1e-12
#define NMSE_BF16 2e-5
/* fp16 has 3 bits more: a 64th, but for what is too small for it. */
#define NMSE_F16 5e-7

static uint64_t state;

static float uniform(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (float)(state >> 40) * 0x1p-23f - 1;
}

static float *random_data(int64_t n, float scale, float offset)
{
    float *p = malloc((size_t)n * sizeof *p);

    for (int64_t i = 0; i < n; i++)
        p[i] = scale * uniform() + offset;
    return p;
}

#define DIMS(...)                                                              \
    (int64_t[])                                                                \
    {                                                                          \
        __VA_ARGS__                                                            \
    }
#define N(a)    (int)(sizeof(a) / sizeof *(a))
#define IN(...) input(g, N(DIMS(__VA_ARGS__)), DIMS(__VA_ARGS__))
#define CONST(s, o, ...)                                                       \
    constant(g, s, o, N(DIMS(__VA_ARGS__)), DIMS(__VA_ARGS__))

static mp_node constant(struct mp_graph *g, float scale, float offset, int ndim,
                        const int64_t *dim)
{
    float *p = random_data(mp_shape_count(ndim, dim), scale, offset);
    mp_node n = mp_const(g, ndim, dim, p);

    free(p);
    return n;
}

/* Inputs and outputs of a session stay f32, and so does what hardly computes:
 * an op by itself would never see the precision that is asked for. In `narrow`
 * cases it stands between norms that nothing folds, so that its operands and
 * its result are kept in that precision. */
static int narrow;

static mp_node soften(struct mp_graph *g, mp_node x)
{
    int64_t c = mp_dim(g, x, -1);
    mp_node one = mp_input(g, "w", MP_F32, 1, &c);
    mp_node zero = mp_input(g, "b", MP_F32, 1, &c);

    return mp_batch_norm(g, x, one, zero, zero, CONST(0, 1, c), 0);
}

static mp_node input(struct mp_graph *g, int ndim, const int64_t *dim)
{
    mp_node x = mp_input(g, "x", MP_F32, ndim, dim);

    return narrow ? soften(g, x) : x;
}

/* ---- cases ---- */

static mp_node conv(struct mp_graph *g, mp_node x, int64_t k, int64_t r,
                    int stride, int pad, int bias)
{
    int64_t c = mp_dim(g, x, -1);
    float s = sqrtf(3.0f / (float)(c * r * r));

    return mp_conv2d(g, x, CONST(s, 0, k, c, r, r),
                     bias ? CONST(0.1f, 0, k) : (mp_node){0},
                     (struct mp_conv){stride, pad, pad, pad, pad});
}

static mp_node case_conv3(struct mp_graph *g)
{
    return conv(g, IN(1, 13, 17, 32), 48, 3, 1, 1, 1);
}

static mp_node case_conv3_batch(struct mp_graph *g)
{
    return conv(g, IN(3, 8, 8, 64), 64, 3, 1, 1, 0);
}

/* x and a convolution of it, as in a network's blocks. */
static mp_node residual(struct mp_graph *g, mp_node x)
{
    return mp_add(g, x,
                  conv(g, mp_act(g, x, MP_SILU), mp_dim(g, x, -1), 3, 1, 1, 0));
}

/* Of many blocks on the CPU. */
static mp_node case_conv3_large(struct mp_graph *g)
{
    return mp_act(g, conv(g, IN(2, 33, 37, 48), 72, 3, 1, 1, 1), MP_RELU);
}

static mp_node case_conv3_large_residual(struct mp_graph *g)
{
    return residual(g, conv(g, IN(1, 32, 34, 40), 40, 1, 1, 0, 1));
}

static mp_node case_conv3_large_unpadded(struct mp_graph *g)
{
    return conv(g, IN(1, 34, 35, 32), 30, 3, 1, 0, 1);
}

/* Large enough for the CPU's Winograd convolutions, of which tests/test_kernels
 * has all shapes: here once, as simulated GPUs take long for it. */
static mp_node case_conv3_larger(struct mp_graph *g)
{
    return residual(g, conv(g, IN(1, 18, 17, 40), 288, 1, 1, 0, 1));
}

/* For those in bf16. */
static mp_node case_conv3_wide(struct mp_graph *g)
{
    return mp_act(g, conv(g, IN(2, 9, 15, 67), 80, 3, 1, 1, 1), MP_RELU);
}

static mp_node case_conv3_wide_residual(struct mp_graph *g)
{
    return residual(g, conv(g, IN(1, 10, 8, 64), 72, 1, 1, 0, 1));
}

static mp_node case_conv_odd_channels(struct mp_graph *g)
{
    return conv(g, IN(2, 5, 7, 35), 19, 3, 1, 1, 1);
}

static mp_node case_conv_first(struct mp_graph *g)
{
    return conv(g, IN(1, 19, 23, 3), 32, 3, 1, 1, 1);
}

/* Pictures one after the other, by a library's linear layer if there is one. */
static mp_node case_conv_first_pictures(struct mp_graph *g)
{
    return mp_act(g, conv(g, IN(3, 19, 23, 3), 32, 3, 2, 1, 0), MP_SILU);
}

static mp_node case_conv_four(struct mp_graph *g)
{
    return conv(g, IN(1, 9, 11, 4), 32, 3, 1, 1, 1);
}

static mp_node case_conv_to_one(struct mp_graph *g)
{
    return conv(g, IN(1, 24, 31, 48), 1, 3, 1, 1, 1);
}

static mp_node case_conv_to_four(struct mp_graph *g)
{
    return conv(g, IN(2, 9, 9, 64), 4, 3, 1, 1, 1);
}

static mp_node case_conv_stride(struct mp_graph *g)
{
    return conv(g, IN(1, 15, 17, 32), 32, 3, 2, 1, 1);
}

static mp_node case_conv_right_pad(struct mp_graph *g)
{
    return mp_conv2d(g, IN(1, 15, 18, 32), CONST(0.1f, 0, 32, 32, 3, 3),
                     CONST(0.1f, 0, 32), (struct mp_conv){2, 0, 0, 1, 1});
}

static mp_node case_conv_one_pixel(struct mp_graph *g)
{
    return conv(g, IN(1, 1, 1, 64), 64, 3, 1, 1, 1);
}

static mp_node case_conv1(struct mp_graph *g)
{
    return conv(g, IN(2, 7, 9, 64), 96, 1, 1, 0, 1);
}

static mp_node case_linear(struct mp_graph *g)
{
    return mp_linear(g, IN(2, 63, 80), CONST(0.2f, 0, 160, 80),
                     CONST(0.1f, 0, 160));
}

/* Of one input, which GPUs do at once; the fourth is another's. */
static mp_node case_linear_alike(struct mp_graph *g)
{
    mp_node x = mp_act(g, IN(2, 19, 40), MP_RELU);
    mp_node q = mp_linear(g, x, CONST(.1f, 0, 48, 40), (mp_node){0});
    mp_node k = mp_linear(g, x, CONST(.1f, 0, 48, 40), (mp_node){0});
    mp_node v = mp_linear(g, x, CONST(.1f, 0, 48, 40), (mp_node){0});
    mp_node w = mp_linear(g, q, CONST(.1f, 0, 48, 48), (mp_node){0});

    return mp_add(g, mp_attention(g, q, k, v, 3, .25f), w);
}

/* And two. */
static mp_node case_linear_alike_two(struct mp_graph *g)
{
    mp_node x = mp_act(g, IN(2, 19, 40), MP_RELU), y[2];

    for (int i = 0; i < 2; i++)
        y[i] = mp_linear(g, x, CONST(.1f, 0, 48, 40), (mp_node){0});
    return mp_concat(g, y, 2, -1);
}

static mp_node case_linear_odd(struct mp_graph *g)
{
    return mp_linear(g, IN(7, 12), CONST(0.4f, 0, 10, 12), (mp_node){0});
}

static mp_node case_linear_variable(struct mp_graph *g)
{
    return mp_linear(g, IN(1, 33, 24), IN(17, 24), (mp_node){0});
}

static mp_node case_conv_relu(struct mp_graph *g)
{
    return mp_act(g, conv(g, IN(1, 9, 9, 32), 32, 3, 1, 1, 1), MP_RELU);
}

static mp_node case_conv_silu(struct mp_graph *g)
{
    return mp_act(g, conv(g, IN(1, 9, 9, 32), 32, 3, 1, 1, 1), MP_SILU);
}

static mp_node case_conv_gelu(struct mp_graph *g)
{
    return mp_act(g, conv(g, IN(1, 9, 9, 32), 32, 1, 1, 0, 1), MP_GELU);
}

static mp_node case_conv_sigmoid(struct mp_graph *g)
{
    return mp_act(g, conv(g, IN(1, 9, 9, 24), 1, 3, 1, 1, 1), MP_SIGMOID);
}

/* The residual dies in the convolution: it may be added in place. */
static mp_node case_residual(struct mp_graph *g)
{
    mp_node x = conv(g, IN(1, 11, 7, 32), 32, 1, 1, 0, 1);
    mp_node h = conv(g, mp_act(g, x, MP_SILU), 32, 3, 1, 1, 1);

    return mp_add(g, x, h);
}

/* The residual lives on. */
static mp_node case_residual_kept(struct mp_graph *g)
{
    mp_node x = conv(g, IN(2, 6, 7, 32), 32, 1, 1, 0, 1);
    mp_node h = mp_add(g, x, conv(g, x, 32, 3, 1, 1, 1));

    return mp_concat(g, (mp_node[]){mp_act(g, h, MP_RELU), x}, 2, 3);
}

static mp_node case_residual_input(struct mp_graph *g)
{
    mp_node x = IN(1, 60, 32);

    return mp_add(g,
                  mp_linear(g,
                            mp_geglu(g, mp_linear(g, x, CONST(.3f, 0, 256, 32),
                                                  CONST(.1f, 0, 256))),
                            CONST(.15f, 0, 32, 128), CONST(.1f, 0, 32)),
                  x);
}

/* The residual is what is convolved: no place to add in. */
static mp_node case_residual_self(struct mp_graph *g)
{
    mp_node x = conv(g, IN(1, 11, 7, 32), 32, 1, 1, 0, 1);

    return mp_add(g, x, conv(g, x, 32, 3, 1, 1, 1));
}

static mp_node case_residual_thin(struct mp_graph *g)
{
    mp_node x = mp_conv2d(g, IN(2, 15, 12, 64), CONST(.1f, 0, 2, 64, 3, 5),
                          CONST(.1f, 0, 2), (struct mp_conv){2, 1, 0, 0, 3});

    return mp_act(g, mp_add(g, IN(2, 7, 6, 2), x), MP_SILU);
}

static mp_node case_bias_add(struct mp_graph *g)
{
    return mp_add(g, conv(g, IN(1, 5, 5, 32), 40, 3, 1, 1, 1),
                  CONST(1, 0, 1, 40));
}

static mp_node bn(struct mp_graph *g, mp_node x)
{
    int64_t c = mp_dim(g, x, -1);

    return mp_batch_norm(g, x, CONST(.1f, 1, c), CONST(.1f, 0, c),
                         CONST(.1f, 0, c), CONST(.2f, 1, c), 1e-5f);
}

static mp_node case_conv_bn_relu(struct mp_graph *g)
{
    return mp_act(g, bn(g, conv(g, IN(1, 9, 8, 30), 20, 3, 1, 1, 1)), MP_RELU);
}

/* Enlarged, then convolved: some backends do it the other way round. */
static mp_node case_conv_nearest(struct mp_graph *g)
{
    mp_node x = mp_resize_nearest(g, IN(2, 5, 6, 20), 10, 12);

    return mp_act(g, conv(g, x, 24, 3, 1, 1, 1), MP_RELU);
}

static mp_node case_conv_bilinear(struct mp_graph *g)
{
    mp_node x = mp_resize_bilinear(g, IN(1, 7, 5, 33), 14, 10);

    return conv(g, x, 70, 3, 1, 1, 0);
}

static mp_node case_conv_bilinear_uneven(struct mp_graph *g)
{
    mp_node x = mp_resize_bilinear(g, IN(2, 3, 4, 16), 12, 4);

    return mp_act(g, bn(g, conv(g, x, 9, 3, 1, 1, 1)), MP_SILU);
}

static mp_node case_conv_from_one(struct mp_graph *g)
{
    return conv(g, mp_resize_bilinear(g, IN(1, 1, 1, 40), 8, 8), 20, 3, 1, 1,
                1);
}

static mp_node case_conv_enlarged_residual(struct mp_graph *g)
{
    mp_node x = mp_resize_nearest(g, IN(1, 4, 3, 16), 12, 9);

    return mp_act(g, mp_add(g, IN(1, 12, 9, 32), conv(g, x, 32, 3, 1, 1, 1)),
                  MP_RELU);
}

/* More pictures than are done at a time; one axis as it was. */
static mp_node case_conv_enlarged_pictures(struct mp_graph *g)
{
    mp_node x = mp_resize_nearest(g, IN(6, 2, 3, 16), 8, 3);

    return conv(g, x, 16, 3, 1, 1, 1);
}

static mp_node case_conv_bilinear_residual(struct mp_graph *g)
{
    mp_node x = mp_resize_bilinear(g, IN(2, 3, 4, 24), 24, 32);

    return mp_act(g, mp_add(g, IN(2, 24, 32, 40), conv(g, x, 40, 3, 1, 1, 1)),
                  MP_SILU);
}

/* The sum of two, as of maps that are joined, one axis as it was. */
static mp_node case_conv_bilinear_rows(struct mp_graph *g)
{
    mp_node x[2] = {mp_resize_bilinear(g, IN(3, 4, 7, 16), 16, 7),
                    mp_resize_bilinear(g, IN(3, 16, 1, 8), 16, 7)};

    return mp_act(g, conv(g, mp_concat(g, x, 2, 3), 32, 3, 1, 1, 1), MP_RELU);
}

static mp_node case_conv_joined(struct mp_graph *g)
{
    const mp_node x[4] = {
        IN(2, 8, 12, 7), mp_resize_bilinear(g, IN(2, 4, 6, 10), 8, 12),
        mp_resize_bilinear(g, IN(2, 2, 5, 16), 8, 12), /* not by 12 / 5 */
        mp_resize_nearest(g, IN(2, 1, 3, 5), 8, 12)};

    return mp_act(g, bn(g, conv(g, mp_concat(g, x, 4, -1), 40, 3, 1, 1, 1)),
                  MP_RELU);
}

static mp_node case_conv_joined_residual(struct mp_graph *g)
{
    mp_node a = IN(1, 6, 6, 32),
            up = mp_resize_bilinear(g, IN(1, 3, 3, 8), 6, 6);
    mp_node both = mp_concat(g, (mp_node[]){up, a}, 2, 3);

    /* what is joined and what is enlarged have other users, too */
    return mp_add(
        g, mp_add(g, a, conv(g, both, 32, 3, 1, 1, 1)),
        mp_add(g, conv(g, both, 32, 1, 1, 0, 0), conv(g, up, 32, 3, 1, 1, 1)));
}

static mp_node case_bn(struct mp_graph *g)
{
    return bn(g, IN(2, 5, 3, 33));
}

static mp_node case_bn_variable(struct mp_graph *g)
{
    mp_node x = IN(2, 5, 3, 33);

    return mp_batch_norm(g, x, IN(33), IN(33), IN(33), CONST(.2f, 1, 33),
                         1e-5f);
}

static mp_node deconv(struct mp_graph *g, int64_t c, int64_t k, int64_t r)
{
    mp_node x = IN(2, 7, 5, c);
    mp_node w = CONST(sqrtf(12.0f / (float)(c * r * r)), 0, c, k, r, r);

    return mp_deconv2d(g, x, w, CONST(.1f, 0, k), 2, r > 2, r == 3);
}

static mp_node case_deconv2(struct mp_graph *g)
{
    return deconv(g, 50, 32, 2);
}

static mp_node case_deconv2_variable(struct mp_graph *g)
{
    return mp_deconv2d(g, IN(1, 6, 5, 16), IN(16, 8, 2, 2), IN(8), 2, 0, 0);
}

static mp_node case_deconv3(struct mp_graph *g)
{
    return deconv(g, 32, 24, 3);
}

static mp_node case_deconv4(struct mp_graph *g)
{
    return deconv(g, 64, 32, 4);
}

/* Result pixels that no tap reaches. */
static mp_node case_deconv_gap(struct mp_graph *g)
{
    return mp_deconv2d(g, IN(1, 5, 4, 16), CONST(.2f, 0, 16, 24, 2, 2),
                       CONST(.1f, 0, 24), 3, 0, 0);
}

static mp_node case_deconv_bn_relu(struct mp_graph *g)
{
    return mp_act(g, bn(g, deconv(g, 64, 32, 4)), MP_RELU);
}

static mp_node attention(struct mp_graph *g, int64_t n, int64_t t, int64_t s,
                         int64_t c, int heads, int64_t nkv)
{
    return mp_attention(g, IN(n, t, c), IN(nkv, s, c), IN(nkv, s, c), heads,
                        1 / sqrtf((float)(c / heads)));
}

static mp_node case_attention_d4(struct mp_graph *g)
{
    return attention(g, 2, 35, 35, 32, 8, 2);
}

static mp_node case_attention_d40(struct mp_graph *g)
{
    return attention(g, 1, 131, 131, 320, 8, 1);
}

static mp_node case_attention_d64(struct mp_graph *g)
{
    return attention(g, 2, 70, 129, 128, 2, 2);
}

static mp_node case_attention_d80(struct mp_graph *g)
{
    return attention(g, 2, 65, 50, 640, 8, 1);
}

static mp_node case_attention_d80_keys(struct mp_graph *g)
{
    return attention(g, 1, 70, 200, 160, 2, 1);
}

static mp_node case_attention_d160(struct mp_graph *g)
{
    return attention(g, 1, 17, 150, 1280, 8, 1);
}

static mp_node case_attention_d512(struct mp_graph *g)
{
    return attention(g, 1, 77, 77, 512, 1, 1);
}

/* Of a head so wide, and of so many queries, by products of a library if the
 * backend has one. */
static mp_node case_attention_products(struct mp_graph *g)
{
    return attention(g, 2, 1032, 288, 192, 1, 2);
}

/* So much of it that a library's kernel is worth making. */
static mp_node case_attention_library(struct mp_graph *g)
{
    return attention(g, 4, 2048, 512, 512, 32, 4);
}

/* One chain of additions over all keys would cost digits; of values that are
 * all positive, so that nothing but rounding takes any away. */
static mp_node case_attention_keys(struct mp_graph *g)
{
    return mp_attention(g, IN(1, 24, 40), IN(1, 16000, 40),
                        mp_act(g, IN(1, 16000, 40), MP_SIGMOID), 1, 0.125f);
}

static mp_node case_attention_one(struct mp_graph *g)
{
    return attention(g, 1, 1, 1, 16, 2, 1);
}

static mp_node case_attention_const(struct mp_graph *g)
{
    return mp_attention(g, IN(2, 40, 64), CONST(1, 0, 1, 10, 64),
                        CONST(1, 0, 1, 10, 64), 8, .35f);
}

/* Far from 0, and large: softmax must not overflow. */
static mp_node case_attention_large(struct mp_graph *g)
{
    return mp_attention(g, CONST(30, 0, 1, 20, 32), IN(1, 33, 32),
                        IN(1, 33, 32), 4, 3);
}

static mp_node group_norm(struct mp_graph *g, mp_node x, int groups)
{
    int64_t c = mp_dim(g, x, -1);

    return mp_group_norm(g, x, CONST(.1f, 1, c), CONST(.1f, 0, c), groups,
                         1e-5f);
}

static mp_node case_group_norm(struct mp_graph *g)
{
    return group_norm(g, IN(2, 13, 11, 320), 32);
}

static mp_node case_group_norm_single(struct mp_graph *g)
{
    return group_norm(g, IN(2, 6, 5, 32), 32);
}

/* More channels than a GPU's block has threads. */
static mp_node case_group_norm_wide(struct mp_graph *g)
{
    return group_norm(g, IN(2, 3, 7, 2560), 32);
}

/* Too much for one block a group: in parts, and rounds of channels. */
static mp_node case_group_norm_parts(struct mp_graph *g)
{
    return group_norm(g, IN(1, 130, 129, 64), 16);
}

static mp_node case_group_norm_parts_offset(struct mp_graph *g)
{
    return group_norm(g, mp_add(g, IN(1, 130, 129, 64), mp_scalar(g, 50)), 16);
}

/* In parts on GPUs, which hold smaller maps. */
static mp_node case_group_norm_parts_wide(struct mp_graph *g)
{
    return group_norm(g, IN(1, 23, 23, 2032), 2);
}

/* On GPUs by a block that holds much. */
static mp_node case_group_norm_held(struct mp_graph *g)
{
    return group_norm(g, IN(2, 29, 25, 320), 32);
}

static mp_node case_group_norm_rounds(struct mp_graph *g)
{
    return group_norm(g, IN(2, 9, 7, 2560), 4);
}

static mp_node case_group_norm_rounds_odd(struct mp_graph *g)
{
    return group_norm(g, IN(2, 5, 3, 1038), 2);
}

static mp_node case_group_norm_wide_odd(struct mp_graph *g)
{
    return group_norm(g, IN(1, 5, 3, 300), 10);
}

static mp_node case_group_norm_silu(struct mp_graph *g)
{
    return mp_act(g, group_norm(g, IN(1, 9, 31, 96), 32), MP_SILU);
}

static mp_node case_group_norm_relu(struct mp_graph *g)
{
    return mp_act(g, group_norm(g, IN(1, 64, 64, 48), 16), MP_RELU);
}

/* A mean far above the deviation: naive sums of squares lose it. */
static mp_node case_group_norm_offset(struct mp_graph *g)
{
    return group_norm(g, mp_add(g, IN(1, 32, 32, 64), mp_scalar(g, 50)), 16);
}

static mp_node case_layer_norm(struct mp_graph *g)
{
    return mp_layer_norm(g, IN(2, 37, 320), CONST(.1f, 1, 320),
                         CONST(.1f, 0, 320), 1e-5f);
}

static mp_node case_layer_norm_640(struct mp_graph *g)
{
    return mp_layer_norm(g, IN(1, 9, 640), CONST(.1f, 1, 640),
                         CONST(.1f, 0, 640), 1e-5f);
}

static mp_node case_layer_norm_wide(struct mp_graph *g)
{
    return mp_layer_norm(g, IN(2, 5, 1288), CONST(.1f, 1, 1288),
                         CONST(.1f, 0, 1288), 1e-5f);
}

static mp_node case_layer_norm_odd(struct mp_graph *g)
{
    return mp_layer_norm(g, IN(1, 3, 33), CONST(.1f, 1, 33), CONST(.1f, 0, 33),
                         1e-5f);
}

static mp_node case_relu(struct mp_graph *g)
{
    return mp_act(g, IN(3, 5, 7), MP_RELU);
}

static mp_node case_silu(struct mp_graph *g)
{
    return mp_act(g, mp_mul(g, IN(3, 5, 7), mp_scalar(g, 30)), MP_SILU);
}

static mp_node case_gelu(struct mp_graph *g)
{
    return mp_act(g, mp_mul(g, IN(3, 51, 7), mp_scalar(g, 8)), MP_GELU);
}

static mp_node case_sigmoid(struct mp_graph *g)
{
    return mp_act(g, mp_mul(g, IN(3, 5, 7), mp_scalar(g, 30)), MP_SIGMOID);
}

static mp_node case_rsqrt(struct mp_graph *g)
{
    return mp_act(g, mp_add(g, IN(19, 3), mp_scalar(g, 1.5f)), MP_RSQRT);
}

static mp_node case_geglu(struct mp_graph *g)
{
    return mp_geglu(g, mp_mul(g, IN(2, 9, 66), mp_scalar(g, 4)));
}

static mp_node case_add(struct mp_graph *g)
{
    return mp_add(g, IN(2, 5, 3, 17), IN(2, 5, 3, 17));
}

static mp_node case_add_relu(struct mp_graph *g)
{
    return mp_act(g, mp_add(g, IN(2, 5, 3, 17), IN(1, 5, 3, 17)), MP_RELU);
}

static mp_node case_add_channel(struct mp_graph *g)
{
    return mp_add(g, IN(2, 5, 3, 17), IN(17));
}

static mp_node case_mul_position(struct mp_graph *g)
{
    return mp_mul(g, IN(2, 5, 3, 17), CONST(1, 0, 1, 5, 3, 1));
}

static mp_node case_mul_outer(struct mp_graph *g)
{
    return mp_mul(g, IN(6, 5, 3, 3), CONST(1, 0, 6, 1, 1, 1));
}

static mp_node case_mul_scalar(struct mp_graph *g)
{
    return mp_mul(g, IN(4, 33), mp_scalar(g, 1 / 127.5f));
}

static mp_node case_concat(struct mp_graph *g)
{
    return mp_concat(
        g, (mp_node[]){IN(2, 3, 5, 7), IN(2, 3, 5, 32), IN(2, 3, 5, 1)}, 3, -1);
}

static mp_node case_concat_rows(struct mp_graph *g)
{
    return mp_concat(g, (mp_node[]){IN(2, 3, 5, 7), IN(2, 1, 5, 7)}, 2, 1);
}

/* More than one step takes. */
static mp_node case_concat_many(struct mp_graph *g)
{
    mp_node x = IN(2, 35, 3), part[35];

    for (int i = 0; i < 35; i++)
        part[i] = mp_slice(g, x, 1, 34 - i, 1);
    return mp_concat(g, part, 35, 1);
}

static mp_node case_slice(struct mp_graph *g)
{
    return mp_slice(g, IN(2, 3, 5, 40), 3, 8, 16);
}

static mp_node case_slice_rows(struct mp_graph *g)
{
    return mp_slice(g, IN(2, 9, 5, 3), 1, 2, 4);
}

static mp_node case_reshape(struct mp_graph *g)
{
    mp_node x = mp_act(g, IN(2, 4, 5, 8), MP_RELU);

    return mp_act(g, mp_reshape(g, x, 3, DIMS(2, -1, 8)), MP_SILU);
}

static mp_node case_resize_up(struct mp_graph *g)
{
    return mp_resize_bilinear(g, IN(2, 7, 5, 17), 15, 13);
}

static mp_node case_resize_down(struct mp_graph *g)
{
    return mp_resize_bilinear(g, IN(1, 31, 29, 8), 7, 10);
}

static mp_node case_resize_from_one(struct mp_graph *g)
{
    return mp_resize_bilinear(g, IN(1, 1, 1, 33), 6, 4);
}

static mp_node case_nearest(struct mp_graph *g)
{
    return mp_resize_nearest(g, IN(2, 5, 6, 20), 10, 12);
}

static mp_node case_pool(struct mp_graph *g)
{
    return mp_pool_avg(g, IN(2, 11, 16, 24), 6, 3);
}

static mp_node case_pool_repeat(struct mp_graph *g)
{
    return mp_pool_avg(g, IN(1, 2, 3, 10), 6, 6);
}

static mp_node case_pad(struct mp_graph *g)
{
    return mp_pad(g, IN(2, 3, 4, 7), 2, 1, 9, 6);
}

static mp_node case_flip(struct mp_graph *g)
{
    return mp_flip(g, IN(2, 3, 5, 7), 2);
}

static mp_node case_flip_last(struct mp_graph *g)
{
    return mp_flip(g, IN(3, 17), -1);
}

static mp_node case_softmax(struct mp_graph *g)
{
    return mp_softmax(g, mp_mul(g, IN(1, 9, 5, 150), mp_scalar(g, 60)));
}

static mp_node case_softmax_even(struct mp_graph *g)
{
    return mp_softmax(g, IN(2, 7, 150));
}

static mp_node case_float(struct mp_graph *g)
{
    mp_node x = mp_input(g, "u8", MP_U8, 4, DIMS(1, 9, 7, 3));

    return mp_mul(g, mp_add(g, mp_float(g, x), mp_scalar(g, -127.5f)),
                  mp_scalar(g, 1 / 127.5f));
}

static mp_node case_argmax(struct mp_graph *g)
{
    return mp_argmax(g, IN(2, 9, 7, 150));
}

/* Of two pictures, five channels: Gaussians at corners, borders and within,
 * high and low ones, with some noise, or without and in steps, so that many
 * places are the highest; and one map with nothing above 0. */
static mp_node heatmaps(struct mp_graph *g, int64_t h, int64_t w, float noise)
{
    static const float at[10][3] = {/* of h, of w, height */
                                    {0, 0, 0.9f},         {1, 1, 1},
                                    {0, 0.45f, 0.02f},    {0.4f, 1, 60},
                                    {0.52f, 0.33f, 1},    {0.8f, 0.07f, 0.3f},
                                    {0.5f, 0.5f, -0.1f},  {0.1f, 0.95f, 120},
                                    {0.61f, 0.61f, 0.5f}, {1, 0.2f, 1e-3f}};
    float *p = malloc((size_t)(10 * h * w) * sizeof *p);
    mp_node x;

    for (int64_t i = 0; i < 10 * h * w; i++) {
        const float *a = at[i / (5 * h * w) * 5 + i % 5];
        float dy = (float)(i / 5 / w % h) - a[0] * (float)(h - 1);
        float dx = (float)(i / 5 % w) - a[1] * (float)(w - 1);

        p[i] = expf(-(dx * dx + dy * dy) / 8);
        if (!(noise > 0))
            p[i] = roundf(3 * p[i]) / 3; /* plateaus */
        p[i] = a[2] < 0 ? a[2] : a[2] * p[i];
    }
    x = mp_const(g, 4, DIMS(2, h, w, 5), p);
    free(p);
    return mp_add(g, mp_mul(g, IN(2, h, w, 5), mp_scalar(g, noise)), x);
}

static mp_node case_heatmap_peaks(struct mp_graph *g)
{
    return mp_heatmap_peaks(g, heatmaps(g, 64, 48, 1e-4f));
}

static mp_node case_heatmap_peaks_odd(struct mp_graph *g)
{
    return mp_heatmap_peaks(g, heatmaps(g, 13, 7, 1e-4f));
}

static mp_node case_heatmap_peaks_small(struct mp_graph *g)
{
    return mp_heatmap_peaks(g, heatmaps(g, 3, 2, 1e-4f));
}

static mp_node case_heatmap_peaks_ties(struct mp_graph *g)
{
    return mp_heatmap_peaks(g, heatmaps(g, 33, 41, 0));
}

/* Each map but one has a NaN: first, last, at its peak or far from it. */
static mp_node case_heatmap_peaks_nan(struct mp_graph *g)
{
    static const int place[10] = {0, 12 * 7, 20, 90, 12 * 7 + 6, 1, 30, 6, 77};
    float *p = calloc(10 * 13 * 7, sizeof *p);
    mp_node x = heatmaps(g, 13, 7, 1e-4f);

    for (int i = 0; i < 9; i++)
        p[(i / 5 * 13 * 7 + place[i]) * 5 + i % 5] = NAN;
    x = mp_add(g, x, mp_const(g, 4, DIMS(2, 13, 7, 5), p));
    free(p);
    return mp_heatmap_peaks(g, x);
}

/* Constants of every kind: what a program that runs once must do. */
static mp_node case_folding(struct mp_graph *g)
{
    mp_node w = mp_slice(g, CONST(.2f, 0, 40, 24, 3, 3), 0, 8, 32);
    mp_node b = mp_linear(g, mp_act(g, CONST(1, 0, 1, 16), MP_SILU),
                          CONST(.3f, 0, 32, 16), CONST(.1f, 0, 32));
    mp_node x = mp_conv2d(g, IN(1, 6, 6, 24), w, (mp_node){0},
                          (struct mp_conv){1, 1, 1, 1, 1});

    return mp_add(g, x, b);
}

static const struct {
    const char *name;
    mp_node (*build)(struct mp_graph *g);
    int sharp; /* to round its operands changes more than the bound */
} cases[] = {
#define C(name)                                                                \
    {                                                                          \
#name, case_##name, 0                                                  \
    }
#define SHARP(name)                                                            \
    {                                                                          \
#name, case_##name, 1                                                  \
    }
    C(conv3),
    C(conv3_batch),
    C(conv_odd_channels),
    C(conv_first),
    C(conv_four),
    C(conv_to_one),
    C(conv_to_four),
    C(conv_stride),
    C(conv_right_pad),
    C(conv_one_pixel),
    C(conv1),
    C(linear),
    C(linear_odd),
    C(linear_variable),
    C(conv_relu),
    C(conv_silu),
    C(conv_gelu),
    C(conv_sigmoid),
    C(residual),
    C(residual_kept),
    C(residual_input),
    C(bias_add),
    C(conv_bn_relu),
    C(bn),
    C(bn_variable),
    C(deconv2),
    C(deconv3),
    C(deconv4),
    C(deconv_gap),
    C(deconv_bn_relu),
    C(attention_d4),
    C(attention_d40),
    C(attention_d64),
    C(attention_d80),
    C(attention_d160),
    C(attention_d512),
    C(attention_one),
    C(attention_const),
    SHARP(attention_large),
    C(group_norm),
    C(group_norm_single),
    C(group_norm_wide),
    C(group_norm_parts),
    SHARP(group_norm_parts_offset),
    C(group_norm_rounds),
    C(group_norm_rounds_odd),
    C(group_norm_wide_odd),
    C(group_norm_silu),
    C(group_norm_relu),
    SHARP(group_norm_offset),
    C(layer_norm),
    C(layer_norm_odd),
    C(relu),
    C(silu),
    C(gelu),
    C(sigmoid),
    C(rsqrt),
    C(geglu),
    C(add),
    C(add_relu),
    C(add_channel),
    C(mul_position),
    C(mul_outer),
    C(mul_scalar),
    C(concat),
    C(concat_rows),
    C(concat_many),
    C(slice),
    C(slice_rows),
    C(reshape),
    C(resize_up),
    C(resize_down),
    C(resize_from_one),
    C(nearest),
    C(pool),
    C(pool_repeat),
    C(pad),
    C(flip),
    C(flip_last),
    SHARP(softmax),
    C(softmax_even),
    C(float),
    C(argmax),
    C(heatmap_peaks),
    C(heatmap_peaks_odd),
    C(heatmap_peaks_small),
    C(heatmap_peaks_ties),
    C(heatmap_peaks_nan),
    C(folding),
    C(residual_self),
    C(residual_thin),
    C(deconv2_variable),
    C(conv3_large),
    C(conv3_large_residual),
    C(conv3_large_unpadded),
    C(conv3_larger),
    C(conv3_wide),
    C(conv3_wide_residual),
    C(conv_nearest),
    C(conv_bilinear),
    C(conv_bilinear_uneven),
    C(conv_from_one),
    C(conv_enlarged_residual),
    C(conv_enlarged_pictures),
    C(conv_bilinear_residual),
    C(conv_bilinear_rows),
    C(conv_joined),
    C(conv_joined_residual),
    C(attention_keys),
    C(attention_products),
    C(conv_first_pictures),
    C(linear_alike),
    C(linear_alike_two),
    C(group_norm_parts_wide),
    C(group_norm_held),
    C(attention_d80_keys),
    C(layer_norm_640),
    C(layer_norm_wide),
    C(attention_library), /* LARGE ones last */
#undef C
#undef SHARP
};
/* Cases that take long by the references, and matter to GPUs alone, run where
 * MPIPE_TEST_LARGE is set. */
#define LARGE 1
#define NCASE                                                                  \
    ((int)(sizeof cases / sizeof *cases) -                                     \
     (getenv("MPIPE_TEST_LARGE") ? 0 : LARGE))

/* ---- running ---- */

static const char *backend(void)
{
    const char *b = getenv("MPIPE_TEST_BACKEND");

    return b ? b : "cpu";
}

static int is_index(const struct mp_graph *g, mp_node y)
{
    return g->node[y.id].dtype == MP_I32;
}

static struct mp_graph *build(int i)
{
    struct mp_graph *g = mp_graph_new(NULL);
    struct mp_error err = {0};
    mp_node y;

    state = (uint64_t)i + 1;
    y = cases[i].build(g);
    mp_output(g, "y", narrow && !is_index(g, y) ? soften(g, y) : y);
    ck_assert_msg(!mp_graph_check(g, &err), "%s: %s", cases[i].name, err.text);
    return g;
}

/* Inputs of case i, in the order of the graph; free each. Those of the norms
 * around a narrow case change nothing. */
#define MOST_IN 24
static size_t make_inputs(int i, const struct mp_graph *g, void *in[MOST_IN])
{
    size_t n = 0;

    state = 1000 + (uint64_t)i;
    for (size_t k = 1; k < g->nnode; k++) {
        const struct mp_node_def *d = &g->node[k];
        int64_t count = mp_shape_count(d->ndim, d->dim);

        if (d->op != MP_OP_INPUT)
            continue;
        in[n] = random_data(count, *d->name == 'x' || d->dtype == MP_U8,
                            *d->name == 'w');
        for (int64_t j = 0; d->dtype == MP_U8 && j < count; j++)
            ((uint8_t *)in[n])[j] = (uint8_t)(uniform() * 127 + 128);
        n++;
    }
    return n;
}

/* Node by node, each by its reference. The value of the output; free it. */
static void *evaluate(int i, struct mp_tensor *shape)
{
    struct mp_graph *g = build(i);
    struct mp_value *v = calloc(g->nnode, sizeof *v);
    void **data = calloc(g->nnode, sizeof *data), *in[MOST_IN], *result;
    uint32_t out = g->output[0].node;
    size_t nin = 0;

    make_inputs(i, g, in);
    for (uint32_t k = 1; k < g->nnode; k++) {
        const struct mp_node_def *d = &g->node[k];
        struct mp_step s = {
            .op = d->op, .attr = d->attr, .nin = d->nin, .out = k};
        const void *arg[MP_MAX_IN] = {NULL};

        v[k].dtype = d->dtype;
        v[k].ndim = d->ndim;
        memcpy(v[k].dim, d->dim, sizeof v[k].dim);
        v[k].count = (size_t)mp_shape_count(d->ndim, d->dim);
        data[k] = d->op == MP_OP_INPUT ? in[nin++]
                                       : malloc(v[k].count * sizeof(float));
        for (int j = 0; j < d->nin; j++) {
            s.in[j] = d->in[j] ? d->in[j] : MP_NO_VALUE;
            arg[j] = data[d->in[j]];
        }
        if (d->op == MP_OP_CONST)
            memcpy(data[k], d->data, v[k].count * sizeof(float));
        else if (d->op != MP_OP_INPUT)
            mp_op_table[d->op].ref(&s, v, data[k], arg);
    }
    *shape = (struct mp_tensor){.dtype = v[out].dtype, .ndim = v[out].ndim};
    memcpy(shape->dim, v[out].dim, sizeof shape->dim);
    result = data[out];
    data[out] = NULL;
    for (size_t k = 0; k < g->nnode; k++)
        free(data[k]);
    free(data);
    free(v);
    mp_graph_free(g);
    return result;
}

static void *run(int i, const char *backend, enum mp_precision precision,
                 int threads, struct mp_tensor *shape)
{
    struct mp_graph *g = build(i);
    struct mp_opened o;
    struct mp_error err = {0};
    struct mp_arena arena = {0};
    struct mp_session *s = NULL;
    void *in[MOST_IN] = {NULL}, *out;
    size_t nin = make_inputs(i, g, in), n;

    ck_assert_msg(!mp_devices_open(NULL, &o, backend, precision, threads,
                                   getenv("MPIPE_TEST_AUTOTUNE") != NULL, &err),
                  "%s", err.text);
    arena.backend = o.backend;
    arena.device = o.device;
    ck_assert_msg(!mp_session_new(&s, &arena, g, o.dtype, &err), "%s on %s: %s",
                  cases[i].name, backend, err.text);
    ck_assert_uint_eq(mp_session_inputs(s), nin);
    mp_session_output(s, 0, shape);
    shape->name = NULL;
    n = (size_t)mp_shape_count(shape->ndim, shape->dim);
    out = malloc(n * 4 + 4);
    memset(out, 0xff, n * 4 + 4); /* NaN: what is not written shows */
    for (int twice = 0; twice < 2; twice++)
        ck_assert_msg(!mp_session_run(s, (const void *const *)in,
                                      (void *const[]){out}, &err),
                      "%s", err.text);
    for (size_t k = 0; k < nin; k++)
        free(in[k]);
    mp_session_free(s);
    mp_arena_free(&arena);
    o.backend->close(o.device);
    mp_graph_free(g);
    return out;
}

/* NaN must be NaN. */
static double nmse(const float *got, const float *want, size_t n)
{
    double d = 0, w = 0;

    for (size_t i = 0; i < n; i++) {
        if (isnan(want[i]) && isnan(got[i]))
            continue;
        d += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        w += (double)want[i] * want[i];
    }
    return d / (w > 0 ? w : 1);
}

static const char *mode(enum mp_precision precision)
{
    return precision == MP_PREC_FP32   ? "fp32"
           : precision == MP_PREC_BF16 ? narrow ? "bf16 inside" : "bf16"
                                       : "fp16 inside";
}

static void compare(int i, const char *backend, enum mp_precision precision,
                    double bound)
{
    struct mp_tensor a, b;
    void *want = evaluate(i, &a);
    void *got = run(i, backend, precision, 0, &b);
    size_t n = (size_t)mp_shape_count(a.ndim, a.dim), differ = 0;

    ck_assert_int_eq(a.ndim, b.ndim);
    ck_assert(!memcmp(a.dim, b.dim, (size_t)a.ndim * sizeof *a.dim));
    if (a.dtype == MP_I32) {
        for (size_t k = 0; k < n; k++)
            differ += ((int32_t *)got)[k] != ((int32_t *)want)[k];
        printf("%-24s %-11s %zu of %zu differ\n", cases[i].name,
               mode(precision), differ, n);
        ck_assert_uint_eq(differ, 0);
    } else {
        double e = nmse(got, want, n);

        printf("%-24s %-11s NMSE %.2e (bound %.0e)\n", cases[i].name,
               mode(precision), e, bound);
        ck_assert_msg(e <= bound, "%s: NMSE %g above %g", cases[i].name, e,
                      bound);
    }
    free(want);
    free(got);
}

START_TEST(fp32)
{
    compare(_i, backend(), MP_PREC_FP32, NMSE_F32);
}
END_TEST

/* Rewritten graphs by the references. */
START_TEST(rewritten)
{
    compare(_i, "ref", MP_PREC_FP32, NMSE_F32);
}
END_TEST

static int has(enum mp_precision precision)
{
    struct mp_opened o;
    int rc = mp_device_open(&o, backend(), precision, 1, NULL);

    if (!rc)
        o.backend->close(o.device);
    return !rc;
}

START_TEST(bf16)
{
    if (has(MP_PREC_BF16))
        compare(_i, backend(), MP_PREC_BF16, NMSE_BF16);
    else if (_i == 0)
        printf("SKIP bf16: %s has no arithmetic in it here\n", backend());
}
END_TEST

/* Rounded inputs have other maxima: argmax is not for here. */
static void compare_inside(int i, enum mp_precision precision, double bound)
{
    struct mp_graph *g = build(i);
    int index = g->node[g->output[0].node].dtype == MP_I32;

    mp_graph_free(g);
    narrow = 1;
    if (!index && !cases[i].sharp && has(precision))
        compare(i, backend(), precision, bound);
    narrow = 0;
}

START_TEST(bf16_inside)
{
    compare_inside(_i, MP_PREC_BF16, NMSE_BF16);
}
END_TEST

START_TEST(fp16_inside)
{
    compare_inside(_i, MP_PREC_FP16, NMSE_F16);
}
END_TEST

/* 1 or 2 threads: the same bits. */
START_TEST(threads)
{
    struct mp_tensor a, b;
    void *one = run(_i, backend(), MP_PREC_FP32, 1, &a);
    void *two = run(_i, backend(), MP_PREC_FP32, 2, &b);

    ck_assert_msg(!memcmp(one, two, (size_t)mp_shape_count(a.ndim, a.dim) * 4),
                  "%s: the number of threads changes the result",
                  cases[_i].name);
    free(one);
    free(two);
}
END_TEST

START_TEST(every_op)
{
    uint8_t seen[MP_OP_COUNT] = {0};

    for (int i = 0; i < NCASE; i++) {
        struct mp_graph *g = build(i);

        for (size_t k = 1; k < g->nnode; k++)
            seen[g->node[k].op] = 1;
        mp_graph_free(g);
    }
    for (int op = MP_OP_CONV2D; op < MP_OP_COUNT; op++)
        ck_assert_msg(seen[op], "op %s has no case", mp_op_table[op].name);
}
END_TEST

/* A case of Check each, so that CK_RUN_CASE can choose. MPIPE_TEST_SHARE=I/N:
 * of each the I-th of N parts, I from 1 on, to be run side by side. */
static void add(Suite *s, const char *name, const TTest *test, int n)
{
    const char *share = getenv("MPIPE_TEST_SHARE");
    TCase *t = tcase_create(name);
    int part = 1, parts = 1;

    if (share && (sscanf(share, "%d/%d", &part, &parts) != 2 || part < 1 ||
                  part > parts)) {
        fprintf(stderr, "MPIPE_TEST_SHARE=%s: must be like 1/4\n", share);
        exit(2);
    }
    tcase_set_timeout(t, 60);
    tcase_add_loop_test(t, test, n * (part - 1) / parts, n * part / parts);
    suite_add_tcase(s, t);
}

int main(void)
{
    Suite *s = suite_create("ops");
    SRunner *r = srunner_create(s);
    int failed;

    setvbuf(stdout, NULL, _IOLBF, 0);
    add(s, "every_op", every_op, 1);
    add(s, "fp32", fp32, NCASE);
    add(s, "rewritten", rewritten, NCASE);
    add(s, "bf16", bf16, NCASE);
    add(s, "bf16_inside", bf16_inside, NCASE);
    add(s, "fp16_inside", fp16_inside, NCASE);
    add(s, "threads", threads, NCASE);
    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
