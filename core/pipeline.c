/* SPDX-License-Identifier: MIT */
/*
 * pipeline.c - sessions by shape. The network's sessions are keyed by the
 * batch and size of the views; merges by the picture, its views and what is
 * asked for.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "backbone/backbone.h"
#include "device.h"
#include "graph_impl.h"
#include "session.h"

#define KEPT  4  /* sessions of each kind */
#define SIZES 16 /* of views, whose batch is known */
#define MOST  16 /* views at once, on a GPU that decides */

struct cached {
    struct mp_session *session;
    struct mp_graph *graph; /* that it was made of */
    void *key;
    size_t bytes;
    uint64_t used; /* clock of the last use */
};

/* How many views of a size go together. */
struct fit {
    int32_t h, w;
    size_t n;
    int halved; /* more did not fit */
};

struct mp_pipeline {
    struct mp_pipeline_conf conf;
    const char *variant; /* text of mp_pipeline_use */
    struct mp_weights *weights;
    struct mp_devices *devices, own;
    struct mp_opened device;
    struct mp_arch arch;
    struct cached network[KEPT], merge[KEPT];
    struct fit fit[SIZES]; /* the latest, and which is the next to go */
    size_t nfit;
    uint64_t clock;
    struct mp_pipeline_times times;
    int profile;
    char backend_text[256], network_text[256];
    char *device_text, *precision_text; /* elsewhere; else NULL */
};

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- sessions by key ---- */

static int is_hit(const struct cached *c, const void *key, size_t bytes)
{
    return c->session && c->bytes == bytes && !memcmp(c->key, key, bytes);
}

/* The session of this key, or else the place for it: the least recently
 * used one's. */
static struct cached *look_up(struct mp_pipeline *p, struct cached *cache,
                              const void *key, size_t bytes)
{
    struct cached *oldest = &cache[0];

    for (int i = 0; i < KEPT; i++) {
        struct cached *c = &cache[i];

        if (is_hit(c, key, bytes)) {
            c->used = ++p->clock;
            return c;
        }
        if (c->used < oldest->used)
            oldest = c;
    }
    return oldest;
}

static void forget(struct cached *c)
{
    mp_session_free(c->session);
    mp_graph_free(c->graph);
    free(c->key);
    memset(c, 0, sizeof *c);
}

/* Is there a session of this very graph, though of another key? */
static struct cached *look_like(struct cached *cache, const struct mp_graph *g)
{
    for (int i = 0; i < KEPT; i++)
        if (cache[i].graph && mp_graph_equal(cache[i].graph, g))
            return &cache[i];
    return NULL;
}

/* Take the key, and g in any case. *at, the place of the least recently used
 * session, becomes that of g's, which is compiled if need be. */
static int remember(struct mp_pipeline *p, struct cached *cache,
                    struct cached **at, struct mp_graph *g,
                    enum mp_dtype precision, const void *key, size_t bytes,
                    struct mp_error *err)
{
    struct cached *like = look_like(cache, g), fresh = {.graph = g};
    double began = now();
    int rc = 0;

    fresh.key = malloc(bytes);
    if (!fresh.key)
        rc = mp_fail(err, MP_ENOMEM, "out of memory");
    else
        memcpy(fresh.key, key, bytes);
    fresh.bytes = bytes;
    if (like) {
        *at = like;
        fresh.session = rc ? NULL : like->session;
        like->session = rc ? like->session : NULL;
    } else if (!rc) {
        /* the old one goes after: what both have packed is kept */
        rc = mp_session_new(&fresh.session, &p->device.shared->arena, g,
                            precision, err);
        p->times.compile += now() - began;
    }
    if (rc) {
        forget(&fresh);
        return rc;
    }
    forget(*at);
    fresh.used = ++p->clock;
    **at = fresh;
    mp_session_profile(fresh.session, p->profile);
    return 0;
}

/* ---- opening ---- */

static struct mp_graph *network_graph(struct mp_pipeline *p, int64_t n,
                                      int64_t h, int64_t w)
{
    const struct mp_plugin *head = p->conf.head;
    struct mp_graph *g = mp_graph_new(p->weights);
    struct mp_features f = {.view_h = (int32_t)h, .view_w = (int32_t)w};
    mp_node x;

    if (!g)
        return NULL;
    x = mp_float(g, mp_input(g, "pixels", MP_U8, 4, (int64_t[]){n, h, w, 3}));
    mp_backbone_build(g, &p->arch, head->input(p->conf.head_conf, g, x), &f);
    mp_output(g, "map", head->build(p->conf.head_conf, g, &f));
    return g;
}

