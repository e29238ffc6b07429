/* SPDX-License-Identifier: MIT */
/*
 * libcuda.cc - a CUDA driver without a GPU: memory is the process's, kernels
 * are those of core/cuda as C++ (sim.h), and streams do what they are given as
 * late as can be, or in any order that their events allow, so that nothing
 * that depends on luck passes. It is checked what a real driver or device
 * would refuse or corrupt; misuse ends the program.
 *
 *     MPIPE_SIM_ORDER    late (default), early, or a number: the seed of a
 *                        random order
 *     MPIPE_SIM_DEVICES  1
 *     MPIPE_SIM_MEMORY   bytes of each device, 16 GiB
 *     MPIPE_SIM_FAULT    N: the Nth kernel fails, and the device with it
 *     MPIPE_SIM_KERNELS  no: they are started and not run, which saves most of
 *                        the time where results do not matter
 *     FAKE_CUDA          what is wrong: none (no device), old driver, old
 *                        device, closed (a device that cannot be opened)
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>
#include "cuda/attention.cu"
#include "cuda/conv.cu"
#include "cuda/norm.cu"
#include "cuda/pointwise.cu"
#include "cuda.h"

#define API extern "C" __attribute__((visibility("default"))) CUresult

#define DEVICES    8
#define SHARED     (99 << 10) /* the least of all devices that will do */
#define PROCESSORS 2          /* so that small tests meet large tiles too */
#define GUARD      256        /* bytes after a block that nobody may write */
#define GUARD_BYTE 0xa5

/* ---- what there is ---- */

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

/* A place in a stream: the work up to there, and when it was done. */
struct mark {
    CUstream_st *stream;
    uint64_t at;
    bool done;
    double time;
};

struct op {
    enum { CALL, COPY, RECORD, WAIT } kind;
    /* CALL: a kernel, or a function as one thread */
    void (*call)(const void *arg);
    std::vector<char> arg;
    sim_grid grid;
    unsigned threads, shared; /* threads 0: a function */
    bool together;
    /* COPY */
    char *to;
    const char *from;
    size_t n;
    std::shared_ptr<struct mark> mark; /* RECORD, WAIT */
    double seconds;
};

struct CUctx_st {
    int index, retained, streams, events, pinned, modules, graphs;
    size_t used;
    std::map<uintptr_t, size_t> block;
    CUresult broken;
};

struct CUgraph_st {
    std::vector<op> todo;
};

struct CUgraphExec_st {
    CUctx_st *context;
    std::vector<op> todo;
};

struct CUstream_st {
    CUctx_st *context;
    std::deque<op> todo;
    uint64_t done, queued;
    double time; /* at which the last was done */
    int chance;  /* percent, of going on by itself */
    CUgraph_st *capture;
};

struct CUevent_st {
    CUctx_st *context;
    std::shared_ptr<mark> last;
};

struct CUmod_st {
    CUctx_st *context;
};

struct CUfunc_st {
    unsigned index;
    int most_shared;
};

static struct {
    CUctx_st device[DEVICES];
    std::vector<CUstream_st *> stream;
    CUfunc_st function[GPU_KERNEL_COUNT];
    CUstream_st *capturing;
    bool spoilt; /* the capture */
    uint64_t kernels, random;
} sim;

static std::recursive_mutex lock;
static thread_local CUctx_st *current;

static void die(const char *what)
{
    fprintf(stderr, "sim: driver: %s\n", what);
    abort();
}

static std::string setting(const char *name, const char *otherwise)
{
    const char *set = getenv(name);

    return set && *set ? set : otherwise;
}

static bool is_wrong(const char *what)
{
    return setting("FAKE_CUDA", "") == what;
}

static size_t memory()
{
    return std::stoul(setting("MPIPE_SIM_MEMORY", "17179869184"));
}

/* ---- doing it ---- */

/* Is that all of one block of the device, or none of its business? */
static void check_range(const CUctx_st *c, const void *p, size_t n,
                        const char *what)
{
    auto at = c->block.upper_bound((uintptr_t)p);

    if (at == c->block.begin())
        die(what);
    at--;
    if ((uintptr_t)p + n > at->first + at->second)
        die(what);
}

