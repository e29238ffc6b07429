/* SPDX-License-Identifier: MIT */
/*
 * conv.c - convolutions, linear layers and transposed convolutions on oneDNN,
 * channels last, with bias, residual and activation in one primitive.
 *
 * A linear layer over N,T,C is a 1x1 convolution over N x T x 1: measured
 * faster than oneDNN's matmul. A transposed 2x2 convolution with stride 2 is a
 * product to 4K channels whose results are then spread: oneDNN's own runs at a
 * few per cent of the peak there.
 */
#include <stdlib.h>
#include <string.h>
#include "cpu/cpu.h"

int cpu_status(dnnl_status_t s, const char *what, struct mp_error *err)
{
    switch (s) {
    case dnnl_success:
        return 0;
    case dnnl_out_of_memory:
        return mp_fail(err, MP_ENOMEM, "%s: out of memory", what);
    case dnnl_unimplemented:
        return mp_fail(err, MP_ENOTSUP,
                       "%s: oneDNN has nothing for this shape and type", what);
    default:
        return mp_fail(err, MP_EINVAL, "%s: oneDNN status %d", what, (int)s);
    }
}

/* A convolution as oneDNN sees it. */
struct shape {
    dnnl_dim_t n, h, w, c, oh, ow, k, r, s;
    struct mp_conv p;
    int transposed, spread; /* spread: 2x2 stride 2, see above */
};

static dnnl_data_type_t type_of(enum mp_dtype t)
{
    return t == MP_BF16 ? dnnl_bf16 : dnnl_f32;
}

static void shape_of(struct shape *q, const struct mp_step *s,
                     const struct mp_value *v)
{
    const struct mp_value *x = &v[s->in[0]], *w = &v[s->in[1]];
    const struct mp_value *y = &v[s->out];

    memset(q, 0, sizeof *q);
    q->transposed = s->op == MP_OP_DECONV2D;
    q->p = s->attr.conv;
    q->c = w->dim[q->transposed ? 0 : 1];
    q->k = w->dim[q->transposed ? 1 : 0];
    q->r = w->ndim == 4 ? w->dim[2] : 1;
    q->s = w->ndim == 4 ? w->dim[3] : 1;
    q->n = x->dim[0];
    if (x->ndim == 4) {
        q->h = x->dim[1];
        q->w = x->dim[2];
        q->oh = y->dim[1];
        q->ow = y->dim[2];
    } else { /* rows of a matrix */
        q->h = q->oh = x->ndim == 3 ? x->dim[1] : 1;
        q->w = q->ow = 1;
    }
    q->spread = q->transposed && q->r == 2 && q->s == 2 && q->p.stride == 2 &&
                q->p.top == 0 && q->p.bottom == 0;
    if (q->spread) {
        q->oh = q->h;
        q->ow = q->w;
        q->k *= 4;
        q->r = q->s = 1;
    }
    if (q->r == 1 && q->s == 1 && q->p.stride == 1 && !q->p.top && !q->p.left &&
        !q->p.bottom && !q->p.right) {
        q->h *= q->w; /* all positions in one dimension */
        q->oh = q->h;
        q->w = q->ow = 1;
    }
}

static const struct {
    dnnl_alg_kind_t alg;
    float alpha;
} act_table[] = {
    [MP_RELU] = {dnnl_eltwise_relu, 0},
    [MP_SILU] = {dnnl_eltwise_swish, 1},
    [MP_GELU] = {dnnl_eltwise_gelu_erf, 0},
    [MP_SIGMOID] = {dnnl_eltwise_logistic, 0},
};

static dnnl_status_t attributes(dnnl_primitive_attr_t *attr, int residual,
                                int act)
{
    dnnl_post_ops_t ops = NULL;
    dnnl_status_t st = dnnl_primitive_attr_create(attr);

    if (st == dnnl_success)
        st = dnnl_primitive_attr_set_scratchpad_mode(*attr,
                                                     dnnl_scratchpad_mode_user);
    if (st == dnnl_success)
        st = dnnl_post_ops_create(&ops);
    if (st == dnnl_success && residual)
        st = dn_sum(ops);
    if (st == dnnl_success && act)
        st = dn_eltwise(ops, act_table[act].alg, act_table[act].alpha);
    if (st == dnnl_success)
        st = dnnl_primitive_attr_set_post_ops(*attr, ops);
    if (ops)
        dnnl_post_ops_destroy(ops);
    return st;
}

