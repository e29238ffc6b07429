/* SPDX-License-Identifier: MIT */
/* own.c - steps that kernels.h computes: shapes and places from the program. */
#include <string.h>
#include "cpu/cpu.h"

/* One step while it runs or is measured. */
struct call {
    const struct mp_step *s;
    const struct mp_value *v;
    const struct cpu_step *c;
    void *const *at;
    void *scratch;
    int threads;
};

static const struct mp_value *in_value(const struct call *k, int i)
{
    return &k->v[k->s->in[i]];
}

static struct k_in in(const struct call *k, int i)
{
    const struct packed *c = k->c->constant[i];

    if (c)
        return (struct k_in){c->data, c->type};
    return (struct k_in){k->at[k->s->in[i]], in_value(k, i)->dtype};
}

static struct k_out out(const struct call *k)
{
    const struct mp_value *y = &k->v[k->s->out];

    return (struct k_out){k->at[k->s->out], y->dtype};
}

static int64_t last(const struct mp_value *v)
{
    return v->dim[v->ndim - 1];
}

static int64_t rows(const struct mp_value *v)
{
    return (int64_t)v->count / last(v);
}

/* ---- attention ---- */

static struct k_attention attention_of(const struct call *k)
{
    const struct mp_value *q = in_value(k, 0), *kv = in_value(k, 1);
    int64_t c = q->dim[2], t = q->dim[1], s = kv->dim[1];
    int64_t batch = kv->dim[0] == 1 ? 0 : s * c;

    return (struct k_attention){
        .n = q->dim[0],
        .t = t,
        .s = s,
        .heads = k->s->attr.heads,
        .d = c / k->s->attr.heads,
        .scale = k->s->attr.scale,
        .qt = q->dtype,
        .kvt = k->c->constant[1] ? k->c->constant[1]->type : kv->dtype,
        .yt = k->v[k->s->out].dtype,
        .q = {t * c, c},
        .k = {batch, c},
        .v = {batch, c},
        .y = {t * c, c},
    };
}

static size_t attention_scratch(const struct call *k)
{
    struct k_attention a = attention_of(k);

    return k_attention_scratch(&a, k->threads);
}

static void attention(const struct call *k)
{
    struct k_attention a = attention_of(k);

    k_attention(&a, out(k).p, in(k, 0).p, in(k, 1).p, in(k, 2).p, k->scratch);
}

/* ---- norms ---- */

static size_t group_norm_scratch(const struct call *k)
{
    const struct mp_value *x = in_value(k, 0);

    return k_group_norm_scratch(x->dim[0], rows(x) / x->dim[0], last(x),
                                k->s->attr.groups);
}

static void group_norm(const struct call *k)
{
    const struct mp_value *x = in_value(k, 0);
    const struct mp_attr *a = &k->s->attr;

    k_group_norm(out(k), in(k, 0), in(k, 1), in(k, 2), x->dim[0],
                 rows(x) / x->dim[0], last(x), a->groups, a->eps, a->act,
                 k->scratch);
}

static size_t layer_norm_scratch(const struct call *k)
{
    return k_layer_norm_scratch(last(in_value(k, 0)));
}

static void layer_norm(const struct call *k)
{
    const struct mp_value *x = in_value(k, 0);

    k_layer_norm(out(k), in(k, 0), in(k, 1), in(k, 2), rows(x), last(x),
                 k->s->attr.eps, k->s->attr.act, k->scratch);
}

static size_t batch_norm_scratch(const struct call *k)
{
    return k_batch_norm_scratch(last(in_value(k, 0)));
}

static void batch_norm(const struct call *k)
{
    const struct mp_value *x = in_value(k, 0);

    k_batch_norm(out(k), in(k, 0), in(k, 1), in(k, 2), in(k, 3), in(k, 4),
                 rows(x), last(x), k->s->attr.eps, k->s->attr.act, k->scratch);
}

