/* SPDX-License-Identifier: MIT */
/*
 * attention.cu - softmax(q k^T scale) v without the T x S matrix in memory.
 * The softmax is taken on the way: what was summed so far is scaled down
 * whenever a larger product turns up.
 */
#include "cuda/prelude.cuh"

/* ---- f32, any head width: a warp each query ---- */

/* Lanes are keys while q k^T is taken, and channels while the result is: the
 * probabilities go from lane to lane. Wider heads than ACROSS lanes of this
 * many channels take several rounds, each with its own products. Keys are added
 * up 32 at a time, and those sums then: one chain of additions over all keys
 * would cost digits. */
#define ACROSS 16

static DEV void do_attention(const g_attention &a)
{
    DYNAMIC_SHARED(float, queries);
    uint32_t row = blockIdx.x * GPU_ROWS + threadIdx.x / 32;
    uint32_t lane = threadIdx.x % 32, c = a.heads * a.d;
    uint32_t at = (blockIdx.z * a.t + row) * c + blockIdx.y * a.d;
    uint32_t kv = blockIdx.z * a.kv_batch + blockIdx.y * a.d;
    float *q = queries + threadIdx.x / 32 * a.d;

    if (row >= a.t)
        return;
    for (uint32_t e = lane; e < a.d; e += 32) {
        float v;

        load<1>(&v, a.q, at + e);
        q[e] = v;
    }
    __syncwarp();
    for (uint32_t base = 0; base < a.d; base += 32 * ACROSS) {
        float most = -INFINITY, total = 0, y[ACROSS] = {};

        for (uint32_t j0 = 0; j0 < a.s; j0 += 32) {
            uint32_t keys = a.s - j0 < 32 ? a.s - j0 : 32;
            float dot = 0, p, was = most, v, part[ACROSS] = {};

            for (uint32_t e = 0; e < a.d && lane < keys; e++) {
                load<1>(&v, a.k, kv + (j0 + lane) * c + e);
                dot += q[e] * v;
            }
            dot = lane < keys ? dot * a.scale : -INFINITY;
            most = fmaxf(most, warp_max(dot));
            p = expf(dot - most);
            was = expf(was - most);
            total = total * was + warp_sum(p);
            for (uint32_t j = 0; j < keys; j++) {
                float pj = __shfl_sync(ALL_LANES, p, j);

#pragma unroll
                for (int i = 0; i < ACROSS; i++) {
                    uint32_t e = base + i * 32 + lane;

                    if (e < a.d) {
                        load<1>(&v, a.v, kv + (j0 + j) * c + e);
                        part[i] += pj * v;
                    }
                }
            }
#pragma unroll
            for (int i = 0; i < ACROSS; i++)
                y[i] = y[i] * was + part[i];
        }
#pragma unroll
        for (int i = 0; i < ACROSS; i++) {
            uint32_t e = base + i * 32 + lane;
            float v = y[i] / total;

            if (e < a.d)
                store<1>(a.y, at + e, &v);
        }
    }
}

/* ---- 16 bits: flash attention on tensor cores ---- */

/* A block of 4 warps takes 64 QT queries of a head, a warp QT times 16 of
 * them, KEYS keys at a time. What is read of keys and values from shared memory
 * serves all of a warp's queries: with QT 1 that reading takes longest, with QT
 * 2 there are half as many blocks. Which it is changes no result.
 *
 * D is the head width, DV the part of it that this block computes of the
 * result, both rounded up to 8; what they are too wide is zeros. Rows in shared
 * memory are an odd number of 16 bytes long: then the eight rows that an
 * ldmatrix reads lie in different banks. Queries stay in registers where they
 * fit (WIDE: they do not).
 *
 * With STAGES 2, keys and values of the next tile are copied while these are
 * used; widest heads leave no room for that. */
