/* SPDX-License-Identifier: MIT */
/*
 * attention.c - softmax(q k^T scale) v without keeping the scores.
 *
 * A task is some blocks of queries of one head. Keys go by in blocks, too, each
 * for all of the task before the next; the result so far is rescaled when the
 * running maximum grows. All of it is transposed: a vector holds one component
 * of neighbouring queries, so that keys and values are read where they are, one
 * number broadcast at a time; any head size and any number of keys waste
 * nothing, and softmax has no sums across a vector. Both products are then the
 * same loop:
 *
 *     acc[row][query] += b[row][i] * x[i][query]
 *
 * scores: rows are keys, i components of q; result: rows are components of v,
 * i keys. With bf16 products i goes over pairs: neighbouring components of k
 * are pairs already, keys are paired by copying v (k_attention).
 */
#include <float.h>
#include "cpu/simd.h"

#define KEYS         64  /* keys at a time */
#define MOST_QUERIES 64  /* a block of queries, at most */
#define TASK         128 /* queries of a task, at most */

/* Rows that are needed next: fetched while the tiles before are computed, as
 * rows far apart are beyond what CPUs foresee. */
struct ahead {
    const char *p;
    int64_t step, bytes, rows, next; /* bytes of a row; rows fetched so far */
};

/* A block of queries. Rows of engine.queries numbers. */
struct block {
    float *q;      /* components (or pairs of them) x queries */
    float *s;      /* keys x queries: scores, then weights */
    float *pair;   /* keys / 2 x queries: pairs of bf16 weights */
    float *o;      /* d x queries: the result so far */
    float *most;   /* running maximum of the scores, times log2 e */
    float *sum;    /* of the weights */
    float *shrink; /* what the last maximum did to the result so far */
    struct ahead ahead;
};

K_INLINE void fetch(struct ahead *a, int64_t done, int64_t of)
{
    int64_t end = a->rows * done / of;

    for (; a->next < k_min(end, a->rows); a->next++)
        for (int64_t i = 0; i < a->bytes; i += 64)
            __builtin_prefetch(a->p + a->next * a->step + i);
}

/* The two products and softmax for one instruction set. */
struct engine {
    int64_t queries;
    int pairs; /* bf16 products: units of x and b are pairs */
    /* 32-bit units of rows of q, transposed; missing queries are anything */
    void (*load)(float *to, const void *from, int64_t row_bytes, int64_t rows,
                 int64_t units);
    void (*score)(struct block *b, const void *k, int64_t row, int64_t keys,
                  int64_t d, float scale); /* row: bytes, here and below */
    void (*soften)(struct block *b, int64_t keys);
    void (*mix)(struct block *b, const void *v, int64_t row, int64_t keys,
                int64_t d);
    /* rows x d of the result, of type t */
    void (*store)(const struct block *b, struct k_out y, int64_t at,
                  int64_t row, int64_t rows, int64_t d);
};

/* A tile of the product has `rows` rows, a number known when compiling. */
#define TILE_CASE(n, call)                                                     \
    case n: {                                                                  \
        enum { rows = n };                                                     \
        call;                                                                  \
    } break

/* Where a tile's factors lie: b[row * row_step + i * i_step]. */
struct factor {
    const void *b;
    int64_t row_step, i_step; /* bytes */
    int64_t n;                /* values of i */
    const float *x;
};

/* Tiles of all n rows, the first of them row i; base: where b begins. */
#define TILE_ROWS 6
#define TILES(n, call)                                                         \
    for (int64_t i = 0; i < (n); i += TILE_ROWS) {                             \
        f.b = base + i * f.row_step;                                           \
        fetch(&b->ahead, i + TILE_ROWS, n);                                    \
        switch (k_min(TILE_ROWS, (n)-i)) {                                     \
            TILE_CASE(1, call);                                                \
            TILE_CASE(2, call);                                                \
            TILE_CASE(3, call);                                                \
            TILE_CASE(4, call);                                                \
            TILE_CASE(5, call);                                                \
            TILE_CASE(6, call);                                                \
        }                                                                      \
    }

