/* SPDX-License-Identifier: MIT */
/*
 * test_kernels.c - what test_ops.c does not reach of the CPU's own kernels:
 * mixed element types, strides, sizes around the vector lengths, and that the
 * number of threads does not change a bit. Buffers end where their data end,
 * for the address sanitizer.
 */
#include <check.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include "cpu/dnnl_compat.h"

#define N(a) (int)(sizeof(a) / sizeof *(a))

/* Sum of squared errors over that of values. f32: a few roundings of 6e-8.
 * bf16: results have 8 bits, an error of 2^-8 at most; so have the weights of
 * attention on bf16, but there errors average out. */
static double bound(enum mp_dtype t)
{
    return t == MP_F32 ? 1e-12 : 0x1p-16;
}

static uint64_t state = 1;

static float uniform(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (float)(state >> 40) * 0x1p-23f - 1;
}

static float from_bf16(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float x;

    memcpy(&x, &u, sizeof x);
    return x;
}

/* Cut off, not rounded. */
static uint16_t to_bf16(float x)
{
    uint32_t u;

    memcpy(&u, &x, sizeof u);
    return (uint16_t)(u >> 16);
}

/* n numbers of type t, and what they are. */
struct data {
    void *p;
    double *x;
    enum mp_dtype t;
    int64_t n;
};

static void *room(enum mp_dtype t, int64_t n)
{
    void *p = malloc((size_t)n * mp_dtype_size(t));

    ck_assert_ptr_nonnull(p);
    return p;
}

static void read_back(struct data *d)
{
    for (int64_t i = 0; i < d->n; i++)
        d->x[i] = d->t == MP_F32 ? ((float *)d->p)[i]
                                 : from_bf16(((uint16_t *)d->p)[i]);
}

static struct data data(enum mp_dtype t, int64_t n, float scale, float offset)
{
    struct data d = {room(t, n), room(MP_F64, n), t, n};

    for (int64_t i = 0; i < n; i++) {
        float x = scale * uniform() + offset;

        if (t == MP_F32)
            ((float *)d.p)[i] = x;
        else
            ((uint16_t *)d.p)[i] = to_bf16(x);
    }
    read_back(&d);
    return d;
}

static struct k_in in(struct data d)
{
    return (struct k_in){d.p, d.t};
}

static struct k_out out(struct data d)
{
    return (struct k_out){d.p, d.t};
}

static void drop(struct data d)
{
    free(d.p);
    free(d.x);
}

static void near(struct data *got, const double *want, enum mp_dtype inside,
                 const char *what)
{
    double error = 0, norm = 0;

    read_back(got);
    for (int64_t i = 0; i < got->n; i++) {
        error += (got->x[i] - want[i]) * (got->x[i] - want[i]);
        norm += want[i] * want[i];
    }
    ck_assert_msg(error <= fmax(bound(got->t), bound(inside)) * norm,
                  "%s: error %g of %g", what, error, norm);
}

static double activate(double x, int act)
{
    switch (act) {
    case MP_RELU:
        return x > 0 ? x : 0;
    case MP_SILU:
        return x / (1 + exp(-x));
    case MP_GELU:
        return x * erfc(-x / sqrt(2)) / 2;
    case MP_SIGMOID:
        return 1 / (1 + exp(-x));
    default:
        return x;
    }
}

static const enum mp_dtype types[][3] = {{MP_F32, MP_F32, MP_F32},
                                         {MP_BF16, MP_BF16, MP_BF16},
                                         {MP_BF16, MP_BF16, MP_F32},
                                         {MP_BF16, MP_F32, MP_BF16},
                                         {MP_F32, MP_BF16, MP_F32}};

static int64_t count(int n, const int64_t *dim)
{
    return n ? dim[0] * count(n - 1, dim + 1) : 1;
}

/* ---- attention ---- */

static const struct {
    int64_t n, t, s, heads, d;
    int shared, gap; /* keys for all pictures; elements between rows */
    float scale;
} cases[] = {
    {1, 64, 64, 2, 40, 0, 0, 0.3f},   {1, 65, 50, 8, 40, 0, 0, 0.3f},
    {2, 100, 150, 2, 80, 1, 0, 1},    {1, 1, 1, 1, 1, 0, 0, 1},
    {3, 5, 3, 2, 4, 0, 8, 1},         {2, 17, 129, 3, 8, 1, 24, -1},
    {2, 33, 65, 1, 7, 0, 2, 2},       {1, 70, 200, 1, 160, 0, 160, 0.1f},
    {1, 20, 67, 1, 512, 0, 0, 0.05f}, {1, 128, 640, 1, 16, 0, 0, 3},
    {1, 15, 16, 4, 33, 0, 0, 0.2f},
};

static void attention_row(double *y, const double *q, const double *k,
                          const double *v, int64_t row, int64_t s, int64_t d,
                          double scale)
{
    double *p = room(MP_F64, s), most = -INFINITY, sum = 0;

    for (int64_t i = 0; i < s; i++) {
        p[i] = 0;
        for (int64_t e = 0; e < d; e++)
            p[i] += q[e] * k[i * row + e] * scale;
        most = p[i] > most ? p[i] : most;
    }
    for (int64_t i = 0; i < s; i++)
        sum += p[i] = exp(p[i] - most);
    for (int64_t e = 0; e < d; e++) {
        y[e] = 0;
        for (int64_t i = 0; i < s; i++)
            y[e] += p[i] / sum * v[i * row + e];
    }
    free(p);
}

