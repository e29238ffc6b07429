/* SPDX-License-Identifier: MIT */
/*
 * pairs.h - which result belongs to which ground truth.
 *
 * Ground truth of depth and segmentation is a folder, a list, or one file. In
 * folders, files belong together by sub-folder and stem, after what data sets
 * add to names: sync_depth_N.png is of rgb_N.jpg; X_gtFine_labelTrainIds.png,
 * or else X_gtFine_labelIds.png, of X_leftImg8bit.png; below a drive's folder
 * proj_depth/groundtruth/image_02/N.png is of image_02/data/N.png. A list has
 * lines "PICTURE TRUTH", more words after that being ignored; a TRUTH of None
 * leaves the picture out.
 *
 * Poses have all their ground truth, and all their results, in one file; only
 * pictures are looked for here.
 *
 * Whatever lacks its counterpart is logged, all of it, and is an error.
 *
 * Threads: read-only after open.
 */
#ifndef CORE_EVAL_PAIRS_H
#define CORE_EVAL_PAIRS_H

#include "eval/coco.h"
#include "inputs.h"

enum mp_task { MP_TASK_DEPTH, MP_TASK_SEG, MP_TASK_POSE };

struct mp_pair {
    char *name;   /* of the picture: sub/folder/stem */
    char *result; /* path; NULL until it is known */
    char *truth;  /* path; NULL of poses */
};

struct mp_pairs {
    struct mp_pair *at; /* in a list's order, or by name */
    size_t n;
    size_t unused;   /* results without ground truth, or the reverse */
    size_t left_out; /* lines of a list without ground truth */
};

struct mp_truth { /* borrowed during the call */
    enum mp_task task;
    const char *path;           /* folder, list or file */
    const char *root;           /* of a list's TRUTH; NULL: the list's folder */
    const struct mp_coco *coco; /* of poses, instead of path and root */
    int ids; /* the results of segmentation to look for hold ids, not classes */
};

/* Results are in a folder (or are one file): every ground truth must have one.
 * Not of poses. Free with mp_pairs_free in any case. */
int mp_pairs_open(struct mp_pairs *p, const struct mp_truth *t,
                  const char *results, struct mp_error *err);

/* The pictures that are to be run, one for every pair: of a list those it
 * names, below the folder `images`; else all of `images` (a folder with those
 * below, a picture, @LIST), each of which must have ground truth; of poses
 * those that are annotated. out: see mp_inputs_open. */
int mp_pairs_inputs(struct mp_pairs *p, struct mp_inputs *in,
                    const struct mp_truth *t, const char *images,
                    const char *out, struct mp_error *err);
/* Where their results are, once mpipe has run: out/stem.suffix. */
int mp_pairs_results(struct mp_pairs *p, const struct mp_inputs *in,
                     const char *out, const char *suffix, struct mp_error *err);

void mp_pairs_free(struct mp_pairs *p);

#endif
