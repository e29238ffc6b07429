/* SPDX-License-Identifier: MIT */
/*
 * test_net.c - backbone and heads against the numbers of the published code,
 * computed in float64 from the same weights and pictures. Bounds: twice the
 * float32 error of the published code itself, at most 1e-4; 5e-6 for a single
 * pass of VAE or UNet. Prints a table.
 *
 * bf16 keeps 16 bits fewer than f32, and these small networks of made-up
 * weights multiply every rounding: bounds there are twice 2^16 times what
 * storing values in f32 costs when all else is double (the ref backend's
 * errors).
 *
 * MPIPE_TEST_BACKEND chooses the backend (cpu). The complete set of cases runs
 * where MPIPE_SHARED names a folder with reference/golden.
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "backbone/backbone.h"
#include "conf.h"
#include "device.h"
#include "golden.h"
#include "graph_impl.h"
#include "make_weights.h"
#include "module.h"
#include "session.h"

#define SINGLE  5e-6          /* one pass */
#define COARSER (2 * 65536.0) /* see above */
#define WANTED  2e-2          /* of bf16; said where it is not met */
#define ROOM    16

static char folder[] = "/tmp/mpipe-net-XXXXXX";

static const char *backend(void)
{
    const char *b = getenv("MPIPE_TEST_BACKEND");

    return b ? b : "cpu";
}

/* ---- weights, made once ---- */

static const char *weights_path(const char *keys)
{
    static char path[300];

    snprintf(path, sizeof path, "%s/%s.safetensors", folder, keys);
    return path;
}

static void make(const char *keys)
{
    struct mp_error err = {0};

    if (make_weights(golden_path("keys/%s.json", keys), weights_path(keys),
                     &err)) {
        fprintf(stderr, "%s\n", err.text);
        exit(99);
    }
}

/* ---- running a graph ---- */

struct result {
    struct mp_tensor t[ROOM];
    float *data[ROOM];
    size_t n;
};

static void run(struct result *r, struct mp_graph *g,
                enum mp_precision precision, const void *const *in)
{
    struct mp_opened o;
    struct mp_error err = {0};
    struct mp_arena arena = {0};
    struct mp_session *s = NULL;

    ck_assert_msg(!mp_device_open(&o, backend(), precision, 0, &err), "%s",
                  err.text);
    arena.backend = o.backend;
    arena.device = o.device;
    ck_assert_msg(!mp_session_new(&s, &arena, g, o.dtype, &err), "%s",
                  err.text);
    r->n = mp_session_outputs(s);
    for (size_t i = 0; i < r->n; i++) {
        mp_session_output(s, i, &r->t[i]);
        r->data[i] = malloc((size_t)mp_shape_count(r->t[i].ndim, r->t[i].dim) *
                            sizeof(float));
    }
    ck_assert_msg(!mp_session_run(s, in, (void *const *)r->data, &err), "%s",
                  err.text);
    if (getenv("MPIPE_TEST_DUMP"))
        mp_session_dump(s, stdout);
    for (size_t i = 0; i < r->n; i++) /* names die with the session */
        r->t[i].name = strdup(r->t[i].name);
    mp_session_free(s);
    mp_arena_free(&arena);
    o.backend->close(o.device);
}

static void result_free(struct result *r)
{
    for (size_t i = 0; i < r->n; i++) {
        free(r->data[i]);
        free((char *)r->t[i].name);
    }
}

/* N x H x W x C as N x C x H x W, the order of the goldens. */
static float *planes(const struct mp_tensor *t, const float *x)
{
    int64_t n = t->dim[0], hw = t->dim[1] * t->dim[2], c = t->dim[3];
    float *y = malloc((size_t)(n * hw * c) * sizeof *y);

    for (int64_t i = 0; i < n * hw * c; i++)
        y[(i / c / hw * c + i % c) * hw + i / c % hw] = x[i];
    return y;
}

static float *positions(const struct golden_tensor *t)
{
    int64_t c = t->dim[1], hw = t->dim[2] * t->dim[3];
    float *y = malloc(t->count * sizeof *y);

    for (int64_t i = 0; i < (int64_t)t->count; i++)
        y[(i / hw / c * hw + i % hw) * c + i / hw % c] =
            (float)golden_value(t->data, t->dtype, (size_t)i);
    return y;
}

