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

#define KEPT 4 /* sessions of each kind */

struct cached {
    struct mp_session *session;
    struct mp_graph *graph; /* that it was made of */
    void *key;
    size_t bytes;
    uint64_t used; /* clock of the last use */
};

struct mp_pipeline {
    struct mp_pipeline_conf conf;
    const char *variant; /* text of mp_pipeline_use */
    struct mp_weights *weights;
    struct mp_devices *devices, own;
    struct mp_opened device;
    struct mp_arch arch;
    struct cached network[KEPT], merge[KEPT];
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

static int run(struct mp_session *s, const void *const *in,
               struct mp_tensor *out, size_t n, struct mp_error *err)
{
    void *data[16] = {NULL};
    int rc = n <= 16 ? 0 : mp_fail(err, MP_EINVAL, "more than 16 results");

    for (size_t i = 0; i < n && !rc; i++) {
        size_t bytes;

        mp_session_output(s, i, &out[i]);
        bytes = (size_t)mp_shape_count(out[i].ndim, out[i].dim) *
                mp_dtype_size(out[i].dtype);
        out[i].data = data[i] = malloc(bytes);
        if (!data[i])
            rc = mp_fail(err, MP_ENOMEM, "out of memory: %zu bytes", bytes);
    }
    if (!rc)
        rc = mp_session_run(s, in, data, err);
    for (size_t i = 0; rc && i < n && i < 16; i++) {
        free(data[i]);
        out[i].data = NULL; /* the caller frees what is there */
    }
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

int mp_pipeline_network(struct mp_pipeline *p, const uint8_t *const *view,
                        size_t n, int32_t h, int32_t w, struct mp_tensor *map,
                        struct mp_error *err)
{
    size_t one = (size_t)h * (size_t)w * 3;
    struct cached *c;
    uint8_t *pixels;
    double began;
    int rc = network_session(p, &c, (int64_t)n, h, w, err);

    if (rc)
        return rc;
    began = now();
    pixels = malloc(n * one);
    if (!pixels)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    for (size_t i = 0; i < n; i++)
        memcpy(pixels + i * one, view[i], one);
    rc = run(c->session, (const void *const[]){pixels}, map, 1, err);
    free(pixels);
    p->times.network += now() - began;
    p->times.views += n;
    p->times.runs++;
    return rc;
}

/* What a merge depends on, as bytes to compare; free it. */
static void *merge_key(size_t *bytes, const struct mp_pipeline *p,
                       const struct mp_group *q)
{
    int64_t head[5 + MP_RANK] = {q->img->width, q->img->height, q->nth,
                                 q->count};
    size_t a = sizeof head, b = q->nview * sizeof *q->view,
           c = q->nview * sizeof *q->dim, d = strlen(p->variant) + 1;
    char words[256], *save = NULL, *key = malloc(a + b + c + d);

    if (!key)
        return NULL;
    snprintf(words, sizeof words, "%s", p->conf.head->formats);
    for (char *word = strtok_r(words, " :", &save); word;
         word = strtok_r(NULL, " :", &save))
        head[4] = head[4] << 1 | (mp_sink_wants(q->want, word) != 0);
    for (int i = 0; q->sum && i < q->sum->ndim; i++)
        head[5 + i] = q->sum->dim[i];
    memcpy(key, head, a);
    memcpy(key + a, q->view, b);
    memcpy(key + a + b, q->dim, c);
    memcpy(key + a + b + c, p->variant, d);
    *bytes = a + b + c + d;
    return key;
}

static int merge_session(struct mp_pipeline *p, struct cached **c,
                         const struct mp_group *q, const void *key,
                         size_t bytes, struct mp_error *err)
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
        out[i] =
            mp_input(g, "map", MP_F32, 4,
                     (int64_t[]){1, q->dim[i][0], q->dim[i][1], q->dim[i][2]});
    if (!rc && q->sum)
        m.sum = mp_input(g, "sum", MP_F32, q->sum->ndim, q->sum->dim);
    if (!rc) {
        mp_node sum = p->conf.head->merge(p->conf.head_conf, g, &m);

        if (q->nth + 1 < q->count)
            mp_output(g, "sum", sum);
        rc = remember(p, p->merge, c, g, MP_F32, key, bytes, err);
        g = NULL;
    }
    mp_graph_free(g);
    free(out);
    return rc;
}

int mp_pipeline_merge(struct mp_pipeline *p, const struct mp_group *q,
                      struct mp_tensor *result, size_t cap, size_t *n,
                      struct mp_error *err)
{
    size_t bytes = 0;
    void *key = merge_key(&bytes, p, q);
    const void **in = calloc(q->nview + 1, sizeof *in);
    struct cached *c;
    double began;
    int rc = key && in ? 0 : mp_fail(err, MP_ENOMEM, "out of memory");

    c = rc ? NULL : look_up(p, p->merge, key, bytes);
    if (c && !is_hit(c, key, bytes))
        rc = merge_session(p, &c, q, key, bytes, err);
    free(key);
    if (!rc) {
        *n = mp_session_outputs(c->session);
        if (*n > cap)
            rc = mp_fail(err, MP_EINVAL, "head %s: %zu results, at most %zu",
                         p->conf.head->name, *n, cap);
    }
    if (!rc) {
        for (size_t i = 0; i < q->nview; i++)
            in[i] = q->map[i];
        in[q->nview] = q->sum ? q->sum->data : NULL;
        began = now();
        rc = run(c->session, in, result, *n, err);
        p->times.merge += now() - began;
    }
    free(in);
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
