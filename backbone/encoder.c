/* SPDX-License-Identifier: MIT */
/* encoder.c - the maps of all levels to one, for heads that want one. */
#include "mpipe/plugin.h"

static mp_node conv_norm_relu(struct mp_graph *g, mp_node x)
{
    x = mp_conv_layer(g, x, "0", 1, -1);
    return mp_act(g, mp_group_norm_layer(g, x, "1", 16, 1e-5f), MP_RELU);
}

/* A map of the level `stages` below the finest, at the size of the finest. */
static mp_node up(struct mp_graph *g, mp_node x, int stages)
{
    x = mp_upsample_layers(g, x, "deconv_layers", stages);
    x = mp_conv_layer(g, x, "conv_layers.0", 1, -1);
    return mp_act(g, mp_batch_norm_layer(g, x, "conv_layers.1"), MP_RELU);
}

mp_node mp_prompt_maps(struct mp_graph *g, const struct mp_features *f)
{
    mp_node x[4];

    for (int i = 0; i < 4; i++) {
        mp_push(g, "encoder.layer%d.", i + 1);
        x[i] = i ? up(g, f->map[i], i) : conv_norm_relu(g, f->map[i]);
        mp_pop(g);
    }
    mp_push(g, "encoder.out_layer.");
    x[0] = conv_norm_relu(g, mp_concat(g, x, 4, -1));
    mp_pop(g);
    return mp_linear(g, x[0], f->prompts, (mp_node){0});
}
