/* SPDX-License-Identifier: MIT */
/*
 * test_pose.c - the pose head's persons against the numbers of mmpose 0.24:
 * where they are cut out, how heat maps become key points, which persons stay;
 * and how they are drawn.
 */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "golden.h"
#include "plugins/pose/pose.h"

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
    ck_assert_uint_ge(i, 30);
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
    ck_assert_uint_ge(i, 30);
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

static const char *const decode_cases[] = {"clean", "noisy", "edge",
                                           "two_peaks", "degenerate"};

/* Peaks that are there and are above 0.01 within 2e-3 pixels of the maps, and
 * of the picture accordingly; others where their maximum is. */
START_TEST(decoding)
{
    json_t *root = golden_json(golden_path("pose_decode.json"));
    json_t *c = json_array_get(json_object_get(root, "cases"), (size_t)_i);
    struct golden *g = golden_open(best_path("pose_decode.safetensors"));
    const char *id = decode_cases[_i];
    const struct golden_tensor *maps = tensor(g, id, "heatmaps");
    const float *argmax = tensor(g, id, "argmax")->data;
    const float *refined = tensor(g, id, "refined")->data;
    const float *preds = tensor(g, id, "preds")->data;
    const float *scores = tensor(g, id, "scores")->data;
    size_t n = (size_t)maps->dim[0], points = (size_t)maps->dim[1];
    static float all[POINTS * H * W];
    double worst = 0;

    ck_assert_uint_le(points, POINTS);
    ck_assert_str_eq(json_string_value(json_object_get(c, "id")), id);
    ck_assert(maps->dim[2] == H && maps->dim[3] == W);
    for (size_t i = 0; i < n; i++) {
        struct person p = {0};

        set_place(&p, json_array_get(json_object_get(c, "center"), i),
                  json_array_get(json_object_get(c, "scale"), i));
        for (size_t k = 0; k < POINTS; k++) /* some of them, in turns */
            memcpy(all + k * H * W,
                   (const float *)maps->data +
                       (i * points + k % points) * H * W,
                   sizeof(float) * H * W);
        person_decode(&p, all, H, W);
        for (size_t k = 0; k < points; k++) {
            size_t at = i * points + k;
            float xy[3];

            heatmap_peak(xy, all + k * H * W, H, W);
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
    printf("decoding %-10s %zu x %zu maps: at most %.1e pixels off\n", id, n,
           points, worst);
    golden_free(g);
    json_decref(root);
}
END_TEST

/* Maps without a peak: nothing above 0 has no place, a flat one its first. */
START_TEST(no_peak)
{
    static const float level[] = {0, -0.5f, 0.0005f, 0.3f};
    float map[H * W], xy[3];

    for (size_t i = 0; i < H * W; i++)
        map[i] = level[_i];
    heatmap_peak(xy, map, H, W);
    ck_assert_float_eq(xy[2], level[_i]);
    ck_assert_float_eq(xy[0], _i < 2 ? -1 : 0);
    ck_assert_float_eq(xy[1], _i < 2 ? -1 : 0);
}
END_TEST

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

START_TEST(mirrored)
{
    struct golden *g = golden_open(best_path("pose_flip.safetensors"));
    const struct golden_tensor *t = golden_get(g, "hm");
    const struct golden_tensor *flip = golden_get(g, "hm_of_flipped_input");
    const struct golden_tensor *want = golden_get(g, "averaged");
    int64_t h = t->dim[2], w = t->dim[3], n = POINTS * h * w;

    for (int64_t i = 0; i < t->dim[0]; i++) {
        float *a = channels_last(t, i), *b = channels_last(flip, i);
        float *got = malloc((size_t)n * sizeof *got);

        heatmaps_merge(got, a, b, h, w);
        ck_assert(!memcmp(got, (const float *)want->data + i * n,
                          (size_t)n * sizeof *got));
        heatmaps_merge(got, a, NULL, h, w);
        ck_assert(!memcmp(got, (const float *)t->data + i * n,
                          (size_t)n * sizeof *got));
        free(a);
        free(b);
        free(got);
    }
    golden_free(g);
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
    ck_assert_uint_ge(i, 5);
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

/* Key points of many pictures to the list of results: rescored, the doubles
 * left out, best first, pictures in the order of their first box. */
START_TEST(results)
{
    json_t *root = golden_json(golden_path("coco_e2e.json"));
    json_t *want = golden_json(golden_path("coco_e2e_expected_keypoints.json"));
    json_t *list = json_object_get(root, "cases"), *c, *got = json_array();
    int64_t seen[64];
    size_t i, n = 0;

    json_array_foreach(list, i, c)
    {
        int64_t id = (int64_t)member(c, "image_id");
        size_t k = 0, count = 0, keep[64], kept;
        struct person p[64];
        char text[32], *json;
        json_t *other;

        while (k < n && seen[k] != id)
            k++;
        if (k < n)
            continue;
        seen[n++] = id;
        json_array_foreach(list, k, other)
        {
            if ((int64_t)member(other, "image_id") != id)
                continue;
            set_place(&p[count], json_object_get(other, "center"),
                      json_object_get(other, "scale"));
            set_points(&p[count], json_object_get(other, "preds"));
            p[count].score = member(other, "box_score");
            person_rescore(&p[count++], 0.2);
        }
        kept = persons_best(keep, p, count, 0.9);
        snprintf(text, sizeof text, "%d", (int)id);
        json = persons_json(p, keep, kept, text);
        other = json_loads(json, 0, NULL);
        ck_assert_ptr_nonnull(other);
        json_array_extend(got, other);
        json_decref(other);
        free(json);
    }
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

int main(void)
{
    Suite *s = suite_create("pose");
    TCase *t = tcase_create("pose");
    SRunner *r = srunner_create(s);
    int failed;

    tcase_set_timeout(t, 60);
    tcase_add_test(t, boxes);
    tcase_add_test(t, matrices);
    tcase_add_test(t, points);
    tcase_add_loop_test(t, decoding, 0, 5);
    tcase_add_loop_test(t, no_peak, 0, 4);
    tcase_add_test(t, mirrored);
    tcase_add_test(t, best);
    tcase_add_test(t, ties);
    tcase_add_test(t, results);
    tcase_add_test(t, long_numbers);
    tcase_add_test(t, skeleton);
    tcase_add_loop_test(t, widths, 0, 8);
    tcase_add_test(t, clipped);
    tcase_add_test(t, order);
    suite_add_tcase(s, t);
    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