static void attention_want(const struct k_attention *a, double *want,
                           const double *q, const double *k, const double *v)
{
    for (int64_t i = 0; i < a->n * a->t * a->heads; i++) {
        int64_t h = i % a->heads * a->d, r = i / a->heads % a->t;
        int64_t n = i / a->heads / a->t;

        attention_row(want + i * a->d, q + n * a->q.batch + r * a->q.row + h,
                      k + n * a->k.batch + h, v + n * a->v.batch + h, a->k.row,
                      a->s, a->d, a->scale);
    }
}

static void run_attention(const struct k_attention *a, void *y, const void *q,
                          const void *k, const void *v, int threads)
{
    size_t size = k_attention_scratch(a, threads);
    void *scratch = aligned_alloc(64, (size + 63) / 64 * 64);

    ck_assert_ptr_nonnull(scratch);
    omp_set_num_threads(threads);
    k_attention(a, y, q, k, v, scratch);
    free(scratch);
}

START_TEST(test_attention)
{
    enum mp_dtype qt = types[_i % 5][0], kvt = types[_i % 5][1];
    enum mp_dtype yt = types[_i % 5][2];
    int64_t n = cases[_i / 5].n, t = cases[_i / 5].t, s = cases[_i / 5].s;
    int64_t c = cases[_i / 5].heads * cases[_i / 5].d;
    int64_t row = c + cases[_i / 5].gap;
    int64_t kn = cases[_i / 5].shared ? 1 : n;
    struct k_attention a = {n,
                            t,
                            s,
                            cases[_i / 5].heads,
                            c / cases[_i / 5].heads,
                            cases[_i / 5].scale,
                            qt,
                            kvt,
                            yt,
                            {t * row, row},
                            {0},
                            {0},
                            {t * c, c}};
    struct data q = data(qt, (n * t - 1) * row + c, 1, 0);
    struct data k = data(kvt, (kn * s - 1) * row + c, 1, 0);
    struct data v = data(kvt, (kn * s - 1) * row + c, 1, 0.1f);
    struct data y = data(yt, n * t * c, 1, 0), z = data(yt, n * t * c, 1, 0);
    double *want = room(MP_F64, n * t * c);

    a.k = a.v = (struct k_rows){kn == 1 ? 0 : s * row, row};
    attention_want(&a, want, q.x, k.x, v.x);
    run_attention(&a, y.p, q.p, k.p, v.p, 2);
    near(&y, want, qt == kvt ? qt : MP_F32, "attention");
    run_attention(&a, z.p, q.p, k.p, v.p, 1);
    ck_assert_int_eq(memcmp(y.p, z.p, (size_t)y.n * mp_dtype_size(y.t)), 0);
    free(want);
    drop(q);
    drop(k);
    drop(v);
    drop(y);
    drop(z);
}
END_TEST

/* Scores that grow from key to key, by 300 or 1e30 in all, in even heads, and
 * fall in odd ones: what was weighed by earlier maxima counts less and less. */
START_TEST(test_attention_growth)
{
    enum { t = 70, heads = 2, d = 40, c = heads * d };
    static const int64_t keys[] = {1, 7, 64, 131, 200};
    enum mp_dtype type = _i % 2 ? MP_BF16 : MP_F32;
    int64_t s = keys[_i / 4];
    float most = _i / 2 % 2 ? 1e30f : 300;
    struct k_attention a = {
        1,    t,      s,          heads,      d,          most * 2 / d, type,
        type, MP_F32, {t * c, c}, {s * c, c}, {s * c, c}, {t * c, c}};
    struct data q = data(type, t * c, 0.5f, 1), k = data(type, s * c, 0.02f, 0);
    struct data v = data(type, s * c, 1, 0), y = data(MP_F32, t * c, 1, 0);
    double *want = room(MP_F64, t * c), error = 0, norm = 0, rounding;

    for (int64_t i = 0; i < s * c; i++) {
        int64_t key = i / c, at = i % c / d % 2 ? s - 1 - key : key;
        float x = (float)k.x[i] + 0.5f * (float)at / (float)s;

        if (type == MP_F32)
            ((float *)k.p)[i] = x;
        else
            ((uint16_t *)k.p)[i] = to_bf16(x);
    }
    read_back(&k);
    attention_want(&a, want, q.x, k.x, v.x);
    run_attention(&a, y.p, q.p, k.p, v.p, 2);
    read_back(&y);
    for (int64_t i = 0; i < t * c; i++) {
        error += (y.x[i] - want[i]) * (y.x[i] - want[i]);
        norm += want[i] * want[i];
    }
    /* A weight is as wrong as its score, a sum of d products; of weights far
     * apart there is but one. */
    rounding = most > 300 ? 0 : d * most * 1.5 * 0x1p-24;
    ck_assert_msg(error <= fmax(bound(type), rounding * rounding) * norm,
                  "%ld keys: error %g of %g", (long)s, error, norm);
    drop(q);
    drop(k);
    drop(v);
    drop(y);
    free(want);
}
END_TEST

/* ---- convolutions ---- */

/* Odd sizes, a pixel, channels around the lengths of vectors, of a block of
 * channels and of a chain of sums; bottom and right: rows and columns of zeros
 * after x. Those that can be are done Winograd's way too. */
