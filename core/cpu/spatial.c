/* SPDX-License-Identifier: MIT */
/* spatial.c - kernels that move or weigh pixels, and those over the last
 * dimension. */
#include "cpu/simd.h"
#include "peak.h"

#define UNROLL _Pragma("GCC unroll 16")

K_MULTI(add_to, (float *y, const float *x, int64_t n), (y, x, n))
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] += x[i];
}

/* ---- resize ---- */

struct source {
    int64_t i0, i1;
    float f; /* weight of i1 */
};

/* In f32 and in this order, as PyTorch does. */
static struct source source(int64_t d, int64_t n, int64_t m)
{
    volatile float scaled = ((float)d + 0.5f) * ((float)n / (float)m);
    float at = scaled - 0.5f; /* not in one with the product */
    struct source s;

    at = at > 0 ? at : 0;
    s.i0 = k_min((int64_t)at, n - 1);
    s.i1 = k_min(s.i0 + 1, n - 1);
    s.f = at - (float)s.i0;
    return s;
}

K_MULTI(mix_row, (float *y, const float *a, const float *b, float f, int64_t n),
        (y, a, b, f, n))
{
    float e = 1 - f;

#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] = e * a[i] + f * b[i];
}

/* Rows as f32, one channel: the two columns come from the table. */
K_MULTI(mix_columns,
        (float *y, const float *x, const struct source *s, int64_t n),
        (y, x, s, n))
{
    for (int64_t i = 0; i < n; i++)
        y[i] = (1 - s[i].f) * x[s[i].i0] + s[i].f * x[s[i].i1];
}

struct bilinear {
    int64_t h, w, c, yh, yw;
    const struct source *column;
};

/* Row `row` of the result, rows counted over all pictures: first between two
 * rows of x, into mixed, then between its columns, into line. */
static void bilinear_row(struct k_out y, struct k_in x,
                         const struct bilinear *p, int64_t row, float *mixed,
                         float *line)
{
    struct source s = source(row % p->yh, p->h, p->yh);
    int64_t n = p->w * p->c, m = p->yw * p->c, c = p->c;
    int64_t top = row / p->yh * p->h;
    float *to = k_room(y, row * m, line);

    for (int64_t i = 0; i < n; i += K_CHUNK) {
        float ab[K_CHUNK], bb[K_CHUNK];
        int64_t k = k_min(K_CHUNK, n - i);

        mix_row(mixed + i, k_load(x, (top + s.i0) * n + i, k, ab),
                k_load(x, (top + s.i1) * n + i, k, bb), s.f, k);
    }
    if (c == 1)
        mix_columns(to, mixed, p->column, p->yw);
    else
        for (int64_t i = 0; i < p->yw; i++)
            mix_row(to + i * c, mixed + p->column[i].i0 * c,
                    mixed + p->column[i].i1 * c, p->column[i].f, c);
    k_flush(y, row * m, m, to);
}

size_t k_resize_bilinear_scratch(int64_t w, int64_t c, int64_t yw, int threads)
{
    return (size_t)yw * sizeof(struct source) +
           (size_t)threads * (size_t)((w + yw) * c) * sizeof(float);
}

void k_resize_bilinear(struct k_out y, struct k_in x, int64_t n, int64_t h,
                       int64_t w, int64_t c, int64_t yh, int64_t yw,
                       void *scratch)
{
    struct source *column = scratch;
    struct bilinear p = {h, w, c, yh, yw, column};
    float *buf = (float *)(column + yw);

    for (int64_t i = 0; i < yw; i++)
        column[i] = source(i, w, yw);
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < n * yh; row++) {
        float *mixed = buf + omp_get_thread_num() * (w + yw) * c;

        bilinear_row(y, x, &p, row, mixed, mixed + w * c);
    }
}

void k_resize_nearest(struct k_out y, struct k_in x, int64_t n, int64_t h,
                      int64_t w, int64_t c, int64_t yh, int64_t yw)
{
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < n * yh; row++) {
        int64_t from = (row / yh * h + row % yh * h / yh) * w;

        for (int64_t i = 0; i < yw; i++)
            k_copy_run(y, (row * yw + i) * c, x, (from + i * w / yw) * c, c);
    }
}

