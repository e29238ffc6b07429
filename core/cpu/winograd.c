/* SPDX-License-Identifier: MIT */
/*
 * winograd.c - 3x3 convolutions with stride 1 as F(2x2, 3x3): 16 products for a
 * tile of 2x2 results in place of 36.
 *
 *     y = A^T [(G g G^T) . (B^T d B)] A        for each channel of y and of x
 *
 * A task is a block of tiles. Their windows d of 4x4 pixels are transformed
 * into scratch; then, for WIDE channels of the result at a time, come 16
 * matrix products, one for each point of the window, and the way back with
 * bias, residual and activation, all of it near in the caches.
 *
 * Sums are taken over CHUNK channels at a time, and then of these sums: one
 * chain of additions over all channels would cost digits. The order is the
 * same for every tile, so that blocks and threads do not change results.
 */
#include "cpu/simd.h"

#define POINTS 16
#define WIDE   32  /* channels of a result at a time */
#define CHUNK  128 /* channels of x in one chain of additions */
#define BLOCK  56  /* tiles of a task, at most */
#define LEAST  14  /* and at least, if there are */

/* Arrays of vectors live in registers only when all indices are constants. */
#define UNROLL _Pragma("GCC unroll 16")

/* ---- weights: (K / WIDE), POINTS, C, WIDE; missing channels are 0 ---- */

size_t k_winograd_weights(int64_t k, int64_t c)
{
    return (size_t)(k_ceil_div(k, WIDE) * POINTS * c * WIDE) * sizeof(float);
}

/* Three taps, `step` apart, become four: G g. */
K_INLINE void widen(double *to, const double *g, int step)
{
    double even = (g[0] + g[2 * step]) / 2, odd = g[step] / 2;

    to[0] = g[0];
    to[step] = even + odd;
    to[2 * step] = even - odd;
    to[3 * step] = g[2 * step];
}

/* One channel of x, `count` of y. In double, rounded once. */
static void pack(float *to, int64_t point, const float *w, int64_t step,
                 int64_t count)
{
    for (int64_t i = 0; i < WIDE; i++) {
        double g[9], rows[12], all[POINTS];

        for (int j = 0; j < 9; j++)
            g[j] = i < count ? (double)w[i * step + j] : 0;
        for (int j = 0; j < 3; j++)
            widen(rows + j, g + j, 3);
        for (int j = 0; j < 4; j++)
            widen(all + 4 * j, rows + 3 * j, 1);
        for (int p = 0; p < POINTS; p++)
            to[p * point + i] = (float)all[p];
    }
}

void k_winograd_pack(float *to, const float *w, int64_t k, int64_t c)
{
#pragma omp parallel for schedule(static) collapse(2)
    for (int64_t i = 0; i < k; i += WIDE)
        for (int64_t j = 0; j < c; j++)
            pack(to + i * POINTS * c + j * WIDE, c * WIDE, w + (i * c + j) * 9,
                 c * 9, k - i);
}

/* ---- a block of tiles ---- */

struct block {
    const struct k_winograd *a;
    int64_t first, tiles; /* in the order of pictures, rows, columns */
    float *u;             /* POINTS, C / CHUNK, tiles, CHUNK */
    float *m;             /* POINTS, tiles, WIDE */
    int64_t u_point, m_point;
};

/* Points are one line further apart than they need: at powers of two they would
 * all want the same lines of the first cache. */
static int64_t u_point(int64_t tiles, int64_t c)
{
    return k_ceil_div(c, CHUNK) * tiles * CHUNK + 16;
}

static int64_t m_point(int64_t tiles)
{
    return tiles * WIDE + 16;
}

/* A tile's picture and its first result there. */
struct place {
    int64_t n, y, x;
};

static struct place place_of(const struct block *b, int64_t tile)
{
    int64_t across = k_ceil_div(b->a->yw, 2), down = k_ceil_div(b->a->yh, 2);
    int64_t i = b->first + tile;

    return (struct place){i / across / down, i / across % down * 2,
                          i % across * 2};
}

/* ---- into the points: B^T d B ---- */

