/* SPDX-License-Identifier: MIT */
/*
 * fold.c - forward passes over the graph: every node is emitted again, and a
 * rule may emit something better in its place. What lost its users is not
 * live. A rule that takes a node into its user needs that user to be the only
 * one; uses are counted in the graph before.
 */
#include <stdlib.h>
#include <string.h>
#include "fold.h"

static void mix(uint64_t k[2], const void *bytes, size_t n)
{
    const unsigned char *p = bytes;

    for (size_t i = 0; i < n; i++) { /* FNV-1a, and a second with a rotation */
        k[0] = (k[0] ^ p[i]) * 0x100000001b3u;
        k[1] = (k[1] << 5 | k[1] >> 59) ^ (p[i] * 0x9e3779b97f4a7c15u);
    }
}

/* Two nodes of one key are the same computation on the same tensors. */
static void key_of(uint64_t k[2], const struct mp_net *net,
                   const struct mp_node_def *n)
{
    k[0] = 0xcbf29ce484222325u;
    k[1] = 0x2545f4914f6cdd1du;
    mix(k, &n->op, sizeof n->op);
    mix(k, &n->attr, sizeof n->attr);
    mix(k, n->dim, (size_t)n->ndim * sizeof *n->dim);
    if (n->weight) { /* mappings come and go */
        mix(k, mp_mapping_id(n->weight->mapping), sizeof(struct mp_file_id));
        mix(k, &n->weight->offset, sizeof n->weight->offset);
        mix(k, &n->weight->dtype, sizeof n->weight->dtype);
        mix(k, n->weight->stride,
            (size_t)n->weight->ndim * sizeof *n->weight->stride);
        mix(k, n->weight->name, strlen(n->weight->name));
    }
    if (n->data)
        mix(k, n->data,
            (size_t)mp_shape_count(n->ndim, n->dim) * sizeof *n->data);
    for (int i = 0; i < n->nin; i++)
        mix(k, net->key[n->in[i]], sizeof net->key[0]);
}

static int grow(struct mp_net *net)
{
    size_t cap = 2 * net->cap;
    struct mp_node_def *node = realloc(net->node, cap * sizeof *node);
    uint64_t(*key)[2];
    uint8_t *constant;

    if (!node)
        return 0;
    net->node = node;
    key = realloc(net->key, cap * sizeof *key);
    if (!key)
        return 0;
    net->key = key;
    constant = realloc(net->constant, cap);
    if (!constant)
        return 0;
    net->constant = constant;
    net->cap = cap;
    return 1;
}

/* The slot of a constant with this key: its node, or 0 if it is new. */
static uint32_t *slot_of(struct mp_net *net, const uint64_t k[2])
{
    size_t i = k[0] % net->nslot;

    while (net->slot[i] && memcmp(net->key[net->slot[i]], k, 16))
        i = (i + 1) % net->nslot;
    return &net->slot[i];
}

/* Append n (shape known), or find the same constant. 0: out of memory. */
static uint32_t emit(struct mp_net *net, const struct mp_node_def *n)
{
    uint32_t id = (uint32_t)net->nnode, *slot;
    uint64_t k[2] = {0, 0};
    int constant = n->op != MP_OP_INPUT;

    if (net->error.code)
        return 0;
    for (int i = 0; i < n->nin; i++)
        constant = constant && (!n->in[i] || net->constant[n->in[i]]);
    if (constant) {
        key_of(k, net, n);
        slot = slot_of(net, k);
        if (*slot)
            return *slot;
    }
    if ((net->nnode == net->cap && !grow(net)) ||
        (constant && net->nnode * 2 > net->nslot)) {
        mp_fail(&net->error, MP_ENOMEM, "out of memory");
        return 0;
    }
    net->node[id] = *n;
    net->constant[id] = (uint8_t)constant;
    memcpy(net->key[id], k, sizeof k);
    if (constant)
        *slot = id;
    net->nnode++;
    return id;
}

