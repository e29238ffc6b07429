/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdio.h>
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

int mp_json_read(json_t **out, const char *path, size_t most,
                 struct mp_error *err)
{
    struct source s = {.f = fopen(path, "rb"), .left = most};
    json_error_t e;

    *out = NULL;
    if (s.f == NULL)
        return mp_fail(err, MP_EIO, "%s: %s", path, strerror(errno));
    *out = json_load_callback(pull, &s, JSON_REJECT_DUPLICATES, &e);
    fclose(s.f);
    if (s.code != 0) {
        json_decref(*out);
        *out = NULL;
        return mp_fail(err, s.code == EFBIG ? MP_EFORMAT : MP_EIO, "%s: %s",
                       path, strerror(s.code));
    }
    if (*out == NULL)
        return mp_fail(err, MP_EFORMAT, "%s:%d:%d: %s", path, e.line, e.column,
                       e.text);
    return 0;
}
