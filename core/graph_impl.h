/* SPDX-License-Identifier: MIT */
/*
 * graph_impl.h - the inside of a graph, for the modules that check, rewrite
 * and compile it: graph.c, op.c, fold.c, program.c.
 *
 * A node is an op, its attributes and the numbers of earlier nodes, so the
 * array is always in topological order. Node 0 is none.
 */
#ifndef CORE_GRAPH_IMPL_H
#define CORE_GRAPH_IMPL_H

#include "mpipe/backend.h"
#include "weights.h"

struct mp_node_def {
    enum mp_op op;
    struct mp_attr attr;
    enum mp_dtype dtype;
    int nin;
    uint32_t in[MP_MAX_IN]; /* 0: optional input not given */
    int ndim;
    int64_t dim[MP_RANK];
    const char *name;                    /* leaves: owned by the graph */
    const float *data;                   /* CONST: owned by the graph */
    const struct mp_weight_info *weight; /* WEIGHT: borrowed */
};

struct mp_graph_output {
    const char *name;
    uint32_t node;
};

struct mp_graph {
    struct mp_node_def *node;
    size_t nnode, node_cap;
    struct mp_graph_output *output;
    size_t noutput, output_cap;
    const struct mp_weights *weights; /* may be NULL: every weight is missing */
    uint8_t *used;                    /* per tensor of weights */
    char **unused;                    /* prefixes */
    size_t nunused;
    char prefix[512];
    size_t prefix_at[32]; /* where each push began */
    int depth;
    struct mp_error error; /* the first */
    char **missing;        /* one line each */
    size_t nmissing;
    void **owned; /* names and constants */
    size_t nowned, owned_cap;
};

struct mp_graph *mp_graph_new(const struct mp_weights *w); /* NULL: no memory */
void mp_graph_free(struct mp_graph *g);

/* Nonzero: the same network of the same weights, so one session does for
 * both. */
int mp_graph_equal(const struct mp_graph *a, const struct mp_graph *b);

/* Tensors of the checkpoint that nothing asked for, in file order, from *at
 * on; NULL when there are no more. Aliases of used ones do not count. */
const struct mp_weight_info *mp_graph_unexpected(const struct mp_graph *g,
                                                 size_t *at);

/* ---- op.c: all there is to know about an op ---- */

struct mp_op_row {
    const char *name;
    int min_in, max_in; /* inputs; those from min_in on are optional */
    /* Fill n's dtype, ndim and dim from its attr and inputs (NULL: none). */
    int (*shape)(struct mp_node_def *n, const struct mp_node_def *const *in,
                 struct mp_error *err);
    /* Plain C, f32 (u8, i32 where the type says so), row-major. in[i] is NULL
     * for an input not given. v holds the shapes. */
    void (*ref)(const struct mp_step *s, const struct mp_value *v, void *out,
                const void *const *in);
};
extern const struct mp_op_row mp_op_table[MP_OP_COUNT];

/* "1x64x64x320" */
const char *mp_shape_text(char buf[64], int ndim, const int64_t *dim);
int64_t mp_shape_count(int ndim, const int64_t *dim);

#endif
