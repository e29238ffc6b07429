/* SPDX-License-Identifier: MIT */
/*
 * conf.h - INI files against option rows.
 *
 * Life cycle: mp_conf_new; mp_conf_section for each known section;
 * mp_conf_file; mp_conf_set for each -o, which wins over the file; then, since
 * the section of a head is known only when [pipeline] head is:
 * mp_conf_section for that one; mp_conf_finish reports whatever no row asked
 * for. Fields hold their defaults from mp_conf_section on, and their final
 * values after mp_conf_finish.
 *
 * Ownership: the caller owns the configuration structs; strings in them belong
 * to the mp_conf and live until mp_conf_free. Rows are borrowed for ever.
 *
 * Errors name FILE:LINE (or "-o section.key=value"), the key, the value, what
 * would be right, and the nearest known name where one is near.
 */
#ifndef CORE_CONF_H
#define CORE_CONF_H

#include <stdio.h>
#include "mpipe/base.h"

struct mp_conf;

struct mp_conf *mp_conf_new(void); /* NULL: out of memory */
void mp_conf_free(struct mp_conf *c);

/* Declare section `name` with its rows; conf is filled with the defaults at
 * once, then with values already read. Fails on values that do not fit. */
int mp_conf_section(struct mp_conf *c, const char *name,
                    const struct mp_option *rows, void *conf,
                    struct mp_error *err);

/* Read an INI file ("-": standard input). Values of sections declared later
 * are kept until then. Refuses: a key or section given twice (a section may be
 * reopened only with other keys), lines over the limit of inih, section
 * names over 49 bytes, unreadable files, NUL bytes. */
int mp_conf_file(struct mp_conf *c, const char *path, struct mp_error *err);

/* "section.key=value", as after -o. */
int mp_conf_set(struct mp_conf *c, const char *assignment,
                struct mp_error *err);

/* Raw text of a value as read so far (file, -o), NULL if not given. */
const char *mp_conf_get(const struct mp_conf *c, const char *section,
                        const char *key);

/* Was this key given by the file or by -o? */
int mp_conf_given(const struct mp_conf *c, const char *section,
                  const char *key);

/* The sections and keys that were read, in their order, from *at on (0 at
 * first); *key NULL: a [section] line. 0: no more. */
int mp_conf_next(const struct mp_conf *c, size_t *at, const char **section,
                 const char **key);

/* Every key read must belong to a declared section and row. `known` lists
 * further section names that are right, but of no use in this run (the
 * sections of other heads), ended by NULL, or is NULL: those are skipped. */
int mp_conf_finish(struct mp_conf *c, const char *const *known,
                   struct mp_error *err);

/* All declared sections with the values in force, as an INI file that
 * reproduces them, each key with its help as a comment. */
int mp_conf_dump(const struct mp_conf *c, FILE *out);

/* The folder of the file given to mp_conf_file, "." for "-"; or that of
 * mp_conf_in, where there is no file. */
int mp_conf_in(struct mp_conf *c, const char *folder, struct mp_error *err);
const char *mp_conf_folder(const struct mp_conf *c);

/* One row with type, range, unit, default and help: for mpipe-inspect. */
void mp_option_print(const struct mp_option *row, FILE *out);

/* The word of `words` (NULL-ended) nearest to `word` by edit distance, NULL if
 * none is near enough to be meant. */
const char *mp_nearest(const char *word, const char *const *words);

#endif
