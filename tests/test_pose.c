/* SPDX-License-Identifier: MIT */
/*
 * test_pose.c - the pose head's persons against the numbers of mmpose 0.24:
 * where they are cut out, how heat maps become key points, which persons stay;
 * how they are drawn; and the head as a whole, without a network and with one.
 */
#include <check.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "boxes.h"
#include "golden.h"
#include "heads.h"
#include "make_weights.h"
#include "plugins/pose/pose.h"
#include "weights.h"

/* of files that tests make */
static char folder[] = "/tmp/mpipe-pose-XXXXXX";

static int clean_up(void)
{
    char command[100];

    snprintf(command, sizeof command, "rm -rf %s/*", folder);
    return system(command);
}

#define H 64
#define W 48

static double number(json_t *list, size_t i)
{
    return json_number_value(json_array_get(list, i));
}

static double member(json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}

static void set_place(struct person *p, json_t *center, json_t *scale)
{
    for (size_t i = 0; i < 2; i++) {
        p->center[i] = (float)number(center, i);
        p->scale[i] = (float)number(scale, i);
    }
}

/* The whole set, if it is there, or what of it is in the project. */
static const char *best_path(const char *file)
{
    const char *all = shared_path("protocol/golden/%s", file);

    return all && !access(all, R_OK) ? all : golden_path("%s", file);
}

/* ---- boxes and matrices ---- */

START_TEST(boxes)
{
    json_t *root = golden_json(golden_path("pose_boxes.json")), *c;
    size_t i;

    ck_assert_ptr_nonnull(root);
    json_array_foreach(json_object_get(root, "cases"), i, c)
    {
        json_t *b = json_object_get(c, "bbox_xywh");
        json_t *center = json_object_get(c, "center");
        json_t *scale = json_object_get(c, "scale");
        struct mp_box box = {number(b, 0), number(b, 1), number(b, 2),
                             number(b, 3), 0.5};
        struct person p;

        person_place(&p, &box, 0.75, 1.25);
        ck_assert_double_eq(p.score, 0.5);
        for (size_t k = 0; k < 2; k++) { /* the same bits */
            ck_assert_float_eq(p.center[k], (float)number(center, k));
            ck_assert_float_eq(p.scale[k], (float)number(scale, k));
        }
    }
    ck_assert_uint_eq(i, 30);
    json_decref(root);
}
END_TEST

START_TEST(matrices)
{
    json_t *root = golden_json(golden_path("pose_boxes.json")), *c;
    size_t i;

    json_array_foreach(json_object_get(root, "warp_matrices"), i, c)
    {
        json_t *want = json_object_get(c, "matrix_f32");
        struct person p = {0};
        float m[6];

        set_place(&p, json_object_get(c, "center"),
                  json_object_get(c, "scale"));
        person_matrix(m, &p, member(c, "rotation_deg"), 192, 256);
        for (size_t k = 0; k < 6; k++)
            ck_assert_float_eq(
                m[k], (float)number(json_array_get(want, k / 3), k % 3));
    }
    ck_assert_uint_eq(i, 30);
    json_decref(root);
}
END_TEST

/* Points of the picture go where they should. */
START_TEST(points)
{
    json_t *root = golden_json(golden_path("pose_warp.json")), *c;
    size_t i;

    json_array_foreach(json_object_get(root, "cases"), i, c)
    {
        json_t *wh = json_object_get(c, "out_wh");
        json_t *in = json_object_get(c, "points_in");
        json_t *out = json_object_get(c, "points_out");
        struct person p = {0};
        float m[6];

        set_place(&p, json_object_get(c, "center"),
                  json_object_get(c, "scale"));
        person_matrix(m, &p, member(c, "rotation"), (int32_t)number(wh, 0),
                      (int32_t)number(wh, 1));
        for (size_t k = 0; k < json_array_size(in); k++)
            for (size_t r = 0; r < 2; r++) {
                json_t *xy = json_array_get(in, k);
                double got = (double)m[3 * r] * number(xy, 0) +
                             (double)m[3 * r + 1] * number(xy, 1) +
                             (double)m[3 * r + 2];

                ck_assert_double_eq_tol(got, number(json_array_get(out, k), r),
                                        1e-4);
            }
    }
    ck_assert_uint_eq(i, 6);
    json_decref(root);
}
END_TEST

/* ---- heat maps ---- */

static const struct golden_tensor *tensor(const struct golden *g,
                                          const char *id, const char *name)
{
    char full[64];
    const struct golden_tensor *t;

    snprintf(full, sizeof full, "%s.%s", id, name);
    t = golden_get(g, full);
    ck_assert_msg(t != NULL, "no %s", full);
    return t;
}

/* What graphs run on: plain C, and the backend that is tested. */
static const struct mp_backend *backend(int i)
{
    const char *name = getenv("MPIPE_TEST_BACKEND");
    const struct mp_backend *b = &mp_backend_cpu;
    struct mp_error err = {0};

    if (i == 0)
        return &mp_backend_ref;
    if (name) /* probed first, as always */
        ck_assert_msg(!mp_backend_find(&b, name, &err) && b->probe(&err) > 0,
                      "%s", err.text);
    return b;
}
#define BACKENDS 2

/* Of n maps in planes, H x W: x, y and height of each. */
static void find_peaks(float (*peak)[3], const float *plane, int64_t n,
                       const struct mp_backend *on)
{
    struct mp_graph *g = mp_graph_new(NULL);
    float *x = malloc((size_t)(n * H * W) * sizeof *x);
    struct mp_error err = {0};
    struct result r;

    for (int64_t i = 0; i < n * H * W; i++)
        x[i] = plane[i % n * H * W + i / n];
    mp_output(g, "peaks",
              mp_heatmap_peaks(
                  g, mp_input(g, "x", MP_F32, 4, (int64_t[]){1, H, W, n})));
    ck_assert_msg(!run_on(&r, on, g, (const void *const[]){x}, &err), "%s",
                  err.text);
    ck_assert(r.t[0].ndim == 3 && r.t[0].dim[0] == 1 && r.t[0].dim[1] == n &&
              r.t[0].dim[2] == 3);
    memcpy(peak, r.data[0], (size_t)n * sizeof *peak);
    result_free(&r);
    mp_graph_free(g);
    free(x);
}

