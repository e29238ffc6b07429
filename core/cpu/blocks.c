/* SPDX-License-Identifier: MIT */
/*
 * blocks.c - convolutions by blocks of tiles. A tile is one result, or, for 3x3
 * convolutions with stride 1 as Winograd's F(4x4, 3x3), 4x4 results from 36
 * products in place of 144; in bf16, as F(2x2, 3x3), 2x2 from 16 in place of
 * 36:
 *
 *     y = A^T [(G g G^T) . (B^T d B)] A        for each channel of y and of x
 *
 * The points of F(2x2, 3x3) are 0, 1, -1 and infinity; those of F(4x4, 3x3) are
 * three pairs: 0 and infinity, LOW and -LOW, HIGH and -HIGH, with half of the
 * error that it has with 1 and 2 in their place.
 *
 * A task is a block of tiles. What each reads of x is copied into scratch: the
 * channels of all taps, or of the points of the transformed window of pixels.
 * Then, for WIDE channels of the result at a time, come the matrix products,
 * one for each point, and the way back with bias, residual and activation, all
 * of it near in the caches.
 *
 * Points of weights take four times the memory of weights. In f32 they are made
 * of a few channels at a time, for two rows of points, next to the products
 * that want them: that costs some per cent of a large map's time, and makes
 * small maps faster, where reading weights takes long. In bf16 they are made
 * before, or, of plain weights, there, too; plain ones in f32 are transposed.
 *
 * Sums are taken over a chunk of units at a time, and then of these sums: one
 * chain of additions over all of them would cost digits, the more so as the way
 * back from 36 points enlarges errors. The order is the same for every tile, so
 * that blocks and threads do not change results.
 *
 * A unit of what is multiplied is a number in f32, or a pair of bf16, two
 * channels, whose products are added up in f32. It is rounded after the
 * transformation, once.
 *
 * At the end, what is too small for any of that: a vector times a matrix.
 */
#include "cpu/simd.h"

#define ACROSS      6   /* points of a row, at most */
#define PAIR        12  /* of two rows: weights made at a time, in f32 */
#define MADE        16  /* in bf16: all of them */
#define MOST_POINTS 36  /* of all rows */
#define TAPS        9   /* that become points */
#define WIDE        32  /* channels of a result at a time */
#define CHUNK       64  /* units in one chain of additions */
#define CHUNK_BF16  128 /* likewise */
#define BLOCK       64  /* tiles of a task, at most */
#define PIXELS      128 /* or of one point, if all threads have a task then */
#define MOST_TILES  PIXELS

#define LOW  .70710678f  /* sqrt(1 / 2) */
#define HIGH 1.41421356f /* sqrt(2) */

/* Arrays of vectors live in registers only when all indices are constants. */
#define UNROLL _Pragma("GCC unroll 36")

/* ---- ways ---- */

/* Results of a tile, each way. */
static int side_of(enum k_way way)
{
    return way == K_DIRECT ? 1 : way == K_WINOGRAD ? 4 : 2;
}

/* Pixels of a window, likewise: as many points, each way. */
static int across_of(enum k_way way)
{
    return way == K_DIRECT ? 1 : side_of(way) + 2;
}

static int64_t points_of(enum k_way way)
{
    return across_of(way) * across_of(way);
}

/* Channels in a unit. */
static int64_t unit_of(enum k_way way)
{
    return way == K_WINOGRAD_BF16 ? 2 : 1;
}

static int64_t chunk_of(enum k_way way)
{
    return way == K_WINOGRAD_BF16 ? CHUNK_BF16 : CHUNK;
}

/* Units whose products are added up for a result, or for a point. */
static int64_t depth_of(int64_t c, int64_t taps, enum k_way way)
{
    return way == K_DIRECT ? c * taps : k_ceil_div(c, unit_of(way));
}

/* ---- weights: (K / WIDE), taps or in bf16 points, units of C, WIDE ----
 * Missing channels are 0. */

size_t k_conv_weights(int64_t k, int64_t c, int64_t taps, enum k_way way)
{
    int64_t each = way == K_WINOGRAD_BF16 ? points_of(way) : taps;

    return (size_t)(k_ceil_div(k, WIDE) * each * k_ceil_div(c, unit_of(way)) *
                    WIDE) *
           sizeof(float);
}

void k_conv_pack(void *to, const float *w, int64_t k, int64_t c, int64_t r,
                 int64_t s, enum k_way way)
{
    const struct k_layout plain = {.dim = {k, c, r, s},
                                   .stride = {c * r * s, r * s, s, 1}};
    int64_t h = way == K_WINOGRAD_BF16 ? across_of(way) : r;
    int64_t v = way == K_WINOGRAD_BF16 ? across_of(way) : s;
    int64_t pair = unit_of(way), unit = WIDE * pair;
    int64_t point = k_ceil_div(c, pair) * unit;
    const struct k_layout blocks = {
        .dim = {k, c, h, v},
        .stride = {h * v * point, unit, v * point, point},
        .blocks = (int)pair,
        .axis = {0, 1},
        .block = {WIDE, pair}};

    k_reorder((struct k_out){to, pair == 2 ? MP_BF16 : MP_F32}, &blocks, w,
              &plain);
}