static const struct golden_tensor *want(const struct golden *g,
                                        const char *prefix, const char *name)
{
    char full[128];
    const struct golden_tensor *t;

    snprintf(full, sizeof full, "%s%s.f64", prefix, name);
    t = golden_get(g, full);
    if (!t) {
        snprintf(full, sizeof full, "%s%s", prefix, name);
        t = golden_get(g, full);
    }
    return t;
}

static void check(const char *file, const char *prefix, const char *name,
                  const struct result *r, size_t i, const struct golden *g,
                  double bound)
{
    const struct golden_tensor *t = want(g, prefix, name);
    float *got;
    double e;

    if (!t)
        return;
    ck_assert_int_eq(r->t[i].ndim, 4);
    ck_assert_int_eq(t->count, mp_shape_count(4, r->t[i].dim));
    got = planes(&r->t[i], r->data[i]);
    e = rel_l2(got, t->data, t->dtype, t->count);
    printf("%-18s %-10s%-14s rel L2 %.2e  bound %.1e%s%s\n", file, prefix, name,
           e, bound, t->dtype == MP_F64 ? "" : "  (f32 reference)",
           e > WANTED ? "  NOT the 2e-2 that bf16 should reach" : "");
    free(got);
    ck_assert_msg(e <= bound, "%s %s%s: relative L2 %g above %g", file, prefix,
                  name, e, bound);
}

static struct golden *open_case(const char *file)
{
    const char *path = golden_path("%s.safetensors", file);
    const char *full = shared_path("reference/golden/%s.safetensors", file);
    struct golden *g;

    if (full && access(full, R_OK)) /* made by this project */
        full = NULL;
    if (access(path, R_OK) && !full) {
        printf("SKIP %s: not in the project, and MPIPE_SHARED is not set\n",
               file);
        return NULL;
    }
    g = golden_open(full ? full : path);
    ck_assert_ptr_nonnull(g);
    return g;
}

/* Loop tests run every case in f32, then in bf16 where the device has it. */
static enum mp_precision precision_of(int i, int n)
{
    struct mp_opened o;

    if (i < n)
        return MP_PREC_FP32;
    if (mp_device_open(&o, backend(), MP_PREC_BF16, 0, NULL)) {
        if (i == n)
            puts("SKIP bf16: this device has no bf16 arithmetic");
        return MP_PREC_AUTO;
    }
    o.backend->close(o.device);
    return MP_PREC_BF16;
}

/* ---- VAE ---- */

static const char *const vae_cases[] = {"synth.", "photo.", "odd.", "batch2."};

START_TEST(vae)
{
    enum mp_precision precision = precision_of(_i, 4);
    struct golden *gold = open_case("tiny_vae");
    const char *prefix = vae_cases[_i % 4];
    const struct golden_tensor *x = want(gold, prefix, "x");
    struct mp_weights *w = NULL;
    struct mp_graph *g;
    struct result r;
    float *in;

    if (precision == MP_PREC_AUTO || !x) {
        golden_free(gold);
        return;
    }
    ck_assert(!mp_weights_open(&w, weights_path("tiny_sd15"), NULL));
    g = mp_graph_new(w);
    mp_output(g, "latents",
              mp_vae_encode(
                  g, "first_stage_model.",
                  mp_input(g, "x", MP_F32, 4,
                           (int64_t[]){x->dim[0], x->dim[2], x->dim[3], 3})));
    in = positions(x);
    run(&r, g, precision, (const void *const[]){in});
    check("tiny_vae", prefix, "latents", &r, 0, gold,
          precision == MP_PREC_FP32 ? SINGLE : COARSER * 2.0e-7);
    free(in);
    result_free(&r);
    mp_graph_free(g);
    mp_weights_close(w);
    golden_free(gold);
}
END_TEST

/* ---- UNet ---- */

static const char sd_unet[] = "model.diffusion_model.";
static const char *const unet_cases[] = {"lat16x24.", "lat20x28.", "lat15x19.",
                                         "batch2."};

