/* SPDX-License-Identifier: MIT */
/*
 * upernet.c - semantic segmentation: the prompt maps of four levels through a
 * pyramid-pooling feature-pyramid head, one class per pixel.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "mpipe/plugin.h"

enum { WHOLE, SLIDE };

struct conf {
    int32_t mode;
    int32_t crop[2], stride[2]; /* height, width */
    int32_t scale[2];           /* -1: none */
    char *ratios;
    int32_t flip;
    double opacity;
};

#define OPT(id, kind, def, least, most, words, unit, help)                     \
    {                                                                          \
#id, MP_OPT_##kind, offsetof(struct conf, id), def, least, most,       \
            words, unit, help                                                  \
    }

/* clang-format off */
static const struct mp_option options[] = {
    OPT(mode, CHOICE, "whole", 0, 0, "whole slide", NULL,
        "Feed the whole picture, or windows whose results are averaged"),
    OPT(crop, SIZE, "512x512", 8, 8192, NULL, "px",
        "Height x width of a window"),
    OPT(stride, SIZE, "341x341", 1, 8192, NULL, "px",
        "Step between windows, down x across; at most crop"),
    OPT(scale, SIZE, "none", 1, 65536, "none", "px",
        "Fit the picture into this box first, in either orientation, "
        "keeping its shape"),
    OPT(ratios, STRING, "1", 0, 0, NULL, NULL,
        "Of scale, or without one of the picture: it is looked at in each "
        "size, and the probabilities are averaged"),
    OPT(flip, BOOL, "no", 0, 0, NULL, NULL,
        "Look at its mirror image in every size, too"),
    OPT(opacity, FLOAT, "0.5", 0, 1, NULL, NULL,
        "Of the class colours in the overlay"),
    {0}
};
/* clang-format on */

#define RATIOS_MAX 16

/* The numbers in ratios: how many, or 0 if that is no list of them. */
static int list_ratios(double ratio[RATIOS_MAX], const char *text)
{
    int n = 0;

    for (char *end; *(text += strspn(text, " ")); text = end) {
        double x = strtod(text, &end);

        if (end == text || (*end && *end != ' ') || n == RATIOS_MAX ||
            !(x >= 0.1 && x <= 10))
            return 0;
        ratio[n++] = x;
    }
    return n;
}

static int check(const void *conf, struct mp_error *err)
{
    const struct conf *c = conf;
    double unused[RATIOS_MAX];

    if (!list_ratios(unused, c->ratios))
        return mp_fail(err, MP_EINVAL,
                       "ratios = %s: not 1 to %d numbers from 0.1 to 10, "
                       "separated by blanks",
                       c->ratios, RATIOS_MAX);
    if (c->stride[0] > c->crop[0] || c->stride[1] > c->crop[1])
        return mp_fail(err, MP_EINVAL,
                       "stride %dx%d is larger than crop %dx%d: pixels would "
                       "be left out",
                       (int)c->stride[0], (int)c->stride[1], (int)c->crop[0],
                       (int)c->crop[1]);
    return 0;
}

/* ---- views ---- */

#define SMALLEST 8 /* side that the encoder can take, pixels */

static int32_t at_least(int32_t n)
{
    return n < SMALLEST ? SMALLEST : n;
}

/* The picture fitted into the box times ratio, in whichever orientation it
 * fits. */
static void scaled_size(int32_t *w, int32_t *h, const struct conf *c,
                        const struct mp_image *img, double ratio)
{
    int32_t side = img->width < img->height ? img->height : img->width;
    int32_t other = img->width + img->height - side;
    int32_t a = c->scale[0] > 0 ? c->scale[0] : side;
    int32_t b = c->scale[0] > 0 ? c->scale[1] : other;
    double most = trunc((a < b ? b : a) * ratio);
    double least = trunc((a < b ? a : b) * ratio);
    double f = fmin(most / side, least / other);

    *w = at_least((int32_t)(img->width * f + 0.5));
    *h = at_least((int32_t)(img->height * f + 0.5));
}

