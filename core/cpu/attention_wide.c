/* SPDX-License-Identifier: MIT */
/*
 * attention_wide.c - attention by vectors of 512 bits: products of f32, of
 * pairs of bf16, or of bf16 by AMX.
 */
#include <float.h>
#include "cpu/attention.h"

#if defined(__x86_64__)

/* 6 x 4 sums, 4 vectors of x and one of b take 29 of 32 registers. */
#define WIDE     4 /* vectors of 16 queries */
#define WIDE_ROW (16 * WIDE)

K_TARGET_AVX512 K_INLINE __m512 broadcast(const void *p)
{
    float f;

    memcpy(&f, p, sizeof f);
    return _mm512_set1_ps(f);
}

/* To what is at p. */
K_TARGET_AVX512 K_INLINE void add(float *p, __m512 x)
{
    _mm512_storeu_ps(p, _mm512_add_ps(_mm512_loadu_ps(p), x));
}

K_TARGET_AVX512 K_INLINE void tile_f32(__m512 acc[][WIDE], int rows,
                                       const struct factor *f)
{
    const char *b = f->b;
    const float *x = f->x;

    for (int64_t i = 0; i < f->n; i++) {
        __m512 v[WIDE];

        UNROLL
        for (int j = 0; j < WIDE; j++)
            v[j] = _mm512_loadu_ps(x + 16 * j);
        UNROLL
        for (int r = 0; r < rows; r++) {
            __m512 w = broadcast(b + r * f->row_step);

            UNROLL
            for (int j = 0; j < WIDE; j++)
                acc[r][j] = _mm512_fmadd_ps(w, v[j], acc[r][j]);
        }
        b += f->i_step;
        x += WIDE_ROW;
    }
}

K_TARGET_BF16 K_INLINE void tile_bf16(__m512 acc[][WIDE], int rows,
                                      const struct factor *f)
{
    const char *b = f->b;
    const float *x = f->x;

    for (int64_t i = 0; i < f->n; i++) {
        __m512bh v[WIDE];

        UNROLL
        for (int j = 0; j < WIDE; j++)
            v[j] = (__m512bh)_mm512_loadu_ps(x + 16 * j);
        UNROLL
        for (int r = 0; r < rows; r++) {
            __m512bh w = (__m512bh)broadcast(b + r * f->row_step);

            UNROLL
            for (int j = 0; j < WIDE; j++)
                acc[r][j] = _mm512_dpbf16_ps(acc[r][j], w, v[j]);
        }
        b += f->i_step;
        x += WIDE_ROW;
    }
}

K_TARGET_AVX512 K_INLINE void zero(__m512 acc[][WIDE], int rows)
{
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int j = 0; j < WIDE; j++)
            acc[r][j] = _mm512_setzero_ps();
    }
}

/* 2^x; relative error 1e-7. */
K_TARGET_AVX512 K_INLINE __m512 exp2_f32(__m512 x)
{
    __m512 n =
        _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 f = _mm512_sub_ps(x, n), p = _mm512_set1_ps(0.00132764713f);

    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.00967554282f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.0555071346f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.240221202f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.693146944f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.00000012f));
    return _mm512_scalef_ps(p, n);
}

/* The same to 1e-4, for what is rounded to 8 bits. */
K_TARGET_AVX512 K_INLINE __m512 exp2_bf16(__m512 x)
{
    __m512 n =
        _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 f = _mm512_sub_ps(x, n), p = _mm512_set1_ps(0.0551716648f);

    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.242611215f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.693260968f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.999928057f));
    return _mm512_scalef_ps(p, n);
}

/* ---- weights ----
 *
 * A weight is 2^(score - most). It need not be the largest score that `most`
 * is, only one near it: so that is the largest of the first keys, as an
 * integer, until weights get larger than MOST_WEIGHT. Then those so far are
 * multiplied by a power of two, which costs no digits. It happens seldom, and
 * scores become weights as soon as they are known.
 */