/* Arrays of vectors live in registers only when all indices are constants. */
#define UNROLL _Pragma("GCC unroll 16")

/* ---- AVX-512 ---- */

#if defined(__x86_64__)
#include <immintrin.h>

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
            for (int i = 0; i < k_min(16, units - e); i++)
                _mm512_storeu_ps(to + (e + i) * WIDE_ROW + q, r[i]);
        }
}

K_TARGET_AVX512 K_INLINE void put_row(struct k_out y, int64_t at, __m512 x,
                                      int64_t n)
{
    float f[16];

    if (y.t == MP_F32) {
        _mm512_mask_storeu_ps((float *)y.p + at, (__mmask16)((1u << n) - 1), x);
        return;
    }
    _mm512_storeu_ps(f, x);
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        ((uint16_t *)y.p)[at + i] = k_to_bf16(f[i]);
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
    WIDE_ROW, 0, load_wide, score_f32, soften_f32, mix_f32, store_wide};
static const struct engine engine_bf16 = {
    WIDE_ROW, 1, load_wide, score_bf16, soften_bf16, mix_bf16, store_wide};
#endif

/* ---- any CPU: the compiler splits or fuses vectors of 8 ---- */

typedef int32_t mask8 __attribute__((vector_size(32)));

/* 6 x 2 sums, 2 vectors of x and one of b take 15 of 16 registers. */
#define SLIM     2 /* vectors of 8 queries */
#define SLIM_ROW (8 * SLIM)

K_INLINE void get8(k_vec8 *v, const float *p)
{
    memcpy(v, p, sizeof *v);
}

K_INLINE void put8(float *p, const k_vec8 *v)
{
    memcpy(p, v, sizeof *v);
}

/* Where mask is set, x in place of y. */
K_INLINE void choose8(k_vec8 *y, const mask8 *mask, const k_vec8 *x)
{
    *y = (k_vec8)(((mask8)*x & *mask) | ((mask8)*y & ~*mask));
}

K_INLINE void tile_slim(k_vec8 acc[][SLIM], int rows, const struct factor *f)
{
    const char *b = f->b;
    const float *x = f->x;

    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int j = 0; j < SLIM; j++)
            acc[r][j] = (k_vec8){0};
    }
    for (int64_t i = 0; i < f->n; i++) {
        k_vec8 v[SLIM];

        UNROLL
        for (int j = 0; j < SLIM; j++)
            get8(&v[j], x + 8 * j);
        UNROLL
        for (int r = 0; r < rows; r++) {
            float w;

            memcpy(&w, b + r * f->row_step, sizeof w);
            UNROLL
            for (int j = 0; j < SLIM; j++)
                acc[r][j] += w * v[j];
        }
        b += f->i_step;
        x += SLIM_ROW;
    }
}

K_INLINE void score_slim(struct block *b, int rows, const struct factor *f,
                         float *s, float scale)
{
    k_vec8 acc[TILE_ROWS][SLIM];

    tile_slim(acc, rows, f);
    UNROLL
    for (int j = 0; j < SLIM; j++) {
        k_vec8 most;
        mask8 more;

        get8(&most, b->shrink + 8 * j);
        UNROLL
        for (int r = 0; r < rows; r++) {
            acc[r][j] *= scale;
            more = acc[r][j] > most;
            choose8(&most, &more, &acc[r][j]);
            put8(s + r * SLIM_ROW + 8 * j, &acc[r][j]);
        }
        put8(b->shrink + 8 * j, &most);
    }
}

