/* SPDX-License-Identifier: MIT */
/* tensor.c - see tensor.h. */
#include <math.h>
#include <string.h>
#include "tensor.h"

static int parse_shape(struct mp_given *t, const json_t *shape,
                       struct mp_error *err)
{
    const json_t *one;
    size_t i;

    if (!json_is_array(shape) || json_array_size(shape) > MP_GIVEN_RANK)
        return mp_fail(err, MP_EINVAL,
                       "input %s: shape must be a list of up to %d numbers",
                       t->name, MP_GIVEN_RANK);
    t->count = 1;
    json_array_foreach(shape, i, one)
    {
        json_int_t d = json_integer_value(one);

        if (!json_is_integer(one) || d < 0 ||
            __builtin_mul_overflow(t->count, d, &t->count))
            return mp_fail(err, MP_EINVAL,
                           "input %s: a shape of whole numbers from 0, whose "
                           "product fits 63 bits",
                           t->name);
        t->dim[t->ndim++] = d;
    }
    return 0;
}

/* In "data", or next in the binary part. */
static int parse_place(struct mp_given *t, const json_t *o, const uint8_t *body,
                       size_t *at, size_t n, struct mp_error *err)
{
    const json_t *p = json_object_get(o, "parameters");
    const json_t *size = json_object_get(p, "binary_data_size");
    json_int_t bytes = json_integer_value(size);

    if (json_object_get(p, "shared_memory_region"))
        return mp_fail(err, MP_ENOTSUP,
                       "input %s: there is no shared memory here: send its "
                       "data",
                       t->name);
    t->data = json_object_get(o, "data");
    if (!size == !t->data)
        return mp_fail(err, MP_EINVAL,
                       "input %s: either data or the parameter "
                       "binary_data_size",
                       t->name);
    if (!size)
        return 0;
    if (!json_is_integer(size) || bytes < 0 || (uint64_t)bytes > n - *at)
        return mp_fail(err, MP_EINVAL,
                       "input %s: binary_data_size does not lie in the body",
                       t->name);
    t->at = *at;
    t->bytes = body + *at;
    t->nbytes = (size_t)bytes;
    *at += t->nbytes;
    return 0;
}

int mp_given_parse(struct mp_given *t, const json_t *input, const void *body,
                   size_t *at, size_t n, struct mp_error *err)
{
    int rc;

    *t = (struct mp_given){
        .name = json_string_value(json_object_get(input, "name")),
        .type = json_string_value(json_object_get(input, "datatype"))};
    if (!t->name || !t->type)
        return mp_fail(err, MP_EINVAL,
                       "inputs: each has a name, a datatype and a shape");
    if (strlen(t->name) > 60)
        return mp_fail(err, MP_EINVAL, "input %.60s: there is none", t->name);
    rc = parse_shape(t, json_object_get(input, "shape"), err);
    return rc ? rc : parse_place(t, input, body, at, n, err);
}

/* ---- numbers ---- */

struct walk {
    int64_t done, most;
    int (*take)(void *to, int64_t i, const json_t *v);
    void *to;
};

/* Of nested or flat lists, `most` of them. */
static int walk(struct walk *w, const json_t *data, int depth)
{
    const json_t *one;
    size_t i;

    if (!json_is_array(data))
        return w->done < w->most ? w->take(w->to, w->done++, data) : -1;
    if (depth > MP_GIVEN_RANK)
        return -1;
    json_array_foreach(data, i, one) if (walk(w, one, depth + 1)) return -1;
    return 0;
}

/* All of them, and no more. */
static int take_all(const struct mp_given *t,
                    int (*take)(void *to, int64_t i, const json_t *v), void *to)
{
    struct walk w = {.most = t->count, .take = take, .to = to};

    return walk(&w, t->data, 0) || w.done != t->count;
}

static int take_byte(void *to, int64_t i, const json_t *v)
{
    json_int_t x = json_integer_value(v);

    if (!json_is_integer(v) || x < 0 || x > 255)
        return -1;
    ((uint8_t *)to)[i] = (uint8_t)x;
    return 0;
}

int mp_given_bytes(uint8_t *to, const struct mp_given *t, struct mp_error *err)
{
    if (take_all(t, take_byte, to))
        return mp_fail(err, MP_EINVAL,
                       "input %s: data must be %lld whole numbers 0..255",
                       t->name, (long long)t->count);
    return 0;
}

static int take_double(void *to, int64_t i, const json_t *v)
{
    if (!json_is_number(v))
        return -1;
    ((double *)to)[i] = json_number_value(v);
    return 0;
}

/* Little endian, as the protocol and this machine have it. */
static int unpack(double *to, const struct mp_given *t)
{
    size_t n = (size_t)t->count;
    int is_wide = !strcmp(t->type, "FP64");
    size_t size = is_wide ? sizeof(double) : sizeof(float);

    if (t->nbytes / size != n || t->nbytes % size)
        return -1;
    if (is_wide) {
        memcpy(to, t->bytes, t->nbytes);
        return 0;
    }
    for (size_t i = 0; i < n; i++) {
        float x;

        memcpy(&x, t->bytes + i * size, size);
        to[i] = (double)x;
    }
    return 0;
}

int mp_given_doubles(double *to, const struct mp_given *t, struct mp_error *err)
{
    int bad = t->data ? take_all(t, take_double, to) : unpack(to, t);

    for (int64_t i = 0; i < t->count && !bad; i++)
        bad = !isfinite(to[i]);
    return bad ? mp_fail(err, MP_EINVAL,
                         "input %s: %lld finite numbers are needed", t->name,
                         (long long)t->count)
               : 0;
}
