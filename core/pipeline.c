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

/* One of the devices. */
struct unit {
    struct mp_pipeline *of;
    struct mp_opened device;
    struct cached network[KEPT], merge[KEPT];
    struct fit fit[SIZES]; /* the latest, and which is the next to go */
    size_t nfit;
};

struct mp_pipeline {
    struct mp_pipeline_conf conf;
    const char *variant; /* text of mp_pipeline_use */
    struct mp_weights *weights;
    struct mp_devices *devices, own;
    struct unit unit[MP_DEVICES_MAX];
    size_t nunit; /* 0: elsewhere */
    struct mp_arch arch;
    uint64_t clock;
    struct mp_pipeline_times times;
    int profile;
    char backend_text[256], network_text[256], device_text[160];
    char *precision_text; /* elsewhere; else NULL */
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
static struct cached *look_up(struct unit *u, struct cached *cache,
                              const void *key, size_t bytes)
{
    struct cached *oldest = &cache[0];

    for (int i = 0; i < KEPT; i++) {
        struct cached *c = &cache[i];

        if (is_hit(c, key, bytes)) {
            c->used = ++u->of->clock;
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
static int remember(struct unit *u, struct cached *cache, struct cached **at,
                    struct mp_graph *g, enum mp_dtype precision,
                    const void *key, size_t bytes, struct mp_error *err)
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
        rc = mp_session_new(&fresh.session, &u->device.shared->arena, g,
                            precision, err);
        u->of->times.compile += now() - began;
    }
    if (rc) {
        forget(&fresh);
        return rc;
    }
    forget(*at);
    fresh.used = ++u->of->clock;
    **at = fresh;
    mp_session_profile(fresh.session, u->of->profile);
    return 0;
}

/* ---- opening ---- */

static struct mp_graph *network_graph(struct mp_pipeline *p, int64_t n,
                                      int64_t h, int64_t w)
{
    const struct mp_plugin *head = p->conf.head;
    struct mp_graph *g = mp_graph_new(p->weights);
    struct mp_features f = {
        .view_h = (int32_t)h, .view_w = (int32_t)w, .classes = p->conf.classes};
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
    mp_weights_fetch(p->weights);
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

static int open_devices(struct mp_pipeline *p, struct mp_error *err)
{
    const struct mp_pipeline_conf *c = &p->conf;
    char name[MP_DEVICES_MAX][MP_DEVICE_NAME];
    size_t n = 0;
    int rc = mp_device_names(name, &n, c->backend, err);

    for (size_t i = 0; i < n && !rc; i++) {
        struct unit *u = &p->unit[i];

        u->of = p;
        rc = mp_devices_open(p->devices, &u->device, name[i], c->precision,
                             c->threads, c->autotune, err);
        p->nunit += !rc;
        if (!rc && u->device.dtype != p->unit->device.dtype)
            rc = mp_fail(err, MP_ENOTSUP,
                         "%s is best in %s, %s in %s: set [compute] precision",
                         name[0], mp_dtype_name(p->unit->device.dtype), name[i],
                         mp_dtype_name(u->device.dtype));
    }
    return rc;
}

/* "NVIDIA H200", "2 x NVIDIA H200", or all of them where they differ. */
static void describe_devices(struct mp_pipeline *p)
{
    const char *first = p->unit->device.info.name;
    size_t n = p->nunit, at = 0, room = sizeof p->device_text;
    int differ = 0;

    for (size_t i = 1; i < n; i++)
        differ |= strcmp(p->unit[i].device.info.name, first) != 0;
    if (n == 1)
        snprintf(p->device_text, room, "%s", first);
    else if (!differ)
        snprintf(p->device_text, room, "%zu x %s", n, first);
    for (size_t i = 0; differ && i < n && at < room; i++)
        at += (size_t)snprintf(p->device_text + at, room - at, "%s%s",
                               i ? "; " : "", p->unit[i].device.info.name);
    snprintf(p->backend_text, sizeof p->backend_text, "%s (%s), %s",
             p->unit->device.backend->name, p->device_text,
             mp_pipeline_precision(p));
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
        rc = open_devices(p, err);
    if (!rc)
        rc = load(p, err);
    if (rc) {
        mp_pipeline_close(p);
        return rc;
    }
    describe_devices(p);
    p->times.load = now() - began;
    *out = p;
    return 0;
}

int mp_pipeline_elsewhere(struct mp_pipeline **out, const char *backend,
                          const char *device, const char *precision,
                          const char *network, struct mp_error *err)
{
    struct mp_pipeline *p = calloc(1, sizeof *p);

    if (p)
        p->precision_text = strdup(precision);
    if (!p || !p->precision_text) {
        mp_pipeline_close(p);
        return mp_fail(err, MP_ENOMEM, "out of memory");
    }
    snprintf(p->device_text, sizeof p->device_text, "%s", device);
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
    while (p->nunit) {
        struct unit *u = &p->unit[--p->nunit];

        for (int i = 0; i < KEPT; i++) {
            forget(&u->network[i]);
            forget(&u->merge[i]);
        }
        mp_devices_close(p->devices, &u->device);
    }
    mp_weights_close(p->weights);
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
static int make_map(struct mp_map *m, struct unit *u,
                    const struct mp_session *s, struct mp_error *err)
{
    struct mp_tensor t;

    mp_session_output(s, 0, &t);
    *m = (struct mp_map){.ndim = t.ndim};
    memcpy(m->dim, t.dim, sizeof m->dim);
    return mp_held_new(&m->held, &u->device.shared->arena, bytes_of(&t), err);
}

int mp_pipeline_fetch(struct mp_map *m, uint64_t *ticket, struct mp_error *err)
{
    size_t bytes = (size_t)mp_shape_count(m->ndim, m->dim) * sizeof *m->host;
    const struct mp_arena *a = mp_held_arena(m->held);

    *ticket = 0;
    if (m->host)
        return 0;
    if (a->backend->host) {
        m->host = (float *)(uintptr_t)place_of(m);
        return 0;
    }
    m->host = malloc(bytes);
    if (!m->host)
        return mp_fail(err, MP_ENOMEM, "out of memory: %zu bytes", bytes);
    m->copied = 1;
    return a->backend->get(a->device, m->host, place_of(m), bytes, ticket, err);
}

static int wait_for(struct unit *u, uint64_t ticket, struct mp_error *err)
{
    return u->device.backend->wait(u->device.device, ticket, err);
}

int mp_pipeline_wait(struct mp_pipeline *p, size_t device, uint64_t ticket,
                     struct mp_error *err)
{
    double began = now();
    int rc = wait_for(&p->unit[device], ticket, err);

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

/* Was what has been read of the checkpoint as it should be? */
static int check_file(const struct mp_pipeline *p, struct mp_error *err)
{
    int rc = mp_weights_check(p->weights, err);

    return rc ? mp_fail_in(err, "%s", p->conf.checkpoint) : 0;
}

static int network_session(struct unit *u, struct cached **c, int64_t n,
                           int64_t h, int64_t w, struct mp_error *err)
{
    struct mp_pipeline *p = u->of;
    size_t bytes = 0;
    void *key = network_key(&bytes, p, (int64_t[]){n, h, w}, 3);
    struct mp_graph *g;
    int rc = key ? 0 : mp_fail(err, MP_ENOMEM, "out of memory");

    *c = key ? look_up(u, u->network, key, bytes) : NULL;
    if (!rc && !is_hit(*c, key, bytes)) {
        g = network_graph(p, n, h, w);
        rc = g ? remember(u, u->network, c, g, u->device.dtype, key, bytes, err)
               : mp_fail(err, MP_ENOMEM, "out of memory");
        if (!rc && (rc = check_file(p, err)))
            forget(*c);
    }
    free(key);
    return rc ? mp_fail_in(err, "%d x %d view", (int)w, (int)h) : 0;
}

/* ---- how many views at once ---- */

static size_t most_of(const struct mp_pipeline *p)
{
    if (p->conf.batch > 0)
        return (size_t)p->conf.batch;
    return p->nunit && !p->unit->device.backend->host ? MOST : 1;
}

static int has_session(const struct unit *u)
{
    for (int i = 0; i < KEPT; i++)
        if (u->network[i].session)
            return 1;
    return 0;
}

static int size_of(struct mp_session_size *out, struct unit *u, int64_t n,
                   int32_t h, int32_t w)
{
    struct mp_graph *g = network_graph(u->of, n, h, w);
    int rc = g ? mp_session_size(out, &u->device.shared->arena, g,
                                 u->device.dtype, NULL)
               : MP_ENOMEM;

    mp_graph_free(g);
    return rc;
}

/* Of the memory that is free, or will be when the arena grows, a fifth is left
 * alone. A batch takes of it its part of the arena, and its maps: those of the
 * batch before are still there, and pixels take no more than those. */
static size_t count_fitting(struct unit *u, int32_t h, int32_t w)
{
    struct mp_arena *a = &u->device.shared->arena;
    struct mp_session_size one, two;
    struct mp_device_memory m;
    double room, each;

    if (size_of(&one, u, 1, h, w) || size_of(&two, u, 2, h, w) ||
        a->backend->memory(a->device, &m, NULL) || !m.total)
        return 1; /* what is wrong shows when it runs */
    room = ((double)m.free + (double)mp_arena_idle(a)) * 0.8;
    if (!has_session(u))
        room -= (double)one.constants;
    each = (double)two.arena - (double)one.arena + 3 * (double)one.outputs;
    room -= (double)one.arena + 3 * (double)one.outputs;
    if (room < 0 || each <= 0)
        return 1;
    return room / each < MOST - 1 ? 1 + (size_t)(room / each) : MOST;
}

static struct fit *fit_of(struct unit *u, int32_t h, int32_t w)
{
    struct fit *f;

    for (size_t i = 0; i < SIZES; i++)
        if (u->fit[i].n && u->fit[i].h == h && u->fit[i].w == w)
            return &u->fit[i];
    f = &u->fit[u->nfit++ % SIZES];
    *f = (struct fit){.h = h, .w = w, .n = most_of(u->of)};
    if (u->of->conf.batch <= 0 && f->n > 1) {
        f->n = count_fitting(u, h, w);
        mp_log(MP_LOG_INFO, "batch", "%zu views of %d x %d at once", f->n,
               (int)w, (int)h);
    }
    return f;
}

size_t mp_pipeline_batch(struct mp_pipeline *p, size_t device, int32_t h,
                         int32_t w)
{
    return h && w ? fit_of(&p->unit[device], h, w)->n : most_of(p);
}

/* ---- the network ---- */

/* All views side by side on the device. */
static int put_views(struct mp_map *pixels, struct unit *u,
                     const uint8_t *const *view, size_t n, size_t one,
                     struct mp_error *err)
{
    const struct mp_opened *o = &u->device;
    int rc = mp_held_new(&pixels->held, &o->shared->arena, n * one, err);

    for (size_t i = 0; i < n && !rc; i++)
        rc = o->backend->put(o->device, place_of(pixels) + i * one, view[i],
                             one, err);
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

static int run_network(struct unit *u, const uint8_t *const *view, size_t n,
                       int32_t h, int32_t w, struct mp_map *map,
                       struct mp_error *err)
{
    struct mp_map pixels = {.held = NULL}, all = {.held = NULL};
    struct mp_pipeline_times *times = &u->of->times;
    struct cached *c;
    uint64_t none;
    double began;
    int rc = network_session(u, &c, (int64_t)n, h, w, err), held;

    if (rc)
        return rc;
    began = now();
    held = mp_weights_are_held(u->of->weights);
    rc = put_views(&pixels, u, view, n, (size_t)h * (size_t)w * 3, err);
    if (!rc)
        rc = make_map(&all, u, c->session, err);
    if (!rc)
        rc = mp_session_start(
            c->session, &(struct mp_operand){.at = place_of(&pixels)},
            &(struct mp_operand){.at = place_of(&all)}, &none, err);
    if (!rc && held)
        rc = check_file(u->of, err);
    if (!rc)
        share_out(map, n, &all);
    mp_map_free(&pixels);
    mp_map_free(&all);
    times->network += now() - began;
    times->views += rc ? 0 : n;
    times->runs += !rc;
    return rc;
}

/* All that can be had again, but for the network's weights. */
static void give_back(struct unit *u)
{
    for (int i = 0; i < KEPT; i++)
        forget(&u->merge[i]);
    mp_arena_free(&u->device.shared->arena);
}

/* n did not fit; 0: it has been tried with less before. */
static int halve(struct unit *u, struct fit *f, size_t n,
                 const struct mp_error *why)
{
    int go = !f->halved && n > 1;

    f->n = go ? (n + 1) / 2 : 1;
    f->halved = 1;
    give_back(u);
    if (n > 1)
        mp_log(MP_LOG_WARNING, "batch",
               "of views of %d x %d %zu do not fit, %zu from now on: %s",
               (int)f->w, (int)f->h, n, f->n, why->text);
    return go;
}

int mp_pipeline_network(struct mp_pipeline *p, size_t device,
                        const uint8_t *const *view, size_t n, int32_t h,
                        int32_t w, struct mp_map *map, struct mp_error *err)
{
    struct unit *u = &p->unit[device];
    struct fit *f = fit_of(u, h, w);
    size_t at = 0;
    int rc = 0;

    while (at < n && !rc) {
        size_t part = f->halved && f->n < n - at ? f->n : n - at;
        struct mp_error why = {0};

        rc = run_network(u, view + at, part, h, w, map + at, &why);
        if (!rc)
            at += part;
        else if (rc == MP_ENOMEM && halve(u, f, part, &why))
            rc = 0;
        else if (err)
            *err = why;
    }
    while (rc && at)
        mp_map_free(&map[--at]);
    return rc;
}

/* ---- merging ---- */

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

static int merge_session(struct unit *u, struct cached **c,
                         const struct mp_group *q, const struct mp_map *sum,
                         const void *key, size_t bytes, struct mp_error *err)
{
    const struct mp_pipeline *p = u->of;
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
        rc = remember(u, u->merge, c, g, MP_F32, key, bytes, err);
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

static int run_merge(struct unit *u, struct mp_session *s,
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
        rc = is_last ? make_results(a, out, u->of, s, err)
                     : make_map(&next, u, s, err);
    if (!rc && !is_last)
        out[0].at = place_of(&next);
    if (!rc)
        rc = mp_session_start(s, in, out, ticket, err);
    mp_map_free(&a->sum);
    a->sum = next;
    if (rc) { /* what was begun must not meet memory that is gone */
        wait_for(u, UINT64_MAX, NULL);
        mp_answer_free(a);
    }
    free(in);
    return rc;
}

int mp_pipeline_merge(struct mp_pipeline *p, const struct mp_group *q,
                      struct mp_answer *a, uint64_t *ticket,
                      struct mp_error *err)
{
    struct unit *u = &p->unit[q->device];
    size_t bytes = 0;
    void *key = merge_key(&bytes, p, q, &a->sum);
    struct cached *c = key ? look_up(u, u->merge, key, bytes) : NULL;
    double began;
    int rc = key ? 0 : mp_fail(err, MP_ENOMEM, "out of memory");

    *ticket = 0;
    if (c && !is_hit(c, key, bytes))
        rc = merge_session(u, &c, q, &a->sum, key, bytes, err);
    free(key);
    if (rc)
        return rc;
    began = now();
    rc = run_merge(u, c->session, q, a, ticket, err);
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
    return p->device_text;
}

const char *mp_pipeline_precision(const struct mp_pipeline *p)
{
    if (p->precision_text)
        return p->precision_text;
    if (p->conf.precision == MP_PREC_TF32)
        return "tf32";
    return p->unit->device.dtype == MP_BF16  ? "bf16"
           : p->unit->device.dtype == MP_F16 ? "fp16"
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

size_t mp_pipeline_devices(const struct mp_pipeline *p)
{
    return p->nunit ? p->nunit : 1;
}

void mp_pipeline_profile(struct mp_pipeline *p, int on)
{
    p->profile = on;
    for (size_t k = 0; k < p->nunit; k++)
        for (int i = 0; i < KEPT; i++)
            if (p->unit[k].network[i].session)
                mp_session_profile(p->unit[k].network[i].session, on);
}

struct mp_session *mp_pipeline_session(const struct mp_pipeline *p)
{
    const struct cached *last = &p->unit->network[0];

    for (size_t k = 0; k < p->nunit; k++)
        for (int i = 0; i < KEPT; i++)
            if (p->unit[k].network[i].used > last->used)
                last = &p->unit[k].network[i];
    return last->session;
}

void mp_pipeline_dump(const struct mp_pipeline *p, FILE *out)
{
    for (size_t k = 0; k < p->nunit; k++)
        for (int i = 0; i < KEPT; i++) {
            if (p->unit[k].network[i].session)
                mp_session_dump(p->unit[k].network[i].session, out);
            if (p->unit[k].merge[i].session)
                mp_session_dump(p->unit[k].merge[i].session, out);
        }
}
