/* SPDX-License-Identifier: MIT */
#include <math.h>
#include <string.h>

#include "cpu/simd.h"
#include "eval/metrics.h"

const char *const mp_depth_metric_names[MP_DEPTH_METRICS] = {
    "d1",   "d2",       "d3",    "abs_rel", "sq_rel",
    "rmse", "rmse_log", "log10", "silog"};

static int32_t least(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

struct mp_rect mp_depth_crop(enum mp_crop crop, int32_t w, int32_t h)
{
    switch (crop) {
    case MP_CROP_NYU: /* of 640 x 480 */
        return (struct mp_rect){41, 45, least(601, w), least(471, h)};
    case MP_CROP_GARG:
        return (struct mp_rect){
            (int32_t)(0.03594771 * w), (int32_t)(0.40810811 * h),
            (int32_t)(0.96405229 * w), (int32_t)(0.99189189 * h)};
    case MP_CROP_EIGEN:
        return (struct mp_rect){
            (int32_t)(0.0359477 * w), (int32_t)(0.3324324 * h),
            (int32_t)(0.96405229 * w), (int32_t)(0.91351351 * h)};
    case MP_CROP_NONE:
        break;
    }
    return (struct mp_rect){0, 0, w, h};
}

struct mp_rect mp_depth_kb_crop(int32_t w, int32_t h)
{
    int32_t x = (w - 1216) / 2, y = h - 352;

    return (struct mp_rect){x, y, x + 1216, y + 352};
}

struct sums {
    size_t n, within[3];
    double rel, sq_rel, sq, log, log_sq, log_abs;
};

/* ln x of a positive normal number, as 2 atanh((x - 1) / (x + 1)) of its
 * fraction, 0.7..1.4: the series' remainder is below 2^-52 of it. */
K_INLINE double log_of(double x)
{
    const uint64_t one = 0x3ff0000000000000, half = 0x3fe6a09e667f3bcd;
    uint64_t u;
    double k, s, z, sum;

    memcpy(&u, &x, sizeof u);
    u += one - half; /* of the square root of 1/2 */
    const uint64_t power = u >> 52 | 0x4330000000000000;

    u = (u & 0x000fffffffffffff) + half;
    memcpy(&k, &power, sizeof k);
    k -= 0x1p52 + 1023;
    memcpy(&x, &u, sizeof x);
    s = (x - 1) / (x + 1);
    z = s * s;
    sum = 1. / 17 + z * (1. / 19);
    sum = 1. / 13 + z * (1. / 15 + z * sum);
    sum = 1. / 9 + z * (1. / 11 + z * sum);
    sum = 1. / 5 + z * (1. / 7 + z * sum);
    sum = 1. + z * (1. / 3 + z * sum);
    return k * 0.693147180559945309417 + 2 * s * sum;
}

#define BLOCK 1024

struct block { /* the pixels that count of so many side by side */
    size_t n;
    float p[BLOCK], g[BLOCK];
};

K_MULTI(add_block, (struct sums * s, const struct block *b), (s, b))
{
    double rel = 0, sq_rel = 0, sq = 0, sum = 0, log_sq = 0, log_abs = 0;
    int32_t n1 = 0, n2 = 0, n3 = 0;

    /* ratios in 32 bits, as published: what is at a threshold stays there */
#pragma omp simd reduction(+ : n1, n2, n3)
    for (size_t i = 0; i < b->n; i++) {
        float over = b->p[i] / b->g[i], under = b->g[i] / b->p[i];
        float ratio = over > under ? over : under;

        n1 += ratio < 1.25f;
        n2 += ratio < 1.5625f;
        n3 += ratio < 1.953125f;
    }
#pragma omp simd reduction(+ : rel, sq_rel, sq, sum, log_sq, log_abs)
    for (size_t i = 0; i < b->n; i++) {
        double p = (double)b->p[i], g = (double)b->g[i];
        double gap = fabs(p - g), share = gap / g, l = log_of(p / g);

        rel += share;
        sq_rel += gap * share;
        sq += gap * gap;
        sum += l;
        log_sq += l * l;
        log_abs += fabs(l);
    }
    s->within[0] += (size_t)n1;
    s->within[1] += (size_t)n2;
    s->within[2] += (size_t)n3;
    s->rel += rel;
    s->sq_rel += sq_rel;
    s->sq += sq;
    s->log += sum;
    s->log_sq += log_sq;
    s->log_abs += log_abs;
}

/* Put aside those of n pixels that count: without a branch, as holes come at
 * random. There is room for all. */
static void put_aside(struct block *b, const float *pred, const float *gt,
                      size_t n, float low, float high)
{
    for (size_t i = 0; i < n; i++) {
        b->p[b->n] = pred[i];
        b->g[b->n] = gt[i];
        b->n += (gt[i] > low) & (gt[i] < high);
    }
}

/* Predictions that are no number, or that log_of does not know: they make
 * infinities and NaN of the sums. There are none as a rule. */
static void settle(struct sums *s, struct block *b, float low, float high)
{
    int32_t odd = 0;

#pragma omp simd reduction(+ : odd)
    for (size_t i = 0; i < b->n; i++)
        odd += !((b->p[i] > 0) & (b->p[i] < INFINITY));
    for (size_t i = 0; odd > 0 && i < b->n; i++) {
        float p = b->p[i];
        double l;

        if (p > 0 && p < INFINITY)
            continue;
        b->p[i] = p = isnan(p) ? low : isinf(p) ? high : p;
        l = p > 0 ? 0 : log((double)p);
        s->log += l;
        s->log_sq += l * l;
        s->log_abs += fabs(l);
    }
}

static void finish(double out[MP_DEPTH_METRICS], const struct sums *s)
{
    double n = (double)s->n, log_mean = s->log / n;

    for (int i = 0; i < 3; i++)
        out[i] = (double)s->within[i] / n;
    out[3] = s->rel / n;
    out[4] = s->sq_rel / n;
    out[5] = sqrt(s->sq / n);
    out[6] = sqrt(s->log_sq / n);
    out[7] = s->log_abs / n / log(10);
    out[8] = sqrt(s->log_sq / n - 0.5 * log_mean * log_mean);
}

size_t mp_depth_metrics(double out[MP_DEPTH_METRICS], const float *pred,
                        const float *gt, int32_t w, int32_t h,
                        enum mp_crop crop, double min, double max)
{
    struct mp_rect r = mp_depth_crop(crop, w, h);
    float low = (float)min, high = (float)max;
    struct sums s = {0};
    struct block b;

    for (int32_t y = r.y0; y < r.y1; y++)
        for (int32_t x = r.x0, n; x < r.x1; x += n) {
            size_t at = (size_t)y * (size_t)w + (size_t)x;

            n = r.x1 - x < BLOCK ? r.x1 - x : BLOCK;
            b.n = 0;
            put_aside(&b, pred + at, gt + at, (size_t)n, low, high);
            settle(&s, &b, low, high);
            add_block(&s, &b);
            s.n += b.n;
        }
    finish(out, &s);
    return s.n;
}
