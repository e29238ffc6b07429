/* SPDX-License-Identifier: MIT */
/*
 * test_protocol.c - what surrounds the network, against the published code:
 * pictures in, a stand-in for the network, results of the heads' merges out.
 */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "conf.h"
#include "device.h"
#include "eval/metrics.h"
#include "golden.h"
#include "image.h"
#include "make_weights.h"
#include "module.h"
#include "picture_job.h"

/* The complete set if it is at hand, else what lies here. */
static struct golden *open_golden(const char *topic)
{
    const char *all = shared_path("protocol/golden/%s.safetensors", topic);

    return golden_open(all ? all : golden_path("%s.safetensors", topic));
}

static const struct golden_tensor *get(const struct golden *g, const char *id,
                                       const char *name)
{
    char full[64];

    snprintf(full, sizeof full, "%s.%s", id, name);
    return golden_get(g, full);
}

/* json_decref *root. */
static json_t *cases_of(const char *topic, json_t **root)
{
    *root = golden_json(golden_path("%s.json", topic));
    ck_assert_ptr_nonnull(*root);
    return json_object_get(*root, "cases");
}

static double number(json_t *list, size_t i)
{
    return json_number_value(json_array_get(list, i));
}

/* ---- warp ---- */

START_TEST(warp)
{
    struct golden *gold = open_golden("pose_warp");
    json_t *root, *c, *list = cases_of("pose_warp", &root);
    size_t i, n = 0;

    ck_assert_ptr_nonnull(gold);
    json_array_foreach(list, i, c)
    {
        const char *id = json_string_value(json_object_get(c, "id"));
        const struct golden_tensor *in = get(gold, id, "in");
        const struct golden_tensor *out = get(gold, id, "out");
        uint8_t *got;

        if (!in) /* not among those that lie here */
            continue;
        got = malloc(out->count);
        mp_warp_u8(got, (int32_t)out->dim[1], (int32_t)out->dim[0], in->data,
                   (int32_t)in->dim[1], (int32_t)in->dim[0],
                   get(gold, id, "matrix")->data);
        ck_assert_msg(!memcmp(got, out->data, out->count), "%s", id);
        free(got);
        n++;
    }
    printf("warp: %zu of %zu cases, exact\n", n,
           json_array_size(json_object_get(root, "cases")));
    ck_assert_uint_eq(n, shared_path(".") ? 6 : 4);
    json_decref(root);
    golden_free(gold);
}
END_TEST

/* Whatever the matrix, nothing outside the picture is read. */
START_TEST(warp_far_away)
{
    static const float m[][6] = {{0, 0, 0, 0, 0, 0},
                                 {1e-30f, 0, 1e30f, 0, 1e-30f, -1e30f},
                                 {INFINITY, 0, 0, 0, 1, 0},
                                 {NAN, NAN, NAN, NAN, NAN, NAN},
                                 {1e30f, 0, -1e38f, 0, 1e30f, 1e38f}};
    uint8_t *one = calloc(1, 3), out[5 * 4 * 3];

    for (size_t i = 0; i < sizeof m / sizeof *m; i++)
        mp_warp_u8(out, 5, 4, one, 1, 1, m[i]);
    free(one);
}
END_TEST

/* ---- a head with settings, and pictures through it ---- */

struct stage {
    struct mp_settings set;
    struct mp_conf *conf;
    struct mp_devices devices;
    struct mp_pipeline *pipeline;
    struct mp_classes classes;
    char png[32];
    struct mp_input input;
    struct mp_picture_job job;
};

static const char *checkpoint(const char *name)
{
    static char path[64];
    struct mp_error err = {0};

    snprintf(path, sizeof path, "/tmp/mpipe-protocol.%d.safetensors",
             (int)getpid());
    ck_assert_msg(!make_weights(golden_path("keys/%s.json", name), path, &err),
                  "%s", err.text);
    return path;
}

