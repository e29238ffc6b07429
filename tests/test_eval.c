/* SPDX-License-Identifier: MIT */
/* Pairs of results and ground truth, and sums over them. */
#include <check.h>
#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "classes.h"
#include "eval/evaluate.h"
#include "golden.h"
#include "image.h"

static struct mp_error e;
static char start[1024], folder[256];
static struct mp_pairs pairs;
static struct mp_inputs in;

static int remove_one(const char *path, const struct stat *st, int flag,
                      struct FTW *ftw)
{
    (void)st;
    (void)flag;
    (void)ftw;
    return remove(path);
}

/* In a folder of its own, by relative names. */
static void setup(void)
{
    const char *tmp = getenv("TMPDIR");

    ck_assert_ptr_nonnull(getcwd(start, sizeof start));
    snprintf(folder, sizeof folder, "%s/mp_eval.XXXXXX",
             tmp == NULL ? "/tmp" : tmp);
    ck_assert_ptr_nonnull(mkdtemp(folder));
    ck_assert_int_eq(chdir(folder), 0);
    mp_log_set(MP_LOG_ERROR);
    memset(&e, 0, sizeof e);
}

static void teardown(void)
{
    mp_pairs_free(&pairs);
    mp_inputs_free(&in);
    ck_assert_int_eq(chdir(start), 0);
    nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void put(const char *path, const char *text)
{
    ck_assert_msg(mp_file_parents(path, &e) == 0, "%s", e.text);
    ck_assert_msg(mp_file_write(path, text, strlen(text), &e) == 0, "%s",
                  e.text);
}

/* Empty files, names separated by blanks. */
static void put_files(const char *names)
{
    char *copy = strdup(names), *save = NULL;

    for (char *n = strtok_r(copy, " ", &save); n != NULL;
         n = strtok_r(NULL, " ", &save))
        put(n, "");
    free(copy);
}

/* ---- pairs ---- */

/* For a task: files that are there, and pairs "name result truth;" of results
 * in "out" and ground truth in "gt". */
static const struct {
    enum mp_task task;
    const char *files, *want;
    size_t unused;
} forms[] = {
    {MP_TASK_DEPTH, "out/b.npy out/a/x.npy gt/b.png gt/a/x.png out/c.npy",
     "a/x out/a/x.npy gt/a/x.png;b out/b.npy gt/b.png;", 1},
    /* what mpipe writes, of which .npy is the most exact */
    {MP_TASK_DEPTH,
     "out/a.npy.npy out/a.png16.png out/a.color.png out/a.raw.npy "
     "out/run.json out/b.png16.png gt/a.png gt/b.npy",
     "a out/a.npy.npy gt/a.png;b out/b.png16.png gt/b.npy;", 2},
    {MP_TASK_DEPTH,
     "out/k/rgb_00001.npy.npy gt/k/rgb_00001.png gt/k/sync_depth_00001.png",
     "k/rgb_00001 out/k/rgb_00001.npy.npy gt/k/sync_depth_00001.png;", 0},
    {MP_TASK_DEPTH,
     "out/2011_09_26/d_0002_sync/image_02/data/0000000005.npy.npy "
     "gt/val/d_0002_sync/proj_depth/groundtruth/image_02/0000000005.png "
     "out/data/kitti/d_0002_sync/image_03/data/0000000005.png16.png "
     "gt/val/d_0002_sync/proj_depth/groundtruth/image_03/0000000005.png",
     "d_0002_sync/image_02/0000000005 "
     "out/2011_09_26/d_0002_sync/image_02/data/0000000005.npy.npy "
     "gt/val/d_0002_sync/proj_depth/groundtruth/image_02/0000000005.png;"
     "d_0002_sync/image_03/0000000005 "
     "out/data/kitti/d_0002_sync/image_03/data/0000000005.png16.png "
     "gt/val/d_0002_sync/proj_depth/groundtruth/image_03/0000000005.png;",
     0},
    {MP_TASK_DEPTH,
     "out/image_02/data/5.npy gt/proj_depth/groundtruth/image_02/5.png",
     "image_02/5 out/image_02/data/5.npy "
     "gt/proj_depth/groundtruth/image_02/5.png;",
     0},
    {MP_TASK_SEG,
     "out/f/f_1_leftImg8bit.labels.png out/f/f_1_leftImg8bit.overlay.png "
     "gt/f/f_1_gtFine_labelTrainIds.png gt/f/f_1_gtFine_labelIds.png "
     "gt/f/f_1_gtFine_color.png gt/f/f_1_gtFine_instanceIds.png "
     "gt/f/f_1_gtFine_polygons.json out/g/g_2_leftImg8bit.png "
     "gt/g/g_2_gtFine_labelIds.png",
     "f/f_1 out/f/f_1_leftImg8bit.labels.png "
     "gt/f/f_1_gtFine_labelTrainIds.png;"
     "g/g_2 out/g/g_2_leftImg8bit.png gt/g/g_2_gtFine_labelIds.png;",
     1},
    {MP_TASK_SEG, "out/a.b.labels.png gt/a.b.png gt/.hidden/x.png gt/.y.png",
     "a.b out/a.b.labels.png gt/a.b.png;", 0},
    {MP_TASK_SEG, "out/a.labels.png out/a.ids.png gt/a.png out/b.png gt/b.png",
     "a out/a.ids.png gt/a.png;b out/b.png gt/b.png;", 1},
};

static void pairs_are(const char *want)
{
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);

    for (size_t i = 0; i < pairs.n; i++)
        fprintf(f, "%s %s %s;", pairs.at[i].name,
                pairs.at[i].result ? pairs.at[i].result : in.at[i].path,
                pairs.at[i].truth);
    fclose(f);
    ck_assert_str_eq(text, want);
    free(text);
}