START_TEST(unet)
{
    static const char *const name[] = {"out0", "out1", "out2", "out3",
                                       "next_latents"};
    enum mp_precision precision = precision_of(_i, 4);
    const char *prefix = unet_cases[_i % 4];
    struct golden *gold = open_case("tiny_unet");
    const struct golden_tensor *z = want(gold, prefix, "latents");
    const struct golden_tensor *t = want(gold, prefix, "t");
    const struct golden_tensor *c = want(gold, prefix, "context");
    struct mp_weights *w = NULL;
    struct mp_graph *g;
    struct result r;
    mp_node map[4], emb, context;
    float *in;

    if (precision == MP_PREC_AUTO || !z) {
        golden_free(gold);
        return;
    }
    ck_assert(!mp_weights_open(&w, weights_path("tiny_sd15"), NULL));
    g = mp_graph_new(w);
    emb = mp_const(g, 2, t->dim, t->data);
    context = mp_const(g, 3, c->dim, c->data);
    mp_unet(g, sd_unet, 8,
            mp_input(g, "z", MP_F32, 4,
                     (int64_t[]){z->dim[0], z->dim[2], z->dim[3], 4}),
            emb, context, map);
    for (int i = 0; i < 4; i++)
        mp_output(g, name[i], map[i]);
    mp_output(g, name[4], mp_unet_out(g, "model.diffusion_model.out", map[0]));
    in = positions(z);
    run(&r, g, precision, (const void *const[]){in});
    for (size_t i = 0; i < 5; i++)
        check("tiny_unet", prefix, name[i], &r, i, gold,
              precision == MP_PREC_FP32 ? SINGLE : COARSER * 3.5e-7);
    free(in);
    result_free(&r);
    mp_graph_free(g);
    mp_weights_close(w);
    golden_free(gold);
}
END_TEST

/* ---- whole networks ---- */

/* Twice the float32 error of the published code: latents, out0 of the last
 * step, and the head's map. stored: what storing the map's way in f32 costs
 * (of depth, where no resize before the VAE adds to it). */
static const struct whole {
    const char *file, *keys, *head, *map;
    double latents, out0, result, stored;
} whole_cases[] = {
    {"tiny_depth_synth", "tiny_depth", "depth", "depth", 4.4e-6, 4.0e-5, 2.0e-5,
     9.2e-7},
    {"tiny_depth_photo", "tiny_depth", "depth", "depth", 1.04e-5, 7.4e-5,
     4.6e-5, 9.2e-7},
    {"tiny_depth_odd", "tiny_depth", "depth", "depth", 4.2e-6, 2.8e-5, 1.5e-5,
     9.2e-7},
    {"tiny_depth_batch2", "tiny_depth", "depth", "depth", 2.2e-6, 2.0e-5,
     1.02e-5, 9.2e-7},
    {"tiny_seg_synth", "tiny_seg", "upernet", "logits", 2.2e-6, 4.8e-5, 6.2e-5,
     4.5e-6},
    {"tiny_seg_photo", "tiny_seg", "upernet", "logits", 3.0e-6, 4.2e-5, 5.4e-5,
     6.5e-6},
    {"tiny_seg_odd", "tiny_seg", "upernet", "logits", 2.4e-6, 5.6e-5, 8.2e-5,
     5.8e-6},
    {"tiny_seg_batch2", "tiny_seg", "upernet", "logits", 2.2e-6, 7.2e-5, 1.0e-4,
     9.6e-6},
    {"tiny_pose", "tiny_pose", "pose", "heatmaps", 3.47e-6, 5.0e-5, 3.57e-5,
     2.5e-6},
    {"tiny_pose_batch2", "tiny_pose", "pose", "heatmaps", 4.36e-6, 1.0e-4,
     6.9e-5, 4.3e-6},
    {"tiny_pose_256x192", "tiny_pose", "pose", "heatmaps", 8.9e-6, 7.6e-5,
     4.47e-5, 1.3e-6},
    {"tiny_pose_simple", "tiny_pose_simple", "pose", "heatmaps", 3.47e-6,
     5.0e-5, 2.58e-5, 1.7e-6},
};
#define NWHOLE (int)(sizeof whole_cases / sizeof *whole_cases)

/* A head and a checkpoint, and the graph of both. */
struct net {
    const struct mp_plugin *head;
    struct mp_conf *conf;
    void *head_conf;
    struct mp_weights *w;
    struct mp_graph *g;
    struct mp_arch arch;
    struct mp_features f;
    mp_node map;
};

