/* SPDX-License-Identifier: MIT */
/* loss.c - how far a network's output is off, and which way is less. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include "train/loss.h"

/* ---- segmentation ---- */

/* ln(sum(exp(logits))): the probability of c is exp(logits[c] - this). */
static double log_sum(const float *logits, int classes)
{
    double most = logits[0], sum = 0;

    for (int c = 1; c < classes; c++)
        most = fmax(most, logits[c]);
    for (int c = 0; c < classes; c++)
        sum += exp(logits[c] - most);
    return most + log(sum);
}

double mp_loss_ce(float *grad, const float *logits, const uint8_t *labels,
                  size_t pixels, int classes)
{
    size_t row = (size_t)classes;
    double loss = 0;

    for (size_t i = 0; i < pixels; i++) {
        const float *x = logits + i * row;
        double log;

        if (labels[i] >= classes)
            continue;
        log = log_sum(x, classes);
        loss += log - x[labels[i]];
        for (int c = 0; grad && c < classes; c++)
            grad[i * row + (size_t)c] +=
                (float)((exp(x[c] - log) - (c == labels[i])) / (double)pixels);
    }
    return pixels ? loss / (double)pixels : 0;
}

void mp_lovasz_weights(double *weight, const uint8_t *is_class, size_t n)
{
    double all = 0, seen = 0, others = 0, before = 0;

    for (size_t k = 0; k < n; k++)
        all += is_class[k];
    for (size_t k = 0; k < n; k++) {
        double jaccard;

        seen += is_class[k];
        others += !is_class[k];
        jaccard = 1 - (all - seen) / (all + others);
        weight[k] = jaccard - before;
        before = jaccard;
    }
}

struct pixel {
    const float *logits;
    double log; /* log_sum of them */
    uint8_t label;
};

struct miss {
    double error;
    size_t pixel;
};

struct lovasz {
    struct pixel *pixel; /* n: those that are not ignored */
    size_t n;
    uint8_t class[256]; /* that occur among them */
    size_t classes;
    double *slope; /* n x classes: of the loss, by the probability */
    /* of one class, n each, in order of errors */
    struct miss *miss;
    uint8_t *is_class;
    double *weight;
};

static void lovasz_free(struct lovasz *l)
{
    free(l->pixel);
    free(l->slope);
    free(l->miss);
    free(l->is_class);
    free(l->weight);
}

static int lovasz_new(struct lovasz *l, const float *logits,
                      const uint8_t *labels, size_t pixels, int classes)
{
    size_t count[256] = {0};

    l->pixel = calloc(pixels + 1, sizeof *l->pixel);
    if (l->pixel == NULL)
        return -1;
    for (size_t i = 0; i < pixels; i++) {
        const float *x = logits + i * (size_t)classes;

        if (labels[i] >= classes)
            continue;
        l->pixel[l->n++] = (struct pixel){x, log_sum(x, classes), labels[i]};
        count[labels[i]]++;
    }
    for (int c = 0; c < 256; c++)
        if (count[c] > 0)
            l->class[l->classes++] = (uint8_t)c;
    l->slope = calloc(l->n * l->classes + 1, sizeof *l->slope);
    l->miss = calloc(l->n + 1, sizeof *l->miss);
    l->is_class = calloc(l->n + 1, sizeof *l->is_class);
    l->weight = calloc(l->n + 1, sizeof *l->weight);
    return l->slope && l->miss && l->is_class && l->weight ? 0 : -1;
}

static double probability(const struct pixel *p, int class)
{
    return exp(p->logits[class] - p->log);
}

/* Descending; equal ones as they come, whatever qsort does. */
static int by_error(const void *a, const void *b)
{
    const struct miss *x = a, *y = b;

    if (x->error != y->error)
        return x->error < y->error ? 1 : -1;
    return x->pixel < y->pixel ? -1 : x->pixel > y->pixel;
}

/* The loss of the class at k, and its slopes, for which weights are constant.
 */
static double of_class(struct lovasz *l, size_t k)
{
    uint8_t class = l->class[k];
    double loss = 0;

    for (size_t i = 0; i < l->n; i++) {
        double p = probability(&l->pixel[i], class);

        l->miss[i].error = l->pixel[i].label == class ? 1 - p : p;
        l->miss[i].pixel = i;
    }
    qsort(l->miss, l->n, sizeof *l->miss, by_error);
    for (size_t i = 0; i < l->n; i++)
        l->is_class[i] = l->pixel[l->miss[i].pixel].label == class;
    mp_lovasz_weights(l->weight, l->is_class, l->n);
    for (size_t i = 0; i < l->n; i++) {
        size_t at = l->miss[i].pixel * l->classes + k;

        loss += l->weight[i] * l->miss[i].error;
        l->slope[at] = l->is_class[i] ? -l->weight[i] : l->weight[i];
    }
    return loss;
}

