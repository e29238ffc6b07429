/* SPDX-License-Identifier: MIT */
/*
 * simd.h - how the kernels get vectors: functions compiled for several
 * instruction sets and chosen at run time, element types as f32, and the
 * functions of a number that compilers can vectorise.
 *
 * For use by core/cpu/, and by others for K_MULTI and K_INLINE. All of it is
 * inline.
 */
#ifndef CPU_SIMD_H
#define CPU_SIMD_H

#include <math.h>
#include <omp.h>
#include <string.h>
#include "cpu/kernels.h"

/* ---- instruction sets ---- */

enum k_level { K_GENERIC, K_AVX2, K_AVX512, K_AVX512_BF16 };

/* The best set to use although the CPU has better: to test the others. */
#ifndef K_LEVEL_MOST
#define K_LEVEL_MOST K_AVX512_BF16
#endif

#define K_INLINE static inline __attribute__((always_inline, unused))

#if defined(__x86_64__)
#include <immintrin.h>

#define K_TARGET_AVX2 __attribute__((target("avx2,fma")))
#define K_TARGET_AVX512                                                        \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")))
#define K_TARGET_BF16                                                          \
    __attribute__((                                                            \
        target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")))

K_INLINE enum k_level k_level(void)
{
    enum k_level l = K_GENERIC;

    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        l = K_AVX2;
    if (l == K_AVX2 && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        l = __builtin_cpu_supports("avx512bf16") ? K_AVX512_BF16 : K_AVX512;
    return l < K_LEVEL_MOST ? l : K_LEVEL_MOST;
}

/* K_MULTI(name, (parameters), (arguments)) { body }: a static function that
 * runs the body as compiled for the best instruction set of this CPU. The body
 * leaves vectors to the compiler. */
#define K_MULTI(name, params, args)                                            \
    K_INLINE void name##_body params;                                          \
    K_TARGET_AVX512 static void name##_avx512 params                           \
    {                                                                          \
        name##_body args;                                                      \
    }                                                                          \
    K_TARGET_AVX2 static void name##_avx2 params                               \
    {                                                                          \
        name##_body args;                                                      \
    }                                                                          \
    static void name##_generic params                                          \
    {                                                                          \
        name##_body args;                                                      \
    }                                                                          \
    K_INLINE void name params                                                  \
    {                                                                          \
        enum k_level level = k_level();                                        \
                                                                               \
        if (level >= K_AVX512)                                                 \
            name##_avx512 args;                                                \
        else if (level == K_AVX2)                                              \
            name##_avx2 args;                                                  \
        else                                                                   \
            name##_generic args;                                               \
    }                                                                          \
    K_INLINE void name##_body params

/* As k_to_bf16 has it. */
K_TARGET_AVX512 K_INLINE __m256i k_narrow16(__m512 x)
{
    __m512i u = (__m512i)x, one = _mm512_set1_epi32(1);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), one);
    __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);

    half = _mm512_mask_or_epi32(_mm512_add_epi32(u, half), nan, u,
                                _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(half, 16));
}

