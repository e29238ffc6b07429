/* SPDX-License-Identifier: MIT */
/*
 * sink.h - where the results of one picture go: OUT/stem.kind.suffix.
 *
 * Heads see it through mpipe/plugin.h. Files are written under a temporary
 * name and renamed. A failure to write is MP_EIO and names the file. Threads:
 * one per sink; sinks of different pictures share what they borrow.
 */
#ifndef CORE_SINK_H
#define CORE_SINK_H

#include "mpipe/plugin.h"

struct mp_sink { /* all borrowed */
    const char *out;
    const char *stem;                 /* NULL: only asked, never written to */
    char *const *kinds;               /* asked for; NULL ends them */
    const struct mp_plugin *head;     /* whose formats are right */
    const struct mp_classes *classes; /* NULL: not used */
};

/* Whether all kinds asked for are there. */
int mp_sink_complete(const struct mp_sink *s);
/* MP_EINVAL if the names of the results would be too long. */
int mp_sink_check(const struct mp_sink *s, struct mp_error *err);

#endif
