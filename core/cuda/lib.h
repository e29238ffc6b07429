/* SPDX-License-Identifier: MIT */
/* lib.h - inside the use of libraries: plans, and who makes them. */
#ifndef CUDA_LIB_H
#define CUDA_LIB_H

#include "cuda/driver.h"

/* What both kinds of plans begin with. */
struct lib_plan {
    struct gpu *gpu;
    char name[64];
    int act;     /* left to be done */
    size_t work; /* bytes */
    int (*run)(struct lib_plan *p, const struct lib_data *d,
               struct mp_error *err);
    void (*free)(struct lib_plan *p);
    /* lib.c's: what it is for, and who has it */
    struct lib_conv conv;
    size_t users;
    struct lib_plan *next;
};

/* As lib_plan_new; lt for products of matrices, dnn for the rest. */
int lt_plan_new(struct lib_plan **out, struct gpu *g, const struct lib_conv *c,
                struct mp_error *err);
int dnn_plan_new(struct lib_plan **out, struct gpu *g, const struct lib_conv *c,
                 struct mp_error *err);

/* More than this a library may not ask for: 32 MB is what cuBLAS advises for
 * the largest GPUs, and cuDNN's way of using more is to unfold the map. */
#define LIB_WORK ((size_t)32 << 20)

/* The libraries that there are, for the device's life; what is not there is
 * told to the user once. */
int vendor_open(struct gpu *g, struct mp_error *err);
void vendor_close(struct gpu *g);

#endif
