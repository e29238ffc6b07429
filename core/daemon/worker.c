/* SPDX-License-Identifier: MIT */
/* worker.c - loads, batches and runs; see worker.h. */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>
#include "classes.h"
#include "device.h"
#include "link.h"
#include "picture_job.h"
#include "progress.h"
#include "record.h"
#include "text.h"
#include "worker.h"

#define THREADS_MAX 8

/* A pipeline. */
struct hosted {
    struct hosted *next;
    uint64_t id;
    struct mp_settings *settings;
    struct mp_pipeline *pipeline;
    size_t batch;
    double window;   /* seconds that a view waits for others */
    size_t ntask;    /* unanswered */
    json_t *outputs; /* see describe_output */
};

enum state { RECEIVED, BUSY, OPEN, SEEN, GONE };

struct task {
    struct task *next;
    uint64_t id;
    enum state state; /* BUSY: a thread's, or the network's */
    int rc;
    _Atomic int cancelled; /* set by the receiving thread, at any time */
    struct hosted *host;
    json_t *text;
    struct mp_blob blob;
    struct mp_settings *varied; /* NULL: none but the pipeline's */
    char *variant;              /* its options as a text */
    struct mp_picture_job p;
    struct mp_input input;
    struct mp_keep keep;
    double arrived, opened, read, merge, write, runs;
    size_t nlook; /* views that wait for the network */
};

/* What the main thread is to do beside seeing. */
struct order {
    struct order *next;
    struct mp_message m;
};

struct look {
    struct task *task;
    size_t view;
};

struct worker {
    int sock;
    struct mp_ledger *ledger;
    pthread_mutex_t lock; /* of what follows up to the main thread's */
    pthread_cond_t changed;
    pthread_mutex_t sending;
    struct task *tasks, **tasks_end; /* in order of arrival */
    struct order *orders, **orders_end;
    struct hosted *hosts;
    int quit;
    pthread_t thread[THREADS_MAX + 1];
    int nthread;

    /* the main thread's */
    struct mp_devices devices;
    struct look *look;
    size_t nlook, look_cap;
};

static int no_memory(struct mp_error *err)
{
    return mp_fail(err, MP_ENOMEM, "out of memory");
}

/* ---- whose fault it is ---- */

/* Whose head this thread is about to call. */
static _Thread_local uint64_t current;
static struct mp_ledger *book;

static void write_blame(void)
{
    uint64_t none = 0;

    if (current)
        atomic_compare_exchange_strong(&book->blame, &none, current);
}

static void on_crash(int number)
{
    write_blame();
    signal(number, SIG_DFL);
    raise(number);
}