#define MOST_WEIGHT 0x1p32f

K_TARGET_AVX512 K_INLINE void times(float *p, int64_t rows,
                                    const __m512 c[WIDE])
{
    for (int64_t r = 0; r < rows; r++, p += WIDE_ROW) {
        UNROLL
        for (int j = 0; j < WIDE; j++)
            _mm512_storeu_ps(p + 16 * j,
                             _mm512_mul_ps(_mm512_loadu_ps(p + 16 * j), c[j]));
    }
}

/* The same for pairs of bf16. */
K_TARGET_AVX512 K_INLINE void pairs_times(float *p, int64_t rows,
                                          const __m512 c[WIDE])
{
    const __m512i odd = _mm512_set1_epi32(-0x10000);

    for (int64_t r = 0; r < rows; r++, p += WIDE_ROW) {
        UNROLL
        for (int j = 0; j < WIDE; j++) {
            __m512i two = _mm512_loadu_si512(p + 16 * j);
            __m512 p0 = (__m512)_mm512_slli_epi32(two, 16);
            __m512 p1 = (__m512)_mm512_and_si512(two, odd);

            p0 = _mm512_mul_ps(p0, c[j]);
            p1 = _mm512_mul_ps(p1, c[j]);
            two = _mm512_or_si512(_mm512_srli_epi32((__m512i)p0, 16),
                                  _mm512_and_si512((__m512i)p1, odd));
            _mm512_storeu_si512(p + 16 * j, two);
        }
    }
}

/* For scores up to top; c: what becomes of the weights so far. */
K_TARGET_AVX512 static __attribute__((noinline)) void
raise_most(struct block *b, const __m512 top[WIDE], int64_t d, __m512 c[WIDE])
{
    for (int j = 0; j < WIDE; j++) {
        __m512 old = _mm512_loadu_ps(b->most + 16 * j);
        __m512 up = _mm512_roundscale_ps(top[j], _MM_FROUND_TO_POS_INF |
                                                     _MM_FROUND_NO_EXC);
        __m512 most = _mm512_max_ps(up, old); /* old if up is NaN */

        c[j] = _mm512_scalef_ps(_mm512_set1_ps(1), _mm512_sub_ps(old, most));
        _mm512_storeu_ps(b->most + 16 * j, most);
    }
    times(b->sum, 1, c);
    times(b->part, 1, c);
    times(b->o, d, c);
}

/* Products become scores, rounded to what they are compared as; top: the
 * largest. */
K_TARGET_AVX512 K_INLINE void score_tile(__m512 acc[][WIDE], int rows,
                                         float scale, __m512 top[WIDE])
{
    __m512 c = _mm512_set1_ps(scale);

    UNROLL
    for (int j = 0; j < WIDE; j++) {
        UNROLL
        for (int r = 0; r < rows; r++) {
            acc[r][j] = _mm512_mul_ps(acc[r][j], c);
            top[j] = r ? _mm512_max_ps(top[j], acc[r][j]) : acc[r][j];
        }
    }
}

/* Writes the weights of 16 queries for products that are key i's and the next
 * ones'. Returns their sum. */
K_TARGET_AVX512 K_INLINE __m512 weights_f32(struct block *b, int64_t i,
                                            __m512 acc[][WIDE], int rows, int j,
                                            __m512 scale)
{
    __m512 most = _mm512_loadu_ps(b->most + 16 * j);
    __m512 sum = _mm512_setzero_ps();

    UNROLL
    for (int r = 0; r < rows; r++) {
        __m512 p = exp2_f32(_mm512_fmsub_ps(acc[r][j], scale, most));

        sum = _mm512_add_ps(sum, p);
        _mm512_storeu_ps(b->s + (i + r) * WIDE_ROW + 16 * j, p);
    }
    return sum;
}