/* Windows of `crop` every `stride` that cover n: their number. */
static int32_t window_count(int32_t n, int32_t crop, int32_t stride)
{
    return (n > crop ? n - crop + stride - 1 : 0) / stride + 1;
}

/* Where window i begins; the last is moved back to end at the border. */
static int32_t window_at(int32_t i, int32_t n, int32_t crop, int32_t stride)
{
    int32_t last = n > crop ? n - crop : 0;

    return i * stride < last ? i * stride : last;
}

/* The windows of one size of the picture, in its mirror image from its left
 * border on: their number; those stored whose place is below cap. */
static size_t add_windows(const struct conf *c, struct mp_view v, size_t at,
                          struct mp_view *view, size_t cap)
{
    int32_t rows = 1, cols = 1;

    v.w = v.scaled_w;
    v.h = v.scaled_h;
    if (c->mode == SLIDE) {
        rows = window_count(v.scaled_h, c->crop[0], c->stride[0]);
        cols = window_count(v.scaled_w, c->crop[1], c->stride[1]);
        v.h = v.h < c->crop[0] ? v.h : c->crop[0];
        v.w = v.w < c->crop[1] ? v.w : c->crop[1];
    }
    for (int32_t i = 0; i < rows; i++)
        for (int32_t j = 0; j < cols; j++, at++) {
            if (at >= cap)
                continue;
            v.y = window_at(i, v.scaled_h, c->crop[0], c->stride[0]);
            v.x = window_at(j, v.scaled_w, c->crop[1], c->stride[1]);
            if (v.mirror)
                v.x = v.scaled_w - v.w - v.x;
            view[at] = v;
        }
    return (size_t)rows * (size_t)cols;
}

static long views(const void *conf, const struct mp_image *img,
                  struct mp_view *view, size_t cap, struct mp_error *err)
{
    const struct conf *c = conf;
    struct mp_view v = {0};
    double ratio[RATIOS_MAX];
    int nratio = list_ratios(ratio, c->ratios);
    size_t n = 0;

    (void)err;
    for (int i = 0; i < nratio; i++) {
        scaled_size(&v.scaled_w, &v.scaled_h, c, img, ratio[i]);
        for (v.mirror = 0; v.mirror <= c->flip; v.mirror++, v.group++)
            n += add_windows(c, v, n, view, cap);
    }
    return (long)n;
}

/* ---- network ---- */

/* (p - 127.5) / 127.5, rounded once as a division would be: 1 / 127.5 is
 * 257 / 32768, whose product with the first factor is exact, and a rest. */
static mp_node input(const void *conf, struct mp_graph *g, mp_node pixels)
{
    mp_node x = mp_add(g, pixels, mp_scalar(g, -127.5f));

    (void)conf;
    return mp_add(g, mp_mul(g, x, mp_scalar(g, 257.0f / 32768)),
                  mp_mul(g, x, mp_scalar(g, 1 / 8355840.0f)));
}

/* Convolution, batch norm, ReLU. */
static mp_node module(struct mp_graph *g, mp_node x, const char *fmt, int i)
{
    mp_push(g, fmt, i);
    x = mp_batch_norm_layer(g, mp_conv_layer(g, x, "conv", 1, -1), "bn");
    mp_pop(g);
    return mp_act(g, x, MP_RELU);
}

static mp_node resize_like(struct mp_graph *g, mp_node x, mp_node y)
{
    return mp_resize_bilinear(g, x, mp_dim(g, y, 1), mp_dim(g, y, 2));
}

