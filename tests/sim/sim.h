/* SPDX-License-Identifier: MIT */
/*
 * sim.h - enough of CUDA C++ for the kernels of core/cuda to run on the
 * processor, a block at a time, each of its threads a fiber.
 *
 * A fiber runs until it waits: for its block (__syncthreads), or for its warp
 * (shuffles and the other calls of all lanes). Threads that never come, and
 * calls that differ between lanes, are found and end the program, as does a
 * misaligned vector. Asynchronous copies happen only when they are waited for,
 * shared memory is NaN at first, and every other block runs its threads in
 * reverse order: what depends on luck does not pass.
 */
#ifndef SIM_SIM_H
#define SIM_SIM_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __shared__ static
#define __launch_bounds__(...)

struct sim_index {
    unsigned x, y, z;
};
extern sim_index threadIdx, blockIdx, blockDim, gridDim;

/* Dynamic shared memory of the block. */
extern unsigned char *sim_shared;
#define DYNAMIC_SHARED(type, name) type *name = (type *)sim_shared

/* ---- waiting ---- */

void __syncthreads();
/* Wait for all lanes, each with n <= 64 bytes; the lanes' bytes are 64 apart
 * in the result, until the warp's next call but one. `what` names the call. */
const char *sim_warp(const char *what, const void *mine, size_t n);

static inline void __syncwarp()
{
    sim_warp("syncwarp", "", 0);
}

template <class T> static T sim_lane(const char *all, unsigned lane)
{
    T v;

    memcpy(&v, all + 64 * (lane % 32), sizeof v);
    return v;
}

template <class T> static T __shfl_sync(unsigned, T v, unsigned lane)
{
    return sim_lane<T>(sim_warp("shfl", &v, sizeof v), lane);
}

template <class T> static T __shfl_xor_sync(unsigned, T v, unsigned mask)
{
    return sim_lane<T>(sim_warp("shfl_xor", &v, sizeof v),
                       threadIdx.x % 32 ^ mask);
}

/* ---- vectors and numbers ---- */

struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w)
{
    return {x, y, z, w};
}

static inline float2 make_float2(float x, float y)
{
    return {x, y};
}

static inline float4 make_float4(float x, float y, float z, float w)
{
    return {x, y, z, w};
}

static inline float __fmul_rn(float a, float b)
{
    volatile float v = a * b;

    return v;
}

static inline float __fsub_rn(float a, float b)
{
    volatile float v = a - b;

    return v;
}

float bf16_float(uint16_t v);
uint16_t float_bf16(float v);
float f16_float(uint16_t v);
uint16_t float_f16(float v);

static inline uint32_t two_bf16(float low, float high)
{
    return (uint32_t)float_bf16(high) << 16 | float_bf16(low);
}

static inline uint32_t two_f16(float low, float high)
{
    return (uint32_t)float_f16(high) << 16 | float_f16(low);
}

static inline float exp2_fast(float x)
{
    return exp2f(x);
}

static inline void make_opaque(uint16_t *)
{
}

static inline float invert_fast(float x)
{
    return 1 / x;
}

/* ---- instructions of a warp ---- */

void mma_bf16(float *d, const uint32_t *a, const uint32_t *b);
void mma_f16(float *d, const uint32_t *a, const uint32_t *b);
void mma8_bf16(float *d, const uint32_t *a, uint32_t b);
void mma8_f16(float *d, const uint32_t *a, uint32_t b);
void ldmatrix(uint32_t *r, const uint16_t *row);
void ldmatrix_turned(uint32_t *r, const uint16_t *row);
void copy_async(void *to, const void *from, bool there);
void copy_commit();
void sim_copy_wait(unsigned left);

template <int left> static void copy_wait()
{
    sim_copy_wait(left);
}

/* ---- running ---- */

struct sim_grid {
    unsigned x, y, z;
};

/* call(arg) by every thread of every block. together: threads may wait for each
 * other; else one runs after the other, which is much faster. */
void sim_run(sim_grid grid, unsigned threads, size_t shared, bool together,
             void (*call)(const void *arg), const void *arg);

#endif
