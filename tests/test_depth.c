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

static int64_t at(json_t *list, size_t i)
{
    return json_integer_value(json_array_get(list, i));
}

static int64_t member(json_t *c, const char *key)
{
    return json_integer_value(json_object_get(c, key));
}

static json_t *protocol(json_t **root, const char *part)
{
    *root = golden_json(golden_path("depth_protocol.json"));
    ck_assert_ptr_nonnull(*root);
    return json_object_get(*root, part);
}

/* ---- preparation ---- */

START_TEST(enlarged)
{
    struct mp_graph *g = mp_graph_new(NULL);
    json_t *root, *list = protocol(&root, "internal_resize_table"), *c;
    size_t i;

    json_array_foreach(list, i, c)
    {
        json_t *hw = json_object_get(c, "hw");
        json_t *want = json_object_get(c, "internal_hw");
        char set[32];
        struct head h;
        mp_node x;

        snprintf(set, sizeof set, "resize_scale=%d",
                 (int)member(c, "resize_scale"));
        h = head_new("depth", set);
        x = mp_input(g, "p", MP_F32, 4,
                     (int64_t[]){1, at(hw, 0), at(hw, 1), 3});
        x = h.p->input(h.conf, g, x);
        ck_assert_int_eq(mp_dim(g, x, 1), at(want, 0));
        ck_assert_int_eq(mp_dim(g, x, 2), at(want, 1));
        head_free(&h);
    }
    ck_assert_uint_eq(i, 28);
    ck_assert(!mp_graph_check(g, NULL));
    json_decref(root);
    mp_graph_free(g);
}
END_TEST

/* ---- windows ---- */

/* Columns of a picture that so many windows hold. */
static void count_windows(int *count, int w, const struct mp_view *v, long n)
{
    memset(count, 0, (size_t)w * sizeof *count);
    for (long i = 0; i < n; i++)
        for (int x = v[i].x; x < v[i].x + v[i].w; x++)
            count[x]++;
}

/* The published starts and counts. */
static void check_faithful(json_t *c, const struct mp_view *v, long n)
{
    json_t *hw = json_object_get(c, "hw"), *run;
    json_t *starts = json_object_get(c, "starts");
    int count[2000], w = (int)at(hw, 1), bare = 0;
    size_t i;

    ck_assert_int_eq(n, (long)json_array_size(starts));
    for (long k = 0; k < n; k++) {
        ck_assert_int_eq(v[k].x, at(starts, (size_t)k));
        ck_assert(v[k].y == 0 && v[k].w == v[k].h && v[k].h == at(hw, 0));
    }
    count_windows(count, w, v, n);
    json_array_foreach(json_object_get(c, "coverage_runs_start_len_count"), i,
                       run)
    {
        for (int64_t x = at(run, 0); x < at(run, 0) + at(run, 1); x++)
            ck_assert_int_eq(count[x], at(run, 2));
    }
    for (int x = 0; x < w; x++)
        bare += !count[x];
    ck_assert_int_eq(bare, member(c, "uncovered"));
}

/* The same, and more up to the right border. */
static void check_covering(json_t *c, const struct mp_view *v, long n)
{
    json_t *starts = json_object_get(c, "starts");
    int w = (int)at(json_object_get(c, "hw"), 1), count[2000];
    int64_t interval = member(c, "interval");

    for (long k = 0; k < n; k++)
        ck_assert(v[k].x >= 0 && v[k].x + v[k].w <= w);
    ck_assert_int_eq(v[n - 1].x + v[n - 1].w, w);
    count_windows(count, w, v, n);
    for (int x = 0; x < w; x++)
        ck_assert_int_gt(count[x], 0);
    if (interval < 1 || interval > v->h)
        return; /* would leave gaps */
    ck_assert_int_eq(n, (long)json_array_size(starts) +
                            (member(c, "uncovered") > 0));
    for (size_t k = 0; k < json_array_size(starts); k++)
        ck_assert_int_eq(v[k].x, at(starts, k));
}

START_TEST(windows)
{
    json_t *root, *list = protocol(&root, "shift_window_table"), *c;
    size_t i;

    json_array_foreach(list, i, c)
    {
        json_t *hw = json_object_get(c, "hw");
        struct mp_view v[CAP];

        for (int faithful = 0; faithful < 2; faithful++) {
            char set[64];
            struct head h;
            long n;

            snprintf(set, sizeof set, "windows=%d faithful=%s",
                     (int)member(c, "shift_size"), faithful ? "yes" : "no");
            h = head_new("depth", set);
            n = views(&h, (int)at(hw, 1), (int)at(hw, 0), v);
            (faithful ? check_faithful : check_covering)(c, v, n);
            head_free(&h);
        }
    }
    ck_assert_uint_eq(i, 9);
    json_decref(root);
}
END_TEST