static void catch_crashes(void)
{
    static const int numbers[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
    struct sigaction a = {.sa_handler = on_crash};

    sigemptyset(&a.sa_mask);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        sigaction(numbers[i], &a, NULL);
    atexit(write_blame);
}

/* ---- answers ---- */

static void send_message(struct worker *w, struct mp_message *m)
{
    struct mp_error err = {0};

    pthread_mutex_lock(&w->sending);
    if (mp_link_send(w->sock, m, &err))
        mp_log(MP_LOG_ERROR, "worker", "%s", err.text);
    pthread_mutex_unlock(&w->sending);
    mp_message_free(m);
}

static json_t *describe_kept(const struct mp_kept *k, size_t offset)
{
    json_t *dim = json_array();

    for (int i = 0; i < k->ndim; i++)
        json_array_append_new(dim, json_integer(k->dim[i]));
    return json_pack("{s:s, s:s, s:s, s:o, s:I, s:I}", "kind", k->kind,
                     "suffix", k->suffix, "dtype", mp_dtype_name(k->dtype),
                     "dim", dim, "offset", (json_int_t)offset, "bytes",
                     (json_int_t)k->n);
}

/* All results behind one another in a blob. */
static int pack_results(struct mp_message *m, const struct task *t,
                        struct mp_error *err)
{
    json_t *list = json_array();
    size_t n = 0;
    int rc;

    for (size_t i = 0; i < t->keep.n; i++)
        n += t->keep.at[i].n;
    rc = mp_blob_new(&m->blob, n, err);
    if (rc) {
        json_decref(list);
        return rc;
    }
    n = 0;
    for (size_t i = 0; i < t->keep.n; n += t->keep.at[i++].n) {
        memcpy(m->blob.at + n, t->keep.at[i].bytes, t->keep.at[i].n);
        json_array_append_new(list, describe_kept(&t->keep.at[i], n));
    }
    m->text = json_pack("{s:o, s:{s:f, s:f, s:f, s:f, s:f}, s:f}", "results",
                        list, "seconds", "read", t->read, "wait",
                        t->opened ? mp_now() - t->arrived - t->read -
                                        t->p.network - t->merge - t->write
                                  : 0,
                        "network", t->p.network, "merge", t->merge, "write",
                        t->write, "runs", t->runs);
    return m->text ? 0 : no_memory(err);
}

static void answer(struct worker *w, struct task *t, int rc)
{
    struct mp_message m = {.type = MP_DONE, .id = t->id, .blob = MP_NO_BLOB};
    struct mp_error *err = &t->p.err;

    if (!rc)
        rc = pack_results(&m, t, err);
    if (rc && !m.text)
        m.text = json_pack("{s:o, s:s}", "error", mp_json_text(err->text),
                           "stage", t->p.stage ? t->p.stage : "read");
    m.code = rc;
    send_message(w, &m);
}

static void free_task(struct task *t)
{
    mp_picture_job_free(&t->p);
    mp_keep_free(&t->keep);
    mp_blob_free(&t->blob);
    mp_settings_free(t->varied);
    json_decref(t->text);
    free(t->variant);
    free(t);
}

/* Answer and forget it. Not locked; the task is the caller's. */
static void finish(struct worker *w, struct task *t, int rc)
{
    answer(w, t, rc);
    pthread_mutex_lock(&w->lock);
    for (struct task **p = &w->tasks; *p; p = &(*p)->next)
        if (*p == t) {
            *p = t->next;
            if (!*p)
                w->tasks_end = p;
            break;
        }
    t->host->ntask--;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    free_task(t);
}

/* ---- reading a request ---- */

static const struct mp_settings *settings_of(const struct task *t)
{
    return t->varied ? t->varied : t->host->settings;
}

/* The formats asked for; or, for who accepts any picture, one to look at. NULL:
 * those of the configuration. */
static const char *formats_of(const struct task *t)
{
    static const char *const shown[] = {"overlay", "color"};
    const char *accept = json_string_value(json_object_get(t->text, "accept"));
    const char *list = t->host->settings->plugin->formats, *word;
    int unused;

    for (size_t i = 0; accept && !strcmp(accept, "png") && i < 2; i++)
        for (size_t at = 0, n; (n = mp_format_next(list, &at, &word, &unused));)
            if (n == strlen(shown[i]) && !memcmp(word, shown[i], n))
                return shown[i];
    return json_string_value(json_object_get(t->text, "formats"));
}

/* "key=value\n" for each option that is given. */
static int vary(struct task *t)
{
    json_t *options = json_object_get(t->text, "options"), *value;
    const char *formats = formats_of(t);
    const char *name, **key, **text;
    size_t n = 0, most = json_object_size(options);
    struct mp_text lines;
    int rc;

    if (!most && !formats)
        return 0;
    key = calloc(2 * most + 1, sizeof *key);
    if (!key || mp_text_open(&lines)) {
        free(key);
        return no_memory(&t->p.err);
    }
    text = key + most;
    json_object_foreach(options, name, value)
    {
        key[n] = name;
        text[n++] = json_string_value(value);
        fprintf(lines.f, "%s=%s\n", name, json_string_value(value));
    }
    rc = mp_text_close(&lines) ? no_memory(&t->p.err) : 0;
    t->variant = lines.bytes;
    if (!rc)
        rc = mp_settings_vary(&t->varied, t->host->settings, key, text, n,
                              formats, &t->p.err);
    free(key);
    return rc;
}

static int take_boxes(struct task *t)
{
    json_t *list = json_object_get(t->text, "boxes"), *one;
    size_t n = json_array_size(list), i;

    if (!list)
        return 0;
    if (!t->host->settings->plugin->uses_boxes)
        return mp_fail(&t->p.err, MP_EINVAL, "head %s does not use boxes",
                       t->host->settings->plugin->name);
    t->p.box = calloc(n + 1, sizeof *t->p.box);
    if (!t->p.box)
        return no_memory(&t->p.err);
    json_array_foreach(list, i, one) t->p.box[t->p.nbox++] =
        (struct mp_box){json_number_value(json_array_get(one, 0)),
                        json_number_value(json_array_get(one, 1)),
                        json_number_value(json_array_get(one, 2)),
                        json_number_value(json_array_get(one, 3)),
                        json_number_value(json_array_get(one, 4))};
    return 0;
}

/* The part of the blob that is the picture. */
static int take_picture(struct task *t)
{
    json_int_t offset = 0, bytes = 0, w = 0, h = 0;
    struct mp_picture *out = &t->p.source;

    t->p.stage = "read";
    json_unpack(t->text, "{s?I, s?I, s?I, s?I}", "offset", &offset, "bytes",
                &bytes, "width", &w, "height", &h);
    if (offset < 0 || bytes < 0 || (size_t)offset > t->blob.n ||
        (size_t)bytes > t->blob.n - (size_t)offset)
        return mp_fail(&t->p.err, MP_EINVAL, "the picture is not all there");
    if (!w)
        return mp_picture_decode(out, t->blob.at + offset, (size_t)bytes,
                                 &t->p.err);
    if (w < 1 || h < 1 || w > MP_IMAGE_MAX_PIXELS || h > MP_IMAGE_MAX_PIXELS ||
        w * h > MP_IMAGE_MAX_PIXELS || w * h * 3 != bytes)
        return mp_fail(&t->p.err, MP_EINVAL,
                       "no picture of %lld x %lld pixels in %lld bytes",
                       (long long)w, (long long)h, (long long)bytes);
    *out = (struct mp_picture){(int32_t)w, (int32_t)h, malloc((size_t)bytes)};
    if (!out->rgb)
        return no_memory(&t->p.err);
    memcpy(out->rgb, t->blob.at + offset, (size_t)bytes);
    return 0;
}

static int open_task(struct task *t)
{
    const char *name = json_string_value(json_object_get(t->text, "name"));
    int rc;

    t->p.stage = "options";
    t->input.stem = (char *)(name ? name : "picture");
    t->input.path = t->input.stem;
    t->keep.plain = json_is_true(json_object_get(t->text, "plain"));
    t->p.keep = &t->keep;
    rc = vary(t);
    if (!rc)
        rc = take_boxes(t);
    if (!rc)
        rc = take_picture(t);
    mp_blob_free(&t->blob);
    return rc ? rc : mp_picture_job_open(&t->p, &t->input, settings_of(t));
}

/* ---- threads ---- */

/* Locked. */
static struct task *next_task(struct worker *w)
{
    struct task *first = NULL;

    for (struct task *t = w->tasks; t; t = t->next) {
        if (t->state == SEEN)
            return t; /* gives memory back */
        if (t->state == RECEIVED && !first)
            first = t;
    }
    return first;
}

static void do_open(struct worker *w, struct task *t)
{
    double began = mp_now();
    int rc =
        t->cancelled ? mp_fail(&t->p.err, MP_EINTR, "cancelled") : open_task(t);

    t->opened = mp_now();
    t->read = t->opened - began;
    if (rc) {
        finish(w, t, rc);
        return;
    }
    pthread_mutex_lock(&w->lock);
    t->state = t->p.nview ? OPEN : SEEN;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

static void do_write(struct worker *w, struct task *t)
{
    double began = mp_now();
    int rc = t->rc;

    if (!rc)
        rc = mp_picture_job_write(&t->p, settings_of(t), "");
    t->write = mp_now() - began;
    finish(w, t, rc);
}

static void *work(void *user)
{
    struct worker *w = user;
    struct task *t;

    pthread_mutex_lock(&w->lock);
    while (!w->quit) {
        enum state was;

        t = next_task(w);
        if (!t) {
            pthread_cond_wait(&w->changed, &w->lock);
            continue;
        }
        was = t->state;
        t->state = BUSY;
        current = t->host->id;
        pthread_mutex_unlock(&w->lock);
        if (was == SEEN)
            do_write(w, t);
        else
            do_open(w, t);
        current = 0;
        pthread_mutex_lock(&w->lock);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* Locked. */
static struct hosted *find_host(const struct worker *w, uint64_t id)
{
    struct hosted *h = w->hosts;

    while (h && h->id != id)
        h = h->next;
    return h;
}

/* Takes the message. */
static int add_task(struct worker *w, struct mp_message *m)
{
    struct task *t = calloc(1, sizeof *t);
    uint64_t host =
        (uint64_t)json_integer_value(json_object_get(m->text, "pipeline"));

    if (!t)
        return -1;
    *t = (struct task){.id = m->id,
                       .text = m->text,
                       .blob = m->blob,
                       .arrived = mp_now(),
                       .p = {.stage = "read"}};
    m->text = NULL;
    m->blob = MP_NO_BLOB;
    t->host = find_host(w, host);
    if (!t->host) {
        mp_fail(&t->p.err, MP_ENOTSUP, "the pipeline is not loaded");
        answer(w, t, MP_ENOTSUP);
        free_task(t);
        return 0;
    }
    t->host->ntask++;
    *w->tasks_end = t;
    w->tasks_end = &t->next;
    return 0;
}

static int add_order(struct worker *w, struct mp_message *m)
{
    struct order *o = calloc(1, sizeof *o);

    if (!o)
        return -1;
    o->m = *m;
    *m = (struct mp_message){.blob = MP_NO_BLOB};
    *w->orders_end = o;
    w->orders_end = &o->next;
    return 0;
}

/* Locked. */
static int take_message(struct worker *w, struct mp_message *m)
{
    if (m->type == MP_INFER)
        return add_task(w, m);
    if (m->type != MP_CANCEL)
        return add_order(w, m);
    for (struct task *t = w->tasks; t; t = t->next)
        if (t->id == m->id)
            t->cancelled = 1;
    return 0;
}

/* Until the front is gone. */
static void *receive(void *user)
{
    struct worker *w = user;
    struct mp_message m;
    struct mp_error err = {0};
    int failed = 0;

    while (!failed && mp_link_receive(w->sock, &m, &err) == 1) {
        pthread_mutex_lock(&w->lock);
        failed = take_message(w, &m);
        pthread_cond_broadcast(&w->changed);
        pthread_mutex_unlock(&w->lock);
        mp_message_free(&m);
    }
    if (failed || err.code)
        mp_log(MP_LOG_ERROR, "worker", "%s",
               err.code ? err.text : "out of memory");
    pthread_mutex_lock(&w->lock);
    w->quit = 1;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* ---- the network ---- */

/* Its looks go; it is to be answered by a thread. */
static void end_seeing(struct worker *w, struct task *t, int rc)
{
    size_t kept = 0;

    for (size_t i = 0; i < w->nlook; i++)
        if (w->look[i].task != t)
            w->look[kept++] = w->look[i];
    w->nlook = kept;
    pthread_mutex_lock(&w->lock);
    t->rc = rc;
    t->state = SEEN;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

static int add_looks(struct worker *w, struct task *t)
{
    size_t n = t->p.nview;

    if (w->nlook + n > w->look_cap) {
        struct look *more = realloc(w->look, (w->nlook + n) * sizeof *more);

        if (!more)
            return no_memory(&t->p.err);
        w->look = more;
        w->look_cap = w->nlook + n;
    }
    for (size_t i = 0; i < n; i++)
        w->look[w->nlook++] = (struct look){t, i};
    return 0;
}

static int same_text(const char *a, const char *b)
{
    return !strcmp(a ? a : "", b ? b : "");
}

static int are_alike(const struct look *a, const struct look *b)
{
    const struct mp_view *v = &a->task->p.view[a->view];
    const struct mp_view *u = &b->task->p.view[b->view];

    return a->task->host == b->task->host && v->w == u->w && v->h == u->h &&
           same_text(a->task->variant, b->task->variant);
}

static size_t count_like(const struct worker *w, size_t first)
{
    size_t n = 0, most = w->look[first].task->host->batch;

    for (size_t i = first; i < w->nlook && n < most; i++)
        n += are_alike(&w->look[first], &w->look[i]);
    return n;
}

/* The look whose batch is due: full, or its window is over; nlook: none, and
 * *wait is how long until one will be. Negative: for ever. */
static size_t find_due(const struct worker *w, double *wait)
{
    double now = mp_now();

    *wait = -1;
    for (size_t i = 0; i < w->nlook; i++) {
        const struct task *t = w->look[i].task;
        double left = t->opened + t->host->window - now;

        if (left <= 0 || count_like(w, i) >= t->host->batch)
            return i;
        if (*wait < 0 || left < *wait)
            *wait = left;
    }
    return w->nlook;
}

static void note_run(struct worker *w, size_t n, double seconds)
{
    size_t bucket = 0;

    while (bucket + 1 < MP_RUN_BUCKETS && n > (size_t)1 << bucket)
        bucket++;
    atomic_fetch_add(&w->ledger->runs[bucket], 1);
    atomic_fetch_add(&w->ledger->views, n);
    atomic_fetch_add(&w->ledger->busy_ns, (uint64_t)(seconds * 1e9));
}

static void use_options(const struct task *t)
{
    mp_pipeline_use(t->host->pipeline, settings_of(t)->head_conf,
                    t->variant ? t->variant : "");
}

static int see(struct worker *w, const struct look *look, size_t n,
               struct mp_error *err)
{
    struct mp_look *at = malloc(n * sizeof *at);
    double began = mp_now();
    int rc;

    if (!at)
        return no_memory(err);
    for (size_t i = 0; i < n; i++)
        at[i] = (struct mp_look){&look[i].task->p, look[i].view};
    use_options(look->task);
    rc = mp_picture_job_see(at, n, look->task->host->pipeline, err);
    free(at);
    note_run(w, n, mp_now() - began);
    for (size_t i = 0; i < n && !rc; i++)
        look[i].task->runs += 1.0 / (double)n;
    return rc;
}

/* Merge what has been seen. 1: there is more to see. */
static int merge(struct task *t)
{
    double began = mp_now();
    int rc;

    use_options(t);
    rc = mp_picture_job_merge(&t->p, settings_of(t), t->host->pipeline);
    t->merge += mp_now() - began;
    return rc ? rc : t->p.nmerged < t->p.nview;
}

/* Hand the task of look[0] on, with its other looks. */
static void end_look(struct worker *w, struct look *look, size_t n, int rc)
{
    struct task *t = look->task;

    for (size_t i = 0; i < n; i++)
        if (look[i].task == t)
            look[i].task = NULL;
    end_seeing(w, t, rc);
}

/* These views; should that fail, each alone. Nonzero: the device failed. */
static int see_all(struct worker *w, struct look *look, size_t n)
{
    struct mp_error err = {0};
    int rc, together;

    current = look->task->host->id;
    for (size_t i = 0; i < n; i++)
        look[i].task->p.stage = "network";
    rc = see(w, look, n, &err);
    together = !rc || n == 1;
    for (size_t i = 0; i < n && (!rc || mp_is_of_picture(rc)); i++) {
        struct task *t = look[i].task;

        if (!t)
            continue;
        if (!together)
            rc = see(w, &look[i], 1, &err);
        if (rc)
            t->p.err = err;
        else
            rc = merge(t);
        if (rc <= 0)
            end_look(w, &look[i], n - i, rc);
        rc = mp_is_of_picture(rc) || rc == 1 ? 0 : rc;
    }
    if (rc)
        mp_log(MP_LOG_ERROR, "worker", "%s", err.text);
    current = 0;
    return rc;
}

/* Take a batch like the first, and see it. */
static int run_batch(struct worker *w, size_t first)
{
    struct look like = w->look[first];
    size_t most = like.task->host->batch, n = 0, kept = first;
    struct look *some = malloc(most * sizeof *some);
    int rc;

    if (!some)
        return MP_ENOMEM;
    for (size_t i = first; i < w->nlook; i++) {
        if (n < most && are_alike(&like, &w->look[i]))
            some[n++] = w->look[i];
        else
            w->look[kept++] = w->look[i];
    }
    w->nlook = kept;
    rc = see_all(w, some, n);
    free(some);
    return rc;
}

/* ---- loading ---- */

/* What the head makes of a small gray picture: so that a pipeline that is ready
 * has worked once, and the types of its outputs are known. */
#define TRIAL 64 /* pixels */

static int see_trial(struct mp_picture_job *p, struct hosted *h,
                     const struct mp_settings *s)
{
    int rc = 0;

    mp_pipeline_use(h->pipeline, s->head_conf, "");
    for (size_t i = 0; i < p->nview && !rc; i++) {
        rc = mp_picture_job_see(&(struct mp_look){p, i}, 1, h->pipeline,
                                &p->err);
        if (!rc)
            rc = mp_picture_job_merge(p, s, h->pipeline);
    }
    return rc;
}

/* Any result, whose sizes are the picture's business. */
static json_t *describe_output(const struct mp_kept *k)
{
    json_t *shape = json_array();
    int is_png = !strcmp(k->suffix, "png");

    json_array_append_new(shape, json_integer(1));
    for (int i = 0; i < k->ndim; i++)
        json_array_append_new(shape,
                              json_integer(is_png && i == 2 ? k->dim[i] : -1));
    return json_pack("{s:s, s:s, s:s, s:o}", "kind", k->kind, "suffix",
                     k->suffix, "dtype", mp_dtype_name(k->dtype), "shape",
                     shape);
}

static char *all_formats(const struct mp_plugin *head)
{
    char *words;

    if (asprintf(&words, "%s %s", head->formats, MP_KIND_RAW) < 0)
        return NULL;
    for (char *c = words; *c; c++)
        if (*c == ':')
            *c = ' ';
    return words;
}

static int try_out(struct hosted *h, struct mp_error *err)
{
    struct mp_settings *s = NULL;
    struct mp_keep keep = {.plain = 1};
    struct mp_input input = {.path = (char *)"trial", .stem = (char *)"trial"};
    struct mp_picture_job p = {
        .keep = &keep, .source = {TRIAL, TRIAL, malloc(TRIAL * TRIAL * 3)}};
    char *formats = all_formats(h->settings->plugin);
    int rc = p.source.rgb && formats ? 0 : no_memory(&p.err);

    if (!rc) {
        memset(p.source.rgb, 128, TRIAL * TRIAL * 3);
        rc = mp_settings_vary(&s, h->settings, NULL, NULL, 0, formats, &p.err);
    }
    /* where people are listed by picture, this is none of them */
    if (!rc && !(p.box = calloc(1, sizeof *p.box)))
        rc = no_memory(&p.err);
    if (!rc) {
        p.box[p.nbox++] = (struct mp_box){.w = TRIAL, .h = TRIAL, .score = 1};
        rc = mp_picture_job_open(&p, &input, s);
    }
    if (!rc)
        rc = see_trial(&p, h, s);
    h->outputs = json_array();
    if (!rc) {
        mp_picture_job_write(&p, s, ""); /* kinds may exclude each other */
        for (size_t i = 0; i < keep.n; i++)
            json_array_append_new(h->outputs, describe_output(&keep.at[i]));
    }
    if (rc)
        *err = p.err;
    mp_picture_job_free(&p);
    mp_keep_free(&keep);
    mp_settings_free(s);
    free(formats);
    return rc;
}

static const char *type_name(enum mp_option_type t)
{
    static const char *const names[] = {"bool",   "int",   "float", "string",
                                        "choice", "flags", "size"};

    return names[t];
}

static json_t *describe_options(const struct mp_plugin *head)
{
    json_t *list = json_array();

    for (const struct mp_option *o = head->options; o && o->name; o++)
        json_array_append_new(
            list,
            json_pack("{s:s, s:s, s:s*, s:s*, s:s*, s:s*}", "name", o->name,
                      "type", type_name(o->type), "default", o->def, "choices",
                      o->choices, "unit", o->unit, "help", o->help));
    return list;
}

static json_t *describe_formats(const struct mp_plugin *head)
{
    json_t *list = json_array();
    const char *word;
    size_t at = 0, n;
    int is_default;

    while ((n = mp_format_next(head->formats, &at, &word, &is_default)))
        json_array_append_new(list, json_stringn(word, n));
    json_array_append_new(list, json_string(MP_KIND_RAW));
    return list;
}

static json_t *list_kinds(const struct mp_settings *s)
{
    json_t *list = json_array();

    for (char **k = s->kinds; *k; k++)
        json_array_append_new(list, json_string(*k));
    return list;
}

static json_t *describe(const struct hosted *h)
{
    const struct mp_settings *s = h->settings;
    struct mp_pipeline_times t;

    mp_pipeline_times(h->pipeline, &t);
    return json_pack(
        "{s:s, s:s, s:O, s:o, s:o, s:o, s:o, s:b, s:i, s:o, s:o, s:o, s:o, "
        "s:o, s:f}",
        "head", s->plugin->name, "summary", s->plugin->summary, "outputs",
        h->outputs, "formats", describe_formats(s->plugin), "kinds",
        list_kinds(s), "options", describe_options(s->plugin), "settings",
        mp_settings_json(s), "uses_boxes", s->plugin->uses_boxes, "batch",
        (int)h->batch, "checkpoint", mp_record_checkpoint(s->checkpoint),
        "backend",
        json_stringn(mp_pipeline_backend(h->pipeline),
                     strcspn(mp_pipeline_backend(h->pipeline), " ")),
        "device", mp_json_text(mp_pipeline_device(h->pipeline)), "precision",
        mp_json_text(mp_pipeline_precision(h->pipeline)), "network",
        mp_json_text(mp_pipeline_network_text(h->pipeline)), "load_seconds",
        t.load);
}

static int open_settings(struct hosted *h, const json_t *text,
                         struct mp_error *err)
{
    const json_t *assign = json_object_get(text, "assign");
    size_t n = json_array_size(assign);
    const char **list = calloc(n + 1, sizeof *list);
    int rc;

    if (!list)
        return no_memory(err);
    for (size_t i = 0; i < n; i++)
        list[i] = json_string_value(json_array_get(assign, i));
    rc = mp_settings_open(&h->settings,
                          json_string_value(json_object_get(text, "config")),
                          list, n, err);
    free(list);
    return rc ? rc : mp_settings_files(h->settings, err);
}

static int open_host(struct hosted *h, struct mp_devices *devices,
                     const struct mp_message *m, struct mp_error *err)
{
    const json_t *window = json_object_get(m->text, "batch_window");
    int rc = open_settings(h, m->text, err);

    h->id = m->id;
    if (rc)
        return rc;
    h->batch =
        h->settings->compute.batch > 0 ? (size_t)h->settings->compute.batch : 1;
    h->window = json_number_value(window) / 1e3;
    rc = mp_settings_pipeline(&h->pipeline, h->settings, devices, err);
    return rc ? rc : try_out(h, err);
}

static void close_host(struct hosted *h)
{
    mp_pipeline_close(h->pipeline);
    mp_settings_free(h->settings);
    json_decref(h->outputs);
    free(h);
}

static void load(struct worker *w, const struct mp_message *m)
{
    struct mp_message reply = {
        .type = MP_LOADED, .id = m->id, .blob = MP_NO_BLOB};
    struct hosted *h = calloc(1, sizeof *h);
    struct mp_error err = {0};
    int rc;

    current = m->id;
    rc = h ? open_host(h, &w->devices, m, &err) : no_memory(&err);
    current = 0;
    reply.code = rc;
    reply.text =
        rc ? json_pack("{s:o}", "error", mp_json_text(err.text)) : describe(h);
    if (rc && h) {
        close_host(h);
    } else if (!rc) {
        pthread_mutex_lock(&w->lock);
        h->next = w->hosts;
        w->hosts = h;
        pthread_mutex_unlock(&w->lock);
    }
    send_message(w, &reply);
}

/* The front sends it when all requests of the pipeline are answered. */
static void unload(struct worker *w, const struct mp_message *m)
{
    struct mp_message reply = {
        .type = MP_UNLOADED, .id = m->id, .blob = MP_NO_BLOB};
    struct hosted *h = NULL;

    pthread_mutex_lock(&w->lock);
    for (struct hosted **p = &w->hosts; *p && !h; p = &(*p)->next)
        if ((*p)->id == m->id) {
            h = *p;
            *p = h->next;
            break;
        }
    while (h && h->ntask && !w->quit)
        pthread_cond_wait(&w->changed, &w->lock);
    pthread_mutex_unlock(&w->lock);
    if (h)
        close_host(h);
    send_message(w, &reply);
}

/* ---- the main thread ---- */

static void take_order(struct worker *w, struct order *o)
{
    if (o->m.type == MP_LOAD)
        load(w, &o->m);
    else if (o->m.type == MP_UNLOAD)
        unload(w, &o->m);
    mp_message_free(&o->m);
    free(o);
}

/* Locked. Tasks that are open wait for the network from now on, but for those
 * that nobody waits for. */
static void take_tasks(struct worker *w)
{
    for (struct task *t = w->tasks; t; t = t->next) {
        if (t->state == OPEN) {
            t->state = BUSY;
            t->rc = add_looks(w, t);
            if (t->rc) {
                t->state = SEEN;
                pthread_cond_broadcast(&w->changed);
            }
        }
    }
}

/* Locked. */
static struct task *find_cancelled(const struct worker *w)
{
    for (size_t i = 0; i < w->nlook; i++)
        if (w->look[i].task->cancelled)
            return w->look[i].task;
    return NULL;
}

static void wait_for(struct worker *w, double seconds)
{
    struct timespec t;

    if (seconds < 0) {
        pthread_cond_wait(&w->changed, &w->lock);
        return;
    }
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_nsec += (long)(seconds * 1e9) % 1000000000;
    t.tv_sec += (time_t)seconds + t.tv_nsec / 1000000000;
    t.tv_nsec %= 1000000000;
    pthread_cond_timedwait(&w->changed, &w->lock, &t);
}

static int serve(struct worker *w)
{
    int rc = 0;

    pthread_mutex_lock(&w->lock);
    while (!rc && !w->quit) {
        struct order *o = w->orders;
        struct task *t;
        double wait;
        size_t due;

        take_tasks(w);
        t = find_cancelled(w);
        due = find_due(w, &wait);
        if (o && !(w->orders = o->next))
            w->orders_end = &w->orders;
        if (!o && !t && due == w->nlook) {
            wait_for(w, wait);
            continue;
        }
        pthread_mutex_unlock(&w->lock);
        if (o)
            take_order(w, o);
        else if (t)
            end_seeing(w, t, mp_fail(&t->p.err, MP_EINTR, "cancelled"));
        else
            rc = run_batch(w, due);
        pthread_mutex_lock(&w->lock);
    }
    pthread_mutex_unlock(&w->lock);
    return rc;
}

static int start_threads(struct worker *w, struct mp_error *err)
{
    cpu_set_t set;
    int want = sched_getaffinity(0, sizeof set, &set) ? 2 : CPU_COUNT(&set);
    int code = 0;

    want = want < 2 ? 2 : want > THREADS_MAX ? THREADS_MAX : want;
    while (w->nthread < want + 1 && !code) {
        code = pthread_create(&w->thread[w->nthread], NULL,
                              w->nthread ? work : receive, w);
        w->nthread += !code;
    }
    return code ? mp_fail(err, MP_ENOMEM, "threads: %s", strerror(code)) : 0;
}

static int begin(struct worker *w, struct mp_error *err)
{
    pthread_condattr_t monotonic;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    w->ledger = mmap(NULL, sizeof *w->ledger, PROT_READ | PROT_WRITE,
                     MAP_SHARED, MP_LEDGER_FD, 0);
    if (w->ledger == MAP_FAILED)
        return mp_fail(err, MP_EINVAL,
                       "a worker is started by mpiped, not by hand");
    book = w->ledger;
    catch_crashes();
    w->sock = MP_LINK_FD;
    w->tasks_end = &w->tasks;
    w->orders_end = &w->orders;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&w->lock, NULL);
    pthread_mutex_init(&w->sending, NULL);
    pthread_cond_init(&w->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return start_threads(w, err);
}

int mp_worker_run(struct mp_error *err)
{
    static struct worker w; /* threads outlive the call when a device fails */
    int rc = begin(&w, err);

    if (rc)
        return rc;
    rc = serve(&w);
    if (rc)
        return mp_fail(err, rc, "the device has failed");
    for (int i = 0; i < w.nthread; i++)
        pthread_join(w.thread[i], NULL);
    while (w.tasks) {
        struct task *t = w.tasks;

        w.tasks = t->next;
        free_task(t);
    }
    while (w.hosts) {
        struct hosted *h = w.hosts;

        w.hosts = h->next;
        close_host(h);
    }
    free(w.look);
    return 0;
}