K_INLINE void mix_slim(struct block *b, int rows, const struct factor *f,
                       float *o)
{
    k_vec8 acc[TILE_ROWS][SLIM];

    tile_slim(acc, rows, f);
    UNROLL
    for (int j = 0; j < SLIM; j++) {
        k_vec8 c, old;

        get8(&c, b->shrink + 8 * j);
        UNROLL
        for (int r = 0; r < rows; r++) {
            float *at = o + r * SLIM_ROW + 8 * j;

            get8(&old, at);
            acc[r][j] += c * old;
            put8(at, &acc[r][j]);
        }
    }
}

K_MULTI(score_plain,
        (struct block * b, const void *k, int64_t row, int64_t keys, int64_t d,
         float scale),
        (b, k, row, keys, d, scale))
{
    const char *base = k;
    struct factor f = {base, row, 4, d, b->q};

    memcpy(b->shrink, b->most, SLIM_ROW * sizeof *b->most);
    TILES(keys, score_slim(b, rows, &f, b->s + i * SLIM_ROW, scale))
}

K_MULTI(mix_plain,
        (struct block * b, const void *v, int64_t row, int64_t keys, int64_t d),
        (b, v, row, keys, d))
{
    const char *base = v;
    struct factor f = {base, 4, row, keys, b->s};

    TILES(d, mix_slim(b, rows, &f, b->o + i * SLIM_ROW))
}

/* 2^x for x <= 0, at least 2^-126; relative error 1e-7. Step by step for all of
 * n vectors, known when compiling: a CPU does not look far enough ahead to
 * begin with one before it is done with the last. */
#define EACH                                                                   \
    UNROLL                                                                     \
    for (int i = 0; i < n; i++)

K_INLINE void exp2_slim(k_vec8 *x, int n)
{
    /* adding 1.5 * 2^23 rounds to an integer in the low bits of the sum */
    const float round = 0x1.8p23f;
    k_vec8 least = (k_vec8){0} - 126, f[4], p[4];
    mask8 less[4], power[4];

    EACH less[i] = x[i] < least;
    EACH choose8(&x[i], &less[i], &least); /* a NaN stays one */
    EACH p[i] = x[i] + round;
    EACH power[i] = (mask8)p[i] << 23; /* of round's own bits none is left */
    EACH f[i] = x[i] - (p[i] - round);
    EACH p[i] = f[i] * 0.00132764713f + 0.00967554282f;
    EACH p[i] = p[i] * f[i] + 0.0555071346f;
    EACH p[i] = p[i] * f[i] + 0.240221202f;
    EACH p[i] = p[i] * f[i] + 0.693146944f;
    EACH p[i] = p[i] * f[i] + 1.00000012f;
    EACH x[i] = (k_vec8)((mask8)p[i] + power[i]);
}

K_MULTI(soften_plain, (struct block * b, int64_t keys), (b, keys))
{
    enum { n = 2 * SLIM }; /* two keys */
    k_vec8 most[SLIM], shrink[SLIM], part[n], p[n];

    UNROLL
    for (int j = 0; j < SLIM; j++) {
        get8(&shrink[j], b->most + 8 * j);
        get8(&most[j], b->shrink + 8 * j);
        shrink[j] -= most[j];
    }
    exp2_slim(shrink, SLIM);
    UNROLL
    for (int j = 0; j < SLIM; j++) {
        put8(b->most + 8 * j, &most[j]);
        put8(b->shrink + 8 * j, &shrink[j]);
    }
    EACH part[i] = (k_vec8){0};
    if (keys % 2) /* its partner weighs nothing */
        for (int j = 0; j < SLIM_ROW; j++)
            b->s[keys * SLIM_ROW + j] = -FLT_MAX;
    for (int64_t k = 0; k < keys; k += 2) {
        float *s = b->s + k * SLIM_ROW;

        EACH get8(&p[i], s + 8 * i);
        EACH p[i] -= most[i % SLIM];
        exp2_slim(p, n);
        EACH part[i] += p[i];
        EACH put8(s + 8 * i, &p[i]);
    }
    UNROLL
    for (int j = 0; j < SLIM; j++) {
        k_vec8 sum;

        get8(&sum, b->sum + 8 * j);
        sum = sum * shrink[j] + (part[j] + part[j + SLIM]);
        put8(b->sum + 8 * j, &sum);
    }
}

