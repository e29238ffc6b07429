/* SPDX-License-Identifier: MIT */
/* lib.c - plans of the vendor's libraries, shared by all that are alike. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cuda/lib.h"

/* Equal in all that it is: there is no padding before the last member. */
static int same(const struct lib_conv *a, const struct lib_conv *b)
{
    return !memcmp(a, b, offsetof(struct lib_conv, scale) + sizeof a->scale);
}

/* ---- measuring ---- */

/* All that a choice depends on. */
static void key_of(char key[CHOICE_KEY_BYTES], const struct lib_conv *c)
{
    const struct mp_conv *v = &c->conv;
    const long long size[] = {c->n, c->h, c->w,  c->c, c->k,
                              c->r, c->s, c->oh, c->ow};
    int n = snprintf(key, CHOICE_KEY_BYTES, "%s %s", mp_dtype_name(c->type),
                     mp_dtype_name(c->y_type));

    for (size_t i = 0; i < sizeof size / sizeof *size; i++)
        n += snprintf(key + n, CHOICE_KEY_BYTES - (size_t)n, " %lld", size[i]);
    snprintf(key + n, CHOICE_KEY_BYTES - (size_t)n,
             " stride %d pad %d %d %d %d bias %d residual %d act %d%s tf32 %d",
             v->stride, v->top, v->left, v->bottom, v->right, c->bias,
             c->residual, c->act, c->w_ck ? " ck" : "", c->tf32);
    if (c->times > 1)
        snprintf(key + strlen(key), CHOICE_KEY_BYTES - strlen(key), " times %d",
                 (int)c->times);
}

/* Memory that a plan is tried on. */
struct ground {
    mp_addr at;
    size_t size;
    struct lib_data data;
};

/* Random signs and mantissas, of numbers from 1 to 2 in whatever type they are
 * read: zeros would take less power, and so less time. */
static int fill(struct gpu *g, mp_addr at, size_t bytes, struct mp_error *err)
{
    uint16_t some[1 << 13];
    size_t done = bytes < sizeof some ? bytes : sizeof some;
    uint32_t state = 1;
    int rc;

    for (size_t i = 0; i < sizeof some / sizeof *some; i++) {
        state = state * 1664525 + 1013904223;
        some[i] = (uint16_t)(0x3f80 | (state >> 16 & 0x807f));
    }
    rc = gpu_put(g, at, some, done, err);
    while (!rc && done < bytes) {
        size_t n = done < bytes - done ? done : bytes - done;

        rc = gpu_copy(g, at + done, at, n, err);
        done += n;
    }
    return rc;
}

static mp_addr place(size_t *at, int64_t count, enum mp_dtype t)
{
    mp_addr here = *at;

    *at += ((size_t)count * mp_dtype_size(t) + 255) / 256 * 256;
    return here;
}

static int make_ground(struct ground *f, struct gpu *g,
                       const struct lib_conv *c, struct mp_error *err)
{
    int64_t times = c->times > 1 ? c->times : 1;
    int64_t y = c->n * c->oh * c->ow * c->k + (times - 1) * c->y_next;
    struct lib_data d;
    size_t bytes = 0;
    int rc;

    d.x = place(&bytes, c->n * c->h * c->w * c->c, c->type);
    d.w = place(&bytes, times * c->k * c->r * c->s * c->c, c->type);
    d.residual = place(&bytes, c->n * c->oh * c->ow * c->k, c->y_type);
    d.bias = place(&bytes, c->k, c->y_type);
    d.y = place(&bytes, y, c->y_type);
    d.work = bytes;
    rc = gpu_alloc(g, bytes + LIB_WORK, "measuring", &f->at, err);
    if (rc)
        return rc;
    f->data = (struct lib_data){.x = f->at + d.x,
                                .w = f->at + d.w,
                                .residual = f->at + d.residual,
                                .bias = f->at + d.bias,
                                .y = f->at + d.y,
                                .work = f->at + d.work};
    rc = fill(g, f->at, bytes, err);
    if (rc)
        gpu_free(g, f->at);
    return rc;
}

#define REPEAT 4 /* in one recording: to start it counts for less */
#define TIMES  5

/* As a network runs it: recorded, and replayed. */
static int record(struct gpu_graph **out, struct lib_plan *p,
                  const struct ground *f, struct mp_error *err)
{
    struct gpu *g = p->gpu;
    int rc = p->run(p, &f->data, err), rc2; /* it loads its kernels */

    if (!rc)
        rc = gpu_record(g, err);
    if (rc)
        return rc;
    for (int i = 0; i < REPEAT && !rc; i++)
        rc = p->run(p, &f->data, err);
    rc2 = gpu_recorded(g, out, rc ? NULL : err); /* whatever happened */
    return rc ? rc : rc2;
}

