/* SPDX-License-Identifier: MIT */
/*
 * cudnn_plans.c - does cuDNN have a way for the convolutions of the networks?
 * Asked of the real library, for GPUs that are described to it and need not be
 * there: plans are made by the backend's own code, and not run. And is every
 * choice of a way that is kept in a file (autotune) the same way when it is
 * read? Exit status 77 where there is no cuDNN that knows such descriptions.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include "cuda/vendor.h"

#ifdef __SANITIZE_ADDRESS__
/* cuDNN keeps what it has until the process ends. */
int __lsan_is_turned_off(void);
int __lsan_is_turned_off(void)
{
    return 1;
}
#endif

/* The layers that matter: VAE, UNet, head; whole and with remainders. */
static const struct {
    const char *what;
    struct lib_conv conv;
    int may_fail; /* kernels of ours do it then */
} cases[] = {
#define CONV(count, side, from, to, step, ...)                                 \
    {                                                                          \
        .n = count, .h = side, .w = side, .c = from, .k = to, .r = 3, .s = 3,  \
        .oh = (side) / (step), .ow = (side) / (step),                          \
        .conv = {step, 1, 1, 1, 1}, __VA_ARGS__                                \
    }
    {"unet 64", CONV(1, 64, 320, 320, 1, .bias = 1), 0},
    {"unet 64 residual", CONV(1, 64, 320, 320, 1, .bias = 1, .residual = 1), 0},
    {"unet 32", CONV(1, 32, 640, 640, 1, .bias = 1), 0},
    {"unet 16", CONV(1, 16, 1280, 1280, 1, .bias = 1, .residual = 1), 0},
    {"unet 8", CONV(1, 8, 1280, 1280, 1, .bias = 1), 0},
    {"unet 8 joined", CONV(1, 8, 2560, 1280, 1, .bias = 1), 0},
    {"unet down", CONV(1, 64, 320, 320, 2, .bias = 1), 0},
    {"vae 512", CONV(1, 512, 128, 128, 1, .bias = 1, .residual = 1), 0},
    {"vae 256", CONV(1, 256, 256, 256, 1, .bias = 1), 0},
    {"vae down",
     {.n = 1,
      .h = 512,
      .w = 512,
      .c = 128,
      .k = 128,
      .r = 3,
      .s = 3,
      .oh = 256,
      .ow = 256,
      .conv = {2, 0, 0, 1, 1},
      .bias = 1},
     0},
    {"head 128", CONV(1, 128, 512, 512, 1, .bias = 1, .act = MP_RELU), 0},
    {"batch 16", CONV(16, 64, 320, 320, 1, .bias = 1, .residual = 1), 0},
    {"latents", CONV(1, 64, 4, 320, 1, .bias = 1), 1},
    {"pixels", CONV(1, 512, 3, 128, 1, .bias = 1), 1},
};

/* What cuDNN asks of a device, as it names it. */
static const char device[] =
    "{\"maxGridSize\":[2147483647,65535,65535],"
    "\"maxBlockSize\":[1024,1024,64],\"regsPerBlock\":65536,"
    "\"multiProcessorCount\":%d,\"warpSize\":32,"
    "\"maxSharedMemoryPerBlock\":49152,\"maxSharedMemoryPerBlockOptin\":%d,"
    "\"reservedSharedMemoryPerBlock\":1024,\"maxRegistersPerSM\":65536,"
    "\"maxCtasPerSM\":32,\"maxThreadsPerBlock\":1024,"
    "\"maxThreadsPerSM\":2048,\"pciDeviceId\":0,\"isTccDriver\":0,"
    "\"supportCoopLaunch\":1,\"totalGlobalMem\":%lld,"
    "\"smClockRateKHz\":%d,\"memClockRateKHz\":%d,\"l2CacheSize\":%d,"
    "\"cudaDeviceId\":0,\"deviceVer\":%d,\"driverVer\":%d,"
    "\"deviceName\":\"described\"}";

static int load(struct dnn_calls *dnn)
{
#define X(name, like) #name,
    static const char *const names[] = {DNN_CALLS(X)};
#undef X
    void *so = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);

    if (!so)
        so = dlopen(MP_CUDA_LIBDIR "/libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);
    for (size_t i = 0; so && i < sizeof names / sizeof *names; i++) {
        void *at = dlsym(so, names[i]);

        if (!at)
            return 0;
        memcpy((char *)dnn + i * sizeof at, &at, sizeof at);
    }
    return so != NULL;
}

static int describe(struct gpu *g, int processors, int shared, long long memory,
                    int clock, int memory_clock, int l2, int version)
{
    const struct dnn_calls *dnn = &g->vendor->dnn;
    char text[1024];
    int n = snprintf(text, sizeof text, device, processors, shared, memory,
                     clock, memory_clock, l2, version, CUDA_VERSION);

    return !dnn->cudnnBackendCreateDescriptor(
               CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &g->vendor->described) &&
           !dnn->cudnnBackendSetAttribute(
               g->vendor->described, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION,
               CUDNN_TYPE_CHAR, n, text) &&
           !dnn->cudnnBackendFinalize(g->vendor->described);
}

