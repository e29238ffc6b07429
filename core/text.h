/* SPDX-License-Identifier: MIT */
/*
 * text.h - a stream into memory. Other than those of open_memstream, which
 * lose what there was no memory for and go on, it ends whole or not at all.
 *
 * Life cycle: open, write to f, close; then free bytes. Threads: no state.
 */
#ifndef CORE_TEXT_H
#define CORE_TEXT_H

#include <stdio.h>

struct mp_text {
    FILE *f;
    char *bytes; /* malloc'd, a NUL behind them; after close */
    size_t n, cap;
};

/* Nonzero: out of memory, and there is nothing to close. */
int mp_text_open(struct mp_text *t);
/* Bytes so far; fewer than were written: out of memory. */
size_t mp_text_length(struct mp_text *t);
/* Nonzero: out of memory, and bytes is NULL. */
int mp_text_close(struct mp_text *t);

#endif