/* Weights as the checkpoint has them: K,C,R,S, or C,K,R,S for transposed
 * ones, where a change of strides is enough. */
static dnnl_status_t plain_desc(dn_own_desc *d, const struct shape *q,
                                enum mp_dtype type)
{
    const dnnl_dims_t dim = {q->k, q->c, q->r, q->s};
    int swapped = q->transposed && !q->spread;

    return dn_desc_new(d, 4, dim, type_of(type),
                       swapped ? dnnl_iohw : dnnl_oihw);
}

struct descs {
    dn_own_desc src, weights, bias, dst;
    int exact; /* all in f32 */
};

static dnnl_status_t describe(struct descs *d, const struct shape *q,
                              enum mp_dtype from, enum mp_dtype to)
{
    const dnnl_dims_t src = {q->n, q->c, q->h, q->w};
    const dnnl_dims_t weights = {q->k, q->c, q->r, q->s};
    const dnnl_dims_t bias = {q->k}, dst = {q->n, q->k, q->oh, q->ow};
    dnnl_status_t st;

    st = dn_desc_new(&d->src, 4, src, type_of(from), dnnl_nhwc);
    if (st == dnnl_success)
        st = dn_desc_new(&d->weights, 4, weights, type_of(from),
                         dnnl_format_tag_any);
    if (st == dnnl_success)
        st = dn_desc_new(&d->bias, 1, bias, dnnl_f32, dnnl_a);
    if (st == dnnl_success)
        st = dn_desc_new(&d->dst, 4, dst, type_of(to), dnnl_nhwc);
    return st;
}

static void descs_free(struct descs *d)
{
    dn_desc_free(&d->src);
    dn_desc_free(&d->weights);
    dn_desc_free(&d->bias);
    dn_desc_free(&d->dst);
}

/* oneDNN's direct convolutions add up a result in one f32 chain; its GEMM adds
 * partial sums, with half the rounding error. In small convolutions, where
 * time does not matter, take that. */
#define SMALL_CONV ((dnnl_dim_t)200 << 20) /* multiply-adds */

static const char *wanted(const struct shape *q, int exact)
{
    dnnl_dim_t products = q->n * q->oh * q->ow * q->k * q->c * q->r * q->s;

    return exact && q->r > 1 && !q->transposed && products < SMALL_CONV ? "gemm"
                                                                        : NULL;
}

static dnnl_status_t primitive_desc(dnnl_primitive_desc_t *pd,
                                    const struct mp_plan *plan,
                                    const struct shape *q,
                                    const struct descs *d, int bias,
                                    int residual, int act)
{
    struct dn_conv c = {
        .transposed = q->transposed && !q->spread,
        .src = dn_borrow(&d->src),
        .weights = dn_borrow(&d->weights),
        .bias = bias ? dn_borrow(&d->bias) : NULL,
        .dst = dn_borrow(&d->dst),
        .stride = {q->p.stride, q->p.stride},
        .pad_l = {q->p.top, q->p.left},
        .pad_r = {q->p.bottom, q->p.right},
    };
    dnnl_primitive_attr_t attr = NULL;
    dnnl_status_t st = attributes(&attr, residual, act);

    if (q->spread)
        c.stride[0] = c.stride[1] = 1;
    if (c.transposed) { /* bottom is the output padding there */
        c.pad_l[1] = q->p.top;
        c.pad_r[0] = c.pad_r[1] = q->p.top - q->p.bottom;
    }
    if (st == dnnl_success)
        st = dn_conv_new(pd, plan->device->engine, &c, attr,
                         wanted(q, d->exact));
    if (attr)
        dnnl_primitive_attr_destroy(attr);
    return st;
}

