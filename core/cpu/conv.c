/* SPDX-License-Identifier: MIT */
/*
 * conv.c - convolutions, linear layers and transposed convolutions on oneDNN,
 * channels last, with bias, residual and activation in one primitive.
 *
 * A linear layer over N,T,C is a 1x1 convolution over N x T x 1: measured
 * faster than oneDNN's matmul. Two shapes, in which oneDNN reaches a few per
 * cent of the peak, become a product of another shape (see ways): a transposed
 * 2x2 convolution with stride 2, and a convolution to very few channels.
 * Convolutions with more than one tap are blocks.c's, in bf16 large 3x3 ones.
 * Of a map that is enlarged first, the products are taken before that. A vector
 * times a matrix reads that as it lies.
 */
#include <stdlib.h>
#include <string.h>
#include "cpu/cpu.h"
#include "graph_impl.h"

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
        return mp_fail(err, MP_EINVAL, "%s: oneDNN says %s", what,
                       dnnl_status2str(s));
    }
}

/* A convolution as oneDNN sees it. */
struct shape {
    dnnl_dim_t n, h, w, c, oh, ow, k, r, s;
    struct mp_conv p;
    int transposed;
    int constants; /* weights and bias */
    int exact;     /* all in f32 */
    int narrow;    /* products of bf16 */
    int enlarged;  /* x is, before */
    int summed;    /* with a residual */
};

/* ---- ways to compute one: the first that fits ---- */

struct cpu_way {
    int (*fits)(const struct shape *q);
    void (*rewrite)(struct shape *q);
    enum form weights, bias;
    enum k_way how; /* of a kernel of ours */
    /* The primitive makes f32 products only: the rest is finish's. */
    int bare;
    /* The result from what the primitive gives in its place. */
    void (*finish)(const struct mp_plan *plan, size_t i, const void *z);
    size_t (*scratch)(const struct mp_plan *plan, size_t i); /* for it */
    /* Or a kernel of ours in the primitive's place, with scratch for that. */
    const char *name;
    int (*run)(const struct mp_plan *plan, size_t i, struct mp_error *err);
};

static int is_twos(const struct shape *q)
{
    return q->constants && q->transposed && q->r == 2 && q->s == 2 &&
           q->p.stride == 2 && q->p.top == 0 && q->p.bottom == 0;
}

static void as_product(struct shape *q)
{
    q->transposed = 0;
    q->p.stride = 1;
    q->oh = q->h;
    q->ow = q->w;
    q->k *= 4;
    q->r = q->s = 1;
}

/* z: N,H,W,(2,2,K) -> N,2H,2W,K */
static void spread(const struct mp_plan *plan, size_t i, const void *from)
{
    const struct mp_value *x = &plan->value[plan->step[i].in[0]];
    const struct mp_value *y = &plan->value[plan->step[i].out];
    size_t k = (size_t)y->dim[3] * mp_dtype_size(y->dtype);
    int64_t n = x->dim[0] * x->dim[1], w = x->dim[2];
    const char *z = from;
    char *out = plan->at[plan->step[i].out];

#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < n; row++)
        for (int64_t j = 0; j < w; j++)
            for (int r = 0; r < 2; r++)
                memcpy(out + (size_t)((2 * row + r) * 2 * w + 2 * j) * k,
                       z + (size_t)((row * w + j) * 4 + 2 * r) * k, 2 * k);
}

/* Fewer products than channels: oneDNN would fill up to 16 outputs. */
static int is_thin(const struct shape *q)
{
    return q->constants && !q->transposed && q->r * q->s > 1 && q->k <= 4 &&
           q->k * q->r * q->s <= q->c;
}

static void as_taps(struct shape *q)
{
    q->k *= q->r * q->s;
    q->r = q->s = 1;
    q->p = (struct mp_conv){.stride = 1};
    q->oh = q->h;
    q->ow = q->w;
}

