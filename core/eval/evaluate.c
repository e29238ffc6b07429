/* SPDX-License-Identifier: MIT */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <omp.h>

#include "classes.h"
#include "eval/evaluate.h"
#include "image.h"

static int no_memory(struct mp_error *err)
{
    return mp_fail(err, MP_ENOMEM, "out of memory");
}

/* ---- tasks ---- */

static const struct {
    const char *head, *format;
} tasks[] = {[MP_TASK_DEPTH] = {"depth", "npy"},
             [MP_TASK_SEG] = {"upernet", "labels"},
             [MP_TASK_POSE] = {"pose", "json"}};

int mp_task_of(enum mp_task *task, const char *head, struct mp_error *err)
{
    for (size_t i = 0; i < sizeof tasks / sizeof *tasks; i++)
        if (strcmp(tasks[i].head, head) == 0) {
            *task = (enum mp_task)i;
            return 0;
        }
    return mp_fail(err, MP_EINVAL,
                   "[pipeline] head = %s: metrics are known of depth, upernet "
                   "and pose",
                   head);
}

const char *mp_task_format(enum mp_task task)
{
    return tasks[task].format;
}

int mp_evaluate_check(enum mp_task task, const struct mp_settings *s,
                      struct mp_error *err)
{
    const struct mp_eval_conf *c = &s->eval;

    if (task == MP_TASK_DEPTH && c->min_depth >= c->max_depth)
        return mp_fail(err, MP_EINVAL,
                       "[eval] min_depth %g must be below max_depth %g",
                       c->min_depth, c->max_depth);
    if (task == MP_TASK_SEG && !c->reduce_zero_label &&
        mp_classes_label_ids(s->classes) == NULL &&
        (c->gt_labels == MP_LABELS_IDS || c->pred_labels == MP_LABELS_IDS))
        return mp_fail(err, MP_EINVAL,
                       "[eval] %s = ids: the classes of %s have no label_id",
                       c->gt_labels == MP_LABELS_IDS ? "gt_labels"
                                                     : "pred_labels",
                       s->classes->name);
    return 0;
}

/* ---- pairs in parallel ---- */

/* The failure of the first pair that failed. Pairs are begun in their order
 * and those in front of a failed one are finished, so it is the same whatever
 * the number of threads. */
struct failure {
    size_t at; /* SIZE_MAX: none */
    struct mp_error err;
};

static int is_over(struct failure *f, size_t i)
{
    size_t at;

#pragma omp atomic read
    at = f->at;
    return i > at;
}

static void fail_at(struct failure *f, size_t i, const struct mp_error *err)
{
#pragma omp critical(failure)
    if (i < f->at) {
        f->err = *err;
#pragma omp atomic write
        f->at = i;
    }
}

static int end_pairs(const struct failure *f, struct mp_error *err)
{
    if (f->at == SIZE_MAX)
        return 0;
    *err = f->err;
    return f->err.code;
}

static int threads(const struct mp_settings *s)
{
    return s->compute.threads > 0 ? s->compute.threads : omp_get_max_threads();
}

static int sizes_differ(const struct mp_pair *p, int32_t w, int32_t h,
                        int32_t gt_w, int32_t gt_h, struct mp_error *err)
{
    return mp_fail(err, MP_EFORMAT,
                   "%s is %d x %d, but its ground truth %s %d x %d", p->result,
                   w, h, p->truth, gt_w, gt_h);
}

/* ---- depth ---- */

struct map {
    float *v; /* metres, h x w */
    int32_t w, h;
};

/* Units per metre that a PNG declares. */
static int declared_scale(int32_t *scale, const char *path,
                          struct mp_error *err)
{
    char text[16], *end;
    long v = 0;
    int rc = mp_png_text(text, sizeof text, path, "depth_scale", err);

    if (rc < 0)
        return rc;
    if (rc > 0)
        v = strtol(text, &end, 10);
    if (rc == 0 || *end != '\0' || v < 1 || v > 65535)
        return mp_fail(err, MP_EFORMAT,
                       "it has no text chunk depth_scale, units per metre: set "
                       "[eval] pred_scale");
    *scale = (int32_t)v;
    return 0;
}

static int read_png(struct map *m, const char *path, int32_t scale,
                    struct mp_error *err)
{
    uint16_t *stored = NULL;
    size_t n;
    int bits, rc = scale > 0 ? 0 : declared_scale(&scale, path, err);

    if (rc == 0)
        rc = mp_map_read(&stored, &m->w, &m->h, &bits, path, err);
    if (rc == 0 && bits != 16)
        rc = mp_fail(err, MP_EFORMAT, "depth must be a PNG of 16 bits, not %d",
                     bits);
    n = (size_t)m->w * (size_t)m->h;
    if (rc == 0 && (m->v = malloc(n * sizeof *m->v)) == NULL)
        rc = no_memory(err);
    n = rc == 0 ? n : 0;
#pragma omp simd
    for (size_t i = 0; i < n; i++)
        m->v[i] = (float)stored[i] / (float)scale;
    free(stored);
    return rc;
}

