/* SPDX-License-Identifier: MIT */
/*
 * blocks.c - convolutions in f32, by blocks of tiles. A tile is one result, or,
 * for 3x3 convolutions with stride 1 as Winograd's F(2x2, 3x3), 2x2 results
 * from 16 products in place of 36:
 *
 *     y = A^T [(G g G^T) . (B^T d B)] A        for each channel of y and of x
 *
 * A task is a block of tiles. What each reads of x is copied into scratch: the
 * channels of all taps, or of the 16 points of the transformed window of 4x4
 * pixels. Then, for WIDE channels of the result at a time, come the matrix
 * products, one for each point, and the way back with bias, residual and
 * activation, all of it near in the caches.
 *
 * Sums are taken over CHUNK products at a time, and then of these sums: one
 * chain of additions over all of them would cost digits. The order is the same
 * for every tile, so that blocks and threads do not change results.
 */
#include "cpu/simd.h"

#define POINTS 16
#define WIDE   32  /* channels of a result at a time */
#define CHUNK  128 /* products in one chain of additions */
#define BLOCK  56  /* tiles of a task, at most */

/* Arrays of vectors live in registers only when all indices are constants. */
#define UNROLL _Pragma("GCC unroll 16")

/* ---- weights: (K / WIDE), points, depth, WIDE; missing channels are 0 ---- */

static int64_t points_of(int winograd)
{
    return winograd ? POINTS : 1;
}

static int64_t depth_of(int64_t c, int64_t taps, int winograd)
{
    return winograd ? c : c * taps;
}

size_t k_conv_weights(int64_t k, int64_t c, int64_t taps, int winograd)
{
    return (size_t)(k_ceil_div(k, WIDE) * points_of(winograd) *
                    depth_of(c, taps, winograd) * WIDE) *
           sizeof(float);
}

/* Three taps become four, G g, for WIDE channels of y. */
K_INLINE void widen(double (*to)[WIDE], const double (*g)[WIDE], int step)
{
#pragma omp simd
    for (int i = 0; i < WIDE; i++) {
        double even = (g[0][i] + g[2 * step][i]) / 2, odd = g[step][i] / 2;

        to[0][i] = g[0][i];
        to[step][i] = even + odd;
        to[2 * step][i] = even - odd;
        to[3 * step][i] = g[2 * step][i];
    }
}

/* One channel of x, `count` of y. In double, rounded once. */
K_MULTI(pack_points,
        (float *to, int64_t point, const float *w, int64_t step, int64_t count),
        (to, point, w, step, count))
{
    double g[9][WIDE], rows[12][WIDE], all[POINTS][WIDE];

    for (int64_t i = 0; i < WIDE; i++)
        for (int j = 0; j < 9; j++)
            g[j][i] = i < count ? (double)w[i * step + j] : 0;
    for (int j = 0; j < 3; j++)
        widen(rows + j, (const double(*)[WIDE])g + j, 3);
    for (int j = 0; j < 4; j++)
        widen(all + 4 * j, (const double(*)[WIDE])rows + 3 * j, 1);
    for (int p = 0; p < POINTS; p++)
#pragma omp simd
        for (int i = 0; i < WIDE; i++)
            to[p * point + i] = (float)all[p][i];
}

void k_conv_pack(float *to, const float *w, int64_t k, int64_t c, int64_t r,
                 int64_t s, int winograd)
{
    const struct k_layout plain = {.dim = {k, c, r, s},
                                   .stride = {c * r * s, r * s, s, 1}};
    const struct k_layout blocks = {
        .dim = {k, c, r, s},
        .stride = {c * r * s * WIDE, WIDE, s * c * WIDE, c * WIDE},
        .blocks = 1,
        .block = {WIDE}};

    if (!winograd) {
        k_reorder((struct k_out){to, MP_F32}, &blocks, w, &plain);
        return;
    }
#pragma omp parallel for schedule(static) collapse(2)
    for (int64_t i = 0; i < k; i += WIDE)
        for (int64_t j = 0; j < c; j++)
            pack_points(to + i * POINTS * c + j * WIDE, c * WIDE,
                        w + (i * c + j) * 9, c * 9, k - i);
}