/* Steps of more than a window, or so small that one more is not enough. */
START_TEST(no_gaps)
{
    static const struct {
        const char *set;
        int w, h, n;
    } c[] = {{"windows=2", 1216, 352, 4},
             {"windows=2", 5000, 100, 50},
             {"windows=20", 58, 8, 26},
             {"windows=64", 9, 8, 2},
             {"windows=2", 9, 8, 2}};
    struct head h = head_new("depth", c[_i].set);
    int count[5000];
    struct mp_view v[CAP];

    ck_assert_int_eq(views(&h, c[_i].w, c[_i].h, v), c[_i].n);
    ck_assert_int_eq(v[c[_i].n - 1].x, c[_i].w - c[_i].h);
    count_windows(count, c[_i].w, v, c[_i].n);
    for (int x = 0; x < c[_i].w; x++)
        ck_assert_int_gt(count[x], 0);
    head_free(&h);
}
END_TEST

/* Each window is followed by its mirror image; pictures that are not wider
 * than high are one window. */
START_TEST(mirrored)
{
    static const int size[][3] = {
        {640, 480, 2}, {480, 480, 1}, {480, 640, 1}, {3, 2, 1}};
    struct head h = head_new("depth", "windows=2 flip=yes");
    struct mp_view v[CAP];

    for (size_t i = 0; i < sizeof size / sizeof *size; i++) {
        long n = views(&h, size[i][0], size[i][1], v);

        ck_assert_int_eq(n, 2 * size[i][2]);
        for (long k = 0; k < n; k++) {
            ck_assert_int_eq(v[k].mirror, k % 2);
            ck_assert_int_eq(v[k].group, 0);
            ck_assert_int_eq(v[k].x, v[k - k % 2].x);
            ck_assert_int_eq(v[k].w, n == 4 ? 480 : v[k].scaled_w);
        }
    }
    head_free(&h);
}
END_TEST

/* Bottom centre; the middle of an odd rest is rounded down. */
START_TEST(kb_crop)
{
    static const int size[][4] = {{1242, 375, 13, 23},
                                  {1241, 376, 12, 24},
                                  {1216, 352, 0, 0},
                                  {1217, 2000, 0, 1648}};
    struct head h = head_new("depth", "crop=kb"),
                all = head_new("depth", "crop=kb windows=16 faithful=yes");
    struct mp_image small = {.name = "x", .width = 1216, .height = 351};
    struct mp_error err = {0};
    struct mp_view v[CAP];

    for (size_t i = 0; i < sizeof size / sizeof *size; i++) {
        ck_assert_int_eq(views(&h, size[i][0], size[i][1], v), 1);
        ck_assert_int_eq(v->scaled_w, size[i][0]);
        ck_assert_int_eq(v->scaled_h, size[i][1]);
        ck_assert_int_eq(v->x, size[i][2]);
        ck_assert_int_eq(v->y, size[i][3]);
        ck_assert(v->w == 1216 && v->h == 352);
        ck_assert_int_eq(views(&all, size[i][0], size[i][1], v), 16);
        ck_assert_int_eq(v[15].x, size[i][2] + 855);
        ck_assert(v[15].y == size[i][3] && v[15].w == 352 && v[15].h == 352);
    }
    ck_assert_int_eq(h.p->views(h.conf, &small, v, CAP, &err), MP_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "1216 x 352"));
    ck_assert_ptr_nonnull(strstr(err.text, "1216 x 351"));
    head_free(&all);
    head_free(&h);
}
END_TEST

/* ---- merging ---- */

/* Depth from a map for each view, given by its size and numbers. */
static void merge(struct result *r, const struct mp_backend *backend,
                  const struct head *h, int width, int height,
                  const struct mp_view *v, long n, const void *const *map)
{
    struct mp_sink sink = {.wants = "npy"};
    struct mp_image img = {.name = "x", .width = width, .height = height};
    struct mp_graph *g = mp_graph_new(NULL);
    struct mp_error err = {0};
    mp_node out[CAP];

    for (long i = 0; i < n; i++)
        out[i] = mp_input(g, "map", MP_F32, 4,
                          (int64_t[]){1, v[i].h / 8 * 8, v[i].w / 8 * 8, 1});
    h->p->merge(h->conf, g,
                &(struct mp_merge){.img = &img,
                                   .view = v,
                                   .out = out,
                                   .nview = (size_t)n,
                                   .ngroup = 1,
                                   .want = &sink});
    ck_assert_msg(!run_on(r, backend, g, map, &err), "%s", err.text);
    ck_assert_uint_eq(r->n, 1);
    ck_assert_str_eq(r->t[0].name, "depth");
    ck_assert_int_eq(r->t[0].ndim, 2);
    mp_graph_free(g);
}