/* ---- pointwise ---- */

static void act(const struct call *k)
{
    k_act(out(k), in(k, 0), (int64_t)k->v[k->s->out].count, k->s->attr.act);
}

static void geglu(const struct call *k)
{
    const struct mp_value *y = &k->v[k->s->out];

    k_geglu(out(k), in(k, 0), rows(y), last(y));
}

static void binary(const struct call *k)
{
    const struct mp_value *a = in_value(k, 0), *b = in_value(k, 1);

    (k->s->op == MP_OP_ADD ? k_add : k_mul)(out(k), in(k, 0), in(k, 1), a->ndim,
                                            a->dim, b->ndim, b->dim,
                                            k->s->attr.act);
}

static void to_float(const struct call *k)
{
    int64_t n = (int64_t)k->v[k->s->out].count;

    k_copy(out(k), n, in(k, 0), n, 1, n);
}

/* ---- from place to place ---- */

/* Elements from one index of axis to the next. */
static int64_t unit(const struct mp_value *v, int axis)
{
    int64_t n = 1;

    for (int i = axis + 1; i < v->ndim; i++)
        n *= v->dim[i];
    return n;
}

static char *offset(void *p, enum mp_dtype t, int64_t elements)
{
    return (char *)p + (size_t)elements * mp_dtype_size(t);
}

static void concat(const struct call *k)
{
    const struct mp_value *y = &k->v[k->s->out];
    int axis = k->s->attr.axis;
    int64_t one = unit(y, axis), row = one * y->dim[axis];
    int64_t n = (int64_t)y->count / row, at = 0;

    for (int i = 0; i < k->s->nin; i++) {
        int64_t part = one * in_value(k, i)->dim[axis];
        struct k_out to = out(k);

        to.p = offset(to.p, to.t, at);
        k_copy(to, row, in(k, i), part, n, part);
        at += part;
    }
}

static void slice(const struct call *k)
{
    const struct mp_value *x = in_value(k, 0), *y = &k->v[k->s->out];
    int axis = k->s->attr.axis;
    int64_t one = unit(x, axis), row = one * x->dim[axis];
    int64_t part = one * y->dim[axis];
    struct k_in from = in(k, 0);

    from.p = offset((void *)from.p, from.t, one * k->s->attr.start);
    k_copy(out(k), part, from, row, (int64_t)x->count / row, part);
}

static size_t resize_scratch(const struct call *k)
{
    const int64_t *x = in_value(k, 0)->dim;

    return k->s->attr.nearest
               ? 0
               : k_resize_bilinear_scratch(x[2], x[3], k->v[k->s->out].dim[2],
                                           k->threads);
}

static void resize(const struct call *k)
{
    const int64_t *x = in_value(k, 0)->dim, *y = k->v[k->s->out].dim;

    if (k->s->attr.nearest)
        k_resize_nearest(out(k), in(k, 0), x[0], x[1], x[2], x[3], y[1], y[2]);
    else
        k_resize_bilinear(out(k), in(k, 0), x[0], x[1], x[2], x[3], y[1], y[2],
                          k->scratch);
}

static void pool(const struct call *k)
{
    const int64_t *x = in_value(k, 0)->dim, *y = k->v[k->s->out].dim;

    k_pool_avg(out(k), in(k, 0), x[0], x[1], x[2], x[3], y[1], y[2]);
}

static void pad(const struct call *k)
{
    const int64_t *x = in_value(k, 0)->dim, *y = k->v[k->s->out].dim;

    k_pad(out(k), in(k, 0), x[0], x[1], x[2], x[3], k->s->attr.start,
          k->s->attr.left, y[1], y[2]);
}

static void flip(const struct call *k)
{
    const struct mp_value *x = in_value(k, 0);
    int axis = k->s->attr.axis;
    int64_t inner = 1;

    for (int i = axis + 1; i < x->ndim; i++)
        inner *= x->dim[i];
    k_flip(out(k), in(k, 0), (int64_t)x->count / inner / x->dim[axis],
           x->dim[axis], inner);
}

