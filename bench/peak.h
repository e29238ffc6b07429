/* SPDX-License-Identifier: MIT */
/* peak.h - what this processor can compute at most, measured. */
#ifndef BENCH_PEAK_H
#define BENCH_PEAK_H

#include "mpipe/base.h"

/* Multiply-adds of type t (MP_F32; MP_BF16: products summed in f32) in
 * registers, in floating-point operations per second: the best of several short
 * runs on that many threads at once. 0: no instruction for it. */
double peak_flops(enum mp_dtype t, int threads);

#endif
