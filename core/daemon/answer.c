/* SPDX-License-Identifier: MIT */
/* answer.c - what a worker answered, as a body. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "answer.h"
#include "json.h"
#include "text.h"

static int no_memory(struct mp_error *err)
{
    return mp_fail(err, MP_ENOMEM, "out of memory");
}

int mp_body_json(struct mp_body *out, json_t *json, struct mp_error *err)
{
    char *text =
        json ? mp_json_dump(json, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;

    json_decref(json);
    *out = (struct mp_body){.head = -1, .type = "application/json"};
    if (!text)
        return no_memory(err);
    out->bytes = text;
    out->n = strlen(text);
    return 0;
}

struct found {
    const char *kind, *suffix, *dtype;
    const json_t *dim;
    const uint8_t *at;
    size_t n;
};

static const json_t *results_of(const struct mp_part *part)
{
    return json_object_get(part->answer, "results");
}

/* The k-th of a picture. */
static int find_result(struct found *r, const struct mp_part *part, size_t k)
{
    const json_t *o = json_array_get(results_of(part), k);
    const json_t *offset = json_object_get(o, "offset");
    const json_t *bytes = json_object_get(o, "bytes");
    json_int_t at = json_integer_value(offset), n = json_integer_value(bytes);

    *r = (struct found){.kind = json_string_value(json_object_get(o, "kind")),
                        .suffix =
                            json_string_value(json_object_get(o, "suffix")),
                        .dtype = json_string_value(json_object_get(o, "dtype")),
                        .dim = json_object_get(o, "dim")};
    if (!r->kind || !r->suffix || !r->dtype || !r->dim ||
        !json_is_integer(offset) || !json_is_integer(bytes) || at < 0 ||
        n < 0 || (size_t)at > part->data.n ||
        (size_t)n > part->data.n - (size_t)at)
        return -1;
    r->at = part->data.at + at;
    r->n = (size_t)n;
    return 0;
}

static const struct {
    const char *dtype, *name;
    size_t size;
} types[] = {
    {"f32", "FP32", 4},  {"u8", "UINT8", 1},   {"u16", "UINT16", 2},
    {"i32", "INT32", 4}, {"none", "BYTES", 0},
};

static int type_of(const char *dtype)
{
    int i = 0;

    while (i < 4 && strcmp(types[i].dtype, dtype))
        i++;
    return i;
}

const char *mp_type_name(const char *dtype)
{
    return types[type_of(dtype)].name;
}

static void print_value(FILE *f, int type, const uint8_t *at)
{
    union {
        float f;
        uint16_t u;
        int32_t i;
    } v;

    memcpy(&v, at, types[type].size);
    if (type == 0 && !isfinite(v.f))
        fputs("null", f);
    else if (type == 0)
        fprintf(f, "%.9g", (double)v.f);
    else if (type == 3)
        fprintf(f, "%d", (int)v.i);
    else
        fprintf(f, "%u", type == 1 ? *at : v.u);
}

static int is_binary(const struct mp_ask *a, const char *kind)
{
    for (size_t i = 0; i < a->noutput; i++)
        if (!strcmp(a->output[i].name, kind))
            return a->output[i].binary;
    return a->binary;
}

/* An answer on its way. */
struct answer {
    FILE *f;
    const struct mp_ask *ask;
    const struct mp_part *part; /* of each picture */
    size_t npart;
};

static void print_numbers(FILE *f, const struct found *r, int type)
{
    size_t size = types[type].size;

    for (size_t i = 0; i + size <= r->n; i += size) {
        if (i)
            fputc(',', f);
        print_value(f, type, r->at + i);
    }
}

/* What is no text is null. Nonzero: out of memory. */
static int print_text(FILE *f, const struct found *r)
{
    unsigned before = mp_json_losses();
    json_t *text = json_stringn((const char *)r->at, r->n);

    if (text)
        json_dumpf(text, f, JSON_ENCODE_ANY);
    else
        fputs("null", f);
    json_decref(text);
    return mp_json_losses() != before;
}

/* The k-th result of all pictures, one after the other. */
static int print_data(const struct answer *a, size_t k)
{
    struct found r;
    int rc = 0;

    fputs(",\"data\":[", a->f);
    for (size_t i = 0; i < a->npart && !rc; i++) {
        int is_text;

        if (find_result(&r, &a->part[i], k))
            return -1;
        is_text = !types[type_of(r.dtype)].size;
        if (i && (is_text || r.n))
            fputc(',', a->f);
        if (is_text)
            rc = print_text(a->f, &r);
        else
            print_numbers(a->f, &r, type_of(r.dtype));
    }
    fputc(']', a->f);
    return rc;
}

static size_t binary_size(const struct answer *a, size_t k)
{
    struct found r;
    size_t n = 0;

    for (size_t i = 0; i < a->npart; i++)
        if (!find_result(&r, &a->part[i], k))
            n += r.n + (types[type_of(r.dtype)].size ? 0 : 4);
    return n;
}

/* The JSON of an output. */
static int print_output(const struct answer *a, size_t k)
{
    struct found r;
    const json_t *d;
    size_t i;
    int rc = find_result(&r, a->part, k);

    if (rc)
        return rc;
    fprintf(a->f, "{\"name\":\"%s\",\"datatype\":\"%s\",\"shape\":[%zu", r.kind,
            mp_type_name(r.dtype), a->npart);
    json_array_foreach(r.dim, i, d)
        fprintf(a->f, ",%lld", (long long)json_integer_value(d));
    fputc(']', a->f);
    if (is_binary(a->ask, r.kind))
        fprintf(a->f, ",\"parameters\":{\"binary_data_size\":%zu}",
                binary_size(a, k));
    else
        rc = print_data(a, k);
    fputc('}', a->f);
    return rc;
}