static void stage_open(struct stage *s, const char *head, const char *settings,
                       char **kinds)
{
    char words[256], full[300], *save = NULL;
    struct mp_error err = {0};
    int rc = mp_head_find(&s->set.plugin, head, &err);

    ck_assert_msg(!rc, "%s", err.text);
    s->conf = mp_conf_new();
    s->set.head_conf = calloc(1, s->set.plugin->conf_size);
    s->set.kinds = kinds;
    snprintf(words, sizeof words, "%s", settings);
    for (char *w = strtok_r(words, ";", &save); w && !rc;
         w = strtok_r(NULL, ";", &save)) {
        snprintf(full, sizeof full, "%s.%s", head, w);
        rc = mp_conf_set(s->conf, full, &err);
    }
    if (!rc)
        rc = mp_conf_section(s->conf, head, s->set.plugin->options,
                             s->set.head_conf, &err);
    if (!rc)
        rc = mp_conf_finish(s->conf, NULL, &err);
    ck_assert_msg(!rc, "%s", err.text);
}

/* For merges, which depend on no weights: any that fit the head. */
static void stage_pipeline(struct stage *s, const char *keys)
{
    struct mp_pipeline_conf c = {.head = s->set.plugin,
                                 .head_conf = s->set.head_conf,
                                 .checkpoint = checkpoint(keys),
                                 .backend = "cpu",
                                 .precision = MP_PREC_FP32,
                                 .devices = &s->devices};
    struct mp_error err = {0};
    int rc = mp_pipeline_open(&s->pipeline, &c, &err);

    unlink(c.checkpoint);
    ck_assert_msg(!rc, "%s", err.text);
}

static void stage_close(struct stage *s)
{
    mp_picture_job_free(&s->job);
    mp_pipeline_close(s->pipeline);
    mp_conf_free(s->conf);
    free(s->set.head_conf);
}

/* Through a file, as a run has it. */
static void stage_load(struct stage *s, const struct golden_tensor *rgb)
{
    struct mp_png png = {.width = (int32_t)rgb->dim[1],
                         .height = (int32_t)rgb->dim[0],
                         .channels = 3,
                         .bits = 8,
                         .px = rgb->data};
    struct mp_error err = {0};

    snprintf(s->png, sizeof s->png, "/tmp/mpipe-protocol.%d.png",
             (int)getpid());
    s->input = (struct mp_input){s->png, (char *)"x"};
    ck_assert_msg(!mp_png_write(s->png, &png, &err), "%s", err.text);
    ck_assert_msg(!mp_picture_job_load(&s->job, &s->input, &s->set), "%s",
                  s->job.err.text);
    unlink(s->png);
}

static const struct mp_tensor *result_of(const struct stage *s,
                                         const char *name)
{
    for (size_t i = 0; i < s->job.answer.nresult; i++)
        if (!strcmp(s->job.answer.result[i].name, name))
            return &s->job.answer.result[i];
    ck_abort_msg("no %s", name);
    return NULL;
}

/* ---- segmentation: windows, scales, flips ---- */

/* Logits that are linear in the pixel and in its place in the window. */
static float *stand_in(const struct mp_view *v, const uint8_t *px, json_t *c,
                       size_t classes)
{
    float *map = malloc((size_t)v->w * (size_t)v->h * classes * sizeof *map);
    json_t *a = json_object_get(c, "A"), *b = json_object_get(c, "B");
    json_t *cc = json_object_get(c, "C"), *d = json_object_get(c, "D");

    for (int32_t i = 0; i < v->w * v->h; i++)
        for (size_t k = 0; k < classes; k++) {
            double x = number(d, k) + number(b, k) * (i / v->w + 0.5) / v->h +
                       number(cc, k) * (i % v->w + 0.5) / v->w;

            for (size_t ch = 0; ch < 3; ch++)
                x += number(json_array_get(a, k), ch) *
                     (px[3 * i + (int32_t)ch] - 127.5) / 127.5;
            map[(size_t)i * classes + k] = (float)x;
        }
    return map;
}