/* Emit a node whose shape its rule finds. */
static uint32_t derive(struct mp_net *net, struct mp_node_def n)
{
    const struct mp_node_def *in[MP_MAX_IN] = {NULL};

    if (net->error.code)
        return 0;
    for (int i = 0; i < n.nin; i++)
        in[i] = n.in[i] ? &net->node[n.in[i]] : NULL;
    if (mp_op_table[n.op].shape(&n, in, &net->error))
        return 0;
    return emit(net, &n);
}

static uint32_t binary(struct mp_net *net, enum mp_op op, uint32_t a,
                       uint32_t b)
{
    return derive(net, (struct mp_node_def){.op = op, .nin = 2, .in = {a, b}});
}

static uint32_t scalar(struct mp_net *net, const float *value)
{
    return derive(net, (struct mp_node_def){.op = MP_OP_CONST,
                                            .dtype = MP_F32,
                                            .ndim = 1,
                                            .dim = {1},
                                            .data = value});
}

static uint32_t reshape(struct mp_net *net, uint32_t x, int ndim,
                        const int64_t *dim)
{
    struct mp_node_def n = {.op = MP_OP_RESHAPE, .nin = 1, .in = {x}};

    n.ndim = ndim;
    memcpy(n.dim, dim, (size_t)ndim * sizeof *dim);
    return derive(net, n);
}

static uint32_t slice(struct mp_net *net, uint32_t x, int axis, int64_t start,
                      int64_t count)
{
    struct mp_node_def n = {.op = MP_OP_SLICE,
                            .attr = {.axis = axis, .start = start},
                            .nin = 1,
                            .in = {x}};

    n.dim[0] = count; /* as mp_slice says it to the shape rule */
    return derive(net, n);
}

static int is_conv(const struct mp_node_def *n)
{
    return n->op == MP_OP_CONV2D || n->op == MP_OP_DECONV2D;
}

/* A convolution that nothing has been taken into yet. */
static int is_plain_conv(const struct mp_node_def *n)
{
    return is_conv(n) && !n->attr.act && (n->nin < 4 || !n->in[3]);
}

/* x + b, where b has one value per channel: into the bias. */
static uint32_t into_bias(struct mp_net *net, uint32_t conv, uint32_t b)
{
    struct mp_node_def n = net->node[conv];
    int64_t k = n.dim[n.ndim - 1];

    b = reshape(net, b, 1, &k);
    n.in[2] = n.in[2] ? binary(net, MP_OP_ADD, n.in[2], b) : b;
    return n.in[2] ? emit(net, &n) : 0;
}

static const float minus_one = -1;

/* scale = weight / sqrt(var + eps), shift = bias - mean * scale */
static int affine(struct mp_net *net, const struct mp_node_def *bn,
                  uint32_t *scale, uint32_t *shift)
{
    uint32_t minus = scalar(net, &minus_one);
    uint32_t eps = scalar(net, &net->from->attr.eps); /* outlives the net */
    struct mp_node_def root = {
        .op = MP_OP_ACT, .attr = {.act = MP_RSQRT}, .nin = 1};

    root.in[0] = binary(net, MP_OP_ADD, bn->in[4], eps);
    *scale = binary(net, MP_OP_MUL, bn->in[1], derive(net, root));
    *shift = binary(net, MP_OP_ADD, bn->in[2],
                    binary(net, MP_OP_MUL,
                           binary(net, MP_OP_MUL, bn->in[3], minus), *scale));
    return !net->error.code;
}