/* Through the softmax of one pixel. */
static void add_slopes(float *grad, int classes, const struct lovasz *l,
                       size_t pixel)
{
    const struct pixel *p = &l->pixel[pixel];
    const double *slope = l->slope + pixel * l->classes;
    double mean = 0, by_p[256] = {0};

    for (size_t k = 0; k < l->classes; k++) {
        by_p[l->class[k]] = slope[k];
        mean += probability(p, l->class[k]) * slope[k];
    }
    for (int c = 0; c < classes; c++)
        grad[c] +=
            (float)(probability(p, c) * (by_p[c] - mean) / (double)l->classes);
}

int mp_loss_lovasz(double *loss, float *grad, const float *logits,
                   const uint8_t *labels, size_t pixels, int classes,
                   struct mp_error *err)
{
    struct lovasz l = {.n = 0};
    int rc = lovasz_new(&l, logits, labels, pixels, classes);

    *loss = 0;
    for (size_t k = 0; rc == 0 && k < l.classes; k++)
        *loss += of_class(&l, k) / (double)l.classes;
    for (size_t i = 0; rc == 0 && grad && i < l.n; i++)
        add_slopes(grad + (l.pixel[i].logits - logits), classes, &l, i);
    lovasz_free(&l);
    return rc == 0 ? 0 : mp_fail(err, MP_ENOMEM, "out of memory for the loss");
}

double mp_pixel_accuracy(const float *logits, const uint8_t *labels,
                         size_t pixels, int classes)
{
    double right = FLT_EPSILON, counted = FLT_EPSILON;

    for (size_t i = 0; i < pixels; i++, logits += classes) {
        int best = 0;

        for (int c = 1; c < classes; c++)
            best = logits[c] > logits[best] ? c : best;
        right += labels[i] == best;
        counted += labels[i] < classes;
    }
    return 100 * right / counted;
}

/* ---- depth ---- */

double mp_loss_silog(float *grad, const float *pred, const float *truth,
                     size_t n)
{
    double mean = 0, square = 0, count = 0, loss;

    for (size_t i = 0; i < n; i++)
        if (truth[i] > 0) {
            double d = log(truth[i]) - log(pred[i]);

            count++;
            mean += d;
            square += d * d;
        }
    if (count == 0)
        return 0;
    mean /= count;
    loss = sqrt(square / count - mean * mean / 2);
    for (size_t i = 0; grad && loss > 0 && i < n; i++)
        if (truth[i] > 0) {
            double d = log(truth[i]) - log(pred[i]);

            grad[i] += (float)((mean / 2 - d) / (count * loss * pred[i]));
        }
    return loss;
}

/* ---- pose ---- */

double mp_loss_joints(float *grad, const float *pred, const float *target,
                      const float *weight, size_t n, size_t joints,
                      size_t pixels)
{
    double sum = 0, all = (double)n * (double)joints * (double)pixels;

    for (size_t k = 0; k < n * joints; k++)
        for (size_t i = k * pixels; i < (k + 1) * pixels; i++) {
            double w = weight[k], off = w * pred[i] - w * target[i];

            sum += off * off;
            if (grad)
                grad[i] += (float)(2 * w * off / all);
        }
    return all > 0 ? sum / all : 0;
}

#define SIGMA 2.0 /* pixels */
#define REACH 6   /* likewise, to each side: 3 sigma */

float mp_pose_target(float *map, int w, int h, const float joint[2], int in_w,
                     int in_h, float visible)
{
    /* corners of the map lie on corners of the input */
    double x = joint[0] * (w - 1.0) / (in_w - 1.0);
    double y = joint[1] * (h - 1.0) / (in_h - 1.0);
    /* rounded, but -0.6 to 0 as published */
    double mx = trunc(x + 0.5), my = trunc(y + 0.5);

    for (int i = 0; i < w * h; i++)
        map[i] = 0;
    if (!(mx - REACH < w && my - REACH < h && mx + REACH >= -1 &&
          my + REACH >= -1))
        return 0; /* also if it is nowhere (NaN) */
    if (visible <= 0.5f)
        return visible;
    for (int v = 0; v < h; v++)
        for (int u = 0; u < w; u++)
            if (fabs(u - mx) <= REACH && fabs(v - my) <= REACH)
                map[v * w + u] =
                    (float)exp(-((u - x) * (u - x) + (v - y) * (v - y)) /
                               (2 * SIGMA * SIGMA));
    return fminf(visible, 1);
}
