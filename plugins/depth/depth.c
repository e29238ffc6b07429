/* SPDX-License-Identifier: MIT */
/* depth.c - monocular depth: one distance in metres per pixel. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
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
    OPT(crop, CHOICE, "none", 0, 0, "none kb", NULL,
        "Part of the picture to look at: all, or the 1216 x 352 pixels in "
        "the middle of the bottom that KITTI is evaluated on"),
    OPT(windows, INT, "1", 1, 64, NULL, NULL,
        "Look at a picture that is wider than high through this many square "
        "windows; 1: at once"),
    OPT(faithful, BOOL, "no", 0, 0, NULL, NULL,
        "Place windows exactly as published, even if columns stay without "
        "depth; no: add windows up to the right border"),
    OPT(flip, BOOL, "no", 0, 0, NULL, NULL,
        "Average with the mirror image of each view"),
    OPT(size, CHOICE, "input", 0, 0, "input network", NULL,
        "Size of the results: the picture's, or 8 * (side / 8) of the part "
        "looked at"),
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

/* ---- views ---- */

#define SMALLEST 8 /* side of one output block, pixels */
#define KB_W     1216
#define KB_H     352

/* The part of the picture that is looked at, as one view. */
static int frame(struct mp_view *v, const struct depth_conf *c,
                 const struct mp_image *img, struct mp_error *err)
{
    int32_t w = img->width, h = img->height;

    *v = (struct mp_view){.w = w < SMALLEST ? SMALLEST : w,
                          .h = h < SMALLEST ? SMALLEST : h};
    v->scaled_w = v->w;
    v->scaled_h = v->h;
    if (c->crop == CROP_NONE)
        return 0;
    if (w < KB_W || h < KB_H)
        return mp_fail(err, MP_EINVAL,
                       "crop = kb takes %d x %d pixels out of a picture, this "
                       "one has only %d x %d",
                       KB_W, KB_H, (int)w, (int)h);
    v->x = (w - KB_W) / 2;
    v->y = h - KB_H;
    v->w = KB_W;
    v->h = KB_H;
    return 0;
}

/* Windows of the height of the frame, `step` columns apart, and how many. */
static int32_t window_count(int32_t *step, const struct depth_conf *c,
                            const struct mp_view *v)
{
    int32_t room = v->w - v->h;

    *step = 0;
    if (c->windows == 1 || room <= 0)
        return 1;
    *step = room / (c->windows - 1);
    if (c->faithful)
        return c->windows;
    if (*step > v->h)
        *step = v->h;
    if (*step < 1)
        *step = 1;
    return (room + *step - 1) / *step + 1;
}

/* Each window, and behind each its mirror image. */
static long views(const void *conf, const struct mp_image *img,
                  struct mp_view *view, size_t cap, struct mp_error *err)
{
    const struct depth_conf *c = conf;
    struct mp_view all, v;
    int32_t step, n;
    size_t at = 0;
    int rc = frame(&all, c, img, err);