static float *filled(const struct mp_view *v, float value)
{
    size_t n = (size_t)(v->h / 8 * 8) * (size_t)(v->w / 8 * 8);
    float *map = malloc(n * sizeof *map);

    for (size_t i = 0; i < n; i++)
        map[i] = value;
    return map;
}

/* Maps of 3 and, mirrored, 5 m are 4 m, at the size that is asked for and
 * wherever a window looked; `left`, `top`, `w`, `h`: that place. */
static const struct {
    const char *set;
    int width, height, rows, cols, left, top, w, h;
} flat[] = {
    {"", 13, 21, 21, 13, 0, 0, 13, 21},
    {"size=network", 13, 21, 16, 8, 0, 0, 8, 16},
    {"size=network", 3, 900, 896, 8, 0, 0, 8, 896},
    {"", 3, 90, 90, 3, 0, 0, 3, 90},
    {"windows=3", 43, 21, 21, 43, 0, 0, 43, 21},
    {"windows=3 size=network", 43, 21, 16, 40, 0, 0, 40, 16},
    {"windows=5 faithful=yes", 77, 24, 24, 77, 0, 0, 76, 24},
    {"windows=5 faithful=no", 77, 24, 24, 77, 0, 0, 77, 24},
    {"windows=2", 20, 5, 5, 20, 0, 0, 20, 5},
    {"crop=kb", 1242, 375, 375, 1242, 13, 23, 1216, 352},
    {"crop=kb size=network", 1242, 375, 352, 1216, 0, 0, 1216, 352},
    {"crop=kb windows=16", 1242, 375, 375, 1242, 13, 23, 1216, 352},
    {"crop=kb windows=16 faithful=yes", 1242, 375, 375, 1242, 13, 23, 1207,
     352},
    {"crop=kb windows=16 faithful=yes size=network", 1242, 375, 352, 1216, 0, 0,
     1207, 352},
};

START_TEST(merge_flat)
{
    int flip = _i % 2, width = flat[_i / 2].width, height = flat[_i / 2].height;
    char set[96];
    struct head h;
    struct mp_view v[CAP];
    void *map[CAP];
    struct result r;
    long n;

    snprintf(set, sizeof set, "%s flip=%s", flat[_i / 2].set,
             flip ? "yes" : "no");
    h = head_new("depth", set);
    n = views(&h, width, height, v);
    for (long i = 0; i < n; i++)
        map[i] = filled(&v[i], !flip ? 4 : v[i].mirror ? 5 : 3);
    merge(&r, &mp_backend_cpu, &h, width, height, v, n,
          (const void *const *)map);
    ck_assert_int_eq(r.t[0].dim[0], flat[_i / 2].rows);
    ck_assert_int_eq(r.t[0].dim[1], flat[_i / 2].cols);
    for (int y = 0; y < flat[_i / 2].rows; y++)
        for (int x = 0; x < flat[_i / 2].cols; x++) {
            float d = ((float *)r.data[0])[y * flat[_i / 2].cols + x];
            int dx = x - flat[_i / 2].left, dy = y - flat[_i / 2].top;

            if (dx < 0 || dy < 0 || dx >= flat[_i / 2].w ||
                dy >= flat[_i / 2].h)
                ck_assert_float_nan(d);
            else
                ck_assert_float_eq_tol(d, 4, 1e-6f);
        }
    for (long i = 0; i < n; i++)
        free(map[i]);
    result_free(&r);
    head_free(&h);
}
END_TEST

/* The network that the published protocol was run around: means of blocks
 * of the enlarged picture, a ramp, and sizes as the head's network has them. */
static mp_node stub(struct mp_graph *g, mp_node x, const struct mp_view *v,
                    double max_depth)
{
    static const float rgb[3] = {0.5f, 0.3f, -0.4f};
    int64_t n = mp_dim(g, x, 2) / 8;
    float ramp[64];

    ck_assert_int_le(n, 64);
    for (int64_t i = 0; i < n; i++)
        ramp[i] = 0.7f * ((float)i + 0.5f) / (float)n;
    x = mp_pool_avg(g, x, mp_dim(g, x, 1) / 8, n);
    x = mp_linear(g, x, mp_const(g, 2, (int64_t[]){1, 3}, rgb), (mp_node){0});
    x = mp_add(g, x, mp_const(g, 4, (int64_t[]){1, 1, n, 1}, ramp));
    x = mp_resize_bilinear(g, x, v->h / 8, v->w / 8);
    x = mp_resize_bilinear(g, x, v->h / 8 * 8, v->w / 8 * 8);
    x = mp_act(g, x, MP_SIGMOID);
    return mp_mul(g, x, mp_scalar(g, (float)max_depth));
}

