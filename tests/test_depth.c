/* SPDX-License-Identifier: MIT */
/*
 * test_depth.c - head depth without a network: preparation, windows, merging,
 * results.
 */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "golden.h"
#include "heads.h"

START_TEST(enlarged)
{
    static const int64_t size[][4] = {{480, 640, 512, 704},
                                      {352, 1216, 384, 1280},
                                      {63, 64, 64, 128},
                                      {1024, 768, 1088, 832}};
    struct head one = head_new("depth", ""),
                two = head_new("depth", "resize_scale=2");
    struct mp_graph *g = mp_graph_new(NULL);

    for (size_t i = 0; i < sizeof size / sizeof *size; i++) {
        mp_node p = mp_input(g, "p", MP_F32, 4,
                             (int64_t[]){1, size[i][0], size[i][1], 3});
        mp_node x = one.p->input(one.conf, g, p);
        mp_node y = two.p->input(two.conf, g, p);

        ck_assert_int_eq(mp_dim(g, x, 1), size[i][2]);
        ck_assert_int_eq(mp_dim(g, x, 2), size[i][3]);
        ck_assert_int_eq(mp_dim(g, y, 1), size[i][2] + 64);
        ck_assert_int_eq(mp_dim(g, y, 2), size[i][3] + 64);
    }
    ck_assert(!mp_graph_check(g, NULL));
    mp_graph_free(g);
    head_free(&one);
    head_free(&two);
}
END_TEST

/* Depth covers the picture, whatever its size. */
START_TEST(merge_one)
{
    struct head h = head_new("depth", _i ? "size=network" : "");
    struct mp_sink sink = {.wants = "npy"};
    struct mp_image img = {.name = "x", .width = 13, .height = 21};
    struct mp_graph *g = mp_graph_new(NULL);
    struct mp_error err = {0};
    float map[16 * 8];
    struct mp_view v[CAP];
    struct result r;
    mp_node out;

    views(&h, 13, 21, v);
    for (int i = 0; i < 16 * 8; i++)
        map[i] = 3;
    out = mp_input(g, "map", MP_F32, 4, (int64_t[]){1, 16, 8, 1});
    h.p->merge(h.conf, g,
               &(struct mp_merge){.img = &img,
                                  .view = v,
                                  .out = &out,
                                  .nview = 1,
                                  .ngroup = 1,
                                  .want = &sink});
    ck_assert_msg(!run(&r, g, (const void *const[]){map}, &err), "%s",
                  err.text);
    ck_assert_int_eq(r.t[0].ndim, 2);
    ck_assert_int_eq(r.t[0].dim[0], _i ? 16 : 21);
    ck_assert_int_eq(r.t[0].dim[1], _i ? 8 : 13);
    for (int i = 0; i < r.t[0].dim[0] * r.t[0].dim[1]; i++)
        ck_assert(((float *)r.data[0])[i] == 3);
    result_free(&r);
    mp_graph_free(g);
    head_free(&h);
}
END_TEST

/* ---- results ---- */

static const struct mp_image dot = {
    .name = "x", .width = 1, .height = 1, .rgb = (const uint8_t *)"abc"};

START_TEST(color)
{
    struct golden *g = golden_open(golden_path("outputs.safetensors"));
    const struct golden_tensor *d = golden_get(g, "depth");
    struct mp_tensor t = {"depth", MP_F32, 2, {20, 30}, d->data};
    struct mp_sink sink = {.wants = "color"};
    float most = 0;
    char set[64];
    struct head h;

    for (size_t i = 0; i < d->count; i++)
        most = fmaxf(most, ((const float *)d->data)[i]);
    snprintf(set, sizeof set, "color_max=%.17g", (double)most);
    h = head_new("depth", set);
    decode(&h, &dot, &t, &sink);
    same_bytes(g, "depth_vis_rgb", sink.kept[0].px);
    ck_assert_int_eq(sink.kept[0].png.channels, 3);
    sink_free(&sink);
    golden_free(g);
    head_free(&h);
}
END_TEST

/* Depths of 0, 2, 5 and 10 m, too small and too large ones, and none. */
static const float metres[] = {0, 2, 5, 10, -1, 70, -INFINITY, INFINITY, NAN};

#define N (sizeof metres / sizeof *metres)

