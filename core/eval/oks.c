/* SPDX-License-Identifier: MIT */
/* oks.c - average precision of poses, by object keypoint similarity. */
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "eval/metrics.h"

#define DETECTIONS 20  /* that count, of a picture */
#define RECALLS    101 /* 0, 0.01 .. 1 */

const char *const mp_pose_metric_names[MP_POSE_METRICS] = {
    "AP", "AP .5", "AP .75", "AP (M)", "AP (L)",
    "AR", "AR .5", "AR .75", "AR (M)", "AR (L)"};

static const double sigma[MP_COCO_JOINTS] = {.026, .025, .025, .035, .035, .079,
                                             .079, .072, .072, .062, .062, .107,
                                             .107, .087, .087, .089, .089};

static const double area_range[MP_AREAS][2] = {[MP_AREA_ALL] = {0, 1e10},
                                               [MP_AREA_MEDIUM] = {1024, 9216},
                                               [MP_AREA_LARGE] = {9216, 1e10}};

/* ---- similarity ---- */

static double beyond(double v, double low, double high)
{
    return (low > v ? low - v : 0) + (v > high ? v - high : 0);
}

/* A person without labels is anywhere in the box, enlarged by itself. */
static double similarity(const struct mp_coco_object *gt,
                         const struct mp_coco_object *dt)
{
    const double *b = gt->box;
    double sum = 0;

    for (int i = 0; i < MP_COCO_JOINTS; i++) {
        const double *g = gt->keypoint[i], *d = dt->keypoint[i];
        double dx = d[0] - g[0], dy = d[1] - g[1], two = 2 * sigma[i];

        if (gt->labelled == 0) {
            dx = beyond(d[0], b[0] - b[2], b[0] + 2 * b[2]);
            dy = beyond(d[1], b[1] - b[3], b[1] + 2 * b[3]);
        } else if (g[2] <= 0) {
            continue;
        }
        sum += exp(-(dx * dx + dy * dy) / (two * two) /
                   (gt->area + DBL_EPSILON) / 2);
    }
    return sum / (gt->labelled == 0 ? MP_COCO_JOINTS : gt->labelled);
}

/* ---- one picture ---- */

enum outcome { WRONG, RIGHT, IGNORED };

struct detection {
    double score;
    uint8_t outcome[MP_AREAS][MP_POSE_THRESHOLDS];
};

struct scene { /* a picture; reused */
    const struct mp_coco_object **gt;
    const struct mp_coco_object *dt[DETECTIONS];
    size_t ngt, ndt;
    double *oks;         /* ndt x ngt */
    size_t *order;       /* of gt, those that do not count last */
    uint8_t *taken;      /* gt, for one threshold */
    uint8_t *is_ignored; /* gt, for one range of areas */
};

struct evaluation {
    const struct mp_coco *truth, *results;
    enum mp_coco_tools tools;
    struct scene s;
    struct detection *all;
    size_t nall;
    size_t people[MP_AREAS]; /* to be found */
    double threshold[MP_POSE_THRESHOLDS];
};

static double area_of(const struct mp_coco_object *dt, int by_box)
{
    double low[2], high[2];

    if (by_box)
        return dt->box[2] * dt->box[3];
    memcpy(low, dt->keypoint[0], sizeof low);
    memcpy(high, dt->keypoint[0], sizeof high);
    for (int i = 1; i < MP_COCO_JOINTS; i++)
        for (int k = 0; k < 2; k++) {
            low[k] = fmin(low[k], dt->keypoint[i][k]);
            high[k] = fmax(high[k], dt->keypoint[i][k]);
        }
    return (high[0] - low[0]) * (high[1] - low[1]);
}

static int is_outside(double area, int range)
{
    return area < area_range[range][0] || area > area_range[range][1];
}

static int is_left_out(const struct evaluation *e,
                       const struct mp_coco_object *gt)
{
    return gt->crowd || (e->tools == MP_PYCOCOTOOLS ? gt->num_keypoints == 0
                                                    : gt->labelled == 0);
}

/* The best of the results, the earlier of equal ones first. */
static void insert(struct scene *s, const struct mp_coco_object *dt)
{
    size_t i = s->ndt < DETECTIONS ? s->ndt++ : DETECTIONS;

    for (; i > 0 && s->dt[i - 1]->score < dt->score; i--)
        if (i < DETECTIONS)
            s->dt[i] = s->dt[i - 1];
    if (i < DETECTIONS)
        s->dt[i] = dt;
}

static void gather(struct evaluation *e, int64_t image)
{
    struct scene *s = &e->s;
    size_t n;
    const size_t *at = mp_coco_of_image(e->truth, image, &n);

    s->ngt = s->ndt = 0;
    for (size_t i = 0; i < n; i++)
        if (e->truth->object[at[i]].category_id == MP_COCO_PERSON)
            s->gt[s->ngt++] = &e->truth->object[at[i]];
    at = mp_coco_of_image(e->results, image, &n);
    for (size_t i = 0; i < n; i++) {
        const struct mp_coco_object *dt = &e->results->object[at[i]];

        if (dt->category_id == MP_COCO_PERSON &&
            (dt->labelled > 0 || e->tools == MP_PYCOCOTOOLS))
            insert(s, dt);
    }
    for (size_t d = 0; d < s->ndt; d++)
        for (size_t g = 0; g < s->ngt; g++)
            s->oks[d * s->ngt + g] = similarity(s->gt[g], s->dt[d]);
}

