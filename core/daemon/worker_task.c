/* SPDX-License-Identifier: MIT */
/* worker_task.c - what a request says, and what it is answered. */
#include <stdlib.h>
#include <string.h>
#include "json.h"
#include "progress.h"
#include "text.h"
#include "worker_impl.h"

static int no_memory(struct mp_error *err)
{
    return mp_fail(err, MP_ENOMEM, "out of memory");
}

/* ---- reading it ---- */

const struct mp_settings *mp_task_settings(const struct task *t)
{
    return t->varied ? t->varied : t->host->settings;
}

/* The formats asked for; or, for who accepts any picture, one to look at, and
 * for who accepts JSON, what is joined in a run. NULL: those of the
 * configuration. */
static const char *formats_of(const struct task *t)
{
    static const char *const shown[] = {"overlay", "color"};
    const char *accept = json_string_value(json_object_get(t->text, "accept"));
    const struct mp_plugin *head = t->host->settings->plugin;
    const char *word;
    int unused;

    if (accept && !strcmp(accept, "json") && head->joined)
        return head->joined;
    for (size_t i = 0; accept && !strcmp(accept, "png") && i < 2; i++)
        for (size_t at = 0, n;
             (n = mp_format_next(head->formats, &at, &word, &unused));)
            if (n == strlen(shown[i]) && !memcmp(word, shown[i], n))
                return shown[i];
    return json_string_value(json_object_get(t->text, "formats"));
}

/* "key=value\n" for each option that is given. */
static int vary(struct task *t)
{
    json_t *options = json_object_get(t->text, "options"), *value;
    const char *formats = formats_of(t);
    const char *name, **key, **text;
    size_t n = 0, most = json_object_size(options);
    struct mp_text lines;
    int rc;

    if (!most && !formats)
        return 0;
    key = calloc(2 * most + 1, sizeof *key);
    if (!key || mp_text_open(&lines)) {
        free(key);
        return no_memory(&t->p.err);
    }
    text = key + most;
    json_object_foreach(options, name, value)
    {
        key[n] = name;
        text[n++] = json_string_value(value);
        fprintf(lines.f, "%s=%s\n", name, json_string_value(value));
    }
    rc = mp_text_close(&lines) ? no_memory(&t->p.err) : 0;
    t->variant = lines.bytes;
    if (!rc)
        rc = mp_settings_vary(&t->varied, t->host->settings, key, text, n,
                              formats, &t->p.err);
    free(key);
    return rc;
}

/* A number or a text that stands for the picture in results. */
static int take_id(struct task *t)
{
    const json_t *id = json_object_get(t->text, "image_id");

    if (!id)
        return 0;
    t->p.id = json_dumps(id, JSON_ENCODE_ANY);
    return t->p.id ? 0 : no_memory(&t->p.err);
}

static int take_boxes(struct task *t)
{
    json_t *list = json_object_get(t->text, "boxes"), *one;
    size_t n = json_array_size(list), i;

    if (!list)
        return 0;
    if (!t->host->settings->plugin->uses_boxes)
        return mp_fail(&t->p.err, MP_EINVAL, "head %s does not use boxes",
                       t->host->settings->plugin->name);
    t->p.box = calloc(n + 1, sizeof *t->p.box);
    if (!t->p.box)
        return no_memory(&t->p.err);
    json_array_foreach(list, i, one) t->p.box[t->p.nbox++] =
        (struct mp_box){json_number_value(json_array_get(one, 0)),
                        json_number_value(json_array_get(one, 1)),
                        json_number_value(json_array_get(one, 2)),
                        json_number_value(json_array_get(one, 3)),
                        json_number_value(json_array_get(one, 4))};
    return 0;
}

/* 0: not given. */
static json_int_t number(const struct task *t, const char *key)
{
    return json_integer_value(json_object_get(t->text, key));
}

