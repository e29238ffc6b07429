/* SPDX-License-Identifier: MIT */
/* gpu.c - gpu.h by the CUDA driver: devices, memory, copies, kernels. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cuda/driver.h"

#define STAGE ((size_t)8 << 20) /* bytes of a staging buffer */

/* Oldest that will do: bf16 and asynchronous copies came with it. */
#define LEAST_MAJOR 8

/* Kernels as machine code for several GPUs, made by nvcc.sh. */
extern const unsigned long long cuda_attention[], cuda_conv[], cuda_norm[],
    cuda_pointwise[];

struct driver_calls cu;

int gpu_status(CUresult r, const char *what, struct mp_error *err)
{
    const char *text = NULL;

    if (r == CUDA_SUCCESS)
        return 0;
    if (cu.cuGetErrorString(r, &text) != CUDA_SUCCESS || !text)
        text = "unknown error";
    return mp_fail(err, r == CUDA_ERROR_OUT_OF_MEMORY ? MP_ENOMEM : MP_EIO,
                   "cuda: %s: %s (%d)", what, text, (int)r);
}

int driver_load(void *table, const char *const *name, size_t n,
                const char *library, struct mp_error *err)
{
    void *so = dlopen(library, RTLD_NOW | RTLD_LOCAL), *at;

    if (!so)
        return mp_fail(err, MP_ENOTSUP, "%s", dlerror());
    for (size_t i = 0; i < n; i++) {
        at = dlsym(so, name[i]);
        if (!at)
            return mp_fail(err, MP_ENOTSUP, "%s has no %s", library, name[i]);
        memcpy((char *)table + i * sizeof at, &at, sizeof at);
    }
    return 0;
}

int gpu_enter(struct gpu *g, struct mp_error *err)
{
    return gpu_status(cu.cuCtxSetCurrent(g->context), "cuCtxSetCurrent", err);
}

/* ---- what there is ---- */

/* The driver must be for this major version of CUDA or a later one. */
static int start(struct mp_error *err)
{
#define X(name, like) #name,
    static const char *const names[] = {DRIVER_CALLS(X)};
#undef X
    int version = 0, rc;
    CUresult r;

    if (cu.cuInit)
        return 0;
    rc = driver_load(&cu, names, sizeof names / sizeof *names, "libcuda.so.1",
                     err);
    if (rc) {
        memset(&cu, 0, sizeof cu);
        return err ? mp_fail_in(err, "cuda: no NVIDIA driver") : rc;
    }
    r = cu.cuInit(0);
    rc = r == CUDA_ERROR_NO_DEVICE
             ? mp_fail(err, MP_ENOTSUP, "cuda: there is no NVIDIA GPU")
             : gpu_status(r, "the NVIDIA driver does not start", err);
    if (!rc)
        rc = gpu_status(cu.cuDriverGetVersion(&version), "cuDriverGetVersion",
                        err);
    if (!rc && version / 1000 < CUDA_VERSION / 1000)
        rc = mp_fail(err, MP_ENOTSUP,
                     "cuda: the NVIDIA driver is for CUDA %d.%d, this backend "
                     "was built with %d.%d: update the driver",
                     version / 1000, version % 1000 / 10, CUDA_VERSION / 1000,
                     CUDA_VERSION % 1000 / 10);
    if (rc)
        memset(&cu, 0, sizeof cu);
    return rc;
}

/* Name and compute capability of a device that will do. */
static int look_at(int index, CUdevice *d, char name[96], int capability[2],
                   struct mp_error *err)
{
    int rc = gpu_status(cu.cuDeviceGet(d, index), "cuDeviceGet", err);

    if (!rc)
        rc = gpu_status(cu.cuDeviceGetName(name, 96, *d), "cuDeviceGetName",
                        err);
    if (!rc)
        rc = gpu_status(cu.cuDeviceGetAttribute(
                            &capability[0],
                            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, *d),
                        "cuDeviceGetAttribute", err);
    if (!rc)
        rc = gpu_status(cu.cuDeviceGetAttribute(
                            &capability[1],
                            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, *d),
                        "cuDeviceGetAttribute", err);
    if (!rc && capability[0] < LEAST_MAJOR)
        rc = mp_fail(err, MP_ENOTSUP,
                     "cuda:%d: %s has compute capability %d.%d, this backend "
                     "needs %d.0",
                     index, name, capability[0], capability[1], LEAST_MAJOR);
    return rc;
}