static dnnl_status_t memory(dnnl_memory_t *m, dn_desc d,
                            const struct mp_plan *plan, void *at)
{
    return dnnl_memory_create(m, d, plan->device->engine, at);
}

/* Weights from the arena: reordered into scratch memory at every run. */
static int variable_weights(struct cpu_step *c, struct mp_plan *plan,
                            dn_desc plain, dn_desc want, struct mp_error *err)
{
    dnnl_primitive_desc_t pd = NULL;
    dnnl_status_t st;

    st = dnnl_reorder_primitive_desc_create(&pd, plain, plan->device->engine,
                                            want, plan->device->engine, NULL);
    if (st == dnnl_success)
        st = dnnl_primitive_create(&c->unpack, pd);
    if (st == dnnl_success)
        st = memory(&c->plain, plain, plan, NULL);
    c->weights_at = c->scratch;
    c->scratch += (dnnl_memory_desc_get_size(want) + 63) / 64 * 64;
    if (pd)
        dnnl_primitive_desc_destroy(pd);
    return cpu_status(st, "weights", err);
}

static int take_weights(struct cpu_step *c, struct mp_plan *plan,
                        const struct mp_program *p, const struct mp_step *s,
                        const struct shape *q, dn_desc want,
                        struct mp_error *err)
{
    const struct mp_value *w = &p->value[s->in[1]];
    dn_own_desc plain = {0};
    int rc = cpu_status(plain_desc(&plain, q, w->dtype), "weights", err);

    if (!rc && w->place == MP_CONSTANT)
        rc = cpu_pack(&c->constant[1], plan, p, s->in[1],
                      q->spread ? SPREAD_WEIGHTS : AS_GIVEN, want,
                      dn_borrow(&plain), err);
    else if (!rc && q->spread)
        rc = mp_fail(err, MP_ENOTSUP,
                     "deconv2d: 2x2 weights that are no constant");
    else if (!rc)
        rc = variable_weights(c, plan, dn_borrow(&plain), want, err);
    dn_desc_free(&plain);
    if (!rc)
        rc = cpu_status(memory(&c->weights, want, plan,
                               c->constant[1] ? c->constant[1]->data : NULL),
                        "weights", err);
    return rc;
}

static int take_bias(struct cpu_step *c, struct mp_plan *plan,
                     const struct mp_program *p, const struct mp_step *s,
                     const struct shape *q, dn_desc desc, struct mp_error *err)
{
    const struct mp_value *b = &p->value[s->in[2]];
    int rc = 0;

    if (b->place != MP_CONSTANT && (b->dtype != MP_F32 || q->spread))
        return mp_fail(err, MP_ENOTSUP,
                       "conv2d: a bias that is neither constant nor f32");
    if (b->place == MP_CONSTANT)
        rc = cpu_pack(&c->constant[2], plan, p, s->in[2],
                      q->spread ? SPREAD_BIAS : AS_GIVEN, NULL, NULL, err);
    if (!rc)
        rc = cpu_status(memory(&c->bias, desc, plan,
                               c->constant[2] ? c->constant[2]->data : NULL),
                        "bias", err);
    return rc;
}

static int create(struct cpu_step *c, struct mp_plan *plan,
                  const struct mp_program *p, const struct mp_step *s,
                  const struct shape *q, const struct descs *d,
                  const_dnnl_primitive_desc_t pd, struct mp_error *err)
{
    const struct mp_value *y = &p->value[s->out];
    dn_desc pad = dn_query(pd, dnnl_query_scratchpad_md);
    const char *info = "onednn";
    dnnl_status_t st = dnnl_primitive_create(&c->prim, pd);
    int rc;

    dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, &info);
    c->name = info;
    if (st == dnnl_success)
        st = memory(&c->src, dn_borrow(&d->src), plan, NULL);
    if (st == dnnl_success)
        st = memory(&c->dst, dn_borrow(&d->dst), plan, NULL);
    if (st == dnnl_success)
        st = memory(&c->pad, pad, plan, NULL);
    rc = cpu_status(st, "conv2d", err);
    c->scratch = (dnnl_memory_desc_get_size(pad) + 63) / 64 * 64;
    if (!rc)
        rc = take_weights(c, plan, p, s, q, dn_query(pd, dnnl_query_weights_md),
                          err);
    if (!rc && s->in[2] != MP_NO_VALUE)
        rc = take_bias(c, plan, p, s, q, dn_borrow(&d->bias), err);
    c->spread = q->spread;
    if (c->narrow) {
        c->narrow_at = c->scratch;
        c->scratch += (p->value[s->in[0]].count * 2 + 63) / 64 * 64;
    }
    if (c->spread || c->add_after) {
        c->result_at = c->scratch;
        c->scratch += y->count * mp_dtype_size(y->dtype);
    }
    return rc;
}

