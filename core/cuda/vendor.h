/* SPDX-License-Identifier: MIT */
/*
 * vendor.h - cuBLASLt and cuDNN, opened at run time: some hundred megabytes
 * each, so nothing links them.
 */
#ifndef CUDA_VENDOR_H
#define CUDA_VENDOR_H

#include <stdbool.h> /* cudnn.h uses bool and forgets to */
#include <cublasLt.h>
#include <cudnn.h>
#include "cuda/lib.h"

/* Names as libraries of this major version have them since its first
 * release. */
#define LT_CALLS(X)                                                            \
    X(cublasLtCreate, cublasLtCreate)                                          \
    X(cublasLtDestroy, cublasLtDestroy)                                        \
    X(cublasLtGetStatusString, cublasLtGetStatusString)                        \
    X(cublasLtGetVersion, cublasLtGetVersion)                                  \
    X(cublasLtMatmul, cublasLtMatmul)                                          \
    X(cublasLtMatmulAlgoCheck, cublasLtMatmulAlgoCheck)                        \
    X(cublasLtMatmulAlgoGetHeuristic, cublasLtMatmulAlgoGetHeuristic)          \
    X(cublasLtMatmulDescCreate, cublasLtMatmulDescCreate)                      \
    X(cublasLtMatmulDescDestroy, cublasLtMatmulDescDestroy)                    \
    X(cublasLtMatmulDescSetAttribute, cublasLtMatmulDescSetAttribute)          \
    X(cublasLtMatmulPreferenceCreate, cublasLtMatmulPreferenceCreate)          \
    X(cublasLtMatmulPreferenceDestroy, cublasLtMatmulPreferenceDestroy)        \
    X(cublasLtMatmulPreferenceSetAttribute,                                    \
      cublasLtMatmulPreferenceSetAttribute)                                    \
    X(cublasLtMatrixLayoutCreate, cublasLtMatrixLayoutCreate)                  \
    X(cublasLtMatrixLayoutDestroy, cublasLtMatrixLayoutDestroy)                \
    X(cublasLtMatrixLayoutSetAttribute, cublasLtMatrixLayoutSetAttribute)

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
    X(cudnnGetVersion, cudnnGetVersion)                                        \
    X(cudnnSetStream, cudnnSetStream)

#define X(name, like) __typeof__(like) *name;
struct lt_calls {
    LT_CALLS(X)
};
struct dnn_calls {
    DNN_CALLS(X)
};
#undef X

/* A NULL handle: the library is not there, why_not says so. */
struct vendor {
    struct lt_calls lt;
    struct dnn_calls dnn;
    cublasLtHandle_t lt_handle;
    cudnnHandle_t dnn_handle;
    struct mp_error why_no_lt, why_no_dnn;
    /* In tests: a device that is described to cuDNN and not there; plans are
     * made for it, and cannot run. */
    cudnnBackendDescriptor_t described;
};

#endif