/* Which do not count in this range of areas, and these last. */
static void order(struct evaluation *e, int range)
{
    struct scene *s = &e->s;
    size_t n = 0;

    for (size_t g = 0; g < s->ngt; g++) {
        s->is_ignored[g] =
            is_left_out(e, s->gt[g]) || is_outside(s->gt[g]->area, range);
        if (!s->is_ignored[g])
            s->order[n++] = g;
    }
    e->people[range] += n;
    for (size_t g = 0; g < s->ngt; g++)
        if (s->is_ignored[g])
            s->order[n++] = g;
}

/* The person whom this result is to be taken for; ngt: none. */
static size_t match(const struct scene *s, size_t d, double threshold)
{
    double best = fmin(threshold, 1 - 1e-10);
    size_t m = s->ngt;

    for (size_t i = 0; i < s->ngt; i++) {
        size_t g = s->order[i];

        if (s->taken[g] && !s->gt[g]->crowd)
            continue;
        if (m < s->ngt && !s->is_ignored[m] && s->is_ignored[g])
            break;
        if (s->oks[d * s->ngt + g] < best)
            continue;
        best = s->oks[d * s->ngt + g];
        m = g;
    }
    return m;
}

static void judge(struct evaluation *e, int range, int t, int by_box)
{
    struct scene *s = &e->s;

    memset(s->taken, 0, s->ngt);
    for (size_t d = 0; d < s->ndt; d++) {
        size_t m = match(s, d, e->threshold[t]);
        int found = m < s->ngt;
        int ignored = found && s->is_ignored[m];

        if (found)
            s->taken[m] = 1;
        if (found && e->tools == MP_PYCOCOTOOLS && s->gt[m]->id == 0)
            found = 0;
        if (!found && is_outside(area_of(s->dt[d], by_box), range))
            ignored = 1;
        e->all[e->nall + d].outcome[range][t] = (uint8_t)(ignored ? IGNORED
                                                          : found ? RIGHT
                                                                  : WRONG);
    }
}

static void judge_image(struct evaluation *e, int64_t image)
{
    /* the evaluators look at the first result for all */
    int by_box =
        e->results->nobject > 0 && e->results->object[0].has & MP_COCO_BOX;

    gather(e, image);
    for (int range = 0; range < MP_AREAS; range++) {
        order(e, range);
        for (int t = 0; t < MP_POSE_THRESHOLDS; t++)
            judge(e, range, t, by_box);
    }
    for (size_t d = 0; d < e->s.ndt; d++)
        e->all[e->nall + d].score = e->s.dt[d]->score;
    e->nall += e->s.ndt;
}

/* ---- all pictures ---- */

struct ranked {
    double score;
    size_t at;
};

static int by_score(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;

    if (x->score != y->score)
        return x->score < y->score ? 1 : -1;
    return (x->at > y->at) - (x->at < y->at);
}

/* Mean precision over all recalls, and the recall that is reached. */
static void average(struct mp_pose_scores *out, const struct evaluation *e,
                    const struct ranked *rank, double *recall,
                    double *precision, int range, int t)
{
    size_t right = 0, wrong = 0, k = 0;
    double people = (double)e->people[range], sum = 0;

    out->ap[range][t] = out->ar[range][t] = -1;
    if (e->people[range] == 0)
        return;
    for (size_t i = 0; i < e->nall; i++) {
        int outcome = e->all[rank[i].at].outcome[range][t];

        right += outcome == RIGHT;
        wrong += outcome == WRONG;
        recall[i] = (double)right / people;
        precision[i] =
            (double)right / ((double)wrong + (double)right + DBL_EPSILON);
    }
    for (size_t i = e->nall; i-- > 1;)
        precision[i - 1] = fmax(precision[i - 1], precision[i]);
    for (int r = 0; r < RECALLS; r++) {
        while (k < e->nall && recall[k] < r * 0.01)
            k++;
        sum += k < e->nall ? precision[k] : 0;
    }
    out->ap[range][t] = sum / RECALLS;
    out->ar[range][t] = e->nall > 0 ? recall[e->nall - 1] : 0;
}

static double mean(const double v[MP_POSE_THRESHOLDS])
{
    double sum = 0;

    for (int t = 0; t < MP_POSE_THRESHOLDS; t++)
        sum += v[t];
    return sum / MP_POSE_THRESHOLDS;
}

static int summarise(struct mp_pose_scores *out, const struct evaluation *e,
                     struct mp_error *err)
{
    struct ranked *rank = malloc((e->nall + 1) * sizeof *rank);
    double *curve = malloc((2 * e->nall + 1) * sizeof *curve);
    int rc = rank == NULL || curve == NULL
                 ? mp_fail(err, MP_ENOMEM, "out of memory")
                 : 0;

