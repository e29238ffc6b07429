/* SPDX-License-Identifier: MIT */
/* ref.c - the references of ref.h, and the backend that runs only them. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "graph_impl.h"
#include "module.h"
#include "peak.h"
#include "ref.h"

static const struct mp_value *arg(const struct mp_step *s,
                                  const struct mp_value *v, int i)
{
    return &v[s->in[i]];
}

static int64_t last(const struct mp_value *v)
{
    return v->dim[v->ndim - 1];
}

static double activate(double x, int act)
{
    switch (act) {
    case MP_RELU:
        return x > 0 ? x : 0;
    case MP_SILU:
        return x / (1 + exp(-x));
    case MP_GELU:
        return x * (1 + erf(x / sqrt(2))) / 2;
    case MP_SIGMOID:
        return 1 / (1 + exp(-x));
    case MP_RSQRT:
        return 1 / sqrt(x);
    default:
        return x;
    }
}

/* A map of rank 4, 3 or 2 as N x H x W x C. */
static void as_map(int64_t d[4], const struct mp_value *v)
{
    d[0] = d[1] = d[2] = 1;
    d[3] = last(v);
    for (int i = 0; i < v->ndim - 1; i++)
        d[i] = v->dim[i];
}

/* Source positions and weight of bilinear interpolation, in f32 as the
 * published code computes them. */
static float source(int64_t *i0, int64_t *i1, int64_t d, int64_t n, int64_t m)
{
    float at = ((float)d + 0.5f) * ((float)n / (float)m) - 0.5f;

    at = at > 0 ? at : 0;
    *i0 = (int64_t)at < n - 1 ? (int64_t)at : n - 1;
    *i1 = *i0 + 1 < n ? *i0 + 1 : *i0;
    return at - (float)*i0;
}

/* A channel of a map of xd (p: at its first pixel) resized to h, w = size, at
 * row, column = at. */
static double sample(const float *p, const int64_t xd[4], const int64_t at[2],
                     const int64_t size[2], int nearest)
{
    int64_t c = xd[3], w = xd[2], x0, x1, y0, y1;
    double fx, fy;

    if (nearest)
        return p[(at[0] * xd[1] / size[0] * w + at[1] * w / size[1]) * c];
    fy = source(&y0, &y1, at[0], xd[1], size[0]);
    fx = source(&x0, &x1, at[1], w, size[1]);
    return (1 - fy) *
               ((1 - fx) * p[(y0 * w + x0) * c] + fx * p[(y0 * w + x1) * c]) +
           fy * ((1 - fx) * p[(y1 * w + x0) * c] + fx * p[(y1 * w + x1) * c]);
}

MP_REF(conv2d)
{
    const float *x = in[0], *w = in[1], *bias = in[2], *res = in[3];
    const struct mp_conv *p = &s->attr.conv;
    const struct mp_value *wv = arg(s, v, 1);
    int64_t xd[4], yd[4], size[2];
    int64_t r = wv->ndim == 4 ? wv->dim[2] : 1;
    int64_t q = wv->ndim == 4 ? wv->dim[3] : 1, c = wv->dim[1];
    float *y = out;

    as_map(xd, arg(s, v, 0));
    as_map(yd, &v[s->out]);
    size[0] = s->attr.up_h ? s->attr.up_h : xd[1];
    size[1] = s->attr.up_w ? s->attr.up_w : xd[2];
    for (int64_t i = 0; i < yd[0] * yd[1] * yd[2] * yd[3]; i++) {
        int64_t k = i % yd[3], ox = i / yd[3] % yd[2];
        int64_t oy = i / yd[3] / yd[2] % yd[1], n = i / yd[3] / yd[2] / yd[1];
        double sum = bias ? bias[k] : 0;

        for (int64_t a = 0; a < r; a++) {
            int64_t iy = oy * p->stride + a - p->top;

            for (int64_t b = 0; b < q && iy >= 0 && iy < size[0]; b++) {
                int64_t ix = ox * p->stride + b - p->left;
                const float *px = x + n * xd[1] * xd[2] * c;
                const float *pw = w + (k * c * r + a) * q + b;

                if (ix < 0 || ix >= size[1])
                    continue;
                for (int64_t j = 0; j < c; j++)
                    sum +=
                        pw[j * r * q] *
                        (s->attr.up_h ? sample(px + j, xd, (int64_t[]){iy, ix},
                                               size, s->attr.nearest)
                                      : px[(iy * xd[2] + ix) * c + j]);
            }
        }
        y[i] = (float)activate(sum + (res ? res[i] : 0), s->attr.act);
    }
}