    if (rc)
        return rc;
    v = all;
    n = window_count(&step, c, &all);
    if (n > 1)
        v.w = v.h;
    for (int32_t i = 0; i < n; i++) {
        int32_t most = all.w - v.w;

        v.x = all.x + (i * step < most ? i * step : most);
        for (v.mirror = 0; v.mirror <= c->flip; v.mirror++, at++)
            if (at < cap)
                view[at] = v;
    }
    return (long)at;
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

static mp_node build(const void *conf, struct mp_graph *g,
                     const struct mp_features *f)
{
    double max_depth = ((const struct depth_conf *)conf)->max_depth;
    mp_node x = mp_prompt_maps(g, f);

    x = mp_resize_bilinear(g, x, f->view_h / 8, f->view_w / 8);
    x = mp_upsample_layers(g, x, "decoder.deconv_layers", 3);
    x = mp_conv_layer(g, x, "decoder.conv_layers.0", 1, -1);
    x = mp_act(g, mp_batch_norm_layer(g, x, "decoder.conv_layers.1"), MP_RELU);
    x = mp_act(g, mp_conv_layer(g, x, "last_layer_depth.0", 1, -1), MP_RELU);
    x = mp_conv_layer(g, x, "last_layer_depth.2", 1, -1);
    return mp_mul(g, mp_act(g, x, MP_SIGMOID), mp_scalar(g, (float)max_depth));
}

/* ---- merge ---- */

/* Views of one window: itself, and its mirror image if that is asked for. */
static size_t looks(const struct mp_merge *m)
{
    return m->nview > 1 && m->view[1].mirror ? 2 : 1;
}

/* The map of view i, the mean with that of its mirror image behind it. */
static mp_node one_window(struct mp_graph *g, const struct mp_merge *m,
                          size_t i)
{
    mp_node x = m->out[i];

    if (looks(m) == 1)
        return x;
    x = mp_add(g, x, mp_flip(g, m->out[i + 1], 2));
    return mp_mul(g, x, mp_scalar(g, 0.5f));
}

/* The columns (axis 2) or rows (axis 1) of x times as many factors, where 0
 * stands for no depth; frees them. */
static mp_node scale(struct mp_graph *g, mp_node x, int axis, float *factor)
{
    int64_t dim[4] = {1, 1, 1, 1};

    if (!factor) {
        mp_graph_fail(g, "out of memory");
        return (mp_node){0};
    }
    dim[axis] = mp_dim(g, x, axis);
    for (int64_t i = 0; i < dim[axis]; i++)
        factor[i] = factor[i] > 0 ? factor[i] : NAN;
    x = mp_mul(g, x, mp_const(g, 4, dim, factor));
    free(factor);
    return x;
}

/* Columns of a window that count: all, but where the last window is less than
 * a step from the one before, because it was moved back to the border, those
 * that no other has. So all others are as published. */
static int32_t skipped(const struct mp_merge *m, size_t i)
{
    size_t n = looks(m);
    const struct mp_view *v = &m->view[i];

    if (i + n < m->nview || i < 2 * n ||
        v->x - m->view[i - n].x == m->view[n].x - m->view[0].x)
        return 0;
    return m->view[i - n].x + v->w - v->x;
}

/* The mean of all windows that hold a column. */
static mp_node average(struct mp_graph *g, const struct mp_merge *m,
                       const struct mp_view *all)
{
    float *share = calloc((size_t)all->w, sizeof *share);
    mp_node sum = {0};

    for (size_t i = 0; i < m->nview; i += looks(m)) {
        const struct mp_view *v = &m->view[i];
        int32_t skip = skipped(m, i), left = v->x - all->x + skip;
        mp_node x = one_window(g, m, i);

        x = mp_resize_bilinear(g, x, v->h, v->w);
        if (skip)
            x = mp_slice(g, x, 2, skip, v->w - skip);
        x = mp_pad(g, x, 0, left, all->h, all->w);
        sum = i ? mp_add(g, sum, x) : x;
        for (int32_t k = left; share && k < left + v->w - skip; k++)
            share[k]++;
    }
    for (int32_t k = 0; share && k < all->w; k++)
        share[k] = share[k] > 0 ? 1 / share[k] : 0;
    return scale(g, sum, 2, share);
}

/* 1 for n of `size` places, 0 for the others. */
static float *inside(int32_t size, int32_t first, int32_t n)
{
    float *factor = calloc((size_t)size, sizeof *factor);

    for (int32_t i = first; factor && i < first + n; i++)
        factor[i] = 1;
    return factor;
}

/* The part that was looked at in the picture; no depth around it. */
static mp_node put_back(struct mp_graph *g, mp_node x,
                        const struct mp_view *all)
{
    int32_t w = all->scaled_w, h = all->scaled_h;

    x = mp_resize_bilinear(g, x, all->h, all->w);
    x = mp_pad(g, x, all->y, all->x, h, w);
    x = scale(g, x, 1, inside(h, all->y, all->h));
    return scale(g, x, 2, inside(w, all->x, all->w));
}

static mp_node merge(const void *conf, struct mp_graph *g,
                     const struct mp_merge *m)
{
    const struct depth_conf *c = conf;
    struct mp_error err = {0};
    struct mp_view all;
    mp_node x;

    if (frame(&all, c, m->img, &err)) {
        mp_graph_fail(g, "%s", err.text);
        return (mp_node){0};
    }
    x = m->nview > looks(m) ? average(g, m, &all) : one_window(g, m, 0);
    if (c->size == SIZE_NETWORK)
        x = mp_resize_bilinear(g, x, all.h / 8 * 8, all.w / 8 * 8);
    else if (c->crop == CROP_NONE)
        x = mp_resize_bilinear(g, x, m->img->height, m->img->width);
    else
        x = put_back(g, x, &all);
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
    .describe = depth_describe,
};
