/* SPDX-License-Identifier: MIT */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "eval/metrics.h"
#include "golden.h"
#include "image.h"

static struct mp_error e;

/* A number, or "nan". */
static double number(const json_t *v)
{
    return json_is_string(v) ? NAN : json_number_value(v);
}

static double member(const json_t *object, const char *key)
{
    return number(json_object_get(object, key));
}

static const char *text(const json_t *object, const char *key)
{
    const char *s = json_string_value(json_object_get(object, key));

    return s == NULL ? "" : s;
}

static int near(double got, double want, double rel, double abs)
{
    return (isnan(got) && isnan(want)) ||
           fabs(got - want) <= fmax(abs, rel * fabs(want));
}

/* ---- depth ---- */

static struct {
    json_t *file;
    struct golden *tensors, *shared;
} depth;

static void open_depth(void)
{
    const char *path = shared_path("protocol/golden/depth_metrics.safetensors");

    depth.file = golden_json(golden_path("depth_metrics.json"));
    depth.tensors = golden_open(golden_path("depth_metrics.safetensors"));
    ck_assert(depth.file != NULL && depth.tensors != NULL);
    ck_assert_uint_eq(json_array_size(json_object_get(depth.file, "cases")),
                      15);
    depth.shared = path == NULL ? NULL : golden_open(path);
}

static void close_depth(void)
{
    json_decref(depth.file);
    golden_free(depth.tensors);
    golden_free(depth.shared);
}

static uint32_t draw(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 16;
}

/* The inputs that are made rather than stored. */
static void generate(float *pred, float *gt, size_t n, const json_t *lcg)
{
    uint32_t u = (uint32_t)member(lcg, "seed_u");
    uint32_t v = (uint32_t)member(lcg, "seed_e");
    uint32_t m = (uint32_t)member(lcg, "M");
    uint32_t sparse = (uint32_t)member(lcg, "sparse_percent");
    double scale = member(lcg, "scale");

    for (size_t i = 0; i < n; i++) {
        uint32_t g = draw(&u) % m, c = draw(&v), p;

        p = g * (800 + c % 401) / 1000;
        p = p == 0 ? 1 : p;
        g = c % 100 < sparse ? 0 : g;
        gt[i] = (float)g / (float)scale;
        pred[i] = (float)((3.0 * p + 1) / (3 * scale));
    }
}

static enum mp_crop crop_of(const json_t *c)
{
    return !strcmp(text(c, "dataset"), "nyudepthv2")      ? MP_CROP_NYU
           : !strcmp(text(c, "kitti_crop"), "garg_crop")  ? MP_CROP_GARG
           : !strcmp(text(c, "kitti_crop"), "eigen_crop") ? MP_CROP_EIGEN
                                                          : MP_CROP_NONE;
}

static const struct golden_tensor *stored(const char *id, const char *which)
{
    const struct golden_tensor *t;
    char name[80];

    snprintf(name, sizeof name, "%s.%s", id, which);
    t = golden_get(depth.tensors, name);
    return t == NULL && depth.shared != NULL ? golden_get(depth.shared, name)
                                             : t;
}

/* The metrics of a case; 0: its inputs are not here. */
static size_t measure(double got[MP_DEPTH_METRICS], const json_t *c)
{
    const struct golden_tensor *p = stored(text(c, "id"), "pred");
    const struct golden_tensor *g = stored(text(c, "id"), "gt");
    const json_t *shape = json_object_get(c, "shape");
    int32_t h = shape ? (int32_t)number(json_array_get(shape, 0)) : 1;
    int32_t w =
        (int32_t)(shape ? number(json_array_get(shape, 1)) : member(c, "n"));
    double min = shape ? member(c, "min_depth_eval") : 0;
    double max = shape ? member(c, "max_depth_eval") : 1e30;
    size_t n = (size_t)w * (size_t)h;
    float *made;

    if (p != NULL && g != NULL)
        return mp_depth_metrics(got, p->data, g->data, w, h, crop_of(c), min,
                                max);
    if (json_object_get(c, "lcg") == NULL)
        return 0;
    made = malloc(2 * n * sizeof *made);
    ck_assert_ptr_nonnull(made);
    generate(made, made + n, n, json_object_get(c, "lcg"));
    n = mp_depth_metrics(got, made, made + n, w, h, crop_of(c), min, max);
    free(made);
    return n;
}