/* What the stub says of one view of a picture. */
static float *look(const struct mp_backend *backend, const struct head *h,
                   const struct mp_view *v, const struct golden_tensor *rgb,
                   double max_depth)
{
    struct mp_graph *g = mp_graph_new(NULL);
    size_t row = 3 * (size_t)v->w, bytes;
    float *px = malloc(row * (size_t)v->h * sizeof *px), *map;
    const uint8_t *from = rgb->data;
    struct mp_error err = {0};
    struct result r;
    mp_node x = mp_input(g, "pixels", MP_F32, 4, (int64_t[]){1, v->h, v->w, 3});

    for (int32_t y = 0; y < v->h; y++)
        for (int32_t k = 0; k < v->w; k++)
            for (int32_t c = 0; c < 3; c++) {
                int32_t col = v->x + (v->mirror ? v->w - 1 - k : k);

                px[row * (size_t)y + (size_t)(3 * k + c)] =
                    from[((v->y + y) * v->scaled_w + col) * 3 + c];
            }
    mp_output(g, "map", stub(g, h->p->input(h->conf, g, x), v, max_depth));
    ck_assert_msg(!run_on(&r, backend, g, (const void *const[]){px}, &err),
                  "%s", err.text);
    bytes = (size_t)mp_shape_count(r.t[0].ndim, r.t[0].dim) * sizeof *map;
    map = malloc(bytes);
    memcpy(map, r.data[0], bytes);
    result_free(&r);
    mp_graph_free(g);
    free(px);
    return map;
}

/* With one more window, too, where there is a gap: it fills that, and changes
 * nothing else. */
static void published(json_t *c, const struct golden *gold,
                      const struct mp_backend *backend, int faithful)
{
    const char *id = json_string_value(json_object_get(c, "id"));
    double max_depth = json_number_value(json_object_get(c, "max_depth"));
    int shift = (int)member(c, "shift_size");
    const struct golden_tensor *rgb, *want;
    double most = 0;
    struct mp_view v[CAP];
    void *map[CAP];
    struct result r;
    char text[128];
    struct head h;
    long n;

    snprintf(text, sizeof text, "%s.rgb", id);
    rgb = golden_get(gold, text);
    snprintf(text, sizeof text, "%s.out", id);
    want = golden_get(gold, text);
    snprintf(text, sizeof text,
             "windows=%d flip=%s resize_scale=%d max_depth=%g faithful=%s",
             shift ? shift : 1,
             json_is_true(json_object_get(c, "flip")) ? "yes" : "no",
             (int)member(c, "resize_scale"), max_depth,
             faithful ? "yes" : "no");
    h = head_new("depth", text);
    n = views(&h, (int)rgb->dim[1], (int)rgb->dim[0], v);
    for (long i = 0; i < n; i++)
        map[i] = look(backend, &h, &v[i], rgb, max_depth);
    merge(&r, backend, &h, (int)rgb->dim[1], (int)rgb->dim[0], v, n,
          (const void *const *)map);
    ck_assert_int_eq(r.t[0].dim[0], want->dim[0]);
    ck_assert_int_eq(r.t[0].dim[1], want->dim[1]);
    for (size_t i = 0; i < want->count; i++) {
        float d = ((float *)r.data[0])[i], w = ((const float *)want->data)[i];

        if (w == -1) /* no window looked there */
            ck_assert(isnan(d) == faithful);
        else
            most = fmax(most, isnan(d) ? INFINITY : fabs((double)d - w));
    }
    printf("depth_protocol %s%s on %s: %ld views, largest difference %.1e of "
           "%.1e m\n",
           id, faithful ? "" : ", no gaps", backend->name, n, most,
           2e-5 * max_depth);
    ck_assert_double_le(most, 2e-5 * max_depth);
    for (long i = 0; i < n; i++)
        free(map[i]);
    result_free(&r);
    head_free(&h);
}

START_TEST(merge_published)
{
    struct golden *gold =
        golden_open(golden_path("depth_protocol.safetensors"));
    json_t *root, *list = protocol(&root, "cases"), *c;
    size_t i;

    ck_assert_ptr_nonnull(gold);
    json_array_foreach(list, i, c)
        published(c, gold, _i / 2 ? &mp_backend_cpu : &mp_backend_ref, _i % 2);
    ck_assert_uint_eq(i, 6);
    json_decref(root);
    golden_free(gold);
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
    struct mp_image img = {.name = "x", .width = w, .height = hh, .rgb = rgb};
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
    tcase_add_test(t, windows);
    tcase_add_loop_test(t, no_gaps, 0, 5);
    tcase_add_test(t, mirrored);
    tcase_add_test(t, kb_crop);
    tcase_add_loop_test(t, merge_flat, 0,
                        2 * (int)(sizeof flat / sizeof *flat));
    tcase_add_loop_test(t, merge_published, 0, 4);
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
