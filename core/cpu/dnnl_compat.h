/* SPDX-License-Identifier: MIT */
/*
 * dnnl_compat.h - oneDNN 2.x and 3.x behind one set of calls: the only file
 * that knows there are two. All calls return dnnl_status_t.
 */
#ifndef CPU_DNNL_COMPAT_H
#define CPU_DNNL_COMPAT_H

#include <string.h>
#include <dnnl.h>
#include <dnnl_debug.h>
#include "cpu/kernels.h"

#if DNNL_VERSION_MAJOR < 3
typedef const dnnl_memory_desc_t *dn_desc; /* borrowed */
typedef dnnl_memory_desc_t dn_own_desc;    /* to be dropped */
#else
typedef const_dnnl_memory_desc_t dn_desc;
typedef dnnl_memory_desc_t dn_own_desc;
#endif

static inline dn_desc dn_borrow(const dn_own_desc *d)
{
#if DNNL_VERSION_MAJOR < 3
    return d;
#else
    return *d;
#endif
}

static inline dnnl_status_t dn_desc_new(dn_own_desc *d, int ndim,
                                        const dnnl_dims_t dim,
                                        dnnl_data_type_t t,
                                        dnnl_format_tag_t tag)
{
#if DNNL_VERSION_MAJOR < 3
    return dnnl_memory_desc_init_by_tag(d, ndim, dim, t, tag);
#else
    return dnnl_memory_desc_create_with_tag(d, ndim, dim, t, tag);
#endif
}

static inline void dn_desc_free(dn_own_desc *d)
{
#if DNNL_VERSION_MAJOR < 3
    (void)d;
#else
    if (*d)
        dnnl_memory_desc_destroy(*d);
    *d = NULL;
#endif
}

static inline dnnl_status_t dn_desc_copy(dn_own_desc *d, dn_desc from)
{
#if DNNL_VERSION_MAJOR < 3
    *d = *from;
    return dnnl_success;
#else
    return dnnl_memory_desc_clone(d, from);
#endif
}

struct dn_blocks {
    int ndim, blocks;
    const dnnl_dim_t *dim, *padded, *stride, *axis, *block;
    dnnl_dim_t offset;
    dnnl_data_type_t type;
    dnnl_format_kind_t kind;
};

#if DNNL_VERSION_MAJOR < 3
static inline int dn_blocks(struct dn_blocks *l, dn_desc d)
{
    const dnnl_blocking_desc_t *b = &d->format_desc.blocking;

    *l = (struct dn_blocks){d->ndims,       b->inner_nblks, d->dims,
                            d->padded_dims, b->strides,     b->inner_idxs,
                            b->inner_blks,  d->offset0,     d->data_type,
                            d->format_kind};
    return 1;
}
#else
static inline int dn_blocks(struct dn_blocks *l, dn_desc d)
{
    const struct {
        dnnl_query_t what;
        void *to;
    } all[] = {{dnnl_query_format_kind, &l->kind},
               {dnnl_query_ndims_s32, &l->ndim},
               {dnnl_query_data_type, &l->type},
               {dnnl_query_submemory_offset_s64, &l->offset},
               {dnnl_query_dims, &l->dim},
               {dnnl_query_padded_dims, &l->padded},
               {dnnl_query_strides, &l->stride},
               {dnnl_query_inner_nblks_s32, &l->blocks},
               {dnnl_query_inner_blks, &l->block},
               {dnnl_query_inner_idxs, &l->axis}};

    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (dnnl_memory_desc_query(d, all[i].what, all[i].to) != dnnl_success)
            return 0;
    return 1;
}
#endif

/* The layout of weights of four dimensions, if it is one of blocks and nothing
 * else. */
static inline int dn_layout(struct k_layout *l, enum mp_dtype *type, dn_desc d)
{
    struct dn_blocks b;
    size_t size = 4;

    if (!dn_blocks(&b, d) || b.kind != dnnl_blocked || b.ndim != 4 ||
        b.offset || b.blocks > K_BLOCKS ||
        (b.type != dnnl_f32 && b.type != dnnl_bf16))
        return 0;
    *type = b.type == dnnl_bf16 ? MP_BF16 : MP_F32;
    size = mp_dtype_size(*type);
    l->of = 0;
    l->blocks = b.blocks;
    for (int i = 0; i < b.blocks; i++) {
        l->axis[i] = (int)b.axis[i];
        l->block[i] = b.block[i];
    }
    for (int i = 0; i < 4; i++) {
        l->dim[i] = b.dim[i];
        l->stride[i] = b.stride[i];
        size *= (size_t)b.padded[i];
    }
    return size == dnnl_memory_desc_get_size(d);
}

static inline dn_desc dn_query(const_dnnl_primitive_desc_t pd, dnnl_query_t q)
{
    return dnnl_primitive_desc_query_md(pd, q, 0);
}