static int has(const struct mp_step *s, int k)
{
    return k < s->nin && s->in[k] != MP_NO_VALUE;
}

/* Constants beside weights and bias: where the graph folds. */
static int take_constants(struct cpu_step *c, struct mp_plan *plan,
                          const struct mp_program *p, const struct mp_step *s,
                          struct mp_error *err)
{
    int rc = 0;

    for (int k = 0; k < 4 && !rc; k += 3)
        if (has(s, k) && p->value[s->in[k]].place == MP_CONSTANT)
            rc = cpu_pack(&c->constant[k], plan, p, s->in[k], AS_GIVEN, NULL,
                          NULL, err);
    return rc;
}

int cpu_conv_compile(struct mp_plan *plan, const struct mp_program *p, size_t i,
                     struct mp_error *err)
{
    const struct mp_step *s = &p->step[i];
    const struct mp_value *x = &p->value[s->in[0]], *y = &p->value[s->out];
    struct cpu_step *c = &plan->cpu[i];
    dnnl_primitive_desc_t pd = NULL;
    struct descs d = {0};
    struct shape q;
    enum mp_dtype from;
    dnnl_status_t st;
    int rc = take_constants(c, plan, p, s, err);

    if (s->attr.act >= (int)(sizeof act_table / sizeof *act_table))
        rc = mp_fail(err, MP_ENOTSUP, "conv2d: activation %d", s->attr.act);
    if (rc)
        return rc;
    shape_of(&q, s, p->value);
    from = y->dtype == MP_BF16 ? MP_BF16 : x->dtype;
    c->narrow = from != x->dtype;
    d.exact = from == MP_F32 && y->dtype == MP_F32;
    st = describe(&d, &q, from, y->dtype);
    if (st == dnnl_success)
        st = primitive_desc(&pd, plan, &q, &d, has(s, 2), has(s, 3),
                            s->attr.act);
    if (st == dnnl_unimplemented && has(s, 3)) {
        /* bf16 to f32: oneDNN sums into its own type only */
        c->add_after = 1;
        st = primitive_desc(&pd, plan, &q, &d, has(s, 2), 0, MP_ACT_NONE);
    }
    c->copy_residual =
        has(s, 3) && !c->add_after &&
        (c->constant[3] || p->value[s->in[3]].offset != y->offset);
    rc = cpu_status(st, "conv2d", err);
    if (!rc)
        rc = create(c, plan, p, s, &q, &d, pd, err);
    if (pd)
        dnnl_primitive_desc_destroy(pd);
    descs_free(&d);
    return rc;
}

void cpu_conv_free(struct cpu_step *c)
{
    dnnl_memory_t *const m[] = {&c->src, &c->weights, &c->bias,
                                &c->dst, &c->pad,     &c->plain};

    for (size_t i = 0; i < sizeof m / sizeof *m; i++)
        if (*m[i])
            dnnl_memory_destroy(*m[i]);
    if (c->prim)
        dnnl_primitive_destroy(c->prim);
    if (c->unpack)
        dnnl_primitive_destroy(c->unpack);
}

