/* SPDX-License-Identifier: MIT */
/* front.c - the supervisor and dispatcher; see front.h. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "front_impl.h"
#include "progress.h"
#include "system.h"

#define BACKOFF_MOST 10 /* seconds */

const double mp_time_buckets[TIME_BUCKETS] = {
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30, 120};

/* What an event is about: the low bits are a number. */
#define EVENT(what, number) ((uint64_t)(what) << 56 | (number))
enum { EVENT_WAKE = 1, EVENT_SIGNAL, EVENT_WORKER, EVENT_CLIENT };

static const struct mp_daemon_conf *conf_of(const struct mp_front *f)
{
    return f->confs[f->nconf - 1];
}

static int no_memory(struct mp_error *err)
{
    return mp_fail(err, MP_ENOMEM, "out of memory");
}

/* ---- texts for everybody ---- */

/* Names of files without their folders: clients are not told of those. */
static void without_folders(char *out, size_t size, const char *text)
{
    size_t n = 0;

    while (*text && n + 1 < size) {
        int at_start = n == 0 || strchr(" \"'(=:", out[n - 1]);

        if (*text == '/' && at_start) {
            size_t len = strcspn(text, " \"',:;)"), last = len;

            while (last > 0 && text[last - 1] != '/')
                last--;
            text += last ? last : 1;
            continue;
        }
        out[n++] = *text++;
    }
    out[n] = '\0';
}

static void note_error(struct mp_front *f, const char *text)
{
    size_t at = f->nerror++ % ERRORS_KEPT;

    snprintf(f->errors[at].text, sizeof f->errors[at].text, "%s", text);
    f->errors[at].when = time(NULL);
}

/* ---- the end of a request ---- */

static void wake(const struct mp_front *f)
{
    uint64_t one = 1;

    if (write(f->wake_fd, &one, sizeof one) < 0 && errno != EAGAIN)
        mp_log(MP_LOG_ERROR, "front", "eventfd: %s", strerror(errno));
}

static void count_end(struct mp_request *r, enum result how)
{
    struct stats *s = &r->target->stats;
    double took = mp_now() - r->arrived;
    struct duration *d = how == GOOD ? &s->success : &s->fail;
    size_t i = 0;

    s->results[how]++;
    d->count++;
    d->seconds += took;
    while (i < TIME_BUCKETS && took > mp_time_buckets[i])
        i++;
    s->took[i]++;
}

/* Locked. Out of what is live, into what is to be told. */
static void settle(struct mp_front *f, struct mp_request *r, enum result how,
                   int status)
{
    if (r->watch >= 0)
        epoll_ctl(f->poll_fd, EPOLL_CTL_DEL, r->watch, NULL);
    if (r->prev)
        r->prev->next = r->next;
    else
        f->live = r->next;
    if (r->next)
        r->next->prev = r->prev;
    if (r->kind == MP_WANT_INFER)
        count_end(r, how);
    r->status = status;
    r->next = f->finished;
    f->finished = r;
}

__attribute__((format(printf, 5, 6))) static void
settle_with(struct mp_front *f, struct mp_request *r, enum result how,
            int status, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(r->error, sizeof r->error, fmt, ap);
    va_end(ap);
    if (status == 500 || how == EXPIRED)
        note_error(f, r->error);
    settle(f, r, how, status);
}

/* Not locked: tell who waited. */
static void tell(struct mp_front *f)
{
    struct mp_request *list, *r;

    pthread_mutex_lock(&f->lock);
    list = f->finished;
    f->finished = NULL;
    pthread_mutex_unlock(&f->lock);
    while ((r = list)) {
        list = r->next;
        r->done(r);
    }
}

void mp_request_free(struct mp_request *r)
{
    json_decref(r->text);
    json_decref(r->answer);
    r->text = r->answer = NULL;
    mp_blob_free(&r->picture);
    mp_blob_free(&r->results);
}

/* ---- pipelines ---- */

static struct pipeline *find_pipeline(const struct mp_front *f,
                                      const char *name)
{
    struct pipeline *p = f->pipelines;

    while (p && (p->is_gone || strcmp(p->entry->name, name)))
        p = p->next;
    return p;
}

static struct pipeline *pipeline_at(const struct mp_front *f, uint64_t id)
{
    struct pipeline *p = f->pipelines;

    while (p && p->id != id)
        p = p->next;
    return p;
}

/* Tell those that wait for p to be loaded or unloaded. */
static void end_waiting(struct mp_front *f, struct pipeline *p)
{
    for (struct mp_request *r = f->live, *next; r; r = next) {
        int is_load = r->kind == MP_WANT_LOAD;

        next = r->next;
        if (r->target != p || r->kind == MP_WANT_INFER)
            continue;
        if (is_load ? p->state == READY : p->state == UNLOADED)
            settle(f, r, GOOD, 200);
        else if (p->state == FAILED || is_load)
            settle_with(f, r, BAD_REQUEST, 400, "%s: %s", p->entry->name,
                        p->state == FAILED ? p->reason : "was unloaded");
    }
}

