/* SPDX-License-Identifier: MIT */
/* front.c - pipelines, signals and the loop; see front.h. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>
#include "front_impl.h"
#include "progress.h"
#include "system.h"

static int no_memory(struct mp_error *err)
{
    return mp_fail(err, MP_ENOMEM, "out of memory");
}

/* ---- texts for everybody ---- */

void mp_without_folders(char *out, size_t size, const char *text)
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

void mp_front_note(struct mp_front *f, const char *text)
{
    size_t at = f->nerror++ % ERRORS_KEPT;

    snprintf(f->errors[at].text, sizeof f->errors[at].text, "%s", text);
    f->errors[at].when = time(NULL);
}

/* ---- pipelines ---- */

struct pipeline *mp_front_find(const struct mp_front *f, const char *name)
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

void mp_front_end_waiting(struct mp_front *f, struct pipeline *p)
{
    for (struct mp_request *r = f->live, *next; r; r = next) {
        int is_load = r->kind == MP_WANT_LOAD;

        next = r->next;
        if (r->target != p || r->kind == MP_WANT_INFER)
            continue;
        if (is_load ? p->state == READY : p->state == UNLOADED)
            mp_front_settle(f, r, GOOD, 200);
        else if (p->state == FAILED || is_load)
            mp_front_settle_with(
                f, r, BAD_REQUEST, 400, "%s: %s", p->entry->name,
                p->state == FAILED ? p->reason : "was unloaded");
    }
}

void mp_front_give_up(struct mp_front *f, struct pipeline *p, const char *why)
{
    mp_without_folders(p->reason, sizeof p->reason, why);
    p->state = FAILED;
    p->is_wanted = 0;
    mp_log(MP_LOG_ERROR, p->entry->name, "not available: %s", why);
    mp_front_note(f, p->reason);
    mp_front_fail_queue(f, p, p->reason);
    mp_front_end_waiting(f, p);
}

/* NULL: out of memory. */
static json_t *load_text(const struct pipeline *p)
{
    json_t *assign = json_array();

    for (char **a = p->entry->assign; *a; a++)
        if (json_array_append_new(assign, json_string(*a))) {
            json_decref(assign);
            return NULL;
        }
    return json_pack("{s:s, s:s*, s:s, s:o, s:f}", "name", p->entry->name,
                     "config", p->entry->config, "folder", p->entry->folder,
                     "assign", assign, "batch_window", p->entry->batch_window);
}

static void send_load(struct mp_front *f, struct pipeline *p)
{
    json_t *text = load_text(p);
    int rc = text ? mp_front_send(p->worker, MP_LOAD, p->id, text, MP_NO_BLOB)
                  : MP_ENOMEM;

    if (rc)
        mp_front_give_up(f, p,
                         rc == MP_ENOMEM ? "out of memory"
                                         : "too many settings in its section");
}

void mp_front_load(struct mp_front *f, struct pipeline *p)
{
    p->state = LOADING;
    p->is_wanted = 1;
    p->loading_since = mp_now();
    if (p->worker->pid)
        send_load(f, p);
    else if (!p->worker->restart)
        p->worker->restart = p->loading_since;
}

void mp_front_unload(struct mp_front *f, struct pipeline *p)
{
    if (p->state == READY) {
        p->state = UNLOADING;
        mp_front_fail_queue(f, p, "was unloaded");
        mp_front_dispatch(f, p);
        return;
    }
    if (p->state == FAILED)
        p->state = UNLOADED;
    mp_front_end_waiting(f, p);
}

void mp_front_forget(struct mp_front *f)
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

/* ---- messages of workers ---- */

static void on_loaded(struct mp_front *f, struct worker *w,
                      struct mp_message *m)
{
    struct pipeline *p = pipeline_at(f, m->id);
    const char *why = json_string_value(json_object_get(m->text, "error"));

    if (!p || p->worker != w || p->state != LOADING)
        return;
    if (!m->text) { /* what became of it was lost for want of memory */
        mp_front_bury(f, w, 0);
        return;
    }
    if (m->code) {
        mp_front_give_up(f, p, why ? why : "could not be loaded");
        return;
    }
    json_decref(p->about);
    p->about = m->text;
    m->text = NULL;
    p->state = READY;
    mp_log(MP_LOG_INFO, p->entry->name, "ready");
    mp_front_end_waiting(f, p);
    if (p->is_gone)
        mp_front_unload(f, p);
    mp_front_dispatch(f, p);
    mp_front_save_memory(f, w);
}

static void on_unloaded(struct mp_front *f, struct worker *w,
                        const struct mp_message *m)
{
    struct pipeline *p = pipeline_at(f, m->id);

    if (!p || p->worker != w || p->state != UNLOADING)
        return;
    p->state = UNLOADED;
    p->used = 0;
    mp_front_end_waiting(f, p);
    if (p->queue.n)
        mp_front_load(f, p);
    mp_front_forget(f);
    mp_front_save_memory(f, w);
}