START_TEST(names)
{
    struct mp_truth t = {.task = forms[_i].task,
                         .path = "gt",
                         .ids = strstr(forms[_i].files, ".ids.png") != NULL};

    put_files(forms[_i].files);
    ck_assert_msg(mp_pairs_open(&pairs, &t, "out", &e) == 0, "%s", e.text);
    pairs_are(forms[_i].want);
    ck_assert_uint_eq(pairs.unused, forms[_i].unused);
    mp_pairs_free(&pairs);
    t.path = "gt/"; /* how the folders are written makes no difference */
    ck_assert_msg(mp_pairs_open(&pairs, &t, ".//out//", &e) == 0, "%s", e.text);
    ck_assert_uint_eq(pairs.unused, forms[_i].unused);
}
END_TEST

static const struct {
    enum mp_task task;
    const char *files, *out, *gt, *error;
} wrong[] = {
    {MP_TASK_DEPTH, "out/a.npy gt/a.png gt/b.png gt/c.png", "out", "gt",
     "out: 2 of 3 pairs are not complete"},
    {MP_TASK_DEPTH, "out/a.npy gt/a.txt", "out", "gt",
     "gt: no ground truth in it"},
    {MP_TASK_DEPTH, "out/a.npy", "out", "gt", "gt: No such file or directory"},
    {MP_TASK_DEPTH, "gt/a.png", "out", "gt", "out: No such file or directory"},
    {MP_TASK_DEPTH, "a.npy gt/a.png", "a.npy", "gt",
     "a.npy is one file: the ground truth must be one too"},
    {MP_TASK_DEPTH, "out/a.npy a.png", "out", "a.png",
     "a.png is one file: the results must be one too"},
    {MP_TASK_SEG,
     "out/d/image_02/data/1.png out/e/d/image_02/data/1.png gt/a.png", "out",
     "gt",
     "out/d/image_02/data/1.png and out/e/d/image_02/data/1.png are of one "
     "picture"},
};

START_TEST(refuses)
{
    struct mp_truth t = {.task = wrong[_i].task, .path = wrong[_i].gt};

    put_files(wrong[_i].files);
    ck_assert_int_lt(mp_pairs_open(&pairs, &t, wrong[_i].out, &e), 0);
    ck_assert_str_eq(e.text, wrong[_i].error);
}
END_TEST

#define LIST                                                                   \
    "/k/rgb_2.jpg /k/sync_depth_2.png 518.8\r\n\n"                             \
    "b/rgb_1.jpg\tb/sync_depth_1.png\nnone.jpg None 721.5\n"

