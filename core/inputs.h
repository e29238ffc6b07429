/* SPDX-License-Identifier: MIT */
/*
 * inputs.h - the pictures of a run, by name.
 *
 * IN is a folder: its regular files whose names end in .png, .jpg or .jpeg (in
 * any case) and do not begin with a dot, sorted bytewise; with recursive those
 * of its sub-folders too (links are followed, but not in circles; OUT is left
 * out). Or one file. Or @LIST: a file with a name in every line. Or -: names
 * on standard input. Files that are named are taken whatever their name.
 *
 * Results are named after the stem: the path without the suffix, from IN on
 * for a folder; the whole relative path for a name in a list, its last part
 * where the path begins with / or holds "..". Two pictures of one stem are an
 * error.
 *
 * File names are bytes: any that the system can have. Threads: read-only after
 * open.
 */
#ifndef CORE_INPUTS_H
#define CORE_INPUTS_H

#include "mpipe/base.h"

struct mp_input {
    char *path; /* to open */
    char *stem; /* of its results, below OUT: "sub/folder/stem" */
};

struct mp_inputs {
    struct mp_input *at;
    size_t n;
    size_t others; /* files of the folders that are no pictures by name */
};

/* out: the folder of the results, which may not be there yet. No picture at
 * all is an error. Free with mp_inputs_free in any case. */
int mp_inputs_open(struct mp_inputs *in, const char *arg, int recursive,
                   const char *out, struct mp_error *err);
void mp_inputs_free(struct mp_inputs *in);

/* Part i of n, counted from 1: picture k belongs to part k % n + 1. */
struct mp_shard {
    int i, n;
};
/* "2/4", or "auto": from the environment of Slurm (tasks, arrays, or both),
 * Open MPI, PMI. */
int mp_shard_parse(struct mp_shard *s, const char *text, struct mp_error *err);
/* Keep only that part. */
void mp_inputs_keep(struct mp_inputs *in, const struct mp_shard *s);

#endif