/* Against 64-bit sums of the published code, whose fractions d1..d3 were
 * rounded to 32 bits, and against its 32-bit numbers. */
static void compare_depth(const double got[MP_DEPTH_METRICS], const json_t *c)
{
    for (int i = 0; i < MP_DEPTH_METRICS; i++) {
        const char *name = mp_depth_metric_names[i];
        const json_t *exact = json_object_get(c, "metrics_float64");
        double want = member(json_object_get(c, "metrics"), name);

        ck_assert_msg(near(got[i], want, 2e-5, 1e-6), "%s %s: %.9g, not %.9g",
                      text(c, "id"), name, got[i], want);
        want = exact ? member(exact, name) : want;
        ck_assert_msg(near(got[i], want, exact && i > 2 ? 1e-9 : 1e-6, 1e-15),
                      "%s %s: %.15g, not %.15g", text(c, "id"), name, got[i],
                      want);
    }
}

START_TEST(depth_metrics)
{
    const json_t *c =
        json_array_get(json_object_get(depth.file, "cases"), (size_t)_i);
    double got[MP_DEPTH_METRICS];
    const json_t *valid = json_object_get(c, "valid_pixels");
    size_t n = measure(got, c);

    if (n == 0) {
        printf("SKIPPED: depth_metrics %s wants MPIPE_SHARED\n", text(c, "id"));
        return;
    }
    if (valid != NULL)
        ck_assert_uint_eq(n, (size_t)number(valid));
    compare_depth(got, c);
}
END_TEST

START_TEST(depth_mean)
{
    const json_t *cases = json_object_get(depth.file, "cases"), *c,
                 *mean = NULL;
    double sum[MP_DEPTH_METRICS] = {0}, got[MP_DEPTH_METRICS];
    size_t at, images = 0;

    json_array_foreach(cases, at, c)
    {
        if (!strcmp(text(c, "kind"), "average"))
            mean = c;
        if (strcmp(text(c, "kind"), "crop_eval"))
            continue;
        if (measure(got, c) == 0) {
            puts("SKIPPED: depth_mean wants MPIPE_SHARED");
            return;
        }
        for (int i = 0; i < MP_DEPTH_METRICS; i++)
            sum[i] += got[i];
        images++;
    }
    for (int i = 0; i < MP_DEPTH_METRICS; i++)
        sum[i] /= (double)images;
    compare_depth(sum, mean);
}
END_TEST

static void rect_is(struct mp_rect r, const json_t *y0y1x0x1)
{
    ck_assert_int_eq(r.y0, (int)number(json_array_get(y0y1x0x1, 0)));
    ck_assert_int_eq(r.y1, (int)number(json_array_get(y0y1x0x1, 1)));
    ck_assert_int_eq(r.x0, (int)number(json_array_get(y0y1x0x1, 2)));
    ck_assert_int_eq(r.x1, (int)number(json_array_get(y0y1x0x1, 3)));
}

START_TEST(depth_crops)
{
    const json_t *list = json_object_get(depth.file, "crop_rectangles"), *row;
    size_t at;

    ck_assert_uint_eq(json_array_size(list), 9);
    json_array_foreach(list, at, row)
    {
        const json_t *shape = json_object_get(row, "shape");
        const json_t *kb = json_object_get(row, "kb_crop_top_left");
        int32_t h = (int32_t)number(json_array_get(shape, 0));
        int32_t w = (int32_t)number(json_array_get(shape, 1));
        struct mp_rect r = mp_depth_kb_crop(w, h);

        ck_assert_int_eq(r.y0, (int)number(json_array_get(kb, 0)));
        ck_assert_int_eq(r.x0, (int)number(json_array_get(kb, 1)));
        rect_is(mp_depth_crop(MP_CROP_GARG, w, h),
                json_object_get(row, "garg_y0y1x0x1"));
        rect_is(mp_depth_crop(MP_CROP_EIGEN, w, h),
                json_object_get(row, "eigen_y0y1x0x1"));
    }
}
END_TEST

