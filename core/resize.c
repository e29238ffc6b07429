/* SPDX-License-Identifier: MIT */
#include "image.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Between samples a and b (both inside) with weights wa and wb. */
struct tap_u8 {
    int32_t a, b;
    int32_t wa, wb; /* in 1/2048 */
};

struct tap_f32 {
    int32_t a, b;
    float wa, wb;
};

static int32_t clamp(int64_t v, int64_t lo, int64_t hi)
{
    return (int32_t)(v < lo ? lo : v > hi ? hi : v);
}

/* Samples of m in n as OpenCV's u8 code takes them: beyond the border, an
 * edge sample alone along a row (edge set), but two equal ones, each rounded
 * by itself, along a column. */
static void taps_u8(struct tap_u8 *tap, int32_t m, int32_t n, int edge)
{
    double scale = 1.0 / ((double)m / n);

    for (int32_t d = 0; d < m; d++) {
        float f = (float)((d + 0.5) * scale - 0.5);
        int32_t s = (int32_t)floorf(f);

        f -= (float)s;
        if (edge && (s < 0 || s >= n - 1))
            f = 0;
        tap[d].a = clamp(s, 0, n - 1);
        tap[d].b = clamp((int64_t)s + 1, 0, n - 1);
        tap[d].wa = (int32_t)rintf((1 - f) * 2048);
        tap[d].wb = (int32_t)rintf(f * 2048);
    }
}

static void row_u8(int32_t *restrict out, const uint8_t *restrict in,
                   const struct tap_u8 *tap, int32_t dw, int channels)
{
    for (int32_t x = 0; x < dw; x++, tap++) {
        const uint8_t *a = in + (size_t)tap->a * (size_t)channels;
        const uint8_t *b = in + (size_t)tap->b * (size_t)channels;

        for (int c = 0; c < channels; c++)
            *out++ = a[c] * tap->wa + b[c] * tap->wb;
    }
}

static void blend_u8(uint8_t *restrict out, const int32_t *restrict a,
                     const int32_t *restrict b, int32_t wa, int32_t wb,
                     size_t n)
{
    for (size_t i = 0; i < n; i++) {
        int32_t v = ((wa * (a[i] >> 4)) >> 16) + ((wb * (b[i] >> 4)) >> 16);

        v = (v + 2) >> 2;
        out[i] = (uint8_t)(v > 255 ? 255 : v);
    }
}

static int check(int32_t dw, int32_t dh, int32_t sw, int32_t sh, int channels,
                 int most, struct mp_error *err)
{
    if (dw < 1 || dh < 1 || sw < 1 || sh < 1 || channels < 1 || channels > most)
        return mp_fail(err, MP_EINVAL, "no resize of %d x %d x %d to %d x %d",
                       sw, sh, channels, dw, dh);
    return 0;
}

int mp_resize_u8(uint8_t *dst, int32_t dw, int32_t dh, const uint8_t *src,
                 int32_t sw, int32_t sh, int channels, struct mp_error *err)
{
    size_t n = (size_t)dw * (size_t)channels;
    size_t pitch = (size_t)sw * (size_t)channels;
    struct tap_u8 *tx, *ty;
    int32_t *row[2], have[2] = {-1, -1};
    int rc = check(dw, dh, sw, sh, channels, 4, err);

    if (rc < 0)
        return rc;
    if (dw == sw && dh == sh) {
        memcpy(dst, src, pitch * (size_t)sh);
        return 0;
    }
    tx = malloc(((size_t)dw + (size_t)dh) * sizeof(*tx));
    row[0] = malloc(2 * n * sizeof(**row));
    if (!tx || !row[0]) {
        rc = mp_fail(err, MP_ENOMEM, "out of memory for a resize");
        goto out;
    }
    ty = tx + dw;
    row[1] = row[0] + n;
    taps_u8(tx, dw, sw, 1);
    taps_u8(ty, dh, sh, 0);
    for (int32_t y = 0; y < dh; y++) {
        /* a source row is always in the slot of its parity, so that the two
         * of one output row never collide and the next finds them again */
        const int32_t want[2] = {ty[y].a, ty[y].b};

        for (int i = 0; i < 2; i++) {
            int slot = want[i] & 1;

            if (have[slot] != want[i])
                row_u8(row[slot], src + (size_t)want[i] * pitch, tx, dw,
                       channels);
            have[slot] = want[i];
        }
        blend_u8(dst + (size_t)y * n, row[want[0] & 1], row[want[1] & 1],
                 ty[y].wa, ty[y].wb, n);
    }
out:
    free(row[0]);
    free(tx);
    return rc;
}

