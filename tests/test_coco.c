/* SPDX-License-Identifier: MIT */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "eval/coco.h"
#include "golden.h"

static struct mp_coco *coco;
static struct mp_error e;
static char folder[256], file[300];

static void setup(void)
{
    const char *tmp = getenv("TMPDIR");

    snprintf(folder, sizeof(folder), "%s/mp_coco.XXXXXX",
             tmp == NULL ? "/tmp" : tmp);
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(file, sizeof(file), "%s/a.json", folder);
    memset(&e, 0, sizeof(e));
}

static void teardown(void)
{
    mp_coco_free(coco);
    coco = NULL;
    unlink(file);
    ck_assert_int_eq(rmdir(folder), 0);
}

static int load(const char *text)
{
    FILE *f = fopen(file, "wb");

    ck_assert_ptr_nonnull(f);
    ck_assert_int_ge(fputs(text, f), 0);
    ck_assert_int_eq(fclose(f), 0);
    return mp_coco_open(&coco, file, &e);
}

static void open_golden(const char *path)
{
    ck_assert_msg(mp_coco_open(&coco, path, &e) == 0, "%s", e.text);
}

START_TEST(annotations)
{
    const struct mp_coco_object *o;
    const struct mp_coco_image *img;
    const size_t *at;
    size_t n;

    open_golden(golden_path("coco_ap_small_gt.json"));
    ck_assert_int_eq(coco->is_truth, 1);
    ck_assert_uint_eq(coco->nimage, 3);
    ck_assert_uint_eq(coco->nobject, 9);
    img = mp_coco_image(coco, 1007);
    ck_assert_str_eq(img->file, "000000001007.jpg");
    ck_assert_int_eq(img->width, 480);
    ck_assert_int_eq(img->height, 640);
    ck_assert_ptr_null(mp_coco_image(coco, 1008));
    o = coco->object;
    ck_assert_int_eq(o->id, 0);
    ck_assert_int_eq(o->image_id, 1000);
    ck_assert_int_eq(o->category_id, MP_COCO_PERSON);
    ck_assert_int_eq(o->has, MP_COCO_BOX | MP_COCO_AREA | MP_COCO_KEYPOINTS);
    ck_assert_double_eq(o->box[2], 22.37);
    ck_assert_double_eq(o->area, 448.0472);
    ck_assert_double_eq(o->keypoint[2][0], 50);
    ck_assert_double_eq(o->keypoint[2][1], 355);
    ck_assert_double_eq(o->keypoint[2][2], 1);
    ck_assert_int_eq(o->labelled, 13);
    ck_assert_int_eq(o->num_keypoints, 13);
    ck_assert_double_eq(o->score, 1);
    at = mp_coco_of_image(coco, 1007, &n);
    ck_assert_uint_eq(n, 3);
    ck_assert_uint_eq(at[0], 1);
    ck_assert_uint_eq(at[2], 3);
    mp_coco_of_image(coco, 1, &n);
    ck_assert_uint_eq(n, 0);
}
END_TEST

START_TEST(results)
{
    open_golden(golden_path("coco_ap_small_dt.json"));
    ck_assert_int_eq(coco->is_truth, 0);
    ck_assert_uint_eq(coco->nimage, 0);
    ck_assert_uint_eq(coco->nobject, 13);
    ck_assert_int_eq(coco->object[2].id, 3);
    ck_assert_int_eq(coco->object[2].has, MP_COCO_KEYPOINTS);
    ck_assert_double_eq(coco->object[2].score, 0.99);
    ck_assert_ptr_null(mp_coco_image(coco, 1000));
    ck_assert_ptr_null(mp_coco_image_of(coco, "a"));
}
END_TEST

START_TEST(detections)
{
    open_golden(golden_path("coco_e2e_boxes.json"));
    ck_assert_int_eq(coco->object[0].has, MP_COCO_BOX);
    ck_assert_double_eq(coco->object[4].box[1], -21.61);
    ck_assert_double_eq(coco->object[0].score, 0.7342);
}
END_TEST

