/* SPDX-License-Identifier: MIT */
/*
 * gpusim.cc - gpu.h on the processor: the CUDA backend's own kernels and all
 * of its code but the calls of the driver and the libraries, run where there
 * is no GPU. Launches are checked against what a device would refuse.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>
#include "cuda/attention.cu"
#include "cuda/conv.cu"
#include "cuda/norm.cu"
#include "cuda/pointwise.cu"
extern "C" {
#include "cuda/gpu.h"
}

static const struct {
    const char *name;
    void (*call)(const void *arg);
    size_t size;
} table[] = {
#define X(name, type)                                                          \
    {#name, [](const void *p) { name(*(const type *)p); }, sizeof(type)},
    GPU_KERNELS(X)
#undef X
};

struct noted {
    struct gpu_launch launch;
    std::vector<char> arg;
};

struct gpu_graph {
    std::vector<noted> launch;
};

struct gpu {
    gpu_graph *recording;
};

extern "C" {

int gpu_count(struct mp_error *)
{
    return 1;
}

int gpu_info(int, struct mp_device_info *out, struct mp_error *)
{
    snprintf(out->name, sizeof out->name, "simulated GPU");
    out->memory = 0;
    return 0;
}

int gpu_open(struct gpu **out, int, struct mp_error *)
{
    *out = new gpu();
    return 0;
}

void gpu_close(struct gpu *g)
{
    delete g;
}

uint32_t gpu_processors(const struct gpu *)
{
    return 2; /* so that small tests meet large tiles too */
}

/* Poisoned: what is read before it is written shows as NaN. */
int gpu_alloc(struct gpu *, size_t bytes, const char *, mp_addr *out,
              struct mp_error *err)
{
    void *p = NULL;

    *out = 0;
    if (!bytes)
        return 0;
    if (posix_memalign(&p, 256, bytes))
        return mp_fail(err, MP_ENOMEM, "out of memory");
    memset(p, 0xff, bytes);
    *out = (mp_addr)(uintptr_t)p;
    return 0;
}

void gpu_free(struct gpu *, mp_addr a)
{
    free((void *)(uintptr_t)a);
}

int gpu_put(struct gpu *g, mp_addr dst, const void *src, size_t n,
            struct mp_error *err)
{
    if (g->recording)
        return mp_fail(err, MP_EINVAL, "sim: put while recording");
    memcpy((void *)(uintptr_t)dst, src, n);
    return 0;
}

int gpu_copy(struct gpu *g, mp_addr dst, mp_addr src, size_t n,
             struct mp_error *err)
{
    return gpu_put(g, dst, (const void *)(uintptr_t)src, n, err);
}

int gpu_memory(struct gpu *, struct mp_device_memory *out, struct mp_error *)
{
    *out = mp_device_memory();
    return 0;
}

int gpu_get(struct gpu *g, void *dst, mp_addr src, size_t n,
            struct mp_error *err)
{
    if (g->recording)
        return mp_fail(err, MP_EINVAL, "sim: get while recording");
    memcpy(dst, (const void *)(uintptr_t)src, n);
    return 0;
}

int gpu_wait(struct gpu *g, struct mp_error *err)
{
    return g->recording ? mp_fail(err, MP_EINVAL, "sim: wait while recording")
                        : 0;
}

size_t gpu_shared(const struct gpu *)
{
    return 99 << 10; /* the least of all devices that will do */
}

int gpu_launch(struct gpu *g, const struct gpu_launch *l, struct mp_error *err)
{
    const char *arg = (const char *)l->arg;

    if (!l->grid[0] || !l->grid[1] || !l->grid[2] || l->grid[1] > 65535 ||
        l->grid[2] > 65535 || !l->threads || l->threads > 1024 ||
        l->threads % 32 || l->shared > gpu_shared(g))
        return mp_fail(err, MP_EINVAL, "sim: %s: %u x %u x %u blocks of %u",
                       table[l->kernel].name, l->grid[0], l->grid[1],
                       l->grid[2], l->threads);
    if (g->recording) {
        g->recording->launch.push_back(
            {*l, std::vector<char>(arg, arg + table[l->kernel].size)});
        return 0;
    }
    sim_run({l->grid[0], l->grid[1], l->grid[2]}, l->threads, l->shared,
            table[l->kernel].call, arg);
    return 0;
}

int gpu_record(struct gpu *g, struct mp_error *)
{
    g->recording = new gpu_graph();
    return 0;
}

int gpu_recorded(struct gpu *g, struct gpu_graph **out, struct mp_error *)
{
    *out = g->recording;
    g->recording = NULL;
    return 0;
}

int gpu_replay(struct gpu *g, struct gpu_graph *r, struct mp_error *err)
{
    int rc = 0;

    for (noted &n : r->launch) {
        n.launch.arg = n.arg.data();
        rc = rc ? rc : gpu_launch(g, &n.launch, err);
    }
    return rc;
}

void gpu_graph_free(struct gpu_graph *r)
{
    delete r;
}

int gpu_mark(struct gpu *, size_t, struct mp_error *)
{
    return 0;
}

int gpu_between(struct gpu *, size_t, size_t, double *seconds,
                struct mp_error *)
{
    *seconds = 0;
    return 0;
}

/* ---- there are no libraries ---- */

int lib_plan_new(struct lib_plan **, struct gpu *, const struct lib_conv *,
                 struct mp_error *err)
{
    return mp_fail(err, MP_ENOTSUP, "simulated");
}

void lib_plan_free(struct lib_plan *)
{
}

size_t lib_plan_work(const struct lib_plan *)
{
    return 0;
}

int lib_plan_act(const struct lib_plan *)
{
    return MP_ACT_NONE;
}

const char *lib_plan_name(const struct lib_plan *)
{
    return NULL;
}

int lib_plan_run(struct lib_plan *, const struct lib_data *, struct mp_error *)
{
    return MP_EINVAL;
}
}
