/* SPDX-License-Identifier: MIT */
/* places.c - lives of values, and bytes for them and between them. */
#include <stdlib.h>
#include "places.h"

#define ALIGN 64

struct life { /* in steps, inclusive */
    size_t first, last;
};

struct block { /* of the arena, for one value after the other */
    uint32_t heir;
    size_t first, last, bytes, offset;
};

struct finder {
    struct mp_places *p;
    struct life *life; /* per root; first SIZE_MAX: none */
    uint32_t *heir;    /* per root: the one whose block it lies in */
    uint32_t *outside; /* per heir: which address is its, + 1 */
    uint32_t *at;      /* per heir: which block is its, + 1 */
    struct block *block;
    size_t nblock;
};

size_t mp_value_bytes(const struct mp_value *v)
{
    return v->count * mp_dtype_size(v->dtype);
}

static size_t whole(size_t bytes)
{
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

/* ---- lives ---- */

static void touch(const struct finder *f, uint32_t value, size_t step)
{
    struct life *l = &f->life[f->p->root[value]];

    l->first = step < l->first ? step : l->first;
    l->last = step > l->last ? step : l->last;
}

static void find_lives(const struct finder *f)
{
    const struct mp_places *p = f->p;

    for (uint32_t i = 0; i < p->nvalue; i++)
        f->life[i].first = SIZE_MAX;
    for (uint32_t i = 0; i < p->nvalue; i++)
        if (p->input[i])
            touch(f, i, 0);
    for (size_t k = 0; k < p->nstep; k++) {
        for (int i = 0; i < p->step[k].nin; i++)
            if (p->step[k].in[i] != MP_NO_VALUE)
                touch(f, p->step[k].in[i], k);
        touch(f, p->step[k].out, k);
    }
    for (size_t i = 0; i < p->noutput; i++)
        touch(f, p->output[i], p->nstep);
}

/* ---- who takes over whose place ---- */

/* May the result take the place of input i, which dies at this step? */
static int in_place(const struct mp_step *s, int i)
{
    return (s->op == MP_OP_CONV2D && i == 3) ||
           (i == 0 &&
            (s->op == MP_OP_ADD || s->op == MP_OP_MUL || s->op == MP_OP_ACT));
}

/* Is the place of input i read for another input too? */
static int is_read_twice(const struct mp_places *p, const struct mp_step *s,
                         int i)
{
    for (int k = 0; k < s->nin; k++)
        if (k != i && s->in[k] != MP_NO_VALUE &&
            p->root[s->in[k]] == p->root[s->in[i]])
            return 1;
    return 0;
}

/* But for memory of others. */
static void find_heirs(const struct finder *f)
{
    const struct mp_places *p = f->p;

    for (size_t i = 0; i < p->nvalue; i++)
        f->heir[i] = (uint32_t)i;
    for (size_t k = 0; k < p->nstep; k++) {
        const struct mp_step *s = &p->step[k];
        uint32_t out = p->root[s->out];

        for (int i = 0; i < s->nin; i++) {
            uint32_t in;

            if (s->in[i] == MP_NO_VALUE || !in_place(s, i) ||
                p->value[s->in[i]].place == MP_CONSTANT ||
                is_read_twice(p, s, i))
                continue;
            in = p->root[s->in[i]];
            if (f->outside[f->heir[in]] || f->life[in].last != k ||
                f->life[out].first != k ||
                p->value[in].dtype != p->value[out].dtype ||
                mp_value_bytes(&p->value[in]) != mp_value_bytes(&p->value[out]))
                continue;
            f->heir[out] = f->heir[in];
            break;
        }
    }
}

/* ---- outside ---- */

static void put_inputs_outside(const struct finder *f)
{
    for (uint32_t i = 0; i < f->p->nvalue; i++)
        if (f->p->input[i])
            f->outside[i] = (uint32_t)++f->p->noutside;
}

static void put_outputs_outside(const struct finder *f)
{
    for (size_t i = 0; i < f->p->noutput; i++) {
        uint32_t h = f->heir[f->p->root[f->p->output[i]]];

        f->p->noutside++;
        if (!f->outside[h])
            f->outside[h] = (uint32_t)f->p->noutside;
    }
}

/* ---- the arena ---- */

static void make_blocks(struct finder *f)
{
    const struct mp_places *p = f->p;

    for (uint32_t i = 0; i < p->nvalue; i++) {
        const struct life *l = &f->life[i];
        uint32_t h = f->heir[p->root[i]];
        struct block *o;

        if (p->value[i].place == MP_CONSTANT || p->root[i] != i ||
            l->first == SIZE_MAX || f->outside[h])
            continue;
        if (!f->at[h]) {
            f->at[h] = (uint32_t)++f->nblock;
            f->block[f->nblock - 1] =
                (struct block){.heir = h, .first = l->first};
        }
        o = &f->block[f->at[h] - 1];
        o->first = l->first < o->first ? l->first : o->first;
        o->last = l->last > o->last ? l->last : o->last;
        o->bytes = whole(mp_value_bytes(&p->value[i]));
    }
}

static int by_size(const void *a, const void *b)
{
    const struct block *x = a, *y = b;

    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? 1 : -1;
    return x->heir < y->heir ? -1 : x->heir > y->heir;
}

/* The lowest place where block i overlaps none of those before it in both time
 * and space. */
static size_t fit(const struct block *block, size_t i)
{
    size_t at = 0;

    for (;;) {
        size_t next = at;

        for (size_t k = 0; k < i; k++) {
            const struct block *o = &block[k];

            if (o->last < block[i].first || block[i].last < o->first ||
                o->offset >= at + block[i].bytes || o->offset + o->bytes <= at)
                continue;
            if (o->offset + o->bytes > next)
                next = o->offset + o->bytes;
            break;
        }
        if (next == at)
            return at;
        at = next;
    }
}

static void place_blocks(struct finder *f)
{
    qsort(f->block, f->nblock, sizeof *f->block, by_size);
    for (size_t i = 0; i < f->nblock; i++) {
        struct block *o = &f->block[i];

        o->offset = fit(f->block, i);
        if (o->offset + o->bytes > f->p->arena)
            f->p->arena = o->offset + o->bytes;
        f->at[o->heir] = (uint32_t)i + 1;
    }
}

static void tell_values(const struct finder *f)
{
    for (size_t i = 0; i < f->p->nvalue; i++) {
        struct mp_value *v = &f->p->value[i];
        uint32_t h = f->heir[f->p->root[i]];

        if (v->place == MP_CONSTANT)
            continue;
        if (f->outside[h]) {
            v->place = MP_OUTSIDE;
            v->offset = f->outside[h] - 1;
        } else if (f->at[h]) {
            v->offset = f->block[f->at[h] - 1].offset;
        }
    }
}

int mp_places_find(struct mp_places *p, struct mp_error *err)
{
    size_t n = p->nvalue + 1;
    struct finder f = {
        .p = p,
        .life = calloc(n, sizeof *f.life),
        .heir = calloc(n, sizeof *f.heir),
        .outside = calloc(n, sizeof *f.outside),
        .at = calloc(n, sizeof *f.at),
        .block = calloc(n, sizeof *f.block),
    };
    int rc = f.life && f.heir && f.outside && f.at && f.block
                 ? 0
                 : mp_fail(err, MP_ENOMEM, "out of memory");

    p->arena = p->noutside = 0;
    if (!rc) {
        find_lives(&f);
        if (p->outside)
            put_inputs_outside(&f);
        find_heirs(&f);
        if (p->outside)
            put_outputs_outside(&f);
        make_blocks(&f);
        place_blocks(&f);
        tell_values(&f);
    }
    free(f.life);
    free(f.heir);
    free(f.outside);
    free(f.at);
    free(f.block);
    return rc;
}

/* ---- scratch ---- */

struct range { /* of the arena */
    size_t at, end;
};

static size_t add_range(struct range *live, size_t n, const struct mp_value *v)
{
    if (v->place != MP_ARENA)
        return n;
    for (size_t i = 0; i < n; i++)
        if (live[i].at == v->offset)
            return n;
    live[n] = (struct range){v->offset, v->offset + whole(mp_value_bytes(v))};
    return n + 1;
}

static size_t take_range(struct range *live, size_t n, const struct mp_value *v)
{
    for (size_t i = 0; i < n && v->place == MP_ARENA; i++)
        if (live[i].at == v->offset) {
            live[i] = live[--n];
            break;
        }
    return n;
}

static size_t add_inputs(struct range *live, size_t n,
                         const struct mp_program *p, const struct mp_step *s)
{
    for (int k = 0; k < s->nin; k++)
        if (s->in[k] != MP_NO_VALUE)
            n = add_range(live, n, &p->value[s->in[k]]);
    return n;
}

/* The lowest place that is not live. */
static size_t gap(const struct range *live, size_t n, size_t bytes,
                  size_t arena)
{
    size_t at = 0, before = MP_NO_ROOM;

    while (at != before) {
        before = at;
        for (size_t i = 0; i < n; i++)
            if (live[i].at < at + bytes && at < live[i].end)
                at = live[i].end;
    }
    return at + bytes <= arena ? at : MP_NO_ROOM;
}

/* From the last step back. */
int mp_places_scratch(size_t *scratch, const struct mp_program *p,
                      struct mp_error *err)
{
    struct range *live = malloc((p->nvalue + 1) * sizeof *live);
    size_t n = 0;

    if (!live)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    for (size_t i = p->nstep; i-- > 0;) {
        const struct mp_value *y = &p->value[p->step[i].out];

        n = add_inputs(live, add_range(live, n, y), p, &p->step[i]);
        scratch[i] = gap(live, n, scratch[i], p->arena);
        n = add_inputs(live, take_range(live, n, y), p, &p->step[i]);
    }
    free(live);
    return 0;
}
