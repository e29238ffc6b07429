/* SPDX-License-Identifier: MIT */
/* program.c - see program.h. */
#include <stdlib.h>
#include <string.h>
#include "fold.h"
#include "places.h"
#include "program.h"

#define SMALL ((size_t)4 << 20) /* bytes of a constant computed with others */

/* What a program for constants has computed: where it did, or a copy. */
struct results {
    mp_addr arena;
    float *copy;
    struct results *next;
};

struct mp_build {
    struct mp_net *net;
    const struct mp_backend *backend;
    struct mp_device *device;
    enum mp_dtype precision;
    const struct mp_arena *arena; /* idle while this compiles, or NULL */
    struct mp_program program;
    struct mp_value *value;
    struct mp_step *step;
    uint32_t *root;         /* per value: whose bytes it has (reshape) */
    uint8_t *input;         /* per value */
    uint32_t *value_of;     /* per node: value + 1 */
    uint32_t *node_of;      /* per value */
    uint32_t *output;       /* values */
    uint8_t *leaf;          /* per node: given, not computed by this program */
    const float **computed; /* per node: folded constants; shared */
    struct results *small;  /* what they lie in */
    struct results *large;  /* the same, until release() */
    float *held;            /* what constant() converted, until then */
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

static uint32_t value_for(struct mp_build *b, uint32_t id)
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
    b->root[at] = at;
    b->input[at] = n->op == MP_OP_INPUT;
    return at;
}

static void make_steps(struct mp_build *b, const uint8_t *wanted)
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
            b->root[out] = b->root[value_for(b, n->in[0])];
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
static int is_read_whole(const struct mp_build *b, uint32_t value)
{
    for (size_t k = 0; k < b->program.nstep; k++)
        for (int i = 0; i < b->step[k].nin; i++) {
            uint32_t in = b->step[k].in[i];

            if (in != MP_NO_VALUE && b->root[in] == b->root[value] &&
                (b->step[k].op != MP_OP_CONV2D || i > 0))
                return 1;
        }
    return 0;
}

/* A network adds to the same values again and again: to round every sum would
 * cost digits. */
static void mark_sums(struct mp_build *b, uint8_t *keep)
{
    for (size_t k = 0; k < b->program.nstep; k++) {
        const struct mp_step *s = &b->step[k];
        const struct mp_value *y = &b->value[s->out];

        if (s->op == MP_OP_CONV2D && s->nin > 3 && s->in[3] != MP_NO_VALUE &&
            y->count / (size_t)y->dim[0] * sizeof(float) <=
                b->backend->wide_sums &&
            is_read_whole(b, s->out))
            keep[b->root[s->out]] = 1;
    }
}

/* Pixels until the first real layer, and results from the last one on, stay
 * f32: they cost little there, and are what users see. So do places in maps. */
static void mark_f32(struct mp_build *b, uint8_t *keep, size_t noutput)
{
    struct mp_program *p = &b->program;

    for (size_t i = 0; i < p->nvalue; i++)
        if (b->input[i])
            keep[b->root[i]] = 1;
    for (size_t k = 0; k < p->nstep; k++) {
        const struct mp_step *s = &b->step[k];
        int all = is_light(s->op);

        for (int i = 0; i < s->nin; i++)
            all = all && (b->value[s->in[i]].place == MP_CONSTANT ||
                          keep[b->root[s->in[i]]]);
        if (all)
            keep[b->root[s->out]] = 1;
    }
    mark_sums(b, keep);
    for (size_t i = 0; i < noutput; i++)
        keep[b->root[b->output[i]]] = 2;
    for (size_t k = 0; k < p->nstep; k++) /* 8 bits are no place in a map */
        if (b->step[k].op == MP_OP_HEATMAP_PEAKS)
            keep[b->root[b->step[k].out]] = 2;
    for (size_t k = p->nstep; k-- > 0;) {
        const struct mp_step *s = &b->step[k];

        if (keep[b->root[s->out]] == 2 && is_light(s->op))
            for (int i = 0; i < s->nin; i++)
                keep[b->root[s->in[i]]] = 2;
    }
}

static void set_precision(struct mp_build *b, const uint8_t *keep)
{
    for (size_t i = 0; i < b->program.nvalue; i++) {
        struct mp_value *v = &b->value[i];
        uint32_t root = b->root[i];

        if (v->place == MP_ARENA && v->dtype == MP_F32 && !keep[root])
            v->dtype = b->precision;
    }
}

/* ---- constants ---- */

