/* SPDX-License-Identifier: MIT */
/* ask.c - what a request's body says. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "ask.h"
#include "json.h"
#include "tensor.h"

#define INPUTS_MAX 8
#define BOXES_MAX  1000                 /* of a picture */
#define KEY_MAX    60                   /* bytes of an option's name */
#define OPTION_MAX 200                  /* bytes of its value */
#define NAME_MOST  765                  /* a file's, each byte as U+FFFD */
#define TEXT_MAX   (MP_TEXT_MAX - 1000) /* the front adds a little */

static int no_memory(struct mp_error *err)
{
    return mp_fail(err, MP_ENOMEM, "out of memory");
}

int mp_ask_begin(struct mp_ask *a, struct mp_error *err)
{
    *a = (struct mp_ask){.priority = 5, .blob = MP_NO_BLOB};
    a->text = json_pack("{s:{}}", "options");
    a->pictures = json_array();
    return a->text && a->pictures ? 0 : no_memory(err);
}

void mp_ask_free(struct mp_ask *a)
{
    json_decref(a->id);
    json_decref(a->text);
    json_decref(a->pictures);
    mp_blob_free(&a->blob);
    a->id = a->text = a->pictures = NULL;
}

/* ---- parameters ---- */

static int set_text(struct mp_ask *a, const char *key, const char *value,
                    struct mp_error *err)
{
    unsigned before = mp_json_losses();
    json_t *options = json_object_get(a->text, "options");
    json_t *text = json_string(value);

    if (!text && mp_json_losses() != before)
        return no_memory(err);
    if (!text)
        return mp_fail(err, MP_EINVAL, "%.60s is no UTF-8", key);
    if (strlen(key) > KEY_MAX || strlen(value) > OPTION_MAX) {
        json_decref(text);
        return mp_fail(err, MP_EINVAL,
                       "parameter %.60s: up to %d bytes, and %d of its value",
                       key, KEY_MAX, OPTION_MAX);
    }
    if (json_object_get(options, key)) {
        json_decref(text);
        return mp_fail(err, MP_EINVAL, "%s is given twice", key);
    }
    return json_object_set_new(options, key, text) ? no_memory(err) : 0;
}

static int set_name(struct mp_ask *a, const char *value, struct mp_error *err)
{
    if (!*value || strlen(value) > NAME_MOST || strchr(value, '/'))
        return mp_fail(err, MP_EINVAL,
                       "name: 1 to %d bytes without a slash, not \"%.80s\"",
                       NAME_MOST, value);
    return json_object_set_new(a->text, "name", json_string(value))
               ? no_memory(err)
               : 0;
}

/* Keys that the protocol reserves; 1: it is none. */
static int set_reserved(struct mp_ask *a, const char *key, const json_t *v,
                        struct mp_error *err)
{
    json_int_t n = json_integer_value(v);

    if (!strcmp(key, "priority")) {
        if (!json_is_integer(v) || n < 0 || n > 9)
            return mp_fail(err, MP_EINVAL,
                           "priority: 1 (first) to 9, or 0 for the usual 5");
        a->priority = n ? (int)n : 5;
    } else if (!strcmp(key, "timeout")) {
        if (!json_is_integer(v) || n < 0)
            return mp_fail(err, MP_EINVAL, "timeout: microseconds");
        a->timeout = (double)n / 1e6;
    } else if (!strcmp(key, "binary_data_output")) {
        if (!json_is_boolean(v))
            return mp_fail(err, MP_EINVAL, "%s: true or false", key);
        a->binary = json_is_true(v);
    } else if (!strcmp(key, "encoded")) {
        if (!json_is_boolean(v))
            return mp_fail(err, MP_EINVAL, "%s: true or false", key);
        if (json_object_set_new(a->text, "plain",
                                json_boolean(json_is_false(v))))
            return no_memory(err);
    } else if (!strcmp(key, "name")) {
        if (!json_is_string(v))
            return mp_fail(err, MP_EINVAL, "name: a text");
        return set_name(a, json_string_value(v), err);
    } else if (!strcmp(key, "image_id")) {
        if (!json_is_integer(v) && !json_is_string(v))
            return mp_fail(err, MP_EINVAL,
                           "image_id: a whole number or a text");
        if (json_object_set(a->text, key, (json_t *)v))
            return no_memory(err);
    } else if (!strcmp(key, "sequence_id") || !strcmp(key, "sequence_start") ||
               !strcmp(key, "sequence_end")) {
        if (n || json_is_true(v) || json_string_length(v))
            return mp_fail(err, MP_ENOTSUP, "%s: there are no sequences here",
                           key);
    } else if (strcmp(key, "headers") && strncmp(key, "triton_", 7)) {
        return 1;
    }
    return 0;
}