/* Maps smaller than the crop; nothing to measure; predictions not above 0. */
START_TEST(depth_edges)
{
    float gt[4] = {0, 1, 10, 2}, pred[4] = {1, 0, 1, 2};
    double got[MP_DEPTH_METRICS];

    ck_assert_uint_eq(
        mp_depth_metrics(got, pred, gt, 2, 2, MP_CROP_NYU, 1e-3, 10), 0);
    ck_assert_double_nan(got[3]);
    ck_assert_uint_eq(
        mp_depth_metrics(got, pred, gt, 2, 2, MP_CROP_NONE, 1e-3, 10), 2);
    ck_assert_double_eq(got[0], 0.5);
    ck_assert_double_eq(got[3], 0.5);
    ck_assert_double_infinite(got[6]);
    pred[1] = -1;
    mp_depth_metrics(got, pred, gt, 2, 2, MP_CROP_NONE, 1e-3, 10);
    ck_assert_double_eq(got[3], 1);
    ck_assert_double_nan(got[6]);
}
END_TEST

/* ---- segmentation ---- */

static struct mp_seg_counts total, one;
static int32_t pred_means[MP_LABEL_VALUES], label_means[MP_LABEL_VALUES];

static void clear_counts(void)
{
    mp_seg_counts_free(&total);
    mp_seg_counts_free(&one);
}

static void expect_classes(int32_t classes, int reduce)
{
    for (int32_t v = 0; v < MP_LABEL_VALUES; v++) {
        int32_t c = reduce ? v - 1 : v;

        pred_means[v] = v < classes ? v : MP_LABEL_STRAY;
        label_means[v] = v == 255 || c < 0 ? MP_LABEL_IGNORED
                         : c < classes     ? c
                                           : MP_LABEL_STRAY;
    }
    ck_assert_int_eq(mp_seg_counts_new(&total, (size_t)classes, &e), 0);
    ck_assert_int_eq(mp_seg_counts_new(&one, (size_t)classes, &e), 0);
}

static uint16_t *widened(const struct golden_tensor *t)
{
    uint16_t *out = malloc((t->count + 1) * sizeof *out);

    ck_assert_ptr_nonnull(out);
    for (size_t i = 0; i < t->count; i++)
        out[i] = ((const uint8_t *)t->data)[i];
    return out;
}

static void count_image(const struct golden *g, const json_t *c, size_t image)
{
    const json_t *areas = json_array_get(
        json_object_get(c, "areas_per_image_intersect_union_pred_label"),
        image);
    const struct golden_tensor *t[2];
    uint16_t *map[2];
    char name[80];

    for (int k = 0; k < 2; k++) {
        snprintf(name, sizeof name, "%s.%s%zu", text(c, "id"),
                 k ? "gt" : "pred", image);
        t[k] = golden_get(g, name);
        ck_assert_ptr_nonnull(t[k]);
        map[k] = widened(t[k]);
    }
    mp_seg_counts_clear(&one);
    mp_seg_count(&one, map[0], pred_means, map[1], label_means, t[0]->count);
    mp_seg_counts_add(&total, &one);
    for (size_t i = 0; i < one.n; i++) {
        int64_t got[4] = {one.both[i],
                          one.predicted[i] + one.labelled[i] - one.both[i],
                          one.predicted[i], one.labelled[i]};

        for (size_t k = 0; k < 4; k++)
            ck_assert_int_eq(got[k], json_integer_value(json_array_get(
                                         json_array_get(areas, k), i)));
    }
    free(map[0]);
    free(map[1]);
}

static void list_is(const double *got, size_t n, const json_t *want)
{
    ck_assert_uint_eq(json_array_size(want), n);
    for (size_t i = 0; i < n; i++)
        ck_assert_msg(near(got[i], number(json_array_get(want, i)), 1e-12, 0),
                      "[%zu] is %.15g", i, got[i]);
}

