/* SPDX-License-Identifier: MIT */
/*
 * answer.h - the Open Inference Protocol, version 2: what a worker answered, as
 * a body. See mpipe_http(7).
 *
 * Outputs: the kinds of results of the head, those of all pictures of a request
 * in one tensor, whose first dimension is theirs. Threads: no state.
 */
#ifndef CORE_DAEMON_ANSWER_H
#define CORE_DAEMON_ANSWER_H

#include "ask.h"

/* A body. */
struct mp_body {
    char *bytes; /* malloc'd */
    size_t n;
    int64_t head;     /* of it that is JSON, with data behind; -1: no such */
    const char *type; /* Content-Type */
};

/* part: of each of the request's pictures. MP_ENOTSUP: no result is of that
 * suffix. MP_EINVAL: what is asked for cannot be one tensor, or no JSON. */
int mp_body_answer(struct mp_body *out, const struct mp_ask *ask,
                   const char *model, const struct mp_part *part, size_t npart,
                   struct mp_error *err);
/* Takes the reference to json; NULL json or no memory: MP_ENOMEM. */
int mp_body_json(struct mp_body *out, json_t *json, struct mp_error *err);

/* The protocol's name of a dtype as workers name it: "f32" is "FP32". What is
 * none of numbers is "BYTES". */
const char *mp_type_name(const char *dtype);

#endif
