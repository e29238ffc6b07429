/* SPDX-License-Identifier: MIT */
/*
 * lib_lt.c - linear layers and 1 x 1 convolutions by cuBLASLt.
 *
 * It thinks in columns: a row-major y = x w^T is its y^T = (w^T)^T x^T, with
 * w^T C x K, turned, and x^T C x M. A residual is its C, times beta.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cuda/vendor.h"

struct lt_plan {
    struct lib_plan base;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t w, x, y;
    cublasLtMatmulAlgo_t algo;
    int bias, residual;
};

static int status(const struct gpu *g, cublasStatus_t st, const char *what,
                  struct mp_error *err)
{
    if (st == CUBLAS_STATUS_SUCCESS)
        return 0;
    return mp_fail(err, st == CUBLAS_STATUS_NOT_SUPPORTED ? MP_ENOTSUP : MP_EIO,
                   "cublasLt: %s: %s", what,
                   g->vendor->lt.cublasLtGetStatusString(st));
}

static cudaDataType_t type_of(enum mp_dtype t)
{
    return t == MP_BF16 ? CUDA_R_16BF : t == MP_F16 ? CUDA_R_16F : CUDA_R_32F;
}

static void plan_free(struct lib_plan *base)
{
    struct lt_plan *p = (struct lt_plan *)base;
    const struct lt_calls *lt = &base->gpu->vendor->lt;

    if (p->desc)
        lt->cublasLtMatmulDescDestroy(p->desc);
    if (p->w)
        lt->cublasLtMatrixLayoutDestroy(p->w);
    if (p->x)
        lt->cublasLtMatrixLayoutDestroy(p->x);
    if (p->y)
        lt->cublasLtMatrixLayoutDestroy(p->y);
    free(p);
}

static int set(struct lt_plan *p, cublasLtMatmulDescAttributes_t what,
               const void *value, size_t n, struct mp_error *err)
{
    const struct gpu *g = p->base.gpu;

    return status(
        g,
        g->vendor->lt.cublasLtMatmulDescSetAttribute(p->desc, what, value, n),
        "setting an attribute", err);
}

/* relu is the only activation of ours that it has: its gelu is another. */
static cublasLtEpilogue_t epilogue(const struct lib_conv *c)
{
    if (c->act == MP_RELU)
        return c->bias ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_RELU;
    return c->bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
}

/* Of so many products, `next` elements from one's matrix to the other's. */
static int repeat(cublasLtMatrixLayout_t m, int64_t times, int64_t next,
                  const struct gpu *g, struct mp_error *err)
{
    const struct lt_calls *lt = &g->vendor->lt;
    int32_t n = (int32_t)times;
    cublasStatus_t st = lt->cublasLtMatrixLayoutSetAttribute(
        m, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &n, sizeof n);

    if (st == CUBLAS_STATUS_SUCCESS)
        st = lt->cublasLtMatrixLayoutSetAttribute(
            m, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &next, sizeof next);
    return status(g, st, "products at once", err);
}

static int describe(struct lt_plan *p, const struct lib_conv *c,
                    struct mp_error *err)
{
    const struct gpu *g = p->base.gpu;
    const struct lt_calls *lt = &g->vendor->lt;
    uint64_t m = (uint64_t)(c->n * c->h * c->w), k = (uint64_t)c->c;
    uint64_t n = (uint64_t)c->k;
    cublasOperation_t turned = c->w_ck ? CUBLAS_OP_N : CUBLAS_OP_T;
    uint64_t w_rows = c->w_ck ? n : k, w_columns = c->w_ck ? k : n;
    cublasLtEpilogue_t e = epilogue(c);
    void *some = (void *)(uintptr_t)4096; /* not read, but must not be NULL
                                             when an algorithm is chosen */
    int rc =
        status(g,
               lt->cublasLtMatmulDescCreate(&p->desc,
                                            c->type == MP_F32 && c->tf32
                                                ? CUBLAS_COMPUTE_32F_FAST_TF32
                                                : CUBLAS_COMPUTE_32F,
                                            CUDA_R_32F),
               "describing a product", err);

