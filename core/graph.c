/* SPDX-License-Identifier: MIT */
/* graph.c - the builder: leaves, primitives, sticky errors. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "graph_impl.h"

#define NONE ((mp_node){0})

struct mp_graph *mp_graph_new(const struct mp_weights *w)
{
    struct mp_graph *g = calloc(1, sizeof *g);

    if (!g)
        return NULL;
    g->weights = w;
    g->node_cap = 1024;
    g->node = calloc(g->node_cap, sizeof *g->node);
    g->used = calloc(w ? mp_weights_count(w) + 1 : 1, 1);
    if (!g->node || !g->used) {
        mp_graph_free(g);
        return NULL;
    }
    g->nnode = 1;
    return g;
}

static void free_all(void *list, size_t n)
{
    void **p = list;

    for (size_t i = 0; i < n; i++)
        free(p[i]);
    free(p);
}

void mp_graph_free(struct mp_graph *g)
{
    if (!g)
        return;
    free(g->node);
    free(g->output);
    free(g->used);
    free_all(g->unused, g->nunused);
    free_all(g->missing, g->nmissing);
    free_all(g->owned, g->nowned);
    free(g);
}

static mp_node no_memory(struct mp_graph *g)
{
    if (!g->error.code)
        mp_fail(&g->error, MP_ENOMEM, "out of memory");
    return NONE;
}

void mp_graph_fail(struct mp_graph *g, const char *fmt, ...)
{
    char text[sizeof g->error.text];
    va_list ap;

    if (g->error.code)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    mp_fail(&g->error, MP_EINVAL, "%s", text);
}

int mp_graph_check(const struct mp_graph *g, struct mp_error *err)
{
    if (g->nmissing) {
        char text[400];
        size_t at = 0, i;

        for (i = 0; i < g->nmissing && at < 300; i++)
            at += (size_t)snprintf(text + at, sizeof text - at, "%s%.150s",
                                   i ? "; " : "", g->missing[i]);
        return mp_fail(err, MP_EFORMAT,
                       "the checkpoint does not fit: %s%s (%zu tensor%s)", text,
                       i < g->nmissing ? "; ..." : "", g->nmissing,
                       g->nmissing == 1 ? "" : "s");
    }
    if (g->error.code)
        return mp_fail(err, g->error.code, "%s", g->error.text);
    return 0;
}

int mp_ndim(const struct mp_graph *g, mp_node x)
{
    return x.id ? g->node[x.id].ndim : 0;
}

int64_t mp_dim(const struct mp_graph *g, mp_node x, int axis)
{
    const struct mp_node_def *n = &g->node[x.id];

    if (axis < 0)
        axis += n->ndim;
    return x.id && axis >= 0 && axis < n->ndim ? n->dim[axis] : 1;
}

/* ---- names ---- */

void mp_push(struct mp_graph *g, const char *fmt, ...)
{
    size_t at = strlen(g->prefix);
    va_list ap;

    if ((size_t)g->depth >= sizeof g->prefix_at / sizeof *g->prefix_at) {
        mp_graph_fail(g, "more than %d prefixes pushed", g->depth);
        return;
    }
    g->prefix_at[g->depth++] = at;
    va_start(ap, fmt);
    vsnprintf(g->prefix + at, sizeof g->prefix - at, fmt, ap);
    va_end(ap);
}

void mp_pop(struct mp_graph *g)
{
    if (g->depth > 0)
        g->prefix[g->prefix_at[--g->depth]] = '\0';
}

static void full_name(const struct mp_graph *g, char name[1024],
                      const char *tail)
{
    snprintf(name, 1024, "%s%s", g->prefix, tail);
}

/* Remember p, to be freed with the graph. */
static void *own(struct mp_graph *g, void *p)
{
    if (p && g->nowned == g->owned_cap) {
        size_t cap = g->owned_cap ? 2 * g->owned_cap : 256;
        void **more = realloc(g->owned, cap * sizeof *more);

        if (!more) {
            free(p);
            p = NULL;
        } else {
            g->owned = more;
            g->owned_cap = cap;
        }
    }
    if (!p)
        return no_memory(g), NULL;
    return g->owned[g->nowned++] = p;
}

/* ---- nodes ---- */

