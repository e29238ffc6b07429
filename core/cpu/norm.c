/* SPDX-License-Identifier: MIT */
/*
 * norm.c - group, layer and batch norm, each followed by an act.
 *
 * All end as y = act((x - shift[c]) * scale[c] + bias[c]). The mean is taken
 * off first: folded into the bias, a mean far from 0 would cost digits.
 */
#include "cpu/simd.h"

static float *as_f32(float *to, struct k_in x, int64_t n)
{
    for (int64_t i = 0; i < n; i += K_CHUNK) {
        int64_t m = k_min(K_CHUNK, n - i);
        const float *from = k_load(x, i, m, to + i);

        if (from != to + i)
            memcpy(to + i, from, (size_t)m * sizeof *to);
    }
    return to;
}

K_MULTI(affine_row,
        (float *y, const float *x, const float *shift, const float *scale,
         const float *bias, int64_t n),
        (y, x, shift, scale, bias, n))
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] = (x[i] - shift[i]) * scale[i] + bias[i];
}

/* One row of C elements that starts at element `at`. */
static void affine(struct k_out y, struct k_in x, int64_t at,
                   const float *shift, const float *scale, const float *bias,
                   int64_t c, int act)
{
    for (int64_t i = 0; i < c; i += K_CHUNK) {
        float xb[K_CHUNK], yb[K_CHUNK], *to = k_room(y, at + i, yb);
        int64_t m = k_min(K_CHUNK, c - i);

        affine_row(to, k_load(x, at + i, m, xb), shift + i, scale + i, bias + i,
                   m);
        if (act != MP_ACT_NONE)
            k_act_row(to, to, m, act, y.t);
        k_flush(y, at + i, m, to);
    }
}

/* ---- batch norm ---- */

size_t k_batch_norm_scratch(int64_t c)
{
    return 4 * (size_t)c * sizeof(float);
}

void k_batch_norm(struct k_out y, struct k_in x, struct k_in weight,
                  struct k_in bias, struct k_in mean, struct k_in var,
                  int64_t rows, int64_t c, float eps, int act, void *scratch)
{
    float *w = as_f32(scratch, weight, c), *b = as_f32(w + c, bias, c);
    float *shift = as_f32(b + c, mean, c), *v = as_f32(shift + c, var, c);

    for (int64_t i = 0; i < c; i++)
        w[i] = (float)(w[i] / sqrt((double)v[i] + eps));
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        affine(y, x, r * c, shift, w, b, c, act);
}

/* ---- group norm ---- */

/*
 * Sums of x - k and its square per channel, k the value at the middle
 * position: near enough to the mean that the square of the sums can be taken
 * off without loss. Blocks of rows are summed in f32, their sums in double.
 */

#define MOST_BLOCKS 256

static int64_t block_rows(int64_t hw)
{
    int64_t rows = k_ceil_div(hw, MOST_BLOCKS);

    return rows < 32 ? 32 : rows;
}

K_MULTI(sum_rows,
        (float *sum, float *square, const float *k, const float *const *x,
         int64_t n),
        (sum, square, k, x, n))
{
    const float *x0 = x[0], *x1 = x[1], *x2 = x[2], *x3 = x[3];

#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float a = x0[i] - k[i], b = x1[i] - k[i];
        float c = x2[i] - k[i], d = x3[i] - k[i];

        sum[i] += (a + b) + (c + d);
        square[i] += (a * a + b * b) + (c * c + d * d);
    }
}

/* Channels i..i+n of `rows` rows from row `first` on. */
static void sum_block(float *sum, float *square, const float *k, struct k_in x,
                      int64_t first, int64_t rows, int64_t c, int64_t i,
                      int64_t n)
{
    float buf[4][K_CHUNK];

    memset(sum, 0, (size_t)n * sizeof *sum);
    memset(square, 0, (size_t)n * sizeof *square);
    for (int64_t r = 0; r < rows; r += 4) {
        const float *row[4] = {k, k, k, k}; /* past the end: adds 0 */

        for (int64_t j = 0; j < k_min(4, rows - r); j++)
            row[j] = k_load(x, (first + r + j) * c + i, n, buf[j]);
        sum_rows(sum, square, k, row, n);
    }
}

struct group_norm {
    int64_t hw, c, groups, rows, blocks;
    const float *weight, *bias; /* C */
    float *middle;              /* N,C */
    float *sums;                /* N,blocks,2,C */
    float *shift, *scale, *add; /* N,C: of affine() */
};

size_t k_group_norm_scratch(int64_t n, int64_t hw, int64_t c, int64_t groups)
{
    int64_t blocks = k_ceil_div(hw, block_rows(hw));

    (void)groups;
    return (size_t)(2 * c + 4 * n * c + n * blocks * 2 * c) * sizeof(float);
}

/* Shift and scale of one group of one picture from the sums: mean and squares
 * around it of each channel, merged one after the other. */
