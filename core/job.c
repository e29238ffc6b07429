/* SPDX-License-Identifier: MIT */
/*
 * job.c - the run: a ring of slots, one per picture under way. Threads load
 * the next picture into its slot; the main thread takes loaded ones in order,
 * has their views seen and merged; threads write; slots are accounted for and
 * given back in order.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "device.h"
#include "host.h"
#include "job.h"
#include "picture_job.h"
#include "progress.h"
#include "sink.h"

#define THREADS_MAX 8   /* beside a network that runs here */
#define WAKE        0.1 /* seconds between looks at the stop flag */

enum state {
    EMPTY,
    LOADING,
    LOADED,  /* or failed: for the main thread */
    TAKEN,   /* by the main thread */
    MERGED,  /* to be written */
    WRITING, /* by a thread */
    READY    /* done or failed */
};

struct slot {
    enum state state;
    int rc; /* of what was done last */
    struct mp_picture_job p;
};

/* A view that waits for the network of its picture's device. */
struct look {
    size_t picture, view;
};

struct run {
    const struct mp_job *job;
    const struct mp_input **todo;
    size_t ntodo;
    struct mp_record *record;
    struct mp_progress progress;

    pthread_mutex_t lock; /* of all that follows, but the main thread's */
    pthread_cond_t changed;
    struct slot *ring; /* picture k is in ring[k % nring] */
    size_t nring, nloaded /* begun to load */, nretired;
    int quit;              /* load no more; write what is merged, and end */
    struct mp_error fatal; /* code nonzero: ends the run */
    struct mp_counts counts;
    struct mp_seconds seconds;
    pthread_t thread[MP_CLIENT_MOST]; /* no fewer than THREADS_MAX */
    int nthread;

    /* the main thread's */
    size_t batch, window; /* of any size; pictures that wait to fill it */
    struct look *look;
    size_t nlook, look_cap;
    int merged;   /* a picture has come through */
    size_t gone;  /* the last that was merged or has failed */
    double *each; /* network's seconds per picture */
    size_t neach;
    double load[MP_DEVICES_MAX]; /* pixels of views, of each device so far */
    size_t *late; /* pictures whose results are still to come, in order */
    size_t nlate;
};

static int no_memory(struct mp_error *err)
{
    return mp_fail(err, MP_ENOMEM, "out of memory");
}

static struct slot *slot_of(const struct run *r, size_t picture)
{
    return &r->ring[picture % r->nring];
}

/* Locked. The first reason counts. */
static void stop_run(struct run *r, const struct mp_error *why)
{
    if (!r->fatal.code)
        r->fatal = *why;
    r->quit = 1;
    pthread_cond_broadcast(&r->changed);
}

static int is_stopped(const struct run *r)
{
    return r->job->stop && *r->job->stop;
}

/* ---- the end of a picture ---- */

static void account(struct run *r, const struct slot *s)
{
    const struct mp_picture_job *p = &s->p;
    struct mp_error err = {0};

    if (!s->rc) {
        r->counts.done++;
        return;
    }
    r->counts.failed++;
    mp_progress_clear(&r->progress);
    mp_log(MP_LOG_ERROR, NULL, "%s: %s", p->input->path, p->err.text);
    if (mp_record_failure(r->record, p->input->path, p->stage, p->err.text,
                          &err))
        stop_run(r, &err);
}

/* Locked. Account for the pictures that are ready, in their order. */
static void retire(struct run *r)
{
    struct slot *s;

    while (r->nretired < r->nloaded &&
           (s = slot_of(r, r->nretired))->state == READY) {
        account(r, s);
        mp_picture_job_free(&s->p);
        s->state = EMPTY;
        r->nretired++;
    }
    mp_progress_step(&r->progress, r->counts.done, r->counts.failed);
    pthread_cond_broadcast(&r->changed);
}

