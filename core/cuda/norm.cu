/* SPDX-License-Identifier: MIT */
/* norm.cu - norms, softmax, argmax and the peaks of heat maps. */
#include "cuda/prelude.cuh"
#include "peak.h"

static DEV uint32_t my_row()
{
    return blockIdx.x * GPU_ROWS + threadIdx.x / 32;
}

static DEV uint32_t my_lane()
{
    return threadIdx.x % 32;
}

/* ---- rows: a warp each; what it reads twice comes from the cache ---- */

template <int V> static DEV void do_layer_norm(const g_rows &a)
{
    uint32_t row = my_row(), from = row * a.c, i;
    float v[V], w[V], b[V], sum = 0, square = 0, mean, scale;

    if (row >= a.rows)
        return;
    for (i = my_lane() * V; i < a.c; i += 32 * V) {
        load<V>(v, a.x, from + i);
#pragma unroll
        for (int j = 0; j < V; j++)
            sum += v[j];
    }
    mean = warp_sum(sum) / (float)a.c;
    for (i = my_lane() * V; i < a.c; i += 32 * V) {
        load<V>(v, a.x, from + i);
#pragma unroll
        for (int j = 0; j < V; j++)
            square += (v[j] - mean) * (v[j] - mean);
    }
    scale = 1 / sqrtf(warp_sum(square) / (float)a.c + a.eps);
    for (i = my_lane() * V; i < a.c; i += 32 * V) {
        load<V>(v, a.x, from + i);
        load<V>(w, a.weight, i);
        load<V>(b, a.bias, i);
#pragma unroll
        for (int j = 0; j < V; j++)
            v[j] = (v[j] - mean) * scale * w[j] + b[j];
        activate_all<V>(v, a.act);
        store<V>(a.y, from + i, v);
    }
}

/* The same of rows of up to MOST, each held by LANES lanes of a warp. */
template <int TYPE, int LANES, int MOST>
static DEV void do_layer_norm_held(const g_rows &a)
{
    constexpr int HELD = MOST / LANES / 8;
    uint32_t row = (blockIdx.x * 32 * GPU_ROWS + threadIdx.x) / LANES;
    uint32_t lane = threadIdx.x % LANES, from = row * a.c;
    uint32_t c = row < a.rows ? a.c : 0; /* a half of a warp may have none */
    float v[8], w[8], b[8], sum = 0, square = 0, mean, scale;
    held<TYPE, 8> x[HELD];

#pragma unroll
    for (int k = 0; k < HELD; k++) {
        uint32_t i = (k * LANES + lane) * 8;

        if (i < c)
            x[k] = hold<TYPE, 8>(a.x.p, from + i);
    }
#pragma unroll
    for (int k = 0; k < HELD; k++)
        if ((k * LANES + lane) * 8 < c)
#pragma unroll
            for (int j = 0; j < 8; j++)
                sum += x[k][j];
    mean = lanes_sum<LANES>(sum) / (float)a.c;
#pragma unroll
    for (int k = 0; k < HELD; k++)
        if ((k * LANES + lane) * 8 < c)
#pragma unroll
            for (int j = 0; j < 8; j++)
                square += (x[k][j] - mean) * (x[k][j] - mean);
    scale = 1 / sqrtf(lanes_sum<LANES>(square) / (float)a.c + a.eps);
#pragma unroll
    for (int k = 0; k < HELD; k++) {
        uint32_t i = (k * LANES + lane) * 8;

        if (i >= c)
            break;
        load<8>(w, a.weight, i);
        load<8>(b, a.bias, i);
#pragma unroll
        for (int j = 0; j < 8; j++)
            v[j] = (x[k][j] - mean) * scale * w[j] + b[j];
        activate_all<8>(v, a.act);
        store<8>(a.y, from + i, v);
    }
}

