/* SPDX-License-Identifier: MIT */
/*
 * lt_choices.c - is a choice of cuBLASLt's ways that is kept in a file
 * (autotune) the same way when it is read? The library needs a GPU to begin
 * with, so it is a made-up one here, of which only the types are real.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cuda/vendor.h"

static cublasLtMatmulAlgo_t way[3]; /* the second will not do */
static const cublasLtMatmulAlgo_t *checked, *used;
static size_t work = 4096;
static int failures;

#define CHECK(what)                                                            \
    do {                                                                       \
        if (!(what)) {                                                         \
            printf("FAIL: %s:%d: %s\n", __FILE__, __LINE__, #what);            \
            failures++;                                                        \
        }                                                                      \
    } while (0)

/* ---- the library ---- */

#define DONE CUBLAS_STATUS_SUCCESS

static const char *text_of(cublasStatus_t st)
{
    (void)st;
    return "wrong";
}

static cublasStatus_t make_desc(cublasLtMatmulDesc_t *d, cublasComputeType_t c,
                                cudaDataType_t t)
{
    (void)c;
    (void)t;
    *d = calloc(1, 1);
    return DONE;
}

static cublasStatus_t free_desc(cublasLtMatmulDesc_t d)
{
    free(d);
    return DONE;
}

static cublasStatus_t set_desc(cublasLtMatmulDesc_t d,
                               cublasLtMatmulDescAttributes_t a,
                               const void *value, size_t n)
{
    (void)d;
    (void)a;
    (void)value;
    (void)n;
    return DONE;
}

static cublasStatus_t make_layout(cublasLtMatrixLayout_t *l, cudaDataType_t t,
                                  uint64_t rows, uint64_t columns, int64_t step)
{
    (void)t;
    (void)columns;
    CHECK(rows == (uint64_t)step);
    *l = calloc(1, 1);
    return DONE;
}

static cublasStatus_t free_layout(cublasLtMatrixLayout_t l)
{
    free(l);
    return DONE;
}

static cublasStatus_t make_pref(cublasLtMatmulPreference_t *p)
{
    *p = calloc(1, 1);
    return DONE;
}

static cublasStatus_t free_pref(cublasLtMatmulPreference_t p)
{
    free(p);
    return DONE;
}

static cublasStatus_t set_pref(cublasLtMatmulPreference_t p,
                               cublasLtMatmulPreferenceAttributes_t a,
                               const void *value, size_t n)
{
    (void)p;
    (void)a;
    (void)value;
    (void)n;
    return DONE;
}

static cublasStatus_t
propose(cublasLtHandle_t h, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a,
        cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
        cublasLtMatrixLayout_t y, cublasLtMatmulPreference_t p, int most,
        cublasLtMatmulHeuristicResult_t *out, int *n)
{
    (void)h;
    (void)d;
    (void)a;
    (void)b;
    (void)c;
    (void)y;
    (void)p;
    for (*n = 0; *n < most && *n < 3; ++*n)
        out[*n] = (cublasLtMatmulHeuristicResult_t){
            .algo = way[*n],
            .workspaceSize = 64,
            .state = *n == 1 ? CUBLAS_STATUS_NOT_SUPPORTED : DONE};
    return DONE;
}

static const cublasLtMatmulAlgo_t *find(const cublasLtMatmulAlgo_t *algo)
{
    for (int i = 0; i < 3; i++)
        if (!memcmp(&way[i], algo, sizeof *algo))
            return &way[i];
    return NULL;
}

static cublasStatus_t
check_algo(cublasLtHandle_t h, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a,
           cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
           cublasLtMatrixLayout_t y, const cublasLtMatmulAlgo_t *algo,
           cublasLtMatmulHeuristicResult_t *out)
{
    (void)h;
    (void)d;
    (void)a;
    (void)b;
    (void)c;
    (void)y;
    checked = find(algo);
    out->workspaceSize = work;
    return checked ? DONE : CUBLAS_STATUS_INVALID_VALUE;
}

static cublasStatus_t
product(cublasLtHandle_t h, cublasLtMatmulDesc_t d, const void *alpha,
        const void *a, cublasLtMatrixLayout_t la, const void *b,
        cublasLtMatrixLayout_t lb, const void *beta, const void *c,
        cublasLtMatrixLayout_t lc, void *y, cublasLtMatrixLayout_t ly,
        const cublasLtMatmulAlgo_t *algo, void *at, size_t n, cudaStream_t s)
{
    (void)h;
    (void)d;
    (void)alpha;
    (void)a;
    (void)la;
    (void)b;
    (void)lb;
    (void)beta;
    (void)c;
    (void)lc;
    (void)y;
    (void)ly;
    (void)at;
    (void)s;
    CHECK(n == work);
    used = find(algo);
    return DONE;
}

/* ---- the test ---- */

static void test_choices(struct gpu *g, const struct lib_conv *c)
{
    static const struct lib_data data = {.x = 64, .w = 64, .y = 64};
    char choice[LIB_CHOICES][CHOICE_BYTES];
    struct mp_error err = {0};
    struct lib_plan *p;
    size_t n = 0;

    CHECK(!lib_lt.choices(choice, &n, g, c, &err));
    CHECK(n == 2);
    for (size_t i = 0; i < n; i++) {
        const cublasLtMatmulAlgo_t *one = &way[2 * i];

        CHECK(!strpbrk(choice[i], " \n="));
        if (lib_lt.plan_new(&p, g, c, choice[i], &err)) {
            printf("FAIL: %s\n", err.text);
            failures++;
            continue;
        }
        CHECK(checked == one);
        CHECK(p->work == work);
        CHECK(!p->run(p, &data, &err));
        CHECK(used == one);
        p->free(p);
    }
    /* An algorithm that the library refuses, or that needs too much. */
    choice[0][0] = choice[0][0] == '0' ? '1' : '0';
    CHECK(lib_lt.plan_new(&p, g, c, choice[0], &err) == MP_EIO);
    work = LIB_WORK + 1;
    CHECK(lib_lt.plan_new(&p, g, c, choice[1], &err) == MP_ENOTSUP);
    work = LIB_WORK;
    CHECK(!lib_lt.plan_new(&p, g, c, choice[1], &err));
    p->free(p);
    /* No bytes of an algorithm. */
    strcat(choice[1], "0");
    CHECK(lib_lt.plan_new(&p, g, c, choice[1], &err) == MP_EFORMAT);
    choice[1][127] = '\0';
    CHECK(lib_lt.plan_new(&p, g, c, choice[1], &err) == MP_EFORMAT);
    strcat(choice[1], "x");
    CHECK(lib_lt.plan_new(&p, g, c, choice[1], &err) == MP_EFORMAT);
    CHECK(lib_lt.plan_new(&p, g, c, "", &err) == MP_EFORMAT);
}

int main(void)
{
    struct vendor v = {.lt = {.cublasLtGetStatusString = text_of,
                              .cublasLtMatmulDescCreate = make_desc,
                              .cublasLtMatmulDescDestroy = free_desc,
                              .cublasLtMatmulDescSetAttribute = set_desc,
                              .cublasLtMatrixLayoutCreate = make_layout,
                              .cublasLtMatrixLayoutDestroy = free_layout,
                              .cublasLtMatmulPreferenceCreate = make_pref,
                              .cublasLtMatmulPreferenceDestroy = free_pref,
                              .cublasLtMatmulPreferenceSetAttribute = set_pref,
                              .cublasLtMatmulAlgoGetHeuristic = propose,
                              .cublasLtMatmulAlgoCheck = check_algo,
                              .cublasLtMatmul = product},
                       .lt_handle = (cublasLtHandle_t)&v};
    struct gpu g = {.vendor = &v};
    const struct lib_conv c = {.type = MP_BF16,
                               .y_type = MP_BF16,
                               .n = 1,
                               .h = 64,
                               .w = 64,
                               .c = 320,
                               .k = 320,
                               .r = 1,
                               .s = 1,
                               .oh = 64,
                               .ow = 64,
                               .conv = {.stride = 1}};

    for (int i = 0; i < 3; i++)
        for (int k = 0; k < 8; k++)
            way[i].data[k] = 0x9e3779b97f4a7c15 * (uint64_t)(8 * i + k + 1);
    way[0].data[3] = 0;
    way[2].data[7] = UINT64_MAX;
    test_choices(&g, &c);
    return failures != 0;
}