/* The first few of a list are for everyone, all of it for -v. */
static enum mp_log_level level_of(size_t nth)
{
    return nth < 10 ? MP_LOG_WARNING : MP_LOG_INFO;
}

/* Every tensor that is missing, of a wrong shape, or of no use. */
static int check_weights(struct mp_pipeline *p, struct mp_error *err)
{
    struct mp_graph *g = network_graph(p, 1, 512, 512);
    const struct mp_weight_info *w;
    const char *first = NULL;
    size_t at = 0, n = 0;
    int rc;

    if (!g)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    for (size_t i = 0; i < g->nmissing; i++)
        mp_log(level_of(i), "checkpoint", "%s", g->missing[i]);
    rc = mp_graph_check(g, err);
    while ((w = mp_graph_unexpected(g, &at))) {
        mp_log(level_of(n), "checkpoint", "%s is not used by head %s", w->name,
               p->conf.head->name);
        first = first ? first : w->name;
        n++;
    }
    if (!rc && n && p->conf.strict)
        rc = mp_fail(err, MP_EFORMAT,
                     "the checkpoint holds %zu tensor%s that head %s does not "
                     "know, the first is %s; if that is right, set [model] "
                     "strict = no",
                     n, n == 1 ? "" : "s", p->conf.head->name, first);
    mp_graph_free(g);
    return rc ? mp_fail_in(err, "%s", p->conf.checkpoint) : 0;
}

static int load(struct mp_pipeline *p, struct mp_error *err)
{
    struct mp_graph *g;
    int rc = mp_weights_open(&p->weights, p->conf.checkpoint, err);

    if (rc)
        return rc;
    g = mp_graph_new(p->weights);
    if (!g)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    rc = mp_backbone_probe(&p->arch, g, err);
    mp_graph_free(g);
    if (rc)
        return mp_fail_in(err, "%s", p->conf.checkpoint);
    mp_backbone_describe(&p->arch, p->network_text, sizeof p->network_text);
    return check_weights(p, err);
}

int mp_pipeline_open(struct mp_pipeline **out, const struct mp_pipeline_conf *c,
                     struct mp_error *err)
{
    struct mp_pipeline *p = calloc(1, sizeof *p);
    double began = now();
    int rc;

    if (!p)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    p->conf = *c;
    p->variant = "";
    p->devices = c->devices ? c->devices : &p->own;
    rc = c->head->check ? c->head->check(c->head_conf, err) : 0;
    if (!rc)
        rc = mp_devices_open(p->devices, &p->device, c->backend, c->precision,
                             c->threads, err);
    if (!rc)
        rc = load(p, err);
    if (rc) {
        mp_pipeline_close(p);
        return rc;
    }
    snprintf(p->backend_text, sizeof p->backend_text, "%s (%s), %s",
             p->device.backend->name, p->device.info.name,
             mp_pipeline_precision(p));
    p->times.load = now() - began;
    *out = p;
    return 0;
}

int mp_pipeline_elsewhere(struct mp_pipeline **out, const char *backend,
                          const char *device, const char *precision,
                          const char *network, struct mp_error *err)
{
    struct mp_pipeline *p = calloc(1, sizeof *p);

    if (p) {
        p->device_text = strdup(device);
        p->precision_text = strdup(precision);
    }
    if (!p || !p->device_text || !p->precision_text) {
        mp_pipeline_close(p);
        return mp_fail(err, MP_ENOMEM, "out of memory");
    }
    snprintf(p->backend_text, sizeof p->backend_text, "%s (%s), %s", backend,
             device, precision);
    snprintf(p->network_text, sizeof p->network_text, "%s", network);
    *out = p;
    return 0;
}

void mp_pipeline_close(struct mp_pipeline *p)
{
    if (!p)
        return;
    for (int i = 0; i < KEPT; i++) {
        forget(&p->network[i]);
        forget(&p->merge[i]);
    }
    mp_devices_close(p->devices, &p->device);
    mp_weights_close(p->weights);
    free(p->device_text);
    free(p->precision_text);
    free(p);
}