/* How well each prompt fits each place of a map, at twice its size. */
static mp_node prompt_map(struct mp_graph *g, const struct mp_features *f,
                          int i)
{
    mp_node x = f->map[i];

    x = mp_resize_bilinear(g, x, 2 * mp_dim(g, x, 1), 2 * mp_dim(g, x, 2));
    mp_push(g, "upconv%d.", i + 1);
    x = mp_conv_layer(g, x, "0", 1, -1);
    x = mp_act(g, mp_group_norm_layer(g, x, "1", 16, 1e-5f), MP_RELU);
    mp_pop(g);
    return mp_linear(g, x, f->prompts, (mp_node){0});
}

static mp_node pyramid_pooling(struct mp_graph *g, mp_node x)
{
    static const int side[4] = {1, 2, 3, 6};
    mp_node part[5] = {x};

    for (int i = 0; i < 4; i++)
        part[i + 1] = resize_like(g,
                                  module(g, mp_pool_avg(g, x, side[i], side[i]),
                                         "psp_modules.%d.1.", i),
                                  x);
    return module(g, mp_concat(g, part, 5, -1), "bottleneck.", 0);
}

static mp_node decode_head(struct mp_graph *g, const mp_node feat[4])
{
    mp_node x[4];

    for (int i = 0; i < 3; i++)
        x[i] = module(g, feat[i], "lateral_convs.%d.", i);
    x[3] = pyramid_pooling(g, feat[3]);
    for (int i = 3; i > 0; i--)
        x[i - 1] = mp_add(g, x[i - 1], resize_like(g, x[i], x[i - 1]));
    for (int i = 0; i < 3; i++)
        x[i] = module(g, x[i], "fpn_convs.%d.", i);
    for (int i = 1; i < 4; i++)
        x[i] = resize_like(g, x[i], x[0]);
    x[0] = module(g, mp_concat(g, x, 4, -1), "fpn_bottleneck.", 0);
    return mp_conv_layer(g, x[0], "conv_seg", 1, -1);
}

static int has_classes(struct mp_graph *g, mp_node logits,
                       const struct mp_classes *classes)
{
    int64_t have = mp_dim(g, logits, -1);

    if (classes && (int64_t)classes->count == have)
        return 1;
    mp_graph_fail(g,
                  "the checkpoint has %d classes, [pipeline] classes = %s "
                  "has %d",
                  (int)have, classes ? classes->name : "",
                  classes ? (int)classes->count : 0);
    return 0;
}

/* Whether the classes have what the results need. */
static int has_ids(struct mp_graph *g, const struct mp_sink *want)
{
    const struct mp_classes *classes = mp_sink_classes(want);

    if (classes->label_id || !mp_sink_wants(want, "ids"))
        return 1;
    mp_graph_fail(g,
                  "[output] formats = ids: the classes of %s have no label_id",
                  classes->name);
    return 0;
}

static mp_node build(const void *conf, struct mp_graph *g,
                     const struct mp_features *f)
{
    mp_node feat[4], logits;

    (void)conf;
    for (int i = 0; i < 4; i++)
        feat[i] = prompt_map(g, f, i);
    mp_push(g, "decode_head.");
    logits = decode_head(g, feat);
    mp_pop(g);
    mp_weight_unused(g, "auxiliary_head."); /* of training */
    if (f->classes) /* before there is a picture; merge() makes sure */
        has_classes(g, logits, f->classes);
    return logits;
}

/* ---- merge ---- */

/* Where a window begins in the picture that it is a part of. */
static int32_t left_of(const struct mp_view *v)
{
    return v->mirror ? v->scaled_w - v->w - v->x : v->x;
}

/* Number of views that cover each pixel, as factors to multiply with. */
static mp_node weights_of(struct mp_graph *g, const struct mp_view *view,
                          size_t n)
{
    size_t h = (size_t)view->scaled_h, w = (size_t)view->scaled_w;
    float *share = calloc(h * w, sizeof *share);
    mp_node x = {0};

    if (!share) {
        mp_graph_fail(g, "out of memory");
        return x;
    }
    for (size_t i = 0; i < n; i++)
        for (int32_t y = view[i].y; y < view[i].y + view[i].h; y++)
            for (int32_t k = 0; k < view[i].w; k++)
                share[(size_t)y * w + (size_t)(left_of(&view[i]) + k)]++;
    for (size_t i = 0; i < h * w; i++)
        share[i] = 1 / share[i];
    x = mp_const(g, 4, (int64_t[]){1, (int64_t)h, (int64_t)w, 1}, share);
    free(share);
    return x;
}