/* ---- a block of tiles ---- */

struct block {
    const struct k_conv *a;
    int64_t first, tiles; /* in the order of pictures, rows, columns */
    int64_t points, depth;
    float *u; /* points, depth / CHUNK, tiles, CHUNK */
    float *m; /* points, tiles, WIDE */
    int64_t u_point, m_point;
};

/* Points are one line further apart than they need: at powers of two they would
 * all want the same lines of the first cache. */
static int64_t u_point(int64_t tiles, int64_t depth)
{
    return k_ceil_div(depth, CHUNK) * tiles * CHUNK + 16;
}

static int64_t m_point(int64_t tiles)
{
    return tiles * WIDE + 16;
}

/* Results of a tile, each way. */
static int64_t side(const struct k_conv *a)
{
    return a->winograd ? 2 : 1;
}

/* A tile's picture and its first result there. */
struct place {
    int64_t n, y, x;
};

static struct place place_of(const struct block *b, int64_t tile)
{
    int64_t n = side(b->a), i = b->first + tile;
    int64_t across = k_ceil_div(b->a->yw, n), down = k_ceil_div(b->a->yh, n);

    return (struct place){i / across / down, i / across % down * n,
                          i % across * n};
}

/* ---- what a tile reads ---- */

/* The pixel of x at a tap of a result; NULL: beside it. */
static const float *pixel(const struct k_conv *a, const float *x,
                          struct place t, int64_t row, int64_t column)
{
    int64_t y = t.y * a->stride - a->top + row;
    int64_t v = t.x * a->stride - a->left + column;

    if (y < 0 || y >= a->h || v < 0 || v >= a->w)
        return NULL;
    return x + ((t.n * a->h + y) * a->w + v) * a->c;
}

/* The channels of a tap; at: where they belong in the depth. */
static void copy_tap(const struct block *b, int64_t tile, int64_t at,
                     const float *from)
{
    for (int64_t c = 0, n; c < b->a->c; c += n) {
        int64_t d = at + c;
        float *to = b->u + (d / CHUNK * b->tiles + tile) * CHUNK + d % CHUNK;

        n = k_min(CHUNK - d % CHUNK, b->a->c - c);
        if (from)
            memcpy(to, from + c, (size_t)n * sizeof *to);
        else
            memset(to, 0, (size_t)n * sizeof *to);
    }
}

static void copy_taps(const struct block *b, const float *x)
{
    const struct k_conv *a = b->a;

    for (int64_t i = 0; i < b->tiles; i++) {
        struct place t = place_of(b, i);

        for (int64_t j = 0; j < a->r * a->s; j++)
            copy_tap(b, i, j * a->c, pixel(a, x, t, j / a->s, j % a->s));
    }
}

/* B^T d B */

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

K_MULTI(copy_windows, (const struct block *b, const float *x), (b, x))
{
    static const float zeros[CHUNK];

    for (int64_t i = 0; i < b->tiles; i++) {
        const float *from[POINTS], *at[POINTS];
        struct place t = place_of(b, i);

        for (int j = 0; j < POINTS; j++)
            from[j] = pixel(b->a, x, t, j / 4, j % 4);
        for (int64_t c = 0; c < b->a->c; c += CHUNK) {
            int64_t n = k_min(CHUNK, b->a->c - c), k = 0;
            float *to = b->u + (c / CHUNK * b->tiles + i) * CHUNK;

            for (int j = 0; j < POINTS; j++)
                at[j] = from[j] ? from[j] + c : zeros;
            for (; k + 16 <= n; k += 16)
                window(to + k, b->u_point, at, k, 16);
            if (k < n)
                window(to + k, b->u_point, at, k, n - k);
        }
    }
}

/* ---- the products ---- */

/* For `rows` tiles: m is, or grows by if `more`, u times w over a depth of n.
 * Meanwhile a line from `ahead` on is fetched for each step of the depth. */