int gpu_count(struct mp_error *err)
{
    int n = 0, rc = start(err), capability[2];
    char name[96];
    CUdevice d;

    if (!rc)
        rc = gpu_status(cu.cuDeviceGetCount(&n), "cuDeviceGetCount", err);
    if (!rc && n < 1)
        rc = mp_fail(err, MP_ENOTSUP, "cuda: there is no NVIDIA GPU");
    if (rc)
        return rc;
    for (int i = 0; i < n; i++) {
        rc = look_at(i, &d, name, capability, err);
        if (!rc) {
            if (err) /* of an older one before it */
                *err = (struct mp_error){0};
            return n;
        }
    }
    return rc;
}

int gpu_info(int index, struct mp_device_info *out, struct mp_error *err)
{
    int capability[2], version = 0;
    size_t memory = 0;
    char name[96];
    CUdevice d;
    int rc = look_at(index, &d, name, capability, err);

    if (!rc)
        rc = gpu_status(cu.cuDeviceTotalMem_v2(&memory, d), "cuDeviceTotalMem",
                        err);
    if (!rc)
        rc = gpu_status(cu.cuDriverGetVersion(&version), "cuDriverGetVersion",
                        err);
    if (rc)
        return rc;
    snprintf(out->name, sizeof out->name, "%s, sm_%d%d, CUDA %d.%d", name,
             capability[0], capability[1], version / 1000, version % 1000 / 10);
    out->memory = memory;
    return 0;
}

/* ---- a device ---- */

/* Every kernel, and leave to use all the shared memory that there is. */
static int load_kernels(struct gpu *g, struct mp_error *err)
{
    static const unsigned long long *const image[] = {
        cuda_attention, cuda_conv, cuda_norm, cuda_pointwise};
#define X(name, arg) #name,
    static const char *const name[] = {GPU_KERNELS(X)};
#undef X
    int rc = 0;

    for (int i = 0; i < 4 && !rc; i++)
        rc = gpu_status(cu.cuModuleLoadData(&g->module[i], image[i]),
                        "loading kernels", err);
    for (int i = 0; i < GPU_KERNEL_COUNT && !rc; i++) {
        CUresult r = CUDA_ERROR_NOT_FOUND;
        int used = 0;

        for (int j = 0; j < 4 && r == CUDA_ERROR_NOT_FOUND; j++)
            r = cu.cuModuleGetFunction(&g->kernel[i], g->module[j], name[i]);
        rc = gpu_status(r, name[i], err);
        if (!rc)
            rc = gpu_status(
                cu.cuFuncGetAttribute(
                    &used, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, g->kernel[i]),
                name[i], err);
        if (!rc)
            rc = gpu_status(cu.cuFuncSetAttribute(
                                g->kernel[i],
                                CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                (int)g->shared - used),
                            name[i], err);
    }
    return rc;
}

static int open_device(struct gpu *g, int index, struct mp_error *err)
{
    int capability[2], shared = 0, rc;
    char name[96];

    rc = look_at(index, &g->device, name, capability, err);
    if (!rc)
        rc = gpu_status(cu.cuDevicePrimaryCtxRetain(&g->context, g->device),
                        name, err);
    if (!rc)
        rc = gpu_enter(g, err);
    if (!rc)
        rc = gpu_status(cu.cuStreamCreate(&g->stream, CU_STREAM_NON_BLOCKING),
                        "cuStreamCreate", err);
    if (!rc)
        rc =
            gpu_status(cu.cuDeviceGetAttribute(
                           &g->processors,
                           CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, g->device),
                       "cuDeviceGetAttribute", err);
    if (!rc)
        rc = gpu_status(
            cu.cuDeviceGetAttribute(
                &shared, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
                g->device),
            "cuDeviceGetAttribute", err);
    g->shared = (size_t)shared;
    for (int i = 0; i < 2 && !rc; i++) {
        rc = gpu_status(cu.cuMemHostAlloc((void **)&g->staging[i], STAGE, 0),
                        "pinned memory", err);
        if (!rc)
            rc = gpu_status(
                cu.cuEventCreate(&g->staged[i], CU_EVENT_DISABLE_TIMING),
                "cuEventCreate", err);
    }
    return rc;
}

int gpu_open(struct gpu **out, int index, struct mp_error *err)
{
    struct gpu *g = calloc(1, sizeof *g);
    int rc;

    if (!g)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    rc = open_device(g, index, err);
    if (!rc)
        rc = load_kernels(g, err);
    if (rc) {
        gpu_close(g);
        return rc;
    }
    lib_open(g);
    *out = g;
    return 0;
}