static void seg_settings(char *text, size_t size, json_t *c)
{
    json_t *box = json_object_get(c, "img_scale"), *r;
    json_t *ratios = json_object_get(c, "ratios");
    int crop = (int)json_integer_value(json_object_get(c, "crop"));
    int stride = (int)json_integer_value(json_object_get(c, "stride"));
    int n;
    size_t i;

    n = snprintf(text, size,
                 "mode=slide;crop=%dx%d;stride=%dx%d;scale=%dx%d;flip=%s", crop,
                 crop, stride, stride, (int)number(box, 0), (int)number(box, 1),
                 json_is_true(json_object_get(c, "flip")) ? "yes" : "no");
    if (json_is_array(ratios))
        n += snprintf(text + n, size - (size_t)n, ";ratios=");
    json_array_foreach(ratios, i, r) n += snprintf(
        text + n, size - (size_t)n, "%s%g", i ? " " : "", json_number_value(r));
}

/* Probabilities within 2e-5; labels equal wherever the two likeliest classes
 * differ by more than 1e-4. */
static void compare_seg(const struct stage *s, const char *id,
                        const struct golden_tensor *prob,
                        const struct golden_tensor *pred)
{
    const float *got = result_of(s, "probs")->data, *want = prob->data;
    const int32_t *labels = result_of(s, "labels")->data;
    size_t classes = (size_t)prob->dim[0], n = pred->count, close = 0;
    double most = 0;

    for (size_t i = 0; i < n; i++) {
        float best = 0, second = 0;

        for (size_t k = 0; k < classes; k++) {
            float p = want[k * n + i];

            most = fmax(most, fabs((double)got[i * classes + k] - p));
            second = p > best ? best : fmaxf(second, p);
            best = fmaxf(best, p);
        }
        if (best - second > 1e-4f)
            ck_assert_int_eq(labels[i], ((const uint8_t *)pred->data)[i]);
        else
            close++;
    }
    printf("seg_inference %s: %zu views, largest difference %.1e of 2e-5, "
           "%zu of %zu labels too close to call\n",
           id, s->job.nview, most, close, n);
    ck_assert_double_le(most, 2e-5);
}

/* A window is its part of what the published network saw of the first size, of
 * planes 3 x h x w; that is not here for all cases. */
static size_t check_input(const struct mp_view *v, const uint8_t *px,
                          const struct golden_tensor *all)
{
    const float *want;

    if (v->group > 0 || !all)
        return 0;
    ck_assert(all->dim[1] == v->scaled_h && all->dim[2] == v->scaled_w);
    want = all->data;
    for (int32_t i = 0; i < 3 * v->w * v->h; i++) {
        int32_t x = v->x + i / 3 % v->w, y = v->y + i / 3 / v->w;

        ck_assert_float_eq(((float)px[i] - 127.5f) / 127.5f,
                           want[(i % 3 * v->scaled_h + y) * v->scaled_w + x]);
    }
    return 1;
}

/* The network gave this for view k; frees it. */
static void see(struct stage *s, size_t k, float *logits, size_t classes)
{
    const struct mp_view *v = &s->job.view[k];
    struct mp_arena *a = &s->devices.first->arena;
    size_t bytes = (size_t)v->h * (size_t)v->w * classes * sizeof *logits;
    struct mp_map *m = &s->job.map[k];

    *m = (struct mp_map){.ndim = 4, .dim = {1, v->h, v->w, (int64_t)classes}};
    ck_assert(!mp_held_new(&m->held, a, bytes, NULL));
    ck_assert(
        !a->backend->put(a->device, mp_held_at(m->held), logits, bytes, NULL));
    free(logits);
}

