/* SPDX-License-Identifier: MIT */
/* pose.c - human pose, top-down: a heat map per key point of a person. */
#include "mpipe/plugin.h"

#define POINTS 17 /* of COCO */

enum { SD, IMAGENET };

struct conf {
    int32_t input[2]; /* height, width */
    int32_t pixels;
};

#define OPT(id, kind, def, least, most, words, unit, help)                     \
    {                                                                          \
#id, MP_OPT_##kind, offsetof(struct conf, id), def, least, most,       \
            words, unit, help                                                  \
    }

/* clang-format off */
static const struct mp_option options[] = {
    OPT(input, SIZE, "256x192", 32, 2048, NULL, "px",
        "Height x width of a person as the network sees it; multiples of 16"),
    OPT(pixels, CHOICE, "sd", 0, 0, "sd imagenet", NULL,
        "Range of the network's input: -1..1, or ImageNet's mean and "
        "deviation"),
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

static long views(const void *conf, const struct mp_image *img,
                  struct mp_view *view, size_t cap, struct mp_error *err)
{
    const struct conf *c = conf;
    int32_t h = c->input[0], w = c->input[1];

    (void)img;
    (void)err;
    if (cap)
        *view = (struct mp_view){.scaled_w = w, .scaled_h = h, .w = w, .h = h};
    return 1;
}

/* ---- network ---- */

static mp_node input(const void *conf, struct mp_graph *g, mp_node pixels)
{
    static const float range[][2][3] = {
        /* middle and width of 1, as pixel values */
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

static void merge(const void *conf, struct mp_graph *g,
                  const struct mp_image *img, const struct mp_view *view,
                  size_t nview, const mp_node *out, const struct mp_sink *want)
{
    (void)conf;
    (void)img;
    (void)view;
    (void)nview;
    (void)want;
    mp_output(g, "heatmaps", out[0]);
}

/* ---- results ---- */

static int decode(const void *conf, const struct mp_image *img,
                  const struct mp_tensor *result, size_t n,
                  struct mp_sink *sink, struct mp_error *err)
{
    (void)conf;
    (void)img;
    (void)n;
    return mp_sink_npy(sink, "heatmaps", result, err);
}

MP_PLUGIN(pose) = {
    .abi = MP_PLUGIN_ABI,
    .size = sizeof(struct mp_plugin),
    .name = "pose",
    .summary = "human pose: 17 key points per person",
    .formats = "heatmaps",
    .options = options,
    .conf_size = sizeof(struct conf),
    .check = check,
    .views = views,
    .input = input,
    .build = build,
    .merge = merge,
    .decode = decode,
};