static const struct {
    int64_t n, h, w, c, k, r, s, stride, top, left, bottom, right;
    int bias, residual, act; /* residual 2: in place */
} convs[] = {
    {1, 1, 1, 1, 9, 3, 3, 1, 1, 1, 1, 1, 0, 0, MP_ACT_NONE},
    {1, 1, 1, 64, 48, 3, 3, 1, 1, 1, 1, 1, 1, 1, MP_RELU},
    {2, 5, 7, 35, 19, 3, 3, 1, 1, 1, 1, 1, 1, 0, MP_SILU},
    {1, 16, 16, 3, 32, 3, 3, 1, 1, 1, 1, 1, 1, 0, MP_ACT_NONE},
    {3, 8, 9, 129, 65, 3, 3, 1, 1, 1, 1, 1, 1, 2, MP_ACT_NONE},
    {1, 33, 31, 320, 64, 3, 3, 1, 1, 1, 1, 1, 1, 2, MP_GELU},
    {2, 17, 4, 16, 33, 3, 3, 1, 0, 0, 0, 0, 0, 1, MP_ACT_NONE},
    {1, 9, 12, 40, 32, 3, 3, 1, 0, 1, 1, 0, 1, 0, MP_SIGMOID},
    {1, 6, 6, 32, 96, 3, 3, 1, 1, 0, 2, 2, 1, 0, MP_ACT_NONE},
    {16, 3, 3, 8, 8, 3, 3, 1, 0, 0, 0, 0, 1, 0, MP_ACT_NONE},
    {2, 24, 24, 640, 40, 3, 3, 1, 1, 1, 1, 1, 1, 2, MP_RELU},
    {1, 15, 18, 50, 70, 3, 3, 2, 0, 0, 1, 1, 1, 0, MP_ACT_NONE},
    {2, 9, 11, 32, 40, 3, 3, 2, 1, 1, 1, 1, 0, 2, MP_SILU},
    {1, 12, 10, 40, 64, 2, 5, 3, 0, 2, 1, 2, 1, 0, MP_ACT_NONE},
    {1, 16, 20, 33, 32, 4, 4, 4, 0, 0, 0, 0, 1, 1, MP_ACT_NONE},
    {2, 5, 13, 100, 31, 1, 1, 1, 0, 0, 0, 0, 1, 0, MP_RELU},
};

static double conv_at(const struct k_conv *a, const double *x, const double *w,
                      int64_t i)
{
    int64_t k = i % a->k, ox = i / a->k % a->yw, oy = i / a->k / a->yw % a->yh;
    int64_t n = i / a->k / a->yw / a->yh, taps = a->r * a->s;
    double sum = 0;

    for (int64_t t = 0; t < taps; t++) {
        int64_t y = oy * a->stride + t / a->s - a->top;
        int64_t v = ox * a->stride + t % a->s - a->left;

        if (y < 0 || y >= a->h || v < 0 || v >= a->w)
            continue;
        for (int64_t c = 0; c < a->c; c++)
            sum += x[((n * a->h + y) * a->w + v) * a->c + c] *
                   w[(k * a->c + c) * taps + t];
    }
    return sum;
}

static struct k_conv conv_of(int i)
{
    struct k_conv a = {.n = convs[i].n,
                       .h = convs[i].h,
                       .w = convs[i].w,
                       .c = convs[i].c,
                       .k = convs[i].k,
                       .r = convs[i].r,
                       .s = convs[i].s,
                       .stride = convs[i].stride,
                       .top = convs[i].top,
                       .left = convs[i].left,
                       .act = convs[i].act};

    a.yh = (a.h + a.top + convs[i].bottom - a.r) / a.stride + 1;
    a.yw = (a.w + a.left + convs[i].right - a.s) / a.stride + 1;
    return a;
}

static void run_conv(const struct k_conv *a, struct k_out y, struct k_in x,
                     const float *w, const float *bias, struct k_in residual,
                     int threads, int most)
{
    size_t size = k_conv_weights(a->k, a->c, a->r * a->s, a->way);
    size_t room = k_conv_scratch(a, most);
    void *packed = aligned_alloc(64, (size + 63) / 64 * 64);
    void *scratch = aligned_alloc(64, (room + 63) / 64 * 64);

    ck_assert(packed && scratch);
    omp_set_num_threads(threads);
    k_conv_pack(packed, w, a->k, a->c, a->r, a->s, a->way);
    k_conv(a, y, x, a->plain ? w : packed, bias, residual, scratch);
    free(packed);
    free(scratch);
}

/* Case i in these types: of x, of the residual, of the result. */
static void check_conv(int i, enum k_way way, const enum mp_dtype t[3])
{
    struct k_conv a = conv_of(i);
    int64_t each = a.yh * a.yw * a.k;
    struct data x = data(t[0], a.n * a.h * a.w * a.c, 1, 0.3f);
    struct data w = data(MP_F32, a.k * a.c * a.r * a.s, 1, 0);
    struct data b = data(MP_F32, a.k, 1, 0);
    struct data r = data(t[1], a.n * each, 10, 0);
    struct data y = data(t[2], r.n, 1, 0), z = data(t[2], r.n, 1, 0);
    double *want = room(MP_F64, r.n);
    const float *bias = convs[i].bias ? b.p : NULL;
    struct k_in residual = convs[i].residual ? in(r) : (struct k_in){NULL, 0};
    int in_place = convs[i].residual == 2 && t[1] == t[2];
    size_t size = mp_dtype_size(t[2]);

    a.way = way;
    for (int64_t k = 0; k < r.n; k++)
        want[k] =
            activate(conv_at(&a, x.x, w.x, k) + (bias ? b.x[k % a.k] : 0) +
                         (residual.p ? r.x[k] : 0),
                     a.act);
    if (in_place)
        memcpy(y.p, r.p, (size_t)r.n * size);
    run_conv(&a, out(y), in(x), w.p, bias, in_place ? in(y) : residual, 2, 3);
    near(&y, want, way == K_WINOGRAD_BF16 ? MP_BF16 : MP_F32, "convolution");
    run_conv(&a, out(z), in(x), w.p, bias, residual, 1, 1);
    ck_assert_int_eq(memcmp(y.p, z.p, (size_t)r.n * size), 0);
    a.plain = way != K_DIRECT;
    run_conv(&a, out(z), in(x), w.p, bias, residual, 3, 3);
    ck_assert_int_eq(memcmp(y.p, z.p, (size_t)r.n * size), 0);
    a.n = 1; /* a picture alone */
    run_conv(&a, out(z), in(x), w.p, bias, residual, 5, 5);
    ck_assert_int_eq(memcmp(y.p, z.p, (size_t)each * size), 0);
    free(want);
    drop(x);
    drop(w);
    drop(b);
    drop(r);
    drop(y);
    drop(z);
}

