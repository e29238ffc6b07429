/* SPDX-License-Identifier: MIT */
/*
 * warp.c - u8 affine warp in the fixed-point arithmetic of OpenCV's warpAffine:
 * positions to 1/32 of a pixel, weights to 1/32768.
 */
#include <math.h>
#include "image.h"

/* The matrix from destination to source, as OpenCV inverts it. */
static void invert(double out[6], const float m[6])
{
    double det = (double)m[0] * m[4] - (double)m[1] * m[3];
    double d = det != 0 ? 1 / det : 0;

    out[0] = m[4] * d;
    out[1] = -m[1] * d;
    out[3] = -m[3] * d;
    out[4] = m[0] * d;
    out[2] = -out[0] * m[2] - out[1] * m[5];
    out[5] = -out[3] * m[2] - out[4] * m[5];
}

/* 1/1024 pixels, kept where sums of two cannot overflow. */
static int64_t fixed(double x)
{
    return (int64_t)rint(fmin(fmax(x * 1024, -0x1p50), 0x1p50));
}

static int is_inside(int64_t x, int64_t y, int32_t w, int32_t h)
{
    return x >= 0 && y >= 0 && x < w && y < h;
}

static void blend(uint8_t *dst, const uint8_t *src, int32_t sw, int32_t sh,
                  int64_t x, int64_t y, int fx, int fy)
{
    int32_t sum[3] = {1 << 14, 1 << 14, 1 << 14};

    for (int i = 0; i < 4; i++) {
        int64_t px = x + (i & 1), py = y + (i >> 1);
        int32_t weight = 32 * (i & 1 ? fx : 32 - fx) * (i >> 1 ? fy : 32 - fy);
        const uint8_t *p;

        if (!is_inside(px, py, sw, sh))
            continue;
        p = src + (py * sw + px) * 3;
        for (int c = 0; c < 3; c++)
            sum[c] += weight * p[c];
    }
    for (int c = 0; c < 3; c++)
        dst[c] = (uint8_t)(sum[c] >> 15);
}

void mp_warp_u8(uint8_t *dst, int32_t dw, int32_t dh, const uint8_t *src,
                int32_t sw, int32_t sh, const float m[6])
{
    double inv[6];

    invert(inv, m);
    for (int32_t y = 0; y < dh; y++) {
        int64_t row_x = fixed(inv[1] * y + inv[2]) + 16;
        int64_t row_y = fixed(inv[4] * y + inv[5]) + 16;

        for (int32_t x = 0; x < dw; x++, dst += 3) {
            int64_t sx = (row_x + fixed(inv[0] * x)) >> 5;
            int64_t sy = (row_y + fixed(inv[3] * x)) >> 5;

            blend(dst, src, sw, sh, sx >> 5, sy >> 5, sx & 31, sy & 31);
        }
    }
}