K_MULTI(load_plain,
        (float *to, const void *from, int64_t row_bytes, int64_t rows,
         int64_t units),
        (to, from, row_bytes, rows, units))
{
    int64_t whole = units / 8 * 8;

    for (int64_t q = 0; q < SLIM_ROW; q += 8) {
        const char *row[8];

        for (int i = 0; i < 8; i++)
            row[i] = (const char *)from + k_min(q + i, rows - 1) * row_bytes;
        for (int64_t e = 0; e < whole; e += 8) {
            k_vec8 r[8];

            UNROLL
            for (int i = 0; i < 8; i++)
                memcpy(&r[i], row[i] + 4 * e, sizeof r[i]);
            k_transpose8(r);
            UNROLL
            for (int i = 0; i < 8; i++)
                put8(to + (e + i) * SLIM_ROW + q, &r[i]);
        }
        for (int64_t e = whole; e < units; e++)
            for (int i = 0; i < 8; i++)
                memcpy(to + e * SLIM_ROW + q + i, row[i] + 4 * e, sizeof *to);
    }
}

K_INLINE void put_some(struct k_out y, int64_t at, int64_t n, const k_vec8 *v)
{
    if (y.t == MP_F32)
        memcpy((float *)y.p + at, v, (size_t)n * sizeof(float));
    else
        for (int64_t i = 0; i < n; i++)
            ((uint16_t *)y.p)[at + i] = k_to_bf16((*v)[i]);
}

K_MULTI(store_plain,
        (const struct block *b, struct k_out y, int64_t at, int64_t row,
         int64_t rows, int64_t d),
        (b, y, at, row, rows, d))
{
    for (int64_t q = 0; q < rows; q += 8) {
        k_vec8 c;

        get8(&c, b->sum + q);
        c = 1 / c;
        for (int64_t e = 0; e < d; e += 8) {
            int64_t n = k_min(8, d - e), to = at + q * row + e;
            k_vec8 r[8];

            UNROLL
            for (int i = 0; i < 8; i++) {
                get8(&r[i], b->o + k_min(e + i, d - 1) * SLIM_ROW + q);
                r[i] *= c;
            }
            k_transpose8(r);
            for (int i = 0; i < k_min(8, rows - q); i++, to += row)
                put_some(y, to, n, &r[i]);
        }
    }
}

static const struct engine engine_plain = {
    SLIM_ROW, 0, load_plain, score_plain, soften_plain, mix_plain, store_plain};

/* ---- the same for all ---- */

static const struct engine *engine_for(const struct k_attention *a)
{
#if defined(__x86_64__)
    enum k_level l = k_level();

    if (l == K_AVX512_BF16 && !k_has_amx() && a->qt == MP_BF16 &&
        a->kvt == MP_BF16 && a->d % 2 == 0)
        return &engine_bf16;
    if (l >= K_AVX512)
        return &engine_f32;
#endif
    return &engine_plain;
}

/* An operand as the engine wants it. Its element type is f32, bf16 or, for v
 * of bf16, pairs of keys: pair k of head h starts at unit
 * (i * ceil(s / 2) + k) * row + h * d. */
struct operand {
    const char *p;
    struct k_rows step; /* bytes */
    int64_t head;       /* bytes */
};

static struct operand direct(const void *p, enum mp_dtype t, struct k_rows r,
                             int64_t d)
{
    int64_t size = (int64_t)k_size(t);

    return (struct operand){p, {r.batch * size, r.row * size}, d * size};
}

