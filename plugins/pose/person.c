/* SPDX-License-Identifier: MIT */
/*
 * person.c - from a box to a view, from heat maps to key points, from many
 * persons to the best. Unbiased coordinates and distribution-aware decoding as
 * mmpose 0.24 has them; f32 and f64 where it has them.
 */
#include <float.h>
#include <math.h>
#include "pose.h"

#define UNIT 200.0 /* pixels of COCO's scale */

/* ---- views ---- */

void person_place(struct person *out, const struct mp_box *box, double aspect,
                  double padding)
{
    double w = box->w, h = box->h;

    if (w > aspect * h)
        h = w / aspect;
    else
        w = h * aspect;
    out->center[0] = (float)(box->x + box->w * 0.5);
    out->center[1] = (float)(box->y + box->h * 0.5);
    out->scale[0] = (float)(w / UNIT) * (float)padding;
    out->scale[1] = (float)(h / UNIT) * (float)padding;
    out->score = box->score;
}

/* Side of the padded box, pixels. */
static float side(const struct person *p, int axis)
{
    return p->scale[axis] * (float)UNIT;
}

void person_matrix(float out[6], const struct person *p, double degrees,
                   int32_t w, int32_t h)
{
    double t = degrees * 3.14159265358979323846 / 180, c = cos(t), s = sin(t);
    double sx = (w - 1) / (double)side(p, 0), sy = (h - 1) / (double)side(p, 1);
    double x = p->center[0], y = p->center[1];

    out[0] = (float)(c * sx);
    out[1] = (float)(-s * sx);
    out[2] = (float)(sx * (-x * c + y * s + 0.5 * (double)side(p, 0)));
    out[3] = (float)(s * sy);
    out[4] = (float)(c * sy);
    out[5] = (float)(sy * (-x * s - y * c + 0.5 * (double)side(p, 1)));
}

/* ---- heat maps ---- */

/* Left and right change places in a mirror. */
static const int8_t mirror_image[POINTS] = {0,  2, 1,  4,  3,  6,  5,  8, 7,
                                            10, 9, 12, 11, 14, 13, 16, 15};

void heatmaps_merge(float *out, const float *map, const float *mirrored,
                    int64_t h, int64_t w)
{
    for (int k = 0; k < POINTS; k++)
        for (int64_t y = 0; y < h; y++)
            for (int64_t x = 0; x < w; x++) {
                float v = map[(y * w + x) * POINTS + k];

                if (mirrored)
                    v = (v + mirrored[(y * w + w - 1 - x) * POINTS +
                                      mirror_image[k]]) *
                        0.5f;
                *out++ = v;
            }
}

static int64_t clamp(int64_t i, int64_t n)
{
    return i < 0 ? 0 : i < n ? i : n - 1;
}

/* The border is a mirror that shows the outermost sample once. */
static int64_t reflect(int64_t i, int64_t n)
{
    return i < 0 ? -i : i < n ? i : 2 * (n - 1) - i;
}

/* Logarithm of the map blurred by a Gaussian of deviation 2, cut off after 5;
 * beyond the border, the border. */
static double log_blurred(const float *map, int64_t h, int64_t w, int64_t y,
                          int64_t x)
{
    /* exp(-i i / 8) for i = 0..5, of sum 1 when both sides are there */
    static const double g[6] = {0.20056541423882, 0.17699835683136,
                                0.12164907301381, 0.06511405659938,
                                0.02714357714348, 0.00881222929256};
    double sum = 0;

    y = clamp(y, h);
    x = clamp(x, w);
    for (int i = -5; i <= 5; i++) {
        const float *row = map + reflect(y + i, h) * w;
        double part = 0;

        for (int k = -5; k <= 5; k++)
            part += g[k < 0 ? -k : k] * row[reflect(x + k, w)];
        sum += g[i < 0 ? -i : i] * part;
    }
    return log(sum < 0.001 ? 0.001 : sum > 50 ? 50 : sum);
}

