/* SPDX-License-Identifier: MIT */
/*
 * gpu.h - a device as the backend sees it: memory, copies, kernels by number,
 * recorded sequences, and what the vendor's libraries compute.
 *
 * gpu.c and lib*.c do this with the CUDA driver, cuBLASLt and cuDNN. The tests
 * have a driver that runs the same kernels on the processor (tests/sim). No
 * CUDA header is needed here.
 *
 * Everything goes in order: a kernel sees what was put or copied before it,
 * and gpu_get what kernels did before it, though the bus is at work at the
 * same time. Errors of kernels show at the next call that waits.
 *
 * Threads: one at a time per device.
 */
#ifndef CUDA_GPU_H
#define CUDA_GPU_H

#include "mpipe/backend.h"
#include "cuda/kernels.h"

struct gpu;
struct gpu_graph;

/* Devices that will do, or a negative status and the reason. */
int gpu_count(struct mp_error *err);
int gpu_info(int index, struct mp_device_info *out, struct mp_error *err);
int gpu_open(struct gpu **out, int index, struct mp_error *err);
void gpu_close(struct gpu *g); /* NULL is fine */
/* Blocks that run at the same time: how many are worth starting. */
uint32_t gpu_processors(const struct gpu *g);

/* what: "activations"; for the message. 0 bytes are none: *out is 0. */
int gpu_alloc(struct gpu *g, size_t bytes, const char *what, mp_addr *out,
              struct mp_error *err);
void gpu_free(struct gpu *g, mp_addr a);
int gpu_memory(struct gpu *g, struct mp_device_memory *out,
               struct mp_error *err);
/* src may be changed as soon as gpu_put returns. */
int gpu_put(struct gpu *g, mp_addr dst, const void *src, size_t n,
            struct mp_error *err);
int gpu_copy(struct gpu *g, mp_addr dst, mp_addr src, size_t n,
             struct mp_error *err);
/* Begin to; dst has it when gpu_wait of the ticket, or of a later one, has
 * returned, and must be there until then. */
int gpu_get(struct gpu *g, void *dst, mp_addr src, size_t n, uint64_t *ticket,
            struct mp_error *err);
/* UINT64_MAX: for everything. */
int gpu_wait(struct gpu *g, uint64_t ticket, struct mp_error *err);

struct gpu_launch {
    enum gpu_kernel kernel;
    uint32_t grid[3], threads;
    size_t shared;   /* bytes */
    const void *arg; /* what kernels.h says */
};
int gpu_launch(struct gpu *g, const struct gpu_launch *l, struct mp_error *err);
/* The most bytes of shared memory that a launch may ask for. */
size_t gpu_shared(const struct gpu *g);

/* Between the two, launches are not done but noted, to be replayed at once. */
int gpu_record(struct gpu *g, struct mp_error *err);
int gpu_recorded(struct gpu *g, struct gpu_graph **out, struct mp_error *err);
int gpu_replay(struct gpu *g, struct gpu_graph *r, struct mp_error *err);
void gpu_graph_free(struct gpu_graph *r); /* NULL is fine */

/* Note the time on the device as mark i, counted from 0; gpu_between waits. */
int gpu_mark(struct gpu *g, size_t i, struct mp_error *err);
int gpu_between(struct gpu *g, size_t first, size_t last, double *seconds,
                struct mp_error *err);

/* ---- the libraries ---- */

/* A convolution, or a linear layer as one of 1 x 1 over n pixels. x N,H,W,C
 * and weights K,R,S,C have `type`; the result, the residual (same shape, may
 * be the same memory) and the bias y_type. */
struct lib_conv {
    enum mp_dtype type, y_type;
    int64_t n, h, w, c, k, r, s, oh, ow;
    /* Over 1: so many linear layers of the same x at once, without bias and
     * residual. Their weights lie one after the other, their results so many
     * elements apart (more than 0). */
    int64_t times, y_next;
    struct mp_conv conv;
    int bias, residual, act;
    int w_ck; /* weights are C,K; of linear layers only */
    int tf32; /* f32 products may be rounded to TF32 first */
    /* Not 0: no convolution, but attention of so many heads, all of `type`: of
     * each of n pictures x are h queries, the weights w keys and the residual
     * w values, of c channels. Products of queries and keys are scaled. */
    int heads;
    float scale;
};

/* From now on plans are chosen by measurement; what was found is kept for
 * later starts (choices.h). index: of g. */
int lib_autotune(struct gpu *g, int index, struct mp_error *err);
int lib_is_autotuned(const struct gpu *g);

struct lib_plan; /* how the library does it */

struct lib_data {
    mp_addr x, w, bias, residual, y, work;
};

/* MP_ENOTSUP with the reason: the library is missing or has no way. */
int lib_plan_new(struct lib_plan **out, struct gpu *g, const struct lib_conv *c,
                 struct mp_error *err);
void lib_plan_free(struct lib_plan *p);         /* NULL is fine */
size_t lib_plan_work(const struct lib_plan *p); /* bytes it works in */
/* The activation that it leaves to be done. */
int lib_plan_act(const struct lib_plan *p);
const char *lib_plan_name(const struct lib_plan *p);
int lib_plan_run(struct lib_plan *p, const struct lib_data *d,
                 struct mp_error *err);

#endif
