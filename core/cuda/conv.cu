/* SPDX-License-Identifier: MIT */
/*
 * conv.cu - convolutions and linear layers as products of matrices: a row for
 * each result pixel, gathered on the fly from the map, times the weights K x
 * (R S C). For whatever cuDNN and cuBLASLt do not take. And the end of those
 * of enlarged maps, whoever took the products.
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

/* V results side by side, of a g_conv or a g_enlarge. */
template <int V, class A>
static DEV void finish(const A &a, uint32_t at, uint32_t k, float *v)
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

/* ---- the products of a map with nine taps, enlarged and added up ---- */

/* Result line d is a mixture of lines *i0 and *i1 of the small map, which are
 * neighbours, or the same: the weight of *i1. TERMS: of them, 1 or 2; to the
 * nearest there is 1. */
template <int TERMS>
static DEV float mixture(uint32_t *i0, uint32_t *i1, const g_enlarge &a,
                         uint32_t d, float scale, uint32_t n, uint32_t m)
{
    float f;

    if (TERMS == 1 || a.nearest) {
        *i0 = *i1 = scaled(d, n, m, 0);
        return 1;
    }
    f = source(i0, i1, d, scale, n);
    return *i0 == *i1 ? 1 : f;
}

/* What a thread's column of the result sees of a row of products with the
 * three taps of a row: TERMS columns for each. Those outside weigh nothing,
 * and are read where there is something. */
template <int TERMS> struct columns {
    uint32_t at[3 * TERMS];
    float weight[3 * TERMS];
};

template <int TERMS>
static DEV void look(columns<TERMS> *c, const g_enlarge &a, uint32_t x)
{
#pragma unroll
    for (uint32_t s = 0; s < 3; s++) {
        uint32_t i0, i1, d = x + s - 1;
        bool there = d < a.yw; /* huge where it would be negative */
        float f =
            mixture<TERMS>(&i0, &i1, a, there ? d : x, a.x_scale, a.w, a.yw);

        c->at[s * TERMS] = (i1 * 9 + s) * a.k;
        c->weight[s * TERMS] = there ? f : 0;
        if (TERMS == 2) {
            c->at[s * TERMS + 1] = (i0 * 9 + s) * a.k;
            c->weight[s * TERMS + 1] = there ? 1 - f : 0;
        }
    }
}

/* All is read before anything is added. */
template <int V, int TERMS>
static DEV void mix(float *sum, g_in z, uint32_t from, const columns<TERMS> &c)
{
    float v[3 * TERMS][V];

#pragma unroll
    for (int i = 0; i < 3 * TERMS; i++)
        load<V>(v[i], z, from + c.at[i]);
#pragma unroll
    for (int j = 0; j < V; j++)
        sum[j] = c.weight[0] * v[0][j];
#pragma unroll
    for (int i = 1; i < 3 * TERMS; i++)
#pragma unroll
        for (int j = 0; j < V; j++)
            sum[j] += c.weight[i] * v[i][j];
}

/* A thread goes down a column. For each row of taps it keeps the mixtures of
 * two rows of products, so that it reads every row once; the columns beside it
 * read the same, from the cache. What a result is the sum of, and in which
 * order, does not depend on where the thread began. */
template <int V, int TERMS>
static DEV void do_enlarge(const g_enlarge &a, g_in z)
{
    const uint32_t side = GPU_ENLARGE_SIDE;
    uint32_t line = (a.k + side * V - 1) / (side * V) * a.yw * side;
    uint32_t blocks = (line + GPU_THREADS - 1) / GPU_THREADS;
    uint32_t slices = (a.yh + a.rows - 1) / a.rows;
    uint32_t i = blockIdx.x % blocks * GPU_THREADS + threadIdx.x;
    uint32_t first = blockIdx.x / blocks % slices * a.rows;
    uint32_t n = blockIdx.x / blocks / slices, x = i / side % a.yw;
    uint32_t k = (i / side / a.yw * side + i % side) * V;
    uint32_t end = first + a.rows < a.yh ? first + a.rows : a.yh;
    float above[3][V] = {}, below[3][V] = {};
    int32_t have[3]; /* the row that below is of; before the first, less */
    columns<TERMS> c;

    if (k >= a.k)
        return;
    look<TERMS>(&c, a, x);
    have[0] = have[1] = have[2] = INT32_MIN;
#pragma unroll 1
    for (uint32_t y = first; y < end; y++) {
        float sum[V] = {};

#pragma unroll
        for (int r = 0; r < 3; r++) {
            uint32_t i0, i1, d = y + r - 1;
            float f;

            if (d >= a.yh)
                continue;
            f = mixture<TERMS>(&i0, &i1, a, d, a.y_scale, a.h, a.yh);
            if (have[r] == INT32_MIN)
                have[r] = (int32_t)i0 - 1;
#pragma unroll 1
            while (have[r] < (int32_t)i1) {
#pragma unroll
                for (int j = 0; j < V; j++)
                    above[r][j] = below[r][j];
                have[r]++;
                mix<V, TERMS>(below[r], z,
                              ((n * a.h + have[r]) * a.w * 9 + 3 * r) * a.k + k,
                              c);
            }
#pragma unroll
            for (int j = 0; j < V; j++)
                sum[j] += f * below[r][j];
            if (TERMS == 2 && f < 1)
#pragma unroll
                for (int j = 0; j < V; j++)
                    sum[j] += (1 - f) * above[r][j];
        }
        finish<V>(a, ((n * a.yh + y) * a.yw + x) * a.k, k, sum);
    }
}

KERNEL(enlarge, g_enlarge, GPU_THREADS, 1, (do_enlarge<1, 2>(a, a.z)))
#define ENLARGE(of)                                                            \
    KERNEL(enlarge_nearest_##of, g_enlarge, GPU_THREADS, 2,                    \
           (do_enlarge<8, 1>(a, g_in{a.z.p, of::type})))                       \
    KERNEL(enlarge_bilinear_##of, g_enlarge, GPU_THREADS, 2,                   \
           (do_enlarge<8, 2>(a, g_in{a.z.p, of::type})))
ENLARGE(bf16)
ENLARGE(f16)
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