/* One step of Newton's towards the top of the logarithm, a parabola if the peak
 * is a Gaussian. */
static void refine(float xy[2], const float *map, int64_t h, int64_t w)
{
    int64_t x = (int64_t)xy[0], y = (int64_t)xy[1];
    double l[3][3], dx, dy, dxx, dyy, dxy, det;

    for (int i = 0; i < 3; i++)
        for (int k = 0; k < 3; k++)
            l[i][k] = log_blurred(map, h, w, y + i - 1, x + k - 1);
    dx = (l[1][2] - l[1][0]) / 2;
    dy = (l[2][1] - l[0][1]) / 2;
    dxx = l[1][2] - 2 * l[1][1] + l[1][0] + (double)FLT_EPSILON;
    dyy = l[2][1] - 2 * l[1][1] + l[0][1] + (double)FLT_EPSILON;
    dxy = (l[2][2] - l[1][2] - l[2][1] + 2 * l[1][1] - l[1][0] - l[0][1] +
           l[0][0]) /
          2;
    det = dxx * dyy - dxy * dxy;
    if (det != 0) {
        xy[0] -= (float)((dyy * dx - dxy * dy) / det);
        xy[1] -= (float)((dxx * dy - dxy * dx) / det);
    }
}

void heatmap_peak(float out[3], const float *map, int64_t h, int64_t w)
{
    int64_t at = 0;

    for (int64_t i = 1; i < h * w; i++)
        if (map[i] > map[at])
            at = i;
    out[0] = out[1] = -1;
    out[2] = map[at];
    if (map[at] > 0) {
        out[0] = (float)(at % w);
        out[1] = (float)(at / w);
        refine(out, map, h, w);
    }
}

void person_decode(struct person *p, const float *heatmaps, int64_t h,
                   int64_t w)
{
    const double step[2] = {(double)side(p, 0) / (double)(w - 1),
                            (double)side(p, 1) / (double)(h - 1)};

    for (int k = 0; k < POINTS; k++) {
        float at[3];

        heatmap_peak(at, heatmaps + k * h * w, h, w);
        for (int i = 0; i < 2; i++)
            p->point[k][i] =
                (float)((double)at[i] * step[i] + (double)p->center[i] -
                        (double)side(p, i) / 2);
        p->point[k][2] = at[2];
    }
}

/* ---- which persons stay ---- */

void person_rescore(struct person *p, double above)
{
    double sum = 0;
    int n = 0;

    for (int k = 0; k < POINTS; k++)
        if (p->point[k][2] > above) {
            sum += p->point[k][2];
            n++;
        }
    p->score *= n ? sum / n : 0;
}

/* COCO's object key point similarity. */
float person_likeness(const struct person *a, const struct person *b)
{
    static const double sigma[POINTS] = {
        0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072,
        0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089};
    double area = (double)(side(a, 0) * side(a, 1)) / 2 +
                  (double)(side(b, 0) * side(b, 1)) / 2 + DBL_EPSILON;
    double sum = 0;

    for (int k = 0; k < POINTS; k++) {
        double dx = b->point[k][0] - a->point[k][0];
        double dy = b->point[k][1] - a->point[k][1];
        double width = 2 * sigma[k];

        sum += exp(-(dx * dx + dy * dy) / (width * width) / area / 2);
    }
    return (float)(sum / POINTS);
}

/* Insertion by score, of equals the later first. */
static void sort_by_score(size_t *order, const struct person *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        size_t at = i;

        for (; at > 0 && p[order[at - 1]].score <= p[i].score; at--)
            order[at] = order[at - 1];
        order[at] = i;
    }
}

size_t persons_best(size_t *keep, const struct person *p, size_t n, double most)
{
    size_t kept = 0;

    sort_by_score(keep, p, n);
    for (size_t i = 0; i < n; i++) {
        size_t k = 0;

        while (k < kept &&
               (double)person_likeness(&p[keep[k]], &p[keep[i]]) <= most)
            k++;
        if (k == kept)
            keep[kept++] = keep[i];
    }
    return kept;
}
