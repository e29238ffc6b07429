/* SPDX-License-Identifier: MIT */
/*
 * loss.h - what training makes small: losses with their derivatives, and the
 * heat maps that a pose network is to learn.
 *
 * They are those of the published code (MetaPrompts at 5628dd9, mmsegmentation
 * 0.30, mmpose 0.24), quirks included, and are held against its numbers.
 *
 * Data: arrays of the caller's; sums are taken in double. grad has the shape of
 * the network's output, and the loss's derivative by that is added to it, so
 * that losses of one output add up (clear it first); NULL: not wanted.
 * Threads: no state. Errors: only where memory is needed.
 */
#ifndef CORE_TRAIN_LOSS_H
#define CORE_TRAIN_LOSS_H

#include "mpipe/base.h"

/* ---- segmentation: a head learns by the sum of both, an auxiliary head by
 * 0.4 times the first ----
 *
 * logits: f32 pixels x classes of the whole batch, at the size of the labels;
 * 1 to 255 classes. labels: u8, one per pixel; those that are no class (255,
 * and nothing else in files that were checked) are ignored. */

/* Cross entropy: the mean of -log softmax over all pixels, where an ignored one
 * counts as 0. */
double mp_loss_ce(float *grad, const float *logits, const uint8_t *labels,
                  size_t pixels, int classes);

/* Lovasz-softmax (Berman et al., 2018) over the classes that occur, of all
 * pixels together; 0 if all are ignored. */
int mp_loss_lovasz(double *loss, float *grad, const float *logits,
                   const uint8_t *labels, size_t pixels, int classes,
                   struct mp_error *err);

/* Its weights J_k - J_(k-1): J_k is the Jaccard loss of the first k of n pixels
 * in descending order of their errors; is_class[k]: pixel k is of the class.
 */
void mp_lovasz_weights(double *weight, const uint8_t *is_class, size_t n);

/* Per cent of the pixels that are right, of those not ignored, for logs. As
 * published, 2^-23 is added to both numbers: of no pixels, 100 % are right. */
double mp_pixel_accuracy(const float *logits, const uint8_t *labels,
                         size_t pixels, int classes);

/* ---- depth ---- */

/* SiLog: sqrt(mean(d^2) - mean(d)^2 / 2), d = ln(truth / pred), over the pixels
 * of n with truth > 0; metres, pred > 0. 0 with no derivative if there are none
 * or all are right. The loss of several outputs is the mean of theirs. */
double mp_loss_silog(float *grad, const float *pred, const float *truth,
                     size_t n);

/* ---- pose ---- */

/* The mean of (weight pred - weight target)^2: a weight counts twice. pred,
 * target: f32 n x joints x pixels; weight: n x joints. */
double mp_loss_joints(float *grad, const float *pred, const float *target,
                      const float *weight, size_t n, size_t joints,
                      size_t pixels);

/* The heat map (f32 h x w, overwritten) that a network is to show for one
 * joint (UDP, Huang et al., 2020): a Gaussian of sigma 2 around it, cut to
 * 13 x 13. joint: x, y in pixels of the network's input, which is in_w x in_h.
 * Returns the joint's weight: `visible` (0, 1 or 2), but at most 1; 0 if the
 * 13 x 13 lie outside. The map is empty if the weight is at most 0.5. */
float mp_pose_target(float *map, int w, int h, const float joint[2], int in_w,
                     int in_h, float visible);

#endif