template <class T, int D, int DV, int KEYS, int QT, int STAGES, bool WIDE>
static DEV void do_flash(const g_attention &a)
{
    constexpr int KROW = FLASH_ROW(D), VROW = FLASH_ROW(DV);
    constexpr int NK = KEYS / 8, NV = DV / 8, PARTS = (D + 8) / 16;
    constexpr int QUERIES = GPU_FLASH_QUERIES * QT;
    constexpr int STAGE = KEYS * (KROW + VROW);
    DYNAMIC_SHARED(uint16_t, tiles);
    /* in the second stage's place at first, unless they are to stay */
    uint16_t *tile_q = tiles + (WIDE ? STAGES : 1) * STAGE;
    uint32_t slices = (a.d + DV - 1) / DV, head = blockIdx.y / slices;
    uint32_t slice = blockIdx.y % slices * DV, c = a.heads * a.d;
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t q0 = blockIdx.x * QUERIES;
    uint32_t kv = blockIdx.z * a.kv_batch + head * a.d;
    uint32_t qy = blockIdx.z * a.t * c + head * a.d;
    const uint16_t *qp = (const uint16_t *)a.q.p + qy;
    const uint16_t *kp = (const uint16_t *)a.k.p + kv;
    const uint16_t *vp = (const uint16_t *)a.v.p + kv + slice;
    /* 2^x takes one instruction; its argument is scaled by log2 e. */
    float scale = a.scale * 1.44269504f;
    float most[QT][2], total[QT][2] = {}, y[QT][NV][4] = {};
    uint32_t fq[QT][WIDE ? 1 : PARTS][4];

    /* Rows of `width` channels, of which `have` are there. */
    auto fetch = [&](uint16_t *to, const uint16_t *from, uint32_t first,
                     uint32_t last, uint32_t rows, uint32_t width,
                     uint32_t have) {
        for (uint32_t i = threadIdx.x; i < rows * (width / 8);
             i += blockDim.x) {
            uint32_t row = i / (width / 8), e = i % (width / 8) * 8;
            bool there = first + row < last && e < have;

            copy_async(to + row * FLASH_ROW(width) + e,
                       from + (there ? (first + row) * c + e : 0), there);
        }
    };
    auto fetch_tile = [&](uint32_t j) {
        uint16_t *to = tiles + j / KEYS % STAGES * STAGE;

        fetch(to, kp, j, a.s, KEYS, D, a.d);
        fetch(to + KEYS * KROW, vp, j, a.s, KEYS, DV, a.d - slice);
        copy_commit();
    };
    auto load_q = [&](uint32_t *f, int q, int k) {
        /* half a part: twice */
        ldmatrix(f, tile_q + ((warp * QT + q) * 16 + lane % 16) * KROW +
                        k * 16 + (k < D / 16 ? lane / 16 * 8 : 0));
    };

#pragma unroll
    for (int q = 0; q < QT; q++)
        most[q][0] = most[q][1] = -INFINITY;
    fetch(tile_q, qp, q0, a.t, QUERIES, D, a.d);
    copy_commit();
    fetch_tile(0);
    if (!WIDE) {
        copy_wait<1>();
        __syncthreads();
#pragma unroll
        for (int i = 0; i < QT * PARTS; i++)
            load_q(fq[i / PARTS][WIDE ? 0 : i % PARTS], i / PARTS, i % PARTS);
    }
    for (uint32_t j0 = 0; j0 < a.s; j0 += KEYS) {
        const uint16_t *tile_k = tiles + j0 / KEYS % STAGES * STAGE;
        const uint16_t *tile_v = tile_k + KEYS * KROW;
        float p[QT][NK][4] = {};

        copy_wait<0>();
        __syncthreads(); /* all see this tile, and are done with the last */
        if (STAGES == 2 && j0 + KEYS < a.s)
            fetch_tile(j0 + KEYS);
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            if (WIDE)
#pragma unroll
                for (int q = 0; q < QT; q++)
                    load_q(fq[q][0], q, k);
#pragma unroll
            for (int n = 0; n < NK / 2; n++) {
                uint32_t fk[4];

                ldmatrix(fk, tile_k +
                                 (n * 16 + lane / 16 * 8 + lane % 8) * KROW +
                                 k * 16 + lane / 8 % 2 * 8);
#pragma unroll
                for (int q = 0; q < QT; q++) {
                    T::mma(p[q][2 * n], fq[q][WIDE ? 0 : k], fk);
                    T::mma(p[q][2 * n + 1], fq[q][WIDE ? 0 : k], fk + 2);
                }
            }
        }
        if (D % 16)
#pragma unroll
            for (int n = 0; n < NK / 4; n++) {
                uint32_t fk[4];

                ldmatrix(fk, tile_k + (n * 32 + lane) * KROW + D / 16 * 16);
#pragma unroll
                for (int i = 0; i < QT * 4; i++)
                    T::mma8(p[i / 4][4 * n + i % 4], fq[i / 4][PARTS - 1],
                            fk[i % 4]);
            }
        if (j0 + KEYS > a.s)
#pragma unroll
            for (int i = 0; i < QT * NK * 4; i++)
                if (j0 + i / 4 % NK * 8 + lane % 4 * 2 + i % 2 >= a.s)
                    p[i / 4 / NK][i / 4 % NK][i % 4] = -INFINITY;
                    /* This thread holds parts of rows lane / 4 (h = 0) and 8
                     * further; four lanes share a row. */
#pragma unroll
        for (int i = 0; i < 2 * QT; i++) {
            int q = i / 2, h = i % 2;
            float now = most[q][h], sum = 0, was, least;

#pragma unroll
            for (int n = 0; n < 2 * NK; n++)
                now = fmaxf(now, p[q][n / 2][2 * h + n % 2]);
            now = fmaxf(now, __shfl_xor_sync(ALL_LANES, now, 1));
            now = fmaxf(now, __shfl_xor_sync(ALL_LANES, now, 2));
            was = exp2_fast((most[q][h] - now) * scale);
            most[q][h] = now;
            least = -now * scale;
#pragma unroll
            for (int n = 0; n < 2 * NK; n++) {
                float *v = &p[q][n / 2][2 * h + n % 2];

                *v = exp2_fast(fmaf(*v, scale, least));
                sum += *v;
            }
            total[q][h] = total[q][h] * was + sum;
#pragma unroll
            for (int n = 0; n < NV; n++) {
                y[q][n][2 * h] *= was;
                y[q][n][2 * h + 1] *= was;
            }
        }
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++) {
            uint32_t fp[QT][4];

#pragma unroll
            for (int i = 0; i < QT * 4; i++) {
                const float *v = p[i / 4][2 * k + i % 4 / 2] + i % 2 * 2;

                fp[i / 4][i % 4] = to_halves(v[0], v[1], T::type);
            }
#pragma unroll
            for (int n = 0; n < NV; n += 2) {
                uint32_t fv[4];

                /* the last one of an odd number: twice */
                ldmatrix_turned(fv, tile_v + (k * 16 + lane % 16) * VROW +
                                        (n + (n + 1 < NV ? lane / 16 : 0)) * 8);
#pragma unroll
                for (int q = 0; q < QT; q++) {
                    T::mma(y[q][n], fp[q], fv);
                    if (n + 1 < NV)
                        T::mma(y[q][n + 1], fp[q], fv + 2);
                }
            }
        }
        if (STAGES == 1) {
            __syncthreads();
            if (j0 + KEYS < a.s)
                fetch_tile(j0 + KEYS);
        }
    }