static void run_call(CUstream_st *s, const op &o)
{
    if (!o.threads) {
        o.call(o.arg.data());
        return;
    }
    if (++sim.kernels == std::stoul(setting("MPIPE_SIM_FAULT", "0"))) {
        s->context->broken = CUDA_ERROR_ILLEGAL_ADDRESS;
        return;
    }
    if (setting("MPIPE_SIM_KERNELS", "yes") != "no")
        sim_run(o.grid, o.threads, o.shared, o.together, o.call, o.arg.data());
}

static void advance(CUstream_st *s, uint64_t upto);

static void run_one(CUstream_st *s)
{
    op o = std::move(s->todo.front());

    s->todo.pop_front();
    if (o.kind == op::WAIT && !o.mark->done)
        advance(o.mark->stream, o.mark->at);
    if (o.kind == op::WAIT && s->time < o.mark->time)
        s->time = o.mark->time;
    s->time += o.seconds;
    if (o.kind == op::RECORD) {
        o.mark->done = true;
        o.mark->time = s->time;
    }
    if (s->context->broken == CUDA_SUCCESS && o.kind == op::CALL)
        run_call(s, o);
    if (s->context->broken == CUDA_SUCCESS && o.kind == op::COPY)
        memcpy(o.to, o.from, o.n);
    s->done++;
}

static void advance(CUstream_st *s, uint64_t upto)
{
    while (s->done < upto)
        run_one(s);
}

static unsigned random_number(unsigned below)
{
    sim.random = sim.random * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(sim.random >> 33) % below;
}

/* Streams that nobody waits for go on, or do not. */
static void go_on()
{
    for (bool moved = true; moved;) {
        moved = false;
        for (CUstream_st *s : sim.stream) {
            if (s->todo.empty() || (int)random_number(100) >= s->chance ||
                (s->todo.front().kind == op::WAIT &&
                 !s->todo.front().mark->done))
                continue;
            run_one(s);
            moved = true;
        }
    }
}

static void choose_chance(CUstream_st *s)
{
    static const int chance[] = {0, 10, 60, 95};
    std::string order = setting("MPIPE_SIM_ORDER", "late");

    if (order == "late") {
        s->chance = 0;
    } else if (order == "early") {
        s->chance = 100;
    } else {
        if (!sim.random)
            sim.random = std::stoul(order) * 2654435761u + 1;
        s->chance = chance[random_number(4)];
    }
}

/* ---- what calls begin with ---- */

