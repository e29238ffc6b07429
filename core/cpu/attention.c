/* SPDX-License-Identifier: MIT */
/*
 * attention.c - softmax(q k^T scale) v without keeping the scores.
 *
 * A task is some blocks of queries of one head. Keys go by in blocks, too, each
 * for all of the task before the next; the result so far is rescaled when the
 * running maximum grows. All of it is transposed: a vector holds one component
 * of neighbouring queries, so that keys and values are read where they are, one
 * number broadcast at a time; any head size and any number of keys waste
 * nothing, and softmax has no sums across a vector. Both products are then the
 * same loop:
 *
 *     acc[row][query] += b[row][i] * x[i][query]
 *
 * scores: rows are keys, i components of q; result: rows are components of v,
 * i keys. With bf16 products i goes over pairs: neighbouring components of k
 * are pairs already, keys are paired by copying v (k_attention). AMX multiplies
 * 16 rows of 32 numbers at once: k and v, turned, are copied to squares of
 * them, with zeros where they end.
 */
#include <float.h>
#include "cpu/attention.h"

/* ---- any CPU: the compiler splits or fuses vectors of 8 ---- */

typedef int32_t mask8 __attribute__((vector_size(32)));

/* 6 x 2 sums, 2 vectors of x and one of b take 15 of 16 registers. */
#define SLIM     2 /* vectors of 8 queries */
#define SLIM_ROW (8 * SLIM)

K_INLINE void get8(k_vec8 *v, const float *p)
{
    memcpy(v, p, sizeof *v);
}

K_INLINE void put8(float *p, const k_vec8 *v)
{
    memcpy(p, v, sizeof *v);
}

/* Where mask is set, x in place of y. */
K_INLINE void choose8(k_vec8 *y, const mask8 *mask, const k_vec8 *x)
{
    *y = (k_vec8)(((mask8)*x & *mask) | ((mask8)*y & ~*mask));
}

K_INLINE void tile_slim(k_vec8 acc[][SLIM], int rows, const struct factor *f)
{
    const char *b = f->b;
    const float *x = f->x;

    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int j = 0; j < SLIM; j++)
            acc[r][j] = (k_vec8){0};
    }
    for (int64_t i = 0; i < f->n; i++) {
        k_vec8 v[SLIM];

        UNROLL
        for (int j = 0; j < SLIM; j++)
            get8(&v[j], x + 8 * j);
        UNROLL
        for (int r = 0; r < rows; r++) {
            float w;

            memcpy(&w, b + r * f->row_step, sizeof w);
            UNROLL
            for (int j = 0; j < SLIM; j++)
                acc[r][j] += w * v[j];
        }
        b += f->i_step;
        x += SLIM_ROW;
    }
}

K_INLINE void score_slim(struct block *b, int rows, const struct factor *f,
                         float *s, float scale)
{
    k_vec8 acc[TILE_ROWS][SLIM];

    tile_slim(acc, rows, f);
    UNROLL
    for (int j = 0; j < SLIM; j++) {
        k_vec8 most;
        mask8 more;

        get8(&most, b->shrink + 8 * j);
        UNROLL
        for (int r = 0; r < rows; r++) {
            acc[r][j] *= scale;
            more = acc[r][j] > most;
            choose8(&most, &more, &acc[r][j]);
            put8(s + r * SLIM_ROW + 8 * j, &acc[r][j]);
        }
        put8(b->shrink + 8 * j, &most);
    }
}

K_INLINE void mix_slim(struct block *b, int rows, const struct factor *f,
                       float *o)
{
    k_vec8 acc[TILE_ROWS][SLIM];

    tile_slim(acc, rows, f);
    UNROLL
    for (int j = 0; j < SLIM; j++) {
        k_vec8 c, old;

        get8(&c, b->shrink + 8 * j);
        UNROLL
        for (int r = 0; r < rows; r++) {
            float *at = o + r * SLIM_ROW + 8 * j;

            get8(&old, at);
            acc[r][j] += c * old;
            put8(at, &acc[r][j]);
        }
    }
}

K_MULTI(score_plain,
        (struct block * b, const void *k, int64_t row, int64_t keys, int64_t d,
         float scale),
        (b, k, row, keys, d, scale))
{
    const char *base = k;
    struct factor f = {base, row, 4, d, b->q};

    memcpy(b->shrink, b->most, SLIM_ROW * sizeof *b->most);
    TILES(keys, score_slim(b, rows, &f, b->s + i * SLIM_ROW, scale))
}