/* The mean of all windows, which come row by row: summed to strips first, as
 * those are smaller than the picture. */
static mp_node average(struct mp_graph *g, const struct mp_view *view, size_t n,
                       const mp_node *out)
{
    mp_node sum = {0}, strip = {0};

    for (size_t i = 0; i < n; i++) {
        const struct mp_view *v = &view[i];
        mp_node x = mp_resize_bilinear(g, out[i], v->h, v->w);
        int first = i == 0 || v->y != v[-1].y;
        int last = i + 1 == n || v->y != v[1].y;

        if (n == 1)
            return x;
        x = mp_pad(g, x, 0, left_of(v), v->h, v->scaled_w);
        strip = first ? x : mp_add(g, strip, x);
        if (!last)
            continue;
        x = mp_pad(g, strip, v->y, 0, v->scaled_h, v->scaled_w);
        sum = sum.id ? mp_add(g, sum, x) : x;
    }
    return mp_mul(g, sum, weights_of(g, view, n));
}

static int wants_labels(const struct mp_sink *want)
{
    return mp_sink_wants(want, "labels") || mp_sink_wants(want, "color") ||
           mp_sink_wants(want, "overlay") || mp_sink_wants(want, "ids");
}

/* A group is one size, mirrored or not. Logits are averaged over windows,
 * probabilities over groups; of a single group, the largest logit is enough. */
static mp_node merge(const void *conf, struct mp_graph *g,
                     const struct mp_merge *m)
{
    mp_node x = {0};

    (void)conf;
    if (!has_classes(g, m->out[0], mp_sink_classes(m->want)) ||
        !has_ids(g, m->want))
        return x;
    x = average(g, m->view, m->nview, m->out);
    x = mp_resize_bilinear(g, x, m->img->height, m->img->width);
    if (m->ngroup > 1) {
        x = mp_softmax(g, x);
        if (m->view->mirror)
            x = mp_flip(g, x, 2);
        if (m->sum.id)
            x = mp_add(g, m->sum, x);
        if (m->group + 1 < m->ngroup)
            return x;
        x = mp_mul(g, x, mp_scalar(g, 1 / (float)m->ngroup));
    }
    if (wants_labels(m->want))
        mp_output(g, "labels", mp_argmax(g, x));
    if (mp_sink_wants(m->want, "probs"))
        mp_output(g, "probs", m->ngroup > 1 ? x : mp_softmax(g, x));
    return x;
}

/* ---- results ---- */

static int no_memory(struct mp_error *err)
{
    return mp_fail(err, MP_ENOMEM, "out of memory");
}

/* The place of each pixel's class, or where value is not NULL, what that says
 * of the class; of 16 bits if one of the classes needs them. */
static int put_labels(const char *kind, const struct mp_tensor *t,
                      const int32_t *value, struct mp_sink *sink,
                      struct mp_error *err)
{
    size_t n = (size_t)t->dim[1] * (size_t)t->dim[2];
    size_t classes = mp_sink_classes(sink)->count;
    int wide = !value && classes > 256;
    const int32_t *id = t->data;
    void *px;
    struct mp_png png = {.width = (int32_t)t->dim[2],
                         .height = (int32_t)t->dim[1],
                         .channels = 1};
    int rc;