#pragma unroll
    for (int i = 0; i < 2 * QT; i++) {
        int q = i / 2, h = i % 2;
        uint32_t row = q0 + (warp * QT + q) * 16 + lane / 4 + 8 * h;
        float all = total[q][h];

        all += __shfl_xor_sync(ALL_LANES, all, 1);
        all += __shfl_xor_sync(ALL_LANES, all, 2);
        if (row >= a.t)
            continue;
#pragma unroll
        for (int n = 0; n < NV; n++) {
            uint32_t e = slice + n * 8 + lane % 4 * 2;
            float v[2] = {y[q][n][2 * h] / all, y[q][n][2 * h + 1] / all};

            if (e < a.d)
                store<2>(a.y, qy + row * c + e, v);
        }
    }
}

KERNEL(attention, g_attention, 32 * GPU_ROWS, 1, do_attention(a))
/* Code for newer GPUs needs some registers more than there are for 64, and code
 * for others than Hopper more than three blocks leave. */
#if defined __CUDA_ARCH__ && __CUDA_ARCH__ >= 1000
#define KEYS_80 32
#else
#define KEYS_80 64
#endif
#if !defined __CUDA_ARCH__ || __CUDA_ARCH__ == 900
#define BLOCKS_40 3
#else
#define BLOCKS_40 2
#endif
#define FLASH(type)                                                            \
    KERNEL(flash_##type##_40, g_attention, 128, 4,                             \
           (do_flash<type, 40, 40, 64, 1, 2, false>(a)))                       \
    KERNEL(flash_##type##_40_2, g_attention, 128, BLOCKS_40,                   \
           (do_flash<type, 40, 40, 64, 2, 2, false>(a)))                       \
    KERNEL(flash_##type##_80, g_attention, 128, 2,                             \
           (do_flash<type, 80, 80, KEYS_80, 1, 2, false>(a)))                  \
    KERNEL(flash_##type##_80_2, g_attention, 128, 2,                           \
           (do_flash<type, 80, 80, KEYS_80, 2, 2, false>(a)))                  \
    KERNEL(flash_##type##_160, g_attention, 128, 2,                            \
           (do_flash<type, 160, 160, 64, 1, 2, false>(a)))                     \
    KERNEL(flash_##type##_512, g_attention, 128, 1,                            \
           (do_flash<type, 512, 128, 16, 1, 1, true>(a)))
FLASH(bf16)
FLASH(f16)
