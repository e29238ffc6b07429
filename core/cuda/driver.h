/* SPDX-License-Identifier: MIT */
/*
 * driver.h - CUDA behind gpu.h: the libraries, opened at run time so that the
 * module loads where they are not, and a device with its handles.
 */
#ifndef CUDA_DRIVER_H
#define CUDA_DRIVER_H

#include <stdbool.h> /* cudnn.h uses bool and forgets to */
#include <cuda.h>
#include <cublasLt.h>
#include <cudnn.h>
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
    X(cuStreamSynchronize, cuStreamSynchronize)

#define LT_CALLS(X)                                                            \
    X(cublasLtCreate, cublasLtCreate)                                          \
    X(cublasLtDestroy, cublasLtDestroy)                                        \
    X(cublasLtGetStatusString, cublasLtGetStatusString)                        \
    X(cublasLtMatmul, cublasLtMatmul)                                          \
    X(cublasLtMatmulAlgoGetHeuristic, cublasLtMatmulAlgoGetHeuristic)          \
    X(cublasLtMatmulDescCreate, cublasLtMatmulDescCreate)                      \
    X(cublasLtMatmulDescDestroy, cublasLtMatmulDescDestroy)                    \
    X(cublasLtMatmulDescSetAttribute, cublasLtMatmulDescSetAttribute)          \
    X(cublasLtMatmulPreferenceCreate, cublasLtMatmulPreferenceCreate)          \
    X(cublasLtMatmulPreferenceDestroy, cublasLtMatmulPreferenceDestroy)        \
    X(cublasLtMatmulPreferenceSetAttribute,                                    \
      cublasLtMatmulPreferenceSetAttribute)                                    \
    X(cublasLtMatrixLayoutCreate, cublasLtMatrixLayoutCreate)                  \
    X(cublasLtMatrixLayoutDestroy, cublasLtMatrixLayoutDestroy)

#define DNN_CALLS(X)                                                           \
    X(cudnnBackendCreateDescriptor, cudnnBackendCreateDescriptor)              \
    X(cudnnBackendDestroyDescriptor, cudnnBackendDestroyDescriptor)            \
    X(cudnnBackendExecute, cudnnBackendExecute)                                \
    X(cudnnBackendFinalize, cudnnBackendFinalize)                              \
    X(cudnnBackendGetAttribute, cudnnBackendGetAttribute)                      \
    X(cudnnBackendSetAttribute, cudnnBackendSetAttribute)                      \
    X(cudnnCreate, cudnnCreate)                                                \
    X(cudnnDestroy, cudnnDestroy)                                              \
    X(cudnnGetErrorString, cudnnGetErrorString)                                \
    X(cudnnGetLastErrorString, cudnnGetLastErrorString)                        \
    X(cudnnSetStream, cudnnSetStream)

#define X(name, like) __typeof__(like) *name;
struct driver_calls {
    DRIVER_CALLS(X)
};
struct lt_calls {
    LT_CALLS(X)
};
struct dnn_calls {
    DNN_CALLS(X)
};
#undef X

/* The driver's, after gpu_count was content. */
extern struct driver_calls cu;

/* Fill a table of n function pointers by name from this library, which stays
 * open for ever. */
int driver_load(void *table, const char *const *name, size_t n,
                const char *library, struct mp_error *err);

struct gpu {
    CUdevice device;
    CUcontext context;
    CUstream stream;
    int processors;
    size_t shared;
    size_t allocated; /* bytes */
    CUmodule module[4];
    CUfunction kernel[GPU_KERNEL_COUNT];
    char *staging[2]; /* pinned: the bus reads and writes it directly */
    CUevent staged[2];
    CUevent *mark;
    size_t nmark;
    int recording;
    /* the libraries; a NULL handle: it is not there, why_not says so */
    struct lt_calls lt;
    struct dnn_calls dnn;
    cublasLtHandle_t lt_handle;
    cudnnHandle_t dnn_handle;
    struct mp_error why_no_lt, why_no_dnn;
    struct lib_plan *plans;
    /* In tests: a device that is described to cuDNN and not there; plans are
     * made for it, and cannot run. */
    cudnnBackendDescriptor_t described;
};

/* Make the device this thread's; status of a driver call as an error. */
int gpu_enter(struct gpu *g, struct mp_error *err);
int gpu_status(CUresult r, const char *what, struct mp_error *err);

/* lib.c: open what there is, and close it. */
void lib_open(struct gpu *g);
void lib_close(struct gpu *g);

#endif
