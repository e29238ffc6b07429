/* SPDX-License-Identifier: MIT */
/* ask.c - what a request's body says. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "ask.h"
#include "json.h"

#define DIMS_MAX   8
#define INPUTS_MAX 8
#define BOXES_MAX  512
#define KEY_MAX    60                   /* bytes of an option's name */
#define OPTION_MAX 200                  /* bytes of its value */
#define TEXT_MAX   (MP_TEXT_MAX - 1000) /* the front adds a little */

static int no_memory(struct mp_error *err)
{
    return mp_fail(err, MP_ENOMEM, "out of memory");
}

void mp_ask_free(struct mp_ask *a)
{
    json_decref(a->id);
    json_decref(a->text);
    mp_blob_free(&a->blob);
    a->id = a->text = NULL;
}

static int begin(struct mp_ask *a, struct mp_error *err)
{
    *a = (struct mp_ask){.priority = 5, .blob = MP_NO_BLOB};
    a->text = json_pack("{s:{}}", "options");
    return a->text ? 0 : no_memory(err);
}

/* ---- parameters ---- */

static int set_text(struct mp_ask *a, const char *key, const char *value,
                    struct mp_error *err)
{
    unsigned before = mp_json_losses();
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
    return json_object_set_new(json_object_get(a->text, "options"), key, text)
               ? no_memory(err)
               : 0;
}