MP_REF(deconv2d)
{
    const float *x = in[0], *w = in[1], *bias = in[2];
    const struct mp_value *wv = arg(s, v, 1);
    const int64_t *xd = arg(s, v, 0)->dim, *yd = v[s->out].dim;
    int64_t c = wv->dim[0], k = wv->dim[1], r = wv->dim[2], q = wv->dim[3];
    int64_t stride = s->attr.conv.stride, pad = s->attr.conv.top;
    float *y = out;

    for (int64_t i = 0; i < yd[0] * yd[1] * yd[2] * k; i++) {
        int64_t o = i % k, ox = i / k % yd[2], oy = i / k / yd[2] % yd[1];
        int64_t n = i / k / yd[2] / yd[1];
        double sum = bias ? bias[o] : 0;

        for (int64_t a = 0; a < r; a++)
            for (int64_t b = 0; b < q; b++) {
                int64_t iy = oy + pad - a, ix = ox + pad - b;
                const float *px;

                if (iy < 0 || ix < 0 || iy % stride || ix % stride ||
                    iy / stride >= xd[1] || ix / stride >= xd[2])
                    continue;
                px = x + ((n * xd[1] + iy / stride) * xd[2] + ix / stride) * c;
                for (int64_t j = 0; j < c; j++)
                    sum += (double)px[j] * w[((j * k + o) * r + a) * q + b];
            }
        y[i] = (float)activate(sum, s->attr.act);
    }
}

/* Sums of so many channels are kept at once: there is no way to tell of memory
 * that ran out. */
#define CHANNELS 64

static double score(const float *q, const float *k, int64_t d, double scale)
{
    double sum = 0;

    for (int64_t e = 0; e < d; e++)
        sum += (double)q[e] * k[e];
    return sum * scale;
}

MP_REF(attention)
{
    const struct mp_value *qv = arg(s, v, 0), *kv = arg(s, v, 1);
    int64_t t = qv->dim[1], n = kv->dim[1], c = qv->dim[2];
    int64_t d = c / s->attr.heads;

    for (int64_t i = 0; i < qv->dim[0] * t * s->attr.heads; i++) {
        int64_t h = i % s->attr.heads, row = i / s->attr.heads;
        int64_t base = kv->dim[0] == 1 ? 0 : row / t * n;
        const float *q = (const float *)in[0] + row * c + h * d;
        const float *k = (const float *)in[1] + base * c + h * d;
        const float *val = (const float *)in[2] + base * c + h * d;
        float *y = (float *)out + row * c + h * d;
        double most = -INFINITY;

        for (int64_t j = 0; j < n; j++)
            most = fmax(most, score(q, k + j * c, d, s->attr.scale));
        for (int64_t at = 0; at < d; at += CHANNELS) {
            int64_t m = d - at < CHANNELS ? d - at : CHANNELS;
            double sum = 0, acc[CHANNELS] = {0};

            for (int64_t j = 0; j < n; j++) {
                double p = exp(score(q, k + j * c, d, s->attr.scale) - most);

                sum += p;
                for (int64_t e = 0; e < m; e++)
                    acc[e] += p * val[j * c + at + e];
            }
            for (int64_t e = 0; e < m; e++)
                y[at + e] = (float)(acc[e] / sum);
        }
    }
}

/* Normalise `groups` groups of c / groups channels over hw positions. */
static void normalise(float *y, const float *x, const float *w, const float *b,
                      int64_t hw, int64_t c, int64_t groups, float eps, int act)
{
    int64_t each = c / groups;

    for (int64_t g = 0; g < groups; g++) {
        double mean = 0, var = 0, k;

        for (int64_t i = 0; i < hw; i++)
            for (int64_t j = g * each; j < (g + 1) * each; j++)
                mean += x[i * c + j];
        mean /= (double)(hw * each);
        for (int64_t i = 0; i < hw; i++)
            for (int64_t j = g * each; j < (g + 1) * each; j++)
                var += (x[i * c + j] - mean) * (x[i * c + j] - mean);
        k = 1 / sqrt(var / (double)(hw * each) + eps);
        for (int64_t i = 0; i < hw; i++)
            for (int64_t j = g * each; j < (g + 1) * each; j++)
                y[i * c + j] = (float)activate(
                    (x[i * c + j] - mean) * k * w[j] + b[j], act);
    }
}