static const char *const decode_cases[] = {"clean", "noisy", "edge",
                                           "two_peaks", "degenerate"};
#define DECODE_CASES 5

/* Peaks that are there and are above 0.01 within 2e-3 pixels of the maps, and
 * of the picture accordingly; others where their maximum is. */
START_TEST(decoding)
{
    json_t *root = golden_json(golden_path("pose_decode.json"));
    int at_case = _i % DECODE_CASES;
    json_t *c = json_array_get(json_object_get(root, "cases"), (size_t)at_case);
    struct golden *g = golden_open(best_path("pose_decode.safetensors"));
    const char *id = decode_cases[at_case];
    const struct golden_tensor *maps = tensor(g, id, "heatmaps");
    const float *argmax = tensor(g, id, "argmax")->data;
    const float *refined = tensor(g, id, "refined")->data;
    const float *preds = tensor(g, id, "preds")->data;
    const float *scores = tensor(g, id, "scores")->data;
    size_t n = (size_t)maps->dim[0], points = (size_t)maps->dim[1];
    const struct mp_backend *on = backend(_i / DECODE_CASES);
    static float all[POINTS * H * W];
    double worst = 0;

    ck_assert_uint_le(points, POINTS);
    ck_assert_str_eq(json_string_value(json_object_get(c, "id")), id);
    ck_assert(maps->dim[2] == H && maps->dim[3] == W);
    for (size_t i = 0; i < n; i++) {
        struct person p = {0};
        float peak[POINTS][3];

        set_place(&p, json_array_get(json_object_get(c, "center"), i),
                  json_array_get(json_object_get(c, "scale"), i));
        for (size_t k = 0; k < POINTS; k++) /* some of them, in turns */
            memcpy(all + k * H * W,
                   (const float *)maps->data +
                       (i * points + k % points) * H * W,
                   sizeof(float) * H * W);
        find_peaks(peak, all, POINTS, on);
        person_decode(&p, peak[0], H, W);
        for (size_t k = 0; k < points; k++) {
            size_t at = i * points + k;
            const float *xy = peak[k];

            ck_assert_float_eq(xy[2], scores[at]);
            ck_assert_double_eq(p.point[k][2], scores[at]);
            if (argmax[2 * at] < 0 || scores[at] <= 0.01F) {
                ck_assert((argmax[2 * at] < 0) == (scores[at] <= 0));
                if (scores[at] <= 0)
                    ck_assert(xy[0] == -1 && xy[1] == -1);
                continue;
            }
            for (size_t r = 0; r < 2; r++) {
                double scale = (double)p.scale[r] * 200 / (r ? H - 1 : W - 1);
                double e = fabs((double)xy[r] - (double)refined[2 * at + r]);

                worst = e > worst ? e : worst;
                ck_assert_double_le(e, 2e-3);
                ck_assert_double_eq_tol(
                    p.point[k][r], (double)preds[2 * at + r], 2e-3 * scale);
            }
        }
    }
    printf("decoding %-10s on %-6s %zu x %zu maps: at most %.1e pixels off\n",
           id, on->name, n, points, worst);
    golden_free(g);
    json_decref(root);
}
END_TEST

/* Maps without a peak: nothing above 0 has no place, a flat one its first. */
START_TEST(no_peak)
{
    static const float level[] = {0, -0.5f, 0.0005f, 0.3f};
    static float maps[4 * H * W];
    float peak[4][3];

    for (size_t i = 0; i < 4 * H * W; i++)
        maps[i] = level[i / (H * W)];
    find_peaks(peak, maps, 4, backend(_i));
    for (int i = 0; i < 4; i++) {
        ck_assert_float_eq(peak[i][2], level[i]);
        ck_assert_float_eq(peak[i][0], i < 2 ? -1 : 0);
        ck_assert_float_eq(peak[i][1], i < 2 ? -1 : 0);
    }
}
END_TEST

/* What the head makes of the maps of these n views, each h x w x POINTS;
 * result_free. */
static void merge(struct result *r, const struct head *head,
                  const struct mp_backend *on, float *const *map, int64_t h,
                  int64_t w, size_t n, const char *wants)
{
    struct mp_graph *g = mp_graph_new(NULL);
    mp_node *out = calloc(n, sizeof *out);
    struct mp_sink want = {.wants = wants};
    struct mp_merge m = {.out = out, .nview = n, .ngroup = 1, .want = &want};
    struct mp_error err = {0};

    for (size_t i = 0; i < n; i++)
        out[i] = mp_input(g, "map", MP_F32, 4, (int64_t[]){1, h, w, POINTS});
    head->p->merge(head->conf, g, &m);
    ck_assert_msg(!run_on(r, on, g, (const void *const *)map, &err), "%s",
                  err.text);
    mp_graph_free(g);
    free(out);
}

/* planes C x H x W as the network has them, H x W x C */
static float *channels_last(const struct golden_tensor *t, int64_t at)
{
    int64_t hw = t->dim[2] * t->dim[3];
    const float *x = (const float *)t->data + at * POINTS * hw;
    float *y = malloc((size_t)(POINTS * hw) * sizeof *y);

    for (int64_t i = 0; i < hw; i++)
        for (int64_t k = 0; k < POINTS; k++)
            y[i * POINTS + k] = x[k * hw + i];
    return y;
}

/* The mean of a map and that of the mirrored picture, or just the map: the same
 * bits. */