START_TEST(lists)
{
    struct mp_truth t = {MP_TASK_DEPTH, "lists/test.txt", "truth", NULL, 0};

    put("lists/test.txt", LIST);
    put_files("truth/k/sync_depth_2.png truth/b/sync_depth_1.png "
              "out/k/rgb_2.npy.npy out/b/rgb_1.npy.npy pic/k/rgb_2.jpg "
              "pic/b/rgb_1.jpg");
    ck_assert_msg(mp_pairs_open(&pairs, &t, "out", &e) == 0, "%s", e.text);
    pairs_are("k/rgb_2 out/k/rgb_2.npy.npy truth/k/sync_depth_2.png;"
              "b/rgb_1 out/b/rgb_1.npy.npy truth/b/sync_depth_1.png;");
    ck_assert_uint_eq(pairs.left_out, 1);
    mp_pairs_free(&pairs);
    ck_assert_msg(mp_pairs_inputs(&pairs, &in, &t, "pic", "new", &e) == 0, "%s",
                  e.text);
    pairs_are("k/rgb_2 pic/k/rgb_2.jpg truth/k/sync_depth_2.png;"
              "b/rgb_1 pic/b/rgb_1.jpg truth/b/sync_depth_1.png;");
    ck_assert_int_eq(mp_pairs_results(&pairs, &in, "new", "npy.npy", &e), 0);
    ck_assert_str_eq(pairs.at[1].result, "new/b/rgb_1.npy.npy");
    mp_pairs_free(&pairs);
    mp_inputs_free(&in);
    ck_assert_int_eq(unlink("pic/k/rgb_2.jpg"), 0);
    ck_assert_int_eq(unlink("truth/b/sync_depth_1.png"), 0);
    ck_assert_int_eq(mp_pairs_inputs(&pairs, &in, &t, "pic", "new", &e),
                     MP_EINVAL);
    ck_assert_str_eq(e.text, "lists/test.txt: 2 of 4 files are not there");
    mp_pairs_free(&pairs);
    t.root = NULL; /* beside the list */
    put_files("lists/k/sync_depth_2.png lists/b/sync_depth_1.png");
    ck_assert_int_eq(mp_pairs_open(&pairs, &t, "out", &e), 0);
    ck_assert_str_eq(pairs.at[0].truth, "lists//k/sync_depth_2.png");
}
END_TEST

static const struct {
    const char *list, *error;
} bad_lists[] = {
    {"a.jpg a.png\nb.jpg\n", "l:2: must be PICTURE GROUND-TRUTH [FOCAL]"},
    {"../a.jpg a.png\n", "l:1: PICTURE must not go up by .."},
    {"a/../../a.jpg a.png\n", "l:1: PICTURE must not go up by .."},
    {"a.jpg None\n", "l: no pairs in it"},
    {"", "l: no pairs in it"},
    {"a.jpg a.png\na.png a.png\n", "l: a is named twice"},
};

START_TEST(wrong_lists)
{
    struct mp_truth t = {.task = MP_TASK_DEPTH, .path = "l"};

    put("l", bad_lists[_i].list);
    put_files("a.png a.jpg");
    ck_assert_int_lt(mp_pairs_inputs(&pairs, &in, &t, ".", "new", &e), 0);
    ck_assert_str_eq(e.text, bad_lists[_i].error);
}
END_TEST

/* Ground truth among the pictures; more of it than pictures. */
START_TEST(pictures)
{
    struct mp_truth t = {.task = MP_TASK_DEPTH, .path = "in"};

    put_files("in/k/rgb_1.png in/k/sync_depth_1.png in/l/rgb_1.jpg "
              "in/l/sync_depth_1.png");
    ck_assert_msg(mp_pairs_inputs(&pairs, &in, &t, "in/k", "o", &e) < 0,
                  "in/k is not in");
    mp_pairs_free(&pairs);
    mp_inputs_free(&in);
    ck_assert_msg(mp_pairs_inputs(&pairs, &in, &t, "in", "o", &e) == 0, "%s",
                  e.text);
    pairs_are("k/rgb_1 in/k/rgb_1.png in/k/sync_depth_1.png;"
              "l/rgb_1 in/l/rgb_1.jpg in/l/sync_depth_1.png;");
    mp_pairs_free(&pairs);
    mp_inputs_free(&in);
    t.path = "in/l/sync_depth_1.png";
    ck_assert_int_eq(
        mp_pairs_inputs(&pairs, &in, &t, "in/l/rgb_1.jpg", "o", &e), 0);
    pairs_are("rgb_1 in/l/rgb_1.jpg in/l/sync_depth_1.png;");
    mp_pairs_free(&pairs);
    mp_inputs_free(&in);
    put_files("in/m/rgb_1.png");
    t.path = "in";
    ck_assert_int_eq(mp_pairs_inputs(&pairs, &in, &t, "in", "o", &e),
                     MP_EINVAL);
    ck_assert_str_eq(e.text, "1 of 3 pictures have no ground truth");
}
END_TEST

