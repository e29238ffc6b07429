/* SPDX-License-Identifier: MIT */
/* make_weights.c - see make_weights.h. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "make_weights.h"
#include "weights.h"

struct list {
    struct mp_weight_out *out;
    json_t **entry; /* per tensor */
};

static uint64_t fnv(const char *s)
{
    uint64_t h = 0xcbf29ce484222325u;

    for (; *s; s++)
        h = (h ^ (unsigned char)*s) * 0x100000001b3u;
    return h;
}

static float unit(uint64_t z)
{
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return (float)(z >> 40) * 0x1p-23f - 1;
}

static size_t count_of(const struct mp_weight_out *t)
{
    size_t n = 1;

    for (int i = 0; i < t->ndim; i++)
        n *= (size_t)t->dim[i];
    return n;
}

static int fill(void *user, size_t at, void *buf, struct mp_error *err)
{
    const struct list *l = user;
    json_t *e = l->entry[at], *alias = json_object_get(e, "alias_of");
    uint64_t h = fnv(alias ? json_string_value(alias) : l->out[at].name);
    size_t n = count_of(&l->out[at]);
    float scale, offset, *p = buf;

    for (size_t i = 0; alias && !json_object_get(e, "scale") && i < at;
         i++) /* the rule stands with the first */
        if (!strcmp(l->out[i].name, json_string_value(alias)))
            e = l->entry[i];
    if (l->out[at].dtype != MP_F32) {
        memset(buf, 0, n * mp_dtype_size(l->out[at].dtype));
        return 0;
    }
    if (!json_is_number(json_object_get(e, "scale")))
        return mp_fail(err, MP_EFORMAT, "%s has no scale", l->out[at].name);
    scale = (float)json_number_value(json_object_get(e, "scale"));
    offset = (float)json_number_value(json_object_get(e, "offset"));
    for (size_t i = 0; i < n; i++) {
        volatile float part = scale * unit(h + (i + 1) * 0x9e3779b97f4a7c15u);

        p[i] = part + offset; /* two roundings, never one fused */
    }
    return 0;
}

static int describe(struct mp_weight_out *t, json_t *e, struct mp_error *err)
{
    const char *key = json_string_value(json_object_get(e, "key"));
    const char *type = json_string_value(json_object_get(e, "dtype"));
    json_t *shape = json_object_get(e, "shape");

    if (!key || !json_is_array(shape) ||
        json_array_size(shape) > MP_WEIGHT_RANK)
        return mp_fail(err, MP_EFORMAT, "an entry lacks key or shape");
    t->name = key;
    t->dtype = !type || !strcmp(type, "F32") ? MP_F32
               : !strcmp(type, "I64")        ? MP_I64
                                             : MP_I32;
    t->ndim = (int)json_array_size(shape);
    for (int i = 0; i < t->ndim; i++)
        t->dim[i] = json_integer_value(json_array_get(shape, (size_t)i));
    t->fill = fill;
    return 0;
}

static int is_left_out(const char *key, json_t *prefixes)
{
    json_t *p;
    size_t i;

    json_array_foreach(prefixes, i, p)
    {
        const char *prefix = json_string_value(p);

        if (key && prefix && !strncmp(key, prefix, strlen(prefix)))
            return 1;
    }
    return 0;
}

/* The file, with the tensors of the list that it is based on put in front. */
static json_t *load(const char *path, struct mp_error *err)
{
    json_error_t why;
    json_t *root = json_load_file(path, 0, &why), *base, *list, *e;
    const char *name = json_string_value(json_object_get(root, "base"));
    const char *slash = strrchr(path, '/');
    char other[4096];
    size_t i;

    if (!root)
        mp_fail(err, MP_EFORMAT, "%s: %s", path, why.text);
    if (!name)
        return root;
    snprintf(other, sizeof other, "%.*s%s", slash ? (int)(slash + 1 - path) : 0,
             path, name);
    base = load(other, err);
    list = json_array();
    json_array_foreach(json_object_get(base, "tensors"), i, e)
    {
        if (!is_left_out(json_string_value(json_object_get(e, "key")),
                         json_object_get(root, "without")))
            json_array_append(list, e);
    }
    json_array_extend(list, json_object_get(root, "tensors"));
    json_object_set_new(root, "tensors", list);
    if (!base) {
        json_decref(root);
        root = NULL;
    }
    json_decref(base);
    return root;
}

int make_weights(const char *keys, const char *out, struct mp_error *err)
{
    json_t *root = load(keys, err);
    json_t *tensors = json_object_get(root, "tensors");
    size_t n = json_array_size(tensors);
    struct list l = {calloc(n + 1, sizeof *l.out),
                     calloc(n + 1, sizeof *l.entry)};
    int rc = 0;

    if (!root)
        rc = MP_EFORMAT;
    else if (!n)
        rc = mp_fail(err, MP_EFORMAT, "%s: no tensors", keys);
    else if (!l.out || !l.entry)
        rc = mp_fail(err, MP_ENOMEM, "out of memory");
    for (size_t i = 0; i < n && !rc; i++) {
        l.entry[i] = json_array_get(tensors, i);
        rc = describe(&l.out[i], l.entry[i], err);
    }
    if (!rc)
        rc = mp_weights_write(out, l.out, n, &l, err);
    free(l.out);
    free(l.entry);
    json_decref(root);
    return rc;
}
