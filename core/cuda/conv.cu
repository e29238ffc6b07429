/* SPDX-License-Identifier: MIT */
/*
 * conv.cu - convolutions and linear layers as products of matrices: a row for
 * each result pixel, gathered on the fly from the map, times the weights K x
 * (R S C). For whatever cuDNN and cuBLASLt do not take.
 */
#include "cuda/prelude.cuh"

/* Where result pixel m looks at the map, and where it goes. */
struct place {
    int32_t y, x;  /* of the kernel's corner, may be outside */
    uint32_t n;    /* picture; UINT32_MAX: there is no such pixel */
    uint32_t from; /* element of (n, 0, 0, 0) */
};

static DEV place place_of(const g_conv &a, uint32_t m)
{
    uint32_t ox = m % a.ow, oy = m / a.ow % a.oh;
    place p;

    p.n = m / a.ow / a.oh;
    p.y = (int32_t)(oy * a.stride) - a.top;
    p.x = (int32_t)(ox * a.stride) - a.left;
    p.from = p.n * a.h * a.wd * a.c;
    if (p.n >= a.n)
        p.n = UINT32_MAX;
    return p;
}

/* First element of the result of pixel m. */
static DEV uint32_t result_of(const g_conv &a, uint32_t m)
{
    uint32_t ox = m % a.ow, oy = m / a.ow % a.oh, n = m / a.ow / a.oh;

    return ((n * a.yh + oy * a.step + a.y0) * a.yw + ox * a.step + a.x0) * a.k;
}

/* A position in the kernel: what is multiplied at the same time in all rows. */
struct tap {
    uint32_t r, s, c;
};

static DEV tap tap_of(const g_conv &a, uint32_t at)
{
    tap t = {at / a.c / a.s, at / a.c % a.s, at % a.c};

    return t;
}

static DEV void advance(tap *t, const g_conv &a, uint32_t by)
{
    for (t->c += by; t->c >= a.c; t->c -= a.c)
        if (++t->s == a.s) {
            t->s = 0;
            t->r++;
        }
}

/* Element of the map, or -1 where there is only padding. */
static DEV int64_t element(const g_conv &a, const place &p, const tap &t)
{
    uint32_t y = (uint32_t)(p.y + (int32_t)t.r);
    uint32_t x = (uint32_t)(p.x + (int32_t)t.s);

    if (p.n == UINT32_MAX || t.r >= a.r || y >= a.h || x >= a.wd)
        return -1;
    return p.from + (y * a.wd + x) * a.c + t.c;
}

/* V results side by side. */
template <int V>
static DEV void finish(const g_conv &a, uint32_t at, uint32_t k, float *v)
{
    float more[V];

    if (a.bias) {
        load<V>(more, g_in{a.bias, MP_F32}, k);
#pragma unroll
        for (int j = 0; j < V; j++)
            v[j] += more[j];
    }
    if (a.residual.p) {
        load<V>(more, a.residual, at + k);
#pragma unroll
        for (int j = 0; j < V; j++)
            v[j] += more[j];
    }
    activate_all<V>(v, a.act);
    store<V>(a.y, at + k, v);
}

/* ---- 16 bits: tensor cores ---- */

/* Tiles lie in shared memory as rows of DEPTH elements, 64 bytes; the 16-byte
 * chunks of a row are exchanged so that the eight rows that one ldmatrix reads
 * lie in different banks. */
#define DEPTH 32

static DEV uint32_t swizzle(uint32_t row, uint32_t chunk)
{
    return row * DEPTH + ((chunk ^ (row >> 1 & 3)) * 8);
}

/* Eight elements of x by themselves: any channels, any type. */
template <class T>
static DEV void gather(uint16_t *to, const g_conv &a, const place &p,
                       uint32_t at)
{
    for (uint32_t j = 0; j < 8; j++) {
        int64_t i = element(a, p, tap_of(a, at + j));
        float v = 0;

        if (i >= 0)
            load<1>(&v, a.x, (uint32_t)i);
        to[j] = to_half(v, T::type);
    }
}

/* BM x BN results by a block of (BM / WM) * (BN / WN) warps, each WM x WN.
 * Copies run STAGES - 1 tiles ahead of the products. */