static DEV void do_batch_norm(const g_rows &a)
{
    uint32_t row = my_row(), from = row * a.c;
    float x, w, b, mean, var;

    if (row >= a.rows)
        return;
    for (uint32_t i = my_lane(); i < a.c; i += 32) {
        load<1>(&x, a.x, from + i);
        load<1>(&w, a.weight, i);
        load<1>(&b, a.bias, i);
        load<1>(&mean, a.mean, i);
        load<1>(&var, a.var, i);
        x = activate((x - mean) / sqrtf(var + a.eps) * w + b, a.act);
        store<1>(a.y, from + i, &x);
    }
}

static DEV void do_softmax(const g_rows &a)
{
    uint32_t row = my_row(), from = row * a.c, i;
    float v, most = -INFINITY, sum = 0;

    if (row >= a.rows)
        return;
    for (i = my_lane(); i < a.c; i += 32) {
        load<1>(&v, a.x, from + i);
        most = fmaxf(most, v);
    }
    most = warp_max(most);
    for (i = my_lane(); i < a.c; i += 32) {
        load<1>(&v, a.x, from + i);
        sum += expf(v - most);
    }
    sum = warp_sum(sum);
    for (i = my_lane(); i < a.c; i += 32) {
        load<1>(&v, a.x, from + i);
        v = expf(v - most) / sum;
        store<1>(a.y, from + i, &v);
    }
}

/* Of the whole block, of 32 N threads; `each` has N numbers. */
static DEV float block_sum(float v, float *each)
{
    float all = 0;

    v = warp_sum(v);
    __syncthreads(); /* the last sum has been read */
    if (my_lane() == 0)
        each[threadIdx.x / 32] = v;
    __syncthreads();
    for (uint32_t i = 0; i < blockDim.x / 32; i++)
        all += each[i];
    return all;
}

/* Likewise the largest. */
static DEV float block_max(float v, float *each)
{
    float most = -INFINITY;

    v = warp_max(v);
    __syncthreads();
    if (my_lane() == 0)
        each[threadIdx.x / 32] = v;
    __syncthreads();
    for (uint32_t i = 0; i < blockDim.x / 32; i++)
        most = fmaxf(most, each[i]);
    return most;
}

/* Layer norm of a row that the block holds, 8 of it by each thread: few rows
 * are done soonest if nothing waits for anything that could be read before. */
template <int TYPE> static DEV void do_layer_norm_block(const g_rows &a)
{
    __shared__ float each[GPU_LAYER / 8 / 32];
    uint32_t i = threadIdx.x * 8, at = blockIdx.x * a.c + i;
    float v[8], w[8], b[8], sum = 0, square = 0, mean, scale;
    bool mine = i < a.c;
    held<TYPE, 8> x;

    if (mine) {
        x = hold<TYPE, 8>(a.x.p, at);
        load<8>(w, a.weight, i);
        load<8>(b, a.bias, i);
    }
#pragma unroll
    for (int j = 0; j < 8; j++)
        sum += mine ? x[j] : 0;
    mean = block_sum(sum, each) / (float)a.c;
#pragma unroll
    for (int j = 0; j < 8; j++)
        square += mine ? (x[j] - mean) * (x[j] - mean) : 0;
    scale = 1 / sqrtf(block_sum(square, each) / (float)a.c + a.eps);
    if (!mine)
        return;
#pragma unroll
    for (int j = 0; j < 8; j++)
        v[j] = (x[j] - mean) * scale * w[j] + b[j];
    activate_all<8>(v, a.act);
    store<8>(a.y, at, v);
}

