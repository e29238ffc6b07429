/* SPDX-License-Identifier: MIT */
#include <math.h>
#include "train/adamw.h"

void mp_adamw_step(float *param, float *mean, float *square, const float *grad,
                   size_t n, const struct mp_adamw *a, int64_t step)
{
    /* the means are small at first, having begun as 0 */
    double rate = a->lr / (1 - pow(a->beta1, (double)step));
    double scale = 1 / sqrt(1 - pow(a->beta2, (double)step));

    for (size_t i = 0; i < n; i++) {
        double g = grad[i];
        double m = a->beta1 * mean[i] + (1 - a->beta1) * g;
        double v = a->beta2 * square[i] + (1 - a->beta2) * g * g;

        mean[i] = (float)m;
        square[i] = (float)v;
        param[i] = (float)(param[i] * (1 - a->lr * a->decay) -
                           rate * m / (sqrt(v) * scale + a->epsilon));
    }
}