void mp_resize_nearest_u8(uint8_t *dst, int32_t dw, int32_t dh,
                          const uint8_t *src, int32_t sw, int32_t sh)
{
    double scale_x = 1.0 / ((double)dw / sw), scale_y = 1.0 / ((double)dh / sh);
    int32_t before = -1;

    for (int32_t y = 0; y < dh; y++, dst += dw) {
        int32_t sy = clamp((int64_t)(y * scale_y), 0, sh - 1);
        const uint8_t *row = src + (size_t)sy * (size_t)sw;

        if (sy == before)
            memcpy(dst, dst - dw, (size_t)dw);
        else
            for (int32_t x = 0; x < dw; x++)
                dst[x] = row[clamp((int64_t)(x * scale_x), 0, sw - 1)];
        before = sy;
    }
}

/* In float32, as torch computes them. */
static void taps_f32(struct tap_f32 *tap, int32_t m, int32_t n)
{
    float r = (float)n / (float)m;

    for (int32_t d = 0; d < m; d++) {
        float at = fmaxf(((float)d + 0.5f) * r - 0.5f, 0);

        tap[d].a = clamp((int64_t)at, 0, n - 1);
        tap[d].b = clamp((int64_t)tap[d].a + 1, 0, n - 1);
        tap[d].wb = at - (float)tap[d].a;
        tap[d].wa = 1 - tap[d].wb;
    }
}

static void blend_f32(float *restrict out, const float *a, const float *b,
                      float wa, float wb, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = wa * a[i] + wb * b[i];
}

int mp_resize_f32(float *dst, int32_t dw, int32_t dh, const float *src,
                  int32_t sw, int32_t sh, int channels, struct mp_error *err)
{
    size_t nc = (size_t)channels, pitch = (size_t)sw * nc;
    struct tap_f32 *tx, *ty;
    float *row;
    int rc = check(dw, dh, sw, sh, channels, INT32_MAX, err);

    if (rc < 0)
        return rc;
    tx = malloc(((size_t)dw + (size_t)dh) * sizeof(*tx));
    row = malloc(pitch * sizeof(*row));
    if (!tx || !row) {
        rc = mp_fail(err, MP_ENOMEM, "out of memory for a resize");
        goto out;
    }
    ty = tx + dw;
    taps_f32(tx, dw, sw);
    taps_f32(ty, dh, sh);
    for (int32_t y = 0; y < dh; y++) {
        blend_f32(row, src + (size_t)ty[y].a * pitch,
                  src + (size_t)ty[y].b * pitch, ty[y].wa, ty[y].wb, pitch);
        for (int32_t x = 0; x < dw; x++, dst += nc)
            blend_f32(dst, row + (size_t)tx[x].a * nc,
                      row + (size_t)tx[x].b * nc, tx[x].wa, tx[x].wb, nc);
    }
out:
    free(row);
    free(tx);
    return rc;
}

void mp_rescale_size(int32_t *nw, int32_t *nh, int32_t w, int32_t h, int32_t a,
                     int32_t b)
{
    double far = (double)(a > b ? a : b) / (w > h ? w : h);
    double near = (double)(a > b ? b : a) / (w > h ? h : w);
    double f = far < near ? far : near;

    *nw = clamp((int64_t)(w * f + 0.5), 1, INT32_MAX);
    *nh = clamp((int64_t)(h * f + 0.5), 1, INT32_MAX);
}