/* Softmax of a row that the block can hold. */
static DEV void do_soften(const g_soften &a)
{
    constexpr int HELD = GPU_SOFTEN / GPU_THREADS / 8;
    __shared__ float each[GPU_THREADS / 32];
    float scale = a.scale * 1.44269504f, most = -INFINITY, sum = 0, by;
    uint32_t from = blockIdx.x * a.c;
    float v[HELD][8];

#pragma unroll
    for (int k = 0; k < HELD; k++) {
        uint32_t i = (k * GPU_THREADS + threadIdx.x) * 8;

        if (i < a.c)
            load<8>(v[k], g_in{a.x, MP_F32}, from + i);
        else
#pragma unroll
            for (int j = 0; j < 8; j++)
                v[k][j] = -INFINITY;
    }
#pragma unroll
    for (int i = 0; i < HELD * 8; i++)
        most = fmaxf(most, v[i / 8][i % 8]);
    most = block_max(most, each);
#pragma unroll
    for (int i = 0; i < HELD * 8; i++) {
        v[i / 8][i % 8] = exp2_fast((v[i / 8][i % 8] - most) * scale);
        sum += v[i / 8][i % 8];
    }
    by = 1 / block_sum(sum, each);
#pragma unroll
    for (int k = 0; k < HELD; k++) {
        uint32_t i = (k * GPU_THREADS + threadIdx.x) * 8;

        if (i >= a.c)
            break;
#pragma unroll
        for (int j = 0; j < 8; j++)
            v[k][j] *= by;
        store<8>(a.y, from + i, v[k]);
    }
}

/* The first of several equal ones wins, whichever lane met it. */
static DEV void do_argmax(const g_rows &a)
{
    uint32_t row = my_row(), at = my_lane();
    float v, most = -INFINITY;

    if (row >= a.rows)
        return;
    at = UINT32_MAX;
    for (uint32_t i = my_lane(); i < a.c; i += 32) {
        load<1>(&v, a.x, row * a.c + i);
        if (v > most || at == UINT32_MAX) {
            most = v;
            at = i;
        }
    }
#pragma unroll
    for (int k = 16; k; k >>= 1) {
        float other = __shfl_xor_sync(ALL_LANES, most, k);
        uint32_t i = __shfl_xor_sync(ALL_LANES, at, k);

        if (i != UINT32_MAX &&
            (other > most || (other == most && i < at) || at == UINT32_MAX)) {
            most = other;
            at = i;
        }
    }
    if (my_lane() == 0)
        ((int32_t *)a.y.p)[row] = (int32_t)at;
}

/* ---- peaks of heat maps: a block each ---- */

/* The first of equal ones, whoever met it; a NaN is above all and stays. */
static DEV void take_higher(float *most, uint32_t *at, float v, uint32_t i)
{
    if (v > *most || (v == *most && i < *at) || isnan(v)) {
        *most = v;
        *at = i;
    }
}

static DEV void find_highest(float *most, uint32_t *at, const float *x,
                             uint32_t n, uint32_t step)
{
    constexpr uint32_t WARPS = GPU_THREADS / 32;
    __shared__ float each[WARPS];
    __shared__ uint32_t each_at[WARPS];

    *most = -INFINITY;
    *at = UINT32_MAX;
    for (uint32_t i = threadIdx.x; i < n; i += GPU_THREADS)
        take_higher(most, at, x[i * step], i);
#pragma unroll
    for (int k = 16; k; k >>= 1) {
        float v = __shfl_xor_sync(ALL_LANES, *most, k);
        uint32_t i = __shfl_xor_sync(ALL_LANES, *at, k);

        take_higher(most, at, v, i);
    }
    if (my_lane() == 0) {
        each[threadIdx.x / 32] = *most;
        each_at[threadIdx.x / 32] = *at;
    }
    __syncthreads();
    for (uint32_t k = 0; k < WARPS; k++)
        take_higher(most, at, each[k], each_at[k]);
}

/* The blur by a thread for each row of each of the 9 places that are wanted;
 * added up in the order of the host. */
