/* SPDX-License-Identifier: MIT */
/* worker.c - threads, batches and runs; see worker.h. */
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>
#include "progress.h"
#include "worker_impl.h"

#define LEAST (16 << 20) /* bytes without which a worker is of no use */

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

void mp_worker_send(struct worker *w, struct mp_message *m)
{
    struct mp_error err = {0};
    int rc;

    pthread_mutex_lock(&w->sending);
    rc = mp_link_send(w->sock, m, &err);
    if (rc == MP_ENOMEM || rc == MP_EINVAL) { /* somebody waits for it */
        mp_message_free(m);
        m->code = rc == MP_ENOMEM ? rc : MP_EIO;
        mp_link_send(w->sock, m, NULL);
    }
    if (err.code)
        mp_log(MP_LOG_ERROR, "worker", "%s", err.text);
    pthread_mutex_unlock(&w->sending);
    mp_message_free(m);
}

/* Whether there is not even memory for any picture. */
static int is_starved(void)
{
    void *volatile some = malloc(LEAST);

    free(some);
    return !some;
}

/* Locked. The front starts another, without what has leaked here. */
static void end(struct worker *w, const struct mp_error *why)
{
    w->end = *why;
    w->quit = 1;
    pthread_cond_broadcast(&w->changed);
}

/* Answer and forget it. Not locked; the task is the caller's. */
static void finish(struct worker *w, struct task *t, int rc)
{
    if (rc == MP_ENOMEM && is_starved()) {
        pthread_mutex_lock(&w->lock);
        end(w, &t->p.err); /* the front answers for it */
        pthread_mutex_unlock(&w->lock);
        return;
    }
    mp_task_answer(w, t, rc);
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
    mp_task_free(t);
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
    int rc = t->cancelled ? mp_fail(&t->p.err, MP_EINTR, "cancelled")
                          : mp_task_open(t);

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

    if (!rc && t->cancelled)
        rc = mp_fail(&t->p.err, MP_EINTR, "cancelled");
    if (!rc)
        rc = mp_picture_job_write(&t->p, mp_task_settings(t), "");
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
static void add_task(struct worker *w, struct mp_message *m)
{
    struct task *t = calloc(1, sizeof *t);
    uint64_t host =
        (uint64_t)json_integer_value(json_object_get(m->text, "pipeline"));

    if (!t || m->code) { /* no memory for it, or for what it says */
        struct mp_message reply = {.type = MP_DONE,
                                   .id = m->id,
                                   .code = MP_ENOMEM,
                                   .blob = MP_NO_BLOB};

        free(t);
        mp_worker_send(w, &reply);
        return;
    }
    *t = (struct task){
        .id = m->id, .text = m->text, .blob = m->blob, .p = {.stage = "read"}};
    m->text = NULL;
    m->blob = MP_NO_BLOB;
    t->host = find_host(w, host);
    if (!t->host) {
        mp_fail(&t->p.err, MP_ENOTSUP, "the pipeline is not loaded");
        mp_task_answer(w, t, MP_ENOTSUP);
        mp_task_free(t);
        return;
    }
    t->host->ntask++;
    *w->tasks_end = t;
    w->tasks_end = &t->next;
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
        add_task(w, m);
    else if (m->type != MP_CANCEL)
        return add_order(w, m);
    else
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
    if (failed)
        no_memory(&err);
    pthread_mutex_lock(&w->lock);
    end(w, &err);
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* ---- the network ---- */

/* Its looks go; it is to be answered by a thread. */
static void end_seeing(struct worker *w, struct task *t, int rc)
{
    double began = mp_now();
    int settled = mp_picture_job_settle(&t->p, t->host->pipeline);
    size_t kept = 0;

    if (t->nseen) /* a GPU had only begun its run */
        t->seen[t->last_seen].seconds += mp_now() - began;
    for (size_t i = 0; i < w->nlook; i++)
        if (w->look[i].task != t)
            w->look[kept++] = w->look[i];
    w->nlook = kept;
    pthread_mutex_lock(&w->lock);
    t->rc = settled ? settled : rc;
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
    t->p.device = t->host->turn++ % mp_pipeline_devices(t->host->pipeline);
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

    return a->task->host == b->task->host &&
           a->task->p.device == b->task->p.device && v->w == u->w &&
           v->h == u->h && same_text(a->task->variant, b->task->variant);
}

/* Looks like this one that go together. */
static size_t batch_of(const struct look *a)
{
    const struct mp_view *v = &a->task->p.view[a->view];

    return mp_pipeline_batch(a->task->host->pipeline, a->task->p.device, v->h,
                             v->w);
}

/* Are there as many? */
static int is_full(const struct worker *w, size_t first)
{
    size_t n = 0, most = batch_of(&w->look[first]);

    for (size_t i = first; i < w->nlook && n < most; i++)
        n += are_alike(&w->look[first], &w->look[i]);
    return n == most;
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

        if (left <= 0 || is_full(w, i))
            return i;
        if (*wait < 0 || left < *wait)
            *wait = left;
    }
    return w->nlook;
}

static void note_run(struct worker *w, size_t n)
{
    size_t bucket = 0;

    while (bucket + 1 < MP_RUN_BUCKETS && n > (size_t)1 << bucket)
        bucket++;
    atomic_fetch_add(&w->ledger->runs[bucket], 1);
    atomic_fetch_add(&w->ledger->views, n);
}

static void use_options(const struct task *t)
{
    mp_pipeline_use(t->host->pipeline, mp_task_settings(t)->head_conf,
                    t->variant ? t->variant : "");
}

/* It had a view in a run of n. */
static int note_seen(struct task *t, size_t n, double seconds,
                     struct mp_error *err)
{
    struct seen *s = t->seen;
    size_t i = 0;

    while (i < t->nseen && s[i].views != n)
        i++;
    if (i == t->nseen) {
        s = realloc(s, (i + 1) * sizeof *s);
        if (!s)
            return no_memory(err);
        t->seen = s;
        s[t->nseen++] = (struct seen){.views = n};
    }
    t->last_seen = i;
    s[i].runs += 1 / (double)n;
    s[i].seconds += seconds / (double)n;
    return 0;
}

/* Asked by devices at work: nobody waits for that any more. */
static int is_unwanted(void *user)
{
    const struct worker *w = user;

    for (size_t i = 0; i < w->nrunning; i++)
        if (!w->running[i].task->cancelled)
            return 0;
    return w->nrunning > 0;
}

static int see(struct worker *w, const struct look *look, size_t n,
               struct mp_error *err)
{
    struct mp_look *at = malloc(n * sizeof *at);
    double began = mp_now(), took;
    int rc;

    if (!at)
        return no_memory(err);
    for (size_t i = 0; i < n; i++)
        at[i] = (struct mp_look){&look[i].task->p, look[i].view};
    use_options(look->task);
    w->running = look;
    w->nrunning = n;
    rc = mp_picture_job_see(at, n, look->task->host->pipeline, err);
    w->nrunning = 0;
    free(at);
    took = mp_now() - began;
    if (!rc)
        note_run(w, n);
    for (size_t i = 0; i < n && !rc; i++)
        rc = note_seen(look[i].task, n, took, err);
    return rc;
}

/* Merge what has been seen. 1: there is more to see. */
static int merge(struct worker *w, const struct look *look)
{
    struct task *t = look->task;
    double began = mp_now();
    int rc;

    use_options(t);
    w->running = look;
    w->nrunning = 1;
    rc = mp_picture_job_merge(&t->p, mp_task_settings(t), t->host->pipeline);
    w->nrunning = 0;
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

/* The device has not failed. */
static int is_of_task(int rc)
{
    return rc == MP_EINTR || mp_is_of_picture(rc);
}

/* These views; should that fail, each alone. Nonzero: the device failed. */
static int see_all(struct worker *w, struct look *look, size_t n)
{
    struct mp_error err = {0};
    double began = mp_now();
    int rc, together;

    current = look->task->host->id;
    for (size_t i = 0; i < n; i++)
        look[i].task->p.stage = "network";
    rc = see(w, look, n, &err);
    together = !rc || n == 1;
    for (size_t i = 0; i < n && (!rc || is_of_task(rc)); i++) {
        struct task *t = look[i].task;

        if (!t)
            continue;
        if (!together)
            rc = see(w, &look[i], 1, &err);
        if (rc)
            t->p.err = err;
        else
            rc = merge(w, &look[i]);
        if (rc <= 0)
            end_look(w, &look[i], n - i, rc);
        rc = is_of_task(rc) || rc == 1 ? 0 : rc;
    }
    if (rc)
        mp_log(MP_LOG_ERROR, "worker", "%s", err.text);
    current = 0;
    mp_worker_tell_usage(w, mp_now() - began);
    return rc;
}

/* Take a batch like the first, and see it. */
static int run_batch(struct worker *w, size_t first)
{
    struct look like = w->look[first];
    size_t most = batch_of(&like), n = 0, kept = first;
    struct look *some = malloc(most * sizeof *some);
    int rc;

    if (!some) {
        end_seeing(w, like.task, no_memory(&like.task->p.err));
        return 0;
    }
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

/* ---- the main thread ---- */

static void take_order(struct worker *w, struct order *o)
{
    if (o->m.type == MP_LOAD) {
        current = o->m.id;
        mp_worker_load(w, &o->m);
        current = 0;
    } else if (o->m.type == MP_UNLOAD) {
        mp_worker_unload(w, &o->m);
    }
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
    w->devices.is_stopped = is_unwanted;
    w->devices.user = w;
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
        return mp_fail(err, rc, "the network cannot go on here");
    if (w.end.code)
        return mp_fail(err, w.end.code, "%s", w.end.text);
    for (int i = 0; i < w.nthread; i++)
        pthread_join(w.thread[i], NULL);
    while (w.tasks) {
        struct task *t = w.tasks;

        w.tasks = t->next;
        mp_picture_job_settle(&t->p, t->host->pipeline);
        mp_task_free(t);
    }
    while (w.hosts) {
        struct hosted *h = w.hosts;

        w.hosts = h->next;
        mp_host_close(h);
    }
    free(w.look);
    return 0;
}