/* scale: of a PNG; -1: as it says itself. */
static int read_depth(struct map *m, const char *path, int32_t scale,
                      struct mp_error *err)
{
    size_t n = strlen(path);
    int rc = n > 4 && strcmp(path + n - 4, ".npy") == 0
                 ? mp_npy_read(&m->v, &m->w, &m->h, path, err)
                 : read_png(m, path, scale, err);

    return rc == 0 ? 0 : mp_fail_in(err, "%s", path);
}

static void cut(struct map *m, struct mp_rect r)
{
    int32_t w = r.x1 - r.x0;

    for (int32_t y = r.y0; y < r.y1; y++)
        memmove(m->v + (size_t)(y - r.y0) * (size_t)w,
                m->v + (size_t)y * (size_t)m->w + r.x0,
                (size_t)w * sizeof *m->v);
    m->w = w;
    m->h = r.y1 - r.y0;
}

/* Of a result that is not cut yet, too. */
static int kb_crop(struct map *pred, struct map *gt, const struct mp_pair *p,
                   struct mp_error *err)
{
    struct mp_rect r = mp_depth_kb_crop(gt->w, gt->h);

    if (r.x0 < 0 || r.y0 < 0)
        return mp_fail(err, MP_EFORMAT,
                       "%s is %d x %d, less than the 1216 x 352 of "
                       "[eval] kb_crop",
                       p->truth, gt->w, gt->h);
    if (pred->w == gt->w && pred->h == gt->h)
        cut(pred, r);
    cut(gt, r);
    return 0;
}

static int measure_depth(struct mp_depth_pair *out, const struct mp_pair *p,
                         const struct mp_eval_conf *c, struct mp_error *err)
{
    struct map pred = {0}, gt = {0};
    int rc = read_depth(&gt, p->truth, c->gt_scale, err);

    if (rc == 0)
        rc = read_depth(&pred, p->result, c->pred_scale, err);
    if (rc == 0 && c->kb_crop)
        rc = kb_crop(&pred, &gt, p, err);
    if (rc == 0 && (pred.w != gt.w || pred.h != gt.h))
        rc = sizes_differ(p, pred.w, pred.h, gt.w, gt.h, err);
    if (rc == 0)
        out->pixels =
            mp_depth_metrics(out->value, pred.v, gt.v, gt.w, gt.h,
                             (enum mp_crop)c->crop, c->min_depth, c->max_depth);
    free(pred.v);
    free(gt.v);
    return rc;
}

/* Processes share the pictures evenly; to fill up, the first ones are dealt
 * out again. */
static size_t times_counted(size_t i, size_t n, size_t processes)
{
    size_t dealt = (n + processes - 1) / processes * processes;

    return dealt / n + (i < dealt % n);
}

static void average_depth(struct mp_evaluation *e)
{
    size_t n = e->pairs->n, counted = 0;

    for (size_t i = 0; i < n; i++) {
        size_t times =
            times_counted(i, n, (size_t)e->settings->eval.double_count);

        if (e->depth[i].pixels == 0) {
            e->depth_empty++;
            continue;
        }
        counted += times;
        for (int k = 0; k < MP_DEPTH_METRICS; k++)
            e->depth_mean[k] += (double)times * e->depth[i].value[k];
    }
    for (int k = 0; k < MP_DEPTH_METRICS; k++)
        e->depth_mean[k] /= (double)counted;
}

static int evaluate_depth(struct mp_evaluation *e, struct mp_error *err)
{
    struct failure f = {.at = SIZE_MAX};
    size_t n = e->pairs->n;
    int rc;

    e->depth = calloc(n + 1, sizeof *e->depth);
    if (e->depth == NULL)
        return no_memory(err);
#pragma omp parallel for schedule(dynamic) num_threads(threads(e->settings))
    for (size_t i = 0; i < n; i++) {
        struct mp_error why = {0};

        if (!is_over(&f, i) && measure_depth(&e->depth[i], &e->pairs->at[i],
                                             &e->settings->eval, &why) != 0)
            fail_at(&f, i, &why);
    }
    rc = end_pairs(&f, err);
    if (rc == 0)
        average_depth(e);
    return rc;
}

/* ---- segmentation ---- */

static int says_ids(const char *path)
{
    size_t n = strlen(path), k = strlen("labelIds.png");

    return n >= k && strcmp(path + n - k, "labelIds.png") == 0;
}