MP_REF(group_norm)
{
    const struct mp_value *x = arg(s, v, 0);
    int64_t c = last(x), one = (int64_t)x->count / x->dim[0];

    for (int64_t n = 0; n < x->dim[0]; n++)
        normalise((float *)out + n * one, (const float *)in[0] + n * one, in[1],
                  in[2], one / c, c, s->attr.groups, s->attr.eps, s->attr.act);
}

MP_REF(layer_norm)
{
    const struct mp_value *x = arg(s, v, 0);
    int64_t c = last(x);

    for (int64_t i = 0; i < (int64_t)x->count; i += c)
        normalise((float *)out + i, (const float *)in[0] + i, in[1], in[2], 1,
                  c, 1, s->attr.eps, s->attr.act);
}

MP_REF(batch_norm)
{
    const struct mp_value *xv = arg(s, v, 0);
    const float *x = in[0], *w = in[1], *b = in[2], *mean = in[3], *var = in[4];
    int64_t c = last(xv);
    float *y = out;

    for (int64_t i = 0; i < (int64_t)xv->count; i++) {
        int64_t j = i % c;
        double z =
            ((double)x[i] - mean[j]) / sqrt((double)var[j] + s->attr.eps);

        y[i] = (float)activate(z * w[j] + b[j], s->attr.act);
    }
}

MP_REF(act)
{
    const float *x = in[0];
    float *y = out;

    for (size_t i = 0; i < v[s->out].count; i++)
        y[i] = (float)activate(x[i], s->attr.act);
}

MP_REF(geglu)
{
    int64_t c = last(&v[s->out]);
    const float *x = in[0];
    float *y = out;

    for (int64_t i = 0; i < (int64_t)v[s->out].count; i++) {
        const float *row = x + i / c * 2 * c;

        y[i] = (float)(row[i % c] * activate(row[c + i % c], MP_GELU));
    }
}

MP_REF(binary)
{
    const struct mp_value *a = arg(s, v, 0), *b = arg(s, v, 1);
    const float *x = in[0], *z = in[1];
    float *y = out;

    for (size_t i = 0; i < a->count; i++) {
        size_t rest = i, at = 0, step = 1;

        for (int k = 0; k < b->ndim; k++) {
            size_t d = (size_t)a->dim[a->ndim - 1 - k];
            size_t e = (size_t)b->dim[b->ndim - 1 - k];

            at += (e == 1 ? 0 : rest % d) * step;
            step *= e;
            rest /= d;
        }
        y[i] = s->op == MP_OP_ADD
                   ? (float)activate((double)x[i] + z[at], s->attr.act)
                   : x[i] * z[at];
    }
}

/* Bytes of everything behind axis, of one step along it. */
static size_t stride_bytes(const struct mp_value *v, int axis)
{
    size_t n = mp_dtype_size(v->dtype);

    for (int i = axis + 1; i < v->ndim; i++)
        n *= (size_t)v->dim[i];
    return n;
}

MP_REF(concat)
{
    const struct mp_value *yv = &v[s->out];
    int axis = s->attr.axis;
    size_t unit = stride_bytes(yv, axis), row = unit * (size_t)yv->dim[axis];
    size_t rows = yv->count * mp_dtype_size(yv->dtype) / row, at = 0;

    for (int i = 0; i < s->nin; i++) {
        size_t part = unit * (size_t)arg(s, v, i)->dim[axis];

        for (size_t k = 0; k < rows; k++)
            memcpy((char *)out + k * row + at, (const char *)in[i] + k * part,
                   part);
        at += part;
    }
}

MP_REF(slice)
{
    const struct mp_value *xv = arg(s, v, 0), *yv = &v[s->out];
    int axis = s->attr.axis;
    size_t unit = stride_bytes(xv, axis), row = unit * (size_t)xv->dim[axis];
    size_t part = unit * (size_t)yv->dim[axis];

    for (size_t k = 0; k < yv->count * mp_dtype_size(yv->dtype) / part; k++)
        memcpy((char *)out + k * part,
               (const char *)in[0] + k * row + unit * (size_t)s->attr.start,
               part);
}

