/* SPDX-License-Identifier: MIT */
/*
 * vendor.c - the libraries, where they are. Without one of them the device
 * still computes, by kernels of ours, and the user is told.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cuda/vendor.h"

#define TEXT_(x) #x
#define TEXT(x)  TEXT_(x)

/* By its name, as the system finds it, or in the toolkit that this was built
 * with. */
static int load(void *table, const char *const *name, size_t n,
                const char *library, struct mp_error *err)
{
    char path[512];
    int rc = driver_load(table, name, n, library, err);

    if (!rc)
        return 0;
    snprintf(path, sizeof path, MP_CUDA_LIBDIR "/%s", library);
    return driver_load(table, name, n, path, NULL) ? rc : 0;
}

static int open_lt(struct vendor *v, struct mp_error *err)
{
#define X(name, like) #name,
    static const char *const names[] = {LT_CALLS(X)};
#undef X
    cublasStatus_t st;
    int rc = load(&v->lt, names, sizeof names / sizeof *names,
                  "libcublasLt.so." TEXT(CUBLAS_VER_MAJOR), err);

    if (rc)
        return rc;
    st = v->lt.cublasLtCreate(&v->lt_handle);
    if (st == CUBLAS_STATUS_SUCCESS)
        return 0;
    v->lt_handle = NULL;
    return mp_fail(err, MP_ENOTSUP, "cublasLtCreate: %s",
                   v->lt.cublasLtGetStatusString(st));
}

static int open_dnn(struct vendor *v, CUstream stream, struct mp_error *err)
{
#define X(name, like) #name,
    static const char *const names[] = {DNN_CALLS(X)};
#undef X
    cudnnStatus_t st;
    int rc = load(&v->dnn, names, sizeof names / sizeof *names,
                  "libcudnn.so." TEXT(CUDNN_MAJOR), err);

    if (rc)
        return rc;
    st = v->dnn.cudnnCreate(&v->dnn_handle);
    if (st != CUDNN_STATUS_SUCCESS)
        v->dnn_handle = NULL;
    else
        st = v->dnn.cudnnSetStream(v->dnn_handle, stream);
    return st == CUDNN_STATUS_SUCCESS
               ? 0
               : mp_fail(err, MP_ENOTSUP, "cudnnCreate: %s",
                         v->dnn.cudnnGetErrorString(st));
}

static void without(const char *what, struct mp_error *why)
{
    mp_log(MP_LOG_WARNING, "cuda",
           "%s by kernels of mpipe's own, which are slower: %s", what,
           why->text);
}

int vendor_open(struct gpu *g, struct mp_error *err)
{
    const char *set = secure_getenv("MPIPE_CUDA_LIBRARIES");
    struct vendor *v = calloc(1, sizeof *v);

    if (!v)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    g->vendor = v;
    if (set && !strcmp(set, "no")) {
        mp_fail(&v->why_no_lt, MP_ENOTSUP, "MPIPE_CUDA_LIBRARIES is no");
        v->why_no_dnn = v->why_no_lt;
        return 0;
    }
    if (open_lt(v, &v->why_no_lt))
        without("linear layers", &v->why_no_lt);
    if (open_dnn(v, g->stream, &v->why_no_dnn))
        without("convolutions", &v->why_no_dnn);
    return 0;
}

void vendor_close(struct gpu *g)
{
    struct vendor *v = g->vendor;

    if (!v)
        return;
    if (v->lt_handle)
        v->lt.cublasLtDestroy(v->lt_handle);
    if (v->dnn_handle)
        v->dnn.cudnnDestroy(v->dnn_handle);
    free(v);
}

void vendor_versions(const struct gpu *g, char *text, size_t n)
{
    const struct vendor *v = g->vendor;

    snprintf(text, n, "cublasLt-%zu-cudnn-%zu",
             v->lt_handle ? v->lt.cublasLtGetVersion() : 0,
             v->dnn_handle ? v->dnn.cudnnGetVersion() : 0);
}
