/* SPDX-License-Identifier: MIT */
/*
 * driver.h - CUDA behind gpu.h: the driver, opened at run time so that the
 * module loads where it is not, and a device.
 */
#ifndef CUDA_DRIVER_H
#define CUDA_DRIVER_H

#include <cuda.h>
#include "cuda/gpu.h"

/* Function, and the one whose prototype it has. Names as libraries of this
 * major version have them since its first release. */
#define DRIVER_CALLS(X)                                                        \
    X(cuCtxSetCurrent, cuCtxSetCurrent)                                        \
    X(cuDeviceGet, cuDeviceGet)                                                \
    X(cuDeviceGetAttribute, cuDeviceGetAttribute)                              \
    X(cuDeviceGetCount, cuDeviceGetCount)                                      \
    X(cuDeviceGetName, cuDeviceGetName)                                        \
    X(cuDevicePrimaryCtxRelease_v2, cuDevicePrimaryCtxRelease_v2)              \
    X(cuDevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain)                      \
    X(cuDeviceTotalMem_v2, cuDeviceTotalMem_v2)                                \
    X(cuDriverGetVersion, cuDriverGetVersion)                                  \
    X(cuEventCreate, cuEventCreate)                                            \
    X(cuEventDestroy_v2, cuEventDestroy_v2)                                    \
    X(cuEventElapsedTime, cuEventElapsedTime)                                  \
    X(cuEventRecord, cuEventRecord)                                            \
    X(cuEventSynchronize, cuEventSynchronize)                                  \
    X(cuFuncGetAttribute, cuFuncGetAttribute)                                  \
    X(cuFuncSetAttribute, cuFuncSetAttribute)                                  \
    X(cuGetErrorString, cuGetErrorString)                                      \
    X(cuGraphDestroy, cuGraphDestroy)                                          \
    X(cuGraphExecDestroy, cuGraphExecDestroy)                                  \
    X(cuGraphInstantiateWithFlags, cuGraphInstantiateWithFlags)                \
    X(cuGraphLaunch, cuGraphLaunch)                                            \
    X(cuInit, cuInit)                                                          \
    X(cuLaunchKernel, cuLaunchKernel)                                          \
    X(cuMemAlloc_v2, cuMemAlloc_v2)                                            \
    X(cuMemFreeHost, cuMemFreeHost)                                            \
    X(cuMemFree_v2, cuMemFree_v2)                                              \
    X(cuMemGetAddressRange_v2, cuMemGetAddressRange_v2)                        \
    X(cuMemGetInfo_v2, cuMemGetInfo_v2)                                        \
    X(cuMemHostAlloc, cuMemHostAlloc)                                          \
    X(cuMemcpyDtoDAsync_v2, cuMemcpyDtoDAsync_v2)                              \
    X(cuMemcpyDtoHAsync_v2, cuMemcpyDtoHAsync_v2)                              \
    X(cuMemcpyHtoDAsync_v2, cuMemcpyHtoDAsync_v2)                              \
    X(cuModuleGetFunction, cuModuleGetFunction)                                \
    X(cuModuleLoadData, cuModuleLoadData)                                      \
    X(cuModuleUnload, cuModuleUnload)                                          \
    X(cuStreamBeginCapture_v2, cuStreamBeginCapture_v2)                        \
    X(cuStreamCreate, cuStreamCreate)                                          \
    X(cuStreamDestroy_v2, cuStreamDestroy_v2)                                  \
    X(cuStreamEndCapture, cuStreamEndCapture)                                  \
    X(cuStreamSynchronize, cuStreamSynchronize)                                \
    X(cuStreamWaitEvent, cuStreamWaitEvent)

#define X(name, like) __typeof__(like) *name;
struct driver_calls {
    DRIVER_CALLS(X)
};
#undef X

/* The driver's, after gpu_count was content. */
extern struct driver_calls cu;

/* Fill a table of n function pointers by name from this library, which stays
 * open for ever. */
int driver_load(void *table, const char *const *name, size_t n,
                const char *library, struct mp_error *err);

/* Bytes on their way between host and device. They go through memory that the
 * bus reads and writes directly (pinned), and through as much on the device:
 * so the stream of the bus never meets what kernels work on, and what the
 * stream of the kernels sees is in order. Places are used in turn. */
#ifndef MP_CUDA_RING                    /* tests have one that is soon full */
#define MP_CUDA_RING ((size_t)64 << 20) /* bytes */
#endif
#define RING_PART  (MP_CUDA_RING / 4) /* at most at once */
#define RING_PARTS 128

struct ring {
    CUstream stream;
    char *host;
    mp_addr device;
    struct {
        size_t at, n; /* its place; n a multiple of 256 */
        void *to;     /* where the host wants it, and how much */
        size_t bytes;
        CUevent taken; /* the kernels' stream has read it, or written it */
        CUevent crossed;
    } part[RING_PARTS];   /* number k is [k % RING_PARTS] */
    uint64_t first, next; /* under way: from first up to next */
};

struct gpu {
    CUdevice device;
    CUcontext context;
    CUstream stream; /* of the kernels */
    int processors;
    size_t shared;
    size_t allocated; /* bytes */
    CUmodule module[4];
    CUfunction kernel[GPU_KERNEL_COUNT];
    struct ring in, out;
    CUevent *mark;
    size_t nmark;
    struct vendor *vendor;
    struct lib_plan *plans;
    struct choices *choices; /* NULL: the libraries choose */
};

/* Make the device this thread's; status of a driver call as an error. */
int gpu_enter(struct gpu *g, struct mp_error *err);
int gpu_status(CUresult r, const char *what, struct mp_error *err);

#endif