static void set_state(struct run *r, struct slot *s, enum state state, int rc)
{
    pthread_mutex_lock(&r->lock);
    s->state = state;
    s->rc = rc;
    if (state == READY)
        retire(r);
    else
        pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

/* ---- threads ---- */

/* Locked. What to do now: writing first, as it gives memory back. */
static struct slot *next_task(struct run *r)
{
    for (size_t k = r->nretired; k < r->nloaded; k++)
        if (slot_of(r, k)->state == MERGED)
            return slot_of(r, k);
    if (!r->quit && r->nloaded < r->ntodo &&
        slot_of(r, r->nloaded)->state == EMPTY)
        return slot_of(r, r->nloaded);
    return NULL;
}

static void load(struct run *r, struct slot *s, const struct mp_input *input)
{
    double began = mp_now();
    int gone = 0;
    int rc = r->job->client
                 ? mp_client_picture(r->job->client, &s->p, input, &gone)
                 : mp_picture_job_load(&s->p, input, r->job->settings);

    pthread_mutex_lock(&r->lock);
    r->seconds.read += mp_now() - began;
    if (gone)
        stop_run(r, &s->p.err);
    s->state = LOADED;
    s->rc = rc;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

/* What cannot be written now cannot be written for the next picture. */
static void write_out(struct run *r, struct slot *s)
{
    double began = mp_now();
    int rc = mp_picture_job_write(&s->p, r->job->settings, r->job->out);

    pthread_mutex_lock(&r->lock);
    r->seconds.write += mp_now() - began;
    s->rc = rc;
    if (rc == MP_EIO) {
        stop_run(r, &s->p.err);
    } else {
        s->state = READY;
        retire(r);
    }
    pthread_mutex_unlock(&r->lock);
}

static void *work(void *user)
{
    struct run *r = user;
    struct slot *s;

    pthread_mutex_lock(&r->lock);
    for (;;) {
        s = r->fatal.code ? NULL : next_task(r);
        if (!s && r->quit)
            break;
        if (!s) {
            pthread_cond_wait(&r->changed, &r->lock);
        } else if (s->state == MERGED) {
            s->state = WRITING;
            pthread_mutex_unlock(&r->lock);
            write_out(r, s);
            pthread_mutex_lock(&r->lock);
        } else {
            size_t k = r->nloaded++;

            s->state = LOADING;
            pthread_mutex_unlock(&r->lock);
            load(r, s, r->todo[k]);
            pthread_mutex_lock(&r->lock);
        }
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

/* ---- the network ---- */

static void drop_looks(struct run *r, size_t picture)
{
    size_t kept = 0;

    for (size_t i = 0; i < r->nlook; i++)
        if (r->look[i].picture != picture)
            r->look[kept++] = r->look[i];
    r->nlook = kept;
}

static int fail_picture(struct run *r, size_t picture, int rc,
                        struct mp_error *err)
{
    struct slot *s = slot_of(r, picture);
    int bad = mp_picture_job_settle(&s->p, r->job->pipeline);

    if (bad) {
        *err = s->p.err;
        return bad;
    }
    drop_looks(r, picture);
    r->gone = picture;
    set_state(r, s, READY, rc);
    return 0;
}

static int remember_time(struct run *r, double seconds, struct mp_error *err)
{
    if (r->neach % 1024 == 0) {
        double *more = realloc(r->each, (r->neach + 1024) * sizeof *more);

        if (!more)
            return no_memory(err);
        r->each = more;
    }
    r->each[r->neach++] = seconds;
    return 0;
}

/* Have the results of a picture, and let threads write them. */
static int settle(struct run *r, size_t picture, struct mp_error *err)
{
    struct slot *s = slot_of(r, picture);
    int rc = mp_picture_job_settle(&s->p, r->job->pipeline);

    if (rc) {
        *err = s->p.err;
        return rc;
    }
    rc = remember_time(r, s->p.network, err);
    set_state(r, s, MERGED, 0);
    return rc;
}

/* Merge what has been seen of a picture; when that is all, have it written, if
 * need be later. */
static int merge(struct run *r, size_t picture, struct mp_error *err)
{
    struct slot *s = slot_of(r, picture);
    struct mp_picture_job *p = &s->p;
    int rc = mp_picture_job_merge(p, r->job->settings, r->job->pipeline);

    /* the network took it, so this is about the settings */
    if (rc && (!mp_is_of_picture(rc) || (rc == MP_EINVAL && !r->merged))) {
        *err = p->err;
        return rc;
    }
    if (rc)
        return fail_picture(r, picture, rc, err);
    if (p->nmerged < p->nview)
        return 0;
    r->merged = 1;
    r->gone = picture;
    if (!p->ticket)
        return settle(r, picture, err);
    r->late[r->nlate++] = picture;
    return 0;
}

/* Of the first n late pictures those of this device, or all: so the device is
 * at work on what came after them. */
static int settle_first(struct run *r, size_t n, size_t device,
                        struct mp_error *err)
{
    size_t kept = 0;
    int rc = 0;

    for (size_t i = 0; i < r->nlate; i++) {
        size_t picture = r->late[i];

        if (!rc && i < n &&
            (device == SIZE_MAX || slot_of(r, picture)->p.device == device))
            rc = settle(r, picture, err);
        else
            r->late[kept++] = picture;
    }
    r->nlate = kept;
    return rc;
}

static int settle_all(struct run *r, struct mp_error *err)
{
    return settle_first(r, r->nlate, SIZE_MAX, err);
}

/* Have these views seen, all of one size. */
static int run_network(struct run *r, const struct look *look, size_t n,
                       struct mp_error *err)
{
    struct mp_look *at = malloc(n * sizeof *at);
    int rc;

    if (!at)
        return no_memory(err);
    for (size_t i = 0; i < n; i++)
        at[i] = (struct mp_look){&slot_of(r, look[i].picture)->p, look[i].view};
    rc = mp_picture_job_see(at, n, r->job->pipeline, err);
    free(at);
    return rc;
}

/* One view alone: its failure is its picture's. */
static int run_one(struct run *r, const struct look *look, struct mp_error *err)
{
    struct mp_picture_job *p = &slot_of(r, look->picture)->p;
    size_t picture = look->picture;
    int rc;

    p->stage = "network";
    rc = run_network(r, look, 1, &p->err);
    if (!rc)
        return merge(r, picture, err);
    if (!mp_is_of_picture(rc)) {
        *err = p->err;
        return rc;
    }
    return fail_picture(r, picture, rc, err);
}

/* Several views; if that fails, each alone, to find which it is. */
static int run_some(struct run *r, const struct look *look, size_t n,
                    struct mp_error *err)
{
    struct mp_error why = {0};
    int rc = n > 1 ? run_network(r, look, n, &why) : MP_EINVAL, done = !rc;

    if (rc && !mp_is_of_picture(rc)) {
        *err = why;
        return rc;
    }
    rc = 0;
    for (size_t i = 0; i < n && !rc; i++) {
        if (look[i].picture == r->gone)
            continue; /* its slot is no longer ours */
        if (!done)
            rc = run_one(r, &look[i], err);
        else
            rc = merge(r, look[i].picture, err);
    }
    return rc;
}

/* ---- batches ---- */

static int same_size(const struct run *r, const struct look *a,
                     const struct look *b)
{
    const struct mp_view *v = &slot_of(r, a->picture)->p.view[a->view];
    const struct mp_view *w = &slot_of(r, b->picture)->p.view[b->view];

    return v->w == w->w && v->h == w->h &&
           slot_of(r, a->picture)->p.device == slot_of(r, b->picture)->p.device;
}

/* Views of this one's size that go together. */
static size_t batch_of(const struct run *r, const struct look *a)
{
    const struct mp_picture_job *p = &slot_of(r, a->picture)->p;
    const struct mp_view *v = &p->view[a->view];
    size_t n = mp_pipeline_batch(r->job->pipeline, p->device, v->h, v->w);

    return n < r->batch ? n : r->batch;
}

/* Are there as many as go together? */
static int is_full(const struct run *r, size_t first)
{
    size_t n = 0, most = batch_of(r, &r->look[first]);

    for (size_t i = first; i < r->nlook && n < most; i++)
        n += same_size(r, &r->look[first], &r->look[i]);
    return n == most;
}

/* Take up to a batch of the waiting views that are of this one's size. */
static int run_like(struct run *r, size_t first, struct mp_error *err)
{
    struct look like = r->look[first], *some;
    size_t device = slot_of(r, like.picture)->p.device, late = r->nlate;
    size_t n = 0, kept = first, most = batch_of(r, &like);
    int rc;

    some = malloc(most * sizeof *some);
    if (!some)
        return no_memory(err);
    for (size_t i = first; i < r->nlook; i++) {
        if (n < most && same_size(r, &like, &r->look[i]))
            some[n++] = r->look[i];
        else
            r->look[kept++] = r->look[i];
    }
    r->nlook = kept;
    rc = run_some(r, some, n, err);
    free(some);
    return rc ? rc : settle_first(r, late, device, err);
}

/* Full batches; then what has waited for the whole window before `picture`. */
static int run_due(struct run *r, size_t picture, struct mp_error *err)
{
    int rc = 0;

    for (size_t i = 0; i < r->nlook && !rc;) {
        if (!is_full(r, i)) {
            i++;
            continue;
        }
        rc = run_like(r, i, err);
        i = 0; /* a picture that failed takes views along */
    }
    while (!rc && r->nlook && r->look[0].picture + r->window <= picture)
        rc = run_like(r, 0, err);
    return rc;
}

/* Pictures go to the device that has had the least to see. */
static void choose_device(struct run *r, struct mp_picture_job *p)
{
    for (size_t i = 1; i < mp_pipeline_devices(r->job->pipeline); i++)
        if (r->load[i] < r->load[p->device])
            p->device = i;
    for (size_t i = 0; i < p->nview; i++)
        r->load[p->device] += (double)p->view[i].w * p->view[i].h;
}

static int add_looks(struct run *r, size_t picture, struct mp_error *err)
{
    size_t n = slot_of(r, picture)->p.nview;

    choose_device(r, &slot_of(r, picture)->p);
    if (r->nlook + n > r->look_cap) {
        struct look *more = realloc(r->look, (r->nlook + n) * sizeof *more);

        if (!more)
            return no_memory(err);
        r->look = more;
        r->look_cap = r->nlook + n;
    }
    for (size_t i = 0; i < n; i++)
        r->look[r->nlook++] = (struct look){picture, i};
    return 0;
}

/* ---- the main thread ---- */

static int is_loaded(struct run *r, size_t picture)
{
    int yes;

    pthread_mutex_lock(&r->lock);
    yes = picture < r->nloaded && slot_of(r, picture)->state == LOADED;
    pthread_mutex_unlock(&r->lock);
    return yes;
}

/* Wait until this picture has been loaded; 0: the run is to end. */
static int wait_for(struct run *r, size_t picture)
{
    struct slot *s = slot_of(r, picture);
    int go;

    pthread_mutex_lock(&r->lock);
    for (;;) {
        struct timespec t;

        go = !r->fatal.code && !is_stopped(r);
        if (!go || (picture < r->nloaded && s->state == LOADED))
            break;
        clock_gettime(CLOCK_MONOTONIC, &t);
        t.tv_nsec += (long)(WAKE * 1e9);
        t.tv_sec += t.tv_nsec / 1000000000;
        t.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&r->changed, &r->lock, &t);
    }
    if (go)
        s->state = TAKEN;
    pthread_mutex_unlock(&r->lock);
    return go;
}

/* Stopped: forget the pictures that the network has not begun with. */
static void drop_new(struct run *r)
{
    for (size_t i = 0; i < r->nlook;) {
        size_t picture = r->look[i].picture;

        if (slot_of(r, picture)->p.nmap)
            i++;
        else
            drop_looks(r, picture);
    }
}

static int feed(struct run *r, struct mp_error *err)
{
    int rc = 0;

    for (size_t k = 0; k < r->ntodo && !rc; k++) {
        struct slot *s = slot_of(r, k);

        /* while there is nothing to see, results are not kept waiting */
        if (!is_loaded(r, k))
            rc = settle_all(r, err);
        if (rc || !wait_for(r, k))
            break;
        if (s->rc) {
            set_state(r, s, READY, s->rc);
            continue;
        }
        if (!s->p.nview) { /* nothing to see */
            set_state(r, s, MERGED, 0);
            continue;
        }
        rc = add_looks(r, k, err);
        if (!rc)
            rc = run_due(r, k, err);
    }
    while (!rc && r->nlook && !r->fatal.code) {
        if (is_stopped(r))
            drop_new(r);
        if (r->nlook)
            rc = run_like(r, 0, err);
    }
    return rc ? rc : settle_all(r, err);
}

/* ---- beginning and end ---- */

static int count_cores(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);

    return mp_host_cpus(n, "");
}

/* Threads leave signals to the main thread. */
static int start_threads(struct run *r, struct mp_error *err)
{
    int want = count_cores(), code = 0;
    sigset_t all, before;

    want = want < 2 ? 2 : want > THREADS_MAX ? THREADS_MAX : want;
    if (r->job->client) /* they wait, most of the time */
        want = mp_client_many(r->job->client);
    r->batch = mp_pipeline_batch(r->job->pipeline, 0, 0, 0);
    r->window = 2 * r->batch * mp_pipeline_devices(r->job->pipeline);
    r->nring = r->window + (size_t)want + 1;
    r->ring = calloc(r->nring, sizeof *r->ring);
    r->late = calloc(r->nring, sizeof *r->late);
    if (!r->ring || !r->late)
        return no_memory(err);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (r->nthread < want && !code) {
        code = pthread_create(&r->thread[r->nthread], NULL, work, r);
        r->nthread += !code;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return code ? mp_fail(err, MP_ENOMEM, "threads: %s", strerror(code)) : 0;
}

static void end_threads(struct run *r, const struct mp_error *err)
{
    pthread_mutex_lock(&r->lock);
    if (err->code)
        stop_run(r, err);
    r->quit = 1;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
    for (int i = 0; i < r->nthread; i++)
        pthread_join(r->thread[i], NULL);
    /* a stop leaves gaps, so what lies behind one is accounted for here */
    for (; r->nretired < r->nloaded; r->nretired++) {
        struct slot *s = slot_of(r, r->nretired);

        if (s->state == READY)
            account(r, s);
        mp_picture_job_settle(&s->p, r->job->pipeline);
        mp_picture_job_free(&s->p);
    }
    free(r->ring);
}

/* The inputs that are left to do. */
static int choose(struct run *r, int resume, struct mp_error *err)
{
    const struct mp_job *j = r->job;
    struct mp_sink sink = {.out = j->out, .kinds = j->settings->kinds};

    r->todo = malloc(j->inputs->n * sizeof *r->todo + 1);
    if (!r->todo)
        return no_memory(err);
    for (size_t i = 0; i < j->inputs->n; i++) {
        sink.stem = j->inputs->at[i].stem;
        if (!resume || !mp_sink_complete(&sink))
            r->todo[r->ntodo++] = &j->inputs->at[i];
    }
    r->counts.total = j->inputs->n;
    r->counts.skipped = j->inputs->n - r->ntodo;
    return 0;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double median(double *x, size_t n)
{
    if (!n)
        return 0;
    qsort(x, n, sizeof *x, by_value);
    return (x[(n - 1) / 2] + x[n / 2]) / 2;
}

static void tell_times(const struct run *r)
{
    const struct mp_seconds *s = &r->seconds;
    struct mp_pipeline_times t;

    mp_pipeline_times(r->job->pipeline, &t);
    mp_log(MP_LOG_INFO, "time",
           "%.2f s: load %.2f, compile %.2f, network %.2f (%zu views in %zu "
           "runs), merge %.2f; in other threads: read %.2f, write %.2f",
           s->total, t.load, t.compile, t.network, t.views, t.runs, t.merge,
           s->read, s->write);
}

static int run_all(struct run *r, struct mp_error *err)
{
    double began = mp_now();
    struct mp_pipeline_times t;
    struct mp_error own = {0};
    int rc;

    mp_pipeline_times(r->job->pipeline, &t);
    mp_progress_start(&r->progress, r->ntodo);
    rc = start_threads(r, &own);
    if (!rc)
        feed(r, &own);
    end_threads(r, &own);
    mp_progress_clear(&r->progress);
    r->seconds.total = t.load + mp_now() - began;
    r->seconds.network_median = median(r->each, r->neach);
    tell_times(r);
    if (r->fatal.code) {
        *err = r->fatal;
        return err->code;
    }
    if (r->counts.done + r->counts.failed == r->ntodo)
        return 0;
    return mp_fail(err, MP_EINTR, "stopped: --resume does the rest");
}

static int open_run(struct run *r, struct mp_error *err)
{
    const struct mp_job *j = r->job;
    int before, rc = mp_record_open(&r->record, &before, j->settings,
                                    j->pipeline, j->out, &j->shard, err);

    if (!rc)
        rc = choose(r, before && j->resume, err);
    if (!rc)
        rc =
            mp_record_write(r->record, "running", &r->counts, &r->seconds, err);
    return rc;
}

static int close_run(struct run *r, int rc, struct mp_error *err)
{
    const char *state = !rc              ? "done"
                        : rc == MP_EINTR ? "interrupted"
                                         : "stopped";
    struct mp_error own = {0};
    int bad = mp_record_join(r->record, r->job->inputs, &own);

    if (!bad)
        bad = mp_record_write(r->record, state, &r->counts, &r->seconds, &own);
    if (!bad || rc)
        return rc;
    *err = own;
    return bad;
}

int mp_job_run(const struct mp_job *job, struct mp_counts *counts,
               struct mp_error *err)
{
    struct run r = {.job = job, .gone = SIZE_MAX};
    pthread_condattr_t monotonic;
    int rc = open_run(&r, err);

    if (!rc) {
        pthread_condattr_init(&monotonic);
        pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
        pthread_mutex_init(&r.lock, NULL);
        pthread_cond_init(&r.changed, &monotonic);
        rc = close_run(&r, run_all(&r, err), err);
        pthread_cond_destroy(&r.changed);
        pthread_mutex_destroy(&r.lock);
        pthread_condattr_destroy(&monotonic);
    }
    *counts = r.counts;
    mp_record_free(r.record);
    free(r.todo);
    free(r.look);
    free(r.each);
    free(r.late);
    return rc;
}
