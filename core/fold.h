/* SPDX-License-Identifier: MIT */
/*
 * fold.h - a graph rewritten for inference: the same results, fewer steps.
 *
 * Batch norms over known statistics go into the convolution before them,
 * per-channel constants into its bias, a sum into its residual, activations
 * into the convolution, norm or sum before them. Where the backend wants it,
 * enlarging a map goes into the 3x3 convolution after it, that of maps joined
 * first becoming a sum of convolutions. What depends on no input is marked
 * constant and named by a key, so that equal constants are computed and
 * packed once. Nothing is computed here.
 */
#ifndef CORE_FOLD_H
#define CORE_FOLD_H

#include "graph_impl.h"

struct mp_net {
    struct mp_node_def *node; /* 1.., inputs before users; leaves' names and
                                 data are borrowed from the graph */
    size_t nnode, cap;
    uint64_t (*key)[2]; /* of constants: equal keys, equal contents */
    uint8_t *constant;  /* depends on no INPUT */
    uint8_t *live;      /* needed by an output */
    uint32_t *slot;     /* hash table of constants by key */
    size_t nslot;
    uint32_t *output; /* nodes, in the graph's order */
    size_t noutput;
    const struct mp_backend *backend;
    enum mp_dtype type;             /* of values */
    struct mp_error error;          /* the first, while building */
    const struct mp_node_def *from; /* while building: the graph's node */
};

/* For this backend, which keeps values as t. */
int mp_net_make(struct mp_net *net, const struct mp_graph *g,
                const struct mp_backend *backend, enum mp_dtype t,
                struct mp_error *err);
void mp_net_free(struct mp_net *net);

#endif
