/* SPDX-License-Identifier: MIT */
/*
 * png_filter.c - the filters of PNGs of one channel undone: W3C, Portable
 * Network Graphics, third edition, section 9.2.
 *
 * A value needs its left, its upper and its upper left neighbour, so values of
 * a row cannot be had side by side. Those of four rows can, each row one value
 * behind the row above it: SSE2, which every x86-64 has, does that for depth.
 * Labels are the same over long runs, which branches foresee.
 */
#include <stdlib.h>
#include <string.h>

#include "cpu/simd.h"
#include "png_fast.h"

static uint8_t paeth(int a, int b, int c)
{
    int pa = abs(b - c), pb = abs(a - c), pc = abs(a + b - 2 * c);

    return (uint8_t)(pa <= pb && pa <= pc ? a : pb <= pc ? b : c);
}

/* A row of n bytes, `each` to a value, in place; up: the row above, or zeros.
 * a, c: what is left, and left above; zeros for the first value. */
K_INLINE int one_row(uint8_t *restrict x, const uint8_t *restrict up, size_t n,
                     int filter, const size_t each)
{
    uint8_t a[2] = {0}, c[2] = {0};

    switch (filter) {
    case 0:
        break;
    case 1:
        for (size_t i = 0; i < n; i += each)
            for (size_t k = 0; k < each; k++)
                a[k] = x[i + k] = (uint8_t)(x[i + k] + a[k]);
        break;
    case 2:
#pragma omp simd
        for (size_t i = 0; i < n; i++)
            x[i] = (uint8_t)(x[i] + up[i]);
        break;
    case 3:
        for (size_t i = 0; i < n; i += each)
            for (size_t k = 0; k < each; k++)
                a[k] = x[i + k] = (uint8_t)(x[i + k] + (a[k] + up[i + k]) / 2);
        break;
    case 4:
        for (size_t i = 0; i < n; i += each)
            for (size_t k = 0; k < each; k++) {
                a[k] = x[i + k] =
                    (uint8_t)(x[i + k] + paeth(a[k], up[i + k], c[k]));
                c[k] = up[i + k];
            }
        break;
    default:
        return 0;
    }
    return 1;
}

#define ROWS 4 /* at once */

#ifdef __SSE2__
#include <emmintrin.h>

/* Lanes of 16 bits, each a byte: the two of the value that is next in each
 * row. */
struct wave {
    __m128i left, above;            /* of those that are next */
    __m128i sub, up, average, path; /* all ones in rows of that filter */
};

static void begin(struct wave *v, const uint8_t *x, size_t stride)
{
    int32_t is[5][ROWS] = {{0}};

    for (size_t k = 0; k < ROWS; k++)
        is[x[k * stride]][k] = -1;
    v->left = v->above = _mm_setzero_si128();
    v->sub = _mm_loadu_si128((const __m128i *)is[1]);
    v->up = _mm_loadu_si128((const __m128i *)is[2]);
    v->average = _mm_loadu_si128((const __m128i *)is[3]);
    v->path = _mm_loadu_si128((const __m128i *)is[4]);
}

static __m128i magnitude(__m128i x)
{
    return _mm_max_epi16(x, _mm_sub_epi16(_mm_setzero_si128(), x));
}

static __m128i choose(__m128i which, __m128i a, __m128i b)
{
    return _mm_or_si128(_mm_and_si128(which, a), _mm_andnot_si128(which, b));
}

/* As above; 0 in lanes that are not of `mask`, which costs nothing here. */
static __m128i paeths(__m128i a, __m128i b, __m128i c, __m128i mask)
{
    __m128i p = _mm_sub_epi16(b, c), q = _mm_sub_epi16(a, c);
    __m128i pa = magnitude(p), pb = magnitude(q);
    __m128i pc = magnitude(_mm_add_epi16(p, q));
    __m128i least = _mm_min_epi16(_mm_min_epi16(pa, pb), pc);
    __m128i other = choose(_mm_cmpeq_epi16(least, pb), _mm_and_si128(b, mask),
                           _mm_and_si128(c, mask));

    return choose(_mm_cmpeq_epi16(least, pa), _mm_and_si128(a, mask), other);
}

/* The next value of each row: what is stored of it, and, for the first row,
 * what is above it; other rows have what their upper row gave a step ago. */
static inline __m128i next(struct wave *v, __m128i stored, __m128i above)
{
    __m128i corner = v->above, sum;

    v->above = _mm_or_si128(_mm_slli_si128(v->left, 4), above);
    sum = _mm_srli_epi16(_mm_add_epi16(v->left, v->above), 1);
    sum = _mm_and_si128(sum, v->average);
    sum = _mm_or_si128(sum, _mm_and_si128(v->left, v->sub));
    sum = _mm_or_si128(sum, _mm_and_si128(v->above, v->up));
    sum = _mm_or_si128(sum, paeths(v->left, v->above, corner, v->path));
    v->left = _mm_add_epi8(stored, sum);
    return v->left;
}