static uint32_t batch_norm(struct mp_net *net, const struct mp_node_def *bn,
                           int alone)
{
    struct mp_node_def conv = net->node[bn->in[0]];
    uint32_t scale, shift, w;
    int64_t along[4] = {1, 1, 1, 1};

    for (int i = 1; i < 5; i++)
        if (!net->constant[bn->in[i]])
            return emit(net, bn);
    if (!affine(net, bn, &scale, &shift))
        return 0;
    if (!alone || !is_plain_conv(&conv) || !net->constant[conv.in[1]] ||
        (conv.in[2] && !net->constant[conv.in[2]]))
        return binary(net, MP_OP_ADD, binary(net, MP_OP_MUL, bn->in[0], scale),
                      shift);
    along[conv.op == MP_OP_CONV2D ? 0 : 1] = conv.dim[conv.ndim - 1];
    w = net->node[conv.in[1]].ndim == 2 ? reshape(net, scale, 2, along)
                                        : reshape(net, scale, 4, along);
    conv.in[1] = binary(net, MP_OP_MUL, conv.in[1], w);
    if (conv.in[2])
        shift = binary(net, MP_OP_ADD,
                       binary(net, MP_OP_MUL, conv.in[2], scale), shift);
    conv.in[2] = shift;
    return net->error.code ? 0 : emit(net, &conv);
}

static int per_channel(const struct mp_net *net, uint32_t b, int64_t c)
{
    const struct mp_node_def *n = &net->node[b];

    return net->constant[b] && n->dim[n->ndim - 1] == c &&
           mp_shape_count(n->ndim, n->dim) == c;
}

static uint32_t add(struct mp_net *net, const struct mp_node_def *n,
                    const int *alone)
{
    uint32_t a = n->in[0], b = n->in[1];
    struct mp_node_def conv;
    int swap;

    if (alone[0] && is_plain_conv(&net->node[a]) &&
        per_channel(net, b, n->dim[n->ndim - 1]))
        return into_bias(net, a, b);
    if (net->constant[b] ||
        mp_shape_count(net->node[b].ndim, net->node[b].dim) !=
            mp_shape_count(n->ndim, n->dim))
        return emit(net, n);
    /* the later convolution takes the other as its residual */
    swap = b > a ? 1 : 0;
    for (int i = 0; i < 2; i++, swap = !swap) {
        uint32_t id = n->in[swap];

        conv = net->node[id];
        if (alone[swap] && conv.op == MP_OP_CONV2D && is_plain_conv(&conv) &&
            conv.ndim == n->ndim) {
            conv.in[3] = n->in[!swap];
            return emit(net, &conv);
        }
    }
    return emit(net, n);
}

static uint32_t act(struct mp_net *net, const struct mp_node_def *n, int alone)
{
    struct mp_node_def x = net->node[n->in[0]];
    int takes = is_conv(&x) || x.op == MP_OP_GROUP_NORM ||
                x.op == MP_OP_LAYER_NORM || x.op == MP_OP_ADD;

    if (!alone || !takes || x.attr.act || n->attr.act == MP_RSQRT)
        return emit(net, n);
    x.attr.act = n->attr.act;
    return emit(net, &x);
}

static uint32_t rewrite(struct mp_net *net, const struct mp_node_def *n,
                        const int *alone)
{
    switch (n->op) {
    case MP_OP_BATCH_NORM:
        return batch_norm(net, n, alone[0]);
    case MP_OP_ADD:
        return add(net, n, alone);
    case MP_OP_ACT:
        return act(net, n, alone[0]);
    case MP_OP_FLOAT:
        return net->node[n->in[0]].dtype == MP_F32 ? n->in[0] : emit(net, n);
    default:
        return emit(net, n);
    }
}

/* ---- convolutions of enlarged maps ---- */

static int is_enlarged(const struct mp_net *net, uint32_t x)
{
    const struct mp_node_def *n = &net->node[x], *from = &net->node[n->in[0]];

    return n->op == MP_OP_RESIZE && n->dim[1] % from->dim[1] == 0 &&
           n->dim[2] % from->dim[2] == 0 &&
           n->dim[1] * n->dim[2] > from->dim[1] * from->dim[2];
}

