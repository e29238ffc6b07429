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

K_TARGET_AVX512 K_INLINE void score_end(__m512 acc[][WIDE], int rows, float *s,
                                        float *most, float scale)
{
    __m512 c = _mm512_set1_ps(scale);

    UNROLL
    for (int j = 0; j < WIDE; j++) {
        __m512 m = _mm512_loadu_ps(most + 16 * j);

        UNROLL
        for (int r = 0; r < rows; r++) {
            acc[r][j] = _mm512_mul_ps(acc[r][j], c);
            m = _mm512_max_ps(m, acc[r][j]);
            _mm512_storeu_ps(s + r * WIDE_ROW + 16 * j, acc[r][j]);
        }
        _mm512_storeu_ps(most + 16 * j, m);
    }
}

/* A block's share is added up by itself first: one chain of additions over all
 * keys would cost digits. */
K_TARGET_AVX512 K_INLINE void mix_end(__m512 acc[][WIDE], int rows, float *o,
                                      const float *shrink)
{
    UNROLL
    for (int j = 0; j < WIDE; j++) {
        __m512 c = _mm512_loadu_ps(shrink + 16 * j);

        UNROLL
        for (int r = 0; r < rows; r++) {
            float *at = o + r * WIDE_ROW + 16 * j;

            _mm512_storeu_ps(
                at, _mm512_fmadd_ps(c, _mm512_loadu_ps(at), acc[r][j]));
        }
    }
}

/* The same for both types: TILE is tile_f32 or tile_bf16. */
#define SCORE_TILE(TILE)                                                       \
    do {                                                                       \
        __m512 acc[rows][WIDE];                                                \
                                                                               \
        zero(acc, rows);                                                       \
        TILE(acc, rows, &f);                                                   \
        score_end(acc, rows, b->s + i * WIDE_ROW, b->shrink, scale);           \
    } while (0)

#define MIX_TILE(TILE)                                                         \
    do {                                                                       \
        __m512 acc[rows][WIDE];                                                \
                                                                               \
        zero(acc, rows);                                                       \
        TILE(acc, rows, &f);                                                   \
        mix_end(acc, rows, b->o + i * WIDE_ROW, b->shrink);                    \
    } while (0)

/* Scores; shrink becomes the new maximum. */
K_TARGET_AVX512 static void score_f32(struct block *b, const void *k,
                                      int64_t row, int64_t keys, int64_t d,
                                      float scale)
{
    const char *base = k;
    struct factor f = {base, row, 4, d, b->q};

    memcpy(b->shrink, b->most, WIDE_ROW * sizeof *b->most);
    TILES(keys, SCORE_TILE(tile_f32))
}

K_TARGET_BF16 static void score_bf16(struct block *b, const void *k,
                                     int64_t row, int64_t keys, int64_t d,
                                     float scale)
{
    const char *base = k;
    struct factor f = {base, row, 4, d / 2, b->q};

    memcpy(b->shrink, b->most, WIDE_ROW * sizeof *b->most);
    TILES(keys, SCORE_TILE(tile_bf16))
}

K_TARGET_AVX512 static void mix_f32(struct block *b, const void *v, int64_t row,
                                    int64_t keys, int64_t d)
{
    const char *base = v;
    struct factor f = {base, 4, row, keys, b->s};

    TILES(d, MIX_TILE(tile_f32))
}

K_TARGET_BF16 static void mix_bf16(struct block *b, const void *v, int64_t row,
                                   int64_t keys, int64_t d)
{
    const char *base = v;
    struct factor f = {base, 4, row, k_ceil_div(keys, 2), b->pair};

    TILES(d, MIX_TILE(tile_bf16))
}

/* 2^x for x <= 0; relative error 1e-7. */
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

/* shrink: from the new maximum to the factor; most: the new maximum; part: of
 * the sum, to be added to it by new_sum. */
K_TARGET_AVX512 K_INLINE void new_most(struct block *b, __m512 most[WIDE],
                                       __m512 part[WIDE])
{
    UNROLL
    for (int j = 0; j < WIDE; j++) {
        __m512 c;

        most[j] = _mm512_loadu_ps(b->shrink + 16 * j);
        c = exp2_f32(_mm512_sub_ps(_mm512_loadu_ps(b->most + 16 * j), most[j]));
        part[j] = _mm512_setzero_ps();
        _mm512_storeu_ps(b->most + 16 * j, most[j]);
        _mm512_storeu_ps(b->shrink + 16 * j, c);
    }
}

K_TARGET_AVX512 K_INLINE void new_sum(struct block *b, __m512 part[WIDE])
{
    UNROLL
    for (int j = 0; j < WIDE; j++) {
        __m512 c = _mm512_loadu_ps(b->shrink + 16 * j);
        __m512 sum = _mm512_loadu_ps(b->sum + 16 * j);

        _mm512_storeu_ps(b->sum + 16 * j, _mm512_fmadd_ps(c, sum, part[j]));
    }
}