MP_REF(copy)
{
    memcpy(out, in[0], v[s->out].count * mp_dtype_size(v[s->out].dtype));
}

MP_REF(resize)
{
    const int64_t *xd = arg(s, v, 0)->dim, *yd = v[s->out].dim;
    const float *x = in[0];
    float *y = out;
    int64_t c = xd[3];

    for (int64_t i = 0; i < (int64_t)v[s->out].count; i++) {
        int64_t at[2] = {i / c / yd[2] % yd[1], i / c % yd[2]};
        const float *p = x + i / c / yd[2] / yd[1] * xd[1] * xd[2] * c + i % c;

        y[i] = (float)sample(p, xd, at, yd + 1, s->attr.nearest);
    }
}

MP_REF(pool)
{
    const int64_t *xd = arg(s, v, 0)->dim, *yd = v[s->out].dim;
    const float *x = in[0];
    float *y = out;
    int64_t c = xd[3];

    for (int64_t i = 0; i < (int64_t)v[s->out].count; i++) {
        int64_t ox = i / c % yd[2], oy = i / c / yd[2] % yd[1];
        const float *p = x + i / c / yd[2] / yd[1] * xd[1] * xd[2] * c + i % c;
        int64_t y0 = oy * xd[1] / yd[1];
        int64_t y1 = ((oy + 1) * xd[1] + yd[1] - 1) / yd[1];
        int64_t x0 = ox * xd[2] / yd[2];
        int64_t x1 = ((ox + 1) * xd[2] + yd[2] - 1) / yd[2];
        double sum = 0;

        for (int64_t a = y0; a < y1; a++)
            for (int64_t b = x0; b < x1; b++)
                sum += p[(a * xd[2] + b) * c];
        y[i] = (float)(sum / (double)((y1 - y0) * (x1 - x0)));
    }
}

MP_REF(pad)
{
    const int64_t *xd = arg(s, v, 0)->dim, *yd = v[s->out].dim;
    int64_t c = xd[3];

    memset(out, 0, v[s->out].count * sizeof(float));
    for (int64_t i = 0; i < xd[0] * xd[1]; i++) {
        int64_t n = i / xd[1], row = i % xd[1] + s->attr.start;

        memcpy((float *)out + ((n * yd[1] + row) * yd[2] + s->attr.left) * c,
               (const float *)in[0] + i * xd[2] * c,
               (size_t)(xd[2] * c) * sizeof(float));
    }
}

MP_REF(flip)
{
    const struct mp_value *x = arg(s, v, 0);
    int axis = s->attr.axis;
    int64_t n = x->dim[axis], inner = 1;
    const float *from = in[0];
    float *y = out;

    for (int i = axis + 1; i < x->ndim; i++)
        inner *= x->dim[i];
    for (int64_t i = 0; i < (int64_t)v[s->out].count; i++) {
        int64_t at = i / inner % n;

        y[i] = from[i + (n - 1 - 2 * at) * inner];
    }
}

MP_REF(softmax)
{
    int64_t c = last(&v[s->out]);
    const float *x = in[0];
    float *y = out;

    for (int64_t i = 0; i < (int64_t)v[s->out].count; i += c) {
        double most = -INFINITY, sum = 0;

        for (int64_t j = 0; j < c; j++)
            most = x[i + j] > most ? x[i + j] : most;
        for (int64_t j = 0; j < c; j++)
            sum += exp(x[i + j] - most);
        for (int64_t j = 0; j < c; j++)
            y[i + j] = (float)(exp(x[i + j] - most) / sum);
    }
}

MP_REF(argmax)
{
    int64_t c = last(arg(s, v, 0));
    int32_t *y = out;

    for (size_t i = 0; i < v[s->out].count; i++) {
        const float *x = (const float *)in[0] + (int64_t)i * c;

        y[i] = 0;
        for (int64_t j = 1; j < c; j++)
            if (x[j] > x[y[i]])
                y[i] = (int32_t)j;
    }
}

