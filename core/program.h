/* SPDX-License-Identifier: MIT */
/*
 * program.h - from a graph to a program for a backend: rewritten (fold.h), in
 * steps, with the precision and the place of every value.
 *
 * A program asks the build that it is of for its constants, while a backend
 * compiles it. Those that must be computed are computed by the same machinery:
 * a program of their own, run once on the same device in f32. Small ones go
 * together in one program, big ones (transposed convolutions with a batch norm
 * in them) one by one and only when the backend asks, so that no second copy of
 * the model is ever held. Of other convolutions with a batch norm it may have
 * the weights as the file has them, and what their rows are multiplied by.
 *
 * Life cycle: mp_build_new; the backend's compile(); mp_build_free. The graph
 * and its weights are read until then, and names in the program are theirs.
 */
#ifndef CORE_PROGRAM_H
#define CORE_PROGRAM_H

#include "arena.h"
#include "graph_impl.h"

struct mp_build;

/* precision: as in session.h. Of the arena only backend and device are used. */
int mp_build_new(struct mp_build **out, const struct mp_arena *a,
                 const struct mp_graph *g, enum mp_dtype precision,
                 struct mp_error *err);
void mp_build_free(struct mp_build *b); /* NULL is fine */

/* The arena is idle until mp_build_free: constants may be computed in it. */
void mp_build_lend(struct mp_build *b, const struct mp_arena *a);

const struct mp_program *mp_build_program(const struct mp_build *b);
/* Whether a value is an input, and the values of outputs, in the order of the
 * graph. */
int mp_build_is_input(const struct mp_build *b, uint32_t value);
uint32_t mp_build_output(const struct mp_build *b, size_t i);

#endif