/* acc += residual; the residual lies in dst and has its type. */
static inline dnnl_status_t dn_sum(dnnl_post_ops_t ops)
{
#if DNNL_VERSION_MAJOR < 3
    return dnnl_post_ops_append_sum(ops, 1);
#else
    return dnnl_post_ops_append_sum(ops, 1, 0, dnnl_data_type_undef);
#endif
}

static inline dnnl_status_t dn_eltwise(dnnl_post_ops_t ops, dnnl_alg_kind_t alg,
                                       float alpha)
{
#if DNNL_VERSION_MAJOR < 3
    return dnnl_post_ops_append_eltwise(ops, 1, alg, alpha, 0);
#else
    return dnnl_post_ops_append_eltwise(ops, alg, alpha, 0);
#endif
}

struct dn_conv {
    int transposed;
    dn_desc src, weights, bias, dst; /* bias may be NULL */
    dnnl_dims_t stride, pad_l, pad_r;
};

/* The first implementation, in oneDNN's order, whose name holds `wanted`; the
 * first of all if none does or wanted is NULL. */
static inline int dn_is_wanted(const_dnnl_primitive_desc_t pd,
                               const char *wanted)
{
    const char *name = "";

    dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, &name);
    return !wanted || strstr(name, wanted) != NULL;
}

#if DNNL_VERSION_MAJOR < 3
static inline dnnl_status_t dn_conv_first(dnnl_primitive_desc_t *pd,
                                          dnnl_engine_t engine,
                                          const struct dn_conv *c,
                                          const_dnnl_primitive_attr_t attr,
                                          const char *wanted)
{
    dnnl_convolution_desc_t conv; /* deconvolution's is the same type */
    dnnl_primitive_desc_iterator_t it = NULL;
    dnnl_status_t s;

    if (c->transposed)
        s = dnnl_deconvolution_forward_desc_init(
            &conv, dnnl_forward_inference, dnnl_deconvolution_direct, c->src,
            c->weights, c->bias, c->dst, c->stride, c->pad_l, c->pad_r);
    else
        s = dnnl_convolution_forward_desc_init(
            &conv, dnnl_forward_inference, dnnl_convolution_direct, c->src,
            c->weights, c->bias, c->dst, c->stride, c->pad_l, c->pad_r);
    if (s == dnnl_success)
        s = dnnl_primitive_desc_iterator_create(&it, &conv, attr, engine, NULL);
    if (s != dnnl_success)
        return s;
    for (;;) {
        *pd = dnnl_primitive_desc_iterator_fetch(it);
        if (!*pd || dn_is_wanted(*pd, wanted))
            break;
        dnnl_primitive_desc_destroy(*pd);
        *pd = NULL;
        if (dnnl_primitive_desc_iterator_next(it) != dnnl_success)
            break;
    }
    dnnl_primitive_desc_iterator_destroy(it);
    return *pd ? dnnl_success : dnnl_unimplemented;
}
#else
static inline dnnl_status_t dn_conv_first(dnnl_primitive_desc_t *pd,
                                          dnnl_engine_t engine,
                                          const struct dn_conv *c,
                                          const_dnnl_primitive_attr_t attr,
                                          const char *wanted)
{
    static const dnnl_dims_t dense = {0, 0};
    dnnl_status_t s;

    if (c->transposed)
        s = dnnl_deconvolution_forward_primitive_desc_create(
            pd, engine, dnnl_forward_inference, dnnl_deconvolution_direct,
            c->src, c->weights, c->bias, c->dst, c->stride, dense, c->pad_l,
            c->pad_r, attr);
    else
        s = dnnl_convolution_forward_primitive_desc_create(
            pd, engine, dnnl_forward_inference, dnnl_convolution_direct, c->src,
            c->weights, c->bias, c->dst, c->stride, dense, c->pad_l, c->pad_r,
            attr);
    while (s == dnnl_success && !dn_is_wanted(*pd, wanted))
        s = dnnl_primitive_desc_next_impl(*pd);
    if (s != dnnl_success && *pd) {
        dnnl_primitive_desc_destroy(*pd);
        *pd = NULL;
    }
    return s == dnnl_last_impl_reached ? dnnl_unimplemented : s;
}
#endif

static inline dnnl_status_t dn_conv_new(dnnl_primitive_desc_t *pd,
                                        dnnl_engine_t engine,
                                        const struct dn_conv *c,
                                        const_dnnl_primitive_attr_t attr,
                                        const char *wanted)
{
    dnnl_status_t s = dnnl_unimplemented;

    if (wanted)
        s = dn_conv_first(pd, engine, c, attr, wanted);
    return s == dnnl_success ? s : dn_conv_first(pd, engine, c, attr, NULL);
}

#endif
