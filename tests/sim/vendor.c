/* SPDX-License-Identifier: MIT */
/* vendor.c - in the place of the libraries: there are none. */
#include <stdio.h>
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

static int plan_new(struct lib_plan **out, struct gpu *g,
                    const struct lib_conv *c, const char *choice,
                    struct mp_error *err)
{
    (void)out;
    (void)g;
    (void)c;
    (void)choice;
    return mp_fail(err, MP_ENOTSUP, "simulated");
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