static void net_open(struct net *n, const char *head, const char *weights)
{
    struct mp_error err = {0};

    memset(n, 0, sizeof *n);
    n->conf = mp_conf_new();
    ck_assert_msg(!mp_head_find(&n->head, head, &err), "%s", err.text);
    n->head_conf = calloc(1, n->head->conf_size);
    if (!strcmp(head, "upernet")) { /* for the windows; whole by default */
        mp_conf_set(n->conf, "upernet.crop=64x64", NULL);
        mp_conf_set(n->conf, "upernet.stride=43x43", NULL);
        mp_conf_set(n->conf, "upernet.mode=slide", NULL);
        mp_conf_set(n->conf, "upernet.scale=150x96", NULL);
    }
    ck_assert(
        !mp_conf_section(n->conf, head, n->head->options, n->head_conf, &err));
    ck_assert_msg(!mp_weights_open(&n->w, weights, &err), "%s", err.text);
    n->g = mp_graph_new(n->w);
    ck_assert_msg(!mp_backbone_probe(&n->arch, n->g, &err), "%s", err.text);
}

static void net_build(struct net *n, const int64_t *dim)
{
    mp_node x = mp_float(n->g, mp_input(n->g, "pixels", MP_U8, 4, dim));

    n->f.view_h = (int32_t)dim[1];
    n->f.view_w = (int32_t)dim[2];
    mp_backbone_build(n->g, &n->arch, n->head->input(n->head_conf, n->g, x),
                      &n->f);
    n->map = n->head->build(n->head_conf, n->g, &n->f);
}

static void net_close(struct net *n)
{
    mp_graph_free(n->g);
    mp_weights_close(n->w);
    mp_conf_free(n->conf);
    free(n->head_conf);
}

static void whole(const struct whole *c, struct result *r, struct golden **gold,
                  enum mp_precision precision)
{
    const struct golden_tensor *img;
    struct net n;

    *gold = open_case(c->file);
    if (!*gold)
        return;
    img = golden_get(*gold, "image_u8");
    net_open(&n, c->head, weights_path(c->keys));
    net_build(&n, img->dim);
    mp_output(n.g, "latents", n.f.latents);
    mp_output(n.g, "out0", n.f.map[0]);
    mp_output(n.g, "map", n.map);
    run(r, n.g, precision, (const void *const[]){img->data});
    net_close(&n);
}

START_TEST(network)
{
    const struct whole *c = &whole_cases[_i % NWHOLE];
    enum mp_precision precision = precision_of(_i, NWHOLE);
    struct golden *gold;
    struct result r;

    if (precision == MP_PREC_AUTO)
        return;
    whole(c, &r, &gold, precision);
    if (!gold)
        return;
    if (precision == MP_PREC_FP32) {
        check(c->file, "", "latents", &r, 0, gold, c->latents);
        check(c->file, "step3.", "out0", &r, 1, gold, c->out0);
        check(c->file, "", c->map, &r, 2, gold, c->result);
    } else {
        check(c->file, "", c->map, &r, 2, gold, COARSER * c->stored);
    }
    result_free(&r);
    golden_free(gold);
}
END_TEST

/* ---- windows, averaged ---- */

struct mp_sink {
    struct mp_classes classes;
};

int mp_sink_wants(const struct mp_sink *s, const char *kind)
{
    (void)s;
    return !strcmp(kind, "labels") || !strcmp(kind, "probs");
}

const struct mp_classes *mp_sink_classes(const struct mp_sink *s)
{
    return &s->classes;
}

static uint8_t *cut(const struct mp_view *v, const struct golden_tensor *img)
{
    uint8_t *p = malloc((size_t)v->w * (size_t)v->h * 3);

    for (int32_t y = 0; y < v->h; y++)
        memcpy(p + y * v->w * 3,
               (const uint8_t *)img->data +
                   ((v->y + y) * img->dim[2] + v->x) * 3,
               (size_t)v->w * 3);
    return p;
}

/* The published protocol: windows of 64, every 43, of a picture scaled to 96 x
 * 150; the logits scaled back to its 120 x 188. */
