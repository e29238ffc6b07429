/* SPDX-License-Identifier: MIT */
/*
 * person.c - from a box to a view, from peaks of heat maps to key points, from
 * many persons to the best. Unbiased coordinates as mmpose 0.24 has them; f32
 * and f64 where it has them.
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

/* ---- key points ---- */

void person_decode(struct person *p, const float *peak, int64_t h, int64_t w)
{
    const double step[2] = {(double)side(p, 0) / (double)(w - 1),
                            (double)side(p, 1) / (double)(h - 1)};

    for (int k = 0; k < POINTS; k++, peak += 3) {
        for (int i = 0; i < 2; i++)
            p->point[k][i] =
                (float)((double)peak[i] * step[i] + (double)p->center[i] -
                        (double)side(p, i) / 2);
        p->point[k][2] = peak[2];
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