START_TEST(people)
{
    struct mp_coco *coco;
    struct mp_truth t = {.task = MP_TASK_POSE, .path = "a.json"};

    put("a.json", "{\"images\":[{\"id\":2,\"file_name\":\"a.jpg\",\"width\":1,"
                  "\"height\":1},{\"id\":1,\"file_name\":\"b.jpg\",\"width\":1,"
                  "\"height\":1}],\"annotations\":[]}");
    put_files("in/a.jpg in/c.jpg");
    ck_assert_int_eq(mp_coco_open(&coco, "a.json", &e), 0);
    t.coco = coco;
    ck_assert_int_eq(mp_pairs_inputs(&pairs, &in, &t, "in", "o", &e),
                     MP_EINVAL);
    ck_assert_str_eq(e.text, "1 of 2 annotated pictures are not there");
    mp_pairs_free(&pairs);
    mp_inputs_free(&in);
    put_files("in/sub/b.png");
    ck_assert_int_eq(mp_pairs_inputs(&pairs, &in, &t, "in", "o", &e), 0);
    ck_assert_uint_eq(in.n, 2);
    ck_assert_str_eq(in.at[1].path, "in/sub/b.png");
    ck_assert_uint_eq(pairs.unused, 1);
    mp_coco_free(coco);
}
END_TEST

/* ---- depth ---- */

#define W 6
#define H 4

static struct mp_settings settings; /* as much of it as is read */

/* n pairs of which the result is off by i + 1 units of 100. */
static void make_depth(size_t n)
{
    float pred[W * H];
    uint16_t gt[W * H];
    char path[32];

    for (size_t i = 0; i < n; i++) {
        struct mp_png png = {
            .width = W, .height = H, .channels = 1, .bits = 16, .px = gt};

        for (size_t k = 0; k < W * H; k++) {
            gt[k] = (uint16_t)(k == 0 ? 0 : 100 * (k + i + 1));
            pred[k] = (float)(k + 2 * i + 2) / 10;
        }
        snprintf(path, sizeof path, "gt/%02zu.png", i);
        ck_assert_int_eq(mp_file_parents(path, &e), 0);
        ck_assert_int_eq(mp_png_write(path, &png, &e), 0);
        snprintf(path, sizeof path, "out/%02zu.npy", i);
        ck_assert_int_eq(mp_file_parents(path, &e), 0);
        ck_assert_int_eq(
            mp_npy_write(path, MP_F32, 2, (int64_t[]){H, W}, pred, &e), 0);
    }
}

static int evaluate_depth(struct mp_evaluation *out)
{
    const struct mp_truth t = {.task = MP_TASK_DEPTH, .path = "gt"};
    int rc;

    mp_pairs_free(&pairs);
    ck_assert_msg(mp_pairs_open(&pairs, &t, "out", &e) == 0, "%s", e.text);
    *out = (struct mp_evaluation){
        .task = MP_TASK_DEPTH, .settings = &settings, .pairs = &pairs};
    rc = mp_evaluate(out, &e);
    mp_evaluation_free(out);
    return rc;
}

static void set_depth(void)
{
    settings.eval = (struct mp_eval_conf){.min_depth = 1e-3,
                                          .max_depth = 10,
                                          .gt_scale = 1000,
                                          .pred_scale = -1,
                                          .double_count = 1};
    settings.compute.threads = 1;
}

