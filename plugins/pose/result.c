/* SPDX-License-Identifier: MIT */
/* result.c - persons as COCO's JSON and as a drawing. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "pose.h"

/* ---- JSON ---- */

#define PERSON_TEXT                                                            \
    2048 /* at most: 57 numbers of up to 25 characters, words                  \
          */

char *persons_json(const struct person *p, const size_t *keep, size_t n,
                   const char *id)
{
    size_t room = 8 + n * (PERSON_TEXT + strlen(id)), at = 0;
    char *text = malloc(room);

    if (!text)
        return NULL;
#define PUT(...) at += (size_t)snprintf(text + at, room - at, __VA_ARGS__)
    PUT("[");
    for (size_t i = 0; i < n; i++) {
        const struct person *q = &p[keep[i]];

        PUT("%s{\"image_id\": %s, \"category_id\": 1, \"keypoints\": [",
            i ? ",\n " : "", id);
        for (int k = 0; k < 3 * POINTS; k++)
            PUT("%s%.9g", k ? ", " : "", q->point[k / 3][k % 3]);
        PUT("], \"score\": %.17g, \"center\": [%.9g, %.9g], \"scale\": "
            "[%.9g, %.9g]}",
            q->score, (double)q->center[0], (double)q->center[1],
            (double)q->scale[0], (double)q->scale[1]);
    }
    PUT("]\n");
#undef PUT
    return text;
}

/* ---- drawing ---- */

struct canvas {
    uint8_t *rgb;
    int32_t w, h;
};

static const uint8_t middle[3] = {51, 153, 255}, left[3] = {0, 255, 0},
                     right[3] = {255, 128, 0};

static const struct {
    int8_t a, b;
    const uint8_t *color;
} limbs[] = {
    {15, 13, left},   {13, 11, left},  {16, 14, right}, {14, 12, right},
    {11, 12, middle}, {5, 11, middle}, {6, 12, middle}, {5, 6, middle},
    {5, 7, left},     {6, 8, right},   {7, 9, left},    {8, 10, right},
    {1, 2, middle},   {0, 1, middle},  {0, 2, middle},  {1, 3, middle},
    {2, 4, middle},   {3, 5, middle},  {4, 6, middle},
};

static const uint8_t *point_color(int k)
{
    return k < 5 ? middle : k % 2 ? left : right;
}

/* A disc round pixel (x, y), which may lie outside. */
static void dot(const struct canvas *c, int32_t x, int32_t y, int32_t diameter,
                const uint8_t color[3])
{
    int32_t even = diameter % 2 == 0, r = diameter / 2;

    for (int32_t i = -r; i <= r; i++)
        for (int32_t k = -r; k <= r; k++) {
            int32_t di = 2 * i - even, dk = 2 * k - even;

            if (di * di + dk * dk > diameter * diameter || y + i < 0 ||
                y + i >= c->h || x + k < 0 || x + k >= c->w)
                continue;
            for (int n = 0; n < 3; n++)
                c->rgb[3 * ((size_t)(y + i) * (size_t)c->w + (size_t)(x + k)) +
                       (size_t)n] = color[n];
        }
}

/* Cut t[0]..t[1] of a line to where from + t * step lies in least..most. */
static int cut(double t[2], double from, double step, double least, double most)
{
    double a, b;

    if (step == 0)
        return from >= least && from <= most;
    a = (least - from) / step;
    b = (most - from) / step;
    t[0] = fmax(t[0], fmin(a, b));
    t[1] = fmin(t[1], fmax(a, b));
    return t[0] <= t[1];
}

static double bounded(double x, double least, double most)
{
    return fmax(fmin(x, most), least);
}

/* From a to b, as far as it can be seen. */
static void line(const struct canvas *c, const double a[2], const double b[2],
                 int32_t thick, const uint8_t color[3])
{
    const double most[2] = {c->w + thick, c->h + thick};
    double t[2] = {0, 1}, from[2], step[2], n;

    for (int i = 0; i < 2; i++)
        if (!cut(t, a[i], b[i] - a[i], -thick, most[i]))
            return;
    for (int i = 0; i < 2; i++) { /* rounding of far ends may be large */
        from[i] = bounded(a[i] + t[0] * (b[i] - a[i]), -thick, most[i]);
        step[i] =
            bounded(a[i] + t[1] * (b[i] - a[i]), -thick, most[i]) - from[i];
    }
    n = fmax(ceil(fmax(fabs(step[0]), fabs(step[1]))), 1);
    for (double i = 0; i <= n; i++)
        dot(c, (int32_t)lround(from[0] + i / n * step[0]),
            (int32_t)lround(from[1] + i / n * step[1]), thick, color);
}

static int is_near(const struct canvas *c, const double at[2], int32_t r)
{
    return at[0] >= -r && at[0] <= c->w + r && at[1] >= -r && at[1] <= c->h + r;
}

static void draw(const struct canvas *c, const struct drawing *d,
                 const struct person *p)
{
    const double(*at)[3] = p->point;

    for (size_t i = 0; d->thickness && i < sizeof limbs / sizeof *limbs; i++) {
        const double *a = at[limbs[i].a], *b = at[limbs[i].b];

        if (a[2] >= d->point_score && b[2] >= d->point_score)
            line(c, a, b, d->thickness, limbs[i].color);
    }
    for (int k = 0; d->radius && k < POINTS; k++)
        if (at[k][2] >= d->point_score && is_near(c, at[k], d->radius))
            dot(c, (int32_t)lround(at[k][0]), (int32_t)lround(at[k][1]),
                2 * d->radius + 1, point_color(k));
}

void persons_draw(uint8_t *rgb, int32_t width, int32_t height,
                  const struct drawing *d, const struct person *p,
                  const size_t *keep, size_t n)
{
    struct canvas c = {rgb, width, height};

    while (n > 0)
        draw(&c, d, &p[keep[--n]]);
}
