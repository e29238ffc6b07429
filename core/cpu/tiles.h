/* SPDX-License-Identifier: MIT */
/*
 * tiles.h - what blocks.c does with tiles but for the products: windows and
 * weights of Winograd's ways become points, points become results, and results
 * get their bias, residual and activation.
 *
 * Included once for each width of vectors: LANES channels at a time, in
 * functions called V(name), of which windows, weights and finish are for the
 * outside.
 */
typedef float V(vec) __attribute__((vector_size(4 * LANES)));
typedef uint32_t V(bits) __attribute__((vector_size(4 * LANES)));
typedef uint16_t V(half) __attribute__((vector_size(2 * LANES)));

/* n numbers from the i-th on, LANES at most, and zeros. */
K_INLINE void V(load)(V(vec) * v, struct k_in x, int64_t i, int64_t n)
{
    if (x.t == MP_BF16) {
        V(half) h = {0};
        V(bits) u;

        memcpy(&h, (const uint16_t *)x.p + i, (size_t)n * sizeof(uint16_t));
        u = __builtin_convertvector(h, V(bits)) << 16;
        memcpy(v, &u, sizeof *v);
        return;
    }
    if (n < LANES)
        *v = (V(vec)){0};
    memcpy(v, (const float *)x.p + i, (size_t)n * sizeof(float));
}

K_INLINE void V(store)(struct k_out y, int64_t at, int64_t n, const V(vec) * v)
{
    V(bits) u, nan = (V(bits))(*v != *v);
    V(half) h;

    if (y.t == MP_F32) {
        memcpy((float *)y.p + at, v, (size_t)n * sizeof(float));
        return;
    }
    memcpy(&u, v, sizeof u);
    u = ((u + 0x7fff + (u >> 16 & 1)) & ~nan) | ((u | 0x400000) & nan);
    h = __builtin_convertvector(u >> 16, V(half));
    memcpy((uint16_t *)y.p + at, &h, (size_t)n * sizeof(uint16_t));
}

/* ---- B^T d B: pixels, later points, `step` apart; in place ----
 * Rows of B^T are the polynomials that are 0 at all points but one. */

K_INLINE void V(points_4)(V(vec) * d, int step)
{
    V(vec) first = d[0] - d[2 * step], last = d[step] - d[3 * step];
    V(vec) sum = d[step] + d[2 * step];

    d[2 * step] -= d[step];
    d[0] = first;
    d[step] = sum;
    d[3 * step] = last;
}

K_INLINE void V(points_6)(V(vec) * d, int step)
{
    V(vec) even = d[4 * step] - 2 * d[2 * step];
    V(vec) odd = LOW * (d[3 * step] - 2 * d[step]);
    V(vec) even_2 = d[4 * step] - .5f * d[2 * step];
    V(vec) odd_2 = HIGH * (d[3 * step] - .5f * d[step]);

    d[0] += d[4 * step] - 2.5f * d[2 * step];
    d[step] += d[5 * step] - 2.5f * d[3 * step];
    d[2 * step] = even + odd;
    d[3 * step] = even - odd;
    d[4 * step] = even_2 + odd_2;
    d[5 * step] = even_2 - odd_2;
}

K_INLINE void V(points)(V(vec) * d, int across, int step)
{
    if (across == 6)
        V(points_6)(d, step);
    else
        V(points_4)(d, step);
}

/* n channels, LANES at most, from the c-th on, of a window of 4 or 6 pixels
 * across. */
K_INLINE void V(transform)(V(vec) * d, int across, const void *const *from,
                           enum mp_dtype t, int64_t c, int64_t n)
{
    UNROLL
    for (int i = 0; i < across * across; i++)
        V(load)(&d[i], (struct k_in){from[i], t}, c, n);
    UNROLL
    for (int i = 0; i < across; i++)
        V(points)(d + i, across, across);
    UNROLL
    for (int i = 0; i < across; i++)
        V(points)(d + across * i, across, 1);
}

K_INLINE void V(window)(float *to, int64_t point, const void *const *from,
                        int64_t c, int64_t n)
{
    V(vec) d[MOST_POINTS];

    V(transform)(d, 6, from, MP_F32, c, n);
    UNROLL
    for (int i = 0; i < MOST_POINTS; i++)
        memcpy(to + i * point + c, &d[i], sizeof d[i]);
}

K_INLINE void V(windows)(float *to, int64_t point, const void *const *from,
                         enum mp_dtype t, int64_t n)
{
    int64_t c = 0;

    (void)t; /* f32 */
    for (; c + LANES <= n; c += LANES)
        V(window)(to, point, from, c, LANES);
    if (c < n)
        V(window)(to, point, from, c, n - c);
}

/* ---- G g G^T ---- */

/* Three taps become two points: a pair of the six. */
K_INLINE void V(widen)(V(vec) * to, const V(vec) * g, int step, int pair)
{
    V(vec) even, odd;

    if (pair == 0) {
        to[0] = g[0];
        to[1] = g[2 * step];
        return;
    }
    if (pair == 1) {
        even = (g[0] + .5f * g[2 * step]) * (-1 / 1.5f);
        odd = g[step] * (-LOW / 1.5f);
    } else {
        even = (g[0] + 2 * g[2 * step]) * (1 / 6.f);
        odd = g[step] * (HIGH / 6);
    }
    to[0] = even + odd;
    to[1] = even - odd;
}

