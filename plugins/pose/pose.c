/* SPDX-License-Identifier: MIT */
/*
 * pose.c - human pose, top-down: every person is cut out and gets a heat map
 * for each key point, which is where that is highest.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "pose.h"

enum { SD, IMAGENET };

struct conf {
    int32_t input[2]; /* height, width */
    int32_t pixels;
    double box_score, padding;
    int32_t flip;
    double point_score, most_alike;
    struct drawing drawing;
};

#define OPT(id, field, kind, def, least, most, words, unit, help)              \
    {                                                                          \
        id, MP_OPT_##kind, offsetof(struct conf, field), def, least, most,     \
            words, unit, help                                                  \
    }

/* clang-format off */
static const struct mp_option options[] = {
    OPT("input", input, SIZE, "256x192", 32, 2048, NULL, "px",
        "Height x width of a person as the network sees it; multiples of 16"),
    OPT("pixels", pixels, CHOICE, "sd", 0, 0, "sd imagenet", NULL,
        "Range of the network's input: -1..1, or ImageNet's mean and "
        "deviation"),
    OPT("box_score", box_score, FLOAT, "0", 0, 1, NULL, NULL,
        "Boxes of a lower score are left out"),
    OPT("padding", padding, FLOAT, "1.25", 0.1, 10, NULL, NULL,
        "Size of what the network sees, boxes being 1"),
    OPT("flip", flip, BOOL, "no", 0, 0, NULL, NULL,
        "Look at every person mirrored too, and average"),
    OPT("point_score", point_score, FLOAT, "0.2", 0, 1, NULL, NULL,
        "The score of a person is the box's times the mean of the key points "
        "above this"),
    OPT("most_alike", most_alike, FLOAT, "0.9", 0, 1, NULL, NULL,
        "Of persons more alike than this (OKS) the best stays; 1 keeps all"),
    OPT("draw_score", drawing.point_score, FLOAT, "0.3", 0, 1, NULL, NULL,
        "Key points of a lower score are not drawn"),
    OPT("radius", drawing.radius, INT, "4", 0, 100, NULL, "px",
        "Of drawn key points; 0: none"),
    OPT("thickness", drawing.thickness, INT, "2", 0, 100, NULL, "px",
        "Of drawn limbs; 0: none"),
    {0}
};
/* clang-format on */

static int check(const void *conf, struct mp_error *err)
{
    const struct conf *c = conf;

    if (c->input[0] % 16 || c->input[1] % 16)
        return mp_fail(err, MP_EINVAL,
                       "input %dx%d: both sides must be multiples of 16",
                       (int)c->input[0], (int)c->input[1]);
    return 0;
}

/* ---- views ---- */

static void place(struct person *p, const struct conf *c,
                  const struct mp_box *box)
{
    person_place(p, box, (double)c->input[1] / c->input[0], c->padding);
}

static int is_place(const struct person *p, const float matrix[6])
{
    for (int k = 0; k < 6; k++)
        if (!isfinite(matrix[k]))
            return 0;
    return p->scale[0] > 0 && p->scale[1] > 0;
}

/* One for each box that counts, or two: the second mirrored. */
static long views(const void *conf, const struct mp_image *img,
                  struct mp_view *view, size_t cap, struct mp_error *err)
{
    const struct conf *c = conf;
    size_t n = 0;

    for (size_t i = 0; i < img->nbox; i++) {
        struct mp_view v = {.w = c->input[1], .h = c->input[0], .warp = 1};
        struct person p;

        if (img->box[i].score < c->box_score)
            continue;
        place(&p, c, &img->box[i]);
        person_matrix(v.matrix, &p, 0, v.w, v.h);
        if (!is_place(&p, v.matrix))
            return mp_fail(err, MP_EFORMAT,
                           "box %zu: %g x %g pixels at %g, %g is no place for "
                           "a person",
                           i + 1, img->box[i].w, img->box[i].h, img->box[i].x,
                           img->box[i].y);
        for (v.mirror = 0; v.mirror <= c->flip; v.mirror++, n++)
            if (n < cap)
                view[n] = v;
    }
    return (long)n;
}

/* ---- network ---- */

static mp_node input(const void *conf, struct mp_graph *g, mp_node pixels)
{
    static const float range[][2][3] = {
        /* of pixel values: what becomes 0, and how much is 1 */
        [SD] = {{127.5f, 127.5f, 127.5f}, {127.5f, 127.5f, 127.5f}},
        [IMAGENET] = {{255 * 0.485f, 255 * 0.456f, 255 * 0.406f},
                      {255 * 0.229f, 255 * 0.224f, 255 * 0.225f}},
    };
    const float(*r)[3] = range[((const struct conf *)conf)->pixels];
    float minus[3], factor[3];

    for (int i = 0; i < 3; i++) {
        minus[i] = -r[0][i];
        factor[i] = 1 / r[1][i];
    }
    pixels = mp_add(g, pixels, mp_const(g, 1, (int64_t[]){3}, minus));
    return mp_mul(g, pixels, mp_const(g, 1, (int64_t[]){3}, factor));
}