START_TEST(depth_means)
{
    struct mp_evaluation one, many;

    set_depth();
    make_depth(7);
    ck_assert_msg(evaluate_depth(&one) == 0, "%s", e.text);
    /* picture i is off by (i + 1) / 10 m everywhere */
    ck_assert_double_eq_tol(one.depth_mean[5], 0.4, 1e-6);
    settings.compute.threads = 3;
    ck_assert_int_eq(evaluate_depth(&many), 0);
    ck_assert_mem_eq(one.depth_mean, many.depth_mean, sizeof one.depth_mean);
    settings.eval.double_count = 3; /* 9 for 7: the first two again */
    ck_assert_int_eq(evaluate_depth(&many), 0);
    ck_assert_double_eq_tol(many.depth_mean[5], (2.8 + .3) / 9, 1e-6);
    settings.eval.double_count = 16; /* all again, and the first two */
    ck_assert_int_eq(evaluate_depth(&many), 0);
    ck_assert_double_eq_tol(many.depth_mean[5], (2 * 2.8 + .3) / 16, 1e-6);
    settings.eval.double_count = 7;
    ck_assert_int_eq(evaluate_depth(&many), 0);
    ck_assert_mem_eq(one.depth_mean, many.depth_mean, sizeof one.depth_mean);
}
END_TEST

/* A picture in which nothing counts is in no mean. */
START_TEST(depth_empty)
{
    struct mp_evaluation got;

    set_depth();
    settings.eval.max_depth = 0.35; /* the third picture begins at 0.4 m */
    make_depth(3);
    ck_assert_int_eq(evaluate_depth(&got), 0);
    ck_assert_uint_eq(got.depth_empty, 1);
    ck_assert_double_eq_tol(got.depth_mean[5], 0.15, 1e-6);
}
END_TEST

/* The first of several faults, whatever the threads. */
START_TEST(depth_faults)
{
    struct mp_evaluation got;
    float v[2] = {1, 1};

    set_depth();
    settings.compute.threads = 4;
    make_depth(12);
    put("out/05.npy", "nothing");
    put("out/09.npy", "nothing");
    for (int i = 0; i < 20; i++) {
        ck_assert_int_eq(evaluate_depth(&got), MP_EFORMAT);
        ck_assert_str_eq(e.text, "out/05.npy: not a .npy file");
    }
    ck_assert_int_eq(
        mp_npy_write("out/03.npy", MP_F32, 2, (int64_t[]){1, 2}, v, &e), 0);
    ck_assert_int_eq(evaluate_depth(&got), MP_EFORMAT);
    ck_assert_str_eq(
        e.text, "out/03.npy is 2 x 1, but its ground truth gt/03.png 6 x 4");
    settings.eval.kb_crop = 1;
    ck_assert_int_eq(evaluate_depth(&got), MP_EFORMAT);
    ck_assert_ptr_nonnull(strstr(e.text, "less than the 1216 x 352"));
}
END_TEST

/* PNG as mpipe writes it, as others do, and of KITTI's size. */
START_TEST(depth_png)
{
    static const struct mp_png_text text = {"depth_scale", "256"};
    static uint16_t px[360 * 1220];
    struct mp_png png = {.width = 1216,
                         .height = 352,
                         .channels = 1,
                         .bits = 16,
                         .px = px,
                         .text = &text,
                         .ntext = 1};
    struct mp_evaluation got;

    set_depth();
    settings.eval.gt_scale = 256;
    settings.eval.kb_crop = 1;
    for (size_t i = 0; i < 360 * 1220; i++)
        px[i] = (uint16_t)(512 + i % 7);
    put_files("out/none");
    put_files("gt/none");
    ck_assert_int_eq(mp_png_write("out/a.png", &png, &e), 0);
    png.width = 1220;
    png.height = 360;
    ck_assert_int_eq(mp_png_write("gt/a.png", &png, &e), 0);
    ck_assert_msg(evaluate_depth(&got) == 0, "%s", e.text);
    ck_assert_double_gt(got.depth_mean[3], 0);
    png.ntext = 0;
    ck_assert_int_eq(mp_png_write("out/a.png", &png, &e), 0);
    ck_assert_int_eq(evaluate_depth(&got), MP_EFORMAT);
    ck_assert_ptr_nonnull(strstr(e.text, "out/a.png: it has no text chunk"));
    settings.eval.pred_scale = 256;
    ck_assert_msg(evaluate_depth(&got) == 0, "%s", e.text);
    ck_assert_double_eq(got.depth_mean[3], 0);
    png.bits = 8;
    ck_assert_int_eq(mp_png_write("out/a.png", &png, &e), 0);
    ck_assert_int_eq(evaluate_depth(&got), MP_EFORMAT);
    ck_assert_ptr_nonnull(strstr(e.text, "PNG of 16 bits, not 8"));
}
END_TEST