static DEV void do_heatmap_peaks(const g_peaks &a)
{
    constexpr uint32_t SIDE = 2 * PEAK_REACH + 1;
    __shared__ double part[9 * SIDE], l[9];
    uint32_t n = blockIdx.x / a.c, hw = a.h * a.w, t = threadIdx.x, at;
    peak_map m = {a.x + n * hw * a.c + blockIdx.x % a.c, a.h, a.w, a.c};
    float *y = a.y + 3 * blockIdx.x, most;

    find_highest(&most, &at, m.at, hw, a.c);
    if (!(most > 0)) {
        if (t == 0) {
            y[0] = y[1] = -1;
            y[2] = most;
        }
        return;
    }
    if (t < 9 * SIDE) {
        uint32_t k = t / SIDE;

        part[t] = peak_row(&m, (int64_t)(at / a.w) + k / 3 - 1,
                           (int64_t)(at % a.w) + k % 3 - 1,
                           (int)(t % SIDE) - PEAK_REACH);
    }
    __syncthreads();
    if (t < 9) {
        double sum = 0;

        for (uint32_t i = 0; i < SIDE; i++)
            sum += part[t * SIDE + i];
        l[t] = peak_log(sum);
    }
    __syncthreads();
    if (t == 0) {
        float xy[2] = {(float)(at % a.w), (float)(at / a.w)};

        peak_step(xy, l);
        y[0] = xy[0];
        y[1] = xy[1];
        y[2] = most;
    }
}

/* ---- group norm ---- */

/* Where the mean is far above the deviation, sums lose what matters. So all
 * that is added up has the group's first value of the picture taken from it,
 * and parts keep their own mean, and the squares of the distances from it, and
 * are put together by those (Chan, Golub and LeVeque 1979). */

/* What follows is made for each type, so that many loads are on their way at
 * a time: a branch on the type would wait for each. None is of more than 16
 * bytes. */
#define BY_TYPE(f, v)                                                          \
    do {                                                                       \
        if (a.x.type == MP_BF16)                                               \
            f<MP_BF16, v>(a);                                                  \
        else if (a.x.type == MP_F16)                                           \
            f<MP_F16, v>(a);                                                   \
        else                                                                   \
            f<MP_F32, (v < 4 ? v : 4)>(a);                                     \
    } while (0)

/* For results of 16 bits, functions need not be better than that. */
template <int V> static DEV void activate_for(float *v, int act, int type)
{
    if (act == MP_SILU && type != MP_F32)
#pragma unroll
        for (int j = 0; j < V; j++)
            v[j] = silu_fast(v[j]);
    else
        activate_all<V>(v, act);
}

/* A group by one block, which holds it in registers. Threads stand in rows of
 * `units` of V channels. */
template <int TYPE, int V, int HELD>
static DEV void do_group_held(const g_group &a)
{
    __shared__ float sums[GPU_GROUP_THREADS / 32];
    uint32_t each = a.c / a.groups, units = each / V, g = blockIdx.x;
    uint32_t rows = blockDim.x / units, row = threadIdx.x / units;
    uint32_t c = g * each + threadIdx.x % units * V;
    uint32_t at = blockIdx.y * a.hw * a.c + c, first = row < rows ? row : a.hw;
    float count = (float)a.hw * (float)each, sum = 0, square = 0, k, mean, by;
    float v[V], w[V], b[V];
    held<TYPE, V> x[HELD];

    load<1>(&k, g_in{a.x.p, TYPE}, blockIdx.y * a.hw * a.c + g * each);
#pragma unroll
    for (int i = 0; i < HELD; i++)
        if (first + i * rows < a.hw)
            x[i] = hold<TYPE, V>(a.x.p, at + (first + i * rows) * a.c);
#pragma unroll
    for (int i = 0; i < HELD; i++)
        if (first + i * rows < a.hw)
#pragma unroll
            for (int j = 0; j < V; j++)
                sum += x[i][j] - k;
    mean = block_sum(sum, sums) / count;
#pragma unroll
    for (int i = 0; i < HELD; i++)
        x[i].forget();
#pragma unroll
    for (int i = 0; i < HELD; i++)
        if (first + i * rows < a.hw)
#pragma unroll
            for (int j = 0; j < V; j++)
                square += (x[i][j] - k - mean) * (x[i][j] - k - mean);
    by = 1 / sqrtf(block_sum(square, sums) / count + a.eps);
#pragma unroll
    for (int i = 0; i < HELD; i++)
        x[i].forget();
#pragma unroll
    for (int j = 0; j < V; j++) {
        load<1>(w + j, a.weight, c + j);
        load<1>(b + j, a.bias, c + j);
        w[j] *= by;
    }
#pragma unroll
    for (int i = 0; i < HELD; i++)
        if (first + i * rows < a.hw) {
#pragma unroll
            for (int j = 0; j < V; j++)
                v[j] = (x[i][j] - k - mean) * w[j] + b[j];
            activate_for<V>(v, a.act, a.y.type);
            store<V>(a.y, at + (first + i * rows) * a.c, v);
        }
}