    for (size_t i = 0; i < e->nall && rc == 0; i++)
        rank[i] = (struct ranked){e->all[i].score, i};
    if (rc == 0)
        qsort(rank, e->nall, sizeof *rank, by_score);
    for (int k = 0; k < MP_AREAS * MP_POSE_THRESHOLDS && rc == 0; k++)
        average(out, e, rank, curve, curve + e->nall, k / MP_POSE_THRESHOLDS,
                k % MP_POSE_THRESHOLDS);
    free(rank);
    free(curve);
    for (int k = 0; k < 2 && rc == 0; k++) {
        const double(*v)[MP_POSE_THRESHOLDS] = k == 0 ? out->ap : out->ar;
        double *value = out->value + 5 * k;

        value[0] = mean(v[MP_AREA_ALL]);
        value[1] = v[MP_AREA_ALL][0]; /* 0.5 */
        value[2] = v[MP_AREA_ALL][5]; /* 0.75 */
        value[3] = mean(v[MP_AREA_MEDIUM]);
        value[4] = mean(v[MP_AREA_LARGE]);
    }
    return rc;
}

/* ---- checks and memory ---- */

static int check_truth(const struct mp_coco *truth, struct mp_error *err)
{
    const unsigned all = MP_COCO_BOX | MP_COCO_AREA | MP_COCO_KEYPOINTS;

    if (!truth->is_truth)
        return mp_fail(err, MP_EFORMAT,
                       "ground truth must be an annotation file, not a list");
    for (size_t i = 0; i < truth->nobject; i++) {
        const struct mp_coco_object *o = &truth->object[i];

        if (o->category_id == MP_COCO_PERSON && (o->has & all) != all)
            return mp_fail(err, MP_EFORMAT, "annotations[%zu] has no %s", i,
                           !(o->has & MP_COCO_KEYPOINTS) ? "keypoints"
                           : !(o->has & MP_COCO_BOX)     ? "bbox"
                                                         : "area");
    }
    return 0;
}

static int check_results(const struct mp_coco *truth,
                         const struct mp_coco *results, struct mp_error *err)
{
    unsigned needed =
        MP_COCO_KEYPOINTS |
        (results->nobject > 0 ? results->object[0].has & MP_COCO_BOX : 0);

    for (size_t i = 0; i < results->nobject; i++) {
        const struct mp_coco_object *o = &results->object[i];

        if ((o->has & needed) != needed)
            return mp_fail(err, MP_EFORMAT, "result [%zu] has no %s", i,
                           o->has & MP_COCO_KEYPOINTS
                               ? "bbox, which the first one has"
                               : "keypoints");
        if (mp_coco_image(truth, o->image_id) == NULL)
            return mp_fail(err, MP_EFORMAT,
                           "result [%zu]: the ground truth has no image "
                           "%" PRId64,
                           i, o->image_id);
    }
    return 0;
}

/* Most people of a picture. */
static size_t most_people(const struct mp_coco *c)
{
    size_t most = 0, n;

    for (size_t i = 0; i < c->nimage; i++) {
        mp_coco_of_image(c, c->image[i].id, &n);
        most = n > most ? n : most;
    }
    return most;
}

static int make_room(struct evaluation *e, struct mp_error *err)
{
    size_t n = most_people(e->truth) + 1;
    struct scene *s = &e->s;

    s->gt = malloc(n * sizeof *s->gt);
    s->oks = malloc(n * DETECTIONS * sizeof *s->oks);
    s->order = malloc(n * sizeof *s->order);
    s->taken = malloc(n);
    s->is_ignored = malloc(n);
    e->all = malloc((e->results->nobject + 1) * sizeof *e->all);
    return s->gt && s->oks && s->order && s->taken && s->is_ignored && e->all
               ? 0
               : mp_fail(err, MP_ENOMEM, "out of memory");
}

int mp_pose_metrics(struct mp_pose_scores *out, const struct mp_coco *truth,
                    const struct mp_coco *results, enum mp_coco_tools tools,
                    struct mp_error *err)
{
    struct evaluation e = {.truth = truth, .results = results, .tools = tools};
    int rc = check_truth(truth, err);

    for (int t = 0; t < MP_POSE_THRESHOLDS; t++)
        e.threshold[t] = t < 9 ? t * ((.95 - .5) / 9) + .5 : .95;
    if (rc == 0)
        rc = check_results(truth, results, err);
    if (rc == 0)
        rc = make_room(&e, err);
    for (size_t i = 0; i < truth->nimage && rc == 0; i++)
        judge_image(&e, truth->image[i].id);
    if (rc == 0)
        rc = summarise(out, &e, err);
    free(e.s.gt);
    free(e.s.oks);
    free(e.s.order);
    free(e.s.taken);
    free(e.s.is_ignored);
    free(e.all);
    return rc;
}