/* A picture's z: H,W,(R,S,K) -> row oy of OH,OW,K */
static void add_taps_row(float *out, const float *z, const float *bias,
                         const struct mp_conv *p, const int64_t *x,
                         const int64_t *y, const int64_t *w, int64_t oy)
{
    int64_t each = w[2] * w[3] * y[3]; /* products for a position */

    for (int64_t ox = 0; ox < y[2]; ox++, out += y[3]) {
        int64_t top = oy * p->stride - p->top, left = ox * p->stride - p->left;

        for (int64_t k = 0; k < y[3]; k++)
            out[k] = bias ? bias[k] : 0;
        for (int64_t r = 0; r < w[2]; r++)
            for (int64_t c = 0; c < w[3]; c++) {
                int64_t h = top + r, v = left + c;
                const float *from;

                if (h < 0 || h >= x[1] || v < 0 || v >= x[2])
                    continue;
                from = z + (h * x[2] + v) * each + (r * w[3] + c) * y[3];
                for (int64_t k = 0; k < y[3]; k++)
                    out[k] += from[k];
            }
    }
}

/* Where input k lies: with the constants or in memory. */
static const void *input(const struct mp_plan *plan, size_t i, int k)
{
    const struct cpu_step *c = &plan->cpu[i];

    if (c->constant[k])
        return c->constant[k]->data;
    return plan->at[plan->step[i].in[k]];
}

static struct k_in operand(const struct mp_plan *plan, size_t i, int k)
{
    return (struct k_in){input(plan, i, k),
                         plan->cpu[i].constant[k]
                             ? MP_F32
                             : plan->value[plan->step[i].in[k]].dtype};
}

static int has(const struct mp_step *s, int k)
{
    return k < s->nin && s->in[k] != MP_NO_VALUE;
}

static size_t sum_scratch(const struct mp_plan *plan, size_t i)
{
    return plan->value[plan->step[i].out].count * sizeof(float);
}

static void add_after(const struct mp_plan *plan, size_t i, struct k_in x);

static void add_taps(const struct mp_plan *plan, size_t i, const void *from)
{
    const struct mp_step *s = &plan->step[i];
    const int64_t *x = plan->value[s->in[0]].dim, *y = plan->value[s->out].dim;
    const int64_t *w = plan->value[s->in[1]].dim;
    const struct packed *bias = plan->cpu[i].constant[2];
    int64_t picture = x[1] * x[2] * w[2] * w[3] * y[3], row = y[2] * y[3];
    const float *z = from;
    float *sum = (float *)(cpu_scratch(plan, i) + plan->cpu[i].finish_at);

#pragma omp parallel for schedule(static)
    for (int64_t at = 0; at < y[0] * y[1]; at++)
        add_taps_row(sum + at * row, z + at / y[1] * picture,
                     bias ? bias->data : NULL, &s->attr.conv, x, y, w,
                     at % y[1]);
    add_after(plan, i, (struct k_in){sum, MP_F32});
}

/* Products of a map that is enlarged before: fewer if they are taken first. */
static int is_enlarged(const struct shape *q)
{
    return q->enlarged;
}

static struct k_enlarge enlarge_of(const struct mp_plan *plan, size_t i)
{
    const struct mp_step *s = &plan->step[i];
    const int64_t *x = plan->value[s->in[0]].dim;
    const int64_t *y = plan->value[s->out].dim;

    return (struct k_enlarge){
        .n = x[0],
        .h = x[1],
        .w = x[2],
        .yh = y[1],
        .yw = y[2],
        .k = y[3],
        .nearest = s->attr.nearest,
        .act = s->attr.act,
    };
}

static size_t enlarge_scratch(const struct mp_plan *plan, size_t i)
{
    struct k_enlarge a = enlarge_of(plan, i);

    return k_enlarge_scratch(&a, plan->device->threads);
}