/* ---- running ---- */

void mp_pipeline_use(struct mp_pipeline *p, const void *head_conf,
                     const char *text)
{
    p->conf.head_conf = head_conf;
    p->variant = text;
}

void mp_map_free(struct mp_map *m)
{
    if (m->copied)
        free(m->host);
    mp_held_free(m->held);
    memset(m, 0, sizeof *m);
}

void mp_answer_free(struct mp_answer *a)
{
    mp_map_free(&a->sum);
    while (a->nresult)
        free((void *)a->result[--a->nresult].data);
}

static mp_addr place_of(const struct mp_map *m)
{
    return mp_held_at(m->held) + m->offset;
}

static size_t bytes_of(const struct mp_tensor *t)
{
    return (size_t)mp_shape_count(t->ndim, t->dim) * mp_dtype_size(t->dtype);
}

/* Room for the first output of a session. */
static int make_map(struct mp_map *m, struct mp_pipeline *p,
                    const struct mp_session *s, struct mp_error *err)
{
    struct mp_tensor t;

    mp_session_output(s, 0, &t);
    *m = (struct mp_map){.ndim = t.ndim};
    memcpy(m->dim, t.dim, sizeof m->dim);
    return mp_held_new(&m->held, &p->device.shared->arena, bytes_of(&t), err);
}

int mp_pipeline_fetch(struct mp_pipeline *p, struct mp_map *m, uint64_t *ticket,
                      struct mp_error *err)
{
    size_t bytes = (size_t)mp_shape_count(m->ndim, m->dim) * sizeof *m->host;

    *ticket = 0;
    if (m->host)
        return 0;
    if (p->device.backend->host) {
        m->host = (float *)(uintptr_t)place_of(m);
        return 0;
    }
    m->host = malloc(bytes);
    if (!m->host)
        return mp_fail(err, MP_ENOMEM, "out of memory: %zu bytes", bytes);
    m->copied = 1;
    return p->device.backend->get(p->device.device, m->host, place_of(m), bytes,
                                  ticket, err);
}

int mp_pipeline_wait(struct mp_pipeline *p, uint64_t ticket,
                     struct mp_error *err)
{
    double began = now();
    int rc = p->device.backend->wait(p->device.device, ticket, err);

    p->times.network += now() - began;
    return rc;
}

/* n numbers and the variant; free it. */
static void *network_key(size_t *bytes, const struct mp_pipeline *p,
                         const int64_t *number, size_t n)
{
    size_t text = strlen(p->variant) + 1;
    char *key = malloc(n * sizeof *number + text);

    if (!key)
        return NULL;
    memcpy(key, number, n * sizeof *number);
    memcpy(key + n * sizeof *number, p->variant, text);
    *bytes = n * sizeof *number + text;
    return key;
}

static int network_session(struct mp_pipeline *p, struct cached **c, int64_t n,
                           int64_t h, int64_t w, struct mp_error *err)
{
    size_t bytes = 0;
    void *key = network_key(&bytes, p, (int64_t[]){n, h, w}, 3);
    struct mp_graph *g;
    int rc = key ? 0 : mp_fail(err, MP_ENOMEM, "out of memory");

    *c = key ? look_up(p, p->network, key, bytes) : NULL;
    if (!rc && !is_hit(*c, key, bytes)) {
        g = network_graph(p, n, h, w);
        rc = g ? remember(p, p->network, c, g, p->device.dtype, key, bytes, err)
               : mp_fail(err, MP_ENOMEM, "out of memory");
    }
    free(key);
    return rc ? mp_fail_in(err, "%d x %d view", (int)w, (int)h) : 0;
}

/* ---- how many views at once ---- */

static size_t most_of(const struct mp_pipeline *p)
{
    if (p->conf.batch > 0)
        return (size_t)p->conf.batch;
    return p->device.backend && !p->device.backend->host ? MOST : 1;
}

static int has_session(const struct mp_pipeline *p)
{
    for (int i = 0; i < KEPT; i++)
        if (p->network[i].session)
            return 1;
    return 0;
}

static int size_of(struct mp_session_size *out, struct mp_pipeline *p,
                   int64_t n, int32_t h, int32_t w)
{
    struct mp_graph *g = network_graph(p, n, h, w);
    int rc = g ? mp_session_size(out, &p->device.shared->arena, g,
                                 p->device.dtype, NULL)
               : MP_ENOMEM;

    mp_graph_free(g);
    return rc;
}