/* Names: with folders or without, of the file or of the picture. */
START_TEST(names)
{
    static const struct {
        const char *stem;
        int64_t id; /* 0: none */
    } row[] = {
        {"b", 7},       {"x/b", 7},  {"sub/a", 1},   {"in/sub/a", 1}, {"a", 9},
        {"other/a", 9}, {"c.d", 5},  {"c", 0},       {"ub/b", 7},     {"", 0},
        {"b/", 0},      {"sub/", 0}, {".hidden", 3}, {"/b", 7},       {"bb", 0},
    };

    ck_assert_msg(
        load("{\"images\":["
             "{\"id\":9,\"file_name\":\"a.jpg\",\"width\":1,\"height\":2},"
             "{\"id\":1,\"file_name\":\"sub/a.jpg\",\"width\":1,\"height\":2},"
             "{\"id\":7,\"file_name\":\"b.png\",\"width\":1,\"height\":2},"
             "{\"id\":8,\"file_name\":\"b.jpg\",\"width\":1,\"height\":2},"
             "{\"id\":3,\"file_name\":\".hidden\",\"width\":1,\"height\":2},"
             "{\"id\":5,\"file_name\":\"c.d.jpg\",\"width\":1,\"height\":2}],"
             "\"annotations\":[]}") == 0,
        "%s", e.text);
    ck_assert_int_eq(coco->image[0].id, 1);
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        const struct mp_coco_image *img = mp_coco_image_of(coco, row[i].stem);

        ck_assert_msg((img == NULL ? 0 : img->id) == row[i].id, "%s: %d",
                      row[i].stem, img == NULL ? 0 : (int)img->id);
    }
}
END_TEST

/* The boxes of `list` come out of the annotations, in their order. */
static void boxes_are(const json_t *list, const char *image_key)
{
    size_t found = 0;

    for (size_t i = 0; i < coco->nimage; i++) {
        const struct mp_coco_image *img = &coco->image[i];
        size_t n;
        const size_t *at = mp_coco_of_image(coco, img->id, &n);

        for (size_t k = 0; k < n; k++) {
            const json_t *want = json_array_get(list, found);
            const json_t *box = json_object_get(want, "bbox");
            double got[4];

            if (!mp_coco_truth_box(got, img, &coco->object[at[k]]))
                continue;
            ck_assert_str_eq(
                json_string_value(json_object_get(want, image_key)), img->file);
            for (size_t d = 0; d < 4; d++)
                ck_assert_double_eq(got[d],
                                    json_number_value(json_array_get(box, d)));
            found++;
        }
    }
    ck_assert_uint_gt(found, 0);
    ck_assert_uint_eq(found, json_array_size(list));
}

START_TEST(truth_boxes)
{
    json_t *want = golden_json(golden_path("coco_e2e.json"));

    open_golden(golden_path("coco_e2e_gt.json"));
    boxes_are(json_object_get(want, "ground_truth_box_db"), "image_file");
    json_decref(want);
}
END_TEST

START_TEST(truth_boxes_of_photos)
{
    const char *path = shared_path("protocol/golden/pose_real.json");
    json_t *want;

    if (path == NULL) {
        puts("SKIPPED: truth_boxes_of_photos wants MPIPE_SHARED");
        return;
    }
    want = golden_json(path);
    open_golden(
        shared_path("protocol/samples/pose_coco/person_keypoints.json"));
    boxes_are(json_object_get(want, "ground_truth_boxes"), "image");
    json_decref(want);
}
END_TEST

#define IMAGE(id)                                                              \
    "{\"id\":" id ",\"file_name\":\"a.jpg\",\"width\":10,\"height\":20}"
#define TRUTH(annotations)                                                     \
    "{\"images\":[" IMAGE("1") "],\"annotations\":[" annotations "]}"
#define LABEL(rest)  "{\"id\":1,\"image_id\":1,\"category_id\":1" rest "}"
#define RESULT(rest) "[{\"image_id\":1,\"category_id\":1" rest "}]"

