/* SPDX-License-Identifier: MIT */
/* session.c - a compiled program, run: what goes in and out, times, a dump. */
#include <stdlib.h>
#include <string.h>
#include "places.h"
#include "program.h"
#include "session.h"

struct mp_session {
    struct mp_arena *arena;
    struct mp_plan *plan;
    size_t arena_bytes, nvalue, nstep, nin, nout;
    struct mp_value *value;
    struct mp_step *step;
    uint32_t *in, *out; /* values */
    mp_addr *outside;   /* of this run */
    double *seconds, *total;
    size_t runs;
    char *names;
};

static int no_memory(struct mp_error *err)
{
    return mp_fail(err, MP_ENOMEM, "out of memory");
}

/* ---- compiling ---- */

/* Values and steps outlive the graph: names are copied. */
static int keep_names(struct mp_session *s)
{
    size_t bytes = 1, at = 0;

    for (size_t i = 0; i < s->nvalue; i++)
        bytes += s->value[i].name ? strlen(s->value[i].name) + 1 : 0;
    s->names = malloc(bytes);
    if (!s->names)
        return 0;
    for (size_t i = 0; i < s->nvalue; i++) {
        if (!s->value[i].name)
            continue;
        strcpy(s->names + at, s->value[i].name);
        s->value[i].name = s->names + at;
        at += strlen(s->names + at) + 1;
    }
    return 1;
}

/* What stays of a program when it has been compiled. */
static int keep(struct mp_session *s, const struct mp_build *b,
                const struct mp_graph *g, struct mp_error *err)
{
    const struct mp_program *p = mp_build_program(b);

    s->nvalue = p->nvalue;
    s->nstep = p->nstep;
    s->arena_bytes = p->arena;
    s->value = calloc(s->nvalue + 1, sizeof *s->value);
    s->step = calloc(s->nstep + 1, sizeof *s->step);
    s->in = calloc(s->nvalue + 1, sizeof *s->in);
    s->out = calloc(g->noutput + 1, sizeof *s->out);
    s->outside = calloc(p->noutside + 1, sizeof *s->outside);
    s->seconds = calloc(s->nstep + 1, sizeof *s->seconds);
    if (!s->value || !s->step || !s->in || !s->out || !s->outside ||
        !s->seconds)
        return no_memory(err);
    memcpy(s->value, p->value, s->nvalue * sizeof *s->value);
    memcpy(s->step, p->step, s->nstep * sizeof *s->step);
    for (uint32_t i = 0; i < s->nvalue; i++)
        if (mp_build_is_input(b, i))
            s->in[s->nin++] = i;
    for (size_t i = 0; i < g->noutput; i++) {
        s->out[s->nout] = mp_build_output(b, i);
        s->value[s->out[s->nout++]].name = g->output[i].name;
    }
    return keep_names(s) ? 0 : no_memory(err);
}

int mp_session_new(struct mp_session **out, struct mp_arena *a,
                   const struct mp_graph *g, enum mp_dtype precision,
                   struct mp_error *err)
{
    struct mp_session *s = calloc(1, sizeof *s);
    struct mp_build *b = NULL;
    int rc;

    if (!s)
        return no_memory(err);
    s->arena = a;
    rc = mp_build_new(&b, a, g, precision, err);
    if (!rc && a->backend->host) {
        rc = mp_arena_fit(a, mp_build_program(b)->arena, err);
        mp_build_lend(b, a);
    }
    if (!rc)
        rc = a->backend->compile(a->device, mp_build_program(b), &s->plan, err);
    if (!rc)
        rc = keep(s, b, g, err);
    mp_build_free(b);
    if (rc) {
        mp_session_free(s);
        return rc;
    }
    *out = s;
    return 0;
}

int mp_session_size(struct mp_session_size *out, const struct mp_arena *a,
                    const struct mp_graph *g, enum mp_dtype precision,
                    struct mp_error *err)
{
    const struct mp_program *p;
    struct mp_build *b;
    int rc = mp_build_new(&b, a, g, precision, err);

    *out = (struct mp_session_size){0};
    if (rc)
        return rc;
    p = mp_build_program(b);
    out->arena = p->arena;
    for (size_t i = 0; i < p->nvalue; i++)
        if (p->value[i].place == MP_CONSTANT)
            out->constants += p->value[i].count * mp_dtype_size(precision);
    for (size_t i = 0; i < g->noutput; i++)
        out->outputs += mp_value_bytes(&p->value[mp_build_output(b, i)]);
    mp_build_free(b);
    return 0;
}

