/* SPDX-License-Identifier: MIT */
#include "image.h"
#include "golden.h"
#include "heads.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A JSON file of cases and the tensors beside it, small or complete. */
struct set {
    json_t *json, *cases;
    struct golden *tensors;
};

static int set_open(struct set *s, const char *name, int complete)
{
    char path[2][64];

    snprintf(path[0], sizeof(path[0]), "protocol/golden/%s.json", name);
    snprintf(path[1], sizeof(path[1]), "protocol/golden/%s.safetensors", name);
    if (complete && !shared_path(".")) {
        printf("SKIPPED: all of %s wants MPIPE_SHARED\n", name);
        return 0;
    }
    for (int i = 0; i < 2; i++) {
        const char *at = complete ? shared_path("%s", path[i])
                                  : golden_path("%s", strrchr(path[i], '/'));

        if (i == 0)
            s->json = golden_json(at);
        else
            s->tensors = golden_open(at);
    }
    ck_assert(s->json && s->tensors);
    s->cases = json_object_get(s->json, "cases");
    ck_assert(json_array_size(s->cases) > 0);
    return 1;
}

static void set_close(struct set *s)
{
    golden_free(s->tensors);
    json_decref(s->json);
}

static const struct golden_tensor *get(const struct set *s, const char *id,
                                       const char *what)
{
    const struct golden_tensor *t;
    char name[64];

    snprintf(name, sizeof(name), "%s.%s", id, what);
    t = golden_get(s->tensors, name);
    ck_assert_msg(t != NULL, "no tensor %s", name);
    return t;
}

static int32_t pair(json_t *c, const char *key, size_t i)
{
    return (int32_t)json_integer_value(
        json_array_get(json_object_get(c, key), i));
}

static void one_u8(const struct set *s, json_t *c)
{
    const char *id = json_string_value(json_object_get(c, "id"));
    const char *op = json_string_value(json_object_get(c, "op"));
    int channels = (int)json_integer_value(json_object_get(c, "channels"));
    int32_t sh = pair(c, "src_hw", 0), sw = pair(c, "src_hw", 1);
    int32_t dh = pair(c, "dst_hw", 0), dw = pair(c, "dst_hw", 1);
    const struct golden_tensor *in = get(s, id, "in");
    const struct golden_tensor *want = get(s, id, "out");
    /* of exactly the right size, for the address sanitizer */
    void *got = malloc(want->count * mp_dtype_size(want->dtype));
    struct mp_error err = {0};
    int rc = 0;

    ck_assert(want->count == (size_t)dw * (size_t)dh * (size_t)channels);
    if (strcmp(op, "u8_bilinear") == 0) {
        rc = mp_resize_u8(got, dw, dh, in->data, sw, sh, channels, &err);
    } else if (strcmp(op, "u8_nearest") == 0) {
        mp_resize_nearest_u8(got, dw, dh, in->data, sw, sh);
    } else {
        float most = 0;

        ck_assert_str_eq(op, "f32_bilinear_opencv");
        rc = mp_resize_f32(got, dw, dh, in->data, sw, sh, channels, &err);
        for (size_t i = 0; i < in->count; i++)
            if (((const float *)in->data)[i] > most)
                most = ((const float *)in->data)[i];
        ck_assert(max_abs(got, want->data, MP_F32, want->count) <=
                  2e-6 * (double)most);
    }
    ck_assert_msg(rc == 0, "%s: %s", id, err.text);
    if (want->dtype == MP_U8)
        ck_assert_msg(memcmp(got, want->data, want->count) == 0,
                      "%s: other bytes", id);
    free(got);
}

/* The network's resizes, and that of pictures, of n maps as channels. */
static void resize(float *dst, int32_t dw, int32_t dh, const float *src,
                   int32_t sw, int32_t sh, int n, int how)
{
    static const struct mp_backend *const backend[] = {&mp_backend_ref,
                                                       &mp_backend_cpu};
    struct mp_graph *g;
    struct mp_error err = {0};
    struct result r;
    mp_node x;

    if (how == 0) {
        ck_assert_int_eq(mp_resize_f32(dst, dw, dh, src, sw, sh, n, NULL), 0);
        return;
    }
    g = mp_graph_new(NULL);
    x = mp_input(g, "x", MP_F32, 4, (int64_t[]){1, sh, sw, n});
    x = how < 3 ? mp_resize_bilinear(g, x, dh, dw)
                : mp_resize_nearest(g, x, dh, dw);
    mp_output(g, "y", x);
    ck_assert_msg(
        !run_on(&r, backend[how % 2], g, (const void *const[]){src}, &err),
        "%s", err.text);
    memcpy(dst, r.data[0], (size_t)dw * (size_t)dh * (size_t)n * sizeof *dst);
    result_free(&r);
    mp_graph_free(g);
}