/* A copy as f32, unless it is that. */
static struct operand as_f32(const struct k_attention *a, const void *p,
                             enum mp_dtype t, struct k_rows r, int64_t rows,
                             float **scratch)
{
    int64_t c = a->heads * a->d, n = r.batch ? a->n : 1;
    struct k_rows dense = {r.batch ? rows * c : 0, c};
    float *to = *scratch;

    if (t == MP_F32)
        return direct(p, t, r, a->d);
    for (int64_t i = 0; i < n; i++)
        k_copy((struct k_out){to + i * rows * c, MP_F32}, c,
               (struct k_in){(const uint16_t *)p + i * r.batch, t}, r.row, rows,
               c);
    *scratch += n * rows * c;
    return direct(to, MP_F32, dense, a->d);
}

K_MULTI(zip_row,
        (uint32_t * y, const uint16_t *even, const uint16_t *odd, int64_t n),
        (y, even, odd, n))
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] = even[i] | (uint32_t)odd[i] << 16;
}

/* Rows of v of bf16 by pairs, the last with zeros if need be. */
static struct operand pairs(const struct k_attention *a, const uint16_t *v,
                            uint32_t *to, uint16_t *zero)
{
    int64_t c = a->heads * a->d, n = a->v.batch ? a->n : 1;
    int64_t half = k_ceil_div(a->s, 2);

    memset(zero, 0, (size_t)c * sizeof *zero);
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < n * half; k++) {
        int64_t s = k % half * 2;
        const uint16_t *even = v + k / half * a->v.batch + s * a->v.row;

        zip_row(to + k * c, even, s + 1 < a->s ? even + a->v.row : zero, c);
    }
    return (struct operand){
        (const char *)to, {a->v.batch ? half * c * 4 : 0, c * 4}, a->d * 4};
}

/* Numbers in the scratch of a thread: the arrays of the blocks of a task. */
static int64_t task_size(const struct k_attention *a)
{
    return (2 * a->d + 3) * TASK + (KEYS + KEYS / 2) * MOST_QUERIES;
}

/* Block g of a task, whose scratch is at p. Scores are of one block at a time.
 */
static struct block block_of(const struct k_attention *a, int64_t queries,
                             float *p, int64_t g)
{
    struct block b = {.s = p};

    b.pair = b.s + KEYS * MOST_QUERIES;
    b.q = b.pair + KEYS / 2 * MOST_QUERIES + g * (2 * a->d + 3) * queries;
    b.o = b.q + a->d * queries;
    b.most = b.o + a->d * queries;
    b.sum = b.most + queries;
    b.shrink = b.sum + queries;
    return b;
}

size_t k_attention_scratch(const struct k_attention *a, int threads)
{
    int64_t c = a->heads * a->d, size = threads * task_size(a);
    int64_t nk = a->k.batch ? a->n : 1, nv = a->v.batch ? a->n : 1;

    if (engine_for(a)->pairs) {
        size += nv * k_ceil_div(a->s, 2) * c + k_ceil_div(c, 2);
    } else {
        size += a->qt == MP_F32 ? 0 : a->n * a->t * c;
        size += a->kvt == MP_F32 ? 0 : (nk + nv) * a->s * c;
    }
    return (size_t)size * sizeof(float);
}

struct job {
    const struct k_attention *a;
    const struct engine *e;
    struct operand q, k, v;
    struct k_out y;
    int64_t task; /* queries of one */
};

static void begin(const struct block *b, const struct job *j, const char *q,
                  int64_t rows)
{
    int64_t d = j->a->d, n = j->e->queries;

    j->e->load(b->q, q, j->q.step.row, rows, j->e->pairs ? d / 2 : d);
    memset(b->o, 0, (size_t)(d * n) * sizeof *b->o);
    for (int64_t i = 0; i < n; i++) {
        b->most[i] = -FLT_MAX;
        b->sum[i] = 0;
    }
}

/* Keys s.. for n blocks. All but the first find k and v in the caches: with the
 * first the values are fetched, with the last the keys that come next. */