void mp_session_free(struct mp_session *s)
{
    if (!s)
        return;
    if (s->plan)
        s->arena->backend->plan_free(s->plan);
    free(s->value);
    free(s->step);
    free(s->in);
    free(s->out);
    free(s->outside);
    free(s->seconds);
    free(s->total);
    free(s->names);
    free(s);
}

size_t mp_session_inputs(const struct mp_session *s)
{
    return s->nin;
}

size_t mp_session_outputs(const struct mp_session *s)
{
    return s->nout;
}

static void describe(const struct mp_value *v, struct mp_tensor *out)
{
    *out =
        (struct mp_tensor){.name = v->name, .dtype = v->dtype, .ndim = v->ndim};
    memcpy(out->dim, v->dim, sizeof out->dim);
}

void mp_session_input(const struct mp_session *s, size_t i,
                      struct mp_tensor *out)
{
    describe(&s->value[s->in[i]], out);
}

void mp_session_output(const struct mp_session *s, size_t i,
                       struct mp_tensor *out)
{
    describe(&s->value[s->out[i]], out);
}

/* ---- running ---- */

static mp_addr place_of(const struct mp_session *s, const struct mp_value *v)
{
    return v->place == MP_OUTSIDE ? s->outside[v->offset]
                                  : s->arena->at + v->offset;
}

static int feed(struct mp_session *s, size_t i, const struct mp_operand *in,
                struct mp_error *err)
{
    const struct mp_backend *b = s->arena->backend;
    const struct mp_value *v = &s->value[s->in[i]];

    if (v->place == MP_OUTSIDE) {
        s->outside[v->offset] =
            in->host ? (mp_addr)(uintptr_t)in->host : in->at;
        return 0;
    }
    return in->host ? b->put(s->arena->device, place_of(s, v), in->host,
                             mp_value_bytes(v), err)
                    : b->copy(s->arena->device, place_of(s, v), in->at,
                              mp_value_bytes(v), err);
}

/* Is output i written to where it is wanted? */
static int is_direct(const struct mp_session *s, size_t i)
{
    const struct mp_value *v = &s->value[s->out[i]];

    return v->place == MP_OUTSIDE && v->offset == s->nin + i;
}

static int deliver(struct mp_session *s, size_t i, const struct mp_operand *out,
                   uint64_t *ticket, struct mp_error *err)
{
    const struct mp_backend *b = s->arena->backend;
    const struct mp_value *v = &s->value[s->out[i]];

    if (is_direct(s, i))
        return 0;
    return out->host ? b->get(s->arena->device, out->host, place_of(s, v),
                              mp_value_bytes(v), ticket, err)
                     : b->copy(s->arena->device, out->at, place_of(s, v),
                               mp_value_bytes(v), err);
}

int mp_session_start(struct mp_session *s, const struct mp_operand *in,
                     const struct mp_operand *out, uint64_t *ticket,
                     struct mp_error *err)
{
    int rc = mp_arena_fit(s->arena, s->arena_bytes, err);

    *ticket = 0;
    for (size_t i = 0; i < s->nin && !rc; i++)
        rc = feed(s, i, &in[i], err);
    for (size_t i = 0; i < s->nout; i++)
        if (is_direct(s, i))
            s->outside[s->nin + i] =
                out[i].host ? (mp_addr)(uintptr_t)out[i].host : out[i].at;
    if (!rc)
        rc = s->arena->backend->run(s->plan, s->arena->at, s->outside,
                                    s->total ? s->seconds : NULL, err);
    for (size_t i = 0; !rc && s->total && i < s->nstep; i++)
        s->total[i] += s->seconds[i];
    s->runs += !rc && s->total;
    for (size_t i = 0; i < s->nout && !rc; i++)
        rc = deliver(s, i, &out[i], ticket, err);
    return rc;
}