K_MULTI(mix_plain,
        (struct block * b, const void *v, int64_t row, int64_t keys, int64_t d),
        (b, v, row, keys, d))
{
    const char *base = v;
    struct factor f = {base, 4, row, keys, b->s};

    TILES(d, mix_slim(b, rows, &f, b->o + i * SLIM_ROW))
}

/* 2^x for x <= 0, at least 2^-126; relative error 1e-7. Step by step for all of
 * n vectors, known when compiling: a CPU does not look far enough ahead to
 * begin with one before it is done with the last. */
#define EACH                                                                   \
    UNROLL                                                                     \
    for (int i = 0; i < n; i++)

K_INLINE void exp2_slim(k_vec8 *x, int n)
{
    /* adding 1.5 * 2^23 rounds to an integer in the low bits of the sum */
    const float round = 0x1.8p23f;
    k_vec8 least = (k_vec8){0} - 126, f[4], p[4];
    mask8 less[4], power[4];

    EACH less[i] = x[i] < least;
    EACH choose8(&x[i], &less[i], &least); /* a NaN stays one */
    EACH p[i] = x[i] + round;
    EACH power[i] = (mask8)p[i] << 23; /* of round's own bits none is left */
    EACH f[i] = x[i] - (p[i] - round);
    EACH p[i] = f[i] * 0.00132764713f + 0.00967554282f;
    EACH p[i] = p[i] * f[i] + 0.0555071346f;
    EACH p[i] = p[i] * f[i] + 0.240221202f;
    EACH p[i] = p[i] * f[i] + 0.693146944f;
    EACH p[i] = p[i] * f[i] + 1.00000012f;
    EACH x[i] = (k_vec8)((mask8)p[i] + power[i]);
}

K_MULTI(soften_plain, (struct block * b, int64_t keys), (b, keys))
{
    enum { n = 2 * SLIM }; /* two keys */
    k_vec8 most[SLIM], shrink[SLIM], part[n], p[n];

    UNROLL
    for (int j = 0; j < SLIM; j++) {
        get8(&shrink[j], b->most + 8 * j);
        get8(&most[j], b->shrink + 8 * j);
        shrink[j] -= most[j];
    }
    exp2_slim(shrink, SLIM);
    UNROLL
    for (int j = 0; j < SLIM; j++) {
        put8(b->most + 8 * j, &most[j]);
        put8(b->shrink + 8 * j, &shrink[j]);
    }
    EACH part[i] = (k_vec8){0};
    if (keys % 2) /* its partner weighs nothing */
        for (int j = 0; j < SLIM_ROW; j++)
            b->s[keys * SLIM_ROW + j] = -FLT_MAX;
    for (int64_t k = 0; k < keys; k += 2) {
        float *s = b->s + k * SLIM_ROW;

        EACH get8(&p[i], s + 8 * i);
        EACH p[i] -= most[i % SLIM];
        exp2_slim(p, n);
        EACH part[i] += p[i];
        EACH put8(s + 8 * i, &p[i]);
    }
    UNROLL
    for (int j = 0; j < SLIM; j++) {
        k_vec8 sum;

        get8(&sum, b->sum + 8 * j);
        sum = sum * shrink[j] + (part[j] + part[j + SLIM]);
        put8(b->sum + 8 * j, &sum);
    }
}

static void weigh_plain(struct block *b, const void *k, int64_t row,
                        int64_t keys, int64_t d, float scale)
{
    score_plain(b, k, row, keys, d, scale);
    soften_plain(b, keys);
}

K_MULTI(load_plain,
        (float *to, const void *from, int64_t row_bytes, int64_t rows,
         int64_t units),
        (to, from, row_bytes, rows, units))
{
    int64_t whole = units / 8 * 8;

    for (int64_t q = 0; q < SLIM_ROW; q += 8) {
        const char *row[8];

        for (int i = 0; i < 8; i++)
            row[i] = (const char *)from + k_min(q + i, rows - 1) * row_bytes;
        for (int64_t e = 0; e < whole; e += 8) {
            k_vec8 r[8];

            UNROLL
            for (int i = 0; i < 8; i++)
                memcpy(&r[i], row[i] + 4 * e, sizeof r[i]);
            k_transpose8(r);
            UNROLL
            for (int i = 0; i < 8; i++)
                put8(to + (e + i) * SLIM_ROW + q, &r[i]);
        }
        for (int64_t e = whole; e < units; e++)
            for (int i = 0; i < 8; i++)
                memcpy(to + e * SLIM_ROW + q + i, row[i] + 4 * e, sizeof *to);
    }
}

