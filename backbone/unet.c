/* SPDX-License-Identifier: MIT */
/* unet.c - one pass through the denoising UNet, its four maps tapped. */
#include <math.h>
#include "backbone.h"

struct pass {
    struct mp_graph *g;
    int heads;
    mp_node step;    /* SiLU of the step vector, 1,E or N,E */
    mp_node context; /* T,D or N,T,D */
};

static mp_node norm_silu(struct mp_graph *g, mp_node x, const char *name)
{
    return mp_act(g, mp_group_norm_layer(g, x, name, 32, 1e-5f), MP_SILU);
}

static mp_node res_block(const struct pass *p, mp_node x, const char *name)
{
    struct mp_graph *g = p->g;
    mp_node h, e;

    mp_push(g, "%s.", name);
    h = mp_conv_layer(g, norm_silu(g, x, "in_layers.0"), "in_layers.2", 1, -1);
    e = mp_linear_layer(g, p->step, "emb_layers.1");
    e = mp_reshape(g, e, 4,
                   (int64_t[]){mp_dim(g, e, 0), 1, 1, mp_dim(g, e, 1)});
    h = norm_silu(g, mp_add(g, h, e), "out_layers.0");
    h = mp_conv_layer(g, h, "out_layers.3", 1, -1);
    if (mp_dim(g, x, -1) != mp_dim(g, h, -1))
        x = mp_conv_layer(g, x, "skip_connection", 1, -1);
    mp_pop(g);
    return mp_add(g, x, h);
}

/* x N,T,C attends to y: N,T,C itself, or the context. */
static mp_node attend(const struct pass *p, mp_node x, mp_node y,
                      const char *name)
{
    struct mp_graph *g = p->g;
    mp_node q, k, v;
    int64_t c;

    mp_push(g, "%s.", name);
    q = mp_linear_layer(g, x, "to_q");
    k = mp_linear_layer(g, y, "to_k");
    v = mp_linear_layer(g, y, "to_v");
    c = mp_dim(g, q, -1);
    if (mp_ndim(g, y) == 2) { /* the same for all pictures */
        const int64_t dim[3] = {1, mp_dim(g, y, 0), c};

        k = mp_reshape(g, k, 3, dim);
        v = mp_reshape(g, v, 3, dim);
    }
    x = mp_attention(g, q, k, v, p->heads,
                     (float)(1 / sqrt((double)c / p->heads)));
    x = mp_linear_layer(g, x, "to_out.0");
    mp_pop(g);
    return x;
}

static mp_node feed_forward(struct mp_graph *g, mp_node x)
{
    x = mp_geglu(g, mp_linear_layer(g, x, "ff.net.0.proj"));
    return mp_linear_layer(g, x, "ff.net.2");
}

static mp_node transformer(const struct pass *p, mp_node x, const char *name)
{
    struct mp_graph *g = p->g;
    int64_t n = mp_dim(g, x, 0), h = mp_dim(g, x, 1), w = mp_dim(g, x, 2);
    mp_node t, y;
    int64_t c;

    mp_push(g, "%s.", name);
    t = mp_linear_layer(g, mp_group_norm_layer(g, x, "norm", 32, 1e-6f),
                        "proj_in");
    c = mp_dim(g, t, -1);
    t = mp_reshape(g, t, 3, (int64_t[]){n, h * w, c});
    mp_push(g, "transformer_blocks.0.");
    y = mp_layer_norm_layer(g, t, "norm1");
    t = mp_add(g, t, attend(p, y, y, "attn1"));
    y = mp_layer_norm_layer(g, t, "norm2");
    t = mp_add(g, t, attend(p, y, p->context, "attn2"));
    y = mp_layer_norm_layer(g, t, "norm3");
    t = mp_add(g, t, feed_forward(g, y));
    mp_pop(g);
    t = mp_reshape(g, t, 4, (int64_t[]){n, h, w, c});
    t = mp_linear_layer(g, t, "proj_out");
    mp_pop(g);
    return mp_add(g, x, t);
}

/* Blocks 0..11; what each gives is kept for the way up. */
static mp_node go_down(const struct pass *p, mp_node x, mp_node skip[12])
{
    struct mp_graph *g = p->g;

    for (int i = 0; i < 12; i++) {
        mp_push(g, "input_blocks.%d.", i);
        if (i == 0) {
            x = mp_conv_layer(g, x, "0", 1, -1);
        } else if (i % 3 == 0) {
            x = mp_conv_layer(g, x, "0.op", 2, -1);
        } else {
            x = res_block(p, x, "0");
            if (i < 9)
                x = transformer(p, x, "1");
        }
        mp_pop(g);
        skip[i] = x;
    }
    return x;
}

/* Of odd sizes the way down rounded up, so that the skip may be smaller. */
static mp_node join(struct mp_graph *g, mp_node x, mp_node skip)
{
    skip = mp_resize_bilinear(g, skip, mp_dim(g, x, 1), mp_dim(g, x, 2));
    return mp_concat(g, (mp_node[]){x, skip}, 2, -1);
}

static mp_node twice(struct mp_graph *g, mp_node x, const char *name)
{
    x = mp_resize_nearest(g, x, 2 * mp_dim(g, x, 1), 2 * mp_dim(g, x, 2));
    return mp_conv_layer(g, x, name, 1, -1);
}

static void go_up(const struct pass *p, mp_node x, const mp_node skip[12],
                  mp_node map[4])
{
    struct mp_graph *g = p->g;

    for (int i = 0; i < 12; i++) {
        int level = 3 - i / 3; /* 0 is the finest */

        mp_push(g, "output_blocks.%d.", i);
        x = res_block(p, join(g, x, skip[11 - i]), "0");
        if (level < 3)
            x = transformer(p, x, "1");
        if (i % 3 == 2 && level > 0)
            x = twice(g, x, level < 3 ? "2.conv" : "1.conv");
        mp_pop(g);
        if (i == (level > 0 ? 10 - 3 * level : 11))
            map[level] = x;
    }
}

void mp_unet(struct mp_graph *g, const char *prefix, int heads, mp_node latents,
             mp_node step, mp_node context, mp_node map[4])
{
    struct pass p = {g, heads, mp_act(g, step, MP_SILU), context};
    mp_node skip[12], x;

    mp_push(g, "%s", prefix);
    x = go_down(&p, latents, skip);
    mp_push(g, "middle_block.");
    x = res_block(&p, x, "0");
    x = transformer(&p, x, "1");
    x = res_block(&p, x, "2");
    mp_pop(g);
    go_up(&p, x, skip, map);
    mp_pop(g);
}

mp_node mp_unet_out(struct mp_graph *g, const char *name, mp_node map)
{
    mp_push(g, "%s.", name);
    map = mp_conv_layer(g, norm_silu(g, map, "0"), "2", 1, -1);
    mp_pop(g);
    return map;
}
