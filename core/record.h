/* SPDX-License-Identifier: MIT */
/*
 * record.h - what a run leaves beside its results: OUT/run.json,
 * OUT/errors.jsonl (only if a picture failed), OUT/labels.json (heads with
 * classes). Of part I of N the first two are run.I-of-N.json and
 * errors.I-of-N.jsonl.
 *
 * run.json is written when the run begins and again when it ends:
 *
 *   mpipe        version
 *   state        "running", "done", "interrupted" (SIGINT, SIGTERM) or
 *                "stopped" (a failure of the device or of writing)
 *   settings     {section: {key: text as in a configuration}}
 *   checkpoint   {path, bytes, modified}: absolute; modified in seconds since
 *                1970; bytes and modified of a folder: of its files, summed
 *                and newest
 *   network      architecture in a line
 *   backend, device, precision   what was used: "cpu", "...", "bf16"
 *   results      what the head says of its results; depth: {png16: {
 *                units_per_metre, metres_per_unit}, npy: {unit}}
 *   shard        "I/N", only for a part
 *   formats      kinds of results written
 *   counts       {total, done, failed, skipped} pictures; skipped: complete
 *                already (--resume)
 *   seconds      load, compile, network, merge: of the device's thread; read,
 *                write: sums over the threads that decode and encode; total:
 *                wall clock; network_per_picture: mean, network_median: median
 *                of the network's time for a picture, all its views
 *
 * OUT/joined_as.json of a head with a joined kind (mpipe/plugin.h): a JSON
 * list, an element a line, in the order of the pictures; written when the run
 * ends.
 *
 * errors.jsonl: {"input", "stage", "error"} a line, in the order of the
 * pictures; stage is read, views, network, merge or write. Bytes of names that
 * are no UTF-8 are U+FFFD in all of them.
 *
 * Threads: one at a time.
 */
#ifndef CORE_RECORD_H
#define CORE_RECORD_H

#include "inputs.h"
#include "pipeline.h"
#include "settings.h"

struct mp_record;

struct mp_counts {
    size_t total, done, failed, skipped;
};

struct mp_seconds { /* beside those of mp_pipeline_times */
    double read, write, total, network_median;
};

/* Refuses a folder with results of other settings, naming the first key that
 * differs; [compute] threads and batch may. *before: nonzero if results of
 * these settings are there. settings and pipeline: borrowed until free. */
int mp_record_open(struct mp_record **out, int *before,
                   const struct mp_settings *settings,
                   const struct mp_pipeline *pipeline, const char *folder,
                   const struct mp_shard *shard, struct mp_error *err);
void mp_record_free(struct mp_record *r); /* NULL is fine */

/* {path, bytes, modified} as above; NULL: out of memory. */
json_t *mp_record_checkpoint(const char *path);

int mp_record_failure(struct mp_record *r, const char *input, const char *stage,
                      const char *text, struct mp_error *err);

/* Put the arrays of the head's joined kind of all these pictures that have it
 * together in OUT/joined_as.json, of part I of N in
 * OUT/joined_as.I-of-N.json. */
int mp_record_join(const struct mp_record *r, const struct mp_inputs *in,
                   struct mp_error *err);

int mp_record_write(struct mp_record *r, const char *state,
                    const struct mp_counts *counts,
                    const struct mp_seconds *seconds, struct mp_error *err);

#endif
