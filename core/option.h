/* SPDX-License-Identifier: MIT */
/*
 * option.h - the text of one option row, for conf.c.
 *
 * Numbers are read and written the same in every locale. Threads: no state.
 */
#ifndef CORE_OPTION_H
#define CORE_OPTION_H

#include <stdio.h>
#include "mpipe/base.h"

/* The longest line that every build of inih takes, and how much of a value a
 * message quotes. Bytes. */
#define MP_LINE_MAX 198
#define MP_QUOTE    80

/* Parse text into the row's field of conf. A STRING field then points to text
 * itself. Errors quote the text and say what would be right. */
int mp_option_parse(const struct mp_option *row, void *conf, const char *text,
                    struct mp_error *err);

/* A comment with the help and what is right, and "name = value" from the row's
 * field of conf: read again, it gives the same value. MP_EINVAL, and the value
 * in a comment too, for a STRING that is NULL or that no line of a file can
 * hold; else 0 or MP_ENOMEM. */
int mp_option_write(const struct mp_option *row, const void *conf, FILE *out);

/* The candidate nearest to word so far; start with {.word = word}. */
struct mp_guess {
    const char *word;
    const char *best; /* best_len bytes, not terminated; NULL: none is near */
    size_t best_len;
    size_t distance;
};
void mp_guess_try(struct mp_guess *g, const char *candidate, size_t len);

/* For the end of a message: "; did you mean NAME?", or "". */
struct mp_hint {
    char text[MP_QUOTE];
};
struct mp_hint mp_guess_hint(const struct mp_guess *g);

#endif