K_INLINE void differences(k_vec16 *d, int step)
{
    k_vec16 first = d[0] - d[2 * step], last = d[step] - d[3 * step];
    k_vec16 sum = d[step] + d[2 * step];

    d[2 * step] -= d[step];
    d[0] = first;
    d[step] = sum;
    d[3 * step] = last;
}

/* n numbers, 16 at most, and zeros. */
K_INLINE void load(k_vec16 *v, const float *x, int64_t n)
{
    if (n < 16)
        *v = (k_vec16){0};
    memcpy(v, x, (size_t)n * sizeof(float));
}

/* n channels, 16 at most, of a window. */
K_INLINE void window(float *to, int64_t point, const float *const *from,
                     int64_t c, int64_t n)
{
    k_vec16 d[POINTS];

    UNROLL
    for (int i = 0; i < POINTS; i++)
        load(&d[i], from[i] + c, n);
    UNROLL
    for (int i = 0; i < 4; i++)
        differences(d + i, 4);
    UNROLL
    for (int i = 0; i < 4; i++)
        differences(d + 4 * i, 1);
    UNROLL
    for (int i = 0; i < POINTS; i++)
        memcpy(to + i * point, &d[i], sizeof d[i]);
}

/* A window's pixels, the channels from c on: in x, or zeros beside it. */
static void pixels(const float *from[POINTS], const struct k_winograd *a,
                   struct place t, const float *x)
{
    static const float zeros[CHUNK];

    for (int i = 0; i < POINTS; i++) {
        int64_t y = t.y - a->top + i / 4, v = t.x - a->left + i % 4;

        from[i] = y < 0 || y >= a->h || v < 0 || v >= a->w
                      ? zeros
                      : x + ((t.n * a->h + y) * a->w + v) * a->c;
    }
}

K_MULTI(windows, (const struct block *b, const float *x), (b, x))
{
    for (int64_t i = 0; i < b->tiles; i++) {
        struct place t = place_of(b, i);

        for (int64_t c = 0; c < b->a->c; c += CHUNK) {
            int64_t n = k_min(CHUNK, b->a->c - c), j = 0;
            float *to = b->u + (c / CHUNK * b->tiles + i) * CHUNK;
            const float *from[POINTS];

            pixels(from, b->a, t, x + c);
            for (; j + 16 <= n; j += 16)
                window(to + j, b->u_point, from, j, 16);
            if (j < n)
                window(to + j, b->u_point, from, j, n - j);
        }
    }
}

/* ---- the products ---- */

/* For `rows` tiles: m is, or grows by if `more`, u times w over n channels. */
typedef void products(float *m, int64_t rows, const float *u, const float *w,
                      int64_t n, int more);

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