static void enlarge(const struct mp_plan *plan, size_t i, const void *z)
{
    const struct mp_step *s = &plan->step[i];
    const struct mp_value *y = &plan->value[s->out];
    struct k_enlarge a = enlarge_of(plan, i);

    k_enlarge(&a, (struct k_out){plan->at[s->out], y->dtype}, z,
              has(s, 2) ? input(plan, i, 2) : NULL,
              has(s, 3) ? operand(plan, i, 3) : (struct k_in){0},
              cpu_scratch(plan, i) + plan->cpu[i].finish_at);
}

/* Where time does not matter. The size of the batch has no say in it: it must
 * not change results. */
#define SMALL_CONV ((dnnl_dim_t)200 << 20) /* multiply-adds of a picture */

static int is_small(const struct shape *q)
{
    return q->oh * q->ow * q->k * q->c * q->r * q->s < SMALL_CONV;
}

/* oneDNN's direct convolutions add up a result in one chain, k_conv does not:
 * it has a quarter of the error, and takes, on one thread of a Zen 4, 1.1 to
 * 1.2 times as long. So all of more than one tap are its own, but those of so
 * few channels that it would compute mostly zeros. */
#define CHANNELS 32 /* a multiple of which it computes */

static int is_ours(const struct shape *q)
{
    dnnl_dim_t computed = (q->k + CHANNELS - 1) / CHANNELS * CHANNELS;
    dnnl_dim_t most = is_small(q) ? 4 * q->k : 4 * q->k / 3;

    return q->constants && q->exact && !q->transposed && q->r * q->s > 1 &&
           q->r * q->s <= K_MOST_TAPS && q->c >= CHANNELS && computed <= most &&
           k_has_conv();
}

/* Winograd's way has 1/4 of the products, and 3.5 times the error: not where
 * time does not matter. On two threads of a Zen 3 it takes 1/2.5 of the direct
 * way's time at 16 tiles (16 x 16 of 1280 channels), 1/1.3 at 4. The size of
 * the batch has no say in it, either. */
#define TILES 4

static int has_tiles(const struct shape *q, dnnl_dim_t side, dnnl_dim_t tiles)
{
    return !q->transposed && q->r == 3 && q->s == 3 && q->p.stride == 1 &&
           q->p.top <= 1 && q->p.left <= 1 &&
           q->oh * q->ow >= side * side * tiles;
}

static int is_tiled(const struct shape *q)
{
    return is_ours(q) && !is_small(q) && has_tiles(q, 4, TILES);
}

/* In bf16 oneDNN's take, measured likewise, 1.6 to 2.2 times as long as
 * Winograd's way with 128 channels and more, 1.7 with 1280 in 8 x 8; 1.2 with
 * 64, as long or less with 32 and in 4 x 4. Packed weights of a full-size
 * network take 0.9 GB more. With AMX oneDNN's are the faster ones. */
#define TILES_BF16   16
#define WEIGHTS_BF16 (64 * 64) /* for each tap */

static int is_tiled_bf16(const struct shape *q)
{
    return q->constants && q->narrow && has_tiles(q, 2, TILES_BF16) &&
           q->c >= CHANNELS && q->k >= CHANNELS &&
           q->c * q->k >= WEIGHTS_BF16 && k_has_bf16() && !k_has_amx();
}

static struct k_conv conv_of(const struct mp_plan *plan, size_t i)
{
    const struct mp_step *s = &plan->step[i];
    const int64_t *x = plan->value[s->in[0]].dim;
    const int64_t *w = plan->value[s->in[1]].dim;
    const int64_t *y = plan->value[s->out].dim;
    const struct mp_conv *p = &s->attr.conv;

    return (struct k_conv){
        .n = x[0],
        .h = x[1],
        .w = x[2],
        .c = x[3],
        .yh = y[1],
        .yw = y[2],
        .k = y[3],
        .r = w[2],
        .s = w[3],
        .stride = p->stride,
        .top = p->top,
        .left = p->left,
        .way = plan->cpu[i].way->how,
        .act = s->attr.act,
    };
}