static void fail_queue(struct mp_front *f, struct pipeline *p, const char *why)
{
    struct mp_queued *e;

    while ((e = mp_queue_take(&p->queue))) {
        struct mp_request *r =
            (void *)((char *)e - offsetof(struct mp_request, queued));

        settle_with(f, r, REJECTED, 503, "%s: %s", p->entry->name, why);
    }
}

static void give_up(struct mp_front *f, struct pipeline *p, const char *why)
{
    without_folders(p->reason, sizeof p->reason, why);
    p->state = FAILED;
    p->is_wanted = 0;
    mp_log(MP_LOG_ERROR, p->entry->name, "not available: %s", why);
    note_error(f, p->reason);
    fail_queue(f, p, p->reason);
    end_waiting(f, p);
}

/* ---- sending to workers ---- */

static void send_to(struct worker *w, enum mp_message_type type, uint64_t id,
                    json_t *text, struct mp_blob blob)
{
    struct mp_message m = {.type = type, .id = id, .text = text, .blob = blob};
    struct mp_error err = {0};

    if (mp_link_send(w->sock, &m, &err)) {
        mp_log(MP_LOG_WARNING, w->name, "%s", err.text);
        kill(w->pid, SIGKILL); /* the end of its socket tells the rest */
    }
    json_decref(text);
}

static json_t *load_text(const struct pipeline *p)
{
    json_t *assign = json_array();

    for (char **a = p->entry->assign; *a; a++)
        json_array_append_new(assign, json_string(*a));
    return json_pack("{s:s, s:s, s:o, s:f}", "name", p->entry->name, "config",
                     p->entry->config, "assign", assign, "batch_window",
                     p->entry->batch_window);
}

static void start_load(struct pipeline *p)
{
    p->state = LOADING;
    p->is_wanted = 1;
    p->loading_since = mp_now();
    if (p->worker->pid)
        send_to(p->worker, MP_LOAD, p->id, load_text(p), MP_NO_BLOB);
    else if (!p->worker->restart)
        p->worker->restart = p->loading_since;
}

static size_t flight_limit(const struct mp_front *f, const struct pipeline *p)
{
    int32_t limit = conf_of(f)->limits.in_flight;
    json_int_t batch = json_integer_value(json_object_get(p->about, "batch"));

    return limit > 0 ? (size_t)limit : 2 * (size_t)batch + 3;
}

static void send_one(struct mp_front *f, struct pipeline *p,
                     struct mp_request *r)
{
    struct flight *fl = malloc(sizeof *fl);

    if (!fl) {
        settle_with(f, r, REJECTED, 503, "out of memory");
        return;
    }
    r->sent = mp_now();
    *fl = (struct flight){f->flights, r->id, p, r, r->sent};
    f->flights = fl;
    p->nflight++;
    p->used = r->sent;
    json_object_set_new(r->text, "pipeline", json_integer((json_int_t)p->id));
    send_to(p->worker, MP_INFER, r->id, r->text, r->picture);
    r->text = NULL;
    mp_blob_free(&r->picture); /* the worker's now */
}

static void dispatch(struct mp_front *f, struct pipeline *p)
{
    struct mp_queued *e;

    while (p->state == READY && p->worker->pid &&
           p->nflight < flight_limit(f, p) && (e = mp_queue_take(&p->queue)))
        send_one(f, p,
                 (void *)((char *)e - offsetof(struct mp_request, queued)));
    if (p->state == UNLOADING && !p->nflight && p->is_wanted) {
        p->is_wanted = 0;
        send_to(p->worker, MP_UNLOAD, p->id, NULL, MP_NO_BLOB);
    }
}

/* ---- submitting ---- */

static void put_in_queue(struct mp_front *f, struct pipeline *p,
                         struct mp_request *r)
{
    double timeout = r->timeout > 0 ? r->timeout : conf_of(f)->limits.timeout;

    if (p->state == FAILED) {
        settle_with(f, r, REJECTED, 503, "%s is not available: %s",
                    p->entry->name, p->reason);
        return;
    }
    if (p->state == UNLOADING ||
        (p->state == UNLOADED && p->entry->load != MP_ON_DEMAND)) {
        settle_with(f, r, REJECTED, 503, "%s is not loaded", p->entry->name);
        return;
    }
    r->queued =
        (struct mp_queued){.priority = r->priority,
                           .client = r->client,
                           .deadline = timeout > 0 ? r->arrived + timeout : 0};
    p->queue.most = (size_t)conf_of(f)->limits.queue;
    if (mp_queue_put(&p->queue, &r->queued)) {
        settle_with(f, r, REJECTED, 503, "%s: the queue is full",
                    p->entry->name);
        return;
    }
    if (p->state == UNLOADED)
        start_load(p);
    dispatch(f, p); /* at once: a burst must not fill the queue of an idle
                       worker */
}

