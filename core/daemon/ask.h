/* SPDX-License-Identifier: MIT */
/*
 * ask.h - the Open Inference Protocol, version 2: what a request's body says,
 * as messages for a worker (worker.h). No sockets, no HTTP. See mpipe_http(7).
 *
 * Inputs: image, UINT8 N x H x W x 3; or image_bytes, BYTES N, each a PNG or
 * JPEG; and boxes, FP32 or FP64 N x M x 4 or N x M x 5 (x, y, w, h, score).
 * Bodies are untrusted. Threads: no state.
 *
 * Life cycle: begin; option for each of the query; plain or parse; check; free,
 * after a failure too.
 */
#ifndef CORE_DAEMON_ASK_H
#define CORE_DAEMON_ASK_H

#include <jansson.h>
#include "link.h"

#define MP_OUTPUTS_MAX 32

/* What is wanted. */
struct mp_ask {
    int plain;  /* one result as a file, no protocol around it */
    json_t *id; /* echoed, or NULL */
    struct {
        char name[64];
        int binary;
    } output[MP_OUTPUTS_MAX]; /* asked for by name */
    size_t noutput;
    int binary;          /* of outputs that are not named */
    const char *suffix;  /* plain: "png", "npy", "json"; NULL: any */
    int priority;        /* 1..9 */
    double timeout;      /* seconds; 0: none given */
    json_t *text;        /* for the worker: what holds of all pictures */
    json_t *pictures;    /* and of each: a list of objects */
    struct mp_blob blob; /* the pictures, if they are not where the body is */
};

struct mp_ask_most {
    size_t json; /* bytes */
    int64_t pictures;
};

int mp_ask_begin(struct mp_ask *a, struct mp_error *err);
void mp_ask_free(struct mp_ask *a);
/* "output" names a result, others are as in a request's parameters. */
int mp_ask_option(struct mp_ask *a, const char *key, const char *value,
                  struct mp_error *err);
/* A body of n bytes that is a picture. */
int mp_ask_plain(struct mp_ask *a, size_t n, struct mp_error *err);
/* A body of n bytes, the first `head` of them JSON (-1: all of it; 0: one
 * picture as it is). MP_ENOTSUP: an extension that there is not. */
int mp_ask_parse(struct mp_ask *a, const void *body, size_t n, int64_t head,
                 const struct mp_ask_most *most, struct mp_error *err);
/* Does it fit into messages? */
int mp_ask_check(const struct mp_ask *a, struct mp_error *err);

#endif
