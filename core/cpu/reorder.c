/* SPDX-License-Identifier: MIT */
/*
 * reorder.c - weights into blocks of channels of the result: all of a
 * checkpoint goes through here, for a first picture at every step.
 *
 * Rows of the plain weights, K of them, are C x taps long, and often a multiple
 * of 4096 bytes apart, where few fit into the first cache. So each is read
 * once, a piece of PIECE numbers at a time, into a buffer that is transposed.
 */
#include "cpu/simd.h"

#define UNROLL    _Pragma("GCC unroll 16")
#define MOST_ROWS 64
#define PIECE     (16 * 9)
#define POINTS    16 /* of Winograd's, in place of 9 taps */

typedef uint32_t vec16_bits __attribute__((vector_size(64)));

/* Blocks of K for f32, of K with pairs of channels innermost for bf16. */
int k_can_reorder(const struct k_layout *to, enum mp_dtype t,
                  const struct k_layout *from)
{
    int64_t taps = to->dim[2] * to->dim[3];
    int pairs = to->blocks == 2 && to->axis[1] == 1 && to->block[1] == 2;

    return (t == MP_BF16 ? pairs : to->blocks == 1) && to->axis[0] == 0 &&
           to->block[0] <= MOST_ROWS && taps <= K_MOST_TAPS &&
           from->blocks == 0 && from->stride[3] == 1 &&
           from->stride[2] == to->dim[3] && from->stride[1] == taps;
}

/* Channels that lie together. */
static int64_t group_of(const struct k_layout *l)
{
    return l->blocks == 2 ? 2 : 1;
}

/* Where tap t of a block begins whose first row is k. */
static int64_t tap_at(const struct k_layout *l, int64_t k, int64_t t)
{
    int64_t row = t * l->dim[0] + k;

    if (l->of)
        return row / l->of * l->stride[0] + row % l->of * group_of(l);
    return k / l->block[0] * l->stride[0] + t / l->dim[3] * l->stride[2] +
           t % l->dim[3] * l->stride[3];
}

/* Some channels of a block, all taps of each: number, row of the block. */
struct part {
    float x[PIECE * MOST_ROWS];
    const struct k_layout *l;
    int64_t k;           /* the first row */
    int64_t rows, group; /* group: channels that lie together */
    int64_t taps;        /* of the weights */
};

static void turn_plain(float *to, int64_t step, const float *from, int64_t row,
                       int64_t rows, int64_t n)
{
    for (int64_t k = 0; k < rows; k++)
        for (int64_t i = 0; i < n; i++)
            to[i * step + k] = from[k * row + i];
}

#if defined(__x86_64__)
K_TARGET_AVX2 static void turn_8(float *to, int64_t step, const float *from,
                                 int64_t row)
{
    k_vec8 r[8];

    UNROLL
    for (int k = 0; k < 8; k++)
        memcpy(&r[k], from + k * row, sizeof r[k]);
    k_transpose8(r);
    UNROLL
    for (int i = 0; i < 8; i++)
        memcpy(to + i * step, &r[i], sizeof r[i]);
}

K_TARGET_AVX512 static void turn_16(float *to, int64_t step, const float *from,
                                    int64_t row)
{
    __m512 r[16];

    UNROLL
    for (int k = 0; k < 16; k++)
        r[k] = _mm512_loadu_ps(from + k * row);
    k_transpose(r);
    UNROLL
    for (int i = 0; i < 16; i++)
        _mm512_storeu_ps(to + i * step, r[i]);
}
#endif

void k_turn(float *to, int64_t step, const float *from, int64_t row,
            int64_t rows, int64_t n)
{
    int64_t k = 0, i = 0;

#if defined(__x86_64__)
    if (k_level() >= K_AVX512)
        for (; k + 16 <= rows; k += 16)
            for (i = 0; i + 16 <= n; i += 16)
                turn_16(to + i * step + k, step, from + k * row + i, row);
    else if (k_level() == K_AVX2)
        for (; k + 8 <= rows; k += 8)
            for (i = 0; i + 8 <= n; i += 8)
                turn_8(to + i * step + k, step, from + k * row + i, row);
#endif
    turn_plain(to + i * step, step, from + i, row, k, n - i);
    turn_plain(to + k, step, from + k * row, row, rows - k, n);
}

/* n numbers of each of `rows` rows; the rest is 0. */
static void transpose(struct part *p, const float *from, int64_t row,
                      int64_t rows, int64_t n, int64_t all)
{
    if (rows < p->rows || n < all)
        memset(p->x, 0, (size_t)(all * p->rows) * sizeof *p->x);
    k_turn(p->x, p->rows, from, row, rows, n);
}

/* Two channels. */
K_MULTI(zip, (uint32_t * to, const float *a, const float *b, int64_t n),
        (to, a, b, n))
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        to[i] = k_to_bf16(a[i]) | (uint32_t)k_to_bf16(b[i]) << 16;
}