static int set_parameter(struct mp_ask *a, const char *key, const json_t *v,
                         struct mp_error *err)
{
    char number[40];
    int rc = set_reserved(a, key, v, err);

    if (rc <= 0)
        return rc;
    switch (json_typeof(v)) {
    case JSON_STRING:
        return set_text(a, key, json_string_value(v), err);
    case JSON_INTEGER:
        snprintf(number, sizeof number, "%lld",
                 (long long)json_integer_value(v));
        return set_text(a, key, number, err);
    case JSON_REAL:
        snprintf(number, sizeof number, "%.17g", json_real_value(v));
        return set_text(a, key, number, err);
    case JSON_TRUE:
    case JSON_FALSE:
        return set_text(a, key, json_is_true(v) ? "yes" : "no", err);
    default:
        return mp_fail(err, MP_EINVAL,
                       "parameter %.60s: a text, a number, "
                       "true or false",
                       key);
    }
}

/* Of the query all values are texts; these are of another type. */
static json_t *typed(const char *key, const char *value)
{
    static const char *const keys[] = {"priority", "timeout", "encoded",
                                       "binary_data_output", "image_id"};
    json_t *v = NULL;

    for (size_t i = 0; i < sizeof keys / sizeof *keys && !v; i++)
        if (!strcmp(key, keys[i]))
            v = json_loads(value, JSON_DECODE_ANY, NULL);
    return v ? v : json_string(value);
}

static int set_output(struct mp_ask *a, const char *value, struct mp_error *err)
{
    if (a->noutput || strlen(value) >= sizeof a->output->name || !*value)
        return mp_fail(err, MP_EINVAL, "output: one kind of result");
    strcpy(a->output[a->noutput++].name, value);
    return json_object_set_new(a->text, "formats", json_string(value))
               ? no_memory(err)
               : 0;
}

int mp_ask_option(struct mp_ask *a, const char *key, const char *value,
                  struct mp_error *err)
{
    unsigned before = mp_json_losses();
    json_t *v;
    int rc;

    if (!strcmp(key, "output"))
        return set_output(a, value, err);
    v = typed(key, value);
    if (mp_json_losses() != before) {
        json_decref(v);
        return no_memory(err);
    }
    if (!v)
        return mp_fail(err, MP_EINVAL, "%.60s is no UTF-8", key);
    rc = set_parameter(a, key, v, err);
    json_decref(v);
    return rc;
}

/* ---- pictures ---- */

static int add_picture(struct mp_ask *a, size_t offset, size_t bytes,
                       struct mp_error *err)
{
    json_t *o = json_pack("{s:I, s:I}", "offset", (json_int_t)offset, "bytes",
                          (json_int_t)bytes);

    return json_array_append_new(a->pictures, o) ? no_memory(err) : 0;
}

/* The whole body. */
static int take_body(struct mp_ask *a, size_t n, struct mp_error *err)
{
    return add_picture(a, 0, n, err);
}

int mp_ask_plain(struct mp_ask *a, size_t n, struct mp_error *err)
{
    if (json_is_true(json_object_get(a->text, "plain")))
        return mp_fail(err, MP_EINVAL,
                       "encoded: the answer to a plain request is a file");
    a->plain = 1;
    return take_body(a, n, err);
}

static int wrong_type(const struct mp_given *t, const char *right,
                      struct mp_error *err)
{
    return mp_fail(err, MP_EINVAL, "input %s must be %s", t->name, right);
}

static int check_number(const struct mp_given *t, int64_t n, int64_t most,
                        struct mp_error *err)
{
    if (n < 1 || n > most)
        return mp_fail(err, MP_EINVAL,
                       "input %s: %lld pictures; a request has 1 to %lld",
                       t->name, (long long)n, (long long)most);
    return 0;
}

