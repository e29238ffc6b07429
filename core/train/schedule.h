/* SPDX-License-Identifier: MIT */
/*
 * schedule.h - how fast which parameter is trained when: the learning rates and
 * parameter groups of the published code (MetaPrompts at 5628dd9, mmcv 1.7.1).
 *
 * Threads: no state. Nothing here can fail.
 */
#ifndef CORE_TRAIN_SCHEDULE_H
#define CORE_TRAIN_SCHEDULE_H

#include "mpipe/base.h"

/* ---- learning rates, of a group of factor 1 ---- */

/* Depth: from min up to max in the first half of the epochs, and down again.
 * Steps are counted from 1 through all epochs. */
struct mp_lr_depth {
    double max, min;    /* published: 5e-4, 3e-5 */
    int64_t epochs;     /* published: 25; at least 2: 1 has no halves (NaN) */
    int64_t iterations; /* of an epoch, at least 1 */
};
double mp_lr_depth(const struct mp_lr_depth *p, int64_t step);

/* How the others begin: for so many iterations the rate grows linearly, from
 * ratio times what it would be, to that. */
struct mp_warmup {
    int64_t iterations; /* published: segmentation 1500, pose 500; 0: none */
    double ratio;       /* 1e-6, 1e-3 */
};

/* Segmentation: base (1 - it / max)^power; it: 0 .. max - 1. Published: 8e-5,
 * power 1, 80000 iterations. */
double mp_lr_poly(double base, double power, int64_t max, struct mp_warmup w,
                  int64_t it);

/* Pose: base, times gamma for each of the n epochs in step (ascending) that was
 * reached; it and epoch from 0. Published: 5e-4, 0.1 at 170 and 200. */
double mp_lr_steps(double base, double gamma, const int64_t *step, size_t n,
                   struct mp_warmup w, int64_t it, int64_t epoch);

/* ---- parameter groups, by the names of a checkpoint ---- */

struct mp_param_group {
    double lr;    /* factor of the learning rate; 0: not trained */
    double decay; /* factor of the weight decay: 0 or 1 */
};

/* Published with AdamW, betas 0.9 and 0.999, epsilon 1e-8, and
 * segmentation: 8e-5, decay 0.001; depth: 5e-4, decay 0.1. */
struct mp_param_group mp_param_group_seg(const char *name);
struct mp_param_group mp_param_group_depth(const char *name, int ndim);

#endif