static void on_message(struct mp_front *f, struct worker *w)
{
    struct mp_message m;
    struct mp_error err = {0};
    int got = mp_link_receive(w->sock, &m, &err);

    if (got != 1) {
        if (got < 0)
            mp_log(MP_LOG_ERROR, w->name, "%s", err.text);
        mp_front_bury(f, w, 0);
        return;
    }
    if (m.type == MP_LOADED)
        on_loaded(f, w, &m);
    else if (m.type == MP_UNLOADED)
        on_unloaded(f, w, &m);
    else if (m.type == MP_DONE)
        mp_front_take(f, w, &m);
    mp_message_free(&m);
}

/* ---- the service manager ---- */

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
    mp_earlier(next, f->beat);
}

/* ---- signals ---- */

static int add_pipeline(struct mp_front *f, const struct mp_pipeline_entry *e,
                        struct mp_error *err)
{
    struct pipeline **end = &f->pipelines;
    struct pipeline *p = calloc(1, sizeof *p);

    if (!p)
        return no_memory(err);
    p->worker = mp_front_worker(f, e->worker, err);
    if (!p->worker) {
        free(p);
        return MP_ENOMEM;
    }
    p->id = ++f->last_id;
    p->entry = e;
    mp_queue_init(&p->queue, (size_t)mp_front_conf(f)->limits.queue);
    while (*end)
        end = &(*end)->next;
    *end = p;
    if (e->load == MP_AT_START)
        mp_front_load(f, p);
    return 0;
}

static int same_entry(const struct mp_pipeline_entry *a,
                      const struct mp_pipeline_entry *b)
{
    size_t i = 0;

    if (!a->config != !b->config ||
        strcmp(a->config ? a->config : a->folder,
               b->config ? b->config : b->folder) ||
        strcmp(a->worker, b->worker) || a->batch_window != b->batch_window)
        return 0;
    while (a->assign[i] && b->assign[i] && !strcmp(a->assign[i], b->assign[i]))
        i++;
    return a->assign[i] == b->assign[i];
}

static void drop_pipeline(struct mp_front *f, struct pipeline *p)
{
    p->is_gone = 1;
    mp_front_fail_queue(f, p, "is no longer in the configuration");
    if (p->state != LOADING)
        mp_front_unload(f, p);
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
        if (!mp_front_find(f, c->pipeline[i].name))
            rc = add_pipeline(f, &c->pipeline[i], err);
    mp_front_forget(f);
    return rc;
}

static void reload(struct mp_front *f)
{
    struct mp_daemon_conf *c;
    struct mp_error err = {0};
    int rc;

    mp_notify("RELOADING=1\nMONOTONIC_USEC=%.0f", mp_now() * 1e6);
    rc = mp_daemon_conf_open(&c, f->file, f->assign, f->nassign, &err);
    if (!rc && (rc = mp_listen_check(c, &err)))
        mp_daemon_conf_free(c);
    if (rc || change_to(f, c, &err)) {
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
        f->drain_until = mp_now() + mp_front_conf(f)->limits.drain_time;
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
        mp_front_gone(f, number);
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

    if (f->every_second && f->second <= now) {
        f->every_second(f->every_user);
        f->second = now + 1;
    }
    if (f->every_second)
        mp_earlier(&next, f->second);
    mp_front_expire(f, now, &next);
    mp_front_mind(f, now, &next);
    for (struct pipeline *p = f->pipelines; p; p = p->next)
        mp_front_dispatch(f, p);
    beat(f, now, &next);
    tell_ready(f);
    if (f->draining)
        mp_earlier(&next, f->drain_until);
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
        mp_front_tell(f);
        if (over)
            break;
        n = epoll_wait(f->poll_fd, event, 64, (int)(wait * 1e3) + 1);
        if (n < 0 && errno != EINTR)
            return mp_fail(err, MP_EIO, "epoll: %s", strerror(errno));
        pthread_mutex_lock(&f->lock);
        for (int i = 0; i < n; i++)
            on_event(f, event[i].data.u64);
        pthread_mutex_unlock(&f->lock);
        mp_front_tell(f);
    } while (1);
    pthread_mutex_lock(&f->lock);
    while (f->live)
        mp_front_abandon(f, f->live, REJECTED, 503, "mpiped is ending");
    pthread_mutex_unlock(&f->lock);
    mp_front_tell(f);
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

void mp_front_free(struct mp_front *f)
{
    if (!f)
        return;
    while (f->workers) {
        struct worker *w = f->workers;

        f->workers = w->next;
        mp_front_end_worker(w);
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