/* Pixels as numbers in JSON, into a blob. */
static int unpack_pixels(struct mp_ask *a, const struct mp_given *t, size_t n,
                         struct mp_error *err)
{
    int rc;

    /* a number and its comma are 2 bytes: do not make room for what cannot be
     */
    if (t->count > (int64_t)(n / 2 + 1))
        return mp_fail(err, MP_EINVAL, "input %s: data does not fit the shape",
                       t->name);
    rc = mp_blob_new(&a->blob, (size_t)t->count, err);
    return rc ? rc : mp_given_bytes(a->blob.at, t, err);
}

static int take_pixels(struct mp_ask *a, const struct mp_given *t, size_t n,
                       int64_t most, struct mp_error *err)
{
    size_t one;
    int rc;

    if (strcmp(t->type, "UINT8") || t->ndim != 4 || t->dim[3] != 3 ||
        t->dim[1] < 1 || t->dim[2] < 1)
        return wrong_type(t, "UINT8 of shape [N, height, width, 3]", err);
    rc = check_number(t, t->dim[0], most, err);
    if (rc)
        return rc;
    if (!t->data && t->nbytes != (size_t)t->count)
        return mp_fail(err, MP_EINVAL,
                       "input %s: %zu bytes, but the shape needs %lld", t->name,
                       t->nbytes, (long long)t->count);
    if (t->data)
        rc = unpack_pixels(a, t, n, err);
    one = (size_t)(t->count / t->dim[0]);
    for (int64_t i = 0; i < t->dim[0] && !rc; i++) {
        rc = add_picture(a, t->at + (size_t)i * one, one, err);
        if (!rc && json_object_update_new(
                       json_array_get(a->pictures, (size_t)i),
                       json_pack("{s:I, s:I}", "width", (json_int_t)t->dim[2],
                                 "height", (json_int_t)t->dim[1])))
            rc = no_memory(err);
    }
    return rc;
}

/* Elements, each behind its length in 4 bytes, little endian. */
static int take_files(struct mp_ask *a, const struct mp_given *t, int64_t most,
                      struct mp_error *err)
{
    size_t at = 0;
    int rc;

    if (strcmp(t->type, "BYTES") || t->ndim < 1 || t->ndim > 2 ||
        (t->ndim == 2 && t->dim[1] != 1))
        return wrong_type(t, "BYTES of shape [N] or [N, 1]", err);
    rc = check_number(t, t->count, most, err);
    if (!rc && t->data)
        rc = mp_fail(err, MP_EINVAL,
                     "input %s: a file is no JSON: send it behind the JSON, "
                     "with binary_data_size",
                     t->name);
    for (int64_t i = 0; i < t->count && !rc; i++) {
        const uint8_t *p = t->bytes + at;
        size_t left = t->nbytes - at, n = 0;

        if (left >= 4)
            n = (size_t)p[0] | (size_t)p[1] << 8 | (size_t)p[2] << 16 |
                (size_t)p[3] << 24;
        if (left < 4 || n > left - 4)
            break;
        rc = add_picture(a, t->at + at + 4, n, err);
        at += 4 + n;
    }
    if (!rc &&
        (at != t->nbytes || json_array_size(a->pictures) != (size_t)t->count))
        rc = mp_fail(err, MP_EINVAL,
                     "input %s: its elements, each with 4 bytes of length "
                     "before it, do not fit its size",
                     t->name);
    return rc;
}

/* ---- boxes ---- */

/* NULL: out of memory. */
static json_t *boxes_json(const double *v, int64_t rows, int64_t columns)
{
    json_t *list = json_array();
    int bad = 0;

    for (int64_t i = 0; i < rows && !bad; i++, v += columns)
        bad = json_array_append_new(list, json_pack("[f, f, f, f, f]", v[0],
                                                    v[1], v[2], v[3],
                                                    columns == 5 ? v[4] : 1.0));
    if (!bad)
        return list;
    json_decref(list);
    return NULL;
}

