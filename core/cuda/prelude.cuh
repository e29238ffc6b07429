/* SPDX-License-Identifier: MIT */
/*
 * prelude.cuh - what all kernels share: typed operands, activations, sums over
 * a warp, and the instructions that C++ has no words for. Without nvcc those
 * come from tests/sim/sim.h, which runs the same kernels on the processor.
 */
#ifndef CUDA_PRELUDE_CUH
#define CUDA_PRELUDE_CUH

#include "cuda/kernels.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define DEV __device__ __forceinline__
#define DYNAMIC_SHARED(type, name)                                             \
    extern __shared__ __align__(16) unsigned char dynamic_shared[];            \
    type *name = reinterpret_cast<type *>(dynamic_shared)

static DEV float bf16_float(uint16_t v)
{
    return __uint_as_float((uint32_t)v << 16);
}

static DEV uint16_t float_bf16(float v)
{
    return __bfloat16_as_ushort(__float2bfloat16_rn(v));
}

static DEV float f16_float(uint16_t v)
{
    return __half2float(__ushort_as_half(v));
}

static DEV uint16_t float_f16(float v)
{
    return __half_as_ushort(__float2half_rn(v));
}

/* Two numbers of 16 bits, low first. */
static DEV uint32_t two_bf16(float low, float high)
{
    __nv_bfloat162 v = __floats2bfloat162_rn(low, high);

    return *reinterpret_cast<uint32_t *>(&v);
}

static DEV uint32_t two_f16(float low, float high)
{
    __half2 v = __floats2half2_rn(low, high);

    return *reinterpret_cast<uint32_t *>(&v);
}

/* 2^x, to some 22 bits. */
static DEV float exp2_fast(float x)
{
    float y;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* 1 / x, to some 22 bits; 0 of infinity. */
static DEV float invert_fast(float x)
{
    float y;

    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* For the compiler it may have changed. */
static DEV void make_opaque(uint16_t *v)
{
    asm volatile("" : "+h"(*v));
}

/* d += a b of one warp: a 16 x 16, b 16 x 8; mma8: 16 x 8, 8 x 8. */
static DEV void mma_bf16(float *d, const uint32_t *a, const uint32_t *b)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]),
                   "r"(b[1]));
}

static DEV void mma8_bf16(float *d, const uint32_t *a, uint32_t b)
{
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b));
}

static DEV void mma_f16(float *d, const uint32_t *a, const uint32_t *b)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]),
                   "r"(b[1]));
}

static DEV void mma8_f16(float *d, const uint32_t *a, uint32_t b)
{
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b));
}

/* Four 8 x 8 matrices of 16-bit elements; lanes 8 i .. 8 i + 7 give the
 * addresses of the rows of matrix i. */
static DEV void ldmatrix(uint32_t *r, const uint16_t *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
}

static DEV void ldmatrix_turned(uint32_t *r, const uint16_t *row)
{
    asm volatile(
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
        : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
        : "r"((uint32_t)__cvta_generic_to_shared(row))
        : "memory");
}

/* 16 bytes to shared memory, or zeros unless `there` (nothing is read then,
 * but `from` must be an address all the same). */
static DEV void copy_async(void *to, const void *from, bool there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from),
                   "r"(there ? 16 : 0)
                 : "memory");
}

static DEV void copy_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until all but the last `left` groups of copies are there. */
template <int left> static DEV void copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
}
#else
#include "sim.h"
#define DEV inline
#endif

#define ALL_LANES 0xffffffffu

/* The types that tensor cores multiply. */
struct bf16 {
    static const int type = MP_BF16;
    static DEV void mma(float *d, const uint32_t *a, const uint32_t *b)
    {
        mma_bf16(d, a, b);
    }
    static DEV void mma8(float *d, const uint32_t *a, uint32_t b)
    {
        mma8_bf16(d, a, b);
    }
};

struct f16 {
    static const int type = MP_F16;
    static DEV void mma(float *d, const uint32_t *a, const uint32_t *b)
    {
        mma_f16(d, a, b);
    }
    static DEV void mma8(float *d, const uint32_t *a, uint32_t b)
    {
        mma8_f16(d, a, b);
    }
};

/* ---- typed operands ---- */

static DEV float to_float(uint16_t v, int type)
{
    return type == MP_BF16 ? bf16_float(v) : f16_float(v);
}

static DEV uint16_t to_half(float v, int type)
{
    return type == MP_BF16 ? float_bf16(v) : float_f16(v);
}

static DEV uint32_t to_halves(float low, float high, int type)
{
    return type == MP_BF16 ? two_bf16(low, high) : two_f16(low, high);
}

/* What one access moves: as long as it is aligned, and not over 16 bytes. */
template <int V> struct alignas(2 * V) halves {
    uint16_t v[V];
};
template <int V> struct alignas(V < 4 ? 4 * V : 16) floats {
    float v[V];
};

/* V elements, 1, 2, 4 or 8, from index i on, a multiple of V. The branch on
 * the type is the same for all threads of a kernel and costs next to nothing
 * beside the memory; but no load is begun before the last one's branch. */