K_INLINE void put_some(struct k_out y, int64_t at, int64_t n, const k_vec8 *v)
{
    if (y.t == MP_F32)
        memcpy((float *)y.p + at, v, (size_t)n * sizeof(float));
    else
        for (int64_t i = 0; i < n; i++)
            ((uint16_t *)y.p)[at + i] = k_to_bf16((*v)[i]);
}

K_MULTI(store_plain,
        (const struct block *b, struct k_out y, int64_t at, int64_t row,
         int64_t rows, int64_t d),
        (b, y, at, row, rows, d))
{
    for (int64_t q = 0; q < rows; q += 8) {
        k_vec8 c;

        get8(&c, b->sum + q);
        c = 1 / c;
        for (int64_t e = 0; e < d; e += 8) {
            int64_t n = k_min(8, d - e), to = at + q * row + e;
            k_vec8 r[8];

            UNROLL
            for (int i = 0; i < 8; i++) {
                get8(&r[i], b->o + k_min(e + i, d - 1) * SLIM_ROW + q);
                r[i] *= c;
            }
            k_transpose8(r);
            for (int i = 0; i < k_min(8, rows - q); i++, to += row)
                put_some(y, to, n, &r[i]);
        }
    }
}

static const struct engine engine_plain = {
    .queries = SLIM_ROW,
    .form = PLAIN,
    .load = load_plain,
    .weigh = weigh_plain,
    .mix = mix_plain,
    .store = store_plain,
};

/* ---- the same for all ---- */

static const struct engine *engine_for(const struct k_attention *a)
{
    const struct engine *wide = k_wide_engine(a);

    return wide ? wide : &engine_plain;
}

/* An operand as the engine wants it. Its element type is f32, bf16 or, for v
 * of bf16, pairs of keys: pair k of head h starts at unit
 * (i * ceil(s / 2) + k) * row + h * d. In squares a row is a key of k, or two
 * of v. */
struct operand {
    const char *p;
    struct k_rows step; /* bytes */
    int64_t head;       /* bytes */
};

static struct operand direct(const void *p, enum mp_dtype t, struct k_rows r,
                             int64_t d)
{
    int64_t size = (int64_t)k_size(t);

    return (struct operand){p, {r.batch * size, r.row * size}, d * size};
}

/* A copy as f32, unless it is that. */
static struct operand as_f32(const struct k_attention *a, const void *p,
                             enum mp_dtype t, struct k_rows r, int64_t rows,
                             float **scratch)
{
    int64_t c = a->heads * a->d, n = r.batch ? a->n : 1;
    struct k_rows dense = {r.batch ? rows * c : 0, c};
    float *to = *scratch;

    if (t == MP_F32)
        return direct(p, t, r, a->d);
    for (int64_t i = 0; i < n; i++)
        k_copy((struct k_out){to + i * rows * c, MP_F32}, c,
               (struct k_in){(const uint16_t *)p + i * r.batch, t}, r.row, rows,
               c);
    *scratch += n * rows * c;
    return direct(to, MP_F32, dense, a->d);
}

K_MULTI(zip_row,
        (uint32_t * y, const uint16_t *even, const uint16_t *odd, int64_t n),
        (y, even, odd, n))
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] = even[i] | (uint32_t)odd[i] << 16;
}

/* Rows of v of bf16 by pairs, the last with zeros if need be. */
static struct operand pairs(const struct k_attention *a, const uint16_t *v,
                            uint32_t *to, uint16_t *zero)
{
    int64_t c = a->heads * a->d, n = a->v.batch ? a->n : 1;
    int64_t half = k_ceil_div(a->s, 2);

    memset(zero, 0, (size_t)c * sizeof *zero);
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < n * half; k++) {
        int64_t s = k % half * 2;
        const uint16_t *even = v + k / half * a->v.batch + s * a->v.row;

        zip_row(to + k * c, even, s + 1 < a->s ? even + a->v.row : zero, c);
    }
    return (struct operand){
        (const char *)to, {a->v.batch ? half * c * 4 : 0, c * 4}, a->d * 4};
}