K_TARGET_AVX512 K_INLINE void product_avx512(float *m, int rows, const float *u,
                                             const float *w, int64_t n,
                                             int more)
{
    __m512 sum[ROWS_AVX512][2];

    UNROLL
    for (int r = 0; r < rows; r++)
        sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    for (int64_t c = 0; c < n; c++, w += WIDE) {
        __m512 low = _mm512_load_ps(w), high = _mm512_load_ps(w + 16);

        /* the rows that follow: too short for CPUs to foresee */
        __builtin_prefetch(u + rows * CHUNK + 16 * c);
        UNROLL
        for (int r = 0; r < rows; r++) {
            __m512 d = _mm512_set1_ps(u[r * CHUNK + c]);

            sum[r][0] = _mm512_fmadd_ps(d, low, sum[r][0]);
            sum[r][1] = _mm512_fmadd_ps(d, high, sum[r][1]);
        }
    }
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

K_TARGET_AVX512 static void products_avx512(float *m, int64_t rows_,
                                            const float *u, const float *w,
                                            int64_t n, int more)
{
    switch (rows_) {
        ROWS_CASE(1, product_avx512(m, rows, u, w, n, more));
        ROWS_CASE(2, product_avx512(m, rows, u, w, n, more));
        ROWS_CASE(3, product_avx512(m, rows, u, w, n, more));
        ROWS_CASE(4, product_avx512(m, rows, u, w, n, more));
        ROWS_CASE(5, product_avx512(m, rows, u, w, n, more));
        ROWS_CASE(6, product_avx512(m, rows, u, w, n, more));
        ROWS_CASE(7, product_avx512(m, rows, u, w, n, more));
        ROWS_CASE(8, product_avx512(m, rows, u, w, n, more));
        ROWS_CASE(9, product_avx512(m, rows, u, w, n, more));
        ROWS_CASE(10, product_avx512(m, rows, u, w, n, more));
        ROWS_CASE(11, product_avx512(m, rows, u, w, n, more));
        ROWS_CASE(12, product_avx512(m, rows, u, w, n, more));
        ROWS_CASE(13, product_avx512(m, rows, u, w, n, more));
        ROWS_CASE(14, product_avx512(m, rows, u, w, n, more));
    }
}

/* 6 x 2 sums of half as many channels take 15 of 16. */
#define ROWS_AVX2 6

K_TARGET_AVX2 K_INLINE void product_avx2(float *m, int rows, const float *u,
                                         const float *w, int64_t n, int more)
{
    __m256 sum[ROWS_AVX2][2];

    UNROLL
    for (int r = 0; r < rows; r++)
        sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    for (int64_t c = 0; c < n; c++, w += WIDE) {
        __m256 low = _mm256_load_ps(w), high = _mm256_load_ps(w + 8);

        UNROLL
        for (int r = 0; r < rows; r++) {
            __m256 d = _mm256_set1_ps(u[r * CHUNK + c]);

            sum[r][0] = _mm256_fmadd_ps(d, low, sum[r][0]);
            sum[r][1] = _mm256_fmadd_ps(d, high, sum[r][1]);
        }
    }
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

K_TARGET_AVX2 static void products_avx2(float *m, int64_t rows_, const float *u,
                                        const float *w, int64_t n, int more)
{
    for (int half = 0; half < 2; half++, m += WIDE / 2, w += WIDE / 2)
        switch (rows_) {
            ROWS_CASE(1, product_avx2(m, rows, u, w, n, more));
            ROWS_CASE(2, product_avx2(m, rows, u, w, n, more));
            ROWS_CASE(3, product_avx2(m, rows, u, w, n, more));
            ROWS_CASE(4, product_avx2(m, rows, u, w, n, more));
            ROWS_CASE(5, product_avx2(m, rows, u, w, n, more));
            ROWS_CASE(6, product_avx2(m, rows, u, w, n, more));
        }
}
#endif

static void products_plain(float *m, int64_t rows, const float *u,
                           const float *w, int64_t n, int more)
{
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
    int64_t rows; /* of tiles at a time, at most */
    products *products;
};

static struct engine engine(void)
{
#if defined(__x86_64__)
    if (k_level() >= K_AVX512)
        return (struct engine){ROWS_AVX512, products_avx512};
    if (k_level() == K_AVX2)
        return (struct engine){ROWS_AVX2, products_avx2};
#endif
    return (struct engine){1, products_plain};
}

int k_has_winograd(void)
{
    return k_level() >= K_AVX2;
}

/* All tiles of a block at one point. */
static void at_point(const struct block *b, const struct engine *e, float *m,
                     const float *u, const float *w)
{
    int64_t groups = k_ceil_div(b->tiles, e->rows);

    for (int64_t c = 0; c < b->a->c; c += CHUNK) {
        int64_t n = k_min(CHUNK, b->a->c - c);

        for (int64_t i = 0, g = 1; g <= groups; g++) {
            int64_t next = b->tiles * g / groups;

            e->products(m + i * WIDE, next - i, u + i * CHUNK, w, n, c > 0);
            i = next;
        }
        u += b->tiles * CHUNK;
        w += n * WIDE;
    }
}

/* ---- and back: A^T m A ---- */

K_INLINE void sums(k_vec16 *m, int step)
{
    k_vec16 a = m[step] + m[2 * step], b = m[step] - m[2 * step];

    m[0] += a;
    m[step] = b - m[3 * step];
}

struct result {
    float *y;
    const float *bias, *residual;
};

/* n channels of a result from the k-th on, finished; 16 of n are known to be
 * there when compiling, mostly. */
K_INLINE void finish(const struct result *s, int64_t at, int64_t k, int64_t n,
                     const k_vec16 *sum, int act)
{
    k_vec16 y = *sum, v;

    if (s->bias) {
        load(&v, s->bias + k, n);
        y += v;
    }
    if (s->residual) {
        load(&v, s->residual + at, n);
        y += v;
    }
    memcpy(s->y + at, &y, (size_t)n * sizeof(float));
    if (act)
        k_act_row(s->y + at, s->y + at, n, act);
}

/* n channels, 16 at most, of a tile. */
K_INLINE void tile(const struct block *b, const struct result *s,
                   const float *m, struct place t, int64_t k, int64_t n)
{
    const struct k_winograd *a = b->a;
    k_vec16 d[POINTS];

    UNROLL
    for (int i = 0; i < POINTS; i++)
        memcpy(&d[i], m + i * b->m_point, sizeof d[i]);
    UNROLL
    for (int i = 0; i < 4; i++)
        sums(d + i, 4);
    UNROLL
    for (int i = 0; i < 2; i++)
        sums(d + 4 * i, 1);
    UNROLL
    for (int i = 0; i < 4; i++) {
        int64_t y = t.y + i / 2, x = t.x + i % 2;

        if (y < a->yh && x < a->yw)
            finish(s, ((t.n * a->yh + y) * a->yw + x) * a->k + k, k, n,
                   &d[i / 2 * 4 + i % 2], a->act);
    }
}

K_MULTI(tiles, (const struct block *b, const struct result *s, int64_t k),
        (b, s, k))
{
    for (int64_t i = 0; i < b->tiles; i++)
        for (int64_t j = 0; j < k_min(WIDE, b->a->k - k); j += 16) {
            int64_t n = k_min(16, b->a->k - k - j);
            struct place t = place_of(b, i);

            if (n == 16)
                tile(b, s, b->m + i * WIDE + j, t, k + j, 16);
            else
                tile(b, s, b->m + i * WIDE + j, t, k + j, n);
        }
}

/* ---- all of it ---- */

static int64_t all_tiles(const struct k_winograd *a)
{
    return a->n * k_ceil_div(a->yh, 2) * k_ceil_div(a->yw, 2);
}

/* Tiles of a task. As many tasks for every thread, but none of fewer tiles than
 * fill the registers. */
static int64_t block_of(const struct k_winograd *a, int threads)
{
    int64_t n = all_tiles(a), tasks = k_ceil_div(n, BLOCK);
    int64_t each = k_ceil_div(n, k_ceil_div(tasks, threads) * threads);

    return each < LEAST ? k_min(LEAST, n) : each;
}

/* Floats of a thread's scratch. */
static int64_t share(int64_t block, int64_t c)
{
    return POINTS * (u_point(block, c) + m_point(block));
}

size_t k_winograd_scratch(const struct k_winograd *a, int threads)
{
    int64_t most = 0;

    for (int t = 1; t <= threads; t++) {
        int64_t all = t * share(block_of(a, t), a->c);

        most = all > most ? all : most;
    }
    return (size_t)most * sizeof(float);
}

static void run(const struct block *b, const struct engine *e,
                const struct result *s, const float *x, const float *w)
{
    windows(b, x);
    for (int64_t k = 0; k < b->a->k; k += WIDE) {
        for (int p = 0; p < POINTS; p++, w += b->a->c * WIDE)
            at_point(b, e, b->m + p * b->m_point, b->u + p * b->u_point, w);
        tiles(b, s, k);
    }
}

void k_winograd(const struct k_winograd *a, float *y, const float *x,
                const float *w, const float *bias, const float *residual,
                void *scratch)
{
    int64_t n = all_tiles(a), most = block_of(a, omp_get_max_threads());
    struct result s = {y, bias, residual};
    struct engine e = engine();

#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < n; i += most) {
        float *u = (float *)scratch + omp_get_thread_num() * share(most, a->c);
        struct block b = {a,
                          i,
                          k_min(most, n - i),
                          u,
                          u + POINTS * u_point(most, a->c),
                          u_point(most, a->c),
                          m_point(most)};

        run(&b, &e, &s, x, w);
    }
}
