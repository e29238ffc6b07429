/* SPDX-License-Identifier: MIT */
/*
 * json.h - what Jansson does not do: a key that is given twice is refused, and
 * memory that ran out is noticed. Jansson calls that a wrong text, goes on
 * without the part it had no memory for, or with a letter less. Its allocations
 * are those of libmpipe, so that they can be watched. Threads: a note in each.
 */
#ifndef CORE_JSON_H
#define CORE_JSON_H

#include <jansson.h>
#include "mpipe/base.h"

/* How often there was no memory on this thread. When it is more than before,
 * what has been made since may lack parts. */
unsigned mp_json_losses(void);

/* json_dumps: NULL also when it is not all of it. */
char *mp_json_dump(const json_t *o, size_t flags);

/* A file, which may have up to `most` bytes; errors tell file, line and column.
 * json_decref *out. */
int mp_json_read(json_t **out, const char *path, size_t most,
                 struct mp_error *err);

/* n bytes; errors are Jansson's text, the byte is in *why. json_decref *out. */
int mp_json_parse(json_t **out, const void *bytes, size_t n, json_error_t *why,
                  struct mp_error *err);

#endif
