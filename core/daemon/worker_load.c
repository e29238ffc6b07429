/* SPDX-License-Identifier: MIT */
/* worker_load.c - pipelines of a worker: loaded, tried, described. */
#include <stdlib.h>
#include <string.h>
#include "classes.h"
#include "json.h"
#include "record.h"
#include "text.h"
#include "worker_impl.h"

static int no_memory(struct mp_error *err)
{
    return mp_fail(err, MP_ENOMEM, "out of memory");
}

/* ---- trying ---- */

/* What the head makes of a small gray picture: so that a pipeline that is ready
 * has worked once, and the types of its outputs are known. */
#define TRIAL 64 /* pixels */

static int see_trial(struct mp_picture_job *p, struct hosted *h,
                     const struct mp_settings *s)
{
    int rc = 0;

    mp_pipeline_use(h->pipeline, s->head_conf, "");
    for (size_t i = 0; i < p->nview && !rc; i++) {
        rc = mp_picture_job_see(&(struct mp_look){p, i}, 1, h->pipeline,
                                &p->err);
        if (!rc)
            rc = mp_picture_job_merge(p, s, h->pipeline);
        if (!rc)
            rc = mp_picture_job_settle(p, h->pipeline);
    }
    return rc;
}

/* Any result, whose sizes are the picture's business. */
static json_t *describe_output(const struct mp_kept *k)
{
    json_t *shape = json_array();
    int is_png = !strcmp(k->suffix, "png");

    for (int i = 0; i < k->ndim; i++)
        json_array_append_new(shape,
                              json_integer(is_png && i == 2 ? k->dim[i] : -1));
    return json_pack("{s:s, s:s, s:s, s:o}", "kind", k->kind, "suffix",
                     k->suffix, "dtype", mp_dtype_name(k->dtype), "shape",
                     shape);
}

/* All kinds of results that there can be: "ids" are of classes with a
 * label_id. */
static json_t *describe_formats(const struct mp_settings *s)
{
    int has_ids = !s->classes || s->classes->label_id;
    json_t *list = json_array();
    const char *word;
    size_t at = 0, n;
    int is_default;

    while ((n = mp_format_next(s->plugin->formats, &at, &word, &is_default)))
        if (has_ids || n != 3 || memcmp(word, "ids", n))
            json_array_append_new(list, json_stringn(word, n));
    json_array_append_new(list, json_string(MP_KIND_RAW));
    return list;
}

static char *all_formats(const struct mp_settings *s)
{
    json_t *list = describe_formats(s), *word;
    struct mp_text text;
    size_t i;

    if (mp_text_open(&text)) {
        json_decref(list);
        return NULL;
    }
    json_array_foreach(list, i, word)
        fprintf(text.f, "%s ", json_string_value(word));
    json_decref(list);
    return mp_text_close(&text) ? NULL : text.bytes;
}

static int try_out(struct hosted *h, struct mp_error *err)
{
    struct mp_settings *s = NULL;
    struct mp_keep keep = {.plain = 1};
    struct mp_input input = {.path = (char *)"trial", .stem = (char *)"trial"};
    struct mp_picture_job p = {
        .keep = &keep, .source = {TRIAL, TRIAL, malloc(TRIAL * TRIAL * 3)}};
    char *formats = all_formats(h->settings);
    int rc = p.source.rgb && formats ? 0 : no_memory(&p.err);

    if (!rc) {
        memset(p.source.rgb, 128, TRIAL * TRIAL * 3);
        rc = mp_settings_vary(&s, h->settings, NULL, NULL, 0, formats, &p.err);
    }
    /* where people are listed by picture, this is none of them */
    if (!rc && !(p.box = calloc(1, sizeof *p.box)))
        rc = no_memory(&p.err);
    if (!rc) {
        p.box[p.nbox++] = (struct mp_box){.w = TRIAL, .h = TRIAL, .score = 1};
        rc = mp_picture_job_open(&p, &input, s);
    }
    if (!rc)
        rc = see_trial(&p, h, s);
    h->outputs = json_array();
    if (!rc) {
        unsigned before = mp_json_losses();

        mp_picture_job_write(&p, s, ""); /* kinds may exclude each other */
        for (size_t i = 0; i < keep.n; i++)
            json_array_append_new(h->outputs, describe_output(&keep.at[i]));
        rc = mp_json_losses() != before ? no_memory(&p.err) : 0;
    }
    if (rc)
        *err = p.err;
    mp_picture_job_free(&p);
    mp_keep_free(&keep);
    mp_settings_free(s);
    free(formats);
    return rc;
}

/* ---- describing ---- */

static const char *type_name(enum mp_option_type t)
{
    static const char *const names[] = {"bool",   "int",   "float", "string",
                                        "choice", "flags", "size"};

    return names[t];
}

static json_t *describe_options(const struct mp_plugin *head)
{
    json_t *list = json_array();

    for (const struct mp_option *o = head->options; o && o->name; o++)
        json_array_append_new(
            list,
            json_pack("{s:s, s:s, s:s*, s:s*, s:s*, s:s*}", "name", o->name,
                      "type", type_name(o->type), "default", o->def, "choices",
                      o->choices, "unit", o->unit, "help", o->help));
    return list;
}

