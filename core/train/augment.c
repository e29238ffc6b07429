/* SPDX-License-Identifier: MIT */
#include <math.h>
#include <string.h>
#include "train/augment.h"

static uint8_t clamp(double x)
{
    return (uint8_t)(x < 0 ? 0 : x > 255 ? 255 : x);
}

/* n bytes, `step` apart */
static void look_up(uint8_t *px, size_t n, size_t step,
                    const uint8_t table[256])
{
    for (size_t i = 0; i < n; i++)
        px[i * step] = table[px[i * step]];
}

/* ---- hue, saturation, value, as OpenCV has them for bytes ---- */

/* 4096 per / i, OpenCV's divisions in 12 bits; 0 for 0. */
static void reciprocals(int32_t table[256], double per)
{
    table[0] = 0;
    for (int i = 1; i < 256; i++)
        table[i] = (int32_t)lrint(4096 * per / i);
}

void mp_to_hsv(uint8_t *px, size_t n)
{
    int32_t by_value[256], by_range[256];

    reciprocals(by_value, 255);
    reciprocals(by_range, 180 / 6.0);
    for (size_t i = 0; i < n; i++, px += 3) {
        int32_t r = px[0], g = px[1], b = px[2];
        int32_t most = r > g ? r : g, least = r < g ? r : g, d, h;

        most = most > b ? most : b;
        least = least < b ? least : b;
        d = most - least;
        h = most == r ? g - b : most == g ? b - r + 2 * d : r - g + 4 * d;
        h = (h * by_range[d] + 2048) >> 12;
        px[0] = (uint8_t)(h < 0 ? h + 180 : h);
        px[1] = (uint8_t)((d * by_value[most] + 2048) >> 12);
        px[2] = (uint8_t)most;
    }
}

void mp_from_hsv(uint8_t *px, size_t n)
{
    /* which of p are R, G, B in a sixth of the circle */
    static const uint8_t part[6][3] = {{0, 3, 1}, {2, 0, 1}, {1, 0, 3},
                                       {1, 2, 0}, {3, 1, 0}, {0, 1, 2}};

    for (size_t i = 0; i < n; i++, px += 3) {
        float h = (float)px[0] * (6.0f / 180), s = (float)px[1] * (1.0f / 255);
        float v = (float)px[2] * (1.0f / 255), f = h - floorf(h);
        float p[4] = {v, v * (1 - s), v * (1 - s * f), v * (1 - s * (1 - f))};
        const uint8_t *rgb = part[(int)h % 6];

        for (int k = 0; k < 3; k++)
            px[k] = (uint8_t)lrintf(p[rgb[k]] * 255);
    }
}

/* ---- colours ---- */

static void linear(uint8_t *px, size_t n, size_t step, float alpha, float beta)
{
    uint8_t table[256];

    for (int i = 0; i < 256; i++) {
        float x = (float)i * alpha; /* rounded before the sum */

        table[i] = clamp(x + beta);
    }
    look_up(px, n, step, table);
}

void mp_augment_linear(uint8_t *px, size_t bytes, float alpha, float beta)
{
    linear(px, bytes, 1, alpha, beta);
}

void mp_augment_brightness(uint8_t *px, size_t bytes, double alpha, double beta)
{
    linear(px, bytes, 1, (float)alpha, (float)(beta * 255));
}

void mp_augment_gamma(uint8_t *px, size_t bytes, double gamma)
{
    uint8_t table[256];

    for (int i = 0; i < 256; i++) /* i / 255 is rounded differently */
        table[i] = clamp(pow(i * (1.0 / 255), gamma) * 255);
    look_up(px, bytes, 1, table);
}

void mp_augment_hsv(uint8_t *px, size_t n, double hue, double saturation,
                    double value)
{
    uint8_t h[256], s[256], v[256];

    for (int i = 0; i < 256; i++) {
        double turned = fmod(i + hue, 180);

        h[i] = (uint8_t)(turned < 0 ? turned + 180 : turned);
        s[i] = clamp(i + saturation);
        v[i] = clamp(i + value);
    }
    mp_to_hsv(px, n);
    look_up(px, n, 3, h);
    look_up(px + 1, n, 3, s);
    look_up(px + 2, n, 3, v);
    mp_from_hsv(px, n);
}

void mp_augment_distort(uint8_t *px, size_t n, const struct mp_distortion *d)
{
    if (d->brightness)
        linear(px, 3 * n, 1, 1, d->add);
    if (d->contrast && d->contrast_first)
        linear(px, 3 * n, 1, d->times, 0);
    if (d->saturation) {
        mp_to_hsv(px, n);
        linear(px + 1, n, 3, d->saturate, 0);
        mp_from_hsv(px, n);
    }
    if (d->hue) { /* not together with saturation: bytes are rounded twice */
        mp_to_hsv(px, n);
        for (size_t i = 0; i < n; i++)
            px[3 * i] = (uint8_t)((px[3 * i] + d->turn + 180) % 180);
        mp_from_hsv(px, n);
    }
    if (d->contrast && !d->contrast_first)
        linear(px, 3 * n, 1, d->times, 0);
}

/* ---- places ---- */

void mp_augment_paste(uint8_t *px, const float *depth, int32_t w, int32_t h,
                      double a, double b)
{
    int32_t left = (int32_t)(a * w);
    int32_t right = left + (int32_t)fmax((w - a * w) * b * 0.75, 1);

    for (int32_t y = 0; y < h; y++)
        for (int32_t x = left; x < right; x++) {
            size_t i = (size_t)y * (size_t)w + (size_t)x;

            memset(px + 3 * i, (int)depth[i] & 255, 3);
        }
}

int32_t mp_crop_at(int32_t size, int32_t crop, double u)
{
    return size > crop ? (int32_t)((size - crop + 1) * u) : 0;
}

int mp_crop_is_varied(const uint8_t *labels, int32_t w, int32_t h,
                      size_t stride)
{
    size_t count[256] = {0}, all = 0, most = 0;
    int classes = 0;

    for (int32_t y = 0; y < h; y++)
        for (int32_t x = 0; x < w; x++)
            count[labels[(size_t)y * stride + (size_t)x]]++;
    for (int c = 0; c < 255; c++) {
        classes += count[c] > 0;
        all += count[c];
        most = count[c] > most ? count[c] : most;
    }
    return classes > 1 && (double)most / (double)all < 0.75;
}

static void exchange(float *a, float *b)
{
    float x = *a;

    *a = *b;
    *b = x;
}

void mp_mirror_joints(float (*joint)[2], float *visible, const uint8_t *swap,
                      size_t n, float width)
{
    for (size_t k = 0; k < n; k++)
        if (swap[k] > k) {
            exchange(&joint[k][0], &joint[swap[k]][0]);
            exchange(&joint[k][1], &joint[swap[k]][1]);
            exchange(&visible[k], &visible[swap[k]]);
        }
    for (size_t k = 0; k < n; k++) {
        joint[k][0] = (width - 1 - joint[k][0]) * visible[k];
        joint[k][1] *= visible[k];
    }
}

void mp_pad_right_bottom(uint8_t *dst, int32_t dw, int32_t dh,
                         const uint8_t *src, int32_t w, int32_t h, size_t bytes,
                         uint8_t fill)
{
    size_t row = (size_t)w * bytes, all = (size_t)dw * bytes;

    memset(dst, fill, all * (size_t)dh);
    for (int32_t y = 0; y < h; y++)
        memcpy(dst + (size_t)y * all, src + (size_t)y * row, row);
}