typedef void products(float *m, int64_t rows, const float *u, const float *w,
                      int64_t n, int more, const float *ahead);

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
                                             int more, const float *ahead)
{
    __m512 sum[ROWS_AVX512][2];

    UNROLL
    for (int r = 0; r < rows; r++)
        sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    for (int64_t c = 0; c < n; c++, w += WIDE) {
        __m512 low = _mm512_load_ps(w), high = _mm512_load_ps(w + 16);

        /* the rows that follow: too short for CPUs to foresee */
        __builtin_prefetch(u + rows * CHUNK + 16 * c);
        __builtin_prefetch(ahead + 16 * c);
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

K_TARGET_AVX512 static void products_avx512(float *m, int64_t count,
                                            const float *u, const float *w,
                                            int64_t n, int more,
                                            const float *ahead)
{
    switch (count) {
        ROWS_CASE(1, product_avx512(m, rows, u, w, n, more, ahead));
        ROWS_CASE(2, product_avx512(m, rows, u, w, n, more, ahead));
        ROWS_CASE(3, product_avx512(m, rows, u, w, n, more, ahead));
        ROWS_CASE(4, product_avx512(m, rows, u, w, n, more, ahead));
        ROWS_CASE(5, product_avx512(m, rows, u, w, n, more, ahead));
        ROWS_CASE(6, product_avx512(m, rows, u, w, n, more, ahead));
        ROWS_CASE(7, product_avx512(m, rows, u, w, n, more, ahead));
        ROWS_CASE(8, product_avx512(m, rows, u, w, n, more, ahead));
        ROWS_CASE(9, product_avx512(m, rows, u, w, n, more, ahead));
        ROWS_CASE(10, product_avx512(m, rows, u, w, n, more, ahead));
        ROWS_CASE(11, product_avx512(m, rows, u, w, n, more, ahead));
        ROWS_CASE(12, product_avx512(m, rows, u, w, n, more, ahead));
        ROWS_CASE(13, product_avx512(m, rows, u, w, n, more, ahead));
        ROWS_CASE(14, product_avx512(m, rows, u, w, n, more, ahead));
    }
}

/* 6 x 2 sums of half as many channels take 15 of 16. */
#define ROWS_AVX2 6

K_TARGET_AVX2 K_INLINE void product_avx2(float *m, int rows, const float *u,
                                         const float *w, int64_t n, int more,
                                         const float *ahead)
{
    __m256 sum[ROWS_AVX2][2];

    UNROLL
    for (int r = 0; r < rows; r++)
        sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    for (int64_t c = 0; c < n; c++, w += WIDE) {
        __m256 low = _mm256_load_ps(w), high = _mm256_load_ps(w + 8);

        __builtin_prefetch(ahead + 16 * c);
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

K_TARGET_AVX2 static void products_avx2(float *m, int64_t count, const float *u,
                                        const float *w, int64_t n, int more,
                                        const float *ahead)
{
    for (int half = 0; half < 2; half++, m += WIDE / 2, w += WIDE / 2)
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
                           const float *ahead)
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

int k_has_conv(void)
{
    return k_level() >= K_AVX2;
}

/* All tiles of a block at one point. */
static void at_point(const struct block *b, const struct engine *e, float *m,
                     const float *u, const float *w)
{
    int64_t groups = k_ceil_div(b->tiles, e->rows);

    for (int64_t d = 0; d < b->depth; d += CHUNK) {
        int64_t n = k_min(CHUNK, b->depth - d);

        for (int64_t i = 0, g = 1; g <= groups; g++) {
            int64_t next = b->tiles * g / groups;

            /* the next weights: one half each for the first two groups */
            e->products(m + i * WIDE, next - i, u + i * CHUNK, w, n, d > 0,
                        w + (WIDE + 16 * k_min(g - 1, 1)) * n);
            i = next;
        }
        u += b->tiles * CHUNK;
        w += n * WIDE;
    }
}

/* ---- and back ---- */

/* A^T m A */
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
    const struct k_conv *a = b->a;
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

K_INLINE void one(const struct block *b, const struct result *s, const float *m,
                  struct place t, int64_t k, int64_t n)
{
    const struct k_conv *a = b->a;
    k_vec16 sum;

    memcpy(&sum, m, sizeof sum);
    finish(s, ((t.n * a->yh + t.y) * a->yw + t.x) * a->k + k, k, n, &sum,
           a->act);
}

/* n is 16 mostly: let that be known when compiling. */
#define EACH_16(call)                                                          \
    for (int64_t i = 0; i < b->tiles; i++)                                     \
        for (int64_t j = 0; j < k_min(WIDE, b->a->k - k); j += 16) {           \
            const float *m = b->m + i * WIDE + j;                              \
            struct place t = place_of(b, i);                                   \
                                                                               \
            if (b->a->k - k - j >= 16)                                         \
                call(b, s, m, t, k + j, 16);                                   \
            else                                                               \
                call(b, s, m, t, k + j, b->a->k - k - j);                      \
        }

K_MULTI(finish_tiles,
        (const struct block *b, const struct result *s, int64_t k), (b, s, k))
{
    EACH_16(tile);
}

K_MULTI(finish_ones, (const struct block *b, const struct result *s, int64_t k),
        (b, s, k))
{
    EACH_16(one);
}

/* ---- all of it ---- */

/* Who does what: blocks of tiles, and of channels of the result where there are
 * few tiles. */
struct shares {
    int64_t tiles, block, blocks;
    int64_t channels, parts;           /* of the result; a multiple of WIDE */
    int64_t u_point, m_point, scratch; /* floats */
};

static struct shares shares_of(const struct k_conv *a, int threads)
{
    int64_t n = side(a), points = points_of(a->winograd);
    int64_t wides = k_ceil_div(a->k, WIDE), each;
    struct shares s = {0};

    s.tiles = a->n * k_ceil_div(a->yh, n) * k_ceil_div(a->yw, n);
    s.blocks = k_ceil_div(s.tiles, BLOCK);
    each = k_ceil_div(wides, k_min(k_ceil_div(threads, s.blocks), wides));
    s.channels = each * WIDE;
    s.parts = k_ceil_div(wides, each);
    if (s.parts == 1) /* as many for every thread */
        s.blocks = k_ceil_div(s.blocks, threads) * threads;
    s.block = k_ceil_div(s.tiles, s.blocks);
    s.blocks = k_ceil_div(s.tiles, s.block);
    s.u_point = u_point(s.block, depth_of(a->c, a->r * a->s, a->winograd));
    s.m_point = m_point(s.block);
    s.scratch = points * (s.u_point + s.m_point);
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

static void run(const struct block *b, const struct engine *e,
                const struct result *s, const float *x, const float *w,
                int64_t k, int64_t end)
{
    if (b->a->winograd)
        copy_windows(b, x);
    else
        copy_taps(b, x);
    w += k * b->points * b->depth;
    for (; k < end; k += WIDE) {
        for (int64_t p = 0; p < b->points; p++, w += b->depth * WIDE)
            at_point(b, e, b->m + p * b->m_point, b->u + p * b->u_point, w);
        if (b->a->winograd)
            finish_tiles(b, s, k);
        else
            finish_ones(b, s, k);
    }
}

void k_conv(const struct k_conv *a, float *y, const float *x, const float *w,
            const float *bias, const float *residual, void *scratch)
{
    struct shares all = shares_of(a, omp_get_max_threads());
    struct result s = {y, bias, residual};
    struct engine e = engine();

#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < all.blocks * all.parts; i++) {
        int64_t first = i / all.parts * all.block;
        int64_t k = i % all.parts * all.channels;
        struct block b = {
            .a = a,
            .first = first,
            .tiles = k_min(all.block, all.tiles - first),
            .points = points_of(a->winograd),
            .depth = depth_of(a->c, a->r * a->s, a->winograd),
            .u_point = all.u_point,
            .m_point = all.m_point,
        };

        b.u = (float *)scratch + omp_get_thread_num() * all.scratch;
        b.m = b.u + b.points * b.u_point;
        run(&b, &e, &s, x, w, k, k_min(a->k, k + all.channels));
    }
}