/* Threads stand in rows of `units` (of V channels), so that they read whole
 * lines; a unit may lie in two groups or more, so sums are per channel until
 * the end. */
struct seat {
    uint32_t units, rows; /* at a time */
    uint32_t row, unit;
};

template <int V> static DEV seat my_seat(uint32_t c)
{
    seat s;

    s.units = c / V < GPU_THREADS ? c / V : GPU_THREADS;
    s.rows = GPU_THREADS / s.units;
    s.row = threadIdx.x / s.units;
    s.unit = threadIdx.x % s.units;
    return s;
}

/* The first position of part i of n of hw. */
static DEV uint32_t part_start(uint32_t hw, uint32_t i, uint32_t n)
{
    return (uint32_t)((uint64_t)hw * i / n);
}

/* Add n numbers of this mean and sum of squares around it to m others. */
static DEV void join(float *part, float m, float n, float mean, float square)
{
    float far = mean - part[0];

    if (m == 0)
        far = mean, part[0] = 0;
    part[0] += far * (n / (m + n));
    part[1] += square + (m == 0 ? 0 : far * far * (m * n / (m + n)));
}

/* The first value of group g of picture n. */
static DEV float first_of(const g_group &a, g_in x, uint32_t n, uint32_t g)
{
    float v;

    load<1>(&v, x, n * a.hw * a.c + g * (a.c / a.groups));
    return v;
}

/* Shared: sums per row of threads and channel, then for each channel its mean,
 * less the group's first value, and the squares around it. */
