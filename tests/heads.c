/* SPDX-License-Identifier: MIT */
#include "heads.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "golden.h"

/* ---- a sink that keeps everything ---- */

int mp_sink_wants(const struct mp_sink *s, const char *kind)
{
    const char *at = strstr(s->wants, kind);

    return at && (at == s->wants || at[-1] == ' ');
}

const struct mp_classes *mp_sink_classes(const struct mp_sink *s)
{
    return s->classes.count ? &s->classes : NULL;
}

static struct kept *keep(struct mp_sink *s, const char *kind, const void *px,
                         size_t bytes)
{
    struct kept *k = &s->kept[s->n++];

    ck_assert_uint_le(s->n, 4);
    k->kind = kind;
    k->px = malloc(bytes);
    memcpy(k->px, px, bytes);
    return k;
}

int mp_sink_png(struct mp_sink *s, const char *kind, const struct mp_png *png,
                struct mp_error *err)
{
    size_t n = (size_t)png->width * (size_t)png->height;
    struct kept *k =
        keep(s, kind, png->px,
             n * (size_t)png->channels * (png->bits == 16 ? 2 : 1));

    (void)err;
    k->png = *png;
    for (size_t i = 0; i < png->ntext && i < 4; i++) {
        snprintf(k->text[i][0], 96, "%s", png->text[i].key);
        snprintf(k->text[i][1], 96, "%s", png->text[i].value);
    }
    return 0;
}

int mp_sink_npy(struct mp_sink *s, const char *kind, const struct mp_tensor *t,
                struct mp_error *err)
{
    size_t n = (size_t)mp_shape_count(t->ndim, t->dim);

    (void)err;
    keep(s, kind, t->data, n * mp_dtype_size(t->dtype))->npy = *t;
    return 0;
}

int mp_sink_json(struct mp_sink *s, const char *kind, const char *text,
                 struct mp_error *err)
{
    (void)err;
    keep(s, kind, text, strlen(text) + 1);
    return 0;
}

void sink_free(struct mp_sink *s)
{
    for (size_t i = 0; i < s->n; i++)
        free(s->kept[i].px);
}

/* ---- a configured head ---- */

int configure(struct head *h, const char *name, const char *settings,
              struct mp_error *err)
{
    char words[256], full[300], *save = NULL;
    int rc = mp_head_find(&h->p, name, err);

    ck_assert_msg(!rc, "%s", err->text);
    h->c = mp_conf_new();
    h->conf = calloc(1, h->p->conf_size);
    snprintf(words, sizeof words, "%s", settings);
    for (char *w = strtok_r(words, " ", &save); w && !rc;
         w = strtok_r(NULL, " ", &save)) {
        snprintf(full, sizeof full, "%s.%s", name, w);
        rc = mp_conf_set(h->c, full, err);
    }
    if (!rc)
        rc = mp_conf_section(h->c, name, h->p->options, h->conf, err);
    if (!rc)
        rc = mp_conf_finish(h->c, NULL, err);
    return rc ? rc : h->p->check(h->conf, err);
}

struct head head_new(const char *name, const char *settings)
{
    struct mp_error err = {0};
    struct head h;

    ck_assert_msg(!configure(&h, name, settings, &err), "%s", err.text);
    return h;
}

void head_free(struct head *h)
{
    mp_conf_free(h->c);
    free(h->conf);
}

/* ---- what it says ---- */

long views(const struct head *h, int w, int hh, struct mp_view *v)
{
    struct mp_image img = {.name = "x", .width = w, .height = hh};
    struct mp_error err = {0};
    long n = h->p->views(h->conf, &img, v, CAP, &err);

    ck_assert_msg(n > 0, "%s", err.text);
    ck_assert_int_eq(n, h->p->views(h->conf, &img, NULL, 0, &err));
    return n;
}

void decode(const struct head *h, const struct mp_image *img,
            const struct mp_tensor *t, struct mp_sink *sink)
{
    struct mp_error err = {0};

    ck_assert_msg(!h->p->decode(h->conf, img, t, 1, sink, &err), "%s",
                  err.text);
}

/* ---- running a graph ---- */

int run_on(struct result *r, const struct mp_backend *backend,
           const struct mp_graph *g, const void *const *in,
           struct mp_error *err)
{
    static const struct mp_device_conf one = {0};
    int rc;

    memset(r, 0, sizeof *r);
    r->arena.backend = backend;
    ck_assert(!backend->open(&r->arena.device, &one, err));
    rc = mp_session_new(&r->s, &r->arena, g, MP_F32, err);
    if (rc)
        return rc;
    r->n = mp_session_outputs(r->s);
    ck_assert_uint_le(r->n, ROOM);
    for (size_t i = 0; i < r->n; i++) {
        mp_session_output(r->s, i, &r->t[i]);
        r->data[i] = malloc((size_t)mp_shape_count(r->t[i].ndim, r->t[i].dim) *
                            sizeof(float));
        r->t[i].data = r->data[i];
    }
    return mp_session_run(r->s, in, r->data, err);
}

int run(struct result *r, const struct mp_graph *g, const void *const *in,
        struct mp_error *err)
{
    return run_on(r, &mp_backend_ref, g, in, err);
}

void result_free(struct result *r)
{
    for (size_t i = 0; i < r->n; i++)
        free(r->data[i]);
    mp_session_free(r->s);
    mp_arena_free(&r->arena);
    r->arena.backend->close(r->arena.device);
}

void same_bytes(const struct golden *g, const char *name, const void *px)
{
    const struct golden_tensor *t = golden_get(g, name);

    ck_assert_ptr_nonnull(t);
    ck_assert_msg(!memcmp(px, t->data, t->count), "%s differs", name);
}