START_TEST(segmentation)
{
    static char *kinds[] = {"labels", "probs", NULL};
    struct golden *gold = open_golden("seg_inference");
    json_t *root, *c, *list = cases_of("seg_inference", &root);
    size_t i, done = 0, inputs = 0;

    ck_assert_ptr_nonnull(gold);
    json_array_foreach(list, i, c)
    {
        const char *id = json_string_value(json_object_get(c, "id"));
        size_t classes =
            (size_t)json_integer_value(json_object_get(c, "num_classes"));
        struct stage s = {.job = {.nview = 0}};
        char settings[256];
        int owned;

        if (!get(gold, id, "prob"))
            continue;
        seg_settings(settings, sizeof settings, c);
        stage_open(&s, "upernet", settings, kinds);
        stage_pipeline(&s, "tiny_seg");
        s.classes.count = classes;
        s.set.classes = &s.classes;
        stage_load(&s, get(gold, id, "rgb"));
        /* as views come in a run: groups are merged on the way */
        for (size_t k = 0; k < s.job.nview; k++) {
            const struct mp_view *v = &s.job.view[k];
            uint8_t *px = mp_picture_job_view(&s.job, k, &owned);

            inputs += check_input(v, px, get(gold, id, "net_input0"));
            see(&s, k, stand_in(v, px, c, classes), classes);
            if (owned)
                free(px);
            ck_assert_msg(!mp_picture_job_merge(&s.job, &s.set, s.pipeline),
                          "%s", s.job.err.text);
        }
        ck_assert(!mp_picture_job_settle(&s.job, s.pipeline));
        ck_assert_uint_eq(s.job.nmerged, s.job.nview);
        compare_seg(&s, id, get(gold, id, "prob"), get(gold, id, "pred"));
        stage_close(&s);
        done++;
    }
    ck_assert_uint_eq(done, shared_path(".") ? 6 : 4);
    ck_assert_uint_eq(inputs, shared_path(".") ? 11 : 5);
    json_decref(root);
    golden_free(gold);
}
END_TEST

/* ---- real pictures ---- */

/* CRC-32 of PNG and zlib, of the pixels. */
static json_int_t crc(const uint8_t *p, size_t n)
{
    uint32_t c = ~(uint32_t)0;

    for (; n; n--) {
        c ^= *p++;
        for (int k = 0; k < 8; k++)
            c = c >> 1 ^ (c & 1 ? 0xedb88320 : 0);
    }
    return ~c;
}

/* The view k of the picture is that of the published code. */
static void check_view(struct stage *s, const char *file, size_t k, json_t *hw,
                       json_t *want)
{
    int owned;
    uint8_t *px = mp_picture_job_view(&s->job, k, &owned);
    const struct mp_view *v = &s->job.view[k];

    ck_assert_int_eq(v->h, (int)number(hw, 0));
    ck_assert_int_eq(v->w, (int)number(hw, 1));
    ck_assert_msg(crc(px, 3 * (size_t)v->w * (size_t)v->h) ==
                      json_integer_value(want),
                  "%s, view %zu", file, k);
    if (owned)
        free(px);
}

/* Views of a head, as many as the file has sums for. */
static void check_views(const char *head, const char *settings,
                        const char *file, const struct mp_box *box, json_t *c)
{
    static char *kinds[] = {"raw", NULL};
    json_t *result = json_object_get(c, "result");
    json_t *mirrored = json_object_get(c, "result_flipped_crc32");
    struct stage s = {.job = {.nview = 0}};

    s.input = (struct mp_input){(char *)file, (char *)"x"};
    stage_open(&s, head, settings, kinds);
    if (box) {
        s.job.box = malloc(sizeof *box);
        *s.job.box = *box;
        s.job.nbox = 1;
    }
    ck_assert_msg(!mp_picture_job_load(&s.job, &s.input, &s.set), "%s",
                  s.job.err.text);
    ck_assert_uint_eq(s.job.nview, mirrored ? 2 : 1);
    check_view(&s, file, 0, json_object_get(result, "hw"),
               json_object_get(result, "crc32"));
    if (mirrored)
        check_view(&s, file, 1, json_object_get(result, "hw"), mirrored);
    stage_close(&s);
}

static void check_resize(const char *file, json_t *c)
{
    json_t *result = json_object_get(c, "result");
    json_t *hw = json_object_get(result, "hw");
    int32_t h = (int32_t)number(hw, 0), w = (int32_t)number(hw, 1);
    uint8_t *px = malloc((size_t)w * (size_t)h * 3);
    struct mp_error err = {0};
    struct mp_picture p;

    ck_assert_msg(!mp_picture_read(&p, file, &err), "%s", err.text);
    ck_assert(!mp_resize_u8(px, w, h, p.rgb, p.width, p.height, 3, &err));
    ck_assert(crc(px, (size_t)w * (size_t)h * 3) ==
              json_integer_value(json_object_get(result, "crc32")));
    mp_picture_free(&p);
    free(px);
}

