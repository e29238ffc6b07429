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

/* The path for this kind with its folders made, NULL with *rc 0 if it is not
 * asked for, NULL with an error. */
static char *place(const struct mp_sink *s, const char *kind,
                   const char *suffix, int *rc, struct mp_error *err)
{
    char *path;

    *rc = 0;
    if (!is_format(s, kind)) {
        *rc = mp_fail(err, MP_EINVAL, "head %s: \"%s\" is none of its formats",
                      s->head->name, kind);
        return NULL;
    }
    if (!mp_sink_wants(s, kind))
        return NULL;
    path = path_of(s, kind, suffix);
    *rc = path ? mp_file_parents(path, err)
               : mp_fail(err, MP_ENOMEM, "out of memory");
    if (*rc) {
        free(path);
        return NULL;
    }
    return path;
}

int mp_sink_png(struct mp_sink *s, const char *kind, const struct mp_png *png,
                struct mp_error *err)
{
    int rc;
    char *path = place(s, kind, "png", &rc, err);

    if (path)
        rc = mp_png_write(path, png, err);
    free(path);
    return rc;
}

int mp_sink_npy(struct mp_sink *s, const char *kind, const struct mp_tensor *t,
                struct mp_error *err)
{
    int rc;
    char *path = place(s, kind, "npy", &rc, err);

    if (path)
        rc = mp_npy_write(path, t->dtype, t->ndim, t->dim, t->data, err);
    free(path);
    return rc;
}

int mp_sink_json(struct mp_sink *s, const char *kind, const char *text,
                 struct mp_error *err)
{
    int rc;
    char *path = place(s, kind, "json", &rc, err);

    if (path)
        rc = mp_file_write(path, text, strlen(text), err);
    free(path);
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
