/* SPDX-License-Identifier: MIT */
/* pointwise.c - kernels that look at one element, or one of each operand. */
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "cpu/simd.h"

const char *k_isa(void)
{
    static const char *const name[] = {"generic", "avx2", "avx512",
                                       "avx512_bf16"};

    return k_has_amx() ? "amx_bf16" : name[k_level()];
}

int k_has_amx(void)
{
#if defined(__x86_64__)
    enum { REQUEST = 0x1023, TILE_DATA = 18 }; /* ARCH_REQ_XCOMP_PERM */
    static atomic_int known;                   /* 1: no, 2: yes */
    int has = atomic_load(&known);

    if (!has) {
        has = 1 + (k_level() == K_AVX512_BF16 &&
                   __builtin_cpu_supports("amx-bf16") &&
                   syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0);
        atomic_store(&known, has);
    }
    return has == 2;
#else
    return 0;
#endif
}

int k_has_bf16(void)
{
    return k_level() == K_AVX512_BF16;
}

void k_act(struct k_out y, struct k_in x, int64_t n, int act)
{
    int64_t chunks = k_ceil_div(n, K_CHUNK);

#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < chunks; k++) {
        float xb[K_CHUNK], yb[K_CHUNK], *to;
        int64_t i = k * K_CHUNK, m = k_min(K_CHUNK, n - i);

        to = k_room(y, i, yb);
        k_act_row(to, k_load(x, i, m, xb), m, act, y.t);
        k_flush(y, i, m, to);
    }
}

/* t: what the result is rounded to after it. */
K_MULTI(geglu_row,
        (float *y, const float *a, const float *gate, int64_t n,
         enum mp_dtype t),
        (y, a, gate, n, t))
{
    if (t == MP_BF16) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            y[i] = a[i] * k_gelu_bf16(gate[i]);
        return;
    }
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] = a[i] * k_gelu(gate[i]);
}

void k_geglu(struct k_out y, struct k_in x, int64_t rows, int64_t c)
{
    int64_t chunks = k_ceil_div(c, K_CHUNK);

#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < chunks; k++) {
            float ab[K_CHUNK], gb[K_CHUNK], yb[K_CHUNK], *to;
            int64_t i = k * K_CHUNK, m = k_min(K_CHUNK, c - i);

            to = k_room(y, r * c + i, yb);
            geglu_row(to, k_load(x, 2 * r * c + i, m, ab),
                      k_load(x, (2 * r + 1) * c + i, m, gb), m, y.t);
            k_flush(y, r * c + i, m, to);
        }
}

/* ---- binary with broadcast ---- */

K_MULTI(add_row,
        (float *y, const float *a, const float *b, int64_t n, int scalar),
        (y, a, b, n, scalar))
{
    float s = b[0];

    if (scalar) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            y[i] = a[i] + s;
    } else {
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            y[i] = a[i] + b[i];
    }
}

K_MULTI(mul_row,
        (float *y, const float *a, const float *b, int64_t n, int scalar),
        (y, a, b, n, scalar))
{
    float s = b[0];

    if (scalar) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            y[i] = a[i] * s;
    } else {
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            y[i] = a[i] * b[i];
    }
}

/* The index space of a, neighbouring dimensions merged where b broadcasts in
 * both or in neither; step is b's, 0 where it broadcasts. */
struct space {
    int64_t dim[MP_RANK], step[MP_RANK];
    int ndim;
};

static struct space merge(int andim, const int64_t *adim, int bndim,
                          const int64_t *bdim)
{
    struct space s = {{1}, {0}, 1}; /* the last dimension comes first */
    int64_t step = 1;

    for (int i = 0; i < andim; i++) {
        int64_t d = adim[andim - 1 - i];
        int64_t e = i < bndim ? bdim[bndim - 1 - i] : 1;
        int64_t at = e == 1 ? 0 : step;
        int k = s.ndim - 1;

        step *= e;
        if (d == 1)
            continue;
        if (s.dim[k] == 1) {
            s.step[k] = at;
        } else if ((at == 0) != (s.step[k] == 0)) {
            k = s.ndim++;
            s.dim[k] = 1;
            s.step[k] = at;
        }
        s.dim[k] *= d;
    }
    return s;
}

static int64_t row_start(const struct space *s, int64_t row)
{
    int64_t at = 0;

    for (int k = 1; k < s->ndim; k++) {
        at += row % s->dim[k] * s->step[k];
        row /= s->dim[k];
    }
    return at;
}

static void binary(struct k_out y, struct k_in a, struct k_in b,
                   const struct space *s, int mul, int act)
{
    int64_t n = s->dim[0], rows = 1, chunks = k_ceil_div(n, K_CHUNK);

    for (int k = 1; k < s->ndim; k++)
        rows *= s->dim[k];
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < chunks; k++) {
            float ab[K_CHUNK], bb[K_CHUNK], yb[K_CHUNK], *to;
            int64_t i = k * K_CHUNK, m = k_min(K_CHUNK, n - i);
            int scalar = s->step[0] == 0;
            const float *pa = k_load(a, r * n + i, m, ab);
            const float *pb =
                k_load(b, row_start(s, r) + i * s->step[0], scalar ? 1 : m, bb);

            to = k_room(y, r * n + i, yb);
            if (mul)
                mul_row(to, pa, pb, m, scalar);
            else
                add_row(to, pa, pb, m, scalar);
            if (act != MP_ACT_NONE)
                k_act_row(to, to, m, act, y.t);
            k_flush(y, r * n + i, m, to);
        }
}

void k_add(struct k_out y, struct k_in a, struct k_in b, int andim,
           const int64_t *adim, int bndim, const int64_t *bdim, int act)
{
    struct space s = merge(andim, adim, bndim, bdim);

    binary(y, a, b, &s, 0, act);
}

void k_mul(struct k_out y, struct k_in a, struct k_in b, int andim,
           const int64_t *adim, int bndim, const int64_t *bdim, int act)
{
    struct space s = merge(andim, adim, bndim, bdim);

    binary(y, a, b, &s, 1, act);
}

/* ---- copies ---- */

void k_copy(struct k_out dst, int64_t dst_row, struct k_in src, int64_t src_row,
            int64_t rows, int64_t n)
{
    const int64_t piece = 16 * K_CHUNK;
    int64_t pieces;

    if (dst_row == n && src_row == n) {
        n *= rows;
        rows = 1;
    }
    pieces = k_ceil_div(n, piece);
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < pieces; k++)
            k_copy_run(dst, r * dst_row + k * piece, src,
                       r * src_row + k * piece, k_min(piece, n - k * piece));
}
