/* SPDX-License-Identifier: MIT */
/*
 * peak.h - where the peak of a heat map is between its samples: the arithmetic
 * of MP_OP_HEATMAP_PEAKS, one for the processor and for GPUs (C and CUDA C++).
 * The distribution-aware step of Zhang et al. (2020) as mmpose 0.24 has it for
 * unbiased coordinates (post_dark_udp), in double as there.
 */
#ifndef CORE_PEAK_H
#define CORE_PEAK_H

#include <float.h>
#include <math.h>
#include <stdint.h>

#ifdef __CUDACC__
#define PEAK static __device__ __forceinline__
#else
#define PEAK static inline
#endif

/* How far the blur reaches. */
#define PEAK_REACH 5

/* h x w samples, (y, x) at at[(y * w + x) * step]. */
struct peak_map {
    const float *at;
    int64_t h, w, step;
};

/* Beyond the border, the border. */
PEAK int64_t peak_clamp(int64_t i, int64_t n)
{
    return i < 0 ? 0 : i < n ? i : n - 1;
}

/* The borders are mirrors that show the outermost sample once. */
PEAK int64_t peak_reflect(int64_t i, int64_t n)
{
    while (n > 1 && (i < 0 || i >= n))
        i = i < 0 ? -i : 2 * (n - 1) - i;
    return n > 1 ? i : 0;
}

/* Of the Gaussian of deviation 2, cut off after PEAK_REACH, that blurs the map
 * at (y, x): the part of row y + i. */
PEAK double peak_row(const struct peak_map *m, int64_t y, int64_t x, int i)
{
    /* exp(-i i / 8) for i = 0..5, of sum 1 when both sides are there */
    static const double g[PEAK_REACH + 1] = {
        0.20056541423882, 0.17699835683136, 0.12164907301381,
        0.06511405659938, 0.02714357714348, 0.00881222929256};
    int64_t row = peak_reflect(peak_clamp(y, m->h) + i, m->h);
    double part = 0;

    x = peak_clamp(x, m->w);
    for (int k = -PEAK_REACH; k <= PEAK_REACH; k++) {
        int64_t column = peak_reflect(x + k, m->w);

        part += g[k < 0 ? -k : k] * m->at[(row * m->w + column) * m->step];
    }
    return g[i < 0 ? -i : i] * part;
}

/* Of the sum of all parts. */
PEAK double peak_log(double blurred)
{
    return log(blurred < 0.001 ? 0.001 : blurred > 50 ? 50 : blurred);
}

/* One step of Newton's from (x, y) to the top of the logarithm, a parabola if
 * the peak is a Gaussian. l: it there and at the 8 neighbours, 3 x 3. */
PEAK void peak_step(float xy[2], const double *l)
{
    double dx = (l[5] - l[3]) / 2, dy = (l[7] - l[1]) / 2;
    double dxx = l[5] - 2 * l[4] + l[3] + (double)FLT_EPSILON;
    double dyy = l[7] - 2 * l[4] + l[1] + (double)FLT_EPSILON;
    double dxy = (l[8] - l[5] - l[7] + 2 * l[4] - l[3] - l[1] + l[0]) / 2;
    double det = dxx * dyy - dxy * dxy;

    if (det != 0) {
        xy[0] -= (float)((dyy * dx - dxy * dy) / det);
        xy[1] -= (float)((dxx * dy - dxy * dx) / det);
    }
}

/* From the highest sample, (x, y), by all of this. */
PEAK void peak_refine(float xy[2], const struct peak_map *m)
{
    int64_t x = (int64_t)xy[0], y = (int64_t)xy[1];
    double l[9];

    for (int k = 0; k < 9; k++) {
        double sum = 0;

        for (int i = -PEAK_REACH; i <= PEAK_REACH; i++)
            sum += peak_row(m, y + k / 3 - 1, x + k % 3 - 1, i);
        l[k] = peak_log(sum);
    }
    peak_step(xy, l);
}

#undef PEAK
#endif
