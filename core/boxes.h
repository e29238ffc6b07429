/* SPDX-License-Identifier: MIT */
/*
 * boxes.h - the persons in the pictures of a run, from a COCO file:
 * annotations, whose boxes are clipped as the published protocol does, or a
 * detector's list, whose boxes are as they are.
 *
 * Threads: read-only after open.
 */
#ifndef CORE_BOXES_H
#define CORE_BOXES_H

#include "mpipe/plugin.h"

struct mp_boxes;

int mp_boxes_open(struct mp_boxes **out, const char *path,
                  struct mp_error *err);
void mp_boxes_free(struct mp_boxes *b); /* NULL is fine */

/* Those of the picture of this stem, in the file's order: malloc'd, yours to
 * free; there may be none. Annotations know pictures by file name, detectors'
 * lists by the number that is their name; MP_EINVAL: they do not know it. */
int mp_boxes_of(const struct mp_boxes *b, const char *stem, int64_t *id,
                struct mp_box **box, size_t *n, struct mp_error *err);

/* The number that a picture's name is: 000000000785 is 785. -1: none. */
int64_t mp_name_number(const char *stem);

#endif
