/* SPDX-License-Identifier: MIT */
/*
 * augment.h - pictures a little different each time they are trained on, byte
 * for byte as the published code changes them (mmsegmentation 0.30,
 * albumentations 1.3.1, OpenCV's HSV).
 *
 * Data: pictures are changed in place: n pixels of R, G, B, or `bytes` of any
 * meaning. Random numbers are drawn by the caller, so that a run can be
 * repeated or resumed. Threads: no state. Nothing here can fail.
 */
#ifndef CORE_TRAIN_AUGMENT_H
#define CORE_TRAIN_AUGMENT_H

#include "mpipe/base.h"

/* ---- colours ---- */

/* x alpha + beta in f32, clamped to 0..255; its fraction is dropped. */
void mp_augment_linear(uint8_t *px, size_t bytes, float alpha, float beta);

/* Depth's: the same, beta in units of 255. Drawn: 0.8..1.2, -0.2..0.2. */
void mp_augment_brightness(uint8_t *px, size_t bytes, double alpha,
                           double beta);

/* 255 (x / 255)^gamma; its fraction is dropped. Drawn: 0.8..1.2. */
void mp_augment_gamma(uint8_t *px, size_t bytes, double gamma);

/* Shifts of hue (180 is a circle), saturation and value (both 0..255). Drawn:
 * +-20, +-30, +-20. */
void mp_augment_hsv(uint8_t *px, size_t n, double hue, double saturation,
                    double value);

/* Segmentation's: the parts whose flags are set. */
struct mp_distortion {
    int brightness, contrast, saturation, hue; /* each drawn with 1/2 */
    int contrast_first; /* before saturation and hue, not after; 1/2 */
    float add;          /* brightness: -32..32 */
    float times;        /* contrast: 0.5..1.5 */
    float saturate;     /* saturation: 0.5..1.5 */
    int turn;           /* hue: -18..17 */
};
void mp_augment_distort(uint8_t *px, size_t n, const struct mp_distortion *d);

/* R, G, B to hue 0..179, saturation and value 0..255, and back. */
void mp_to_hsv(uint8_t *px, size_t n);
void mp_from_hsv(uint8_t *px, size_t n);

/* ---- places ---- */

/* Depth is drawn over columns of the w x h picture, from int(a w), and
 * int(0.75 b (w - a w)) of them, but at least 1; 0 <= a, b < 1. depth: f32
 * h x w in units of the file (0..65535), of which only the low 8 bits of the
 * integer part are seen, as published. */
void mp_augment_paste(uint8_t *px, const float *depth, int32_t w, int32_t h,
                      double a, double b);

/* Where a crop of a side begins; u is drawn, 0 <= u < 1. 0 if the side is
 * shorter. */
int32_t mp_crop_at(int32_t size, int32_t crop, double u);

/* Do the labels of a crop, rows `stride` apart, vary enough? At least two
 * classes, and none has 75 % of the pixels that are not 255. (As published,
 * after ten crops that do not, the eleventh is taken as it is.) */
int mp_crop_is_varied(const uint8_t *labels, int32_t w, int32_t h,
                      size_t stride);

/* n joints, x and y in pixels, of a picture of this width that is mirrored:
 * joint k and joint swap[k], left and right, change places. visible: 0 or 1;
 * joints that are not become 0, 0, as published. */
void mp_mirror_joints(float (*joint)[2], float *visible, const uint8_t *swap,
                      size_t n, float width);

/* dst, dw x dh pixels of so many bytes, holds src, w x h, at the top left and
 * `fill` elsewhere. */
void mp_pad_right_bottom(uint8_t *dst, int32_t dw, int32_t dh,
                         const uint8_t *src, int32_t w, int32_t h, size_t bytes,
                         uint8_t fill);

#endif