/* Into x, y and the value there; a NaN counts as the highest. */
static void find_peak(float out[3], const struct peak_map *m)
{
    int64_t at = 0;

    for (int64_t i = 1; i < m->h * m->w; i++)
        if (m->at[i * m->step] > m->at[at * m->step] ||
            isnan(m->at[i * m->step]))
            at = i;
    out[0] = out[1] = -1;
    out[2] = m->at[at * m->step];
    if (out[2] > 0) {
        out[0] = (float)(at % m->w);
        out[1] = (float)(at / m->w);
        peak_refine(out, m);
    }
}

MP_REF(heatmap_peaks)
{
    const int64_t *d = arg(s, v, 0)->dim;
    int64_t h = d[1], w = d[2], c = d[3];

    for (int64_t i = 0; i < d[0] * c; i++) {
        const float *x = (const float *)in[0] + i / c * h * w * c + i % c;

        find_peak((float *)out + 3 * i, &(struct peak_map){x, h, w, c});
    }
}

MP_REF(float)
{
    size_t n = v[s->out].count;

    if (arg(s, v, 0)->dtype == MP_F32) {
        memcpy(out, in[0], n * sizeof(float));
        return;
    }
    for (size_t i = 0; i < n; i++)
        ((float *)out)[i] = ((const uint8_t *)in[0])[i];
}

/* ---- the backend ---- */

struct mp_device {
    struct mp_device_conf conf;
};

struct mp_plan {
    const struct mp_device *device;
    size_t nvalue, nstep;
    struct mp_value *value;
    struct mp_step *step;
    float **constant; /* per value; NULL: in the arena */
};

static int ref_probe(struct mp_error *err)
{
    (void)err;
    return 1;
}

static int ref_info(int index, struct mp_device_info *out, struct mp_error *err)
{
    if (index != 0)
        return mp_fail(err, MP_EINVAL, "device %d: there is only 0", index);
    *out = (struct mp_device_info){.name = "plain C, one thread"};
    return 0;
}

static int ref_open(struct mp_device **out, const struct mp_device_conf *conf,
                    struct mp_error *err)
{
    *out = calloc(1, sizeof **out);
    if (!*out)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    (*out)->conf = *conf;
    return 0;
}

static void ref_close(struct mp_device *d)
{
    free(d);
}

static enum mp_dtype ref_best(const struct mp_device *d)
{
    (void)d;
    return MP_F32;
}

static int ref_supports(const struct mp_device *d, enum mp_dtype t,
                        struct mp_error *err)
{
    (void)d;
    return t == MP_F32 ? 0
                       : mp_fail(err, MP_ENOTSUP, "ref: computes in f32 only");
}

static int ref_memory(struct mp_device *d, struct mp_device_memory *out,
                      struct mp_error *err)
{
    (void)d;
    (void)err;
    *out = (struct mp_device_memory){0};
    return 0;
}

static int ref_alloc(struct mp_device *d, size_t bytes, mp_addr *out,
                     struct mp_error *err)
{
    void *p = malloc(bytes ? bytes : 1);

    (void)d;
    *out = (mp_addr)(uintptr_t)p;
    return p ? 0 : mp_fail(err, MP_ENOMEM, "out of memory: %zu bytes", bytes);
}

static void ref_free(struct mp_device *d, mp_addr a)
{
    (void)d;
    free((void *)(uintptr_t)a);
}

static int ref_put(struct mp_device *d, mp_addr dst, const void *src, size_t n,
                   struct mp_error *err)
{
    (void)d;
    (void)err;
    memcpy((void *)(uintptr_t)dst, src, n);
    return 0;
}

static int ref_copy(struct mp_device *d, mp_addr dst, mp_addr src, size_t n,
                    struct mp_error *err)
{
    return ref_put(d, dst, (const void *)(uintptr_t)src, n, err);
}

static int ref_get(struct mp_device *d, void *dst, mp_addr src, size_t n,
                   uint64_t *ticket, struct mp_error *err)
{
    *ticket = 0;
    return ref_copy(d, (mp_addr)(uintptr_t)dst, src, n, err);
}

static int ref_wait(struct mp_device *d, uint64_t ticket, struct mp_error *err)
{
    (void)d;
    (void)ticket;
    (void)err;
    return 0;
}

static void ref_plan_free(struct mp_plan *p)
{
    if (!p)
        return;
    for (size_t i = 0; p->constant && i < p->nvalue; i++)
        free(p->constant[i]);
    free(p->constant);
    free(p->value);
    free(p->step);
    free(p);
}

