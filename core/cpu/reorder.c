/* SPDX-License-Identifier: MIT */
/*
 * reorder.c - weights into blocks of channels of the result: at every start all
 * of a checkpoint goes through here.
 *
 * Rows of the plain weights, K of them, are C x taps long, and often a multiple
 * of 4096 bytes apart, where few fit into the first cache. So each is read
 * once, a piece of PIECE numbers at a time, into a buffer that is transposed.
 */
#include "cpu/simd.h"

#define UNROLL    _Pragma("GCC unroll 16")
#define MOST_ROWS 64
#define PIECE     (2 * K_MOST_TAPS)

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

/* Some channels of a block, all taps of each: number, row of the block. */
struct part {
    float x[PIECE * MOST_ROWS];
    const struct k_layout *l;
    int64_t rows, group, taps; /* group: channels that lie together */
};

static void turn_plain(float *to, int64_t step, const float *from, int64_t row,
                       int64_t rows, int64_t n)
{
    for (int64_t k = 0; k < rows; k++)
        for (int64_t i = 0; i < n; i++)
            to[i * step + k] = from[k * row + i];
}

#if defined(__x86_64__)
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

static void turn(float *to, int64_t step, const float *from, int64_t row,
                 int64_t rows, int64_t n)
{
    int64_t k = 0, i = 0;

#if defined(__x86_64__)
    if (k_level() >= K_AVX512)
        for (; k + 16 <= rows; k += 16)
            for (i = 0; i + 16 <= n; i += 16)
                turn_16(to + i * step + k, step, from + k * row + i, row);
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
    turn(p->x, p->rows, from, row, rows, n);
}

/* Two channels. */
K_MULTI(zip, (uint32_t * to, const float *a, const float *b, int64_t n),
        (to, a, b, n))
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        to[i] = k_to_bf16(a[i]) | (uint32_t)k_to_bf16(b[i]) << 16;
}

/* The blocks of a part, which starts at channel c. */
static void store(struct k_out to, const struct part *p, int64_t at, int64_t c,
                  int64_t n)
{
    const int64_t *stride = p->l->stride;

    for (int64_t i = 0; i < n; i += p->group)
        for (int64_t t = 0; t < p->taps; t++) {
            const float *x = p->x + (i * p->taps + t) * p->rows;
            int64_t y = at + (c + i) / p->group * stride[1] +
                        t / p->l->dim[3] * stride[2] +
                        t % p->l->dim[3] * stride[3];

            if (to.t == MP_BF16)
                zip(k_out_at(to, y), x, x + p->taps * p->rows, p->rows);
            else
                memcpy(k_out_at(to, y), x, (size_t)p->rows * sizeof *x);
        }
}

void k_reorder(struct k_out to, const struct k_layout *l, const float *from,
               const struct k_layout *plain)
{
    int64_t taps = l->dim[2] * l->dim[3], rows = l->block[0];
    int64_t group = l->blocks == 2 ? 2 : 1;
    int64_t each = PIECE / taps / group * group;

#pragma omp parallel for schedule(static) collapse(2)
    for (int64_t k = 0; k < l->dim[0]; k += rows)
        for (int64_t c = 0; c < l->dim[1]; c += each) {
            int64_t n = k_min(each, l->dim[1] - c);
            int64_t all = k_ceil_div(n, group) * group;
            struct part p; /* large: not to be cleared */

            p.l = l;
            p.rows = rows;
            p.group = group;
            p.taps = taps;
            transpose(&p, from + k * plain->stride[0] + c * taps,
                      plain->stride[0], k_min(rows, l->dim[0] - k), n * taps,
                      all * taps);
            store(to, &p, k / rows * l->stride[0], c, all);
        }
}
