/* SPDX-License-Identifier: MIT */
/* op.c - the op table: names, arity and shape rules. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "graph_impl.h"
#include "ref.h"

const char *mp_shape_text(char buf[64], int ndim, const int64_t *dim)
{
    size_t at = 0;

    buf[0] = '\0';
    for (int i = 0; i < ndim && at < 60; i++)
        at += (size_t)snprintf(buf + at, 64 - at, "%s%" PRId64, i ? "x" : "",
                               dim[i]);
    return buf;
}

int64_t mp_shape_count(int ndim, const int64_t *dim)
{
    int64_t n = 1;

    for (int i = 0; i < ndim; i++)
        n *= dim[i];
    return n;
}

static int bad(const struct mp_node_def *n, const struct mp_node_def *const *in,
               struct mp_error *err, const char *why)
{
    char text[3][64] = {"", "", ""};

    for (int i = 0; i < n->nin && i < 3; i++)
        if (in[i])
            mp_shape_text(text[i], in[i]->ndim, in[i]->dim);
    return mp_fail(err, MP_EINVAL, "%s of %s %s %s: %s",
                   mp_op_table[n->op].name, text[0], text[1], text[2], why);
}

static void like(struct mp_node_def *n, const struct mp_node_def *x)
{
    n->dtype = x->dtype;
    n->ndim = x->ndim;
    memcpy(n->dim, x->dim, sizeof n->dim);
}

static int is_vector(const struct mp_node_def *b, int64_t count)
{
    return !b || (b->ndim == 1 && b->dim[0] == count);
}

static int same_shape(const struct mp_node_def *a, const struct mp_node_def *b)
{
    return a->ndim == b->ndim &&
           !memcmp(a->dim, b->dim, (size_t)a->ndim * sizeof *a->dim);
}

static int shape_leaf(struct mp_node_def *n,
                      const struct mp_node_def *const *in, struct mp_error *err)
{
    (void)in;
    for (int i = 0; i < n->ndim; i++)
        if (n->dim[i] < 1 || n->dim[i] > INT32_MAX)
            return mp_fail(err, MP_EINVAL,
                           "%s %s: dimension %d is %" PRId64 ", not 1 or more",
                           mp_op_table[n->op].name, n->name ? n->name : "", i,
                           n->dim[i]);
    return 0;
}

static int shape_conv2d(struct mp_node_def *n,
                        const struct mp_node_def *const *in,
                        struct mp_error *err)
{
    const struct mp_node_def *x = in[0], *w = in[1];
    const struct mp_conv *p = &n->attr.conv;
    int64_t r = w->ndim == 4 ? w->dim[2] : 1, s = w->ndim == 4 ? w->dim[3] : 1;

    if (w->ndim != 4 && w->ndim != 2)
        return bad(n, in, err, "the weight must be KxCxRxS or KxC");
    if (w->dim[1] != x->dim[x->ndim - 1])
        return bad(n, in, err, "channels differ");
    if (!is_vector(in[2], w->dim[0]))
        return bad(n, in, err, "the bias must have K elements");
    like(n, x);
    n->dtype = MP_F32;
    n->dim[n->ndim - 1] = w->dim[0];
    if (x->ndim != 4) {
        if (r != 1 || s != 1 || p->stride != 1)
            return bad(n, in, err, "only a 1x1 kernel fits a sequence");
    } else {
        int64_t h = n->attr.up_h ? n->attr.up_h : x->dim[1];
        int64_t v = n->attr.up_w ? n->attr.up_w : x->dim[2];

        n->dim[1] = (h + p->top + p->bottom - r) / p->stride + 1;
        n->dim[2] = (v + p->left + p->right - s) / p->stride + 1;
        if (h + p->top + p->bottom < r || v + p->left + p->right < s)
            return bad(n, in, err, "the map is smaller than the kernel");
    }
    if (in[3] && !same_shape(n, in[3]))
        return bad(n, in, err, "the residual has another shape");
    return 0;
}

static int shape_deconv2d(struct mp_node_def *n,
                          const struct mp_node_def *const *in,
                          struct mp_error *err)
{
    const struct mp_node_def *x = in[0], *w = in[1];
    const struct mp_conv *p = &n->attr.conv;

    if (x->ndim != 4 || w->ndim != 4 || w->dim[0] != x->dim[3])
        return bad(n, in, err, "needs NxHxWxC and CxKxRxS");
    if (!is_vector(in[2], w->dim[1]))
        return bad(n, in, err, "the bias must have K elements");
    like(n, x);
    for (int i = 1; i < 3; i++) {
        n->dim[i] = (x->dim[i] - 1) * p->stride - 2 * p->top + w->dim[i + 1] +
                    p->bottom;
        if (n->dim[i] < 1)
            return bad(n, in, err, "the result is empty");
    }
    n->dim[3] = w->dim[1];
    return 0;
}

static int shape_attention(struct mp_node_def *n,
                           const struct mp_node_def *const *in,
                           struct mp_error *err)
{
    const struct mp_node_def *q = in[0], *k = in[1], *v = in[2];

    if (q->ndim != 3 || k->ndim != 3 || !same_shape(k, v))
        return bad(n, in, err, "needs NxTxC, NxSxC, NxSxC");
    if (k->dim[2] != q->dim[2] || (k->dim[0] != 1 && k->dim[0] != q->dim[0]))
        return bad(n, in, err, "batch or channels differ");
    if (n->attr.heads < 1 || q->dim[2] % n->attr.heads)
        return bad(n, in, err, "channels are no multiple of the heads");
    like(n, q);
    return 0;
}

static int shape_norm(struct mp_node_def *n,
                      const struct mp_node_def *const *in, struct mp_error *err)
{
    int64_t c = in[0]->dim[in[0]->ndim - 1];

    for (int i = 1; i < n->nin; i++)
        if (!is_vector(in[i], c))
            return bad(n, in, err, "parameters must have C elements");
    if (n->op == MP_OP_GROUP_NORM &&
        (in[0]->ndim < 3 || n->attr.groups < 1 || c % n->attr.groups))
        return bad(n, in, err, "channels are no multiple of the groups");
    like(n, in[0]);
    return 0;
}

static int shape_act(struct mp_node_def *n, const struct mp_node_def *const *in,
                     struct mp_error *err)
{
    if (in[0]->dtype != MP_F32)
        return bad(n, in, err, "needs f32");
    like(n, in[0]);
    return 0;
}

static int shape_geglu(struct mp_node_def *n,
                       const struct mp_node_def *const *in,
                       struct mp_error *err)
{
    if (in[0]->dim[in[0]->ndim - 1] % 2)
        return bad(n, in, err, "channels must be even");
    like(n, in[0]);
    n->dim[n->ndim - 1] /= 2;
    return 0;
}

static int shape_binary(struct mp_node_def *n,
                        const struct mp_node_def *const *in,
                        struct mp_error *err)
{
    const struct mp_node_def *a = in[0], *b = in[1];

    if (b->ndim > a->ndim)
        return bad(n, in, err, "the second has more dimensions");
    for (int i = 0; i < b->ndim; i++) {
        int64_t d = b->dim[b->ndim - 1 - i];

        if (d != 1 && d != a->dim[a->ndim - 1 - i])
            return bad(n, in, err, "shapes do not broadcast");
    }
    if (a->dtype != MP_F32 || b->dtype != MP_F32)
        return bad(n, in, err, "needs f32");
    like(n, a);
    return 0;
}

static int shape_concat(struct mp_node_def *n,
                        const struct mp_node_def *const *in,
                        struct mp_error *err)
{
    int axis = n->attr.axis;

    like(n, in[0]);
    if (axis < 0 || axis >= n->ndim)
        return bad(n, in, err, "no such axis");
    for (int i = 1; i < n->nin; i++) {
        struct mp_node_def part = *in[i];

        if (part.ndim != n->ndim || part.dtype != n->dtype)
            return bad(n, in, err, "ranks or types differ");
        part.dim[axis] = n->dim[axis];
        if (!same_shape(&part, n))
            return bad(n, in, err, "shapes differ beside the axis");
        n->dim[axis] += in[i]->dim[axis];
    }
    return 0;
}

static int shape_slice(struct mp_node_def *n,
                       const struct mp_node_def *const *in,
                       struct mp_error *err)
{
    int axis = n->attr.axis;
    int64_t count = n->dim[0];

    like(n, in[0]);
    if (axis < 0 || axis >= n->ndim || n->attr.start < 0 || count < 1 ||
        n->attr.start + count > n->dim[axis])
        return bad(n, in, err, "out of range");
    n->dim[axis] = count;
    return 0;
}

static int shape_flip(struct mp_node_def *n,
                      const struct mp_node_def *const *in, struct mp_error *err)
{
    if (n->attr.axis < 0 || n->attr.axis >= in[0]->ndim)
        return bad(n, in, err, "no such axis");
    like(n, in[0]);
    return 0;
}

static int shape_reshape(struct mp_node_def *n,
                         const struct mp_node_def *const *in,
                         struct mp_error *err)
{
    int64_t have = mp_shape_count(in[0]->ndim, in[0]->dim), known = 1;
    int open = -1;

    for (int i = 0; i < n->ndim; i++) {
        if (n->dim[i] == -1 && open < 0)
            open = i;
        else if (n->dim[i] < 1)
            return bad(n, in, err, "a dimension is below 1");
        else
            known *= n->dim[i];
    }
    if (open >= 0 && known > 0 && have % known == 0)
        n->dim[open] = have / known;
    if (mp_shape_count(n->ndim, n->dim) != have)
        return bad(n, in, err, "the number of elements changes");
    n->dtype = in[0]->dtype;
    return 0;
}

/* RESIZE, POOL and PAD: the target size stands in dim[1], dim[2]. */
static int shape_spatial(struct mp_node_def *n,
                         const struct mp_node_def *const *in,
                         struct mp_error *err)
{
    const struct mp_node_def *x = in[0];
    int64_t h = n->dim[1], w = n->dim[2];