void mp_label_means(int32_t *means, const struct mp_settings *s,
                    const char *truth)
{
    const struct mp_eval_conf *c = &s->eval;
    const int32_t *id = mp_classes_label_ids(s->classes);
    int32_t none = truth != NULL ? MP_LABEL_IGNORED : MP_LABEL_STRAY;
    int kind = truth != NULL ? c->gt_labels : c->pred_labels;
    int by_id = kind == MP_LABELS_IDS ||
                (kind == MP_LABELS_AUTO && id != NULL && says_ids(truth));
    int shift = c->reduce_zero_label && (truth != NULL || by_id);
    int32_t n = (int32_t)s->classes->count;

    for (int32_t v = 0; v < MP_LABEL_VALUES; v++)
        means[v] = by_id && id != NULL ? none
                   : v < shift         ? none
                   : v - shift < n     ? v - shift
                                       : MP_LABEL_STRAY;
    for (int32_t i = 0; by_id && id != NULL && i < n; i++)
        means[id[i]] = i;
    means[c->ignore_label] = none;
}

struct meanings {
    int32_t pred[MP_LABEL_VALUES];
    int32_t truth[2][MP_LABEL_VALUES]; /* of files by their name: [1] ids */
};

static int measure_labels(struct mp_seg_counts *c, const struct mp_pair *p,
                          const struct meanings *m, struct mp_error *err)
{
    uint16_t *pred = NULL, *gt = NULL;
    int32_t w, h, gt_w, gt_h;
    int bits, rc = mp_map_read(&gt, &gt_w, &gt_h, &bits, p->truth, err);

    if (rc != 0) {
        mp_fail_in(err, "%s", p->truth);
    } else {
        rc = mp_map_read(&pred, &w, &h, &bits, p->result, err);
        if (rc != 0)
            mp_fail_in(err, "%s", p->result);
        else if (w != gt_w || h != gt_h)
            rc = sizes_differ(p, w, h, gt_w, gt_h, err);
    }
    if (rc == 0)
        mp_seg_count(c, pred, m->pred, gt, m->truth[says_ids(p->truth)],
                     (size_t)w * (size_t)h);
    free(pred);
    free(gt);
    return rc;
}

/* One thread's part of the pairs. */
static void count_pairs(struct mp_evaluation *e, const struct meanings *m,
                        struct failure *f)
{
    struct mp_seg_counts one, sum = {0};
    struct mp_error why = {0};

    if (mp_seg_counts_new(&one, e->seg_counts.n, &why) ||
        mp_seg_counts_new(&sum, e->seg_counts.n, &why))
        fail_at(f, 0, &why);
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < e->pairs->n; i++) {
        if (is_over(f, i) || sum.both == NULL)
            continue;
        mp_seg_counts_clear(&one);
        if (measure_labels(&one, &e->pairs->at[i], m, &why) != 0) {
            fail_at(f, i, &why);
            continue;
        }
        e->seg[i] = mp_seg_scores(&one, NULL, NULL);
        mp_seg_counts_add(&sum, &one);
    }
#pragma omp critical(sum)
    if (sum.both != NULL)
        mp_seg_counts_add(&e->seg_counts, &sum);
    mp_seg_counts_free(&one);
    mp_seg_counts_free(&sum);
}

static int evaluate_seg(struct mp_evaluation *e, struct mp_error *err)
{
    struct failure f = {.at = SIZE_MAX};
    struct meanings *m = malloc(sizeof *m);
    int rc =
        mp_seg_counts_new(&e->seg_counts, e->settings->classes->count, err);

    e->seg = calloc(e->pairs->n + 1, sizeof *e->seg);
    if (rc == 0 && (m == NULL || e->seg == NULL))
        rc = no_memory(err);
    if (rc == 0) {
        mp_label_means(m->pred, e->settings, NULL);
        mp_label_means(m->truth[0], e->settings, "");
        mp_label_means(m->truth[1], e->settings, "labelIds.png");
#pragma omp parallel num_threads(threads(e->settings))
        count_pairs(e, m, &f);
        rc = end_pairs(&f, err);
    }
    if (rc == 0)
        e->seg_all = mp_seg_scores(&e->seg_counts, NULL, NULL);
    free(m);
    return rc;
}

/* ---- pose ---- */

static int evaluate_pose(struct mp_evaluation *e, struct mp_error *err)
{
    struct mp_coco *results;
    int rc = mp_coco_open(&results, e->results, err);

    if (rc != 0)
        return rc;
    rc = mp_pose_metrics(&e->pose, e->truth, results,
                         (enum mp_coco_tools)e->settings->eval.coco_tools, err);
    mp_coco_free(results);
    return rc == 0 ? 0 : mp_fail_in(err, "%s", e->results);
}

int mp_evaluate(struct mp_evaluation *e, struct mp_error *err)
{
    switch (e->task) {
    case MP_TASK_DEPTH:
        return evaluate_depth(e, err);
    case MP_TASK_SEG:
        return evaluate_seg(e, err);
    case MP_TASK_POSE:
        return evaluate_pose(e, err);
    }
    return mp_fail(err, MP_EINVAL, "no such task");
}

void mp_evaluation_free(struct mp_evaluation *e)
{
    free(e->depth);
    free(e->seg);
    mp_seg_counts_free(&e->seg_counts);
}