/* Waiting and allocating are not for while a stream is recorded. */
static CUresult enter(bool safe)
{
    if (!current)
        return CUDA_ERROR_INVALID_CONTEXT;
    if (current->broken != CUDA_SUCCESS)
        return current->broken;
    if (!safe && sim.capturing) {
        sim.spoilt = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    go_on();
    return CUDA_SUCCESS;
}

#define ENTER(safe)                                                            \
    std::lock_guard<std::recursive_mutex> guard(lock);                         \
    CUresult entered = enter(safe);                                            \
    if (entered != CUDA_SUCCESS)                                               \
    return entered

static CUresult push(CUstream_st *s, op o)
{
    if (!s || s->context != current)
        return CUDA_ERROR_INVALID_HANDLE;
    if (s->capture && (o.kind == op::RECORD || o.kind == op::WAIT)) {
        sim.spoilt = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    if (s->capture) {
        s->capture->todo.push_back(std::move(o));
        return CUDA_SUCCESS;
    }
    s->todo.push_back(std::move(o));
    s->queued++;
    return CUDA_SUCCESS;
}

/* ---- devices ---- */

API cuInit(unsigned)
{
    for (int i = 0; i < DEVICES; i++)
        sim.device[i].index = i;
    for (unsigned i = 0; i < GPU_KERNEL_COUNT; i++)
        sim.function[i] = {i, 48 << 10};
    return is_wrong("none") ? CUDA_ERROR_NO_DEVICE : CUDA_SUCCESS;
}

API cuDriverGetVersion(int *version)
{
    *version = is_wrong("old driver") ? 11040 : CUDA_VERSION;
    return CUDA_SUCCESS;
}

API cuDeviceGetCount(int *n)
{
    *n = std::stoi(setting("MPIPE_SIM_DEVICES", "1"));
    if (*n > DEVICES)
        die("at most 8 devices");
    return CUDA_SUCCESS;
}

API cuDeviceGet(CUdevice *d, int index)
{
    int n;

    cuDeviceGetCount(&n);
    *d = index;
    return index < n ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

API cuDeviceGetName(char *name, int n, CUdevice)
{
    snprintf(name, (size_t)n, "Fake 1000");
    return CUDA_SUCCESS;
}

API cuDeviceGetAttribute(int *out, CUdevice_attribute what, CUdevice d)
{
    bool old = is_wrong("old device") || (is_wrong("first old") && d == 0);

    switch (what) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
        *out = old ? 7 : 9;
        break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
        *out = 5;
        break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
        *out = PROCESSORS;
        break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
        *out = SHARED;
        break;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

API cuDeviceTotalMem_v2(size_t *bytes, CUdevice)
{
    *bytes = memory();
    return CUDA_SUCCESS;
}

API cuGetErrorString(CUresult r, const char **text)
{
    switch (r) {
    case CUDA_ERROR_OUT_OF_MEMORY:
        *text = "out of memory";
        break;
    case CUDA_ERROR_NOT_PERMITTED:
        *text = "not permitted";
        break;
    case CUDA_ERROR_ILLEGAL_ADDRESS:
        *text = "an illegal memory access was encountered";
        break;
    default:
        *text = "refused by the simulation";
    }
    return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice d)
{
    std::lock_guard<std::recursive_mutex> guard(lock);

    if (is_wrong("closed"))
        return CUDA_ERROR_NOT_PERMITTED;
    *c = &sim.device[d];
    (*c)->retained++;
    return CUDA_SUCCESS;
}

/* The last one out must have left nothing. */
API cuDevicePrimaryCtxRelease_v2(CUdevice d)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    CUctx_st *c = &sim.device[d];

    if (--c->retained)
        return CUDA_SUCCESS;
    if (!c->block.empty() || c->used)
        die("memory of the device was not freed");
    if (c->streams || c->events || c->pinned || c->modules || c->graphs)
        die("streams, events, pinned memory, modules or graphs are left");
    c->broken = CUDA_SUCCESS;
    return CUDA_SUCCESS;
}

API cuCtxSetCurrent(CUcontext c)
{
    current = c;
    return CUDA_SUCCESS;
}

/* ---- memory ---- */

/* Poisoned: what is read before it is written shows as NaN. */
API cuMemAlloc_v2(CUdeviceptr *out, size_t bytes)
{
    ENTER(false);
    void *p = NULL;

    if (!bytes)
        return CUDA_ERROR_INVALID_VALUE;
    if (bytes > memory() - current->used ||
        posix_memalign(&p, 256, bytes + GUARD))
        return CUDA_ERROR_OUT_OF_MEMORY;
    memset(p, 0xff, bytes);
    memset((char *)p + bytes, GUARD_BYTE, GUARD);
    current->block[(uintptr_t)p] = bytes;
    current->used += bytes;
    *out = (uintptr_t)p;
    return CUDA_SUCCESS;
}

/* A driver waits for the device here; who counts on that is slow. */
API cuMemFree_v2(CUdeviceptr a)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    unsigned char *p = (unsigned char *)(uintptr_t)a;

    if (!current || sim.capturing)
        die("memory is freed at the wrong time");
    auto at = current->block.find((uintptr_t)a);
    if (at == current->block.end())
        die("what is freed was not allocated, or on another device");
    for (size_t i = 0; i < GUARD; i++)
        if (p[at->second + i] != GUARD_BYTE)
            die("somebody wrote behind a block");
    memset(p, 0xff, at->second);
    current->used -= at->second;
    current->block.erase(at);
    free(p);
    return CUDA_SUCCESS;
}

API cuMemGetInfo_v2(size_t *left, size_t *all)
{
    ENTER(true);
    *all = memory();
    *left = *all - current->used;
    return CUDA_SUCCESS;
}

API cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *n, CUdeviceptr p)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    auto at = current->block.upper_bound((uintptr_t)p);

    if (at == current->block.begin())
        return CUDA_ERROR_NOT_FOUND;
    at--;
    *base = at->first;
    *n = at->second;
    return p < at->first + at->second ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

API cuMemHostAlloc(void **p, size_t bytes, unsigned)
{
    ENTER(false);
    *p = malloc(bytes);
    if (!*p)
        return CUDA_ERROR_OUT_OF_MEMORY;
    memset(*p, 0xff, bytes);
    current->pinned++;
    return CUDA_SUCCESS;
}

API cuMemFreeHost(void *p)
{
    std::lock_guard<std::recursive_mutex> guard(lock);

    current->pinned--;
    free(p);
    return CUDA_SUCCESS;
}

static CUresult push_copy(CUstream s, void *to, const void *from, size_t n,
                          double rate)
{
    op o = {};

    o.kind = op::COPY;
    o.to = (char *)to;
    o.from = (const char *)from;
    o.n = n;
    o.seconds = 2e-6 + (double)n / rate;
    return push(s, std::move(o));
}

API cuMemcpyDtoDAsync_v2(CUdeviceptr dst, CUdeviceptr src, size_t n, CUstream s)
{
    ENTER(true);
    void *to = (void *)(uintptr_t)dst;
    const void *from = (const void *)(uintptr_t)src;

    check_range(current, to, n, "a copy to no memory of this device");
    check_range(current, from, n, "a copy from no memory of this device");
    return push_copy(s, to, from, n, 4e12);
}

API cuMemcpyDtoHAsync_v2(void *dst, CUdeviceptr src, size_t n, CUstream s)
{
    ENTER(true);
    const void *from = (const void *)(uintptr_t)src;

    check_range(current, from, n, "a copy from no memory of this device");
    return push_copy(s, dst, from, n, 5e10);
}

API cuMemcpyHtoDAsync_v2(CUdeviceptr dst, const void *src, size_t n, CUstream s)
{
    ENTER(true);
    void *to = (void *)(uintptr_t)dst;

    check_range(current, to, n, "a copy to no memory of this device");
    return push_copy(s, to, src, n, 5e10);
}

/* ---- kernels ---- */

API cuModuleLoadData(CUmodule *m, const void *)
{
    ENTER(false);
    *m = new CUmod_st{current};
    current->modules++;
    return CUDA_SUCCESS;
}

API cuModuleUnload(CUmodule m)
{
    std::lock_guard<std::recursive_mutex> guard(lock);

    m->context->modules--;
    delete m;
    return CUDA_SUCCESS;
}

API cuModuleGetFunction(CUfunction *f, CUmodule, const char *name)
{
    ENTER(true);
    for (unsigned i = 0; i < GPU_KERNEL_COUNT; i++)
        if (!strcmp(table[i].name, name)) {
            *f = &sim.function[i];
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_NOT_FOUND;
}

API cuFuncGetAttribute(int *out, CUfunction_attribute, CUfunction)
{
    ENTER(true);
    *out = 0;
    return CUDA_SUCCESS;
}

API cuFuncSetAttribute(CUfunction f, CUfunction_attribute, int v)
{
    ENTER(true);
    if (v > SHARED)
        return CUDA_ERROR_INVALID_VALUE;
    f->most_shared = v;
    return CUDA_SUCCESS;
}

API cuLaunchKernel(CUfunction f, unsigned x, unsigned y, unsigned z,
                   unsigned threads, unsigned threads_y, unsigned threads_z,
                   unsigned shared, CUstream s, void **arg, void **)
{
    ENTER(true);
    const char *bytes = (const char *)arg[0];
    op o = {};

    if (!x || x > INT32_MAX || !y || !z || y > 65535 || z > 65535 || !threads ||
        threads > 1024 || threads % 32 || threads_y != 1 || threads_z != 1 ||
        (int)shared > f->most_shared) {
        fprintf(stderr, "sim: %s: %u x %u x %u blocks of %u, %u bytes\n",
                table[f->index].name, x, y, z, threads, shared);
        return CUDA_ERROR_INVALID_VALUE;
    }
    o.kind = op::CALL;
    o.call = table[f->index].call;
    o.arg.assign(bytes, bytes + table[f->index].size);
    o.grid = {x, y, z};
    o.threads = threads;
    o.shared = shared;
    o.together = f->index > GPU_flip_8; /* pointwise.cu's come first */
    o.seconds = 2e-6 + 1e-7 * x * y * z;
    return push(s, std::move(o));
}

API sim_enqueue(CUstream s, void (*call)(const void *arg), const void *arg,
                size_t size, double seconds)
{
    ENTER(true);
    op o = {};

    o.kind = op::CALL;
    o.call = call;
    o.arg.assign((const char *)arg, (const char *)arg + size);
    o.seconds = seconds;
    return push(s, std::move(o));
}

/* ---- streams and events ---- */

API cuStreamCreate(CUstream *out, unsigned)
{
    ENTER(false);
    CUstream_st *s = new CUstream_st();

    s->context = current;
    choose_chance(s);
    sim.stream.push_back(s);
    current->streams++;
    *out = s;
    return CUDA_SUCCESS;
}

/* Events may still tell of it: it is only taken out. */
API cuStreamDestroy_v2(CUstream s)
{
    std::lock_guard<std::recursive_mutex> guard(lock);

    advance(s, s->queued);
    for (size_t i = 0; i < sim.stream.size(); i++)
        if (sim.stream[i] == s)
            sim.stream.erase(sim.stream.begin() + (long)i);
    s->context->streams--;
    return CUDA_SUCCESS;
}

API cuStreamSynchronize(CUstream s)
{
    ENTER(false);
    if (s->context != current)
        return CUDA_ERROR_INVALID_HANDLE;
    advance(s, s->queued);
    return current->broken;
}

API cuEventCreate(CUevent *e, unsigned)
{
    ENTER(true);
    *e = new CUevent_st{current, nullptr};
    current->events++;
    return CUDA_SUCCESS;
}

API cuEventDestroy_v2(CUevent e)
{
    std::lock_guard<std::recursive_mutex> guard(lock);

    e->context->events--;
    delete e;
    return CUDA_SUCCESS;
}

API cuEventRecord(CUevent e, CUstream s)
{
    ENTER(true);
    op o = {};

    if (e->context != current || !s || s->context != current)
        return CUDA_ERROR_INVALID_HANDLE;
    o.kind = op::RECORD;
    o.mark = std::make_shared<mark>(mark{s, s->queued + 1, false, 0});
    e->last = o.mark;
    return push(s, std::move(o));
}

API cuStreamWaitEvent(CUstream s, CUevent e, unsigned)
{
    ENTER(true);
    op o = {};

    if (e->context != current)
        return CUDA_ERROR_INVALID_HANDLE;
    if (!e->last)
        return CUDA_SUCCESS;
    o.kind = op::WAIT;
    o.mark = e->last;
    return push(s, std::move(o));
}

API cuEventSynchronize(CUevent e)
{
    ENTER(false);
    if (e->last)
        advance(e->last->stream, e->last->at);
    return current->broken;
}

API cuEventElapsedTime(float *ms, CUevent from, CUevent to)
{
    ENTER(true);
    if (!from->last || !to->last || !from->last->done || !to->last->done)
        return CUDA_ERROR_INVALID_HANDLE;
    *ms = (float)(1e3 * (to->last->time - from->last->time));
    return CUDA_SUCCESS;
}

/* ---- graphs ---- */

API cuStreamBeginCapture_v2(CUstream s, CUstreamCaptureMode)
{
    ENTER(false);
    s->capture = new CUgraph_st();
    sim.capturing = s;
    sim.spoilt = false;
    return CUDA_SUCCESS;
}

API cuStreamEndCapture(CUstream s, CUgraph *out)
{
    ENTER(true);
    *out = NULL;
    if (sim.capturing != s)
        return CUDA_ERROR_INVALID_VALUE;
    sim.capturing = NULL;
    if (sim.spoilt)
        delete s->capture;
    else
        *out = s->capture;
    s->capture = NULL;
    return sim.spoilt ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
}

API cuGraphDestroy(CUgraph g)
{
    delete g;
    return CUDA_SUCCESS;
}

API cuGraphInstantiateWithFlags(CUgraphExec *out, CUgraph g, unsigned long long)
{
    ENTER(true);
    *out = new CUgraphExec_st{current, g->todo};
    current->graphs++;
    return CUDA_SUCCESS;
}

API cuGraphExecDestroy(CUgraphExec g)
{
    std::lock_guard<std::recursive_mutex> guard(lock);

    g->context->graphs--;
    delete g;
    return CUDA_SUCCESS;
}

API cuGraphLaunch(CUgraphExec g, CUstream s)
{
    ENTER(true);
    for (const op &o : g->todo) {
        CUresult r = push(s, o);

        if (r != CUDA_SUCCESS)
            return r;
    }
    return CUDA_SUCCESS;
}