static double percent(double v)
{
    return isnan(v) ? v : round(v * 1e4) / 100;
}

static void scores_are(const struct mp_seg_scores *s, const json_t *want)
{
    ck_assert(near(s->a_acc, member(want, "aAcc"), 1e-12, 0));
    ck_assert(near(s->m_iou, member(want, "mIoU"), 1e-12, 0));
    ck_assert(near(s->m_acc, member(want, "mAcc"), 1e-12, 0));
}

START_TEST(seg_metrics)
{
    json_t *file = golden_json(golden_path("seg_metrics.json"));
    struct golden *g = golden_open(golden_path("seg_metrics.safetensors"));
    const json_t *c =
        json_array_get(json_object_get(file, "cases"), (size_t)_i);
    const json_t *rounded = json_object_get(c, "summary_percent_rounded");
    double iou[150], acc[150];
    struct mp_seg_scores s;

    ck_assert_uint_eq(json_array_size(json_object_get(file, "cases")), 10);
    expect_classes((int32_t)member(c, "num_classes"),
                   json_is_true(json_object_get(c, "reduce_zero_label")));
    for (size_t i = 0; i < (size_t)member(c, "n_images"); i++)
        count_image(g, c, i);
    s = mp_seg_scores(&total, iou, acc);
    list_is(iou, total.n, json_object_get(c, "IoU"));
    list_is(acc, total.n, json_object_get(c, "Acc"));
    scores_are(&s, c);
    ck_assert(near(percent(s.a_acc), member(rounded, "aAcc"), 1e-12, 0));
    ck_assert(near(percent(s.m_iou), member(rounded, "IoU"), 1e-12, 0));
    ck_assert(near(percent(s.m_acc), member(rounded, "Acc"), 1e-12, 0));
    golden_free(g);
    json_decref(file);
}
END_TEST

/* Labels of photos, as stored; predictions are classes counted from 1. */
static void count_photo(const char *image)
{
    uint16_t *pred, *label;
    int32_t w, h, pw, ph;
    int bits;

    ck_assert(!mp_map_read(&label, &w, &h, &bits,
                           shared_path("protocol/samples/seg_ade20k/"
                                       "%s_label.png",
                                       image),
                           &e));
    ck_assert(!mp_map_read(&pred, &pw, &ph, &bits,
                           shared_path("protocol/samples/seg_ade20k/"
                                       "%s_other_model_prediction.png",
                                       image),
                           &e));
    ck_assert(pw == w && ph == h);
    for (int32_t i = 0; i < w * h; i++)
        pred[i]--;
    mp_seg_counts_clear(&one);
    mp_seg_count(&one, pred, pred_means, label, label_means,
                 (size_t)w * (size_t)h);
    mp_seg_counts_add(&total, &one);
    free(pred);
    free(label);
}

START_TEST(seg_photos)
{
    const char *path = shared_path("protocol/samples/expected.json");
    json_t *file, *part, *row;
    struct mp_seg_scores s;
    double iou[150];
    size_t i;

    if (path == NULL) {
        puts("SKIPPED: seg_photos wants MPIPE_SHARED");
        return;
    }
    file = golden_json(path);
    part = json_object_get(file, "seg_ade20k");
    expect_classes(150, 1);
    json_array_foreach(json_object_get(part, "per_image"), i, row)
    {
        count_photo(text(row, "image"));
        s = mp_seg_scores(&one, NULL, NULL);
        scores_are(&s, row);
    }
    ck_assert_uint_eq(i, 2);
    part = json_object_get(part, "total");
    s = mp_seg_scores(&total, iou, NULL);
    scores_are(&s, part);
    list_is(iou, 150, json_object_get(part, "IoU"));
    json_decref(file);
}
END_TEST