/* 16 x 16 numbers of 32 bits: 4 x 4 blocks, then the blocks. */
K_TARGET_AVX512 K_INLINE void k_transpose(__m512 r[16])
{
    __m512 t[16];

    _Pragma("GCC unroll 16") for (int i = 0; i < 16; i += 4)
    {
        __m512 a = _mm512_unpacklo_ps(r[i], r[i + 1]);
        __m512 b = _mm512_unpackhi_ps(r[i], r[i + 1]);
        __m512 c = _mm512_unpacklo_ps(r[i + 2], r[i + 3]);
        __m512 d = _mm512_unpackhi_ps(r[i + 2], r[i + 3]);

        t[i] = _mm512_shuffle_ps(a, c, 0x44);
        t[i + 1] = _mm512_shuffle_ps(a, c, 0xee);
        t[i + 2] = _mm512_shuffle_ps(b, d, 0x44);
        t[i + 3] = _mm512_shuffle_ps(b, d, 0xee);
    }
    _Pragma("GCC unroll 16") for (int i = 0; i < 4; i++)
    {
        __m512 a = _mm512_shuffle_f32x4(t[i], t[i + 4], 0x88);
        __m512 b = _mm512_shuffle_f32x4(t[i], t[i + 4], 0xdd);
        __m512 c = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0x88);
        __m512 d = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0xdd);

        r[i] = _mm512_shuffle_f32x4(a, c, 0x88);
        r[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
        r[i + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
        r[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
}

#else

K_INLINE enum k_level k_level(void)
{
    return K_GENERIC;
}

#define K_MULTI(name, params, args) K_INLINE void name params

#endif

/* ---- functions of a number ---- */

K_INLINE uint32_t k_bits(float x)
{
    uint32_t u;

    memcpy(&u, &x, sizeof u);
    return u;
}

K_INLINE float k_float(uint32_t u)
{
    float x;

    memcpy(&x, &u, sizeof x);
    return x;
}

K_INLINE float k_from_bf16(uint16_t h)
{
    return k_float((uint32_t)h << 16);
}

K_INLINE uint16_t k_to_bf16(float x)
{
    uint32_t u = k_bits(x);
    uint32_t rounded = u + 0x7fff + (u >> 16 & 1);

    /* rounding could turn a NaN into an infinity */
    return (uint16_t)((x != x ? u | 0x400000 : rounded) >> 16);
}

/* e^x as p * 2^k, p near 1; for |x| <= 105. */
K_INLINE float k_exp_parts(float x, uint32_t *k)
{
    /* adding 1.5 * 2^23 rounds to an integer in the low bits of the sum */
    const float round = 0x1.8p23f;
    float n = x * 0x1.715476p0f + round, r, p;

    *k = k_bits(n) - k_bits(round);
    n -= round;
    /* ln 2 in two parts, the first short enough for exact products */
    r = x - n * 0x1.63p-1f - n * -0x1.bd0106p-13f;
    p = 0.00138146128f;
    p = p * r + 0.00836871099f;
    p = p * r + 0.041668389f;
    p = p * r + 0.166665211f;
    p = p * r + 0.49999994f;
    return p * (r * r) + r + 1.0f;
}

/* Within 1.5 units in the last place, denormals, 0 and infinity included. */
K_INLINE float k_exp(float x)
{
    /* beyond 105 and no NaN: 105; bits, as GCC makes jumps of comparisons */
    const uint32_t most = 0x42d20000, infinity = 0x7f800000;
    uint32_t u = k_bits(x), k, half, far;
    float p;

    far = -(uint32_t)((u & 0x7fffffff) - most <= infinity - most);
    p = k_exp_parts(k_float((u & ~(far & 0x7fffffff)) | (far & most)), &k);
    /* 2^k as two factors: one alone cannot reach denormals */
    half = (uint32_t)((int32_t)k >> 1);
    return p * k_float((half + 127) << 23) * k_float((k - half + 127) << 23);
}

K_INLINE float k_sigmoid(float x)
{
    return 1.0f / (1.0f + k_exp(-x));
}

/* x times the normal distribution's integral: the exact GELU. With z = |x| /
 * sqrt 2 and u = z / (2 + z), erfc(z) = exp(-z^2) P(u); P is a minimax fit, erf
 * is 1e-7 near. */
K_INLINE float k_gelu(float x)
{
    /* |x|, at most 13: the other tail is below 1e-37 there */
    uint32_t bits = k_bits(x) & 0x7fffffff, k;
    float a = k_float(bits < 0x41500000 ? bits : 0x41500000);
    float z = 0.5f * 0.70710678f * a, u = z / (1.0f + z), p;

    p = -0.051012218f;
    p = p * u + 0.0660556033f;
    p = p * u + 0.0768453479f;
    p = p * u + 0.00661251927f;
    p = p * u - 0.310454011f;
    p = p * u - 0.274863631f;
    p = p * u + 1.74324834f;
    p = p * u - 2.25675845f;
    p = p * u + 1.0f;
    p *= 0.5f * a * k_exp_parts(-0.5f * a * a, &k);
    return (x < 0 ? 0 : x) - p * k_float((k + 127) << 23);
}

/* ---- the same for what is rounded to bf16 after it: to 1e-4 ---- */

/* 2^x; for |x| <= 126. The polynomial is that of attention_wide.c. */
K_INLINE float k_exp2_bf16(float x)
{
    const float round = 0x1.8p23f; /* as above */
    float n = x + round, f = x - (n - round), p;

    p = 0.0551716648f;
    p = p * f + 0.242611215f;
    p = p * f + 0.693260968f;
    p = p * f + 0.999928057f;
    /* of round's own bits none is left */
    return k_float(k_bits(p) + (k_bits(n) << 23));
}

K_INLINE float k_sigmoid_bf16(float x)
{
    const uint32_t sign = 0x80000000, most = 0x42fc0000; /* 126 */
    uint32_t u = k_bits(x * -0x1.715476p0f), far = u & ~sign;

    u = (u & sign) | (far < most ? far : most);
    return 1.0f / (1.0f + k_exp2_bf16(k_float(u)));
}

/* As k_gelu; P to 2e-5. */
K_INLINE float k_gelu_bf16(float x)
{
    uint32_t bits = k_bits(x) & 0x7fffffff;
    float a = k_float(bits < 0x41500000 ? bits : 0x41500000);
    float z = 0.5f * 0.70710678f * a, u = z / (1.0f + z), p;

    p = 0.198996186f;
    p = p * u - 0.447586030f;
    p = p * u - 0.232145786f;
    p = p * u + 1.73791242f;
    p = p * u - 2.25662136f;
    p = p * u + 1.0f;
    p *= 0.5f * a * k_exp2_bf16(-0x1.715476p-1f * a * a);
    return (x < 0 ? 0 : x) - p;
}

/* ---- rows of elements ---- */

/* Kernels work on so many elements at a time, as f32 in the first cache. */
#define K_CHUNK 1024

K_INLINE size_t k_size(enum mp_dtype t)
{
    return t == MP_F32 || t == MP_I32 ? 4 : mp_dtype_size(t);
}

K_INLINE const void *k_at(struct k_in x, int64_t i)
{
    return (const char *)x.p + (size_t)i * k_size(x.t);
}

K_INLINE void *k_out_at(struct k_out y, int64_t i)
{
    return (char *)y.p + (size_t)i * k_size(y.t);
}

K_MULTI(k_widen, (float *y, const uint16_t *x, int64_t n), (y, x, n))
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] = k_from_bf16(x[i]);
}

