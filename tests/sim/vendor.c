/* SPDX-License-Identifier: MIT */
/* vendor.c - in the place of the libraries: there are none. */
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

int lt_plan_new(struct lib_plan **out, struct gpu *g, const struct lib_conv *c,
                struct mp_error *err)
{
    (void)out;
    (void)g;
    (void)c;
    return mp_fail(err, MP_ENOTSUP, "simulated");
}

int dnn_plan_new(struct lib_plan **out, struct gpu *g, const struct lib_conv *c,
                 struct mp_error *err)
{
    return lt_plan_new(out, g, c, err);
}
