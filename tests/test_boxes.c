/* SPDX-License-Identifier: MIT */
/* test_boxes.c - persons of a picture, from both kinds of file. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "boxes.h"

static char path[64];

static struct mp_boxes *open_text(const char *text)
{
    struct mp_boxes *b = NULL;
    struct mp_error err = {0};
    FILE *f = fopen(path, "w");

    fputs(text, f);
    fclose(f);
    ck_assert_msg(!mp_boxes_open(&b, path, &err), "%s", err.text);
    unlink(path);
    return b;
}

static const char truth[] =
    "{\"images\": ["
    "{\"id\": 7, \"file_name\": \"val/a b.jpg\", \"width\": 50, \"height\": "
    "40},"
    "{\"id\": 9, \"file_name\": \"c.jpg\", \"width\": 50, \"height\": 40}],"
    "\"annotations\": ["
    "{\"id\": 1, \"image_id\": 7, \"category_id\": 1, \"bbox\": [-3, 5, 20, "
    "60],"
    " \"area\": 9, \"keypoints\": [1,1,2,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,"
    "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]},"
    "{\"id\": 2, \"image_id\": 7, \"category_id\": 1, \"bbox\": [1, 1, 9, 9],"
    " \"area\": 9, \"iscrowd\": 1},"
    "{\"id\": 3, \"image_id\": 7, \"category_id\": 3, \"bbox\": [1, 1, 9, "
    "9]}]}";

/* Clipped: 20 - 1 wide from 0 on, and down to the last row. */
START_TEST(annotations)
{
    struct mp_boxes *b = open_text(truth);
    struct mp_error err = {0};
    struct mp_box *box;
    int64_t id;
    size_t n;

    ck_assert_int_eq(mp_boxes_of(b, "val/a b", &id, &box, &n, &err), 0);
    ck_assert_int_eq(id, 7);
    ck_assert_uint_eq(n, 1);
    ck_assert(box->x == 0 && box->y == 5 && box->w == 19 && box->h == 34);
    ck_assert(box->score == 1);
    free(box);
    ck_assert_int_eq(mp_boxes_of(b, "c", &id, &box, &n, &err), 0);
    ck_assert_uint_eq(n, 0);
    free(box);
    ck_assert_int_eq(mp_boxes_of(b, "d", &id, &box, &n, &err), MP_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "no image of this name"));
    mp_boxes_free(b);
}
END_TEST

START_TEST(detections)
{
    struct mp_boxes *b = open_text(
        "[{\"image_id\": 785, \"category_id\": 1, \"bbox\": [-3, 5, 20, 60.5],"
        " \"score\": 0.25},"
        "{\"image_id\": 785, \"category_id\": 2, \"bbox\": [0, 0, 1, 1],"
        " \"score\": 1}]");
    struct mp_error err = {0};
    struct mp_box *box;
    int64_t id;
    size_t n;

    ck_assert_int_eq(mp_boxes_of(b, "x/000000000785", &id, &box, &n, &err), 0);
    ck_assert_int_eq(id, 785);
    ck_assert_uint_eq(n, 1);
    ck_assert(box->x == -3 && box->h == 60.5 && box->score == 0.25);
    free(box);
    ck_assert_int_eq(mp_boxes_of(b, "786", &id, &box, &n, &err), 0);
    ck_assert_uint_eq(n, 0);
    free(box);
    ck_assert_int_eq(mp_boxes_of(b, "p785", &id, &box, &n, &err), MP_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "by number"));
    mp_boxes_free(b);
}
END_TEST

START_TEST(no_box)
{
    struct mp_boxes *b = NULL;
    struct mp_error err = {0};
    FILE *f = fopen(path, "w");

    fputs("[{\"image_id\": 1, \"category_id\": 1, \"score\": 1}]", f);
    fclose(f);
    ck_assert_int_eq(mp_boxes_open(&b, path, &err), MP_EFORMAT);
    ck_assert_ptr_nonnull(strstr(err.text, path));
    ck_assert_ptr_nonnull(strstr(err.text, "entry 0: there is no bbox"));
    unlink(path);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("boxes");
    TCase *t = tcase_create("boxes");
    SRunner *r;
    int failed;

    snprintf(path, sizeof path, "/tmp/mpipe-boxes.%d.json", (int)getpid());
    tcase_add_test(t, annotations);
    tcase_add_test(t, detections);
    tcase_add_test(t, no_box);
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