/* Values that are no class are wrong, and counted. */
START_TEST(seg_strays)
{
    static const uint16_t pred[] = {0, 0, 9, 9, 1, 1, 300},
                          label[] = {0, 9, 0, 9, 1, 255, 255};
    struct mp_seg_scores s;

    expect_classes(2, 0);
    mp_seg_count(&total, pred, pred_means, label, label_means, 7);
    ck_assert_int_eq(total.stray_predicted, 2);
    ck_assert_int_eq(total.stray_labelled, 2);
    ck_assert_int_eq(total.predicted[0], 2);
    ck_assert_int_eq(total.labelled[0], 2);
    ck_assert_int_eq(total.both[0], 1);
    s = mp_seg_scores(&total, NULL, NULL);
    ck_assert_double_eq(s.a_acc, 2. / 3);
    ck_assert_double_eq(s.m_iou, (1. / 3 + 1) / 2);
}
END_TEST

/* ---- pose ---- */

static struct mp_coco *truth, *results;

static void free_coco(void)
{
    mp_coco_free(truth);
    mp_coco_free(results);
    truth = results = NULL;
}

static void open_coco(struct mp_coco **out, const char *path)
{
    ck_assert_msg(mp_coco_open(out, path, &e) == 0, "%s", e.text);
}

static void table_is(double (*got)[MP_POSE_THRESHOLDS], const json_t *want)
{
    static const char *const area[] = {"all", "medium", "large"};

    for (int i = 0; i < MP_AREAS; i++)
        for (size_t t = 0; t < MP_POSE_THRESHOLDS; t++)
            ck_assert_double_eq_tol(
                got[i][t],
                number(json_array_get(json_object_get(want, area[i]), t)),
                1e-9);
}

/* Both evaluators, of which one trips over an annotation of id 0. */
START_TEST(pose_ap)
{
    static const char *const tools[] = {"xtcocotools", "pycocotools"};
    json_t *file = golden_json(golden_path("coco_ap.json"));
    const json_t *c =
        json_array_get(json_object_get(file, "cases"), (size_t)_i / 2);
    const json_t *want = json_object_get(c, tools[_i % 2]);
    struct mp_pose_scores got;

    ck_assert_uint_eq(json_array_size(json_object_get(file, "cases")), 2);
    open_coco(&truth, golden_path("%s", text(c, "gt")));
    open_coco(&results, golden_path("%s", text(c, "detections")));
    ck_assert_int_eq(
        mp_pose_metrics(&got, truth, results, (enum mp_coco_tools)(_i % 2), &e),
        0);
    for (size_t i = 0; i < MP_POSE_METRICS; i++)
        ck_assert_double_eq_tol(
            got.value[i],
            number(json_array_get(json_object_get(want, "stats"), i)), 1e-9);
    table_is(got.ap, json_object_get(want, "ap_per_iou"));
    table_is(got.ar, json_object_get(want, "ar_per_iou"));
    json_decref(file);
}
END_TEST

static void stats_are(const json_t *want)
{
    struct mp_pose_scores got;

    ck_assert_msg(mp_pose_metrics(&got, truth, results, MP_XTCOCOTOOLS, &e) ==
                      0,
                  "%s", e.text);
    for (int i = 0; i < MP_POSE_METRICS; i++)
        ck_assert_double_eq_tol(got.value[i],
                                member(want, mp_pose_metric_names[i]), 1e-9);
}

START_TEST(pose_end_to_end)
{
    json_t *file = golden_json(golden_path("coco_e2e.json"));

    open_coco(&truth, golden_path("coco_e2e_gt.json"));
    open_coco(&results, golden_path("coco_e2e_expected_keypoints.json"));
    stats_are(json_object_get(file, "expected_stats"));
    json_decref(file);
}
END_TEST

static void open_results(const json_t *list)
{
    char name[] = "/tmp/mp_metrics.XXXXXX";
    int fd = mkstemp(name);

    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(json_dumpfd(list, fd, 0), 0);
    close(fd);
    open_coco(&results, name);
    unlink(name);
}

/* Every box of the ground truth as a result, its joints moved. Of results with
 * equal scores, the published code writes the later ones first. */
