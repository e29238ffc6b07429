/* SPDX-License-Identifier: MIT */
/*
 * session.c - from a rewritten graph to a compiled program.
 *
 * Constants that must be computed are computed by the same machinery: a
 * program of their own, run once on the same device in f32. Small ones go
 * together in one program, big ones (transposed convolutions with a batch norm
 * in them) one by one and only when the backend asks, so that no second copy of
 * the model is ever held. Of other convolutions with a batch norm it may have
 * the weights as the file has them, and what their rows are multiplied by.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "fold.h"
#include "session.h"

#define ALIGN 64
#define SMALL ((size_t)4 << 20) /* bytes of a constant computed with others */

struct slot {      /* a value's life in the arena */
    uint32_t root; /* the value whose bytes these are (reshape, in place) */
    size_t first, last; /* steps, inclusive */
    size_t bytes;
};

/* What a program for constants has computed: where it did, or a copy. */
struct results {
    mp_addr arena;
    float *copy;
    struct results *next;
};

struct builder {
    struct mp_net *net;
    const struct mp_backend *backend;
    struct mp_device *device;
    enum mp_dtype precision;
    const struct mp_arena *arena; /* idle while this compiles, or NULL */
    struct mp_program program;
    struct mp_value *value;
    struct mp_step *step;
    struct slot *slot;      /* per value */
    uint32_t *value_of;     /* per node: value + 1 */
    uint32_t *node_of;      /* per value */
    uint32_t *outside;      /* per block: which address is its, + 1 */
    uint8_t *leaf;          /* per node: given, not computed by this program */
    const float **computed; /* per node: folded constants; shared */
    struct results *small;  /* what they lie in */
    struct results *large;  /* the same, until release() */
    float *held;            /* what constant() converted, until then */
    struct mp_error *err;
};

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

/* ---- values and steps ---- */

static int is_given(const struct mp_node_def *n)
{
    return n->op == MP_OP_WEIGHT || n->op == MP_OP_CONST;
}

/* The node whose contents x has: behind reshapes of what is given. */
static uint32_t given(const struct mp_net *net, uint32_t x)
{
    while (net->node[x].op == MP_OP_RESHAPE)
        x = net->node[x].in[0];
    return is_given(&net->node[x]) ? x : 0;
}

static uint32_t value_for(struct builder *b, uint32_t id)
{
    const struct mp_node_def *n = &b->net->node[id];
    struct mp_value *v;
    uint32_t at;

    if (b->value_of[id])
        return b->value_of[id] - 1;
    at = (uint32_t)b->program.nvalue++;
    b->value_of[id] = at + 1;
    b->node_of[at] = id;
    v = &b->value[at];
    v->place = b->leaf[id] ? MP_CONSTANT : MP_ARENA;
    v->dtype = n->dtype;
    v->ndim = n->ndim;
    memcpy(v->dim, n->dim, sizeof v->dim);
    v->count = (size_t)mp_shape_count(n->ndim, n->dim);
    memcpy(v->key, b->net->key[id], sizeof v->key);
    v->name = n->name;
    b->slot[at].root = at;
    b->slot[at].first = SIZE_MAX;
    return at;
}

static void make_steps(struct builder *b, const uint8_t *wanted)
{
    for (uint32_t id = 1; id < b->net->nnode; id++) {
        const struct mp_node_def *n = &b->net->node[id];
        struct mp_step *s;
        uint32_t out;

        if (!wanted[id] || b->leaf[id])
            continue;
        out = value_for(b, id);
        if (n->op == MP_OP_INPUT)
            continue;
        if (n->op == MP_OP_RESHAPE) {
            b->slot[out].root = b->slot[value_for(b, n->in[0])].root;
            continue;
        }
        s = &b->step[b->program.nstep++];
        s->op = n->op;
        s->attr = n->attr;
        s->nin = n->nin;
        s->out = out;
        for (int k = 0; k < n->nin; k++)
            s->in[k] = n->in[k] ? value_for(b, n->in[k]) : MP_NO_VALUE;
    }
}

/* ---- precision ---- */

