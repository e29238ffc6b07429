/* SPDX-License-Identifier: MIT */
/* gpu.c - gpu.h by the CUDA driver: devices, memory, copies, kernels. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cuda/lib.h"

/* The driver's library; the tests have one of their own (tests/sim). */
#ifndef MP_CUDA_DRIVER
#define MP_CUDA_DRIVER "libcuda.so.1"
#endif

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
    rc = driver_load(&cu, names, sizeof names / sizeof *names, MP_CUDA_DRIVER,
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

static int attribute(const struct gpu *g, int *out, CUdevice_attribute what,
                     struct mp_error *err)
{
    return gpu_status(cu.cuDeviceGetAttribute(out, what, g->device),
                      "cuDeviceGetAttribute", err);
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
        rc = attribute(g, &g->processors,
                       CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, err);
    if (!rc)
        rc = attribute(g, &shared,
                       CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
                       err);
    g->shared = (size_t)shared;
    return rc;
}

static int open_ring(struct gpu *g, struct ring *r, struct mp_error *err)
{
    int rc = gpu_status(cu.cuStreamCreate(&r->stream, CU_STREAM_NON_BLOCKING),
                        "cuStreamCreate", err);

    r->first = r->next = 1;
    if (!rc)
        rc = gpu_status(cu.cuMemHostAlloc((void **)&r->host, MP_CUDA_RING, 0),
                        "pinned memory", err);
    if (!rc)
        rc = gpu_alloc(g, MP_CUDA_RING, "copies", &r->device, err);
    for (int i = 0; i < RING_PARTS && !rc; i++) {
        rc = gpu_status(
            cu.cuEventCreate(&r->part[i].taken, CU_EVENT_DISABLE_TIMING),
            "cuEventCreate", err);
        if (!rc)
            rc = gpu_status(
                cu.cuEventCreate(&r->part[i].crossed, CU_EVENT_DISABLE_TIMING),
                "cuEventCreate", err);
    }
    return rc;
}

static void close_ring(struct gpu *g, struct ring *r)
{
    if (r->stream)
        cu.cuStreamSynchronize(r->stream);
    gpu_free(g, r->device);
    if (r->host)
        cu.cuMemFreeHost(r->host);
    for (int i = 0; i < RING_PARTS; i++) {
        if (r->part[i].taken)
            cu.cuEventDestroy_v2(r->part[i].taken);
        if (r->part[i].crossed)
            cu.cuEventDestroy_v2(r->part[i].crossed);
    }
    if (r->stream)
        cu.cuStreamDestroy_v2(r->stream);
}

int gpu_open(struct gpu **out, int index, struct mp_error *err)
{
    struct gpu *g = calloc(1, sizeof *g);
    int rc;

    if (!g)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    rc = open_device(g, index, err);
    if (!rc)
        rc = open_ring(g, &g->in, err);
    if (!rc)
        rc = open_ring(g, &g->out, err);
    if (!rc)
        rc = load_kernels(g, err);
    if (!rc)
        rc = vendor_open(g, err);
    if (rc) {
        gpu_close(g);
        return rc;
    }
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
        vendor_close(g);
        close_ring(g, &g->in);
        close_ring(g, &g->out);
        for (size_t i = 0; i < g->nmark; i++)
            cu.cuEventDestroy_v2(g->mark[i]);
        for (int i = 0; i < 4; i++)
            if (g->module[i])
                cu.cuModuleUnload(g->module[i]);
        if (g->stream)
            cu.cuStreamDestroy_v2(g->stream);
        cu.cuCtxSetCurrent(NULL);
        cu.cuDevicePrimaryCtxRelease_v2(g->device);
    }
    choices_free(g->choices);
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

int gpu_copy(struct gpu *g, mp_addr dst, mp_addr src, size_t n,
             struct mp_error *err)
{
    int rc = gpu_enter(g, err);

    return rc ? rc
              : gpu_status(cu.cuMemcpyDtoDAsync_v2(dst, src, n, g->stream),
                           "copy on the GPU", err);
}

/* ---- between host and device ---- */

/* The next place of n bytes in one piece; 0: none is free. */
static int find_place(const struct ring *r, size_t n, size_t *at)
{
    size_t head, tail;

    *at = 0;
    if (r->first == r->next)
        return 1;
    if (r->next - r->first == RING_PARTS)
        return 0;
    tail = r->part[r->first % RING_PARTS].at;
    head = r->part[(r->next - 1) % RING_PARTS].at +
           r->part[(r->next - 1) % RING_PARTS].n;
    if (head <= tail) {
        *at = head;
        return n <= tail - head;
    }
    if (n <= MP_CUDA_RING - head)
        *at = head;
    return *at || n <= tail;
}

/* Be done with the oldest part: what it brought is the host's, and its place
 * may be written to. */
static int retire(struct gpu *g, struct ring *r, struct mp_error *err)
{
    uint64_t k = r->first % RING_PARTS;
    int rc = gpu_status(cu.cuEventSynchronize(r->part[k].crossed),
                        "kernels, or a copy", err);

    if (!rc && r == &g->in)
        rc = gpu_status(cu.cuStreamWaitEvent(r->stream, r->part[k].taken, 0),
                        "cuStreamWaitEvent", err);
    if (rc) {
        r->first = r->next; /* void, all of it */
        return rc;
    }
    if (r == &g->out)
        memcpy(r->part[k].to, r->host + r->part[k].at, r->part[k].bytes);
    r->first++;
    return 0;
}

/* Number of a new part of n bytes. */
static int begin_part(uint64_t *k, struct gpu *g, struct ring *r, size_t n,
                      struct mp_error *err)
{
    size_t at, whole = (n + 255) / 256 * 256;
    int rc = 0;

    while (!rc && !find_place(r, whole, &at))
        rc = retire(g, r, err);
    if (rc)
        return rc;
    *k = r->next % RING_PARTS;
    r->part[*k].at = at;
    r->part[*k].n = whole;
    r->next++;
    return 0;
}

/* One stream's work is to be seen by another: what it did up to here. */
static int pass_on(CUevent event, CUstream from, CUstream to,
                   struct mp_error *err)
{
    int rc = gpu_status(cu.cuEventRecord(event, from), "cuEventRecord", err);

    return rc ? rc
              : gpu_status(cu.cuStreamWaitEvent(to, event, 0),
                           "cuStreamWaitEvent", err);
}

static int put_part(struct gpu *g, mp_addr dst, const void *src, size_t n,
                    struct mp_error *err)
{
    struct ring *r = &g->in;
    uint64_t k;
    int rc = begin_part(&k, g, r, n, err);
    mp_addr at;

    if (rc)
        return rc;
    at = r->device + r->part[k].at;
    memcpy(r->host + r->part[k].at, src, n);
    rc = gpu_status(
        cu.cuMemcpyHtoDAsync_v2(at, r->host + r->part[k].at, n, r->stream),
        "copy to the GPU", err);
    if (!rc)
        rc = pass_on(r->part[k].crossed, r->stream, g->stream, err);
    if (!rc)
        rc = gpu_copy(g, dst, at, n, err);
    return rc ? rc
              : gpu_status(cu.cuEventRecord(r->part[k].taken, g->stream),
                           "cuEventRecord", err);
}

static int get_part(struct gpu *g, void *dst, mp_addr src, size_t n,
                    struct mp_error *err)
{
    struct ring *r = &g->out;
    uint64_t k;
    int rc = begin_part(&k, g, r, n, err);
    mp_addr at;

    if (rc)
        return rc;
    at = r->device + r->part[k].at;
    r->part[k].to = dst;
    r->part[k].bytes = n;
    rc = gpu_copy(g, at, src, n, err);
    if (!rc)
        rc = pass_on(r->part[k].taken, g->stream, r->stream, err);
    if (!rc)
        rc = gpu_status(
            cu.cuMemcpyDtoHAsync_v2(r->host + r->part[k].at, at, n, r->stream),
            "copy from the GPU", err);
    return rc ? rc
              : gpu_status(cu.cuEventRecord(r->part[k].crossed, r->stream),
                           "cuEventRecord", err);
}

static size_t at_most(size_t n)
{
    return n < RING_PART ? n : RING_PART;
}

int gpu_put(struct gpu *g, mp_addr dst, const void *src, size_t n,
            struct mp_error *err)
{
    int rc = gpu_enter(g, err);

    for (size_t at = 0; at < n && !rc; at += RING_PART)
        rc =
            put_part(g, dst + at, (const char *)src + at, at_most(n - at), err);
    return rc;
}

int gpu_get(struct gpu *g, void *dst, mp_addr src, size_t n, uint64_t *ticket,
            struct mp_error *err)
{
    int rc = gpu_enter(g, err);

    for (size_t at = 0; at < n && !rc; at += RING_PART)
        rc = get_part(g, (char *)dst + at, src + at, at_most(n - at), err);
    *ticket = rc || !n ? 0 : g->out.next - 1;
    return rc;
}

int gpu_wait(struct gpu *g, uint64_t ticket, struct mp_error *err)
{
    int rc = gpu_enter(g, err);

    while (!rc && g->out.first < g->out.next && g->out.first <= ticket)
        rc = retire(g, &g->out, err);
    if (!rc && ticket == UINT64_MAX)
        rc = gpu_status(cu.cuStreamSynchronize(g->stream), "kernels", err);
    if (rc)
        g->out.first = g->out.next;
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
