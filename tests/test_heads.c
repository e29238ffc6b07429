/* SPDX-License-Identifier: MIT */
/*
 * test_heads.c - every head without a network: options and views; and of
 * upernet preparation, merging, results.
 */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "golden.h"
#include "heads.h"

static const char *const names[] = {"depth", "upernet", "pose"};

/* ---- options ---- */

START_TEST(defaults)
{
    struct head h = head_new(names[_i], "");

    ck_assert_uint_eq(h.p->abi, MP_PLUGIN_ABI);
    ck_assert_uint_eq(h.p->size, sizeof *h.p);
    ck_assert_str_eq(h.p->name, names[_i]);
    ck_assert_ptr_nonnull(strchr(h.p->formats, ':'));
    for (const struct mp_option *o = h.p->options; o->name; o++)
        ck_assert(o->help && *o->help && o->help[strlen(o->help) - 1] != '.');
    head_free(&h);
}
END_TEST

static const struct {
    const char *head, *settings, *text;
} wrong[] = {
    {"upernet", "stride=600x341", "stride 600x341 is larger than crop 512x512"},
    {"upernet", "crop=4x512", "crop"},
    {"upernet", "mode=slice", "mode"},
    {"upernet", "opacity=2", "opacity"},
    {"upernet", "ratios=11", "ratios = 11: not 1 to 16 numbers"},
    {"upernet", "ratios=1,2", "ratios = 1,2: not 1 to 16 numbers"},
    {"upernet", "ratios=nan", "ratios = nan: not 1 to 16 numbers"},
    {"depth", "max_depth=0", "max_depth"},
    {"depth", "color_min=20", "color_min 20 m is not below color_max 10 m"},
    {"depth", "png_scale=0", "png_scale"},
    {"pose", "input=256x200", "input 256x200: both sides"},
    {"pose", "input=16x16", "input"},
    {"pose", "pixels=rgb", "pixels"},
    {"pose", "padding=0", "padding"},
};

START_TEST(refusals)
{
    struct mp_error err = {0};
    struct head h;

    ck_assert_int_lt(configure(&h, wrong[_i].head, wrong[_i].settings, &err),
                     0);
    ck_assert_msg(strstr(err.text, wrong[_i].text) != NULL, "%s", err.text);
    head_free(&h);
}
END_TEST

/* ---- views ---- */

static int64_t at(json_t *list, size_t i)
{
    return json_integer_value(json_array_get(list, i));
}

START_TEST(windows)
{
    json_t *root = golden_json(golden_path("slide_windows.json")), *c;
    struct mp_view v[CAP];
    size_t i, left = 0;

    ck_assert_ptr_nonnull(root);
    json_array_foreach(json_object_get(root, "cases"), i, c)
    {
        json_t *hw = json_object_get(c, "img_hw"), *box;
        json_t *want = json_object_get(c, "windows_y_x_h_w");
        int crop = (int)json_integer_value(json_object_get(c, "crop"));
        int stride = (int)json_integer_value(json_object_get(c, "stride"));
        char set[128];
        struct head h;
        size_t k;

        if (at(hw, 0) < 8 || at(hw, 1) < 8) {
            left++; /* the encoder cannot take these: see any_shape */
            continue;
        }
        snprintf(set, sizeof set, "mode=slide crop=%dx%d stride=%dx%d", crop,
                 crop, stride, stride);
        h = head_new("upernet", set);
        ck_assert_int_eq(views(&h, (int)at(hw, 1), (int)at(hw, 0), v),
                         json_array_size(want));
        json_array_foreach(want, k, box)
        {
            ck_assert_int_eq(v[k].scaled_h, at(hw, 0));
            ck_assert_int_eq(v[k].scaled_w, at(hw, 1));
            ck_assert_int_eq(v[k].y, at(box, 0));
            ck_assert_int_eq(v[k].x, at(box, 1));
            ck_assert_int_eq(v[k].h, at(box, 2));
            ck_assert_int_eq(v[k].w, at(box, 3));
        }
        head_free(&h);
    }
    ck_assert_uint_eq(i, 26);
    ck_assert_uint_eq(left, 1);
    json_decref(root);
}
END_TEST

static int64_t member(json_t *c, const char *key)
{
    return json_integer_value(json_object_get(c, key));
}