/* The same to pairs; i is even, and what has no partner gets one of 0. */
K_TARGET_BF16 K_INLINE __m512 weights_bf16(struct block *b, int64_t i,
                                           __m512 acc[][WIDE], int rows, int j,
                                           __m512 scale)
{
    static const uint16_t order[32] = {
        0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    __m512i zip = _mm512_loadu_si512(order), two;
    __m512 most = _mm512_loadu_ps(b->most + 16 * j);
    __m512 sum = _mm512_setzero_ps();

    UNROLL
    for (int r = 0; r < rows; r += 2) {
        __m512 p0 = exp2_bf16(_mm512_fmsub_ps(acc[r][j], scale, most));
        __m512 p1 = _mm512_setzero_ps();

        if (r + 1 < rows)
            p1 = exp2_bf16(_mm512_fmsub_ps(acc[r + 1][j], scale, most));
        sum = _mm512_add_ps(sum, _mm512_add_ps(p0, p1));
        two = (__m512i)_mm512_cvtne2ps_pbh(p1, p0);
        _mm512_storeu_si512(b->pair + (i + r) / 2 * WIDE_ROW + 16 * j,
                            _mm512_permutexvar_epi16(zip, two));
    }
    return sum;
}

/* Weights for the products of a tile, the first of key i. `multiply` makes
 * those of the block before them smaller. */
#define WEIGH_TILE(type, target, multiply)                                     \
    target K_INLINE void weigh_tile_##type(struct block *b,                    \
                                           __m512 acc[][WIDE], int rows,       \
                                           int64_t i, int64_t d, float scale)  \
    {                                                                          \
        __m512 by = _mm512_set1_ps(scale), sum[WIDE], top[WIDE], c[WIDE];      \
                                                                               \
        for (;;) {                                                             \
            unsigned above = 0;                                                \
                                                                               \
            UNROLL                                                             \
            for (int j = 0; j < WIDE; j++) {                                   \
                sum[j] = weights_##type(b, i, acc, rows, j, by);               \
                above |= _mm512_cmp_ps_mask(                                   \
                    sum[j], _mm512_set1_ps(MOST_WEIGHT), _CMP_GT_OQ);          \
            }                                                                  \
            if (__builtin_expect(!above, 1))                                   \
                break;                                                         \
            score_tile(acc, rows, scale, top);                                 \
            by = _mm512_set1_ps(1); /* now none is above */                    \
            raise_most(b, top, d, c);                                          \
            multiply;                                                          \
        }                                                                      \
        UNROLL                                                                 \
        for (int j = 0; j < WIDE; j++)                                         \
            add(b->part + 16 * j, sum[j]);                                     \
    }

WEIGH_TILE(f32, K_TARGET_AVX512, times(b->s, i, c))
WEIGH_TILE(bf16, K_TARGET_BF16, pairs_times(b->pair, i / 2, c))

K_TARGET_AVX512 K_INLINE void add_part(struct block *b)
{
    UNROLL
    for (int j = 0; j < WIDE; j++)
        add(b->sum + 16 * j, _mm512_loadu_ps(b->part + 16 * j));
}

/* ---- both products ---- */

/* The first row of a tile is row i. */
#define WEIGH(type)                                                            \
    do {                                                                       \
        __m512 acc[rows][WIDE];                                                \
                                                                               \
        zero(acc, rows);                                                       \
        tile_##type(acc, rows, &f);                                            \
        weigh_tile_##type(b, acc, rows, i, d, scale);                          \
    } while (0)

#define MIX(type)                                                              \
    do {                                                                       \
        __m512 acc[rows][WIDE];                                                \
                                                                               \
        zero(acc, rows);                                                       \
        tile_##type(acc, rows, &f);                                            \
        mix_end(acc, rows, b->o + i * WIDE_ROW);                               \
    } while (0)

/* A block's share is added up by itself first: one chain of additions over all
 * keys would cost digits. */