    for (size_t k = 0; value && k < classes; k++)
        wide |= value[k] > 255;
    px = malloc(n * (wide ? 2 : 1));
    if (!px)
        return no_memory(err);
    for (size_t i = 0; i < n; i++) {
        int32_t v = value ? value[id[i]] : id[i];

        if (wide)
            ((uint16_t *)px)[i] = (uint16_t)v;
        else
            ((uint8_t *)px)[i] = (uint8_t)v;
    }
    png.bits = wide ? 16 : 8;
    png.px = px;
    rc = mp_sink_png(sink, kind, &png, err);
    free(px);
    return rc;
}

/* The colours of the classes, over the picture if there is one. */
static int put_colors(const char *kind, const struct mp_tensor *t,
                      const uint8_t *under, double opacity,
                      struct mp_sink *sink, struct mp_error *err)
{
    const uint8_t(*color)[3] = mp_sink_classes(sink)->color;
    const int32_t *id = t->data;
    size_t n = (size_t)t->dim[1] * (size_t)t->dim[2] * 3;
    uint8_t *px = malloc(n);
    struct mp_png png = {.width = (int32_t)t->dim[2],
                         .height = (int32_t)t->dim[1],
                         .channels = 3,
                         .bits = 8,
                         .px = px};
    int rc;

    if (!px)
        return no_memory(err);
    for (size_t i = 0; i < n; i++) {
        uint8_t c = color[id[i / 3]][i % 3];

        px[i] = under ? (uint8_t)(under[i] * (1 - opacity) + c * opacity) : c;
    }
    rc = mp_sink_png(sink, kind, &png, err);
    free(px);
    return rc;
}

/* H x W x C -> C x H x W, as array programs expect it. */
static int put_probs(const struct mp_tensor *t, struct mp_sink *sink,
                     struct mp_error *err)
{
    size_t c = (size_t)t->dim[3], n = (size_t)t->dim[1] * (size_t)t->dim[2];
    const float *x = t->data;
    float *y = malloc(c * n * sizeof *y);
    struct mp_tensor planes = {.name = t->name,
                               .dtype = MP_F32,
                               .ndim = 3,
                               .dim = {t->dim[3], t->dim[1], t->dim[2]},
                               .data = y};
    int rc;

    if (!y)
        return no_memory(err);
    for (size_t k = 0; k < c; k++)
        for (size_t i = 0; i < n; i++)
            y[k * n + i] = x[i * c + k];
    rc = mp_sink_npy(sink, "probs", &planes, err);
    free(y);
    return rc;
}

static int decode(const void *conf, const struct mp_image *img,
                  const struct mp_tensor *result, size_t n,
                  struct mp_sink *sink, struct mp_error *err)
{
    double opacity = ((const struct conf *)conf)->opacity;
    int rc = 0;

    for (size_t i = 0; i < n && !rc; i++) {
        const struct mp_tensor *t = &result[i];

        if (!strcmp(t->name, "probs")) {
            rc = put_probs(t, sink, err);
            continue;
        }
        if (mp_sink_wants(sink, "labels"))
            rc = put_labels("labels", t, NULL, sink, err);
        if (!rc && mp_sink_wants(sink, "ids"))
            rc = put_labels("ids", t, mp_sink_classes(sink)->label_id, sink,
                            err);
        if (!rc && mp_sink_wants(sink, "color"))
            rc = put_colors("color", t, NULL, 1, sink, err);
        if (!rc && mp_sink_wants(sink, "overlay"))
            rc = put_colors("overlay", t, img->rgb, opacity, sink, err);
    }
    return rc;
}

MP_PLUGIN(upernet) = {
    .abi = MP_PLUGIN_ABI,
    .size = sizeof(struct mp_plugin),
    .name = "upernet",
    .summary = "semantic segmentation (UPerNet)",
    .formats = "labels overlay : color ids probs",
    .uses_classes = 1,
    .options = options,
    .conf_size = sizeof(struct conf),
    .check = check,
    .views = views,
    .input = input,
    .build = build,
    .merge = merge,
    .decode = decode,
};