/* Of the memory that is free, or will be when the arena grows, a fifth is left
 * alone. A batch takes of it its part of the arena, and its maps: those of the
 * batch before are still there, and pixels take no more than those. */
static size_t count_fitting(struct mp_pipeline *p, int32_t h, int32_t w)
{
    struct mp_arena *a = &p->device.shared->arena;
    struct mp_session_size one, two;
    struct mp_device_memory m;
    double room, each;

    if (size_of(&one, p, 1, h, w) || size_of(&two, p, 2, h, w) ||
        a->backend->memory(a->device, &m, NULL) || !m.total)
        return 1; /* what is wrong shows when it runs */
    room = ((double)m.free + (double)mp_arena_idle(a)) * 0.8;
    if (!has_session(p))
        room -= (double)one.constants;
    each = (double)two.arena - (double)one.arena + 3 * (double)one.outputs;
    room -= (double)one.arena + 3 * (double)one.outputs;
    if (room < 0 || each <= 0)
        return 1;
    return room / each < MOST - 1 ? 1 + (size_t)(room / each) : MOST;
}

static struct fit *fit_of(struct mp_pipeline *p, int32_t h, int32_t w)
{
    struct fit *f;

    for (size_t i = 0; i < SIZES; i++)
        if (p->fit[i].n && p->fit[i].h == h && p->fit[i].w == w)
            return &p->fit[i];
    f = &p->fit[p->nfit++ % SIZES];
    *f = (struct fit){.h = h, .w = w, .n = most_of(p)};
    if (p->conf.batch <= 0 && f->n > 1) {
        f->n = count_fitting(p, h, w);
        mp_log(MP_LOG_INFO, "batch", "%zu views of %d x %d at once", f->n,
               (int)w, (int)h);
    }
    return f;
}

size_t mp_pipeline_batch(struct mp_pipeline *p, int32_t h, int32_t w)
{
    return h && w ? fit_of(p, h, w)->n : most_of(p);
}

/* ---- the network ---- */

/* All views side by side on the device. */
static int put_views(struct mp_map *pixels, struct mp_pipeline *p,
                     const uint8_t *const *view, size_t n, size_t one,
                     struct mp_error *err)
{
    int rc = mp_held_new(&pixels->held, &p->device.shared->arena, n * one, err);

    for (size_t i = 0; i < n && !rc; i++)
        rc = p->device.backend->put(
            p->device.device, place_of(pixels) + i * one, view[i], one, err);
    return rc;
}

/* Each view's part of what the network gave. */
static void share_out(struct mp_map *map, size_t n, const struct mp_map *all)
{
    size_t one =
        (size_t)mp_shape_count(all->ndim, all->dim) * sizeof *all->host / n;

    for (size_t i = 0; i < n; i++) {
        map[i] = *all;
        map[i].held = mp_held_share(all->held);
        map[i].offset = i * one;
        map[i].dim[0] = 1;
    }
}

static int run_network(struct mp_pipeline *p, const uint8_t *const *view,
                       size_t n, int32_t h, int32_t w, struct mp_map *map,
                       struct mp_error *err)
{
    struct mp_map pixels = {.held = NULL}, all = {.held = NULL};
    struct cached *c;
    uint64_t none;
    double began;
    int rc = network_session(p, &c, (int64_t)n, h, w, err);

    if (rc)
        return rc;
    began = now();
    rc = put_views(&pixels, p, view, n, (size_t)h * (size_t)w * 3, err);
    if (!rc)
        rc = make_map(&all, p, c->session, err);
    if (!rc)
        rc = mp_session_start(
            c->session, &(struct mp_operand){.at = place_of(&pixels)},
            &(struct mp_operand){.at = place_of(&all)}, &none, err);
    if (!rc)
        share_out(map, n, &all);
    mp_map_free(&pixels);
    mp_map_free(&all);
    p->times.network += now() - began;
    p->times.views += rc ? 0 : n;
    p->times.runs += !rc;
    return rc;
}

/* All that can be had again, but for the network's weights. */
static void give_back(struct mp_pipeline *p)
{
    for (int i = 0; i < KEPT; i++)
        forget(&p->merge[i]);
    mp_arena_free(&p->device.shared->arena);
}