/* z: N,H,W,(2,2,K) -> y: N,2H,2W,K; K of bytes each */
static void spread(char *y, const char *z, const int64_t *dim, size_t k)
{
    int64_t n = dim[0] * dim[1], w = dim[2];

#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < w; j++)
            for (int r = 0; r < 2; r++)
                memcpy(y + (size_t)((2 * i + r) * 2 * w + 2 * j) * k,
                       z + (size_t)((i * w + j) * 4 + 2 * r) * k, 2 * k);
}

/* Where input k lies: with the constants or in the arena. */
static const void *input(const struct mp_plan *plan, size_t i, int k,
                         const char *arena)
{
    const struct cpu_step *c = &plan->cpu[i];

    if (c->constant[k])
        return c->constant[k]->data;
    return arena + plan->value[plan->step[i].in[k]].offset;
}

static struct k_in residual(const struct mp_plan *plan, size_t i,
                            const char *arena)
{
    return (struct k_in){input(plan, i, 3, arena),
                         plan->cpu[i].constant[3]
                             ? MP_F32
                             : plan->value[plan->step[i].in[3]].dtype};
}

/* The input as the primitive takes it. */
static void *source(const struct mp_plan *plan, size_t i, const char *arena)
{
    const struct cpu_step *c = &plan->cpu[i];
    int64_t n = (int64_t)plan->value[plan->step[i].in[0]].count;
    char *narrow = (char *)plan->scratch + c->narrow_at;

    if (!c->narrow)
        return (void *)input(plan, i, 0, arena);
    k_copy((struct k_out){narrow, MP_BF16}, n,
           (struct k_in){input(plan, i, 0, arena), MP_F32}, n, 1, n);
    return narrow;
}

static void execute(const struct mp_plan *plan, dnnl_primitive_t prim, int n,
                    const dnnl_exec_arg_t *arg)
{
    dnnl_primitive_execute(prim, plan->device->stream, n, arg);
    dnnl_stream_wait(plan->device->stream);
}

void cpu_conv_run(const struct mp_plan *plan, size_t i, char *arena)
{
    const struct mp_step *s = &plan->step[i];
    const struct cpu_step *c = &plan->cpu[i];
    const struct mp_value *y = &plan->value[s->out];
    char *scratch = plan->scratch, *out = arena + y->offset;
    int64_t n = (int64_t)y->count;
    dnnl_exec_arg_t arg[5] = {{DNNL_ARG_SRC, c->src},
                              {DNNL_ARG_WEIGHTS, c->weights},
                              {DNNL_ARG_DST, c->dst},
                              {DNNL_ARG_SCRATCHPAD, c->pad},
                              {DNNL_ARG_BIAS, c->bias}};

    dnnl_memory_set_data_handle(c->src, source(plan, i, arena));
    dnnl_memory_set_data_handle(c->pad, scratch);
    dnnl_memory_set_data_handle(
        c->dst, c->spread || c->add_after ? scratch + c->result_at : out);
    if (c->unpack) {
        const dnnl_exec_arg_t from[2] = {{DNNL_ARG_FROM, c->plain},
                                         {DNNL_ARG_TO, c->weights}};

        dnnl_memory_set_data_handle(c->plain, (void *)input(plan, i, 1, arena));
        dnnl_memory_set_data_handle(c->weights, scratch + c->weights_at);
        execute(plan, c->unpack, 2, from);
    }
    if (c->bias && !c->constant[2])
        dnnl_memory_set_data_handle(c->bias, (void *)input(plan, i, 2, arena));
    if (c->copy_residual)
        k_copy((struct k_out){out, y->dtype}, n, residual(plan, i, arena), n, 1,
               n);
    execute(plan, c->prim, c->bias ? 5 : 4, arg);
    if (c->spread)
        spread(out, scratch + c->result_at, plan->value[s->in[0]].dim,
               (size_t)y->dim[3] * mp_dtype_size(y->dtype));
    if (c->add_after)
        k_add((struct k_out){out, y->dtype},
              (struct k_in){scratch + c->result_at, y->dtype},
              residual(plan, i, arena), 1, &n, 1, &n, s->attr.act);
}