static size_t blocks_scratch(const struct mp_plan *plan, size_t i)
{
    struct k_conv a = conv_of(plan, i);

    return k_conv_scratch(&a, plan->device->threads);
}

/* For weights that are not packed before the step runs. */
static void *weights_room(const struct mp_plan *plan, size_t i)
{
    return cpu_scratch(plan, i) + plan->cpu[i].weights_at;
}

static int run_blocks(const struct mp_plan *plan, size_t i,
                      struct mp_error *err)
{
    const struct mp_step *s = &plan->step[i];
    const struct mp_value *y = &plan->value[s->out];
    const struct packed *w = plan->cpu[i].constant[1];
    struct k_conv a = conv_of(plan, i);
    const void *weights;
    int rc;

    a.plain = w->late && k_conv_plain(&a);
    rc = cpu_data(&weights, plan, w, a.plain, weights_room(plan, i), err);
    if (!rc)
        k_conv(&a, (struct k_out){plan->at[s->out], y->dtype},
               operand(plan, i, 0), weights,
               has(s, 2) ? input(plan, i, 2) : NULL,
               has(s, 3) ? operand(plan, i, 3) : (struct k_in){0},
               cpu_scratch(plan, i));
    return rc;
}

/* A vector of a picture times a matrix: to pack that would take longer. */
static int is_vector(const struct shape *q)
{
    return q->constants && q->exact && !q->summed && !q->transposed &&
           q->r * q->s == 1 && q->h * q->w == 1 && q->oh * q->ow == 1;
}

static size_t no_scratch(const struct mp_plan *plan, size_t i)
{
    (void)plan;
    (void)i;
    return 0;
}

static int run_product(const struct mp_plan *plan, size_t i,
                       struct mp_error *err)
{
    const struct mp_step *s = &plan->step[i];
    const struct mp_value *x = &plan->value[s->in[0]];
    const struct mp_value *y = &plan->value[s->out];
    int64_t c = x->dim[x->ndim - 1], k = y->dim[y->ndim - 1];
    float *out = plan->at[s->out];

    (void)err;
    k_product(out, input(plan, i, 0), input(plan, i, 1),
              has(s, 2) ? input(plan, i, 2) : NULL, (int64_t)y->count / k, k,
              c);
    k_act((struct k_out){out, MP_F32}, (struct k_in){out, MP_F32},
          (int64_t)y->count, s->attr.act);
    return 0;
}

static int is_any(const struct shape *q)
{
    (void)q;
    return 1;
}

static void as_given(struct shape *q)
{
    (void)q;
}

static const struct cpu_way ways[] = {
    {.fits = is_enlarged,
     .rewrite = as_taps,
     .weights = TAP_WEIGHTS,
     .bare = 1,
     .finish = enlarge,
     .scratch = enlarge_scratch},
    {.fits = is_twos,
     .rewrite = as_product,
     .weights = SPREAD_WEIGHTS,
     .bias = SPREAD_BIAS,
     .finish = spread},
    {.fits = is_thin,
     .rewrite = as_taps,
     .weights = TAP_WEIGHTS,
     .bare = 1,
     .finish = add_taps,
     .scratch = sum_scratch},
    {.fits = is_vector,
     .rewrite = as_given,
     .name = "product",
     .scratch = no_scratch,
     .run = run_product},
    {.fits = is_tiled,
     .rewrite = as_given,
     .weights = BLOCK_WEIGHTS,
     .how = K_WINOGRAD,
     .name = "winograd",
     .scratch = blocks_scratch,
     .run = run_blocks},
    {.fits = is_tiled_bf16,
     .rewrite = as_given,
     .weights = WINOGRAD_BF16,
     .how = K_WINOGRAD_BF16,
     .name = "winograd_bf16",
     .scratch = blocks_scratch,
     .run = run_blocks},
    {.fits = is_ours,
     .rewrite = as_given,
     .weights = BLOCK_WEIGHTS,
     .how = K_DIRECT,
     .name = "blocks",
     .scratch = blocks_scratch,
     .run = run_blocks},
    {.fits = is_any, .rewrite = as_given},
};