START_TEST(test_conv)
{
    check_conv(_i, K_DIRECT, types[0]);
    if (convs[_i].r != 3 || convs[_i].s != 3 || convs[_i].stride != 1)
        return;
    check_conv(_i, K_WINOGRAD, types[0]);
    for (int k = 0; k < N(types) && k_has_bf16(); k++)
        check_conv(_i, K_WINOGRAD_BF16, types[k]);
}
END_TEST

/* ---- layouts ---- */

static const struct {
    dnnl_format_tag_t tag;
    enum mp_dtype t;
} layouts[] = {{dnnl_Acdb16a, MP_F32},    {dnnl_Acdb32a, MP_F32},
               {dnnl_Acdb64a, MP_F32},    {dnnl_AcdB32a2b, MP_BF16},
               {dnnl_AcdB48a2b, MP_BF16}, {dnnl_AcdB64a2b, MP_BF16}};

static const int64_t weights[][4] = {
    {64, 64, 1, 1}, {1, 1, 3, 3},   {150, 3, 3, 3}, {35, 137, 1, 1},
    {96, 40, 3, 3}, {70, 33, 2, 5}, {32, 20, 8, 8}};

static void run_reorder(void *to, dn_desc want, const float *from,
                        dn_desc plain)
{
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_desc_t pd;
    dnnl_primitive_t prim;
    dnnl_memory_t a, b;

    ck_assert(!dnnl_engine_create(&engine, dnnl_cpu, 0));
    ck_assert(!dnnl_stream_create(&stream, engine, dnnl_stream_default_flags));
    ck_assert(!dnnl_reorder_primitive_desc_create(&pd, plain, engine, want,
                                                  engine, NULL));
    ck_assert(!dnnl_primitive_create(&prim, pd));
    ck_assert(!dnnl_memory_create(&a, plain, engine, (void *)from));
    ck_assert(!dnnl_memory_create(&b, want, engine, to));
    ck_assert(!dnnl_primitive_execute(
        prim, stream, 2,
        (dnnl_exec_arg_t[]){{DNNL_ARG_FROM, a}, {DNNL_ARG_TO, b}}));
    dnnl_stream_wait(stream);
    dnnl_memory_destroy(a);
    dnnl_memory_destroy(b);
    dnnl_primitive_destroy(prim);
    dnnl_primitive_desc_destroy(pd);
    dnnl_stream_destroy(stream);
    dnnl_engine_destroy(engine);
}

static struct data some_weights(int64_t n)
{
    struct data x = data(MP_F32, n, 1, 0);

    for (int64_t i = 0; i < x.n; i += 7) /* ties, a carry, signs, infinity */
        ((uint32_t *)x.p)[i] = (uint32_t[]){0x3f808000, 0x3f818000, 0x3fffffff,
                                            0xbf818000, 0xff800000}[i % 5];
    return x;
}

/* x in a layout as k_reorder makes it, and y, of that shape, as oneDNN does. */
static void same_order(enum mp_dtype t, dn_desc want, const struct k_layout *to,
                       const float *x, const struct k_layout *from,
                       const float *y, dn_desc plain)
{
    size_t size = dnnl_memory_desc_get_size(want);
    void *a = aligned_alloc(64, (size + 63) / 64 * 64), *b = malloc(size);

    ck_assert(a && b);
    ck_assert(k_can_reorder(to, t, from));
    memset(b, 1, size);
    run_reorder(a, want, y, plain);
    omp_set_num_threads(3);
    k_reorder((struct k_out){b, t}, to, x, from);
    ck_assert_int_eq(memcmp(a, b, size), 0);
    free(a);
    free(b);
}

/* The same bytes as oneDNN's own. */
START_TEST(test_reorder)
{
    const int64_t *dim = weights[_i / N(layouts)];
    enum mp_dtype t = layouts[_i % N(layouts)].t, got, f32;
    struct data x = some_weights(count(4, dim));
    dn_own_desc want, plain;
    struct k_layout to, from;

    ck_assert(!dn_desc_new(&want, 4, dim, t == MP_F32 ? dnnl_f32 : dnnl_bf16,
                           layouts[_i % N(layouts)].tag));
    ck_assert(!dn_desc_new(&plain, 4, dim, dnnl_f32, dnnl_oihw));
    ck_assert(dn_layout(&to, &got, dn_borrow(&want)) && got == t);
    ck_assert(dn_layout(&from, &f32, dn_borrow(&plain)) && f32 == MP_F32);
    same_order(t, dn_borrow(&want), &to, x.p, &from, x.p, dn_borrow(&plain));
    dn_desc_free(&want);
    dn_desc_free(&plain);
    drop(x);
}
END_TEST

