/* SPDX-License-Identifier: MIT */
/* peak.c - chains of multiply-adds that touch no memory. */
#include <omp.h>
#include <time.h>
#include "peak.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CHAINS  12 /* latency times units, with some to spare */
#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

/* Named variables, as an array of them would be spilled. The empty asm keeps
 * the compiler from working out what the loop computes. */
#define CHAIN_INIT(i) __typeof__(zero) a##i = zero;
#define CHAIN_STEP(i) a##i = MULTIPLY_ADD(a##i);
#define CHAIN_KEEP(i) __asm__ volatile("" : "+x"(a##i));
#define CHAINS_LOOP(n)                                                         \
    EACH(CHAIN_INIT)                                                           \
    for (long k = 0; k < n; k++) {                                             \
        EACH(CHAIN_STEP)                                                       \
        EACH(CHAIN_KEEP)                                                       \
    }

__attribute__((target("avx512f"))) static void avx512(long n)
{
    __m512 zero = _mm512_setzero_ps(), x = _mm512_set1_ps(0.5f);

#define MULTIPLY_ADD(a) _mm512_fmadd_ps(x, x, a)
    CHAINS_LOOP(n)
#undef MULTIPLY_ADD
}

__attribute__((target("avx2,fma"))) static void avx2(long n)
{
    __m256 zero = _mm256_setzero_ps(), x = _mm256_set1_ps(0.5f);

#define MULTIPLY_ADD(a) _mm256_fmadd_ps(x, x, a)
    CHAINS_LOOP(n)
#undef MULTIPLY_ADD
}

__attribute__((target("avx512f,avx512bf16"))) static void bf16(long n)
{
    __m512 zero = _mm512_setzero_ps();
    __m512bh x = _mm512_cvtne2ps_pbh(zero, zero);

#define MULTIPLY_ADD(a) _mm512_dpbf16_ps(a, x, x)
    CHAINS_LOOP(n)
#undef MULTIPLY_ADD
}

#define TILE_ROWS 16
#define TILE_ROW  64 /* bytes */
#define SUMS      6

/* Two of the eight tiles are multiplied, six are sums. */
__attribute__((target("amx-tile,amx-bf16"))) static void amx(long n)
{
    static const struct {
        uint8_t palette, start, none[14];
        uint16_t row[16];
        uint8_t rows[16];
    } tiles __attribute__((aligned(64))) = {
        .palette = 1,
        .row = {TILE_ROW, TILE_ROW, TILE_ROW, TILE_ROW, TILE_ROW, TILE_ROW,
                TILE_ROW, TILE_ROW},
        .rows = {TILE_ROWS, TILE_ROWS, TILE_ROWS, TILE_ROWS, TILE_ROWS,
                 TILE_ROWS, TILE_ROWS, TILE_ROWS},
    };
    uint16_t half[TILE_ROWS * TILE_ROW / 2];

    for (int i = 0; i < TILE_ROWS * TILE_ROW / 2; i++)
        half[i] = 0x3f00;
    _tile_loadconfig(&tiles);
    _tile_loadd(6, half, TILE_ROW);
    _tile_loadd(7, half, TILE_ROW);
    for (long k = 0; k < n; k++) {
        _tile_dpbf16ps(0, 6, 7);
        _tile_dpbf16ps(1, 6, 7);
        _tile_dpbf16ps(2, 6, 7);
        _tile_dpbf16ps(3, 6, 7);
        _tile_dpbf16ps(4, 6, 7);
        _tile_dpbf16ps(5, 6, 7);
    }
    _tile_release();
}

/* Linux gives tiles to those who ask. */
static int has_amx(void)
{
    enum { REQUEST = 0x1023, TILE_DATA = 18 }; /* ARCH_REQ_XCOMP_PERM */

    return __builtin_cpu_supports("amx-bf16") &&
           syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

/* The loop for type t, and the operations of a turn of it. */
static void (*choose(enum mp_dtype t, double *ops))(long)
{
    if (t == MP_BF16 && has_amx()) {
        *ops = SUMS * TILE_ROWS * TILE_ROWS * TILE_ROW;
        return amx;
    }
    if (t == MP_BF16) {
        *ops = CHAINS * 16 * 4;
        return __builtin_cpu_supports("avx512bf16") ? bf16 : NULL;
    }
    *ops = CHAINS * 16 * 2;
    if (__builtin_cpu_supports("avx512f"))
        return avx512;
    *ops = CHAINS * 8 * 2;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
               ? avx2
               : NULL;
}

#else

static void (*choose(enum mp_dtype t, double *ops))(long)
{
    (void)t;
    *ops = 0;
    return NULL;
}

#endif

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double peak_flops(enum mp_dtype t, int threads)
{
    enum { RUNS = 200, TURNS = 200000 }; /* about 1 ms each */
    double ops, best = 0;
    void (*loop)(long) = choose(t, &ops);

    for (int i = 0; loop && i < RUNS; i++) {
        double began = 0, rate;

#pragma omp parallel num_threads(threads)
        {
#pragma omp barrier
#pragma omp master
            began = now();
            loop(TURNS);
        }
        rate = ops * TURNS * threads / (now() - began);
        best = rate > best ? rate : best;
    }
    return best;
}