/* ---- the rest of a convolution of an enlarged map ---- */

#define PIECE 64 /* channels at a time: a line of them stays near */
#define TERMS 6  /* three taps, each between two pixels */

struct term {
    const float *p;
    float weight;
};

/* The pixels that are mixed into position d of a line of m, at p + i * step. */
static int add_terms(struct term *t, int n, const struct source *s,
                     const float *p, int64_t step)
{
    t[n++] = (struct term){p + s->i0 * step, 1 - s->f};
    if (s->f > 0)
        t[n++] = (struct term){p + s->i1 * step, s->f};
    return n;
}

K_INLINE void sum_of(float *y, const struct term *t, int terms, int64_t from,
                     int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float sum = t[0].weight * t[0].p[from + i];

        UNROLL
        for (int j = 1; j < terms; j++)
            sum += t[j].weight * t[j].p[from + i];
        y[i] = sum;
    }
}

/* y: n numbers of each term, from a place on, by their weights. */
K_MULTI(sum_terms,
        (float *y, const struct term *t, int terms, int64_t from, int64_t n),
        (y, t, terms, from, n))
{
    switch (terms) {
    case 0:
        memset(y, 0, (size_t)n * sizeof *y);
        break;
    case 1:
        sum_of(y, t, 1, from, n);
        break;
    case 2:
        sum_of(y, t, 2, from, n);
        break;
    case 3:
        sum_of(y, t, 3, from, n);
        break;
    case 4:
        sum_of(y, t, 4, from, n);
        break;
    case 5:
        sum_of(y, t, 5, from, n);
        break;
    default:
        sum_of(y, t, TERMS, from, n);
    }
}

struct enlarge {
    const struct k_enlarge *a;
    const float *z;
    const struct source *column; /* of each column of y */
    struct k_out y;
    const float *bias;
    struct k_in residual;
};

static struct source source_of(const struct k_enlarge *a, int64_t d, int64_t n,
                               int64_t m)
{
    if (a->nearest)
        return (struct source){.i0 = d * n / m};
    return source(d, n, m);
}

/* The taps of one column c, summed over those of a row: w pixels of n channels
 * from k on. row: of y, counted over all pictures. */
static void mix_rows(float *to, const struct enlarge *e, int64_t row, int c,
                     int64_t k, int64_t n)
{
    const struct k_enlarge *a = e->a;
    int64_t at = row % a->yh, step = 9 * a->k;
    const float *z = e->z + row / a->yh * a->h * a->w * step + k;
    struct term t[TERMS];
    int terms = 0;

    for (int r = 0; r < 3; r++) {
        struct source s;

        if (at + r - 1 < 0 || at + r - 1 >= a->yh)
            continue;
        s = source_of(a, at + r - 1, a->h, a->yh);
        terms = add_terms(t, terms, &s, z + (3 * r + c) * a->k, a->w * step);
    }
    for (int64_t i = 0; i < a->w; i++)
        sum_terms(to + i * n, t, terms, i * step, n);
}

/* n channels of pixel x of a row; line: of the three columns of taps. */
static void mix_columns3(float *to, const struct enlarge *e, int64_t x,
                         const float *line, int64_t n)
{
    const struct k_enlarge *a = e->a;
    struct term t[TERMS];
    int terms = 0;

    for (int c = 0; c < 3; c++)
        if (x + c - 1 >= 0 && x + c - 1 < a->yw)
            terms = add_terms(t, terms, &e->column[x + c - 1],
                              line + c * a->w * n, n);
    sum_terms(to, t, terms, 0, n);
}