START_TEST(color_maps)
{
    static const struct {
        const char *set, *map, *reverse, *max;
        uint8_t rgb[N][3];
    } c[] = {
        {"",
         "rainbow",
         "no",
         "10",
         {{255, 0, 0},
          {255, 128, 0},
          {130, 255, 0},
          {170, 0, 255},
          {255, 0, 0},
          {170, 0, 255},
          {255, 0, 0},
          {170, 0, 255}}},
        {"color_map=gray color_reverse=yes color_max=5",
         "gray",
         "yes",
         "5",
         {{255, 255, 255},
          {153, 153, 153},
          {0, 0, 0},
          {0, 0, 0},
          {255, 255, 255},
          {0, 0, 0},
          {255, 255, 255},
          {0, 0, 0}}},
        {"color_map=viridis",
         "viridis",
         "no",
         "10",
         {{68, 1, 84},
          {65, 68, 134},
          {33, 144, 141},
          {253, 231, 37},
          {68, 1, 84},
          {253, 231, 37},
          {68, 1, 84},
          {253, 231, 37}}},
        {"color_map=jet",
         "jet",
         "no",
         "10",
         {{0, 0, 128},
          {0, 77, 255},
          {126, 255, 130},
          {128, 0, 0},
          {0, 0, 128},
          {128, 0, 0},
          {0, 0, 128},
          {128, 0, 0}}},
    };
    struct head h = head_new("depth", c[_i].set);
    struct mp_tensor t = {"depth", MP_F32, 2, {1, N}, metres};
    struct mp_sink sink = {.wants = "color"};
    struct kept *k = &sink.kept[0];

    decode(&h, &dot, &t, &sink);
    for (size_t i = 0; i < 3 * N; i++)
        ck_assert_msg(((uint8_t *)k->px)[i] == c[_i].rgb[i / 3][i % 3],
                      "%g m, channel %zu: %d", (double)metres[i / 3], i % 3,
                      ((uint8_t *)k->px)[i]);
    ck_assert_str_eq(k->text[0][0], "color_map");
    ck_assert_str_eq(k->text[0][1], c[_i].map);
    ck_assert_str_eq(k->text[1][0], "color_reverse");
    ck_assert_str_eq(k->text[1][1], c[_i].reverse);
    ck_assert_str_eq(k->text[2][0], "color_min");
    ck_assert_str_eq(k->text[2][1], "0");
    ck_assert_str_eq(k->text[3][0], "color_max");
    ck_assert_str_eq(k->text[3][1], c[_i].max);
    sink_free(&sink);
    head_free(&h);
}
END_TEST

/* Picture, 50 white columns, colours, white, 16 columns of bar, numbers. */
START_TEST(vis)
{
    static const char *const label[] = {
        "###     ### ###        ", "  #     #   # #     ###",
        "###     ### # #     ###", "#         # # #     # #",
        "###  #  ### ###     # #", "###     ### ###        ",
        "# #     # # # #     ###", "# #     # # # #     ###",
        "# #     # # # #     # #", "###  #  ### ###     # #",
    };
    static const int size[][4] = {
        {7, 40, 6, 36}, {1, 1, 8, 8}, {30, 8, 5, 700}};
    int w = size[_i][0], hh = size[_i][1], dw = size[_i][2], dh = size[_i][3];
    int most = hh > dh ? hh : dh, all = most < 16 ? 16 : most;
    struct head h = head_new("depth", "color_max=2.5");
    uint8_t *rgb = malloc((size_t)(3 * w * hh));
    float *depth = malloc((size_t)(dw * dh) * sizeof *depth);
    struct mp_image img = {"x", w, hh, rgb};
    struct mp_tensor t = {"depth", MP_F32, 2, {dh, dw}, depth};
    struct mp_sink sink = {.wants = "vis color"};
    const uint8_t *px, *color;
    int cols, bar = w + 50 + dw + 8;

    for (int i = 0; i < 3 * w * hh; i++)
        rgb[i] = (uint8_t)(i % 251);
    for (int i = 0; i < dw * dh; i++)
        depth[i] = 2.5f * (float)(i % dw) / (float)dw;
    decode(&h, &img, &t, &sink);
    ck_assert_uint_eq(sink.n, 2);
    color = sink.kept[0].px;
    px = sink.kept[1].px;
    cols = sink.kept[1].png.width;
    ck_assert_str_eq(sink.kept[1].kind, "vis");
    ck_assert_str_eq(sink.kept[1].text[3][1], "2.5");
    ck_assert_int_eq(sink.kept[1].png.height, all);
    for (int y = 0; y < all; y++) {
        const uint8_t *row = px + (size_t)(3 * y * cols);

        for (int i = 0; i < 3 * w; i++)
            ck_assert_int_eq(row[i], y < hh ? rgb[3 * y * w + i] : 255);
        for (int i = 0; i < 150; i++)
            ck_assert_int_eq(row[3 * w + i], 255);
        for (int i = 0; i < 3 * dw; i++)
            ck_assert_int_eq(row[3 * w + 150 + i],
                             y < dh ? color[3 * y * dw + i] : 255);
    }
    /* violet on top, red at the bottom */
    ck_assert(!memcmp(px + 3 * bar, "\252\0\377", 3));
    ck_assert(!memcmp(px + 3 * ((all - 1) * cols + bar), "\377\0\0", 3));
    for (int i = 0; i < 10 * 23 && all < 320; i++) { /* dot by dot */
        int y = i / 23 < 5 ? i / 23 : all - 10 + i / 23;

        ck_assert_int_eq(px[3 * (y * cols + bar + 24 + i % 23)],
                         label[i / 23][i % 23] == '#' ? 0 : 255);
    }
    sink_free(&sink);
    free(depth);
    free(rgb);
    head_free(&h);
}
END_TEST