static void softmax(const struct call *k)
{
    const struct mp_value *x = in_value(k, 0);

    k_softmax(out(k), in(k, 0), rows(x), last(x));
}

static void argmax(const struct call *k)
{
    const struct mp_value *x = in_value(k, 0);

    k_argmax(out(k).p, in(k, 0), rows(x), last(x));
}

static void heatmap_peaks(const struct call *k)
{
    const int64_t *x = in_value(k, 0)->dim;

    k_heatmap_peaks(out(k).p, in(k, 0).p, x[0], x[1], x[2], x[3]);
}

static const struct {
    void (*run)(const struct call *k);
    size_t (*scratch)(const struct call *k);
    const char *name;
} table[MP_OP_COUNT] = {
    [MP_OP_ATTENTION] = {attention, attention_scratch, "flash"},
    [MP_OP_GROUP_NORM] = {group_norm, group_norm_scratch, "own"},
    [MP_OP_LAYER_NORM] = {layer_norm, layer_norm_scratch, "own"},
    [MP_OP_BATCH_NORM] = {batch_norm, batch_norm_scratch, "own"},
    [MP_OP_ACT] = {act, NULL, "own"},
    [MP_OP_GEGLU] = {geglu, NULL, "own"},
    [MP_OP_ADD] = {binary, NULL, "own"},
    [MP_OP_MUL] = {binary, NULL, "own"},
    [MP_OP_CONCAT] = {concat, NULL, "own"},
    [MP_OP_SLICE] = {slice, NULL, "own"},
    [MP_OP_RESIZE] = {resize, resize_scratch, "own"},
    [MP_OP_POOL] = {pool, NULL, "own"},
    [MP_OP_PAD] = {pad, NULL, "own"},
    [MP_OP_FLIP] = {flip, NULL, "own"},
    [MP_OP_SOFTMAX] = {softmax, NULL, "own"},
    [MP_OP_ARGMAX] = {argmax, NULL, "own"},
    [MP_OP_HEATMAP_PEAKS] = {heatmap_peaks, NULL, "own"},
    [MP_OP_FLOAT] = {to_float, NULL, "own"},
};

/* Keys and values go into bf16 products with queries of that type. */
static enum form form_of(const struct mp_program *p, const struct mp_step *s,
                         int k)
{
    if (s->op == MP_OP_ATTENTION && k > 0 &&
        p->value[s->in[0]].dtype == MP_BF16)
        return AS_BF16;
    return AS_GIVEN;
}

int cpu_own_compile(struct mp_plan *plan, const struct mp_program *p, size_t i,
                    struct mp_error *err)
{
    const struct mp_step *s = &p->step[i];
    struct cpu_step *c = &plan->cpu[i];
    struct call k = {s, p->value, c, NULL, NULL, plan->device->threads};
    int rc = 0;

    if (!table[s->op].run)
        return mp_fail(err, MP_ENOTSUP, "cpu: no operation %d", (int)s->op);
    c->name = table[s->op].name;
    for (int j = 0; j < s->nin && !rc; j++)
        if (p->value[s->in[j]].place == MP_CONSTANT)
            rc = cpu_pack(&c->constant[j], plan, p, s->in[j], form_of(p, s, j),
                          NULL, NULL, err);
    if (!rc && table[s->op].scratch)
        c->scratch = table[s->op].scratch(&k);
    return rc;
}

void cpu_own_run(const struct mp_plan *plan, size_t i)
{
    const struct mp_step *s = &plan->step[i];
    struct call k = {.s = s,
                     .v = plan->value,
                     .c = &plan->cpu[i],
                     .at = plan->at,
                     .scratch = cpu_scratch(plan, i),
                     .threads = plan->device->threads};

    table[s->op].run(&k);
}
