/* SPDX-License-Identifier: MIT */
/*
 * ask.h - the Open Inference Protocol, version 2: what a request's body says,
 * as a message for a worker (worker.h). No sockets, no HTTP. See
 * mpipe_http(7).
 *
 * Inputs: image, UINT8 1 x H x W x 3; or image_bytes, BYTES 1, a PNG or JPEG;
 * and boxes, FP32 N x 4 or N x 5 (x, y, w, h, score). Bodies are untrusted.
 * Threads: no state.
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
    json_t *text;        /* for the worker */
    struct mp_blob blob; /* the picture, if it is not where the body is */
};
void mp_ask_free(struct mp_ask *a);

/* A body of n bytes, the first `head` of them JSON (-1: all of it; 0: one
 * picture as it is). json_most: bytes. */
int mp_ask_parse(struct mp_ask *a, const void *body, size_t n, int64_t head,
                 size_t json_most, struct mp_error *err);
/* A body that is a picture. option: called for each key and text of the query;
 * "output" names the result, others are as in a request's parameters. */
int mp_ask_plain(struct mp_ask *a, size_t n, struct mp_error *err);
int mp_ask_option(struct mp_ask *a, const char *key, const char *value,
                  struct mp_error *err);
/* At last: does it fit into a message? */
int mp_ask_check(const struct mp_ask *a, struct mp_error *err);

#endif
