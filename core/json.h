/* SPDX-License-Identifier: MIT */
/*
 * json.h - JSON files from outside: read whole, their size limited, errors
 * with file, line and column. Threads: no state.
 */
#ifndef CORE_JSON_H
#define CORE_JSON_H

#include <jansson.h>
#include "mpipe/base.h"

/* json_decref *out; a file of more than `most` bytes is refused, and so is a
 * key given twice. */
int mp_json_read(json_t **out, const char *path, size_t most,
                 struct mp_error *err);

#endif
