/* SPDX-License-Identifier: MIT */
/*
 * sink.h - where the results of one picture go: OUT/stem.kind.suffix, or
 * memory.
 *
 * Heads see it through mpipe/plugin.h. Files are written under a temporary
 * name and renamed. A failure to write is MP_EIO and names the file. Threads:
 * one per sink; sinks of different pictures share what they borrow.
 */
#ifndef CORE_SINK_H
#define CORE_SINK_H

#include "mpipe/plugin.h"

/* A result that stays in memory. */
struct mp_kept {
    char *kind;
    const char *suffix; /* of the file that it would be: png, npy, json */
    char *bytes;        /* of that file; or plain: the numbers, the text */
    size_t n;
    enum mp_dtype dtype; /* plain png and npy; MP_NONE else */
    int ndim;            /* of a png: H x W, or H x W x 3 */
    int64_t dim[MP_RANK];
};
struct mp_keep {
    int plain;
    struct mp_kept *at;
    size_t n;
};
/* One more; all but the suffix is copied. */
int mp_keep_add(struct mp_keep *k, const char *kind, const char *suffix,
                const void *bytes, size_t n, struct mp_error *err);
void mp_keep_free(struct mp_keep *k); /* what it holds */

struct mp_sink { /* all borrowed */
    const char *out;
    const char *stem;                 /* NULL: only asked, never written to */
    char *const *kinds;               /* asked for; NULL ends them */
    const struct mp_plugin *head;     /* whose formats are right */
    const struct mp_classes *classes; /* NULL: not used */
    struct mp_keep *keep;             /* not NULL: here, and to no file */
};

/* Results that are files already, to their places. */
int mp_sink_kept(const struct mp_sink *s, const struct mp_keep *k,
                 struct mp_error *err);
/* Whether all kinds asked for are there. */
int mp_sink_complete(const struct mp_sink *s);
/* MP_EINVAL if the names of the results would be too long. */
int mp_sink_check(const struct mp_sink *s, struct mp_error *err);

#endif