START_TEST(mirrored)
{
    struct golden *g = golden_open(best_path("pose_flip.safetensors"));
    const struct golden_tensor *t = golden_get(g, "hm");
    const struct golden_tensor *flip = golden_get(g, "hm_of_flipped_input");
    const struct golden_tensor *averaged = golden_get(g, "averaged");
    int both = _i / BACKENDS;
    struct head head = head_new("pose", both ? "flip=yes" : "");
    size_t n = (size_t)t->dim[0], bytes;
    float **map = calloc(2 * n, sizeof *map);
    struct result r;

    for (size_t i = 0; i < n; i++)
        if (both) {
            map[2 * i] = channels_last(t, (int64_t)i);
            map[2 * i + 1] = channels_last(flip, (int64_t)i);
        } else
            map[i] = channels_last(t, (int64_t)i);
    merge(&r, &head, backend(_i % BACKENDS), map, t->dim[2], t->dim[3],
          both ? 2 * n : n, "json heatmaps");
    ck_assert_uint_eq(r.n, 2);
    ck_assert(r.t[1].ndim == 4 && r.t[1].dim[0] == t->dim[0] &&
              r.t[1].dim[3] == POINTS);
    bytes = (size_t)(t->dim[2] * t->dim[3]) * POINTS * sizeof(float);
    for (size_t i = 0; i < n; i++) {
        float *want = channels_last(both ? averaged : t, (int64_t)i);

        ck_assert(!memcmp((const char *)r.data[1] + i * bytes, want, bytes));
        free(want);
    }
    result_free(&r);
    for (size_t i = 0; i < 2 * n; i++)
        free(map[i]);
    free(map);
    head_free(&head);
    golden_free(g);
}
END_TEST

/* More maps than one step takes: everyone is as alone, the same bits. */
START_TEST(crowd)
{
    enum { PERSONS = 150, SIDE_H = 12, SIDE_W = 9, HWC = 12 * 9 * POINTS };
    struct head head = head_new("pose", "flip=yes input=48x32");
    float *map[2 * PERSONS];
    struct result all, one;

    for (int i = 0; i < 2 * PERSONS; i++) {
        map[i] = malloc(HWC * sizeof *map[i]);
        for (int k = 0; k < HWC; k++)
            map[i][k] = (float)((k * 7919 + i * 104729) % 1009) / 1009;
    }
    merge(&all, &head, backend(_i), map, SIDE_H, SIDE_W, 2 * PERSONS, "json");
    ck_assert_uint_eq(all.n, 1);
    ck_assert_int_eq(all.t[0].dim[0], PERSONS);
    for (int i = 0; i < PERSONS; i++) {
        merge(&one, &head, backend(_i), map + 2 * i, SIDE_H, SIDE_W, 2, "json");
        ck_assert(!memcmp((const float *)all.data[0] + i * 3 * POINTS,
                          one.data[0], 3 * POINTS * sizeof(float)));
        result_free(&one);
    }
    result_free(&all);
    for (int i = 0; i < 2 * PERSONS; i++)
        free(map[i]);
    head_free(&head);
}
END_TEST

/* ---- which persons stay ---- */

static void set_points(struct person *p, json_t *list)
{
    for (size_t k = 0; k < POINTS; k++)
        for (size_t i = 0; i < 3; i++)
            p->point[k][i] = number(json_array_get(list, k), i);
}

START_TEST(best)
{
    json_t *root = golden_json(best_path("pose_nms.json")), *c;
    size_t i;

    json_array_foreach(json_object_get(root, "cases"), i, c)
    {
        json_t *list = json_object_get(c, "persons");
        json_t *rescored = json_object_get(c, "rescored");
        json_t *want = json_object_get(c, "keep");
        json_t *oks = json_object_get(c, "oks_matrix");
        size_t n = json_array_size(list), keep[64];
        struct person p[64];

        ck_assert_uint_le(n, 64);
        for (size_t k = 0; k < n; k++) {
            json_t *q = json_array_get(list, k);

            set_points(&p[k], json_object_get(q, "keypoints"));
            p[k].scale[0] = p[k].scale[1] =
                (float)(sqrt(member(q, "area")) / 200);
            p[k].score = member(q, "box_score");
            person_rescore(&p[k], member(c, "vis_thr"));
            ck_assert_double_eq_tol(p[k].score, number(rescored, k), 1e-7);
        }
        for (size_t k = 0; k < n * n; k++)
            ck_assert_double_eq_tol(
                (double)person_likeness(&p[k / n], &p[k % n]),
                number(json_array_get(oks, k / n), k % n), 2e-6);
        ck_assert_uint_eq(persons_best(keep, p, n, member(c, "oks_thr")),
                          json_array_size(want));
        for (size_t k = 0; k < json_array_size(want); k++)
            ck_assert_uint_eq(keep[k], (size_t)number(want, k));
    }
    ck_assert_uint_eq(i, shared_path(".") ? 6 : 5);
    json_decref(root);
}
END_TEST

/* Equal scores: the later first. Everyone is as they are themselves. */
START_TEST(ties)
{
    struct person p[3] = {0};
    size_t keep[3];

    for (size_t i = 0; i < 3; i++) {
        p[i].scale[0] = p[i].scale[1] = 0.5f;
        p[i].score = i == 1 ? 0.5 : 0.7;
        p[i].point[0][0] = 1000 * (double)i;
    }
    ck_assert_float_eq(person_likeness(&p[0], &p[0]), 1);
    ck_assert_uint_eq(persons_best(keep, p, 3, 0.95), 3);
    ck_assert(keep[0] == 2 && keep[1] == 0 && keep[2] == 1);
    ck_assert_uint_eq(persons_best(keep, p, 3, 0.9), 1); /* 16 of 17 */
    ck_assert_uint_eq(keep[0], 2);
    ck_assert_uint_eq(persons_best(keep, p, 0, 0.9), 0);
}
END_TEST

static void same_numbers(json_t *got, json_t *want)
{
    ck_assert_uint_eq(json_array_size(got), json_array_size(want));
    for (size_t i = 0; i < json_array_size(want); i++)
        ck_assert_double_eq_tol(number(got, i), number(want, i),
                                1e-6 * fabs(number(want, i)) + 1e-9);
}

/* The box of the detector's list where the published code has it, bit by bit.
 */
static void place(struct person *p, const struct mp_box *box, json_t *want)
{
    struct person there;

    person_place(p, box, 0.75, 1.25);
    set_place(&there, json_object_get(want, "center"),
              json_object_get(want, "scale"));
    for (int k = 0; k < 2; k++) {
        ck_assert_float_eq(p->center[k], there.center[k]);
        ck_assert_float_eq(p->scale[k], there.scale[k]);
    }
    ck_assert_double_eq(p->score, member(want, "box_score"));
}

/* Boxes and key points of many pictures to the list of results: rescored, the
 * doubles left out, best first, pictures in the order of their first box. */