static void enlarge_row(const struct enlarge *e, int64_t row, float *line)
{
    const struct k_enlarge *a = e->a;
    float sum[PIECE], buf[PIECE];

    for (int64_t k = 0, n; k < a->k; k += n) {
        n = k_min(PIECE, a->k - k);
        for (int c = 0; c < 3; c++)
            mix_rows(line + c * a->w * n, e, row, c, k, n);
        for (int64_t x = 0; x < a->yw; x++) {
            int64_t at = (row * a->yw + x) * a->k + k;
            float *to = k_room(e->y, at, buf);

            mix_columns3(sum, e, x, line, n);
            if (e->bias)
                add_to(sum, e->bias + k, n);
            if (e->residual.p)
                add_to(sum, k_load(e->residual, at, n, buf), n);
            k_act_row(to, sum, n, a->act, e->y.t);
            k_flush(e->y, at, n, to);
        }
    }
}

static int64_t line_of(const struct k_enlarge *a)
{
    return 3 * a->w * k_min(PIECE, a->k);
}

size_t k_enlarge_scratch(const struct k_enlarge *a, int threads)
{
    return (size_t)a->yw * sizeof(struct source) +
           (size_t)threads * (size_t)line_of(a) * sizeof(float);
}

void k_enlarge(const struct k_enlarge *a, struct k_out y, const float *z,
               const float *bias, struct k_in residual, void *scratch)
{
    struct source *column = scratch;
    struct enlarge e = {a, z, column, y, bias, residual};
    float *lines = (float *)(column + a->yw);

    for (int64_t i = 0; i < a->yw; i++)
        column[i] = source_of(a, i, a->w, a->yw);
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < a->n * a->yh; row++)
        enlarge_row(&e, row, lines + omp_get_thread_num() * line_of(a));
}

/* ---- pool, pad ---- */

K_MULTI(divide, (float *y, const float *x, float by, int64_t n), (y, x, by, n))
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] / by;
}

/* Channels i..i+n of one bin of the map of width w at element `map`; sums per
 * line first, which keeps their error small. */
static void pool_bin(float *sum, struct k_in x, int64_t map, int64_t w,
                     int64_t c, const int64_t top_left[2],
                     const int64_t bottom_right[2], int64_t i, int64_t n)
{
    float line[K_CHUNK], buf[K_CHUNK];

    memset(sum, 0, (size_t)n * sizeof *sum);
    for (int64_t a = top_left[0]; a < bottom_right[0]; a++) {
        memset(line, 0, (size_t)n * sizeof *line);
        for (int64_t b = top_left[1]; b < bottom_right[1]; b++)
            add_to(line, k_load(x, map + (a * w + b) * c + i, n, buf), n);
        add_to(sum, line, n);
    }
}

void k_pool_avg(struct k_out y, struct k_in x, int64_t n, int64_t h, int64_t w,
                int64_t c, int64_t yh, int64_t yw)
{
    /* small, as there may be few bins */
    const int64_t piece = 128;
    int64_t pieces = k_ceil_div(c, piece);

#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t bin = 0; bin < n * yh * yw; bin++)
        for (int64_t k = 0; k < pieces; k++) {
            int64_t i = k * piece, m = k_min(piece, c - i);
            int64_t oy = bin / yw % yh, ox = bin % yw;
            int64_t from[2] = {oy * h / yh, ox * w / yw};
            int64_t end[2] = {k_ceil_div((oy + 1) * h, yh),
                              k_ceil_div((ox + 1) * w, yw)};
            int64_t area = (end[0] - from[0]) * (end[1] - from[1]);
            float sum[K_CHUNK], yb[K_CHUNK];
            float *to = k_room(y, bin * c + i, yb);

            pool_bin(sum, x, bin / yw / yh * h * w * c, w, c, from, end, i, m);
            divide(to, sum, (float)area, m);
            k_flush(y, bin * c + i, m, to);
        }
}

void k_pad(struct k_out y, struct k_in x, int64_t n, int64_t h, int64_t w,
           int64_t c, int64_t top, int64_t left, int64_t yh, int64_t yw)
{
    size_t pixel = (size_t)c * k_size(y.t);

#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < n * yh; row++) {
        int64_t from = row % yh - top, at = row * yw;

        if (from < 0 || from >= h) {
            memset(k_out_at(y, at * c), 0, (size_t)yw * pixel);
            continue;
        }
        memset(k_out_at(y, at * c), 0, (size_t)left * pixel);
        k_copy_run(y, (at + left) * c, x, (row / yh * h + from) * w * c, w * c);
        memset(k_out_at(y, (at + left + w) * c), 0,
               (size_t)(yw - left - w) * pixel);
    }
}