void gpu_close(struct gpu *g)
{
    if (!g)
        return;
    if (g->context && !gpu_enter(g, NULL)) {
        if (g->stream)
            cu.cuStreamSynchronize(g->stream);
        lib_close(g);
        for (size_t i = 0; i < g->nmark; i++)
            cu.cuEventDestroy_v2(g->mark[i]);
        for (int i = 0; i < 2; i++) {
            if (g->staging[i])
                cu.cuMemFreeHost(g->staging[i]);
            if (g->staged[i])
                cu.cuEventDestroy_v2(g->staged[i]);
        }
        for (int i = 0; i < 4; i++)
            if (g->module[i])
                cu.cuModuleUnload(g->module[i]);
        if (g->stream)
            cu.cuStreamDestroy_v2(g->stream);
        cu.cuCtxSetCurrent(NULL);
        cu.cuDevicePrimaryCtxRelease_v2(g->device);
    }
    free(g->mark);
    free(g);
}

uint32_t gpu_processors(const struct gpu *g)
{
    return (uint32_t)g->processors;
}

size_t gpu_shared(const struct gpu *g)
{
    return g->shared;
}

/* ---- memory ---- */

/* Of what was allocated there. */
static size_t size_of(CUdeviceptr p)
{
    CUdeviceptr base;
    size_t n = 0;

    return p && cu.cuMemGetAddressRange_v2(&base, &n, p) == CUDA_SUCCESS ? n
                                                                         : 0;
}

int gpu_memory(struct gpu *g, struct mp_device_memory *out,
               struct mp_error *err)
{
    size_t left = 0, all = 0;
    int rc = gpu_enter(g, err);

    if (!rc)
        rc = gpu_status(cu.cuMemGetInfo_v2(&left, &all), "cuMemGetInfo", err);
    *out = (struct mp_device_memory){
        .total = all, .free = left, .ours = g->allocated};
    return rc;
}

int gpu_alloc(struct gpu *g, size_t bytes, const char *what, mp_addr *out,
              struct mp_error *err)
{
    size_t left = 0, all = 0;
    CUdeviceptr p = 0;
    CUresult r;
    int rc = gpu_enter(g, err);

    *out = 0;
    if (rc || !bytes)
        return rc;
    r = cu.cuMemAlloc_v2(&p, bytes);
    *out = p;
    g->allocated += size_of(p);
    if (r != CUDA_ERROR_OUT_OF_MEMORY)
        return gpu_status(r, "cuMemAlloc", err);
    cu.cuMemGetInfo_v2(&left, &all);
    return mp_fail(err, MP_ENOMEM,
                   "cuda: out of memory: %zu bytes for %s, %zu of %zu are "
                   "free: lower batch in [compute], or choose precision bf16",
                   bytes, what, left, all);
}

/* After all that was started: it may still be at work there. */
void gpu_free(struct gpu *g, mp_addr a)
{
    if (!a || gpu_enter(g, NULL))
        return;
    cu.cuStreamSynchronize(g->stream);
    g->allocated -= size_of(a);
    cu.cuMemFree_v2(a);
}

int gpu_wait(struct gpu *g, struct mp_error *err)
{
    int rc = gpu_enter(g, err);

    return rc ? rc
              : gpu_status(cu.cuStreamSynchronize(g->stream), "kernels", err);
}

/* Chunks in turn through two buffers: one is filled while the other is on the
 * bus. */
int gpu_put(struct gpu *g, mp_addr dst, const void *src, size_t n,
            struct mp_error *err)
{
    int rc = gpu_enter(g, err);

    for (size_t at = 0, i = 0; at < n && !rc; at += STAGE, i ^= 1) {
        size_t part = n - at < STAGE ? n - at : STAGE;

        rc = gpu_status(cu.cuEventSynchronize(g->staged[i]), "copy to the GPU",
                        err);
        if (rc)
            break;
        memcpy(g->staging[i], (const char *)src + at, part);
        rc = gpu_status(
            cu.cuMemcpyHtoDAsync_v2(dst + at, g->staging[i], part, g->stream),
            "copy to the GPU", err);
        if (!rc)
            rc = gpu_status(cu.cuEventRecord(g->staged[i], g->stream),
                            "copy to the GPU", err);
    }
    return rc;
}

int gpu_copy(struct gpu *g, mp_addr dst, mp_addr src, size_t n,
             struct mp_error *err)
{
    int rc = gpu_enter(g, err);

    return rc ? rc
              : gpu_status(cu.cuMemcpyDtoDAsync_v2(dst, src, n, g->stream),
                           "copy on the GPU", err);
}

static int fetch(struct gpu *g, size_t i, mp_addr src, size_t n,
                 struct mp_error *err)
{
    int rc =
        gpu_status(cu.cuMemcpyDtoHAsync_v2(g->staging[i], src, n, g->stream),
                   "copy from the GPU", err);