K_MULTI(k_widen_u8, (float *y, const uint8_t *x, int64_t n), (y, x, n))
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i];
}

K_MULTI(k_narrow, (uint16_t * y, const float *x, int64_t n), (y, x, n))
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] = k_to_bf16(x[i]);
}

/* Elements i..i+n of x as f32: where they are, or converted into buf. */
K_INLINE const float *k_load(struct k_in x, int64_t i, int64_t n, float *buf)
{
    if (x.t == MP_F32)
        return (const float *)x.p + i;
    if (x.t == MP_BF16)
        k_widen(buf, (const uint16_t *)x.p + i, n);
    else
        k_widen_u8(buf, (const uint8_t *)x.p + i, n);
    return buf;
}

/* Where to put elements i..i+n of y as f32: in y, or into buf; then k_flush. */
K_INLINE float *k_room(struct k_out y, int64_t i, float *buf)
{
    return y.t == MP_F32 ? (float *)y.p + i : buf;
}

K_INLINE void k_flush(struct k_out y, int64_t i, int64_t n, const float *from)
{
    if (y.t == MP_BF16)
        k_narrow((uint16_t *)y.p + i, from, n);
}

K_INLINE int64_t k_min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

K_INLINE int64_t k_ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* n elements; types as k_copy() says. */
K_INLINE void k_copy_run(struct k_out dst, int64_t to, struct k_in src,
                         int64_t from, int64_t n)
{
    if (dst.t == src.t) {
        memcpy(k_out_at(dst, to), k_at(src, from), (size_t)n * k_size(dst.t));
        return;
    }
    for (int64_t i = 0; i < n; i += K_CHUNK) {
        float buf[K_CHUNK], *room = k_room(dst, to + i, buf);
        int64_t m = k_min(K_CHUNK, n - i);

        k_flush(dst, to + i, m, k_load(src, from + i, m, room));
    }
}

/* ---- sums over a row ---- */

/* Several sums side by side: a chain of additions is slow and inexact. */
typedef float k_vec8 __attribute__((vector_size(32)));
typedef float k_vec16 __attribute__((vector_size(64)));
typedef double k_double8 __attribute__((vector_size(64)));

