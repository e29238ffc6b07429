/* SPDX-License-Identifier: MIT */
/*
 * evaluate.h - the published metrics of a set of pairs, and how they are told.
 *
 * Pairs are read by several threads; sums are made in the order of the pairs,
 * so the number of threads changes nothing.
 */
#ifndef CORE_EVAL_EVALUATE_H
#define CORE_EVAL_EVALUATE_H

#include <jansson.h>
#include <stdio.h>
#include "eval/metrics.h"
#include "eval/pairs.h"
#include "settings.h"

struct mp_evaluation {
    enum mp_task task;
    const struct mp_settings *settings; /* borrowed; [eval], classes, threads */
    const struct mp_pairs *pairs;       /* borrowed; of poses not used */
    const struct mp_coco *truth;        /* borrowed; of poses */
    const char *results;                /* of poses: their file; borrowed */

    struct mp_depth_pair {
        double value[MP_DEPTH_METRICS];
        size_t pixels; /* that count; 0: the pair is left out of the mean */
    } * depth;         /* per pair */
    double depth_mean[MP_DEPTH_METRICS];
    size_t depth_empty;

    struct mp_seg_scores *seg; /* per pair */
    struct mp_seg_counts seg_counts;
    struct mp_seg_scores seg_all;

    struct mp_pose_scores pose;
};

/* The task of a head of this name. */
int mp_task_of(enum mp_task *task, const char *head, struct mp_error *err);
/* The kind of results that its evaluation reads. */
const char *mp_task_format(enum mp_task task);

/* What is wrong with the settings, before anything is read. */
int mp_evaluate_check(enum mp_task task, const struct mp_settings *s,
                      struct mp_error *err);

/* Fill in task and settings, and pairs, or of poses truth and results. Free
 * with mp_evaluation_free in any case. Errors name the first file that is
 * wrong. */
int mp_evaluate(struct mp_evaluation *e, struct mp_error *err);
void mp_evaluation_free(struct mp_evaluation *e);

/* Stored values of label maps: of ground truth in the file `truth`, or of
 * results (truth NULL). means: MP_LABEL_VALUES of them. */
void mp_label_means(int32_t *means, const struct mp_settings *s,
                    const char *truth);

/* For people; for programs (NULL: out of memory; NaN and infinities are null);
 * a line for every pair. */
void mp_evaluation_print(const struct mp_evaluation *e, FILE *out);
json_t *mp_evaluation_json(const struct mp_evaluation *e);
void mp_evaluation_csv(const struct mp_evaluation *e, FILE *out);

#endif