    return rc ? rc
              : gpu_status(cu.cuEventRecord(g->staged[i], g->stream),
                           "copy from the GPU", err);
}

int gpu_get(struct gpu *g, void *dst, mp_addr src, size_t n,
            struct mp_error *err)
{
    int rc = gpu_enter(g, err);

    if (!rc && n)
        rc = fetch(g, 0, src, n < STAGE ? n : STAGE, err);
    for (size_t at = 0, i = 0; at < n && !rc; at += STAGE, i ^= 1) {
        size_t part = n - at < STAGE ? n - at : STAGE, next = at + part;

        if (next < n)
            rc = fetch(g, i ^ 1, src + next,
                       n - next < STAGE ? n - next : STAGE, err);
        if (!rc)
            rc = gpu_status(cu.cuEventSynchronize(g->staged[i]),
                            "copy from the GPU", err);
        if (!rc)
            memcpy((char *)dst + at, g->staging[i], part);
    }
    return rc;
}

/* ---- kernels ---- */

int gpu_launch(struct gpu *g, const struct gpu_launch *l, struct mp_error *err)
{
#define X(name, arg) #name,
    static const char *const name[] = {GPU_KERNELS(X)};
#undef X
    void *args[] = {(void *)l->arg};
    int rc = gpu_enter(g, err);

    return rc ? rc
              : gpu_status(cu.cuLaunchKernel(g->kernel[l->kernel], l->grid[0],
                                             l->grid[1], l->grid[2], l->threads,
                                             1, 1, (unsigned)l->shared,
                                             g->stream, args, NULL),
                           name[l->kernel], err);
}

struct gpu_graph {
    struct gpu *gpu;
    CUgraphExec exec;
};

int gpu_record(struct gpu *g, struct mp_error *err)
{
    int rc = gpu_enter(g, err);

    return rc ? rc
              : gpu_status(cu.cuStreamBeginCapture_v2(
                               g->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL),
                           "recording", err);
}

int gpu_recorded(struct gpu *g, struct gpu_graph **out, struct mp_error *err)
{
    struct gpu_graph *r = calloc(1, sizeof *r);
    CUgraph graph = NULL;
    int rc =
        gpu_status(cu.cuStreamEndCapture(g->stream, &graph), "recording", err);

    if (!rc && !r)
        rc = mp_fail(err, MP_ENOMEM, "out of memory");
    if (!rc)
        rc = gpu_status(cu.cuGraphInstantiateWithFlags(&r->exec, graph, 0),
                        "recording", err);
    if (graph)
        cu.cuGraphDestroy(graph);
    if (rc) {
        free(r);
        return rc;
    }
    r->gpu = g;
    *out = r;
    return 0;
}

int gpu_replay(struct gpu *g, struct gpu_graph *r, struct mp_error *err)
{
    int rc = gpu_enter(g, err);

    return rc ? rc
              : gpu_status(cu.cuGraphLaunch(r->exec, g->stream),
                           "starting the recorded kernels", err);
}

void gpu_graph_free(struct gpu_graph *r)
{
    if (!r)
        return;
    if (!gpu_enter(r->gpu, NULL))
        cu.cuGraphExecDestroy(r->exec);
    free(r);
}

/* ---- time ---- */

static int more_marks(struct gpu *g, size_t n, struct mp_error *err)
{
    CUevent *more = realloc(g->mark, n * sizeof *more);
    int rc = 0;

    if (!more)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    g->mark = more;
    while (g->nmark < n && !rc) {
        rc = gpu_status(cu.cuEventCreate(&g->mark[g->nmark], CU_EVENT_DEFAULT),
                        "cuEventCreate", err);
        g->nmark += !rc;
    }
    return rc;
}

int gpu_mark(struct gpu *g, size_t i, struct mp_error *err)
{
    int rc = gpu_enter(g, err);

    if (!rc && i >= g->nmark)
        rc = more_marks(g, i + 1, err);
    return rc ? rc
              : gpu_status(cu.cuEventRecord(g->mark[i], g->stream),
                           "cuEventRecord", err);
}

int gpu_between(struct gpu *g, size_t first, size_t last, double *seconds,
                struct mp_error *err)
{
    float ms = 0;
    int rc = gpu_enter(g, err);

    if (!rc)
        rc = gpu_status(cu.cuEventSynchronize(g->mark[last]), "kernels", err);
    if (!rc)
        rc = gpu_status(
            cu.cuEventElapsedTime(&ms, g->mark[first], g->mark[last]),
            "cuEventElapsedTime", err);
    *seconds = 1e-3 * (double)ms;
    return rc;
}