static int compute(struct mp_build *b, const uint32_t *wanted, size_t n,
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
static int compute_small(struct mp_build *b, struct mp_error *err)
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

static void forget(const struct mp_build *b, struct results **list)
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
    struct mp_build *b = p->user;
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
    struct mp_build *b = p->user;
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
    struct mp_build *b = p->user;
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

static void clear(struct mp_build *b)
{
    free(b->value);
    free(b->step);
    free(b->root);
    free(b->input);
    free(b->value_of);
    free(b->node_of);
    free(b->output);
    free(b->leaf);
    free(b->held);
}

static int find_places(struct mp_build *b, size_t noutput, struct mp_error *err)
{
    struct mp_places places = {
        .value = b->value,
        .nvalue = b->program.nvalue,
        .step = b->step,
        .nstep = b->program.nstep,
        .root = b->root,
        .input = b->input,
        .output = b->output,
        .noutput = noutput,
        .outside = b->backend->host && !b->program.once,
    };
    int rc = mp_places_find(&places, err);

    b->program.arena = places.arena;
    b->program.noutside = places.noutside;
    return rc;
}

/* The program that computes these nodes from inputs and leaves. */
static int build(struct mp_build *b, const uint32_t *outputs, size_t noutput,
                 struct mp_error *err)
{
    size_t n = b->net->nnode;
    uint8_t *wanted = calloc(n, 1), *keep = calloc(n, 1);
    int rc = 0;

    b->value = calloc(n, sizeof *b->value);
    b->step = calloc(n, sizeof *b->step);
    b->root = calloc(n, sizeof *b->root);
    b->input = calloc(n, sizeof *b->input);
    b->value_of = calloc(n, sizeof *b->value_of);
    b->node_of = calloc(n, sizeof *b->node_of);
    b->output = calloc(noutput, sizeof *b->output);
    if (!wanted || !keep || !b->value || !b->step || !b->root || !b->input ||
        !b->value_of || !b->node_of || !b->output) {
        rc = no_memory(err);
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
    for (size_t i = 0; i < noutput; i++) /* one may be a leaf */
        b->output[i] = value_for(b, outputs[i]);
    mark_f32(b, keep, noutput);
    set_precision(b, keep);
    rc = find_places(b, noutput, err);
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

/* The results of its n outputs, which are these nodes: where the host can read
 * them they stay. */
static int fetch(struct mp_build *b, const struct mp_build *sub,
                 const uint32_t *wanted, size_t n, mp_addr arena,
                 struct results *r, struct mp_error *err)
{
    size_t bytes = 1;
    char *at;
    int rc = 0;

    for (size_t i = 0; i < n; i++)
        bytes += mp_value_bytes(&sub->value[sub->output[i]]);
    if (!b->backend->host && !(r->copy = malloc(bytes)))
        return no_memory(err);
    at = (char *)r->copy;
    for (size_t i = 0; i < n && !rc; i++) {
        const struct mp_value *v = &sub->value[sub->output[i]];
        mp_addr from = arena + v->offset;
        uint64_t ticket = 0;
        int rc2;

        if (b->backend->host) {
            b->computed[wanted[i]] = (const float *)(uintptr_t)from;
            continue;
        }
        rc = b->backend->get(b->device, at, from, mp_value_bytes(v), &ticket,
                             err);
        rc2 = b->backend->wait(b->device, ticket, rc ? NULL : err);
        rc = rc ? rc : rc2;
        b->computed[wanted[i]] = rc ? NULL : (const float *)(void *)at;
        at += mp_value_bytes(v);
    }
    return rc;
}

/* Run the program of these constants; its own constants are what is given. What
 * they lie in goes into the list; small ones lie in the session's arena, which
 * is idle now: memory that is touched later anyway. */
static int compute(struct mp_build *b, const uint32_t *wanted, size_t n,
                   struct results **list, struct mp_error *err)
{
    struct mp_build sub = {.net = b->net,
                           .backend = b->backend,
                           .device = b->device,
                           .precision = MP_F32,
                           .computed = b->computed};
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
    rc = build(&sub, wanted, n, err);
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
    clear(&sub);
    return rc;
}

/* ---- of a graph ---- */

static int check_outputs(const struct mp_net *net, const struct mp_graph *g,
                         struct mp_error *err)
{
    for (size_t i = 0; i < net->noutput; i++)
        if (net->constant[net->output[i]])
            return mp_fail(err, MP_EINVAL, "output %s depends on no input",
                           g->output[i].name);
    return net->noutput ? 0 : mp_fail(err, MP_EINVAL, "no output");
}

static int begin(struct mp_build *b, const struct mp_graph *g,
                 struct mp_error *err)
{
    int rc = mp_net_make(b->net, g, b->backend, b->precision, err);

    if (!rc)
        rc = check_outputs(b->net, g, err);
    if (rc)
        return rc;
    b->leaf = calloc(b->net->nnode, 1);
    b->computed = calloc(b->net->nnode, sizeof *b->computed);
    if (!b->leaf || !b->computed)
        return no_memory(err);
    memcpy(b->leaf, b->net->constant, b->net->nnode);
    return build(b, b->net->output, b->net->noutput, err);
}

int mp_build_new(struct mp_build **out, const struct mp_arena *a,
                 const struct mp_graph *g, enum mp_dtype precision,
                 struct mp_error *err)
{
    int rc = mp_graph_check(g, err);
    struct mp_build *b;

    if (rc)
        return rc;
    b = calloc(1, sizeof *b);
    if (b)
        *b = (struct mp_build){.net = calloc(1, sizeof *b->net),
                               .backend = a->backend,
                               .device = a->device,
                               .precision = precision};
    rc = b && b->net ? begin(b, g, err) : no_memory(err);
    if (rc)
        mp_build_free(b);
    else
        *out = b;
    return rc;
}

void mp_build_free(struct mp_build *b)
{
    if (!b)
        return;
    forget(b, &b->small);
    forget(b, &b->large);
    free(b->computed);
    clear(b);
    if (b->net)
        mp_net_free(b->net);
    free(b->net);
    free(b);
}

void mp_build_lend(struct mp_build *b, const struct mp_arena *a)
{
    b->arena = a;
}

const struct mp_program *mp_build_program(const struct mp_build *b)
{
    return &b->program;
}

int mp_build_is_input(const struct mp_build *b, uint32_t value)
{
    return b->input[value];
}

uint32_t mp_build_output(const struct mp_build *b, size_t i)
{
    return b->output[i];
}
