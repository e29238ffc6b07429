/* SPDX-License-Identifier: MIT */
/*
 * attention.h - what the files of attention share: blocks of queries, and what
 * an instruction set does to them. See attention.c.
 */
#ifndef CPU_ATTENTION_H
#define CPU_ATTENTION_H

#include "cpu/simd.h"

#define KEYS         64  /* keys at a time */
#define MOST_QUERIES 64  /* a block of queries, at most */
#define TASK         128 /* queries of a task, at most */

/* Rows that are needed next: fetched while the tiles before are computed, as
 * rows far apart are beyond what CPUs foresee. */
struct ahead {
    const char *p;
    int64_t step, bytes, rows, next; /* bytes of a row; rows fetched so far */
};

/* A block of queries. Rows of engine.queries numbers. */
struct block {
    float *q;      /* components (or pairs of them) x queries */
    float *s;      /* keys x queries: scores, weights */
    float *pair;   /* keys / 2 x queries: pairs of bf16 weights */
    float *o;      /* d x queries: the result so far */
    float *most;   /* running maximum of the scores, times log2 e, or near it */
    float *sum;    /* of the weights */
    float *shrink; /* what the last maximum did to the result so far, or */
    float *part;   /* of the sum, of the keys at hand */
    struct ahead ahead;
};

K_INLINE void fetch(struct ahead *a, int64_t done, int64_t of)
{
    int64_t end = a->rows * done / of;

    for (; a->next < k_min(end, a->rows); a->next++)
        for (int64_t i = 0; i < a->bytes; i += 64)
            __builtin_prefetch(a->p + a->next * a->step + i);
}

/* How an engine wants k and v. */
enum form {
    PLAIN,  /* f32 */
    PAIRS,  /* bf16: units of x and b are pairs */
    SQUARES /* of SQUARE: those of 16 keys, of k; of 32 keys, of v turned */
};
#define SQUARE     512 /* 16 rows of 32 numbers of bf16 */
#define SQUARE_ROW 64  /* bytes */

/* From `rows` keys, of n components, to a square; zeros where it has more. */
typedef void fill_square(uint16_t *to, const uint16_t *from, int64_t row,
                         int64_t rows, int64_t n);

/* The two products and softmax for one instruction set. */
struct engine {
    int64_t queries;
    enum form form;
    /* 32-bit units of rows of q, transposed, for SQUARES with zeros up to a
     * multiple of 16 of them; missing queries are anything */
    void (*load)(float *to, const void *from, int64_t row_bytes, int64_t rows,
                 int64_t units);
    /* from keys to weights; row: bytes, here and below */
    void (*weigh)(struct block *b, const void *k, int64_t row, int64_t keys,
                  int64_t d, float scale);
    void (*mix)(struct block *b, const void *v, int64_t row, int64_t keys,
                int64_t d);
    /* rows x d of the result, of type t */
    void (*store)(const struct block *b, struct k_out y, int64_t at,
                  int64_t row, int64_t rows, int64_t d);
    fill_square *copy, *turn; /* of k and v, for SQUARES */
};

/* A tile of the product has `rows` rows, a number known when compiling. */
#define TILE_CASE(n, call)                                                     \
    case n: {                                                                  \
        enum { rows = n };                                                     \
        call;                                                                  \
    } break

/* Where a tile's factors lie: b[row * row_step + i * i_step]. */
struct factor {
    const void *b;
    int64_t row_step, i_step; /* bytes */
    int64_t n;                /* values of i */
    const float *x;
};

/* Tiles of all n rows, the first of them row i; base: where b begins. */
#define TILE_ROWS 6
#define TILES(n, call)                                                         \
    for (int64_t i = 0; i < (n); i += TILE_ROWS) {                             \
        f.b = base + i * f.row_step;                                           \
        fetch(&b->ahead, i + TILE_ROWS, n);                                    \
        switch (k_min(TILE_ROWS, (n)-i)) {                                     \
            TILE_CASE(1, call);                                                \
            TILE_CASE(2, call);                                                \
            TILE_CASE(3, call);                                                \
            TILE_CASE(4, call);                                                \
            TILE_CASE(5, call);                                                \
            TILE_CASE(6, call);                                                \
        }                                                                      \
    }

/* Arrays of vectors live in registers only when all indices are constants. */
#define UNROLL _Pragma("GCC unroll 16")

/* The best that this CPU has of those with vectors of 512 bits, or NULL. */
const struct engine *k_wide_engine(const struct k_attention *a);

#endif