static void begin_unload(struct mp_front *f, struct pipeline *p)
{
    if (p->state == READY) {
        p->state = UNLOADING;
        fail_queue(f, p, "was unloaded");
        dispatch(f, p);
        return;
    }
    if (p->state == FAILED)
        p->state = UNLOADED;
    end_waiting(f, p);
}

/* Locked. */
static void accept_request(struct mp_front *f, struct mp_request *r)
{
    struct pipeline *p = r->target;
    struct epoll_event event = {.events = EPOLLRDHUP | EPOLLHUP,
                                .data.u64 = EVENT(EVENT_CLIENT, r->id)};

    if (r->watch >= 0 && epoll_ctl(f->poll_fd, EPOLL_CTL_ADD, r->watch, &event))
        r->watch = -1; /* then it is served for nobody, at worst */
    if (f->draining) {
        settle_with(f, r, REJECTED, 503, "mpiped is about to end");
    } else if (r->kind == MP_WANT_INFER) {
        put_in_queue(f, p, r);
    } else if (r->kind == MP_WANT_LOAD) {
        p->ndied = 0;
        if (p->state == UNLOADED || p->state == FAILED)
            start_load(p);
        else if (p->state == READY)
            settle(f, r, GOOD, 200);
        else if (p->state == UNLOADING)
            settle_with(f, r, BAD_REQUEST, 400, "%s is being unloaded",
                        p->entry->name);
    } else if (p->state == LOADING) {
        settle_with(f, r, BAD_REQUEST, 400, "%s is being loaded",
                    p->entry->name);
    } else {
        begin_unload(f, p);
    }
}

void mp_front_submit(struct mp_front *f, struct mp_request *r)
{
    struct pipeline *p;

    r->arrived = mp_now();
    r->next = r->prev = NULL;
    pthread_mutex_lock(&f->lock);
    r->id = ++f->last_id;
    p = r->target = find_pipeline(f, r->pipeline);
    if (p) {
        r->next = f->live;
        if (f->live)
            f->live->prev = r;
        f->live = r;
        accept_request(f, r);
    }
    pthread_mutex_unlock(&f->lock);
    if (!p) {
        r->status = 404;
        snprintf(r->error, sizeof r->error, "there is no such model");
        r->done(r);
        return;
    }
    wake(f);
    tell(f);
}

/* ---- starting workers ---- */

static int open_ledger(struct worker *w, struct mp_error *err)
{
    w->ledger_fd = memfd_create("mpipe-ledger", MFD_CLOEXEC);
    if (w->ledger_fd >= 0 && !ftruncate(w->ledger_fd, sizeof *w->ledger)) {
        w->ledger = mmap(NULL, sizeof *w->ledger, PROT_READ | PROT_WRITE,
                         MAP_SHARED, w->ledger_fd, 0);
        if (w->ledger != MAP_FAILED)
            return 0;
        w->ledger = NULL;
    }
    return mp_fail(err, MP_ENOMEM, "shared memory: %s", strerror(errno));
}

/* The same program anew: nothing of a process with threads is carried over. */
static int spawn(struct mp_front *f, struct worker *w, int sock,
                 struct mp_error *err)
{
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    sigset_t none, all;
    pid_t pid;
    int code;

    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null",
                                     O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&files, sock, MP_LINK_FD);
    posix_spawn_file_actions_adddup2(&files, w->ledger_fd, MP_LEDGER_FD);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK |
                                        POSIX_SPAWN_SETSIGDEF |
                                        POSIX_SPAWN_SETPGROUP);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setsigdefault(&attr, &all);
    code = posix_spawn(&pid, "/proc/self/exe", &files, &attr, f->args, environ);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&files);
    if (code)
        return mp_fail(err, MP_EIO, "worker %s: %s", w->name, strerror(code));
    w->pid = pid;
    return 0;
}

/* Sockets above those numbers that the worker is to have. */
static int make_pair(int pair[2])
{
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
        return -1;
    for (int i = 0; i < 2; i++) {
        int up = fcntl(pair[i], F_DUPFD_CLOEXEC, MP_LEDGER_FD + 1);

        close(pair[i]);
        pair[i] = up;
    }
    if (pair[0] >= 0 && pair[1] >= 0)
        return 0;
    for (int i = 0; i < 2; i++)
        if (pair[i] >= 0)
            close(pair[i]);
    return -1;
}

static int start_worker(struct mp_front *f, struct worker *w,
                        struct mp_error *err)
{
    struct epoll_event event = {.events = EPOLLIN};
    int pair[2], rc;

