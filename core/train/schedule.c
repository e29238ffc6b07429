/* SPDX-License-Identifier: MIT */
#include <math.h>
#include <string.h>
#include "train/schedule.h"

double mp_lr_depth(const struct mp_lr_depth *p, int64_t step)
{
    int64_t half = p->epochs / 2;
    double q;

    if (half < 1)
        return NAN;
    q = (double)step / (double)p->iterations / (double)half;
    if (step < p->iterations * half)
        return (p->max - p->min) * pow(q, 0.9) + p->min;
    return fmax(p->min, (p->min - p->max) * pow(q - 1, 0.9) + p->max);
}

static double warm(double lr, struct mp_warmup w, int64_t it)
{
    if (it >= w.iterations)
        return lr;
    return lr * (1 - (1 - (double)it / (double)w.iterations) * (1 - w.ratio));
}

double mp_lr_poly(double base, double power, int64_t max, struct mp_warmup w,
                  int64_t it)
{
    return warm(base * pow(1 - (double)it / (double)max, power), w, it);
}

double mp_lr_steps(double base, double gamma, const int64_t *step, size_t n,
                   struct mp_warmup w, int64_t it, int64_t epoch)
{
    size_t reached = 0;

    while (reached < n && epoch >= step[reached])
        reached++;
    return warm(base * pow(gamma, (double)reached), w, it);
}

struct mp_param_group mp_param_group_seg(const char *name)
{
    /* The first that is part of the name counts: norms inside transformers of
     * the UNet are norms; its group norms are not called so. */
    static const struct {
        const char *part;
        struct mp_param_group group;
    } known[] = {
        {"text_encoder", {0.1, 1}},
        {"encoder_vq", {0, 1}},
        {"norm", {1, 0}},
        {"unet", {0.1, 1}},
    };

    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strstr(name, known[i].part))
            return known[i].group;
    return (struct mp_param_group){1, 1};
}

static int ends_in(const char *name, const char *end)
{
    size_t n = strlen(name), m = strlen(end);

    return n >= m && strcmp(name + n - m, end) == 0;
}

struct mp_param_group mp_param_group_depth(const char *name, int ndim)
{
    struct mp_param_group g = {1, ndim == 1 || ends_in(name, ".bias") ? 0 : 1};

    if (strstr(name, "encoder_vq")) /* frozen */
        g.lr = 0;
    else if (strstr(name, "unet")) /* also the cross_unet_conv layers */
        g.lr = 0.01;
    return g;
}