static void group_finish(const struct group_norm *g, int64_t n, int64_t group,
                         float eps)
{
    int64_t each = g->c / g->groups, first = group * each;
    double count = (double)g->hw, mean = 0, square = 0, scale;

    for (int64_t j = first; j < first + each; j++) {
        double s = 0, q = 0, before = (double)(j - first), d;

        for (int64_t b = 0; b < g->blocks; b++) {
            const float *p = g->sums + (n * g->blocks + b) * 2 * g->c + j;

            s += p[0];
            q += p[g->c];
        }
        d = g->middle[n * g->c + j] + s / count - mean;
        mean += d / (before + 1);
        square += q - s * s / count + d * d * count * before / (before + 1);
    }
    scale = 1 / sqrt(square / (count * (double)each) + eps);
    for (int64_t j = first; j < first + each; j++) {
        float shift = (float)mean;

        g->shift[n * g->c + j] = shift;
        g->scale[n * g->c + j] = (float)(g->weight[j] * scale);
        /* with what the rounded mean misses */
        g->add[n * g->c + j] =
            (float)(g->bias[j] + (shift - mean) * scale * g->weight[j]);
    }
}

void k_group_norm(struct k_out y, struct k_in x, struct k_in weight,
                  struct k_in bias, int64_t n, int64_t hw, int64_t c,
                  int64_t groups, float eps, int act, void *scratch)
{
    float *w = as_f32(scratch, weight, c), *b = as_f32(w + c, bias, c);
    struct group_norm g = {
        .hw = hw, .c = c, .groups = groups, .rows = block_rows(hw)};

    g.blocks = k_ceil_div(hw, g.rows);
    g.weight = w;
    g.bias = b;
    g.middle = b + c;
    g.shift = g.middle + n * c;
    g.scale = g.shift + n * c;
    g.add = g.scale + n * c;
    g.sums = g.add + n * c;
    for (int64_t i = 0; i < n; i++) {
        struct k_in at = {k_at(x, (i * hw + hw / 2) * c), x.t};

        as_f32(g.middle + i * c, at, c);
    }
#pragma omp parallel
    {
#pragma omp for collapse(2) schedule(static)
        for (int64_t i = 0; i < n; i++)
            for (int64_t b = 0; b < g.blocks; b++) {
                float *sum = g.sums + (i * g.blocks + b) * 2 * c;

                for (int64_t j = 0; j < c; j += K_CHUNK)
                    sum_block(sum + j, sum + c + j, g.middle + i * c + j, x,
                              i * hw + b * g.rows,
                              k_min(g.rows, hw - b * g.rows), c, j,
                              k_min(K_CHUNK, c - j));
            }
#pragma omp for collapse(2) schedule(static)
        for (int64_t i = 0; i < n; i++)
            for (int64_t k = 0; k < groups; k++)
                group_finish(&g, i, k, eps);
#pragma omp for collapse(2) schedule(static)
        for (int64_t i = 0; i < n; i++)
            for (int64_t r = 0; r < hw; r++)
                affine(y, x, (i * hw + r) * c, g.shift + i * c, g.scale + i * c,
                       g.add + i * c, c, act);
    }
}

/* ---- layer norm ---- */

K_MULTI(scale_row,
        (float *y, const float *x, double mean, float scale, const float *w,
         const float *b, int64_t n),
        (y, x, mean, scale, w, b, n))
{
    float shift = (float)mean, rest = (float)(mean - shift);

#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] = (x[i] - shift - rest) * scale * w[i] + b[i];
}

#define MOST_ROW 2048 /* longer rows of bf16 are converted three times */

/* Elements i..i+n of the row at `at`; whole: the row as f32, or NULL. */
static const float *part(const float *whole, struct k_in x, int64_t at,
                         int64_t i, int64_t n, float *buf)
{
    return whole ? whole + i : k_load(x, at + i, n, buf);
}

static void layer_norm_row(struct k_out y, struct k_in x, int64_t at,
                           const float *w, const float *b, int64_t c, float eps,
                           int act)
{
    float xb[MOST_ROW], yb[K_CHUNK];
    const float *whole = c <= MOST_ROW ? k_load(x, at, c, xb) : NULL;
    double sum = 0, square = 0;

    for (int64_t i = 0; i < c; i += K_CHUNK) {
        int64_t m = k_min(K_CHUNK, c - i);

        k_sum_row(&sum, part(whole, x, at, i, m, xb), m);
    }
    for (int64_t i = 0; i < c; i += K_CHUNK) {
        int64_t m = k_min(K_CHUNK, c - i);

        k_sum_squares(&square, part(whole, x, at, i, m, xb), m,
                      (float)(sum / (double)c));
    }
    for (int64_t i = 0; i < c; i += K_CHUNK) {
        float *to = k_room(y, at + i, yb);
        int64_t m = k_min(K_CHUNK, c - i);

        scale_row(to, part(whole, x, at, i, m, xb), sum / (double)c,
                  (float)(1 / sqrt(square / (double)c + eps)), w + i, b + i, m);
        if (act != MP_ACT_NONE)
            k_act_row(to, to, m, act, y.t);
        k_flush(y, at + i, m, to);
    }
}

size_t k_layer_norm_scratch(int64_t c)
{
    return 2 * (size_t)c * sizeof(float);
}

void k_layer_norm(struct k_out y, struct k_in x, struct k_in weight,
                  struct k_in bias, int64_t rows, int64_t c, float eps, int act,
                  void *scratch)
{
    float *w = as_f32(scratch, weight, c), *b = as_f32(w + c, bias, c);

#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        layer_norm_row(y, x, r * c, w, b, c, eps, act);
}
