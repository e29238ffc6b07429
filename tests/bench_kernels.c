/* SPDX-License-Identifier: MIT */
/*
 * bench_kernels.c - speed of the CPU's own kernels against what the machine can
 * do, one thread, in its CPU time (other load does not count). For developers.
 *
 * usage: bench_kernels [part of a name]
 */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "cpu/kernels.h"
#include "cpu/simd.h"

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- limits ---- */

struct limits {
    double f32, bf16; /* multiplications and additions, 1e9 a second */
    double copy;      /* bytes read and written, 1e9 a second */
};

#if defined(__x86_64__)
#include <immintrin.h>

#define CHAINS 16
#define ROUNDS 2000000

K_TARGET_AVX512 static double peak_f32(float *sink)
{
    __m512 a[CHAINS], x = _mm512_set1_ps(0.999f);
    double start = now();

#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++)
        a[i] = _mm512_set1_ps((float)i);
    for (int k = 0; k < ROUNDS; k++) {
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++)
            a[i] = _mm512_fmadd_ps(a[i], x, x);
    }
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++)
        *sink += _mm512_reduce_add_ps(a[i]);
    return 32e-9 * CHAINS * ROUNDS / (now() - start);
}

K_TARGET_BF16 static double peak_bf16(float *sink)
{
    __m512 a[CHAINS];
    __m512bh x = (__m512bh)_mm512_set1_epi16(0x3f80);
    double start = now();

#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++)
        a[i] = _mm512_set1_ps((float)i);
    for (int k = 0; k < ROUNDS; k++) {
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++)
            a[i] = _mm512_dpbf16_ps(a[i], x, x);
    }
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++)
        *sink += _mm512_reduce_add_ps(a[i]);
    return 64e-9 * CHAINS * ROUNDS / (now() - start);
}
#endif

#define MOST_BYTES ((size_t)256 << 20)

static struct limits measure(char *a, char *b)
{
    struct limits l = {0, 0, 0};
    size_t n = (size_t)64 << 20;
    float sink = 0;
    double start;

#if defined(__x86_64__)
    for (int i = 0; i < 5; i++) {
        if (k_level() >= K_AVX512)
            l.f32 = fmax(l.f32, peak_f32(&sink));
        if (k_has_bf16())
            l.bf16 = fmax(l.bf16, peak_bf16(&sink));
    }
#endif
    for (int i = 0; i < 5; i++) {
        start = now();
        memcpy(a, b, n);
        l.copy = fmax(l.copy, 2e-9 * (double)n / (now() - start));
    }
    printf("%s: f32 %.0f GF/s, bf16 %.0f GF/s, copy %.1f GB/s%s\n", k_isa(),
           l.f32, l.bf16, l.copy, sink == 1 ? " " : "");
    return l;
}

/* ---- cases ---- */

struct bench {
    enum mp_dtype t;
    char *x, *y, *scratch;
    int64_t d[6];
};

#define IN(b)  ((struct k_in){(b)->x, (b)->t})
#define OUT(b) ((struct k_out){(b)->y, (b)->t})
/* C numbers that are near 1 as f32 */
#define PARAM(b) ((struct k_in){(b)->scratch + MOST_BYTES / 2, MP_F32})

static void attention(const struct bench *b)
{
    const int64_t *d = b->d; /* t, s, heads, d */
    int64_t c = d[2] * d[3];
    struct k_rows q = {d[0] * c, c}, k = {0, c};
    struct k_attention a = {1,    d[0], d[1], d[2], d[3], 0.15f, b->t,
                            b->t, b->t, q,    k,    k,    q};

    k_attention(&a, b->y, b->x, b->x + (4 << 20), b->x + (48 << 20),
                b->scratch);
}

static void group_norm(const struct bench *b)
{
    k_group_norm(OUT(b), IN(b), PARAM(b), PARAM(b), 1, b->d[0], b->d[1], 32,
                 1e-5f, MP_SILU, b->scratch);
}

static void group_norm_plain(const struct bench *b)
{
    k_group_norm(OUT(b), IN(b), PARAM(b), PARAM(b), 1, b->d[0], b->d[1], 32,
                 1e-5f, MP_ACT_NONE, b->scratch);
}

static void layer_norm(const struct bench *b)
{
    k_layer_norm(OUT(b), IN(b), PARAM(b), PARAM(b), b->d[0], b->d[1], 1e-5f,
                 MP_ACT_NONE, b->scratch);
}

static void geglu(const struct bench *b)
{
    k_geglu(OUT(b), IN(b), b->d[0], b->d[1]);
}

static void silu(const struct bench *b)
{
    k_act(OUT(b), IN(b), b->d[0] * b->d[1], MP_SILU);
}

static void add(const struct bench *b)
{
    struct k_in z = {b->x + MOST_BYTES / 2, b->t};

    k_add(OUT(b), IN(b), z, 2, b->d, 2, b->d, MP_ACT_NONE);
}

static void add_channel(const struct bench *b)
{
    k_add(OUT(b), IN(b), PARAM(b), 2, b->d, 1, b->d + 1, MP_ACT_NONE);
}

static void copy(const struct bench *b)
{
    k_copy(OUT(b), 2 * b->d[1], IN(b), b->d[1], b->d[0], b->d[1]);
}

static void convert(const struct bench *b)
{
    enum mp_dtype to = b->t == MP_F32 ? MP_BF16 : MP_F32;

    k_copy((struct k_out){b->y, to}, 1, IN(b), 1, b->d[0] * b->d[1], 1);
}