    if (x->ndim != 4 || x->dtype != MP_F32)
        return bad(n, in, err, "needs f32 NxHxWxC");
    if (h < 1 || w < 1 || h > INT32_MAX || w > INT32_MAX)
        return bad(n, in, err, "the target size is out of range");
    if (n->op == MP_OP_PAD &&
        (n->attr.start < 0 || n->attr.left < 0 ||
         n->attr.start + x->dim[1] > h || n->attr.left + x->dim[2] > w))
        return bad(n, in, err, "does not fit into the target");
    like(n, x);
    n->dim[1] = h;
    n->dim[2] = w;
    return 0;
}

static int shape_argmax(struct mp_node_def *n,
                        const struct mp_node_def *const *in,
                        struct mp_error *err)
{
    if (in[0]->ndim < 2)
        return bad(n, in, err, "needs two dimensions or more");
    like(n, in[0]);
    n->ndim--;
    n->dtype = MP_I32;
    return 0;
}

static int shape_heatmap_peaks(struct mp_node_def *n,
                               const struct mp_node_def *const *in,
                               struct mp_error *err)
{
    const struct mp_node_def *x = in[0];

    if (x->ndim != 4 || x->dtype != MP_F32)
        return bad(n, in, err, "needs f32 NxHxWxC");
    n->dtype = MP_F32;
    n->ndim = 3;
    n->dim[0] = x->dim[0];
    n->dim[1] = x->dim[3];
    n->dim[2] = 3;
    return 0;
}