/* how: 0: of pictures, 1, 2: of networks, 3, 4: their nearest. */
static void compare_f32(const struct set *s, json_t *c, int how)
{
    const char *id = json_string_value(json_object_get(c, "id"));
    const struct golden_tensor *in = get(s, id, "in");
    const struct golden_tensor *want = get(s, id, how < 3 ? "ac0" : "nearest");
    int32_t sh = pair(c, "in_nchw", 2), sw = pair(c, "in_nchw", 3);
    int32_t dh = pair(c, "out_hw", 0), dw = pair(c, "out_hw", 1);
    size_t maps = in->count / ((size_t)sh * (size_t)sw);
    size_t ns = (size_t)sh * (size_t)sw, nd = (size_t)dh * (size_t)dw;
    float *src = malloc(in->count * sizeof(*src));
    float *dst = malloc(want->count * sizeof(*dst));
    float *got = malloc(want->count * sizeof(*got));

    /* batch and channels of the file become our channels, which are last */
    for (size_t m = 0; m < maps; m++)
        for (size_t i = 0; i < ns; i++)
            src[i * maps + m] = ((const float *)in->data)[m * ns + i];
    resize(dst, dw, dh, src, sw, sh, (int)maps, how);
    for (size_t m = 0; m < maps; m++)
        for (size_t i = 0; i < nd; i++)
            got[m * nd + i] = dst[i * maps + m];
    /* float32 arithmetic on coordinates, values of about 1 */
    ck_assert_msg(near_enough(got, want->data, MP_F32, want->count,
                              how < 3 ? 3e-5 : 0, 0),
                  "%s, %d", id, how);
    free(got);
    free(dst);
    free(src);
}

/* The gradient of sum(w * y), y the resized map, is the transpose of the resize
 * applied to w: what each pixel gives to y, as resizing a 1 in its place and 0
 * elsewhere says, times w. Bilinear, of pictures (how 0) and networks. */
static void compare_gradient(const struct set *s, json_t *c, int how)
{
    const char *id = json_string_value(json_object_get(c, "id"));
    const struct golden_tensor *w = get(s, id, "w");
    const struct golden_tensor *want = get(s, id, "grad_ac0");
    int32_t sh = pair(c, "in_nchw", 2), sw = pair(c, "in_nchw", 3);
    int32_t dh = pair(c, "out_hw", 0), dw = pair(c, "out_hw", 1);
    size_t ns = (size_t)sh * (size_t)sw, nd = (size_t)dh * (size_t)dw;
    float *ones = calloc(ns * ns, sizeof(*ones));
    float *given = malloc(nd * ns * sizeof(*given));
    double *sum = calloc(want->count, sizeof(*sum));
    float *got = malloc(want->count * sizeof(*got));

    for (size_t i = 0; i < ns; i++)
        ones[i * ns + i] = 1;
    resize(given, dw, dh, ones, sw, sh, (int)ns, how);
    for (size_t k = 0; k < w->count; k++)
        for (size_t i = 0; i < ns; i++)
            sum[k / nd * ns + i] += (double)given[k % nd * ns + i] *
                                    golden_value(w->data, w->dtype, k);
    for (size_t i = 0; i < want->count; i++)
        got[i] = (float)sum[i];
    /* float32 arithmetic on coordinates, as above */
    ck_assert_msg(
        near_enough(got, want->data, want->dtype, want->count, 3e-5, 0),
        "gradient of %s, %d", id, how);
    free(sum);
    free(got);
    free(given);
    free(ones);
}

/* The file has a resize with corners aligned, too, which is in no published
 * network or protocol, and not in mpipe. */
static void one_f32(const struct set *s, json_t *c)
{
    for (int how = 0; how < 5; how++)
        compare_f32(s, c, how);
    for (int how = 0; how < 3; how++)
        compare_gradient(s, c, how);
}

