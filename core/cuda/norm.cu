/* SPDX-License-Identifier: MIT */
/* norm.cu - norms, softmax and argmax. */
#include "cuda/prelude.cuh"

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

/* ---- group norm ---- */

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

/* A value near the mean of group g of picture n, from a few positions: sums of
 * squares around it lose nothing, as those around 0 would where the mean is
 * far above the deviation. Always by a whole warp. */
static DEV float near_mean(const g_group &a, uint32_t n, uint32_t g)
{
    uint32_t each = a.c / a.groups, samples = a.hw < 4 ? a.hw : 4;
    float v, sum = 0;

    for (uint32_t i = my_lane(); i < each * samples; i += 32) {
        uint32_t at = i / each * (a.hw / samples);

        load<1>(&v, a.x, (n * a.hw + at) * a.c + g * each + i % each);
        sum += v;
    }
    return warp_sum(sum) / (float)(each * samples);
}

/* Shared: shift per group; sum and sum of squares per thread and channel. */
template <int V> static DEV void do_group_sum(const g_group &a)
{
    DYNAMIC_SHARED(float, shift);
    float *sum = shift + a.groups, *square = sum + GPU_THREADS * V;
    uint32_t n = blockIdx.y, split = blockIdx.x, each = a.c / a.groups;
    uint32_t from = (uint32_t)((uint64_t)a.hw * split / a.splits);
    uint32_t to = (uint32_t)((uint64_t)a.hw * (split + 1) / a.splits);
    seat s = my_seat<V>(a.c);

    for (uint32_t g = threadIdx.x / 32; g < a.groups; g += GPU_THREADS / 32) {
        float v = near_mean(a, n, g);

        if (my_lane() == 0) {
            float *part = a.part + 3 * ((n * a.splits + split) * a.groups + g);

            shift[g] = v;
            part[0] = v;
            part[1] = part[2] = 0;
        }
    }
    __syncthreads();
    /* Wide maps take several rounds of channels. */
    for (uint32_t base = 0; base < a.c; base += s.units * V) {
        uint32_t c = base + s.unit * V, last;
        float k[V], u[V] = {}, q[V] = {}, v[V];

        if (c < a.c && s.row < s.rows) {
#pragma unroll
            for (int j = 0; j < V; j++)
                k[j] = shift[(c + j) / each];
            for (uint32_t i = from + s.row; i < to; i += s.rows) {
                load<V>(v, a.x, (n * a.hw + i) * a.c + c);
#pragma unroll
                for (int j = 0; j < V; j++) {
                    v[j] -= k[j];
                    u[j] += v[j];
                    q[j] += v[j] * v[j];
                }
            }
        }
        if (s.row < s.rows)
#pragma unroll
            for (int j = 0; j < V; j++) {
                uint32_t at = (s.row * s.units + s.unit) * V + j;

                sum[at] = u[j];
                square[at] = q[j];
            }
        __syncthreads();
        /* A warp each group: those with channels of this round. */
        last = base + s.units * V < a.c ? base + s.units * V : a.c;
        for (uint32_t g = base / each + threadIdx.x / 32; g * each < last;
             g += GPU_THREADS / 32) {
            uint32_t lo = g * each > base ? g * each : base;
            uint32_t hi = (g + 1) * each < last ? (g + 1) * each : last;
            float t = 0, r = 0;

            for (uint32_t i = my_lane(); i < (hi - lo) * s.rows; i += 32) {
                uint32_t at =
                    i / (hi - lo) * s.units * V + lo - base + i % (hi - lo);

                t += sum[at];
                r += square[at];
            }
            t = warp_sum(t);
            r = warp_sum(r);
            if (my_lane() == 0) {
                float *part =
                    a.part + 3 * ((n * a.splits + split) * a.groups + g);

                part[1] += t;
                part[2] += r;
            }
        }
        __syncthreads();
    }
}

/* Shared: per group shift, mean less shift, 1 / deviation. */
template <int V> static DEV void do_group_apply(const g_group &a)
{
    DYNAMIC_SHARED(float, group);
    uint32_t n = blockIdx.y, each = a.c / a.groups;
    uint32_t from = (uint32_t)((uint64_t)a.hw * blockIdx.x / gridDim.x);
    uint32_t to = (uint32_t)((uint64_t)a.hw * (blockIdx.x + 1) / gridDim.x);
    float count = (float)a.hw * (float)each;
    seat s = my_seat<V>(a.c);

    for (uint32_t g = threadIdx.x / 32; g < a.groups; g += GPU_THREADS / 32) {
        const float *part = a.part + 3 * (n * a.splits * a.groups + g);
        float sum = 0, square = 0;

        for (uint32_t i = my_lane(); i < a.splits; i += 32) {
            sum += part[3 * i * a.groups + 1];
            square += part[3 * i * a.groups + 2];
        }
        sum = warp_sum(sum) / count;
        square = warp_sum(square) / count - sum * sum;
        if (my_lane() == 0) {
            group[3 * g] = part[0];
            group[3 * g + 1] = sum;
            group[3 * g + 2] = 1 / sqrtf(fmaxf(square, 0) + a.eps);
        }
    }
    __syncthreads();
    if (s.row >= s.rows)
        return;
    for (uint32_t c = s.unit * V; c < a.c; c += s.units * V) {
        float k[V], w[V], b[V], v[V];

        load<V>(w, a.weight, c);
        load<V>(b, a.bias, c);
#pragma unroll
        for (int j = 0; j < V; j++) {
            const float *g = group + 3 * ((c + j) / each);

            k[j] = g[0];
            w[j] *= g[2];
            b[j] -= g[1] * w[j];
        }
        for (uint32_t i = from + s.row; i < to; i += s.rows) {
            uint32_t at = (n * a.hw + i) * a.c + c;

            load<V>(v, a.x, at);
#pragma unroll
            for (int j = 0; j < V; j++)
                v[j] = (v[j] - k[j]) * w[j] + b[j];
            activate_all<V>(v, a.act);
            store<V>(a.y, at, v);
        }
    }
}

#define ROWS_THREADS (32 * GPU_ROWS)
KERNEL(layer_norm, g_rows, ROWS_THREADS, 1, do_layer_norm<1>(a))
KERNEL(layer_norm_8, g_rows, ROWS_THREADS, 1, do_layer_norm<8>(a))
KERNEL(batch_norm, g_rows, ROWS_THREADS, 1, do_batch_norm(a))
KERNEL(softmax, g_rows, ROWS_THREADS, 1, do_softmax(a))
KERNEL(argmax, g_rows, ROWS_THREADS, 1, do_argmax(a))
KERNEL(group_sum, g_group, GPU_THREADS, 1, do_group_sum<1>(a))
KERNEL(group_sum_8, g_group, GPU_THREADS, 1, do_group_sum<8>(a))
KERNEL(group_apply, g_group, GPU_THREADS, 1, do_group_apply<1>(a))
KERNEL(group_apply_8, g_group, GPU_THREADS, 1, do_group_apply<8>(a))