static int ref_compile(struct mp_device *d, const struct mp_program *p,
                       struct mp_plan **out, struct mp_error *err)
{
    struct mp_plan *plan = calloc(1, sizeof *plan);
    int rc = 0;

    if (!plan)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    plan->device = d;
    plan->nvalue = p->nvalue;
    plan->nstep = p->nstep;
    plan->value = calloc(p->nvalue + 1, sizeof *plan->value);
    plan->step = calloc(p->nstep + 1, sizeof *plan->step);
    plan->constant = calloc(p->nvalue + 1, sizeof *plan->constant);
    if (!plan->value || !plan->step || !plan->constant) {
        rc = mp_fail(err, MP_ENOMEM, "out of memory");
        goto fail;
    }
    memcpy(plan->value, p->value, p->nvalue * sizeof *plan->value);
    memcpy(plan->step, p->step, p->nstep * sizeof *plan->step);
    for (size_t i = 0; i < p->nvalue; i++) {
        const float *data;

        if (p->value[i].place != MP_CONSTANT)
            continue;
        rc = p->constant(p, (uint32_t)i, &data, err);
        if (rc)
            goto fail;
        plan->constant[i] = malloc(p->value[i].count * sizeof *data);
        if (plan->constant[i])
            memcpy(plan->constant[i], data, p->value[i].count * sizeof *data);
        p->release(p, (uint32_t)i);
        if (!plan->constant[i]) {
            rc = mp_fail(err, MP_ENOMEM, "out of memory");
            goto fail;
        }
    }
    *out = plan;
    return 0;
fail:
    ref_plan_free(plan);
    return rc;
}

static char *place_of(const struct mp_value *v, mp_addr arena,
                      const mp_addr *outside)
{
    mp_addr at =
        v->place == MP_OUTSIDE ? outside[v->offset] : arena + v->offset;

    return (char *)(uintptr_t)at;
}

static int ref_run(struct mp_plan *plan, mp_addr arena, const mp_addr *outside,
                   double *seconds, struct mp_error *err)
{
    const struct mp_device_conf *conf = &plan->device->conf;

    for (size_t k = 0; k < plan->nstep; k++) {
        const struct mp_step *s = &plan->step[k];
        const struct mp_value *out = &plan->value[s->out];
        const void *in[MP_MAX_IN] = {NULL};
        size_t bytes = out->count * mp_dtype_size(out->dtype);
        void *y; /* aside: an input may share the place of the result */

        if (conf->is_stopped && conf->is_stopped(conf->user))
            return mp_fail(err, MP_EINTR, "stopped");
        y = malloc(bytes);
        if (!y)
            return mp_fail(err, MP_ENOMEM, "out of memory: %zu bytes", bytes);
        for (int i = 0; i < s->nin; i++)
            if (s->in[i] != MP_NO_VALUE)
                in[i] = plan->constant[s->in[i]]
                            ? (const void *)plan->constant[s->in[i]]
                            : place_of(&plan->value[s->in[i]], arena, outside);
        mp_op_table[s->op].ref(s, plan->value, y, in);
        memcpy(place_of(out, arena, outside), y, bytes);
        free(y);
        if (seconds)
            seconds[k] = 0;
    }
    return 0;
}

static const char *ref_kernel(const struct mp_plan *plan, size_t step)
{
    (void)plan;
    (void)step;
    return "ref";
}

static int ref_commutes(const struct mp_enlarged *e, enum mp_dtype t)
{
    (void)e;
    (void)t;
    return 1;
}

const struct mp_backend mp_backend_ref = {
    .abi = MP_BACKEND_ABI,
    .size = sizeof(struct mp_backend),
    .name = "ref",
    .summary = "plain C references, for tests",
    .host = 1,
    .commutes = ref_commutes,
    .probe = ref_probe,
    .info = ref_info,
    .open = ref_open,
    .close = ref_close,
    .best = ref_best,
    .supports = ref_supports,
    .memory = ref_memory,
    .alloc = ref_alloc,
    .free = ref_free,
    .put = ref_put,
    .copy = ref_copy,
    .get = ref_get,
    .wait = ref_wait,
    .compile = ref_compile,
    .run = ref_run,
    .kernel = ref_kernel,
    .plan_free = ref_plan_free,
};