static void bilinear(const struct bench *b)
{
    const int64_t *d = b->d; /* yh yw, c, h, w, */

    k_resize_bilinear(OUT(b), IN(b), 1, d[2], d[3], d[1], d[4], d[5],
                      b->scratch);
}

static void nearest(const struct bench *b)
{
    const int64_t *d = b->d;

    k_resize_nearest(OUT(b), IN(b), 1, d[2], d[3], d[1], d[4], d[5]);
}

static void softmax(const struct bench *b)
{
    k_softmax(OUT(b), IN(b), b->d[0], b->d[1]);
}

static void argmax(const struct bench *b)
{
    k_argmax((int32_t *)b->y, IN(b), b->d[0], b->d[1]);
}

/* per: elements read and written for each of d[0] * d[1]; attention counts
 * multiplications instead. */
static const struct {
    const char *name;
    void (*run)(const struct bench *b);
    double per;
    int64_t d[6];
} cases[] = {
    {"attention", attention, 0, {4096, 4096, 8, 40}},
    {"attention", attention, 0, {1024, 1024, 8, 80}},
    {"attention", attention, 0, {4096, 4096, 8, 80}},
    {"attention", attention, 0, {256, 256, 8, 160}},
    {"attention", attention, 0, {64, 64, 8, 160}},
    {"attention", attention, 0, {4096, 4096, 1, 512}},
    {"attention", attention, 0, {4096, 150, 8, 40}},
    {"attention", attention, 0, {4096, 50, 8, 40}},
    {"attention", attention, 0, {1024, 50, 8, 80}},
    {"group_norm silu", group_norm, 3, {4096, 320}},
    {"group_norm silu", group_norm, 3, {256, 1280}},
    {"group_norm silu", group_norm, 3, {262144, 128}},
    {"group_norm", group_norm_plain, 3, {4096, 320}},
    {"layer_norm", layer_norm, 2, {4096, 320}},
    {"layer_norm", layer_norm, 2, {256, 1280}},
    {"geglu", geglu, 3, {4096, 1280}},
    {"geglu", geglu, 3, {64, 5120}},
    {"silu", silu, 2, {4096, 1280}},
    {"add", add, 3, {4096, 320}},
    {"add channel", add_channel, 2, {4096, 320}},
    {"concat part", copy, 2, {4096, 640}},
    {"convert", convert, 2, {4096, 640}},
    {"bilinear", bilinear, 1.25, {128 * 128, 64, 64, 64, 128, 128}},
    {"bilinear", bilinear, 1.06, {480 * 640, 1, 120, 160, 480, 640}},
    {"bilinear", bilinear, 1.06, {512 * 512, 150, 128, 128, 512, 512}},
    {"nearest", nearest, 1.25, {64 * 64, 640, 32, 32, 64, 64}},
    {"softmax", softmax, 2, {4096, 150}},
    {"argmax", argmax, 1, {262144, 150}},
};

static void report(int i, const struct bench *b, const struct limits *l)
{
    const int64_t *d = cases[i].d;
    double best = 1e9, spent = 0, work, limit;
    char shape[64];

    for (int k = 0; k < 3 || (spent < 0.3 && k < 100); k++) {
        double start = now(), t;

        cases[i].run(b);
        t = now() - start;
        best = fmin(best, t);
        spent += t;
    }
    if (cases[i].per == 0) {
        snprintf(shape, sizeof shape, "%dx%d h%d d%d", (int)d[0], (int)d[1],
                 (int)d[2], (int)d[3]);
        work = 4e-9 * (double)(d[0] * d[1]) * (double)(d[2] * d[3]) / best;
        limit = b->t == MP_F32 ? l->f32 : l->bf16;
    } else {
        snprintf(shape, sizeof shape, "%dx%d", (int)d[0], (int)d[1]);
        work = 1e-9 * cases[i].per * (double)(d[0] * d[1]) *
               (double)mp_dtype_size(b->t) / best;
        limit = l->copy;
    }
    printf("%-16s %-18s %-4s %9.3f ms %7.1f %s %4.0f %%\n", cases[i].name,
           shape, mp_dtype_name(b->t), best * 1e3, work,
           cases[i].per == 0 ? "GF/s" : "GB/s", 100 * work / limit);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    struct bench b = {.x = aligned_alloc(64, MOST_BYTES),
                      .y = aligned_alloc(64, MOST_BYTES),
                      .scratch = aligned_alloc(64, MOST_BYTES)};
    struct limits l;
    float *x = (float *)b.x;

    if (!b.x || !b.y || !b.scratch)
        return 1;
    omp_set_num_threads(1);
    /* 1 to 1.99 as f32, and both halves about so as bf16 */
    for (size_t i = 0; i < MOST_BYTES / 4; i++)
        x[i] = k_float(0x3f803f80 | (uint32_t)(i * 2654435761u & 0x7f007f));
    memcpy(b.scratch, b.x, MOST_BYTES);
    memset(b.y, 0, MOST_BYTES);
    l = measure(b.y, b.x);
    for (int i = 0; i < (int)(sizeof cases / sizeof *cases); i++)
        for (int k = 0; k < 2; k++) {
            if (argc > 1 && !strstr(cases[i].name, argv[1]))
                continue;
            b.t = k ? MP_BF16 : MP_F32;
            memcpy(b.d, cases[i].d, sizeof b.d);
            report(i, &b, &l);
        }
    free(b.x);
    free(b.y);
    free(b.scratch);
    return 0;
}