/* n did not fit; 0: it has been tried with less before. */
static int halve(struct mp_pipeline *p, struct fit *f, size_t n,
                 const struct mp_error *why)
{
    int go = !f->halved && n > 1;

    f->n = go ? (n + 1) / 2 : 1;
    f->halved = 1;
    give_back(p);
    if (n > 1)
        mp_log(MP_LOG_WARNING, "batch",
               "of views of %d x %d %zu do not fit, %zu from now on: %s",
               (int)f->w, (int)f->h, n, f->n, why->text);
    return go;
}

int mp_pipeline_network(struct mp_pipeline *p, const uint8_t *const *view,
                        size_t n, int32_t h, int32_t w, struct mp_map *map,
                        struct mp_error *err)
{
    struct fit *f = fit_of(p, h, w);
    size_t at = 0;
    int rc = 0;

    while (at < n && !rc) {
        size_t part = f->halved && f->n < n - at ? f->n : n - at;
        struct mp_error why = {0};

        rc = run_network(p, view + at, part, h, w, map + at, &why);
        if (!rc)
            at += part;
        else if (rc == MP_ENOMEM && halve(p, f, part, &why))
            rc = 0;
        else if (err)
            *err = why;
    }
    while (rc && at)
        mp_map_free(&map[--at]);
    return rc;
}

/* What a merge depends on, as bytes to compare; free it. */
static void *merge_key(size_t *bytes, const struct mp_pipeline *p,
                       const struct mp_group *q, const struct mp_map *sum)
{
    int64_t head[5 + MP_RANK] = {q->img->width, q->img->height, q->nth,
                                 q->count};
    size_t a = sizeof head, b = q->nview * sizeof *q->view,
           one = sizeof q->map->dim, c = q->nview * one,
           d = strlen(p->variant) + 1;
    char words[256], *save = NULL, *key = malloc(a + b + c + d);

    if (!key)
        return NULL;
    snprintf(words, sizeof words, "%s", p->conf.head->formats);
    for (char *word = strtok_r(words, " :", &save); word;
         word = strtok_r(NULL, " :", &save))
        head[4] = head[4] << 1 | (mp_sink_wants(q->want, word) != 0);
    memcpy(head + 5, sum->dim, sizeof sum->dim);
    memcpy(key, head, a);
    memcpy(key + a, q->view, b);
    for (size_t i = 0; i < q->nview; i++)
        memcpy(key + a + b + i * one, q->map[i].dim, one);
    memcpy(key + a + b + c, p->variant, d);
    *bytes = a + b + c + d;
    return key;
}

static int merge_session(struct mp_pipeline *p, struct cached **c,
                         const struct mp_group *q, const struct mp_map *sum,
                         const void *key, size_t bytes, struct mp_error *err)
{
    struct mp_graph *g = mp_graph_new(p->weights);
    mp_node *out = calloc(q->nview, sizeof *out);
    struct mp_merge m = {.img = q->img,
                         .view = q->view,
                         .out = out,
                         .nview = q->nview,
                         .group = q->nth,
                         .ngroup = q->count,
                         .want = q->want};
    int rc = g && out ? 0 : mp_fail(err, MP_ENOMEM, "out of memory");

    for (size_t i = 0; !rc && i < q->nview; i++)
        out[i] = mp_input(g, "map", MP_F32, q->map[i].ndim, q->map[i].dim);
    if (!rc && sum->held)
        m.sum = mp_input(g, "sum", MP_F32, sum->ndim, sum->dim);
    if (!rc) {
        mp_node next = p->conf.head->merge(p->conf.head_conf, g, &m);

        if (q->nth + 1 < q->count)
            mp_output(g, "sum", next);
        rc = remember(p, p->merge, c, g, MP_F32, key, bytes, err);
        g = NULL;
    }
    mp_graph_free(g);
    free(out);
    return rc;
}

/* Room for the results of the last group. */
static int make_results(struct mp_answer *a, struct mp_operand *out,
                        const struct mp_pipeline *p, const struct mp_session *s,
                        struct mp_error *err)
{
    size_t n = mp_session_outputs(s);