/* Ops that only carry values from place to place or map them one by one. */
static int is_light(enum mp_op op)
{
    return op == MP_OP_ACT || op == MP_OP_ADD || op == MP_OP_MUL ||
           op == MP_OP_CONCAT || op == MP_OP_SLICE || op == MP_OP_RESIZE ||
           op == MP_OP_PAD || op == MP_OP_FLIP || op == MP_OP_SOFTMAX ||
           op == MP_OP_ARGMAX || op == MP_OP_FLOAT || op == MP_OP_POOL ||
           op == MP_OP_HEATMAP_PEAKS;
}

/* Is a result read by more than products, which round it themselves? */
static int is_read_whole(const struct builder *b, uint32_t value)
{
    for (size_t k = 0; k < b->program.nstep; k++)
        for (int i = 0; i < b->step[k].nin; i++) {
            uint32_t in = b->step[k].in[i];

            if (in != MP_NO_VALUE && b->slot[in].root == b->slot[value].root &&
                (b->step[k].op != MP_OP_CONV2D || i > 0))
                return 1;
        }
    return 0;
}

/* A network adds to the same values again and again: to round every sum would
 * cost digits. */
static void mark_sums(struct builder *b, uint8_t *keep)
{
    for (size_t k = 0; k < b->program.nstep; k++) {
        const struct mp_step *s = &b->step[k];
        const struct mp_value *y = &b->value[s->out];

        if (s->op == MP_OP_CONV2D && s->nin > 3 && s->in[3] != MP_NO_VALUE &&
            y->count / (size_t)y->dim[0] * sizeof(float) <=
                b->backend->wide_sums &&
            is_read_whole(b, s->out))
            keep[b->slot[s->out].root] = 1;
    }
}

/* Pixels until the first real layer, and results from the last one on, stay
 * f32: they cost little there, and are what users see. So do places in maps. */
static int mark_f32(struct builder *b, uint8_t *keep, const uint32_t *outputs,
                    size_t noutput)
{
    struct mp_program *p = &b->program;

    for (size_t i = 0; i < p->nvalue; i++)
        if (b->net->node[b->node_of[i]].op == MP_OP_INPUT)
            keep[b->slot[i].root] = 1;
    for (size_t k = 0; k < p->nstep; k++) {
        const struct mp_step *s = &b->step[k];
        int all = is_light(s->op);

        for (int i = 0; i < s->nin; i++)
            all = all && (b->value[s->in[i]].place == MP_CONSTANT ||
                          keep[b->slot[s->in[i]].root]);
        if (all)
            keep[b->slot[s->out].root] = 1;
    }
    mark_sums(b, keep);
    for (size_t i = 0; i < noutput; i++)
        keep[b->slot[b->value_of[outputs[i]] - 1].root] = 2;
    for (size_t k = 0; k < p->nstep; k++) /* 8 bits are no place in a map */
        if (b->step[k].op == MP_OP_HEATMAP_PEAKS)
            keep[b->slot[b->step[k].out].root] = 2;
    for (size_t k = p->nstep; k-- > 0;) {
        const struct mp_step *s = &b->step[k];

        if (keep[b->slot[s->out].root] == 2 && is_light(s->op))
            for (int i = 0; i < s->nin; i++)
                keep[b->slot[s->in[i]].root] = 2;
    }
    return 0;
}

static void set_precision(struct builder *b, const uint8_t *keep)
{
    for (size_t i = 0; i < b->program.nvalue; i++) {
        struct mp_value *v = &b->value[i];
        uint32_t root = b->slot[i].root;

        if (v->place == MP_ARENA && v->dtype == MP_F32 && !keep[root])
            v->dtype = b->precision;
    }
}

/* ---- memory ---- */

static void touch(struct builder *b, uint32_t value, size_t step)
{
    struct slot *s = &b->slot[b->slot[value].root];

    s->first = step < s->first ? step : s->first;
    s->last = step > s->last ? step : s->last;
}

/* May the result take the place of input i, which dies at this step? */
static int in_place(const struct mp_step *s, int i)
{
    return (s->op == MP_OP_CONV2D && i == 3) ||
           (i == 0 &&
            (s->op == MP_OP_ADD || s->op == MP_OP_MUL || s->op == MP_OP_ACT));
}

static size_t bytes_of(const struct mp_value *v)
{
    return v->count * mp_dtype_size(v->dtype);
}