static __m128i load(const uint8_t *p)
{
    return _mm_loadl_epi64((const __m128i *)p);
}

static __m128i wide(const uint8_t *p)
{
    return _mm_unpacklo_epi8(load(p), _mm_setzero_si128());
}

static void store(uint8_t *p, __m128i x)
{
    _mm_storel_epi64((__m128i *)p, x);
}

/* Step t, in which some rows have not begun, or have ended: zeros. x: behind
 * the filter byte of the first row. */
static void at_the_side(struct wave *v, uint8_t *x, const uint8_t *up, size_t w,
                        size_t t)
{
    const size_t stride = 2 * w + 1;
    uint8_t value[2 * ROWS] = {0}, above[2 * ROWS] = {0};

    if (t < w)
        memcpy(above, up + 2 * t, 2);
    for (size_t k = 0; k < ROWS; k++)
        if (t >= k && t - k < w)
            memcpy(value + 2 * k, x + k * stride + 2 * (t - k), 2);
    store(value, _mm_packus_epi16(next(v, wide(value), wide(above)), v->left));
    for (size_t k = 0; k < ROWS; k++)
        if (t >= k && t - k < w)
            memcpy(x + k * stride + 2 * (t - k), value + 2 * k, 2);
}

/* Four steps; x: the first row's value of the first of them, x - step of the
 * next row's, and so on. */
static inline void four(struct wave *v, uint8_t *x, const uint8_t *up,
                        size_t step)
{
    const __m128i zero = _mm_setzero_si128();
    const __m128i first = _mm_setr_epi32(-1, 0, 0, 0);
    /* 4 x 4 values turned, and turned back */
    __m128i a = _mm_unpacklo_epi16(load(x), load(x + step));
    __m128i b = _mm_unpacklo_epi16(load(x + 2 * step), load(x + 3 * step));
    __m128i c = _mm_unpacklo_epi32(a, b), d = _mm_unpackhi_epi32(a, b);
    __m128i u = wide(up), r[4];

    r[0] = next(v, _mm_unpacklo_epi8(c, zero), _mm_and_si128(u, first));
    u = _mm_srli_si128(u, 4);
    r[1] = next(v, _mm_unpackhi_epi8(c, zero), _mm_and_si128(u, first));
    u = _mm_srli_si128(u, 4);
    r[2] = next(v, _mm_unpacklo_epi8(d, zero), _mm_and_si128(u, first));
    u = _mm_srli_si128(u, 4);
    r[3] = next(v, _mm_unpackhi_epi8(d, zero), u);
    a = _mm_packus_epi16(r[0], r[1]);
    b = _mm_packus_epi16(r[2], r[3]);
    c = _mm_unpacklo_epi16(a, b);
    d = _mm_unpackhi_epi16(a, b);
    a = _mm_unpacklo_epi16(c, d);
    b = _mm_unpackhi_epi16(c, d);
    store(x, a);
    store(x + step, _mm_srli_si128(a, 8));
    store(x + 2 * step, b);
    store(x + 3 * step, _mm_srli_si128(b, 8));
}

static void four_rows(uint8_t *x, const uint8_t *up, size_t w)
{
    struct wave v;
    size_t t = 0;

    begin(&v, x++, 2 * w + 1);
    for (; t < ROWS - 1; t++)
        at_the_side(&v, x, up, w, t);
    for (; t + 4 <= w; t += 4)
        four(&v, x + 2 * t, up + 2 * t, 2 * w - 1);
    for (; t < w + ROWS - 1; t++)
        at_the_side(&v, x, up, w, t);
}

/* How many of n rows from x on were done. A row that looks to one side only is
 * done sooner by itself. */
static size_t some_rows(uint8_t *x, const uint8_t *up, size_t w, size_t n)
{
    if (n < ROWS || x[0] < 3)
        return 0;
    for (size_t k = 0; k < ROWS; k++)
        if (x[k * (2 * w + 1)] > 4)
            return 0;
    four_rows(x, up, w);
    return ROWS;
}

#else

static size_t some_rows(uint8_t *x, const uint8_t *up, size_t w, size_t n)
{
    (void)x, (void)up, (void)w, (void)n;
    return 0;
}

#endif

int mp_png_unfilter(uint8_t *rows, size_t w, size_t h, size_t value_bytes)
{
    const size_t row = w * value_bytes, stride = row + 1;
    uint8_t *zeros = calloc(row, 1), *up = zeros;
    int good = zeros != NULL;

    for (size_t y = 0, n; y < h && good; y += n) {
        uint8_t *x = rows + y * stride;

        n = value_bytes == 2 ? some_rows(x, up, w, h - y) : 0;
        if (n == 0) {
            n = 1;
            good = value_bytes == 2 ? one_row(x + 1, up, row, x[0], 2)
                                    : one_row(x + 1, up, row, x[0], 1);
        }
        up = x + (n - 1) * stride + 1;
    }
    free(zeros);
    return good;
}