    if (!rc)
        rc = set(p, CUBLASLT_MATMUL_DESC_TRANSA, &turned, sizeof turned, err);
    if (!rc)
        rc = set(p, CUBLASLT_MATMUL_DESC_EPILOGUE, &e, sizeof e, err);
    if (!rc && c->bias)
        rc = set(p, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &some, sizeof some, err);
    if (!rc)
        rc = status(g,
                    lt->cublasLtMatrixLayoutCreate(&p->w, type_of(c->type),
                                                   w_rows, w_columns,
                                                   (int64_t)w_rows),
                    "weights", err);
    if (!rc)
        rc = status(g,
                    lt->cublasLtMatrixLayoutCreate(&p->x, type_of(c->type), k,
                                                   m, (int64_t)k),
                    "input", err);
    if (!rc)
        rc = status(g,
                    lt->cublasLtMatrixLayoutCreate(&p->y, type_of(c->y_type), n,
                                                   m, (int64_t)n),
                    "result", err);
    if (rc || c->times <= 1)
        return rc;
    rc = repeat(p->w, c->times, (int64_t)(n * k), g, err);
    if (!rc)
        rc = repeat(p->x, c->times, 0, g, err);
    if (!rc)
        rc = repeat(p->y, c->times, c->y_next, g, err);
    return rc;
}

/* What the library proposes, `most` at most, the best first. Values lie at
 * multiples of 64 bytes; it would count on 256. */
static int propose(cublasLtMatmulHeuristicResult_t *way, int most, int *found,
                   struct lt_plan *p, struct mp_error *err)
{
    static const cublasLtMatmulPreferenceAttributes_t aligned[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
    };
    const struct gpu *g = p->base.gpu;
    const struct lt_calls *lt = &g->vendor->lt;
    cublasLtMatmulPreference_t pref = NULL;
    size_t work = LIB_WORK;
    uint32_t bytes = 64;
    int rc =
        status(g, lt->cublasLtMatmulPreferenceCreate(&pref), "preference", err);

    if (!rc)
        rc = status(g,
                    lt->cublasLtMatmulPreferenceSetAttribute(
                        pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &work,
                        sizeof work),
                    "preference", err);
    for (int i = 0; i < 4 && !rc; i++)
        rc = status(g,
                    lt->cublasLtMatmulPreferenceSetAttribute(
                        pref, aligned[i], &bytes, sizeof bytes),
                    "preference", err);
    if (!rc)
        rc = status(g,
                    lt->cublasLtMatmulAlgoGetHeuristic(
                        g->vendor->lt_handle, p->desc, p->w, p->x, p->y, p->y,
                        pref, most, way, found),
                    "choosing an algorithm", err);
    if (!rc && !*found)
        rc = mp_fail(err, MP_ENOTSUP, "cublasLt: no algorithm");
    if (pref)
        lt->cublasLtMatmulPreferenceDestroy(pref);
    return rc;
}

/* ---- choices: the bytes of an algorithm, in hexadecimal ---- */

#define DIGITS ((int)(2 * sizeof(uint64_t)))

static void write_choice(char choice[CHOICE_BYTES],
                         const cublasLtMatmulAlgo_t *a)
{
    for (size_t i = 0; i < sizeof a->data / sizeof *a->data; i++)
        snprintf(choice + i * DIGITS, (size_t)DIGITS + 1, "%0*" PRIx64, DIGITS,
                 a->data[i]);
}

static int read_choice(cublasLtMatmulAlgo_t *a, const char *choice)
{
    size_t words = sizeof a->data / sizeof *a->data;

    if (strlen(choice) != words * DIGITS ||
        strspn(choice, "0123456789abcdef") != strlen(choice))
        return 0;
    for (size_t i = 0; i < words; i++) {
        char word[DIGITS + 1] = "";

        memcpy(word, choice + i * DIGITS, DIGITS);
        a->data[i] = strtoull(word, NULL, 16);
    }
    return 1;
}