/* ---- a block of tiles ---- */

/* A tile's picture and its first result there. */
struct place {
    int64_t n, y, x;
};

struct block {
    const struct k_conv *a;
    int64_t first, tiles; /* in the order of pictures, rows, columns */
    struct place place[MOST_TILES];
    int64_t points, depth, chunk;
    float *u; /* in the order of use: points, depth / chunk, tiles, chunk; if
                 weights are made here, depth / chunk first; units */
    float *v; /* PAIR or MADE points, chunk, WIDE: of weights, if they are made
                 here */
    float *t; /* CHUNK, taps, WIDE: those weights, if they are plain; in f32 */
    float *m; /* wides_of(way, depth), points, tiles, WIDE */
    int64_t u_point, u_chunk, m_point;
};

/* Points are one line further apart than they need: at powers of two they would
 * all want the same lines of the first cache. */
static int64_t u_point(int64_t tiles, int64_t depth, enum k_way way)
{
    int64_t chunks = way == K_WINOGRAD ? 1 : k_ceil_div(depth, chunk_of(way));

    return chunks * tiles * chunk_of(way) + 16;
}

static int64_t m_point(int64_t tiles)
{
    return tiles * WIDE + 16;
}

static int64_t v_point(enum k_way way)
{
    return chunk_of(way) * WIDE + 16;
}

static struct place place_of(const struct k_conv *a, int64_t i)
{
    int64_t n = side_of(a->way);
    int64_t across = k_ceil_div(a->yw, n), down = k_ceil_div(a->yh, n);

    return (struct place){i / across / down, i / across % down * n,
                          i % across * n};
}

/* ---- what a tile reads ---- */

/* The pixel of x at a tap of a result; NULL: beside it. */
static const void *pixel(const struct k_conv *a, struct k_in x, struct place t,
                         int64_t row, int64_t column)
{
    int64_t y = t.y * a->stride - a->top + row;
    int64_t v = t.x * a->stride - a->left + column;

    if (y < 0 || y >= a->h || v < 0 || v >= a->w)
        return NULL;
    return k_at(x, ((t.n * a->h + y) * a->w + v) * a->c);
}

/* The channels of a tap; at: where they belong in the depth. */
static void copy_tap(const struct block *b, int64_t tile, int64_t at,
                     const float *from)
{
    for (int64_t c = 0, n; c < b->a->c; c += n) {
        int64_t d = at + c;
        float *to = b->u + d / CHUNK * b->u_chunk + tile * CHUNK + d % CHUNK;

        n = k_min(CHUNK - d % CHUNK, b->a->c - c);
        if (from)
            memcpy(to, from + c, (size_t)n * sizeof *to);
        else
            memset(to, 0, (size_t)n * sizeof *to);
    }
}

static void copy_taps(const struct block *b, struct k_in x)
{
    const struct k_conv *a = b->a;

    for (int64_t i = 0; i < b->tiles; i++) {
        struct place t = b->place[i];

        for (int64_t j = 0; j < a->r * a->s; j++)
            copy_tap(b, i, j * a->c, pixel(a, x, t, j / a->s, j % a->s));
    }
}

/* ---- to points, and back ---- */

/* A window of pixels, in rows, of n channels as points: `point` units apart, up
 * to 15 more channels that are 0. */
typedef void windows(float *to, int64_t point, const void *const *from,
                     enum mp_dtype t, int64_t n);

struct result {
    struct k_out y;
    const float *bias;
    struct k_in residual; /* p NULL: none */
};

/* Weights for WIDE channels of the result: numbers from one tap to the next,
 * and from one unit to the next. */
struct taps {
    const float *p;
    int64_t tap, unit;
};

/* Those of n units as the points of two rows: one of three pairs. */
typedef void weights(float *to, int64_t point, struct taps w, int64_t n,
                     int64_t pair);

/* WIDE channels of the result from the k-th on, of all tiles of a block. */
typedef void finish(const struct block *b, const struct result *s,
                    const float *m, int64_t k);