    w->restart = 0;
    if (make_pair(pair))
        return mp_fail(err, MP_EIO, "socket pair: %s", strerror(errno));
    memset(w->ledger, 0, sizeof *w->ledger);
    rc = spawn(f, w, pair[1], err);
    close(pair[1]);
    if (rc) {
        close(pair[0]);
        return rc;
    }
    w->sock = pair[0];
    /* one that does not read must not hold everybody up */
    setsockopt(w->sock, SOL_SOCKET, SO_SNDTIMEO, &(struct timeval){.tv_sec = 1},
               sizeof(struct timeval));
    event.data.u64 = EVENT(EVENT_WORKER, (uint64_t)w->sock);
    epoll_ctl(f->poll_fd, EPOLL_CTL_ADD, w->sock, &event);
    w->starts++;
    for (struct pipeline *p = f->pipelines; p; p = p->next)
        if (p->worker == w && p->is_wanted)
            start_load(p);
    return 0;
}

static struct worker *worker_of(struct mp_front *f, const char *name,
                                struct mp_error *err)
{
    struct worker *w = f->workers, **end = &f->workers;

    for (; w; end = &w->next, w = w->next)
        if (!strcmp(w->name, name))
            return w;
    w = calloc(1, sizeof *w);
    if (!w || open_ledger(w, err)) {
        if (!w)
            no_memory(err);
        free(w);
        return NULL;
    }
    snprintf(w->name, sizeof w->name, "%s", name);
    w->sock = -1;
    *end = w;
    return w;
}

/* ---- a worker dies ---- */

static void describe_death(char *out, size_t size, int status)
{
    if (WIFSIGNALED(status))
        snprintf(out, size, "was killed by signal %d (%s)", WTERMSIG(status),
                 strsignal(WTERMSIG(status)));
    else
        snprintf(out, size, "ended with status %d", WEXITSTATUS(status));
}

static int count_deaths(const struct mp_front *f, struct pipeline *p)
{
    double now = mp_now();
    int n = 0;

    p->died[p->ndied++ % DEATHS_KEPT] = now;
    for (size_t i = 0; i < p->ndied && i < DEATHS_KEPT; i++)
        n += now - p->died[i] < conf_of(f)->worker.within;
    return n;
}

/* Was this pipeline the reason, as far as one can tell? */
static int is_to_blame(const struct mp_front *f, const struct pipeline *p,
                       uint64_t blame)
{
    if (blame)
        return p->id == blame;
    for (const struct pipeline *q = f->pipelines; q; q = q->next)
        if (q->worker == p->worker && q->state == LOADING)
            return p->state == LOADING;
    return p->nflight > 0;
}

static void fail_flights(struct mp_front *f, const struct worker *w,
                         const char *how)
{
    for (struct flight **at = &f->flights, *fl; (fl = *at);) {
        if (fl->p->worker != w) {
            at = &fl->next;
            continue;
        }
        *at = fl->next;
        if (fl->r)
            settle_with(f, fl->r, BROKEN, 500,
                        "the worker that had the request %s", how);
        fl->p->nflight--;
        free(fl);
    }
}

static void keep_counts(struct worker *w)
{
    for (int i = 0; i < MP_RUN_BUCKETS; i++)
        w->runs[i] += atomic_load(&w->ledger->runs[i]);
    w->views += atomic_load(&w->ledger->views);
    w->busy_ns += atomic_load(&w->ledger->busy_ns);
}

static void plan_restart(const struct mp_front *f, struct worker *w)
{
    double now = mp_now(), wait = conf_of(f)->worker.backoff;

    w->streak = now - w->died < conf_of(f)->worker.within ? w->streak + 1 : 1;
    w->died = now;
    for (int i = 2; i < w->streak && wait < BACKOFF_MOST; i++)
        wait *= 2;
    w->restart = now + (w->streak < 2         ? 0
                        : wait < BACKOFF_MOST ? wait
                                              : BACKOFF_MOST);
}

static void forget_pipelines(struct mp_front *f)
{
    for (struct pipeline **at = &f->pipelines, *p; (p = *at);) {
        if (!p->is_gone || p->state == UNLOADING || p->nflight) {
            at = &p->next;
            continue;
        }
        *at = p->next;
        json_decref(p->about);
        free(p);
    }
}

static void bury(struct mp_front *f, struct worker *w, uint64_t blame)
{
    char how[120], why[200];
    int status = 0, wanted = 0;

    kill(w->pid, SIGKILL); /* it may only have closed its socket */
    waitpid(w->pid, &status, 0);
    describe_death(how, sizeof how, status);
    mp_log(MP_LOG_ERROR, w->name, "the worker (process %ld) %s", (long)w->pid,
           how);
    close(w->sock);
    w->sock = -1;
    w->pid = 0;
    w->deaths++;
    keep_counts(w);
    blame = blame ? blame : atomic_load(&w->ledger->blame);
    memset(w->ledger, 0, sizeof *w->ledger);
    for (struct pipeline *p = f->pipelines; p; p = p->next) {
        int n;

        if (p->worker != w || !is_to_blame(f, p, blame))
            continue;
        n = count_deaths(f, p);
        if (n < conf_of(f)->worker.deaths)
            continue;
        snprintf(why, sizeof why, "its worker died %d times in %g s; it %s", n,
                 conf_of(f)->worker.within, how);
        give_up(f, p, why);
    }
    fail_flights(f, w, how);
    for (struct pipeline *p = f->pipelines; p; p = p->next) {
        if (p->worker != w || p->state == FAILED)
            continue;
        if (p->state == UNLOADING || !p->is_wanted) {
            p->is_wanted = 0;
            p->state = UNLOADED;
            end_waiting(f, p);
        } else {
            p->state = LOADING;
            wanted = 1;
        }
    }
    if (wanted && !f->draining)
        plan_restart(f, w);
    forget_pipelines(f);
}