static int take(cublasLtMatmulHeuristicResult_t *way, const char *choice,
                struct lt_plan *p, struct mp_error *err)
{
    const struct gpu *g = p->base.gpu;
    int rc;

    memset(way, 0, sizeof *way);
    if (!read_choice(&way->algo, choice))
        return mp_fail(err, MP_EFORMAT, "cublasLt: %s is no algorithm", choice);
    rc = status(g,
                g->vendor->lt.cublasLtMatmulAlgoCheck(g->vendor->lt_handle,
                                                      p->desc, p->w, p->x, p->y,
                                                      p->y, &way->algo, way),
                "checking an algorithm", err);
    if (!rc && way->workspaceSize > LIB_WORK)
        rc = mp_fail(err, MP_ENOTSUP, "cublasLt: an algorithm needs %zu bytes",
                     way->workspaceSize);
    return rc;
}

/* ---- plans ---- */

static int run(struct lib_plan *base, const struct lib_data *d,
               struct mp_error *err)
{
    struct lt_plan *p = (struct lt_plan *)base;
    const struct gpu *g = base->gpu;
    const void *bias = (const void *)(uintptr_t)d->bias;
    mp_addr add = p->residual ? d->residual : d->y;
    float alpha = 1, beta = p->residual ? 1 : 0;
    int rc = p->bias ? set(p, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias,
                           sizeof bias, err)
                     : 0;

    if (rc)
        return rc;
    return status(g,
                  g->vendor->lt.cublasLtMatmul(
                      g->vendor->lt_handle, p->desc, &alpha,
                      (const void *)(uintptr_t)d->w, p->w,
                      (const void *)(uintptr_t)d->x, p->x, &beta,
                      (const void *)(uintptr_t)add, p->y,
                      (void *)(uintptr_t)d->y, p->y, &p->algo,
                      (void *)(uintptr_t)d->work, base->work, g->stream),
                  "product", err);
}

static int begin(struct lt_plan **out, struct gpu *g, const struct lib_conv *c,
                 struct mp_error *err)
{
    struct lt_plan *p;
    int rc;

    if (!g->vendor->lt_handle)
        return mp_fail(err, MP_ENOTSUP, "%s", g->vendor->why_no_lt.text);
    p = calloc(1, sizeof *p);
    if (!p)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    p->base = (struct lib_plan){.gpu = g,
                                .name = "cublasLt",
                                .act = c->act == MP_RELU ? MP_ACT_NONE : c->act,
                                .run = run,
                                .free = plan_free};
    p->bias = c->bias;
    p->residual = c->residual;
    rc = describe(p, c, err);
    if (rc)
        plan_free(&p->base);
    else
        *out = p;
    return rc;
}

static int plan_new(struct lib_plan **out, struct gpu *g,
                    const struct lib_conv *c, const char *choice,
                    struct mp_error *err)
{
    cublasLtMatmulHeuristicResult_t way;
    struct lt_plan *p;
    int found, rc = begin(&p, g, c, err);

    if (rc)
        return rc;
    rc = choice ? take(&way, choice, p, err) : propose(&way, 1, &found, p, err);
    if (rc) {
        plan_free(&p->base);
        return rc;
    }
    p->algo = way.algo;
    p->base.work = way.workspaceSize;
    *out = &p->base;
    return 0;
}

static int choices(char choice[][CHOICE_BYTES], size_t *n, struct gpu *g,
                   const struct lib_conv *c, struct mp_error *err)
{
    cublasLtMatmulHeuristicResult_t way[LIB_CHOICES];
    struct lt_plan *p;
    int found = 0, rc = begin(&p, g, c, err);

    if (rc)
        return rc;
    rc = propose(way, LIB_CHOICES, &found, p, err);
    for (int i = 0; i < found && !rc; i++)
        if (way[i].state == CUBLAS_STATUS_SUCCESS)
            write_choice(choice[(*n)++], &way[i].algo);
    plan_free(&p->base);
    return rc;
}

const struct lib_kind lib_lt = {plan_new, choices};