static const struct {
    const char *text, *error;
} bad[] = {
    {"", ":1:0: "},
    {"7", ":1:"},
    {"{}", ": an annotation file must have the lists images and annotations"},
    {"{\"images\":[]}", "must have the lists"},
    {"{\"images\":[7],\"annotations\":[]}", ": images[0]: must be an object"},
    {"{\"images\":[{}],\"annotations\":[]}",
     ": images[0]: id must be a whole number"},
    {"{\"images\":[{\"id\":1,\"width\":0}],\"annotations\":[]}",
     ": images[0]: width must be a whole number above 0, pixels"},
    {"{\"images\":[{\"id\":1,\"width\":9,\"height\":2147483648}],"
     "\"annotations\":[]}",
     ": images[0]: height must be"},
    {"{\"images\":[{\"id\":1,\"width\":9,\"height\":9}],\"annotations\":[]}",
     ": images[0]: file_name must be a text, not empty"},
    {"{\"images\":[" IMAGE("1") "," IMAGE("1") "],\"annotations\":[]}",
     ": two images have the id 1"},
    {"{\"images\":[" IMAGE("99999999999999999999") "],\"annotations\":[]}",
     ":1:"},
    {TRUTH("{\"id\":1.5}"), ": annotations[0]: image_id must be"},
    {TRUTH("{\"image_id\":1}"), ": annotations[0]: id must be"},
    {TRUTH("{\"image_id\":1,\"id\":2}"), ": annotations[0]: category_id must"},
    {TRUTH("{\"image_id\":2,\"id\":2,\"category_id\":1}"),
     ": annotations[0]: no image has the id 2"},
    {TRUTH(LABEL("") "," LABEL("")), ": two annotations have the id 1"},
    {TRUTH(LABEL(",\"bbox\":[1,2,3]")),
     ": annotations[0]: bbox must be a list of 4 numbers"},
    {TRUTH(LABEL(",\"bbox\":[1,2,3,\"4\"]")),
     ": annotations[0]: bbox[3] must be a number"},
    {TRUTH(LABEL(",\"keypoints\":{}")),
     ": annotations[0]: keypoints must be a list of 51 numbers"},
    {TRUTH(LABEL(",\"area\":-1")), ": annotations[0]: area must be"},
    {TRUTH(LABEL(",\"area\":\"9\"")), ": annotations[0]: area must be"},
    {TRUTH(LABEL(",\"iscrowd\":\"no\"")), ": annotations[0]: iscrowd must"},
    {TRUTH(LABEL(",\"num_keypoints\":1.5")),
     ": annotations[0]: num_keypoints must be a whole number"},
    {"[7]", ": [0]: must be an object"},
    {RESULT(""), ": [0]: score must be a number"},
    {RESULT(",\"score\":\"1\""), ": [0]: score must be a number"},
    {RESULT(",\"score\":1e999"), ":1:"},
    {"[{\"image_id\":\"a\"}]", ": [0]: image_id must be a whole number"},
};

START_TEST(refuses)
{
    ck_assert_msg(load(bad[_i].text) == MP_EFORMAT, "%s", bad[_i].text);
    ck_assert_ptr_null(coco);
    ck_assert_int_eq(strncmp(e.text, file, strlen(file)), 0);
    ck_assert_msg(strstr(e.text, bad[_i].error) != NULL, "%s", e.text);
}
END_TEST

START_TEST(no_file)
{
    ck_assert_int_eq(mp_coco_open(&coco, file, &e), MP_EIO);
    ck_assert_ptr_nonnull(strstr(e.text, "No such file"));
    ck_assert_int_eq(mp_coco_open(&coco, folder, &e), MP_EIO);
    ck_assert_ptr_nonnull(strstr(e.text, "directory"));
}
END_TEST

/* What an annotation may leave out. */
START_TEST(least)
{
    double box[4];

    ck_assert_msg(load(TRUTH(LABEL(",\"iscrowd\":true"))) == 0, "%s", e.text);
    ck_assert_int_eq(coco->object[0].has, 0);
    ck_assert_int_eq(coco->object[0].crowd, 1);
    ck_assert_int_eq(coco->object[0].num_keypoints, 0);
    ck_assert_int_eq(mp_coco_truth_box(box, &coco->image[0], &coco->object[0]),
                     0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("coco");
    TCase *t = tcase_create("coco");
    SRunner *r;
    int failed;

    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, annotations);
    tcase_add_test(t, results);
    tcase_add_test(t, detections);
    tcase_add_test(t, names);
    tcase_add_test(t, truth_boxes);
    tcase_add_test(t, truth_boxes_of_photos);
    tcase_add_loop_test(t, refuses, 0, sizeof(bad) / sizeof(*bad));
    tcase_add_test(t, no_file);
    tcase_add_test(t, least);
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