/* Is the place of input i read for another input too? */
static int is_read_twice(const struct builder *b, const struct mp_step *s,
                         int i)
{
    for (int k = 0; k < s->nin; k++)
        if (k != i && s->in[k] != MP_NO_VALUE &&
            b->slot[s->in[k]].root == b->slot[s->in[i]].root)
            return 1;
    return 0;
}

/* Lives are known: let results take over the place of dying inputs, but for
 * memory of others. heir[r] is the block that root r lies in. */
static void share_places(struct builder *b, uint32_t *heir)
{
    for (size_t i = 0; i < b->program.nvalue; i++)
        heir[i] = (uint32_t)i;
    for (size_t k = 0; k < b->program.nstep; k++) {
        const struct mp_step *s = &b->step[k];
        uint32_t out = b->slot[s->out].root;

        for (int i = 0; i < s->nin; i++) {
            uint32_t in;

            if (s->in[i] == MP_NO_VALUE || !in_place(s, i) ||
                b->value[s->in[i]].place == MP_CONSTANT ||
                is_read_twice(b, s, i))
                continue;
            in = b->slot[s->in[i]].root;
            if (b->outside[heir[in]] || b->slot[in].last != k ||
                b->slot[out].first != k ||
                b->value[in].dtype != b->value[out].dtype ||
                bytes_of(&b->value[in]) != bytes_of(&b->value[out]))
                continue;
            heir[out] = heir[in];
            break;
        }
    }
}

struct block {
    uint32_t root;
    size_t first, last, bytes, offset;
};

static int by_size(const void *a, const void *b)
{
    const struct block *x = a, *y = b;

    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? 1 : -1;
    return x->root < y->root ? -1 : x->root > y->root;
}

/* The lowest place where block i overlaps none of the placed ones in both
 * time and space. */
static size_t place(struct block *block, size_t i)
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

/* Inputs, by their number, lie where run() is told. */
static void put_inputs_outside(struct builder *b)
{
    for (uint32_t i = 0; i < b->program.nvalue; i++)
        if (b->net->node[b->node_of[i]].op == MP_OP_INPUT)
            b->outside[i] = (uint32_t)++b->program.noutside;
}

/* So do outputs, after the inputs; but one that is an input, or another output,
 * is copied from there. */
static void put_outputs_outside(struct builder *b, const uint32_t *heir,
                                const uint32_t *outputs, size_t noutput)
{
    for (size_t i = 0; i < noutput; i++) {
        uint32_t h = heir[b->slot[b->value_of[outputs[i]] - 1].root];

        b->program.noutside++;
        if (!b->outside[h])
            b->outside[h] = (uint32_t)b->program.noutside;
    }
}

static int plan_memory(struct builder *b, const uint32_t *outputs,
                       size_t noutput)
{
    size_t n = b->program.nvalue, nblock = 0;
    uint32_t *heir = calloc(n + 1, sizeof *heir);
    struct block *block = calloc(n + 1, sizeof *block);
    uint32_t *at = calloc(n + 1, sizeof *at);
    int rc = heir && block && at ? 0 : no_memory(b->err);

    if (rc)
        goto done;
    for (uint32_t i = 0; i < n; i++)
        if (b->net->node[b->node_of[i]].op == MP_OP_INPUT)
            touch(b, i, 0);
    for (size_t k = 0; k < b->program.nstep; k++) {
        for (int i = 0; i < b->step[k].nin; i++)
            if (b->step[k].in[i] != MP_NO_VALUE)
                touch(b, b->step[k].in[i], k);
        touch(b, b->step[k].out, k);
    }
    for (size_t i = 0; i < noutput; i++)
        touch(b, b->value_of[outputs[i]] - 1, b->program.nstep);
    if (b->backend->host && !b->program.once)
        put_inputs_outside(b);
    share_places(b, heir);
    if (b->backend->host && !b->program.once)
        put_outputs_outside(b, heir, outputs, noutput);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t h = heir[b->slot[i].root];
        struct block *o;

        if (b->value[i].place == MP_CONSTANT || b->slot[i].root != i ||
            b->slot[i].first == SIZE_MAX || b->outside[h])
            continue;
        if (!at[h]) {
            at[h] = (uint32_t)++nblock;
            block[nblock - 1] =
                (struct block){.root = h, .first = b->slot[i].first};
        }
        o = &block[at[h] - 1];
        o->first = b->slot[i].first < o->first ? b->slot[i].first : o->first;
        o->last = b->slot[i].last > o->last ? b->slot[i].last : o->last;
        o->bytes = (bytes_of(&b->value[i]) + ALIGN - 1) / ALIGN * ALIGN;
    }
    qsort(block, nblock, sizeof *block, by_size);
    for (size_t i = 0; i < nblock; i++) {
        block[i].offset = place(block, i);
        if (block[i].offset + block[i].bytes > b->program.arena)
            b->program.arena = block[i].offset + block[i].bytes;
        at[block[i].root] = (uint32_t)i + 1;
    }
    for (size_t i = 0; i < n; i++) {
        uint32_t h = heir[b->slot[i].root];

        if (b->value[i].place == MP_CONSTANT)
            continue;
        if (b->outside[h]) {
            b->value[i].place = MP_OUTSIDE;
            b->value[i].offset = b->outside[h] - 1;
        } else if (at[h]) {
            b->value[i].offset = block[at[h] - 1].offset;
        }
    }