static int give_boxes(struct mp_ask *a, const double *v, int64_t rows,
                      int64_t columns, struct mp_error *err)
{
    json_t *one;
    size_t i;

    json_array_foreach(a->pictures, i, one)
    {
        if (json_object_set_new(one, "boxes", boxes_json(v, rows, columns)))
            return no_memory(err);
        v += rows * columns;
    }
    return 0;
}

/* Rows of a picture's; a single picture may do without the first dimension. */
static int take_boxes(struct mp_ask *a, const struct mp_given *t,
                      struct mp_error *err)
{
    int64_t n = (int64_t)json_array_size(a->pictures);
    const int64_t *dim = t->dim + (t->ndim > 2);
    double *v;
    int rc;

    if ((strcmp(t->type, "FP32") && strcmp(t->type, "FP64")) || t->ndim < 2 ||
        t->ndim > 3 || *dim > BOXES_MAX || (dim[1] != 4 && dim[1] != 5) ||
        (t->ndim == 3 ? t->dim[0] != n : n != 1))
        return mp_fail(err, MP_EINVAL,
                       "input %s must be FP32 or FP64 of shape [%lld, M, 4] or "
                       "[%lld, M, 5], M up to %d",
                       t->name, (long long)n, (long long)n, BOXES_MAX);
    v = malloc(((size_t)t->count + 1) * sizeof *v);
    if (!v)
        return no_memory(err);
    rc = mp_given_doubles(v, t, err);
    if (!rc)
        rc = give_boxes(a, v, *dim, dim[1], err);
    free(v);
    return rc;
}

/* ---- the request ---- */

struct inputs {
    struct mp_given picture, boxes; /* name NULL: not given */
};

static int sort_input(struct inputs *all, const struct mp_given *t,
                      struct mp_error *err)
{
    int is_box = !strcmp(t->name, "boxes");
    struct mp_given *to = is_box ? &all->boxes : &all->picture;

    if (to->name ||
        (!is_box && strcmp(t->name, "image") && strcmp(t->name, "image_bytes")))
        return mp_fail(err, MP_EINVAL,
                       "input \"%.60s\": one of image and image_bytes is "
                       "needed, and boxes may be there",
                       t->name);
    *to = *t;
    return 0;
}

static int parse_inputs(struct mp_ask *a, const json_t *inputs,
                        const void *body, size_t at, size_t n, int64_t most,
                        struct mp_error *err)
{
    struct inputs all = {0};
    const json_t *one;
    int rc = 0;
    size_t i;

    if (!json_is_array(inputs) || json_array_size(inputs) > INPUTS_MAX)
        return mp_fail(err, MP_EINVAL, "inputs must be a list of up to %d",
                       INPUTS_MAX);
    json_array_foreach(inputs, i, one)
    {
        struct mp_given t;

        rc = mp_given_parse(&t, one, body, &at, n, err);
        if (!rc)
            rc = sort_input(&all, &t, err);
        if (rc)
            return rc;
    }
    if (!all.picture.name)
        return mp_fail(err, MP_EINVAL,
                       "inputs: image or image_bytes is missing");
    rc = strcmp(all.picture.name, "image")
             ? take_files(a, &all.picture, most, err)
             : take_pixels(a, &all.picture, n, most, err);
    if (!rc && all.boxes.name)
        rc = take_boxes(a, &all.boxes, err);
    if (!rc && at != n)
        rc = mp_fail(err, MP_EINVAL,
                     "%zu bytes behind the inputs of the request", n - at);
    return rc;
}

/* The outputs asked for, as words for the worker. */
static int parse_outputs(struct mp_ask *a, const json_t *outputs,
                         struct mp_error *err)
{
    char words[MP_OUTPUTS_MAX * 64] = "";
    const json_t *one;
    size_t i;