#if defined(__x86_64__)
/* The same of 32 channels with one tap. */
K_TARGET_BF16 static void turn_pairs(uint16_t *to, int64_t step,
                                     const float *from, int64_t row)
{
    __m512 r[16];

    UNROLL
    for (int k = 0; k < 16; k++)
        r[k] = (__m512)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + k * row + 16),
                                           _mm512_loadu_ps(from + k * row));
    k_transpose(r);
    UNROLL
    for (int i = 0; i < 16; i++)
        _mm512_storeu_ps(to + i * step, r[i]);
}

/* All rows of a block, n channels. */
static void turn_all(struct k_out to, const struct k_layout *l,
                     const float *from, int64_t row, int64_t k, int64_t c,
                     int64_t n)
{
    int64_t rows = l->block[0];
    int64_t at = tap_at(l, k, 0) + c / 2 * l->stride[1];

    for (int64_t j = 0; j < rows; j += 16) /* few rows at once */
        for (int64_t i = 0; i < n; i += 32)
            turn_pairs(k_out_at(to, at + i / 2 * l->stride[1] + 2 * j),
                       l->stride[1], from + j * row + i, row);
}

/* ---- Winograd's points: G g G^T of 3x3 taps g ---- */

/* Three taps become four. */
K_TARGET_BF16 K_INLINE void widen(k_vec16 *to, const k_vec16 *g, int step)
{
    k_vec16 even = .5f * (g[0] + g[2 * step]), odd = .5f * g[step];

    to[0] = g[0];
    to[step] = even + odd;
    to[2 * step] = even - odd;
    to[3 * step] = g[2 * step];
}

/* To bf16, as k_to_bf16 does; e: the error of it. */
K_TARGET_BF16 K_INLINE void narrow(k_vec16 *e, k_vec16 *d)
{
    k_vec16 before = *d;
    vec16_bits u;

    memcpy(&u, d, sizeof u);
    u = (u + 0x7fff + (u >> 16 & 1)) & 0xffff0000;
    memcpy(d, &u, sizeof u);
    *e = *d - before;
}

/* The points of a channel, for 16 channels of the result, and the errors of
 * those that are rounded. */
struct points {
    k_vec16 d[POINTS], e[POINTS];
};

K_TARGET_BF16 K_INLINE void to_points(struct points *p, const float *x,
                                      int64_t rows)
{
    k_vec16 g[9], columns[12];

    UNROLL
    for (int i = 0; i < 9; i++)
        memcpy(&g[i], x + i * rows, sizeof g[i]);
    UNROLL
    for (int i = 0; i < 3; i++)
        widen(columns + i, g + i, 3);
    UNROLL
    for (int i = 0; i < 4; i++)
        widen(p->d + 4 * i, columns + 3 * i, 1);
}

/* Rounds a point of a row of four: 1, then 2, then 0 and 3, each so that it
 * makes up for the errors of those before as well as it can: of pixels that
 * have nothing to do with each other, two results have the error
 *
 *     e0^2 + 2 (e1 - e2)^2 + (e1 + e2 - e0)^2 + (e1 + e2 - e3)^2 + e3^2
 *
 * where e are those of the points. Likewise of four rows. */
K_TARGET_BF16 K_INLINE void round_point(struct points *p, int row, int i)
{
    k_vec16 *d = p->d + 4 * row, *e = p->e + 4 * row, *up = p->e + i;
    k_vec16 make_up;

    if (row == 2)
        d[i] += up[4] * (1 / 3.f);
    else if (row != 1)
        d[i] += .5f * (up[4] + up[8] + up[4] * (1 / 3.f));
    if (i == 1) {
        narrow(&e[i], &d[i]);
        return;
    }
    make_up = i == 2 ? e[1] * (1 / 3.f) : .5f * (e[1] + e[2]);
    d[i] += make_up;
    narrow(&e[i], &d[i]);
    e[i] += make_up;
}

/* Two channels: points in rows, and points of a row, so many numbers apart. */
K_TARGET_BF16 static void zip_points(uint16_t *to, int64_t down, int64_t across,
                                     const float *x, int64_t rows)
{
    /* none right after those that it waits for */
    static const int order[POINTS][2] = {
        {1, 1}, {1, 2}, {2, 1}, {1, 0}, {1, 3}, {2, 2}, {0, 1}, {3, 1},
        {2, 0}, {2, 3}, {0, 2}, {3, 2}, {0, 0}, {0, 3}, {3, 0}, {3, 3}};

    for (int64_t k = 0; k < rows; k += 16) {
        struct points a, b;

        to_points(&a, x + k, rows);
        to_points(&b, x + 9 * rows + k, rows);
        UNROLL
        for (int i = 0; i < POINTS; i++) {
            int row = order[i][0], n = order[i][1];
            vec16_bits u, v;

            round_point(&a, row, n);
            round_point(&b, row, n);
            memcpy(&u, &a.d[4 * row + n], sizeof u);
            memcpy(&v, &b.d[4 * row + n], sizeof v);
            u = u >> 16 | v;
            memcpy(to + row * down + n * across + 2 * k, &u, sizeof u);
        }
    }
}
#endif

