/* SPDX-License-Identifier: MIT */
/*
 * lib.c - the vendor's libraries, where they are: some hundred megabytes each,
 * so nothing links them. Without one of them the device still computes, by
 * kernels of ours, and the user is told.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cuda/lib.h"

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

static int open_lt(struct gpu *g, struct mp_error *err)
{
#define X(name, like) #name,
    static const char *const names[] = {LT_CALLS(X)};
#undef X
    cublasStatus_t st;
    int rc = load(&g->lt, names, sizeof names / sizeof *names,
                  "libcublasLt.so." TEXT(CUBLAS_VER_MAJOR), err);

    if (rc)
        return rc;
    st = g->lt.cublasLtCreate(&g->lt_handle);
    if (st == CUBLAS_STATUS_SUCCESS)
        return 0;
    g->lt_handle = NULL;
    return mp_fail(err, MP_ENOTSUP, "cublasLtCreate: %s",
                   g->lt.cublasLtGetStatusString(st));
}

static int open_dnn(struct gpu *g, struct mp_error *err)
{
#define X(name, like) #name,
    static const char *const names[] = {DNN_CALLS(X)};
#undef X
    cudnnStatus_t st;
    int rc = load(&g->dnn, names, sizeof names / sizeof *names,
                  "libcudnn.so." TEXT(CUDNN_MAJOR), err);

    if (rc)
        return rc;
    st = g->dnn.cudnnCreate(&g->dnn_handle);
    if (st != CUDNN_STATUS_SUCCESS)
        g->dnn_handle = NULL;
    else
        st = g->dnn.cudnnSetStream(g->dnn_handle, g->stream);
    return st == CUDNN_STATUS_SUCCESS
               ? 0
               : mp_fail(err, MP_ENOTSUP, "cudnnCreate: %s",
                         g->dnn.cudnnGetErrorString(st));
}

static void without(const char *what, struct mp_error *why)
{
    mp_log(MP_LOG_WARNING, "cuda",
           "%s by kernels of mpipe's own, which are slower: %s", what,
           why->text);
}

void lib_open(struct gpu *g)
{
    const char *set = secure_getenv("MPIPE_CUDA_LIBRARIES");

    if (set && !strcmp(set, "no")) {
        mp_fail(&g->why_no_lt, MP_ENOTSUP, "MPIPE_CUDA_LIBRARIES is no");
        g->why_no_dnn = g->why_no_lt;
        return;
    }
    if (open_lt(g, &g->why_no_lt))
        without("linear layers", &g->why_no_lt);
    if (open_dnn(g, &g->why_no_dnn))
        without("convolutions", &g->why_no_dnn);
}

void lib_close(struct gpu *g)
{
    if (g->lt_handle)
        g->lt.cublasLtDestroy(g->lt_handle);
    if (g->dnn_handle)
        g->dnn.cudnnDestroy(g->dnn_handle);
}

/* ---- plans ---- */

int lib_plan_new(struct lib_plan **out, struct gpu *g, const struct lib_conv *c,
                 struct mp_error *err)
{
    const struct mp_conv *p = &c->conv;
    int product = c->r == 1 && c->s == 1 && p->stride == 1 && !p->top &&
                  !p->left && !p->bottom && !p->right;
    int rc = gpu_enter(g, err);

    if (rc)
        return rc;
    return product ? lt_plan_new(out, g, c, err) : dnn_plan_new(out, g, c, err);
}

void lib_plan_free(struct lib_plan *p)
{
    if (p)
        p->free(p);
}

size_t lib_plan_work(const struct lib_plan *p)
{
    return p->work;
}

int lib_plan_act(const struct lib_plan *p)
{
    return p->act;
}

const char *lib_plan_name(const struct lib_plan *p)
{
    return p->name;
}

int lib_plan_run(struct lib_plan *p, const struct lib_data *d,
                 struct mp_error *err)
{
    int rc = gpu_enter(p->gpu, err);

    return rc ? rc : p->run(p, d, err);
}