/* Two rows of points, a pair, of n channels, each of WIDE channels of the
 * result. */
K_INLINE void V(rows)(float *to, int64_t point, struct taps w, int64_t n,
                      int pair)
{
    for (int64_t c = 0; c < n * WIDE; c += LANES) {
        const float *from = w.p + c / WIDE * w.unit + c % WIDE;
        V(vec) g[9], rows[6], v[2 * ACROSS];

        UNROLL
        for (int i = 0; i < 9; i++)
            memcpy(&g[i], from + i * w.tap, sizeof g[i]);
        UNROLL
        for (int i = 0; i < 3; i++)
            V(widen)(rows + 2 * i, g + i, 3, pair);
        UNROLL
        for (int i = 0; i < 2; i++) {
            UNROLL
            for (int j = 0; j < 3; j++)
                V(widen)(v + ACROSS * i + 2 * j, rows + i, 2, j);
        }
        UNROLL
        for (int i = 0; i < 2 * ACROSS; i++)
            memcpy(to + i * point + c, &v[i], sizeof v[i]);
    }
}

K_INLINE void V(weights)(float *to, int64_t point, struct taps w, int64_t n,
                         int64_t pair)
{
    if (pair == 0)
        V(rows)(to, point, w, n, 0);
    else if (pair == 1)
        V(rows)(to, point, w, n, 1);
    else
        V(rows)(to, point, w, n, 2);
}

/* ---- A^T m A, and what follows ---- */

K_INLINE void V(results_2)(V(vec) * m, int step)
{
    V(vec) a = m[step] + m[2 * step], b = m[step] - m[2 * step];

    m[0] += a;
    m[step] = b - m[3 * step];
}

K_INLINE void V(results_4)(V(vec) * m, int step)
{
    V(vec) even = m[2 * step] + m[3 * step], even_2 = m[4 * step] + m[5 * step];
    V(vec) odd = LOW * (m[2 * step] - m[3 * step]);
    V(vec) odd_2 = HIGH * (m[4 * step] - m[5 * step]);
    V(vec) last = m[step];

    m[0] += even + even_2;
    m[step] = odd + odd_2;
    m[2 * step] = .5f * even + 2 * even_2;
    m[3 * step] = .5f * odd + 2 * odd_2 + last;
}

K_INLINE void V(results)(V(vec) * m, int side, int step)
{
    if (side == 4)
        V(results_4)(m, step);
    else
        V(results_2)(m, step);
}

/* n channels of a result from the k-th on; LANES of n are known to be there
 * when compiling, mostly. */
K_INLINE void V(put)(const struct result *s, int64_t at, int64_t k, int64_t n,
                     const V(vec) * sum, int act)
{
    V(vec) y = *sum, v;

    if (s->bias) {
        V(load)(&v, (struct k_in){s->bias, MP_F32}, k, n);
        y += v;
    }
    if (s->residual.p) {
        V(load)(&v, s->residual, at, n);
        y += v;
    }
    if (act)
        k_act_row((float *)&y, (float *)&y, LANES, act, s->y.t);
    V(store)(s->y, at, n, &y);
}

/* n channels, LANES at most, of a tile of 2 or 4 results across. */
K_INLINE void V(tile)(const struct block *b, int side, const struct result *s,
                      const float *m, struct place t, int64_t k, int64_t n)
{
    const struct k_conv *a = b->a;
    int across = side + 2;
    V(vec) d[MOST_POINTS];

    UNROLL
    for (int i = 0; i < across * across; i++)
        memcpy(&d[i], m + i * b->m_point, sizeof d[i]);
    UNROLL
    for (int i = 0; i < across; i++)
        V(results)(d + i, side, across);
    UNROLL
    for (int i = 0; i < side; i++)
        V(results)(d + across * i, side, 1);
    UNROLL
    for (int i = 0; i < side * side; i++) {
        int64_t y = t.y + i / side, x = t.x + i % side;
        int64_t at = ((t.n * a->yh + y) * a->yw + x) * a->k + k;

        if (y < a->yh && x < a->yw)
            V(put)(s, at, k, n, &d[i / side * across + i % side], a->act);
    }
}

K_INLINE void V(one)(const struct block *b, const struct result *s,
                     const float *m, int64_t tile, int64_t k, int64_t n)
{
    V(vec) sum;

    memcpy(&sum, m, sizeof sum);
    V(put)(s, (b->first + tile) * b->a->k + k, k, n, &sum, b->a->act);
}

/* side: a number known when compiling */
K_INLINE void V(finish)(const struct block *b, int side, const struct result *s,
                        const float *m, int64_t k)
{
    for (int64_t i = 0; i < b->tiles; i++) {
        struct place t = b->place[i];

        if (side > 1 && i + 1 < b->tiles)
            fetch_results(b->a, side, s, b->place[i + 1], k);
        for (int64_t j = 0; j < k_min(WIDE, b->a->k - k); j += LANES) {
            const float *at = m + i * WIDE + j;
            int64_t n = b->a->k - k - j;

            /* LANES mostly: let that be known when compiling */
            if (side == 1 && n >= LANES)
                V(one)(b, s, at, i, k + j, LANES);
            else if (side == 1)
                V(one)(b, s, at, i, k + j, n);
            else if (n >= LANES)
                V(tile)(b, side, s, at, t, k + j, LANES);
            else
                V(tile)(b, side, s, at, t, k + j, n);
        }
    }
}