static int shape_float(struct mp_node_def *n,
                       const struct mp_node_def *const *in,
                       struct mp_error *err)
{
    if (in[0]->dtype != MP_U8 && in[0]->dtype != MP_F32)
        return bad(n, in, err, "needs u8 or f32");
    like(n, in[0]);
    n->dtype = MP_F32;
    return 0;
}

/* Names come from the one list in backend.h. */
static const struct {
#define X(id, name) char id[sizeof name];
    MP_OPS(X)
#undef X
} names = {
#define X(id, name) name,
    MP_OPS(X)
#undef X
};

/* clang-format off */
const struct mp_op_row mp_op_table[MP_OP_COUNT] = {
#define ROW(id, least, most, rule, reference)                                  \
    [MP_OP_##id] = {names.id, least, most, rule, reference}
    /*  op          inputs  shape            reference */
    ROW(INPUT,      0, 0,   shape_leaf,      NULL),
    ROW(WEIGHT,     0, 0,   shape_leaf,      NULL),
    ROW(CONST,      0, 0,   shape_leaf,      NULL),
    ROW(CONV2D,     2, 4,   shape_conv2d,    mp_ref_conv2d),
    ROW(DECONV2D,   2, 3,   shape_deconv2d,  mp_ref_deconv2d),
    ROW(ATTENTION,  3, 3,   shape_attention, mp_ref_attention),
    ROW(GROUP_NORM, 3, 3,   shape_norm,      mp_ref_group_norm),
    ROW(LAYER_NORM, 3, 3,   shape_norm,      mp_ref_layer_norm),
    ROW(BATCH_NORM, 5, 5,   shape_norm,      mp_ref_batch_norm),
    ROW(ACT,        1, 1,   shape_act,       mp_ref_act),
    ROW(GEGLU,      1, 1,   shape_geglu,     mp_ref_geglu),
    ROW(ADD,        2, 2,   shape_binary,    mp_ref_binary),
    ROW(MUL,        2, 2,   shape_binary,    mp_ref_binary),
    ROW(CONCAT,     1, MP_MAX_IN, shape_concat, mp_ref_concat),
    ROW(SLICE,      1, 1,   shape_slice,     mp_ref_slice),
    ROW(RESHAPE,    1, 1,   shape_reshape,   mp_ref_copy),
    ROW(RESIZE,     1, 1,   shape_spatial,   mp_ref_resize),
    ROW(POOL,       1, 1,   shape_spatial,   mp_ref_pool),
    ROW(PAD,        1, 1,   shape_spatial,   mp_ref_pad),
    ROW(FLIP,       1, 1,   shape_flip,      mp_ref_flip),
    ROW(SOFTMAX,    1, 1,   shape_act,       mp_ref_softmax),
    ROW(ARGMAX,     1, 1,   shape_argmax,    mp_ref_argmax),
    ROW(HEATMAP_PEAKS, 1, 1, shape_heatmap_peaks, mp_ref_heatmap_peaks),
    ROW(FLOAT,      1, 1,   shape_float,     mp_ref_float),
};
/* clang-format on */