template <int TYPE, int V> static DEV void do_group_sum(const g_group &a)
{
    DYNAMIC_SHARED(float, sum);
    float *square = sum + GPU_THREADS * V;
    uint32_t n = blockIdx.y, split = blockIdx.x, each = a.c / a.groups;
    uint32_t from = part_start(a.hw, split, a.splits);
    uint32_t to = part_start(a.hw, split + 1, a.splits);
    uint32_t first = (n * a.hw + from) * a.c;
    float *part = a.part + 3 * (n * a.splits + split) * a.groups;
    float count = (float)(to - from);
    seat s = my_seat<V>(a.c);
    g_in x = {a.x.p, TYPE};

    for (uint32_t g = threadIdx.x; g < a.groups; g += GPU_THREADS) {
        part[3 * g] = first_of(a, x, n, g);
        part[3 * g + 1] = part[3 * g + 2] = 0;
    }
    /* Wide maps take several rounds of channels. */
    for (uint32_t base = 0; base < a.c; base += s.units * V) {
        uint32_t row = s.units * V, c = base + s.unit * V;
        uint32_t last = base + row < a.c ? base + row : a.c;

        if (s.row < s.rows && c < a.c) {
            float k[V], u[V] = {}, q[V] = {}, v[V];

            /* squares around the first, the mean of which is known only then */
            load<V>(k, x, first + c);
#pragma unroll 4
            for (uint32_t i = from + s.row; i < to; i += s.rows) {
                load<V>(v, x, (n * a.hw + i) * a.c + c);
#pragma unroll
                for (int j = 0; j < V; j++) {
                    v[j] -= k[j];
                    u[j] += v[j];
                    q[j] += v[j] * v[j];
                }
            }
#pragma unroll
            for (int j = 0; j < V; j++) {
                sum[s.row * row + s.unit * V + j] = u[j];
                square[s.row * row + s.unit * V + j] = q[j];
            }
        }
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < last - base; i += GPU_THREADS) {
            float u = 0, q = 0, k;

            for (uint32_t j = 0; j < s.rows; j++) {
                u += sum[j * row + i];
                q += square[j * row + i];
            }
            load<1>(&k, x, first + base + i);
            sum[i] = k - first_of(a, x, n, (base + i) / each) + u / count;
            square[i] = fmaxf(q - u * (u / count), 0);
        }
        __syncthreads();
        /* A warp each group: those with channels of this round. */
        for (uint32_t g = base / each + threadIdx.x / 32; g * each < last;
             g += GPU_THREADS / 32) {
            uint32_t lo = g * each > base ? g * each : base;
            uint32_t hi = (g + 1) * each < last ? (g + 1) * each : last;
            float mean = 0, r = 0;

            for (uint32_t i = lo + my_lane(); i < hi; i += 32)
                mean += sum[i - base];
            mean = warp_sum(mean) / (float)(hi - lo);
            for (uint32_t i = lo + my_lane(); i < hi; i += 32) {
                float far = sum[i - base] - mean;

                r += square[i - base] + count * far * far;
            }
            r = warp_sum(r);
            if (my_lane() == 0)
                join(part + 3 * g + 1, (float)(lo - g * each) * count,
                     (float)(hi - lo) * count, mean, r);
        }
        __syncthreads();
    }
}

/* Put the parts of each group of each picture together, a warp each: into
 * `whole`, the first value, mean less that, 1 / deviation. Every block of
 * group_apply would take longer to do it for itself. */
static DEV void do_group_join(const g_group &a)
{
    uint32_t i = my_row(), n = i / a.groups, each = a.c / a.groups;
    const float *part = a.part + 3 * (n * a.splits * a.groups + i % a.groups);
    float *whole = a.part + 3 * (a.n * a.splits * a.groups + i);
    float mean = 0, square = 0;

    if (n >= a.n)
        return;
    for (uint32_t k = my_lane(); k < a.splits; k += 32)
        mean += part[3 * k * a.groups + 1] *
                (float)(part_start(a.hw, k + 1, a.splits) -
                        part_start(a.hw, k, a.splits));
    mean = warp_sum(mean) / (float)a.hw;
    for (uint32_t k = my_lane(); k < a.splits; k += 32) {
        float far = part[3 * k * a.groups + 1] - mean;

        square += part[3 * k * a.groups + 2] +
                  far * far * (float)each *
                      (float)(part_start(a.hw, k + 1, a.splits) -
                              part_start(a.hw, k, a.splits));
    }
    square = warp_sum(square) / ((float)a.hw * (float)each);
    if (my_lane() == 0) {
        whole[0] = part[0];
        whole[1] = mean;
        whole[2] = 1 / sqrtf(square + a.eps);
    }
}

/* Numbers of 16 bits lose more where the mean is far above the deviation than
 * is lost here by taking all that is constant together. */
