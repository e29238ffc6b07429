/* SPDX-License-Identifier: MIT */
/* text.c - see text.h. */
#include <stdlib.h>
#include <string.h>
#include "text.h"

#define FIRST 256 /* bytes */

/* A short count makes it an error of the stream. */
static ssize_t take(void *user, const char *bytes, size_t n)
{
    struct mp_text *t = user;
    size_t cap = t->cap ? t->cap : FIRST;
    char *more;

    while (cap - t->n <= n) {
        if (__builtin_mul_overflow(cap, 2, &cap))
            return 0;
    }
    if (cap > t->cap) {
        more = realloc(t->bytes, cap);
        if (!more)
            return 0;
        t->bytes = more;
        t->cap = cap;
    }
    memcpy(t->bytes + t->n, bytes, n);
    t->n += n;
    t->bytes[t->n] = '\0';
    return (ssize_t)n;
}

int mp_text_open(struct mp_text *t)
{
    *t = (struct mp_text){.f = NULL};
    t->f = fopencookie(t, "w", (cookie_io_functions_t){.write = take});
    return !t->f;
}

size_t mp_text_length(struct mp_text *t)
{
    fflush(t->f);
    return t->n;
}

int mp_text_close(struct mp_text *t)
{
    int bad = ferror(t->f);

    bad |= fclose(t->f);
    if (!bad && !t->bytes) {
        take(t, "", 0);
        bad = !t->bytes;
    }
    if (bad) {
        free(t->bytes);
        t->bytes = NULL;
    }
    t->f = NULL;
    return bad;
}
