/* SPDX-License-Identifier: MIT */
/* depth.c - monocular depth: one distance in metres per pixel. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "mpipe/plugin.h"

enum { SIZE_INPUT, SIZE_NETWORK };

struct conf {
    double max_depth;
    int32_t resize_scale;
    int32_t size;
    int32_t png_scale; /* units per metre; -1: auto */
    double color_min, color_max;
};

#define OPT(id, kind, def, least, most, words, unit, help)                     \
    {                                                                          \
#id, MP_OPT_##kind, offsetof(struct conf, id), def, least, most,       \
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
    OPT(color_min, FLOAT, "0", 0, 1000, NULL, "m",
        "Depth at the red end of the colours"),
    OPT(color_max, FLOAT, "0", 0, 1000, NULL, "m",
        "Depth at the violet end of the colours; 0 is max_depth"),
    {0}
};
/* clang-format on */

static double color_end(const struct conf *c)
{
    return c->color_max > 0 ? c->color_max : c->max_depth;
}

static int check(const void *conf, struct mp_error *err)
{
    const struct conf *c = conf;

    if (c->color_min >= color_end(c))
        return mp_fail(err, MP_EINVAL,
                       "color_min %g m is not below color_max %g m",
                       c->color_min, color_end(c));
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
    int64_t more = ((const struct conf *)conf)->resize_scale;
    int64_t h = (mp_dim(g, pixels, 1) / 64 + more) * 64;
    int64_t w = (mp_dim(g, pixels, 2) / 64 + more) * 64;
    mp_node x = mp_add(g, pixels, mp_scalar(g, -127.5f));

    x = mp_mul(g, x, mp_scalar(g, 1 / 127.5f));
    return mp_resize_bilinear(g, x, h, w);
}

static mp_node build(const void *conf, struct mp_graph *g,
                     const struct mp_features *f)
{
    double max_depth = ((const struct conf *)conf)->max_depth;
    mp_node x = mp_prompt_maps(g, f);

    x = mp_resize_bilinear(g, x, f->view_h / 8, f->view_w / 8);
    x = mp_upsample_layers(g, x, "decoder.deconv_layers", 3);
    x = mp_conv_layer(g, x, "decoder.conv_layers.0", 1, -1);
    x = mp_act(g, mp_batch_norm_layer(g, x, "decoder.conv_layers.1"), MP_RELU);
    x = mp_act(g, mp_conv_layer(g, x, "last_layer_depth.0", 1, -1), MP_RELU);
    x = mp_conv_layer(g, x, "last_layer_depth.2", 1, -1);
    return mp_mul(g, mp_act(g, x, MP_SIGMOID), mp_scalar(g, (float)max_depth));
}

static mp_node merge(const void *conf, struct mp_graph *g,
                     const struct mp_merge *m)
{
    const struct conf *c = conf;
    mp_node x = m->out[0];

    if (c->size == SIZE_INPUT)
        x = mp_resize_bilinear(g, x, m->img->height, m->img->width);
    x = mp_reshape(g, x, 2, (int64_t[]){mp_dim(g, x, 1), mp_dim(g, x, 2)});
    mp_output(g, "depth", x);
    return x;
}

/* ---- results ---- */

static int no_memory(struct mp_error *err)
{
    return mp_fail(err, MP_ENOMEM, "out of memory");
}

/* x cut off, kept in 0..most; NaN is 0. */
static double trunc_to(float x, double most)
{
    return x > 0 ? fmin(trunc((double)x), most) : 0;
}

static int put_png16(const struct conf *c, const struct mp_tensor *t,
                     struct mp_sink *sink, struct mp_error *err)
{
    int scale = c->png_scale > 0     ? c->png_scale
                : c->max_depth <= 65 ? 1000
                                     : 256;
    size_t n = (size_t)t->dim[0] * (size_t)t->dim[1];
    uint16_t *px = malloc(n * sizeof *px);
    const float *depth = t->data;
    char number[16], comment[80];
    struct mp_png_text text[] = {{"depth_scale", number}, {"Comment", comment}};
    struct mp_png png = {.width = (int32_t)t->dim[1],
                         .height = (int32_t)t->dim[0],
                         .channels = 1,
                         .bits = 16,
                         .px = px,
                         .text = text,
                         .ntext = 2};
    int rc;

    if (!px)
        return no_memory(err);
    snprintf(number, sizeof number, "%d", scale);
    snprintf(comment, sizeof comment, "depth in metres = value / %d", scale);
    for (size_t i = 0; i < n; i++)
        px[i] = (uint16_t)trunc_to(depth[i] * (float)scale, 65535);
    rc = mp_sink_png(sink, "png16", &png, err);
    free(px);
    return rc;
}

static int put_color(const struct conf *c, const struct mp_tensor *t,
                     struct mp_sink *sink, struct mp_error *err)
{
    float from = (float)c->color_min, span = (float)color_end(c) - from;
    size_t n = (size_t)t->dim[0] * (size_t)t->dim[1];
    uint8_t *px = malloc(n);
    const float *depth = t->data;
    char first[16], last[16];
    struct mp_png_text text[] = {{"color_min", first}, {"color_max", last}};
    struct mp_png png = {.width = (int32_t)t->dim[1],
                         .height = (int32_t)t->dim[0],
                         .channels = 1,
                         .bits = 8,
                         .px = px,
                         .palette = mp_colormap_rainbow()[0],
                         .ncolor = 256,
                         .text = text,
                         .ntext = 2};
    int rc;

    if (!px)
        return no_memory(err);
    snprintf(first, sizeof first, "%g", c->color_min);
    snprintf(last, sizeof last, "%g", color_end(c));
    for (size_t i = 0; i < n; i++)
        px[i] = (uint8_t)trunc_to((depth[i] - from) / span * 255, 255);
    rc = mp_sink_png(sink, "color", &png, err);
    free(px);
    return rc;
}

static int decode(const void *conf, const struct mp_image *img,
                  const struct mp_tensor *result, size_t n,
                  struct mp_sink *sink, struct mp_error *err)
{
    int rc = 0;

    (void)img;
    (void)n;
    if (mp_sink_wants(sink, "png16"))
        rc = put_png16(conf, result, sink, err);
    if (!rc && mp_sink_wants(sink, "color"))
        rc = put_color(conf, result, sink, err);
    if (!rc && mp_sink_wants(sink, "npy"))
        rc = mp_sink_npy(sink, "npy", result, err);
    return rc;
}

MP_PLUGIN(depth) = {
    .abi = MP_PLUGIN_ABI,
    .size = sizeof(struct mp_plugin),
    .name = "depth",
    .summary = "monocular depth in metres",
    .formats = "png16 color : npy",
    .options = options,
    .conf_size = sizeof(struct conf),
    .check = check,
    .views = views,
    .input = input,
    .build = build,
    .merge = merge,
    .decode = decode,
};
