/* SPDX-License-Identifier: MIT */
/* lib.h - inside the use of libraries: plans, and who makes them. */
#ifndef CUDA_LIB_H
#define CUDA_LIB_H

#include "cuda/choices.h"
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

/* Both kinds of libraries: lt for products of matrices, dnn for the rest. */
struct lib_kind {
    /* As lib_plan_new. choice: NULL, for the way that the library expects to
     * be the fastest, or one of those that choices gave, maybe long ago. */
    int (*plan_new)(struct lib_plan **out, struct gpu *g,
                    const struct lib_conv *c, const char *choice,
                    struct mp_error *err);
    /* The ways that are worth measuring, LIB_CHOICES at most. */
    int (*choices)(char choice[][CHOICE_BYTES], size_t *n, struct gpu *g,
                   const struct lib_conv *c, struct mp_error *err);
};
extern const struct lib_kind lib_lt, lib_dnn;
#define LIB_CHOICES 8

/* More than this a library may not ask for: 32 MB is what cuBLAS advises for
 * the largest GPUs, and cuDNN's way of using more is to unfold the map. */
#define LIB_WORK ((size_t)32 << 20)

/* The libraries that there are, for the device's life; what is not there is
 * told to the user once. */
int vendor_open(struct gpu *g, struct mp_error *err);
void vendor_close(struct gpu *g);
/* Of the libraries: "cublasLt-130200-cudnn-91900". */
void vendor_versions(const struct gpu *g, char *text, size_t n);

#endif