static mp_node append(struct mp_graph *g, struct mp_node_def *n)
{
    const struct mp_node_def *in[MP_MAX_IN] = {NULL};
    struct mp_error why = {0};
    const struct mp_op_row *row = &mp_op_table[n->op];

    for (int i = 0; i < n->nin; i++) {
        if (!n->in[i] && i < row->min_in)
            return NONE;
        in[i] = n->in[i] ? &g->node[n->in[i]] : NULL;
    }
    if (g->nnode == g->node_cap) {
        struct mp_node_def *more =
            realloc(g->node, 2 * g->node_cap * sizeof *more);

        if (!more)
            return no_memory(g);
        for (int i = 0; i < n->nin; i++)
            in[i] = n->in[i] ? &more[n->in[i]] : NULL;
        g->node = more;
        g->node_cap *= 2;
    }
    if (row->shape(n, in, &why)) {
        mp_graph_fail(g, "%s%s%s", g->prefix, *g->prefix ? " " : "", why.text);
        return NONE;
    }
    g->node[g->nnode] = *n;
    return (mp_node){(uint32_t)g->nnode++};
}

static int set_dims(struct mp_graph *g, struct mp_node_def *n, int ndim,
                    const int64_t *dim)
{
    if (ndim < 1 || ndim > MP_RANK) {
        mp_graph_fail(g, "%d dimensions, not 1..%d", ndim, MP_RANK);
        return 0;
    }
    n->ndim = ndim;
    memcpy(n->dim, dim, (size_t)ndim * sizeof *dim);
    return 1;
}

mp_node mp_input(struct mp_graph *g, const char *name, enum mp_dtype t,
                 int ndim, const int64_t *dim)
{
    struct mp_node_def n = {.op = MP_OP_INPUT, .dtype = t};

    n.name = own(g, strdup(name));
    if (!n.name || !set_dims(g, &n, ndim, dim))
        return NONE;
    return append(g, &n);
}

mp_node mp_const(struct mp_graph *g, int ndim, const int64_t *dim,
                 const float *data)
{
    struct mp_node_def n = {.op = MP_OP_CONST, .dtype = MP_F32};
    size_t bytes;
    float *copy;

    if (!set_dims(g, &n, ndim, dim))
        return NONE;
    bytes = (size_t)mp_shape_count(ndim, dim) * sizeof *data;
    n.data = copy = own(g, malloc(bytes ? bytes : 1));
    if (!copy)
        return NONE;
    memcpy(copy, data, bytes);
    return append(g, &n);
}

mp_node mp_scalar(struct mp_graph *g, float value)
{
    return mp_const(g, 1, (int64_t[]){1}, &value);
}

/* ---- weights ---- */