static void pass(const struct job *j, struct block *b, int64_t n, const char *k,
                 const char *v, int64_t s)
{
    const struct k_attention *a = j->a;
    const struct engine *e = j->e;
    int64_t unit = e->pairs ? 2 : 1, keys = k_min(KEYS, a->s - s);
    int64_t k_row = j->k.step.row, v_row = j->v.step.row;
    float scale = a->scale * 0x1.715476p0f; /* log2 e */
    const struct ahead values = {v + s / unit * v_row, v_row, a->d * 4,
                                 k_ceil_div(keys, unit), 0};
    const struct ahead next = {k + (s + KEYS) * k_row, k_row, a->d * 4 / unit,
                               k_min(KEYS, a->s - s - keys), 0};

    for (int64_t g = 0; g < n; g++) {
        b[g].ahead = g == 0 ? values : (struct ahead){0};
        e->score(&b[g], k + s * k_row, k_row, keys, a->d, scale);
        e->soften(&b[g], keys);
        b[g].ahead = g == n - 1 ? next : (struct ahead){0};
        e->mix(&b[g], v + s / unit * v_row, v_row, keys, a->d);
    }
}

/* Queries first.. of head h of picture i. */
static void attend(const struct job *j, float *scratch, int64_t i, int64_t h,
                   int64_t first)
{
    const struct k_attention *a = j->a;
    const char *q = j->q.p + i * j->q.step.batch + h * j->q.head;
    const char *k = j->k.p + i * j->k.step.batch + h * j->k.head;
    const char *v = j->v.p + i * j->v.step.batch + h * j->v.head;
    int64_t each = j->e->queries, end = k_min(first + j->task, a->t);
    int64_t n = k_ceil_div(end - first, each);
    struct block b[TASK / SLIM_ROW];

    for (int64_t g = 0; g < n; g++) {
        int64_t at = first + g * each;

        b[g] = block_of(a, each, scratch, g);
        begin(&b[g], j, q + at * j->q.step.row, k_min(each, end - at));
    }
    for (int64_t s = 0; s < a->s; s += KEYS)
        pass(j, b, n, k, v, s);
    for (int64_t g = 0; g < n; g++) {
        int64_t at = first + g * each;

        j->e->store(&b[g], j->y, i * a->y.batch + at * a->y.row + h * a->d,
                    a->y.row, k_min(each, end - at), a->d);
    }
}

/* Queries of a task: fewer if there would not be some for every thread. */
static int64_t task_of(const struct k_attention *a, const struct engine *e)
{
    int64_t task = TASK, want = 4 * omp_get_max_threads();

    while (task > e->queries && a->n * a->heads * k_ceil_div(a->t, task) < want)
        task /= 2;
    return task;
}

void k_attention(const struct k_attention *a, void *y, const void *q,
                 const void *k, const void *v, void *scratch)
{
    struct job j = {.a = a, .e = engine_for(a), .y = {y, a->yt}};
    int64_t size = task_size(a), c = a->heads * a->d, tasks;
    float *rest = scratch;

    if (j.e->pairs) {
        uint32_t *pair = scratch;

        rest += (a->v.batch ? a->n : 1) * k_ceil_div(a->s, 2) * c;
        j.q = direct(q, a->qt, a->q, a->d);
        j.k = direct(k, a->kvt, a->k, a->d);
        j.v = pairs(a, v, pair, (uint16_t *)rest);
        rest += k_ceil_div(c, 2);
    } else {
        j.q = as_f32(a, q, a->qt, a->q, a->t, &rest);
        j.k = as_f32(a, k, a->kvt, a->k, a->s, &rest);
        j.v = as_f32(a, v, a->kvt, a->v, a->s, &rest);
    }
    j.task = task_of(a, j.e);
    tasks = k_ceil_div(a->t, j.task); /* of a head */
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < a->n * a->heads * tasks; i++)
        attend(&j, rest + omp_get_thread_num() * size, i / tasks / a->heads,
               i / tasks % a->heads, i % tasks * j.task);
}