/* Measured pixels of a crop, their sum, and how many count. */
static size_t count_depth(const uint16_t *map, int32_t w, struct mp_rect r,
                          int64_t *sum)
{
    size_t n = 0;

    for (int32_t y = r.y0; y < r.y1; y++)
        for (int32_t x = r.x0; x < r.x1; x++) {
            n += map[y * w + x] != 0;
            *sum += map[y * w + x];
        }
    return n;
}

static struct mp_rect within(struct mp_rect part, struct mp_rect of)
{
    return (struct mp_rect){of.x0 + part.x0, of.y0 + part.y0, of.x0 + part.x1,
                            of.y0 + part.y1};
}

static void check_depth_map(const char *file, json_t *c)
{
    struct mp_error err = {0};
    struct mp_rect kb;
    int64_t sum = 0, unused = 0;
    uint16_t *map;
    int32_t w, h;
    int bits;

    ck_assert_msg(!mp_map_read(&map, &w, &h, &bits, file, &err), "%s",
                  err.text);
    kb = mp_depth_kb_crop(w, h);
    ck_assert_int_eq(kb.y0, json_integer_value(json_object_get(c, "top")));
    ck_assert_int_eq(kb.x0, json_integer_value(json_object_get(c, "left")));
    ck_assert_uint_eq(count_depth(map, w, kb, &sum),
                      json_integer_value(json_object_get(c, "nonzero")));
    ck_assert_int_eq(sum, json_integer_value(json_object_get(c, "sum")));
    ck_assert_uint_eq(
        count_depth(map, w, within(mp_depth_crop(MP_CROP_GARG, 1216, 352), kb),
                    &unused),
        json_integer_value(json_object_get(c, "nonzero_in_garg_crop")));
    ck_assert_uint_eq(
        count_depth(map, w, within(mp_depth_crop(MP_CROP_EIGEN, 1216, 352), kb),
                    &unused),
        json_integer_value(json_object_get(c, "nonzero_in_eigen_crop")));
    free(map);
}

static void check_scaled(const char *file, json_t *c)
{
    double ratio = json_number_value(json_object_get(c, "ratio"));
    json_t *scale = json_object_get(c, "scale");
    int wide = number(scale, 0) / number(scale, 1) > 3;
    char settings[96];

    snprintf(settings, sizeof settings, "scale=2048x%d;ratios=%g;flip=yes",
             wide ? 512 : 1024, ratio);
    check_views("upernet", settings, file, NULL, c);
}

static void check_person(const char *file, json_t *c)
{
    json_t *b = json_object_get(c, "bbox_xywh");
    struct mp_box box = {number(b, 0), number(b, 1), number(b, 2), number(b, 3),
                         1};

    check_views("pose", "input=256x192", file, &box, c);
}

START_TEST(real_pictures)
{
    json_t *root, *c, *list = cases_of("real_preprocess", &root);
    size_t i;

    if (!shared_path("protocol")) {
        printf("real_preprocess: SKIPPED, MPIPE_SHARED is not set\n");
        json_decref(root);
        return;
    }
    json_array_foreach(list, i, c)
    {
        const char *op = json_string_value(json_object_get(c, "op"));
        const char *name = json_string_value(json_object_get(c, "file"));
        const char *file = shared_path("protocol/samples/%s", name);

        if (!strcmp(op, "imrescale"))
            check_scaled(file, c);
        else if (!strcmp(op, "kb_crop"))
            check_views("depth", "crop=kb", file, NULL, c);
        else if (!strncmp(op, "kb_crop of", 10))
            check_depth_map(file, c);
        else if (!strncmp(op, "pose crop", 9))
            check_person(file, c);
        else
            check_resize(file, c);
    }
    printf("real_preprocess: %zu cases, exact\n", i);
    ck_assert_uint_eq(i, 53);
    json_decref(root);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("protocol");
    TCase *t = tcase_create("protocol");
    SRunner *r;
    int failed;

    tcase_set_timeout(t, 300);
    tcase_add_test(t, warp);
    tcase_add_test(t, warp_far_away);
    tcase_add_test(t, segmentation);
    tcase_add_test(t, real_pictures);
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