START_TEST(scale)
{
    json_t *root = golden_json(golden_path("imrescale_sizes.json")), *c;
    struct mp_view v[CAP];
    size_t i;

    ck_assert_ptr_nonnull(root);
    json_array_foreach(json_object_get(root, "cases"), i, c)
    {
        json_t *box = json_object_get(c, "scale");
        int64_t w = member(c, "new_w"), hh = member(c, "new_h");
        char set[64];
        struct head h;

        snprintf(set, sizeof set, "scale=%dx%d", (int)at(box, 0),
                 (int)at(box, 1));
        h = head_new("upernet", set);
        ck_assert_int_eq(views(&h, (int)member(c, "w"), (int)member(c, "h"), v),
                         1);
        ck_assert_int_eq(v->w, w < 8 ? 8 : w); /* what the encoder can take */
        ck_assert_int_eq(v->h, hh < 8 ? 8 : hh);
        head_free(&h);
    }
    ck_assert_uint_eq(i, 80);
    json_decref(root);
}
END_TEST

START_TEST(any_shape)
{
    static const int size[][2] = {{1, 1},   {7, 900},   {8, 8},    {101, 143},
                                  {900, 3}, {640, 480}, {9, 2000}, {513, 511}};
    static const char *const set[] = {"", "mode=slide",
                                      "mode=slide scale=2048x512"};
    struct head h = head_new(_i ? "upernet" : "depth", _i ? set[_i - 1] : "");
    struct mp_view v[CAP];

    for (size_t i = 0; i < sizeof size / sizeof *size; i++) {
        long n = views(&h, size[i][0], size[i][1], v);

        for (long k = 0; k < n && k < CAP; k++) {
            ck_assert(v[k].w >= 8 && v[k].h >= 8 && v[k].x >= 0 &&
                      v[k].y >= 0 && v[k].x + v[k].w <= v[k].scaled_w &&
                      v[k].y + v[k].h <= v[k].scaled_h);
            if (_i < 2 && size[i][0] >= 8 && size[i][1] >= 8)
                ck_assert(v[k].scaled_w == size[i][0] &&
                          v[k].scaled_h == size[i][1] && n == 1);
        }
    }
    head_free(&h);
}
END_TEST

/* ---- preparation ---- */

START_TEST(seg_input)
{
    struct head h = head_new("upernet", "");
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
    for (int i = 0; i < 256; i++) /* the same bits */
        ck_assert(((float *)r.data[0])[i] == (x[i] - 127.5f) / 127.5f);
    result_free(&r);
    mp_graph_free(g);
    head_free(&h);
}
END_TEST

/* ---- merging ---- */

#define W 40
#define H 29
#define C 3

/* A score that depends on the place in the picture only. */
static float score(int y, int x, int c)
{
    return sinf(0.3f * (float)(y + 2 * x) + 2.1f * (float)c);
}

/* Windows that agree: their mean is what each says. */
START_TEST(merge_windows)
{
    struct head h = head_new("upernet", "mode=slide crop=16x16 stride=11x9");
    struct mp_sink sink = {.wants = "labels probs",
                           .classes = {.name = "x", .count = C}};
    struct mp_image img = {.name = "x", .width = W, .height = H};
    struct mp_graph *g = mp_graph_new(NULL);
    struct mp_error err = {0};
    struct mp_view v[CAP];
    long n = views(&h, W, H, v);
    static float map[CAP][16 * 16 * C];
    const void *in[CAP];
    mp_node out[CAP];
    struct result r;

    ck_assert_int_gt(n, 4);
    for (long k = 0; k < n; k++) {
        for (int i = 0; i < 16 * 16 * C; i++)
            map[k][i] = score(v[k].y + i / C / 16, v[k].x + i / C % 16, i % C);
        in[k] = map[k];
        out[k] = mp_input(g, "map", MP_F32, 4, (int64_t[]){1, 16, 16, C});
    }
    h.p->merge(h.conf, g,
               &(struct mp_merge){.img = &img,
                                  .view = v,
                                  .out = out,
                                  .nview = (size_t)n,
                                  .ngroup = 1,
                                  .want = &sink});
    ck_assert_msg(!run(&r, g, in, &err), "%s", err.text);
    ck_assert_uint_eq(r.n, 2);
    ck_assert_str_eq(r.t[0].name, "labels");
    ck_assert_str_eq(r.t[1].name, "probs");
    for (int i = 0; i < H * W; i++) {
        double s[C], sum = 0;
        int best = 0;

        for (int c = 0; c < C; c++) {
            s[c] = score(i / W, i % W, c);
            best = s[c] > s[best] ? c : best;
            sum += exp(s[c]);
        }
        ck_assert_int_eq(((int32_t *)r.data[0])[i], best);
        for (int c = 0; c < C; c++)
            ck_assert_double_le(
                fabs(((float *)r.data[1])[i * C + c] - exp(s[c]) / sum), 1e-6);
    }
    result_free(&r);
    mp_graph_free(g);
    head_free(&h);
}
END_TEST

