/* SPDX-License-Identifier: MIT */
/* vendor.c - in the place of the libraries: there are none. But where
 * MPIPE_SIM_LIBRARY is set, the library's products of 16 bits are done by a
 * kernel of ours, one after the other. */
#include <stdio.h>
#include <stdlib.h>
#include "cuda/lib.h"

int vendor_open(struct gpu *g, struct mp_error *err)
{
    (void)g;
    (void)err;
    return 0;
}

void vendor_close(struct gpu *g)
{
    (void)g;
}

void vendor_versions(const struct gpu *g, char *text, size_t n)
{
    (void)g;
    snprintf(text, n, "none");
}

static mp_addr after(mp_addr at, int64_t elements, enum mp_dtype t)
{
    return at + (uint64_t)elements * mp_dtype_size(t);
}

static int run(struct lib_plan *p, const struct lib_data *d,
               struct mp_error *err)
{
    const struct lib_conv *c = &p->conv;
    uint32_t m = (uint32_t)(c->n * c->h * c->w), k = (uint32_t)c->k;
    int64_t times = c->times > 1 ? c->times : 1;
    int rc = 0;

    for (int64_t i = 0; i < times && !rc; i++) {
        mp_addr w = after(d->w, i * c->k * c->c, c->type);
        mp_addr y = after(d->y, i * c->y_next, c->y_type);
        const struct g_conv a = {
            .y = {(void *)(uintptr_t)y, c->y_type},
            .x = {(const void *)(uintptr_t)d->x, c->type},
            .w = {(const void *)(uintptr_t)w, c->type},
            .residual = {(const void *)(uintptr_t)(c->residual ? d->residual
                                                               : 0),
                         c->y_type},
            .n = 1,
            .h = 1,
            .wd = m,
            .c = (uint32_t)c->c,
            .r = 1,
            .s = 1,
            .k = k,
            .oh = 1,
            .ow = m,
            .stride = 1,
            .yh = 1,
            .yw = m,
            .step = 1,
        };
        const struct gpu_launch l = {
            .kernel =
                c->type == MP_BF16 ? GPU_conv_bf16_64_8 : GPU_conv_f16_64_8,
            .grid = {(m + 63) / 64, (k + 63) / 64, 1},
            .threads = 128,
            .shared = 4 * (64 + 64) * 32 * sizeof(uint16_t),
            .arg = &a,
        };

        rc = gpu_launch(p->gpu, &l, err);
    }
    return rc;
}

static void plan_free(struct lib_plan *p)
{
    free(p);
}

static int plan_new(struct lib_plan **out, struct gpu *g,
                    const struct lib_conv *c, const char *choice,
                    struct mp_error *err)
{
    (void)choice;
    if (!getenv("MPIPE_SIM_LIBRARY") || c->heads || c->r != 1 || c->s != 1 ||
        c->w_ck || c->bias || c->c % 8 ||
        (c->type != MP_BF16 && c->type != MP_F16))
        return mp_fail(err, MP_ENOTSUP, "simulated");
    *out = calloc(1, sizeof **out);
    if (!*out)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    **out = (struct lib_plan){.gpu = g,
                              .name = "simulated",
                              .act = c->act,
                              .run = run,
                              .free = plan_free};
    return 0;
}

static int choices(char choice[][CHOICE_BYTES], size_t *n, struct gpu *g,
                   const struct lib_conv *c, struct mp_error *err)
{
    (void)choice;
    (void)n;
    (void)g;
    (void)c;
    return mp_fail(err, MP_ENOTSUP, "simulated");
}

const struct lib_kind lib_lt = {plan_new, choices};
const struct lib_kind lib_dnn = {plan_new, choices};