/* ---- messages of workers ---- */

/* KiB that the process holds; 0: unknown. */
size_t mp_process_memory(pid_t pid)
{
    char path[48];
    unsigned long all = 0, resident = 0;
    FILE *file;

    snprintf(path, sizeof path, "/proc/%ld/statm", (long)pid);
    file = fopen(path, "r");
    if (!file)
        return 0;
    if (fscanf(file, "%lu %lu", &all, &resident) != 2)
        resident = 0;
    fclose(file);
    return resident * (size_t)sysconf(_SC_PAGESIZE) / 1024;
}

/* Over the limit: the pipeline that was not used for longest goes. */
static void save_memory(struct mp_front *f, struct worker *w)
{
    int32_t limit = conf_of(f)->limits.memory;
    struct pipeline *oldest = NULL;

    if (limit < 0 || mp_process_memory(w->pid) / 1024 <= (size_t)limit)
        return;
    for (struct pipeline *p = f->pipelines; p; p = p->next) {
        if (p->worker == w && p->state == UNLOADING)
            return; /* one at a time */
        if (p->worker == w && p->state == READY && !p->nflight && !p->queue.n &&
            p->entry->load == MP_ON_DEMAND && p->used > 0 &&
            (!oldest || p->used < oldest->used))
            oldest = p;
    }
    if (!oldest)
        return;
    mp_log(MP_LOG_INFO, oldest->entry->name, "unloaded to save memory");
    begin_unload(f, oldest);
}

static void on_loaded(struct mp_front *f, struct worker *w,
                      struct mp_message *m)
{
    struct pipeline *p = pipeline_at(f, m->id);
    const char *why = json_string_value(json_object_get(m->text, "error"));

    if (!p || p->worker != w || p->state != LOADING)
        return;
    if (m->code) {
        give_up(f, p, why ? why : "could not be loaded");
        return;
    }
    json_decref(p->about);
    p->about = m->text;
    m->text = NULL;
    p->state = READY;
    mp_log(MP_LOG_INFO, p->entry->name, "ready");
    end_waiting(f, p);
    if (p->is_gone)
        begin_unload(f, p);
    dispatch(f, p);
    save_memory(f, w);
}

static void on_unloaded(struct mp_front *f, struct worker *w,
                        const struct mp_message *m)
{
    struct pipeline *p = pipeline_at(f, m->id);

    if (!p || p->worker != w || p->state != UNLOADING)
        return;
    p->state = UNLOADED;
    p->used = 0;
    end_waiting(f, p);
    forget_pipelines(f);
    save_memory(f, w);
}

static void add_time(struct duration *d, double seconds)
{
    d->count++;
    d->seconds += seconds;
}

static void count_times(struct mp_request *r, const json_t *text)
{
    struct stats *s = &r->target->stats;
    double read = 0, wait = 0, network = 0, merge = 0, write = 0, runs = 0;
    struct timespec now;

    json_unpack((json_t *)text, "{s:{s:F, s:F, s:F, s:F, s:F}, s:F}", "seconds",
                "read", &read, "wait", &wait, "network", &network, "merge",
                &merge, "write", &write, "runs", &runs);
    clock_gettime(CLOCK_REALTIME, &now);
    s->last = (double)now.tv_sec * 1e3 + (double)(now.tv_nsec / 1000000);
    s->runs += runs;
    add_time(&s->queue, r->sent - r->arrived + (wait > 0 ? wait : 0));
    add_time(&s->input, read);
    add_time(&s->infer, network + merge);
    add_time(&s->output, write);
}

static int is_of_client(int code)
{
    return code == MP_EINVAL || code == MP_EFORMAT || code == MP_ENOTSUP ||
           code == MP_EABI;
}

static void take_answer(struct mp_front *f, struct mp_request *r,
                        struct mp_message *m)
{
    const char *text = json_string_value(json_object_get(m->text, "error"));
    const char *stage = json_string_value(json_object_get(m->text, "stage"));
    char clean[sizeof r->error];