START_TEST(results)
{
    json_t *root = golden_json(golden_path("coco_e2e.json"));
    json_t *want = golden_json(golden_path("coco_e2e_expected_keypoints.json"));
    json_t *list = json_object_get(root, "cases"), *c, *got = json_array();
    int64_t seen[64];
    size_t i, n = 0, persons = 0;
    struct mp_boxes *boxes;
    struct mp_error err;

    ck_assert(!mp_boxes_open(&boxes, golden_path("coco_e2e_boxes.json"), &err));
    json_array_foreach(list, i, c)
    {
        int64_t id = (int64_t)member(c, "image_id"), found;
        size_t k = 0, count = 0, nbox, keep[64], kept;
        struct mp_box *box;
        struct person p[64];
        char text[32], *json;
        json_t *other;

        while (k < n && seen[k] != id)
            k++;
        if (k < n)
            continue;
        seen[n++] = id;
        snprintf(text, sizeof text, "%d", (int)id);
        ck_assert(!mp_boxes_of(boxes, text, &found, &box, &nbox, &err));
        json_array_foreach(list, k, other)
        {
            if ((int64_t)member(other, "image_id") != id)
                continue;
            ck_assert_uint_lt(count, nbox);
            place(&p[count], &box[count], other);
            set_points(&p[count], json_object_get(other, "preds"));
            person_rescore(&p[count++], 0.2);
        }
        ck_assert_uint_eq(count, nbox);
        persons += count;
        free(box);
        kept = persons_best(keep, p, count, 0.9);
        json = persons_json(p, keep, kept, text);
        other = json_loads(json, 0, NULL);
        ck_assert_ptr_nonnull(other);
        json_array_extend(got, other);
        json_decref(other);
        free(json);
    }
    ck_assert_uint_eq(persons, 44);
    ck_assert_uint_eq(json_array_size(want), 40);
    ck_assert_uint_eq(json_array_size(got), 40);
    json_array_foreach(want, i, c)
    {
        json_t *r = json_array_get(got, i);

        ck_assert(member(r, "image_id") == member(c, "image_id"));
        ck_assert(member(r, "category_id") == 1);
        ck_assert_double_eq_tol(member(r, "score"), member(c, "score"), 1e-7);
        same_numbers(json_object_get(r, "keypoints"),
                     json_object_get(c, "keypoints"));
        same_numbers(json_object_get(r, "center"),
                     json_object_get(c, "center"));
        same_numbers(json_object_get(r, "scale"), json_object_get(c, "scale"));
    }
    mp_boxes_free(boxes);
    json_decref(got);
    json_decref(want);
    json_decref(root);
}
END_TEST

START_TEST(long_numbers)
{
    struct person p = {.score = -1.2345678901234567e-300};
    size_t keep[1] = {0};
    json_t *list;
    char *text;

    p.center[0] = p.center[1] = p.scale[0] = p.scale[1] = -1.23456789e-38f;
    for (int k = 0; k < 3 * POINTS; k++)
        p.point[k / 3][k % 3] = -3.40282347e+38;
    text = persons_json(&p, keep, 1, "\"a picture\"");
    list = json_loads(text, 0, NULL);
    ck_assert_ptr_nonnull(list);
    ck_assert_str_eq(
        json_string_value(json_object_get(json_array_get(list, 0), "image_id")),
        "a picture");
    free(text);
    json_decref(list);
    text = persons_json(&p, keep, 0, "1");
    ck_assert_str_eq(text, "[]\n");
    free(text);
}
END_TEST

/* ---- drawing ---- */

enum { SIDE = 200 };

static int is_color(const uint8_t *rgb, int x, int y, json_t *want)
{
    const uint8_t *p = rgb + 3 * (y * SIDE + x);

    return p[0] == number(want, 0) && p[1] == number(want, 1) &&
           p[2] == number(want, 2);
}

/* Points on a circle, so that no limb lies on another's middle. */
static void on_circle(struct person *p, double radius)
{
    for (int k = 0; k < POINTS; k++) {
        p->point[k][0] = 100 + radius * cos(0.37 * k);
        p->point[k][1] = 100 + radius * sin(0.37 * k);
        p->point[k][2] = 0.5;
    }
}

START_TEST(skeleton)
{
    json_t *root = golden_json(golden_path("coco_keypoints_17.json")), *c;
    const struct drawing limbs = {0, 1, 0.3}, discs = {3, 0, 0.3};
    static uint8_t rgb[SIDE * SIDE * 3];
    struct person p = {0};
    size_t keep[1] = {0}, i;

    on_circle(&p, 90);
    persons_draw(rgb, SIDE, SIDE, &discs, &p, keep, 1);
    json_array_foreach(json_object_get(root, "keypoints"), i, c) ck_assert(
        is_color(rgb, (int)lround(p.point[i][0]), (int)lround(p.point[i][1]),
                 json_object_get(c, "color_rgb")));
    json_array_foreach(json_object_get(root, "skeleton"), i, c)
    {
        int a = (int)member(c, "a"), b = (int)member(c, "b");
        int x = (int)lround((p.point[a][0] + p.point[b][0]) / 2);
        int y = (int)lround((p.point[a][1] + p.point[b][1]) / 2);
        int found = 0;
        struct person two = p; /* with no other point than these */

        for (int k = 0; k < POINTS; k++)
            if (k != a && k != b)
                two.point[k][2] = 0.29;
        memset(rgb, 0, sizeof rgb);
        persons_draw(rgb, SIDE, SIDE, &limbs, &two, keep, 1);
        for (int k = 0; k < 9; k++)
            found += is_color(rgb, x + k % 3 - 1, y + k / 3 - 1,
                              json_object_get(c, "color_rgb"));
        ck_assert_int_ge(found, 1);
    }
    ck_assert_uint_eq(i, 19);
    json_decref(root);
}
END_TEST

static size_t painted(const uint8_t *rgb, size_t n)
{
    size_t count = 0;

    for (size_t i = 0; i < n; i++)
        count += rgb[3 * i] || rgb[3 * i + 1] || rgb[3 * i + 2];
    return count;
}