done:
    free(heir);
    free(block);
    free(at);
    return rc;
}

/* ---- constants ---- */

static int compute(struct builder *b, const uint32_t *wanted, size_t n,
                   struct results **list, struct mp_error *err);

/* What a checkpoint has that needs no conversion. */
static int is_plain(const struct mp_weight_info *w)
{
    return w && w->dense && w->dtype == MP_F32 &&
           (uintptr_t)w->data % sizeof(float) == 0;
}

/* A weight of a checkpoint, or a slice of each of its rows. */
struct rows {
    const struct mp_weight_info *weight; /* NULL: it is neither */
    size_t first, row;                   /* floats */
};

static struct rows rows_of(const struct mp_net *net, uint32_t id)
{
    const struct mp_node_def *n = &net->node[id], *all = n;
    int is_slice = n->op == MP_OP_SLICE && n->attr.axis == 1;
    uint32_t leaf = given(net, is_slice ? n->in[0] : id);
    struct rows r = {.weight = leaf ? net->node[leaf].weight : NULL};

    if (!is_plain(r.weight))
        return (struct rows){.weight = NULL};
    if (is_slice)
        all = &net->node[n->in[0]];
    r.row = (size_t)mp_shape_count(all->ndim - 1, all->dim + 1);
    if (is_slice)
        r.first = (size_t)n->attr.start * (r.row / (size_t)all->dim[1]);
    return r;
}

/* What the rows of a constant are to be multiplied by, which else are as a
 * checkpoint has them: 0: it is no such product. */
static uint32_t scale_of(const struct mp_net *net, uint32_t id)
{
    const struct mp_node_def *n = &net->node[id], *scale;

    if (n->op != MP_OP_MUL || !rows_of(net, n->in[0]).weight)
        return 0;
    scale = &net->node[n->in[1]];
    if (scale->op != MP_OP_RESHAPE || scale->ndim != n->ndim ||
        scale->dim[0] != n->dim[0] ||
        mp_shape_count(scale->ndim, scale->dim) != n->dim[0])
        return 0;
    return scale->in[0];
}

static size_t note(uint32_t *list, size_t n, uint32_t id)
{
    for (size_t i = 0; i < n; i++)
        if (list[i] == id)
            return n;
    list[n] = id;
    return n + 1;
}

/* Compute every small constant that some step of b wants, and scales of large
 * ones, together. */
static int compute_small(struct builder *b, struct mp_error *err)
{
    uint32_t *list = calloc(b->program.nvalue + 1, sizeof *list);
    size_t n = 0;
    int rc;

    if (!list)
        return no_memory(err);
    for (size_t i = 0; i < b->program.nvalue; i++) {
        uint32_t id = b->node_of[i];

        if (b->leaf[id] && b->value[i].count * sizeof(float) > SMALL)
            id = scale_of(b->net, id);
        if (id && b->leaf[id] && !given(b->net, id) && !b->computed[id])
            n = note(list, n, id);
    }
    rc = n ? compute(b, list, n, &b->small, err) : 0;
    free(list);
    return rc;
}