template <int V> static DEV void load(float *v, g_in x, uint32_t i)
{
    if (x.type == MP_F32) {
        floats<V> a = *(const floats<V> *)((const float *)x.p + i);

#pragma unroll
        for (int j = 0; j < V; j++)
            v[j] = a.v[j];
    } else if (x.type == MP_U8) {
#pragma unroll
        for (int j = 0; j < V; j++)
            v[j] = (float)((const uint8_t *)x.p)[i + j];
    } else {
        halves<V> a = *(const halves<V> *)((const uint16_t *)x.p + i);

#pragma unroll
        for (int j = 0; j < V; j++)
            v[j] = to_float(a.v[j], x.type);
    }
}

template <int V> static DEV void store(g_out y, uint32_t i, const float *v)
{
    if (y.type == MP_F32) {
        floats<V> a;

#pragma unroll
        for (int j = 0; j < V; j++)
            a.v[j] = v[j];
        *(floats<V> *)((float *)y.p + i) = a;
    } else if (y.type == MP_U8) {
#pragma unroll
        for (int j = 0; j < V; j++)
            ((uint8_t *)y.p)[i + j] = (uint8_t)v[j];
    } else {
        halves<V> a;

        a.v[0] = to_half(v[0], y.type);
#pragma unroll
        for (int j = 0; j < V - 1; j += 2) {
            uint32_t two = to_halves(v[j], v[j + 1], y.type);

            a.v[j] = (uint16_t)two;
            a.v[j + 1] = (uint16_t)(two >> 16);
        }
        *(halves<V> *)((uint16_t *)y.p + i) = a;
    }
}

/* V elements as they are in memory. */
template <int TYPE, int V> struct held {
    halves<V> in;
    DEV float operator[](int j) const
    {
        return to_float(in.v[j], TYPE);
    }
    /* What was computed from it so far is not to be kept: it takes twice as
     * many registers. */
    DEV void forget()
    {
#pragma unroll
        for (int j = 0; j < V; j++)
            make_opaque(&in.v[j]);
    }
};
template <int V> struct held<MP_F32, V> {
    floats<V> in;
    DEV float operator[](int j) const
    {
        return in.v[j];
    }
};

template <int TYPE, int V>
static DEV held<TYPE, V> hold(const void *x, uint32_t i)
{
    return ((const held<TYPE, V> *)x)[i / V];
}

/* ---- places in maps that are resized ---- */

/* Rounded step by step, as the reference does it: one rounding less would
 * choose another pixel now and then. */
static DEV float source(uint32_t *i0, uint32_t *i1, uint32_t d, float scale,
                        uint32_t n)
{
    float at = __fsub_rn(__fmul_rn((float)d + 0.5f, scale), 0.5f);

    at = fmaxf(at, 0);
    *i0 = (uint32_t)at < n - 1 ? (uint32_t)at : n - 1;
    *i1 = *i0 + 1 < n ? *i0 + 1 : *i0;
    return at - (float)*i0;
}

/* d * n / m, of which the product may need more than 32 bits. */
static DEV uint32_t scaled(uint32_t d, uint32_t n, uint32_t m, uint32_t add)
{
    return (uint32_t)(((uint64_t)d * n + add) / m);
}

/* ---- functions ---- */

static DEV float gelu(float x)
{
    return 0.5f * x * (1 + erff(x * 0.70710678f));
}

static DEV float activate(float x, int act)
{
    switch (act) {
    case MP_RELU:
        return fmaxf(x, 0);
    case MP_SILU:
        return x / (1 + expf(-x));
    case MP_GELU:
        return gelu(x);
    case MP_SIGMOID:
        return 1 / (1 + expf(-x));
    case MP_RSQRT:
        return 1 / sqrtf(x);
    default:
        return x;
    }
}

/* SiLU as good as 16 bits need it. */
static DEV float silu_fast(float x)
{
    return x * invert_fast(1 + exp2_fast(x * -1.44269504f));
}

template <int V> static DEV void activate_all(float *v, int act)
{
    if (act != MP_ACT_NONE)
#pragma unroll
        for (int j = 0; j < V; j++)
            v[j] = activate(v[j], act);
}

/* Of each so many lanes of a warp. */
template <int LANES> static DEV float lanes_sum(float v)
{
#pragma unroll
    for (int k = LANES / 2; k; k >>= 1)
        v += __shfl_xor_sync(ALL_LANES, v, k);
    return v;
}

static DEV float warp_sum(float v)
{
    return lanes_sum<32>(v);
}

static DEV float warp_max(float v)
{
#pragma unroll
    for (int k = 16; k; k >>= 1)
        v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, k));
    return v;
}

/* The element, or group of 8, that this thread is for. */
static DEV uint32_t my_index()
{
    return blockIdx.x * blockDim.x + threadIdx.x;
}

/* Blocks that are to find room at a time; code for newer GPUs needs some
 * registers more. */
#if defined __CUDA_ARCH__ && __CUDA_ARCH__ >= 1000
#define ROOM(blocks) ((blocks)-1)
#else
#define ROOM(blocks) (blocks)
#endif

/* extern "C", so that the host finds it by its name. */
#define KERNEL(name, arg, threads, blocks, ...)                                \
    extern "C" __global__ void __launch_bounds__(threads, blocks)              \
        name(const arg a)                                                      \
    {                                                                          \
        __VA_ARGS__;                                                           \
    }

#endif