    if (!m->code) {
        count_times(r, m->text);
        r->answer = m->text;
        r->results = m->blob;
        m->text = NULL;
        m->blob = MP_NO_BLOB;
        settle(f, r, GOOD, 200);
        return;
    }
    without_folders(clean, sizeof clean, text ? text : "failed");
    snprintf(r->stage, sizeof r->stage, "%s", stage ? stage : "");
    if (is_of_client(m->code))
        settle_with(f, r, BAD_REQUEST, 400, "%s", clean);
    else if (m->code == MP_ENOMEM)
        settle_with(f, r, REJECTED, 503, "%s", clean);
    else
        settle_with(f, r, BROKEN, 500, "%s", clean);
}

static void on_done(struct mp_front *f, const struct worker *w,
                    struct mp_message *m)
{
    for (struct flight **at = &f->flights, *fl; (fl = *at); at = &fl->next)
        if (fl->id == m->id && fl->p->worker == w) {
            *at = fl->next;
            fl->p->nflight--;
            if (fl->r)
                take_answer(f, fl->r, m);
            dispatch(f, fl->p);
            free(fl);
            return;
        }
}

static void on_message(struct mp_front *f, struct worker *w)
{
    struct mp_message m;
    struct mp_error err = {0};
    int got = mp_link_receive(w->sock, &m, &err);

    if (got != 1) {
        if (got < 0)
            mp_log(MP_LOG_ERROR, w->name, "%s", err.text);
        bury(f, w, 0);
        return;
    }
    if (m.type == MP_LOADED)
        on_loaded(f, w, &m);
    else if (m.type == MP_UNLOADED)
        on_unloaded(f, w, &m);
    else if (m.type == MP_DONE)
        on_done(f, w, &m);
    mp_message_free(&m);
}

/* ---- clients that go, and time that passes ---- */

static void abandon(struct mp_front *f, struct mp_request *r, enum result how,
                    int status, const char *why)
{
    if (r->queued.next)
        mp_queue_drop(&r->target->queue, &r->queued);
    for (struct flight *fl = f->flights; fl; fl = fl->next)
        if (fl->r == r) {
            fl->r = NULL;
            send_to(fl->p->worker, MP_CANCEL, fl->id, NULL, MP_NO_BLOB);
        }
    settle_with(f, r, how, status, "%s", why);
}

static void on_gone(struct mp_front *f, uint64_t id)
{
    struct mp_request *r = f->live;

    while (r && r->id != id)
        r = r->next;
    if (r)
        abandon(f, r, CANCELLED, 499, "the client is gone");
}

static void earlier(double *next, double when)
{
    if (when < *next)
        *next = when;
}

static void check_requests(struct mp_front *f, double now, double *next)
{
    for (struct mp_request *r = f->live, *after; r; r = after) {
        after = r->next;
        if (r->kind != MP_WANT_INFER || r->queued.deadline <= 0)
            continue;
        if (r->queued.deadline <= now)
            abandon(f, r, EXPIRED, 503, "the request's time was over");
        else
            earlier(next, r->queued.deadline);
    }
}

/* A worker that hangs, in a request or in loading. */
static void check_hangs(struct mp_front *f, struct worker *w, double now,
                        double *next)
{
    const struct mp_daemon_conf *c = conf_of(f);

    for (struct flight *fl = f->flights; fl; fl = fl->next) {
        if (fl->p->worker != w)
            continue;
        if (fl->sent + c->limits.compute_time <= now) {
            mp_log(MP_LOG_ERROR, fl->p->entry->name,
                   "the worker has had a request for %g s: it is killed",
                   c->limits.compute_time);
            bury(f, w, fl->p->id);
            return;
        }
        earlier(next, fl->sent + c->limits.compute_time);
    }
    for (struct pipeline *p = f->pipelines; p; p = p->next) {
        if (p->worker != w || p->state != LOADING)
            continue;
        if (p->loading_since + c->limits.load_time <= now) {
            mp_log(MP_LOG_ERROR, p->entry->name,
                   "the worker has been loading for %g s: it is killed",
                   c->limits.load_time);
            bury(f, w, p->id);
            return;
        }
        earlier(next, p->loading_since + c->limits.load_time);
    }
}

static void check_workers(struct mp_front *f, double now, double *next)
{
    struct mp_error err = {0};

    for (struct worker *w = f->workers; w; w = w->next) {
        if (w->pid) {
            check_hangs(f, w, now, next);
        } else if (w->restart && w->restart <= now) {
            if (start_worker(f, w, &err)) {
                mp_log(MP_LOG_ERROR, w->name, "%s", err.text);
                plan_restart(f, w);
            }
        }
        if (!w->pid && w->restart)
            earlier(next, w->restart);
    }
}

static void tell_ready(struct mp_front *f)
{
    int ready = 0, all = 0, before = f->told_ready;

    for (const struct pipeline *p = f->pipelines; p; p = p->next) {
        if (p->state == LOADING && p->is_wanted && !f->told_ready)
            return;
        ready += p->state == READY;
        all++;
    }
    f->told_ready = ready + 1;
    if (f->told_ready == before)
        return;
    mp_log(MP_LOG_INFO, "front", "%d of %d pipelines ready", ready, all);
    mp_notify("%sSTATUS=%d of %d pipelines ready", before ? "" : "READY=1\n",
              ready, all);
}