/* Taps as rows: blocks begin within a tap, and end in the next one. */
START_TEST(test_reorder_taps)
{
    const dnnl_dims_t dim = {64, 38, 3, 3};
    const dnnl_dims_t rows = {9 * dim[0], dim[1], 1, 1};
    enum mp_dtype t = layouts[_i].t, got, f32;
    struct data x = some_weights(count(4, dim)), y = some_weights(x.n);
    dn_own_desc want, plain, spread;
    struct k_layout to, from;

    for (int64_t i = 0; i < x.n; i++) /* K,C,tap to tap,K,C */
        ((float *)y.p)[i % 9 * dim[0] * dim[1] + i / 9] = ((float *)x.p)[i];
    ck_assert(!dn_desc_new(&want, 4, rows, t == MP_F32 ? dnnl_f32 : dnnl_bf16,
                           layouts[_i].tag));
    ck_assert(!dn_desc_new(&plain, 4, dim, dnnl_f32, dnnl_oihw));
    ck_assert(!dn_desc_new(&spread, 4, rows, dnnl_f32, dnnl_oihw));
    ck_assert(dn_layout(&to, &got, dn_borrow(&want)) && got == t);
    ck_assert(dn_layout(&from, &f32, dn_borrow(&plain)) && f32 == MP_F32);
    to.of = to.block[0];
    to.block[0] = 16;
    memcpy(to.dim, dim, sizeof to.dim);
    same_order(t, dn_borrow(&want), &to, x.p, &from, y.p, dn_borrow(&spread));
    dn_desc_free(&want);
    dn_desc_free(&plain);
    dn_desc_free(&spread);
    drop(x);
    drop(y);
}
END_TEST

/* ---- norms ---- */

static const struct {
    int64_t n, hw, c, groups;
    float offset;
} maps[] = {{1, 1, 4, 4, 0},    {2, 7, 6, 3, 0},      {1, 4096, 32, 32, 1},
            {2, 300, 40, 4, 0}, {1, 65, 2560, 32, 3}, {1, 77, 320, 32, 100},
            {1, 33, 1, 1, -1},  {1, 9, 1030, 1, 0}};

static void normalise(double *y, struct data x, struct data w, struct data b,
                      int64_t hw, int64_t c, int64_t groups, float eps, int act)
{
    int64_t each = c / groups, rows = x.n / c;

    for (int64_t i = 0; i < rows / hw * groups; i++) {
        const double *p = x.x + i / groups * hw * c + i % groups * each;
        double *z = y + (p - x.x), mean = 0, var = 0;
        int64_t n = hw * each;

        for (int64_t k = 0; k < n; k++)
            mean += p[k / each * c + k % each] / (double)n;
        for (int64_t k = 0; k < n; k++)
            var += pow(p[k / each * c + k % each] - mean, 2) / (double)n;
        for (int64_t k = 0; k < n; k++) {
            int64_t at = k / each * c + k % each, j = i % groups * each;

            j += k % each;
            z[at] = activate((p[at] - mean) / sqrt(var + eps) * w.x[j] + b.x[j],
                             act);
        }
    }
}

START_TEST(test_norm)
{
    int64_t n = maps[_i / 5].n, hw = maps[_i / 5].hw, c = maps[_i / 5].c;
    int64_t groups = maps[_i / 5].groups;
    float offset = maps[_i / 5].offset;
    struct data x = data(types[_i % 5][0], n * hw * c, 1, offset);
    struct data w = data(types[_i % 5][1], c, 1, 1);
    struct data b = data(types[_i % 5][1], c, 1, 0);
    struct data y = data(types[_i % 5][2], x.n, 1, 0);
    struct data z = data(types[_i % 5][2], x.n, 1, 0);
    double *want = room(MP_F64, x.n);
    size_t size = k_group_norm_scratch(n, hw, c, groups);
    void *scratch = malloc(size + k_layer_norm_scratch(c));

    omp_set_num_threads(1);
    normalise(want, x, w, b, hw, c, groups, 1e-5f, MP_SILU);
    k_group_norm(out(y), in(x), in(w), in(b), n, hw, c, groups, 1e-5f, MP_SILU,
                 scratch);
    near(&y, want, MP_F32, "group norm");
    omp_set_num_threads(3);
    k_group_norm(out(z), in(x), in(w), in(b), n, hw, c, groups, 1e-5f, MP_SILU,
                 scratch);
    ck_assert_int_eq(memcmp(y.p, z.p, (size_t)y.n * mp_dtype_size(y.t)), 0);
    normalise(want, x, w, b, 1, c, 1, 1e-5f, MP_RELU);
    k_layer_norm(out(y), in(x), in(w), in(b), n * hw, c, 1e-5f, MP_RELU,
                 scratch);
    near(&y, want, MP_F32, "layer norm");
    free(scratch);
    free(want);
    drop(x);
    drop(w);
    drop(b);
    drop(y);
    drop(z);
}
END_TEST

START_TEST(test_batch_norm)
{
    int64_t c = maps[_i / 5].c, rows = maps[_i / 5].n * maps[_i / 5].hw;
    enum mp_dtype t = types[_i % 5][1];
    struct data x = data(types[_i % 5][0], rows * c, 1, 0);
    struct data w = data(t, c, 1, 1), b = data(t, c, 1, 0);
    struct data mean = data(t, c, 1, 0), var = data(t, c, 0.5f, 1);
    struct data y = data(types[_i % 5][2], x.n, 1, 0);
    double *want = room(MP_F64, x.n);
    void *scratch = malloc(k_batch_norm_scratch(c));

    for (int64_t i = 0; i < x.n; i++)
        want[i] = activate((x.x[i] - mean.x[i % c]) /
                                   sqrt(var.x[i % c] + 1e-5f) * w.x[i % c] +
                               b.x[i % c],
                           MP_RELU);
    k_batch_norm(out(y), in(x), in(w), in(b), in(mean), in(var), rows, c, 1e-5f,
                 MP_RELU, scratch);
    near(&y, want, MP_F32, "batch norm");
    free(scratch);
    free(want);
    drop(x);
    drop(w);
    drop(b);
    drop(mean);
    drop(var);
    drop(y);
}
END_TEST