static int measure(double *seconds, struct lib_plan *p, const struct ground *f,
                   struct mp_error *err)
{
    struct gpu_graph *graph = NULL;
    struct gpu *g = p->gpu;
    int rc = record(&graph, p, f, err);

    if (!rc)
        rc = gpu_replay(g, graph, err);
    *seconds = HUGE_VAL;
    for (int i = 0; i < TIMES && !rc; i++) {
        double one = 0;

        rc = gpu_mark(g, 0, err);
        if (!rc)
            rc = gpu_replay(g, graph, err);
        if (!rc)
            rc = gpu_mark(g, 1, err);
        if (!rc)
            rc = gpu_between(g, 0, 1, &one, err);
        if (one / REPEAT < *seconds)
            *seconds = one / REPEAT;
    }
    gpu_graph_free(graph);
    return rc;
}

/* The fastest plan, made by its choice. What cannot be tried is out. */
static int find_fastest(struct lib_plan **out, char best[CHOICE_BYTES],
                        const char *key, const struct lib_kind *kind,
                        struct gpu *g, const struct lib_conv *c,
                        struct mp_error *err)
{
    char choice[LIB_CHOICES][CHOICE_BYTES];
    double least = HUGE_VAL, first = NAN, seconds;
    struct ground f;
    size_t n = 0;
    int rc = kind->choices(choice, &n, g, c, err);

    *out = NULL;
    if (!rc)
        rc = make_ground(&f, g, c, err);
    if (rc)
        return rc;
    for (size_t i = 0; i < n; i++) {
        struct lib_plan *p;

        rc = kind->plan_new(&p, g, c, choice[i], err);
        if (rc)
            continue;
        rc = measure(&seconds, p, &f, err);
        if (!rc && i == 0)
            first = seconds;
        if (!rc && seconds < least) {
            if (*out)
                (*out)->free(*out);
            *out = p;
            least = seconds;
            memcpy(best, choice[i], CHOICE_BYTES);
        } else {
            p->free(p);
        }
    }
    gpu_free(g, f.at);
    if (!*out)
        return rc;
    mp_log(MP_LOG_INFO, "autotune", "%s: %.1f us, the library's first %.1f: %s",
           key, 1e6 * least, 1e6 * first, best);
    return 0;
}

/* As an earlier start has found, or as is found now; else as the library
 * thinks. */
static int tune(struct lib_plan **out, const struct lib_kind *kind,
                struct gpu *g, const struct lib_conv *c, struct mp_error *err)
{
    char key[CHOICE_KEY_BYTES], best[CHOICE_BYTES];
    struct mp_error why = {0};
    const char *known;

    key_of(key, c);
    known = choices_find(g->choices, key);
    if (known && !kind->plan_new(out, g, c, known, &why))
        return 0;
    if (known)
        mp_log(MP_LOG_WARNING, "autotune",
               "%s: what was kept is of no use, and measured again: %s", key,
               why.text);
    if (!find_fastest(out, best, key, kind, g, c, &why))
        return choices_add(g->choices, key, best, err);
    mp_log(MP_LOG_INFO, "autotune", "%s: not measured: %s", key, why.text);
    return kind->plan_new(out, g, c, NULL, err);
}

int lib_autotune(struct gpu *g, int index, struct mp_error *err)
{
    struct mp_device_info info;
    char versions[64], name[sizeof info.name + sizeof versions + 8];
    int rc = gpu_info(index, &info, err);

    if (rc)
        return rc;
    vendor_versions(g, versions, sizeof versions);
    snprintf(name, sizeof name, "%s-%s.txt", info.name, versions);
    return choices_open(&g->choices, name, err);
}

int lib_is_autotuned(const struct gpu *g)
{
    return g->choices != NULL;
}

/* ---- plans ---- */

/* Networks repeat their layers, the UNet as a whole: a plan, which takes the
 * libraries some milliseconds, is made once and shared. It keeps nothing from
 * run to run. */
int lib_plan_new(struct lib_plan **out, struct gpu *g, const struct lib_conv *c,
                 struct mp_error *err)
{
    const struct mp_conv *v = &c->conv;
    int product = !c->heads && c->r == 1 && c->s == 1 && v->stride == 1 &&
                  !v->top && !v->left && !v->bottom && !v->right;
    const struct lib_kind *kind = product ? &lib_lt : &lib_dnn;
    struct lib_plan *p = g->plans;
    int rc = gpu_enter(g, err);

    while (p && !same(&p->conv, c))
        p = p->next;
    if (!rc && !p) {
        rc = g->choices && !c->heads ? tune(&p, kind, g, c, err)
                                     : kind->plan_new(&p, g, c, NULL, err);
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
