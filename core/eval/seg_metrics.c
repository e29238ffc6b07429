/* SPDX-License-Identifier: MIT */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "eval/metrics.h"

int mp_seg_counts_new(struct mp_seg_counts *c, size_t classes,
                      struct mp_error *err)
{
    *c = (struct mp_seg_counts){.n = classes};
    c->both = calloc(3 * classes + 1, sizeof *c->both);
    if (c->both == NULL)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    c->predicted = c->both + classes;
    c->labelled = c->predicted + classes;
    return 0;
}

void mp_seg_counts_free(struct mp_seg_counts *c)
{
    free(c->both);
    *c = (struct mp_seg_counts){0};
}

void mp_seg_counts_clear(struct mp_seg_counts *c)
{
    memset(c->both, 0, 3 * c->n * sizeof *c->both);
    c->stray_predicted = c->stray_labelled = 0;
}

static void count_run(struct mp_seg_counts *c, int32_t pred, int32_t label,
                      int64_t n)
{
    if (label == MP_LABEL_IGNORED)
        return;
    if (label < 0)
        c->stray_labelled += n;
    else
        c->labelled[label] += n;
    if (pred < 0)
        c->stray_predicted += n;
    else
        c->predicted[pred] += n;
    if (pred == label && pred >= 0)
        c->both[pred] += n;
}

/* Labels come in runs: a run costs as much as a pixel. */
void mp_seg_count(struct mp_seg_counts *c, const uint16_t *pred,
                  const int32_t *pred_means, const uint16_t *label,
                  const int32_t *label_means, size_t n)
{
    for (size_t i = 0, end; i < n; i = end) {
        for (end = i + 1;
             end < n && pred[end] == pred[i] && label[end] == label[i]; end++)
            ;
        count_run(c, pred_means[pred[i]], label_means[label[i]],
                  (int64_t)(end - i));
    }
}

void mp_seg_counts_add(struct mp_seg_counts *to,
                       const struct mp_seg_counts *from)
{
    for (size_t i = 0; i < 3 * to->n; i++)
        to->both[i] += from->both[i];
    to->stray_predicted += from->stray_predicted;
    to->stray_labelled += from->stray_labelled;
}

/* The mean of the numbers among n, NaN if there is none. */
struct mean {
    double sum, n;
};

static double add(struct mean *m, int64_t part, int64_t whole)
{
    double v = (double)part / (double)whole;

    if (whole == 0)
        return NAN;
    m->sum += v;
    m->n++;
    return v;
}

struct mp_seg_scores mp_seg_scores(const struct mp_seg_counts *c, double *iou,
                                   double *acc)
{
    struct mean all_iou = {0}, all_acc = {0};
    int64_t both = 0, labelled = 0;

    for (size_t i = 0; i < c->n; i++) {
        double u = add(&all_iou, c->both[i],
                       c->predicted[i] + c->labelled[i] - c->both[i]);
        double a = add(&all_acc, c->both[i], c->labelled[i]);

        if (iou != NULL)
            iou[i] = u;
        if (acc != NULL)
            acc[i] = a;
        both += c->both[i];
        labelled += c->labelled[i];
    }
    return (struct mp_seg_scores){.a_acc = (double)both / (double)labelled,
                                  .m_iou = all_iou.sum / all_iou.n,
                                  .m_acc = all_acc.sum / all_acc.n};
}
