/* SPDX-License-Identifier: MIT */
#include <math.h>

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

static void add_pixel(struct sums *s, float p, float g)
{
    /* in 32 bits, as published: what is at a threshold stays there */
    float over = p / g, under = g / p, ratio = over > under ? over : under;
    double gap = (double)p - (double)g, l = log((double)p / (double)g);

    s->n++;
    s->within[0] += ratio < 1.25f;
    s->within[1] += ratio < 1.5625f;
    s->within[2] += ratio < 1.953125f;
    s->rel += fabs(gap) / (double)g;
    s->sq_rel += gap * gap / (double)g;
    s->sq += gap * gap;
    s->log += l;
    s->log_sq += l * l;
    s->log_abs += fabs(l);
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

    for (int32_t y = r.y0; y < r.y1; y++)
        for (int32_t x = r.x0; x < r.x1; x++) {
            size_t i = (size_t)y * (size_t)w + (size_t)x;
            float p = pred[i];

            if (!(gt[i] > low && gt[i] < high))
                continue;
            p = isnan(p) ? low : isinf(p) ? high : p;
            add_pixel(&s, p, gt[i]);
        }
    finish(out, &s);
    return s.n;
}
