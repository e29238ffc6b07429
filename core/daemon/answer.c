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

static int find_result(struct found *r, const json_t *o,
                       const struct mp_blob *data)
{
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
        n < 0 || (size_t)at > data->n || (size_t)n > data->n - (size_t)at)
        return -1;
    r->at = data->at + at;
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

/* Nonzero: out of memory. */
static int print_data(FILE *f, const struct found *r, int type)
{
    unsigned before = mp_json_losses();
    json_t *text;

    fputs(",\"data\":[", f);
    if (!types[type].size) {
        text = json_stringn((const char *)r->at, r->n);
        if (!text)
            fputs("null", f);
        else
            json_dumpf(text, f, JSON_ENCODE_ANY);
        json_decref(text);
        if (mp_json_losses() != before)
            return -1;
    } else {
        for (size_t i = 0; i + types[type].size <= r->n;
             i += types[type].size) {
            if (i)
                fputc(',', f);
            print_value(f, type, r->at + i);
        }
    }
    fputc(']', f);
    return 0;
}

static int is_binary(const struct mp_ask *a, const char *kind)
{
    for (size_t i = 0; i < a->noutput; i++)
        if (!strcmp(a->output[i].name, kind))
            return a->output[i].binary;
    return a->binary;
}

/* One output's JSON. Nonzero: out of memory. */
static int print_output(FILE *f, const struct mp_ask *a, const struct found *r)
{
    int type = type_of(r->dtype);
    const json_t *d;
    size_t i;

    fprintf(f, "{\"name\":\"%s\",\"datatype\":\"%s\",\"shape\":[1", r->kind,
            types[type].name);
    json_array_foreach(r->dim, i, d)
        fprintf(f, ",%lld", (long long)json_integer_value(d));
    fputc(']', f);
    if (is_binary(a, r->kind))
        fprintf(f, ",\"parameters\":{\"binary_data_size\":%zu}",
                r->n + (types[type].size ? 0 : 4));
    else if (print_data(f, r, type))
        return -1;
    fputc('}', f);
    return 0;
}

/* The binary part of it. */
static int put_output(FILE *f, const struct mp_ask *a, const struct found *r)
{
    uint8_t length[4] = {(uint8_t)r->n, (uint8_t)(r->n >> 8),
                         (uint8_t)(r->n >> 16), (uint8_t)(r->n >> 24)};

    if (!is_binary(a, r->kind))
        return 0;
    if (!types[type_of(r->dtype)].size)
        fwrite(length, 1, 4, f);
    fwrite(r->at, 1, r->n, f);
    return 1;
}

static int print_answer(struct mp_text *text, struct mp_body *out,
                        const struct mp_ask *a, const char *model,
                        const json_t *list, const struct mp_blob *data)
{
    FILE *f = text->f;
    const json_t *one;
    struct found r;
    int binary = 0;
    size_t i, head;

    fprintf(f, "{\"model_name\":\"%s\",\"model_version\":\"1\"", model);
    if (a->id) {
        fputs(",\"id\":", f);
        if (json_dumpf(a->id, f, JSON_ENCODE_ANY))
            return MP_ENOMEM;
    }
    fputs(",\"outputs\":[", f);
    json_array_foreach(list, i, one)
    {
        if (find_result(&r, one, data))
            return MP_EIO;
        if (i)
            fputc(',', f);
        if (print_output(f, a, &r))
            return MP_ENOMEM;
    }
    fputs("]}", f);
    head = mp_text_length(text);
    json_array_foreach(list, i, one) if (!find_result(&r, one, data)) binary |=
        put_output(f, a, &r);
    out->head = binary ? (int64_t)head : -1;
    out->type = binary ? "application/octet-stream" : "application/json";
    return 0;
}

static const char *media_type(const char *suffix)
{
    if (!strcmp(suffix, "png"))
        return "image/png";
    return strcmp(suffix, "json") ? "application/octet-stream"
                                  : "application/json";
}

/* The first result of the suffix that is wanted, as it is. */
static int plain_answer(struct mp_body *out, const struct mp_ask *a,
                        const json_t *list, const struct mp_blob *data,
                        struct mp_error *err)
{
    const json_t *one;
    struct found r;
    size_t i;

    json_array_foreach(list, i, one)
    {
        if (find_result(&r, one, data) ||
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

int mp_body_answer(struct mp_body *out, const struct mp_ask *a,
                   const char *model, const json_t *answer,
                   const struct mp_blob *data, struct mp_error *err)
{
    const json_t *list = json_object_get(answer, "results");
    struct mp_text text;
    int rc;

    *out = (struct mp_body){.head = -1};
    if (a->plain)
        return plain_answer(out, a, list, data, err);
    if (mp_text_open(&text))
        return no_memory(err);
    rc = print_answer(&text, out, a, model, list, data);
    if (mp_text_close(&text))
        rc = MP_ENOMEM;
    out->bytes = text.bytes;
    out->n = text.n;
    if (rc == MP_ENOMEM)
        return no_memory(err);
    return rc ? mp_fail(err, rc, "the worker's answer makes no sense") : 0;
}