/* ---- pointwise ---- */

START_TEST(test_act)
{
    static const int acts[] = {MP_ACT_NONE, MP_RELU, MP_SILU, MP_GELU,
                               MP_SIGMOID};

    for (int k = 0; k < N(acts); k++) {
        struct data x = data(types[_i][0], 5001, 12, 0);
        struct data y = data(types[_i][2], 5001, 1, 0);
        double *want = room(MP_F64, x.n);

        for (int64_t i = 0; i < x.n; i++)
            want[i] = activate(x.x[i], acts[k]);
        k_act(out(y), in(x), x.n, acts[k]);
        near(&y, want, MP_F32, "act");
        free(want);
        drop(x);
        drop(y);
    }
}
END_TEST

START_TEST(test_act_extremes)
{
    static const float x[] = {0,     -0.0f, 1e-30f, -100,  100,
                              -1000, 1000,  1e30f,  -1e30f};
    float y[N(x)];

    for (int act = MP_RELU; act <= MP_SIGMOID; act++) {
        k_act((struct k_out){y, MP_F32}, (struct k_in){x, MP_F32}, N(x), act);
        for (int i = 0; i < N(x); i++) {
            double want = activate(x[i], act);

            ck_assert_msg(fabs(y[i] - want) <= 1e-6 * fabs(want) + 1e-30,
                          "act %d of %g: %g, not %g", act, (double)x[i],
                          (double)y[i], want);
        }
    }
}
END_TEST

/* Every result is the exact one, rounded, but for 1e-4 of it. */
START_TEST(test_act_rounded)
{
    enum { n = 6001 };
    static float x[n];
    uint16_t y[n];

    for (int i = 0; i < n; i++)
        x[i] = (float)(i - n / 2) / 150;
    x[0] = -1e30f;
    x[n - 1] = 1e30f;
    for (int act = MP_RELU; act <= MP_SIGMOID; act++) {
        k_act((struct k_out){y, MP_BF16}, (struct k_in){x, MP_F32}, n, act);
        for (int i = 0; i < n; i++) {
            double want = activate(x[i], act), got = from_bf16(y[i]);
            double part = 1.2e-4 * fabs(want) + 1e-30, half;
            int e;

            frexp(want, &e);
            half = ldexp(1, e - 9);
            ck_assert_msg(fabs(got - want) <= half + part,
                          "act %d of %g: %g, not %g", act, (double)x[i], got,
                          want);
        }
    }
}
END_TEST

static const int64_t products[][3] = {/* rows, K, C */
                                      {1, 1, 1},
                                      {1, 1280, 320},
                                      {3, 7, 31},
                                      {2, 5, 65},
                                      {1, 40, 32}};

START_TEST(test_product)
{
    int64_t rows = products[_i / 2][0], k = products[_i / 2][1];
    int64_t c = products[_i / 2][2];
    struct data x = data(MP_F32, rows * c, 1, 0);
    struct data w = data(MP_F32, k * c, 1, 0), b = data(MP_F32, k, 1, 0);
    struct data y = data(MP_F32, rows * k, 1, 0);
    double *want = room(MP_F64, y.n);

    for (int64_t i = 0; i < y.n; i++) {
        want[i] = _i % 2 ? b.x[i % k] : 0;
        for (int64_t j = 0; j < c; j++)
            want[i] += x.x[i / k * c + j] * w.x[i % k * c + j];
    }
    k_product(y.p, x.p, w.p, _i % 2 ? b.p : NULL, rows, k, c);
    near(&y, want, MP_F32, "product");
    free(want);
    drop(x);
    drop(w);
    drop(b);
    drop(y);
}
END_TEST

START_TEST(test_geglu)
{
    static const int64_t shapes[][2] = {{1, 1}, {3, 17}, {5, 1030}, {7, 1280}};

    for (int k = 0; k < N(shapes); k++) {
        int64_t c = shapes[k][1];
        struct data x = data(types[_i][0], shapes[k][0] * 2 * c, 3, 0);
        struct data y = data(types[_i][2], shapes[k][0] * c, 1, 0);
        double *want = room(MP_F64, y.n);

        for (int64_t i = 0; i < y.n; i++)
            want[i] = x.x[i / c * 2 * c + i % c] *
                      activate(x.x[(i / c * 2 + 1) * c + i % c], MP_GELU);
        k_geglu(out(y), in(x), shapes[k][0], c);
        near(&y, want, MP_F32, "geglu");
        free(want);
        drop(x);
        drop(y);
    }
}
END_TEST

static const struct {
    int an, bn;
    int64_t a[4], b[4];
} pairs[] = {
    {4, 4, {2, 3, 5, 7}, {2, 3, 5, 7}},
    {4, 1, {2, 3, 5, 7}, {7}},
    {4, 1, {2, 3, 5, 7}, {1}},
    {4, 4, {2, 3, 5, 7}, {2, 1, 1, 7}},
    {4, 4, {2, 3, 5, 7}, {1, 3, 1, 7}},
    {4, 3, {2, 3, 5, 7}, {3, 5, 1}},
    {4, 4, {2, 3, 5, 7}, {2, 1, 5, 1}},
    {3, 3, {1, 4000, 2}, {1, 4000, 2}},
    {2, 2, {3, 3000}, {3, 1}},
    {1, 1, {1}, {1}},
    {4, 4, {2, 1, 5, 2000}, {1, 1, 5, 2000}},
};

