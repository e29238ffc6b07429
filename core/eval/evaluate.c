/* SPDX-License-Identifier: MIT */
#include <stdlib.h>
#include <string.h>

#include <pthread.h>
#include <sched.h>

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
        s->classes->label_id == NULL &&
        (c->gt_labels == MP_LABELS_IDS || c->pred_labels == MP_LABELS_IDS))
        return mp_fail(err, MP_EINVAL,
                       "[eval] %s = ids: the classes of %s have no label_id",
                       c->gt_labels == MP_LABELS_IDS ? "gt_labels"
                                                     : "pred_labels",
                       s->classes->name);
    return 0;
}

/* ---- pairs in parallel ---- */

#define THREADS_MAX 64

/* What is done for pair i by thread k. */
typedef int (*do_pair)(struct mp_evaluation *e, void *user, size_t i, int k,
                       struct mp_error *err);

struct crew {
    struct mp_evaluation *e;
    do_pair work;
    void *user;
    pthread_mutex_t lock; /* of what follows */
    size_t next;
    size_t failed; /* the first pair that failed; SIZE_MAX: none */
    struct mp_error err;
};

struct worker {
    struct crew *crew;
    int number;
};

/* Pairs are begun in their order, and all in front of a failed one are done,
 * so the first failure is the same whatever the number of threads. */
static void *work(void *user)
{
    const struct worker *w = user;
    struct crew *c = w->crew;

    pthread_mutex_lock(&c->lock);
    while (c->next < c->e->pairs->n && c->failed == SIZE_MAX) {
        struct mp_error err = {0};
        size_t i = c->next++;
        int rc;

        pthread_mutex_unlock(&c->lock);
        rc = c->work(c->e, c->user, i, w->number, &err);
        pthread_mutex_lock(&c->lock);
        if (rc != 0 && i < c->failed) {
            c->failed = i;
            c->err = err;
        }
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

static int count_threads(const struct mp_evaluation *e)
{
    int n = e->settings->compute.threads;
    cpu_set_t mine;

    if (n < 1)
        n = sched_getaffinity(0, sizeof mine, &mine) == 0 ? CPU_COUNT(&mine)
                                                          : 1;
    return n < THREADS_MAX ? n : THREADS_MAX;
}

/* A thread that cannot be had is done without. */
static int do_pairs(struct mp_evaluation *e, do_pair one, void *user,
                    struct mp_error *err)
{
    struct crew c = {.e = e,
                     .work = one,
                     .user = user,
                     .lock = PTHREAD_MUTEX_INITIALIZER,
                     .failed = SIZE_MAX};
    struct worker w[THREADS_MAX] = {{&c, 0}};
    pthread_t thread[THREADS_MAX];
    int n = count_threads(e), k = 1;

    for (; k < n; k++) {
        w[k] = (struct worker){&c, k};
        if (pthread_create(&thread[k], NULL, work, &w[k]) != 0)
            break;
    }
    work(&w[0]);
    while (--k > 0)
        pthread_join(thread[k], NULL);
    if (c.failed != SIZE_MAX)
        *err = c.err;
    return c.failed == SIZE_MAX ? 0 : c.err.code;
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

static int measure_depth(struct mp_evaluation *e, void *unused, size_t i,
                         int thread, struct mp_error *err)
{
    const struct mp_eval_conf *c = &e->settings->eval;
    const struct mp_pair *p = &e->pairs->at[i];
    struct mp_depth_pair *out = &e->depth[i];
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
    (void)unused;
    (void)thread;
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
    int rc;

    e->depth = calloc(e->pairs->n + 1, sizeof *e->depth);
    if (e->depth == NULL)
        return no_memory(err);
    rc = do_pairs(e, measure_depth, NULL, err);
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
    const int32_t *id = s->classes->label_id;
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

struct labels {
    int32_t pred[MP_LABEL_VALUES];
    int32_t truth[2][MP_LABEL_VALUES]; /* of files by their name: [1] ids */
    struct mp_seg_counts one[THREADS_MAX], sum[THREADS_MAX];
};

static int read_labels(uint16_t **out, int32_t *w, int32_t *h, const char *path,
                       struct mp_error *err)
{
    int bits, rc = mp_map_read(out, w, h, &bits, path, err);

    return rc == 0 ? 0 : mp_fail_in(err, "%s", path);
}

static int measure_labels(struct mp_evaluation *e, void *user, size_t i, int k,
                          struct mp_error *err)
{
    struct labels *l = user;
    const struct mp_pair *p = &e->pairs->at[i];
    uint16_t *pred = NULL, *gt = NULL;
    int32_t w, h, gt_w, gt_h;
    int rc = read_labels(&gt, &gt_w, &gt_h, p->truth, err);

    if (rc == 0)
        rc = read_labels(&pred, &w, &h, p->result, err);
    if (rc == 0 && (w != gt_w || h != gt_h))
        rc = sizes_differ(p, w, h, gt_w, gt_h, err);
    if (rc == 0) {
        mp_seg_counts_clear(&l->one[k]);
        mp_seg_count(&l->one[k], pred, l->pred, gt,
                     l->truth[says_ids(p->truth)], (size_t)w * (size_t)h);
        mp_seg_counts_add(&l->sum[k], &l->one[k]);
        e->seg[i] = mp_seg_scores(&l->one[k], NULL, NULL);
    }
    free(pred);
    free(gt);
    return rc;
}

static int measure_all_labels(struct mp_evaluation *e, struct labels *l,
                              struct mp_error *err)
{
    int threads = count_threads(e), rc = 0;

    mp_label_means(l->pred, e->settings, NULL);
    mp_label_means(l->truth[0], e->settings, "");
    mp_label_means(l->truth[1], e->settings, "labelIds.png");
    for (int k = 0; k < threads && rc == 0; k++) {
        rc = mp_seg_counts_new(&l->one[k], e->seg_counts.n, err);
        if (rc == 0)
            rc = mp_seg_counts_new(&l->sum[k], e->seg_counts.n, err);
    }
    if (rc == 0)
        rc = do_pairs(e, measure_labels, l, err);
    for (int k = 0; k < threads; k++) {
        if (rc == 0)
            mp_seg_counts_add(&e->seg_counts, &l->sum[k]);
        mp_seg_counts_free(&l->one[k]);
        mp_seg_counts_free(&l->sum[k]);
    }
    return rc;
}

static int evaluate_seg(struct mp_evaluation *e, struct mp_error *err)
{
    struct labels *l = calloc(1, sizeof *l);
    int rc =
        mp_seg_counts_new(&e->seg_counts, e->settings->classes->count, err);

    e->seg = calloc(e->pairs->n + 1, sizeof *e->seg);
    if (rc == 0 && (l == NULL || e->seg == NULL))
        rc = no_memory(err);
    if (rc == 0)
        rc = measure_all_labels(e, l, err);
    if (rc == 0)
        e->seg_all = mp_seg_scores(&e->seg_counts, NULL, NULL);
    free(l);
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