static void all(const char *name, int complete, size_t count,
                void (*one)(const struct set *, json_t *))
{
    struct set s;
    json_t *c;
    size_t i;

    if (!set_open(&s, name, complete))
        return;
    json_array_foreach(s.cases, i, c) one(&s, c);
    ck_assert_uint_eq(i, count);
    set_close(&s);
}

START_TEST(u8)
{
    all("resize_u8", _i, _i ? 35 : 22, one_u8);
}
END_TEST

START_TEST(f32)
{
    all("resize_f32", _i, _i ? 15 : 11, one_f32);
}
END_TEST

START_TEST(rescale)
{
    json_t *json, *c;
    size_t i;

    if (_i && !shared_path(".")) {
        puts("SKIPPED: all of imrescale_sizes wants MPIPE_SHARED");
        return;
    }
    json = golden_json(_i ? shared_path("protocol/golden/imrescale_sizes.json")
                          : golden_path("imrescale_sizes.json"));
    json_array_foreach(json_object_get(json, "cases"), i, c)
    {
        int32_t w = (int32_t)json_integer_value(json_object_get(c, "w"));
        int32_t h = (int32_t)json_integer_value(json_object_get(c, "h"));
        int32_t a = pair(c, "scale", 0), b = pair(c, "scale", 1), nw, nh;
        json_int_t ww = json_integer_value(json_object_get(c, "new_w"));
        json_int_t wh = json_integer_value(json_object_get(c, "new_h"));

        for (int turn = 0; turn < 2; turn++) {
            mp_rescale_size(&nw, &nh, w, h, turn ? b : a, turn ? a : b);
            ck_assert_int_eq(nw, ww > 1 ? ww : 1);
            ck_assert_int_eq(nh, wh > 1 ? wh : 1);
        }
    }
    ck_assert_uint_eq(i, _i ? 240 : 80);
    json_decref(json);
}
END_TEST

/* Every source sample of an exact halving counts once, whatever the rule. */
START_TEST(halves)
{
    enum { W = 34, H = 22, C = 4 };
    uint8_t src[W * H * C], got[W * H * C / 4];
    uint32_t state = 7;

    for (size_t i = 0; i < sizeof(src); i++)
        src[i] = (uint8_t)((state = state * 1664525 + 1013904223) >> 24);
    ck_assert_int_eq(mp_resize_u8(got, W / 2, H / 2, src, W, H, C, NULL), 0);
    for (int i = 0; i < W * H * C / 4; i++) {
        int c = i % C, x = i / C % (W / 2), y = i / C / (W / 2);
        const uint8_t *p = src + ((2 * y) * W + 2 * x) * C + c;

        ck_assert_int_eq(got[i],
                         (p[0] + p[C] + p[W * C] + p[W * C + C] + 2) >> 2);
    }
}
END_TEST

START_TEST(refusals)
{
    static const int32_t wrong[][5] = {{0, 1, 1, 1, 1},
                                       {1, 0, 1, 1, 1},
                                       {1, 1, 0, 1, 1},
                                       {1, 1, 1, -1, 1},
                                       {1, 1, 1, 1, 0}};
    const int32_t *w = wrong[_i];
    struct mp_error err = {0};
    uint8_t byte = 3;
    float real = 3;

    ck_assert_int_eq(
        mp_resize_u8(&byte, w[0], w[1], &byte, w[2], w[3], w[4], &err),
        MP_EINVAL);
    ck_assert_str_ne(err.text, "");
    ck_assert_int_eq(
        mp_resize_f32(&real, w[0], w[1], &real, w[2], w[3], w[4], NULL),
        MP_EINVAL);
    ck_assert_int_eq(mp_resize_u8(&byte, 1, 1, &byte, 1, 1, 5, NULL),
                     MP_EINVAL);
    ck_assert(byte == 3 && real == 3);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("resize");
    TCase *t = tcase_create("resize");
    SRunner *r = srunner_create(s);
    int bad;

    /* 0: the cases beside this file; 1: the complete set, if it is there */
    tcase_add_loop_test(t, u8, 0, 2);
    tcase_add_loop_test(t, f32, 0, 2);
    tcase_add_loop_test(t, rescale, 0, 2);
    tcase_add_test(t, halves);
    tcase_add_loop_test(t, refusals, 0, 5);
    tcase_set_timeout(t, 20);
    suite_add_tcase(s, t);
    srunner_run_all(r, CK_ENV);
    bad = srunner_ntests_failed(r);
    srunner_free(r);
    return bad != 0;
}
