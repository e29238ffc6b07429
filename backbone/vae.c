/* SPDX-License-Identifier: MIT */
/* vae.c - the encoder of the autoencoder: pictures to latents. */
#include <math.h>
#include "backbone.h"

static const int64_t any[MP_RANK] = {-1, -1, -1, -1};

static mp_node norm(struct mp_graph *g, mp_node x, const char *name)
{
    return mp_group_norm_layer(g, x, name, 32, 1e-6f);
}

static mp_node norm_silu(struct mp_graph *g, mp_node x, const char *name)
{
    return mp_act(g, norm(g, x, name), MP_SILU);
}

static mp_node res_block(struct mp_graph *g, mp_node x, const char *name)
{
    mp_node h;

    mp_push(g, "%s.", name);
    h = mp_conv_layer(g, norm_silu(g, x, "norm1"), "conv1", 1, -1);
    h = mp_conv_layer(g, norm_silu(g, h, "norm2"), "conv2", 1, -1);
    if (mp_dim(g, x, -1) != mp_dim(g, h, -1))
        x = mp_conv_layer(g, x, "nin_shortcut", 1, -1);
    mp_pop(g);
    return mp_add(g, x, h);
}

static mp_node tokens(struct mp_graph *g, mp_node x, const char *name)
{
    x = mp_linear_layer(g, x, name);
    return mp_reshape(g, x, 3,
                      (int64_t[]){mp_dim(g, x, 0),
                                  mp_dim(g, x, 1) * mp_dim(g, x, 2),
                                  mp_dim(g, x, 3)});
}

/* One head over all positions. */
static mp_node attention_block(struct mp_graph *g, mp_node x, const char *name)
{
    int64_t n = mp_dim(g, x, 0), h = mp_dim(g, x, 1), w = mp_dim(g, x, 2);
    int64_t c = mp_dim(g, x, 3);
    mp_node y, q, k, v;

    mp_push(g, "%s.", name);
    y = norm(g, x, "norm");
    q = tokens(g, y, "q");
    k = tokens(g, y, "k");
    v = tokens(g, y, "v");
    y = mp_attention(g, q, k, v, 1, (float)(1 / sqrt((double)c)));
    y = mp_reshape(g, y, 4, (int64_t[]){n, h, w, c});
    y = mp_linear_layer(g, y, "proj_out");
    mp_pop(g);
    return mp_add(g, x, y);
}

/* Padded on the right and below only, unlike the UNet's. */
static mp_node halve(struct mp_graph *g, mp_node x)
{
    mp_node w, bias;

    mp_push(g, "downsample.conv.");
    w = mp_weight(g, "weight", 4, any);
    bias = mp_weight(g, "bias", 1, any);
    mp_pop(g);
    return mp_conv2d(g, x, w, bias,
                     (struct mp_conv){.stride = 2, .bottom = 1, .right = 1});
}

/* The second half of the moments, the log-variance, is not computed. */
static mp_node mean(struct mp_graph *g, mp_node x)
{
    mp_node w = mp_weight(g, "quant_conv.weight", 4, any);
    mp_node bias = mp_weight(g, "quant_conv.bias", 1, any);
    int64_t half = mp_dim(g, w, 0) / 2;

    return mp_linear(g, x, mp_slice(g, w, 0, 0, half),
                     mp_slice(g, bias, 0, 0, half));
}

mp_node mp_vae_encode(struct mp_graph *g, const char *prefix, mp_node image)
{
    mp_node x;

    mp_push(g, "%s", prefix);
    mp_push(g, "encoder.");
    x = mp_conv_layer(g, image, "conv_in", 1, -1);
    for (int level = 0; level < 4; level++) {
        mp_push(g, "down.%d.", level);
        x = res_block(g, x, "block.0");
        x = res_block(g, x, "block.1");
        if (level < 3)
            x = halve(g, x);
        mp_pop(g);
    }
    x = res_block(g, x, "mid.block_1");
    x = attention_block(g, x, "mid.attn_1");
    x = res_block(g, x, "mid.block_2");
    x = mp_conv_layer(g, norm_silu(g, x, "norm_out"), "conv_out", 1, -1);
    mp_pop(g);
    x = mean(g, x);
    mp_pop(g);
    return x;
}