/* The sum in double: a mean that is far from 0 must not cost digits. */
K_MULTI(k_sum_row, (double *sum, const float *x, int64_t n), (sum, x, n))
{
    k_double8 a = {0}, b = {0};
    k_vec8 v, w;
    int64_t i = 0;

    for (; i + 16 <= n; i += 16) {
        memcpy(&v, x + i, sizeof v);
        memcpy(&w, x + i + 8, sizeof w);
        a += __builtin_convertvector(v, k_double8);
        b += __builtin_convertvector(w, k_double8);
    }
    for (; i < n; i++)
        *sum += (double)x[i];
    a += b;
    for (int k = 0; k < 8; k++)
        *sum += a[k];
}

K_MULTI(k_sum_squares, (double *sum, const float *x, int64_t n, float mean),
        (sum, x, n, mean))
{
    k_vec16 a = {0}, b = {0}, v, w;
    int64_t i = 0;

    for (; i + 32 <= n; i += 32) {
        memcpy(&v, x + i, sizeof v);
        memcpy(&w, x + i + 16, sizeof w);
        v -= mean;
        w -= mean;
        a += v * v;
        b += w * w;
    }
    for (; i < n; i++)
        *sum += ((double)x[i] - mean) * ((double)x[i] - mean);
    a += b;
    for (int k = 0; k < 8; k++)
        *sum += (double)a[k] + (double)a[k + 8];
}

/* ---- 8 x 8 numbers of 32 bits ---- */

/* Pairs, then pairs of pairs, then halves. */
K_INLINE void k_transpose8(k_vec8 r[8])
{
    k_vec8 t[8];

    _Pragma("GCC unroll 8") for (int i = 0; i < 8; i += 4)
    {
        k_vec8 a =
            __builtin_shufflevector(r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        k_vec8 b =
            __builtin_shufflevector(r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
        k_vec8 c = __builtin_shufflevector(r[i + 2], r[i + 3], 0, 8, 1, 9, 4,
                                           12, 5, 13);
        k_vec8 d = __builtin_shufflevector(r[i + 2], r[i + 3], 2, 10, 3, 11, 6,
                                           14, 7, 15);

        t[i] = __builtin_shufflevector(a, c, 0, 1, 8, 9, 4, 5, 12, 13);
        t[i + 1] = __builtin_shufflevector(a, c, 2, 3, 10, 11, 6, 7, 14, 15);
        t[i + 2] = __builtin_shufflevector(b, d, 0, 1, 8, 9, 4, 5, 12, 13);
        t[i + 3] = __builtin_shufflevector(b, d, 2, 3, 10, 11, 6, 7, 14, 15);
    }
    _Pragma("GCC unroll 8") for (int i = 0; i < 4; i++)
    {
        r[i] =
            __builtin_shufflevector(t[i], t[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        r[i + 4] =
            __builtin_shufflevector(t[i], t[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

/* n columns of `rows` rows, `row` apart, as n rows, `step` apart: reorder.c. */
void k_turn(float *to, int64_t step, const float *from, int64_t row,
            int64_t rows, int64_t n);

/* ---- act over a row ---- */

/* t: what the result is rounded to after it. */
K_MULTI(k_act_row,
        (float *y, const float *x, int64_t n, int act, enum mp_dtype t),
        (y, x, n, act, t))
{
    switch (act) {
    case MP_RELU:
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            y[i] = x[i] < 0 ? 0 : x[i];
        break;
    case MP_SILU:
        if (t == MP_BF16) {
#pragma omp simd
            for (int64_t i = 0; i < n; i++)
                y[i] = x[i] * k_sigmoid_bf16(x[i]);
            break;
        }
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            y[i] = x[i] * k_sigmoid(x[i]);
        break;
    case MP_GELU:
        if (t == MP_BF16) {
#pragma omp simd
            for (int64_t i = 0; i < n; i++)
                y[i] = k_gelu_bf16(x[i]);
            break;
        }
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            y[i] = k_gelu(x[i]);
        break;
    case MP_SIGMOID:
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            y[i] = k_sigmoid(x[i]);
        break;
    case MP_RSQRT:
        for (int64_t i = 0; i < n; i++)
            y[i] = 1.0f / sqrtf(x[i]);
        break;
    default:
        if (y != x)
            memmove(y, x, (size_t)n * sizeof *y);
    }
}

#endif
