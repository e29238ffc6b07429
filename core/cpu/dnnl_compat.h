/* SPDX-License-Identifier: MIT */
/*
 * dnnl_compat.h - oneDNN 2.x and 3.x behind one set of calls: the only file
 * that knows there are two. All calls return dnnl_status_t.
 */
#ifndef CPU_DNNL_COMPAT_H
#define CPU_DNNL_COMPAT_H

#include <string.h>
#include <dnnl.h>

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