/* As wide as asked for; nothing for 0. */
START_TEST(widths)
{
    static uint8_t rgb[SIDE * SIDE * 3];
    struct drawing d = {0, _i, 0.3};
    struct person p = {0};
    size_t keep[1] = {0};

    for (int k = 0; k < 2; k++) { /* 5 and 7: a level upper arm */
        p.point[5 + 2 * k][0] = 50 + 100 * k;
        p.point[5 + 2 * k][1] = 100;
        p.point[5 + 2 * k][2] = 1;
    }
    persons_draw(rgb, SIDE, SIDE, &d, &p, keep, 1);
    for (int y = 0, n = 0; y <= SIDE; y++) {
        if (y == SIDE)
            ck_assert_int_eq(n, _i);
        else
            n += rgb[3 * (y * SIDE + 100)] || rgb[3 * (y * SIDE + 100) + 1];
    }
    ck_assert((painted(rgb, SIDE * SIDE) == 0) == (_i == 0));
}
END_TEST

/* Whatever the points are, nothing outside the picture is touched. */
START_TEST(clipped)
{
    static const double far[] = {0,    -1,    7.5,   1e9,   -1e9,
                                 3e38, -3e38, 1e-38, 2.1e9, -2.2e9};
    const struct drawing d = {100, 100, 0};
    size_t keep[1] = {0}, n = sizeof far / sizeof *far;
    struct person p = {0};

    for (size_t i = 0; i < n * n; i++) {
        uint8_t *rgb = calloc(8 * 6, 3); /* to be seen by a sanitizer */

        for (size_t k = 0; k < POINTS; k++) {
            p.point[k][0] = far[(i + k) % n];
            p.point[k][1] = far[(i / n + k * k) % n];
            p.point[k][2] = 1;
        }
        persons_draw(rgb, 8, 6, &d, &p, keep, 1);
        free(rgb);
    }
}
END_TEST

/* The better one hides the worse one. */
START_TEST(order)
{
    static uint8_t one[SIDE * SIDE * 3], both[SIDE * SIDE * 3];
    const struct drawing d = {5, 3, 0.3};
    const size_t keep[2] = {1, 0};
    struct person p[2] = {0};

    on_circle(&p[0], 60);
    on_circle(&p[1], 62);
    persons_draw(one, SIDE, SIDE, &d, p, keep, 1);
    persons_draw(both, SIDE, SIDE, &d, p, keep, 2);
    ck_assert_uint_gt(painted(both, SIDE * SIDE), painted(one, SIDE * SIDE));
    for (size_t i = 0; i < SIDE * SIDE; i++)
        if (painted(one + 3 * i, 1))
            ck_assert(!memcmp(one + 3 * i, both + 3 * i, 3));
}
END_TEST

/* ---- the head ---- */

static const struct mp_box people[] = {
    {20, 30, 60, 150, 0.5}, {100, 10, 120, 90, 0.9}, {-30, 90, 100, 140, 0.7}};
#define PEOPLE 3

static struct mp_image picture_of(const uint8_t *rgb, size_t nbox)
{
    return (struct mp_image){.name = "x",
                             .width = 300,
                             .height = 200,
                             .rgb = rgb,
                             .id = "\"x\"",
                             .box = people,
                             .nbox = nbox};
}

START_TEST(view_of_each)
{
    static const struct {
        const char *settings;
        size_t first;
        int mirrored;
    } c[] = {{"", 0, 0}, {"flip=yes", 0, 1}, {"box_score=0.6 flip=yes", 1, 1}};
    struct head h = head_new("pose", c[_i].settings);
    struct mp_image img = picture_of(NULL, PEOPLE);
    struct mp_error err = {0};
    size_t each = 1 + (size_t)c[_i].mirrored;
    size_t n = (PEOPLE - c[_i].first) * each;
    struct mp_view v[2 * PEOPLE + 1];

    ck_assert_int_eq(h.p->views(h.conf, &img, NULL, 0, &err), n);
    memset(v, 0x55, sizeof v);
    ck_assert_int_eq(h.p->views(h.conf, &img, v, n - 1, &err), n);
    ck_assert_int_eq(v[n - 1].w, 0x55555555); /* there was no room */
    ck_assert_int_eq(h.p->views(h.conf, &img, v, n, &err), n);
    for (size_t i = 0; i < n; i++) {
        struct person p;
        float m[6];

        person_place(&p, &people[c[_i].first + i / each], 0.75, 1.25);
        person_matrix(m, &p, 0, 192, 256);
        ck_assert(!memcmp(v[i].matrix, m, sizeof m));
        ck_assert(v[i].warp && v[i].w == 192 && v[i].h == 256);
        ck_assert(v[i].mirror == (int)(i % each) && v[i].group == 0);
    }
    img.nbox = 0;
    ck_assert_int_eq(h.p->views(h.conf, &img, v, n, &err), 0);
    head_free(&h);
}
END_TEST

START_TEST(no_place)
{
    static const struct mp_box wrong[] = {{1, 2, 0, 0, 1},
                                          {1, 2, -5, -5, 1},
                                          {1, 2, NAN, 3, 1},
                                          {INFINITY, 2, 3, 3, 1},
                                          {1, 2, 1e300, 1e300, 1}};
    struct head h = head_new("pose", "");
    struct mp_image img = picture_of(NULL, 1);
    struct mp_error err = {0};

    img.box = &wrong[_i];
    ck_assert_int_eq(h.p->views(h.conf, &img, NULL, 0, &err), MP_EFORMAT);
    ck_assert_msg(strstr(err.text, "box 1: ") != NULL, "%s", err.text);
    head_free(&h);
}
END_TEST

START_TEST(pixel_ranges)
{
    static const float mean[] = {0.485f, 0.456f, 0.406f},
                       deviation[] = {0.229f, 0.224f, 0.225f};
    struct head h = head_new("pose", _i ? "pixels=imagenet" : "");
    struct mp_graph *g = mp_graph_new(NULL);
    struct mp_error err = {0};
    float x[16 * 16 * 3];
    struct result r;

    for (int i = 0; i < 16 * 16 * 3; i++)
        x[i] = (float)(i % 256);
    mp_output(
        g, "x",
        h.p->input(h.conf, g,
                   mp_input(g, "p", MP_F32, 4, (int64_t[]){1, 16, 16, 3})));
    ck_assert_msg(!run(&r, g, (const void *const[]){x}, &err), "%s", err.text);
    for (int i = 0; i < 16 * 16 * 3; i++)
        ck_assert_float_eq_tol(((float *)r.data[0])[i],
                               _i ? (x[i] / 255 - mean[i % 3]) /
                                        deviation[i % 3]
                                  : x[i] / 127.5f - 1,
                               2e-6f);
    result_free(&r);
    mp_graph_free(g);
    head_free(&h);
}
END_TEST

