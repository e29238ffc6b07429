/* SPDX-License-Identifier: MIT */
/*
 * weights_safetensors.c - reader and writer of safetensors files.
 *
 * A u64 length, that many bytes of JSON, and the data. The rules of the
 * format's own reader hold: no key twice, and the tensors tile the data
 * without hole or overlap, to the last byte.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "json.h"
#include "weights_impl.h"

#define HEADER_MAX 100000000u

static const struct {
    const char *name;
    enum mp_dtype dtype;
} dtypes[] = {{"F32", MP_F32}, {"F16", MP_F16},  {"BF16", MP_BF16},
              {"F64", MP_F64}, {"I8", MP_I8},    {"I16", MP_I16},
              {"I32", MP_I32}, {"I64", MP_I64},  {"U8", MP_U8},
              {"U16", MP_U16}, {"BOOL", MP_BOOL}};
#define NDTYPES (sizeof dtypes / sizeof *dtypes)

static int read_dtype(struct mp_weight_info *i, const json_t *v,
                      struct mp_error *err)
{
    const char *s = json_string_value(v);
    size_t k;

    if (!s)
        return mp_fail(err, MP_EFORMAT, "dtype is missing or not a string");
    for (k = 0; k < NDTYPES; k++)
        if (!strcmp(s, dtypes[k].name)) {
            i->dtype = dtypes[k].dtype;
            return 0;
        }
    return mp_fail(err, MP_ENOTSUP, "dtype %s is not supported", s);
}

static int read_shape(struct mp_weight_info *i, const json_t *v,
                      struct mp_error *err)
{
    size_t n = json_array_size(v), k;

    if (!json_is_array(v))
        return mp_fail(err, MP_EFORMAT, "shape is missing or not an array");
    if (n > MP_WEIGHT_RANK)
        return mp_fail(err, MP_ENOTSUP, "%zu dimensions, at most %d are read",
                       n, MP_WEIGHT_RANK);
    i->ndim = (int)n;
    for (k = 0; k < n; k++) {
        const json_t *d = json_array_get(v, k);

        if (!json_is_integer(d) || json_integer_value(d) < 0)
            return mp_fail(err, MP_EFORMAT,
                           "shape has something else than sizes");
        i->dim[k] = json_integer_value(d);
    }
    if (mp_weights_row_major(i) || mp_weights_measure(i) < 0)
        return mp_fail(err, MP_EFORMAT, "the shape's product overflows");
    return 0;
}

static int read_offsets(struct mp_weight_info *i, const json_t *v,
                        const uint8_t *data, size_t size, struct mp_error *err)
{
    const json_t *b = json_array_get(v, 0), *e = json_array_get(v, 1);
    json_int_t begin = json_integer_value(b), end = json_integer_value(e);
    size_t bytes = i->count * mp_dtype_size(i->dtype);

    if (json_array_size(v) != 2 || !json_is_integer(b) || !json_is_integer(e))
        return mp_fail(err, MP_EFORMAT, "data_offsets is not two integers");
    if (begin < 0 || end < begin || (uint64_t)end > size)
        return mp_fail(err, MP_EFORMAT,
                       "data_offsets %lld, %lld are outside the %zu bytes of "
                       "data: is the file complete?",
                       (long long)begin, (long long)end, size);
    if ((size_t)(end - begin) != bytes)
        return mp_fail(err, MP_EFORMAT,
                       "data_offsets hold %lld bytes, the shape needs %zu",
                       (long long)(end - begin), bytes);
    i->data = data + begin;
    return 0;
}

static int read_tensor(struct mp_weights *w, const char *name, const json_t *v,
                       const uint8_t *data, struct mp_error *err)
{
    struct mp_weight_info i = {.storage = w->count};
    size_t size = w->size - (size_t)(data - w->file);
    int rc;

    if (!json_is_object(v))
        rc = mp_fail(err, MP_EFORMAT, "not an object");
    else
        rc = read_dtype(&i, json_object_get(v, "dtype"), err);
    if (!rc)
        rc = read_shape(&i, json_object_get(v, "shape"), err);
    if (!rc)
        rc = read_offsets(&i, json_object_get(v, "data_offsets"), data, size,
                          err);
    if (rc)
        return mp_fail_in(err, "tensor %s", name), rc;
    return mp_weights_add(w, &i, name, strlen(name), err);
}

static int read_metadata(struct mp_weights *w, json_t *meta,
                         struct mp_error *err)
{
    const char *key;
    json_t *v;
    int rc = 0;

    if (!json_is_object(meta))
        return mp_fail(err, MP_EFORMAT, "__metadata__ is not an object");
    json_object_foreach(meta, key, v)
    {
        if (!json_is_string(v))
            return mp_fail(err, MP_EFORMAT, "__metadata__: %s is not a string",
                           key);
        rc = mp_weights_note(w, key, json_string_value(v),
                             json_string_length(v), err);
        if (rc)
            break;
    }
    return rc;
}

static size_t bytes_of(const struct mp_weight_info *i)
{
    return i->count * mp_dtype_size(i->dtype);
}

static int by_place(const void *a, const void *b)
{
    const struct mp_weight_info *x = *(const struct mp_weight_info *const *)a;
    const struct mp_weight_info *y = *(const struct mp_weight_info *const *)b;

    if (x->data != y->data)
        return (uintptr_t)x->data < (uintptr_t)y->data ? -1 : 1;
    return (bytes_of(x) > bytes_of(y)) - (bytes_of(x) < bytes_of(y));
}

/* The tensors tile the data. */
static int check_tiling(const struct mp_weights *w, const uint8_t *data,
                        struct mp_error *err)
{
    const struct mp_weight_info **by = malloc((w->count + 1) * sizeof *by);
    const uint8_t *at = data;
    size_t k;
    int rc = 0;