static dnnl_data_type_t type_of(enum mp_dtype t)
{
    return t == MP_BF16 ? dnnl_bf16 : dnnl_f32;
}

static int is_constant(const struct mp_step *s, const struct mp_value *v, int k)
{
    return s->in[k] == MP_NO_VALUE || v[s->in[k]].place == MP_CONSTANT;
}

static void shape_of(struct shape *q, const struct mp_step *s,
                     const struct mp_value *v)
{
    const struct mp_value *x = &v[s->in[0]], *w = &v[s->in[1]];
    const struct mp_value *y = &v[s->out];

    memset(q, 0, sizeof *q);
    q->transposed = s->op == MP_OP_DECONV2D;
    q->p = s->attr.conv;
    q->enlarged = s->attr.up_h != 0;
    q->summed = has(s, 3);
    q->constants = is_constant(s, v, 1) && is_constant(s, v, 2);
    q->exact = x->dtype == MP_F32 && y->dtype == MP_F32 &&
               (!has(s, 3) || v[s->in[3]].dtype == MP_F32);
    q->narrow = x->dtype == MP_BF16 || y->dtype == MP_BF16;
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
    } else { /* rows, of a matrix those of one picture */
        q->n = x->ndim == 3 ? x->dim[0] : 1;
        q->h = q->oh = x->dim[x->ndim - 2];
        q->w = q->ow = 1;
    }
}

static const struct cpu_way *choose(struct shape *q)
{
    const struct cpu_way *way = ways;

    while (!way->fits(q))
        way++;
    way->rewrite(q);
    if (q->r == 1 && q->s == 1 && q->p.stride == 1 && !q->p.top && !q->p.left &&
        !q->p.bottom && !q->p.right) {
        q->h *= q->w; /* all positions in one dimension */
        q->oh = q->h;
        q->w = q->ow = 1;
    }
    return way;
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

    return dn_desc_new(d, 4, dim, type_of(type),
                       q->transposed ? dnnl_iohw : dnnl_oihw);
}

struct descs {
    dn_own_desc src, weights, bias, dst;
    int exact; /* all in f32 */
};

static dnnl_status_t describe(struct descs *d, const struct shape *q,
                              enum mp_dtype from, enum mp_dtype bias_type,
                              enum mp_dtype to)
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
        st = dn_desc_new(&d->bias, 1, bias, type_of(bias_type), dnnl_a);
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
 * partial sums, with half the rounding error with AVX-512. */
static const char *wanted(const struct shape *q, int exact)
{
    return exact && q->r > 1 && !q->transposed && is_small(q) ? "gemm" : NULL;
}

static dnnl_status_t primitive_desc(dnnl_primitive_desc_t *pd,
                                    const struct mp_plan *plan,
                                    const struct shape *q,
                                    const struct descs *d, int bias,
                                    int residual, int act)
{
    struct dn_conv c = {
        .transposed = q->transposed,
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
                            const struct mp_plan *plan, const void *at)
{
    return dnnl_memory_create(m, d, plan->device->engine, (void *)at);
}

static void weights_scratch(struct cpu_step *c, size_t bytes)
{
    c->weights_at = c->scratch = (c->scratch + 63) / 64 * 64;
    c->scratch += (bytes + 63) / 64 * 64;
}

/* Weights that are no constants: reordered into scratch memory at every run. */
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
    weights_scratch(c, dnnl_memory_desc_get_size(want));
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
        rc = cpu_pack(&c->constant[1], plan, p, s->in[1], c->way->weights, want,
                      dn_borrow(&plain), err);
    else if (!rc)
        rc = variable_weights(c, plan, dn_borrow(&plain), want, err);
    dn_desc_free(&plain);
    if (!rc && c->constant[1])
        weights_scratch(c, cpu_room(c->constant[1], 0));
    if (!rc)
        rc = cpu_status(memory(&c->weights, want, plan,
                               c->constant[1] ? c->constant[1]->data : NULL),
                        "weights", err);
    return rc;
}

