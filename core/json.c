/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"

struct source {
    FILE *f;
    size_t left;
    int code; /* errno of a failure, EFBIG: larger than the limit */
};

static size_t pull(void *buf, size_t size, void *user)
{
    struct source *s = user;
    size_t n = fread(buf, 1, size, s->f);

    if (ferror(s->f))
        s->code = errno;
    else if (n > s->left)
        s->code = EFBIG;
    if (s->code != 0)
        return (size_t)-1;
    s->left -= n;
    return n;
}

/* ---- memory ---- */

static _Thread_local unsigned losses;

static void *allocate(size_t n)
{
    void *p = malloc(n);

    losses += p == NULL;
    return p;
}

/* Before any thread could be at it. */
__attribute__((constructor)) static void watch(void)
{
    json_set_alloc_funcs(allocate, free);
}

unsigned mp_json_losses(void)
{
    return losses;
}

/* What Jansson's answer means. */
static int wrong(json_t **got, unsigned before)
{
    if (losses != before) {
        json_decref(*got);
        *got = NULL;
        return MP_ENOMEM;
    }
    return *got == NULL ? MP_EFORMAT : 0;
}

/* ---- texts ---- */

int mp_json_read(json_t **out, const char *path, size_t most,
                 struct mp_error *err)
{
    struct source s = {.f = fopen(path, "rb"), .left = most};
    unsigned before = losses;
    json_error_t e;
    int code;

    *out = NULL;
    if (s.f == NULL)
        return mp_fail(err, MP_EIO, "%s: %s", path, strerror(errno));
    *out = json_load_callback(pull, &s, JSON_REJECT_DUPLICATES, &e);
    code = wrong(out, before);
    fclose(s.f);
    if (s.code != 0) {
        json_decref(*out);
        *out = NULL;
        return mp_fail(err, s.code == EFBIG ? MP_EFORMAT : MP_EIO, "%s: %s",
                       path, strerror(s.code));
    }
    if (code == MP_ENOMEM)
        return mp_fail(err, code, "%s: out of memory", path);
    if (code != 0)
        return mp_fail(err, code, "%s:%d:%d: %s", path, e.line, e.column,
                       e.text);
    return 0;
}

int mp_json_parse(json_t **out, const void *bytes, size_t n, json_error_t *why,
                  struct mp_error *err)
{
    unsigned before = losses;
    int code;

    *out = json_loadb(bytes, n, JSON_REJECT_DUPLICATES, why);
    code = wrong(out, before);
    if (code != 0)
        mp_fail(err, code, "%s",
                code == MP_ENOMEM ? "out of memory" : why->text);
    return code;
}

char *mp_json_dump(const json_t *o, size_t flags)
{
    unsigned before = losses;
    char *text = json_dumps(o, flags);

    if (losses == before)
        return text;
    free(text);
    return NULL;
}
