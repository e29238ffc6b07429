/* SPDX-License-Identifier: MIT */
/*
 * adamw.h - how parameters move: AdamW (Loshchilov and Hutter, 2019) as PyTorch
 * has it, weight decay apart from the gradient.
 *
 * Data: arrays of the caller's. Threads: no state. Nothing here can fail.
 */
#ifndef CORE_TRAIN_ADAMW_H
#define CORE_TRAIN_ADAMW_H

#include "mpipe/base.h"

struct mp_adamw {
    double lr, decay;    /* of the parameter's group, see schedule.h */
    double beta1, beta2; /* published: 0.9, 0.999 */
    double epsilon;      /* 1e-8 */
};

/* Step 1, 2 .. of n parameters. mean, square: running means of the gradient and
 * of its square, which begin as 0. A parameter that has no gradient is left
 * out by not calling this: it would decay. */
void mp_adamw_step(float *param, float *mean, float *square, const float *grad,
                   size_t n, const struct mp_adamw *a, int64_t step);

#endif