static void miss(struct mp_graph *g, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
static void miss(struct mp_graph *g, const char *fmt, ...)
{
    char text[1400];
    char **more = realloc(g->missing, (g->nmissing + 1) * sizeof *more);
    va_list ap;

    if (!more) {
        no_memory(g);
        return;
    }
    g->missing = more;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    for (size_t i = 0; i < g->nmissing; i++)
        if (!strcmp(g->missing[i], text))
            return;
    if ((more[g->nmissing] = strdup(text)))
        g->nmissing++;
    else
        no_memory(g);
}

static const struct mp_weight_info *find(const struct mp_graph *g,
                                         const char *name)
{
    char full[1024];

    full_name(g, full, name);
    return g->weights ? mp_weights_find(g->weights, full) : NULL;
}

static size_t index_of(const struct mp_graph *g, const struct mp_weight_info *w)
{
    return (size_t)(w - mp_weights_at(g->weights, 0));
}

static int is_float(enum mp_dtype t)
{
    return t == MP_F32 || t == MP_F16 || t == MP_BF16 || t == MP_F64;
}

mp_node mp_weight(struct mp_graph *g, const char *name, int ndim,
                  const int64_t *dim)
{
    const struct mp_weight_info *w = find(g, name);
    struct mp_node_def n = {.op = MP_OP_WEIGHT, .dtype = MP_F32};
    char full[1024], want[64], have[64];
    int fits;

    full_name(g, full, name);
    if (!w) {
        miss(g, "%s is missing", full);
        return NONE;
    }
    fits = w->ndim == ndim && ndim <= MP_RANK && is_float(w->dtype);
    for (int i = 0; fits && i < ndim; i++)
        fits = dim[i] == -1 || dim[i] == w->dim[i];
    if (!fits) {
        miss(g, "%s is %s %s, not %s", full, mp_dtype_name(w->dtype),
             mp_shape_text(have, w->ndim, w->dim),
             mp_shape_text(want, ndim, dim));
        return NONE;
    }
    g->used[index_of(g, w)] = 1;
    for (size_t i = 1; i < g->nnode; i++)
        if (g->node[i].weight == w)
            return (mp_node){(uint32_t)i};
    n.weight = w;
    n.name = w->name;
    if (!set_dims(g, &n, ndim, w->dim))
        return NONE;
    return append(g, &n);
}

int mp_weight_shape(const struct mp_graph *g, const char *name, int64_t *dim)
{
    const struct mp_weight_info *w = find(g, name);

    if (!w || w->ndim > MP_RANK)
        return -1;
    if (dim)
        memcpy(dim, w->dim, (size_t)w->ndim * sizeof *dim);
    return w->ndim;
}

void mp_weight_unused(struct mp_graph *g, const char *prefix)
{
    char **more = realloc(g->unused, (g->nunused + 1) * sizeof *more);

    if (!more) {
        no_memory(g);
        return;
    }
    g->unused = more;
    if ((more[g->nunused] = strdup(prefix)))
        g->nunused++;
    else
        no_memory(g);
}

static int same_node(const struct mp_node_def *a, const struct mp_node_def *b)
{
    size_t bytes = mp_dtype_size(a->dtype);

    if (a->op != b->op || a->dtype != b->dtype || a->nin != b->nin ||
        a->ndim != b->ndim || a->weight != b->weight || !a->data != !b->data ||
        !a->name != !b->name || memcmp(&a->attr, &b->attr, sizeof a->attr) ||
        memcmp(a->in, b->in, sizeof a->in) ||
        memcmp(a->dim, b->dim, (size_t)a->ndim * sizeof *a->dim))
        return 0;
    for (int i = 0; i < a->ndim; i++)
        bytes *= (size_t)a->dim[i];
    return (!a->name || !strcmp(a->name, b->name)) &&
           (!a->data || !memcmp(a->data, b->data, bytes));
}

int mp_graph_equal(const struct mp_graph *a, const struct mp_graph *b)
{
    if (a->nnode != b->nnode || a->noutput != b->noutput ||
        a->weights != b->weights || a->error.code || b->error.code)
        return 0;
    for (size_t i = 1; i < a->nnode; i++)
        if (!same_node(&a->node[i], &b->node[i]))
            return 0;
    for (size_t i = 0; i < a->noutput; i++)
        if (a->output[i].node != b->output[i].node ||
            strcmp(a->output[i].name, b->output[i].name))
            return 0;
    return 1;
}

/* Counters of batch norms go with them. */
static int is_counter(const char *name)
{
    static const char tail[] = ".num_batches_tracked";
    size_t n = strlen(name), m = sizeof tail - 1;

    return n > m && !strcmp(name + n - m, tail);
}

static int is_silent(const struct mp_graph *g, const struct mp_weight_info *w)
{
    if (is_counter(w->name))
        return 1;
    for (size_t i = 0; i < g->nunused; i++)
        if (!strncmp(w->name, g->unused[i], strlen(g->unused[i])))
            return 1;
    for (size_t i = 0; i < mp_weights_count(g->weights); i++)
        if (g->used[i] && mp_weights_at(g->weights, i)->storage == w->storage)
            return 1;
    return 0;
}

const struct mp_weight_info *mp_graph_unexpected(const struct mp_graph *g,
                                                 size_t *at)
{
    while (g->weights && *at < mp_weights_count(g->weights)) {
        size_t i = (*at)++;
        const struct mp_weight_info *w = mp_weights_at(g->weights, i);

        if (!g->used[i] && !is_silent(g, w))
            return w;
    }
    return NULL;
}

/* ---- primitives ---- */

static mp_node unary(struct mp_graph *g, enum mp_op op, mp_node x,
                     struct mp_attr attr)
{
    struct mp_node_def n = {.op = op, .attr = attr, .nin = 1};

    n.in[0] = x.id;
    return append(g, &n);
}

mp_node mp_conv2d(struct mp_graph *g, mp_node x, mp_node w, mp_node bias,
                  struct mp_conv p)
{
    struct mp_node_def n = {.op = MP_OP_CONV2D,
                            .attr = {.conv = p},
                            .nin = 4,
                            .in = {x.id, w.id, bias.id, 0}};

    return append(g, &n);
}

mp_node mp_linear(struct mp_graph *g, mp_node x, mp_node w, mp_node bias)
{
    return mp_conv2d(g, x, w, bias, (struct mp_conv){.stride = 1});
}

mp_node mp_deconv2d(struct mp_graph *g, mp_node x, mp_node w, mp_node bias,
                    int stride, int pad, int out_pad)
{
    struct mp_node_def n = {
        .op = MP_OP_DECONV2D,
        .attr = {.conv = {.stride = stride, .top = pad, .bottom = out_pad}},
        .nin = 3,
        .in = {x.id, w.id, bias.id}};

    return append(g, &n);
}

mp_node mp_attention(struct mp_graph *g, mp_node q, mp_node k, mp_node v,
                     int heads, float scale)
{
    struct mp_node_def n = {.op = MP_OP_ATTENTION,
                            .attr = {.heads = heads, .scale = scale},
                            .nin = 3,
                            .in = {q.id, k.id, v.id}};

    return append(g, &n);
}

static mp_node norm(struct mp_graph *g, enum mp_op op, mp_node x, mp_node w,
                    mp_node b, struct mp_attr attr)
{
    struct mp_node_def n = {
        .op = op, .attr = attr, .nin = 3, .in = {x.id, w.id, b.id}};

    return append(g, &n);
}

mp_node mp_group_norm(struct mp_graph *g, mp_node x, mp_node weight,
                      mp_node bias, int groups, float eps)
{
    return norm(g, MP_OP_GROUP_NORM, x, weight, bias,
                (struct mp_attr){.groups = groups, .eps = eps});
}

mp_node mp_layer_norm(struct mp_graph *g, mp_node x, mp_node weight,
                      mp_node bias, float eps)
{
    return norm(g, MP_OP_LAYER_NORM, x, weight, bias,
                (struct mp_attr){.eps = eps});
}

mp_node mp_batch_norm(struct mp_graph *g, mp_node x, mp_node weight,
                      mp_node bias, mp_node mean, mp_node var, float eps)
{
    struct mp_node_def n = {.op = MP_OP_BATCH_NORM,
                            .attr = {.eps = eps},
                            .nin = 5,
                            .in = {x.id, weight.id, bias.id, mean.id, var.id}};

    return append(g, &n);
}

mp_node mp_act(struct mp_graph *g, mp_node x, enum mp_act kind)
{
    return unary(g, MP_OP_ACT, x, (struct mp_attr){.act = kind});
}

mp_node mp_geglu(struct mp_graph *g, mp_node x)
{
    return unary(g, MP_OP_GEGLU, x, (struct mp_attr){0});
}

static mp_node binary(struct mp_graph *g, enum mp_op op, mp_node a, mp_node b)
{
    struct mp_node_def n = {.op = op, .nin = 2, .in = {a.id, b.id}};

    return append(g, &n);
}

mp_node mp_add(struct mp_graph *g, mp_node a, mp_node b)
{
    return binary(g, MP_OP_ADD, a, b);
}

mp_node mp_mul(struct mp_graph *g, mp_node a, mp_node b)
{
    return binary(g, MP_OP_MUL, a, b);
}

/* More than one step takes: parts of them first. */
static mp_node concat_parts(struct mp_graph *g, const mp_node *x, int n,
                            int axis)
{
    mp_node part[MP_MAX_IN];
    int each = (n - 1) / MP_MAX_IN + 1, k = 0;

    for (int i = 0; i < n; i += each)
        part[k++] = mp_concat(g, x + i, n - i < each ? n - i : each, axis);
    return mp_concat(g, part, k, axis);
}

mp_node mp_concat(struct mp_graph *g, const mp_node *x, int n, int axis)
{
    struct mp_node_def def = {.op = MP_OP_CONCAT, .nin = n};

    if (n < 1) {
        mp_graph_fail(g, "concat of %d values", n);
        return NONE;
    }
    if (n > MP_MAX_IN)
        return concat_parts(g, x, n, axis);
    for (int i = 0; i < n; i++) {
        if (!x[i].id)
            return NONE;
        def.in[i] = x[i].id;
    }
    def.attr.axis = axis < 0 ? axis + mp_ndim(g, x[0]) : axis;
    return append(g, &def);
}

mp_node mp_slice(struct mp_graph *g, mp_node x, int axis, int64_t start,
                 int64_t count)
{
    struct mp_node_def n = {.op = MP_OP_SLICE, .nin = 1, .in = {x.id}};

    n.attr.axis = axis < 0 ? axis + mp_ndim(g, x) : axis;
    n.attr.start = start;
    n.dim[0] = count; /* for the shape rule */
    return append(g, &n);
}

mp_node mp_reshape(struct mp_graph *g, mp_node x, int ndim, const int64_t *dim)
{
    struct mp_node_def n = {.op = MP_OP_RESHAPE, .nin = 1, .in = {x.id}};

    if (!set_dims(g, &n, ndim, dim))
        return NONE;
    return append(g, &n);
}

static mp_node spatial(struct mp_graph *g, enum mp_op op, mp_node x, int64_t h,
                       int64_t w, struct mp_attr attr)
{
    struct mp_node_def n = {
        .op = op, .attr = attr, .nin = 1, .in = {x.id}, .dim = {0, h, w}};

    return append(g, &n);
}

mp_node mp_resize_bilinear(struct mp_graph *g, mp_node x, int64_t h, int64_t w)
{
    if (x.id && mp_dim(g, x, 1) == h && mp_dim(g, x, 2) == w)
        return x;
    return spatial(g, MP_OP_RESIZE, x, h, w, (struct mp_attr){0});
}

mp_node mp_resize_nearest(struct mp_graph *g, mp_node x, int64_t h, int64_t w)
{
    return spatial(g, MP_OP_RESIZE, x, h, w, (struct mp_attr){.nearest = 1});
}

mp_node mp_pool_avg(struct mp_graph *g, mp_node x, int64_t h, int64_t w)
{
    return spatial(g, MP_OP_POOL, x, h, w, (struct mp_attr){0});
}

mp_node mp_pad(struct mp_graph *g, mp_node x, int64_t top, int64_t left,
               int64_t h, int64_t w)
{
    return spatial(g, MP_OP_PAD, x, h, w,
                   (struct mp_attr){.start = top, .left = left});
}

mp_node mp_flip(struct mp_graph *g, mp_node x, int axis)
{
    return unary(
        g, MP_OP_FLIP, x,
        (struct mp_attr){.axis = axis < 0 ? axis + mp_ndim(g, x) : axis});
}

mp_node mp_softmax(struct mp_graph *g, mp_node x)
{
    return unary(g, MP_OP_SOFTMAX, x, (struct mp_attr){0});
}

mp_node mp_argmax(struct mp_graph *g, mp_node x)
{
    return unary(g, MP_OP_ARGMAX, x, (struct mp_attr){0});
}

mp_node mp_heatmap_peaks(struct mp_graph *g, mp_node x)
{
    return unary(g, MP_OP_HEATMAP_PEAKS, x, (struct mp_attr){0});
}

mp_node mp_float(struct mp_graph *g, mp_node x)
{
    return unary(g, MP_OP_FLOAT, x, (struct mp_attr){0});
}

void mp_output(struct mp_graph *g, const char *name, mp_node x)
{
    const char *copy;

    if (!x.id)
        return;
    if (g->noutput == g->output_cap) {
        size_t cap = g->output_cap ? 2 * g->output_cap : 8;
        struct mp_graph_output *more = realloc(g->output, cap * sizeof *more);

        if (!more) {
            no_memory(g);
            return;
        }
        g->output = more;
        g->output_cap = cap;
    }
    copy = own(g, strdup(name));
    if (copy)
        g->output[g->noutput++] = (struct mp_graph_output){copy, x.id};
}