void k_flip(struct k_out y, struct k_in x, int64_t outer, int64_t n,
            int64_t inner)
{
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < outer * n; i++)
        k_copy_run(y, i * inner, x, (i + n - 1 - 2 * (i % n)) * inner, inner);
}

/* ---- over the last dimension ---- */

K_MULTI(max_row, (float *most, const float *x, int64_t n), (most, x, n))
{
    float m = *most;

#pragma omp simd reduction(max : m)
    for (int64_t i = 0; i < n; i++)
        m = x[i] > m ? x[i] : m;
    *most = m;
}

K_MULTI(exp_row, (float *y, const float *x, float most, float scale, int64_t n),
        (y, x, most, scale, n))
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] = k_exp(x[i] - most) * scale;
}

void k_softmax(struct k_out y, struct k_in x, int64_t rows, int64_t c)
{
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        float most = -INFINITY, xb[K_CHUNK], yb[K_CHUNK];
        double sum = 0;

        for (int64_t i = 0; i < c; i += K_CHUNK) {
            int64_t m = k_min(K_CHUNK, c - i);

            max_row(&most, k_load(x, r * c + i, m, xb), m);
        }
        for (int64_t i = 0; i < c; i += K_CHUNK) {
            int64_t m = k_min(K_CHUNK, c - i);

            exp_row(yb, k_load(x, r * c + i, m, xb), most, 1, m);
            k_sum_row(&sum, yb, m);
        }
        for (int64_t i = 0; i < c; i += K_CHUNK) {
            int64_t at = r * c + i, m = k_min(K_CHUNK, c - i);
            float *to = k_room(y, at, yb);

            exp_row(to, k_load(x, at, m, xb), most, (float)(1 / sum), m);
            k_flush(y, at, m, to);
        }
    }
}

/* First index of x that equals value, or INT32_MAX. */
K_MULTI(find_row, (int32_t * found, const float *x, float value, int32_t n),
        (found, x, value, n))
{
    int32_t at = INT32_MAX;

#pragma omp simd reduction(min : at)
    for (int32_t i = 0; i < n; i++) {
        int32_t k = x[i] == value ? i : INT32_MAX;

        at = k < at ? k : at;
    }
    *found = at;
}

void k_argmax(int32_t *y, struct k_in x, int64_t rows, int64_t c)
{
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        float best = -INFINITY, buf[K_CHUNK];

        y[r] = 0;
        for (int64_t i = 0; i < c; i += K_CHUNK) {
            int64_t m = k_min(K_CHUNK, c - i);
            const float *p = k_load(x, r * c + i, m, buf);
            float most = best;
            int32_t at;

            max_row(&most, p, m);
            if (most > best) {
                find_row(&at, p, most, (int32_t)m);
                y[r] = (int32_t)i + at;
                best = most;
            }
        }
    }
}

/* ---- heat maps ---- */

/* The first maximum; a NaN is above all. */
static int64_t highest(const struct peak_map *m)
{
    float most = m->at[0];
    int64_t at = 0;

    for (int64_t i = 1; i < m->h * m->w && !isnan(most); i++) {
        float v = m->at[i * m->step];

        if (v > most || isnan(v)) {
            most = v;
            at = i;
        }
    }
    return at;
}

void k_heatmap_peaks(float *y, const float *x, int64_t n, int64_t h, int64_t w,
                     int64_t c)
{
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n * c; i++) {
        const struct peak_map m = {x + i / c * h * w * c + i % c, h, w, c};
        int64_t at = highest(&m);
        float *to = y + 3 * i;

        to[0] = to[1] = -1;
        to[2] = m.at[at * c];
        if (to[2] > 0) {
            to[0] = (float)(at % w);
            to[1] = (float)(at / w);
            peak_refine(to, &m);
        }
    }
}
