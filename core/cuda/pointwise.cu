/* SPDX-License-Identifier: MIT */
/* pointwise.cu - element by element, and from place to place. */
#include "cuda/prelude.cuh"

template <int V> static DEV void do_map(const g_map &a)
{
    uint32_t i = my_index() * V;
    float v[V];

    if (i >= a.n)
        return;
    load<V>(v, a.x, i);
    activate_all<V>(v, a.act);
    store<V>(a.y, i, v);
}

template <int V> static DEV void do_geglu(const g_geglu &a)
{
    uint32_t i = my_index() * V, row = i / a.c;
    float u[V], v[V];

    if (row >= a.rows)
        return;
    load<V>(u, a.x, i + row * a.c);
    load<V>(v, a.x, i + row * a.c + a.c);
#pragma unroll
    for (int j = 0; j < V; j++)
        u[j] *= gelu(v[j]);
    store<V>(a.y, i, u);
}

/* The same of 16 bits, and of several elements a block apart: all are read
 * before the first is waited for. */
template <int TYPE> static DEV void do_geglu_each(const g_geglu &a)
{
    constexpr int N = GPU_GEGLU;
    uint32_t first = (blockIdx.x * N * GPU_THREADS + threadIdx.x) * 8;
    held<TYPE, 8> u[N], v[N];
    float y[8];

#pragma unroll
    for (int k = 0; k < N; k++) {
        uint32_t i = first + k * GPU_THREADS * 8, row = i / a.c;

        if (row < a.rows) {
            u[k] = hold<TYPE, 8>(a.x.p, i + row * a.c);
            v[k] = hold<TYPE, 8>(a.x.p, i + row * a.c + a.c);
        }
    }
#pragma unroll
    for (int k = 0; k < N; k++) {
        uint32_t i = first + k * GPU_THREADS * 8;

        if (i / a.c >= a.rows)
            return;
#pragma unroll
        for (int j = 0; j < 8; j++)
            y[j] = u[k][j] * gelu(v[k][j]);
        store<8>(a.y, i, y);
    }
}

template <int V> static DEV void do_binary(const g_binary &a)
{
    uint32_t i = my_index() * V, rest = i, at = 0;
    float u[V], v[V];

    if (i >= a.n)
        return;
#pragma unroll
    for (int k = 3; k >= 0; k--) {
        uint32_t next = k ? rest / a.dim[k] : 0;

        at += (rest - next * a.dim[k]) * a.step[k];
        rest = next;
    }
    load<V>(u, a.a, i);
    if (V == 1 || a.step[3]) {
        load<V>(v, a.b, at);
    } else { /* one for all */
        load<1>(v, a.b, at);
#pragma unroll
        for (int j = 1; j < V; j++)
            v[j] = v[0];
    }
#pragma unroll
    for (int j = 0; j < V; j++)
        u[j] = a.multiply ? u[j] * v[j] : u[j] + v[j];
    activate_all<V>(u, a.act);
    store<V>(a.y, i, u);
}

template <int V> static DEV void do_copy(const g_copy &a)
{
    uint32_t i = my_index() * V, row = i / a.n, at = i - row * a.n;
    float v[V];

    if (row >= a.rows)
        return;
    load<V>(v, a.x, row * a.x_row + at);
    store<V>(a.y, row * a.y_row + at, v);
}

static DEV void do_widen(const g_copy &a)
{
    uint32_t i = my_index() * 8, row = i / a.y_row, at = i - row * a.y_row;
    float v[8] = {};

    if (row >= a.rows)
        return;
#pragma unroll
    for (int j = 0; j < 8; j++)
        if (at + j < a.n)
            load<1>(v + j, a.x, row * a.x_row + at + j);
    store<8>(a.y, i, v);
}

static DEV void do_unfold(const g_unfold &a)
{
    uint32_t i = my_index() * 8, pixel = i / a.row, at = i - pixel * a.row;
    uint32_t line = pixel / a.ow, n = line / a.oh;
    int32_t y0 = (int32_t)((line - n * a.oh) * a.stride) - a.top;
    int32_t x0 = (int32_t)((pixel - line * a.ow) * a.stride) - a.left;
    float v[8] = {};

    if (n >= a.n)
        return;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        uint32_t c = (at + j) / 9, tap = (at + j) % 9;
        uint32_t y = (uint32_t)y0 + tap / 3, x = (uint32_t)x0 + tap % 3;

        if (c < a.c && y < a.h && x < a.w) /* what is below 0 is large */
            load<1>(v + j, a.x, ((n * a.h + y) * a.w + x) * a.c + c);
    }
    store<8>(a.y, i, v);
}

static DEV void do_pack(const g_pack &a)
{
    uint32_t i = my_index(), c = i % a.c, tap = i / a.c;
    uint32_t tx = tap % a.tx, ty = tap / a.tx % a.ty, k = tap / a.tx / a.ty;
    float v = 0;

    if (k >= a.k)
        return;
    if (c < a.have)
        load<1>(&v, a.x,
                (uint32_t)(a.first + (int32_t)k * a.k_step +
                           (int32_t)ty * a.ty_step + (int32_t)tx * a.tx_step +
                           (int32_t)c * a.c_step));
    store<1>(a.y, i, &v);
}