static void beat(struct mp_front *f, double now, double *next)
{
    if (f->watchdog <= 0)
        return;
    if (f->beat <= now) {
        mp_notify("WATCHDOG=1");
        f->beat = now + f->watchdog / 2;
    }
    earlier(next, f->beat);
}

/* ---- signals ---- */

static int add_pipeline(struct mp_front *f, const struct mp_pipeline_entry *e,
                        struct mp_error *err)
{
    struct pipeline **end = &f->pipelines;
    struct pipeline *p = calloc(1, sizeof *p);

    if (!p)
        return no_memory(err);
    p->worker = worker_of(f, e->worker, err);
    if (!p->worker) {
        free(p);
        return MP_ENOMEM;
    }
    p->id = ++f->last_id;
    p->entry = e;
    mp_queue_init(&p->queue, (size_t)conf_of(f)->limits.queue);
    while (*end)
        end = &(*end)->next;
    *end = p;
    if (e->load == MP_AT_START)
        start_load(p);
    return 0;
}

static int same_entry(const struct mp_pipeline_entry *a,
                      const struct mp_pipeline_entry *b)
{
    size_t i = 0;

    if (strcmp(a->config, b->config) || strcmp(a->worker, b->worker) ||
        a->batch_window != b->batch_window)
        return 0;
    while (a->assign[i] && b->assign[i] && !strcmp(a->assign[i], b->assign[i]))
        i++;
    return a->assign[i] == b->assign[i];
}

static void drop_pipeline(struct mp_front *f, struct pipeline *p)
{
    p->is_gone = 1;
    fail_queue(f, p, "is no longer in the configuration");
    if (p->state != LOADING)
        begin_unload(f, p);
}

/* The pipelines of the new configuration; those that are the same stay. */
static int change_to(struct mp_front *f, struct mp_daemon_conf *c,
                     struct mp_error *err)
{
    struct mp_daemon_conf **more =
        realloc(f->confs, (f->nconf + 1) * sizeof *more);
    int rc = 0;

    if (!more) {
        mp_daemon_conf_free(c);
        return no_memory(err);
    }
    f->confs = more;
    f->confs[f->nconf++] = c;
    for (struct pipeline *p = f->pipelines; p; p = p->next) {
        size_t i = 0;

        while (i < c->npipeline && strcmp(c->pipeline[i].name, p->entry->name))
            i++;
        if (i < c->npipeline && same_entry(p->entry, &c->pipeline[i]))
            p->entry = &c->pipeline[i];
        else if (!p->is_gone)
            drop_pipeline(f, p);
    }
    for (size_t i = 0; i < c->npipeline && !rc; i++)
        if (!find_pipeline(f, c->pipeline[i].name))
            rc = add_pipeline(f, &c->pipeline[i], err);
    forget_pipelines(f);
    return rc;
}

static void reload(struct mp_front *f)
{
    struct mp_daemon_conf *c;
    struct mp_error err = {0};

    mp_notify("RELOADING=1\nMONOTONIC_USEC=%.0f", mp_now() * 1e6);
    if (mp_daemon_conf_open(&c, f->file, f->assign, f->nassign, &err) ||
        change_to(f, c, &err)) {
        mp_log(MP_LOG_ERROR, NULL, "%s", err.text);
        mp_log(MP_LOG_WARNING, "front", "the configuration stays as it was");
    } else {
        mp_log(MP_LOG_WARNING, "front", "%s read again", f->file);
    }
    mp_notify("READY=1");
}

static void on_signal(struct mp_front *f)
{
    struct signalfd_siginfo s;

    if (read(f->signal_fd, &s, sizeof s) != sizeof s)
        return;
    if (s.ssi_signo == SIGHUP) {
        reload(f);
        return;
    }
    if (f->draining)
        f->drain_until = 0; /* asked again */
    else
        f->drain_until = mp_now() + conf_of(f)->limits.drain_time;
    f->draining = 1;
    mp_notify("STOPPING=1");
    mp_log(MP_LOG_INFO, "front", "ending");
}

/* ---- the loop ---- */

static void on_event(struct mp_front *f, uint64_t data)
{
    uint64_t number = data & ((UINT64_C(1) << 56) - 1), unused;

    switch (data >> 56) {
    case EVENT_WAKE:
        if (read(f->wake_fd, &unused, sizeof unused) < 0)
            break; /* somebody else's wake */
        break;
    case EVENT_SIGNAL:
        on_signal(f);
        break;
    case EVENT_CLIENT:
        on_gone(f, number);
        break;
    default:
        for (struct worker *w = f->workers; w; w = w->next)
            if (w->sock >= 0 && (uint64_t)w->sock == number) {
                on_message(f, w);
                break;
            }
    }
}