/* Of another number, and without what results hold. */
START_TEST(merge_refuses_classes)
{
    static const struct {
        const char *wants, *name;
        size_t count;
        const char *says;
    } c[] = {{"labels", "ade20k", 150,
              "the checkpoint has 3 classes, [pipeline] classes = ade20k has "
              "150"},
             {"ids", "own", C,
              "[output] formats = ids: the classes of own have no label_id"}};
    struct head h = head_new("upernet", "");
    struct mp_sink sink = {
        .wants = c[_i].wants,
        .classes = {.name = c[_i].name, .count = c[_i].count}};
    struct mp_image img = {.name = "x", .width = 8, .height = 8};
    struct mp_graph *g = mp_graph_new(NULL);
    struct mp_error err = {0};
    struct mp_view v[CAP];
    mp_node out;

    views(&h, 8, 8, v);
    out = mp_input(g, "map", MP_F32, 4, (int64_t[]){1, 2, 2, C});
    h.p->merge(h.conf, g,
               &(struct mp_merge){.img = &img,
                                  .view = v,
                                  .out = &out,
                                  .nview = 1,
                                  .ngroup = 1,
                                  .want = &sink});
    ck_assert_int_lt(mp_graph_check(g, &err), 0);
    ck_assert_msg(strstr(err.text, c[_i].says) != NULL, "%s", err.text);
    mp_graph_free(g);
    head_free(&h);
}
END_TEST

/* ---- results ---- */

START_TEST(overlays)
{
    static const char *const set[] = {"opacity=0.3", "", "opacity=1"};
    static const char *const want[] = {"overlay_0.3", "overlay_0.5",
                                       "overlay_1.0"};
    struct golden *g = golden_open(golden_path("outputs.safetensors"));
    json_t *ade = golden_json(golden_path("../../conf/classes/ade20k.json"));
    json_t *list = json_object_get(ade, "classes"), *c;
    const struct golden_tensor *pred = golden_get(g, "ade_pred");
    struct mp_image img = {.name = "x", .width = 40, .height = 30};
    struct mp_tensor t = {"labels", MP_I32, 3, {1, 30, 40}, NULL};
    struct head h = head_new("upernet", set[_i]);
    uint8_t color[150][3];
    int32_t id[30 * 40];
    struct mp_sink sink = {.wants = "labels color overlay",
                           .classes = {.name = "ade20k",
                                       .count = 150,
                                       .color = (const uint8_t(*)[3])color}};
    size_t i;

    ck_assert_uint_eq(json_array_size(list), 150);
    json_array_foreach(list, i, c) for (size_t k = 0; k < 3; k++) color[i][k] =
        (uint8_t)at(json_object_get(c, "color"), k);
    for (i = 0; i < 30 * 40; i++)
        id[i] = ((const uint8_t *)pred->data)[i];
    t.data = id;
    img.rgb = golden_get(g, "image")->data;
    decode(&h, &img, &t, &sink);
    ck_assert_uint_eq(sink.n, 3);
    same_bytes(g, "ade_pred", sink.kept[0].px);
    same_bytes(g, "overlay_1.0", sink.kept[1].px);
    same_bytes(g, want[_i], sink.kept[2].px);
    ck_assert_int_eq(sink.kept[0].png.width, 40);
    ck_assert_int_eq(sink.kept[0].png.channels, 1);
    ck_assert_int_eq(sink.kept[2].png.channels, 3);
    sink_free(&sink);
    json_decref(ade);
    golden_free(g);
    head_free(&h);
}
END_TEST