/* Of what the head makes of a picture that was cut out, every 16th pixel is
 * `want`, which is in planes. */
static void is_input(const struct head *h, const struct golden_tensor *px,
                     const struct golden_tensor *want)
{
    float *pixels = malloc(px->count * sizeof *pixels);
    int64_t rows = want->dim[1], cols = want->dim[2];
    struct mp_graph *g = mp_graph_new(NULL);
    struct mp_error err = {0};
    struct result r;
    mp_node x =
        mp_input(g, "p", MP_F32, 4, (int64_t[]){1, px->dim[0], px->dim[1], 3});

    for (size_t i = 0; i < px->count; i++)
        pixels[i] = ((const uint8_t *)px->data)[i];
    mp_output(g, "x", h->p->input(h->conf, g, x));
    ck_assert_msg(!run(&r, g, (const void *const[]){pixels}, &err), "%s",
                  err.text);
    for (int64_t i = 0; i < 3 * rows * cols; i++) {
        int64_t plane = i / cols / rows, y = i / cols % rows, at = i % cols;

        at = 16 * (y * px->dim[1] + at);
        ck_assert_float_eq_tol(((float *)r.data[0])[3 * at + plane],
                               ((const float *)want->data)[i], 5e-7f);
    }
    result_free(&r);
    mp_graph_free(g);
    free(pixels);
}

/* What the published network was given. */
START_TEST(network_input)
{
    json_t *root = golden_json(golden_path("pose_warp.json")), *c;
    struct golden *gold = golden_open(best_path("pose_warp.safetensors"));
    struct head h = head_new("pose", "pixels=imagenet");
    size_t i, done = 0;

    json_array_foreach(json_object_get(root, "cases"), i, c)
    {
        const char *id = json_string_value(json_object_get(c, "id"));
        const struct golden_tensor *px;
        char name[16];

        snprintf(name, sizeof name, "%s.out", id);
        px = golden_get(gold, name);
        if (!px) /* not among those that lie here */
            continue;
        is_input(&h, px, tensor(gold, id, "net_in"));
        done++;
    }
    ck_assert_uint_eq(done, shared_path(".") ? 6 : 4);
    head_free(&h);
    golden_free(gold);
    json_decref(root);
}
END_TEST

/* A network for other points than COCO's 17. */
START_TEST(other_points)
{
    static const int64_t channels[] = {32, 64, 128, 128};
    struct head h = head_new("pose", "");
    struct mp_features f = {.view_h = 64, .view_w = 48};
    struct mp_weights *w = NULL;
    struct mp_error err = {0};
    struct mp_graph *g;
    char path[64];

    snprintf(path, sizeof path, "%s/21.safetensors", folder);
    ck_assert_msg(
        !make_weights(golden_path("keys/tiny_pose_21.json"), path, &err), "%s",
        err.text);
    ck_assert_msg(!mp_weights_open(&w, path, &err), "%s", err.text);
    g = mp_graph_new(w);
    for (int i = 0; i < 4; i++)
        f.map[i] = mp_input(g, "map", MP_F32, 4,
                            (int64_t[]){1, 8 >> i, 8 >> i, channels[i]});
    f.prompts = mp_input(g, "prompts", MP_F32, 2, (int64_t[]){10, 64});
    h.p->build(h.conf, g, &f);
    ck_assert_int_lt(mp_graph_check(g, &err), 0);
    ck_assert_str_eq(err.text, "the checkpoint has 21 key points; this head "
                               "knows the 17 of COCO only");
    mp_graph_free(g);
    mp_weights_close(w);
    head_free(&h);
    ck_assert(!clean_up());
}
END_TEST

/* Where point k of person i is, in the picture. */
static double truth(size_t i, int k, int axis)
{
    const struct mp_box *b = &people[i];

    return axis ? b->y + b->h * (0.1 + 0.045 * k)
                : b->x + b->w * (0.5 + 0.4 * sin(2.3 * k + (double)i));
}

/* What a perfect network makes of a view, H x W x POINTS: left and right are
 * those of what it sees. */
static void perfect(float *map, const struct mp_view *v, size_t person)
{
    static const int other[POINTS] = {0,  2, 1,  4,  3,  6,  5,  8, 7,
                                      10, 9, 12, 11, 14, 13, 16, 15};

    for (int k = 0; k < POINTS; k++) {
        double x = truth(person, k, 0), y = truth(person, k, 1);
        double vx =
            ((double)v->matrix[0] * x + (double)v->matrix[2]) * 47 / 191;
        double vy =
            ((double)v->matrix[4] * y + (double)v->matrix[5]) * 63 / 255;

        if (v->mirror)
            vx = 47 - vx;
        for (int i = 0; i < H * W; i++) {
            double dx = i % W - vx, dy = (double)(i / W) - vy;

            map[i * POINTS + (v->mirror ? other[k] : k)] =
                (float)exp(-(dx * dx + dy * dy) / 8);
        }
    }
}

#define KINDS 4

/* Boxes to views to maps to the points that there are; the best person first,
 * in all results. */