K_TARGET_AVX512 static void soften_f32(struct block *b, int64_t keys)
{
    __m512 most[WIDE], part[WIDE];

    new_most(b, most, part);
    for (int64_t k = 0; k < keys; k++) {
        float *s = b->s + k * WIDE_ROW;

        UNROLL
        for (int j = 0; j < WIDE; j++) {
            __m512 p =
                exp2_f32(_mm512_sub_ps(_mm512_loadu_ps(s + 16 * j), most[j]));

            part[j] = _mm512_add_ps(part[j], p);
            _mm512_storeu_ps(s + 16 * j, p);
        }
    }
    new_sum(b, part);
}

K_TARGET_BF16 static void soften_bf16(struct block *b, int64_t keys)
{
    static const uint16_t order[32] = {
        0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    __m512i zip = _mm512_loadu_si512(order);
    __m512 most[WIDE], part[WIDE];

    new_most(b, most, part);
    if (keys % 2) /* its partner weighs nothing */
        for (int j = 0; j < WIDE_ROW; j++)
            b->s[keys * WIDE_ROW + j] = -FLT_MAX;
    for (int64_t k = 0; k < keys; k += 2) {
        const float *s = b->s + k * WIDE_ROW;

        UNROLL
        for (int j = 0; j < WIDE; j++) {
            __m512 p0 =
                exp2_bf16(_mm512_sub_ps(_mm512_loadu_ps(s + 16 * j), most[j]));
            __m512 p1 = exp2_bf16(
                _mm512_sub_ps(_mm512_loadu_ps(s + WIDE_ROW + 16 * j), most[j]));
            __m512i two = (__m512i)_mm512_cvtne2ps_pbh(p1, p0);

            part[j] = _mm512_add_ps(part[j], _mm512_add_ps(p0, p1));
            _mm512_storeu_si512(b->pair + k / 2 * WIDE_ROW + 16 * j,
                                _mm512_permutexvar_epi16(zip, two));
        }
    }
    new_sum(b, part);
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
    .score = score_f32,
    .soften = soften_f32,
    .mix = mix_f32,
    .store = store_wide,
};
static const struct engine engine_bf16 = {
    .queries = WIDE_ROW,
    .form = PAIRS,
    .load = load_wide,
    .score = score_bf16,
    .soften = soften_bf16,
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

K_TARGET_AVX512 K_INLINE void scale_rows(float *s, int64_t rows, float *most,
                                         float scale)
{
    __m512 c = _mm512_set1_ps(scale), m[WIDE];

    UNROLL
    for (int j = 0; j < WIDE; j++)
        m[j] = _mm512_loadu_ps(most + 16 * j);
    for (int64_t r = 0; r < rows; r++, s += WIDE_ROW) {
        UNROLL
        for (int j = 0; j < WIDE; j++) {
            __m512 x = _mm512_mul_ps(_mm512_loadu_ps(s + 16 * j), c);

            m[j] = _mm512_max_ps(m[j], x);
            _mm512_storeu_ps(s + 16 * j, x);
        }
    }
    UNROLL
    for (int j = 0; j < WIDE; j++)
        _mm512_storeu_ps(most + 16 * j, m[j]);
}

TARGET_AMX static void score_amx(struct block *b, const void *k, int64_t row,
                                 int64_t keys, int64_t d, float scale)
{
    const uint16_t *square = k;
    int64_t n = k_ceil_div(d, 32);

    (void)row;
    memcpy(b->shrink, b->most, WIDE_ROW * sizeof *b->most);
    WRITTEN;
    for (int64_t i = 0; i < keys; i += 16) {
        float *sum = b->s + i * WIDE_ROW;

        SUMS(SUM_ZERO);
        add_squares(square, SQUARE, b->q, n);
        SUMS(SUM_KEEP);
        scale_rows(sum, k_min(16, keys - i), b->shrink, scale);
        square += n * SQUARE;
    }
}

/* The result so far, for the new maximum. */
K_TARGET_AVX512 K_INLINE void shrink_rows(float *o, int64_t rows,
                                          const float *shrink)
{
    __m512 c[WIDE], one = _mm512_set1_ps(1);
    int same = 0xffff;

    UNROLL
    for (int j = 0; j < WIDE; j++) {
        c[j] = _mm512_loadu_ps(shrink + 16 * j);
        same &= _mm512_cmp_ps_mask(c[j], one, _CMP_EQ_OQ);
    }
    for (int64_t r = 0; r < rows && same != 0xffff; r++, o += WIDE_ROW) {
        UNROLL
        for (int j = 0; j < WIDE; j++)
            _mm512_storeu_ps(o + 16 * j,
                             _mm512_mul_ps(_mm512_loadu_ps(o + 16 * j), c[j]));
    }
}

TARGET_AMX static void mix_amx(struct block *b, const void *v, int64_t row,
                               int64_t keys, int64_t d)
{
    int64_t pairs = k_ceil_div(keys, 2), end = k_ceil_div(keys, 32) * 16;
    int64_t high = k_ceil_div(d, 16);

    (void)row;
    memset(b->pair + pairs * WIDE_ROW, 0,
           (size_t)((end - pairs) * WIDE_ROW) * sizeof *b->pair);
    shrink_rows(b->o, d, b->shrink);
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
    .score = score_amx,
    .soften = soften_bf16,
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