/* Fetches what WIDE channels of a tile's results want, from the k-th on. */
K_INLINE void fetch_results(const struct k_conv *a, int side,
                            const struct result *s, struct place t, int64_t k)
{
    for (int64_t y = t.y; y < k_min(t.y + side, a->yh); y++)
        for (int64_t x = t.x; x < k_min(t.x + side, a->yw); x++) {
            int64_t at = ((t.n * a->yh + y) * a->yw + x) * a->k + k;
            const float *to = k_at((struct k_in){s->y.p, s->y.t}, at);

            __builtin_prefetch(to, 1);
            __builtin_prefetch(to + 16, 1);
            if (s->residual.p) {
                const float *from = k_at(s->residual, at);

                __builtin_prefetch(from);
                __builtin_prefetch(from + 16);
            }
        }
}

#define V(name) name##_8
#define LANES   8
#include "cpu/tiles.h"
#undef V
#undef LANES
#define V(name) name##_16
#define LANES   16
#include "cpu/tiles.h"
#undef V
#undef LANES

/* What a way does with tiles. */
struct tiles {
    windows *windows; /* NULL: copies taps */
    weights *weights; /* NULL: they are points, or taps */
    finish *finish;
};

/* For each kind of CPU. Vectors are no longer than registers: others would be
 * kept in memory. */
#define TRANSFORMS(cpu)                                                        \
    TARGET static void windows_##cpu(float *to, int64_t point,                 \
                                     const void *const *from, enum mp_dtype t, \
                                     int64_t n)                                \
    {                                                                          \
        V(windows)(to, point, from, t, n);                                     \
    }                                                                          \
    TARGET static void weights_##cpu(float *to, int64_t point, struct taps w,  \
                                     int64_t n, int64_t pair)                  \
    {                                                                          \
        V(weights)(to, point, w, n, pair);                                     \
    }
#define FINISH(side, cpu)                                                      \
    TARGET static void finish_##side##_##cpu(const struct block *b,            \
                                             const struct result *s,           \
                                             const float *m, int64_t k)        \
    {                                                                          \
        V(finish)(b, side, s, m, k);                                           \
    }
