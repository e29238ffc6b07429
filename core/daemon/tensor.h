/* SPDX-License-Identifier: MIT */
/*
 * tensor.h - an input tensor of a request: its JSON, and where its contents
 * are. Both are untrusted. Threads: no state.
 */
#ifndef CORE_DAEMON_TENSOR_H
#define CORE_DAEMON_TENSOR_H

#include <jansson.h>
#include "mpipe/base.h"

#define MP_GIVEN_RANK 8

struct mp_given {            /* all borrowed */
    const char *name, *type; /* as "FP32" */
    int64_t dim[MP_GIVEN_RANK];
    int ndim;
    int64_t count;        /* product of dim */
    const json_t *data;   /* numbers in lists, or NULL: binary */
    const uint8_t *bytes; /* binary: */
    size_t at, nbytes;    /* at: from the beginning of the body */
};

/* One of a request's inputs. *at: where the next binary one begins in the body
 * of n bytes; moved on. MP_ENOTSUP: it is in shared memory. */
int mp_given_parse(struct mp_given *t, const json_t *input, const void *body,
                   size_t *at, size_t n, struct mp_error *err);
/* UINT8 in JSON, count of them. */
int mp_given_bytes(uint8_t *to, const struct mp_given *t, struct mp_error *err);
/* FP32 or FP64, JSON or binary; finite. */
int mp_given_doubles(double *to, const struct mp_given *t,
                     struct mp_error *err);

#endif