/* The prompt maps at 1/16 of the picture's size, four times as large, to a heat
 * map per key point. */
static mp_node build(const void *conf, struct mp_graph *g,
                     const struct mp_features *f)
{
    int64_t h = f->view_h / 16, w = f->view_w / 16, dim[MP_RANK];
    mp_node x = mp_resize_bilinear(g, mp_prompt_maps(g, f), h, w);

    (void)conf;
    mp_push(g, "keypoint_head.");
    if (mp_weight_shape(g, "deconv_layers.0.weight", NULL) > 0)
        x = mp_upsample_layers(g, x, "deconv_layers", 2);
    else
        x = mp_resize_bilinear(g, mp_act(g, x, MP_RELU), 4 * h, 4 * w);
    if (mp_weight_shape(g, "final_layer.weight", dim) > 0 && dim[0] != POINTS)
        mp_graph_fail(g,
                      "the checkpoint has %d key points; this head knows the "
                      "%d of COCO only",
                      (int)dim[0], POINTS);
    x = mp_conv_layer(g, x, "final_layer", 1, -1);
    mp_pop(g);
    return x;
}

/* ---- merge ---- */

/* Left and right of the body change places: the points after the nose are
 * pairs, left before right. x N x H x W x POINTS. */
static mp_node swap_sides(struct mp_graph *g, mp_node x)
{
    int64_t n = mp_dim(g, x, 0), h = mp_dim(g, x, 1), w = mp_dim(g, x, 2);
    mp_node nose = mp_slice(g, x, 3, 0, 1);
    mp_node pairs = mp_slice(g, x, 3, 1, POINTS - 1);

    pairs = mp_reshape(g, pairs, 4, (int64_t[]){n * h, w, -1, 2});
    pairs = mp_flip(g, pairs, 3);
    pairs = mp_reshape(g, pairs, 4, (int64_t[]){n, h, w, POINTS - 1});
    return mp_concat(g, (mp_node[]){nose, pairs}, 2, 3);
}

/* The mean of each map and that of the mirrored view, which is the one behind
 * it. */
static mp_node mean_of_looks(struct mp_graph *g, mp_node x)
{
    int64_t n = mp_dim(g, x, 0), h = mp_dim(g, x, 1), w = mp_dim(g, x, 2);
    mp_node mirrored;

    x = mp_reshape(g, x, 4, (int64_t[]){n / 2, 2 * h, w, POINTS});
    mirrored = mp_flip(g, mp_slice(g, x, 1, h, h), 2);
    x = mp_add(g, mp_slice(g, x, 1, 0, h), swap_sides(g, mirrored));
    return mp_mul(g, x, mp_scalar(g, 0.5f));
}

/* Of all persons: peaks, N x POINTS x 3, and if they are asked for the heat
 * maps, N x H x W x POINTS. */
static mp_node merge(const void *conf, struct mp_graph *g,
                     const struct mp_merge *m)
{
    mp_node x = mp_concat(g, m->out, (int)m->nview, 0);

    if (((const struct conf *)conf)->flip)
        x = mean_of_looks(g, x);
    mp_output(g, "peaks", mp_heatmap_peaks(g, x));
    if (mp_sink_wants(m->want, "heatmaps"))
        mp_output(g, "heatmaps", x);
    return x;
}

/* ---- results ---- */

static int no_memory(struct mp_error *err)
{
    return mp_fail(err, MP_ENOMEM, "out of memory");
}

struct persons {
    struct person *p;
    const float *heatmaps; /* h x w x POINTS of each, if they are asked for */
    int64_t h, w;
    size_t n;
    size_t *keep; /* the best, best first */
    size_t nkeep;
};

static int is_finite(const struct person *p)
{
    for (int k = 0; k < 3 * POINTS; k++)
        if (!isfinite(p->point[k / 3][k % 3]))
            return 0;
    return 1;
}

/* All persons that views() told of, from the peaks of their heat maps. */
static int find(struct persons *a, const struct conf *c,
                const struct mp_image *img, const float *peak,
                struct mp_error *err)
{
    for (size_t i = 0; i < img->nbox; i++) {
        struct person *p = &a->p[a->n];

        if (img->box[i].score < c->box_score)
            continue;
        place(p, c, &img->box[i]);
        person_decode(p, peak + 3 * POINTS * a->n, a->h, a->w);
        if (!is_finite(p))
            return mp_fail(err, MP_EFORMAT,
                           "the heat maps of box %zu are not finite", i + 1);
        person_rescore(p, c->point_score);
        a->n++;
    }
    a->nkeep = persons_best(a->keep, a->p, a->n, c->most_alike);
    return 0;
}