/* ---- labels ---- */

/* Each stored value means what the published code turns it into, where 255 is
 * none. */
static void means_are(const char *from, const char *to, const char *truth)
{
    struct golden *g = golden_open(golden_path("outputs_labels.safetensors"));
    const struct golden_tensor *f = golden_get(g, from), *t = golden_get(g, to);
    int32_t *means = malloc(MP_LABEL_VALUES * sizeof *means);

    ck_assert(f != NULL && t != NULL && means != NULL);
    mp_label_means(means, &settings, truth);
    for (size_t i = 0; i < f->count; i++) {
        int32_t got = means[((const uint8_t *)f->data)[i]];
        int32_t want = ((const uint8_t *)t->data)[i];

        /* a class that there is not is a stray */
        if (want != 255 && want >= (int32_t)settings.classes->count)
            ck_assert_int_eq(got, MP_LABEL_STRAY);
        else
            ck_assert_int_eq(got < 0 ? 255 : got, want);
    }
    free(means);
    golden_free(g);
}

static void open_classes(const char *name)
{
    const char *srcdir = getenv("srcdir");
    char path[4096];

    snprintf(path, sizeof path, "%s%s%s/conf/classes/%s.json",
             srcdir && *srcdir == '/' ? "" : start,
             srcdir && *srcdir == '/' ? "" : "/", srcdir ? srcdir : ".", name);
    mp_classes_free(settings.classes);
    ck_assert_msg(mp_classes_open(&settings.classes, path, &e) == 0, "%s",
                  e.text);
    settings.eval =
        (struct mp_eval_conf){.ignore_label = 255, .gt_labels = MP_LABELS_AUTO};
}

START_TEST(labels)
{
    ck_assert_int_eq(chdir(start), 0); /* the goldens may be relative to it */
    open_classes("ade20k");
    means_are("ade_pred", "ade_pred", NULL);
    settings.eval.reduce_zero_label = 1;
    means_are("ade_gt_in", "ade_gt_reduced", "any.png");
    means_are("ade_pred", "ade_pred", NULL);
    settings.eval.pred_labels = MP_LABELS_IDS;
    means_are("ade_result_png_values", "ade_pred", NULL);
    open_classes("cityscapes");
    means_are("cs_labelids_in", "cs_trainids", "a_gtFine_labelIds.png");
    means_are("cityscapes_pred_trainid", "cityscapes_pred_trainid",
              "a_gtFine_labelTrainIds.png");
    settings.eval.gt_labels = MP_LABELS_IDS;
    means_are("cs_labelids_in", "cs_trainids", "any.png");
    settings.eval.pred_labels = MP_LABELS_IDS;
    means_are("cityscapes_label_id", "cityscapes_pred_trainid", NULL);
    ck_assert_int_eq(mp_evaluate_check(MP_TASK_SEG, &settings, &e), 0);
    open_classes("camvid");
    settings.eval.gt_labels = MP_LABELS_IDS;
    ck_assert_int_eq(mp_evaluate_check(MP_TASK_SEG, &settings, &e), MP_EINVAL);
    ck_assert_str_eq(
        e.text,
        "[eval] gt_labels = ids: the classes of CamVid have no label_id");
    mp_classes_free(settings.classes);
    settings.classes = NULL;
}
END_TEST

int main(void)
{
    Suite *s = suite_create("eval");
    TCase *t = tcase_create("eval");
    SRunner *r;
    int failed;

    tcase_set_timeout(t, 30);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_loop_test(t, names, 0, sizeof forms / sizeof *forms);
    tcase_add_loop_test(t, refuses, 0, sizeof wrong / sizeof *wrong);
    tcase_add_test(t, lists);
    tcase_add_loop_test(t, wrong_lists, 0,
                        sizeof bad_lists / sizeof *bad_lists);
    tcase_add_test(t, pictures);
    tcase_add_test(t, people);
    tcase_add_test(t, depth_means);
    tcase_add_test(t, depth_empty);
    tcase_add_test(t, depth_faults);
    tcase_add_test(t, depth_png);
    tcase_add_test(t, labels);
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