/* Of k, 16 keys, or of v, 32. */
static int64_t squares_size(const struct k_attention *a, int64_t batch,
                            int64_t keys)
{
    return (batch ? a->n : 1) * a->heads * k_ceil_div(a->s, keys) *
           k_ceil_div(a->d, SQUARE / keys) * SQUARE / 2;
}

static struct operand squares(const struct k_attention *a, const uint16_t *p,
                              struct k_rows r, int64_t keys, fill_square *fill,
                              float **scratch)
{
    int64_t high = k_ceil_div(a->s, keys), n = (r.batch ? a->n : 1) * a->heads;
    int64_t each = SQUARE / keys, wide = k_ceil_div(a->d, each);
    int64_t head = high * wide * SQUARE;
    uint16_t *to = (uint16_t *)*scratch;

    *scratch += squares_size(a, r.batch, keys);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n * high; i++) {
        int64_t s = i % high * keys, h = i / high % a->heads;
        const uint16_t *from =
            p + i / high / a->heads * r.batch + s * r.row + h * a->d;

        for (int64_t e = 0; e < wide; e++)
            fill(to + (i * wide + e) * SQUARE, from + e * each, r.row,
                 k_min(keys, a->s - s), k_min(each, a->d - e * each));
    }
    return (struct operand){
        (const char *)to,
        {r.batch ? a->heads * head * 2 : 0, wide * SQUARE_ROW},
        head * 2};
}

/* Components in a thread's arrays. */
static int64_t room_of(const struct k_attention *a)
{
    return k_ceil_div(a->d, 32) * 32;
}

/* Numbers in the scratch of a thread: the arrays of the blocks of a task. */
static int64_t task_size(const struct k_attention *a)
{
    return (2 * room_of(a) + 4) * TASK + (KEYS + KEYS / 2) * MOST_QUERIES;
}

/* Block g of a task, whose scratch is at p. Scores are of one block at a time.
 */
static struct block block_of(const struct k_attention *a, int64_t queries,
                             float *p, int64_t g)
{
    struct block b = {.s = p};
    int64_t d = room_of(a);

    b.pair = b.s + KEYS * MOST_QUERIES;
    b.q = b.pair + KEYS / 2 * MOST_QUERIES + g * (2 * d + 4) * queries;
    b.o = b.q + d * queries;
    b.most = b.o + d * queries;
    b.sum = b.most + queries;
    b.shrink = b.sum + queries;
    b.part = b.shrink + queries;
    return b;
}

size_t k_attention_scratch(const struct k_attention *a, int threads)
{
    int64_t c = a->heads * a->d, size = threads * task_size(a);
    int64_t nk = a->k.batch ? a->n : 1, nv = a->v.batch ? a->n : 1;

    switch (engine_for(a)->form) {
    case PLAIN:
        size += a->qt == MP_F32 ? 0 : a->n * a->t * c;
        size += a->kvt == MP_F32 ? 0 : (nk + nv) * a->s * c;
        break;
    case PAIRS:
        size += nv * k_ceil_div(a->s, 2) * c + k_ceil_div(c, 2);
        break;
    case SQUARES:
        size += squares_size(a, a->k.batch, 16);
        size += squares_size(a, a->v.batch, 32);
        break;
    }
    return (size_t)size * sizeof(float);
}

struct job {
    const struct k_attention *a;
    const struct engine *e;
    struct operand q, k, v;
    struct k_out y;
    int64_t task; /* queries of one */
};

static void begin(const struct block *b, const struct job *j, const char *q,
                  int64_t rows)
{
    int64_t d = j->a->d, n = j->e->queries;

    j->e->load(b->q, q, j->q.step.row, rows, j->e->form == PLAIN ? d : d / 2);
    memset(b->o, 0, (size_t)(d * n) * sizeof *b->o);
    for (int64_t i = 0; i < n; i++) {
        b->most[i] = -FLT_MAX;
        b->sum[i] = 0;
    }
}

/* Keys s.. for n blocks. All but the first find k and v in the caches: with the
 * first the values are fetched, with the last the keys that come next. */