/* The part of the blob that is the picture. */
static int take_picture(struct task *t)
{
    json_int_t offset = number(t, "offset"), bytes = number(t, "bytes");
    json_int_t w = number(t, "width"), h = number(t, "height");
    struct mp_picture *out = &t->p.source;

    t->p.stage = "read";
    if (offset < 0 || bytes < 0 || (size_t)offset > t->blob.n ||
        (size_t)bytes > t->blob.n - (size_t)offset)
        return mp_fail(&t->p.err, MP_EINVAL, "the picture is not all there");
    if (!w)
        return mp_picture_decode(out, t->blob.at + offset, (size_t)bytes,
                                 &t->p.err);
    if (w < 1 || h < 1 || w > MP_IMAGE_MAX_PIXELS || h > MP_IMAGE_MAX_PIXELS ||
        w * h > MP_IMAGE_MAX_PIXELS || w * h * 3 != bytes)
        return mp_fail(&t->p.err, MP_EINVAL,
                       "no picture of %lld x %lld pixels in %lld bytes",
                       (long long)w, (long long)h, (long long)bytes);
    *out = (struct mp_picture){(int32_t)w, (int32_t)h, malloc((size_t)bytes)};
    if (!out->rgb)
        return no_memory(&t->p.err);
    memcpy(out->rgb, t->blob.at + offset, (size_t)bytes);
    return 0;
}

int mp_task_open(struct task *t)
{
    const char *name = json_string_value(json_object_get(t->text, "name"));
    int rc;

    t->p.stage = "options";
    t->input.stem = (char *)(name ? name : "picture");
    t->input.path = t->input.stem;
    t->keep.plain = json_is_true(json_object_get(t->text, "plain"));
    t->p.keep = &t->keep;
    rc = vary(t);
    if (!rc)
        rc = take_id(t);
    if (!rc)
        rc = take_boxes(t);
    if (!rc)
        rc = take_picture(t);
    mp_blob_free(&t->blob);
    return rc ? rc : mp_picture_job_open(&t->p, &t->input, mp_task_settings(t));
}

/* ---- answering ---- */

static json_t *describe_kept(const struct mp_kept *k, size_t offset)
{
    json_t *dim = json_array();

    for (int i = 0; i < k->ndim; i++)
        json_array_append_new(dim, json_integer(k->dim[i]));
    return json_pack("{s:s, s:s, s:s, s:o, s:I, s:I}", "kind", k->kind,
                     "suffix", k->suffix, "dtype", mp_dtype_name(k->dtype),
                     "dim", dim, "offset", (json_int_t)offset, "bytes",
                     (json_int_t)k->n);
}

static json_t *describe_runs(const struct task *t)
{
    json_t *list = json_array();

    for (size_t i = 0; i < t->nseen; i++)
        json_array_append_new(
            list, json_pack("[I, f, f]", (json_int_t)t->seen[i].views,
                            t->seen[i].runs, t->seen[i].seconds));
    return list;
}

/* All results behind one another in a blob. */
static int pack_results(struct mp_message *m, const struct task *t,
                        struct mp_error *err)
{
    unsigned before = mp_json_losses();
    json_t *list;
    size_t n = 0;
    int rc;

    for (size_t i = 0; i < t->keep.n; i++)
        n += t->keep.at[i].n;
    rc = mp_blob_new(&m->blob, n, err);
    if (rc)
        return rc;
    n = 0;
    list = json_array();
    for (size_t i = 0; i < t->keep.n; n += t->keep.at[i++].n) {
        memcpy(m->blob.at + n, t->keep.at[i].bytes, t->keep.at[i].n);
        json_array_append_new(list, describe_kept(&t->keep.at[i], n));
    }
    m->text =
        json_pack("{s:o, s:{s:f, s:f, s:f, s:f}, s:o}", "results", list,
                  "seconds", "read", t->read, "network", t->p.network, "merge",
                  t->merge, "write", t->write, "runs", describe_runs(t));
    if (m->text && mp_json_losses() == before)
        return 0;
    json_decref(m->text);
    m->text = NULL;
    return no_memory(err);
}

void mp_task_answer(struct worker *w, struct task *t, int rc)
{
    struct mp_message m = {.type = MP_DONE, .id = t->id, .blob = MP_NO_BLOB};
    struct mp_error *err = &t->p.err;

    if (!rc)
        rc = pack_results(&m, t, err);
    if (rc && !m.text)
        m.text = json_pack("{s:o, s:s}", "error", mp_json_text(err->text),
                           "stage", t->p.stage ? t->p.stage : "read");
    m.code = rc;
    mp_worker_send(w, &m);
}

void mp_task_free(struct task *t)
{
    mp_picture_job_free(&t->p);
    mp_keep_free(&t->keep);
    mp_blob_free(&t->blob);
    mp_settings_free(t->varied);
    json_decref(t->text);
    free(t->variant);
    free(t->seen);
    free(t);
}