    if (!by)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    for (k = 0; k < w->count; k++)
        by[k] = &w->info[k];
    qsort(by, w->count, sizeof *by, by_place);
    for (k = 0; k < w->count && !rc; k++) {
        if (by[k]->data != at)
            rc = mp_fail(err, MP_EFORMAT, "tensor %s %s", by[k]->name,
                         (const uint8_t *)by[k]->data < at
                             ? "overlaps another one"
                             : "has a hole in front of it");
        else
            at += bytes_of(by[k]);
    }
    if (!rc && at != w->file + w->size)
        rc = mp_fail(err, MP_EFORMAT, "%zu bytes follow the last tensor",
                     (size_t)(w->file + w->size - at));
    free(by);
    return rc;
}

static int read_header(struct mp_weights *w, json_t *root, const uint8_t *data,
                       struct mp_error *err)
{
    const char *key;
    json_t *v;
    int rc = 0;

    json_object_foreach(root, key, v)
    {
        if (!strcmp(key, "__metadata__"))
            rc = read_metadata(w, v, err);
        else
            rc = read_tensor(w, key, v, data, err);
        if (rc)
            return rc;
    }
    return check_tiling(w, data, err);
}

int mp_weights_read_safetensors(struct mp_weights *w, struct mp_error *err)
{
    json_error_t why;
    json_t *root;
    uint64_t n;
    int rc;

    if (w->size < 8)
        return mp_fail(err, MP_EFORMAT,
                       "%zu bytes cannot be a safetensors "
                       "file",
                       w->size);
    n = mp_le(w->file, 8);
    if (n > HEADER_MAX)
        return mp_fail(err, MP_EFORMAT,
                       "a header of %llu bytes is over the "
                       "format's limit of %u",
                       (unsigned long long)n, HEADER_MAX);
    if (n > w->size - 8)
        return mp_fail(err, MP_EFORMAT,
                       "the header's %llu bytes are more than "
                       "the file has: is it complete?",
                       (unsigned long long)n);
    if (n < 2 || w->file[8] != '{')
        return mp_fail(err, MP_EFORMAT, "the header does not start with '{'");
    rc = mp_json_parse(&root, w->file + 8, (size_t)n, &why, err);
    if (rc == MP_EFORMAT)
        mp_fail_in(err, "header, byte %d", why.position);
    if (rc)
        return rc;
    rc = read_header(w, root, w->file + 8 + n, err);
    json_decref(root);
    return rc;
}