static void pass(const struct job *j, struct block *b, int64_t n, const char *k,
                 const char *v, int64_t s)
{
    const struct k_attention *a = j->a;
    const struct engine *e = j->e;
    int64_t unit = e->form == PLAIN ? 1 : 2, keys = k_min(KEYS, a->s - s);
    int64_t k_row = j->k.step.row, v_row = j->v.step.row;
    float scale = a->scale * 0x1.715476p0f; /* log2 e */
    const struct ahead values = {v + s / unit * v_row, v_row, a->d * 4,
                                 k_ceil_div(keys, unit), 0};
    const struct ahead next = {k + (s + KEYS) * k_row, k_row, a->d * 4 / unit,
                               k_min(KEYS, a->s - s - keys), 0};

    for (int64_t g = 0; g < n; g++) {
        b[g].ahead = g == 0 ? values : (struct ahead){0};
        e->weigh(&b[g], k + s * k_row, k_row, keys, a->d, scale);
        b[g].ahead = g == n - 1 ? next : (struct ahead){0};
        e->mix(&b[g], v + s / unit * v_row, v_row, keys, a->d);
    }
}

/* Queries first.. of head h of picture i. */
static void attend(const struct job *j, float *scratch, int64_t i, int64_t h,
                   int64_t first)
{
    const struct k_attention *a = j->a;
    const char *q = j->q.p + i * j->q.step.batch + h * j->q.head;
    const char *k = j->k.p + i * j->k.step.batch + h * j->k.head;
    const char *v = j->v.p + i * j->v.step.batch + h * j->v.head;
    int64_t each = j->e->queries, end = k_min(first + j->task, a->t);
    int64_t n = k_ceil_div(end - first, each);
    struct block b[TASK / SLIM_ROW];

    for (int64_t g = 0; g < n; g++) {
        int64_t at = first + g * each;

        b[g] = block_of(a, each, scratch, g);
        begin(&b[g], j, q + at * j->q.step.row, k_min(each, end - at));
    }
    for (int64_t s = 0; s < a->s; s += KEYS)
        pass(j, b, n, k, v, s);
    for (int64_t g = 0; g < n; g++) {
        int64_t at = first + g * each;

        j->e->store(&b[g], j->y, i * a->y.batch + at * a->y.row + h * a->d,
                    a->y.row, k_min(each, end - at), a->d);
    }
}

/* Queries of a task: fewer if there would not be some for every thread. */
static int64_t task_of(const struct k_attention *a, const struct engine *e)
{
    int64_t task = TASK, want = 4 * omp_get_max_threads();

    while (task > e->queries && a->n * a->heads * k_ceil_div(a->t, task) < want)
        task /= 2;
    return task;
}

void k_attention(const struct k_attention *a, void *y, const void *q,
                 const void *k, const void *v, void *scratch)
{
    struct job j = {.a = a, .e = engine_for(a), .y = {y, a->yt}};
    int64_t size = task_size(a), c = a->heads * a->d, tasks;
    float *rest = scratch;

    switch (j.e->form) {
    case PLAIN:
        j.q = as_f32(a, q, a->qt, a->q, a->t, &rest);
        j.k = as_f32(a, k, a->kvt, a->k, a->s, &rest);
        j.v = as_f32(a, v, a->kvt, a->v, a->s, &rest);
        break;
    case PAIRS:
        rest += (a->v.batch ? a->n : 1) * k_ceil_div(a->s, 2) * c;
        j.q = direct(q, a->qt, a->q, a->d);
        j.k = direct(k, a->kvt, a->k, a->d);
        j.v = pairs(a, v, scratch, (uint16_t *)rest);
        rest += k_ceil_div(c, 2);
        break;
    case SQUARES:
        j.q = direct(q, a->qt, a->q, a->d);
        j.k = squares(a, k, a->k, 16, j.e->copy, &rest);
        j.v = squares(a, v, a->v, 32, j.e->turn, &rest);
        break;
    }
    j.task = task_of(a, j.e);
    tasks = k_ceil_div(a->t, j.task); /* of a head */
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < a->n * a->heads * tasks; i++)
        attend(&j, rest + omp_get_thread_num() * size, i / tasks / a->heads,
               i / tasks % a->heads, i % tasks * j.task);
}
