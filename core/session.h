/* SPDX-License-Identifier: MIT */
/*
 * session.h - a graph made ready to run on a device: folded, fused, its memory
 * planned, compiled. One session per input shape.
 *
 * Life cycle: mp_session_new; mp_session_run any number of times;
 * mp_session_free, before the device is closed. The graph and its weights are
 * read during mp_session_new only. Packed weights are shared by the sessions
 * of one device.
 *
 * Threads: one at a time per device.
 */
#ifndef CORE_SESSION_H
#define CORE_SESSION_H

#include <stdio.h>
#include "arena.h"
#include "mpipe/plugin.h"

struct mp_session;

/* precision: how activations between the steps are kept: MP_F32, MP_BF16 or
 * MP_F16. Inputs, outputs and what only prepares or presents them stay f32. */
int mp_session_new(struct mp_session **out, struct mp_arena *a,
                   const struct mp_graph *g, enum mp_dtype precision,
                   struct mp_error *err);
void mp_session_free(struct mp_session *s); /* NULL is fine */

/* What a session of g would take, found without compiling it: bytes of the
 * arena, of outputs, and of weights, if all are kept in this precision. */
struct mp_session_size {
    size_t arena, outputs, constants;
};
int mp_session_size(struct mp_session_size *out, const struct mp_arena *a,
                    const struct mp_graph *g, enum mp_dtype precision,
                    struct mp_error *err);

size_t mp_session_inputs(const struct mp_session *s);
size_t mp_session_outputs(const struct mp_session *s);
/* Name, dtype and shape; data is NULL. */
void mp_session_input(const struct mp_session *s, size_t i,
                      struct mp_tensor *out);
void mp_session_output(const struct mp_session *s, size_t i,
                       struct mp_tensor *out);

/* A row-major tensor: on the host, or at that address of the device. */
struct mp_operand {
    void *host; /* NULL: */
    mp_addr at;
};

/* One operand per input and per output. Inputs may be changed and given back
 * when it returns. So may outputs on the device, in the order of things; those
 * on the host are there when the device's wait() of *ticket has returned, and
 * must stay until then. */
int mp_session_start(struct mp_session *s, const struct mp_operand *in,
                     const struct mp_operand *out, uint64_t *ticket,
                     struct mp_error *err);
/* From host to host; the results are there when it returns. */
int mp_session_run(struct mp_session *s, const void *const *in,
                   void *const *out, struct mp_error *err);

/* Measure each step from now on (on: nonzero). */
void mp_session_profile(struct mp_session *s, int on);

struct mp_step_info {
    const char *op, *kernel;
    /* Type and shape of its result and of its second input, which is the
     * weights (by name, NULL if computed) or keys; ndim 0: none. */
    struct mp_tensor out, with;
    double flops;   /* 2 x multiply-adds of convolutions and attention */
    double seconds; /* of all runs since profiling began */
    size_t runs;
};
size_t mp_session_steps(const struct mp_session *s);
void mp_session_step(const struct mp_session *s, size_t i,
                     struct mp_step_info *out);
/* Bytes it needs of the arena. */
size_t mp_session_arena(const struct mp_session *s);

/* Steps of one op (enum mp_op) in the program; for tests. */
size_t mp_session_count(const struct mp_session *s, enum mp_op op);

/* The folded and fused program, a step a line. */
void mp_session_dump(const struct mp_session *s, FILE *out);

#endif