static json_t *list_kinds(const struct mp_settings *s)
{
    json_t *list = json_array();

    for (char **k = s->kinds; *k; k++)
        json_array_append_new(list, json_string(*k));
    return list;
}

/* NULL: out of memory. */
static json_t *describe(const struct hosted *h)
{
    const struct mp_settings *s = h->settings;
    unsigned before = mp_json_losses();
    struct mp_pipeline_times t;
    json_t *all;

    mp_pipeline_times(h->pipeline, &t);
    all = json_pack(
        "{s:s, s:s, s:O, s:o, s:o, s:o, s:o, s:b, s:i, s:o, s:o, s:o, s:o, "
        "s:o, s:f}",
        "head", s->plugin->name, "summary", s->plugin->summary, "outputs",
        h->outputs, "formats", describe_formats(s), "kinds", list_kinds(s),
        "options", describe_options(s->plugin), "settings", mp_settings_json(s),
        "uses_boxes", s->plugin->uses_boxes, "batch", (int)h->batch,
        "checkpoint", mp_record_checkpoint(s->checkpoint), "backend",
        json_stringn(mp_pipeline_backend(h->pipeline),
                     strcspn(mp_pipeline_backend(h->pipeline), " ")),
        "device", mp_json_text(mp_pipeline_device(h->pipeline)), "precision",
        mp_json_text(mp_pipeline_precision(h->pipeline)), "network",
        mp_json_text(mp_pipeline_network_text(h->pipeline)), "load_seconds",
        t.load);
    if (mp_json_losses() == before)
        return all;
    json_decref(all);
    return NULL;
}

/* ---- loading ---- */

/* What the section sets is given as by -o, which is not where it stands. */
static void name_place(struct mp_error *err, const char *name)
{
    char text[sizeof err->text];

    if (strncmp(err->text, "-o ", 3))
        return;
    snprintf(text, sizeof text, "%s", err->text + 3);
    mp_fail(err, err->code, "[pipeline %s] %s", name, text);
}

static int open_settings(struct hosted *h, const json_t *text,
                         struct mp_error *err)
{
    const char *file = json_string_value(json_object_get(text, "config"));
    const json_t *assign = json_object_get(text, "assign");
    size_t n = json_array_size(assign);
    const char **list = calloc(n + 1, sizeof *list);
    int rc;

    if (!list)
        return no_memory(err);
    for (size_t i = 0; i < n; i++)
        list[i] = json_string_value(json_array_get(assign, i));
    if (file)
        rc = mp_settings_open(&h->settings, file, list, n, err);
    else
        rc = mp_settings_inline(
            &h->settings, json_string_value(json_object_get(text, "folder")),
            list, n, err);
    free(list);
    if (!rc)
        return mp_settings_files(h->settings, err);
    name_place(err, json_string_value(json_object_get(text, "name")));
    return rc;
}

static int open_host(struct hosted *h, struct mp_devices *devices,
                     const struct mp_message *m, struct mp_error *err)
{
    const json_t *window = json_object_get(m->text, "batch_window");
    int rc = open_settings(h, m->text, err);

    h->id = m->id;
    if (rc)
        return rc;
    h->window = json_number_value(window) / 1e3;
    rc = mp_settings_pipeline(&h->pipeline, h->settings, devices, err);
    if (rc)
        return rc;
    h->batch = mp_pipeline_batch(h->pipeline, 0, 0, 0);
    return try_out(h, err);
}

void mp_host_close(struct hosted *h)
{
    mp_pipeline_close(h->pipeline);
    mp_settings_free(h->settings);
    json_decref(h->outputs);
    free(h);
}

void mp_worker_load(struct worker *w, const struct mp_message *m)
{
    struct mp_message reply = {
        .type = MP_LOADED, .id = m->id, .blob = MP_NO_BLOB};
    struct hosted *h = calloc(1, sizeof *h);
    struct mp_error err = {0};
    int rc;

    rc = h && !m->code ? open_host(h, &w->devices, m, &err) : no_memory(&err);
    if (!rc && !(reply.text = describe(h)))
        rc = no_memory(&err);
    if (rc)
        reply.text = json_pack("{s:o}", "error", mp_json_text(err.text));
    reply.code = rc;
    if (rc && h) {
        mp_host_close(h);
    } else if (!rc) {
        pthread_mutex_lock(&w->lock);
        h->next = w->hosts;
        w->hosts = h;
        pthread_mutex_unlock(&w->lock);
    }
    mp_worker_tell_memory(w);
    mp_worker_send(w, &reply);
}

void mp_worker_unload(struct worker *w, const struct mp_message *m)
{
    struct mp_message reply = {
        .type = MP_UNLOADED, .id = m->id, .blob = MP_NO_BLOB};
    struct hosted *h = NULL;

    pthread_mutex_lock(&w->lock);
    for (struct hosted **p = &w->hosts; *p && !h; p = &(*p)->next)
        if ((*p)->id == m->id) {
            h = *p;
            *p = h->next;
            break;
        }
    while (h && h->ntask && !w->quit)
        pthread_cond_wait(&w->changed, &w->lock);
    pthread_mutex_unlock(&w->lock);
    if (h)
        mp_host_close(h);
    mp_worker_tell_memory(w);
    mp_worker_send(w, &reply);
}