static json_t *displaced(double by)
{
    json_t *out = json_array();

    for (size_t i = 0; i < truth->nobject; i++) {
        const struct mp_coco_object *o = &truth->object[i];
        json_t *joints = json_array();
        double box[4];

        for (int j = 0; j < MP_COCO_JOINTS; j++) {
            const double *k = o->keypoint[j];

            json_array_append_new(joints, json_real(k[0] + by));
            json_array_append_new(joints, json_real(k[1] + by));
            json_array_append_new(joints, json_real(1));
        }
        if (mp_coco_truth_box(box, mp_coco_image(truth, o->image_id), o))
            json_array_insert_new(out, 0,
                                  json_pack("{s:I,s:i,s:i,s:O}", "image_id",
                                            (json_int_t)o->image_id,
                                            "category_id", 1, "score", 1,
                                            "keypoints", joints));
        json_decref(joints);
    }
    return out;
}

START_TEST(pose_photos)
{
    const char *path = shared_path("protocol/golden/pose_real.json");
    json_t *file, *list;
    const json_t *row;

    if (path == NULL) {
        puts("SKIPPED: pose_photos wants MPIPE_SHARED");
        return;
    }
    file = golden_json(path);
    row = json_array_get(json_object_get(file, "ap_of_displaced_ground_truth"),
                         (size_t)_i);
    open_coco(&truth,
              shared_path("protocol/samples/pose_coco/person_keypoints.json"));
    list = displaced(member(row, "displacement_px"));
    open_results(list);
    stats_are(json_object_get(row, "stats"));
    json_decref(list);
    json_decref(file);
}
END_TEST

static void all_are(double value)
{
    struct mp_pose_scores got;

    ck_assert_int_eq(mp_pose_metrics(&got, truth, results, MP_XTCOCOTOOLS, &e),
                     0);
    for (int i = 0; i < MP_POSE_METRICS; i++)
        ck_assert_double_eq(got.value[i], value);
    mp_coco_free(results);
}

static void fails(const char *why)
{
    struct mp_pose_scores got;

    ck_assert_int_eq(mp_pose_metrics(&got, truth, results, MP_XTCOCOTOOLS, &e),
                     MP_EFORMAT);
    ck_assert_msg(strstr(e.text, why) != NULL, "%s", e.text);
    mp_coco_free(results);
}

/* No results, nobody to find, results that do not belong. */
START_TEST(pose_edges)
{
    json_t *none = json_array();

    open_coco(&truth, golden_path("coco_e2e_gt.json"));
    open_results(none);
    all_are(0);
    open_coco(&results, golden_path("coco_e2e_boxes.json"));
    fails("result [0] has no keypoints");
    open_coco(&results, golden_path("coco_ap_main_dt.json"));
    fails("the ground truth has no image 1");
    for (size_t i = 0; i < truth->nobject; i++)
        truth->object[i].crowd = 1;
    open_coco(&results, golden_path("coco_e2e_expected_keypoints.json"));
    all_are(-1);
    truth->object[3].has = MP_COCO_BOX | MP_COCO_KEYPOINTS;
    open_results(none);
    fails("annotations[3] has no area");
    mp_coco_free(truth);
    open_results(none);
    truth = results;
    open_results(none);
    fails("ground truth must be an annotation file");
    results = NULL;
    json_decref(none);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("metrics");
    TCase *t = tcase_create("depth");
    SRunner *r;
    int failed;

    tcase_set_timeout(t, 30);
    tcase_add_checked_fixture(t, open_depth, close_depth);
    tcase_add_loop_test(t, depth_metrics, 0, 14);
    tcase_add_test(t, depth_mean);
    tcase_add_test(t, depth_crops);
    tcase_add_test(t, depth_edges);
    suite_add_tcase(s, t);
    t = tcase_create("seg");
    tcase_add_checked_fixture(t, NULL, clear_counts);
    tcase_add_loop_test(t, seg_metrics, 0, 10);
    tcase_add_test(t, seg_photos);
    tcase_add_test(t, seg_strays);
    suite_add_tcase(s, t);
    t = tcase_create("pose");
    tcase_add_checked_fixture(t, NULL, free_coco);
    tcase_add_loop_test(t, pose_ap, 0, 4);
    tcase_add_test(t, pose_end_to_end);
    tcase_add_loop_test(t, pose_photos, 0, 4);
    tcase_add_test(t, pose_edges);
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