/* Locked. What is due; the time of what comes next. */
static double do_due(struct mp_front *f)
{
    double now = mp_now(), next = now + 3600;

    if (f->every_second) {
        f->every_second(f->every_user);
        earlier(&next, now + 1);
    }
    check_requests(f, now, &next);
    check_workers(f, now, &next);
    for (struct pipeline *p = f->pipelines; p; p = p->next)
        dispatch(f, p);
    beat(f, now, &next);
    tell_ready(f);
    if (f->draining)
        earlier(&next, f->drain_until);
    return next - now;
}

static int is_over(const struct mp_front *f)
{
    return f->draining && (!f->live || f->drain_until <= mp_now());
}

void mp_front_every_second(struct mp_front *f, void (*call)(void *user),
                           void *user)
{
    f->every_second = call;
    f->every_user = user;
}

int mp_front_run(struct mp_front *f, struct mp_error *err)
{
    struct epoll_event event[64];
    double wait;
    int n, over;

    f->watchdog = mp_watchdog();
    do {
        pthread_mutex_lock(&f->lock);
        wait = do_due(f);
        over = is_over(f);
        pthread_mutex_unlock(&f->lock);
        tell(f);
        if (over)
            break;
        n = epoll_wait(f->poll_fd, event, 64, (int)(wait * 1e3) + 1);
        if (n < 0 && errno != EINTR)
            return mp_fail(err, MP_EIO, "epoll: %s", strerror(errno));
        pthread_mutex_lock(&f->lock);
        for (int i = 0; i < n; i++)
            on_event(f, event[i].data.u64);
        pthread_mutex_unlock(&f->lock);
        tell(f);
    } while (1);
    pthread_mutex_lock(&f->lock);
    while (f->live)
        abandon(f, f->live, REJECTED, 503, "mpiped is ending");
    pthread_mutex_unlock(&f->lock);
    tell(f);
    return 0;
}

/* ---- beginning and end ---- */

static int add_fd(const struct mp_front *f, int fd, uint64_t what)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = EVENT(what, 0)};

    return fd < 0 ? -1 : epoll_ctl(f->poll_fd, EPOLL_CTL_ADD, fd, &event);
}

static int open_events(struct mp_front *f, struct mp_error *err)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    f->poll_fd = epoll_create1(EPOLL_CLOEXEC);
    f->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    f->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (f->poll_fd < 0 || add_fd(f, f->wake_fd, EVENT_WAKE) ||
        add_fd(f, f->signal_fd, EVENT_SIGNAL))
        return mp_fail(err, MP_EIO, "epoll: %s", strerror(errno));
    return 0;
}

int mp_front_new(struct mp_front **out, struct mp_daemon_conf *conf,
                 const char *file, const char *const *assign, size_t nassign,
                 char *const *args, struct mp_error *err)
{
    struct mp_front *f = calloc(1, sizeof *f);
    int rc = f ? 0 : no_memory(err);

    *out = NULL;
    if (rc) {
        mp_daemon_conf_free(conf);
        return rc;
    }
    f->file = file;
    f->assign = assign;
    f->nassign = nassign;
    f->args = args;
    f->began = mp_now();
    f->wake_fd = f->signal_fd = -1;
    pthread_mutex_init(&f->lock, NULL);
    rc = open_events(f, err);
    if (rc)
        mp_daemon_conf_free(conf);
    else
        rc = change_to(f, conf, err);
    if (rc) {
        mp_front_free(f);
        return rc;
    }
    *out = f;
    return 0;
}

static void free_worker(struct worker *w)
{
    if (w->pid) {
        close(w->sock); /* it ends by itself, or else: */
        for (int i = 0; i < 100 && !waitpid(w->pid, NULL, WNOHANG); i++) {
            if (i == 50)
                kill(w->pid, SIGKILL);
            nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
        }
    }
    munmap(w->ledger, sizeof *w->ledger);
    close(w->ledger_fd);
    free(w);
}

void mp_front_free(struct mp_front *f)
{
    if (!f)
        return;
    while (f->workers) {
        struct worker *w = f->workers;

        f->workers = w->next;
        free_worker(w);
    }
    while (f->pipelines) {
        struct pipeline *p = f->pipelines;

        f->pipelines = p->next;
        json_decref(p->about);
        free(p);
    }
    while (f->flights) {
        struct flight *fl = f->flights;

        f->flights = fl->next;
        free(fl);
    }
    for (size_t i = 0; i < f->nconf; i++)
        mp_daemon_conf_free(f->confs[i]);
    free(f->confs);
    if (f->poll_fd >= 0)
        close(f->poll_fd);
    if (f->wake_fd >= 0)
        close(f->wake_fd);
    if (f->signal_fd >= 0)
        close(f->signal_fd);
    pthread_mutex_destroy(&f->lock);
    free(f);
}