static int take_bias(struct cpu_step *c, struct mp_plan *plan,
                     const struct mp_program *p, const struct mp_step *s,
                     dn_desc desc, struct mp_error *err)
{
    const struct mp_value *b = &p->value[s->in[2]];
    int rc = 0;

    if (b->place == MP_CONSTANT)
        rc = cpu_pack(&c->constant[2], plan, p, s->in[2], c->way->bias, NULL,
                      NULL, err);
    if (!rc && !c->way->bare)
        rc = cpu_status(memory(&c->bias, desc, plan,
                               c->constant[2] ? c->constant[2]->data : NULL),
                        "bias", err);
    return rc;
}

/* From the primitive's own description, which lives as long as it does. */
static dnnl_status_t name_of(const char **name, const_dnnl_primitive_t prim)
{
    const_dnnl_primitive_desc_t pd;
    dnnl_status_t st = dnnl_primitive_get_primitive_desc(prim, &pd);

    if (st == dnnl_success)
        st = dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0,
                                       (void *)name);
    return st;
}

static int create(struct cpu_step *c, struct mp_plan *plan,
                  const struct mp_program *p, const struct mp_step *s,
                  const struct shape *q, const struct descs *d,
                  const_dnnl_primitive_desc_t pd, struct mp_error *err)
{
    dn_desc pad = dn_query(pd, dnnl_query_scratchpad_md);
    dnnl_status_t st = dnnl_primitive_create(&c->prim, pd);
    int rc;

    if (st == dnnl_success)
        st = name_of(&c->name, c->prim);
    if (st == dnnl_success)
        st = memory(&c->src, dn_borrow(&d->src), plan, NULL);
    if (st == dnnl_success)
        st = memory(&c->dst, dn_borrow(&d->dst), plan, NULL);
    if (st == dnnl_success)
        st = memory(&c->pad, pad, plan, NULL);
    rc = cpu_status(st, "primitive", err);
    c->scratch = (dnnl_memory_desc_get_size(pad) + 63) / 64 * 64;
    if (!rc)
        rc = take_weights(c, plan, p, s, q, dn_query(pd, dnnl_query_weights_md),
                          err);
    if (!rc && s->in[2] != MP_NO_VALUE)
        rc = take_bias(c, plan, p, s, dn_borrow(&d->bias), err);
    if (c->narrow) {
        c->narrow_at = c->scratch;
        c->scratch += (p->value[s->in[0]].count * 2 + 63) / 64 * 64;
    }
    if (c->way->finish || c->add_after) {
        c->result_at = c->scratch;
        c->scratch += dnnl_memory_desc_get_size(dn_borrow(&d->dst));
    }
    if (c->way->scratch) {
        c->finish_at = c->scratch = (c->scratch + 63) / 64 * 64;
        c->scratch += c->way->scratch(plan, (size_t)(s - p->step));
    }
    return rc;
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

/* oneDNN 2.6 is wrong, or crashes, where a window lies in the padding alone. */
static int padded_out(const struct shape *q)
{
    const struct mp_conv *p = &q->p;

    return !q->transposed && (p->top >= q->r || p->bottom >= q->r ||
                              p->left >= q->s || p->right >= q->s);
}

/* The description of the primitive, and what it leaves to do. */
static dnnl_status_t design(dnnl_primitive_desc_t *pd, struct descs *d,
                            struct cpu_step *c, const struct mp_plan *plan,
                            const struct mp_step *s, const struct shape *q)
{
    const struct mp_value *v = plan->value, *x = &v[s->in[0]], *y = &v[s->out];
    enum mp_dtype from = y->dtype == MP_BF16 ? MP_BF16 : x->dtype;
    enum mp_dtype to = c->way->bare ? MP_F32 : y->dtype;
    int bias = has(s, 2) && !c->way->bare;
    dnnl_status_t st;

    c->narrow = from != x->dtype;
    c->add_after = c->way->bare;
    d->exact = from == MP_F32 && to == MP_F32;
    st = describe(d, q, from, bias ? v[s->in[2]].dtype : MP_F32, to);
    if (st == dnnl_success && !c->add_after)
        st = primitive_desc(pd, plan, q, d, bias, has(s, 3), s->attr.act);
    /* bf16 to f32: oneDNN sums into its own type only */
    if (st == dnnl_unimplemented && has(s, 3)) {
        c->add_after = 1;
        st = dnnl_success;
    }
    if (st == dnnl_success && c->add_after)
        st = primitive_desc(pd, plan, q, d, bias, 0, MP_ACT_NONE);
    c->copy_residual = has(s, 3) && !c->add_after &&
                       (c->constant[3] || v[s->in[3]].place != y->place ||
                        v[s->in[3]].offset != y->offset);
    return st;
}

/* A kernel of ours. */
static int take_kernel(struct cpu_step *c, struct mp_plan *plan,
                       const struct mp_program *p, size_t i,
                       struct mp_error *err)
{
    const struct mp_step *s = &p->step[i];
    struct k_conv a = conv_of(plan, i);
    int rc;

    c->name = c->way->name;
    rc = cpu_pack(&c->constant[1], plan, p, s->in[1], c->way->weights, NULL,
                  NULL, err);
    if (!rc)
        c->scratch = c->way->scratch(plan, i);
    if (!rc)
        weights_scratch(c, cpu_room(c->constant[1], k_conv_plain(&a)));
    if (!rc && has(s, 2))
        rc = cpu_pack(&c->constant[2], plan, p, s->in[2], c->way->bias, NULL,
                      NULL, err);
    return rc;
}

static int refuse(const struct mp_step *s, const struct mp_value *v,
                  struct mp_error *err)
{
    const struct mp_value *x = &v[s->in[0]], *w = &v[s->in[1]];
    char a[64], b[64];

    return mp_fail_in(err, "cpu: %s of %s %s by %s", mp_op_table[s->op].name,
                      mp_shape_text(a, x->ndim, x->dim),
                      mp_dtype_name(x->dtype),
                      mp_shape_text(b, w->ndim, w->dim));
}

int cpu_conv_compile(struct mp_plan *plan, const struct mp_program *p, size_t i,
                     struct mp_error *err)
{
    const struct mp_step *s = &p->step[i];
    struct cpu_step *c = &plan->cpu[i];
    dnnl_primitive_desc_t pd = NULL;
    struct descs d = {0};
    struct shape q;
    int rc = take_constants(c, plan, p, s, err);

    shape_of(&q, s, p->value);
    c->way = choose(&q);
    if (!rc && s->attr.act >= (int)(sizeof act_table / sizeof *act_table))
        rc = mp_fail(err, MP_ENOTSUP, "activation %d", s->attr.act);
    if (!rc && padded_out(&q))
        rc = mp_fail(err, MP_ENOTSUP, "padding as wide as the kernel");
    if (!rc && c->way->run)
        rc = take_kernel(c, plan, p, i, err);
    else if (!rc)
        rc = cpu_status(design(&pd, &d, c, plan, s, &q), "primitive", err);
    if (!rc && !c->way->run)
        rc = create(c, plan, p, s, &q, &d, pd, err);
    if (pd)
        dnnl_primitive_desc_destroy(pd);
    descs_free(&d);
    return rc ? refuse(s, p->value, err) : 0;
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

/* The input as the primitive takes it. */
static void *source(const struct mp_plan *plan, size_t i)
{
    const struct cpu_step *c = &plan->cpu[i];
    int64_t n = (int64_t)plan->value[plan->step[i].in[0]].count;
    char *narrow = cpu_scratch(plan, i) + c->narrow_at;

    if (!c->narrow)
        return (void *)input(plan, i, 0);
    k_copy((struct k_out){narrow, MP_BF16}, n,
           (struct k_in){input(plan, i, 0), MP_F32}, n, 1, n);
    return narrow;
}

static dnnl_status_t execute(const struct mp_plan *plan, dnnl_primitive_t prim,
                             int n, const dnnl_exec_arg_t *arg)
{
    dnnl_status_t st =
        dnnl_primitive_execute(prim, plan->device->stream, n, arg);

    return st == dnnl_success ? dnnl_stream_wait(plan->device->stream) : st;
}

static dnnl_status_t unpack(const struct mp_plan *plan, size_t i)
{
    const struct cpu_step *c = &plan->cpu[i];
    const dnnl_exec_arg_t arg[2] = {{DNNL_ARG_FROM, c->plain},
                                    {DNNL_ARG_TO, c->weights}};

    dnnl_memory_set_data_handle(c->plain, (void *)input(plan, i, 1));
    dnnl_memory_set_data_handle(c->weights, weights_room(plan, i));
    return execute(plan, c->unpack, 2, arg);
}

/* The residual, if there is one, and the activation. */
static void add_after(const struct mp_plan *plan, size_t i, struct k_in x)
{
    const struct mp_step *s = &plan->step[i];
    const struct mp_value *y = &plan->value[s->out];
    struct k_out out = {plan->at[s->out], y->dtype};
    int64_t n = (int64_t)y->count;

    if (has(s, 3))
        k_add(out, x, operand(plan, i, 3), 1, &n, 1, &n, s->attr.act);
    else
        k_act(out, x, n, s->attr.act);
}

int cpu_conv_run(const struct mp_plan *plan, size_t i, struct mp_error *err)
{
    const struct mp_step *s = &plan->step[i];
    const struct cpu_step *c = &plan->cpu[i];
    const struct mp_value *y = &plan->value[s->out];
    char *scratch = cpu_scratch(plan, i), *out = plan->at[s->out];
    char *result =
        c->way->finish || c->add_after ? scratch + c->result_at : out;
    int64_t n = (int64_t)y->count;
    dnnl_exec_arg_t arg[5] = {{DNNL_ARG_SRC, c->src},
                              {DNNL_ARG_WEIGHTS, c->weights},
                              {DNNL_ARG_DST, c->dst},
                              {DNNL_ARG_SCRATCHPAD, c->pad},
                              {DNNL_ARG_BIAS, c->bias}};
    dnnl_status_t st = dnnl_success;
    const void *weights = NULL;
    int rc = 0;

    if (c->way->run)
        return c->way->run(plan, i, err);
    if (c->constant[1])
        rc = cpu_data(&weights, plan, c->constant[1], 0, weights_room(plan, i),
                      err);
    if (rc)
        return rc;
    dnnl_memory_set_data_handle(c->src, source(plan, i));
    dnnl_memory_set_data_handle(c->pad, scratch);
    dnnl_memory_set_data_handle(c->dst, result);
    if (weights)
        dnnl_memory_set_data_handle(c->weights, (void *)weights);
    else
        st = unpack(plan, i);
    if (c->bias && !c->constant[2])
        dnnl_memory_set_data_handle(c->bias, (void *)input(plan, i, 2));
    if (c->copy_residual)
        k_copy((struct k_out){out, y->dtype}, n, operand(plan, i, 3), n, 1, n);
    if (st == dnnl_success)
        st = execute(plan, c->prim, c->bias ? 5 : 4, arg);
    if (c->way->finish)
        c->way->finish(plan, i, result);
    else if (c->add_after)
        add_after(plan, i, (struct k_in){result, y->dtype});
    return cpu_status(st, c->name, err);
}
