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
    ck_assert_uint_ge(n, 4);
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
                       char **kinds, size_t classes)
{
    struct mp_pipeline_conf c = {.backend = "cpu", .precision = MP_PREC_FP32};
    char words[256], full[300], *save = NULL;
    struct mp_error err = {0};
    int rc = mp_head_find(&s->set.plugin, head, &err);

    ck_assert_msg(!rc, "%s", err.text);
    s->conf = mp_conf_new();
    s->set.head_conf = calloc(1, s->set.plugin->conf_size);
    s->set.kinds = kinds;
    s->classes.count = classes;
    s->set.classes = &s->classes;
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
    c.head = s->set.plugin;
    c.head_conf = s->set.head_conf;
    c.checkpoint =
        checkpoint(!strcmp(head, "upernet") ? "tiny_seg" : "tiny_depth");
    if (!rc)
        rc = mp_pipeline_open(&s->pipeline, &c, &err);
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
    for (size_t i = 0; i < s->job.nresult; i++)
        if (!strcmp(s->job.result[i].name, name))
            return &s->job.result[i];
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

START_TEST(segmentation)
{
    static char *kinds[] = {"labels", "probs", NULL};
    struct golden *gold = open_golden("seg_inference");
    json_t *root, *c, *list = cases_of("seg_inference", &root);
    size_t i, done = 0;

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
        stage_open(&s, "upernet", settings, kinds, classes);
        stage_load(&s, get(gold, id, "rgb"));
        /* as views come in a run: groups are merged on the way */
        for (size_t k = 0; k < s.job.nview; k++) {
            const struct mp_view *v = &s.job.view[k];
            uint8_t *px = mp_picture_job_view(&s.job, k, &owned);

            s.job.map[k] = stand_in(v, px, c, classes);
            memcpy(s.job.dim[k], (int64_t[]){v->h, v->w, (int64_t)classes},
                   sizeof *s.job.dim);
            if (owned)
                free(px);
            ck_assert_msg(!mp_picture_job_merge(&s.job, &s.set, s.pipeline),
                          "%s", s.job.err.text);
        }
        ck_assert_uint_eq(s.job.nmerged, s.job.nview);
        compare_seg(&s, id, get(gold, id, "prob"), get(gold, id, "pred"));
        stage_close(&s);
        done++;
    }
    ck_assert_uint_ge(done, 4);
    json_decref(root);
    golden_free(gold);
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
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
