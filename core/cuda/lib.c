/* SPDX-License-Identifier: MIT */
/* lib.c - plans of the vendor's libraries, shared by all that are alike. */
#include <stdlib.h>
#include <string.h>
#include "cuda/lib.h"

/* Equal in all that it is: there is no padding before the last member. */
static int same(const struct lib_conv *a, const struct lib_conv *b)
{
    return !memcmp(a, b, offsetof(struct lib_conv, tf32) + sizeof a->tf32);
}

/* Networks repeat their layers, the UNet as a whole: a plan, which takes the
 * libraries some milliseconds, is made once and shared. It keeps nothing from
 * run to run. */
int lib_plan_new(struct lib_plan **out, struct gpu *g, const struct lib_conv *c,
                 struct mp_error *err)
{
    const struct mp_conv *v = &c->conv;
    int product = c->r == 1 && c->s == 1 && v->stride == 1 && !v->top &&
                  !v->left && !v->bottom && !v->right;
    struct lib_plan *p = g->plans;
    int rc = gpu_enter(g, err);

    while (p && !same(&p->conv, c))
        p = p->next;
    if (!rc && !p) {
        rc = product ? lt_plan_new(&p, g, c, err) : dnn_plan_new(&p, g, c, err);
        if (!rc) {
            p->conv = *c;
            p->next = g->plans;
            g->plans = p;
        }
    }
    if (rc)
        return rc;
    p->users++;
    *out = p;
    return 0;
}

void lib_plan_free(struct lib_plan *p)
{
    struct lib_plan **at;

    if (!p || --p->users)
        return;
    for (at = &p->gpu->plans; *at != p;)
        at = &(*at)->next;
    *at = p->next;
    p->free(p);
}

size_t lib_plan_work(const struct lib_plan *p)
{
    return p->work;
}

int lib_plan_act(const struct lib_plan *p)
{
    return p->act;
}

const char *lib_plan_name(const struct lib_plan *p)
{
    return p->name;
}

int lib_plan_run(struct lib_plan *p, const struct lib_data *d,
                 struct mp_error *err)
{
    int rc = gpu_enter(p->gpu, err);

    return rc ? rc : p->run(p, d, err);
}
