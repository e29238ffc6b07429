/* SPDX-License-Identifier: MIT */
/* sink.c - names, encodes and writes results. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "image.h"
#include "settings.h"
#include "sink.h"
#include "text.h"

static const char *const suffixes[] = {"png", "npy", "json"};

int mp_sink_wants(const struct mp_sink *s, const char *kind)
{
    for (char *const *k = s->kinds; *k; k++)
        if (!strcmp(*k, kind))
            return 1;
    return 0;
}

const struct mp_classes *mp_sink_classes(const struct mp_sink *s)
{
    return s->classes;
}

const uint8_t (*mp_colormap_rainbow(void))[3]
{
    return mp_rainbow;
}

static int is_format(const struct mp_sink *s, const char *kind)
{
    size_t at = 0, n;
    const char *word;
    int unused;

    while ((n = mp_format_next(s->head->formats, &at, &word, &unused)))
        if (n == strlen(kind) && !memcmp(word, kind, n))
            return 1;
    return !strcmp(kind, MP_KIND_RAW);
}

static char *path_of(const struct mp_sink *s, const char *kind,
                     const char *suffix)
{
    char *path;

    return asprintf(&path, "%s/%s.%s.%s", s->out, s->stem, kind, suffix) < 0
               ? NULL
               : path;
}

/* Nonzero: the kind is asked for; 0 with *rc nonzero: it is no kind. */
static int is_due(const struct mp_sink *s, const char *kind, int *rc,
                  struct mp_error *err)
{
    *rc = 0;
    if (!is_format(s, kind)) {
        *rc = mp_fail(err, MP_EINVAL, "head %s: \"%s\" is none of its formats",
                      s->head->name, kind);
        return 0;
    }
    return mp_sink_wants(s, kind);
}

/* The path for this kind with its folders made. */
static char *place(const struct mp_sink *s, const char *kind,
                   const char *suffix, int *rc, struct mp_error *err)
{
    char *path = path_of(s, kind, suffix);

    *rc = path ? mp_file_parents(path, err)
               : mp_fail(err, MP_ENOMEM, "out of memory");
    if (*rc) {
        free(path);
        return NULL;
    }
    return path;
}

/* ---- results that stay in memory ---- */

void mp_keep_free(struct mp_keep *k)
{
    for (size_t i = 0; i < k->n; i++) {
        free(k->at[i].kind);
        free(k->at[i].bytes);
    }
    free(k->at);
    *k = (struct mp_keep){.plain = k->plain};
}

/* A place for one more; the bytes are to follow. */
static struct mp_kept *add_kept(struct mp_keep *k, const char *kind,
                                const char *suffix)
{
    struct mp_kept *more = realloc(k->at, (k->n + 1) * sizeof *more);
    char *copy = strdup(kind);

    if (more)
        k->at = more;
    if (!more || !copy) {
        free(copy);
        return NULL;
    }
    more += k->n++;
    *more = (struct mp_kept){.kind = copy, .suffix = suffix};
    return more;
}

int mp_keep_add(struct mp_keep *k, const char *kind, const char *suffix,
                const void *bytes, size_t n, struct mp_error *err)
{
    struct mp_kept *one = add_kept(k, kind, suffix);

    if (!one || !(one->bytes = malloc(n + !n)))
        return mp_fail(err, MP_ENOMEM, "out of memory");
    memcpy(one->bytes, bytes, n);
    one->n = n;
    return 0;
}

/* The file that `encode` makes of x, in memory. */
static int keep_file(struct mp_keep *k, const char *kind, const char *suffix,
                     int (*encode)(FILE *f, const void *x,
                                   struct mp_error *err),
                     const void *x, struct mp_error *err)
{
    struct mp_kept *one = add_kept(k, kind, suffix);
    struct mp_text text;
    int rc;

    if (!one || mp_text_open(&text))
        return mp_fail(err, MP_ENOMEM, "out of memory");
    rc = encode(text.f, x, err);
    if (mp_text_close(&text))
        return rc ? rc : mp_fail(err, MP_ENOMEM, "out of memory");
    one->bytes = text.bytes;
    one->n = text.n;
    return rc;
}

static int encode_png(FILE *f, const void *x, struct mp_error *err)
{
    return mp_png_encode(f, x, err);
}

static int encode_npy(FILE *f, const void *x, struct mp_error *err)
{
    const struct mp_tensor *t = x;

    return mp_npy_encode(f, t->dtype, t->ndim, t->dim, t->data, err);
}

