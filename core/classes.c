/* SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "classes.h"
#include "image.h"
#include "json.h"
#include "text.h"

/* The largest table takes about half of this. Bytes. */
#define FILE_MAX ((size_t)8 << 20)

struct table {
    struct mp_classes c; /* first: what callers hold */
    json_t *root;        /* owns all strings */
    const char **names;
    uint8_t (*color)[3];
    int32_t *label_id;
    size_t nlabel_id; /* classes that have one: all or none */
};

void mp_classes_free(struct mp_classes *c)
{
    struct table *t = (struct table *)c;

    if (t == NULL)
        return;
    json_decref(t->root);
    free(t->names);
    free(t->color);
    free(t->label_id);
    free(t);
}

/* -------------------------------------------------------------- reading */

static int read_color(uint8_t out[3], const json_t *rgb)
{
    if (!json_is_array(rgb) || json_array_size(rgb) != 3)
        return -1;
    for (size_t i = 0; i < 3; i++) {
        const json_t *v = json_array_get(rgb, i);

        if (!json_is_integer(v) || json_integer_value(v) < 0 ||
            json_integer_value(v) > 255)
            return -1;
        out[i] = (uint8_t)json_integer_value(v);
    }
    return 0;
}

static int read_label_id(struct table *t, size_t i, const json_t *id,
                         struct mp_error *err)
{
    if (id == NULL)
        return 0;
    if (!json_is_integer(id) || json_integer_value(id) < 0 ||
        json_integer_value(id) > 65535)
        return mp_fail(err, MP_EFORMAT,
                       "label_id must be a whole number 0..65535");
    t->label_id[i] = (int32_t)json_integer_value(id);
    t->nlabel_id++;
    return 0;
}

/* All classes have different ones, or none has any. */
static int check_label_ids(const struct table *t, struct mp_error *err)
{
    uint8_t seen[65536 / 8] = {0};

    if (t->nlabel_id != 0 && t->nlabel_id != t->c.count)
        return mp_fail(err, MP_EFORMAT,
                       "%zu of %zu classes have a label_id: all or none must",
                       t->nlabel_id, t->c.count);
    for (size_t i = 0; i < t->nlabel_id; i++) {
        int32_t id = t->label_id[i];

        if (seen[id / 8] & 1 << id % 8)
            return mp_fail(err, MP_EFORMAT, "two classes have the label_id %d",
                           id);
        seen[id / 8] |= (uint8_t)(1 << id % 8);
    }
    return 0;
}

static int read_class(struct table *t, size_t i, const json_t *entry,
                      struct mp_error *err)
{
    const char *name = json_string_value(json_object_get(entry, "name"));
    const json_t *id = json_object_get(entry, "id");

    if (!json_is_object(entry))
        return mp_fail(err, MP_EFORMAT, "must be an object");
    if (name == NULL || name[0] == '\0')
        return mp_fail(err, MP_EFORMAT, "name must be a text, not empty");
    if (id != NULL &&
        (!json_is_integer(id) || json_integer_value(id) != (json_int_t)i))
        return mp_fail(err, MP_EFORMAT, "id must be the place of the entry");
    if (read_color(t->color[i], json_object_get(entry, "color")) != 0)
        return mp_fail(err, MP_EFORMAT,
                       "color must be three whole numbers 0..255");
    t->names[i] = name;
    return read_label_id(t, i, json_object_get(entry, "label_id"), err);
}

static int read_table(struct table *t, struct mp_error *err)
{
    const char *name = json_string_value(json_object_get(t->root, "name"));
    const json_t *list = json_object_get(t->root, "classes");
    size_t n = json_array_size(list);

    if (name == NULL || name[0] == '\0')
        return mp_fail(err, MP_EFORMAT, "name must be a text, not empty");
    if (!json_is_array(list) || n < 1 || n > MP_CLASSES_MAX)
        return mp_fail(err, MP_EFORMAT, "classes must be a list of 1..%d",
                       MP_CLASSES_MAX);
    t->names = calloc(n, sizeof(*t->names));
    t->color = calloc(n, sizeof(*t->color));
    t->label_id = calloc(n, sizeof(*t->label_id));
    if (t->names == NULL || t->color == NULL || t->label_id == NULL)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    for (size_t i = 0; i < n; i++)
        if (read_class(t, i, json_array_get(list, i), err) != 0)
            return mp_fail_in(err, "classes[%zu]", i);
    t->c = (struct mp_classes){.name = name,
                               .count = n,
                               .names = t->names,
                               .color = (const uint8_t(*)[3])t->color,
                               .label_id = t->nlabel_id ? t->label_id : NULL};
    return check_label_ids(t, err);
}

int mp_classes_open(struct mp_classes **out, const char *path,
                    struct mp_error *err)
{
    struct table *t = calloc(1, sizeof(*t));
    int rc;

    *out = NULL;
    if (t == NULL)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    rc = mp_json_read(&t->root, path, FILE_MAX, err);
    if (rc == 0 && read_table(t, err) != 0)
        rc = mp_fail_in(err, "%s", path);
    if (rc != 0)
        mp_classes_free(&t->c);
    else
        *out = &t->c;
    return rc;
}

/* -------------------------------------------------------------- writing */

static int print_class(FILE *f, const struct mp_classes *c, size_t i)
{
    const uint8_t *rgb = c->color[i];
    json_t *entry = json_pack("{s:i, s:s, s:[i,i,i]}", "id", (int)i, "name",
                              c->names[i], "color", rgb[0], rgb[1], rgb[2]);
    int rc = entry == NULL ? -1 : json_dumpf(entry, f, 0);

    json_decref(entry);
    fputs(i + 1 < c->count ? ",\n  " : "\n]}\n", f);
    return rc;
}

static int print_table(FILE *f, const struct mp_classes *c)
{
    json_t *name = json_string(c->name);
    int rc = name == NULL ? -1 : 0;

    fputs("{\"name\": ", f);
    if (rc == 0)
        rc = json_dumpf(name, f, JSON_ENCODE_ANY);
    json_decref(name);
    fputs(",\n \"classes\": [\n  ", f);
    for (size_t i = 0; i < c->count && rc == 0; i++)
        rc = print_class(f, c, i);
    return rc;
}

int mp_classes_write(const struct mp_classes *c, const char *path,
                     struct mp_error *err)
{
    struct mp_text text;
    int rc;

    if (mp_text_open(&text) != 0)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    rc = print_table(text.f, c);
    if (mp_text_close(&text) != 0 || rc != 0)
        rc = mp_fail(err, MP_ENOMEM, "%s: out of memory", path);
    else
        rc = mp_file_write(path, text.bytes, text.n, err);
    free(text.bytes);
    return rc;
}