/* 3x3, of all positions, with what is known. */
static int is_commutable(const struct mp_net *net, const struct mp_node_def *n)
{
    const struct mp_node_def *w = &net->node[n->in[1]];
    const struct mp_conv *p = &n->attr.conv;

    return n->op == MP_OP_CONV2D && net->constant[n->in[1]] &&
           (!n->in[2] || net->constant[n->in[2]]) && w->ndim == 4 &&
           w->dim[2] == 3 && w->dim[3] == 3 && p->stride == 1 && p->top == 1 &&
           p->left == 1 && p->bottom == 1 && p->right == 1;
}

/* Is convolution n of x, all of its input or a part, wanted so? */
static int is_wanted(const struct mp_net *net, const struct mp_node_def *n,
                     uint32_t x)
{
    const int64_t *to = net->node[x].dim;
    const int64_t *from = net->node[net->node[x].in[0]].dim;

    return is_enlarged(net, x) &&
           net->backend->commutes(
               &(struct mp_enlarged){.h = from[1],
                                     .w = from[2],
                                     .c = from[3],
                                     .k = net->node[n->in[1]].dim[0],
                                     .up_h = to[1],
                                     .up_w = to[2]},
               net->type);
}

static uint32_t conv_of(struct mp_net *net, struct mp_node_def n)
{
    const struct mp_node_def *x = &net->node[n.in[0]];

    if (is_wanted(net, &n, n.in[0])) {
        n.attr.up_h = x->dim[1];
        n.attr.up_w = x->dim[2];
        n.attr.nearest = x->attr.nearest;
        n.in[0] = x->in[0];
    }
    return emit(net, &n);
}

/* Weights of some input channels. Of scaled ones no more than these are to be
 * multiplied. */
static uint32_t weights_of(struct mp_net *net, uint32_t w, int64_t start,
                           int64_t count)
{
    struct mp_node_def m = net->node[w];

    if (m.op != MP_OP_MUL || net->node[m.in[0]].ndim != 4 ||
        net->node[m.in[1]].ndim != 4 || net->node[m.in[1]].dim[1] != 1)
        return slice(net, w, 1, start, count);
    return binary(net, MP_OP_MUL, slice(net, m.in[0], 1, start, count),
                  m.in[1]);
}

/* A convolution of maps that are joined: the sum of theirs. */
static uint32_t conv_of_each(struct mp_net *net, const struct mp_node_def *n,
                             const struct mp_node_def *joined)
{
    uint32_t sum = n->in[3];
    int64_t at = 0;

    for (int i = 0; i < joined->nin && !net->error.code; i++) {
        struct mp_node_def part = *n;
        const struct mp_node_def *x = &net->node[joined->in[i]];
        int64_t c = x->dim[3];

        part.nin = 4;
        part.in[0] = joined->in[i];
        part.in[1] = weights_of(net, n->in[1], at, c);
        part.in[2] = i ? 0 : n->in[2];
        part.in[3] = sum;
        part.attr.act = i + 1 < joined->nin ? MP_ACT_NONE : n->attr.act;
        sum = conv_of(net, part);
        at += c;
    }
    return net->error.code ? 0 : sum;
}

static uint32_t commute(struct mp_net *net, const struct mp_node_def *n,
                        const int *alone)
{
    struct mp_node_def x = net->node[n->in[0]];

    (void)alone;
    if (!is_commutable(net, n))
        return emit(net, n);
    for (int i = 0; x.op == MP_OP_CONCAT && x.attr.axis == 3 && i < x.nin; i++)
        if (is_wanted(net, n, x.in[i]))
            return conv_of_each(net, n, &x);
    return conv_of(net, *n);
}

/* ---- passes ---- */

/* A graph, or what a pass has made of it. */
struct source {
    const struct mp_node_def *node;
    size_t nnode, noutput;
    uint32_t *output;
    const struct mp_backend *backend;
    enum mp_dtype type;
};

typedef uint32_t rule(struct mp_net *net, const struct mp_node_def *n,
                      const int *alone);