START_TEST(test_binary)
{
    int an = pairs[_i / 5].an, bn = pairs[_i / 5].bn;
    const int64_t *ad = pairs[_i / 5].a, *bd = pairs[_i / 5].b;
    struct data a = data(types[_i % 5][0], count(an, ad), 1, 0);
    struct data b = data(types[_i % 5][1], count(bn, bd), 1, 0);
    struct data y = data(types[_i % 5][2], a.n, 1, 0);
    double *sum = room(MP_F64, a.n), *product = room(MP_F64, a.n);

    for (int64_t i = 0; i < a.n; i++) {
        int64_t rest = i, at = 0, step = 1;

        for (int k = 0; k < bn; k++) {
            int64_t d = ad[an - 1 - k], e = bd[bn - 1 - k];

            at += (e == 1 ? 0 : rest % d) * step;
            step *= e;
            rest /= d;
        }
        sum[i] = activate(a.x[i] + b.x[at], MP_RELU);
        product[i] = a.x[i] * b.x[at];
    }
    k_add(out(y), in(a), in(b), an, ad, bn, bd, MP_RELU);
    near(&y, sum, MP_F32, "add");
    k_mul(out(y), in(a), in(b), an, ad, bn, bd, MP_ACT_NONE);
    near(&y, product, MP_F32, "mul");
    free(sum);
    free(product);
    drop(a);
    drop(b);
    drop(y);
}
END_TEST

/* All of bf16 there and back; f32 to the nearest, ties to even. */
START_TEST(test_convert)
{
    static const uint32_t f[][2] = {
        {0x3f808000, 0x3f80}, {0x3f818000, 0x3f82}, {0x3f808001, 0x3f81},
        {0x3f807fff, 0x3f80}, {0x7f7fffff, 0x7f80}, {0xff800000, 0xff80},
        {0x7f800001, 0x7fc0}, {0x00000001, 0x0000}, {0x00008001, 0x0001}};
    uint16_t *h = room(MP_BF16, 65536), *back = room(MP_BF16, 65536), one;
    float *x = room(MP_F32, 65536);
    uint8_t u8[256];

    for (int i = 0; i < 65536; i++)
        h[i] = (uint16_t)i;
    k_copy((struct k_out){x, MP_F32}, 256, (struct k_in){h, MP_BF16}, 256, 256,
           256);
    k_copy((struct k_out){back, MP_BF16}, 256, (struct k_in){x, MP_F32}, 256,
           256, 256);
    for (int i = 0; i < 65536; i++) /* a NaN becomes a quiet one */
        ck_assert_int_eq(back[i], isnan(x[i]) ? h[i] | 0x40 : h[i]);
    for (int i = 0; i < N(f); i++) {
        k_copy((struct k_out){&one, MP_BF16}, 1,
               (struct k_in){&f[i][0], MP_F32}, 1, 1, 1);
        ck_assert_msg(one == f[i][1], "%x: %x", f[i][0], one);
    }
    for (int i = 0; i < 256; i++)
        u8[i] = (uint8_t)i;
    k_copy((struct k_out){x, MP_F32}, 16, (struct k_in){u8, MP_U8}, 16, 16, 16);
    for (int i = 0; i < 256; i++)
        ck_assert(x[i] == (float)i);
    free(h);
    free(back);
    free(x);
}
END_TEST

/* ---- spatial ---- */

static const struct {
    int64_t n, h, w, c, yh, yw;
} sizes[] = {{1, 1, 1, 1, 3, 5},     {2, 5, 7, 3, 10, 14},
             {1, 8, 6, 40, 3, 4},    {1, 4, 4, 1030, 7, 5},
             {1, 20, 31, 1, 41, 77}, {3, 6, 6, 17, 6, 6}};

static double pixel(struct data x, int64_t k, const int64_t at[2], int64_t n,
                    int64_t c)
{
    return x
        .x[((n * sizes[k].h + at[0]) * sizes[k].w + at[1]) * sizes[k].c + c];
}

static double bilinear(struct data x, int64_t k, const int64_t o[2], int64_t n,
                       int64_t c)
{
    const int64_t from[2] = {sizes[k].h, sizes[k].w};
    const int64_t to[2] = {sizes[k].yh, sizes[k].yw};
    int64_t lo[2], hi[2];
    double f[2], sum = 0;

    for (int i = 0; i < 2; i++) {
        float at = ((float)o[i] + 0.5f) * ((float)from[i] / (float)to[i]);

        at = at - 0.5f > 0 ? at - 0.5f : 0;
        lo[i] = (int64_t)at;
        hi[i] = lo[i] + 1 < from[i] ? lo[i] + 1 : lo[i];
        f[i] = at - (float)lo[i];
    }
    for (int i = 0; i < 4; i++)
        sum += (i & 1 ? f[1] : 1 - f[1]) * (i & 2 ? f[0] : 1 - f[0]) *
               pixel(x, k,
                     (int64_t[]){i & 2 ? hi[0] : lo[0], i & 1 ? hi[1] : lo[1]},
                     n, c);
    return sum;
}