START_TEST(png16_golden)
{
    static const char *const id[] = {"nyu", "kitti"};
    struct golden *g = golden_open(golden_path("png16.safetensors"));
    char name[32];
    const struct golden_tensor *d;
    struct mp_tensor t = {"depth", MP_F32, 2, {0}, NULL};
    struct mp_sink sink = {.wants = "png16"};
    struct head h = head_new("depth", _i ? "max_depth=80" : "");
    const struct golden_tensor *want;

    snprintf(name, sizeof name, "%s.depth_m", id[_i]);
    d = golden_get(g, name);
    snprintf(name, sizeof name, "%s.u16", id[_i]);
    want = golden_get(g, name);
    t.dim[0] = d->dim[0];
    t.dim[1] = d->dim[1];
    t.data = d->data;
    decode(&h, &dot, &t, &sink);
    ck_assert_int_eq(sink.kept[0].png.width, d->dim[1]);
    ck_assert_int_eq(sink.kept[0].png.height, d->dim[0]);
    ck_assert_uint_eq(d->count, want->count);
    ck_assert(!memcmp(sink.kept[0].px, want->data, 2 * want->count));
    sink_free(&sink);
    golden_free(g);
    head_free(&h);
}
END_TEST

START_TEST(png16)
{
    static const float in[] = {9.9999f, 0, -1, NAN, INFINITY, 70, 0.0019f};
    static const struct {
        const char *set, *scale, *comment;
        uint16_t want[7];
    } c[] = {
        {"",
         "1000",
         "depth in metres = value / 1000",
         {9999, 0, 0, 0, 65535, 65535, 1}},
        {"max_depth=80",
         "256",
         "depth in metres = value / 256",
         {2559, 0, 0, 0, 65535, 17920, 0}},
        {"png_scale=100",
         "100",
         "depth in metres = value / 100",
         {999, 0, 0, 0, 65535, 7000, 0}},
    };
    struct head h = head_new("depth", c[_i].set);
    struct mp_tensor t = {"depth", MP_F32, 2, {1, 7}, in};
    struct mp_sink sink = {.wants = "png16 npy"};

    decode(&h, &dot, &t, &sink);
    ck_assert_uint_eq(sink.n, 2);
    ck_assert_int_eq(sink.kept[0].png.bits, 16);
    ck_assert(!memcmp(sink.kept[0].px, c[_i].want, sizeof c[_i].want));
    ck_assert_str_eq(sink.kept[0].text[0][0], "depth_scale");
    ck_assert_str_eq(sink.kept[0].text[0][1], c[_i].scale);
    ck_assert_str_eq(sink.kept[0].text[1][0], "Comment");
    ck_assert_str_eq(sink.kept[0].text[1][1], c[_i].comment);
    ck_assert(!memcmp(sink.kept[1].px, in, sizeof in));
    sink_free(&sink);
    head_free(&h);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("depth");
    TCase *t = tcase_create("depth");
    SRunner *r = srunner_create(s);
    int failed;

    tcase_set_timeout(t, 60);
    tcase_add_test(t, enlarged);
    tcase_add_loop_test(t, merge_one, 0, 2);
    tcase_add_test(t, color);
    tcase_add_loop_test(t, color_maps, 0, 4);
    tcase_add_loop_test(t, vis, 0, 3);
    tcase_add_loop_test(t, png16_golden, 0, 2);
    tcase_add_loop_test(t, png16, 0, 3);
    suite_add_tcase(s, t);
    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