template <int TYPE, int V> static DEV void do_group_apply(const g_group &a)
{
    constexpr bool EXACT = TYPE == MP_F32;
    uint32_t n = blockIdx.y, each = a.c / a.groups;
    const float *whole = a.part + 3 * (a.n * a.splits + n) * a.groups;
    uint32_t from = part_start(a.hw, blockIdx.x, gridDim.x);
    uint32_t to = part_start(a.hw, blockIdx.x + 1, gridDim.x);
    seat s = my_seat<V>(a.c);

    if (s.row >= s.rows)
        return;
    for (uint32_t c = s.unit * V; c < a.c; c += s.units * V) {
        float k[V], mean[V], by[V], w[V], b[V], v[V];

        load<V>(w, a.weight, c);
        load<V>(b, a.bias, c);
#pragma unroll
        for (int j = 0; j < V; j++) {
            const float *g = whole + 3 * ((c + j) / each);

            k[j] = g[0];
            mean[j] = g[1];
            by[j] = g[2];
            if (!EXACT) {
                w[j] *= by[j];
                b[j] -= (k[j] + mean[j]) * w[j];
            }
        }
#pragma unroll 4
        for (uint32_t i = from + s.row; i < to; i += s.rows) {
            uint32_t at = (n * a.hw + i) * a.c + c;
            held<TYPE, V> x = hold<TYPE, V>(a.x.p, at);

#pragma unroll
            for (int j = 0; j < V; j++)
                v[j] = EXACT ? (x[j] - k[j] - mean[j]) * by[j] * w[j] + b[j]
                             : x[j] * w[j] + b[j];
            activate_for<V>(v, a.act, a.y.type);
            store<V>(a.y, at, v);
        }
    }
}

#define ROWS_THREADS (32 * GPU_ROWS)
KERNEL(layer_norm, g_rows, ROWS_THREADS, 1, do_layer_norm<1>(a))
KERNEL(layer_norm_8, g_rows, ROWS_THREADS, 1, do_layer_norm<8>(a))
#define LAYER_NORM(type, TYPE)                                                 \
    KERNEL(layer_norm_##type, g_rows, GPU_LAYER / 8, 1,                        \
           do_layer_norm_block<TYPE>(a))                                       \
    KERNEL(layer_norm_##type##_768, g_rows, ROWS_THREADS, ROOM(5),             \
           do_layer_norm_held<TYPE, 32, 768>(a))                               \
    KERNEL(layer_norm_##type##_384, g_rows, ROWS_THREADS, ROOM(5),             \
           do_layer_norm_held<TYPE, 16, 384>(a))
LAYER_NORM(bf16, MP_BF16)
LAYER_NORM(f16, MP_F16)
KERNEL(batch_norm, g_rows, ROWS_THREADS, 1, do_batch_norm(a))
KERNEL(softmax, g_rows, ROWS_THREADS, 1, do_softmax(a))
KERNEL(soften_8, g_soften, GPU_THREADS, 1, do_soften(a))
KERNEL(argmax, g_rows, ROWS_THREADS, 1, do_argmax(a))
KERNEL(heatmap_peaks, g_peaks, GPU_THREADS, 1, do_heatmap_peaks(a))
/* With few registers more than one block finds room: while one waits for
 * memory, another computes. */
#define GROUP_HELD(v, suffix, held, blocks)                                    \
    KERNEL(group_bf16_##v##suffix, g_group, GPU_GROUP_THREADS, blocks,         \
           do_group_held<MP_BF16, v, held>(a))                                 \
    KERNEL(group_f16_##v##suffix, g_group, GPU_GROUP_THREADS, blocks,          \
           do_group_held<MP_F16, v, held>(a))
GROUP_HELD(2, , GPU_GROUP_HELD(2), 2)
GROUP_HELD(4, , GPU_GROUP_HELD(4), 2)
GROUP_HELD(8, , GPU_GROUP_HELD(8), 1)
GROUP_HELD(2, _few, GPU_GROUP_FEW, 2)
GROUP_HELD(4, _few, GPU_GROUP_FEW, 2)
GROUP_HELD(8, _few, GPU_GROUP_FEW, 2)
KERNEL(group_join, g_group, ROWS_THREADS, 1, do_group_join(a))
#define GROUP(v, suffix)                                                       \
    KERNEL(group_sum##suffix, g_group, GPU_THREADS, 1,                         \
           BY_TYPE(do_group_sum, v))                                           \
    KERNEL(group_apply##suffix, g_group, GPU_THREADS, GPU_GROUP_APPLY,         \
           BY_TYPE(do_group_apply, v))
GROUP(1, )
GROUP(8, _8)