START_TEST(there_and_back)
{
    static const size_t best_first[] = {1, 2, 0};
    static float maps[2 * PEOPLE][H * W * POINTS];
    static uint8_t rgb[300 * 200 * 3];
    struct head h = head_new("pose", _i ? "flip=yes" : "");
    struct mp_image img = picture_of(rgb, PEOPLE);
    struct mp_sink sink = {.wants = "json overlay keypoints heatmaps"};
    float *map[2 * PEOPLE];
    struct mp_view v[2 * PEOPLE];
    struct mp_error err = {0};
    long n = h.p->views(h.conf, &img, v, 2 * PEOPLE, &err);
    struct result r;
    json_t *list;

    for (long i = 0; i < n; i++) {
        map[i] = maps[i];
        perfect(maps[i], &v[i], (size_t)(_i ? i / 2 : i));
    }
    merge(&r, &h, backend(1), map, H, W, (size_t)n, sink.wants);
    ck_assert_msg(!h.p->decode(h.conf, &img, r.t, r.n, &sink, &err), "%s",
                  err.text);
    result_free(&r);
    ck_assert_uint_eq(sink.n, KINDS);
    list = json_loads(sink.kept[0].px, 0, NULL);
    ck_assert_uint_eq(json_array_size(list), PEOPLE);
    for (size_t i = 0; i < PEOPLE; i++) {
        json_t *p = json_array_get(list, i);
        json_t *points = json_object_get(p, "keypoints");
        size_t who = best_first[i];

        ck_assert_str_eq(json_string_value(json_object_get(p, "image_id")),
                         "x");
        ck_assert_double_eq_tol(member(p, "score"), people[who].score, 0.05);
        for (size_t k = 0; k < 2 * POINTS; k++)
            ck_assert_double_eq_tol(number(points, 3 * (k / 2) + k % 2),
                                    truth(who, (int)k / 2, (int)k % 2), 0.1);
        for (size_t k = 0; k < 3 * POINTS; k++) { /* to an ulp */
            double x =
                (double)((const float *)sink.kept[2].px)[i * 3 * POINTS + k];

            ck_assert_double_le(fabs(x - number(points, k)),
                                (double)FLT_EPSILON * fabs(x));
        }
        for (int k = 0; k < POINTS; k++) { /* the same person's maps */
            const float *row = (const float *)sink.kept[3].px +
                               (i * POINTS + (size_t)k) * H * W;

            for (int j = 0; j < H * W; j++)
                ck_assert(
                    fabsf(row[j] - maps[who * (_i ? 2 : 1)][j * POINTS + k]) <=
                    1e-5f);
        }
    }
    ck_assert(sink.kept[1].png.width == 300 && sink.kept[1].png.height == 200);
    ck_assert_uint_gt(painted(sink.kept[1].px, 300 * 200), 500);
    ck_assert(sink.kept[2].npy.ndim == 3 && sink.kept[2].npy.dim[0] == PEOPLE &&
              sink.kept[2].npy.dim[1] == POINTS &&
              sink.kept[2].npy.dim[2] == 3);
    ck_assert(sink.kept[3].npy.ndim == 4 && sink.kept[3].npy.dim[0] == PEOPLE &&
              sink.kept[3].npy.dim[1] == POINTS &&
              sink.kept[3].npy.dim[2] == H && sink.kept[3].npy.dim[3] == W);
    json_decref(list);
    sink_free(&sink);
    head_free(&h);
}
END_TEST

START_TEST(nobody)
{
    static uint8_t rgb[300 * 200 * 3] = {1, 2, 3};
    struct head h = head_new("pose", "flip=yes box_score=0.95");
    struct mp_image img = picture_of(rgb, PEOPLE);
    struct mp_sink sink = {.wants = "json overlay keypoints heatmaps"};
    struct mp_error err = {0};

    ck_assert(!h.p->decode(h.conf, &img, NULL, 0, &sink, &err));
    ck_assert_uint_eq(sink.n, KINDS);
    ck_assert_str_eq(sink.kept[0].px, "[]\n");
    ck_assert(!memcmp(sink.kept[1].px, rgb, sizeof rgb));
    ck_assert_int_eq(sink.kept[2].npy.dim[0], 0);
    ck_assert_int_eq(sink.kept[3].npy.dim[0], 0);
    sink_free(&sink);
    head_free(&h);
}
END_TEST

/* All of a map, or one number of it far from the peak. */
START_TEST(not_finite)
{
    static float data[2][H * W * POINTS];
    struct head h = head_new("pose", "");
    struct mp_image img = picture_of(NULL, 2);
    struct mp_sink sink = {.wants = "json"};
    struct mp_error err = {0};
    struct result r;

    data[0][30 * W * POINTS] = data[1][30 * W * POINTS] = 1;
    for (int i = 0; i < H * W * POINTS; i++)
        if (_i < 2 || i == (H * W - 1) * POINTS)
            data[1][i] = _i % 2 ? INFINITY : NAN;
    merge(&r, &h, backend(1), (float *const[]){data[0], data[1]}, H, W, 2,
          sink.wants);
    ck_assert_int_eq(h.p->decode(h.conf, &img, r.t, r.n, &sink, &err),
                     MP_EFORMAT);
    ck_assert_str_eq(err.text, "the heat maps of box 2 are not finite");
    ck_assert_uint_eq(sink.n, 0);
    result_free(&r);
    head_free(&h);
}
END_TEST

/* ---- the program ---- */

/* mpipe with the protocol's configuration and a tiny network; its list. */
static json_t *run_mpipe(const char *boxes, const char *pictures)
{
    const char *build = getenv("builddir"), *src = getenv("srcdir");
    char weights[64], list[64], command[2000];
    struct mp_error err = {0};

    snprintf(weights, sizeof weights, "%s/tiny.safetensors", folder);
    snprintf(list, sizeof list, "%s/out/keypoints.json", folder);
    ck_assert_msg(
        !make_weights(golden_path("keys/tiny_pose.json"), weights, &err), "%s",
        err.text);
    snprintf(command, sizeof command,
             "'%s/mpipe' -q -c '%s/conf/pose-coco.ini' -o compute.threads=1 "
             "-o model.checkpoint=%s -o pipeline.boxes='%s' "
             "-o pose.input=64x48 -o pose.flip=no -o pose.most_alike=1 "
             "-o output.formats='json overlay keypoints heatmaps' %s %s/out",
             build ? build : ".", src ? src : ".", weights, boxes, pictures,
             folder);
    ck_assert_int_eq(system(command), 0);
    return golden_json(list);
}

/* Annotations of two pictures: the box of one is made a pixel smaller, as the
 * protocol has it, and the other has no person. */