static int keep_png(struct mp_keep *k, const char *kind,
                    const struct mp_png *png, struct mp_error *err)
{
    int rc;

    if (!k->plain)
        return keep_file(k, kind, "png", encode_png, png, err);
    rc = mp_keep_add(k, kind, "png", png->px,
                     (size_t)png->width * (size_t)png->height *
                         (size_t)png->channels * (size_t)(png->bits / 8),
                     err);
    if (rc)
        return rc;
    k->at[k->n - 1].dtype = png->bits == 16 ? MP_U16 : MP_U8;
    k->at[k->n - 1].ndim = png->channels == 1 ? 2 : 3;
    memcpy(k->at[k->n - 1].dim,
           (int64_t[]){png->height, png->width, png->channels},
           3 * sizeof(int64_t));
    return 0;
}

static int keep_npy(struct mp_keep *k, const char *kind,
                    const struct mp_tensor *t, struct mp_error *err)
{
    size_t n = mp_dtype_size(t->dtype);
    int rc;

    if (!k->plain)
        return keep_file(k, kind, "npy", encode_npy, t, err);
    for (int i = 0; i < t->ndim; i++)
        n *= (size_t)t->dim[i];
    rc = mp_keep_add(k, kind, "npy", t->data, n, err);
    if (rc)
        return rc;
    k->at[k->n - 1].dtype = t->dtype;
    k->at[k->n - 1].ndim = t->ndim;
    memcpy(k->at[k->n - 1].dim, t->dim, sizeof t->dim);
    return 0;
}

/* ---- what heads call ---- */

int mp_sink_png(struct mp_sink *s, const char *kind, const struct mp_png *png,
                struct mp_error *err)
{
    char *path;
    int rc;

    if (!is_due(s, kind, &rc, err))
        return rc;
    if (s->keep)
        return keep_png(s->keep, kind, png, err);
    path = place(s, kind, "png", &rc, err);
    if (path)
        rc = mp_png_write(path, png, err);
    free(path);
    return rc;
}

int mp_sink_npy(struct mp_sink *s, const char *kind, const struct mp_tensor *t,
                struct mp_error *err)
{
    char *path;
    int rc;

    if (!is_due(s, kind, &rc, err))
        return rc;
    if (s->keep)
        return keep_npy(s->keep, kind, t, err);
    path = place(s, kind, "npy", &rc, err);
    if (path)
        rc = mp_npy_write(path, t->dtype, t->ndim, t->dim, t->data, err);
    free(path);
    return rc;
}

int mp_sink_json(struct mp_sink *s, const char *kind, const char *text,
                 struct mp_error *err)
{
    char *path;
    int rc;

    if (!is_due(s, kind, &rc, err))
        return rc;
    if (s->keep)
        return mp_keep_add(s->keep, kind, "json", text, strlen(text), err);
    path = place(s, kind, "json", &rc, err);
    if (path)
        rc = mp_file_write(path, text, strlen(text), err);
    free(path);
    return rc;
}

int mp_sink_kept(const struct mp_sink *s, const struct mp_keep *k,
                 struct mp_error *err)
{
    int rc = 0;

    for (size_t i = 0; i < k->n && !rc; i++) {
        const struct mp_kept *one = &k->at[i];
        char *path;

        if (!is_due(s, one->kind, &rc, err))
            continue;
        path = place(s, one->kind, one->suffix, &rc, err);
        if (path)
            rc = mp_file_write(path, one->bytes, one->n, err);
        free(path);
    }
    return rc;
}

int mp_sink_complete(const struct mp_sink *s)
{
    for (char *const *k = s->kinds; *k; k++) {
        int found = 0;

        for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++) {
            char *path = path_of(s, *k, suffixes[i]);

            found |= path && !access(path, F_OK);
            free(path);
        }
        if (!found)
            return 0;
    }
    return 1;
}

int mp_sink_check(const struct mp_sink *s, struct mp_error *err)
{
    const char *slash = strrchr(s->stem, '/');
    const char *name = slash ? slash + 1 : s->stem;
    size_t most = 0;

    for (char *const *k = s->kinds; *k; k++)
        if (most < strlen(*k))
            most = strlen(*k);
    if (strlen(name) + most + strlen("..json") > NAME_MAX)
        return mp_fail(err, MP_EINVAL,
                       "the names of its results would be longer than %d bytes",
                       NAME_MAX);
    return 0;
}
