/* SPDX-License-Identifier: MIT */
/*
 * golden.h - expected numbers of tests: a reader of safetensors and JSON
 * files, and measures of distance.
 *
 * Small files lie in tests/golden and are always there; the complete sets may
 * lie in a folder named by the environment variable MPIPE_SHARED, and tests
 * that want them are skipped when it is not set.
 *
 * Nothing here calls into libmpipe, so a fault there cannot hide itself.
 */
#ifndef TESTS_GOLDEN_H
#define TESTS_GOLDEN_H

#include <jansson.h>

#include "mpipe/base.h"

#define GOLDEN_RANK 8

struct golden_tensor {
    const char *name;
    enum mp_dtype dtype;
    int ndim;
    int64_t dim[GOLDEN_RANK];
    size_t count; /* elements */
    const void *data;
};

struct golden;

/* NULL, after a line on stderr, if the file cannot be read. Tensors and their
 * data are borrowed until golden_free. */
struct golden *golden_open(const char *path);
void golden_free(struct golden *g);

/* NULL if there is none of that name (nothing is printed). */
const struct golden_tensor *golden_get(const struct golden *g,
                                       const char *name);
/* How many times slower this machine is than the one that bounds of seconds of
 * the processor were written for; 1 at least. */
double slowness(void);

/* In no particular order; NULL after the last. */
const struct golden_tensor *golden_at(const struct golden *g, size_t i);
/* A string of __metadata__, or NULL. */
const char *golden_meta(const struct golden *g, const char *key);

/* NULL, after a line on stderr, if the file cannot be read; json_decref. */
json_t *golden_json(const char *path);

/* Paths, built as by printf: "$srcdir/tests/golden/NAME", and below
 * $MPIPE_SHARED (NULL if that is not set). The text is borrowed until the
 * eighth next call of either. */
const char *golden_path(const char *fmt, ...)
    __attribute__((format(printf, 1, 2)));
const char *shared_path(const char *fmt, ...)
    __attribute__((format(printf, 1, 2)));

/* Distance of n numbers from what they should be; type is that of want. A NaN
 * or infinity in one place only gives NaN or infinity, so that every
 * comparison "<= bound" fails; the same one in both is no difference. */
double golden_value(const void *data, enum mp_dtype type, size_t i);
double rel_l2(const float *got, const void *want, enum mp_dtype type,
              size_t n); /* |got - want| / |want|; |got - want| if want is 0 */
double max_abs(const float *got, const void *want, enum mp_dtype type,
               size_t n); /* largest |got - want| */
/* |got - want| <= abs + rel * |want| for all; else the first that is not is
 * printed to stderr with its index, and 0 returned. */
int near_enough(const float *got, const void *want, enum mp_dtype type,
                size_t n, double abs, double rel);

#endif