K_TARGET_AVX512 K_INLINE void mix_end(__m512 acc[][WIDE], int rows, float *o)
{
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int j = 0; j < WIDE; j++)
            add(o + r * WIDE_ROW + 16 * j, acc[r][j]);
    }
}

K_TARGET_AVX512 static void weigh_f32(struct block *b, const void *k,
                                      int64_t row, int64_t keys, int64_t d,
                                      float scale)
{
    const char *base = k;
    struct factor f = {base, row, 4, d, b->q};

    memset(b->part, 0, WIDE_ROW * sizeof *b->part);
    TILES(keys, WEIGH(f32))
    add_part(b);
}

K_TARGET_BF16 static void weigh_bf16(struct block *b, const void *k,
                                     int64_t row, int64_t keys, int64_t d,
                                     float scale)
{
    const char *base = k;
    struct factor f = {base, row, 4, d / 2, b->q};

    memset(b->part, 0, WIDE_ROW * sizeof *b->part);
    TILES(keys, WEIGH(bf16))
    add_part(b);
}

K_TARGET_AVX512 static void mix_f32(struct block *b, const void *v, int64_t row,
                                    int64_t keys, int64_t d)
{
    const char *base = v;
    struct factor f = {base, 4, row, keys, b->s};

    TILES(d, MIX(f32))
}

K_TARGET_BF16 static void mix_bf16(struct block *b, const void *v, int64_t row,
                                   int64_t keys, int64_t d)
{
    const char *base = v;
    struct factor f = {base, 4, row, k_ceil_div(keys, 2), b->pair};

    TILES(d, MIX(bf16))
}

K_TARGET_AVX512 static void load_wide(float *to, const void *from,
                                      int64_t row_bytes, int64_t rows,
                                      int64_t units)
{
    for (int64_t q = 0; q < WIDE_ROW; q += 16)
        for (int64_t e = 0; e < units; e += 16) {
            __mmask16 mask = (__mmask16)((1u << k_min(16, units - e)) - 1);
            __m512 r[16];

            UNROLL
            for (int i = 0; i < 16; i++)
                r[i] = _mm512_maskz_loadu_ps(
                    q + i < rows ? mask : 0,
                    (const char *)from + k_min(q + i, rows - 1) * row_bytes +
                        4 * e);
            k_transpose(r);
            UNROLL
            for (int i = 0; i < 16; i++)
                _mm512_storeu_ps(to + (e + i) * WIDE_ROW + q, r[i]);
        }
}

K_TARGET_AVX512 K_INLINE void put_row(struct k_out y, int64_t at, __m512 x,
                                      int64_t n)
{
    __mmask16 mask = (__mmask16)((1u << n) - 1);

    if (y.t == MP_F32)
        _mm512_mask_storeu_ps((float *)y.p + at, mask, x);
    else
        _mm256_mask_storeu_epi16((uint16_t *)y.p + at, mask, k_narrow16(x));
}

K_TARGET_AVX512 static void store_wide(const struct block *b, struct k_out y,
                                       int64_t at, int64_t row, int64_t rows,
                                       int64_t d)
{
    for (int64_t q = 0; q < rows; q += 16) {
        __m512 c =
            _mm512_div_ps(_mm512_set1_ps(1), _mm512_loadu_ps(b->sum + q));

        for (int64_t e = 0; e < d; e += 16) {
            __m512 r[16];

            UNROLL
            for (int i = 0; i < 16; i++) {
                int64_t from = k_min(e + i, d - 1);

                r[i] = _mm512_mul_ps(
                    c, _mm512_loadu_ps(b->o + from * WIDE_ROW + q));
            }
            k_transpose(r);
            for (int i = 0; i < k_min(16, rows - q); i++)
                put_row(y, at + (q + i) * row + e, r[i], k_min(16, d - e));
        }
    }
}

