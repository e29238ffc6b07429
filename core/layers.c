/* SPDX-License-Identifier: MIT */
/* layers.c - primitives together with the weights of a named layer. */
#include <stdio.h>
#include "mpipe/graph.h"

static const int64_t any[MP_RANK] = {-1, -1, -1, -1};

static mp_node vector(struct mp_graph *g, const char *tail)
{
    return mp_weight(g, tail, 1, any);
}

/* NAME.bias, or none if the checkpoint has none. */
static mp_node bias_of(struct mp_graph *g)
{
    return mp_weight_shape(g, "bias", NULL) < 0 ? (mp_node){0}
                                                : vector(g, "bias");
}

mp_node mp_conv_layer(struct mp_graph *g, mp_node x, const char *name,
                      int stride, int pad)
{
    struct mp_conv p = {.stride = stride};
    mp_node w, bias;

    mp_push(g, "%s.", name);
    w = mp_weight(g, "weight", 4, any);
    bias = bias_of(g);
    mp_pop(g);
    p.top = p.bottom = pad < 0 ? (int32_t)(mp_dim(g, w, 2) - 1) / 2 : pad;
    p.left = p.right = pad < 0 ? (int32_t)(mp_dim(g, w, 3) - 1) / 2 : pad;
    return mp_conv2d(g, x, w, bias, p);
}

mp_node mp_deconv_layer(struct mp_graph *g, mp_node x, const char *name)
{
    mp_node w, bias;
    int64_t k;

    mp_push(g, "%s.", name);
    w = mp_weight(g, "weight", 4, any);
    bias = bias_of(g);
    mp_pop(g);
    k = mp_dim(g, w, 2);
    if (w.id && (k < 2 || k > 4))
        mp_graph_fail(g, "%s: a transposed kernel of %d, not 2, 3 or 4", name,
                      (int)k);
    return mp_deconv2d(g, x, w, bias, 2, k > 2, k == 3);
}

mp_node mp_linear_layer(struct mp_graph *g, mp_node x, const char *name)
{
    mp_node w, bias;

    mp_push(g, "%s.", name);
    w = mp_weight(g, "weight", mp_weight_shape(g, "weight", NULL) == 4 ? 4 : 2,
                  any);
    bias = bias_of(g);
    mp_pop(g);
    return mp_linear(g, x, w, bias);
}

mp_node mp_group_norm_layer(struct mp_graph *g, mp_node x, const char *name,
                            int groups, float eps)
{
    mp_node w, b;

    mp_push(g, "%s.", name);
    w = vector(g, "weight");
    b = vector(g, "bias");
    mp_pop(g);
    return mp_group_norm(g, x, w, b, groups, eps);
}

mp_node mp_layer_norm_layer(struct mp_graph *g, mp_node x, const char *name)
{
    mp_node w, b;

    mp_push(g, "%s.", name);
    w = vector(g, "weight");
    b = vector(g, "bias");
    mp_pop(g);
    return mp_layer_norm(g, x, w, b, 1e-5f);
}

mp_node mp_batch_norm_layer(struct mp_graph *g, mp_node x, const char *name)
{
    mp_node w, b, mean, var;

    mp_push(g, "%s.", name);
    w = vector(g, "weight");
    b = vector(g, "bias");
    mean = vector(g, "running_mean");
    var = vector(g, "running_var");
    mp_pop(g);
    return mp_batch_norm(g, x, w, b, mean, var, 1e-5f);
}

mp_node mp_upsample_layers(struct mp_graph *g, mp_node x, const char *name,
                           int stages)
{
    char layer[16];

    mp_push(g, "%s.", name);
    for (int i = 0; i < stages; i++) {
        snprintf(layer, sizeof layer, "%d", 3 * i);
        x = mp_deconv_layer(g, x, layer);
        snprintf(layer, sizeof layer, "%d", 3 * i + 1);
        x = mp_act(g, mp_batch_norm_layer(g, x, layer), MP_RELU);
    }
    mp_pop(g);
    return x;
}