template <int V> static DEV void do_flip(const g_flip &a)
{
    uint32_t i = my_index() * V, at = i / a.inner % a.n;
    float v[V];

    if (i >= a.outer * a.n * a.inner)
        return;
    load<V>(v, a.x, i + (a.n - 1 - at) * a.inner - at * a.inner);
    store<V>(a.y, i, v);
}

/* ---- maps ---- */

struct pixel {
    uint32_t n, y, x, c;
};

/* Of the result; false: none. */
template <int V> static DEV bool find(pixel *p, uint32_t i, const g_spatial &a)
{
    uint32_t at = i / a.c;

    p->c = i - at * a.c;
    p->x = at % a.yw;
    at /= a.yw;
    p->y = at % a.yh;
    p->n = at / a.yh;
    return p->n < a.n;
}

template <int V> static DEV void do_bilinear(const g_spatial &a)
{
    uint32_t i = my_index() * V, x0, x1, y0, y1;
    float v[4][V], fx, fy;
    pixel p;

    if (!find<V>(&p, i, a))
        return;
    fy = source(&y0, &y1, p.y, a.y_scale, a.h);
    fx = source(&x0, &x1, p.x, a.x_scale, a.w);
    y0 = (p.n * a.h + y0) * a.w;
    y1 = (p.n * a.h + y1) * a.w;
    load<V>(v[0], a.x, (y0 + x0) * a.c + p.c);
    load<V>(v[1], a.x, (y0 + x1) * a.c + p.c);
    load<V>(v[2], a.x, (y1 + x0) * a.c + p.c);
    load<V>(v[3], a.x, (y1 + x1) * a.c + p.c);
#pragma unroll
    for (int j = 0; j < V; j++)
        v[0][j] = (1 - fy) * ((1 - fx) * v[0][j] + fx * v[1][j]) +
                  fy * ((1 - fx) * v[2][j] + fx * v[3][j]);
    store<V>(a.y, i, v[0]);
}

template <int V> static DEV void do_nearest(const g_spatial &a)
{
    uint32_t i = my_index() * V;
    float v[V];
    pixel p;

    if (!find<V>(&p, i, a))
        return;
    load<V>(v, a.x,
            ((p.n * a.h + scaled(p.y, a.h, a.yh, 0)) * a.w +
             scaled(p.x, a.w, a.yw, 0)) *
                    a.c +
                p.c);
    store<V>(a.y, i, v);
}

template <int V> static DEV void do_pool(const g_spatial &a)
{
    uint32_t i = my_index() * V, y0, y1, x0, x1;
    float v[V], sum[V];
    pixel p;

    if (!find<V>(&p, i, a))
        return;
    y0 = scaled(p.y, a.h, a.yh, 0);
    y1 = scaled(p.y + 1, a.h, a.yh, a.yh - 1);
    x0 = scaled(p.x, a.w, a.yw, 0);
    x1 = scaled(p.x + 1, a.w, a.yw, a.yw - 1);
    for (int j = 0; j < V; j++)
        sum[j] = 0;
    for (uint32_t y = y0; y < y1; y++) {
        float row[V] = {};

        for (uint32_t x = x0; x < x1; x++) {
            load<V>(v, a.x, ((p.n * a.h + y) * a.w + x) * a.c + p.c);
#pragma unroll
            for (int j = 0; j < V; j++)
                row[j] += v[j];
        }
#pragma unroll
        for (int j = 0; j < V; j++)
            sum[j] += row[j];
    }
#pragma unroll
    for (int j = 0; j < V; j++)
        sum[j] /= (float)((y1 - y0) * (x1 - x0));
    store<V>(a.y, i, sum);
}

template <int V> static DEV void do_pad(const g_spatial &a)
{
    uint32_t i = my_index() * V, y, x;
    float v[V] = {};
    pixel p;

    if (!find<V>(&p, i, a))
        return;
    y = p.y - a.top; /* huge where it would be negative */
    x = p.x - a.left;
    if (y < a.h && x < a.w)
        load<V>(v, a.x, ((p.n * a.h + y) * a.w + x) * a.c + p.c);
    store<V>(a.y, i, v);
}

#define BOTH(name, arg)                                                        \
    KERNEL(name, arg, GPU_THREADS, 1, do_##name<1>(a))                         \
    KERNEL(name##_8, arg, GPU_THREADS, 1, do_##name<8>(a))
BOTH(map, g_map)
BOTH(geglu, g_geglu)
KERNEL(geglu_bf16, g_geglu, GPU_THREADS, ROOM(5), do_geglu_each<MP_BF16>(a))
KERNEL(geglu_f16, g_geglu, GPU_THREADS, ROOM(5), do_geglu_each<MP_F16>(a))
BOTH(binary, g_binary)
BOTH(copy, g_copy)
BOTH(bilinear, g_spatial)
BOTH(nearest, g_spatial)
BOTH(pool, g_spatial)
BOTH(pad, g_spatial)
BOTH(flip, g_flip)
KERNEL(widen_8, g_copy, GPU_THREADS, 1, do_widen(a))
KERNEL(pack, g_pack, GPU_THREADS, 1, do_pack(a))
KERNEL(unfold_8, g_unfold, GPU_THREADS, 1, do_unfold(a))
