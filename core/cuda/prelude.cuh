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

/* d += a b of one warp: a 16 x 16, b 16 x 8. */
static DEV void mma_bf16(float *d, const uint32_t *a, const uint32_t *b)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]),
                   "r"(b[1]));
}

static DEV void mma_f16(float *d, const uint32_t *a, const uint32_t *b)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]),
                   "r"(b[1]));
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
};

struct f16 {
    static const int type = MP_F16;
    static DEV void mma(float *d, const uint32_t *a, const uint32_t *b)
    {
        mma_f16(d, a, b);
    }
};

/* ---- typed operands ---- */

static DEV uint32_t pair(uint16_t low, uint16_t high)
{
    return (uint32_t)high << 16 | low;
}

static DEV float to_float(uint16_t v, int type)
{
    return type == MP_BF16 ? bf16_float(v) : f16_float(v);
}

static DEV uint16_t to_half(float v, int type)
{
    return type == MP_BF16 ? float_bf16(v) : float_f16(v);
}

/* V elements from index i on. The branch on the type is the same for all
 * threads of a kernel and costs next to nothing beside the memory. */
template <int V> static DEV void load(float *v, g_in x, uint32_t i)
{
    if (V == 1) {
        v[0] = x.type == MP_F32  ? ((const float *)x.p)[i]
               : x.type == MP_U8 ? (float)((const uint8_t *)x.p)[i]
                                 : to_float(((const uint16_t *)x.p)[i], x.type);
    } else if (x.type == MP_F32) {
        const float4 *p = (const float4 *)((const float *)x.p + i);
        float4 a = p[0], b = p[1];

        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
        v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    } else if (x.type == MP_U8) {
        uint2 a = *(const uint2 *)((const uint8_t *)x.p + i);

        for (int j = 0; j < 4; j++) {
            v[j] = (float)(a.x >> 8 * j & 255);
            v[4 + j] = (float)(a.y >> 8 * j & 255);
        }
    } else {
        uint4 a = *(const uint4 *)((const uint16_t *)x.p + i);
        uint32_t w[4] = {a.x, a.y, a.z, a.w};

#pragma unroll
        for (int j = 0; j < 4; j++) {
            v[2 * j] = to_float((uint16_t)w[j], x.type);
            v[2 * j + 1] = to_float((uint16_t)(w[j] >> 16), x.type);
        }
    }
}

template <int V> static DEV void store(g_out y, uint32_t i, const float *v)
{
    if (V == 1) {
        if (y.type == MP_F32)
            ((float *)y.p)[i] = v[0];
        else if (y.type == MP_U8)
            ((uint8_t *)y.p)[i] = (uint8_t)v[0];
        else
            ((uint16_t *)y.p)[i] = to_half(v[0], y.type);
    } else if (y.type == MP_F32) {
        float4 *p = (float4 *)((float *)y.p + i);

        p[0] = make_float4(v[0], v[1], v[2], v[3]);
        p[1] = make_float4(v[4], v[5], v[6], v[7]);
    } else {
        uint32_t w[4];

#pragma unroll
        for (int j = 0; j < 4; j++)
            w[j] =
                pair(to_half(v[2 * j], y.type), to_half(v[2 * j + 1], y.type));
        *(uint4 *)((uint16_t *)y.p + i) = make_uint4(w[0], w[1], w[2], w[3]);
    }
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

template <int V> static DEV void activate_all(float *v, int act)
{
    if (act != MP_ACT_NONE)
#pragma unroll
        for (int j = 0; j < V; j++)
            v[j] = activate(v[j], act);
}

static DEV float warp_sum(float v)
{
#pragma unroll
    for (int k = 16; k; k >>= 1)
        v += __shfl_xor_sync(ALL_LANES, v, k);
    return v;
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

/* extern "C", so that the host finds it by its name. */
#define KERNEL(name, arg, threads, blocks, body)                               \
    extern "C" __global__ void __launch_bounds__(threads, blocks)              \
        name(const arg a)                                                      \
    {                                                                          \
        body;                                                                  \
    }

#endif