static void forget(const struct builder *b, struct results **list)
{
    while (*list) {
        struct results *r = *list;

        *list = r->next;
        if (r->arena)
            b->backend->free(b->device, r->arena);
        free(r->copy);
        free(r);
    }
}

static int hold(const struct mp_program *p, uint32_t value,
                struct mp_held_weight *out, struct mp_error *err)
{
    struct builder *b = p->user;
    uint32_t id = b->node_of[value], scale = 0;
    struct rows r = {.weight = NULL};
    int rc = 0;

    if (given(b->net, id)) {
        r = rows_of(b->net, id);
    } else if (b->value[value].count * sizeof(float) > SMALL) {
        scale = scale_of(b->net, id);
        if (scale)
            r = rows_of(b->net, b->net->node[id].in[0]);
        if (scale && !b->computed[scale])
            rc = compute_small(b, err);
    }
    if (rc || !r.weight)
        return rc;
    *out = (struct mp_held_weight){
        .mapping = mp_mapping_hold(r.weight->mapping),
        .data = (const float *)r.weight->data + r.first,
        .row = r.row,
        .scale = scale ? b->computed[scale] : NULL,
    };
    return 1;
}

static void drop(struct mp_mapping *held, const void *data, size_t bytes)
{
    mp_mapping_forget(data, bytes);
    mp_mapping_drop(held);
}

static int constant(const struct mp_program *p, uint32_t value,
                    const float **data, struct mp_error *err)
{
    struct builder *b = p->user;
    uint32_t id = b->node_of[value], leaf = given(b->net, id);
    const struct mp_weight_info *w = leaf ? b->net->node[leaf].weight : NULL;
    size_t bytes = b->value[value].count * sizeof(float);
    int rc = 0;

    if (leaf && !w) {
        *data = b->net->node[leaf].data;
    } else if (is_plain(w)) {
        *data = w->data;
    } else if (w) {
        free(b->held);
        b->held = malloc(bytes);
        if (!b->held)
            return no_memory(err);
        mp_weight_f32(w, b->held);
        *data = b->held;
    } else {
        if (!b->computed[id])
            rc = bytes <= SMALL ? compute_small(b, err)
                                : compute(b, &id, 1, &b->large, err);
        *data = b->computed[id];
    }
    return rc;
}

static void release(const struct mp_program *p, uint32_t value)
{
    struct builder *b = p->user;
    uint32_t id = b->node_of[value], leaf = given(b->net, id);

    free(b->held);
    b->held = NULL;
    if (leaf && b->net->node[leaf].weight)
        mp_weight_forget(b->net->node[leaf].weight);
    else if (!leaf && b->value[value].count * sizeof(float) > SMALL) {
        forget(b, &b->large);
        b->computed[id] = NULL;
    }
}

/* ---- programs ---- */

static void builder_free(struct builder *b)
{
    free(b->value);
    free(b->step);
    free(b->slot);
    free(b->value_of);
    free(b->node_of);
    free(b->outside);
    free(b->leaf);
    free(b->held);
}

/* The program that computes `outputs` from inputs and leaves. */
static int build(struct builder *b, const uint32_t *outputs, size_t noutput)
{
    size_t n = b->net->nnode;
    uint8_t *wanted = calloc(n, 1), *keep = calloc(n, 1);
    int rc = 0;

    b->value = calloc(n, sizeof *b->value);
    b->step = calloc(n, sizeof *b->step);
    b->slot = calloc(n, sizeof *b->slot);
    b->value_of = calloc(n, sizeof *b->value_of);
    b->node_of = calloc(n, sizeof *b->node_of);
    b->outside = calloc(n, sizeof *b->outside);
    if (!wanted || !keep || !b->value || !b->step || !b->slot || !b->value_of ||
        !b->node_of || !b->outside) {
        rc = no_memory(b->err);
        goto done;
    }
    for (size_t i = 0; i < noutput; i++)
        wanted[outputs[i]] = 1;
    for (size_t i = n - 1; i > 0; i--) {
        const struct mp_node_def *d = &b->net->node[i];

        if (d->op == MP_OP_INPUT && b->net->live[i] && !b->program.once)
            wanted[i] = 1;
        for (int k = 0; wanted[i] && !b->leaf[i] && k < d->nin; k++)
            wanted[d->in[k]] = 1;
    }
    wanted[0] = 0;
    make_steps(b, wanted);
    for (size_t i = 0; i < noutput; i++) /* an output may be a leaf */
        if (!b->value_of[outputs[i]])
            value_for(b, outputs[i]);
    mark_f32(b, keep, outputs, noutput);
    set_precision(b, keep);
    rc = plan_memory(b, outputs, noutput);
    b->program.value = b->value;
    b->program.step = b->step;
    b->program.constant = constant;
    b->program.release = release;
    b->program.hold = hold;
    b->program.drop = drop;
    b->program.user = b;
done:
    free(wanted);
    free(keep);
    return rc;
}