static const struct engine engine_f32 = {
    .queries = WIDE_ROW,
    .form = PLAIN,
    .load = load_wide,
    .weigh = weigh_f32,
    .mix = mix_f32,
    .store = store_wide,
};
static const struct engine engine_bf16 = {
    .queries = WIDE_ROW,
    .form = PAIRS,
    .load = load_wide,
    .weigh = weigh_bf16,
    .mix = mix_bf16,
    .store = store_wide,
};

/* ---- AMX ---- */

#define TARGET_AMX                                                             \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,"     \
                          "avx2,fma,amx-tile,amx-bf16")))

/* GCC's loads into AMX's registers do not say that they read memory. */
#define WRITTEN __asm__ volatile("" ::: "memory")

/* Sums are in registers 0 to 3, one for each 16 queries. */
#define SUMS(call)                                                             \
    do {                                                                       \
        call(0);                                                               \
        call(1);                                                               \
        call(2);                                                               \
        call(3);                                                               \
    } while (0)
#define SUM_ZERO(i) _tile_zero(i)
#define SUM_LOAD(i) _tile_loadd(i, sum + 16 * (i), 4 * WIDE_ROW)
#define SUM_KEEP(i) _tile_stored(i, sum + 16 * (i), 4 * WIDE_ROW)

/* Adds the products of n squares, `step` apart, with 16 units each of x. */
TARGET_AMX K_INLINE void add_squares(const uint16_t *square, int64_t step,
                                     const float *x, int64_t n)
{
    const int64_t row = 4 * WIDE_ROW; /* bytes */

    for (int64_t i = 0; i < n; i++) {
        _tile_loadd(4, square, SQUARE_ROW);
        _tile_loadd(5, x, row);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(6, x + 16, row);
        _tile_dpbf16ps(1, 4, 6);
        _tile_loadd(7, x + 32, row);
        _tile_dpbf16ps(2, 4, 7);
        _tile_loadd(5, x + 48, row);
        _tile_dpbf16ps(3, 4, 5);
        square += step;
        x += 16 * WIDE_ROW;
    }
}

/* Weights of `rows` keys, the first of them key i, whose sums are at s. */
#define WEIGH_ROWS                                                             \
    do {                                                                       \
        __m512 acc[rows][WIDE];                                                \
                                                                               \
        UNROLL                                                                 \
        for (int u = 0; u < rows; u++) {                                       \
            UNROLL                                                             \
            for (int j = 0; j < WIDE; j++)                                     \
                acc[u][j] = _mm512_loadu_ps(s + u * WIDE_ROW + 16 * j);        \
        }                                                                      \
        weigh_tile_bf16(b, acc, rows, i, d, scale);                            \
    } while (0)

TARGET_AMX static void weigh_amx(struct block *b, const void *k, int64_t row,
                                 int64_t keys, int64_t d, float scale)
{
    const uint16_t *square = k;
    float *sum = b->s;
    int64_t n = k_ceil_div(d, 32);

    (void)row;
    memset(b->part, 0, WIDE_ROW * sizeof *b->part);
    WRITTEN;
    for (int64_t first = 0; first < keys; first += 16) {
        int64_t end = k_min(first + 16, keys);
        const float *s = sum;

        SUMS(SUM_ZERO);
        add_squares(square, SQUARE, b->q, n);
        SUMS(SUM_KEEP);
        WRITTEN;
        for (int64_t i = first; i < end; i += 4, s += 4 * WIDE_ROW)
            switch (k_min(4, end - i)) {
                TILE_CASE(1, WEIGH_ROWS);
                TILE_CASE(2, WEIGH_ROWS);
                TILE_CASE(3, WEIGH_ROWS);
                TILE_CASE(4, WEIGH_ROWS);
            }
        square += n * SQUARE;
    }
    add_part(b);
}

