/* SPDX-License-Identifier: MIT */
/* own.c - steps that are kernels of ours: arguments from the program. */
#include <string.h>
#include "cuda/cuda.h"

static const struct mp_value *out_value(const struct call *k)
{
    return &k->plan->value[k->s->out];
}

static uint32_t last(const struct mp_value *v)
{
    return (uint32_t)v->dim[v->ndim - 1];
}

static uint32_t rows(const struct mp_value *v)
{
    return (uint32_t)v->count / last(v);
}

/* ---- norms ---- */

static uint64_t positions(const struct mp_value *x)
{
    return rows(x) / (uint64_t)x->dim[0];
}

/* Groups that a block can hold are a block each: its kernel, or NO_KERNEL, and
 * its threads. This depends on nothing but the picture, as do the parts that
 * sums of the others are taken in: so its result does not depend on its
 * neighbours in the batch. */
#define NO_KERNEL GPU_KERNEL_COUNT

struct held {
    enum gpu_kernel kernel;
    uint32_t threads;
};

static struct held held_group(const struct call *k)
{
    static const struct {
        uint32_t v, held;
        enum gpu_kernel bf16, f16, few_bf16, few_f16;
    } by[] = {
#define BY(v)                                                                  \
    {v,                                                                        \
     GPU_GROUP_HELD(v),                                                        \
     GPU_group_bf16_##v,                                                       \
     GPU_group_f16_##v,                                                        \
     GPU_group_bf16_##v##_few,                                                 \
     GPU_group_f16_##v##_few}
        BY(8), BY(4), BY(2)
#undef BY
    };
    const struct mp_value *x = cuda_in_value(k, 0);
    uint32_t each = last(x) / (uint32_t)k->s->attr.groups;
    struct held h = {NO_KERNEL, GPU_GROUP_THREADS};
    uint64_t units, few;
    int type = cuda_in(k, 0).type, bf16 = type == MP_BF16, i = 0;

    while (i < 3 && each % by[i].v)
        i++;
    if (i == 3 || (type != MP_BF16 && type != MP_F16))
        return h;
    units = each / by[i].v;
    few = units * ((positions(x) + GPU_GROUP_FEW - 1) / GPU_GROUP_FEW);
    if (few <= GPU_GROUP_THREADS) {
        h.threads = (uint32_t)(few + 31) / 32 * 32;
        h.kernel = bf16 ? by[i].few_bf16 : by[i].few_f16;
        return h;
    }
    if (positions(x) <= GPU_GROUP_THREADS / units * by[i].held)
        h.kernel = bf16 ? by[i].bf16 : by[i].f16;
    return h;
}

static uint32_t between(uint64_t least, uint64_t v, uint64_t most)
{
    return (uint32_t)(v < least ? least : v > most ? most : v);
}

static uint32_t splits(const struct mp_value *x)
{
    uint64_t n = positions(x);

    return between(1, n * last(x) / 16384, n < 256 ? n : 256);
}

static size_t group_norm_scratch(const struct call *k)
{
    const struct mp_value *x = cuda_in_value(k, 0);

    return held_group(k).kernel != NO_KERNEL
               ? 0
               : (size_t)x->dim[0] * (splits(x) + 1) *
                     (size_t)k->s->attr.groups * 3 * sizeof(float);
}

static int group_norm(const struct call *k)
{
    const struct mp_value *x = cuda_in_value(k, 0);
    const struct g_group a = {
        .y = cuda_out(k),
        .x = cuda_in(k, 0),
        .weight = cuda_in(k, 1),
        .bias = cuda_in(k, 2),
        .part = (float *)(uintptr_t)k->plan->scratch,
        .n = (uint32_t)x->dim[0],
        .hw = (uint32_t)positions(x),
        .c = last(x),
        .groups = (uint32_t)k->s->attr.groups,
        .splits = splits(x),
        .eps = k->s->attr.eps,
        .act = k->s->attr.act,
    };
    struct held held = held_group(k);
    int by_8 = a.c % 8 == 0, rc;
    size_t seats = GPU_THREADS * (by_8 ? 8 : 1);
    uint32_t room = GPU_GROUP_APPLY * gpu_processors(k->plan->device->gpu);
    uint32_t blocks = between(1, room / a.n, a.hw);

    if (held.kernel != NO_KERNEL)
        return cuda_launch(k, held.kernel, a.groups, a.n, 1, held.threads, 0,
                           &a);
    rc = cuda_launch(k, by_8 ? GPU_group_sum_8 : GPU_group_sum, a.splits, a.n,
                     1, GPU_THREADS, 2 * seats * sizeof(float), &a);
    if (!rc)
        rc = cuda_launch(k, GPU_group_join,
                         (a.n * a.groups + GPU_ROWS - 1) / GPU_ROWS, 1, 1,
                         32 * GPU_ROWS, 0, &a);
    if (!rc)
        rc = cuda_launch(k, by_8 ? GPU_group_apply_8 : GPU_group_apply, blocks,
                         a.n, 1, GPU_THREADS, 0, &a);
    return rc;
}

/* Of 16 bits, in rows of a multiple of 8. */
static int held_layer(const struct call *k, const struct g_rows *a)
{
    int bf16 = a->x.type == MP_BF16;

    if (a->c <= 384)
        return cuda_launch(
            k, bf16 ? GPU_layer_norm_bf16_384 : GPU_layer_norm_f16_384,
            (a->rows + 2 * GPU_ROWS - 1) / (2 * GPU_ROWS), 1, 1, 32 * GPU_ROWS,
            0, a);
    if (a->c <= 768)
        return cuda_launch(
            k, bf16 ? GPU_layer_norm_bf16_768 : GPU_layer_norm_f16_768,
            (a->rows + GPU_ROWS - 1) / GPU_ROWS, 1, 1, 32 * GPU_ROWS, 0, a);
    return cuda_launch(k, bf16 ? GPU_layer_norm_bf16 : GPU_layer_norm_f16,
                       a->rows, 1, 1, (a->c / 8 + 31) / 32 * 32, 0, a);
}

static int by_rows(const struct call *k)
{
    static const enum gpu_kernel kernel[MP_OP_COUNT] = {
        [MP_OP_LAYER_NORM] = GPU_layer_norm,
        [MP_OP_BATCH_NORM] = GPU_batch_norm,
        [MP_OP_SOFTMAX] = GPU_softmax,
        [MP_OP_ARGMAX] = GPU_argmax,
    };
    const struct mp_value *x = cuda_in_value(k, 0);
    struct g_rows a = {
        .y = cuda_out(k),
        .x = cuda_in(k, 0),
        .rows = rows(x),
        .c = last(x),
        .eps = k->s->attr.eps,
        .act = k->s->attr.act,
    };
    struct g_in *more[] = {&a.weight, &a.bias, &a.mean, &a.var};
    enum gpu_kernel which = kernel[k->s->op];

    for (int i = 1; i < k->s->nin; i++)
        *more[i - 1] = cuda_in(k, i);
    if (which == GPU_layer_norm && a.c % 8 == 0) {
        if (a.c <= GPU_LAYER && (a.x.type == MP_BF16 || a.x.type == MP_F16))
            return held_layer(k, &a);
        which = GPU_layer_norm_8;
    }
    return cuda_launch(k, which, (a.rows + GPU_ROWS - 1) / GPU_ROWS, 1, 1,
                       32 * GPU_ROWS, 0, &a);
}

/* ---- pointwise ---- */

static int map(const struct call *k)
{
    return cuda_convert(k, cuda_out(k), cuda_in(k, 0), out_value(k)->count,
                        k->s->attr.act);
}

static int geglu(const struct call *k)
{
    const struct mp_value *y = out_value(k);
    const struct g_geglu a = {cuda_out(k), cuda_in(k, 0), rows(y), last(y)};
    size_t block = GPU_GEGLU * GPU_THREADS * 8;

    if (a.c % 8 == 0 && (a.x.type == MP_BF16 || a.x.type == MP_F16))
        return cuda_launch(
            k, a.x.type == MP_BF16 ? GPU_geglu_bf16 : GPU_geglu_f16,
            (y->count + block - 1) / block, 1, 1, GPU_THREADS, 0, &a);
    return cuda_each(k, GPU_geglu, GPU_geglu_8, a.c % 8 == 0, y->count, &a);
}

static int binary(const struct call *k)
{
    const struct mp_value *a = cuda_in_value(k, 0), *b = cuda_in_value(k, 1);
    struct g_binary g = {
        .y = cuda_out(k),
        .a = cuda_in(k, 0),
        .b = cuda_in(k, 1),
        .n = (uint32_t)a->count,
        .dim = {1, 1, 1, 1},
        .multiply = k->s->op == MP_OP_MUL,
        .act = k->s->attr.act,
    };
    uint32_t step = 1;

    if (a->count == b->count) { /* one long row */
        g.dim[3] = g.n;
        g.step[3] = 1;
    } else {
        for (int i = 0; i < a->ndim; i++)
            g.dim[3 - i] = (uint32_t)a->dim[a->ndim - 1 - i];
        for (int i = 0; i < b->ndim; i++) {
            uint32_t d = (uint32_t)b->dim[b->ndim - 1 - i];

            g.step[3 - i] = d == 1 ? 0 : step;
            step *= d;
        }
    }
    return cuda_each(k, GPU_binary, GPU_binary_8, g.dim[3] % 8 == 0, g.n, &g);
}

/* ---- from place to place ---- */

/* Elements from one index of axis to the next. */
static uint32_t unit(const struct mp_value *v, int axis)
{
    uint32_t n = 1;

    for (int i = axis + 1; i < v->ndim; i++)
        n *= (uint32_t)v->dim[i];
    return n;
}

/* What is moved bit by bit needs no numbers: any 32 bits may be a float. */
static int bits(int type)
{
    return type == MP_I32 ? MP_F32 : type;
}

static int copy(const struct call *k, struct g_copy *a, uint32_t y_at,
                uint32_t x_at)
{
    int by_8 = (a->n | a->y_row | a->x_row | y_at | x_at) % 8 == 0;

    a->y.p = (char *)a->y.p + y_at * mp_dtype_size((enum mp_dtype)a->y.type);
    a->x.p =
        (const char *)a->x.p + x_at * mp_dtype_size((enum mp_dtype)a->x.type);
    a->y.type = bits(a->y.type);
    a->x.type = bits(a->x.type);
    return cuda_each(k, GPU_copy, GPU_copy_8, by_8, (size_t)a->rows * a->n, a);
}

static int concat(const struct call *k)
{
    const struct mp_value *y = out_value(k);
    int axis = k->s->attr.axis, rc = 0;
    uint32_t one = unit(y, axis), row = one * (uint32_t)y->dim[axis], at = 0;

    for (int i = 0; i < k->s->nin && !rc; i++) {
        uint32_t part = one * (uint32_t)cuda_in_value(k, i)->dim[axis];
        struct g_copy a = {cuda_out(k), cuda_in(k, i), (uint32_t)y->count / row,
                           part,        row,           part};

        rc = copy(k, &a, at, 0);
        at += part;
    }
    return rc;
}

static int slice(const struct call *k)
{
    const struct mp_value *x = cuda_in_value(k, 0), *y = out_value(k);
    int axis = k->s->attr.axis;
    uint32_t one = unit(x, axis), row = one * (uint32_t)x->dim[axis];
    uint32_t part = one * (uint32_t)y->dim[axis];
    struct g_copy a = {cuda_out(k), cuda_in(k, 0), (uint32_t)x->count / row,
                       part,        part,          row};

    return copy(k, &a, 0, one * (uint32_t)k->s->attr.start);
}

static int flip(const struct call *k)
{
    const struct mp_value *x = cuda_in_value(k, 0);
    int axis = k->s->attr.axis;
    uint32_t inner = unit(x, axis), n = (uint32_t)x->dim[axis];
    struct g_flip a = {cuda_out(k), cuda_in(k, 0),
                       (uint32_t)x->count / inner / n, n, inner};

    a.y.type = bits(a.y.type);
    a.x.type = bits(a.x.type);
    return cuda_each(k, GPU_flip, GPU_flip_8, inner % 8 == 0, x->count, &a);
}

static int spatial(const struct call *k)
{
    static const enum gpu_kernel kernel[MP_OP_COUNT][2] = {
        [MP_OP_RESIZE] = {GPU_bilinear, GPU_bilinear_8},
        [MP_OP_POOL] = {GPU_pool, GPU_pool_8},
        [MP_OP_PAD] = {GPU_pad, GPU_pad_8},
    };
    static const enum gpu_kernel nearest[2] = {GPU_nearest, GPU_nearest_8};
    const enum gpu_kernel *which =
        k->s->attr.nearest ? nearest : kernel[k->s->op];
    const int64_t *x = cuda_in_value(k, 0)->dim, *y = out_value(k)->dim;
    const struct g_spatial a = {
        .y = cuda_out(k),
        .x = cuda_in(k, 0),
        .n = (uint32_t)x[0],
        .h = (uint32_t)x[1],
        .w = (uint32_t)x[2],
        .c = (uint32_t)x[3],
        .yh = (uint32_t)y[1],
        .yw = (uint32_t)y[2],
        .top = (uint32_t)k->s->attr.start,
        .left = (uint32_t)k->s->attr.left,
        .y_scale = (float)x[1] / (float)y[1],
        .x_scale = (float)x[2] / (float)y[2],
    };

    return cuda_each(k, which[0], which[1], a.c % 8 == 0, out_value(k)->count,
                     &a);
}

static int heatmap_peaks(const struct call *k)
{
    const int64_t *x = cuda_in_value(k, 0)->dim;
    const struct g_peaks a = {
        .y = cuda_out(k).p,
        .x = cuda_in(k, 0).p,
        .h = (uint32_t)x[1],
        .w = (uint32_t)x[2],
        .c = (uint32_t)x[3],
    };

    return cuda_launch(k, GPU_heatmap_peaks, (size_t)(x[0] * x[3]), 1, 1,
                       GPU_THREADS, 0, &a);
}

/* ---- the table ---- */

static const struct {
    int (*run)(const struct call *k);
    size_t (*scratch)(const struct call *k);
    const char *name;
} table[MP_OP_COUNT] = {
    [MP_OP_GROUP_NORM] = {group_norm, group_norm_scratch, "own"},
    [MP_OP_LAYER_NORM] = {by_rows, NULL, "own"},
    [MP_OP_BATCH_NORM] = {by_rows, NULL, "own"},
    [MP_OP_ACT] = {map, NULL, "own"},
    [MP_OP_GEGLU] = {geglu, NULL, "own"},
    [MP_OP_ADD] = {binary, NULL, "own"},
    [MP_OP_MUL] = {binary, NULL, "own"},
    [MP_OP_CONCAT] = {concat, NULL, "own"},
    [MP_OP_SLICE] = {slice, NULL, "own"},
    [MP_OP_RESIZE] = {spatial, NULL, "own"},
    [MP_OP_POOL] = {spatial, NULL, "own"},
    [MP_OP_PAD] = {spatial, NULL, "own"},
    [MP_OP_FLIP] = {flip, NULL, "own"},
    [MP_OP_SOFTMAX] = {by_rows, NULL, "own"},
    [MP_OP_ARGMAX] = {by_rows, NULL, "own"},
    [MP_OP_HEATMAP_PEAKS] = {heatmap_peaks, NULL, "own"},
    [MP_OP_FLOAT] = {map, NULL, "own"},
};

int cuda_own_compile(const struct call *k, const struct mp_program *p)
{
    int rc = 0;

    if (!table[k->s->op].run)
        return mp_fail(k->err, MP_ENOTSUP, "cuda: no operation %d",
                       (int)k->s->op);
    for (int i = 0; i < k->s->nin && !rc; i++)
        if (cuda_in_value(k, i)->place == MP_CONSTANT)
            rc = cuda_pack(k, p, i, PLAIN, MP_F32);
    if (!rc && table[k->s->op].scratch)
        k->c->scratch = table[k->s->op].scratch(k);
    k->c->name = table[k->s->op].name;
    return rc;
}

int cuda_own_run(const struct call *k)
{
    return table[k->s->op].run(k);
}
