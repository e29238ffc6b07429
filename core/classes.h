/* SPDX-License-Identifier: MIT */
/*
 * classes.h - class tables of segmentation: names and palette.
 *
 * A file is JSON: {"name": "ADE20K", "classes": [{"name": "wall",
 * "color": [120, 120, 120]}, ...]}, class 0 first; an entry may have an "id",
 * which must be its place, and, as all the others then, a "label_id": the
 * number 0..65535 that stands for it in the data set's own label maps. Other
 * members are ignored. What mp_classes_write writes is such a file too, without
 * the label_id.
 *
 * Files are untrusted: size, count and every entry are checked. Threads:
 * read-only after open, so any thread.
 */
#ifndef CORE_CLASSES_H
#define CORE_CLASSES_H

#include "mpipe/plugin.h" /* struct mp_classes */

#define MP_CLASSES_MAX 65535

/* Errors name the file and the entry. */
int mp_classes_open(struct mp_classes **out, const char *path,
                    struct mp_error *err);
void mp_classes_free(struct mp_classes *c); /* NULL: nothing */

/* labels.json beside label maps, one class in a line. */
int mp_classes_write(const struct mp_classes *c, const char *path,
                     struct mp_error *err);

#endif