#define TILES(cpu)                                                             \
    TRANSFORMS(cpu)                                                            \
    FINISH(1, cpu)                                                             \
    FINISH(4, cpu)                                                             \
    static struct tiles tiles_##cpu(enum k_way way)                            \
    {                                                                          \
        if (way == K_DIRECT)                                                   \
            return (struct tiles){NULL, NULL, finish_1_##cpu};                 \
        return (struct tiles){windows_##cpu, weights_##cpu, finish_4_##cpu};   \
    }

#define V(name) name##_8
#define TARGET
TILES(plain)
#if defined(__x86_64__)
#undef TARGET
#define TARGET K_TARGET_AVX2
TILES(avx2)
#undef TARGET
#undef V
#define TARGET  K_TARGET_AVX512
#define V(name) name##_16
TILES(avx512)
FINISH(2, avx512) /* for bf16 */
#endif
#undef TARGET
#undef V

/* ---- the products ---- */

/* For `rows` tiles: m is, or grows by if `more`, u times w over a depth of n.
 * Meanwhile `ahead` is fetched: n times, each `step` further on. */
struct ahead {
    const float *p;
    int64_t step;
};
typedef void products(float *m, int64_t rows, const float *u, const float *w,
                      int64_t n, int more, struct ahead ahead);

#if defined(__x86_64__)
#include <immintrin.h>

/* The rows of a tile of the product: a number known when compiling. */
#define ROWS_CASE(n, call)                                                     \
    case n: {                                                                  \
        enum { rows = n };                                                     \
        call;                                                                  \
    } break

/* 14 x 2 sums, 2 vectors of w and one of u take 31 of 32 registers. */
#define ROWS_AVX512 14

K_TARGET_AVX512 K_INLINE void zero(__m512 sum[][2], int rows)
{
    UNROLL
    for (int r = 0; r < rows; r++)
        sum[r][0] = sum[r][1] = _mm512_setzero_ps();
}

/* What the next steps want: the rows that follow are too short for CPUs to
 * foresee. */
K_INLINE void fetch(const float *u, struct ahead ahead, int64_t c)
{
    __builtin_prefetch(u + 16 * c);
    __builtin_prefetch(ahead.p + ahead.step * c);
}

K_TARGET_AVX512 K_INLINE void add_f32(__m512 sum[][2], int rows, const float *u,
                                      const float *w, int64_t n,
                                      struct ahead ahead)
{
    for (int64_t c = 0; c < n; c++, w += WIDE) {
        __m512 low = _mm512_load_ps(w), high = _mm512_load_ps(w + 16);

        fetch(u + rows * CHUNK, ahead, c);
        UNROLL
        for (int r = 0; r < rows; r++) {
            __m512 d = _mm512_set1_ps(u[r * CHUNK + c]);

            sum[r][0] = _mm512_fmadd_ps(d, low, sum[r][0]);
            sum[r][1] = _mm512_fmadd_ps(d, high, sum[r][1]);
        }
    }
}

K_TARGET_BF16 K_INLINE void add_bf16(__m512 sum[][2], int rows, const float *u,
                                     const float *w, int64_t n,
                                     struct ahead ahead)
{
    for (int64_t c = 0; c < n; c++, w += WIDE) {
        __m512bh low = (__m512bh)_mm512_load_ps(w);
        __m512bh high = (__m512bh)_mm512_load_ps(w + 16);

        fetch(u + rows * CHUNK_BF16, ahead, c);
        UNROLL
        for (int r = 0; r < rows; r++) {
            __m512bh d = (__m512bh)_mm512_set1_ps(u[r * CHUNK_BF16 + c]);

            sum[r][0] = _mm512_dpbf16_ps(sum[r][0], d, low);
            sum[r][1] = _mm512_dpbf16_ps(sum[r][1], d, high);
        }
    }
}

K_TARGET_AVX512 K_INLINE void keep(float *m, __m512 sum[][2], int rows,
                                   int more)
{
    UNROLL
    for (int r = 0; r < rows; r++, m += WIDE) {
        if (more) {
            sum[r][0] = _mm512_add_ps(sum[r][0], _mm512_load_ps(m));
            sum[r][1] = _mm512_add_ps(sum[r][1], _mm512_load_ps(m + 16));
        }
        _mm512_store_ps(m, sum[r][0]);
        _mm512_store_ps(m + 16, sum[r][1]);
    }
}

/* The same for both types: add is add_f32 or add_bf16. */
#define PRODUCT(add)                                                           \
    do {                                                                       \
        __m512 sum[rows][2];                                                   \
                                                                               \
        zero(sum, rows);                                                       \
        add(sum, rows, u, w, n, ahead);                                        \
        keep(m, sum, rows, more);                                              \
    } while (0)

#define PRODUCTS(add)                                                          \
    switch (count) {                                                           \
        ROWS_CASE(1, PRODUCT(add));                                            \
        ROWS_CASE(2, PRODUCT(add));                                            \
        ROWS_CASE(3, PRODUCT(add));                                            \
        ROWS_CASE(4, PRODUCT(add));                                            \
        ROWS_CASE(5, PRODUCT(add));                                            \
        ROWS_CASE(6, PRODUCT(add));                                            \
        ROWS_CASE(7, PRODUCT(add));                                            \
        ROWS_CASE(8, PRODUCT(add));                                            \
        ROWS_CASE(9, PRODUCT(add));                                            \
        ROWS_CASE(10, PRODUCT(add));                                           \
        ROWS_CASE(11, PRODUCT(add));                                           \
        ROWS_CASE(12, PRODUCT(add));                                           \
        ROWS_CASE(13, PRODUCT(add));                                           \
        ROWS_CASE(14, PRODUCT(add));                                           \
    }

K_TARGET_AVX512 static void products_avx512(float *m, int64_t count,
                                            const float *u, const float *w,
                                            int64_t n, int more,
                                            struct ahead ahead)
{
    PRODUCTS(add_f32);
}

K_TARGET_BF16 static void products_bf16(float *m, int64_t count, const float *u,
                                        const float *w, int64_t n, int more,
                                        struct ahead ahead)
{
    PRODUCTS(add_bf16);
}

/* Stores a point; what is left is the error that rounding makes. */
K_TARGET_BF16 K_INLINE void narrow(uint16_t *to, k_vec16 *d)
{
    __m256bh h = _mm512_cvtneps_pbh((__m512)*d);
    __m512i wide = _mm512_cvtepu16_epi32((__m256i)h);

    memcpy(to, &h, sizeof h);
    *d = (k_vec16)_mm512_slli_epi32(wide, 16) - *d;
}

/* Points of d, four in a row, each rounded so that it makes up for the errors
 * of those before as well as it can: of weights that have nothing to do with
 * each other, two results have the error
 *
 *     (e0 + s)^2 + 2 t^2 + 2 s^2 + (t - e3)^2, s, t = (e1 + e2, e1 - e2) / 2
 *
 * where e are those of the points. Likewise of four rows. What is left in d are
 * the errors. */
K_TARGET_BF16 K_INLINE void narrow_row(uint16_t *to, int64_t point, k_vec16 *d)
{
    k_vec16 s, t;

    narrow(to + point, &d[1]);
    narrow(to + 2 * point, &d[2]);
    s = (d[1] + d[2]) / 2;
    t = (d[1] - d[2]) / 2;
    d[0] -= s;
    d[3] += t;
    narrow(to, &d[0]);
    narrow(to + 3 * point, &d[3]);
    d[0] -= s;
    d[3] += t;
}

/* point: here in numbers */
K_TARGET_BF16 K_INLINE void window_bf16(uint16_t *to, int64_t point,
                                        const void *const *from,
                                        enum mp_dtype t, int64_t c, int64_t n)
{
    k_vec16 d[16];

    transform_16(d, 4, from, t, c, n);
    to += c;
    narrow_row(to + 4 * point, point, d + 4);
    narrow_row(to + 8 * point, point, d + 8);
    UNROLL
    for (int i = 0; i < 4; i++) {
        d[i] -= (d[4 + i] + d[8 + i]) / 2;
        d[12 + i] += (d[4 + i] - d[8 + i]) / 2;
    }
    narrow_row(to, point, d);
    narrow_row(to + 12 * point, point, d + 12);
}

K_TARGET_BF16 static void windows_bf16(float *u, int64_t point,
                                       const void *const *from, enum mp_dtype t,
                                       int64_t n)
{
    uint16_t *to = (uint16_t *)u;
    int64_t c = 0;

    for (; c + 16 <= n && t == MP_BF16; c += 16)
        window_bf16(to, 2 * point, from, MP_BF16, c, 16);
    for (; c < n; c += 16)
        window_bf16(to, 2 * point, from, t, c, k_min(16, n - c));
}

/* 6 x 2 sums of half as many channels take 15 of 16. */
#define ROWS_AVX2 6

K_TARGET_AVX2 K_INLINE void step_avx2(__m256 sum[][2], int rows, const float *u,
                                      const float *w)
{
    __m256 low = _mm256_load_ps(w), high = _mm256_load_ps(w + 8);

    UNROLL
    for (int r = 0; r < rows; r++) {
        __m256 d = _mm256_set1_ps(u[r * CHUNK]);

        sum[r][0] = _mm256_fmadd_ps(d, low, sum[r][0]);
        sum[r][1] = _mm256_fmadd_ps(d, high, sum[r][1]);
    }
}

/* One half of the channels; later: what comes after u, of which a part is
 * fetched. */
K_TARGET_AVX2 K_INLINE void half_avx2(float *m, int rows, const float *u,
                                      const float *w, int64_t n, int more,
                                      struct ahead ahead, const float *later)
{
    const float *end = u + n / 4 * 4;
    __m256 sum[ROWS_AVX2][2];

    UNROLL
    for (int r = 0; r < rows; r++)
        sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    for (; u < end; u += 4, w += 4 * WIDE, later += 16) {
        __builtin_prefetch(later);
        step_avx2(sum, rows, u, w);
        __builtin_prefetch(ahead.p, 0, 2);
        step_avx2(sum, rows, u + 1, w + WIDE);
        step_avx2(sum, rows, u + 2, w + 2 * WIDE);
        __builtin_prefetch(ahead.p + ahead.step, 0, 2);
        step_avx2(sum, rows, u + 3, w + 3 * WIDE);
        ahead.p += 2 * ahead.step;
    }
    for (end += n % 4; u < end; u++, w += WIDE)
        step_avx2(sum, rows, u, w);
    UNROLL
    for (int r = 0; r < rows; r++, m += WIDE) {
        if (more) {
            sum[r][0] = _mm256_add_ps(sum[r][0], _mm256_load_ps(m));
            sum[r][1] = _mm256_add_ps(sum[r][1], _mm256_load_ps(m + 8));
        }
        _mm256_store_ps(m, sum[r][0]);
        _mm256_store_ps(m + 8, sum[r][1]);
    }
}

K_TARGET_AVX2 K_INLINE void product_avx2(float *m, int rows, const float *u,
                                         const float *w, int64_t n, int more,
                                         struct ahead ahead)
{
    const float *later = u + rows * CHUNK;

    half_avx2(m, rows, u, w, n, more, ahead, later);
    ahead.p += n / 2 * ahead.step;
    half_avx2(m + WIDE / 2, rows, u, w + WIDE / 2, n, more, ahead,
              later + 16 * CHUNK / 4);
}

K_TARGET_AVX2 static void products_avx2(float *m, int64_t count, const float *u,
                                        const float *w, int64_t n, int more,
                                        struct ahead ahead)
{
    switch (count) {
        ROWS_CASE(1, product_avx2(m, rows, u, w, n, more, ahead));
        ROWS_CASE(2, product_avx2(m, rows, u, w, n, more, ahead));
        ROWS_CASE(3, product_avx2(m, rows, u, w, n, more, ahead));
        ROWS_CASE(4, product_avx2(m, rows, u, w, n, more, ahead));
        ROWS_CASE(5, product_avx2(m, rows, u, w, n, more, ahead));
        ROWS_CASE(6, product_avx2(m, rows, u, w, n, more, ahead));
    }
}
#endif

static void products_plain(float *m, int64_t rows, const float *u,
                           const float *w, int64_t n, int more,
                           struct ahead ahead)
{
    (void)ahead;
    for (int64_t r = 0; r < rows; r++, m += WIDE, u += CHUNK) {
        float sum[WIDE] = {0};

        for (int64_t c = 0; c < n; c++)
            for (int k = 0; k < WIDE; k++)
                sum[k] += u[c] * w[c * WIDE + k];
        for (int k = 0; k < WIDE; k++)
            m[k] = more ? m[k] + sum[k] : sum[k];
    }
}

struct engine {
    int64_t rows; /* tiles, at most, that it multiplies at a time */
    struct tiles tiles;
    products *products;
};

static struct engine engine(enum k_way way)
{
#if defined(__x86_64__)
    if (way == K_WINOGRAD_BF16)
        return (struct engine){
            ROWS_AVX512, {windows_bf16, NULL, finish_2_avx512}, products_bf16};
    if (k_level() >= K_AVX512)
        return (struct engine){ROWS_AVX512, tiles_avx512(way), products_avx512};
    if (k_level() == K_AVX2)
        return (struct engine){ROWS_AVX2, tiles_avx2(way), products_avx2};
#endif
    return (struct engine){1, tiles_plain(way), products_plain};
}

int k_has_conv(void)
{
    return k_level() >= K_AVX2;
}

/* Fetches the pixels of a tile that the one before it has not. */
static void fetch_window(const struct k_conv *a, struct k_in x, struct place t,
                         int across)
{
    int64_t bytes = a->c * (int64_t)k_size(x.t);

    for (int row = 0; row < across; row++)
        for (int column = 2; column < across; column++) {
            const char *p = pixel(a, x, t, row, column);

            for (int64_t i = 0; p && i < bytes; i += 64)
                __builtin_prefetch(p + i);
        }
}

static void copy_windows(const struct block *b, const struct engine *e,
                         struct k_in x)
{
    static const char zeros[2 * CHUNK_BF16 * sizeof(float)];
    int64_t most = b->chunk * unit_of(b->a->way); /* channels */
    size_t step = (size_t)most * k_size(x.t);
    int across = across_of(b->a->way);

    for (int64_t i = 0; i < b->tiles; i++) {
        const char *from[MOST_POINTS];
        const void *at[MOST_POINTS];
        struct place t = b->place[i];

        for (int j = 0; j < b->points; j++)
            from[j] = pixel(b->a, x, t, j / across, j % across);
        if (i + 1 < b->tiles)
            fetch_window(b->a, x, b->place[i + 1], across);
        for (int64_t c = 0; c < b->a->c; c += most) {
            for (int j = 0; j < b->points; j++) {
                at[j] = from[j] ? from[j] : zeros;
                from[j] += from[j] ? step : 0;
            }
            e->tiles.windows(b->u + c / most * b->u_chunk + i * b->chunk,
                             b->u_point, at, x.t, k_min(most, b->a->c - c));
        }
    }
}

/* What comes next: `rows` times n numbers, `row` apart. */
struct later {
    const float *p;
    int64_t n, rows, row;
};

/* One chunk of the depth, for all tiles and WIDE channels. Meanwhile what comes
 * later is fetched, evenly. */
static void add_chunk(const struct block *b, const struct engine *e, float *m,
                      const float *u, const float *w, int64_t n, int more,
                      struct later later)
{
    int64_t groups = k_ceil_div(b->tiles, e->rows), i = 0;
    int64_t each = k_ceil_div(groups, later.rows) * n;
    struct ahead ahead = {later.p, k_min(k_ceil_div(later.n, each), 16)};

    for (int64_t g = 0; g < groups; g++) {
        int64_t end = b->tiles * (g + 1) / groups;

        if (g * later.rows % groups < later.rows)
            ahead.p = later.p + g * later.rows / groups * later.row;
        e->products(m + i * WIDE, end - i, u + i * b->chunk, w, n, more, ahead);
        ahead.p += n * ahead.step;
        i = end;
    }
}

/* Times WIDE channels for one reading of all points of a block's tiles, which
 * are too many for the second cache if the depth is large; so is all of m. */
static int64_t wides_of(enum k_way way, int64_t depth)
{
    int64_t n = depth / 128;

    if (way == K_WINOGRAD) /* weights of so many points fill that cache */
        return 1;
    return n < 4 ? 4 : k_min(n, 16);
}

/* All tiles of a block at point p, for `wides` times WIDE channels. */
static void at_point(const struct block *b, const struct engine *e, int64_t p,
                     const float *w, int64_t wides)
{
    const float *u = b->u + p * b->u_point;
    int64_t step = b->points * b->depth * WIDE;

    w += p * b->depth * WIDE;
    for (int64_t d = 0; d < b->depth; d += b->chunk) {
        int64_t n = k_min(b->chunk, b->depth - d);

        for (int64_t i = 0; i < wides; i++) {
            const float *now = w + i * step;
            const float *next = i + 1 < wides ? now + step : w + n * WIDE;

            add_chunk(b, e, b->m + (i * b->points + p) * b->m_point, u, now, n,
                      d > 0, (struct later){next, n * WIDE, 1, 0});
        }
        u += b->u_chunk;
        w += n * WIDE;
    }
}

/* n channels of plain weights, for WIDE of the result or less, and where those
 * of the next one lie. */
struct plain {
    const float *p;
    int64_t rows, row, n;
};

/* As taps of their own. */
static struct taps turned(const struct block *b, struct plain w)
{
    if (w.rows < WIDE)
        memset(b->t, 0, (size_t)(w.n * TAPS * WIDE) * sizeof *b->t);
    k_turn(b->t, WIDE, w.p, w.row, w.rows, w.n * TAPS);
    return (struct taps){b->t, WIDE, TAPS * WIDE};
}

/* As points of bf16, all of them. */
static void make_points(const struct block *b, struct plain w)
{
    int64_t point = 2 * v_point(b->a->way);
    const struct k_layout taps = {.dim = {w.rows, w.n, 3, 3},
                                  .stride = {w.row, TAPS, 3, 1}};
    const struct k_layout points = {.dim = {w.rows, w.n, 4, 4},
                                    .stride = {0, 2 * WIDE, 4 * point, point},
                                    .blocks = 2,
                                    .axis = {0, 1},
                                    .block = {WIDE, 2}};

    k_reorder_block((struct k_out){b->v, MP_BF16}, &points, w.p, &taps);
}

/* Plain weights that come next: their rows, shared out to the points. */
static struct later rows_after(const struct block *b, struct plain w, int64_t p)
{
    int64_t first = w.rows * p / b->points, end = w.rows * (p + 1) / b->points;

    return (struct later){w.p + first * w.row, w.n * TAPS,
                          end > first ? end - first : 1, w.row};
}

/* All points, of WIDE channels from the k-th on, whose weights become points on
 * the way, a pair of rows at a time: those of all would fill the second cache.
 * Meanwhile the weights that come then are fetched: while four points are at
 * work, a tap of them; plain ones, row by row. */
static void at_points(const struct block *b, const struct engine *e,
                      const float *w, int64_t k)
{
    enum k_way way = b->a->way;
    int64_t unit = unit_of(way), row = b->a->c * TAPS;
    int64_t rows = k_min(WIDE, b->a->k - k), tap = b->depth * WIDE;
    int64_t made = way == K_WINOGRAD ? PAIR : MADE;
    const float *u = b->u;

    w += k * row;
    for (int64_t d = 0, n; d < b->depth; d += n) {
        struct plain plain = {w, rows, row, 0};
        struct taps now = {w, tap, WIDE};

        n = k_min(b->chunk, b->depth - d);
        plain.n = k_min(n * unit, b->a->c - d * unit);
        if (way == K_WINOGRAD_BF16)
            make_points(b, plain);
        else if (b->a->plain)
            now = turned(b, plain);
        w += b->a->plain ? plain.n * TAPS : n * WIDE;
        for (int64_t p = 0; p < b->points; p++) {
            struct later later = {w + p / 4 * tap + p % 4 * n * (WIDE / 4),
                                  n * (WIDE / 4), 1, 0};

            if (b->a->plain)
                later = rows_after(b, (struct plain){w, rows, row, plain.n}, p);
            if (way == K_WINOGRAD && p % PAIR == 0)
                e->tiles.weights(b->v, v_point(way), now, n, p / PAIR);
            add_chunk(b, e, b->m + p * b->m_point, u + p * b->u_point,
                      b->v + p % made * v_point(way), n, d > 0, later);
        }
        u += b->u_chunk;
    }
}

/* ---- all of it ---- */

/* Who does what: blocks of tiles, and of channels of the result where there are
 * few tiles. */
struct shares {
    int64_t tiles, block, blocks;
    int64_t channels, parts; /* of the result; a multiple of WIDE */
    int64_t u_point, u_chunk, m_point, u, v, t, scratch; /* floats */
};

static struct shares shares_of(const struct k_conv *a, int threads)
{
    int64_t n = side_of(a->way), points = points_of(a->way);
    int64_t depth = depth_of(a->c, a->r * a->s, a->way);
    int64_t wides = k_ceil_div(a->k, WIDE), each;
    struct shares s = {0};

    s.tiles = a->n * k_ceil_div(a->yh, n) * k_ceil_div(a->yw, n);
    s.blocks = k_ceil_div(s.tiles, BLOCK);
    if (a->way == K_DIRECT && s.blocks > threads) {
        s.blocks = k_ceil_div(s.tiles, PIXELS);
        s.blocks = s.blocks > threads ? s.blocks : threads;
    }
    each = k_ceil_div(wides, k_min(k_ceil_div(threads, s.blocks), wides));
    s.channels = each * WIDE;
    s.parts = k_ceil_div(wides, each);
    if (s.parts == 1) /* as many for every thread */
        s.blocks = k_ceil_div(s.blocks, threads) * threads;
    s.block = k_ceil_div(s.tiles, s.blocks);
    s.blocks = k_ceil_div(s.tiles, s.block);
    s.u_point = u_point(s.block, depth, a->way);
    s.u_chunk =
        a->way == K_WINOGRAD ? points * s.u_point : s.block * chunk_of(a->way);
    s.u = points * s.u_point;
    s.u *= a->way == K_WINOGRAD ? k_ceil_div(depth, CHUNK) : 1;
    s.m_point = m_point(s.block);
    s.v = a->way == K_DIRECT     ? 0
          : a->way == K_WINOGRAD ? PAIR * v_point(a->way)
                                 : MADE * v_point(a->way);
    s.t = a->way == K_WINOGRAD ? CHUNK * TAPS * WIDE : 0;
    each = k_min(wides_of(a->way, depth), each);
    s.scratch = s.u + s.v + s.t + points * each * s.m_point;
    return s;
}

size_t k_conv_scratch(const struct k_conv *a, int threads)
{
    int64_t most = 0;

    for (int t = 1; t <= threads; t++) {
        int64_t all = t * shares_of(a, t).scratch;

        most = all > most ? all : most;
    }
    return (size_t)most * sizeof(float);
}

int k_conv_plain(const struct k_conv *a)
{
    return a->way == K_WINOGRAD ||
           (a->way == K_WINOGRAD_BF16 && shares_of(a, 1).blocks == 1);
}

static void run(const struct block *b, const struct engine *e,
                const struct result *s, struct k_in x, const float *w,
                int64_t k, int64_t end)
{
    const struct k_conv *a = b->a;

    if (e->tiles.windows)
        copy_windows(b, e, x);
    else
        copy_taps(b, x);
    for (int64_t wides; k < end; k += wides * WIDE) {
        wides = k_min(wides_of(a->way, b->depth), k_ceil_div(end - k, WIDE));
        wides = a->plain ? 1 : wides;
        if (e->tiles.weights || a->plain)
            at_points(b, e, w, k);
        else
            for (int64_t p = 0; p < b->points; p++)
                at_point(b, e, p, w + k * b->points * b->depth, wides);
        for (int64_t i = 0; i < wides; i++)
            e->tiles.finish(b, s, b->m + i * b->points * b->m_point,
                            k + i * WIDE);
    }
}

void k_conv(const struct k_conv *a, struct k_out y, struct k_in x,
            const void *w, const float *bias, struct k_in residual,
            void *scratch)
{
    struct shares all = shares_of(a, omp_get_max_threads());
    struct result s = {y, bias, residual};
    struct engine e = engine(a->way);

#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < all.blocks * all.parts; i++) {
        int64_t first = i / all.parts * all.block;
        int64_t k = i % all.parts * all.channels;
        struct block b = {
            .a = a,
            .first = first,
            .tiles = k_min(all.block, all.tiles - first),
            .points = points_of(a->way),
            .depth = depth_of(a->c, a->r * a->s, a->way),
            .chunk = chunk_of(a->way),
            .u_point = all.u_point,
            .u_chunk = all.u_chunk,
            .m_point = all.m_point,
        };

        for (int64_t j = 0; j < b.tiles; j++)
            b.place[j] = place_of(a, first + j);
        b.u = (float *)scratch + omp_get_thread_num() * all.scratch;
        b.v = b.u + all.u;
        b.t = b.v + all.v;
        b.m = b.t + all.t;
        run(&b, &e, &s, x, w, k, k_min(a->k, k + all.channels));
    }
}

/* ---- products of few rows ---- */

K_MULTI(dot, (float *sum, const float *x, const float *w, int64_t n),
        (sum, x, w, n))
{
    float part[32] = {0};
    int64_t i = 0;

    for (; i + 32 <= n; i += 32)
#pragma omp simd
        for (int j = 0; j < 32; j++)
            part[j] += x[i + j] * w[i + j];
    for (; i < n; i++)
        part[i % 32] += x[i] * w[i];
    for (int half = 16; half > 0; half /= 2)
        for (int j = 0; j < half; j++)
            part[j] += part[j + half];
    *sum = part[0];
}

void k_product(float *y, const float *x, const float *w, const float *bias,
               int64_t rows, int64_t k, int64_t c)
{
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < k; i++)
        for (int64_t r = 0; r < rows; r++) {
            float *sum = y + r * k + i;

            dot(sum, x + r * c, w + i * c, c);
            *sum += bias ? bias[i] : 0;
        }
}