static void count_uses(uint32_t *uses, const struct source *g)
{
    for (size_t i = 0; i < g->noutput; i++)
        uses[g->output[i]]++;
    for (size_t i = g->nnode - 1; i > 0; i--)
        for (int k = 0; uses[i] && k < g->node[i].nin; k++)
            uses[g->node[i].in[k]]++;
}

static void mark_live(struct mp_net *net)
{
    for (size_t i = 0; i < net->noutput; i++)
        net->live[net->output[i]] = 1;
    for (size_t i = net->nnode - 1; i > 0; i--)
        for (int k = 0; net->live[i] && k < net->node[i].nin; k++)
            net->live[net->node[i].in[k]] = 1;
    net->live[0] = 0;
    for (size_t i = 1; i < net->nnode; i++) /* inputs are always fed */
        if (net->node[i].op == MP_OP_INPUT)
            net->live[i] = 1;
}

/* Every node that is used, as the rule has it. Takes g's outputs. */
static void pass(struct mp_net *net, struct source *g, rule *rule)
{
    uint32_t *uses = calloc(g->nnode, sizeof *uses);
    uint32_t *now = calloc(g->nnode, sizeof *now);

    memset(net, 0, sizeof *net);
    net->cap = 2 * g->nnode;
    net->nslot = 16 * g->nnode + 64;
    net->nnode = 1;
    net->node = calloc(net->cap, sizeof *net->node);
    net->key = calloc(net->cap, sizeof *net->key);
    net->constant = calloc(net->cap, 1);
    net->slot = calloc(net->nslot, sizeof *net->slot);
    net->output = g->output;
    net->noutput = g->noutput;
    net->backend = g->backend;
    net->type = g->type;
    if (!uses || !now || !net->node || !net->key || !net->constant ||
        !net->slot || !net->output) {
        mp_fail(&net->error, MP_ENOMEM, "out of memory");
        goto done;
    }
    count_uses(uses, g);
    for (size_t i = 1; i < g->nnode && !net->error.code; i++) {
        struct mp_node_def n = g->node[i];
        int alone[MP_MAX_IN] = {0};

        if (!uses[i] && n.op != MP_OP_INPUT)
            continue;
        for (int k = 0; k < n.nin; k++) {
            alone[k] = uses[n.in[k]] == 1;
            n.in[k] = now[n.in[k]];
        }
        net->from = &g->node[i];
        now[i] = rule(net, &n, alone);
    }
    for (size_t i = 0; i < net->noutput; i++)
        net->output[i] = now[net->output[i]];
done:
    free(uses);
    free(now);
}

int mp_net_make(struct mp_net *net, const struct mp_graph *g,
                const struct mp_backend *backend, enum mp_dtype t,
                struct mp_error *err)
{
    struct source from = {.node = g->node,
                          .nnode = g->nnode,
                          .noutput = g->noutput,
                          .output = calloc(g->noutput + 1, sizeof(uint32_t)),
                          .backend = backend,
                          .type = t};
    struct mp_net first;
    int rc;

    for (size_t i = 0; from.output && i < g->noutput; i++)
        from.output[i] = g->output[i].node;
    pass(net, &from, rewrite);
    if (backend->commutes && !net->error.code) {
        first = *net;
        first.output = NULL;
        from.node = first.node;
        from.nnode = first.nnode;
        pass(net, &from, commute);
        mp_net_free(&first);
    }
    if (!net->error.code && !(net->live = calloc(net->nnode, 1)))
        mp_fail(&net->error, MP_ENOMEM, "out of memory");
    if (!net->error.code)
        mark_live(net);
    rc = net->error.code;
    if (rc) {
        mp_fail(err, rc, "%s", net->error.text);
        mp_net_free(net);
    }
    return rc;
}

void mp_net_free(struct mp_net *net)
{
    free(net->node);
    free(net->key);
    free(net->constant);
    free(net->live);
    free(net->slot);
    free(net->output);
    memset(net, 0, sizeof *net);
}