template <class T, int V, int BM, int BN, int WM, int WN, int STAGES>
static DEV void do_conv(const g_conv &a)
{
    constexpr uint32_t threads = BM / WM * (BN / WN) * 32, rows = threads / 4;
    constexpr int MA = BM / rows, MB = BN / rows, MI = WM / 16, NI = WN / 8;
    DYNAMIC_SHARED(uint16_t, tiles);
    uint16_t *tile_a = tiles, *tile_b = tiles + STAGES * BM * DEPTH;
    uint32_t depth = a.r * a.s * a.c, steps = (depth + DEPTH - 1) / DEPTH;
    uint32_t chunk = threadIdx.x % 4, row = threadIdx.x / 4;
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t wm = warp % (BM / WM) * WM, wn = warp / (BM / WM) * WN;
    uint32_t m0 = blockIdx.x * BM, n0 = blockIdx.y * BN;
    const uint16_t *x = (const uint16_t *)a.x.p, *w = (const uint16_t *)a.w.p;
    float sum[MI][NI][4] = {};
    tap t = tap_of(a, chunk * 8);
    place p[MA];

#pragma unroll
    for (int i = 0; i < MA; i++)
        p[i] = place_of(a, m0 + row + i * rows);

    auto fetch = [&](uint32_t step) {
        uint16_t *ta = tile_a + step % STAGES * (BM * DEPTH);
        uint16_t *tb = tile_b + step % STAGES * (BN * DEPTH);
        uint32_t at = step * DEPTH + chunk * 8;

        if (step < steps) {
#pragma unroll
            for (int i = 0; i < MA; i++) {
                uint16_t *to = ta + swizzle(row + i * rows, chunk);

                if (V == 8) {
                    int64_t from = element(a, p[i], t);

                    copy_async(to, x + (from < 0 ? 0 : from), from >= 0);
                } else {
                    gather<T>(to, a, p[i], at);
                }
            }
#pragma unroll
            for (int i = 0; i < MB; i++) {
                uint32_t k = n0 + row + i * rows;
                uint16_t *to = tb + swizzle(row + i * rows, chunk);

                if (V == 8) {
                    bool there = k < a.k && at < depth;

                    copy_async(to, w + (there ? k * depth + at : 0), there);
                } else {
                    for (uint32_t j = 0; j < 8; j++)
                        to[j] = k < a.k && at + j < depth
                                    ? w[k * depth + at + j]
                                    : (uint16_t)0;
                }
            }
            if (V == 8)
                advance(&t, a, DEPTH);
        }
        copy_commit();
    };

    for (uint32_t i = 0; i < STAGES - 1; i++)
        fetch(i);
    for (uint32_t step = 0; step < steps; step++) {
        const uint16_t *ta = tile_a + step % STAGES * (BM * DEPTH);
        const uint16_t *tb = tile_b + step % STAGES * (BN * DEPTH);

        copy_wait<STAGES - 2>();
        __syncthreads(); /* all see the tile; the oldest place is free */
        fetch(step + STAGES - 1);
#pragma unroll
        for (int k = 0; k < DEPTH / 16; k++) {
            uint32_t fa[MI][4], fb[NI / 2][4];

#pragma unroll
            for (int i = 0; i < MI; i++)
                ldmatrix(fa[i], ta + swizzle(wm + i * 16 + lane % 16,
                                             2 * k + lane / 16));
#pragma unroll
            for (int i = 0; i < NI / 2; i++)
                ldmatrix(fb[i],
                         tb + swizzle(wn + i * 16 + lane / 16 * 8 + lane % 8,
                                      2 * k + lane / 8 % 2));
#pragma unroll
            for (int i = 0; i < MI; i++)
#pragma unroll
                for (int j = 0; j < NI; j++)
                    T::mma(sum[i][j], fa[i], fb[j / 2] + j % 2 * 2);
        }
    }
    copy_wait<0>();
    __syncthreads();
    /* Through shared memory, so that whole lines are written, and bias,
     * residual and activation are in the code once. */
    float *tile = (float *)tiles;
    constexpr uint32_t pitch = BN + 8;

#pragma unroll
    for (int i = 0; i < 2 * MI; i++)
#pragma unroll
        for (int j = 0; j < NI; j++) {
            const float *v = sum[i / 2][j] + i % 2 * 2;

            *(float2 *)(tile + (wm + i * 8 + lane / 4) * pitch + wn + j * 8 +
                        lane % 4 * 2) = make_float2(v[0], v[1]);
        }
    __syncthreads();
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < BM * BN / 8; i += threads) {
        uint32_t m = i / (BN / 8), k = i % (BN / 8) * 8, at;
        float *v = tile + m * pitch + k;

        k += n0;
        if (m0 + m >= a.n * a.oh * a.ow || k >= a.k)
            continue;
        at = result_of(a, m0 + m);
        if (V == 8 && a.k % 8 == 0)
            finish<8>(a, at, k, v);
        else
            for (uint32_t j = 0; j < 8 && k + j < a.k; j++)
                finish<1>(a, at, k + j, v + j);
    }
}

/* ---- f32: exact products on the ordinary units ---- */