START_TEST(slide)
{
    enum { WINDOWS = 12, CLASSES = 7 };
    struct golden *gold = open_case("tiny_seg_slide");
    const struct golden_tensor *img, *probs, *labels;
    struct mp_image picture = {.name = "x", .width = 188, .height = 120};
    struct mp_sink want_both = {{.name = "tiny", .count = CLASSES}};
    struct result r[WINDOWS], all;
    struct mp_view v[WINDOWS];
    const void *in[WINDOWS];
    mp_node out[WINDOWS];
    struct net n;
    float *got;
    size_t same = 0;
    double e;
    long count;

    ck_assert_ptr_nonnull(gold);
    img = golden_get(gold, "image_u8");
    probs = golden_get(gold, "slide_softmax");
    labels = golden_get(gold, "slide_argmax");
    net_open(&n, "upernet", weights_path("tiny_seg"));
    count = n.head->views(n.head_conf, &picture, v, WINDOWS, NULL);
    ck_assert_int_eq(count, 6);
    ck_assert(v[0].scaled_w == img->dim[2] && v[0].scaled_h == img->dim[1]);
    net_build(&n, (int64_t[]){1, 64, 64, 3});
    mp_output(n.g, "map", n.map);
    for (long i = 0; i < count; i++) {
        uint8_t *p = cut(&v[i], img);

        run(&r[i], n.g, MP_PREC_FP32, (const void *const[]){p});
        in[i] = r[i].data[0];
        free(p);
    }
    mp_graph_free(n.g);
    n.g = mp_graph_new(NULL);
    for (long i = 0; i < count; i++)
        out[i] = mp_input(n.g, "map", MP_F32, 4, r[i].t[0].dim);
    n.head->merge(n.head_conf, n.g,
                  &(struct mp_merge){.img = &picture,
                                     .view = v,
                                     .out = out,
                                     .nview = (size_t)count,
                                     .ngroup = 1,
                                     .want = (struct mp_sink *)&want_both});
    run(&all, n.g, MP_PREC_FP32, in);
    for (size_t i = 0; i < labels->count; i++)
        same += ((int32_t *)all.data[0])[i] == ((uint8_t *)labels->data)[i];
    got = planes(&all.t[1], all.data[1]);
    e = rel_l2(got, probs->data, probs->dtype, probs->count);
    printf("%-18s %-24s rel L2 %.2e  bound %.1e  (f32 reference), classes "
           "agree %.4f %%\n",
           "tiny_seg_slide", "probabilities", e, 7e-5,
           100.0 * (double)same / (double)labels->count);
    ck_assert_double_le(e, 7e-5); /* twice 3.5e-5 */
    ck_assert_uint_le(labels->count - same, 22);
    free(got);
    for (long i = 0; i < count; i++)
        result_free(&r[i]);
    result_free(&all);
    net_close(&n);
    golden_free(gold);
}
END_TEST

/* ---- what a graph holds ---- */

static const struct {
    const char *head, *keys, *text;
} nets[] = {
    {"depth", "tiny_depth",
     "UNet 32,64,128,128; VAE 32,64,128,128; 3 steps; 10 per-step prompts of "
     "64 with adapter"},
    {"upernet", "tiny_seg",
     "UNet 32,64,128,128; VAE 32,64,128,128; 3 steps; 12 prompts of 64"},
    {"pose", "tiny_pose",
     "UNet 32,64,128,128; VAE 32,64,128,128; 3 steps; 10 per-step prompts of "
     "64 with adapter"},
};
#define NNETS (int)(sizeof nets / sizeof *nets)

START_TEST(architecture)
{
    struct mp_error err = {0};
    char text[256];
    size_t at = 0;
    struct net n;

    net_open(&n, nets[_i].head, weights_path(nets[_i].keys));
    mp_backbone_describe(&n.arch, text, sizeof text);
    ck_assert_str_eq(text, nets[_i].text);
    net_build(&n, (int64_t[]){1, 64, 64, 3});
    ck_assert_msg(!mp_graph_check(n.g, &err), "%s", err.text);
    ck_assert_msg(!mp_graph_unexpected(n.g, &at), "%s",
                  mp_weights_at(n.w, at - 1)->name);
    net_close(&n);
}
END_TEST

START_TEST(plain_stable_diffusion)
{
    struct mp_weights *w = NULL;
    struct mp_error err = {0};
    struct mp_arch arch;
    struct mp_graph *g;

    ck_assert(!mp_weights_open(&w, weights_path("tiny_sd15"), &err));
    g = mp_graph_new(w);
    ck_assert_int_lt(mp_backbone_probe(&arch, g, &err), 0);
    ck_assert_ptr_nonnull(strstr(err.text, "plain Stable Diffusion"));
    ck_assert_ptr_nonnull(strstr(err.text, "no meta prompts"));
    mp_graph_free(g);
    mp_weights_close(w);
}
END_TEST