int mp_session_run(struct mp_session *s, const void *const *in,
                   void *const *out, struct mp_error *err)
{
    struct mp_operand *o = calloc(s->nin + s->nout, sizeof *o);
    uint64_t ticket;
    int rc, rc2;

    if (!o)
        return no_memory(err);
    for (size_t i = 0; i < s->nin; i++)
        o[i].host = (void *)in[i];
    for (size_t i = 0; i < s->nout; i++)
        o[s->nin + i].host = out[i];
    rc = mp_session_start(s, o, o + s->nin, &ticket, err);
    rc2 = s->arena->backend->wait(s->arena->device, ticket, rc ? NULL : err);
    free(o);
    return rc ? rc : rc2;
}

void mp_session_profile(struct mp_session *s, int on)
{
    free(s->total);
    s->total = on ? calloc(s->nstep + 1, sizeof *s->total) : NULL;
    s->runs = 0;
}

static double flops(const struct mp_session *s, const struct mp_step *step)
{
    const struct mp_value *x = &s->value[step->in[0]], *w;
    const struct mp_value *y = &s->value[step->out];

    switch (step->op) {
    case MP_OP_CONV2D: /* every output: one product per weight of its channel */
        w = &s->value[step->in[1]];
        return 2.0 * (double)y->count * (double)w->count / (double)w->dim[0];
    case MP_OP_DECONV2D: /* every input: one per weight of its channel */
        w = &s->value[step->in[1]];
        return 2.0 * (double)x->count * (double)w->count / (double)w->dim[0];
    case MP_OP_ATTENTION: /* q k^T and p v */
        return 4.0 * (double)x->count * (double)s->value[step->in[1]].dim[1];
    default:
        return 0;
    }
}

size_t mp_session_steps(const struct mp_session *s)
{
    return s->nstep;
}

void mp_session_step(const struct mp_session *s, size_t i,
                     struct mp_step_info *out)
{
    const struct mp_step *p = &s->step[i];

    *out = (struct mp_step_info){
        .op = mp_op_table[p->op].name,
        .kernel = s->arena->backend->kernel(s->plan, i),
        .flops = flops(s, p),
        .seconds = s->total ? s->total[i] : 0,
        .runs = s->runs,
    };
    describe(&s->value[p->out], &out->out);
    if (p->nin > 1 && p->in[1] != MP_NO_VALUE)
        describe(&s->value[p->in[1]], &out->with);
}

size_t mp_session_arena(const struct mp_session *s)
{
    return s->arena_bytes;
}

size_t mp_session_count(const struct mp_session *s, enum mp_op op)
{
    size_t n = 0;

    for (size_t i = 0; i < s->nstep; i++)
        n += s->step[i].op == op;
    return n;
}

static void dump_value(const struct mp_session *s, uint32_t i, FILE *out)
{
    const struct mp_value *v = &s->value[i];
    char shape[64];

    if (v->place == MP_CONSTANT)
        fprintf(out, " %s", v->name ? v->name : "const");
    else if (v->place == MP_OUTSIDE)
        fprintf(out, " %s", v->name ? v->name : "outside");
    else
        fprintf(out, " @%zu", v->offset);
    fprintf(out, "(%s %s)", mp_dtype_name(v->dtype),
            mp_shape_text(shape, v->ndim, v->dim));
}

void mp_session_dump(const struct mp_session *s, FILE *out)
{
    static const char *const act[] = {"",       " +relu",    " +silu",
                                      " +gelu", " +sigmoid", " rsqrt"};

    fprintf(out, "program: %zu steps, arena %zu bytes\n", s->nstep,
            s->arena_bytes);
    for (size_t k = 0; k < s->nstep; k++) {
        const struct mp_step *p = &s->step[k];

        fprintf(out, "%4zu %s:", k, mp_op_table[p->op].name);
        for (int i = 0; i < p->nin; i++) {
            if (p->in[i] == MP_NO_VALUE)
                continue;
            if (p->op == MP_OP_CONV2D && i == 3)
                fputs(" +residual", out);
            dump_value(s, p->in[i], out);
        }
        if (p->attr.up_h)
            fprintf(out, " of %s %dx%d",
                    p->attr.nearest ? "nearest" : "bilinear", (int)p->attr.up_h,
                    (int)p->attr.up_w);
        fprintf(out, "%s ->", act[p->attr.act]);
        dump_value(s, p->out, out);
        fprintf(out, "  %s\n", s->arena->backend->kernel(s->plan, k));
    }
}
