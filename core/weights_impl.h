/* SPDX-License-Identifier: MIT */
/*
 * weights_impl.h - shared by the readers of checkpoints (weights*.c).
 *
 * A reader gets the mapped file in an mp_weights and adds tensors and notes to
 * it; mp_weights_open does the rest. Everything that a reader keeps of the file
 * points into the mapping.
 */
#ifndef CORE_WEIGHTS_IMPL_H
#define CORE_WEIGHTS_IMPL_H

#include "weights.h"

struct mp_weights {
    char *path;
    const char *format;
    struct mp_mapping *mapping; /* NULL for a folder */
    const uint8_t *file;        /* where it begins */
    size_t size;
    struct mp_weights *part[2]; /* a folder's files, borrowed from by info */
    struct mp_weight_info *info;
    size_t count, cap;
    const struct mp_weight_info **sorted; /* by name */
    struct {
        char *key, *value;
    } * note;
    size_t notes;
};

/* One file of any format, opened without looking at folders. */
int mp_weights_open_file(struct mp_weights **out, const char *path,
                         struct mp_error *err);

/* Add a tensor; i->name is ignored, `name` of n bytes is copied without one
 * leading "module.". */
int mp_weights_add(struct mp_weights *w, const struct mp_weight_info *i,
                   const void *name, size_t n, struct mp_error *err);

/* Add a note; notes beyond a fixed number are dropped. */
int mp_weights_note(struct mp_weights *w, const char *key, const void *value,
                    size_t n, struct mp_error *err);

/* From dim and stride: count and dense. Returns the number of elements from
 * the first to behind the last one (0 if empty), or -1 if a size is negative
 * or does not fit. */
int64_t mp_weights_measure(struct mp_weight_info *i);
/* Row-major strides for dim; -1 if the size does not fit. */
int mp_weights_row_major(struct mp_weight_info *i);

int mp_weights_read_safetensors(struct mp_weights *w, struct mp_error *err);
int mp_weights_read_zip(struct mp_weights *w, struct mp_error *err);
int mp_weights_read_legacy(struct mp_weights *w, struct mp_error *err);
int mp_weights_read_diffusers(struct mp_weights *w, struct mp_error *err);
/* Is this the start of a legacy PyTorch file? */
int mp_weights_is_legacy(const uint8_t *p, size_t n);

/* n <= 8 bytes, little endian. */
static inline uint64_t mp_le(const uint8_t *p, int n)
{
    uint64_t v = 0;

    while (n-- > 0)
        v = v << 8 | p[n];
    return v;
}

/*
 * Values of a pickle. Nothing is looked up or called: a class is its name, a
 * call of an unknown class is an object that remembers only that name.
 */
enum mp_val_kind {
    VAL_NONE,
    VAL_BOOL,    /* i */
    VAL_INT,     /* i */
    VAL_BIG,     /* s: n bytes, little endian, two's complement */
    VAL_FLOAT,   /* f */
    VAL_STR,     /* s: n bytes of UTF-8, in the file */
    VAL_BYTES,   /* s */
    VAL_TUPLE,   /* item[n] */
    VAL_LIST,    /* item[n]; also sets */
    VAL_DICT,    /* item[n]: key, value, key, ... */
    VAL_GLOBAL,  /* item: module, name */
    VAL_STORAGE, /* item: "storage", class, key, place, numel, ... */
    VAL_TENSOR,  /* item: storage, offset, size, stride, ... */
    VAL_OBJECT   /* item: what was called */
};

struct mp_val {
    enum mp_val_kind kind;
    uint32_t seen; /* 0; for those who walk values, which may be cyclic */
    size_t n;
    union {
        int64_t i;
        double f;
        const uint8_t *s;
        struct mp_val **item;
    } u;
};

struct mp_pickle;

struct mp_pickle *mp_pickle_new(void);
void mp_pickle_free(struct mp_pickle *m); /* and all its values */
/* Read one pickle at s; *used: its length. Values live as long as m and s. */
int mp_pickle_load(struct mp_pickle *m, struct mp_val **out, const uint8_t *s,
                   size_t n, size_t *used, struct mp_error *err);
/* All VAL_STORAGE so far, in order. */
struct mp_val **mp_pickle_storages(struct mp_pickle *m, size_t *n);
/* Is v a string (or, for VAL_GLOBAL, the class of that name)? */
int mp_val_is(const struct mp_val *v, const char *text);

#endif