static int set_name(struct mp_ask *a, const char *value, struct mp_error *err)
{
    if (!*value || strlen(value) > 200 || strchr(value, '/'))
        return mp_fail(err, MP_EINVAL,
                       "name: 1 to 200 bytes without a slash, not \"%.80s\"",
                       value);
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
    } else if (!strcmp(key, "sequence_id") || !strcmp(key, "sequence_start") ||
               !strcmp(key, "sequence_end")) {
        if (n || json_is_true(v) || json_string_length(v))
            return mp_fail(err, MP_EINVAL, "%s: there are no sequences here",
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

int mp_ask_option(struct mp_ask *a, const char *key, const char *value,
                  struct mp_error *err)
{
    json_t *number;
    int rc;

    if (!strcmp(key, "output")) {
        if (a->noutput || strlen(value) >= sizeof a->output->name || !*value)
            return mp_fail(err, MP_EINVAL, "output: one kind of result");
        strcpy(a->output[a->noutput++].name, value);
        return json_object_set_new(a->text, "formats", json_string(value))
                   ? no_memory(err)
                   : 0;
    }
    if (!strcmp(key, "name"))
        return set_name(a, value, err);
    if (strcmp(key, "priority") && strcmp(key, "timeout"))
        return set_text(a, key, value, err);
    number = json_loads(value, JSON_DECODE_ANY, NULL);
    rc = number ? set_reserved(a, key, number, err)
                : mp_fail(err, MP_EINVAL, "%s: a whole number", key);
    json_decref(number);
    return rc;
}

int mp_ask_plain(struct mp_ask *a, size_t n, struct mp_error *err)
{
    int rc = begin(a, err);

    if (rc)
        return rc;
    a->plain = 1;
    return json_object_set_new(a->text, "bytes", json_integer((json_int_t)n))
               ? no_memory(err)
               : 0;
}

/* ---- tensors of a request ---- */

struct tensor {
    const char *name, *type;
    int64_t dim[DIMS_MAX];
    int ndim;
    int64_t count;       /* product of dim */
    const json_t *data;  /* or: */
    size_t at, bytes;    /* in the body; data: at is the size of the body */
    const uint8_t *body; /* of the whole request */
};

static int parse_shape(struct tensor *t, const json_t *shape,
                       struct mp_error *err)
{
    const json_t *one;
    size_t i;

    if (!json_is_array(shape) || json_array_size(shape) > DIMS_MAX)
        return mp_fail(err, MP_EINVAL,
                       "input %s: shape must be a list of up to %d numbers",
                       t->name, DIMS_MAX);
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

/* Where its bytes are: in "data", or next in the binary part. */
static int parse_place(struct tensor *t, const json_t *o, size_t *at, size_t n,
                       struct mp_error *err)
{
    const json_t *size =
        json_object_get(json_object_get(o, "parameters"), "binary_data_size");
    json_int_t bytes = json_integer_value(size);

    t->data = json_object_get(o, "data");
    if (!size == !t->data)
        return mp_fail(err, MP_EINVAL,
                       "input %s: either data or the parameter "
                       "binary_data_size",
                       t->name);
    t->at = n;
    if (!size)
        return 0;
    if (!json_is_integer(size) || bytes < 0 || (uint64_t)bytes > n - *at)
        return mp_fail(err, MP_EINVAL,
                       "input %s: binary_data_size does not lie in the body",
                       t->name);
    t->at = *at;
    t->bytes = (size_t)bytes;
    *at += t->bytes;
    return 0;
}

static int parse_tensor(struct tensor *t, const json_t *o, size_t *at, size_t n,
                        struct mp_error *err)
{
    int rc;

    t->name = json_string_value(json_object_get(o, "name"));
    t->type = json_string_value(json_object_get(o, "datatype"));
    if (!t->name || !t->type)
        return mp_fail(err, MP_EINVAL,
                       "inputs: each has a name, a datatype and a shape");
    rc = parse_shape(t, json_object_get(o, "shape"), err);
    return rc ? rc : parse_place(t, o, at, n, err);
}

/* Numbers of nested or flat lists, count of them exactly, each into take. */
static int walk(const json_t *data, int depth, int64_t *count, int64_t most,
                int (*take)(void *user, int64_t i, const json_t *v), void *user)
{
    const json_t *one;
    size_t i;

    if (!json_is_array(data))
        return *count < most ? take(user, (*count)++, data) : -1;
    if (depth > DIMS_MAX)
        return -1;
    json_array_foreach(data, i, one) if (walk(one, depth + 1, count, most, take,
                                              user)) return -1;
    return 0;
}

static int take_byte(void *user, int64_t i, const json_t *v)
{
    json_int_t x = json_integer_value(v);

    if (!json_is_integer(v) || x < 0 || x > 255)
        return -1;
    ((uint8_t *)user)[i] = (uint8_t)x;
    return 0;
}

static int take_double(void *user, int64_t i, const json_t *v)
{
    if (!json_is_number(v))
        return -1;
    ((double *)user)[i] = json_number_value(v);
    return 0;
}

static int wrong_type(const struct tensor *t, const char *right,
                      struct mp_error *err)
{
    return mp_fail(err, MP_EINVAL, "input %s must be %s", t->name, right);
}

static int take_pixels(struct mp_ask *a, const struct tensor *t,
                       struct mp_error *err)
{
    int64_t got = 0;
    int rc = 0;

    if (strcmp(t->type, "UINT8") || t->ndim != 4 || t->dim[0] != 1 ||
        t->dim[3] != 3 || t->dim[1] < 1 || t->dim[2] < 1)
        return wrong_type(t, "UINT8 of shape [1, height, width, 3]", err);
    if (!t->data && t->bytes != (size_t)t->count)
        return mp_fail(err, MP_EINVAL,
                       "input %s: %zu bytes, but the shape needs %lld", t->name,
                       t->bytes, (long long)t->count);
    if (t->data && t->count > (int64_t)t->at)
        return mp_fail(err, MP_EINVAL, "input %s: data does not fit the shape",
                       t->name);
    if (t->data) {
        rc = mp_blob_new(&a->blob, (size_t)t->count, err);
        if (!rc && (walk(t->data, 0, &got, t->count, take_byte, a->blob.at) ||
                    got != t->count))
            rc = mp_fail(err, MP_EINVAL,
                         "input %s: data must be %lld whole numbers 0..255",
                         t->name, (long long)t->count);
    }
    if (rc)
        return rc;
    return json_object_update_new(a->text,
                                  json_pack("{s:I, s:I, s:I, s:I}", "offset",
                                            (json_int_t)(t->data ? 0 : t->at),
                                            "bytes", (json_int_t)t->count,
                                            "width", (json_int_t)t->dim[2],
                                            "height", (json_int_t)t->dim[1]))
               ? no_memory(err)
               : 0;
}

/* One element: its length in 4 bytes, little endian, and itself. */
static int take_file(struct mp_ask *a, const struct tensor *t,
                     struct mp_error *err)
{
    const uint8_t *p = t->body + t->at;
    size_t n;

    if (strcmp(t->type, "BYTES") || t->count != 1)
        return wrong_type(t, "BYTES of shape [1]", err);
    if (t->data)
        return mp_fail(err, MP_EINVAL,
                       "input %s: a file is no JSON: send it behind the JSON, "
                       "with binary_data_size",
                       t->name);
    n = t->bytes < 4 ? 0
                     : (size_t)p[0] | (size_t)p[1] << 8 | (size_t)p[2] << 16 |
                           (size_t)p[3] << 24;
    if (t->bytes < 4 || n != t->bytes - 4)
        return mp_fail(err, MP_EINVAL,
                       "input %s: its 4 bytes of length do not fit its size",
                       t->name);
    return json_object_update_new(a->text, json_pack("{s:I, s:I}", "offset",
                                                     (json_int_t)(t->at + 4),
                                                     "bytes", (json_int_t)n))
               ? no_memory(err)
               : 0;
}

static json_t *box_json(const double *v, int64_t columns)
{
    return json_pack("[f, f, f, f, f]", v[0], v[1], v[2], v[3],
                     columns == 5 ? v[4] : 1.0);
}

static int take_boxes(struct mp_ask *a, const struct tensor *t,
                      struct mp_error *err)
{
    double v[BOXES_MAX * 5];
    json_t *list;
    int64_t got = 0;
    int bad = 0;

    if (strcmp(t->type, "FP32") || t->ndim != 2 || t->dim[0] > BOXES_MAX ||
        (t->dim[1] != 4 && t->dim[1] != 5))
        return wrong_type(t, "FP32 of shape [N, 4] or [N, 5], N up to 512",
                          err);
    if (t->data) {
        bad =
            walk(t->data, 0, &got, t->count, take_double, v) || got != t->count;
    } else {
        bad = t->bytes != (size_t)t->count * sizeof(float);
        for (int64_t i = 0; i < t->count && !bad; i++) {
            float x;

            memcpy(&x, t->body + t->at + (size_t)i * sizeof x, sizeof x);
            v[i] = (double)x;
        }
    }
    for (int64_t i = 0; i < t->count && !bad; i++)
        bad = !isfinite(v[i]);
    if (bad)
        return mp_fail(err, MP_EINVAL,
                       "input %s: %lld finite numbers are needed", t->name,
                       (long long)t->count);
    list = json_array();
    for (int64_t i = 0; i < t->dim[0] && !bad; i++)
        bad =
            json_array_append_new(list, box_json(v + i * t->dim[1], t->dim[1]));
    bad |= json_object_set_new(a->text, "boxes", list);
    return bad ? no_memory(err) : 0;
}

/* ---- the request ---- */

static int parse_inputs(struct mp_ask *a, const json_t *inputs,
                        const uint8_t *body, size_t at, size_t n,
                        struct mp_error *err)
{
    int pictures = 0, boxes = 0, rc = 0;
    const json_t *one;
    size_t i;

    if (!json_is_array(inputs) || json_array_size(inputs) > INPUTS_MAX)
        return mp_fail(err, MP_EINVAL, "inputs must be a list of up to %d",
                       INPUTS_MAX);
    json_array_foreach(inputs, i, one)
    {
        struct tensor t = {.body = body};

        rc = parse_tensor(&t, one, &at, n, err);
        if (rc)
            return rc;
        if (!strcmp(t.name, "image") && !pictures++)
            rc = take_pixels(a, &t, err);
        else if (!strcmp(t.name, "image_bytes") && !pictures++)
            rc = take_file(a, &t, err);
        else if (!strcmp(t.name, "boxes") && !boxes++)
            rc = take_boxes(a, &t, err);
        else
            rc = mp_fail(err, MP_EINVAL,
                         "input \"%.60s\": one of image and image_bytes is "
                         "needed, and boxes may be there",
                         t.name);
        if (rc)
            return rc;
    }
    if (!pictures)
        return mp_fail(err, MP_EINVAL,
                       "inputs: image or image_bytes is "
                       "missing");
    if (at != n)
        return mp_fail(err, MP_EINVAL,
                       "%zu bytes behind the inputs of the request", n - at);
    return 0;
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
            return mp_fail(err, MP_EINVAL,
                           "output %s: there is no classification here", name);
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

static int parse_root(struct mp_ask *a, const json_t *root, const uint8_t *body,
                      size_t at, size_t n, struct mp_error *err)
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
                             err);
}

int mp_ask_parse(struct mp_ask *a, const void *body, size_t n, int64_t head,
                 size_t json_most, struct mp_error *err)
{
    size_t json = head < 0 ? n : (size_t)head;
    json_error_t why;
    json_t *root;
    int rc = begin(a, err);

    if (rc)
        return rc;
    if (head == 0) {
        rc = mp_ask_plain(a, n, err);
        a->plain = 0;
        a->binary = 1;
        return rc;
    }
    if (json > n)
        return mp_fail(err, MP_EINVAL,
                       "Inference-Header-Content-Length is "
                       "larger than the body");
    if (json > json_most)
        return mp_fail(err, MP_EINVAL,
                       "%zu bytes of JSON: at most %zu (send data in binary)",
                       json, json_most);
    rc = mp_json_parse(&root, body, json, &why, err);
    if (rc == MP_ENOMEM)
        return rc;
    if (!json_is_object(root)) {
        rc = mp_fail(err, MP_EINVAL, "the request is no JSON object: %s",
                     root ? "something else" : why.text);
        json_decref(root);
        return rc;
    }
    if (json_object_set_new(a->text, "plain", json_true()))
        rc = no_memory(err);
    if (!rc)
        rc = parse_root(a, root, body, json, n, err);
    json_decref(root);
    return rc;
}

int mp_ask_check(const struct mp_ask *a, struct mp_error *err)
{
    size_t n = json_dumpb(a->text, NULL, 0, JSON_COMPACT);

    return n <= TEXT_MAX
               ? 0
               : mp_fail(err, MP_EINVAL,
                         "parameters, outputs and boxes are %zu bytes of text: "
                         "at most %d",
                         n, TEXT_MAX);
}