static double pooled(struct data x, int64_t k, const int64_t o[2], int64_t n,
                     int64_t c)
{
    int64_t h = sizes[k].h, w = sizes[k].w;
    int64_t yh = sizes[k].yh, yw = sizes[k].yw;
    int64_t a = o[0] * h / yh, b = ((o[0] + 1) * h + yh - 1) / yh;
    int64_t l = o[1] * w / yw, r = ((o[1] + 1) * w + yw - 1) / yw;
    double sum = 0;

    for (int64_t i = a; i < b; i++)
        for (int64_t j = l; j < r; j++)
            sum += pixel(x, k, (int64_t[]){i, j}, n, c);
    return sum / (double)((b - a) * (r - l));
}

START_TEST(test_spatial)
{
    int64_t k = _i / 5, n = sizes[k].n, h = sizes[k].h, w = sizes[k].w;
    int64_t c = sizes[k].c, yh = sizes[k].yh, yw = sizes[k].yw;
    struct data x = data(types[_i % 5][0], n * h * w * c, 1, 0.5f);
    struct data y = data(types[_i % 5][2], n * yh * yw * c, 1, 0);
    double *mix = room(MP_F64, y.n), *near_by = room(MP_F64, y.n);
    double *mean = room(MP_F64, y.n);
    void *scratch = malloc(k_resize_bilinear_scratch(w, c, yw, 2));

    for (int64_t i = 0; i < y.n; i++) {
        int64_t o[2] = {i / c / yw % yh, i / c % yw}, p = i / c / yw / yh;

        mix[i] = bilinear(x, k, o, p, i % c);
        mean[i] = pooled(x, k, o, p, i % c);
        near_by[i] =
            pixel(x, k, (int64_t[]){o[0] * h / yh, o[1] * w / yw}, p, i % c);
    }
    omp_set_num_threads(2);
    k_resize_bilinear(out(y), in(x), n, h, w, c, yh, yw, scratch);
    near(&y, mix, MP_F32, "bilinear");
    k_resize_nearest(out(y), in(x), n, h, w, c, yh, yw);
    near(&y, near_by, MP_F32, "nearest");
    k_pool_avg(out(y), in(x), n, h, w, c, yh, yw);
    near(&y, mean, MP_F32, "pool");
    free(scratch);
    free(mix);
    free(near_by);
    free(mean);
    drop(x);
    drop(y);
}
END_TEST

START_TEST(test_pad)
{
    int64_t n = 2, h = 3, w = 5, c = 7, yh = 6, yw = 9, top = 2, left = 1;
    struct data x = data(types[_i][0], n * h * w * c, 1, 0);
    struct data y = data(types[_i][2], n * yh * yw * c, 1, 0);
    double *want = calloc((size_t)y.n, sizeof *want);

    for (int64_t i = 0; i < x.n; i++) {
        int64_t row = i / c / w % h + top, col = i / c % w + left;

        want[((i / c / w / h * yh + row) * yw + col) * c + i % c] = x.x[i];
    }
    k_pad(out(y), in(x), n, h, w, c, top, left, yh, yw);
    near(&y, want, MP_F32, "pad");
    free(want);
    drop(x);
    drop(y);
}
END_TEST

static const int64_t rows[][2] = {
    {1, 1}, {3, 2}, {17, 150}, {5, 1024}, {2, 5000}};

START_TEST(test_last)
{
    int64_t n = rows[_i / 5][0], c = rows[_i / 5][1];
    struct data x = data(types[_i % 5][0], n * c, 8, 0);
    struct data y = data(types[_i % 5][2], n * c, 1, 0);
    double *want = room(MP_F64, x.n);
    int32_t *index = room(MP_I32, n);

    k_argmax(index, in(x), n, c);
    for (int64_t r = 0; r < n; r++) {
        double sum = 0;
        int64_t best = 0;

        for (int64_t i = 0; i < c; i++) {
            best = x.x[r * c + i] > x.x[r * c + best] ? i : best;
            sum += exp(x.x[r * c + i]);
        }
        ck_assert_int_eq(index[r], best);
        for (int64_t i = 0; i < c; i++)
            want[r * c + i] = exp(x.x[r * c + i]) / sum;
    }
    k_softmax(out(y), in(x), n, c);
    near(&y, want, MP_F32, "softmax");
    free(want);
    free(index);
    drop(x);
    drop(y);
}
END_TEST

/* A case of Check each, so that CK_RUN_CASE can choose. */
static void add(Suite *s, const char *name, const TTest *test, int n)
{
    TCase *t = tcase_create(name);

    tcase_set_timeout(t, 60);
    tcase_add_loop_test(t, test, 0, n);
    suite_add_tcase(s, t);
}

int main(void)
{
    Suite *s = suite_create("kernels");
    SRunner *r = srunner_create(s);
    int failed;

    add(s, "attention", test_attention, 5 * N(cases));
    add(s, "attention_growth", test_attention_growth, 20);
    add(s, "conv", test_conv, N(convs));
    add(s, "reorder", test_reorder, N(layouts) * N(weights));
    add(s, "reorder_taps", test_reorder_taps, N(layouts));
    add(s, "norm", test_norm, 5 * N(maps));
    add(s, "batch_norm", test_batch_norm, 5 * N(maps));
    add(s, "act", test_act, 5);
    add(s, "act_extremes", test_act_extremes, 1);
    add(s, "act_rounded", test_act_rounded, 1);
    add(s, "product", test_product, 2 * N(products));
    add(s, "geglu", test_geglu, 5);
    add(s, "binary", test_binary, 5 * N(pairs));
    add(s, "convert", test_convert, 1);
    add(s, "spatial", test_spatial, 5 * N(sizes));
    add(s, "pad", test_pad, 5);
    add(s, "last", test_last, 5 * N(rows));
    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
