/* SPDX-License-Identifier: MIT */
/*
 * json.h - JSON from outside: a key that is given twice is refused, and memory
 * that ran out is told from a wrong text, which Jansson does not do. Threads:
 * no state.
 */
#ifndef CORE_JSON_H
#define CORE_JSON_H

#include <jansson.h>
#include "mpipe/base.h"

/* A file, which may have up to `most` bytes; errors tell file, line and column.
 * json_decref *out. */
int mp_json_read(json_t **out, const char *path, size_t most,
                 struct mp_error *err);

/* n bytes; errors are Jansson's text, the byte is in *why. json_decref *out. */
int mp_json_parse(json_t **out, const void *bytes, size_t n, json_error_t *why,
                  struct mp_error *err);

#endif