/* ---- writing ---- */

struct writer {
    const struct mp_weight_out *t;
    size_t n;
    uint64_t *bytes; /* of each tensor */
    size_t most;     /* the largest of them */
};

static const char *dtype_name(enum mp_dtype t)
{
    size_t k;

    for (k = 0; k < NDTYPES; k++)
        if (dtypes[k].dtype == t)
            return dtypes[k].name;
    return NULL;
}

static int measure(struct writer *wr, struct mp_error *err)
{
    size_t k;

    for (k = 0; k < wr->n; k++) {
        const struct mp_weight_out *t = &wr->t[k];
        struct mp_weight_info i = {.dtype = t->dtype, .ndim = t->ndim};

        if (!dtype_name(t->dtype) || t->ndim < 0 || t->ndim > MP_WEIGHT_RANK)
            return mp_fail(err, MP_EINVAL, "tensor %s: no such type or rank",
                           t->name);
        memcpy(i.dim, t->dim, sizeof i.dim);
        if (mp_weights_row_major(&i) || mp_weights_measure(&i) < 0)
            return mp_fail(err, MP_EINVAL, "tensor %s: no such shape", t->name);
        wr->bytes[k] = bytes_of(&i);
        if (wr->most < wr->bytes[k])
            wr->most = wr->bytes[k];
    }
    return 0;
}

/* Call `visit` in the order of the data: wide element types first keep every
 * tensor aligned. */
static int in_order(const struct writer *wr,
                    int (*visit)(void *arg, size_t k, struct mp_error *err),
                    void *arg, struct mp_error *err)
{
    size_t size, k;
    int rc = 0;

    for (size = 8; size && !rc; size /= 2)
        for (k = 0; k < wr->n && !rc; k++)
            if (mp_dtype_size(wr->t[k].dtype) == size)
                rc = visit(arg, k, err);
    return rc;
}

struct placing {
    const struct writer *wr;
    uint64_t *begin, at;
};

static int place(void *arg, size_t k, struct mp_error *err)
{
    struct placing *p = arg;

    p->begin[k] = p->at;
    if (__builtin_add_overflow(p->at, p->wr->bytes[k], &p->at) ||
        p->at > INT64_MAX)
        return mp_fail(err, MP_EINVAL, "the tensors are too large together");
    return 0;
}

static json_t *describe(const struct mp_weight_out *t, uint64_t begin,
                        uint64_t bytes)
{
    json_t *shape = json_array();
    int k;

    for (k = 0; k < t->ndim; k++)
        json_array_append_new(shape, json_integer(t->dim[k]));
    return json_pack("{s:s, s:o, s:[I,I]}", "dtype", dtype_name(t->dtype),
                     "shape", shape, "data_offsets", (json_int_t)begin,
                     (json_int_t)(begin + bytes));
}