/* The ways that are worth measuring: each makes a plan by its text alone. */
static int choose(struct gpu *g, const struct lib_conv *c)
{
    char choice[LIB_CHOICES][CHOICE_BYTES];
    struct mp_error why = {0};
    size_t n = 0, failed = 0;

    if (lib_dnn.choices(choice, &n, g, c, &why)) {
        printf("       no choices: %s\n", why.text);
        return 1;
    }
    printf("       %zu choices:", n);
    for (size_t i = 0; i < n; i++) {
        struct lib_plan *p;

        printf(" %s", choice[i]);
        if (lib_dnn.plan_new(&p, g, c, choice[i], &why)) {
            printf(" FAILED: %s\n", why.text);
            failed++;
        } else {
            p->free(p);
        }
    }
    puts("");
    return failed != 0;
}

/* None of these is a choice. */
static int refuse(struct gpu *g)
{
    static const char *const bad[] = {"",
                                      "x",
                                      "4,",
                                      "4,2",
                                      "4,2=",
                                      "4,2=x",
                                      "4;2=1",
                                      "-1",
                                      "999999",
                                      "4,9999=1",
                                      "4,-1=1",
                                      "4,2=99999999999999",
                                      "18446744073709551616"};
    struct lib_conv c = cases[0].conv;
    struct lib_plan *p;
    int failed = 0;

    c.type = c.y_type = MP_BF16;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct mp_error why = {0};

        if (lib_dnn.plan_new(&p, g, &c, bad[i], &why))
            continue;
        printf("  \"%s\" made a plan\n", bad[i]);
        p->free(p);
        failed++;
    }
    return failed;
}

/* Attention it compiles at run time, which takes a GPU: without one the plan
 * ends where that is to be loaded. */
static void ask_attention(struct gpu *g)
{
    static const int64_t size[][3] = {{4096, 320}, {1024, 640}}; /* t, c */

    for (int i = 0; i < 2; i++) {
        struct lib_conv c = {.type = MP_BF16,
                             .y_type = MP_BF16,
                             .n = 16,
                             .h = size[i][0],
                             .w = size[i][0],
                             .c = size[i][1],
                             .residual = 1,
                             .heads = 8,
                             .scale = .125f};
        struct lib_plan *p = NULL;
        struct mp_error why = {0};

        if (lib_dnn.plan_new(&p, g, &c, NULL, &why)) {
            printf("  attention of %d: %s\n", (int)c.h, why.text);
        } else {
            printf("  attention of %d: a plan\n", (int)c.h);
            p->free(p);
        }
    }
}

static int ask(struct gpu *g, enum mp_dtype t, int tf32)
{
    int failed = 0;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct lib_conv c = cases[i].conv;
        struct lib_plan *p = NULL;
        struct mp_error why = {0};

        c.type = c.y_type = t;
        c.tf32 = tf32;
        if (lib_dnn.plan_new(&p, g, &c, NULL, &why)) {
            printf("  %-4s %-17s none: %s\n", tf32 ? "tf32" : mp_dtype_name(t),
                   cases[i].what, why.text);
            failed += !cases[i].may_fail;
            continue;
        }
        printf("  %-4s %-17s %s, works in %zu bytes\n",
               tf32 ? "tf32" : mp_dtype_name(t), cases[i].what, p->name,
               p->work);
        p->free(p);
        failed += choose(g, &c);
    }
    return failed;
}

int main(void)
{
    static const struct {
        int version, processors, shared, clock, memory_clock, l2;
        long long memory;
    } gpu[] = {
        {800, 108, 166912, 1410000, 1593000, 41943040, 80LL << 30},
        {900, 132, 232448, 1980000, 2619000, 52428800, 80LL << 30},
        {1000, 148, 232448, 1965000, 3996000, 132644864, 180LL << 30},
    };
    int failed = 0;

    setvbuf(stdout, NULL, _IOLBF, 0);
    for (size_t i = 0; i < sizeof gpu / sizeof *gpu; i++) {
        struct vendor v = {.lt_handle = NULL};
        struct gpu g = {.vendor = &v};

        if (!load(&v.dnn) ||
            !describe(&g, gpu[i].processors, gpu[i].shared, gpu[i].memory,
                      gpu[i].clock, gpu[i].memory_clock, gpu[i].l2,
                      gpu[i].version)) {
            puts("SKIPPED: no cuDNN that takes descriptions of GPUs");
            return 77;
        }
        printf("sm_%d\n", gpu[i].version / 10);
        failed += ask(&g, MP_BF16, 0);
        failed += ask(&g, MP_F16, 0);
        failed += refuse(&g);
        ask_attention(&g);
        ask(&g, MP_F32, 1); /* for what it says: kernels of ours are exact */
        ask(&g, MP_F32, 0);
        v.dnn.cudnnBackendDestroyDescriptor(v.described);
    }
    printf("%d failed\n", failed);
    return failed != 0;
}