START_TEST(program)
{
    static const char text[] =
        "{\"images\": [{\"id\": 7, \"file_name\": \"skier.jpg\", \"width\": "
        "480, \"height\": 319}, {\"id\": 9, \"file_name\": \"desk.jpg\", "
        "\"width\": "
        "10, \"height\": 10}], \"categories\": [{\"id\": 1, \"name\": "
        "\"person\"}], \"annotations\": [{\"id\": 1, \"image_id\": 7, "
        "\"category_id\": 1, \"bbox\": [40, 30, 60, 100], \"area\": 100, "
        "\"iscrowd\": 0, \"num_keypoints\": 1, \"keypoints\": [50, 50, 2%s]}]}";
    const char *src = getenv("srcdir");
    char boxes[64], pictures[64], zeros[200] = "", path[80];
    json_t *got, *p;
    FILE *f;

    snprintf(boxes, sizeof boxes, "%s/boxes.json", folder);
    for (int i = 0; i < 3 * POINTS - 3; i++)
        strcat(zeros, ", 0");
    f = fopen(boxes, "w");
    ck_assert_ptr_nonnull(f);
    fprintf(f, text, zeros);
    fclose(f);
    snprintf(pictures, sizeof pictures, "%s/list.txt", folder);
    f = fopen(pictures, "w");
    ck_assert_ptr_nonnull(f);
    fprintf(f, "%s/samples/skier.jpg\n%s/samples/desk.jpg\n", src ? src : ".",
            src ? src : ".");
    fclose(f);
    snprintf(pictures, sizeof pictures, "@%s/list.txt", folder);
    got = run_mpipe(boxes, pictures);
    ck_assert_uint_eq(json_array_size(got), 1);
    p = json_array_get(got, 0);
    ck_assert(member(p, "image_id") == 7);
    ck_assert(number(json_object_get(p, "center"), 0) == 40 + 59 / 2.0);
    ck_assert(number(json_object_get(p, "center"), 1) == 30 + 99 / 2.0);
    ck_assert_uint_eq(json_array_size(json_object_get(p, "keypoints")),
                      3 * POINTS);
    json_decref(got);
    snprintf(path, sizeof path, "%s/out/desk.json.json", folder);
    got = golden_json(path);
    ck_assert(json_is_array(got) && !json_array_size(got));
    json_decref(got);
    snprintf(path, sizeof path, "%s/out/desk.heatmaps.npy", folder);
    ck_assert(!access(path, R_OK));
    snprintf(path, sizeof path, "%s/out/skier.keypoints.npy", folder);
    ck_assert(!access(path, R_OK));
    snprintf(path, sizeof path, "%s/out/desk.overlay.png", folder);
    ck_assert(!access(path, R_OK));
    ck_assert(!clean_up());
}
END_TEST

/* Whether the person of this picture and place is in the list; a detector may
 * see one twice. */
static int has_person(json_t *list, json_t *want)
{
    json_t *name = json_object_get(want, "image"), *p;
    int found = 0;
    size_t i;

    json_array_foreach(list, i, p)
    {
        int same = member(p, "image_id") == atol(json_string_value(name));

        for (size_t k = 0; k < 4; k++) {
            const char *key = k < 2 ? "center" : "scale";
            double a = number(json_object_get(p, key), k % 2);
            double b = number(json_object_get(want, key), k % 2);

            same = same && fabs(a - b) <= 1e-6 * fabs(b);
        }
        found += same;
    }
    return found > 0;
}

/* Photos with the boxes of their annotations, and with a detector's. */
START_TEST(photos)
{
    static const char *const file[] = {"person_keypoints", "person_detections"};
    const char *shared = getenv("MPIPE_SHARED");
    json_t *root, *want, *got, *c;
    char boxes[700], pictures[600];
    size_t i;

    if (!shared || !*shared) {
        puts("SKIPPED: the photos of COCO are not in the project, and "
             "MPIPE_SHARED is not set");
        return;
    }
    snprintf(pictures, sizeof pictures, "%s/protocol/samples/pose_coco",
             shared);
    snprintf(boxes, sizeof boxes, "%s/%s.json", pictures, file[_i]);
    got = run_mpipe(boxes, pictures);
    root = golden_json(shared_path("protocol/golden/pose_real.json"));
    want = json_object_get(root, _i ? "cases" : "ground_truth_boxes");
    ck_assert_uint_eq(json_array_size(want), _i ? 118 : 12);
    ck_assert_uint_eq(json_array_size(got), json_array_size(want));
    json_array_foreach(want, i, c)
        ck_assert_msg(has_person(got, c), "person %zu", i);
    json_decref(got);
    json_decref(root);
    ck_assert(!clean_up());
}
END_TEST

int main(void)
{
    Suite *s = suite_create("pose");
    TCase *t = tcase_create("pose");
    TCase *merging = tcase_create("merging"); /* on a device */
    SRunner *r = srunner_create(s);
    int failed;

    if (!mkdtemp(folder))
        return 99;
    tcase_set_timeout(t, 600);
    tcase_set_timeout(merging, 600);
    tcase_add_test(t, boxes);
    tcase_add_test(t, matrices);
    tcase_add_test(t, points);
    tcase_add_loop_test(merging, decoding, 0, BACKENDS * DECODE_CASES);
    tcase_add_loop_test(merging, no_peak, 0, BACKENDS);
    tcase_add_loop_test(merging, mirrored, 0, 2 * BACKENDS);
    tcase_add_loop_test(merging, crowd, 0, BACKENDS);
    tcase_add_test(t, best);
    tcase_add_test(t, ties);
    tcase_add_test(t, results);
    tcase_add_test(t, long_numbers);
    tcase_add_test(t, skeleton);
    tcase_add_loop_test(t, widths, 0, 8);
    tcase_add_test(t, clipped);
    tcase_add_test(t, order);
    tcase_add_loop_test(t, view_of_each, 0, 3);
    tcase_add_loop_test(t, no_place, 0, 5);
    tcase_add_loop_test(t, pixel_ranges, 0, 2);
    tcase_add_test(t, network_input);
    tcase_add_test(t, other_points);
    tcase_add_loop_test(merging, there_and_back, 0, 2);
    tcase_add_test(t, nobody);
    tcase_add_loop_test(merging, not_finite, 0, 4);
    tcase_add_test(t, program);
    tcase_add_loop_test(t, photos, 0, 2);
    suite_add_tcase(s, t);
    suite_add_tcase(s, merging);
    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    clean_up();
    rmdir(folder);
    return failed != 0;
}
