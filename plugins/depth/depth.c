/* SPDX-License-Identifier: MIT */
/* depth.c - monocular depth: one distance in metres per pixel. */
#include <stdio.h>
#include "depth.h"

#define OPT(id, kind, def, least, most, words, unit, help)                     \
    {                                                                          \
#id, MP_OPT_##kind, offsetof(struct depth_conf, id), def, least, most, \
            words, unit, help                                                  \
    }

/* clang-format off */
static const struct mp_option options[] = {
    OPT(max_depth, FLOAT, "10", 0.1, 255, NULL, "m",
        "Largest depth; the checkpoint was trained for one and does not tell"),
    OPT(resize_scale, INT, "1", 0, 8, NULL, NULL,
        "The network sees sides of (n / 64 + this) * 64 pixels"),
    OPT(size, CHOICE, "input", 0, 0, "input network", NULL,
        "Size of the results: the picture's, or 8 * (side / 8)"),
    OPT(png_scale, INT, "auto", 1, 65535, "auto", "1/m",
        "Units per metre of the 16-bit PNG; auto is 1000 if max_depth is at "
        "most 65 m, else 256"),
    OPT(color_map, CHOICE, "rainbow", 0, 0, COLOR_MAPS, NULL,
        "Colours of depth; the first of rainbow is red"),
    OPT(color_reverse, BOOL, "no", 0, 0, NULL, NULL,
        "Give the last colour, not the first, to the smallest depth"),
    OPT(color_min, FLOAT, "0", 0, 1000, NULL, "m",
        "Smallest depth of the colours"),
    OPT(color_max, FLOAT, "0", 0, 1000, NULL, "m",
        "Largest depth of the colours; 0 is max_depth"),
    {0}
};
/* clang-format on */

static int check(const void *conf, struct mp_error *err)
{
    const struct depth_conf *c = conf;

    if (c->color_min >= depth_color_end(c))
        return mp_fail(err, MP_EINVAL,
                       "color_min %g m is not below color_max %g m",
                       c->color_min, depth_color_end(c));
    return 0;
}

/* The whole picture; sides below that of one output block are enlarged. */
static long views(const void *conf, const struct mp_image *img,
                  struct mp_view *view, size_t cap, struct mp_error *err)
{
    int32_t w = img->width < 8 ? 8 : img->width;
    int32_t h = img->height < 8 ? 8 : img->height;

    (void)conf;
    (void)err;
    if (cap)
        *view = (struct mp_view){.scaled_w = w, .scaled_h = h, .w = w, .h = h};
    return 1;
}

/* ---- network ---- */

static mp_node input(const void *conf, struct mp_graph *g, mp_node pixels)
{
    int64_t more = ((const struct depth_conf *)conf)->resize_scale;
    int64_t h = (mp_dim(g, pixels, 1) / 64 + more) * 64;
    int64_t w = (mp_dim(g, pixels, 2) / 64 + more) * 64;
    mp_node x = mp_add(g, pixels, mp_scalar(g, -127.5f));

    x = mp_mul(g, x, mp_scalar(g, 1 / 127.5f));
    return mp_resize_bilinear(g, x, h, w);
}

/* `stages` times twice the size, then a convolution. */
static mp_node up(struct mp_graph *g, mp_node x, int stages)
{
    char name[32];

    for (int i = 0; i < stages; i++) {
        snprintf(name, sizeof name, "deconv_layers.%d", 3 * i);
        x = mp_deconv_layer(g, x, name);
        snprintf(name, sizeof name, "deconv_layers.%d", 3 * i + 1);
        x = mp_act(g, mp_batch_norm_layer(g, x, name), MP_RELU);
    }
    x = mp_conv_layer(g, x, "conv_layers.0", 1, -1);
    return mp_act(g, mp_batch_norm_layer(g, x, "conv_layers.1"), MP_RELU);
}

static mp_node conv_norm_relu(struct mp_graph *g, mp_node x)
{
    x = mp_conv_layer(g, x, "0", 1, -1);
    return mp_act(g, mp_group_norm_layer(g, x, "1", 16, 1e-5f), MP_RELU);
}

/* All four maps at the size of the latents. */
static mp_node join(struct mp_graph *g, const mp_node map[4])
{
    mp_node x[4];

    for (int i = 0; i < 4; i++) {
        mp_push(g, "encoder.layer%d.", i + 1);
        x[i] = i ? up(g, map[i], i) : conv_norm_relu(g, map[i]);
        mp_pop(g);
    }
    return mp_concat(g, x, 4, -1);
}

static mp_node build(const void *conf, struct mp_graph *g,
                     const struct mp_features *f)
{
    double max_depth = ((const struct depth_conf *)conf)->max_depth;
    mp_node x = join(g, f->map);

    mp_push(g, "encoder.out_layer.");
    x = conv_norm_relu(g, x);
    mp_pop(g);
    x = mp_linear(g, x, f->prompts, (mp_node){0});
    x = mp_resize_bilinear(g, x, f->view_h / 8, f->view_w / 8);
    mp_push(g, "decoder.");
    x = up(g, x, 3);
    mp_pop(g);
    x = mp_act(g, mp_conv_layer(g, x, "last_layer_depth.0", 1, -1), MP_RELU);
    x = mp_conv_layer(g, x, "last_layer_depth.2", 1, -1);
    return mp_mul(g, mp_act(g, x, MP_SIGMOID), mp_scalar(g, (float)max_depth));
}

static mp_node merge(const void *conf, struct mp_graph *g,
                     const struct mp_merge *m)
{
    const struct depth_conf *c = conf;
    mp_node x = m->out[0];

    if (c->size == SIZE_INPUT)
        x = mp_resize_bilinear(g, x, m->img->height, m->img->width);
    x = mp_reshape(g, x, 2, (int64_t[]){mp_dim(g, x, 1), mp_dim(g, x, 2)});
    mp_output(g, "depth", x);
    return x;
}

MP_PLUGIN(depth) = {
    .abi = MP_PLUGIN_ABI,
    .size = sizeof(struct mp_plugin),
    .name = "depth",
    .summary = "monocular depth in metres",
    .formats = "png16 color : npy vis",
    .options = options,
    .conf_size = sizeof(struct depth_conf),
    .check = check,
    .views = views,
    .input = input,
    .build = build,
    .merge = merge,
    .decode = depth_write,
};