/* What the data sets' benchmark servers take. */
START_TEST(server_labels)
{
    static const struct {
        const char *classes, *labels, *want;
    } c[] = {{"ade20k", "ade_pred", "ade_result_png_values"},
             {"cityscapes", "cityscapes_pred_trainid", "cityscapes_label_id"}};
    struct golden *g = golden_open(golden_path("outputs_labels.safetensors"));
    const struct golden_tensor *labels = golden_get(g, c[_i].labels);
    json_t *table =
        golden_json(golden_path("../../conf/classes/%s.json", c[_i].classes));
    json_t *list = json_object_get(table, "classes"), *k;
    struct head h = head_new("upernet", "");
    struct mp_image img = {.name = "x", .width = 40, .height = 30};
    struct mp_tensor t = {"labels", MP_I32, 3, {1, 30, 40}, NULL};
    int32_t label_id[150], id[30 * 40];
    struct mp_sink sink = {
        .wants = "ids",
        .classes = {.count = json_array_size(list), .label_id = label_id}};
    size_t i;

    json_array_foreach(list, i, k) label_id[i] = (int32_t)member(k, "label_id");
    ck_assert_uint_eq(labels->count, 30 * 40);
    for (i = 0; i < labels->count; i++)
        id[i] = ((const uint8_t *)labels->data)[i];
    t.data = id;
    decode(&h, &img, &t, &sink);
    ck_assert_uint_eq(sink.n, 1);
    ck_assert_str_eq(sink.kept[0].kind, "ids");
    ck_assert(sink.kept[0].png.channels == 1 && sink.kept[0].png.bits == 8);
    same_bytes(g, c[_i].want, sink.kept[0].px);
    sink_free(&sink);
    json_decref(table);
    golden_free(g);
    head_free(&h);
}
END_TEST

/* More bits than the classes' places need. */
START_TEST(large_ids)
{
    static const int32_t label_id[2] = {7, 256}, id[2] = {1, 0};
    struct head h = head_new("upernet", "");
    struct mp_image img = {.name = "x", .width = 2, .height = 1};
    struct mp_sink sink = {.wants = "labels ids",
                           .classes = {.count = 2, .label_id = label_id}};
    struct mp_tensor t = {"labels", MP_I32, 3, {1, 1, 2}, id};

    decode(&h, &img, &t, &sink);
    ck_assert_int_eq(sink.kept[0].png.bits, 8);
    ck_assert_int_eq(sink.kept[1].png.bits, 16);
    ck_assert_uint_eq(((uint16_t *)sink.kept[1].px)[0], 256);
    ck_assert_uint_eq(((uint16_t *)sink.kept[1].px)[1], 7);
    sink_free(&sink);
    head_free(&h);
}
END_TEST

START_TEST(many_classes)
{
    struct head h = head_new("upernet", "");
    struct mp_image img = {.name = "x", .width = 2, .height = 1};
    struct mp_sink sink = {.wants = "labels", .classes = {.count = 300}};
    const int32_t id[2] = {299, 3};
    struct mp_tensor t = {"labels", MP_I32, 3, {1, 1, 2}, id};

    decode(&h, &img, &t, &sink);
    ck_assert_int_eq(sink.kept[0].png.bits, 16);
    ck_assert_uint_eq(((uint16_t *)sink.kept[0].px)[0], 299);
    ck_assert_uint_eq(((uint16_t *)sink.kept[0].px)[1], 3);
    sink_free(&sink);
    head_free(&h);
}
END_TEST

START_TEST(probabilities)
{
    struct head h = head_new("upernet", "");
    struct mp_image img = {.name = "x", .width = 2, .height = 1};
    struct mp_sink sink = {.wants = "probs", .classes = {.count = 3}};
    const float p[6] = {1, 2, 3, 4, 5, 6}; /* pixel by pixel */
    static const float want[6] = {1, 4, 2, 5, 3, 6};
    struct mp_tensor t = {"probs", MP_F32, 4, {1, 1, 2, 3}, p};

    decode(&h, &img, &t, &sink);
    ck_assert_int_eq(sink.kept[0].npy.ndim, 3);
    ck_assert_int_eq(sink.kept[0].npy.dim[0], 3);
    ck_assert(!memcmp(sink.kept[0].px, want, sizeof want));
    sink_free(&sink);
    head_free(&h);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("heads");
    TCase *t = tcase_create("heads");
    SRunner *r = srunner_create(s);
    int failed;

    tcase_set_timeout(t, 60);
    tcase_add_loop_test(t, defaults, 0, 3);
    tcase_add_loop_test(t, refusals, 0, (int)(sizeof wrong / sizeof *wrong));
    tcase_add_test(t, windows);
    tcase_add_test(t, scale);
    tcase_add_loop_test(t, any_shape, 0, 4);
    tcase_add_test(t, seg_input);
    tcase_add_test(t, merge_windows);
    tcase_add_loop_test(t, merge_refuses_classes, 0, 2);
    tcase_add_loop_test(t, overlays, 0, 3);
    tcase_add_loop_test(t, server_labels, 0, 2);
    tcase_add_test(t, large_ids);
    tcase_add_test(t, many_classes);
    tcase_add_test(t, probabilities);
    suite_add_tcase(s, t);
    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