/* ---- all of it ---- */

/* Channels that lie together, from x on, where the layout has them. */
static void store(struct k_out to, const struct part *p, int64_t at,
                  const float *x)
{
    int64_t taps = p->l->dim[2] * p->l->dim[3];

    for (int64_t t = 0; t < taps; t++, x += p->rows) {
        int64_t y = at + tap_at(p->l, p->k, t);

        if (to.t == MP_BF16)
            zip(k_out_at(to, y), x, x + taps * p->rows, p->rows);
        else
            memcpy(k_out_at(to, y), x, (size_t)p->rows * sizeof *x);
    }
}

/* The blocks of a part, which starts at channel c. */
static void store_all(struct k_out to, const struct part *p, int64_t c,
                      int64_t n)
{
    for (int64_t i = 0; i < n; i += p->group)
        store(to, p, (c + i) / p->group * p->l->stride[1],
              p->x + i * p->taps * p->rows);
}

#if defined(__x86_64__)
/* Likewise as points, which takes a while: meanwhile those rows are fetched
 * that lie behind `from`, as many numbers of each. */
static void store_points(struct k_out to, const struct part *p, int64_t c,
                         int64_t n, const float *from, int64_t row)
{
    const struct k_layout *l = p->l;
    int64_t taps = p->taps, at = tap_at(l, p->k, 0) + c / 2 * l->stride[1];

    for (int64_t i = 0; i < n; i += 2) {
        for (int64_t k = p->rows * i / n; k < p->rows * (i + 2) / n; k++)
            for (int64_t j = 0; j < n * taps + 16; j += 16)
                __builtin_prefetch(from + k * row + n * taps + j, 0, 2);
        zip_points(k_out_at(to, at + i / 2 * l->stride[1]), l->stride[2],
                   l->stride[3], p->x + i * taps * p->rows, p->rows);
    }
}
#endif

/* Channels of a piece that fits into a buffer. */
static int64_t piece_of(const struct k_layout *plain, int64_t group)
{
    int64_t n = PIECE / (plain->dim[2] * plain->dim[3]);

    return n - n % (n >= 32 ? 32 : group);
}

/* n channels from c on of a block of rows from k on, through one. */
static void reorder_piece(struct k_out to, const struct k_layout *l,
                          const float *from, const struct k_layout *plain,
                          int64_t k, int64_t c, int64_t n)
{
    int64_t taps = plain->dim[2] * plain->dim[3], rows = l->block[0];
    int64_t group = group_of(l);
    int64_t all = k_ceil_div(n, group) * group;
    struct part p; /* large: not to be cleared */

    from += k * plain->stride[0] + c * taps;
    p.l = l;
    p.k = k;
    p.rows = rows;
    p.group = group;
    p.taps = taps;
    transpose(&p, from, plain->stride[0], k_min(rows, l->dim[0] - k), n * taps,
              all * taps);
#if defined(__x86_64__)
    if (l->dim[2] * l->dim[3] > taps) {
        store_points(to, &p, c, all, from, plain->stride[0]);
        return;
    }
#endif
    store_all(to, &p, c, all);
}

static void reorder_part(struct k_out to, const struct k_layout *l,
                         const float *from, const struct k_layout *plain,
                         int64_t k, int64_t c, int64_t n)
{
    int64_t each = piece_of(plain, group_of(l));

#if defined(__x86_64__)
    int64_t taps = plain->dim[2] * plain->dim[3], rows = l->block[0];

    if (to.t == MP_BF16 && taps == 1 && n % 32 == 0 && rows % 16 == 0 &&
        k + rows <= l->dim[0] && k_has_bf16()) {
        turn_all(to, l, from + k * plain->stride[0] + c, plain->stride[0], k, c,
                 n);
        return;
    }
#endif
    for (int64_t i = 0; i < n; i += each)
        reorder_piece(to, l, from, plain, k, c + i, k_min(each, n - i));
}

/* Memory gives long parts of rows sooner. */
#define PART 1024

void k_reorder(struct k_out to, const struct k_layout *l, const float *from,
               const struct k_layout *plain)
{
    int64_t each = piece_of(plain, group_of(l)), tasks = 16;

    if (plain->dim[2] * plain->dim[3] == 1) {
        each = PART;
        tasks = 1;
    }
#pragma omp parallel for schedule(dynamic, tasks) collapse(2)
    for (int64_t k = 0; k < l->dim[0]; k += l->block[0])
        for (int64_t c = 0; c < l->dim[1]; c += each)
            reorder_part(to, l, from, plain, k, c, k_min(each, l->dim[1] - c));
}

void k_reorder_block(struct k_out to, const struct k_layout *l,
                     const float *from, const struct k_layout *plain)
{
    reorder_part(to, l, from, plain, 0, 0, l->dim[1]);
}