    if (n > MP_MAX_RESULTS)
        return mp_fail(err, MP_EINVAL, "head %s: %zu results, at most %d",
                       p->conf.head->name, n, MP_MAX_RESULTS);
    while (a->nresult < n) {
        struct mp_tensor *t = &a->result[a->nresult];

        mp_session_output(s, a->nresult, t);
        t->data = malloc(bytes_of(t));
        if (!t->data)
            return mp_fail(err, MP_ENOMEM, "out of memory: %zu bytes",
                           bytes_of(t));
        out[a->nresult++].host = (void *)t->data;
    }
    return 0;
}

static int run_merge(struct mp_pipeline *p, struct mp_session *s,
                     const struct mp_group *q, struct mp_answer *a,
                     uint64_t *ticket, struct mp_error *err)
{
    struct mp_operand *in = calloc(q->nview + 1, sizeof *in);
    struct mp_operand out[MP_MAX_RESULTS] = {{NULL}};
    struct mp_map next = {.held = NULL};
    int is_last = q->nth + 1 == q->count;
    int rc = in ? 0 : mp_fail(err, MP_ENOMEM, "out of memory");

    for (size_t i = 0; !rc && i < q->nview; i++)
        in[i].at = place_of(&q->map[i]);
    if (!rc && a->sum.held)
        in[q->nview].at = place_of(&a->sum);
    if (!rc)
        rc = is_last ? make_results(a, out, p, s, err)
                     : make_map(&next, p, s, err);
    if (!rc && !is_last)
        out[0].at = place_of(&next);
    if (!rc)
        rc = mp_session_start(s, in, out, ticket, err);
    mp_map_free(&a->sum);
    a->sum = next;
    if (rc) { /* what was begun must not meet memory that is gone */
        mp_pipeline_wait(p, UINT64_MAX, NULL);
        mp_answer_free(a);
    }
    free(in);
    return rc;
}

int mp_pipeline_merge(struct mp_pipeline *p, const struct mp_group *q,
                      struct mp_answer *a, uint64_t *ticket,
                      struct mp_error *err)
{
    size_t bytes = 0;
    void *key = merge_key(&bytes, p, q, &a->sum);
    struct cached *c = key ? look_up(p, p->merge, key, bytes) : NULL;
    double began;
    int rc = key ? 0 : mp_fail(err, MP_ENOMEM, "out of memory");

    *ticket = 0;
    if (c && !is_hit(c, key, bytes))
        rc = merge_session(p, &c, q, &a->sum, key, bytes, err);
    free(key);
    if (rc)
        return rc;
    began = now();
    rc = run_merge(p, c->session, q, a, ticket, err);
    p->times.merge += now() - began;
    return rc;
}

/* ---- telling ---- */

const char *mp_pipeline_backend(const struct mp_pipeline *p)
{
    return p->backend_text;
}

const char *mp_pipeline_device(const struct mp_pipeline *p)
{
    return p->device_text ? p->device_text : p->device.info.name;
}

const char *mp_pipeline_precision(const struct mp_pipeline *p)
{
    if (p->precision_text)
        return p->precision_text;
    if (p->conf.precision == MP_PREC_TF32)
        return "tf32";
    return p->device.dtype == MP_BF16  ? "bf16"
           : p->device.dtype == MP_F16 ? "fp16"
                                       : "fp32";
}

const char *mp_pipeline_network_text(const struct mp_pipeline *p)
{
    return p->network_text;
}

void mp_pipeline_times(const struct mp_pipeline *p,
                       struct mp_pipeline_times *out)
{
    *out = p->times;
}

void mp_pipeline_profile(struct mp_pipeline *p, int on)
{
    p->profile = on;
    for (int i = 0; i < KEPT; i++)
        if (p->network[i].session)
            mp_session_profile(p->network[i].session, on);
}

struct mp_session *mp_pipeline_session(const struct mp_pipeline *p)
{
    const struct cached *last = &p->network[0];

    for (int i = 1; i < KEPT; i++)
        if (p->network[i].used > last->used)
            last = &p->network[i];
    return last->session;
}

void mp_pipeline_dump(const struct mp_pipeline *p, FILE *out)
{
    for (int i = 0; i < KEPT; i++) {
        if (p->network[i].session)
            mp_session_dump(p->network[i].session, out);
        if (p->merge[i].session)
            mp_session_dump(p->merge[i].session, out);
    }
}