/* 64 x 64 results by 16 x 16 threads, 4 x 4 each. A tile's sums are taken by
 * themselves first: the error grows with depth / 16, not with depth. */
static DEV void do_conv_f32(const g_conv &a)
{
    __shared__ float tile_a[16][64 + 4], tile_b[16][64 + 4];
    uint32_t depth = a.r * a.s * a.c;
    uint32_t row = threadIdx.x / 4, first = threadIdx.x % 4 * 4;
    uint32_t tm = threadIdx.x % 16 * 4, tn = threadIdx.x / 16 * 4;
    uint32_t m0 = blockIdx.x * 64, k = blockIdx.y * 64 + row;
    place p = place_of(a, m0 + row);
    tap t = tap_of(a, first);
    float sum[4][4] = {};

    for (uint32_t at = first; at - first < depth; at += 16) {
        float part[4][4] = {};

        for (uint32_t j = 0; j < 4; j++) {
            int64_t i = element(a, p, t);
            float v = 0;

            if (i >= 0)
                load<1>(&v, a.x, (uint32_t)i);
            tile_a[first + j][row] = v;
            tile_b[first + j][row] =
                k < a.k && at + j < depth
                    ? ((const float *)a.w.p)[k * depth + at + j]
                    : 0;
            advance(&t, a, 1);
        }
        advance(&t, a, 12);
        __syncthreads();
#pragma unroll
        for (int d = 0; d < 16; d++) {
            float4 u = *(const float4 *)&tile_a[d][tm];
            float4 w = *(const float4 *)&tile_b[d][tn];
            float x[4] = {u.x, u.y, u.z, u.w}, z[4] = {w.x, w.y, w.z, w.w};

#pragma unroll
            for (int i = 0; i < 16; i++)
                part[i / 4][i % 4] += x[i / 4] * z[i % 4];
        }
#pragma unroll
        for (int i = 0; i < 16; i++)
            sum[i / 4][i % 4] += part[i / 4][i % 4];
        __syncthreads();
    }
    for (uint32_t i = 0; i < 4 && m0 + tm + i < a.n * a.oh * a.ow; i++) {
        uint32_t at = result_of(a, m0 + tm + i);

        for (uint32_t j = 0; j < 4; j++)
            if (blockIdx.y * 64 + tn + j < a.k)
                finish<1>(a, at, blockIdx.y * 64 + tn + j, &sum[i][j]);
    }
}

/* ---- few results: a warp sums each pixel's products ---- */

template <int V> static DEV void do_conv_thin(const g_conv &a)
{
    uint32_t m = blockIdx.x * GPU_ROWS + threadIdx.x / 32;
    uint32_t lane = threadIdx.x % 32, depth = a.r * a.s * a.c;
    place p = place_of(a, m);
    float sum[GPU_THIN] = {}, x[V], w[V];

    if (p.n == UINT32_MAX)
        return;
    for (uint32_t i = 0; i < a.r * a.s; i++) {
        tap t = {i / a.s, i % a.s, 0};
        int64_t from = element(a, p, t);

        if (from < 0)
            continue;
        for (uint32_t c = lane * V; c < a.c; c += 32 * V) {
            load<V>(x, a.x, (uint32_t)from + c);
#pragma unroll
            for (int k = 0; k < GPU_THIN; k++) {
                if ((uint32_t)k >= a.k)
                    break;
                load<V>(w, a.w, k * depth + i * a.c + c);
#pragma unroll
                for (int j = 0; j < V; j++)
                    sum[k] += x[j] * w[j];
            }
        }
    }
#pragma unroll
    for (int k = 0; k < GPU_THIN; k++) {
        float v = warp_sum(sum[k]);

        if (lane == 0 && (uint32_t)k < a.k)
            finish<1>(a, result_of(a, m), (uint32_t)k, &v);
    }
}

KERNEL(conv_thin, g_conv, 32 * GPU_ROWS, 1, do_conv_thin<1>(a))
KERNEL(conv_thin_8, g_conv, 32 * GPU_ROWS, 1, do_conv_thin<8>(a))
KERNEL(conv_f32, g_conv, 256, 1, do_conv_f32(a))
#define PRODUCTS(type)                                                         \
    KERNEL(conv_##type##_64, g_conv, 128, 1,                                   \
           (do_conv<type, 1, 64, 64, 32, 32, 4>(a)))                           \
    KERNEL(conv_##type##_64_8, g_conv, 128, 1,                                 \
           (do_conv<type, 8, 64, 64, 32, 32, 4>(a)))                           \
    KERNEL(conv_##type##_128_8, g_conv, 256, 2,                                \
           (do_conv<type, 8, 128, 128, 64, 32, 4>(a)))
PRODUCTS(bf16)
PRODUCTS(f16)
