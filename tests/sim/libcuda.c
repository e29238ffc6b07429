/* SPDX-License-Identifier: MIT */
/*
 * libcuda.c - a driver that has nothing good to say, for tests of how the
 * module refuses. FAKE_CUDA is what is wrong: "none" (no device), "old driver",
 * "old device"; anything else: a device that cannot be opened.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <stdbool.h>
#include "cuda/driver.h"

static int is(const char *what)
{
    const char *set = getenv("FAKE_CUDA");

    return set && !strcmp(set, what);
}

CUresult cuInit(unsigned flags)
{
    (void)flags;
    return is("none") ? CUDA_ERROR_NO_DEVICE : CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int *version)
{
    *version = is("old driver") ? 11040 : CUDA_VERSION;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *n)
{
    *n = 1;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *d, int index)
{
    *d = index;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char *name, int n, CUdevice d)
{
    (void)d;
    snprintf(name, (size_t)n, "Fake 1000");
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *out, CUdevice_attribute what, CUdevice d)
{
    (void)d;
    *out = what == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
               ? is("old device") ? 7 : 9
               : 5;
    return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice d)
{
    (void)d;
    *bytes = (size_t)8 << 30;
    return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult r, const char **text)
{
    *text = r == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory" : "not permitted";
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice d)
{
    (void)c;
    (void)d;
    return CUDA_ERROR_NOT_PERMITTED;
}

/* The others must be there, and are not reached. */
#pragma GCC diagnostic ignored "-Wattribute-alias"
static CUresult unreached(void)
{
    return CUDA_ERROR_NOT_SUPPORTED;
}

#define UNREACHED(name)                                                        \
    __typeof__(name) name __attribute__((alias("unreached")))
UNREACHED(cuCtxSetCurrent);
UNREACHED(cuDevicePrimaryCtxRelease_v2);
UNREACHED(cuEventCreate);
UNREACHED(cuEventDestroy_v2);
UNREACHED(cuEventRecord);
UNREACHED(cuEventSynchronize);
UNREACHED(cuFuncGetAttribute);
UNREACHED(cuFuncSetAttribute);
UNREACHED(cuGraphDestroy);
UNREACHED(cuGraphExecDestroy);
UNREACHED(cuGraphInstantiateWithFlags);
UNREACHED(cuGraphLaunch);
UNREACHED(cuLaunchKernel);
UNREACHED(cuMemAlloc_v2);
UNREACHED(cuMemFreeHost);
UNREACHED(cuMemFree_v2);
UNREACHED(cuMemGetAddressRange_v2);
UNREACHED(cuMemGetInfo_v2);
UNREACHED(cuMemHostAlloc);
UNREACHED(cuMemcpyDtoDAsync_v2);
UNREACHED(cuMemcpyDtoHAsync_v2);
UNREACHED(cuMemcpyHtoDAsync_v2);
UNREACHED(cuModuleGetFunction);
UNREACHED(cuModuleLoadData);
UNREACHED(cuModuleUnload);
UNREACHED(cuStreamBeginCapture_v2);
UNREACHED(cuStreamCreate);
UNREACHED(cuStreamDestroy_v2);
UNREACHED(cuStreamEndCapture);
UNREACHED(cuStreamSynchronize);
/* By the name that old drivers have too, which cuda.h renames. */
#undef cuEventElapsedTime
__typeof__(cuEventElapsedTime_v2) cuEventElapsedTime
    __attribute__((alias("unreached")));