/* The results of n nodes: where the host can read them they stay. */
static int fetch(struct builder *b, const struct builder *sub,
                 const uint32_t *wanted, size_t n, mp_addr arena,
                 struct results *r, struct mp_error *err)
{
    size_t bytes = 1;
    char *at;
    int rc = 0;

    for (size_t i = 0; i < n; i++)
        bytes += bytes_of(&sub->value[sub->value_of[wanted[i]] - 1]);
    if (!b->backend->host && !(r->copy = malloc(bytes)))
        return no_memory(err);
    at = (char *)r->copy;
    for (size_t i = 0; i < n && !rc; i++) {
        const struct mp_value *v = &sub->value[sub->value_of[wanted[i]] - 1];
        mp_addr from = arena + v->offset;
        uint64_t ticket = 0;
        int rc2;

        if (b->backend->host) {
            b->computed[wanted[i]] = (const float *)(uintptr_t)from;
            continue;
        }
        rc = b->backend->get(b->device, at, from, bytes_of(v), &ticket, err);
        rc2 = b->backend->wait(b->device, ticket, rc ? NULL : err);
        rc = rc ? rc : rc2;
        b->computed[wanted[i]] = rc ? NULL : (const float *)(void *)at;
        at += bytes_of(v);
    }
    return rc;
}

/* Run the program of these constants; its own constants are what is given. What
 * they lie in goes into the list; small ones lie in the session's arena, which
 * is idle now: memory that is touched later anyway. */
static int compute(struct builder *b, const uint32_t *wanted, size_t n,
                   struct results **list, struct mp_error *err)
{
    struct builder sub = {.net = b->net,
                          .backend = b->backend,
                          .device = b->device,
                          .precision = MP_F32,
                          .computed = b->computed,
                          .err = err};
    struct results *r = calloc(1, sizeof *r);
    struct mp_plan *plan = NULL;
    mp_addr at = 0;
    int rc;

    sub.program.once = 1;
    sub.leaf = calloc(b->net->nnode, 1);
    if (!sub.leaf || !r) {
        free(sub.leaf);
        free(r);
        return no_memory(err);
    }
    r->next = *list;
    *list = r;
    for (uint32_t i = 1; i < b->net->nnode; i++)
        sub.leaf[i] = given(b->net, i) != 0;
    rc = build(&sub, wanted, n);
    if (!rc)
        rc = b->backend->compile(b->device, &sub.program, &plan, err);
    if (list == &b->small && !r->next && b->arena &&
        sub.program.arena <= b->arena->bytes)
        at = b->arena->at;
    if (!rc && !at)
        rc = b->backend->alloc(b->device, sub.program.arena, &r->arena, err);
    at = at ? at : r->arena;
    if (!rc)
        rc = b->backend->run(plan, at, NULL, NULL, err);
    if (!rc)
        rc = fetch(b, &sub, wanted, n, at, r, err);
    if (r->arena && r->copy) {
        b->backend->free(b->device, r->arena);
        r->arena = 0;
    }
    b->backend->plan_free(plan);
    builder_free(&sub);
    return rc;
}

/* ---- sessions ---- */

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