/* The header, padded to 8 bytes with blanks; *n is its length. */
static int header(char **out, size_t *n, const struct writer *wr,
                  const uint64_t *begin, struct mp_error *err)
{
    json_t *root = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    size_t k;
    int rc = 0;

    for (k = 0; k < wr->n && !rc; k++) {
        const struct mp_weight_out *t = &wr->t[k];

        if (json_object_get(root, t->name))
            rc = mp_fail(err, MP_EINVAL, "two tensors are named %s", t->name);
        else if (json_object_set_new(root, t->name,
                                     describe(t, begin[k], wr->bytes[k])))
            rc = mp_fail(err, MP_EINVAL,
                         "tensor %s: the name is not UTF-8, or no memory",
                         t->name);
    }
    *n = (json_dumpb(root, NULL, 0, JSON_COMPACT) + 7) / 8 * 8;
    if (!rc && !(*out = malloc(*n)))
        rc = mp_fail(err, MP_ENOMEM, "out of memory");
    if (!rc) {
        memset(*out, ' ', *n);
        json_dumpb(root, *out, *n, JSON_COMPACT);
    }
    json_decref(root);
    return rc;
}

struct filling {
    const struct writer *wr;
    FILE *f;
    void *buf, *user;
};

static int fill(void *arg, size_t k, struct mp_error *err)
{
    struct filling *f = arg;
    const struct mp_weight_out *t = &f->wr->t[k];
    int rc;

    if (!f->wr->bytes[k])
        return 0;
    rc = t->fill(f->user, k, f->buf, err);
    if (rc)
        return rc;
    if (fwrite(f->buf, 1, f->wr->bytes[k], f->f) != f->wr->bytes[k])
        return mp_fail(err, MP_EIO, "cannot write: %s", strerror(errno));
    return 0;
}

static int write_stream(FILE *f, const struct writer *wr, const char *head,
                        size_t n, void *user, struct mp_error *err)
{
    struct filling arg = {wr, f, malloc(wr->most + 1), user};
    uint8_t length[8];
    int rc = 0, k;

    if (!arg.buf)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    for (k = 0; k < 8; k++)
        length[k] = (uint8_t)((uint64_t)n >> 8 * k);
    if (fwrite(length, 8, 1, f) != 1 || fwrite(head, n, 1, f) != 1)
        rc = mp_fail(err, MP_EIO, "cannot write: %s", strerror(errno));
    if (!rc)
        rc = in_order(wr, fill, &arg, err);
    if (!rc && (fflush(f) || fsync(fileno(f))))
        rc = mp_fail(err, MP_EIO, "cannot write: %s", strerror(errno));
    free(arg.buf);
    return rc;
}

static int write_renamed(const char *path, const struct writer *wr,
                         const char *head, size_t n, void *user,
                         struct mp_error *err)
{
    size_t cap = strlen(path) + 32;
    char *temp = malloc(cap);
    FILE *f = NULL;
    int rc;

    if (!temp)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    snprintf(temp, cap, "%s.%ld.part", path, (long)getpid());
    f = fopen(temp, "wbxe");
    if (!f) {
        rc =
            mp_fail(err, MP_EIO, "cannot create %s: %s", temp, strerror(errno));
        free(temp);
        return rc;
    }
    rc = write_stream(f, wr, head, n, user, err);
    if (fclose(f) && !rc)
        rc = mp_fail(err, MP_EIO, "cannot write: %s", strerror(errno));
    if (!rc && rename(temp, path))
        rc = mp_fail(err, MP_EIO, "cannot rename: %s", strerror(errno));
    if (rc)
        unlink(temp);
    free(temp);
    return rc;
}

int mp_weights_write(const char *path, const struct mp_weight_out *t, size_t n,
                     void *user, struct mp_error *err)
{
    struct writer wr = {t, n, calloc(2 * n + 1, sizeof(uint64_t)), 0};
    struct placing p = {&wr, wr.bytes + n, 0};
    char *head = NULL;
    size_t length = 0;
    int rc;

    if (!wr.bytes)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    rc = measure(&wr, err);
    if (!rc)
        rc = in_order(&wr, place, &p, err);
    if (!rc)
        rc = header(&head, &length, &wr, p.begin, err);
    if (!rc)
        rc = write_renamed(path, &wr, head, length, user, err);
    free(head);
    free(wr.bytes);
    return rc ? mp_fail_in(err, "%s", path), rc : 0;
}