/* A file that keeps only one name of the layer that has three is complete; one
 * without these two tensors is not, and both are named. */
START_TEST(left_out)
{
    static const char *const drop[][2] = {
        {"unet.unet.diffusion_model.out.", "cross_unet_conv3."},
        {"unet.unet.diffusion_model.input_blocks.4.0.in_layers.2.weight",
         "upconv3.1.weight"},
    };
    json_t *root = golden_json(golden_path("keys/tiny_seg.json"));
    json_t *list = json_object_get(root, "tensors");
    char keys[64], path[64];
    struct mp_error err = {0};
    struct net n;

    for (size_t i = json_array_size(list); i-- > 0;) {
        const char *key =
            json_string_value(json_object_get(json_array_get(list, i), "key"));

        for (int k = 0; k < 2; k++)
            if (!strncmp(key, drop[_i][k], strlen(drop[_i][k])))
                json_array_remove(list, i), k = 2;
    }
    snprintf(keys, sizeof keys, "%s/left_out.json", folder);
    snprintf(path, sizeof path, "%s/left_out.safetensors", folder);
    ck_assert(!json_dump_file(root, keys, 0));
    ck_assert_msg(!make_weights(keys, path, &err), "%s", err.text);
    unlink(keys);
    net_open(&n, "upernet", path);
    unlink(path);
    net_build(&n, (int64_t[]){1, 64, 64, 3});
    if (_i == 0) {
        ck_assert_msg(!mp_graph_check(n.g, &err), "%s", err.text);
    } else {
        ck_assert_int_eq(mp_graph_check(n.g, &err), MP_EFORMAT);
        ck_assert_msg(strstr(err.text, drop[1][0]) != NULL, "%s", err.text);
        ck_assert_msg(strstr(err.text, drop[1][1]) != NULL, "%s", err.text);
    }
    net_close(&n);
    json_decref(root);
}
END_TEST

/* Any size builds, and the maps are as large as they should be. */
START_TEST(sizes)
{
    static const int64_t size[][2] = {{8, 8},    {9, 15},  {8, 640},
                                      {75, 107}, {64, 65}, {511, 333}};
    struct net n;

    net_open(&n, nets[_i].head, weights_path(nets[_i].keys));
    for (size_t k = 0; k < sizeof size / sizeof *size; k++) {
        struct mp_error err = {0};
        int64_t want[2];

        net_build(&n, (int64_t[]){2, size[k][0], size[k][1], 3});
        ck_assert_msg(!mp_graph_check(n.g, &err), "%s", err.text);
        for (int i = 0; i < 2; i++) {
            int64_t cells = size[k][i] / 8;

            want[i] = _i ? (cells + 7) / 8 * 16 : 8 * cells;
        }
        ck_assert_int_eq(mp_dim(n.g, n.map, 0), 2);
        ck_assert_int_eq(mp_dim(n.g, n.map, 1), want[0]);
        ck_assert_int_eq(mp_dim(n.g, n.map, 2), want[1]);
    }
    net_close(&n);
}
END_TEST

int main(void)
{
    static const char *const keys[] = {"tiny_sd15", "tiny_depth", "tiny_seg",
                                       "tiny_pose", "tiny_pose_simple"};
    const int nkeys = (int)(sizeof keys / sizeof *keys);
    Suite *s = suite_create("net");
    TCase *t = tcase_create("net");
    SRunner *r = srunner_create(s);
    int failed;

    setvbuf(stdout, NULL, _IOLBF, 0); /* a failed test shows its table too */
    if (!mkdtemp(folder))
        return 99;
    for (int i = 0; i < nkeys; i++)
        make(keys[i]);
    tcase_set_timeout(t, 300);
    tcase_add_loop_test(t, vae, 0, 2 * 4);
    tcase_add_loop_test(t, unet, 0, 2 * 4);
    tcase_add_loop_test(t, network, 0, 2 * NWHOLE);
    tcase_add_test(t, slide);
    tcase_add_loop_test(t, architecture, 0, NNETS);
    tcase_add_test(t, plain_stable_diffusion);
    tcase_add_loop_test(t, left_out, 0, 2);
    tcase_add_loop_test(t, sizes, 0, 2);
    suite_add_tcase(s, t);
    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    for (int i = 0; i < nkeys; i++)
        unlink(weights_path(keys[i]));
    rmdir(folder);
    return failed != 0;
}