static int take(struct mp_session *s, struct builder *b,
                const struct mp_graph *g, struct mp_error *err)
{
    s->nvalue = b->program.nvalue;
    s->nstep = b->program.nstep;
    s->arena_bytes = b->program.arena;
    s->value = b->value;
    s->step = b->step;
    b->value = NULL;
    b->step = NULL;
    s->in = calloc(s->nvalue + 1, sizeof *s->in);
    s->out = calloc(g->noutput + 1, sizeof *s->out);
    s->outside = calloc(b->program.noutside + 1, sizeof *s->outside);
    s->seconds = calloc(s->nstep + 1, sizeof *s->seconds);
    if (!s->in || !s->out || !s->outside || !s->seconds)
        return no_memory(err);
    for (uint32_t i = 0; i < s->nvalue; i++)
        if (b->net->node[b->node_of[i]].op == MP_OP_INPUT)
            s->in[s->nin++] = i;
    for (size_t i = 0; i < g->noutput; i++) {
        s->out[s->nout] = b->value_of[b->net->output[i]] - 1;
        s->value[s->out[s->nout++]].name = g->output[i].name;
    }
    return keep_names(s) ? 0 : no_memory(err);
}

static int check_outputs(const struct mp_net *net, const struct mp_graph *g,
                         struct mp_error *err)
{
    for (size_t i = 0; i < net->noutput; i++)
        if (net->constant[net->output[i]])
            return mp_fail(err, MP_EINVAL, "output %s depends on no input",
                           g->output[i].name);
    return net->noutput ? 0 : mp_fail(err, MP_EINVAL, "no output");
}

/* The program of g; builder_close in any case. */
static int prepare(struct builder *b, struct mp_net *net,
                   const struct mp_arena *a, const struct mp_graph *g,
                   enum mp_dtype precision, struct mp_error *err)
{
    int rc = mp_graph_check(g, err);

    *b = (struct builder){.net = net,
                          .backend = a->backend,
                          .device = a->device,
                          .precision = precision,
                          .err = err};
    memset(net, 0, sizeof *net);
    if (!rc)
        rc = mp_net_make(net, g, a->backend, precision, err);
    if (!rc)
        rc = check_outputs(net, g, err);
    if (rc)
        return rc;
    b->leaf = calloc(net->nnode, 1);
    b->computed = calloc(net->nnode, sizeof *b->computed);
    if (!b->leaf || !b->computed)
        return no_memory(err);
    memcpy(b->leaf, net->constant, net->nnode);
    return build(b, net->output, net->noutput);
}

static void builder_close(struct builder *b)
{
    forget(b, &b->small);
    forget(b, &b->large);
    free(b->computed);
    builder_free(b);
    mp_net_free(b->net);
}

int mp_session_new(struct mp_session **out, struct mp_arena *a,
                   const struct mp_graph *g, enum mp_dtype precision,
                   struct mp_error *err)
{
    struct mp_session *s = calloc(1, sizeof *s);
    struct builder b = {.net = NULL};
    struct mp_net net;
    int rc;

    if (!s)
        return no_memory(err);
    s->arena = a;
    rc = prepare(&b, &net, a, g, precision, err);
    if (!rc && a->backend->host) {
        rc = mp_arena_fit(a, b.program.arena, err);
        b.arena = a;
    }
    if (!rc)
        rc = a->backend->compile(a->device, &b.program, &s->plan, err);
    if (!rc)
        rc = take(s, &b, g, err);
    builder_close(&b);
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
    struct builder b = {.net = NULL};
    struct mp_net net;
    int rc = prepare(&b, &net, a, g, precision, err);

    *out = (struct mp_session_size){.arena = b.program.arena};
    for (size_t i = 0; !rc && i < b.program.nvalue; i++)
        if (b.value[i].place == MP_CONSTANT)
            out->constants += b.value[i].count * mp_dtype_size(precision);
    for (size_t i = 0; !rc && i < net.noutput; i++)
        out->outputs += bytes_of(&b.value[b.value_of[net.output[i]] - 1]);
    builder_close(&b);
    return rc;
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
                             bytes_of(v), err)
                    : b->copy(s->arena->device, place_of(s, v), in->at,
                              bytes_of(v), err);
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
                              bytes_of(v), ticket, err)
                     : b->copy(s->arena->device, out->at, place_of(s, v),
                               bytes_of(v), err);
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