/* Its binary part; 0: it has none. */
static int put_output(const struct answer *a, size_t k)
{
    struct found r;

    if (find_result(&r, a->part, k) || !is_binary(a->ask, r.kind))
        return 0;
    for (size_t i = 0; i < a->npart && !find_result(&r, &a->part[i], k); i++) {
        uint8_t length[4] = {(uint8_t)r.n, (uint8_t)(r.n >> 8),
                             (uint8_t)(r.n >> 16), (uint8_t)(r.n >> 24)};

        if (!types[type_of(r.dtype)].size)
            fwrite(length, 1, 4, a->f);
        fwrite(r.at, 1, r.n, a->f);
    }
    return 1;
}

/* Nonzero: out of memory. */
static int print_answer(struct mp_text *text, struct mp_body *out,
                        const struct answer *a, const char *model)
{
    size_t n = json_array_size(results_of(a->part)), head;
    int binary = 0;

    fprintf(a->f, "{\"model_name\":\"%s\",\"model_version\":\"1\"", model);
    if (a->ask->id) {
        fputs(",\"id\":", a->f);
        if (json_dumpf(a->ask->id, a->f, JSON_ENCODE_ANY))
            return -1;
    }
    fputs(",\"outputs\":[", a->f);
    for (size_t k = 0; k < n; k++) {
        if (k)
            fputc(',', a->f);
        if (print_output(a, k))
            return -1;
    }
    fputs("]}", a->f);
    head = mp_text_length(text);
    for (size_t k = 0; k < n; k++)
        binary |= put_output(a, k);
    out->head = binary ? (int64_t)head : -1;
    out->type = binary ? "application/octet-stream" : "application/json";
    return 0;
}

/* ---- what cannot be one tensor ---- */

static int no_sense(struct mp_error *err)
{
    return mp_fail(err, MP_EIO, "the worker's answer makes no sense");
}

/* The k-th result of all pictures has one type and shape. */
static int check_alike(const struct answer *a, size_t k, struct mp_error *err)
{
    struct found first, r;

    if (find_result(&first, a->part, k))
        return no_sense(err);
    if (!types[type_of(first.dtype)].size && strcmp(first.suffix, "json") &&
        !is_binary(a->ask, first.kind))
        return mp_fail(err, MP_EINVAL,
                       "output %s: a file is no JSON: ask for it with "
                       "binary_data",
                       first.kind);
    for (size_t i = 1; i < a->npart; i++) {
        if (find_result(&r, &a->part[i], k) || strcmp(first.kind, r.kind))
            return no_sense(err);
        if (strcmp(first.dtype, r.dtype) || !json_equal(first.dim, r.dim))
            return mp_fail(
                err, MP_EINVAL,
                "output %s: that of picture %zu has another shape "
                "than that of picture 1: ask for them one by one, or "
                "with the parameter encoded",
                first.kind, i + 1);
    }
    return 0;
}

static int check_all(const struct answer *a, struct mp_error *err)
{
    size_t n = json_array_size(results_of(a->part));
    int rc = 0;

    for (size_t i = 1; i < a->npart; i++)
        if (json_array_size(results_of(&a->part[i])) != n)
            return no_sense(err);
    for (size_t k = 0; k < n && !rc; k++)
        rc = check_alike(a, k, err);
    return rc;
}

/* ---- plain ---- */

static const char *media_type(const char *suffix)
{
    if (!strcmp(suffix, "png"))
        return "image/png";
    return strcmp(suffix, "json") ? "application/octet-stream"
                                  : "application/json";
}

/* The first result of the suffix that is wanted, as it is. */
static int plain_answer(struct mp_body *out, const struct mp_ask *a,
                        const struct mp_part *part, struct mp_error *err)
{
    size_t n = json_array_size(results_of(part));
    struct found r;

    for (size_t k = 0; k < n; k++) {
        if (find_result(&r, part, k) ||
            (a->suffix && strcmp(a->suffix, r.suffix)))
            continue;
        *out = (struct mp_body){malloc(r.n + 1), r.n, -1, media_type(r.suffix)};
        if (!out->bytes)
            return no_memory(err);
        memcpy(out->bytes, r.at, r.n);
        return 0;
    }
    return mp_fail(err, MP_ENOTSUP,
                   "none of the results is of the type that is accepted; name "
                   "one with ?output=");
}

int mp_body_answer(struct mp_body *out, const struct mp_ask *ask,
                   const char *model, const struct mp_part *part, size_t npart,
                   struct mp_error *err)
{
    struct answer a = {.ask = ask, .part = part, .npart = npart};
    struct mp_text text;
    int rc;

    *out = (struct mp_body){.head = -1};
    if (ask->plain)
        return plain_answer(out, ask, part, err);
    rc = check_all(&a, err);
    if (rc)
        return rc;
    if (mp_text_open(&text))
        return no_memory(err);
    a.f = text.f;
    rc = print_answer(&text, out, &a, model);
    if (mp_text_close(&text))
        rc = -1;
    out->bytes = text.bytes;
    out->n = text.n;
    return rc ? no_memory(err) : 0;
}
