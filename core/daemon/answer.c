/* SPDX-License-Identifier: MIT */
/* answer.c - what a worker answered, as a body. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "answer.h"

static int no_memory(struct mp_error *err)
{
    return mp_fail(err, MP_ENOMEM, "out of memory");
}

int mp_body_json(struct mp_body *out, json_t *json, struct mp_error *err)
{
    char *text =
        json ? json_dumps(json, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;

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
    json_int_t offset = -1, bytes = -1;

    if (json_unpack((json_t *)o, "{s:s, s:s, s:s, s:o, s:I, s:I}", "kind",
                    &r->kind, "suffix", &r->suffix, "dtype", &r->dtype, "dim",
                    &r->dim, "offset", &offset, "bytes", &bytes) ||
        offset < 0 || bytes < 0 || (size_t)offset > data->n ||
        (size_t)bytes > data->n - (size_t)offset)
        return -1;
    r->at = data->at + offset;
    r->n = (size_t)bytes;
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

static int print_data(FILE *f, const struct found *r, int type)
{
    json_t *text;

    fputs(",\"data\":[", f);
    if (!types[type].size) {
        text = json_stringn((const char *)r->at, r->n);
        if (!text || json_dumpf(text, f, JSON_ENCODE_ANY))
            fputs("null", f);
        json_decref(text);
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

/* One output's JSON. */
static void print_output(FILE *f, const struct mp_ask *a, const struct found *r)
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
    else
        print_data(f, r, type);
    fputc('}', f);
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

static int print_answer(FILE *f, struct mp_body *out, const struct mp_ask *a,
                        const char *model, const json_t *list,
                        const struct mp_blob *data)
{
    const json_t *one;
    struct found r;
    int binary = 0;
    long head;
    size_t i;

    fprintf(f, "{\"model_name\":\"%s\",\"model_version\":\"1\"", model);
    if (a->id) {
        fputs(",\"id\":", f);
        json_dumpf(a->id, f, JSON_ENCODE_ANY);
    }
    fputs(",\"outputs\":[", f);
    json_array_foreach(list, i, one)
    {
        if (find_result(&r, one, data))
            return -1;
        if (i)
            fputc(',', f);
        print_output(f, a, &r);
    }
    fputs("]}", f);
    head = ftell(f);
    json_array_foreach(list, i, one) if (!find_result(&r, one, data)) binary |=
        put_output(f, a, &r);
    out->head = binary ? head : -1;
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
    FILE *f;
    int bad;

    *out = (struct mp_body){.head = -1};
    if (a->plain)
        return plain_answer(out, a, list, data, err);
    f = open_memstream(&out->bytes, &out->n);
    if (!f)
        return no_memory(err);
    bad = print_answer(f, out, a, model, list, data);
    if (fclose(f))
        return no_memory(err);
    return bad ? mp_fail(err, MP_EIO, "the worker's answer makes no sense") : 0;
}