static int put_overlay(const struct persons *a, const struct conf *c,
                       const struct mp_image *img, struct mp_sink *sink,
                       struct mp_error *err)
{
    size_t bytes = 3 * (size_t)img->width * (size_t)img->height;
    uint8_t *rgb = malloc(bytes);
    struct mp_png png = {.width = img->width,
                         .height = img->height,
                         .channels = 3,
                         .bits = 8,
                         .px = rgb};
    int rc;

    if (!rgb)
        return no_memory(err);
    memcpy(rgb, img->rgb, bytes);
    persons_draw(rgb, img->width, img->height, &c->drawing, a->p, a->keep,
                 a->nkeep);
    rc = mp_sink_png(sink, "overlay", &png, err);
    free(rgb);
    return rc;
}

/* What is in the list, as numbers: x, y, score of each point. */
static int put_keypoints(const struct persons *a, struct mp_sink *sink,
                         struct mp_error *err)
{
    float *points = malloc((a->nkeep + 1) * POINTS * 3 * sizeof *points);
    struct mp_tensor t = {.name = "keypoints",
                          .dtype = MP_F32,
                          .ndim = 3,
                          .dim = {(int64_t)a->nkeep, POINTS, 3},
                          .data = points};
    int rc;

    if (!points)
        return no_memory(err);
    for (size_t i = 0; i < a->nkeep; i++)
        for (size_t k = 0; k < 3 * POINTS; k++)
            points[i * 3 * POINTS + k] =
                (float)a->p[a->keep[i]].point[k / 3][k % 3];
    rc = mp_sink_npy(sink, "keypoints", &t, err);
    free(points);
    return rc;
}

/* Of those that stay, in their order, a plane for each point. */
static int put_heatmaps(const struct persons *a, struct mp_sink *sink,
                        struct mp_error *err)
{
    size_t plane = (size_t)(a->h * a->w), one = POINTS * plane;
    float *maps = malloc((a->nkeep * one + 1) * sizeof *maps);
    struct mp_tensor t = {.name = "heatmaps",
                          .dtype = MP_F32,
                          .ndim = 4,
                          .dim = {(int64_t)a->nkeep, POINTS, a->h, a->w},
                          .data = maps};
    int rc;

    if (!maps)
        return no_memory(err);
    for (size_t i = 0; i < a->nkeep; i++)
        for (size_t k = 0; k < one; k++)
            maps[i * one + k % POINTS * plane + k / POINTS] =
                a->heatmaps[a->keep[i] * one + k];
    rc = mp_sink_npy(sink, "heatmaps", &t, err);
    free(maps);
    return rc;
}

static int put_json(const struct persons *a, const struct mp_image *img,
                    struct mp_sink *sink, struct mp_error *err)
{
    char *text = persons_json(a->p, a->keep, a->nkeep, img->id);
    int rc = text ? mp_sink_json(sink, "json", text, err) : no_memory(err);

    free(text);
    return rc;
}

static int decode(const void *conf, const struct mp_image *img,
                  const struct mp_tensor *result, size_t n,
                  struct mp_sink *sink, struct mp_error *err)
{
    const struct conf *c = conf;
    struct persons a = {.h = c->input[0] / 4, .w = c->input[1] / 4};
    int rc = 0;

    a.p = malloc((img->nbox + 1) * sizeof *a.p);
    a.keep = malloc((img->nbox + 1) * sizeof *a.keep);
    a.heatmaps = n > 1 ? result[1].data : NULL;
    if (!a.p || !a.keep)
        rc = no_memory(err);
    if (!rc)
        rc = find(&a, c, img, n ? result[0].data : NULL, err);
    if (!rc && mp_sink_wants(sink, "json"))
        rc = put_json(&a, img, sink, err);
    if (!rc && mp_sink_wants(sink, "overlay"))
        rc = put_overlay(&a, c, img, sink, err);
    if (!rc && mp_sink_wants(sink, "keypoints"))
        rc = put_keypoints(&a, sink, err);
    if (!rc && mp_sink_wants(sink, "heatmaps"))
        rc = put_heatmaps(&a, sink, err);
    free(a.p);
    free(a.keep);
    return rc;
}

MP_PLUGIN(pose) = {
    .abi = MP_PLUGIN_ABI,
    .size = sizeof(struct mp_plugin),
    .name = "pose",
    .summary = "human pose: 17 key points per person",
    .formats = "json overlay : keypoints heatmaps",
    .uses_boxes = 1,
    .joined = "json",
    .joined_as = "keypoints",
    .options = options,
    .conf_size = sizeof(struct conf),
    .check = check,
    .views = views,
    .input = input,
    .build = build,
    .merge = merge,
    .decode = decode,
};
