/* SPDX-License-Identifier: MIT */
/*
 * settings.h - what a run was told: the sections of a configuration, the
 * chosen head with its own section, and the files that they name.
 *
 * Life cycle: mp_settings_open (file, -o, head, all values checked);
 * mp_settings_files (checkpoint, classes and boxes found and, but for the
 * first, read); mp_settings_free. Threads: main (heads are modules); read-only
 * afterwards.
 *
 * Files are looked for: a path from the root: there. Else a checkpoint in the
 * folder of the configuration, then in those of MPIPE_MODEL_PATH, then in the
 * installed models; classes by a file name likewise in the folder of the
 * configuration; by a bare word W as classes/W.json in the folders of
 * MPIPE_DATA_PATH, then in the installed conf; boxes in the folder of the
 * configuration, then in the current one.
 */
#ifndef CORE_SETTINGS_H
#define CORE_SETTINGS_H

#include <jansson.h>
#include <stdio.h>
#include "mpipe/plugin.h"

/* How results are compared with ground truth; for mpipe-eval alone. */
struct mp_eval_conf {
    int32_t crop; /* enum mp_crop */
    int32_t kb_crop;
    double min_depth, max_depth;  /* metres */
    int32_t gt_scale, pred_scale; /* units per metre; -1: as the file says */
    int32_t double_count;         /* processes */
    int32_t reduce_zero_label, ignore_label;
    int32_t gt_labels, pred_labels; /* enum mp_label_kind */
    int32_t coco_tools;             /* enum mp_coco_tools */
};
enum mp_label_kind { MP_LABELS_INDEX, MP_LABELS_IDS, MP_LABELS_AUTO };

struct mp_settings {
    struct {
        char *head, *classes, *boxes;
    } pipeline;
    struct {
        char *checkpoint;
        int32_t strict;
    } model;
    struct {
        char *backend;
        int32_t precision;      /* enum mp_precision */
        int32_t threads, batch; /* -1: auto */
        int32_t autotune;
    } compute;
    struct {
        char *formats;
    } output;
    struct {
        char *socket;
    } daemon;
    struct mp_eval_conf eval;

    const struct mp_plugin *plugin; /* NULL: no head was named */
    void *head_conf;                /* its section */
    char **kinds;                   /* of results, in the head's order; NULL
                                       ends them */
    char *checkpoint;               /* path that exists; mp_settings_files */
    struct mp_classes *classes;     /* NULL: not used; mp_settings_files */
    struct mp_boxes *boxes;         /* likewise */
    struct mp_conf *conf;
    const struct mp_settings *of; /* mp_settings_vary: of this; else NULL */
    char **texts;                 /* what its strings are */
};

/* The kind that every head has: what the network gives, untouched. */
#define MP_KIND_RAW "raw"

/* file: NULL is none, "-" standard input; assign: n texts as after -o. A head
 * need not be named: then its section and the formats are not checked. */
int mp_settings_open(struct mp_settings **out, const char *file,
                     const char *const *assign, size_t n, struct mp_error *err);
/* Without a file, but as if one were in this folder. */
int mp_settings_inline(struct mp_settings **out, const char *folder,
                       const char *const *assign, size_t n,
                       struct mp_error *err);
void mp_settings_free(struct mp_settings *s); /* NULL is fine */

/* The same settings but for n of the head's options, given as texts, and the
 * formats (NULL: the same), both checked as those of a file are. s is borrowed
 * until *out, which mp_settings_free frees, is gone. Any thread. */
int mp_settings_vary(struct mp_settings **out, const struct mp_settings *s,
                     const char *const *key, const char *const *value, size_t n,
                     const char *formats, struct mp_error *err);

int mp_settings_files(struct mp_settings *s, struct mp_error *err);
/* The classes alone, if the head uses them. */
int mp_settings_classes(struct mp_settings *s, struct mp_error *err);
/* The pipeline that they describe; after mp_settings_files. devices: to share,
 * or NULL. */
struct mp_pipeline;
struct mp_devices;
int mp_settings_pipeline(struct mp_pipeline **p, const struct mp_settings *s,
                         struct mp_devices *devices, struct mp_error *err);

/* The values in force as an INI file, and as {section: {key: text}}: the
 * latter new, NULL: out of memory. */
int mp_settings_dump(const struct mp_settings *s, FILE *out,
                     struct mp_error *err);
json_t *mp_settings_json(const struct mp_settings *s);

/* A JSON string of bytes that may be no UTF-8: those that are not become
 * U+FFFD. NULL: out of memory. */
json_t *mp_json_text(const char *bytes);

/* Every kind of a head's formats: words of `list` ("a b : c"), one after the
 * other from *at on (0 at first). Length, 0 at the end; *defaults: whether ':'
 * has not been met. */
size_t mp_format_next(const char *list, size_t *at, const char **word,
                      int *is_default);

#endif