    if (!outputs)
        return 0;
    if (a->noutput)
        return mp_fail(err, MP_EINVAL, "outputs: the query has named one");
    if (!json_is_array(outputs) || json_array_size(outputs) > MP_OUTPUTS_MAX)
        return mp_fail(err, MP_EINVAL, "outputs must be a list of up to %d",
                       MP_OUTPUTS_MAX);
    json_array_foreach(outputs, i, one)
    {
        const char *name = json_string_value(json_object_get(one, "name"));
        const json_t *p = json_object_get(one, "parameters");
        const json_t *binary = json_object_get(p, "binary_data");

        if (!name || !*name || strlen(name) >= sizeof a->output->name ||
            strpbrk(name, " \t"))
            return mp_fail(err, MP_EINVAL, "outputs: each has a name");
        if (binary && !json_is_boolean(binary))
            return mp_fail(err, MP_EINVAL,
                           "output %s: binary_data: true or false", name);
        if (json_object_get(p, "classification"))
            return mp_fail(err, MP_ENOTSUP,
                           "output %s: there is no classification here", name);
        if (json_object_get(p, "shared_memory_region"))
            return mp_fail(err, MP_ENOTSUP,
                           "output %s: there is no shared memory here", name);
        for (size_t k = 0; k < i; k++)
            if (!strcmp(a->output[k].name, name))
                return mp_fail(err, MP_EINVAL, "output %s is asked for twice",
                               name);
        strcpy(a->output[i].name, name);
        a->output[i].binary = binary ? json_is_true(binary) : a->binary;
        strcat(strcat(words, i ? " " : ""), name);
    }
    a->noutput = json_array_size(outputs);
    if (!a->noutput)
        return 0;
    return json_object_set_new(a->text, "formats", json_string(words))
               ? no_memory(err)
               : 0;
}

static int parse_root(struct mp_ask *a, const json_t *root, const void *body,
                      size_t at, size_t n, int64_t most, struct mp_error *err)
{
    json_t *parameters = json_object_get(root, "parameters"), *v;
    json_t *id = json_object_get(root, "id");
    const char *key;
    int rc = 0;

    if (id && (!json_is_string(id) || json_string_length(id) > 1000))
        return mp_fail(err, MP_EINVAL, "id: a text of up to 1000 bytes");
    a->id = json_incref(id);
    if (parameters &&
        (!json_is_object(parameters) || json_object_size(parameters) > 100))
        return mp_fail(err, MP_EINVAL, "parameters: an object");
    json_object_foreach(parameters, key, v) if (!rc) rc =
        set_parameter(a, key, v, err);
    if (!rc)
        rc = parse_outputs(a, json_object_get(root, "outputs"), err);
    return rc ? rc
              : parse_inputs(a, json_object_get(root, "inputs"), body, at, n,
                             most, err);
}

int mp_ask_parse(struct mp_ask *a, const void *body, size_t n, int64_t head,
                 const struct mp_ask_most *most, struct mp_error *err)
{
    size_t json = head < 0 ? n : (size_t)head;
    json_error_t why;
    json_t *root;
    int rc = 0;

    if (!json_object_get(a->text, "plain") &&
        json_object_set_new(a->text, "plain", json_true()))
        return no_memory(err);
    if (head == 0) {
        a->binary = a->output[0].binary = 1;
        return take_body(a, n, err);
    }
    if (json > n)
        return mp_fail(err, MP_EINVAL,
                       "Inference-Header-Content-Length is "
                       "larger than the body");
    if (json > most->json)
        return mp_fail(err, MP_EINVAL,
                       "%zu bytes of JSON: at most %zu (send data in binary)",
                       json, most->json);
    rc = mp_json_parse(&root, body, json, &why, err);
    if (rc == MP_ENOMEM)
        return rc;
    rc = 0;
    if (!json_is_object(root))
        rc = mp_fail(err, MP_EINVAL, "the request is no JSON object: %s",
                     root ? "something else" : why.text);
    if (!rc)
        rc = parse_root(a, root, body, json, n, most->pictures, err);
    json_decref(root);
    return rc;
}

int mp_ask_check(const struct mp_ask *a, struct mp_error *err)
{
    size_t all = json_dumpb(a->text, NULL, 0, JSON_COMPACT), i;
    const json_t *one;

    json_array_foreach(a->pictures, i, one)
    {
        size_t n = all + json_dumpb(one, NULL, 0, JSON_COMPACT);

        if (n > TEXT_MAX)
            return mp_fail(err, MP_EINVAL,
                           "parameters, outputs and boxes are %zu bytes of "
                           "text: at most %d",
                           n, TEXT_MAX);
    }
    return 0;
}