TARGET_AMX static void mix_amx(struct block *b, const void *v, int64_t row,
                               int64_t keys, int64_t d)
{
    int64_t pairs = k_ceil_div(keys, 2), end = k_ceil_div(keys, 32) * 16;
    int64_t high = k_ceil_div(d, 16);

    (void)row;
    memset(b->pair + pairs * WIDE_ROW, 0,
           (size_t)((end - pairs) * WIDE_ROW) * sizeof *b->pair);
    WRITTEN;
    for (int64_t i = 0; i < high; i++) {
        float *sum = b->o + i * 16 * WIDE_ROW;

        SUMS(SUM_LOAD);
        add_squares((const uint16_t *)v + i * SQUARE, high * SQUARE, b->pair,
                    end / 16);
        SUMS(SUM_KEEP);
    }
}

TARGET_AMX static void load_amx(float *to, const void *from, int64_t row_bytes,
                                int64_t rows, int64_t units)
{
    /* Of all eight registers, which a thread has from the first load of a task
     * to its first store: 16 rows of 64 bytes. */
    static const struct {
        uint8_t palette, start, none[14];
        uint16_t row[16];
        uint8_t rows[16];
    } shape = {
        .palette = 1,
        .row = {64, 64, 64, 64, 64, 64, 64, 64},
        .rows = {16, 16, 16, 16, 16, 16, 16, 16},
    };

    _tile_loadconfig(&shape);
    load_wide(to, from, row_bytes, rows, units);
}

TARGET_AMX static void store_amx(const struct block *b, struct k_out y,
                                 int64_t at, int64_t row, int64_t rows,
                                 int64_t d)
{
    store_wide(b, y, at, row, rows, d);
    _tile_release();
}

K_TARGET_AVX512 static void turn_square(uint16_t *to, const uint16_t *v,
                                        int64_t row, int64_t rows, int64_t n)
{
    __mmask16 mask = (__mmask16)((1u << n) - 1);
    __m512 r[16];

    UNROLL
    for (int i = 0; i < 16; i++) { /* keys 2 i and 2 i + 1 */
        const uint16_t *even = v + k_min(2 * i, rows - 1) * row;
        const uint16_t *odd = v + k_min(2 * i + 1, rows - 1) * row;
        __m512i low = _mm512_cvtepu16_epi32(
            _mm256_maskz_loadu_epi16(2 * i < rows ? mask : 0, even));
        __m512i high = _mm512_cvtepu16_epi32(
            _mm256_maskz_loadu_epi16(2 * i + 1 < rows ? mask : 0, odd));

        r[i] = (__m512)_mm512_or_si512(low, _mm512_slli_epi32(high, 16));
    }
    k_transpose(r);
    UNROLL
    for (int i = 0; i < 16; i++)
        _mm512_storeu_ps(to + 32 * i, r[i]);
}

K_TARGET_AVX512 static void copy_square(uint16_t *to, const uint16_t *k,
                                        int64_t row, int64_t rows, int64_t n)
{
    __mmask32 mask = (__mmask32)((1ull << n) - 1);

    for (int i = 0; i < 16; i++)
        _mm512_storeu_si512(to + 32 * i, _mm512_maskz_loadu_epi16(
                                             i < rows ? mask : 0,
                                             k + k_min(i, rows - 1) * row));
}

static const struct engine engine_amx = {
    .queries = WIDE_ROW,
    .form = SQUARES,
    .load = load_amx,
    .weigh = weigh_amx,
    .mix = mix_amx,
    .store = store_amx,
    .copy = copy_square,
    .turn = turn_square,
};

const struct engine *k_wide_engine(const struct k_attention *a)
{
    enum k_level l = k_level();

    if (l == K_AVX512_BF16 && a->qt == MP_BF16 && a->kvt == MP_BF16 &&
        a->d % 2 == 0)
        return k_has_amx() ? &engine_amx : &engine_bf16;
    return l >= K_AVX512 ? &engine_f32 : NULL;
}

#else

const struct engine *k_wide_engine(const struct k_attention *a)
{
    (void)a;
    return NULL;
}

#endif
